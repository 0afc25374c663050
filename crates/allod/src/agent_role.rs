//! `allod agent`: this machine as a host of the cloud, with its engines.

use std::sync::Arc;
use std::time::Duration;

use agent::images::CachedImages;
use anyhow::{Context, Result, bail};
use base::{Clock, SystemClock};
use contract::drivers::LiveDisks;
use ovn::engines::{Southbound, underlay};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bootstrap;
use crate::config::{Config, External, State};
use crate::member::{Identity, Member};
use crate::pki::Pki;
use crate::process::Process;
use crate::telemetry::Metrics;

/// User and group of guest processes: numbers of their own, with nothing of the host belonging to them. Only root can
/// give them away; others run guests as themselves.
const GUESTS: (u32, u32) = (64117, 64117);

/// How long a guest may take to shut down when asked.
const GRACE: Duration = Duration::from_secs(30);

fn guests_user() -> Option<(u32, u32)> {
    nix::unistd::geteuid().is_root().then_some(GUESTS)
}

/// The machine's name.
pub fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

/// What this host is: the one that `allod up` runs on, or one that joined.
struct Role {
    name: String,
    underlay: Option<String>,
    external: Option<External>,
    southbound: Southbound,
    leased: bool,
}

impl Role {
    async fn of(state: &State) -> Result<Self> {
        if let Some(member) = Member::open(state)? {
            return Ok(Role {
                name: member.name,
                underlay: member.underlay,
                external: member.external,
                southbound: Southbound::Remote { address: member.southbound, tls: crate::member::tls(state) },
                leased: true,
            });
        }
        let config = state.config()?;
        let southbound = match crate::join::southbound(state, &config).await? {
            Some(listen) => {
                let tls = Pki::open(&state.path("pki"), SystemClock.now())?.server_files();
                // The server makes its certificate when it first starts.
                while !(tls.certificate.exists() && tls.key.exists()) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Southbound::Served { listen, tls }
            }
            None => Southbound::Local,
        };
        Ok(Role {
            name: hostname(),
            underlay: Some(config.underlay).filter(|d| !d.is_empty()),
            external: Some(config.external),
            southbound,
            leased: config.hosts.local_lease,
        })
    }
}

async fn hypervisor(state: &State, name: &str, leased: bool) -> Result<qemu::Qemu> {
    let guard = if leased { Some(std::env::current_exe()?) } else { None };
    let (dir, hostname) = (state.path("guests"), name.to_owned());
    Ok(qemu::Qemu::new(qemu::Config { dir, hostname, user: guests_user(), grace: GRACE, guard }).await?)
}

async fn engines(state: &State, role: &Role) -> Result<ovn::engines::Config> {
    let encap_ip = match (&role.underlay, &role.southbound) {
        (Some(device), _) => underlay::address(state.dir(), None, device).await?,
        (None, Southbound::Remote { address, .. }) => {
            if ovn::engines::Datapath::probe().await == ovn::engines::Datapath::Netdev {
                bail!("without the openvswitch kernel module a joined host needs --underlay DEVICE");
            }
            // The address from which the server is reached.
            let socket = std::net::UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(address)?;
            socket.local_addr()?.ip()
        }
        (None, _) => [127, 0, 0, 1].into(),
    };
    Ok(ovn::engines::Config {
        state_dir: state.dir().to_owned(),
        instance: String::new(),
        hostname: role.name.clone(),
        encap_ip,
        underlay: role.underlay.clone(),
        southbound: role.southbound.clone(),
        external: role.external.as_ref().map(|external| ovn::engines::External {
            physical_network: "public".into(),
            cidr: external.cidr,
            gateway: external.gateway,
        }),
        netns: None,
        datapath: None,
    })
}

