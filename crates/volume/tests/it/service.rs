//! What callers see and may do.

use std::time::Duration;

use api::testing::Client;
use serde_json::{Value, json};
use volume::Defaults;

use crate::lab::{FakeHost, Lab, act, make, status};

async fn ready(lab: &Lab) -> FakeHost {
    let mut host = FakeHost::new(lab, "h1");
    host.turn(lab).await;
    host
}

/// Lets the host do what is to be done.
async fn done(lab: &Lab, host: &mut FakeHost) {
    lab.settle().await;
    host.turn(lab).await;
}

#[tokio::test]
async fn a_volume_as_cinder_shows_it() {
    let lab = Lab::new().await;
    let mut host = ready(&lab).await;
    let own = lab.as_("member:p1:u1");
    let old = lab.at("volume 3.0").with_token("member:p1:u1");
    let body = json!({"volume": {"size": "1", "display_name": "n", "display_description": "d", "metadata": {"Type": "work"}}});
    let made = old.post("/v3/p1/volumes", body).await.expect(202);
    let id = made.text_at("/volume/id");
    assert!(
        !made.text().contains("os-vol"),
        "extensions add to what is shown, not to what a creation answers"
    );
    done(&lab, &mut host).await;
    let _ = act(&own, "p1", &id, json!({"os-update_readonly_flag": {"readonly": true}})).await.expect(202);
    let base = json!({
        "id": id, "status": "available", "size": 1, "availability_zone": "nova", "created_at": "2026-01-01T00:00:00.000000",
        "updated_at": "2026-01-01T00:00:00.000000", "attachments": [], "name": "n", "description": "d",
        "volume_type": "__DEFAULT__", "snapshot_id": null, "source_volid": null,
        "metadata": {"Type": "work", "readonly": "True"},
        "links": [{"rel": "self", "href": format!("http://cloud.test/v3/p1/volumes/{id}")},
            {"rel": "bookmark", "href": format!("http://cloud.test/p1/volumes/{id}")}],
        "user_id": "u1", "bootable": "false", "encrypted": false, "replication_status": null, "consistencygroup_id": null,
        "multiattach": false, "migration_status": null, "os-vol-tenant-attr:tenant_id": "p1",
    });
    let path = format!("/v3/p1/volumes/{id}");
    assert_eq!(old.get(&path).await.expect(200).json()["volume"], base);
    assert_eq!(old.get("/v3/p1/volumes/detail").await.expect(200).at("/volumes/0"), base);
    assert_eq!(
        old.get(&format!("/v3/volumes/{id}")).await.expect(200).json()["volume"],
        base,
        "no project in the path"
    );
    let new = own.get(&path).await.expect(200).json();
    for (key, value) in [
        ("group_id", Value::Null),
        ("shared_targets", json!(false)),
        ("service_uuid", Value::Null),
        ("encryption_key_id", Value::Null),
        ("consumes_quota", json!(true)),
    ] {
        assert_eq!(new["volume"].get(key), Some(&value), "{key}");
    }
    assert!(new["volume"]["volume_type_id"].is_string());
    assert!(new["volume"].get("os-vol-host-attr:host").is_none(), "only for administrators");
    let list = own.get("/v3/p1/volumes").await.expect(200).json();
    assert_eq!(list["volumes"][0].as_object().unwrap().keys().collect::<Vec<_>>(), ["id", "name", "links"]);
    for place in ["/v3/p2/volumes", "/v3/p2/volumes/detail", "/v3/p2/limits"] {
        let answer = own.get(place).await.expect(400);
        assert!(answer.text().contains("Malformed request url"));
    }
    let other = lab.as_("member:p2");
    for place in ["/v3/p2", "/v3"] {
        let _ = other.get(&format!("{place}/volumes/{id}")).await.expect(404);
        let _ = other.delete(&format!("{place}/volumes/{id}")).await.expect(404);
        assert_eq!(other.get(&format!("{place}/volumes")).await.at("/volumes"), json!([]));
    }
    let _ = lab.as_("reader:p1").delete(&path).await.expect(403);
    let root = lab.client.get("/").await.expect(300);
    assert_eq!(root.at("/versions/0/version"), "3.71");
    for slash in ["/v3/p1/volumes/", "/v3/volumes/"] {
        let _ = own.get(slash).await.expect(404);
        let _ = own.delete(slash).await.expect(404);
        let _ = own.put(slash, json!({"volume": {"name": "x"}})).await.expect(404);
    }
}

