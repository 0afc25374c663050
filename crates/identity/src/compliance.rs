//! `[security_compliance]`: what an operator may demand of passwords and logins (PCI-DSS). Everything but the
//! comparison with the present password is off unless set, as in Keystone; a user's `ignore_*` options exempt the user.

use std::path::PathBuf;

use base::{Error, Result, Timestamp, UserId};
use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::Tx;

use crate::directory;
use crate::external::External;
use crate::model::{LoginRecord, User};
use crate::saml::Saml;
use crate::state::{LimitModel, State, TokenProvider};
use crate::words::unauthorized;

/// What an operator sets in `[identity]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Operator {
    /// Rules for passwords and logins.
    pub security_compliance: Compliance,
    /// How limits of projects and domains bind each other: `flat` or `strict_two_level`.
    pub limit_model: LimitModel,
    /// Longest chain of trusts made from trusts.
    pub max_redelegation_count: u64,
    /// Days the audit trail is kept in the database.
    pub audit_days: i64,
    /// How tokens are made: `fernet` or `jws`.
    pub token_provider: TokenProvider,
    /// Days after which the keys of stored secrets turn over; 0 = never by themselves.
    pub credential_key_days: i64,
    /// Where a console takes tokens of users who come by an identity provider, e.g. `https://console/auth/websso/`.
    pub trusted_dashboards: Vec<String>,
    /// Clients that prove who they are by a certificate.
    pub oauth2: OAuth2,
    /// This cloud as a SAML identity provider.
    pub saml: Saml,
    /// A web server in front that says who comes.
    pub external: External,
}

/// What an operator sets in `[identity.oauth2]`: OAuth 2.0 by client certificate (`tls_client_auth`, RFC 8705).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OAuth2 {
    /// File with the certificates (PEM) of the authorities that certify clients, and, where they have any, their revocation
    /// lists; read again when it changes. `None` = nobody is asked for a certificate but hosts.
    pub client_ca: Option<PathBuf>,
    /// The mapping that says whose a certificate is (Keystone's `oauth2_cert_dn_mapping_id`).
    pub mapping: String,
}

impl Default for OAuth2 {
    fn default() -> Self {
        OAuth2 { client_ca: None, mapping: "oauth2_mapping".into() }
    }
}

impl Default for Operator {
    fn default() -> Self {
        Operator {
            security_compliance: Compliance::default(),
            limit_model: LimitModel::Flat,
            max_redelegation_count: 3,
            audit_days: 90,
            token_provider: TokenProvider::Fernet,
            credential_key_days: 0,
            trusted_dashboards: Vec::new(),
            oauth2: OAuth2::default(),
            saml: Saml::default(),
            external: External::default(),
        }
    }
}

const DAY: i64 = 86_400;

/// The settings, named as in Keystone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compliance {
    /// Failed logins after which an account is locked.
    pub lockout_failure_attempts: Option<u64>,
    /// Seconds it stays locked; 0 = until an administrator enables the user.
    pub lockout_duration: i64,
    /// Days a password is good for.
    pub password_expires_days: Option<i64>,
    /// A password the user chooses must differ from so many former ones, the present one included; 0 = no check.
    pub unique_last_password_count: usize,
    /// Days a password chosen by the user must be kept.
    pub minimum_password_age: i64,
    /// What a password must match.
    pub password_regex: Option<String>,
    /// That in words.
    pub password_regex_description: Option<String>,
    /// Whether a password set by an administrator must be changed before it can be used.
    pub change_password_upon_first_use: bool,
    /// Days without a login after which an account counts as disabled.
    pub disable_user_account_days_inactive: Option<i64>,
}

impl Default for Compliance {
    fn default() -> Self {
        Compliance {
            lockout_failure_attempts: None,
            lockout_duration: 1800,
            password_expires_days: None,
            unique_last_password_count: 2,
            minimum_password_age: 0,
            password_regex: None,
            password_regex_description: None,
            change_password_upon_first_use: false,
            disable_user_account_days_inactive: None,
        }
    }
}

/// Who sets a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The user, who knew the old one.
    User,
    /// An administrator, for the user.
    Administrator,
    /// The installation, for accounts of the cloud itself.
    Installation,
}

fn has(user: &User, option: &str) -> bool {
    user.options.get(option) == Some(&Value::Bool(true))
}

/// Whether a user has been away for too long.
pub fn inactive(user: &User, record: Option<&LoginRecord>, days: Option<i64>, now: Timestamp) -> bool {
    let Some(days) = days else { return false };
    let last = record.and_then(|r| r.active_at).unwrap_or(user.meta.created_at);
    // Whole days, as in Keystone: the hour of a login does not matter.
    let away = now.as_secs().div_euclid(DAY) - last.as_secs().div_euclid(DAY);
    away >= days && !has(user, "ignore_user_inactivity")
}

/// The record of a user's logins, made if there is none.
///
/// # Errors
/// The store's.
pub fn record(tx: &mut Tx<'_>, user: &UserId) -> Result<LoginRecord> {
    if let Some(found) = tx.get::<LoginRecord>(user)? {
        return Ok(found);
    }
    let (id, meta) = (user.clone(), store::Meta::default());
    let mut fresh = LoginRecord { id, meta, failures: 0, failed_at: None, active_at: None, totp_step: None };
    directory::insert_once(tx, &mut fresh)?;
    Ok(fresh)
}

