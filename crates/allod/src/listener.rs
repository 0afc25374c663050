//! One TLS listener for everything: HTTP/1.1 and HTTP/2, client certificates turned into [`link::Peer`], [`link::Replica`] or
//! [`api::Certificate`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tower::Service;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::tls::{Current, Holder, Tls};

/// Connections served at once; more wait in the kernel's backlog.
const CONNECTIONS: usize = 8192;
/// A client that does not finish its handshake or its headers in this time is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long open requests may go on after the listener was asked to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until `stop` turns true, then lets open requests finish.
pub async fn serve(
    listener: TcpListener,
    tls: Tls,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = crate::command::stopped(&mut stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: give others time to close theirs.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, router, stop) = (tls.at(Instant::now()), router.clone(), stop.clone());
        tokio::spawn(async move {
            connection(stream, &tls, router, stop).await;
            drop(permit);
        });
    }
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(DRAIN, permits.acquire_many(all)).await;
    Ok(())
}

async fn connection(stream: TcpStream, tls: &Current, router: Router, mut stop: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let from = stream.peer_addr().map(|a| api::Peer(a.ip())).ok();
    let Ok(made) = tokio::time::timeout(PATIENCE, tls.acceptor().accept(stream)).await else { return };
    let stream = match made {
        Ok(stream) => stream,
        Err(error) => {
            // A client whose certificate is refused is told no reason: here it is.
            tracing::debug!(from = ?from.map(|p| p.0), %error, "handshake failed");
            return;
        }
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let Holder { host, replica, client } = tls.holder(certificates);
    // A connection is worth no more than the certificate it was made with.
    let good_for = certificates.first().and_then(|c| crate::pki::validity(c).ok()).map(|(_, end)| {
        let left = end.0 - base::Clock::now(&base::SystemClock).0;
        Duration::from_micros(u64::try_from(left).unwrap_or(0))
    });
    let service = tower::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        if let Some(host) = host {
            request.extensions_mut().insert(link::Peer(host));
        }
        if let Some(client) = &client {
            request.extensions_mut().insert(client.clone());
        }
        if let Some(from) = from {
            request.extensions_mut().insert(from);
        }
        if replica {
            request.extensions_mut().insert(link::Replica);
        }
        let span = match crate::telemetry::parent_of(request.headers()) {
            Some(parent) => {
                let span = tracing::info_span!("call", otel.kind = "server");
                let _ = span.set_parent(parent);
                span
            }
            None => tracing::Span::none(),
        };
        router.clone().call(request).instrument(span)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .keep_alive_interval(Duration::from_secs(30));
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::trace!(%error, "connection ended");
            }
        }
        () = ended(good_for) => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(DRAIN, connection).await;
        }
        () = crate::command::stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn ended(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}
