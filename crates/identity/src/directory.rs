//! Questions to the tables inside one transaction: who is where, with which roles.

use std::collections::{BTreeMap, BTreeSet};

use base::{DomainId, EndpointId, GroupId, ProjectId, Result, RoleId, UserId};
use store::{Query, Tx};

use crate::federation::model::ServiceProvider;
use crate::logic::inference::{Rules, closure};
use crate::model::{
    Actor, Assignment, Domain, Endpoint, EndpointFilter, EndpointGroup, Epoch, Group, ImpliedRole,
    Membership, Place, Project, Role, Service, Trust, User,
};
use crate::tokens::Catalog;
use crate::words;

/// Key of the epoch of everything that is not one user's own.
pub const ALL: &str = "*";

/// No chain of projects is longer (Keystone's `max_project_tree_depth` is 5).
pub const DEEPEST: usize = 16;

/// Marks that something changed that may matter to tokens of anybody.
///
/// # Errors
/// The store's.
pub fn touch_all(tx: &mut Tx<'_>) -> Result<()> {
    bump(tx, ALL)
}

/// Marks that something changed that may matter to tokens of this user.
///
/// # Errors
/// The store's.
pub fn touch_user(tx: &mut Tx<'_>, user: &UserId) -> Result<()> {
    bump(tx, user.as_str())
}

/// Marks the change of an actor: a user's own, or a group's, which is everybody's.
///
/// # Errors
/// The store's.
pub fn touch(tx: &mut Tx<'_>, actor: &Actor) -> Result<()> {
    match actor {
        Actor::User(user) => touch_user(tx, user),
        Actor::Group(_) => touch_all(tx),
    }
}

fn bump(tx: &mut Tx<'_>, key: &str) -> Result<()> {
    match tx.get::<Epoch>(&key.to_owned())? {
        Some(mut epoch) => {
            epoch.count += 1;
            tx.update(&mut epoch)
        }
        None => insert_once(tx, &mut Epoch { id: key.to_owned(), meta: store::Meta::default(), count: 1 }),
    }
}

/// Inserts what was found missing in this transaction. Where another was faster the transaction is run again, and finds
/// it.
///
/// # Errors
/// `Retry`, or the store's.
pub fn insert_once<R: store::Resource>(tx: &mut Tx<'_>, resource: &mut R) -> Result<()> {
    tx.insert(resource)
        .map_err(|error| if error.kind() == base::Kind::Conflict { base::Error::retry(error) } else { error })
}

/// The epoch of everything, and the sum of those of `users`: as epochs only grow, it stands still only while all do.
///
/// # Errors
/// The store's.
pub fn epochs(tx: &mut Tx<'_>, users: &[UserId]) -> Result<(u64, u64)> {
    Ok(epochs_in(&tx.list::<Epoch>(&Query::new().is_in("id", epoch_ids(users)))?, users))
}

/// Which rows the epochs of `users` are made of.
pub fn epoch_ids(users: &[UserId]) -> impl Iterator<Item = String> + '_ {
    std::iter::once(ALL).chain(users.iter().map(UserId::as_str)).map(str::to_owned)
}

/// As [`epochs`], from rows that were read already.
pub fn epochs_in(rows: &[Epoch], users: &[UserId]) -> (u64, u64) {
    let of = |id: &str| rows.iter().find(|e| e.id == id).map_or(0, |e| e.count);
    (of(ALL), users.iter().map(|user| of(user.as_str())).sum())
}

/// A domain by name.
///
/// # Errors
/// The store's.
pub fn domain_named(tx: &mut Tx<'_>, name: &str) -> Result<Option<Domain>> {
    Ok(tx.list::<Domain>(&Query::new().eq("name", name).limit(1))?.pop())
}

/// A project by name.
///
/// # Errors
/// The store's.
pub fn project_named(tx: &mut Tx<'_>, domain: &DomainId, name: &str) -> Result<Option<Project>> {
    Ok(tx.list::<Project>(&Query::new().eq("domain_id", domain).eq("name", name).limit(1))?.pop())
}

/// A user by name.
///
/// # Errors
/// The store's.
pub fn user_named(tx: &mut Tx<'_>, domain: &DomainId, name: &str) -> Result<Option<User>> {
    Ok(tx.list::<User>(&Query::new().eq("domain_id", domain).eq("name", name).limit(1))?.pop())
}

/// A global role by name.
///
/// # Errors
/// The store's.
pub fn role_named(tx: &mut Tx<'_>, name: &str) -> Result<Option<Role>> {
    Ok(tx.list::<Role>(&Query::new().eq("domain_key", "").eq("name", name).limit(1))?.pop())
}

