//! The endpoints of the OIDC provider: discovery, keys, the login page, devices, tokens, userinfo.
//!
//! Bodies are forms and errors are OAuth's (RFC 6749), not Keystone's.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::api::request::RawBody;
use ::api::{Method, Op, Query, Reply, Request};
use base::{Error, Kind, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Cx;
use crate::audit;
use crate::federation::model::{OidcClient, OidcGrant};
use crate::login::{Beside, Login, claimed, login};
use crate::model::User;
use crate::oidc::grants::{self, Refused};
use crate::oidc::{self, DEVICE_CODE, GRANT_TYPES, Subject, TOKEN_EXCHANGE, Wanted, page};
use crate::password::{digest, same_digest};
use crate::state::State;
use crate::tokens::Validated;

/// Longest form.
const LARGEST: usize = 64 * 1024;
/// How long a form may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn ops() -> Vec<Op<State>> {
    let form = |op: Op<State>, summary: &'static str| op.public().summary(summary);
    vec![
        Op::get("/.well-known/openid-configuration", "", discovery)
            .public()
            .summary("Tells what the OIDC provider can do."),
        Op::get("/oidc/jwks", "", jwks).public().summary("Publishes the keys of the OIDC provider."),
        Op::get("/oidc/authorize", "", show_login).public().summary("Shows the login page."),
        form(
            Op::raw(Method::POST, "/oidc/authorize", "", do_login),
            "Logs in and sends a code to the client.",
        ),
        form(
            Op::raw(Method::POST, "/oidc/device_authorization", "", start_device),
            "Gives a device a code for its user to type.",
        ),
        Op::get("/oidc/device", "", show_device).public().summary("Shows the page to allow a device."),
        form(Op::raw(Method::POST, "/oidc/device", "", do_device), "Allows a device."),
        form(Op::raw(Method::POST, "/oidc/token", "", token), "Turns a grant into tokens."),
        Op::get("/oidc/userinfo", "", userinfo)
            .public()
            .summary("Tells who the bearer of an access token is."),
        Op::post("/oidc/userinfo", "", userinfo)
            .public()
            .summary("Tells who the bearer of an access token is."),
    ]
}

fn issuer(cx: &Cx) -> String {
    oidc::issuer(cx.base_url())
}

async fn discovery(cx: Cx, _: Request<()>) -> Result<Reply> {
    let base = issuer(&cx);
    Ok(Reply::json(&json!({
        "issuer": base,
        "authorization_endpoint": format!("{base}/oidc/authorize"),
        "token_endpoint": format!("{base}/oidc/token"),
        "device_authorization_endpoint": format!("{base}/oidc/device_authorization"),
        "userinfo_endpoint": format!("{base}/oidc/userinfo"),
        "jwks_uri": format!("{base}/oidc/jwks"),
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": GRANT_TYPES,
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
        "claims_supported": [
            "sub", "iss", "aud", "azp", "exp", "iat", "auth_time", "nonce", "name", "preferred_username", "email",
            "groups", "openstack_roles", "openstack_user_domain_id", "openstack_user_domain_name",
        ],
    })))
}

async fn jwks(cx: Cx, _: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&cx.signing.public(cx.now())).header("cache-control", "max-age=300"))
}

async fn form(body: RawBody) -> Result<Query> {
    let bytes = tokio::time::timeout(PATIENCE, body.collect(LARGEST)).await;
    let bytes = bytes.map_err(|_| Error::bad_request("The form did not arrive in time."))??;
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::bad_request("The form is not UTF-8."))?;
    Query::from_text(text)
}

/// An error in OAuth's form.
fn oauth(status: u16, error: &str, text: &str) -> Reply {
    let reply = Reply::json(&json!({"error": error, "error_description": text})).status(status);
    let reply = reply.header("cache-control", "no-store");
    if status == 401 { reply.header("www-authenticate", "Basic realm=\"oidc\"") } else { reply }
}

async fn client(cx: &Cx, id: &str) -> Result<Option<OidcClient>> {
    let id = id.to_owned();
    Ok(cx.read(move |tx| tx.get::<OidcClient>(&id)).await?.filter(|c| c.enabled))
}

