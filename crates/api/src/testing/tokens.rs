//! Tokens that say who they are.

use std::sync::Arc;

use async_trait::async_trait;
use base::{DomainId, Error, ProjectId, Result, Timestamp, UserId};
use contract::auth::{AuthContext, Authenticator, Scope};

/// Takes tokens like `admin`, `member:PROJECT`, `reader:PROJECT`, `manager:PROJECT`, `admin:PROJECT`, `none`
/// (unscoped), `service`, `system-admin`, `system-reader`, `domain-admin:DOMAIN`, `domain-manager:DOMAIN`. A third part
/// names the user: `member:PROJECT:USER`. Anything else is 401.
#[derive(Debug, Clone, Copy, Default)]
pub struct FakeAuthenticator;

#[async_trait]
impl Authenticator for FakeAuthenticator {
    async fn authenticate(&self, token: &str) -> Result<Arc<AuthContext>> {
        caller(token).map(Arc::new)
    }
}

/// Whom a token of [`FakeAuthenticator`] stands for.
///
/// # Errors
/// `Unauthenticated` where it is none.
pub fn caller(token: &str) -> Result<AuthContext> {
    let bad = || Error::unauthenticated("no such token");
    let mut parts = token.split(':');
    let kind = parts.next().unwrap_or("");
    let place = parts.next();
    let user = parts.next();
    let known = ["admin", "manager", "member", "reader", "none", "service"];
    let (scope_kind, role) = match kind.split_once('-') {
        Some(("system", role)) => ("system", role),
        Some(("domain", role)) => ("domain", role),
        _ => ("project", kind),
    };
    if parts.next().is_some() || !known.contains(&role) || place.is_some_and(str::is_empty) {
        return Err(bad());
    }
    let place = place.unwrap_or("admin-project");
    let scope = match (scope_kind, role) {
        (_, "none") => Scope::Unscoped,
        ("system", _) => Scope::System,
        ("domain", _) => Scope::Domain { id: DomainId::new(place), name: place.to_owned() },
        _ => Scope::Project {
            id: ProjectId::new(place),
            name: place.to_owned(),
            domain_id: DomainId::new("default"),
            domain_name: "Default".to_owned(),
        },
    };
    let roles: &[&str] = match role {
        "admin" => &["admin", "manager", "member", "reader"],
        "manager" => &["manager", "member", "reader"],
        "member" => &["member", "reader"],
        "reader" => &["reader"],
        "service" => &["service"],
        _ => &[],
    };
    let user = user.map_or_else(|| format!("user-{role}-{place}"), str::to_owned);
    Ok(AuthContext {
        user_id: UserId::new(user.clone()),
        user_name: user,
        user_domain_id: DomainId::new("default"),
        user_domain_name: "Default".to_owned(),
        is_admin_project: matches!(&scope, Scope::Project { id, .. } if id.as_str() == "admin-project"),
        scope,
        roles: roles.iter().map(|r| (*r).to_owned()).collect(),
        expires_at: Timestamp::from_secs(4_102_444_800),
        issued_at: Timestamp::from_secs(1_767_225_600),
        methods: vec!["password".to_owned()],
        audit_id: "audit".to_owned(),
    })
}
