//! Users who come from elsewhere.
//!
//! An access token of an identity provider is verified (outside of any transaction), its claims go through the mapping of
//! the protocol, and what comes out is written as one row: who the user is, which groups and roles are claimed, and until
//! when. Rights from claims are never assignments: `directory` reads the row beside them, so that they end with it, and
//! the newest claims of a user replace all older ones, also for tokens that were issued before.
//!
//! Start reading at [`admitted`], then [`claimed`].

pub mod model;
mod shadow;

use std::sync::Arc;

use ::api::HeaderMap;
use base::{Error, Result, Timestamp, UserId};
use federation::issuer::Issuer;
use federation::jose::{Claims, seconds};
use federation::mapping::{Assertion, Rules};
use store::Tx;

use crate::logic::payload::{Federated, PayloadScope};
use crate::login;
use crate::model::{Domain, User};
use crate::password::{digest, same_digest};
use crate::state::State;
use crate::tokens::{Order, Validated};
use crate::words::unauthorized;
use model::{FederatedUser, IdentityProvider, Mapping, Oidc, Protocol};

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
pub async fn way_in(state: &State, idp: &str, protocol: &str) -> Result<(IdentityProvider, Rules)> {
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

/// Who came through an identity provider.
#[derive(Debug, Clone)]
pub struct Entered {
    /// The user, whose row is written.
    pub user: User,
    /// When tokens got so end at the latest.
    pub expires_at: Timestamp,
    /// The way.
    pub by: Federated,
}

/// Who comes to an identity provider's protocol with these headers: the bearer of one of its access tokens, or a user whom a
/// web server in front of this cloud has let in.
///
/// # Errors
/// `Unauthenticated` where that or what it claims is not good enough (why is in the log), `NotFound` and `Forbidden` as to the
/// provider, `Unavailable` where its keys cannot be had.
pub async fn admitted(state: &State, idp: &str, protocol: &str, headers: &HeaderMap) -> Result<Entered> {
    let given = headers.get("authorization").and_then(|h| h.to_str().ok()).and_then(|h| h.split_once(' '));
    let bearer = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
    let Some(bearer) = bearer else { return admitted_in_front(state, idp, protocol, headers).await };
    let (provider, rules) = way_in(state, idp, protocol).await?;
    let claims = verified(state, &provider, bearer.trim(), state.clock.now()).await;
    let claims = claims.map_err(|error| told(&provider.id, protocol, error))?;
    let said = Said::by_claims(&claims, state.clock.now());
    enter(state, provider, protocol, &rules, said).await
}

/// As [`admitted`], by a web server in front alone.
///
/// # Errors
/// As [`admitted`].
pub async fn admitted_in_front(
    state: &State,
    idp: &str,
    protocol: &str,
    headers: &HeaderMap,
) -> Result<Entered> {
    if !headers.contains_key(FRONT_END) {
        return Err(unauthorized());
    }
    let (provider, rules) = way_in(state, idp, protocol).await?;
    let (id, name) = (provider.id.clone(), protocol.to_owned());
    let found = state.read(move |tx| tx.get::<Protocol>(&Protocol::id_of(&id, &name))).await?;
    let found = found.ok_or_else(|| no_such("federated protocol", protocol))?;
    let said = Said::by_front_end(state, &provider, &found, headers);
    let said = said.map_err(|error| told(idp, protocol, error))?;
    enter(state, provider, protocol, &rules, said).await
}

/// What a caller is told of a login that was refused; why is in the log.
pub fn told(idp: &str, protocol: &str, error: Error) -> Error {
    if error.kind() == base::Kind::Unauthenticated {
        tracing::info!(idp, protocol, reason = error.public(), "a federated login was refused");
        return unauthorized();
    }
    error
}

/// What was said of a user by who may.
#[derive(Debug, Clone)]
pub struct Said {
    /// The attributes.
    pub assertion: Assertion,
    /// When.
    pub at: Timestamp,
    /// Until when it holds.
    pub until: Timestamp,
}

impl Said {
    /// By a token that was verified.
    pub fn by_claims(claims: &Claims, now: Timestamp) -> Self {
        let mut assertion = Assertion::from_claims(claims);
        if let Some(sub) = claims.get("sub").and_then(serde_json::Value::as_str) {
            assertion.add("REMOTE_USER", sub);
        }
        let made = seconds(claims, "iat").ok().flatten().unwrap_or_else(|| now.as_secs());
        let end = seconds(claims, "exp").ok().flatten().unwrap_or(0);
        Said { assertion, at: Timestamp::from_secs(made), until: Timestamp::from_secs(end) }
    }

    /// By a web server in front that has let the user in, in the headers it was told to set. Several values are divided by
    /// `;`, as in Keystone; one that has a `;` itself comes as mod_shib writes it, with a backslash before.
    ///
    /// # Errors
    /// `Unauthenticated` with the reason for the log.
    pub fn by_front_end(
        state: &State,
        provider: &IdentityProvider,
        protocol: &Protocol,
        headers: &HeaderMap,
    ) -> Result<Self> {
        let front = provider.front_end.as_ref();
        let front = front.ok_or_else(|| Error::unauthenticated("no front end speaks for the provider"))?;
        let given = alone(headers, FRONT_END)?.unwrap_or_default();
        let known = state.open_secret(&front.sealed)?;
        if !same_digest(&digest(given), &digest(&known)) {
            return Err(Error::unauthenticated("the front end's secret is wrong"));
        }
        let mut assertion = Assertion::default();
        let mut remote = None;
        for name in &front.attributes {
            let Some(text) = in_front(headers, name)? else { continue };
            if protocol.remote_id_attribute.as_ref() == Some(name) {
                remote = Some(text.to_owned());
            }
            // There is no NUL in a header.
            for value in text.replace("\\;", "\0").split(';').filter(|v| !v.is_empty()) {
                assertion.add(name, &value.replace('\0', ";"));
            }
        }
        // Which of the identity providers behind the front end let the user in.
        if protocol.remote_id_attribute.is_some() && !remote.is_some_and(|r| provider.remote_ids.contains(&r))
        {
            return Err(Error::unauthenticated("the user comes from another identity provider"));
        }
        let now = state.clock.now();
        Ok(Said { assertion, at: now, until: now.plus_secs(LONGEST) })
    }
}

/// The header in which a front end says its secret.
pub const FRONT_END: &str = "x-front-end-secret";

/// The value of a header. One that is there twice has no value: the second may be the front end's, and the first its user's.
///
/// # Errors
/// `Unauthenticated` with the reason for the log.
pub fn alone<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::unauthenticated(format!("{name} is there twice")));
    }
    let text = std::str::from_utf8(value.as_bytes());
    text.map(Some).map_err(|_| Error::unauthenticated(format!("{name} is no UTF-8")))
}

