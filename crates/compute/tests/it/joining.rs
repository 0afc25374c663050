//! Join tokens.

use std::time::Duration;

use contract::services::ControlPlane as _;

use crate::world::World;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_one_host_in_once() {
    let w = World::new(1).await;
    let status = |e: base::Error| e.kind().status();
    let token = w.state.issue_join_token(HOUR).await.unwrap();
    assert_eq!(w.state.join("forged", "h9", b"key").await.map_err(status), Err(401));
    assert_eq!(w.state.join(&token, "sim-0", b"key").await.map_err(status), Err(409), "the name is taken");
    let host = w.state.join(&token, "h9", b"key").await.unwrap();
    assert_eq!(w.state.join(&token, "h9", b"key").await.unwrap(), host, "its answer was lost");
    assert_eq!(w.state.join(&token, "h9", b"other key").await.map_err(status), Err(401));
    let second = w.state.issue_join_token(HOUR).await.unwrap();
    assert_eq!(w.state.join(&second, "h9", b"other key").await.map_err(status), Err(409));
    let over = w.state.issue_join_token(Duration::ZERO).await.unwrap();
    assert_eq!(w.state.join(&over, "h10", b"key").await.map_err(status), Err(401), "expired");
    w.state.admit(host).await.unwrap();
    assert_eq!(w.state.joined_name(host).await.unwrap(), "h9");
    assert!(w.state.joined_name(w.hosts[0].0).await.is_err(), "it did not join");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_host_may_speak_no_more() {
    let w = World::new(1).await;
    let token = w.state.issue_join_token(HOUR).await.unwrap();
    let host = w.state.join(&token, "h9", b"key").await.unwrap();
    let report = contract::host::HostReport {
        host,
        sequence: 1,
        generation: 0,
        at: base::Timestamp(0),
        version: "0.1.0".into(),
        capacity: contract::host::HostCapacity { hostname: "h9".into(), ..Default::default() },
        servers: vec![],
        volumes: vec![],
        snapshots: vec![],
    };
    let mut other = report.clone();
    other.capacity.hostname = "h1".into();
    assert!(w.state.report(other).await.is_err(), "it reports under the name that it joined with");
    w.state.report(contract::host::HostReport { sequence: 2, ..report }).await.unwrap();
    let admin = w.client("admin:adm").at("compute 2.96");
    let _ = admin.delete(&format!("/v2.1/os-services/{host}")).await.expect(204);
    assert_eq!(w.state.admit(host).await.unwrap_err().kind().status(), 403);
    let token = w.state.issue_join_token(HOUR).await.unwrap();
    let again = w.state.join(&token, "h9", b"key").await.unwrap();
    assert_ne!(again, host, "the name is free again, the identity is not");
}
