//! Quotas and limits.

use base::ProjectId;
use compute::model::Usage;
use serde_json::{Value, json};

use super::Lab;

const P1: &str = "/v2.1/os-quota-sets/p1";

async fn used(lab: &Lab, cores: u64) {
    lab.store
        .write(move |tx| {
            tx.insert(&mut Usage {
                id: ProjectId::new("p1"),
                meta: store::Meta::default(),
                instances: 2,
                cores,
                ram: 2048,
            })
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_project_may_see_and_an_administrator_may_set() {
    let lab = Lab::new().await;
    used(&lab, 4).await;
    let (own, admin) = (lab.at("member:p1", "2.96"), lab.at("admin", "2.96"));
    let before = own.get(P1).await.expect(200);
    assert_eq!(before.at("/quota_set/id"), "p1");
    let defaults = own.get(&format!("{P1}/defaults")).await.expect(200);
    assert_eq!(before.json(), defaults.json());
    let change = json!({"quota_set": {"cores": "8", "ram": -1}});
    let _ = own.put(P1, change.clone()).await.expect(403);
    let set = admin.put(P1, change).await.expect(200);
    assert_eq!(set.at("/quota_set/cores"), 8);
    assert_eq!(set.at("/quota_set/id"), Value::Null);
    let detail = own.get(&format!("{P1}/detail")).await.expect(200);
    assert_eq!(detail.at("/quota_set/cores"), json!({"in_use": 4, "limit": 8, "reserved": 0}));
    assert_eq!(detail.at("/quota_set/ram/limit"), -1);
    let low = json!({"quota_set": {"cores": 3}});
    let refused = admin.put(P1, low).await.expect(400);
    assert_eq!(
        refused.at("/badRequest/message"),
        "Quota limit 3 for cores must be greater than or equal to already used and reserved 4."
    );
    let _ = admin.put(P1, json!({"quota_set": {"cores": 3, "force": "True"}})).await.expect(200);
    let _ = admin.delete(P1).await.expect(202);
    assert_eq!(own.get(P1).await.expect(200).json(), before.json());
    for foreign in ["", "/detail"] {
        let _ = lab.at("member:p2", "2.96").get(&format!("{P1}{foreign}")).await.expect(403);
    }
    let _ = admin.put(&format!("{P1}?user_id=u1"), json!({"quota_set": {"cores": 9}})).await.expect(400);
    let _ = admin.get(&format!("{P1}?user_id=u1")).await.expect(200);
    for bad in [json!({"cores": -2}), json!({"cores": "x"}), json!({"colour": 1}), json!({"fixed_ips": 1})] {
        let _ = admin.put(P1, json!({"quota_set": bad})).await.expect(400);
    }
}

#[tokio::test]
async fn resources_go_with_microversions() {
    let lab = Lab::new().await;
    let keys = |value: Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    for (version, count, has, has_not) in [
        ("2.1", 15, "fixed_ips", "networks"),
        ("2.35", 15, "security_group_rules", "networks"),
        ("2.36", 11, "injected_files", "fixed_ips"),
        ("2.56", 11, "injected_file_path_bytes", "floating_ips"),
        ("2.57", 8, "server_group_members", "injected_files"),
        ("2.96", 8, "metadata_items", "security_groups"),
    ] {
        let set = keys(lab.at("reader:p1", version).get(P1).await.expect(200).at("/quota_set"));
        assert_eq!(set.len(), count, "{version}: {set:?}");
        assert!(set.iter().any(|k| k == has) && !set.iter().any(|k| k == has_not), "{version}: {set:?}");
    }
    let admin = |version: &str| lab.at("admin", version);
    let old = json!({"quota_set": {"injected_files": 3}});
    assert_eq!(admin("2.56").put(P1, old.clone()).await.expect(200).at("/quota_set/injected_files"), 3);
    let _ = admin("2.57").put(P1, old).await.expect(400);
}

#[tokio::test]
async fn the_default_class_is_everyones_default() {
    let lab = Lab::with(|config| {
        let _ = config.quota.insert("cores".into(), 50);
    })
    .await;
    let admin = lab.at("admin", "2.96");
    let class = "/v2.1/os-quota-class-sets/default";
    assert_eq!(admin.get(class).await.expect(200).at("/quota_class_set/cores"), 50);
    let set = admin.put(class, json!({"quota_class_set": {"cores": 60}})).await.expect(200);
    assert_eq!(set.at("/quota_class_set/cores"), 60);
    assert_eq!(admin.get(class).await.expect(200).at("/quota_class_set/id"), "default");
    assert_eq!(
        lab.at("member:p9", "2.96")
            .get("/v2.1/limits")
            .await
            .expect(200)
            .at("/limits/absolute/maxTotalCores"),
        60
    );
    let _ = admin.put(P1, json!({"quota_set": {"cores": 70}})).await.expect(200);
    assert_eq!(lab.at("member:p1", "2.96").get(P1).await.expect(200).at("/quota_set/cores"), 70);
    let _ = lab.at("member:p1", "2.96").get(class).await.expect(403);
    assert_eq!(
        lab.at("admin", "2.49").get(class).await.expect(200).at("/quota_class_set/server_groups"),
        Value::Null
    );
    let groups = json!({"quota_class_set": {"server_groups": 3}});
    let _ = lab.at("admin", "2.49").put(class, groups.clone()).await.expect(400);
    let _ = lab.at("admin", "2.50").put(class, groups).await.expect(200);
    let _ = admin.put(class, json!({"quota_class_set": {"cores": 1, "force": true}})).await.expect(400);
}

#[tokio::test]
async fn limits_tell_what_is_used() {
    let lab = Lab::new().await;
    used(&lab, 4).await;
    let own = lab.at("reader:p1", "2.96");
    let limits = own.get("/v2.1/limits").await.expect(200);
    assert_eq!(limits.at("/limits/rate"), json!([]));
    assert_eq!(limits.at("/limits/absolute/totalCoresUsed"), 4);
    assert_eq!(limits.at("/limits/absolute/totalRAMUsed"), 2048);
    assert_eq!(limits.at("/limits/absolute/totalInstancesUsed"), 2);
    for (version, name, shown) in [
        ("2.35", "maxTotalFloatingIps", true),
        ("2.36", "maxTotalFloatingIps", false),
        ("2.35", "totalSecurityGroupsUsed", true),
        ("2.38", "maxImageMeta", true),
        ("2.39", "maxImageMeta", false),
        ("2.56", "maxPersonality", true),
        ("2.57", "maxPersonalitySize", false),
        ("2.96", "maxServerMeta", true),
    ] {
        let absolute =
            lab.at("reader:p1", version).get("/v2.1/limits").await.expect(200).at("/limits/absolute");
        assert_eq!(absolute.get(name).is_some(), shown, "{version} {name}");
    }
    let other = lab.at("admin", "2.96").get("/v2.1/limits?tenant_id=p1&reserved=1").await.expect(200);
    assert_eq!(other.at("/limits/absolute/totalCoresUsed"), 4);
    let _ = own.get("/v2.1/limits?tenant_id=p2").await.expect(403);
    let _ = own.get("/v2.1/limits?tenant_id=p1").await.expect(200);
    let _ = own.get("/v2.1/limits?colour=red").await.expect(400);
}
