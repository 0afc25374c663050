//! Certificates: what is signed, what is revoked, and how others see it.
//!
//! A certificate has two forms that say the same: a JSON document with an SSH signature (namespace `certificate`), and a
//! verifiable credential. Revocation has two as well: a signed list, and the bitstring list that wallets read.

use std::io::Write;

use attest::{SigningKey, credential, sshsig};
use base::{Error, Result, Timestamp};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value, json};
use time::{Date, OffsetDateTime};

use crate::logic::evaluate::{Rules, ScopeState, VersionState};
use crate::model::Certificate;

/// Namespace of certificates' signatures.
pub const NAMESPACE: &str = "certificate";
/// Namespace of the signature of the list of revoked ones.
pub const CRL_NAMESPACE: &str = "certificate-revocation-list";
/// A list of revoked certificates should not be believed for longer.
const CRL_SECONDS: i64 = 86_400;
/// Entries of a status list: the standard's least, so that a list tells nobody which entry was looked up.
const STATUS_ENTRIES: i64 = 131_072;

/// What a certificate is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Which environment.
    pub subject: String,
    /// Which version of the scope.
    pub version: String,
}

/// The version a certificate may be issued for.
///
/// # Errors
/// `NotFound` for an unknown version, `Conflict` that says why there can be no certificate.
pub fn deserved<'s>(state: &'s ScopeState, wish: &Wish) -> Result<&'s VersionState> {
    let found = state.versions.iter().find(|v| v.name == wish.version);
    let version = found.ok_or_else(|| Error::not_found("version: the scope has no such version now."))?;
    if !matches!(version.validity.as_str(), "effective" | "warn") {
        return Err(Error::conflict(format!("Version {} is {}.", version.name, version.validity)));
    }
    if version.result() == Some(1) {
        return Ok(version);
    }
    let main = version.targets.get("main").map(|(ids, _)| ids.as_slice()).unwrap_or_default();
    let open: Vec<String> = main
        .iter()
        .filter_map(|id| match state.results.get(id).map(|l| l.result) {
            Some(1) => None,
            Some(0) => Some(format!("{id} is inconclusive")),
            Some(_) => Some(format!("{id} failed")),
            None => Some(format!("{id} is missing")),
        })
        .take(10)
        .collect();
    Err(Error::conflict(format!("{} has not passed {}: {}.", wish.subject, version.name, open.join(", "))))
}

/// One year later; of 29 February, 28 February.
fn year_later(at: Timestamp) -> Timestamp {
    let Ok(moment) = OffsetDateTime::from_unix_timestamp(at.as_secs()) else { return at };
    let (date, clock) = (moment.date(), moment.time());
    let next = Date::from_calendar_date(date.year() + 1, date.month(), date.day())
        .or_else(|_| Date::from_calendar_date(date.year() + 1, date.month(), 28));
    next.map_or(at, |d| Timestamp::from_secs(d.with_time(clock).assume_utc().unix_timestamp()))
}

/// Who issues, where, and what.
pub struct Issue<'a> {
    /// The key.
    pub key: &'a SigningKey,
    /// Where the registry is reached.
    pub url: &'a str,
    /// The scope.
    pub rules: &'a Rules,
    /// How the subject stands.
    pub state: &'a ScopeState,
    /// The certificate's id.
    pub id: String,
    /// Its place in the status list.
    pub number: i64,
    /// Now.
    pub now: Timestamp,
}

