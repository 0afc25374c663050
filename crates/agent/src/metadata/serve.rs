//! HTTP on the metadata namespaces' sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base::{Error, NetworkId, Result};
use bytes::Bytes;
use contract::host::{HostSpec, ServerSpec};
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

/// Connections served at once for one network: a guest that opens more waits, others' networks do not.
const CONNECTIONS: usize = 64;
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(30);

/// Finds the server behind an address of a network.
#[derive(Clone)]
pub struct Directory(watch::Receiver<Option<Arc<HostSpec>>>);

impl Directory {
    /// A directory over the agent's present spec.
    pub fn new(spec: watch::Receiver<Option<Arc<HostSpec>>>) -> Self {
        Directory(spec)
    }

    /// The one server with a NIC on `network` that has the fixed address `source`; `None` if none or several.
    pub fn find(&self, network: NetworkId, source: IpAddr) -> Option<Arc<ServerSpec>> {
        let spec = self.0.borrow().clone()?;
        let mut found = spec
            .servers
            .iter()
            .filter(|s| s.nics.iter().any(|n| n.network == network && n.fixed_ips.contains(&source)));
        let server = found.next()?;
        if found.next().is_some() { None } else { Some(server.clone()) }
    }
}

/// The listeners of this process, by network.
#[derive(Default)]
pub struct Listeners(Mutex<BTreeMap<NetworkId, Option<AbortHandle>>>);

impl Listeners {
    /// Networks served now.
    pub fn networks(&self) -> BTreeSet<NetworkId> {
        self.0.lock().keys().copied().collect()
    }

    /// Serves `listener` for `network`; `None` (simulated hosts) only records it.
    ///
    /// # Errors
    /// Where the socket cannot be used.
    pub fn serve(
        &self,
        network: NetworkId,
        listener: Option<std::net::TcpListener>,
        directory: Directory,
    ) -> Result<()> {
        let task = match listener {
            Some(listener) => {
                listener.set_nonblocking(true).map_err(Error::internal)?;
                let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::internal)?;
                Some(tokio::spawn(accept(listener, network, directory)).abort_handle())
            }
            None => None,
        };
        if let Some(Some(old)) = self.0.lock().insert(network, task) {
            old.abort();
        }
        Ok(())
    }

    /// Stops serving `network`.
    pub fn stop(&self, network: NetworkId) {
        if let Some(Some(task)) = self.0.lock().remove(&network) {
            task.abort();
        }
    }

    /// Stops serving all.
    pub fn close(&self) {
        for (_, task) in std::mem::take(&mut *self.0.lock()) {
            if let Some(task) = task {
                task.abort();
            }
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, network: NetworkId, directory: Directory) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%network, %error, "metadata accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let directory = directory.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let response = respond(&directory, network, peer.ip(), &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(LIFE, connection).await;
            drop(permit);
        });
    }
}

fn respond<B>(
    directory: &Directory,
    network: NetworkId,
    source: IpAddr,
    request: &Request<B>,
) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed");
    }
    let source = match source {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    let Some(server) = directory.find(network, source) else {
        return plain(StatusCode::NOT_FOUND, "404 Not Found");
    };
    match super::answer(&server, request.uri().path()) {
        Some((content_type, bytes)) => {
            let mut response = Response::new(Full::new(Bytes::from(bytes)));
            response
                .headers_mut()
                .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
            response
        }
        None => plain(StatusCode::NOT_FOUND, "404 Not Found"),
    }
}
