//! OAuth 1.0a (`OS-OAUTH1`): the programs that are registered, and how they come to act for users.

use ::api::{Op, Reply, Request, ScopeKind, Target};
use base::{ProjectId, Result, RoleId, Timestamp, UserId};
use serde_json::{Value, json};
use store::{Query, Tx};

use super::{Cx, enforce, entity, inserted, listed, listed_all, one, roles};
use crate::directory;
use crate::logic::body::{Doc, Kind, check, invalid, may_null, missing, must, shape};
use crate::logic::oauth1::{Signed, parameters};
use crate::model::{AccessToken, Consumer, Place, RequestToken, Role};
use crate::oauth1::{end, of_consumer_end, spend};
use crate::password::{digest, same_digest};
use crate::state::State;
use crate::words::{forbidden, no_access_token, no_consumer, no_request_token, no_role, unauthorized};

shape!(ConsumerCreate, "consumer", true, [may_null("description", Kind::Text(0, 65_535))]);
shape!(ConsumerUpdate, "consumer", true, [may_null("description", Kind::Text(0, 65_535))]);
shape!(Authorization, "", true, [must("roles", Kind::Objects)]);

/// What answers of the dance are.
const FORM: &str = "application/x-www-form-urlencoded";
/// Seconds a request token is good for (Keystone's `[oauth1] request_token_duration`).
const ASKED: i64 = 28_800;
/// Seconds an access token is good for (Keystone's `[oauth1] access_token_duration`).
const GIVEN: i64 = 86_400;
/// Letters of a verifier: none that look alike.
const LETTERS: &[u8] = b"abcdefghkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";

pub(super) fn ops() -> Vec<Op<State>> {
    const ALL: &str = "/v3/OS-OAUTH1/consumers";
    const ONE: &str = "/v3/OS-OAUTH1/consumers/{consumer_id}";
    const OF_USER: &str = "/v3/users/{user_id}/OS-OAUTH1/access_tokens";
    const TOKEN: &str = "/v3/users/{user_id}/OS-OAUTH1/access_tokens/{access_token_id}";
    const ROLES: &str = "/v3/users/{user_id}/OS-OAUTH1/access_tokens/{access_token_id}/roles";
    const ROLE: &str = "/v3/users/{user_id}/OS-OAUTH1/access_tokens/{access_token_id}/roles/{role_id}";
    const IN_PROJECT: &[ScopeKind] = &[ScopeKind::Project];
    vec![
        Op::get(ALL, "identity:list_consumers", list).summary("Lists consumers."),
        Op::post(ALL, "identity:create_consumer", create)
            .status(201)
            .summary("Registers a consumer; its secret is told once."),
        Op::get(ONE, "identity:get_consumer", show).summary("Shows a consumer."),
        Op::patch(ONE, "identity:update_consumer", update).summary("Changes a consumer."),
        Op::delete(ONE, "identity:delete_consumer", delete)
            .summary("Deletes a consumer, and all it was given."),
        Op::post("/v3/OS-OAUTH1/request_token", "", request)
            .public()
            .status(201)
            .summary("Gives a consumer, who signs the request, a token with which to ask a user for rights."),
        Op::put("/v3/OS-OAUTH1/authorize/{request_token_id}", "identity:authorize_request_token", authorize)
            .scopes(IN_PROJECT)
            .summary("Says yes to a consumer: it may act for the caller with these roles."),
        Op::post("/v3/OS-OAUTH1/access_token", "", access).public().status(201).summary(
            "Gives a consumer, who signs the request, an access token for a request token that was authorized.",
        ),
        Op::get(OF_USER, "identity:list_access_tokens", list_tokens)
            .scopes(IN_PROJECT)
            .summary("Lists the access tokens a user has given."),
        Op::get(TOKEN, "identity:get_access_token", show_token)
            .scopes(IN_PROJECT)
            .summary("Shows an access token."),
        Op::delete(TOKEN, "identity:delete_access_token", delete_token)
            .scopes(IN_PROJECT)
            .summary("Takes an access token back."),
        Op::get(ROLES, "identity:list_access_token_roles", list_roles)
            .scopes(IN_PROJECT)
            .summary("Lists the roles of an access token."),
        Op::get(ROLE, "identity:get_access_token_role", show_role)
            .scopes(IN_PROJECT)
            .summary("Shows a role of an access token."),
    ]
}

