//! A cloud with an administrator, two tenants and a second domain.

use std::sync::Arc;
use std::time::Duration;

use api::testing::{Answer, Client};
use base::{Entropy, ManualClock, ProjectId, UserId};
use identity::{Bootstrap, BootstrapEndpoint, Config, Place, State};
use serde_json::{Value, json};
use store::Store;

pub struct World {
    pub state: Arc<State>,
    pub store: Store,
    pub clock: Arc<ManualClock>,
    pub router: axum::Router,
    /// Calls without a token.
    pub anyone: Client,
    /// The administrator, in project `admin`.
    pub admin: Client,
    pub admin_token: String,
    pub demo: UserId,
    pub demo_project: ProjectId,
    pub alt: UserId,
    pub alt_project: ProjectId,
}

pub fn config() -> Config {
    let settings = api::Settings { public_url: "https://cloud.test".into(), ..api::Settings::default() };
    Config { settings, bcrypt_cost: 4, ..Config::default() }
}

pub fn password_of(user: &str) -> String {
    format!("password-of-{user}")
}

impl World {
    pub async fn new() -> Self {
        Self::with(config()).await
    }

    pub async fn with(config: Config) -> Self {
        let clock = Arc::new(ManualClock::default());
        let store = Store::memory(clock.clone(), &[("identity", identity::MIGRATIONS)]).await.unwrap();
        Self::on(config, store, clock, 1).await
    }

    /// Another server on the same database.
    pub async fn on(config: Config, store: Store, clock: Arc<ManualClock>, seed: u64) -> Self {
        let state = State::new(config, store.clone(), clock.clone(), Entropy::seeded(seed)).unwrap();
        let endpoint = |service_type: &str, name: &str, url: &str| BootstrapEndpoint {
            service_type: service_type.into(),
            name: name.into(),
            url: url.into(),
        };
        let what = Bootstrap {
            admin_password: password_of("admin"),
            region: "RegionOne".into(),
            endpoints: vec![
                endpoint("identity", "keystone", "https://cloud.test/identity"),
                endpoint("compute", "nova", "https://cloud.test/compute/v2.1"),
                endpoint("volumev3", "cinderv3", "https://cloud.test/volume/v3/%(project_id)s"),
            ],
        };
        identity::bootstrap(&state, what.clone()).await.unwrap();
        // Again: nothing may be made twice.
        identity::bootstrap(&state, what).await.unwrap();
        let mut tenants = Vec::new();
        for name in ["demo", "alt"] {
            let project = state.ensure_project(name, "A tenant.").await.unwrap();
            let user = state.ensure_user(name, &password_of(name), Some(&project)).await.unwrap();
            state.ensure_assignment(&user, "member", &Place::Project(project.clone())).await.unwrap();
            tenants.push((user, project));
        }
        let (alt, alt_project) = tenants.pop().unwrap();
        let (demo, demo_project) = tenants.pop().unwrap();
        let router = api::router(state.clone(), identity::ops());
        let anyone = Client::new(router.clone());
        let mut world = World {
            state,
            store,
            clock,
            router,
            admin: anyone.clone(),
            anyone,
            admin_token: String::new(),
            demo,
            demo_project,
            alt,
            alt_project,
        };
        world.admin_token =
            world.token("admin", json!({"project": {"name": "admin", "domain": {"id": "default"}}})).await;
        world.admin = world.anyone.with_token(&world.admin_token);
        world
    }

    /// The present moment as text.
    pub fn now(&self) -> String {
        base::Clock::now(&*self.clock).iso_seconds()
    }

    pub fn later(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// A login by name in the default domain.
    pub async fn login(&self, user: &str, password: &str, scope: Option<Value>) -> Answer {
        let who = json!({"name": user, "domain": {"name": "Default"}, "password": password});
        self.auth(json!({"methods": ["password"], "password": {"user": who}}), scope).await
    }

    pub async fn auth(&self, identity: Value, scope: Option<Value>) -> Answer {
        let mut auth = json!({"identity": identity});
        if let Some(scope) = scope {
            auth["scope"] = scope;
        }
        self.anyone.post("/v3/auth/tokens", json!({"auth": auth})).await
    }

    pub async fn token(&self, user: &str, scope: Value) -> String {
        let answer = self.login(user, &password_of(user), Some(scope)).await.expect(201);
        answer.header("x-subject-token").to_owned()
    }

    /// Demo in its project.
    pub async fn demo(&self) -> Client {
        self.anyone.with_token(&self.token("demo", self.project_scope(&self.demo_project)).await)
    }

    /// Demo in its project, by this password.
    pub async fn demo_as(&self, password: &str) -> Client {
        let scope = self.project_scope(&self.demo_project);
        let answer = self.login("demo", password, Some(scope)).await.expect(201);
        self.anyone.with_token(answer.header("x-subject-token"))
    }

    /// The administrator with a fresh token, after time has passed.
    pub async fn administrator(&self) -> Client {
        let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
        self.anyone.with_token(&self.token("admin", scope).await)
    }

    /// Everything in the tables, as text.
    pub async fn dump(&self) -> String {
        const SCHEMAS: &[store::Schema] = &[("identity", identity::MIGRATIONS)];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dump");
        self.store.dump(SCHEMAS, &file).await.unwrap();
        std::fs::read_to_string(file).unwrap()
    }

    /// Alt in its project.
    pub async fn alt(&self) -> Client {
        self.anyone.with_token(&self.token("alt", self.project_scope(&self.alt_project)).await)
    }

    pub fn project_scope(&self, project: &ProjectId) -> Value {
        json!({"project": {"id": project}})
    }

    pub async fn make(&self, kind: &str, body: Value) -> Value {
        let answer = self.admin.post(&format!("/v3/{kind}s"), json!({kind: body})).await.expect(201);
        answer.at(&format!("/{kind}"))
    }

    pub async fn make_id(&self, kind: &str, body: Value) -> String {
        self.make(kind, body).await["id"].as_str().unwrap().to_owned()
    }

    pub async fn role(&self, name: &str) -> String {
        let answer = self.admin.get(&format!("/v3/roles?name={name}")).await.expect(200);
        answer.text_at("/roles/0/id")
    }

    /// What a token may do: the names of its roles; empty where it is not valid.
    pub async fn roles_of(&self, token: &str) -> Vec<String> {
        let answer = self.validate(token).await;
        let names = answer.at("/token/roles");
        let mut names: Vec<String> =
            names.as_array().into_iter().flatten().map(|r| r["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    pub async fn validate(&self, token: &str) -> Answer {
        self.admin.with_header("x-subject-token", token).get("/v3/auth/tokens").await
    }
}
