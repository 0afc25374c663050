//! A tenant's day, and what the backend is told of it.

use contract::net::{Item, Key, PortRole};
use serde_json::{Value, json};

use crate::world::{Wishes, World, world};

fn addresses(port: &Value) -> Vec<String> {
    port["fixed_ips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["ip_address"].as_str().unwrap().to_owned())
        .collect()
}

/// Network, subnet, router, port, floating IP; ids by name.
async fn build(w: &World) -> serde_json::Map<String, Value> {
    let own = w.own();
    let net = own.network("n").await;
    let subnet = own.subnet(&net, "10.0.0.0/24").await.expect(201);
    let subnet = subnet.text_at("/subnet/id");
    let router = own.router(&w.public).await;
    own.put(&format!("/v2.0/routers/{router}/add_router_interface"), json!({"subnet_id": subnet}))
        .await
        .expect(200);
    let port = own.port(&net, json!({"name": "p", "device_id": "", "dns_name": "vm"})).await.expect(201);
    let port_id = port.text_at("/port/id");
    let body = json!({"floatingip": {"floating_network_id": w.public, "port_id": port_id}});
    let fip = own.post("/v2.0/floatingips", body).await.expect(201);
    let mut ids = serde_json::Map::new();
    for (name, id) in [
        ("net", net),
        ("subnet", subnet),
        ("router", router),
        ("port", port_id),
        ("fip", fip.text_at("/floatingip/id")),
        ("group", port.text_at("/port/security_groups/0")),
    ] {
        ids.insert(name.into(), id.into());
    }
    ids
}

#[tokio::test]
async fn the_backend_learns_of_everything() {
    let w = world().await;
    let ids = build(&w).await;
    w.settle().await;
    let item = |kind: fn(uuid::Uuid) -> Key, name: &str| {
        let id: uuid::Uuid = ids[name].as_str().unwrap().parse().unwrap();
        w.backend.items.lock().get(&kind(id)).cloned().unwrap_or_else(|| panic!("no {name}"))
    };
    let Item::Network(net) = item(|u| Key::Network(base::NetworkId(u)), "net") else { panic!() };
    assert_eq!((net.mtu, net.external, net.physical_network.clone()), (1442, false, None));
    assert_eq!(net.dns_domain, "openstacklocal");
    let subnet = &net.subnets[0];
    assert_eq!(
        subnet.metadata_address,
        Some("10.0.0.2".parse().unwrap()),
        "metadata takes the first address"
    );
    assert_eq!(subnet.gateway, Some("10.0.0.1".parse().unwrap()));
    let metadata = net.metadata_port.unwrap();
    let Item::Port(meta) = w.backend.items.lock()[&Key::Port(metadata)].clone() else { panic!() };
    assert_eq!(
        (meta.role, meta.device_id.as_str()),
        (PortRole::Metadata, format!("ovnmeta-{}", net.id).as_str())
    );

    let Item::Router(router) = item(|u| Key::Router(base::RouterId(u)), "router") else { panic!() };
    assert!(router.enable_snat);
    let gateway = router.gateway.unwrap();
    assert_eq!(gateway.addresses[0].gateway, Some("203.0.113.1".parse().unwrap()));
    assert_eq!(gateway.mtu, 1500);
    assert_eq!(router.interfaces[0].addresses[0].ip, "10.0.0.1".parse::<std::net::IpAddr>().unwrap());

    let Item::Port(port) = item(|u| Key::Port(base::PortId(u)), "port") else { panic!() };
    assert!(port.port_security && port.security_groups.len() == 1);
    let Item::FloatingIp(fip) = item(|u| Key::FloatingIp(base::FloatingIpId(u)), "fip") else { panic!() };
    let target = fip.target.unwrap();
    assert_eq!((target.port_id, target.router_id), (port.id, router.id));
    let own_port = w
        .backend
        .items
        .lock()
        .values()
        .any(|i| matches!(i, Item::Port(p) if p.role == PortRole::AddressOnly));
    assert!(own_port, "the floating IP's own port is an address only");
    let Item::SecurityGroup(group) = item(|u| Key::SecurityGroup(base::SecurityGroupId(u)), "group") else {
        panic!()
    };
    assert_eq!(group.rules.len(), 4);
    assert_eq!(
        group.rules.iter().filter(|r| r.ingress).filter(|r| r.remote_group == Some(group.id)).count(),
        2
    );

    let shown = w.own().get(&format!("/v2.0/floatingips/{}", fip.id)).await.expect(200);
    assert_eq!(shown.text_at("/floatingip/status"), "ACTIVE");
    assert_eq!(shown.text_at("/floatingip/port_details/name"), "p");
}

#[tokio::test]
async fn golden_items_of_a_day() {
    let w = world().await;
    build(&w).await;
    w.settle().await;
    let items: Vec<Item> = w.backend.items.lock().values().cloned().collect();
    let text = format!("{}\n", serde_json::to_string_pretty(&items).unwrap());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/day.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, golden, "the projection changed: look at it, then run with UPDATE_GOLDEN=1");
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let w = world().await;
    let ids = build(&w).await;
    let own = w.own();
    let path = |kind: &str, name: &str| format!("/v2.0/{kind}/{}", ids[name].as_str().unwrap());
    for (path, kind) in [
        (path("networks", "net"), "NetworkInUse"),
        (path("subnets", "subnet"), "SubnetInUse"),
        (path("routers", "router"), "RouterInUse"),
        (path("security-groups", "group"), "SecurityGroupCannotRemoveDefault"),
    ] {
        let answer = own.delete(&path).await.expect(409);
        assert_eq!(answer.text_at("/NeutronError/type"), kind, "{path}");
    }
    let admin = w.admin().delete(&path("security-groups", "group")).await.expect(409);
    assert_eq!(admin.text_at("/NeutronError/type"), "SecurityGroupInUse");
    let router = path("routers", "router");
    let clear = own.put(&router, json!({"router": {"external_gateway_info": {}}})).await.expect(409);
    assert_eq!(clear.text_at("/NeutronError/type"), "RouterExternalGatewayInUseByFloatingIp");
    let body = json!({"subnet_id": ids["subnet"]});
    let leave = own.put(&format!("{router}/remove_router_interface"), body.clone()).await.expect(409);
    assert_eq!(leave.text_at("/NeutronError/type"), "RouterInterfaceInUseByFloatingIP");
    let interfaces = own.get(&format!("/v2.0/ports?device_id={}", ids["router"].as_str().unwrap())).await;
    let interface = interfaces.text_at("/ports/0/id");
    let answer = own.delete(&format!("/v2.0/ports/{interface}")).await.expect(409);
    assert_eq!(answer.text_at("/NeutronError/type"), "ServicePortInUse");
    // The other way round everything goes.
    own.delete(&path("floatingips", "fip")).await.expect(204);
    own.delete(&path("ports", "port")).await.expect(204);
    let left = own.put(&format!("{router}/remove_router_interface"), body).await.expect(200);
    assert_eq!(left.at("/subnet_id"), ids["subnet"]);
    own.delete(&router).await.expect(204);
    own.delete(&path("networks", "net")).await.expect(204);
    own.get(&path("subnets", "subnet")).await.expect(404);
    w.settle().await;
    let left: Vec<Key> = w.backend.items.lock().keys().copied().collect();
    let own_left = left.iter().filter(|k| !matches!(k, Key::SecurityGroup(_))).count();
    assert_eq!(own_left, 1, "only the external network is left: {left:?}");
}

