//! The serial console's log: what was read from QEMU's ring, in two files of bounded length.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base::{Error, Result};
use base64::Engine;
use serde_json::{Value, json};

use crate::launch::CONSOLE;
use crate::{Qmp, io};

/// A file that is longer is put aside, in the place of the one put aside before.
const LONGEST: u64 = 512 * 1024;
/// Bytes asked for at once.
const PIECE: usize = 64 * 1024;
const NEW: &str = "console.log";
const OLD: &str = "console.log.1";

/// A guest's log. Both files are ours alone: the guest's process cannot touch them.
#[derive(Default)]
pub(crate) struct Console;

impl Console {
    /// Reads the ring until it is empty (at most once around, so that a guest that writes without end holds up nobody).
    pub async fn empty(&self, qmp: &Qmp, dir: &Path) -> Result<()> {
        for _ in 0..16 {
            let ask = json!({"device": CONSOLE, "size": PIECE, "format": "base64"});
            let answer = qmp.call("ringbuf-read", ask).await?;
            let text =
                answer.as_str().or_else(|| answer.get("data").and_then(Value::as_str)).unwrap_or_default();
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(Error::internal)?;
            if bytes.is_empty() {
                break;
            }
            self.append(dir, &bytes)?;
        }
        Ok(())
    }

    fn append(&self, dir: &Path, bytes: &[u8]) -> Result<()> {
        let path = dir.join(NEW);
        if std::fs::metadata(&path).is_ok_and(|m| m.len() > LONGEST) {
            std::fs::rename(&path, dir.join(OLD)).map_err(io(&path))?;
        }
        let mut file =
            File::options().append(true).create(true).mode(0o600).open(&path).map_err(io(&path))?;
        file.write_all(bytes).map_err(io(&path))
    }

    /// All that is kept, oldest first.
    pub fn read(&self, dir: &Path) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for name in [OLD, NEW] {
            let path = dir.join(name);
            match std::fs::read(&path) {
                Ok(bytes) => all.extend(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(io(&path)(error)),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_end_and_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console;
        assert!(console.read(dir.path()).unwrap().is_empty());
        for n in 0..100_u8 {
            console.append(dir.path(), &vec![n; PIECE]).unwrap();
        }
        let all = console.read(dir.path()).unwrap();
        assert!(all.len() >= usize::try_from(LONGEST).unwrap() && all.len() < 2 << 20, "{}", all.len());
        assert_eq!(all.last(), Some(&99));
        assert!(all.is_sorted(), "in order");
    }
}
