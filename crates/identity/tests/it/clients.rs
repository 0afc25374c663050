//! Clients that prove who they are by a certificate (RFC 8705). What the handshake proves is what the binary's tests are about;
//! here the certificate is there.

use api::Method;
use api::testing::{Answer, Client};
use identity::{Config, OAuth2, Operator, TokenProvider};
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::world::{World, config};

/// `0.9.2342.19200300.100.1.1`: the id of a user.
const UID: &[u64] = &[0, 9, 2342, 19_200_300, 100, 1, 1];
const DC: &[u64] = &[0, 9, 2342, 19_200_300, 100, 1, 25];
const EMAIL: &[u64] = &[1, 2, 840, 113_549, 1, 9, 1];

fn named(names: &[(&str, &str)]) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    for (kind, value) in names {
        let kind = match *kind {
            "CN" => DnType::CommonName,
            "O" => DnType::OrganizationName,
            "UID" => DnType::CustomDnType(UID.to_vec()),
            "DC" => DnType::CustomDnType(DC.to_vec()),
            _ => DnType::CustomDnType(EMAIL.to_vec()),
        };
        subject.push(kind, *value);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params
}

/// A certificate by the authority of this name.
fn certificate(authority: &str, names: &[(&str, &str)]) -> Vec<u8> {
    let mut params = named(&[("CN", authority)]);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = Issuer::new(params, KeyPair::generate().unwrap());
    named(names).signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().to_vec()
}

/// The rules of Keystone's guide: an authority that says all, and one that says ids only.
fn guide() -> Value {
    let subject = |key: &str| json!({"type": format!("SSL_CLIENT_SUBJECT_DN_{key}")});
    let issuer = |name: &str| json!({"type": "SSL_CLIENT_ISSUER_DN_CN", "any_one_of": [name]});
    json!([
        {
            "local": [{"user": {
                "name": "{0}", "id": "{1}", "email": "{2}", "domain": {"name": "{3}", "id": "{4}"},
            }}],
            "remote": [
                subject("CN"), subject("UID"), subject("EMAILADDRESS"), subject("O"), subject("DC"),
                issuer("root_a.openstack.host"),
            ],
        },
        {
            "local": [{"user": {"id": "{0}", "domain": {"id": "{1}"}}}],
            "remote": [subject("UID"), subject("DC"), issuer("root_b.openstack.host")],
        },
    ])
}

async fn map(world: &World, rules: Value) {
    let path = "/v3/OS-FEDERATION/mappings/oauth2_mapping";
    let body = json!({"mapping": {"rules": rules}});
    if world.admin.put(path, body.clone()).await.status == 409 {
        world.admin.patch(path, body).await.expect(200);
    }
}

/// A world with the guide's mapping, where demo has an address.
async fn world(config: Config) -> World {
    let world = World::with(config).await;
    map(&world, guide()).await;
    let email = json!({"user": {"email": "demo@cloud.test"}});
    world.admin.patch(&format!("/v3/users/{}", world.demo), email).await.expect(200);
    world
}

async fn ask(client: &Client, form: String) -> Answer {
    let call = client.call(Method::POST, "/v3/OS-OAUTH2/token");
    call.header("content-type", "application/x-www-form-urlencoded").bytes(form).send().await
}

impl World {
    /// Anybody, with demo's certificate.
    fn holder(&self) -> Client {
        let id = self.demo.to_string();
        self.anyone
            .with_certificate(&certificate("root_b.openstack.host", &[("UID", &id), ("DC", "default")]))
    }

    async fn by_certificate(&self, holder: &Client, client: &str) -> Answer {
        let _ = self;
        ask(holder, format!("grant_type=client_credentials&client_id={client}")).await
    }

    /// Demo's token by the certificate of `holder`.
    async fn bound(&self, holder: &Client) -> String {
        self.by_certificate(holder, self.demo.as_str()).await.expect(200).text_at("/access_token")
    }
}