fn wire(cx: &Cx, consumer: &Consumer) -> Value {
    let own = json!({"id": consumer.id, "description": consumer.description});
    entity(cx, &format!("/v3/OS-OAUTH1/consumers/{}", consumer.id), own, &consumer.extra)
}

fn consumer(tx: &mut Tx<'_>, id: &str) -> Result<Consumer> {
    tx.get::<Consumer>(&id.to_owned())?.ok_or_else(|| no_consumer(id))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    listed_all::<Consumer, _>(&cx, &req, "consumers", wire, &[]).await
}

async fn create(cx: Cx, req: Request<Doc<ConsumerCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let secret = cx.entropy.uuid().simple().to_string();
    fields.value("secret");
    let made = Consumer {
        id: cx.entropy.uuid().simple().to_string(),
        meta: store::Meta::default(),
        description: fields.nullable("description").flatten(),
        sealed: cx.seal_secret(&secret),
        extra: fields.extra(),
    };
    let made = inserted(&cx, made).await?;
    let mut shown = wire(&cx, &made);
    if let Some(map) = shown.as_object_mut() {
        map.insert("secret".into(), Value::String(secret));
    }
    Ok(one("consumer", shown))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("consumer_id").to_owned();
    let found = cx.read(move |tx| consumer(tx, &id)).await?;
    Ok(one("consumer", wire(&cx, &found)))
}

async fn update(cx: Cx, req: Request<Doc<ConsumerUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id = req.param("consumer_id").to_owned();
    fields.same_id(&id)?;
    if fields.has("secret") {
        return Err(invalid("secret", "Cannot change consumer secret"));
    }
    let (description, extra) = (fields.nullable("description"), fields.extra());
    let changed = cx
        .write(move |tx| {
            let mut held = consumer(tx, &id)?;
            if let Some(description) = &description {
                held.description.clone_from(description);
            }
            held.extra.extend(extra.clone());
            tx.update(&mut held)?;
            Ok(held)
        })
        .await?;
    Ok(one("consumer", wire(&cx, &changed)))
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("consumer_id").to_owned();
    cx.write(move |tx| {
        consumer(tx, &id)?;
        of_consumer_end(tx, &id)?;
        tx.delete::<Consumer>(&id)
    })
    .await?;
    Ok(Reply::empty())
}

// ---- what a consumer asks, and a user gives

/// The request's signature, if it has one.
pub(super) fn signed<T>(cx: &Cx, req: &Request<T>) -> Option<Signed> {
    let params = parameters(req.header("authorization")?)?;
    let told = cx.url(req.path());
    let mut urls = vec![told.clone()];
    // A client may know the cloud by another name than its own.
    if let (Some(host), Some((scheme, rest))) = (req.header("host"), told.split_once("://")) {
        let path = rest.find('/').map_or("", |at| rest.split_at(at).1);
        urls.push(format!("{scheme}://{host}{path}"));
    }
    let query = req.query_pairs().iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    Some(Signed { method: req.method().to_string(), urls, params, query })
}

/// A parameter that must be there.
fn needed(signed: &Signed, name: &str) -> Result<String> {
    signed.get(name).map(str::to_owned).ok_or_else(|| missing(name))
}

fn form(id: &str, secret: &str, end: Timestamp) -> Reply {
    let text = format!("oauth_token={id}&oauth_token_secret={secret}&oauth_expires_at={}", end.iso_micros());
    Reply::bytes(FORM, text).header("cache-control", "no-store").about(id)
}

fn headers_missing() -> base::Error {
    base::Error::bad_request("Error while parsing OAuth headers.")
}

