//! OAuth 2.0 client credentials (`OS-OAUTH2`): an application credential is the client, the token its access token.

use ::api::{Method, Op, RawBody, Reply, Request};
use base::{Kind, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::Cx;
use crate::login::{Beside, Login, login};
use crate::state::State;

/// Longest body taken.
const LONGEST: usize = 16_384;

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::raw(Method::POST, "/v3/OS-OAUTH2/token", "", token)
            .public()
            .consumes(&["application/x-www-form-urlencoded"])
            .summary(
                "Gives an access token to a client that knows its secret (an application credential's).",
            ),
    ]
}

/// An error as RFC 6749 wants it.
fn refused(status: u16, error: &str, description: &str) -> Reply {
    let reply = Reply::json(&json!({"error": error, "error_description": description})).status(status);
    let reply = reply.header("cache-control", "no-store");
    if status == 401 { reply.header("www-authenticate", "Basic realm=\"identity\"") } else { reply }
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
    let from = req.peer();
    let body = req.body.collect(LONGEST).await?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let form = ::api::Query::from_text(&text)?;
    let of = |name: &str| form.get(name).map(str::to_owned);
    match of("grant_type").as_deref() {
        None => return Ok(refused(400, "invalid_request", "The parameter grant_type is required.")),
        Some("client_credentials") => {}
        Some(_) => {
            return Ok(refused(400, "unsupported_grant_type", "Only client_credentials is supported."));
        }
    }
    let (id, secret) = match by_header {
        Some((id, secret)) => (Some(id), Some(secret)),
        None => (of("client_id"), of("client_secret")),
    };
    let failed = || refused(401, "invalid_client", "Client authentication failed.");
    let (Some(id), Some(secret)) = (id, secret) else { return Ok(failed()) };
    let body = json!({"auth": {"identity": {
        "methods": ["application_credential"], "application_credential": {"id": id, "secret": secret},
    }}});
    let made = login(cx.state(), &body, &Beside::from(from)).await.and_then(Login::token);
    crate::audit::authentication(
        &cx,
        from,
        crate::login::claimed(&body),
        made.as_ref().map(|(_, v)| v.as_ref()),
    );
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
