//! Domain managers (scs-0302): everything in their own domain, nothing outside, no role beyond the list.

use api::Method;
use api::testing::Client;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::world::World;

struct Managed {
    id: String,
    manager: Client,
    manager_id: String,
}

async fn managed(world: &World, name: &str) -> Managed {
    let id = world.make_id("domain", json!({"name": name})).await;
    let body = json!({"name": format!("{name}-manager"), "domain_id": id, "password": "a-password"});
    let manager_id = world.make_id("user", body).await;
    let role = world.role("manager").await;
    world
        .admin
        .put(&format!("/v3/domains/{id}/users/{manager_id}/roles/{role}"), json!({}))
        .await
        .expect(204);
    let user = json!({"name": format!("{name}-manager"), "domain": {"name": name}, "password": "a-password"});
    let who = json!({"methods": ["password"], "password": {"user": user}});
    let login = world.auth(who, Some(json!({"domain": {"name": name}}))).await.expect(201);
    assert!(login.at("/token/catalog").is_array() && login.at("/token/project") == Value::Null);
    Managed { id, manager: world.anyone.with_token(login.header("x-subject-token")), manager_id }
}

/// What `escalation` found: a group that carries `admin`, the trustee of an administrator's trust, and what else an
/// administrator delegated are no manager's or trustee's business.
#[tokio::test]
async fn what_carries_the_administrators_rights_is_left_alone() {
    let world = World::new().await;
    let a = managed(&world, "scs-test-domain-a").await;
    let group = made(&a.manager, "group", json!({"name": "g", "domain_id": a.id})).await;
    let user = made(&a.manager, "user", json!({"name": "u", "domain_id": a.id, "password": "p"})).await;
    let (group_path, user_path) = (format!("/v3/groups/{group}"), format!("/v3/users/{user}"));
    let member = format!("{group_path}/users/{user}");
    a.manager.put(&member, json!({})).await.expect(204);
    a.manager.patch(&group_path, json!({"group": {"description": "d"}})).await.expect(200);
    a.manager.patch(&user_path, json!({"user": {"description": "d"}})).await.expect(200);

    let admin = world.role("admin").await;
    world.admin.put(&format!("/v3/system/groups/{group}/roles/{admin}"), json!({})).await.expect(204);
    a.manager.patch(&group_path, json!({"group": {"name": "h"}})).await.expect(403);
    a.manager.delete(&group_path).await.expect(403);
    a.manager.delete(&member).await.expect(403);
    world.admin.delete(&member).await.expect(204);

    // Out of the group the account is an ordinary one, until an administrator trusts it.
    a.manager.patch(&user_path, json!({"user": {"password": "q"}})).await.expect(200);
    let boss = world.admin.get("/v3/users?name=admin").await.expect(200).text_at("/users/0/id");
    let project = world.admin.get("/v3/projects?name=admin").await.expect(200).text_at("/projects/0/id");
    let trust = |role: &str| {
        json!({"trust": {
        "trustor_user_id": boss, "trustee_user_id": user, "project_id": project, "impersonation": true,
        "roles": [{"name": role}]}})
    };
    let mut trusts = Vec::new();
    for role in ["admin", "reader"] {
        let made = world.admin.post("/v3/OS-TRUST/trusts", trust(role)).await.expect(201);
        trusts.push(made.text_at("/trust/id"));
    }
    a.manager.patch(&user_path, json!({"user": {"password": "r"}})).await.expect(403);
    a.manager.delete(&user_path).await.expect(403);
    // The trustee ends neither the trust nor another of the same trustor.
    let who = json!({"methods": ["password"], "password": {"user": {"id": user, "password": "q"}}});
    let login = world.auth(who, Some(json!({"OS-TRUST:trust": {"id": trusts[1]}}))).await.expect(201);
    let trustee = world.anyone.with_token(login.header("x-subject-token"));
    for id in &trusts {
        trustee.delete(&format!("/v3/OS-TRUST/trusts/{id}")).await.expect(403);
        world.admin.delete(&format!("/v3/OS-TRUST/trusts/{id}")).await.expect(204);
    }
    a.manager.patch(&user_path, json!({"user": {"password": "r"}})).await.expect(200);
}

async fn ids(client: &Client, path: &str, key: &str) -> Vec<String> {
    let answer = client.get(path).await.expect(200);
    let items = answer.at(&format!("/{key}"));
    items.as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect()
}

async fn head(client: &Client, path: &str) -> u16 {
    client.call(Method::HEAD, path).send().await.status
}