async fn request(cx: Cx, req: Request<()>) -> Result<Reply> {
    let signed = signed(&cx, &req).ok_or_else(headers_missing)?;
    let consumer_id = needed(&signed, "oauth_consumer_key")?;
    let project = req.header("requested-project-id").filter(|p| !p.is_empty());
    let project = ProjectId::new(project.ok_or_else(|| missing("Requested-Project-Id"))?);
    let found = cx.read(move |tx| consumer(tx, &consumer_id)).await?;
    cx.check_signature(&signed, &found, None)?;
    let (id, secret) = (cx.entropy.uuid().simple().to_string(), cx.entropy.uuid().simple().to_string());
    let end = cx.now().plus_secs(ASKED);
    let made = RequestToken {
        id: id.clone(),
        meta: store::Meta::default(),
        consumer_id: found.id,
        project_id: project,
        sealed: cx.seal_secret(&secret),
        expires_at: Some(end),
        authorizing_user_id: None,
        verifier: None,
        roles: Vec::new(),
    };
    cx.write(move |tx| {
        spend(tx, &signed)?;
        consumer(tx, &made.consumer_id)?;
        directory::project(tx, &made.project_id)?;
        tx.insert(&mut made.clone())
    })
    .await?;
    Ok(form(&id, &secret, end))
}

/// The request token, if it is not over.
fn asked(tx: &mut Tx<'_>, id: &str) -> Result<RequestToken> {
    let found = tx.get::<RequestToken>(&id.to_owned())?.ok_or_else(|| no_request_token(id))?;
    if found.expires_at.is_some_and(|end| end <= tx.now()) {
        return Err(base::Error::unauthenticated("Request token is expired"));
    }
    Ok(found)
}

/// The roles a body names, by id or name.
fn named(given: Vec<serde_json::Map<String, Value>>) -> Result<Vec<(bool, String)>> {
    let mut all = Vec::new();
    for (i, map) in given.into_iter().enumerate() {
        let place = |key: &str| format!("roles/{i}/{key}");
        let (key, value) = match (map.get("id"), map.get("name")) {
            (Some(id), None) if map.len() == 1 => ("id", id),
            (None, Some(name)) if map.len() == 1 => ("name", name),
            _ => return Err(invalid(&format!("roles/{i}"), "must be the id or the name of a role")),
        };
        check(&place(key), Kind::Text(1, 255), false, value)?;
        all.push((key == "id", value.as_str().unwrap_or_default().to_owned()));
    }
    if all.is_empty() {
        return Err(invalid("roles", "must name a role"));
    }
    Ok(all)
}

async fn authorize(cx: Cx, req: Request<Doc<Authorization>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let valid = cx.caller(&req).await?;
    if valid.delegated() || valid.auth.methods.iter().any(|m| m == "application_credential") {
        return Err(forbidden("Cannot authorize a request token with a token issued via delegation."));
    }
    let given = named(fields.objects("roles").unwrap_or_default())?;
    let letter = || {
        let at = usize::try_from(cx.entropy.below(LETTERS.len() as u64)).unwrap_or(0);
        char::from(LETTERS.get(at).copied().unwrap_or(b'x'))
    };
    let verifier: String = (0..8).map(|_| letter()).collect();
    let (id, user, kept) =
        (req.param("request_token_id").to_owned(), cx.user_id().clone(), digest(&verifier));
    cx.write(move |tx| {
        let mut token = asked(tx, &id)?;
        let held = directory::roles_on(tx, &user, &Place::Project(token.project_id.clone()))?;
        let mut ids: Vec<RoleId> = Vec::new();
        for (by_id, text) in &given {
            let fits = |r: &&Role| if *by_id { r.id.as_str() == text } else { r.name == *text };
            let role = held.iter().find(fits).ok_or_else(|| {
                base::Error::unauthenticated("authorizing user does not have role required")
            })?;
            if !ids.contains(&role.id) {
                ids.push(role.id.clone());
            }
        }
        token.authorizing_user_id = Some(user.clone());
        token.verifier = Some(kept.clone());
        token.roles = ids;
        tx.update(&mut token)
    })
    .await?;
    Ok(Reply::json(&json!({"token": {"oauth_verifier": verifier}})))
}

