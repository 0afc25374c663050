//! What a handler receives: path parameters, query, headers, and the body already parsed and checked.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Method};
use base::{Error, Result};
use bytes::Bytes;
use contract::auth::Moment;
use futures::{Stream, StreamExt};
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::{Dialect, Page, Query};

/// A request whose body is a `T`; `()` where there is none, [`RawBody`] where it is a stream.
#[derive(Debug)]
pub struct Request<T> {
    /// The body.
    pub body: T,
    pub(crate) head: Head,
}

/// Everything of a request but its body.
#[derive(Debug)]
pub(crate) struct Head {
    pub began: Moment,
    pub method: Method,
    pub path: String,
    pub params: Vec<(String, String)>,
    pub query: Query,
    pub headers: HeaderMap,
    pub peer: Option<IpAddr>,
    pub certificate: Option<Certificate>,
}

/// The address a request came from; the listener leaves it in the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// The client certificate (DER) with which a caller made the connection, of an authority that certifies clients of the API;
/// the listener leaves it in the request's extensions once the handshake has proved it. Certificates of the cloud's own
/// hosts are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate(pub Arc<[u8]>);

/// A body that is read as it comes.
#[derive(Debug)]
pub struct RawBody(pub(crate) Body);

impl RawBody {
    /// The bytes. An error is the sender's: the connection broke or the chunks were malformed.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        self.0.into_data_stream().map(|chunk| {
            chunk.map_err(|e| {
                Error::bad_request("The request body could not be read to its end.").caused_by(e)
            })
        })
    }

    /// The whole body, at most `limit` bytes.
    ///
    /// # Errors
    /// `TooLarge`, or `BadRequest` where it broke off.
    pub async fn collect(self, limit: usize) -> Result<Bytes> {
        collect(self.0, limit).await
    }
}

impl<T> Request<T> {
    /// A path parameter's text, percent-decoded; empty if the path has none of that name.
    pub fn param(&self, name: &str) -> &str {
        self.head.params.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// A path parameter as an id.
    ///
    /// # Errors
    /// `NotFound` where it is no id: nothing can have it.
    pub fn id<I: FromStr>(&self, name: &str) -> Result<I> {
        let text = self.param(name);
        text.parse().map_err(|_| Error::not_found(format!("'{text}' could not be found.")))
    }

    /// A path parameter as an id, with the service's own words for "not found".
    ///
    /// # Errors
    /// `NotFound` with `words(text)`.
    pub fn id_or<I: FromStr>(&self, name: &str, words: impl FnOnce(&str) -> Error) -> Result<I> {
        let text = self.param(name);
        text.parse().map_err(|_| words(text))
    }

    /// The query as a struct; unknown parameters are ignored unless the struct denies them
    /// (`#[serde(deny_unknown_fields)]`). Numbers and booleans are read from their text; a repeated key fills a `Vec`.
    ///
    /// # Errors
    /// `BadRequest` naming the parameter.
    pub fn query<Q: DeserializeOwned>(&self) -> Result<Q> {
        self.head.query.parse()
    }

    /// The query as pairs in their order.
    pub fn query_pairs(&self) -> &Query {
        &self.head.query
    }

    /// `limit`, `marker`, `page_reverse`, `sort_key`, `sort_dir`, `sort`: see [`Page`].
    ///
    /// # Errors
    /// `BadRequest` naming the parameter.
    pub fn page(&self, max_limit: usize) -> Result<Page> {
        Page::from_query(&self.head.query, max_limit)
    }

    /// A header's text, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// All headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// The address the request came from, if the listener told it. Behind a proxy it is the one the proxy saw, where
    /// the service trusts proxies.
    pub fn peer(&self) -> Option<IpAddr> {
        self.head.peer
    }

    /// When it began.
    pub fn began(&self) -> Moment {
        self.head.began
    }

    /// The client certificate the connection was made with, if any. A proxy's connection has none of its clients.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.head.certificate.as_ref()
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// The path below the service's prefix, as sent.
    pub fn path(&self) -> &str {
        &self.head.path
    }

    /// The same request with another body, e.g. an older body converted to the newest form.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Request<U> {
        Request { body: f(self.body), head: self.head }
    }
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn collect(body: Body, limit: usize) -> Result<Bytes> {
    use http_body_util::{BodyExt, LengthLimitError, Limited};
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Error::too_large(format!("The request body is larger than {limit} bytes.")))
        }
        Err(error) => {
            Err(Error::bad_request("The request body could not be read to its end.")
                .caused_by(error.to_string()))
        }
    }
}

