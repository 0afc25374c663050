//! HTTP with a note of every call.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::Uri;
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use reqwest::header::{HeaderMap, HeaderValue, LOCATION, PROXY_AUTHORIZATION, RETRY_AFTER, USER_AGENT};
use reqwest::{Certificate, Client, Identity, Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::config::Cloud;
use crate::connect::{Broken, Connector, PHASES, Phases, micros};
use crate::{Error, Kind, Result};

/// What we call ourselves.
const AGENT: &str = concat!("allod/", env!("CARGO_PKG_VERSION"));
/// Redirections that are followed.
const REDIRECTIONS: usize = 3;

/// How many calls are remembered.
const REMEMBERED: usize = 20_000;

/// How to deal with a cloud that stutters.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How often a `GET` is tried again after 429, 502, 503, 504 or a broken connection.
    pub retries: u32,
    /// Time limit of one request unless the cloud's configuration has one.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { retries: 2, timeout: Duration::from_secs(60) }
    }
}

/// A call as it went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Method.
    pub method: String,
    /// URL without its query.
    pub url: String,
    /// Status; `None`: no answer.
    pub status: Option<u16>,
    /// Why there was no answer ([`Kind::name`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Microseconds that the name took; `None`: a connection that was there served. So are the two below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_us: Option<u64>,
    /// Microseconds until TCP was connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u64>,
    /// Microseconds of the TLS handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_us: Option<u64>,
    /// Microseconds from the beginning until the head of the answer was there.
    pub first_byte_us: u64,
    /// Microseconds until all of it was.
    pub total_us: u64,
    /// The cloud's id of the request.
    pub request_id: Option<String>,
}

/// Hears of every call as it ends.
pub type Ear = Arc<dyn Fn(&Call) + Send + Sync>;

/// Whom to trust, and as whom to appear, in TLS.
#[derive(Clone)]
pub struct Trust {
    /// Whether certificates are checked.
    pub verify: bool,
    /// CA bundle (PEM) instead of the machine's.
    pub ca: Option<Vec<u8>>,
    /// Client certificate and key (PEM).
    pub identity: Option<Vec<u8>>,
}

/// An HTTP client that trusts as told; for servers that are no OpenStack.
pub fn http_client(trust: &Trust, timeout: Duration) -> Result<Client> {
    let mut builder =
        Client::builder().user_agent(AGENT).timeout(timeout).redirect(reqwest::redirect::Policy::limited(3));
    if !trust.verify {
        builder = builder.danger_accept_invalid_certs(true);
    }
    match &trust.ca {
        Some(pem) => {
            let found = Certificate::from_pem_bundle(pem)
                .map_err(|_| Error::config("the CA bundle has no PEM certificates"))?;
            builder = found.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
        }
        // Nothing is checked against them.
        None if !trust.verify => {}
        None => {
            for der in rustls_native_certs::load_native_certs().certs {
                // One that the machine has and TLS does not understand is of no use to anybody.
                if let Ok(certificate) = Certificate::from_der(&der) {
                    builder = builder.add_root_certificate(certificate);
                }
            }
        }
    }
    if let Some(pem) = &trust.identity {
        let identity =
            Identity::from_pem(pem).map_err(|_| Error::config("no client certificate with its key"))?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|e| Error::config(format!("no HTTP client: {e}")))
}

/// An HTTP client for one cloud.
#[derive(Clone)]
pub(crate) struct Transport {
    shared: Arc<Shared>,
    ear: Option<Ear>,
}

struct Shared {
    pool: Pool<Connector, Full<Bytes>>,
    connector: Connector,
    options: Options,
    timeout: Duration,
    calls: Mutex<Vec<Call>>,
}

pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub request_id: Option<String>,
}

pub(crate) struct Outgoing<'a> {
    pub method: Method,
    pub url: &'a str,
    pub headers: HeaderMap,
    pub body: Option<Vec<u8>>,
}

impl Transport {
    pub(crate) fn new(cloud: &Cloud, options: Options) -> Result<Self> {
        Transport::through(cloud, options, Matcher::from_env())
    }

