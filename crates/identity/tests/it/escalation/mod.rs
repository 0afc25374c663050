//! No few calls of somebody below an administrator lead above. A case is one attack: up to six random calls by a domain's
//! manager, members, and holders of rights an administrator handed out, with whatever the calls before gave them. Each
//! begins on a copy of the same database; what may not have become of it is in `verdict.rs`, what they try in `attack.rs`.
//!
//! `ALLOD_ESCALATIONS=20000 cargo nextest run -p identity escalation` tries that many, `ALLOD_ESCALATION_SEED` others.

mod attack;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::testing::Client;
use base::{Entropy, ManualClock};
use identity::{Config, Repository, State};
use serde_json::{Value, json};
use store::{Content, Store};
use tempfile::TempDir;

use crate::matrix::{Place2, place, things};
use crate::oauth1::{Pair, Program, given};
use crate::world::{World, config, password_of};

pub const SCHEMAS: &[store::Schema] = &[("identity", identity::MIGRATIONS)];
/// Most calls of an attack.
const CALLS: u64 = 6;

/// Who attacks from the beginning.
#[derive(Clone)]
pub struct Persona {
    pub user: String,
    pub token: String,
    /// What the user logs in with, where it is the user's own token.
    pub password: Option<String>,
    pub manager: bool,
}

/// The world before any attack, kept in a file.
pub struct Stage {
    dir: TempDir,
    cases: AtomicU64,
    base: PathBuf,
    config: Config,
    admin_token: String,
    demo: (base::UserId, base::ProjectId),
    alt: (base::UserId, base::ProjectId),
    pub own: Place2,
    /// One of each thing, in the domain that is managed and in the other.
    pub near: BTreeMap<&'static str, String>,
    pub far: BTreeMap<&'static str, String>,
    pub boss: String,
    /// Accounts and groups of the managed domain that carry `admin`: no manager's business.
    pub protected: BTreeSet<String>,
    pub personas: Vec<Persona>,
    pub consumer: Pair,
    pub access: Pair,
    /// Ids of the roles a manager may give.
    pub managed: BTreeSet<String>,
    /// Names of the effective roles by user and place, before.
    pub rights: BTreeMap<(String, String), BTreeSet<String>>,
    pub content: Content,
    pub rows: verdict::Rows,
    /// Ids by kind: what is in reach of the managed domain, and all else.
    pub pools: BTreeMap<&'static str, attack::Pool>,
}

async fn id(world: &World, path: &str, key: &str, body: Value) -> String {
    world.admin.post(path, json!({key: body})).await.expect(201).text_at(&format!("/{key}/id"))
}

async fn put(world: &World, path: String) {
    world.admin.put(&path, json!({})).await.expect(204);
}

/// A user who logs in by password, with a role on a place.
async fn persona(world: &World, name: &str, domain: &str, role: &str, scope: Value) -> Persona {
    let password = password_of(name);
    let user =
        id(world, "/v3/users", "user", json!({"name": name, "domain_id": domain, "password": password}))
            .await;
    let (kind, place) = match (&scope["project"]["id"], &scope["domain"]["id"]) {
        (Value::String(id), _) => ("projects", id.clone()),
        (_, id) => ("domains", id.as_str().unwrap().to_owned()),
    };
    put(world, format!("/v3/{kind}/{place}/users/{user}/roles/{}", world.role(role).await)).await;
    let who = json!({"methods": ["password"], "password": {"user": {"id": user, "password": password}}});
    let answer = world.auth(who, Some(scope)).await.expect(201);
    let token = answer.header("x-subject-token").to_owned();
    Persona { user, token, password: Some(password), manager: role == "manager" && kind == "domains" }
}

