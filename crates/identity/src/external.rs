//! Users whom a web server in front of this cloud has let in by its own means, as it says beside each request (Keystone's
//! method `external`, where the web server is in the same process and sets `REMOTE_USER`).
//!
//! Nobody is believed unless the operator named the header and gave the front end a secret, and then only where a request asks
//! for this method: a header alone never makes a user, and a secret never makes one of a header that is there twice.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use ::api::HeaderMap;
use base::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::federation::{FRONT_END, alone, in_front};
use crate::password::{digest, same_digest};

/// What an operator sets in `[identity.external]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct External {
    /// The header in which the front end says the user's name (`REMOTE_USER`); `None` = nobody comes so.
    pub user_header: Option<String>,
    /// The header in which it says the name of the user's domain (`REMOTE_DOMAIN`); without it, or where it is not sent,
    /// users are of the default domain.
    pub domain_header: Option<String>,
    /// File with the secret that the front end sends in `X-Front-End-Secret`, readable by the owner alone.
    pub secret_file: Option<PathBuf>,
}

/// A front end that is believed.
pub struct FrontEnd {
    user: String,
    domain: Option<String>,
    /// SHA-256 of its secret.
    secret: String,
}

impl std::fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrontEnd({})", self.user)
    }
}

fn wrong(setting: &str, why: &str) -> Error {
    Error::bad_request(format!("identity.external.{setting}: {why}"))
}

/// The name of a header that means nothing else.
fn header(setting: &str, name: &str) -> Result<String> {
    let taken =
        ["authorization", "cookie", "host", "forwarded", "x-auth-token", "x-subject-token", FRONT_END];
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let name = name.to_ascii_lowercase();
    if !(1..=64).contains(&name.len()) || !name.bytes().all(plain) || taken.contains(&name.as_str()) {
        return Err(wrong(setting, "it must be the name of a header of its own"));
    }
    Ok(name)
}

impl FrontEnd {
    /// What the settings make; `None` where they name no header.
    ///
    /// # Errors
    /// `BadRequest` naming the setting that is wrong.
    pub fn open(settings: &External) -> Result<Option<Self>> {
        let Some(user) = &settings.user_header else {
            return match settings.domain_header.is_some() || settings.secret_file.is_some() {
                true => Err(wrong("user_header", "it is missing")),
                false => Ok(None),
            };
        };
        let user = header("user_header", user)?;
        let domain = settings.domain_header.as_ref().map(|d| header("domain_header", d)).transpose()?;
        if domain.as_ref() == Some(&user) {
            return Err(wrong("domain_header", "it must be another than user_header"));
        }
        let file = settings.secret_file.as_ref();
        let file = file.ok_or_else(|| wrong("secret_file", "it is missing, and user_header is set"))?;
        let told = |why: &str| wrong("secret_file", &format!("{}: {why}", file.display()));
        let mode = fs::metadata(file).map_err(|e| told(&e.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(told("must not be open to others (chmod 600)"));
        }
        let secret = fs::read_to_string(file).map_err(|e| told(&e.to_string()))?;
        let secret = secret.trim();
        if !(32..=255).contains(&secret.len()) || !secret.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(told("must hold 32 to 255 visible characters of ASCII"));
        }
        Ok(Some(FrontEnd { user, domain, secret: digest(secret) }))
    }

    /// Name and domain of the user whom the front end has let in.
    ///
    /// # Errors
    /// `Unauthenticated` with the reason for the log.
    pub fn user(&self, headers: &HeaderMap) -> Result<(String, Option<String>)> {
        let given = alone(headers, FRONT_END)?;
        if !same_digest(&digest(given.unwrap_or_default()), &self.secret) {
            return Err(Error::unauthenticated("the front end's secret is wrong"));
        }
        let said = |name: &str| Ok::<_, Error>(in_front(headers, name)?.map(str::to_owned));
        let user = said(&self.user)?.filter(|name| name.len() <= 255);
        let user = user.ok_or_else(|| Error::unauthenticated("the front end let nobody in"))?;
        let domain = self.domain.as_deref().map(said).transpose()?.flatten();
        Ok((user, domain))
    }
}
