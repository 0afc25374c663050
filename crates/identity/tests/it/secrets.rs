//! Credentials: kept sealed, seen by their owner only, and worth no more than the token they were made with.

use api::Method;
use identity::Place;
use serde_json::{Value, json};

use crate::extensions::{ec2_request, s3_request};
use crate::world::{World, password_of};

async fn ec2_keys(world: &World, client: &api::testing::Client) -> (String, String) {
    let path = format!("/v3/users/{}/credentials/OS-EC2", world.demo);
    let made = client.post(&path, json!({"tenant_id": world.demo_project})).await.expect(201);
    (made.text_at("/credential/access"), made.text_at("/credential/secret"))
}

#[tokio::test]
async fn a_blob_is_sealed_in_the_tables() {
    let world = World::new().await;
    let demo = world.demo().await;
    let body = json!({"credential": {"type": "cert", "blob": "PLAINTEXT-SECRET", "user_id": world.demo}});
    let id = demo.post("/v3/credentials", body).await.expect(201).text_at("/credential/id");
    let dump = world.dump().await;
    assert!(dump.contains(&id) && !dump.contains("PLAINTEXT-SECRET"));
    let shown = demo.get(&format!("/v3/credentials/{id}")).await.expect(200);
    assert_eq!(shown.text_at("/credential/blob"), "PLAINTEXT-SECRET");
    // Lists show one's own only; the administrator's shows all.
    assert_eq!(world.alt().await.get("/v3/credentials").await.expect(200).at("/credentials"), json!([]));
    let all = world.admin.get(&format!("/v3/credentials?user_id={}", world.demo)).await.expect(200);
    assert_eq!(all.text_at("/credentials/0/id"), id);
    // It cannot be given away.
    let give = json!({"credential": {"user_id": world.alt}});
    demo.patch(&format!("/v3/credentials/{id}"), give).await.expect(403);
}

#[tokio::test]
async fn signed_requests_become_tokens() {
    let world = World::new().await;
    let (access, secret) = ec2_keys(&world, &world.demo().await).await;
    let now = world.now();
    let send = |body: Value| {
        let admin = world.admin.clone();
        async move { admin.post("/v3/ec2tokens", body).await }
    };
    let made = send(ec2_request(&access, &secret, &now)).await.expect(200);
    assert_eq!(made.text_at("/token/project/id"), world.demo_project.as_str());
    assert_eq!(made.at("/token/methods"), json!(["ec2credential"]));
    let token = made.header("x-subject-token").to_owned();
    assert_eq!(world.roles_of(&token).await, ["member", "reader"]);
    send(ec2_request(&access, "wrong", &now)).await.expect(401);
    send(ec2_request("nobody", &secret, &now)).await.expect(404);
    let mut unsigned = ec2_request(&access, &secret, &now);
    unsigned["credentials"].as_object_mut().unwrap().remove("signature");
    send(unsigned).await.expect(401);
    send(json!({})).await.expect(400);
    // Heard before, and long ago.
    world.later(901);
    send(ec2_request(&access, &secret, &now)).await.expect(401);
    send(ec2_request(&access, &secret, &world.now())).await.expect(200);
    // Only services and administrators may ask.
    let body = s3_request(&access, &secret);
    world.demo().await.post("/v3/s3tokens", body.clone()).await.expect(403);
    world.anyone.post("/v3/s3tokens", body.clone()).await.expect(401);
    let service = world.state.ensure_user("swift", &password_of("swift"), None).await.unwrap();
    let place = Place::Project(world.demo_project.clone());
    world.state.ensure_assignment(&service, "service", &place).await.unwrap();
    let token = world.token("swift", world.project_scope(&world.demo_project)).await;
    world.anyone.with_token(&token).post("/v3/s3tokens", body).await.expect(200);
    // A role taken away, a user disabled: no token.
    let disable = json!({"user": {"enabled": false}});
    world.admin.patch(&format!("/v3/users/{}", world.demo), disable).await.expect(200);
    send(ec2_request(&access, &secret, &world.now())).await.expect(401);
}

