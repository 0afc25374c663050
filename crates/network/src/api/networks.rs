//! `/v2.0/networks` and `/v2.0/network-ip-availabilities`.

use std::collections::{BTreeMap, BTreeSet};

use api::{JsonSchema, Op, Reply, Request, Target};
use base::{Error, NetworkId, ProjectId, Result, SubnetId};
use contract::net::Key;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Meta, Query, Tx};

use super::listing::{self, View};
use super::wire::{Bulk, LaxBool, LaxInt, Maybe, Name, One, Patch, Text, What, Wire, invalid, not_found};
use super::{
    Cx, attribute_rules, attributes, check_revision, expected_revision, narrow, owner, standard, target, view,
};
use crate::db::{self, opened_to, quota, wake};
use crate::ids::RbacPolicyId;
use crate::logic::ipam;
use crate::logic::ipam::invalid_input;
use crate::model::{Allocation, Network, Port, ROUTER_GATEWAY, RbacPolicy, Subnet};
use crate::{Env, State};

/// Of a network policy: others may use it.
pub const SHARED: &str = "access_as_shared";
/// Of a network policy: others may use it as external network.
pub const EXTERNAL: &str = "access_as_external";

const ATTRIBUTES: &[&str] = attributes![
    "admin_state_up",
    "status",
    "mtu",
    "subnets",
    "shared",
    "router:external",
    "is_default",
    "port_security_enabled",
    "dns_domain",
    "availability_zone_hints",
    "availability_zones",
    "ipv4_address_scope",
    "ipv6_address_scope",
    "l2_adjacency",
    "provider:network_type",
    "provider:physical_network",
    "provider:segmentation_id",
];

/// A network in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkBody {
    name: Maybe<Name>,
    description: Maybe<Name>,
    admin_state_up: Maybe<LaxBool>,
    shared: Maybe<LaxBool>,
    #[serde(rename = "router:external")]
    external: Maybe<LaxBool>,
    is_default: Maybe<LaxBool>,
    mtu: Patch<LaxInt<0, 65_535>>,
    port_security_enabled: Maybe<LaxBool>,
    dns_domain: Maybe<Name>,
    #[serde(rename = "provider:network_type")]
    network_type: Patch<Text<1, 32>>,
    #[serde(rename = "provider:physical_network")]
    physical_network: Patch<Text<1, 64>>,
    #[serde(rename = "provider:segmentation_id")]
    segmentation_id: Patch<LaxInt<1, 16_777_215>>,
    availability_zone_hints: Maybe<Vec<Name>>,
    project_id: Maybe<Text<0, 255>>,
    tenant_id: Maybe<Text<0, 255>>,
}

impl Wire for NetworkBody {
    const ONE: &'static str = "network";
    const MANY: &'static str = "networks";
}

pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.0/networks", "get_network", list).summary("Lists networks."),
        Op::post("/v2.0/networks", "create_network", create)
            .status(201)
            .summary("Creates one or several networks."),
        Op::get("/v2.0/networks/{id}", "get_network", show).summary("Shows a network."),
        Op::put("/v2.0/networks/{id}", "update_network", update).summary("Changes a network."),
        Op::delete("/v2.0/networks/{id}", "delete_network", remove)
            .summary("Removes a network with its subnets."),
        Op::get("/v2.0/network-ip-availabilities", "get_network_ip_availability", availabilities)
            .default_rule("rule:admin_only")
            .summary("Lists how many addresses networks have and use."),
        Op::get("/v2.0/network-ip-availabilities/{id}", "get_network_ip_availability", availability)
            .default_rule("rule:admin_only")
            .summary("Shows how many addresses a network has and uses."),
    ]
}

/// Which networks others opened to the caller.
pub(super) struct Opened {
    shared: BTreeSet<NetworkId>,
    external: BTreeSet<NetworkId>,
}

