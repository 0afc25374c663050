//! The order of a request and what every answer carries.

use api::Method;
use api::dialect::{CINDER, GLANCE, KEYSTONE, NEUTRON, NOVA, PLACEMENT};
use api::testing::{Answer, Client};
use serde_json::json;

use super::service::{client, client_of, settings, state};

async fn thing(client: &Client, name: &str) -> String {
    let made =
        client.post("/things/v1/things", json!({"thing": {"name": name, "size": 3}})).await.expect(201);
    format!("/things/v1/things/{}", made.text_at("/thing/id"))
}

#[tokio::test]
async fn a_tenant_makes_reads_changes_deletes() {
    let own = client(&NOVA).with_token("member:p1");
    let path = thing(&own, "a").await;
    assert_eq!(own.get(&path).await.expect(200).text_at("/thing/name"), "a");
    let changed = own.put(&path, json!({"name": "b"})).await.expect(200);
    assert_eq!(changed.text_at("/thing/name"), "b");
    assert_eq!(changed.at("/thing/size"), 3);
    assert!(own.delete(&path).await.expect(204).body.is_empty());
    let gone = own.get(&path).await.expect(404);
    assert!(gone.text_at("/itemNotFound/message").contains("could not be found"));
}

#[tokio::test]
async fn a_foreign_thing_is_as_a_missing_one_and_a_visible_one_is_forbidden() {
    let client = client(&NOVA);
    let (own, other) = (client.with_token("member:p1"), client.with_token("member:p2"));
    let path = thing(&own, "mine").await;
    let foreign = other.get(&path).await.expect(404);
    own.delete(&path).await.expect(204);
    let missing = other.get(&path).await.expect(404);
    assert_eq!(foreign.json(), missing.json());
    let shared = thing(&own, "shared").await;
    let refused = other.delete(&shared).await.expect(403);
    assert_eq!(refused.text_at("/forbidden/message"), "Policy doesn't allow things:delete to be performed.");
    client.with_token("reader:p1").delete(&shared).await.expect(403);
    client.with_token("admin").get(&shared).await.expect(200);
}

#[tokio::test]
async fn no_token_or_a_bad_one_is_401_before_anything_else() {
    let client = client(&KEYSTONE);
    let bare = client.post("/things/v1/things", json!("nonsense")).await.expect(401);
    assert_eq!(bare.header("www-authenticate"), "Keystone uri=\"https://cloud.test:8443/identity\"");
    assert_eq!(bare.at("/error/code"), 401);
    assert_eq!(bare.text_at("/error/title"), "Unauthorized");
    for token in ["", "forged", "admin:", "member:a:b:c", "root"] {
        client.with_token(token).get("/things/v1/things").await.expect(401);
    }
    let public = client.get("/things/v1/public").await.expect(200);
    assert_eq!(public.text_at("/link"), "https://cloud.test:8443/things/v1/public");
    client.with_token("forged").get("/things/v1/public").await.expect(200);
    assert_eq!(client.get("/things/v1/maybe").await.expect(200).json(), false);
    assert_eq!(client.with_token("admin").get("/things/v1/maybe").await.expect(200).json(), true);
    client.with_token("forged").get("/things/v1/maybe").await.expect(401);
}

#[tokio::test]
async fn policy_refuses_the_hopeless_before_the_body_is_looked_at() {
    let client = client(&NOVA);
    let reader = client.with_token("reader:p1");
    reader.call(Method::POST, "/things/v1/things").bytes("{broken").send().await.expect(403);
    client
        .with_token("member:p1")
        .call(Method::POST, "/things/v1/things")
        .bytes("{broken")
        .send()
        .await
        .expect(400);
    client.with_token("member:p1").get("/things/v1/hosts").await.expect(403);
    client.with_token("none").get("/things/v1/things").await.expect(403);
    client.with_token("admin").get("/things/v1/system").await.expect(403);
    client.with_token("system-reader").get("/things/v1/system").await.expect(200);
}

