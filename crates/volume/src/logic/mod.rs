//! Pure functions, and those that need only a transaction.

pub mod follow;
pub mod input;
pub mod list;
pub mod machine;
pub mod quota;
