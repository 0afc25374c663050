//! The client against a server that notes what it is told.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request as Incoming, Response};
use osclient::{Cloud, Kind, Method, Options, Request, Session};
use serde_json::{Value, json};

/// A call that came.
#[derive(Debug, Clone)]
struct Seen {
    what: String,
    headers: HeaderMap,
    body: String,
}

type Answers = VecDeque<(u16, Value)>;

/// Answers by `METHOD path?query`: a queue each, the last for ever.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    answers: Vec<(String, Answers)>,
    seen: Vec<Seen>,
}

impl Server {
    fn on(&self, what: &str, answers: impl IntoIterator<Item = (u16, Value)>) -> &Self {
        self.0.lock().unwrap().answers.push((what.into(), answers.into_iter().collect()));
        self
    }

    fn seen(&self, what: &str) -> Vec<Seen> {
        self.0.lock().unwrap().seen.iter().filter(|s| s.what.starts_with(what)).cloned().collect()
    }

    async fn start(&self) -> String {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        base
    }
}

async fn answer(State(server): State<Server>, request: Incoming<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let what = format!("{} {}", parts.method, parts.uri);
    let body = String::from_utf8(bytes.to_vec()).unwrap();
    let mut state = server.0.lock().unwrap();
    state.seen.push(Seen { what: what.clone(), headers: parts.headers, body });
    let answers = state.answers.iter_mut().find(|(w, _)| *w == what).map(|(_, answers)| answers);
    let (status, value) = match answers {
        Some(answers) if answers.len() > 1 => answers.pop_front().unwrap(),
        Some(answers) => answers.front().cloned().unwrap(),
        None => (404, json!({"error": {"message": format!("{what} is not expected")}})),
    };
    let response = Response::builder()
        .status(status)
        .header("x-openstack-request-id", "req-1")
        .header("retry-after", "0");
    response.header("x-subject-token", "secret-token").body(Body::from(value.to_string())).unwrap()
}

fn token(base: &str) -> Value {
    let endpoint = |kind: &str, path: &str| {
        json!({"type": kind, "name": kind, "endpoints": [
        {"interface": "public", "region": "R", "region_id": "R", "url": format!("{base}{path}")}]})
    };
    json!({"token": {"roles": [{"name": "member"}], "user": {"id": "u"}, "project": {"id": "p", "name": "project"},
        "expires_at": "2099-01-01T00:00:00.000000Z",
        "catalog": [endpoint("compute", "/compute/v2.1"), endpoint("network", "/network"), endpoint("volumev3", "/volume/v3/p")]}})
}

fn cloud(base: &str, kind: &str, auth: &[(&str, &str)]) -> Cloud {
    let mut all = vec![("auth_url".to_owned(), format!("{base}/identity"))];
    all.extend(auth.iter().map(|(k, v)| ((*k).to_owned(), (*v).replace("BASE", base))));
    Cloud {
        name: "c".into(),
        auth_type: kind.into(),
        auth: all.into_iter().collect(),
        interface: "public".into(),
        region: Some("R".into()),
        ..Cloud::default()
    }
}

const LOGIN: &str = "POST /identity/v3/auth/tokens";