/// What a front end says in a header, if anything. `RequestHeader set NAME "%{VARIABLE}e"` of Apache's mod_headers writes
/// `(null)` for a variable that is not set.
///
/// # Errors
/// As [`alone`].
pub fn in_front<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>> {
    Ok(alone(headers, name)?.filter(|text| !text.is_empty() && *text != "(null)"))
}

/// Writes down of whom something was said.
///
/// # Errors
/// As [`admitted`].
pub async fn enter(
    state: &State,
    provider: IdentityProvider,
    protocol: &str,
    rules: &Rules,
    said: Said,
) -> Result<Entered> {
    let (now, idp) = (state.clock.now(), provider.id.clone());
    let told = |error: Error| told(&idp, protocol, error);
    let mapped = rules.apply(&said.assertion).map_err(told)?;
    let expires_at = said.until.min(now.plus_secs(LONGEST));
    let ttl = provider.authorization_ttl.unwrap_or(0).clamp(0, 525_600) * 60;
    let login = shadow::Login {
        provider,
        protocol: protocol.to_owned(),
        mapped,
        claimed_at: said.at,
        valid_until: expires_at.max(now.plus_secs(ttl)),
    };
    let (user, groups) = shadow::enter(state, login).await.map_err(told)?;
    let by = Federated { idp_id: idp, protocol_id: protocol.to_owned(), group_ids: groups };
    Ok(Entered { user, expires_at, by })
}

/// A token for who came, and for nothing yet: scoped ones are got with it.
///
/// # Errors
/// `Unauthenticated` where more is demanded of the user (why is in the log).
pub async fn unscoped(state: &State, who: Entered) -> Result<(String, Arc<Validated>)> {
    const METHOD: &str = "mapped";
    let id = who.user.id.clone();
    if state.read(move |tx| login::lacking(tx, &id, &[METHOD])).await?.is_some() {
        let error = Error::unauthenticated("the user's multi_factor_auth_rules want another method");
        return Err(told(&who.by.idp_id, &who.by.protocol_id, error));
    }
    let order = Order {
        methods: vec![METHOD],
        scope: PayloadScope::Unscoped,
        expires_at: Some(who.expires_at),
        federated: Some(who.by),
        ..Order::of(who.user.id, who.user.token_generation)
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
    state.issuers.verify(&issuer_of(oidc), &oidc.audiences, bearer, now).await
}

/// An identity provider as its tokens are verified.
pub fn issuer_of(oidc: &Oidc) -> Issuer {
    Issuer { url: oidc.issuer.clone(), jwks_uri: oidc.jwks_uri.clone(), ca: oidc.ca.clone() }
}
