//! Who is calling: what a valid token says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use base::{DomainId, ProjectId, Result, Timestamp, UserId};
use serde::{Deserialize, Serialize};

/// What a token gives access to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Proves who the user is, nothing more.
    Unscoped,
    /// One project.
    Project {
        /// The project.
        id: ProjectId,
        /// Its name.
        name: String,
        /// The domain the project is in.
        domain_id: DomainId,
        /// That domain's name.
        domain_name: String,
    },
    /// One domain.
    Domain {
        /// The domain.
        id: DomainId,
        /// Its name.
        name: String,
    },
    /// The whole cloud (`system: all`).
    System,
}

/// A validated token. Only an [`Authenticator`] makes one for a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthContext {
    /// The user.
    pub user_id: UserId,
    /// The user's name.
    pub user_name: String,
    /// The domain the user is in.
    pub user_domain_id: DomainId,
    /// That domain's name.
    pub user_domain_name: String,
    /// What the token is for.
    pub scope: Scope,
    /// Role names, implied roles included, lower-case, sorted.
    pub roles: Vec<String>,
    /// Whether the scope is the administrators' project (then `admin` is cloud-wide; Keystone's `is_admin_project`).
    pub is_admin_project: bool,
    /// When the token ends.
    pub expires_at: Timestamp,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// Authentication methods, e.g. `["password"]`.
    pub methods: Vec<String>,
    /// The token's audit id.
    pub audit_id: String,
}

impl AuthContext {
    /// The project of a project-scoped token.
    pub fn project_id(&self) -> Option<&ProjectId> {
        match &self.scope {
            Scope::Project { id, .. } => Some(id),
            _ => None,
        }
    }

    /// Whether the token carries `role`.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|r| r == role)
    }
}

/// A place in the order of what this process does: what began at a greater moment began later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Later than every moment before it, and none is the same.
    pub fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Moment(LAST.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

/// The request a token comes with.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// When the request began: what was found out about the token since then need not be found out again for it.
    pub began: Moment,
    /// The token the request is about, if it names one (`X-Subject-Token`; Identity API v3, "Authentication and token
    /// management"): what has to be asked about both may be asked together.
    pub subject: Option<&'a str>,
    /// The type of the service that is asked.
    pub service: &'a str,
    /// The method.
    pub method: &'a str,
    /// The path below the service's prefix.
    pub path: &'a str,
    /// The client certificate (DER) the caller proved to hold in the TLS handshake, if one was asked for and verified.
    pub certificate: Option<&'a [u8]>,
}

/// Turns the text of `X-Auth-Token` into who is calling. Implemented by the identity service (in-process) and by a
/// remote client of any Keystone.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// As [`Authenticator::authenticate_for`], for no request in particular: tokens that are good for some requests only, or
    /// over some connections only, are refused.
    ///
    /// # Errors
    /// `Unauthenticated` where the token is malformed, forged, expired or revoked.
    async fn authenticate(&self, token: &str) -> Result<Arc<AuthContext>>;

    /// Who makes this request. Tokens of application credentials with access rules are good for requests their rules name
    /// only, tokens bound to a client certificate (RFC 8705, section 3) over connections of that certificate only.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`].
    async fn authenticate_for(&self, token: &str, request: Presented<'_>) -> Result<Arc<AuthContext>> {
        let _ = request;
        self.authenticate(token).await
    }
}
