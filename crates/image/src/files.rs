//! Bytes of images as files of one directory.
//!
//! `data/<image id>`: whole, flushed, never written again. `incoming/<token>`: an upload under way or staged; its
//! writer holds an exclusive lock, which ends with the process, so that a crashed upload is told from a slow one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base::{Error, ImageId, Result};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, pin_mut};
use md5::Md5;
use sha2::{Digest, Sha512};
use tokio_util::io::ReaderStream;

/// Bytes handed to the network at once.
const CHUNK: usize = 256 << 10;
/// Chunks between the network and the disk: what an upload holds in memory.
const QUEUE: usize = 8;
/// How long a sender may be silent.
const STALL: std::time::Duration = std::time::Duration::from_secs(300);
/// Age at which an unlocked temporary file that no row names is litter.
const STALE: std::time::Duration = std::time::Duration::from_secs(600);

/// The directory.
#[derive(Debug, Clone)]
pub struct Files {
    directory: PathBuf,
}

/// A temporary file with its lock.
#[derive(Debug)]
pub struct Incoming {
    /// Its name.
    pub token: String,
    file: File,
    path: PathBuf,
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Length in bytes.
    pub size: u64,
    /// MD5, hex.
    pub md5: String,
    /// SHA-512, hex.
    pub sha512: String,
}

impl Files {
    /// Makes the directories.
    ///
    /// # Errors
    /// `Internal` where that fails.
    pub fn open(directory: &Path) -> Result<Self> {
        for room in ["data", "incoming"] {
            let path = directory.join(room);
            std::fs::create_dir_all(&path).map_err(Error::internal)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))
                .map_err(Error::internal)?;
        }
        Ok(Files { directory: directory.to_owned() })
    }

    /// Where an image's bytes are once it is active.
    pub fn path(&self, id: ImageId) -> PathBuf {
        self.directory.join("data").join(id.to_string())
    }

    fn incoming(&self, token: &str) -> PathBuf {
        self.directory.join("incoming").join(token)
    }

    /// A new temporary file, locked.
    ///
    /// # Errors
    /// `Internal`.
    pub fn begin(&self, token: String) -> Result<Incoming> {
        let path = self.incoming(&token);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::internal)?;
        file.lock().map_err(Error::internal)?;
        Ok(Incoming { token, file, path })
    }

    /// The temporary file of that name with its lock; `None` where it is gone or its writer lives.
    ///
    /// # Errors
    /// `Internal`.
    pub fn take(&self, token: &str) -> Result<Option<Incoming>> {
        let path = self.incoming(token);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::internal(error)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Incoming { token: token.to_owned(), file, path })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::internal(error)),
        }
    }

    /// Whether the writer of that temporary file lives.
    ///
    /// # Errors
    /// `Internal`.
    pub fn alive(&self, token: &str) -> Result<bool> {
        Ok(self.incoming(token).exists() && self.take(token)?.is_none())
    }

    /// Removes a temporary file.
    ///
    /// # Errors
    /// `Internal`.
    pub fn discard(&self, token: &str) -> Result<()> {
        remove(&self.incoming(token))
    }

    /// Removes a temporary file that no row names and no one has locked for a while. A new one is locked a moment after
    /// it is made, and named by a row a moment after that, so young files are left alone.
    ///
    /// # Errors
    /// `Internal`.
    pub fn discard_if_stale(&self, token: &str) -> Result<()> {
        let path = self.incoming(token);
        let young = std::fs::metadata(&path)
            .and_then(|m| m.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age < STALE));
        if !young && self.take(token)?.is_some() { self.discard(token) } else { Ok(()) }
    }

    /// Gives the temporary file its final name as well, flushed.
    ///
    /// # Errors
    /// `Internal`.
    pub fn publish(&self, incoming: &Incoming, id: ImageId) -> Result<()> {
        let target = self.path(id);
        incoming.file.set_permissions(std::fs::Permissions::from_mode(0o400)).map_err(Error::internal)?;
        incoming.file.sync_all().map_err(Error::internal)?;
        // A second name, not a new one: the locked first name tells others that the upload lives until it is committed.
        remove(&target)?;
        std::fs::hard_link(&incoming.path, &target).map_err(|error| match error.kind() {
            // Another replica took the upload for dead.
            ErrorKind::NotFound => Error::gone("The upload was given up in the meantime.").caused_by(error),
            _ => Error::internal(error),
        })?;
        File::open(self.directory.join("data")).and_then(|d| d.sync_all()).map_err(Error::internal)
    }

    /// Removes an image's bytes; missing is success.
    ///
    /// # Errors
    /// `Internal`.
    pub fn remove(&self, id: ImageId) -> Result<()> {
        remove(&self.path(id))
    }

    /// Names of all files: images, and temporary ones.
    ///
    /// # Errors
    /// `Internal`.
    pub fn list(&self) -> Result<(Vec<ImageId>, Vec<String>)> {
        let names = |room: &str| -> Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(self.directory.join(room)).map_err(Error::internal)? {
                names.push(entry.map_err(Error::internal)?.file_name().to_string_lossy().into_owned());
            }
            Ok(names)
        };
        Ok((names("data")?.iter().filter_map(|n| n.parse().ok()).collect(), names("incoming")?))
    }

    /// `length` bytes of an image from `offset`.
    ///
    /// # Errors
    /// `NotFound` where there is no such file.
    pub async fn read(
        &self,
        id: ImageId,
        offset: u64,
        length: u64,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        use tokio::io::{AsyncReadExt, AsyncSeekExt};
        let mut file = tokio::fs::File::open(self.path(id)).await.map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                Error::not_found(format!("No data of image {id} could be found"))
            } else {
                Error::internal(error)
            }
        })?;
        file.seek(SeekFrom::Start(offset)).await.map_err(Error::internal)?;
        file.set_max_buf_size(CHUNK);
        let capacity = usize::try_from(length).unwrap_or(CHUNK).clamp(1, CHUNK);
        Ok(ReaderStream::with_capacity(file.take(length), capacity)
            .map(|chunk| chunk.map_err(Error::internal))
            .boxed())
    }
}

