//! Codes on their way to tokens: authorization codes (with PKCE), device codes, refresh tokens. Each is good for one
//! client, once, and for a while; only its SHA-256 is kept.

use base::{Entropy, Result, Timestamp, UserId};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use store::{Query, Tx};

use crate::directory;
use crate::federation::model::OidcGrant;
use crate::password::{digest, same_digest};

/// Seconds an authorization code is good for.
pub const CODE: i64 = 60;
/// Seconds a device code is good for.
pub const DEVICE: i64 = 600;
/// Seconds a refresh token is good for, counted from its last use.
pub const REFRESH: i64 = 12 * 3600;
/// Seconds between two questions of a device.
pub const INTERVAL: i64 = 5;

/// Letters of a user code: none that make words, none that look alike.
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// Why a code is not taken, in OAuth's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is none, or not this client's, or over.
    Invalid,
    /// The user has not logged in yet.
    Pending,
    /// Asked again too soon.
    SlowDown,
    /// Its time is up.
    Expired,
    /// The user said no.
    Denied,
}

/// A new code.
pub fn secret(entropy: &Entropy) -> String {
    let mut bytes = [0; 32];
    entropy.fill(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A new code for a person to type: `BCDF-GHJK`.
pub fn user_code(entropy: &Entropy) -> String {
    let letter = || {
        let at = usize::try_from(entropy.below(20)).unwrap_or(0);
        char::from(LETTERS.get(at).copied().unwrap_or(b'B'))
    };
    let half = || (0..4).map(|_| letter()).collect::<String>();
    format!("{}-{}", half(), half())
}

/// A user code as it is kept: capital letters, a dash in the middle.
pub fn normal(typed: &str) -> String {
    let letters: String = typed.chars().filter(char::is_ascii_alphabetic).take(8).collect();
    let letters = letters.to_ascii_uppercase();
    match letters.split_at_checked(4) {
        Some((a, b)) => format!("{a}-{b}"),
        None => letters,
    }
}

/// Whether a verifier is that of a PKCE challenge (S256).
pub fn verifies(challenge: &str, verifier: &str) -> bool {
    let made = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    (43..=128).contains(&verifier.len()) && same_digest(challenge, &made)
}

impl OidcGrant {
    /// A grant of this kind whose code is `secret`.
    pub fn new(kind: &str, secret: &str, client_id: &str, scope: &str, expires_at: Timestamp) -> Self {
        let id = digest(secret);
        OidcGrant {
            family: id.clone(),
            id,
            meta: store::Meta::default(),
            kind: kind.to_owned(),
            client_id: client_id.to_owned(),
            user_id: None,
            generation: 0,
            auth_time: None,
            scope: scope.to_owned(),
            nonce: None,
            challenge: None,
            redirect_uri: None,
            user_code: None,
            over: false,
            polled_at: None,
            expires_at,
        }
    }

    /// Notes who logged in.
    #[must_use]
    pub fn by(mut self, user: &UserId, generation: u64, at: Timestamp) -> Self {
        (self.user_id, self.generation, self.auth_time) = (Some(user.clone()), generation, Some(at));
        self
    }
}

/// Uses a code. One that is used twice ends all that came from it: it was stolen, and nobody knows by whom.
///
/// # Errors
/// The store's.
pub fn take(
    tx: &mut Tx<'_>,
    kind: &str,
    secret: &str,
    client_id: &str,
) -> Result<std::result::Result<OidcGrant, Refused>> {
    let found = tx.get::<OidcGrant>(&digest(secret))?;
    let Some(mut grant) = found.filter(|g| g.kind == kind && g.client_id == client_id) else {
        return Ok(Err(Refused::Invalid));
    };
    let now = tx.now();
    if grant.expires_at <= now {
        return Ok(Err(if kind == "device" { Refused::Expired } else { Refused::Invalid }));
    }
    if grant.over {
        let denied = kind == "device" && grant.user_id.is_none();
        tx.delete_where::<OidcGrant>(&Query::new().eq("family", &grant.family).ne("id", &grant.id))?;
        return Ok(Err(if denied { Refused::Denied } else { Refused::Invalid }));
    }
    if grant.user_id.is_none() {
        let soon = grant.polled_at.is_some_and(|at| at.plus_secs(INTERVAL - 1) > now);
        grant.polled_at = Some(now);
        tx.update(&mut grant)?;
        return Ok(Err(if soon { Refused::SlowDown } else { Refused::Pending }));
    }
    grant.over = true;
    tx.update(&mut grant)?;
    Ok(Ok(grant))
}

/// The device that waits under a user code.
///
/// # Errors
/// The store's.
pub fn waiting(tx: &mut Tx<'_>, user_code: &str) -> Result<Option<OidcGrant>> {
    let now = tx.now();
    let found = tx.first::<OidcGrant>(&Query::new().eq("user_code", user_code))?;
    Ok(found.filter(|g| !g.over && g.user_id.is_none() && g.expires_at > now))
}

/// Keeps a new grant.
///
/// # Errors
/// The store's.
pub fn keep(tx: &mut Tx<'_>, grant: &OidcGrant) -> Result<()> {
    directory::insert_once(tx, &mut grant.clone())
}

/// Forgets what has ended.
///
/// # Errors
/// The store's.
pub fn forget(tx: &mut Tx<'_>) -> Result<u64> {
    let now = tx.now();
    tx.delete_where::<OidcGrant>(&Query::new().lt("expires_at", now))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7636_verifies() {
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        assert!(verifies(challenge, "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"));
        assert!(!verifies(challenge, "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXl"));
        assert!(!verifies(&URL_SAFE_NO_PAD.encode(Sha256::digest(b"short")), "short"));
    }

    #[test]
    fn user_codes_are_read_as_people_type_them() {
        let code = user_code(&Entropy::seeded(1));
        assert_eq!(code.len(), 9);
        for typed in [code.to_lowercase(), code.replace('-', " "), code.replace('-', ""), format!(" {code} ")]
        {
            assert_eq!(normal(&typed), code);
        }
    }
}
