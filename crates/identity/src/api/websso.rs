//! Single sign-on for consoles: a console sends its user here, we send the user on to an identity provider (OpenID Connect,
//! authorization code with PKCE), and come back to the console with a token.
//!
//! The places are Keystone's, where a module of the web server does what is between. What we must know when the user comes
//! back is in a cookie, sealed with the token keys, so that any server may be the one it comes back to.

use ::api::{Op, Reply, Request};
use base::{Error, Result, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use federation::issuer::encoded;
use federation::jose::Claims;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use store::Query;

use super::Cx;
use super::federation::logged_in;
use crate::federation::model::{IdentityProvider, OidcOwnClient, Protocol};
use crate::federation::{Entered, FRONT_END, Said, admitted_in_front, enter, issuer_of, told, way_in};
use crate::logic::body::missing;
use crate::oidc::grants::secret;
use crate::oidc::page;
use crate::password::{digest, same_digest};
use crate::state::State;
use crate::words::unauthorized;

const OF_IDP: &str = "/v3/auth/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}/websso";
const OF_ANY: &str = "/v3/auth/OS-FEDERATION/websso/{protocol_id}";
const COOKIE: &str = "__Host-allod-websso";
/// Seconds a user may take at the identity provider.
const PATIENCE: i64 = 600;
/// What a sealed cookie begins with; no token does.
const MARK: &[u8] = b"websso:";

/// What is remembered while the user is away.
#[derive(Debug, Serialize, Deserialize)]
struct Away {
    idp: String,
    protocol: String,
    origin: String,
    state: String,
    nonce: String,
    verifier: String,
    ends: i64,
}

pub(super) fn ops() -> Vec<Op<State>> {
    let one = "Logs a browser in at an identity provider and hands a token to the console it came from.";
    let any = "As that of the identity provider, where only one has the protocol and can be logged in at.";
    vec![
        Op::get(OF_IDP, "", way).public().summary(one),
        Op::post(OF_IDP, "", way).public().summary(one),
        Op::get(OF_ANY, "", choose).public().summary(any),
        Op::post(OF_ANY, "", choose).public().summary(any),
    ]
}

fn place(cx: &Cx, idp: &str, protocol: &str) -> String {
    cx.url(&format!("/v3/auth/OS-FEDERATION/identity_providers/{idp}/protocols/{protocol}/websso"))
}

/// The console the user comes from: one the operator trusts, or tokens would go to anybody who sends a user here.
fn origin<T>(cx: &Cx, req: &Request<T>) -> Result<String> {
    let origin =
        req.query_pairs().get("origin").filter(|o| !o.is_empty()).ok_or_else(|| missing("origin"))?;
    if !cx.config.operator.trusted_dashboards.iter().any(|known| known == origin) {
        let origin: String = origin.chars().filter(|c| !c.is_control()).take(128).collect();
        return Err(Error::unauthenticated(format!("{origin} is not a trusted dashboard host")));
    }
    Ok(origin.to_owned())
}

/// What we are to the identity provider.
fn client(provider: &IdentityProvider) -> Result<&OidcOwnClient> {
    let client = provider.oidc.as_ref().and_then(|oidc| oidc.client.as_ref());
    client.ok_or_else(|| {
        Error::forbidden(format!("Identity Provider {} has no 'oidc' with a 'client_id'.", provider.id))
    })
}

fn see(location: &str) -> Reply {
    Reply::empty().status(303).location(location).header("cache-control", "no-store")
}

async fn choose(cx: Cx, req: Request<()>) -> Result<Reply> {
    let origin = origin(&cx, &req)?;
    let name = req.param("protocol_id").to_owned();
    let found = cx
        .read(move |tx| {
            let mut found: Vec<(String, String)> = Vec::new();
            for protocol in tx.list::<Protocol>(&Query::new())?.into_iter().filter(|p| p.name == name) {
                let provider = tx.get::<IdentityProvider>(&protocol.idp_id)?;
                if provider.is_some_and(|p| p.enabled && client(&p).is_ok()) {
                    found.push((protocol.idp_id, protocol.name));
                }
            }
            Ok(found)
        })
        .await?;
    match found.as_slice() {
        [(idp, protocol)] => {
            Ok(see(&format!("{}?{}", place(&cx, idp, protocol), encoded(&[("origin", &origin)]))))
        }
        [] => Err(Error::unauthenticated("No identity provider with that protocol can be logged in at.")),
        _ => Err(Error::bad_request(
            "Several identity providers have that protocol; the console must name one of them.",
        )),
    }
}

async fn way(cx: Cx, req: Request<()>) -> Result<Reply> {
    if req.query_pairs().has("state") { come_back(cx, req).await } else { send_on(cx, req).await }
}

async fn send_on(cx: Cx, req: Request<()>) -> Result<Reply> {
    let origin = origin(&cx, &req)?;
    let (idp, protocol) = (req.param("idp_id").to_owned(), req.param("protocol_id").to_owned());
    if req.header(FRONT_END).is_some() {
        // A web server in front has let the user in already.
        let who = admitted_in_front(cx.state(), &idp, &protocol, req.headers()).await;
        let (token, _) = logged_in(&cx, &req, &idp, who).await?;
        return Ok(page::hand_over(&origin, &token));
    }
    let (provider, _) = way_in(cx.state(), &idp, &protocol).await?;
    let client = client(&provider)?;
    let issuer = provider.oidc.as_ref().map(issuer_of).ok_or_else(unauthorized)?;
    let now = cx.now();
    let asked = cx.issuers.endpoint(&issuer, "authorization_endpoint", now).await?;
    let away = Away {
        idp: idp.clone(),
        protocol: protocol.clone(),
        origin,
        state: secret(&cx.entropy),
        nonce: secret(&cx.entropy),
        verifier: secret(&cx.entropy),
        ends: now.plus_secs(PATIENCE).0,
    };
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(away.verifier.as_bytes()));
    let back = place(&cx, &idp, &protocol);
    let query = encoded(&[
        ("response_type", "code"),
        ("client_id", &client.id),
        ("redirect_uri", &back),
        ("scope", &client.scope),
        ("state", &away.state),
        ("nonce", &away.nonce),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ]);
    let mut bytes = MARK.to_vec();
    bytes.extend(serde_json::to_vec(&away).map_err(Error::internal)?);
    let sealed = cx.tokens.keys().seal(&bytes, now);
    let more = if asked.contains('?') { '&' } else { '?' };
    Ok(see(&format!("{asked}{more}{query}")).header("set-cookie", cookie(&sealed, PATIENCE)))
}

