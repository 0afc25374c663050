//! Users whom a web server in front lets in: the method `external`, and `mapped` in the body of a token request.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use api::testing::{Answer, Client};
use identity::{Config, External, Operator, State};
use serde_json::{Value, json};
use store::Store;

use crate::world::{World, config, password_of};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn kept(dir: &Path, text: &str, mode: u32) -> std::path::PathBuf {
    let file = dir.join(format!("secret-{mode:o}-{}", text.len()));
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    file
}

fn with(external: External) -> Config {
    Config { operator: Operator { external, ..Operator::default() }, ..config() }
}

fn settings(dir: &Path) -> External {
    External {
        user_header: Some("X-Remote-User".into()),
        domain_header: Some("X-Remote-Domain".into()),
        secret_file: Some(kept(dir, &format!("{SECRET}\n"), 0o600)),
    }
}

/// A world with a front end that is believed.
async fn behind() -> World {
    let dir = tempfile::tempdir().unwrap();
    // The file is read once.
    World::with(with(settings(dir.path()))).await
}

fn saying(world: &World, headers: &[(&str, &str)]) -> Client {
    headers.iter().fold(world.anyone.clone(), |client, (name, value)| client.with_header(name, value))
}

async fn ask(client: &Client, identity: Value, scope: Option<Value>) -> Answer {
    let mut auth = json!({"identity": identity});
    if let Some(scope) = scope {
        auth["scope"] = scope;
    }
    client.post("/v3/auth/tokens", json!({"auth": auth})).await
}

fn external() -> Value {
    json!({"methods": ["external"], "external": {}})
}

#[tokio::test]
async fn a_front_end_lets_in_who_it_names() {
    let world = behind().await;
    let demo = saying(&world, &[("x-front-end-secret", SECRET), ("x-remote-user", "demo")]);
    let answer = ask(&demo, external(), None).await.expect(201);
    assert_eq!(answer.at("/token/user/id"), json!(world.demo));
    assert_eq!(answer.at("/token/methods"), json!(["external"]));
    // As with a password: the default project, or what is asked for and the user may have.
    assert_eq!(answer.at("/token/project/id"), json!(world.demo_project));
    ask(&demo, external(), Some(world.project_scope(&world.alt_project))).await.expect(401);
    ask(&demo, external(), Some(json!("unscoped"))).await.expect(201);
    // The domain, where the front end says one.
    let domain = world.make_id("domain", json!({"name": "Partners"})).await;
    let guest = world.make_id("user", json!({"name": "guest", "domain_id": domain})).await;
    let base = [("x-front-end-secret", SECRET), ("x-remote-user", "guest")];
    ask(&saying(&world, &base), external(), None).await.expect(401);
    let there = saying(&world, &base).with_header("x-remote-domain", "Partners");
    assert_eq!(ask(&there, external(), None).await.expect(201).at("/token/user/id"), json!(guest));
    let nowhere = saying(&world, &base).with_header("x-remote-domain", "Elsewhere");
    ask(&nowhere, external(), None).await.expect(401);
    let off = json!({"user": {"enabled": false}});
    world.admin.patch(&format!("/v3/users/{guest}"), off).await.expect(200);
    ask(&there, external(), None).await.expect(401);
    // Rules for several factors count it as one.
    let user = format!("/v3/users/{}", world.demo);
    let rules = json!({"user": {"options": {"multi_factor_auth_rules": [["password", "external"]]}}});
    world.admin.patch(&user, rules).await.expect(200);
    ask(&demo, external(), None).await.expect(401);
    let who = json!({"id": world.demo, "password": password_of("demo")});
    let both = json!({"methods": ["password", "external"], "password": {"user": who}, "external": {}});
    let answer = ask(&demo, both.clone(), None).await.expect(201);
    assert_eq!(answer.at("/token/methods"), json!(["external", "password"]));
    // So do those that name the plugin as clients of Kerberos do.
    let kerberos = json!({"methods": ["kerberos"], "kerberos": {}});
    ask(&demo, kerberos.clone(), None).await.expect(401);
    let rules = json!({"user": {"options": {"multi_factor_auth_rules": [["kerberos"]]}}});
    world.admin.patch(&user, rules).await.expect(200);
    ask(&demo, json!({"methods": ["password"], "password": {"user": who}}), None).await.expect(401);
    let answer = ask(&demo, kerberos, None).await.expect(201);
    assert_eq!(answer.at("/token/methods"), json!(["external"]));
    // Two who are not the same are nobody.
    let alt = saying(&world, &[("x-front-end-secret", SECRET), ("x-remote-user", "alt")]);
    ask(&alt, both, None).await.expect(401);
}

