//! The rows of each resource, kept as files: a change of the projection shows as a change of a file.
//! `UPDATE_GOLDEN=1` writes them anew.

use std::collections::BTreeMap;
use std::path::Path;

use contract::net::*;
use ovn::project::{Cell, Context, PortView, RowSet, SubnetView, project};
use serde_json::{Value as Json, json};

use super::scene::{self, group, guest_port, id, mac, private, public, rule};

fn show(set: &RowSet) -> Json {
    let row = |d: &ovn::project::Desired| {
        let columns: serde_json::Map<String, Json> = d
            .columns
            .iter()
            .map(|(c, cell)| {
                let value = match cell {
                    Cell::Value(value) => value.to_json(),
                    Cell::Row(table, key) => json!({"row": [table, key]}),
                };
                ((*c).to_owned(), value)
            })
            .collect();
        let parent = d.parent.as_ref().map(|p| json!([p.table, p.key, p.column]));
        json!({"table": d.table, "key": d.key, "columns": columns, "parent": parent})
    };
    json!({
        "rows": set.rows.iter().map(row).collect::<Vec<_>>(),
        "member_of": set.member_of,
        "groups": set.groups,
        "dhcp_links": set.dhcp_links.iter().map(|(u, c, k)| json!([u, c, k])).collect::<Vec<_>>(),
    })
}

fn check(name: &str, item: &Item, context: &Context) {
    let set = project(item, context);
    let mut keys: Vec<_> = set.rows.iter().map(|r| (r.table, &r.key)).collect();
    keys.sort();
    let count = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), count, "{name}: two rows of one key");
    let text = serde_json::to_string_pretty(&show(&set)).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(kept == text, "{name} differs from its file; see git diff after UPDATE_GOLDEN=1:\n{text}");
}

fn context() -> Context {
    let subnet = |number: u8, cidr: &str, options: &[(&str, &str)]| {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let row = uuid::Uuid::from_u128(u128::from(number));
        (
            id::<base::SubnetId>(2, number).to_string(),
            SubnetView { cidr: cidr.parse().unwrap(), dhcp: Some((row, options)) },
        )
    };
    Context {
        subnets: BTreeMap::from([
            subnet(
                1,
                "10.0.1.0/24",
                &[("router", "10.0.1.1"), ("classless_static_route", "{10.9.0.0/16,10.0.1.9}")],
            ),
            subnet(6, "fd00:1::/64", &[]),
        ]),
        domain: "cloud.example.".into(),
        ports: vec![],
        gateways: ["h2", "h1", "h3", "h4", "h5", "h6"].map(str::to_owned).to_vec(),
        dns_servers: vec!["9.9.9.9".parse().unwrap()],
    }
}

#[test]
fn networks() {
    let none = Context::default();
    check("network-tenant", &Item::Network(private()), &none);
    check("network-external", &Item::Network(public()), &context());
    let vlan =
        NetworkItem { vlan: Some(200), admin_state_up: false, dns_domain: "evil\"domain".into(), ..public() };
    check("network-vlan-down", &Item::Network(vlan), &none);
    let mut modes = private();
    for (subnet, mode) in modes.subnets.iter_mut().zip(["", "dhcpv6-stateless"]) {
        subnet.dns_servers.clear();
        subnet.host_routes.clear();
        subnet.metadata_address = None;
        subnet.ipv6_address_mode = Some(mode.into());
    }
    check("network-plain-dhcp", &Item::Network(modes), &context());
    let own = BTreeMap::from([("mtu".to_owned(), "1400".to_owned())]);
    let subnets = vec![id::<base::SubnetId>(2, 1).to_string(), id::<base::SubnetId>(2, 6).to_string()];
    let view = |n: u128, dhcp, overrides| PortView {
        row: uuid::Uuid::from_u128(n),
        id: format!("port{n}"),
        subnets: subnets.clone(),
        dhcp,
        overrides,
    };
    let ports = vec![view(1, true, BTreeMap::new()), view(2, true, own), view(3, false, BTreeMap::new())];
    check("network-with-ports", &Item::Network(private()), &Context { ports, ..Context::default() });
}