async fn made(client: &Client, kind: &str, body: Value) -> String {
    let answer = client.post(&format!("/v3/{kind}s"), json!({kind: body})).await.expect(201);
    answer.text_at(&format!("/{kind}/id"))
}

#[tokio::test]
async fn a_manager_manages_the_own_domain_and_no_other() {
    let world = World::new().await;
    let (a, b) = (managed(&world, "scs-test-domain-a").await, managed(&world, "scs-test-domain-b").await);
    let member = world.role("member").await;
    let admin = world.role("admin").await;
    // Domains and roles.
    assert_eq!(ids(&a.manager, "/v3/domains", "domains").await, vec![a.id.clone()]);
    assert_eq!(ids(&a.manager, "/v3/domains?name=scs-test-domain-b", "domains").await, [] as [String; 0]);
    a.manager.get(&format!("/v3/domains/{}", b.id)).await.expect(403);
    assert_eq!(
        ids(&a.manager, "/v3/roles?name=admin", "roles").await,
        vec![admin.clone()],
        "seen, never given"
    );
    a.manager.get("/v3/roles/admin").await.expect(404);
    a.manager.get(&format!("/v3/roles/{member}")).await.expect(200);
    a.manager.get(&format!("/v3/roles/{admin}")).await.expect(403);
    a.manager.post("/v3/roles", json!({"role": {"name": "x"}})).await.expect(403);
    a.manager.patch(&format!("/v3/roles/{member}"), json!({"role": {"name": "x"}})).await.expect(403);
    // Users.
    let user = made(&a.manager, "user", json!({"name": "u", "domain_id": a.id})).await;
    let foreign = made(&b.manager, "user", json!({"name": "v", "domain_id": b.id})).await;
    let path = format!("/v3/users/{user}");
    let changed = a.manager.patch(&path, json!({"user": {"email": "CHANGED-MAIL"}})).await.expect(200);
    assert_eq!(changed.text_at("/user/email"), "CHANGED-MAIL");
    let mut own = ids(&a.manager, "/v3/users", "users").await;
    own.sort();
    let mut expected = vec![a.manager_id.clone(), user.clone()];
    expected.sort();
    assert_eq!(own, expected, "only users of the own domain");
    for body in [
        json!({"name": "w"}),
        json!({"name": "w", "domain_id": b.id}),
        json!({"name": "w", "domain_id": "default"}),
    ] {
        a.manager.post("/v3/users", json!({"user": body})).await.expect(403);
        a.manager.post("/v3/projects", json!({"project": body})).await.expect(403);
        a.manager.post("/v3/groups", json!({"group": body})).await.expect(403);
    }
    let theirs = format!("/v3/users/{foreign}");
    a.manager.get(&theirs).await.expect(403);
    assert_eq!(ids(&a.manager, &format!("/v3/users?name={foreign}"), "users").await, [] as [String; 0]);
    a.manager.patch(&theirs, json!({"user": {"email": "x"}})).await.expect(403);
    a.manager.delete(&theirs).await.expect(403);
    a.manager.get(&format!("{theirs}/projects")).await.expect(403);
    // Grants on the domain.
    let grant =
        |domain: &str, user: &str, role: &str| format!("/v3/domains/{domain}/users/{user}/roles/{role}");
    let mine = grant(&a.id, &user, &member);
    a.manager.put(&mine, json!({})).await.expect(204);
    assert_eq!(head(&a.manager, &mine).await, 204);
    a.manager.delete(&mine).await.expect(204);
    assert_eq!(head(&a.manager, &mine).await, 404);
    for refused in [
        grant(&b.id, &user, &member),
        grant(&b.id, &foreign, &member),
        grant(&a.id, &foreign, &member),
        grant(&a.id, &user, &admin),
    ] {
        a.manager.put(&refused, json!({})).await.expect(403);
        assert_eq!(head(&world.admin, &refused).await, 404, "{refused}");
    }
    b.manager.put(&grant(&b.id, &foreign, &member), json!({})).await.expect(204);
    a.manager.delete(&grant(&b.id, &foreign, &member)).await.expect(403);
    assert_eq!(head(&b.manager, &grant(&b.id, &foreign, &member)).await, 204);
    // The system and implied roles are none of a manager's business.
    a.manager.put(&format!("/v3/system/users/{user}/roles/{member}"), json!({})).await.expect(403);
    a.manager.put(&format!("/v3/roles/{member}/implies/{admin}"), json!({})).await.expect(403);
    // Projects.
    let project = made(&a.manager, "project", json!({"name": "p", "domain_id": a.id})).await;
    let their_project = made(&b.manager, "project", json!({"name": "p", "domain_id": b.id})).await;
    let on =
        |project: &str, user: &str, role: &str| format!("/v3/projects/{project}/users/{user}/roles/{role}");
    a.manager.put(&on(&project, &user, &member), json!({})).await.expect(204);
    assert_eq!(ids(&a.manager, &format!("{path}/projects"), "projects").await, vec![project.clone()]);
    for refused in [
        on(&their_project, &foreign, &member),
        on(&project, &foreign, &member),
        on(&their_project, &user, &member),
        on(&project, &user, &admin),
    ] {
        a.manager.put(&refused, json!({})).await.expect(403);
        assert_eq!(head(&world.admin, &refused).await, 404);
    }
    a.manager.get(&format!("/v3/projects/{their_project}")).await.expect(403);
    a.manager
        .patch(&format!("/v3/projects/{their_project}"), json!({"project": {"name": "x"}}))
        .await
        .expect(403);
    a.manager.delete(&format!("/v3/projects/{their_project}")).await.expect(403);
    let sub = json!({"project": {"name": "s", "domain_id": a.id, "parent_id": their_project}});
    a.manager.post("/v3/projects", sub).await.expect(400);
    // Groups.
    let group = made(&a.manager, "group", json!({"name": "g", "domain_id": a.id})).await;
    assert_eq!(ids(&b.manager, "/v3/groups", "groups").await, [] as [String; 0]);
    let their_group = made(&b.manager, "group", json!({"name": "g", "domain_id": b.id})).await;
    let within = |group: &str, user: &str| format!("/v3/groups/{group}/users/{user}");
    assert_eq!(head(&a.manager, &within(&group, &user)).await, 404);
    for (g, u) in [(&group, &foreign), (&their_group, &user), (&their_group, &foreign)] {
        assert_eq!(head(&a.manager, &within(g, u)).await, 403);
        a.manager.put(&within(g, u), json!({})).await.expect(403);
        a.manager.delete(&within(g, u)).await.expect(403);
    }
    a.manager.put(&within(&group, &user), json!({})).await.expect(204);
    assert_eq!(ids(&a.manager, &format!("/v3/groups/{group}/users"), "users").await, vec![user.clone()]);
    for place in [format!("projects/{project}"), format!("domains/{}", a.id)] {
        a.manager.put(&format!("/v3/{place}/groups/{group}/roles/{admin}"), json!({})).await.expect(403);
        a.manager.put(&format!("/v3/{place}/groups/{group}/roles/{member}"), json!({})).await.expect(204);
        b.manager.delete(&format!("/v3/{place}/groups/{group}/roles/{member}")).await.expect(403);
    }
    for scope in [format!("scope.project.id={project}"), format!("scope.domain.id={}", a.id)] {
        let answer =
            a.manager.get(&format!("/v3/role_assignments?group.id={group}&{scope}")).await.expect(200);
        assert_eq!(answer.at("/role_assignments").as_array().unwrap().len(), 1);
        assert_eq!(answer.text_at("/role_assignments/0/role/id"), member);
        let foreign =
            b.manager.get(&format!("/v3/role_assignments?group.id={group}&{scope}")).await.expect(200);
        assert_eq!(foreign.at("/role_assignments"), json!([]));
    }
    b.manager.get(&format!("/v3/groups/{group}")).await.expect(403);
    b.manager.get(&format!("/v3/groups/{group}/users")).await.expect(403);
    b.manager.patch(&format!("/v3/groups/{group}"), json!({"group": {"name": "x"}})).await.expect(403);
    b.manager.delete(&format!("/v3/groups/{group}")).await.expect(403);
    a.manager.delete(&format!("/v3/groups/{group}")).await.expect(204);
    // What does not exist looks like what is foreign.
    for path in ["users", "projects", "groups", "domains"] {
        a.manager.get(&format!("/v3/{path}/{}", "0".repeat(32))).await.expect(403);
    }
    a.manager.delete(&format!("/v3/projects/{project}")).await.expect(204);
    a.manager.delete(&path).await.expect(204);
}

