//! Who may do what: operations × personas.

use api::Method;
use api::testing::Client;
use identity::Place;
use serde_json::{Value, json};

use crate::world::{World, password_of};

/// A user of the default domain with one role on one place, and a token for it.
async fn persona(world: &World, role: &str, place: &str) -> Client {
    let name = format!("{role}-{place}");
    let user = world.state.ensure_user(&name, &password_of(&name), None).await.unwrap();
    let (place, scope) = match place {
        "system" => (Place::System, json!({"system": {"all": true}})),
        "domain" => (Place::Domain(base::DomainId::new("default")), json!({"domain": {"id": "default"}})),
        _ => (Place::Project(world.demo_project.clone()), world.project_scope(&world.demo_project)),
    };
    world.state.ensure_assignment(&user, role, &place).await.unwrap();
    world.anyone.with_token(&world.token(&name, scope).await)
}

/// The first personas, in the order of the columns of [`rows`].
const PERSONAS: [(&str, &str); 9] = [
    ("admin", "project"),
    ("admin", "system"),
    ("reader", "system"),
    ("manager", "domain"),
    ("reader", "domain"),
    ("manager", "project"),
    ("member", "project"),
    ("reader", "project"),
    ("service", "project"),
];

/// Method, path, body, and for each persona `y` (may) or `n` (403).
fn rows(ids: &Ids) -> Vec<(Method, String, Option<Value>, &'static str)> {
    let Ids { demo, project, group, role, nobody, .. } = ids;
    let (get, post, put, patch, delete) =
        (Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE);
    let name = |kind: &str| Some(json!({kind: {"name": "fresh"}}));
    let in_domain = |kind: &str| Some(json!({kind: {"name": "fresh", "domain_id": "default"}}));
    let describe = |kind: &str| Some(json!({kind: {"description": "d"}}));
    let on = format!("/v3/projects/{project}/users/{demo}/roles/{role}");
    vec![
        (get.clone(), "/v3/users".into(), None, "yyyyynnnn"),
        (get.clone(), format!("/v3/users/{demo}"), None, "yyyyynnnn"),
        (post.clone(), "/v3/users".into(), in_domain("user"), "yynynnnnn"),
        (post.clone(), "/v3/users".into(), name("user"), "yynnnnnnn"),
        (patch.clone(), format!("/v3/users/{demo}"), describe("user"), "yynynnnnn"),
        (delete.clone(), format!("/v3/users/{nobody}"), None, "yynnnnnnn"),
        (get.clone(), format!("/v3/users/{demo}/projects"), None, "yyyyynnnn"),
        (get.clone(), format!("/v3/users/{demo}/groups"), None, "yyyyynnnn"),
        (get.clone(), "/v3/groups".into(), None, "yyyyynnnn"),
        (get.clone(), format!("/v3/groups/{group}"), None, "yyyyynnnn"),
        (post.clone(), "/v3/groups".into(), in_domain("group"), "yynynnnnn"),
        (patch.clone(), format!("/v3/groups/{group}"), describe("group"), "yynynnnnn"),
        (put.clone(), format!("/v3/groups/{group}/users/{demo}"), None, "yynynnnnn"),
        (get.clone(), format!("/v3/groups/{group}/users"), None, "yyyyynnnn"),
        (get.clone(), "/v3/projects".into(), None, "yyyyynnnn"),
        (get.clone(), format!("/v3/projects/{project}"), None, "yyyyyyyyy"),
        (post.clone(), "/v3/projects".into(), in_domain("project"), "yynynnnnn"),
        (patch.clone(), format!("/v3/projects/{project}"), describe("project"), "yynynnnnn"),
        (get.clone(), format!("/v3/projects/{project}/tags"), None, "yyyyyyyyy"),
        (put.clone(), format!("/v3/projects/{project}/tags/t"), None, "yynynnnnn"),
        (get.clone(), "/v3/domains".into(), None, "yyyyynnnn"),
        (get.clone(), "/v3/domains/default".into(), None, "yyyyyyyyy"),
        (post.clone(), "/v3/domains".into(), name("domain"), "yynnnnnnn"),
        (patch.clone(), "/v3/domains/default".into(), describe("domain"), "yynnnnnnn"),
        (get.clone(), "/v3/roles".into(), None, "yyyynnnnn"),
        (get.clone(), format!("/v3/roles/{role}"), None, "yyyynnnnn"),
        (post.clone(), "/v3/roles".into(), name("role"), "yynnnnnnn"),
        (get.clone(), "/v3/role_inferences".into(), None, "yyynnnnnn"),
        (put.clone(), on.clone(), None, "yynynnnnn"),
        (Method::HEAD, on.clone(), None, "yyyyynnnn"),
        (get.clone(), format!("/v3/projects/{project}/users/{demo}/roles"), None, "yyyyynnnn"),
        (put.clone(), format!("/v3/system/users/{demo}/roles/{role}"), None, "yynnnnnnn"),
        (get.clone(), format!("/v3/system/users/{demo}/roles"), None, "yyynnnnnn"),
        (get.clone(), "/v3/role_assignments".into(), None, "yyyyynnnn"),
        (get.clone(), "/v3/services".into(), None, "yyynnnnnn"),
        (post.clone(), "/v3/services".into(), Some(json!({"service": {"type": "t"}})), "yynnnnnnn"),
        (get.clone(), "/v3/endpoints".into(), None, "yyynnnnnn"),
        (get.clone(), "/v3/regions".into(), None, "yyyyyyyyy"),
        (post.clone(), "/v3/regions".into(), Some(json!({"region": {}})), "yynnnnnnn"),
        (get.clone(), format!("/v3/users/{demo}/application_credentials"), None, "yyynnnnnn"),
        (get.clone(), "/v3/auth/projects".into(), None, "yyyyyyyyy"),
        (get.clone(), "/v3/limits".into(), None, "yyyyyyyyy"),
        (get, "/v3/auth/tokens".into(), None, "yyynnnnny"),
    ]
}

