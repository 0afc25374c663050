//! Takes over an existing Keystone: its database, as a dump.
//!
//! Ids are kept, so that what other services know of users and projects stays true; passwords are kept as the hashes they
//! are. What is there already (by id) is left alone, so that an import can be run again; a role whose name is there
//! already is joined with it. Everything else that could not be taken is in the [`Report`], with the reason.
//!
//! Start reading at [`import`].

mod convert;
mod directories;
pub mod dump;
mod extensions;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use base::{Clock, Entropy, Error, Kind, Result, Timestamp};
use fernet::Fernet;
use serde::Serialize;
use store::{Query, Resource, Store};

use crate::directory;
use crate::federation::model::{IdentityProvider, Mapping, Protocol, RemoteId, ServiceProvider};
use crate::keys::{Keys, Repository, fingerprint};
use crate::model::{
    AccessRule, AccessToken, ApplicationCredential, Assignment, Consumer, Credential, Domain, DomainConfig,
    Endpoint, EndpointFilter, EndpointGroup, Group, ImpliedRole, LdapEntry, Limit, Membership,
    PolicyAssociation, PolicyText, Project, Region, RegisteredLimit, Role, Service, Trust, User,
};
use convert::Keystone;
use dump::Dump;

/// Names of the tables that are read from a dump.
pub fn tables() -> Vec<&'static str> {
    convert::tables()
}

/// Rows of a transaction. Ids are random, so that each of many small ones would write most pages of the indexes again.
const BATCH: usize = 50_000;
/// Rows of a statement.
const ROWS: usize = 1000;
/// With what Keystone encrypts credentials where nobody made a key (32 zero bytes).
const NULL_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// Most reasons of a kind that are told one by one.
const TOLD: usize = 1000;

/// What became of the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many of each kind were taken.
    pub taken: BTreeMap<&'static str, usize>,
    /// How many of each kind were there already.
    pub there: BTreeMap<&'static str, usize>,
    /// How many of each kind were not taken.
    pub left: BTreeMap<&'static str, usize>,
    /// Which, and why.
    pub reasons: Vec<Reason>,
}

/// Why something was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What it is.
    pub kind: &'static str,
    /// Its id.
    pub id: String,
    /// Why.
    pub why: String,
}

impl Report {
    pub(crate) fn leave(&mut self, kind: &'static str, id: &str, why: impl Into<String>) {
        let count = self.left.entry(kind).or_default();
        *count += 1;
        if *count <= TOLD {
            self.reasons.push(Reason { kind, id: id.to_owned(), why: why.into() });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: BTreeMap<&str, ()> =
            self.taken.keys().chain(self.there.keys()).chain(self.left.keys()).map(|k| (*k, ())).collect();
        writeln!(f, "{:28} {:>9} {:>9} {:>9}", "", "taken", "there", "left")?;
        for kind in kinds.keys() {
            let of = |map: &BTreeMap<&str, usize>| map.get(kind).copied().unwrap_or(0);
            writeln!(f, "{kind:28} {:>9} {:>9} {:>9}", of(&self.taken), of(&self.there), of(&self.left))?;
        }
        for Reason { kind, id, why } in &self.reasons {
            writeln!(f, "left: {kind} {id}: {why}")?;
        }
        Ok(())
    }
}

/// The keys that stored secrets are encrypted with: there, and here.
#[derive(Debug)]
pub struct Secrets {
    there: Keys,
    here: Keys,
    now: Timestamp,
}

impl Secrets {
    /// `there`: Keystone's `[credential] key_repository`; `here`: that of this cloud, made where it is not there.
    ///
    /// # Errors
    /// `BadRequest` where there are no keys, or a file is no key or open to others; `Internal` where they cannot be read.
    pub fn open(there: &Path, here: Repository, entropy: Entropy, clock: &dyn Clock) -> Result<Self> {
        if fingerprint(there).map_or(0, |keys| keys.len()) == 0 {
            return Err(Error::bad_request(format!("{}: no keys are there", there.display())));
        }
        let there = Keys::open(Repository::Directory(there.to_owned()), 3, entropy.clone())?;
        Ok(Secrets { there, here: Keys::open(here, 3, entropy)?, now: clock.now() })
    }

    /// A secret that Keystone keeps in clear, sealed with the key of this cloud.
    fn seal(&self, plain: &str) -> String {
        self.here.seal_at_rest(plain.as_bytes(), self.now)
    }

