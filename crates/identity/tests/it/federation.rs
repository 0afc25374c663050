//! Two clouds: users of the first come into the second by OpenID Connect, with what their claims say and no longer.

use std::sync::Arc;

use ::federation::issuer::Fetch;
use api::testing::{Answer, Client};
use api::{Method, Query};
use async_trait::async_trait;
use base::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use identity::{Config, SharedFetch};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::world::{World, config, password_of};

const ISSUER: &str = "https://first.test";
const WAY_IN: &str = "/v3/OS-FEDERATION/identity_providers/first/protocols/openid/auth";

const WEBSSO: &str = "/v3/auth/OS-FEDERATION/identity_providers/first/protocols/openid/websso";
const CONSOLE: &str = "https://console.test/auth/websso/";

/// The second cloud's way to the first one's web server.
#[derive(Default)]
struct Wire(Mutex<Option<Client>>);

#[async_trait]
impl Fetch for Wire {
    async fn get(&self, url: &str, _: Option<&str>) -> Result<Bytes> {
        let client = self.0.lock().clone().ok_or_else(|| Error::unavailable("cut"))?;
        let path = url.strip_prefix(ISSUER).ok_or_else(|| Error::unavailable("elsewhere"))?;
        Ok(client.get(path).await.expect(200).body)
    }

    async fn post(
        &self,
        url: &str,
        _: Option<&str>,
        by: Option<(&str, &str)>,
        form: &[(&str, &str)],
    ) -> Result<Bytes> {
        let client = self.0.lock().clone().ok_or_else(|| Error::unavailable("cut"))?;
        let path = url.strip_prefix(ISSUER).ok_or_else(|| Error::unavailable("elsewhere"))?;
        let (id, secret) = by.ok_or_else(|| Error::unauthenticated("nobody asks"))?;
        let basic = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
        let answer = post(&client.with_header("authorization", &basic), path, form).await;
        if answer.status == 200 { Ok(answer.body) } else { Err(Error::unauthenticated(answer.text())) }
    }
}

struct Two {
    first: World,
    second: World,
    wire: Arc<Wire>,
    client: String,
    secret: String,
}

fn form(pairs: &[(&str, &str)]) -> String {
    Query::default().rebuild(&[], pairs)
}

async fn post(client: &Client, path: &str, pairs: &[(&str, &str)]) -> Answer {
    let call = client.call(Method::POST, path).header("content-type", "application/x-www-form-urlencoded");
    call.bytes(form(pairs)).send().await
}

/// Rules as an operator would write them.
fn rules() -> Value {
    json!([
        {
            "local": [{"user": {"id": "{0}", "name": "{1}", "email": "{2}"}}],
            "remote": [{"type": "sub"}, {"type": "OIDC-preferred_username"}, {"type": "email"}],
        },
        {
            "local": [{"groups": "{0}", "domain": {"id": "default"}}],
            "remote": [{"type": "HTTP_OIDC_GROUPS", "whitelist": ["^partner-"], "regex": true}],
        },
        {
            "local": [{"projects": [{"name": "shared", "roles": [{"name": "member"}]}]}],
            "remote": [{"type": "openstack_roles", "any_one_of": ["member@demo"]}],
        },
    ])
}

impl Two {
    async fn new() -> Self {
        let named = |url: &str| {
            let mut config = config();
            config.settings.public_url = url.into();
            config
        };
        let first = World::with(named(ISSUER)).await;
        let wire = Arc::new(Wire::default());
        *wire.0.lock() = Some(first.anyone.clone());
        let fetch = Some(SharedFetch(wire.clone()));
        let operator = identity::Operator {
            trusted_dashboards: vec![CONSOLE.to_owned()],
            ..identity::Operator::default()
        };
        let second = World::with(Config { fetch, operator, ..named("https://second.test") }).await;
        let types = [
            "authorization_code",
            "refresh_token",
            "password",
            "urn:ietf:params:oauth:grant-type:device_code",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ];
        let body = json!({"client": {
            "name": "Second cloud",
            "redirect_uris": ["https://second.test/back", "http://127.0.0.1/cli", format!("https://second.test{WEBSSO}")],
            "grant_types": types,
        }});
        let made = first.admin.post("/v3/OS-OIDC/clients", body).await.expect(201);
        let (client, secret) = (made.text_at("/client/id"), made.text_at("/client/secret"));
        for (user, name) in [(&first.demo, "demo"), (&first.alt, "alt")] {
            let email = json!({"user": {"email": format!("{name}@first.test")}});
            first.admin.patch(&format!("/v3/users/{user}"), email).await.expect(200);
        }
        let two = Two { first, second, wire, client, secret };
        two.trust().await;
        two
    }

    /// The second cloud learns of the first: takes effect at once.
    async fn trust(&self) {
        let admin = &self.second.admin;
        let oidc = json!({"issuer": ISSUER, "audiences": [self.client]});
        let idp = json!({"identity_provider": {"enabled": true, "remote_ids": [ISSUER], "oidc": oidc}});
        admin.put("/v3/OS-FEDERATION/identity_providers/first", idp).await.expect(201);
        let mapping = json!({"mapping": {"rules": rules()}});
        admin.put("/v3/OS-FEDERATION/mappings/first", mapping).await.expect(201);
        let protocol = json!({"protocol": {"mapping_id": "first"}});
        admin.put("/v3/OS-FEDERATION/identity_providers/first/protocols/openid", protocol).await.expect(201);
    }

    async fn token_request(&self, pairs: &[(&str, &str)]) -> Answer {
        let own = [("client_id", self.client.as_str()), ("client_secret", self.secret.as_str())];
        post(&self.first.anyone, "/oidc/token", &[pairs, own.as_slice()].concat()).await
    }

