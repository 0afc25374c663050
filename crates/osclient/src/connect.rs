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
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
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

/// A connection to a proxy, that is there; for those who make tunnels.
struct Made(Option<TokioIo<Box<dyn Io>>>);

impl Service<Uri> for Made {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = Broken;
    type Future = std::future::Ready<std::result::Result<Self::Response, Broken>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let none = || Broken { kind: Kind::Connect, reason: "it is used".into() };
        std::future::ready(self.0.take().ok_or_else(none))
    }
}

async fn tcp(uri: &Uri) -> std::result::Result<TcpStream, Broken> {
    let host = bare(uri);
    let port = uri.port_u16().unwrap_or(match uri.scheme_str() {
        Some("https") => 443,
        Some("socks5" | "socks5h") => 1080,
        _ => 80,
    });
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

fn server_name(uri: &Uri) -> std::result::Result<ServerName<'static>, Broken> {
    ServerName::try_from(bare(uri).to_owned())
        .map_err(|_| Broken { kind: Kind::Tls, reason: "no name for a certificate".into() })
}

/// Makes connections: TCP, through a proxy if the environment names one, and TLS.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: tokio_rustls::TlsConnector,
    proxy_tls: tokio_rustls::TlsConnector,
    proxies: Arc<Matcher>,
}

impl Connector {
    /// `proxies`: those of the environment, but in tests.
    pub(crate) fn new(trust: &Trust, proxies: Matcher) -> Result<Self> {
        let tls = tls(trust)?;
        // What proxies are asked in is HTTP/1.1.
        let mut proxy_tls = tls.clone();
        proxy_tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (tls, proxy_tls) = (Arc::new(tls).into(), Arc::new(proxy_tls).into());
        Ok(Connector { tls, proxy_tls, proxies: Arc::new(proxies) })
    }

    /// The proxy for a target.
    pub(crate) fn proxy(&self, uri: &Uri) -> Option<Intercept> {
        self.proxies.intercept(uri)
    }

    async fn make(self, uri: Uri) -> std::result::Result<Stream, Broken> {
        let proxy = self.proxy(&uri);
        let https = uri.scheme_str() == Some("https");
        // A proxy that is asked for the whole URL, instead of for a way to its host.
        let mut proxied = false;
        let stream: Box<dyn Io> = match &proxy {
            None => Box::new(tcp(&uri).await?),
            Some(proxy) if !https && is_http(proxy) => {
                proxied = true;
                self.hop(proxy.uri()).await?
            }
            Some(proxy) => self.tunnel(proxy, &uri).await?,
        };
        if !https {
            return Ok(Stream { io: TokioIo::new(stream), h2: false, proxied });
        }
        let begin = Instant::now();
        let shaken = self.tls.connect(server_name(&uri)?, stream).await;
        note(|p| p.tls_us = Some(micros(begin)));
        let stream = shaken.map_err(broken(Kind::Tls))?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Stream { io: TokioIo::new(Box::new(stream)), h2, proxied: false })
    }

    /// A connection to a proxy: TCP, and TLS where its URL says so.
    async fn hop(&self, proxy: &Uri) -> std::result::Result<Box<dyn Io>, Broken> {
        let connecting = async {
            let stream = tcp(proxy).await?;
            if proxy.scheme_str() != Some("https") {
                return Ok(Box::new(stream) as Box<dyn Io>);
            }
            let shaken = self.proxy_tls.connect(server_name(proxy)?, stream).await;
            Ok(Box::new(shaken.map_err(broken(Kind::Tls))?) as Box<dyn Io>)
        };
        connecting
            .await
            .map_err(|Broken { kind, reason }| Broken { kind, reason: format!("proxy: {reason}") })
    }

    /// A way to the host of `uri` through a proxy. Its name is the proxy's to look up: those inside are often known there only.
    async fn tunnel(&self, proxy: &Intercept, uri: &Uri) -> std::result::Result<Box<dyn Io>, Broken> {
        let (at, uri, begin) = (proxy.uri().clone(), with_port(uri)?, Instant::now());
        let socks = matches!(at.scheme_str(), Some("socks5" | "socks5h"));
        if !socks && !is_http(proxy) {
            let reason = format!("proxies are http, https or socks5 ({at})");
            return Err(Broken { kind: Kind::Config, reason });
        }
        let made = Made(Some(TokioIo::new(self.hop(&at).await?)));
        let stream = if socks {
            let mut socks = SocksV5::new(at, made);
            if let Some((user, password)) = proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            socks.call(uri).await.map_err(|e| refused(&e))?
        } else {
            let mut tunnel = Tunnel::new(at, made);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            tunnel.call(uri).await.map_err(|e| refused(&e))?
        };
        // What it takes until there is a connection to the cloud, the proxy's part of it included.
        note(|p| p.connect_us = Some(micros(begin).saturating_sub(p.dns_us.unwrap_or(0))));
        Ok(stream.into_inner())
    }
}

fn is_http(proxy: &Intercept) -> bool {
    matches!(proxy.uri().scheme_str(), Some("http" | "https"))
}

/// Proxies are told the port, whatever it is.
fn with_port(uri: &Uri) -> std::result::Result<Uri, Broken> {
    if uri.port().is_some() {
        return Ok(uri.clone());
    }
    let port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let whole =
        format!("{}://{}:{port}/", uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or_default());
    whole.parse().map_err(|_| Broken { kind: Kind::Config, reason: format!("{uri} has no host") })
}

/// Why a proxy does not let us through.
fn refused(error: &dyn std::error::Error) -> Broken {
    let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    Broken { kind: Kind::Connect, reason: format!("proxy: {reason}") }
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
