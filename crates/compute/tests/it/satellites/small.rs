//! Usage, extensions, migrations, events.

use std::time::Duration;

use base::{ProjectId, ServerId};
use compute::model::PastServer;
use serde_json::{Value, json};

use super::Lab;

const USAGE: &str = "/v2.1/os-simple-tenant-usage";

#[tokio::test]
async fn usage_counts_living_and_past_servers() {
    let lab = Lab::new().await;
    let start = base::Clock::now(&*lab.clock);
    let living = lab.server(1, |s| s.launched_at = Some(start)).await;
    lab.server(2, |_| {}).await;
    lab.store
        .write(move |tx| {
            tx.insert(&mut PastServer {
                id: ServerId(uuid::Uuid::from_u128(9)),
                meta: store::Meta::default(),
                project_id: ProjectId::new("p1"),
                name: "past".into(),
                flavor: "small".into(),
                vcpus: 1,
                ram: 512,
                disk: 5,
                started_at: start,
                ended_at: start.plus_secs(3600),
            })
        })
        .await
        .unwrap();
    lab.clock.advance(Duration::from_secs(2 * 3600));
    let span = "start=2026-01-01T00:00:00&end=2026-01-02T00:00:00";
    let shown = lab.at("reader:p1", "2.96").get(&format!("{USAGE}/p1?{span}")).await.expect(200);
    let usage = shown.at("/tenant_usage");
    assert_eq!(usage["total_hours"], 3.0);
    assert_eq!(usage["total_vcpus_usage"], 5.0);
    assert_eq!(usage["total_memory_mb_usage"], 2.0 * 1024.0 + 512.0);
    assert_eq!(usage["start"], "2026-01-01T00:00:00.000000");
    let servers = usage["server_usages"].as_array().unwrap();
    assert_eq!(servers.len(), 2);
    let past = servers.iter().find(|s| s["name"] == "past").unwrap();
    assert_eq!((&past["state"], &past["uptime"]), (&json!("terminated"), &json!(3600)));
    assert_eq!(past["ended_at"], "2026-01-01T01:00:00.000000");
    let alive = servers.iter().find(|s| s["instance_id"] == json!(living.id)).unwrap();
    assert_eq!((&alive["hours"], &alive["ended_at"]), (&json!(2.0), &Value::Null));
    let late = "start=2026-01-01T01:30:00&end=2026-01-01T02:00:00";
    let late = lab.at("reader:p1", "2.96").get(&format!("{USAGE}/p1?{late}")).await.expect(200);
    assert_eq!(late.at("/tenant_usage/total_hours"), 0.5);
    let none = lab.at("reader:p2", "2.96").get(&format!("{USAGE}/p2?{span}")).await.expect(200);
    assert_eq!(none.json(), json!({"tenant_usage": {}}));
    let _ = lab.at("reader:p2", "2.96").get(&format!("{USAGE}/p1?{span}")).await.expect(403);
    let admin = lab.at("admin", "2.40");
    let all = admin.get(&format!("{USAGE}?{span}&detailed=1")).await.expect(200);
    assert_eq!(all.at("/tenant_usages/0/server_usages").as_array().unwrap().len(), 2);
    let page = admin.get(&format!("{USAGE}?{span}&limit=1")).await.expect(200);
    assert_eq!(page.at("/tenant_usages/0/server_usages"), Value::Null);
    let next = page.text_at("/tenant_usages_links/0/href");
    assert!(next.contains("marker="), "{next}");
    let rest = admin.get(next.strip_prefix("http://cloud.test").unwrap()).await.expect(200);
    let hours = |v: Value| v.as_f64().unwrap();
    let sum = hours(page.at("/tenant_usages/0/total_hours")) + hours(rest.at("/tenant_usages/0/total_hours"));
    assert_eq!(sum, 3.0);
    let _ = lab.at("member:p1", "2.96").get(USAGE).await.expect(403);
    for bad in ["start=yesterday", "start=2026-01-02T00:00:00&end=2026-01-01T00:00:00", "marker=nothing"] {
        let _ = admin.get(&format!("{USAGE}?{bad}")).await.expect(400);
    }
}

#[tokio::test]
async fn extensions_and_migrations() {
    let lab = Lab::new().await;
    let own = lab.at("reader:p1", "2.1");
    let all = own.get("/v2.1/extensions").await.expect(200).at("/extensions");
    assert!(all.as_array().unwrap().iter().any(|e| e["alias"] == "os-keypairs"));
    let one = own.get("/v2.1/extensions/os-keypairs").await.expect(200);
    assert_eq!(one.at("/extension/name"), "Keypairs");
    let _ = own.get("/v2.1/extensions/os-nothing").await.expect(404);
    let admin = lab.at("admin", "2.96");
    assert_eq!(admin.get("/v2.1/os-migrations").await.expect(200).json(), json!({"migrations": []}));
    let _ = admin.get("/v2.1/os-migrations?colour=red").await.expect(400);
    let _ = own.get("/v2.1/os-migrations").await.expect(403);
}

#[tokio::test]
async fn events_are_answered_one_by_one() {
    let lab = Lab::new().await;
    let path = "/v2.1/os-server-external-events";
    let host = lab.host(1).await;
    let placed = lab.server(1, |s| s.host_id = Some(host.id)).await.id;
    let waiting = lab.server(2, |_| {}).await.id;
    let event = |id: ServerId| json!({"name": "network-changed", "server_uuid": id, "tag": "t"});
    let service = lab.at("service", "2.96");
    let good = service.post(path, json!({"events": [event(placed)]})).await.expect(200);
    assert_eq!(
        good.at("/events/0"),
        json!({"name": "network-changed", "server_uuid": placed, "status": "completed", "code": 200, "tag": "t"})
    );
    let nobody = ServerId(uuid::Uuid::from_u128(5));
    let mixed = json!({"events": [event(placed), event(waiting), event(nobody)]});
    let mixed = service.post(path, mixed).await.expect(207);
    let codes: Vec<Value> = (0..3).map(|i| mixed.at(&format!("/events/{i}/code"))).collect();
    assert_eq!(codes, [json!(200), json!(422), json!(404)]);
    let _ = service.post(path, json!({"events": [event(nobody)]})).await.expect(404);
    let named = |name: &str| json!({"events": [{"name": name, "server_uuid": placed}]});
    let _ = lab.at("service", "2.50").post(path, named("volume-extended")).await.expect(400);
    let _ = lab.at("service", "2.51").post(path, named("volume-extended")).await.expect(200);
    for bad in
        [json!([]), json!([{"name": "nothing", "server_uuid": placed}]), json!([{"name": "network-changed"}])]
    {
        let _ = service.post(path, json!({"events": bad})).await.expect(400);
    }
    let _ = lab.at("member:p1", "2.96").post(path, named("network-changed")).await.expect(403);
}
