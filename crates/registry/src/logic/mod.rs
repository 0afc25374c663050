//! Pure functions: no I/O and no clock.

pub mod evaluate;
pub mod history;
pub mod lifetime;
