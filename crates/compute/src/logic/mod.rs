//! Pure functions: no I/O, no clock, no randomness of their own.

pub(crate) mod extra_specs;
pub(crate) mod fence;
pub(crate) mod fold;
pub(crate) mod keys;
pub(crate) mod names;
pub(crate) mod quota;
pub(crate) mod schedule;
pub(crate) mod state;
