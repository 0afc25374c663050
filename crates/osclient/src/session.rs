//! A login that calls services.

use std::sync::Arc;

use parking_lot::RwLock;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::auth::{self, Token, encoded};
use crate::config::Cloud;
use crate::transport::{Call, Ear, Options, Outgoing, Transport};
use crate::{Catalog, Error, Kind, Result};

/// Pages followed in one list.
const PAGES: usize = 1000;

/// A login at one cloud, in one region. Cheap to clone; logs in again when the token has run out.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
    transport: Transport,
}

struct Inner {
    cloud: Cloud,
    token: RwLock<Arc<Token>>,
}

impl Session {
    /// Logs in.
    pub async fn connect(cloud: Cloud, options: Options) -> Result<Session> {
        Session::connect_heard(cloud, options, None).await
    }

    /// Logs in; `ear` hears of every call, the login included.
    pub async fn connect_heard(cloud: Cloud, options: Options, ear: Option<Ear>) -> Result<Session> {
        let mut transport = Transport::new(&cloud, options)?;
        if let Some(ear) = ear {
            transport = transport.heard_by(ear);
        }
        let token = auth::login(&cloud, &transport).await?;
        Ok(Session { inner: Arc::new(Inner { cloud, token: RwLock::new(Arc::new(token)) }), transport })
    }

    /// The same login, with somebody else who hears of the calls made through it.
    #[must_use]
    pub fn heard_by(&self, ear: Ear) -> Session {
        Session { inner: self.inner.clone(), transport: self.transport.heard_by(ear) }
    }

    /// Gets another token.
    pub async fn login(&self) -> Result<()> {
        let token = auth::login(&self.inner.cloud, &self.transport).await?;
        *self.inner.token.write() = Arc::new(token);
        Ok(())
    }

    /// What the login gave.
    pub fn token(&self) -> Arc<Token> {
        self.inner.token.read().clone()
    }

    /// The catalog of the token.
    pub fn catalog(&self) -> Catalog {
        self.token().catalog.clone()
    }

    /// The configuration of the cloud.
    pub fn cloud(&self) -> &Cloud {
        &self.inner.cloud
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.transport.calls()
    }

    /// URL of a service as configured or in the catalog.
    pub fn endpoint(&self, kind: &str) -> Result<String> {
        let cloud = &self.inner.cloud;
        if let Some(url) = cloud.overrides.get(&kind.replace('-', "_")) {
            return Ok(url.trim_end_matches('/').to_owned());
        }
        let token = self.token();
        let found = token.catalog.endpoint(kind, &cloud.interface, cloud.region.as_deref());
        let region = cloud.region.as_deref().unwrap_or("any");
        found.map(|url| url.trim_end_matches('/').to_owned()).ok_or_else(|| {
            let message =
                format!("the catalog has no {} endpoint of {kind} in region {region}", cloud.interface);
            Error::new(Kind::NoEndpoint, message)
        })
    }

    /// A service at its endpoint of version `major` (`v2.1`, `v2`, `v2.0`, `v3`, `v1`), appended where the catalog names none.
    pub fn service(&self, kind: &str, major: &str) -> Result<Service> {
        let url = self.endpoint(kind)?;
        let path = url.split("://").nth(1).unwrap_or_default();
        let versioned = path.split('/').skip(1).any(is_version);
        let base = if versioned { url } else { format!("{url}/{major}") };
        Ok(Service { session: self.clone(), base, kind: service_name(kind), microversion: None, range: None })
    }

    /// Calls a URL; a status of 400 and more is an error.
    pub async fn send(&self, request: Request<'_>) -> Result<Reply> {
        let reply = self.send_any(request.clone()).await?;
        checked(reply, &request)
    }

    /// Calls a URL; any status is an answer.
    pub async fn send_any(&self, request: Request<'_>) -> Result<Reply> {
        let reply = self.send_once(&request).await?;
        if reply.status != 401 || !request.authenticated {
            return Ok(reply);
        }
        self.login().await?;
        self.send_once(&request).await
    }