/// A login by password, by the same rules as at `/v3/auth/tokens`.
async fn by_password(
    cx: &Cx,
    from: Option<IpAddr>,
    user: &str,
    domain: &str,
    password: &str,
) -> Result<(Arc<Validated>, Subject)> {
    // `domain\user`, where there is one field only.
    let (domain, user) = user.split_once('\\').unwrap_or((domain, user));
    let domain = if domain.is_empty() { "Default" } else { domain };
    let user = json!({"name": user, "domain": {"name": domain}, "password": password});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    let body = json!({"auth": {"identity": identity, "scope": "unscoped"}});
    let (_, valid) = noted(cx, from, &body).await?;
    let mut subject = subject(cx, &valid).await?;
    // The login itself was just now; it does not end with the token that was made on the way.
    subject.until = None;
    Ok((valid, subject))
}

/// A login, noted in the audit trail.
async fn noted(cx: &Cx, from: Option<IpAddr>, body: &Value) -> Result<(String, Arc<Validated>)> {
    let made = login(cx.state(), body, &Beside::from(from)).await.and_then(Login::token);
    audit::authentication(cx, from, claimed(body), made.as_ref().map(|(_, v)| v.as_ref()));
    made
}

async fn subject(cx: &Cx, valid: &Validated) -> Result<Subject> {
    let id = valid.auth.user_id.clone();
    let user = cx.read(move |tx| tx.get::<User>(&id)).await?;
    Ok(Subject::of(valid, user.map_or(0, |u| u.token_generation)))
}

/// Whether a login failed for a reason that its user may be told on the page.
fn failed(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unauthenticated | Kind::BadRequest | Kind::Forbidden)
}

// ---- authorization code

/// What a client asks for in a browser.
struct Ask {
    client: OidcClient,
    redirect_uri: String,
    scope: String,
    state: Option<String>,
    nonce: Option<String>,
    challenge: String,
}

/// Whether a code may be sent there: exactly as registered; on this machine, at any port (RFC 8252).
fn may_redirect(client: &OidcClient, uri: &str) -> bool {
    let portless = |uri: &str| {
        let (host, path) = uri
            .strip_prefix("http://127.0.0.1")
            .map(|r| ("v4", r))
            .or_else(|| uri.strip_prefix("http://[::1]").map(|r| ("v6", r)))?;
        let path = match path.strip_prefix(':') {
            Some(rest) => rest.trim_start_matches(|c: char| c.is_ascii_digit()),
            None => path,
        };
        (path.is_empty() || path.starts_with('/')).then(|| (host, path.to_owned()))
    };
    let wanted = portless(uri);
    client.redirect_uris.iter().any(|r| r == uri || (wanted.is_some() && portless(r) == wanted))
}

/// Reads the request: an error that the browser's user sees, or one that is sent to the client.
async fn ask(cx: &Cx, query: &Query) -> Result<std::result::Result<Ask, Reply>> {
    let get = |name: &str| query.get(name).filter(|v| !v.is_empty() && v.len() <= 2048).map(str::to_owned);
    let bad = |text: &str| Ok(Err(page::say(400, "This login cannot go on", text)));
    let Some(client) = client(cx, query.get("client_id").unwrap_or_default()).await? else {
        return bad("The program that sent you here is not known.");
    };
    let Some(redirect_uri) = get("redirect_uri").filter(|uri| may_redirect(&client, uri)) else {
        return bad(
            "The program that sent you here wants the answer at an address that it has not registered.",
        );
    };
    let state = get("state");
    let back = |error: &str, text: &str| {
        let mut with = vec![("error", error), ("error_description", text)];
        with.extend(state.as_deref().map(|s| ("state", s)));
        Ok(Err(redirect(&redirect_uri, &with)))
    };
    if !client.grant_types.iter().any(|t| t == "authorization_code") {
        return back("unauthorized_client", "the client may not use this grant");
    }
    if query.get("response_type") != Some("code") {
        return back("unsupported_response_type", "only 'code' is there");
    }
    let s256 = query.get("code_challenge_method") == Some("S256");
    let Some(challenge) = get("code_challenge").filter(|c| s256 && c.len() == 43) else {
        return back("invalid_request", "a PKCE challenge (S256) is needed");
    };
    let scope = get("scope").unwrap_or_else(|| "openid".into());
    Ok(Ok(Ask { redirect_uri, scope, state, nonce: get("nonce"), challenge, client }))
}

