//! The account of a service's tests: every operation called with success, by a foreign tenant, and malformed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use axum::http::Method;
use serde_json::{Value, json};

use super::call::{Answer, Call, Client};
use super::mutate::Shape;
use crate::dialect::Envelope;
use crate::op::{BodyKind, TokenNeed};
use crate::{Dialect, Mv, Op, OpInfo};

/// The account of a service's tests.
///
/// ```ignore
/// let mut suite = Suite::new(&dialect::NEUTRON, router, &network::ops());
/// let own = suite.client().with_token("member:p1");
/// let made = own.post("/v2.0/networks", json!({"network": {"name": "n"}})).await.expect(201);
/// let path = format!("/v2.0/networks/{}", made.text_at("/network/id"));
/// suite.client().foreign("member:p2").get(&path).await.expect(404);
/// suite.sample("POST /v2.0/networks", json!({"network": {"name": "n"}}));
/// suite.check().await.assert_complete();
/// ```
#[derive(Debug)]
pub struct Suite {
    dialect: &'static Dialect,
    client: Client,
    ops: Vec<OpInfo>,
    token: String,
    tokens: BTreeMap<String, String>,
    samples: BTreeMap<String, Value>,
    paged: BTreeSet<String>,
    excused: BTreeMap<(&'static str, String), String>,
    watched: Vec<(String, String)>,
    limit: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// The service's type.
    pub service: String,
    /// Operations.
    pub operations: usize,
    /// Malformed requests sent.
    pub malformed: usize,
    /// Requests with a missing or forged token sent.
    pub unauthenticated: usize,
    /// What was answered wrongly.
    pub failures: Vec<String>,
    /// Operations that no test called with success.
    pub without_happy: Vec<String>,
    /// Operations with an id in their path that no test called as a foreign tenant.
    pub without_foreign: Vec<String>,
    /// Operations to which nothing malformed could be sent.
    pub without_bad: Vec<String>,
}

impl Report {
    /// Panics unless everything was answered rightly and every operation is covered; prints the figures.
    ///
    /// # Panics
    /// With the list of what is wrong or missing.
    #[track_caller]
    pub fn assert_complete(&self) {
        println!("{self}");
        let clean = self.failures.is_empty()
            && self.without_happy.is_empty()
            && self.without_foreign.is_empty()
            && self.without_bad.is_empty();
        assert!(clean, "{self}");
    }

    /// Panics unless everything was answered rightly; what is not covered is only printed.
    ///
    /// # Panics
    /// With the list of what was answered wrongly.
    #[track_caller]
    pub fn assert_answers(&self) {
        println!("{self}");
        assert!(self.failures.is_empty(), "{self}");
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{}: {} operations, {} malformed requests, {} without a valid token, {} wrong answers",
            self.service,
            self.operations,
            self.malformed,
            self.unauthenticated,
            self.failures.len()
        )?;
        for (title, list) in [
            ("wrong answers", &self.failures),
            ("never called with success", &self.without_happy),
            ("never called by a foreign tenant", &self.without_foreign),
            ("no malformed request possible", &self.without_bad),
        ] {
            if !list.is_empty() {
                writeln!(f, "  {title}:")?;
                for line in list {
                    writeln!(f, "    {line}")?;
                }
            }
        }
        Ok(())
    }
}

impl Suite {
    /// An account of `ops`, served by `router` with a [`super::FakeAuthenticator`].
    pub fn new<S>(dialect: &'static Dialect, router: axum::Router, ops: &[Op<S>]) -> Self {
        let mut client = Client::new(router);
        if dialect.envelope == Envelope::Glance {
            client = client.with_header("accept", "application/json");
        }
        Suite {
            dialect,
            client,
            ops: ops.iter().map(|op| op.info.clone()).collect(),
            token: "admin".into(),
            tokens: BTreeMap::new(),
            samples: BTreeMap::new(),
            paged: BTreeSet::new(),
            excused: BTreeMap::new(),
            watched: Vec::new(),
            limit: crate::Settings::default().body_limit,
        }
    }

    /// A client whose calls count.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The token malformed requests are sent with; `admin` unless set.
    pub fn token(&mut self, token: &str) -> &mut Self {
        token.clone_into(&mut self.token);
        self
    }