/// What tempts a domain's manager: an account, a group and a trustee in the domain that carry the administrator's rights,
/// and roles that are called like harmless ones, or imply more than they tell.
async fn temptations(world: &World, own: &Place2, boss: &str) -> BTreeSet<String> {
    let admin = world.role("admin").await;
    let admins = world.admin.get("/v3/projects?name=admin").await.expect(200).text_at("/projects/0/id");
    let mut protected = BTreeSet::new();
    for (kind, place) in [("users", format!("projects/{admins}")), ("groups", "system".to_owned())] {
        let (path, key) = (format!("/v3/{kind}"), kind.trim_end_matches('s'));
        let made =
            id(world, &path, key, json!({"name": format!("chief-{key}"), "domain_id": own.domain})).await;
        put(world, format!("/v3/{place}/{kind}/{made}/roles/{admin}")).await;
        protected.insert(made);
    }
    let deputy = json!({"name": "deputy", "domain_id": own.domain, "password": "deputy"});
    let deputy = id(world, "/v3/users", "user", deputy).await;
    let trust = json!({
        "trustor_user_id": boss, "trustee_user_id": deputy, "project_id": admins, "impersonation": true,
        "roles": [{"name": "admin"}]});
    id(world, "/v3/OS-TRUST/trusts", "trust", trust).await;
    protected.insert(deputy);
    // `admin` itself is implied by nothing; `service` may ask about anybody's tokens.
    let service = world.role("service").await;
    for body in [json!({"name": "member", "domain_id": own.domain}), json!({"name": "load-balancer_admin"})] {
        let role = id(world, "/v3/roles", "role", body).await;
        world.admin.put(&format!("/v3/roles/{role}/implies/{service}"), json!({})).await.expect(201);
    }
    protected
}

/// Tokens of the administrator's, each limited to `member` in the project `own`: by an OAuth access token, a trust under
/// the administrator's name, an application credential. Who holds one is the administrator by name only.
async fn delegates(world: &World, own: &Place2, boss: &str) -> ([Persona; 3], Pair, Pair) {
    let by = |answer: api::testing::Answer| Persona {
        user: boss.to_owned(),
        token: answer.expect(201).header("x-subject-token").to_owned(),
        password: None,
        manager: false,
    };
    let (program, access) = given(world, &world.admin, &world.anyone, &own.project, &["member"]).await;
    let by_program = by(program.login(&access, None, None).await);
    let trust = json!({
        "trustor_user_id": boss, "trustee_user_id": world.demo, "project_id": own.project, "impersonation": true,
        "allow_redelegation": true, "roles": [{"name": "member"}]});
    let trust = id(world, "/v3/OS-TRUST/trusts", "trust", trust).await;
    let scope = json!({"OS-TRUST:trust": {"id": trust}});
    let trustee = by(world.login("demo", &password_of("demo"), Some(scope)).await);
    let here = world.token("admin", json!({"project": {"id": own.project}})).await;
    let body = json!({"application_credential": {"name": "delegate", "roles": [{"name": "member"}]}});
    let path = format!("/v3/users/{boss}/application_credentials");
    let made = world.anyone.with_token(&here).post(&path, body).await.expect(201);
    let credential = json!({
        "id": made.text_at("/application_credential/id"), "secret": made.text_at("/application_credential/secret")});
    let login = json!({"methods": ["application_credential"], "application_credential": credential});
    ([by_program, trustee, by(world.auth(login, None).await)], program.consumer.clone(), access)
}

/// Who has which roles where, inheritance and implication included.
async fn rights(world: &World) -> BTreeMap<(String, String), BTreeSet<String>> {
    let rows = world.admin.get("/v3/role_assignments?effective&include_names").await.expect(200);
    let mut rights: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for row in rows.at("/role_assignments").as_array().unwrap() {
        let user = row["user"]["id"].as_str().unwrap().to_owned();
        let name = row["role"]["name"].as_str().unwrap().to_owned();
        rights.entry((user, verdict::place_of(&row["scope"]))).or_default().insert(name);
    }
    rights
}

