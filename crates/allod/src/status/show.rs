//! What `allod status` prints: once, as JSON, or again and again with curves.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base::{Clock, SystemClock};
use reconcile::TaskStatus;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::bootstrap;
use crate::config::{Config, State};
use crate::pki::Pki;
use crate::process::Process;
use crate::up::SERVICES;

/// Points of a curve.
const WIDTH: usize = 60;

/// Prints everything as JSON.
pub async fn json(state: &State) -> Result<()> {
    let status = Asking::new(state)?.collect().await?;
    println!("{}", serde_json::to_string_pretty(&status)?);
    Ok(())
}

/// Prints everything for people; with `watch`, anew after so many seconds, until interrupted.
pub async fn show(state: &State, watch: Option<u16>) -> Result<()> {
    let mut asking = Asking::new(state)?;
    let mut out = std::io::stdout();
    let Some(seconds) = watch else {
        let status = asking.collect().await?;
        return Ok(out.write_all(render(&status).as_bytes())?);
    };
    let mut curves = Curves::default();
    let mut tick = tokio::time::interval(Duration::from_secs(seconds.into()));
    loop {
        tick.tick().await;
        let status = asking.collect().await?;
        let totals = asking.totals().await;
        curves.add(&status, totals);
        // Home, then clear: no flicker.
        write!(out, "\x1b[H\x1b[J{}\n{}", render(&status), curves.render())?;
        out.flush()?;
    }
}

/// Asks a running cloud.
struct Asking<'a> {
    state: &'a State,
    config: Config,
    client: reqwest::Client,
    base: String,
    token: Option<reqwest::header::HeaderValue>,
}

impl<'a> Asking<'a> {
    fn new(state: &'a State) -> Result<Self> {
        let config = state.config()?;
        let pki = Pki::open(&state.path("pki"), SystemClock.now())?;
        let client = pki.host_client(bootstrap::host_id(state)?)?;
        let base = format!("https://{}", config.listen);
        Ok(Asking { state, config, client, base, token: None })
    }

    async fn collect(&mut self) -> Result<Value> {
        let mut services = Vec::new();
        for service in SERVICES {
            let answer = self.client.get(format!("{}/{service}/", self.base)).send().await;
            services.push(json!({"name": service, "up": answer.is_ok_and(|a| a.status().as_u16() <= 300)}));
        }
        let processes: Vec<Value> = ["up", "server", "agent"]
            .iter()
            .filter_map(|role| {
                let pid_file = self.state.path(&format!("run/{role}.pid"));
                Process::read(&pid_file).map(|p| json!({"role": role, "pid": p.pid}))
            })
            .collect();
        let engines: Vec<Value> = ovn::engines::running(self.state.dir())
            .into_iter()
            .map(|(name, pid)| json!({"name": name, "pid": pid}))
            .collect();
        let tasks: Option<Vec<TaskStatus>> =
            match self.client.get(format!("{}/v1/ops/tasks", self.base)).send().await {
                Ok(answer) => answer.json().await.ok(),
                Err(_) => None,
            };
        let versions: Option<Value> =
            match self.client.get(format!("{}/v1/ops/versions", self.base)).send().await {
                Ok(answer) => answer.json().await.ok(),
                Err(_) => None,
            };
        let hosts = match self.hosts().await {
            Ok(hosts) => hosts,
            Err(error) => {
                self.token = None;
                json!({"error": format!("{error:#}")})
            }
        };
        Ok(json!({
            "url": self.config.url(), "processes": processes, "engines": engines, "services": services,
            "tasks": tasks, "hosts": hosts, "versions": versions,
        }))
    }

