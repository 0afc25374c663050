//! Pure functions: no I/O, no clock, no chance of their own. Property-tested in `tests/it`.

pub mod ipam;
pub mod project;
pub mod rules;
