//! Hosts as administrators see them: hypervisors, services, aggregates, zones.

use std::time::Duration;

use serde_json::{Value, json};

use super::Lab;

const HYPERVISORS: &str = "/v2.1/os-hypervisors";
const SERVICES: &str = "/v2.1/os-services";
const AGGREGATES: &str = "/v2.1/os-aggregates";

#[tokio::test]
async fn hypervisors_tell_what_they_have_and_carry() {
    let lab = Lab::new().await;
    let (host, _) = (lab.host(1).await, lab.host(2).await);
    let server = lab.server(1, |s| s.host_id = Some(host.id)).await;
    let at = |version: &str| lab.at("admin", version);
    let path = format!("{HYPERVISORS}/{}", host.id);
    let new = at("2.88").get(&format!("{path}?with_servers=true")).await.expect(200);
    assert_eq!(new.at("/hypervisor/id"), json!(host.id));
    assert_eq!(new.at("/hypervisor/servers"), json!([{"uuid": server.id, "name": "server-1"}]));
    assert_eq!(new.at("/hypervisor/service/host"), "host-1");
    let keys = new.at("/hypervisor");
    for gone in ["vcpus", "cpu_info", "running_vms", "free_ram_mb"] {
        assert!(keys.get(gone).is_none(), "{gone}");
    }
    assert!(keys.as_object().unwrap().contains_key("uptime"));
    let old = at("2.87").get(&path).await.expect(200);
    assert_eq!(old.at("/hypervisor/vcpus_used"), 2);
    assert_eq!(old.at("/hypervisor/free_ram_mb"), 16384 - 1024);
    assert_eq!(old.at("/hypervisor/cpu_info/arch"), "x86_64");
    assert_eq!(old.at("/hypervisor/running_vms"), 1);
    let number = at("2.1").get(HYPERVISORS).await.expect(200).at("/hypervisors");
    let number = number.as_array().unwrap().iter().find(|h| h["hypervisor_hostname"] == "host-1").unwrap();
    let shown = at("2.27").get(&format!("{HYPERVISORS}/{}", number["id"])).await.expect(200);
    assert_eq!(shown.at("/hypervisor/cpu_info"), "{\"arch\":\"x86_64\"}");
    let sum = at("2.87").get(&format!("{HYPERVISORS}/statistics")).await.expect(200);
    assert_eq!(sum.at("/hypervisor_statistics/count"), 2);
    assert_eq!(sum.at("/hypervisor_statistics/vcpus"), 16);
    assert_eq!(sum.at("/hypervisor_statistics/memory_mb_used"), 1024);
    let _ = at("2.88").get(&format!("{HYPERVISORS}/statistics")).await.expect(404);
    let _ = at("2.87").get(&format!("{path}/uptime")).await.expect(501);
    let _ = at("2.88").get(&format!("{path}/uptime")).await.expect(404);
    let _ = lab.at("member:p1", "2.96").get(HYPERVISORS).await.expect(403);
}

#[tokio::test]
async fn hypervisors_are_found_and_paged() {
    let lab = Lab::new().await;
    let (one, _) = (lab.host(1).await, lab.host(2).await);
    lab.server(1, |s| s.host_id = Some(one.id)).await;
    let at = |version: &str| lab.at("admin", version);
    let count = |answer: Value| answer.as_array().unwrap().len();
    let found = at("2.52").get(&format!("{HYPERVISORS}/host-/search")).await.expect(200);
    assert_eq!(count(found.at("/hypervisors")), 2);
    let with = at("2.52").get(&format!("{HYPERVISORS}/host-1/servers")).await.expect(200);
    assert_eq!(with.at("/hypervisors/0/servers/0/name"), "server-1");
    let _ = at("2.52").get(&format!("{HYPERVISORS}/nothing/search")).await.expect(404);
    let _ = at("2.53").get(&format!("{HYPERVISORS}/host-/search")).await.expect(404);
    let by_name =
        at("2.53").get(&format!("{HYPERVISORS}?hypervisor_hostname_pattern=host-2")).await.expect(200);
    assert_eq!(count(by_name.at("/hypervisors")), 1);
    let _ = at("2.53").get(&format!("{HYPERVISORS}?hypervisor_hostname_pattern=nothing")).await.expect(404);
    let _ = at("2.53").get(&format!("{HYPERVISORS}?hypervisor_hostname_pattern=h&limit=1")).await.expect(400);
    assert_eq!(
        count(at("2.32").get(&format!("{HYPERVISORS}?limit=1")).await.expect(200).at("/hypervisors")),
        2
    );
    let first = at("2.53").get(&format!("{HYPERVISORS}/detail?limit=1")).await.expect(200);
    assert_eq!(count(first.at("/hypervisors")), 1);
    let marker = first.text_at("/hypervisors/0/id");
    assert!(first.text_at("/hypervisors_links/0/href").contains(&marker));
    let second = at("2.53").get(&format!("{HYPERVISORS}?marker={marker}")).await.expect(200);
    assert_eq!(count(second.at("/hypervisors")), 1);
    let _ = at("2.53").get(&format!("{HYPERVISORS}?marker=nothing")).await.expect(400);
    let _ = at("2.53").get(&format!("{HYPERVISORS}?with_servers=maybe")).await.expect(400);
    let _ = at("2.53").get(&format!("{HYPERVISORS}/1")).await.expect(400);
}