    /// Reads a large body piece by piece.
    pub async fn read(&self, url: &str, mut piece: impl FnMut(&[u8])) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert("x-auth-token", auth::header(&self.token().secret)?);
        self.transport.read(url, headers, &mut piece).await
    }

    async fn send_once(&self, request: &Request<'_>) -> Result<Reply> {
        let mut headers = HeaderMap::new();
        if request.authenticated {
            headers.insert("x-auth-token", auth::header(&self.token().secret)?);
        }
        for (name, value) in &request.headers {
            let name = HeaderName::try_from(*name).map_err(|_| Error::config("no name of a header"))?;
            let value = HeaderValue::from_str(value).map_err(|_| Error::config("no text for a header"))?;
            headers.insert(name, value);
        }
        let body = match &request.body {
            Some(Body::Json(body)) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Some(body.to_string().into_bytes())
            }
            Some(Body::Bytes(bytes)) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
                Some(bytes.clone())
            }
            None => None,
        };
        let out = Outgoing { method: request.method.clone(), url: &request.url, headers, body };
        let answer = self.transport.send(out).await?;
        let json = serde_json::from_slice(&answer.body).unwrap_or_default();
        Ok(Reply { status: answer.status.as_u16(), json, bytes: answer.body, request_id: answer.request_id })
    }
}

fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// What a service calls itself in the microversion header.
fn service_name(kind: &str) -> String {
    match kind {
        "block-storage" | "volumev3" => "volume".into(),
        other => other.into(),
    }
}

fn checked(reply: Reply, request: &Request<'_>) -> Result<Reply> {
    if reply.status < 400 {
        return Ok(reply);
    }
    // OpenStack's dialects: {"error": {"message"}}, {"itemNotFound": {"message"}}, {"NeutronError": {"message"}}.
    let told = reply
        .json
        .as_object()
        .and_then(|o| o.values().find_map(|v| v.get("message")))
        .and_then(Value::as_str)
        .map(|m| m.chars().take(300).collect());
    Err(Error {
        kind: Kind::Status(reply.status),
        message: told.unwrap_or_else(|| "no reason given".to_owned()),
        call: Some(format!("{} {}", request.method, request.url.split('?').next().unwrap_or_default())),
        request_id: reply.request_id,
    })
}

/// A body to send.
#[derive(Debug, Clone)]
pub enum Body {
    /// JSON.
    Json(Value),
    /// Anything.
    Bytes(Vec<u8>),
}

/// A call to make.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    method: Method,
    url: String,
    headers: Vec<(&'a str, String)>,
    body: Option<Body>,
    authenticated: bool,
}

