//! The words every crate shares: typed ids, time, chance, errors, network addresses.
//!
//! Invariant: no I/O, no async runtime, no HTTP, no SQL. Everything here is plain data, so that any crate may
//! depend on it and none is slowed by it.
//!
//! Start reading at [`Error`] (how every failure in the house is told), then [`Clock`] and [`Entropy`] (how time
//! and chance are handed in), then [`id`] (typed ids).

pub mod clock;
pub mod entropy;
pub mod error;
pub mod id;
pub mod net;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use entropy::Entropy;
pub use error::{Error, Kind, Result};
pub use id::*;
pub use net::MacAddr;
