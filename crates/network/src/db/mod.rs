//! What happens inside a transaction. Every function here takes the transaction and leaves it consistent: addresses
//! with their ports, quotas with what they pay for, tombstones with what is removed.

pub mod groups;
pub mod ipam;
pub mod networks;
pub mod ports;
pub mod quota;
pub mod routing;

use std::collections::BTreeSet;

use base::{NetworkId, ProjectId, Result};
use contract::net::Key;
use store::{Query, Tx};

use crate::ids::{TombstoneKey, key_text};
use crate::model::{RbacPolicy, Tombstone};

/// The outbox kind of everything the backend shall know.
pub const KIND: &str = "net";

/// Has the backend learn of this item after the commit.
pub fn wake(tx: &mut Tx<'_>, key: Key) -> Result<()> {
    tx.wake(KIND, key_text(key));
    Ok(())
}

/// Has the backend forget this item after the commit, whatever happens in between.
pub fn bury(tx: &mut Tx<'_>, key: Key) -> Result<()> {
    let id = TombstoneKey::of(key);
    if tx.get::<Tombstone>(&id)?.is_none() {
        let mut stone = Tombstone { id, meta: store::Meta::default(), reason: String::new() };
        tx.insert(&mut stone)?;
    }
    wake(tx, key)
}

/// Networks another project opened to this one by `action`.
pub fn opened_to(tx: &mut Tx<'_>, project: Option<&ProjectId>, action: &str) -> Result<Vec<NetworkId>> {
    let mut targets = vec!["*".to_owned()];
    targets.extend(project.map(|p| p.as_str().to_owned()));
    let query = Query::new().is_in("target_project", &targets).eq("action", action);
    Ok(tx.list::<RbacPolicy>(&query)?.into_iter().map(|p| p.object_id).collect())
}

/// For what this network is opened to a project (actions of RBAC policies).
pub fn openings(tx: &mut Tx<'_>, project: Option<&ProjectId>, net: NetworkId) -> Result<BTreeSet<String>> {
    let mut targets = vec!["*".to_owned()];
    targets.extend(project.map(|p| p.as_str().to_owned()));
    let query = Query::new().eq("object_id", net).is_in("target_project", &targets);
    Ok(tx.list::<RbacPolicy>(&query)?.into_iter().map(|p| p.action).collect())
}
