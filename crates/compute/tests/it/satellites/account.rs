//! The tests every operation owes.

use api::dialect;
use api::testing::Suite;
use serde_json::{Value, json};

use super::{Lab, keypairs::ED25519};

/// The first parts of the paths of these resources.
const PARTS: &[&str] = &[
    "extensions",
    "flavors",
    "limits",
    "os-aggregates",
    "os-availability-zone",
    "os-hypervisors",
    "os-keypairs",
    "os-migrations",
    "os-quota-class-sets",
    "os-quota-sets",
    "os-server-external-events",
    "os-server-groups",
    "os-services",
    "os-simple-tenant-usage",
];

fn mine(path: &str) -> bool {
    path.split('/').nth(2).is_some_and(|part| PARTS.contains(&part))
}

struct Calls {
    suite: Suite,
    server: String,
    host: String,
    number: Value,
}

impl Calls {
    fn as_(&self, token: &str, version: &str) -> api::testing::Client {
        self.suite.client().with_token(token).at(&format!("compute {version}"))
    }

    fn foreign(&self, version: &str) -> api::testing::Client {
        self.suite.client().foreign("member:p2:u2").at(&format!("compute {version}"))
    }

    /// Every call as a stranger, who must get nothing, then as whoever may.
    async fn both(&self, token: &str, version: &str, method: &str, path: &str, body: Value, status: u16) {
        let method: api::Method = method.parse().unwrap();
        let stranger = self.foreign(version).call(method.clone(), path).json(&body).send().await;
        assert!(
            [403, 404].contains(&stranger.status),
            "{method} {path}: {} {}",
            stranger.status,
            stranger.text()
        );
        let _ = self.as_(token, version).call(method, path).json(&body).send().await.expect(status);
    }

    async fn admin(&self, version: &str, method: &str, path: &str, body: Value, status: u16) {
        self.both("admin", version, method, path, body, status).await;
    }
}

async fn flavors(calls: &Calls) {
    let admin = calls.as_("admin", "2.96");
    let private = json!({"flavor": {
        "name": "f", "id": "f1", "ram": 64, "vcpus": 1, "disk": 0, "os-flavor-access:is_public": false,
    }});
    let _ = admin.post("/v2.1/flavors", private).await.expect(200);
    let _ = admin.get("/v2.1/flavors").await.expect(200);
    let _ = admin.get("/v2.1/flavors/detail").await.expect(200);
    for (method, tail, body, status) in [
        ("GET", "", Value::Null, 200),
        ("PUT", "", json!({"flavor": {"description": "d"}}), 200),
        ("POST", "/os-extra_specs", json!({"extra_specs": {"k": "v"}}), 200),
        ("GET", "/os-extra_specs", Value::Null, 200),
        ("PUT", "/os-extra_specs/k", json!({"k": "w"}), 200),
        ("GET", "/os-extra_specs/k", Value::Null, 200),
        ("DELETE", "/os-extra_specs/k", Value::Null, 200),
        ("POST", "/action", json!({"addTenantAccess": {"tenant": "p1"}}), 200),
        ("GET", "/os-flavor-access", Value::Null, 200),
        ("POST", "/action", json!({"removeTenantAccess": {"tenant": "p1"}}), 200),
        ("DELETE", "", Value::Null, 202),
    ] {
        calls.admin("2.96", method, &format!("/v2.1/flavors/f1{tail}"), body, status).await;
    }
}

async fn keys_and_groups(calls: &Calls) {
    let own = calls.as_("member:p1:u1", "2.96");
    let key = json!({"keypair": {"name": "k", "public_key": ED25519}});
    let _ = own.post("/v2.1/os-keypairs", key).await.expect(201);
    let _ = own.get("/v2.1/os-keypairs").await.expect(200);
    let group = json!({"server_group": {"name": "g", "policy": "affinity"}});
    let group = own.post("/v2.1/os-server-groups", group).await.expect(200).text_at("/server_group/id");
    let _ = own.get("/v2.1/os-server-groups").await.expect(200);
    for path in ["/v2.1/os-keypairs/k".to_owned(), format!("/v2.1/os-server-groups/{group}")] {
        calls.both("member:p1:u1", "2.96", "GET", &path, Value::Null, 200).await;
        calls.both("member:p1:u1", "2.96", "DELETE", &path, Value::Null, 204).await;
    }
}