macro_rules! needs {
    ($($(#[$doc:meta])* $name:ident $resource:ident $id:ty, $words:ident);* $(;)?) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// `NotFound` in Keystone's words.
        pub fn $name(tx: &mut Tx<'_>, id: &$id) -> Result<$resource> {
            tx.get::<$resource>(id)?.ok_or_else(|| words::$words(id.as_str()))
        }
    )*};
}

needs! {
    /// A domain.
    domain Domain DomainId, no_domain;
    /// A project.
    project Project ProjectId, no_project;
    /// A user.
    user User UserId, no_user;
    /// A group.
    group Group GroupId, no_group;
    /// A role.
    role Role RoleId, no_role;
}

/// The groups a user is in, those an identity provider claims included.
///
/// # Errors
/// The store's.
pub fn groups_of(tx: &mut Tx<'_>, user: &UserId) -> Result<Vec<GroupId>> {
    let own = tx.list::<Membership>(&Query::new().eq("user_id", user))?.into_iter().map(|m| m.group_id);
    let mut groups: Vec<GroupId> = own.collect();
    for group in crate::federation::claimed(tx, user)?.map(|c| c.groups).unwrap_or_default() {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    Ok(groups)
}

/// All assignments of a user, those of the user's groups and those an identity provider claims included.
///
/// # Errors
/// The store's.
pub fn assignments_of(tx: &mut Tx<'_>, user: &UserId) -> Result<Vec<Assignment>> {
    let mut all = tx.list::<Assignment>(&Query::new().eq("user_id", user))?;
    let groups = groups_of(tx, user)?;
    if !groups.is_empty() {
        all.extend(tx.list::<Assignment>(&Query::new().is_in("group_id", &groups))?);
    }
    for grant in crate::federation::claimed(tx, user)?.map(|c| c.grants).unwrap_or_default() {
        let (actor, place) = (Actor::User(user.clone()), Place::Project(grant.project_id));
        all.extend(grant.roles.iter().map(|role| Assignment::new(&actor, &place, role, false)));
    }
    Ok(all)
}

/// The projects above a project, the nearest first.
///
/// # Errors
/// The store's.
pub fn ancestors(tx: &mut Tx<'_>, project: &Project) -> Result<Vec<Project>> {
    let mut above = Vec::new();
    let mut parent = project.parent_id.clone();
    while parent != project.domain_id.as_str() && above.len() < DEEPEST {
        let Some(next) = tx.get::<Project>(&ProjectId::new(parent))? else { break };
        parent = next.parent_id.clone();
        above.push(next);
    }
    Ok(above)
}

/// Whether an assignment holds in `project`, whose ancestors are `above`.
pub fn holds_in(assignment: &Assignment, project: &Project, above: &[ProjectId]) -> bool {
    match (&assignment.project_id, &assignment.domain_id, assignment.inherited) {
        (Some(id), _, false) => *id == project.id,
        (Some(id), _, true) => above.contains(id),
        (None, Some(domain), true) => *domain == project.domain_id,
        _ => false,
    }
}

/// Which roles imply which.
///
/// # Errors
/// The store's.
pub fn rules(tx: &mut Tx<'_>) -> Result<Rules> {
    let mut rules = Rules::new();
    for rule in tx.list::<ImpliedRole>(&Query::new())? {
        let implied = rule.implied_role_id.as_str().to_owned();
        rules.entry(rule.prior_role_id.as_str().to_owned()).or_default().insert(implied);
    }
    Ok(rules)
}

/// `roles` and those they imply, global ones only: roles of a domain are never in a token, but what they imply is.
///
/// # Errors
/// The store's.
pub fn expand(tx: &mut Tx<'_>, roles: &BTreeSet<RoleId>) -> Result<Vec<Role>> {
    if roles.is_empty() {
        return Ok(Vec::new());
    }
    let rules = rules(tx)?;
    let ids: Vec<&str> = closure(&rules, roles.iter().map(RoleId::as_str)).into_iter().collect();
    let mut found = tx.list::<Role>(&Query::new().is_in("id", ids))?;
    found.retain(|r| r.domain_key.is_empty());
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The roles a user has on a place, by whatever way: own, by a group, inherited, implied. Sorted by name.
///
/// # Errors
/// The store's.
pub fn roles_on(tx: &mut Tx<'_>, user: &UserId, place: &Place) -> Result<Vec<Role>> {
    let all = assignments_of(tx, user)?;
    let direct: BTreeSet<RoleId> = match place {
        Place::Project(id) => {
            let Some(project) = tx.get::<Project>(id)? else { return Ok(Vec::new()) };
            let above = if all.iter().any(|a| a.inherited && a.project_id.is_some()) {
                ancestors(tx, &project)?.into_iter().map(|p| p.id).collect()
            } else {
                Vec::new()
            };
            all.into_iter().filter(|a| holds_in(a, &project, &above)).map(|a| a.role_id).collect()
        }
        other => all.into_iter().filter(|a| !a.inherited && a.place() == *other).map(|a| a.role_id).collect(),
    };
    expand(tx, &direct)
}

/// The projects below a project or domain, at any depth.
///
/// # Errors
/// The store's.
pub fn below(tx: &mut Tx<'_>, parent: &str) -> Result<Vec<Project>> {
    let mut found: Vec<Project> = Vec::new();
    let mut open = vec![parent.to_owned()];
    for _ in 0..DEEPEST {
        if open.is_empty() {
            break;
        }
        let next = tx.list::<Project>(&Query::new().is_in("parent_id", &open))?;
        open = next.iter().map(|p| p.id.as_str().to_owned()).collect();
        found.extend(next);
    }
    Ok(found)
}

/// The projects on which a user has any role, by whatever way. Sorted by id.
///
/// # Errors
/// The store's.
pub fn projects_of(tx: &mut Tx<'_>, user: &UserId) -> Result<Vec<Project>> {
    let mut found: BTreeMap<ProjectId, Project> = BTreeMap::new();
    let mut direct = BTreeSet::new();
    for assignment in assignments_of(tx, user)? {
        match (assignment.project_id, assignment.domain_id, assignment.inherited) {
            (Some(id), _, false) => {
                direct.insert(id);
            }
            (Some(id), _, true) => {
                found.extend(below(tx, id.as_str())?.into_iter().map(|p| (p.id.clone(), p)))
            }
            (None, Some(domain), true) => {
                let all = tx.list::<Project>(&Query::new().eq("domain_id", &domain))?;
                found.extend(all.into_iter().map(|p| (p.id.clone(), p)));
            }
            _ => {}
        }
    }
    let direct = tx.list::<Project>(&Query::new().is_in("id", &direct))?;
    found.extend(direct.into_iter().map(|p| (p.id.clone(), p)));
    Ok(found.into_values().collect())
}

/// The domains on which a user has a role. Sorted by id.
///
/// # Errors
/// The store's.
pub fn domains_of(tx: &mut Tx<'_>, user: &UserId) -> Result<Vec<Domain>> {
    let all = assignments_of(tx, user)?;
    let ids: BTreeSet<DomainId> =
        all.into_iter().filter(|a| !a.inherited).filter_map(|a| a.domain_id).collect();
    tx.list::<Domain>(&Query::new().is_in("id", &ids))
}

/// Which endpoints a project sees, if it does not see all.
///
/// # Errors
/// The store's.
pub fn visible_endpoints(tx: &mut Tx<'_>, project: &ProjectId) -> Result<Option<BTreeSet<EndpointId>>> {
    let filters = tx.list::<EndpointFilter>(&Query::new().eq("project_id", project))?;
    if filters.is_empty() {
        return Ok(None);
    }
    let mut seen: BTreeSet<EndpointId> = filters.iter().filter_map(|f| f.endpoint_id.clone()).collect();
    let groups: Vec<String> = filters.into_iter().filter_map(|f| f.endpoint_group_id).collect();
    if !groups.is_empty() {
        let groups = tx.list::<EndpointGroup>(&Query::new().is_in("id", &groups))?;
        let all = tx.list::<Endpoint>(&Query::new())?;
        seen.extend(all.into_iter().filter(|e| groups.iter().any(|g| g.holds(e))).map(|e| e.id));
    }
    // As in Keystone: filters that leave nothing are none.
    Ok(Some(seen).filter(|s| !s.is_empty()))
}

/// The trusts a trust was made from, itself first. A chain is short: each is made with a smaller count.
///
/// # Errors
/// The store's.
pub fn pedigree(tx: &mut Tx<'_>, trust: Trust) -> Result<Vec<Trust>> {
    let mut chain = vec![trust];
    while let Some(id) = chain.last().and_then(|t| t.redelegated_trust_id.clone()) {
        let Some(parent) = tx.get::<Trust>(&id)? else { break };
        chain.push(parent);
        if chain.len() > DEEPEST {
            break;
        }
    }
    Ok(chain)
}

/// The enabled services with their enabled endpoints, and the enabled service providers.
///
/// # Errors
/// The store's.
pub fn catalog(tx: &mut Tx<'_>) -> Result<Catalog> {
    let mut services = tx.list::<Service>(&Query::new())?;
    services.retain(|s| s.enabled);
    services.sort_by(|a, b| (&a.service_type, &a.id).cmp(&(&b.service_type, &b.id)));
    let mut endpoints: BTreeMap<_, Vec<Endpoint>> = BTreeMap::new();
    for endpoint in tx.list::<Endpoint>(&Query::new())? {
        if endpoint.enabled {
            endpoints.entry(endpoint.service_id.clone()).or_default().push(endpoint);
        }
    }
    let services = services.into_iter().map(|s| {
        let e = endpoints.remove(&s.id).unwrap_or_default();
        (s, e)
    });
    let services = services.collect();
    let mut service_providers = tx.list::<ServiceProvider>(&Query::new())?;
    service_providers.retain(|sp| sp.enabled);
    Ok(Catalog { services, service_providers })
}
