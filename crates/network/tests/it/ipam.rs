//! Addresses: never twice, never out of the pool, and an end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base::net::IpNet;
use network::logic::ipam::{
    Pool, capacity, carve, check_pools, default_gateway, default_pools, first_free, nth, overlap, usable,
};
use proptest::prelude::*;
use serde_json::json;

use crate::world::{Wishes, world};

fn prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 0_u8..=32).prop_map(|(a, l)| IpNet::new(IpAddr::V4(a.into()), l).unwrap().trunc()),
        (any::<u128>(), 0_u8..=128).prop_map(|(a, l)| IpNet::new(IpAddr::V6(a.into()), l).unwrap().trunc()),
    ]
}

proptest! {
    #[test]
    fn default_pools_hold_what_is_usable(net in prefix(), with_gateway in any::<bool>(), picks in prop::collection::vec(any::<u128>(), 8)) {
        let gateway = with_gateway.then(|| default_gateway(&net));
        let pools = default_pools(&net, gateway);
        prop_assert!(check_pools(&net, &pools, gateway).is_ok());
        let size = capacity(&pools);
        for pick in picks.into_iter().filter(|_| size > 0) {
            let ip = nth(&pools, pick % size).unwrap();
            prop_assert!(usable(&net, ip) && Some(ip) != gateway, "{ip} of {net}");
        }
        prop_assert_eq!(nth(&pools, size), None);
    }

    #[test]
    fn small_pools_are_used_up_exactly(start in any::<u32>().prop_map(|s| s & !0xff), sizes in prop::collection::vec(1_u32..6, 1..4)) {
        let mut at = start;
        let pools: Vec<Pool> = sizes.iter().map(|n| {
            let pool = Pool { start: IpAddr::V4(at.into()), end: IpAddr::V4((at + n - 1).into()) };
            at += n + 2;
            pool
        }).collect();
        let mut taken = BTreeSet::new();
        while let Some(ip) = first_free(&pools, &taken) {
            prop_assert!(pools.iter().any(|p| p.holds(ip)));
            prop_assert!(taken.insert(ip), "{ip} twice");
        }
        prop_assert_eq!(taken.len() as u128, capacity(&pools));
    }

    #[test]
    fn carved_prefixes_are_disjoint(length in 20_u8..=28, holes in prop::collection::vec((any::<u16>(), 22_u8..=30), 0..5)) {
        let pool: IpNet = "10.0.0.0/16".parse().unwrap();
        let mut taken: Vec<IpNet> = holes.iter().map(|(a, l)| {
            IpNet::new(IpAddr::V4((0x0a00_0000 + u32::from(*a)).into()), *l).unwrap().trunc()
        }).collect();
        for _ in 0..20 {
            let Some(new) = carve(&[pool], &taken, length) else { break };
            prop_assert!(pool.contains(&new) && new.trunc() == new);
            prop_assert!(!taken.iter().any(|t| overlap(t, &new)));
            taken.push(new);
        }
    }
}

#[test]
fn carving_ends() {
    let pool: IpNet = "10.0.0.0/24".parse().unwrap();
    let mut taken = Vec::new();
    while let Some(new) = carve(&[pool], &taken, 26) {
        taken.push(new);
    }
    assert_eq!(taken.len(), 4);
    assert_eq!(carve(&["::/0".parse().unwrap()], &[], 0), Some("::/0".parse().unwrap()));
    assert_eq!(carve(&["::/0".parse().unwrap()], &["::/1".parse().unwrap()], 0), None);
}

#[tokio::test]
async fn a_subnet_is_used_up_and_then_refuses() {
    let w = world().await;
    let own = w.own();
    let net = own.network("small").await;
    own.subnet(&net, "10.0.0.0/28").await.expect(201);
    let mut seen = BTreeSet::from(["10.0.0.1".to_owned(), "10.0.0.2".to_owned()]);
    // 14 host addresses less the gateway's and the metadata port's.
    let mut last = String::new();
    for _ in 0..12 {
        let port = own.port(&net, json!({})).await.expect(201);
        last = port.text_at("/port/id");
        assert!(seen.insert(port.text_at("/port/fixed_ips/0/ip_address")));
    }
    let full = own.port(&net, json!({})).await.expect(409);
    assert_eq!(full.text_at("/NeutronError/type"), "IpAddressGenerationFailure");
    own.delete(&format!("/v2.0/ports/{last}")).await.expect(204);
    own.port(&net, json!({})).await.expect(201);
}

