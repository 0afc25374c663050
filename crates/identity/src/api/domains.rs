//! Domains.

use ::api::{Op, Reply, Request, Target};
use base::{DomainId, Error, Result};
use serde_json::{Map, Value, json};
use store::Query;

use super::projects::{self, Change};
use super::{
    Cx, enforce, entity, groups, immutable, immutable_error, listed, may_change, merge_options, one, options,
    own_domain_target, token_domain, users,
};
use crate::directory;
use crate::logic::body::{Doc, Kind, may, may_null, must, shape};
use crate::model::{
    Assignment, Domain, DomainConfig, Group, ImpliedRole, LdapEntry, Limit, Project, Role, User,
};
use crate::revocations::{self, Of};
use crate::state::State;
use crate::words::{no_domain, told};

shape!(
    DomainCreate,
    "domain",
    true,
    [
        must("name", Kind::Text(1, 64)),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
        may("tags", Kind::Tags),
        may("options", Kind::Object),
        may("explicit_domain_id", Kind::Id),
    ]
);

shape!(
    DomainUpdate,
    "domain",
    true,
    [
        may("name", Kind::Text(1, 64)),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
        may("tags", Kind::Tags),
        may("options", Kind::Object),
    ]
);

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v3/domains", "identity:list_domains", list).summary("Lists domains."),
        Op::post("/v3/domains", "identity:create_domain", create).status(201).summary("Makes a domain."),
        Op::get("/v3/domains/{domain_id}", "identity:get_domain", show).summary("Shows a domain."),
        Op::patch("/v3/domains/{domain_id}", "identity:update_domain", update).summary("Changes a domain."),
        Op::delete("/v3/domains/{domain_id}", "identity:delete_domain", delete)
            .summary("Deletes a disabled domain and all that is in it."),
    ]
}

pub(super) fn wire(cx: &Cx, domain: &Domain) -> Value {
    let own = json!({
        "id": domain.id, "name": domain.name, "description": domain.description, "enabled": domain.enabled,
        "tags": domain.tags, "options": domain.options,
    });
    entity(cx, &format!("/v3/domains/{}", domain.id), own, &domain.extra)
}

/// Adds the policy attributes of a domain; of one that does not exist: nothing.
pub(super) fn target(onto: Target, domain: Option<&Domain>) -> Target {
    match domain {
        None => onto,
        Some(domain) => onto.set("target.domain.id", domain.id.as_str()),
    }
}

async fn allowed<T>(cx: &Cx, req: &Request<T>) -> Result<Domain> {
    let text = req.param("domain_id").to_owned();
    let id = DomainId::new(text.clone());
    let domain = cx.read(move |tx| tx.get::<Domain>(&id)).await?;
    enforce(cx, &target(Target::none(), domain.as_ref()))?;
    domain.ok_or_else(|| no_domain(&text))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &own_domain_target(&cx))?;
    let own = token_domain(&cx);
    let found = cx
        .read(move |tx| {
            let query = Query::new();
            let query = if let Some(own) = &own { query.eq("id", own) } else { query };
            tx.list::<Domain>(&query)
        })
        .await?;
    let items = found.iter().map(|d| wire(&cx, d)).collect();
    listed(&cx, &req, "domains", items, &["name", "enabled"])
}

fn conflict(name: &str) -> String {
    format!("Duplicate entry found with name {name}")
}

async fn create(cx: Cx, req: Request<Doc<DomainCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let domain = Domain {
        id: fields.text("explicit_domain_id").map_or_else(|| DomainId::random(&cx.entropy), DomainId::new),
        meta: store::Meta::default(),
        name: fields.text("name").unwrap_or_default(),
        description: fields.nullable("description").flatten().unwrap_or_default(),
        enabled: fields.flag("enabled").unwrap_or(true),
        tags: fields.tags("tags").unwrap_or_default(),
        options: options(fields.object("options"), &[("immutable", true)])?.unwrap_or_default(),
        extra: fields.extra(),
        revoked_before: None,
    };
    let made = cx
        .write(move |tx| {
            let mut domain = domain.clone();
            told(tx.insert(&mut domain), "domain", || conflict(&domain.name))?;
            Ok(domain)
        })
        .await?;
    Ok(one("domain", wire(&cx, &made)))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let domain = allowed(&cx, &req).await?;
    Ok(one("domain", wire(&cx, &domain)))
}

