//! Grants: a role for a user or group on a project, a domain or the system; also those inherited to projects below.

use std::collections::BTreeSet;

use ::api::{Op, Reply, Request, Target};
use base::{DomainId, Error, GroupId, ProjectId, Result, RoleId, UserId};
use store::Query;

use super::{Cx, domains, enforce, groups, listed, projects, roles, users};
use crate::directory;
use crate::logic::inference::closure;
use crate::model::{Actor, Assignment, Domain, Group, Place, Project, Role, Trust, User};
use crate::state::State;
use crate::words::{no_domain, no_group, no_project, no_role, no_user};

/// Which kind of grant an operation is about.
#[derive(Debug, Clone, Copy)]
struct Form {
    target: &'static str,
    by_group: bool,
    inherited: bool,
}

pub(super) fn ops() -> Vec<Op<State>> {
    let mut ops = Vec::new();
    for target in ["projects", "domains", "system"] {
        for by_group in [false, true] {
            for inherited in [false, true] {
                if !(target == "system" && inherited) {
                    ops.extend(ops_of(Form { target, by_group, inherited }));
                }
            }
        }
    }
    ops
}

fn ops_of(form: Form) -> Vec<Op<State>> {
    let actor = if form.by_group { "groups/{group_id}" } else { "users/{user_id}" };
    let target = match form.target {
        "projects" => "projects/{project_id}",
        "domains" => "domains/{domain_id}",
        _ => "system",
    };
    let base = match form.inherited {
        false => format!("/v3/{target}/{actor}/roles"),
        true => format!("/v3/OS-INHERIT/{target}/{actor}/roles"),
    };
    let tail = if form.inherited { "/inherited_to_projects" } else { "" };
    let (all, single) = (format!("{base}{tail}"), format!("{base}/{{role_id}}{tail}"));
    let kind = if form.target == "system" { "system_grant" } else { "grant" };
    let rule = |verb: &str| format!("identity:{verb}_{kind}");
    vec![
        Op::get(all, format!("identity:list_{kind}s"), move |cx, req: Request<()>| list(cx, req, form))
            .summary("Lists the roles an actor has on a target."),
        Op::put(single.clone(), rule("create"), move |cx, req: Request<()>| grant(cx, req, form))
            .status(204)
            .summary("Gives a role."),
        Op::get(single.clone(), rule("check"), move |cx, req: Request<()>| check(cx, req, form))
            .status(204)
            .summary("Checks a grant."),
        Op::delete(single, rule("revoke"), move |cx, req: Request<()>| revoke(cx, req, form))
            .summary("Takes a role away."),
    ]
}

/// What the path names, as far as it exists.
struct Named {
    actor: Option<Actor>,
    place: Option<Place>,
    role: Option<Role>,
    target: Target,
    missing: Option<Error>,
}

/// Looks up what the path names and asks the policy, before it tells what is missing.
async fn named(cx: &Cx, req: &Request<()>, form: Form, with_role: bool) -> Result<Named> {
    let text = |name: &str| req.param(name).to_owned();
    let (user, group, project) = (text("user_id"), text("group_id"), text("project_id"));
    let (domain, role) = (text("domain_id"), text("role_id"));
    let mut named = cx
        .read(move |tx| {
            let mut target = Target::none();
            let mut missing = None;
            let actor = if form.by_group {
                let found = tx.get::<Group>(&GroupId::new(group.clone()))?;
                target = groups::target(target, found.as_ref());
                found.map(|g| Actor::Group(g.id)).or_else(|| {
                    missing = Some(no_group(&group));
                    None
                })
            } else {
                let found = tx.get::<User>(&UserId::new(user.clone()))?;
                target = users::target(found.as_ref());
                found.map(|u| Actor::User(u.id)).or_else(|| {
                    missing = Some(no_user(&user));
                    None
                })
            };
            let place = match form.target {
                "projects" => {
                    let found = tx.get::<Project>(&ProjectId::new(project.clone()))?;
                    target = projects::target(target, found.as_ref());
                    if found.is_none() {
                        missing.get_or_insert(no_project(&project));
                    }
                    found.map(|p| Place::Project(p.id))
                }
                "domains" => {
                    let found = tx.get::<Domain>(&DomainId::new(domain.clone()))?;
                    target = domains::target(target, found.as_ref());
                    if found.is_none() {
                        missing.get_or_insert(no_domain(&domain));
                    }
                    found.map(|d| Place::Domain(d.id))
                }
                _ => Some(Place::System),
            };
            let mut known = None;
            if with_role {
                known = tx.get::<Role>(&RoleId::new(role.clone()))?;
                match &known {
                    Some(role) => target = roles::target(target, role),
                    None => {
                        missing.get_or_insert(no_role(&role));
                    }
                }
            }
            Ok(Named { actor, place, role: known, target, missing })
        })
        .await?;
    enforce(cx, &named.target)?;
    match named.missing.take() {
        Some(error) => Err(error),
        None => Ok(named),
    }
}

impl Named {
    fn assignment(&self, form: Form) -> Result<Assignment> {
        match (&self.actor, &self.place, &self.role) {
            (Some(actor), Some(place), Some(role)) => {
                Ok(Assignment::new(actor, place, &role.id, form.inherited))
            }
            _ => Err(Error::internal("a grant that is not wholly named")),
        }
    }
}

