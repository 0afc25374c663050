//! Pure functions: no store, no clock, no network.

pub mod attributes;
pub mod filter;
pub mod inspect;
pub mod patch;
mod qcow2;
mod vhd;
mod vmdk;
