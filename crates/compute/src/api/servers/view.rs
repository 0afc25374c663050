//! How servers are shown, by microversion.

use std::collections::BTreeMap;

use ::api::Ctx;
use base::Result;
use contract::services::PortInfo;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha224};
use store::Query;

use super::super::wire::{bookmark, links};
use crate::State;
use crate::logic::state::{status, vm_state};
use crate::model::{DiskState, Host, Server, VmState};

/// What is shown besides the row.
#[derive(Default)]
pub(super) struct Around {
    pub ports: BTreeMap<String, Vec<PortInfo>>,
    pub hosts: BTreeMap<base::HostId, &'static str>,
    pub admin: bool,
}

/// One question for all servers.
pub(super) async fn around(cx: &Ctx<State>, servers: &[Server]) -> Result<Around> {
    let admin = cx.allows("os_compute_api:os-extended-server-attributes", &::api::Target::none());
    let devices: Vec<String> =
        servers.iter().filter(|s| !s.nics.is_empty()).map(|s| s.id.to_string()).collect();
    let ports = if devices.is_empty() {
        BTreeMap::new()
    } else {
        cx.state().deps.networks.ports_of(&devices).await?
    };
    let mut hosts = BTreeMap::new();
    if admin && cx.since(2, 16) {
        let rows = cx.store().read(|tx| tx.list::<Host>(&Query::new())).await?;
        for host in rows {
            let word = if host.disabled {
                "MAINTENANCE"
            } else if host.forced_down || !cx.state().is_up(&host) {
                "DOWN"
            } else {
                "UP"
            };
            hosts.insert(host.id, word);
        }
    }
    Ok(Around { ports, hosts, admin })
}

pub(super) fn brief(cx: &Ctx<State>, server: &Server) -> Value {
    let id = server.id.to_string();
    json!({"id": id, "name": server.name, "links": links(cx, "servers", &id)})
}

/// `addresses`: by network name.
pub(super) fn addresses(server: &Server, ports: &[PortInfo]) -> Map<String, Value> {
    let mut map = Map::new();
    let order = |p: &PortInfo| server.nics.iter().position(|n| n.port == p.id).unwrap_or(usize::MAX);
    let mut ports: Vec<&PortInfo> = ports.iter().collect();
    ports.sort_by_key(|p| order(p));
    for port in ports {
        let list = map.entry(port.network_name.clone()).or_insert_with(|| json!([]));
        let Some(list) = list.as_array_mut() else { continue };
        let mut add = |ip: std::net::IpAddr, kind: &str| {
            list.push(json!({
                "version": if ip.is_ipv4() { 4 } else { 6 }, "addr": ip,
                "OS-EXT-IPS:type": kind, "OS-EXT-IPS-MAC:mac_addr": port.mac,
            }));
        };
        for fixed in &port.fixed_ips {
            add(fixed.ip, "fixed");
            for (_, floating) in port.floating_ips.iter().filter(|(at, _)| *at == fixed.ip) {
                add(*floating, "floating");
            }
        }
    }
    map
}

/// The host as a project may know it: the same for its servers on one host, and nothing else.
pub(in super::super) fn host_id(server: &Server) -> String {
    match &server.host_name {
        Some(host) => hex::encode(Sha224::digest(format!("{}{host}", server.project_id))),
        None => String::new(),
    }
}

fn flavor(cx: &Ctx<State>, server: &Server) -> Value {
    let size = &server.size;
    if cx.since(2, 47) {
        let mut map = Map::new();
        map.insert("vcpus".into(), json!(size.vcpus));
        map.insert("ram".into(), json!(size.ram));
        map.insert("disk".into(), json!(size.disk));
        map.insert("ephemeral".into(), json!(size.ephemeral));
        map.insert("swap".into(), json!(size.swap));
        map.insert("original_name".into(), json!(server.flavor_name));
        map.insert("extra_specs".into(), json!(size.extra_specs));
        return Value::Object(map);
    }
    let id = server.flavor_id.as_str();
    json!({"id": id, "links": bookmark(cx, "flavors", id)})
}

fn image(cx: &Ctx<State>, server: &Server) -> Value {
    match &server.image {
        None => json!(""),
        Some(boot) => {
            let id = boot.image.id.to_string();
            json!({"id": id, "links": bookmark(cx, "images", &id)})
        }
    }
}