    /// Through proxies.
    pub(crate) fn through(cloud: &Cloud, options: Options, proxies: Matcher) -> Result<Self> {
        let mut identity = cloud.cert.as_deref().map(read).transpose()?;
        if let (Some(pem), Some(key)) = (&mut identity, &cloud.key) {
            pem.extend(read(key)?);
        }
        let trust =
            Trust { verify: cloud.verify, ca: cloud.cacert.as_deref().map(read).transpose()?, identity };
        let connector = Connector::new(&trust, proxies)?;
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector.clone());
        let timeout = cloud.timeout.unwrap_or(options.timeout);
        let shared = Shared { pool, connector, options, timeout, calls: Mutex::default() };
        Ok(Transport { shared: Arc::new(shared), ear: None })
    }

    /// The same client, with somebody who hears of its calls.
    pub(crate) fn heard_by(&self, ear: Ear) -> Self {
        Transport { shared: self.shared.clone(), ear: Some(ear) }
    }

    /// What was called so far; the oldest are forgotten after some twenty thousand.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().clone()
    }

    /// Sends; any answer with a status is an answer.
    pub(crate) async fn send(&self, out: Outgoing<'_>) -> Result<Answer> {
        let again = out.method == Method::GET || out.method == Method::HEAD;
        let mut tried = 0;
        loop {
            let result = self.once(&out).await;
            let wait = match &result {
                Ok(a) if matches!(a.status.as_u16(), 429 | 502 | 503 | 504) => {
                    let told = a.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
                    Duration::from_secs(told.unwrap_or(1).min(10))
                }
                Err(e) if e.kind == Kind::Connect => Duration::from_millis(300 << tried.min(4)),
                _ => return result,
            };
            if !again || tried >= self.shared.options.retries {
                return result;
            }
            tried += 1;
            tokio::time::sleep(wait).await;
        }
    }

    /// Reads a body piece by piece; its time limit is for the pause between two pieces.
    pub(crate) async fn read(
        &self,
        url: &str,
        headers: HeaderMap,
        piece: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let failed = |(kind, message): (Kind, String)| Error {
            kind,
            message,
            call: Some(format!("GET {url}")),
            request_id: None,
        };
        let late = |_| failed((Kind::Timeout, "the body stopped coming".into()));
        let limit = self.shared.timeout;
        let out = Outgoing { method: Method::GET, url, headers, body: None };
        let answer = tokio::time::timeout(limit, self.follow(&out)).await.map_err(late)?;
        let response = answer.map_err(failed)?;
        if !response.status().is_success() {
            return Err(failed((Kind::Status(response.status().as_u16()), "no body".into())));
        }
        let mut body = response.into_body();
        while let Some(frame) = tokio::time::timeout(limit, body.frame()).await.map_err(late)? {
            let frame = frame.map_err(|e| failed(told(&e)))?;
            if let Some(bytes) = frame.data_ref() {
                piece(bytes);
            }
        }
        Ok(())
    }

    /// Asks, and goes where it is sent.
    async fn follow(
        &self,
        out: &Outgoing<'_>,
    ) -> std::result::Result<hyper::Response<Incoming>, (Kind, String)> {
        let no_url = || (Kind::Config, "no URL".to_owned());
        let mut uri: Uri = out.url.parse().map_err(|_| no_url())?;
        let mut headers = out.headers.clone();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let asks = out.method == Method::GET || out.method == Method::HEAD;
        for _ in 0..=REDIRECTIONS {
            let body = Full::new(Bytes::from(out.body.clone().unwrap_or_default()));
            let mut request = hyper::Request::new(body);
            *request.method_mut() = out.method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = headers.clone();
            // What goes through a tunnel is no business of the proxy's, and its password none of the cloud's.
            let plain_proxy = self.shared.connector.proxy(&uri).filter(|_| uri.scheme_str() == Some("http"));
            if let Some(auth) = plain_proxy.as_ref().and_then(|p| p.basic_auth()) {
                request.headers_mut().insert(PROXY_AUTHORIZATION, auth.clone());
            }
            let response = self.shared.pool.request(request).await.map_err(|e| told(&e))?;
            let elsewhere = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let place =
                response.headers().get(LOCATION).and_then(|v| v.to_str().ok()).filter(|_| asks && elsewhere);
            let Some(next) = place.map(|place| join(&uri, place).map_err(|_| no_url())).transpose()? else {
                return Ok(response);
            };
            if next.authority() != uri.authority() {
                headers.remove("x-auth-token");
            }
            uri = next;
        }
        Err((Kind::Protocol, "redirected in circles".into()))
    }

    async fn once(&self, out: &Outgoing<'_>) -> Result<Answer> {
        let phases = Arc::new(Mutex::new(Phases::default()));
        let begin = Instant::now();
        let mut call = Call {
            method: out.method.to_string(),
            url: out.url.split('?').next().unwrap_or_default().to_owned(),
            ..Call::default()
        };
        let answering = async {
            let response = PHASES.scope(phases.clone(), self.follow(out)).await?;
            call.first_byte_us = micros(begin);
            call.status = Some(response.status().as_u16());
            call.request_id = ["x-openstack-request-id", "x-compute-request-id"]
                .iter()
                .find_map(|name| Some(response.headers().get(*name)?.to_str().ok()?.to_owned()));
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| told(&e))?.to_bytes().to_vec();
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
                request_id: call.request_id.clone(),
            })
        };
        let limit = self.shared.timeout;
        let result = tokio::time::timeout(limit, answering)
            .await
            .unwrap_or_else(|_| Err((Kind::Timeout, format!("no answer within {} s", limit.as_secs_f32()))));
        call.total_us = micros(begin);
        let Phases { dns_us, connect_us, tls_us } = *phases.lock();
        (call.dns_us, call.connect_us, call.tls_us) = (dns_us, connect_us, tls_us);
        if let Err((kind, _)) = &result {
            call.failure = Some(kind.name().to_owned());
        }
        let result = result.map_err(|(kind, message)| Error {
            kind,
            message,
            call: Some(format!("{} {}", call.method, call.url)),
            request_id: call.request_id.clone(),
        });
        if let Some(ear) = &self.ear {
            ear(&call);
        }
        let mut calls = self.shared.calls.lock();
        if calls.len() >= REMEMBERED {
            calls.drain(..REMEMBERED / 2);
        }
        calls.push(call);
        result
    }
}

/// Where a `Location` leads.
fn join(base: &Uri, place: &str) -> std::result::Result<Uri, hyper::http::Error> {
    if place.starts_with("http") {
        return Ok(place.parse::<Uri>()?);
    }
    let parts = (base.scheme_str().unwrap_or_default(), base.authority().map_or("", |a| a.as_str()));
    Uri::builder().scheme(parts.0).authority(parts.1).path_and_query(place).build()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::config(format!("{}: {e}", path.display())))
}

/// Kind and innermost reason of a failure.
fn told(error: &(dyn std::error::Error + 'static)) -> (Kind, String) {
    let mut reason = error;
    loop {
        if let Some(broken) = reason.downcast_ref::<Broken>() {
            return (broken.kind, broken.reason.clone());
        }
        match reason.source() {
            Some(next) => reason = next,
            None => return (Kind::Connect, reason.to_string()),
        }
    }
}
