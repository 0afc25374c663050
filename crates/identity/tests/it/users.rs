//! Users and groups.

use serde_json::{Value, json};

use crate::world::{World, password_of};

#[tokio::test]
async fn users_have_extra_attributes_options_and_links() {
    let world = World::new().await;
    let body = json!({
        "name": " anna ", "password": "a-good-password", "email": "anna@example.org", "description": null,
        "default_project_id": world.demo_project, "options": {"ignore_password_expiry": true}, "team": {"a": [1]},
    });
    let made = world.admin.post("/v3/users", json!({"user": body})).await.expect(201);
    assert!(!made.text().contains("a-good-password") && !made.text().contains("$2b$"));
    let user = made.at("/user");
    let id = user["id"].as_str().unwrap();
    assert_eq!((id.len(), &user["name"], &user["domain_id"]), (32, &json!("anna"), &json!("default")));
    assert_eq!((&user["email"], &user["team"]), (&json!("anna@example.org"), &json!({"a": [1]})));
    assert_eq!(user["options"], json!({"ignore_password_expiry": true}));
    assert_eq!((&user["enabled"], &user["password_expires_at"]), (&json!(true), &Value::Null));
    assert_eq!(user["links"]["self"], format!("https://cloud.test/v3/users/{id}"));
    let path = format!("/v3/users/{id}");
    assert_eq!(world.admin.get(&path).await.expect(200).at("/user"), user);
    let changed = json!({"user": {"email": "other@example.org", "description": "d", "options": {"ignore_password_expiry": null}}});
    let changed = world.admin.patch(&path, changed).await.expect(200).at("/user");
    assert_eq!((&changed["email"], &changed["description"]), (&json!("other@example.org"), &json!("d")));
    assert_eq!((&changed["options"], &changed["team"]), (&json!({}), &json!({"a": [1]})));

    let again = world.admin.post("/v3/users", json!({"user": {"name": "anna"}})).await.expect(409);
    assert_eq!(
        again.text_at("/error/message"),
        "Conflict occurred attempting to store user - Duplicate entry found with name anna at domain ID default."
    );
    let bad = [
        (json!({"name": "x", "domain_id": "nowhere"}), 404),
        (json!({"name": "x", "enabled": "yes"}), 400),
        (json!({"name": "x", "options": {"nonsense": true}}), 400),
        (json!({"name": "x".repeat(256)}), 400),
        (json!({"name": "x", "password": "p".repeat(4097)}), 403),
    ];
    for (body, status) in bad {
        let answer = world.admin.post("/v3/users", json!({"user": body})).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(!answer.text().contains("pppp"));
    }
    for (body, field) in [(json!({"domain_id": "other"}), "domain_id"), (json!({"id": "other"}), "ID")] {
        let answer = world.admin.patch(&path, json!({"user": body})).await.expect(400);
        assert!(answer.text().contains(field));
    }
    world.admin.delete(&path).await.expect(204);
    world.admin.get(&path).await.expect(404);
    world.admin.delete(&path).await.expect(404);
}

#[tokio::test]
async fn lists_filter_and_have_pages() {
    let world = World::new().await;
    for i in 0..5 {
        world.make("user", json!({"name": format!("Test-{i}"), "enabled": i != 3})).await;
    }
    let names = |query: &str| {
        let (world, query) = (&world, format!("/v3/users?{query}"));
        async move {
            let answer = world.admin.get(&query).await.expect(200);
            let users = answer.at("/users");
            let mut names: Vec<String> =
                users.as_array().unwrap().iter().map(|u| u["name"].as_str().unwrap().to_owned()).collect();
            names.sort();
            (names, answer)
        }
    };
    assert_eq!(names("name=Test-1").await.0, ["Test-1"]);
    assert_eq!(names("name__startswith=Test&enabled=false").await.0, ["Test-3"]);
    assert_eq!(names("name__icontains=TEST-").await.0.len(), 5);
    assert_eq!(names("name=nobody").await.0.len(), 0);
    assert_eq!(names("domain_id=nowhere").await.0.len(), 0);
    let (all, answer) = names("domain_id=default").await;
    assert_eq!(all.len(), 8);
    assert_eq!(answer.at("/links/next"), Value::Null);
    assert_eq!(answer.text_at("/links/self"), "https://cloud.test/v3/users?domain_id=default");
    let (mut paged, mut next) = (Vec::new(), "limit=3".to_owned());
    for _ in 0..3 {
        let (page, answer) = names(&next).await;
        assert!(page.len() <= 3);
        paged.extend(page);
        next = answer.text_at("/links/next").split_once('?').map(|(_, q)| q.to_owned()).unwrap_or_default();
        if next.is_empty() {
            break;
        }
    }
    paged.sort();
    assert_eq!(paged, all);
    let sorted =
        world.admin.get("/v3/users?sort_key=name&sort_dir=desc&name__startswith=Test").await.expect(200);
    assert_eq!(
        (sorted.text_at("/users/0/name"), sorted.text_at("/users/4/name")),
        ("Test-4".into(), "Test-0".into())
    );
    world.admin.get("/v3/users?sort_key=name&sort_dir=up").await.expect(400);
    world.admin.get("/v3/users?limit=-1").await.expect(400);
    world.admin.get("/v3/users?marker=nonesuch").await.expect(400);
}

