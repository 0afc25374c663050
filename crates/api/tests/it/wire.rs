//! Bodies, queries, pages and documents as they go over the wire.

use api::Method;
use api::dialect::{GLANCE, KEYSTONE, NEUTRON, NOVA, PLACEMENT};
use serde_json::{Value, json};

use super::service::{client, ops};

#[tokio::test]
async fn a_bad_body_is_a_400_that_names_the_field() {
    let own = client(&NOVA).with_token("member:p1");
    for (body, expected) in [
        (json!({}), "missing field `thing`"),
        (json!({"thing": {"size": 3}}), "thing. missing field `name`"),
        (json!({"thing": {"name": 3, "size": 3}}), "thing.name"),
        (json!({"thing": {"name": "", "size": 3}}), "thing.name. may not be empty"),
        (json!({"thing": {"name": "  ", "size": 3}}), "thing.name. is blank"),
        (json!({"thing": {"name": "x".repeat(256), "size": 3}}), "thing.name. has more than 255"),
        (json!({"thing": {"name": "a\u{7}", "size": 3}}), "thing.name. contains a control"),
        (json!({"thing": {"name": "a\u{0}", "size": 3}}), "thing.name. a string may not contain a NUL"),
        (json!({"thing": {"name": "a", "size": 0}}), "thing.size. 0 is less than the minimum of 1"),
        (
            json!({"thing": {"name": "a", "size": "101"}}),
            "thing.size. 101 is greater than the maximum of 100",
        ),
        (json!({"thing": {"name": "a", "size": 1.5}}), "thing.size"),
        (json!({"thing": {"name": "a", "size": "1x"}}), "thing.size"),
        (json!({"thing": {"name": "a", "size": 18_446_744_073_709_551_615_u64}}), "thing.size"),
        (json!({"thing": {"name": "a", "size": 1, "colour": "red"}}), "unknown field `colour`"),
        (json!({"thing": {"name": "a", "size": 1, "metadata": {"k": 1}}}), "thing.metadata.k"),
        (json!({"thing": {"name": "a", "size": 1, "metadata": {"": "v"}}}), "thing.metadata"),
        (json!({"thing": {"name": "a", "size": 1, "tags": ["ok", 7]}}), "thing.tags[1]"),
        (json!({"thing": {"name": "a", "size": 1, "tags": [{"a": "\u{0}"}]}}), "thing.tags.[0].a"),
    ] {
        let answer = own.post("/things/v1/things", body.clone()).await.expect(400);
        let message = answer.text_at("/badRequest/message");
        assert!(message.contains(expected), "{body}: {message}");
    }
    own.post("/things/v1/things", json!({"thing": {"name": "é".repeat(255), "size": "7"}})).await.expect(201);
    // An escaped backslash before u0000 is plain text, not a NUL.
    let plain =
        own.call(Method::POST, "/things/v1/things").bytes(r#"{"thing":{"name":"a\\u0000","size":1}}"#);
    plain.send().await.expect(201);
}

#[tokio::test]
async fn each_dialect_has_its_words() {
    for (dialect, pointer, expected) in [
        (&NOVA, "/badRequest/message", "Invalid input for field/attribute thing.name"),
        (&NEUTRON, "/NeutronError/message", "Invalid input for thing.name. Reason:"),
        (&KEYSTONE, "/error/message", "Invalid input for field 'thing.name'"),
        (&PLACEMENT, "/errors/0/detail", "JSON does not validate: thing.name"),
    ] {
        let own = client(dialect).with_token("member:p1");
        let answer =
            own.post("/things/v1/things", json!({"thing": {"name": 7, "size": 1}})).await.expect(400);
        assert!(answer.text_at(pointer).starts_with(expected), "{}", answer.text());
    }
    let own = client(&GLANCE).with_token("member:p1");
    let call =
        || own.call(Method::POST, "/things/v1/things").json(&json!({"thing": {"name": "<b>", "size": 0}}));
    let html = call().header("accept", "*/*").send().await.expect(400);
    assert_eq!(html.header("content-type"), "text/html; charset=UTF-8");
    assert!(html.text().contains("<h1>400 Bad Request</h1>"), "{}", html.text());
    let json = call().header("accept", "application/json").send().await.expect(400);
    assert_eq!(json.text_at("/code"), "400 Bad Request");
    assert_eq!(json.text_at("/title"), "Bad Request");
}

#[tokio::test]
async fn content_types() {
    let own = client(&NOVA).with_token("member:p1");
    let good = json!({"thing": {"name": "a", "size": 1}}).to_string();
    let call = |media: &str| {
        own.call(Method::POST, "/things/v1/things").header("content-type", media).bytes(good.clone()).send()
    };
    call("application/json; charset=utf-8").await.expect(201);
    call("Application/JSON").await.expect(201);
    let refused = call("text/plain").await.expect(415);
    assert_eq!(refused.at("/badMediaType/code"), 415);
    own.call(Method::POST, "/things/v1/things").bytes(good.clone()).send().await.expect(201);
    let placement = client(&PLACEMENT).with_token("member:p1");
    let call =
        placement.call(Method::POST, "/things/v1/things").header("content-length", &good.len().to_string());
    let refused = call.bytes(good.clone()).send().await.expect(415);
    assert_eq!(
        refused.text_at("/errors/0/detail"),
        "The media type None is not supported, use application/json"
    );
    // A body nobody asked for is not looked at.
    let path = "/things/v1/public";
    own.call(Method::GET, path)
        .header("content-type", "text/plain")
        .bytes("{broken")
        .send()
        .await
        .expect(200);
}

#[tokio::test]
async fn too_large_is_413_whether_announced_or_not() {
    let own = client(&NEUTRON).with_token("member:p1");
    let huge = format!("\"{}\"", "x".repeat(200_000));
    let call = own.call(Method::POST, "/things/v1/things").header("content-length", "200002");
    call.bytes(huge.clone()).send().await.expect(413);
    let chunks = futures::stream::iter(vec![Ok::<_, std::io::Error>(bytes::Bytes::from(huge))]);
    let call = own.call(Method::POST, "/things/v1/things").body(axum::body::Body::from_stream(chunks));
    assert_eq!(call.send().await.expect(413).text_at("/NeutronError/type"), "HTTPRequestEntityTooLarge");
}

#[tokio::test]
async fn pages_link_to_the_next_in_each_dialect() {
    for (dialect, pointer, base) in [
        (&NOVA, "/things_links/0/href", "https://cloud.test:8443/things"),
        (&NEUTRON, "/things_links/0/href", "https://cloud.test:8443/things"),
        (&KEYSTONE, "/links/next", "https://cloud.test:8443/things"),
        (&GLANCE, "/next", ""),
    ] {
        let own = client(dialect).with_token("member:p1");
        for i in 0..5 {
            own.post("/things/v1/things", json!({"thing": {"name": format!("n{i}"), "size": 1}}))
                .await
                .expect(201);
        }
        let mut seen = Vec::new();
        let mut path = "/things/v1/things?limit=2&name=a%26b".to_owned();
        let mut pages = 0;
        loop {
            let page = own.get(&path).await.expect(200);
            for thing in page.at("/things").as_array().unwrap() {
                seen.push(thing["id"].as_str().unwrap().to_owned());
            }
            pages += 1;
            let next = page.text_at(pointer);
            if next.is_empty() {
                break;
            }
            assert!(next.contains("limit=2") && next.contains("name=a%26b"), "{next}");
            path = format!("/things{}", next.strip_prefix(base).unwrap());
        }
        assert_eq!((pages, seen.len()), (3, 5), "{}", dialect.service_type);
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }
    let own = client(&KEYSTONE).with_token("member:p1");
    let page = own.get("/things/v1/things").await.expect(200);
    assert_eq!(page.at("/links/self"), "https://cloud.test:8443/things/v1/things");
    assert_eq!(
        (page.at("/links/next"), page.json()["links"]["previous"].clone()),
        (Value::Null, Value::Null)
    );
    let glance = client(&GLANCE).with_token("member:p1").get("/things/v1/things?limit=2").await.expect(200);
    assert_eq!(glance.at("/first"), "/v1/things?limit=2");
    assert_eq!(glance.at("/schema"), "/v2/schemas/things");
}

#[tokio::test]
async fn a_bad_query_is_a_400_that_names_the_parameter() {
    let own = client(&NEUTRON).with_token("member:p1");
    for (query, expected) in [
        ("limit=-1", "'limit'"),
        ("limit=+1", "'limit'"),
        ("limit=x", "'limit'"),
        ("limit=1&limit=x", "'limit'"),
        ("sort_key=colour", "'sort_key'"),
        ("sort_key=name&sort_dir=up", "'sort_dir'"),
        ("sort_dir=up", "'sort_dir'"),
        ("page_reverse=maybe", "'page_reverse'"),
        ("marker=nothing", "marker"),
        ("x=%ff", "'x'"),
        ("x=%00", "'x'"),
        ("%ff=x", "not UTF-8"),
        ("x=%zz", "'x'"),
    ] {
        let answer = own.get(&format!("/things/v1/things?{query}")).await.expect(400);
        assert!(answer.text_at("/NeutronError/message").contains(expected), "{query}: {}", answer.text());
    }
    own.get("/things/v1/things?limit=0&sort_key=name&sort_dir=desc&sort=name:asc").await.expect(200);
}

#[test]
fn the_openapi_document_tells_the_table() {
    let document = api::openapi::document(&NOVA, &ops(), "https://cloud.test/things");
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], "2.96");
    let create = &document["paths"]["/v1/things"]["post"];
    assert_eq!(create["operationId"], "POST /v1/things");
    assert_eq!(create["x-openstack-policy"], "things:create");
    assert!(create["responses"]["201"].is_object());
    let schema = create.pointer("/requestBody/content/application~1json/schema").unwrap();
    assert!(schema["properties"]["thing"].is_object(), "{schema}");
    let action = &document["paths"]["/v1/things/{id}/action"]["post"];
    assert_eq!(action["x-openstack-operations"].as_array().unwrap().len(), 3);
    assert!(document["paths"]["/v1/public"]["get"]["security"].is_null());
    // Every reference leads somewhere.
    let text = document.to_string();
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}
