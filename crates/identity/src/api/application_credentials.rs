//! Application credentials and the access rules they can be limited by.

use ::api::{Op, Reply, Request, Target};
use base::{ApplicationCredentialId, Error, Result, RoleId, Timestamp, UserId};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::{Cx, enforce, expiry, listed, one};
use crate::directory;
use crate::logic::body::{Doc, Kind, check, invalid, may, may_null, missing, must, shape};
use crate::logic::inference::closure;
use crate::model::{AccessRule, ApplicationCredential, Place, Role, RuleOfAccess, made_of};
use crate::password::digest;
use crate::state::State;
use crate::words::{forbidden, no_access_rule, no_application_credential, no_role, told};

shape!(
    ApplicationCredentialCreate,
    "application_credential",
    true,
    [
        must("name", Kind::Text(1, 255)),
        may_null("secret", Kind::Secret),
        may_null("description", Kind::Text(0, 65_535)),
        may_null("expires_at", Kind::Text(1, 64)),
        may("roles", Kind::Objects),
        may_null("unrestricted", Kind::Bool),
        may_null("access_rules", Kind::Objects),
    ]
);

const METHODS: [&str; 6] = ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"];

pub(super) fn ops() -> Vec<Op<State>> {
    const ALL: &str = "/v3/users/{user_id}/application_credentials";
    const ONE: &str = "/v3/users/{user_id}/application_credentials/{application_credential_id}";
    const RULES: &str = "/v3/users/{user_id}/access_rules";
    const RULE: &str = "/v3/users/{user_id}/access_rules/{access_rule_id}";
    vec![
        Op::get(ALL, "identity:list_application_credentials", list).summary("Lists application credentials."),
        Op::post(ALL, "identity:create_application_credential", create)
            .status(201)
            .summary("Makes an application credential for the token's project."),
        Op::get(ONE, "identity:get_application_credential", show).summary("Shows an application credential."),
        Op::delete(ONE, "identity:delete_application_credential", delete)
            .summary("Deletes an application credential."),
        Op::get(RULES, "identity:list_access_rules", list_rules).summary("Lists access rules."),
        Op::get(RULE, "identity:get_access_rule", show_rule).summary("Shows an access rule."),
        Op::delete(RULE, "identity:delete_access_rule", delete_rule)
            .summary("Deletes an access rule that is not used."),
    ]
}

fn wire(cx: &Cx, credential: &ApplicationCredential, roles: &[Role]) -> Value {
    let roles: Vec<Value> = credential
        .roles
        .iter()
        .filter_map(|id| roles.iter().find(|r| r.id == *id))
        .map(|r| json!({"id": r.id, "name": r.name, "domain_id": r.domain(), "description": r.description, "options": r.options}))
        .collect();
    let mut map = Map::new();
    map.insert("id".into(), json!(credential.id));
    map.insert("name".into(), json!(credential.name));
    map.insert("description".into(), json!(credential.description));
    map.insert("project_id".into(), json!(credential.project_id));
    map.insert("user_id".into(), json!(credential.user_id));
    map.insert("roles".into(), Value::Array(roles));
    // Without a zone, as it was sent: Tempest compares the texts.
    map.insert("expires_at".into(), json!(credential.expires_at.map(Timestamp::iso_naive)));
    map.insert("unrestricted".into(), json!(credential.unrestricted));
    map.insert("system".into(), Value::Null);
    if let Some(rules) = &credential.access_rules {
        map.insert("access_rules".into(), json!(rules));
    }
    let path = format!("/v3/users/{}/application_credentials/{}", credential.user_id, credential.id);
    map.insert("links".into(), json!({"self": cx.url(&path)}));
    Value::Object(map)
}

/// The target of everything below a user: whose it is.
fn whose(user: &UserId) -> Target {
    Target::none().set("target.user.id", user.as_str())
}

