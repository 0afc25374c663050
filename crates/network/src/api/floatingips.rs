//! `/v2.0/floatingips`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::{JsonSchema, Op, Reply, Request, Target};
use base::{Error, FloatingIpId, NetworkId, PortId, ProjectId, Result, SubnetId};
use contract::net::Key;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Meta, Query, Tx};

use super::catalog::{check_dns_name, check_domain};
use super::listing::{self, View};
use super::wire::{Bulk, Ip, Maybe, Name, One, Patch, Text, Uuid, What, Wire, missing, not_found, read_only};
use super::{
    Cx, attribute_rules, attributes, check_revision, expected_revision, narrow, own_rows, owner, standard,
    target, view,
};
use crate::db::ports::Want;
use crate::db::{self, quota, routing, wake};
use crate::model::{FLOATING_IP, FloatingIp, Port};
use crate::{Env, State};

const ATTRIBUTES: &[&str] = attributes![
    "floating_network_id",
    "floating_ip_address",
    "port_id",
    "fixed_ip_address",
    "router_id",
    "status",
    "dns_name",
    "dns_domain",
    "port_details",
];

/// A floating IP in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FloatingIpBody {
    floating_network_id: Maybe<Uuid>,
    floating_ip_address: Patch<Ip>,
    subnet_id: Patch<Uuid>,
    port_id: Patch<Uuid>,
    fixed_ip_address: Patch<Ip>,
    description: Maybe<Name>,
    dns_name: Maybe<Name>,
    dns_domain: Maybe<Name>,
    project_id: Maybe<Text<0, 255>>,
    tenant_id: Maybe<Text<0, 255>>,
}

impl Wire for FloatingIpBody {
    const ONE: &'static str = "floatingip";
    const MANY: &'static str = "floatingips";
}

pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.0/floatingips", "get_floatingip", list).summary("Lists floating IPs."),
        Op::post("/v2.0/floatingips", "create_floatingip", create).status(201).summary("Takes floating IPs."),
        Op::get("/v2.0/floatingips/{id}", "get_floatingip", show).summary("Shows a floating IP."),
        Op::put("/v2.0/floatingips/{id}", "update_floatingip", update)
            .summary("Leads a floating IP to a port, or away."),
        Op::delete("/v2.0/floatingips/{id}", "delete_floatingip", remove)
            .summary("Gives a floating IP back."),
    ]
}

fn bad(text: impl AsRef<str>) -> Error {
    Error::bad_request(format!("Bad floatingip request: {}.", text.as_ref())).code("BadRequest")
}

fn show_fip(tx: &mut Tx<'_>, f: &FloatingIp) -> Result<View> {
    let details = match f.port_id {
        None => Value::Null,
        Some(id) => tx.get::<Port>(&id)?.map_or(Value::Null, |p| {
            json!({
                "name": p.name, "network_id": p.network_id, "mac_address": p.mac_address,
                "admin_state_up": p.admin_state_up, "status": p.status, "device_id": p.device_id,
                "device_owner": p.device_owner,
            })
        }),
    };
    let mut v = view(json!({
        "id": f.id,
        "floating_network_id": f.floating_network_id,
        "floating_ip_address": f.floating_ip_address,
        "port_id": f.port_id,
        "fixed_ip_address": f.fixed_ip_address,
        "router_id": f.router_id,
        "status": f.status,
        "dns_name": f.dns_name,
        "dns_domain": f.dns_domain,
        "port_details": details,
    }));
    standard(&mut v, &f.project_id, &f.description, Some(&f.tags), &f.meta);
    Ok(v)
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let columns = ["id", "project_id", "floating_network_id", "port_id", "router_id", "status"];
    let query = own_rows(&cx, narrow(Query::new(), &req, &columns));
    let views = cx
        .store
        .read(move |tx| {
            let mut rows = tx.list::<FloatingIp>(&query)?;
            rows.sort_by_key(|f| (f.meta.created_at, f.id));
            rows.iter().map(|f| show_fip(tx, f)).collect::<Result<Vec<_>>>()
        })
        .await?;
    listing::list(&cx, &req, "floatingips", ATTRIBUTES, views)
}

