//! Placement over its API and its trait.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::sync::Arc;

use api::dialect;
use api::testing::{Client, FakeAuthenticator, Suite};
use base::{Clock, Entropy, ProjectId, ResourceProviderId, ServerId, SystemClock, UserId};
use contract::services::{Candidate, Claim, Inventory, Placement};
use serde_json::{Value, json};
use store::Store;

async fn state() -> Arc<placement::State> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = Store::memory(clock.clone(), &[("placement", placement::MIGRATIONS)]).await.unwrap();
    let auth = Arc::new(FakeAuthenticator);
    placement::State::new(placement::Config::default(), store, auth, clock, Entropy::seeded(1)).unwrap()
}

fn stock(total: u64) -> BTreeMap<String, Inventory> {
    let one =
        Inventory { total, reserved: 0, allocation_ratio: 1.0, min_unit: 1, max_unit: total, step_size: 1 };
    BTreeMap::from([("VCPU".to_owned(), one)])
}

fn vcpus(n: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([("VCPU".to_owned(), n)])
}

async fn claim(
    state: &placement::State,
    consumer: ServerId,
    provider: ResourceProviderId,
    vcpu: u64,
) -> base::Result<()> {
    let (project, user) = (ProjectId::new("p"), UserId::new("u"));
    let claim = Claim { consumer, project, user, provider, resources: vcpus(vcpu) };
    state.allocate(&[claim]).await?.into_iter().collect()
}

/// Providers with room for a CPU.
async fn roomy(state: &placement::State) -> Vec<Arc<Candidate>> {
    let all = state.providers().await.unwrap();
    all.into_iter().filter(|c| c.has_room(&vcpus(1))).collect()
}

