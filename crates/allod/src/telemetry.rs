//! Logs, metrics and traces of this process.
//!
//! Logs go to stderr (`ALLOD_LOG` filters them). Metrics go to a Prometheus recorder that [`Metrics::render`] reads.
//! Traces go to an OpenTelemetry collector over OTLP/HTTP where the configuration names one.

use std::time::Duration;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Upper bounds of all histograms of seconds: a cached token takes microseconds, a guest's boot a minute.
const BUCKETS: [f64; 13] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0];
/// Samples of histograms are folded this often, whether anybody scrapes or not.
const UPKEEP: Duration = Duration::from_secs(5);

/// Where traces go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Base URL of an OTLP/HTTP collector, e.g. `http://127.0.0.1:4318`; empty = no traces.
    pub otlp_endpoint: String,
    /// Part of all traces that are recorded, 0 to 1; a caller's `traceparent` decides for its own.
    pub sample_ratio: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry { otlp_endpoint: String::new(), sample_ratio: 1.0 }
    }
}

/// The metrics of this process.
#[derive(Clone)]
pub struct Metrics {
    recorder: PrometheusHandle,
    process: metrics_process::Collector,
}

/// Starts logs, metrics and, if the configuration says where to, traces of `role`; called once, before anything else.
pub fn start(role: &str, telemetry: &Telemetry) -> Result<(Metrics, Option<Exporting>)> {
    let filter = EnvFilter::try_from_env("ALLOD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let provider = provider(role, telemetry)?;
    // Our own spans only: those of HTTP and TLS libraries would be many, and the exporter's own would never end.
    let ours = Targets::new()
        .with_default(LevelFilter::OFF)
        .with_targets(["allod", "api", "agent", "reconcile"].map(|target| (target, LevelFilter::INFO)));
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("allod"))
            // A span that became the current context cannot be renamed, and a request's operation is known late.
            .with_context_activation(false)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    });
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(traces).with(logs.with_filter(filter)).init();
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .context("metrics cannot be recorded")?;
    let process = metrics_process::Collector::default();
    process.describe();
    Ok((Metrics { recorder, process }, provider.map(Exporting)))
}

fn provider(role: &str, telemetry: &Telemetry) -> Result<Option<SdkTracerProvider>> {
    if telemetry.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let client = Client { http: reqwest::Client::new(), runtime: tokio::runtime::Handle::current() };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(format!("{}/v1/traces", telemetry.otlp_endpoint.trim_end_matches('/')))
        .build()
        .context("telemetry.otlp_endpoint")?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(telemetry.sample_ratio)));
    let resource = Resource::builder().with_service_name(format!("allod-{role}")).build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler)
        .with_resource(resource)
        .build();
    Ok(Some(provider))
}

impl Metrics {
    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.process.collect();
        self.recorder.render()
    }

    /// Keeps histograms from growing; runs for ever.
    pub async fn upkeep(self) {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            self.recorder.run_upkeep();
        }
    }
}

/// Traces on their way; what is still held is sent when this is dropped.
pub struct Exporting(SdkTracerProvider);

impl Drop for Exporting {
    fn drop(&mut self) {
        // The exporter's thread waits for the runtime, which must not wait for the exporter's thread.
        if let Err(error) = tokio::task::block_in_place(|| self.0.shutdown()) {
            tracing::debug!(%error, "the last traces were not sent");
        }
    }
}

/// The HTTP client that is here already, for the exporter's own thread, which has no runtime.
#[derive(Debug, Clone)]
struct Client {
    http: reqwest::Client,
    runtime: tokio::runtime::Handle,
}

#[async_trait::async_trait]
impl opentelemetry_http::HttpClient for Client {
    async fn send_bytes(
        &self,
        request: axum::http::Request<bytes::Bytes>,
    ) -> std::result::Result<axum::http::Response<bytes::Bytes>, opentelemetry_http::HttpError> {
        let request: reqwest::Request = request.try_into()?;
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let answer = http.execute(request).await?.error_for_status()?;
            let mut response = axum::http::Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.clone_from(answer.headers());
            }
            Ok::<_, reqwest::Error>(response.body(answer.bytes().await?))
        });
        Ok(sent.await???)
    }
}

/// A request's span as a child of the caller's, if it says it is part of a trace (W3C Trace Context, `traceparent`).
pub fn parent_of(headers: &axum::http::HeaderMap) -> Option<opentelemetry::Context> {
    use opentelemetry::trace::TraceContextExt;
    if !headers.contains_key("traceparent") {
        return None;
    }
    let from = opentelemetry_http::HeaderExtractor(headers);
    let context = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&from));
    context.span().span_context().is_valid().then_some(context)
}