#[tokio::test]
async fn a_user_changes_the_own_password_and_not_to_an_old_one() {
    let world = World::new().await;
    let path = format!("/v3/users/{}/password", world.demo);
    let change = |old: &str, new: &str| json!({"user": {"original_password": old, "password": new}});
    let old_token = world.token("demo", world.project_scope(&world.demo_project)).await;
    world.anyone.post(&path, change("wrong", "new-one")).await.expect(401);
    world.anyone.post(&path, json!({"user": {"password": "x"}})).await.expect(400);
    world.anyone.post(&format!("/v3/users/{}/password", "0".repeat(32)), change("a", "b")).await.expect(401);
    world.anyone.post(&path, change(&password_of("demo"), "new-one")).await.expect(204);
    // Tempest: the old token answers 404 where it is used to log in, the old password 401.
    let by_token = json!({"methods": ["token"], "token": {"id": old_token}});
    assert_eq!(world.auth(by_token, None).await.status, 404);
    assert_eq!(world.login("demo", &password_of("demo"), None).await.status, 401);
    assert_eq!(world.login("demo", "new-one", None).await.status, 201);
    // The last two passwords, the present one included, are not taken again.
    for old in ["new-one", &password_of("demo")] {
        let answer = world.anyone.post(&path, change("new-one", old)).await.expect(400);
        assert!(answer.text_at("/error/message").contains("must be unique is 2"), "{}", answer.text());
    }
    world.anyone.post(&path, change("new-one", "new-two")).await.expect(204);
    world.anyone.post(&path, change("new-two", &password_of("demo"))).await.expect(204);
    let user = format!("/v3/users/{}", world.demo);
    world.admin.patch(&user, json!({"user": {"options": {"lock_password": true}}})).await.expect(200);
    world.anyone.post(&path, change(&password_of("demo"), "new-three")).await.expect(400);
    world.admin.patch(&user, json!({"user": {"password": null}})).await.expect(200);
    assert_eq!(world.login("demo", &password_of("demo"), None).await.status, 401);
    assert_eq!(world.login("demo", "", None).await.status, 401);
}

#[tokio::test]
async fn rules_for_several_factors_are_obeyed() {
    let world = World::new().await;
    let user = format!("/v3/users/{}", world.demo);
    let set = |rules: Value| json!({"user": {"options": {"multi_factor_auth_rules": rules}}});
    for bad in [json!("password"), json!(["password"]), json!([[5]])] {
        world.admin.patch(&user, set(bad)).await.expect(400);
    }
    let token = world.token("demo", world.project_scope(&world.demo_project)).await;
    world.admin.patch(&user, set(json!([["password", "token"]]))).await.expect(200);
    assert_eq!(world.login("demo", &password_of("demo"), None).await.status, 401);
    let who = json!({"id": world.demo, "password": password_of("demo")});
    let both = json!({"methods": ["password", "token"], "password": {"user": who}, "token": {"id": token}});
    world.auth(both, None).await.expect(201);
    world
        .admin
        .patch(&user, set(json!([["password", "token"], ["password", "fingerprint"]])))
        .await
        .expect(200);
    assert_eq!(world.login("demo", &password_of("demo"), None).await.status, 201);
    world.admin.patch(&user, set(json!([["password", "token"]]))).await.expect(200);
    let off = json!({"user": {"options": {"multi_factor_auth_enabled": false}}});
    world.admin.patch(&user, off).await.expect(200);
    assert_eq!(world.login("demo", &password_of("demo"), None).await.status, 201);
}

#[tokio::test]
async fn groups_give_their_roles_to_their_users() {
    let world = World::new().await;
    let group = world.make("group", json!({"name": "readers", "description": "d"})).await;
    let id = group["id"].as_str().unwrap();
    assert_eq!((&group["domain_id"], &group["description"]), (&json!("default"), &json!("d")));
    let reader = world.role("reader").await;
    let grant = format!("/v3/projects/{}/groups/{id}/roles/{reader}", world.alt_project);
    world.admin.put(&grant, json!({})).await.expect(204);
    let scope = world.project_scope(&world.alt_project);
    assert_eq!(world.login("demo", &password_of("demo"), Some(scope.clone())).await.status, 401);
    let member = format!("/v3/groups/{id}/users/{}", world.demo);
    world.admin.get(&member).await.expect(404);
    world.admin.put(&member, json!({})).await.expect(204);
    world.admin.put(&member, json!({})).await.expect(204);
    world.admin.get(&member).await.expect(204);
    let token = world.token("demo", scope.clone()).await;
    assert_eq!(world.roles_of(&token).await, ["reader"]);
    let users = world.admin.get(&format!("/v3/groups/{id}/users")).await.expect(200);
    assert_eq!(users.text_at("/users/0/name"), "demo");
    let demo = world.demo().await;
    let groups = demo.get(&format!("/v3/users/{}/groups", world.demo)).await.expect(200);
    assert_eq!(groups.text_at("/groups/0/name"), "readers");
    let projects = demo.get(&format!("/v3/users/{}/projects", world.demo)).await.expect(200);
    assert_eq!(projects.at("/projects").as_array().unwrap().len(), 2);
    // Out of the group: the right is gone at once.
    world.admin.delete(&member).await.expect(204);
    world.admin.delete(&member).await.expect(404);
    assert!(world.roles_of(&token).await.is_empty());
    world.admin.put(&member, json!({})).await.expect(204);
    assert_eq!(world.roles_of(&token).await, ["reader"]);
    world.admin.delete(&grant).await.expect(204);
    assert!(world.roles_of(&token).await.is_empty());
    world.admin.put(&grant, json!({})).await.expect(204);
    world.admin.delete(&format!("/v3/groups/{id}")).await.expect(204);
    assert!(world.roles_of(&token).await.is_empty());
    world.admin.post("/v3/groups", json!({"group": {"name": "a", "domain_id": "nowhere"}})).await.expect(404);
}
