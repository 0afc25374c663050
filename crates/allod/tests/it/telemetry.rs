//! Status, metrics and traces of a running cloud.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use parking_lot::Mutex;

use crate::World;

type Received = Arc<Mutex<Vec<Bytes>>>;

/// An OTLP/HTTP collector that keeps what it is sent.
async fn collector() -> (String, Received) {
    let received = Received::default();
    async fn take(State(received): State<Received>, body: Bytes) {
        received.lock().push(body);
    }
    let router = Router::new().route("/v1/traces", post(take)).with_state(received.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, received)
}

fn holds(received: &Received, needle: &[u8]) -> bool {
    received.lock().iter().any(|body| body.windows(needle.len()).any(|w| w == needle))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_tells_how_it_fares() {
    let (collector, received) = collector().await;
    let world = World::up(&format!("[telemetry]\notlp_endpoint = \"{collector}\"\n"));
    let url = world.url();

    // Strangers learn nothing.
    let stranger = world.client(false);
    for path in ["/metrics", "/v1/ops/tasks"] {
        assert_eq!(stranger.get(format!("{url}{path}")).send().await.unwrap().status(), 401, "{path}");
    }

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let versions = stranger.get(format!("{url}/identity/v3")).header("traceparent", parent);
    assert_eq!(versions.send().await.unwrap().status(), 200);

    // Asking for the status also makes the certificate that this machine asks with.
    let status: serde_json::Value =
        serde_json::from_slice(&world.allod(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["services"].as_array().unwrap().len(), 6);
    assert!(status["services"].as_array().unwrap().iter().all(|s| s["up"] == true), "{status}");
    assert_eq!(status["hosts"].as_array().unwrap().len(), 2, "{status}");
    let text = String::from_utf8(world.allod(&["status"]).stdout).unwrap();
    assert!(text.contains("service   identity       up"), "{text}");

    let host = world.client(true);
    let metrics = host.get(format!("{url}/metrics")).send().await.unwrap();
    assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let metrics = metrics.text().await.unwrap();
    for line in [
        "allod_api_requests_total{service=\"identity\",op=\"GET /v3\",class=\"2xx\"} ",
        "allod_api_request_seconds_bucket{service=\"identity\",op=\"GET /v3\",le=\"0.1\"} ",
        "allod_reconcile_runs_total{kind=\"host\",result=\"ok\"} ",
        "allod_reconcile_backlog{kind=\"server\"} 0",
        "allod_store_seconds_count{kind=\"write\"} ",
        "process_resident_memory_bytes ",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }

    let tasks: serde_json::Value =
        host.get(format!("{url}/v1/ops/tasks")).send().await.unwrap().json().await.unwrap();
    let kinds: Vec<_> = tasks.as_array().unwrap().iter().map(|t| t["kind"].as_str().unwrap()).collect();
    for kind in ["server", "host", "volume", "image", "net"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }

    // Spans arrive with the service's name, the operation's and the caller's trace.
    let trace: Vec<u8> = (0..16).map(|i| u8::from_str_radix(&trace[2 * i..2 * i + 2], 16).unwrap()).collect();
    let wanted: [&[u8]; 4] = [b"allod-server", b"GET /v3", b"reconcile host", &trace];
    let deadline = Instant::now() + Duration::from_secs(30);
    while !wanted.iter().all(|needle| holds(&received, needle)) {
        assert!(Instant::now() < deadline, "{} bodies", received.lock().len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