#[tokio::test]
async fn pretenders_stay_outside() {
    let world = behind().await;
    let (user, secret) = (("x-remote-user", "admin"), ("x-front-end-secret", SECRET));
    let pretenders: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("nobody in front", vec![]),
        ("no secret", vec![user]),
        ("an empty secret", vec![user, ("x-front-end-secret", "")]),
        ("another secret", vec![user, ("x-front-end-secret", OTHER)]),
        ("a beginning of it", vec![user, ("x-front-end-secret", &SECRET[..31])]),
        ("two secrets, the right one last", vec![user, ("x-front-end-secret", OTHER), secret]),
        ("two secrets, the right one first", vec![user, secret, ("x-front-end-secret", OTHER)]),
        ("no user", vec![secret]),
        ("an empty user", vec![secret, ("x-remote-user", "")]),
        ("a user that Apache did not have", vec![secret, ("x-remote-user", "(null)")]),
        ("two users", vec![secret, user, ("x-remote-user", "demo")]),
        ("the same user twice", vec![secret, user, user]),
        ("two domains", vec![secret, user, ("x-remote-domain", "Default"), ("x-remote-domain", "Default")]),
        ("a user by id", vec![secret, ("x-remote-user", world.demo.as_str())]),
        ("a user there is not", vec![secret, ("x-remote-user", "nobody")]),
        ("the header of another server", vec![secret, ("remote-user", "admin")]),
    ];
    for (what, headers) in pretenders {
        let answer = ask(&saying(&world, &headers), external(), None).await;
        assert_eq!(answer.status, 401, "{what}: {}", answer.text());
    }
    // Right, but not asked for: the headers alone are nothing.
    let admin = saying(&world, &[secret, user]);
    let who = json!({"id": world.demo, "password": "wrong"});
    let password = json!({"methods": ["password"], "password": {"user": who}});
    ask(&admin, password.clone(), None).await.expect(401);
    admin.get("/v3/users").await.expect(401);
    let who = json!({"id": world.demo, "password": password_of("demo")});
    let answer = ask(&admin, json!({"methods": ["password"], "password": {"user": who}}), None).await;
    assert_eq!(answer.expect(201).at("/token/user/id"), json!(world.demo));
    // The method must be described, as in Keystone.
    ask(&admin, json!({"methods": ["external"]}), None).await.expect(400);
    ask(&admin, json!({"methods": ["external"], "external": 1}), None).await.expect(400);

    // Off unless the operator names a header.
    let off = World::new().await;
    ask(&saying(&off, &[secret, ("x-remote-user", "admin")]), external(), None).await.expect(401);
}

#[tokio::test]
async fn wrong_settings_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let right = settings(dir.path());
    let mut cases: Vec<(&str, External)> = Vec::new();
    let mut case = |names: &'static str, change: &dyn Fn(&mut External)| {
        let mut wrong = right.clone();
        change(&mut wrong);
        cases.push((names, wrong));
    };
    case("user_header", &|s| s.user_header = None);
    case("user_header", &|s| s.user_header = Some("two words".into()));
    case("user_header", &|s| s.user_header = Some("X-Auth-Token".into()));
    case("domain_header", &|s| s.domain_header = Some(String::new()));
    case("domain_header", &|s| s.domain_header = Some("x-remote-user".into()));
    case("secret_file", &|s| s.secret_file = None);
    case("secret_file", &|s| s.secret_file = Some(dir.path().join("absent")));
    case("secret_file", &|s| s.secret_file = Some(kept(dir.path(), SECRET, 0o640)));
    case("secret_file", &|s| s.secret_file = Some(kept(dir.path(), "short", 0o600)));
    let clock = std::sync::Arc::new(base::ManualClock::default());
    for (names, wrong) in cases {
        let store = Store::memory(clock.clone(), &[("identity", identity::MIGRATIONS)]).await.unwrap();
        let made = State::new(with(wrong), store, clock.clone(), base::Entropy::seeded(1));
        let words = made.err().unwrap().public().to_owned();
        assert!(words.starts_with(&format!("identity.external.{names}: ")), "{words}");
        assert!(!words.contains(SECRET));
    }
}

