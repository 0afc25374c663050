//! Volumes as files of one directory: qcow2 (default) or raw, made by `qemu-img`.
//!
//! Invariants: a file under its final name is whole and flushed (it is made aside under a temporary name, fsynced,
//! given to its owner, renamed, and the directory is fsynced); no volume or snapshot refers to another file, so that
//! each can be deleted alone; what a running guest has open is never copied or resized behind its back, but through
//! [`LiveDisks`], or refused.
//!
//! Layout: `volumes/<id>.<format>`, `snapshots/<id>.<format>`, temporary names begin with a dot and are swept by
//! [`FileStorage::open`]. Start reading at [`FileStorage::ensure`].

mod header;
mod tool;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use base::{Error, Result, SnapshotId, VolumeId};
use contract::drivers::{BlockDevice, BlockStorage, LiveDisks};
use contract::host::{SnapshotSpec, VolumeSource, VolumeSpec};

pub use header::virtual_size;

/// Bytes of a GiB.
const GIB: u64 = 1 << 30;

/// File format of new volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Thin, with metadata in the file.
    #[default]
    Qcow2,
    /// Plain bytes, sparse where the filesystem allows.
    Raw,
}

impl Format {
    /// QEMU's name of it, also the file name extension.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        }
    }
}

/// How [`FileStorage`] works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of its own; made if missing.
    pub directory: PathBuf,
    /// Format of new volumes; files of the other format found there stay usable.
    pub format: Format,
    /// User and group that own the files (the user QEMU runs as); `None`: whoever runs this.
    pub owner: Option<(u32, u32)>,
    /// The `qemu-img` program.
    pub qemu_img: PathBuf,
}

impl Config {
    /// qcow2 files under `directory`, owned by the running user, `qemu-img` from the `PATH`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Config {
            directory: directory.into(),
            format: Format::Qcow2,
            owner: None,
            qemu_img: PathBuf::from("qemu-img"),
        }
    }
}

/// [`BlockStorage`] on a directory.
pub struct FileStorage {
    config: Config,
    live: Option<Arc<dyn LiveDisks>>,
    counter: AtomicU64,
}