/// Runs until SIGTERM or SIGINT. Guests and engines go on.
pub async fn run(state: &State, metrics: Metrics) -> Result<()> {
    let member = Member::open(state)?;
    if member.is_some() {
        // Nobody else writes it here, and `allod down` looks for it.
        let me = Process::find(i32::try_from(std::process::id())?).context("cannot read /proc/self/stat")?;
        me.write(&state.path("run/agent.pid"))?;
    }
    let role = Role::of(state).await?;
    let config = engines(state, &role).await?;
    let (engines, qemu) =
        tokio::join!(ovn::Engines::start(config), hypervisor(state, &role.name, role.leased));
    let engines = engines.context("the network daemons do not start")?;
    let qemu = Arc::new(qemu?);
    let storage = block::Config { owner: guests_user(), ..block::Config::new(state.path("volumes")) };
    let storage = block::FileStorage::open(storage)?.with_live(qemu.clone() as Arc<dyn LiveDisks>);
    let tap_owner = guests_user().map_or_else(|| nix::unistd::geteuid().as_raw(), |(uid, _)| uid);
    let (host, client) = match &member {
        Some(member) => (member.host, join(state, member)?),
        None => {
            let host = bootstrap::host_id(state)?;
            (host, connect(state, host).await?)
        }
    };
    let drivers = agent::Drivers {
        hypervisor: qemu,
        storage: Arc::new(storage),
        network: Arc::new(ovn::Host::new(&engines, tap_owner)?),
        images: Arc::new(CachedImages::new(Arc::new(client.clone()))),
    };
    let boot_id =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let config = agent::Config { host, state_dir: state.path("agent"), boot_id };
    let (control, clock) = (Arc::new(client.clone()), Arc::new(SystemClock));
    let agent = if role.leased {
        agent::Agent::leased(config, drivers, control, clock, Arc::new(qemu::guard::BootClock))?
    } else {
        agent::Agent::new(config, drivers, control, clock)?
    };
    let answers = tokio::spawn(client.answer_questions(host, agent.clone()));
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(metrics.clone().upkeep());
    let serving = if member.is_none() {
        let routes = crate::status::agent_routes(agent.clone(), metrics);
        let routes = routes.merge(crate::ovn_access::routes(engines.socket()));
        tokio::spawn(serve_metrics(state, &state.config()?, routes, stopped.clone()).await?)
    } else {
        // A joined host has no certificate with which it could serve: its own must not pass for a server's.
        tokio::spawn(async { Ok(()) })
    };
    let running = tokio::spawn(agent.run(stopped));
    tracing::info!(%host, name = role.name, datapath = engines.datapath().name(), "agent runs");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(true);
    answers.abort();
    let _ = running.await;
    let _ = serving.await;
    let _ = std::fs::remove_file(state.path("run/agent-listening"));
    Ok(())
}

/// The agent's own listener: metrics, for holders of a certificate of this cloud, and the network databases, for other
/// servers. The address is in `run/agent-listening`.
async fn serve_metrics(
    state: &State,
    config: &Config,
    router: axum::Router,
    stop: watch::Receiver<bool>,
) -> Result<impl Future<Output = Result<()>> + use<>> {
    let listener = tokio::net::TcpListener::bind(config.agent_listen)
        .await
        .with_context(|| format!("cannot listen on {} (agent_listen)", config.agent_listen))?;
    let address = listener.local_addr()?;
    let pki = Pki::open(&state.path("pki"), SystemClock.now())?;
    let tls = pki.agent_listener(&[address.ip()], &[hostname()])?;
    crate::files::write_secret(&state.path("run/agent-listening"), format!("https://{address}").as_bytes())?;
    Ok(crate::listener::serve(listener, tls, router, stop))
}

/// A client of the server that this host joined; it keeps its certificate fresh.
fn join(state: &State, member: &Member) -> Result<link::Client> {
    let identity = Identity::open(state)?;
    let http = identity.client()?;
    tokio::spawn(identity.keep(http.clone(), member.server.clone(), Arc::new(SystemClock)));
    Ok(link::Client::new(http, member.server.clone()))
}

/// A client of the server; the address is known once the server listens for the first time.
async fn connect(state: &State, host: base::HostId) -> Result<link::Client> {
    loop {
        let config = state.config()?;
        if config.listen.port() != 0 {
            let http = Pki::open(&state.path("pki"), SystemClock.now())?.host_client(host)?;
            return Ok(link::Client::new(http, format!("https://{}", config.listen)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ends the network daemons; with `purge` also guests, and everything that either made.
pub async fn stop_engines(state: &State, purge: bool) -> Result<()> {
    if state.config()?.sim_hosts > 0 {
        return Ok(());
    }
    if purge {
        hypervisor(state, &hostname(), false).await?.purge().await?;
        ovn::engines::purge(state.dir(), None).await?;
    } else {
        ovn::engines::stop(state.dir(), None).await?;
    }
    Ok(())
}
