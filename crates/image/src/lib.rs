//! Images: Glance v2.
//!
//! Invariants: bytes of an `active` image are a whole, flushed file that never changes; they were inspected
//! ([`inspect`]) and are what the image declares; a half upload is known as such after any crash (its row is `saving`
//! or `uploading` and its temporary file is not locked) and goes back to `queued`. No image is ever held in memory.
//!
//! Start reading at [`ops`], then `api/data.rs` (upload and download), then [`inspect`].

mod api;
mod files;
mod logic;
mod model;
mod reconcile;
mod service;

use std::path::PathBuf;
use std::sync::Arc;

use ::api::{Dialect, Policy, Service, Settings};
use base::{Clock, Entropy, Result};
use contract::auth::Authenticator;
use store::Store;

pub use api::ops;
pub use logic::attributes::Bounds;
pub use logic::inspect;
pub use model::MIGRATIONS;

/// How the image service works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where bytes are kept; made if missing.
    pub directory: PathBuf,
    /// Largest image in bytes.
    pub max_image_bytes: u64,
    /// Most bytes of all images of a project; `None`: no bound.
    pub project_bytes: Option<u64>,
    /// Most custom properties and tags of an image.
    pub bounds: Bounds,
    /// Most members of an image.
    pub members: usize,
    /// Where the service is reachable.
    pub settings: Settings,
    /// The operator's policy file, if any.
    pub policy_yaml: Option<String>,
}

impl Config {
    /// Glance's own bounds: 1 TiB, 128 properties, tags and members.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Config {
            directory: directory.into(),
            max_image_bytes: 1 << 40,
            project_bytes: None,
            bounds: Bounds { properties: 128, tags: 128 },
            members: 128,
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
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    config: Config,
    files: files::Files,
}

impl State {
    /// Assembles the service. The store must have been migrated with [`MIGRATIONS`].
    ///
    /// # Errors
    /// `BadRequest` for a bad policy file, `Internal` where the directory cannot be made.
    pub fn new(
        config: Config,
        store: Store,
        authenticator: Arc<dyn Authenticator>,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
    ) -> Result<Arc<Self>> {
        let policy = Policy::for_ops(&ops(), api::RULES, config.policy_yaml.as_deref())?;
        let files = files::Files::open(&config.directory)?;
        Ok(Arc::new(State { store, policy, authenticator, clock, entropy, config, files }))
    }

    /// Its reconcilers: imports, and cleaning up after deleted images and dead uploads.
    pub fn reconcilers(self: &Arc<Self>) -> Vec<Arc<dyn ::reconcile::Reconciler>> {
        vec![Arc::new(reconcile::Images(self.clone()))]
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
}

impl Service for State {
    fn dialect(&self) -> &'static Dialect {
        &::api::dialect::GLANCE
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