#[tokio::test]
async fn an_implied_role_is_no_way_around_the_list() {
    let world = World::new().await;
    let a = managed(&world, "a").await;
    let user = made(&a.manager, "user", json!({"name": "u", "domain_id": a.id})).await;
    let (lbm, secret) =
        (world.role("load-balancer_member").await, world.make_id("role", json!({"name": "secret"})).await);
    let grant = format!("/v3/domains/{}/users/{user}/roles/{lbm}", a.id);
    a.manager.put(&grant, json!({})).await.expect(204);
    a.manager.delete(&grant).await.expect(204);
    world.admin.put(&format!("/v3/roles/{lbm}/implies/{secret}"), json!({})).await.expect(201);
    a.manager.put(&grant, json!({})).await.expect(403);
}

#[tokio::test]
async fn a_manager_does_not_become_administrator_by_way_of_one() {
    let world = World::new().await;
    let a = managed(&world, "a").await;
    let (admin, reader) = (world.role("admin").await, world.role("reader").await);
    let boss = made(&a.manager, "user", json!({"name": "boss", "domain_id": a.id})).await;
    let user = made(&a.manager, "user", json!({"name": "u", "domain_id": a.id})).await;
    let admins = made(&a.manager, "group", json!({"name": "admins", "domain_id": a.id})).await;
    let auditors = made(&a.manager, "group", json!({"name": "auditors", "domain_id": a.id})).await;
    world
        .admin
        .put(&format!("/v3/projects/{}/groups/{admins}/roles/{admin}", world.demo_project), json!({}))
        .await
        .expect(204);
    world.admin.put(&format!("/v3/system/groups/{auditors}/roles/{reader}"), json!({})).await.expect(204);
    world.admin.put(&format!("/v3/groups/{admins}/users/{boss}"), json!({})).await.expect(204);
    let password = json!({"user": {"password": "mine"}});
    a.manager.patch(&format!("/v3/users/{boss}"), password.clone()).await.expect(403);
    a.manager.delete(&format!("/v3/users/{boss}")).await.expect(403);
    a.manager.put(&format!("/v3/groups/{admins}/users/{user}"), json!({})).await.expect(403);
    a.manager.put(&format!("/v3/groups/{auditors}/users/{user}"), json!({})).await.expect(403);
    a.manager.patch(&format!("/v3/users/{user}"), password.clone()).await.expect(200);
    world.admin.patch(&format!("/v3/users/{boss}"), password).await.expect(200);
}

