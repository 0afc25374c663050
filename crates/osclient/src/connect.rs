//! Connections to a cloud, with a note of how long each part of making one took: what an HTTP library that is ready made
//! does not tell.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tower::Service;

use crate::transport::Trust;
use crate::{Error, Kind, Result};

/// How long one of several addresses of a host may keep the others waiting.
const ADDRESS: Duration = Duration::from_secs(3);

/// How long the parts of making a connection took, in microseconds; `None`: not needed, or not come to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Phases {
    pub dns_us: Option<u64>,
    pub connect_us: Option<u64>,
    pub tls_us: Option<u64>,
}

tokio::task_local! {
    /// Of the call that is being made. A connection that is finished in the background belongs to no call.
    pub(crate) static PHASES: Arc<Mutex<Phases>>;
}

fn note(write: impl FnOnce(&mut Phases)) {
    // Outside of a call there is nobody to tell.
    let _ = PHASES.try_with(|phases| write(&mut phases.lock()));
}

pub(crate) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct Broken {
    pub kind: Kind,
    pub reason: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Broken {}

fn broken(kind: Kind) -> impl Fn(std::io::Error) -> Broken {
    move |e| Broken { kind, reason: e.to_string() }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection.
pub(crate) struct Stream {
    io: TokioIo<Box<dyn Io>>,
    h2: bool,
    proxied: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.proxied);
        if self.h2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

type Making<T> = Pin<Box<dyn Future<Output = std::result::Result<T, Broken>> + Send>>;

/// TCP alone.
#[derive(Clone)]
struct Tcp;

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = Broken;
    type Future = Making<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(async move { Ok(TokioIo::new(tcp(&uri).await?)) })
    }
}

async fn tcp(uri: &Uri) -> std::result::Result<TcpStream, Broken> {
    let host = bare(uri);
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let begin = Instant::now();
    let looked_up = tokio::net::lookup_host((host, port)).await;
    note(|p| p.dns_us = Some(micros(begin)));
    let addresses: Vec<SocketAddr> = looked_up.map_err(broken(Kind::Name))?.collect();
    let begin = Instant::now();
    let mut last = Broken { kind: Kind::Name, reason: format!("{host} has no address") };
    for (index, address) in addresses.iter().enumerate() {
        let connecting = TcpStream::connect(address);
        let result = if index + 1 < addresses.len() {
            tokio::time::timeout(ADDRESS, connecting)
                .await
                .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        } else {
            connecting.await
        };
        match result {
            Ok(stream) => {
                note(|p| p.connect_us = Some(micros(begin)));
                // An old kernel that knows no such option only makes it slower.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(e) => last = Broken { kind: Kind::Connect, reason: e.to_string() },
        }
    }
    Err(last)
}

/// The host, without the brackets of IPv6.
fn bare(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// Makes connections: TCP, through a proxy if the environment names one, and TLS.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: tokio_rustls::TlsConnector,
    proxies: Arc<Matcher>,
}

impl Connector {
    pub(crate) fn new(trust: &Trust) -> Result<Self> {
        Ok(Connector { tls: Arc::new(tls(trust)?).into(), proxies: Arc::new(Matcher::from_env()) })
    }

    /// The proxy for a target.
    pub(crate) fn proxy(&self, uri: &Uri) -> Option<Intercept> {
        self.proxies.intercept(uri)
    }

    async fn make(self, uri: Uri) -> std::result::Result<Stream, Broken> {
        let proxy = self.proxy(&uri);
        let https = uri.scheme_str() == Some("https");
        if let Some(proxy) = proxy.as_ref().filter(|p| p.uri().scheme_str() != Some("http")) {
            let reason = format!("proxies other than http:// are not supported ({})", proxy.uri());
            return Err(Broken { kind: Kind::Config, reason });
        }
        let stream = match &proxy {
            None => tcp(&uri).await?,
            Some(proxy) if !https => tcp(proxy.uri()).await?,
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), Tcp);
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let through = tunnel.call(uri.clone()).await;
                through
                    .map_err(|e| Broken { kind: Kind::Connect, reason: format!("proxy: {e}") })?
                    .into_inner()
            }
        };
        if !https {
            return Ok(Stream { io: TokioIo::new(Box::new(stream)), h2: false, proxied: proxy.is_some() });
        }
        let name = ServerName::try_from(bare(&uri).to_owned())
            .map_err(|_| Broken { kind: Kind::Tls, reason: "no name for a certificate".into() })?;
        let begin = Instant::now();
        let shaken = self.tls.connect(name, stream).await;
        note(|p| p.tls_us = Some(micros(begin)));
        let stream = shaken.map_err(broken(Kind::Tls))?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Stream { io: TokioIo::new(Box::new(stream)), h2, proxied: false })
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Broken;
    type Future = Making<Stream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().make(uri))
    }
}

fn tls(trust: &Trust) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match &trust.ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let added = certificate.ok().and_then(|c| roots.add(c).ok());
                added.ok_or_else(|| Error::config("the CA bundle has no PEM certificates"))?;
            }
            if roots.is_empty() {
                return Err(Error::config("the CA bundle has no PEM certificates"));
            }
        }
        // Nothing is checked against them.
        None if !trust.verify => {}
        // One that the machine has and TLS does not understand is of no use to anybody.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let builder = ClientConfig::builder();
    let builder = if trust.verify {
        builder.with_root_certificates(roots)
    } else {
        let provider = builder.crypto_provider().clone();
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    };
    let mut config = match &trust.identity {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let wrong = || Error::config("no client certificate with its key");
            let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| wrong())?;
            builder.with_client_auth_cert(chain.map_err(|_| wrong())?, key).map_err(|_| wrong())?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// `verify: false` of a cloud: its certificate is taken as it is, its key must still be its own.
#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
