//! Clouds behind proxies: HTTP with CONNECT, the same over TLS, SOCKS 5, and targets that need none.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use parking_lot::Mutex;
use reqwest::Method;
use reqwest::header::HeaderMap;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::transport::{Answer, Outgoing, Transport};
use crate::{Cloud, Error, Kind, Options};

/// A name that only the proxies know.
const NAME: &str = "cloud.invalid";

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A server or proxy of the test: what it heard.
#[derive(Clone)]
struct Server {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
}

struct Lab {
    dir: tempfile::TempDir,
    acceptor: TlsAcceptor,
}

impl Lab {
    fn new() -> Lab {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed([NAME.to_owned(), "localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        Lab { dir, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    /// Serves with `answer`, over TLS or without.
    async fn serve<R>(
        &self,
        tls: bool,
        answer: impl Fn(Box<dyn Io>, Server) -> R + Send + Sync + 'static,
    ) -> Server
    where
        R: Future<Output = std::io::Result<()>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server { port: listener.local_addr().unwrap().port(), heard: Arc::default() };
        let (acceptor, us, answer) = (self.acceptor.clone(), server.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, us, answer) = (acceptor.clone(), us.clone(), answer.clone());
                tokio::spawn(async move {
                    let stream: Box<dyn Io> = match tls {
                        false => Box::new(stream),
                        true => Box::new(acceptor.accept(stream).await?),
                    };
                    answer(stream, us).await
                });
            }
        });
        server
    }

    fn transport(&self, proxies: Matcher) -> Transport {
        let cloud = Cloud { cacert: Some(self.dir.path().join("ca.pem")), verify: true, ..Cloud::default() };
        let options = Options { retries: 0, timeout: Duration::from_secs(10) };
        Transport::through(&cloud, options, proxies).unwrap()
    }
}

async fn get(transport: &Transport, url: &str) -> Result<Answer, Error> {
    transport.send(Outgoing { method: Method::GET, url, headers: HeaderMap::new(), body: None }).await
}

async fn head(stream: &mut Box<dyn Io>) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head).unwrap())
}

/// A cloud: says which path it was asked for.
async fn cloud(mut stream: Box<dyn Io>, us: Server) -> std::io::Result<()> {
    let head = head(&mut stream).await?;
    let path = head.split(' ').nth(1).unwrap().to_owned();
    us.heard.lock().push(head);
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{path}", path.len());
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// A proxy that knows where the cloud is.
async fn http_proxy(mut stream: Box<dyn Io>, us: Server) -> std::io::Result<()> {
    let head = head(&mut stream).await?;
    us.heard.lock().push(head.clone());
    let target = head.split(' ').nth(1).unwrap().to_owned();
    if !head.contains("Basic dXNlcjpwQHNz") && !head.contains("proxy-authorization: Basic dXNlcjpwQHNz") {
        return stream.write_all(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n").await;
    }
    if !head.starts_with("CONNECT ") {
        return cloud(Box::new(Replayed(head.into_bytes(), stream)), us).await;
    }
    let port = target.rsplit(':').next().unwrap().parse().unwrap();
    let mut there = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut stream, &mut there).await.map(drop)
}

/// What was read is read again.
struct Replayed(Vec<u8>, Box<dyn Io>);

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let some = self.0.len().min(buf.remaining());
        let part: Vec<u8> = self.0.drain(..some).collect();
        buf.put_slice(&part);
        std::task::Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.1).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.1).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.1).poll_shutdown(cx)
    }
}

