//! `GET /v3/role_assignments`: who has which role where, as granted or as it takes effect.

use std::collections::{BTreeMap, BTreeSet};

use ::api::{Op, Query as Pairs, Reply, Request};
use base::{DomainId, Error, GroupId, ProjectId, Result, RoleId, UserId};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::{Cx, asked, enforce, listed, own_domain_target, token_domain};
use crate::directory;
use crate::logic::inference::closure;
use crate::model::{Assignment, Domain, Group, Membership, Place, Project, Role, User};
use crate::state::State;

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v3/role_assignments", "identity:list_role_assignments", list)
            .summary("Lists role assignments, as granted or (effective) as they take effect."),
    ]
}

/// The filters of the query.
#[derive(Debug, Clone, Default)]
struct Filters {
    role: Option<RoleId>,
    user: Option<UserId>,
    group: Option<GroupId>,
    project: Option<ProjectId>,
    domain: Option<DomainId>,
    system: bool,
    inherited: Option<bool>,
    effective: bool,
    subtree: bool,
    own_domain: Option<DomainId>,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    user: Option<UserId>,
    group: Option<GroupId>,
    project: Option<ProjectId>,
    domain: Option<DomainId>,
    role: RoleId,
    inherited: bool,
    /// Paths: the grant, the membership it came by, the role that implied it.
    grant: String,
    membership: Option<String>,
    prior_role: Option<String>,
}

fn filters(cx: &Cx, req: &Request<()>) -> Result<Filters> {
    let pairs: &Pairs = req.query_pairs();
    let text = |name: &str| pairs.get(name).filter(|t| !t.is_empty()).map(str::to_owned);
    let filters = Filters {
        role: text("role.id").map(RoleId::new),
        user: text("user.id").map(UserId::new),
        group: text("group.id").map(GroupId::new),
        project: text("scope.project.id").map(ProjectId::new),
        domain: text("scope.domain.id").map(DomainId::new),
        system: text("scope.system").is_some(),
        inherited: pairs.get("scope.OS-INHERIT:inherited_to").map(|to| to == "projects"),
        effective: asked(req, "effective"),
        subtree: asked(req, "include_subtree"),
        own_domain: token_domain(cx).filter(|_| !cx.allows("admin_or_reader", &::api::Target::none())),
    };
    let bad = |text: &str| Err(Error::bad_request(text));
    match &filters {
        Filters { domain: Some(_), project: Some(_), .. } => bad("Specify a domain or project, not both"),
        Filters { domain: Some(_), system: true, .. } => bad("Specify system or domain, not both"),
        Filters { project: Some(_), system: true, .. } => bad("Specify system or project, not both"),
        Filters { user: Some(_), group: Some(_), .. } => bad("Specify a user or group, not both"),
        Filters { effective: true, group: Some(_), .. } => {
            bad("Combining effective and group filter will always result in an empty list.")
        }
        Filters { effective: true, inherited: Some(true), domain: Some(_), .. } => {
            bad("Combining effective, domain and inherited filters will always result in an empty list.")
        }
        Filters { subtree: true, project: None, .. } => {
            bad("scope.project.id must be specified if include_subtree is also specified")
        }
        _ => Ok(filters),
    }
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &own_domain_target(&cx))?;
    let (filters, names) = (filters(&cx, &req)?, asked(&req, "include_names"));
    let (rows, known) = cx
        .read(move |tx| {
            let mut rows = if filters.effective { effective(tx, &filters)? } else { granted(tx, &filters)? };
            confine(tx, &mut rows, &filters)?;
            let known = if names { Names::of(tx, &rows)? } else { Names::default() };
            Ok((rows, known))
        })
        .await?;
    let items = rows.iter().map(|row| wire(&cx, row, names.then_some(&known))).collect();
    listed(&cx, &req, "role_assignments", items, &[])
}

