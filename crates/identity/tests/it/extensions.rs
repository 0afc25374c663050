//! Calls of the operations beside users, projects and roles, for the coverage test.

use api::Method;
use api::testing::Client;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha1::Sha1;

use crate::world::World;

/// Method, path, body, expected status.
pub type Row = (Method, String, Option<Value>, u16);

/// base64 of the HMAC-SHA1 of a text: versions 0 and 1 of AWS' signatures.
pub fn signed(secret: &str, text: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// The body of `POST /v3/s3tokens`.
pub fn s3_request(access: &str, secret: &str) -> Value {
    let text = "GET\n\n\nThu, 17 Nov 2005 18:49:58 GMT\n/bucket/key";
    json!({"credentials": {
        "access": access, "token": URL_SAFE.encode(text), "signature": signed(secret, text),
    }})
}

/// The body of `POST /v3/ec2tokens`.
pub fn ec2_request(access: &str, secret: &str, at: &str) -> Value {
    json!({"credentials": {
        "access": access, "signature": signed(secret, &format!("Run{at}")), "host": "h", "verb": "GET", "path": "/",
        "params": {"SignatureVersion": "0", "Action": "Run", "Timestamp": at},
    }})
}

fn get(path: impl Into<String>) -> Row {
    (Method::GET, path.into(), None, 200)
}

fn delete(path: impl Into<String>) -> Row {
    (Method::DELETE, path.into(), None, 204)
}

fn patch(path: impl Into<String>, body: Value) -> Row {
    (Method::PATCH, path.into(), Some(body), 200)
}

/// What the administrator does and nobody else may.
pub async fn rows(admin: &Client, domain: &str, project: &str) -> Vec<Row> {
    let make = |path: &'static str, kind: &'static str, body: Value| {
        let admin = admin.clone();
        async move {
            let answer = admin.post(path, body).await.expect(201);
            answer.text_at(&format!("/{kind}/id"))
        }
    };
    let service = make("/v3/services", "service", json!({"service": {"type": "ext"}})).await;
    let endpoint = json!({"endpoint": {"service_id": service, "interface": "public", "url": "http://ext"}});
    let endpoint = make("/v3/endpoints", "endpoint", endpoint).await;
    let region = make("/v3/regions", "region", json!({"region": {"id": "ext"}})).await;
    let limit = json!({"service_id": service, "resource_name": "cores", "default_limit": 5});
    let registered =
        make("/v3/registered_limits", "registered_limits/0", json!({"registered_limits": [limit]})).await;
    let limit =
        json!({"service_id": service, "resource_name": "cores", "resource_limit": 3, "project_id": project});
    let limit = make("/v3/limits", "limits/0", json!({"limits": [limit]})).await;
    let policy = make("/v3/policies", "policy", json!({"policy": {"type": "t", "blob": "{}"}})).await;
    let group = json!({"endpoint_group": {"name": "g", "filters": {"interface": "public"}}});
    let group = make("/v3/OS-EP-FILTER/endpoint_groups", "endpoint_group", group).await;
    let consumer =
        make("/v3/OS-OAUTH1/consumers", "consumer", json!({"consumer": {"description": "d"}})).await;
    let mut rows = vec![
        get("/v3/policies"),
        get("/v3/OS-EP-FILTER/endpoint_groups"),
        get("/v3/OS-OAUTH1/consumers"),
        get("/v3/OS-REVOKE/events"),
        get("/v3/OS-TRUST/trusts"),
        get("/v3/OS-ALLOD/audit_events"),
        get(format!("/v3/limits/{limit}")),
        get(format!("/v3/registered_limits/{registered}")),
        patch(format!("/v3/limits/{limit}"), json!({"limit": {"resource_limit": 4}})),
        delete(format!("/v3/limits/{limit}")),
        patch(
            format!("/v3/registered_limits/{registered}"),
            json!({"registered_limit": {"default_limit": 6}}),
        ),
        delete(format!("/v3/registered_limits/{registered}")),
    ];
    let one = format!("/v3/policies/{policy}");
    for tail in [
        format!("endpoints/{endpoint}"),
        format!("services/{service}"),
        format!("services/{service}/regions/{region}"),
    ] {
        let path = format!("{one}/OS-ENDPOINT-POLICY/{tail}");
        rows.push((Method::PUT, path.clone(), None, 204));
        rows.push((Method::GET, path.clone(), None, 204));
        if tail.starts_with("endpoints") {
            rows.push(get(format!("{one}/OS-ENDPOINT-POLICY/endpoints")));
            rows.push(get(format!("/v3/endpoints/{endpoint}/OS-ENDPOINT-POLICY/policy")));
        }
        rows.push(delete(path));
    }
    rows.extend([get(&one), patch(&one, json!({"policy": {"type": "u"}})), delete(one)]);
    let filter = "/v3/OS-EP-FILTER";
    let of_group = format!("{filter}/endpoint_groups/{group}");
    rows.extend([
        get(&of_group),
        patch(&of_group, json!({"endpoint_group": {"description": "d"}})),
        get(format!("{of_group}/endpoints")),
        (Method::PUT, format!("{of_group}/projects/{project}"), None, 204),
        get(format!("{of_group}/projects/{project}")),
        get(format!("{of_group}/projects")),
        get(format!("{filter}/projects/{project}/endpoint_groups")),
        (Method::PUT, format!("{filter}/projects/{project}/endpoints/{endpoint}"), None, 204),
        (Method::GET, format!("{filter}/projects/{project}/endpoints/{endpoint}"), None, 204),
        get(format!("{filter}/projects/{project}/endpoints")),
        get(format!("{filter}/endpoints/{endpoint}/projects")),
        delete(format!("{filter}/projects/{project}/endpoints/{endpoint}")),
        delete(format!("{of_group}/projects/{project}")),
        delete(of_group),
    ]);
    let one = format!("/v3/OS-OAUTH1/consumers/{consumer}");
    rows.extend([get(&one), patch(&one, json!({"consumer": {"description": "e"}})), delete(one)]);
    let config = format!("/v3/domains/{domain}/config");
    let ldap = json!({"config": {"ldap": {"url": "ldap://h"}, "identity": {"driver": "ldap"}}});
    rows.extend([
        (Method::PUT, config.clone(), Some(ldap.clone()), 201),
        get(&config),
        get(format!("{config}/ldap")),
        get(format!("{config}/ldap/url")),
        patch(&config, ldap),
        patch(format!("{config}/ldap"), json!({"config": {"ldap": {"url": "ldap://i"}}})),
        patch(format!("{config}/ldap/url"), json!({"config": {"url": "ldap://j"}})),
        delete(format!("{config}/ldap/url")),
        delete(format!("{config}/identity")),
        delete(config),
        get("/v3/domains/config/default"),
        get("/v3/domains/config/ldap/default"),
        get("/v3/domains/config/ldap/url/default"),
    ]);
    rows.extend([
        delete(format!("/v3/endpoints/{endpoint}")),
        delete(format!("/v3/services/{service}")),
        delete(format!("/v3/regions/{region}")),
    ]);
    rows
}

/// What a user does with what is the user's own, and a foreign one may not.
pub async fn own(world: &World, anyone: &Client, admin: &Client, demo: &Client, foreign: &Client) {
    let boss = admin.get("/v3/users?name=admin").await.expect(200).text_at("/users/0/id");
    let (user, project) = (world.demo.as_str(), world.demo_project.as_str());
    let trust = json!({"trust": {
        "trustor_user_id": user, "trustee_user_id": boss, "project_id": project, "impersonation": true,
        "roles": [{"name": "member"}],
    }});
    foreign.post("/v3/OS-TRUST/trusts", trust.clone()).await.expect(403);
    let made = demo.post("/v3/OS-TRUST/trusts", trust).await.expect(201);
    let one = format!("/v3/OS-TRUST/trusts/{}", made.text_at("/trust/id"));
    let role = format!("{one}/roles/{}", made.text_at("/trust/roles/0/id"));
    for path in [one.clone(), format!("{one}/roles"), role] {
        foreign.get(&path).await.expect(403);
        demo.get(&path).await.expect(200);
    }
    demo.get(&format!("/v3/OS-TRUST/trusts?trustor_user_id={user}")).await.expect(200);
    foreign.get(&format!("/v3/OS-TRUST/trusts?trustor_user_id={user}")).await.expect(403);
    foreign.delete(&one).await.expect(403);
    demo.delete(&one).await.expect(204);

    let cert = json!({"credential": {"type": "cert", "blob": "secret", "user_id": user}});
    foreign.post("/v3/credentials", cert.clone()).await.expect(403);
    let one = demo.post("/v3/credentials", cert).await.expect(201).text_at("/credential/id");
    let one = format!("/v3/credentials/{one}");
    demo.get("/v3/credentials").await.expect(200);
    let change = json!({"credential": {"blob": "other"}});
    foreign.get(&one).await.expect(403);
    foreign.patch(&one, change.clone()).await.expect(403);
    foreign.delete(&one).await.expect(403);
    demo.get(&one).await.expect(200);
    demo.patch(&one, change).await.expect(200);
    demo.delete(&one).await.expect(204);

    let all = format!("/v3/users/{user}/credentials/OS-EC2");
    foreign.post(&all, json!({"tenant_id": project})).await.expect(403);
    let keys = demo.post(&all, json!({"tenant_id": project})).await.expect(201);
    let (access, secret) = (keys.text_at("/credential/access"), keys.text_at("/credential/secret"));
    let one = format!("{all}/{access}");
    for path in [&all, &one] {
        foreign.get(path).await.expect(403);
        demo.get(path).await.expect(200);
    }
    let now = world.now();
    for (path, body) in [
        ("/v3/s3tokens", s3_request(&access, &secret)),
        ("/v3/ec2tokens", ec2_request(&access, &secret, &now)),
    ] {
        foreign.post(path, body.clone()).await.expect(403);
        let token = admin.post(path, body).await.expect(200);
        assert_eq!(token.text_at("/token/user/id"), user, "{path}");
    }
    foreign.delete(&one).await.expect(403);
    demo.delete(&one).await.expect(204);

    crate::oauth1::admit(world, project, "member").await;
    let (program, access) = crate::oauth1::given(world, admin, anyone, project, &["member"]).await;
    let asked = program.ask(project).await;
    let authorize = format!("/v3/OS-OAUTH1/authorize/{}", asked.key);
    foreign.put(&authorize, json!({"roles": [{"name": "member"}]})).await.expect(403);
    let all = format!("/v3/users/{boss}/OS-OAUTH1/access_tokens");
    let one = format!("{all}/{}", access.key);
    let role = format!("{one}/roles/{}", world.role("member").await);
    for path in [all, one.clone(), format!("{one}/roles"), role] {
        foreign.get(&path).await.expect(403);
        admin.get(&path).await.expect(200);
    }
    foreign.delete(&one).await.expect(403);
    admin.delete(&one).await.expect(204);

    let credential = json!({"application_credential": {"name": "oauth"}});
    let path = format!("/v3/users/{user}/application_credentials");
    let made = demo.post(&path, credential).await.expect(201);
    let form = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}",
        made.text_at("/application_credential/id"),
        made.text_at("/application_credential/secret")
    );
    let answer = anyone
        .call(Method::POST, "/v3/OS-OAUTH2/token")
        .header("content-type", "application/x-www-form-urlencoded")
        .bytes(form)
        .send()
        .await
        .expect(200);
    let token = answer.text_at("/access_token");
    assert_eq!(world.validate(&token).await.expect(200).text_at("/token/user/id"), user);
}