#[tokio::test]
async fn actions_go_by_the_single_key() {
    let own = client(&NOVA).with_token("member:p1");
    let path = format!("{}/action", thing(&own, "a").await);
    assert_eq!(
        own.post(&path, json!({"reboot": {"type": "SOFT"}})).await.expect(202).header("x-soft"),
        "true"
    );
    own.post(&path, json!({"os-start": null})).await.expect(202);
    own.post(&path, json!({"os-start": {}})).await.expect(202);
    let unknown = own.post(&path, json!({"os-fly": null})).await.expect(400);
    assert_eq!(unknown.text_at("/badRequest/message"), "There is no such action: os-fly");
    own.post(&path, json!({"os-start": null, "reboot": null})).await.expect(400);
    own.post(&path, json!({})).await.expect(400);
    own.post(&path, json!(["os-start"])).await.expect(400);
    own.post(&path, json!({"reset": null})).await.expect(403);
    let wrong = own.post(&path, json!({"reboot": {"type": "MILD"}})).await.expect(400);
    assert!(wrong.text().contains("reboot.type"), "{}", wrong.text());
}

#[tokio::test]
async fn microversions_are_negotiated() {
    let own = client(&NOVA).with_token("member:p1");
    let path = "/things/v1/old";
    let plain = own.get(path).await.expect(200);
    assert_eq!(plain.json(), "old 2.1");
    assert_eq!(plain.header("openstack-api-version"), "compute 2.1");
    assert_eq!(plain.header("x-openstack-nova-api-version"), "2.1");
    let vary: Vec<_> = plain.headers.get_all("vary").iter().collect();
    assert_eq!(vary, ["OpenStack-API-Version", "X-OpenStack-Nova-API-Version"]);
    for (header, value, answer) in [
        ("OpenStack-API-Version", "compute 2.10", "old 2.10"),
        ("OpenStack-API-Version", "compute 2.11", "new 2.11"),
        ("OpenStack-API-Version", "volume 3.1, compute 2.96", "new 2.96"),
        ("OpenStack-API-Version", "COMPUTE latest", "new 2.96"),
        ("X-OpenStack-Nova-API-Version", "2.50", "new 2.50"),
        ("OpenStack-API-Version", "volume 3.1", "old 2.1"),
    ] {
        assert_eq!(own.with_header(header, value).get(path).await.expect(200).json(), answer, "{value}");
    }
    let refused = own.at("compute 2.97").get(path).await.expect(406);
    assert_eq!(
        refused.json(),
        json!({"computeFault": {"code": 406,
            "message": "Version 2.97 is not supported by the API. Minimum is 2.1 and maximum is 2.96."}})
    );
    for bad in ["compute 2", "compute x", "compute 2.01", "compute 2.-1", "compute 2.1.1", "compute "] {
        let answer = own.at(bad).get(path).await;
        assert!(answer.status == 400 || bad == "compute ", "{bad}: {}", answer.status);
    }
    // Public documents are readable under any version.
    own.at("compute 9.9").get("/things/v1/public").await.expect(200);
    let placement =
        client(&PLACEMENT).with_token("member:p1").at("placement 9.9").get(path).await.expect(406);
    assert_eq!(placement.at("/errors/0/max_version"), "1.39");
    assert_eq!(placement.at("/errors/0/title"), "Not Acceptable");
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let client = client(&NOVA);
    let is_id = |answer: &Answer, name: &str| {
        let id = answer.header(name).to_owned();
        assert!(id.len() == 40 && id.starts_with("req-"), "{id}");
        id
    };
    let first = client.get("/things/v1/public").await;
    let second = client.get("/things/nowhere").await.expect(404);
    assert_ne!(is_id(&first, "x-openstack-request-id"), is_id(&second, "x-openstack-request-id"));
    assert_eq!(is_id(&first, "x-compute-request-id"), is_id(&first, "x-openstack-request-id"));
}

#[tokio::test]
async fn head_405_404_and_slashes() {
    let client = client(&NEUTRON);
    let own = client.with_token("member:p1");
    let head = own.call(Method::HEAD, "/things/v1/things").send().await.expect(200);
    assert!(head.body.is_empty());
    let get = own.get("/things/v1/things").await.expect(200);
    assert_eq!(head.header("content-length"), get.body.len().to_string());
    own.get("/things/v1/things/").await.expect(200);
    let refused = own.call(Method::PATCH, "/things/v1/things").send().await.expect(405);
    assert_eq!(refused.header("allow"), "GET, HEAD, POST");
    assert_eq!(refused.text_at("/NeutronError/type"), "HTTPMethodNotAllowed");
    let lost = own.get("/things/v2/things").await.expect(404);
    assert_eq!(lost.text_at("/NeutronError/type"), "HTTPNotFound");
    own.get("/things/v1/things/%00").await.expect(404);
    own.get("/things/v1/things/%ff").await.expect(404);
    own.get("/things/v1/things/not-an-id").await.expect(404);
    own.get("/things").await.expect(404);
}