#[tokio::test]
async fn creation_refuses_what_it_must() {
    let lab = Lab::new().await;
    let mut host = ready(&lab).await;
    let own = lab.as_("member:p1");
    let image = lab.image("p1", 2 << 30);
    let foreign = lab.image("p2", 1);
    let exotic = lab.image("p1", 1);
    lab.images.0.lock().get_mut(&exotic).unwrap().disk_format = "vmdk".to_owned();
    let queued = lab.image("p1", 1);
    lab.images.0.lock().get_mut(&queued).unwrap().status = "queued".to_owned();
    let origin = make(&own, "p1", json!({"size": 2})).await;
    done(&lab, &mut host).await;
    let none = "6f3a5c1e-0d7b-4c3e-9a8f-112233445566";
    for (volume, code, word) in [
        (json!({}), 400, "size"),
        (json!({"size": 0}), 400, "size"),
        (json!({"size": -1}), 400, "size"),
        (json!({"size": "#$%"}), 400, "size"),
        (json!({"size": 1.5}), 400, "size"),
        (json!({"size": null}), 400, "size"),
        (json!({"size": []}), 400, "size"),
        (json!({"size": 9_999_999_999_u64}), 400, "size"),
        (json!({"size": 1, "name": "x".repeat(256)}), 400, "name"),
        (json!({"size": 1, "name": 5}), 400, "name"),
        (json!({"size": 1, "description": "x".repeat(256)}), 400, "description"),
        (json!({"size": 1, "metadata": []}), 400, "metadata"),
        (json!({"size": 1, "metadata": {"a": 5}}), 400, "metadata.a"),
        (json!({"size": 1, "metadata": {"": "x"}}), 400, "metadata"),
        (json!({"size": 1, "metadata": {"k": "x".repeat(256)}}), 400, "metadata.k"),
        (json!({"size": 1, "metadata": {"x".repeat(256): "v"}}), 400, "metadata"),
        (json!({"size": 1, "multiattach": "maybe"}), 400, "multiattach"),
        (json!({"size": 1, "availability_zone": "mars"}), 400, "mars"),
        (json!({"size": 1, "volume_type": "none-such"}), 404, "none-such"),
        (json!({"size": 1, "snapshot_id": none}), 404, none),
        (json!({"size": 1, "snapshot_id": "x"}), 400, "snapshot_id"),
        (json!({"size": 1, "source_volid": none}), 404, none),
        (json!({"size": 1, "source_volid": origin}), 400, "smaller"),
        (json!({"size": 1, "imageRef": none}), 400, "image"),
        (json!({"size": 1, "imageRef": "x"}), 400, "image"),
        (json!({"size": 1, "imageRef": foreign}), 400, "image"),
        (json!({"size": 1, "imageRef": image}), 400, "larger"),
        (json!({"size": 5, "imageRef": exotic}), 400, "vmdk"),
        (json!({"size": 5, "imageRef": queued}), 400, "active"),
        (json!({"size": 5, "imageRef": image, "source_volid": origin}), 400, "exclude"),
        (json!({"size": 1, "group_id": none}), 400, "group_id"),
        (json!({"size": 1, "backup_id": none}), 400, "backup_id"),
    ] {
        let answer = own.post("/v3/p1/volumes", json!({"volume": volume})).await.expect(code);
        assert!(answer.text().contains(word), "{volume}: {}", answer.text());
    }
    for body in [json!({}), json!({"volume": 5}), json!([]), json!("x")] {
        let _ = own.post("/v3/p1/volumes", body).await.expect(400);
    }
    assert_eq!(
        own.get("/v3/p1/volumes").await.json()["volumes"].as_array().unwrap().len(),
        1,
        "nothing was written"
    );
}

