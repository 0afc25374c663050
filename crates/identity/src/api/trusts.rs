//! Trusts (`/v3/OS-TRUST`): a user lets another act with some of its roles in one project, for a time or a number of
//! times, as itself or under its own name; and, if it says so, pass that on.

use ::api::{Op, Reply, Request, Target};
use base::{Error, ProjectId, Result, RoleId, Timestamp, UserId};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::{Cx, enforce, listed, one, roles};
use crate::directory;
use crate::logic::body::{Doc, Fields, Kind, check, invalid, may, may_null, missing, must, shape};
use crate::model::{Place, Role, Trust};
use crate::revocations::{self, Of};
use crate::state::State;
use crate::tokens::Validated;
use crate::words::{forbidden, no_role, no_trust};

shape!(
    TrustCreate,
    "trust",
    true,
    [
        must("trustor_user_id", Kind::Id),
        must("trustee_user_id", Kind::Id),
        must("impersonation", Kind::Bool),
        may_null("project_id", Kind::Id),
        may_null("remaining_uses", Kind::Int(1, i64::MAX)),
        may_null("expires_at", Kind::Text(1, 64)),
        may_null("allow_redelegation", Kind::Bool),
        may_null("redelegation_count", Kind::Int(0, i64::MAX)),
        may_null("redelegated_trust_id", Kind::Id),
        may("roles", Kind::Objects),
    ]
);

pub(super) fn ops() -> Vec<Op<State>> {
    const ALL: &str = "/v3/OS-TRUST/trusts";
    const ONE: &str = "/v3/OS-TRUST/trusts/{trust_id}";
    const ROLES: &str = "/v3/OS-TRUST/trusts/{trust_id}/roles";
    const ROLE: &str = "/v3/OS-TRUST/trusts/{trust_id}/roles/{role_id}";
    vec![
        // The other two rules, for a trustee's and for all, are asked by the handler.
        Op::get(ALL, "identity:list_trusts_for_trustor", list)
            .summary("Lists trusts; of a trustor or trustee, that user's own."),
        Op::post(ALL, "identity:create_trust", create).status(201).summary("Makes a trust."),
        Op::get(ONE, "identity:get_trust", show).summary("Shows a trust."),
        Op::delete(ONE, "identity:delete_trust", delete).summary("Ends a trust and those made from it."),
        Op::get(ROLES, "identity:list_roles_for_trust", list_roles).summary("Lists a trust's roles."),
        Op::get(ROLE, "identity:get_role_for_trust", show_role).summary("Shows a role of a trust."),
    ]
}

fn wire(cx: &Cx, trust: &Trust, with: Option<&[Role]>) -> Value {
    let path = format!("/v3/OS-TRUST/trusts/{}", trust.id);
    let mut map = trust.extra.clone();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("id", json!(trust.id));
    put("trustor_user_id", json!(trust.trustor_user_id));
    put("trustee_user_id", json!(trust.trustee_user_id));
    put("project_id", json!(trust.project_id));
    put("impersonation", json!(trust.impersonation));
    put("expires_at", json!(trust.expires_at.map(Timestamp::iso_micros)));
    put("remaining_uses", json!(trust.remaining_uses));
    put("redelegated_trust_id", json!(trust.redelegated_trust_id));
    put("redelegation_count", json!(trust.redelegation_count));
    put("deleted_at", Value::Null);
    if let Some(known) = with {
        let of = trust.roles.iter().filter_map(|id| known.iter().find(|r| r.id == *id));
        put("roles", of.map(|r| roles::wire(cx, r)).collect());
        put("roles_links", json!({"self": cx.url(&format!("{path}/roles")), "next": null, "previous": null}));
    }
    put("links", json!({"self": cx.url(&path)}));
    Value::Object(map)
}

fn target(trust: &Trust) -> Target {
    Target::none()
        .set("target.trust.trustor_user_id", trust.trustor_user_id.as_str())
        .set("target.trust.trustee_user_id", trust.trustee_user_id.as_str())
}