impl<'a> Request<'a> {
    /// A call with the token.
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Request { method, url: url.into(), headers: Vec::new(), body: None, authenticated: true }
    }

    /// Without the token: for other servers than the cloud's.
    #[must_use]
    pub fn anonymous(mut self) -> Self {
        self.authenticated = false;
        self
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With JSON.
    #[must_use]
    pub fn json(mut self, body: Value) -> Self {
        self.body = Some(Body::Json(body));
        self
    }

    /// With bytes.
    #[must_use]
    pub fn bytes(mut self, body: Vec<u8>) -> Self {
        self.body = Some(Body::Bytes(body));
        self
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status, below 400 unless said otherwise.
    pub status: u16,
    /// The body as JSON; null when it is none.
    pub json: Value,
    /// The body.
    pub bytes: Vec<u8>,
    /// The cloud's id of the request.
    pub request_id: Option<String>,
}

/// One service of the cloud.
#[derive(Clone)]
pub struct Service {
    session: Session,
    base: String,
    kind: String,
    microversion: Option<String>,
    range: Option<((u32, u32), (u32, u32))>,
}

impl Service {
    /// Its URL with the version.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// The microversion it is asked in.
    pub fn microversion(&self) -> Option<&str> {
        self.microversion.as_deref()
    }

    /// Asks for the range of microversions.
    pub async fn discover(&mut self) -> Result<()> {
        // The document of a version is at the version's own segment; block storage has the project behind it.
        let mut root = String::new();
        for (index, segment) in self.base.split('/').enumerate() {
            if index > 0 {
                root.push('/');
            }
            root.push_str(segment);
            if index > 2 && is_version(segment) {
                break;
            }
        }
        let reply = self.session.send(Request::new(Method::GET, format!("{root}/"))).await?;
        let one = reply.json.get("version");
        let many = reply.json.get("versions").and_then(Value::as_array).into_iter().flatten();
        self.range = one.into_iter().chain(many).find_map(|v| {
            let part = |name: &str| microversion(v.get(name)?.as_str()?);
            Some((part("min_version")?, part("version")?))
        });
        Ok(())
    }

    /// The same service at the highest microversion up to `wanted` that it offers; none when it offers none.
    #[must_use]
    pub fn at(&self, wanted: &str) -> Service {
        let chosen = match (microversion(wanted), self.range) {
            (Some(wanted), Some((min, max))) if wanted >= min => Some(wanted.min(max)),
            _ => None,
        };
        Service { microversion: chosen.map(|(a, b)| format!("{a}.{b}")), ..self.clone() }
    }

    /// Whether the microversion is offered.
    pub fn offers(&self, wanted: &str) -> bool {
        match (microversion(wanted), self.range) {
            (Some(wanted), Some((min, max))) => min <= wanted && wanted <= max,
            _ => false,
        }
    }

    /// Calls `path` (with a leading slash).
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Reply> {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) };
        let mut request = Request::new(method, url);
        if let Some(version) = &self.microversion {
            request = request.header("openstack-api-version", format!("{} {version}", self.kind));
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        self.session.send(request).await
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.call(Method::GET, path, None).await?.json)
    }

    /// `POST`.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        Ok(self.call(Method::POST, path, Some(body)).await?.json)
    }

    /// `PUT`.
    pub async fn put(&self, path: &str, body: Value) -> Result<Value> {
        Ok(self.call(Method::PUT, path, Some(body)).await?.json)
    }

    /// `DELETE`; what is not there is deleted.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.delete_known(path).await.map(drop)
    }

    /// The same, and whether there was such a thing.
    pub(crate) async fn delete_known(&self, path: &str) -> Result<bool> {
        match self.call(Method::DELETE, path, None).await {
            Err(e) if e.status() == Some(404) => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// All items under `key`, page by page.
    pub async fn list(&self, path: &str, key: &str) -> Result<Vec<Value>> {
        let mut all: Vec<Value> = Vec::new();
        let mut next = path.to_owned();
        for _ in 0..PAGES {
            let page = self.get(&next).await?;
            let Some(items) = page.get(key).and_then(Value::as_array) else {
                return Err(Error::protocol(format!("{}{path}: no list {key:?} in the answer", self.base)));
            };
            let empty = items.is_empty();
            all.extend(items.iter().cloned());
            match self.next_page(&page, key) {
                Some(link) if !empty => next = link,
                _ => return Ok(all),
            }
        }
        Err(Error::protocol(format!("{}{path}: more than {PAGES} pages", self.base)))
    }

    /// Link to the next page, in any of the three ways of OpenStack.
    fn next_page(&self, page: &Value, key: &str) -> Option<String> {
        let link = page.get("next").and_then(Value::as_str).or_else(|| {
            let links = page.get(format!("{key}_links")).or_else(|| page.get("links"))?.as_array()?;
            links.iter().find(|l| l.get("rel").and_then(Value::as_str) == Some("next"))?.get("href")?.as_str()
        })?;
        if link.starts_with("http") {
            // Behind a proxy the host in the link may be the wrong one: only path and query are taken.
            let (path, query) = link.split("://").nth(1)?.split_once('/')?.1.split_once('?')?;
            let own = self.base.split("://").nth(1)?.split_once('/').map_or("", |(_, p)| p);
            let rest = path
                .strip_prefix(own)
                .unwrap_or_else(|| path.rsplit_once('/').map_or(path, |(_, last)| last));
            return Some(format!("/{}?{query}", rest.trim_start_matches('/')));
        }
        // Glance: an absolute path from the root of the service (/v2/images?marker=…).
        let (path, query) = link.split_once('?')?;
        let last = path.rsplit('/').next()?;
        Some(format!("/{last}?{query}"))
    }
}

/// A query parameter, encoded.
pub fn parameter(name: &str, value: &str) -> String {
    format!("{name}={}", encoded(value))
}

fn microversion(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
