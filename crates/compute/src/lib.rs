//! Compute: servers and what they are made of (Nova v2.1 to 2.96), and the control plane that agents talk to.
//!
//! A call writes a server's row and nothing else. The reconciler of kind `server` places it, asks for its ports and
//! volumes, and marks it ready; the reconciler of kind `host` folds all ready servers of a host, and what other services
//! have there, into that host's spec; the agent makes it so and reports; a report changes only states.
//!
//! Invariant: ids of ports, volumes and attachments are in the row before anything is asked for under them, so that a
//! crash leaves nothing behind that the row does not know; a row goes only when everything under its ids is gone.
//!
//! Start reading at [`model::Server`], then `reconcile.rs` (build up, tear down), then `hosts.rs` (fold, report), then
//! [`ops`].

mod api;
mod hosts;
mod joining;
mod leases;
mod logic;
pub mod model;
mod moving;
mod nudge;
mod reconcile;
mod reports;
mod seed;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::api::{Dialect, Policy, Service, Settings};
use base::{Clock, Entropy, Result, ServerId};
use contract::auth::Authenticator;
use contract::services::{HostAccess, HostPart, Images, Networks, Placement, Volumes};
use parking_lot::{Mutex, RwLock};
use store::{Mirror, Store};

pub use api::{ops, router};
pub use hosts::Census;
pub use model::MIGRATIONS;
pub use nudge::Nudge;
pub use seed::seed_flavors;

/// How the compute service works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the service is reachable.
    pub settings: Settings,
    /// The operator's policy file, if any.
    pub policy_yaml: Option<String>,
    /// Factor by which CPUs of a host are promised.
    pub cpu_ratio: f64,
    /// The same for memory.
    pub ram_ratio: f64,
    /// The same for disk.
    pub disk_ratio: f64,
    /// Memory in MiB kept back on each host.
    pub reserved_memory_mib: u64,
    /// Zone of hosts in no aggregate that is one.
    pub default_zone: String,
    /// Limits of projects, where they differ from the built-in ones; -1 = none.
    pub quota: BTreeMap<String, i64>,
    /// How long a host may fail to make a server before the server is in error.
    pub patience: Duration,
    /// How long after its last report a host counts as down.
    pub down_after: Duration,
    /// How long a host with leases runs its guests without hearing from us.
    pub lease: Duration,
    /// How long after the end of its lease a host is sure to have stopped its guests: how late it may look, and how far
    /// the clocks of two control planes may be apart.
    pub lease_margin: Duration,
    /// Most items in one answer of a list.
    pub max_limit: usize,
    /// Whether every server gets a config drive.
    pub force_config_drive: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            settings: Settings::default(),
            policy_yaml: None,
            cpu_ratio: 4.0,
            ram_ratio: 1.0,
            disk_ratio: 1.0,
            reserved_memory_mib: 0,
            default_zone: "nova".to_owned(),
            quota: BTreeMap::new(),
            patience: Duration::from_secs(120),
            down_after: Duration::from_secs(75),
            lease: Duration::from_secs(60),
            lease_margin: Duration::from_secs(15),
            max_limit: 1000,
            force_config_drive: false,
        }
    }
}

/// The other services, as compute needs them.
#[derive(Clone)]
pub struct Deps {
    /// The image service.
    pub images: Arc<dyn Images>,
    /// The network service.
    pub networks: Arc<dyn Networks>,
    /// The block storage service.
    pub volumes: Arc<dyn Volumes>,
    /// The placement service.
    pub placement: Arc<dyn Placement>,
    /// Services with a part in hosts' specs and reports.
    pub host_parts: Vec<Arc<dyn HostPart>>,
}

/// The service.
pub struct State {
    store: Store,
    policy: Policy,
    authenticator: Arc<dyn Authenticator>,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    config: Config,
    deps: Deps,
    hosts: hosts::Hosts,
    /// Where signs of life that come together are written down together.
    signs: hosts::Signs,
    /// Where reports that come together are taken together.
    reports: reports::Desk,
    /// Rows of hosts in memory, for the choice of a host.
    host_rows: Mirror<model::Host>,
    /// Servers whose ports may have changed.
    stale: Mutex<HashSet<ServerId>>,
    access: RwLock<Option<Arc<dyn HostAccess>>>,
    /// Weak: the reconcilers hold this state.
    controller: OnceLock<::reconcile::Waker>,
}

impl State {
    /// Assembles the service. The store must have been migrated with [`MIGRATIONS`]. `nudge` is the handle that other
    /// services were given; it leads here from now on.
    ///
    /// # Errors
    /// `BadRequest` for a bad policy file.
    pub fn new(
        config: Config,
        store: Store,
        authenticator: Arc<dyn Authenticator>,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
        deps: Deps,
        nudge: &Nudge,
    ) -> Result<Arc<Self>> {
        let policy = Policy::for_ops(&ops(), api::RULES, config.policy_yaml.as_deref())?;
        let state = Arc::new(State {
            store,
            policy,
            authenticator,
            clock,
            entropy,
            config,
            deps,
            hosts: hosts::Hosts::default(),
            signs: hosts::signs(),
            reports: reports::desk(),
            host_rows: Mirror::new(|host| host),
            stale: Mutex::default(),
            access: RwLock::new(None),
            controller: OnceLock::new(),
        });
        nudge.lead_to(&state);
        Ok(state)
    }

    /// Its reconcilers: `server` and `host`; both work on many keys at once.
    pub fn reconcilers(self: &Arc<Self>) -> Vec<Arc<dyn ::reconcile::Reconciler>> {
        vec![Arc::new(reconcile::Servers::new(self.clone())), Arc::new(hosts::Folds(self.clone()))]
    }

    /// Hands in what hints wake reconcilers through.
    pub fn set_controller(&self, controller: ::reconcile::Waker) {
        let _ = self.controller.set(controller);
    }

    /// Hands in the way to live hosts (console logs); without it they answer 503.
    pub fn set_host_access(&self, access: Arc<dyn HostAccess>) {
        *self.access.write() = Some(access);
    }

    /// What hosts told this process lately; from memory.
    pub fn census(&self) -> Census {
        let lately = i64::try_from(self.config.down_after.as_micros()).unwrap_or(i64::MAX);
        self.hosts.census(base::Timestamp(self.clock.now().0.saturating_sub(lately)))
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn hint(&self, kind: &str, key: impl ToString) {
        if let Some(controller) = self.controller.get() {
            controller.wake(kind, &key.to_string());
        }
    }
}

impl Service for State {
    fn dialect(&self) -> &'static Dialect {
        &::api::dialect::NOVA
    }
    fn policy(&self) -> &Policy {
        &self.policy
    }
    fn authenticator(&self) -> Arc<dyn Authenticator> {
        self.authenticator.clone()
    }
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
    fn settings(&self) -> &Settings {
        &self.config.settings
    }
}