#[tokio::test]
async fn a_certificate_is_worth_a_token_of_the_default_project() {
    let world = world(config()).await;
    let id = world.demo.to_string();
    let all =
        [("CN", "demo"), ("UID", &id), ("EMAIL", "demo@cloud.test"), ("O", "Default"), ("DC", "default")];
    let holder = world.anyone.with_certificate(&certificate("root_a.openstack.host", &all));
    let answer = world.by_certificate(&holder, &id).await.expect(200);
    assert_eq!((answer.text_at("/token_type"), answer.at("/expires_in")), ("Bearer".into(), json!(3600)));
    assert_eq!(answer.header("cache-control"), "no-store");
    let shown = world.validate(&answer.text_at("/access_token")).await.expect(200);
    assert_eq!(shown.at("/token/methods"), json!(["oauth2_credential"]));
    assert_eq!(shown.text_at("/token/project/id"), world.demo_project.as_str());
    assert_eq!(shown.text_at("/token/user/id"), id);
    let thumbprint = shown.text_at("/token/oauth2_credential/x5t#S256");
    assert_eq!(thumbprint.len(), 44);
    // A secret beside it does not matter, as in Keystone; nor does what a header says.
    let form = format!("grant_type=client_credentials&client_id={id}&client_secret=x");
    ask(&holder.with_header("authorization", "Basic eDp5"), form).await.expect(200);
    let trail = world.admin.get("/v3/OS-ALLOD/audit_events?action=authenticate&outcome=success").await;
    let events = trail.expect(200).at("/audit_events");
    let told = events.as_array().unwrap().iter().find(|e| e["methods"] == json!(["oauth2_credential"]));
    let told = told.unwrap();
    assert_eq!(told["initiator"]["id"], id);
    assert_eq!(told["initiator"]["credential"]["x5t#S256"], thumbprint);
}

#[tokio::test]
async fn a_bound_token_is_nothing_without_its_certificate() {
    for token_provider in [TokenProvider::Fernet, TokenProvider::Jws] {
        let operator = Operator { token_provider, ..Operator::default() };
        let world = world(Config { operator, ..config() }).await;
        let (holder, other) = (world.holder(), world.holder());
        let token = world.bound(&holder).await;
        let path = format!("/v3/users/{}/projects", world.demo);
        // In every order: what is remembered of a token does not say who holds it.
        for _ in 0..2 {
            world.anyone.with_token(&token).get(&path).await.expect(401);
            other.with_token(&token).get(&path).await.expect(401);
            holder.with_token(&token).get(&path).await.expect(200);
            world.validate(&token).await.expect(200);
        }
        assert!(world.state.authenticator().authenticate(&token).await.is_err(), "over no connection at all");
        // As keystoneauth does first of all.
        let own = holder.with_token(&token).with_header("x-subject-token", &token);
        let shown = own.get("/v3/auth/tokens").await.expect(200);
        assert_eq!(shown.text_at("/token/project/id"), world.demo_project.as_str());
        let stolen = world.anyone.with_token(&token).with_header("x-subject-token", &token);
        stolen.get("/v3/auth/tokens").await.expect(401);
        stolen.delete("/v3/auth/tokens").await.expect(401);
        holder
            .with_token(&token)
            .with_header("x-subject-token", &token)
            .delete("/v3/auth/tokens")
            .await
            .expect(204);
        holder.with_token(&token).get(&path).await.expect(401);
        world.validate(&token).await.expect(404);
    }
}

#[tokio::test]
async fn what_is_made_of_a_bound_token_is_bound() {
    let world = world(config()).await;
    let holder = world.holder();
    let token = world.bound(&holder).await;
    let print = |answer: &Answer| answer.at("/token/oauth2_credential");
    let first = print(&world.validate(&token).await);
    let again = |client: &Client, scope: Value| {
        let identity = json!({"methods": ["token"], "token": {"id": token}});
        let (client, body) = (client.clone(), json!({"auth": {"identity": identity, "scope": scope}}));
        async move { client.post("/v3/auth/tokens", body).await }
    };
    world
        .state
        .ensure_assignment(&world.demo, "member", &identity::Place::Domain(base::DomainId::new("default")))
        .await
        .unwrap();
    for scope in
        [world.project_scope(&world.demo_project), json!("unscoped"), json!({"domain": {"id": "default"}})]
    {
        again(&world.anyone, scope.clone()).await.expect(404);
        again(&world.holder(), scope.clone()).await.expect(404);
        let made = again(&holder, scope.clone()).await.expect(201);
        assert_eq!(print(&made), first, "{scope}");
        assert_eq!(made.at("/token/methods"), json!(["token", "oauth2_credential"]));
        let made = made.header("x-subject-token").to_owned();
        assert_eq!(world.validate(&made).await.expect(200).at("/token/oauth2_credential"), first);
        world.anyone.with_token(&made).get("/v3/auth/projects").await.expect(401);
        holder.with_token(&made).get("/v3/auth/projects").await.expect(200);
    }
    again(&holder, json!({"system": {"all": true}})).await.expect(403);
    // Not together with what limits a token otherwise.
    let client = holder.with_token(&token);
    let body = json!({"application_credential": {"name": "robot", "roles": [{"name": "member"}]}});
    let path = format!("/v3/users/{}/application_credentials", world.demo);
    world.anyone.with_token(&token).post(&path, body.clone()).await.expect(401);
    let made = client.post(&path, body).await.expect(201);
    let robot = json!({
        "id": made.text_at("/application_credential/id"), "secret": made.text_at("/application_credential/secret"),
    });
    let body = json!({"identity": {
        "methods": ["token", "application_credential"], "application_credential": robot, "token": {"id": token},
    }});
    holder.post("/v3/auth/tokens", json!({"auth": body})).await.expect(403);
    let trust = json!({"trust": {
        "trustor_user_id": world.demo, "trustee_user_id": world.demo, "project_id": world.demo_project,
        "impersonation": false, "roles": [{"name": "member"}],
    }});
    let trust = client.post("/v3/OS-TRUST/trusts", trust).await.expect(201).text_at("/trust/id");
    again(&holder, json!({"OS-TRUST:trust": {"id": trust}})).await.expect(403);
}

