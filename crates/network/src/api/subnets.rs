//! `/v2.0/subnets`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::{JsonSchema, Op, Reply, Request};
use base::net::IpNet;
use base::{Error, NetworkId, Result, SubnetId};
use contract::net::Key;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Meta, Query, Tx};

use super::listing::{self, View};
use super::networks::Opened;
use super::subnetpools;
use super::wire::{
    Bulk, Ip, LaxBool, LaxInt, Maybe, Name, Obj, One, Patch, Text, Uuid, What, Wire, invalid, missing,
    not_found, read_only,
};
use super::{
    Cx, attribute_rules, attributes, check_revision, expected_revision, narrow, owner, standard, target, view,
};
use crate::db::{self, quota, wake};
use crate::ids::SubnetPoolId;
use crate::logic::ipam::{self, Pool, Shape, invalid_input};
use crate::model::{Network, Port, ROUTER_INTERFACE, Route, Subnet};
use crate::{Env, State};

const ATTRIBUTES: &[&str] = attributes![
    "network_id",
    "ip_version",
    "cidr",
    "gateway_ip",
    "enable_dhcp",
    "dns_nameservers",
    "allocation_pools",
    "host_routes",
    "ipv6_ra_mode",
    "ipv6_address_mode",
    "subnetpool_id",
    "service_types",
    "dns_publish_fixed_ip",
    "segment_id",
    "router:external",
    "shared",
];
/// Most name servers and host routes of a subnet, as in Neutron.
const MAX_DNS: usize = 5;
const MAX_ROUTES: usize = 20;

/// A mode of IPv6 addressing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
enum Mode {
    /// Router advertisements.
    #[serde(rename = "slaac")]
    Slaac,
    /// DHCPv6 gives addresses.
    #[serde(rename = "dhcpv6-stateful")]
    Stateful,
    /// DHCPv6 gives everything but addresses.
    #[serde(rename = "dhcpv6-stateless")]
    Stateless,
}

impl Mode {
    fn text(self) -> String {
        match self {
            Mode::Slaac => "slaac",
            Mode::Stateful => "dhcpv6-stateful",
            Mode::Stateless => "dhcpv6-stateless",
        }
        .into()
    }
}

/// A route in a request.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteBody {
    destination: Text<1, 64>,
    nexthop: Ip,
}

impl RouteBody {
    /// Checked.
    pub(super) fn read(&self, field: &str) -> Result<Route> {
        let destination = ipam::parse_cidr(&self.destination).map_err(|e| invalid(field, e))?;
        if !ipam::same_version(destination.network(), self.nexthop.0) {
            return Err(invalid(
                field,
                format!("'{}' and '{}' are of different IP versions", destination, self.nexthop),
            ));
        }
        Ok(Route { destination, nexthop: self.nexthop.0 })
    }
}

/// A subnet in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SubnetBody {
    name: Maybe<Name>,
    description: Maybe<Name>,
    network_id: Maybe<Uuid>,
    ip_version: Maybe<LaxInt<4, 6>>,
    cidr: Patch<Text<1, 64>>,
    gateway_ip: Patch<Ip>,
    enable_dhcp: Maybe<LaxBool>,
    dns_nameservers: Patch<Vec<Ip>>,
    allocation_pools: Patch<Vec<Obj<Pool>>>,
    host_routes: Patch<Vec<Obj<RouteBody>>>,
    ipv6_ra_mode: Maybe<Mode>,
    ipv6_address_mode: Maybe<Mode>,
    subnetpool_id: Patch<Text<1, 36>>,
    use_default_subnetpool: Maybe<LaxBool>,
    prefixlen: Patch<LaxInt<0, 128>>,
    service_types: Maybe<Vec<Name>>,
    dns_publish_fixed_ip: Maybe<LaxBool>,
    segment_id: Patch<Uuid>,
    project_id: Maybe<Text<0, 255>>,
    tenant_id: Maybe<Text<0, 255>>,
}

impl Wire for SubnetBody {
    const ONE: &'static str = "subnet";
    const MANY: &'static str = "subnets";
}

pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.0/subnets", "get_subnet", list).summary("Lists subnets."),
        Op::post("/v2.0/subnets", "create_subnet", create)
            .default_rule("rule:project_member_or_admin or rule:admin_or_network_owner")
            .status(201)
            .summary("Creates one or several subnets."),
        Op::get("/v2.0/subnets/{id}", "get_subnet", show).summary("Shows a subnet."),
        Op::put("/v2.0/subnets/{id}", "update_subnet", update).summary("Changes a subnet."),
        Op::delete("/v2.0/subnets/{id}", "delete_subnet", remove).summary("Removes a subnet."),
    ]
}

fn show_subnet(s: &Subnet) -> View {
    let mut v = view(json!({
        "id": s.id,
        "name": s.name,
        "network_id": s.network_id,
        "ip_version": s.ip_version,
        "cidr": s.cidr,
        "gateway_ip": s.gateway_ip,
        "enable_dhcp": s.enable_dhcp,
        "dns_nameservers": s.dns_nameservers,
        "allocation_pools": s.allocation_pools,
        "host_routes": s.host_routes,
        "ipv6_ra_mode": s.ipv6_ra_mode,
        "ipv6_address_mode": s.ipv6_address_mode,
        "subnetpool_id": s.subnetpool_id,
        "service_types": s.service_types,
        "dns_publish_fixed_ip": s.dns_publish_fixed_ip,
        "segment_id": null,
    }));
    standard(&mut v, &s.project_id, &s.description, Some(&s.tags), &s.meta);
    v
}

fn subnet_target(s: &Subnet, opened: &Opened) -> api::Target {
    let open = opened.shares(&s.network_id);
    target(What::Subnet, s.id, &s.project_id).flag("shared", open).visible(open)
}

/// The subnet if the caller may see it.
///
/// # Errors
/// `SubnetNotFound`.
pub(super) fn seen(cx: &Cx, tx: &mut Tx<'_>, id: SubnetId) -> Result<Subnet> {
    let subnet = tx.get::<Subnet>(&id)?.ok_or_else(|| not_found(What::Subnet, id))?;
    let opened = Opened::read(tx, cx.auth().project_id())?;
    cx.allow_rule("get_subnet", &subnet_target(&subnet, &opened))?;
    Ok(subnet)
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let query = narrow(Query::new(), &req, &["id", "name", "project_id", "network_id"]);
    let c = cx.clone();
    let views = cx
        .store
        .read(move |tx| {
            let project = c.auth().project_id();
            let opened = Opened::read(tx, project)?;
            let mut query = query.clone();
            if !c.is_admin() {
                let shared: Vec<&NetworkId> = opened.ids().filter(|id| opened.shares(id)).collect();
                let mut any = vec![Query::new().is_in("network_id", shared)];
                any.extend(project.map(|p| Query::new().eq("project_id", p)));
                query = query.any_of(any);
            }
            let mut rows = tx.list::<Subnet>(&query)?;
            rows.sort_by_key(|s| (s.meta.created_at, s.id));
            // Filters on the network's nature, as Neutron has them.
            let external: BTreeSet<NetworkId> =
                tx.list::<Network>(&Query::new().eq("external", true))?.into_iter().map(|n| n.id).collect();
            let with = |s: &Subnet| {
                let mut v = show_subnet(s);
                v.insert("router:external".into(), external.contains(&s.network_id).into());
                v.insert("shared".into(), opened.shares(&s.network_id).into());
                v
            };
            Ok(rows.iter().map(with).collect::<Vec<_>>())
        })
        .await?;
    let mut views = listing::filter(req.query_pairs(), ATTRIBUTES, views)?;
    for v in &mut views {
        v.shift_remove("router:external");
        v.shift_remove("shared");
    }
    listing::page(&cx, &req, "subnets", ATTRIBUTES, views)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SubnetId = req.id_or("id", |t| not_found(What::Subnet, t))?;
    let c = cx.clone();
    let subnet = cx.store.read(move |tx| seen(&c, tx, id)).await?;
    Ok(listing::one(&req, "subnet", show_subnet(&subnet)))
}

