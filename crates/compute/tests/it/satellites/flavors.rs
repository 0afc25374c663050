//! Flavors.

use serde_json::{Value, json};

use super::Lab;

fn body(extra: Value) -> Value {
    let mut flavor = json!({"name": "f", "ram": 512, "vcpus": 1, "disk": 0});
    flavor.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"flavor": flavor})
}

#[tokio::test]
async fn a_flavor_from_birth_to_end() {
    let lab = Lab::new().await;
    let admin = lab.at("admin", "2.96");
    let made = admin
        .post(
            "/v2.1/flavors",
            body(json!({"id": "f1", "ram": "512", "swap": 4, "rxtx_factor": "2.5", "description": "d"})),
        )
        .await
        .expect(200);
    assert_eq!(made.at("/flavor/id"), "f1");
    assert_eq!(made.at("/flavor/swap"), 4);
    assert_eq!(made.at("/flavor/rxtx_factor"), 2.5);
    assert_eq!(made.at("/flavor/description"), "d");
    assert_eq!(made.at("/flavor/extra_specs"), json!({}));
    assert_eq!(made.at("/flavor/links/0/href"), "http://cloud.test/v2.1/flavors/f1");
    assert_eq!(made.at("/flavor/links/1/href"), "http://cloud.test/flavors/f1");
    let name_taken = admin.post("/v2.1/flavors", body(json!({"id": "f2"}))).await.expect(409);
    assert_eq!(name_taken.at("/conflictingRequest/message"), "Flavor with name f already exists.");
    let id_taken = admin.post("/v2.1/flavors", body(json!({"id": "f1", "name": "g"}))).await.expect(409);
    assert_eq!(id_taken.at("/conflictingRequest/message"), "Flavor with ID f1 already exists.");
    let changed = admin.put("/v2.1/flavors/f1", json!({"flavor": {"description": null}})).await.expect(200);
    assert_eq!(changed.at("/flavor/description"), Value::Null);
    let _ = lab.at("admin", "2.54").put("/v2.1/flavors/f1", json!({"flavor": {}})).await.expect(404);
    let _ = lab.at("member:p1", "2.96").delete("/v2.1/flavors/f1").await.expect(403);
    let _ = admin.delete("/v2.1/flavors/f1").await.expect(202);
    let gone = admin.delete("/v2.1/flavors/f1").await.expect(404);
    assert_eq!(gone.at("/itemNotFound/message"), "Flavor f1 could not be found.");
}

#[tokio::test]
async fn views_grow_with_microversions() {
    let lab = Lab::new().await;
    let _ = lab.at("admin", "2.1").post("/v2.1/flavors", body(json!({"id": "f1"}))).await.expect(200);
    for (version, swap, description, specs) in [
        ("2.1", json!(""), false, false),
        ("2.54", json!(""), false, false),
        ("2.55", json!(""), true, false),
        ("2.61", json!(""), true, true),
        ("2.74", json!(""), true, true),
        ("2.75", json!(0), true, true),
    ] {
        let flavor = lab.at("member:p1", version).get("/v2.1/flavors/f1").await.expect(200).at("/flavor");
        assert_eq!(flavor["swap"], swap, "{version}");
        assert_eq!(flavor.get("description").is_some(), description, "{version}");
        assert_eq!(flavor.get("extra_specs").is_some(), specs, "{version}");
    }
    let early = body(json!({"id": "f2", "description": "d"}));
    let refused = lab.at("admin", "2.54").post("/v2.1/flavors", early).await.expect(400);
    assert!(refused.text().contains("description"), "{}", refused.text());
}

#[tokio::test]
async fn private_flavors_are_for_whom_they_are_given_to() {
    let lab = Lab::new().await;
    let (admin, own, other) =
        (lab.at("admin", "2.96"), lab.at("member:p1", "2.96"), lab.at("member:p2", "2.96"));
    let private = json!({"id": "f1", "os-flavor-access:is_public": false});
    let _ = admin.post("/v2.1/flavors", body(private)).await.expect(200);
    let _ = own.get("/v2.1/flavors/f1").await.expect(404);
    let action = "/v2.1/flavors/f1/action";
    let _ = own.post(action, json!({"addTenantAccess": {"tenant": "p1"}})).await.expect(403);
    let given = admin.post(action, json!({"addTenantAccess": {"tenant": "p1"}})).await.expect(200);
    assert_eq!(given.at("/flavor_access"), json!([{"flavor_id": "f1", "tenant_id": "p1"}]));
    let _ = admin.post(action, json!({"addTenantAccess": {"tenant": "p1"}})).await.expect(409);
    let _ = own.get("/v2.1/flavors/f1").await.expect(200);
    let _ = other.get("/v2.1/flavors/f1").await.expect(404);
    let _ = other.get("/v2.1/flavors/f1/os-extra_specs").await.expect(404);
    for (client, count) in [(&own, 1), (&other, 0)] {
        let list = client.get("/v2.1/flavors/detail?is_public=None").await.expect(200);
        assert_eq!(list.at("/flavors").as_array().unwrap().len(), count);
    }
    let _ = admin.post(action, json!({"removeTenantAccess": {"tenant": "p1"}})).await.expect(200);
    let _ = admin.post(action, json!({"removeTenantAccess": {"tenant": "p1"}})).await.expect(404);
    let _ = own.get("/v2.1/flavors/f1").await.expect(404);
    let _ = admin.post("/v2.1/flavors", body(json!({"id": "f2", "name": "public"}))).await.expect(200);
    let _ = admin.get("/v2.1/flavors/f2/os-flavor-access").await.expect(404);
    let _ =
        admin.post("/v2.1/flavors/f2/action", json!({"addTenantAccess": {"tenant": "p1"}})).await.expect(409);
}