fn roles_of(tx: &mut Tx<'_>, credentials: &[ApplicationCredential]) -> Result<Vec<Role>> {
    tx.list::<Role>(&Query::new().is_in("id", credentials.iter().flat_map(|c| &c.roles)))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let user = UserId::new(req.param("user_id"));
    enforce(&cx, &whose(&user))?;
    let (found, roles) = cx
        .read(move |tx| {
            directory::user(tx, &user)?;
            let found = tx.list::<ApplicationCredential>(&Query::new().eq("user_id", &user))?;
            let roles = roles_of(tx, &found)?;
            Ok((found, roles))
        })
        .await?;
    let items = found.iter().map(|c| wire(&cx, c, &roles)).collect();
    listed(&cx, &req, "application_credentials", items, &["name"])
}

/// The credential of the path, if the caller may. Whose it is decides, not whose the path says it is; then both must
/// agree.
async fn allowed(cx: &Cx, req: &Request<()>) -> Result<(ApplicationCredential, Vec<Role>)> {
    let text = req.param("application_credential_id").to_owned();
    let (id, user) = (ApplicationCredentialId::new(text.clone()), UserId::new(req.param("user_id")));
    let found = cx
        .read(move |tx| {
            let Some(found) = tx.get::<ApplicationCredential>(&id)? else { return Ok(None) };
            let roles = roles_of(tx, std::slice::from_ref(&found))?;
            Ok(Some((found, roles)))
        })
        .await?;
    enforce(cx, &whose(found.as_ref().map_or(&user, |(c, _)| &c.user_id)))?;
    found.filter(|(c, _)| c.user_id == user).ok_or_else(|| no_application_credential(&text))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (credential, roles) = allowed(&cx, &req).await?;
    Ok(one("application_credential", wire(&cx, &credential, &roles)))
}

fn unusable(detail: &str) -> Error {
    Error::bad_request(format!("Invalid application credential: {detail}"))
}

/// A token of a restricted credential must not manage credentials.
async fn unrestricted<T>(cx: &Cx, req: &Request<T>) -> Result<()> {
    let valid = cx.caller(req).await?;
    if valid.trust.is_some() || valid.access_token.is_some() {
        // It would outlive the delegation.
        return Err(Error::forbidden(
            "Cannot manage application credentials with a token issued via delegation.",
        ));
    }
    match &valid.application_credential {
        Some(by) if !by.unrestricted => Err(forbidden(
            "Using method 'application_credential' is not allowed for managing additional application credentials.",
        )),
        _ => Ok(()),
    }
}

/// How the body names a role.
enum RoleRef {
    Id(String),
    Name(String),
}

fn role_refs(given: Option<Vec<Map<String, Value>>>) -> Result<Vec<RoleRef>> {
    let mut refs = Vec::new();
    for (i, map) in given.unwrap_or_default().into_iter().enumerate() {
        let text = |key: &str| -> Result<Option<String>> {
            Ok(match map.get(key) {
                None => None,
                Some(value) => {
                    check(&format!("roles/{i}/{key}"), Kind::Text(1, 255), false, value)?;
                    value.as_str().map(str::to_owned)
                }
            })
        };
        refs.push(match (text("id")?, text("name")?) {
            (Some(id), _) => RoleRef::Id(id),
            (None, Some(name)) => RoleRef::Name(name),
            (None, None) => return Err(missing(&format!("roles/{i}/id"))),
        });
    }
    Ok(refs)
}

/// A rule of the body: an id of one that exists, or a whole one.
fn access_rules(given: Vec<Map<String, Value>>) -> Result<Vec<Map<String, Value>>> {
    for (i, map) in given.iter().enumerate() {
        let place = |key: &str| format!("access_rules/{i}/{key}");
        if let Some(id) = map.get("id") {
            check(&place("id"), Kind::Id, false, id)?;
            continue;
        }
        for (key, kind) in
            [("service", Kind::Text(1, 64)), ("method", Kind::OneOf(&METHODS)), ("path", Kind::Text(1, 225))]
        {
            check(&place(key), kind, false, map.get(key).ok_or_else(|| missing(&place(key)))?)?;
        }
        if !map.get("path").and_then(Value::as_str).is_some_and(|p| p.starts_with('/')) {
            return Err(invalid(&place("path"), "must begin with '/'"));
        }
    }
    Ok(given)
}

