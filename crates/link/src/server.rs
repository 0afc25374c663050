//! Server side: routes under `/agent/v1`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base::{HostId, ImageId};
use contract::host::{DiskPart, HostReport};
use contract::services::{ControlPlane, Images};
use serde::Deserialize;

use crate::{Answer, Failure, Held, Questions, Relay, Term};

/// Largest report: some thousand servers on a host.
const REPORT_BYTES: usize = 32 * 1024 * 1024;
/// How long a poll for questions is held.
const POLL: Duration = Duration::from_secs(25);

/// The host named by the client certificate; the TLS listener adds it to the request's extensions. Without it every
/// route answers 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub HostId);

#[derive(Clone)]
struct Desk {
    control: Arc<dyn ControlPlane>,
    images: Arc<dyn Images>,
    questions: Arc<Questions>,
}

/// The agents' routes.
pub fn routes(control: Arc<dyn ControlPlane>, images: Arc<dyn Images>, questions: Arc<Questions>) -> Router {
    Router::new()
        .route("/agent/v1/spec", get(spec))
        .route("/agent/v1/report", post(report))
        .route("/agent/v1/lease", post(lease))
        .route("/agent/v1/questions", get(question).post(answer))
        .route("/agent/v1/images/{id}", get(image))
        .route("/agent/v1/disk", post(disk))
        .layer(DefaultBodyLimit::max(REPORT_BYTES))
        .with_state(Desk { control, images, questions })
}

/// The agents' routes of one of several replicas.
pub fn relayed(routes: Router, relay: Arc<Relay>) -> Router {
    let ask = Router::new().route("/agent/v1/ask", post(crate::relay::ask)).with_state(relay.clone());
    routes.merge(ask).layer(axum::middleware::from_fn_with_state(relay, crate::relay::relay))
}

struct Refusal(Failure);

impl From<base::Error> for Refusal {
    fn from(error: base::Error) -> Self {
        if error.kind() == base::Kind::Internal {
            tracing::error!(error = %error.chain(), "agent request failed");
        }
        Refusal(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// The host that asks, if it still may.
async fn host(desk: &Desk, peer: Option<Extension<Peer>>) -> Result<HostId, Refusal> {
    let Some(Extension(Peer(host))) = peer else {
        return Err(base::Error::unauthenticated("A host's client certificate is needed here.").into());
    };
    desk.control.admit(host).await?;
    Ok(host)
}

#[derive(Deserialize)]
struct After {
    after: u64,
}

async fn spec(
    State(desk): State<Desk>,
    peer: Option<Extension<Peer>>,
    Query(query): Query<After>,
) -> Result<Response, Refusal> {
    match desk.control.spec(host(&desk, peer).await?, query.after).await? {
        Some(spec) => Ok(Json(spec).into_response()),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn report(
    State(desk): State<Desk>,
    peer: Option<Extension<Peer>>,
    Json(report): Json<HostReport>,
) -> Result<StatusCode, Refusal> {
    if report.host != host(&desk, peer).await? {
        return Err(base::Error::forbidden("A host reports only for itself.").into());
    }
    desk.control.report(report).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn lease(
    State(desk): State<Desk>,
    peer: Option<Extension<Peer>>,
    Json(held): Json<Held>,
) -> Result<Json<Term>, Refusal> {
    let term = desk.control.lease(host(&desk, peer).await?, held.generation).await?;
    Ok(Json(Term { milliseconds: u64::try_from(term.as_millis()).unwrap_or(u64::MAX) }))
}

async fn question(State(desk): State<Desk>, peer: Option<Extension<Peer>>) -> Result<Response, Refusal> {
    match desk.questions.next(host(&desk, peer).await?, POLL).await {
        Some(question) => Ok(Json(question).into_response()),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn answer(
    State(desk): State<Desk>,
    peer: Option<Extension<Peer>>,
    Json(answer): Json<Answer>,
) -> Result<StatusCode, Refusal> {
    desk.questions.answer(host(&desk, peer).await?, answer);
    Ok(StatusCode::NO_CONTENT)
}

async fn image(
    State(desk): State<Desk>,
    peer: Option<Extension<Peer>>,
    Path(id): Path<ImageId>,
) -> Result<Response, Refusal> {
    host(&desk, peer).await?;
    let bytes = desk.images.read(id, 0).await?;
    Ok(Body::from_stream(bytes).into_response())
}

async fn disk(
    State(desk): State<Desk>,
    peer: Option<Extension<Peer>>,
    Json(part): Json<DiskPart>,
) -> Result<Response, Refusal> {
    let piece = desk.control.disk(host(&desk, peer).await?, &part).await?;
    Ok(piece.into_response())
}
