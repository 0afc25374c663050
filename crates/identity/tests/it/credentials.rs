//! Application credentials and access rules.

use serde_json::{Value, json};

use crate::world::World;

async fn make(world: &World, client: &api::testing::Client, body: Value, status: u16) -> Value {
    let path = format!("/v3/users/{}/application_credentials", world.demo);
    client
        .post(&path, json!({"application_credential": body}))
        .await
        .expect(status)
        .at("/application_credential")
}

fn by_id(credential: &Value) -> Value {
    let method = json!({"id": credential["id"], "secret": credential["secret"]});
    json!({"methods": ["application_credential"], "application_credential": method})
}

#[tokio::test]
async fn a_credential_logs_in_to_its_project_with_its_roles() {
    let world = World::new().await;
    let demo = world.demo().await;
    let made = make(&world, &demo, json!({"name": "ci", "description": "d"}), 201).await;
    assert_eq!((&made["project_id"], &made["user_id"]), (&json!(world.demo_project), &json!(world.demo)));
    assert_eq!((&made["unrestricted"], &made["expires_at"]), (&json!(false), &Value::Null));
    assert!(made["secret"].as_str().unwrap().len() >= 86);
    let names: Vec<&str> =
        made["roles"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["member", "reader"]);
    let login = world.auth(by_id(&made), None).await.expect(201);
    assert_eq!(login.at("/token/methods"), json!(["application_credential"]));
    assert_eq!(login.at("/token/project/id"), json!(world.demo_project));
    assert_eq!(
        login.at("/token/application_credential"),
        json!({"id": made["id"], "name": "ci", "restricted": true})
    );
    let user = json!({"name": "demo", "domain": {"id": "default"}});
    let by_name = json!({"name": "ci", "user": user, "secret": made["secret"]});
    let by_name = json!({"methods": ["application_credential"], "application_credential": by_name});
    world.auth(by_name, None).await.expect(201);
    // It cannot choose a scope, be guessed, or be exchanged for another token.
    world.auth(by_id(&made), Some(world.project_scope(&world.demo_project))).await.expect(401);
    let mut wrong = by_id(&made);
    wrong["application_credential"]["secret"] = json!("wrong");
    world.auth(wrong, None).await.expect(401);
    let token = login.header("x-subject-token");
    world.auth(json!({"methods": ["token"], "token": {"id": token}}), None).await.expect(403);
    // A restricted one manages no credentials.
    let limited = world.anyone.with_token(token);
    make(&world, &limited, json!({"name": "more"}), 403).await;
    let path = format!("/v3/users/{}/application_credentials", world.demo);
    let one = format!("{path}/{}", made["id"].as_str().unwrap());
    limited.delete(&one).await.expect(403);
    let listed = limited.get(&path).await.expect(200);
    assert_eq!(listed.text_at("/application_credentials/0/name"), "ci");
    assert!(!listed.text().contains("secret"));
    // Nobody else sees it; its user ends it, and its tokens with it.
    let alt = world.alt().await;
    for path in [&path, &one] {
        alt.get(path).await.expect(403);
    }
    alt.delete(&one).await.expect(403);
    let foreign = format!("/v3/users/{}/application_credentials/{}", world.alt, made["id"].as_str().unwrap());
    alt.get(&foreign).await.expect(403);
    alt.delete(&foreign).await.expect(403);
    alt.post(&path, json!({"application_credential": {"name": "x"}})).await.expect(403);
    world.admin.post(&path, json!({"application_credential": {"name": "x"}})).await.expect(403);
    demo.get(&one).await.expect(200);
    demo.delete(&one).await.expect(204);
    demo.delete(&one).await.expect(404);
    assert_eq!(world.validate(token).await.status, 404);
    world.auth(by_id(&made), None).await.expect(401);
}

#[tokio::test]
async fn credentials_carry_fewer_roles_and_end() {
    let world = World::new().await;
    let demo = world.demo().await;
    let expires = "2026-01-01T00:10:00.123456";
    let body =
        json!({"name": "r", "roles": [{"name": "reader"}], "expires_at": expires, "secret": "chosen-secret"});
    let made = make(&world, &demo, body, 201).await;
    assert_eq!((&made["expires_at"], &made["secret"]), (&json!(expires), &json!("chosen-secret")));
    let login = world.auth(by_id(&made), None).await.expect(201);
    let token = login.header("x-subject-token").to_owned();
    assert_eq!(world.roles_of(&token).await, ["reader"]);
    assert_eq!(login.at("/token/expires_at"), "2026-01-01T00:10:00.123456Z");
    let admin = world.role("admin").await;
    for (body, field) in [
        (json!({"name": "x", "roles": [{"id": admin}]}), "unassigned role"),
        (json!({"name": "x", "roles": [{"name": "nonesuch"}]}), "role"),
        (json!({"name": "x", "roles": [{}]}), "roles/0"),
        (json!({"name": "x", "roles": "member"}), "roles"),
        (json!({"name": "x", "expires_at": "tomorrow"}), "expires_at"),
        (json!({"name": "x", "expires_at": "2025-12-31T00:00:00"}), "expires_at"),
        (json!({"name": ""}), "name"),
        (json!({}), "name"),
        (json!({"name": "x", "unrestricted": "yes"}), "unrestricted"),
        (json!({"name": "x", "access_rules": [{"path": "/v2.1/servers"}]}), "service"),
        (
            json!({"name": "x", "access_rules": [{"path": "v2.1", "method": "GET", "service": "compute"}]}),
            "path",
        ),
        (
            json!({"name": "x", "access_rules": [{"path": "/", "method": "LOOK", "service": "compute"}]}),
            "method",
        ),
        (json!({"name": "x", "access_rules": [{"id": "nonesuch"}]}), "Access Rule"),
    ] {
        let path = format!("/v3/users/{}/application_credentials", world.demo);
        let answer = demo.post(&path, json!({"application_credential": body})).await.expect(400);
        assert!(answer.text_at("/error/message").contains(field), "{}", answer.text());
    }
    make(&world, &demo, json!({"name": "r"}), 409).await;
    let unscoped = world.token("demo", json!("unscoped")).await;
    make(&world, &world.anyone.with_token(&unscoped), json!({"name": "y"}), 403).await;
    world.later(601);
    assert_eq!(world.validate(&token).await.status, 404);
    world.auth(by_id(&made), None).await.expect(401);
}