/// An application credential or an OAuth access token is for one project; with trusts it would reach beyond.
async fn no_credential<T>(cx: &Cx, req: &Request<T>) -> Result<std::sync::Arc<Validated>> {
    let valid = cx.caller(req).await?;
    if valid.application_credential.is_some() {
        return Err(forbidden("Using method 'application_credential' is not allowed for managing trusts."));
    }
    if valid.access_token.is_some() {
        return Err(forbidden("Redelegation allowed for delegated by trust only."));
    }
    Ok(valid)
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let pairs = req.query_pairs();
    let by = |name: &str| pairs.get(name).map(UserId::new);
    let (trustor, trustee) = (by("trustor_user_id"), by("trustee_user_id"));
    let (rule, target) = match (&trustor, &trustee) {
        (Some(id), _) => (
            "identity:list_trusts_for_trustor",
            Target::none().set("target.trust.trustor_user_id", id.as_str()),
        ),
        (None, Some(id)) => (
            "identity:list_trusts_for_trustee",
            Target::none().set("target.trust.trustee_user_id", id.as_str()),
        ),
        (None, None) => ("identity:list_trusts", Target::none()),
    };
    if !cx.allows(rule, &target) {
        return Err(cx.dialect().policy_denied(rule));
    }
    no_credential(&cx, &req).await?;
    let mut found = cx
        .read(move |tx| {
            let mut query = Query::new();
            if let Some(id) = &trustor {
                query = query.eq("trustor_user_id", id);
            } else if let Some(id) = &trustee {
                query = query.eq("trustee_user_id", id);
            }
            tx.list::<Trust>(&query)
        })
        .await?;
    found.retain(|t| t.usable(cx.now()));
    let items = found.iter().map(|t| wire(&cx, t, None)).collect();
    listed(&cx, &req, "trusts", items, &["trustor_user_id", "trustee_user_id"])
}

/// The trust of the path, if the caller may. A trust's id is no secret to guess: what is not there is told first, as in
/// Keystone.
async fn allowed(cx: &Cx, req: &Request<()>) -> Result<(Trust, Vec<Role>)> {
    let (id, now) = (req.param("trust_id").to_owned(), cx.now());
    let text = id.clone();
    let found = cx
        .read(move |tx| {
            let Some(trust) = tx.get::<Trust>(&id)?.filter(|t| t.usable(now)) else { return Ok(None) };
            let roles = tx.list::<Role>(&Query::new().is_in("id", &trust.roles))?;
            Ok(Some((trust, roles)))
        })
        .await?;
    let found = found.ok_or_else(|| no_trust(&text))?;
    enforce(cx, &target(&found.0))?;
    no_credential(cx, req).await?;
    Ok(found)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (trust, roles) = allowed(&cx, &req).await?;
    Ok(one("trust", wire(&cx, &trust, Some(&roles))))
}

async fn list_roles(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (trust, known) = allowed(&cx, &req).await?;
    let shown = wire(&cx, &trust, Some(&known));
    Ok(Reply::json(&json!({"roles": shown["roles"], "links": shown["roles_links"]})))
}

async fn show_role(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (trust, known) = allowed(&cx, &req).await?;
    let id = req.param("role_id");
    let held = known.iter().find(|r| r.id.as_str() == id && trust.roles.contains(&r.id));
    held.map(|role| one("role", roles::wire(&cx, role))).ok_or_else(|| no_role(id))
}

/// How the body names a role: by id or by name.
fn named_roles(fields: &mut Fields) -> Result<Vec<(bool, String)>> {
    let mut named = Vec::new();
    for (i, map) in fields.objects("roles").unwrap_or_default().into_iter().enumerate() {
        let of = |key: &str| map.get(key).map(|value| (key == "id", value));
        let (by_id, value) =
            of("id").or_else(|| of("name")).ok_or_else(|| missing(&format!("roles/{i}/id")))?;
        let place = format!("roles/{i}/{}", if by_id { "id" } else { "name" });
        check(&place, Kind::Text(1, 255), false, value)?;
        named.push((by_id, value.as_str().unwrap_or_default().to_owned()));
    }
    Ok(named)
}