impl Incoming {
    /// Writes and hashes the stream: the network side only passes chunks on, disk and hashing have a thread of their
    /// own, and at most a few chunks are in memory. Flushed when it returns.
    ///
    /// # Errors
    /// `TooLarge` over `limit` bytes or where the disk is full, and whatever the stream says.
    pub async fn receive<S>(self, stream: S, limit: u64) -> Result<(Self, Received)>
    where
        S: Stream<Item = Result<Bytes>> + Send,
    {
        let (send, mut chunks) = tokio::sync::mpsc::channel::<Bytes>(QUEUE);
        let mut file = self.file.try_clone().map_err(Error::internal)?;
        let writer = tokio::task::spawn_blocking(move || {
            let (mut md5, mut sha512, mut size) = (Md5::new(), Sha512::new(), 0_u64);
            while let Some(chunk) = chunks.blocking_recv() {
                size += chunk.len() as u64;
                if size > limit {
                    return Err(too_large(limit));
                }
                file.write_all(&chunk).map_err(disk_error)?;
                md5.update(&chunk);
                sha512.update(&chunk);
            }
            file.sync_all().map_err(disk_error)?;
            Ok(Received { size, md5: hex::encode(md5.finalize()), sha512: hex::encode(sha512.finalize()) })
        });
        pin_mut!(stream);
        let mut broken = None;
        loop {
            let chunk = match tokio::time::timeout(STALL, stream.next()).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(_) => Err(Error::bad_request("No image data came in for too long.")),
            };
            match chunk {
                Ok(chunk) if chunk.is_empty() => {}
                // A closed queue means that the writer gave up; its own answer says why.
                Ok(chunk) => {
                    if send.send(chunk).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        drop(send);
        let received = writer.await.map_err(Error::internal)?;
        match broken {
            Some(error) => Err(error),
            None => Ok((self, received?)),
        }
    }

    /// The bytes, to look at.
    pub fn reader(&mut self) -> Result<impl Read + Seek + '_> {
        self.file.seek(SeekFrom::Start(0)).map_err(Error::internal)?;
        Ok(std::io::BufReader::new(&mut self.file))
    }
}

/// 413 for more bytes than allowed.
pub fn too_large(limit: u64) -> Error {
    Error::too_large(format!("The image is larger than the limit of {limit} bytes."))
}

fn disk_error(error: std::io::Error) -> Error {
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) {
        Error::too_large("There is not enough disk space on the image storage media.").caused_by(error)
    } else {
        Error::internal(error)
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::internal(error)),
        _ => Ok(()),
    }
}
