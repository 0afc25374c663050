//! What `allod` can be told to do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{self, Config, State};
use crate::{
    agent_role, apidocs, backup, identity_import, image, join, member, moving, registry, seal, server,
    sim_agents, simulate, status, telemetry, up, upgrade,
};

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
    /// Run the server alone: one of several replicas, or under another supervisor.
    Server {
        #[command(flatten)]
        state: StateArg,
        /// Configuration file (TOML); without it, the configuration kept in the state directory.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Only these services: `identity`, for services of another OpenStack.
        #[arg(long, value_name = "NAMES", value_parser = ["identity"])]
        services: Option<String>,
    },
    /// Run simulated hosts that reach the server as real ones do.
    #[command(hide = true)]
    SimAgents {
        #[command(flatten)]
        state: StateArg,
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run the agent of this host alone; with --join, as a member of a cloud that runs elsewhere.
    Agent {
        #[command(flatten)]
        state: StateArg,
        #[command(flatten)]
        join: JoinArgs,
    },
    /// Hosts of the cloud.
    Host {
        #[command(subcommand)]
        command: HostCommand,
    },
    /// Stand over one guest.
    #[command(hide = true)]
    GuestGuard {
        /// File of the host's lease.
        #[arg(long)]
        lease: PathBuf,
        /// The guest.
        #[arg(long)]
        server: base::ServerId,
        /// What to run.
        #[arg(last = true)]
        command: Vec<std::ffi::OsString>,
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
    /// Write the whole control plane into a file: database, keys, CA, passwords, and images if asked for.
    Backup {
        #[command(flatten)]
        state: StateArg,
        /// File to make (mode 0600).
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        /// With the images' bytes.
        #[arg(long)]
        images: bool,
        #[command(flatten)]
        seal: seal::Seal,
    },
    /// Make a cloud from a backup, in an empty state directory and an empty database.
    Restore {
        #[command(flatten)]
        state: StateArg,
        /// The backup.
        #[arg(long, value_name = "FILE")]
        input: PathBuf,
        /// Configuration file (TOML); without it, the one in the backup.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        key: seal::Key,
    },
    /// Work on the database.
    Database {
        #[command(subcommand)]
        command: DatabaseCommand,
    },
    /// Tell what starting this version would do to the database of a cloud.
    Upgrade {
        #[command(flatten)]
        state: StateArg,
        /// Only tell; servers upgrade the schema themselves when they start.
        #[arg(long, required = true)]
        check: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Work on the identity service.
    Identity {
        #[command(subcommand)]
        command: IdentityCommand,
    },
    /// Build guest images.
    Image {
        #[command(subcommand)]
        command: image::Command,
    },
    /// Simulate a fleet of hosts under faults, in virtual time, and check that everything holds.
    Simulate(simulate::Simulate),
    /// Judge a cloud, this or any other, by the rules of Sovereign Cloud Stack.
    Certify(Box<certify::cli::Certify>),
    /// Take signed reports of conformance and show how clouds stand (a compliance monitor of Sovereign Cloud Stack).
    Registry {
        #[command(subcommand)]
        command: registry::Command,
    },
    /// Watch a cloud, this or any other, as its tenants feel it.
    Probe(Box<probe::cli::Probe>),
    /// Write what Tempest must know of a cloud to run the tests that scs-0128 asks for.
    TempestConfig(Box<certify::tempest::TempestConfig>),
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

#[derive(clap::Args)]
struct JoinArgs {
    /// Join with this token (of `allod host token`); once is enough.
    #[arg(long, value_name = "TOKEN", env = "ALLOD_JOIN_TOKEN", hide_env_values = true)]
    join: Option<String>,
    /// The server, if not the one in the token.
    #[arg(long, value_name = "URL", requires = "join")]
    server: Option<String>,
    /// Name of this host, if not the machine's.
    #[arg(long, requires = "join")]
    name: Option<String>,
    /// Device through which guests reach those of other hosts.
    #[arg(long, value_name = "DEVICE", requires = "join")]
    underlay: Option<String>,
    /// The external network, if this host reaches it: its prefix and this host's address in it.
    #[arg(long, value_name = "CIDR,ADDRESS", requires = "join", value_parser = config::External::parse)]
    external: Option<config::External>,
}

#[derive(Subcommand)]
enum HostCommand {
    /// Print a token with which one more host can join: `allod agent --join TOKEN` there.
    Token {
        #[command(flatten)]
        state: StateArg,
        /// How long it is good (90s, 15m, 2h, 1d).
        #[arg(long, default_value = "1h")]
        ttl: String,
    },
}

#[derive(Subcommand)]
enum IdentityCommand {
    /// Take over users, projects, roles and assignments of an existing Keystone; ids and password hashes are kept.
    Import {
        #[command(flatten)]
        state: StateArg,
        #[command(flatten)]
        import: Box<identity_import::Import>,
    },
}

#[derive(Subcommand)]
enum DatabaseCommand {
    /// Copy the database of a cloud that is down into an empty one of the other kind, and compare.
    Copy {
        #[command(flatten)]
        state: StateArg,
        /// Source [default: the cloud's].
        #[arg(long, value_name = "URL")]
        from: Option<String>,
        /// Target: `postgresql://USER@HOST/NAME?passwordfile=FILE` or `sqlite:///FILE`.
        #[arg(long, value_name = "URL")]
        to: String,
    },
}

/// The whole binary.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::GuestGuard { lease, server, command } = &cli.command {
        // Before there is a second thread: the guest dies with the thread that made it.
        return match qemu::guard::run(lease, *server, command) {
            Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            Err(error) => {
                eprintln!("allod: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    if let Command::Simulate(args) = &cli.command {
        // On runtimes of its own; what the services log would drown what it says.
        return simulate::run(args).unwrap_or_else(|error| {
            eprintln!("allod: {error:#}");
            ExitCode::FAILURE
        });
    }
    let cli = match cli.command {
        Command::Certify(args) => return crate::tools::finish(args.main()),
        Command::TempestConfig(args) => return crate::tools::finish(args.main()),
        Command::Probe(args) => return crate::tools::finish(args.main()),
        command => Cli { command },
    };
    let workers = match cli.command {
        // It answers in microseconds, and passwords are hashed on threads of their own: on two processors one thread answers
        // more than two that wake each other, at less CPU. The other half is for the hashes and the database.
        Command::Server { services: Some(_), .. } => {
            std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2))
        }
        Command::Server { .. } | Command::Registry { .. } => 2,
        // The supervisor and the one-shot commands.
        _ => 1,
    };
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
pub async fn stopped(stop: &mut tokio::sync::watch::Receiver<bool>) {
    // The guard that `wait_for` answers must not live across an await of the caller.
    let _ = stop.wait_for(|stop| *stop).await.map(drop);
}

/// Logs, metrics and traces of a role; the configuration of a cloud says where traces go.
fn telemetry_of(command: &Command) -> Result<(telemetry::Metrics, Option<telemetry::Exporting>)> {
    let (role, state) = match command {
        Command::Server { state, config, .. } => {
            let state = opened(state, config.as_deref())?;
            return telemetry::start("server", &state.config()?.telemetry);
        }
        // Before a host has joined there is no configuration.
        Command::Agent { state, .. } if State::open(&state.state).is_ok() => ("agent", state),
        Command::Agent { .. } => return telemetry::start("agent", &telemetry::Telemetry::default()),
        _ => return telemetry::start("allod", &telemetry::Telemetry::default()),
    };
    telemetry::start(role, &State::open(&state.state)?.config()?.telemetry)
}

/// The state directory, with the configuration of a file kept in it.
fn opened(state: &StateArg, config: Option<&std::path::Path>) -> Result<State> {
    let Some(file) = config else { return State::open(&state.state) };
    let state = State::create(&state.state)?;
    let mut config = Config::read(file)?;
    // A port chosen by the system is kept: it stands in the catalog.
    if let (0, Ok(held)) = (config.listen.port(), state.config())
        && held.listen.ip() == config.listen.ip()
    {
        config.listen = held.listen;
    }
    state.keep(&config)?;
    Ok(state)
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
        Command::Server { state, services: Some(_), .. } => {
            server::identity_alone(&State::open(&state.state)?).await
        }
        Command::Server { state, .. } => server::run(&State::open(&state.state)?, metrics).await,
        Command::Agent { state, join } => agent(&state.state, join, metrics).await,
        Command::Status { state, json: true, .. } => status::json(&State::open(&state.state)?).await,
        Command::Status { state, watch, .. } => status::show(&State::open(&state.state)?, watch).await,
        Command::Host { command: HostCommand::Token { state, ttl } } => {
            join::give(&State::open(&state.state)?, &ttl).await
        }
        Command::GuestGuard { .. } => Ok(()),
        Command::SimAgents { state, config } => sim_agents::run(&opened(&state, config.as_deref())?).await,
        Command::Backup { state, output, images, seal } => {
            backup::backup(&State::open(&state.state)?, &output, images, &seal).await
        }
        Command::Restore { state, input, config, key } => {
            let config = config.map(|f| Config::read(&f)).transpose()?;
            backup::restore(&state.state, &input, config, &key).await
        }
        Command::Database { command: DatabaseCommand::Copy { state, from, to } } => {
            moving::copy(&State::open(&state.state)?, from, &to).await
        }
        Command::Upgrade { state, json, .. } => upgrade::check(&State::open(&state.state)?, json).await,
        Command::Identity { command: IdentityCommand::Import { state, import } } => {
            identity_import::run(&state.state, *import).await
        }
        Command::Image { command } => image::run(command).await,
        Command::Registry { command } => registry::run(command).await,
        // Done before there was a runtime.
        Command::Simulate(_) | Command::Certify(_) | Command::TempestConfig(_) | Command::Probe(_) => Ok(()),
        Command::ApiDocs { output } => apidocs::write(&output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "allod", &mut std::io::stdout());
            Ok(())
        }
    }
}

async fn agent(dir: &std::path::Path, args: JoinArgs, metrics: telemetry::Metrics) -> Result<()> {
    let Some(token) = args.join else { return agent_role::run(&State::open(dir)?, metrics).await };
    let state = State::create(dir)?;
    match member::Member::open(&state)? {
        Some(member) => tracing::info!(name = member.name, "joined before; the token is not needed"),
        None if state.path("config.json").exists() => {
            anyhow::bail!("{} is the state of a cloud of its own", dir.display())
        }
        None => {
            let JoinArgs { server, name, underlay, external, .. } = args;
            let request = member::Request { token, server, name, underlay, external };
            let member = member::Member::join(&state, request).await?;
            println!("joined {} as {} ({})", member.server, member.name, member.host);
        }
    }
    agent_role::run(&state, metrics).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what clap looks at in debug builds only: names used twice, options that exclude themselves.
    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
