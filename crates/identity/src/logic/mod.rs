//! Pure functions: no I/O, no clock, no store.

pub mod access;
pub mod body;
pub mod catalog;
pub mod inference;
pub mod payload;
