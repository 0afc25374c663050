//! The OVN databases for servers on other machines. Northbound has no rights of its own: whoever writes it is the network.
//! So it never listens; the agent of its machine takes connections of replicas, by the certificate that only they have,
//! and hands their bytes on to the database's socket (an HTTP/1.1 upgrade to `ovsdb`, RFC 9110 section 7.8).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use axum::extract::Request;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use base::{Clock, SystemClock};
use hyper_util::rt::TokioIo;
use ovn::ovsdb::{Dial, Remote, Stream};

use crate::config::{Config, State};
use crate::pki::Pki;

const PATH: &str = "/agent/v1/ovsdb";
const PROTOCOL: &str = "ovsdb";
/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent's side, at the databases behind `socket`.
pub fn routes(socket: PathBuf) -> Router {
    let socket = Arc::new(socket);
    Router::new().route(PATH, get(move |replica, request| pass(socket.clone(), replica, request)))
}

async fn pass(
    socket: Arc<PathBuf>,
    replica: Option<Extension<link::Replica>>,
    mut request: Request,
) -> Response {
    if replica.is_none() {
        return (StatusCode::UNAUTHORIZED, "the certificate of a server of this cloud is needed here\n")
            .into_response();
    }
    if request.headers().get(UPGRADE).is_none_or(|to| to != PROTOCOL) {
        return (StatusCode::UPGRADE_REQUIRED, [(UPGRADE, HeaderValue::from_static(PROTOCOL))])
            .into_response();
    }
    let mut database = match tokio::net::UnixStream::connect(&*socket).await {
        Ok(database) => database,
        Err(error) => {
            tracing::warn!(%error, "a replica asks for the network databases, which do not answer");
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        // Either side's end is the other's.
        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut database).await;
    });
    let switched =
        [(CONNECTION, HeaderValue::from_static("upgrade")), (UPGRADE, HeaderValue::from_static(PROTOCOL))];
    (StatusCode::SWITCHING_PROTOCOLS, switched).into_response()
}

/// A server's way to the databases: those of its machine, or through another one's agent.
pub fn remote(state: &State, config: &Config) -> Remote {
    if config.replica.ovn_agent.is_empty() {
        return Remote::Unix(ovn::engines::socket(state.dir()));
    }
    let url = format!("{}{PATH}", config.replica.ovn_agent.trim_end_matches('/'));
    Remote::Through(Arc::new(Tunnel { pki: state.path("pki"), url }))
}

#[derive(Debug)]
struct Tunnel {
    pki: PathBuf,
    url: String,
}

impl Tunnel {
    async fn open(&self) -> Result<reqwest::Upgraded> {
        // Made anew each time: by then the certificate may be another.
        let tls = Pki::open(&self.pki, SystemClock.now())?.replica_tls()?;
        let client = reqwest::Client::builder().use_preconfigured_tls(tls).http1_only();
        let client = client.tcp_keepalive(PATIENCE).connect_timeout(PATIENCE).build()?;
        let asked =
            client.get(&self.url).header(CONNECTION, "upgrade").header(UPGRADE, PROTOCOL).send().await?;
        let status = asked.status();
        asked.upgrade().await.with_context(|| format!("{} answers {status}", self.url))
    }
}

#[async_trait]
impl Dial for Tunnel {
    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let opened = tokio::time::timeout(PATIENCE, self.open()).await;
        match opened {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(io::Error::other(format!("{error:#}"))),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
