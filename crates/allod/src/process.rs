//! Processes that outlive the one that started them: a pid file names the pid *and* its start time, so that a recycled
//! pid is never trusted and never signalled.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::files;

/// A process that was seen alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    started: u64,
}

/// Start time of a live process in clock ticks since boot (field 22 of `/proc/PID/stat`); `None` for zombies too.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    if *fields.first()? == "Z" { None } else { fields.get(19)?.parse().ok() }
}

impl Process {
    /// The process `pid`, if it lives.
    pub fn find(pid: i32) -> Option<Self> {
        started(pid).map(|started| Process { pid, started })
    }

    /// The process named by a pid file, if it still is that process.
    pub fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let mut parts = text.split_whitespace();
        let process = Process { pid: parts.next()?.parse().ok()?, started: parts.next()?.parse().ok()? };
        process.alive().then_some(process)
    }

    /// Writes the pid file.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_secret(path, format!("{} {}\n", self.pid, self.started).as_bytes())
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Sends a signal; a process that is gone is success.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    /// Waits until it ended; `false` if it did not in time.
    pub async fn ended(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.alive() {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Asks it to end, then makes it.
    pub async fn stop(&self, patience: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if !self.ended(patience).await {
            self.signal(Signal::SIGKILL)?;
            self.ended(Duration::from_secs(5)).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_pid_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let me = Process::find(i32::try_from(std::process::id()).unwrap()).unwrap();
        me.write(&path).unwrap();
        assert_eq!(Process::read(&path), Some(me));
        Process { started: me.started + 1, ..me }.write(&path).unwrap();
        assert_eq!(Process::read(&path), None);
    }
}
