//! Many at once.

use std::collections::BTreeSet;
use std::time::Instant;

use futures::future::join_all;
use network::Config;
use serde_json::json;

use crate::world::{Wishes, world, world_with};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_address_twice_and_one_default_group() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    own.subnet(&net, "10.0.0.0/26").await.expect(201);
    // 62 host addresses less gateway and metadata.
    let answers = join_all((0..70).map(|_| own.port(&net, json!({})))).await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|a| a.status == 201);
    assert_eq!(made.len(), 60);
    assert!(
        refused
            .iter()
            .all(|a| a.status == 409 && a.text_at("/NeutronError/type") == "IpAddressGenerationFailure")
    );
    let ips: BTreeSet<String> = made.iter().map(|a| a.text_at("/port/fixed_ips/0/ip_address")).collect();
    assert_eq!(ips.len(), 60);
    let macs: BTreeSet<String> = made.iter().map(|a| a.text_at("/port/mac_address")).collect();
    assert_eq!(macs.len(), 60);
    let groups: BTreeSet<String> = made.iter().map(|a| a.text_at("/port/security_groups/0")).collect();
    assert_eq!(groups.len(), 1);
    let listed = own.get("/v2.0/security-groups").await.expect(200);
    assert_eq!(listed.at("/security_groups").as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quota_is_never_exceeded() {
    let mut config = Config::default();
    config.quotas.insert("network", 5);
    let w = world_with(config).await;
    let own = w.own();
    let answers = join_all((0..20).map(|_| own.post("/v2.0/networks", json!({"network": {}})))).await;
    assert_eq!(answers.iter().filter(|a| a.status == 201).count(), 5);
    let refused = answers.iter().find(|a| a.status == 409).unwrap();
    assert_eq!(refused.text_at("/NeutronError/type"), "OverQuota");
    assert_eq!(refused.text_at("/NeutronError/message"), "Quota exceeded for resources: ['network'].");
    // A bulk request is all or nothing.
    own.delete(&format!(
        "/v2.0/networks/{}",
        own.get("/v2.0/networks?router:external=False").await.text_at("/networks/0/id")
    ))
    .await
    .expect(204);
    own.post("/v2.0/networks", json!({"networks": [{"name": "a"}, {"name": "b"}]})).await.expect(409);
    let left = own.get("/v2.0/networks?router:external=False").await;
    assert_eq!(left.at("/networks").as_array().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_floating_ip_a_port_and_one_router_a_subnet() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    let subnet = own.subnet(&net, "10.0.0.0/24").await.expect(201).text_at("/subnet/id");
    let router = own.router(&w.public).await;
    let path = format!("/v2.0/routers/{router}/add_router_interface");
    let answers = join_all((0..4).map(|_| own.put(&path, json!({"subnet_id": subnet})))).await;
    assert_eq!(answers.iter().filter(|a| a.status == 200).count(), 1);
    assert!(answers.iter().all(|a| a.status == 200 || a.status == 400 || a.status == 409));
    let port = own.port(&net, json!({})).await.expect(201).text_at("/port/id");
    let body = json!({"floatingip": {"floating_network_id": w.public, "port_id": port}});
    let answers = join_all((0..4).map(|_| own.post("/v2.0/floatingips", body.clone()))).await;
    assert_eq!(answers.iter().filter(|a| a.status == 201).count(), 1);
    // The others left no port behind.
    let ports = w.admin().get("/v2.0/ports?device_owner=network:floatingip").await;
    assert_eq!(ports.at("/ports").as_array().unwrap().len(), 1);
}

/// Not a test of speed but a figure for people: run with `--nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_trios() {
    let w = world().await;
    let own = w.own();
    let began = Instant::now();
    for chunk in (0..100).collect::<Vec<u32>>().chunks(8) {
        join_all(chunk.iter().map(async |i| {
            let net = own.network(&format!("n{i}")).await;
            own.subnet(&net, &format!("10.{}.{}.0/24", 100 + i / 256, i % 256)).await.expect(201);
            own.port(&net, json!({"name": format!("p{i}")})).await.expect(201);
        }))
        .await;
    }
    let took = began.elapsed();
    println!("300 objects in {took:?}: {:?} each", took / 300);
    assert_eq!(own.get("/v2.0/ports?device_owner=").await.at("/ports").as_array().unwrap().len(), 100);
}