/// The assignments that may matter: by the narrowest index.
fn candidates(
    tx: &mut Tx<'_>,
    filters: &Filters,
    only: Option<&(Project, Vec<ProjectId>)>,
) -> Result<Vec<Assignment>> {
    if let (None, Some((project, above))) = (&filters.user, only) {
        let places = std::iter::once(&project.id).chain(above);
        let mut found = tx.list::<Assignment>(&Query::new().is_in("project_id", places))?;
        found.extend(tx.list::<Assignment>(&Query::new().eq("domain_id", &project.domain_id))?);
        found.retain(|a| directory::holds_in(a, project, above));
        return Ok(found);
    }
    let query = match filters {
        Filters { user: Some(user), effective: true, .. } => return directory::assignments_of(tx, user),
        Filters { user: Some(user), .. } => Query::new().eq("user_id", user),
        Filters { group: Some(group), .. } => Query::new().eq("group_id", group),
        Filters { project: Some(project), effective: false, subtree: false, .. } => {
            Query::new().eq("project_id", project)
        }
        Filters { domain: Some(domain), .. } => Query::new().eq("domain_id", domain),
        Filters { role: Some(role), effective: false, .. } => Query::new().eq("role_id", role),
        _ => Query::new(),
    };
    tx.list::<Assignment>(&query)
}

fn grant_path(of: &Assignment) -> String {
    let mut path = String::from("/v3");
    if of.inherited {
        path.push_str("/OS-INHERIT");
    }
    path.push_str(&match of.place() {
        Place::Project(id) => format!("/projects/{id}"),
        Place::Domain(id) => format!("/domains/{id}"),
        Place::System => "/system".to_owned(),
    });
    match (&of.user_id, &of.group_id) {
        (Some(id), _) => path.push_str(&format!("/users/{id}")),
        (None, Some(id)) => path.push_str(&format!("/groups/{id}")),
        (None, None) => {}
    }
    path.push_str(&format!("/roles/{}", of.role_id));
    if of.inherited {
        path.push_str("/inherited_to_projects");
    }
    path
}

impl Row {
    fn of(assignment: Assignment) -> Self {
        let grant = grant_path(&assignment);
        Row {
            user: assignment.user_id,
            group: assignment.group_id,
            project: assignment.project_id,
            domain: assignment.domain_id,
            role: assignment.role_id,
            inherited: assignment.inherited,
            grant,
            membership: None,
            prior_role: None,
        }
    }

    fn in_place(&self, projects: Option<&BTreeSet<ProjectId>>, filters: &Filters) -> bool {
        let project = match (projects, &self.project) {
            (Some(wanted), Some(id)) => wanted.contains(id),
            (Some(_), None) => false,
            (None, _) => true,
        };
        let domain = filters.domain.is_none() || filters.domain == self.domain;
        let system = !filters.system || (self.project.is_none() && self.domain.is_none());
        project && domain && system
    }
}

/// The project asked for, and those below it where they are asked for too.
fn projects(tx: &mut Tx<'_>, filters: &Filters) -> Result<Option<BTreeSet<ProjectId>>> {
    let Some(project) = &filters.project else { return Ok(None) };
    let mut wanted = BTreeSet::from([project.clone()]);
    if filters.subtree {
        wanted.extend(directory::below(tx, project.as_str())?.into_iter().map(|p| p.id));
    }
    Ok(Some(wanted))
}

/// The one project asked for, with those above it: what is inherited from elsewhere need not be spread out.
fn only(tx: &mut Tx<'_>, filters: &Filters) -> Result<Option<(Project, Vec<ProjectId>)>> {
    let Some(id) = filters.project.as_ref().filter(|_| !filters.subtree) else { return Ok(None) };
    let Some(project) = tx.get::<Project>(id)? else { return Ok(None) };
    let above = directory::ancestors(tx, &project)?.into_iter().map(|p| p.id).collect();
    Ok(Some((project, above)))
}

fn granted(tx: &mut Tx<'_>, filters: &Filters) -> Result<Vec<Row>> {
    let projects = projects(tx, filters)?;
    let mut rows: Vec<Row> = candidates(tx, filters, None)?.into_iter().map(Row::of).collect();
    rows.retain(|row| {
        row.in_place(projects.as_ref(), filters)
            && filters.role.as_ref().is_none_or(|r| *r == row.role)
            && filters.inherited.is_none_or(|i| i == row.inherited)
    });
    Ok(rows)
}

