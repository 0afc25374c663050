//! `qemu-img`, started with nothing but its arguments. Formats are always named, never probed.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use base::{Error, Result};
use contract::drivers::BlockDevice;
use tokio::process::Command;

/// What is answered where a running guest has the disk open and no hypervisor can be asked.
pub(crate) fn busy() -> Error {
    Error::conflict("the volume is in use by a running server, and this host cannot do that while it is")
}

/// Makes an empty qcow2 disk.
pub(crate) async fn create(program: &Path, path: &Path, bytes: u64) -> Result<()> {
    let size = bytes.to_string();
    run(
        program,
        &["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_ref(), size.as_ref()],
    )
    .await
}

/// Copies the whole content of `source` into a new file.
pub(crate) async fn convert(program: &Path, source: &BlockDevice, target: &BlockDevice) -> Result<()> {
    run(
        program,
        &[
            "convert".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            source.format.as_ref(),
            "-O".as_ref(),
            target.format.as_ref(),
            source.path.as_ref(),
            target.path.as_ref(),
        ],
    )
    .await
}

/// Grows a disk.
pub(crate) async fn resize(program: &Path, disk: &BlockDevice, bytes: u64) -> Result<()> {
    let size = bytes.to_string();
    run(
        program,
        &[
            "resize".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            disk.format.as_ref(),
            disk.path.as_ref(),
            size.as_ref(),
        ],
    )
    .await
}

async fn run(program: &Path, arguments: &[&OsStr]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| Error::unavailable("qemu-img cannot be started").caused_by(e))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.contains(" lock") {
        return Err(busy().caused_by(text));
    }
    if text.contains("No space left") {
        return Err(Error::unavailable("no space left on the host").caused_by(text));
    }
    Err(Error::internal(format!("qemu-img: {text}")))
}
