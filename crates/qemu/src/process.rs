//! Processes that outlive us: known by number, start time and boot, so that a number that was given to another process
//! is never taken for ours, and never signalled.
#![allow(unsafe_code, reason = "pidfd_open and pidfd_send_signal have no safe wrapper here")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use base::{Error, Result};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that was seen alive. The three together never name another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Process number.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub started: u64,
    /// The first 64 bits of `/proc/sys/kernel/random/boot_id`.
    pub boot: u64,
}

fn boot() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).ok()
}

/// Start time; `None` where nothing runs under that number. Zombies do not run, but for those whose first thread alone has
/// ended: the others still hold files and their locks. The command's name may hold anything, so fields are counted after
/// its last `)`.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    let runs = match state {
        "X" => false,
        "Z" => threads > 1,
        _ => true,
    };
    fields.nth(1)?.parse().ok().filter(|_| runs)
}

impl Process {
    /// The process that has this number now.
    pub fn find(pid: i32) -> Option<Self> {
        Some(Process { pid, started: started(pid)?, boot: boot()? })
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        started(self.pid) == Some(self.started) && boot() == Some(self.boot)
    }

    /// Whether it was stopped by a signal.
    pub fn stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        self.alive() && stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    /// A handle that stays with this process even if its number is given away; `None` where it ended.
    fn open(&self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: a plain system call; the answer is checked before it is owned.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(self.pid), 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
        }
        let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: just opened, and owned by nobody else.
        let handle = unsafe { OwnedFd::from_raw_fd(fd) };
        // Opened first, checked after: what the handle names cannot change any more.
        Ok(self.alive().then_some(handle))
    }

    /// Waits until it ends; `false` where it runs on after `within`.
    pub async fn ended(&self, within: Duration) -> bool {
        let wait = async {
            let Some(handle) = self.open()? else { return Ok(()) };
            // SAFETY: an owned file descriptor stays open and the same until the `AsyncFd` drops it.
            let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?;
            handle.readable().await.map(drop)
        };
        match tokio::time::timeout(within, wait).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(pid = self.pid, %error, "cannot watch a process");
                !self.alive()
            }
            Err(_) => false,
        }
    }

    /// Ends it at once and waits until it is gone.
    pub async fn kill(&self) -> Result<()> {
        self.signal_kill().map_err(Error::internal)?;
        if !self.ended(Duration::from_secs(10)).await {
            return Err(Error::internal(format!("process {} does not end", self.pid)));
        }
        Ok(())
    }

    fn signal_kill(&self) -> io::Result<()> {
        let Some(handle) = self.open()? else { return Ok(()) };
        // SAFETY: a plain system call on an open handle; no signal information is passed.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                libc::c_long::from(handle.as_raw_fd()),
                libc::c_long::from(libc::SIGKILL),
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match answer {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> (std::process::Child, Process) {
        let child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::find(i32::try_from(child.id()).unwrap()).unwrap();
        (child, process)
    }

    #[tokio::test]
    async fn a_process_whose_first_thread_ended_is_not_gone() {
        let program = "import ctypes, sys, threading, time\n\
                       threading.Thread(target=time.sleep, args=(100,)).start()\n\
                       ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)";
        let mut child = std::process::Command::new("python3")
            .args(["-c", program, &libc::SYS_exit.to_string()])
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::find(pid).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ") {
            assert!(std::time::Instant::now() < deadline, "its first thread does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(process.alive());
        assert!(!process.ended(Duration::from_millis(10)).await);
        process.kill().await.unwrap();
        assert!(!process.alive());
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_process_ends_and_is_known_to_have() {
        let (mut child, process) = sleeper();
        assert!(process.alive());
        assert!(!process.ended(Duration::from_millis(10)).await);
        process.kill().await.unwrap();
        assert!(!process.alive(), "ended, though nobody waited for it yet");
        child.wait().unwrap();
        process.kill().await.unwrap();
    }

    #[tokio::test]
    async fn a_number_given_to_another_process_is_left_alone() {
        let (mut child, now) = sleeper();
        for other in [Process { started: now.started - 1, ..now }, Process { boot: now.boot ^ 1, ..now }] {
            assert!(!other.alive());
            other.kill().await.unwrap();
            assert!(other.ended(Duration::from_millis(1)).await);
        }
        assert!(now.alive(), "nobody hit it");
        now.kill().await.unwrap();
        child.wait().unwrap();
    }
}
