//! `/servers/{id}/os-interface`.

use ::api::types::{Ip, Uuid};
use ::api::{Ctx, Op, Reply, Request};
use base::{Error, NetworkId, PortId, Result};
use contract::services::PortInfo;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::servers::{fresh, given, only_network, usable};
use super::wire::{gate, owned, record, server_id};
use crate::State;
use crate::logic::state::{need, unlocked};
use crate::model::{Nic, Server, VmState};

pub(super) fn ops() -> Vec<Op<State>> {
    const ALL: &str = "/v2.1/servers/{id}/os-interface";
    const ONE: &str = "/v2.1/servers/{id}/os-interface/{port}";
    vec![
        Op::get(ALL, "os_compute_api:os-attach-interfaces:list", list).summary("List interfaces"),
        Op::post(ALL, "os_compute_api:os-attach-interfaces:create", create).summary("Attach an interface"),
        Op::get(ONE, "os_compute_api:os-attach-interfaces:show", show).summary("Show an interface"),
        Op::delete(ONE, "os_compute_api:os-attach-interfaces:delete", delete)
            .status(202)
            .summary("Detach an interface"),
    ]
}

/// States in which interfaces and volumes may come and go. Not while suspended: memory that was saved with a device
/// cannot be loaded without it.
pub(super) const PLUGGABLE: &[VmState] = &[VmState::Active, VmState::Paused, VmState::Stopped];

fn view(cx: &Ctx<State>, server: &Server, port: &PortInfo) -> Value {
    let mut map = Map::new();
    let ips: Vec<Value> =
        port.fixed_ips.iter().map(|f| json!({"subnet_id": f.subnet_id, "ip_address": f.ip})).collect();
    map.insert("net_id".into(), json!(port.network_id));
    map.insert("port_id".into(), json!(port.id));
    map.insert("mac_addr".into(), json!(port.mac));
    map.insert("port_state".into(), json!(port.status));
    map.insert("fixed_ips".into(), json!(ips));
    if cx.since(2, 70) {
        let tag = server.nics.iter().find(|n| n.port == port.id).and_then(|n| n.tag.as_ref());
        map.insert("tag".into(), json!(tag));
    }
    Value::Object(map)
}

