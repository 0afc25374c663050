//! Unified limits: how much of a resource every project may have (registered limits), and one project or domain (limits).

use std::collections::BTreeMap;

use ::api::{Op, Reply, Request, Target};
use base::{DomainId, Error, ProjectId, RegionId, Result, ServiceId};
use contract::Scope;
use serde_json::{Value, json};
use store::{Query, Tx};

use super::{Cx, enforce, listed, listed_all, one};
use crate::logic::body::{Doc, Docs, Fields, Kind, invalid, may, may_null, missing, must, shape};
use crate::model::{Domain, Limit, Project, Region, RegisteredLimit, Service};
use crate::state::{LimitModel, State};
use crate::words::{duplicate, no_limit, no_registered_limit};

const MOST: i64 = 0x7fff_ffff;

shape!(
    RegisteredLimitCreate,
    "registered_limits",
    false,
    [
        must("service_id", Kind::Id),
        must("resource_name", Kind::Text(1, 255)),
        must("default_limit", Kind::Int(-1, MOST)),
        may_null("region_id", Kind::Text(1, 255)),
        may_null("description", Kind::Text(0, 65_535)),
    ]
);

shape!(
    RegisteredLimitUpdate,
    "registered_limit",
    false,
    [
        may("service_id", Kind::Id),
        may("resource_name", Kind::Text(1, 255)),
        may("default_limit", Kind::Int(-1, MOST)),
        may_null("region_id", Kind::Text(1, 255)),
        may_null("description", Kind::Text(0, 65_535)),
    ]
);

shape!(
    LimitCreate,
    "limits",
    false,
    [
        must("service_id", Kind::Id),
        must("resource_name", Kind::Text(1, 255)),
        must("resource_limit", Kind::Int(-1, MOST)),
        may_null("project_id", Kind::Id),
        may_null("domain_id", Kind::Id),
        may_null("region_id", Kind::Text(1, 255)),
        may_null("description", Kind::Text(0, 65_535)),
    ]
);

shape!(
    LimitUpdate,
    "limit",
    false,
    [may("resource_limit", Kind::Int(-1, MOST)), may_null("description", Kind::Text(0, 65_535)),]
);

pub(super) fn ops() -> Vec<Op<State>> {
    const REGISTERED: &str = "/v3/registered_limits";
    const ONE_REGISTERED: &str = "/v3/registered_limits/{registered_limit_id}";
    const ONE: &str = "/v3/limits/{limit_id}";
    vec![
        Op::get("/v3/limits", "identity:list_limits", list).summary("Lists limits the caller may see."),
        Op::post("/v3/limits", "identity:create_limits", create).status(201).summary("Makes limits."),
        Op::get("/v3/limits/model", "identity:get_limit_model", model).summary("Shows the limit model."),
        Op::get(ONE, "identity:get_limit", show).summary("Shows a limit."),
        Op::patch(ONE, "identity:update_limit", update).summary("Changes a limit."),
        Op::delete(ONE, "identity:delete_limit", delete).summary("Deletes a limit."),
        Op::get(REGISTERED, "identity:list_registered_limits", list_registered)
            .summary("Lists registered limits."),
        Op::post(REGISTERED, "identity:create_registered_limits", create_registered)
            .status(201)
            .summary("Makes registered limits."),
        Op::get(ONE_REGISTERED, "identity:get_registered_limit", show_registered)
            .summary("Shows a registered limit."),
        Op::patch(ONE_REGISTERED, "identity:update_registered_limit", update_registered)
            .summary("Changes a registered limit."),
        Op::delete(ONE_REGISTERED, "identity:delete_registered_limit", delete_registered)
            .summary("Deletes a registered limit that no limit overrides."),
    ]
}

fn region_of(key: &str) -> Option<&str> {
    Some(key).filter(|k| !k.is_empty())
}

fn registered_wire(cx: &Cx, limit: &RegisteredLimit) -> Value {
    json!({
        "id": limit.id, "service_id": limit.service_id, "region_id": region_of(&limit.region_key),
        "resource_name": limit.resource_name, "default_limit": limit.default_limit,
        "description": limit.description,
        "links": {"self": cx.url(&format!("/v3/registered_limits/{}", limit.id))},
    })
}

fn wire(cx: &Cx, limit: &Limit) -> Value {
    json!({
        "id": limit.id, "service_id": limit.service_id, "region_id": region_of(&limit.region_key),
        "project_id": limit.project_id, "domain_id": limit.domain_id, "resource_name": limit.resource_name,
        "resource_limit": limit.resource_limit, "description": limit.description,
        "links": {"self": cx.url(&format!("/v3/limits/{}", limit.id))},
    })
}

