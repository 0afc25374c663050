//! Interfaces and extra routes of routers: `/v2.0/routers/{id}/add_router_interface` and its siblings.

use std::net::IpAddr;

use api::{JsonSchema, Op, Reply, Request};
use base::{Error, PortId, Result, RouterId, SubnetId};
use serde::Deserialize;
use serde_json::json;
use store::Tx;

use super::Cx;
use super::listing;
use super::routers::{allowed, bad_router, show_router};
use super::subnets::{self, RouteBody};
use super::wire::{Maybe, Obj, One, Uuid, What, Wire, not_found};
use crate::db::ports::Want;
use crate::db::{self, quota, routing};
use crate::logic::ipam;
use crate::model::{Network, Port, ROUTER_INTERFACE, Route, Router, Subnet};
use crate::{Env, State};

/// Most static routes of a router, as in Neutron.
const MAX_ROUTES: usize = 30;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct InterfaceBody {
    subnet_id: Maybe<Uuid>,
    port_id: Maybe<Uuid>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RoutesBody {
    routes: Vec<Obj<RouteBody>>,
}

impl Wire for RoutesBody {
    const ONE: &'static str = "router";
    const MANY: &'static str = "routers";
}

pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::put("/v2.0/routers/{id}/add_router_interface", "add_router_interface", add)
            .summary("Connects a router to a subnet or port."),
        Op::put("/v2.0/routers/{id}/remove_router_interface", "remove_router_interface", remove)
            .summary("Disconnects a router from a subnet or port."),
        Op::put("/v2.0/routers/{id}/add_extraroutes", "add_extraroutes", add_routes)
            .summary("Adds static routes to those a router has."),
        Op::put("/v2.0/routers/{id}/remove_extraroutes", "remove_extraroutes", remove_routes)
            .summary("Takes static routes away from a router."),
    ]
}

fn reply(router: &Router, port: &Port, subnet: SubnetId, subnets: &[SubnetId]) -> Reply {
    Reply::json(&json!({
        "id": router.id,
        "tenant_id": router.project_id,
        "project_id": router.project_id,
        "port_id": port.id,
        "network_id": port.network_id,
        "subnet_id": subnet,
        "subnet_ids": subnets,
    }))
}

/// No two subnets of a router may share addresses, within one port or across ports.
///
/// # Errors
/// `BadRequest`.
pub(crate) fn check_overlaps(tx: &mut Tx<'_>, router: RouterId, new: &[Subnet]) -> Result<()> {
    for port in routing::ports_of(tx, router)? {
        for ip in &port.fixed_ips {
            let Some(old) = tx.get::<Subnet>(&ip.subnet_id)? else { continue };
            for subnet in new {
                if subnet.id == old.id {
                    return Err(bad_router(format!("Router already has a port on subnet {}", subnet.id)));
                }
                if ipam::overlap(&old.cidr, &subnet.cidr) {
                    return Err(bad_router(format!(
                        "Cidr {} of subnet {} overlaps with cidr {} of subnet {}",
                        subnet.cidr, subnet.id, old.cidr, old.id
                    )));
                }
            }
        }
    }
    Ok(())
}

fn add_by_subnet(cx: &Cx, tx: &mut Tx<'_>, router: &Router, id: SubnetId) -> Result<(Port, SubnetId)> {
    let subnet = subnets::seen(cx, tx, id)?;
    interface_on(tx, &cx.env, router, &subnet).map(|port| (port, id))
}

/// Connects the router to a subnet by its gateway address.
pub(crate) fn interface_on(tx: &mut Tx<'_>, env: &Env, router: &Router, subnet: &Subnet) -> Result<Port> {
    let Some(gateway) = subnet.gateway_ip else {
        return Err(bad_router("Subnet for router interface must have a gateway IP"));
    };
    check_overlaps(tx, router.id, std::slice::from_ref(subnet))?;
    let net = tx.need::<Network>(&subnet.network_id)?;
    let all = db::networks::subnets_of(tx, net.id)?;
    let want = [Want { subnet: Some(subnet.id), ip: Some(gateway) }];
    // All IPv6 subnets of a network share one interface.
    if subnet.cidr.network().is_ipv6() {
        let interfaces = routing::interfaces_of(tx, router.id)?;
        let same = |p: &Port| p.network_id == net.id && p.fixed_ips.iter().all(|f| f.ip_address.is_ipv6());
        if let Some(mut port) = interfaces.into_iter().find(same) {
            let kept = port.fixed_ips.clone();
            port.fixed_ips = db::ports::allocate(tx, env, &all, &port, Some(&want), &kept)?;
            db::ports::update(tx, &mut port)?;
            return Ok(port);
        }
    }
    quota::claim::<Port>(tx, env, &router.project_id, "port", 1)?;
    let mut port = db::ports::blank(env, &net, router.project_id.clone());
    port.device_id = router.id.to_string();
    port.device_owner = ROUTER_INTERFACE.into();
    port.port_security_enabled = false;
    db::ports::create(tx, env, &all, port, Some(&want), false)
}

