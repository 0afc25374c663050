//! Key pairs: public keys of users, and for versions before 2.92 also pairs made here.

use ::api::types::Text;
use ::api::{Ctx, JsonSchema, Op, Reply, Request, Target};
use base::{Error, Result, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::lists::{cut, strict};
use super::quotas::effective_limits;
use crate::State;
use crate::logic::keys;
use crate::model::KeyPair;

const RULE: &str = "rule:context_is_admin or user_id:%(user_id)s";
const ALL: &str = "/v2.1/os-keypairs";
const ONE: &str = "/v2.1/os-keypairs/{name}";

/// Operations on key pairs.
pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get(ALL, "os_compute_api:os-keypairs:index", list).default_rule(RULE).summary("List key pairs"),
        Op::post(ALL, "os_compute_api:os-keypairs:create", create)
            .status(201)
            .default_rule(RULE)
            .summary("Import a public key, or make a key pair (before 2.92)"),
        Op::get(ONE, "os_compute_api:os-keypairs:show", show).default_rule(RULE).summary("Show a key pair"),
        Op::delete(ONE, "os_compute_api:os-keypairs:delete", delete)
            .default_rule(RULE)
            .summary("Delete a key pair"),
    ]
}

fn missing(name: &str, user: &UserId) -> Error {
    Error::not_found(format!("Keypair {name} not found for user {user}"))
}

/// The id under which a user's key pair of this name is stored.
pub(crate) fn key_id(user: &UserId, name: &str) -> String {
    format!("{user}/{name}")
}

/// The user's key pair of this name.
///
/// # Errors
/// `NotFound` in Nova's words.
pub(crate) fn find(tx: &mut Tx<'_>, user: &UserId, name: &str) -> Result<KeyPair> {
    tx.get::<KeyPair>(&key_id(user, name))?.ok_or_else(|| missing(name, user))
}

/// Whose key pairs are meant (2.10: `user_id`), if the caller may.
fn owner<T>(cx: &Ctx<State>, req: &Request<T>, known: &[&str]) -> Result<UserId> {
    strict(cx, req, known)?;
    let asked = req.query_pairs().get("user_id").filter(|_| cx.since(2, 10));
    let user = match asked {
        None => cx.user_id().clone(),
        Some(text) => text.parse().map_err(|_| {
            Error::bad_request("Invalid input for query parameters user_id. It has 1 to 64 characters.")
        })?,
    };
    allow(cx, &user)?;
    Ok(user)
}

fn allow(cx: &Ctx<State>, user: &UserId) -> Result<()> {
    cx.allow(&Target::none().user(user))
}

/// Key, fingerprint and type in the order of Nova's views.
fn brief(cx: &Ctx<State>, pair: &KeyPair) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("name".into(), json!(pair.name));
    map.insert("public_key".into(), json!(pair.public_key));
    map.insert("fingerprint".into(), json!(pair.fingerprint));
    if cx.since(2, 2) {
        map.insert("type".into(), json!(pair.kind));
    }
    map
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let mut page = req.page(cx.config.max_limit)?;
    let user = owner(&cx, &req, &["user_id", "limit", "marker"])?;
    if !cx.since(2, 35) {
        // Versions before 2.35 have no pages.
        (page.limit, page.limited, page.marker) = (usize::MAX, false, None);
    }
    let mut pairs = cx.store().read(move |tx| tx.list::<KeyPair>(&Query::new().eq("user_id", &user))).await?;
    pairs.sort_by(|a, b| a.name.cmp(&b.name));
    let (pairs, next) = cut(pairs, &page, |p| p.name.clone())?;
    let items: Vec<Value> = pairs.iter().map(|p| json!({"keypair": brief(&cx, p)})).collect();
    Ok(cx.list(&req, &page, "keypairs", &items, next.as_deref()))
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let user = owner(&cx, &req, &["user_id"])?;
    let name = req.param("name").to_owned();
    let pair = cx.store().read(move |tx| find(tx, &user, &name)).await?;
    let mut map = brief(&cx, &pair);
    for (key, value) in [
        ("user_id", json!(pair.user_id)),
        ("id", json!(pair.number)),
        ("created_at", json!(pair.meta.created_at.iso_naive())),
        ("deleted", json!(false)),
        ("deleted_at", Value::Null),
        ("updated_at", Value::Null),
    ] {
        map.insert(key.into(), value);
    }
    Ok(Reply::json(&json!({"keypair": map})))
}