/// A body may name only services and regions that exist.
fn check_place(tx: &mut Tx<'_>, service: &ServiceId, region: &str) -> Result<()> {
    if tx.get::<Service>(service)?.is_none() {
        return Err(invalid("service_id", &format!("there is no service {service}")));
    }
    if !region.is_empty() && tx.get::<Region>(&RegionId::new(region))?.is_none() {
        return Err(invalid("region_id", &format!("there is no region {region}")));
    }
    Ok(())
}

// ---- registered limits

async fn list_registered(cx: Cx, req: Request<()>) -> Result<Reply> {
    listed_all::<RegisteredLimit, _>(
        &cx,
        &req,
        "registered_limits",
        registered_wire,
        &["service_id", "region_id", "resource_name"],
    )
    .await
}

fn conflict_free(tx: &mut Tx<'_>, limit: &RegisteredLimit) -> Result<()> {
    let query = Query::new()
        .eq("service_id", &limit.service_id)
        .eq("region_key", &limit.region_key)
        .eq("resource_name", &limit.resource_name);
    if tx.list::<RegisteredLimit>(&query)?.iter().any(|l| l.id != limit.id) {
        return Err(duplicate("registered_limit", "Duplicate entry"));
    }
    Ok(())
}

async fn create_registered(cx: Cx, req: Request<Docs<RegisteredLimitCreate>>) -> Result<Reply> {
    let all = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let limits: Vec<RegisteredLimit> = all
        .into_iter()
        .map(|mut fields| RegisteredLimit {
            id: cx.entropy.uuid().simple().to_string(),
            meta: store::Meta::default(),
            service_id: ServiceId::new(fields.text("service_id").unwrap_or_default()),
            region_key: fields.nullable("region_id").flatten().unwrap_or_default(),
            resource_name: fields.text("resource_name").unwrap_or_default(),
            default_limit: fields.int("default_limit").unwrap_or_default(),
            description: fields.nullable("description").flatten(),
        })
        .collect();
    let made = cx
        .write(move |tx| {
            let mut limits = limits.clone();
            for limit in &mut limits {
                check_place(tx, &limit.service_id, &limit.region_key)?;
                conflict_free(tx, limit)?;
                tx.insert(limit)?;
            }
            Ok(limits)
        })
        .await?;
    let shown: Vec<Value> = made.iter().map(|l| registered_wire(&cx, l)).collect();
    Ok(one("registered_limits", Value::Array(shown)))
}

fn registered(tx: &mut Tx<'_>, id: &str) -> Result<RegisteredLimit> {
    tx.get::<RegisteredLimit>(&id.to_owned())?.ok_or_else(|| no_registered_limit(id))
}

async fn show_registered(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = req.param("registered_limit_id").to_owned();
    let found = cx.read(move |tx| registered(tx, &id)).await?;
    Ok(one("registered_limit", registered_wire(&cx, &found)))
}

/// Whether limits override it: then its resource can neither change nor go.
fn overridden(tx: &mut Tx<'_>, limit: &RegisteredLimit) -> Result<()> {
    let query = Query::new()
        .eq("service_id", &limit.service_id)
        .eq("region_key", &limit.region_key)
        .eq("resource_name", &limit.resource_name);
    if tx.exists::<Limit>(&query)? {
        return Err(Error::forbidden(format!(
            "Unable to update or delete registered limit {} because there are project limits associated with it.",
            limit.id
        )));
    }
    Ok(())
}

async fn update_registered(cx: Cx, req: Request<Doc<RegisteredLimitUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id = req.param("registered_limit_id").to_owned();
    let (service, name) = (fields.text("service_id"), fields.text("resource_name"));
    let (region, most) = (fields.nullable("region_id"), fields.int("default_limit"));
    let description = fields.nullable("description");
    let changed = cx
        .write(move |tx| {
            let mut limit = registered(tx, &id)?;
            overridden(tx, &limit)?;
            if let Some(service) = &service {
                limit.service_id = ServiceId::new(service.clone());
            }
            if let Some(region) = &region {
                limit.region_key = region.clone().unwrap_or_default();
            }
            if let Some(name) = &name {
                limit.resource_name.clone_from(name);
            }
            limit.default_limit = most.unwrap_or(limit.default_limit);
            if let Some(description) = &description {
                limit.description.clone_from(description);
            }
            check_place(tx, &limit.service_id, &limit.region_key)?;
            conflict_free(tx, &limit)?;
            tx.update(&mut limit)?;
            Ok(limit)
        })
        .await?;
    Ok(one("registered_limit", registered_wire(&cx, &changed)))
}

