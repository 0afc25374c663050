//! Taking over a Keystone: `tests/data/keystone.sql` is the database of one (see `conformance/fixtures/fill_keystone.py`).

use std::sync::Arc;

use base::{Entropy, ManualClock};
use identity::import::{Secrets, dump::Dump, import, tables};
use identity::{Config, Repository};
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
    let dry = import(&store, &dump, None, true).await.unwrap();
    assert_eq!(import(&store, &dump, None, false).await.unwrap().taken, dry.taken);
    let again = import(&store, &dump, None, false).await.unwrap();
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
    let report = import(&world.store, &dump, None, false).await.unwrap();
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

/// Tables that the fixture has none of, as Keystone declares them, and rows that refer to it.
const MORE: &str = "
CREATE TABLE `registered_limit` (`internal_id` int, `id` varchar(255), `service_id` varchar(255), `region_id` varchar(64), `resource_name` varchar(255), `default_limit` int, `description` text);
INSERT INTO `registered_limit` VALUES (1,'rl1','4c62233779f944d29fa981df62e351c9','RegionOne','cores',20,NULL),(2,'rl2','gone',NULL,'cores',20,NULL);
CREATE TABLE `limit` (`id` varchar(255), `project_id` varchar(64), `resource_limit` int, `description` text, `internal_id` int, `registered_limit_id` varchar(64), `domain_id` varchar(64));
INSERT INTO `limit` VALUES ('l1','67a7ab1da31548d6834858a015a64f9a',50,'more',1,'rl1',NULL),('l2',NULL,70,NULL,2,'rl1','c3d1effe4ac24d108edc9041160730c3'),('l3','67a7ab1da31548d6834858a015a64f9a',9,NULL,3,'rl2',NULL);
CREATE TABLE `policy` (`id` varchar(64), `type` varchar(255), `blob` text, `extra` text);
INSERT INTO `policy` VALUES ('p1','application/json','\\\"{ }\\\"','{}');
CREATE TABLE `policy_association` (`id` varchar(64), `policy_id` varchar(64), `endpoint_id` varchar(64), `service_id` varchar(64), `region_id` varchar(64));
INSERT INTO `policy_association` VALUES ('x','p1',NULL,'4c62233779f944d29fa981df62e351c9',NULL),('y','gone',NULL,NULL,NULL);
CREATE TABLE `project_endpoint` (`endpoint_id` varchar(64), `project_id` varchar(64));
INSERT INTO `project_endpoint` VALUES ('ef149dfabec14503a5b4f293a3bc1869','67a7ab1da31548d6834858a015a64f9a');
CREATE TABLE `endpoint_group` (`id` varchar(64), `name` varchar(255), `description` text, `filters` text);
INSERT INTO `endpoint_group` VALUES ('eg1','public ones',NULL,'{\\\"interface\\\": \\\"public\\\"}');
CREATE TABLE `project_endpoint_group` (`endpoint_group_id` varchar(64), `project_id` varchar(64));
INSERT INTO `project_endpoint_group` VALUES ('eg1','fd103873db3f49999147e1168555b0eb'),('gone','fd103873db3f49999147e1168555b0eb');
CREATE TABLE `identity_provider` (`id` varchar(64), `enabled` tinyint(1), `description` text, `domain_id` varchar(64), `authorization_ttl` int);
INSERT INTO `identity_provider` VALUES ('partner',1,'Partner','c3d1effe4ac24d108edc9041160730c3',30);
CREATE TABLE `idp_remote_ids` (`idp_id` varchar(64), `remote_id` varchar(255));
INSERT INTO `idp_remote_ids` VALUES ('partner','https://idp.example/b'),('partner','https://idp.example/a');
CREATE TABLE `mapping` (`id` varchar(64), `rules` text, `schema_version` varchar(5));
INSERT INTO `mapping` VALUES ('m1','\\\"[{\\\\\\\"local\\\\\\\": [{\\\\\\\"user\\\\\\\": {\\\\\\\"name\\\\\\\": \\\\\\\"{0}\\\\\\\"}}], \\\\\\\"remote\\\\\\\": [{\\\\\\\"type\\\\\\\": \\\\\\\"sub\\\\\\\"}]}]\\\"','1.0'),('m2','[{\\\"wrong\\\": 1}]','1.0');
CREATE TABLE `federation_protocol` (`id` varchar(64), `idp_id` varchar(64), `mapping_id` varchar(64), `remote_id_attribute` varchar(64));
INSERT INTO `federation_protocol` VALUES ('openid','partner','m1','HTTP_OIDC_ISS'),('saml2','partner','m2',NULL);
CREATE TABLE `service_provider` (`auth_url` varchar(256), `id` varchar(64), `enabled` tinyint(1), `description` text, `sp_url` varchar(256), `relay_state_prefix` varchar(256));
INSERT INTO `service_provider` VALUES ('https://sp.example/v3','sp1',1,NULL,'https://sp.example/SAML','ss:mem:');
INSERT INTO `trust` VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1','c9038a969afd41b3bcb3a71e98a3a02b','ac9e6d5d76894d54927506e116a74fa7','fd103873db3f49999147e1168555b0eb',1,NULL,NULL,2,'{}',NULL,NULL,0);
INSERT INTO `trust` VALUES ('t2','c9038a969afd41b3bcb3a71e98a3a02b','ac9e6d5d76894d54927506e116a74fa7','fd103873db3f49999147e1168555b0eb',1,'2026-01-01 00:00:00',NULL,NULL,'{}',NULL,NULL,0);
INSERT INTO `trust` VALUES ('t3','c9038a969afd41b3bcb3a71e98a3a02b','ac9e6d5d76894d54927506e116a74fa7','fd103873db3f49999147e1168555b0eb',1,NULL,NULL,NULL,'{}',NULL,'t2',0);
INSERT INTO `trust` VALUES ('t4','c9038a969afd41b3bcb3a71e98a3a02b','ac9e6d5d76894d54927506e116a74fa7','fd103873db3f49999147e1168555b0eb',1,NULL,NULL,NULL,'{}',NULL,'t3',0);
INSERT INTO `trust_role` VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1','d643a265a9424f5f8537cd95c562ec6b');
";

