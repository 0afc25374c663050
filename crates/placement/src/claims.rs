//! Claims: the only place where `Provider::used` and `Consumer::claims` change.

use std::collections::{BTreeMap, BTreeSet};

use base::{Error, ProjectId, ResourceProviderId, Result, UserId};
use store::{Query, Tx};
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

/// Consumers and providers of a transaction, changed in memory and written once.
struct Books {
    consumers: BTreeMap<Uuid, Consumer>,
    providers: BTreeMap<ResourceProviderId, Provider>,
    /// Consumers that have a row.
    stored: BTreeSet<Uuid>,
    changed: BTreeSet<Uuid>,
    shifted: BTreeSet<ResourceProviderId>,
}

impl Books {
    fn open(tx: &mut Tx<'_>, wanted: &[Wanted]) -> Result<Self> {
        let consumers = tx.list::<Consumer>(&Query::new().is_in("id", wanted.iter().map(|w| w.consumer)))?;
        let consumers: BTreeMap<Uuid, Consumer> = consumers.into_iter().map(|c| (c.id, c)).collect();
        let held = consumers.values().flat_map(|c| c.claims.keys());
        let touched: BTreeSet<_> = held.chain(wanted.iter().flat_map(|w| w.claims.keys())).copied().collect();
        let providers = tx.list::<Provider>(&Query::new().is_in("id", &touched))?;
        Ok(Books {
            stored: consumers.keys().copied().collect(),
            consumers,
            providers: providers.into_iter().map(|p| (p.id, p)).collect(),
            changed: BTreeSet::new(),
            shifted: BTreeSet::new(),
        })
    }

    /// Makes a consumer's claims exactly `wanted`, or changes nothing.
    fn set(&mut self, wanted: &Wanted) -> Result<()> {
        let held = self.consumers.get(&wanted.consumer);
        if let Some(held) = held
            && held.claims == wanted.claims
            && held.project_id == wanted.project
            && held.user_id == wanted.user
            && held.consumer_type == wanted.consumer_type
        {
            return Ok(());
        }
        let before = held.map(|h| h.claims.clone()).unwrap_or_default();
        let touched: BTreeSet<ResourceProviderId> =
            before.keys().chain(wanted.claims.keys()).copied().collect();
        let none = Amounts::new();
        let mut shifted = Vec::new();
        for id in touched {
            let (old, new) = (before.get(&id).unwrap_or(&none), wanted.claims.get(&id).unwrap_or(&none));
            if old != new {
                shifted.extend(shift(self.providers.get(&id), id, old, new)?.map(|used| (id, used)));
            }
        }
        for (id, used) in shifted {
            let Some(provider) = self.providers.get_mut(&id) else { continue };
            provider.used = used;
            provider.epoch += 1;
            self.shifted.insert(id);
        }
        self.changed.insert(wanted.consumer);
        if wanted.claims.is_empty() {
            self.consumers.remove(&wanted.consumer);
            return Ok(());
        }
        let consumer = self.consumers.entry(wanted.consumer).or_insert_with(|| Consumer {
            id: wanted.consumer,
            meta: store::Meta::default(),
            project_id: wanted.project.clone(),
            user_id: wanted.user.clone(),
            consumer_type: wanted.consumer_type.clone(),
            epoch: 0,
            claims: BTreeMap::new(),
        });
        consumer.claims.clone_from(&wanted.claims);
        consumer.project_id = wanted.project.clone();
        consumer.user_id = wanted.user.clone();
        consumer.consumer_type.clone_from(&wanted.consumer_type);
        consumer.epoch += 1;
        Ok(())
    }

    fn close(mut self, tx: &mut Tx<'_>) -> Result<()> {
        let (mut new, mut held, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for id in self.changed {
            match (self.consumers.remove(&id), self.stored.contains(&id)) {
                (Some(consumer), true) => held.push(consumer),
                (Some(consumer), false) => new.push(consumer),
                (None, true) => gone.push(id),
                (None, false) => {}
            }
        }
        let mut providers: Vec<Provider> =
            self.shifted.iter().filter_map(|id| self.providers.remove(id)).collect();
        tx.update_status_many(&mut providers)?;
        tx.insert_many(&mut new)?;
        tx.update_many(&mut held)?;
        if !gone.is_empty() {
            tx.delete_where::<Consumer>(&Query::new().is_in("id", gone))?;
        }
        Ok(())
    }
}

/// Makes each consumer's claims exactly `wanted`, each for itself; none at all removes the consumer. The same claims
/// again change nothing.
///
/// # Errors
/// From the database; of each: `BadRequest` for an unknown provider, `Conflict` where a class is not offered or there is
/// no room.
pub(crate) fn set_many(tx: &mut Tx<'_>, wanted: &[Wanted]) -> Result<Vec<Result<()>>> {
    let mut books = Books::open(tx, wanted)?;
    let told = wanted.iter().map(|w| books.set(w)).collect();
    books.close(tx)?;
    Ok(told)
}

/// The same for one.
///
/// # Errors
/// As [`set_many`].
pub(crate) fn set(tx: &mut Tx<'_>, wanted: &Wanted) -> Result<()> {
    set_many(tx, std::slice::from_ref(wanted))?.into_iter().collect()
}

/// What is used of a provider once `old` is replaced by `new`; `None` where a provider that is gone is given back.
fn shift(
    provider: Option<&Provider>,
    id: ResourceProviderId,
    old: &Amounts,
    new: &Amounts,
) -> Result<Option<Amounts>> {
    let Some(provider) = provider else {
        if new.is_empty() {
            return Ok(None);
        }
        return Err(Error::bad_request(format!(
            "Allocation for resource provider '{id}' that does not exist."
        )));
    };
    let mut all = provider.used.clone();
    for (class, amount) in old {
        if let Some(used) = all.get_mut(class) {
            *used = used.saturating_sub(*amount);
        }
    }
    for (class, amount) in new {
        let used = all.entry(class.clone()).or_default();
        fits(&provider.name, class, provider.inventories.get(class), *used, *amount)?;
        *used += amount;
    }
    all.retain(|_, used| *used > 0);
    Ok(Some(all))
}

/// What the second of each pair has becomes what the first has, in place of what that had. Nothing where it has nothing.
pub(crate) fn take_over(tx: &mut Tx<'_>, pairs: &[(Uuid, Uuid)]) -> Result<()> {
    let held = tx.list::<Consumer>(&Query::new().is_in("id", pairs.iter().map(|(_, from)| from)))?;
    let mut wanted = Vec::new();
    for (consumer, from) in pairs {
        let Some(held) = held.iter().find(|c| c.id == *from) else { continue };
        let claims = |consumer, claims| Wanted {
            consumer,
            project: held.project_id.clone(),
            user: held.user_id.clone(),
            consumer_type: held.consumer_type.clone(),
            claims,
        };
        wanted.push(claims(*from, BTreeMap::new()));
        wanted.push(claims(*consumer, held.claims.clone()));
    }
    set_many(tx, &wanted)?.into_iter().collect()
}

/// Removes all claims of a consumer; `false` where it had none.
pub(crate) fn release(tx: &mut Tx<'_>, consumer: Uuid) -> Result<bool> {
    let Some(held) = tx.get::<Consumer>(&consumer)? else { return Ok(false) };
    let nothing = Wanted {
        consumer,
        project: held.project_id,
        user: held.user_id,
        consumer_type: held.consumer_type,
        claims: BTreeMap::new(),
    };
    set(tx, &nothing)?;
    Ok(true)
}