async fn list(cx: Cx, req: Request<()>, form: Form) -> Result<Reply> {
    let named = named(&cx, &req, form, false).await?;
    let (Some(actor), Some(place)) = (named.actor, named.place) else {
        return Err(Error::internal("a grant that is not wholly named"));
    };
    let found = cx
        .read(move |tx| {
            let query = match &actor {
                Actor::User(id) => Query::new().eq("user_id", id),
                Actor::Group(id) => Query::new().eq("group_id", id),
            };
            let mut all = tx.list::<Assignment>(&query)?;
            all.retain(|a| a.place() == place && a.inherited == form.inherited);
            tx.list::<Role>(&Query::new().is_in("id", all.iter().map(|a| &a.role_id)))
        })
        .await?;
    let items = found.iter().map(|r| roles::wire(&cx, r)).collect();
    listed(&cx, &req, "roles", items, &["name"])
}

fn not_granted(of: &Assignment) -> Error {
    let user = of.user_id.as_ref().map(UserId::as_str);
    let actor = user.or(of.group_id.as_ref().map(GroupId::as_str)).unwrap_or_default();
    let project = of.project_id.as_ref().map(ProjectId::as_str);
    let place = project.or(of.domain_id.as_ref().map(DomainId::as_str)).unwrap_or("system");
    Error::not_found(format!(
        "Could not find role assignment with role: {}, user or group: {actor}, project, domain, or system: {place}.",
        of.role_id
    ))
}

async fn grant(cx: Cx, req: Request<()>, form: Form) -> Result<Reply> {
    let named = named(&cx, &req, form, true).await?;
    let assignment = named.assignment(form)?;
    if !cx.allows("admin_required", &Target::none()) {
        no_more_than_managed(&cx, &assignment.role_id).await?;
    }
    let role = named.role;
    cx.write(move |tx| {
        let place = assignment.place();
        // All of it may have gone since it was looked at.
        let domain = match &place {
            Place::Project(id) => Some(directory::project(tx, id)?.domain_id),
            Place::Domain(id) => Some(directory::domain(tx, id)?.id),
            Place::System => None,
        };
        match (&assignment.user_id, &assignment.group_id) {
            (Some(id), _) => drop(directory::user(tx, id)?),
            (None, Some(id)) => drop(directory::group(tx, id)?),
            (None, None) => return Err(Error::internal("a grant to nobody")),
        }
        directory::role(tx, &assignment.role_id)?;
        if let Some(own) = role.as_ref().and_then(Role::domain)
            && domain.as_ref().map(DomainId::as_str) != Some(own)
        {
            return Err(Error::forbidden(format!(
                "The role {} can be assigned in its own domain only.",
                assignment.role_id
            )));
        }
        if tx.get::<Assignment>(&assignment.id)?.is_none() {
            directory::insert_once(tx, &mut assignment.clone())?;
            directory::touch(tx, &actor_of(&assignment)?)?;
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}

/// Who is no administrator may give a role only if all the roles it implies are in the managed list too: otherwise an
/// implied role would be the way around the list.
async fn no_more_than_managed(cx: &Cx, role: &RoleId) -> Result<()> {
    let id = role.as_str().to_owned();
    let implied = cx
        .read(move |tx| {
            let rules = directory::rules(tx)?;
            let ids: Vec<&str> = closure(&rules, [id.as_str()]).into_iter().collect();
            tx.list::<Role>(&Query::new().is_in("id", ids))
        })
        .await?;
    let managed = |r: &Role| cx.allows("domain_managed_target_role", &roles::target(Target::none(), r));
    if implied.iter().all(managed) { Ok(()) } else { Err(cx.dialect().policy_denied(&cx.op().policy)) }
}

/// Who is no administrator leaves alone the accounts and memberships that carry `admin` or a right on the system: a
/// domain's manager must not become administrator by a password reset, nor by joining a group.
pub(super) async fn not_of_administrators(cx: &Cx, actor: Actor) -> Result<()> {
    if cx.allows("admin_required", &Target::none()) {
        return Ok(());
    }
    let of_administrators = cx
        .read(move |tx| {
            let held = match &actor {
                Actor::User(id) => directory::assignments_of(tx, id)?,
                Actor::Group(id) => tx.list::<Assignment>(&Query::new().eq("group_id", id))?,
            };
            let mut roles: BTreeSet<RoleId> = held.iter().map(|a| a.role_id.clone()).collect();
            if let Actor::User(id) = &actor {
                // A trustee has what the trust lends.
                let trusts = tx.list::<Trust>(&Query::new().eq("trustee_user_id", id))?;
                roles.extend(trusts.into_iter().flat_map(|t| t.roles));
            }
            let admin = directory::expand(tx, &roles)?.iter().any(|r| r.name == "admin");
            Ok(admin || held.iter().any(|a| a.place() == Place::System))
        })
        .await?;
    if of_administrators { Err(cx.dialect().policy_denied(&cx.op().policy)) } else { Ok(()) }
}

fn actor_of(assignment: &Assignment) -> Result<Actor> {
    match (&assignment.user_id, &assignment.group_id) {
        (Some(id), _) => Ok(Actor::User(id.clone())),
        (None, Some(id)) => Ok(Actor::Group(id.clone())),
        (None, None) => Err(Error::internal("a grant to nobody")),
    }
}

async fn check(cx: Cx, req: Request<()>, form: Form) -> Result<Reply> {
    let assignment = named(&cx, &req, form, true).await?.assignment(form)?;
    let id = assignment.id.clone();
    let found = cx.read(move |tx| tx.get::<Assignment>(&id)).await?;
    found.map(|_| Reply::empty()).ok_or_else(|| not_granted(&assignment))
}

async fn revoke(cx: Cx, req: Request<()>, form: Form) -> Result<Reply> {
    let assignment = named(&cx, &req, form, true).await?.assignment(form)?;
    cx.write(move |tx| {
        if !tx.delete::<Assignment>(&assignment.id)? {
            return Err(not_granted(&assignment));
        }
        directory::touch(tx, &actor_of(&assignment)?)
    })
    .await?;
    Ok(Reply::empty())
}
