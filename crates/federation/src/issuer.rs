//! Issuers: their discovery documents and key sets.
//!
//! Both are fetched when a token first needs them, and remembered. A key that is not known makes us ask again, but not
//! more often than every [`AGAIN`], so that nobody can make us flood an issuer with invented keys; a set that has grown
//! old is fetched anew, so that a key its issuer has withdrawn stops being believed; and for a while an issuer may be
//! unreachable without anybody noticing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Error, Result, Timestamp};
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use rustls::RootCertStore;
use serde_json::Value;

use crate::jose::{self, Claims, Expected, KeySet};

/// A key that is not known: how soon its issuer is asked again.
pub const AGAIN: i64 = 30;
/// Age at which a key set is fetched anew.
pub const FRESH: i64 = 300;
/// Age up to which a key set is believed while its issuer cannot be reached.
pub const STALE: i64 = 3600;
/// Longest document.
const LARGEST: usize = 256 * 1024;
/// Longest wait for one document.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An issuer as an operator describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Issuer {
    /// Its identifier, a URL: `iss` of its tokens.
    pub url: String,
    /// Where its keys are; `None` = as its discovery document says.
    pub jwks_uri: Option<String>,
    /// Certificates (PEM) of who may vouch for it; `None` = those the system trusts.
    pub ca: Option<String>,
}

/// How documents are fetched.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// The document at `url`.
    ///
    /// # Errors
    /// `Unavailable` where there is none.
    async fn get(&self, url: &str, ca: Option<&str>) -> Result<Bytes>;

    /// What `url` answers to a form, sent by a client that says who it is (`client`: its id and secret).
    ///
    /// # Errors
    /// `Unavailable` where there is no answer, `Unauthenticated` where it is a refusal.
    async fn post(
        &self,
        url: &str,
        ca: Option<&str>,
        client: Option<(&str, &str)>,
        form: &[(&str, &str)],
    ) -> Result<Bytes>;
}

/// Whether a URL may be asked: HTTPS; plain HTTP on this machine only.
pub fn may_ask(url: &str) -> bool {
    match url.split_once("://") {
        Some(("https", rest)) => !rest.is_empty() && !rest.starts_with('/'),
        Some(("http", rest)) => {
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            if host.contains('@') {
                return false;
            }
            let name = match host.strip_prefix('[') {
                Some(literal) => literal.split(']').next().unwrap_or_default(),
                None => host.split(':').next().unwrap_or_default(),
            };
            ["127.0.0.1", "::1", "localhost"].contains(&name)
        }
        _ => false,
    }
}

/// Over HTTPS, with certificates verified; no redirects.
#[derive(Debug, Default)]
pub struct Https {
    clients: Mutex<HashMap<Option<String>, reqwest::Client>>,
}

/// Where systems keep the certificates they trust.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

fn roots(ca: Option<&str>) -> Result<RootCertStore> {
    let text = match ca {
        Some(pem) => pem.as_bytes().to_vec(),
        None => {
            let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
            let mut places = named.into_iter().chain(BUNDLES.map(std::path::PathBuf::from));
            places.find_map(|p| std::fs::read(p).ok()).unwrap_or_default()
        }
    };
    let mut store = RootCertStore::empty();
    for certificate in rustls_pemfile::certs(&mut text.as_slice()) {
        let certificate = certificate.map_err(|_| Error::bad_request("a certificate is no PEM"))?;
        // The system's own bundle may hold what rustls does not read.
        match store.add(certificate) {
            Err(_) if ca.is_some() => return Err(Error::bad_request("a certificate cannot be used")),
            _ => {}
        }
    }
    if ca.is_some() && store.is_empty() {
        return Err(Error::bad_request("there is no certificate"));
    }
    Ok(store)
}

/// Checks certificates an operator gives.
///
/// # Errors
/// `BadRequest` where there is none, or one is none.
pub fn check_ca(pem: &str) -> Result<()> {
    roots(Some(pem)).map(|_| ())
}