/// `__Host-`: of this host alone, over TLS alone. `Lax`: it comes along when the identity provider sends the user back.
fn cookie(value: &str, seconds: i64) -> String {
    format!("{COOKIE}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax")
}

fn remembered<T>(cx: &Cx, req: &Request<T>) -> Option<Away> {
    let header = req.header("cookie")?;
    let sealed = header.split(';').find_map(|c| c.trim().strip_prefix(COOKIE)?.strip_prefix('='))?;
    let (bytes, _) = cx.tokens.keys().open_token(sealed, cx.now())?;
    let away: Away = serde_json::from_slice(bytes.strip_prefix(MARK)?).ok()?;
    let here = away.idp == req.param("idp_id") && away.protocol == req.param("protocol_id");
    let state = req.query_pairs().get("state").unwrap_or_default();
    let same = same_digest(&digest(&away.state), &digest(state));
    (here && same && Timestamp(away.ends) > cx.now()).then_some(away)
}

async fn come_back(cx: Cx, req: Request<()>) -> Result<Reply> {
    // Who did not begin here in this browser, or too long ago: a login that somebody else began is none of this user's.
    let Some(away) = remembered(&cx, &req) else {
        let text = "This login was not begun in this browser, or too long ago. Begin again at the console.";
        return Ok(page::say(400, "Not logged in", text));
    };
    let who = finish(&cx, &req, &away).await;
    let reply = match logged_in(&cx, &req, &away.idp, who).await {
        Ok((token, _)) => page::hand_over(&away.origin, &token),
        Err(error) if error.kind() == base::Kind::Unauthenticated => page::say(
            401,
            "Not logged in",
            "The identity provider did not log you in, or you may not come in here.",
        ),
        Err(error) => return Err(error),
    };
    Ok(reply.header("set-cookie", cookie("", 0)))
}

async fn finish(cx: &Cx, req: &Request<()>, away: &Away) -> Result<Entered> {
    let refused = |error: Error| told(&away.idp, &away.protocol, error);
    let (provider, rules) = way_in(cx.state(), &away.idp, &away.protocol).await?;
    let code = req.query_pairs().get("code").filter(|c| !c.is_empty());
    let code = code.ok_or_else(|| refused(Error::unauthenticated("the identity provider sent no code")))?;
    let own = client(&provider)?.clone();
    let issuer = provider.oidc.as_ref().map(issuer_of).ok_or_else(unauthorized)?;
    let back = place(cx, &away.idp, &away.protocol);
    let form = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", back.as_str()),
        ("code_verifier", away.verifier.as_str()),
        ("client_id", own.id.as_str()),
    ];
    let key = own.sealed.as_deref().map(|sealed| cx.open_secret(sealed)).transpose()?;
    let client = key.as_deref().map(|key| (own.id.as_str(), key));
    let now = cx.now();
    let answer = cx.issuers.exchange(&issuer, client, &form, now).await.map_err(refused)?;
    let token = answer.get("id_token").and_then(serde_json::Value::as_str);
    let token = token.ok_or_else(|| refused(Error::unauthenticated("the answer has no id_token")))?;
    let audiences = std::slice::from_ref(&own.id);
    let claims: Claims = cx.issuers.verify(&issuer, audiences, token, now).await.map_err(refused)?;
    if claims.get("nonce").and_then(serde_json::Value::as_str) != Some(&away.nonce) {
        return Err(refused(Error::unauthenticated("the nonce is another")));
    }
    let said = Said::by_claims(&claims, now);
    enter(cx.state(), provider, &away.protocol, &rules, said).await
}
