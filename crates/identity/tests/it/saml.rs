//! This cloud vouches for its users to another one (Keystone to Keystone). That others believe it is shown beside a real
//! Keystone with xmlsec1 (`conformance/keystone_sidebyside.py`).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use api::Method;
use api::testing::Answer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::{Config, Operator, Saml, State};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};
use store::Store;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::world::{World, config, password_of};

const KEY: &str = include_str!("../data/saml.key");
const CERTIFICATE: &str = include_str!("../data/saml.crt");
const ENTITY: &str = "https://first.test/v3/OS-FEDERATION/saml2/idp";
const ASSERTION: &str = "/v3/auth/OS-FEDERATION/saml2";
const ECP: &str = "/v3/auth/OS-FEDERATION/saml2/ecp";
const METADATA: &str = "/v3/OS-FEDERATION/saml2/metadata";
const SP: &str = "/v3/OS-FEDERATION/service_providers/second";

fn keep(dir: &Path, name: &str, text: &str, mode: u32) -> std::path::PathBuf {
    let file = dir.join(name);
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    file
}

fn settings(dir: &TempDir) -> Saml {
    Saml {
        certfile: Some(keep(dir.path(), "saml.crt", CERTIFICATE, 0o644)),
        keyfile: Some(keep(dir.path(), "saml.key", KEY, 0o600)),
        idp_entity_id: Some(ENTITY.into()),
        idp_sso_endpoint: Some("https://first.test/v3/OS-FEDERATION/saml2/sso".into()),
        ..Saml::default()
    }
}

fn with(saml: Saml) -> Config {
    Config { operator: Operator { saml, ..Operator::default() }, ..config() }
}

/// A world that vouches, and a service provider that shall believe it.
pub async fn vouching() -> World {
    let dir = tempfile::tempdir().unwrap();
    // The files are read once.
    let world = World::with(with(settings(&dir))).await;
    let urls = json!({
        "auth_url": "https://second.test/v3/OS-FEDERATION/identity_providers/first/protocols/mapped/auth",
        "sp_url": "https://second.test/Shibboleth.sso/SAML2/ECP", "enabled": true,
    });
    world.admin.put(SP, json!({"service_provider": urls})).await.expect(201);
    world
}

pub fn asked(token: &str, sp: &str) -> Value {
    let identity = json!({"methods": ["token"], "token": {"id": token}});
    json!({"auth": {"identity": identity, "scope": {"service_provider": {"id": sp}}}})
}

impl World {
    async fn vouched(&self, token: &str) -> Answer {
        self.anyone.post(ASSERTION, asked(token, "second")).await
    }

    async fn scoped(&self) -> String {
        self.token("demo", self.project_scope(&self.demo_project)).await
    }
}

/// What stands between two marks, the first time.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split_once(from).unwrap().1.split_once(to).unwrap().0
}

/// The values of an attribute.
fn values<'a>(document: &'a str, name: &str) -> Vec<&'a str> {
    let Some((_, rest)) = document.split_once(&format!("<saml:Attribute Name=\"{name}\" ")) else {
        return Vec::new();
    };
    let all = between(rest, ">", "</saml:Attribute>");
    all.split("</saml:AttributeValue>").filter_map(|v| v.split_once('>').map(|(_, text)| text)).collect()
}

