//! Security group → Port_Group and ACLs; the group that drops what no rule allows.

use contract::net::{SecurityGroupItem, SecurityGroupRuleItem};

use super::{Desired, REVISION, RowSet, group_name, map, pairs};
use crate::ovsdb::Value;

/// Every port with port security is a member; what no rule allows is dropped here.
pub const DROP_GROUP: &str = "neutron_pg_drop";
const ALLOW: i64 = 1002;
const DROP: i64 = 1000;

/// Rows that belong to no item: the drop group.
pub fn base_rows() -> RowSet {
    let acls = [
        ("from-lport", DROP, "inport == @neutron_pg_drop && ip", "drop"),
        ("to-lport", DROP, "outport == @neutron_pg_drop && ip", "drop"),
        // A client's DHCP request is subject to egress rules; without these a port without rules gets no address.
        ("from-lport", ALLOW, "inport == @neutron_pg_drop && udp.src == 68 && udp.dst == 67", "allow"),
        (
            "from-lport",
            ALLOW,
            "inport == @neutron_pg_drop && ip6 && udp.src == 546 && udp.dst == 547",
            "allow",
        ),
    ];
    let mut rows = vec![Desired::named("Port_Group", DROP_GROUP)];
    rows.extend(acls.map(|(direction, priority, matching, action)| {
        acl(DROP_GROUP, format!("{direction} {priority} {matching}"), direction, priority, matching, action)
    }));
    RowSet { rows, ..RowSet::default() }
}

fn acl(group: &str, key: String, direction: &str, priority: i64, matching: &str, action: &str) -> Desired {
    Desired::new("ACL", key)
        .text("direction", direction)
        .set("priority", Value::one(priority))
        .text("match", matching)
        .text("action", action)
        .within("Port_Group", group, "acls")
}

pub fn group(item: &SecurityGroupItem) -> RowSet {
    let name = group_name(item.id);
    let ids =
        pairs([("neutron:security_group_id", item.id.to_string()), (REVISION, item.revision.to_string())]);
    let mut set = RowSet {
        rows: vec![Desired::named("Port_Group", &name).set("external_ids", map(ids))],
        // The address set of a group that is not there is a parse error on every host.
        groups: item.rules.iter().filter_map(|r| r.remote_group).filter(|g| *g != item.id).collect(),
        ..RowSet::default()
    };
    let action = if item.stateful { "allow-related" } else { "allow-stateless" };
    for rule in &item.rules {
        let direction = if rule.ingress { "to-lport" } else { "from-lport" };
        let row = acl(&name, rule.id.to_string(), direction, ALLOW, &matching(&name, rule), action);
        let ids = pairs([("neutron:security_group_rule_id", rule.id.to_string())]);
        set.rows.push(row.set("external_ids", map(ids)));
    }
    set
}

fn matching(group: &str, rule: &SecurityGroupRuleItem) -> String {
    let ip = if rule.ip_version == 6 { "ip6" } else { "ip4" };
    let (port, remote) = if rule.ingress { ("outport", "src") } else { ("inport", "dst") };
    let mut text = format!("{port} == @{group} && {ip}");
    if let Some(prefix) = rule.remote_prefix {
        text += &format!(" && {ip}.{remote} == {}", prefix.trunc());
    }
    if let Some(other) = rule.remote_group {
        text += &format!(" && {ip}.{remote} == ${}_{ip}", group_name(other));
    }
    match (rule.protocol, rule.ip_version) {
        (None, _) => {}
        (Some(6), _) => text += &ports("tcp", rule),
        (Some(17), _) => text += &ports("udp", rule),
        (Some(132), _) => text += &ports("sctp", rule),
        (Some(1), 4) => text += &icmp("icmp4", rule),
        // Neutron takes `icmp` and `ipv6-icmp` for the same in rules for IPv6.
        (Some(1 | 58), 6) => text += &icmp("icmp6", rule),
        (Some(number), _) => text += &format!(" && ip.proto == {number}"),
    }
    text
}

fn ports(protocol: &str, rule: &SecurityGroupRuleItem) -> String {
    match (rule.port_min, rule.port_max) {
        (Some(min), Some(max)) if min == max => format!(" && {protocol} && {protocol}.dst == {min}"),
        (None, None) => format!(" && {protocol}"),
        (min, max) => {
            let (min, max) = (min.unwrap_or(0), max.unwrap_or(u16::MAX));
            format!(" && {protocol} && {protocol}.dst >= {min} && {protocol}.dst <= {max}")
        }
    }
}

fn icmp(protocol: &str, rule: &SecurityGroupRuleItem) -> String {
    let mut text = format!(" && {protocol}");
    if let Some(kind) = rule.port_min {
        text += &format!(" && {protocol}.type == {kind}");
        if let Some(code) = rule.port_max {
            text += &format!(" && {protocol}.code == {code}");
        }
    }
    text
}