    /// The token for one operation's malformed requests.
    pub fn token_for(&mut self, op: &str, token: &str) -> &mut Self {
        self.tokens.insert(self.known(op), token.to_owned());
        self
    }

    /// A body the operation takes (for an action: what is under its key). Malformed ones are made from it, and must
    /// then be refused with a message that names the field. Without it one is made up from the schema.
    pub fn sample(&mut self, op: &str, body: Value) -> &mut Self {
        self.samples.insert(self.known(op), body);
        self
    }

    /// The operation has pages: it must refuse malformed `limit`s.
    pub fn paged(&mut self, ops: &[&str]) -> &mut Self {
        for op in ops {
            let op = self.known(op);
            self.paged.insert(op);
        }
        self
    }

    /// What `GET path` answers to `token` must be the same after all malformed requests as before: nothing was written.
    pub fn watch(&mut self, token: &str, path: &str) -> &mut Self {
        self.watched.push((token.to_owned(), path.to_owned()));
        self
    }

    async fn snapshot(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (token, path) in &self.watched {
            all.push(self.client.unseen().with_token(token).get(path).await.text());
        }
        all
    }

    /// The service's own limit of bodies, if it is not the default.
    pub fn body_limit(&mut self, bytes: usize) -> &mut Self {
        self.limit = bytes;
        self
    }

    /// The operation cannot be called with success in this test; say why.
    pub fn excuse_happy(&mut self, op: &str, why: &str) -> &mut Self {
        self.excused.insert(("happy", self.known(op)), why.to_owned());
        self
    }

    /// The operation has no foreign-tenant case although its path has a parameter (flavors, catalog, …); say why.
    pub fn excuse_foreign(&mut self, op: &str, why: &str) -> &mut Self {
        self.excused.insert(("foreign", self.known(op)), why.to_owned());
        self
    }

    /// The operation takes any text in its path (a project's quota, a new trait's name); say why.
    pub fn excuse_path(&mut self, op: &str, why: &str) -> &mut Self {
        self.excused.insert(("path", self.known(op)), why.to_owned());
        self
    }

    fn known(&self, op: &str) -> String {
        assert!(self.ops.iter().any(|o| o.id == op), "there is no operation '{op}'");
        op.to_owned()
    }

    fn excused(&self, what: &'static str, op: &str) -> bool {
        self.excused.contains_key(&(what, op.to_owned()))
    }

    /// Sends what can be sent without knowing the service, and draws up the account.
    pub async fn check(&self) -> Report {
        let mut report = Report {
            service: self.dialect.service_type.to_owned(),
            operations: self.ops.len(),
            ..Report::default()
        };
        let before_all = self.snapshot().await;
        for op in &self.ops {
            self.tokens(op, &mut report).await;
            let before = report.malformed;
            self.paths(op, &mut report).await;
            self.queries(op, &mut report).await;
            if op.body == BodyKind::Json {
                self.encodings(op, &mut report).await;
                self.shapes(op, &mut report).await;
            }
            if report.malformed == before {
                report.without_bad.push(op.id.clone());
            }
        }
        for ((_, path), (before, after)) in
            self.watched.iter().zip(before_all.iter().zip(self.snapshot().await))
        {
            if *before != after {
                report.failures.push(format!("a malformed request changed {path}: {before} became {after}"));
            }
        }
        let seen = self.client.seen();
        for op in &self.ops {
            let of = || seen.iter().filter(|s| s.op == op.id);
            if !of().any(|s| s.status < 400) && !self.excused("happy", &op.id) {
                report.without_happy.push(op.id.clone());
            }
            let owed = op.path.contains('{') && op.token == TokenNeed::Required;
            if owed && !of().any(|s| s.foreign) && !self.excused("foreign", &op.id) {
                report.without_foreign.push(op.id.clone());
            }
        }
        report
    }

