//! OAuth 2.0 client credentials (`OS-OAUTH2`). A client is an application credential, which knows a secret, or a user, who
//! holds a certificate (`tls_client_auth`, RFC 8705); the token is its access token, bound to the certificate if it came
//! by one.

use std::net::IpAddr;
use std::sync::Arc;

use ::api::{Certificate, Method, Op, Query, RawBody, Reply, Request};
use base::{Error, Kind, Result, UserId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::Cx;
use crate::clients;
use crate::login::{Beside, Login, login};
use crate::state::State;
use crate::tokens::Validated;
use crate::words::unauthorized;

/// Longest body taken.
const LONGEST: usize = 16_384;

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::raw(Method::POST, "/v3/OS-OAUTH2/token", "", token)
            .public()
            .consumes(&["application/x-www-form-urlencoded"])
            .summary(
                "Gives an access token to a client that knows an application credential's secret, or holds a user's certificate.",
            ),
    ]
}

/// An error as RFC 6749 wants it (section 5.2).
fn refused(status: u16, error: &str, description: &str) -> Reply {
    let reply = Reply::json(&json!({"error": error, "error_description": description})).status(status);
    let reply = reply.header("cache-control", "no-store");
    if status == 401 { reply.header("www-authenticate", "Basic realm=\"identity\"") } else { reply }
}

fn failed() -> Reply {
    refused(401, "invalid_client", "Client authentication failed.")
}

/// `client_id:secret` of an `Authorization: Basic`.
fn basic(header: Option<&str>) -> Option<(String, String)> {
    let (scheme, rest) = header?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}

async fn token(cx: Cx, req: Request<RawBody>) -> Result<Reply> {
    let by_header = basic(req.header("authorization"));
    let (from, certificate) = (req.peer(), req.certificate().cloned());
    let body = req.body.collect(LONGEST).await?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let form = Query::from_text(&text)?;
    match form.get("grant_type") {
        None => return Ok(refused(400, "invalid_request", "The parameter grant_type is required.")),
        Some("client_credentials") => {}
        Some(_) => {
            return Ok(refused(400, "unsupported_grant_type", "Only client_credentials is supported."));
        }
    }
    let made = match &certificate {
        // As in Keystone: who shows a certificate is not asked for a secret.
        Some(certificate) => by_certificate(&cx, from, &form, certificate).await,
        None => by_secret(&cx, from, &form, by_header).await,
    };
    let (token, valid) = match made {
        Ok(made) => made,
        Err(error) => {
            return match error.kind() {
                Kind::Unauthenticated | Kind::NotFound => Ok(failed()),
                Kind::BadRequest => {
                    Ok(refused(400, "invalid_request", "The client's id or secret is malformed."))
                }
                _ => Err(error),
            };
        }
    };
    let left = valid.auth.expires_at.as_secs() - cx.now().as_secs();
    let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": left});
    Ok(Reply::json(&answer).header("cache-control", "no-store"))
}

type Made = Result<(String, Arc<Validated>)>;

async fn by_secret(cx: &Cx, from: Option<IpAddr>, form: &Query, by_header: Option<(String, String)>) -> Made {
    let of = |name: &str| form.get(name).map(str::to_owned);
    let (id, secret) = match by_header {
        Some((id, secret)) => (Some(id), Some(secret)),
        None => (of("client_id"), of("client_secret")),
    };
    let (Some(id), Some(secret)) = (id, secret) else { return Err(unauthorized()) };
    let body = json!({"auth": {"identity": {
        "methods": ["application_credential"], "application_credential": {"id": id, "secret": secret},
    }}});
    let made = login(cx.state(), &body, &Beside::from(from)).await.and_then(Login::token);
    noted(cx, from, crate::login::claimed(&body), &made);
    made
}

async fn by_certificate(cx: &Cx, from: Option<IpAddr>, form: &Query, certificate: &Certificate) -> Made {
    let id = form.get("client_id").filter(|id| (1..=255).contains(&id.len()));
    let id = id.ok_or_else(unauthorized)?;
    let made = clients::authenticate(cx.state(), from, &UserId::new(id), certificate).await;
    noted(cx, from, Some(id.chars().take(64).collect()), &made);
    made
}

fn noted(cx: &Cx, from: Option<IpAddr>, claimed: Option<String>, made: &Made) {
    let told: std::result::Result<&Validated, &Error> = made.as_ref().map(|(_, valid)| valid.as_ref());
    crate::audit::authentication(cx, from, claimed, told);
}
