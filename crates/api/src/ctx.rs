//! What a handler knows besides the request: who calls, under which microversion, and the service's state.

use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use base::{Error, ProjectId, Result, Timestamp, UserId};
use contract::{AuthContext, Scope};

use crate::{Dialect, Mv, OpInfo, Service, Target};

/// The context of one request. Dereferences to the service's state.
pub struct Ctx<S> {
    pub(crate) state: Arc<S>,
    pub(crate) op: Arc<OpInfo>,
    pub(crate) auth: Option<Arc<AuthContext>>,
    pub(crate) dialect: &'static Dialect,
    pub(crate) base_url: Arc<str>,
    pub(crate) request_id: Arc<str>,
    /// The microversion of this request; the service's lowest where none was asked for.
    pub mv: Mv,
}

impl<S> Clone for Ctx<S> {
    fn clone(&self) -> Self {
        Ctx {
            state: self.state.clone(),
            op: self.op.clone(),
            auth: self.auth.clone(),
            dialect: self.dialect,
            base_url: self.base_url.clone(),
            request_id: self.request_id.clone(),
            mv: self.mv,
        }
    }
}

impl<S> Deref for Ctx<S> {
    type Target = S;
    fn deref(&self) -> &S {
        &self.state
    }
}

static ANONYMOUS: LazyLock<Arc<AuthContext>> = LazyLock::new(|| {
    Arc::new(AuthContext {
        user_id: UserId::new(""),
        user_name: String::new(),
        user_domain_id: base::DomainId::new(""),
        user_domain_name: String::new(),
        scope: Scope::Unscoped,
        roles: Vec::new(),
        is_admin_project: false,
        expires_at: Timestamp(0),
        issued_at: Timestamp(0),
        methods: Vec::new(),
        audit_id: String::new(),
    })
});

impl<S> Ctx<S> {
    /// The caller. On operations without a token: nobody, with no role and no scope.
    pub fn auth(&self) -> &Arc<AuthContext> {
        self.auth.as_ref().unwrap_or(&ANONYMOUS)
    }

    /// The caller, if a token was sent.
    pub fn maybe_auth(&self) -> Option<&Arc<AuthContext>> {
        self.auth.as_ref()
    }

    /// The service's state.
    pub fn state(&self) -> &Arc<S> {
        &self.state
    }

    /// The operation that runs.
    pub fn op(&self) -> &OpInfo {
        &self.op
    }

    /// The service's dialect.
    pub fn dialect(&self) -> &'static Dialect {
        self.dialect
    }

    /// `req-<uuid>`.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Whether the microversion is at least this.
    pub fn since(&self, major: u16, minor: u16) -> bool {
        self.mv >= Mv(major, minor)
    }

    /// The token's project.
    ///
    /// # Errors
    /// `Forbidden` where the token is not scoped to a project.
    pub fn project_id(&self) -> Result<&ProjectId> {
        self.auth()
            .project_id()
            .ok_or_else(|| Error::forbidden("This operation needs a token that is scoped to a project."))
    }

    /// The caller's id.
    pub fn user_id(&self) -> &UserId {
        &self.auth().user_id
    }

    /// Scheme, host, port and prefix of this service as the caller knows them, without a trailing slash.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// An absolute link to `path` (with its leading slash) of this service.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }
}

impl<S: Service> Ctx<S> {
    /// The present moment.
    pub fn now(&self) -> Timestamp {
        self.state.clock().now()
    }

    /// Whether the caller is a cloud administrator: the rule `context_is_admin`.
    pub fn is_admin(&self) -> bool {
        self.state.policy().allows("context_is_admin", self.auth(), &Target::none())
    }

    /// Enforces this operation's rule against `target`.
    ///
    /// # Errors
    /// `Forbidden` where the caller may see the target but not do this; `NotFound` (with the target's own words) where
    /// even its existence is none of the caller's business.
    pub fn allow(&self, target: &Target) -> Result<()> {
        self.allow_rule(&self.op.policy, target)
    }

    /// As [`Ctx::allow`], for another rule than the operation's.
    ///
    /// # Errors
    /// As [`Ctx::allow`].
    pub fn allow_rule(&self, rule: &str, target: &Target) -> Result<()> {
        if self.allows(rule, target) {
            return Ok(());
        }
        if target.seen_by(self.auth()) || self.is_admin() {
            Err(self.dialect.policy_denied(rule))
        } else {
            Err(target.hidden())
        }
    }

    /// Whether the caller passes `rule` against `target`. An unknown rule is no.
    pub fn allows(&self, rule: &str, target: &Target) -> bool {
        self.state.policy().allows(rule, self.auth(), target)
    }
}