/// The roles named, all of which `holder` must have on the project.
fn settle_roles(
    tx: &mut Tx<'_>,
    named: &[(bool, String)],
    holder: &UserId,
    project: &ProjectId,
) -> Result<Vec<RoleId>> {
    let held = directory::roles_on(tx, holder, &Place::Project(project.clone()))?;
    let mut ids: Vec<RoleId> = Vec::new();
    for (by_id, text) in named {
        let found = held.iter().find(|r| if *by_id { r.id.as_str() == text } else { r.name == *text });
        let id = found.ok_or_else(|| no_role(text))?.id.clone();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// What the caller's own trust allows a trust made from it.
fn within(parent: &Trust, child: &mut Trust) -> Result<()> {
    let refuse = |text: &str| Err(Error::forbidden(text.to_owned()));
    if parent.redelegation_count == 0 {
        return refuse("Redelegation depth of 0 is out of allowed range");
    }
    if parent.remaining_uses.is_some() {
        return refuse("remaining_uses must not be set if redelegation is allowed");
    }
    match (parent.expires_at, child.expires_at) {
        (Some(end), Some(wanted)) if wanted > end => {
            return refuse("Requested expiration time is more than redelegated trust can provide");
        }
        (Some(end), None) => child.expires_at = Some(end),
        _ => {}
    }
    if child.roles.iter().any(|r| !parent.roles.contains(r)) {
        return refuse("Some of requested roles are not in redelegated trust");
    }
    if child.impersonation && !parent.impersonation {
        return refuse(
            "Impersonation is not allowed because redelegated trust does not specify impersonation.",
        );
    }
    Ok(())
}

/// How deep trusts may be made from the new one.
fn depth(fields: &mut Fields, most: u64, parent: Option<&Trust>, uses: Option<u64>) -> Result<u64> {
    let asked = fields.int("redelegation_count").and_then(|n| u64::try_from(n).ok());
    let allowed = fields.flag("allow_redelegation").unwrap_or(false) && asked != Some(0);
    if !allowed {
        return Ok(0);
    }
    if asked.is_some_and(|n| n > most) {
        return Err(Error::forbidden(format!(
            "Requested redelegation depth of {} is greater than allowed {most}",
            asked.unwrap_or_default()
        )));
    }
    if uses.is_some() {
        return Err(invalid("remaining_uses", "must not be set if redelegation is allowed"));
    }
    let Some(parent) = parent else { return Ok(asked.unwrap_or(most)) };
    let left = parent.redelegation_count.saturating_sub(1);
    if asked.is_some_and(|n| n != left) {
        return Err(Error::forbidden(
            "Modifying \"redelegation_count\" upon redelegation is forbidden. Omitting this parameter is advised.",
        ));
    }
    Ok(left)
}

async fn create(cx: Cx, req: Request<Doc<TrustCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let trustor = UserId::new(fields.text("trustor_user_id").unwrap_or_default());
    enforce(&cx, &Target::none().set("target.trust.trustor_user_id", trustor.as_str()))?;
    let valid = no_credential(&cx, &req).await?;
    if *cx.user_id() != trustor {
        return Err(forbidden("The authenticated user should match the trustor."));
    }
    let named = named_roles(&mut fields)?;
    let project = fields.nullable("project_id").flatten().map(ProjectId::new);
    if project.is_some() && named.is_empty() {
        return Err(forbidden("At least one role should be specified."));
    }
    let expires_at = super::expiry(fields.nullable("expires_at").flatten().as_deref(), cx.now())?;
    let remaining_uses = fields.int("remaining_uses").and_then(|n| u64::try_from(n).ok());
    fields.nullable("redelegated_trust_id");
    let parent = match &valid.trust {
        None => None,
        Some(by) => {
            let id = by.id.clone();
            Some(cx.read(move |tx| tx.get::<Trust>(&id)).await?.ok_or_else(|| no_trust(&by.id))?)
        }
    };
    let redelegation_count =
        depth(&mut fields, cx.config.operator.max_redelegation_count, parent.as_ref(), remaining_uses)?;
    let mut trust = Trust {
        id: cx.entropy.uuid().simple().to_string(),
        meta: store::Meta::default(),
        trustor_user_id: trustor,
        trustee_user_id: UserId::new(fields.text("trustee_user_id").unwrap_or_default()),
        project_id: project,
        impersonation: fields.flag("impersonation").unwrap_or(false),
        roles: Vec::new(),
        expires_at,
        remaining_uses,
        redelegated_trust_id: parent.map(|p| p.id),
        redelegation_count,
        extra: Map::new(),
    };
    // Whoever acts by a trust in one project cannot make one for another.
    if valid.trust.is_some() && trust.project_id.as_ref() != valid.auth.project_id() {
        return Err(forbidden("The trust is for another project."));
    }
    fields.value("deleted_at");
    trust.extra = fields.extra();
    let made = cx
        .write(move |tx| {
            let mut trust = trust.clone();
            directory::user(tx, &trust.trustee_user_id)?;
            let parent = match &trust.redelegated_trust_id {
                Some(id) => Some(tx.get::<Trust>(id)?.ok_or_else(|| no_trust(id))?),
                None => None,
            };
            let chain = match parent {
                Some(parent) => directory::pedigree(tx, parent)?,
                None => Vec::new(),
            };
            // The roles must be those of the one who delegated first.
            let origin = chain.last().map_or(&trust.trustor_user_id, |t| &t.trustor_user_id).clone();
            let mut known = Vec::new();
            if let Some(project) = &trust.project_id {
                directory::project(tx, project)?;
                trust.roles = settle_roles(tx, &named, &origin, project)?;
                known = tx.list::<Role>(&Query::new().is_in("id", &trust.roles))?;
            }
            for parent in &chain {
                within(parent, &mut trust)?;
            }
            tx.insert(&mut trust)?;
            Ok((trust, known))
        })
        .await?;
    Ok(one("trust", wire(&cx, &made.0, Some(&made.1))))
}

/// Ends a trust and all made from it.
fn end(tx: &mut Tx<'_>, id: &str) -> Result<()> {
    let mut open = vec![id.to_owned()];
    while let Some(id) = open.pop() {
        let Some(trust) = tx.get::<Trust>(&id)? else { continue };
        open.extend(tx.list_ids::<Trust>(&Query::new().eq("redelegated_trust_id", &id))?);
        tx.delete::<Trust>(&id)?;
        revocations::note(tx, Of::Trust(&id))?;
        directory::touch_user(tx, &trust.trustor_user_id)?;
        directory::touch_user(tx, &trust.trustee_user_id)?;
    }
    Ok(())
}

/// Ends the trusts of a user who is deleted.
pub(super) fn of_user_end(tx: &mut Tx<'_>, user: &UserId) -> Result<()> {
    let mut ids = tx.list_ids::<Trust>(&Query::new().eq("trustor_user_id", user))?;
    ids.extend(tx.list_ids::<Trust>(&Query::new().eq("trustee_user_id", user))?);
    ids.iter().try_for_each(|id| end(tx, id))
}

/// Ends the trusts for a project that is deleted.
pub(super) fn of_project_end(tx: &mut Tx<'_>, project: &ProjectId) -> Result<()> {
    let ids = tx.list_ids::<Trust>(&Query::new().eq("project_id", project))?;
    ids.iter().try_for_each(|id| end(tx, id))
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (trust, _) = allowed(&cx, &req).await?;
    // Under the trustor's name a trustee could end what the trustor gave others; Keystone lets it.
    let by = cx.caller(&req).await?.trust.as_ref().map(|t| t.id.clone());
    cx.write(move |tx| {
        if let Some(by) = &by {
            let from = directory::pedigree(tx, trust.clone())?;
            if !from.iter().skip(1).any(|t| t.id == *by) {
                return Err(forbidden("Only trusts made from the token's own trust can be deleted with it."));
            }
        }
        end(tx, &trust.id)
    })
    .await?;
    Ok(Reply::empty())
}