async fn ports(cx: &Ctx<State>, req: &Request<()>) -> Result<(Server, Vec<PortInfo>)> {
    let id = server_id(req)?;
    let cx2 = cx.clone();
    let server = cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    let mut all = cx.state().deps.networks.ports_of(&[id.to_string()]).await?;
    let ports = all.remove(&id.to_string()).unwrap_or_default();
    Ok((server, ports))
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let (server, ports) = ports(&cx, &req).await?;
    let items: Vec<Value> = ports.iter().map(|p| view(&cx, &server, p)).collect();
    Ok(Reply::json(&json!({"interfaceAttachments": items})))
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let (server, ports) = ports(&cx, &req).await?;
    let port = ports.iter().find(|p| p.id.to_string() == req.param("port"));
    let port = port.ok_or_else(|| {
        Error::not_found(format!("Instance {} does not have a port with id {}", server.id, req.param("port")))
    })?;
    Ok(Reply::json(&json!({"interfaceAttachment": view(&cx, &server, port)})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    #[serde(rename = "interfaceAttachment")]
    new: New,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct New {
    net_id: Option<Uuid>,
    port_id: Option<Uuid>,
    fixed_ips: Option<Vec<FixedIp>>,
    tag: Option<::api::types::Text<1, 60>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FixedIp {
    ip_address: Ip,
}

async fn nic(cx: &Ctx<State>, new: &New) -> Result<Nic> {
    gate(cx, new.tag.is_some(), 2, 49, "tag")?;
    let tag = new.tag.as_ref().map(|t| t.as_str().to_owned());
    let ips = new.fixed_ips.as_deref().unwrap_or(&[]);
    if ips.len() > 1 {
        return Err(cx.dialect().invalid_field("fixed_ips", "at most one address can be given"));
    }
    let ip = ips.first().map(|f| f.ip_address.0);
    match (&new.port_id, &new.net_id) {
        (Some(_), Some(_)) => Err(Error::bad_request("Must not input both network_id and port_id")),
        (Some(_), None) if ip.is_some() => {
            Err(Error::bad_request("Must not input both port_id and fixed_ips"))
        }
        (Some(port), None) => given(cx, PortId(port.0), tag).await,
        (None, Some(network)) => {
            let id = NetworkId(network.0);
            usable(cx, id).await?;
            Ok(fresh(cx, id, ip, tag))
        }
        (None, None) if ip.is_some() => {
            Err(Error::bad_request("Must input network_id when request IP address"))
        }
        (None, None) => {
            let mut nics = only_network(cx, false).await?;
            let mut nic =
                nics.pop().ok_or_else(|| Error::bad_request("There is no network to attach to."))?;
            nic.tag = tag;
            Ok(nic)
        }
    }
}

/// Nova answers when the port is there; here the reconciler makes it, and the answer says what is known already.
async fn create(cx: Ctx<State>, req: Request<Create>) -> Result<Reply> {
    let id = server_id(&req)?;
    // The server first: a foreign one is a 404 whatever the body says.
    let cx2 = cx.clone();
    cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    let nic = nic(&cx, &req.body.new).await?;
    let (cx2, new) = (cx.clone(), nic.clone());
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            unlocked(&server, cx2.is_admin())?;
            need(&server, "attach_interface", PLUGGABLE)?;
            if server.nics.iter().any(|n| n.port == new.port) {
                return Err(Error::bad_request(format!("Port {} is still in use.", new.port)));
            }
            server.nics.push(new.clone());
            tx.update_status(&mut server)?;
            record(tx, &cx2, &server, "attach_interface")?;
            tx.wake("server", id);
            Ok(())
        })
        .await?;
    let server = Server { nics: vec![nic.clone()], ..placeholder(&cx, id).await? };
    let port = wait_for_port(&cx, &server, nic.port).await?;
    Ok(Reply::json(&json!({"interfaceAttachment": match port {
        Some(port) => view(&cx, &server, &port),
        None => json!({
            "net_id": nic.network, "port_id": nic.port, "mac_addr": null, "port_state": "BUILD", "fixed_ips": [],
        }),
    }})))
}

async fn placeholder(cx: &Ctx<State>, id: base::ServerId) -> Result<Server> {
    let cx2 = cx.clone();
    cx.store().read(move |tx| owned(tx, &cx2, id)).await
}

/// Clients read the port's address from the answer: it is given a moment to appear.
async fn wait_for_port(cx: &Ctx<State>, server: &Server, port: PortId) -> Result<Option<PortInfo>> {
    let device = server.id.to_string();
    for _ in 0..100 {
        let mut all = cx.state().deps.networks.ports_of(std::slice::from_ref(&device)).await?;
        let found =
            all.remove(&device).into_iter().flatten().find(|p| p.id == port && !p.fixed_ips.is_empty());
        if found.is_some() {
            return Ok(found);
        }
        let id = server.id;
        let row = cx.store().read(move |tx| tx.get::<Server>(&id)).await?;
        // Refused: the reconciler took it off again.
        if row.is_none_or(|s| !s.nics.iter().any(|n| n.port == port && !n.detaching)) {
            return Err(Error::bad_request(format!(
                "The interface could not be attached: port {port} was refused."
            )));
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(None)
}

async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    let port = req.param("port").to_owned();
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            unlocked(&server, cx2.is_admin())?;
            let missing = || Error::not_found(format!("Port {port} is not attached to instance {id}."));
            let at = server.nics.iter().position(|n| n.port.to_string() == port).ok_or_else(missing)?;
            need(&server, "detach_interface", PLUGGABLE)?;
            if let Some(nic) = server.nics.get_mut(at) {
                nic.detaching = true;
            }
            tx.update(&mut server)?;
            record(tx, &cx2, &server, "detach_interface")?;
            tx.wake("server", id);
            if let Some(host) = server.host_id {
                tx.wake("host", host);
            }
            Ok(())
        })
        .await?;
    Ok(Reply::empty())
}
