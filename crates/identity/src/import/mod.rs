//! Takes over an existing Keystone: its database, as a dump.
//!
//! Ids are kept, so that what other services know of users and projects stays true; passwords are kept as the hashes they
//! are. What is there already (by id) is left alone, so that an import can be run again; a role whose name is there
//! already is joined with it. Everything else that could not be taken is in the [`Report`], with the reason.
//!
//! Start reading at [`import`].

mod convert;
pub mod dump;

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use base::{Kind, Result};
use serde::Serialize;
use store::{Query, Resource, Store};

use crate::directory;
use crate::model::{
    AccessRule, ApplicationCredential, Assignment, Domain, Endpoint, Group, ImpliedRole, Membership, Project,
    Region, Role, Service, User,
};
use convert::Keystone;
use dump::Dump;

/// Names of the tables that are read from a dump.
pub fn tables() -> Vec<&'static str> {
    convert::tables()
}

/// Rows of a transaction.
const BATCH: usize = 1000;
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

/// Takes what is in `dump` into `store`; nothing is written where `dry` says so.
///
/// # Errors
/// The store's.
pub async fn import(store: &Store, dump: &Dump, dry: bool) -> Result<Report> {
    let roles = store.read(|tx| tx.list::<Role>(&Query::new())).await?;
    let known: BTreeMap<(String, String), String> =
        roles.into_iter().map(|r| ((r.domain_key, r.name), r.id.as_str().to_owned())).collect();
    let keystone = Keystone::read(dump, &known);
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
    writer.put::<Membership>("group memberships", keystone.memberships).await?;
    writer.put::<Assignment>("role assignments", keystone.assignments).await?;
    writer.put::<AccessRule>("access rules", keystone.access_rules).await?;
    writer.put::<ApplicationCredential>("application credentials", keystone.credentials).await?;
    if !dry {
        store.write(directory::touch_all).await?;
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
        let (old, new): (Vec<R>, Vec<R>) =
            items.into_iter().partition(|i| there.contains(&i.id().to_string()));
        if !old.is_empty() {
            self.report.there.insert(kind, old.len());
        }
        if self.dry {
            self.report.taken.insert(kind, new.len());
            return Ok(());
        }
        let mut taken = 0;
        for batch in new.chunks(BATCH) {
            match self.write(batch.to_vec()).await {
                Ok(()) => taken += batch.len(),
                // One of them is like another: find out which.
                Err(error) if error.kind() == Kind::Conflict => {
                    for item in batch {
                        match self.write(vec![item.clone()]).await {
                            Ok(()) => taken += 1,
                            Err(error) if error.kind() == Kind::Conflict => {
                                self.report.leave(kind, &item.id().to_string(), error.public());
                            }
                            Err(error) => return Err(error),
                        }
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
        let work =
            move |tx: &mut store::Tx<'_>| items.iter().try_for_each(|item| tx.insert(&mut item.clone()));
        self.store.write(work).await
    }
}
