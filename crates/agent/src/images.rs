//! Brings image bytes from the image service to a host and verifies them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base::{Error, Result};
use contract::drivers::ImageSource;
use contract::host::ImageRef;
use contract::services::ImageBytes;
use futures::StreamExt;
use sha2::{Digest, Sha512};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

/// Copies images from [`ImageBytes`] into the host's cache. The file's name carries the hash, so that a file
/// that has its final name is known to be whole and right.
pub struct CachedImages {
    images: Arc<dyn ImageBytes>,
    /// One download at a time: a burst of servers from one image reads it once.
    turn: Mutex<()>,
}

impl CachedImages {
    /// A cache in front of `images`.
    pub fn new(images: Arc<dyn ImageBytes>) -> Self {
        CachedImages { images, turn: Mutex::new(()) }
    }
}

#[async_trait]
impl ImageSource for CachedImages {
    async fn fetch(&self, image: &ImageRef, into: &Path) -> Result<PathBuf> {
        let short: String = image.sha512.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let path = into.join(format!("{}-{short}", image.id));
        let _turn = self.turn.lock().await;
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            return Ok(path);
        }
        let io = |e: std::io::Error| Error::internal(format!("{}: {e}", path.display()));
        tokio::fs::create_dir_all(into).await.map_err(io)?;
        let aside = path.with_extension("part");
        let mut file = tokio::fs::File::create(&aside).await.map_err(io)?;
        let mut hash = Sha512::new();
        let mut stream = self.images.bytes(image.id).await?;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(io)?;
        }
        file.sync_all().await.map_err(io)?;
        if hex::encode(hash.finalize()) != image.sha512 {
            let _ = tokio::fs::remove_file(&aside).await;
            return Err(Error::internal(format!("image {} does not have its hash", image.id)));
        }
        tokio::fs::rename(&aside, &path).await.map_err(io)?;
        Ok(path)
    }
}
