//! Records: create, show, update, list, share, delete; and every operation's account.

use api::Method;
use api::testing::Client;
use serde_json::{Value, json};

use crate::lab::{Lab, files, make, patch, upload};

#[tokio::test]
async fn an_image_as_glance_shows_it() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let made = own
        .post(
            "/v2/images",
            json!({"name": "Ubuntu 24.04", "disk_format": "raw", "container_format": "bare", "min_disk": 8, "min_ram": 512,
                "tags": ["b", "a", "b"], "os_distro": "ubuntu", "hw_disk_bus": "scsi", "ramdisk_id": "6f3a5c1e-0d7b-4c3e-9a8f-112233445566"}),
        )
        .await
        .expect(201);
    let id = made.text_at("/id");
    assert_eq!(made.header("location"), format!("http://cloud.test/v2/images/{id}"));
    assert_eq!(made.header("openstack-image-import-methods"), "glance-direct");
    let bytes = b"0123456789".repeat(1000);
    let answer = upload(&own, &id, bytes.clone()).await.expect(204);
    assert!(answer.body.is_empty());
    let shown = own.get(&format!("/v2/images/{id}")).await.expect(200).json();
    assert_eq!(
        shown,
        json!({
            "hw_disk_bus": "scsi", "os_distro": "ubuntu", "ramdisk_id": "6f3a5c1e-0d7b-4c3e-9a8f-112233445566",
            "name": "Ubuntu 24.04", "disk_format": "raw", "container_format": "bare", "visibility": "shared",
            "size": 10000, "virtual_size": 10000, "status": "active", "checksum": "d5ad69ad62faf3b4b18fc7c4ac7d5f67",
            "protected": false, "min_ram": 512, "min_disk": 8, "owner": "p1", "os_hidden": false,
            "os_hash_algo": "sha512", "os_hash_value": sha512(&bytes), "id": id,
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z", "tags": ["b", "a"],
            "self": format!("/v2/images/{id}"), "file": format!("/v2/images/{id}/file"), "schema": "/v2/schemas/image",
        })
        .as_object()
        .map(|o| { let mut o = o.clone(); o["checksum"] = json!(md5(&bytes)); Value::Object(o) })
        .unwrap()
    );
}

fn sha512(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha512::digest(bytes))
}

fn md5(bytes: &[u8]) -> String {
    use md5::Digest;
    hex::encode(md5::Md5::digest(bytes))
}

#[tokio::test]
async fn creation_refuses_what_it_must() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    for (body, status, word) in [
        (json!({"name": "x".repeat(256)}), 400, "name"),
        (json!({"name": 5}), 400, "name"),
        (json!({"disk_format": "floppy"}), 400, "disk_format"),
        (json!({"container_format": "box"}), 400, "container_format"),
        (json!({"visibility": "secret"}), 400, "visibility"),
        (json!({"min_disk": -1}), 400, "min_disk"),
        (json!({"min_ram": 2_147_483_648_u64}), 400, "min_ram"),
        (json!({"min_ram": "512"}), 400, "min_ram"),
        (json!({"protected": "yes"}), 400, "protected"),
        (json!({"os_hidden": 1}), 400, "os_hidden"),
        (json!({"tags": "a"}), 400, "tags"),
        (json!({"tags": [1]}), 400, "tags"),
        (json!({"tags": ["x".repeat(256)]}), 400, "tags"),
        (json!({"id": "nonsense"}), 400, "id"),
        (json!({"id": null}), 400, "id"),
        (json!({"os_distro": 7}), 400, "os_distro"),
        (json!({"os_distro": {"a": "b"}}), 400, "os_distro"),
        (json!({"os_distro": "x".repeat(70_000)}), 400, "os_distro"),
        (json!({"x".repeat(256): "y"}), 400, "property name"),
        (json!({"": "y"}), 400, "property name"),
        (json!({"size": 5}), 403, "size"),
        (json!({"status": "active"}), 403, "status"),
        (json!({"checksum": "x"}), 403, "checksum"),
        (json!({"created_at": "x"}), 403, "created_at"),
        (json!({"location": "x"}), 403, "location"),
        (json!({"deleted": true}), 403, "deleted"),
        (json!({"os_glance_x": "y"}), 403, "os_glance_x"),
        (json!({"locations": []}), 403, "location"),
        (json!({"owner": "p2"}), 403, "p2"),
        (json!({"visibility": "public"}), 403, "publicize_image"),
        (json!([]), 400, "object"),
        (json!("x"), 400, "object"),
    ] {
        let answer = own.post("/v2/images", body.clone()).await.expect(status);
        assert!(answer.text().contains(word), "{body}: {}", answer.text());
    }
    assert_eq!(own.get("/v2/images").await.at("/images"), json!([]), "nothing was written");
    let reader = lab.as_("reader:p1");
    let _ = reader.post("/v2/images", json!({})).await.expect(403);
    let many: serde_json::Map<String, Value> = (0..129).map(|i| (format!("p{i}"), json!("v"))).collect();
    let _ = own.post("/v2/images", Value::Object(many)).await.expect(413);
    let id = "11111111-2222-3333-4444-555555555555";
    let _ = own.post("/v2/images", json!({"id": id})).await.expect(201);
    let again = own.post("/v2/images", json!({"id": id})).await.expect(409);
    assert!(again.text().contains("already exists"));
    let _ =
        lab.as_("admin").post("/v2/images", json!({"visibility": "public", "owner": "p2"})).await.expect(201);
}

