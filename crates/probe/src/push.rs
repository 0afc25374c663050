//! Metrics that are sent: Influx lines with the names of the older health monitor, and OTLP. Sending never keeps a run
//! waiting; what nobody takes is kept, at last in a file, and sent later.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use osclient::{Client, Trust, http_client};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::record::{Class, Iteration, Record, seconds};

/// Bodies that are kept while nobody takes them.
const KEPT: usize = 10_000;

/// Lines of an iteration as telegraf of the older health monitor takes them; the return code is 0 or 1, so that dashboards
/// that add them up show rates.
pub fn influx(measurement: &str, iteration: &Iteration) -> String {
    let mut out = String::new();
    let name = escaped(measurement);
    let mut line = |cmd: &str, method: &str, duration: f64, bad: u8| {
        let (cmd, method) = (escaped(cmd), escaped(method));
        out.push_str(&format!("{name},cmd={cmd},method={method} duration={duration},return_code={bad}\n"));
    };
    for record in iteration.records.iter().filter(|r| r.class != Class::Skipped) {
        let bad = u8::from(record.class.failed());
        let (cmd, method) = legacy(record);
        line(&cmd, &method, record.seconds(), bad);
        extra(record, &mut line);
    }
    line("totDur", &iteration.scenario, seconds(iteration.us), u8::from(!iteration.fine()));
    out
}

fn escaped(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !c.is_control()).collect();
    kept.replace('\\', "/").replace(',', "\\,").replace('=', "\\=").replace(' ', "\\ ")
}

/// Whether it is about the guests that others are reached through.
fn jump(record: &Record) -> &'static str {
    let name = record.name.as_deref().unwrap_or(&record.step);
    if name.contains("jump") { "JH" } else { "" }
}

fn number(record: &Record) -> String {
    let name = record.name.as_deref().and_then(|n| n.split(' ').next());
    name.and_then(|n| n.rsplit('-').next()).unwrap_or("0").to_owned()
}

/// Command and method as the older monitor called them.
fn legacy(record: &Record) -> (String, String) {
    let service = match record.service.as_str() {
        "compute" => "nova",
        "network" => "neutron",
        "block-storage" => "cinder",
        "image" => "glance",
        "load-balancer" => "octavia",
        other => other,
    };
    let method = match record.op.as_str() {
        "catalog.list" => return ("catalog".into(), "list".into()),
        "token.issue" => return ("token".into(), "issue".into()),
        "guest.reach" | "guest.login" => {
            return ("ssh".into(), format!("{}VM{}", jump(record), number(record)));
        }
        "server.active" => return (format!("wait{}VM", jump(record)), "ACTIVE".into()),
        "volume.available" => return (format!("wait{}VOLUME", jump(record)), "available".into()),
        "load-balancer.active" => return ("waitLBAAS".into(), "ACTIVE".into()),
        "server.delete" => return (format!("wait{}VM", jump(record)), "XDELX".into()),
        "load-balancer.delete" => return ("waitDELLBAAS".into(), "XDELX".into()),
        "guest.bench" => return ("bench".into(), number(record)),
        "pair.reach" => return ("pair".into(), number(record)),
        "pair.throughput" => return ("throughput".into(), number(record)),
        "server.create" => "boot".into(),
        "keypair.create" => "keypair-add".into(),
        "network.create" => "net-create".into(),
        "network.delete" => "net-delete".into(),
        "network.find" => "net-external-list".into(),
        "router-interface.create" => "router-interface-add".into(),
        "router-interface.delete" => "router-interface-delete".into(),
        "floating-ip.create" => "floatingip-create".into(),
        "floating-ip.delete" => "floatingip-delete".into(),
        "volume.create" => "create".into(),
        "volume.delete" => "delete".into(),
        "image.find" => "image-list".into(),
        "flavor.find" => "flavor-list".into(),
        "load-balancer.create" => "lbaas-loadbalancer-create".into(),
        other => other.replace('.', "-"),
    };
    (service.to_owned(), method)
}

/// What the older monitor took from tools in guests.
fn extra(record: &Record, line: &mut impl FnMut(&str, &str, f64, u8)) {
    let bad = u8::from(record.class.failed());
    let measure = |name: &str| record.measures.iter().find(|m| m.name == name).map(|m| m.value);
    let n = number(record);
    match record.op.as_str() {
        "pair.throughput" => {
            // Gbit/s; a failure stands in both series.
            for (prefix, name) in [("s", "sender"), ("r", "receiver")] {
                line("iperf3", &format!("{prefix}{n}"), measure(name).unwrap_or(0.0) / 1000.0, bad);
            }
        }
        "guest.bench" => {
            let guest = format!("{}VM{n}", jump(record));
            line("4000pi", &guest, measure("cpu-seconds").unwrap_or(0.0), bad);
            line("fioBW", &guest, measure("disk-write").unwrap_or(0.0), bad);
            line("fioLat10ms", &guest, measure("disk-slow").unwrap_or(0.0), bad);
        }
        "pair.reach" => line("ping", "stats", 0.0, bad),
        _ => {}
    }
}

