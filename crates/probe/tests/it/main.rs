//! The probe against a cloud that keeps count, and guests that answer as told.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod common;
mod defects;
mod killed;
mod namespaces;
mod peers;
mod program;
mod stub;