/// Claims made together are each for themselves: those without room are refused, the others stand.
#[tokio::test]
async fn together_each_for_itself() {
    let state = state().await;
    let entropy = Entropy::seeded(3);
    let host = ResourceProviderId::random(&entropy);
    state.ensure_provider(host, "h", &stock(3), &[]).await.unwrap();
    let (project, user) = (ProjectId::new("p"), UserId::new("u"));
    let claims: Vec<Claim> = [2, 2, 1, 1]
        .map(|n| Claim {
            consumer: ServerId::random(&entropy),
            project: project.clone(),
            user: user.clone(),
            provider: host,
            resources: vcpus(n),
        })
        .into();
    for _ in 0..2 {
        let told = state.allocate(&claims).await.unwrap();
        assert_eq!(told.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, false]);
        assert_eq!(state.usage(host).await.unwrap(), vcpus(3));
    }
    let lost = Claim { provider: ResourceProviderId::random(&entropy), ..claims[0].clone() };
    assert!(state.allocate(&[lost]).await.unwrap()[0].is_err());
    assert_eq!(state.usage(host).await.unwrap(), vcpus(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_race_never_promises_more_than_there_is() {
    let state = state().await;
    let entropy = Entropy::seeded(2);
    let host = ResourceProviderId::random(&entropy);
    state.ensure_provider(host, "h", &stock(10), &[]).await.unwrap();
    let tries: Vec<_> = (0..30)
        .map(|_| {
            let (state, id) = (state.clone(), ServerId::random(&entropy));
            tokio::spawn(async move { claim(&state, id, host, 1).await.is_ok().then_some(id) })
        })
        .collect();
    let mut won = Vec::new();
    for one in tries {
        won.extend(one.await.unwrap());
    }
    assert_eq!(won.len(), 10);
    assert_eq!(state.usage(host).await.unwrap(), vcpus(10));
    assert!(roomy(&state).await.is_empty());
    // The same again is success and claims nothing; another place replaces the first.
    claim(&state, won[0], host, 1).await.unwrap();
    assert_eq!(state.usage(host).await.unwrap(), vcpus(10));
    let other = ResourceProviderId::random(&entropy);
    state.ensure_provider(other, "h2", &stock(1), &["COMPUTE_NODE".into()]).await.unwrap();
    claim(&state, won[0], other, 1).await.unwrap();
    assert_eq!(state.usage(host).await.unwrap(), vcpus(9));
    for id in &won {
        state.deallocate(*id).await.unwrap();
        state.deallocate(*id).await.unwrap();
    }
    assert_eq!(state.usage(host).await.unwrap(), vcpus(0));
    // A host that shrinks below what is claimed is full, not overdrawn.
    claim(&state, won[1], host, 4).await.unwrap();
    state.ensure_provider(host, "h", &stock(2), &[]).await.unwrap();
    assert!(roomy(&state).await.iter().all(|c| c.provider != host));
    let roomy = roomy(&state).await;
    assert_eq!(roomy.iter().map(|c| c.traits.clone()).collect::<Vec<_>>(), [vec!["COMPUTE_NODE".to_owned()]]);
}

struct Calls(Suite);

impl Calls {
    fn admin(&self) -> Client {
        self.0.client().with_token("admin").at("placement 1.39")
    }

    async fn both(&self, method: &str, path: &str, body: Value, status: u16) -> api::testing::Answer {
        let method: api::Method = method.parse().unwrap();
        let stranger = self.0.client().foreign("member:p2").at("placement 1.39");
        let answer = stranger.call(method.clone(), path).json(&body).send().await;
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text());
        self.admin().call(method, path).json(&body).send().await.expect(status)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_is_accounted_for() {
    let state = state().await;
    let router = api::router(state.clone(), placement::ops());
    let c = Calls(Suite::new(&dialect::PLACEMENT, router, &placement::ops()));
    let none = || Value::Null;
    let root = c.0.client().get("/").await.expect(200);
    assert_eq!(root.text_at("/versions/0/max_version"), "1.39");
    let made = c.both("POST", "/resource_providers", json!({"name": "one"}), 200).await;
    let id = made.text_at("/uuid");
    let one = format!("/resource_providers/{id}");
    let dup = c.admin().post("/resource_providers", json!({"name": "one"})).await.expect(409);
    assert_eq!(dup.text_at("/errors/0/code"), "placement.duplicate_name");
    for (path, status) in [
        ("", 200),
        ("/usages", 200),
        ("/aggregates", 200),
        ("/allocations", 200),
        ("/inventories", 200),
        ("/traits", 200),
    ] {
        let _ = c.both("GET", &format!("{one}{path}"), none(), status).await;
    }
    let _ = c.both("GET", "/resource_providers?name=one", none(), 200).await;
    let _ = c.both("PUT", &one, json!({"name": "uno"}), 200).await;
    let all = format!("{one}/inventories");
    let body = json!({"resource_class": "VCPU", "total": 8, "resource_provider_generation": 0});
    let _ = c.both("POST", &all, body, 201).await;
    let stale = json!({"resource_provider_generation": 0, "inventories": {}});
    let conflict = c.admin().put(&all, stale).await.expect(409);
    assert_eq!(conflict.text_at("/errors/0/code"), "placement.concurrent_update");
    let body = json!({"resource_provider_generation": 1, "inventories": {"VCPU": {"total": 8}, "MEMORY_MB": {"total": 1024}}});
    let _ = c.both("PUT", &all, body, 200).await;
    let class = format!("{all}/MEMORY_MB");
    let _ = c.both("GET", &class, none(), 200).await;
    let _ = c.both("PUT", &class, json!({"resource_provider_generation": 2, "total": 2048}), 200).await;
    let _ = c.both("DELETE", &class, none(), 204).await;
    names(&c, &one).await;
    allocations(&c, &id).await;
    let _ = c.both("DELETE", &all, none(), 204).await;
    let group = json!({"aggregates": ["6f3a5c1e-0d7b-4c3e-9a8f-112233445566"], "resource_provider_generation": epoch(&c, &one).await});
    let _ = c.both("PUT", &format!("{one}/aggregates"), group, 200).await;
    let _ = c.both("DELETE", &one, none(), 204).await;
    let mut suite = c.0;
    for op in ["PUT /traits/{name}", "PUT /resource_classes/{name}", "GET /allocations/{consumer}"] {
        suite.excuse_path(op, "takes new names, or answers emptily");
    }
    suite.check().await.assert_complete();
}

async fn epoch(c: &Calls, one: &str) -> Value {
    c.admin().get(one).await.at("/generation")
}

async fn names(c: &Calls, one: &str) {
    let none = || Value::Null;
    let _ = c.both("GET", "/traits?name=startswith:COMPUTE", none(), 200).await;
    let _ = c.both("PUT", "/traits/CUSTOM_GOLD", none(), 201).await;
    let _ = c.both("GET", "/traits/CUSTOM_GOLD", none(), 204).await;
    let body = json!({"resource_provider_generation": epoch(c, one).await, "traits": ["CUSTOM_GOLD"]});
    let _ = c.both("PUT", &format!("{one}/traits"), body, 200).await;
    assert_eq!(c.admin().delete("/traits/CUSTOM_GOLD").await.status, 409);
    let _ = c.both("DELETE", &format!("{one}/traits"), none(), 204).await;
    let _ = c.both("DELETE", "/traits/CUSTOM_GOLD", none(), 204).await;
    let _ = c.both("GET", "/resource_classes", none(), 200).await;
    let _ = c.both("POST", "/resource_classes", json!({"name": "CUSTOM_A"}), 201).await;
    let _ = c.both("PUT", "/resource_classes/CUSTOM_B", none(), 201).await;
    let _ = c.both("GET", "/resource_classes/CUSTOM_B", none(), 200).await;
    let _ = c.both("DELETE", "/resource_classes/CUSTOM_B", none(), 204).await;
    assert_eq!(c.admin().delete("/resource_classes/VCPU").await.status, 400);
}

async fn allocations(c: &Calls, id: &str) {
    let none = || Value::Null;
    let consumer = "7f3a5c1e-0d7b-4c3e-9a8f-112233445566";
    let path = format!("/allocations/{consumer}");
    let body = |n: u64, epoch: Value| {
        json!({
            "allocations": {id: {"resources": {"VCPU": n}}}, "project_id": "p", "user_id": "u",
            "consumer_generation": epoch, "consumer_type": "INSTANCE",
        })
    };
    assert_eq!(c.admin().put(&path, body(9, Value::Null)).await.status, 409);
    let _ = c.both("PUT", &path, body(2, Value::Null), 204).await;
    assert_eq!(c.admin().put(&path, body(3, Value::Null)).await.status, 409);
    let shown = c.both("GET", &path, none(), 200).await;
    assert_eq!(shown.at("/consumer_generation"), json!(1));
    assert_eq!(shown.at(&format!("/allocations/{id}/resources/VCPU")), json!(2));
    let found = c.both("GET", "/allocation_candidates?resources=VCPU:6", none(), 200).await;
    assert_eq!(found.at("/allocation_requests").as_array().unwrap().len(), 1);
    let full = c.admin().get("/allocation_candidates?resources=VCPU:7").await;
    assert!(full.at("/allocation_requests").as_array().unwrap().is_empty());
    let own =
        c.0.client()
            .with_token("reader:p")
            .at("placement 1.39")
            .get("/usages?project_id=p")
            .await
            .expect(200);
    assert_eq!(own.at("/usages/INSTANCE/VCPU"), json!(2));
    assert_eq!(c.admin().delete(&format!("/resource_providers/{id}")).await.status, 409);
    assert_eq!(c.admin().delete(&format!("/resource_providers/{id}/inventories/VCPU")).await.status, 409);
    let _ = c.both("POST", "/allocations", json!({consumer: body(1, json!(1))}), 204).await;
    let _ = c.both("DELETE", &path, none(), 204).await;
    assert_eq!(c.admin().delete(&path).await.status, 404);
}

/// The forms of the oldest and of later versions.
#[tokio::test]
async fn forms_change_with_their_version() {
    let state = state().await;
    let client = Client::new(api::router(state, placement::ops())).with_token("admin");
    let made = client.post("/resource_providers", json!({"name": "one"})).await.expect(201);
    assert!(made.body.is_empty());
    let url = made.header("location").to_owned();
    let id = url.rsplit('/').next().unwrap().to_owned();
    let shown = client.get(&format!("/resource_providers/{id}")).await.expect(200);
    assert!(shown.at("/parent_provider_uuid").is_null() && shown.at("/links").as_array().unwrap().len() == 3);
    assert_eq!(client.get("/traits").await.status, 404);
    assert_eq!(client.at("placement 1.6").get("/traits").await.status, 200);
    let all = format!("/resource_providers/{id}/inventories");
    let body = json!({"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 4}}});
    let _ = client.put(&all, body).await.expect(200);
    let consumer = "/allocations/7f3a5c1e-0d7b-4c3e-9a8f-112233445566";
    let old = json!({"allocations": [{"resource_provider": {"uuid": id}, "resources": {"VCPU": 1}}]});
    let _ = client.put(consumer, old.clone()).await.expect(204);
    assert_eq!(client.at("placement 1.12").put(consumer, old).await.status, 400);
    assert_eq!(client.at("placement 1.40").get("/").await.status, 200);
    assert_eq!(client.at("placement 1.40").get("/resource_providers").await.status, 406);
}