#[tokio::test]
async fn services_are_disabled_and_declared_dead() {
    let lab = Lab::new().await;
    let host = lab.host(1).await;
    let admin = lab.at("admin", "2.96");
    let list = admin.get(SERVICES).await.expect(200).at("/services");
    let binaries: Vec<&str> =
        list.as_array().unwrap().iter().map(|s| s["binary"].as_str().unwrap()).collect();
    assert_eq!(binaries, ["nova-scheduler", "nova-conductor", "nova-compute"]);
    assert_eq!(list[2]["zone"], "nova");
    assert_eq!((&list[2]["status"], &list[2]["state"]), (&json!("enabled"), &json!("up")));
    let path = format!("{SERVICES}/{}", host.id);
    let off = admin.put(&path, json!({"status": "disabled", "disabled_reason": "work"})).await.expect(200);
    assert_eq!(off.at("/service/status"), "disabled");
    assert_eq!(off.at("/service/disabled_reason"), "work");
    let dead = admin.put(&path, json!({"forced_down": true})).await.expect(200);
    assert_eq!((dead.at("/service/forced_down"), dead.at("/service/state")), (json!(true), json!("down")));
    let on = admin.put(&path, json!({"status": "enabled", "forced_down": "false"})).await.expect(200);
    assert_eq!((on.at("/service/disabled_reason"), on.at("/service/state")), (Value::Null, json!("up")));
    for bad in [json!({}), json!({"status": "enabled", "disabled_reason": "x"}), json!({"status": "on"})] {
        let _ = admin.put(&path, bad).await.expect(400);
    }
    let control = format!("{SERVICES}/{}", list[0]["id"].as_str().unwrap());
    let refused = admin.put(&control, json!({"status": "disabled"})).await.expect(400);
    assert!(refused.text().contains("Only nova-compute services can be updated"));
    let _ = admin.delete(&control).await.expect(400);
    lab.clock.advance(Duration::from_secs(600));
    let only = admin.get(&format!("{SERVICES}?binary=nova-compute&host=host-1")).await.expect(200);
    assert_eq!(only.at("/services").as_array().unwrap().len(), 1);
    assert_eq!(only.at("/services/0/state"), "down");
    assert_eq!(only.at("/services/0/updated_at"), "2026-01-01T00:00:00.000000");
    let _ = lab.at("member:p1", "2.96").get(SERVICES).await.expect(403);
}

#[tokio::test]
async fn services_by_name_before_2_53() {
    let lab = Lab::new().await;
    let host = lab.host(1).await;
    let (old, new) = (lab.at("admin", "2.52"), lab.at("admin", "2.53"));
    let named = json!({"host": "host-1", "binary": "nova-compute"});
    let put = |verb: &str| format!("{SERVICES}/{verb}");
    let off = old.put(&put("disable"), named.clone()).await.expect(200);
    assert_eq!(
        off.json(),
        json!({"service": {"host": "host-1", "binary": "nova-compute", "status": "disabled"}})
    );
    let because = json!({"host": "host-1", "binary": "nova-compute", "disabled_reason": "work"});
    let off = old.put(&put("disable-log-reason"), because).await.expect(200);
    assert_eq!(off.at("/service/disabled_reason"), "work");
    assert!(old.get(SERVICES).await.expect(200).at("/services/2/id").is_u64());
    let _ = old.put(&put("enable"), named.clone()).await.expect(200);
    let down = json!({"host": "host-1", "binary": "nova-compute", "forced_down": true});
    let _ = lab.at("admin", "2.10").put(&put("force-down"), down.clone()).await.expect(404);
    let _ = old.put(&put("force-down"), down).await.expect(200);
    assert_eq!(old.get(SERVICES).await.expect(200).at("/services/2/forced_down"), true);
    assert_eq!(
        lab.at("admin", "2.10").get(SERVICES).await.expect(200).at("/services/2/forced_down"),
        Value::Null
    );
    let _ = new.put(&put("enable"), named).await.expect(404);
    let nowhere = json!({"host": "nowhere", "binary": "nova-compute"});
    let _ = old.put(&put("enable"), nowhere).await.expect(404);
    let server = lab.server(1, |s| s.host_id = Some(host.id)).await;
    let path = format!("{SERVICES}/{}", host.id);
    let busy = new.delete(&path).await.expect(409);
    assert!(busy.text().contains("hosting instances"));
    lab.store.write(move |tx| tx.delete::<compute::model::Server>(&server.id)).await.unwrap();
    let _ = new.delete(&path).await.expect(204);
    let _ = new.delete(&path).await.expect(404);
}

