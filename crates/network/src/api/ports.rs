//! `/v2.0/ports`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::{JsonSchema, Op, Reply, Request, Target};
use base::{Error, MacAddr, NetworkId, PortId, Result, SecurityGroupId, SubnetId};
use contract::net::Key;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Query, Tx};

use super::catalog::check_dns_name;
use super::listing::{self, View};
use super::wire::{
    Bulk, Ip, LaxBool, Maybe, Name, Obj, One, Patch, Text, Uuid, What, Wire, invalid, missing, not_found,
    read_only,
};
use super::{
    Cx, attribute_rules, attributes, check_revision, expected_revision, narrow, owner, standard, target, view,
};
use crate::State;
use crate::db::ports::{Want, trusted};
use crate::db::{self, groups, quota, wake};
use crate::logic::ipam::invalid_input;
use crate::logic::rules;
use crate::model::{AddressPair, DISTRIBUTED, DhcpOption, Network, Port, SecurityGroup};

const ATTRIBUTES: &[&str] = attributes![
    "network_id",
    "mac_address",
    "admin_state_up",
    "status",
    "device_id",
    "device_owner",
    "fixed_ips",
    "security_groups",
    "allowed_address_pairs",
    "port_security_enabled",
    "binding:host_id",
    "binding:vnic_type",
    "binding:vif_type",
    "dns_name",
    "ip_allocation",
];
/// Most address pairs and addresses of a port.
const MAX_PAIRS: usize = 10;
const MAX_FIXED_IPS: usize = 32;

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FixedIpBody {
    subnet_id: Maybe<Uuid>,
    ip_address: Maybe<Ip>,
}

impl FixedIpBody {
    pub(super) fn want(&self) -> Want {
        Want { subnet: self.subnet_id.0.map(|id| SubnetId(id.0)), ip: self.ip_address.0.map(|ip| ip.0) }
    }
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PairBody {
    ip_address: Text<1, 64>,
    #[serde(default)]
    mac_address: Patch<MacAddr>,
}

/// A port in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PortBody {
    name: Maybe<Name>,
    description: Maybe<Name>,
    network_id: Maybe<Uuid>,
    admin_state_up: Maybe<LaxBool>,
    mac_address: Patch<MacAddr>,
    fixed_ips: Patch<Vec<Obj<FixedIpBody>>>,
    device_id: Maybe<Name>,
    device_owner: Maybe<Name>,
    security_groups: Patch<Vec<Uuid>>,
    allowed_address_pairs: Patch<Vec<Obj<PairBody>>>,
    port_security_enabled: Maybe<LaxBool>,
    #[serde(rename = "binding:host_id")]
    host_id: Patch<Name>,
    #[serde(rename = "binding:profile")]
    profile: Patch<BTreeMap<String, Value>>,
    #[serde(rename = "binding:vnic_type")]
    vnic_type: Maybe<Name>,
    extra_dhcp_opts: Patch<Vec<Obj<DhcpOption>>>,
    dns_name: Maybe<Name>,
    project_id: Maybe<Text<0, 255>>,
    tenant_id: Maybe<Text<0, 255>>,
}

impl Wire for PortBody {
    const ONE: &'static str = "port";
    const MANY: &'static str = "ports";
}

pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.0/ports", "get_port", list).summary("Lists ports."),
        Op::post("/v2.0/ports", "create_port", create).status(201).summary("Creates one or several ports."),
        Op::get("/v2.0/ports/{id}", "get_port", show).summary("Shows a port."),
        Op::put("/v2.0/ports/{id}", "update_port", update).summary("Changes a port."),
        Op::delete("/v2.0/ports/{id}", "delete_port", remove).summary("Removes a port."),
    ]
}