fn redirect(uri: &str, with: &[(&str, &str)]) -> Reply {
    let query = Query::default().rebuild(&[], with);
    let joint = if uri.contains('?') { '&' } else { '?' };
    Reply::empty()
        .status(303)
        .location(format!("{uri}{joint}{query}"))
        .header("cache-control", "no-store")
        .header("referrer-policy", "no-referrer")
}

fn login_page(ask: &Ask, wrong: Option<&str>) -> Reply {
    let mut hidden = vec![
        ("response_type", "code"),
        ("client_id", ask.client.id.as_str()),
        ("redirect_uri", &ask.redirect_uri),
        ("scope", &ask.scope),
        ("code_challenge", &ask.challenge),
        ("code_challenge_method", "S256"),
    ];
    hidden.extend(ask.state.as_deref().map(|s| ("state", s)));
    hidden.extend(ask.nonce.as_deref().map(|s| ("nonce", s)));
    let intro = format!("{} asks who you are.", ask.client.name);
    page::login("Log in", &intro, &hidden, None, wrong, &page::origin(&ask.redirect_uri))
}

async fn show_login(cx: Cx, req: Request<()>) -> Result<Reply> {
    Ok(match ask(&cx, req.query_pairs()).await? {
        Ok(ask) => login_page(&ask, None),
        Err(reply) => reply,
    })
}

async fn do_login(cx: Cx, req: Request<RawBody>) -> Result<Reply> {
    let from = req.peer();
    let form = form(req.body).await?;
    let ask = match ask(&cx, &form).await? {
        Ok(ask) => ask,
        Err(reply) => return Ok(reply),
    };
    let get = |name: &str| form.get(name).unwrap_or_default();
    let subject = match by_password(&cx, from, get("username"), get("domain"), get("password")).await {
        Ok((_, subject)) => subject,
        Err(error) if failed(&error) => return Ok(login_page(&ask, Some("This login was not accepted."))),
        Err(error) => return Err(error),
    };
    let (code, now) = (grants::secret(&cx.entropy), cx.now());
    let mut grant = OidcGrant::new("code", &code, &ask.client.id, &ask.scope, now.plus_secs(grants::CODE))
        .by(&subject.user_id, subject.generation, now);
    grant.nonce.clone_from(&ask.nonce);
    grant.challenge = Some(ask.challenge.clone());
    grant.redirect_uri = Some(ask.redirect_uri.clone());
    cx.write(move |tx| grants::keep(tx, &grant)).await?;
    let iss = issuer(&cx);
    let mut with = vec![("code", code.as_str()), ("iss", &iss)];
    with.extend(ask.state.as_deref().map(|s| ("state", s)));
    Ok(redirect(&ask.redirect_uri, &with))
}

// ---- devices

async fn start_device(cx: Cx, req: Request<RawBody>) -> Result<Reply> {
    let basic = req.header("authorization").map(str::to_owned);
    let form = form(req.body).await?;
    let client = match known(&cx, &form, basic.as_deref()).await? {
        Ok(client) => client,
        Err(reply) => return Ok(reply),
    };
    if !client.grant_types.iter().any(|t| t == DEVICE_CODE) {
        return Ok(oauth(400, "unauthorized_client", "the client may not use this grant"));
    }
    let scope = form.get("scope").filter(|s| s.len() <= 1024).unwrap_or("openid");
    let (code, user_code) = (grants::secret(&cx.entropy), grants::user_code(&cx.entropy));
    let mut grant = OidcGrant::new("device", &code, &client.id, scope, cx.now().plus_secs(grants::DEVICE));
    grant.user_code = Some(user_code.clone());
    // keystoneauth binds its device code by PKCE as well.
    grant.challenge = form.get("code_challenge").filter(|c| c.len() == 43).map(str::to_owned);
    cx.write(move |tx| grants::keep(tx, &grant)).await?;
    let page = format!("{}/oidc/device", issuer(&cx));
    let reply = Reply::json(&json!({
        "device_code": code, "user_code": user_code, "verification_uri": page,
        "verification_uri_complete": format!("{page}?user_code={user_code}"),
        "expires_in": grants::DEVICE, "interval": grants::INTERVAL,
    }));
    Ok(reply.header("cache-control", "no-store"))
}

