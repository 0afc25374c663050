//! Every operation, in both forms of its path: with success, by a foreign tenant, malformed.

use api::testing::{Client, Suite};
use serde_json::{Value, json};

use crate::lab::{FakeHost, Lab};

struct Walk<'a> {
    lab: &'a Lab,
    suite: &'a Suite,
    host: FakeHost,
    /// With the project in the path.
    long: bool,
}

impl Walk<'_> {
    fn path(&self, project: &str, rest: &str) -> String {
        if self.long { format!("/v3/{project}{rest}") } else { format!("/v3{rest}") }
    }

    fn own(&self) -> Client {
        self.suite.client().at("volume 3.71").with_token("member:p1")
    }

    fn other(&self) -> Client {
        self.suite.client().at("volume 3.71").foreign("member:p2")
    }

    fn admin(&self) -> Client {
        self.suite.client().at("volume 3.71").with_token("admin")
    }

    async fn get(&self, rest: &str) {
        let _ = self.own().get(&self.path("p1", rest)).await.expect(200);
    }

    async fn get_private(&self, rest: &str) {
        let _ = self.other().get(&self.path("p2", rest)).await.expect(404);
        self.get(rest).await;
    }

    async fn post(&self, rest: &str, body: Value) -> Value {
        let answer = self.own().post(&self.path("p1", rest), body).await;
        assert!(answer.status < 300, "{rest}: {}", answer.text());
        answer.json()
    }

    async fn post_private(&self, rest: &str, body: Value) -> Value {
        let _ = self.other().post(&self.path("p2", rest), body.clone()).await.expect(404);
        self.post(rest, body).await
    }

    async fn put_private(&self, rest: &str, body: Value) {
        let _ = self.other().put(&self.path("p2", rest), body.clone()).await.expect(404);
        let _ = self.own().put(&self.path("p1", rest), body).await.expect(200);
    }

    async fn delete_private(&self, rest: &str) {
        let _ = self.other().delete(&self.path("p2", rest)).await.expect(404);
        let answer = self.own().delete(&self.path("p1", rest)).await;
        assert!(answer.status < 300, "{rest}: {}", answer.text());
    }

    async fn admins(&self, method: &str, rest: &str, body: Value) -> Value {
        let path = self.path("admin-project", rest);
        let refused = self.path("p2", rest);
        let (admin, other) = (self.admin(), self.other());
        let (denied, answer) = match method {
            "GET" => (other.get(&refused).await, admin.get(&path).await),
            "PUT" => (other.put(&refused, body.clone()).await, admin.put(&path, body).await),
            "POST" => (other.post(&refused, body.clone()).await, admin.post(&path, body).await),
            _ => (other.delete(&refused).await, admin.delete(&path).await),
        };
        assert!(matches!(denied.status, 403 | 404), "{rest}: {}", denied.text());
        assert!(answer.status < 300, "{rest}: {}", answer.text());
        answer.json()
    }

    async fn done(&mut self) {
        self.lab.settle().await;
        self.host.turn(self.lab).await;
    }

    async fn volumes(&mut self) -> (String, String) {
        let made = self.post("/volumes", json!({"volume": {"size": 1, "name": "v"}})).await;
        let id = made["volume"]["id"].as_str().unwrap().to_owned();
        self.done().await;
        for rest in [
            "/volumes",
            "/volumes/detail",
            "/volumes/summary",
            "/limits",
            "/os-availability-zone",
            "/extensions",
        ] {
            self.get(rest).await;
        }
        let volume = format!("/volumes/{id}");
        self.get_private(&volume).await;
        self.put_private(&volume, json!({"volume": {"name": "w"}})).await;
        let action = format!("{volume}/action");
        let server = "6f3a5c1e-0d7b-4c3e-9a8f-112233445566";
        for body in [
            json!({"os-reserve": null}),
            json!({"os-unreserve": null}),
            json!({"os-attach": {"instance_uuid": server, "mountpoint": "/dev/vdb"}}),
            json!({"os-begin_detaching": null}),
            json!({"os-roll_detaching": null}),
            json!({"os-detach": {}}),
            json!({"os-set_bootable": {"bootable": true}}),
            json!({"os-update_readonly_flag": {"readonly": false}}),
            json!({"os-set_image_metadata": {"metadata": {"a": "b"}}}),
            json!({"os-show_image_metadata": null}),
            json!({"os-unset_image_metadata": {"key": "a"}}),
            json!({"os-extend": {"new_size": 2}}),
        ] {
            self.post_private(&action, body).await;
        }
        self.done().await;
        for body in [json!({"os-reset_status": {"status": "available"}}), json!({"os-force_detach": {}})] {
            self.admins("POST", &action, body).await;
        }
        let made = self.post("/snapshots", json!({"snapshot": {"volume_id": id, "name": "s"}})).await;
        self.done().await;
        (volume, format!("/snapshots/{}", made["snapshot"]["id"].as_str().unwrap()))
    }

    async fn metadata(&self, thing: &str) {
        let metadata = format!("{thing}/metadata");
        let item = format!("{metadata}/k");
        self.post_private(&metadata, json!({"metadata": {"k": "v"}})).await;
        self.put_private(&metadata, json!({"metadata": {"k": "v"}})).await;
        self.get_private(&metadata).await;
        self.put_private(&item, json!({"meta": {"k": "w"}})).await;
        self.get_private(&item).await;
        self.delete_private(&item).await;
    }

    async fn attachments_and_transfers(&mut self, volume: &str) {
        let id = volume.rsplit('/').next().unwrap();
        let body = json!({"attachment": {"volume_uuid": id, "instance_uuid": "6f3a5c1e-0d7b-4c3e-9a8f-112233445566"}});
        let made = self.post("/attachments", body).await;
        let one = format!("/attachments/{}", made["attachment"]["id"].as_str().unwrap());
        self.get("/attachments").await;
        self.get("/attachments/detail").await;
        self.get_private(&one).await;
        self.put_private(&one, json!({"attachment": {"connector": {"host": "h"}}})).await;
        self.post_private(&format!("{one}/action"), json!({"os-complete": {}})).await;
        self.delete_private(&one).await;
        for root in ["/volume-transfers", "/os-volume-transfer"] {
            let made = self.post("/volumes", json!({"volume": {"size": 1}})).await;
            self.done().await;
            let offer = json!({"transfer": {"volume_id": made["volume"]["id"]}});
            let first = self.post(root, offer.clone()).await;
            let path = format!("{root}/{}", first["transfer"]["id"].as_str().unwrap());
            self.get(root).await;
            self.get(&format!("{root}/detail")).await;
            self.get_private(&path).await;
            self.delete_private(&path).await;
            let second = self.post(root, offer).await;
            let accept = format!("{root}/{}/accept", second["transfer"]["id"].as_str().unwrap());
            let wrong = json!({"accept": {"auth_key": "wrong"}});
            let _ = self.other().post(&self.path("p2", &accept), wrong).await.expect(400);
            let right = json!({"accept": {"auth_key": second["transfer"]["auth_key"]}});
            let _ = self.other().post(&self.path("p2", &accept), right).await.expect(202);
        }
    }

    async fn types(&mut self, volume: &str) {
        let name = format!("t{}", self.long);
        let made = self
            .admins(
                "POST",
                "/types",
                json!({"volume_type": {"name": name, "os-volume-type-access:is_public": false}}),
            )
            .await;
        let one = format!("/types/{}", made["volume_type"]["id"].as_str().unwrap());
        for rest in ["/types", "/types/default"] {
            self.get(rest).await;
        }
        let action = format!("{one}/action");
        self.admins("POST", &action, json!({"addProjectAccess": {"project": "p1"}})).await;
        self.admins("GET", &format!("{one}/os-volume-type-access"), Value::Null).await;
        let specs = format!("{one}/extra_specs");
        self.admins("POST", &specs, json!({"extra_specs": {"multiattach": "x"}})).await;
        let item = format!("{specs}/multiattach");
        self.admins("PUT", &item, json!({"multiattach": "y"})).await;
        for rest in [&one, &specs, &item] {
            self.get_private(rest).await;
        }
        self.admins("DELETE", &item, Value::Null).await;
        self.admins("GET", &format!("{one}/encryption"), Value::Null).await;
        self.post_private(&format!("{volume}/action"), json!({"os-retype": {"new_type": name}})).await;
        self.admins("POST", &action, json!({"removeProjectAccess": {"project": "p1"}})).await;
        self.admins("PUT", &one, json!({"volume_type": {"description": "d"}})).await;
        let spare =
            self.admins("POST", "/types", json!({"volume_type": {"name": format!("s{}", self.long)}})).await;
        self.admins(
            "DELETE",
            &format!("/types/{}", spare["volume_type"]["id"].as_str().unwrap()),
            Value::Null,
        )
        .await;
    }

    async fn operators(&self) {
        let quota = "/os-quota-sets/p1";
        let _ = self.other().get(&self.path("p2", quota)).await.expect(403);
        let _ = self.other().get(&self.path("p2", "/os-quota-sets/p1/defaults")).await.expect(403);
        self.get(quota).await;
        self.get("/os-quota-sets/p1/defaults").await;
        self.admins("PUT", quota, json!({"quota_set": {"volumes": 100}})).await;
        self.admins("DELETE", quota, Value::Null).await;
        self.admins("GET", "/os-quota-class-sets/default", Value::Null).await;
        self.admins("PUT", "/os-quota-class-sets/default", json!({"quota_class_set": {"volumes": 100}}))
            .await;
        for rest in ["/os-services", "/os-hosts", "/scheduler-stats/get_pools"] {
            self.admins("GET", rest, Value::Null).await;
        }
        let _ = self.other().get(&self.path("p2", "/extensions/os-hosts")).await.expect(200);
    }

    async fn end(&mut self, volume: &str, snapshot: &str) {
        for rest in ["/snapshots", "/snapshots/detail"] {
            self.get(rest).await;
        }
        self.get_private(snapshot).await;
        self.put_private(snapshot, json!({"snapshot": {"name": "t"}})).await;
        let action = format!("{snapshot}/action");
        self.admins("POST", &action, json!({"os-reset_status": {"status": "available"}})).await;
        self.delete_private(snapshot).await;
        self.admins("POST", &action, json!({"os-force_delete": null})).await;
        self.done().await;
        self.delete_private(volume).await;
        self.admins("POST", &format!("{volume}/action"), json!({"os-force_delete": null})).await;
        self.done().await;
    }
}

