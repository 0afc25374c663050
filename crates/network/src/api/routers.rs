//! `/v2.0/routers`: routers and their gateways. Interfaces and extra routes are in `router_ports`.

use std::collections::BTreeSet;

use api::{JsonSchema, Op, Reply, Request, Target};
use base::{Error, NetworkId, ProjectId, Result, RouterId};
use contract::net::Key;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Meta, Query, Tx};

use super::listing::{self, View};
use super::ports::FixedIpBody;
use super::router_ports::{self, check_overlaps, read_routes};
use super::subnets::RouteBody;
use super::wire::{
    Bulk, LaxBool, Maybe, Name, Obj, One, Patch, Text, Uuid, What, Wire, not_found, read_only,
};
use super::{
    Cx, attribute_rules, attributes, check_revision, expected_revision, narrow, own_rows, owner, standard,
    target, view,
};
use crate::db::ports::Want;
use crate::db::{self, bury, quota, routing, wake};
use crate::model::{FloatingIp, Network, Port, ROUTER_GATEWAY, Router};
use crate::{Env, State};

const ATTRIBUTES: &[&str] = attributes![
    "admin_state_up",
    "status",
    "external_gateway_info",
    "routes",
    "distributed",
    "ha",
    "flavor_id",
    "availability_zone_hints",
    "availability_zones",
    "enable_ndp_proxy",
];

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GatewayBody {
    network_id: Uuid,
    #[serde(default)]
    enable_snat: Maybe<LaxBool>,
    #[serde(default)]
    external_fixed_ips: Maybe<Vec<Obj<FixedIpBody>>>,
}

/// `external_gateway_info`: `{}` means the same as null.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "an object with 'network_id', and optionally 'enable_snat' and 'external_fixed_ips'"
)]
enum Gateway {
    Some(Obj<GatewayBody>),
    None(Obj<Nothing>),
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// A router in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouterBody {
    name: Maybe<Name>,
    description: Maybe<Name>,
    admin_state_up: Maybe<LaxBool>,
    external_gateway_info: Patch<Gateway>,
    routes: Patch<Vec<Obj<RouteBody>>>,
    distributed: Patch<LaxBool>,
    ha: Patch<LaxBool>,
    flavor_id: Patch<Uuid>,
    availability_zone_hints: Maybe<Vec<Name>>,
    project_id: Maybe<Text<0, 255>>,
    tenant_id: Maybe<Text<0, 255>>,
}

impl Wire for RouterBody {
    const ONE: &'static str = "router";
    const MANY: &'static str = "routers";
}

pub fn ops() -> Vec<Op<State>> {
    let mut all = vec![
        Op::get("/v2.0/routers", "get_router", list).summary("Lists routers."),
        Op::post("/v2.0/routers", "create_router", create).status(201).summary("Creates routers."),
        Op::get("/v2.0/routers/{id}", "get_router", show).summary("Shows a router."),
        Op::put("/v2.0/routers/{id}", "update_router", update).summary("Changes a router."),
        Op::delete("/v2.0/routers/{id}", "delete_router", remove).summary("Removes a router."),
    ];
    all.extend(router_ports::ops());
    all
}

/// 400 in the words of the router plugin.
pub(super) fn bad_router(text: impl AsRef<str>) -> Error {
    Error::bad_request(format!("Bad router request: {}.", text.as_ref())).code("BadRequest")
}

pub(super) fn show_router(cx: &Cx, tx: &mut Tx<'_>, r: &Router) -> Result<View> {
    let gateway = match (r.gateway_network_id, r.gateway_port_id) {
        (Some(network), Some(port)) => {
            let ips = tx.get::<Port>(&port)?.map(|p| p.fixed_ips).unwrap_or_default();
            json!({"network_id": network, "external_fixed_ips": ips, "enable_snat": r.enable_snat})
        }
        _ => Value::Null,
    };
    let mut v = view(json!({
        "id": r.id,
        "name": r.name,
        "admin_state_up": r.admin_state_up,
        "status": "ACTIVE",
        "external_gateway_info": gateway,
        "routes": r.routes,
        "flavor_id": null,
        "availability_zone_hints": r.availability_zone_hints,
        "availability_zones": [cx.env.config.availability_zone],
    }));
    if cx.allows("get_router:internals", &Target::none()) {
        v.insert("distributed".into(), r.distributed.into());
        v.insert("ha".into(), r.ha.into());
    }
    standard(&mut v, &r.project_id, &r.description, Some(&r.tags), &r.meta);
    Ok(v)
}