fn device_page(code: &str, wrong: Option<&str>) -> Reply {
    let intro = "A device or program asks to act as you. Go on only if you started this yourself and it shows this code.";
    page::login("Allow a device", intro, &[], Some(code), wrong, "")
}

async fn show_device(_: Cx, req: Request<()>) -> Result<Reply> {
    Ok(device_page(&grants::normal(req.query_pairs().get("user_code").unwrap_or_default()), None))
}

async fn do_device(cx: Cx, req: Request<RawBody>) -> Result<Reply> {
    let from = req.peer();
    let form = form(req.body).await?;
    let get = |name: &str| form.get(name).unwrap_or_default();
    let user_code = grants::normal(get("user_code"));
    // Who cannot log in learns nothing about codes.
    let subject = match by_password(&cx, from, get("username"), get("domain"), get("password")).await {
        Ok((_, subject)) => subject,
        Err(error) if failed(&error) => {
            return Ok(device_page(&user_code, Some("This login was not accepted.")));
        }
        Err(error) => return Err(error),
    };
    let code = user_code.clone();
    let found = cx
        .write(move |tx| {
            let Some(grant) = grants::waiting(tx, &code)? else { return Ok(false) };
            let mut grant = grant.by(&subject.user_id, subject.generation, tx.now());
            tx.update(&mut grant)?;
            Ok(true)
        })
        .await?;
    Ok(match found {
        true => page::say(200, "Done", "You can go back to your device."),
        false => device_page(&user_code, Some("No device waits under this code.")),
    })
}

// ---- tokens

/// The client that sends a form, if it is who it says it is.
async fn known(cx: &Cx, form: &Query, basic: Option<&str>) -> Result<std::result::Result<OidcClient, Reply>> {
    let (id, secret) = match credentials(form, basic) {
        Some(pair) => pair,
        None => return Ok(Err(oauth(401, "invalid_client", "the client does not say who it is"))),
    };
    let found = client(cx, &id).await?;
    let right = |client: &OidcClient| match &client.secret {
        Some(held) => same_digest(held, &digest(&secret)),
        None => secret.is_empty(),
    };
    Ok(found
        .filter(right)
        .ok_or_else(|| oauth(401, "invalid_client", "the client is not known, or its secret is wrong")))
}

fn credentials(form: &Query, basic: Option<&str>) -> Option<(String, String)> {
    let sent = basic.and_then(|h| h.split_once(' ')).filter(|(s, _)| s.eq_ignore_ascii_case("basic"));
    if let Some((_, encoded)) = sent {
        let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
        let (id, secret) = text.split_once(':')?;
        // RFC 6749 has both form-encoded; nothing of ours changes by that.
        return Some((id.to_owned(), secret.to_owned()));
    }
    let id = form.get("client_id").filter(|c| !c.is_empty())?;
    Some((id.to_owned(), form.get("client_secret").unwrap_or_default().to_owned()))
}

async fn token(cx: Cx, req: Request<RawBody>) -> Result<Reply> {
    let basic = req.header("authorization").map(str::to_owned);
    let from = req.peer();
    let form = form(req.body).await?;
    let kind = form.get("grant_type").unwrap_or_default().to_owned();
    if !GRANT_TYPES.contains(&kind.as_str()) {
        return Ok(oauth(400, "unsupported_grant_type", "there is no such grant"));
    }
    // An application credential is its own client.
    if kind == "client_credentials" {
        return by_application_credential(&cx, from, &form, basic.as_deref()).await;
    }
    let client = match known(&cx, &form, basic.as_deref()).await? {
        Ok(client) => client,
        Err(reply) => return Ok(reply),
    };
    if !client.grant_types.contains(&kind) {
        return Ok(oauth(400, "unauthorized_client", "the client may not use this grant"));
    }
    let scope = form.get("scope").filter(|s| s.len() <= 1024).unwrap_or("openid").to_owned();
    let audience = form.get("audience").or_else(|| form.get("resource")).map(str::to_owned);
    if audience.as_ref().is_some_and(|a| *a != client.id && !client.audiences.contains(a)) {
        return Ok(oauth(400, "invalid_target", "the client may not ask for tokens for this audience"));
    }
    let wanted = Wanted { client_id: client.id.clone(), audience, scope, nonce: None };
    match kind.as_str() {
        "password" => {
            let get = |name: &str| form.get(name).unwrap_or_default();
            match by_password(&cx, from, get("username"), get("domain"), get("password")).await {
                Ok((_, subject)) => answer(&cx, subject, &wanted, None).await,
                Err(error) if failed(&error) => Ok(oauth(400, "invalid_grant", "the login was not accepted")),
                Err(error) => Err(error),
            }
        }
        TOKEN_EXCHANGE => exchange(&cx, &form, &wanted).await,
        _ => by_code(&cx, &form, &kind, wanted).await,
    }
}