impl Opened {
    /// Reads the policies for the caller.
    pub(super) fn read(tx: &mut Tx<'_>, project: Option<&ProjectId>) -> Result<Self> {
        Ok(Opened {
            shared: opened_to(tx, project, SHARED)?.into_iter().collect(),
            external: opened_to(tx, project, EXTERNAL)?.into_iter().collect(),
        })
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &NetworkId> {
        self.shared.union(&self.external)
    }

    pub(super) fn has(&self, id: &NetworkId) -> bool {
        self.shared.contains(id) || self.external.contains(id)
    }

    pub(super) fn shares(&self, id: &NetworkId) -> bool {
        self.shared.contains(id)
    }
}

/// The policy target of a network.
pub(super) fn network_target(net: &Network, open: bool) -> Target {
    target(What::Network, net.id, &net.project_id)
        .set("network_project_id", net.project_id.as_str())
        .flag("shared", open)
        .visible(open)
}

/// The network if the caller may see it.
///
/// # Errors
/// `NetworkNotFound`.
pub(super) fn seen(cx: &Cx, tx: &mut Tx<'_>, id: NetworkId) -> Result<Network> {
    seen_with(cx, tx, id).map(|(net, _)| net)
}

/// As [`seen`], with what others opened to the caller.
///
/// # Errors
/// `NetworkNotFound`.
pub(super) fn seen_with(cx: &Cx, tx: &mut Tx<'_>, id: NetworkId) -> Result<(Network, Opened)> {
    let net = tx.get::<Network>(&id)?.ok_or_else(|| not_found(What::Network, id))?;
    let opened = Opened::read(tx, cx.auth().project_id())?;
    cx.allow_rule("get_network", &network_target(&net, opened.has(&id)))?;
    Ok((net, opened))
}

fn show_network(cx: &Cx, net: &Network, subnets: &[SubnetId], opened: &Opened) -> View {
    let mut v = view(json!({
        "id": net.id,
        "name": net.name,
        "admin_state_up": net.admin_state_up,
        "status": if net.admin_state_up { "ACTIVE" } else { "DOWN" },
        "mtu": net.mtu,
        "subnets": subnets,
        "shared": opened.shares(&net.id),
        "router:external": net.external,
        "port_security_enabled": net.port_security_enabled,
        "dns_domain": net.dns_domain,
        "availability_zone_hints": net.availability_zone_hints,
        "availability_zones": [cx.env.config.availability_zone],
        "ipv4_address_scope": null,
        "ipv6_address_scope": null,
        "l2_adjacency": true,
    }));
    if net.external {
        v.insert("is_default".into(), net.is_default.into());
    }
    standard(&mut v, &net.project_id, &net.description, Some(&net.tags), &net.meta);
    if cx.allows("get_network:provider", &Target::none()) {
        v.insert("provider:network_type".into(), net.network_type.as_str().into());
        v.insert("provider:physical_network".into(), listing::json(&net.physical_network));
        v.insert("provider:segmentation_id".into(), listing::json(&net.segmentation_id));
    }
    v
}

fn view_one(cx: &Cx, tx: &mut Tx<'_>, net: &Network) -> Result<View> {
    let subnets: Vec<SubnetId> = db::networks::subnets_of(tx, net.id)?.iter().map(|s| s.id).collect();
    let opened = Opened::read(tx, cx.auth().project_id())?;
    Ok(show_network(cx, net, &subnets, &opened))
}

/// The networks the caller sees, and what others opened to the caller.
fn visible(cx: &Cx, tx: &mut Tx<'_>, query: Query) -> Result<(Vec<Network>, Opened)> {
    let project = cx.auth().project_id();
    let opened = Opened::read(tx, project)?;
    let query = if cx.is_admin() {
        query
    } else {
        let mut any = vec![Query::new().is_in("id", opened.ids())];
        any.extend(project.map(|p| Query::new().eq("project_id", p)));
        query.any_of(any)
    };
    let mut rows = tx.list::<Network>(&query)?;
    // Clients take the first external network they find: the one meant for them comes first.
    rows.sort_by_key(|n| (!n.is_default, n.meta.created_at, n.id));
    Ok((rows, opened))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let query = narrow(Query::new(), &req, &["id", "name", "project_id"]);
    let c = cx.clone();
    let views = cx
        .store
        .read(move |tx| {
            let (rows, opened) = visible(&c, tx, query.clone())?;
            let mut subnets: BTreeMap<NetworkId, Vec<Subnet>> = BTreeMap::new();
            for subnet in tx.list::<Subnet>(&Query::new().is_in("network_id", rows.iter().map(|n| n.id)))? {
                subnets.entry(subnet.network_id).or_default().push(subnet);
            }
            for all in subnets.values_mut() {
                all.sort_by_key(|s| (s.meta.created_at, s.id));
            }
            let ids = |n: &Network| -> Vec<SubnetId> {
                subnets.get(&n.id).into_iter().flatten().map(|s| s.id).collect()
            };
            Ok(rows.iter().map(|n| show_network(&c, n, &ids(n), &opened)).collect::<Vec<_>>())
        })
        .await?;
    listing::list(&cx, &req, "networks", ATTRIBUTES, views)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: NetworkId = req.id_or("id", |t| not_found(What::Network, t))?;
    let c = cx.clone();
    let v = cx
        .store
        .read(move |tx| {
            let net = seen(&c, tx, id)?;
            view_one(&c, tx, &net)
        })
        .await?;
    Ok(listing::one(&req, "network", v))
}

/// Writes a wildcard policy, or removes it.
pub(crate) fn set_wildcard(tx: &mut Tx<'_>, env: &Env, net: &Network, action: &str, on: bool) -> Result<()> {
    let same = Query::new().eq("object_id", net.id).eq("action", action).eq("target_project", "*");
    let found = tx.list::<RbacPolicy>(&same)?;
    if on && found.is_empty() {
        let mut row = RbacPolicy {
            id: RbacPolicyId::random(&env.entropy),
            meta: Meta::default(),
            project_id: net.project_id.clone(),
            object_type: "network".into(),
            object_id: net.id,
            action: action.into(),
            target_project: "*".into(),
        };
        tx.insert(&mut row)?;
    }
    if !on {
        for policy in found {
            tx.delete::<RbacPolicy>(&policy.id)?;
        }
    }
    Ok(())
}

fn apply_provider(env: &Env, net: &mut Network, body: &NetworkBody) -> Result<()> {
    let kind = body.network_type.as_ref().map(|t| t.as_str());
    let physical = body.physical_network.as_ref().map(|t| t.as_str().to_owned());
    let segment = body.segmentation_id.as_ref().and_then(|n| u32::try_from(n.get()).ok());
    match kind {
        None if physical.is_none() && segment.is_none() => {}
        None => return Err(invalid_input("network_type required")),
        Some("flat") => {
            if segment.is_some() {
                return Err(invalid_input("segmentation_id prohibited for flat provider network"));
            }
            net.physical_network = Some(
                physical
                    .ok_or_else(|| invalid_input("physical_network required for flat provider network"))?,
            );
            net.segmentation_id = None;
        }
        Some("vlan") => {
            let physical = physical
                .ok_or_else(|| invalid_input("physical_network required for VLAN provider network"))?;
            let tag = segment.filter(|s| (1..=4094).contains(s)).ok_or_else(|| {
                invalid_input(
                    "segmentation_id out of range (1 through 4094) or missing for VLAN provider network",
                )
            })?;
            net.physical_network = Some(physical);
            net.segmentation_id = Some(tag);
        }
        Some("geneve") => {
            if physical.is_some() {
                return Err(invalid_input("provider:physical_network specified for geneve network"));
            }
            net.segmentation_id = segment.or(net.segmentation_id);
        }
        Some(other) => {
            let text = format!("Invalid input for operation: network_type value '{other}' not supported.");
            return Err(Error::bad_request(text).code("InvalidInput"));
        }
    }
    if let Some(kind) = kind {
        net.network_type = kind.to_owned();
        if kind != "geneve" {
            net.mtu = env.config.provider_mtu;
        }
    }
    Ok(())
}

fn apply_mtu(env: &Env, net: &mut Network, body: &NetworkBody) -> Result<()> {
    let ceiling = if net.network_type == "geneve" { env.config.tenant_mtu } else { env.config.provider_mtu };
    match body.mtu.as_ref().map(|n| n.get()) {
        None => {}
        Some(0) => net.mtu = ceiling,
        Some(n) => {
            let mtu = u32::try_from(n).unwrap_or(u32::MAX);
            if mtu < 68 || mtu > ceiling {
                let text = format!("MTU must be from 68 to {ceiling} on this network (is {n})");
                return Err(invalid_input(text));
            }
            net.mtu = mtu;
        }
    }
    Ok(())
}

fn apply(env: &Env, net: &mut Network, body: &NetworkBody) -> Result<()> {
    if let Some(name) = &body.name.0 {
        net.name = name.as_str().to_owned();
    }
    if let Some(text) = &body.description.0 {
        net.description = text.as_str().to_owned();
    }
    if let Some(up) = body.admin_state_up.0 {
        net.admin_state_up = up.0;
    }
    if let Some(external) = body.external.0 {
        net.external = external.0;
    }
    if let Some(on) = body.port_security_enabled.0 {
        net.port_security_enabled = on.0;
    }
    if let Some(domain) = &body.dns_domain.0 {
        super::catalog::check_domain("dns_domain", domain)?;
        net.dns_domain = domain.as_str().to_owned();
    }
    if let Some(default) = body.is_default.0 {
        if default.0 && !net.external {
            return Err(invalid("is_default", "only an external network can be the default"));
        }
        net.is_default = default.0;
    }
    apply_mtu(env, net, body)
}

fn create_one(cx: &Cx, tx: &mut Tx<'_>, body: &NetworkBody) -> Result<View> {
    let project = owner(cx, &body.project_id, &body.tenant_id)?;
    let to = Target::project(&project);
    cx.allow(&to)?;
    attribute_rules(
        cx,
        &to,
        &[
            ("shared", body.shared.0.is_some_and(|b| b.0)),
            ("router:external", body.external.0.is_some_and(|b| b.0)),
            ("is_default", body.is_default.0.is_some_and(|b| b.0)),
            ("provider:network_type", body.network_type.as_ref().is_some()),
            ("provider:physical_network", body.physical_network.as_ref().is_some()),
            ("provider:segmentation_id", body.segmentation_id.as_ref().is_some()),
        ],
    )?;
    quota::claim::<Network>(tx, &cx.env, &project, "network", 1)?;
    let mut net = blank(&cx.env, project);
    let hints = body.availability_zone_hints.0.iter().flatten().map(|h| h.as_str().to_owned());
    net.availability_zone_hints = super::catalog::check_zones(&cx.env, hints.collect())?;
    apply_provider(&cx.env, &mut net, body)?;
    apply(&cx.env, &mut net, body)?;
    tx.insert(&mut net)?;
    let shared = body.shared.0.is_some_and(|b| b.0);
    for (action, _) in [(SHARED, shared), (EXTERNAL, net.external)].iter().filter(|(_, on)| *on) {
        set_wildcard(tx, &cx.env, &net, action, true)?;
    }
    wake(tx, Key::Network(net.id))?;
    let shared = shared.then_some(net.id).into_iter().collect();
    Ok(show_network(cx, &net, &[], &Opened { shared, external: BTreeSet::new() }))
}

/// A tenant network with the defaults.
pub(crate) fn blank(env: &Env, project: ProjectId) -> Network {
    Network {
        id: NetworkId::random(&env.entropy),
        meta: Meta::default(),
        project_id: project,
        name: String::new(),
        description: String::new(),
        admin_state_up: true,
        external: false,
        mtu: env.config.tenant_mtu,
        port_security_enabled: true,
        network_type: "geneve".into(),
        physical_network: None,
        segmentation_id: Some(u32::try_from(env.entropy.below(16_777_214) + 1).unwrap_or(1)),
        is_default: false,
        dns_domain: String::new(),
        availability_zone_hints: Vec::new(),
        tags: BTreeSet::new(),
    }
}

async fn create(cx: Cx, req: Request<Bulk<NetworkBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let v = cx.store.write(move |tx| create_one(&c, tx, &body)).await?;
            Ok(listing::wrapped("network", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies.iter().map(|b| create_one(&c, tx, b).map(Value::Object)).collect::<Result<Vec<_>>>()
            };
            Ok(listing::wrapped("networks", cx.store.write(make).await?))
        }
    }
}

