//! Time as a parameter.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// A moment: microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// From whole seconds since the epoch.
    pub const fn from_secs(secs: i64) -> Self {
        Timestamp(secs * 1_000_000)
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// This moment plus `seconds` (which may be negative).
    #[must_use]
    pub const fn plus_secs(self, seconds: i64) -> Self {
        Timestamp(self.0.saturating_add(seconds.saturating_mul(1_000_000)))
    }

    /// This moment plus `duration`.
    #[must_use]
    pub fn plus(self, duration: std::time::Duration) -> Self {
        Timestamp(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    fn datetime(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// `2026-11-21T09:24:44Z`: Nova, Neutron, Glance.
    pub fn iso_seconds(self) -> String {
        self.datetime()
            .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z"))
            .unwrap_or_default()
    }

    /// `2026-11-21T09:24:44.123456Z`: Keystone.
    pub fn iso_micros(self) -> String {
        self.datetime()
            .format(format_description!(
                "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
            ))
            .unwrap_or_default()
    }

    /// `2026-11-21T09:24:44.123456`, without zone: Cinder, parts of Nova.
    pub fn iso_naive(self) -> String {
        self.datetime()
            .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]"))
            .unwrap_or_default()
    }

    /// Reads RFC 3339, the zone-less form (taken as UTC), and `YYYY-MM-DD`.
    pub fn parse(text: &str) -> Option<Self> {
        let nanos = |t: OffsetDateTime| i64::try_from(t.unix_timestamp_nanos() / 1000).ok().map(Timestamp);
        if let Ok(t) = OffsetDateTime::parse(text, &Rfc3339) {
            return nanos(t);
        }
        if let Ok(t) = OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339) {
            return nanos(t);
        }
        OffsetDateTime::parse(&format!("{text}T00:00:00Z"), &Rfc3339).ok().and_then(nanos)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iso_micros())
    }
}

/// Where time comes from. Production uses [`SystemClock`], tests and simulations [`ManualClock`].
pub trait Clock: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where real time enters")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `start`.
    pub fn new(start: Timestamp) -> Self {
        ManualClock(AtomicI64::new(start.0))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: std::time::Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        ManualClock::new(Timestamp::from_secs(1_767_225_600))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_those_of_the_services() {
        let t = Timestamp(1_795_253_084_123_456);
        assert_eq!(t.iso_seconds(), "2026-11-21T09:24:44Z");
        assert_eq!(t.iso_micros(), "2026-11-21T09:24:44.123456Z");
        assert_eq!(t.iso_naive(), "2026-11-21T09:24:44.123456");
        assert_eq!(Timestamp::parse(&t.iso_micros()), Some(t));
        assert_eq!(Timestamp::parse(&t.iso_naive()), Some(t));
        assert_eq!(
            Timestamp::parse("2026-11-21").map(Timestamp::iso_seconds).as_deref(),
            Some("2026-11-21T00:00:00Z")
        );
        assert_eq!(Timestamp::parse("yesterday"), None);
    }
}