#[tokio::test]
async fn keys_are_worth_no_more_than_the_token_they_were_made_with() {
    let world = World::new().await;
    let demo = world.demo().await;
    let credentials = format!("/v3/users/{}/application_credentials", world.demo);
    let make = |name: &str, unrestricted: bool| {
        let body = json!({"application_credential": {
            "name": name, "roles": [{"name": "reader"}], "unrestricted": unrestricted}});
        let (demo, world, credentials) = (&demo, &world, &credentials);
        async move {
            let made = demo.post(credentials, body).await.expect(201).at("/application_credential");
            let identity = json!({"methods": ["application_credential"], "application_credential": {
                "id": made["id"], "secret": made["secret"]}});
            let token = world.auth(identity, None).await.expect(201).header("x-subject-token").to_owned();
            (made["id"].as_str().unwrap().to_owned(), world.anyone.with_token(&token))
        }
    };
    let (_, restricted) = make("restricted", false).await;
    let path = format!("/v3/users/{}/credentials/OS-EC2", world.demo);
    restricted.post(&path, json!({"tenant_id": world.demo_project})).await.expect(403);
    let (id, free) = make("free", true).await;
    // Its role is reader only: EC2 keys need a member.
    free.post(&path, json!({"tenant_id": world.demo_project})).await.expect(403);
    let body = json!({"credential": {
        "type": "ec2", "user_id": world.demo, "project_id": world.demo_project,
        "blob": json!({"access": "A", "secret": "S", "app_cred_id": "forged"}).to_string()}});
    let made = free.post("/v3/credentials", body).await.expect(201);
    assert!(made.text_at("/credential/blob").contains(&id));
    let answer = world.admin.post("/v3/ec2tokens", ec2_request("A", "S", &world.now())).await.expect(200);
    let roles = world.roles_of(answer.header("x-subject-token")).await;
    assert_eq!(roles, ["reader"], "not the user's own member");
    // Nor can the bond be cut.
    let one = format!("/v3/credentials/{}", made.text_at("/credential/id"));
    let cut = json!({"credential": {"blob": json!({"access": "A", "secret": "S"}).to_string()}});
    demo.patch(&one, cut).await.expect(400);
    // Other projects' and the user's own secrets are out of reach.
    let totp = json!({"credential": {"type": "totp", "blob": "GEZDGNBVGY3TQOJQ", "user_id": world.demo}});
    let seed = demo.post("/v3/credentials", totp).await.expect(201).text_at("/credential/id");
    free.get(&format!("/v3/credentials/{seed}")).await.expect(403);
    free.delete(&format!("/v3/credentials/{seed}")).await.expect(403);
    let listed = free.get("/v3/credentials").await.expect(200).text();
    assert!(!listed.contains(&seed));
    demo.delete(&format!("{credentials}/{id}")).await.expect(204);
    world.admin.post("/v3/ec2tokens", ec2_request("A", "S", &world.now())).await.expect(401);
}

#[tokio::test]
async fn a_one_time_password_is_good_once() {
    let world = World::new().await;
    let demo = world.demo().await;
    // RFC 6238's seed; the clock is set to one of its vectors.
    let seed = json!({"credential": {"type": "totp", "blob": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "user_id": world.demo}});
    demo.post("/v3/credentials", seed).await.expect(201);
    let vector = base::Timestamp::from_secs(2_000_000_000);
    let now = base::Clock::now(&*world.clock);
    world.later(u64::try_from(vector.as_secs() - now.as_secs()).unwrap());
    let login = |code: &str| {
        let user = json!({"id": world.demo, "passcode": code});
        let identity = json!({"methods": ["totp"], "totp": {"user": user}});
        let world = &world;
        async move { world.auth(identity, None).await }
    };
    login("000000").await.expect(401);
    let answer = login("279037").await.expect(201);
    assert_eq!(answer.at("/token/methods"), json!(["totp"]));
    login("279037").await.expect(401);
    // Both factors, where the user's rules want them.
    let rules = json!({"user": {"options": {"multi_factor_auth_rules": [["password", "totp"]]}}});
    let admin = world.administrator().await;
    admin.patch(&format!("/v3/users/{}", world.demo), rules).await.expect(200);
    world.later(60);
    let half = world.login("demo", &password_of("demo"), None).await.expect(401);
    assert_eq!(half.at("/required_auth_methods"), json!([["password", "totp"]]));
    assert_eq!(half.at("/receipt/methods"), json!(["password"]));
    let receipt = half.header("openstack-auth-receipt").to_owned();
    // A receipt is no token, and alone it is nothing.
    let asked = admin.with_header("x-subject-token", &receipt).get("/v3/auth/tokens").await;
    assert_eq!(asked.status, 404);
    let second = |code: String, receipt: &str| {
        let identity = json!({"methods": ["totp"], "totp": {"user": {"id": world.demo, "passcode": code}}});
        let client = world.anyone.with_header("openstack-auth-receipt", receipt);
        async move { client.post("/v3/auth/tokens", json!({"auth": {"identity": identity}})).await }
    };
    second("000000".into(), &receipt).await.expect(401);
    second(code_at(&world), "nonsense").await.expect(401);
    world.later(60);
    let whole = second(code_at(&world), &receipt).await.expect(201);
    assert_eq!(whole.at("/token/methods"), json!(["password", "totp"]));
    world.later(301);
    second(code_at(&world), &receipt).await.expect(401);
}

