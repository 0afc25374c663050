//! Port → Logical_Switch_Port, group memberships, its own DHCP options, its DNS names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use base::MacAddr;
use base::net::IpNet;
use contract::net::{PortItem, PortRole};

use super::security::DROP_GROUP;
use super::{
    Context, Desired, REVISION, RowSet, dhcp, dhcp_key, group_name, map, network, pairs, port_option,
    router_port_name, spaced, switch_name,
};
use crate::ovsdb::Value;

/// Our key on the port: subnets of its addresses, in order, separated by spaces.
pub const SUBNET_IDS: &str = "neutron:subnet_ids";

/// Our key on a port that wants no DHCP.
pub const NO_DHCP: &str = "allod:dhcp_disabled";

pub fn port(item: &PortItem, context: &Context) -> RowSet {
    let mut set = RowSet { member_of: Some(BTreeSet::new()), ..RowSet::default() };
    if item.role == PortRole::AddressOnly {
        return set;
    }
    let mut row = common(item, context);
    row = match item.role {
        PortRole::RouterInterface => router_side(item, row),
        PortRole::Metadata => row
            .text("type", "localport")
            .set("addresses", Value::one(addresses(item.mac, item.fixed_ips.iter().map(|f| f.1.to_string()))))
            .set("port_security", Value::none())
            .set("options", map(BTreeMap::new())),
        _ => device(item, context, &mut set, row),
    };
    set.rows.insert(0, row);
    set
}

/// `<mac> <address> <address>`
fn addresses(mac: MacAddr, of: impl IntoIterator<Item = String>) -> String {
    let mut text = mac.to_string();
    for address in of {
        text.push(' ');
        text.push_str(&address);
    }
    text
}

fn common(item: &PortItem, context: &Context) -> Desired {
    let cidr = |(subnet, ip): &(base::SubnetId, IpAddr)| {
        let known = context.subnets.get(&subnet.to_string()).map(|s| s.cidr.prefix_len());
        format!("{ip}/{}", known.unwrap_or(if ip.is_ipv4() { 32 } else { 128 }))
    };
    let mut ids = pairs([
        ("neutron:port_name", item.name.clone()),
        ("neutron:device_id", item.device_id.clone()),
        ("neutron:device_owner", item.device_owner.clone()),
        ("neutron:project_id", item.project_id.to_string()),
        ("neutron:cidrs", spaced(item.fixed_ips.iter().map(cidr))),
        (SUBNET_IDS, spaced(item.fixed_ips.iter().map(|f| f.0))),
        ("neutron:network_name", switch_name(item.network_id)),
        ("neutron:security_group_ids", spaced(&item.security_groups)),
        ("neutron:vnic_type", "normal".into()),
        (REVISION, item.revision.to_string()),
    ]);
    if dhcp_disabled(item) {
        ids.insert(NO_DHCP.into(), "true".into());
    }
    Desired::named("Logical_Switch_Port", item.id.to_string())
        .set("enabled", Value::one(item.enabled))
        .set("external_ids", map(ids))
        .within("Logical_Switch", switch_name(item.network_id), "ports")
}

fn router_side(item: &PortItem, row: Desired) -> Desired {
    let mut options = pairs([("router-port", router_port_name(item.id))]);
    if item.device_owner == "network:router_gateway" {
        options.insert("nat-addresses".into(), "router".into());
        options.insert("exclude-lb-vips-from-garp".into(), "true".into());
    }
    row.text("type", "router")
        .set("addresses", Value::one("router"))
        .set("port_security", Value::none())
        .set("options", map(options))
}