impl Issue<'_> {
    /// Makes a certificate, good for a year whatever becomes of the version (scs-0004).
    ///
    /// # Errors
    /// See [`deserved`]; `Unavailable` once the status list is full.
    pub fn certificate(self, wish: Wish) -> Result<Certificate> {
        let version = deserved(self.state, &wish)?;
        if self.number >= STATUS_ENTRIES {
            return Err(Error::unavailable("The status list is full."));
        }
        let issued_at = Timestamp::from_secs(self.now.as_secs());
        let expires_at = year_later(issued_at);
        let place = format!("{}certificates/{}", self.url, self.id);
        let page = format!("{}page/detail/{}/{}", self.url, wish.subject, crate::alias(self.rules));
        let main = version.targets.get("main").map(|(ids, _)| ids.as_slice()).unwrap_or_default();
        let evidence: Map<String, Value> = main
            .iter()
            .filter_map(|id| self.state.results.get(id).map(|l| (id.clone(), json!(l.report))))
            .collect();
        let scope = json!({
            "name": self.rules.scope.name, "uuid": self.rules.scope.uuid, "version": wish.version,
        });
        let document = json!({
            "type": "certificate",
            "id": self.id,
            "url": place,
            "issuer": self.key.did(),
            "subject": wish.subject,
            "scope": scope,
            "issued_at": issued_at.iso_seconds(),
            "expires_at": expires_at.iso_seconds(),
            "status_page": page,
            "revocation_list": format!("{}crl", self.url),
            "evidence": evidence,
        });
        let document = format!("{document:#}\n");
        let list = format!("{}credentials/status", self.url);
        let claims = json!({
            "id": format!("urn:uuid:{}", self.id),
            "type": ["VerifiableCredential", "ComplianceCertificate"],
            "validFrom": issued_at.iso_seconds(),
            "validUntil": expires_at.iso_seconds(),
            "credentialStatus": {
                "id": format!("{list}#{}", self.number),
                "type": "BitstringStatusListEntry",
                "statusPurpose": "revocation",
                "statusListIndex": self.number.to_string(),
                "statusListCredential": list,
            },
            "credentialSubject": {
                "type": "OperatorEnvironment",
                "name": wish.subject,
                "statusPage": page,
                "scope": scope,
                "certificate": place,
                "evidence": evidence,
            },
        });
        let claims = claims.as_object().cloned().unwrap_or_default();
        Ok(Certificate {
            id: self.id,
            meta: Default::default(),
            number: self.number,
            subject: wish.subject,
            scope: self.rules.scope.uuid.clone(),
            version: wish.version,
            issued_at,
            expires_at,
            signature: sshsig::sign(self.key, NAMESPACE, document.as_bytes()),
            document,
            credential: credential::sign(self.key, claims),
            revoked_at: None,
            reason: None,
        })
    }
}

/// How a certificate stands.
pub fn standing(certificate: &Certificate, now: Timestamp) -> &'static str {
    match certificate.revoked_at {
        Some(_) => "revoked",
        None if now >= certificate.expires_at => "expired",
        None => "valid",
    }
}

/// The list of revoked certificates, the same for an hour or until one more is revoked.
pub fn revoked(key: &SigningKey, certificates: &[Certificate], now: Timestamp) -> String {
    let hour = now.as_secs().div_euclid(3600) * 3600;
    let newest = certificates.iter().filter_map(|c| c.revoked_at).max().unwrap_or_default();
    let this = Timestamp::from_secs(hour).max(newest);
    let mut list: Vec<&Certificate> = certificates.iter().filter(|c| c.revoked_at.is_some()).collect();
    list.sort_by_key(|c| (c.revoked_at, c.id.clone()));
    let entry = |c: &&Certificate| {
        json!({
            "id": c.id, "subject": c.subject, "scope": c.scope, "version": c.version,
            "revoked_at": c.revoked_at.map(Timestamp::iso_seconds), "reason": c.reason,
        })
    };
    let document = json!({
        "type": "certificate-revocation-list",
        "issuer": key.did(),
        "this_update": this.iso_seconds(),
        "next_update": this.plus_secs(CRL_SECONDS).iso_seconds(),
        "revoked": list.iter().map(entry).collect::<Vec<_>>(),
    });
    format!("{document:#}\n")
}

/// The status list as a credential: the bit of each revoked certificate is 1.
///
/// # Errors
/// `Internal` where it cannot be packed.
pub fn status_list(key: &SigningKey, url: &str, revoked: &[i64], now: Timestamp) -> Result<String> {
    let bytes = usize::try_from(STATUS_ENTRIES / 8).unwrap_or_default();
    let mut bits = vec![0u8; bytes];
    for number in revoked {
        let at = usize::try_from(number / 8).unwrap_or(usize::MAX);
        if let Some(byte) = bits.get_mut(at) {
            // Entry 0 is the leftmost bit.
            *byte |= 0x80 >> (number % 8);
        }
    }
    let mut packer = GzBuilder::new().write(Vec::new(), Compression::default());
    packer.write_all(&bits).map_err(Error::internal)?;
    let packed = packer.finish().map_err(Error::internal)?;
    let list = format!("{url}credentials/status");
    let claims = json!({
        "id": list,
        "type": ["VerifiableCredential", "BitstringStatusListCredential"],
        "validFrom": now.iso_seconds(),
        "validUntil": now.plus_secs(CRL_SECONDS).iso_seconds(),
        "credentialSubject": {
            "id": format!("{list}#list"),
            "type": "BitstringStatusList",
            "statusPurpose": "revocation",
            "encodedList": format!("u{}", BASE64_URL_SAFE_NO_PAD.encode(packed)),
        },
    });
    Ok(credential::sign(key, claims.as_object().cloned().unwrap_or_default()))
}
