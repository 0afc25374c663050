//! What attackers try: any operation with any ids and bodies, logins with all they know, the OAuth 1.0a dance.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use api::testing::{Answer, Client};
use api::{BodyKind, Method, OpInfo};
use base::Entropy;
use serde_json::{Value, json};

use super::verdict::{Party, Rows};
use super::{SCHEMAS, Stage, program};
use crate::extensions::ec2_request;
use crate::matrix::{NOBODY, Place2, TABLE, Things, body_of, operations};
use crate::oauth1::{Pair, Program, pair};
use crate::world::World;

/// Ids of one kind.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    near: Vec<String>,
    far: Vec<String>,
}

/// What came of the calls.
#[derive(Debug, Default)]
pub struct Told {
    pub calls: u64,
    pub done: u64,
    pub tokens: u64,
}

impl Told {
    pub fn add(&mut self, other: &Told) {
        self.calls += other.calls;
        self.done += other.done;
        self.tokens += other.tokens;
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls, {} of them done, {} tokens got", self.calls, self.done, self.tokens)
    }
}

/// Ids by the names that paths have for them.
pub fn pools(own: &Place2, rows: &Rows, near: &Things, far: &Things) -> BTreeMap<&'static str, Pool> {
    let mut pools = BTreeMap::new();
    for (kind, table) in [
        ("user_id", "identity_users"),
        ("group_id", "identity_groups"),
        ("project_id", "identity_projects"),
        ("domain_id", "identity_domains"),
        ("role_id", "identity_roles"),
        ("trust_id", "identity_trusts"),
        ("credential_id", "identity_credentials"),
        ("application_credential_id", "identity_application_credentials"),
    ] {
        let mut pool = Pool::default();
        for (id, row) in &rows[table] {
            let name = row["name"].as_str().unwrap_or_default();
            let here = match kind {
                "role_id" => ["admin", "manager", "member", "reader"].contains(&name),
                "domain_id" => *id == own.domain,
                "user_id" | "group_id" | "project_id" => row["domain_id"] == *own.domain,
                _ => near.ids.values().any(|known| known == id),
            };
            if here { pool.near.push(id.clone()) } else { pool.far.push(id.clone()) }
        }
        pools.insert(kind, pool);
    }
    for (name, id) in &near.ids {
        let pool = pools.entry(*name).or_default();
        if pool.near.is_empty() {
            pool.near.push(id.clone());
            pool.far.push(far.id(name).to_owned());
        }
    }
    pools
}

/// Operations that change something: those that somebody below an administrator may do to something, and all.
fn changes() -> &'static (Vec<OpInfo>, Vec<OpInfo>) {
    static CHANGES: OnceLock<(Vec<OpInfo>, Vec<OpInfo>)> = OnceLock::new();
    CHANGES.get_or_init(|| {
        let mut open = BTreeSet::new();
        for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
            let (id, letters) = line.split_at(110.min(line.len()));
            let groups: Vec<&str> = letters.split_whitespace().collect();
            let below = groups.iter().take(2).filter_map(|g| g.get(1..)).chain(groups.last().copied());
            if below.collect::<String>().contains(['y', '4']) {
                open.insert(id.trim().to_owned());
            }
        }
        let changing = |op: &OpInfo| op.method != Method::GET && op.method != Method::HEAD;
        let all: Vec<OpInfo> = operations().into_iter().filter(changing).collect();
        let reachable: Vec<OpInfo> = all.iter().filter(|op| open.contains(&op.id)).cloned().collect();
        assert!(reachable.len() > 30, "{}", reachable.len());
        (reachable, all)
    })
}

/// Who holds a token.
struct Holder {
    token: String,
    client: Client,
}

/// Draws of one step.
struct Draw(Entropy);

impl Draw {
    fn below(&self, n: usize) -> usize {
        usize::try_from(self.0.below(n as u64)).unwrap()
    }

    fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<'a, T>(&self, all: &'a [T]) -> Option<&'a T> {
        if all.is_empty() { None } else { all.get(self.below(all.len())) }
    }
}

pub struct Attack<'a> {
    party: Party<'a>,
    stage: &'a Stage,
    world: &'a World,
    program: Program<'a>,
    holders: Vec<Holder>,
    passwords: Vec<(String, String)>,
    /// Application credentials with their secrets.
    secrets: Vec<(String, String)>,
    /// EC2 keys with their secrets.
    keys: Vec<(String, String)>,
    /// Request tokens, and the verifiers somebody said yes with.
    asked: Vec<(Pair, Option<String>)>,
    given: Vec<Pair>,
    pools: BTreeMap<&'static str, Pool>,
    made: usize,
    focus: Vec<OpInfo>,
    pub told: Told,
    /// What was called.
    pub log: Vec<String>,
}

