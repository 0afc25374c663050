//! What this cloud needs to vouch for its users to another one in SAML (Keystone to Keystone): `[identity.saml]`, the key and
//! its certificate. Documents are written by `logic::saml`; none is ever read.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base::{Entropy, Error, Result, Timestamp};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pemfile::Item;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::logic::saml::{About, Frame, Signer, Statement, envelope, metadata, response};

/// Longest an assertion may be good, in seconds.
const LONGEST: i64 = 86_400;
/// Kinds of people who can be asked (saml-metadata-2.0-os, section 2.3.2.2).
const CONTACTS: [&str; 5] = ["technical", "support", "administrative", "billing", "other"];

/// What an operator sets in `[identity.saml]`; names and meanings are those of Keystone's `[saml]`. Nothing is said in SAML
/// without an `idp_entity_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Saml {
    /// File with the certificate (PEM) by which others verify what is said.
    pub certfile: Option<PathBuf>,
    /// File with the private key of that certificate (PEM, RSA), readable by the owner alone.
    pub keyfile: Option<PathBuf>,
    /// The name of this cloud as an identity provider: a URI.
    pub idp_entity_id: Option<String>,
    /// Where it takes requests; told in the metadata, which is not served without it.
    pub idp_sso_endpoint: Option<String>,
    /// Language of what people read.
    pub idp_lang: String,
    /// Name of the organization; told with the two below, or not at all.
    pub idp_organization_name: Option<String>,
    /// The organization's name as it is displayed.
    pub idp_organization_display_name: Option<String>,
    /// The organization's URL.
    pub idp_organization_url: Option<String>,
    /// Company of who can be asked; told with the four below, or not at all.
    pub idp_contact_company: Option<String>,
    /// Given name of who can be asked.
    pub idp_contact_name: Option<String>,
    /// Surname of who can be asked.
    pub idp_contact_surname: Option<String>,
    /// Email address of who can be asked.
    pub idp_contact_email: Option<String>,
    /// Telephone of who can be asked.
    pub idp_contact_telephone: Option<String>,
    /// What kind of person that is: `technical`, `support`, `administrative`, `billing` or `other`.
    pub idp_contact_type: String,
    /// Seconds an assertion is good.
    pub assertion_expiration_time: i64,
    /// What the relay state begins with for a service provider that says no other.
    pub relay_state_prefix: String,
}

impl Default for Saml {
    fn default() -> Self {
        Saml {
            certfile: None,
            keyfile: None,
            idp_entity_id: None,
            idp_sso_endpoint: None,
            idp_lang: "en".into(),
            idp_organization_name: None,
            idp_organization_display_name: None,
            idp_organization_url: None,
            idp_contact_company: None,
            idp_contact_name: None,
            idp_contact_surname: None,
            idp_contact_email: None,
            idp_contact_telephone: None,
            idp_contact_type: "other".into(),
            assertion_expiration_time: 3600,
            relay_state_prefix: "ss:mem:".into(),
        }
    }
}

/// This cloud as an identity provider.
pub struct Provider {
    settings: Saml,
    /// `idp_entity_id`.
    pub name: String,
    key: RsaKeyPair,
    certificate: Vec<u8>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Provider({})", self.name)
    }
}

fn wrong(setting: &str, why: &str) -> Error {
    Error::bad_request(format!("identity.saml.{setting}: {why}"))
}

fn read(setting: &str, file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|e| wrong(setting, &format!("{}: {e}", file.display())))
}

/// An absolute URI that can stand in a document and a header.
fn uri(setting: &str, text: &str) -> Result<()> {
    let scheme = text.split_once(':').is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
    match scheme && text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(()),
        false => Err(wrong(setting, "it must be a URI of at most 1024 characters")),
    }
}

fn certificate(file: &Path) -> Result<Vec<u8>> {
    const SETTING: &str = "certfile";
    let text = read(SETTING, file)?;
    match rustls_pemfile::read_one_from_slice(text.as_bytes()) {
        Ok(Some((Item::X509Certificate(der), _))) => Ok(der.to_vec()),
        _ => Err(wrong(SETTING, &format!("{}: it must begin with a certificate in PEM", file.display()))),
    }
}

