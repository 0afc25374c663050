//! `allod status`, and the routes it and Prometheus ask: `/v1/ops/tasks`, `/v1/ops/versions` and `/metrics`, for holders of
//! a host's certificate of this cloud.

mod show;

use std::sync::Arc;

use agent::Agent;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use link::Peer;
use metrics::gauge;
use reconcile::Handle;
use store::Store;

pub use show::{json, show};

use crate::telemetry::Metrics;

/// The server's routes.
pub fn routes(handle: Handle, store: Store, compute: Arc<compute::State>, metrics: Metrics) -> Router {
    let of_metrics = handle.clone();
    let tasks = move |peer: Option<Extension<Peer>>| async move {
        match peer {
            Some(_) => Json(handle.status()).into_response(),
            None => refused(),
        }
    };
    let versions = move |peer: Option<Extension<Peer>>| async move {
        if peer.is_none() {
            return refused();
        }
        match crate::upgrade::programs(&store).await {
            Ok(programs) => Json(programs).into_response(),
            Err(error) => {
                tracing::warn!(error = %error.chain(), "versions are not known");
                (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n").into_response()
            }
        }
    };
    let collect = move || {
        collect_tasks(&of_metrics);
        collect_hosts(&compute.census());
    };
    Router::new()
        .route("/v1/ops/tasks", get(tasks))
        .route("/v1/ops/versions", get(versions))
        .merge(metrics_route(metrics, collect))
}

/// The agent's routes.
pub fn agent_routes(agent: Arc<Agent>, metrics: Metrics) -> Router {
    metrics_route(metrics, move || collect_agent(&agent))
}

fn metrics_route(metrics: Metrics, collect: impl Fn() + Clone + Send + Sync + 'static) -> Router {
    let render = move |peer: Option<Extension<Peer>>| async move {
        if peer.is_none() {
            return refused();
        }
        collect();
        ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
    };
    Router::new().route("/metrics", get(render))
}

fn refused() -> Response {
    (StatusCode::UNAUTHORIZED, "a client certificate of this cloud is needed here\n").into_response()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floating-point numbers; counts stay far below 2^52"
)]
fn set(name: &'static str, labels: &[(&'static str, String)], value: u64) {
    gauge!(name, labels).set(value as f64);
}

/// What queues know at this moment; what they count they count as it happens.
fn collect_tasks(handle: &Handle) {
    for task in handle.status() {
        let kind = [("kind", task.kind)];
        for (name, value) in [
            ("allod_reconcile_backlog", task.backlog as u64),
            ("allod_reconcile_running", task.running as u64),
            ("allod_reconcile_failing", task.failing as u64),
            ("allod_reconcile_missed", task.missed),
            ("allod_reconcile_sweep_failures", task.sweep_failures),
        ] {
            set(name, &kind, value);
        }
        let seconds = |at: base::Timestamp| u64::try_from(at.as_secs()).unwrap_or(0);
        set("allod_reconcile_last_run_timestamp_seconds", &kind, task.last_run.map_or(0, seconds));
        let oldest = task.oldest_unconverged.map_or(0, |(_, since)| seconds(since));
        set("allod_reconcile_oldest_unconverged_timestamp_seconds", &kind, oldest);
    }
}

/// What hosts told this server; a host that another replica serves is in that one's numbers.
fn collect_hosts(census: &compute::Census) {
    set("allod_hosts", &[("state", "up".into())], census.up as u64);
    set("allod_hosts", &[("state", "down".into())], census.down as u64);
    for power in contract::host::PowerObserved::ALL {
        let count = census.guests.get(&power).copied().unwrap_or(0);
        set("allod_guests", &[("power", power.name().to_owned())], count as u64);
    }
}

fn collect_agent(agent: &Agent) {
    let status = agent.status();
    set("allod_agent_spec_generation", &[], status.generation);
    set("allod_agent_inflight", &[], status.inflight as u64);
    set("allod_agent_unconverged", &[], status.unconverged as u64);
    set("allod_agent_failing", &[], status.failing as u64);
    for power in contract::host::PowerObserved::ALL {
        let count = status.guests.get(&power).copied().unwrap_or(0);
        set("allod_agent_guests", &[("power", power.name().to_owned())], count as u64);
    }
}