/// SOCKS 5 (RFC 1928, 1929) for names, with user and password.
async fn socks_proxy(mut stream: Box<dyn Io>, us: Server) -> std::io::Result<()> {
    async fn bytes(stream: &mut Box<dyn Io>, count: usize) -> std::io::Result<Vec<u8>> {
        let mut all = vec![0; count];
        stream.read_exact(&mut all).await?;
        Ok(all)
    }
    async fn text(stream: &mut Box<dyn Io>) -> std::io::Result<String> {
        let count = stream.read_u8().await?.into();
        Ok(String::from_utf8(bytes(stream, count).await?).unwrap())
    }
    let hello = bytes(&mut stream, 2).await?;
    let methods = bytes(&mut stream, hello[1].into()).await?;
    assert!(hello[0] == 5 && methods.contains(&2));
    stream.write_all(&[5, 2]).await?;
    assert_eq!(stream.read_u8().await?, 1);
    let who = (text(&mut stream).await?, text(&mut stream).await?);
    stream.write_all(&[1, u8::from(who != ("user".to_owned(), "p@ss".to_owned()))]).await?;
    assert_eq!(bytes(&mut stream, 4).await?, [5, 1, 0, 3]);
    let name = text(&mut stream).await?;
    let port = stream.read_u16().await?;
    us.heard.lock().push(format!("{name}:{port}"));
    let mut there = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    copy_bidirectional(&mut stream, &mut there).await.map(drop)
}

fn matcher(proxy: &str) -> Matcher {
    Matcher::builder().all(proxy.to_owned()).no("localhost, 10.0.0.0/8").build()
}

#[tokio::test]
async fn proxies_lead_to_clouds_that_only_they_know() {
    let lab = Lab::new();
    let (secure, plain) = (lab.serve(true, cloud).await, lab.serve(false, cloud).await);
    let http = lab.serve(false, http_proxy).await;
    let https = lab.serve(true, http_proxy).await;
    let socks = lab.serve(false, socks_proxy).await;
    for (scheme, host, proxy) in [
        ("http", "127.0.0.1", &http),
        ("https", "localhost", &https),
        ("socks5", "127.0.0.1", &socks),
        ("socks5h", "127.0.0.1", &socks),
    ] {
        let transport = lab.transport(matcher(&format!("{scheme}://user:p%40ss@{host}:{}", proxy.port)));
        let answer = get(&transport, &format!("https://{NAME}:{}/v3", secure.port)).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body), (200, b"/v3".to_vec()), "{scheme}");
        let heard = proxy.heard.lock().pop().unwrap();
        assert!(heard.contains(&format!("{NAME}:{}", secure.port)) && !heard.contains("/v3"), "{heard}");
        // The proxy's password is not the cloud's business.
        let heard = secure.heard.lock().pop().unwrap().to_lowercase();
        assert!(!heard.contains("proxy-authorization"), "{heard}");
        let call = transport.calls().pop().unwrap();
        assert!(call.connect_us.is_some() && call.tls_us.is_some() && call.total_us > 0, "{call:?}");

        // Without TLS: a proxy for HTTP is asked for the whole URL.
        let answer = get(&transport, &format!("http://{NAME}:{}/v3", plain.port)).await.unwrap();
        let whole = format!("http://{NAME}:{}/v3", plain.port);
        let expected = if scheme.starts_with("http") { whole.as_str() } else { "/v3" };
        assert_eq!(String::from_utf8(answer.body).unwrap(), expected, "{scheme}");
        // What NO_PROXY names is reached without.
        proxy.heard.lock().clear();
        let answer = get(&transport, &format!("https://localhost:{}/v2", secure.port)).await.unwrap();
        assert_eq!((answer.body, proxy.heard.lock().len()), (b"/v2".to_vec(), 0), "{scheme}");
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_is_said_to_be_the_reason() {
    let lab = Lab::new();
    let http = lab.serve(false, http_proxy).await;
    let url = format!("https://{NAME}:1/v3");
    let refusal = |proxy: String| {
        let transport = lab.transport(matcher(&proxy));
        let url = url.clone();
        async move { get(&transport, &url).await.map(drop).unwrap_err() }
    };
    for (proxy, kind) in [
        (format!("http://user:wrong@127.0.0.1:{}", http.port), Kind::Connect),
        ("http://127.0.0.1:1".into(), Kind::Connect),
        ("socks5://127.0.0.1:1".into(), Kind::Connect),
        ("http://proxy.invalid:1".into(), Kind::Name),
        ("socks4://127.0.0.1:1".into(), Kind::Config),
    ] {
        let error = refusal(proxy.clone()).await;
        assert_eq!(error.kind, kind, "{proxy}: {error}");
        let told = error.to_string();
        assert!(told.contains("prox") && !told.contains("wrong"), "{proxy}: {told}");
    }
}
