//! Network → Logical_Switch, its localnet port, DHCP_Options of its subnets.

use std::collections::BTreeMap;

use contract::net::{NetworkItem, SubnetItem};

use super::{Context, Desired, REVISION, RowSet, dhcp, dhcp_key, map, pairs, spaced, switch_name};
use crate::ovsdb::Value;

/// Our key on the switch: `<subnet>,<prefix>` of every subnet, separated by spaces.
pub const SUBNETS: &str = "allod:subnets";
/// Our key on the switch: its domain.
pub const DOMAIN: &str = "allod:dns_domain";
/// Prefix of our keys on a port's own DHCP options: what the port sets by itself.
pub const OVERRIDE: &str = "allod:dhcp:";

pub fn network(item: &NetworkItem, context: &Context) -> RowSet {
    let name = switch_name(item.id);
    let mut set = RowSet { rows: vec![switch(item, &name)], ..RowSet::default() };
    if let Some(physical) = &item.physical_network {
        set.rows.push(localnet(item, &name, physical));
    }
    if !item.admin_state_up {
        for direction in ["from-lport", "to-lport"] {
            let acl = Desired::new("ACL", format!("{name} {direction} down"))
                .text("direction", direction)
                .set("priority", Value::one(32_767))
                .text("match", "1")
                .text("action", "drop")
                .set("external_ids", map(pairs([("allod:switch_down", name.clone())])))
                .within("Logical_Switch", &name, "acls");
            set.rows.push(acl);
        }
    }
    for subnet in &item.subnets {
        let Some(options) = dhcp::subnet_options(item, subnet, &context.dns_servers) else { continue };
        let row = |port: Option<&str>, options, own: &BTreeMap<String, String>| {
            options_row(item, subnet, port, options, own)
        };
        set.rows.push(row(None, options.clone(), &BTreeMap::new()));
        let id = subnet.id.to_string();
        let own =
            context.ports.iter().filter(|p| p.dhcp && !p.overrides.is_empty() && p.subnets.contains(&id));
        for port in own.filter(|_| subnet.cidr.addr().is_ipv4()) {
            set.rows.push(row(Some(&port.id), dhcp::overridden(&options, &port.overrides), &port.overrides));
        }
    }
    links(item, context, &mut set);
    set
}

fn switch(item: &NetworkItem, name: &str) -> Desired {
    let mut config = pairs([
        ("mcast_snoop", "false".into()),
        ("mcast_flood_unregistered", "false".into()),
        ("vlan-passthru", "false".into()),
    ]);
    let kind = match (&item.physical_network, item.vlan) {
        (None, _) => "geneve",
        (Some(_), None) => "flat",
        (Some(_), Some(_)) => "vlan",
    };
    let mut ids = pairs([
        ("neutron:network_name", item.name.clone()),
        ("neutron:mtu", item.mtu.to_string()),
        (REVISION, item.revision.to_string()),
        ("neutron:availability_zone_hints", String::new()),
        ("neutron:provnet-network-type", kind.into()),
        (DOMAIN, item.dns_domain.clone()),
        (SUBNETS, spaced(item.subnets.iter().map(|s| format!("{},{}", s.id, s.cidr.trunc())))),
    ]);
    if let Some(physical) = &item.physical_network {
        config.insert("fdb_age_threshold".into(), "300".into());
        ids.insert("neutron:provnet-physical-network".into(), physical.clone());
    }
    if item.external {
        config.insert("broadcast-arps-to-all-routers".into(), "true".into());
    }
    Desired::named("Logical_Switch", name).set("other_config", map(config)).set("external_ids", map(ids))
}

fn localnet(item: &NetworkItem, switch: &str, physical: &str) -> Desired {
    Desired::named("Logical_Switch_Port", format!("provnet-{}", item.id))
        .text("type", "localnet")
        .set("addresses", Value::one("unknown"))
        .set("tag_request", item.vlan.map_or_else(Value::none, |v| Value::one(i64::from(v))))
        .set(
            "options",
            map(pairs([
                ("network_name", physical.to_owned()),
                ("mcast_flood_reports", "true".into()),
                ("mcast_flood", "false".into()),
                ("localnet_learn_fdb", "false".into()),
            ])),
        )
        .set("external_ids", map(pairs([("neutron:provnet-physical-network", physical.to_owned())])))
        .within("Logical_Switch", switch, "ports")
}

fn options_row(
    item: &NetworkItem,
    subnet: &SubnetItem,
    port: Option<&str>,
    options: BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
) -> Desired {
    let mut ids = pairs([
        ("subnet_id", subnet.id.to_string()),
        ("neutron:network_id", item.id.to_string()),
        (REVISION, item.revision.to_string()),
    ]);
    if let Some(port) = port {
        ids = own_ids(&subnet.id.to_string(), &item.id.to_string(), port, own);
    }
    Desired::new("DHCP_Options", dhcp_key(subnet.id, port))
        .text("cidr", subnet.cidr.trunc())
        .set("options", map(options))
        .set("external_ids", map(ids))
}

/// `external_ids` of a port's own DHCP options.
pub fn own_ids(
    subnet: &str,
    network: &str,
    port: &str,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut ids = pairs([
        ("subnet_id", subnet.to_owned()),
        ("neutron:network_id", network.to_owned()),
        ("port_id", port.to_owned()),
    ]);
    ids.extend(own.iter().map(|(k, v)| (format!("{OVERRIDE}{k}"), v.clone())));
    ids
}

/// A subnet's options may come, go, or be another row than before: its ports must follow.
fn links(item: &NetworkItem, context: &Context, set: &mut RowSet) {
    for port in context.ports.iter().filter(|p| p.dhcp) {
        for (column, v4) in [("dhcpv4_options", true), ("dhcpv6_options", false)] {
            let mine =
                port.subnets.iter().filter_map(|id| item.subnets.iter().find(|s| s.id.to_string() == *id));
            let mut of_family = mine.filter(|s| s.cidr.addr().is_ipv4() == v4);
            let key = of_family.find_map(|s| {
                let own = dhcp_key(s.id, Some(&port.id));
                let shared = dhcp_key(s.id, None);
                [own, shared]
                    .into_iter()
                    .find(|k| set.rows.iter().any(|r| r.table == "DHCP_Options" && r.key == *k))
            });
            set.dhcp_links.push((port.row, column, key));
        }
    }
}
