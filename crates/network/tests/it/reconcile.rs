//! What survives a crash, and what comes back from the backend.

use std::time::{Duration, Instant};

use contract::net::{Key, NetEvent};
use serde_json::json;

use crate::world::{Wishes, world};

/// Polls until `probe` answers `true`; panics after five seconds.
async fn until(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !probe().await {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_tombstone_outlives_the_crash() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    own.subnet(&net, "10.0.0.0/24").await.expect(201);
    let port = own.port(&net, json!({})).await.expect(201).text_at("/port/id");
    w.settle().await;
    let key = Key::Port(port.parse().unwrap());
    assert!(w.backend.has(key));
    own.delete(&format!("/v2.0/ports/{port}")).await.expect(204);
    own.get(&format!("/v2.0/ports/{port}")).await.expect(404);
    // The process ends before the backend was told; its wake-up is lost with it.
    w.lose_wakes().await;
    assert!(w.backend.has(key));
    let text = format!("port/{port}");
    assert!(w.sweep().await.contains(&text), "the sweep knows what the queue forgot");
    // The backend is away: the tombstone stays.
    *w.backend.away.lock() = true;
    assert!(w.reconcile(&text).await.is_err());
    assert!(w.sweep().await.contains(&text));
    *w.backend.away.lock() = false;
    w.reconcile(&text).await.unwrap();
    assert!(!w.backend.has(key));
    assert!(w.sweep().await.is_empty(), "the backend confirmed, so the tombstone went");
    w.reconcile(&text).await.unwrap();
}

#[tokio::test]
async fn a_full_hand_over_repairs_everything() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    own.subnet(&net, "10.0.0.0/24").await.expect(201);
    let port = own.port(&net, json!({})).await.expect(201).text_at("/port/id");
    w.lose_wakes().await;
    assert!(w.st.sync().await.unwrap() > 0);
    assert!(w.backend.has(Key::Port(port.parse().unwrap())));
    assert_eq!(w.st.sync().await.unwrap(), 0, "nothing is left to repair");
    // What single hand-overs make is what the full one wants.
    own.port(&net, json!({"name": "second"})).await.expect(201);
    w.settle().await;
    assert_eq!(w.st.sync().await.unwrap(), 0);
    // What is foreign to the rows goes, tombstone and all.
    own.delete(&format!("/v2.0/ports/{port}")).await.expect(204);
    w.lose_wakes().await;
    assert_eq!(w.st.sync().await.unwrap(), 1);
    assert!(w.sweep().await.is_empty());
}

#[tokio::test]
async fn needs_come_first_whatever_wakes_first() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    own.subnet(&net, "10.0.0.0/24").await.expect(201);
    let subnet = own.get(&format!("/v2.0/subnets?network_id={net}")).await.text_at("/subnets/0/id");
    let router = own.router(&w.public).await;
    own.put(&format!("/v2.0/routers/{router}/add_router_interface"), json!({"subnet_id": subnet}))
        .await
        .expect(200);
    let port = own.port(&net, json!({})).await.expect(201).text_at("/port/id");
    let fip = own
        .post("/v2.0/floatingips", json!({"floatingip": {"floating_network_id": w.public, "port_id": port}}))
        .await
        .expect(201)
        .text_at("/floatingip/id");
    w.lose_wakes().await;
    // The recorder refuses what stands on nothing.
    w.reconcile(&format!("floatingip/{fip}")).await.unwrap();
    for key in [
        Key::Router(router.parse().unwrap()),
        Key::Network(net.parse().unwrap()),
        Key::Port(port.parse().unwrap()),
    ] {
        assert!(w.backend.has(key), "{key:?}");
    }
}

#[tokio::test]
async fn ports_follow_the_backend() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    own.subnet(&net, "10.0.0.0/24").await.expect(201);
    let port = own.port(&net, json!({})).await.expect(201);
    assert_eq!(port.text_at("/port/status"), "DOWN");
    let id: base::PortId = port.text_at("/port/id").parse().unwrap();
    let path = format!("/v2.0/ports/{id}");
    let status = async |wanted: &str| own.get(&path).await.text_at("/port/status") == wanted;
    assert_eq!(w.sync.sweep().await.unwrap(), ["all"], "the first sweep asks for everything");
    w.sync.reconcile("all").await.unwrap();
    assert!(w.sync.sweep().await.unwrap().is_empty());
    w.backend.event(NetEvent::PortUp(id));
    until("up", async || status("ACTIVE").await).await;
    w.backend.event(NetEvent::PortDown(id));
    until("down", async || status("DOWN").await).await;
    // What was missed is found by asking.
    w.backend.up.lock().insert(id);
    w.st.sync().await.unwrap();
    assert!(status("ACTIVE").await);
    let before = own.get(&path).await.at("/port/revision_number");
    own.put(&path, json!({"port": {"admin_state_up": false}})).await.expect(200);
    w.st.sync().await.unwrap();
    assert!(status("DOWN").await, "a port that is administratively down is not active");
    assert!(own.get(&path).await.at("/port/revision_number").as_u64() > before.as_u64());
}
