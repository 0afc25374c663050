//! TLS to PostgreSQL, and what an URL says beyond what the client library reads.
//!
//! `sslmode` is `disable`, `require` or `verify-full`; without it, unix sockets and loopback addresses are spoken to
//! plainly and everything else is verified in full: a database elsewhere is never reached unprotected by accident.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base::{Error, Result};
use futures::future::BoxFuture;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};

/// What an URL asks for.
#[derive(Default)]
struct Wishes {
    mode: Option<String>,
    root: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    password: Option<PathBuf>,
}

/// Reads an URL: the client library's configuration, and the TLS it is to use.
pub(crate) fn read(url: &str) -> Result<(tokio_postgres::Config, Tls)> {
    let (plain, wishes) = split(url)?;
    let mut config: tokio_postgres::Config =
        plain.parse().map_err(|_| Error::bad_request("The PostgreSQL URL is not valid."))?;
    if let Some(path) = &wishes.password {
        let password = std::fs::read_to_string(path).map_err(|e| file("passwordfile", path, &e))?;
        config.password(password.trim_end_matches(['\r', '\n']));
    }
    let mode = match wishes.mode.as_deref() {
        Some(mode) => mode,
        None if config.get_hosts().iter().all(is_here) => "disable",
        None => "verify-full",
    };
    let tls = match mode {
        "disable" => {
            config.ssl_mode(SslMode::Disable);
            Tls(None)
        }
        "require" | "verify-full" => {
            config.ssl_mode(SslMode::Require);
            Tls(Some(connector(mode == "verify-full", &wishes)?))
        }
        other => {
            return Err(Error::bad_request(format!(
                "sslmode={other} is not supported: use disable, require or verify-full."
            )));
        }
    };
    Ok((config, tls))
}

fn is_here(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        Host::Unix(_) => true,
    }
}

fn file(what: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::bad_request(format!("{what}={}: {error}", path.display()))
}

/// Takes our parameters out of an URL.
fn split(url: &str) -> Result<(String, Wishes)> {
    let (head, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut wishes, mut rest) = (Wishes::default(), Vec::new());
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let path = || Ok::<_, Error>(Some(PathBuf::from(decode(value)?)));
        match name {
            "sslmode" => wishes.mode = Some(decode(value)?),
            "sslrootcert" => wishes.root = path()?,
            "sslcert" => wishes.certificate = path()?,
            "sslkey" => wishes.key = path()?,
            "passwordfile" => wishes.password = path()?,
            _ => rest.push(pair),
        }
    }
    let plain = if rest.is_empty() { head.to_owned() } else { format!("{head}?{}", rest.join("&")) };
    Ok((plain, wishes))
}

fn decode(text: &str) -> Result<String> {
    let wrong = || Error::bad_request("The PostgreSQL URL is not valid.");
    let (mut bytes, mut out) = (text.bytes(), Vec::new());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).ok_or_else(wrong);
        let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
        out.push(u8::try_from(value).map_err(|_| wrong())?);
    }
    String::from_utf8(out).map_err(|_| wrong())
}

fn connector(full: bool, wishes: &Wishes) -> Result<tokio_rustls::TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match &wishes.root {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("sslrootcert", path)? {
                roots.add(certificate).map_err(|e| file("sslrootcert", path, &e))?;
            }
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|e| file("sslrootcert", path, &e))?;
            if full { inner } else { Arc::new(AnyName(inner)) }
        }
        None if full => {
            return Err(Error::bad_request(
                "The database is reached over the network: name the CA of its certificate with sslrootcert=FILE \
                 (or choose another sslmode).",
            ));
        }
        None => {
            tracing::warn!("sslmode=require without sslrootcert: the database's certificate is not verified");
            Arc::new(Anyone(provider.clone()))
        }
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::internal)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match (&wishes.certificate, &wishes.key) {
        (Some(certificate), Some(key)) => {
            let pem = std::fs::read(key).map_err(|e| file("sslkey", key, &e))?;
            let private = rustls_pemfile::private_key(&mut pem.as_slice())
                .map_err(|e| file("sslkey", key, &e))?
                .ok_or_else(|| file("sslkey", key, &"no key in file"))?;
            builder
                .with_client_auth_cert(certificates("sslcert", certificate)?, private)
                .map_err(|e| file("sslkey", key, &e))?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(Error::bad_request("sslcert and sslkey are given together.")),
    };
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).map_err(|e| file(what, path, &e))?;
    let found: std::result::Result<Vec<_>, _> = rustls_pemfile::certs(&mut pem.as_slice()).collect();
    let found = found.map_err(|e| file(what, path, &e))?;
    if found.is_empty() { Err(file(what, path, &"no certificate in file")) } else { Ok(found) }
}

/// `sslmode=require` with a CA: its signature counts, the name does not.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// `sslmode=require` without a CA: encrypted, to whoever answers.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// How connections are protected; `None`: not at all.
#[derive(Clone)]
pub(crate) struct Tls(Option<tokio_rustls::TlsConnector>);

/// One connection's TLS.
pub(crate) struct Connect {
    connector: Option<tokio_rustls::TlsConnector>,
    name: String,
}

/// A protected connection.
pub(crate) struct Stream<S>(tokio_rustls::client::TlsStream<S>);

impl<S> MakeTlsConnect<S> for Tls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Connect;
    type Error = std::io::Error;

    fn make_tls_connect(&mut self, name: &str) -> std::io::Result<Connect> {
        Ok(Connect { connector: self.0.clone(), name: name.to_owned() })
    }
}

impl<S> TlsConnect<S> for Connect
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Stream<S>>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connector = self.connector.ok_or_else(|| std::io::Error::other("TLS is switched off"))?;
            let name = ServerName::try_from(self.name).map_err(std::io::Error::other)?;
            connector.connect(name, stream).await.map(Stream)
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> tokio_postgres::tls::TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_elsewhere_is_verified_unless_told_otherwise() {
        for here in
            ["postgresql://u@%2Frun%2Fpg/d", "postgresql://u@127.0.0.1/d", "postgresql://u@localhost:5/d"]
        {
            assert_eq!(read(here).unwrap().0.get_ssl_mode(), SslMode::Disable, "{here}");
        }
        let error = read("postgresql://u@db.example/d").err().unwrap();
        assert!(error.public().contains("sslrootcert"), "{error}");
        let (config, _) = read("postgresql://u@db.example/d?sslmode=require&connect_timeout=3").unwrap();
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        assert!(read("postgresql://u@db.example/d?sslmode=prefer").is_err());
        assert!(read("postgresql://u@h/d?sslmode=verify-full&sslrootcert=%2Fnone").is_err());
    }

    #[test]
    fn a_password_may_come_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pw 1");
        std::fs::write(&path, "geheim\n").unwrap();
        let path = path.display().to_string().replace(' ', "%20");
        let (config, _) = read(&format!("postgresql://u@localhost/d?passwordfile={path}")).unwrap();
        assert_eq!(config.get_password(), Some(&b"geheim"[..]));
    }
}
