//! From a table of operations to a router; the order of every request.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request as HttpRequest, Response, StatusCode, header,
};
use base::{Entropy, Error, Kind, Result};
use bytes::Bytes;
use contract::auth::{Moment, Presented};
use contract::{AuthContext, Scope};
use futures::FutureExt;
use tracing::Instrument;

use crate::metrics::ServiceMetrics;
use crate::op::{BodyKind, Handler, Incoming, TokenNeed};
use crate::request::{self, Head};
use crate::{Ctx, Dialect, Mv, Op, OpInfo, Query, Reply, ScopeKind, Service, query};

/// The router of a service. The binary mounts it: `Router::new().nest_service("/network", router)`.
///
/// # Panics
/// Where the table is wrong (two operations at one place, a policy rule that does not exist): a programming error
/// that every test of the service meets. [`try_router`] tells it instead.
pub fn router<S: Service>(state: Arc<S>, ops: Vec<Op<S>>) -> axum::Router {
    match try_router(state, ops) {
        Ok(router) => router,
        Err(error) => panic!("{}", error.chain()),
    }
}

/// As [`router`].
///
/// # Errors
/// `Internal` with what is wrong with the table.
pub fn try_router<S: Service>(state: Arc<S>, ops: Vec<Op<S>>) -> Result<axum::Router> {
    Ok(axum::Router::new().fallback_service(Api(Arc::new(Table::build(state, ops)?))))
}

/// Left in the extensions of a response: the operation that answered (for tests and access logs).
#[derive(Debug, Clone)]
pub struct Served(pub Arc<OpInfo>);

struct Route<S> {
    info: Arc<OpInfo>,
    handler: Handler<S>,
    index: usize,
}

impl<S> Route<S> {
    fn serves(&self, mv: Mv) -> bool {
        self.info.since <= mv && mv <= self.info.until
    }
}

impl<S> Clone for Route<S> {
    fn clone(&self) -> Self {
        Route { info: self.info.clone(), handler: self.handler.clone(), index: self.index }
    }
}

/// Path parameters by name.
type Params = Vec<(String, String)>;

/// What is at one path: by method, all operations (of different microversions or actions).
struct Place<S> {
    methods: Vec<(Method, Vec<Route<S>>)>,
}

struct Table<S> {
    state: Arc<S>,
    dialect: &'static Dialect,
    places: Vec<Place<S>>,
    paths: matchit::Router<usize>,
    metrics: ServiceMetrics,
    entropy: Entropy,
    fixed_base: Option<Arc<str>>,
}

impl<S: Service> Table<S> {
    fn build(state: Arc<S>, ops: Vec<Op<S>>) -> Result<Self> {
        let dialect = state.dialect();
        let metrics = ServiceMetrics::new(dialect.service_type, ops.iter().map(|op| op.info.id.clone()));
        let mut places: Vec<Place<S>> = Vec::new();
        let mut known: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
        let mut paths = matchit::Router::new();
        for (index, op) in ops.into_iter().enumerate() {
            let wrong = |what: String| Error::internal(format!("operation {}: {what}", op.info.id));
            if !state.policy().has(&op.info.policy) && op.info.token != TokenNeed::Never {
                return Err(wrong(format!("there is no policy rule '{}'", op.info.policy)));
            }
            let at = match known.get(op.info.path.as_ref()) {
                Some(at) => *at,
                None => {
                    paths.insert(op.info.path.to_string(), places.len()).map_err(|e| wrong(e.to_string()))?;
                    known.insert(op.info.path.to_string(), places.len());
                    places.push(Place { methods: Vec::new() });
                    places.len() - 1
                }
            };
            let Some(place) = places.get_mut(at) else { continue };
            let method = op.info.method.clone();
            let route = Route { info: Arc::new(op.info.clone()), handler: op.handler.clone(), index };
            match place.methods.iter_mut().find(|(m, _)| *m == method) {
                None => place.methods.push((method, vec![route])),
                Some((_, routes)) => {
                    let clash = routes.iter().any(|r| {
                        r.info.action == route.info.action
                            && r.info.since <= route.info.until
                            && route.info.since <= r.info.until
                    });
                    if clash {
                        return Err(wrong("is there twice".into()));
                    }
                    if routes.iter().any(|r| r.info.action.is_some() != route.info.action.is_some()) {
                        return Err(wrong("mixes actions and a plain operation".into()));
                    }
                    routes.push(route);
                }
            }
        }
        let settings = state.settings();
        let fixed_base = (!settings.public_url.is_empty() && !settings.trust_forwarded)
            .then(|| Arc::from(format!("{}{}", settings.public_url.trim_end_matches('/'), settings.prefix)));
        Ok(Table { state, dialect, places, paths, metrics, entropy: Entropy::system(), fixed_base })
    }