#[tokio::test]
async fn panics_and_slowness_show_nothing() {
    let client = client(&CINDER).with_token("admin");
    for method in [Method::GET, Method::POST] {
        let answer = client.call(method, "/things/v1/panic").send().await.expect(500);
        assert!(!answer.text().contains("hunter2"));
        assert_eq!(answer.at("/computeFault/code"), 500);
    }
    let late = client.post("/things/v1/slow", json!(null)).await.expect(503);
    assert_eq!(late.at("/serviceUnavailable/code"), 503);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_stop_a_write() {
    use tower::ServiceExt;
    let state = state(&NOVA, settings());
    let router = api::router(state.clone(), super::service::ops());
    let request = axum::http::Request::post("/v1/finish").header("x-auth-token", "admin");
    let mut call = Box::pin(router.oneshot(request.body(axum::body::Body::empty()).unwrap()));
    // One poll starts it; then the connection is gone.
    assert!(futures::poll!(&mut call).is_pending());
    drop(call);
    tokio::time::timeout(std::time::Duration::from_secs(10), state.finished.notified()).await.unwrap();
}

#[tokio::test]
async fn streams_go_both_ways() {
    let own = client(&GLANCE).with_token("member:p1");
    let path = format!("{}/file", thing(&own, "a").await);
    let long = vec![7_u8; 1_000_000];
    let call = own.call(Method::PUT, &path).header("content-type", "application/octet-stream").bytes(long);
    assert_eq!(call.send().await.expect(200).json(), 1_000_000);
    assert_eq!(own.get("/things/v1/stream").await.expect(200).text(), "chunk 0;chunk 1;chunk 2;");
}

#[tokio::test]
async fn forwarded_headers_count_only_where_configured() {
    let trusting = api::Settings { trust_forwarded: true, ..settings() };
    let asked = |client: Client| async move {
        let client =
            client.with_header("x-forwarded-proto", "http").with_header("x-forwarded-host", "evil.test");
        client.get("/things/v1/public").await.text_at("/link")
    };
    assert_eq!(asked(client_of(state(&NOVA, settings()))).await, "https://cloud.test:8443/things/v1/public");
    let trusting = client_of(state(&NOVA, trusting));
    assert_eq!(asked(trusting.clone()).await, "http://evil.test/things/v1/public");
    let odd = trusting.with_header("x-forwarded-host", "a\"><script>").get("/things/v1/public").await;
    assert_eq!(odd.text_at("/link"), "https://cloud.test:8443/things/v1/public");
    let bare = client_of(state(&NOVA, api::Settings { public_url: String::new(), ..settings() }));
    assert_eq!(bare.get("/things/v1/public").await.text_at("/link"), "http://cloud.test/things/v1/public");
}

#[tokio::test]
async fn calls_are_counted_by_operation() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let client = client(&PLACEMENT).with_token("admin");
    client.get("/things/v1/hosts").await.expect(200);
    client.get("/things/v1/hosts").await.expect(200);
    client.get("/things/nothing").await.expect(404);
    let text = recorder.handle().render();
    for line in [
        "allod_api_requests_total{service=\"placement\",op=\"GET /v1/hosts\",class=\"2xx\"} 2",
        "allod_api_requests_total{service=\"placement\",op=\"none\",class=\"4xx\"} 1",
        "allod_api_request_seconds_count{service=\"placement\",op=\"GET /v1/hosts\"} 2",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("POST"), "what was never called is not told: {text}");
}

#[test]
fn a_wrong_table_is_told() {
    use api::{Ctx, Op, Reply, Request};
    async fn nothing(_: Ctx<super::service::Things>, _: Request<()>) -> api::Result<Reply> {
        Ok(Reply::empty())
    }
    let build = |ops| api::router::try_router(state(&NOVA, settings()), ops).map_err(|e| e.chain());
    let twice = vec![Op::get("/a", "things:list", nothing), Op::get("/a", "things:list", nothing)];
    assert!(build(twice).unwrap_err().contains("is there twice"));
    let overlap = vec![
        Op::get("/a", "things:list", nothing).until(2, 5),
        Op::get("/a", "things:list", nothing).since(2, 5),
    ];
    assert!(build(overlap).unwrap_err().contains("is there twice"));
    assert!(build(vec![Op::get("/a", "things:unheard", nothing)]).unwrap_err().contains("no policy rule"));
    let names =
        vec![Op::get("/a/{id}", "things:list", nothing), Op::get("/a/{other}/b", "things:list", nothing)];
    assert!(build(names).is_ok());
}