/// Finds or makes the rules of a credential.
fn settle_rules(tx: &mut Tx<'_>, user: &UserId, given: &[Map<String, Value>]) -> Result<Vec<RuleOfAccess>> {
    let mut rules = Vec::new();
    for map in given {
        let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let rule = if map.contains_key("id") {
            let found = tx.get::<AccessRule>(&text("id"))?.filter(|r| r.user_id == *user);
            found.ok_or_else(|| Error::bad_request(no_access_rule(&text("id")).public().to_owned()))?
        } else {
            let (service, method, path) = (text("service"), text("method"), text("path"));
            let id = made_of(&["access rule", user.as_str(), &service, &method, &path]);
            match tx.get::<AccessRule>(&id)? {
                Some(found) => found,
                None => {
                    let (meta, user_id) = (store::Meta::default(), user.clone());
                    let mut rule = AccessRule { id, meta, user_id, service, method, path };
                    directory::insert_once(tx, &mut rule)?;
                    rule
                }
            }
        };
        rules.push(RuleOfAccess { id: rule.id, service: rule.service, method: rule.method, path: rule.path });
    }
    Ok(rules)
}

/// The roles of a new credential: those named and all they imply, or all of the token; never more than the token has.
fn settle_roles(tx: &mut Tx<'_>, refs: &[RoleRef], held: &[RoleId]) -> Result<Vec<RoleId>> {
    if refs.is_empty() {
        return Ok(held.to_vec());
    }
    let mut named = Vec::new();
    for wanted in refs {
        let (found, text) = match wanted {
            RoleRef::Id(id) => (tx.get::<Role>(&RoleId::new(id.clone()))?, id),
            RoleRef::Name(name) => (directory::role_named(tx, name)?, name),
        };
        named.push(found.ok_or_else(|| Error::bad_request(no_role(text).public().to_owned()))?.id);
    }
    let rules = directory::rules(tx)?;
    let all: Vec<RoleId> =
        closure(&rules, named.iter().map(RoleId::as_str)).into_iter().map(RoleId::new).collect();
    if all.iter().any(|id| !held.contains(id)) {
        return Err(unusable("Cannot create an application credential with unassigned role"));
    }
    Ok(all)
}