/// Security groups, from its ports once they exist.
fn groups(server: &Server, ports: &[PortInfo]) -> Option<Value> {
    let mut names: Vec<&str> =
        ports.iter().flat_map(|p| p.security_groups.iter().map(|(_, n)| n.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() && server.ready {
        return None;
    }
    if names.is_empty() {
        names.push("default");
    }
    Some(names.into_iter().map(|n| json!({"name": n})).collect())
}

/// All fields of a server. `single`: "show", which has one field more.
pub(super) fn full(cx: &Ctx<State>, server: &Server, around: &Around, group: Option<Vec<String>>) -> Value {
    let id = server.id.to_string();
    let none = Vec::new();
    let ports = around.ports.get(&id).unwrap_or(&none);
    let word = status(server);
    let mut map = Map::with_capacity(48);
    macro_rules! put {
        ($($key:literal: $value:expr),* $(,)?) => { $(map.insert($key.to_owned(), json!($value));)* };
    }
    put! {
        "id": id, "name": server.name, "status": word, "tenant_id": server.project_id, "user_id": server.user_id,
        "metadata": server.metadata, "hostId": host_id(server), "image": image(cx, server),
        "flavor": flavor(cx, server), "created": server.meta.created_at.iso_seconds(),
        "updated": server.meta.updated_at.iso_seconds(), "addresses": addresses(server, ports),
        "accessIPv4": server.access_ip_v4.map_or_else(String::new, |ip| ip.to_string()),
        "accessIPv6": server.access_ip_v6.map_or_else(String::new, |ip| ip.to_string()),
        "links": links(cx, "servers", &id), "OS-DCF:diskConfig": server.disk_config,
    }
    if matches!(word, "ACTIVE" | "BUILD" | "REBUILD" | "RESIZE" | "VERIFY_RESIZE" | "MIGRATING") {
        put! { "progress": 0 }
    }
    if let (VmState::Error, Some(fault)) = (server.vm_state, &server.fault) {
        let mut told =
            json!({"code": fault.code, "created": fault.created.iso_seconds(), "message": fault.message});
        if let (true, Some(fields)) = (around.admin, told.as_object_mut()) {
            fields.insert("details".into(), json!(fault.details));
        }
        put! { "fault": told }
    }
    let locals = server.zone.as_deref().or(server.zone_wanted.as_deref()).unwrap_or("");
    put! {
        "OS-EXT-AZ:availability_zone": locals,
        "config_drive": if server.config_drive { "True" } else { "" },
        "key_name": server.key.as_ref().map(|(name, _)| name),
        "OS-SRV-USG:launched_at": server.launched_at.map(base::Timestamp::iso_naive),
        "OS-SRV-USG:terminated_at": Value::Null,
    }
    if let Some(groups) = groups(server, ports) {
        put! { "security_groups": groups }
    }
    if around.admin {
        attributes(cx, server, &mut map);
    } else if cx.since(2, 90) {
        map.insert("OS-EXT-SRV-ATTR:hostname".into(), json!(server.hostname));
    }
    let task = if server.deleting { Some("deleting") } else { server.task.as_deref() };
    map.insert("OS-EXT-STS:task_state".into(), json!(task));
    map.insert("OS-EXT-STS:vm_state".into(), json!(vm_state(server)));
    map.insert("OS-EXT-STS:power_state".into(), json!(server.power_state));
    map.insert("os-extended-volumes:volumes_attached".into(), volumes(cx, server));
    newer(cx, server, around, group, &mut map);
    Value::Object(map)
}

fn volumes(cx: &Ctx<State>, server: &Server) -> Value {
    let shown = server.disks.iter().filter(|d| d.state != DiskState::Creating || server.ready);
    shown
        .map(|d| {
            if cx.since(2, 3) {
                json!({"id": d.volume, "delete_on_termination": d.delete_on_termination})
            } else {
                json!({"id": d.volume})
            }
        })
        .collect()
}

/// `OS-EXT-SRV-ATTR:*`, for administrators.
fn attributes(cx: &Ctx<State>, server: &Server, map: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| map.insert(format!("OS-EXT-SRV-ATTR:{key}"), value);
    let short: String = server.id.to_string().chars().take(8).collect();
    put("host", json!(server.host_name));
    put("instance_name", json!(format!("instance-{short}")));
    put("hypervisor_hostname", json!(server.host_name));
    if cx.since(2, 3) {
        put("reservation_id", json!(server.reservation_id));
        put("launch_index", json!(server.launch_index));
        put("hostname", json!(server.hostname));
        put("kernel_id", json!(""));
        put("ramdisk_id", json!(""));
        put("root_device_name", json!("/dev/vda"));
        put("user_data", json!(server.user_data));
    }
}

/// Fields of newer microversions.
fn newer(
    cx: &Ctx<State>,
    server: &Server,
    around: &Around,
    group: Option<Vec<String>>,
    map: &mut Map<String, Value>,
) {
    let mut put = |since: u16, key: &str, value: Value| {
        if cx.since(2, since) {
            map.insert(key.to_owned(), value);
        }
    };
    put(9, "locked", json!(server.locked.is_some()));
    if around.admin {
        let word = server.host_id.and_then(|h| around.hosts.get(&h).copied()).unwrap_or("");
        put(16, "host_status", json!(word));
    }
    put(19, "description", json!(server.description));
    put(26, "tags", json!(server.tags));
    put(63, "trusted_image_certificates", json!(server.trusted_certs));
    if let Some(group) = group {
        put(71, "server_groups", json!(group));
    }
    put(73, "locked_reason", json!(server.locked.as_ref().and_then(|l| l.reason.as_ref())));
    put(96, "pinned_availability_zone", json!(server.zone_wanted));
}
