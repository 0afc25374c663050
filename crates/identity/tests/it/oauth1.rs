//! OAuth 1.0a: a program asks, a user says yes, the program acts for the user, and no further.

use api::Method;
use api::testing::{Answer, Client};
use serde_json::{Value, json};

use crate::extensions::signed;
use crate::world::{World, password_of};

/// A key and its secret: a consumer, a request token or an access token.
#[derive(Debug, Clone)]
pub struct Pair {
    pub key: String,
    pub secret: String,
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// A signer that knows nothing of ours but the standard.
pub struct Signer {
    pub consumer: Pair,
    pub token: Option<Pair>,
    pub verifier: Option<String>,
    pub at: i64,
    pub nonce: String,
}

impl Signer {
    pub fn header(&self, path: &str) -> String {
        let mut params = vec![
            ("oauth_consumer_key", self.consumer.key.clone()),
            ("oauth_nonce", self.nonce.clone()),
            ("oauth_signature_method", "HMAC-SHA1".to_owned()),
            ("oauth_timestamp", self.at.to_string()),
            ("oauth_version", "1.0".to_owned()),
        ];
        params.extend(self.token.iter().map(|t| ("oauth_token", t.key.clone())));
        params.extend(self.verifier.iter().map(|v| ("oauth_verifier", v.clone())));
        params.sort();
        let pairs: Vec<String> = params.iter().map(|(n, v)| format!("{n}={}", quoted(v))).collect();
        let base =
            format!("POST&{}&{}", quoted(&format!("https://cloud.test{path}")), quoted(&pairs.join("&")));
        let key =
            format!("{}&{}", self.consumer.secret, self.token.as_ref().map_or("", |t| t.secret.as_str()));
        params.push(("oauth_signature", signed(&key, &base)));
        let shown: Vec<String> = params.iter().map(|(n, v)| format!("{n}=\"{}\"", quoted(v))).collect();
        format!("OAuth {}", shown.join(", "))
    }
}

/// One program and what it has got so far.
pub struct Program<'a> {
    world: &'a World,
    anyone: Client,
    pub consumer: Pair,
    count: std::cell::Cell<u32>,
}

impl<'a> Program<'a> {
    pub async fn new(world: &'a World, admin: &Client, anyone: &Client) -> Self {
        let made = admin.post("/v3/OS-OAUTH1/consumers", json!({"consumer": {}})).await.expect(201);
        let consumer = Pair { key: made.text_at("/consumer/id"), secret: made.text_at("/consumer/secret") };
        Program { world, anyone: anyone.clone(), consumer, count: 0.into() }
    }

    /// One whose secret is known; what it signs is not what was signed before.
    pub fn known(world: &'a World, anyone: &Client, consumer: Pair) -> Self {
        Program { world, anyone: anyone.clone(), consumer, count: 1000.into() }
    }

    pub fn signer(&self, token: Option<&Pair>) -> Signer {
        self.count.set(self.count.get() + 1);
        let at = base::Clock::now(&*self.world.clock).as_secs();
        let nonce = format!("n{}", self.count.get());
        Signer { consumer: self.consumer.clone(), token: token.cloned(), verifier: None, at, nonce }
    }

    pub async fn send(&self, path: &str, header: &str, more: &[(&str, &str)]) -> Answer {
        let mut call = self.anyone.call(Method::POST, path).header("authorization", header);
        for (name, value) in more {
            call = call.header(name, value);
        }
        call.send().await
    }

    pub async fn ask(&self, project: &str) -> Pair {
        pair(&self.try_ask(project).await.expect(201))
    }

    pub async fn try_ask(&self, project: &str) -> Answer {
        let header = self.signer(None).header(ASK);
        self.send(ASK, &header, &[("requested-project-id", project)]).await
    }

    pub async fn access(&self, asked: &Pair, verifier: &str) -> Answer {
        let signer = Signer { verifier: Some(verifier.into()), ..self.signer(Some(asked)) };
        self.send(ACCESS, &signer.header(ACCESS), &[]).await
    }

