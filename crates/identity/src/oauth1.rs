//! OAuth 1.0a: programs (consumers) that users let act for them in one project, with some of their roles.
//!
//! A consumer asks (request token), a user says yes and tells it a verifier, the consumer gets an access token for both,
//! with which it signs its logins. Every request is signed with the secrets, taken within ten minutes of its timestamp
//! and only once: unlike in Keystone, one that was overheard is worth nothing.

use base::{Error, ProjectId, Result, Timestamp, UserId};
use store::{Query, Tx};

use crate::directory;
use crate::logic::oauth1::Signed;
use crate::model::{AccessToken, Consumer, Domain, RequestToken, SpentNonce, User, made_of};
use crate::password::digest;
use crate::revocations::{self, Of};
use crate::state::State;
use crate::words::{no_access_token, unauthorized};

/// Seconds by which a timestamp may be off.
const OFF: i64 = 600;

fn refused(why: &str) -> Error {
    Error::unauthenticated(why)
}

impl State {
    /// Whether `signed` was signed with these sealed secrets, lately.
    ///
    /// # Errors
    /// `Unauthenticated`; `Internal` where a secret cannot be opened.
    pub(crate) fn check_signature(
        &self,
        signed: &Signed,
        consumer: &Consumer,
        token: Option<&str>,
    ) -> Result<()> {
        let client = self.open_secret(&consumer.sealed)?;
        let token = token.map_or(Ok(String::new()), |sealed| self.open_secret(sealed))?;
        if !signed.verifies(&client, &token) {
            return Err(refused("Invalid signature"));
        }
        let (at, now) = (signed.timestamp().unwrap_or(0), self.clock.now().as_secs());
        if at.abs_diff(now) > OFF.unsigned_abs() {
            return Err(refused("The timestamp of the signature is too far from the present"));
        }
        Ok(())
    }
}

/// Takes note of a request, in the transaction that answers it.
///
/// # Errors
/// `Unauthenticated` where it was seen before.
pub(crate) fn spend(tx: &mut Tx<'_>, signed: &Signed) -> Result<()> {
    let of = |name: &str| signed.get(name).unwrap_or_default();
    let nonce = signed.get("oauth_nonce").ok_or_else(|| refused("The signature has no nonce"))?;
    let at = signed.timestamp().unwrap_or(0);
    let parts = [of("oauth_consumer_key"), of("oauth_token"), of("oauth_timestamp"), nonce].map(digest);
    let id = made_of(&["nonce", &parts[0], &parts[1], &parts[2], &parts[3]]);
    if tx.get::<SpentNonce>(&id)?.is_some() {
        return Err(refused("The request was sent before"));
    }
    let expires_at = Timestamp::from_secs(at.saturating_add(OFF + 1));
    directory::insert_once(tx, &mut SpentNonce { id, meta: store::Meta::default(), expires_at })
}

/// The user an access token acts for, and the token, where the request is signed with it.
///
/// # Errors
/// `BadRequest` where no access token is named, `NotFound` where it is none, `Unauthenticated`.
pub(crate) async fn prove(state: &State, signed: &Signed) -> Result<(User, AccessToken)> {
    let id = signed.get("oauth_token").ok_or_else(|| crate::logic::body::missing("oauth_token"))?.to_owned();
    let found = state
        .read(move |tx| {
            let token = tx.get::<AccessToken>(&id)?.ok_or_else(|| no_access_token(&id))?;
            let consumer = tx.get::<Consumer>(&token.consumer_id)?.ok_or_else(unauthorized)?;
            let user = tx.get::<User>(&token.authorizing_user_id)?.filter(|u| u.enabled);
            let user = user.ok_or_else(unauthorized)?;
            tx.get::<Domain>(&user.domain_id)?.filter(|d| d.enabled).ok_or_else(unauthorized)?;
            Ok((user, token, consumer))
        })
        .await?;
    let (user, token, consumer) = found;
    if signed.get("oauth_consumer_key") != Some(&consumer.id) {
        return Err(refused("Could not validate the access token"));
    }
    if token.expires_at.is_some_and(|end| end <= state.clock.now()) {
        return Err(refused("Access token is expired"));
    }
    state.check_signature(signed, &consumer, Some(&token.sealed))?;
    let seen = signed.clone();
    state.write(move |tx| spend(tx, &seen)).await?;
    Ok((user, token))
}

/// Ends an access token, and the tokens got with it.
///
/// # Errors
/// The store's.
pub(crate) fn end(tx: &mut Tx<'_>, token: &AccessToken) -> Result<()> {
    tx.delete::<AccessToken>(&token.id)?;
    revocations::note(tx, Of::AccessToken(&token.id))?;
    directory::touch_user(tx, &token.authorizing_user_id)
}

fn end_all(tx: &mut Tx<'_>, which: &Query) -> Result<()> {
    tx.delete_where::<RequestToken>(which)?;
    tx.list::<AccessToken>(which)?.iter().try_for_each(|token| end(tx, token))
}

/// Ends what a user has given who is deleted.
///
/// # Errors
/// The store's.
pub(crate) fn of_user_end(tx: &mut Tx<'_>, user: &UserId) -> Result<()> {
    end_all(tx, &Query::new().eq("authorizing_user_id", user))
}

/// Ends what was given for a project that is deleted.
///
/// # Errors
/// The store's.
pub(crate) fn of_project_end(tx: &mut Tx<'_>, project: &ProjectId) -> Result<()> {
    end_all(tx, &Query::new().eq("project_id", project))
}

/// Ends what a consumer has got that is deleted.
///
/// # Errors
/// The store's.
pub(crate) fn of_consumer_end(tx: &mut Tx<'_>, consumer: &str) -> Result<()> {
    revocations::note(tx, Of::Consumer(consumer))?;
    end_all(tx, &Query::new().eq("consumer_id", consumer))
}

/// Forgets what is over.
///
/// # Errors
/// The store's.
pub(crate) fn forget(tx: &mut Tx<'_>) -> Result<()> {
    let over = Query::new().lt("expires_at", tx.now());
    tx.delete_where::<SpentNonce>(&over)?;
    tx.delete_where::<RequestToken>(&over)?;
    Ok(())
}
