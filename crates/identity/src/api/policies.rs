//! Policies as Keystone keeps them (texts without meaning to it) and which endpoints, services and regions they are for
//! (`OS-ENDPOINT-POLICY`).

use ::api::{Op, Reply, Request, Target};
use base::{Error, Result};
use serde_json::{Value, json};
use store::{Query, Tx};

use super::{Cx, catalog, enforce, entity, inserted, listed, listed_all, one};
use crate::directory;
use crate::logic::body::{Doc, Kind, invalid, may, must, shape};
use crate::model::{Endpoint, PolicyAssociation, PolicyText, Region};
use crate::state::State;
use crate::words::no_policy;

shape!(PolicyCreate, "policy", true, [must("blob", Kind::TextOrObject), must("type", Kind::Text(0, 255)),]);
shape!(PolicyUpdate, "policy", true, [may("blob", Kind::TextOrObject), may("type", Kind::Text(0, 255)),]);

/// What a policy can be for.
#[derive(Debug, Clone, Copy)]
enum For {
    Endpoint,
    Service,
    Region,
}

pub(super) fn ops() -> Vec<Op<State>> {
    const ONE: &str = "/v3/policies/{policy_id}";
    let mut ops = vec![
        Op::get("/v3/policies", "identity:list_policies", list).summary("Lists policies."),
        Op::post("/v3/policies", "identity:create_policy", create).status(201).summary("Keeps a policy."),
        Op::get(ONE, "identity:get_policy", show).summary("Shows a policy."),
        Op::patch(ONE, "identity:update_policy", update).summary("Changes a policy."),
        Op::delete(ONE, "identity:delete_policy", delete).summary("Deletes a policy."),
        Op::get(
            "/v3/policies/{policy_id}/OS-ENDPOINT-POLICY/endpoints",
            "identity:list_endpoints_for_policy",
            list_endpoints,
        )
        .summary("Lists the endpoints a policy is for."),
        Op::get(
            "/v3/endpoints/{endpoint_id}/OS-ENDPOINT-POLICY/policy",
            "identity:get_policy_for_endpoint",
            of_endpoint,
        )
        .summary("Shows the policy that is for an endpoint."),
    ];
    for (of, tail, name) in [
        (For::Endpoint, "endpoints/{endpoint_id}", "endpoint"),
        (For::Service, "services/{service_id}", "service"),
        (For::Region, "services/{service_id}/regions/{region_id}", "region_and_service"),
    ] {
        let path = format!("/v3/policies/{{policy_id}}/OS-ENDPOINT-POLICY/{tail}");
        let rule = |verb: &str| format!("identity:{verb}_policy_association_for_{name}");
        ops.extend([
            Op::put(path.clone(), rule("create"), move |cx, req: Request<()>| associate(cx, req, of))
                .status(204)
                .summary("Says what a policy is for."),
            Op::get(path.clone(), rule("check"), move |cx, req: Request<()>| check(cx, req, of))
                .status(204)
                .summary("Checks what a policy is for."),
            Op::delete(path, rule("delete"), move |cx, req: Request<()>| dissociate(cx, req, of))
                .summary("Says that a policy is no longer for something."),
        ]);
    }
    ops
}

fn wire(cx: &Cx, policy: &PolicyText) -> Value {
    let own = json!({"id": policy.id, "type": policy.kind, "blob": policy.blob});
    entity(cx, &format!("/v3/policies/{}", policy.id), own, &policy.extra)
}

fn policy(tx: &mut Tx<'_>, id: &str) -> Result<PolicyText> {
    tx.get::<PolicyText>(&id.to_owned())?.ok_or_else(|| no_policy(id))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    listed_all::<PolicyText, _>(&cx, &req, "policies", wire, &["type"]).await
}

async fn create(cx: Cx, req: Request<Doc<PolicyCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let policy = PolicyText {
        id: cx.entropy.uuid().simple().to_string(),
        meta: store::Meta::default(),
        kind: fields.raw_text("type").unwrap_or_default(),
        blob: fields.value("blob").unwrap_or_default(),
        extra: fields.extra(),
    };
    let made = inserted(&cx, policy).await?;
    Ok(one("policy", wire(&cx, &made)))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("policy_id").to_owned();
    let found = cx.read(move |tx| policy(tx, &id)).await?;
    Ok(one("policy", wire(&cx, &found)))
}

async fn update(cx: Cx, req: Request<Doc<PolicyUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    if fields.is_empty() {
        return Err(invalid("policy", "{} does not have enough properties"));
    }
    let id = req.param("policy_id").to_owned();
    fields.same_id(&id)?;
    let (kind, blob, extra) = (fields.raw_text("type"), fields.value("blob"), fields.extra());
    let changed = cx
        .write(move |tx| {
            let mut policy = policy(tx, &id)?;
            if let Some(kind) = &kind {
                policy.kind.clone_from(kind);
            }
            if let Some(blob) = &blob {
                policy.blob.clone_from(blob);
            }
            policy.extra.extend(extra.clone());
            tx.update(&mut policy)?;
            Ok(policy)
        })
        .await?;
    Ok(one("policy", wire(&cx, &changed)))
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("policy_id").to_owned();
    cx.write(move |tx| {
        policy(tx, &id)?;
        tx.delete_where::<PolicyAssociation>(&Query::new().eq("policy_id", &id))?;
        tx.delete::<PolicyText>(&id)
    })
    .await?;
    Ok(Reply::empty())
}