fn dns_assignment(p: &Port, domain: &str) -> Value {
    let one = |ip: IpAddr| {
        let host = if p.dns_name.is_empty() {
            format!("host-{}", ip.to_string().replace(['.', ':'], "-"))
        } else {
            p.dns_name.trim_end_matches('.').to_owned()
        };
        let fqdn = if p.dns_name.ends_with('.') { p.dns_name.clone() } else { format!("{host}.{domain}") };
        json!({"ip_address": ip, "hostname": host, "fqdn": fqdn})
    };
    Value::Array(p.fixed_ips.iter().map(|f| one(f.ip_address)).collect())
}

pub(super) fn show_port(cx: &Cx, p: &Port, domain: Option<&str>) -> View {
    let domain = domain.filter(|d| !d.is_empty()).unwrap_or(&cx.env.config.dns_domain);
    let mut v = view(json!({
        "id": p.id,
        "name": p.name,
        "network_id": p.network_id,
        "mac_address": p.mac_address,
        "admin_state_up": p.admin_state_up,
        "status": p.status,
        "device_id": p.device_id,
        "device_owner": p.device_owner,
        "fixed_ips": p.fixed_ips,
        "security_groups": p.security_groups,
        "allowed_address_pairs": p.allowed_address_pairs,
        "port_security_enabled": p.port_security_enabled,
        "extra_dhcp_opts": p.extra_dhcp_opts,
        "dns_name": p.dns_name,
        "dns_assignment": dns_assignment(p, domain),
        "ip_allocation": if p.fixed_ips.is_empty() { "none" } else { "immediate" },
        "binding:vnic_type": p.vnic_type,
    }));
    standard(&mut v, &p.project_id, &p.description, Some(&p.tags), &p.meta);
    if cx.allows("get_port:binding", &Target::none()) {
        let bound = !p.host_id.is_empty();
        let details = if bound {
            json!({"port_filter": true, "connectivity": "l2", "bridge_name": "br-int"})
        } else {
            json!({})
        };
        v.insert("binding:host_id".into(), p.host_id.as_str().into());
        v.insert("binding:profile".into(), listing::json(&p.binding_profile));
        v.insert("binding:vif_type".into(), if bound { "ovs" } else { "unbound" }.into());
        v.insert("binding:vif_details".into(), details);
    }
    v
}

/// The policy target of a port. Who owns the network sees all ports on it, the cloud's own included: clients look there
/// for addresses that are free.
fn port_target(cx: &Cx, p: &Port, net: &Network) -> Target {
    target(What::Port, p.id, &p.project_id)
        .set("network_project_id", net.project_id.as_str())
        .visible(cx.auth().project_id() == Some(&net.project_id))
}

/// The port if the caller may see it.
///
/// # Errors
/// `PortNotFound`.
pub(super) fn seen(cx: &Cx, tx: &mut Tx<'_>, id: PortId) -> Result<Port> {
    let port = tx.get::<Port>(&id)?.ok_or_else(|| not_found(What::Port, id))?;
    let net = tx.need::<Network>(&port.network_id)?;
    cx.allow_rule("get_port", &port_target(cx, &port, &net))?;
    Ok(port)
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let columns = ["id", "name", "project_id", "network_id", "device_id", "device_owner", "status"];
    let query = narrow(Query::new(), &req, &columns);
    let c = cx.clone();
    let rows = cx
        .store
        .read(move |tx| {
            let mut query = query.clone();
            if !c.is_admin() {
                let mut any = Vec::new();
                if let Some(project) = c.auth().project_id() {
                    let own = tx.list_ids::<Network>(&Query::new().eq("project_id", project))?;
                    any.push(Query::new().eq("project_id", project));
                    any.push(Query::new().is_in("network_id", own));
                }
                query = query.any_of(any);
            }
            let rows = tx.list::<Port>(&query)?;
            let ids: BTreeSet<NetworkId> = rows.iter().map(|p| p.network_id).collect();
            let nets = tx.list::<Network>(&Query::new().is_in("id", &ids))?;
            let domains: BTreeMap<NetworkId, String> =
                nets.into_iter().map(|n| (n.id, n.dns_domain)).collect();
            Ok(rows.into_iter().map(|p| (domains.get(&p.network_id).cloned(), p)).collect::<Vec<_>>())
        })
        .await?;
    let views = rows.iter().map(|(domain, p)| show_port(&cx, p, domain.as_deref())).collect();
    listing::list(&cx, &req, "ports", ATTRIBUTES, views)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: PortId = req.id_or("id", |t| not_found(What::Port, t))?;
    let c = cx.clone();
    let v = cx
        .store
        .read(move |tx| {
            let port = seen(&c, tx, id)?;
            let domain = tx.get::<Network>(&port.network_id)?.map(|n| n.dns_domain);
            Ok(show_port(&c, &port, domain.as_deref()))
        })
        .await?;
    Ok(listing::one(&req, "port", v))
}

