//! This machine as a member of a cloud that runs elsewhere: joining with a token, and its certificate from then on.
//!
//! Invariant: the private key is made here and never leaves; the server is trusted by the fingerprint in the token at
//! first, by the cloud's CA afterwards. Renewing keeps the key, so that key and certificate can never be of two kinds.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base::{Clock, HostId, Timestamp};
use parking_lot::RwLock;
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use crate::config::{Config, External, State};
use crate::files;
use crate::join::{Certificate, Join, Joined, Renew, Token};
use crate::pki;

/// How soon a renewal that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// Longer than the server takes to sign.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What was agreed when joining; `DIR/member.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    /// Our id.
    pub host: HostId,
    /// Our name: compute host, chassis, common name of our certificate.
    pub name: String,
    /// The server.
    pub server: String,
    /// Where its Southbound database listens.
    pub southbound: SocketAddr,
    /// The device for tunnels.
    pub underlay: Option<String>,
    /// The external network, where this host reaches it.
    pub external: Option<External>,
}

/// What the operator says when joining.
pub struct Request {
    /// The token.
    pub token: String,
    /// The server, if not the one in the token.
    pub server: Option<String>,
    /// Our name, if not the machine's.
    pub name: Option<String>,
    /// The device for tunnels.
    pub underlay: Option<String>,
    /// The external network.
    pub external: Option<External>,
}

/// Files of a member's identity: key, certificate, CA.
pub fn tls(state: &State) -> ovn::engines::Tls {
    let file = |name: &str| state.path("pki").join(name);
    ovn::engines::Tls { key: file("host.key"), certificate: file("host.crt"), ca: file("ca.crt") }
}

fn path(state: &State) -> PathBuf {
    state.path("member.json")
}

impl Member {
    /// The membership of this state directory, if it has one.
    pub fn open(state: &State) -> Result<Option<Self>> {
        match fs::read(path(state)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).context("member.json is damaged"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).context("cannot read member.json"),
        }
    }

    /// Joins: makes the key, has it certified, writes everything down. Asked again after a lost answer, it uses the same
    /// key, which the server knows.
    pub async fn join(state: &State, request: Request) -> Result<Self> {
        let token = Token::parse(&request.token)?;
        let server = request.server.unwrap_or(token.url).trim_end_matches('/').to_owned();
        let name = request.name.unwrap_or_else(crate::agent_role::hostname);
        let files = tls(state);
        if !files.key.exists() {
            files::write_secret(&files.key, KeyPair::generate()?.serialize_pem().as_bytes())?;
        }
        let join = Join { secret: token.secret, name: name.clone(), csr: csr(state)? };
        let http = pki::pinned_client(&token.ca)?;
        let url = format!("{server}/agent/v1/join");
        let answer = http.post(&url).timeout(TIMEOUT).json(&join).send().await;
        let answer =
            answer.with_context(|| format!("{server} does not answer, or is not the cloud of this token"))?;
        if !answer.status().is_success() {
            let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
            let failure = serde_json::from_str::<link::Failure>(&text);
            bail!("{server} refuses: {}", failure.map_or_else(|_| status.to_string(), |f| f.message));
        }
        let joined: Joined = answer.json().await.context("the server's answer cannot be read")?;
        files::write_secret(&files.ca, joined.ca.as_bytes())?;
        files::write_secret(&files.certificate, joined.certificate.as_bytes())?;
        let member = Member {
            host: joined.host,
            name,
            server,
            southbound: joined.southbound,
            underlay: request.underlay,
            external: request.external,
        };
        state.keep(&Config::default())?;
        files::write_secret(&path(state), &serde_json::to_vec_pretty(&member)?)?;
        Ok(member)
    }
}

/// A request to certify our key; the server alone decides what the certificate says.
fn csr(state: &State) -> Result<String> {
    let key = KeyPair::from_pem(&fs::read_to_string(tls(state).key).context("cannot read host.key")?)?;
    Ok(CertificateParams::default().serialize_request(&key)?.pem()?)
}

/// The certificate that new connections are made with.
#[derive(Debug)]
pub struct Identity {
    state: State,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Identity {
    /// The certificate on disk.
    pub fn open(state: &State) -> Result<Arc<Self>> {
        Ok(Arc::new(Identity { current: RwLock::new(load(state)?), state: state.clone() }))
    }

    /// A client that always speaks with the newest certificate. No session is resumed: it would carry an older one.
    pub fn client(self: &Arc<Self>) -> Result<reqwest::Client> {
        let mut roots = RootCertStore::empty();
        roots.add(pki::certificate(&tls(&self.state).ca)?)?;
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_cert_resolver(self.clone());
        config.resumption = rustls::client::Resumption::disabled();
        pki::http(config)
    }

    /// Renews the certificate whenever a third of its life is left, for ever.
    pub async fn keep(self: Arc<Self>, http: reqwest::Client, server: String, clock: Arc<dyn Clock>) {
        loop {
            let wait = match self.due() {
                Ok(due) => Duration::from_micros(u64::try_from(due.0 - clock.now().0).unwrap_or(0)),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "our certificate cannot be read");
                    RETRY
                }
            };
            if !wait.is_zero() {
                // Looked at again now and then: the clock may be set.
                tokio::time::sleep(wait.min(Duration::from_secs(3600))).await;
                continue;
            }
            match self.renew(&http, &server).await {
                Ok(()) => tracing::info!("certificate renewed"),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "certificate not renewed");
                    tokio::time::sleep(RETRY.min(self.left(&*clock) / 8).max(Duration::from_secs(1))).await;
                }
            }
        }
    }

    fn validity(&self) -> Result<(Timestamp, Timestamp)> {
        pki::validity(&pki::certificate(&tls(&self.state).certificate)?)
    }

    fn due(&self) -> Result<Timestamp> {
        let (from, to) = self.validity()?;
        Ok(pki::renew_at(from, to))
    }

    fn left(&self, clock: &dyn Clock) -> Duration {
        let end = self.validity().map_or(0, |(_, to)| to.0);
        Duration::from_micros(u64::try_from(end - clock.now().0).unwrap_or(0))
    }

    async fn renew(&self, http: &reqwest::Client, server: &str) -> Result<()> {
        let request = http.post(format!("{server}/agent/v1/certificate")).timeout(TIMEOUT);
        let answer = request.json(&Renew { csr: csr(&self.state)? }).send().await?.error_for_status()?;
        let Certificate { certificate } = answer.json().await?;
        let files = tls(&self.state);
        let key = fs::read(&files.key)?;
        // ovn-controller reads both again once both have changed, and it looks at the key first: so the key comes last.
        files::write_secret(&files.certificate, certificate.as_bytes())?;
        files::write_secret(&files.key, &key)?;
        *self.current.write() = load(&self.state)?;
        Ok(())
    }
}

fn load(state: &State) -> Result<Arc<CertifiedKey>> {
    let files = tls(state);
    let key = rustls::crypto::ring::sign::any_supported_type(&pki::key(&files.key)?)?;
    Ok(Arc::new(CertifiedKey::new(vec![pki::certificate(&files.certificate)?], key)))
}