/// What enabling a user does to the record: neither failures nor absence count any more.
///
/// # Errors
/// The store's.
pub fn forgive(tx: &mut Tx<'_>, user: &UserId) -> Result<()> {
    let now = tx.now();
    let mut record = record(tx, user)?;
    (record.failures, record.failed_at, record.active_at) = (0, None, Some(now));
    tx.update(&mut record)
}

impl Compliance {
    /// When a password set now must be changed.
    pub fn password_ends(&self, user: &User, by: By, now: Timestamp) -> Option<Timestamp> {
        if by == By::Administrator
            && self.change_password_upon_first_use
            && !has(user, "ignore_change_password_upon_first_use")
        {
            return Some(now);
        }
        let days = self.password_expires_days.filter(|_| by != By::Installation)?;
        Some(Timestamp::from_secs(now.as_secs().saturating_add(days.saturating_mul(DAY))))
    }

    fn locked(&self, user: &User, record: &LoginRecord, now: Timestamp) -> bool {
        let Some(most) = self.lockout_failure_attempts else { return false };
        if record.failures < most || has(user, "ignore_lockout_failure_attempts") {
            return false;
        }
        self.lockout_duration == 0
            || record.failed_at.is_some_and(|at| at.plus_secs(self.lockout_duration) > now)
    }

    /// What `password_regex` means; checked when the service starts.
    ///
    /// # Errors
    /// `BadRequest` where it is no regular expression.
    pub fn pattern(&self) -> Result<Option<Regex>> {
        let Some(text) = &self.password_regex else { return Ok(None) };
        Regex::new(text)
            .map(Some)
            .map_err(|e| Error::bad_request(format!("security_compliance.password_regex: {e}")))
    }
}

impl State {
    /// Refuses a new password that does not match the operator's pattern.
    ///
    /// # Errors
    /// `BadRequest`.
    pub(crate) fn check_new_password(&self, password: &str) -> Result<()> {
        let Some(pattern) = &self.password_pattern else { return Ok(()) };
        // What takes too long to match does not match. As in Python, the pattern begins where the password does.
        let found = pattern.find(password).ok().flatten();
        if found.is_some_and(|m| m.start() == 0) {
            return Ok(());
        }
        let words = self.config.operator.security_compliance.password_regex_description.as_deref();
        Err(Error::bad_request(format!(
            "The password does not match the requirements: {}.",
            words.unwrap_or_default()
        )))
    }

    /// Refuses a change by the user that comes too soon.
    ///
    /// # Errors
    /// `BadRequest`.
    pub(crate) fn check_password_age(&self, user: &User) -> Result<()> {
        let days = self.config.operator.security_compliance.minimum_password_age;
        let Some(set) = user.password_changed_at.filter(|_| user.password_self_service && days > 0) else {
            return Ok(());
        };
        let (until, now) = (set.plus_secs(days.saturating_mul(DAY)), self.clock.now());
        if until <= now {
            return Ok(());
        }
        let left = (until.as_secs() - now.as_secs()) / DAY;
        Err(Error::bad_request(format!(
            "You cannot change your password at this time due to the minimum password age. Once you change your password, it must be used for {days} day(s) before it can be changed. Please try again in {left} day(s) or contact your administrator to reset your password."
        )))
    }

    /// Refuses an account that is locked after failures.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub(crate) fn not_locked(&self, user: &User, record: Option<&LoginRecord>) -> Result<()> {
        let rules = &self.config.operator.security_compliance;
        let locked = record.is_some_and(|r| rules.locked(user, r, self.clock.now()));
        if locked { Err(unauthorized()) } else { Ok(()) }
    }

    /// Notes whether the password was right. A locked account is told nothing but 401, whatever the password; what it
    /// would not be told anyway is not counted.
    pub(crate) async fn note_login(
        &self,
        user: &User,
        record: Option<&LoginRecord>,
        right: bool,
    ) -> Result<()> {
        let (rules, now, of) = (&self.config.operator.security_compliance, self.clock.now(), user.id.clone());
        self.not_locked(user, record)?;
        if !right {
            if rules.lockout_failure_attempts.is_some() {
                let duration = rules.lockout_duration;
                self.write(move |tx| {
                    let mut record = self::record(tx, &of)?;
                    // After a lock has ended counting begins anew.
                    let over =
                        record.failed_at.is_some_and(|at| duration > 0 && at.plus_secs(duration) <= now);
                    record.failures = if over { 1 } else { record.failures + 1 };
                    record.failed_at = Some(now);
                    tx.update(&mut record)
                })
                .await?;
            }
            return Err(unauthorized());
        }
        let failed = record.is_some_and(|r| r.failures > 0);
        let today = |at: Timestamp| at.as_secs().div_euclid(DAY) == now.as_secs().div_euclid(DAY);
        let active = rules.disable_user_account_days_inactive.is_some()
            && !record.and_then(|r| r.active_at).is_some_and(today);
        if failed || active {
            self.write(move |tx| forgive(tx, &of)).await?;
        }
        Ok(())
    }
}
