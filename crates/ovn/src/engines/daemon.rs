//! One daemon: started detached, found again by its pidfile, watched by a process handle, started again when it ends.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout};

use crate::sys;

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Short name; its pidfile, log and control socket carry it.
    pub name: &'static str,
    /// The program.
    pub program: &'static str,
    /// Its own arguments.
    pub args: Vec<OsString>,
    /// Where its sockets and its pidfile are.
    pub run: PathBuf,
    /// Where its log is.
    pub logs: PathBuf,
    /// The network namespace it runs in.
    pub netns: Option<String>,
    /// Whether the program takes `--unixctl`.
    pub unixctl: bool,
}

/// A log larger than this is moved aside when its daemon is started.
const LOG_LIMIT: u64 = 8 << 20;
/// How long a daemon may take until it says that it is ready.
const START_LIMIT: Duration = Duration::from_secs(15);

impl Spec {
    fn pidfile(&self) -> PathBuf {
        self.run.join(format!("{}.pid", self.name))
    }

    /// The argument by which the process is known to be ours and no other instance's.
    fn mark(&self) -> String {
        format!("--pidfile={}", self.pidfile().display())
    }

    /// The pid of the daemon, if it runs.
    pub fn running(&self) -> Option<u32> {
        running(&self.pidfile())
    }

    /// Starts it and waits until it says that it is ready. One that runs already is kept (`true`: it was there).
    ///
    /// # Errors
    /// If it does not start, with what it said.
    pub async fn start(&self) -> io::Result<(u32, bool)> {
        if let Some(pid) = self.running() {
            return Ok((pid, true));
        }
        let log = self.logs.join(format!("{}.log", self.name));
        if std::fs::metadata(&log).is_ok_and(|m| m.len() > LOG_LIMIT) {
            std::fs::rename(&log, log.with_extension("log.1"))?;
        }
        let mut command = tokio::process::Command::new(sys::find(self.program));
        // The parent returns when the daemon is ready; the daemon has a session of its own and outlives us.
        command.args(["--detach", "--no-chdir", "-vconsole:off", "-vsyslog:off", "-vfile:info"]);
        command.arg(self.mark()).arg(flag("--log-file", &log));
        if self.unixctl {
            command.arg(flag("--unixctl", &self.run.join(format!("{}.ctl", self.name))));
        }
        command.args(&self.args);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("OVS_RUNDIR", &self.run).env("OVN_RUNDIR", &self.run);
        command.env("OVS_LOGDIR", &self.logs).env("OVN_LOGDIR", &self.logs);
        // One arena: these daemons have few threads that allocate, and each arena keeps its own free memory.
        command.env("MALLOC_ARENA_MAX", "1").env("MALLOC_TRIM_THRESHOLD_", "131072");
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::piped());
        sys::enter_netns(&mut command, self.netns.as_deref())?;
        let child = command.spawn().map_err(|e| sys::named(&e, self.program))?;
        let failed = |why: &str| io::Error::other(format!("{}: {why} (see {})", self.program, log.display()));
        let output = match timeout(START_LIMIT, child.wait_with_output()).await {
            Ok(output) => output?,
            Err(_) => {
                self.stop().await?;
                return Err(failed("not ready in time"));
            }
        };
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim()));
        }
        self.running().map(|pid| (pid, false)).ok_or_else(|| failed("ended at once"))
    }

    /// Ends it if it runs: asks, and after two seconds does not ask.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn stop(&self) -> io::Result<()> {
        stop(&self.pidfile()).await
    }
}

/// The pid in `pidfile`, if that process runs and was started with it.
pub fn running(pidfile: &Path) -> Option<u32> {
    let pid = std::fs::read_to_string(pidfile).ok()?.trim().parse().ok()?;
    sys::runs_with(pid, &format!("--pidfile={}", pidfile.display())).then_some(pid)
}

/// Ends the process of `pidfile` if it runs.
///
/// # Errors
/// If it cannot be signalled.
pub async fn stop(pidfile: &Path) -> io::Result<()> {
    let Some(pid) = running(pidfile) else { return Ok(()) };
    let Ok(handle) = sys::pidfd(pid) else { return Ok(()) };
    // The handle is open: from here on the number cannot be another process.
    if running(pidfile) != Some(pid) {
        return Ok(());
    }
    for (signal, patience) in [(Signal::SIGTERM, 2), (Signal::SIGKILL, 5)] {
        sys::signal(&handle, signal)?;
        if timeout(Duration::from_secs(patience), sys::ended(pid)).await.is_ok() {
            break;
        }
    }
    let _ = std::fs::remove_file(pidfile);
    Ok(())
}

fn flag(name: &str, path: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push("=");
    flag.push(path);
    flag
}

/// How long to wait before each next start of a daemon that keeps ending.
#[derive(Debug)]
pub struct Backoff {
    wait: Duration,
    started: Instant,
}

impl Backoff {
    /// The first restart is at once.
    pub fn new() -> Self {
        Backoff { wait: Duration::ZERO, started: Instant::now() }
    }

    /// Notes a start.
    pub fn started(&mut self) {
        self.started = Instant::now();
    }

    /// How long to wait now.
    pub fn next(&mut self) -> Duration {
        if self.started.elapsed() > Duration::from_secs(10) {
            self.wait = Duration::ZERO;
        }
        let wait = self.wait;
        self.wait = (wait * 2).clamp(Duration::from_millis(100), Duration::from_secs(5));
        wait
    }
}