/// What takes effect: groups become their users, inherited grants become grants on projects, roles bring those they
/// imply.
fn effective(tx: &mut Tx<'_>, filters: &Filters) -> Result<Vec<Row>> {
    let projects = projects(tx, filters)?;
    let mut rows = Vec::new();
    let mut members: BTreeMap<GroupId, Vec<UserId>> = BTreeMap::new();
    let only = only(tx, filters)?;
    for assignment in candidates(tx, filters, only.as_ref())? {
        if filters.inherited.is_some_and(|i| i != assignment.inherited) {
            continue;
        }
        let inherited = assignment.inherited.then(|| assignment.place());
        let here = only.as_ref().filter(|(project, above)| directory::holds_in(&assignment, project, above));
        let here = here.map(|(project, _)| project.id.clone());
        let mut row = Row::of(assignment);
        row.inherited = false;
        let mut places = Vec::new();
        match inherited {
            None => places.push(row.clone()),
            Some(_) if only.is_some() => {
                places.extend(here.map(|id| Row { project: Some(id), domain: None, ..row.clone() }));
            }
            Some(place) => {
                let below = match &place {
                    Place::Project(id) => directory::below(tx, id.as_str())?,
                    Place::Domain(id) => tx.list::<Project>(&Query::new().eq("domain_id", id))?,
                    Place::System => Vec::new(),
                };
                places.extend(below.into_iter().map(|p| Row {
                    project: Some(p.id),
                    domain: None,
                    ..row.clone()
                }));
            }
        }
        places.retain(|row| row.in_place(projects.as_ref(), filters));
        let Some(group) = &row.group else {
            rows.extend(places);
            continue;
        };
        if !members.contains_key(group) {
            let found = tx.list::<Membership>(&Query::new().eq("group_id", group))?;
            members.insert(group.clone(), found.into_iter().map(|m| m.user_id).collect());
        }
        for user in members.get(group).into_iter().flatten() {
            if filters.user.as_ref().is_none_or(|u| u == user) {
                let membership = Some(format!("/v3/groups/{group}/users/{user}"));
                rows.extend(places.iter().map(|place| Row {
                    user: Some(user.clone()),
                    group: None,
                    membership: membership.clone(),
                    ..place.clone()
                }));
            }
        }
    }
    let rules = directory::rules(tx)?;
    let mut all = Vec::new();
    for row in rows {
        for role in closure(&rules, [row.role.as_str()]) {
            let prior_role = (role != row.role.as_str()).then(|| format!("/v3/roles/{}", row.role));
            all.push(Row { role: RoleId::new(role), prior_role, ..row.clone() });
        }
    }
    all.retain(|row| filters.role.as_ref().is_none_or(|r| *r == row.role));
    // A domain's own roles only stand for those they imply: no token names them.
    let own: BTreeSet<String> =
        tx.list_ids::<Role>(&Query::new().ne("domain_key", ""))?.into_iter().collect();
    all.retain(|row| !own.contains(row.role.as_str()));
    // The same right may come by several ways; the direct one is told.
    all.sort_by_key(|r| (r.prior_role.is_some(), r.membership.is_some()));
    let mut seen = BTreeSet::new();
    all.retain(|r| seen.insert((r.user.clone(), r.project.clone(), r.domain.clone(), r.role.clone())));
    all.sort();
    Ok(all)
}

/// For a domain's own reader or manager: only what is about that domain.
fn confine(tx: &mut Tx<'_>, rows: &mut Vec<Row>, filters: &Filters) -> Result<()> {
    let Some(own) = &filters.own_domain else { return Ok(()) };
    let projects: BTreeSet<ProjectId> =
        tx.list_ids::<Project>(&Query::new().eq("domain_id", own))?.into_iter().map(ProjectId::new).collect();
    rows.retain(|row| match (&row.project, &row.domain) {
        (Some(project), _) => projects.contains(project),
        (None, Some(domain)) => domain == own,
        (None, None) => false,
    });
    Ok(())
}