impl FileStorage {
    /// Makes the directories and sweeps what a crash left half made.
    ///
    /// # Errors
    /// `Internal` where the directory cannot be made or read.
    pub fn open(config: Config) -> Result<Self> {
        for room in ["volumes", "snapshots"] {
            let directory = config.directory.join(room);
            std::fs::create_dir_all(&directory).map_err(Error::internal)?;
            // The QEMU user passes through, but cannot list.
            for path in [&config.directory, &directory] {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711))
                    .map_err(Error::internal)?;
            }
            for entry in std::fs::read_dir(&directory).map_err(Error::internal)? {
                let entry = entry.map_err(Error::internal)?;
                if entry.file_name().to_string_lossy().starts_with('.') {
                    tracing::info!(file = %entry.path().display(), "sweeping a half-made file");
                    remove_file(&entry.path())?;
                }
            }
        }
        Ok(FileStorage { config, live: None, counter: AtomicU64::new(0) })
    }

    /// Lets volumes of running guests be copied and grown through their hypervisor.
    #[must_use]
    pub fn with_live(mut self, live: Arc<dyn LiveDisks>) -> Self {
        self.live = Some(live);
        self
    }

    fn volume(&self, id: VolumeId) -> BlockDevice {
        self.find("volumes", &id.to_string())
    }

    fn snapshot(&self, id: SnapshotId) -> BlockDevice {
        self.find("snapshots", &id.to_string())
    }

    /// The existing file of that id, else the one that would be made.
    fn find(&self, room: &str, id: &str) -> BlockDevice {
        let of = |format: Format| BlockDevice {
            path: self.config.directory.join(room).join(format!("{id}.{}", format.name())),
            format: format.name(),
        };
        let other = match self.config.format {
            Format::Qcow2 => Format::Raw,
            Format::Raw => Format::Qcow2,
        };
        let (first, second) = (of(self.config.format), of(other));
        if !first.path.exists() && second.path.exists() { second } else { first }
    }

    /// A name beside `target` that no one else uses and that the next start sweeps.
    fn aside(&self, target: &Path) -> PathBuf {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        target.with_file_name(format!(".{name}.{}.{n}", std::process::id()))
    }

    async fn in_use(&self, id: VolumeId) -> Result<bool> {
        match &self.live {
            Some(live) => live.in_use(id).await,
            None => Ok(false),
        }
    }

    /// Makes `target` appear whole: `fill` writes a temporary disk of its format, then it is finished and renamed.
    async fn make<F>(&self, target: &BlockDevice, fill: F) -> Result<()>
    where
        F: AsyncFnOnce(&BlockDevice) -> Result<()>,
    {
        let temporary = Aside(self.aside(&target.path));
        fill(&BlockDevice { path: temporary.0.clone(), format: target.format }).await?;
        let (from, to, owner) = (temporary.0.clone(), target.path.clone(), self.config.owner);
        blocking(move || publish(&from, &to, owner)).await
        // `temporary` is dropped here: nothing is left under that name after success.
    }

    async fn blank(&self, disk: &BlockDevice, bytes: u64) -> Result<()> {
        let path = disk.path.clone();
        if disk.format == "raw" {
            return blocking(move || {
                let file = std::fs::File::create(&path).map_err(Error::internal)?;
                file.set_len(bytes).map_err(Error::internal)
            })
            .await;
        }
        tool::create(&self.config.qemu_img, &path, bytes).await
    }

    async fn first_content(&self, spec: &VolumeSpec, image: Option<&Path>, disk: &BlockDevice) -> Result<()> {
        let wanted = bytes(spec.size_gib)?;
        let program = &self.config.qemu_img;
        match &spec.source {
            VolumeSource::Blank => return self.blank(disk, wanted).await,
            VolumeSource::Image(reference) => {
                let path =
                    image.ok_or_else(|| Error::internal("no local copy of the image was handed in"))?;
                let format = image_format(&reference.format)?;
                let (checked, name) = (path.to_owned(), format);
                let size = blocking(move || header::check_self_contained(&checked, name)).await?;
                fits(size, wanted, "image")?;
                tool::convert(program, &BlockDevice { path: path.to_owned(), format }, disk).await?;
            }
            VolumeSource::Snapshot(id) => {
                let source = self.snapshot(*id);
                fits(size_of(&source, "snapshot").await?, wanted, "snapshot")?;
                tool::convert(program, &source, disk).await?;
            }
            VolumeSource::Volume(id) if *id == spec.id => {
                return Err(Error::not_found(
                    "the volume's file is missing on this host; it is not made anew, because that would hide the loss",
                ));
            }
            VolumeSource::Volume(id) => {
                let source = self.volume(*id);
                fits(size_of(&source, "source volume").await?, wanted, "source volume")?;
                self.copy_volume(*id, &source, disk).await?;
            }
        }
        let size = size_of(disk, "new volume").await?;
        if size < wanted { tool::resize(program, disk, wanted).await } else { Ok(()) }
    }

    /// A consistent copy of a volume: by its guest's hypervisor where one has it open, else by `qemu-img`, whose locks
    /// refuse if a guest has it open all the same.
    async fn copy_volume(&self, id: VolumeId, source: &BlockDevice, target: &BlockDevice) -> Result<()> {
        if !self.in_use(id).await? {
            return tool::convert(&self.config.qemu_img, source, target).await;
        }
        let Some(live) = &self.live else { return Err(tool::busy()) };
        self.blank(target, size_of(source, "volume").await?).await?;
        if let Some((uid, gid)) = self.config.owner {
            let path = target.path.clone();
            blocking(move || std::os::unix::fs::chown(&path, Some(uid), Some(gid)).map_err(Error::internal))
                .await?;
        }
        live.copy(id, target).await
    }

    async fn grow(&self, id: VolumeId, disk: &BlockDevice, wanted: u64) -> Result<()> {
        if size_of(disk, "volume").await? >= wanted {
            return Ok(());
        }
        if self.in_use(id).await?
            && let Some(live) = &self.live
        {
            return live.grow(id, wanted).await;
        }
        tool::resize(&self.config.qemu_img, disk, wanted).await?;
        let path = disk.path.clone();
        blocking(move || std::fs::File::open(&path).and_then(|f| f.sync_all()).map_err(Error::internal)).await
    }

    /// Ids and disks of one room; what is not named like ours is left alone.
    async fn list<T: FromStr + Send + 'static>(&self, room: &'static str) -> Result<Vec<(T, BlockDevice)>> {
        let directory = self.config.directory.join(room);
        blocking(move || {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(&directory).map_err(Error::internal)? {
                let path = entry.map_err(Error::internal)?.path();
                let format = match path.extension().and_then(|e| e.to_str()) {
                    Some("qcow2") => "qcow2",
                    Some("raw") => "raw",
                    _ => continue,
                };
                if let Some(Ok(id)) = path.file_stem().and_then(|s| s.to_str()).map(T::from_str) {
                    found.push((id, BlockDevice { path, format }));
                }
            }
            Ok(found)
        })
        .await
    }
}

