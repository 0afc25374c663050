//! The service's state: what every handler can reach.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ::api::{Dialect, Policy, Service, Settings, dialect};
use base::{Clock, Entropy, Result};
use contract::auth::Authenticator;
use fancy_regex::Regex;
use federation::issuer::{Fetch, Https, Issuers};
use serde::{Deserialize, Serialize};
use store::Store;
use tokio::sync::Notify;

use crate::api::{POLICY, ops};
use crate::audit::Trail;
use crate::compliance::Operator;
use crate::external::FrontEnd;
use crate::jws::Jws;
use crate::keys::{Keys, Repository};
use crate::ldap::Turns;
use crate::oidc::keys::Signing;
use crate::password::Passwords;
use crate::saml::Provider;
use crate::throttle::Throttle;
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
    /// What the operator sets.
    pub operator: Operator,
    /// Where the keys of stored secrets are; `None` = `credential-keys` beside the token keys.
    pub credential_keys: Option<Repository>,
    /// Most validated tokens remembered.
    pub remembered_tokens: usize,
    /// Name and domain name of the administrators' project.
    pub admin_project: (String, String),
    /// Whether other processes write to the database although it is of a kind only one should use (a SQLite file).
    pub several_servers: bool,
    /// Most application credentials of a user.
    pub application_credentials_per_user: usize,
    /// How documents of identity providers are fetched; `None` = over HTTPS.
    pub fetch: Option<SharedFetch>,
}

/// How documents of identity providers are fetched.
#[derive(Clone)]
pub struct SharedFetch(pub Arc<dyn Fetch>);

impl std::fmt::Debug for SharedFetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedFetch")
    }
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
            operator: Operator::default(),
            credential_keys: None,
            remembered_tokens: 2048,
            admin_project: ("admin".to_owned(), "Default".to_owned()),
            several_servers: false,
            application_credentials_per_user: 1000,
            fetch: None,
        }
    }
}

/// How limits bind each other (`[unified_limit] enforcement_model`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitModel {
    /// Not at all.
    #[default]
    Flat,
    /// Projects are directly below their domain, and none has more than the domain.
    StrictTwoLevel,
}

/// How tokens are made (`[identity] token_provider`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenProvider {
    /// Encrypted, as Keystone's `fernet`.
    #[default]
    Fernet,
    /// Signed, as Keystone's `jws`; Fernet tokens are still read.
    Jws,
}

/// The identity service.
pub struct State {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Entropy,
    pub(crate) passwords: Passwords,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) credential_keys: Arc<Keys>,
    /// The number of the credential key that every secret was found sealed with; 0 = not looked yet.
    pub(crate) sealed_with: AtomicU64,
    pub(crate) throttle: Throttle,
    pub(crate) trail: Arc<Trail>,
    pub(crate) password_pattern: Option<Regex>,
    pub(crate) issuers: Issuers,
    pub(crate) signing: Signing,
    /// What says to other clouds who our users are, if anything does.
    pub(crate) saml: Option<Provider>,
    /// The front end that is believed who comes by the method `external`, if any is.
    pub(crate) front_end: Option<FrontEnd>,
    /// Told when a domain's directory is another.
    pub(crate) directories: Notify,
    pub(crate) directory_turns: Turns,
    /// What this process calls itself where one of several does something.
    holder: String,
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
        let jws = match config.operator.token_provider {
            TokenProvider::Fernet => None,
            TokenProvider::Jws => Some(Jws::open(&config.keys)?),
        };
        let tokens = Arc::new(Tokens::new(store.clone(), clock.clone(), entropy.clone(), keys, jws, limits));
        let policy = Policy::for_ops(&ops(), POLICY, config.policy_yaml.as_deref())?;
        let passwords = Passwords::new(config.bcrypt_cost, config.password_parallel)?;
        let beside = || config.keys.beside("credential-keys");
        let at_rest = config.credential_keys.clone().unwrap_or_else(beside);
        let credential_keys = Arc::new(Keys::open(at_rest, 3, entropy.clone())?);
        let password_pattern = config.operator.security_compliance.pattern()?;
        let throttle = Throttle::default();
        let trail = Arc::new(Trail::new(store.clone(), entropy.clone()));
        let fetch =
            config.fetch.clone().map_or_else(|| Arc::new(Https::default()) as Arc<dyn Fetch>, |f| f.0);
        let signing = Signing::open(config.keys.beside("oidc-keys"))?;
        let issuers = Issuers::new(fetch);
        let front_end = FrontEnd::open(&config.operator.external)?;
        let saml = Provider::open(&config.operator.saml)?;
        let holder = entropy.uuid().to_string();
        Ok(Arc::new(State {
            config,
            store,
            clock,
            entropy,
            passwords,
            tokens,
            credential_keys,
            sealed_with: AtomicU64::new(0),
            throttle,
            trail,
            password_pattern,
            issuers,
            signing,
            saml,
            front_end,
            directories: Notify::new(),
            directory_turns: Turns::default(),
            holder,
            policy,
        }))
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

    /// Makes the staged signing key of the OIDC provider the primary now.
    ///
    /// # Errors
    /// As [`State::rotate_keys`].
    pub fn rotate_signing_keys(&self) -> Result<()> {
        self.signing.rotate()
    }

    /// Numbers of the token keys, the primary first.
    pub fn key_numbers(&self) -> Vec<u64> {
        self.tokens.keys().numbers()
    }

    /// How many validated tokens are remembered.
    pub fn remembered_tokens(&self) -> usize {
        self.tokens.remembered()
    }

    /// Rotates token keys when they are due, forgets revocations of tokens that have ended, reads directories. Never returns; the
    /// binary spawns it.
    pub async fn housekeeping(self: Arc<Self>) {
        let period = Duration::from_secs(300);
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = tokio::select! {
                _ = tick.tick() => true,
                () = self.directories.notified() => false,
            };
            if due && let Err(error) = self.keep_house().await {
                tracing::warn!(error = error.chain(), "identity housekeeping failed; it is tried again");
            }
            if let Err(error) = self.read_directories_alone().await {
                tracing::warn!(error = error.chain(), "no directory could be read; it is tried again");
            }
        }
    }

    /// Reads the directories unless another server is at it.
    async fn read_directories_alone(&self) -> Result<()> {
        let ttl = Duration::from_secs(250);
        match self.store.lease("identity-directories", &self.holder, ttl).await? {
            Some(_) => self.read_directories().await,
            None => Ok(()),
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
        self.keep_secrets().await?;
        // Half an hour more, as Keystone's buffer, for clocks that differ.
        let kept = self.config.token_lifetime + self.config.allow_expired_window + 1800;
        self.trail.flush().await?;
        let kept_events = self.config.operator.audit_days.saturating_mul(86_400);
        if self.signing.rotate_if_due(now, interval)? {
            tracing::info!("signing keys rotated");
        }
        self.write(crate::oidc::grants::forget).await?;
        self.write(crate::oauth1::forget).await?;
        let over = self
            .write(move |tx| {
                let ended = store::Query::new().lt("at", now.plus_secs(-kept_events));
                tx.delete_where::<crate::model::AuditRecord>(&ended)?;
                let old = store::Query::new().lt("revoked_at", now.plus_secs(-kept));
                tx.delete_where::<crate::model::RevocationEvent>(&old)?;
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
