//! HTTP with a note of every call.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Client, Identity, Method, StatusCode};
use serde::Serialize;

use crate::config::Cloud;
use crate::{Error, Kind, Result};

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
#[derive(Debug, Clone, Serialize)]
pub struct Call {
    /// Method.
    pub method: String,
    /// URL without its query.
    pub url: String,
    /// Status; `None`: no answer.
    pub status: Option<u16>,
    /// Microseconds until the head of the answer was there.
    pub first_byte_us: u64,
    /// Microseconds until all of it was.
    pub total_us: u64,
    /// The cloud's id of the request.
    pub request_id: Option<String>,
}

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
    let mut builder = Client::builder()
        .user_agent(concat!("allod/", env!("CARGO_PKG_VERSION")))
        .timeout(timeout)
        .redirect(reqwest::redirect::Policy::limited(3));
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
    client: Client,
    options: Options,
    calls: Arc<Mutex<Vec<Call>>>,
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
        let mut identity = cloud.cert.as_deref().map(read).transpose()?;
        if let (Some(pem), Some(key)) = (&mut identity, &cloud.key) {
            pem.extend(read(key)?);
        }
        let trust =
            Trust { verify: cloud.verify, ca: cloud.cacert.as_deref().map(read).transpose()?, identity };
        let client = http_client(&trust, cloud.timeout.unwrap_or(options.timeout))?;
        Ok(Transport { client, options, calls: Arc::default() })
    }

    /// What was called so far; the oldest are forgotten after some twenty thousand.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().clone()
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
            if !again || tried >= self.options.retries {
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
        let limit = self.options.timeout;
        let failed = |kind: Kind, message: String| Error {
            kind,
            message,
            call: Some(format!("GET {url}")),
            request_id: None,
        };
        let broken = |e: reqwest::Error| {
            let (kind, message) = told(&e);
            failed(kind, message)
        };
        let request = self.client.get(url).headers(headers).timeout(Duration::from_secs(3600));
        let mut response = request.send().await.map_err(broken)?;
        if !response.status().is_success() {
            return Err(failed(Kind::Status(response.status().as_u16()), "no body".into()));
        }
        loop {
            match tokio::time::timeout(limit, response.chunk()).await {
                Err(_) => return Err(failed(Kind::Timeout, "the body stopped coming".into())),
                Ok(Err(e)) => return Err(broken(e)),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(bytes))) => piece(&bytes),
            }
        }
    }

    async fn once(&self, out: &Outgoing<'_>) -> Result<Answer> {
        let plain = out.url.split('?').next().unwrap_or_default().to_owned();
        let begin = Instant::now();
        let mut request = self.client.request(out.method.clone(), out.url).headers(out.headers.clone());
        if let Some(body) = &out.body {
            request = request.body(body.clone());
        }
        let mut call = Call {
            method: out.method.to_string(),
            url: plain,
            status: None,
            first_byte_us: 0,
            total_us: 0,
            request_id: None,
        };
        let result = async {
            let response = request.send().await?;
            call.first_byte_us = micros(begin);
            call.status = Some(response.status().as_u16());
            call.request_id = ["x-openstack-request-id", "x-compute-request-id"]
                .iter()
                .find_map(|name| Some(response.headers().get(*name)?.to_str().ok()?.to_owned()));
            let (status, headers) = (response.status(), response.headers().clone());
            let body = response.bytes().await?.to_vec();
            Ok(Answer { status, headers, body, request_id: call.request_id.clone() })
        }
        .await;
        call.total_us = micros(begin);
        let about = format!("{} {}", call.method, call.url);
        let request_id = call.request_id.clone();
        let mut calls = self.calls.lock();
        if calls.len() >= REMEMBERED {
            calls.drain(..REMEMBERED / 2);
        }
        calls.push(call);
        drop(calls);
        result.map_err(|e: reqwest::Error| {
            let (kind, message) = told(&e);
            Error { kind, message, call: Some(about), request_id }
        })
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::config(format!("{}: {e}", path.display())))
}

/// Kind and innermost reason of a failure.
fn told(error: &reqwest::Error) -> (Kind, String) {
    if error.is_timeout() {
        return (Kind::Timeout, "no answer in time".into());
    }
    let mut reason: &dyn std::error::Error = error;
    while let Some(next) = reason.source() {
        reason = next;
    }
    let text = reason.to_string();
    let tls = text.contains("certificate") || text.contains("tls") || text.contains("TLS");
    (if tls { Kind::Tls } else { Kind::Connect }, text)
}
