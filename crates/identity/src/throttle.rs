//! Failed logins cost time: an address that fails too often waits, for one account sooner than for all. An account is
//! never closed to other addresses by it, so that nobody can lock others out. Kept in memory, by each server.

use std::collections::HashMap;
use std::net::IpAddr;

use base::net::client_network;
use base::{Error, Kind, Result, Timestamp};
use parking_lot::Mutex;

/// Failures an address may have with one account before it waits.
const OF_ACCOUNT: f64 = 10.0;
/// Failures an address may have with all accounts together: many people may share one address.
const OF_ADDRESS: f64 = 100.0;
/// Seconds after which one failure is forgotten.
const FORGET: f64 = 6.0;
/// Most addresses and pairs remembered; beyond that the oldest are forgotten.
const MOST: usize = 50_000;

#[derive(Debug, Clone, Copy)]
struct Count {
    failures: f64,
    at: Timestamp,
}

impl Count {
    fn now(self, now: Timestamp) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "microseconds between two logins")]
        let passed = (now.0 - self.at.0) as f64 / 1e6;
        (self.failures - passed.max(0.0) / FORGET).max(0.0)
    }
}

/// The failures of late.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<HashMap<(IpAddr, String), Count>>);

impl Throttle {
    /// Whether `from` may try now.
    ///
    /// # Errors
    /// `TooManyRequests`.
    pub fn admit(&self, from: Option<IpAddr>, whom: &str, now: Timestamp) -> Result<()> {
        let Some(from) = from.map(client_network) else { return Ok(()) };
        let counts = self.0.lock();
        let of = |whom: &str| counts.get(&(from, whom.to_owned())).map_or(0.0, |c| c.now(now));
        if of("") < OF_ADDRESS && (whom.is_empty() || of(whom) < OF_ACCOUNT) {
            return Ok(());
        }
        Err(Error::new(Kind::TooManyRequests, "Too many failed logins from your address; try again later."))
    }

    /// Notes a failure.
    pub fn failed(&self, from: Option<IpAddr>, whom: &str, now: Timestamp) {
        let Some(from) = from.map(client_network) else { return };
        let mut counts = self.0.lock();
        if counts.len() >= MOST {
            counts.retain(|_, count| count.now(now) > 0.0);
        }
        if counts.len() >= MOST {
            counts.clear();
        }
        let keys = std::iter::once("").chain(Some(whom).filter(|w| !w.is_empty()));
        for whom in keys {
            let count = counts.entry((from, whom.to_owned())).or_insert(Count { failures: 0.0, at: now });
            *count = Count { failures: count.now(now) + 1.0, at: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_address_waits_and_others_do_not() {
        let throttle = Throttle::default();
        let now = Timestamp::from_secs(1_000_000);
        let (attacker, victim) = (address("192.0.2.1"), address("192.0.2.2"));
        for _ in 0..10 {
            throttle.admit(attacker, "id v", now).unwrap();
            throttle.failed(attacker, "id v", now);
        }
        assert_eq!(throttle.admit(attacker, "id v", now).unwrap_err().kind(), Kind::TooManyRequests);
        throttle.admit(victim, "id v", now).unwrap();
        throttle.admit(attacker, "id other", now).unwrap();
        throttle.admit(attacker, "id v", now.plus_secs(7)).unwrap();
        for n in 0..200 {
            throttle.failed(attacker, &format!("id {n}"), now);
        }
        throttle.admit(attacker, "id new", now).unwrap_err();
        throttle.admit(victim, "id new", now).unwrap();
        throttle.admit(attacker, "id new", now.plus_secs(1200)).unwrap();
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let throttle = Throttle::default();
        let now = Timestamp::from_secs(1_000_000);
        for n in 0..10 {
            throttle.failed(address(&format!("2001:db8::{n}")), "id v", now);
        }
        throttle.admit(address("2001:db8::ffff"), "id v", now).unwrap_err();
        throttle.admit(address("2001:db8:0:1::1"), "id v", now).unwrap();
    }
}
