//! Version documents at service roots, mounted as the binary mounts them.

use api::dialect::{CINDER, GLANCE, KEYSTONE, NEUTRON, NOVA, PLACEMENT};
use api::testing::Client;
use api::{Dialect, Op};

use super::service::{Things, settings, state};

fn mounted(dialect: &'static Dialect, ops: Vec<Op<Things>>) -> Client {
    Client::new(axum::Router::new().nest_service("/things", api::router(state(dialect, settings()), ops)))
}

fn home(prefix: &str) -> serde_json::Value {
    serde_json::json!({"resources": {"r": {"href": format!("{prefix}/things")}}})
}

#[tokio::test]
async fn who_prefers_json_home_gets_it() {
    let client = mounted(&KEYSTONE, api::versions::keystone(home));
    for (accept, path, href) in [
        ("application/json-home", "", "/v3/things"),
        ("application/json-home", "/v3", "/things"),
        ("text/html, application/json-home;q=0.5, */*; q=0.1", "/v3", "/things"),
    ] {
        let client = client.with_header("accept", accept);
        let answer = client.get(&format!("/things{path}")).await.expect(200);
        assert_eq!(answer.header("content-type"), "application/json-home");
        assert_eq!(answer.text_at("/resources/r/href"), href, "{accept} {path}");
    }
    for accept in [
        "",
        "*/*",
        "application/json",
        "application/json-home, application/json",
        "application/json-home;q=x",
    ] {
        let answer = client.with_header("accept", accept).get("/things/v3").await.expect(200);
        assert_eq!(answer.text_at("/version/id"), "v3.14", "{accept}");
    }
}

#[tokio::test]
async fn roots_answer_with_and_without_slash_and_without_token() {
    for (dialect, ops, path, status, id, version) in [
        (&NOVA, api::versions::nova(), "", 200, "/versions/0/id", "v2.1"),
        (&NOVA, api::versions::nova(), "/v2.1", 200, "/version/version", "2.96"),
        (&NOVA, api::versions::nova(), "/v2.1", 200, "/version/min_version", "2.1"),
        (&CINDER, api::versions::cinder(), "", 300, "/versions/0/id", "v3.0"),
        (&CINDER, api::versions::cinder(), "/v3", 200, "/versions/0/version", "3.71"),
        (&NEUTRON, api::versions::neutron(), "", 200, "/versions/0/id", "v2.0"),
        (&GLANCE, api::versions::glance(), "", 300, "/versions/0/status", "CURRENT"),
        (&GLANCE, api::versions::glance(), "/versions", 200, "/versions/1/status", "SUPPORTED"),
        (&KEYSTONE, api::versions::keystone(home), "", 300, "/versions/values/0/status", "stable"),
        (&KEYSTONE, api::versions::keystone(home), "/v3", 200, "/version/id", "v3.14"),
        (&PLACEMENT, api::versions::placement(), "", 200, "/versions/0/max_version", "1.39"),
    ] {
        let client = mounted(dialect, ops);
        for slash in ["", "/"] {
            let answer = client.get(&format!("/things{path}{slash}")).await.expect(status);
            assert_eq!(answer.text_at(id), version, "{} {path}{slash}", dialect.service_type);
        }
    }
    let nova = mounted(&NOVA, api::versions::nova()).get("/things/v2.1").await;
    assert_eq!(nova.text_at("/version/links/0/href"), "https://cloud.test:8443/things/v2.1/");
}
