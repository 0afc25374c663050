//! Grants in all forms, and the list of role assignments.

use serde_json::{Value, json};

use crate::world::World;

#[tokio::test]
async fn grants_in_all_forms_are_given_checked_listed_and_taken() {
    let world = World::new().await;
    let group = world.make_id("group", json!({"name": "g"})).await;
    let reader = world.role("reader").await;
    let mut forms = Vec::new();
    for actor in [format!("users/{}", world.demo), format!("groups/{group}")] {
        for target in [format!("projects/{}", world.alt_project), "domains/default".into(), "system".into()] {
            forms.push((format!("/v3/{target}/{actor}/roles"), String::new()));
            if target != "system" {
                forms.push((
                    format!("/v3/OS-INHERIT/{target}/{actor}/roles"),
                    "/inherited_to_projects".into(),
                ));
            }
        }
    }
    assert_eq!(forms.len(), 10);
    for (base, tail) in &forms {
        let (one, all) = (format!("{base}/{reader}{tail}"), format!("{base}{tail}"));
        world.admin.get(&one).await.expect(404);
        assert_eq!(world.admin.get(&all).await.expect(200).at("/roles"), json!([]), "{all}");
        world.admin.put(&one, json!({})).await.expect(204);
        world.admin.put(&one, json!({})).await.expect(204);
        world.admin.get(&one).await.expect(204);
        let head = world.admin.call(api::Method::HEAD, &one).send().await;
        assert_eq!(head.status, 204);
        assert_eq!(world.admin.get(&all).await.expect(200).text_at("/roles/0/name"), "reader", "{all}");
        world.admin.delete(&one).await.expect(204);
        let gone = world.admin.delete(&one).await.expect(404);
        assert!(gone.text_at("/error/message").starts_with("Could not find role assignment with role"));
        let head = world.admin.call(api::Method::HEAD, &one).send().await;
        assert_eq!(head.status, 404);
    }
    let nobody = "0".repeat(32);
    for path in [
        format!("/v3/projects/{}/users/{nobody}/roles/{reader}", world.alt_project),
        format!("/v3/projects/{nobody}/users/{}/roles/{reader}", world.demo),
        format!("/v3/projects/{}/users/{}/roles/{nobody}", world.alt_project, world.demo),
        format!("/v3/domains/default/groups/{nobody}/roles/{reader}"),
    ] {
        world.admin.put(&path, json!({})).await.expect(404);
        world.admin.delete(&path).await.expect(404);
    }
}

#[tokio::test]
async fn inherited_grants_reach_the_projects_below_and_only_those() {
    let world = World::new().await;
    let child = world.make_id("project", json!({"name": "child", "parent_id": world.alt_project})).await;
    let reader = world.role("reader").await;
    let tail = format!("users/{}/roles/{reader}/inherited_to_projects", world.demo);
    let scope = |id: &str| json!({"project": {"id": id}});
    let login = |id: String| {
        let world = &world;
        async move { world.login("demo", &crate::world::password_of("demo"), Some(scope(&id))).await.status }
    };
    let (alt, child_id) = (world.alt_project.to_string(), child.clone());
    let from_project = format!("/v3/OS-INHERIT/projects/{}/{tail}", world.alt_project);
    world.admin.put(&from_project, json!({})).await.expect(204);
    assert_eq!((login(alt.clone()).await, login(child_id.clone()).await), (401, 201));
    world.admin.delete(&from_project).await.expect(204);
    assert_eq!(login(child_id.clone()).await, 401);
    world.admin.put(&format!("/v3/OS-INHERIT/domains/default/{tail}"), json!({})).await.expect(204);
    assert_eq!((login(alt).await, login(child_id).await), (201, 201));
    let domain = world
        .login("demo", &crate::world::password_of("demo"), Some(json!({"domain": {"id": "default"}})))
        .await;
    assert_eq!(domain.status, 401, "not on the domain itself");
    let own = world.demo().await.get("/v3/auth/projects").await.expect(200);
    assert_eq!(own.at("/projects").as_array().unwrap().len(), 5, "all projects of the domain");
}

