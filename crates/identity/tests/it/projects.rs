//! Projects, domains, roles, the catalog.

use serde_json::{Value, json};

use crate::world::World;

#[tokio::test]
async fn projects_are_trees_of_at_most_five_levels() {
    let world = World::new().await;
    let top = world.make("project", json!({"name": "top", "tags": ["a", "b"], "cost": 7})).await;
    assert_eq!((&top["parent_id"], &top["is_domain"]), (&json!("default"), &json!(false)));
    assert_eq!((&top["tags"], &top["cost"], &top["options"]), (&json!(["a", "b"]), &json!(7), &json!({})));
    let mut chain = vec![top["id"].as_str().unwrap().to_owned()];
    for level in 2..=5 {
        let body = json!({"name": format!("level-{level}"), "parent_id": chain.last().unwrap()});
        chain.push(world.make_id("project", body).await);
    }
    let deeper = json!({"project": {"name": "level-6", "parent_id": chain[4]}});
    world.admin.post("/v3/projects", deeper).await.expect(403);
    let shown = world
        .admin
        .get(&format!("/v3/projects/{}?subtree_as_ids&parents_as_ids=1", chain[1]))
        .await
        .expect(200);
    assert_eq!(shown.at("/project/subtree"), json!({(&chain[2]): {(&chain[3]): {(&chain[4]): null}}}));
    assert_eq!(shown.at("/project/parents"), json!({(&chain[0]): {"default": null}}));
    let listed = world.admin.get(&format!("/v3/projects?parent_id={}", chain[0])).await.expect(200);
    assert_eq!(listed.at("/projects").as_array().unwrap().len(), 1);
    let path = |i: usize| format!("/v3/projects/{}", chain[i]);
    world.admin.delete(&path(3)).await.expect(403);
    let off = json!({"project": {"enabled": false}});
    world.admin.patch(&path(3), off.clone()).await.expect(403);
    world.admin.patch(&path(4), off.clone()).await.expect(200);
    world.admin.patch(&path(3), off).await.expect(200);
    world.admin.patch(&path(4), json!({"project": {"enabled": true}})).await.expect(403);
    world
        .admin
        .post("/v3/projects", json!({"project": {"name": "x", "parent_id": chain[3]}}))
        .await
        .expect(403);
    world.admin.delete(&path(4)).await.expect(204);
    world.admin.delete(&path(3)).await.expect(204);
    let bad = [
        (json!({"name": "x", "parent_id": "nowhere"}), 400),
        (json!({"name": "x", "domain_id": "nowhere"}), 400),
        (json!({"name": "x".repeat(65)}), 400),
        (json!({"name": "x", "is_domain": true, "domain_id": "default"}), 400),
        (json!({"name": "top"}), 409),
        (json!({"name": "x", "tags": ["a,b"]}), 400),
    ];
    for (body, status) in bad {
        world.admin.post("/v3/projects", json!({"project": body})).await.expect(status);
    }
    for (body, status) in [
        (json!({"parent_id": world.demo_project}), 403),
        (json!({"domain_id": "other"}), 400),
        (json!({"is_domain": true}), 400),
        (json!({"name": "demo"}), 409),
        (json!({"name": "better"}), 200),
    ] {
        world.admin.patch(&path(0), json!({"project": body})).await.expect(status);
    }
}

#[tokio::test]
async fn tags_select_projects() {
    let world = World::new().await;
    let id = world.make_id("project", json!({"name": "tagged", "tags": ["a"]})).await;
    let tags = format!("/v3/projects/{id}/tags");
    let added = world.admin.put(&format!("{tags}/b"), json!({})).await.expect(201);
    assert!(added.header("location").ends_with("/tags/b"));
    assert_eq!(world.admin.get(&tags).await.expect(200).at("/tags"), json!(["a", "b"]));
    world.admin.get(&format!("{tags}/b")).await.expect(204);
    world.admin.get(&format!("{tags}/c")).await.expect(404);
    for (query, found) in
        [("tags=a,b", 1), ("tags=a,c", 0), ("tags-any=a,c", 1), ("not-tags-any=b&name=tagged", 0)]
    {
        let listed = world.admin.get(&format!("/v3/projects?{query}")).await.expect(200);
        assert_eq!(listed.at("/projects").as_array().unwrap().len(), found, "{query}");
    }
    world.admin.delete(&format!("{tags}/a")).await.expect(204);
    world.admin.delete(&format!("{tags}/a")).await.expect(404);
    world.admin.put(&tags, json!({"tags": ["x", "y"]})).await.expect(200);
    world.admin.put(&tags, json!({"tags": ["x", "x"]})).await.expect(400);
    world.admin.put(&tags, json!({"tags": 5})).await.expect(400);
    world.admin.put(&tags, json!({})).await.expect(400);
    world.admin.delete(&tags).await.expect(204);
    assert_eq!(world.admin.get(&tags).await.expect(200).at("/tags"), json!([]));
}

