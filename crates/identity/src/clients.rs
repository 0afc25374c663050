//! Clients that prove who they are by a certificate: OAuth 2.0 `tls_client_auth` (RFC 8705, section 2.1), as Keystone has it.
//!
//! The TLS handshake has proved that the caller holds the certificate and that an authority of the operator's
//! (`[identity.oauth2] client_ca`) signed it. Whose it is, the operator's mapping says: the names in subject and issuer go in,
//! what comes out must be what the tables say of the user whom the caller claims to be. The token is for that user's default
//! project and bound to the certificate.

use std::net::IpAddr;
use std::sync::Arc;

use ::api::Certificate;
use base::{Error, ProjectId, Result, UserId};
use federation::mapping::{Assertion, MappedUser, Rules};
use serde_json::Value;

use crate::federation::model::Mapping;
use crate::logic::certificate::{attributes, thumbprint};
use crate::logic::payload::{BY_CERTIFICATE, PayloadScope};
use crate::login;
use crate::model::{Domain, User};
use crate::state::State;
use crate::tokens::{Order, Validated};
use crate::words::unauthorized;

/// A token for the user `client`, bound to the certificate of the connection.
///
/// # Errors
/// `Unauthenticated` where the certificate is not that user's (why is in the log), `TooManyRequests`.
pub async fn authenticate(
    state: &State,
    from: Option<IpAddr>,
    client: &UserId,
    certificate: &Certificate,
) -> Result<(String, Arc<Validated>)> {
    let now = state.clock.now();
    // Nobody guesses a certificate: failures count for the address only.
    state.throttle.admit(from, "", now)?;
    let made = token(state, client, &certificate.0).await;
    made.map_err(|error| {
        if error.kind() != base::Kind::Unauthenticated {
            return error;
        }
        state.throttle.failed(from, "", now);
        tracing::info!(client = ?client.as_str(), reason = error.public(), "a client certificate was refused");
        unauthorized()
    })
}

async fn token(state: &State, client: &UserId, der: &[u8]) -> Result<(String, Arc<Validated>)> {
    let Client { user, domain, project, rules } = known(state, client).await?;
    let names = attributes(der).ok_or_else(|| refused("the certificate cannot be read"))?;
    let mut assertion = Assertion::default();
    for (name, value) in &names {
        assertion.add(name, value);
    }
    let rules = Rules::parse(&rules).map_err(|e| refused(e.public()))?;
    fits(&rules.apply(&assertion)?.user, &user, &domain)?;
    let order = Order {
        methods: vec![BY_CERTIFICATE],
        scope: PayloadScope::Project(project.as_str().to_owned()),
        thumbprint: Some(thumbprint(der)),
        ..Order::of(user.id, user.token_generation)
    };
    state.tokens.issue(order).await
}

/// What is known of a client.
struct Client {
    user: User,
    domain: Domain,
    project: ProjectId,
    rules: Value,
}

async fn known(state: &State, client: &UserId) -> Result<Client> {
    let (id, mapping) = (client.clone(), state.config.operator.oauth2.mapping.clone());
    state
        .read(move |tx| {
            let user = tx.get::<User>(&id)?.filter(|u| u.enabled);
            let user = user.ok_or_else(|| refused("there is no such user, or it is disabled"))?;
            let domain = tx.get::<Domain>(&user.domain_id)?.filter(|d| d.enabled);
            let domain = domain.ok_or_else(|| refused("the user's domain is disabled"))?;
            let project = user.default_project_id.clone();
            let project = project.ok_or_else(|| refused("the user has no default project"))?;
            // Whoever has a second factor demanded of them has none here.
            if login::lacking(tx, &user.id, &[BY_CERTIFICATE])?.is_some() {
                return Err(refused("the user's multi_factor_auth_rules want another method"));
            }
            let rules = tx.get::<Mapping>(&mapping)?.map(|m| m.rules);
            let rules = rules.ok_or_else(|| refused("there is no mapping for certificates"))?;
            Ok(Client { user, domain, project, rules })
        })
        .await
}

/// What the mapping says must be so; what it does not say is not asked, but it must name the user or the user's id.
fn fits(mapped: &MappedUser, user: &User, domain: &Domain) -> Result<()> {
    let email = user.extra.get("email").and_then(Value::as_str);
    let pairs = [
        ("name", &mapped.name, Some(user.name.as_str())),
        ("id", &mapped.id, Some(user.id.as_str())),
        ("email", &mapped.email, email),
        ("domain id", &mapped.domain.id, Some(domain.id.as_str())),
        ("domain name", &mapped.domain.name, Some(domain.name.as_str())),
    ];
    match pairs.iter().find(|(_, said, is)| said.as_deref().is_some_and(|said| Some(said) != *is)) {
        Some((what, ..)) => Err(refused(&format!("the certificate is for another {what}"))),
        None => Ok(()),
    }
}

fn refused(why: &str) -> Error {
    Error::unauthenticated(why)
}