#[tokio::test]
async fn json_patch() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let id = make(&own, json!({"old": "1"})).await;
    let answer = patch(
        &own,
        &id,
        json!([
            {"op": "replace", "path": "/name", "value": "new"},
            {"op": "add", "path": "/fresh", "value": "x"},
            {"op": "add", "path": "/a~1b~0c", "value": "escaped"},
            {"op": "replace", "path": "/tags", "value": ["t"]},
            {"op": "add", "path": "/fresh", "value": "again"},
            {"op": "remove", "path": "/old"},
            {"op": "replace", "path": "/visibility", "value": "community"},
            {"op": "replace", "path": "/disk_format", "value": "qcow2"},
        ]),
    )
    .await
    .expect(200)
    .json();
    assert_eq!(
        (
            &answer["name"],
            &answer["fresh"],
            &answer["a/b~c"],
            &answer["tags"],
            &answer["old"],
            &answer["disk_format"]
        ),
        (&json!("new"), &json!("again"), &json!("escaped"), &json!(["t"]), &Value::Null, &json!("qcow2"))
    );
    let cases = [
        (json!({"op": "add"}), 400, "array"),
        (json!(["x"]), 400, "objects"),
        (json!([{"op": "copy", "path": "/a", "value": "b"}]), 400, "copy"),
        (json!([{"op": "add", "value": "b"}]), 400, "path"),
        (json!([{"op": "add", "path": 5, "value": "b"}]), 400, "path"),
        (json!([{"path": "/a", "value": "b"}]), 400, "op"),
        (json!([{"op": "add", "path": "/a"}]), 400, "value"),
        (json!([{"op": "add", "path": "a", "value": "b"}]), 400, "start"),
        (json!([{"op": "add", "path": "/", "value": "b"}]), 400, "ends"),
        (json!([{"op": "add", "path": "/a/", "value": "b"}]), 400, "ends"),
        (json!([{"op": "add", "path": "/a//b", "value": "b"}]), 400, "adjacent"),
        (json!([{"op": "add", "path": "/a~2", "value": "b"}]), 400, "escape"),
        (json!([{"op": "add", "path": "/a/b", "value": "b"}]), 400, "pointer"),
        (json!([{"op": "add", "path": "/a", "value": 5}]), 400, "string"),
        (json!([{"op": "replace", "path": "/min_ram", "value": -5}]), 400, "min_ram"),
        (json!([{"op": "replace", "path": "/visibility", "value": "x"}]), 400, "visibility"),
        (json!([{"op": "replace", "path": "/none", "value": "x"}]), 409, "does not exist"),
        (json!([{"op": "remove", "path": "/none"}]), 409, "does not exist"),
        (json!([{"op": "remove", "path": "/name"}]), 403, "may not be removed"),
        (json!([{"op": "replace", "path": "/status", "value": "active"}]), 403, "read-only"),
        (json!([{"op": "replace", "path": "/id", "value": "x"}]), 403, "read-only"),
        (json!([{"op": "add", "path": "/deleted", "value": "x"}]), 403, "reserved"),
        (json!([{"op": "add", "path": "/locations/-", "value": {}}]), 403, "location"),
        (json!([{"op": "replace", "path": "/owner", "value": "p2"}]), 403, "Owner"),
        (json!([{"op": "replace", "path": "/visibility", "value": "public"}]), 403, "publicize"),
    ];
    for (changes, status, word) in cases {
        let answer = patch(&own, &id, changes.clone()).await.expect(status);
        assert!(answer.text().contains(word), "{changes}: {}", answer.text());
    }
    assert_eq!(own.get(&format!("/v2/images/{id}")).await.json(), answer, "nothing was written");
    // The older form.
    let old = |body: Value| {
        own.call(Method::PATCH, &format!("/v2/images/{id}"))
            .json(&body)
            .header("content-type", "application/openstack-images-v2.0-json-patch")
            .send()
    };
    let answer = old(
        json!([{"replace": "/name", "value": "old form"}, {"add": "/x", "value": "1"}, {"remove": "/fresh"}]),
    );
    assert_eq!(answer.await.expect(200).text_at("/name"), "old form");
    let _ = old(json!([{"add": "/x", "value": "2"}])).await.expect(409);
    let _ = old(json!([{"add": "/x", "remove": "/y", "value": "2"}])).await.expect(400);
    let _ = own.patch(&format!("/v2/images/{id}"), json!([])).await.expect(415);
    // Formats are what the bytes were checked against.
    let plain = make(&own, json!({})).await;
    let _ = upload(&own, &plain, "x").await.expect(204);
    let _ = patch(&own, &plain, json!([{"op": "replace", "path": "/disk_format", "value": "iso"}]))
        .await
        .expect(403);
}