fn allowed(cx: &Cx, tx: &mut Tx<'_>, id: FloatingIpId) -> Result<FloatingIp> {
    let fip = tx.get::<FloatingIp>(&id)?.ok_or_else(|| not_found(What::FloatingIp, id))?;
    cx.allow(&target(What::FloatingIp, id, &fip.project_id))?;
    Ok(fip)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: FloatingIpId = req.id_or("id", |t| not_found(What::FloatingIp, t))?;
    let c = cx.clone();
    let v = cx
        .store
        .read(move |tx| {
            let fip = allowed(&c, tx, id)?;
            show_fip(tx, &fip)
        })
        .await?;
    Ok(listing::one(&req, "floatingip", v))
}

/// Leads the floating IP to a port the caller may use; answers the port's device.
fn lead(
    cx: &Cx,
    tx: &mut Tx<'_>,
    fip: &mut FloatingIp,
    port: PortId,
    fixed: Option<IpAddr>,
) -> Result<String> {
    let port = tx.get::<Port>(&port)?.ok_or_else(|| not_found(What::Port, port))?;
    if !cx.is_admin() && cx.auth().project_id() != Some(&port.project_id) {
        return Err(not_found(What::Port, port.id));
    }
    if port.project_id != fip.project_id && !cx.is_admin() {
        return Err(bad(format!(
            "Cannot process floating IP association with Port {}, since that port is owned by a different tenant",
            port.id
        )));
    }
    routing::associate(tx, fip, &port, fixed)?;
    Ok(port.device_id)
}

fn names(fip: &mut FloatingIp, body: &FloatingIpBody) -> Result<()> {
    if let Some(text) = &body.description.0 {
        fip.description = text.as_str().to_owned();
    }
    if let Some(name) = &body.dns_name.0 {
        check_dns_name("dns_name", name)?;
        fip.dns_name = name.as_str().to_owned();
    }
    if let Some(domain) = &body.dns_domain.0 {
        check_domain("dns_domain", domain)?;
        fip.dns_domain = domain.as_str().to_owned();
    }
    Ok(())
}

/// Makes the port that holds the external address.
fn external_port(tx: &mut Tx<'_>, env: &Env, fip: FloatingIpId, net: NetworkId, want: Want) -> Result<Port> {
    let net = tx.need::<crate::model::Network>(&net)?;
    let subnets = db::networks::subnets_of(tx, net.id)?;
    let v4: Vec<_> = subnets.into_iter().filter(|s| s.cidr.network().is_ipv4()).collect();
    let mut port = db::ports::blank(env, &net, ProjectId::new(""));
    port.device_owner = FLOATING_IP.into();
    port.device_id = fip.to_string();
    port.port_security_enabled = false;
    port.status = "N/A".into();
    let wants = (want.subnet.is_some() || want.ip.is_some()).then(|| vec![want]);
    let port = db::ports::create(tx, env, &v4, port, wants.as_deref(), false)?;
    if port.fixed_ips.is_empty() {
        let text = format!("No more IP addresses available on network {}.", net.id);
        return Err(Error::conflict(text).code("ExternalIpAddressExhausted"));
    }
    Ok(port)
}

fn create_one(cx: &Cx, tx: &mut Tx<'_>, body: &FloatingIpBody) -> Result<(View, Option<String>)> {
    let project = owner(cx, &body.project_id, &body.tenant_id)?;
    let to = Target::project(&project);
    cx.allow(&to)?;
    attribute_rules(cx, &to, &[("floating_ip_address", body.floating_ip_address.as_ref().is_some())])?;
    let Some(network) = body.floating_network_id.0 else { return Err(missing("floating_network_id")) };
    let net = super::networks::seen(cx, tx, NetworkId(network.0))?;
    if !net.external {
        return Err(bad(format!("Network {} is not a valid external network", net.id)));
    }
    let port_id = body.port_id.as_ref().map(|id| PortId(id.0));
    let fixed = body.fixed_ip_address.as_ref().map(|ip| ip.0);
    if fixed.is_some() && port_id.is_none() {
        return Err(bad("fixed_ip_address cannot be specified without a port_id"));
    }
    quota::claim::<FloatingIp>(tx, &cx.env, &project, "floatingip", 1)?;
    let id = FloatingIpId::random(&cx.env.entropy);
    let want = Want {
        subnet: body.subnet_id.as_ref().map(|s| SubnetId(s.0)),
        ip: body.floating_ip_address.as_ref().map(|ip| ip.0),
    };
    let port = external_port(tx, &cx.env, id, net.id, want)?;
    let Some(address) = port.fixed_ips.iter().map(|f| f.ip_address).find(IpAddr::is_ipv4) else {
        return Err(bad("Floating IPs must be IPv4 addresses"));
    };
    let mut fip = FloatingIp {
        id,
        meta: Meta::default(),
        project_id: project,
        floating_network_id: net.id,
        floating_ip_address: address,
        floating_port_id: port.id,
        port_id: None,
        fixed_ip_address: None,
        router_id: None,
        status: "DOWN".into(),
        description: String::new(),
        dns_name: String::new(),
        dns_domain: String::new(),
        tags: BTreeSet::new(),
    };
    names(&mut fip, body)?;
    let device = port_id.map(|port| lead(cx, tx, &mut fip, port, fixed)).transpose()?;
    tx.insert(&mut fip)?;
    wake(tx, Key::FloatingIp(id))?;
    Ok((show_fip(tx, &fip)?, device))
}

