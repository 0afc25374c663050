//! Logins take their turns: hashing costs memory and time, so few are verified at once and few wait. Each client address has a
//! small queue of its own, so that one that keeps its own full keeps nobody else out.

use std::collections::HashMap;
use std::net::IpAddr;

use base::net::client_network;
use base::{Error, Kind, Result};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Passwords verified at once: each takes 64 MiB and some tenths of a second.
const VERIFIED_AT_ONCE: usize = 2;
/// Logins of one address that wait or are verified; more are sent away.
const OF_ADDRESS: usize = 8;
/// The same, of all addresses together.
const OF_ALL: usize = 256;

/// The queues.
pub(crate) struct Logins {
    verifying: Semaphore,
    waiting: Mutex<HashMap<Option<IpAddr>, usize>>,
}

/// A place in a queue, and then a turn.
pub(crate) struct Turn<'a> {
    logins: &'a Logins,
    from: Option<IpAddr>,
    permit: Option<SemaphorePermit<'a>>,
}

impl Logins {
    pub(crate) fn new() -> Self {
        Logins { verifying: Semaphore::new(VERIFIED_AT_ONCE), waiting: Mutex::default() }
    }

    /// Waits for a turn, in the queue of an address. Who goes away leaves the queue.
    ///
    /// # Errors
    /// `TooManyRequests` where too many wait already.
    pub(crate) async fn turn(&self, from: Option<IpAddr>) -> Result<Turn<'_>> {
        let mut turn = self.queue(from.map(client_network))?;
        let permit = self.verifying.acquire().await;
        turn.permit = Some(permit.map_err(|_| Error::unavailable("The registry ends."))?);
        Ok(turn)
    }

    fn queue(&self, from: Option<IpAddr>) -> Result<Turn<'_>> {
        let full = |whose: &str| {
            let text = format!("Too many logins at once{whose}; try again.");
            Err(Error::new(Kind::TooManyRequests, text))
        };
        let mut waiting = self.waiting.lock();
        if waiting.get(&from).is_some_and(|n| *n >= OF_ADDRESS) {
            return full(" from your address");
        }
        if waiting.values().sum::<usize>() >= OF_ALL {
            return full("");
        }
        *waiting.entry(from).or_default() += 1;
        Ok(Turn { logins: self, from, permit: None })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut waiting = self.logins.waiting.lock();
        if let Some(count) = waiting.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test]
    async fn an_address_that_fills_its_queue_fills_no_other() {
        let logins = Logins::new();
        let (stranger, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let verified = [logins.turn(stranger).await.unwrap(), logins.turn(stranger).await.unwrap()];
        let held: Vec<_> = (2..OF_ADDRESS).map(|_| logins.queue(stranger).unwrap()).collect();
        assert_eq!(logins.turn(stranger).await.err().unwrap().kind(), Kind::TooManyRequests);
        let waits = logins.turn(other);
        tokio::pin!(waits);
        assert!(futures::poll!(waits.as_mut()).is_pending(), "both turns are taken");
        drop(verified);
        waits.await.unwrap();
        logins.turn(stranger).await.unwrap();
        drop(held);
        assert!(logins.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn all_together_are_bounded_and_neighbours_are_one() {
        let logins = Logins::new();
        let of = |n: usize| address(&format!("2001:db8:0:{n:x}::1"));
        let held: Vec<_> = (0..OF_ALL).map(|n| logins.queue(of(n).map(client_network)).unwrap()).collect();
        assert_eq!(logins.turn(address("192.0.2.1")).await.err().unwrap().kind(), Kind::TooManyRequests);
        drop(held);
        let _held: Vec<_> =
            (0..OF_ADDRESS).map(|_| logins.queue(of(1).map(client_network)).unwrap()).collect();
        assert!(logins.turn(address("2001:db8:0:1:ffff::2")).await.is_err());
        logins.turn(of(2)).await.unwrap();
    }
}
