//! Agents may call any replica; the one that works on their host answers.
//!
//! What a replica knows of a live host (its last report, who waits for its next spec) is in memory, and only one replica
//! works on a host at a time. A call that reaches another replica is passed on, once, with the name of the host. No
//! balancer has to know anything.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base::{Error, HostId, Result, ServerId};
use bytes::Bytes;
use contract::services::HostAccess;

use crate::{Answer, Ask, Failure, Peer, Questions, bytes_of};

/// Names the host for which a replica passes a call on.
const HOST: &str = "x-allod-host";
/// Longer than any call of an agent is held.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest body that is passed on: a report.
const BYTES: usize = 32 * 1024 * 1024;

/// Which replica works on a host.
#[async_trait]
pub trait Owners: Send + Sync {
    /// Who does now.
    fn owner(&self, host: HostId) -> Owner;
    /// Waits until another than now does.
    async fn moved(&self, host: HostId);
}

/// A replica, as seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This process.
    Me,
    /// The one at this URL.
    Other(String),
    /// None at the moment.
    Nobody,
}

/// The caller showed a certificate of a replica; the TLS listener adds this to the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica;

/// Passes calls on.
pub struct Relay {
    owners: Arc<dyn Owners>,
    http: reqwest::Client,
    questions: Arc<Questions>,
}

fn unavailable(error: reqwest::Error) -> Error {
    Error::unavailable("The replica that works on this host does not answer.").caused_by(error)
}

fn nobody(host: HostId) -> Error {
    Error::unavailable(format!("No replica works on host {host} at the moment."))
}

fn refusal(error: Error) -> Response {
    let failure = Failure::from(error);
    let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(failure)).into_response()
}

impl Relay {
    /// `http` carries this replica's certificate and trusts only the cloud's CA; `questions` are those of this process.
    pub fn new(owners: Arc<dyn Owners>, http: reqwest::Client, questions: Arc<Questions>) -> Self {
        Relay { owners, http, questions }
    }

    /// Asks a host through the replica that works on it.
    async fn ask_at(&self, host: HostId, url: &str, what: &Ask) -> Result<String> {
        let call =
            self.http.post(format!("{url}/agent/v1/ask")).timeout(PATIENCE).header(HOST, host.to_string());
        let answer = call.json(what).send().await.map_err(unavailable)?;
        let answer = answer.error_for_status().map_err(unavailable)?;
        let answer: Answer = answer.json().await.map_err(unavailable)?;
        answer.result.map_err(Error::from)
    }

    async fn pass_on(&self, host: HostId, url: &str, request: Request) -> Result<Response> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
        let body = axum::body::to_bytes(body, BYTES).await;
        let body = body.map_err(|_| Error::too_large("The report is too large."))?;
        let mut call = self
            .http
            .request(head.method, format!("{url}{path}"))
            .timeout(PATIENCE)
            .header(HOST, host.to_string())
            .body(body);
        if let Some(kind) = head.headers.get("content-type") {
            call = call.header("content-type", kind);
        }
        let answer = call.send().await.map_err(unavailable)?;
        let status = answer.status();
        let kind = answer.headers().get("content-type").cloned();
        let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
        *response.status_mut() = status;
        if let Some(kind) = kind {
            response.headers_mut().insert("content-type", kind);
        }
        Ok(response)
    }
}

/// Before the agents' routes: answers here what is this replica's, passes on what is another's.
pub(crate) async fn relay(State(relay): State<Arc<Relay>>, mut request: Request, next: Next) -> Response {
    let passed_on = request.extensions().get::<Replica>().is_some();
    if passed_on {
        let host = request.headers().get(HOST).and_then(|h| h.to_str().ok()).and_then(|h| h.parse().ok());
        match host {
            Some(host) => drop(request.extensions_mut().insert(Peer(host))),
            None => return refusal(Error::bad_request("A replica names the host it calls for.")),
        }
    }
    // Every replica has the images; and who did not say who it is is refused by the route itself.
    let path = request.uri().path();
    let here = path.starts_with("/agent/v1/images/") || !path.starts_with("/agent/v1/");
    let Some(Peer(host)) = request.extensions().get::<Peer>().copied().filter(|_| !here) else {
        return next.run(request).await;
    };
    match relay.owners.owner(host) {
        Owner::Me => tokio::select! {
            response = next.run(request) => response,
            // Whoever waits here would wait in vain.
            () = relay.owners.moved(host) => refusal(nobody(host)),
        },
        Owner::Other(url) if !passed_on => match relay.pass_on(host, &url, request).await {
            Ok(response) => response,
            Err(error) => refusal(error),
        },
        Owner::Other(_) | Owner::Nobody => refusal(nobody(host)),
    }
}

/// What one replica asks another to ask a host.
pub(crate) async fn ask(
    State(relay): State<Arc<Relay>>,
    replica: Option<axum::Extension<Replica>>,
    peer: Option<axum::Extension<Peer>>,
    Json(what): Json<Ask>,
) -> Response {
    let (Some(_), Some(axum::Extension(Peer(host)))) = (replica, peer) else {
        return refusal(Error::unauthenticated("A replica's certificate is needed here."));
    };
    let result = what.of(&*relay.questions, host).await.map_err(Failure::from);
    Json(Answer { id: 0, result }).into_response()
}

#[async_trait]
impl HostAccess for Relay {
    async fn console_log(&self, host: HostId, server: ServerId, length: Option<usize>) -> Result<String> {
        match self.owners.owner(host) {
            Owner::Me => self.questions.console_log(host, server, length).await,
            Owner::Other(url) => self.ask_at(host, &url, &Ask::ConsoleLog { server, length }).await,
            Owner::Nobody => Err(nobody(host)),
        }
    }

    async fn read_disk(&self, host: HostId, server: ServerId, disk: &str, offset: u64) -> Result<Bytes> {
        let what = Ask::ReadDisk { server, disk: disk.to_owned(), offset };
        match self.owners.owner(host) {
            Owner::Me => self.questions.read_disk(host, server, disk, offset).await,
            Owner::Other(url) => bytes_of(&self.ask_at(host, &url, &what).await?),
            Owner::Nobody => Err(nobody(host)),
        }
    }
}