    /// A call of `op` with `fill` for its path parameters, as the operation's usual caller and microversion.
    fn call(&self, op: &OpInfo, fill: &str, query: &str) -> Call {
        let mut path = String::new();
        for part in op.path.split('/').skip(1) {
            path.push('/');
            path.push_str(if part.starts_with('{') { fill } else { part });
        }
        if path.is_empty() {
            path.push('/');
        }
        let _ = write!(path, "{query}");
        let token = self.tokens.get(&op.id).unwrap_or(&self.token);
        let mut client = self.client.unseen().with_token(token);
        if let Some(range) = self.dialect.microversions {
            let mv = if op.until == Mv::MAX { range.max } else { op.until };
            client = client.at(&format!("{} {mv}", range.service));
        }
        client.call(op.method.clone(), &path)
    }

    async fn tokens(&self, op: &OpInfo, report: &mut Report) {
        if op.token != TokenNeed::Required {
            return;
        }
        for token in [None, Some("forged"), Some(""), Some("gAAAAABtruncated")] {
            let answer = self.call(op, FILL, "").token(token).send().await;
            report.unauthenticated += 1;
            self.judge(op, &format!("token {token:?}"), &answer, |s| s == 401, report);
        }
    }

    async fn paths(&self, op: &OpInfo, report: &mut Report) {
        if !op.path.contains('{') || op.path.contains("{*") {
            return;
        }
        let long = "x".repeat(300);
        let lenient = self.excused("path", &op.id);
        for fill in
            ["not-an-id", "%00", "%ff", "..%2f..%2fetc", "%F0%9F%92%A9", "-1", "'%20OR%201=1--", &long]
        {
            let body = self.body_for(op);
            let mut call = self.call(op, fill, "");
            if let Some(body) = &body {
                call = call.json(body);
            }
            let answer = call.send().await;
            report.malformed += 1;
            let central = fill == "%00" || fill == "%ff";
            let fine = |s: u16| (400..500).contains(&s) || (lenient && !central && s < 400);
            let shown = if fill.len() > 50 { "300 characters" } else { fill };
            self.judge(op, &format!("path parameter {shown}"), &answer, fine, report);
        }
    }

    async fn queries(&self, op: &OpInfo, report: &mut Report) {
        let good = self.body_for(op);
        for query in ["?limit=%ff", "?marker=%00", "?%ff=1"] {
            let mut call = self.call(op, FILL, query);
            if let Some(good) = &good {
                call = call.json(good);
            }
            let answer = call.send().await;
            report.malformed += 1;
            self.judge(op, query, &answer, |s| (400..500).contains(&s), report);
        }
        if op.method != Method::GET || op.token == TokenNeed::Never {
            return;
        }
        let paged = self.paged.contains(&op.id);
        let long = format!("?marker={}", "x".repeat(300));
        for query in ["?limit=-1", "?limit=many", "?limit=99999999999999999999", "?limit=1.5", &long] {
            let answer = self.call(op, FILL, query).send().await;
            report.malformed += 1;
            let fine = |s: u16| (400..500).contains(&s) || (!paged && s < 400);
            self.judge(op, query.get(..20).unwrap_or(query), &answer, fine, report);
        }
    }

    /// A body the operation should take, wrapped for an action.
    fn body_for(&self, op: &OpInfo) -> Option<Value> {
        (op.body == BodyKind::Json).then(|| {
            let inner = self.samples.get(&op.id).cloned().unwrap_or_else(|| {
                let shape = Shape::of(op.schema);
                shape.good(shape.root(), 0)
            });
            wrap(op, inner)
        })
    }

    async fn encodings(&self, op: &OpInfo, report: &mut Report) {
        let good = self.body_for(op).unwrap_or(Value::Null).to_string();
        let nested = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        let limit = op.body_limit.unwrap_or(self.limit);
        let huge = format!("{{\"x\":\"{}\"}}", "x".repeat(limit));
        let lone = "{\"x\":\"\\ud800\"}";
        for (what, body) in [
            ("half an object", b"{\"a\":".to_vec()),
            ("no JSON", b"nonsense".to_vec()),
            ("something after the body", format!("{good} x").into_bytes()),
            ("not UTF-8", b"{\"name\":\"\xff\xfe\"}".to_vec()),
            ("single quotes", b"{'name': 'x'}".to_vec()),
            ("nested deep", nested.into_bytes()),
            ("a huge number", b"{\"x\": 1e999}".to_vec()),
            ("half a surrogate pair", lone.as_bytes().to_vec()),
        ] {
            let media = op.consumes.first().copied().unwrap_or("application/json");
            let answer = self.call(op, FILL, "").header("content-type", media).bytes(body).send().await;
            report.malformed += 1;
            self.judge(op, what, &answer, |s| s == 400, report);
        }
        let answer =
            self.call(op, FILL, "").header("content-type", "application/json").bytes(huge).send().await;
        report.malformed += 1;
        self.judge(op, "a huge body", &answer, |s| s == 413 || s == 415, report);
        for media in ["text/plain", "application/xml", "application/x-www-form-urlencoded"] {
            let answer =
                self.call(op, FILL, "").header("content-type", media).bytes(good.clone()).send().await;
            report.malformed += 1;
            self.judge(op, media, &answer, |s| s == 415, report);
        }
    }