async fn create(cx: Cx, req: Request<Doc<ApplicationCredentialCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let refs = role_refs(fields.objects("roles"))?;
    let rules = fields.objects("access_rules").map(access_rules).transpose()?;
    let user = UserId::new(req.param("user_id"));
    enforce(&cx, &whose(&user))?;
    unrestricted(&cx, &req).await?;
    let valid = cx.caller(&req).await?;
    let project = cx.project_id()?.clone();
    let chosen = fields.nullable("secret").flatten();
    let (secret, hash) = match chosen {
        Some(secret) if !secret.is_empty() => {
            let hash = cx.passwords.hash(&secret, &cx.entropy).await?;
            (secret, hash)
        }
        _ => {
            let mut bytes = [0; 64];
            cx.entropy.fill(&mut bytes);
            let secret = URL_SAFE_NO_PAD.encode(bytes);
            let hash = format!("sha256:{}", digest(&secret));
            (secret, hash)
        }
    };
    let expires_at = expiry(fields.nullable("expires_at").flatten().as_deref(), cx.now())?;
    let credential = ApplicationCredential {
        id: ApplicationCredentialId::random(&cx.entropy),
        meta: store::Meta::default(),
        user_id: user,
        name: fields.text("name").unwrap_or_default(),
        project_id: project,
        description: fields.nullable("description").flatten(),
        secret: hash,
        expires_at,
        roles: Vec::new(),
        unrestricted: fields.flag("unrestricted").unwrap_or(false),
        access_rules: None,
    };
    let most = cx.config.application_credentials_per_user;
    // A restricted credential's rules bind whatever is made with it.
    let bound = valid.application_credential.clone();
    let held: Vec<RoleId> = valid.roles.iter().map(|(id, _)| id.clone()).collect();
    let made = cx
        .write(move |tx| {
            let mut credential = credential.clone();
            if let Some(by) = &bound
                && by.access_rules.is_some()
            {
                return Err(forbidden("a credential limited by access rules cannot make another"));
            }
            let count = tx.count::<ApplicationCredential>(&Query::new().eq("user_id", &credential.user_id))?;
            if usize::try_from(count).unwrap_or(usize::MAX) >= most {
                return Err(Error::forbidden(format!(
                    "Unable to create additional application credentials, maximum of {most} already exceeded for user."
                )));
            }
            credential.roles = settle_roles(tx, &refs, &held)?;
            // What the token held when it was checked must still hold.
            let place = Place::Project(credential.project_id.clone());
            let present = directory::roles_on(tx, &credential.user_id, &place)?;
            if credential.roles.iter().any(|id| present.iter().all(|r| r.id != *id)) {
                return Err(unusable("Cannot create an application credential with unassigned role"));
            }
            if let Some(rules) = &rules {
                credential.access_rules = Some(settle_rules(tx, &credential.user_id, rules)?);
            }
            told(tx.insert(&mut credential), "application_credential", || {
                format!("Duplicate entry found with name {}", credential.name)
            })?;
            Ok((credential, present))
        })
        .await?;
    let mut shown = wire(&cx, &made.0, &made.1);
    if let Some(map) = shown.as_object_mut() {
        map.insert("secret".into(), Value::String(secret));
    }
    Ok(one("application_credential", shown))
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (credential, _) = allowed(&cx, &req).await?;
    unrestricted(&cx, &req).await?;
    cx.write(move |tx| {
        if !tx.delete::<ApplicationCredential>(&credential.id)? {
            return Err(no_application_credential(credential.id.as_str()));
        }
        directory::touch_user(tx, &credential.user_id)
    })
    .await?;
    Ok(Reply::empty())
}

// ---- access rules

fn rule_wire(cx: &Cx, rule: &AccessRule) -> Value {
    json!({
        "id": rule.id, "service": rule.service, "method": rule.method, "path": rule.path,
        "links": {"self": cx.url(&format!("/v3/users/{}/access_rules/{}", rule.user_id, rule.id))},
    })
}

async fn list_rules(cx: Cx, req: Request<()>) -> Result<Reply> {
    let user = UserId::new(req.param("user_id"));
    enforce(&cx, &whose(&user))?;
    let found = cx.read(move |tx| tx.list::<AccessRule>(&Query::new().eq("user_id", &user))).await?;
    let items = found.iter().map(|r| rule_wire(&cx, r)).collect();
    listed(&cx, &req, "access_rules", items, &["service", "method", "path"])
}

async fn allowed_rule(cx: &Cx, req: &Request<()>) -> Result<AccessRule> {
    let (text, user) = (req.param("access_rule_id").to_owned(), UserId::new(req.param("user_id")));
    let id = text.clone();
    let found = cx.read(move |tx| tx.get::<AccessRule>(&id)).await?;
    enforce(cx, &whose(found.as_ref().map_or(&user, |r| &r.user_id)))?;
    found.filter(|r| r.user_id == user).ok_or_else(|| no_access_rule(&text))
}

async fn show_rule(cx: Cx, req: Request<()>) -> Result<Reply> {
    let rule = allowed_rule(&cx, &req).await?;
    Ok(one("access_rule", rule_wire(&cx, &rule)))
}

async fn delete_rule(cx: Cx, req: Request<()>) -> Result<Reply> {
    let rule = allowed_rule(&cx, &req).await?;
    cx.write(move |tx| {
        let all = tx.list::<ApplicationCredential>(&Query::new().eq("user_id", &rule.user_id))?;
        if all.iter().any(|c| c.access_rules.iter().flatten().any(|r| r.id == rule.id)) {
            return Err(forbidden(
                "Unable to delete an access rule that is used by an application credential",
            ));
        }
        tx.delete::<AccessRule>(&rule.id)
    })
    .await?;
    Ok(Reply::empty())
}
