//! How a token is got: `POST /v3/auth/tokens`.
//!
//! Everything that is wrong with a name, a password or a scope is one and the same 401; only a malformed request says
//! what is wrong with it.

use std::sync::Arc;

use base::{ApplicationCredentialId, DomainId, Error, ProjectId, Result, Timestamp, UserId};
use contract::Scope;
use serde_json::{Map, Value};
use store::{Query, Tx};

use crate::directory;
use crate::logic::body::{Kind, check, invalid, missing, wrong_type};
use crate::logic::payload::{PayloadScope, method};
use crate::model::{ApplicationCredential, Domain, Place, Project, User};
use crate::password::{digest, same_digest};
use crate::state::State;
use crate::tokens::{Order, Validated};
use crate::words::{expected, forbidden, no_token, unauthorized};

/// A domain by id or name.
#[derive(Debug, Clone)]
enum DomainRef {
    Id(String),
    Name(String),
}

/// A user or project by id, or by name in a domain.
#[derive(Debug, Clone)]
enum Ref {
    Id(String),
    Name(String, DomainRef),
}

#[derive(Debug, Clone)]
enum Method {
    Password { user: Ref, password: String },
    Token(String),
    ApplicationCredential { id: Option<String>, name: Option<(String, Ref)>, secret: String },
}

#[derive(Debug, Clone)]
enum Wanted {
    Nothing,
    Unscoped,
    System,
    Project(Ref),
    Domain(DomainRef),
}

/// What the methods proved.
#[derive(Debug, Clone, Default)]
struct Proof {
    user: Option<(UserId, u64)>,
    methods: Vec<&'static str>,
    expires_at: Option<Timestamp>,
    parent_audit_id: Option<String>,
    application_credential: Option<(ApplicationCredentialId, ProjectId)>,
    from_system: bool,
}

/// Answers the body of a token request.
///
/// # Errors
/// `BadRequest` for a malformed body, `Unauthenticated` for wrong credentials, `NotFound` for a token that is none.
pub async fn login(state: &State, body: &Value) -> Result<(String, Arc<Validated>)> {
    let auth = body.get("auth").ok_or_else(|| missing("auth"))?;
    let auth = object(auth, "auth")?;
    let methods = methods_of(auth)?;
    let wanted = wanted_of(auth)?;
    let by_credential = methods.iter().any(|m| matches!(m, Method::ApplicationCredential { .. }));
    if by_credential && auth.contains_key("scope") {
        return Err(Error::unauthenticated(
            "Error authenticating with application credential: Application credentials cannot request a scope.",
        ));
    }
    let mut proof = Proof::default();
    for method in methods {
        prove(state, method, &mut proof).await?;
    }
    let Some((user_id, generation)) = proof.user.clone() else { return Err(unauthorized()) };
    let (of, passed) = (user_id.clone(), proof.methods.clone());
    if !state.store.read(move |tx| enough(tx, &of, &passed)).await? {
        return Err(unauthorized());
    }
    if proof.from_system && matches!(wanted, Wanted::Project(_) | Wanted::Domain(_)) {
        return Err(forbidden(
            "Using a system-scoped token to create a project-scoped or domain-scoped token is not allowed.",
        ));
    }
    let scope = match &proof.application_credential {
        Some((_, project)) => PayloadScope::Project(project.as_str().to_owned()),
        None => {
            let user = user_id.clone();
            state.store.read(move |tx| scope_of(tx, &user, &wanted)).await?.ok_or_else(unauthorized)?
        }
    };
    let order = Order {
        user_id,
        methods: proof.methods,
        scope,
        expires_at: proof.expires_at,
        parent_audit_id: proof.parent_audit_id,
        application_credential_id: proof.application_credential.map(|(id, _)| id),
        generation,
    };
    state.tokens.issue(order).await
}

// ---- reading the body

fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| wrong_type(path, value, "'object'"))
}

fn text(map: &Map<String, Value>, key: &str, path: &str) -> Result<Option<String>> {
    let Some(value) = map.get(key) else { return Ok(None) };
    let place = format!("{path}/{key}");
    check(&place, Kind::Text(0, 255), false, value)?;
    Ok(value.as_str().map(str::to_owned))
}