struct Ids {
    demo: String,
    project: String,
    group: String,
    role: String,
    nobody: String,
    token: String,
}

#[tokio::test]
async fn the_default_policy_is_keystones() {
    let world = World::new().await;
    let ids = Ids {
        demo: world.demo.to_string(),
        project: world.demo_project.to_string(),
        group: world.make_id("group", json!({"name": "g"})).await,
        role: world.role("reader").await,
        nobody: "0".repeat(32),
        token: world.token("alt", world.project_scope(&world.alt_project)).await,
    };
    let mut clients = Vec::new();
    for (role, place) in PERSONAS {
        clients.push(persona(&world, role, place).await.with_header("x-subject-token", &ids.token));
    }
    let mut wrong = Vec::new();
    let mut cases = 0;
    for (method, path, body, expected) in rows(&ids) {
        assert_eq!(expected.len(), PERSONAS.len());
        for ((client, persona), may) in clients.iter().zip(PERSONAS).zip(expected.chars()) {
            let mut call = client.call(method.clone(), &path);
            if let Some(body) = &body {
                let mut body = body.clone();
                // Each makes its own.
                if let Some(map) =
                    body.as_object_mut().and_then(|o| o.values_mut().next()).and_then(Value::as_object_mut)
                    && map.contains_key("name")
                {
                    map.insert("name".into(), json!(format!("fresh-{cases}")));
                }
                call = call.json(&body);
            }
            let answer = call.send().await;
            cases += 1;
            let right =
                if may == 'y' { answer.status < 300 || answer.status == 404 } else { answer.status == 403 };
            if !right {
                wrong.push(format!("{persona:?} {method} {path}: {} {}", answer.status, answer.text()));
            }
        }
        let answer = world.anyone.call(method.clone(), &path).send().await;
        if answer.status != 401 {
            wrong.push(format!("nobody {method} {path}: {}", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{cases} cases");
    assert!(cases > 350);
}

#[tokio::test]
async fn a_user_sees_oneself_and_nobody_else() {
    let world = World::new().await;
    let demo = world.demo().await;
    demo.get(&format!("/v3/users/{}", world.demo)).await.expect(200);
    let foreign = demo.get(&format!("/v3/users/{}", world.alt)).await.expect(403);
    let nobody = demo.get(&format!("/v3/users/{}", "0".repeat(32))).await.expect(403);
    assert_eq!(foreign.text(), nobody.text(), "no telling who exists");
    demo.patch(&format!("/v3/users/{}", world.demo), json!({"user": {"name": "x"}})).await.expect(403);
    demo.get(&format!("/v3/projects/{}", world.alt_project)).await.expect(403);
    demo.get("/v3/domains/default").await.expect(200);
    demo.get("/v3/domains/other").await.expect(403);
}

#[tokio::test]
async fn an_operators_policy_is_obeyed() {
    let text = "identity:list_regions: role:admin\n\"identity:list_services\": \"@\"\n";
    let config = identity::Config { policy_yaml: Some(text.into()), ..crate::world::config() };
    let world = World::with(config).await;
    let demo = world.demo().await;
    demo.get("/v3/regions").await.expect(403);
    demo.get("/v3/services").await.expect(200);
}