/// Tokens for a subject; with `refresh`, a refresh token of that family.
async fn answer(cx: &Cx, subject: Subject, wanted: &Wanted, refresh: Option<OidcGrant>) -> Result<Reply> {
    let mut body = match oidc::tokens(cx.state(), &issuer(cx), subject, wanted).await {
        Ok(body) => body,
        Err(error) if error.kind() == Kind::Unauthenticated => {
            return Ok(oauth(400, "invalid_grant", "the user may not log in any more"));
        }
        Err(error) => return Err(error),
    };
    if let Some(from) = refresh {
        let secret = grants::secret(&cx.entropy);
        let until = cx.now().plus_secs(grants::REFRESH);
        let mut grant = OidcGrant::new("refresh", &secret, &from.client_id, &from.scope, until);
        (grant.user_id, grant.generation, grant.auth_time) = (from.user_id, from.generation, from.auth_time);
        grant.family = from.family;
        cx.write(move |tx| grants::keep(tx, &grant)).await?;
        body.insert("refresh_token".into(), json!(secret));
    }
    Ok(Reply::json(&Value::Object(body)).header("cache-control", "no-store").header("pragma", "no-cache"))
}

async fn by_code(cx: &Cx, form: &Query, grant_type: &str, mut wanted: Wanted) -> Result<Reply> {
    let (kind, name) = match grant_type {
        "authorization_code" => ("code", "code"),
        "refresh_token" => ("refresh", "refresh_token"),
        _ => ("device", "device_code"),
    };
    let (secret, client) = (form.get(name).unwrap_or_default().to_owned(), wanted.client_id.clone());
    let taken = cx.write(move |tx| grants::take(tx, kind, &secret, &client)).await?;
    let grant = match taken {
        Ok(grant) => grant,
        Err(why) => {
            let (error, text) = match why {
                Refused::Invalid => ("invalid_grant", "the code is none, or was used, or has ended"),
                Refused::Pending => ("authorization_pending", "the user has not logged in yet"),
                Refused::SlowDown => ("slow_down", "asked too often"),
                Refused::Expired => ("expired_token", "the code has ended"),
                Refused::Denied => ("access_denied", "the user has refused"),
            };
            return Ok(oauth(400, error, text));
        }
    };
    let verifier = form.get("code_verifier").unwrap_or_default();
    let proved = grant.challenge.as_ref().is_none_or(|c| grants::verifies(c, verifier));
    let there = kind != "code" || form.get("redirect_uri") == grant.redirect_uri.as_deref();
    if !proved || !there {
        return Ok(oauth(400, "invalid_grant", "the code is another's"));
    }
    let Some(user_id) = grant.user_id.clone() else {
        return Ok(oauth(400, "invalid_grant", "the code is of no user"));
    };
    wanted.scope.clone_from(&grant.scope);
    wanted.nonce.clone_from(&grant.nonce);
    let subject = Subject {
        user_id,
        generation: grant.generation,
        auth_time: grant.auth_time.unwrap_or_else(|| cx.now()),
        until: None,
        confined: None,
    };
    let again = kind == "refresh" || wanted.has("offline_access");
    answer(cx, subject, &wanted, again.then_some(grant)).await
}