/// What was asked of a new subnet, put together and checked.
struct Plan {
    cidr: IpNet,
    pool: Option<SubnetPoolId>,
}

fn plan(cx: &Cx, tx: &mut Tx<'_>, body: &SubnetBody, net: &Network) -> Result<Plan> {
    let version = match body.ip_version.0.map(|n| n.get()) {
        Some(5) => return Err(invalid("ip_version", "'5' is not in [4, 6]")),
        other => other,
    };
    let cidr = body.cidr.as_ref().map(|t| ipam::parse_cidr(t).map_err(|e| invalid("cidr", e))).transpose()?;
    let wanted = subnetpools::wanted(
        cx,
        tx,
        body.subnetpool_id.as_ref().map(|t| t.as_str()),
        body.use_default_subnetpool.0.is_some_and(|b| b.0),
        version,
    )?;
    let Some(pool) = wanted else {
        let Some(version) = version else { return Err(missing("ip_version")) };
        let Some(cidr) = cidr else {
            let text = "Bad subnets request: a subnetpool must be specified in the absence of a cidr.";
            return Err(Error::bad_request(text).code("BadRequest"));
        };
        if i64::from(ipam::version(cidr.network())) != version {
            return Err(invalid_input(format!("cidr '{cidr}' does not match the ip_version '{version}'")));
        }
        if body.prefixlen.as_ref().is_some() {
            let text = "Bad subnets request: prefixlen and cidr cannot be used together.";
            return Err(Error::bad_request(text).code("BadRequest"));
        }
        return Ok(Plan { cidr, pool: None });
    };
    let prefixlen = body.prefixlen.as_ref().and_then(|n| u8::try_from(n.get()).ok());
    let cidr = subnetpools::carve(tx, &pool, &net.project_id, cidr, prefixlen)?;
    Ok(Plan { cidr, pool: Some(pool.id) })
}

/// Neutron's rule on overlaps within a network.
fn check_overlap(tx: &mut Tx<'_>, net: NetworkId, cidr: &IpNet) -> Result<()> {
    if db::networks::subnets_of(tx, net)?.iter().any(|s| ipam::overlap(&s.cidr, cidr)) {
        return Err(invalid_input(format!(
            "Requested subnet with cidr: {cidr} for network: {net} overlaps with another subnet"
        )));
    }
    Ok(())
}

fn name_servers(servers: &[Ip]) -> Result<Vec<IpAddr>> {
    if servers.len() > MAX_DNS {
        let text = format!(
            "Unable to complete operation for subnet. The number of DNS nameservers exceeds the limit {MAX_DNS}."
        );
        return Err(Error::bad_request(text).code("DNSNameServersExhausted"));
    }
    let list: Vec<IpAddr> = servers.iter().map(|s| s.0).collect();
    if let Some(twice) = list.iter().enumerate().find(|(i, ip)| list.iter().take(*i).any(|o| o == *ip)) {
        return Err(invalid("dns_nameservers", format!("Duplicate nameserver '{}'", twice.1)));
    }
    Ok(list)
}

fn host_routes(routes: &[Obj<RouteBody>]) -> Result<Vec<Route>> {
    if routes.len() > MAX_ROUTES {
        let text = format!(
            "Unable to complete operation for subnet. The number of host routes exceeds the limit {MAX_ROUTES}."
        );
        return Err(Error::bad_request(text).code("HostRoutesExhausted"));
    }
    let list = routes.iter().map(|r| r.read("host_routes")).collect::<Result<Vec<_>>>()?;
    if let Some((_, twice)) = list.iter().enumerate().find(|(i, r)| list.iter().take(*i).any(|o| o == *r)) {
        return Err(invalid(
            "host_routes",
            format!("Duplicate hostroute '{} via {}'", twice.destination, twice.nexthop),
        ));
    }
    Ok(list)
}

