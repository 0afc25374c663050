//! Pure functions: no store, no clock, no network.

pub mod inspect;
mod qcow2;
mod vhd;
mod vmdk;