/// The passcode of now for RFC 6238's seed.
fn code_at(world: &World) -> String {
    use hmac::{Hmac, Mac as _};
    let step = base::Clock::now(&*world.clock).as_secs() / 30;
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(b"12345678901234567890").unwrap();
    mac.update(&u64::try_from(step).unwrap().to_be_bytes());
    let digest = mac.finalize().into_bytes();
    let at = usize::from(digest[19] & 0x0f);
    let word = u32::from_be_bytes(digest[at..at + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:06}", word % 1_000_000)
}

#[tokio::test]
async fn oauth_clients_get_tokens_and_rfc_6749s_errors() {
    let world = World::new().await;
    let demo = world.demo().await;
    let path = format!("/v3/users/{}/application_credentials", world.demo);
    let made = demo.post(&path, json!({"application_credential": {"name": "o"}})).await.expect(201);
    let (id, secret) =
        (made.text_at("/application_credential/id"), made.text_at("/application_credential/secret"));
    let send = |form: String, basic: Option<String>| {
        let mut call = world
            .anyone
            .call(Method::POST, "/v3/OS-OAUTH2/token")
            .header("content-type", "application/x-www-form-urlencoded")
            .bytes(form);
        if let Some(basic) = basic {
            call = call.header("authorization", &basic);
        }
        call.send()
    };
    let basic = {
        use base64::Engine as _;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{id}:{secret}")))
    };
    let grant = "grant_type=client_credentials";
    let answer = send(grant.into(), Some(basic)).await.expect(200);
    assert_eq!(answer.text_at("/token_type"), "Bearer");
    assert_eq!(answer.at("/expires_in"), json!(3600));
    assert_eq!(world.roles_of(&answer.text_at("/access_token")).await, ["member", "reader"]);
    let wrong = send(format!("{grant}&client_id={id}&client_secret=no"), None).await.expect(401);
    assert_eq!(wrong.text_at("/error"), "invalid_client");
    assert_eq!(send(grant.into(), None).await.expect(401).text_at("/error"), "invalid_client");
    let other = send("grant_type=password".into(), None).await.expect(400);
    assert_eq!(other.text_at("/error"), "unsupported_grant_type");
    assert_eq!(send(String::new(), None).await.expect(400).text_at("/error"), "invalid_request");
}

/// A world whose keys are in `dir`, turned over after `days`.
fn keyed(dir: &std::path::Path, days: i64) -> identity::Config {
    let operator = identity::Operator { credential_key_days: days, ..identity::Operator::default() };
    let keys = identity::Repository::Directory(dir.join("fernet"));
    identity::Config { keys, operator, ..crate::world::config() }
}

fn key_files(dir: &std::path::Path) -> Vec<u64> {
    let names = std::fs::read_dir(dir.join("credential-keys")).unwrap();
    let mut numbers: Vec<u64> =
        names.filter_map(|f| f.unwrap().file_name().to_str().unwrap().parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn credential_keys_turn_over_and_no_secret_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::with(keyed(dir.path(), 0)).await;
    let demo = world.demo().await;
    let (access, secret) = ec2_keys(&world, &demo).await;
    // More than one transaction looks at.
    for n in 0..205 {
        let blob = format!("blob-{n}");
        let body = json!({"credential": {"type": "cert", "blob": blob, "user_id": world.demo}});
        demo.post("/v3/credentials", body).await.expect(201);
    }
    crate::oauth1::admit(&world, world.demo_project.as_str(), "member").await;
    let project = world.demo_project.as_str();
    let (program, given) =
        crate::oauth1::given(&world, &world.admin, &world.anyone, project, &["member"]).await;
    let config = json!({"config": {"ldap": {"url": "u", "password": "pass-of-ldap"}}});
    world.admin.put("/v3/domains/default/config", config).await.expect(201);
    // Another server on the same keys and tables.
    let other = World::on(keyed(dir.path(), 0), world.store.clone(), world.clock.clone(), 2).await;
    let sealed = |dump: &str| -> std::collections::BTreeSet<String> {
        let texts = dump.split('"').filter(|t| t.starts_with("gAAAA"));
        texts.map(|t| t.trim_end_matches('\\').to_owned()).collect()
    };
    let mut before = sealed(&world.dump().await);
    assert!(before.len() > 205);
    for turn in 2..=5u64 {
        world.state.rotate_credential_keys().await.unwrap();
        assert_eq!(key_files(dir.path()), [0, turn - 1, turn]);
        let now = sealed(&world.dump().await);
        assert_eq!(now.len(), before.len());
        assert!(now.is_disjoint(&before), "all are sealed anew");
        before = now;
        for world in [&world, &other] {
            world.admin.post("/v3/s3tokens", s3_request(&access, &secret)).await.expect(200);
            let all = world.admin.get("/v3/credentials?type=cert").await.expect(200);
            assert!(all.text().contains("blob-0") && all.text().contains("blob-204"));
        }
        program.login(&given, None, None).await.expect(201);
        world.later(60);
        other.state.keep_house().await.unwrap();
        assert_eq!(sealed(&world.dump().await), before, "once is enough");
    }
    // A secret that no key opens: nothing is turned over any more, so that the key may be brought back.
    let repository = identity::Repository::Directory(dir.path().join("elsewhere/fernet"));
    let stranger = identity::Config { keys: repository, ..crate::world::config() };
    let stranger = World::on(stranger, world.store.clone(), world.clock.clone(), 3).await;
    let body = json!({"credential": {"type": "cert", "blob": "b", "user_id": world.demo}});
    stranger.admin.post("/v3/credentials", body).await.expect(201);
    let refused = world.state.rotate_credential_keys().await.unwrap_err();
    assert!(refused.public().contains("1 secrets"), "{refused:?}");
    assert_eq!(key_files(dir.path()), [0, 4, 5]);
}

#[tokio::test]
async fn credential_keys_turn_over_by_age() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::with(keyed(dir.path(), 30)).await;
    let other = World::on(keyed(dir.path(), 30), world.store.clone(), world.clock.clone(), 2).await;
    let (access, secret) = ec2_keys(&world, &world.demo().await).await;
    world.state.keep_house().await.unwrap();
    assert_eq!(key_files(dir.path()), [0, 1]);
    // The clock of these tests is behind that of the files.
    let made = std::fs::metadata(dir.path().join("credential-keys/0")).unwrap().modified().unwrap();
    let made = made.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let now = base::Clock::now(&*world.clock).as_secs();
    world.later(made + 30 * 86_400 + 60 - u64::try_from(now).unwrap());
    let (a, b) = tokio::join!(world.state.keep_house(), other.state.keep_house());
    a.unwrap();
    b.unwrap();
    // Both found it due; one did it. (The new staged key is of this moment of the files' clock, so it is due again.)
    let keys = key_files(dir.path());
    assert!(keys.len() == 3 && keys[0] == 0 && keys[2] - keys[1] == 1, "{keys:?}");
    for world in [&world, &other] {
        let admin = world.administrator().await;
        admin.post("/v3/s3tokens", s3_request(&access, &secret)).await.expect(200);
    }
}
