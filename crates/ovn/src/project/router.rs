//! Router → Logical_Router, its ports, routes, SNAT and gateway group; floating IP → NAT.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use base::net::{IpNet, Ipv4Net};
use contract::net::{FloatingIpItem, RouterItem, RouterPortItem};

use super::{
    Context, Desired, REVISION, RowSet, map, pairs, router_name, router_port_name, spaced, switch_name,
};
use crate::ovsdb::Value;

/// At most so many chassis may carry one gateway; BFD runs between them.
const MAX_GATEWAYS: usize = 5;
const FIRST_PRIORITY: i64 = 32_767;

pub fn router(item: &RouterItem, context: &Context) -> RowSet {
    let name = router_name(item.id);
    let ids = pairs([
        ("neutron:router_name", item.name.clone()),
        (REVISION, item.revision.to_string()),
        ("neutron:availability_zone_hints", String::new()),
    ]);
    let options = pairs([
        ("always_learn_from_arp_request", "false".into()),
        ("dynamic_neigh_routers", "true".into()),
        ("mac_binding_age_threshold", "300".into()),
    ]);
    let row = Desired::named("Logical_Router", &name)
        .set("enabled", Value::one(item.enabled))
        .set("options", map(options))
        .set("external_ids", map(ids));
    let mut set = RowSet { rows: vec![row], ..RowSet::default() };
    for interface in &item.interfaces {
        set.rows.push(router_port(item, interface, &name, false));
    }
    if let Some(gateway) = &item.gateway {
        gateway_rows(item, gateway, &name, context, &mut set);
    }
    for (to, by) in &item.routes {
        let ids = pairs([("neutron:is_static_route", "true".into())]);
        set.rows.push(route(&name, &to.trunc().to_string(), *by, ids));
    }
    set
}

fn router_port(item: &RouterItem, port: &RouterPortItem, router: &str, external: bool) -> Desired {
    let name = router_port_name(port.port_id);
    let networks = port.addresses.iter().map(|a| format!("{}/{}", a.ip, a.cidr.prefix_len()));
    let ids = pairs([
        (REVISION, item.revision.to_string()),
        ("neutron:subnet_ids", spaced(port.addresses.iter().map(|a| a.subnet_id))),
        ("neutron:network_name", switch_name(port.network_id)),
        ("neutron:is_ext_gw", if external { "True" } else { "False" }.into()),
        ("neutron:router_name", router.to_owned()),
    ]);
    let mode = port.addresses.iter().find_map(|a| match a.ipv6_ra_mode.as_deref()? {
        "slaac" => Some("slaac"),
        "dhcpv6-stateful" => Some("dhcpv6_stateful"),
        "dhcpv6-stateless" => Some("dhcpv6_stateless"),
        _ => None,
    });
    let advertised = mode.filter(|_| !external).map(|mode| {
        pairs([
            ("address_mode", mode.into()),
            ("send_periodic", "true".into()),
            ("mtu", port.mtu.to_string()),
            ("route_info", "MEDIUM-fe80::a9fe:a9fe/128".into()),
        ])
    });
    Desired::named("Logical_Router_Port", name)
        .text("mac", port.mac)
        .set("networks", Value::set(networks))
        .set("ipv6_ra_configs", map(advertised.unwrap_or_default()))
        .set("options", map(BTreeMap::new()))
        .set("ha_chassis_group", Value::none())
        .set("external_ids", map(ids))
        .within("Logical_Router", router, "ports")
}

fn route(router: &str, prefix: &str, by: IpAddr, ids: BTreeMap<String, String>) -> Desired {
    Desired::new("Logical_Router_Static_Route", format!("{prefix} {by}"))
        .text("ip_prefix", prefix)
        .text("nexthop", by)
        .set("external_ids", map(ids))
        .within("Logical_Router", router, "static_routes")
}

