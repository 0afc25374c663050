//! Tokens: how they are got, what they say, when they end.

use api::testing::error_shape;
use api::{Method, dialect};
use base::Clock;
use contract::Scope;
use identity::{Config, Place, Repository};
use serde_json::{Value, json};

use crate::world::{World, config, password_of};

#[tokio::test]
async fn a_password_gets_a_token_with_everything_clients_read() {
    let world = World::new().await;
    let scope = json!({"project": {"name": "demo", "domain": {"name": "Default"}}});
    let answer = world.login("demo", &password_of("demo"), Some(scope)).await.expect(201);
    let token = answer.header("x-subject-token").to_owned();
    assert!(token.starts_with("gAAAAA") && !token.ends_with('=') && token.len() < 255, "{token}");
    let body = answer.at("/token");
    assert_eq!(body["methods"], json!(["password"]));
    assert_eq!(body["user"]["id"], json!(world.demo));
    assert_eq!(body["user"]["name"], "demo");
    assert_eq!(body["user"]["domain"], json!({"id": "default", "name": "Default"}));
    assert_eq!(body["user"]["password_expires_at"], Value::Null);
    assert_eq!(body["project"]["id"], json!(world.demo_project));
    assert_eq!(body["project"]["domain"]["name"], "Default");
    assert_eq!(body["is_domain"], false);
    assert_eq!(body["is_admin_project"], false);
    let roles: Vec<&str> =
        body["roles"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(roles, ["member", "reader"]);
    assert_eq!(body["issued_at"], "2026-01-01T00:00:00.000000Z");
    assert_eq!(body["expires_at"], "2026-01-01T01:00:00.000000Z");
    assert_eq!(body["audit_ids"].as_array().unwrap().len(), 1);
    assert_eq!(body["audit_ids"][0].as_str().unwrap().len(), 22);
    assert_eq!(world.demo.as_str().len(), 32);
    let catalog = body["catalog"].as_array().unwrap();
    assert_eq!(catalog.len(), 3);
    let volume = catalog.iter().find(|s| s["type"] == "volumev3").unwrap();
    assert_eq!(volume["name"], "cinderv3");
    let endpoint =
        volume["endpoints"].as_array().unwrap().iter().find(|e| e["interface"] == "public").unwrap();
    assert_eq!(endpoint["url"], format!("https://cloud.test/volume/v3/{}", world.demo_project));
    assert_eq!((&endpoint["region"], &endpoint["region_id"]), (&json!("RegionOne"), &json!("RegionOne")));

    let shown = world.validate(&token).await.expect(200);
    assert_eq!(shown.header("x-subject-token"), token);
    assert_eq!(shown.json(), answer.json());
    assert_eq!(shown.header("vary"), "X-Auth-Token");
    let head =
        world.admin.with_header("x-subject-token", &token).call(Method::HEAD, "/v3/auth/tokens").send().await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let bare =
        world.admin.with_header("x-subject-token", &token).get("/v3/auth/tokens?nocatalog").await.expect(200);
    assert_eq!(bare.at("/token/catalog"), Value::Null);
    assert_eq!(bare.at("/token/roles"), shown.at("/token/roles"));
}

#[tokio::test]
async fn every_scope_is_possible_and_none_is_given_without_a_role() {
    let world = World::new().await;
    let by_name = |name: &str| json!({"project": {"name": name, "domain": {"id": "default"}}});
    // Without a scope: the default project; asked for: unscoped.
    let answer = world.login("demo", &password_of("demo"), None).await.expect(201);
    assert_eq!(answer.at("/token/project/id"), json!(world.demo_project));
    for unscoped in [json!("unscoped"), json!({"unscoped": {}})] {
        let answer = world.login("demo", &password_of("demo"), Some(unscoped)).await.expect(201);
        for absent in ["project", "roles", "catalog", "domain", "system"] {
            assert_eq!(answer.at("/token").get(absent), None, "{absent}");
        }
    }
    // The administrator has no default project.
    let answer = world.login("admin", &password_of("admin"), None).await.expect(201);
    assert_eq!(answer.at("/token/project"), Value::Null);
    let answer =
        world.login("admin", &password_of("admin"), Some(json!({"system": {"all": true}}))).await.expect(201);
    assert_eq!(answer.at("/token/system"), json!({"all": true}));
    assert_eq!(answer.at("/token/roles").as_array().unwrap().len(), 4);
    // The volume endpoint needs a project, so that a system token's catalog leaves it out.
    let catalog = answer.at("/token/catalog");
    let volume = catalog.as_array().unwrap().iter().find(|s| s["type"] == "volumev3").unwrap();
    assert_eq!(volume["endpoints"], json!([]));
    let refused = [
        by_name("alt"),
        by_name("nonesuch"),
        json!({"project": {"id": "0".repeat(32)}}),
        json!({"project": {"name": "demo", "domain": {"name": "nonesuch"}}}),
        json!({"domain": {"id": "default"}}),
        json!({"domain": {"name": "nonesuch"}}),
        json!({"system": {"all": true}}),
    ];
    for scope in refused {
        let answer = world.login("demo", &password_of("demo"), Some(scope.clone())).await;
        assert_eq!(answer.status, 401, "{scope}: {}", answer.text());
        error_shape(&dialect::KEYSTONE, &answer).unwrap();
        assert_eq!(answer.text_at("/error/message"), "The request you have made requires authentication.");
        assert!(answer.header("www-authenticate").starts_with("Keystone uri="));
    }
    world
        .state
        .ensure_assignment(&world.demo, "reader", &Place::Domain(base::DomainId::new("default")))
        .await
        .unwrap();
    let answer = world
        .login("demo", &password_of("demo"), Some(json!({"domain": {"name": "Default"}})))
        .await
        .expect(201);
    assert_eq!(answer.at("/token/domain"), json!({"id": "default", "name": "Default"}));
    assert_eq!(answer.at("/token/roles").as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn wrong_credentials_are_one_and_the_same_401() {
    let world = World::new().await;
    let user = |user: Value| json!({"methods": ["password"], "password": {"user": user}});
    let domain = json!({"id": "default"});
    let cases = [
        user(json!({"name": "demo", "domain": domain, "password": "wrong"})),
        user(json!({"name": "demo", "domain": domain, "password": ""})),
        user(json!({"name": "nobody", "domain": domain, "password": "wrong"})),
        user(json!({"name": "demo", "domain": {"id": "nowhere"}, "password": password_of("demo")})),
        user(json!({"id": "0".repeat(32), "password": "wrong"})),
        user(json!({"id": world.alt, "password": password_of("demo")})),
    ];
    for identity in cases {
        let answer = world.auth(identity.clone(), None).await;
        assert_eq!(answer.status, 401, "{identity}");
        assert_eq!(answer.text_at("/error/message"), "The request you have made requires authentication.");
        assert_eq!(answer.at("/error/title"), "Unauthorized");
        assert!(!answer.text().contains("wrong"));
    }
    let answer = world.auth(user(json!({"id": world.demo, "password": password_of("demo")})), None).await;
    assert_eq!(answer.status, 201);
}

#[tokio::test]
async fn malformed_logins_name_the_field() {
    let world = World::new().await;
    let good = json!({"name": "demo", "domain": {"id": "default"}, "password": password_of("demo")});
    let with = |key: &str, value: Value| {
        let mut user = good.clone();
        user[key] = value;
        json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}})
    };
    let scoped = |scope: Value| json!({"auth": {"identity": {"methods": ["password"], "password": {"user": good}}, "scope": scope}});
    let cases = [
        (json!({}), "auth"),
        (json!({"auth": null}), "auth"),
        (json!({"auth": {}}), "identity"),
        (json!({"auth": {"identity": {}}}), "methods"),
        (json!({"auth": {"identity": {"methods": []}}}), "methods"),
        (json!({"auth": {"identity": {"methods": "password"}}}), "methods"),
        (json!({"auth": {"identity": {"methods": [5]}}}), "methods/0"),
        (json!({"auth": {"identity": {"methods": ["password"]}}}), "password"),
        (json!({"auth": {"identity": {"methods": ["password"], "password": {}}}}), "user"),
        (json!({"auth": {"identity": {"methods": ["token"], "token": {}}}}), "id"),
        (
            json!({"auth": {"identity": {"methods": ["application_credential"], "application_credential": {}}}}),
            "secret",
        ),
        (with("password", json!(5)), "password"),
        (with("password", json!(null)), "password"),
        (with("name", json!({"a": 1})), "name"),
        (with("name", json!("x".repeat(256))), "name"),
        (with("id", json!([])), "id"),
        (with("domain", json!("default")), "domain"),
        (with("domain", json!({})), "domain"),
        (with("domain", json!({"id": 7})), "domain/id"),
        (scoped(json!(5)), "scope"),
        (scoped(json!({})), "scope"),
        (scoped(json!({"project": {"id": "a"}, "domain": {"id": "b"}})), "scope"),
        (scoped(json!({"project": {}})), "project"),
        (scoped(json!({"project": {"name": "demo"}})), "domain"),
        (scoped(json!({"project": {"id": 5}})), "project/id"),
        (scoped(json!({"system": {"all": false}})), "system"),
        (scoped(json!({"system": true})), "system"),
    ];
    for (body, field) in cases {
        let answer = world.anyone.post("/v3/auth/tokens", body.clone()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        error_shape(&dialect::KEYSTONE, &answer).unwrap();
        assert!(answer.text_at("/error/message").contains(field), "{body}: {}", answer.text());
        assert!(!answer.text().contains("password-of"), "{}", answer.text());
    }
    for methods in ["saml1", "fingerprint"] {
        let answer = world.auth(json!({"methods": [methods], methods: {}}), None).await;
        assert_eq!(answer.status, 401, "{}", answer.text());
    }
}

#[tokio::test]
async fn forged_and_truncated_tokens_are_none() {
    let world = World::new().await;
    let token = world.token("demo", world.project_scope(&world.demo_project)).await;
    // The token of a cloud with other keys is a forgery here.
    let other = World::on(config(), world.store.clone(), world.clock.clone(), 9).await;
    let foreign = other.token("demo", other.project_scope(&other.demo_project)).await;
    let mut bad = vec![
        String::new(),
        "x".into(),
        "gAAAAA".into(),
        token.to_lowercase(),
        format!("{token}A"),
        "é".into(),
        foreign,
    ];
    bad.extend((1..token.len()).step_by(7).map(|cut| token[..cut].to_owned()));
    bad.extend((0..token.len()).step_by(5).map(|at| {
        let mut forged = token.clone().into_bytes();
        forged[at] = if forged[at] == b'x' { b'y' } else { b'x' };
        String::from_utf8(forged).unwrap()
    }));
    for forged in bad {
        if forged == token {
            continue;
        }
        let answer = world.anyone.with_token(&forged).get("/v3/auth/projects").await;
        assert!(answer.status == 401 || answer.status == 0, "{forged}: {}", answer.text());
        let answer = world.validate(&forged).await;
        assert!(answer.status == 404 || answer.status == 0, "{forged}: {}", answer.text());
        let answer = world.auth(json!({"methods": ["token"], "token": {"id": forged}}), None).await;
        assert_eq!(answer.status, 404, "{forged}: {}", answer.text());
    }
    assert_eq!(world.validate(&token).await.status, 200);
}

#[tokio::test]
async fn rescoping_keeps_the_end_and_the_audit_chain() {
    let world = World::new().await;
    let second = world.state.ensure_project("second", "").await.unwrap();
    world.state.ensure_assignment(&world.demo, "reader", &Place::Project(second.clone())).await.unwrap();
    let first = world.login("demo", &password_of("demo"), Some(json!("unscoped"))).await.expect(201);
    let (first_token, first_audit) =
        (first.header("x-subject-token").to_owned(), first.at("/token/audit_ids/0"));
    world.later(1800);
    let by = |token: &str| json!({"methods": ["token"], "token": {"id": token}});
    let next = world.auth(by(&first_token), Some(world.project_scope(&second))).await.expect(201);
    assert_eq!(next.at("/token/expires_at"), first.at("/token/expires_at"));
    assert_eq!(next.at("/token/issued_at"), "2026-01-01T00:30:00.000000Z");
    assert_eq!(next.at("/token/audit_ids").as_array().unwrap().len(), 2);
    assert_eq!(next.at("/token/audit_ids/1"), first_audit);
    assert_eq!(next.at("/token/methods"), json!(["password", "token"]));
    let again =
        world.auth(by(next.header("x-subject-token")), Some(world.project_scope(&world.demo_project))).await;
    let again = again.expect(201);
    assert_eq!(again.at("/token/audit_ids/1"), first_audit);
    assert_eq!(again.at("/token/expires_at"), first.at("/token/expires_at"));
    let foreign = world.auth(by(&first_token), Some(world.project_scope(&world.alt_project))).await;
    assert_eq!(foreign.status, 401);
    world.later(1800);
    world.auth(by(&first_token), None).await.expect(404);
    // A token for the system does not become one for a project.
    let system = world.token("admin", json!({"system": {"all": true}})).await;
    let admin = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
    world.auth(by(&system), Some(admin)).await.expect(403);
    world.auth(by(&system), Some(json!({"system": {"all": true}}))).await.expect(201);
}

#[tokio::test]
async fn a_revoked_token_is_gone_and_others_of_the_user_stay() {
    let world = World::new().await;
    let scope = world.project_scope(&world.demo_project);
    let (one, two) = (world.token("demo", scope.clone()).await, world.token("demo", scope).await);
    let alt = world.alt().await;
    // Another tenant can neither see nor end it.
    alt.with_header("x-subject-token", &one).get("/v3/auth/tokens").await.expect(403);
    alt.with_header("x-subject-token", &one).delete("/v3/auth/tokens").await.expect(403);
    let own = world.anyone.with_token(&two).with_header("x-subject-token", &one);
    own.get("/v3/auth/tokens").await.expect(200);
    own.delete("/v3/auth/tokens").await.expect(204);
    own.get("/v3/auth/tokens").await.expect(404);
    own.get("/v3/auth/tokens?allow_expired=1").await.expect(404);
    own.delete("/v3/auth/tokens").await.expect(404);
    world.anyone.with_token(&one).get("/v3/auth/projects").await.expect(401);
    world.anyone.with_token(&two).get("/v3/auth/projects").await.expect(200);
    own.with_header("x-other", "1").get("/v3/auth/tokens").await.expect(404);
    world.anyone.with_token(&two).get("/v3/auth/tokens").await.expect(404);
}

#[tokio::test]
async fn expired_tokens_are_read_only_within_the_window() {
    let world = World::new().await;
    let token = world.token("demo", world.project_scope(&world.demo_project)).await;
    for (wait, plain, late) in [(3599, 200, 200), (1, 404, 200), (172_799, 404, 200), (1, 404, 404)] {
        world.later(wait);
        let fresh = world.token("admin", json!({"system": {"all": true}})).await;
        let admin = world.anyone.with_token(&fresh).with_header("x-subject-token", &token);
        assert_eq!(admin.get("/v3/auth/tokens").await.status, plain, "{wait}");
        assert_eq!(admin.get("/v3/auth/tokens?allow_expired=true").await.status, late, "{wait}");
        world.anyone.with_token(&token).get("/v3/auth/projects").await.expect(if plain == 200 {
            200
        } else {
            401
        });
    }
}

#[tokio::test]
async fn every_change_that_takes_a_right_away_takes_effect_at_once() {
    let world = World::new().await;
    let scope = world.project_scope(&world.demo_project);
    let project = format!("/v3/projects/{}", world.demo_project);
    let user = format!("/v3/users/{}", world.demo);
    let change = |on: bool| (json!({"project": {"enabled": on}}), json!({"user": {"enabled": on}}));

    let token = world.token("demo", scope.clone()).await;
    assert_eq!(world.roles_of(&token).await, ["member", "reader"]);
    world.admin.patch(&project, change(false).0).await.expect(200);
    assert!(world.roles_of(&token).await.is_empty(), "disabled project");
    assert_eq!(world.login("demo", &password_of("demo"), Some(scope.clone())).await.status, 401);
    world.later(1);
    world.admin.patch(&project, change(true).0).await.expect(200);
    assert!(world.roles_of(&token).await.is_empty(), "what was revoked does not come back");

    let token = world.token("demo", scope.clone()).await;
    assert_eq!(world.roles_of(&token).await, ["member", "reader"]);
    world.admin.patch(&user, change(false).1).await.expect(200);
    assert!(world.roles_of(&token).await.is_empty(), "disabled user");
    assert_eq!(world.login("demo", &password_of("demo"), None).await.status, 401);
    world.admin.patch(&user, change(true).1).await.expect(200);
    assert!(world.roles_of(&token).await.is_empty(), "what was revoked does not come back");

    let token = world.token("demo", scope.clone()).await;
    let member = world.role("member").await;
    let grant = format!("{project}/users/{}/roles/{member}", world.demo);
    world.admin.delete(&grant).await.expect(204);
    assert!(world.roles_of(&token).await.is_empty(), "no role is left");
    assert_eq!(world.login("demo", &password_of("demo"), Some(scope.clone())).await.status, 401);
    let reader = world.role("reader").await;
    world.admin.put(&format!("{project}/users/{}/roles/{reader}", world.demo), json!({})).await.expect(204);
    assert_eq!(world.roles_of(&token).await, ["reader"], "a token says what holds now");

    let answer = world.admin.patch(&user, json!({"user": {"password": "new-password"}})).await.expect(200);
    assert!(!answer.text().contains("new-password"));
    assert!(world.roles_of(&token).await.is_empty(), "password changed");
    // Without the clock moving: what was got with the new password is good.
    let token = world.login("demo", "new-password", Some(scope.clone())).await.expect(201);
    assert_eq!(world.roles_of(token.header("x-subject-token")).await, ["reader"]);

    let token = token.header("x-subject-token").to_owned();
    world.admin.delete(&project).await.expect(204);
    assert!(world.roles_of(&token).await.is_empty(), "deleted project");
    let unscoped = world.login("demo", "new-password", None).await.expect(201);
    assert_eq!(unscoped.at("/token/project"), Value::Null, "the default project is gone");
    world.admin.delete(&user).await.expect(204);
    assert_eq!(world.validate(unscoped.header("x-subject-token")).await.status, 404);
}

#[tokio::test]
async fn a_disabled_domain_ends_what_is_in_it() {
    let world = World::new().await;
    let domain = world.make_id("domain", json!({"name": "customer"})).await;
    let user =
        world.make_id("user", json!({"name": "u", "domain_id": domain, "password": "secret-one"})).await;
    let project = world.make_id("project", json!({"name": "p", "domain_id": domain})).await;
    let member = world.role("member").await;
    world
        .admin
        .put(&format!("/v3/projects/{project}/users/{user}/roles/{member}"), json!({}))
        .await
        .expect(204);
    world
        .admin
        .put(&format!("/v3/projects/{project}/users/{}/roles/{member}", world.demo), json!({}))
        .await
        .expect(204);
    let who = json!({"methods": ["password"], "password": {"user": {"id": user, "password": "secret-one"}}});
    let own = world.auth(who.clone(), Some(json!({"project": {"id": project}}))).await.expect(201);
    let guest = world.token("demo", json!({"project": {"id": project}})).await;
    let own = own.header("x-subject-token");
    assert_eq!(world.roles_of(own).await.len() + world.roles_of(&guest).await.len(), 4);
    world.admin.delete(&format!("/v3/domains/{domain}")).await.expect(403);
    world
        .admin
        .patch(&format!("/v3/domains/{domain}"), json!({"domain": {"enabled": false}}))
        .await
        .expect(200);
    assert!(world.roles_of(own).await.is_empty());
    assert!(world.roles_of(&guest).await.is_empty());
    assert_eq!(world.auth(who, None).await.status, 401);
    world.admin.delete(&format!("/v3/domains/{domain}")).await.expect(204);
    for gone in [format!("users/{user}"), format!("projects/{project}"), format!("domains/{domain}")] {
        world.admin.get(&format!("/v3/{gone}")).await.expect(404);
    }
}

#[tokio::test]
async fn servers_share_keys_and_changes() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Repository::Directory(dir.path().join("keys"));
    let config = Config { keys, several_servers: true, ..config() };
    let one = World::with(config.clone()).await;
    let two = World::on(config, one.store.clone(), one.clock.clone(), 2).await;
    assert_eq!((&one.demo, &one.demo_project), (&two.demo, &two.demo_project));
    let token = one.token("demo", one.project_scope(&one.demo_project)).await;
    assert_eq!(two.roles_of(&token).await, ["member", "reader"]);
    for _ in 0..2 {
        one.state.rotate_keys().unwrap();
        one.later(11);
        let token = one.token("alt", one.project_scope(&one.alt_project)).await;
        assert_eq!(two.roles_of(&token).await, ["member", "reader"]);
    }
    assert_eq!(two.state.key_numbers(), [3, 2, 1, 0]);
    let who = one.state.authenticator().authenticate(&token).await.unwrap();
    assert_eq!(who.roles, ["member", "reader"]);
    assert!(matches!(&who.scope, Scope::Project { id, .. } if *id == one.demo_project));
    assert!(!who.is_admin_project && who.expires_at > one.clock.now());
    // What one server changes the other knows at its next request.
    let path = format!("/v3/projects/{}", one.demo_project);
    one.admin.patch(&path, json!({"project": {"name": "renamed"}})).await.expect(200);
    assert_eq!(two.validate(&token).await.text_at("/token/project/name"), "renamed");
    one.admin.patch(&path, json!({"project": {"enabled": false}})).await.expect(200);
    assert_eq!(two.validate(&token).await.status, 404);
}

