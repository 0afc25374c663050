//! What a federated login leaves behind: the user's row, what is claimed, and projects that the mapping asks for.

use std::collections::BTreeMap;

use base::{DomainId, Error, GroupId, ProjectId, Result, RoleId, Timestamp, UserId};
use federation::mapping::{DomainRef, Mapped, MappedProject, MappedUser, UserKind};
use serde_json::{Map, json};
use store::{Query, Tx};

use super::model::{ClaimedRoles, FederatedUser, IdentityProvider};
use crate::directory;
use crate::model::{Domain, Group, Project, User};
use crate::state::State;

/// Most projects one login may have made.
const MOST_PROJECTS: usize = 100;

/// A login whose token was verified and mapped.
#[derive(Debug, Clone)]
pub struct Login {
    /// The identity provider.
    pub provider: IdentityProvider,
    /// The name of the protocol.
    pub protocol: String,
    /// What the mapping made of the claims.
    pub mapped: Mapped,
    /// When they were claimed.
    pub claimed_at: Timestamp,
    /// Until when they hold.
    pub valid_until: Timestamp,
}

/// Writes what was claimed; the user, and the ids of the groups.
///
/// # Errors
/// `Unauthenticated` with the reason for the log.
pub async fn enter(state: &State, login: Login) -> Result<(User, Vec<String>)> {
    if login.mapped.projects.len() > MOST_PROJECTS {
        return Err(refused("the mapping names too many projects"));
    }
    if login.mapped.user.kind == UserKind::Local {
        let user = state.read(move |tx| local(tx, &login.mapped.user)).await?;
        return Ok((user, Vec::new()));
    }
    let fresh: Vec<ProjectId> =
        login.mapped.projects.iter().map(|_| ProjectId::random(&state.entropy)).collect();
    state.write(move |tx| write(tx, &login, &fresh)).await
}

fn refused(why: &str) -> Error {
    Error::unauthenticated(why)
}

fn find_domain(tx: &mut Tx<'_>, domain: &DomainRef) -> Result<Option<Domain>> {
    match domain {
        DomainRef::Id(id) => tx.get::<Domain>(&DomainId::new(id.clone())),
        DomainRef::Name(name) => directory::domain_named(tx, name),
    }
}

/// The user of this cloud that a mapping names: such a one has the rights the tables give, and no others.
fn local(tx: &mut Tx<'_>, mapped: &MappedUser) -> Result<User> {
    let user = match (&mapped.id, &mapped.name, mapped.domain.reference()) {
        (Some(id), _, _) => tx.get::<User>(&UserId::new(id.clone()))?,
        (None, Some(name), Some(domain)) => match find_domain(tx, &domain)? {
            Some(domain) => directory::user_named(tx, &domain.id, name)?,
            None => None,
        },
        _ => return Err(refused("the mapping names a local user without a domain")),
    };
    let user = user.filter(|u| u.enabled).ok_or_else(|| refused("there is no such local user"))?;
    let domain = tx.get::<Domain>(&user.domain_id)?;
    domain.filter(|d| d.enabled).ok_or_else(|| refused("the domain of the local user is disabled"))?;
    Ok(user)
}

fn write(tx: &mut Tx<'_>, login: &Login, fresh: &[ProjectId]) -> Result<(User, Vec<String>)> {
    let Login { provider, mapped, .. } = login;
    let unique_id = mapped.user.id.clone().or_else(|| mapped.user.name.clone());
    let unique_id =
        unique_id.filter(|u| u.len() <= 255).ok_or_else(|| refused("the user's id is too long"))?;
    let id = FederatedUser::id_of(&provider.id, &unique_id);
    let user = shadow(tx, &id, login, &unique_id)?;
    if !user.enabled {
        return Err(refused("the user is disabled"));
    }
    let groups = groups(tx, mapped)?;
    let grants = grants(tx, provider, &mapped.projects, fresh)?;
    let claims = match tx.get::<FederatedUser>(&id)? {
        None => {
            let mut claims = FederatedUser {
                id: id.clone(),
                meta: store::Meta::default(),
                idp_id: provider.id.clone(),
                protocol: login.protocol.clone(),
                unique_id,
                groups,
                grants,
                claimed_at: login.claimed_at,
                valid_until: login.valid_until,
            };
            directory::insert_once(tx, &mut claims)?;
            directory::touch_user(tx, &id)?;
            claims
        }
        Some(held) if held.idp_id != provider.id || held.unique_id != unique_id => {
            return Err(refused("the user's id is another user's"));
        }
        // An older token still says who its bearer is, and that the account lives; what the user has is said by the newest.
        Some(mut held) if held.claimed_at > login.claimed_at => {
            if held.valid_until < login.valid_until {
                held.valid_until = login.valid_until;
                tx.update(&mut held)?;
                directory::touch_user(tx, &id)?;
            }
            held
        }
        Some(mut held) => {
            let same =
                held.groups == groups && held.grants == grants && held.valid_until <= login.valid_until;
            held.protocol.clone_from(&login.protocol);
            (held.groups, held.grants) = (groups, grants);
            (held.claimed_at, held.valid_until) = (login.claimed_at, login.valid_until);
            tx.update(&mut held)?;
            if !same {
                directory::touch_user(tx, &id)?;
            }
            held
        }
    };
    Ok((user, claims.groups.iter().map(|g| g.as_str().to_owned()).collect()))
}

