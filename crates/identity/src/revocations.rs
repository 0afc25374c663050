//! The list of revocations for services that ask `/v3/OS-REVOKE/events`. Nothing here decides whether a token is valid.

use base::{DomainId, ProjectId, Result, RoleId, UserId};
use store::Tx;

use crate::model::RevocationEvent;

/// Which tokens were revoked.
#[derive(Debug, Clone, Copy)]
pub enum Of<'a> {
    /// The one with this audit id.
    Token(&'a str),
    /// All of a user.
    User(&'a UserId),
    /// Those for a project.
    Project(&'a ProjectId),
    /// Those for a domain and its users.
    Domain(&'a DomainId),
    /// Those got by a trust.
    Trust(&'a str),
    /// Those with a role.
    Role(&'a RoleId),
    /// Those got by an OAuth 1.0a access token.
    AccessToken(&'a str),
    /// Those got by any access token of a consumer.
    Consumer(&'a str),
}

/// Notes a revocation in the transaction that makes it.
///
/// # Errors
/// The store's.
pub fn note(tx: &mut Tx<'_>, of: Of<'_>) -> Result<()> {
    let now = tx.now();
    let mut event = RevocationEvent {
        id: String::new(),
        meta: store::Meta::default(),
        user_id: None,
        project_id: None,
        domain_id: None,
        audit_id: None,
        trust_id: None,
        role_id: None,
        access_token_id: None,
        consumer_id: None,
        issued_before: now,
        revoked_at: now,
    };
    let (kind, what) = match of {
        Of::Token(id) => {
            event.audit_id = Some(id.to_owned());
            ("token", id)
        }
        Of::User(id) => {
            event.user_id = Some(id.clone());
            ("user", id.as_str())
        }
        Of::Project(id) => {
            event.project_id = Some(id.clone());
            ("project", id.as_str())
        }
        Of::Domain(id) => {
            event.domain_id = Some(id.clone());
            ("domain", id.as_str())
        }
        Of::Trust(id) => {
            event.trust_id = Some(id.to_owned());
            ("trust", id)
        }
        Of::Role(id) => {
            event.role_id = Some(id.clone());
            ("role", id.as_str())
        }
        Of::AccessToken(id) => {
            event.access_token_id = Some(id.to_owned());
            ("access token", id)
        }
        Of::Consumer(id) => {
            event.consumer_id = Some(id.to_owned());
            ("consumer", id)
        }
    };
    // One event for each thing: a later one covers the earlier.
    event.id = crate::model::made_of(&["revoked", kind, what]);
    match tx.get::<RevocationEvent>(&event.id)? {
        None => crate::directory::insert_once(tx, &mut event),
        Some(mut held) => {
            (held.issued_before, held.revoked_at) = (now, now);
            tx.update(&mut held)
        }
    }
}
