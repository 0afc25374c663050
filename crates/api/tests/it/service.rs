//! A service with a bit of everything: a list of things in memory.

use std::sync::Arc;
use std::time::Duration;

use api::testing::{Client, FakeAuthenticator};
use api::types::{Int, LaxInt, Metadata, Name, Patch, Text};
use api::{
    Ctx, Dialect, Error, JsonSchema, Method, Op, Policy, RawBody, Reply, Request, Result, Service, Settings,
    Target,
};
use base::{Clock, ManualClock, ProjectId, ServerId};
use contract::auth::Authenticator;
use futures::StreamExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize)]
pub struct Thing {
    pub id: ServerId,
    pub name: String,
    pub size: i64,
    #[serde(skip)]
    pub project: ProjectId,
    #[serde(skip)]
    pub shared: bool,
}

pub struct Things {
    dialect: &'static Dialect,
    policy: Policy,
    settings: Settings,
    entropy: base::Entropy,
    pub things: Mutex<Vec<Thing>>,
    pub finished: tokio::sync::Notify,
}

impl Service for Things {
    fn dialect(&self) -> &'static Dialect {
        self.dialect
    }
    fn policy(&self) -> &Policy {
        &self.policy
    }
    fn authenticator(&self) -> Arc<dyn Authenticator> {
        Arc::new(FakeAuthenticator)
    }
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(ManualClock::default())
    }
    fn settings(&self) -> &Settings {
        &self.settings
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    thing: CreateThing,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its validation matters")]
struct CreateThing {
    name: Name,
    size: LaxInt<1, 100>,
    #[serde(default)]
    description: Option<Text<0, 64>>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    tags: Vec<Text<1, 60>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Update {
    #[serde(default)]
    name: Patch<Name>,
    #[serde(default)]
    size: Patch<Int<1, 100>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reboot {
    #[serde(rename = "type")]
    kind: Kind,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    Soft,
    Hard,
}

pub fn ops() -> Vec<Op<Things>> {
    vec![
        Op::get("/v1/things", "things:list", list),
        Op::post("/v1/things", "things:create", create).status(201),
        Op::get("/v1/things/{id}", "things:show", show),
        Op::put("/v1/things/{id}", "things:update", update),
        Op::delete("/v1/things/{id}", "things:delete", delete),
        Op::action("/v1/things/{id}/action", "reboot", "things:reboot", reboot).status(202),
        Op::action("/v1/things/{id}/action", "os-start", "things:start", start).status(202),
        Op::action("/v1/things/{id}/action", "reset", "things:reset", start)
            .status(202)
            .default_rule("rule:admin_api"),
        Op::get("/v1/old", "things:old", old).until(2, 10).default_rule("@"),
        Op::get("/v1/old", "things:new", new).since(2, 11).default_rule("@"),
        Op::get("/v1/hosts", "things:hosts", public).default_rule("rule:admin_api"),
        Op::get("/v1/system", "things:system", public).default_rule("@").scopes(&[api::ScopeKind::System]),
        Op::get("/v1/public", "", public).public(),
        Op::get("/v1/maybe", "things:maybe", maybe).token_optional(),
        Op::get("/v1/panic", "things:panic", panics).default_rule("@"),
        Op::post("/v1/panic", "things:panic", panics),
        Op::post("/v1/slow", "things:slow", slow).default_rule("@"),
        Op::post("/v1/finish", "things:finish", finish).default_rule("@"),
        Op::raw(Method::PUT, "/v1/things/{id}/file", "things:upload", upload),
        Op::get("/v1/stream", "things:stream", stream).default_rule("@"),
    ]
}

pub fn state(dialect: &'static Dialect, settings: Settings) -> Arc<Things> {
    Arc::new(Things {
        dialect,
        policy: Policy::for_ops(&ops(), &[], None).unwrap(),
        settings,
        entropy: base::Entropy::seeded(7),
        things: Mutex::new(Vec::new()),
        finished: tokio::sync::Notify::new(),
    })
}

pub fn settings() -> Settings {
    Settings {
        public_url: "https://cloud.test:8443".into(),
        prefix: "/things".into(),
        auth_url: "https://cloud.test:8443/identity".into(),
        timeout: Duration::from_millis(300),
        ..Settings::default()
    }
}

/// Mounted as the binary mounts it.
pub fn client_of(state: Arc<Things>) -> Client {
    Client::new(axum::Router::new().nest_service("/things", api::router(state, ops())))
}

pub fn client(dialect: &'static Dialect) -> Client {
    client_of(state(dialect, settings()))
}

fn missing(id: ServerId) -> String {
    format!("Thing {id} could not be found.")
}

impl Things {
    fn find(&self, id: ServerId) -> Result<Thing> {
        let things = self.things.lock();
        things.iter().find(|t| t.id == id).cloned().ok_or_else(|| Error::not_found(missing(id)))
    }
}

fn target(thing: &Thing) -> Target {
    Target::project(&thing.project).visible(thing.shared).missing(missing(thing.id))
}

async fn list(cx: Ctx<Things>, req: Request<()>) -> Result<Reply> {
    let page = req.page(1000)?;
    page.sort_within(&["name"])?;
    let mut own: Vec<Thing> =
        cx.things.lock().iter().filter(|t| Some(&t.project) == cx.auth().project_id()).cloned().collect();
    own.sort_by_key(|t| t.id);
    if let Some(marker) = &page.marker {
        let at = own.iter().position(|t| t.id.to_string() == *marker);
        let at = at.ok_or_else(|| Error::bad_request(format!("marker [{marker}] not found")))?;
        own.drain(..=at);
    }
    let more = own.len() > page.limit;
    own.truncate(page.limit);
    let last = own.last().map(|t| t.id.to_string()).filter(|_| more);
    Ok(cx.list(&req, &page, "things", &own, last.as_deref()))
}

async fn create(cx: Ctx<Things>, req: Request<Create>) -> Result<Reply> {
    let wanted = req.body.thing;
    let thing = Thing {
        id: ServerId::random(&cx.entropy),
        shared: wanted.name.starts_with("shared"),
        name: wanted.name.into_string(),
        size: wanted.size.get(),
        project: cx.project_id()?.clone(),
    };
    cx.allow(&Target::project(&thing.project))?;
    cx.things.lock().push(thing.clone());
    let url = cx.url(&format!("/v1/things/{}", thing.id));
    Ok(Reply::json(&serde_json::json!({"thing": thing})).location(url))
}

async fn show(cx: Ctx<Things>, req: Request<()>) -> Result<Reply> {
    let thing = cx.find(req.id("id")?)?;
    cx.allow(&target(&thing))?;
    Ok(Reply::json(&serde_json::json!({"thing": thing})))
}

async fn update(cx: Ctx<Things>, req: Request<Update>) -> Result<Reply> {
    let mut thing = cx.find(req.id("id")?)?;
    cx.allow(&target(&thing))?;
    if let Some(name) = req.body.name.not_null("name")? {
        thing.name = name.into_string();
    }
    if let Some(size) = req.body.size.value() {
        thing.size = size.get();
    }
    Ok(Reply::json(&serde_json::json!({"thing": thing})))
}

async fn delete(cx: Ctx<Things>, req: Request<()>) -> Result<Reply> {
    let thing = cx.find(req.id("id")?)?;
    cx.allow(&target(&thing))?;
    cx.things.lock().retain(|t| t.id != thing.id);
    Ok(Reply::empty())
}

async fn reboot(cx: Ctx<Things>, req: Request<Reboot>) -> Result<Reply> {
    let thing = cx.find(req.id("id")?)?;
    cx.allow(&target(&thing))?;
    let soft = matches!(req.body.kind, Kind::Soft);
    Ok(Reply::empty().header("x-soft", soft.to_string()))
}

async fn start(cx: Ctx<Things>, req: Request<()>) -> Result<Reply> {
    let thing = cx.find(req.id("id")?)?;
    cx.allow(&target(&thing))?;
    Ok(Reply::empty())
}

async fn old(cx: Ctx<Things>, _: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&format!("old {}", cx.mv)))
}

async fn new(cx: Ctx<Things>, _: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&format!("new {}", cx.mv)))
}

