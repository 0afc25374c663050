//! This cloud as an identity provider: OpenID Connect for its users.
//!
//! A login (by the same rules as at `/v3/auth/tokens`) or a token of this cloud becomes signed tokens that say who the
//! user is, in which groups, and with which roles where. They are short-lived and say nothing that the tables do not say
//! at that moment; who needs newer ones asks again, and gets them only while the user may log in.
//!
//! Start reading at [`Subject`], then [`tokens`], then `grants` (codes on their way to tokens).

pub mod grants;
pub mod keys;
pub mod page;

use std::collections::BTreeSet;

use base::{ProjectId, Result, Timestamp, UserId};
use federation::jose::Claims;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use crate::directory;
use crate::model::{Assignment, Domain, Group, Place, Project, User};
use crate::state::State;
use crate::tokens::Validated;
use crate::words::unauthorized;

/// Seconds an access or ID token lives.
pub const LIFETIME: i64 = 600;
/// Most groups, and most roles, that a token names.
const MOST: usize = 100;

/// Ways of getting tokens.
pub const GRANT_TYPES: [&str; 6] =
    ["authorization_code", DEVICE_CODE, "refresh_token", TOKEN_EXCHANGE, "client_credentials", "password"];
/// RFC 8628.
pub const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// RFC 8693.
pub const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// About whom tokens are.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The user.
    pub user_id: UserId,
    /// The user's token generation at the login: another password makes no tokens of an old login.
    pub generation: u64,
    /// When the user logged in.
    pub auth_time: Timestamp,
    /// When what was proved ends.
    pub until: Option<Timestamp>,
    /// Where a delegated login acts, with which roles: nothing else is claimed of it.
    pub confined: Option<(String, Vec<String>)>,
}

impl Subject {
    /// The user of a token of this cloud.
    pub fn of(valid: &Validated, generation: u64) -> Self {
        let project = match &valid.auth.scope {
            contract::Scope::Project { name, .. } => name.clone(),
            _ => String::new(),
        };
        let roles = || valid.roles.iter().map(|(_, name)| name.clone()).collect();
        Subject {
            user_id: valid.auth.user_id.clone(),
            generation,
            auth_time: valid.auth.issued_at,
            until: Some(valid.auth.expires_at),
            confined: valid.delegated().then(|| (project, roles())),
        }
    }
}

/// For whom and what for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The client that gets the tokens.
    pub client_id: String,
    /// For whom the access token is; `None` = the client.
    pub audience: Option<String>,
    /// Scopes, divided by spaces.
    pub scope: String,
    /// The client's nonce.
    pub nonce: Option<String>,
}

impl Wanted {
    /// Whether a scope is asked for.
    pub fn has(&self, scope: &str) -> bool {
        self.scope.split(' ').any(|s| s == scope)
    }
}

/// The identifier of this cloud as an issuer: where the identity service is.
pub fn issuer(base_url: &str) -> String {
    base_url.trim_end_matches('/').to_owned()
}

/// An enabled user of an enabled domain, if nothing ended the logins of that generation.
///
/// # Errors
/// The store's.
pub fn living(tx: &mut Tx<'_>, id: &UserId, generation: u64) -> Result<Option<(User, Domain)>> {
    let user = tx.get::<User>(id)?.filter(|u| u.enabled && u.token_generation == generation);
    let Some(user) = user else { return Ok(None) };
    let domain = tx.get::<Domain>(&user.domain_id)?.filter(|d| d.enabled);
    Ok(domain.map(|domain| (user, domain)))
}

/// What is said of a user.
fn claims(tx: &mut Tx<'_>, subject: &Subject) -> Result<Option<Map<String, Value>>> {
    let Some((user, domain)) = living(tx, &subject.user_id, subject.generation)? else { return Ok(None) };
    let mut claims = Map::new();
    let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    put("sub", json!(user.id));
    put("name", json!(user.name));
    put("preferred_username", json!(user.name));
    if let Some(email) = user.extra.get("email").filter(|e| e.is_string()) {
        put("email", email.clone());
    }
    put("openstack_user_domain_id", json!(domain.id));
    put("openstack_user_domain_name", json!(domain.name));
    let (groups, mut roles) = match &subject.confined {
        Some((project, roles)) => (Vec::new(), roles.iter().map(|r| format!("{r}@{project}")).collect()),
        None => {
            let ids = directory::groups_of(tx, &user.id)?;
            let groups = tx.list::<Group>(&Query::new().is_in("id", &ids).limit(MOST))?;
            (groups.into_iter().map(|g| g.name).collect(), roles_of(tx, &user.id)?)
        }
    };
    let mut groups: Vec<String> = groups;
    groups.sort_unstable();
    groups.dedup();
    roles.truncate(MOST);
    put("groups", json!(groups));
    put("openstack_roles", json!(roles));
    Ok(Some(claims))
}