/// An identity provider behind a front end, in the body of a token request.
#[tokio::test]
async fn mapped_in_a_body_is_the_way_in_with_a_scope() {
    let world = World::new().await;
    let admin = &world.admin;
    let idp = "/v3/OS-FEDERATION/identity_providers/saml";
    let front = json!({"secret": SECRET, "attributes": ["MELLON_NAME_ID", "MELLON_groups"]});
    let body = json!({"enabled": true, "front_end": front});
    admin.put(idp, json!({"identity_provider": body})).await.expect(201);
    let group = world.make_id("group", json!({"name": "staff"})).await;
    let reader = world.role("reader").await;
    let grant = format!("/v3/projects/{}/groups/{group}/roles/{reader}", world.demo_project);
    admin.put(&grant, json!({})).await.expect(204);
    let rules = json!([
        {"local": [{"user": {"id": "{0}"}}], "remote": [{"type": "MELLON_NAME_ID"}]},
        {"local": [{"groups": "{0}", "domain": {"id": "default"}}], "remote": [{"type": "MELLON_groups"}]},
    ]);
    admin.put("/v3/OS-FEDERATION/mappings/saml", json!({"mapping": {"rules": rules}})).await.expect(201);
    let protocol = json!({"protocol": {"mapping_id": "saml"}});
    admin.put(&format!("{idp}/protocols/p"), protocol.clone()).await.expect(201);
    let who = [("MELLON_NAME_ID", "s-1"), ("MELLON_groups", "staff")];
    let inside = saying(&world, &who).with_header("x-front-end-secret", SECRET);
    let scope = || Some(world.project_scope(&world.demo_project));
    let mapped =
        |name: &str| json!({"methods": [name], name: {"identity_provider": "saml", "protocol": "p"}});
    let mut unscoped = String::new();
    for name in ["mapped", "saml2", "openid", "x509"] {
        let answer = ask(&inside, mapped(name), None).await.expect(201);
        assert_eq!(answer.at("/token/methods"), json!(["mapped"]));
        assert_eq!(answer.at("/token").get("project"), None);
        assert_eq!(answer.at("/token/user/OS-FEDERATION/groups/0/id"), json!(group));
        unscoped = answer.header("x-subject-token").to_owned();
        let answer = ask(&inside, mapped(name), scope()).await.expect(201);
        assert_eq!(world.roles_of(answer.header("x-subject-token")).await, ["reader"]);
    }
    let elsewhere = Some(world.project_scope(&world.alt_project));
    ask(&inside, mapped("mapped"), elsewhere).await.expect(401);
    // Another scope by a token of that way.
    let again = |token: &str| json!({"methods": ["mapped"], "mapped": {"id": token}});
    let answer = ask(&world.anyone, again(&unscoped), scope()).await.expect(201);
    assert_eq!(answer.at("/token/user/OS-FEDERATION/protocol/id"), "p");
    assert_eq!(world.roles_of(answer.header("x-subject-token")).await, ["reader"]);
    let local = world.token("demo", world.project_scope(&world.demo_project)).await;
    ask(&world.anyone, again(&local), scope()).await.expect(404);
    ask(&world.anyone, again("nonsense"), scope()).await.expect(404);

    // As Apache writes: a value with a semicolon, a variable that is not set.
    let semi = world.make_id("group", json!({"name": "staff;semi"})).await;
    let told = |groups: &'static str| {
        let said = [("x-front-end-secret", SECRET), ("MELLON_NAME_ID", "s-2"), ("MELLON_groups", groups)];
        let (client, body) = (saying(&world, &said), mapped("mapped"));
        async move { ask(&client, body, None).await.expect(201).at("/token/user/OS-FEDERATION/groups") }
    };
    assert_eq!(told("staff\\;semi").await, json!([{"id": semi}]));
    assert_eq!(told("staff\\;semi;staff").await.as_array().map(Vec::len), Some(2));
    assert_eq!(told("(null)").await, json!([]));
    let nobody = [("x-front-end-secret", SECRET), ("MELLON_NAME_ID", "(null)")];
    ask(&saying(&world, &nobody), mapped("mapped"), None).await.expect(401);

    // Pretenders, and bodies that say too little.
    for (headers, status) in [
        (vec![], 401),
        (vec![("x-front-end-secret", OTHER)], 401),
        (vec![("x-front-end-secret", OTHER), ("x-front-end-secret", SECRET)], 401),
        (vec![("x-front-end-secret", SECRET), ("MELLON_NAME_ID", "s-2")], 401),
        (vec![("authorization", "Bearer nonsense"), ("x-front-end-secret", SECRET)], 401),
        (vec![("x-front-end-secret", SECRET)], 201),
    ] {
        let client = headers.iter().fold(saying(&world, &who), |c, (name, value)| c.with_header(name, value));
        let answer = ask(&client, mapped("mapped"), scope()).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
    }
    for (payload, names) in [
        (json!({}), "identity_provider"),
        (json!({"identity_provider": "saml"}), "protocol"),
        (json!({"identity_provider": 1, "protocol": "p"}), "identity_provider"),
        (json!({"id": 1}), "id"),
        (json!("saml"), "mapped"),
    ] {
        let answer = ask(&inside, json!({"methods": ["mapped"], "mapped": payload}), None).await.expect(400);
        assert!(answer.text_at("/error/message").contains(names), "{}", answer.text());
    }
    let absent = |idp: &str, protocol: &str| json!({"methods": ["mapped"], "mapped": {"identity_provider": idp, "protocol": protocol}});
    ask(&inside, absent("other", "p"), None).await.expect(404);
    ask(&inside, absent("saml", "other"), None).await.expect(404);
    admin.patch(idp, json!({"identity_provider": {"enabled": false}})).await.expect(200);
    ask(&inside, mapped("mapped"), None).await.expect(403);
}