    /// The place of a path, and the path's parameters. A trailing slash is of no meaning, except where Glance and
    /// Cinder read it as an item without an id.
    fn find(&self, path: &str) -> Option<(&Place<S>, Params)> {
        let strict = matches!(
            self.dialect.envelope,
            crate::dialect::Envelope::Glance | crate::dialect::Envelope::Cinder
        );
        let found = self.paths.at(path).or_else(|error| match path.strip_suffix('/') {
            Some(shorter) if strict && shorter.matches('/').count() > 1 => Err(error),
            Some(shorter) if !shorter.is_empty() => self.paths.at(shorter),
            _ => Err(error),
        });
        let found = found.ok()?;
        let mut params = Vec::with_capacity(found.params.len());
        for (name, value) in found.params.iter() {
            let value = query::decode(value, false)?;
            if value.contains('\0') {
                return None;
            }
            params.push((name.to_owned(), value));
        }
        self.places.get(*found.value).map(|place| (place, params))
    }

    fn base_url(&self, parts: &Parts) -> Arc<str> {
        if let Some(base) = &self.fixed_base {
            return base.clone();
        }
        let settings = self.state.settings();
        let text =
            |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| plain_host(v));
        let (scheme, host) = match settings.public_url.split_once("://") {
            Some((scheme, host)) => (scheme, host),
            None => {
                // HTTP/2 tells the host in the URI.
                let authority = parts.uri.authority().map(|a| a.as_str()).filter(|a| plain_host(a));
                ("http", text("host").or(authority).unwrap_or("localhost"))
            }
        };
        let (mut scheme, mut host) = (scheme, host.trim_end_matches('/'));
        if settings.trust_forwarded {
            scheme = match text("x-forwarded-proto") {
                Some("https") => "https",
                Some("http") => "http",
                _ => scheme,
            };
            host = text("x-forwarded-host").unwrap_or(host);
        }
        Arc::from(format!("{scheme}://{host}{}", settings.prefix))
    }
}

/// Where a request came from. A proxy that is trusted adds the address it saw at the end of `X-Forwarded-For`.
fn peer(parts: &Parts, trust_forwarded: bool) -> Option<IpAddr> {
    let told = || parts.headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok();
    let forwarded = || told()?.rsplit(',').next()?.trim().parse().ok();
    let direct = parts.extensions.get::<request::Peer>().map(|p| p.0);
    if trust_forwarded { forwarded().or(direct) } else { direct }
}

/// Letters, digits and what a host, a port and an IPv6 literal need; nothing that could break out of a link.
fn plain_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b))
}

struct Api<S>(Arc<Table<S>>);

impl<S> Clone for Api<S> {
    fn clone(&self) -> Self {
        Api(self.0.clone())
    }
}

impl<S: Service> tower::Service<HttpRequest<Body>> for Api<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: HttpRequest<Body>) -> Self::Future {
        let table = self.0.clone();
        Box::pin(async move { Ok(table.serve(req).await) })
    }
}

/// What is known about a request as it goes along; what remains at the end decides headers and metrics.
struct Progress {
    request_id: Arc<str>,
    accept: String,
    op: Option<(usize, Arc<OpInfo>)>,
    mv: Option<Mv>,
    allow: Option<String>,
}

impl Progress {
    fn id(&self) -> &str {
        self.op.as_ref().map_or("", |(_, info)| &info.id)
    }
}

