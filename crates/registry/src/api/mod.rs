//! The HTTP API: upstream's routes with upstream's answers, and what there is beyond them (`docs/registry.md`).

mod certificates;
mod pages;
mod reports;
mod results;
mod status;
mod table;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Path, RawQuery, State};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base::{Error, Kind, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Serialize;

use crate::Registry;
use crate::accounts::Account;

/// Bytes of an upload; a report with all output has a few hundred thousand.
pub const LARGEST_REPORT: usize = 8 << 20;
/// Bytes of any other body.
const LARGEST: usize = 1 << 20;
/// Items of one answer.
const MOST_ITEMS: usize = 100;
/// Items that can be skipped.
const MOST_SKIPPED: usize = 1_000_000;

/// An error as upstream's framework tells it: `{"detail": …}`.
pub struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let kind = self.0.kind();
        let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::error!(error = self.0.chain(), "a request failed");
        }
        let mut response = json(status, &serde_json::json!({"detail": self.0.public()}));
        if kind == Kind::Unauthenticated {
            let challenge = axum::http::HeaderValue::from_static("Basic realm=\"Compliance monitor\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// What handlers answer.
pub type Answer = Result<Response, Failure>;

/// A JSON answer.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => (status, [(CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// What upstream's framework answers where a handler answers nothing.
fn nothing() -> Response {
    json(StatusCode::OK, &serde_json::Value::Null)
}

type Site = State<Arc<Registry>>;

/// Where a request came from; whoever serves the routes puts it into the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Client(pub IpAddr);

/// Who asks: headers, and the address.
struct Caller {
    headers: HeaderMap,
    from: Option<IpAddr>,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let from = parts.extensions.get::<Client>().map(|client| client.0);
        Ok(Caller { headers: parts.headers.clone(), from })
    }
}

/// All routes.
pub fn router(registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/", get(root))
        .route("/healthz", get(healthz))
        .route("/reports", get(reports::list).post(reports::add))
        .route("/reports/{run}", get(reports::show))
        .route("/reports/{run}/upload", get(reports::upload))
        .route("/results", get(results::list).post(results::approve))
        .route("/status", get(status::show))
        .route("/metrics/{subject}", get(status::metrics))
        .route("/badge/{subject}/{scope}", get(status::badge))
        .route("/certificates", get(certificates::list).post(certificates::issue))
        .route("/certificates/{id}", get(certificates::document))
        .route("/certificates/{id}/signature", get(certificates::signature))
        .route("/certificates/{id}/credential", get(certificates::credential))
        .route("/certificates/{id}/revoke", post(certificates::revoke))
        .route("/crl", get(certificates::crl))
        .route("/crl/signature", get(certificates::crl_signature))
        .route("/credentials/status", get(certificates::status_list))
        .route("/issuer", get(certificates::issuer))
        .route("/{view}/table", get(table::table))
        .route("/{view}/table_full", get(table::table_full))
        .route("/{view}/detail/{subject}/{scope}", get(pages::detail))
        .route("/{view}/detail_full/{subject}/{scope}", get(pages::detail_full))
        .route("/{view}/history/{subject}/{scope}", get(pages::history))
        .route("/{view}/report/{run}", get(pages::report))
        .route("/{view}/report_full/{run}", get(pages::report_full))
        .route("/{view}/scope/{scope}", get(pages::scope))
        .route("/{view}/certificates", get(pages::certificates))
        .route("/{view}/certificate/{id}", get(pages::certificate))
        .fallback(|| async { Failure(Error::not_found("Not Found")) })
        .method_not_allowed_fallback(|| async {
            Failure(Error::new(Kind::MethodNotAllowed, "Method Not Allowed"))
        })
        .with_state(registry)
}

async fn root(State(registry): Site) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, format!("{}page/table", registry.url()))]).into_response()
}