async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let user = owner(&cx, &req, &["user_id"])?;
    let name = req.param("name").to_owned();
    let id = key_id(&user, &name);
    if !cx.store().write(move |tx| tx.delete::<KeyPair>(&id)).await? {
        return Err(missing(&name, &user));
    }
    Ok(Reply::empty().status(if cx.since(2, 2) { 204 } else { 202 }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewKeyPair {
    name: Text<1, 255>,
    #[serde(default)]
    public_key: Option<Text<1, 16384>>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    user_id: Option<Text<1, 64>>,
}

/// Body of POST.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    keypair: NewKeyPair,
}

/// Refuses fields that the asked version does not have, and names and types that none has.
fn check(cx: &Ctx<State>, new: &NewKeyPair) -> Result<()> {
    let unknown = |field: &str| {
        let reason = format!("Additional properties are not allowed ('{field}' was unexpected)");
        Err(cx.dialect().invalid_field("keypair", &reason))
    };
    if new.kind.is_some() && !cx.since(2, 2) {
        return unknown("type");
    }
    if new.user_id.is_some() && !cx.since(2, 10) {
        return unknown("user_id");
    }
    if new.public_key.is_none() && cx.since(2, 92) {
        return Err(cx.dialect().invalid_field("keypair", "'public_key' is a required property"));
    }
    if new.kind.as_deref().is_some_and(|kind| kind != "ssh" && kind != "x509") {
        return Err(cx.dialect().invalid_field("type", "it is neither 'ssh' nor 'x509'"));
    }
    let more = if cx.since(2, 92) { "@." } else { "" };
    let good = |c: char| c.is_ascii_alphanumeric() || "_- ".contains(c) || more.contains(c);
    let name = new.name.as_str();
    if name.trim() != name {
        return Err(cx.dialect().invalid_field("name", "it may not begin or end with a blank"));
    }
    if !name.chars().all(good) {
        return Err(Error::bad_request("Keypair data is invalid: Keypair name contains unsafe characters"));
    }
    Ok(())
}

async fn create(cx: Ctx<State>, req: Request<Create>) -> Result<Reply> {
    let new = req.body.keypair;
    check(&cx, &new)?;
    let user = match &new.user_id {
        None => cx.user_id().clone(),
        Some(text) => text.parse().map_err(|e: Error| cx.dialect().invalid_field("user_id", e.public()))?,
    };
    allow(&cx, &user)?;
    let name = new.name.into_string();
    let kind = new.kind.unwrap_or_else(|| "ssh".to_owned());
    let (private, public) = match new.public_key {
        Some(public) => (None, public.into_string()),
        None if kind == "ssh" => {
            let (private, public) = keys::generate(&cx.entropy, "Generated-by-Nova")?;
            (Some(private), public)
        }
        None => {
            return Err(Error::bad_request(
                "Keypair data is invalid: certificates are not made here; send one as public_key.",
            ));
        }
    };
    let fingerprint = match kind.as_str() {
        "x509" => keys::x509_fingerprint(&public)?,
        _ => keys::ssh_fingerprint(&public)?,
    };
    let number = cx.entropy.below(0x7fff_fffe) + 1;
    let pair = KeyPair {
        id: key_id(&user, &name),
        meta: store::Meta::default(),
        number,
        user_id: user,
        name,
        kind,
        fingerprint,
        public_key: public,
    };
    let pair = insert(&cx, pair).await?;
    let mut map = brief(&cx, &pair);
    map.insert("user_id".into(), json!(pair.user_id));
    if let Some(private) = private {
        map.insert("private_key".into(), json!(private));
    }
    Ok(Reply::json(&json!({"keypair": map})).status(if cx.since(2, 2) { 201 } else { 200 }))
}

async fn insert(cx: &Ctx<State>, pair: KeyPair) -> Result<KeyPair> {
    let project = cx.auth().project_id().cloned();
    let operator = cx.config.quota.clone();
    cx.store()
        .write(move |tx| {
            let mut pair = pair.clone();
            if tx.get::<KeyPair>(&pair.id)?.is_some() {
                return Err(Error::conflict(format!("Key pair '{}' already exists.", pair.name)));
            }
            let limits = effective_limits(tx, &operator, project.as_ref())?;
            let used = tx.count::<KeyPair>(&Query::new().eq("user_id", &pair.user_id))?;
            if !crate::logic::quota::within(&limits, "key_pairs", used, 1) {
                return Err(Error::over_quota("Quota exceeded, too many key pairs."));
            }
            tx.insert(&mut pair)?;
            Ok(pair)
        })
        .await
}