impl<S: Service> Table<S> {
    async fn serve(self: Arc<Self>, req: HttpRequest<Body>) -> Response<Body> {
        let started = Instant::now();
        let (parts, body) = req.into_parts();
        let head_only = parts.method == Method::HEAD;
        let accept = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let mut progress = Progress {
            request_id: Arc::from(format!("req-{}", self.entropy.uuid())),
            accept,
            op: None,
            mv: None,
            allow: None,
        };
        let global = global_request_id(&parts.headers).map(str::to_owned);
        let global_id = global.as_deref().unwrap_or("");
        let service = self.dialect.service_type;
        // `otel.*` and `http.*`: names of OpenTelemetry's semantic conventions for HTTP server spans.
        let span = tracing::info_span!(
            "request", id = %progress.request_id, global_id, service,
            otel.name = tracing::field::Empty, http.response.status_code = tracing::field::Empty
        );
        let run = AssertUnwindSafe(self.run(&mut progress, parts, body)).catch_unwind();
        let result = run.instrument(span.clone()).await;
        let result = result.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        let mut response = match result {
            Ok((reply, status)) => finish(reply, status),
            Err(error) => Err(error),
        }
        .unwrap_or_else(|error| self.fail(&progress, &error));
        self.decorate(&progress, &mut response);
        if head_only {
            let length = http_body_util::BodyExt::boxed_unsync(std::mem::take(response.body_mut()));
            if let Some(exact) = axum::body::HttpBody::size_hint(&length).exact().filter(|n| *n > 0) {
                response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from(exact));
            }
        }
        if let Some((_, info)) = &progress.op {
            response.extensions_mut().insert(Served(info.clone()));
        }
        let took = started.elapsed();
        let status = response.status().as_u16();
        self.metrics.count(progress.op.as_ref().map(|(index, _)| *index), status, took);
        span.record("otel.name", progress.id());
        span.record("http.response.status_code", status);
        tracing::debug!(
            service, op = progress.id(), request_id = %progress.request_id,
            global_request_id = global_id, status, micros = took.as_micros(), "request"
        );
        response
    }

    async fn run(&self, progress: &mut Progress, parts: Parts, body: Body) -> Result<(Reply, StatusCode)> {
        let began = Moment::next();
        let path = parts.uri.path();
        let (place, params) = self.find(path).ok_or_else(|| self.dialect.no_such_path())?;
        let routes = self.routes(place, &parts.method).ok_or_else(|| {
            progress.allow = Some(allow_of(place));
            Error::new(
                Kind::MethodNotAllowed,
                format!("The method {} is not allowed for this resource.", parts.method),
            )
        })?;
        let first = routes.first().ok_or_else(|| self.dialect.no_such_path())?;
        progress.op = Some((first.index, first.info.clone()));
        let auth = self.caller(&parts, began, first.info.token).await?;
        let mv = self.negotiate(&parts.headers, first.info.token == TokenNeed::Never)?;
        progress.mv = self.dialect.microversions.map(|_| mv);
        let first = routes.iter().find(|r| r.serves(mv)).ok_or_else(|| self.dialect.no_such_path())?;
        let limit = first.info.body_limit.unwrap_or(self.state.settings().body_limit);
        let settings = self.state.settings();
        let (route, incoming) = if first.info.action.is_some() {
            self.content_type(&parts.headers, &first.info)?;
            let bytes = self.read(&parts.headers, body, limit, settings.timeout).await?;
            let key = request::action_key(self.dialect, &bytes)?;
            let route = routes
                .iter()
                .find(|r| r.serves(mv) && r.info.action.as_deref() == Some(key.as_str()))
                .ok_or_else(|| Error::bad_request(format!("There is no such action: {key}")))?;
            progress.op = Some((route.index, route.info.clone()));
            self.may(route, auth.as_deref())?;
            (route, Incoming::Bytes(bytes))
        } else {
            progress.op = Some((first.index, first.info.clone()));
            self.may(first, auth.as_deref())?;
            let incoming = match first.info.body {
                BodyKind::None => Incoming::Bytes(Bytes::new()),
                BodyKind::Raw => {
                    self.content_type(&parts.headers, &first.info)?;
                    Incoming::Stream(body)
                }
                BodyKind::Json => {
                    self.content_type(&parts.headers, &first.info)?;
                    Incoming::Bytes(self.read(&parts.headers, body, limit, settings.timeout).await?)
                }
            };
            (first, incoming)
        };
        let query = Query::from_text(parts.uri.query().unwrap_or(""))?;
        let cx = Ctx {
            state: self.state.clone(),
            op: route.info.clone(),
            auth,
            dialect: self.dialect,
            base_url: self.base_url(&parts),
            request_id: progress.request_id.clone(),
            mv,
        };
        let head = Head {
            began,
            peer: peer(&parts, settings.trust_forwarded),
            certificate: parts.extensions.get().cloned(),
            path: parts.uri.path().to_owned(),
            method: parts.method,
            params,
            query,
            headers: parts.headers,
        };
        let status = StatusCode::from_u16(route.info.status).unwrap_or(StatusCode::OK);
        let timeout = (route.info.body != BodyKind::Raw).then_some(settings.timeout);
        let future = (route.handler)(cx, head, incoming)?;
        Ok((execute(future, &route.info.method, timeout).await?, status))
    }

    fn routes<'a>(&self, place: &'a Place<S>, method: &Method) -> Option<&'a [Route<S>]> {
        let of = |method: &Method| place.methods.iter().find(|(m, _)| m == method).map(|(_, r)| r.as_slice());
        of(method).or_else(|| if method == Method::HEAD { of(&Method::GET) } else { None })
    }

    async fn caller(
        &self,
        parts: &Parts,
        began: Moment,
        need: TokenNeed,
    ) -> Result<Option<Arc<AuthContext>>> {
        if need == TokenNeed::Never {
            return Ok(None);
        }
        let refused = || Error::unauthenticated("The request you have made requires authentication.");
        let token = match parts.headers.get("x-auth-token") {
            None if need == TokenNeed::Optional => return Ok(None),
            None => return Err(refused()),
            Some(value) => value.to_str().map_err(|_| refused())?,
        };
        let (service, authenticator) = (self.dialect.service_type, self.state.authenticator());
        let certificate = parts.extensions.get::<request::Certificate>().map(|c| &*c.0);
        let (method, path) = (parts.method.as_str(), parts.uri.path());
        let subject = parts.headers.get("x-subject-token").and_then(|v| v.to_str().ok());
        let presented = Presented { began, subject, service, method, path, certificate };
        match authenticator.authenticate_for(token, presented).await {
            Ok(auth) => Ok(Some(auth)),
            Err(error) if error.kind() == Kind::Unauthenticated => Err(refused()),
            Err(error) => Err(error),
        }
    }

    fn may(&self, route: &Route<S>, auth: Option<&AuthContext>) -> Result<()> {
        let Some(auth) = auth else { return Ok(()) };
        if route.info.token == TokenNeed::Optional {
            return Ok(());
        }
        let scope = match &auth.scope {
            Scope::Project { .. } => Some(ScopeKind::Project),
            Scope::Domain { .. } => Some(ScopeKind::Domain),
            Scope::System => Some(ScopeKind::System),
            Scope::Unscoped => None,
        };
        let scoped = route.info.scopes.is_empty() || scope.is_some_and(|s| route.info.scopes.contains(&s));
        if scoped && self.state.policy().might_allow(&route.info.policy, auth) {
            Ok(())
        } else {
            Err(self.dialect.policy_denied(&route.info.policy))
        }
    }

    /// The microversion asked for; the lowest where none was.
    fn negotiate(&self, headers: &HeaderMap, lenient: bool) -> Result<Mv> {
        let Some(range) = self.dialect.microversions else { return Ok(Mv::MIN) };
        let asked = match asked_version(headers, range.service) {
            Some(text) => Some(text),
            None => range.legacy_header.and_then(|h| headers.get(h)).and_then(|v| v.to_str().ok()),
        };
        let Some(text) = asked.map(str::trim) else { return Ok(range.min) };
        if text.eq_ignore_ascii_case("latest") {
            return Ok(range.max);
        }
        match text.parse::<Mv>() {
            _ if lenient => Ok(range.min),
            Ok(mv) if range.min <= mv && mv <= range.max => Ok(mv),
            Ok(mv) => Err(self.dialect.bad_version(mv, &range)),
            Err(error) => Err(error),
        }
    }

    fn content_type(&self, headers: &HeaderMap, info: &OpInfo) -> Result<()> {
        let length = headers.get(header::CONTENT_LENGTH);
        let empty = length.is_some_and(|l| l == "0");
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            let sent = length.is_some() || headers.contains_key(header::TRANSFER_ENCODING);
            return if self.dialect.needs_content_type && sent && !empty {
                Err(self.dialect.bad_media_type("", info.consumes))
            } else {
                Ok(())
            };
        };
        let media = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
        let any = info.body == BodyKind::Raw && info.consumes == ["application/json"];
        if any || empty || info.consumes.iter().any(|t| t.eq_ignore_ascii_case(media)) {
            return Ok(());
        }
        Err(self.dialect.bad_media_type(media, info.consumes))
    }

    async fn read(&self, headers: &HeaderMap, body: Body, limit: usize, timeout: Duration) -> Result<Bytes> {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|n| n > limit as u64) {
            return Err(Error::too_large(format!("The request body is larger than {limit} bytes.")));
        }
        tokio::time::timeout(timeout, request::collect(body, limit))
            .await
            .map_err(|_| Error::bad_request("The request body did not arrive in time."))?
    }

    fn fail(&self, progress: &Progress, error: &Error) -> Response<Body> {
        let status = self.dialect.status(error);
        if status.is_server_error() {
            tracing::error!(
                service = self.dialect.service_type, op = progress.id(), request_id = %progress.request_id,
                status = status.as_u16(), error = error.chain(), "request failed"
            );
        }
        let (content_type, text) = self.dialect.render(error, &progress.request_id, &progress.accept);
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if status == StatusCode::UNAUTHORIZED {
            let value = format!("Keystone uri=\"{}\"", self.state.settings().auth_url);
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(header::WWW_AUTHENTICATE, value);
            }
        }
        if let Some(allow) = progress.allow.as_deref().and_then(|a| HeaderValue::from_str(a).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        response
    }

    fn decorate(&self, progress: &Progress, response: &mut Response<Body>) {
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(&progress.request_id) {
            if let Some(name) = self.dialect.request_id_header {
                headers.insert(HeaderName::from_static(name), id.clone());
            }
            headers.insert(HeaderName::from_static("x-openstack-request-id"), id);
        }
        let vary = |headers: &mut HeaderMap, name: &'static str| {
            headers.append(header::VARY, HeaderValue::from_static(name));
        };
        match (self.dialect.microversions, progress.mv) {
            (Some(range), mv) => {
                if let Some(mv) = mv {
                    if let Ok(value) = HeaderValue::from_str(&format!("{} {mv}", range.service)) {
                        headers.insert(HeaderName::from_static("openstack-api-version"), value);
                    }
                    if let (Some(name), Ok(value)) =
                        (range.legacy_header, HeaderValue::from_str(&mv.to_string()))
                    {
                        headers.insert(HeaderName::from_static(name), value);
                    }
                }
                vary(headers, "OpenStack-API-Version");
                if range.legacy_header.is_some() {
                    vary(headers, "X-OpenStack-Nova-API-Version");
                }
            }
            (None, _) => vary(headers, "X-Auth-Token"),
        }
    }
}

