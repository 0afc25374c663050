//! What compute asks.

use api::testing::caller;
use base::{PortId, ProjectId};
use contract::services::{Networks, PortInfo, PortRequest};
use network::PrivateNetwork;
use serde_json::json;

use crate::world::{Wishes, World, cidr, world};

fn request(id: PortId, net: base::NetworkId) -> PortRequest {
    PortRequest {
        id,
        network_id: net,
        project_id: ProjectId::new("p1"),
        name: String::new(),
        fixed_ip: None,
        security_groups: Vec::new(),
        device_id: "server-1".into(),
        device_owner: "compute:nova".into(),
        dns_name: "vm".into(),
        host: String::new(),
    }
}

async fn one(w: &World, request: PortRequest) -> base::Result<PortInfo> {
    let mut ports = w.st.ensure_ports(&[request]).await?;
    Ok(ports.remove(0))
}

/// Many ports at once have an address each and a group each, go to their hosts, and all or none are made.
#[tokio::test]
async fn many_at_once() {
    let w = world().await;
    let own = w.own();
    let net: base::NetworkId = own.network("n").await.parse().unwrap();
    own.subnet(&net.to_string(), "10.0.0.0/26").await.expect(201);
    let id = |n: u128| PortId(uuid::Uuid::from_u128(n));
    let on = |n: u128, host: &str| PortRequest { host: host.into(), ..request(id(n), net) };
    let ports = w.st.ensure_ports(&(1..=50).map(|n| on(n, "h1")).collect::<Vec<_>>()).await.unwrap();
    let ips: std::collections::BTreeSet<_> = ports.iter().map(|p| p.fixed_ips[0].ip).collect();
    let macs: std::collections::BTreeSet<_> = ports.iter().map(|p| p.mac).collect();
    assert_eq!((ips.len(), macs.len()), (50, 50));
    let right = |p: &PortInfo| p.host.as_deref() == Some("h1") && p.security_groups[0].1 == "default";
    assert!(ports.iter().all(right));
    // Some are there already and go to another host; the pool has room for ten more and not for eleven.
    let more = |to: u128| (41..=to).map(|n| on(n, "h2")).collect::<Vec<_>>();
    assert_eq!(w.st.ensure_ports(&more(61)).await.unwrap_err().kind(), api::Kind::Conflict);
    let auth = caller("member:p1").unwrap();
    assert!(w.st.port(&auth, id(51)).await.is_err(), "all or none");
    assert_eq!(w.st.port(&auth, id(41)).await.unwrap().host.as_deref(), Some("h1"));
    let again = w.st.ensure_ports(&more(60)).await.unwrap();
    assert_eq!((again.len(), again[0].fixed_ips[0].ip), (20, ports[40].fixed_ips[0].ip));
    assert!(again.iter().all(|p| p.host.as_deref() == Some("h2")));
}