async fn logged_in(kind: &str, auth: &[(&str, &str)]) -> (Server, Value) {
    let server = Server::default();
    let base = server.start().await;
    server.on(LOGIN, [(201, token(&base))]);
    server.on("POST /sso/token", [(200, json!({"access_token": "access"}))]);
    server.on("GET /sso", [(200, json!({"token_endpoint": format!("{base}/sso/token")}))]);
    server.on(
        "POST /identity/v3/OS-FEDERATION/identity_providers/idp/protocols/openid/auth",
        [(201, token(&base))],
    );
    let session = Session::connect(cloud(&base, kind, auth), Options::default()).await.unwrap();
    assert_eq!(session.token().roles, ["member"]);
    let body = server.seen(LOGIN).remove(0).body;
    (server, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn logins_say_what_keystone_expects() {
    let user = [
        ("username", "u"),
        ("password", "p"),
        ("user_domain_name", "D"),
        ("project_name", "q"),
        ("project_domain_id", "e"),
    ];
    let (_, body) = logged_in("password", &user).await;
    assert_eq!(
        body["auth"]["identity"]["password"]["user"],
        json!({"name": "u", "password": "p", "domain": {"name": "D"}})
    );
    assert_eq!(body["auth"]["scope"], json!({"project": {"name": "q", "domain": {"id": "e"}}}));
    let credential = [("application_credential_id", "i"), ("application_credential_secret", "s")];
    let (_, body) = logged_in("v3applicationcredential", &credential).await;
    assert_eq!(body["auth"]["identity"]["application_credential"], json!({"id": "i", "secret": "s"}));
    assert!(body["auth"].get("scope").is_none());
    let (_, body) = logged_in("token", &[("token", "t"), ("project_id", "p")]).await;
    assert_eq!(body["auth"]["identity"]["token"]["id"], "t");
    let (_, body) =
        logged_in("v3password", &[("user_id", "i"), ("password", "p"), ("system_scope", "all")]).await;
    assert_eq!(body["auth"]["scope"], json!({"system": {"all": true}}));
}

#[tokio::test]
async fn identity_providers_vouch() {
    let common = [
        ("identity_provider", "idp"),
        ("protocol", "openid"),
        ("client_id", "c"),
        ("client_secret", "s"),
        ("discovery_endpoint", "BASE/sso"),
        ("project_id", "p"),
    ];
    let (server, body) = logged_in("v3oidcclientcredentials", &common).await;
    assert!(server.seen("POST /sso/token")[0].body.contains("grant_type=client_credentials"));
    let federation = server.seen("POST /identity/v3/OS-FEDERATION");
    assert_eq!(federation[0].headers["authorization"], "Bearer access");
    assert_eq!(body["auth"]["identity"]["token"]["id"], "secret-token");
    let mut user = common.to_vec();
    user.extend([("username", "a b"), ("password", "p&q")]);
    let (server, _) = logged_in("v3oidcpassword", &user).await;
    assert!(server.seen("POST /sso/token")[0].body.contains("username=a%20b&password=p%26q"));
}

async fn session(server: &Server, options: Options) -> (Session, String) {
    let base = server.start().await;
    server.on(LOGIN, [(201, token(&base))]);
    let user = [("username", "u"), ("password", "geheim"), ("project_name", "q")];
    (Session::connect(cloud(&base, "password", &user), options).await.unwrap(), base)
}

#[tokio::test]
async fn lists_are_read_to_their_end() {
    let server = Server::default();
    let (session, base) = session(&server, Options::default()).await;
    let page = |id: &str| json!([{ "id": id }]);
    // Neutron's links with the host of a proxy, Glance's paths, Nova's links.
    server.on("GET /network/v2.0/ports", [(200, json!({"ports": page("a"), "ports_links": [{"rel": "next", "href": "https://inner/network/v2.0/ports?marker=a"}]}))]);
    server.on(
        "GET /network/v2.0/ports?marker=a",
        [(200, json!({"ports": page("b"), "ports_links": [{"rel": "previous", "href": "x"}]}))],
    );
    let network = session.service("network", "v2.0").unwrap();
    assert_eq!(network.list("/ports", "ports").await.unwrap().len(), 2);
    server.on(
        "GET /network/v2.0/images",
        [(200, json!({"images": page("a"), "next": "/v2.0/images?marker=a"}))],
    );
    server.on("GET /network/v2.0/images?marker=a", [(200, json!({"images": []}))]);
    assert_eq!(network.list("/images", "images").await.unwrap().len(), 1);
    let href = format!("{base}/compute/v2.1/servers/detail?marker=a");
    server.on(
        "GET /compute/v2.1/servers/detail",
        [(200, json!({"servers": page("a"), "servers_links": [{"rel": "next", "href": href}]}))],
    );
    server.on("GET /compute/v2.1/servers/detail?marker=a", [(200, json!({"servers": page("b")}))]);
    let compute = session.service("compute", "v2.1").unwrap();
    assert_eq!(compute.list("/servers/detail", "servers").await.unwrap().len(), 2);
    assert_eq!(network.list("/ports", "networks").await.unwrap_err().kind, Kind::Protocol);
}

#[tokio::test]
async fn microversions_are_agreed_on() {
    let server = Server::default();
    let (session, _) = session(&server, Options::default()).await;
    server.on(
        "GET /compute/v2.1/",
        [(200, json!({"version": {"id": "v2.1", "version": "2.79", "min_version": "2.1"}}))],
    );
    server.on(
        "GET /volume/v3/",
        [(300, json!({"versions": [{"id": "v3.0", "version": "3.60", "min_version": "3.0"}]}))],
    );
    server.on("GET /compute/v2.1/flavors", [(200, json!({}))]);
    server.on("GET /volume/v3/p/types", [(200, json!({}))]);
    let mut compute = session.service("compute", "v2.1").unwrap();
    compute.discover().await.unwrap();
    assert!(compute.offers("2.61") && !compute.offers("2.96"));
    compute.at("2.96").get("/flavors").await.unwrap();
    assert_eq!(server.seen("GET /compute/v2.1/flavors")[0].headers["openstack-api-version"], "compute 2.79");
    let mut volume = session.service("block-storage", "v3").unwrap();
    volume.discover().await.unwrap();
    volume.at("3.40").get("/types").await.unwrap();
    assert_eq!(server.seen("GET /volume/v3/p/types")[0].headers["openstack-api-version"], "volume 3.40");
}

#[tokio::test]
async fn what_stutters_is_tried_again_and_what_fails_is_told() {
    let server = Server::default();
    let (session, _) = session(&server, Options { retries: 2, timeout: Duration::from_secs(5) }).await;
    let network = session.service("network", "v2.0").unwrap();
    server.on("GET /network/v2.0/a", [(503, json!({})), (503, json!({})), (200, json!({"a": 1}))]);
    assert_eq!(network.get("/a").await.unwrap()["a"], 1);
    server.on("POST /network/v2.0/a", [(503, json!({}))]);
    assert_eq!(network.post("/a", json!({})).await.unwrap_err().status(), Some(503));
    assert_eq!(server.seen("POST /network/v2.0/a").len(), 1, "a POST is not repeated");
    server.on("GET /network/v2.0/old", [(401, json!({})), (200, json!({}))]);
    network.get("/old").await.unwrap();
    assert_eq!(server.seen(LOGIN).len(), 2, "a token that ran out is replaced");
    server.on("GET /network/v2.0/b", [(409, json!({"NeutronError": {"message": "in use"}}))]);
    let error = network.get("/b?secret=x").await.unwrap_err();
    assert_eq!(error.status(), Some(404), "{error}");
    let error = network.get("/b").await.unwrap_err().to_string();
    assert!(error.contains("409 in use") && error.contains("req-1"), "{error}");
    assert!(network.delete("/gone").await.is_ok());
    let error = session.service("dns", "v2").map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::NoEndpoint);
    let calls = session.calls();
    assert!(calls.iter().all(|c| !c.url.contains('?') && c.total_us > 0) && calls.len() > 8);
    let refused = Request::new(Method::GET, "http://127.0.0.1:1/").anonymous();
    assert_eq!(session.send(refused).await.unwrap_err().kind, Kind::Connect);
}

#[tokio::test]
async fn a_refused_login_tells_no_secret() {
    let server = Server::default();
    let base = server.start().await;
    server.on(LOGIN, [(401, json!({"error": {"message": "geheim"}}))]);
    let user = [("username", "u"), ("password", "geheim"), ("project_name", "q")];
    let error =
        Session::connect(cloud(&base, "password", &user), Options::default()).await.map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Auth);
    assert!(!format!("{error} {error:?}").contains("geheim"));
    let error =
        Session::connect(cloud(&base, "v3kerberos", &user), Options::default()).await.map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Config);
}