fn gateway_rows(
    item: &RouterItem,
    gateway: &RouterPortItem,
    name: &str,
    context: &Context,
    set: &mut RowSet,
) {
    let mtu = item.interfaces.iter().chain([gateway]).map(|p| p.mtu).min().unwrap_or(gateway.mtu);
    let port = router_port(item, gateway, name, true)
        .set("options", map(pairs([("gateway_mtu", mtu.to_string())])))
        .refer("ha_chassis_group", "HA_Chassis_Group", name);
    set.rows.push(port);
    set.rows.extend(gateway_group(name, &item.id.to_string(), &context.gateways));
    for address in &gateway.addresses {
        if let Some(by) = address.gateway {
            let ids = pairs([
                ("neutron:is_ext_gw", "true".into()),
                ("neutron:subnet_id", address.subnet_id.to_string()),
                ("neutron:is_static_route", "true".into()),
            ]);
            let all = if by.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            set.rows.push(route(name, all, by, ids));
        }
    }
    let v4 = gateway.addresses.iter().find(|a| a.ip.is_ipv4());
    if let Some(address) = v4.filter(|_| item.enable_snat) {
        for inside in translated(item) {
            let nat = Desired::new("NAT", format!("snat {name} {inside}"))
                .text("type", "snat")
                .text("external_ip", address.ip)
                .text("logical_ip", inside)
                .set("external_ids", map(pairs([("allod:snat", name.to_owned())])))
                .within("Logical_Router", name, "nat");
            set.rows.push(nat);
        }
    }
}

/// Whose source is translated: attached subnets and networks routed to behind them. Not 0.0.0.0/0, as Neutron has it
/// by default: it also meets answers that already carry a floating address, and guests of one router then cannot
/// reach each other by floating IP (seen with 23.03).
fn translated(item: &RouterItem) -> BTreeSet<Ipv4Net> {
    let v4 = |net: &IpNet| match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    };
    let attached = item.interfaces.iter().flat_map(|i| &i.addresses).filter_map(|a| v4(&a.cidr));
    let attached: BTreeSet<Ipv4Net> = attached.collect();
    let inside = |by: &IpAddr| attached.iter().any(|net| IpNet::V4(*net).contains(by));
    let behind = item.routes.iter().filter(|(to, by)| to.prefix_len() > 0 && inside(by));
    let behind: Vec<Ipv4Net> = behind.filter_map(|(to, _)| v4(to)).collect();
    attached.iter().copied().chain(behind).collect()
}

/// The group of chassis that may carry a router's gateway, best first.
pub fn gateway_group(name: &str, router: &str, chassis: &[String]) -> Vec<Desired> {
    let ids =
        pairs([("neutron:availability_zone_hints", String::new()), ("neutron:router_id", router.to_owned())]);
    let mut rows = vec![Desired::named("HA_Chassis_Group", name).set("external_ids", map(ids))];
    for (chassis, priority) in chassis.iter().take(MAX_GATEWAYS).zip((0..=FIRST_PRIORITY).rev()) {
        let member = Desired::new("HA_Chassis", format!("{name} {chassis}"))
            .text("chassis_name", chassis)
            .set("priority", Value::one(priority))
            .set("external_ids", map(pairs([("allod:group", name.to_owned())])));
        rows.push(member.within("HA_Chassis_Group", name, "ha_chassis"));
    }
    rows
}

pub fn floating_ip(item: &FloatingIpItem) -> RowSet {
    let Some(target) = &item.target else { return RowSet::default() };
    let router = router_name(target.router_id);
    let ids = pairs([
        ("neutron:fip_id", item.id.to_string()),
        ("neutron:fip_port_id", target.port_id.to_string()),
        ("neutron:fip_network_id", item.network_id.to_string()),
        ("neutron:router_name", router.clone()),
        (REVISION, item.revision.to_string()),
    ]);
    let row = Desired::new("NAT", item.id.to_string())
        .text("type", "dnat_and_snat")
        .text("external_ip", item.address)
        .text("logical_ip", target.fixed_ip)
        .text("logical_port", target.port_id)
        .set("options", map(pairs([("stateless", "false".into())])))
        .set("external_ids", map(ids))
        .within("Logical_Router", router, "nat");
    RowSet { rows: vec![row], ..RowSet::default() }
}
