//! QEMU's process: found again by pid and start time, so that a recycled pid is never trusted.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use base::{Error, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process that was seen alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub pid: i32,
    pub started: u64,
}

/// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`); `None` for zombies too.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if fields.next()? == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

impl Process {
    pub fn find(pid: i32) -> Option<Self> {
        started(pid).map(|started| Process { pid, started })
    }

    pub fn alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    pub async fn ended(&self, within: Duration) -> bool {
        let wait = async {
            while self.alive() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(within, wait).await.is_ok()
    }

    pub async fn kill(&self) -> Result<()> {
        if self.alive() {
            match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(Error::internal(error)),
            }
            if !self.ended(Duration::from_secs(10)).await {
                return Err(Error::internal(format!("process {} does not end", self.pid)));
            }
        }
        Ok(())
    }
}

/// Gives `/dev/net/tun` the mode udev gives it everywhere: opening it needs no right, attaching to a tap needs to be its
/// owner. Without udev (containers, small VMs) it is root's alone, and unprivileged guests could not use their taps.
pub(crate) fn open_tun() {
    let path = Path::new("/dev/net/tun");
    if nix::unistd::geteuid().is_root() && path.exists() {
        let _ = std::fs::set_permissions(path, PermissionsExt::from_mode(0o666));
    }
}
