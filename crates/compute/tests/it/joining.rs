//! Join tokens.

use std::time::Duration;

use base::HostId;
use contract::host::{HostCapacity, HostReport};
use contract::services::ControlPlane as _;

use crate::world::World;

const HOUR: Duration = Duration::from_secs(3600);

/// The first report of a host that has nothing.
fn report(host: HostId, hostname: &str) -> HostReport {
    HostReport {
        host,
        sequence: 1,
        generation: 0,
        at: base::Timestamp(0),
        version: "0.1.0".into(),
        capacity: HostCapacity { hostname: hostname.into(), ..HostCapacity::default() },
        servers: vec![],
        volumes: vec![],
        snapshots: vec![],
    }
}

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
    assert!(
        w.state.report(report(host, "h1")).await.is_err(),
        "it reports under the name that it joined with"
    );
    w.state.report(HostReport { sequence: 2, ..report(host, "h9") }).await.unwrap();
    let admin = w.client("admin:adm").at("compute 2.96");
    let _ = admin.delete(&format!("/v2.1/os-services/{host}")).await.expect(204);
    assert_eq!(w.state.admit(host).await.unwrap_err().kind().status(), 403);
    let token = w.state.issue_join_token(HOUR).await.unwrap();
    let again = w.state.join(&token, "h9", b"key").await.unwrap();
    assert_ne!(again, host, "the name is free again, the identity is not");
}

/// Signs of life that come together are written down together; one that is refused is in nobody's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_report_at_once_are_written_down_whatever_one_of_them_says() {
    let w = World::new(1).await;
    let token = w.state.issue_join_token(HOUR).await.unwrap();
    let liar = w.state.join(&token, "liar", b"key").await.unwrap();
    let entropy = base::Entropy::seeded(9);
    let honest: Vec<HostId> = (0..40).map(|_| HostId::random(&entropy)).collect();
    let told = honest.iter().enumerate().map(|(n, host)| report(*host, &format!("honest-{n}")));
    let told = told.chain([report(liar, "somebody-else")]);
    let told: Vec<_> = futures::future::join_all(told.map(|r| w.state.report(r))).await;
    let (last, others) = told.split_last().unwrap();
    assert_eq!(last.as_ref().unwrap_err().kind().status(), 403);
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    let rows = w.store.read(|tx| tx.list::<compute::model::Host>(&store::Query::new())).await.unwrap();
    let known: std::collections::BTreeSet<HostId> = rows.iter().map(|row| row.id).collect();
    assert!(honest.iter().all(|host| known.contains(host)));
    assert!(!known.contains(&liar));
}
