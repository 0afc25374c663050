//! What an operator sees of a reconciler.

use std::time::Duration;

use base::Timestamp;
use serde::{Deserialize, Serialize};

/// One reconciler, as `allod status` shows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Its kind.
    pub kind: String,
    /// Keys waiting.
    pub backlog: usize,
    /// Keys being worked on.
    pub running: usize,
    /// Runs so far.
    pub runs: u64,
    /// Of these, failed.
    pub failures: u64,
    /// Keys that a sweep found and no wake-up had told of.
    pub missed: u64,
    /// Keys whose last run failed.
    pub failing: usize,
    /// When the last sweep ended.
    pub last_sweep: Option<Timestamp>,
    /// Sweeps that failed.
    pub sweep_failures: u64,
    /// When the last run ended.
    pub last_run: Option<Timestamp>,
    /// How long it took.
    pub last_duration: Duration,
    /// The key that has failed longest, and since when.
    pub oldest_unconverged: Option<(String, Timestamp)>,
    /// The last error: key (empty for a sweep) and text.
    pub last_error: Option<(String, String)>,
}