/// An iteration as OTLP metrics (JSON encoding); `now` in nanoseconds of the epoch.
pub fn otlp(iteration: &Iteration, now: u64) -> Value {
    let attribute = |(key, value): (&str, &str)| json!({"key": key, "value": {"stringValue": value}});
    let at = now.to_string();
    let begin = now.saturating_sub(iteration.us.saturating_mul(1000)).to_string();
    let durations: Vec<Value> = iteration
        .records
        .iter()
        .filter(|r| r.class != Class::Skipped)
        .map(|r| {
            let mut attributes =
                vec![("op", r.op.as_str()), ("service", r.service.as_str()), ("class", r.class.name())];
            attributes.extend(r.name.as_deref().map(|n| ("name", n)));
            attributes.extend(r.place.host.as_deref().map(|h| ("host", h)));
            attributes.extend(r.place.zone.as_deref().map(|z| ("zone", z)));
            json!({"attributes": attributes.into_iter().map(attribute).collect::<Vec<_>>(), "startTimeUnixNano": begin,
                "timeUnixNano": at, "asDouble": r.seconds()})
        })
        .collect();
    let counts: Vec<Value> = Class::ALL
        .into_iter()
        .filter(|c| iteration.count(*c) > 0)
        .map(|c| {
            json!({"attributes": [attribute(("class", c.name()))], "startTimeUnixNano": begin, "timeUnixNano": at,
                "asInt": iteration.count(c).to_string()})
        })
        .collect();
    let whole = json!({"startTimeUnixNano": begin, "timeUnixNano": at, "asDouble": seconds(iteration.us),
        "attributes": [attribute(("verdict", if iteration.fine() { "ok" } else { "failed" }))]});
    let sum = json!({"aggregationTemporality": 1, "isMonotonic": true, "dataPoints": counts});
    let region = iteration.region.as_deref().unwrap_or_default();
    let resource = [
        ("service.name", "allod-probe"),
        ("cloud.provider", "openstack"),
        ("cloud.name", iteration.cloud.as_str()),
        ("cloud.region", region),
    ];
    json!({"resourceMetrics": [{
        "resource": {"attributes": resource.map(attribute)},
        "scopeMetrics": [{"scope": {"name": "allod-probe", "version": env!("CARGO_PKG_VERSION")}, "metrics": [
            {"name": "allod.probe.operation.duration", "unit": "s", "gauge": {"dataPoints": durations}},
            {"name": "allod.probe.operations", "unit": "1", "sum": sum},
            {"name": "allod.probe.iteration.duration", "unit": "s", "gauge": {"dataPoints": [whole]}},
        ]}],
    }]})
}

/// Sends bodies to one place, in order, in the background.
pub struct Pusher {
    queue: mpsc::UnboundedSender<String>,
    sending: tokio::task::JoinHandle<VecDeque<String>>,
    spool: PathBuf,
}

impl Pusher {
    /// Begins with what an earlier run could not send.
    pub fn start(url: String, kind: &'static str, spool: PathBuf) -> anyhow::Result<Pusher> {
        let client = http_client(&Trust { verify: true, ca: None, identity: None }, Duration::from_secs(10))?;
        let earlier = std::fs::read_to_string(&spool).unwrap_or_default();
        let waiting: VecDeque<String> =
            earlier.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        let (queue, incoming) = mpsc::unbounded_channel();
        let sending = tokio::spawn(send(client, url, kind, waiting, incoming));
        Ok(Pusher { queue, sending, spool })
    }

    /// Queues a body.
    pub fn push(&self, body: String) {
        // The task only ends after this end of the queue is gone.
        let _ = self.queue.send(body);
    }

    /// Sends what is left, for a while; what then remains is kept for the next run.
    pub async fn finish(self) -> anyhow::Result<()> {
        drop(self.queue);
        let left = self.sending.await?;
        let lines: Result<String, serde_json::Error> =
            left.iter().map(|b| serde_json::to_string(b).map(|l| l + "\n")).collect();
        if left.is_empty() {
            // There may be none.
            let _ = std::fs::remove_file(&self.spool);
        } else {
            std::fs::write(&self.spool, lines?)?;
        }
        Ok(())
    }
}

async fn send(
    client: Client,
    url: String,
    kind: &'static str,
    mut waiting: VecDeque<String>,
    mut incoming: mpsc::UnboundedReceiver<String>,
) -> VecDeque<String> {
    let mut open = true;
    let mut pause = Duration::ZERO;
    while open || !waiting.is_empty() {
        if waiting.is_empty() {
            match incoming.recv().await {
                Some(body) => waiting.push_back(body),
                None => open = false,
            }
            continue;
        }
        while let Ok(body) = incoming.try_recv() {
            waiting.push_back(body);
        }
        while waiting.len() > KEPT {
            waiting.pop_front();
        }
        open = open && !(incoming.is_closed() && incoming.is_empty());
        if !pause.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                more = incoming.recv(), if open => match more {
                    Some(body) => { waiting.push_back(body); continue }
                    None => open = false,
                }
            }
        }
        let Some(body) = waiting.front().cloned() else { continue };
        let answer = client.post(&url).header("content-type", kind).body(body).send().await;
        match answer.map(|r| r.status()) {
            Ok(status) if status.is_success() => {
                waiting.pop_front();
                pause = Duration::ZERO;
            }
            // It will not be taken however often it is sent.
            Ok(status) if status.is_client_error() && status.as_u16() != 429 => drop(waiting.pop_front()),
            // At the end nobody waits for a dead server.
            _ if !open => break,
            _ => pause = (pause * 2).clamp(Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
    waiting
}