#[tokio::test]
async fn a_servers_port_from_wish_to_end() {
    let w = world().await;
    let auth = caller("member:p1").unwrap();
    let wanted = PrivateNetwork {
        project_id: ProjectId::new("p1"),
        name: "private".into(),
        cidr: cidr("10.0.0.0/24"),
        dns_servers: vec!["192.0.2.53".parse().unwrap()],
        external: Some(w.public.parse().unwrap()),
    };
    let net = w.st.ensure_network(wanted.clone()).await.unwrap();
    assert_eq!(w.st.ensure_network(wanted).await.unwrap(), net, "asking twice is harmless");
    let available = w.st.available(&auth).await.unwrap();
    assert_eq!(available.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["private"]);

    let id = PortId(uuid::Uuid::from_u128(1));
    let port = one(&w, request(id, net)).await.unwrap();
    assert_eq!(one(&w, request(id, net)).await.unwrap(), port);
    assert_eq!(port.security_groups[0].1, "default");
    assert_eq!((port.mtu, port.network_name.as_str()), (1442, "private"));
    let fixed = &port.fixed_ips[0];
    assert!(fixed.dhcp && fixed.gateway == Some("10.0.0.1".parse().unwrap()));
    assert_eq!(fixed.dns_servers, ["192.0.2.53".parse::<std::net::IpAddr>().unwrap()]);
    let metadata = port.metadata_port.clone().unwrap();
    assert_eq!(metadata.addresses, [cidr("10.0.0.2/24")]);

    w.st.bind_port(id, Some("host-1")).await.unwrap();
    assert_eq!(w.st.port(&auth, id).await.unwrap().host.as_deref(), Some("host-1"));
    assert!(w.st.port(&caller("member:p2").unwrap(), id).await.is_err());
    let body = json!({"floatingip": {"floating_network_id": w.public, "port_id": id}});
    let fip =
        w.own().post("/v2.0/floatingips", body).await.expect(201).text_at("/floatingip/floating_ip_address");
    let ports = w.st.ports_of(&["server-1".into(), "none".into(), String::new()]).await.unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports["server-1"][0].floating_ips[0].1.to_string(), fip);

    let group =
        w.own().post("/v2.0/security-groups", json!({"security_group": {"name": "web"}})).await.expect(201);
    w.st.set_security_group(&auth, "server-1", "web", true).await.unwrap();
    w.st.set_security_group(&auth, "server-1", "web", true).await.unwrap();
    let names: Vec<String> =
        w.st.port(&auth, id).await.unwrap().security_groups.into_iter().map(|g| g.1).collect();
    assert!(names.contains(&"web".to_owned()) && names.len() == 2);
    let path = format!("/v2.0/security-groups/{}", group.text_at("/security_group/id"));
    w.own().delete(&path).await.expect(409);
    w.st.set_security_group(&auth, "server-1", "web", false).await.unwrap();
    w.own().delete(&path).await.expect(204);
    assert!(w.st.set_security_group(&auth, "server-1", "web", true).await.is_err());
    let ids = w.st.security_groups(&auth, &["default".into()]).await.unwrap();
    assert_eq!(ids.len(), 1);
    assert!(w.st.security_groups(&auth, &["nothing".into()]).await.unwrap_err().public().contains("nothing"));

    let taken = w.st.claim_port(id, "server-2", "compute:nova").await.unwrap_err();
    assert_eq!(taken.type_code(), "PortInUse");
    w.st.release_port(id, "server-2").await.unwrap();
    assert_eq!(
        w.st.port(&auth, id).await.unwrap().device_id,
        "server-1",
        "only its own device can release a port"
    );
    w.st.release_port(id, "server-1").await.unwrap();
    w.st.claim_port(id, "server-2", "compute:nova").await.unwrap();
    w.st.delete_port(id).await.unwrap();
    w.st.delete_port(id).await.unwrap();
    w.st.release_port(id, "server-2").await.unwrap();
    w.st.bind_port(id, None).await.unwrap();
}

#[tokio::test]
async fn refusals_have_their_kind() {
    let w = world().await;
    let own = w.own();
    let empty: base::NetworkId = own.network("empty").await.parse().unwrap();
    let id = PortId(uuid::Uuid::from_u128(2));
    assert_eq!(one(&w, request(id, empty)).await.unwrap_err().kind(), api::Kind::BadRequest);
    let foreign: base::NetworkId = w.foreign().network("theirs").await.parse().unwrap();
    assert_eq!(one(&w, request(id, foreign)).await.unwrap_err().kind(), api::Kind::NotFound);
    let public: base::NetworkId = w.public.parse().unwrap();
    assert_eq!(one(&w, request(id, public)).await.unwrap_err().kind(), api::Kind::NotFound);
    own.subnet(&empty.to_string(), "10.0.0.0/24").await.expect(201);
    let mut wrong = request(id, empty);
    wrong.fixed_ip = Some("10.0.0.2".parse().unwrap());
    assert_eq!(one(&w, wrong).await.unwrap_err().kind(), api::Kind::Conflict);
    let seen = w.st.network(&caller("member:p2").unwrap(), empty).await;
    assert_eq!(seen.unwrap_err().kind(), api::Kind::NotFound);
    assert!(w.st.network(&caller("member:p2").unwrap(), public).await.unwrap().external);
}