/// Parses a JSON body; errors name the field by its path.
pub(crate) fn parse<T: DeserializeOwned>(
    dialect: &Dialect,
    bytes: &[u8],
    key: Option<&str>,
    bodiless: bool,
) -> Result<T> {
    if bodiless && key.is_none() {
        return serde_json::from_str("null").map_err(Error::internal);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| dialect.malformed_body("it is not UTF-8"))?;
    if text.trim_ascii().is_empty() {
        // An operation whose body is optional says so with `Option<T>`, which takes null.
        return serde_json::from_str("null").map_err(|_| dialect.malformed_body("it is empty"));
    }
    reject_nul(dialect, text)?;
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let value = match key {
        None => T::deserialize(tracked),
        Some(key) => Keyed { key, bodiless, marker: std::marker::PhantomData }.deserialize(tracked),
    };
    let path = |track: serde_path_to_error::Track| track.path().to_string();
    let value = value.map_err(|error| bad_body(dialect, &error, &path(track)))?;
    json.end().map_err(|_| dialect.malformed_body("there is something after its end"))?;
    Ok(value)
}

fn bad_body(dialect: &Dialect, error: &serde_json::Error, path: &str) -> Error {
    use serde_json::error::Category;
    let text = error.to_string();
    // serde_json appends the place; the path says it better.
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    match error.classify() {
        Category::Data => dialect.invalid_field(if path == "." { "body" } else { path }, reason),
        Category::Eof | Category::Syntax | Category::Io => dialect.malformed_body(reason),
    }
}

/// A NUL can be stored by no database column of type text, so no string may carry one.
fn reject_nul(dialect: &Dialect, text: &str) -> Result<()> {
    let mut rest = text;
    while let Some(at) = rest.find("\\u0000") {
        let before = rest.as_bytes().get(..at).unwrap_or_default();
        // An even number of backslashes before it escape one another and leave a real escape.
        if before.iter().rev().take_while(|b| **b == b'\\').count() % 2 == 0 {
            let field = serde_json::from_str(text).ok().and_then(|v| nul_path(&v)).unwrap_or_default();
            let field = if field.is_empty() { "body".to_owned() } else { field };
            return Err(dialect.invalid_field(&field, "a string may not contain a NUL character"));
        }
        rest = rest.get(at + 6..).unwrap_or_default();
    }
    Ok(())
}

fn nul_path(value: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    let join =
        |head: &str, tail: String| if tail.is_empty() { head.to_owned() } else { format!("{head}.{tail}") };
    match value {
        Value::String(s) => s.contains('\0').then(String::new),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, v)| nul_path(v).map(|p| join(&format!("[{i}]"), p)))
        }
        Value::Object(map) => map.iter().find_map(|(k, v)| {
            if k.contains('\0') { Some(k.replace('\0', "\\u0000")) } else { nul_path(v).map(|p| join(k, p)) }
        }),
        _ => None,
    }
}

/// `{"key": T}`.
struct Keyed<'a, T> {
    key: &'a str,
    bodiless: bool,
    marker: std::marker::PhantomData<T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Keyed<'_, T> {
    type Value = T;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Keyed<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with the single key '{}'", self.key)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        use serde::de::Error as _;
        let key: Option<String> = map.next_key()?;
        if key.as_deref() != Some(self.key) {
            return Err(A::Error::custom(format!("expected the single key '{}'", self.key)));
        }
        if self.bodiless {
            map.next_value::<IgnoredAny>()?;
            let unit = serde::de::value::UnitDeserializer::<A::Error>::new();
            return T::deserialize(unit);
        }
        map.next_value()
    }
}

/// The single key of an action's body.
pub(crate) fn action_key(dialect: &Dialect, bytes: &[u8]) -> Result<String> {
    struct Keys(Vec<String>);
    impl<'de> Deserialize<'de> for Keys {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct V;
            impl<'de> Visitor<'de> for V {
                type Value = Keys;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object with a single key")
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                    let mut keys = Vec::new();
                    while let Some(key) = map.next_key::<String>()? {
                        map.next_value::<IgnoredAny>()?;
                        keys.push(key);
                    }
                    Ok(Keys(keys))
                }
            }
            deserializer.deserialize_map(V)
        }
    }
    let text = std::str::from_utf8(bytes).map_err(|_| dialect.malformed_body("it is not UTF-8"))?;
    if text.trim_ascii().is_empty() {
        return Err(dialect.malformed_body("it is empty"));
    }
    let Keys(keys) = serde_json::from_str(text).map_err(|e| bad_body(dialect, &e, "body"))?;
    match <[String; 1]>::try_from(keys) {
        Ok([key]) => Ok(key),
        Err(_) => Err(dialect.malformed_body("it must have exactly one key, the name of the action")),
    }
}
