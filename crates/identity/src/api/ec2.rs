//! Tokens for requests that an EC2 or S3 front end was sent, signed with a user's EC2 keys (`/v3/ec2tokens`,
//! `/v3/s3tokens`). Only services may ask.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use ::api::{JsonSchema, Op, Reply, Request, Target};
use base::{ApplicationCredentialId, Error, Result, Timestamp, UserId};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use schemars::{Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Cx, enforce};
use crate::logic::body::{invalid, wrong_type};
use crate::logic::ec2::{Signed, s3_signature, signature};
use crate::logic::payload::PayloadScope;
use crate::model::{Credential, Trust, User};
use crate::password::{digest, same_digest};
use crate::state::State;
use crate::tokens::{Order, Validated};
use crate::words::unauthorized;

/// A signed request counts for so many seconds (Keystone's `[credential] auth_ttl`).
const FRESH: i64 = 900;

/// The body: `{"credentials": {…}}`, or `credential`, or `ec2Credentials`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct SignedRequest(Map<String, Value>);

impl JsonSchema for SignedRequest {
    fn schema_name() -> Cow<'static, str> {
        "SignedRequest".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = json!({"type": "string"});
        let map = json!({"type": "object", "additionalProperties": text});
        let signed = json!({
            "type": "object",
            "properties": {
                "access": text, "signature": text, "host": text, "verb": text, "path": text, "params": map,
                "headers": map, "body_hash": text, "token": text,
            },
        });
        schemars::json_schema!({"type": "object", "properties": {"credentials": signed}})
    }
}

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::post("/v3/ec2tokens", "identity:ec2tokens_validate", ec2)
            .summary("Makes a token for a request that was signed with EC2 keys."),
        Op::post("/v3/s3tokens", "identity:s3tokens_validate", s3)
            .summary("Makes a token for a request to an object store that was signed with EC2 keys."),
    ]
}