impl Https {
    fn client(&self, ca: Option<&str>) -> Result<reqwest::Client> {
        let key = ca.map(str::to_owned);
        if let Some(known) = self.clients.lock().get(&key) {
            return Ok(known.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::internal)?
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(Error::internal)?;
        let mut clients = self.clients.lock();
        // Nobody has so many identity providers; certificates that were replaced need not be kept.
        if clients.len() >= 64 {
            clients.clear();
        }
        Ok(clients.entry(key).or_insert(client).clone())
    }
}

#[async_trait]
impl Fetch for Https {
    async fn get(&self, url: &str, ca: Option<&str>) -> Result<Bytes> {
        let failed = |what: String| Error::unavailable(format!("{url}: {what}"));
        if !may_ask(url) {
            return Err(failed("only https is asked".into()));
        }
        let answer = self.client(ca)?.get(url).header("accept", "application/json").send().await;
        let answer = answer.map_err(|e| failed("no answer".into()).caused_by(e))?;
        if !answer.status().is_success() {
            return Err(failed(format!("status {}", answer.status())));
        }
        collected(url, answer).await
    }

    async fn post(
        &self,
        url: &str,
        ca: Option<&str>,
        client: Option<(&str, &str)>,
        form: &[(&str, &str)],
    ) -> Result<Bytes> {
        let failed = |what: String| Error::unavailable(format!("{url}: {what}"));
        if !may_ask(url) {
            return Err(failed("only https is asked".into()));
        }
        let body = encoded(form);
        let mut call = self.client(ca)?.post(url).header("accept", "application/json");
        call = call.header("content-type", "application/x-www-form-urlencoded").body(body);
        if let Some((id, secret)) = client {
            // RFC 6749, 2.3.1: both are encoded as in a form first.
            call = call.basic_auth(encoded_text(id), Some(encoded_text(secret)));
        }
        let answer = call.send().await.map_err(|e| failed("no answer".into()).caused_by(e))?;
        let status = answer.status();
        if status.is_client_error() {
            return Err(Error::unauthenticated(format!("{url} answered {status}")));
        }
        if !status.is_success() {
            return Err(failed(format!("status {status}")));
        }
        collected(url, answer).await
    }
}

async fn collected(url: &str, answer: reqwest::Response) -> Result<Bytes> {
    let failed = |what: &str| Error::unavailable(format!("{url}: {what}"));
    let mut body = Vec::new();
    let mut stream = answer.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| failed("it broke off").caused_by(e))?;
        if body.len() + chunk.len() > LARGEST {
            return Err(failed("it is too large"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// Text as it stands in a form.
pub fn encoded_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A form, or a query.
pub fn encoded(form: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        form.iter().map(|(name, value)| format!("{}={}", encoded_text(name), encoded_text(value))).collect();
    pairs.join("&")
}

#[derive(Default)]
struct Remembered {
    document: Option<(Value, Timestamp)>,
    keys: Option<(KeySet, Timestamp)>,
    asked: Option<Timestamp>,
}

/// The issuers that are trusted, with what is remembered of them.
pub struct Issuers {
    fetch: Arc<dyn Fetch>,
    known: Mutex<HashMap<Issuer, Arc<tokio::sync::Mutex<Remembered>>>>,
}

impl std::fmt::Debug for Issuers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuers({})", self.known.lock().len())
    }
}

impl Issuers {
    /// Nothing is known yet.
    pub fn new(fetch: Arc<dyn Fetch>) -> Self {
        Issuers { fetch, known: Mutex::default() }
    }

    /// The claims of a token of `issuer` for one of `audiences`.
    ///
    /// # Errors
    /// `Unauthenticated` with the reason for the log; `Unavailable` where the issuer's keys cannot be had.
    pub async fn verify(
        &self,
        issuer: &Issuer,
        audiences: &[String],
        token: &str,
        now: Timestamp,
    ) -> Result<Claims> {
        let kid = jose::key_id(token)?;
        let keys = self.keys(issuer, kid.as_deref(), now).await?;
        keys.verify(token, &Expected { issuer: &issuer.url, audiences, now })
    }

    fn cell(&self, issuer: &Issuer) -> Arc<tokio::sync::Mutex<Remembered>> {
        let mut known = self.known.lock();
        if known.len() >= 1024 && !known.contains_key(issuer) {
            known.clear();
        }
        known.entry(issuer.clone()).or_default().clone()
    }

    /// A URL of the issuer's discovery document (`authorization_endpoint`, `token_endpoint`), which is remembered for a
    /// while: nobody makes us ask with every request.
    ///
    /// # Errors
    /// `Unavailable` where it cannot be had, or is no https URL.
    pub async fn endpoint(&self, issuer: &Issuer, name: &str, now: Timestamp) -> Result<String> {
        let cell = self.cell(issuer);
        let mut held = cell.lock().await;
        let fresh = |at: Timestamp| now.as_secs() - at.as_secs() < FRESH;
        let document = match &held.document {
            Some((document, at)) if fresh(*at) => document,
            _ => &held.document.insert((self.discover(issuer).await?, now)).0,
        };
        let url = document.get(name).and_then(Value::as_str).filter(|url| may_ask(url));
        url.map(str::to_owned)
            .ok_or_else(|| Error::unavailable(format!("its discovery document has no usable '{name}'")))
    }

    /// Exchanges an authorization code (or whatever `form` says) at the issuer's token endpoint.
    ///
    /// # Errors
    /// `Unavailable`; `Unauthenticated` where the issuer refuses.
    pub async fn exchange(
        &self,
        issuer: &Issuer,
        client: Option<(&str, &str)>,
        form: &[(&str, &str)],
        now: Timestamp,
    ) -> Result<Value> {
        let url = self.endpoint(issuer, "token_endpoint", now).await?;
        let answer = self.fetch.post(&url, issuer.ca.as_deref(), client, form).await?;
        serde_json::from_slice(&answer)
            .map_err(|_| Error::unavailable(format!("{url}: its answer is no JSON")))
    }

    async fn discover(&self, issuer: &Issuer) -> Result<Value> {
        let base = issuer.url.trim_end_matches('/');
        let place = format!("{base}/.well-known/openid-configuration");
        let document = self.fetch.get(&place, issuer.ca.as_deref()).await?;
        let document: Value = serde_json::from_slice(&document).map_err(Error::internal)?;
        if document.get("issuer").and_then(Value::as_str) != Some(&issuer.url) {
            return Err(Error::unavailable("its discovery document is of another issuer"));
        }
        Ok(document)
    }

    async fn keys(&self, issuer: &Issuer, kid: Option<&str>, now: Timestamp) -> Result<KeySet> {
        let cell = self.cell(issuer);
        // One question at a time; who waits finds the answer.
        let mut held = cell.lock().await;
        let age = |at: Timestamp| now.as_secs() - at.as_secs();
        let enough = held.keys.as_ref().is_some_and(|(keys, at)| keys.knows(kid) && age(*at) < FRESH);
        let too_soon = held.asked.is_some_and(|at| age(at) < AGAIN);
        if !enough && !too_soon {
            held.asked = Some(now);
            match self.fetch_keys(issuer).await {
                Ok(keys) => held.keys = Some((keys, now)),
                Err(error) => {
                    tracing::warn!(
                        issuer = issuer.url,
                        error = error.chain(),
                        "the keys of an issuer cannot be had"
                    );
                }
            }
        }
        match &held.keys {
            Some((keys, at)) if age(*at) < STALE => Ok(keys.clone()),
            _ => Err(Error::unavailable("The identity provider cannot be reached.")),
        }
    }

    async fn fetch_keys(&self, issuer: &Issuer) -> Result<KeySet> {
        let ca = issuer.ca.as_deref();
        let jwks = match &issuer.jwks_uri {
            Some(uri) => uri.clone(),
            None => {
                let document = self.discover(issuer).await?;
                let uri = document.get("jwks_uri").and_then(Value::as_str);
                uri.ok_or_else(|| Error::unavailable("its discovery document names no keys"))?.to_owned()
            }
        };
        if !may_ask(&jwks) {
            return Err(Error::unavailable("its keys are not behind https"));
        }
        KeySet::parse(&self.fetch.get(&jwks, ca).await?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::jose::{SigningKey, key_set};
    use serde_json::json;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Fake {
        keys: Mutex<Option<Value>>,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Fetch for Fake {
        async fn post(
            &self,
            _: &str,
            _: Option<&str>,
            _: Option<(&str, &str)>,
            _: &[(&str, &str)],
        ) -> Result<Bytes> {
            Err(Error::unavailable("nobody posts here"))
        }

        async fn get(&self, url: &str, _: Option<&str>) -> Result<Bytes> {
            if url == "https://i/.well-known/openid-configuration" {
                return Ok(json!({"issuer": "https://i", "jwks_uri": "https://i/keys"}).to_string().into());
            }
            assert_eq!(url, "https://i/keys");
            self.asked.fetch_add(1, Ordering::SeqCst);
            let keys = self.keys.lock().clone();
            keys.map(|k| k.to_string().into()).ok_or_else(|| Error::unavailable("gone"))
        }
    }

    fn key() -> SigningKey {
        SigningKey::from_pem(&SigningKey::generate().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn keys_turn_over_and_nobody_can_make_us_flood_an_issuer() {
        let fake = Arc::new(Fake::default());
        let issuers = Issuers::new(fake.clone());
        let issuer = Issuer { url: "https://i".into(), jwks_uri: None, ca: None };
        let (first, second, forged) = (key(), key(), key());
        *fake.keys.lock() = Some(key_set([&first]));
        let start = Timestamp::from_secs(1_000_000);
        let token = |key: &SigningKey| {
            let claims = json!({"iss": "https://i", "aud": "us", "exp": start.as_secs() + 100_000});
            key.sign("JWT", &claims).unwrap()
        };
        let audiences = ["us".to_owned()];
        let verify = |key: &SigningKey, after: i64| {
            let (token, issuers, issuer) = (token(key), &issuers, &issuer);
            let audiences = &audiences;
            async move { issuers.verify(issuer, audiences, &token, start.plus_secs(after)).await }
        };
        let asked = || fake.asked.load(Ordering::SeqCst);
        verify(&first, 0).await.unwrap();
        verify(&first, 1).await.unwrap();
        assert_eq!(asked(), 1);
        // A thousand forged keys: one question each half minute.
        for i in 0..1000 {
            assert!(verify(&forged, 2 + i / 100).await.is_err());
        }
        assert_eq!(asked(), 1);
        assert!(verify(&forged, 31).await.is_err());
        assert_eq!(asked(), 2);
        // A new key is taken at once if nobody asked just now; the old one while it is in the set.
        *fake.keys.lock() = Some(key_set([&first, &second]));
        verify(&second, 70).await.unwrap();
        assert_eq!(asked(), 3);
        // Withdrawn: no longer believed once the set is old.
        *fake.keys.lock() = Some(key_set([&second]));
        verify(&first, 71).await.unwrap();
        assert!(verify(&first, 70 + FRESH).await.is_err());
        // The issuer is away: what is known holds for a while, and no longer.
        *fake.keys.lock() = None;
        verify(&second, 70 + 2 * FRESH + 1).await.unwrap();
        let late = verify(&second, 71 + FRESH + STALE).await.unwrap_err();
        assert_eq!(late.kind(), base::Kind::Unavailable);
    }

    #[test]
    fn only_https_is_asked() {
        for (url, may) in [
            ("https://a.example/x", true),
            ("http://127.0.0.1:8080/x", true),
            ("http://[::1]:80/", true),
            ("http://localhost", true),
            ("http://a.example/", false),
            ("http://127.0.0.1.example/", false),
            ("http://localhost@evil.example/", false),
            ("http://localhost:1@evil.example/", false),
            ("ftp://a", false),
            ("https:///x", false),
            ("file:///etc/passwd", false),
        ] {
            assert_eq!(may_ask(url), may, "{url}");
        }
        assert!(check_ca("nothing").is_err());
    }
}