#[tokio::test]
async fn revocations_are_forgotten_when_they_no_longer_matter() {
    let world = World::new().await;
    let token = world.token("demo", world.project_scope(&world.demo_project)).await;
    world.admin.with_header("x-subject-token", &token).delete("/v3/auth/tokens").await.expect(204);
    world.later(3600 + 172_800 - 1);
    world.state.keep_house().await.unwrap();
    let fresh = world.token("admin", json!({"system": {"all": true}})).await;
    let admin = world.anyone.with_token(&fresh).with_header("x-subject-token", &token);
    admin.get("/v3/auth/tokens?allow_expired=1").await.expect(404);
    world.later(2);
    world.state.keep_house().await.unwrap();
    admin.get("/v3/auth/tokens?allow_expired=1").await.expect(404);
}

#[tokio::test]
async fn what_a_token_can_find_out_about_itself() {
    let world = World::new().await;
    let demo = world.demo().await;
    let catalog = demo.get("/v3/auth/catalog").await.expect(200);
    assert_eq!(catalog.at("/catalog").as_array().unwrap().len(), 3);
    assert_eq!(catalog.text_at("/links/self"), "https://cloud.test/v3/auth/catalog");
    let projects = demo.get("/v3/auth/projects").await.expect(200);
    assert_eq!(projects.at("/projects").as_array().unwrap().len(), 1);
    assert_eq!(projects.text_at("/projects/0/name"), "demo");
    assert_eq!(demo.get("/v3/auth/domains").await.expect(200).at("/domains"), json!([]));
    assert_eq!(demo.get("/v3/auth/system").await.expect(200).at("/system"), json!([]));
    assert_eq!(world.admin.get("/v3/auth/system").await.expect(200).at("/system"), json!([{"all": true}]));
    let unscoped = world.token("demo", json!("unscoped")).await;
    let unscoped = world.anyone.with_token(&unscoped);
    unscoped.get("/v3/auth/catalog").await.expect(403);
    unscoped.get("/v3/auth/projects").await.expect(200);
    unscoped.get("/v3/users").await.expect(403);
}

#[tokio::test]
async fn versions_are_told_with_and_without_a_slash() {
    let world = World::new().await;
    let root = world.anyone.get("/").await.expect(300);
    let values = root.at("/versions/values");
    assert_eq!(values[0]["id"], "v3.14");
    assert_eq!(values[0]["links"], json!([{"rel": "self", "href": "https://cloud.test/v3/"}]));
    for path in ["/v3", "/v3/"] {
        let version = world.anyone.get(path).await.expect(200).at("/version");
        assert_eq!(version["status"], "stable");
        assert_eq!(version["media-types"][0]["type"], "application/vnd.openstack.identity-v3+json");
    }
    world.anyone.get("/v2.0").await.expect(404);
    world.anyone.call(Method::PUT, "/v3/auth/tokens").send().await.expect(405);
}
