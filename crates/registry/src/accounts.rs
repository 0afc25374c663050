//! Who may do what: the bootstrap file, as the compliance monitor has it.
//!
//! Accounts live in this file alone and are replaced whole when it is read again; the database holds none, so that a
//! password hash is never in a dump of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use attest::sshsig::PublicKey;
use base::{Entropy, Error, Result};
use serde::Deserialize;

/// May see what is not public of any subject.
pub const READ_ANY: u8 = 1;
/// May report for subjects that name it as their delegate.
pub const APPEND_ANY: u8 = 2;
/// May issue and revoke certificates.
pub const ADMIN: u8 = 4;
/// May approve results.
pub const APPROVE: u8 = 8;

/// A hash of nothing that anybody knows: unknown accounts take as long to refuse as known ones.
const NOBODY: &str =
    "$argon2id$v=19$m=65536,t=3,p=4$bm9ib2R5LW5vYm9keQ$pyGjj1w5rmhsUSLqhBo4F4UQv9lqjPDjfZ0XkpzGk0E";
/// A hash may not ask for more memory (KiB), nor for more passes, than this: it would be spent on every login.
const MOST_MEMORY: u32 = 256 << 10;
const MOST_PASSES: u32 = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    accounts: Vec<Entry>,
    /// Upstream reads it and does nothing with it.
    #[serde(default)]
    #[expect(dead_code, reason = "taken for the sake of files that have it")]
    subjects: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    subject: String,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    api_keys: Vec<String>,
    #[serde(default)]
    keys: Vec<KeyEntry>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    delegates: Vec<String>,
    #[serde(default)]
    page: Option<About>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    public_key: String,
    public_key_type: String,
    public_key_name: String,
}

/// What the public table says of a subject, or of a group where its first member says it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct About {
    /// Its name for people.
    pub name: Option<String>,
    /// What it is.
    pub description: Option<String>,
    /// Who runs it.
    pub operator: Option<String>,
    /// Its page.
    pub url: Option<String>,
    /// Page of its health monitor.
    pub health: Option<String>,
}

/// An account; of its passwords only the hashes.
pub struct Account {
    /// Its name; also that of the environment it reports.
    pub subject: String,
    /// Environments shown together.
    pub group: Option<String>,
    /// For the public table.
    pub about: About,
    roles: u8,
    delegates: BTreeSet<String>,
    keys: Vec<PublicKey>,
    hashes: Vec<String>,
}

impl Account {
    /// Whether it has all of these roles.
    pub fn has(&self, roles: u8) -> bool {
        self.roles & roles == roles
    }

    /// Whether it is `subject` or has `roles`.
    pub fn is_or_has(&self, subject: &str, roles: u8) -> bool {
        self.subject == subject || self.has(roles)
    }

    /// Keys that its reports are signed with.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    /// Whether this password is one of its own: slow, for a thread that may be blocked.
    pub fn opens(&self, password: &str) -> bool {
        // Each is tried, so that time does not tell which one it was.
        self.hashes.iter().fold(false, |found, hash| matches(hash, password) | found)
    }
}

/// All accounts.
#[derive(Default)]
pub struct Accounts(BTreeMap<String, Arc<Account>>);

fn wrong(place: &str, why: impl std::fmt::Display) -> Error {
    Error::bad_request(format!("{place}: {why}"))
}

impl Accounts {
    /// Reads a bootstrap file; all of it is sound, or none of it is taken.
    ///
    /// # Errors
    /// `BadRequest` that names the field.
    pub fn parse(text: &str) -> Result<Self> {
        let file: File = serde_norway::from_str(text).map_err(|e| wrong("bootstrap file", e))?;
        let mut accounts = BTreeMap::new();
        let mut delegates = BTreeMap::new();
        for (index, entry) in file.accounts.into_iter().enumerate() {
            let account = entry.checked(index)?;
            delegates.insert(account.subject.clone(), account.delegates.clone());
            if let Some(double) = accounts.insert(account.subject.clone(), Arc::new(account)) {
                return Err(wrong(
                    &format!("accounts[{index}].subject"),
                    format!("{} is there twice", double.subject),
                ));
            }
        }
        for (subject, names) in delegates {
            if let Some(unknown) = names.iter().find(|n| !accounts.contains_key(*n)) {
                return Err(wrong(&format!("delegates of {subject}"), format!("no account {unknown}")));
            }
        }
        Ok(Accounts(accounts))
    }