#[tokio::test]
async fn quotas_are_claimed_and_given_back() {
    let quotas = Defaults { volumes: 3, snapshots: 1, gigabytes: 10, per_volume_gigabytes: 8 };
    let lab = Lab::with(|c| c.quotas = quotas).await;
    let mut host = ready(&lab).await;
    let (own, admin) = (lab.as_("member:p1"), lab.as_("admin"));
    let refused = |answer: api::testing::Answer, word: &str| {
        let answer = answer.expect(413);
        assert!(answer.text().contains(word), "{}", answer.text());
        assert!(answer.text().contains("overLimit"));
    };
    let create = |size: u64| own.post("/v3/p1/volumes", json!({"volume": {"size": size}})).boxed_local();
    use futures::FutureExt;
    refused(create(9).await, "8G");
    let first = make(&own, "p1", json!({"size": 6})).await;
    refused(create(5).await, "gigabytes");
    let _ = create(1).await.expect(202);
    let _ = create(1).await.expect(202);
    refused(create(1).await, "VolumeLimitExceeded");
    done(&lab, &mut host).await;
    refused(act(&own, "p1", &first, json!({"os-extend": {"new_size": 9}})).await, "8G");
    let _ = act(&own, "p1", &first, json!({"os-extend": {"new_size": 8}})).await.expect(202);
    done(&lab, &mut host).await;
    let snapshot =
        |id: &str| own.post("/v3/p1/snapshots", json!({"snapshot": {"volume_id": id}})).boxed_local();
    refused(snapshot(&first).await, "gigabytes");
    let usage = own.get("/v3/p1/os-quota-sets/p1?usage=True").await.expect(200).json();
    assert_eq!(usage["quota_set"]["gigabytes"], json!({"limit": 10, "in_use": 10, "reserved": 0}));
    assert_eq!(usage["quota_set"]["volumes___DEFAULT__"], json!({"limit": -1, "in_use": 3, "reserved": 0}));
    let _ = own.put("/v3/p1/os-quota-sets/p1", json!({"quota_set": {"gigabytes": 100}})).await.expect(403);
    let _ = lab.as_("member:p2").get("/v3/p2/os-quota-sets/p1").await.expect(403);
    let set = |body: Value| {
        admin.put("/v3/admin-project/os-quota-sets/p1", json!({"quota_set": body})).boxed_local()
    };
    for bad in [
        json!({"nonsense": 5}),
        json!({"gigabytes": -2}),
        json!({"gigabytes": "x"}),
        json!({}),
        json!({"volumes": null}),
    ] {
        let _ = set(bad).await.expect(400);
    }
    let changed = set(json!({"gigabytes": 100, "volumes___DEFAULT__": 3})).await.expect(200);
    assert_eq!((changed.at("/quota_set/gigabytes"), changed.at("/quota_set/id")), (json!(100), Value::Null));
    let _ = snapshot(&first).await.expect(202);
    refused(snapshot(&first).await, "SnapshotLimitExceeded");
    let _ = set(json!({"volumes": 50})).await.expect(200);
    refused(create(1).await, "volumes___DEFAULT__");
    let limits = own.get("/v3/p1/limits").await.expect(200).json();
    assert_eq!(limits["limits"]["absolute"]["totalGigabytesUsed"], 18);
    assert_eq!(limits["limits"]["absolute"]["maxTotalVolumes"], 50);
    let defaults = own.get("/v3/p1/os-quota-sets/p1/defaults").await.expect(200);
    assert_eq!(defaults.at("/quota_set/volumes"), 3);
    let _ = admin.delete("/v3/admin-project/os-quota-sets/p1").await.expect(200);
    assert_eq!(own.get("/v3/p1/os-quota-sets/p1").await.at("/quota_set/volumes"), 3);
    let class = json!({"quota_class_set": {"volumes": 7}});
    let _ = admin.put("/v3/admin-project/os-quota-class-sets/default", class).await.expect(200);
    assert_eq!(own.get("/v3/p1/os-quota-sets/p1").await.at("/quota_set/volumes"), 7);
}

