//! Block storage: Cinder v3.
//!
//! Invariants: a call writes desired rows and nothing else; hosts make and delete volumes from what [`State`] contributes to
//! their spec, and rows follow what they report; a volume lies on one host for life; an attachment is a row, and the
//! volume's status follows from its attachments; quota is claimed in the transaction that makes the thing.
//!
//! Start reading at [`ops`], then `logic/machine.rs` (statuses), then `hosts.rs` (specs and reports).

mod api;
mod hosts;
mod logic;
pub mod model;
mod reconcile;
mod service;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use ::api::{Dialect, Policy, Service, Settings};
use base::{Clock, Entropy, HostId, Kind, Result, VolumeTypeId};
use contract::auth::Authenticator;
use contract::services::{HostNudge, Images};
use parking_lot::RwLock;
use store::{Query, Store};

pub use api::ops;
pub use logic::quota::Defaults;
pub use model::MIGRATIONS;

/// How the block storage service works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the type of volumes that name none; made at the start.
    pub default_type: String,
    /// The availability zone volumes are in.
    pub availability_zone: String,
    /// Limits of projects that have none of their own.
    pub quotas: Defaults,
    /// Where the service is reachable.
    pub settings: Settings,
    /// The operator's policy file, if any.
    pub policy_yaml: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            default_type: "__DEFAULT__".to_owned(),
            availability_zone: "nova".to_owned(),
            quotas: Defaults::default(),
            settings: Settings::default(),
            policy_yaml: None,
        }
    }
}

/// The service.
pub struct State {
    store: Store,
    policy: Policy,
    authenticator: Arc<dyn Authenticator>,
    images: Arc<dyn Images>,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    config: Config,
    nudge: OnceLock<Arc<dyn HostNudge>>,
    seen: RwLock<BTreeMap<HostId, hosts::Seen>>,
}

impl State {
    /// Assembles the service and makes the default volume type. The store must have been migrated with [`MIGRATIONS`].
    ///
    /// # Errors
    /// `BadRequest` for a bad policy file; from the database.
    pub async fn new(
        config: Config,
        store: Store,
        authenticator: Arc<dyn Authenticator>,
        images: Arc<dyn Images>,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
    ) -> Result<Arc<Self>> {
        let policy = Policy::for_ops(&ops(), api::RULES, config.policy_yaml.as_deref())?;
        let state = Arc::new(State {
            store,
            policy,
            authenticator,
            images,
            clock,
            entropy,
            config,
            nudge: OnceLock::new(),
            seen: RwLock::default(),
        });
        state.seed().await?;
        Ok(state)
    }

    /// Tells who folds host specs; without it, hosts learn of changes when they ask next.
    pub fn set_nudge(&self, nudge: Arc<dyn HostNudge>) {
        let _ = self.nudge.set(nudge);
    }

    /// Its reconcilers: placing volumes on hosts, and waking hosts that have work.
    pub fn reconcilers(self: &Arc<Self>) -> Vec<Arc<dyn ::reconcile::Reconciler>> {
        vec![Arc::new(reconcile::Volumes(self.clone())), Arc::new(reconcile::Snapshots(self.clone()))]
    }

    async fn seed(&self) -> Result<()> {
        let id = VolumeTypeId::random(&self.entropy);
        let name = self.config.default_type.clone();
        let made = self
            .store
            .write(move |tx| {
                if tx.exists::<model::VolumeType>(&Query::new().eq("name", &name))? {
                    return Ok(());
                }
                tx.insert(&mut model::VolumeType {
                    id,
                    meta: store::Meta::default(),
                    name: name.clone(),
                    description: Some("Default Volume Type".to_owned()),
                    is_public: true,
                    extra_specs: BTreeMap::new(),
                })
            })
            .await;
        match made {
            // Another replica was faster.
            Err(error) if error.kind() == Kind::Conflict => Ok(()),
            other => other,
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn host_changed(&self, host: Option<HostId>) {
        if let (Some(nudge), Some(host)) = (self.nudge.get(), host) {
            nudge.host_changed(host);
        }
    }
}

impl Service for State {
    fn dialect(&self) -> &'static Dialect {
        &::api::dialect::CINDER
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