async fn healthz(State(registry): Site) -> Response {
    let alive = registry.store().read(|tx| tx.exists::<crate::model::Upload>(&store::Query::new().limit(1)));
    match alive.await {
        Ok(_) => StatusCode::OK.into_response(),
        Err(error) => {
            tracing::error!(error = error.chain(), "the database does not answer");
            (StatusCode::INTERNAL_SERVER_ERROR, "internal server error").into_response()
        }
    }
}

/// The account that a request comes from.
///
/// # Errors
/// `Unauthenticated` without credentials, or with wrong ones; nothing tells which of both is wrong.
async fn login(registry: &Registry, caller: &Caller) -> Result<Arc<Account>> {
    let value =
        caller.headers.get(AUTHORIZATION).ok_or_else(|| Error::unauthenticated("Not authenticated"))?;
    let wrong = || Error::unauthenticated("Incorrect username or password");
    let text = value.to_str().map_err(|_| wrong())?;
    let (scheme, encoded) = text.split_once(' ').ok_or_else(wrong)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(Error::unauthenticated("Not authenticated"));
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| wrong())?;
    let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
    let (name, password) = decoded.split_once(':').ok_or_else(wrong)?;
    registry.login(caller.from, name, password.to_owned()).await
}

/// The account, if it is that of `subject` or has `roles`.
///
/// # Errors
/// See [`login`]; for an account that may not, as well, as upstream answers.
fn permit(account: &Account, subject: Option<&str>, roles: u8) -> Result<()> {
    let may = subject.map_or(account.has(roles), |subject| account.is_or_has(subject, roles));
    may.then_some(()).ok_or_else(|| Error::unauthenticated("Permission denied"))
}

/// Reads a body to its end, or to the limit.
async fn body(body: Body, limit: usize) -> Result<Bytes> {
    let read = to_bytes(body, limit).await;
    read.map_err(|_| Error::too_large(format!("A body has at most {limit} bytes, and arrives whole.")))
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok())
}

/// Parameters of a query, each known and there once.
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn parse(query: RawQuery, known: &[&str]) -> Result<Self> {
        let pairs: Vec<(String, String)> = axum::extract::Query::try_from_uri(
            &format!("/?{}", query.0.unwrap_or_default())
                .parse()
                .map_err(|_| Error::unprocessable("The query cannot be read."))?,
        )
        .map(|axum::extract::Query(pairs)| pairs)
        .map_err(|_| Error::unprocessable("The query cannot be read."))?;
        let mut found = BTreeMap::new();
        // Upstream does not look at what it does not know.
        for (name, value) in pairs.into_iter().filter(|(n, _)| known.contains(&n.as_str())) {
            if value.contains('\0') {
                return Err(Error::unprocessable(format!("{name}: NUL characters are not allowed.")));
            }
            found.insert(name, value);
        }
        Ok(Parameters(found))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str, default: usize, most: usize) -> Result<usize> {
        let Some(text) = self.text(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|n| *n <= most);
        number.ok_or_else(|| Error::unprocessable(format!("{name}: a number from 0 to {most} is wanted.")))
    }

    fn page(&self) -> Result<(usize, usize)> {
        Ok((self.number("limit", 10, MOST_ITEMS)?, self.number("skip", 0, MOST_SKIPPED)?))
    }

    fn truth(&self, name: &str) -> Result<Option<bool>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "t" | "yes" | "y" | "on" => Ok(Some(true)),
            "0" | "false" | "f" | "no" | "n" | "off" => Ok(Some(false)),
            _ => Err(Error::unprocessable(format!("{name}: true or false is wanted."))),
        }
    }
}

/// Whether a client takes JSON.
fn takes_json(headers: &HeaderMap) -> bool {
    let mut accepts = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).peekable();
    accepts.peek().is_none() || accepts.any(|a| a.contains("application/json") || a.contains("*/*"))
}

/// Two names of a path after the view.
type Two = Path<(String, String)>;
/// Three.
type Three = Path<(String, String, String)>;