/// `role@project` for each project the user has a role on, implied roles included, projects by name.
fn roles_of(tx: &mut Tx<'_>, user: &UserId) -> Result<Vec<String>> {
    let all: Vec<Assignment> = directory::assignments_of(tx, user)?;
    let ids: BTreeSet<ProjectId> = all.into_iter().filter_map(|a| a.project_id).take(MOST).collect();
    let mut projects = tx.list::<Project>(&Query::new().is_in("id", &ids))?;
    projects.retain(|p| p.enabled);
    projects.sort_by(|a, b| a.name.cmp(&b.name));
    let mut roles = Vec::new();
    for project in projects {
        for role in directory::roles_on(tx, user, &Place::Project(project.id.clone()))? {
            roles.push(format!("{}@{}", role.name, project.name));
        }
        if roles.len() >= MOST {
            break;
        }
    }
    Ok(roles)
}

/// The answer of the token endpoint: an access token, and an ID token if one was asked for.
///
/// # Errors
/// `Unauthenticated` where the user may not log in any more.
pub async fn tokens(
    state: &State,
    issuer: &str,
    subject: Subject,
    wanted: &Wanted,
) -> Result<Map<String, Value>> {
    let now = state.clock.now();
    let until = subject.until.map_or(i64::MAX, Timestamp::as_secs);
    let expires = now.plus_secs(LIFETIME).as_secs().min(until);
    let about = subject.clone();
    let said = state.read(move |tx| claims(tx, &about)).await?.ok_or_else(unauthorized)?;
    let mut id = [0; 16];
    state.entropy.fill(&mut id);
    let mut common = said;
    for (name, value) in [
        ("iss", json!(issuer)),
        ("iat", json!(now.as_secs())),
        ("exp", json!(expires)),
        ("auth_time", json!(subject.auth_time.as_secs())),
        ("azp", json!(wanted.client_id)),
    ] {
        common.insert(name.to_owned(), value);
    }
    let mut access = common.clone();
    for (name, value) in [
        ("aud", json!(wanted.audience.as_ref().unwrap_or(&wanted.client_id))),
        ("client_id", json!(wanted.client_id)),
        ("jti", json!(hex::encode(id))),
        ("scope", json!(wanted.scope)),
        ("openstack_generation", json!(subject.generation)),
    ] {
        access.insert(name.to_owned(), value);
    }
    let mut answer = Map::new();
    answer.insert("access_token".into(), json!(state.signing.sign("at+jwt", &Value::Object(access), now)?));
    answer.insert("token_type".into(), json!("Bearer"));
    answer.insert("expires_in".into(), json!(expires - now.as_secs()));
    answer.insert("scope".into(), json!(wanted.scope));
    if wanted.has("openid") {
        let mut token = common;
        token.insert("aud".into(), json!(wanted.client_id));
        if let Some(nonce) = &wanted.nonce {
            token.insert("nonce".into(), json!(nonce));
        }
        answer.insert("id_token".into(), json!(state.signing.sign("JWT", &Value::Object(token), now)?));
    }
    Ok(answer)
}

/// What is said now of the bearer of an access token of ours.
///
/// # Errors
/// `Unauthenticated` for a token that is none, or whose user may not log in any more.
pub async fn userinfo(state: &State, issuer: &str, bearer: &str) -> Result<Value> {
    let token: Claims = state.signing.own(bearer, issuer, state.clock.now())?;
    let number = |name: &str| token.get(name).and_then(Value::as_u64);
    let sub = token.get("sub").and_then(Value::as_str).ok_or_else(unauthorized)?;
    // An ID token is no key to anything.
    let generation = number("openstack_generation").ok_or_else(unauthorized)?;
    let groups = token.get("groups").cloned();
    let roles = token.get("openstack_roles").cloned();
    let subject = Subject {
        user_id: UserId::new(sub),
        generation,
        auth_time: Timestamp(0),
        until: None,
        confined: None,
    };
    let mut said = state.read(move |tx| claims(tx, &subject)).await?.ok_or_else(unauthorized)?;
    // Never more than the token says: it may be confined to one project.
    narrow(&mut said, "groups", groups.as_ref());
    narrow(&mut said, "openstack_roles", roles.as_ref());
    Ok(Value::Object(said))
}

fn narrow(said: &mut Map<String, Value>, name: &str, to: Option<&Value>) {
    let kept = to.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if let Some(Value::Array(items)) = said.get_mut(name) {
        items.retain(|i| kept.contains(i));
    }
}