/// One call of a manager, with numbers that choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    Grant(usize, usize, usize, bool, bool),
    Revoke(usize, usize, usize, bool, bool),
    Join(usize, usize),
    Leave(usize, usize),
    Change(&'static str, usize),
    Delete(&'static str, usize),
    Make(&'static str, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop::sample::select(vec!["user", "project", "group", "domain", "role"]);
    let step = prop_oneof![
        (0..4usize, 0..4usize, 0..6usize, any::<bool>(), any::<bool>())
            .prop_map(|(a, t, r, g, i)| Step::Grant(a, t, r, g, i)),
        (0..4usize, 0..4usize, 0..6usize, any::<bool>(), any::<bool>())
            .prop_map(|(a, t, r, g, i)| Step::Revoke(a, t, r, g, i)),
        (0..3usize, 0..4usize).prop_map(|(g, u)| Step::Join(g, u)),
        (0..3usize, 0..4usize).prop_map(|(g, u)| Step::Leave(g, u)),
        (kind.clone(), 0..3usize).prop_map(|(k, i)| Step::Change(k, i)),
        (kind.clone(), 1..3usize).prop_map(|(k, i)| Step::Delete(k, i)),
        (kind, 0..3usize).prop_map(|(k, d)| Step::Make(k, d)),
    ];
    prop::collection::vec(step, 1..25)
}

/// Everything outside the domain `a`, and everybody's effective roles above the list, as text.
async fn outside(world: &World, a: &str) -> String {
    let mut text = String::new();
    for kind in ["users", "projects", "groups"] {
        let all = world.admin.get(&format!("/v3/{kind}")).await.expect(200).at(&format!("/{kind}"));
        let theirs: Vec<&Value> = all.as_array().unwrap().iter().filter(|i| i["domain_id"] != a).collect();
        text.push_str(&json!(theirs).to_string());
    }
    for kind in ["domains", "roles", "role_inferences"] {
        text.push_str(&world.admin.get(&format!("/v3/{kind}")).await.expect(200).text());
    }
    let rows = world.admin.get("/v3/role_assignments?effective&include_names").await.expect(200);
    let mut kept: Vec<String> = Vec::new();
    for row in rows.at("/role_assignments").as_array().unwrap() {
        let listed = ["member", "reader", "manager", "load-balancer_member"]
            .contains(&row["role"]["name"].as_str().unwrap());
        let here = row["scope"]["domain"]["id"] == a || row["scope"]["project"]["domain"]["id"] == a;
        let ours = row["user"]["domain"]["id"] == a;
        if !(listed && here && ours) {
            kept.push(row.to_string());
        }
    }
    kept.sort();
    text + &kept.join("\n")
}

async fn run(world: &World, a: &Managed, b: &Managed, steps: &[Step]) {
    let mut users = vec![a.manager_id.clone(), b.manager_id.clone(), world.demo.to_string()];
    let mut groups = vec![world.make_id("group", json!({"name": "gb", "domain_id": b.id})).await];
    let mut projects = vec![
        world.demo_project.to_string(),
        world.make_id("project", json!({"name": "pb", "domain_id": b.id})).await,
    ];
    users.push(made(&a.manager, "user", json!({"name": "u", "domain_id": a.id})).await);
    groups.push(made(&a.manager, "group", json!({"name": "g", "domain_id": a.id})).await);
    projects.push(made(&a.manager, "project", json!({"name": "p", "domain_id": a.id})).await);
    let mut roles = Vec::new();
    for name in ["admin", "manager", "member", "reader", "service", "load-balancer_member"] {
        roles.push(world.role(name).await);
    }
    let domains = [a.id.clone(), b.id.clone(), "default".to_owned()];
    let before = outside(world, &a.id).await;
    let pick = |all: &[String], i: usize| all[i % all.len()].clone();
    for (n, step) in steps.iter().enumerate() {
        let grant = |who: usize, target: usize, role: usize, by_group: bool, inherited: bool| {
            let actor = if by_group {
                format!("groups/{}", pick(&groups, who))
            } else {
                format!("users/{}", pick(&users, who))
            };
            let place = match target {
                0 => format!("domains/{}", pick(&domains, who + role)),
                1 if !inherited => "system".to_owned(),
                t => format!("projects/{}", pick(&projects, t)),
            };
            let role = pick(&roles, role);
            if inherited && target != 1 {
                format!("/v3/OS-INHERIT/{place}/{actor}/roles/{role}/inherited_to_projects")
            } else {
                format!("/v3/{place}/{actor}/roles/{role}")
            }
        };
        let thing = |kind: &str, i: usize| {
            let id = match kind {
                "user" => pick(&users, i),
                "project" => pick(&projects, i),
                "group" => pick(&groups, i),
                "domain" => pick(&domains, i),
                _ => pick(&roles, i),
            };
            format!("/v3/{kind}s/{id}")
        };
        let answer = match step {
            Step::Grant(w, t, r, g, i) => a.manager.put(&grant(*w, *t, *r, *g, *i), json!({})).await,
            Step::Revoke(w, t, r, g, i) => a.manager.delete(&grant(*w, *t, *r, *g, *i)).await,
            Step::Join(g, u) => {
                a.manager
                    .put(&format!("/v3/groups/{}/users/{}", pick(&groups, *g), pick(&users, *u)), json!({}))
                    .await
            }
            Step::Leave(g, u) => {
                a.manager
                    .delete(&format!("/v3/groups/{}/users/{}", pick(&groups, *g), pick(&users, *u)))
                    .await
            }
            Step::Change(kind, i) => {
                a.manager
                    .patch(&thing(kind, *i), json!({*kind: {"description": format!("changed-{n}")}}))
                    .await
            }
            // The manager itself stays, so that the rest of the steps mean something.
            Step::Delete("user", 0 | 4) => continue,
            Step::Delete(kind, i) => a.manager.delete(&thing(kind, *i)).await,
            Step::Make(kind, d) => {
                let body = json!({*kind: {"name": format!("n-{n}"), "domain_id": pick(&domains, *d)}});
                a.manager.post(&format!("/v3/{kind}s"), body).await
            }
        };
        assert!(answer.status < 500, "{step:?}: {}", answer.text());
        if let (Step::Make(kind, _), 201) = (step, answer.status) {
            let id = answer.text_at(&format!("/{kind}/id"));
            match *kind {
                "user" => users.push(id),
                "project" => projects.push(id),
                "group" => groups.push(id),
                _ => panic!("a manager made a {kind}"),
            }
        }
    }
    assert_eq!(outside(world, &a.id).await, before);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_calls_reaches_outside_or_above(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            let (a, b) = (managed(&world, "a").await, managed(&world, "b").await);
            run(&world, &a, &b, &steps).await;
        });
    }
}