async fn create(cx: Cx, req: Request<Bulk<FloatingIpBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let (v, device) = cx.state().write(move |tx| create_one(&c, tx, &body)).await?;
            cx.nudge_devices(device);
            Ok(listing::wrapped("floatingip", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies.iter().map(|b| create_one(&c, tx, b)).collect::<Result<Vec<_>>>()
            };
            let (views, devices): (Vec<View>, Vec<Option<String>>) =
                cx.state().write(make).await?.into_iter().unzip();
            cx.nudge_devices(devices.into_iter().flatten());
            Ok(listing::wrapped("floatingips", listing::json(&views)))
        }
    }
}

/// The device of the port a floating IP leads to.
fn device_of(tx: &mut Tx<'_>, fip: &FloatingIp) -> Result<Option<String>> {
    let port = fip.port_id.map(|id| tx.get::<Port>(&id)).transpose()?.flatten();
    Ok(port.map(|p| p.device_id))
}

async fn update(cx: Cx, req: Request<One<FloatingIpBody>>) -> Result<Reply> {
    let id: FloatingIpId = req.id_or("id", |t| not_found(What::FloatingIp, t))?;
    let expected = expected_revision(&req)?;
    let (c, body) = (cx.clone(), req.body.0);
    read_only(&[
        ("floating_network_id", body.floating_network_id.0.is_some()),
        ("floating_ip_address", !body.floating_ip_address.is_absent()),
        ("subnet_id", !body.subnet_id.is_absent()),
        ("dns_name", body.dns_name.0.is_some()),
        ("dns_domain", body.dns_domain.0.is_some()),
        ("project_id", body.project_id.0.is_some()),
        ("tenant_id", body.tenant_id.0.is_some()),
    ])?;
    let (v, devices) = cx
        .state()
        .write(move |tx| {
            let mut fip = allowed(&c, tx, id)?;
            check_revision(expected, &fip.meta)?;
            names(&mut fip, &body)?;
            let mut devices = vec![device_of(tx, &fip)?];
            let fixed = body.fixed_ip_address.as_ref().map(|ip| ip.0);
            match body.port_id.clone().sent() {
                Some(None) if fixed.is_some() => {
                    return Err(bad("fixed_ip_address cannot be specified without a port_id"));
                }
                Some(None) => routing::disassociate(&mut fip),
                Some(Some(port)) => devices.push(Some(lead(&c, tx, &mut fip, PortId(port.0), fixed)?)),
                None => match (fixed, fip.port_id) {
                    (None, _) => {}
                    (Some(_), None) => {
                        return Err(bad("fixed_ip_address cannot be specified without a port_id"));
                    }
                    (Some(_), Some(port)) => devices.push(Some(lead(&c, tx, &mut fip, port, fixed)?)),
                },
            }
            tx.update(&mut fip)?;
            wake(tx, Key::FloatingIp(id))?;
            Ok((show_fip(tx, &fip)?, devices))
        })
        .await?;
    cx.nudge_devices(devices.into_iter().flatten());
    Ok(listing::wrapped("floatingip", v))
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: FloatingIpId = req.id_or("id", |t| not_found(What::FloatingIp, t))?;
    let expected = expected_revision(&req)?;
    let c = cx.clone();
    let device = cx
        .state()
        .write(move |tx| {
            let fip = allowed(&c, tx, id)?;
            check_revision(expected, &fip.meta)?;
            let device = device_of(tx, &fip)?;
            routing::delete_floating(tx, &fip)?;
            Ok(device)
        })
        .await?;
    cx.nudge_devices(device);
    Ok(Reply::empty())
}