fn wants(bodies: &[Obj<FixedIpBody>]) -> Result<Vec<Want>> {
    if bodies.len() > MAX_FIXED_IPS {
        return Err(invalid_input("Exceeded maximum amount of fixed ips per port"));
    }
    let list: Vec<Want> = bodies.iter().map(|f| f.want()).collect();
    for (i, want) in list.iter().enumerate() {
        if want.ip.is_some() && list.iter().take(i).any(|o| o.ip == want.ip) {
            return Err(invalid(
                "fixed_ips",
                format!("Duplicate IP address '{}'", want.ip.map_or_else(String::new, |ip| ip.to_string())),
            ));
        }
    }
    Ok(list)
}

/// The groups named in a body, if the caller may use each of them on a port of `project`.
fn read_groups(cx: &Cx, tx: &mut Tx<'_>, port: &Port, ids: &[Uuid]) -> Result<BTreeSet<SecurityGroupId>> {
    let mut set = BTreeSet::new();
    for id in ids {
        let id = SecurityGroupId(id.0);
        let group = tx.get::<SecurityGroup>(&id)?;
        if !group.is_some_and(|g| g.project_id == port.project_id || cx.is_admin()) {
            return Err(not_found(What::SecurityGroup, id));
        }
        set.insert(id);
    }
    Ok(set)
}

fn pairs(port: &Port, bodies: &[Obj<PairBody>]) -> Result<Vec<AddressPair>> {
    if bodies.len() > MAX_PAIRS {
        let text = format!("The number of allowed address pair exceeds the maximum {MAX_PAIRS}.");
        return Err(Error::bad_request(text).code("AllowedAddressPairExhausted"));
    }
    let mut list: Vec<AddressPair> = Vec::new();
    for body in bodies {
        rules::prefix(&body.ip_address).map_err(|e| invalid("allowed_address_pairs", e))?;
        let mac = body.mac_address.as_ref().copied().unwrap_or(port.mac_address);
        let pair = AddressPair { ip_address: body.ip_address.as_str().to_owned(), mac_address: mac };
        if list.contains(&pair) {
            let text = format!(
                "Request contains duplicate address pair: mac_address {mac} ip_address {}.",
                pair.ip_address
            );
            return Err(Error::bad_request(text).code("DuplicateAddressPairInRequest"));
        }
        list.push(pair);
    }
    Ok(list)
}

fn dhcp_options(options: &[Obj<DhcpOption>]) -> Result<Vec<DhcpOption>> {
    for (i, option) in options.iter().enumerate() {
        if option.opt_name.trim().is_empty() || option.opt_name.len() > 64 {
            return Err(invalid("extra_dhcp_opts", "'opt_name' must have 1 to 64 characters"));
        }
        if option.opt_value.as_ref().is_some_and(|v| v.len() > 255 || v.chars().any(char::is_control)) {
            return Err(invalid(
                "extra_dhcp_opts",
                "'opt_value' must have at most 255 characters and no control characters",
            ));
        }
        if !matches!(option.ip_version, 4 | 6) {
            return Err(invalid("extra_dhcp_opts", "'ip_version' must be 4 or 6"));
        }
        let same = |o: &Obj<DhcpOption>| o.opt_name == option.opt_name && o.ip_version == option.ip_version;
        if options.iter().take(i).any(same) {
            return Err(invalid("extra_dhcp_opts", format!("Duplicate option '{}'", option.opt_name)));
        }
    }
    Ok(options.iter().filter(|o| o.opt_value.is_some()).map(|o| o.0.clone()).collect())
}