/// The router if the operation is allowed on it.
///
/// # Errors
/// `RouterNotFound`; `Forbidden`.
pub(super) fn allowed(cx: &Cx, tx: &mut Tx<'_>, id: RouterId) -> Result<Router> {
    let router = tx.get::<Router>(&id)?.ok_or_else(|| not_found(What::Router, id))?;
    cx.allow(&target(What::Router, id, &router.project_id))?;
    Ok(router)
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let query = own_rows(&cx, narrow(Query::new(), &req, &["id", "name", "project_id"]));
    let c = cx.clone();
    let views = cx
        .store
        .read(move |tx| {
            let mut rows = tx.list::<Router>(&query)?;
            rows.sort_by_key(|r| (r.meta.created_at, r.id));
            rows.iter().map(|r| show_router(&c, tx, r)).collect::<Result<Vec<_>>>()
        })
        .await?;
    listing::list(&cx, &req, "routers", ATTRIBUTES, views)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: RouterId = req.id_or("id", |t| not_found(What::Router, t))?;
    let c = cx.clone();
    let v = cx
        .store
        .read(move |tx| {
            let router = allowed(&c, tx, id)?;
            show_router(&c, tx, &router)
        })
        .await?;
    Ok(listing::one(&req, "router", v))
}

/// The gateway a body asks for; `None` for none.
fn gateway_of(body: &Patch<Gateway>) -> Option<Option<&GatewayBody>> {
    match body {
        Patch::Absent => None,
        Patch::Null | Patch::Value(Gateway::None(_)) => Some(None),
        Patch::Value(Gateway::Some(g)) => Some(Some(g)),
    }
}

fn router_rules(cx: &Cx, to: &Target, body: &RouterBody) -> Result<()> {
    let gateway = gateway_of(&body.external_gateway_info).flatten();
    attribute_rules(
        cx,
        to,
        &[
            ("distributed", body.distributed.as_ref().is_some()),
            ("ha", body.ha.as_ref().is_some()),
            ("external_gateway_info:enable_snat", gateway.is_some_and(|g| g.enable_snat.0.is_some())),
            (
                "external_gateway_info:external_fixed_ips",
                gateway.is_some_and(|g| g.external_fixed_ips.0.is_some()),
            ),
        ],
    )
}

/// Gives the router a gateway, changes it, or takes it away.
fn set_gateway(cx: &Cx, tx: &mut Tx<'_>, router: &mut Router, body: Option<&GatewayBody>) -> Result<()> {
    let Some(body) = body else { return clear_gateway(tx, router) };
    let id = NetworkId(body.network_id.0);
    let net = super::networks::seen(cx, tx, id)?;
    if !net.external {
        return Err(bad_router(format!("Network {id} is not an external network")));
    }
    router.enable_snat =
        body.enable_snat.0.map_or(router.gateway_port_id.is_none() || router.enable_snat, |b| b.0);
    let wants: Option<Vec<Want>> =
        body.external_fixed_ips.0.as_ref().map(|l| l.iter().map(|f| f.want()).collect());
    if router.gateway_network_id == Some(id) {
        if let (Some(wants), Some(port)) = (wants, router.gateway_port_id) {
            let mut port = tx.need::<Port>(&port)?;
            let subnets = db::networks::subnets_of(tx, id)?;
            db::ports::readdress(tx, &cx.env, &subnets, &mut port, &wants)?;
            db::ports::update(tx, &mut port)?;
        }
        return Ok(());
    }
    clear_gateway(tx, router)?;
    connect_gateway(tx, &cx.env, router, &net, wants.as_deref())
}

/// Makes the gateway port on an external network.
pub(crate) fn connect_gateway(
    tx: &mut Tx<'_>,
    env: &Env,
    router: &mut Router,
    net: &Network,
    wants: Option<&[Want]>,
) -> Result<()> {
    let subnets = db::networks::subnets_of(tx, net.id)?;
    check_overlaps(tx, router.id, &subnets)?;
    // The cloud's own: it takes no port of the tenant's quota and the tenant does not see it.
    let mut port = db::ports::blank(env, net, ProjectId::new(""));
    port.device_id = router.id.to_string();
    port.device_owner = ROUTER_GATEWAY.into();
    port.port_security_enabled = false;
    let port = db::ports::create(tx, env, &subnets, port, wants, false)?;
    if port.fixed_ips.is_empty() {
        return Err(bad_router(format!("No IPs available for external network {}", net.id)));
    }
    router.gateway_network_id = Some(net.id);
    router.gateway_port_id = Some(port.id);
    Ok(())
}

fn clear_gateway(tx: &mut Tx<'_>, router: &mut Router) -> Result<()> {
    let (Some(net), Some(port)) = (router.gateway_network_id, router.gateway_port_id) else { return Ok(()) };
    if tx.count::<FloatingIp>(&Query::new().eq("router_id", router.id))? > 0 {
        let text = format!(
            "Gateway cannot be updated for router {}, since a gateway to external network {net} is required by one or more floating IPs.",
            router.id
        );
        return Err(Error::conflict(text).code("RouterExternalGatewayInUseByFloatingIp"));
    }
    if let Some(port) = tx.get::<Port>(&port)? {
        db::ports::delete(tx, &port)?;
    }
    router.gateway_network_id = None;
    router.gateway_port_id = None;
    router.enable_snat = true;
    Ok(())
}