fn check_routes_version(cidr: &IpNet, routes: &[Route], servers: &[IpAddr]) -> Result<()> {
    if let Some(r) = routes.iter().find(|r| !ipam::same_version(r.nexthop, cidr.network())) {
        let text = format!(
            "nexthop '{}' does not match the ip_version '{}'",
            r.nexthop,
            ipam::version(cidr.network())
        );
        return Err(invalid_input(text));
    }
    if let Some(ip) = servers.iter().find(|s| !ipam::same_version(**s, cidr.network())) {
        let text = format!(
            "dns_nameserver '{ip}' does not match the ip_version '{}'",
            ipam::version(cidr.network())
        );
        return Err(invalid_input(text));
    }
    Ok(())
}

fn service_types(types: &[Name]) -> Result<Vec<String>> {
    let known = ["network:", "compute:", "baremetal:", "trunk:", "container:", "agent:"];
    types
        .iter()
        .map(|t| {
            if known.iter().any(|k| t.starts_with(k)) {
                Ok(t.as_str().to_owned())
            } else {
                let text = format!("Invalid subnet service type '{}'.", t.as_str());
                Err(Error::bad_request(text).code("InvalidSubnetServiceType"))
            }
        })
        .collect()
}

fn create_one(cx: &Cx, tx: &mut Tx<'_>, body: &SubnetBody) -> Result<View> {
    let Some(network) = body.network_id.0 else { return Err(missing("network_id")) };
    let net = super::networks::seen(cx, tx, NetworkId(network.0))?;
    if !cx.is_admin() && cx.auth().project_id() != Some(&net.project_id) {
        return Err(cx.dialect().policy_denied("create_subnet"));
    }
    // A subnet belongs to its network's owner unless an administrator says otherwise.
    let project = if body.project_id.0.is_some() || body.tenant_id.0.is_some() {
        owner(cx, &body.project_id, &body.tenant_id)?
    } else {
        net.project_id.clone()
    };
    attribute_rules(
        cx,
        &target(What::Network, net.id, &net.project_id),
        &[("service_types", body.service_types.0.as_ref().is_some_and(|t| !t.is_empty()))],
    )?;
    if body.segment_id.as_ref().is_some() {
        return Err(invalid("segment_id", "segments are not supported"));
    }
    let plan = plan(cx, tx, body, &net)?;
    let subnet = assemble(cx, &net, project, body, &plan)?;
    check_overlap(tx, net.id, &subnet.cidr)?;
    insert(tx, &cx.env, &net, subnet).map(|s| show_subnet(&s))
}

/// The row that the body asks for, checked as far as that goes without other rows.
fn assemble(
    cx: &Cx,
    net: &Network,
    project: base::ProjectId,
    body: &SubnetBody,
    plan: &Plan,
) -> Result<Subnet> {
    let gateway = match &body.gateway_ip {
        Patch::Absent => Some(ipam::default_gateway(&plan.cidr)),
        Patch::Null => None,
        Patch::Value(ip) => Some(ip.0),
    };
    let dhcp = body.enable_dhcp.0.is_none_or(|b| b.0);
    let (ra, mode) = (body.ipv6_ra_mode.0.map(Mode::text), body.ipv6_address_mode.0.map(Mode::text));
    let shape =
        Shape { cidr: plan.cidr, dhcp, gateway, ra_mode: ra.as_deref(), address_mode: mode.as_deref() };
    ipam::check_shape(&shape)?;
    let pools = match body.allocation_pools.as_ref() {
        None => ipam::default_pools(&plan.cidr, gateway),
        Some(pools) => {
            let pools: Vec<Pool> = pools.iter().map(|p| p.0).collect();
            ipam::check_pools(&plan.cidr, &pools, gateway)?;
            pools
        }
    };
    let text = |m: &Maybe<Name>| m.0.as_ref().map_or_else(String::new, |t| t.as_str().to_owned());
    let subnet = Subnet {
        id: SubnetId::random(&cx.env.entropy),
        meta: Meta::default(),
        project_id: project,
        network_id: net.id,
        name: text(&body.name),
        description: text(&body.description),
        ip_version: ipam::version(plan.cidr.network()),
        cidr: plan.cidr,
        gateway_ip: gateway,
        enable_dhcp: dhcp,
        dns_nameservers: name_servers(body.dns_nameservers.as_ref().map_or(&[], Vec::as_slice))?,
        allocation_pools: pools,
        host_routes: host_routes(body.host_routes.as_ref().map_or(&[], Vec::as_slice))?,
        ipv6_ra_mode: ra,
        ipv6_address_mode: mode,
        subnetpool_id: plan.pool,
        service_types: service_types(body.service_types.0.as_deref().unwrap_or_default())?,
        dns_publish_fixed_ip: body.dns_publish_fixed_ip.0.is_some_and(|b| b.0),
        tags: BTreeSet::new(),
    };
    check_routes_version(&subnet.cidr, &subnet.host_routes, &subnet.dns_nameservers)?;
    Ok(subnet)
}