#[tokio::test]
async fn a_bound_token_is_not_exchanged_for_one_that_is_not() {
    let world = world(config()).await;
    let body = json!({"client": {
        "name": "c", "redirect_uris": ["https://c.test/"],
        "grant_types": ["urn:ietf:params:oauth:grant-type:token-exchange"],
    }});
    let made = world.admin.post("/v3/OS-OIDC/clients", body).await.expect(201);
    let holder = world.holder();
    let exchange = |token: String| {
        let form = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&client_id={}&client_secret={}\
             &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token&subject_token={token}",
            made.text_at("/client/id"),
            made.text_at("/client/secret"),
        );
        let call = holder.call(Method::POST, "/oidc/token");
        call.header("content-type", "application/x-www-form-urlencoded").bytes(form).send()
    };
    let free = world.token("demo", world.project_scope(&world.demo_project)).await;
    exchange(free).await.expect(200);
    let refused = exchange(world.bound(&holder).await).await.expect(400);
    assert_eq!(refused.text_at("/error"), "invalid_grant");
}

#[tokio::test]
async fn certificates_of_others_are_refused() {
    let world = world(config()).await;
    let id = world.demo.to_string();
    let right: Vec<(&str, &str)> =
        vec![("CN", "demo"), ("UID", &id), ("EMAIL", "demo@cloud.test"), ("O", "Default"), ("DC", "default")];
    let try_it = |authority: &str, names: &[(&str, &str)], client: &str| {
        let holder = world.anyone.with_certificate(&certificate(authority, names));
        let form = format!("grant_type=client_credentials&client_id={client}");
        async move { ask(&holder, form).await }
    };
    let a = "root_a.openstack.host";
    try_it(a, &right, &id).await.expect(200);
    let told = |answer: Answer| {
        let answer = answer.expect(401);
        assert_eq!(
            answer.json(),
            json!({"error": "invalid_client", "error_description": "Client authentication failed."})
        );
        assert!(!answer.header("www-authenticate").is_empty());
    };
    // One name is another's, is missing, or is there in another case.
    for at in 0..right.len() {
        let kind = right[at].0;
        for other in ["", "other", "DEMO", "demo;x", "demo@cloud.test "] {
            let mut names = right.clone();
            names[at].1 = other;
            told(try_it(a, &names, &id).await);
        }
        let less: Vec<(&str, &str)> = right.iter().copied().filter(|(k, _)| *k != kind).collect();
        told(try_it(a, &less, &id).await);
    }
    // An authority without rules; a user who is another, is none, or is not named.
    told(try_it("root_c.openstack.host", &right, &id).await);
    told(try_it(a, &right, world.alt.as_str()).await);
    for nobody in ["", "no-such-user", &"x".repeat(300)] {
        told(try_it(a, &right, nobody).await);
    }
    let holder = world.anyone.with_certificate(&certificate(a, &right));
    told(ask(&holder, "grant_type=client_credentials".into()).await);
    told(
        ask(
            &world.anyone.with_certificate(b"no certificate"),
            format!("grant_type=client_credentials&client_id={id}"),
        )
        .await,
    );
    assert_eq!(ask(&holder, "client_id=x".into()).await.expect(400).text_at("/error"), "invalid_request");
    let other = ask(&holder, format!("grant_type=password&client_id={id}")).await.expect(400);
    assert_eq!(other.text_at("/error"), "unsupported_grant_type");
    let failures = world.admin.get("/v3/OS-ALLOD/audit_events?action=authenticate&outcome=failure").await;
    let failures = failures.expect(200).at("/audit_events");
    assert!(failures.as_array().unwrap().iter().any(|e| e["initiator"]["id"] == "no-such-user"));
}

