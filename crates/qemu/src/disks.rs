//! Local disks: overlays on images and empty disks, made aside and renamed, owned by the guests' user.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use base::{Error, Result};
use bytes::Bytes;
use contract::drivers::{BlockDevice, GuestPlan};
use contract::host::{DiskSource, PIECE};
use tokio::process::Command;
use uuid::Uuid;

use crate::devices::Device;
use crate::{Config, io};

/// Runs qemu-img.
async fn qemu_img(arguments: &[&std::ffi::OsStr]) -> Result<()> {
    let output = Command::new("qemu-img").args(arguments).output().await.map_err(Error::internal)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::internal(format!("qemu-img: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// Gives a file to the guests' user, for nobody else.
pub(crate) fn give(config: &Config, path: &Path) -> Result<()> {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(io(path))?;
    if let Some((uid, gid)) = config.user {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(io(path))?;
    }
    Ok(())
}

/// Keeps an image for as long as the guest's disk lies on it, whatever becomes of the cache it came from: a hard link in
/// the guest's directory, or a copy where that is another filesystem. The guests' group may read it, nobody write it.
fn keep(config: &Config, image: &Path, path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let aside = path.with_extension("base-new");
    let _ = std::fs::remove_file(&aside);
    if std::fs::hard_link(image, &aside).is_err() {
        std::fs::copy(image, &aside).map_err(io(image))?;
        File::open(&aside).and_then(|f| f.sync_all()).map_err(io(&aside))?;
    }
    if let Some((_, gid)) = config.user {
        std::os::unix::fs::chown(&aside, None, Some(gid)).map_err(io(&aside))?;
        std::fs::set_permissions(&aside, PermissionsExt::from_mode(0o440)).map_err(io(&aside))?;
    }
    std::fs::rename(&aside, path).map_err(io(path))
}

async fn make(
    config: &Config,
    path: &Path,
    arguments: &[&std::ffi::OsStr],
    size: Option<String>,
) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let aside = path.with_extension("new");
    let _ = std::fs::remove_file(&aside);
    let mut all: Vec<&std::ffi::OsStr> =
        vec!["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref()];
    all.extend(arguments);
    all.push(aside.as_os_str());
    if let Some(size) = &size {
        all.push(size.as_ref());
    }
    qemu_img(&all).await?;
    give(config, &aside)?;
    std::fs::rename(&aside, path).map_err(io(path))
}

/// An empty qcow2 file for the memory of a suspended guest.
pub(crate) async fn memory_file(config: &Config, dir: &Path, memory_mib: u64) -> Result<PathBuf> {
    let path = dir.join("vmstate.qcow2");
    // Room for the memory and the device state; qcow2 takes only what is written.
    make(config, &path, &[], Some(format!("{}M", memory_mib + 256))).await?;
    Ok(path)
}

/// Makes what is missing and answers the guest's disks in boot order.
pub(crate) async fn prepare(config: &Config, dir: &Path, plan: &GuestPlan) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for (i, disk) in plan.spec.disks.iter().enumerate() {
        let boot_index = u32::try_from(i).ok().filter(|i| *i == 0);
        let given = plan.disks.get(i).cloned().flatten();
        let at = match (&disk.source, given) {
            (DiskSource::Volume { .. }, Some(at)) => at,
            (DiskSource::Volume { volume }, None) => {
                return Err(Error::unavailable(format!("volume {volume} has no device on this host")));
            }
            (DiskSource::Image { image, size_gib }, _) => {
                let base = plan.images.get(i).cloned().flatten();
                let base = base
                    .ok_or_else(|| Error::unavailable(format!("image {} is not on this host", image.id)))?;
                let path = local(dir, &disk.name);
                let kept = path.with_extension("base");
                // Also under a disk that came from another host.
                keep(config, &base, &kept)?;
                if !path.exists() {
                    overlay(config, &path, &kept, &image.format, *size_gib).await?;
                }
                BlockDevice { path, format: "qcow2" }
            }
            (DiskSource::Blank { size_gib }, _) => {
                let path = local(dir, &disk.name);
                make(config, &path, &[], Some(format!("{}G", (*size_gib).max(1)))).await?;
                BlockDevice { path, format: "qcow2" }
            }
        };
        let at = BlockDevice { path: config.seen(&at.path), ..at };
        devices.push(Device::disk(disk, &at, boot_index));
    }
    if let Some(bytes) = &plan.config_drive {
        let path = dir.join("config.img");
        // Not under a guest that has it open: a new file takes its name.
        let aside = dir.join("config.img.new");
        std::fs::write(&aside, bytes).map_err(io(&aside))?;
        give(config, &aside)?;
        std::fs::rename(&aside, &path).map_err(io(&path))?;
        devices.push(Device::config_drive(&config.seen(&path)));
    }
    Ok(devices)
}

/// A piece of a disk's file.
pub(crate) fn read(dir: &Path, name: &str, offset: u64) -> Result<Bytes> {
    let path = local(dir, name);
    let mut file = File::open(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(format!("There is no disk {name} here.")),
        _ => io(&path)(e),
    })?;
    file.seek(SeekFrom::Start(offset)).map_err(io(&path))?;
    let mut piece = Vec::new();
    file.take(PIECE as u64).read_to_end(&mut piece).map_err(io(&path))?;
    Ok(piece.into())
}

/// Whether the disk came by this transfer, whole.
pub(crate) fn came(dir: &Path, transfer: Uuid, name: &str) -> bool {
    let path = local(dir, name);
    let told = std::fs::read_to_string(path.with_extension("from"));
    path.exists() && told.is_ok_and(|told| told == transfer.to_string())
}

/// Takes a piece of a disk that comes from another host; an empty one is its end.
pub(crate) fn take(
    config: &Config,
    dir: &Path,
    transfer: Uuid,
    name: &str,
    offset: u64,
    piece: &[u8],
) -> Result<()> {
    let path = local(dir, name);
    let aside = path.with_extension("in");
    let mut file = File::options()
        .create(true)
        .truncate(offset == 0)
        .write(true)
        .mode(0o600)
        .open(&aside)
        .map_err(io(&aside))?;
    if file.metadata().map_err(io(&aside))?.len() != offset {
        return Err(Error::conflict(format!("Pieces of disk {name} did not come in order.")));
    }
    if !piece.is_empty() {
        file.seek(SeekFrom::Start(offset)).map_err(io(&aside))?;
        return file.write_all(piece).map_err(io(&aside));
    }
    file.sync_all().map_err(io(&aside))?;
    harmless(&aside, name)?;
    give(config, &aside)?;
    std::fs::rename(&aside, &path).map_err(io(&path))?;
    let marker = path.with_extension("from");
    std::fs::write(&marker, transfer.to_string()).map_err(io(&marker))
}

/// Refuses a disk that would let its guest read other files of this host: one that lies on anything but its own image,
/// or keeps its data elsewhere. The other host may not be what it says.
fn harmless(path: &Path, name: &str) -> Result<()> {
    let refused = |why: &str| Error::bad_request(format!("Disk {name} from another host is refused: {why}."));
    let mut file = File::open(path).map_err(io(path))?;
    let mut head = [0_u8; 104];
    file.read_exact(&mut head).map_err(|_| refused("it is no qcow2"))?;
    let number = |at: usize, length: usize| {
        head.get(at..at + length).unwrap_or_default().iter().fold(0_u64, |n, byte| n << 8 | u64::from(*byte))
    };
    if head.get(..4) != Some(b"QFI\xfb") || number(4, 4) != 3 {
        return Err(refused("it is no qcow2 of version 3"));
    }
    // Incompatible features: 1 = marked dirty, 2 = corrupt, 4 = data in another file.
    if number(72, 8) & 4 != 0 {
        return Err(refused("its data is in another file"));
    }
    let (offset, length) = (number(8, 8), number(16, 4));
    if offset == 0 {
        return Ok(());
    }
    if length > 1023 {
        return Err(refused("the name of its image is too long"));
    }
    let mut base = vec![0_u8; usize::try_from(length).unwrap_or(0)];
    file.seek(SeekFrom::Start(offset)).map_err(io(path))?;
    file.read_exact(&mut base).map_err(|_| refused("the name of its image is missing"))?;
    let own = local(Path::new(""), name).with_extension("base");
    if Path::new(std::ffi::OsStr::from_bytes(&base)) != own {
        return Err(refused("it lies on another file than its image"));
    }
    Ok(())
}

fn local(dir: &Path, name: &str) -> PathBuf {
    let safe: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    dir.join(format!("{safe}.qcow2"))
}

async fn overlay(config: &Config, path: &Path, base: &Path, format: &str, size_gib: u64) -> Result<()> {
    if !matches!(format, "qcow2" | "raw") {
        return Err(Error::bad_request(format!("An image of format {format} cannot be booted.")));
    }
    let size = (size_gib > 0).then(|| format!("{size_gib}G"));
    // Named relative to the overlay, which lies in the same directory.
    let base = base.file_name().unwrap_or_default();
    let arguments: [&std::ffi::OsStr; 4] = ["-b".as_ref(), base, "-F".as_ref(), format.as_ref()];
    make(config, path, &arguments, size).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        let hostname = "h1".into();
        Config {
            dir: dir.to_owned(),
            hostname,
            user: None,
            grace: std::time::Duration::from_secs(1),
            guard: None,
        }
    }

    /// Sends a disk of one directory to another, piece by piece.
    fn send(from: &Path, to: &Path, transfer: Uuid) -> Result<()> {
        let mut offset = 0;
        loop {
            let piece = read(from, "root", offset)?;
            take(&config(to), to, transfer, "root", offset, &piece)?;
            if piece.is_empty() {
                return Ok(());
            }
            offset += piece.len() as u64;
        }
    }

    #[tokio::test]
    async fn a_disk_comes_whole_and_only_on_its_own_image() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (from.path(), to.path());
        std::fs::write(from.join("root.base"), vec![7; 1 << 20]).unwrap();
        overlay(&config(from), &from.join("root.qcow2"), &from.join("root.base"), "raw", 1).await.unwrap();
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        take(&config(to), to, first, "root", 0, b"torn").unwrap();
        assert!(take(&config(to), to, first, "root", 99, b"out of order").is_err());
        assert!(!came(to, first, "root"));
        send(from, to, first).unwrap();
        assert!(came(to, first, "root") && !came(to, second, "root"));
        let bytes = |dir: &Path| std::fs::read(dir.join("root.qcow2")).unwrap();
        assert_eq!(bytes(from), bytes(to));
        std::fs::write(from.join("other"), vec![7; 1 << 20]).unwrap();
        std::fs::remove_file(from.join("root.qcow2")).unwrap();
        overlay(&config(from), &from.join("root.qcow2"), &from.join("other"), "raw", 1).await.unwrap();
        let refused = send(from, to, second).unwrap_err();
        assert!(refused.public().contains("another file than its image"), "{}", refused.public());
        assert!(!came(to, second, "root"), "what came before is told from it");
        std::fs::write(from.join("root.qcow2"), b"no qcow2").unwrap();
        assert!(send(from, to, second).is_err());
    }
}
