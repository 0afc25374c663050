//! Every operation: called with success, by a foreign tenant, and malformed.

use api::testing::Suite;
use api::{Method, dialect};
use serde_json::{Value, json};

use crate::world::password_of;

/// What the administrator makes, by kind.
struct Things {
    paths: Vec<(Method, String, Option<Value>, u16)>,
}

async fn things(admin: &api::testing::Client) -> Things {
    let make = |kind: &'static str, body: Value| {
        let admin = admin.clone();
        async move {
            let answer = admin.post(&format!("/v3/{kind}s"), json!({kind: body})).await.expect(201);
            answer.text_at(&format!("/{kind}/id"))
        }
    };
    let domain = make("domain", json!({"name": "suite"})).await;
    let user = make("user", json!({"name": "suite", "domain_id": domain})).await;
    let group = make("group", json!({"name": "suite", "domain_id": domain})).await;
    let project = make("project", json!({"name": "suite", "domain_id": domain})).await;
    let (role, implied) =
        (make("role", json!({"name": "one"})).await, make("role", json!({"name": "two"})).await);
    let service = make("service", json!({"type": "suite"})).await;
    let endpoint =
        make("endpoint", json!({"service_id": service, "interface": "public", "url": "http://suite"})).await;
    let region = make("region", json!({"id": "suite"})).await;
    let (get, put, patch, delete) = (Method::GET, Method::PUT, Method::PATCH, Method::DELETE);
    let mut paths: Vec<(Method, String, Option<Value>, u16)> = Vec::new();
    for list in [
        "users",
        "groups",
        "projects",
        "domains",
        "roles",
        "role_assignments",
        "role_inferences",
        "services",
        "endpoints",
        "regions",
        "limits",
        "limits/model",
        "registered_limits",
        "auth/projects",
        "auth/domains",
        "auth/system",
        "auth/catalog",
    ] {
        paths.push((get.clone(), format!("/v3/{list}"), None, 200));
    }
    let single = [
        ("user", &user),
        ("group", &group),
        ("project", &project),
        ("domain", &domain),
        ("role", &role),
        ("service", &service),
        ("endpoint", &endpoint),
        ("region", &region),
    ];
    for (kind, id) in single {
        paths.push((get.clone(), format!("/v3/{kind}s/{id}"), None, 200));
        paths.push((
            patch.clone(),
            format!("/v3/{kind}s/{id}"),
            Some(json!({kind: {"description": "d"}})),
            200,
        ));
    }
    for list in
        [format!("users/{user}/projects"), format!("users/{user}/groups"), format!("groups/{group}/users")]
    {
        paths.push((get.clone(), format!("/v3/{list}"), None, 200));
    }
    let member = format!("/v3/groups/{group}/users/{user}");
    let tags = format!("/v3/projects/{project}/tags");
    paths.extend([
        (put.clone(), member.clone(), None, 204),
        (get.clone(), member.clone(), None, 204),
        (delete.clone(), member, None, 204),
    ]);
    paths.extend([
        (put.clone(), tags.clone(), Some(json!({"tags": ["a"]})), 200),
        (get.clone(), tags.clone(), None, 200),
        (put.clone(), format!("{tags}/b"), None, 201),
        (get.clone(), format!("{tags}/b"), None, 204),
        (delete.clone(), format!("{tags}/b"), None, 204),
        (delete.clone(), tags, None, 204),
    ]);
    let implies = format!("/v3/roles/{role}/implies");
    paths.extend([
        (put.clone(), format!("{implies}/{implied}"), None, 201),
        (get.clone(), format!("{implies}/{implied}"), None, 200),
        (Method::HEAD, format!("{implies}/{implied}"), None, 204),
        (get.clone(), implies.clone(), None, 200),
        (delete.clone(), format!("{implies}/{implied}"), None, 204),
    ]);
    for actor in [format!("users/{user}"), format!("groups/{group}")] {
        for target in [format!("projects/{project}"), format!("domains/{domain}"), "system".to_owned()] {
            for (prefix, tail) in [("", ""), ("/OS-INHERIT", "/inherited_to_projects")] {
                if target == "system" && !prefix.is_empty() {
                    continue;
                }
                let base = format!("/v3{prefix}/{target}/{actor}/roles");
                paths.push((get.clone(), format!("{base}{tail}"), None, 200));
                let one = format!("{base}/{role}{tail}");
                paths.extend([
                    (put.clone(), one.clone(), None, 204),
                    (get.clone(), one.clone(), None, 204),
                    (delete.clone(), one, None, 204),
                ]);
            }
        }
    }
    paths.push((put.clone(), "/v3/regions/put".into(), Some(json!({"region": {}})), 201));
    paths.push((delete.clone(), "/v3/regions/put".into(), None, 204));
    paths.extend(federation(admin).await);
    for (kind, id) in [
        ("endpoint", &endpoint),
        ("service", &service),
        ("role", &role),
        ("group", &group),
        ("user", &user),
        ("project", &project),
    ] {
        paths.push((delete.clone(), format!("/v3/{kind}s/{id}"), None, 204));
    }
    paths.push((patch, format!("/v3/domains/{domain}"), Some(json!({"domain": {"enabled": false}})), 200));
    paths.push((delete, format!("/v3/domains/{domain}"), None, 204));
    Things { paths }
}