#[tokio::test]
async fn fixed_addresses_are_checked() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    let subnet = own.subnet(&net, "10.0.0.0/24").await.expect(201).text_at("/subnet/id");
    let other = own.network("m").await;
    let elsewhere = own.subnet(&other, "10.1.0.0/24").await.expect(201).text_at("/subnet/id");
    for (wanted, status, kind) in [
        (json!([{"ip_address": "10.0.0.7"}]), 201, ""),
        (json!([{"ip_address": "10.0.0.7"}]), 409, "IpAddressAlreadyAllocated"),
        (json!([{"ip_address": "10.0.0.2"}]), 409, "IpAddressAlreadyAllocated"),
        (json!([{"ip_address": "10.5.0.7"}]), 400, "InvalidIpForNetwork"),
        (json!([{"ip_address": "10.0.0.255"}]), 400, "InvalidIpForSubnet"),
        (json!([{"ip_address": "10.5.0.7", "subnet_id": subnet}]), 400, "InvalidIpForSubnet"),
        (json!([{"subnet_id": elsewhere}]), 400, "InvalidInput"),
        (json!([{}]), 400, "InvalidInput"),
        (json!([{"ip_address": "nonsense"}]), 400, "HTTPBadRequest"),
        (json!([{"ip_address": "10.0.0.9"}, {"ip_address": "10.0.0.9"}]), 400, "HTTPBadRequest"),
        (json!([{"ip_address": "10.0.0.9"}, {"subnet_id": subnet}]), 201, ""),
        (json!([]), 201, ""),
    ] {
        let answer = own.port(&net, json!({"fixed_ips": wanted})).await;
        assert_eq!(answer.text_at("/NeutronError/type"), kind, "{wanted}: {}", answer.text());
        assert_eq!(answer.status, status, "{wanted}");
    }
    // Changing addresses keeps those that stay and frees those that go.
    let port = own.port(&net, json!({"fixed_ips": [{"ip_address": "10.0.0.20"}]})).await.expect(201);
    let path = format!("/v2.0/ports/{}", port.text_at("/port/id"));
    let body = json!({"port": {"fixed_ips": [{"ip_address": "10.0.0.20"}, {"ip_address": "10.0.0.21"}]}});
    own.put(&path, body).await.expect(200);
    let body = json!({"port": {"fixed_ips": [{"subnet_id": subnet, "ip_address": "10.0.0.21"}]}});
    assert_eq!(own.put(&path, body).await.expect(200).at("/port/fixed_ips").as_array().unwrap().len(), 1);
    own.port(&net, json!({"fixed_ips": [{"ip_address": "10.0.0.20"}]})).await.expect(201);
}

#[tokio::test]
async fn subnets_are_checked() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    own.subnet(&net, "10.0.0.0/24").await.expect(201);
    let cases = [
        (json!({"cidr": "10.0.0.128/25"}), 400, "InvalidInput"),
        (json!({"cidr": "10.1.0.0"}), 400, "HTTPBadRequest"),
        (json!({"cidr": "10.1.0.0/33"}), 400, "HTTPBadRequest"),
        (json!({"cidr": "fd00::/64"}), 400, "InvalidInput"),
        (json!({"cidr": "10.1.0.0/31"}), 400, "InvalidInput"),
        (json!({"cidr": "224.0.0.0/24"}), 400, "InvalidInput"),
        (json!({"cidr": "127.0.0.0/24"}), 400, "InvalidInput"),
        (json!({"cidr": "10.1.0.0/24", "gateway_ip": "10.1.0.255"}), 400, "InvalidInput"),
        (json!({"cidr": "10.1.0.0/24", "gateway_ip": "fd00::1"}), 400, "InvalidInput"),
        (
            json!({"cidr": "10.1.0.0/24", "allocation_pools": [{"start": "10.1.0.9", "end": "10.1.0.2"}]}),
            400,
            "InvalidAllocationPool",
        ),
        (
            json!({"cidr": "10.1.0.0/24", "allocation_pools": [{"start": "10.1.0.9", "end": "10.2.0.2"}]}),
            400,
            "OutOfBoundsAllocationPool",
        ),
        (
            json!({"cidr": "10.1.0.0/24", "allocation_pools": [{"start": "10.1.0.1", "end": "10.1.0.9"}]}),
            409,
            "GatewayConflictWithAllocationPools",
        ),
        (
            json!({"cidr": "10.1.0.0/24", "allocation_pools": [{"start": "10.1.0.2", "end": "10.1.0.9"}, {"start": "10.1.0.9", "end": "10.1.0.12"}]}),
            409,
            "OverlappingAllocationPools",
        ),
        (json!({"cidr": "10.1.0.0/24", "ipv6_ra_mode": "slaac"}), 400, "InvalidInput"),
        (json!({"cidr": "10.1.0.0/24", "dns_nameservers": ["fd00::1"]}), 400, "InvalidInput"),
        (json!({"cidr": "10.1.0.0/24", "dns_nameservers": ["1.1.1.1", "1.1.1.1"]}), 400, "HTTPBadRequest"),
        (
            json!({"cidr": "10.1.0.0/24", "host_routes": [{"destination": "10.2.0.0/24", "nexthop": "fd00::1"}]}),
            400,
            "HTTPBadRequest",
        ),
        (json!({"cidr": "10.1.0.0/24", "ip_version": 5}), 400, "HTTPBadRequest"),
        (
            json!({"cidr": "fd00::/80", "ip_version": 6, "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"}),
            400,
            "InvalidInput",
        ),
        (
            json!({"cidr": "fd00::/64", "ip_version": 6, "ipv6_ra_mode": "slaac", "ipv6_address_mode": "dhcpv6-stateful"}),
            400,
            "InvalidInput",
        ),
        (
            json!({"cidr": "fd00::/64", "ip_version": 6, "enable_dhcp": false, "ipv6_ra_mode": "slaac"}),
            400,
            "InvalidInput",
        ),
        (json!({}), 400, "BadRequest"),
        (json!({"cidr": "10.1.0.5/24", "gateway_ip": null}), 201, ""),
    ];
    for (more, status, kind) in cases {
        let mut body = json!({"network_id": net, "ip_version": 4});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let answer = own.post("/v2.0/subnets", json!({"subnet": body})).await;
        assert_eq!(answer.text_at("/NeutronError/type"), kind, "{more}: {}", answer.text());
        assert_eq!(answer.status, status, "{more}");
    }
    let made = own.get(&format!("/v2.0/subnets?network_id={net}&cidr=10.1.0.0/24")).await.expect(200);
    assert_eq!(made.text_at("/subnets/0/cidr"), "10.1.0.0/24", "host bits are cut off");
    assert_eq!(made.text_at("/subnets/0/allocation_pools/0/start"), "10.1.0.1");
}