    /// A login, with that header or a good one.
    pub async fn login(&self, access: &Pair, header: Option<String>, scope: Option<Value>) -> Answer {
        let header = header.unwrap_or_else(|| self.signer(Some(access)).header(TOKENS));
        let mut auth = json!({"identity": {"methods": ["oauth1"], "oauth1": {}}});
        if let Some(scope) = scope {
            auth["scope"] = scope;
        }
        let call = self.anyone.call(Method::POST, TOKENS).header("authorization", &header);
        call.json(&json!({"auth": auth})).send().await
    }
}

const ASK: &str = "/v3/OS-OAUTH1/request_token";
const ACCESS: &str = "/v3/OS-OAUTH1/access_token";
const TOKENS: &str = "/v3/auth/tokens";

pub fn pair(answer: &Answer) -> Pair {
    assert_eq!(answer.header("content-type"), "application/x-www-form-urlencoded");
    let text = answer.text();
    let of = |name: &str| {
        let found = text.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('=')).unwrap();
        found.to_owned()
    };
    assert!(of("oauth_expires_at").ends_with('Z'));
    Pair { key: of("oauth_token"), secret: of("oauth_token_secret") }
}

/// The whole dance: `boss` gives a program some roles on a project.
pub async fn given<'a>(
    world: &'a World,
    boss: &Client,
    anyone: &Client,
    project: &str,
    roles: &[&str],
) -> (Program<'a>, Pair) {
    let program = Program::new(world, boss, anyone).await;
    let asked = program.ask(project).await;
    let roles: Vec<Value> = roles.iter().map(|r| json!({"name": r})).collect();
    let path = format!("/v3/OS-OAUTH1/authorize/{}", asked.key);
    let answer = boss.put(&path, json!({"roles": roles})).await.expect(200);
    let verifier = answer.text_at("/token/oauth_verifier");
    let access = pair(&program.access(&asked, &verifier).await.expect(201));
    (program, access)
}

/// Gives the administrator a role on a project; the administrator's id.
pub async fn admit(world: &World, project: &str, role: &str) -> String {
    let boss = world.admin.get("/v3/users?name=admin").await.expect(200).text_at("/users/0/id");
    let role = world.role(role).await;
    world
        .admin
        .put(&format!("/v3/projects/{project}/users/{boss}/roles/{role}"), json!({}))
        .await
        .expect(204);
    boss
}

#[tokio::test]
async fn a_program_acts_for_who_said_yes() {
    let world = World::new().await;
    let project = world.demo_project.as_str();
    let boss = admit(&world, project, "manager").await;
    let (program, access) = given(&world, &world.admin, &world.anyone, project, &["member"]).await;
    let answer = program.login(&access, None, None).await.expect(201);
    let token = answer.header("x-subject-token").to_owned();
    let shown = world.validate(&token).await.expect(200);
    assert_eq!(shown.text_at("/token/user/id"), boss);
    assert_eq!(shown.text_at("/token/project/id"), project);
    assert_eq!(shown.at("/token/methods"), json!(["oauth1"]));
    let about = json!({"access_token_id": access.key, "consumer_id": program.consumer.key});
    assert_eq!(shown.at("/token/OS-OAUTH1"), about);
    // What was given and what that implies; not all that the user has.
    assert_eq!(world.roles_of(&token).await, ["member", "reader"]);
    // No other scope, whatever is asked for.
    let system = program.login(&access, None, Some(json!({"system": {"all": true}}))).await.expect(201);
    assert_eq!(system.text_at("/token/project/id"), project);
    // Another server reads the same from the token itself.
    let other = World::on(crate::world::config(), world.store.clone(), world.clock.clone(), 9).await;
    other.validate(&token).await.expect(404);

    // Lists.
    let all = format!("/v3/users/{boss}/OS-OAUTH1/access_tokens");
    let one = format!("{all}/{}", access.key);
    let listed = world.admin.get(&all).await.expect(200);
    assert_eq!(listed.at("/access_tokens").as_array().unwrap().len(), 1);
    let shown = world.admin.get(&one).await.expect(200);
    assert_eq!(shown.at("/access_token/consumer_id"), program.consumer.key);
    assert!(!shown.text().contains("secret") && shown.at("/access_token/role_ids").is_null());
    let roles = world.admin.get(&format!("{one}/roles")).await.expect(200);
    assert_eq!(roles.at("/roles/0/name"), "member");
    let member = world.role("member").await;
    world.admin.get(&format!("{one}/roles/{member}")).await.expect(200);
    world.admin.get(&format!("{one}/roles/{}", world.role("admin").await)).await.expect(404);
    world
        .admin
        .get(&format!("/v3/users/{}/OS-OAUTH1/access_tokens/{}", world.demo, access.key))
        .await
        .expect(404);

    // Taken back: ends at once, also what was got with it.
    world.validate(&token).await.expect(200);
    world.admin.delete(&one).await.expect(204);
    world.validate(&token).await.expect(404);
    program.login(&access, None, None).await.expect(404);
    let events = world.admin.get("/v3/OS-REVOKE/events").await.expect(200);
    assert!(events.text().contains(&format!("\"OS-OAUTH1:access_token_id\":\"{}\"", access.key)));
}

