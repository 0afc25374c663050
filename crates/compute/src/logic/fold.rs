//! A server's row as its host must know it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use contract::host::{DiskSource, DiskSpec, GuestMetadata, ServerSpec};
use serde_json::{Value, json};

use crate::model::{Disk, DiskState, Nic, Server};

/// The spec of a server that is ready for its host. A pure function of the row's spec fields: the same generation
/// always gives the same spec.
pub fn server_spec(server: &Server) -> ServerSpec {
    let nics: Vec<&Nic> = server.nics.iter().filter(|n| !n.detaching && n.plugged.is_some()).collect();
    ServerSpec {
        id: server.id,
        generation: server.meta.generation,
        project_id: server.project_id.clone(),
        user_id: server.user_id.clone(),
        name: server.name.clone(),
        power: server.power,
        reboots: server.reboots,
        reboot_hard: server.reboot_hard,
        vcpus: server.size.vcpus,
        memory_mib: server.size.ram,
        properties: properties(server),
        disks: disks(server),
        nics: nics.iter().filter_map(|n| n.plugged.as_ref()).map(|p| p.spec.clone()).collect(),
        config_drive: server.config_drive,
        metadata: metadata(server, &nics),
        disks_from: None,
    }
}

fn properties(server: &Server) -> BTreeMap<String, String> {
    let image = server
        .image
        .iter()
        .flat_map(|i| &i.properties)
        .filter(|(k, _)| k.starts_with("hw_") || k.starts_with("os_"));
    server.size.extra_specs.iter().chain(image).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Whether the host shall have the volume.
pub fn wanted(disk: &Disk) -> bool {
    matches!(disk.state, DiskState::Attaching | DiskState::Attached)
}

fn volume(disk: &Disk) -> DiskSpec {
    let name = disk.volume.to_string();
    DiskSpec {
        serial: name.chars().take(20).collect(),
        name,
        source: DiskSource::Volume { volume: disk.volume },
        device: disk.device.clone(),
    }
}

fn local(name: &str, source: DiskSource, taken: &mut Vec<String>) -> DiskSpec {
    let device = super::names::device(&taken.iter().map(String::as_str).collect::<Vec<_>>());
    taken.push(device.clone());
    DiskSpec { name: name.to_owned(), source, serial: String::new(), device }
}

/// Disks in boot order.
fn disks(server: &Server) -> Vec<DiskSpec> {
    let mut all = Vec::new();
    let mut taken: Vec<String> = server.disks.iter().map(|d| d.device.clone()).collect();
    if let Some(boot) = &server.image {
        let source = DiskSource::Image { image: boot.image.clone(), size_gib: server.size.disk };
        all.push(local("root", source, &mut taken));
    }
    let mut volumes: Vec<&Disk> = server.disks.iter().filter(|d| wanted(d)).collect();
    // Those with a boot index first, by it; the others stay in the order of their attachment.
    volumes.sort_by_key(|d| d.boot_index.unwrap_or(u32::MAX));
    all.extend(volumes.into_iter().map(volume));
    if server.size.ephemeral > 0 {
        let at = usize::from(!all.is_empty());
        let disk = local("ephemeral0", DiskSource::Blank { size_gib: server.size.ephemeral }, &mut taken);
        all.insert(at.min(all.len()), disk);
    }
    if server.size.swap > 0 {
        all.push(local("swap", DiskSource::Blank { size_gib: server.size.swap.div_ceil(1024) }, &mut taken));
    }
    all
}

fn metadata(server: &Server, nics: &[&Nic]) -> GuestMetadata {
    let plugged: Vec<_> = nics.iter().filter_map(|n| n.plugged.as_ref()).collect();
    let mut groups: Vec<String> = plugged.iter().flat_map(|p| p.security_groups.clone()).collect();
    groups.sort_unstable();
    groups.dedup();
    let floating = plugged.iter().flat_map(|p| &p.floating).find(|ip| ip.is_ipv4()).copied();
    GuestMetadata {
        hostname: server.hostname.clone(),
        availability_zone: server.zone.clone().unwrap_or_default(),
        meta: server.metadata.clone(),
        public_keys: server.key.iter().cloned().collect(),
        user_data: server.user_data.clone(),
        admin_pass: server.admin_pass.clone(),
        launch_index: server.launch_index,
        network_data: network_data(nics),
        instance_type: server.flavor_name.clone(),
        image_id: server.image.as_ref().map(|i| i.image.id),
        security_groups: groups,
        public_ipv4: floating,
        devices: devices(server, nics),
    }
}

/// Tagged devices of the OpenStack metadata format.
fn devices(server: &Server, nics: &[&Nic]) -> Vec<Value> {
    let nics = nics.iter().filter_map(|n| {
        let mac = n.plugged.as_ref()?.spec.mac;
        Some(json!({"type": "nic", "bus": "none", "address": "none", "mac": mac, "tags": [n.tag.as_ref()?]}))
    });
    let disks = server.disks.iter().filter(|d| wanted(d)).filter_map(|d| {
        let serial: String = d.volume.to_string();
        Some(json!({"type": "disk", "bus": "virtio", "address": "none", "serial": serial, "tags": [d.tag.as_ref()?]}))
    });
    nics.chain(disks).collect()
}

fn mask(net: base::net::IpNet) -> String {
    net.netmask().to_string()
}

/// `network_data.json` (OpenStack metadata format).
fn network_data(nics: &[&Nic]) -> Value {
    let (mut links, mut networks, mut services) = (Vec::new(), Vec::new(), Vec::new());
    for nic in nics {
        let Some(plugged) = &nic.plugged else { continue };
        let port = nic.port.to_string();
        let link: String = format!("tap{port}").chars().take(14).collect();
        links.push(json!({
            "id": link, "vif_id": port, "type": "ovs", "mtu": plugged.spec.mtu,
            "ethernet_mac_address": plugged.spec.mac,
        }));
        for fixed in &plugged.addresses {
            let v4 = fixed.ip.is_ipv4();
            let id = format!("network{}", networks.len());
            let kind = match (v4, fixed.dhcp) {
                (true, true) => "ipv4_dhcp",
                (true, false) => "ipv4",
                (false, true) => "ipv6_dhcp",
                (false, false) => "ipv6",
            };
            let mut network = json!({"id": id, "type": kind, "link": link, "network_id": nic.network});
            if let (false, Some(map)) = (fixed.dhcp, network.as_object_mut()) {
                map.insert("ip_address".into(), json!(fixed.ip));
                map.insert("netmask".into(), json!(mask(fixed.cidr)));
                map.insert("routes".into(), json!(routes(fixed)));
                map.insert("services".into(), json!(dns(&fixed.dns_servers)));
            }
            networks.push(network);
            for server in dns(&fixed.dns_servers) {
                if !services.contains(&server) {
                    services.push(server);
                }
            }
        }
    }
    json!({"links": links, "networks": networks, "services": services})
}

fn dns(servers: &[IpAddr]) -> Vec<Value> {
    servers.iter().map(|s| json!({"type": "dns", "address": s})).collect()
}

fn routes(fixed: &contract::services::FixedIpInfo) -> Vec<Value> {
    let mut routes = Vec::new();
    if let Some(gateway) = fixed.gateway {
        let any = if gateway.is_ipv4() { "0.0.0.0" } else { "::" };
        routes.push(json!({"network": any, "netmask": any, "gateway": gateway}));
    }
    for (net, hop) in &fixed.host_routes {
        routes.push(json!({"network": net.network(), "netmask": mask(*net), "gateway": hop}));
    }
    routes
}