    /// An administrator's token; one for the whole life of a watch, as logging in is expensive by intent.
    async fn token(&mut self) -> Result<reqwest::header::HeaderValue> {
        if let Some(token) = &self.token {
            return Ok(token.clone());
        }
        let secrets = bootstrap::secrets(self.state, &self.config)?;
        let login = json!({"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": "admin", "domain": {"id": "default"}, "password": secrets.admin}}},
            "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
        }});
        let login = self.client.post(format!("{}/identity/v3/auth/tokens", self.base)).json(&login);
        let answer = login.send().await?.error_for_status()?;
        let token = answer.headers().get("x-subject-token").context("no token")?.clone();
        self.token = Some(token.clone());
        Ok(token)
    }

    /// Hosts as the compute API tells an administrator.
    async fn hosts(&mut self) -> Result<Value> {
        let token = self.token().await?;
        let ask = async |path: &str| {
            let ask = self.client.get(format!("{}{path}", self.base)).header("x-auth-token", token.clone());
            ask.send().await?.error_for_status()?.json::<Value>().await
        };
        let mut services = ask("/compute/v2.1/os-services?binary=nova-compute").await?;
        let mut hypervisors = ask("/compute/v2.1/os-hypervisors/detail").await?;
        let states = services["services"].take();
        let mut rows = hypervisors["hypervisors"].take();
        for row in rows.as_array_mut().into_iter().flatten() {
            let name = row["hypervisor_hostname"].clone();
            let found = states.as_array().and_then(|s| s.iter().find(|s| s["host"] == name));
            row["state"] = found.map_or(Value::Null, |s| s["state"].clone());
        }
        Ok(rows)
    }

    /// Sums over all operations: requests answered so far, and the seconds they took.
    async fn totals(&self) -> Option<(f64, f64)> {
        let answer = self.client.get(format!("{}/metrics", self.base)).send().await.ok()?;
        let text = answer.error_for_status().ok()?.text().await.ok()?;
        let sum = |name: &str| -> f64 {
            text.lines()
                .filter(|l| l.starts_with(name))
                .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        };
        Some((sum("allod_api_request_seconds_count"), sum("allod_api_request_seconds_sum")))
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn agent_version(versions: &Value, host: &Value) -> String {
    let found = list(&versions["agents"]).find(|a| a["name"] == *host).and_then(|a| a["version"].as_str());
    found.filter(|v| !v.is_empty()).unwrap_or("of unknown version").to_owned()
}

fn render(status: &Value) -> String {
    let mut out = format!("{}\n\n", text(&status["url"]));
    for process in list(&status["processes"]) {
        let _ = writeln!(out, "process   {:14} pid {}", text(&process["role"]), process["pid"]);
    }
    for engine in list(&status["engines"]) {
        let pid = engine["pid"].as_u64().map_or_else(|| "DOWN".into(), |pid| format!("pid {pid}"));
        let _ = writeln!(out, "engine    {:14} {pid}", text(&engine["name"]));
    }
    for server in list(&status["versions"]["servers"]) {
        let (name, address, version) =
            (text(&server["name"]), text(&server["address"]), text(&server["version"]));
        let _ = writeln!(out, "server    {name:14} {version} {address}");
    }
    for service in list(&status["services"]) {
        let up = if service["up"] == true { "up" } else { "DOWN" };
        let _ = writeln!(out, "service   {:14} {up}", text(&service["name"]));
    }
    if status["hosts"].is_array() {
        for host in list(&status["hosts"]) {
            let _ = writeln!(
                out,
                "host      {:14} {} {} {} servers, {}/{} CPUs, {}/{} MiB, agent {}",
                text(&host["hypervisor_hostname"]),
                text(&host["state"]),
                text(&host["hypervisor_type"]),
                host["running_vms"],
                host["vcpus_used"],
                host["vcpus"],
                host["memory_mb_used"],
                host["memory_mb"],
                agent_version(&status["versions"], &host["hypervisor_hostname"]),
            );
        }
    } else {
        let _ = writeln!(out, "hosts     {}", text(&status["hosts"]["error"]));
    }
    for task in list(&status["tasks"]).filter_map(|t| TaskStatus::deserialize(t).ok()) {
        let _ = writeln!(
            out,
            "task      {:15} backlog {:4}  running {:3}  runs {:7}  failed {:4}  missed {:3}  last {}",
            task.kind,
            task.backlog,
            task.running,
            task.runs,
            task.failures,
            task.missed,
            task.last_run.map_or_else(|| "never".into(), |at| format!("{at} in {:.1?}", task.last_duration)),
        );
        if let (Some((key, since)), Some((_, error))) = (&task.oldest_unconverged, &task.last_error) {
            let _ = writeln!(out, "          not converged since {since}: {key}: {error}");
        }
    }
    out
}

/// What changes, as it was lately.
#[derive(Default)]
struct Curves {
    series: BTreeMap<&'static str, VecDeque<f64>>,
    before: Option<(Instant, f64, f64)>,
}

impl Curves {
    fn add(&mut self, status: &Value, totals: Option<(f64, f64)>) {
        let now = Instant::now();
        if let Some((requests, seconds)) = totals {
            // A server that was started again counts from nothing.
            if let Some((at, requests0, seconds0)) = self.before.filter(|before| before.1 <= requests) {
                let (new, took) = (requests - requests0, seconds - seconds0);
                self.push("requests/s", new / (now - at).as_secs_f64().max(1e-3));
                self.push("mean ms/request", if new > 0.0 { took / new * 1e3 } else { 0.0 });
            }
            self.before = Some((now, requests, seconds));
        }
        let sum = |rows: &Value, field: &str| list(rows).filter_map(|r| r[field].as_f64()).sum();
        self.push("backlog", sum(&status["tasks"], "backlog"));
        self.push("not converged", sum(&status["tasks"], "failing"));
        self.push("servers", sum(&status["hosts"], "running_vms"));
    }

    fn push(&mut self, name: &'static str, value: f64) {
        let series = self.series.entry(name).or_default();
        series.push_back(value);
        if series.len() > WIDTH {
            series.pop_front();
        }
    }

    fn render(&self) -> String {
        let mut out = String::new();
        for (name, series) in &self.series {
            let last = series.back().copied().unwrap_or_default();
            let most = series.iter().copied().fold(0.0, f64::max);
            let _ = writeln!(out, "{name:16} {} {last:.1} (most {most:.1})", curve(series, most));
        }
        out
    }
}

/// Eight heights of a block per point; nothing at all is a space.
fn curve(series: &VecDeque<f64>, most: f64) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let height = |value: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 8")]
        let step = if most > 0.0 { (value / most * 8.0).ceil().clamp(0.0, 8.0) as usize } else { 0 };
        BLOCKS.get(step).copied().unwrap_or('█')
    };
    format!("{:>WIDTH$}", series.iter().map(|v| height(*v)).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_show_rates_and_survive_a_restart_of_the_server() {
        let mut curves = Curves::default();
        let status =
            json!({"tasks": [{"backlog": 3, "failing": 0}, {"backlog": 5, "failing": 1}], "hosts": []});
        curves.add(&status, Some((100.0, 1.0)));
        curves.add(&status, Some((150.0, 1.5)));
        curves.add(&status, Some((7.0, 0.1)));
        assert_eq!(curves.series["requests/s"].len(), 1, "a count that fell is no rate");
        assert_eq!(curves.series["mean ms/request"], [10.0]);
        assert_eq!(curves.series["backlog"], [8.0, 8.0, 8.0]);
        let text = curves.render();
        assert!(text.contains("███ 8.0 (most 8.0)"), "{text}");
        assert!(text.contains("servers"), "{text}");
    }

    #[test]
    fn hosts_are_shown_with_the_version_of_their_agents() {
        let hosts = json!([{"hypervisor_hostname": "h1"}, {"hypervisor_hostname": "h2"}]);
        let versions = json!({"agents": [{"name": "h1", "version": "0.1.0"}, {"name": "h2", "version": ""}]});
        let text = render(&json!({"url": "u", "hosts": hosts, "versions": versions}));
        assert!(text.contains("agent 0.1.0\n") && text.contains("agent of unknown version\n"), "{text}");
    }

    #[test]
    fn a_cloud_that_is_half_down_is_told_so() {
        let task = TaskStatus {
            kind: "server".into(),
            oldest_unconverged: Some(("k1".into(), base::Timestamp::from_secs(0))),
            last_error: Some(("k1".into(), "no host".into())),
            ..TaskStatus::default()
        };
        let text = render(&json!({
            "url": "https://x", "processes": [], "services": [{"name": "image", "up": false}], "tasks": [task],
            "engines": [{"name": "northd", "pid": null}], "hosts": {"error": "no answer"},
            "versions": {"servers": [{"name": "1@a", "version": "0.1.0", "address": "https://a"}]},
        }));
        assert!(text.contains("server    1@a            0.1.0 https://a"), "{text}");
        for line in ["image          DOWN", "northd         DOWN", "hosts     no answer", "k1: no host"] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