async fn access(cx: Cx, req: Request<()>) -> Result<Reply> {
    let signed = signed(&cx, &req).ok_or_else(headers_missing)?;
    let consumer_id = needed(&signed, "oauth_consumer_key")?;
    let token_id = needed(&signed, "oauth_token")?;
    let verifier = digest(&needed(&signed, "oauth_verifier")?);
    let (by, of) = (consumer_id.clone(), token_id.clone());
    let found = cx.read(move |tx| {
        let token = asked(tx, &of)?;
        let consumer = tx.get::<Consumer>(&by)?.filter(|c| c.id == token.consumer_id);
        Ok((consumer.ok_or_else(unauthorized)?, token))
    });
    let (consumer, asked_for) = found.await?;
    cx.check_signature(&signed, &consumer, Some(&asked_for.sealed))?;
    let (id, secret) = (cx.entropy.uuid().simple().to_string(), cx.entropy.uuid().simple().to_string());
    let (end, sealed) = (cx.now().plus_secs(GIVEN), cx.seal_secret(&secret));
    let new = id.clone();
    cx.write(move |tx| {
        spend(tx, &signed)?;
        // Again: it may have been used, or authorized anew, meanwhile.
        let token = asked(tx, &token_id)?;
        if !token.verifier.as_ref().is_some_and(|known| same_digest(known, &verifier)) {
            return Err(base::Error::unauthenticated("Provided verifier does not match stored verifier"));
        }
        let user = token.authorizing_user_id.ok_or_else(unauthorized)?;
        tx.delete::<RequestToken>(&token_id)?;
        tx.insert(&mut AccessToken {
            id: new.clone(),
            meta: store::Meta::default(),
            consumer_id: token.consumer_id,
            authorizing_user_id: user,
            project_id: token.project_id,
            roles: token.roles,
            sealed: sealed.clone(),
            expires_at: Some(end),
        })
    })
    .await?;
    Ok(form(&id, &secret, end))
}

// ---- what a user has given

fn token_wire(cx: &Cx, token: &AccessToken) -> Value {
    let path = format!("/v3/users/{}/OS-OAUTH1/access_tokens/{}", token.authorizing_user_id, token.id);
    json!({
        "id": token.id, "consumer_id": token.consumer_id, "project_id": token.project_id,
        "authorizing_user_id": token.authorizing_user_id,
        "expires_at": token.expires_at.map(Timestamp::iso_micros),
        "links": {"self": cx.url(&path), "roles": cx.url(&format!("{path}/roles"))},
    })
}

/// Who acts by a delegation neither sees nor ends another.
async fn own_hands(cx: &Cx, req: &Request<()>) -> Result<()> {
    if cx.caller(req).await?.delegated() {
        return Err(forbidden("Cannot manage OAuth access tokens with a token issued via delegation."));
    }
    Ok(())
}

/// The access token of the path, which must be that user's.
async fn token_of(cx: &Cx, req: &Request<()>) -> Result<(AccessToken, Vec<Role>)> {
    enforce(cx, &Target::none())?;
    own_hands(cx, req).await?;
    let (id, user) = (req.param("access_token_id").to_owned(), UserId::new(req.param("user_id")));
    cx.read(move |tx| {
        let found = tx.get::<AccessToken>(&id)?.filter(|t| t.authorizing_user_id == user);
        let found = found.ok_or_else(|| no_access_token(&id))?;
        let roles = tx.list::<Role>(&Query::new().is_in("id", &found.roles))?;
        Ok((found, roles))
    })
    .await
}

async fn list_tokens(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    own_hands(&cx, &req).await?;
    let user = UserId::new(req.param("user_id"));
    let found = cx
        .read(move |tx| {
            directory::user(tx, &user)?;
            tx.list::<AccessToken>(&Query::new().eq("authorizing_user_id", &user))
        })
        .await?;
    let items = found.iter().map(|t| token_wire(&cx, t)).collect();
    listed(&cx, &req, "access_tokens", items, &[])
}

async fn show_token(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (token, _) = token_of(&cx, &req).await?;
    Ok(one("access_token", token_wire(&cx, &token)))
}

async fn delete_token(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (token, _) = token_of(&cx, &req).await?;
    cx.write(move |tx| end(tx, &token)).await?;
    Ok(Reply::empty())
}

async fn list_roles(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (_, found) = token_of(&cx, &req).await?;
    let items = found.iter().map(|r| roles::wire(&cx, r)).collect();
    listed(&cx, &req, "roles", items, &[])
}

async fn show_role(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (_, found) = token_of(&cx, &req).await?;
    let id = req.param("role_id");
    let role = found.iter().find(|r| r.id.as_str() == id).ok_or_else(|| no_role(id))?;
    Ok(one("role", roles::wire(&cx, role)))
}
