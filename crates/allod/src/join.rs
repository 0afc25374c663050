//! Joining hosts, the server's side: tokens for operators, certificates for hosts.
//!
//! Invariant: what a certificate says is decided here, never by the request; only the holder of a token that was never
//! used, or of a certificate that is still good, gets one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::extract::{DefaultBodyLimit, State as Desk};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use base::{Clock, HostId, SystemClock};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contract::services::ControlPlane;
use link::{Failure, Peer};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bootstrap;
use crate::config::{Config, State};
use crate::pki::Pki;

/// Largest request: a name, a secret and a key.
const BODY: usize = 16 * 1024;
/// Longest life of a token.
const LONGEST: u64 = 7 * 86_400;

/// What a token holds: `allod1.` and base64url of this as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Where the server is.
    pub url: String,
    /// SHA-256 of the CA's certificate, hex: by this the server is known before anything else is.
    pub ca: String,
    /// The secret.
    pub secret: String,
}

impl Token {
    const PREFIX: &'static str = "allod1.";

    /// As it is handed to a host.
    pub fn text(&self) -> Result<String> {
        Ok(format!("{}{}", Self::PREFIX, URL_SAFE_NO_PAD.encode(serde_json::to_vec(self)?)))
    }

    /// Reads one.
    pub fn parse(text: &str) -> Result<Self> {
        let parse = || {
            let bytes = URL_SAFE_NO_PAD.decode(text.trim().strip_prefix(Self::PREFIX)?).ok()?;
            serde_json::from_slice(&bytes).ok()
        };
        parse().context("this is no join token (make one with `allod host token`)")
    }
}

/// What a host says to join.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// From the token.
    pub secret: String,
    /// The name it wants.
    pub name: String,
    /// Its key, as a PKCS#10 request in PEM.
    pub csr: String,
}

/// What it is told.
#[derive(Serialize, Deserialize)]
pub struct Joined {
    /// Its id.
    pub host: HostId,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The cloud's CA, PEM.
    pub ca: String,
    /// Where the Southbound database listens.
    pub southbound: SocketAddr,
}

/// A request for a newer certificate.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// The key.
    pub csr: String,
}

/// A certificate, PEM.
#[derive(Serialize, Deserialize)]
pub struct Certificate {
    /// The text.
    pub certificate: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    seconds: u64,
}

struct Office {
    state: State,
    compute: Arc<compute::State>,
}

/// The routes. `Peer` is the host of a verified client certificate.
pub fn routes(state: &State, compute: Arc<compute::State>) -> Router {
    Router::new()
        .route("/agent/v1/join", post(join))
        .route("/agent/v1/certificate", post(renew))
        .route("/ops/v1/join-tokens", post(token))
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(Arc::new(Office { state: state.clone(), compute }))
}

struct Refusal(base::Error);

impl From<base::Error> for Refusal {
    fn from(error: base::Error) -> Self {
        Refusal(error)
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Refusal(base::Error::internal(format!("{error:#}")))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if self.0.kind() == base::Kind::Internal {
            tracing::error!(error = %self.0.chain(), "joining failed");
        }
        let failure = Failure::from(self.0);
        let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(failure)).into_response()
    }
}

fn pki(state: &State) -> Result<Pki> {
    Pki::open(&state.path("pki"), SystemClock.now())
}

async fn join(Desk(office): Desk<Arc<Office>>, Json(join): Json<Join>) -> Result<Json<Joined>, Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if join.name.is_empty() || join.name.len() > 63 || !join.name.chars().all(plain) {
        return Err(base::Error::bad_request("'name' is up to 63 letters, digits and -._").into());
    }
    let config = office.state.config()?;
    let southbound = southbound(&office.state, &config).await?;
    let Some(southbound) = southbound else {
        let why = "This cloud has no 'underlay' in its configuration, so other hosts cannot join it.";
        return Err(base::Error::conflict(why).into());
    };
    let pki = pki(&office.state)?;
    let csr = Pki::read_request(&join.csr).map_err(|e| base::Error::bad_request(format!("'csr': {e:#}")))?;
    let host = office.compute.join(&join.secret, &join.name, &crate::pki::public_key(&csr)).await?;
    let certificate = pki.sign_host(csr, host, &join.name, config.hosts.certificate_secs)?;
    tracing::info!(%host, name = join.name, "a host joined");
    Ok(Json(Joined { host, certificate, ca: pki.ca_pem()?, southbound }))
}

