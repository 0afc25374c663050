//! Domains whose users and groups live in an LDAP directory: `identity/driver = ldap` in the domain's configuration, with
//! Keystone's options. The directory is only read.
//!
//! Users and groups are mirrored into the tables, under the ids Keystone gives them, so that everything else (lists,
//! grants, tokens) knows no difference. A password is proved by a bind to the directory, each time; who logs in is
//! brought up to date with that. What changed otherwise, and who is gone, is seen every five minutes
//! ([`State::read_directories`]): who is gone is disabled, not deleted, so that an empty answer destroys nothing.
//!
//! Invariant: nobody logs in to a mirrored account but by a bind, and what is mirrored is changed by the mirror only.

mod client;
mod mirror;
mod settings;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base::{DomainId, Error, Result, UserId};
use parking_lot::Mutex;
use serde_json::Value;
use store::{Query, Tx};
use tokio::sync::Semaphore;

use crate::model::{DomainConfig, LdapEntry, LoginRecord, User};
use crate::state::State;
use crate::words::unauthorized;
use client::Directory;
use mirror::Person;
use settings::Settings;

/// How long a login may take at the directory.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a whole directory may take.
const LONGEST: Duration = Duration::from_secs(240);
/// Logins of a domain that are at its directory at a time; the next ones wait their turn, within [`PATIENCE`].
const AT_A_TIME: usize = 16;

/// Turns at the directories, a queue for each domain: one that is slow keeps only its own people waiting.
#[derive(Default)]
pub struct Turns(Mutex<HashMap<DomainId, Arc<Semaphore>>>);

impl Turns {
    fn of(&self, domain: &DomainId) -> Arc<Semaphore> {
        let mut all = self.0.lock();
        // What nobody waits at is made anew when somebody comes.
        all.retain(|_, turns| Arc::strong_count(turns) > 1);
        all.entry(domain.clone()).or_insert_with(|| Arc::new(Semaphore::new(AT_A_TIME))).clone()
    }
}

/// Where an account's password is proved.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    config: DomainConfig,
    /// The name in the directory, or what the directory calls the user.
    who: Who,
}

#[derive(Debug, Clone)]
enum Who {
    Name(String),
    Id(String),
}

fn configured(tx: &mut Tx<'_>, domain: &DomainId) -> Result<Option<DomainConfig>> {
    let found = tx.get::<DomainConfig>(domain)?;
    let ldap = |c: &DomainConfig| {
        c.options.get("identity").and_then(|g| g.get("driver")).and_then(Value::as_str) == Some("ldap")
    };
    Ok(found.filter(ldap))
}

/// Where a user who is there is proved, if not here.
///
/// # Errors
/// The store's.
pub fn of_user(tx: &mut Tx<'_>, user: &User) -> Result<Option<Elsewhere>> {
    let Some(entry) = tx.get::<LdapEntry>(&user.id.as_str().to_owned())? else { return Ok(None) };
    // Without a configuration there is no way to prove anything: such an account has no password of its own.
    let config = configured(tx, &user.domain_id)?;
    Ok(config.map(|config| Elsewhere { config, who: Who::Id(entry.local_id) }))
}

/// Where a name is proved that no user of the domain has yet.
///
/// # Errors
/// The store's.
pub fn of_name(tx: &mut Tx<'_>, domain: &DomainId, name: &str) -> Result<Option<Elsewhere>> {
    let config = configured(tx, domain)?;
    Ok(config.map(|config| Elsewhere { config, who: Who::Name(name.to_owned()) }))
}

/// Refuses to change by hand what is mirrored.
///
/// # Errors
/// `Forbidden`, in Keystone's words.
pub fn not_mirrored(tx: &mut Tx<'_>, id: &str) -> Result<()> {
    if tx.get::<LdapEntry>(&id.to_owned())?.is_some() { Err(read_only()) } else { Ok(()) }
}

/// Refuses to make users and groups in a domain that has them from a directory.
///
/// # Errors
/// As [`not_mirrored`].
pub fn not_in_directory(tx: &mut Tx<'_>, domain: &DomainId) -> Result<()> {
    if configured(tx, domain)?.is_some() { Err(read_only()) } else { Ok(()) }
}

fn read_only() -> Error {
    Error::forbidden(
        "You are not authorized to perform the requested action: LDAP does not support write operations.",
    )
}

impl State {
    fn ldap_settings(&self, config: &DomainConfig) -> Result<Settings> {
        let sealed = config.secrets.get("ldap").and_then(|g| g.get("password"));
        let password = sealed.map(|s| self.open_secret(s)).transpose()?;
        Settings::read(config.options.get("ldap"), password)
    }