#[tokio::test]
async fn aggregates_make_zones() {
    let lab = Lab::new().await;
    let (one, _) = (lab.host(1).await, lab.host(2).await);
    let (admin, own) = (lab.at("admin", "2.96"), lab.at("member:p1", "2.96"));
    let made = admin
        .post(AGGREGATES, json!({"aggregate": {"name": "a", "availability_zone": "zone-a"}}))
        .await
        .expect(200);
    assert_eq!(made.at("/aggregate/id"), 1);
    assert!(made.at("/aggregate").get("hosts").is_none());
    assert_eq!(made.at("/aggregate/updated_at"), Value::Null);
    let _ = admin.post(AGGREGATES, json!({"aggregate": {"name": "a"}})).await.expect(409);
    let _ = admin
        .post(AGGREGATES, json!({"aggregate": {"name": "x", "availability_zone": "a:b"}}))
        .await
        .expect(400);
    let action = format!("{AGGREGATES}/1/action");
    let added = admin.post(&action, json!({"add_host": {"host": "host-1"}})).await.expect(200);
    assert_eq!(added.at("/aggregate/hosts"), json!(["host-1"]));
    assert_eq!(added.at("/aggregate/metadata"), json!({"availability_zone": "zone-a"}));
    let _ = admin.post(&action, json!({"add_host": {"host": "host-1"}})).await.expect(409);
    let _ = admin.post(&action, json!({"add_host": {"host": "host-9"}})).await.expect(404);
    let zones = own.get("/v2.1/os-availability-zone").await.expect(200).at("/availabilityZoneInfo");
    let entry = |name: &str| json!({"zoneName": name, "zoneState": {"available": true}, "hosts": null});
    assert_eq!(zones, json!([entry("nova"), entry("zone-a")]));
    let _ = own.get("/v2.1/os-availability-zone/detail").await.expect(403);
    let detail = admin.get("/v2.1/os-availability-zone/detail").await.expect(200);
    assert_eq!(detail.at("/availabilityZoneInfo/0/zoneName"), "internal");
    assert_eq!(detail.at("/availabilityZoneInfo/2/hosts/host-1/nova-compute/available"), true);
    // A host is in one zone.
    let _ = admin
        .post(AGGREGATES, json!({"aggregate": {"name": "b", "availability_zone": "zone-b"}}))
        .await
        .expect(200);
    let second = format!("{AGGREGATES}/2/action");
    let refused = admin.post(&second, json!({"add_host": {"host": "host-1"}})).await.expect(409);
    assert!(refused.text().contains("Host already in availability zone"));
    // Servers keep the zone they were promised.
    let server = lab.server(1, |s| s.host_id = Some(one.id)).await;
    let rename = json!({"aggregate": {"availability_zone": "zone-c"}});
    let _ = admin.put(&format!("{AGGREGATES}/1"), rename.clone()).await.expect(400);
    let _ = admin.post(&action, json!({"remove_host": {"host": "host-1"}})).await.expect(409);
    lab.store.write(move |tx| tx.delete::<compute::model::Server>(&server.id)).await.unwrap();
    let renamed = admin.put(&format!("{AGGREGATES}/1"), rename).await.expect(200);
    assert_eq!(renamed.at("/aggregate/availability_zone"), "zone-c");
    assert!(renamed.at("/aggregate/updated_at").is_string());
    let set = json!({"set_metadata": {"metadata": {"ssd": "true", "availability_zone": null}}});
    let set = admin.post(&action, set).await.expect(200);
    assert_eq!(set.at("/aggregate/metadata"), json!({"ssd": "true"}));
    let full = admin.delete(&format!("{AGGREGATES}/1")).await.expect(400);
    assert!(full.text().contains("Host aggregate is not empty"));
    let _ = admin.post(&action, json!({"remove_host": {"host": "host-1"}})).await.expect(200);
    let _ = admin.post(&action, json!({"remove_host": {"host": "host-1"}})).await.expect(404);
    let _ = admin.delete(&format!("{AGGREGATES}/1")).await.expect(200);
    let _ = admin.get(&format!("{AGGREGATES}/1")).await.expect(404);
    assert!(
        lab.at("admin", "2.40")
            .get(&format!("{AGGREGATES}/2"))
            .await
            .expect(200)
            .at("/aggregate/uuid")
            .is_null()
    );
    assert!(
        lab.at("admin", "2.41")
            .get(&format!("{AGGREGATES}/2"))
            .await
            .expect(200)
            .at("/aggregate/uuid")
            .is_string()
    );
}