    /// An account.
    pub fn get(&self, subject: &str) -> Option<&Arc<Account>> {
        self.0.get(subject)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.0.values()
    }

    /// Members of a group.
    pub fn group(&self, name: &str) -> Vec<String> {
        self.all().filter(|a| a.group.as_deref() == Some(name)).map(|a| a.subject.clone()).collect()
    }

    /// Whether `account` may report `subject`: itself, or one that names it as its delegate.
    pub fn may_report(&self, account: &Account, subject: &str) -> bool {
        account.subject == subject
            || account.has(APPEND_ANY)
                && self.get(subject).is_some_and(|s| s.delegates.contains(&account.subject))
    }
}

impl Entry {
    fn checked(self, index: usize) -> Result<Account> {
        let place = |field: &str| format!("accounts[{index}].{field}");
        if !is_name(&self.subject) {
            return Err(wrong(&place("subject"), "1 to 128 letters, digits, '.', '_' and '-'"));
        }
        if self.group.as_deref().is_some_and(|g| !g.is_empty() && !is_name(g)) {
            return Err(wrong(&place("group"), "1 to 128 letters, digits, '.', '_' and '-'"));
        }
        let mut roles = 0;
        for role in &self.roles {
            roles |= match role.as_str() {
                "read_any" => READ_ANY,
                "append_any" => APPEND_ANY,
                "admin" => ADMIN,
                "approve" => APPROVE,
                _ => return Err(wrong(&place("roles"), format!("no role {role}"))),
            };
        }
        for (at, hash) in self.api_keys.iter().enumerate() {
            check_hash(hash).map_err(|why| wrong(&place(&format!("api_keys[{at}]")), why))?;
        }
        let (mut keys, mut names) = (Vec::new(), BTreeSet::new());
        for (at, key) in self.keys.iter().enumerate() {
            let parsed = PublicKey::parse(&key.public_key_type, &key.public_key);
            keys.push(parsed.map_err(|e| wrong(&place(&format!("keys[{at}].public_key")), e.public()))?);
            if !names.insert(key.public_key_name.clone()) {
                return Err(wrong(&place(&format!("keys[{at}].public_key_name")), "is there twice"));
            }
        }
        let about = self.page.unwrap_or_default();
        for (field, url) in [("url", &about.url), ("health", &about.health)] {
            if url.as_ref().is_some_and(|u| !u.starts_with("https://") && !u.starts_with("http://")) {
                return Err(wrong(&place(&format!("page.{field}")), "not an http(s) URL"));
            }
        }
        Ok(Account {
            subject: self.subject,
            group: self.group.filter(|g| !g.is_empty()),
            about,
            roles,
            delegates: self.delegates.into_iter().collect(),
            keys,
            hashes: self.api_keys,
        })
    }
}

/// A name that stands in URLs and pages as it is.
pub fn is_name(text: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(fine)
}

fn is_bcrypt(hash: &str) -> bool {
    ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|p| hash.starts_with(p))
}

fn check_hash(hash: &str) -> Result<(), &'static str> {
    if is_bcrypt(hash) {
        let parts: Result<bcrypt::HashParts, _> = hash.parse();
        return parts.map(|_| ()).map_err(|_| "not a bcrypt hash");
    }
    let parsed = PasswordHash::new(hash).map_err(|_| "neither an argon2 nor a bcrypt hash")?;
    let params = argon2::Params::try_from(&parsed).map_err(|_| "not an argon2 hash")?;
    if !parsed.algorithm.as_str().starts_with("argon2") {
        return Err("neither an argon2 nor a bcrypt hash");
    }
    let modest = params.m_cost() <= MOST_MEMORY && params.t_cost() <= MOST_PASSES;
    modest.then_some(()).ok_or("a hash with more than 256 MiB of memory or 16 passes")
}

