//! What a service hands to the router.

use std::sync::Arc;
use std::time::Duration;

use base::Clock;
use contract::auth::Authenticator;

use crate::{Dialect, Policy};

/// Implemented by each service's state. [`crate::Ctx`] dereferences to the state, so that a handler writes
/// `cx.store()` for whatever the state has (an inherent method or a public field).
pub trait Service: Send + Sync + 'static {
    /// Envelope, paging style and microversions of this service.
    fn dialect(&self) -> &'static Dialect;
    /// The policy, built once from the operations: [`Policy::for_ops`].
    fn policy(&self) -> &Policy;
    /// Who turns tokens into callers.
    fn authenticator(&self) -> Arc<dyn Authenticator>;
    /// Where time comes from.
    fn clock(&self) -> Arc<dyn Clock>;
    /// Where the service is reachable, and limits.
    fn settings(&self) -> &Settings;
}

/// Where a service is reachable from outside, and limits of a request.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Scheme, host and port as clients know them, without a trailing slash: `https://cloud.example:8443`.
    /// Empty: taken from the request's `Host` header, with `http`.
    pub public_url: String,
    /// Path under which the binary mounts the service, without a trailing slash: `/network`. Empty for none.
    pub prefix: String,
    /// Believe `X-Forwarded-Proto` and `X-Forwarded-Host` (only behind a proxy that sets them).
    pub trust_forwarded: bool,
    /// The identity service's public URL, told in `WWW-Authenticate`.
    pub auth_url: String,
    /// Largest body in bytes of an operation that sets no limit of its own.
    pub body_limit: usize,
    /// How long a handler may take (streaming operations excepted).
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            public_url: String::new(),
            prefix: String::new(),
            trust_forwarded: false,
            auth_url: String::new(),
            body_limit: 114_688,
            timeout: Duration::from_secs(60),
        }
    }
}
