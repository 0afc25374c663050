//! `allod server`: all services behind one listener.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base::{Clock, Entropy, HostId, SystemClock};
use cloud::{Beginning, Cloud, Parts, Site};
use contract::net::NetworkBackend;
use contract::services::HostAccess;
use nix::fcntl::Flock;
use store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bootstrap::{self, Secrets};
use crate::config::{Config, State};
use crate::pki::Pki;
use crate::shared::Membership;
use crate::telemetry::Metrics;
use crate::tls::Tls;

/// Runs until SIGTERM or SIGINT.
pub async fn run(state: &State, metrics: Metrics) -> Result<()> {
    let Ground { _only, config, listener, pki, secrets } = prepare(state).await?;
    let Assembled { cloud, fleet, mut membership } = assemble(state, &config, &pki).await?;
    let beginning = beginning(&config, &secrets);
    let populated = async { cloud::populate(&cloud, &beginning).await };
    crate::shared::one_at_a_time(&cloud.store, populated).await?;
    let (stop, stopped) = watch::channel(false);
    // Of several replicas none has the hosts: `allod sim-agents` simulates them.
    if let Some(fleet) = fleet.as_ref().filter(|_| !config.hosts_apart()) {
        simulate(state, &config, &cloud, fleet, &stopped)?;
    }
    let tls = listener_tls(&pki, &config)?;
    let router = cloud.router.clone().merge(crate::status::routes(
        cloud.handle.clone(),
        cloud.store.clone(),
        cloud.compute.clone(),
        metrics.clone(),
    ));
    let router = router.merge(crate::join::routes(state, cloud.compute.clone()));
    let serving = tokio::spawn(crate::listener::serve(listener, tls, router, stopped));
    tokio::spawn(cloud.identity.clone().housekeeping());
    tokio::spawn(metrics.upkeep());
    crate::files::write_secret(&state.path("run/listening"), config.url().as_bytes())?;
    tracing::info!(url = config.url(), "serving");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let replaced = async {
        match &mut membership {
            Some(membership) => membership.lost().await,
            // Nobody takes the place of a server on SQLite.
            None => std::future::pending().await,
        }
    };
    let lost = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        other = replaced => Some(other),
    };
    if let Some(other) = lost {
        // At once: whatever is written now may be in the way of the other.
        let _ = std::fs::remove_file(state.path("run/listening"));
        bail!("another server took this database over: {other}");
    }
    stop.send_replace(true);
    let _ = std::fs::remove_file(state.path("run/listening"));
    serving.await??;
    let _ = tokio::time::timeout(Duration::from_secs(5), cloud.handle.stop()).await;
    if let Some(membership) = membership {
        membership.leave().await;
    }
    Ok(())
}

fn listener_tls(pki: &Pki, config: &Config) -> Result<Tls> {
    pki.listener(config.listen.ip(), &config.names, config.identity.oauth2.client_ca.as_deref())
}

/// What every server has before it has services.
struct Ground {
    _only: Flock<File>,
    config: Config,
    listener: tokio::net::TcpListener,
    pki: Pki,
    secrets: Secrets,
}

/// Takes the state directory and the address, and writes what clients and other commands need to find there.
async fn prepare(state: &State) -> Result<Ground> {
    let _only = crate::files::only(&state.path("run/server.lock"), "server")?;
    let mut config = state.config()?;
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    config.listen = listener.local_addr()?;
    state.keep(&config)?;
    crate::shared::join(state, &config)?;
    let pki = Pki::open(&state.path("pki"), SystemClock.now())?;
    let secrets = bootstrap::secrets(state, &config)?;
    bootstrap::client_files(state, &config, &secrets, &pki)?;
    Ok(Ground { _only, config, listener, pki, secrets })
}

/// The identity service alone, for services that run elsewhere.
pub async fn identity_alone(state: &State) -> Result<()> {
    let Ground { _only, config, listener, pki, secrets } = prepare(state).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (url, entropy) = (config.database_url(state), Entropy::system());
    let store = Store::open(&url, clock.clone(), entropy.clone(), cloud::SCHEMAS).await?;
    let (site, beginning) = (site(state, &config)?, beginning(&config, &secrets));
    let started = cloud::identity_alone(&site, &beginning, store, clock, entropy);
    let (identity, router) = started.await?;
    let (stop, stopped) = watch::channel(false);
    let tls = listener_tls(&pki, &config)?;
    let serving = tokio::spawn(crate::listener::serve(listener, tls, router, stopped));
    tokio::spawn(identity.housekeeping());
    crate::files::write_secret(&state.path("run/listening"), config.url().as_bytes())?;
    tracing::info!(url = config.url(), "serving identity alone");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(true);
    let _ = std::fs::remove_file(state.path("run/listening"));
    serving.await?
}

/// What a server is made of.
struct Assembled {
    cloud: Cloud,
    fleet: Option<Arc<Fleet>>,
    membership: Option<Membership>,
}