#[tokio::test]
async fn a_user_is_vouched_for_with_what_the_token_says() {
    let world = vouching().await;
    let group = world.make_id("group", json!({"name": "dev & ops"})).await;
    let member = format!("/v3/groups/{group}/users/{}", world.demo);
    world.admin.put(&member, json!({})).await.expect(204);
    let token = world.scoped().await;
    let answer = world.vouched(&token).await.expect(200);
    assert_eq!(answer.header("content-type"), "text/xml");
    assert_eq!(answer.header("x-sp-url"), "https://second.test/Shibboleth.sso/SAML2/ECP");
    assert!(answer.header("x-auth-url").ends_with("/protocols/mapped/auth"));
    let text = answer.text();
    for (name, said) in [
        ("openstack_user", vec!["demo"]),
        ("openstack_user_domain", vec!["Default"]),
        ("openstack_roles", vec!["member", "reader"]),
        ("openstack_project", vec!["demo"]),
        ("openstack_project_domain", vec!["Default"]),
        ("openstack_groups", vec!["JSON:{\"name\": \"dev &amp; ops\", \"domain\": {\"name\": \"Default\"}}"]),
    ] {
        assert_eq!(values(&text, name), said, "{name}");
    }
    assert!(text.contains(&format!("<saml:AuthenticatingAuthority>{ENTITY}</saml:AuthenticatingAuthority>")));
    let until = base::Clock::now(&*world.clock).plus_secs(3600).iso_micros();
    assert_eq!(between(&text, "SessionNotOnOrAfter=\"", "\""), until);
    assert_eq!(between(&text, "NotOnOrAfter=\"", "\""), until);

    // The signature is by the key of the certificate, over what stands there.
    let info =
        format!("<ds:SignedInfo{}</ds:SignedInfo>", between(&text, "<ds:SignedInfo", "</ds:SignedInfo>"));
    let signature = STANDARD.decode(between(&text, "<ds:SignatureValue>", "<")).unwrap();
    let der = STANDARD.decode(between(&text, "<ds:X509Certificate>", "<")).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let key = certificate.public_key().subject_public_key.data.clone();
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key);
    key.verify(info.as_bytes(), &signature).unwrap();

    // Never the same twice.
    let again = world.vouched(&token).await.expect(200).text();
    for id in [" ID=\"", "SessionIndex=\""] {
        assert_ne!(between(&again, id, "\""), between(&text, id, "\""));
    }

    // In an envelope, with the prefix of the service provider.
    let prefix = json!({"service_provider": {"relay_state_prefix": "cookie:\""}});
    let admin = world.administrator().await;
    admin.patch(SP, prefix).await.expect(200);
    let answer = world.anyone.post(ECP, asked(&token, "second")).await.expect(200);
    assert_eq!(answer.header("content-type"), "text/xml");
    let text = answer.text();
    assert!(between(&text, "<ecp:RelayState", "<").contains(" soap:mustUnderstand=\"1\">cookie:\""));
    assert_eq!(values(&text, "openstack_user"), ["demo"]);

    let events = admin.get("/v3/OS-ALLOD/audit_events?action=create/assertion").await.expect(200);
    assert_eq!(events.at("/audit_events/0/target/id"), "second");
    assert_eq!(events.at("/audit_events/0/initiator/id"), json!(world.demo));
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused_by_name() {
    let world = vouching().await;
    let token = world.scoped().await;
    let unscoped = world.token("demo", json!("unscoped")).await;
    let system = world.token("admin", json!({"system": {"all": true}})).await;
    let admin_role = world.role("admin").await;
    let on_domain = format!("/v3/domains/default/users/{}/roles/{admin_role}", world.alt);
    world.admin.put(&on_domain, json!({})).await.expect(204);
    let domain = world.token("alt", json!({"domain": {"id": "default"}})).await;
    for path in [ASSERTION, ECP] {
        for (of, sp, status, words) in [
            (&unscoped, "second", 403, "Use a project scoped token"),
            (&domain, "second", 403, "Use a project scoped token"),
            (&system, "second", 403, "Use a project scoped token"),
            (&token, "third", 404, "Could not find Service Provider: third."),
            (&"gAAAA-nonsense".to_owned(), "second", 404, "token"),
            // Nobody without a token learns which there are.
            (&String::new(), "third", 404, "token"),
        ] {
            let answer = world.anyone.post(path, asked(of, sp)).await.expect(status);
            assert!(answer.text_at("/error/message").contains(words), "{}", answer.text());
        }
        for (at, value, names) in [
            ("/auth", json!(null), "auth"),
            ("/auth/identity", json!({}), "token"),
            ("/auth/identity/token", json!({}), "id"),
            ("/auth/identity/token/id", json!(1), "id"),
            ("/auth/identity/token/more", json!(1), "more"),
            ("/auth/identity/methods", json!("token"), "methods"),
            ("/auth/identity/password", json!({}), "password"),
            ("/auth/scope", json!({"project": {"id": "p"}}), "project"),
            ("/auth/scope/service_provider", json!({}), "id"),
            ("/auth/scope/service_provider/id", json!(["x"]), "id"),
            ("/auth/more", json!(1), "more"),
        ] {
            let mut body = asked(&token, "second");
            let (place, key) = at.rsplit_once('/').unwrap();
            body.pointer_mut(place).unwrap()[key] = value;
            let answer = world.anyone.post(path, body).await.expect(400);
            assert!(answer.text_at("/error/message").contains(names), "{at}: {}", answer.text());
        }
        world.anyone.get(path).await.expect(405);
        // `methods` may be missing, as in Keystone, and a token in the header is nothing here.
        let mut body = asked(&token, "second");
        body["auth"]["identity"].as_object_mut().unwrap().remove("methods");
        world.anyone.with_token("nonsense").post(path, body).await.expect(200);
    }
    let off = json!({"service_provider": {"enabled": false}});
    world.admin.patch(SP, off).await.expect(200);
    let answer = world.vouched(&token).await.expect(403);
    assert_eq!(answer.text_at("/error/message"), "Service Provider second is disabled");
    world.admin.patch(SP, json!({"service_provider": {"enabled": true}})).await.expect(200);
    let own = world.anyone.with_token(&token).with_header("x-subject-token", &token);
    own.delete("/v3/auth/tokens").await.expect(204);
    world.vouched(&token).await.expect(404);
}

