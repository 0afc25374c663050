//! The service's state: what every handler can reach.

use std::sync::Arc;
use std::time::Duration;

use ::api::{Dialect, Policy, Service, Settings, dialect};
use base::{Clock, Entropy, Result};
use contract::auth::Authenticator;
use store::Store;

use crate::api::{POLICY, ops};
use crate::keys::{Keys, Repository};
use crate::password::Passwords;
use crate::tokens::{Limits, Tokens};

/// Settings of the identity service.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it is reachable.
    pub settings: Settings,
    /// The operator's `policy.yaml`, as text.
    pub policy_yaml: Option<String>,
    /// Seconds a token lives (Keystone: 3600).
    pub token_lifetime: i64,
    /// Seconds after its end in which a token can still be read with `allow_expired` (Keystone: 172800).
    pub allow_expired_window: i64,
    /// Where the token keys are.
    pub keys: Repository,
    /// How many token keys are kept, staged and primary included.
    pub max_active_keys: usize,
    /// Seconds between rotations of the token keys. Tokens stay readable as long as
    /// `(max_active_keys - 2) * key_rotation` is above `token_lifetime + allow_expired_window`.
    pub key_rotation: i64,
    /// bcrypt's cost: 12 by default, 4 in tests.
    pub bcrypt_cost: u32,
    /// Password hashes computed at once; 0 = one less than there are processors.
    pub password_parallel: usize,
    /// A new password must differ from so many former ones, the present one included (Keystone's
    /// `unique_last_password_count`); 0 and 1 = no check.
    pub unique_last_passwords: usize,
    /// Most validated tokens remembered.
    pub remembered_tokens: usize,
    /// Name and domain name of the administrators' project.
    pub admin_project: (String, String),
    /// Whether other processes write to the database although it is of a kind only one should use (a SQLite file).
    pub several_servers: bool,
    /// Most application credentials of a user.
    pub application_credentials_per_user: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            settings: Settings::default(),
            policy_yaml: None,
            token_lifetime: 3600,
            allow_expired_window: 172_800,
            keys: Repository::Memory,
            max_active_keys: 6,
            key_rotation: 86_400,
            bcrypt_cost: 12,
            password_parallel: 0,
            unique_last_passwords: 2,
            remembered_tokens: 2048,
            admin_project: ("admin".to_owned(), "Default".to_owned()),
            several_servers: false,
            application_credentials_per_user: 1000,
        }
    }
}

/// The identity service.
pub struct State {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Entropy,
    pub(crate) passwords: Passwords,
    pub(crate) tokens: Arc<Tokens>,
    policy: Policy,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "identity::State({:?})", self.tokens)
    }
}

impl State {
    /// The service on `store`, whose migrations have been run.
    ///
    /// # Errors
    /// `BadRequest` for a wrong setting or policy; `Internal` where the keys cannot be read.
    pub fn new(config: Config, store: Store, clock: Arc<dyn Clock>, entropy: Entropy) -> Result<Arc<Self>> {
        let keys = Arc::new(Keys::open(config.keys.clone(), config.max_active_keys, entropy.clone())?);
        let limits = Limits {
            lifetime: config.token_lifetime,
            expired_window: config.allow_expired_window,
            remembered: config.remembered_tokens,
            admin_project: config.admin_project.clone(),
            shared: config.several_servers || store.shared(),
        };
        let tokens = Arc::new(Tokens::new(store.clone(), clock.clone(), entropy.clone(), keys, limits));
        let policy = Policy::for_ops(&ops(), POLICY, config.policy_yaml.as_deref())?;
        let passwords = Passwords::new(config.bcrypt_cost, config.password_parallel)?;
        Ok(Arc::new(State { config, store, clock, entropy, passwords, tokens, policy }))
    }

    /// Who turns tokens into callers, for all services of this process.
    pub fn authenticator(&self) -> Arc<dyn Authenticator> {
        self.tokens.clone()
    }

    /// Makes the staged token key the primary now.
    ///
    /// # Errors
    /// `Conflict` where another server rotates now; `Internal` where files cannot be written.
    pub fn rotate_keys(&self) -> Result<()> {
        self.tokens.keys().rotate()
    }

    /// Numbers of the token keys, the primary first.
    pub fn key_numbers(&self) -> Vec<u64> {
        self.tokens.keys().numbers()
    }

    /// How many validated tokens are remembered.
    pub fn remembered_tokens(&self) -> usize {
        self.tokens.remembered()
    }

    /// Rotates token keys when they are due and forgets revocations of tokens that have ended. Never returns; the
    /// binary spawns it.
    pub async fn housekeeping(self: Arc<Self>) {
        let period = Duration::from_secs(300);
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(error) = self.keep_house().await {
                tracing::warn!(error = error.chain(), "identity housekeeping failed; it is tried again");
            }
        }
    }

    /// One round of [`State::housekeeping`].
    ///
    /// # Errors
    /// The store's and the key files'.
    pub async fn keep_house(&self) -> Result<()> {
        let now = self.clock.now();
        let (keys, interval) = (self.tokens.keys().clone(), self.config.key_rotation);
        let rotated = tokio::task::spawn_blocking(move || keys.rotate_if_due(now, interval));
        if rotated.await.map_err(base::Error::internal)?? {
            tracing::info!(keys = ?self.key_numbers(), "token keys rotated");
        }
        let over = self
            .write(move |tx| {
                let query = store::Query::new().lt("expires_at", now).limit(1000);
                let over = tx.list::<crate::model::Revocation>(&query)?;
                for revocation in &over {
                    tx.delete::<crate::model::Revocation>(&revocation.id)?;
                }
                Ok(over.len())
            })
            .await?;
        if over > 0 {
            tracing::debug!(over, "revocations of ended tokens forgotten");
        }
        Ok(())
    }
}

impl Service for State {
    fn dialect(&self) -> &'static Dialect {
        &dialect::KEYSTONE
    }
    fn policy(&self) -> &Policy {
        &self.policy
    }
    fn authenticator(&self) -> Arc<dyn Authenticator> {
        self.tokens.clone()
    }
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
    fn settings(&self) -> &Settings {
        &self.config.settings
    }
}