fn key(file: &Path) -> Result<RsaKeyPair> {
    const SETTING: &str = "keyfile";
    let told = |why: &str| wrong(SETTING, &format!("{}: {why}", file.display()));
    let text = read(SETTING, file)?;
    let mode = fs::metadata(file).map_err(|e| told(&e.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(told("must not be open to others (chmod 600)"));
    }
    let pair = match rustls_pemfile::read_one_from_slice(text.as_bytes()) {
        Ok(Some((Item::Pkcs8Key(der), _))) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        Ok(Some((Item::Pkcs1Key(der), _))) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        _ => return Err(told("it must begin with a private key in PEM, without a password")),
    };
    pair.map_err(|e| told(&format!("it must be an RSA key of 2048 to 4096 bits ({e})")))
}

impl Provider {
    /// What the settings make; `None` where they name no entity.
    ///
    /// # Errors
    /// `BadRequest` naming the setting that is wrong.
    pub fn open(settings: &Saml) -> Result<Option<Self>> {
        let Some(name) = &settings.idp_entity_id else {
            return match settings.certfile.as_ref().or(settings.keyfile.as_ref()) {
                Some(_) => Err(wrong("idp_entity_id", "it is missing")),
                None => Ok(None),
            };
        };
        uri("idp_entity_id", name)?;
        if let Some(place) = &settings.idp_sso_endpoint {
            uri("idp_sso_endpoint", place)?;
        }
        if !(1..=LONGEST).contains(&settings.assertion_expiration_time) {
            return Err(wrong("assertion_expiration_time", &format!("it must be 1 to {LONGEST} seconds")));
        }
        if !CONTACTS.contains(&settings.idp_contact_type.as_str()) {
            return Err(wrong("idp_contact_type", &format!("it must be one of {}", CONTACTS.join(", "))));
        }
        let file = |setting: &str, file: &Option<PathBuf>| {
            file.clone().ok_or_else(|| wrong(setting, "it is missing, and idp_entity_id is set"))
        };
        let certificate = certificate(&file("certfile", &settings.certfile)?)?;
        let key = key(&file("keyfile", &settings.keyfile)?)?;
        let (_, read) = X509Certificate::from_der(&certificate)
            .map_err(|_| wrong("certfile", "the certificate cannot be read"))?;
        if *read.public_key().subject_public_key.data != *key.public().as_ref() {
            return Err(wrong("certfile", "the certificate is not that of the key in keyfile"));
        }
        let provider = Provider { settings: settings.clone(), name: name.clone(), key, certificate };
        // What cannot be written shall be known now.
        provider.metadata().transpose()?;
        Ok(Some(provider))
    }

    fn frame(&self, entropy: &Entropy, now: Timestamp) -> Frame {
        let id = || format!("_{}", entropy.uuid().simple());
        let until = now.plus_secs(self.settings.assertion_expiration_time);
        Frame { response: id(), assertion: id(), session: id(), now, until }
    }

    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut signature = vec![0; self.key.public().modulus_len()];
        let signed = self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), bytes, &mut signature);
        signed.map_err(|_| Error::internal("the SAML key does not sign"))?;
        Ok(signature)
    }

    /// A response with what is said of a user.
    ///
    /// # Errors
    /// `BadRequest` where a name has a character that XML cannot carry.
    pub fn response(&self, what: &Statement<'_>, entropy: &Entropy, now: Timestamp) -> Result<String> {
        let sign = |bytes: &[u8]| self.sign(bytes);
        response(what, &self.frame(entropy, now), &Signer { certificate: &self.certificate, sign: &sign })
    }

    /// The same in an envelope whose relay state begins with `prefix`.
    ///
    /// # Errors
    /// As [`Provider::response`].
    pub fn envelope(
        &self,
        what: &Statement<'_>,
        prefix: &str,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<String> {
        let sign = |bytes: &[u8]| self.sign(bytes);
        let relay_state = format!("{prefix}{}", entropy.uuid().simple());
        let signer = Signer { certificate: &self.certificate, sign: &sign };
        envelope(what, &self.frame(entropy, now), &relay_state, &signer)
    }

    /// What this cloud says of itself; `None` without an `idp_sso_endpoint`.
    pub fn metadata(&self) -> Option<Result<String>> {
        let own = &self.settings;
        let organization = [
            own.idp_organization_name.as_deref(),
            own.idp_organization_display_name.as_deref(),
            own.idp_organization_url.as_deref(),
        ];
        let contact = [
            own.idp_contact_company.as_deref(),
            own.idp_contact_name.as_deref(),
            own.idp_contact_surname.as_deref(),
            own.idp_contact_email.as_deref(),
            own.idp_contact_telephone.as_deref(),
            Some(own.idp_contact_type.as_str()),
        ];
        let about = About {
            entity_id: &self.name,
            sso_endpoint: own.idp_sso_endpoint.as_deref()?,
            lang: &own.idp_lang,
            organization: all(organization),
            contact: all(contact),
        };
        Some(metadata(&about, &self.certificate))
    }
}

/// All of them, or nothing.
fn all<const N: usize>(texts: [Option<&str>; N]) -> Option<[&str; N]> {
    texts.iter().all(Option::is_some).then(|| texts.map(Option::unwrap_or_default))
}