fn vnic_type(text: &str) -> Result<String> {
    const KNOWN: &[&str] = &[
        "normal",
        "direct",
        "macvtap",
        "baremetal",
        "direct-physical",
        "virtio-forwarder",
        "smart-nic",
        "vdpa",
        "accelerator-direct",
        "accelerator-direct-physical",
        "remote-managed",
    ];
    if KNOWN.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(invalid("binding:vnic_type", format!("'{text}' is not in {KNOWN:?}")))
    }
}

/// The members of a body that create and update treat alike, but those that hang on other rows.
fn apply(port: &mut Port, body: &PortBody) -> Result<()> {
    let set = |place: &mut String, text: &Maybe<Name>| {
        if let Some(text) = &text.0 {
            *place = text.as_str().to_owned();
        }
    };
    set(&mut port.name, &body.name);
    set(&mut port.description, &body.description);
    set(&mut port.device_id, &body.device_id);
    set(&mut port.device_owner, &body.device_owner);
    if let Some(up) = body.admin_state_up.0 {
        port.admin_state_up = up.0;
    }
    if let Some(on) = body.port_security_enabled.0 {
        port.port_security_enabled = on.0;
    }
    if let Some(host) = body.host_id.clone().sent() {
        port.host_id = host.map_or_else(String::new, Name::into_string);
    }
    if let Some(profile) = body.profile.clone().sent() {
        port.binding_profile = profile.unwrap_or_default();
    }
    if let Some(kind) = &body.vnic_type.0 {
        port.vnic_type = vnic_type(kind)?;
    }
    if let Some(name) = &body.dns_name.0 {
        check_dns_name("dns_name", name)?;
        port.dns_name = name.as_str().to_owned();
    }
    if let Some(list) = body.allowed_address_pairs.clone().sent() {
        port.allowed_address_pairs = pairs(port, &list.unwrap_or_default())?;
    }
    Ok(())
}

/// Neutron's rules between port security, groups and address pairs.
fn check_security(port: &Port, groups: bool, pairs: bool) -> Result<()> {
    if port.port_security_enabled {
        return Ok(());
    }
    if !port.security_groups.is_empty() {
        return Err(if groups {
            Error::bad_request(
                "Port security must be enabled and port must have an IP address in order to use security groups.",
            )
            .code("PortSecurityAndIPRequiredForSecurityGroups")
        } else {
            Error::conflict(
                "Port has security group associated. Cannot disable port security or IP address until security group is removed.",
            )
            .code("PortSecurityPortHasSecurityGroup")
        });
    }
    if pairs && !port.allowed_address_pairs.is_empty() {
        let text = "Port Security must be enabled in order to have allowed address pairs on a port.";
        return Err(Error::conflict(text).code("AddressPairAndPortSecurityRequired"));
    }
    Ok(())
}

fn attribute_checks(cx: &Cx, to: &Target, body: &PortBody, net: &Network) -> Result<()> {
    let owns = cx.is_admin() || cx.auth().project_id() == Some(&net.project_id);
    attribute_rules(
        cx,
        to,
        &[
            ("device_owner", body.device_owner.0.as_ref().is_some_and(|o| trusted(o)) && !owns),
            ("mac_address", body.mac_address.as_ref().is_some()),
            (
                "fixed_ips:ip_address",
                body.fixed_ips.as_ref().is_some_and(|f| f.iter().any(|f| f.ip_address.0.is_some())),
            ),
            ("port_security_enabled", body.port_security_enabled.0.is_some()),
            ("allowed_address_pairs", body.allowed_address_pairs.as_ref().is_some_and(|p| !p.is_empty())),
            ("binding:host_id", body.host_id.as_ref().is_some()),
            ("binding:profile", body.profile.as_ref().is_some_and(|p| !p.is_empty())),
        ],
    )
}