/// Identity providers and what belongs to them, clients of the OIDC provider.
async fn federation(admin: &api::testing::Client) -> Vec<(Method, String, Option<Value>, u16)> {
    let (get, put, patch, delete) = (Method::GET, Method::PUT, Method::PATCH, Method::DELETE);
    let client = json!({"client": {"name": "suite", "redirect_uris": ["https://suite.test/back"]}});
    let client = admin.post("/v3/OS-OIDC/clients", client).await.expect(201).text_at("/client/id");
    let base = "/v3/OS-FEDERATION";
    let rules = json!([{"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "sub"}]}]);
    let urls = json!({"auth_url": "https://suite.test/v3", "sp_url": "https://suite.test/sp"});
    let mut paths = Vec::new();
    for (one, key, body) in [
        (format!("{base}/identity_providers/suite"), "identity_provider", json!({"enabled": true})),
        (format!("{base}/mappings/suite"), "mapping", json!({"rules": rules})),
        (format!("{base}/identity_providers/suite/protocols/p"), "protocol", json!({"mapping_id": "suite"})),
        (format!("{base}/service_providers/suite"), "service_provider", urls),
    ] {
        let (list, _) = one.rsplit_once('/').unwrap();
        paths.extend([
            (put.clone(), one.clone(), Some(json!({key: body})), 201),
            (get.clone(), list.to_owned(), None, 200),
            (get.clone(), one.clone(), None, 200),
            (patch.clone(), one, Some(json!({key: body})), 200),
        ]);
    }
    for one in [
        "identity_providers/suite/protocols/p",
        "mappings/suite",
        "identity_providers/suite",
        "service_providers/suite",
    ] {
        paths.push((delete.clone(), format!("{base}/{one}"), None, 204));
    }
    let one = format!("/v3/OS-OIDC/clients/{client}");
    paths.extend([
        (get.clone(), "/v3/OS-OIDC/clients".to_owned(), None, 200),
        (get, one.clone(), None, 200),
        (patch, one.clone(), Some(json!({"client": {"name": "other"}})), 200),
        (delete, one, None, 204),
    ]);
    paths
}

/// What has its tests in `federation.rs`, and what of it is not Keystone's manner.
fn excuses(suite: &mut Suite) {
    const IDP: &str = "/v3/OS-FEDERATION/identity_providers/{idp_id}";
    for verb in ["PUT", "GET", "PATCH", "DELETE"] {
        suite.excuse_path(
            &format!("{verb} {IDP}"),
            "the id is chosen by the operator, and all of the body has a default",
        );
    }
    for verb in ["GET", "POST"] {
        suite.excuse_happy(
            &format!("{verb} {IDP}/protocols/{{protocol_id}}/auth"),
            "needs another cloud: see federation.rs",
        );
        for way in ["identity_providers/{idp_id}/protocols/{protocol_id}/websso", "websso/{protocol_id}"] {
            let op = format!("{verb} /v3/auth/OS-FEDERATION/{way}");
            suite.excuse_happy(&op, "needs a browser and another cloud: see federation.rs");
        }
        suite.excuse_happy(&format!("{verb} /oidc/userinfo"), "needs an access token: see federation.rs");
    }
    for gone in ["auth/tokens/OS-PKI/revoked", "OS-SIMPLE-CERT/ca", "OS-SIMPLE-CERT/certificates"] {
        suite.excuse_happy(&format!("GET /v3/{gone}"), "says that it is no more, as in Keystone");
    }
    suite.excuse_happy("GET /oidc/authorize", "needs a browser: see federation.rs");
    for path in ["authorize", "device_authorization", "device", "token"] {
        suite.excuse_happy(&format!("POST /oidc/{path}"), "takes a form: see federation.rs");
    }
}

fn samples(suite: &mut Suite) {
    for (kind, body, change) in [
        (
            "user",
            json!({"name": "n", "domain_id": "default", "password": "p", "enabled": true}),
            json!({"name": "n", "enabled": true}),
        ),
        ("group", json!({"name": "n", "domain_id": "default", "description": "d"}), json!({"name": "n"})),
        (
            "project",
            json!({"name": "n", "domain_id": "default", "enabled": true, "tags": ["t"]}),
            json!({"name": "n", "enabled": true}),
        ),
        ("domain", json!({"name": "n", "enabled": true}), json!({"name": "n", "enabled": true})),
        ("role", json!({"name": "n", "description": "d"}), json!({"name": "n"})),
        ("service", json!({"type": "t", "name": "n", "enabled": true}), json!({"name": "n"})),
        ("region", json!({"id": "r", "description": "d"}), json!({"description": "d"})),
    ] {
        suite.sample(&format!("POST /v3/{kind}s"), json!({kind: body}));
        suite.sample(&format!("PATCH /v3/{kind}s/{{{kind}_id}}"), json!({kind: change}));
    }
    let endpoint = json!({"service_id": "s", "interface": "public", "url": "http://h/", "enabled": true});
    suite.sample("POST /v3/endpoints", json!({"endpoint": endpoint}));
    suite.sample("PATCH /v3/endpoints/{endpoint_id}", json!({"endpoint": {"url": "http://h/"}}));
    suite.sample("PUT /v3/projects/{project_id}/tags", json!({"tags": ["t"]}));
    suite.sample(
        "POST /v3/users/{user_id}/password",
        json!({"user": {"password": "a", "original_password": "b"}}),
    );
    suite.sample(
        "POST /v3/users/{user_id}/application_credentials",
        json!({"application_credential": {"name": "n", "description": "d", "unrestricted": false}}),
    );
    let user = json!({"name": "n", "domain": {"name": "d"}, "password": "p"});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    let scope = json!({"project": {"name": "n", "domain": {"name": "d"}}});
    suite.sample("POST /v3/auth/tokens", json!({"auth": {"identity": identity, "scope": scope}}));
    suite.paged(&["GET /v3/users", "GET /v3/projects", "GET /v3/groups", "GET /v3/domains", "GET /v3/roles"]);
}

fn more_samples(suite: &mut Suite) {
    let limit = json!({"service_id": "s", "resource_name": "r", "default_limit": 1, "description": "d"});
    suite.sample("POST /v3/registered_limits", json!({"registered_limits": [limit]}));
    let limit = json!({"service_id": "s", "resource_name": "r", "resource_limit": 1, "project_id": "p"});
    suite.sample("POST /v3/limits", json!({"limits": [limit]}));
    suite.sample("PATCH /v3/limits/{limit_id}", json!({"limit": {"resource_limit": 1}}));
    suite.sample(
        "PATCH /v3/registered_limits/{registered_limit_id}",
        json!({"registered_limit": {"default_limit": 1, "resource_name": "r"}}),
    );
    let trust = json!({
        "trustor_user_id": "a", "trustee_user_id": "b", "impersonation": true, "project_id": "p",
        "roles": [{"id": "r"}], "remaining_uses": 1,
    });
    suite.sample("POST /v3/OS-TRUST/trusts", json!({"trust": trust}));
    let credential = json!({"type": "cert", "blob": "b", "user_id": "u", "project_id": "p"});
    suite.sample("POST /v3/credentials", json!({"credential": credential}));
    suite.sample("PATCH /v3/credentials/{credential_id}", json!({"credential": {"blob": "b"}}));
    suite.sample("POST /v3/users/{user_id}/credentials/OS-EC2", json!({"tenant_id": "p"}));
    suite.sample("POST /v3/policies", json!({"policy": {"type": "t", "blob": "b"}}));
    suite.sample("PATCH /v3/policies/{policy_id}", json!({"policy": {"type": "t"}}));
    let group = json!({"name": "n", "filters": {"interface": "public"}, "description": "d"});
    suite.sample("POST /v3/OS-EP-FILTER/endpoint_groups", json!({"endpoint_group": group}));
    suite.sample(
        "PATCH /v3/OS-EP-FILTER/endpoint_groups/{endpoint_group_id}",
        json!({"endpoint_group": {"name": "n"}}),
    );
    suite.sample("POST /v3/OS-OAUTH1/consumers", json!({"consumer": {"description": "d"}}));
    suite.sample("PATCH /v3/OS-OAUTH1/consumers/{consumer_id}", json!({"consumer": {"description": "d"}}));
    suite.sample("PUT /v3/OS-OAUTH1/authorize/{request_token_id}", json!({"roles": [{"name": "n"}]}));
    let config = json!({"config": {"ldap": {"url": "u"}}});
    suite.sample("PUT /v3/domains/{domain_id}/config", config.clone());
    suite.sample("PATCH /v3/domains/{domain_id}/config", config);
}

#[tokio::test]
async fn every_operation_is_accounted_for() {
    let world = crate::saml::vouching().await;
    let mut suite = Suite::new(&dialect::KEYSTONE, world.router.clone(), &identity::ops());
    suite.token(&world.admin_token);
    let anyone = suite.client();
    let admin = anyone.with_token(&world.admin_token);
    let demo = anyone.with_token(&world.token("demo", world.project_scope(&world.demo_project)).await);
    let alt_token = world.token("alt", world.project_scope(&world.alt_project)).await;
    let foreign = anyone.foreign(&alt_token);
    for path in ["/", "/v3", "/.well-known/openid-configuration", "/oidc/jwks", "/oidc/device"] {
        assert!(anyone.get(path).await.status < 400);
    }
    for path in ["auth/tokens/OS-PKI/revoked", "OS-SIMPLE-CERT/ca", "OS-SIMPLE-CERT/certificates"] {
        anyone.get(&format!("/v3/{path}")).await.expect(410);
    }
    for path in ["projects", "domains"] {
        demo.get(&format!("/v3/OS-FEDERATION/{path}")).await.expect(200);
    }
    let mut made = things(&admin).await;
    // Before the suite's own domain and project go.
    let domain = world.make_id("domain", json!({"name": "ext"})).await;
    let project = world.make_id("project", json!({"name": "ext", "domain_id": domain})).await;
    let more = crate::extensions::rows(&admin, &domain, &project).await;
    made.paths.extend(more);
    let allowed = ["limits", "registered_limits", "limits/model", "regions", "auth/"];
    let one_limit = |path: &str| path.starts_with("/v3/limits/") && path != "/v3/limits/model";
    for (method, path, body, status) in &made.paths {
        let send = |client: &api::testing::Client| {
            let call = client.call(method.clone(), path);
            match body {
                Some(body) => call.json(body),
                None => call,
            }
        };
        let answer = send(&foreign).send().await;
        let association = path.contains("OS-ENDPOINT-POLICY");
        let open = *method == Method::GET
            && !association
            && !one_limit(path)
            && allowed.iter().any(|a| path.contains(a));
        assert!(open || answer.status == 403, "{method} {path}: {} {}", answer.status, answer.text());
        let answer = send(&admin).send().await;
        assert_eq!(answer.status, *status, "{method} {path}: {}", answer.text());
    }
    // Tokens, passwords, application credentials.
    let who = json!({"name": "demo", "domain": {"id": "default"}, "password": password_of("demo")});
    let login = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": who}}}});
    let token = anyone.post("/v3/auth/tokens", login).await.expect(201).header("x-subject-token").to_owned();
    for method in [Method::GET, Method::HEAD, Method::DELETE] {
        let by = |client: &api::testing::Client| {
            client.with_header("x-subject-token", &token).call(method.clone(), "/v3/auth/tokens")
        };
        by(&foreign).send().await.expect(403);
        assert!(by(&demo).send().await.status < 300);
    }
    let credentials = format!("/v3/users/{}/application_credentials", world.demo);
    let rule = json!({"service": "compute", "method": "GET", "path": "/"});
    let body = json!({"application_credential": {"name": "suite", "access_rules": [rule]}});
    foreign.post(&credentials, body.clone()).await.expect(403);
    let credential = demo.post(&credentials, body).await.expect(201);
    let one = format!("{credentials}/{}", credential.text_at("/application_credential/id"));
    let rules = format!("/v3/users/{}/access_rules", world.demo);
    let rule = format!("{rules}/{}", credential.text_at("/application_credential/access_rules/0/id"));
    for path in [&credentials, &one, &rules, &rule] {
        foreign.get(path).await.expect(403);
        demo.get(path).await.expect(200);
    }
    for path in [&one, &rule] {
        foreign.delete(path).await.expect(403);
        demo.delete(path).await.expect(204);
    }
    let token = world.token("demo", world.project_scope(&world.demo_project)).await;
    for path in ["saml2", "saml2/ecp"] {
        let body = crate::saml::asked(&token, "second");
        anyone.post(&format!("/v3/auth/OS-FEDERATION/{path}"), body).await.expect(200);
        suite.sample(&format!("POST /v3/auth/OS-FEDERATION/{path}"), crate::saml::asked("t", "s"));
    }
    anyone.get("/v3/OS-FEDERATION/saml2/metadata").await.expect(200);
    crate::extensions::own(&world, &anyone, &admin, &demo, &foreign).await;
    let change = json!({"user": {"original_password": password_of("alt"), "password": "another-one"}});
    anyone.post(&format!("/v3/users/{}/password", world.alt), change).await.expect(204);
    samples(&mut suite);
    more_samples(&mut suite);
    excuses(&mut suite);
    suite.excuse_path("PUT /v3/regions/{region_id}", "the id of a region is chosen by the operator");
    for op in ["PATCH /v3/regions/{region_id}", "DELETE /v3/regions/{region_id}"] {
        suite.excuse_path(op, "the PUT before it has made regions of these names");
    }
    // Not domains: each identity provider brings one, and its id may be any text.
    for list in [
        "users",
        "projects",
        "groups",
        "roles",
        "services",
        "endpoints",
        "regions",
        "role_assignments",
        "policies",
        "limits",
        "registered_limits",
        "credentials",
        "OS-TRUST/trusts",
        "OS-EP-FILTER/endpoint_groups",
        "OS-OAUTH1/consumers",
    ] {
        suite.watch(&world.admin_token, &format!("/v3/{list}"));
    }
    suite.check().await.assert_complete();
}
