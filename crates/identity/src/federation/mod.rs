//! Users who come from elsewhere.
//!
//! An access token of an identity provider is verified (outside of any transaction), its claims go through the mapping of
//! the protocol, and what comes out is written as one row: who the user is, which groups and roles are claimed, and until
//! when. Rights from claims are never assignments: `directory` reads the row beside them, so that they end with it, and
//! the newest claims of a user replace all older ones, also for tokens that were issued before.
//!
//! Start reading at [`authenticate`], then [`claimed`].

pub mod model;
mod shadow;

use std::sync::Arc;

use base::{Error, Result, Timestamp, UserId};
use federation::issuer::Issuer;
use federation::jose::{Claims, seconds};
use federation::mapping::{Assertion, Rules};
use store::Tx;

use crate::logic::payload::{Federated, PayloadScope};
use crate::model::Domain;
use crate::state::State;
use crate::tokens::{Order, Validated};
use crate::words::unauthorized;
use model::{FederatedUser, IdentityProvider, Mapping, Protocol};

/// Longest a token got by federation lives, in seconds: what an identity provider has taken away is gone after it,
/// whatever its own tokens say.
pub const LONGEST: i64 = 3600;

/// What is claimed of a user now.
///
/// # Errors
/// The store's.
pub fn claimed(tx: &mut Tx<'_>, user: &UserId) -> Result<Option<FederatedUser>> {
    let now = tx.now();
    let Some(claims) = tx.get::<FederatedUser>(user)?.filter(|f| f.valid_until > now) else {
        return Ok(None);
    };
    let provider = tx.get::<IdentityProvider>(&claims.idp_id)?;
    Ok(provider.filter(|p| p.enabled).map(|_| claims))
}

/// When the first of the claims about these users ends.
///
/// # Errors
/// The store's.
pub fn claims_end(tx: &mut Tx<'_>, users: &[UserId]) -> Result<Option<Timestamp>> {
    let mut first = None;
    for user in users {
        if let Some(claims) = claimed(tx, user)? {
            first = Some(first.map_or(claims.valid_until, |f: Timestamp| f.min(claims.valid_until)));
        }
    }
    Ok(first)
}

/// Whether a token that came through an identity provider still may: the provider is there, enabled, and has claimed the
/// user.
///
/// # Errors
/// The store's.
pub fn stands(tx: &mut Tx<'_>, user: &UserId, by: &Federated) -> Result<bool> {
    let provider = tx.get::<IdentityProvider>(&by.idp_id)?;
    if !provider.is_some_and(|p| p.enabled) {
        return Ok(false);
    }
    // A local user whom a mapping names has no row.
    Ok(tx.get::<FederatedUser>(user)?.is_none_or(|f| f.idp_id == by.idp_id))
}

/// 404, in Keystone's words.
pub fn no_such(what: &str, id: &str) -> Error {
    Error::not_found(format!("Could not find {what}: {id}."))
}

/// An identity provider, its protocol and the rules.
///
/// # Errors
/// `NotFound` for what is not there, `Forbidden` where the provider is disabled.
async fn way_in(state: &State, idp: &str, protocol: &str) -> Result<(IdentityProvider, Rules)> {
    let (idp, name) = (idp.to_owned(), protocol.to_owned());
    let (provider, mapping) = state
        .read(move |tx| {
            let provider = tx.get::<IdentityProvider>(&idp)?;
            let provider = provider.ok_or_else(|| no_such("Identity Provider", &idp))?;
            let protocol = tx.get::<Protocol>(&Protocol::id_of(&idp, &name))?;
            let protocol = protocol.ok_or_else(|| no_such("federated protocol", &name))?;
            let domain = tx.get::<Domain>(&provider.domain_id)?;
            if !provider.enabled || !domain.is_some_and(|d| d.enabled) {
                return Err(Error::forbidden(format!("Identity Provider {idp} is disabled.")));
            }
            let mapping = tx.get::<Mapping>(&protocol.mapping_id)?;
            Ok((provider, mapping.ok_or_else(|| no_such("mapping", &protocol.mapping_id))?))
        })
        .await?;
    Ok((provider, Rules::parse(&mapping.rules)?))
}

/// A token for the bearer of an access token of an identity provider: unscoped, with which scoped ones are got.
///
/// # Errors
/// `Unauthenticated` where the token or what it claims is not good enough (why is in the log), `NotFound` and `Forbidden`
/// as to the provider, `Unavailable` where its keys cannot be had.
pub async fn authenticate(
    state: &State,
    idp: &str,
    protocol: &str,
    bearer: &str,
) -> Result<(String, Arc<Validated>)> {
    let (provider, rules) = way_in(state, idp, protocol).await?;
    let told = |error: Error| {
        if error.kind() == base::Kind::Unauthenticated {
            tracing::info!(idp, protocol, reason = error.public(), "a federated login was refused");
            return unauthorized();
        }
        error
    };
    let now = state.clock.now();
    let claims = verified(state, &provider, bearer, now).await.map_err(told)?;
    let end = seconds(&claims, "exp").ok().flatten().unwrap_or(0);
    let made = seconds(&claims, "iat").ok().flatten().unwrap_or_else(|| now.as_secs());
    let mut assertion = Assertion::from_claims(&claims);
    if let Some(sub) = claims.get("sub").and_then(serde_json::Value::as_str) {
        assertion.add("REMOTE_USER", sub);
    }
    let mapped = rules.apply(&assertion).map_err(told)?;
    let expires_at = Timestamp::from_secs(end).min(now.plus_secs(LONGEST));
    let ttl = provider.authorization_ttl.unwrap_or(0).clamp(0, 525_600) * 60;
    let login = shadow::Login {
        provider,
        protocol: protocol.to_owned(),
        mapped,
        claimed_at: Timestamp::from_secs(made),
        valid_until: expires_at.max(now.plus_secs(ttl)),
    };
    let (user, groups) = shadow::enter(state, login).await.map_err(told)?;
    let order = Order {
        methods: vec!["mapped"],
        scope: PayloadScope::Unscoped,
        expires_at: Some(expires_at),
        federated: Some(Federated {
            idp_id: idp.to_owned(),
            protocol_id: protocol.to_owned(),
            group_ids: groups,
        }),
        ..Order::of(user.id, user.token_generation)
    };
    state.tokens.issue(order).await
}

async fn verified(
    state: &State,
    provider: &IdentityProvider,
    bearer: &str,
    now: Timestamp,
) -> Result<Claims> {
    let oidc = provider
        .oidc
        .as_ref()
        .ok_or_else(|| Error::unauthenticated("tokens of the provider are not taken"))?;
    let issuer = Issuer { url: oidc.issuer.clone(), jwks_uri: oidc.jwks_uri.clone(), ca: oidc.ca.clone() };
    state.issuers.verify(&issuer, &oidc.audiences, bearer, now).await
}