/// Writes a new subnet: quota, row, metadata address, automatic addresses of ports that are there already.
pub(crate) fn insert(tx: &mut Tx<'_>, env: &Env, net: &Network, mut subnet: Subnet) -> Result<Subnet> {
    quota::claim::<Subnet>(tx, env, &subnet.project_id, "subnet", 1)?;
    tx.insert(&mut subnet)?;
    if subnet.enable_dhcp && !net.external {
        db::networks::add_metadata(tx, env, net, &subnet)?;
    }
    if ipam::is_auto(subnet.ipv6_address_mode.as_deref()) {
        for mut port in tx.list::<Port>(&Query::new().eq("network_id", net.id))? {
            if db::ports::trusted(&port.device_owner) {
                continue;
            }
            if let Some(ip) = db::ports::eui64(&subnet, port.mac_address) {
                port.fixed_ips.push(db::ipam::take(tx, &subnet, port.id, ip)?);
                db::ports::update(tx, &mut port)?;
            }
        }
    }
    db::networks::touch(tx, net.id)?;
    Ok(subnet)
}

async fn create(cx: Cx, req: Request<Bulk<SubnetBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let v = cx.store.write(move |tx| create_one(&c, tx, &body)).await?;
            Ok(listing::wrapped("subnet", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies.iter().map(|b| create_one(&c, tx, b).map(Value::Object)).collect::<Result<Vec<_>>>()
            };
            Ok(listing::wrapped("subnets", cx.store.write(make).await?))
        }
    }
}

/// Puts the body's changes into the row and checks the result.
fn apply(tx: &mut Tx<'_>, subnet: &mut Subnet, body: &SubnetBody) -> Result<()> {
    if let Some(name) = &body.name.0 {
        subnet.name = name.as_str().to_owned();
    }
    if let Some(text) = &body.description.0 {
        subnet.description = text.as_str().to_owned();
    }
    if let Some(gateway) = body.gateway_ip.clone().sent() {
        let gateway = gateway.map(|ip| ip.0);
        if gateway != subnet.gateway_ip {
            check_gateway_free(tx, subnet)?;
        }
        subnet.gateway_ip = gateway;
    }
    if let Some(on) = body.enable_dhcp.0 {
        subnet.enable_dhcp = on.0;
    }
    if let Some(servers) = body.dns_nameservers.clone().sent() {
        subnet.dns_nameservers = name_servers(&servers.unwrap_or_default())?;
    }
    if let Some(routes) = body.host_routes.clone().sent() {
        subnet.host_routes = host_routes(&routes.unwrap_or_default())?;
    }
    if let Some(pools) = body.allocation_pools.as_ref() {
        subnet.allocation_pools = pools.iter().map(|p| p.0).collect();
    }
    if let Some(types) = &body.service_types.0 {
        subnet.service_types = service_types(types)?;
    }
    if let Some(on) = body.dns_publish_fixed_ip.0 {
        subnet.dns_publish_fixed_ip = on.0;
    }
    ipam::check_shape(&Shape {
        cidr: subnet.cidr,
        dhcp: subnet.enable_dhcp,
        gateway: subnet.gateway_ip,
        ra_mode: subnet.ipv6_ra_mode.as_deref(),
        address_mode: subnet.ipv6_address_mode.as_deref(),
    })?;
    ipam::check_pools(&subnet.cidr, &subnet.allocation_pools, subnet.gateway_ip)?;
    check_routes_version(&subnet.cidr, &subnet.host_routes, &subnet.dns_nameservers)
}

