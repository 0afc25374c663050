//! Unified limits, and which endpoints a project sees.

use identity::{Config, LimitModel, Operator};
use serde_json::{Value, json};

use crate::world::{World, config};

async fn strict() -> World {
    let operator = Operator { limit_model: LimitModel::StrictTwoLevel, ..Operator::default() };
    World::with(Config { operator, ..config() }).await
}

async fn service(world: &World) -> String {
    world.make_id("service", json!({"type": "limited"})).await
}

fn limit(service: &str, owner: (&str, &str), most: i64) -> Value {
    let (kind, id) = owner;
    json!({"service_id": service, "resource_name": "cores", "resource_limit": most, kind: id})
}

async fn registered(world: &World, service: &str, most: i64) -> String {
    let body = json!({"service_id": service, "resource_name": "cores", "default_limit": most});
    let body = json!({"registered_limits": [body]});
    let answer = world.admin.post("/v3/registered_limits", body).await.expect(201);
    answer.text_at("/registered_limits/0/id")
}

#[tokio::test]
async fn a_limit_overrides_a_registered_one_and_is_seen_by_its_project() {
    let world = World::new().await;
    let service = service(&world).await;
    let project = world.demo_project.as_str();
    let body = |most: i64| json!({"limits": [limit(&service, ("project_id", project), most)]});
    world.admin.post("/v3/limits", body(3)).await.expect(403);
    let id = registered(&world, &service, 10).await;
    let made = world.admin.post("/v3/limits", body(3)).await.expect(201);
    world.admin.post("/v3/limits", body(4)).await.expect(409);
    let twice = json!({"service_id": service, "resource_name": "cores", "default_limit": 1});
    world.admin.post("/v3/registered_limits", json!({"registered_limits": [twice]})).await.expect(409);
    let path = format!("/v3/limits/{}", made.text_at("/limits/0/id"));
    let (demo, alt) = (world.demo().await, world.alt().await);
    assert_eq!(demo.get(&path).await.expect(200).at("/limit/resource_limit"), json!(3));
    alt.get(&path).await.expect(403);
    assert_eq!(demo.get("/v3/limits").await.expect(200).at("/limits").as_array().unwrap().len(), 1);
    assert_eq!(alt.get("/v3/limits").await.expect(200).at("/limits"), json!([]));
    let one = format!("/v3/registered_limits/{id}");
    assert_eq!(alt.get(&one).await.expect(200).at("/registered_limit/default_limit"), json!(10));
    world.admin.delete(&one).await.expect(403);
    demo.patch(&path, json!({"limit": {"resource_limit": 99}})).await.expect(403);
    world.admin.delete(&path).await.expect(204);
    world.admin.delete(&one).await.expect(204);
    // Neither a service, a project nor a region that is not there.
    let mut wrong = limit("nobody", ("project_id", project), 1);
    world.admin.post("/v3/limits", json!({"limits": [wrong.clone()]})).await.expect(400);
    wrong = limit(&service, ("project_id", "nobody"), 1);
    let answer = world.admin.post("/v3/limits", json!({"limits": [wrong]})).await.expect(400);
    assert!(answer.text().contains("project_id"));
    let both = json!({"service_id": service, "resource_name": "r", "resource_limit": 1, "project_id": project, "domain_id": "default"});
    world.admin.post("/v3/limits", json!({"limits": [both]})).await.expect(400);
}

#[tokio::test]
async fn in_the_strict_model_no_project_has_more_than_its_domain() {
    let world = strict().await;
    assert_eq!(
        world.admin.get("/v3/limits/model").await.expect(200).text_at("/model/name"),
        "strict_two_level"
    );
    let service = service(&world).await;
    registered(&world, &service, 10).await;
    let project = world.demo_project.as_str();
    let send = |limits: Vec<Value>| {
        let admin = world.admin.clone();
        async move { admin.post("/v3/limits", json!({"limits": limits})).await }
    };
    // Above the registered limit, which stands for the domain's.
    send(vec![limit(&service, ("project_id", project), 11)]).await.expect(403);
    // Together with the domain's own, whatever the order.
    let both =
        vec![limit(&service, ("project_id", project), 20), limit(&service, ("domain_id", "default"), 15)];
    send(both).await.expect(403);
    assert_eq!(
        world.admin.get("/v3/limits").await.expect(200).at("/limits"),
        json!([]),
        "nothing was written"
    );
    let both =
        vec![limit(&service, ("project_id", project), 12), limit(&service, ("domain_id", "default"), 15)];
    let made = send(both).await.expect(201);
    let path = |n: usize| format!("/v3/limits/{}", made.text_at(&format!("/limits/{n}/id")));
    let to = |most: i64| json!({"limit": {"resource_limit": most}});
    world.admin.patch(&path(0), to(16)).await.expect(403);
    world.admin.patch(&path(1), to(11)).await.expect(403);
    world.admin.patch(&path(0), to(15)).await.expect(200);
    // No deeper than two levels.
    let child = json!({"project": {"name": "child", "domain_id": "default", "parent_id": project}});
    world.admin.post("/v3/projects", child).await.expect(403);
}

#[tokio::test]
async fn a_project_sees_the_endpoints_it_was_shown() {
    let world = World::new().await;
    let demo = world.demo().await;
    let types = |catalog: Value| -> Vec<String> {
        let all = catalog.as_array().unwrap().iter();
        all.map(|s| s["type"].as_str().unwrap().to_owned()).collect()
    };
    let seen = || async { types(demo.get("/v3/auth/catalog").await.expect(200).at("/catalog")) };
    assert_eq!(seen().await, ["compute", "identity", "volumev3"]);
    let endpoints = world.admin.get("/v3/endpoints?interface=public").await.expect(200).at("/endpoints");
    let compute =
        endpoints.as_array().unwrap().iter().find(|e| e["url"].as_str().unwrap().contains("compute"));
    let compute = compute.unwrap()["id"].as_str().unwrap().to_owned();
    let path = format!("/v3/OS-EP-FILTER/projects/{}/endpoints/{compute}", world.demo_project);
    world.admin.put(&path, json!({})).await.expect(204);
    assert_eq!(seen().await, ["compute"]);
    // A group adds its own; other projects are as before.
    let service = world.admin.get("/v3/services?type=identity").await.expect(200).text_at("/services/0/id");
    let group = json!({"endpoint_group": {"name": "g", "filters": {"service_id": service}}});
    let group = world.admin.post("/v3/OS-EP-FILTER/endpoint_groups", group).await.expect(201);
    let group = group.text_at("/endpoint_group/id");
    let of_group = format!("/v3/OS-EP-FILTER/endpoint_groups/{group}/projects/{}", world.demo_project);
    world.admin.put(&of_group, json!({})).await.expect(204);
    assert_eq!(seen().await, ["compute", "identity"]);
    let alt = world.alt().await.get("/v3/auth/catalog").await.expect(200).at("/catalog");
    assert_eq!(types(alt).len(), 3);
    world.admin.delete(&path).await.expect(204);
    world.admin.delete(&format!("/v3/OS-EP-FILTER/endpoint_groups/{group}")).await.expect(204);
    assert_eq!(seen().await.len(), 3);
}