type Found = Result<(), String>;

impl<'a> Attack<'a> {
    /// `focus`: the rule whose operations are tried most.
    pub fn new(stage: &'a Stage, world: &'a World, manager: bool, focus: Option<&str>) -> Self {
        let personas: Vec<_> = stage.personas.iter().filter(|p| manager || !p.manager).collect();
        let holder = |token: &str| Holder { token: token.to_owned(), client: world.anyone.with_token(token) };
        let own = |p: &&super::Persona| p.password.clone().map(|password| (p.user.clone(), password));
        let passwords: Vec<(String, String)> = personas.iter().filter_map(own).collect();
        let of_rule = |op: &&OpInfo| focus.is_some_and(|rule| op.policy == rule);
        let focus = changes().1.iter().filter(of_rule).cloned().collect();
        let accounts = passwords.iter().map(|(user, _)| user.clone()).collect();
        Attack {
            party: Party { stage, accounts, manager },
            stage,
            world,
            program: program(stage, world),
            holders: personas.iter().map(|p| holder(&p.token)).collect(),
            passwords,
            secrets: Vec::new(),
            keys: Vec::new(),
            asked: Vec::new(),
            given: vec![stage.access.clone()],
            pools: stage.pools.clone(),
            made: 0,
            focus,
            told: Told::default(),
            log: Vec::new(),
        }
    }

    /// One call; an error is what led above.
    pub async fn step(&mut self, seed: u64) -> Found {
        let draw = Draw(Entropy::seeded(seed));
        self.made += 1;
        match draw.below(100) {
            0..30 if !self.focus.is_empty() => {
                let ops = self.focus.clone();
                self.call(&draw, &ops).await
            }
            0..50 => self.call(&draw, &changes().0).await,
            50..62 => self.call(&draw, &changes().1).await,
            62..92 => self.login(&draw).await,
            92..96 => self.dance(&draw).await,
            _ => self.own_password(&draw).await,
        }
    }

    /// What became of it all.
    pub async fn end(&mut self, dump: &Path) -> Option<String> {
        let content = self.world.store.dump(SCHEMAS, dump).await.unwrap();
        if let Some(found) = self.party.tables(&content, dump) {
            return Some(found);
        }
        if self.told.done == 0 {
            return None;
        }
        // What they hold is worth no more than before, also after the last call.
        for holder in &self.holders {
            let answer = self.world.validate(&holder.token).await;
            if answer.status == 200
                && let Some(found) = self.party.token(&answer.at("/token"))
            {
                return Some(found);
            }
        }
        None
    }

    /// Mostly something near.
    fn id(&self, draw: &Draw, kind: &str) -> String {
        let Some(pool) = self.pools.get(kind) else { return NOBODY.to_owned() };
        let (first, second) =
            if draw.below(8) < 5 { (&pool.near, &pool.far) } else { (&pool.far, &pool.near) };
        draw.of(first).or_else(|| draw.of(second)).cloned().unwrap_or_else(|| NOBODY.to_owned())
    }

    /// Mostly who came last, or a manager.
    fn holder(&self, draw: &Draw) -> &Holder {
        match draw.below(4) {
            0 => self.holders.last().unwrap(),
            1 => self.holders.first().unwrap(),
            _ => draw.of(&self.holders).unwrap(),
        }
    }

