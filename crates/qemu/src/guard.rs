//! The guard of one guest: its parent process, which stops it while the host's lease does not name it or has ended.
//!
//! Guests outlive the agent, so the agent cannot be the one that keeps them to the lease. The guard can: QEMU is its
//! child and dies with it (`PR_SET_PDEATHSIG`), so a guest either has a guard or does not run. It reads one file, knows
//! one clock and sends two signals; it never opens a socket and never writes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base::{Clock, ServerId, Timestamp};
use contract::drivers::GuestLease;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How often the lease is looked at: a guest runs on for at most so long after its end.
const LOOK: Duration = Duration::from_millis(250);

/// Time since the machine was started, its sleep included: nobody sets it. The clock of leases.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Timestamp {
        let since = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or(Duration::MAX);
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// The lease as guards read it.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    boot_id: String,
    until: Timestamp,
    servers: BTreeSet<ServerId>,
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Where the lease of the guests below `dir` is.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("lease.json")
}

/// Replaces the lease of the guests below `dir`.
pub(crate) fn write(dir: &Path, lease: &GuestLease) -> io::Result<()> {
    let content = Content { boot_id: boot_id(), until: lease.until, servers: lease.servers.clone() };
    let (path, aside) = (path(dir), dir.join("lease.json.new"));
    let mut file =
        std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    io::Write::write_all(&mut file, &serde_json::to_vec(&content)?)?;
    std::fs::rename(aside, path)
}

/// Whether a lease lets a guest run. One that cannot be read does not.
fn may_run(bytes: &[u8], server: ServerId, boot_id: &str, now: Timestamp) -> bool {
    serde_json::from_slice::<Content>(bytes)
        .is_ok_and(|c| c.boot_id == boot_id && now < c.until && c.servers.contains(&server))
}

/// Runs `command` as a child and keeps it to the lease until it ends; answers its exit code. To be called from a
/// process with one thread: the child dies with the *thread* that made it.
///
/// # Errors
/// Where the command cannot be started or watched.
#[expect(clippy::disallowed_methods, reason = "a process of its own, with one thread and no runtime")]
pub fn run(lease: &Path, server: ServerId, command: &[OsString]) -> io::Result<i32> {
    let (program, arguments) = command.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let mut child = Command::new(program).args(arguments).spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let boot = boot_id();
    let mut stopped = false;
    loop {
        // Until it is waited for, the number is the child's and nobody else's.
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().unwrap_or(1));
        }
        let may = std::fs::read(lease).is_ok_and(|bytes| may_run(&bytes, server, &boot, BootClock.now()));
        if may == stopped {
            kill(pid, if may { Signal::SIGCONT } else { Signal::SIGSTOP })?;
            stopped = !may;
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use base::Entropy;

    use super::*;

    #[test]
    fn only_a_good_lease_lets_a_guest_run() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, other) = (ServerId::random(&Entropy::seeded(1)), ServerId::random(&Entropy::seeded(2)));
        let until = Timestamp(1_000_000);
        write(dir.path(), &GuestLease { until, servers: BTreeSet::from([mine]) }).unwrap();
        let bytes = std::fs::read(path(dir.path())).unwrap();
        let boot = boot_id();
        assert!(may_run(&bytes, mine, &boot, Timestamp(999_999)));
        assert!(!may_run(&bytes, mine, &boot, until), "it has ended");
        assert!(!may_run(&bytes, other, &boot, Timestamp(0)), "it names others");
        assert!(!may_run(&bytes, mine, "another boot", Timestamp(0)));
        assert!(!may_run(b"{torn", mine, &boot, Timestamp(0)));
        assert!(!may_run(b"", mine, &boot, Timestamp(0)));
    }

    fn state(pid: i32) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").map_or(String::new(), |(_, rest)| rest.chars().take(1).collect())
    }

    fn until(what: &str, check: impl Fn() -> bool) {
        let begin = std::time::Instant::now();
        while !check() {
            assert!(begin.elapsed() < Duration::from_secs(20), "never: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_guest_stands_still_while_its_lease_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let server = ServerId::random(&Entropy::seeded(1));
        let give = |seconds: i64| {
            let until = BootClock.now().plus_secs(seconds);
            write(dir.path(), &GuestLease { until, servers: BTreeSet::from([server]) }).unwrap();
        };
        give(100);
        let (lease, file) = (path(dir.path()), dir.path().join("pid"));
        let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 100", file.display());
        let guard = std::thread::spawn(move || {
            run(&lease, server, &["sh".into(), "-c".into(), script.into()]).unwrap()
        });
        until("it runs", || file.exists());
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        give(-1);
        until("it stands still", || state(pid) == "T");
        give(100);
        until("it goes on", || state(pid) == "S");
        std::fs::remove_file(path(dir.path())).unwrap();
        until("without a lease it stands still", || state(pid) == "T");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        assert_eq!(guard.join().unwrap(), 1, "the guard ends with its guest");
    }
}
