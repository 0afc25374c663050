//! What the tables hold of a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{DomainId, GroupId, Result, UserId};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use store::{Query, Tx};

use crate::directory;
use crate::model::{Group, LdapEntry, Membership, User};
use crate::revocations::{self, Of};

pub const USER: &str = "user";
pub const GROUP: &str = "group";
/// Entries written in one transaction.
pub const CHUNK: usize = 200;

/// A user as the directory has it.
#[derive(Debug, Clone)]
pub struct Person {
    pub local_id: String,
    pub name: String,
    pub dn: String,
    pub enabled: bool,
    pub description: Option<String>,
    pub extra: Map<String, Value>,
}

/// A group as the directory has it.
#[derive(Debug, Clone)]
pub struct Team {
    pub local_id: String,
    pub name: String,
    pub dn: String,
    pub description: String,
    pub members: Vec<String>,
}

/// The id Keystone gives an entry (`identity/generator = sha256`): grants that were made there hold here.
pub fn public_id(domain: &DomainId, kind: &str, local_id: &str) -> String {
    let mut hash = Sha256::new();
    for part in [domain.as_str(), kind, local_id] {
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// The name of an entry, so that two ways to write it are equal.
fn plain(dn: &str) -> String {
    let parts = dn.split(',').map(|part| match part.split_once('=') {
        Some((name, value)) => format!("{}={}", name.trim(), value.trim()),
        None => part.trim().to_owned(),
    });
    parts.collect::<Vec<_>>().join(",").to_lowercase()
}

/// Ids of users by what groups call them.
pub fn by_name(domain: &DomainId, people: &[Person], ids: bool) -> Arc<BTreeMap<String, UserId>> {
    let called = |p: &Person| if ids { plain(&p.local_id) } else { plain(&p.dn) };
    Arc::new(people.iter().map(|p| (called(p), UserId::new(public_id(domain, USER, &p.local_id)))).collect())
}

/// Ids of all that was seen.
pub fn seen(domain: &DomainId, people: &[Person], teams: &[Team]) -> BTreeSet<String> {
    let people = people.iter().map(|p| public_id(domain, USER, &p.local_id));
    people.chain(teams.iter().map(|t| public_id(domain, GROUP, &t.local_id))).collect()
}

/// Notes an entry; whether it is new or another.
fn note(tx: &mut Tx<'_>, domain: &DomainId, kind: &str, local_id: &str, dn: &str) -> Result<bool> {
    let id = public_id(domain, kind, local_id);
    match tx.get::<LdapEntry>(&id)? {
        Some(held) if held.dn == dn => Ok(false),
        Some(mut held) => {
            dn.clone_into(&mut held.dn);
            tx.update(&mut held)?;
            Ok(true)
        }
        None => {
            let mut entry = LdapEntry {
                id,
                meta: store::Meta::default(),
                domain_id: domain.clone(),
                kind: kind.to_owned(),
                local_id: local_id.to_owned(),
                dn: dn.to_owned(),
            };
            directory::insert_once(tx, &mut entry)?;
            Ok(true)
        }
    }
}

/// Says that an entry has no account, as its name is another's.
fn passed_over(domain: &DomainId, who: &Person) {
    let dn = &who.dn;
    tracing::warn!(%domain, dn, "another user of the domain has the name of an entry; it is passed over");
}

/// Brings a user up to date; `None` where another user of the domain has the name. Second: whether anything changed.
fn person(tx: &mut Tx<'_>, domain: &DomainId, person: &Person) -> Result<(Option<User>, bool)> {
    let id = UserId::new(public_id(domain, USER, &person.local_id));
    if directory::user_named(tx, domain, &person.name)?.is_some_and(|other| other.id != id) {
        return Ok((None, false));
    }
    let mut changed = note(tx, domain, USER, &person.local_id, &person.dn)?;
    let mut user = match tx.get::<User>(&id)? {
        Some(user) => user,
        None => {
            let mut user = User {
                enabled: person.enabled,
                description: person.description.clone(),
                extra: person.extra.clone(),
                ..User::new(id.clone(), domain.clone(), person.name.clone())
            };
            directory::insert_once(tx, &mut user)?;
            return Ok((Some(user), true));
        }
    };
    let extra_differs = person.extra.iter().any(|(k, v)| user.extra.get(k) != Some(v));
    let same =
        user.name == person.name && user.description == person.description && user.enabled == person.enabled;
    // A password of its own would be a second way in.
    if !same || extra_differs || user.password.is_some() {
        changed = true;
        user.name.clone_from(&person.name);
        user.description.clone_from(&person.description);
        user.extra.extend(person.extra.clone());
        user.password = None;
        enable(tx, &mut user, person.enabled)?;
        tx.update(&mut user)?;
        directory::touch_user(tx, &id)?;
    }
    Ok((Some(user), changed))
}

fn enable(tx: &mut Tx<'_>, user: &mut User, enabled: bool) -> Result<()> {
    if user.enabled && !enabled {
        user.token_generation += 1;
        revocations::note(tx, Of::User(&user.id))?;
    }
    user.enabled = enabled;
    Ok(())
}

/// Brings a group up to date, its members aside.
fn team(tx: &mut Tx<'_>, domain: &DomainId, team: &Team) -> Result<(Option<GroupId>, bool)> {
    let id = GroupId::new(public_id(domain, GROUP, &team.local_id));
    let named = Query::new().eq("domain_id", domain).eq("name", &team.name).limit(1);
    if tx.list::<Group>(&named)?.pop().is_some_and(|other| other.id != id) {
        tracing::warn!(%domain, dn = team.dn, "another group of the domain has the name of an entry; it is passed over");
        return Ok((None, false));
    }
    let changed = note(tx, domain, GROUP, &team.local_id, &team.dn)?;
    match tx.get::<Group>(&id)? {
        Some(mut group) if group.name != team.name || group.description != team.description => {
            group.name.clone_from(&team.name);
            group.description.clone_from(&team.description);
            tx.update(&mut group)?;
            Ok((Some(id), true))
        }
        Some(_) => Ok((Some(id), changed)),
        None => {
            let mut group = Group {
                id: id.clone(),
                meta: store::Meta::default(),
                domain_id: domain.clone(),
                name: team.name.clone(),
                description: team.description.clone(),
                extra: Map::new(),
            };
            directory::insert_once(tx, &mut group)?;
            Ok((Some(id), true))
        }
    }
}

fn add(tx: &mut Tx<'_>, user: &UserId, group: &GroupId) -> Result<()> {
    directory::insert_once(tx, &mut Membership::new(user, group))?;
    directory::touch_user(tx, user)
}

fn take_out(tx: &mut Tx<'_>, membership: &Membership) -> Result<()> {
    tx.delete::<Membership>(&membership.id)?;
    directory::touch_user(tx, &membership.user_id)
}

/// Who has just proved to be somebody, with the groups that somebody is in: those, and no others of the directory.
pub fn enter(tx: &mut Tx<'_>, domain: &DomainId, who: &Person, groups: &[Team]) -> Result<Option<User>> {
    let (Some(user), _) = person(tx, domain, who)? else {
        passed_over(domain, who);
        return Ok(None);
    };
    let mut wanted = BTreeSet::new();
    for one in groups {
        wanted.extend(team(tx, domain, one)?.0);
    }
    let held = tx.list::<Membership>(&Query::new().eq("user_id", &user.id))?;
    for group in &wanted {
        if !held.iter().any(|m| m.group_id == *group) {
            add(tx, &user.id, group)?;
        }
    }
    for membership in held.iter().filter(|m| !wanted.contains(&m.group_id)) {
        if tx.get::<LdapEntry>(&membership.group_id.as_str().to_owned())?.is_some() {
            take_out(tx, membership)?;
        }
    }
    Ok(Some(user))
}

/// Brings users up to date; how many were not, and those whose name another has.
pub fn people(tx: &mut Tx<'_>, domain: &DomainId, some: &[Person]) -> Result<(usize, Vec<Person>)> {
    let (mut changed, mut left) = (0, Vec::new());
    for one in some {
        match person(tx, domain, one)? {
            (Some(_), other) => changed += usize::from(other),
            (None, _) => left.push(one.clone()),
        }
    }
    Ok((changed, left))
}

/// Brings users up to date whose names others had: who the directory calls otherwise by now gives a name up, so that names
/// can be exchanged. How many were not up to date.
pub fn exchange(tx: &mut Tx<'_>, domain: &DomainId, left: &[Person], people: &[Person]) -> Result<usize> {
    let by_id: BTreeMap<UserId, &Person> =
        people.iter().map(|p| (UserId::new(public_id(domain, USER, &p.local_id)), p)).collect();
    let mut concerned: BTreeMap<&str, &Person> = left.iter().map(|p| (p.local_id.as_str(), p)).collect();
    for one in left {
        let Some(mut holder) = directory::user_named(tx, domain, &one.name)? else { continue };
        let Some(now) = by_id.get(&holder.id).filter(|now| now.name != one.name) else { continue };
        holder.name = holder.id.to_string();
        tx.update(&mut holder)?;
        concerned.insert(&now.local_id, now);
    }
    let mut changed = 0;
    for one in concerned.into_values() {
        let (user, other) = person(tx, domain, one)?;
        if user.is_none() {
            passed_over(domain, one);
        }
        changed += usize::from(other);
    }
    Ok(changed)
}

/// Brings groups and who is in them up to date; how many were not.
pub fn teams(
    tx: &mut Tx<'_>,
    domain: &DomainId,
    some: &[Team],
    by_name: &BTreeMap<String, UserId>,
) -> Result<usize> {
    let mut changed = 0;
    for one in some {
        let (Some(group), mut other) = team(tx, domain, one)? else { continue };
        let wanted: BTreeSet<&UserId> = one.members.iter().filter_map(|m| by_name.get(&plain(m))).collect();
        let held = tx.list::<Membership>(&Query::new().eq("group_id", &group))?;
        let known: BTreeSet<&UserId> = held.iter().map(|m| &m.user_id).collect();
        for user in wanted.difference(&known) {
            // One that was passed over is in no group either.
            if tx.get::<User>(user)?.is_some() {
                add(tx, user, &group)?;
                other = true;
            }
        }
        for membership in held.iter().filter(|m| !wanted.contains(&m.user_id)) {
            take_out(tx, membership)?;
            other = true;
        }
        changed += usize::from(other);
    }
    Ok(changed)
}

/// Disables who is no longer in the directory, and empties groups that are not; how many.
pub fn gone(tx: &mut Tx<'_>, domain: &DomainId, seen: &BTreeSet<String>) -> Result<usize> {
    let mut changed = 0;
    for entry in tx.list::<LdapEntry>(&Query::new().eq("domain_id", domain))? {
        if seen.contains(&entry.id) {
            continue;
        }
        if entry.kind == GROUP {
            let members = tx.list::<Membership>(&Query::new().eq("group_id", &entry.id))?;
            for membership in &members {
                take_out(tx, membership)?;
            }
            changed += usize::from(!members.is_empty());
            continue;
        }
        let id = UserId::new(entry.id.clone());
        let Some(mut user) = tx.get::<User>(&id)?.filter(|u| u.enabled) else { continue };
        enable(tx, &mut user, false)?;
        tx.update(&mut user)?;
        directory::touch_user(tx, &id)?;
        changed += 1;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_keystones() {
        // echo -n defaultusercn1 | sha256sum, as its generator joins domain_id, entity_type and local_id.
        let id = public_id(&DomainId::new("default"), USER, "cn1");
        assert_eq!(id, "6bd84454395df77a848b4ae788afbf82c3e5069ba8e550a964cf059132024274");
        assert_eq!(plain("CN=Ann, OU = People,DC=b"), plain("cn=ann,ou=people,dc=b"));
    }
}
