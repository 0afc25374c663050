//! `/v2.0/rbac-policies`: who may use another project's network.

use api::{JsonSchema, Op, Reply, Request};
use base::{Error, NetworkId, Result};
use contract::net::Key;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Meta, Query, Tx};

use super::listing::{self, View};
use super::networks::{EXTERNAL, SHARED};
use super::wire::{Bulk, Maybe, One, Text, Uuid, What, Wire, invalid, missing, not_found, read_only};
use super::{Cx, attribute_rules, narrow, own_rows, owner, target, view};
use crate::State;
use crate::db::{self, quota, wake};
use crate::ids::RbacPolicyId;
use crate::model::{Network, Port, ROUTER_GATEWAY, RbacPolicy};

const ATTRIBUTES: &[&str] =
    &["id", "project_id", "tenant_id", "object_type", "object_id", "action", "target_tenant"];

/// A policy in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RbacBody {
    object_type: Maybe<Text<1, 255>>,
    object_id: Maybe<Uuid>,
    action: Maybe<Text<1, 255>>,
    target_tenant: Maybe<Text<1, 255>>,
    project_id: Maybe<Text<0, 255>>,
    tenant_id: Maybe<Text<0, 255>>,
}

impl Wire for RbacBody {
    const ONE: &'static str = "rbac_policy";
    const MANY: &'static str = "rbac_policies";
}

pub fn ops() -> Vec<Op<State>> {
    // Sharing across projects is the operator's business (scs-0126): tenants see their policies, administrators write.
    vec![
        Op::get("/v2.0/rbac-policies", "get_rbac_policy", list).summary("Lists who may use which network."),
        Op::post("/v2.0/rbac-policies", "create_rbac_policy", create)
            .default_rule("rule:admin_only")
            .status(201)
            .summary("Opens a network to a project."),
        Op::get("/v2.0/rbac-policies/{id}", "get_rbac_policy", show).summary("Shows a policy."),
        Op::put("/v2.0/rbac-policies/{id}", "update_rbac_policy", update)
            .default_rule("rule:admin_only")
            .summary("Changes whom a policy is for."),
        Op::delete("/v2.0/rbac-policies/{id}", "delete_rbac_policy", remove)
            .default_rule("rule:admin_only")
            .summary("Closes a network to a project."),
    ]
}

fn show_policy(p: &RbacPolicy) -> View {
    view(json!({
        "id": p.id, "project_id": p.project_id, "tenant_id": p.project_id, "object_type": p.object_type,
        "object_id": p.object_id, "action": p.action, "target_tenant": p.target_project,
    }))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let query = own_rows(&cx, narrow(Query::new(), &req, &["id", "project_id", "object_id", "action"]));
    let rows = cx.store.read(move |tx| tx.list::<RbacPolicy>(&query)).await?;
    listing::list(&cx, &req, "rbac_policies", ATTRIBUTES, rows.iter().map(show_policy).collect())
}

fn allowed(cx: &Cx, tx: &mut Tx<'_>, id: RbacPolicyId) -> Result<RbacPolicy> {
    let row = tx.get::<RbacPolicy>(&id)?.ok_or_else(|| not_found(What::Rbac, id))?;
    cx.allow(&target(What::Rbac, id, &row.project_id))?;
    Ok(row)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: RbacPolicyId = req.id_or("id", |t| not_found(What::Rbac, t))?;
    let c = cx.clone();
    let row = cx.store.read(move |tx| allowed(&c, tx, id)).await?;
    Ok(listing::one(&req, "rbac_policy", show_policy(&row)))
}

fn check_unique(tx: &mut Tx<'_>, p: &RbacPolicy) -> Result<()> {
    let same = Query::new()
        .eq("object_id", p.object_id)
        .eq("target_project", &p.target_project)
        .eq("action", &p.action);
    match tx.first::<RbacPolicy>(&same)?.filter(|o| o.id != p.id) {
        None => Ok(()),
        Some(_) => {
            Err(Error::conflict("An RBAC policy already exists with those values.")
                .code("DuplicateRbacPolicy"))
        }
    }
}

/// A policy for external access makes the network external; without any it is not.
fn follow(tx: &mut Tx<'_>, id: NetworkId) -> Result<()> {
    let external = tx.exists::<RbacPolicy>(&Query::new().eq("object_id", id).eq("action", EXTERNAL))?;
    let Some(mut net) = tx.get::<Network>(&id)? else { return Ok(()) };
    if net.external != external {
        net.external = external;
        tx.update(&mut net)?;
        wake(tx, Key::Network(id))?;
    }
    Ok(())
}

