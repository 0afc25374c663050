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

/// Work that would hold up the runtime (files, hashing of much): on a thread of its own. On a runtime of one thread, which
/// only tests and simulations have, in the caller's task: virtual time does not wait for threads, and a run is replayed
/// only if nothing depends on how fast they are.
///
/// # Errors
/// What `work` answers; `Internal` where it panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> base::Result<T> + Send + 'static,
) -> base::Result<T> {
    use tokio::runtime::{Handle, RuntimeFlavor};
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(base::Error::internal)?
}