    /// An access token of the first cloud.
    async fn access(&self, user: &str) -> String {
        let pairs = [
            ("grant_type", "password"),
            ("username", user),
            ("password", &password_of(user)),
            ("scope", "openid"),
        ];
        self.token_request(&pairs).await.expect(200).text_at("/access_token")
    }

    async fn enter(&self, access: &str) -> Answer {
        self.second
            .anyone
            .with_header("authorization", &format!("Bearer {access}"))
            .post(WAY_IN, json!({}))
            .await
    }

    /// A token of the second cloud, unscoped.
    async fn unscoped(&self, access: &str) -> String {
        self.enter(access).await.expect(201).header("x-subject-token").to_owned()
    }

    /// The roles of a token of the second cloud, however long ago its administrator logged in.
    async fn roles(&self, token: &str) -> Vec<String> {
        let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
        let admin = self.second.anyone.with_token(&self.second.token("admin", scope).await);
        let names =
            admin.with_header("x-subject-token", token).get("/v3/auth/tokens").await.at("/token/roles");
        names.as_array().into_iter().flatten().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn scoped(&self, unscoped: &str, project: &str) -> Answer {
        let identity = json!({"methods": ["token"], "token": {"id": unscoped}});
        self.second.auth(identity, Some(json!({"project": {"id": project}}))).await
    }

    fn later(&self, seconds: u64) {
        self.first.later(seconds);
        self.second.later(seconds);
    }

    /// A group of the second cloud with a role on its demo project.
    async fn partner_group(&self) -> String {
        let group =
            self.second.make_id("group", json!({"name": "partner-dev", "domain_id": "default"})).await;
        let role = self.second.role("member").await;
        let grant = format!("/v3/projects/{}/groups/{group}/roles/{role}", self.second.demo_project);
        self.second.admin.put(&grant, json!({})).await.expect(204);
        group
    }

    /// Puts demo of the first cloud into its group `partner-dev`, or takes it out.
    async fn member(&self, group: &str, is: bool) {
        let path = format!("/v3/groups/{group}/users/{}", self.first.demo);
        let admin = &self.first.admin;
        if is { admin.put(&path, json!({})).await } else { admin.delete(&path).await }.expect(204);
    }

    async fn first_group(&self) -> String {
        self.first.make_id("group", json!({"name": "partner-dev", "domain_id": "default"})).await
    }
}

#[tokio::test]
async fn a_user_of_one_cloud_works_in_another_with_the_roles_that_are_claimed() {
    let two = Two::new().await;
    let group = two.partner_group().await;
    let theirs = two.first_group().await;
    two.member(&theirs, true).await;
    let answer = two.enter(&two.access("demo").await).await.expect(201);
    let body = answer.at("/token");
    assert_eq!(body["methods"], json!(["mapped"]));
    assert_eq!(body["user"]["name"], "demo");
    assert_ne!(body["user"]["domain"]["id"], "default");
    assert_eq!(
        body["user"]["OS-FEDERATION"],
        json!({"identity_provider": {"id": "first"}, "protocol": {"id": "openid"}, "groups": [{"id": group}]})
    );
    assert_eq!(body.get("roles"), None);
    let unscoped = answer.header("x-subject-token").to_owned();
    // What can be had: the project of the group, and the one that the mapping makes.
    let client = two.second.anyone.with_token(&unscoped);
    let mut names = Vec::new();
    for path in ["/v3/auth/projects", "/v3/OS-FEDERATION/projects"] {
        let projects = client.get(path).await.expect(200).at("/projects");
        names = projects.as_array().unwrap().clone();
        let mut shown: Vec<&str> = names.iter().map(|p| p["name"].as_str().unwrap()).collect();
        shown.sort_unstable();
        assert_eq!(shown, ["demo", "shared"]);
    }
    for project in names {
        let token = two.scoped(&unscoped, project["id"].as_str().unwrap()).await.expect(201);
        assert_eq!(two.second.roles_of(token.header("x-subject-token")).await, ["member", "reader"]);
        assert_eq!(token.at("/token/methods"), json!(["token", "mapped"]));
        assert_eq!(token.at("/token/user/OS-FEDERATION/groups/0/id"), json!(group));
        assert_eq!(token.at("/token/expires_at"), body["expires_at"]);
    }
    // No assignment was written, and the user is known by an id that is always the same.
    let assignments = two.second.admin.get("/v3/role_assignments").await.expect(200).at("/role_assignments");
    let user = body["user"]["id"].clone();
    assert!(assignments.as_array().unwrap().iter().all(|a| a["user"]["id"] != user));
    let again = two.enter(&two.access("demo").await).await.expect(201);
    assert_eq!(again.at("/token/user/id"), user);
    let shown = two.second.admin.get(&format!("/v3/users/{}", user.as_str().unwrap())).await.expect(200);
    assert_eq!(shown.at("/user/email"), "demo@first.test");
    assert_eq!(shown.at("/user/federated/0/idp_id"), "first");
    // The other tenant of the first cloud is in no such group, and is not demo.
    let other = two.unscoped(&two.access("alt").await).await;
    let projects = two.second.anyone.with_token(&other).get("/v3/auth/projects").await.expect(200);
    assert_eq!(projects.at("/projects"), json!([]));
    two.scoped(&other, two.second.demo_project.as_str()).await.expect(401);
}

/// The method `mapped` in the body of a token request, with an access token beside it.
#[tokio::test]
async fn an_access_token_is_worth_a_scoped_token_at_once() {
    let two = Two::new().await;
    two.partner_group().await;
    let theirs = two.first_group().await;
    two.member(&theirs, true).await;
    let access = two.access("demo").await;
    let bearer = two.second.anyone.with_header("authorization", &format!("Bearer {access}"));
    let way = json!({"identity_provider": "first", "protocol": "openid"});
    let body = |name: &str| {
        let identity = json!({"methods": [name], name: way});
        json!({"auth": {"identity": identity, "scope": two.second.project_scope(&two.second.demo_project)}})
    };
    for name in ["mapped", "openid"] {
        let answer = bearer.post("/v3/auth/tokens", body(name)).await.expect(201);
        assert_eq!(answer.at("/token/user/OS-FEDERATION/identity_provider/id"), "first");
        assert_eq!(two.second.roles_of(answer.header("x-subject-token")).await, ["member", "reader"]);
        // As long as the access token.
        assert_eq!(answer.at("/token/expires_at"), two.enter(&access).await.at("/token/expires_at"));
    }
    let events = two.second.admin.get("/v3/OS-ALLOD/audit_events?action=authenticate").await.expect(200);
    assert!(events.text().contains("\"mapped\""));
    two.later(601);
    bearer.post("/v3/auth/tokens", body("mapped")).await.expect(401);
}

#[tokio::test]
async fn a_claim_that_is_gone_takes_its_roles_along() {
    let two = Two::new().await;
    two.partner_group().await;
    let theirs = two.first_group().await;
    two.member(&theirs, true).await;
    let old_access = two.access("demo").await;
    let old = two.unscoped(&old_access).await;
    let project = two.second.demo_project.as_str().to_owned();
    let scoped = two.scoped(&old, &project).await.expect(201).header("x-subject-token").to_owned();
    assert_eq!(two.second.roles_of(&scoped).await, ["member", "reader"]);
    // Taken out of the group. The next login has no such role, and no token got before has it any longer.
    two.member(&theirs, false).await;
    two.later(2);
    let new = two.unscoped(&two.access("demo").await).await;
    two.scoped(&new, &project).await.expect(401);
    assert_eq!(two.second.roles_of(&scoped).await, Vec::<String>::new());
    two.second.validate(&scoped).await.expect(404);
    two.scoped(&old, &project).await.expect(401);
    // The older access token still says who its bearer is, and no longer what the bearer may.
    let replayed = two.unscoped(&old_access).await;
    two.scoped(&replayed, &project).await.expect(401);
    assert_eq!(two.second.roles_of(&scoped).await, Vec::<String>::new());
    // Back in: the next login has it again.
    two.member(&theirs, true).await;
    two.later(2);
    let back = two.unscoped(&two.access("demo").await).await;
    let scoped = two.scoped(&back, &project).await.expect(201).header("x-subject-token").to_owned();
    // Out again, and no login any more: gone with the life of the token, which is that of the access token.
    two.member(&theirs, false).await;
    two.later(599);
    assert_eq!(two.second.roles_of(&scoped).await, ["member", "reader"]);
    two.later(1);
    assert_eq!(two.second.roles_of(&scoped).await, Vec::<String>::new());
    two.scoped(&back, &project).await.expect(404);
}

#[tokio::test]
async fn an_application_credential_of_a_guest_lives_as_long_as_the_claims() {
    let two = Two::new().await;
    two.partner_group().await;
    let theirs = two.first_group().await;
    two.member(&theirs, true).await;
    let path = "/v3/OS-FEDERATION/identity_providers/first";
    let ttl = json!({"identity_provider": {"authorization_ttl": 120}});
    two.second.admin.patch(path, ttl).await.expect(200);
    let unscoped = two.unscoped(&two.access("demo").await).await;
    let scoped = two.scoped(&unscoped, two.second.demo_project.as_str()).await.expect(201);
    let (token, user) = (scoped.header("x-subject-token").to_owned(), scoped.text_at("/token/user/id"));
    let guest = two.second.anyone.with_token(&token);
    let body = json!({"application_credential": {"name": "robot"}});
    let made = guest.post(&format!("/v3/users/{user}/application_credentials"), body).await.expect(201);
    let id = made.text_at("/application_credential/id");
    let secret = made.text_at("/application_credential/secret");
    let robot = || {
        let credential = json!({"id": id, "secret": secret});
        two.second
            .auth(json!({"methods": ["application_credential"], "application_credential": credential}), None)
    };
    // Longer than the token, not longer than the two hours.
    two.later(3000);
    assert_eq!(two.roles(&token).await, Vec::<String>::new());
    let by_robot = robot().await.expect(201).header("x-subject-token").to_owned();
    assert_eq!(two.roles(&by_robot).await, ["member", "reader"]);
    two.later(4000);
    robot().await.expect(201);
    let last = robot().await.expect(201).header("x-subject-token").to_owned();
    two.later(199);
    assert_eq!(two.roles(&last).await, ["member", "reader"]);
    two.later(1);
    // Remembered or not: a token ends with the claims it stands on.
    assert_eq!(two.roles(&last).await, Vec::<String>::new());
    robot().await.expect(401);
}

#[tokio::test]
async fn what_is_taken_from_a_provider_takes_effect_at_once() {
    let two = Two::new().await;
    two.partner_group().await;
    let theirs = two.first_group().await;
    two.member(&theirs, true).await;
    let access = two.access("demo").await;
    let admin = &two.second.admin;
    let path = "/v3/OS-FEDERATION/identity_providers/first";
    let project = two.second.demo_project.as_str().to_owned();
    let scoped = |unscoped: String| {
        let (two, project) = (&two, project.clone());
        async move { two.scoped(&unscoped, &project).await.expect(201).header("x-subject-token").to_owned() }
    };
    let token = scoped(two.unscoped(&access).await).await;
    admin.patch(path, json!({"identity_provider": {"enabled": false}})).await.expect(200);
    two.second.validate(&token).await.expect(404);
    two.enter(&access).await.expect(403);
    admin.patch(path, json!({"identity_provider": {"enabled": true}})).await.expect(200);
    let token = scoped(two.unscoped(&access).await).await;
    // Another mapping: at the next login.
    let only = json!([{"local": [{"user": {"id": "{0}"}}], "remote": [{"type": "sub"}]}]);
    admin.patch("/v3/OS-FEDERATION/mappings/first", json!({"mapping": {"rules": only}})).await.expect(200);
    let bare = two.unscoped(&access).await;
    two.scoped(&bare, &project).await.expect(401);
    two.second.validate(&token).await.expect(404);
    // Another audience, another issuer, no way to verify: nobody comes in.
    for oidc in [
        json!({"issuer": ISSUER, "audiences": ["somebody else"]}),
        json!({"issuer": format!("{ISSUER}/"), "audiences": [two.client]}),
        json!(null),
    ] {
        admin.patch(path, json!({"identity_provider": {"oidc": oidc}})).await.expect(200);
        let status = two.enter(&access).await.status;
        assert!(status == 401 || status == 503, "{status}");
    }
    let oidc = json!({"issuer": ISSUER, "audiences": [two.client]});
    admin.patch(path, json!({"identity_provider": {"oidc": oidc}})).await.expect(200);
    let bare = two.unscoped(&access).await;
    admin.delete("/v3/OS-FEDERATION/mappings/first").await.expect(409);
    admin.delete(&format!("{path}/protocols/openid")).await.expect(204);
    two.enter(&access).await.expect(404);
    admin.delete("/v3/OS-FEDERATION/mappings/first").await.expect(204);
    admin.delete(path).await.expect(204);
    two.second.validate(&bare).await.expect(404);
    two.enter(&access).await.expect(404);
}

#[tokio::test]
async fn keys_turn_over_and_forgers_stay_outside() {
    let two = Two::new().await;
    let before = two.access("demo").await;
    two.enter(&before).await.expect(201);
    two.first.state.rotate_signing_keys().unwrap();
    let after = two.access("demo").await;
    two.later(31);
    two.enter(&after).await.expect(201);
    let (head, rest) = after.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let mut changed: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    changed["sub"] = json!(two.first.alt);
    let changed = URL_SAFE_NO_PAD.encode(changed.to_string());
    for token in [
        format!("{head}.{changed}.{signature}"),
        format!("{head}.{claims}."),
        "nonsense".into(),
        String::new(),
    ] {
        two.enter(&token).await.expect(401);
    }
    two.second.anyone.post(WAY_IN, json!({})).await.expect(401);
    // The first cloud cannot be reached: what is known is enough for a while.
    *two.wire.0.lock() = None;
    two.later(400);
    two.enter(&after).await.expect(201);
    // An ID token that was made for the client is not taken for more than it is.
    two.later(600);
    two.enter(&after).await.expect(401);
}

#[tokio::test]
async fn nobody_becomes_a_local_user_by_being_called_like_one() {
    let two = Two::new().await;
    let admin = &two.second.admin;
    // A provider whose users are in the domain of the local ones.
    let oidc = json!({"issuer": ISSUER, "audiences": [two.client]});
    let idp = json!({"identity_provider": {"enabled": true, "domain_id": "default", "oidc": oidc}});
    admin.put("/v3/OS-FEDERATION/identity_providers/near", idp).await.expect(201);
    let by_name = json!([{"local": [{"user": {"id": "{0}", "name": "{0}"}}], "remote": [{"type": "name"}]}]);
    admin.put("/v3/OS-FEDERATION/mappings/near", json!({"mapping": {"rules": by_name}})).await.expect(201);
    let protocols = "/v3/OS-FEDERATION/identity_providers/near/protocols";
    admin.put(&format!("{protocols}/openid"), json!({"protocol": {"mapping_id": "near"}})).await.expect(201);
    let access = two.access("admin").await;
    let bearer = two.second.anyone.with_header("authorization", &format!("Bearer {access}"));
    let answer = bearer.get(&format!("{protocols}/openid/auth")).await.expect(201);
    assert!(answer.text_at("/token/user/name").starts_with("admin#"));
    let guest = two.second.anyone.with_token(answer.header("x-subject-token"));
    assert_eq!(guest.get("/v3/auth/projects").await.expect(200).at("/projects"), json!([]));
    // A mapping that says so makes of the bearer a local user, with the rights of that one.
    let local = json!([{
        "local": [{"user": {"name": "{0}", "type": "local", "domain": {"id": "default"}}}],
        "remote": [{"type": "name", "any_one_of": ["demo"]}, {"type": "name"}],
    }]);
    admin.patch("/v3/OS-FEDERATION/mappings/near", json!({"mapping": {"rules": local}})).await.expect(200);
    bearer.get(&format!("{protocols}/openid/auth")).await.expect(401);
    let access = two.access("demo").await;
    let bearer = two.second.anyone.with_header("authorization", &format!("Bearer {access}"));
    let answer = bearer.get(&format!("{protocols}/openid/auth")).await.expect(201);
    assert_eq!(answer.at("/token/user/id"), json!(two.second.demo));
    let token =
        two.scoped(answer.header("x-subject-token"), two.second.demo_project.as_str()).await.expect(201);
    assert_eq!(two.second.roles_of(token.header("x-subject-token")).await, ["member", "reader"]);
}

// ---- the provider

#[tokio::test]
async fn a_browser_gets_a_code_and_the_client_its_tokens() {
    let two = Two::new().await;
    let found = two.first.anyone.get("/.well-known/openid-configuration").await.expect(200);
    assert_eq!(found.at("/issuer"), ISSUER);
    let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
    let asked = [
        ("response_type", "code"),
        ("client_id", two.client.as_str()),
        ("redirect_uri", "https://second.test/back"),
        ("scope", "openid offline_access"),
        ("state", "a\"><b>"),
        ("nonce", "n1"),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ];
    let page = two.first.anyone.get(&format!("/oidc/authorize?{}", form(&asked))).await.expect(200);
    assert!(
        page.text().contains("Second cloud asks who you are") && !page.text().contains("<b>"),
        "{}",
        page.text()
    );
    assert!(page.header("content-security-policy").contains("frame-ancestors 'none'"));
    let login = |password: &str| {
        let password = password.to_owned();
        let mut pairs: Vec<(String, String)> =
            asked.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        pairs.extend([("username".into(), "demo".into()), ("password".into(), password)]);
        let client = two.first.anyone.clone();
        async move {
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            post(&client, "/oidc/authorize", &pairs).await
        }
    };
    assert!(login("wrong").await.expect(401).text().contains("was not accepted"));
    let sent = login(&password_of("demo")).await.expect(303);
    let (to, query) = sent.header("location").split_once('?').unwrap();
    assert_eq!(to, "https://second.test/back");
    let query = Query::from_text(query).unwrap();
    assert_eq!((query.get("state"), query.get("iss")), (Some("a\"><b>"), Some(ISSUER)));
    let code = query.get("code").unwrap().to_owned();
    let redeem = |verifier: &'static str, back: &'static str| {
        let code = code.clone();
        let two = &two;
        async move {
            let pairs = [
                ("grant_type", "authorization_code"),
                ("code", code.as_str()),
                ("redirect_uri", back),
                ("code_verifier", verifier),
            ];
            two.token_request(&pairs).await
        }
    };
    let tokens = redeem(verifier, "https://second.test/back").await.expect(200);
    let id = tokens.text_at("/id_token");
    let claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(id.split('.').nth(1).unwrap()).unwrap()).unwrap();
    assert_eq!((&claims["nonce"], &claims["aud"]), (&json!("n1"), &json!(two.client)));
    assert_eq!(claims["sub"], json!(two.first.demo));
    assert_eq!(claims["openstack_roles"], json!(["member@demo", "reader@demo"]));
    let access = tokens.text_at("/access_token");
    two.enter(&access).await.expect(201);
    let bearer = two.first.anyone.with_header("authorization", &format!("Bearer {access}"));
    assert_eq!(bearer.get("/oidc/userinfo").await.expect(200).at("/email"), "demo@first.test");
    two.first
        .anyone
        .with_header("authorization", &format!("Bearer {id}"))
        .get("/oidc/userinfo")
        .await
        .expect(401);
    // A refresh token is good once; a code that comes twice ends what came from it.
    let refresh = |token: String| {
        let two = &two;
        async move { two.token_request(&[("grant_type", "refresh_token"), ("refresh_token", &token)]).await }
    };
    let next = refresh(tokens.text_at("/refresh_token")).await.expect(200).text_at("/refresh_token");
    redeem(verifier, "https://second.test/back").await.expect(400);
    assert_eq!(refresh(next).await.expect(400).at("/error"), "invalid_grant");
    // A code for another verifier, or another address.
    for (verifier, back) in [
        ("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM", "https://second.test/back"),
        (verifier, "https://evil.test/"),
    ] {
        let sent = login(&password_of("demo")).await.expect(303);
        let query = Query::from_text(sent.header("location").split_once('?').unwrap().1).unwrap();
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", query.get("code").unwrap()),
            ("redirect_uri", back),
            ("code_verifier", verifier),
        ];
        assert_eq!(two.token_request(&pairs).await.expect(400).at("/error"), "invalid_grant");
    }
}

