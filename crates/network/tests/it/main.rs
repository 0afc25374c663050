//! The network service through its router, on SQLite in memory, over a backend that records.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod coverage;
mod ipam;
mod policy;
mod races;
mod reconcile;
mod scenario;
mod services;
mod world;