/// The gateway cannot move away from under a router.
fn check_gateway_free(tx: &mut Tx<'_>, subnet: &Subnet) -> Result<()> {
    let Some(gateway) = subnet.gateway_ip else { return Ok(()) };
    let routers = Query::new().eq("network_id", subnet.network_id).eq("device_owner", ROUTER_INTERFACE);
    for port in tx.list::<Port>(&routers)? {
        if port.fixed_ips.iter().any(|f| f.subnet_id == subnet.id && f.ip_address == gateway) {
            let text =
                format!("Current gateway ip {gateway} already in use by port {}. Unable to update.", port.id);
            return Err(Error::conflict(text).code("GatewayIpInUse"));
        }
    }
    Ok(())
}

async fn update(cx: Cx, req: Request<One<SubnetBody>>) -> Result<Reply> {
    let id: SubnetId = req.id_or("id", |t| not_found(What::Subnet, t))?;
    let expected = expected_revision(&req)?;
    let (c, body) = (cx.clone(), req.body.0);
    read_only(&[
        ("network_id", body.network_id.0.is_some()),
        ("ip_version", body.ip_version.0.is_some()),
        ("cidr", !body.cidr.is_absent()),
        ("ipv6_ra_mode", body.ipv6_ra_mode.0.is_some()),
        ("ipv6_address_mode", body.ipv6_address_mode.0.is_some()),
        ("subnetpool_id", !body.subnetpool_id.is_absent()),
        ("use_default_subnetpool", body.use_default_subnetpool.0.is_some()),
        ("prefixlen", !body.prefixlen.is_absent()),
        ("project_id", body.project_id.0.is_some()),
        ("tenant_id", body.tenant_id.0.is_some()),
        ("segment_id", body.segment_id.as_ref().is_some()),
    ])?;
    let v = cx
        .store
        .write(move |tx| {
            let mut subnet = tx.get::<Subnet>(&id)?.ok_or_else(|| not_found(What::Subnet, id))?;
            let opened = Opened::read(tx, c.auth().project_id())?;
            let to = subnet_target(&subnet, &opened);
            c.allow(&to)?;
            check_revision(expected, &subnet.meta)?;
            attribute_rules(&c, &to, &[("service_types", body.service_types.0.is_some())])?;
            let (dhcp, gateway) = (subnet.enable_dhcp, subnet.gateway_ip);
            apply(tx, &mut subnet, &body)?;
            tx.update(&mut subnet)?;
            let net = tx.need::<Network>(&subnet.network_id)?;
            if subnet.enable_dhcp && !dhcp && !net.external {
                db::networks::add_metadata(tx, &c.env, &net, &subnet)?;
            } else if dhcp && !subnet.enable_dhcp {
                db::networks::drop_metadata(tx, &subnet)?;
            }
            db::networks::touch(tx, subnet.network_id)?;
            if gateway != subnet.gateway_ip {
                wake_routers(tx, subnet.network_id)?;
            }
            Ok(show_subnet(&subnet))
        })
        .await?;
    Ok(listing::wrapped("subnet", v))
}

/// Routers with a leg on this network have items that depend on it.
fn wake_routers(tx: &mut Tx<'_>, net: NetworkId) -> Result<()> {
    for port in tx.list::<Port>(&Query::new().eq("network_id", net))? {
        if let (true, Ok(router)) = (db::ports::trusted(&port.device_owner), port.device_id.parse()) {
            wake(tx, Key::Router(router))?;
        }
    }
    Ok(())
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SubnetId = req.id_or("id", |t| not_found(What::Subnet, t))?;
    let expected = expected_revision(&req)?;
    let c = cx.clone();
    cx.store
        .write(move |tx| {
            let subnet = tx.get::<Subnet>(&id)?.ok_or_else(|| not_found(What::Subnet, id))?;
            let opened = Opened::read(tx, c.auth().project_id())?;
            c.allow(&subnet_target(&subnet, &opened))?;
            check_revision(expected, &subnet.meta)?;
            db::networks::delete_subnet(tx, &subnet)
        })
        .await?;
    Ok(Reply::empty())
}