/// A repository of one Fernet key, and what is encrypted with it.
fn keys(plain: &str) -> (tempfile::TempDir, String) {
    use std::os::unix::fs::PermissionsExt as _;
    let (directory, key) = (tempfile::tempdir().unwrap(), fernet::Fernet::generate_key());
    let file = directory.path().join("0");
    std::fs::write(&file, &key).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let sealed = fernet::Fernet::new(&key).unwrap().encrypt(plain.as_bytes());
    (directory, sealed)
}

#[tokio::test]
async fn delegations_secrets_limits_and_identity_providers_come_along() {
    let made: Value = serde_json::from_str(MADE).unwrap();
    let clock = Arc::new(ManualClock::default());
    let store = Store::memory(clock.clone(), &[("identity", identity::MIGRATIONS)]).await.unwrap();
    let (there, sealed) = keys("OLDSEEDOLDSEED22");
    let null = fernet::Fernet::new(&format!("{}=", "A".repeat(43))).unwrap().encrypt(b"NULLKEYSEED22222");
    let user = made["users"]["bcrypt"].as_str().unwrap();
    let text = DUMP.replace("'default','admin',0,NULL)", "'default','keystone-admin',0,NULL)") + MORE;
    let text = format!(
        "{text}INSERT INTO `credential` VALUES ('c1','{user}',NULL,'totp','{{}}','x','{sealed}'),('c2','{user}',NULL,'totp','{{}}','x','{null}');"
    );
    let dump = Dump::read(text.as_bytes(), &tables()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let here = Repository::Directory(place.path().join("credential-keys"));
    assert!(Secrets::open(place.path(), here.clone(), Entropy::seeded(1), &*clock).is_err(), "no keys");
    let secrets = Secrets::open(there.path(), here.clone(), Entropy::seeded(1), &*clock).unwrap();
    let report = import(&store, &dump, Some(&secrets), false).await.unwrap();
    // The fixture's own credential is encrypted with a key that nobody kept.
    assert_eq!((report.taken["credentials"], report.left["credentials"]), (2, 1), "{report}");
    // A trust made from a deleted one, and one made from that.
    assert_eq!((report.taken["trusts"], report.left["trusts"]), (2, 2), "{report}");
    for kind in ["registered limits", "limits", "policy associations", "mappings", "protocols"] {
        assert_eq!(report.left[kind], 1, "{kind}: {report}");
    }
    let again = import(&store, &dump, Some(&secrets), false).await.unwrap();
    assert!(again.taken.is_empty(), "{again}");
    let config = Config { credential_keys: Some(here), ..config() };
    let world = World::on(config, store, clock, 1).await;

    let scope = json!({"OS-TRUST:trust": {"id": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1"}});
    for _ in 0..2 {
        let answer = world.login("bcrypt_sha256", "pw-bcrypt_sha256", Some(scope.clone())).await.expect(201);
        assert_eq!(answer.at("/token/user/id"), made["users"]["bcrypt"]);
        assert_eq!(answer.at("/token/project/id"), made["child"]);
        assert_eq!(world.roles_of(answer.header("x-subject-token")).await, ["member", "reader"]);
    }
    world.login("bcrypt_sha256", "pw-bcrypt_sha256", Some(scope)).await.expect(401);
    let get = |path: String| {
        let admin = &world.admin;
        async move { admin.get(&path).await.expect(200) }
    };
    for (id, seed) in [("c1", "OLDSEEDOLDSEED22"), ("c2", "NULLKEYSEED22222")] {
        assert_eq!(get(format!("/v3/credentials/{id}")).await.at("/credential/blob"), seed);
    }
    let limit = get("/v3/registered_limits/rl1".into()).await;
    assert_eq!(limit.at("/registered_limit/default_limit"), 20);
    let limit = get("/v3/limits/l1".into()).await;
    assert_eq!(
        (limit.at("/limit/resource_name"), limit.at("/limit/resource_limit")),
        (json!("cores"), json!(50))
    );
    assert_eq!(get("/v3/limits/l2".into()).await.at("/limit/domain_id"), made["domain"]);
    assert_eq!(get("/v3/policies/p1".into()).await.at("/policy/blob"), "{ }");
    let service = "4c62233779f944d29fa981df62e351c9";
    let associated = format!("/v3/policies/p1/OS-ENDPOINT-POLICY/services/{service}");
    world.admin.get(&associated).await.expect(204);
    let seen = get(format!("/v3/OS-EP-FILTER/projects/{}/endpoints", made["parent"].as_str().unwrap())).await;
    assert_eq!(seen.at("/endpoints").as_array().unwrap().len(), 1);
    let groups = format!("/v3/OS-EP-FILTER/projects/{}/endpoint_groups", made["child"].as_str().unwrap());
    assert_eq!(get(groups).await.at("/endpoint_groups/0/id"), "eg1");
    let provider = get("/v3/OS-FEDERATION/identity_providers/partner".into()).await;
    let remotes = json!(["https://idp.example/a", "https://idp.example/b"]);
    assert_eq!(provider.at("/identity_provider/remote_ids"), remotes);
    assert_eq!(provider.at("/identity_provider/authorization_ttl"), 30);
    let protocol = get("/v3/OS-FEDERATION/identity_providers/partner/protocols/openid".into()).await;
    assert_eq!(protocol.at("/protocol/mapping_id"), "m1");
    let mapping = get("/v3/OS-FEDERATION/mappings/m1".into()).await;
    assert_eq!(mapping.at("/mapping/rules/0/remote/0/type"), "sub");
    let provider = get("/v3/OS-FEDERATION/service_providers/sp1".into()).await;
    assert_eq!(provider.at("/service_provider/sp_url"), "https://sp.example/SAML");
}