#[tokio::test]
async fn a_delegation_says_no_more_than_was_delegated() {
    let world = vouching().await;
    let group = world.make_id("group", json!({"name": "team"})).await;
    world.admin.put(&format!("/v3/groups/{group}/users/{}", world.demo), json!({})).await.expect(204);
    let demo = world.demo().await;
    let path = format!("/v3/users/{}/application_credentials", world.demo);
    let rules = json!([{"service": "identity", "method": "POST", "path": ASSERTION}]);
    let login = |body: Value| {
        let (demo, world, path) = (&demo, &world, &path);
        async move {
            let made = demo.post(path, json!({"application_credential": body})).await.expect(201);
            let id = made.text_at("/application_credential/id");
            let secret = made.text_at("/application_credential/secret");
            let credential = json!({"id": id, "secret": secret});
            let identity =
                json!({"methods": ["application_credential"], "application_credential": credential});
            world.auth(identity, None).await.expect(201).header("x-subject-token").to_owned()
        }
    };
    let plain = login(json!({"name": "plain", "roles": [{"name": "reader"}]})).await;
    let text = world.vouched(&plain).await.expect(200).text();
    assert_eq!(values(&text, "openstack_roles"), ["reader"]);
    // Groups would be all that the user has there.
    assert_eq!(values(&text, "openstack_groups"), Vec::<&str>::new());
    let bound = login(json!({"name": "bound", "access_rules": rules})).await;
    world.vouched(&bound).await.expect(404);

    let trust = json!({
        "trustor_user_id": world.demo, "trustee_user_id": world.alt, "project_id": world.demo_project,
        "impersonation": true, "roles": [{"name": "reader"}]});
    let trust = demo.post("/v3/OS-TRUST/trusts", json!({"trust": trust})).await.expect(201);
    let trust = trust.text_at("/trust/id");
    let by_trust = world.token("alt", json!({"OS-TRUST:trust": {"id": trust}})).await;
    let text = world.vouched(&by_trust).await.expect(200).text();
    assert_eq!(values(&text, "openstack_user"), ["demo"]);
    assert_eq!(values(&text, "openstack_roles"), ["reader"]);
    assert_eq!(values(&text, "openstack_groups"), Vec::<&str>::new());
}

#[tokio::test]
async fn metadata_says_who_this_is() {
    let world = vouching().await;
    let answer = world.anyone.get(METADATA).await.expect(200);
    assert_eq!(answer.header("content-type"), "text/xml");
    let text = answer.text();
    assert_eq!(between(&text, "entityID=\"", "\""), ENTITY);
    let certificate: String = CERTIFICATE.lines().filter(|l| !l.starts_with("---")).collect();
    assert_eq!(between(&text, "<ds:X509Certificate>", "<"), certificate);
    assert!(!text.contains("md:Organization") && !text.contains("md:ContactPerson"));
    world.anyone.call(Method::HEAD, METADATA).send().await.expect(200);
}