impl Stage {
    pub async fn new() -> Self {
        let shared = PathBuf::from("/dev/shm");
        let dir = if shared.is_dir() { TempDir::new_in(shared) } else { TempDir::new() }.unwrap();
        let keys = Repository::Directory(dir.path().join("fernet"));
        let config = Config { keys, ..config() };
        let clock = Arc::new(ManualClock::default());
        let file = dir.path().join("made");
        let store = Store::sqlite(&file, clock.clone(), Entropy::seeded(0), SCHEMAS).await.unwrap();
        let world = World::on(config.clone(), store.clone(), clock, 1).await;
        let (own, foreign) = (place(&world, "own").await, place(&world, "foreign").await);
        let near = things(&world, &own.domain, &own.project, 0).await;
        let far = things(&world, &foreign.domain, &foreign.project, 1).await;
        let boss = near.id("boss").to_owned();
        let (by_name, consumer, access) = delegates(&world, &own, &boss).await;
        let protected = temptations(&world, &own, &boss).await;
        let (on_domain, on_project) =
            (json!({"domain": {"id": own.domain}}), json!({"project": {"id": own.project}}));
        let abroad = json!({"project": {"id": foreign.project}});
        let owner = Persona {
            user: near.id("user_id").to_owned(),
            token: near.id("subject_token").to_owned(),
            password: Some("p".to_owned()),
            manager: false,
        };
        let mut personas = vec![
            persona(&world, "chief of own", &own.domain, "manager", on_domain.clone()).await,
            persona(&world, "chief from outside", "default", "manager", on_domain).await,
            persona(&world, "project manager", &own.domain, "manager", on_project.clone()).await,
            persona(&world, "guest", "default", "member", on_project).await,
            persona(&world, "neighbour", &foreign.domain, "member", abroad).await,
            owner,
        ];
        personas.extend(by_name);
        let mut managed = BTreeSet::new();
        for name in ["manager", "member", "reader", "load-balancer_member"] {
            let roles = world.admin.get(&format!("/v3/roles?name={name}")).await.expect(200).at("/roles");
            let global = roles.as_array().unwrap().iter().filter(|r| r["domain_id"].is_null());
            managed.extend(global.map(|r| r["id"].as_str().unwrap().to_owned()));
        }
        let rights = rights(&world).await;
        let dump = dir.path().join("dump");
        let content = store.dump(SCHEMAS, &dump).await.unwrap();
        let rows = verdict::rows(&dump);
        let pools = attack::pools(&own, &rows, &near, &far);
        let base = dir.path().join("base");
        store.backup(&base).await.unwrap();
        Stage {
            base,
            admin_token: world.admin_token.clone(),
            demo: (world.demo.clone(), world.demo_project.clone()),
            alt: (world.alt.clone(), world.alt_project.clone()),
            near: near.ids,
            far: far.ids,
            dir,
            cases: AtomicU64::new(0),
            config,
            own,
            boss,
            protected,
            personas,
            consumer,
            access,
            managed,
            rights,
            content,
            rows,
            pools,
        }
    }

    /// A server on a copy of the database, maybe with another policy.
    async fn open(&self, seed: u64, policy: Option<&str>) -> (World, PathBuf) {
        // The server before may not have let go of its file yet.
        let n = self.cases.fetch_add(1, Ordering::Relaxed);
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(self.dir.path().join(format!("case-{}{end}", n.wrapping_sub(1))));
        }
        let file = self.dir.path().join(format!("case-{n}"));
        std::fs::copy(&self.base, &file).unwrap();
        let clock = Arc::new(ManualClock::default());
        let store = Store::sqlite(&file, clock.clone(), Entropy::seeded(0), SCHEMAS).await.unwrap();
        let config = Config { policy_yaml: policy.map(str::to_owned), ..self.config.clone() };
        let state =
            State::new(config, store.clone(), clock.clone(), Entropy::seeded(1_000_003 + seed)).unwrap();
        let router = api::router(state.clone(), identity::ops());
        let anyone = Client::new(router.clone());
        let world = World {
            state,
            store,
            clock,
            router,
            admin: anyone.with_token(&self.admin_token),
            anyone,
            admin_token: self.admin_token.clone(),
            demo: self.demo.0.clone(),
            demo_project: self.demo.1.clone(),
            alt: self.alt.0.clone(),
            alt_project: self.alt.1.clone(),
        };
        (world, self.dir.path().join("after"))
    }

    /// Runs an attack; what it was, if it led above.
    async fn attack(
        &self,
        seed: u64,
        steps: &[u64],
        hole: Option<&Hole>,
        told: &mut attack::Told,
    ) -> Option<String> {
        let (world, after) = self.open(seed, hole.map(|h| h.rules)).await;
        // Three of four attacks are helped by a manager; without one nothing but one's own may change.
        let mut attack =
            attack::Attack::new(self, &world, !seed.is_multiple_of(4), hole.and_then(|h| h.focus));
        let mut found = None;
        for step in steps {
            if let Err(what) = attack.step(*step).await {
                found = Some(what);
                break;
            }
        }
        if found.is_none() {
            found = attack.end(&after).await;
        }
        told.add(&attack.told);
        let log = attack.log.join("\n  ");
        found.map(|what| format!("{what}\n  {log}"))
    }

    /// As [`Stage::attack`], with what is not needed for it left out.
    async fn shortest(&self, seed: u64, mut steps: Vec<u64>) -> String {
        let mut told = attack::Told::default();
        let again = self.attack(seed, &steps, None, &mut told).await;
        let mut what = again.unwrap_or_else(|| "it does so not always".into());
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.remove(at);
            match self.attack(seed, &fewer, None, &mut told).await {
                Some(shorter) => (what, steps) = (shorter, fewer),
                None => at += 1,
            }
        }
        format!("seed {seed}, steps {steps:?}: {what}")
    }
}