async fn names(client: &Client, query: &str) -> Vec<String> {
    let answer = client.get(&format!("/v3/p1/volumes/detail{query}")).await.expect(200).json();
    answer["volumes"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn lists() {
    let lab = Lab::new().await;
    let mut host = ready(&lab).await;
    let own = lab.as_("member:p1");
    for i in 0..5 {
        lab.clock.advance(Duration::from_secs(1));
        make(
            &own,
            "p1",
            json!({"name": format!("v{i}"), "size": 5 - i, "metadata": {"Type": "work", "n": i.to_string()}}),
        )
        .await;
    }
    done(&lab, &mut host).await;
    make(&own, "p1", json!({"name": "late"})).await;
    assert_eq!(names(&own, "").await.len(), 6);
    for (query, want) in [
        ("?name=v1", vec!["v1"]),
        ("?display_name=v1&status=available", vec!["v1"]),
        ("?name=none", vec![]),
        ("?status=creating", vec!["late"]),
        ("?status=null", vec![]),
        ("?status=nonsense", vec![]),
        ("?metadata=%7B%27n%27%3A%20%273%27%7D", vec!["v3"]),
        ("?metadata=%7B%22n%22%3A%20%223%22%2C%20%27Type%27%3A%27play%27%7D", vec![]),
        ("?availability_zone=nova&limit=2&sort=name:asc", vec!["late", "v0"]),
        ("?availability_zone=mars", vec![]),
        ("?bootable=true", vec![]),
        ("?bootable=False&name=v2", vec!["v2"]),
        ("?sort=size:asc,name:asc&status=available", vec!["v4", "v3", "v2", "v1", "v0"]),
        ("?sort_key=display_name&sort_dir=desc&status=available", vec!["v4", "v3", "v2", "v1", "v0"]),
        ("?sort_key=name&sort_dir=asc&offset=2&limit=2", vec!["v1", "v2"]),
        ("?name~=ate", vec!["late"]),
        ("?limit=0", vec![]),
        ("?unknown=filter&name=v0", vec!["v0"]),
        ("?all_tenants=1&name=v0", vec!["v0"]),
    ] {
        assert_eq!(names(&own, query).await, want, "{query}");
    }
    for query in [
        "?limit=-1",
        "?limit=x",
        "?offset=-1",
        "?marker=x",
        "?sort_key=x",
        "?sort=name:up",
        "?metadata=x",
        "?all_tenants=x",
    ] {
        let answer = own.get(&format!("/v3/p1/volumes{query}")).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
    }
    // Every full page has a link, even if nothing follows.
    let mut path = "/v3/p1/volumes?limit=3&sort=name:asc".to_owned();
    let mut sizes = Vec::new();
    loop {
        let page = own.get(&path).await.expect(200).json();
        sizes.push(page["volumes"].as_array().unwrap().len());
        match page["volumes_links"][0]["href"].as_str() {
            Some(next) => path = next.strip_prefix("http://cloud.test").unwrap().to_owned(),
            None => break,
        }
    }
    assert_eq!(sizes, [3, 3, 0]);
    let counted = own.get("/v3/p1/volumes/detail?with_count=true&limit=1").await.expect(200);
    assert_eq!(counted.at("/count"), 6);
    let admin = lab.as_("admin");
    assert_eq!(admin.get("/v3/admin-project/volumes").await.at("/volumes"), json!([]));
    let all = admin.get("/v3/admin-project/volumes?all_tenants=True").await.json();
    assert_eq!(all["volumes"].as_array().unwrap().len(), 6);
    let one = admin.get("/v3/admin-project/volumes?all_tenants=True&project_id=p2").await.json();
    assert_eq!(one["volumes"], json!([]));
    let sums = own.get("/v3/p1/volumes/summary").await.expect(200).json();
    assert_eq!(
        (&sums["volume-summary"]["total_count"], &sums["volume-summary"]["total_size"]),
        (&json!(6), &json!(16))
    );
    // Snapshots.
    let _ = own.post("/v3/p1/snapshots", json!({"snapshot": {"volume_id": null}})).await.expect(404);
    let id = own.get("/v3/p1/volumes?name=v0").await.text_at("/volumes/0/id");
    for i in 0..3 {
        lab.clock.advance(Duration::from_secs(1));
        let body = json!({"snapshot": {"volume_id": id, "name": format!("s{i}"), "force": true}});
        let _ = own.post("/v3/p1/snapshots", body).await.expect(202);
    }
    let list = |query: &str| {
        let (own, path) = (own.clone(), format!("/v3/p1/snapshots{query}"));
        async move {
            let answer = own.get(&path).await.expect(200).json();
            answer["snapshots"]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| s["name"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(list("").await, ["s2", "s1", "s0"]);
    assert_eq!(list("?limit=0").await, [""; 0]);
    assert_eq!(list("/detail?limit=1").await, ["s2"]);
    assert_eq!(list("?limit=100000").await.len(), 3);
    assert_eq!(list("?sort_key=created_at&sort_dir=asc").await, ["s0", "s1", "s2"]);
    assert_eq!(list("?sort_key=name&sort_dir=desc&offset=1").await, ["s1", "s0"]);
    assert_eq!(list("?name=s1&status=creating").await, ["s1"]);
    let marker = own.get("/v3/p1/snapshots?name=s2").await.text_at("/snapshots/0/id");
    assert_eq!(list(&format!("?marker={marker}")).await, ["s1", "s0"]);
}

#[tokio::test]
async fn metadata() {
    let lab = Lab::new().await;
    let mut host = ready(&lab).await;
    let own = lab.as_("member:p1");
    let volume = make(&own, "p1", json!({})).await;
    done(&lab, &mut host).await;
    let snapshot = own.post("/v3/p1/snapshots", json!({"snapshot": {"volume_id": volume}})).await.expect(202);
    for thing in [format!("volumes/{volume}"), format!("snapshots/{}", snapshot.text_at("/snapshot/id"))] {
        let path = format!("/v3/p1/{thing}/metadata");
        let add = own.post(&path, json!({"metadata": {"a": "1", "b": "2"}})).await.expect(200);
        assert_eq!(add.json(), json!({"metadata": {"a": "1", "b": "2"}}));
        let _ = own.post(&path, json!({"metadata": {"c": "3"}})).await.expect(200);
        assert_eq!(own.get(&path).await.at("/metadata"), json!({"a": "1", "b": "2", "c": "3"}));
        assert_eq!(
            own.put(&path, json!({"metadata": {"d": "4"}})).await.expect(200).at("/metadata"),
            json!({"d": "4"})
        );
        let item = format!("{path}/d");
        assert_eq!(own.get(&item).await.expect(200).json(), json!({"meta": {"d": "4"}}));
        assert_eq!(
            own.put(&item, json!({"meta": {"d": "5"}})).await.expect(200).json(),
            json!({"meta": {"d": "5"}})
        );
        let _ = own.put(&item, json!({"meta": {"e": "5"}})).await.expect(400);
        let _ = own.put(&item, json!({"meta": {"d": "5", "e": "6"}})).await.expect(400);
        let _ = own.put(&item, json!({"meta": {"d": 5}})).await.expect(400);
        let _ = own.post(&path, json!({"metadata": {"k": null}})).await.expect(400);
        let _ = own.post(&path, json!({"metadata": {}, "x": 1})).await.expect(400);
        let _ = own.delete(&item).await.expect(200);
        let _ = own.delete(&item).await.expect(404);
        let _ = own.get(&item).await.expect(404);
    }
}

#[tokio::test]
async fn actions_and_attachments() {
    let lab = Lab::new().await;
    let mut host = ready(&lab).await;
    let (own, admin) = (lab.as_("member:p1"), lab.as_("admin"));
    let image = lab.image("p1", 1);
    let id = make(&own, "p1", json!({"size": 2, "imageRef": image})).await;
    let server = "6f3a5c1e-0d7b-4c3e-9a8f-112233445566";
    let go = |action: Value| act(&own, "p1", &id, action);
    let _ = go(json!({"os-extend": {"new_size": 3}})).await.expect(400);
    done(&lab, &mut host).await;
    for (action, code, after) in [
        (json!({"os-reserve": null}), 202, "attaching"),
        (json!({"os-reserve": {}}), 400, "attaching"),
        (json!({"os-unreserve": null}), 202, "available"),
        (json!({"os-unreserve": null}), 400, "available"),
        (json!({"os-attach": {"mountpoint": "/dev/vdb"}}), 400, "available"),
        (json!({"os-attach": {"instance_uuid": "x", "mountpoint": "/dev/vdb"}}), 400, "available"),
        (json!({"os-attach": {"instance_uuid": server}}), 400, "available"),
        (
            json!({"os-attach": {"instance_uuid": server, "mountpoint": "/dev/vdb", "mode": "wr"}}),
            400,
            "available",
        ),
        (
            json!({"os-attach": {"instance_uuid": server, "mountpoint": "/dev/vdb", "mode": "rw"}}),
            202,
            "in-use",
        ),
        (json!({"os-attach": {"instance_uuid": server, "mountpoint": "/dev/vdc"}}), 400, "in-use"),
        (json!({"os-begin_detaching": null}), 202, "detaching"),
        (json!({"os-roll_detaching": null}), 202, "in-use"),
        (json!({"os-update_readonly_flag": {"readonly": true}}), 400, "in-use"),
        (json!({"os-detach": {"attachment_id": server}}), 400, "in-use"),
        (json!({"os-detach": {}}), 202, "available"),
        (json!({"os-detach": {}}), 400, "available"),
        (json!({"os-set_bootable": {"bootable": false}}), 200, "available"),
        (json!({"os-set_bootable": {"bootable": "perhaps"}}), 400, "available"),
        (json!({"os-set_bootable": {}}), 400, "available"),
        (json!({"os-extend": {"new_size": 2}}), 400, "available"),
        (json!({"os-extend": {"new_size": "x"}}), 400, "available"),
        (json!({"os-extend": {}}), 400, "available"),
        (json!({"os-reset_status": {"status": "error"}}), 403, "available"),
        (json!({"os-force_delete": null}), 403, "available"),
        (json!({"os-retype": {"new_type": "none"}}), 404, "available"),
        (json!({"os-retype": {"new_type": "__DEFAULT__"}}), 400, "available"),
        (json!({"os-retype": {"new_type": "x", "migration_policy": "maybe"}}), 400, "available"),
        (json!({"os-set_image_metadata": {"metadata": {"a": "b"}}}), 200, "available"),
        (json!({"os-unset_image_metadata": {"key": "none"}}), 404, "available"),
        (json!({"os-unset_image_metadata": {"key": "a"}}), 200, "available"),
        (json!({"os-nonsense": {}}), 400, "available"),
        (json!({}), 400, "available"),
    ] {
        let answer = go(action.clone()).await;
        assert_eq!(answer.status, code, "{action}: {}", answer.text());
        assert_eq!(status(&own, "p1", &id).await, after, "{action}");
    }
    let shown = go(json!({"os-show_image_metadata": null})).await.expect(200);
    assert_eq!(shown.text_at("/metadata/image_name"), "debian");
    assert_eq!(
        own.get(&format!("/v3/p1/volumes/{id}")).await.text_at("/volume/volume_image_metadata/os_distro"),
        "debian"
    );
    let reset = |body: Value| act(&admin, "admin-project", &id, json!({"os-reset_status": body}));
    let _ = reset(json!({"status": "great"})).await.expect(400);
    let _ = reset(json!({})).await.expect(400);
    let _ = reset(json!({"status": "error"})).await.expect(202);
    host.turn(&lab).await;
    assert_eq!(
        status(&own, "p1", &id).await,
        "error",
        "a host does not take back what an administrator says"
    );
    let _ = reset(json!({"status": "deleting"})).await.expect(202);
    host.turn(&lab).await;
    assert!(host.volumes.len() == 1, "a status alone deletes nothing");
    let _ = reset(json!({"status": "available"})).await.expect(202);

    // The attachments API.
    let _ = lab.at("volume 3.26").with_token("member:p1").get("/v3/p1/attachments").await.expect(404);
    let create = |body: Value| {
        let own = own.clone();
        async move { own.post("/v3/p1/attachments", json!({"attachment": body})).await }
    };
    for bad in [
        json!({}),
        json!({"volume_uuid": "x", "instance_uuid": server}),
        json!({"volume_uuid": id, "instance_uuid": 5}),
        json!({"volume_uuid": id, "instance_uuid": server, "connector": 5}),
        json!({"volume_uuid": id, "instance_uuid": server, "mode": "x"}),
        json!({"volume_uuid": id, "instance_uuid": server, "extra": "x"}),
    ] {
        let _ = create(bad).await.expect(400);
    }
    let _ = create(json!({"volume_uuid": server, "instance_uuid": server})).await.expect(404);
    let made = create(json!({"volume_uuid": id, "instance_uuid": server, "mode": "ro"})).await.expect(200);
    let attachment = made.text_at("/attachment/id");
    assert_eq!(
        (made.text_at("/attachment/status"), made.text_at("/attachment/attach_mode")),
        ("reserved".to_owned(), "ro".to_owned())
    );
    assert_eq!(status(&own, "p1", &id).await, "reserved");
    let _ = create(json!({"volume_uuid": id, "instance_uuid": server})).await.expect(400);
    let path = format!("/v3/p1/attachments/{attachment}");
    let _ = own.put(&path, json!({"attachment": {}})).await.expect(400);
    let connector = json!({"attachment": {"connector": {"host": "h9", "mountpoint": "/dev/vdc"}}});
    let updated = own.put(&path, connector).await.expect(200);
    assert_eq!(updated.text_at("/attachment/status"), "attaching");
    let _ = own.post(&format!("{path}/action"), json!({"os-complete": {}})).await.expect(204);
    assert_eq!(status(&own, "p1", &id).await, "in-use");
    assert_eq!(own.get("/v3/p1/attachments").await.at("/attachments/0/volume_id"), json!(id));
    let _ = lab.as_("member:p2").get(&format!("/v3/p2/attachments/{attachment}")).await.expect(404);
    let ended = own.delete(&path).await.expect(200);
    assert_eq!(ended.json(), json!({"attachments": []}));
    assert_eq!(status(&own, "p1", &id).await, "available");
    // Shared volumes.
    let shared = make(&own, "p1", json!({"multiattach": true})).await;
    done(&lab, &mut host).await;
    for _ in 0..2 {
        let _ = act(
            &own,
            "p1",
            &shared,
            json!({"os-attach": {"instance_uuid": server, "mountpoint": "/dev/vdb"}}),
        )
        .await
        .expect(202);
    }
    let _ = act(&own, "p1", &shared, json!({"os-detach": {}})).await.expect(400);
    let _ = own.delete(&format!("/v3/p1/volumes/{shared}")).await.expect(400);
    let _ = act(&admin, "admin-project", &shared, json!({"os-force_detach": {}})).await.expect(202);
    let _ = act(&admin, "admin-project", &shared, json!({"os-force_delete": null})).await.expect(202);
    let _ = act(&admin, "admin-project", &shared, json!({"os-reset_status": {"status": "available"}}))
        .await
        .expect(400);
    done(&lab, &mut host).await;
    assert_eq!(status(&own, "p1", &shared).await, "gone");
}

#[tokio::test]
async fn types() {
    let lab = Lab::new().await;
    let (own, admin) = (lab.as_("member:p1"), lab.as_("admin"));
    let list = own.get("/v3/p1/types").await.expect(200).json();
    assert_eq!(list["volume_types"][0]["name"], "__DEFAULT__");
    assert_eq!(own.get("/v3/p1/types/default").await.expect(200).text_at("/volume_type/name"), "__DEFAULT__");
    let create = |body: Value| {
        let admin = admin.clone();
        async move { admin.post("/v3/admin-project/types", json!({"volume_type": body})).await }
    };
    let _ = own.post("/v3/p1/types", json!({"volume_type": {"name": "x"}})).await.expect(403);
    for bad in [
        json!({}),
        json!({"name": ""}),
        json!({"name": "x".repeat(256)}),
        json!({"name": "x", "extra_specs": {"a": 1}}),
        json!({"name": "x", "extra_specs": {"a/b": "c"}}),
        json!({"name": "x", "zzz": 1}),
    ] {
        let _ = create(bad).await.expect(400);
    }
    let made = create(
        json!({"name": "secret", "description": "[scs:encrypted] x", "os-volume-type-access:is_public": false,
        "extra_specs": {"multiattach": "<is> True", "volume_backend_name": "b"}}),
    )
    .await
    .expect(200);
    let _ = create(json!({"name": "secret"})).await.expect(409);
    let id = made.text_at("/volume_type/id");
    let path = format!("/v3/admin-project/types/{id}");
    let _ = own.get(&format!("/v3/p1/types/{id}")).await.expect(404);
    let _ =
        own.post("/v3/p1/volumes", json!({"volume": {"size": 1, "volume_type": "secret"}})).await.expect(404);
    assert_eq!(own.get("/v3/p1/types").await.json()["volume_types"].as_array().unwrap().len(), 1);
    let access = json!({"addProjectAccess": {"project": "p1"}});
    let _ = admin.post(&format!("{path}/action"), access.clone()).await.expect(202);
    let _ = admin.post(&format!("{path}/action"), access).await.expect(409);
    assert_eq!(
        admin
            .get(&format!("{path}/os-volume-type-access"))
            .await
            .expect(200)
            .at("/volume_type_access/0/project_id"),
        "p1"
    );
    let seen = own.get(&format!("/v3/p1/types/{id}")).await.expect(200).json();
    assert_eq!(
        seen["volume_type"]["extra_specs"],
        json!({"multiattach": "<is> True"}),
        "users read what they need"
    );
    let volume = make(&own, "p1", json!({"volume_type": "secret"})).await;
    assert_eq!(own.get(&format!("/v3/p1/volumes/{volume}")).await.at("/volume/multiattach"), true);
    let _ = admin.delete(&path).await.expect(400);
    let default = own.get("/v3/p1/types/default").await.text_at("/volume_type/id");
    let _ = admin.delete(&format!("/v3/admin-project/types/{default}")).await.expect(403);
    let _ = admin.put(&path, json!({"volume_type": {"name": "__DEFAULT__"}})).await.expect(409);
    let _ = admin.put(&path, json!({"volume_type": {}})).await.expect(400);
    assert_eq!(
        admin
            .put(&path, json!({"volume_type": {"name": "open", "is_public": true}}))
            .await
            .expect(200)
            .text_at("/volume_type/name"),
        "open"
    );
    let specs = format!("{path}/extra_specs");
    let _ = admin.post(&specs, json!({"extra_specs": {"k": "v"}})).await.expect(200);
    assert_eq!(admin.get(&format!("{specs}/k")).await.expect(200).json(), json!({"k": "v"}));
    assert_eq!(
        admin.put(&format!("{specs}/k"), json!({"k": "w"})).await.expect(200).json(),
        json!({"k": "w"})
    );
    let _ = admin.put(&format!("{specs}/k"), json!({"x": "w"})).await.expect(400);
    let _ = admin.delete(&format!("{specs}/k")).await.expect(202);
    let _ = admin.delete(&format!("{specs}/k")).await.expect(404);
    let _ = act(&own, "p1", &volume, json!({"os-retype": {"new_type": "__DEFAULT__"}})).await.expect(400);
}

#[tokio::test]
async fn transfers() {
    let lab = Lab::new().await;
    let mut host = ready(&lab).await;
    let (own, other) = (lab.as_("member:p1"), lab.as_("member:p2"));
    let id = make(&own, "p1", json!({})).await;
    done(&lab, &mut host).await;
    let offer = own
        .post("/v3/p1/volume-transfers", json!({"transfer": {"volume_id": id, "name": "t"}}))
        .await
        .expect(202);
    let (transfer, key) = (offer.text_at("/transfer/id"), offer.text_at("/transfer/auth_key"));
    assert_eq!(status(&own, "p1", &id).await, "awaiting-transfer");
    let shown = own.get(&format!("/v3/p1/volume-transfers/{transfer}")).await.expect(200);
    assert!(!shown.text().contains(&key), "the key is told once");
    let _ = other.get(&format!("/v3/p2/volume-transfers/{transfer}")).await.expect(404);
    let accept = |key: &str| {
        let (other, path) = (other.clone(), format!("/v3/p2/os-volume-transfer/{transfer}/accept"));
        let body = json!({"accept": {"auth_key": key}});
        async move { other.post(&path, body).await }
    };
    let _ = accept("wrong").await.expect(400);
    let _ = accept(&key).await.expect(202);
    let _ = accept(&key).await.expect(404);
    assert_eq!(status(&other, "p2", &id).await, "available");
    assert_eq!(status(&own, "p1", &id).await, "gone");
    let offer =
        other.post("/v3/p2/os-volume-transfer", json!({"transfer": {"volume_id": id}})).await.expect(202);
    let _ = other
        .delete(&format!("/v3/p2/os-volume-transfer/{}", offer.text_at("/transfer/id")))
        .await
        .expect(202);
    assert_eq!(status(&other, "p2", &id).await, "available");
}

#[tokio::test]
async fn what_operators_see() {
    let lab = Lab::new().await;
    let _host = ready(&lab).await;
    let admin = lab.as_("admin");
    let services = |a: api::testing::Answer| a.expect(200).json()["services"].as_array().unwrap().clone();
    let list = services(admin.get("/v3/admin-project/os-services").await);
    assert_eq!((list[1]["host"].as_str(), list[1]["state"].as_str()), (Some("h1@local"), Some("up")));
    lab.clock.advance(Duration::from_secs(200));
    let list = services(admin.get("/v3/admin-project/os-services?binary=cinder-volume").await);
    assert_eq!((list.len(), list[0]["state"].as_str()), (1, Some("down")));
    let pools = admin.get("/v3/admin-project/scheduler-stats/get_pools?detail=true").await.expect(200).json();
    assert_eq!(pools["pools"][0]["name"], "h1@local#local");
    assert_eq!(pools["pools"][0]["capabilities"]["free_capacity_gb"], 500);
    let own = lab.as_("member:p1");
    for admins in ["os-services", "os-hosts", "scheduler-stats/get_pools"] {
        let _ = own.get(&format!("/v3/p1/{admins}")).await.expect(403);
    }
    let zones = own.get("/v3/p1/os-availability-zone").await.expect(200).json();
    assert_eq!(
        zones,
        json!({"availabilityZoneInfo": [{"zoneName": "nova", "zoneState": {"available": true}}]})
    );
    let extensions = own.get("/v3/p1/extensions").await.expect(200).json();
    assert!(extensions["extensions"].as_array().unwrap().iter().any(|e| e["name"] == "Hosts"));
    let _ = own.get("/v3/p1/extensions/os-hosts").await.expect(200);
    let _ = own.get("/v3/p1/extensions/none").await.expect(404);
}
