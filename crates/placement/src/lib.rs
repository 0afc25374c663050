//! Placement: who has how much of what, and who has claimed it.
//!
//! A resource provider is one row that holds its inventories, traits, aggregates and the sum of what is claimed; a
//! consumer is one row with its claims. A claim reads and writes both in one transaction.
//!
//! Invariant: what is claimed of a class never exceeds `(total - reserved) * allocation_ratio`, and the sums in
//! provider rows equal the claims in consumer rows: both only change together, in `claims`.
//!
//! Start reading at `claims.rs` (claim and release), then [`ops`], then `service.rs` (the trait other services use).

mod api;
mod claims;
mod logic;
pub mod model;
mod service;

use std::sync::Arc;

use ::api::{Dialect, Policy, Service, Settings};
use base::{Clock, Entropy, Result};
use contract::auth::Authenticator;
use contract::services::Candidate;
use store::{Mirror, Store};

pub use api::ops;
pub use model::MIGRATIONS;

/// How the placement service works.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Where the service is reachable.
    pub settings: Settings,
    /// The operator's policy file, if any.
    pub policy_yaml: Option<String>,
}

/// The service.
pub struct State {
    store: Store,
    policy: Policy,
    authenticator: Arc<dyn Authenticator>,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    config: Config,
    /// Providers in memory, for those who choose among them.
    providers: Mirror<model::Provider, Candidate>,
}

impl State {
    /// Assembles the service. The store must have been migrated with [`MIGRATIONS`].
    ///
    /// # Errors
    /// `BadRequest` for a bad policy file.
    pub fn new(
        config: Config,
        store: Store,
        authenticator: Arc<dyn Authenticator>,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
    ) -> Result<Arc<Self>> {
        let policy = Policy::for_ops(&ops(), api::RULES, config.policy_yaml.as_deref())?;
        let providers = Mirror::new(service::candidate);
        Ok(Arc::new(State { store, policy, authenticator, clock, entropy, config, providers }))
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
}

impl Service for State {
    fn dialect(&self) -> &'static Dialect {
        &::api::dialect::PLACEMENT
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