async fn delete_registered(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("registered_limit_id").to_owned();
    cx.write(move |tx| {
        let limit = registered(tx, &id)?;
        overridden(tx, &limit)?;
        tx.delete::<RegisteredLimit>(&id)
    })
    .await?;
    Ok(Reply::empty())
}

// ---- limits

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let auth = cx.auth();
    let all = auth.scope == Scope::System || auth.has_role("admin") || auth.has_role("service");
    let scope = auth.scope.clone();
    let found = cx
        .read(move |tx| match &scope {
            _ if all => tx.list::<Limit>(&Query::new()),
            Scope::Project { id, .. } => tx.list::<Limit>(&Query::new().eq("project_id", id)),
            Scope::Domain { id, .. } => {
                let mut found = tx.list::<Limit>(&Query::new().eq("domain_id", id))?;
                let projects = tx.list_ids::<Project>(&Query::new().eq("domain_id", id))?;
                found.extend(tx.list::<Limit>(&Query::new().is_in("project_id", projects))?);
                Ok(found)
            }
            _ => Ok(Vec::new()),
        })
        .await?;
    let items = found.iter().map(|l| wire(&cx, l)).collect();
    let filters = ["service_id", "region_id", "resource_name", "project_id", "domain_id"];
    listed(&cx, &req, "limits", items, &filters)
}

fn limit_of(cx: &Cx, mut fields: Fields) -> Result<Limit> {
    let project = fields.nullable("project_id").flatten().map(ProjectId::new);
    let domain = fields.nullable("domain_id").flatten().map(DomainId::new);
    let owner_key = match (&project, &domain) {
        (Some(id), None) => id.as_str().to_owned(),
        (None, Some(id)) => id.as_str().to_owned(),
        (None, None) => return Err(missing("project_id")),
        (Some(_), Some(_)) => {
            return Err(invalid("domain_id", "a limit is for a project or a domain, not both"));
        }
    };
    Ok(Limit {
        id: cx.entropy.uuid().simple().to_string(),
        meta: store::Meta::default(),
        owner_key,
        project_id: project,
        domain_id: domain,
        service_id: ServiceId::new(fields.text("service_id").unwrap_or_default()),
        region_key: fields.nullable("region_id").flatten().unwrap_or_default(),
        resource_name: fields.text("resource_name").unwrap_or_default(),
        resource_limit: fields.int("resource_limit").unwrap_or_default(),
        description: fields.nullable("description").flatten(),
    })
}

async fn create(cx: Cx, req: Request<Docs<LimitCreate>>) -> Result<Reply> {
    let all = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let limits: Result<Vec<Limit>> = all.into_iter().map(|fields| limit_of(&cx, fields)).collect();
    let (limits, model) = (limits?, cx.config.operator.limit_model);
    let made = cx
        .write(move |tx| {
            let mut limits = limits.clone();
            for limit in &mut limits {
                settle_owner(tx, limit)?;
                check_place(tx, &limit.service_id, &limit.region_key)?;
                let same = of_resource(limit);
                if !tx.exists::<RegisteredLimit>(&same)? {
                    return Err(Error::forbidden(format!(
                        "Unable to create limits because there is no registered limit for {}.",
                        limit.resource_name
                    )));
                }
                if tx.exists::<Limit>(&of_resource(limit).eq("owner_key", &limit.owner_key))? {
                    return Err(duplicate("limit", "Duplicate entry"));
                }
                tx.insert(limit)?;
            }
            // All are there now: those of one request bind each other too.
            if model == LimitModel::StrictTwoLevel {
                limits.iter().try_for_each(|limit| fits(tx, limit))?;
            }
            Ok(limits)
        })
        .await?;
    let shown: Vec<Value> = made.iter().map(|l| wire(&cx, l)).collect();
    Ok(one("limits", Value::Array(shown)))
}

/// The owner must exist; a domain may be named as a project.
fn settle_owner(tx: &mut Tx<'_>, limit: &mut Limit) -> Result<()> {
    if let Some(id) = &limit.project_id
        && tx.get::<Project>(id)?.is_none()
    {
        let domain = DomainId::new(id.as_str());
        if tx.get::<Domain>(&domain)?.is_none() {
            return Err(invalid("project_id", &format!("there is no project {id}")));
        }
        (limit.project_id, limit.domain_id) = (None, Some(domain));
    }
    if let Some(id) = &limit.domain_id
        && tx.get::<Domain>(id)?.is_none()
    {
        return Err(invalid("domain_id", &format!("there is no domain {id}")));
    }
    Ok(())
}

