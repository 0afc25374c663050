//! Simulated drivers: a host and a network that behave like real ones in all that crosses the driver traits, with
//! latency and faults drawn from a seed.
//!
//! Invariant: the same seed and the same calls give the same behaviour; nothing touches the machine. A simulated driver
//! is stricter than the real one wherever that finds bugs (unknown ports, disks without data).
//!
//! Start reading at [`Profile`] (what a host is like), then [`SimHost::new`] and [`SimNetwork`].

mod host;
mod network;

pub use host::{Profile, SimHost, SimHostNetwork, SimHypervisor, SimImages, SimStorage};
pub use network::SimNetwork;