fn methods_of(auth: &Map<String, Value>) -> Result<Vec<Method>> {
    let identity = auth.get("identity").ok_or_else(|| missing("identity"))?;
    let identity = object(identity, "auth/identity")?;
    let names = identity.get("methods").ok_or_else(|| missing("methods"))?;
    let list = names.as_array().ok_or_else(|| wrong_type("auth/identity/methods", names, "'array'"))?;
    let mut chosen: Vec<&str> = Vec::new();
    for (i, name) in list.iter().enumerate() {
        let place = format!("auth/identity/methods/{i}");
        let name = name.as_str().ok_or_else(|| wrong_type(&place, name, "'string'"))?;
        if !chosen.contains(&name) {
            chosen.push(name);
        }
    }
    if chosen.is_empty() || chosen.len() > 8 {
        return Err(invalid("auth/identity/methods", "must name the methods to be used"));
    }
    let known = ["password", "token", "application_credential"];
    if chosen.iter().any(|name| !known.contains(name)) {
        return Err(Error::unauthenticated("Attempted to authenticate with an unsupported method."));
    }
    // A method that is described but not chosen must be well-formed too.
    let described = known.into_iter().filter(|k| identity.contains_key(*k) && !chosen.contains(k));
    let all: Vec<(&str, bool)> =
        chosen.iter().map(|n| (*n, true)).chain(described.map(|n| (n, false))).collect();
    let mut methods = Vec::new();
    for (name, wanted) in all {
        let path = format!("auth/identity/{name}");
        let data = identity.get(name).ok_or_else(|| expected(name, "identity"))?;
        let data = object(data, &path)?;
        let parsed = match name {
            "password" => {
                let user = data.get("user").ok_or_else(|| missing("user"))?;
                let path = format!("{path}/user");
                let map = object(user, &path)?;
                let password = map.get("password").ok_or_else(|| missing("password"))?;
                check(&format!("{path}/password"), Kind::Secret, false, password)?;
                let password = password.as_str().unwrap_or_default().to_owned();
                Method::Password { user: reference(map, "user", &path)?, password }
            }
            "token" => {
                let id = data.get("id").ok_or_else(|| expected("id", "token"))?;
                check(&format!("{path}/id"), Kind::Secret, false, id)?;
                Method::Token(id.as_str().unwrap_or_default().to_owned())
            }
            _ => credential_of(data, &path)?,
        };
        if wanted {
            methods.push(parsed);
        }
    }
    Ok(methods)
}

fn credential_of(data: &Map<String, Value>, path: &str) -> Result<Method> {
    let secret = data.get("secret").ok_or_else(|| missing("secret"))?;
    check(&format!("{path}/secret"), Kind::Secret, false, secret)?;
    let secret = secret.as_str().unwrap_or_default().to_owned();
    let id = text(data, "id", path)?;
    let name = text(data, "name", path)?;
    let user = match data.get("user") {
        Some(user) if id.is_none() => {
            let path = format!("{path}/user");
            Some(reference(object(user, &path)?, "user", &path)?)
        }
        _ => None,
    };
    let name = match (name, user) {
        _ if id.is_some() => None,
        (None, _) => return Err(expected("name or ID", "application credential")),
        (Some(_), None) => return Err(expected("user", "application credential")),
        (Some(name), Some(user)) => Some((name, user)),
    };
    Ok(Method::ApplicationCredential { id, name, secret })
}

fn reference(map: &Map<String, Value>, what: &str, path: &str) -> Result<Ref> {
    if let Some(id) = text(map, "id", path)? {
        return Ok(Ref::Id(id));
    }
    let Some(name) = text(map, "name", path)? else { return Err(expected("id or name", what)) };
    let domain = map.get("domain").ok_or_else(|| expected("domain", what))?;
    Ok(Ref::Name(name, domain_ref(domain, &format!("{path}/domain"))?))
}

fn domain_ref(value: &Value, path: &str) -> Result<DomainRef> {
    let map = object(value, path)?;
    match (text(map, "id", path)?, text(map, "name", path)?) {
        (Some(id), _) => Ok(DomainRef::Id(id)),
        (None, Some(name)) => Ok(DomainRef::Name(name)),
        (None, None) => Err(expected("id or name", "domain")),
    }
}

