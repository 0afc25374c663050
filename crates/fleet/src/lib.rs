//! The fleet simulator: a thousand hosts and the whole cloud in one thread and in virtual time.
//!
//! Each host is the real agent on simulated drivers; the server side is the real assembled cloud on a database in memory.
//! Only the network between them, the drivers and time are simulated. Tenants work through the real API, a script breaks
//! things, and a checker looks at everything every virtual minute and at rest.
//!
//! Invariant: everything follows from the seed. No threads, no files that matter, no real time, no order that depends on
//! a hash; `Outcome::hash` is the proof. (`docs/adr/0009-a-seed-replays-a-fleet.md`)
//!
//! Start reading at [`run::Run`], then [`check`] (what must hold), then [`fault`] (what breaks).

mod breakage;
pub mod check;
pub mod client;
pub mod clock;
pub mod control;
mod drivers;
pub mod fault;
pub mod host;
pub mod link;
pub mod profile;
pub mod report;
pub mod run;
pub mod trace;
pub mod workload;

pub use run::{Options, Outcome, Run, Sample, simulate};
