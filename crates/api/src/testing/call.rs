//! Calls of a router in-process.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, header};
use base::{Error, Result};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tower::ServiceExt;

/// One answered call, as a [`super::Suite`] counts it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The operation that answered.
    pub op: String,
    /// With which status.
    pub status: u16,
    /// Whether the caller was a foreign tenant ([`Client::foreign`]).
    pub foreign: bool,
}

pub(crate) type Log = Arc<Mutex<Vec<Seen>>>;

/// Calls one router as one caller. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    router: axum::Router,
    token: Option<String>,
    headers: Vec<(String, String)>,
    certificate: Option<crate::Certificate>,
    foreign: bool,
    log: Log,
}

impl Client {
    /// Calls `router` without a token.
    pub fn new(router: axum::Router) -> Self {
        Client {
            router,
            token: None,
            headers: Vec::new(),
            certificate: None,
            foreign: false,
            log: Log::default(),
        }
    }

    /// The same router with a token (see [`super::FakeAuthenticator`]).
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Client { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same router with the token of a tenant that owns none of what the test made; its calls are counted as the
    /// foreign-tenant cases of their operations.
    #[must_use]
    pub fn foreign(&self, token: &str) -> Self {
        Client { token: Some(token.to_owned()), foreign: true, ..self.clone() }
    }

    /// What was called so far, by this client and those made from it.
    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().clone()
    }

    /// The same, but its calls are not counted.
    #[must_use]
    pub(crate) fn unseen(&self) -> Self {
        Client { log: Log::default(), ..self.clone() }
    }

    /// The same with a header on every call.
    #[must_use]
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// The same over connections made with a client certificate (DER).
    #[must_use]
    pub fn with_certificate(&self, der: &[u8]) -> Self {
        Client { certificate: Some(crate::Certificate(der.into())), ..self.clone() }
    }

    /// The same with a microversion: `"compute 2.96"`.
    #[must_use]
    pub fn at(&self, version: &str) -> Self {
        self.with_header("OpenStack-API-Version", version)
    }

    /// A call to be completed with a body and headers.
    pub fn call(&self, method: Method, path: &str) -> Call {
        Call {
            router: self.router.clone(),
            method,
            path: path.to_owned(),
            token: self.token.clone(),
            headers: self.headers.clone(),
            certificate: self.certificate.clone(),
            body: Body::empty(),
            foreign: self.foreign,
            log: self.log.clone(),
        }
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path).send().await
    }

    /// `POST` with JSON.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path).json(&body).send().await
    }

    /// `PUT` with JSON.
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path).json(&body).send().await
    }

    /// `PATCH` with JSON.
    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PATCH, path).json(&body).send().await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path).send().await
    }
}

/// A call that is not sent yet.
#[derive(Debug)]
pub struct Call {
    router: axum::Router,
    method: Method,
    path: String,
    token: Option<String>,
    headers: Vec<(String, String)>,
    certificate: Option<crate::Certificate>,
    body: Body,
    foreign: bool,
    log: Log,
}

impl Call {
    /// With another token; `None` for none.
    #[must_use]
    pub fn token(mut self, token: Option<&str>) -> Self {
        self.token = token.map(str::to_owned);
        self
    }

    /// With a header; one of the same name before it is replaced.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a JSON body.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").bytes(body.to_string())
    }

    /// With a body of bytes.
    #[must_use]
    pub fn bytes(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Body::from(body.into());
        self
    }

    /// With any body.
    #[must_use]
    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// Sends it and reads the answer wholly. A request that HTTP itself forbids answers as status 0.
    pub async fn send(self) -> Answer {
        let told = format!("{} {}", self.method, self.path);
        let mut builder =
            Request::builder().method(self.method).uri(&self.path).header(header::HOST, "cloud.test");
        if let Some(token) = &self.token {
            builder = builder.header("x-auth-token", token);
        }
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        if let Some(certificate) = self.certificate {
            builder = builder.extension(certificate);
        }
        let none = |text: String| Answer {
            told: told.clone(),
            status: 0,
            headers: HeaderMap::new(),
            body: text.into(),
        };
        let request = match builder.body(self.body) {
            Ok(request) => request,
            Err(error) => return none(error.to_string()),
        };
        let response = match self.router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (parts, body) = response.into_parts();
        if let Some(served) = parts.extensions.get::<crate::router::Served>() {
            let seen = Seen { op: served.0.id.clone(), status: parts.status.as_u16(), foreign: self.foreign };
            self.log.lock().push(seen);
        }
        let body = match crate::request::collect(body, usize::MAX).await {
            Ok(bytes) => bytes,
            Err(error) => return none(error.chain()),
        };
        Answer { told, status: parts.status.as_u16(), headers: parts.headers, body }
    }
}

/// An answer, read wholly.
#[derive(Debug, Clone)]
pub struct Answer {
    told: String,
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; `Null` where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as a type.
    ///
    /// # Errors
    /// `BadRequest` where it is not of that type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|e| Error::bad_request(format!("{e}: {}", self.text())))
    }

    /// What is at a JSON pointer; `Null` where nothing is.
    pub fn at(&self, pointer: &str) -> Value {
        self.json().pointer(pointer).cloned().unwrap_or(Value::Null)
    }

    /// The text at a JSON pointer; empty where none is.
    pub fn text_at(&self, pointer: &str) -> String {
        self.at(pointer).as_str().unwrap_or("").to_owned()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's text; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// Asserts the status; gives itself back.
    ///
    /// # Panics
    /// Where it is another, with the body.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{} answered {}", self.told, self.text());
        self
    }
}
