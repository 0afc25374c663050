//! Rows to [`contract::net::Item`]s: what a backend needs to know of each resource.
//!
//! Invariant: pure and total; the same rows give the same item, and no user text becomes part of a name or a match.

use std::collections::{BTreeMap, BTreeSet};

use base::net::IpNet;
use base::{MacAddr, NetworkId, SubnetId};
use contract::net::{
    FloatingIpItem, FloatingIpTarget, NetworkItem, PortItem, PortRole, RouterAddress, RouterItem,
    RouterPortItem, SecurityGroupItem, SecurityGroupRuleItem, SubnetItem,
};

use crate::logic::rules;
use crate::model::{
    DISTRIBUTED, FLOATING_IP, FloatingIp, Network, Port, ROUTER_GATEWAY, ROUTER_INTERFACE, Route, Router,
    SecurityGroup, SecurityGroupRule, Subnet,
};

/// The MAC a subnet's DHCP server answers from: follows from the subnet's id, so it never changes.
pub fn server_mac(subnet: SubnetId) -> MacAddr {
    let b = subnet.0.as_bytes();
    MacAddr([0xfa, 0x16, 0x3e, b[13], b[14], b[15]])
}

fn routes(routes: &[Route]) -> Vec<(IpNet, std::net::IpAddr)> {
    routes.iter().map(|r| (r.destination.trunc(), r.nexthop)).collect()
}

/// A network with its subnets and metadata port.
pub fn network(net: &Network, subnets: &[Subnet], metadata: Option<&Port>, dns_domain: &str) -> NetworkItem {
    let mut subnets: Vec<SubnetItem> = subnets
        .iter()
        .map(|s| SubnetItem {
            id: s.id,
            cidr: s.cidr,
            gateway: s.gateway_ip,
            dhcp: s.enable_dhcp,
            dns_servers: s.dns_nameservers.clone(),
            host_routes: routes(&s.host_routes),
            ipv6_address_mode: s.ipv6_address_mode.clone(),
            ipv6_ra_mode: s.ipv6_ra_mode.clone(),
            metadata_address: metadata
                .and_then(|p| p.fixed_ips.iter().find(|f| f.subnet_id == s.id))
                .map(|f| f.ip_address),
            server_mac: server_mac(s.id),
        })
        .collect();
    subnets.sort_by_key(|s| s.id);
    let vlan = (net.network_type == "vlan").then_some(net.segmentation_id).flatten();
    NetworkItem {
        id: net.id,
        revision: net.meta.generation,
        project_id: net.project_id.clone(),
        name: net.name.clone(),
        admin_state_up: net.admin_state_up,
        mtu: net.mtu,
        physical_network: net.physical_network.clone(),
        vlan: vlan.and_then(|v| u16::try_from(v).ok()),
        external: net.external,
        dns_domain: {
            let domain = if net.dns_domain.is_empty() { dns_domain } else { &net.dns_domain };
            domain.trim_end_matches('.').to_owned()
        },
        subnets,
        metadata_port: metadata.map(|p| p.id),
    }
}

/// What a port is for, by its owner.
pub fn role(device_owner: &str) -> PortRole {
    match device_owner {
        ROUTER_INTERFACE | ROUTER_GATEWAY => PortRole::RouterInterface,
        DISTRIBUTED => PortRole::Metadata,
        FLOATING_IP => PortRole::AddressOnly,
        _ => PortRole::Device,
    }
}