/// A router with the defaults.
pub(crate) fn blank(env: &Env, project: ProjectId) -> Router {
    Router {
        id: RouterId::random(&env.entropy),
        meta: Meta::default(),
        project_id: project,
        name: String::new(),
        description: String::new(),
        admin_state_up: true,
        gateway_network_id: None,
        gateway_port_id: None,
        enable_snat: true,
        routes: Vec::new(),
        distributed: false,
        ha: true,
        availability_zone_hints: Vec::new(),
        tags: BTreeSet::new(),
    }
}

fn apply(router: &mut Router, body: &RouterBody) {
    if let Some(name) = &body.name.0 {
        router.name = name.as_str().to_owned();
    }
    if let Some(text) = &body.description.0 {
        router.description = text.as_str().to_owned();
    }
    if let Some(up) = body.admin_state_up.0 {
        router.admin_state_up = up.0;
    }
    if let Some(on) = body.distributed.as_ref() {
        router.distributed = on.0;
    }
    if let Some(on) = body.ha.as_ref() {
        router.ha = on.0;
    }
}

fn create_one(cx: &Cx, tx: &mut Tx<'_>, body: &RouterBody) -> Result<View> {
    let project = owner(cx, &body.project_id, &body.tenant_id)?;
    let to = Target::project(&project);
    cx.allow(&to)?;
    router_rules(cx, &to, body)?;
    check_flavor(body)?;
    quota::claim::<Router>(tx, &cx.env, &project, "router", 1)?;
    let mut router = blank(&cx.env, project);
    let hints = body.availability_zone_hints.0.iter().flatten().map(|h| h.as_str().to_owned());
    router.availability_zone_hints = super::catalog::check_zones(&cx.env, hints.collect())?;
    apply(&mut router, body);
    if let Some(gateway) = gateway_of(&body.external_gateway_info) {
        set_gateway(cx, tx, &mut router, gateway)?;
    }
    if let Some(routes) = body.routes.as_ref() {
        router.routes = read_routes(tx, &router, routes)?;
    }
    tx.insert(&mut router)?;
    wake(tx, Key::Router(router.id))?;
    show_router(cx, tx, &router)
}

fn check_flavor(body: &RouterBody) -> Result<()> {
    match body.flavor_id.as_ref() {
        None => Ok(()),
        Some(id) => Err(Error::not_found(format!("Flavor {id} could not be found.")).code("FlavorNotFound")),
    }
}

async fn create(cx: Cx, req: Request<Bulk<RouterBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let v = cx.state().write(move |tx| create_one(&c, tx, &body)).await?;
            Ok(listing::wrapped("router", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies.iter().map(|b| create_one(&c, tx, b).map(Value::Object)).collect::<Result<Vec<_>>>()
            };
            Ok(listing::wrapped("routers", cx.state().write(make).await?))
        }
    }
}

async fn update(cx: Cx, req: Request<One<RouterBody>>) -> Result<Reply> {
    let id: RouterId = req.id_or("id", |t| not_found(What::Router, t))?;
    let expected = expected_revision(&req)?;
    let (c, body) = (cx.clone(), req.body.0);
    read_only(&[
        ("flavor_id", body.flavor_id.as_ref().is_some()),
        ("availability_zone_hints", body.availability_zone_hints.0.is_some()),
        ("project_id", body.project_id.0.is_some()),
        ("tenant_id", body.tenant_id.0.is_some()),
    ])?;
    let v = cx
        .state()
        .write(move |tx| {
            let mut router = allowed(&c, tx, id)?;
            check_revision(expected, &router.meta)?;
            router_rules(&c, &target(What::Router, id, &router.project_id), &body)?;
            apply(&mut router, &body);
            if let Some(gateway) = gateway_of(&body.external_gateway_info) {
                set_gateway(&c, tx, &mut router, gateway)?;
            }
            if let Some(routes) = body.routes.clone().sent() {
                router.routes = read_routes(tx, &router, &routes.unwrap_or_default())?;
            }
            routing::touch(tx, &mut router)?;
            show_router(&c, tx, &router)
        })
        .await?;
    Ok(listing::wrapped("router", v))
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: RouterId = req.id_or("id", |t| not_found(What::Router, t))?;
    let expected = expected_revision(&req)?;
    let c = cx.clone();
    cx.state()
        .write(move |tx| {
            let mut router = allowed(&c, tx, id)?;
            check_revision(expected, &router.meta)?;
            if !routing::interfaces_of(tx, id)?.is_empty() {
                return Err(Error::conflict(format!("Router {id} still has ports")).code("RouterInUse"));
            }
            clear_gateway(tx, &mut router)?;
            tx.delete::<Router>(&id)?;
            bury(tx, Key::Router(id))
        })
        .await?;
    Ok(Reply::empty())
}
