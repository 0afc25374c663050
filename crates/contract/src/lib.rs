//! What crosses a wall of the house: types and traits, nothing else.
//!
//! Three kinds of wall. Between services ([`services`]: a service calls another only through a trait, so that the
//! other may be remote or a Python OpenStack). Between server and host ([`host`]: `HostSpec` down, `HostReport` up).
//! Between us and an engine ([`drivers`], [`net`]: verbs `observe`, `ensure`, `remove`, `events`).
//!
//! Invariant: no logic, no I/O of its own. Every driver, simulated ones included, passes the contract tests of its
//! trait in [`suite`].
//!
//! Start reading at [`host::HostSpec`], then [`services`], then [`drivers`].

pub mod auth;
pub mod drivers;
pub mod host;
pub mod net;
pub mod services;
pub mod suite;

pub use auth::{AuthContext, Scope};