#[tokio::test]
async fn what_a_program_has_got_ends_with_its_ground() {
    let world = World::new().await;
    let project = world.demo_project.as_str();
    let boss = admit(&world, project, "member").await;
    let member = world.role("member").await;
    let live = async |program: &Program<'_>, access: &Pair| {
        let answer = program.login(access, None, None).await;
        if answer.status == 201 { Some(answer.header("x-subject-token").to_owned()) } else { None }
    };
    // The role.
    let (program, access) = given(&world, &world.admin, &world.anyone, project, &["member"]).await;
    let token = live(&program, &access).await.unwrap();
    let grant = format!("/v3/projects/{project}/users/{boss}/roles/{member}");
    world.admin.delete(&grant).await.expect(204);
    world.validate(&token).await.expect(404);
    assert!(live(&program, &access).await.is_none());
    world.admin.put(&grant, json!({})).await.expect(204);
    // Its day is over, and so is every token got on it.
    world.later(86_400 - 1800);
    let late = world.administrator().await;
    let token = live(&program, &access).await.unwrap();
    world.later(1799);
    late.with_header("x-subject-token", &token).get(TOKENS).await.expect(200);
    world.later(1);
    late.with_header("x-subject-token", &token).get(TOKENS).await.expect(404);
    assert!(live(&program, &access).await.is_none());
    // The consumer.
    let (program, access) = given(&world, &late, &world.anyone, project, &["member"]).await;
    let token = live(&program, &access).await.unwrap();
    late.delete(&format!("/v3/OS-OAUTH1/consumers/{}", program.consumer.key)).await.expect(204);
    late.with_header("x-subject-token", &token).get(TOKENS).await.expect(404);
    assert!(live(&program, &access).await.is_none());
    // The project.
    let made = late.post("/v3/projects", json!({"project": {"name": "brief"}})).await.expect(201);
    let brief = made.text_at("/project/id");
    late.put(&format!("/v3/projects/{brief}/users/{boss}/roles/{member}"), json!({})).await.expect(204);
    let (program, access) = given(&world, &late, &world.anyone, &brief, &["member"]).await;
    assert!(live(&program, &access).await.is_some());
    late.delete(&format!("/v3/projects/{brief}")).await.expect(204);
    assert!(live(&program, &access).await.is_none());
    let left = late.get(&format!("/v3/users/{boss}/OS-OAUTH1/access_tokens")).await.expect(200);
    assert!(!left.text().contains(&access.key));
}