#[tokio::test]
async fn codes_go_only_where_the_client_is() {
    let two = Two::new().await;
    let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    let ask = |uri: &str, challenge: &str| {
        let pairs = [
            ("response_type", "code"),
            ("client_id", two.client.as_str()),
            ("redirect_uri", uri),
            ("code_challenge", challenge),
            ("code_challenge_method", "S256"),
        ];
        let path = format!("/oidc/authorize?{}", form(&pairs));
        let client = two.first.anyone.clone();
        async move { client.get(&path).await }
    };
    for good in ["https://second.test/back", "http://127.0.0.1/cli", "http://127.0.0.1:8899/cli"] {
        ask(good, challenge).await.expect(200);
    }
    for bad in [
        "https://second.test/back/",
        "https://second.test/back?x=1",
        "https://second.test.evil.test/back",
        "http://127.0.0.1:1@evil.test/cli",
        "http://127.0.0.1.evil.test/cli",
        "http://localhost/cli",
        "http://127.0.0.1:80/other",
        "",
    ] {
        let answer = ask(bad, challenge).await;
        assert_eq!((answer.status, answer.header("location")), (400, ""), "{bad}");
    }
    // Without PKCE there is no code; the client is told.
    let answer = ask("https://second.test/back", "").await.expect(303);
    assert!(answer.header("location").contains("error=invalid_request"), "{}", answer.header("location"));
    for uri in ["http://evil.test/", "javascript:alert(1)", "https://x.test/#f", "data:text/html,x"] {
        let body = json!({"client": {"name": "n", "redirect_uris": [uri]}});
        two.first.admin.post("/v3/OS-OIDC/clients", body).await.expect(400);
    }
}