fn wanted_of(auth: &Map<String, Value>) -> Result<Wanted> {
    let Some(scope) = auth.get("scope") else { return Ok(Wanted::Nothing) };
    if scope.as_str() == Some("unscoped") {
        return Ok(Wanted::Unscoped);
    }
    let map = object(scope, "auth/scope")?;
    let kinds = ["project", "domain", "unscoped", "system"];
    let given: Vec<&str> = kinds.into_iter().filter(|k| map.contains_key(*k)).collect();
    let one = || expected("system, project, domain, OS-TRUST:trust or unscoped", "scope");
    let [kind] = given.as_slice() else { return Err(one()) };
    let value = map.get(*kind).ok_or_else(one)?;
    Ok(match *kind {
        "unscoped" => Wanted::Unscoped,
        "system" => {
            if value.get("all") != Some(&Value::Bool(true)) {
                return Err(invalid("auth/scope/system", "must be {\"all\": true}"));
            }
            Wanted::System
        }
        "domain" => Wanted::Domain(domain_ref(value, "auth/scope/domain")?),
        _ => {
            Wanted::Project(reference(object(value, "auth/scope/project")?, "project", "auth/scope/project")?)
        }
    })
}

// ---- looking things up

fn find_domain(tx: &mut Tx<'_>, domain: &DomainRef) -> Result<Option<Domain>> {
    let found = match domain {
        DomainRef::Id(id) => tx.get::<Domain>(&DomainId::new(id.clone()))?,
        DomainRef::Name(name) => directory::domain_named(tx, name)?,
    };
    Ok(found.filter(|d| d.enabled))
}

/// An enabled user of an enabled domain.
fn find_user(tx: &mut Tx<'_>, user: &Ref) -> Result<Option<User>> {
    let found = match user {
        Ref::Id(id) => tx.get::<User>(&UserId::new(id.clone()))?,
        Ref::Name(name, domain) => match find_domain(tx, domain)? {
            Some(domain) => directory::user_named(tx, &domain.id, name)?,
            None => None,
        },
    };
    let Some(user) = found.filter(|u| u.enabled) else { return Ok(None) };
    let enabled = tx.get::<Domain>(&user.domain_id)?.is_some_and(|d| d.enabled);
    Ok(Some(user).filter(|_| enabled))
}

/// The scope asked for, or the default; `None` where what was asked for does not exist or is disabled. Whether the
/// user has a role there is seen when the token is made.
fn scope_of(tx: &mut Tx<'_>, user: &UserId, wanted: &Wanted) -> Result<Option<PayloadScope>> {
    Ok(match wanted {
        Wanted::Unscoped => Some(PayloadScope::Unscoped),
        Wanted::System => Some(PayloadScope::System),
        Wanted::Domain(domain) => {
            find_domain(tx, domain)?.map(|d| PayloadScope::Domain(d.id.as_str().to_owned()))
        }
        Wanted::Project(Ref::Id(id)) => Some(PayloadScope::Project(id.clone())),
        Wanted::Project(Ref::Name(name, domain)) => match find_domain(tx, domain)? {
            None => None,
            Some(domain) => directory::project_named(tx, &domain.id, name.trim())?
                .map(|p| PayloadScope::Project(p.id.as_str().to_owned())),
        },
        Wanted::Nothing => {
            let default = tx.get::<User>(user)?.and_then(|u| u.default_project_id);
            let Some(id) = default else { return Ok(Some(PayloadScope::Unscoped)) };
            let project = tx.get::<Project>(&id)?.filter(|p| p.enabled);
            let domain = match &project {
                Some(project) => tx.get::<Domain>(&project.domain_id)?.filter(|d| d.enabled),
                None => None,
            };
            let usable =
                domain.is_some() && !directory::roles_on(tx, user, &Place::Project(id.clone()))?.is_empty();
            Some(if usable { PayloadScope::Project(id.as_str().to_owned()) } else { PayloadScope::Unscoped })
        }
    })
}

// ---- proving

/// Reads `multi_factor_auth_rules`: a list of lists of methods.
///
/// # Errors
/// `BadRequest` where it is none.
pub fn method_rules(value: &Value) -> Result<Vec<Vec<String>>> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    serde_json::from_value(value.clone())
        .map_err(|_| invalid("options/multi_factor_auth_rules", "must be a list of lists of method names"))
}

/// Whether the methods that were passed are enough for the user: all methods of one of the user's rules, if there are
/// rules. Methods this cloud does not have are left out of a rule, and a rule without any other is none.
fn enough(tx: &mut Tx<'_>, user: &UserId, passed: &[&str]) -> Result<bool> {
    let options = tx.get::<User>(user)?.map(|u| u.options).unwrap_or_default();
    if options.get("multi_factor_auth_enabled") == Some(&Value::Bool(false)) {
        return Ok(true);
    }
    let rules = options.get("multi_factor_auth_rules").map_or(Ok(Vec::new()), method_rules)?;
    let known = ["password", "token", "application_credential"];
    let mut rules: Vec<Vec<String>> = rules
        .into_iter()
        .map(|rule| rule.into_iter().filter(|m| known.contains(&m.as_str())).collect())
        .collect();
    rules.retain(|rule| !rule.is_empty());
    Ok(rules.is_empty() || rules.iter().any(|rule| rule.iter().all(|m| passed.contains(&m.as_str()))))
}

