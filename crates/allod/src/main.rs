//! `allod`: the binary. Composition and configuration only; what it composes is in the other crates.
//!
//! `allod up` is a small supervisor with `allod server` (all APIs) and `allod agent` (this host) as its children. The
//! state directory holds everything: configuration, database, keys, images, volumes, guests, logs.
//!
//! Invariant: each role can be killed at any time and started again; nothing acknowledged is lost, guests go on.
//!
//! Start reading at [`cloud::assemble`] (how services are joined), then [`up::up`] (how the roles are supervised).

mod agent_role;
mod apidocs;
mod bootstrap;
mod config;
mod files;
mod image;
mod listener;
mod pki;
mod process;
mod server;
mod status;
mod telemetry;
mod up;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, State};

/// A whole cloud in one binary.
#[derive(Parser)]
#[command(name = "allod", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct StateArg {
    /// State directory.
    #[arg(long, value_name = "DIR", default_value = "./allod-state", env = "ALLOD_STATE")]
    state: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cloud on this machine: server, agent and the OVN daemons.
    Up {
        #[command(flatten)]
        state: StateArg,
        /// Address and port of the API (port 0: chosen by the system, then kept) [default: 127.0.0.1:8443].
        #[arg(long, value_name = "ADDR:PORT")]
        listen: Option<SocketAddr>,
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Return once the cloud is ready and leave it running.
        #[arg(long)]
        detach: bool,
        /// Simulate N hosts instead of using real drivers.
        #[arg(long, value_name = "N")]
        sim_hosts: Option<u32>,
        /// Start with the configuration kept in the state directory.
        #[arg(long, hide = true)]
        keep_config: bool,
    },
    /// Stop supervisor, server, agent and the OVN daemons; guests' processes are left.
    Down {
        #[command(flatten)]
        state: StateArg,
        /// Remove everything the cloud made: guests, taps, namespaces, bridges and the state directory itself.
        #[arg(long)]
        purge: bool,
    },
    /// Restart supervisor, server and agent; guests and their network go on.
    Restart {
        #[command(flatten)]
        state: StateArg,
    },
    /// Run the server alone.
    Server {
        #[command(flatten)]
        state: StateArg,
    },
    /// Run the agent of this host alone.
    Agent {
        #[command(flatten)]
        state: StateArg,
    },
    /// Show services, hosts, queues and what has not converged.
    Status {
        #[command(flatten)]
        state: StateArg,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Show it anew every SECONDS, with what has changed as curves, until interrupted.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", conflicts_with = "json",
              value_parser = clap::value_parser!(u16).range(1..))]
        watch: Option<u16>,
    },
    /// Build guest images.
    Image {
        #[command(subcommand)]
        command: image::Command,
    },
    /// Write the API compatibility tables of the book.
    #[command(hide = true)]
    ApiDocs {
        /// Directory of the pages.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Print a completion script.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    // The supervisor and the one-shot commands need one thread; only the server has work for more.
    let workers = if matches!(cli.command, Command::Server { .. }) { 2 } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| {
        let result = runtime.block_on(run(cli.command));
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("allod: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits until `stop` turns true.
async fn stopped(stop: &mut tokio::sync::watch::Receiver<bool>) {
    // The guard that `wait_for` answers must not live across an await of the caller.
    let _ = stop.wait_for(|stop| *stop).await.map(drop);
}

/// Logs, metrics and traces of a role; the configuration of a cloud says where traces go.
fn telemetry_of(command: &Command) -> Result<(telemetry::Metrics, Option<telemetry::Exporting>)> {
    let (role, state) = match command {
        Command::Server { state } => ("server", state),
        Command::Agent { state } => ("agent", state),
        _ => return telemetry::start("allod", &telemetry::Telemetry::default()),
    };
    telemetry::start(role, &State::open(&state.state)?.config()?.telemetry)
}

async fn run(command: Command) -> Result<()> {
    let (metrics, _exporting) = telemetry_of(&command)?;
    match command {
        Command::Up { state, listen, config, detach, sim_hosts, keep_config } => {
            let state = State::create(&state.state)?;
            let mut effective = match (&config, keep_config) {
                (Some(file), _) => Config::read(file)?,
                (None, true) => state.config()?,
                (None, false) => state.config().unwrap_or_default(),
            };
            if let Some(listen) = listen {
                effective.listen = listen;
            }
            if let Some(hosts) = sim_hosts {
                effective.sim_hosts = hosts;
            }
            effective.check()?;
            up::up(&state, up::Options { config: effective, detach }).await
        }
        Command::Down { state, purge } => {
            let state = State::open(&state.state)?;
            let bar = up::spinner("stopping");
            up::stop_processes(&state).await?;
            agent_role::stop_engines(&state, purge).await?;
            if purge {
                std::fs::remove_dir_all(state.dir())?;
            }
            bar.finish_and_clear();
            Ok(())
        }
        Command::Restart { state } => {
            let state = State::open(&state.state)?;
            up::stop_processes(&state).await?;
            let config = state.config()?;
            up::up(&state, up::Options { config, detach: true }).await
        }
        Command::Server { state } => server::run(&State::open(&state.state)?, metrics).await,
        Command::Agent { state } => agent_role::run(&State::open(&state.state)?, metrics).await,
        Command::Status { state, json: true, .. } => status::json(&State::open(&state.state)?).await,
        Command::Status { state, watch, .. } => status::show(&State::open(&state.state)?, watch).await,
        Command::Image { command } => image::run(command).await,
        Command::ApiDocs { output } => apidocs::write(&output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "allod", &mut std::io::stdout());
            Ok(())
        }
    }
}