/// What stands against a change of who may use the network.
fn check_sharing(tx: &mut Tx<'_>, net: &Network, body: &NetworkBody) -> Result<()> {
    let unshare = body.shared.0.is_some_and(|b| !b.0);
    let close = net.external && body.external.0.is_some_and(|b| !b.0);
    if !unshare && !close {
        return Ok(());
    }
    let ports = tx.list::<Port>(&Query::new().eq("network_id", net.id))?;
    if unshare
        && !net.external
        && ports.iter().any(|p| p.project_id != net.project_id && !db::ports::trusted(&p.device_owner))
    {
        let text = format!(
            "Unable to reconfigure sharing settings for network {}. Multiple tenants are using it.",
            net.id
        );
        return Err(Error::conflict(text).code("InvalidSharedSetting"));
    }
    if close && ports.iter().any(|p| p.device_owner == ROUTER_GATEWAY) {
        let text = format!(
            "External network {} cannot be updated to be made non-external, since it has existing gateway ports.",
            net.id
        );
        return Err(Error::conflict(text).code("ExternalNetworkInUse"));
    }
    Ok(())
}

async fn update(cx: Cx, req: Request<One<NetworkBody>>) -> Result<Reply> {
    let id: NetworkId = req.id_or("id", |t| not_found(What::Network, t))?;
    let expected = expected_revision(&req)?;
    let (c, body) = (cx.clone(), req.body.0);
    let v = cx
        .store
        .write(move |tx| {
            let mut net = tx.get::<Network>(&id)?.ok_or_else(|| not_found(What::Network, id))?;
            let opened = Opened::read(tx, c.auth().project_id())?;
            let to = network_target(&net, opened.has(&id));
            c.allow(&to)?;
            check_revision(expected, &net.meta)?;
            attribute_rules(
                &c,
                &to,
                &[
                    ("shared", body.shared.0.is_some()),
                    ("router:external", body.external.0.is_some()),
                    ("is_default", body.is_default.0.is_some()),
                    ("provider:network_type", !body.network_type.is_absent()),
                    ("provider:physical_network", !body.physical_network.is_absent()),
                    ("provider:segmentation_id", !body.segmentation_id.is_absent()),
                ],
            )?;
            super::wire::read_only(&[
                ("project_id", body.project_id.0.is_some()),
                ("tenant_id", body.tenant_id.0.is_some()),
                ("availability_zone_hints", body.availability_zone_hints.0.is_some()),
            ])?;
            if !body.network_type.is_absent()
                || !body.physical_network.is_absent()
                || !body.segmentation_id.is_absent()
            {
                return Err(invalid_input("Plugin does not support updating provider attributes"));
            }
            check_sharing(tx, &net, &body)?;
            apply(&c.env, &mut net, &body)?;
            tx.update(&mut net)?;
            if let Some(shared) = body.shared.0 {
                set_wildcard(tx, &c.env, &net, SHARED, shared.0)?;
            }
            if let Some(external) = body.external.0 {
                set_wildcard(tx, &c.env, &net, EXTERNAL, external.0)?;
            }
            wake(tx, Key::Network(id))?;
            view_one(&c, tx, &net)
        })
        .await?;
    Ok(listing::wrapped("network", v))
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: NetworkId = req.id_or("id", |t| not_found(What::Network, t))?;
    let expected = expected_revision(&req)?;
    let c = cx.clone();
    cx.store
        .write(move |tx| {
            let net = tx.get::<Network>(&id)?.ok_or_else(|| not_found(What::Network, id))?;
            let opened = Opened::read(tx, c.auth().project_id())?;
            c.allow(&network_target(&net, opened.has(&id)))?;
            check_revision(expected, &net.meta)?;
            db::networks::delete(tx, &net)
        })
        .await?;
    Ok(Reply::empty())
}