    /// Proves a password by a bind, and brings the account up to date.
    ///
    /// # Errors
    /// `Unauthenticated` for whatever is wrong with name or password, `Unavailable` where the directory does not answer.
    pub(crate) async fn prove_elsewhere(&self, at: Elsewhere, password: &str) -> Result<User> {
        // A bind without a password is one as nobody, and succeeds (RFC 4513, 5.1.2).
        if password.is_empty() {
            return Err(unauthorized());
        }
        let settings = Arc::new(self.ldap_settings(&at.config)?);
        let turns = self.directory_turns.of(&at.config.id);
        let asked = async {
            let _turn = turns.acquire().await.map_err(client::silent)?;
            self.ask_directory(&settings, &at, password).await
        };
        tokio::time::timeout(PATIENCE, asked).await.map_err(|_| client::silent("it takes too long"))?
    }

    async fn ask_directory(&self, settings: &Arc<Settings>, at: &Elsewhere, password: &str) -> Result<User> {
        let domain = at.config.id.clone();
        let mut directory = Directory::open(settings).await?;
        let (attribute, value) = match &at.who {
            Who::Name(name) => (&settings.users.name, name),
            Who::Id(id) => (&settings.users.id, id),
        };
        let found = directory.find(&settings.users, attribute, value).await?;
        let [entry] = found.as_slice() else {
            if found.len() > 1 {
                tracing::warn!(%domain, attribute, "several entries of the directory have one name; none of them may log in");
            }
            // It must take as long as where there is one.
            directory.proves(&settings.users.nobody(), password).await?;
            return Err(unauthorized());
        };
        let person = settings.person(entry).ok_or_else(unauthorized)?;
        let id = mirror::public_id(&domain, mirror::USER, &person.local_id);
        // A locked account does not reach the directory, whose own count of failures is not for strangers to drive.
        let (user, record) = {
            let id = UserId::new(id.clone());
            self.read(move |tx| Ok((tx.get::<User>(&id)?, tx.get::<LoginRecord>(&id)?))).await?
        };
        if let Some(user) = &user {
            self.not_locked(user, record.as_ref())?;
        }
        let right = directory.proves(&entry.dn, password).await?;
        if let Some(user) = &user {
            self.note_login(user, record.as_ref(), right).await?;
        }
        if !right || !person.enabled {
            return Err(unauthorized());
        }
        let teams = directory.teams_of(settings, &person).await?;
        directory.close().await;
        let user = self.write(move |tx| mirror::enter(tx, &domain, &person, &teams)).await?;
        user.filter(|u| u.enabled).ok_or_else(unauthorized)
    }

    /// Reads every directory that a domain has, whole.
    ///
    /// # Errors
    /// The store's; what is wrong with a directory is logged, and the others are read.
    pub async fn read_directories(&self) -> Result<()> {
        let all = self.read(|tx| tx.list::<DomainConfig>(&Query::new())).await?;
        for config in all {
            let id = config.id.clone();
            let Some(config) = self.read(move |tx| configured(tx, &id)).await? else { continue };
            let domain = config.id.clone();
            let read = tokio::time::timeout(LONGEST, self.read_directory(config)).await;
            match read.unwrap_or_else(|_| Err(client::silent("it takes too long"))) {
                Ok(changed) if changed > 0 => tracing::info!(%domain, changed, "read the directory"),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%domain, error = error.chain(), "the directory cannot be read; it is tried again")
                }
            }
        }
        Ok(())
    }

    async fn read_directory(&self, config: DomainConfig) -> Result<usize> {
        let settings = Arc::new(self.ldap_settings(&config)?);
        let domain = config.id;
        let mut directory = Directory::open(&settings).await?;
        let entries = directory.all(&settings.users).await?;
        let people: Vec<Person> = entries.iter().filter_map(|e| settings.person(e)).collect();
        let teams = directory.all(&settings.groups).await?;
        let teams: Vec<_> = teams.iter().filter_map(|e| settings.team(e)).collect();
        directory.close().await;
        let (mut changed, mut left) = (0, Vec::new());
        for some in people.chunks(mirror::CHUNK) {
            let (domain, some) = (domain.clone(), some.to_vec());
            let (others, over) = self.write(move |tx| mirror::people(tx, &domain, &some)).await?;
            changed += others;
            left.extend(over);
        }
        let people = Arc::new(people);
        if !left.is_empty() {
            let (domain, people) = (domain.clone(), people.clone());
            changed += self.write(move |tx| mirror::exchange(tx, &domain, &left, &people)).await?;
        }
        let by_dn = mirror::by_name(&domain, &people, settings.members_are_ids);
        for some in teams.chunks(mirror::CHUNK) {
            let (domain, some, by_dn) = (domain.clone(), some.to_vec(), by_dn.clone());
            changed += self.write(move |tx| mirror::teams(tx, &domain, &some, &by_dn)).await?;
        }
        if people.is_empty() {
            // More likely a filter or a right is wrong than that everybody left.
            tracing::warn!(%domain, "the directory shows no users; nobody is disabled for it");
            return Ok(changed);
        }
        let seen = mirror::seen(&domain, &people, &teams);
        Ok(changed + self.write(move |tx| mirror::gone(tx, &domain, &seen)).await?)
    }
}