#[tokio::test]
async fn every_operation_has_its_account() {
    let lab = Lab::new().await;
    let mut suite = lab.suite();
    let mut host = FakeHost::new(&lab, "h1");
    host.turn(&lab).await;
    let _ = suite.client().get("/").await.expect(300);
    let _ = suite.client().get("/v3").await.expect(200);
    for long in [true, false] {
        let mut walk = Walk { lab: &lab, suite: &suite, host, long };
        let (volume, snapshot) = walk.volumes().await;
        walk.metadata(&volume).await;
        walk.metadata(&snapshot).await;
        walk.attachments_and_transfers(&volume).await;
        walk.types(&volume).await;
        walk.operators().await;
        walk.end(&volume, &snapshot).await;
        host = walk.host;
    }
    samples(&mut suite);
    suite.watch("admin", "/v3/volumes/detail?all_tenants=1").watch("admin", "/v3/types");
    suite.check().await.assert_complete();
}

/// Collections of the caller's own project have no foreign case: another project in the path is a 400.
fn samples(suite: &mut Suite) {
    let id = "6f3a5c1e-0d7b-4c3e-9a8f-112233445566";
    let ids: Vec<String> = volume::ops().iter().map(|op| op.info().id.clone()).collect();
    for op in &ids {
        let form = op.replace("/v3/{project_id}", "/v3");
        if form.contains("{") || !op.contains("{project_id}") {
            continue;
        }
        suite.excuse_foreign(op, "a project's own collection; another project in the path is a 400");
    }
    for root in ["/v3", "/v3/{project_id}"] {
        let mut add = |op: &str, body: Value| {
            suite.sample(&op.replacen("/v3", root, 1), body);
        };
        add("POST /v3/volumes", json!({"volume": {"size": 1, "name": "n"}}));
        add("PUT /v3/volumes/{volume_id}", json!({"volume": {"name": "n"}}));
        add("POST /v3/snapshots", json!({"snapshot": {"volume_id": id, "name": "n"}}));
        add("PUT /v3/snapshots/{snapshot_id}", json!({"snapshot": {"name": "n"}}));
        add("POST /v3/attachments", json!({"attachment": {"volume_uuid": id, "instance_uuid": id}}));
        add("PUT /v3/attachments/{attachment_id}", json!({"attachment": {"connector": {"host": "h"}}}));
        add("POST /v3/types", json!({"volume_type": {"name": "n"}}));
        for thing in ["volumes/{volume_id}", "snapshots/{snapshot_id}"] {
            add(&format!("POST /v3/{thing}/metadata"), json!({"metadata": {"k": "v"}}));
            add(&format!("PUT /v3/{thing}/metadata"), json!({"metadata": {"k": "v"}}));
        }
        for list in ["volumes", "volumes/detail", "snapshots", "snapshots/detail", "attachments", "types"] {
            suite.paged(&[&format!("GET {root}/{list}")]);
        }
        suite.excuse_path(
            &format!("GET {root}/os-quota-sets/{{target}}"),
            "a project's quota exists for any project",
        );
        suite.excuse_path(
            &format!("GET {root}/os-quota-sets/{{target}}/defaults"),
            "defaults are the same for any project",
        );
        suite.excuse_path(
            &format!("DELETE {root}/os-quota-sets/{{target}}"),
            "what has no own quota has the defaults",
        );
    }
}
