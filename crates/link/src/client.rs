//! Agent side: the control plane over HTTPS.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Error, HostId, ImageId, Result};
use bytes::Bytes;
use contract::host::{DiskPart, HostReport, HostSpec};
use contract::services::{ControlPlane, HostAccess, ImageBytes};
use futures::TryStreamExt;
use futures::stream::BoxStream;
use reqwest::{Method, RequestBuilder, Response, StatusCode};

use crate::{Answer, Failure, Held, Question, Term};

/// Longer than any long-poll of the server.
const TIMEOUT: Duration = Duration::from_secs(60);
/// An answer that comes later is asked for again: a lease counts from when it was asked for.
const LEASE: Duration = Duration::from_secs(5);

/// A server as an agent reaches it.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// A client of the server at `base` (`https://address:port`); `http` carries the client certificate and trusts
    /// only the cloud's CA.
    pub fn new(http: reqwest::Client, base: impl Into<String>) -> Self {
        Client { http, base: base.into().trim_end_matches('/').to_owned() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/agent/v1/{path}", self.base))
    }

    /// Fetches questions and answers them, for ever.
    pub async fn answer_questions(self, host: HostId, access: Arc<dyn HostAccess>) {
        loop {
            match self.next_question().await {
                Ok(Some(question)) => {
                    let answer = answer(&*access, host, question).await;
                    let sent =
                        send(self.request(Method::POST, "questions").timeout(TIMEOUT).json(&answer)).await;
                    if let Err(error) = sent {
                        tracing::warn!(error = %error.chain(), "answer not taken");
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = %error.chain(), "no questions");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn next_question(&self) -> Result<Option<Question>> {
        optional(send(self.request(Method::GET, "questions").timeout(TIMEOUT)).await?).await
    }
}

async fn answer(access: &dyn HostAccess, host: HostId, question: Question) -> Answer {
    let result = question.what.of(access, host).await;
    Answer { id: question.id, result: result.map_err(Failure::from) }
}

async fn send(request: RequestBuilder) -> Result<Response> {
    let response = request.send().await.map_err(unreachable)?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let failure = response.json::<Failure>().await;
    Err(failure
        .unwrap_or_else(|_| Failure { status, message: format!("The server answered {status}.") })
        .into())
}

async fn optional<T: serde::de::DeserializeOwned>(response: Response) -> Result<Option<T>> {
    if response.status() == StatusCode::NO_CONTENT {
        return Ok(None);
    }
    response.json().await.map(Some).map_err(unreachable)
}

fn unreachable(error: reqwest::Error) -> Error {
    Error::unavailable("The control plane does not answer.").caused_by(error)
}

#[async_trait]
impl ControlPlane for Client {
    async fn spec(&self, _host: HostId, after: u64) -> Result<Option<Arc<HostSpec>>> {
        optional(send(self.request(Method::GET, &format!("spec?after={after}")).timeout(TIMEOUT)).await?)
            .await
    }

    async fn report(&self, report: HostReport) -> Result<()> {
        send(self.request(Method::POST, "report").timeout(TIMEOUT).json(&report)).await.map(drop)
    }

    async fn lease(&self, _host: HostId, generation: u64) -> Result<Duration> {
        let request = self.request(Method::POST, "lease").timeout(LEASE).json(&Held { generation });
        let term: Term = send(request).await?.json().await.map_err(unreachable)?;
        Ok(Duration::from_millis(term.milliseconds))
    }

    async fn disk(&self, _host: HostId, part: &DiskPart) -> Result<Bytes> {
        let request = self.request(Method::POST, "disk").timeout(TIMEOUT).json(part);
        send(request).await?.bytes().await.map_err(unreachable)
    }
}

#[async_trait]
impl ImageBytes for Client {
    async fn bytes(&self, id: ImageId) -> Result<BoxStream<'static, Result<Bytes>>> {
        let response = send(self.request(Method::GET, &format!("images/{id}"))).await?;
        Ok(Box::pin(response.bytes_stream().map_err(unreachable)))
    }
}
