//! How a token is got: `POST /v3/auth/tokens`.
//!
//! Everything that is wrong with a name, a password or a scope is one and the same 401; only a malformed request says
//! what is wrong with it.

use std::net::IpAddr;
use std::sync::Arc;

use ::api::{Certificate, HeaderMap};
use base::{ApplicationCredentialId, DomainId, Error, ProjectId, Result, Timestamp, UserId};
use contract::Scope;
use serde_json::{Map, Value};
use store::{Query, Tx};

use crate::bootstrap::DEFAULT_DOMAIN;
use crate::compliance;
use crate::directory;
use crate::federation;
use crate::ldap::{self, Elsewhere};
use crate::logic::body::{Kind, check, invalid, missing, wrong_type};
use crate::logic::oauth1::Signed;
use crate::logic::payload::{BY_CERTIFICATE, Federated, PayloadScope, method};
use crate::logic::totp;
use crate::model::{ApplicationCredential, Credential, Domain, LoginRecord, Place, Project, Trust, User};
use crate::oauth1;
use crate::password::{digest, same_digest};
use crate::state::State;
use crate::tokens::{Order, Validated};
use crate::words::{expected, forbidden, no_token, unauthorized};

mod receipts;

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
    Password {
        user: Ref,
        password: String,
    },
    Token(String),
    Totp {
        user: Ref,
        passcode: String,
    },
    ApplicationCredential {
        id: Option<String>,
        name: Option<(String, Ref)>,
        secret: String,
    },
    OAuth1,
    External,
    /// By a protocol of an identity provider.
    Mapped {
        idp: String,
        protocol: String,
    },
    /// By a token of somebody who came so.
    MappedToken(String),
}

#[derive(Debug, Clone)]
enum Wanted {
    Nothing,
    Unscoped,
    System,
    Project(Ref),
    Domain(DomainRef),
    Trust(String),
}

/// Methods of this cloud; `lacking` and the schema know no others.
const METHODS: [&str; 7] =
    ["password", "token", "application_credential", "totp", "oauth1", "external", "mapped"];
/// Other names, by which Keystone's plugins can be configured and its clients ask, and what they are here.
const OTHER_NAMES: [(&str, &str); 4] =
    [("kerberos", "external"), ("openid", "mapped"), ("saml2", "mapped"), ("x509", "mapped")];

/// The method of a name, if there is one.
fn method_of(name: &str) -> Option<&'static str> {
    let other = || OTHER_NAMES.into_iter().find(|(other, _)| *other == name).map(|(_, method)| method);
    METHODS.into_iter().find(|m| *m == name).or_else(other)
}

/// What the methods proved.
#[derive(Debug, Clone, Default)]
struct Proof {
    user: Option<(UserId, u64)>,
    methods: Vec<&'static str>,
    expires_at: Option<Timestamp>,
    parent_audit_id: Option<String>,
    application_credential: Option<(ApplicationCredentialId, ProjectId)>,
    access_token: Option<(String, ProjectId)>,
    federated: Option<Federated>,
    thumbprint: Option<String>,
    from_system: bool,
}

/// What comes of a login.
#[derive(Debug)]
pub enum Login {
    /// A token and what it says.
    Token(String, Arc<Validated>),
    /// What was proved is right but not enough: a receipt to come back with, and what it says.
    Receipt(String, Value),
}

impl Login {
    /// The token; where there is only a receipt, a 401.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub fn token(self) -> Result<(String, Arc<Validated>)> {
        match self {
            Login::Token(token, valid) => Ok((token, valid)),
            Login::Receipt(..) => Err(unauthorized()),
        }
    }
}

/// What a login may bring beside its body.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// The caller's address, if known: too many failures from one address are answered 429 for a while.
    pub from: Option<IpAddr>,
    /// What an earlier login gave that was not enough.
    pub receipt: Option<String>,
    /// The request's OAuth 1.0a signature, for the method `oauth1`.
    pub signed: Option<Signed>,
    /// The client certificate of the connection: a token bound to it makes tokens over it only.
    pub certificate: Option<Certificate>,
    /// The request's headers, for the methods `external` and `mapped`.
    pub headers: HeaderMap,
}