    async fn shapes(&self, op: &OpInfo, report: &mut Report) {
        let shape = Shape::of(op.schema);
        let sample = self.samples.get(&op.id);
        let base = sample.cloned().unwrap_or_else(|| shape.good(shape.root(), 0));
        let media = op.consumes.first().copied().unwrap_or("application/json");
        for bad in shape.bad(&base) {
            let body = wrap(op, bad.body.clone());
            let call = self.call(op, FILL, "").json(&body).header("content-type", media);
            let answer = call.send().await;
            report.malformed += 1;
            self.judge(op, &bad.what, &answer, |s| s == 400, report);
            let text = answer.text();
            let named = bad.fields.is_empty() || bad.fields.iter().any(|f| text.contains(f.as_str()));
            if sample.is_some() && answer.status == 400 && !named {
                report.failures.push(format!("{}: {}: does not name the field: {text}", op.id, bad.what));
            }
        }
    }

    fn judge(
        &self,
        op: &OpInfo,
        what: &str,
        answer: &Answer,
        fine: impl Fn(u16) -> bool,
        report: &mut Report,
    ) {
        // 0: not even HTTP; the case cannot be sent.
        if answer.status == 0 {
            return;
        }
        let shape = if answer.status >= 400 && op.method != Method::HEAD {
            error_shape(self.dialect, answer)
        } else {
            Ok(())
        };
        let told = if !fine(answer.status) {
            "answered".to_owned()
        } else if let Err(reason) = shape {
            format!("is out of shape ({reason})")
        } else {
            return;
        };
        let text: String = answer.text().chars().take(300).collect();
        report.failures.push(format!("{}: {what}: {told}: {} {text}", op.id, answer.status));
    }
}

const FILL: &str = "6f3a5c1e-0d7b-4c3e-9a8f-112233445566";

fn wrap(op: &OpInfo, inner: Value) -> Value {
    match &op.action {
        None => inner,
        Some(action) => json!({(&**action): inner}),
    }
}

/// Whether an error answer has the dialect's shape.
///
/// # Errors
/// What is wrong with it.
pub fn error_shape(dialect: &Dialect, answer: &Answer) -> Result<(), String> {
    if answer.header("x-openstack-request-id").is_empty() {
        return Err("no x-openstack-request-id".into());
    }
    let json = answer.json();
    let number = |pointer: &str| json.pointer(pointer).and_then(Value::as_u64);
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).is_some_and(|t| !t.is_empty());
    let status = Some(u64::from(answer.status));
    let good = match dialect.envelope {
        Envelope::Keystone => {
            number("/error/code") == status && text("/error/message") && text("/error/title")
        }
        Envelope::Nova | Envelope::Cinder => json.as_object().is_some_and(|map| {
            map.len() == 1
                && map
                    .values()
                    .all(|v| v.get("code").and_then(Value::as_u64) == status && v.get("message").is_some())
        }),
        Envelope::Neutron => {
            text("/NeutronError/type")
                && text("/NeutronError/message")
                && json.pointer("/NeutronError/detail").is_some()
        }
        Envelope::Glance => {
            answer.text().starts_with("<html>") || (text("/message") && text("/title") && text("/code"))
        }
        Envelope::Placement => {
            number("/errors/0/status") == status
                && text("/errors/0/title")
                && text("/errors/0/detail")
                && text("/errors/0/request_id")
        }
    };
    if good { Ok(()) } else { Err("wrong envelope".into()) }
}
