//! Trusts: what the trustee gets, for how long, and what it cannot do with it.

use api::testing::{Answer, Client};
use serde_json::{Value, json};

use crate::world::{World, password_of};

/// A trust from demo to alt in demo's project.
fn body(world: &World, impersonation: bool, more: Value) -> Value {
    let mut trust = json!({
        "trustor_user_id": world.demo, "trustee_user_id": world.alt, "project_id": world.demo_project,
        "impersonation": impersonation, "roles": [{"name": "member"}],
    });
    trust.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"trust": trust})
}

async fn trusted(world: &World, trust: &str, user: &str) -> Answer {
    world.login(user, &password_of(user), Some(json!({"OS-TRUST:trust": {"id": trust}}))).await
}

async fn make(client: &Client, body: Value) -> String {
    client.post("/v3/OS-TRUST/trusts", body).await.expect(201).text_at("/trust/id")
}

#[tokio::test]
async fn a_trustee_acts_with_the_trustors_roles() {
    let world = World::new().await;
    let demo = world.demo().await;
    for impersonation in [false, true] {
        let id = make(&demo, body(&world, impersonation, json!({}))).await;
        let answer = trusted(&world, &id, "alt").await.expect(201);
        let (user, trustor) =
            (if impersonation { &world.demo } else { &world.alt }, world.demo.as_str().to_owned());
        assert_eq!(answer.text_at("/token/user/id"), user.as_str());
        assert_eq!(answer.text_at("/token/project/id"), world.demo_project.as_str());
        assert_eq!(answer.text_at("/token/OS-TRUST:trust/id"), id);
        assert_eq!(answer.text_at("/token/OS-TRUST:trust/trustor_user/id"), trustor);
        assert_eq!(answer.text_at("/token/OS-TRUST:trust/trustee_user/id"), world.alt.as_str());
        let token = answer.header("x-subject-token").to_owned();
        assert_eq!(world.roles_of(&token).await, ["member", "reader"]);
        // Another server, or this one after a restart, reads the same from the token itself.
        let other = World::on(crate::world::config(), world.store.clone(), world.clock.clone(), 9).await;
        assert_eq!(other.roles_of(&token).await, [] as [String; 0], "other keys");
        // Only the trustee.
        trusted(&world, &id, "demo").await.expect(403);
        trusted(&world, &id, "admin").await.expect(403);
        // Not a way to anything else.
        let again = json!({"methods": ["token"], "token": {"id": token}});
        world.auth(again, Some(json!({"project": {"id": world.alt_project}}))).await.expect(403);
        let by = world.anyone.with_token(&token);
        let path = format!("/v3/users/{user}/application_credentials");
        by.post(&path, json!({"application_credential": {"name": "x"}})).await.expect(403);
        let totp = json!({"credential": {"type": "totp", "blob": "GEZDGNBVGY3TQOJQ", "user_id": user}});
        by.post("/v3/credentials", totp).await.expect(403);
        // It ends with the trust, at once.
        demo.delete(&format!("/v3/OS-TRUST/trusts/{id}")).await.expect(204);
        world.validate(&token).await.expect(404);
        trusted(&world, &id, "alt").await.expect(401);
    }
}

#[tokio::test]
async fn a_trust_is_worth_nothing_once_its_ground_is_gone() {
    let world = World::new().await;
    let demo = world.demo().await;
    let member = world.role("member").await;
    let grant = format!("/v3/projects/{}/users/{}/roles/{member}", world.demo_project, world.demo);
    let user = |id: &str| format!("/v3/users/{id}");
    let id = make(&demo, body(&world, false, json!({}))).await;
    let fresh =
        || async { trusted(&world, &id, "alt").await.expect(201).header("x-subject-token").to_owned() };
    // The role.
    let token = fresh().await;
    world.admin.delete(&grant).await.expect(204);
    world.validate(&token).await.expect(404);
    trusted(&world, &id, "alt").await.expect(403);
    world.admin.put(&grant, json!({})).await.expect(204);
    // The trustor.
    let token = fresh().await;
    world.admin.patch(&user(world.demo.as_str()), json!({"user": {"enabled": false}})).await.expect(200);
    world.validate(&token).await.expect(404);
    trusted(&world, &id, "alt").await.expect(403);
    world.admin.patch(&user(world.demo.as_str()), json!({"user": {"enabled": true}})).await.expect(200);
    world.validate(&token).await.expect(404);
    // The trustor's password.
    let token = fresh().await;
    let secret = json!({"user": {"password": password_of("demo")}});
    world.admin.patch(&user(world.demo.as_str()), secret).await.expect(200);
    world.validate(&token).await.expect(404);
    // The trustee.
    let token = fresh().await;
    world.admin.patch(&user(world.alt.as_str()), json!({"user": {"enabled": false}})).await.expect(200);
    world.validate(&token).await.expect(404);
    world.admin.patch(&user(world.alt.as_str()), json!({"user": {"enabled": true}})).await.expect(200);
    // The trustor altogether.
    let token = fresh().await;
    world.admin.delete(&user(world.demo.as_str())).await.expect(204);
    world.validate(&token).await.expect(404);
    world.admin.get(&format!("/v3/OS-TRUST/trusts/{id}")).await.expect(404);
}

