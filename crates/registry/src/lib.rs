//! `allod registry`: takes signed reports of conformance, keeps them, and tells the world how each cloud stands.
//!
//! The HTTP API is that of the compliance monitor of Sovereign Cloud Stack, so that its clients work; the rules are the data
//! of `certify`, evaluated as the monitor evaluates them ([`logic`]). Beyond it: certificates as signed documents and
//! verifiable credentials, their revocation, and the history of each cloud.
//!
//! Invariant: what is stored was signed by a key of the account that sent it, whole and unchanged, and that account may
//! speak for the subject; the signed bytes are kept. Nothing is written of an upload that is refused in any part.
//!
//! Start reading at [`Registry`], [`intake`] (what is uploaded), [`logic::evaluate`] (what it comes to), [`api`].

pub mod accounts;
pub mod api;
pub mod certificate;
pub mod intake;
pub mod logic;
mod logins;
pub mod model;
pub mod page;
mod standing;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use attest::SigningKey;
use base::{Entropy, Error, Result, Timestamp};
use certify::rules::Scope;
use parking_lot::RwLock;
use store::{Mirror, Store};
use tokio::sync::Semaphore;

use crate::accounts::{Account, Accounts};
use crate::logic::evaluate::Rules;
use crate::logins::Logins;
use crate::model::Standing;

/// Uploads read and histories worked out at once.
const WORKED_ON_AT_ONCE: usize = 2;

/// A registry: rules, accounts, key and database.
pub struct Registry {
    store: Store,
    entropy: Entropy,
    key: SigningKey,
    rules: BTreeMap<String, Arc<Rules>>,
    accounts: RwLock<Arc<Accounts>>,
    url: String,
    logins: Logins,
    standings: Mirror<Standing>,
    working: Semaphore,
}

impl Registry {
    /// A registry of some scopes, on a database with the tables of [`model::SCHEMAS`]. `url`: where it is reached by others.
    ///
    /// # Errors
    /// Rules that contradict themselves.
    pub fn new(
        store: Store,
        entropy: Entropy,
        key: SigningKey,
        scopes: Vec<Scope>,
        accounts: Accounts,
        url: &str,
    ) -> anyhow::Result<Arc<Self>> {
        let mut rules = BTreeMap::new();
        for scope in scopes {
            let (uuid, name) = (scope.uuid.clone(), scope.name.clone());
            let prepared = Rules::new(scope).with_context(|| name.clone())?;
            if rules.insert(uuid, Arc::new(prepared)).is_some() {
                bail!("{name}: there is another scope with its uuid");
            }
        }
        Ok(Arc::new(Registry {
            store,
            entropy,
            key,
            rules,
            accounts: RwLock::new(Arc::new(accounts)),
            url: format!("{}/", url.trim_end_matches('/')),
            logins: Logins::new(),
            standings: Mirror::new(|row| row),
            working: Semaphore::new(WORKED_ON_AT_ONCE),
        }))
    }

    /// Takes other accounts from now on.
    pub fn replace(&self, accounts: Accounts) {
        *self.accounts.write() = Arc::new(accounts);
    }

    /// The accounts.
    pub fn accounts(&self) -> Arc<Accounts> {
        self.accounts.read().clone()
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The key that certificates are signed with.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Where it is reached, with a `/` at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The present moment.
    pub fn now(&self) -> Timestamp {
        self.store.clock().now()
    }

    /// All scopes.
    pub fn scopes(&self) -> impl Iterator<Item = &Arc<Rules>> {
        self.rules.values()
    }

    /// A scope by its id, or by its name as upstream writes it in URLs (`scs-compatible-iaas`).
    ///
    /// # Errors
    /// `NotFound`.
    pub fn scope(&self, name: &str) -> Result<&Arc<Rules>> {
        let known = self.rules.get(name).or_else(|| self.rules.values().find(|r| alias(r) == name));
        known.ok_or_else(|| Error::not_found("There is no such scope."))
    }

    /// A turn at what takes long.
    ///
    /// # Errors
    /// `Unavailable` when the registry ends.
    pub(crate) async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        self.working.acquire().await.map_err(|_| Error::unavailable("The registry ends."))
    }

    /// The account of a name and its password, asked for by `from`.
    ///
    /// # Errors
    /// `Unauthenticated`, after the same time whether there is such an account or not; `TooManyRequests` where too many
    /// wait already.
    pub async fn login(&self, from: Option<IpAddr>, name: &str, password: String) -> Result<Arc<Account>> {
        let wrong = || Error::unauthenticated("Incorrect username or password");
        let _turn = self.logins.turn(from).await?;
        let account = self.accounts().get(name).cloned();
        let verified = tokio::task::spawn_blocking(move || match account {
            Some(account) if account.opens(&password) => Some(account),
            Some(_) => None,
            None => {
                accounts::spend(&password);
                None
            }
        });
        verified.await.map_err(|e| Error::internal(e.to_string()))?.ok_or_else(wrong)
    }
}

/// A scope's name as it stands in URLs.
pub fn alias(rules: &Rules) -> String {
    rules.scope.name.to_lowercase().replace(' ', "-")
}