async fn listed(world: &World, query: &str) -> Vec<Value> {
    let answer = world.admin.get(&format!("/v3/role_assignments?{query}")).await.expect(200);
    answer.at("/role_assignments").as_array().unwrap().clone()
}

#[tokio::test]
async fn role_assignments_are_listed_as_granted_and_as_they_take_effect() {
    let world = World::new().await;
    let (demo, project) = (&world.demo, &world.demo_project);
    let group = world.make_id("group", json!({"name": "g"})).await;
    let reader = world.role("reader").await;
    world.admin.put(&format!("/v3/groups/{group}/users/{demo}"), json!({})).await.expect(204);
    world
        .admin
        .put(&format!("/v3/projects/{}/groups/{group}/roles/{reader}", world.alt_project), json!({}))
        .await
        .expect(204);
    let granted = listed(&world, &format!("user.id={demo}&scope.project.id={project}")).await;
    assert_eq!(granted.len(), 1);
    let member = world.role("member").await;
    assert_eq!(granted[0]["role"], json!({"id": member}));
    assert_eq!(granted[0]["user"], json!({"id": demo}));
    assert_eq!(granted[0]["scope"], json!({"project": {"id": project}}));
    let link = format!("https://cloud.test/v3/projects/{project}/users/{demo}/roles/{member}");
    assert_eq!(granted[0]["links"], json!({"assignment": link}));
    let named = listed(&world, &format!("user.id={demo}&include_names")).await;
    assert_eq!(named[0]["role"]["name"], "member");
    assert_eq!(
        named[0]["user"],
        json!({"id": demo, "name": "demo", "domain": {"id": "default", "name": "Default"}})
    );
    assert_eq!(named[0]["scope"]["project"]["domain"]["name"], "Default");
    let effective = listed(&world, &format!("user.id={demo}&effective=true&include_names=true")).await;
    let mut found: Vec<(String, String)> = effective
        .iter()
        .map(|r| {
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            (text(&r["scope"]["project"]["name"]), text(&r["role"]["name"]))
        })
        .collect();
    found.sort();
    let expected = [("alt", "reader"), ("demo", "member"), ("demo", "reader")];
    assert_eq!(found, expected.map(|(p, r)| (p.to_owned(), r.to_owned())));
    assert!(effective.iter().all(|r| r.get("group").is_none()));
    let by_group = effective.iter().find(|r| r["scope"]["project"]["name"] == "alt").unwrap();
    assert!(
        by_group["links"]["membership"]
            .as_str()
            .unwrap()
            .ends_with(&format!("/v3/groups/{group}/users/{demo}"))
    );
    assert_eq!(listed(&world, &format!("group.id={group}")).await.len(), 1);
    assert_eq!(listed(&world, &format!("role.id={reader}")).await.len(), 1);
    assert_eq!(listed(&world, &format!("role.id={reader}&effective")).await.len(), 5);
    assert_eq!(listed(&world, "scope.system=all").await.len(), 1);
    assert_eq!(listed(&world, "scope.system=all").await[0]["scope"], json!({"system": {"all": true}}));
    assert_eq!(listed(&world, "user.id=nobody").await.len(), 0);
    for query in [
        "user.id=a&group.id=b",
        "scope.project.id=a&scope.domain.id=b",
        "scope.project.id=a&scope.system=all",
        "effective&group.id=a",
        "include_subtree",
    ] {
        world.admin.get(&format!("/v3/role_assignments?{query}")).await.expect(400);
    }
    let inherited =
        format!("/v3/OS-INHERIT/domains/default/users/{demo}/roles/{reader}/inherited_to_projects");
    world.admin.put(&inherited, json!({})).await.expect(204);
    let rows = listed(&world, "scope.OS-INHERIT:inherited_to=projects").await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["scope"], json!({"domain": {"id": "default"}, "OS-INHERIT:inherited_to": "projects"}));
    assert_eq!(listed(&world, &format!("user.id={demo}&effective&role.id={reader}")).await.len(), 4);
}