#[tokio::test]
async fn floating_ips_lead_where_they_can() {
    let w = world().await;
    let ids = build(&w).await;
    let own = w.own();
    let fip = format!("/v2.0/floatingips/{}", ids["fip"].as_str().unwrap());
    let second = own
        .post("/v2.0/floatingips", json!({"floatingip": {"floating_network_id": w.public}}))
        .await
        .expect(201);
    assert_eq!(second.at("/floatingip/port_id"), Value::Null);
    assert_eq!(second.text_at("/floatingip/status"), "DOWN");
    let second = format!("/v2.0/floatingips/{}", second.text_at("/floatingip/id"));
    let taken = own.put(&second, json!({"floatingip": {"port_id": ids["port"]}})).await.expect(409);
    assert_eq!(taken.text_at("/NeutronError/type"), "FloatingIPPortAlreadyAssociated");
    let off = own.put(&fip, json!({"floatingip": {"port_id": null}})).await.expect(200);
    assert_eq!(off.at("/floatingip/router_id"), Value::Null);
    own.put(&second, json!({"floatingip": {"port_id": ids["port"]}})).await.expect(200);
    w.settle().await;
    assert_eq!(own.get(&fip).await.text_at("/floatingip/status"), "DOWN");
    assert_eq!(own.get(&second).await.text_at("/floatingip/status"), "ACTIVE");

    // A port without a way out; a network that is not external; a port of nobody.
    let lonely = own.network("lonely").await;
    own.subnet(&lonely, "10.9.0.0/24").await.expect(201);
    let port = own.port(&lonely, json!({})).await.expect(201).text_at("/port/id");
    let answer = own.put(&fip, json!({"floatingip": {"port_id": port}})).await.expect(404);
    assert_eq!(answer.text_at("/NeutronError/type"), "ExternalGatewayForFloatingIPNotFound");
    let answer = own
        .post("/v2.0/floatingips", json!({"floatingip": {"floating_network_id": lonely}}))
        .await
        .expect(400);
    assert_eq!(answer.text_at("/NeutronError/type"), "BadRequest");
    let nobody = uuid::Uuid::nil();
    own.put(&fip, json!({"floatingip": {"port_id": nobody}})).await.expect(404);
    // Deleting the port takes the floating IP off it.
    own.delete(&format!("/v2.0/ports/{}", ids["port"].as_str().unwrap())).await.expect(204);
    assert_eq!(own.get(&second).await.at("/floatingip/port_id"), Value::Null);
}