/// The cloud of this configuration, its simulated hosts if it has any, and its place among others on the database.
async fn assemble(state: &State, config: &Config, pki: &Pki) -> Result<Assembled> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy = Entropy::system();
    let url = config.database_url(state);
    let store = Store::open(&url, clock.clone(), entropy.clone(), cloud::SCHEMAS).await?;
    let membership = if store.shared() { Some(Membership::join(state, config, &store).await?) } else { None };
    let backend = network_backend(state, config);
    let replica = match &membership {
        Some(membership) => membership.replica(pki)?,
        None => None,
    };
    let here = backend.fleet.clone().filter(|_| !config.hosts_apart());
    let hosts = here.map(|fleet| fleet as Arc<dyn HostAccess>);
    let parts = Parts { store, backend: backend.driver, hosts, replica, clock, entropy };
    let cloud = cloud::assemble(&site(state, config)?, parts).await?;
    Ok(Assembled { cloud, fleet: backend.fleet, membership })
}

fn site(state: &State, config: &Config) -> Result<Site> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read policy file {}", path.display()))
    };
    let policy = config.policy.iter().map(|(service, path)| Ok((service.clone(), read(path)?)));
    let places = crate::shared::places(state, config);
    Ok(Site {
        url: config.url(),
        keys: identity::Repository::Directory(places.fernet),
        bcrypt_cost: config.bcrypt_rounds,
        identity: config.identity.clone(),
        images: places.images,
        fencing: cloud::Fencing {
            lease: Duration::from_secs(config.hosts.lease_secs.into()),
            margin: Duration::from_secs(config.hosts.lease_margin_secs.into()),
            down_after: Duration::from_secs(config.hosts.down_after_secs.into()),
        },
        policy: policy.collect::<Result<_>>()?,
    })
}

fn beginning(config: &Config, secrets: &Secrets) -> Beginning {
    Beginning {
        url: config.url(),
        region: config.region.clone(),
        passwords: secrets.clone(),
        external: cloud::External {
            cidr: config.external.cidr,
            gateway: config.external.gateway,
            pool: config.external.first.zip(config.external.last),
        },
        demo: config.sim_hosts > 0,
    }
}

struct Backend {
    driver: Arc<dyn NetworkBackend>,
    fleet: Option<Arc<Fleet>>,
}

/// Simulated hosts of this process, for questions to them.
#[derive(Default)]
pub struct Fleet {
    fabric: Arc<sim::SimNetwork>,
    agents: parking_lot::RwLock<BTreeMap<HostId, Arc<agent::Agent>>>,
}

#[async_trait::async_trait]
impl HostAccess for Fleet {
    async fn console_log(
        &self,
        host: HostId,
        server: base::ServerId,
        length: Option<usize>,
    ) -> base::Result<String> {
        let agent = self.agents.read().get(&host).cloned();
        match agent {
            Some(agent) => agent.console_log(host, server, length).await,
            None => Err(base::Error::unavailable(format!("Host {host} does not answer."))),
        }
    }

    async fn read_disk(
        &self,
        host: HostId,
        server: base::ServerId,
        disk: &str,
        offset: u64,
    ) -> base::Result<bytes::Bytes> {
        let agent = self.agents.read().get(&host).cloned();
        match agent {
            Some(agent) => agent.read_disk(host, server, disk, offset).await,
            None => Err(base::Error::unavailable(format!("Host {host} does not answer."))),
        }
    }
}

fn network_backend(state: &State, config: &Config) -> Backend {
    if config.sim_hosts > 0 {
        let fleet = Arc::new(Fleet::default());
        return Backend { driver: fleet.fabric.clone(), fleet: Some(fleet) };
    }
    let remotes = || vec![crate::ovn_access::remote(state, config)];
    let driver = ovn::Backend::with_remotes(remotes(), remotes(), ovn::backend::Config::from_host());
    Backend { driver: Arc::new(driver), fleet: None }
}

/// The ledger of a simulated host lasts as long as its guests do: no longer than this process.
struct NoDisk;

impl agent::ledger::Keeper for NoDisk {
    fn load(&self) -> base::Result<Option<agent::ledger::Kept>> {
        Ok(None)
    }

    fn save(&self, _kept: &agent::ledger::Kept) -> base::Result<()> {
        Ok(())
    }
}

/// Agents on simulated drivers, in this process, joined to the control plane without a network in between.
fn simulate(
    state: &State,
    config: &Config,
    cloud: &Cloud,
    fleet: &Fleet,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    let entropy = Entropy::seeded(1);
    for n in 1..=config.sim_hosts {
        let host =
            sim::SimHost::new(&format!("sim-{n}"), sim::Profile::default(), &entropy, fleet.fabric.clone());
        let drivers = agent::Drivers {
            hypervisor: host.hypervisor,
            storage: host.storage,
            network: host.network,
            images: host.images,
        };
        // Ids follow from the seed: the same hosts after every restart.
        let id = HostId::random(&entropy);
        let config =
            agent::Config { host: id, state_dir: state.path(&format!("sim/{n}")), boot_id: "sim".into() };
        let ledger = agent::ledger::Ledger::kept_by(Arc::new(NoDisk))?;
        let clock = Arc::new(SystemClock);
        let agent = agent::Agent::with_ledger(config, drivers, cloud.compute.clone(), clock, ledger, None);
        fleet.agents.write().insert(id, agent.clone());
        tokio::spawn(agent.run(stop.clone()));
    }
    Ok(())
}