#[tokio::test]
async fn immutable_things_stay_until_they_are_released() {
    let world = World::new().await;
    let id = world.make_id("project", json!({"name": "kept", "options": {"immutable": true}})).await;
    let path = format!("/v3/projects/{id}");
    world.admin.delete(&path).await.expect(403);
    world.admin.patch(&path, json!({"project": {"name": "x"}})).await.expect(403);
    world
        .admin
        .patch(&path, json!({"project": {"name": "x", "options": {"immutable": false}}}))
        .await
        .expect(200);
    world.admin.delete(&path).await.expect(204);
    let admin = world.role("admin").await;
    world.admin.delete(&format!("/v3/roles/{admin}")).await.expect(403);
    world.admin.patch(&format!("/v3/roles/{admin}"), json!({"role": {"name": "boss"}})).await.expect(403);
}

#[tokio::test]
async fn roles_imply_roles() {
    let world = World::new().await;
    let inferences = world.admin.get("/v3/role_inferences").await.expect(200).at("/role_inferences");
    let pairs: Vec<(String, String)> = inferences
        .as_array()
        .unwrap()
        .iter()
        .map(|i| {
            (
                i["prior_role"]["name"].as_str().unwrap().into(),
                i["implies"][0]["name"].as_str().unwrap().into(),
            )
        })
        .collect();
    for (prior, implied) in [("admin", "manager"), ("manager", "member"), ("member", "reader")] {
        assert!(pairs.contains(&(prior.into(), implied.into())), "{pairs:?}");
    }
    let auditor = world.make_id("role", json!({"name": "auditor", "description": "reads"})).await;
    let (reader, admin) = (world.role("reader").await, world.role("admin").await);
    let path = format!("/v3/roles/{auditor}/implies/{reader}");
    world.admin.get(&path).await.expect(404);
    let made = world.admin.put(&path, json!({})).await.expect(201);
    assert_eq!(made.text_at("/role_inference/implies/name"), "reader");
    let listed = world.admin.get(&format!("/v3/roles/{auditor}/implies")).await.expect(200);
    assert_eq!(listed.text_at("/role_inference/implies/0/name"), "reader");
    world.admin.put(&format!("/v3/roles/{auditor}/implies/{admin}"), json!({})).await.expect(403);
    let grant = format!("/v3/projects/{}/users/{}/roles/{auditor}", world.alt_project, world.demo);
    world.admin.put(&grant, json!({})).await.expect(204);
    let token = world.token("demo", world.project_scope(&world.alt_project)).await;
    assert_eq!(world.roles_of(&token).await, ["auditor", "reader"]);
    world.admin.delete(&path).await.expect(204);
    world.admin.delete(&path).await.expect(404);
    assert_eq!(world.roles_of(&token).await, ["auditor"]);
    world.admin.delete(&format!("/v3/roles/{auditor}")).await.expect(204);
    assert!(world.roles_of(&token).await.is_empty());
    world.admin.post("/v3/roles", json!({"role": {"name": "member"}})).await.expect(409);
}

#[tokio::test]
async fn a_domains_own_role_is_in_no_token_but_what_it_implies_is() {
    let world = World::new().await;
    let domain = world.make_id("domain", json!({"name": "customer"})).await;
    let own = world.make_id("role", json!({"name": "member", "domain_id": domain})).await;
    let project = world.make_id("project", json!({"name": "p", "domain_id": domain})).await;
    assert_eq!(
        world.admin.get("/v3/roles?name=member").await.expect(200).at("/roles").as_array().unwrap().len(),
        1
    );
    let listed = world.admin.get(&format!("/v3/roles?domain_id={domain}")).await.expect(200);
    assert_eq!(listed.text_at("/roles/0/id"), own);
    let grant = |project: &str| format!("/v3/projects/{project}/users/{}/roles/{own}", world.demo);
    world.admin.put(&grant(world.demo_project.as_str()), json!({})).await.expect(403);
    world.admin.put(&grant(&project), json!({})).await.expect(204);
    let scope = json!({"project": {"id": project}});
    let login = world.login("demo", &crate::world::password_of("demo"), Some(scope.clone())).await;
    assert_eq!(login.status, 401);
    let reader = world.role("reader").await;
    world.admin.put(&format!("/v3/roles/{own}/implies/{reader}"), json!({})).await.expect(201);
    let token = world.token("demo", scope).await;
    assert_eq!(world.roles_of(&token).await, ["reader"]);
}

