//! `allod sim-agents`: simulated hosts in a process of their own, on the link that real hosts use. For tests of replicas.

use std::sync::Arc;

use anyhow::Result;
use base::{Clock, Entropy, HostId, SystemClock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::State;
use crate::pki::Pki;

/// Runs until SIGTERM.
pub async fn run(state: &State) -> Result<()> {
    let config = state.config()?;
    crate::shared::join(state, &config)?;
    let pki = Pki::open(&state.path("pki"), SystemClock.now())?;
    let fabric = Arc::new(sim::SimNetwork::default());
    let entropy = Entropy::seeded(1);
    let (stop, stopped) = watch::channel(false);
    for n in 1..=config.sim_hosts {
        let host = sim::SimHost::new(&format!("sim-{n}"), sim::Profile::default(), &entropy, fabric.clone());
        let drivers = agent::Drivers {
            hypervisor: host.hypervisor,
            storage: host.storage,
            network: host.network,
            images: host.images,
        };
        let id = HostId::random(&entropy);
        let client = link::Client::new(pki.host_client(id)?, config.url());
        let settings =
            agent::Config { host: id, state_dir: state.path(&format!("sim/{n}")), boot_id: "sim".into() };
        let agent = agent::Agent::new(settings, drivers, Arc::new(client.clone()), Arc::new(SystemClock))?;
        tokio::spawn(client.answer_questions(id, agent.clone()));
        tokio::spawn(agent.run(stopped.clone()));
    }
    signal(SignalKind::terminate())?.recv().await;
    stop.send_replace(true);
    Ok(())
}