/// The association the path names; everything it names must exist.
async fn named(cx: &Cx, req: &Request<()>, of: For) -> Result<PolicyAssociation> {
    enforce(cx, &Target::none())?;
    let text = |name: &str| req.param(name).to_owned();
    let (of_policy, endpoint, service, region) =
        (text("policy_id"), text("endpoint_id"), text("service_id"), text("region_id"));
    cx.read(move |tx| {
        let policy_id = policy(tx, &of_policy)?.id;
        let mut made = PolicyAssociation {
            id: String::new(),
            meta: store::Meta::default(),
            policy_id,
            endpoint_id: None,
            service_id: None,
            region_id: None,
        };
        match of {
            For::Endpoint => made.endpoint_id = Some(catalog::endpoint(tx, &endpoint)?.id),
            For::Service => made.service_id = Some(catalog::service(tx, &service)?.id),
            For::Region => {
                made.service_id = Some(catalog::service(tx, &service)?.id);
                made.region_id = Some(catalog::region(tx, &region)?.id);
            }
        }
        made.id = PolicyAssociation::id_of(
            made.endpoint_id.as_ref(),
            made.service_id.as_ref(),
            made.region_id.as_ref(),
        );
        Ok(made)
    })
    .await
}

async fn associate(cx: Cx, req: Request<()>, of: For) -> Result<Reply> {
    let wanted = named(&cx, &req, of).await?;
    cx.write(move |tx| {
        policy(tx, &wanted.policy_id)?;
        // One policy for each thing: a new one takes the place of the old.
        tx.delete::<PolicyAssociation>(&wanted.id)?;
        directory::insert_once(tx, &mut wanted.clone())
    })
    .await?;
    Ok(Reply::empty())
}

fn not_associated() -> Error {
    Error::not_found("Could not find policy association.")
}

async fn check(cx: Cx, req: Request<()>, of: For) -> Result<Reply> {
    let wanted = named(&cx, &req, of).await?;
    let id = wanted.id.clone();
    let found = cx.read(move |tx| tx.get::<PolicyAssociation>(&id)).await?;
    let held = found.is_some_and(|a| a.policy_id == wanted.policy_id);
    if held { Ok(Reply::empty()) } else { Err(not_associated()) }
}

async fn dissociate(cx: Cx, req: Request<()>, of: For) -> Result<Reply> {
    let wanted = named(&cx, &req, of).await?;
    cx.write(move |tx| {
        let held = tx.get::<PolicyAssociation>(&wanted.id)?;
        if held.is_none_or(|a| a.policy_id != wanted.policy_id) {
            return Err(not_associated());
        }
        tx.delete::<PolicyAssociation>(&wanted.id)
    })
    .await?;
    Ok(Reply::empty())
}

/// The association that decides for an endpoint: its own, that of its service in its region or a region around, that of
/// its service.
fn decides(tx: &mut Tx<'_>, endpoint: &Endpoint) -> Result<Option<PolicyAssociation>> {
    let own = tx.first::<PolicyAssociation>(&Query::new().eq("endpoint_id", &endpoint.id))?;
    if own.is_some() {
        return Ok(own);
    }
    let of_service = tx.list::<PolicyAssociation>(&Query::new().eq("service_id", &endpoint.service_id))?;
    let mut next = endpoint.region_id.clone();
    for _ in 0..directory::DEEPEST {
        let Some(region) = next else { break };
        if let Some(found) = of_service.iter().find(|a| a.region_id.as_ref() == Some(&region)) {
            return Ok(Some(found.clone()));
        }
        next = tx.get::<Region>(&region)?.and_then(|r| r.parent_region_id);
    }
    Ok(of_service.into_iter().find(|a| a.region_id.is_none()))
}

async fn list_endpoints(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("policy_id").to_owned();
    let found = cx
        .read(move |tx| {
            policy(tx, &id)?;
            let mut found = Vec::new();
            for endpoint in tx.list::<Endpoint>(&Query::new())? {
                if decides(tx, &endpoint)?.is_some_and(|a| a.policy_id == id) {
                    found.push(endpoint);
                }
            }
            Ok(found)
        })
        .await?;
    let items = found.iter().map(|e| catalog::endpoint_wire(&cx, e)).collect();
    listed(&cx, &req, "endpoints", items, &[])
}

async fn of_endpoint(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_id").to_owned();
    let found = cx
        .read(move |tx| {
            let endpoint = catalog::endpoint(tx, &id)?;
            let deciding = decides(tx, &endpoint)?
                .ok_or_else(|| Error::not_found(format!("No policy is associated with endpoint {id}.")))?;
            policy(tx, &deciding.policy_id)
        })
        .await?;
    Ok(one("policy", wire(&cx, &found)))
}