fn matches(hash: &str, password: &str) -> bool {
    if is_bcrypt(hash) {
        return bcrypt::verify(password, hash).unwrap_or(false);
    }
    PasswordHash::new(hash).is_ok_and(|h| Argon2::default().verify_password(password.as_bytes(), &h).is_ok())
}

/// Takes the time of a login, for names that are nobody's.
pub fn spend(password: &str) {
    let _ = matches(NOBODY, password);
}

/// A new password and its hash (argon2id, 64 MiB, 3 passes, as upstream's `add_subject.py` makes them).
///
/// # Errors
/// `Internal` where the hash cannot be made.
pub fn new_password(entropy: &Entropy) -> Result<(String, String)> {
    let password = entropy.password(32);
    let mut salt = [0; 16];
    entropy.fill(&mut salt);
    let salt = SaltString::encode_b64(&salt).map_err(|e| Error::internal(e.to_string()))?;
    let params = argon2::Params::new(64 << 10, 3, 4, None).map_err(|e| Error::internal(e.to_string()))?;
    let argon = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let hash = argon.hash_password(password.as_bytes(), &salt).map_err(|e| Error::internal(e.to_string()))?;
    Ok((password, hash.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    #[test]
    fn a_fault_is_told_by_its_place() {
        let key = |kind: &str, key: &str| {
            format!(
                "accounts: [{{subject: a, keys: [{{public_key: {key}, public_key_type: {kind}, public_key_name: k}}]}}]"
            )
        };
        assert!(Accounts::parse(&key("ssh-ed25519", KEY)).is_ok());
        let cases = [
            (key("ssh-rsa", KEY), "accounts[0].keys[0].public_key"),
            (key("ssh-ed25519", "AAAA"), "accounts[0].keys[0].public_key"),
            ("accounts: [{subject: a}, {subject: a}]".into(), "accounts[1].subject"),
            ("accounts: [{subject: 'a b'}]".into(), "accounts[0].subject"),
            ("accounts: [{subject: a, roles: [root]}]".into(), "accounts[0].roles"),
            ("accounts: [{subject: a, delegates: [b]}]".into(), "delegates of a"),
            ("accounts: [{subject: a, api_keys: [secret]}]".into(), "accounts[0].api_keys[0]"),
            ("accounts: [{subject: a, api_keys: ['$argon2id$v=19$m=9999999,t=3,p=4$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA']}]".into(), "256 MiB"),
            ("accounts: [{subject: a, page: {url: 'javascript:x'}}]".into(), "accounts[0].page.url"),
            ("accounts: [{subjekt: a}]".into(), "subjekt"),
        ];
        for (text, place) in cases {
            let error = Accounts::parse(&text).err().unwrap();
            assert!(error.public().contains(place), "{text}: {}", error.public());
            assert!(!error.public().contains("secret"));
        }
    }

    #[test]
    fn hashes_of_both_kinds_open() {
        let (password, hash) = new_password(&Entropy::seeded(1)).unwrap();
        let bcrypt = bcrypt::hash("geheim", 4).unwrap();
        let text = format!("accounts: [{{subject: a, api_keys: ['{hash}', '{bcrypt}']}}, {{subject: b}}]");
        let accounts = Accounts::parse(&text).unwrap();
        let account = accounts.get("a").unwrap();
        assert!(
            account.opens(&password)
                && account.opens("geheim")
                && !account.opens("")
                && !account.opens(&hash)
        );
        assert!(!accounts.get("b").unwrap().opens(""));
        assert!(check_hash(NOBODY).is_ok());
    }
}