fn allow_of<S>(place: &Place<S>) -> String {
    let mut names: Vec<&str> = place.methods.iter().map(|(m, _)| m.as_str()).collect();
    if names.contains(&"GET") && !names.contains(&"HEAD") {
        names.push("HEAD");
    }
    names.sort_unstable();
    names.join(", ")
}

/// `OpenStack-API-Version` may name several services: `compute 2.96, volume 3.70`; it may also be sent several times.
fn asked_version<'a>(headers: &'a HeaderMap, service: &str) -> Option<&'a str> {
    let entries = headers.get_all("openstack-api-version").iter().filter_map(|v| v.to_str().ok());
    entries.flat_map(|v| v.split(',')).find_map(|entry| {
        let (name, version) = entry.trim().split_once(' ')?;
        name.eq_ignore_ascii_case(service).then(|| version.trim())
    })
}

/// The id another service gave the request, if it has the only form it may have.
fn global_request_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("x-openstack-request-id")?.to_str().ok()?;
    let uuid = text.strip_prefix("req-")?;
    (uuid.len() == 36 && uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')).then_some(text)
}

/// Runs a handler. One that writes runs in a task of its own, so that a client that goes away does not stop it halfway.
async fn execute(future: crate::op::Fut, method: &Method, timeout: Option<Duration>) -> Result<Reply> {
    let late = || Error::unavailable("The request took too long.");
    if method == Method::GET || method == Method::HEAD {
        return match timeout {
            Some(timeout) => tokio::time::timeout(timeout, future).await.unwrap_or_else(|_| Err(late())),
            None => future.await,
        };
    }
    let task = tokio::spawn(future.in_current_span());
    let joined = match timeout {
        Some(timeout) => match tokio::time::timeout(timeout, task).await {
            Ok(joined) => joined,
            Err(_) => return Err(late()),
        },
        None => task.await,
    };
    match joined {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Err(panicked(panic.as_ref())),
            Err(error) => Err(Error::unavailable("The server is shutting down.").caused_by(error)),
        },
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Error::internal(format!("panic: {}", text.unwrap_or("of unknown kind")))
}

fn finish(reply: Reply, status: StatusCode) -> Result<Response<Body>> {
    if let Some(error) = reply.failed {
        return Err(error);
    }
    let mut response = Response::new(reply.body);
    *response.status_mut() = reply.status.unwrap_or(status);
    *response.headers_mut() = reply.headers;
    Ok(response)
}