#[tokio::test]
async fn the_catalog_follows_its_tables() {
    let world = World::new().await;
    let service =
        world.make_id("service", json!({"type": "dns", "name": "designate", "description": "d"})).await;
    let url = "https://cloud.test/dns/$(tenant_id)s";
    let body = json!({"service_id": service, "interface": "public", "url": url, "region": "Second"});
    let endpoint = world.make("endpoint", body).await;
    assert_eq!((&endpoint["region"], &endpoint["region_id"]), (&json!("Second"), &json!("Second")));
    world.admin.get("/v3/regions/Second").await.expect(200);
    let token = world.token("demo", world.project_scope(&world.demo_project)).await;
    let dns = |answer: &api::testing::Answer| -> Value {
        answer
            .at("/token/catalog")
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["type"] == "dns")
            .cloned()
            .unwrap_or_default()
    };
    let shown = dns(&world.validate(&token).await);
    assert_eq!(shown["endpoints"][0]["url"], format!("https://cloud.test/dns/{}", world.demo_project));
    let path = format!("/v3/endpoints/{}", endpoint["id"].as_str().unwrap());
    world.admin.patch(&path, json!({"endpoint": {"url": "https://other.test"}})).await.expect(200);
    assert_eq!(dns(&world.validate(&token).await)["endpoints"][0]["url"], "https://other.test");
    world.admin.patch(&path, json!({"endpoint": {"enabled": false}})).await.expect(200);
    assert_eq!(dns(&world.validate(&token).await)["endpoints"], json!([]));
    world
        .admin
        .patch(&format!("/v3/services/{service}"), json!({"service": {"enabled": false}}))
        .await
        .expect(200);
    assert_eq!(dns(&world.validate(&token).await), Value::Null);
    let bad = [
        (json!({"service_id": "nowhere", "interface": "public", "url": "http://x"}), "service"),
        (json!({"service_id": service, "interface": "both", "url": "http://x"}), "interface"),
        (json!({"service_id": service, "interface": "public", "url": "x"}), "url"),
        (json!({"service_id": service, "interface": "public", "url": "http://x/%(secret)s"}), "URL"),
        (
            json!({"service_id": service, "interface": "public", "url": "http://x", "region_id": "nowhere"}),
            "region",
        ),
    ];
    for (body, field) in bad {
        let answer = world.admin.post("/v3/endpoints", json!({"endpoint": body})).await.expect(400);
        assert!(answer.text().contains(field), "{}", answer.text());
    }
    world.admin.delete("/v3/regions/Second").await.expect(403);
    world.admin.delete(&format!("/v3/services/{service}")).await.expect(204);
    world.admin.get(&path).await.expect(404);
    world.admin.delete("/v3/regions/Second").await.expect(204);
    // A demo user sees regions, and not the tables.
    let demo = world.demo().await;
    demo.get("/v3/regions").await.expect(200);
    for list in
        ["services", "endpoints", "users", "projects", "domains", "roles", "groups", "role_assignments"]
    {
        demo.get(&format!("/v3/{list}")).await.expect(403);
    }
}

#[tokio::test]
async fn regions_are_trees() {
    let world = World::new().await;
    world.make("region", json!({"id": "north", "description": "d"})).await;
    world.make("region", json!({"id": "north-1", "parent_region_id": "north"})).await;
    world.admin.post("/v3/regions", json!({"region": {"id": "north"}})).await.expect(409);
    world.admin.put("/v3/regions/south", json!({"region": {"description": "s"}})).await.expect(201);
    world.admin.put("/v3/regions/east", json!({"region": {"id": "west"}})).await.expect(400);
    let circle =
        world.admin.patch("/v3/regions/north", json!({"region": {"parent_region_id": "north-1"}})).await;
    assert!(circle.expect(400).text().contains("circular"));
    world.admin.post("/v3/regions", json!({"region": {"parent_region_id": "nowhere"}})).await.expect(404);
    let listed = world.admin.get("/v3/regions?parent_region_id=north").await.expect(200);
    assert_eq!(listed.at("/regions").as_array().unwrap().len(), 1);
    world.admin.delete("/v3/regions/north").await.expect(204);
    world.admin.get("/v3/regions/north-1").await.expect(404);
}