/// The user's row, made or brought up to date. A name that another user of the domain has gets a suffix: nobody becomes
/// another by being called like one.
fn shadow(tx: &mut Tx<'_>, id: &UserId, login: &Login, unique_id: &str) -> Result<User> {
    let (provider, mapped) = (&login.provider, &login.mapped.user);
    let shown: String = mapped.name.as_deref().unwrap_or(unique_id).trim().chars().take(200).collect();
    let taken = directory::user_named(tx, &provider.domain_id, &shown)?.is_some_and(|other| other.id != *id);
    let suffix: String = id.as_str().chars().take(8).collect();
    let name = if taken || shown.is_empty() { format!("{shown}#{suffix}") } else { shown };
    let mut extra = Map::new();
    if let Some(email) = &mapped.email {
        extra.insert("email".into(), json!(email));
    }
    let protocols = json!([{"protocol_id": login.protocol, "unique_id": unique_id}]);
    extra.insert("federated".into(), json!([{"idp_id": provider.id, "protocols": protocols}]));
    match tx.get::<User>(id)? {
        Some(mut user) => {
            if user.name != name || extra.iter().any(|(k, v)| user.extra.get(k) != Some(v)) {
                user.name = name;
                user.extra.extend(extra);
                tx.update(&mut user)?;
                directory::touch_user(tx, id)?;
            }
            Ok(user)
        }
        None => {
            let mut user = User { extra, ..User::new(id.clone(), provider.domain_id.clone(), name) };
            directory::insert_once(tx, &mut user)?;
            Ok(user)
        }
    }
}

fn groups(tx: &mut Tx<'_>, mapped: &Mapped) -> Result<Vec<GroupId>> {
    let wanted: Vec<GroupId> = mapped.group_ids.iter().map(|g| GroupId::new(g.clone())).collect();
    let mut found: Vec<GroupId> =
        tx.list::<Group>(&Query::new().is_in("id", &wanted))?.into_iter().map(|g| g.id).collect();
    if let Some(absent) = wanted.iter().find(|w| !found.contains(w)) {
        return Err(refused(&format!("the mapping names a group there is not: {absent}")));
    }
    for (domain, name) in &mapped.groups {
        let Some(domain) = find_domain(tx, domain)? else { continue };
        // As in Keystone, names of groups there are not are passed over: an identity provider has more groups than we do.
        let query = Query::new().eq("domain_id", &domain.id).eq("name", name).limit(1);
        found.extend(tx.list::<Group>(&query)?.pop().map(|g| g.id));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn grants(
    tx: &mut Tx<'_>,
    provider: &IdentityProvider,
    projects: &[MappedProject],
    fresh: &[ProjectId],
) -> Result<Vec<ClaimedRoles>> {
    let mut all: BTreeMap<ProjectId, Vec<RoleId>> = BTreeMap::new();
    for (wanted, id) in projects.iter().zip(fresh) {
        let domain = match &wanted.domain {
            Some(domain) => match find_domain(tx, domain)? {
                Some(domain) => domain.id,
                None => return Err(refused("the mapping names a domain there is not")),
            },
            None => provider.domain_id.clone(),
        };
        let mut roles = Vec::new();
        for name in &wanted.roles {
            match directory::role_named(tx, name)? {
                Some(role) => roles.push(role.id),
                None => tracing::warn!(role = name, idp = provider.id, "a mapping names a role there is not"),
            }
        }
        let name: String = wanted.name.trim().to_owned();
        if name.is_empty() || name.chars().count() > 64 {
            return Err(refused("the mapping names a project whose name is empty or too long"));
        }
        let project = match directory::project_named(tx, &domain, &name)? {
            Some(project) => project.id,
            None => {
                let mut project = Project {
                    id: id.clone(),
                    meta: store::Meta::default(),
                    parent_id: domain.as_str().to_owned(),
                    domain_id: domain,
                    name,
                    description: String::new(),
                    enabled: true,
                    tags: Vec::new(),
                    options: Map::new(),
                    extra: Map::new(),
                    revoked_before: None,
                };
                directory::insert_once(tx, &mut project)?;
                project.id
            }
        };
        all.entry(project).or_default().extend(roles);
    }
    Ok(all
        .into_iter()
        .map(|(project_id, mut roles)| {
            roles.sort_unstable();
            roles.dedup();
            ClaimedRoles { project_id, roles }
        })
        .collect())
}
