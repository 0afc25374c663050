//! Counters and latencies by operation. The binary reads them with [`render`].

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

/// Upper bounds of the latency buckets in seconds.
pub const BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];

static SERVICES: Mutex<Vec<Weak<ServiceMetrics>>> = Mutex::new(Vec::new());

/// The counters of one router.
#[derive(Debug)]
pub struct ServiceMetrics {
    service: &'static str,
    ops: Vec<OpMetrics>,
}

/// The counters of one operation.
#[derive(Debug, Default)]
pub struct OpMetrics {
    id: String,
    /// By class of status: 1xx … 5xx.
    classes: [AtomicU64; 5],
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl ServiceMetrics {
    pub(crate) fn register(service: &'static str, ids: impl Iterator<Item = String>) -> Arc<Self> {
        let mut ops: Vec<OpMetrics> = ids.map(|id| OpMetrics { id, ..OpMetrics::default() }).collect();
        // The last one counts what matched no operation.
        ops.push(OpMetrics { id: "none".into(), ..OpMetrics::default() });
        let metrics = Arc::new(ServiceMetrics { service, ops });
        let mut services = SERVICES.lock();
        services.retain(|s| s.strong_count() > 0);
        services.push(Arc::downgrade(&metrics));
        metrics
    }

    pub(crate) fn count(&self, op: Option<usize>, status: u16, took: Duration) {
        let index = op.unwrap_or(self.ops.len() - 1);
        let Some(op) = self.ops.get(index) else { return };
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        if let Some(counter) = op.classes.get(class) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|b| seconds <= *b).unwrap_or(BUCKETS.len());
        if let Some(counter) = op.buckets.get(bucket) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        op.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The counters of all living routers in Prometheus' text format: `allod_api_requests_total{service,op,class}` and the
/// histogram `allod_api_request_seconds{service,op}`. Operations that were never called are left out.
pub fn render() -> String {
    let services: Vec<_> = SERVICES.lock().iter().filter_map(Weak::upgrade).collect();
    let mut text = String::from("# TYPE allod_api_requests_total counter\n");
    let each = || services.iter().flat_map(|s| s.ops.iter().map(move |op| (s.service, op)));
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (service, op) in each() {
        for (i, counter) in op.classes.iter().enumerate().filter(|(_, c)| load(c) > 0) {
            let (id, class, count) = (&op.id, i + 1, load(counter));
            let _ = writeln!(
                text,
                "allod_api_requests_total{{service=\"{service}\",op=\"{id}\",class=\"{class}xx\"}} {count}"
            );
        }
    }
    text.push_str("# TYPE allod_api_request_seconds histogram\n");
    for (service, op) in each() {
        let total: u64 = op.buckets.iter().map(load).sum();
        if total == 0 {
            continue;
        }
        let labels = format!("service=\"{service}\",op=\"{}\"", op.id);
        let mut below = 0;
        for (bound, counter) in BUCKETS.iter().zip(&op.buckets) {
            below += load(counter);
            let _ = writeln!(text, "allod_api_request_seconds_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(text, "allod_api_request_seconds_bucket{{{labels},le=\"+Inf\"}} {total}");
        #[expect(clippy::cast_precision_loss, reason = "a sum of seconds for people")]
        let sum = load(&op.micros) as f64 / 1e6;
        let _ = writeln!(text, "allod_api_request_seconds_sum{{{labels}}} {sum}");
        let _ = writeln!(text, "allod_api_request_seconds_count{{{labels}}} {total}");
    }
    text
}
