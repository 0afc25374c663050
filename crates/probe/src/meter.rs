//! Metrics for Prometheus: counted while a run goes on, read at any time.

use std::time::Duration;

use anyhow::Result;
use metrics::{Label, counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use osclient::Call;

use crate::learned::{Burn, Unusual};
use crate::peers::Suspicion;
use crate::record::{Class, Iteration, Record, seconds};

/// From a call on a good day to a change on a bad one.
const BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0];

/// Counts.
pub struct Meter {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    common: Vec<Label>,
}

/// Which service a URL belongs to, as far as it says: the segment before the version, or the host's first label.
fn resource(url: &str) -> String {
    let path = url.split("://").nth(1).and_then(|r| r.split_once('/')).map_or("", |(_, p)| p);
    let plain = |s: &&str| !s.is_empty() && s.chars().all(|c| c.is_ascii_lowercase() || "-_.".contains(c));
    path.split('/').rfind(plain).unwrap_or("root").to_owned()
}

impl Meter {
    /// For a cloud.
    pub fn new(cloud: &str, region: Option<&str>) -> Result<Meter> {
        let recorder = PrometheusBuilder::new().set_buckets(&BUCKETS)?.build_recorder();
        let handle = recorder.handle();
        let common = vec![
            Label::new("cloud", cloud.to_owned()),
            Label::new("region", region.unwrap_or_default().to_owned()),
        ];
        Ok(Meter { recorder, handle, common })
    }

    fn labels(&self, more: &[(&'static str, &str)]) -> Vec<Label> {
        let more = more.iter().map(|(k, v)| Label::new(*k, (*v).to_owned()));
        self.common.iter().cloned().chain(more).collect()
    }

    /// A call ended.
    pub fn call(&self, call: &Call, class: Class) {
        let resource = resource(&call.url);
        let labels =
            self.labels(&[("method", &call.method), ("resource", &resource), ("class", class.name())]);
        with_local_recorder(&self.recorder, || {
            counter!("allod_probe_calls_total", labels.clone()).increment(1);
            histogram!("allod_probe_call_seconds", labels).record(seconds(call.total_us));
            let body = call.total_us.saturating_sub(call.first_byte_us);
            let setup = call.dns_us.unwrap_or(0) + call.connect_us.unwrap_or(0) + call.tls_us.unwrap_or(0);
            let phases = [
                ("dns", call.dns_us),
                ("connect", call.connect_us),
                ("tls", call.tls_us),
                (
                    "first-byte",
                    Some(call.first_byte_us.saturating_sub(setup)).filter(|_| call.first_byte_us > 0),
                ),
                ("body", Some(body).filter(|_| call.first_byte_us > 0)),
            ];
            for (phase, us) in phases {
                if let Some(us) = us {
                    histogram!("allod_probe_call_phase_seconds", self.labels(&[("phase", phase)]))
                        .record(seconds(us));
                }
            }
        });
    }

    /// An operation ended.
    pub fn record(&self, record: &Record) {
        let zone = record.place.zone.as_deref().unwrap_or_default();
        let host = record.place.host.as_deref().unwrap_or_default();
        let op = [("op", record.op.as_str()), ("service", record.service.as_str())];
        with_local_recorder(&self.recorder, || {
            let labels =
                [&op[..], &[("class", record.class.name()), ("zone", zone), ("host", host)]].concat();
            counter!("allod_probe_operations_total", self.labels(&labels)).increment(1);
            if record.class != Class::Skipped {
                histogram!("allod_probe_operation_seconds", self.labels(&op)).record(record.seconds());
            }
            for measure in &record.measures {
                let labels = [
                    &op[..1],
                    &[("measure", measure.name.as_str()), ("unit", measure.unit.as_str()), ("host", host)],
                ]
                .concat();
                gauge!("allod_probe_measure", self.labels(&labels)).set(measure.value);
            }
        });
    }

    /// An iteration ended; `now` in seconds of the epoch.
    pub fn iteration(&self, iteration: &Iteration, told: &Told, now: f64) {
        with_local_recorder(&self.recorder, || {
            let verdict = if iteration.fine() { "ok" } else { "failed" };
            counter!("allod_probe_iterations_total", self.labels(&[("verdict", verdict)])).increment(1);
            gauge!("allod_probe_iteration_seconds", self.common.clone()).set(seconds(iteration.us));
            gauge!("allod_probe_last_iteration_timestamp_seconds", self.common.clone()).set(now);
            if iteration.fine() {
                gauge!("allod_probe_last_good_iteration_timestamp_seconds", self.common.clone()).set(now);
            }
            #[expect(clippy::cast_precision_loss, reason = "counts")]
            let (left, unusual) = (iteration.left.len() as f64, told.unusual.len() as f64);
            gauge!("allod_probe_left_behind", self.common.clone()).set(left);
            gauge!("allod_probe_unusual", self.common.clone()).set(unusual);
            for burn in &told.burns {
                gauge!("allod_probe_slo_burn_rate", self.labels(&[("window", &burn.window)])).set(burn.rate);
            }
            for suspect in &told.suspects {
                let labels = self.labels(&[("host", &suspect.host), ("at", &suspect.at)]);
                gauge!("allod_probe_suspect_worse", labels).set(suspect.worse);
            }
        });
        self.handle.run_upkeep();
    }

    /// A sign of life; in seconds of the epoch.
    pub fn heartbeat(&self, now: f64) {
        with_local_recorder(&self.recorder, || {
            gauge!("allod_probe_heartbeat_timestamp_seconds", self.common.clone()).set(now);
        });
    }

    /// As Prometheus reads it.
    pub fn text(&self) -> String {
        self.handle.render()
    }
}

/// What is said about an iteration besides what it did.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Told {
    /// Slower than usual.
    pub unusual: Vec<Unusual>,
    /// Hosts that are worse than others.
    pub suspects: Vec<Suspicion>,
    /// How fast failures use up what the objective allows.
    pub burns: Vec<Burn>,
}

/// Serves metrics until the process ends: `GET /metrics`, `GET /healthz`.
pub async fn serve(listener: tokio::net::TcpListener, meter: std::sync::Arc<Meter>) {
    use hyper::service::service_fn;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: others will close theirs.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let meter = meter.clone();
        let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let (status, text) = match request.uri().path() {
                "/metrics" => (200, meter.text()),
                "/healthz" => (200, "ok\n".to_owned()),
                _ => (404, "/metrics\n".to_owned()),
            };
            let body = http_body_util::Full::new(hyper::body::Bytes::from(text));
            let response =
                hyper::Response::builder().status(status).header("content-type", "text/plain; version=0.0.4");
            std::future::ready(response.body(body))
        });
        tokio::spawn(async move {
            let io = hyper_util::rt::TokioIo::new(stream);
            let served = hyper::server::conn::http1::Builder::new()
                .timer(hyper_util::rt::TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(io, answer);
            // Whoever reads went away.
            let _ = served.await;
        });
    }
}