#[tokio::test]
async fn lists_filter_sort_and_page() {
    let lab = Lab::new().await;
    let admin = lab.at("admin", "2.96");
    for (name, ram, disk, public) in [("a", 512, 1, true), ("b", 1024, 5, true), ("c", 2048, 10, false)] {
        let extra =
            json!({"id": name, "name": name, "ram": ram, "disk": disk, "os-flavor-access:is_public": public});
        let _ = admin.post("/v2.1/flavors", body(extra)).await.expect(200);
    }
    for (query, expected) in [
        ("", "ab"),
        ("?is_public=None", "abc"),
        ("?is_public=False", "c"),
        ("?minRam=600", "b"),
        ("?minDisk=2&is_public=none", "bc"),
        ("?sort_key=memory_mb&sort_dir=desc&is_public=None", "cba"),
        ("?marker=a", "b"),
        ("?limit=1", "a"),
    ] {
        let list = admin.get(&format!("/v2.1/flavors{query}")).await.expect(200).at("/flavors");
        let ids: String = list.as_array().unwrap().iter().map(|f| f["id"].as_str().unwrap()).collect();
        assert_eq!(ids, expected, "{query}");
    }
    let first = admin.get("/v2.1/flavors?limit=1").await.expect(200);
    assert!(first.text_at("/flavors_links/0/href").contains("marker=a"), "{}", first.text());
    for bad in ["minRam=x", "minDisk=1.5", "is_public=maybe", "limit=-1", "marker=nothing", "sort_key=colour"]
    {
        let _ = admin.get(&format!("/v2.1/flavors/detail?{bad}")).await.expect(400);
    }
}

#[tokio::test]
async fn extra_specs_are_checked_since_2_86() {
    let lab = Lab::new().await;
    let (new, old) = (lab.at("admin", "2.86"), lab.at("admin", "2.85"));
    let _ = new.post("/v2.1/flavors", body(json!({"id": "f1"}))).await.expect(200);
    let specs = "/v2.1/flavors/f1/os-extra_specs";
    let set = json!({"extra_specs": {"hw:cpu_policy": "dedicated", "scs:name-v2": "SCS-1V-1", "n": 5}});
    let answer = new.post(specs, set).await.expect(200);
    assert_eq!(answer.at("/extra_specs/n"), "5");
    let own = lab.at("reader:p1", "2.86");
    assert_eq!(own.get(specs).await.expect(200).at("/extra_specs/hw:cpu_policy"), "dedicated");
    assert_eq!(own.get(&format!("{specs}/n")).await.expect(200).json(), json!({"n": "5"}));
    let changed = new.put(&format!("{specs}/n"), json!({"n": "6"})).await.expect(200);
    assert_eq!(changed.json(), json!({"n": "6"}));
    let _ = new.put(&format!("{specs}/n"), json!({"m": "6"})).await.expect(400);
    let _ = new.put(&format!("{specs}/n"), json!({"n": "6", "m": "1"})).await.expect(400);
    let wrong = json!({"extra_specs": {"hw:cpu_policy": "exclusive"}});
    let _ = old.post(specs, wrong.clone()).await.expect(200);
    let refused = new.post(specs, wrong).await.expect(400);
    assert!(refused.text().contains("hw:cpu_policy"), "{}", refused.text());
    for bad in [json!({"a/b": "1"}), json!({"k": "x".repeat(256)}), json!({"k": true}), json!({"k": null})] {
        let _ = new.post(specs, json!({"extra_specs": bad})).await.expect(400);
    }
    let _ = own.delete(&format!("{specs}/n")).await.expect(403);
    let _ = new.delete(&format!("{specs}/n")).await.expect(200);
    let gone = new.delete(&format!("{specs}/n")).await.expect(404);
    assert_eq!(gone.at("/itemNotFound/message"), "Flavor f1 has no extra specs with key n.");
}

#[tokio::test]
async fn names_of_the_sovereign_cloud_stack_keep_their_promise() {
    let lab = Lab::new().await;
    let admin = lab.at("admin", "2.96");
    for bad in ["SCS-8V-32-n", "SCS-2C-4-", "SCS-2-4", "SCS-2V-4", "SCS-1V-0.5-10", " f", "f "] {
        let _ = admin.post("/v2.1/flavors", body(json!({"name": bad}))).await.expect(400);
    }
    let good = json!({"name": "SCS-1V-0.5"});
    let _ = admin.post("/v2.1/flavors", body(good)).await.expect(200);
    compute::seed_flavors(&lab.store, true).await.unwrap();
    let list = lab.at("member:p1", "2.96").get("/v2.1/flavors").await.expect(200).at("/flavors");
    assert_eq!(list.as_array().unwrap().len(), 1, "an operator's choice is left alone");
}

#[tokio::test]
async fn standard_flavors_are_seeded_once() {
    let lab = Lab::new().await;
    compute::seed_flavors(&lab.store, false).await.unwrap();
    compute::seed_flavors(&lab.store, true).await.unwrap();
    let list =
        lab.at("reader:p1", "2.61").get("/v2.1/flavors/detail?limit=100").await.expect(200).at("/flavors");
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 15);
    let disk = list.iter().find(|f| f["name"] == "SCS-2V-4-20s").unwrap();
    assert_eq!((&disk["vcpus"], &disk["ram"], &disk["disk"]), (&json!(2), &json!(4096), &json!(20)));
    assert_eq!(disk["extra_specs"]["scs:disk0-type"], "ssd");
    assert_eq!(disk["extra_specs"]["scs:name-v1"], "SCS-2V:4:20s");
}
