//! The identity service by its real router, on a database in memory and a clock that stands still.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod coverage;
mod credentials;
mod grants;
mod managers;
mod policy;
mod projects;
mod tokens;
mod users;
mod world;
