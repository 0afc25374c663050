//! Local disks: overlays on images and empty disks, made aside and renamed, owned by the guests' user.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base::{Error, Result};
use contract::drivers::{BlockDevice, GuestPlan};
use contract::host::DiskSource;
use tokio::process::Command;

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
        std::fs::File::open(&aside).and_then(|f| f.sync_all()).map_err(io(&aside))?;
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
                if !path.exists() {
                    let kept = path.with_extension("base");
                    keep(config, &base, &kept)?;
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