#[tokio::test]
async fn a_device_is_allowed_on_another_screen() {
    let two = Two::new().await;
    let own =
        [("client_id", two.client.as_str()), ("client_secret", two.secret.as_str()), ("scope", "openid")];
    let started = post(&two.first.anyone, "/oidc/device_authorization", &own).await.expect(200);
    let (device, code) = (started.text_at("/device_code"), started.text_at("/user_code"));
    let poll = || async {
        let kind = "urn:ietf:params:oauth:grant-type:device_code";
        two.token_request(&[("grant_type", kind), ("device_code", &device)]).await
    };
    assert_eq!(poll().await.expect(400).at("/error"), "authorization_pending");
    assert_eq!(poll().await.expect(400).at("/error"), "slow_down");
    let page = two.first.anyone.get(&format!("/oidc/device?user_code={code}")).await.expect(200);
    assert!(page.text().contains(&code));
    let allow = |code: &str, password: &str| {
        let pairs = [("user_code", code), ("username", "demo"), ("password", password)]
            .map(|(k, v)| (k, v.to_owned()));
        let client = two.first.anyone.clone();
        async move {
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (*k, v.as_str())).collect();
            post(&client, "/oidc/device", &pairs).await
        }
    };
    allow(&code, "wrong").await.expect(401);
    allow("XXXX-XXXX", &password_of("demo")).await.expect(401);
    two.later(5);
    assert_eq!(poll().await.expect(400).at("/error"), "authorization_pending");
    allow(&code.to_lowercase(), &password_of("demo")).await.expect(200);
    two.later(5);
    let access = poll().await.expect(200).text_at("/access_token");
    two.enter(&access).await.expect(201);
    assert_eq!(poll().await.expect(400).at("/error"), "invalid_grant");
    // A password that was changed meanwhile makes no tokens of an old login.
    let started = post(&two.first.anyone, "/oidc/device_authorization", &own).await.expect(200);
    allow(&started.text_at("/user_code"), &password_of("demo")).await.expect(200);
    let change = json!({"user": {"password": "quite-another-one"}});
    two.first.admin.patch(&format!("/v3/users/{}", two.first.demo), change).await.expect(200);
    let kind = "urn:ietf:params:oauth:grant-type:device_code";
    let pairs = [("grant_type", kind), ("device_code", &started.text_at("/device_code"))];
    assert_eq!(two.token_request(&pairs).await.expect(400).at("/error"), "invalid_grant");
}