impl Beside {
    /// Nothing but where it comes from.
    pub fn from(from: Option<IpAddr>) -> Self {
        Beside { from, ..Beside::default() }
    }
}

/// Answers the body of a token request.
///
/// # Errors
/// `BadRequest` for a malformed body, `Unauthenticated` for wrong credentials, `NotFound` for a token that is none,
/// `TooManyRequests`.
pub async fn login(state: &State, body: &Value, beside: &Beside) -> Result<Login> {
    let from = beside.from;
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
    if let Some(receipt) = &beside.receipt {
        receipts::take(state, receipt, &mut proof).await?;
    }
    for method in methods {
        let whom = method.whom();
        state.throttle.admit(from, &whom, state.clock.now())?;
        let proved = prove(state, method, beside, &mut proof).await;
        if let Err(error) = &proved
            && error.kind() == base::Kind::Unauthenticated
        {
            state.throttle.failed(from, &whom, state.clock.now());
        }
        proved?;
    }
    let Some((user_id, generation)) = proof.user.clone() else { return Err(unauthorized()) };
    let (of, passed) = (user_id.clone(), proof.methods.clone());
    let rules = state.store.read(move |tx| lacking(tx, &of, &passed)).await?;
    if let Some(rules) = rules {
        // A receipt does not keep what a delegation is limited to, nor through whom the user came.
        if proof.limits() > 0 || proof.federated.is_some() {
            return Err(unauthorized());
        }
        return receipts::give(state, user_id, &proof, rules).await;
    }
    if proof.from_system && matches!(wanted, Wanted::Project(_) | Wanted::Domain(_)) {
        return Err(forbidden(
            "Using a system-scoped token to create a project-scoped or domain-scoped token is not allowed.",
        ));
    }
    if proof.limits() + usize::from(matches!(wanted, Wanted::Trust(_))) > 1 {
        return Err(forbidden("Only one delegation at a time can be used."));
    }
    if proof.thumbprint.is_some() && matches!(wanted, Wanted::System) {
        // Keystone's form of bound tokens has no room for it.
        return Err(forbidden(
            "Using a certificate-bound token to create a system-scoped token is not allowed.",
        ));
    }
    let trust = match &wanted {
        Wanted::Trust(id) => Some(trust_of(state, id, &user_id).await?),
        _ => None,
    };
    let by_credential = proof.application_credential.as_ref().map(|(_, project)| project);
    let bound = by_credential.or(proof.access_token.as_ref().map(|(_, project)| project));
    let scope = match (bound, &trust) {
        (Some(project), _) => PayloadScope::Project(project.as_str().to_owned()),
        (None, Some((trust, _))) => {
            let project = trust.project_id.as_ref().ok_or_else(unauthorized)?;
            PayloadScope::Project(project.as_str().to_owned())
        }
        (None, None) => {
            let user = user_id.clone();
            // As in Keystone, who comes from elsewhere gets no scope without asking.
            let unasked = proof.federated.is_some() && matches!(wanted, Wanted::Nothing);
            let wanted = if unasked { Wanted::Unscoped } else { wanted };
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
        trust_id: trust.as_ref().map(|(trust, _)| trust.id.clone()),
        access_token_id: proof.access_token.map(|(id, _)| id),
        federated: proof.federated,
        thumbprint: proof.thumbprint,
        generation: generation + trust.as_ref().map_or(0, |(_, trustor)| *trustor),
    };
    let issued = state.tokens.issue(order).await;
    let Some((trust, _)) = trust else { return issued.map(|(token, valid)| Login::Token(token, valid)) };
    // Whoever is the trustee may know why: a role of the trustor's is gone, or somebody of the chain is disabled.
    let (token, valid) = issued.map_err(|error| match error.kind() {
        base::Kind::Unauthenticated => forbidden("Trustee has no delegated roles."),
        _ => error,
    })?;
    // Counted once there is a token; where another was faster with the last use, the token is thrown away.
    if trust.remaining_uses.is_some() {
        state.write(move |tx| use_up(tx, &trust.id)).await?;
    }
    Ok(Login::Token(token, valid))
}

/// The trust asked for and its trustor's token generation, if `user` is its trustee.
async fn trust_of(state: &State, id: &str, user: &UserId) -> Result<(Trust, u64)> {
    let (id, now) = (id.to_owned(), state.clock.now());
    let found = state
        .store
        .read(move |tx| {
            let Some(trust) = tx.get::<Trust>(&id)?.filter(|t| t.usable(now)) else { return Ok(None) };
            let trustor = tx.get::<User>(&trust.trustor_user_id)?;
            Ok(trustor.map(|trustor| (trust, trustor.token_generation)))
        })
        .await?;
    let (trust, generation) = found.ok_or_else(unauthorized)?;
    if trust.trustee_user_id != *user {
        return Err(forbidden("User is not a trustee."));
    }
    Ok((trust, generation))
}

fn use_up(tx: &mut Tx<'_>, id: &str) -> Result<()> {
    let mut trust = tx.get::<Trust>(&id.to_owned())?.ok_or_else(unauthorized)?;
    let left = trust.remaining_uses.unwrap_or(1).checked_sub(1).ok_or_else(unauthorized)?;
    trust.remaining_uses = Some(left);
    tx.update(&mut trust)
}

/// Who the body says is logging in, for the audit trail: an id, or a name with its domain. Never a secret.
pub fn claimed(body: &Value) -> Option<String> {
    let identity = body.pointer("/auth/identity")?;
    let mapped = identity.as_object()?.iter().find(|(name, _)| method_of(name) == Some("mapped"));
    if let Some(idp) = mapped.and_then(|(_, m)| m.get("identity_provider")).and_then(Value::as_str) {
        return Some(format!("somebody of {}", idp.chars().take(64).collect::<String>()));
    }
    let place = ["password", "totp", "application_credential"].into_iter().find_map(|m| identity.get(m))?;
    let user = place.get("user").unwrap_or(place);
    let text =
        |value: Option<&Value>| value.and_then(Value::as_str).map(|t| t.chars().take(64).collect::<String>());
    if let Some(id) = text(user.get("id")) {
        return Some(id);
    }
    let domain = user.get("domain").and_then(|d| text(d.get("id")).or_else(|| text(d.get("name"))));
    Some(format!("{}@{}", text(user.get("name"))?, domain.unwrap_or_default()))
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
    if chosen.iter().any(|name| method_of(name).is_none()) {
        return Err(Error::unauthenticated("Attempted to authenticate with an unsupported method."));
    }
    // A method that is described but not chosen must be well-formed too.
    let described = identity.keys().map(String::as_str).filter(|name| !chosen.contains(name));
    let all: Vec<(&str, bool)> =
        chosen.iter().map(|n| (*n, true)).chain(described.map(|n| (n, false))).collect();
    let mut methods = Vec::new();
    for (name, wanted) in all {
        let Some(method) = method_of(name) else { continue };
        let path = format!("auth/identity/{name}");
        let data = identity.get(name).ok_or_else(|| expected(name, "identity"))?;
        let data = object(data, &path)?;
        let parsed = match method {
            "password" => {
                let user = data.get("user").ok_or_else(|| missing("user"))?;
                let path = format!("{path}/user");
                let map = object(user, &path)?;
                let password = map.get("password").ok_or_else(|| missing("password"))?;
                check(&format!("{path}/password"), Kind::Secret, false, password)?;
                let password = password.as_str().unwrap_or_default().to_owned();
                Method::Password { user: reference(map, "user", &path)?, password }
            }
            "totp" => {
                let user = data.get("user").ok_or_else(|| missing("user"))?;
                let path = format!("{path}/user");
                let map = object(user, &path)?;
                let passcode = map.get("passcode").ok_or_else(|| missing("passcode"))?;
                check(&format!("{path}/passcode"), Kind::Secret, false, passcode)?;
                let passcode = passcode.as_str().unwrap_or_default().to_owned();
                Method::Totp { user: reference(map, "user", &path)?, passcode }
            }
            "token" => {
                let id = data.get("id").ok_or_else(|| expected("id", "token"))?;
                check(&format!("{path}/id"), Kind::Secret, false, id)?;
                Method::Token(id.as_str().unwrap_or_default().to_owned())
            }
            // All it says is in the request's headers.
            "oauth1" => Method::OAuth1,
            "external" => Method::External,
            "mapped" => mapped_of(data, name, &path)?,
            _ => credential_of(data, &path)?,
        };
        if wanted {
            methods.push(parsed);
        }
    }
    Ok(methods)
}

fn mapped_of(data: &Map<String, Value>, name: &str, path: &str) -> Result<Method> {
    if let Some(id) = data.get("id") {
        check(&format!("{path}/id"), Kind::Secret, false, id)?;
        return Ok(Method::MappedToken(id.as_str().unwrap_or_default().to_owned()));
    }
    let idp = text(data, "identity_provider", path)?.ok_or_else(|| expected("identity_provider", name))?;
    let protocol = text(data, "protocol", path)?.ok_or_else(|| expected("protocol", name))?;
    Ok(Method::Mapped { idp, protocol })
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
    let kinds = ["project", "domain", "unscoped", "system", "OS-TRUST:trust"];
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
        "OS-TRUST:trust" => {
            let path = "auth/scope/OS-TRUST:trust";
            let id = text(object(value, path)?, "id", path)?;
            Wanted::Trust(id.ok_or_else(|| expected("trust_id", "trust"))?)
        }
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

/// Where the user's password is proved, if in a directory.
fn elsewhere(tx: &mut Tx<'_>, user: &Ref) -> Result<Option<Elsewhere>> {
    match user {
        Ref::Id(id) => {
            let Some(user) = tx.get::<User>(&UserId::new(id.clone()))? else { return Ok(None) };
            let enabled = tx.get::<Domain>(&user.domain_id)?.is_some_and(|d| d.enabled);
            if enabled { ldap::of_user(tx, &user) } else { Ok(None) }
        }
        Ref::Name(name, domain) => {
            let Some(domain) = find_domain(tx, domain)? else { return Ok(None) };
            match directory::user_named(tx, &domain.id, name)? {
                Some(user) => ldap::of_user(tx, &user),
                None => ldap::of_name(tx, &domain.id, name),
            }
        }
    }
}

/// The scope asked for, or the default; `None` where what was asked for does not exist or is disabled. Whether the
/// user has a role there is seen when the token is made.
fn scope_of(tx: &mut Tx<'_>, user: &UserId, wanted: &Wanted) -> Result<Option<PayloadScope>> {
    Ok(match wanted {
        Wanted::Unscoped => Some(PayloadScope::Unscoped),
        Wanted::System => Some(PayloadScope::System),
        Wanted::Trust(_) => None,
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

/// The user's rules, if none of them is fulfilled: all methods of one must have been passed. Methods this cloud does not
/// have are left out of a rule, and a rule without any other is none.
///
/// # Errors
/// The store's.
pub fn lacking(tx: &mut Tx<'_>, user: &UserId, passed: &[&str]) -> Result<Option<Vec<Vec<String>>>> {
    let options = tx.get::<User>(user)?.map(|u| u.options).unwrap_or_default();
    if options.get("multi_factor_auth_enabled") == Some(&Value::Bool(false)) {
        return Ok(None);
    }
    let rules = options.get("multi_factor_auth_rules").map_or(Ok(Vec::new()), method_rules)?;
    let known = |m: &String| method_of(m).or_else(|| (m == BY_CERTIFICATE).then_some(BY_CERTIFICATE));
    let mut rules: Vec<Vec<String>> =
        rules.iter().map(|rule| rule.iter().filter_map(known).map(str::to_owned).collect()).collect();
    rules.retain(|rule| !rule.is_empty());
    let fulfilled = |rule: &Vec<String>| rule.iter().all(|m| passed.contains(&m.as_str()));
    Ok(if rules.is_empty() || rules.iter().any(fulfilled) { None } else { Some(rules) })
}

impl Method {
    /// Whose failures are counted together; empty where nobody could guess anyway.
    fn whom(&self) -> String {
        let of = |user: &Ref| match user {
            Ref::Id(id) => format!("id {id}"),
            Ref::Name(name, DomainRef::Id(domain)) => format!("name {domain}/{name}"),
            Ref::Name(name, DomainRef::Name(domain)) => format!("named {domain}/{name}"),
        };
        match self {
            Method::Password { user, .. } | Method::Totp { user, .. } => of(user),
            Method::ApplicationCredential { name: Some((_, user)), .. } => of(user),
            Method::ApplicationCredential { .. }
            | Method::Token(_)
            | Method::OAuth1
            | Method::External
            | Method::Mapped { .. }
            | Method::MappedToken(_) => String::new(),
        }
    }
}

async fn prove(state: &State, one: Method, beside: &Beside, proof: &mut Proof) -> Result<()> {
    match one {
        Method::OAuth1 => {
            let signed = beside.signed.as_ref().ok_or_else(|| missing("oauth_token"))?;
            let (user, token) = oauth1::prove(state, signed).await?;
            proof.is(user.id, user.token_generation)?;
            proof.by("oauth1");
            proof.ends(token.expires_at);
            proof.access_token = Some((token.id, token.project_id));
        }
        Method::Password { user, password } => prove_by_password(state, user, &password, proof).await?,
        Method::Totp { user, passcode } => prove_by_totp(state, user, &passcode, proof).await?,
        Method::Token(token) => prove_by_token(state, &token, beside, proof).await?,
        Method::External => prove_in_front(state, beside, proof).await?,
        Method::Mapped { idp, protocol } => {
            let who = federation::admitted(state, &idp, &protocol, &beside.headers).await?;
            proof.is(who.user.id, who.user.token_generation)?;
            proof.by("mapped");
            proof.ends(Some(who.expires_at));
            proof.through(Some(&who.by))?;
        }
        Method::MappedToken(token) => {
            prove_by_token(state, &token, beside, proof).await?;
            if proof.federated.is_none() {
                return Err(no_token());
            }
            proof.by("mapped");
        }
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

async fn prove_by_password(state: &State, user: Ref, password: &str, proof: &mut Proof) -> Result<()> {
    let whom = user.clone();
    if let Some(at) = state.store.read(move |tx| elsewhere(tx, &whom)).await? {
        let user = state.prove_elsewhere(at, password).await?;
        proof.is(user.id, user.token_generation)?;
        proof.by("password");
        return Ok(());
    }
    let days = state.config.operator.security_compliance.disable_user_account_days_inactive;
    let found = state
        .store
        .read(move |tx| {
            let Some(user) = find_user(tx, &user)? else { return Ok(None) };
            let record = tx.get::<LoginRecord>(&user.id)?;
            let active = !compliance::inactive(&user, record.as_ref(), days, tx.now());
            Ok(active.then_some((user, record)))
        })
        .await?;
    let hash = found.as_ref().and_then(|(u, _)| u.password.as_deref());
    // Also where there is no such user: the answer must take as long.
    let right = state.passwords.verify(password, hash).await?;
    let Some((user, record)) = found else { return Err(unauthorized()) };
    state.note_login(&user, record.as_ref(), right).await?;
    if let Some(at) = user.password_expires_at
        && at <= state.clock.now()
        && user.options.get("ignore_password_expiry") != Some(&Value::Bool(true))
    {
        // Told only to who knows the password.
        return Err(Error::unauthenticated(format!(
            "The password is expired and needs to be changed for user: {}.",
            user.id
        )));
    }
    proof.is(user.id, user.token_generation)?;
    proof.by("password");
    Ok(())
}

async fn prove_by_totp(state: &State, user: Ref, passcode: &str, proof: &mut Proof) -> Result<()> {
    let found = state
        .store
        .read(move |tx| {
            let Some(user) = find_user(tx, &user)? else { return Ok(None) };
            let seeds = tx.list::<Credential>(&Query::new().eq("user_id", &user.id).eq("kind", "totp"))?;
            Ok(Some((user, seeds)))
        })
        .await?;
    let (user, seeds) = found.ok_or_else(unauthorized)?;
    let step = state.clock.now().as_secs().div_euclid(totp::PERIOD);
    let mut fits = None;
    for sealed in seeds {
        let Some(seed) = totp::seed(&state.open_secret(&sealed.sealed)?) else { continue };
        // The window before counts too: it takes time to type.
        for step in [step, step - 1] {
            if totp::passcode(&seed, step).is_some_and(|code| same_digest(&code, passcode)) {
                fits = Some(step);
            }
        }
    }
    let step = fits.ok_or_else(unauthorized)?;
    // A passcode is good once: who looked over a shoulder is late.
    let of = user.id.clone();
    state
        .write(move |tx| {
            let mut record = compliance::record(tx, &of)?;
            if record.totp_step.is_some_and(|last| last >= step) {
                return Err(unauthorized());
            }
            record.totp_step = Some(step);
            tx.update(&mut record)
        })
        .await?;
    proof.is(user.id, user.token_generation)?;
    proof.by("totp");
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

/// A user of this cloud whom the front end has let in.
async fn prove_in_front(state: &State, beside: &Beside, proof: &mut Proof) -> Result<()> {
    let said = match &state.front_end {
        Some(front) => front.user(&beside.headers),
        None => Err(Error::unauthenticated("no front end is believed")),
    };
    let (name, domain) = said.map_err(|error| {
        tracing::info!(reason = error.public(), "a login by the front end was refused");
        unauthorized()
    })?;
    let domain = domain.map_or_else(|| DomainRef::Id(DEFAULT_DOMAIN.into()), DomainRef::Name);
    let user = Ref::Name(name, domain);
    let user = state.store.read(move |tx| find_user(tx, &user)).await?.ok_or_else(unauthorized)?;
    proof.is(user.id, user.token_generation)?;
    proof.by("external");
    Ok(())
}

async fn prove_by_token(state: &State, token: &str, beside: &Beside, proof: &mut Proof) -> Result<()> {
    let valid = state.tokens.validate(token).await?;
    let certificate = beside.certificate.as_ref().map(|c| &*c.0);
    let valid = valid.filter(|v| v.good_with(certificate)).ok_or_else(no_token)?;
    if valid.delegated() {
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
    proof.through(valid.federated.as_ref())?;
    // What is made of a bound token is bound.
    proof.thumbprint.clone_from(&valid.thumbprint);
    Ok(())
}

impl Proof {
    /// How many delegations, or bonds, were proved; a token has room for one.
    fn limits(&self) -> usize {
        [self.application_credential.is_some(), self.access_token.is_some(), self.thumbprint.is_some()]
            .into_iter()
            .map(usize::from)
            .sum()
    }

    fn is(&mut self, user: UserId, generation: u64) -> Result<()> {
        match &self.user {
            Some((other, _)) if *other != user => Err(unauthorized()),
            _ => {
                self.user = Some((user, generation));
                Ok(())
            }
        }
    }

    /// The identity provider the user came through; one at most.
    fn through(&mut self, by: Option<&Federated>) -> Result<()> {
        let same = |a: &Federated, b: &Federated| (&a.idp_id, &a.protocol_id) == (&b.idp_id, &b.protocol_id);
        match (&self.federated, by) {
            (_, None) => Ok(()),
            (Some(held), Some(by)) if !same(held, by) => Err(unauthorized()),
            (_, Some(by)) => {
                self.federated = Some(by.clone());
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