async fn renew(
    Desk(office): Desk<Arc<Office>>,
    peer: Option<Extension<Peer>>,
    Json(renew): Json<Renew>,
) -> Result<Json<Certificate>, Refusal> {
    let Some(Extension(Peer(host))) = peer else {
        return Err(base::Error::unauthenticated("A host's client certificate is needed here.").into());
    };
    office.compute.admit(host).await?;
    let name = office.compute.joined_name(host).await?;
    let csr = Pki::read_request(&renew.csr).map_err(|e| base::Error::bad_request(format!("'csr': {e:#}")))?;
    let seconds = office.state.config()?.hosts.certificate_secs;
    let certificate = pki(&office.state)?.sign_host(csr, host, &name, seconds)?;
    Ok(Json(Certificate { certificate }))
}

/// A token, for the operator of this very machine: whoever has this directory has the CA's key anyhow.
async fn token(
    Desk(office): Desk<Arc<Office>>,
    peer: Option<Extension<Peer>>,
    Json(ask): Json<Ask>,
) -> Result<Json<serde_json::Value>, Refusal> {
    let own = bootstrap::host_id(&office.state)?;
    if peer.is_none_or(|Extension(Peer(host))| host != own) {
        return Err(base::Error::forbidden("Only the operator of the server gives out join tokens.").into());
    }
    if ask.seconds == 0 || ask.seconds > LONGEST {
        return Err(base::Error::bad_request("'seconds' is between 1 and 604800").into());
    }
    let secret = office.compute.issue_join_token(Duration::from_secs(ask.seconds)).await?;
    Ok(Json(json!({"secret": secret})))
}

/// Where hosts reach the Southbound database; `None` where no other host can join.
pub async fn southbound(state: &State, config: &Config) -> Result<Option<SocketAddr>> {
    if config.sim_hosts > 0 {
        return Ok(None);
    }
    if !config.replica.ovn_agent.is_empty() {
        let url = reqwest::Url::parse(&config.replica.ovn_agent).context("`replica.ovn_agent` is no URL")?;
        let host = url.host_str().context("`replica.ovn_agent` names no host")?;
        let host = host.trim_matches(['[', ']']);
        let mut found = tokio::net::lookup_host((host, config.hosts.southbound_port)).await?;
        return Ok(Some(found.next().with_context(|| format!("{host} has no address"))?));
    }
    if config.underlay.is_empty() {
        return Ok(None);
    }
    let ip = config.listen.ip();
    let ip = if ip.is_loopback() || ip.is_unspecified() {
        ovn::engines::underlay::address(state.dir(), None, &config.underlay).await?
    } else {
        ip
    };
    Ok(Some(SocketAddr::new(ip, config.hosts.southbound_port)))
}

/// `allod host token`: prints a token.
pub async fn give(state: &State, ttl: &str) -> Result<()> {
    let seconds = seconds(ttl)?;
    let config = state.config()?;
    if config.underlay.is_empty() && config.replica.ovn_agent.is_empty() {
        bail!("this cloud has no `underlay` in its configuration: other hosts could not reach its guests");
    }
    let pki = pki(state)?;
    let client = pki.host_client(bootstrap::host_id(state)?)?;
    let url = format!("https://{}/ops/v1/join-tokens", config.listen);
    let answer =
        client.post(url).json(&Ask { seconds }).send().await.context("the server does not answer")?;
    let answer: serde_json::Value = answer.error_for_status()?.json().await?;
    let secret = answer["secret"].as_str().context("the server gave no secret")?.to_owned();
    println!("{}", Token { url: config.url(), ca: pki.fingerprint()?, secret }.text()?);
    Ok(())
}

/// `90`, `90s`, `15m`, `2h`, `1d` as seconds.
fn seconds(text: &str) -> Result<u64> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => bail!("'{text}' is no time (90s, 15m, 2h, 1d)"),
    };
    let number: u64 = number.parse().with_context(|| format!("'{text}' is no time (90s, 15m, 2h, 1d)"))?;
    let seconds = number.saturating_mul(factor);
    if seconds == 0 || seconds > LONGEST {
        bail!("a token lives between a second and a week");
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_and_whom_and_is_read_again() {
        let token = Token { url: "https://10.0.0.1:8443".into(), ca: "ab".into(), secret: "s".into() };
        assert_eq!(Token::parse(&format!(" {}\n", token.text().unwrap())).unwrap(), token);
        for bad in ["", "allod1.", "allod1.!", "allod2.e30", "allod1.e30"] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_read() {
        assert_eq!(seconds("90").unwrap(), 90);
        assert_eq!(seconds("2h").unwrap(), 7200);
        for bad in ["", "h", "0", "8d", "1w", "-1s", "1h30m"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