#[tokio::test]
async fn users_who_may_not_be_clients_are_none() {
    let world = world(config()).await;
    let (holder, id) = (world.holder(), world.demo.to_string());
    let path = format!("/v3/users/{id}");
    let status = async || world.by_certificate(&holder, &id).await.status;
    let change = async |user: Value| {
        world.admin.patch(&path, json!({"user": user})).await.expect(200);
    };
    assert_eq!(status().await, 200);
    change(json!({"enabled": false})).await;
    assert_eq!(status().await, 401);
    change(json!({"enabled": true, "default_project_id": null})).await;
    assert_eq!(status().await, 401);
    change(json!({"default_project_id": world.alt_project})).await;
    assert_eq!(status().await, 401, "no role there");
    change(json!({"default_project_id": world.demo_project})).await;
    assert_eq!(status().await, 200);
    // Second factors are not gone around; a rule may say that the certificate is enough.
    for (rules, expected) in
        [(json!([["password", "totp"]]), 401), (json!([["password", "totp"], ["oauth2_credential"]]), 200)]
    {
        change(json!({"options": {"multi_factor_auth_enabled": true, "multi_factor_auth_rules": rules}}))
            .await;
        assert_eq!(status().await, expected, "{rules}");
    }
    // What was got goes with the right, as every token.
    let token = world.bound(&holder).await;
    world.validate(&token).await.expect(200);
    change(json!({"enabled": false})).await;
    world.validate(&token).await.expect(404);
    change(json!({"enabled": true})).await;
    world.validate(&token).await.expect(404);
}

#[tokio::test]
async fn a_mapping_must_be_there_and_name_the_user() {
    let none = World::new().await;
    let id = none.demo.to_string();
    let holder = none.holder();
    none.by_certificate(&holder, &id).await.expect(401);
    let subject = json!([{"type": "SSL_CLIENT_SUBJECT_DN_UID"}]);
    for (user, status) in [
        (json!({}), 401),
        (json!({"email": "x"}), 401),
        (json!({"domain": {"id": "default"}}), 401),
        (json!({"name": "demo"}), 200),
        (json!({"name": "demo", "type": "local"}), 200),
        (json!({"name": "demo", "domain": {"name": "Default"}}), 200),
        (json!({"name": "demo", "domain": {"name": "default"}}), 401),
        (json!({"name": "demo", "domain": {"id": "default", "name": "Other"}}), 401),
        (json!({"id": "{0}"}), 200),
        (json!({"id": "{0}", "email": "x"}), 401),
    ] {
        map(&none, json!([{"local": [{"user": user}], "remote": subject}])).await;
        none.by_certificate(&holder, &id).await.expect(status);
    }
    map(&none, json!([{"local": [{"group": {"id": "g"}}], "remote": subject}])).await;
    none.by_certificate(&holder, &id).await.expect(401);
    // Another mapping, if the operator says so.
    let oauth2 = OAuth2 { mapping: "ours".into(), ..OAuth2::default() };
    let operator = Operator { oauth2, ..Operator::default() };
    let world = world(Config { operator, ..config() }).await;
    let (id, holder) = (world.demo.to_string(), world.holder());
    world.by_certificate(&holder, &id).await.expect(401);
    let body = json!({"mapping": {"rules": guide()}});
    world.admin.put("/v3/OS-FEDERATION/mappings/ours", body).await.expect(201);
    world.by_certificate(&holder, &id).await.expect(200);
}

#[tokio::test]
async fn who_fails_too_often_waits() {
    let world = world(config()).await;
    let from = |last: u8| {
        let address = std::net::IpAddr::from([192, 0, 2, last]);
        let router = world.router.clone().layer(axum::Extension(api::Peer(address)));
        let id = world.demo.to_string();
        let names = [("UID", id.as_str()), ("DC", "default")];
        Client::new(router).with_certificate(&certificate("root_b.openstack.host", &names))
    };
    let (attacker, other) = (from(1), from(2));
    let mut waits = false;
    for _ in 0..110 {
        waits |= world.by_certificate(&attacker, world.alt.as_str()).await.status == 429;
    }
    assert!(waits);
    world.by_certificate(&attacker, world.demo.as_str()).await.expect(429);
    world.by_certificate(&other, world.demo.as_str()).await.expect(200);
}

#[tokio::test]
async fn nobody_is_vouched_for_by_a_bound_token_without_its_certificate() {
    let world = world(config()).await;
    let holder = world.holder();
    let body = crate::saml::asked(&world.bound(&holder).await, "second");
    // The token is looked at before anything else.
    for (client, words) in [(&holder, "Service Provider: second."), (&world.anyone, "token:")] {
        let answer = client.post("/v3/auth/OS-FEDERATION/saml2", body.clone()).await.expect(404);
        let told = answer.text_at("/error/message");
        assert!(told.starts_with(&format!("Could not find {words}")), "{told}");
    }
}