fn create_one(cx: &Cx, tx: &mut Tx<'_>, body: &PortBody) -> Result<View> {
    let Some(network) = body.network_id.0 else { return Err(missing("network_id")) };
    let project = owner(cx, &body.project_id, &body.tenant_id)?;
    cx.allow(&Target::project(&project))?;
    let (net, opened) = super::networks::seen_with(cx, tx, NetworkId(network.0))?;
    if !cx.is_admin() && net.project_id != project && !opened.shares(&net.id) {
        let text = format!("Tenant {project} not allowed to create port on this network");
        return Err(Error::forbidden(text).code("NotAuthorized"));
    }
    quota::claim::<Port>(tx, &cx.env, &project, "port", 1)?;
    let mut port = db::ports::blank(&cx.env, &net, project);
    attribute_checks(cx, &port_target(cx, &port, &net), body, &net)?;
    let given = body.mac_address.as_ref().copied();
    port.mac_address = given.unwrap_or(port.mac_address);
    apply(&mut port, body)?;
    if let Some(options) = body.extra_dhcp_opts.as_ref() {
        port.extra_dhcp_opts = dhcp_options(options)?;
    }
    if trusted(&port.device_owner) && body.port_security_enabled.0.is_none() {
        port.port_security_enabled = false;
    }
    port.security_groups = match body.security_groups.as_ref() {
        Some(ids) => read_groups(cx, tx, &port, ids)?,
        None if port.port_security_enabled && !trusted(&port.device_owner) => {
            BTreeSet::from([groups::ensure_default(tx, &cx.env, &port.project_id)?.id])
        }
        None => BTreeSet::new(),
    };
    check_security(&port, true, true)?;
    let subnets = db::networks::subnets_of(tx, net.id)?;
    let asked = body.fixed_ips.as_ref().map(|f| wants(f)).transpose()?;
    let port = db::ports::create(tx, &cx.env, &subnets, port, asked.as_deref(), given.is_some())?;
    Ok(show_port(cx, &port, Some(&net.dns_domain)))
}

async fn create(cx: Cx, req: Request<Bulk<PortBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let v = cx.state().write(move |tx| create_one(&c, tx, &body)).await?;
            Ok(listing::wrapped("port", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies.iter().map(|b| create_one(&c, tx, b).map(Value::Object)).collect::<Result<Vec<_>>>()
            };
            Ok(listing::wrapped("ports", cx.state().write(make).await?))
        }
    }
}

/// New options replace those of the same name; one without value removes.
fn merge_options(port: &mut Port, options: &[Obj<DhcpOption>]) -> Result<()> {
    dhcp_options(options)?;
    for option in options {
        port.extra_dhcp_opts.retain(|o| o.opt_name != option.opt_name || o.ip_version != option.ip_version);
        if option.opt_value.is_some() {
            port.extra_dhcp_opts.push(option.0.clone());
        }
    }
    Ok(())
}

