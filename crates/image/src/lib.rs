//! Images: Glance v2.

mod logic;

pub use logic::inspect;