async fn update(cx: Cx, req: Request<Doc<DomainUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let held = allowed(&cx, &req).await?;
    fields.same_id(held.id.as_str())?;
    let change = Change::of(&mut fields)?;
    let changed = apply(&cx, held.id, change, fields.extra()).await?;
    Ok(one("domain", wire(&cx, &changed)))
}

/// Changes a domain; whoever calls has asked the policy.
pub(super) async fn apply(
    cx: &Cx,
    id: DomainId,
    change: Change,
    extra: Map<String, Value>,
) -> Result<Domain> {
    cx.write(move |tx| {
        let mut domain = directory::domain(tx, &id)?;
        may_change(&domain.options, change.options.as_ref(), "domain", domain.id.as_str())?;
        if let Some(name) = &change.name {
            domain.name.clone_from(name);
        }
        if let Some(description) = &change.description {
            domain.description.clone_from(description);
        }
        if let Some(enabled) = change.enabled {
            if domain.enabled && !enabled {
                domain.revoked_before = Some(tx.now());
                revocations::note(tx, Of::Domain(&domain.id))?;
            }
            domain.enabled = enabled;
        }
        if let Some(tags) = &change.tags {
            domain.tags.clone_from(tags);
        }
        if let Some(options) = &change.options {
            merge_options(&mut domain.options, options.clone());
        }
        domain.extra.extend(extra.clone());
        told(tx.update(&mut domain), "domain", || conflict(&domain.name))?;
        directory::touch_all(tx)?;
        Ok(domain)
    })
    .await
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = allowed(&cx, &req).await?.id;
    erase(&cx, id).await
}

/// Deletes a disabled domain with all that is in it; whoever calls has asked the policy.
pub(super) async fn erase(cx: &Cx, id: DomainId) -> Result<Reply> {
    cx.write(move |tx| {
        let domain = directory::domain(tx, &id)?;
        if immutable(&domain.options) {
            return Err(immutable_error("delete", "domain", id.as_str()));
        }
        if domain.enabled {
            return Err(Error::forbidden("Cannot delete a domain that is enabled, please disable it first."));
        }
        for project in tx.list_ids::<Project>(&Query::new().eq("domain_id", &id))? {
            projects::remove(tx, &base::ProjectId::new(project))?;
        }
        for user in tx.list_ids::<User>(&Query::new().eq("domain_id", &id))? {
            users::remove(tx, &base::UserId::new(user))?;
        }
        for group in tx.list_ids::<Group>(&Query::new().eq("domain_id", &id))? {
            groups::remove(tx, &base::GroupId::new(group))?;
        }
        for role in tx.list_ids::<Role>(&Query::new().eq("domain_key", id.as_str()))? {
            tx.delete_where::<ImpliedRole>(&Query::new().eq("prior_role_id", &role))?;
            tx.delete_where::<ImpliedRole>(&Query::new().eq("implied_role_id", &role))?;
            tx.delete_where::<Assignment>(&Query::new().eq("role_id", &role))?;
            tx.delete::<Role>(&base::RoleId::new(role))?;
        }
        tx.delete_where::<Assignment>(&Query::new().eq("domain_id", &id))?;
        tx.delete_where::<Limit>(&Query::new().eq("domain_id", &id))?;
        tx.delete::<DomainConfig>(&id)?;
        tx.delete_where::<LdapEntry>(&Query::new().eq("domain_id", &id))?;
        revocations::note(tx, Of::Domain(&id))?;
        tx.delete::<Domain>(&id)?;
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}