#[test]
fn ports() {
    check("port-guest", &Item::Port(guest_port(11)), &context());
    let mut rich = guest_port(11);
    rich.allowed_address_pairs = vec![
        ("10.0.1.100/32".parse().unwrap(), mac(11).parse().unwrap()),
        ("10.0.1.128/25".parse().unwrap(), mac(99).parse().unwrap()),
        ("10.0.1.101/32".parse().unwrap(), mac(99).parse().unwrap()),
    ];
    rich.extra_dhcp_opts = [
        ("mtu", "1300"),
        ("bootfile-name", "x\" y"),
        ("121", "10.7.0.0/16,10.0.1.7"),
        ("tftp-server", "boot"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    rich.dns_name = "no host name".into();
    check("port-pairs-and-options", &Item::Port(rich), &context());
    let open = PortItem { port_security: false, enabled: false, host: Some("h\";".into()), ..guest_port(11) };
    check("port-without-security", &Item::Port(open), &context());
    let quiet = PortItem {
        extra_dhcp_opts: BTreeMap::from([("dhcp_disabled".into(), "True".into())]),
        ..guest_port(11)
    };
    check("port-without-dhcp", &Item::Port(quiet), &context());
    check("port-metadata", &Item::Port(scene::metadata_port()), &context());
    check("port-router-interface", &Item::Port(scene::interface_port()), &context());
    check("port-router-gateway", &Item::Port(scene::gateway_port()), &context());
    let reserved = PortItem { role: PortRole::AddressOnly, ..guest_port(11) };
    check("port-address-only", &Item::Port(reserved), &context());
}

#[test]
fn routers_and_floating_ips() {
    check("router", &Item::Router(scene::router()), &context());
    let inner = RouterItem { gateway: None, enabled: false, routes: vec![], ..scene::router() };
    check("router-inner", &Item::Router(inner), &context());
    let no_snat = RouterItem { enable_snat: false, ..scene::router() };
    check("router-without-snat", &Item::Router(no_snat), &Context::default());
    check("floating-ip", &Item::FloatingIp(scene::floating_ip()), &context());
    let free = FloatingIpItem { target: None, ..scene::floating_ip() };
    check("floating-ip-free", &Item::FloatingIp(free), &context());
}

/// Rules of every kind.
pub fn rules() -> Vec<SecurityGroupRuleItem> {
    let base = rule(0, true);
    let v6 = SecurityGroupRuleItem { ip_version: 6, ..base.clone() };
    let mut rules = vec![
        base.clone(),
        SecurityGroupRuleItem { remote_prefix: Some("10.1.2.3/16".parse().unwrap()), ..base.clone() },
        SecurityGroupRuleItem { remote_group: Some(id(6, 1)), ..base.clone() },
        SecurityGroupRuleItem { remote_group: Some(id(6, 2)), ..v6.clone() },
        SecurityGroupRuleItem { protocol: Some(6), ..base.clone() },
        SecurityGroupRuleItem { protocol: Some(6), port_min: Some(22), port_max: Some(22), ..base.clone() },
        SecurityGroupRuleItem { protocol: Some(17), port_min: Some(1), port_max: Some(65535), ..v6.clone() },
        SecurityGroupRuleItem { protocol: Some(132), port_min: Some(5), port_max: Some(9), ..base.clone() },
        SecurityGroupRuleItem { protocol: Some(1), port_min: Some(8), port_max: Some(0), ..base.clone() },
        SecurityGroupRuleItem { protocol: Some(1), port_min: Some(3), ..base.clone() },
        SecurityGroupRuleItem { protocol: Some(58), port_min: Some(128), ..v6.clone() },
        SecurityGroupRuleItem { protocol: Some(1), ..v6.clone() },
        SecurityGroupRuleItem { protocol: Some(112), ..base.clone() },
        SecurityGroupRuleItem {
            protocol: Some(47),
            remote_prefix: Some("fd00::1/64".parse().unwrap()),
            ..v6
        },
        SecurityGroupRuleItem {
            protocol: Some(6),
            remote_prefix: Some("0.0.0.0/0".parse().unwrap()),
            ..rule(0, false)
        },
    ];
    for (rule, number) in rules.iter_mut().zip(100_u8..) {
        rule.id = id(7, number);
    }
    rules
}

#[test]
fn security_groups() {
    check("security-group", &Item::SecurityGroup(group(1, &rules())), &Context::default());
    let stateless = SecurityGroupItem { stateful: false, ..group(1, &[]) };
    check("security-group-stateless", &Item::SecurityGroup(stateless), &Context::default());
    let set = ovn::project::base_rows();
    assert_eq!(set.rows.len(), 5);
}
