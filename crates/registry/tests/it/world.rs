//! A registry with four accounts and a clock that stands still.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest::{SigningKey, sshsig};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use base::{Clock, Entropy, ManualClock, Timestamp};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use certify::rules::{Kind, Scope};
use http_body_util::BodyExt;
use registry::Registry;
use registry::accounts::Accounts;
use serde_json::Value;
use store::Store;
use tower::ServiceExt;

pub const IAAS: &str = "50393e6f-2ae1-4c5c-a62c-3b75f2abef3f";
/// A Sunday.
pub const START: &str = "2026-11-22T08:00:00";

/// An answer.
pub struct Answer {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    /// What was wrong.
    pub fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap_or_default().to_owned()
    }
}

/// The world.
pub struct World {
    pub registry: Arc<Registry>,
    pub clock: Arc<ManualClock>,
    pub keys: BTreeMap<&'static str, SigningKey>,
    pub entropy: Entropy,
}

/// SQLite in memory; with `ALLOD_TEST_POSTGRES=postgresql://…` a new database of that (throw-away) server.
async fn database(clock: Arc<ManualClock>) -> Store {
    let Ok(base) = std::env::var("ALLOD_TEST_POSTGRES") else {
        return Store::memory(clock, registry::model::SCHEMAS).await.unwrap();
    };
    let name = format!("r{}", Entropy::system().uuid().simple());
    let made = std::process::Command::new("psql")
        .args([&format!("{base}/postgres"), "-qc", &format!("CREATE DATABASE {name}")])
        .status()
        .unwrap();
    assert!(made.success(), "cannot make a database");
    let url = format!("{base}/{name}");
    Store::postgres(&url, clock, Entropy::system(), registry::model::SCHEMAS).await.unwrap()
}

pub const NAMES: [&str; 5] = ["cloud-a", "cloud-b", "cloud-c", "delegate", "reviewer"];

impl World {
    pub async fn new() -> World {
        let clock = Arc::new(ManualClock::new(Timestamp::parse(START).unwrap()));
        let key = |seed| SigningKey::read(&SigningKey::generate(&Entropy::seeded(seed))).unwrap();
        let keys: BTreeMap<_, _> = NAMES.into_iter().zip((1..).map(key)).collect();
        let accounts = Accounts::parse(&bootstrap(&keys)).unwrap();
        let scopes = [Kind::Iaas, Kind::Kaas].map(|k| Scope::builtin(k).unwrap()).to_vec();
        let store = database(clock.clone()).await;
        let (entropy, url) = (Entropy::seeded(7), "https://registry.example/");
        let registry = Registry::new(store, entropy.clone(), key(100), scopes, accounts, url).unwrap();
        World { registry, clock, keys, entropy }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn days(&self, days: u64) {
        self.clock.advance(std::time::Duration::from_secs(days * 86_400));
    }

    /// A request; `account`'s password is its name.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        account: Option<&str>,
        kind: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(name) = account {
            let credentials = BASE64_STANDARD.encode(format!("{name}:{name}"));
            request = request.header("authorization", format!("Basic {credentials}"));
        }
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let router = registry::api::router(self.registry.clone());
        let response = router.oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub async fn get(&self, path: &str, account: Option<&str>) -> Answer {
        self.call("GET", path, account, "", "").await
    }

    pub async fn post(&self, path: &str, account: Option<&str>, body: Value) -> Answer {
        self.call("POST", path, account, "application/json", body.to_string()).await
    }

    /// Uploads a text, signed with the account's key.
    pub async fn upload(&self, account: &str, text: &str) -> Answer {
        let body = self.signed(account, text);
        self.call("POST", "/reports", Some(account), "application/x-signed-yaml", body).await
    }

    pub fn signed(&self, account: &str, text: &str) -> String {
        format!("{}&{text}", sshsig::sign(&self.keys[account], "report", text.as_bytes()))
    }

    /// A report with a run of its own.
    pub fn report(&self, subject: &str, at: &str, results: &[(String, i64)]) -> (String, String) {
        let run = self.entropy.uuid().to_string();
        let results: String = results.iter().map(|(id, r)| format!("        {id}: {r}\n")).collect();
        let text = format!(
            "---\nspec:\n  uuid: {IAAS}\n  name: SCS-compatible IaaS\nchecked_at: {at}\nsubject: {subject}\nrun:\n  uuid: {run}\n  \
             assignment: {{}}\n  invocations:\n    one:\n      cmd: check\n      results:\n{results}      stdout: [secret-of-{subject}]\n"
        );
        (run, text)
    }

    /// Everything v5.1 asks for, with one verdict.
    pub fn all(result: i64) -> Vec<(String, i64)> {
        let scope = Scope::builtin(Kind::Iaas).unwrap();
        let version = scope.versions.iter().find(|v| v.version == "v5.1").unwrap();
        scope.targets(version).remove("main").unwrap().into_iter().map(|id| (id, result)).collect()
    }

    /// The state of a subject as everybody sees it.
    pub async fn status(&self, subject: &str) -> Value {
        let answer = self.get(&format!("/status?subject={subject}"), None).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()[subject][IAAS].clone()
    }
}

pub fn bootstrap(keys: &BTreeMap<&'static str, SigningKey>) -> String {
    let mut text = String::from("accounts:\n");
    for (name, key) in keys {
        let public = key.ssh().split(' ').nth(1).unwrap().to_owned();
        let hash = bcrypt::hash(name, 4).unwrap();
        text.push_str(&format!(
            "- subject: {name}\n  api_keys: ['{hash}']\n  keys:\n  - public_key: {public}\n    public_key_type: ssh-ed25519\n    \
             public_key_name: primary\n"
        ));
        text.push_str(match *name {
            "cloud-a" => "  page: {name: 'Cloud <A>', operator: 'A & co', url: 'https://a.example/'}\n",
            "cloud-b" => "  group: twins\n  delegates: [delegate]\n",
            "cloud-c" => "  group: twins\n",
            "delegate" => "  roles: [append_any]\n",
            _ => "  roles: [read_any, approve, admin]\n",
        });
    }
    text
}
