//! `allod agent`: this machine as a host of the cloud, with its engines.

use std::sync::Arc;
use std::time::Duration;

use agent::images::CachedImages;
use anyhow::{Context, Result};
use base::{Clock, SystemClock};
use contract::drivers::LiveDisks;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bootstrap;
use crate::config::{Config, State};
use crate::pki::Pki;
use crate::telemetry::Metrics;

/// User and group of guest processes: numbers of their own, with nothing of the host belonging to them. Only root can
/// give them away; others run guests as themselves.
const GUESTS: (u32, u32) = (64117, 64117);

/// How long a guest may take to shut down when asked.
const GRACE: Duration = Duration::from_secs(30);

fn guests_user() -> Option<(u32, u32)> {
    nix::unistd::geteuid().is_root().then_some(GUESTS)
}

fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

async fn hypervisor(state: &State) -> Result<qemu::Qemu> {
    let config =
        qemu::Config { dir: state.path("guests"), hostname: hostname(), user: guests_user(), grace: GRACE };
    Ok(qemu::Qemu::new(config).await?)
}

fn engines(state: &State, config: &Config) -> ovn::engines::Config {
    ovn::engines::Config {
        state_dir: state.dir().to_owned(),
        instance: String::new(),
        hostname: hostname(),
        encap_ip: [127, 0, 0, 1].into(),
        external: Some(ovn::engines::External {
            physical_network: "public".into(),
            cidr: config.external.cidr,
            gateway: config.external.gateway,
        }),
        netns: None,
        datapath: None,
    }
}

/// Runs until SIGTERM or SIGINT. Guests and engines go on.
pub async fn run(state: &State, metrics: Metrics) -> Result<()> {
    let config = state.config()?;
    let host = bootstrap::host_id(state)?;
    let (engines, qemu) = tokio::join!(ovn::Engines::start(engines(state, &config)), hypervisor(state));
    let engines = engines.context("the network daemons do not start")?;
    let qemu = Arc::new(qemu?);
    let storage = block::Config { owner: guests_user(), ..block::Config::new(state.path("volumes")) };
    let storage = block::FileStorage::open(storage)?.with_live(qemu.clone() as Arc<dyn LiveDisks>);
    let tap_owner = guests_user().map_or_else(|| nix::unistd::geteuid().as_raw(), |(uid, _)| uid);
    let client = connect(state, host).await?;
    let drivers = agent::Drivers {
        hypervisor: qemu,
        storage: Arc::new(storage),
        network: Arc::new(ovn::Host::new(&engines, tap_owner)?),
        images: Arc::new(CachedImages::new(Arc::new(client.clone()))),
    };
    let boot_id =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let agent_config = agent::Config { host, state_dir: state.path("agent"), boot_id };
    let agent = agent::Agent::new(agent_config, drivers, Arc::new(client.clone()), Arc::new(SystemClock))?;
    let answers = tokio::spawn(client.answer_questions(host, agent.clone()));
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(metrics.clone().upkeep());
    let serving =
        serve_metrics(state, &config, crate::status::agent_routes(agent.clone(), metrics), stopped.clone());
    let serving = tokio::spawn(serving.await?);
    let running = tokio::spawn(agent.run(stopped));
    tracing::info!(%host, datapath = engines.datapath().name(), "agent runs");
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

/// The agent's own listener: metrics, for holders of a certificate of this cloud. The address is in `run/agent-listening`.
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
    let tls = pki.agent_config(&[address.ip()], &[hostname()])?;
    crate::files::write_secret(&state.path("run/agent-listening"), format!("https://{address}").as_bytes())?;
    Ok(crate::listener::serve(listener, tls, router, stop))
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
        hypervisor(state).await?.purge().await?;
        ovn::engines::purge(state.dir(), None).await?;
    } else {
        ovn::engines::stop(state.dir()).await?;
    }
    Ok(())
}