/// A policy that someone lives by cannot go.
fn check_unused(tx: &mut Tx<'_>, p: &RbacPolicy) -> Result<()> {
    let Some(net) = tx.get::<Network>(&p.object_id)? else { return Ok(()) };
    let concerns = |port: &Port| {
        port.project_id != net.project_id
            && (p.target_project == "*" || p.target_project == port.project_id.as_str())
    };
    let ports = tx.list::<Port>(&Query::new().eq("network_id", p.object_id))?;
    let used = match p.action.as_str() {
        SHARED => ports.iter().any(|port| concerns(port) && !db::ports::trusted(&port.device_owner)),
        _ => p.target_project == "*" && ports.iter().any(|port| port.device_owner == ROUTER_GATEWAY),
    };
    if used {
        let text = format!(
            "RBAC policy on object {} cannot be removed because other objects depend on it.\nDetails: Callback failed",
            p.object_id
        );
        return Err(Error::conflict(text).code("RbacPolicyInUse"));
    }
    Ok(())
}

fn create_one(cx: &Cx, tx: &mut Tx<'_>, body: &RbacBody) -> Result<View> {
    let Some(kind) = &body.object_type.0 else { return Err(missing("object_type")) };
    if kind.as_str() != "network" {
        return Err(invalid("object_type", format!("'{}' is not in ['network']", kind.as_str())));
    }
    let Some(object) = body.object_id.0 else { return Err(missing("object_id")) };
    let Some(action) = &body.action.0 else { return Err(missing("action")) };
    if ![SHARED, EXTERNAL].contains(&action.as_str()) {
        let text = format!(
            "Invalid action '{}' for object type 'network'. Valid actions: {SHARED}, {EXTERNAL}",
            action.as_str()
        );
        return Err(Error::bad_request(text).code("InvalidInput"));
    }
    let Some(tenant) = &body.target_tenant.0 else { return Err(missing("target_tenant")) };
    let net = super::networks::seen(cx, tx, NetworkId(object.0))?;
    let given = body.project_id.0.is_some() || body.tenant_id.0.is_some();
    let project = if given { owner(cx, &body.project_id, &body.tenant_id)? } else { net.project_id.clone() };
    let to = target(What::Network, net.id, &net.project_id);
    cx.allow(&to)?;
    attribute_rules(cx, &to, &[("target_tenant", tenant.as_str() == "*")])?;
    quota::claim::<RbacPolicy>(tx, &cx.env, &project, "rbac_policy", 1)?;
    let mut row = RbacPolicy {
        id: RbacPolicyId::random(&cx.env.entropy),
        meta: Meta::default(),
        project_id: project,
        object_type: "network".into(),
        object_id: net.id,
        action: action.as_str().to_owned(),
        target_project: tenant.as_str().to_owned(),
    };
    check_unique(tx, &row)?;
    tx.insert(&mut row)?;
    follow(tx, net.id)?;
    Ok(show_policy(&row))
}

async fn create(cx: Cx, req: Request<Bulk<RbacBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let v = cx.store.write(move |tx| create_one(&c, tx, &body)).await?;
            Ok(listing::wrapped("rbac_policy", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies.iter().map(|b| create_one(&c, tx, b).map(Value::Object)).collect::<Result<Vec<_>>>()
            };
            Ok(listing::wrapped("rbac_policies", cx.store.write(make).await?))
        }
    }
}

async fn update(cx: Cx, req: Request<One<RbacBody>>) -> Result<Reply> {
    let id: RbacPolicyId = req.id_or("id", |t| not_found(What::Rbac, t))?;
    let (c, body) = (cx.clone(), req.body.0);
    read_only(&[
        ("object_type", body.object_type.0.is_some()),
        ("object_id", body.object_id.0.is_some()),
        ("action", body.action.0.is_some()),
        ("project_id", body.project_id.0.is_some()),
        ("tenant_id", body.tenant_id.0.is_some()),
    ])?;
    let v = cx
        .store
        .write(move |tx| {
            let mut row = allowed(&c, tx, id)?;
            if let Some(tenant) = &body.target_tenant.0 {
                check_unused(tx, &row)?;
                row.target_project = tenant.as_str().to_owned();
                check_unique(tx, &row)?;
                tx.update(&mut row)?;
            }
            Ok(show_policy(&row))
        })
        .await?;
    Ok(listing::wrapped("rbac_policy", v))
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: RbacPolicyId = req.id_or("id", |t| not_found(What::Rbac, t))?;
    let c = cx.clone();
    cx.store
        .write(move |tx| {
            let row = allowed(&c, tx, id)?;
            check_unused(tx, &row)?;
            tx.delete::<RbacPolicy>(&id)?;
            follow(tx, row.object_id)
        })
        .await?;
    Ok(Reply::empty())
}
