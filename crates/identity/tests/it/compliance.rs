//! What an operator may demand of passwords and logins, and the trail of both.

use identity::{Compliance, Config, Operator};
use serde_json::{Value, json};

use crate::world::{World, config, password_of};

fn demanding(security_compliance: Compliance) -> Config {
    let operator = Operator { security_compliance, ..Operator::default() };
    Config { operator, ..config() }
}

async fn world(compliance: Compliance) -> World {
    World::with(demanding(compliance)).await
}

fn days(n: u64) -> u64 {
    n * 86_400
}

async fn set(world: &World, fields: Value) -> api::testing::Answer {
    world.administrator().await.patch(&format!("/v3/users/{}", world.demo), json!({"user": fields})).await
}

async fn change(world: &World, old: &str, new: &str) -> api::testing::Answer {
    let body = json!({"user": {"original_password": old, "password": new}});
    world.anyone.post(&format!("/v3/users/{}/password", world.demo), body).await
}

#[tokio::test]
async fn an_account_is_locked_after_failures_and_opens_by_time_or_administrator() {
    let rules =
        Compliance { lockout_failure_attempts: Some(3), lockout_duration: 100, ..Compliance::default() };
    let world = world(rules).await;
    let right = password_of("demo");
    let lock = || async {
        for _ in 0..3 {
            world.login("demo", "wrong", None).await.expect(401);
        }
    };
    lock().await;
    let locked = world.login("demo", &right, None).await.expect(401);
    let unknown = world.login("nobody", &right, None).await.expect(401);
    assert_eq!(locked.at("/error/message"), unknown.at("/error/message"), "no telling that it is locked");
    change(&world, &right, "another-password").await.expect(401);
    world.login("alt", &password_of("alt"), None).await.expect(201);
    world.later(101);
    world.login("demo", &right, None).await.expect(201);
    lock().await;
    set(&world, json!({"enabled": true})).await.expect(200);
    world.login("demo", &right, None).await.expect(201);
    set(&world, json!({"options": {"ignore_lockout_failure_attempts": true}})).await.expect(200);
    lock().await;
    world.login("demo", &right, None).await.expect(201);
}

#[tokio::test]
async fn a_password_ends_and_is_changed_without_a_token() {
    let rules = Compliance { password_expires_days: Some(30), ..Compliance::default() };
    let world = world(rules).await;
    set(&world, json!({"password": "first"})).await.expect(200);
    let shown = world.admin.get(&format!("/v3/users/{}", world.demo)).await.expect(200);
    assert!(shown.text_at("/user/password_expires_at").ends_with(".000000Z"));
    let answer = world.login("demo", "first", None).await.expect(201);
    assert_eq!(answer.at("/token/user/password_expires_at"), shown.at("/user/password_expires_at"));
    for (query, n) in [("lt:2999-01-01", 1), ("gt:2999-01-01", 0), ("2001-01-01T00:00:00Z", 0)] {
        let path = format!("/v3/users?password_expires_at={query}");
        let found = world.admin.get(&path).await.expect(200).at("/users");
        assert_eq!(found.as_array().unwrap().len(), n, "{query}");
    }
    world.admin.get("/v3/users?password_expires_at=xx:2001-01-01").await.expect(400);
    world.later(days(30));
    let told = world.login("demo", "first", None).await.expect(401);
    assert!(told.text().contains("expired"), "who knows the password is told");
    assert!(!world.login("demo", "wrong", None).await.expect(401).text().contains("expired"));
    change(&world, "first", "second").await.expect(204);
    world.login("demo", "second", None).await.expect(201);
    world.later(days(31));
    set(&world, json!({"options": {"ignore_password_expiry": true}})).await.expect(200);
    world.login("demo", "second", None).await.expect(201);
}