async fn names(client: &Client, query: &str) -> Vec<String> {
    let answer = client.get(&format!("/v2/images{query}")).await.expect(200).json();
    answer["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["name"].as_str().unwrap_or("-").to_owned())
        .collect()
}

#[tokio::test]
async fn who_sees_what() {
    let lab = Lab::new().await;
    let (admin, p1, p2) = (lab.as_("admin"), lab.as_("member:p1"), lab.as_("member:p2"));
    for (client, name, visibility) in [
        (&admin, "pub", "public"),
        (&p1, "private1", "private"),
        (&p1, "shared1", "shared"),
        (&p1, "community1", "community"),
        (&p2, "private2", "private"),
    ] {
        lab.clock.advance(std::time::Duration::from_secs(1));
        make(client, json!({"name": name, "visibility": visibility})).await;
    }
    assert_eq!(names(&p1, "").await, ["community1", "shared1", "private1", "pub"]);
    assert_eq!(names(&p2, "").await, ["private2", "pub"]);
    assert_eq!(names(&p2, "?visibility=all").await, ["private2", "community1", "pub"]);
    assert_eq!(names(&p2, "?visibility=community").await, ["community1"]);
    assert_eq!(names(&p2, "?visibility=public").await, ["pub"]);
    assert_eq!(names(&p1, "?visibility=shared").await, ["shared1"]);
    assert_eq!(names(&p2, "?visibility=shared").await, [""; 0]);
    assert_eq!(names(&p1, "?visibility=private").await, ["private1"]);
    assert_eq!(names(&admin, "").await, ["private2", "shared1", "private1", "pub"]);
    assert_eq!(names(&admin, "?visibility=all").await.len(), 5);
    assert_eq!(names(&admin, "?owner=p2").await, ["private2"]);

    let list = p1.get("/v2/images?name=shared1").await.json();
    let shared = list["images"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v2/images/{shared}");
    let members = format!("{path}/members");
    let _ = p2.get(&path).await.expect(404);
    let made = p1.post(&members, json!({"member": "p2"})).await.expect(200).json();
    assert_eq!(
        made,
        json!({"member_id": "p2", "image_id": shared, "status": "pending", "created_at": "2026-01-01T00:00:05Z",
            "updated_at": "2026-01-01T00:00:05Z", "schema": "/v2/schemas/member"})
    );
    let _ = p1.post(&members, json!({"member": "p2"})).await.expect(409);
    let _ = p2.get(&path).await.expect(200);
    assert_eq!(names(&p2, "").await, ["private2", "pub"], "not accepted yet");
    assert_eq!(names(&p2, "?member_status=all").await, ["private2", "shared1", "pub"]);
    assert_eq!(names(&p2, "?member_status=pending&visibility=shared").await, ["shared1"]);
    let answer = |client: &Client, status: &str| {
        let (client, body) = (client.clone(), json!({"status": status}));
        let path = format!("{members}/p2");
        async move { client.put(&path, body).await }
    };
    let _ = answer(&p1, "accepted").await.expect(403);
    let _ = answer(&p2, "maybe").await.expect(400);
    let _ = answer(&lab.as_("member:p3"), "accepted").await.expect(404);
    assert_eq!(answer(&p2, "accepted").await.expect(200).text_at("/status"), "accepted");
    assert_eq!(names(&p2, "").await, ["private2", "shared1", "pub"]);
    let _ = p2.delete(&path).await.expect(403);
    let _ = p2.post(&members, json!({"member": "p3"})).await.expect(403);
    let _ =
        patch(&p2, &shared, json!([{"op": "replace", "path": "/name", "value": "stolen"}])).await.expect(403);
    assert_eq!(p2.get(&members).await.expect(200).at("/members/0/member_id"), "p2");
    let _ = p1.delete(&format!("{members}/p2")).await.expect(204);
    let _ = p1.delete(&format!("{members}/p2")).await.expect(404);
    let _ = p2.get(&path).await.expect(404);
    let public =
        admin.get("/v2/images?name=pub").await.json()["images"][0]["id"].as_str().unwrap().to_owned();
    let _ = admin.post(&format!("/v2/images/{public}/members"), json!({"member": "p2"})).await.expect(403);
    let _ = p1.delete(&format!("/v2/images/{public}")).await.expect(403);
}

#[tokio::test]
async fn filters_order_and_pages() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    for i in 0..7_u8 {
        lab.clock.advance(std::time::Duration::from_secs(60));
        let id = make(
            &own,
            json!({"name": format!("n{}", i % 3), "min_disk": i, "tags": [format!("t{}", i % 2), "all"], "os_distro": if i < 3 {"debian"} else {"ubuntu"},
                "protected": i == 6, "os_hidden": i == 5, "container_format": if i == 4 {"ami"} else {"bare"}, "disk_format": if i == 4 {"ami"} else {"raw"}}),
        )
        .await;
        let _ = upload(&own, &id, vec![0; usize::from(i) * 100 + 1]).await.expect(204);
    }
    let queued = make(&own, json!({"name": "with, comma"})).await;
    for (query, count) in [
        ("", 7),
        ("?os_hidden=true", 1),
        ("?os_hidden=false", 7),
        ("?name=n0", 3),
        ("?name=in:n0,n1", 5),
        ("?name=in:n1,%22with,%20comma%22", 3),
        ("?status=queued", 1),
        ("?status=in:queued,active", 7),
        ("?status=nonsense", 0),
        ("?tag=t0", 4),
        ("?tag=t0&tag=all", 4),
        ("?tag=t0&tag=t1", 0),
        ("?os_distro=debian", 3),
        ("?os_distro=none", 0),
        ("?nothing=else", 0),
        ("?min_disk=3", 1),
        ("?size_min=301", 3),
        ("?size_max=301", 4),
        ("?size_min=101&size_max=201", 2),
        ("?size=301", 1),
        ("?protected=true", 1),
        ("?disk_format=in:ami,iso", 1),
        ("?container_format=bare", 6),
        ("?owner=p1", 7),
        ("?owner=p2", 0),
        ("?created_at=gt:2026-01-01T00:06:00Z", 2),
        ("?created_at=lte:2026-01-01T00:03:00", 3),
        ("?created_at=2026-01-01T00:03:00Z", 1),
        ("?updated_at=neq:2026-01-01T00:03:00Z", 6),
        ("?is_public=None&member_status=all", 7),
        ("?visibility=shared", 7),
    ] {
        assert_eq!(names(&own, query).await.len(), count, "{query}");
    }
    assert_eq!(own.get(&format!("/v2/images?id={queued}")).await.at("/images/0/id"), json!(queued));
    assert_eq!(
        names(&own, "?sort_key=name&sort_dir=asc").await,
        ["n0", "n0", "n0", "n1", "n1", "n2", "with, comma"]
    );
    let by_size = own.get("/v2/images?sort=name:asc,size:desc&status=active").await.json();
    let sizes: Vec<u64> =
        by_size["images"].as_array().unwrap().iter().map(|i| i["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [601, 301, 1, 401, 101, 201]);
    for query in [
        "?limit=-1",
        "?limit=x",
        "?marker=nonsense",
        "?marker=6f3a5c1e-0d7b-4c3e-9a8f-112233445566",
        "?sort_key=password",
        "?sort_dir=up",
        "?sort=name:up",
        "?sort=name&sort_key=id",
        "?visibility=x",
        "?member_status=x",
        "?size_min=-1",
        "?size_max=x",
        "?min_ram=x",
        "?protected=x",
        "?os_hidden=x",
        "?created_at=yesterday",
        "?created_at=xx:2026-01-01",
        "?name=in:%22a",
        "?name=in:a%22b",
    ] {
        let answer = own.get(&format!("/v2/images{query}")).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
    }
    let first = own.get("/v2/images?limit=3&tag=all").await.expect(200).json();
    assert_eq!(first["schema"], "/v2/schemas/images");
    assert_eq!(first["first"], "/v2/images?limit=3&tag=all");
    let mut seen = Vec::new();
    let mut next = Some("/v2/images?limit=3&tag=all".to_owned());
    let mut pages = 0;
    while let Some(path) = next {
        let page = own.get(&path).await.expect(200).json();
        seen.extend(page["images"].as_array().unwrap().iter().map(|i| i["min_disk"].as_u64().unwrap()));
        next = page["next"].as_str().map(str::to_owned);
        pages += 1;
    }
    assert_eq!((seen, pages), (vec![6, 4, 3, 2, 1, 0], 2), "newest first; no link after the last page");
}

#[tokio::test]
async fn tags_protection_deactivation_and_deletion() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let id = make(&own, json!({})).await;
    let path = format!("/v2/images/{id}");
    let _ = own.put(&format!("{path}/tags/x%2Fy%20z"), Value::Null).await.expect(204);
    let _ = own.put(&format!("{path}/tags/a"), Value::Null).await.expect(204);
    let _ = own.put(&format!("{path}/tags/a"), Value::Null).await.expect(204);
    assert_eq!(own.get(&path).await.at("/tags"), json!(["x/y z", "a"]));
    let _ = own.delete(&format!("{path}/tags/a")).await.expect(204);
    let _ = own.delete(&format!("{path}/tags/a")).await.expect(404);
    let _ = own.put(&format!("{path}/tags/{}", "x".repeat(256)), Value::Null).await.expect(400);
    let _ = lab.as_("member:p2").put(&format!("{path}/tags/a"), Value::Null).await.expect(404);

    let _ = own.post(&format!("{path}/actions/deactivate"), Value::Null).await.expect(403);
    let _ = upload(&own, &id, "bytes").await.expect(204);
    let _ = own.post(&format!("{path}/actions/deactivate"), Value::Null).await.expect(204);
    let _ = own.post(&format!("{path}/actions/deactivate"), Value::Null).await.expect(204);
    assert_eq!(own.get(&path).await.text_at("/status"), "deactivated");
    let _ = own.get(&format!("{path}/file")).await.expect(403);
    let _ = lab.as_("admin").get(&format!("{path}/file")).await.expect(200);
    let _ = own.post(&format!("{path}/actions/reactivate"), Value::Null).await.expect(204);
    let _ = own.get(&format!("{path}/file")).await.expect(200);

    let _ =
        patch(&own, &id, json!([{"op": "replace", "path": "/protected", "value": true}])).await.expect(200);
    let refused = own.delete(&path).await.expect(403);
    assert!(refused.text().contains("protected"));
    let _ =
        patch(&own, &id, json!([{"op": "replace", "path": "/protected", "value": false}])).await.expect(200);
    let _ = lab.as_("member:p2").delete(&path).await.expect(404);
    let _ = own.post(&format!("{path}/members"), json!({"member": "p2"})).await.expect(200);
    let _ = own.delete(&path).await.expect(204);
    let _ = own.get(&path).await.expect(404);
    let _ = own.delete(&path).await.expect(404);
    assert_eq!(files(&lab.data()), std::slice::from_ref(&id));
    lab.reconcile(&id).await;
    assert!(files(&lab.data()).is_empty());
    let _ = own.delete("/v2/images/").await.expect(404);
}

#[tokio::test]
async fn discovery_and_schemas() {
    let lab = Lab::new().await;
    let root = lab.client.get("/").await.expect(300);
    assert_eq!(root.at("/versions/0/status"), "CURRENT");
    assert_eq!(root.at("/versions/0/links/0/href"), "http://cloud.test/v2/");
    let _ = lab.client.get("/versions").await.expect(200);
    let _ = lab.client.get("/v2/images").await.expect(401);
    let own = lab.as_("reader:p1");
    for (name, pointer) in [
        ("image", "/properties/id"),
        ("images", "/properties/images/items"),
        ("member", "/properties/member_id"),
        ("members", "/properties/members"),
    ] {
        let schema = own.get(&format!("/v2/schemas/{name}")).await.expect(200);
        assert_eq!(schema.text_at("/name"), name);
        assert!(!schema.at(pointer).is_null(), "{name}");
    }
    assert_eq!(
        own.get("/v2/info/import").await.expect(200).at("/import-methods/value"),
        json!(["glance-direct"])
    );
    assert_eq!(own.get("/v2/info/stores").await.expect(200).text_at("/stores/0/id"), "file");
}

#[tokio::test]
async fn every_operation_has_its_account() {
    let lab = Lab::new().await;
    let mut suite = lab.suite();
    let client = suite.client();
    let own = client.with_token("member:p1");
    let other = client.foreign("member:p2");
    let id = make(&own, json!({})).await;
    let path = format!("/v2/images/{id}");
    let staged = make(&own, json!({})).await;
    let bytes = |client: &Client, path: &str| {
        client
            .call(Method::PUT, path)
            .header("content-type", "application/octet-stream")
            .bytes("bytes")
            .send()
    };
    for place in ["", "versions", "v2/images", "v2/info/import", "v2/info/stores"] {
        assert!(own.get(&format!("/{place}")).await.status < 400);
    }
    for name in ["image", "images", "member", "members"] {
        let _ = own.get(&format!("/v2/schemas/{name}")).await.expect(200);
    }
    let _ = bytes(&other, &format!("{path}/file")).await.expect(404);
    let _ = bytes(&own, &format!("{path}/file")).await.expect(204);
    let _ = bytes(&other, &format!("/v2/images/{staged}/stage")).await.expect(404);
    let _ = bytes(&own, &format!("/v2/images/{staged}/stage")).await.expect(204);
    let import = json!({"method": {"name": "glance-direct"}});
    let _ = other.post(&format!("/v2/images/{staged}/import"), import.clone()).await.expect(404);
    let _ = own.post(&format!("/v2/images/{staged}/import"), import.clone()).await.expect(202);
    let member = format!("{path}/members/p3");
    let _ = other.post(&format!("{path}/members"), json!({"member": "p3"})).await.expect(404);
    let _ = own.post(&format!("{path}/members"), json!({"member": "p3"})).await.expect(200);
    let _ = other.put(&member, json!({"status": "accepted"})).await.expect(404);
    let _ = client.with_token("member:p3").put(&member, json!({"status": "accepted"})).await.expect(200);
    for place in
        [&path, &format!("{path}/file"), &format!("{path}/tasks"), &format!("{path}/members"), &member]
    {
        let _ = other.get(place).await.expect(404);
        let _ = own.get(place).await.expect(200);
    }
    let tag = format!("{path}/tags/t");
    let changes = json!([{"op": "replace", "path": "/name", "value": "x"}]);
    for client in [&other, &own] {
        let fine = std::ptr::eq(client, &own);
        let code = |ok: u16| if fine { ok } else { 404 };
        let _ = patch(client, &id, changes.clone()).await.expect(code(200));
        let _ = client.put(&tag, Value::Null).await.expect(code(204));
        let _ = client.delete(&tag).await.expect(code(204));
        let _ = client.post(&format!("{path}/actions/deactivate"), Value::Null).await.expect(code(204));
        let _ = client.post(&format!("{path}/actions/reactivate"), Value::Null).await.expect(code(204));
        let _ = client.delete(&member).await.expect(code(204));
        let _ = client.delete(&path).await.expect(code(204));
    }
    suite.token("member:p1");
    suite.sample("POST /v2/images", json!({"name": "n"}));
    suite.sample("PATCH /v2/images/{image_id}", changes);
    suite.sample("POST /v2/images/{image_id}/import", import);
    suite.sample("POST /v2/images/{image_id}/members", json!({"member": "p9"}));
    suite.sample("PUT /v2/images/{image_id}/members/{member_id}", json!({"status": "accepted"}));
    suite.paged(&["GET /v2/images"]);
    suite.watch("admin", "/v2/images?visibility=all");
    suite.check().await.assert_complete();
}
