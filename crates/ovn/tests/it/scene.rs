//! One tenant's network as items: two guests, a router, an external network, a floating IP.

use std::collections::{BTreeMap, BTreeSet};

use base::{NetworkId, PortId, ProjectId};
use contract::net::*;

pub fn id<T: std::str::FromStr<Err = base::Error>>(kind: u8, number: u8) -> T {
    format!("000000{kind:02x}-0000-4000-8000-0000000000{number:02x}").parse().unwrap()
}

pub fn network(number: u8) -> NetworkId {
    id(1, number)
}

pub fn port_id(number: u8) -> PortId {
    id(3, number)
}

pub fn mac(number: u8) -> String {
    format!("fa:16:3e:00:01:{number:02x}")
}

pub const METADATA: u8 = 2;
pub const ROUTER_INTERFACE: u8 = 1;
pub const ROUTER_GATEWAY: u8 = 0xee;

pub fn private() -> NetworkItem {
    NetworkItem {
        id: network(1),
        revision: 1,
        project_id: ProjectId::new("p"),
        name: "my \"net\" && ip".into(),
        admin_state_up: true,
        mtu: 1442,
        physical_network: None,
        vlan: None,
        external: false,
        dns_domain: "cloud.example.".into(),
        subnets: vec![
            SubnetItem {
                id: id(2, 1),
                cidr: "10.0.1.0/24".parse().unwrap(),
                gateway: Some("10.0.1.1".parse().unwrap()),
                dhcp: true,
                dns_servers: vec!["10.0.1.3".parse().unwrap()],
                host_routes: vec![("10.9.0.0/16".parse().unwrap(), "10.0.1.9".parse().unwrap())],
                ipv6_address_mode: None,
                ipv6_ra_mode: None,
                metadata_address: Some("10.0.1.2".parse().unwrap()),
                server_mac: mac(0xd1).parse().unwrap(),
            },
            SubnetItem {
                id: id(2, 6),
                cidr: "fd00:1::/64".parse().unwrap(),
                gateway: Some("fd00:1::1".parse().unwrap()),
                dhcp: true,
                dns_servers: vec!["fd00:1::3".parse().unwrap()],
                host_routes: vec![],
                ipv6_address_mode: Some("dhcpv6-stateful".into()),
                ipv6_ra_mode: Some("dhcpv6-stateful".into()),
                metadata_address: None,
                server_mac: mac(0xd6).parse().unwrap(),
            },
        ],
        metadata_port: Some(port_id(METADATA)),
    }
}

pub fn public() -> NetworkItem {
    NetworkItem {
        id: network(9),
        name: "public".into(),
        mtu: 1500,
        physical_network: Some("public".into()),
        external: true,
        subnets: vec![SubnetItem {
            id: id(2, 9),
            cidr: "172.24.4.0/24".parse().unwrap(),
            gateway: Some("172.24.4.1".parse().unwrap()),
            dhcp: false,
            dns_servers: vec![],
            host_routes: vec![],
            ipv6_address_mode: None,
            ipv6_ra_mode: None,
            metadata_address: None,
            server_mac: mac(0xd9).parse().unwrap(),
        }],
        metadata_port: None,
        ..private()
    }
}

pub fn guest_port(number: u8) -> PortItem {
    PortItem {
        id: port_id(number),
        revision: 1,
        project_id: ProjectId::new("p"),
        name: "a port".into(),
        network_id: network(1),
        role: PortRole::Device,
        router_id: None,
        enabled: true,
        mac: mac(number).parse().unwrap(),
        fixed_ips: vec![
            (id(2, 1), format!("10.0.1.{number}").parse().unwrap()),
            (id(2, 6), format!("fd00:1::{number:x}").parse().unwrap()),
        ],
        allowed_address_pairs: vec![],
        port_security: true,
        security_groups: BTreeSet::from([id(6, 1)]),
        device_id: format!("server{number}"),
        device_owner: "compute:nova".into(),
        host: Some("host1".into()),
        extra_dhcp_opts: BTreeMap::new(),
        dns_name: format!("vm{number}"),
    }
}

pub fn metadata_port() -> PortItem {
    PortItem {
        role: PortRole::Metadata,
        fixed_ips: vec![(id(2, 1), "10.0.1.2".parse().unwrap())],
        port_security: false,
        security_groups: BTreeSet::new(),
        device_id: format!("ovnmeta-{}", network(1)),
        device_owner: "network:distributed".into(),
        host: None,
        ..guest_port(METADATA)
    }
}