#[tokio::test]
async fn tokens_are_exchanged_and_robots_stay_confined() {
    let two = Two::new().await;
    let kind = "urn:ietf:params:oauth:grant-type:token-exchange";
    let of = "urn:ietf:params:oauth:token-type:access_token";
    let scope = two.first.project_scope(&two.first.demo_project);
    let own = two.first.token("demo", scope.clone()).await;
    let exchange = |token: String| {
        let two = &two;
        async move {
            let pairs = [("grant_type", kind), ("subject_token", token.as_str()), ("subject_token_type", of)];
            two.token_request(&pairs).await
        }
    };
    let made = exchange(own.clone()).await.expect(200);
    assert_eq!(made.at("/issued_token_type"), of);
    two.enter(&made.text_at("/access_token")).await.expect(201);
    assert_eq!(exchange("gAAAAAnonsense".into()).await.expect(400).at("/error"), "invalid_grant");
    let pairs = [
        ("grant_type", kind),
        ("subject_token", own.as_str()),
        ("subject_token_type", of),
        ("audience", "x"),
    ];
    assert_eq!(two.token_request(&pairs).await.expect(400).at("/error"), "invalid_target");
    // An application credential with one role is nobody's whole user.
    let theirs = two.first_group().await;
    two.member(&theirs, true).await;
    let demo = two.first.demo().await;
    let reader = two.first.role("reader").await;
    let body = json!({"application_credential": {"name": "robot", "roles": [{"id": reader}]}});
    let path = format!("/v3/users/{}/application_credentials", two.first.demo);
    let made = demo.post(&path, body).await.expect(201);
    let (id, secret) =
        (made.text_at("/application_credential/id"), made.text_at("/application_credential/secret"));
    let credential = json!({"id": id, "secret": secret});
    let robot = json!({"methods": ["application_credential"], "application_credential": credential});
    let token = two.first.auth(robot, None).await.expect(201).header("x-subject-token").to_owned();
    let by_exchange = exchange(token).await.expect(200).text_at("/access_token");
    let pairs = [
        ("grant_type", "client_credentials"),
        ("client_id", id.as_str()),
        ("client_secret", &secret),
        ("scope", "openid aud:second"),
    ];
    let direct = post(&two.first.anyone, "/oidc/token", &pairs).await.expect(200).text_at("/access_token");
    for token in [by_exchange, direct] {
        let claims = token.split('.').nth(1).unwrap();
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        assert_eq!((&claims["groups"], &claims["openstack_roles"]), (&json!([]), &json!(["reader@demo"])));
        let bearer = two.first.anyone.with_header("authorization", &format!("Bearer {token}"));
        let said = bearer.get("/oidc/userinfo").await.expect(200);
        assert_eq!((said.at("/groups"), said.at("/openstack_roles")), (json!([]), json!(["reader@demo"])));
    }
    let wrong = [("grant_type", "client_credentials"), ("client_id", id.as_str()), ("client_secret", "x")];
    assert_eq!(
        post(&two.first.anyone, "/oidc/token", &wrong).await.expect(401).at("/error"),
        "invalid_client"
    );
    // Rules of access say which requests: speaking for the user elsewhere is none of them.
    let rule = json!({"service": "compute", "method": "GET", "path": "/"});
    let body = json!({"application_credential": {"name": "narrow", "access_rules": [rule]}});
    let made = demo.post(&path, body).await.expect(201);
    let (id, secret) =
        (made.text_at("/application_credential/id"), made.text_at("/application_credential/secret"));
    let pairs =
        [("grant_type", "client_credentials"), ("client_id", id.as_str()), ("client_secret", &secret)];
    assert_eq!(
        post(&two.first.anyone, "/oidc/token", &pairs).await.expect(400).at("/error"),
        "unauthorized_client"
    );
    let wrong = [("grant_type", "password"), ("client_id", two.client.as_str()), ("client_secret", "x")];
    assert_eq!(
        post(&two.first.anyone, "/oidc/token", &wrong).await.expect(401).at("/error"),
        "invalid_client"
    );
}