async fn public(cx: Ctx<Things>, _: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&serde_json::json!({"link": cx.url("/v1/public"), "known": cx.maybe_auth().is_some()})))
}

async fn maybe(cx: Ctx<Things>, _: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&cx.maybe_auth().is_some()))
}

async fn panics(_: Ctx<Things>, _: Request<()>) -> Result<Reply> {
    panic!("the password is hunter2");
}

async fn slow(_: Ctx<Things>, _: Request<()>) -> Result<Reply> {
    std::future::pending::<()>().await;
    Ok(Reply::empty())
}

/// Takes a few turns, as a transaction does, then tells that it came to its end.
async fn finish(cx: Ctx<Things>, _: Request<()>) -> Result<Reply> {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    cx.finished.notify_one();
    Ok(Reply::empty())
}

async fn upload(cx: Ctx<Things>, req: Request<RawBody>) -> Result<Reply> {
    let thing = cx.find(req.id("id")?)?;
    cx.allow(&target(&thing))?;
    let mut length = 0;
    let mut stream = Box::pin(req.body.into_stream());
    while let Some(chunk) = stream.next().await {
        length += chunk?.len();
    }
    Ok(Reply::json(&length))
}

async fn stream(_: Ctx<Things>, _: Request<()>) -> Result<Reply> {
    let chunks = futures::stream::iter((0..3).map(|i| Ok(bytes::Bytes::from(format!("chunk {i};")))));
    Ok(Reply::stream("application/octet-stream", None, chunks))
}