/// A second factor that is demanded of a local user is demanded of who comes as that user from elsewhere, whatever the way.
#[tokio::test]
async fn who_comes_from_elsewhere_passes_no_second_factor_by() {
    let world = World::new().await;
    let admin = &world.admin;
    let idp = "/v3/OS-FEDERATION/identity_providers/saml";
    let front = json!({"secret": SECRET, "attributes": ["who"]});
    let body = json!({"enabled": true, "front_end": front});
    admin.put(idp, json!({"identity_provider": body})).await.expect(201);
    let local = json!({"name": "{0}", "type": "local", "domain": {"id": "default"}});
    let rules = json!([{"local": [{"user": local}], "remote": [{"type": "who"}]}]);
    admin.put("/v3/OS-FEDERATION/mappings/saml", json!({"mapping": {"rules": rules}})).await.expect(201);
    let protocol = json!({"protocol": {"mapping_id": "saml"}});
    admin.put(&format!("{idp}/protocols/p"), protocol).await.expect(201);
    let demo = saying(&world, &[("x-front-end-secret", SECRET), ("who", "demo")]);
    let way = format!("{idp}/protocols/p/auth");
    let payload = json!({"identity_provider": "saml", "protocol": "p"});
    let mapped = json!({"methods": ["mapped"], "mapped": payload});
    demo.get(&way).await.expect(201);
    ask(&demo, mapped.clone(), None).await.expect(201);
    let user = format!("/v3/users/{}", world.demo);
    let rules = |rules: Value| json!({"user": {"options": {"multi_factor_auth_rules": rules}}});
    admin.patch(&user, rules(json!([["password", "mapped"]]))).await.expect(200);
    demo.get(&way).await.expect(401);
    // No receipt: it would not keep through whom the user came.
    let refused = ask(&demo, mapped, None).await.expect(401);
    assert_eq!(refused.header("openstack-auth-receipt"), "");
    let who = json!({"id": world.demo, "password": password_of("demo")});
    let password = json!({"methods": ["password"], "password": {"user": who}});
    let first = ask(&world.anyone, password, None).await.expect(401);
    let receipt = first.header("openstack-auth-receipt").to_owned();
    assert!(!receipt.is_empty());
    let second = demo.with_header("openstack-auth-receipt", &receipt);
    let mapped = json!({"methods": ["mapped"], "mapped": payload});
    let answer = ask(&second, mapped, None).await.expect(201);
    assert_eq!(answer.at("/token/methods"), json!(["password", "mapped"]));
    assert_eq!(answer.at("/token/user/OS-FEDERATION/identity_provider/id"), "saml");
    // A rule that is content with it.
    admin.patch(&user, rules(json!([["mapped"]]))).await.expect(200);
    demo.get(&way).await.expect(201);
}