#[tokio::test]
async fn a_trust_ends_by_time_and_by_uses() {
    let world = World::new().await;
    let demo = world.demo().await;
    let past = body(&world, false, json!({"expires_at": "2001-01-01T00:00:00Z"}));
    demo.post("/v3/OS-TRUST/trusts", past).await.expect(400);
    let end = base::Clock::now(&*world.clock).plus_secs(600).iso_seconds();
    let timed = make(&demo, body(&world, false, json!({"expires_at": end}))).await;
    let token = trusted(&world, &timed, "alt").await.expect(201).header("x-subject-token").to_owned();
    let counted = make(&demo, body(&world, false, json!({"remaining_uses": 2}))).await;
    for _ in 0..2 {
        trusted(&world, &counted, "alt").await.expect(201);
    }
    trusted(&world, &counted, "alt").await.expect(401);
    demo.get(&format!("/v3/OS-TRUST/trusts/{counted}")).await.expect(404);
    world.later(601);
    assert_eq!(world.roles_of(&token).await, [] as [String; 0]);
    trusted(&world, &timed, "alt").await.expect(401);
}

#[tokio::test]
async fn nobody_delegates_what_is_not_ones_own() {
    let world = World::new().await;
    let (demo, alt) = (world.demo().await, world.alt().await);
    let path = "/v3/OS-TRUST/trusts";
    // For another, also the administrator.
    alt.post(path, body(&world, false, json!({}))).await.expect(403);
    world.admin.post(path, body(&world, false, json!({}))).await.expect(403);
    // A role one has not, a project one is not in, no role at all, nobody.
    demo.post(path, body(&world, false, json!({"roles": [{"name": "admin"}]}))).await.expect(404);
    demo.post(path, body(&world, false, json!({"project_id": world.alt_project}))).await.expect(404);
    demo.post(path, body(&world, false, json!({"roles": []}))).await.expect(403);
    demo.post(path, body(&world, false, json!({"trustee_user_id": "nobody"}))).await.expect(404);
    // By an application credential.
    let credentials = format!("/v3/users/{}/application_credentials", world.demo);
    let made = json!({"application_credential": {"name": "c", "unrestricted": true}});
    let made = demo.post(&credentials, made).await.expect(201).at("/application_credential");
    let identity = json!({"methods": ["application_credential"], "application_credential": {
        "id": made["id"], "secret": made["secret"]}});
    let token = world.auth(identity, None).await.expect(201).header("x-subject-token").to_owned();
    world.anyone.with_token(&token).post(path, body(&world, false, json!({}))).await.expect(403);
}

#[tokio::test]
async fn a_trust_is_passed_on_only_as_far_as_it_says() {
    let world = World::new().await;
    let demo = world.demo().await;
    let path = "/v3/OS-TRUST/trusts";
    let third = world.state.ensure_user("third", &password_of("third"), None).await.unwrap();
    let on = |trustor: &base::UserId, more: Value| {
        let mut wanted = json!({"trustor_user_id": trustor, "trustee_user_id": third});
        wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body(&world, false, wanted)
    };
    let by_trust = |id: String| {
        let world = &world;
        async move {
            let token = trusted(world, &id, "alt").await.expect(201).header("x-subject-token").to_owned();
            world.anyone.with_token(&token)
        }
    };
    // Not allowed at all.
    let plain = make(&demo, body(&world, false, json!({}))).await;
    by_trust(plain).await.post(path, on(&world.alt, json!({}))).await.expect(403);
    // Too deep, or with a number of uses.
    let deep = json!({"allow_redelegation": true, "redelegation_count": 9});
    demo.post(path, body(&world, false, deep)).await.expect(403);
    let uses = json!({"allow_redelegation": true, "remaining_uses": 3});
    demo.post(path, body(&world, false, uses)).await.expect(400);
    // Once.
    let once = json!({"allow_redelegation": true, "redelegation_count": 1});
    let parent = make(&demo, body(&world, false, once)).await;
    let alt = by_trust(parent.clone()).await;
    alt.post(path, on(&world.alt, json!({"impersonation": true}))).await.expect(403);
    alt.post(path, on(&world.alt, json!({"roles": [{"name": "reader"}]}))).await.expect(403);
    let child = alt.post(path, on(&world.alt, json!({"allow_redelegation": true}))).await.expect(201);
    assert_eq!(child.text_at("/trust/redelegated_trust_id"), parent);
    assert_eq!(child.at("/trust/redelegation_count"), json!(0));
    let child = child.text_at("/trust/id");
    let answer = trusted(&world, &child, "third").await.expect(201);
    assert_eq!(answer.text_at("/token/project/id"), world.demo_project.as_str());
    let token = answer.header("x-subject-token").to_owned();
    assert_eq!(world.roles_of(&token).await, ["member", "reader"]);
    // The one in between is disabled, then the first trust is taken back.
    let between = format!("/v3/users/{}", world.alt);
    world.admin.patch(&between, json!({"user": {"enabled": false}})).await.expect(200);
    world.validate(&token).await.expect(404);
    world.admin.patch(&between, json!({"user": {"enabled": true}})).await.expect(200);
    let token = trusted(&world, &child, "third").await.expect(201).header("x-subject-token").to_owned();
    demo.delete(&format!("{path}/{parent}")).await.expect(204);
    world.validate(&token).await.expect(404);
    world.admin.get(&format!("{path}/{child}")).await.expect(404);
    let events = world.admin.get("/v3/OS-REVOKE/events").await.expect(200).text();
    assert!(events.contains(&parent) && events.contains(&child));
}