#[tokio::test]
async fn signatures_are_good_once_and_for_what_they_sign() {
    let world = World::new().await;
    let project = world.demo_project.as_str();
    admit(&world, project, "member").await;
    let program = Program::new(&world, &world.admin, &world.anyone).await;
    let of_project = [("requested-project-id", project)];
    // What is missing is named.
    let answer = program.send(ASK, "Basic YTpi", &of_project).await.expect(400);
    assert!(answer.text().contains("OAuth"));
    let answer = program.send(ASK, "OAuth oauth_nonce=\"1\"", &of_project).await.expect(400);
    assert!(answer.text().contains("oauth_consumer_key"));
    let answer = program.send(ASK, &program.signer(None).header(ASK), &[]).await.expect(400);
    assert!(answer.text().contains("Requested-Project-Id"));
    let unknown =
        Signer { consumer: Pair { key: "0".repeat(32), secret: "s".into() }, ..program.signer(None) };
    program.send(ASK, &unknown.header(ASK), &of_project).await.expect(404);
    // Which projects there are is told to consumers only.
    let nowhere = "0".repeat(32);
    let forged = Signer {
        consumer: Pair { secret: "guessed".into(), ..program.consumer.clone() },
        ..program.signer(None)
    };
    for place in [project, nowhere.as_str()] {
        program.send(ASK, &forged.header(ASK), &[("requested-project-id", place)]).await.expect(401);
    }
    let header = program.signer(None).header(ASK);
    program.send(ASK, &header, &[("requested-project-id", nowhere.as_str())]).await.expect(404);
    // Another place, an old request, a request of the future, the same again.
    program.send(ASK, &program.signer(None).header(ACCESS), &of_project).await.expect(401);
    for (off, status) in [(-601, 401), (601, 401), (-600, 201), (600, 201)] {
        let mut signer = program.signer(None);
        signer.at += off;
        program.send(ASK, &signer.header(ASK), &of_project).await.expect(status);
    }
    let header = program.signer(None).header(ASK);
    let asked = pair(&program.send(ASK, &header, &of_project).await.expect(201));
    program.send(ASK, &header, &of_project).await.expect(401);
    // Not yet authorized; then authorized, by another verifier, by another consumer, once.
    program.access(&asked, "anything").await.expect(401);
    let path = format!("/v3/OS-OAUTH1/authorize/{}", asked.key);
    let boss = &world.admin;
    for (body, status) in [
        (json!({}), 400),
        (json!({"roles": []}), 400),
        (json!({"roles": [{}]}), 400),
        (json!({"roles": [{"id": "a", "name": "b"}]}), 400),
        (json!({"roles": [{"name": "service"}]}), 401),
        (json!({"roles": [{"id": world.role("manager").await}]}), 401),
    ] {
        boss.put(&path, body).await.expect(status);
    }
    world.demo().await.put(&path, json!({"roles": [{"name": "member"}]})).await.expect(403);
    boss.put(&format!("/v3/OS-OAUTH1/authorize/{nowhere}"), json!({"roles": [{"name": "member"}]}))
        .await
        .expect(404);
    let told = boss.put(&path, json!({"roles": [{"name": "member"}]})).await.expect(200);
    let verifier = told.text_at("/token/oauth_verifier");
    program.access(&asked, "wrongone").await.expect(401);
    let other = Program::new(&world, boss, &world.anyone).await;
    other.access(&asked, &verifier).await.expect(401);
    let access = pair(&program.access(&asked, &verifier).await.expect(201));
    program.access(&asked, &verifier).await.expect(404);
    // Logins: the secret of the access token, its consumer's, once each.
    let stolen = Pair { secret: "guessed".into(), ..access.clone() };
    program.login(&stolen, None, None).await.expect(401);
    other.login(&access, None, None).await.expect(401);
    let header = program.signer(Some(&access)).header(TOKENS);
    program.login(&access, Some(header.clone()), None).await.expect(201);
    program.login(&access, Some(header), None).await.expect(401);
    let identity = json!({"methods": ["oauth1"], "oauth1": {}});
    world.auth(identity, None).await.expect(400);
    // An unused request token ends.
    let asked = program.ask(project).await;
    world.later(28_801);
    let late = world.administrator().await;
    let path = format!("/v3/OS-OAUTH1/authorize/{}", asked.key);
    late.put(&path, json!({"roles": [{"name": "member"}]})).await.expect(401);
    // And is forgotten, as are nonces; secrets are nowhere in the tables.
    let dump = world.dump().await;
    assert!(dump.contains(&asked.key));
    for secret in [&asked.secret, &access.secret, &program.consumer.secret, &verifier] {
        assert!(!dump.contains(secret.as_str()));
    }
    world.state.keep_house().await.unwrap();
    late.put(&path, json!({"roles": [{"name": "member"}]})).await.expect(404);
}