fn update_one(
    c: &Cx,
    tx: &mut Tx<'_>,
    id: PortId,
    expected: Option<u64>,
    body: &PortBody,
) -> Result<(View, String)> {
    let mut port = tx.get::<Port>(&id)?.ok_or_else(|| not_found(What::Port, id))?;
    let net = tx.need::<Network>(&port.network_id)?;
    let to = port_target(c, &port, &net);
    c.allow(&to)?;
    check_revision(expected, &port.meta)?;
    if port.project_id.as_str().is_empty() && !c.is_admin() {
        return Err(c.dialect().policy_denied("update_port"));
    }
    let mac = body.mac_address.as_ref().copied().filter(|m| *m != port.mac_address);
    attribute_checks(c, &to, body, &net)?;
    if let Some(new) = mac {
        if !port.host_id.is_empty() {
            let text = format!(
                "Unable to complete operation on port {id}, port is already bound, port type: ovs, old_mac {}, new_mac {new}.",
                port.mac_address
            );
            return Err(Error::conflict(text).code("PortBound"));
        }
        if tx.count::<Port>(&Query::new().eq("network_id", port.network_id).eq("mac_address", new))? > 0 {
            return Err(db::ports::mac_in_use(port.network_id, new));
        }
        let old = std::mem::replace(&mut port.mac_address, new);
        port.allowed_address_pairs
            .iter_mut()
            .filter(|p| p.mac_address == old)
            .for_each(|p| p.mac_address = new);
    }
    apply(&mut port, body)?;
    if let Some(options) = body.extra_dhcp_opts.as_ref() {
        merge_options(&mut port, options)?;
    }
    if let Some(ids) = body.security_groups.clone().sent() {
        let groups = read_groups(c, tx, &port, &ids.unwrap_or_default())?;
        db::ports::set_groups(tx, &mut port, groups)?;
    }
    check_security(&port, !body.security_groups.is_absent(), true)?;
    if let Some(asked) = body.fixed_ips.clone().sent() {
        let subnets = db::networks::subnets_of(tx, port.network_id)?;
        db::ports::readdress(tx, &c.env, &subnets, &mut port, &wants(&asked.unwrap_or_default())?)?;
        if let (true, Ok(router)) = (trusted(&port.device_owner), port.device_id.parse()) {
            wake(tx, Key::Router(router))?;
        }
    }
    db::ports::update(tx, &mut port)?;
    Ok((show_port(c, &port, Some(&net.dns_domain)), port.device_id))
}

async fn update(cx: Cx, req: Request<One<PortBody>>) -> Result<Reply> {
    let id: PortId = req.id_or("id", |t| not_found(What::Port, t))?;
    let expected = expected_revision(&req)?;
    let (c, body) = (cx.clone(), req.body.0);
    read_only(&[
        ("network_id", body.network_id.0.is_some()),
        ("project_id", body.project_id.0.is_some()),
        ("tenant_id", body.tenant_id.0.is_some()),
    ])?;
    let (v, device) = cx.state().write(move |tx| update_one(&c, tx, id, expected, &body)).await?;
    cx.nudge_devices([device]);
    Ok(listing::wrapped("port", v))
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: PortId = req.id_or("id", |t| not_found(What::Port, t))?;
    let expected = expected_revision(&req)?;
    let c = cx.clone();
    let device = cx
        .state()
        .write(move |tx| {
            let port = tx.get::<Port>(&id)?.ok_or_else(|| not_found(What::Port, id))?;
            let net = tx.need::<Network>(&port.network_id)?;
            c.allow(&port_target(&c, &port, &net))?;
            check_revision(expected, &port.meta)?;
            if trusted(&port.device_owner) && in_service(tx, &port)? {
                let text = format!(
                    "Port {id} cannot be deleted directly via the port API: has device owner {}.",
                    port.device_owner
                );
                return Err(Error::conflict(text).code("ServicePortInUse"));
            }
            db::ports::delete(tx, &port)?;
            Ok(port.device_id)
        })
        .await?;
    cx.nudge_devices([device]);
    Ok(Reply::empty())
}

/// Whether what a port of the cloud belongs to still exists.
fn in_service(tx: &mut Tx<'_>, port: &Port) -> Result<bool> {
    use crate::model::{FLOATING_IP, FloatingIp, ROUTER_GATEWAY, ROUTER_INTERFACE, Router};
    Ok(match port.device_owner.as_str() {
        ROUTER_INTERFACE | ROUTER_GATEWAY => match port.device_id.parse() {
            Ok(id) => tx.get::<Router>(&id)?.is_some(),
            Err(_) => false,
        },
        DISTRIBUTED => !port.fixed_ips.is_empty(),
        FLOATING_IP => tx.count::<FloatingIp>(&Query::new().eq("floating_port_id", port.id))? > 0,
        _ => false,
    })
}
