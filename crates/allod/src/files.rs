//! Files of the state directory.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

/// Writes a file that only we may read (mode 0600): aside, fsynced, renamed.
pub fn write_secret(path: &Path, content: &[u8]) -> Result<()> {
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .with_context(|| format!("cannot write {}", aside.display()))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&aside, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The lock of the one `what` that may run with this file.
pub fn only(path: &Path, what: &str) -> Result<Flock<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow!("another {what} runs in {}", path.display()))
}
