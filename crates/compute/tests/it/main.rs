//! Compute against real placement, real agents on simulated drivers, and networks, volumes and images in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

mod account;
mod fencing;
mod joining;
mod lifecycle;
mod moving;
mod partitions;
mod satellites;
mod views;
mod world;