/// A browser at the second cloud's door: with the cookie it was given, if it was.
async fn knock(two: &Two, path: &str, cookie: Option<&str>) -> Answer {
    let client = match cookie {
        Some(cookie) => two.second.anyone.with_header("cookie", &format!("other=1; {cookie}; more=2")),
        None => two.second.anyone.clone(),
    };
    client.get(path).await
}

/// From a console to the first cloud's login page and back: where the second cloud is called then, and the cookie.
async fn there_and_back(two: &Two, user: &str) -> (String, String) {
    let begun = knock(two, &format!("{WEBSSO}?{}", form(&[("origin", CONSOLE)])), None).await.expect(303);
    let cookie = begun.header("set-cookie").to_owned();
    for word in ["__Host-", "Path=/;", "Secure", "HttpOnly", "SameSite=Lax"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let (place, asked) = begun.header("location").split_once('?').unwrap();
    assert_eq!(place, format!("{ISSUER}/oidc/authorize"));
    let asked = Query::from_text(asked).unwrap();
    assert_eq!(asked.get("redirect_uri"), Some(format!("https://second.test{WEBSSO}").as_str()));
    let mut pairs: Vec<(&str, &str)> = asked.iter().collect();
    let password = password_of(user);
    pairs.extend([("username", user), ("password", password.as_str())]);
    let sent = post(&two.first.anyone, "/oidc/authorize", &pairs).await.expect(303);
    let back = sent.header("location").strip_prefix("https://second.test").unwrap().to_owned();
    (back, cookie)
}

#[tokio::test]
async fn a_console_gets_a_token_through_the_browser() {
    let two = Two::new().await;
    let admin = &two.second.admin;
    let idp = "/v3/OS-FEDERATION/identity_providers/first";
    // Not before this cloud is a client there.
    let begin = format!("{WEBSSO}?{}", form(&[("origin", CONSOLE)]));
    knock(&two, &begin, None).await.expect(403);
    let oidc = json!({"issuer": ISSUER, "audiences": [two.client], "client_id": two.client, "client_secret": two.secret});
    let told = admin.patch(idp, json!({"identity_provider": {"oidc": oidc}})).await.expect(200);
    assert_eq!(told.at("/identity_provider/oidc/client_id"), two.client);
    assert!(!told.text().contains(&two.secret) && !told.text().contains("sealed"));
    assert!(!two.second.dump().await.contains(&two.secret));
    for (name, value) in [("client_id", json!("")), ("scope", json!("profile")), ("client_secret", json!(1))]
    {
        let mut bad = oidc.clone();
        bad[name] = value;
        admin.patch(idp, json!({"identity_provider": {"oidc": bad}})).await.expect(400);
    }
    // A console that nobody trusts gets nothing, nor does one that is not named.
    for origin in ["https://evil.test/", "https://console.test/auth/websso/x"] {
        knock(&two, &format!("{WEBSSO}?{}", form(&[("origin", origin)])), None).await.expect(401);
    }
    knock(&two, WEBSSO, None).await.expect(400);
    let any = format!("/v3/auth/OS-FEDERATION/websso/openid?{}", form(&[("origin", CONSOLE)]));
    let chosen = knock(&two, &any, None).await.expect(303);
    let (to, query) = chosen.header("location").split_once('?').unwrap();
    assert_eq!(to, format!("https://second.test{WEBSSO}"));
    assert_eq!(Query::from_text(query).unwrap().get("origin"), Some(CONSOLE));
    knock(&two, &any.replace("openid", "saml2"), None).await.expect(401);

    let (back, cookie) = there_and_back(&two, "demo").await;
    // Another browser, another login's cookie, an identity provider that says no.
    knock(&two, &back, None).await.expect(400);
    let (_, other) = there_and_back(&two, "demo").await;
    knock(&two, &back, Some(&other)).await.expect(400);
    let refused = back.replace("code=", "error=access_denied&x=");
    assert!(knock(&two, &refused, Some(&cookie)).await.expect(401).text().contains("did not log you in"));
    let page = knock(&two, &back, Some(&cookie)).await.expect(200);
    assert!(page.header("set-cookie").contains("Max-Age=0"));
    let policy = page.header("content-security-policy").to_owned();
    assert!(policy.contains("form-action https://console.test;") && policy.contains("script-src 'sha256-"));
    let text = page.text();
    assert!(text.contains(&format!("<form action=\"{CONSOLE}\" method=\"post\">")), "{text}");
    let token = text.split("name=\"token\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let shown = two.second.validate(&token).await.expect(200);
    assert_eq!(shown.at("/token/user/name"), "demo");
    assert_eq!(shown.at("/token/user/OS-FEDERATION/identity_provider/id"), "first");
    let mine = two.second.anyone.with_token(&token).get("/v3/auth/projects").await.expect(200);
    assert_eq!(mine.at("/projects/0/name"), "shared");
    // A code is good once; a login that took too long is none.
    knock(&two, &back, Some(&cookie)).await.expect(401);
    let (back, cookie) = there_and_back(&two, "demo").await;
    two.second.later(601);
    knock(&two, &back, Some(&cookie)).await.expect(400);
}

/// The script of the page that hands a token over is the one its policy allows.
#[tokio::test]
async fn the_policy_of_the_page_names_its_script() {
    let two = Two::new().await;
    let oidc = json!({"issuer": ISSUER, "audiences": [two.client], "client_id": two.client, "client_secret": two.secret});
    let idp = "/v3/OS-FEDERATION/identity_providers/first";
    two.second.admin.patch(idp, json!({"identity_provider": {"oidc": oidc}})).await.expect(200);
    let (back, cookie) = there_and_back(&two, "alt").await;
    let page = knock(&two, &back, Some(&cookie)).await.expect(200);
    let text = page.text();
    let script = text.split("<script>").nth(1).unwrap().split("</script>").next().unwrap().to_owned();
    let hash = STANDARD.encode(Sha256::digest(script.as_bytes()));
    assert!(page.header("content-security-policy").contains(&format!("'sha256-{hash}'")));
}

/// A web server in front (mod_auth_mellon, Shibboleth) lets the user in by SAML and says who it is.
#[tokio::test]
async fn a_front_end_says_who_comes() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let operator =
        identity::Operator { trusted_dashboards: vec![CONSOLE.to_owned()], ..identity::Operator::default() };
    let world = World::with(Config { operator, ..config() }).await;
    let admin = &world.admin;
    let idp = "/v3/OS-FEDERATION/identity_providers/saml";
    let front = json!({"secret": SECRET, "attributes": ["MELLON_NAME_ID", "MELLON_mail", "MELLON_groups", "MELLON_IDP"]});
    for (name, value) in [
        ("secret", json!("short")),
        ("secret", Value::Null),
        ("attributes", json!([])),
        ("attributes", json!(["a b"])),
        ("more", json!(1)),
    ] {
        let mut bad = front.clone();
        bad[name] = value;
        admin.put(idp, json!({"identity_provider": {"front_end": bad}})).await.expect(400);
    }
    let body = json!({"enabled": true, "remote_ids": ["https://idp.test/saml"], "front_end": front});
    let made = admin.put(idp, json!({"identity_provider": body})).await.expect(201);
    assert!(!made.text().contains(SECRET) && !world.dump().await.contains(SECRET));
    let group = world.make_id("group", json!({"name": "partner-staff"})).await;
    let reader = world.role("reader").await;
    let grant = format!("/v3/projects/{}/groups/{group}/roles/{reader}", world.demo_project);
    admin.put(&grant, json!({})).await.expect(204);
    let rules = json!([
        {"local": [{"user": {"id": "{0}", "name": "{1}"}}], "remote": [{"type": "MELLON_NAME_ID"}, {"type": "MELLON_mail"}]},
        {"local": [{"groups": "{0}", "domain": {"id": "default"}}], "remote": [{"type": "MELLON_groups"}]},
    ]);
    admin.put("/v3/OS-FEDERATION/mappings/saml", json!({"mapping": {"rules": rules}})).await.expect(201);
    let protocol = json!({"protocol": {"mapping_id": "saml", "remote_id_attribute": "MELLON_IDP"}});
    admin.put(&format!("{idp}/protocols/saml2"), protocol).await.expect(201);
    let come = |secret: &str, from: &str, place: &str| {
        let client = [
            ("x-front-end-secret", secret),
            ("mellon_idp", from),
            ("MELLON_NAME_ID", "s-1"),
            ("MELLON_mail", "jörg@partner.test"),
            ("MELLON_groups", "partner-staff;unheard-of"),
            // Not one of the front end's.
            ("MELLON_role", "admin"),
        ];
        let client = client.iter().fold(world.anyone.clone(), |c, (name, value)| c.with_header(name, value));
        let place = place.to_owned();
        async move { client.get(&place).await }
    };
    let way = format!("{idp}/protocols/saml2/auth");
    let good = come(SECRET, "https://idp.test/saml", &way).await.expect(201);
    assert_eq!(good.text_at("/token/user/name"), "jörg@partner.test");
    let token = good.header("x-subject-token").to_owned();
    let scoped = json!({"methods": ["token"], "token": {"id": token}});
    let scoped = world.auth(scoped, Some(world.project_scope(&world.demo_project))).await.expect(201);
    assert_eq!(world.roles_of(scoped.header("x-subject-token")).await, ["reader"]);
    // Another's secret, another identity provider behind the same front end, nobody in front.
    come(&SECRET.replace('0', "1"), "https://idp.test/saml", &way).await.expect(401);
    come(SECRET, "https://other.test/saml", &way).await.expect(401);
    world.anyone.with_header("MELLON_NAME_ID", "s-1").get(&way).await.expect(401);
    // A console's user.
    let console = format!(
        "/v3/auth/OS-FEDERATION/identity_providers/saml/protocols/saml2/websso?{}",
        form(&[("origin", CONSOLE)])
    );
    let page = come(SECRET, "https://idp.test/saml", &console).await.expect(200);
    assert!(page.text().contains(&format!("action=\"{CONSOLE}\"")));
    come("", "https://idp.test/saml", &console).await.expect(401);
    // It is over when the operator says so.
    admin.patch(idp, json!({"identity_provider": {"front_end": null}})).await.expect(200);
    come(SECRET, "https://idp.test/saml", &way).await.expect(401);
    // Turning the keys over keeps the secret.
    admin.patch(idp, json!({"identity_provider": {"front_end": front}})).await.expect(200);
    world.state.rotate_credential_keys().await.unwrap();
    world.state.rotate_credential_keys().await.unwrap();
    come(SECRET, "https://idp.test/saml", &way).await.expect(201);
}