#[async_trait]
impl BlockStorage for FileStorage {
    async fn observe(&self) -> Result<Vec<(VolumeId, u64)>> {
        let found = self.list::<VolumeId>("volumes").await?;
        blocking(move || {
            // A file deleted in between is no volume any more; one that cannot be read is reported with size 0.
            Ok(found
                .into_iter()
                .filter(|(_, disk)| disk.path.exists())
                .map(|(id, disk)| (id, virtual_size(&disk).unwrap_or(0) / GIB))
                .collect())
        })
        .await
    }

    async fn observe_snapshots(&self) -> Result<Vec<SnapshotId>> {
        Ok(self.list::<SnapshotId>("snapshots").await?.into_iter().map(|(id, _)| id).collect())
    }

    async fn ensure(&self, spec: &VolumeSpec, image: Option<&Path>) -> Result<()> {
        let disk = self.volume(spec.id);
        if disk.path.exists() {
            return self.grow(spec.id, &disk, bytes(spec.size_gib)?).await;
        }
        self.make(&disk, async |temporary| self.first_content(spec, image, temporary).await).await
    }

    async fn remove(&self, id: VolumeId) -> Result<()> {
        if self.in_use(id).await? {
            return Err(tool::busy());
        }
        let path = self.volume(id).path;
        blocking(move || remove_file(&path)).await
    }

    async fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<()> {
        let target = self.snapshot(spec.id);
        if target.path.exists() {
            return Ok(());
        }
        let source = self.volume(spec.volume);
        size_of(&source, "volume").await?;
        self.make(&target, async |temporary| self.copy_volume(spec.volume, &source, temporary).await).await
    }

    async fn remove_snapshot(&self, id: SnapshotId) -> Result<()> {
        let path = self.snapshot(id).path;
        blocking(move || remove_file(&path)).await
    }

    fn device(&self, id: VolumeId) -> BlockDevice {
        self.volume(id)
    }
}

/// A temporary file: gone when this is, whatever happened in between.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

fn bytes(size_gib: u64) -> Result<u64> {
    size_gib
        .checked_mul(GIB)
        .filter(|b| *b > 0)
        .ok_or_else(|| Error::bad_request("the volume's size is out of range"))
}

fn fits(size: u64, wanted: u64, what: &str) -> Result<()> {
    if size > wanted {
        return Err(Error::bad_request(format!(
            "the {what} has {size} bytes, which is more than the volume's {wanted}"
        )));
    }
    Ok(())
}

fn image_format(name: &str) -> Result<&'static str> {
    match name {
        "qcow2" => Ok("qcow2"),
        "raw" | "iso" | "ami" | "ari" | "aki" => Ok("raw"),
        other => Err(Error::bad_request(format!("volumes cannot be made from images of format '{other}'"))),
    }
}

async fn size_of(disk: &BlockDevice, what: &'static str) -> Result<u64> {
    let disk = disk.clone();
    blocking(move || {
        if !disk.path.exists() {
            return Err(Error::not_found(format!("the {what} is not on this host")));
        }
        virtual_size(&disk)
    })
    .await
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::internal(error)),
    }
}

fn sync_directory(path: &Path) -> Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(Error::internal)
}

/// Flushes, gives away, renames: after this the file is whole under its name, before it there is none.
fn publish(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let file = std::fs::File::open(from).map_err(Error::internal)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(Error::internal)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(from, Some(uid), Some(gid)).map_err(Error::internal)?;
    }
    file.sync_all().map_err(Error::internal)?;
    std::fs::rename(from, to).map_err(Error::internal)?;
    sync_directory(to)
}
