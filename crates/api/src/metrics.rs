//! Counters and latencies by operation: `allod_api_requests_total{service,op,class}` and the histogram
//! `allod_api_request_seconds{service,op}`, told to whatever recorder the binary installed.
//!
//! A series begins with its operation's first call, so that the hundreds of operations nobody uses are not scraped.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};

/// Classes of status, 1xx … 5xx.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The counters of one router.
pub(crate) struct ServiceMetrics {
    service: &'static str,
    ops: Vec<OpMetrics>,
}

#[derive(Default)]
struct OpMetrics {
    id: String,
    classes: [OnceLock<Counter>; CLASSES.len()],
    seconds: OnceLock<Histogram>,
}

impl ServiceMetrics {
    pub fn new(service: &'static str, ids: impl Iterator<Item = String>) -> Self {
        let mut ops: Vec<OpMetrics> = ids.map(|id| OpMetrics { id, ..OpMetrics::default() }).collect();
        // The last one counts what matched no operation.
        ops.push(OpMetrics { id: "none".into(), ..OpMetrics::default() });
        ServiceMetrics { service, ops }
    }

    pub fn count(&self, op: Option<usize>, status: u16, took: Duration) {
        let Some(op) = self.ops.get(op.unwrap_or(self.ops.len() - 1)) else { return };
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        if let (Some(cell), Some(class)) = (op.classes.get(class), CLASSES.get(class)) {
            let make = || counter!("allod_api_requests_total", "service" => self.service, "op" => op.id.clone(), "class" => *class);
            cell.get_or_init(make).increment(1);
        }
        let make =
            || histogram!("allod_api_request_seconds", "service" => self.service, "op" => op.id.clone());
        op.seconds.get_or_init(make).record(took);
    }
}
