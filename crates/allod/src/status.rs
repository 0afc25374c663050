//! `allod status`, and the route it asks.

use anyhow::{Context, Result};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use base::{Clock, SystemClock};
use link::Peer;
use reconcile::{Handle, TaskStatus};
use serde_json::{Value, json};

use crate::bootstrap;
use crate::config::{Config, State};
use crate::pki::Pki;
use crate::process::Process;
use crate::up::SERVICES;

/// `/ops/v1/tasks` (for holders of a host certificate) and `/metrics`.
pub fn routes(handle: Handle) -> Router {
    let tasks = move |peer: Option<Extension<Peer>>| async move {
        match peer {
            Some(_) => Json(handle.status()).into_response(),
            None => refused(),
        }
    };
    let metrics = |peer: Option<Extension<Peer>>| async move {
        match peer {
            Some(_) => api::metrics::render().into_response(),
            None => refused(),
        }
    };
    Router::new().route("/ops/v1/tasks", get(tasks)).route("/metrics", get(metrics))
}

fn refused() -> Response {
    (axum::http::StatusCode::UNAUTHORIZED, "a client certificate of this cloud is needed here\n")
        .into_response()
}

/// Asks a running cloud and prints what it says.
pub async fn show(state: &State, json: bool) -> Result<()> {
    let config = state.config()?;
    let status = collect(state, &config).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", render(&status));
    }
    Ok(())
}

async fn collect(state: &State, config: &Config) -> Result<Value> {
    let pki = Pki::open(&state.path("pki"), SystemClock.now())?;
    let client = pki.host_client(bootstrap::host_id(state)?)?;
    let base = format!("https://{}", config.listen);
    let mut services = Vec::new();
    for service in SERVICES {
        let answer = client.get(format!("{base}/{service}/")).send().await;
        services.push(json!({"name": service, "up": answer.is_ok_and(|a| a.status().as_u16() <= 300)}));
    }
    let processes: Vec<Value> = ["up", "server", "agent"]
        .iter()
        .filter_map(|role| {
            Process::read(&state.path(&format!("run/{role}.pid")))
                .map(|p| json!({"role": role, "pid": p.pid}))
        })
        .collect();
    let tasks: Option<Vec<TaskStatus>> = match client.get(format!("{base}/ops/v1/tasks")).send().await {
        Ok(answer) => answer.json().await.ok(),
        Err(_) => None,
    };
    let hosts = match hosts(&client, &base, state, config).await {
        Ok(hosts) => hosts,
        Err(error) => json!({"error": format!("{error:#}")}),
    };
    Ok(
        json!({"url": config.url(), "processes": processes, "services": services, "tasks": tasks, "hosts": hosts}),
    )
}

/// Hosts as the compute API tells an administrator.
async fn hosts(client: &reqwest::Client, base: &str, state: &State, config: &Config) -> Result<Value> {
    let secrets = bootstrap::secrets(state, config)?;
    let login = json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {"name": "admin", "domain": {"id": "default"}, "password": secrets.admin}}},
        "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
    }});
    let answer = client
        .post(format!("{base}/identity/v3/auth/tokens"))
        .json(&login)
        .send()
        .await?
        .error_for_status()?;
    let token = answer.headers().get("x-subject-token").context("no token")?.clone();
    let ask = |path: &'static str| client.get(format!("{base}{path}")).header("x-auth-token", token.clone());
    let mut services: Value =
        ask("/compute/v2.1/os-services?binary=nova-compute").send().await?.json().await?;
    let mut hypervisors: Value = ask("/compute/v2.1/os-hypervisors/detail").send().await?.json().await?;
    let states = services["services"].take();
    let mut rows = hypervisors["hypervisors"].take();
    for row in rows.as_array_mut().into_iter().flatten() {
        let name = row["hypervisor_hostname"].clone();
        let found = states.as_array().and_then(|s| s.iter().find(|s| s["host"] == name));
        row["state"] = found.map_or(Value::Null, |s| s["state"].clone());
    }
    Ok(rows)
}

fn render(status: &Value) -> String {
    use std::fmt::Write;
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut out = format!("{}\n\n", text(&status["url"]));
    for process in status["processes"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "process   {:10} pid {}", text(&process["role"]), process["pid"]);
    }
    for service in status["services"].as_array().into_iter().flatten() {
        let up = if service["up"] == true { "up" } else { "DOWN" };
        let _ = writeln!(out, "service   {:10} {up}", text(&service["name"]));
    }
    match status["hosts"].as_array() {
        Some(hosts) => {
            for host in hosts {
                let _ = writeln!(
                    out,
                    "host      {:10} {} {} {} servers, {}/{} CPUs, {}/{} MiB",
                    text(&host["hypervisor_hostname"]),
                    text(&host["state"]),
                    text(&host["hypervisor_type"]),
                    host["running_vms"],
                    host["vcpus_used"],
                    host["vcpus"],
                    host["memory_mb_used"],
                    host["memory_mb"],
                );
            }
        }
        None => {
            let _ = writeln!(out, "hosts     {}", text(&status["hosts"]["error"]));
        }
    }
    for task in status["tasks"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "task      {:14} backlog {:4}  running {:3}  runs {:7}  failed {:4}  missed {:3}",
            text(&task["kind"]),
            task["backlog"],
            task["running"],
            task["runs"],
            task["failures"],
            task["missed"],
        );
        if let (Some(oldest), Some(error)) =
            (task["oldest_unconverged"].as_array(), task["last_error"].as_array())
        {
            let key = oldest.first().map(text).unwrap_or_default();
            let error = error.get(1).map(text).unwrap_or_default();
            let _ = writeln!(out, "          not converged: {key}: {error}");
        }
    }
    out
}