fn of_resource(limit: &Limit) -> Query {
    Query::new()
        .eq("service_id", &limit.service_id)
        .eq("region_key", &limit.region_key)
        .eq("resource_name", &limit.resource_name)
}

/// The strict model: no project has more than its domain. `-1` is without limit.
fn fits(tx: &mut Tx<'_>, limit: &Limit) -> Result<()> {
    let size = |n: i64| if n < 0 { i64::MAX } else { n };
    let misfit = || {
        let (level, id) = match (&limit.project_id, &limit.domain_id) {
            (Some(id), _) => ("project_id", id.as_str()),
            (None, Some(id)) => ("domain_id", id.as_str()),
            (None, None) => ("project_id", ""),
        };
        Error::forbidden(format!(
            "Invalid resource limit: The resource limit ({level}: {id}, resource_name: {}, resource_limit: {}, service_id: {}, region_id: {}) doesn't satisfy current hierarchy model.",
            limit.resource_name, limit.resource_limit, limit.service_id, limit.region_key
        ))
    };
    if let Some(project) = &limit.project_id {
        let parent = tx.get::<Project>(project)?.map(|p| p.parent_id).unwrap_or_default();
        let of_parent = tx.first::<Limit>(&of_resource(limit).eq("owner_key", &parent))?;
        let most = match of_parent {
            Some(of) => of.resource_limit,
            None => tx.first::<RegisteredLimit>(&of_resource(limit))?.map_or(-1, |r| r.default_limit),
        };
        return if size(limit.resource_limit) > size(most) { Err(misfit()) } else { Ok(()) };
    }
    let Some(domain) = &limit.domain_id else { return Ok(()) };
    let projects = tx.list_ids::<Project>(&Query::new().eq("domain_id", domain))?;
    let theirs = tx.list::<Limit>(&of_resource(limit).is_in("project_id", projects))?;
    let more = theirs.iter().any(|l| size(l.resource_limit) > size(limit.resource_limit));
    if more { Err(misfit()) } else { Ok(()) }
}

fn limit(tx: &mut Tx<'_>, id: &str) -> Result<Limit> {
    tx.get::<Limit>(&id.to_owned())?.ok_or_else(|| no_limit(id))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let text = req.param("limit_id").to_owned();
    let id = text.clone();
    let found = cx
        .read(move |tx| {
            let Some(limit) = tx.get::<Limit>(&id)? else { return Ok(None) };
            let project = match &limit.project_id {
                Some(id) => tx.get::<Project>(id)?,
                None => None,
            };
            Ok(Some((limit, project)))
        })
        .await?;
    let mut target = Target::none();
    if let Some((limit, project)) = &found {
        if let Some(project) = project {
            target = target
                .set("target.limit.project_id", project.id.as_str())
                .set("target.limit.project.domain_id", project.domain_id.as_str());
        }
        if let Some(domain) = &limit.domain_id {
            target = target.set("target.limit.domain.id", domain.as_str());
        }
    }
    enforce(&cx, &target)?;
    let (limit, _) = found.ok_or_else(|| no_limit(&text))?;
    Ok(one("limit", wire(&cx, &limit)))
}

async fn update(cx: Cx, req: Request<Doc<LimitUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id = req.param("limit_id").to_owned();
    let (most, description) = (fields.int("resource_limit"), fields.nullable("description"));
    let model = cx.config.operator.limit_model;
    let changed = cx
        .write(move |tx| {
            let mut limit = limit(tx, &id)?;
            limit.resource_limit = most.unwrap_or(limit.resource_limit);
            if let Some(description) = &description {
                limit.description.clone_from(description);
            }
            tx.update(&mut limit)?;
            if model == LimitModel::StrictTwoLevel {
                fits(tx, &limit)?;
            }
            Ok(limit)
        })
        .await?;
    Ok(one("limit", wire(&cx, &changed)))
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("limit_id").to_owned();
    cx.write(move |tx| {
        limit(tx, &id)?;
        tx.delete::<Limit>(&id)
    })
    .await?;
    Ok(Reply::empty())
}

async fn model(cx: Cx, _: Request<()>) -> Result<Reply> {
    let (name, description) = match cx.config.operator.limit_model {
        LimitModel::Flat => {
            ("flat", "Limit enforcement and validation does not take project hierarchy into consideration.")
        }
        LimitModel::StrictTwoLevel => {
            ("strict_two_level", "This model requires project hierarchy never exceeds a depth of two")
        }
    };
    let model: BTreeMap<&str, &str> = [("name", name), ("description", description)].into();
    Ok(one("model", json!(model)))
}
