//! Virtual time as the services see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base::{Clock, Timestamp};
use tokio::time::Instant;

/// When every simulation begins: 2026-01-01T00:00:00Z.
pub const EPOCH: Timestamp = Timestamp::from_secs(1_767_225_600);

/// Shows the virtual time of the runtime that made it, plus an error of its own that can be changed.
#[derive(Debug)]
pub struct VirtualClock {
    start: Instant,
    skew_us: AtomicI64,
}

impl VirtualClock {
    /// A clock that shows [`EPOCH`] now.
    pub fn new() -> Arc<Self> {
        Arc::new(VirtualClock { start: Instant::now(), skew_us: AtomicI64::new(0) })
    }

    /// Another clock of the same time with an error of its own.
    #[must_use]
    pub fn another(&self) -> Arc<Self> {
        Arc::new(VirtualClock { start: self.start, skew_us: AtomicI64::new(0) })
    }

    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// How far the clock is wrong from now on, in seconds.
    pub fn set_skew(&self, seconds: i64) {
        self.skew_us.store(seconds.saturating_mul(1_000_000), Ordering::SeqCst);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        let now = EPOCH.plus(self.elapsed());
        Timestamp(now.0.saturating_add(self.skew_us.load(Ordering::SeqCst)))
    }
}