pub fn interface_port() -> PortItem {
    PortItem {
        role: PortRole::RouterInterface,
        router_id: Some(id(4, 1)),
        fixed_ips: vec![(id(2, 1), "10.0.1.1".parse().unwrap()), (id(2, 6), "fd00:1::1".parse().unwrap())],
        device_owner: "network:router_interface".into(),
        ..metadata_port()
    }
    .numbered(ROUTER_INTERFACE)
}

pub fn gateway_port() -> PortItem {
    PortItem {
        network_id: network(9),
        fixed_ips: vec![(id(2, 9), "172.24.4.10".parse().unwrap())],
        device_owner: "network:router_gateway".into(),
        ..interface_port()
    }
    .numbered(ROUTER_GATEWAY)
}

trait Numbered {
    fn numbered(self, number: u8) -> Self;
}

impl Numbered for PortItem {
    fn numbered(self, number: u8) -> Self {
        PortItem { id: port_id(number), mac: mac(number).parse().unwrap(), ..self }
    }
}

pub fn router() -> RouterItem {
    let address = |subnet: u8, ip: &str, cidr: &str, gateway: &str, mode: Option<&str>| RouterAddress {
        subnet_id: id(2, subnet),
        ip: ip.parse().unwrap(),
        cidr: cidr.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
        ipv6_ra_mode: mode.map(str::to_owned),
    };
    RouterItem {
        id: id(4, 1),
        revision: 1,
        project_id: ProjectId::new("p"),
        name: "r".into(),
        enabled: true,
        gateway: Some(RouterPortItem {
            port_id: port_id(ROUTER_GATEWAY),
            network_id: network(9),
            mac: mac(ROUTER_GATEWAY).parse().unwrap(),
            addresses: vec![address(9, "172.24.4.10", "172.24.4.0/24", "172.24.4.1", None)],
            mtu: 1500,
        }),
        enable_snat: true,
        interfaces: vec![RouterPortItem {
            port_id: port_id(ROUTER_INTERFACE),
            network_id: network(1),
            mac: mac(ROUTER_INTERFACE).parse().unwrap(),
            addresses: vec![
                address(1, "10.0.1.1", "10.0.1.0/24", "10.0.1.1", None),
                address(6, "fd00:1::1", "fd00:1::/64", "fd00:1::1", Some("dhcpv6-stateful")),
            ],
            mtu: 1442,
        }],
        routes: vec![("192.0.2.0/24".parse().unwrap(), "10.0.1.77".parse().unwrap())],
    }
}

pub fn floating_ip() -> FloatingIpItem {
    FloatingIpItem {
        id: id(5, 1),
        revision: 1,
        project_id: ProjectId::new("p"),
        network_id: network(9),
        address: "172.24.4.21".parse().unwrap(),
        target: Some(FloatingIpTarget {
            router_id: id(4, 1),
            port_id: port_id(11),
            fixed_ip: "10.0.1.11".parse().unwrap(),
        }),
    }
}

pub fn rule(number: u8, ingress: bool) -> SecurityGroupRuleItem {
    SecurityGroupRuleItem {
        id: id(7, number),
        ingress,
        ip_version: 4,
        protocol: None,
        port_min: None,
        port_max: None,
        remote_prefix: None,
        remote_group: None,
    }
}

/// Egress free, ingress as given.
pub fn group(revision: u64, ingress: &[SecurityGroupRuleItem]) -> SecurityGroupItem {
    let mut rules = vec![rule(1, false), SecurityGroupRuleItem { ip_version: 6, ..rule(2, false) }];
    rules.extend(ingress.iter().cloned());
    SecurityGroupItem {
        id: id(6, 1),
        revision,
        project_id: ProjectId::new("p"),
        name: "default".into(),
        stateful: true,
        rules,
    }
}

pub fn all() -> Vec<Item> {
    vec![
        Item::FloatingIp(floating_ip()),
        Item::Port(guest_port(11)),
        Item::Port(guest_port(12)),
        Item::Port(metadata_port()),
        Item::Port(interface_port()),
        Item::Port(gateway_port()),
        Item::Router(router()),
        Item::SecurityGroup(group(1, &[])),
        Item::Network(private()),
        Item::Network(public()),
    ]
}