fn availability_of(tx: &mut Tx<'_>, net: &Network) -> Result<View> {
    let (mut total, mut used, mut subnets) = (0_u128, 0_u64, Vec::new());
    for subnet in db::networks::subnets_of(tx, net.id)? {
        let has = ipam::capacity(&subnet.allocation_pools);
        let uses = tx.count::<Allocation>(&Query::new().eq("subnet_id", subnet.id))?;
        total = total.saturating_add(has);
        used += uses;
        subnets.push(json!({
            "subnet_id": subnet.id, "subnet_name": subnet.name, "cidr": subnet.cidr, "ip_version": subnet.ip_version,
            "total_ips": number(has), "used_ips": uses,
        }));
    }
    Ok(view(json!({
        "network_id": net.id, "network_name": net.name, "tenant_id": net.project_id, "project_id": net.project_id,
        "total_ips": number(total), "used_ips": used, "subnet_ip_availability": subnets,
    })))
}

/// A count that may be larger than JSON readers take as whole number.
fn number(n: u128) -> Value {
    u64::try_from(n).map_or_else(|_| json!(n as f64), Value::from)
}

async fn availabilities(cx: Cx, req: Request<()>) -> Result<Reply> {
    let c = cx.clone();
    let version = req.query_pairs().get("ip_version").map(str::to_owned);
    let views = cx
        .store
        .read(move |tx| {
            let (rows, _) = visible(&c, tx, Query::new())?;
            let mut views = Vec::new();
            for net in &rows {
                let v = availability_of(tx, net)?;
                let shown = v.get("subnet_ip_availability").and_then(Value::as_array);
                let fits =
                    |s: &Value| s.get("ip_version").and_then(Value::as_u64).map(|n| n.to_string()) == version;
                if version.is_none() || shown.is_some_and(|s| s.iter().any(fits)) {
                    views.push(v);
                }
            }
            Ok(views)
        })
        .await?;
    let kept: Vec<View> = views
        .into_iter()
        .filter(|v| {
            ["network_id", "network_name", "tenant_id", "project_id"].iter().all(|name| {
                let mut asked = req.query_pairs().all(name).peekable();
                asked.peek().is_none() || asked.any(|w| v.get(*name).and_then(Value::as_str) == Some(w))
            })
        })
        .map(|v| listing::pick_fields(&req, v))
        .collect();
    Ok(listing::wrapped("network_ip_availabilities", listing::json(&kept)))
}

async fn availability(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: NetworkId = req.id_or("id", |t| not_found(What::Network, t))?;
    let c = cx.clone();
    let v = cx
        .store
        .read(move |tx| {
            let net = seen(&c, tx, id)?;
            availability_of(tx, &net)
        })
        .await?;
    Ok(listing::one(&req, "network_ip_availability", v))
}