async fn limits(calls: &Calls) {
    let own = calls.as_("member:p1", "2.96");
    let _ = own.get("/v2.1/limits").await.expect(200);
    let path = "/v2.1/os-quota-sets/p1";
    // Default limits are no secret.
    let _ = calls.foreign("2.96").get(&format!("{path}/defaults")).await.expect(200);
    calls.both("member:p1", "2.96", "GET", path, Value::Null, 200).await;
    calls.both("member:p1", "2.96", "GET", &format!("{path}/detail"), Value::Null, 200).await;
    calls.admin("2.96", "PUT", path, json!({"quota_set": {"cores": 1}}), 200).await;
    calls.admin("2.96", "DELETE", path, Value::Null, 202).await;
    let class = "/v2.1/os-quota-class-sets/default";
    calls.admin("2.96", "GET", class, Value::Null, 200).await;
    calls.admin("2.96", "PUT", class, json!({"quota_class_set": {"cores": 1}}), 200).await;
    calls.both("reader:p1", "2.96", "GET", "/v2.1/os-simple-tenant-usage/p1", Value::Null, 200).await;
    let admin = calls.as_("admin", "2.96");
    let _ = admin.get("/v2.1/os-simple-tenant-usage").await.expect(200);
}

async fn hosts(calls: &Calls) {
    let admin = calls.as_("admin", "2.96");
    for path in ["os-hypervisors", "os-hypervisors/detail", "os-services", "os-aggregates", "os-migrations"] {
        let _ = admin.get(&format!("/v2.1/{path}")).await.expect(200);
    }
    for path in ["os-availability-zone", "os-availability-zone/detail", "extensions"] {
        let _ = admin.get(&format!("/v2.1/{path}")).await.expect(200);
    }
    let _ = calls.foreign("2.96").get("/v2.1/extensions/os-services").await.expect(200);
    let _ = calls.as_("admin", "2.87").get("/v2.1/os-hypervisors/statistics").await.expect(200);
    let hypervisor = format!("/v2.1/os-hypervisors/{}", calls.host);
    calls.admin("2.96", "GET", &hypervisor, Value::Null, 200).await;
    calls.admin("2.87", "GET", &format!("{hypervisor}/uptime"), Value::Null, 501).await;
    calls.admin("2.52", "GET", "/v2.1/os-hypervisors/host/search", Value::Null, 200).await;
    calls.admin("2.52", "GET", "/v2.1/os-hypervisors/host/servers", Value::Null, 200).await;
    let event = json!({"events": [{"name": "network-changed", "server_uuid": calls.server}]});
    let _ = admin.post("/v2.1/os-server-external-events", event).await.expect(200);
    let _ = admin.post("/v2.1/os-aggregates", json!({"aggregate": {"name": "a"}})).await.expect(200);
    for (method, tail, body) in [
        ("GET", "", Value::Null),
        ("PUT", "", json!({"aggregate": {"name": "b"}})),
        ("POST", "/action", json!({"add_host": {"host": "host-1"}})),
        ("POST", "/action", json!({"set_metadata": {"metadata": {"k": "v"}}})),
        ("POST", "/action", json!({"remove_host": {"host": "host-1"}})),
        ("DELETE", "", Value::Null),
    ] {
        calls.admin("2.96", method, &format!("/v2.1/os-aggregates/1{tail}"), body, 200).await;
    }
    let service = format!("/v2.1/os-services/{}", calls.host);
    calls.admin("2.96", "PUT", &service, json!({"status": "disabled"}), 200).await;
    for (verb, body) in [
        ("enable", json!({"host": "host-1", "binary": "nova-compute"})),
        ("disable", json!({"host": "host-1", "binary": "nova-compute"})),
        ("disable-log-reason", json!({"host": "host-1", "binary": "nova-compute", "disabled_reason": "r"})),
        ("force-down", json!({"host": "host-1", "binary": "nova-compute", "forced_down": true})),
    ] {
        calls.admin("2.52", "PUT", &format!("/v2.1/os-services/{verb}"), body, 200).await;
    }
    let idle = format!("/v2.1/os-services/{}", calls.number);
    calls.admin("2.52", "DELETE", &idle, Value::Null, 204).await;
}