async fn prove(state: &State, one: Method, proof: &mut Proof) -> Result<()> {
    match one {
        Method::Password { user, password } => {
            let found = state.store.read(move |tx| find_user(tx, &user)).await?;
            let hash = found.as_ref().and_then(|u| u.password.as_deref());
            // Also where there is no such user: the answer must take as long.
            let right = state.passwords.verify(&password, hash).await?;
            let user = found.filter(|_| right).ok_or_else(unauthorized)?;
            proof.is(user.id, user.token_generation)?;
            proof.by("password");
        }
        Method::Token(token) => prove_by_token(state, &token, proof).await?,
        Method::ApplicationCredential { id, name, secret } => {
            let by_name = name.is_some();
            let found = state.store.read(move |tx| find_credential(tx, id.as_deref(), name.as_ref())).await?;
            let right = match found.as_ref().map(|(c, _)| c.secret.as_str()) {
                Some(hash) => match hash.strip_prefix("sha256:") {
                    Some(known) => same_digest(known, &digest(&secret)),
                    None => state.passwords.verify(&secret, Some(hash)).await?,
                },
                // A name could be guessed; an id could not, and needs no pretence.
                None if by_name => state.passwords.verify(&secret, None).await?,
                None => false,
            };
            let (credential, user) = found.filter(|_| right).ok_or_else(unauthorized)?;
            if credential.expires_at.is_some_and(|e| e <= state.clock.now()) {
                return Err(unauthorized());
            }
            proof.is(user.id, user.token_generation)?;
            proof.by("application_credential");
            proof.ends(credential.expires_at);
            proof.application_credential = Some((credential.id, credential.project_id));
        }
    }
    Ok(())
}

fn find_credential(
    tx: &mut Tx<'_>,
    id: Option<&str>,
    name: Option<&(String, Ref)>,
) -> Result<Option<(ApplicationCredential, User)>> {
    let credential = match (id, name) {
        (Some(id), _) => tx.get::<ApplicationCredential>(&ApplicationCredentialId::new(id))?,
        (None, Some((name, user))) => match find_user(tx, user)? {
            Some(user) => {
                let query = Query::new().eq("user_id", &user.id).eq("name", name).limit(1);
                tx.list::<ApplicationCredential>(&query)?.pop()
            }
            None => None,
        },
        (None, None) => None,
    };
    let Some(credential) = credential else { return Ok(None) };
    let user = find_user(tx, &Ref::Id(credential.user_id.as_str().to_owned()))?;
    Ok(user.map(|user| (credential, user)))
}

async fn prove_by_token(state: &State, token: &str, proof: &mut Proof) -> Result<()> {
    let valid = state.tokens.validate(token).await?.ok_or_else(no_token)?;
    if valid.application_credential.is_some() {
        return Err(forbidden("Using a delegated token to create another token is not allowed."));
    }
    let user = valid.auth.user_id.clone();
    let user = state.store.read(move |tx| tx.get::<User>(&user)).await?.ok_or_else(no_token)?;
    proof.is(user.id, user.token_generation)?;
    proof.by("token");
    for name in &valid.auth.methods {
        if let Some(name) = method(name) {
            proof.by(name);
        }
    }
    // A token made from a token ends when the first one does: nobody stays in for ever without proving again.
    proof.ends(Some(valid.auth.expires_at));
    proof.parent_audit_id = valid.audit_ids.last().cloned();
    proof.from_system = valid.auth.scope == Scope::System;
    Ok(())
}

impl Proof {
    fn is(&mut self, user: UserId, generation: u64) -> Result<()> {
        match &self.user {
            Some((other, _)) if *other != user => Err(unauthorized()),
            _ => {
                self.user = Some((user, generation));
                Ok(())
            }
        }
    }

    fn by(&mut self, name: &'static str) {
        if !self.methods.contains(&name) {
            self.methods.push(name);
        }
    }

    fn ends(&mut self, at: Option<Timestamp>) {
        self.expires_at = match (self.expires_at, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}