fn add_by_port(cx: &Cx, tx: &mut Tx<'_>, router: &Router, id: PortId) -> Result<(Port, SubnetId)> {
    let mut port = super::ports::seen(cx, tx, id)?;
    if !port.device_id.is_empty() {
        let text = format!(
            "Unable to complete operation on port {id} for network {}. Port already has an attached device {}.",
            port.network_id, port.device_id
        );
        return Err(Error::conflict(text).code("PortInUse"));
    }
    let Some(first) = port.fixed_ips.first().map(|f| f.subnet_id) else {
        return Err(bad_router("Router port must have at least one fixed IP"));
    };
    if port.fixed_ips.iter().filter(|f| f.ip_address.is_ipv4()).count() > 1 {
        return Err(bad_router("Cannot have multiple IPv4 subnets on router port"));
    }
    let mut on = Vec::new();
    for ip in &port.fixed_ips {
        on.push(tx.need::<Subnet>(&ip.subnet_id)?);
    }
    check_overlaps(tx, router.id, &on)?;
    db::ports::set_groups(tx, &mut port, Default::default())?;
    port.device_id = router.id.to_string();
    port.device_owner = ROUTER_INTERFACE.into();
    port.port_security_enabled = false;
    port.allowed_address_pairs.clear();
    db::ports::update(tx, &mut port)?;
    Ok((port, first))
}

async fn add(cx: Cx, req: Request<Obj<InterfaceBody>>) -> Result<Reply> {
    let id: RouterId = req.id_or("id", |t| not_found(What::Router, t))?;
    let (subnet, port) = (req.body.subnet_id.0, req.body.port_id.0);
    let c = cx.clone();
    cx.state()
        .write(move |tx| {
            let mut router = allowed(&c, tx, id)?;
            let (port, subnet) = match (subnet, port) {
                (Some(_), Some(_)) => return Err(bad_router("Cannot specify both subnet-id and port-id")),
                (None, None) => return Err(bad_router("Either subnet_id or port_id must be specified")),
                (Some(subnet), None) => add_by_subnet(&c, tx, &router, SubnetId(subnet.0))?,
                (None, Some(port)) => add_by_port(&c, tx, &router, PortId(port.0))?,
            };
            routing::touch(tx, &mut router)?;
            let subnets: Vec<SubnetId> = port.fixed_ips.iter().map(|f| f.subnet_id).collect();
            Ok((router, port, subnet, subnets))
        })
        .await
        .map(|(router, port, subnet, subnets)| reply(&router, &port, subnet, &subnets))
}

/// The interface that a request names, and the subnets it leaves.
fn find_interface(
    tx: &mut Tx<'_>,
    router: RouterId,
    subnet: Option<SubnetId>,
    port: Option<PortId>,
) -> Result<(Port, Vec<SubnetId>)> {
    let interfaces = routing::interfaces_of(tx, router)?;
    let missing_port = |id: PortId| {
        Error::not_found(format!("Router {router} does not have an interface with id {id}"))
            .code("RouterInterfaceNotFound")
    };
    let has = |p: &Port, s: SubnetId| p.fixed_ips.iter().any(|f| f.subnet_id == s);
    match (port, subnet) {
        (Some(id), subnet) => {
            let port = interfaces.into_iter().find(|p| p.id == id).ok_or_else(|| missing_port(id))?;
            if let Some(subnet) = subnet.filter(|s| !has(&port, *s)) {
                let text = format!("Subnet on port {id} does not match the requested subnet {subnet}.");
                return Err(Error::conflict(text).code("SubnetMismatchForPort"));
            }
            let all = port.fixed_ips.iter().map(|f| f.subnet_id).collect();
            Ok((port, all))
        }
        (None, Some(id)) => {
            if tx.get::<Subnet>(&id)?.is_none() {
                return Err(not_found(What::Subnet, id));
            }
            let port = interfaces.into_iter().find(|p| has(p, id)).ok_or_else(|| {
                Error::not_found(format!("Router {router} has no interface on subnet {id}"))
                    .code("RouterInterfaceNotFoundForSubnet")
            })?;
            Ok((port, vec![id]))
        }
        (None, None) => Err(bad_router("Either subnet_id or port_id must be specified")),
    }
}

fn check_unneeded(tx: &mut Tx<'_>, router: &Router, subnet: SubnetId) -> Result<()> {
    if routing::needs_interface(tx, router.id, subnet)? {
        let text = format!(
            "Router interface for subnet {subnet} on router {} cannot be deleted, as it is required by one or more floating IPs.",
            router.id
        );
        return Err(Error::conflict(text).code("RouterInterfaceInUseByFloatingIP"));
    }
    let cidr = tx.get::<Subnet>(&subnet)?.map(|s| s.cidr);
    if cidr.is_some_and(|c| router.routes.iter().any(|r| c.contains(&r.nexthop))) {
        let text = format!(
            "Router interface for subnet {subnet} on router {} cannot be deleted, as it is required by one or more routes.",
            router.id
        );
        return Err(Error::conflict(text).code("RouterInterfaceInUseByRoute"));
    }
    Ok(())
}