fn device(item: &PortItem, context: &Context, set: &mut RowSet, row: Desired) -> Desired {
    let own: Vec<String> = item.fixed_ips.iter().map(|f| f.1.to_string()).collect();
    let mut addressed = vec![addresses(item.mac, own.clone())];
    let other_macs: BTreeSet<MacAddr> =
        item.allowed_address_pairs.iter().map(|p| p.1).filter(|m| *m != item.mac).collect();
    addressed.extend(other_macs.iter().map(MacAddr::to_string));
    let mut security = Vec::new();
    let mut groups: BTreeSet<String> = BTreeSet::new();
    if item.port_security {
        let paired = |mac: MacAddr| {
            let of_mac = item.allowed_address_pairs.iter().filter(move |p| p.1 == mac);
            of_mac.map(|p| short(p.0)).collect::<Vec<_>>()
        };
        let mut mine = own;
        mine.extend(paired(item.mac));
        security.push(addresses(item.mac, mine));
        security.extend(other_macs.iter().map(|mac| addresses(*mac, paired(*mac))));
        groups.insert(DROP_GROUP.into());
        groups.extend(item.security_groups.iter().map(|g| group_name(*g)));
        set.groups.clone_from(&item.security_groups);
    } else {
        addressed.push("unknown".into());
    }
    set.member_of = Some(groups);
    let options =
        item.host.iter().filter(|h| is_host_name(h)).map(|h| ("requested-chassis".to_owned(), h.clone()));
    let row = row
        .text("type", "")
        .set("addresses", Value::set(addressed))
        .set("port_security", Value::set(security))
        .set("options", map(options.collect()));
    names(item, context, set);
    dhcp_columns(item, context, set, row)
}

/// A single address without its prefix length.
fn short(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.trunc().to_string() }
}

fn is_host_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

fn names(item: &PortItem, context: &Context, set: &mut RowSet) {
    let ips: Vec<IpAddr> = item.fixed_ips.iter().map(|f| f.1).collect();
    let records = dhcp::dns_records(&item.dns_name, &context.domain, &ips);
    if records.is_empty() || item.device_id.is_empty() {
        return;
    }
    let ids = pairs([("ls_name", switch_name(item.network_id)), ("port_id", item.id.to_string())]);
    let row =
        Desired::new("DNS", item.id.to_string()).set("records", map(records)).set("external_ids", map(ids));
    set.rows.push(row.within("Logical_Switch", switch_name(item.network_id), "dns_records"));
}

fn dhcp_disabled(item: &PortItem) -> bool {
    item.extra_dhcp_opts.get("dhcp_disabled").is_some_and(|v| v.eq_ignore_ascii_case("true"))
}

/// The port's own DHCP options in OVN's words.
fn overrides(item: &PortItem) -> BTreeMap<String, String> {
    let known = item.extra_dhcp_opts.iter().filter_map(|(name, value)| port_option(name, value));
    known.map(|(name, value)| (name.to_owned(), value)).collect()
}

fn dhcp_columns(item: &PortItem, context: &Context, set: &mut RowSet, mut row: Desired) -> Desired {
    let off = item.device_owner.starts_with("network:") || dhcp_disabled(item);
    let own = overrides(item);
    for (column, v4) in [("dhcpv4_options", true), ("dhcpv6_options", false)] {
        let of_family = item.fixed_ips.iter().filter(|f| f.1.is_ipv4() == v4 && !off);
        let found = of_family.into_iter().find_map(|f| {
            let view = context.subnets.get(&f.0.to_string())?;
            Some((f.0.to_string(), view.cidr, view.dhcp.as_ref()?))
        });
        row = match found {
            Some((subnet, cidr, (_, base))) if v4 && !own.is_empty() => {
                let port = item.id.to_string();
                let key = dhcp_key(&subnet, Some(&port));
                let ids = network::own_ids(&subnet, &item.network_id.to_string(), &port, &own);
                let options = Desired::new("DHCP_Options", &key)
                    .text("cidr", cidr.trunc())
                    .set("options", map(dhcp::overridden(base, &own)))
                    .set("external_ids", map(ids));
                set.rows.push(options);
                row.refer(column, "DHCP_Options", key)
            }
            Some((_, _, (uuid, _))) => row.set(column, Value::one(*uuid)),
            None => row.set(column, Value::none()),
        };
    }
    row
}