/// Names of what the rows refer to.
#[derive(Debug, Default)]
struct Names {
    users: BTreeMap<UserId, (String, DomainId)>,
    groups: BTreeMap<GroupId, (String, DomainId)>,
    projects: BTreeMap<ProjectId, (String, DomainId)>,
    domains: BTreeMap<DomainId, String>,
    roles: BTreeMap<RoleId, (String, String)>,
}

impl Names {
    fn of(tx: &mut Tx<'_>, rows: &[Row]) -> Result<Self> {
        macro_rules! load {
            ($resource:ident, $field:ident, |$r:ident| $value:expr) => {{
                let ids: BTreeSet<_> = rows.iter().filter_map(|r| r.$field.as_ref()).collect();
                let found = tx.list::<$resource>(&Query::new().is_in("id", ids))?;
                found.into_iter().map(|$r| ($r.id.clone(), $value)).collect()
            }};
        }
        let roles: BTreeSet<_> = rows.iter().map(|r| &r.role).collect();
        let roles = tx.list::<Role>(&Query::new().is_in("id", roles))?;
        Ok(Names {
            users: load!(User, user, |r| (r.name, r.domain_id)),
            groups: load!(Group, group, |r| (r.name, r.domain_id)),
            projects: load!(Project, project, |r| (r.name, r.domain_id)),
            // There are few domains, and all of the above refer to some.
            domains: tx.list::<Domain>(&Query::new())?.into_iter().map(|d| (d.id, d.name)).collect(),
            roles: roles.into_iter().map(|r| (r.id, (r.name, r.domain_key))).collect(),
        })
    }

    fn domain(&self, id: &DomainId) -> Value {
        json!({"id": id, "name": self.domains.get(id)})
    }

    fn in_domain(&self, id: &str, named: Option<&(String, DomainId)>) -> Value {
        match named {
            Some((name, domain)) => json!({"id": id, "name": name, "domain": self.domain(domain)}),
            None => json!({"id": id}),
        }
    }
}

fn wire(cx: &Cx, row: &Row, names: Option<&Names>) -> Value {
    let mut links = Map::new();
    links.insert("assignment".into(), json!(cx.url(&row.grant)));
    for (key, path) in [("membership", &row.membership), ("prior_role", &row.prior_role)] {
        if let Some(path) = path {
            links.insert(key.into(), json!(cx.url(path)));
        }
    }
    let mut map = Map::new();
    map.insert("links".into(), Value::Object(links));
    let role = match names.and_then(|n| Some((n, n.roles.get(&row.role)?))) {
        Some((_, (name, domain))) if domain.is_empty() => json!({"id": row.role, "name": name}),
        Some((names, (name, domain))) => {
            json!({"id": row.role, "name": name, "domain": names.domain(&DomainId::new(domain.as_str()))})
        }
        None => json!({"id": row.role}),
    };
    map.insert("role".into(), role);
    let plain = Names::default();
    let known = names.unwrap_or(&plain);
    let mut scope = Map::new();
    match (&row.project, &row.domain) {
        (Some(id), _) => scope.insert("project".into(), known.in_domain(id.as_str(), known.projects.get(id))),
        (None, Some(id)) if names.is_some() => scope.insert("domain".into(), known.domain(id)),
        (None, Some(id)) => scope.insert("domain".into(), json!({"id": id})),
        (None, None) => scope.insert("system".into(), json!({"all": true})),
    };
    if row.inherited {
        scope.insert("OS-INHERIT:inherited_to".into(), json!("projects"));
    }
    map.insert("scope".into(), Value::Object(scope));
    if let Some(id) = &row.user {
        map.insert("user".into(), known.in_domain(id.as_str(), known.users.get(id)));
    }
    if let Some(id) = &row.group {
        map.insert("group".into(), known.in_domain(id.as_str(), known.groups.get(id)));
    }
    Value::Object(map)
}