#[tokio::test]
async fn every_operation_has_its_account() {
    let lab = Lab::new().await;
    let (busy, _) = (lab.host(1).await, lab.host(2).await);
    let server = lab.server(1, |s| s.host_id = Some(busy.id)).await;
    let list = lab.at("admin", "2.52").get("/v2.1/os-services").await.expect(200).at("/services");
    let idle = list.as_array().unwrap().iter().find(|s| s["host"] == "host-2").unwrap()["id"].clone();
    let mut ops = compute::ops();
    ops.retain(|op| mine(&op.info().path));
    let suite = Suite::new(&dialect::NOVA, lab.router.clone(), &ops);
    let mut calls = Calls { suite, server: server.id.to_string(), host: busy.id.to_string(), number: idle };
    flavors(&calls).await;
    keys_and_groups(&calls).await;
    limits(&calls).await;
    hosts(&calls).await;
    let suite = &mut calls.suite;
    suite.sample("POST /v2.1/flavors", json!({"flavor": {"name": "n", "ram": 1, "vcpus": 1, "disk": 0}}));
    suite.sample("POST /v2.1/os-keypairs", json!({"keypair": {"name": "n", "public_key": ED25519}}));
    suite.sample("POST /v2.1/os-server-groups", json!({"server_group": {"name": "n", "policy": "affinity"}}));
    suite.sample("PUT /v2.1/os-quota-sets/{project_id}", json!({"quota_set": {"cores": 1}}));
    suite.sample("PUT /v2.1/os-quota-class-sets/{name}", json!({"quota_class_set": {"cores": 1}}));
    suite.sample("POST /v2.1/os-aggregates", json!({"aggregate": {"name": "n"}}));
    suite.sample("PUT /v2.1/os-aggregates/{id}", json!({"aggregate": {"name": "n"}}));
    for verb in ["enable", "disable"] {
        let op = format!("PUT /v2.1/os-services/{verb}");
        suite.sample(&op, json!({"host": "h", "binary": "nova-compute"}));
    }
    suite.excuse_happy(
        "GET /v2.1/os-hypervisors/{id}/uptime",
        "agents do not tell how long their host runs; answered 501 as by Nova's drivers that do not",
    );
    for op in [
        "GET /v2.1/os-quota-sets/{project_id}",
        "GET /v2.1/os-quota-sets/{project_id}/detail",
        "GET /v2.1/os-quota-sets/{project_id}/defaults",
        "PUT /v2.1/os-quota-sets/{project_id}",
        "DELETE /v2.1/os-quota-sets/{project_id}",
        "GET /v2.1/os-simple-tenant-usage/{project_id}",
    ] {
        suite.excuse_path(op, "projects are another service's: any text may be one");
    }
    for op in ["GET /v2.1/os-quota-class-sets/{name}", "PUT /v2.1/os-quota-class-sets/{name}"] {
        suite.excuse_path(op, "a class may have any name");
    }
    for op in ["GET /v2.1/os-hypervisors/{id}/search", "GET /v2.1/os-hypervisors/{id}/servers"] {
        suite.excuse_path(op, "a part of a name: '-1' is one of 'host-1'");
    }
    suite.paged(&[
        "GET /v2.1/flavors",
        "GET /v2.1/flavors/detail",
        "GET /v2.1/os-keypairs",
        "GET /v2.1/os-server-groups",
        "GET /v2.1/os-hypervisors",
        "GET /v2.1/os-hypervisors/detail",
        "GET /v2.1/os-migrations",
        "GET /v2.1/os-simple-tenant-usage",
    ]);
    for path in ["flavors/detail?is_public=None", "os-aggregates", "os-server-groups?all_projects=1"] {
        suite.watch("admin", &format!("/v2.1/{path}"));
    }
    suite.check().await.assert_complete();
}