/// RFC 8693: a token of this cloud becomes a signed one for somebody else, who need not know ours.
async fn exchange(cx: &Cx, form: &Query, wanted: &Wanted) -> Result<Reply> {
    const ACCESS: &str = "urn:ietf:params:oauth:token-type:access_token";
    let given = form.get("subject_token_type");
    let asked = form.get("requested_token_type");
    let signed = "urn:ietf:params:oauth:token-type:jwt";
    if given != Some(ACCESS) || asked.is_some_and(|t| t != ACCESS && t != signed) || form.has("actor_token") {
        return Ok(oauth(
            400,
            "invalid_request",
            "only access tokens of this cloud are exchanged, for access tokens",
        ));
    }
    let valid = cx.tokens.validate(form.get("subject_token").unwrap_or_default()).await?;
    let Some(valid) = valid else {
        return Ok(oauth(400, "invalid_grant", "the subject token is none, or has ended"));
    };
    if !may_speak(&valid) {
        return Ok(oauth(
            400,
            "invalid_grant",
            "the subject token is good for some requests or connections only",
        ));
    }
    let subject = subject(cx, &valid).await?;
    let mut reply = match oidc::tokens(cx.state(), &issuer(cx), subject, wanted).await {
        Ok(reply) => reply,
        Err(error) if error.kind() == Kind::Unauthenticated => {
            return Ok(oauth(400, "invalid_grant", "the user may not log in any more"));
        }
        Err(error) => return Err(error),
    };
    reply.insert("issued_token_type".into(), json!(ACCESS));
    Ok(Reply::json(&Value::Object(reply)).header("cache-control", "no-store"))
}

/// Whether who holds a token may speak for its user elsewhere: not if it is for some requests only, or bound to a client
/// certificate, which a token made of it would not be.
fn may_speak(valid: &Validated) -> bool {
    valid.application_credential.as_ref().is_none_or(|a| a.access_rules.is_none())
        && valid.thumbprint.is_none()
}

async fn by_application_credential(
    cx: &Cx,
    from: Option<IpAddr>,
    form: &Query,
    basic: Option<&str>,
) -> Result<Reply> {
    let wrong = || {
        Ok(oauth(401, "invalid_client", "there is no such application credential, or its secret is wrong"))
    };
    let Some((id, secret)) = credentials(form, basic) else { return wrong() };
    let identity = json!({
        "methods": ["application_credential"], "application_credential": {"id": id, "secret": secret},
    });
    let body = json!({"auth": {"identity": identity}});
    let valid = match noted(cx, from, &body).await {
        Ok((_, valid)) => valid,
        Err(error) if failed(&error) => return wrong(),
        Err(error) => return Err(error),
    };
    if !may_speak(&valid) {
        return Ok(oauth(
            400,
            "unauthorized_client",
            "the application credential is good for some requests only",
        ));
    }
    let subject = subject(cx, &valid).await?;
    let scope = form.get("scope").filter(|s| s.len() <= 1024).unwrap_or("openid").to_owned();
    // keystoneauth can send a scope only: `aud:…` in it says for whom the token is.
    let named = scope.split(' ').find_map(|s| s.strip_prefix("aud:")).map(str::to_owned);
    let audience = form.get("audience").or_else(|| form.get("resource")).map(str::to_owned).or(named);
    let wanted = Wanted { client_id: id, audience, scope, nonce: None };
    answer(cx, subject, &wanted, None).await
}

async fn userinfo(cx: Cx, req: Request<()>) -> Result<Reply> {
    let header = req.header("authorization").unwrap_or_default();
    let bearer =
        header.split_once(' ').filter(|(s, _)| s.eq_ignore_ascii_case("bearer")).map(|(_, t)| t.trim());
    match oidc::userinfo(cx.state(), &issuer(&cx), bearer.unwrap_or_default()).await {
        Ok(said) => Ok(Reply::json(&said).header("cache-control", "no-store")),
        Err(error) if error.kind() == Kind::Unauthenticated => {
            Ok(Reply::json(&json!({"error": "invalid_token"}))
                .status(401)
                .header("www-authenticate", "Bearer error=\"invalid_token\""))
        }
        Err(error) => Err(error),
    }
}
