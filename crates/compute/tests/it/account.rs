//! The tests every operation on servers owes: with success, as a foreign tenant, without a token, malformed.

use api::dialect;
use api::testing::{Client, Suite};
use serde_json::{Value, json};

use crate::world::World;

fn mine(path: &str) -> bool {
    matches!(path, "/" | "/v2" | "/v2.1") || path.starts_with("/v2.1/servers")
}

struct Calls {
    suite: Suite,
}

impl Calls {
    fn client(&self, token: &str) -> Client {
        self.suite.client().with_token(token).at("compute 2.96")
    }

    /// As a stranger, who must get a 404 (or 403 where only administrators may), then as whoever may.
    async fn both(&self, token: &str, method: &str, path: &str, body: Value, status: u16) {
        let method: api::Method = method.parse().unwrap();
        let stranger = self.suite.client().foreign("member:p2:u2").at("compute 2.96");
        let answer = stranger.call(method.clone(), path).json(&body).send().await;
        assert!([403, 404].contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
        let _ = self.client(token).call(method, path).json(&body).send().await.expect(status);
    }
}

/// What the cloud does not offer answers 501 after the server was found.
const UNBUILT: &[&str] = &[
    "createImage",
    "rebuild",
    "resize",
    "rescue",
    "unrescue",
    "shelve",
    "unshelve",
    "shelveOffload",
    "createBackup",
    "os-migrateLive",
    "trigger_crash_dump",
    "os-getVNCConsole",
    "os-getSPICEConsole",
    "os-getSerialConsole",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_on_servers_is_accounted_for() {
    let w = World::new(1).await;
    let ops: Vec<_> = compute::ops().into_iter().filter(|op| mine(&op.info().path)).collect();
    let calls = Calls { suite: Suite::new(&dialect::NOVA, w.router.clone(), &ops) };
    let member = "member:p1:u1";
    for path in ["/", "/v2", "/v2.1", "/v2.1/"] {
        let _ = calls.suite.client().get(path).await.expect(200);
    }
    let made = calls.client(member).post("/v2.1/servers", w.body("one")).await.expect(202);
    let id = made.text_at("/server/id");
    w.wait(&id, "ACTIVE").await;
    for path in ["/v2.1/servers", "/v2.1/servers/detail"] {
        let own = calls.client(member).get(path).await.expect(200);
        assert_eq!(own.at("/servers").as_array().unwrap().len(), 1);
        let foreign = calls.suite.client().foreign("member:p2:u2").get(path).await.expect(200);
        assert!(foreign.at("/servers").as_array().unwrap().is_empty());
    }
    let one = format!("/v2.1/servers/{id}");
    parts(&calls, &w, &one).await;
    actions(&calls, &w, &one, &id).await;
    w.wait(&id, "ACTIVE").await;
    let action = format!("{one}/action");
    for word in ["confirmResize", "revertResize"] {
        calls.both(member, "POST", &action, json!({word: null}), 409).await;
    }
    calls.both("admin:adm", "POST", &action, json!({"migrate": null}), 202).await;
    let none = Value::Null;
    calls.both(member, "DELETE", &one, none, 204).await;
    w.gone(&id).await;

    let mut suite = calls.suite;
    suite.token("admin:p1:u1");
    for action in UNBUILT {
        suite.excuse_happy(&format!("POST /v2.1/servers/{{id}}/action {action}"), "not offered: 501");
    }
    suite.excuse_happy("POST /v2.1/servers/{id}/remote-consoles", "not offered: 501");
    suite.excuse_happy("POST /v2.1/servers/{id}/action evacuate", "needs a lost host: see fencing.rs");
    for action in ["confirmResize", "revertResize"] {
        suite.excuse_happy(&format!("POST /v2.1/servers/{{id}}/action {action}"), "two hosts: see moving.rs");
    }
    suite.excuse_happy("POST /v2.1/servers/{id}/action changePassword", "no guest agent: 409");
    suite.excuse_happy("POST /v2.1/servers/{id}/action restore", "nothing is deleted softly: 409");
    suite.sample("POST /v2.1/servers", w.body("x"));
    suite.sample("PUT /v2.1/servers/{id}", json!({"server": {"name": "x", "description": "d"}}));
    suite.paged(&["GET /v2.1/servers", "GET /v2.1/servers/detail"]);
    suite.watch("admin:p1:u1", "/v2.1/servers/detail?all_tenants=1");
    suite.watch("admin:p1:u1", "/v2.1/limits");
    suite.check().await.assert_complete();
}

async fn parts(calls: &Calls, w: &World, one: &str) {
    let member = "member:p1:u1";
    let none = || Value::Null;
    calls.both(member, "GET", one, none(), 200).await;
    calls.both(member, "PUT", one, json!({"server": {"name": "two"}}), 200).await;
    let meta = format!("{one}/metadata");
    calls.both(member, "POST", &meta, json!({"metadata": {"a": "1"}}), 200).await;
    calls.both(member, "PUT", &meta, json!({"metadata": {"b": "2"}}), 200).await;
    calls.both(member, "GET", &meta, none(), 200).await;
    calls.both(member, "PUT", &format!("{meta}/c"), json!({"meta": {"c": "3"}}), 200).await;
    calls.both(member, "GET", &format!("{meta}/c"), none(), 200).await;
    calls.both(member, "DELETE", &format!("{meta}/c"), none(), 204).await;
    let tags = format!("{one}/tags");
    calls.both(member, "PUT", &tags, json!({"tags": ["red"]}), 200).await;
    calls.both(member, "GET", &tags, none(), 200).await;
    calls.both(member, "PUT", &format!("{tags}/blue"), none(), 201).await;
    calls.both(member, "GET", &format!("{tags}/blue"), none(), 204).await;
    calls.both(member, "DELETE", &format!("{tags}/blue"), none(), 204).await;
    calls.both(member, "DELETE", &tags, none(), 204).await;
    for (path, token) in [
        ("ips", member),
        ("ips/private", member),
        ("os-security-groups", member),
        ("os-server-password", member),
        ("topology", member),
        ("diagnostics", "admin:adm"),
        ("migrations", "admin:adm"),
        ("os-instance-actions", member),
    ] {
        calls.both(token, "GET", &format!("{one}/{path}"), none(), 200).await;
    }
    calls.both(member, "DELETE", &format!("{one}/os-server-password"), none(), 204).await;
    let list = calls.client(member).get(&format!("{one}/os-instance-actions")).await;
    let request = list.text_at("/instanceActions/0/request_id");
    calls.both(member, "GET", &format!("{one}/os-instance-actions/{request}"), none(), 200).await;
    let console = json!({"remote_console": {"protocol": "vnc", "type": "novnc"}});
    calls.both(member, "POST", &format!("{one}/remote-consoles"), console, 501).await;
    let ports = format!("{one}/os-interface");
    let port = w.nets.add_port("p1", w.network);
    let body = json!({"interfaceAttachment": {"port_id": port}});
    calls.both(member, "POST", &ports, body, 200).await;
    calls.both(member, "GET", &ports, none(), 200).await;
    calls.both(member, "GET", &format!("{ports}/{port}"), none(), 200).await;
    calls.both(member, "DELETE", &format!("{ports}/{port}"), none(), 202).await;
    let disks = format!("{one}/os-volume_attachments");
    let volume = w.vols.add("p1", w.hosts[0].0);
    let body = json!({"volumeAttachment": {"volumeId": volume}});
    calls.both(member, "POST", &disks, body.clone(), 200).await;
    w.until("in use", || async { w.vols.status(volume) == "in-use" }).await;
    calls.both(member, "GET", &disks, none(), 200).await;
    let disk = format!("{disks}/{volume}");
    calls.both(member, "GET", &disk, none(), 200).await;
    let keep = json!({"volumeAttachment": {"volumeId": volume, "delete_on_termination": true}});
    calls.both(member, "PUT", &disk, keep, 202).await;
    calls.both(member, "DELETE", &disk, none(), 202).await;
    w.until("available", || async { w.vols.status(volume) == "available" }).await;
}

async fn actions(calls: &Calls, w: &World, one: &str, id: &str) {
    let path = format!("{one}/action");
    let member = "member:p1:u1";
    for (action, body, status, then) in [
        ("os-stop", Value::Null, 202, "SHUTOFF"),
        ("os-start", Value::Null, 202, "ACTIVE"),
        ("pause", Value::Null, 202, "PAUSED"),
        ("unpause", Value::Null, 202, "ACTIVE"),
        ("suspend", Value::Null, 202, "SUSPENDED"),
        ("resume", Value::Null, 202, "ACTIVE"),
        ("reboot", json!({"type": "SOFT"}), 202, "ACTIVE"),
        ("lock", json!({"locked_reason": "because"}), 202, "ACTIVE"),
        ("unlock", Value::Null, 202, "ACTIVE"),
        ("os-getConsoleOutput", json!({"length": 1}), 200, "ACTIVE"),
        ("addSecurityGroup", json!({"name": "web"}), 202, "ACTIVE"),
        ("removeSecurityGroup", json!({"name": "web"}), 202, "ACTIVE"),
        ("changePassword", json!({"adminPass": "secret"}), 409, "ACTIVE"),
        ("restore", Value::Null, 409, "ACTIVE"),
    ] {
        calls.both(member, "POST", &path, json!({action: body}), status).await;
        w.wait(id, then).await;
    }
    calls.both("admin:adm", "POST", &path, json!({"os-resetState": {"state": "active"}}), 202).await;
    for action in UNBUILT {
        calls.both("admin:adm", "POST", &path, json!({*action: {}}), 501).await;
    }
    calls.both("admin:adm", "POST", &path, json!({"evacuate": {}}), 400).await;
    let other = w.boot("other").await;
    calls
        .both(member, "POST", &format!("/v2.1/servers/{other}/action"), json!({"forceDelete": null}), 202)
        .await;
    w.gone(&other).await;
}