fn credentials(body: &SignedRequest) -> Result<&Map<String, Value>> {
    if body.0.is_empty() {
        return Err(Error::bad_request("request must include a request body"));
    }
    let found = ["credentials", "credential", "ec2Credentials"].into_iter().find_map(|k| body.0.get(k));
    let Some(found) = found else { return Err(unauthorized()) };
    let map = found.as_object().ok_or_else(|| wrong_type("credentials", found, "'object'"))?;
    for key in ["access", "signature", "host", "verb", "path", "body_hash", "token"] {
        if let Some(value) = map.get(key).filter(|v| !v.is_string()) {
            return Err(wrong_type(&format!("credentials/{key}"), value, "'string'"));
        }
    }
    for key in ["params", "headers"] {
        let Some(value) = map.get(key) else { continue };
        let place = format!("credentials/{key}");
        let all = value.as_object().ok_or_else(|| wrong_type(&place, value, "'object'"))?;
        if let Some((name, value)) = all.iter().find(|(_, v)| !v.is_string()) {
            return Err(wrong_type(&format!("{place}/{name}"), value, "'string'"));
        }
    }
    Ok(map)
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn texts(map: &Map<String, Value>, key: &str, lower: bool) -> BTreeMap<String, String> {
    let pairs = map.get(key).and_then(Value::as_object).into_iter().flatten();
    pairs
        .map(|(name, value)| {
            let value = value.as_str().unwrap_or_default().to_owned();
            (if lower { name.to_lowercase() } else { name.clone() }, value)
        })
        .collect()
}

async fn ec2(cx: Cx, req: Request<SignedRequest>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let given = credentials(&req.body)?;
    let mut request = Signed {
        verb: text(given, "verb").to_owned(),
        host: text(given, "host").to_owned(),
        path: text(given, "path").to_owned(),
        params: texts(given, "params", false),
        headers: texts(given, "headers", true),
        body_hash: text(given, "body_hash").to_owned(),
    };
    let sent = text(given, "signature").to_owned();
    let stamp = ["Timestamp", "X-Amz-Date"].into_iter().find_map(|k| request.params.get(k));
    fresh(stamp.or_else(|| request.headers.get("x-amz-date")).map(String::as_str), cx.now())?;
    let (token, valid) = authenticate(&cx, text(given, "access"), move |secret| {
        let right = |r: &Signed| signature(r, secret).is_some_and(|s| same_digest(&s, &sent));
        if right(&request) {
            return true;
        }
        // Some clients leave the port out when they sign.
        let bare = request.host.rsplit_once(':').map(|(host, _)| host.to_owned());
        bare.is_some_and(|host| {
            request.host = host;
            right(&request)
        })
    })
    .await?;
    Ok(Reply::bytes("application/json", valid.body(true)).header("x-subject-token", token))
}

async fn s3(cx: Cx, req: Request<SignedRequest>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let given = credentials(&req.body)?;
    let text_signed = URL_SAFE
        .decode(text(given, "token"))
        .map_err(|_| invalid("credentials/token", "the value is not base64"))?;
    let sent = text(given, "signature").to_owned();
    if text_signed.starts_with(b"AWS4") {
        // The date is the second line of what was signed: an old signature is not good for ever.
        let whole = String::from_utf8_lossy(&text_signed);
        fresh(whole.split('\n').nth(1), cx.now())?;
    }
    let (_, valid) = authenticate(&cx, text(given, "access"), move |secret| {
        s3_signature(&text_signed, secret).is_some_and(|s| same_digest(&s, &sent))
    })
    .await?;
    Ok(Reply::bytes("application/json", valid.body(true)))
}

/// Whether a request was signed a short while ago. Without a moment it was meant to be good for longer.
fn fresh(stamp: Option<&str>, now: Timestamp) -> Result<()> {
    let Some(stamp) = stamp else { return Ok(()) };
    // `20261121T120000Z` as well as RFC 3339.
    let at = Timestamp::parse(stamp).or_else(|| {
        let (day, time) = stamp.strip_suffix('Z')?.split_once('T')?;
        let part = |text: &str, from: usize, to: usize| text.get(from..to).map(str::to_owned);
        let (y, m, d) = (part(day, 0, 4)?, part(day, 4, 6)?, part(day, 6, 8)?);
        let (h, min, s) = (part(time, 0, 2)?, part(time, 2, 4)?, part(time, 4, 6)?);
        Timestamp::parse(&format!("{y}-{m}-{d}T{h}:{min}:{s}Z"))
    });
    let at = at.ok_or_else(unauthorized)?;
    if at.plus_secs(FRESH) < now { Err(unauthorized()) } else { Ok(()) }
}

/// A token for the owner of the keys, limited as whoever made them was.
async fn authenticate(
    cx: &Cx,
    access: &str,
    right: impl FnOnce(&str) -> bool,
) -> Result<(String, Arc<Validated>)> {
    if access.is_empty() {
        return Err(unauthorized());
    }
    let id = digest(access);
    let found = cx.read(move |tx| tx.get::<Credential>(&id)).await?.filter(|c| c.kind == "ec2");
    let found = found.ok_or_else(|| Error::not_found("EC2 access key not found."))?;
    let blob: Value = serde_json::from_str(&cx.open_secret(&found.sealed)?).map_err(Error::internal)?;
    let secret = blob.get("secret").and_then(Value::as_str).unwrap_or_default();
    if secret.is_empty() || !right(secret) {
        return Err(unauthorized());
    }
    let bound = |key: &str| blob.get(key).and_then(Value::as_str).map(str::to_owned);
    let (trust, by, project) = (bound("trust_id"), bound("app_cred_id"), found.project_id);
    let access_token_id = bound("access_token_id");
    let owner = found.user_id;
    let (known, of) = (trust.clone(), owner.clone());
    let (user, generation) = cx
        .read(move |tx| {
            let user = tx.get::<User>(&of)?.ok_or_else(unauthorized)?;
            let Some(id) = &known else { return Ok((user.id, user.token_generation)) };
            // The keys are the trustor's where the maker impersonated; the token is the trustee's to have.
            let trust = tx.get::<Trust>(id)?.ok_or_else(unauthorized)?;
            let need = |tx: &mut store::Tx<'_>, id: &UserId| tx.get::<User>(id)?.ok_or_else(unauthorized);
            let (trustor, trustee) = (need(tx, &trust.trustor_user_id)?, need(tx, &trust.trustee_user_id)?);
            if user.id != trustor.id && user.id != trustee.id {
                return Err(unauthorized());
            }
            Ok((trustee.id, trustor.token_generation + trustee.token_generation))
        })
        .await?;
    let order = Order {
        user_id: user,
        methods: vec!["ec2credential"],
        scope: PayloadScope::Project(project.ok_or_else(unauthorized)?.as_str().to_owned()),
        expires_at: None,
        parent_audit_id: None,
        application_credential_id: by.map(ApplicationCredentialId::new),
        trust_id: trust,
        access_token_id,
        federated: None,
        thumbprint: None,
        generation,
    };
    let made = cx.tokens.issue(order).await;
    crate::audit::authentication(cx, None, Some(owner.to_string()), made.as_ref().map(|(_, v)| v.as_ref()));
    made
}