/// The calls of an attack.
fn steps(seed: u64) -> Vec<u64> {
    let entropy = Entropy::seeded(seed);
    (0..CALLS - entropy.below(3)).map(|_| entropy.u64()).collect()
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap())
}

#[tokio::test]
async fn no_six_calls_lead_above() {
    let (cases, first) = (number("ALLOD_ESCALATIONS", 900), number("ALLOD_ESCALATION_SEED", 0));
    let began = std::time::Instant::now();
    let stage = Stage::new().await;
    let prepared = began.elapsed();
    let mut told = attack::Told::default();
    for seed in first..first + cases {
        if stage.attack(seed, &steps(seed), None, &mut told).await.is_some() {
            panic!("{}", stage.shortest(seed, steps(seed)).await);
        }
    }
    println!("{cases} attacks in {:?}, after {prepared:?}: {told}", began.elapsed() - prepared);
    // An attack that is refused everything shows nothing.
    assert!(told.done > cases / 2 && told.tokens > cases / 8, "{told}");
}

/// Rules that let somebody above.
struct Hole {
    name: &'static str,
    rules: &'static str,
    /// Whose operations are tried most; `None`: nothing is told of where to look.
    focus: Option<&'static str>,
}

const fn hidden(name: &'static str, rules: &'static str) -> Hole {
    Hole { name, rules, focus: None }
}

const fn shown(name: &'static str, rule: &'static str, rules: &'static str) -> Hole {
    Hole { name, rules, focus: Some(rule) }
}

/// Every one must be found.
const HOLES: &[Hole] = &[
    hidden("the list of roles", "domain_managed_target_role: \"@\""),
    hidden("grants anywhere", "changes_grant: \"rule:admin_required or role:manager\""),
    hidden("grants by members", "changes_grant: \"role:member\""),
    hidden("accounts by members", "identity:create_user: \"role:member\""),
    hidden("accounts anywhere", "identity:update_user: \"rule:admin_required or role:manager\""),
    hidden("projects anywhere", "identity:update_project: \"rule:admin_required or role:manager\""),
    shown("on the system", "identity:create_system_grant", "identity:create_system_grant: \"role:member\""),
    shown("groups", "identity:add_user_to_group", "identity:add_user_to_group: \"role:manager\""),
    shown("implied roles", "identity:create_implied_role", "identity:create_implied_role: \"role:member\""),
    shown("credentials", "identity:create_credential", "identity:create_credential: \"role:member\""),
    shown("given away", "identity:update_credential", "identity:update_credential: \"role:member\""),
    shown("keys", "identity:ec2_create_credential", "identity:ec2_create_credential: \"role:member\""),
    shown("limits", "identity:update_limit", "identity:update_limit: \"role:member\""),
    shown("mappings", "identity:create_mapping", "identity:create_mapping: \"role:member\""),
];

#[tokio::test]
async fn a_hole_in_the_policy_is_found() {
    let stage = Stage::new().await;
    let most = number("ALLOD_ESCALATIONS", 600);
    let mut missed = Vec::new();
    for hole in HOLES {
        let mut told = attack::Told::default();
        let mut found = None;
        for seed in 0..most {
            found = stage.attack(seed, &steps(seed), Some(hole), &mut told).await;
            if let Some(what) = &found {
                println!("{}: attack {seed}: {:.120}", hole.name, what);
                break;
            }
        }
        if found.is_none() {
            missed.push(hole.name);
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// What a program holds, for the attack.
pub fn program<'a>(stage: &Stage, world: &'a World) -> Program<'a> {
    Program::known(world, &world.anyone, stage.consumer.clone())
}
