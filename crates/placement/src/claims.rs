//! Claims: the only place where `Provider::used` and `Consumer::claims` change.

use std::collections::{BTreeMap, BTreeSet};

use base::{Error, ProjectId, ResourceProviderId, Result, UserId};
use store::Tx;
use uuid::Uuid;

use crate::logic::fits;
use crate::model::{Amounts, Consumer, Provider};

/// The claims a consumer shall have.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub consumer: Uuid,
    pub project: ProjectId,
    pub user: UserId,
    pub consumer_type: String,
    pub claims: BTreeMap<ResourceProviderId, Amounts>,
}

/// Makes the consumer's claims exactly `wanted`; none at all removes the consumer. The same claims again change nothing.
///
/// # Errors
/// `BadRequest` for an unknown provider, `Conflict` where a class is not offered or there is no room.
pub(crate) fn set(tx: &mut Tx<'_>, wanted: &Wanted) -> Result<()> {
    let held = tx.get::<Consumer>(&wanted.consumer)?;
    if let Some(held) = &held
        && held.claims == wanted.claims
        && held.project_id == wanted.project
        && held.user_id == wanted.user
        && held.consumer_type == wanted.consumer_type
    {
        return Ok(());
    }
    let before = held.as_ref().map(|h| h.claims.clone()).unwrap_or_default();
    let touched: BTreeSet<ResourceProviderId> = before.keys().chain(wanted.claims.keys()).copied().collect();
    for id in touched {
        let none = Amounts::new();
        let (old, new) = (before.get(&id).unwrap_or(&none), wanted.claims.get(&id).unwrap_or(&none));
        if old != new {
            shift(tx, id, old, new)?;
        }
    }
    match held {
        _ if wanted.claims.is_empty() => {
            tx.delete::<Consumer>(&wanted.consumer)?;
        }
        Some(mut held) => {
            held.claims.clone_from(&wanted.claims);
            held.project_id = wanted.project.clone();
            held.user_id = wanted.user.clone();
            held.consumer_type.clone_from(&wanted.consumer_type);
            held.epoch += 1;
            tx.update(&mut held)?;
        }
        None => tx.insert(&mut Consumer {
            id: wanted.consumer,
            meta: store::Meta::default(),
            project_id: wanted.project.clone(),
            user_id: wanted.user.clone(),
            consumer_type: wanted.consumer_type.clone(),
            epoch: 1,
            claims: wanted.claims.clone(),
        })?,
    }
    Ok(())
}

/// Replaces `old` by `new` at one provider.
fn shift(tx: &mut Tx<'_>, id: ResourceProviderId, old: &Amounts, new: &Amounts) -> Result<()> {
    let Some(mut provider) = tx.get::<Provider>(&id)? else {
        if new.is_empty() {
            return Ok(());
        }
        return Err(Error::bad_request(format!(
            "Allocation for resource provider '{id}' that does not exist."
        )));
    };
    for (class, amount) in old {
        if let Some(used) = provider.used.get_mut(class) {
            *used = used.saturating_sub(*amount);
        }
    }
    for (class, amount) in new {
        let used = provider.used.entry(class.clone()).or_default();
        fits(&provider.name, class, provider.inventories.get(class), *used, *amount)?;
        *used += amount;
    }
    provider.used.retain(|_, used| *used > 0);
    provider.epoch += 1;
    tx.update_status(&mut provider)
}

/// Removes all claims of a consumer; `false` where it had none.
pub(crate) fn release(tx: &mut Tx<'_>, consumer: Uuid) -> Result<bool> {
    let Some(held) = tx.get::<Consumer>(&consumer)? else { return Ok(false) };
    for (id, amounts) in &held.claims {
        shift(tx, *id, amounts, &Amounts::new())?;
    }
    tx.delete::<Consumer>(&consumer)
}
