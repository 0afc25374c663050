//! `allod up`, `down` and `restart`: one small supervisor process, with `allod server` and `allod agent` as its
//! children. Guests and the OVN daemons belong to nobody: they go on while any of the three is away.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, State};
use crate::pki::Pki;
use crate::process::Process;
use crate::{bootstrap, files};

/// How long children may take to stop.
const PATIENCE: Duration = Duration::from_secs(15);
/// API roots that must answer before the cloud is ready.
pub const SERVICES: [&str; 6] = ["identity", "image", "placement", "compute", "network", "volume"];

/// What `allod up` is asked to do.
pub struct Options {
    /// Effective configuration.
    pub config: Config,
    /// Go on in the background once the cloud is ready.
    pub detach: bool,
}

/// Starts the cloud and supervises it until a signal.
pub async fn up(state: &State, options: Options) -> Result<()> {
    let Ok(lock) = lock(state)? else {
        // Asking twice is harmless, asking for something else is not.
        if options.detach && state.config().is_ok_and(|held| held == merged(state, options.config)) {
            return await_ready(state, None).await;
        }
        bail!("a cloud is already up in {} (see `allod status --state {0}`)", state.dir().display());
    };
    if options.detach {
        state.keep(&merged(state, options.config))?;
        drop(lock);
        return detach(state).await;
    }
    let config = merged(state, options.config);
    state.keep(&config)?;
    me()?.write(&state.path("run/up.pid"))?;
    let _ = fs::remove_file(state.path("ready"));
    // Before the roles start: the agent must not make a CA where there is one to share.
    crate::shared::join(state, &config)?;
    bootstrap::secrets(state, &config)?;
    let mut roles = vec!["server"];
    if config.sim_hosts == 0 {
        roles.push("agent");
    }
    for role in &roles {
        // Children of a supervisor that was killed: they would hold the sockets and files of the new ones.
        if let Some(old) = Process::read(&state.path(&format!("run/{role}.pid"))) {
            old.stop(PATIENCE).await?;
        }
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let children: Vec<_> =
        roles.iter().map(|role| tokio::spawn(supervise(state.clone(), role, stopped.clone()))).collect();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ready = async {
        wait_ready(state, Duration::from_secs(120)).await?;
        announce(state)
    };
    tokio::pin!(ready);
    let mut outcome = Ok(());
    let mut announced = false;
    loop {
        tokio::select! {
            result = &mut ready, if !announced => {
                announced = true;
                if let Err(error) = result {
                    outcome = Err(error);
                    break;
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    stop.send_replace(true);
    for child in children {
        let _ = child.await;
    }
    let _ = fs::remove_file(state.path("ready"));
    let _ = fs::remove_file(state.path("run/up.pid"));
    outcome
}

/// The lock of whoever supervises this cloud; the inner error is that somebody does.
fn lock(state: &State) -> Result<std::result::Result<Flock<File>, File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(state.path("run/lock"))?;
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, _)| file))
}

/// A port chosen by the system at the first start is kept, because it stands in the catalog and in `clouds.yaml`.
fn merged(state: &State, mut config: Config) -> Config {
    if config.listen.port() == 0
        && let Ok(held) = state.config()
        && held.listen.ip() == config.listen.ip()
    {
        config.listen = held.listen;
    }
    config
}

fn me() -> Result<Process> {
    Process::find(i32::try_from(std::process::id())?).context("cannot read /proc/self/stat")
}

fn announce(state: &State) -> Result<()> {
    let url = state.config()?.url();
    files::write_secret(&state.path("ready"), format!("{url}\n").as_bytes())?;
    let mut out = std::io::stdout();
    writeln!(out, "ready {url}")?;
    out.flush()?;
    Ok(())
}

/// Waits until every API root answers.
pub async fn wait_ready(state: &State, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    let mut last = String::from("the server did not start");
    loop {
        match probe(state).await {
            Ok(()) => return Ok(()),
            Err(error) => last = format!("{error:#}").chars().take(400).collect::<String>().if_empty(last),
        }
        if Instant::now() > deadline {
            bail!(
                "not ready after {} s: {last} (log: {})",
                within.as_secs(),
                state.path("log/server.log").display()
            );
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

trait IfEmpty {
    fn if_empty(self, other: String) -> String;
}

impl IfEmpty for String {
    fn if_empty(self, other: String) -> String {
        if self.is_empty() { other } else { self }
    }
}

/// Asks every API root once.
async fn probe(state: &State) -> Result<()> {
    let config = state.config()?;
    if config.listen.port() == 0 || !state.path("run/listening").exists() {
        bail!("not listening yet");
    }
    let client = Pki::open(&state.path("pki"), base::Clock::now(&base::SystemClock))?.plain_client()?;
    for service in SERVICES {
        let url = format!("https://{}/{service}/", config.listen);
        let response = client.get(&url).timeout(Duration::from_secs(5)).send().await?;
        // Version documents of several versions are a 300.
        if !(response.status().is_success() || response.status().as_u16() == 300) {
            bail!("{url} answers {}", response.status());
        }
    }
    Ok(())
}

/// Runs `allod ROLE` for ever, with growing pauses when it keeps ending at once.
async fn supervise(state: State, role: &'static str, mut stop: tokio::sync::watch::Receiver<bool>) {
    let mut pause = Duration::from_millis(100);
    while !*stop.borrow() {
        let began = Instant::now();
        match run_child(&state, role, &mut stop).await {
            Ok(status) => tracing::info!(role, status, "child ended"),
            Err(error) => tracing::error!(role, error = format!("{error:#}"), "child cannot run"),
        }
        if began.elapsed() > Duration::from_secs(30) {
            pause = Duration::from_millis(100);
        }
        let _ = tokio::time::timeout(pause, crate::command::stopped(&mut stop)).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

async fn run_child(
    state: &State,
    role: &str,
    stop: &mut tokio::sync::watch::Receiver<bool>,
) -> Result<String> {
    let log = log_file(&state.path(&format!("log/{role}.log")))?;
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .arg(role)
        .arg("--state")
        .arg(state.dir())
        // Two arenas instead of eight per core: the heap of a service with many short requests stays small.
        .env("MALLOC_ARENA_MAX", "2")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start allod {role}"))?;
    let process = child.id().and_then(|pid| Process::find(i32::try_from(pid).ok()?));
    let pid_file = state.path(&format!("run/{role}.pid"));
    if let Some(process) = process {
        process.write(&pid_file)?;
    }
    let status = tokio::select! {
        status = child.wait() => status?,
        () = crate::command::stopped(stop) => {
            if let Some(process) = process {
                process.signal(nix::sys::signal::Signal::SIGTERM)?;
            }
            match tokio::time::timeout(PATIENCE, child.wait()).await {
                Ok(status) => status?,
                Err(_) => {
                    child.kill().await?;
                    child.wait().await?
                }
            }
        }
    };
    let _ = fs::remove_file(pid_file);
    Ok(status.to_string())
}

/// Opens a log for appending; one that has grown beyond 64 MiB is moved to `.old` first.
fn log_file(path: &Path) -> Result<File> {
    if fs::metadata(path).is_ok_and(|m| m.len() > 64 * 1024 * 1024) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Starts `allod up` in a session of its own and waits for its `ready`.
async fn detach(state: &State) -> Result<()> {
    let _ = fs::remove_file(state.path("ready"));
    let log = log_file(&state.path("log/up.log"))?;
    let mut command = Command::new("setsid");
    command.arg(std::env::current_exe()?).arg("up").arg("--state").arg(state.dir()).arg("--keep-config");
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start setsid")?;
    await_ready(state, Some(child)).await
}

/// Waits until the cloud is ready; `child` is the supervisor if this process started it.
async fn await_ready(state: &State, mut child: Option<std::process::Child>) -> Result<()> {
    let bar = spinner("starting the cloud");
    let deadline = Instant::now() + Duration::from_secs(150);
    while !state.path("ready").exists() {
        if let Some(status) = child.as_mut().map_or(Ok(None), std::process::Child::try_wait)? {
            bar.finish_and_clear();
            let log = fs::read_to_string(state.path("log/up.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            bail!(
                "the cloud ended at start ({status}):\n{}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        if Instant::now() > deadline {
            bail!("the cloud is not ready after 150 s; see {}", state.path("log").display());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bar.finish_and_clear();
    println!("ready {}", state.config()?.url());
    Ok(())
}

/// A spinner on a terminal, nothing elsewhere.
pub fn spinner(text: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(text.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Stops supervisor, server and agent; engines and guests go on.
pub async fn stop_processes(state: &State) -> Result<()> {
    for role in ["up", "agent", "server"] {
        let pid_file = state.path(&format!("run/{role}.pid"));
        if let Some(process) = Process::read(&pid_file) {
            process.stop(PATIENCE * 2).await?;
        }
        let _ = fs::remove_file(pid_file);
    }
    let _ = fs::remove_file(state.path("run/listening"));
    let _ = fs::remove_file(state.path("ready"));
    Ok(())
}
