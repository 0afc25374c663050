//! The network service: Neutron v2.0 over any [`NetworkBackend`].
//!
//! Handlers write rows in one transaction and wake the reconciler `net`; it projects each row to a
//! [`contract::net::Item`] and hands it to the backend. A removed row leaves a tombstone until the backend confirmed.
//!
//! Invariant: an address is used by one port at most (the store's primary key of `ip_allocations`), and the backend
//! never learns of anything but from rows.
//!
//! Start at [`State`], then [`api::ops`], then `db` (what happens inside a transaction) and `logic` (pure functions).

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};

use base::{Clock, Entropy, Error, Kind, Result};
use contract::auth::Authenticator;
use contract::net::{Key, NetworkBackend};
use contract::services::HostNudge;
use parking_lot::Mutex;

pub mod api;
mod bootstrap;
mod db;
pub mod ids;
pub mod logic;
mod migrations;
pub mod model;
mod reconcile;
mod services;

pub use crate::api::ops;
pub use crate::reconcile::reconcilers;
pub use bootstrap::{ExternalNetwork, PrivateNetwork};
pub use migrations::MIGRATIONS;

/// What an operator may choose.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the service is reachable.
    pub settings: ::api::Settings,
    /// The operator's `policy.yaml`, if there is one.
    pub policy_yaml: Option<String>,
    /// MTU of networks that are tunnelled: the underlay's MTU less 58 bytes for geneve over IPv4.
    pub tenant_mtu: u32,
    /// MTU of provider networks.
    pub provider_mtu: u32,
    /// Domain name of guests on networks that have none of their own, with a trailing dot.
    pub dns_domain: String,
    /// The availability zone all hosts are in.
    pub availability_zone: String,
    /// Default quotas by resource; −1 = none.
    pub quotas: BTreeMap<&'static str, i64>,
}

/// Resources with quotas and their defaults.
pub const QUOTAS: &[(&str, i64)] = &[
    ("network", 256),
    ("subnet", 256),
    ("subnetpool", -1),
    ("port", 1024),
    ("router", 64),
    ("floatingip", 64),
    ("security_group", 64),
    ("security_group_rule", 1024),
    ("rbac_policy", 64),
];

impl Default for Config {
    fn default() -> Self {
        Config {
            settings: ::api::Settings::default(),
            policy_yaml: None,
            tenant_mtu: 1442,
            provider_mtu: 1500,
            dns_domain: "openstacklocal.".into(),
            availability_zone: "nova".into(),
            quotas: QUOTAS.iter().copied().collect(),
        }
    }
}

/// The parts the service needs from outside.
#[derive(Clone)]
pub struct Parts {
    /// Where rows are.
    pub store: store::Store,
    /// Who turns tokens into callers.
    pub authenticator: Arc<dyn Authenticator>,
    /// What makes it so.
    pub backend: Arc<dyn NetworkBackend>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Entropy,
}

/// What transactions need besides the rows.
pub(crate) struct Env {
    pub config: Config,
    pub entropy: Entropy,
}

/// The service's state.
pub struct State {
    pub(crate) store: store::Store,
    pub(crate) backend: Arc<dyn NetworkBackend>,
    pub(crate) env: Arc<Env>,
    authenticator: Arc<dyn Authenticator>,
    clock: Arc<dyn Clock>,
    policy: ::api::Policy,
    nudge: OnceLock<Arc<dyn HostNudge>>,
    /// What the backend was given by this process, so that an item's needs are given first.
    pub(crate) applied: Mutex<HashSet<Key>>,
    /// Held for writing while everything is handed over, for reading while one item is.
    pub(crate) gate: tokio::sync::RwLock<()>,
}

impl State {
    /// Puts the service together.
    ///
    /// # Errors
    /// `BadRequest` where the operator's policy file is wrong.
    pub fn new(config: Config, parts: Parts) -> Result<Arc<Self>> {
        let policy = ::api::Policy::for_ops(&ops(), api::RULES, config.policy_yaml.as_deref())?;
        Ok(Arc::new(State {
            store: parts.store,
            backend: parts.backend,
            env: Arc::new(Env { config, entropy: parts.entropy }),
            authenticator: parts.authenticator,
            clock: parts.clock,
            policy,
            nudge: OnceLock::new(),
            applied: Mutex::default(),
            gate: tokio::sync::RwLock::new(()),
        }))
    }

    /// Tells the service whom to tell about changes that guests' metadata shows. The first call counts.
    pub fn set_nudge(&self, nudge: Arc<dyn HostNudge>) {
        let _ = self.nudge.set(nudge);
    }

    /// The store.
    pub fn store(&self) -> &store::Store {
        &self.store
    }

    /// A transaction that is run again where it lost a race.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut store::Tx<'_>) -> Result<T> + Send + Sync + 'static,
    {
        let work = Arc::new(work);
        let mut tries = 0;
        loop {
            let again = work.clone();
            let result = self.store.write(move |tx| again(tx)).await;
            let raced = result.as_ref().err().is_some_and(lost_a_race);
            tries += 1;
            if !raced || tries >= 5 {
                return result;
            }
        }
    }

    pub(crate) fn nudge_devices(&self, devices: impl IntoIterator<Item = String>) {
        if let Some(nudge) = self.nudge.get() {
            devices.into_iter().filter(|d| !d.is_empty()).for_each(|d| nudge.device_changed(&d));
        }
    }
}

/// Whether the same transaction may well succeed when it is run again: someone else took the address, made the default
/// group, or kept being faster.
fn lost_a_race(error: &Error) -> bool {
    const TABLES: &[&str] = &["ip_allocations", "security_groups", "ports", "security_group_rules"];
    let faster = std::error::Error::source(error).and_then(|s| s.downcast_ref::<Error>());
    store::unique_violation(error).is_some_and(|v| TABLES.contains(&v.table))
        || faster.is_some_and(|e| e.kind() == Kind::Retry)
}

impl ::api::Service for State {
    fn dialect(&self) -> &'static ::api::Dialect {
        &::api::dialect::NEUTRON
    }
    fn policy(&self) -> &::api::Policy {
        &self.policy
    }
    fn authenticator(&self) -> Arc<dyn Authenticator> {
        self.authenticator.clone()
    }
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
    fn settings(&self) -> &::api::Settings {
        &self.env.config.settings
    }
}