    /// A secret of Keystone's sealed with the key of this cloud.
    fn seal_again(&self, encrypted: &str) -> Option<String> {
        let nobody = || Fernet::new(NULL_KEY)?.decrypt(encrypted).ok();
        let plain = self.there.open_at_rest(encrypted, self.now).or_else(nobody)?;
        Some(self.here.seal_at_rest(&plain, self.now))
    }
}

/// Takes what is in `dump` into `store`; nothing is written where `dry` says so. Without `secrets` credentials are left.
///
/// # Errors
/// The store's.
pub async fn import(store: &Store, dump: &Dump, secrets: Option<&Secrets>, dry: bool) -> Result<Report> {
    let roles = store.read(|tx| tx.list::<Role>(&Query::new())).await?;
    let known: BTreeMap<(String, String), String> =
        roles.into_iter().map(|r| ((r.domain_key, r.name), r.id.as_str().to_owned())).collect();
    let keystone = Keystone::read(dump, &known, secrets);
    let mut writer = Writer { store, dry, report: keystone.report };
    writer.put::<Region>("regions", keystone.regions).await?;
    writer.put::<Service>("services", keystone.services).await?;
    writer.put::<Endpoint>("endpoints", keystone.endpoints).await?;
    writer.put::<Domain>("domains", keystone.domains).await?;
    writer.put::<Project>("projects", keystone.projects).await?;
    writer.put::<Role>("roles", keystone.roles).await?;
    writer.put::<ImpliedRole>("implied roles", keystone.implied).await?;
    writer.put::<User>("users", keystone.users).await?;
    writer.put::<Group>("groups", keystone.groups).await?;
    writer.put::<LdapEntry>("directory entries", keystone.entries).await?;
    writer.put::<DomainConfig>("domain configurations", keystone.configurations).await?;
    writer.put::<Membership>("group memberships", keystone.memberships).await?;
    writer.put::<Assignment>("role assignments", keystone.assignments).await?;
    writer.put::<AccessRule>("access rules", keystone.access_rules).await?;
    writer.put::<ApplicationCredential>("application credentials", keystone.credentials).await?;
    let more = keystone.more;
    writer.put::<Trust>("trusts", more.trusts).await?;
    writer.put::<Credential>("credentials", more.secrets).await?;
    writer.put::<Consumer>("consumers", more.consumers).await?;
    writer.put::<AccessToken>("access tokens", more.access_tokens).await?;
    writer.put::<RegisteredLimit>("registered limits", more.registered_limits).await?;
    writer.put::<Limit>("limits", more.limits).await?;
    writer.put::<PolicyText>("policies", more.policies).await?;
    writer.put::<PolicyAssociation>("policy associations", more.associations).await?;
    writer.put::<EndpointGroup>("endpoint groups", more.endpoint_groups).await?;
    writer.put::<EndpointFilter>("endpoint filters", more.endpoint_filters).await?;
    writer.put::<IdentityProvider>("identity providers", more.providers).await?;
    writer.put::<RemoteId>("remote ids", more.remote_ids).await?;
    writer.put::<Mapping>("mappings", more.mappings).await?;
    writer.put::<Protocol>("protocols", more.protocols).await?;
    writer.put::<ServiceProvider>("service providers", more.service_providers).await?;
    if !dry {
        store.write(directory::touch_all).await?;
        store.vacuum().await;
    }
    Ok(writer.report)
}

struct Writer<'a> {
    store: &'a Store,
    dry: bool,
    report: Report,
}

impl Writer<'_> {
    async fn put<R: Resource + Clone + Sync>(&mut self, kind: &'static str, items: Vec<R>) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let there = self.store.read(|tx| tx.list_ids::<R>(&Query::new())).await?;
        let there: HashSet<String> = there.into_iter().collect();
        let (old, mut new): (Vec<R>, Vec<R>) =
            items.into_iter().partition(|i| there.contains(&i.id().to_string()));
        if !old.is_empty() {
            self.report.there.insert(kind, old.len());
        }
        if self.dry {
            self.report.taken.insert(kind, new.len());
            return Ok(());
        }
        // In the order of the largest index.
        new.sort_by_cached_key(|item| item.id().to_string());
        let mut taken = 0;
        let mut open: Vec<Vec<R>> = new.chunks(BATCH).rev().map(<[R]>::to_vec).collect();
        while let Some(mut batch) = open.pop() {
            match self.write(batch.clone()).await {
                Ok(()) => taken += batch.len(),
                // One of them is like another: find out which, by halves.
                Err(error) if error.kind() == Kind::Conflict => {
                    if let [item] = batch.as_slice() {
                        self.report.leave(kind, &item.id().to_string(), error.public());
                    } else {
                        let rest = batch.split_off(batch.len() / 2);
                        open.extend([rest, batch]);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if taken > 0 {
            self.report.taken.insert(kind, taken);
        }
        Ok(())
    }

    async fn write<R: Resource + Clone + Sync>(&self, items: Vec<R>) -> Result<()> {
        let work = move |tx: &mut store::Tx<'_>| {
            items.chunks(ROWS).try_for_each(|part| tx.insert_many(&mut part.to_vec()))
        };
        self.store.write(work).await
    }
}