/// A port.
pub fn port(p: &Port) -> PortItem {
    let role = role(&p.device_owner);
    PortItem {
        id: p.id,
        revision: p.meta.generation,
        project_id: p.project_id.clone(),
        name: p.name.clone(),
        network_id: p.network_id,
        role,
        router_id: (role == PortRole::RouterInterface).then(|| p.device_id.parse().ok()).flatten(),
        enabled: p.admin_state_up,
        mac: p.mac_address,
        fixed_ips: p.fixed_ips.iter().map(|f| (f.subnet_id, f.ip_address)).collect(),
        allowed_address_pairs: p
            .allowed_address_pairs
            .iter()
            .filter_map(|a| Some((rules::prefix(&a.ip_address).ok()?, a.mac_address)))
            .collect(),
        port_security: p.port_security_enabled,
        security_groups: if p.port_security_enabled { p.security_groups.clone() } else { BTreeSet::new() },
        device_id: p.device_id.clone(),
        device_owner: p.device_owner.clone(),
        host: (!p.host_id.is_empty()).then(|| p.host_id.clone()),
        extra_dhcp_opts: p
            .extra_dhcp_opts
            .iter()
            .filter(|o| o.ip_version == 4)
            .filter_map(|o| Some((o.opt_name.clone(), o.opt_value.clone()?)))
            .collect(),
        dns_name: p.dns_name.clone(),
    }
}

/// A router with the ports that belong to it. `ports` are all of its ports; `networks` and `subnets` hold at least
/// those the ports are on.
pub fn router(
    r: &Router,
    ports: &[Port],
    networks: &BTreeMap<NetworkId, Network>,
    subnets: &BTreeMap<SubnetId, Subnet>,
) -> RouterItem {
    let item = |p: &Port| RouterPortItem {
        port_id: p.id,
        network_id: p.network_id,
        mac: p.mac_address,
        addresses: p
            .fixed_ips
            .iter()
            .filter_map(|f| {
                let s = subnets.get(&f.subnet_id)?;
                Some(RouterAddress {
                    subnet_id: s.id,
                    ip: f.ip_address,
                    cidr: s.cidr,
                    gateway: s.gateway_ip,
                    ipv6_ra_mode: s.ipv6_ra_mode.clone(),
                })
            })
            .collect(),
        mtu: networks.get(&p.network_id).map_or(1500, |n| n.mtu),
    };
    let mut interfaces: Vec<RouterPortItem> =
        ports.iter().filter(|p| p.device_owner == ROUTER_INTERFACE).map(item).collect();
    interfaces.sort_by_key(|p| p.port_id);
    RouterItem {
        id: r.id,
        revision: r.meta.generation,
        project_id: r.project_id.clone(),
        name: r.name.clone(),
        enabled: r.admin_state_up,
        gateway: ports.iter().find(|p| Some(p.id) == r.gateway_port_id).map(item),
        enable_snat: r.enable_snat,
        interfaces,
        routes: routes(&r.routes),
    }
}

/// A floating IP.
pub fn floating_ip(f: &FloatingIp) -> FloatingIpItem {
    let target = match (f.router_id, f.port_id, f.fixed_ip_address) {
        (Some(router_id), Some(port_id), Some(fixed_ip)) => {
            Some(FloatingIpTarget { router_id, port_id, fixed_ip })
        }
        _ => None,
    };
    FloatingIpItem {
        id: f.id,
        revision: f.meta.generation,
        project_id: f.project_id.clone(),
        network_id: f.floating_network_id,
        address: f.floating_ip_address,
        target,
    }
}

/// A security group with its rules.
pub fn security_group(g: &SecurityGroup, rows: &[SecurityGroupRule]) -> SecurityGroupItem {
    let mut items: Vec<SecurityGroupRuleItem> = rows
        .iter()
        .map(|r| {
            let v6 = r.ethertype == "IPv6";
            SecurityGroupRuleItem {
                id: r.id,
                ingress: r.direction == "ingress",
                ip_version: if v6 { 6 } else { 4 },
                protocol: rules::protocol_number(r.protocol.as_deref(), v6),
                port_min: r.port_range_min,
                port_max: r.port_range_max,
                remote_prefix: r.remote_ip_prefix.map(|p| p.trunc()),
                remote_group: r.remote_group_id,
            }
        })
        .collect();
    items.sort_by_key(|r| r.id);
    SecurityGroupItem {
        id: g.id,
        revision: g.meta.generation,
        project_id: g.project_id.clone(),
        name: g.name.clone(),
        stateful: g.stateful,
        rules: items,
    }
}