#[tokio::test]
async fn a_delegated_program_makes_nothing_that_outlives_it() {
    let world = World::new().await;
    let project = world.demo_project.as_str();
    let boss = admit(&world, project, "member").await;
    let (program, access) = given(&world, &world.admin, &world.anyone, project, &["member"]).await;
    let token = program.login(&access, None, None).await.expect(201).header("x-subject-token").to_owned();
    let by = world.anyone.with_token(&token);
    let credential = json!({"application_credential": {"name": "x"}});
    by.post(&format!("/v3/users/{boss}/application_credentials"), credential).await.expect(403);
    let trust = json!({"trust": {
        "trustor_user_id": boss, "trustee_user_id": world.alt, "project_id": project, "impersonation": true,
        "roles": [{"name": "member"}]}});
    by.post("/v3/OS-TRUST/trusts", trust).await.expect(403);
    let totp = json!({"credential": {"type": "totp", "blob": "GEZDGNBVGY3TQOJQ", "user_id": boss}});
    by.post("/v3/credentials", totp).await.expect(403);
    by.get(&format!("/v3/users/{boss}/OS-OAUTH1/access_tokens")).await.expect(403);
    let again = json!({"methods": ["token"], "token": {"id": token}});
    world
        .auth(again, Some(json!({"project": {"name": "admin", "domain": {"id": "default"}}})))
        .await
        .expect(403);
    // Keys made with it are worth what it is, and end with it.
    let keys = by.post(&format!("/v3/users/{boss}/credentials/OS-EC2"), json!({"tenant_id": project})).await;
    let keys = keys.expect(201);
    let (key, secret) = (keys.text_at("/credential/access"), keys.text_at("/credential/secret"));
    let signed = || crate::extensions::s3_request(&key, &secret);
    let answer = world.admin.post("/v3/s3tokens", signed()).await.expect(200);
    let names = answer.at("/token/roles");
    let names: Vec<&str> = names.as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["member", "reader"]);
    assert_eq!(answer.at("/token/OS-OAUTH1/access_token_id"), access.key);
    let one = format!("/v3/users/{boss}/OS-OAUTH1/access_tokens/{}", access.key);
    world.admin.delete(&one).await.expect(204);
    world.admin.post("/v3/s3tokens", signed()).await.expect(401);
}

/// A rule of several factors is not met by a receipt that has forgotten what the first was limited to.
#[tokio::test]
async fn a_delegation_gives_no_receipt() {
    let world = World::new().await;
    let project = world.demo_project.as_str();
    let boss = admit(&world, project, "member").await;
    let (program, access) = given(&world, &world.admin, &world.anyone, project, &["member"]).await;
    let rules = json!({"user": {"options": {"multi_factor_auth_rules": [["oauth1", "password"]]}}});
    world.admin.patch(&format!("/v3/users/{boss}"), rules).await.expect(200);
    let answer = program.login(&access, None, None).await.expect(401);
    assert_eq!(answer.header("openstack-auth-receipt"), "");
    // Together they are enough, and limited.
    let password = json!({"user": {"id": boss, "password": password_of("admin")}});
    let identity = json!({"methods": ["oauth1", "password"], "oauth1": {}, "password": password});
    let header = program.signer(Some(&access)).header(TOKENS);
    let call = world.anyone.call(Method::POST, TOKENS).header("authorization", &header);
    let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
    let answer = call.json(&json!({"auth": {"identity": identity, "scope": scope}})).send().await.expect(201);
    assert_eq!(answer.text_at("/token/project/id"), project);
}