#[tokio::test]
async fn nothing_is_said_unless_the_operator_names_this_cloud() {
    let world = World::new().await;
    world.anyone.get(METADATA).await.expect(501);
    let urls = json!({"auth_url": "https://second.test/v3", "sp_url": "https://second.test/sp"});
    let made = world.admin.put(SP, json!({"service_provider": urls})).await.expect(201);
    assert_eq!(made.at("/service_provider/relay_state_prefix"), "ss:mem:");
    let token = world.scoped().await;
    world.vouched(&token).await.expect(403);
    world.admin.patch(SP, json!({"service_provider": {"enabled": true}})).await.expect(200);
    world.vouched(&token).await.expect(501);
}

#[tokio::test]
async fn wrong_settings_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let other = rcgen::generate_simple_self_signed(["other.test".to_owned()]).unwrap();
    let other = keep(dir.path(), "other.crt", &other.cert.pem(), 0o644);
    let short = keep(
        dir.path(),
        "short.key",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        0o600,
    );
    let open = keep(dir.path(), "open.key", KEY, 0o644);
    let right = settings(&dir);
    let mut cases: Vec<(&str, Saml)> = Vec::new();
    let mut case = |names: &'static str, change: &dyn Fn(&mut Saml)| {
        let mut wrong = right.clone();
        change(&mut wrong);
        cases.push((names, wrong));
    };
    case("idp_entity_id", &|s| s.idp_entity_id = None);
    case("idp_entity_id", &|s| s.idp_entity_id = Some("no uri".into()));
    case("idp_sso_endpoint", &|s| s.idp_sso_endpoint = Some("https://\u{e9}".into()));
    case("certfile", &|s| s.certfile = None);
    case("certfile", &|s| s.certfile = Some(dir.path().join("absent")));
    case("certfile", &|s| s.certfile = s.keyfile.clone());
    case("certfile", &|s| s.certfile = Some(other.clone()));
    case("keyfile", &|s| s.keyfile = None);
    case("keyfile", &|s| s.keyfile = s.certfile.clone());
    case("keyfile", &|s| s.keyfile = Some(open.clone()));
    case("keyfile", &|s| s.keyfile = Some(short.clone()));
    case("idp_contact_type", &|s| s.idp_contact_type = "boss".into());
    case("assertion_expiration_time", &|s| s.assertion_expiration_time = 0);
    let clock = std::sync::Arc::new(base::ManualClock::default());
    for (names, wrong) in cases {
        let store = Store::memory(clock.clone(), &[("identity", identity::MIGRATIONS)]).await.unwrap();
        let made = State::new(with(wrong), store, clock.clone(), base::Entropy::seeded(1));
        let error = made.err().unwrap();
        let words = error.public().to_owned();
        assert!(words.starts_with(&format!("identity.saml.{names}: ")), "{words}");
        assert!(!KEY.lines().any(|line| words.contains(line)));
    }
}

/// Tokens tell where their user could go from here, as soon as it is so and no longer.
#[tokio::test]
async fn tokens_tell_of_service_providers() {
    let world = World::new().await;
    let who = json!({"name": "demo", "domain": {"id": "default"}, "password": password_of("demo")});
    let identity = json!({"methods": ["password"], "password": {"user": who}});
    let made = world.auth(identity, Some(json!("unscoped"))).await.expect(201);
    assert_eq!(made.at("/token").get("service_providers"), None);
    let token = made.header("x-subject-token").to_owned();
    let told =
        || async { world.validate(&token).await.expect(200).at("/token").get("service_providers").cloned() };
    let (auth, sp) = ("https://second.test/v3", "https://second.test/sp");
    let body = json!({"service_provider": {"auth_url": auth, "sp_url": sp}});
    world.admin.put(SP, body).await.expect(201);
    assert_eq!(told().await, None);
    world.admin.patch(SP, json!({"service_provider": {"enabled": true}})).await.expect(200);
    assert_eq!(told().await, Some(json!([{"id": "second", "auth_url": auth, "sp_url": sp}])));
    let path = format!("{SP}-too");
    let body = json!({"service_provider": {"auth_url": auth, "sp_url": sp, "enabled": true}});
    world.admin.put(&path, body).await.expect(201);
    assert_eq!(told().await.unwrap().as_array().unwrap().len(), 2);
    world.admin.delete(&path).await.expect(204);
    world.admin.patch(SP, json!({"service_provider": {"enabled": false}})).await.expect(200);
    assert_eq!(told().await, None);
}
