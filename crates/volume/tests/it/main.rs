//! The block storage service through its public face.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod account;
mod hosts;
mod lab;
mod service;