    fn kind_of(op: &OpInfo, name: &str) -> &'static str {
        match name {
            "prior_role_id" | "implied_role_id" | "role_id" => "role_id",
            "credential_id" if op.path.contains("OS-EC2") => "access",
            // The pools' own names, which live as long as the program.
            _ => {
                const KINDS: [&str; 26] = [
                    "user_id",
                    "group_id",
                    "project_id",
                    "domain_id",
                    "service_id",
                    "endpoint_id",
                    "region_id",
                    "registered_limit_id",
                    "limit_id",
                    "policy_id",
                    "endpoint_group_id",
                    "consumer_id",
                    "request_token_id",
                    "access_token_id",
                    "application_credential_id",
                    "access_rule_id",
                    "credential_id",
                    "trust_id",
                    "tag",
                    "group",
                    "option",
                    "idp_id",
                    "protocol_id",
                    "mapping_id",
                    "sp_id",
                    "client_id",
                ];
                KINDS.into_iter().find(|k| *k == name).unwrap_or("")
            }
        }
    }

    async fn call(&mut self, draw: &Draw, ops: &[OpInfo]) -> Found {
        let op = draw.of(ops).unwrap();
        let mut path = String::new();
        let mut user = String::new();
        for part in op.path.split('/').skip(1) {
            path.push('/');
            match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
                None => path.push_str(part),
                Some(name) => {
                    let id = match (name, self.passwords.is_empty()) {
                        // Things of a user are mostly asked of one's own.
                        ("user_id", false) if draw.one_in(2) => draw.of(&self.passwords).unwrap().0.clone(),
                        _ => self.id(draw, Self::kind_of(op, name)),
                    };
                    if name == "user_id" {
                        user.clone_from(&id);
                    }
                    path.push_str(&id);
                }
            }
        }
        let holder = self.holder(draw);
        let client = holder.client.with_header("x-subject-token", &holder.token);
        let mut call = client.call(op.method.clone(), &path);
        let mut body = Value::Null;
        if op.body == BodyKind::Json {
            body = self.body(draw, op, &user);
            call = call.json(&body);
        }
        let answer = call.send().await;
        self.heard(&format!("{} {path} {body}", op.method), &answer);
        if answer.status < 300 {
            self.learn(op, &body, &user, &answer);
        }
        Ok(())
    }

    fn heard(&mut self, what: &str, answer: &Answer) {
        self.log.push(format!("{} {what}", answer.status));
        assert!(answer.status < 500, "{} {}", self.log.join("\n"), answer.text());
        self.told.calls += 1;
        self.told.done += u64::from(answer.status < 300);
    }

    /// What a success tells them.
    fn learn(&mut self, op: &OpInfo, body: &Value, user: &str, answer: &Answer) {
        if op.method == Method::DELETE || answer.status == 204 {
            return;
        }
        let text = |path: &str| answer.at(path).as_str().map(str::to_owned);
        for (key, kind) in [
            ("user", "user_id"),
            ("group", "group_id"),
            ("project", "project_id"),
            ("domain", "domain_id"),
            ("role", "role_id"),
            ("trust", "trust_id"),
            ("credential", "credential_id"),
            ("application_credential", "application_credential_id"),
        ] {
            if op.method == Method::POST
                && let Some(id) = text(&format!("/{key}/id"))
            {
                self.pools.entry(kind).or_default().near.push(id);
            }
        }
        if let (Some(id), Some(password)) = (text("/user/id"), body["user"]["password"].as_str()) {
            self.passwords.push((id, password.to_owned()));
        }
        if let (Some(id), Some(secret)) =
            (text("/application_credential/id"), text("/application_credential/secret"))
        {
            self.secrets.push((id, secret));
        }
        if let (Some(access), Some(secret)) = (text("/credential/access"), text("/credential/secret")) {
            self.keys.push((access, secret));
        } else if let Some(blob) = body["credential"]["blob"].as_str()
            && let Ok(Value::Object(blob)) = serde_json::from_str(blob)
            && let (Some(Value::String(access)), Some(Value::String(secret))) =
                (blob.get("access"), blob.get("secret"))
        {
            self.keys.push((access.clone(), secret.clone()));
        }
        if let Some(verifier) = text("/token/oauth_verifier")
            && let Some(last) = self.asked.last_mut()
        {
            last.1 = Some(verifier);
        }
        let _ = user;
    }

    /// A body with something in it that could be worth something.
    fn body(&self, draw: &Draw, op: &OpInfo, user: &str) -> Value {
        let name = format!("made-{}", self.made);
        let id = |kind: &str| self.id(draw, kind);
        let mut map = serde_json::Map::new();
        let key = match (op.method.as_str(), op.path.as_ref()) {
            ("POST", "/v3/users") | ("PATCH", "/v3/users/{user_id}") => {
                let new = op.method == Method::POST;
                if new || draw.one_in(2) {
                    map.insert("password".into(), json!(format!("password-{}", self.made)));
                }
                if new || draw.one_in(4) {
                    map.insert("name".into(), json!(name));
                }
                if (new && !draw.one_in(8)) || draw.one_in(4) {
                    map.insert("domain_id".into(), json!(id("domain_id")));
                }
                if draw.one_in(4) {
                    map.insert("default_project_id".into(), json!(id("project_id")));
                }
                "user"
            }
            ("POST", "/v3/groups") | ("PATCH", "/v3/groups/{group_id}") => {
                map.insert("name".into(), json!(name));
                if !draw.one_in(4) {
                    map.insert("domain_id".into(), json!(id("domain_id")));
                }
                "group"
            }
            ("POST", "/v3/projects") | ("PATCH", "/v3/projects/{project_id}") => {
                let new = op.method == Method::POST;
                if new || draw.one_in(4) {
                    map.insert("name".into(), json!(name));
                }
                if (new && !draw.one_in(8)) || draw.one_in(3) {
                    map.insert("domain_id".into(), json!(id("domain_id")));
                }
                if draw.one_in(3) {
                    let kind = if draw.one_in(2) { "project_id" } else { "domain_id" };
                    map.insert("parent_id".into(), json!(id(kind)));
                }
                if draw.one_in(8) {
                    map.insert("is_domain".into(), json!(true));
                }
                if map.is_empty() {
                    map.insert("enabled".into(), json!(draw.one_in(2)));
                }
                "project"
            }
            ("POST", "/v3/users/{user_id}/application_credentials") => {
                map.insert("name".into(), json!(name));
                if draw.one_in(2) {
                    map.insert("roles".into(), json!([{"id": id("role_id")}]));
                }
                if draw.one_in(2) {
                    map.insert("unrestricted".into(), json!(true));
                }
                if draw.one_in(4) {
                    map.insert("project_id".into(), json!(id("project_id")));
                }
                "application_credential"
            }
            ("POST", "/v3/OS-TRUST/trusts") => {
                let own = draw.of(&self.passwords).map_or_else(|| id("user_id"), |(user, _)| user.clone());
                let whose = |mine: bool| if mine { own.clone() } else { id("user_id") };
                let trustor = whose(!draw.one_in(3));
                let again = draw.one_in(4);
                map.extend([
                    ("trustor_user_id".into(), json!(if again { self.stage.boss.clone() } else { trustor })),
                    ("trustee_user_id".into(), json!(whose(draw.one_in(2)))),
                    ("project_id".into(), json!(id("project_id"))),
                    ("impersonation".into(), json!(draw.one_in(2))),
                    ("allow_redelegation".into(), json!(draw.one_in(2))),
                    ("roles".into(), json!([{"id": id("role_id")}])),
                ]);
                "trust"
            }
            ("POST", "/v3/credentials") | ("PATCH", "/v3/credentials/{credential_id}") => {
                let kind = draw.of(&["ec2", "cert", "totp"]).unwrap();
                let mut blob = json!({"access": format!("access-{}", self.made), "secret": "s"});
                if draw.one_in(3) {
                    blob["trust_id"] = json!(id("trust_id"));
                }
                if draw.one_in(3) {
                    blob["app_cred_id"] = json!(id("application_credential_id"));
                }
                let own = draw.of(&self.passwords).map_or_else(|| id("user_id"), |(user, _)| user.clone());
                map.insert("type".into(), json!(kind));
                map.insert("blob".into(), json!(blob.to_string()));
                if op.method == Method::POST || draw.one_in(2) {
                    map.insert("user_id".into(), json!(if draw.one_in(3) { id("user_id") } else { own }));
                }
                map.insert("project_id".into(), json!(id("project_id")));
                "credential"
            }
            ("POST", "/v3/users/{user_id}/credentials/OS-EC2") => {
                return json!({"tenant_id": id("project_id")});
            }
            ("POST", "/v3/roles") | ("PATCH", "/v3/roles/{role_id}") => {
                map.insert("name".into(), json!(draw.of(&["member", "manager", "fresh"]).unwrap()));
                if draw.one_in(2) {
                    map.insert("domain_id".into(), json!(id("domain_id")));
                }
                "role"
            }
            ("PUT", "/v3/OS-OAUTH1/authorize/{request_token_id}") => {
                return json!({"roles": [{"id": id("role_id")}]});
            }
            ("PUT" | "PATCH", "/v3/OS-FEDERATION/identity_providers/{idp_id}") => {
                map.insert("enabled".into(), json!(true));
                "identity_provider"
            }
            ("PUT" | "PATCH", "/v3/OS-FEDERATION/mappings/{mapping_id}") => {
                let local = json!([{"user": {"name": "{0}"}}, {"group": {"id": id("group_id")}}]);
                map.insert("rules".into(), json!([{"local": local, "remote": [{"type": "sub"}]}]));
                "mapping"
            }
            ("PUT" | "PATCH", path) if path.ends_with("/protocols/{protocol_id}") => {
                map.insert("mapping_id".into(), json!(id("mapping_id")));
                "protocol"
            }
            ("POST" | "PATCH", path) if path.starts_with("/v3/OS-OIDC/clients") => {
                map.insert("name".into(), json!(name));
                map.insert("redirect_uris".into(), json!(["https://evil.test/back"]));
                "client"
            }
            _ => {
                let mut ids = if draw.one_in(2) { self.stage.near.clone() } else { self.stage.far.clone() };
                ids.insert("user_id", user.to_owned());
                return body_of(op, &Things { ids, owner: self.world.anyone.clone() }, self.made);
            }
        };
        json!({ key: map })
    }

    fn scope(&self, draw: &Draw) -> Option<Value> {
        match draw.below(10) {
            0 => None,
            1 => Some(json!("unscoped")),
            2..6 => Some(json!({"project": {"id": self.id(draw, "project_id")}})),
            6..8 => Some(json!({"domain": {"id": self.id(draw, "domain_id")}})),
            8 => Some(json!({"OS-TRUST:trust": {"id": self.id(draw, "trust_id")}})),
            _ => Some(json!({"system": {"all": true}})),
        }
    }

    async fn login(&mut self, draw: &Draw) -> Found {
        let secret = draw.of(&self.secrets).cloned();
        let key = draw.of(&self.keys).cloned();
        let (kind, answer) = match (draw.below(10), secret, key) {
            (0..2, Some((id, secret)), _) => {
                let method = json!({"id": id, "secret": secret});
                let identity =
                    json!({"methods": ["application_credential"], "application_credential": method});
                ("application credential", self.world.auth(identity, None).await)
            }
            // A service asks on behalf of who signed.
            (2..4, _, Some((access, secret))) => {
                let body = ec2_request(&access, &secret, &self.world.now());
                ("keys", self.world.admin.post("/v3/ec2tokens", body).await)
            }
            (4, ..) => {
                let access = draw.of(&self.given).cloned().unwrap();
                ("access token", self.program.login(&access, None, self.scope(draw)).await)
            }
            (5..8, ..) => {
                let token = self.holder(draw).token.clone();
                let identity = json!({"methods": ["token"], "token": {"id": token}});
                ("token", self.world.auth(identity, self.scope(draw)).await)
            }
            _ => {
                let (user, password) = match draw.one_in(2) {
                    true => self.passwords.last().cloned().unwrap(),
                    false => draw.of(&self.passwords).cloned().unwrap(),
                };
                let identity = json!({"methods": ["password"], "password": {"user": {"id": user, "password": password}}});
                ("password", self.world.auth(identity, self.scope(draw)).await)
            }
        };
        self.heard(&format!("login by {kind}"), &answer);
        if answer.status >= 300 {
            return Ok(());
        }
        self.told.tokens += 1;
        let shown = answer.at("/token");
        if let Some(last) = self.log.last_mut() {
            last.push_str(&format!(": {} {} {}", shown["user"]["id"], shown["project"], shown["roles"]));
        }
        let token = answer.header("x-subject-token").to_owned();
        self.holders.push(Holder { client: self.world.anyone.with_token(&token), token });
        self.party.token(&shown).map_or(Ok(()), Err)
    }

    /// A turn of OAuth 1.0a: the program asks, somebody says yes, the program takes.
    async fn dance(&mut self, draw: &Draw) -> Found {
        match self.asked.pop() {
            None => {
                let answer = self.program.try_ask(&self.id(draw, "project_id")).await;
                self.heard("the program asks", &answer);
                if answer.status == 201 {
                    let asked = pair(&answer);
                    self.pools.entry("request_token_id").or_default().near = vec![asked.key.clone()];
                    self.asked.push((asked, None));
                }
            }
            Some((asked, None)) => {
                let path = format!("/v3/OS-OAUTH1/authorize/{}", asked.key);
                let body = json!({"roles": [{"id": self.id(draw, "role_id")}]});
                let answer = self.holder(draw).client.put(&path, body.clone()).await;
                self.heard(&format!("somebody says yes {body}"), &answer);
                let verifier = (answer.status == 200).then(|| answer.text_at("/token/oauth_verifier"));
                self.asked.push((asked, verifier));
            }
            Some((asked, Some(verifier))) => {
                let answer = self.program.access(&asked, &verifier).await;
                self.heard("the program takes", &answer);
                if answer.status == 201 {
                    self.given.push(pair(&answer));
                }
            }
        }
        Ok(())
    }

    async fn own_password(&mut self, draw: &Draw) -> Found {
        let (user, old) = draw.of(&self.passwords).cloned().unwrap();
        let of = if draw.one_in(4) { self.id(draw, "user_id") } else { user };
        let new = format!("password-{}", self.made);
        let body = json!({"user": {"original_password": old, "password": new}});
        let answer = self.world.anyone.post(&format!("/v3/users/{of}/password"), body).await;
        self.heard("own password", &answer);
        if answer.status == 204 {
            self.passwords.push((of, new));
        }
        Ok(())
    }
}