#[tokio::test]
async fn an_unrestricted_credential_makes_others_and_a_lost_role_ends_all() {
    let world = World::new().await;
    let demo = world.demo().await;
    let made = make(&world, &demo, json!({"name": "boss", "unrestricted": true}), 201).await;
    let login = world.auth(by_id(&made), None).await.expect(201);
    assert_eq!(login.at("/token/application_credential/restricted"), false);
    let token = login.header("x-subject-token").to_owned();
    let other = make(&world, &world.anyone.with_token(&token), json!({"name": "child"}), 201).await;
    let child = world.auth(by_id(&other), None).await.expect(201);
    let member = world.role("member").await;
    let grant = format!("/v3/projects/{}/users/{}/roles/{member}", world.demo_project, world.demo);
    world.admin.delete(&grant).await.expect(204);
    for token in [token.as_str(), child.header("x-subject-token")] {
        assert_eq!(world.validate(token).await.status, 404);
    }
    world.auth(by_id(&made), None).await.expect(401);
    world.auth(by_id(&other), None).await.expect(401);
}

#[tokio::test]
async fn access_rules_are_kept_and_such_tokens_go_nowhere_they_are_not_understood() {
    let world = World::new().await;
    let demo = world.demo().await;
    let rule = json!({"service": "compute", "method": "GET", "path": "/v2.1/servers"});
    let made = make(&world, &demo, json!({"name": "watcher", "access_rules": [rule]}), 201).await;
    let id = made["access_rules"][0]["id"].as_str().unwrap();
    let rules = format!("/v3/users/{}/access_rules", world.demo);
    let listed = demo.get(&rules).await.expect(200);
    assert_eq!(listed.text_at("/access_rules/0/path"), "/v2.1/servers");
    let one = format!("{rules}/{id}");
    demo.get(&one).await.expect(200);
    world.alt().await.get(&one).await.expect(403);
    demo.delete(&one).await.expect(403);
    let again = make(&world, &demo, json!({"name": "second", "access_rules": [{"id": id}]}), 201).await;
    assert_eq!(again["access_rules"], made["access_rules"]);
    let login = world.auth(by_id(&made), None).await.expect(201);
    let token = login.header("x-subject-token");
    world.anyone.with_token(token).get("/v3/auth/projects").await.expect(401);
    assert_eq!(world.validate(token).await.status, 404);
    // Rules are for the services they name; this one is named by another.
    let rule = json!({"service": "identity", "method": "GET", "path": "/v3/users/*/projects"});
    let narrow = make(&world, &demo, json!({"name": "narrow", "access_rules": [rule]}), 201).await;
    let narrow_token = world.auth(by_id(&narrow), None).await.expect(201);
    let limited = world.anyone.with_token(narrow_token.header("x-subject-token"));
    limited.get(&format!("/v3/users/{}/projects", world.demo)).await.expect(200);
    limited.get(&format!("/v3/users/{}/groups", world.demo)).await.expect(401);
    limited.get(&format!("/v3/users/{}", world.demo)).await.expect(401);
    assert!(world.state.authenticator().authenticate(token).await.is_err());
    let compute = |method: &'static str, path: &'static str| {
        let authenticator = world.state.authenticator();
        let began = contract::auth::Moment::next();
        let request = contract::auth::Presented {
            began,
            subject: None,
            service: "compute",
            method,
            path,
            certificate: None,
        };
        async move { authenticator.authenticate_for(token, request).await.is_ok() }
    };
    assert!(compute("GET", "/v2.1/servers").await);
    assert!(!compute("POST", "/v2.1/servers").await && !compute("GET", "/v2.1/servers/detail").await);
    let understood = world
        .admin
        .with_header("x-subject-token", token)
        .with_header("openstack-identity-access-rules", "1.0");
    let shown = understood.get("/v3/auth/tokens").await.expect(200);
    assert_eq!(shown.at("/token/application_credential/access_rules/0/method"), "GET");
    for name in [&made, &again, &narrow] {
        let path =
            format!("/v3/users/{}/application_credentials/{}", world.demo, name["id"].as_str().unwrap());
        demo.delete(&path).await.expect(204);
    }
    demo.delete(&one).await.expect(204);
    demo.get(&one).await.expect(404);
}