#[tokio::test]
async fn a_password_set_by_an_administrator_must_be_changed_first() {
    let rules = Compliance {
        change_password_upon_first_use: true,
        minimum_password_age: 2,
        password_regex: Some(r"^(?=.*\d)(?=.*[a-zA-Z]).{7,}$".into()),
        password_regex_description: Some("at least 1 letter, 1 digit and 7 characters".into()),
        ..Compliance::default()
    };
    let world = world(rules).await;
    for weak in ["short1", "onlyletters", "1234567890"] {
        let answer = set(&world, json!({"password": weak})).await.expect(400);
        assert!(answer.text().contains("at least 1 letter"));
        let user = json!({"user": {"name": "weak", "password": weak}});
        world.admin.post("/v3/users", user).await.expect(400);
    }
    set(&world, json!({"password": "letters4you"})).await.expect(200);
    world.login("demo", "letters4you", None).await.expect(401);
    change(&world, "letters4you", "weak").await.expect(400);
    change(&world, "letters4you", "chosen4me").await.expect(204);
    world.login("demo", "chosen4me", None).await.expect(201);
    // A chosen one must be kept for a while.
    let soon = change(&world, "chosen4me", "another4me").await.expect(400);
    assert!(soon.text().contains("minimum password age"));
    world.later(days(2));
    change(&world, "chosen4me", "another4me").await.expect(204);
    // Everybody may read what is demanded.
    let path = "/v3/domains/default/config/security_compliance";
    let shown = world.demo_as("another4me").await.get(path).await.expect(200);
    assert!(shown.text_at("/config/security_compliance/password_regex").starts_with("^(?="));
    world.demo_as("another4me").await.get(&format!("{path}/lockout_duration")).await.expect(403);
}

#[tokio::test]
async fn who_stays_away_is_disabled() {
    let rules = Compliance { disable_user_account_days_inactive: Some(10), ..Compliance::default() };
    let world = world(rules).await;
    let right = password_of("demo");
    world.later(days(9));
    world.login("demo", &right, None).await.expect(201);
    world.later(days(9));
    world.login("demo", &right, None).await.expect(201);
    world.later(days(10));
    world.login("demo", &right, None).await.expect(401);
    world.login("alt", &password_of("alt"), None).await.expect(401);
}

#[test]
fn a_pattern_that_is_none_is_refused_at_the_start() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new().await;
        let compliance = Compliance { password_regex: Some("(".into()), ..Compliance::default() };
        let wrong = demanding(compliance);
        let made =
            identity::State::new(wrong, world.store.clone(), world.clock.clone(), base::Entropy::seeded(1));
        assert!(made.unwrap_err().public().contains("password_regex"));
    });
}

#[tokio::test]
async fn logins_and_changes_leave_a_trail() {
    let world = World::new().await;
    world.login("demo", "wrong", None).await.expect(401);
    world.login("demo", &password_of("demo"), None).await.expect(201);
    let user = world.make_id("user", json!({"name": "traced", "password": "hidden-secret"})).await;
    world.demo().await.patch(&format!("/v3/users/{user}"), json!({"user": {"name": "x"}})).await.expect(403);
    world.admin.delete(&format!("/v3/users/{user}")).await.expect(204);
    let all = world.admin.get("/v3/OS-ALLOD/audit_events").await.expect(200);
    assert!(!all.text().contains("hidden-secret") && !all.text().contains(&password_of("demo")));
    let find = |query: &str| {
        let (admin, path) = (world.admin.clone(), format!("/v3/OS-ALLOD/audit_events?{query}"));
        async move { admin.get(&path).await.expect(200).at("/audit_events") }
    };
    let failed = find("action=authenticate&outcome=failure").await;
    assert_eq!(failed[0]["initiator"]["id"], "demo@Default");
    assert_eq!(failed[0]["reason"]["reasonCode"], "401");
    let right = find(&format!("action=authenticate&initiator_id={}", world.demo)).await;
    assert_eq!(right[0]["outcome"], "success");
    for action in ["create/user", "delete/user"] {
        let made = find(&format!("action={action}")).await;
        assert_eq!(made[0]["target"]["id"], user, "{action}");
        assert_eq!(made[0]["initiator"]["username"], "admin");
        assert_eq!(made[0]["typeURI"], "http://schemas.dmtf.org/cloud/audit/1.0/event");
    }
    assert_eq!(find("since=2999-01-01").await, json!([]));
    // A tenant sees nothing of it.
    world.demo().await.get("/v3/OS-ALLOD/audit_events").await.expect(403);
    world.admin.get("/v3/OS-ALLOD/audit_events?since=nonsense").await.expect(400);
}
