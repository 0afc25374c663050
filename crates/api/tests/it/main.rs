//! The whole pipeline: a small service in every dialect, called as clients call it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod documents;
mod pipeline;
mod service;
mod suite;
mod wire;
