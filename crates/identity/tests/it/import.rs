//! Taking over a Keystone: `tests/data/keystone.sql` is the database of one (see `conformance/fixtures/fill_keystone.py`).

use std::sync::Arc;

use base::ManualClock;
use identity::import::{dump::Dump, import, tables};
use serde_json::{Value, json};
use store::Store;

use crate::world::{World, config};

const DUMP: &str = include_str!("../data/keystone.sql");
const MADE: &str = include_str!("../data/keystone.json");

#[tokio::test]
async fn users_of_a_keystone_log_in_and_have_their_roles() {
    let made: Value = serde_json::from_str(MADE).unwrap();
    let id = |name: &str| made[name].as_str().unwrap().to_owned();
    let clock = Arc::new(ManualClock::default());
    let store = Store::memory(clock.clone(), &[("identity", identity::MIGRATIONS)]).await.unwrap();
    // This world's own administrator has another password than that Keystone's.
    let text = DUMP.replace("'default','admin',0,NULL)", "'default','keystone-admin',0,NULL)");
    let dump = Dump::read(text.as_bytes(), &tables()).unwrap();
    let dry = import(&store, &dump, true).await.unwrap();
    assert_eq!(import(&store, &dump, false).await.unwrap().taken, dry.taken);
    let again = import(&store, &dump, false).await.unwrap();
    assert!(again.taken.is_empty(), "{again}");
    assert_eq!(again.there["users"], dry.taken["users"]);
    // The cloud begins after that: what it needs is there, or is added.
    let world = World::on(config(), store, clock, 1).await;
    let login = |name: &str, password: &str, scope: Option<Value>| {
        let who = json!({"name": name, "domain": {"name": "Default"}, "password": password});
        let identity = json!({"methods": ["password"], "password": {"user": who}});
        let world = &world;
        async move { world.auth(identity, scope).await }
    };
    for algorithm in ["bcrypt_sha256", "scrypt", "pbkdf2_sha512"] {
        let answer = login(algorithm, &format!("pw-{algorithm}"), None).await.expect(201);
        assert_eq!(answer.at("/token/user/id"), made["users"][algorithm]);
        login(algorithm, "pw-other", None).await.expect(401);
    }
    // The newest password counts.
    login("bcrypt", "pw-bcrypt", None).await.expect(401);
    let child = json!({"project": {"id": id("child")}});
    let answer = login("bcrypt", "pw-second", Some(child)).await.expect(201);
    assert_eq!(world.roles_of(answer.header("x-subject-token")).await, ["member", "reader"]);
    let parent = json!({"project": {"name": "parent", "domain": {"name": "Kunden"}}});
    let answer = login("bcrypt", "pw-second", Some(parent.clone())).await.expect(201);
    assert_eq!(world.roles_of(answer.header("x-subject-token")).await, ["auditor", "reader"]);
    let answer = login("scrypt", "pw-scrypt", Some(parent)).await.expect(201);
    assert_eq!(world.roles_of(answer.header("x-subject-token")).await, ["reader"]);
    let system = login("scrypt", "pw-scrypt", Some(json!({"system": {"all": true}}))).await.expect(201);
    assert_eq!(world.roles_of(system.header("x-subject-token")).await, ["reader"]);
    let domain =
        login("scrypt", "pw-scrypt", Some(json!({"domain": {"id": id("domain")}}))).await.expect(201);
    assert!(world.roles_of(domain.header("x-subject-token")).await.contains(&"manager".to_owned()));
    // Application credentials, with and without rules.
    for (name, secret) in [("robot", "robot-secret"), ("plain", "plain-secret")] {
        let credential = json!({"id": id(name), "secret": secret});
        let identity = json!({"methods": ["application_credential"], "application_credential": credential});
        let answer = world.auth(identity, None).await.expect(201);
        let rules = answer.at("/token/application_credential/access_rules");
        assert_eq!(rules.as_array().map(Vec::len), (name == "robot").then_some(1), "{rules}");
    }
    // Details.
    let shown = world.admin.get(&format!("/v3/domains/{}", id("domain"))).await.expect(200);
    assert_eq!(shown.at("/domain/description"), "Kund*innen; 'quoted' \\ and \"double\"");
    let shown = world.admin.get(&format!("/v3/projects/{}", id("parent"))).await.expect(200);
    assert_eq!(shown.at("/project/tags"), json!(["a", "b"]));
    let shown = world
        .admin
        .get(&format!("/v3/users/{}", made["users"]["scrypt"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(shown.at("/user/email"), "scrypt@example.org");
    assert_eq!(shown.at("/user/options/ignore_password_expiry"), true);
    let role = world.admin.get(&format!("/v3/roles/{}", id("auditor"))).await.expect(200);
    assert_eq!(role.at("/role/options/immutable"), true);
    let services = world.admin.get("/v3/services?name=nova").await.expect(200);
    assert!(services.at("/services").as_array().unwrap().iter().any(|s| s["description"] == "Servers"));
}

#[tokio::test]
async fn what_is_there_stays_and_what_cannot_be_is_told() {
    let world = World::new().await;
    let dump = Dump::read(DUMP.as_bytes(), &tables()).unwrap();
    let before = world.role("member").await;
    let report = import(&world.store, &dump, false).await.unwrap();
    // Roles are joined by name, so that there is one `member`.
    assert_eq!(world.role("member").await, before);
    let found = world.admin.get("/v3/roles?name=member").await.expect(200).at("/roles");
    assert_eq!(found.as_array().unwrap().len(), 1);
    // The name of the administrator is taken; the report says which row that was.
    assert!(report.reasons.iter().any(|r| r.kind == "users"), "{report}");
    assert!(report.left["users"] >= 1 && report.taken["users"] >= 4, "{report}");
    let who = json!({"name": "scrypt", "domain": {"id": "default"}, "password": "pw-scrypt"});
    world.auth(json!({"methods": ["password"], "password": {"user": who}}), None).await.expect(201);
    let text = report.to_string();
    assert!(text.contains("left: users"), "{text}");
}