#[tokio::test]
async fn ipv6_addresses_follow_the_mac() {
    let w = world().await;
    let own = w.own();
    let net = own.network("six").await;
    let before = own.port(&net, json!({})).await.expect(201);
    assert!(addresses(&before.at("/port")).is_empty());
    let body = json!({"subnet": {"network_id": net, "cidr": "fd00:6::/64", "ip_version": 6,
        "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"}});
    let subnet = own.post("/v2.0/subnets", body).await.expect(201);
    assert_eq!(subnet.text_at("/subnet/gateway_ip"), "fd00:6::1");
    let path = format!("/v2.0/ports/{}", before.text_at("/port/id"));
    let port = own.get(&path).await.expect(200);
    let mac: base::MacAddr = port.text_at("/port/mac_address").parse().unwrap();
    let wanted = mac.eui64("fd00:6::".parse().unwrap()).to_string();
    assert_eq!(addresses(&port.at("/port")), [wanted], "a port that was there gets its address");
    let answer = own.port(&net, json!({"fixed_ips": [{"ip_address": "fd00:6::5"}]})).await.expect(400);
    assert_eq!(answer.text_at("/NeutronError/type"), "AllocationOnAutoAddressSubnet");
    // With an IPv4 subnet beside it a port has one of each.
    own.subnet(&net, "10.0.0.0/24").await.expect(201);
    let both = own.port(&net, json!({})).await.expect(201);
    assert_eq!(addresses(&both.at("/port")).len(), 2);
    // Automatic addresses do not keep their subnet.
    own.delete(&format!("/v2.0/subnets/{}", subnet.text_at("/subnet/id"))).await.expect(204);
    assert!(addresses(&own.get(&path).await.at("/port")).is_empty());
}

#[tokio::test]
async fn routes_need_a_next_hop_in_reach() {
    let w = world().await;
    let ids = build(&w).await;
    let own = w.own();
    let router = format!("/v2.0/routers/{}", ids["router"].as_str().unwrap());
    let route = |hop: &str| json!({"router": {"routes": [{"destination": "192.0.2.0/24", "nexthop": hop}]}});
    for hop in ["10.7.0.1", "10.0.0.1"] {
        let answer = own.put(&router, route(hop)).await.expect(400);
        assert_eq!(answer.text_at("/NeutronError/type"), "InvalidRoutes", "{hop}");
    }
    let set = own.put(&router, route("10.0.0.7")).await.expect(200);
    assert_eq!(set.text_at("/router/routes/0/nexthop"), "10.0.0.7");
    own.put(
        &format!("{router}/add_extraroutes"),
        json!({"router": {"routes": [{"destination": "198.51.100.0/24", "nexthop": "10.0.0.8"}]}}),
    )
    .await
    .expect(200);
    own.put(&format!("{router}/remove_extraroutes"), route("10.0.0.7")).await.expect(200);
    let shown = own.get(&router).await.expect(200);
    assert_eq!(shown.at("/router/routes").as_array().unwrap().len(), 1);
    own.delete(&format!("/v2.0/floatingips/{}", ids["fip"].as_str().unwrap())).await.expect(204);
    let answer = own
        .put(&format!("{router}/remove_router_interface"), json!({"subnet_id": ids["subnet"]}))
        .await
        .expect(409);
    assert_eq!(answer.text_at("/NeutronError/type"), "RouterInterfaceInUseByRoute");
}

#[tokio::test]
async fn an_external_network_goes_with_its_idle_floating_ips() {
    let w = world().await;
    let admin = w.admin();
    let body = json!({"network": {"name": "ext", "router:external": true}});
    let net = admin.post("/v2.0/networks", body).await.expect(201).text_at("/network/id");
    admin.subnet(&net, "198.51.100.0/24").await.expect(201);
    let body = json!({"floatingip": {"floating_network_id": net}});
    let fip = w.own().post("/v2.0/floatingips", body).await.expect(201).text_at("/floatingip/id");
    w.settle().await;
    admin.delete(&format!("/v2.0/networks/{net}")).await.expect(204);
    w.own().get(&format!("/v2.0/floatingips/{fip}")).await.expect(404);
    w.settle().await;
    assert!(!w.backend.has(Key::FloatingIp(fip.parse().unwrap())));
}
