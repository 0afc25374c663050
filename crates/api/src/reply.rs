//! What a handler answers.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use base::Result;
use bytes::Bytes;
use futures::Stream;
use serde::Serialize;

/// An answer: status (the operation's own unless set), headers, body.
#[derive(Debug)]
pub struct Reply {
    pub(crate) status: Option<StatusCode>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    pub(crate) named: Option<String>,
    pub(crate) failed: Option<base::Error>,
}

impl Reply {
    /// No body.
    pub fn empty() -> Self {
        Reply { status: None, headers: HeaderMap::new(), body: Body::empty(), named: None, failed: None }
    }

    /// `value` as JSON, serialised straight to bytes.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => Self::bytes("application/json", bytes),
            Err(error) => Reply { failed: Some(base::Error::internal(error)), ..Self::empty() },
        }
    }

    /// `bytes` of a content type.
    pub fn bytes(content_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        let mut reply = Self::empty();
        reply.body = Body::from(bytes.into());
        reply.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        reply
    }

    /// A stream of a content type. `length` in bytes where it is known.
    pub fn stream<S>(content_type: &'static str, length: Option<u64>, stream: S) -> Self
    where
        S: Stream<Item = Result<Bytes>> + Send + 'static,
    {
        let mut reply = Self::empty();
        reply.body = Body::from_stream(stream);
        reply.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(length) = length {
            reply.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        reply
    }

    /// Another status than the operation's. A number that is no status is a 500.
    #[must_use]
    pub fn status(mut self, code: u16) -> Self {
        self.status = Some(StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
        self
    }

    /// Says which thing the answer is about; nobody is told but who watches the operation.
    #[must_use]
    pub fn about(mut self, id: impl Into<String>) -> Self {
        self.named = Some(id.into());
        self
    }

    /// Which thing the answer is about, if it was said.
    pub fn subject(&self) -> Option<&str> {
        self.named.as_deref()
    }

    /// Adds a header; one with characters a header cannot carry is left out.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value.as_ref()))
        {
            self.headers.append(name, value);
        }
        self
    }

    /// Sets `Location`.
    #[must_use]
    pub fn location(self, url: impl AsRef<str>) -> Self {
        self.header("location", url)
    }
}
