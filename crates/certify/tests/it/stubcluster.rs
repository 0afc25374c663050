//! A Kubernetes cluster, and what Kubernetes says of itself, as a [`World`] has them; a variant of `cluster_variants.rs`
//! breaks it in one place. Each world has an address of its own, over TLS and without: scripts that ask `api.github.com`
//! and others are led there by name.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

/// Names the stub has a certificate for.
pub const NAMES: [&str; 4] = ["127.0.0.1", "api.github.com", "kubernetes.io", "cveawg.mitre.org"];
/// Paths of what Kubernetes says of itself, as the hosts of [`NAMES`] have them.
pub const RELEASES: &str = "/repos/kubernetes/kubernetes/releases";
/// The list of vulnerabilities.
pub const FEED: &str = "/docs/reference/issues-security/official-cve-feed/index.json";
/// Where each is explained.
pub const RECORDS: &str = "/api/cve";

/// What a path answers.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    /// Not JSON: as it is.
    pub body: Value,
    /// The connection ends in the middle of the body.
    pub breaks: bool,
}

/// An answer in JSON.
pub fn ok(body: Value) -> Answer {
    Answer { status: 200, body, breaks: false }
}

/// A cluster, what is said of Kubernetes, and what sonobuoy finds.
#[derive(Clone)]
pub struct World {
    /// Answers by path.
    pub answers: BTreeMap<String, Answer>,
    /// What the cluster wants as `authorization`.
    pub authorization: String,
    /// `SERVER` and `CA` stand for the stub's.
    pub kubeconfig: Value,
    /// Files beside the kubeconfig.
    pub files: BTreeMap<String, String>,
    /// Calls of sonobuoy that end with an error: `delete`, `run`, `retrieve`, `delete-after`.
    pub fails: Vec<String>,
    /// Text of sonobuoy's results; `None`: there are none.
    pub results: Option<String>,
}

/// Stands in for sonobuoy: notes how it is called (`calls`), fails where `fails` says so, and hands out `results.yaml`; all of
/// it beside the kubeconfig it is called with.
const SONOBUOY: &str = r#"#!/bin/sh
[ "$1" = --kubeconfig ] || exit 9
here=$(dirname "$2"); shift 2
what=$1
[ "$what" = delete ] && [ -e "$here/ran" ] && what=delete-after
printf '[%s]' "$@" >> "$here/calls"; echo >> "$here/calls"
case $what in run) touch "$here/ran";; delete-after) rm "$here/ran";; esac
if grep -qx "$what" "$here/fails"; then echo "$what fails" >&2; exit 1; fi
[ "$what" = retrieve ] || exit 0
mkdir -p "$3/plugins/e2e"
if [ -e "$here/results.yaml" ]; then cp "$here/results.yaml" "$3/plugins/e2e/sonobuoy_results.yaml"; fi
"#;

/// Worlds that are served.
pub struct Stub {
    dir: PathBuf,
    ports: BTreeMap<String, u16>,
}

impl Stub {
    /// Serves the worlds, by name; what belongs to each is in a directory of its name in `dir`, and `ca.pem` and
    /// `bin/sonobuoy` beside.
    pub async fn serve(dir: &Path, worlds: BTreeMap<String, World>) -> Stub {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(NAMES.map(str::to_owned)).unwrap();
        let ca = made.cert.pem();
        std::fs::write(dir.join("ca.pem"), &ca).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        std::fs::create_dir(dir.join("bin")).unwrap();
        let sonobuoy = dir.join("bin/sonobuoy");
        std::fs::write(&sonobuoy, SONOBUOY).unwrap();
        std::fs::set_permissions(&sonobuoy, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut ports = BTreeMap::new();
        for (name, world) in worlds {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            write(&dir.join(&name), &world, port, &ca);
            tokio::spawn(accept(listener, acceptor.clone(), Arc::new(world)));
            ports.insert(name, port);
        }
        Stub { dir: dir.to_owned(), ports }
    }

    /// Where a world answers.
    pub fn port(&self, world: &str) -> u16 {
        self.ports[world]
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self, world: &str) -> PathBuf {
        self.dir.join(world).join("kubeconfig.yaml")
    }

    /// The stand-in for sonobuoy.
    pub fn sonobuoy(&self) -> PathBuf {
        self.dir.join("bin/sonobuoy")
    }
}

fn write(dir: &Path, world: &World, port: u16, ca: &str) {
    use base64::Engine;
    std::fs::create_dir(dir).unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let encoded = base64::prelude::BASE64_STANDARD.encode(ca);
    let kubeconfig = world.kubeconfig.to_string().replace("\"CA\"", &json!(encoded).to_string());
    put("kubeconfig.yaml", &kubeconfig.replace("SERVER", &format!("https://127.0.0.1:{port}")));
    put("ca.pem", ca);
    put("fails", &world.fails.iter().map(|f| format!("{f}\n")).collect::<String>());
    if let Some(results) = &world.results {
        put("results.yaml", results);
    }
    for (name, text) in &world.files {
        put(name, text);
    }
}

async fn accept(listener: tokio::net::TcpListener, acceptor: TlsAcceptor, world: Arc<World>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, world) = (acceptor.clone(), world.clone());
        tokio::spawn(async move {
            let service = tower_service(world);
            let mut first = [0];
            // A handshake begins with 22, a request with a letter.
            if stream.peek(&mut first).await.is_ok() && first == [22] {
                if let Ok(stream) = acceptor.accept(stream).await {
                    connection(TokioIo::new(stream), service).await;
                }
            } else {
                connection(TokioIo::new(stream), service).await;
            }
        });
    }
}

fn tower_service(world: Arc<World>) -> TowerToHyperService<axum::Router> {
    let answer = move |request: Request<Body>| {
        let world = world.clone();
        async move {
            let (head, body) = request.into_parts();
            // What is not read is a connection that ends while the client still writes.
            let _ = axum::body::to_bytes(body, 1 << 20).await;
            world.answer(&head)
        }
    };
    TowerToHyperService::new(axum::Router::new().fallback(answer))
}

async fn connection<I>(io: TokioIo<I>, service: TowerToHyperService<axum::Router>)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    // Who goes away in the middle is no fault of the stub.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
}

impl World {
    fn answer(&self, request: &Parts) -> Response<Body> {
        // Clients of Kubernetes ask for `/version/`.
        let path = request.uri.path().trim_end_matches('/');
        let of_kubernetes = [RELEASES, FEED, RECORDS].iter().any(|p| path.starts_with(p));
        let said = request.headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let answer = match self.answers.get(path) {
            _ if !of_kubernetes && said != self.authorization => {
                Answer { status: 401, body: json!({"kind": "Status", "code": 401}), breaks: false }
            }
            Some(answer) => answer.clone(),
            None => Answer { status: 404, body: json!({"error": "there is no such thing"}), breaks: false },
        };
        let (kind, text) = match &answer.body {
            Value::String(text) => ("text/html", text.clone()),
            body => ("application/json", body.to_string()),
        };
        let response = Response::builder().status(answer.status).header("content-type", kind);
        if answer.breaks {
            let half = axum::body::Bytes::from(text.as_bytes()[..text.len() / 2].to_vec());
            let parts = [Ok(half), Err(std::io::Error::other("the end"))];
            return response.body(Body::from_stream(futures::stream::iter(parts))).unwrap();
        }
        response.body(Body::from(text)).unwrap()
    }
}