async fn remove(cx: Cx, req: Request<Obj<InterfaceBody>>) -> Result<Reply> {
    let id: RouterId = req.id_or("id", |t| not_found(What::Router, t))?;
    let subnet = req.body.subnet_id.0.map(|id| SubnetId(id.0));
    let port = req.body.port_id.0.map(|id| PortId(id.0));
    let c = cx.clone();
    cx.state()
        .write(move |tx| {
            let mut router = allowed(&c, tx, id)?;
            let (mut port, leaves) = find_interface(tx, id, subnet, port)?;
            for subnet in &leaves {
                check_unneeded(tx, &router, *subnet)?;
            }
            if port.fixed_ips.iter().all(|f| leaves.contains(&f.subnet_id)) {
                db::ports::delete(tx, &port)?;
            } else {
                for gone in port.fixed_ips.iter().filter(|f| leaves.contains(&f.subnet_id)) {
                    db::ipam::release(tx, gone)?;
                }
                port.fixed_ips.retain(|f| !leaves.contains(&f.subnet_id));
                db::ports::update(tx, &mut port)?;
            }
            routing::touch(tx, &mut router)?;
            Ok((router, port, leaves))
        })
        .await
        .map(|(router, port, leaves)| {
            let first = leaves.first().copied().or(subnet).unwrap_or(SubnetId(uuid::Uuid::nil()));
            reply(&router, &port, first, &leaves)
        })
}

/// Checks the routes of a router that is to have exactly these.
///
/// # Errors
/// `RoutesExhausted`, `InvalidRoutes` (400).
pub(super) fn read_routes(tx: &mut Tx<'_>, router: &Router, bodies: &[Obj<RouteBody>]) -> Result<Vec<Route>> {
    let mut routes: Vec<Route> = Vec::new();
    for body in bodies {
        let route = body.read("routes")?;
        if routes.contains(&route) {
            let text = format!("Duplicate routes found: '{} via {}'", route.destination, route.nexthop);
            return Err(super::wire::invalid("routes", text));
        }
        routes.push(route);
    }
    check_routes(tx, router, &routes)?;
    Ok(routes)
}

fn check_routes(tx: &mut Tx<'_>, router: &Router, routes: &[Route]) -> Result<()> {
    if routes.len() > MAX_ROUTES {
        let text = format!(
            "Unable to complete operation for {}. The number of routes exceeds the maximum {MAX_ROUTES}.",
            router.id
        );
        return Err(Error::bad_request(text).code("RoutesExhausted"));
    }
    if routes.is_empty() {
        return Ok(());
    }
    let mut cidrs = Vec::new();
    let mut own: Vec<IpAddr> = Vec::new();
    let ports = routing::ports_of(tx, router.id)?;
    for ip in ports.iter().flat_map(|p| &p.fixed_ips) {
        own.push(ip.ip_address);
        cidrs.extend(tx.get::<Subnet>(&ip.subnet_id)?.map(|s| s.cidr));
    }
    for route in routes {
        let reason = if !cidrs.iter().any(|c| c.contains(&route.nexthop)) {
            "the nexthop is not connected with router"
        } else if own.contains(&route.nexthop) {
            "the nexthop is used by router"
        } else {
            continue;
        };
        let text = format!(
            "Invalid format for routes: {{'destination': '{}', 'nexthop': '{}'}}, {reason}",
            route.destination, route.nexthop
        );
        return Err(Error::bad_request(text).code("InvalidRoutes"));
    }
    Ok(())
}

async fn change_routes(cx: Cx, req: Request<One<RoutesBody>>, add: bool) -> Result<Reply> {
    let id: RouterId = req.id_or("id", |t| not_found(What::Router, t))?;
    let (c, body) = (cx.clone(), req.body.0);
    let v = cx
        .state()
        .write(move |tx| {
            let mut router = allowed(&c, tx, id)?;
            let changes = body.routes.iter().map(|r| r.read("routes")).collect::<Result<Vec<_>>>()?;
            if add {
                for route in changes {
                    if !router.routes.contains(&route) {
                        router.routes.push(route);
                    }
                }
                check_routes(tx, &router, &router.routes.clone())?;
            } else {
                router.routes.retain(|r| !changes.contains(r));
            }
            routing::touch(tx, &mut router)?;
            show_router(&c, tx, &router)
        })
        .await?;
    Ok(listing::wrapped("router", v))
}

async fn add_routes(cx: Cx, req: Request<One<RoutesBody>>) -> Result<Reply> {
    change_routes(cx, req, true).await
}

async fn remove_routes(cx: Cx, req: Request<One<RoutesBody>>) -> Result<Reply> {
    change_routes(cx, req, false).await
}
