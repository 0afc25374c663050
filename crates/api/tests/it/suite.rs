//! The account itself: it passes a service that is right, and finds what is wrong with one that is not.

use api::dialect::{CINDER, GLANCE, KEYSTONE, NEUTRON, NOVA, PLACEMENT};
use api::testing::Suite;
use api::{Ctx, Dialect, JsonSchema, Op, Reply, Request, Result};
use serde::Deserialize;
use serde_json::json;

use super::service::{Things, ops, settings, state};

async fn check(dialect: &'static Dialect) -> usize {
    let table: Vec<Op<Things>> = ops()
        .into_iter()
        .filter(|op| !op.info().path.contains("panic") && !op.info().path.contains("slow"))
        .collect();
    let mut suite = Suite::new(dialect, api::router(state(dialect, settings()), table.clone()), &table);
    let (own, other, admin) = (
        suite.client().with_token("member:p1"),
        suite.client().foreign("member:p2"),
        suite.client().with_token("admin"),
    );
    let made = own.post("/v1/things", json!({"thing": {"name": "a", "size": 3}})).await.expect(201);
    let path = format!("/v1/things/{}", made.text_at("/thing/id"));
    let action = format!("{path}/action");
    let latest = dialect.microversions.map_or(String::new(), |r| format!("{} latest", r.service));
    for client in [&other, &own] {
        client.get(&path).await;
        client.put(&path, json!({"name": "b"})).await;
        client.post(&action, json!({"reboot": {"type": "HARD"}})).await;
        client.post(&action, json!({"os-start": null})).await;
        client.post(&action, json!({"reset": null})).await;
        client.put(&format!("{path}/file"), json!("x")).await;
    }
    for path in ["/v1/things", "/v1/public", "/v1/maybe", "/v1/stream", "/v1/old"] {
        own.get(path).await.expect(200);
    }
    if dialect.microversions.is_some() {
        own.at(&latest).get("/v1/old").await;
    }
    own.post("/v1/finish", json!(null)).await.expect(200);
    admin.get("/v1/hosts").await.expect(200);
    admin.post(&action, json!({"reset": null})).await.expect(202);
    suite.client().with_token("system-reader").get("/v1/system").await.expect(200);
    other.delete(&path).await.expect(404);
    own.delete(&path).await.expect(204);
    suite
        .paged(&["GET /v1/things"])
        .watch("member:p1", "/v1/things")
        .token_for("GET /v1/system", "system-admin")
        .sample("POST /v1/things", json!({"thing": {"name": "a", "size": 3}}));
    // `/v1/old` is there twice under one id where the service has microversions, and only once called where it has not.
    let report = suite.check().await;
    report.assert_complete();
    assert!(report.unauthenticated >= 4 * 14);
    report.malformed
}

#[tokio::test]
async fn a_right_service_passes_in_every_dialect() {
    let mut sum = 0;
    for dialect in [&NOVA, &CINDER, &NEUTRON, &KEYSTONE, &GLANCE, &PLACEMENT] {
        sum += check(dialect).await;
    }
    println!("{sum} malformed requests");
    assert!(sum > 600, "{sum}");
}

#[derive(Deserialize, JsonSchema)]
struct Sloppy {
    #[serde(default)]
    #[expect(dead_code, reason = "nobody reads it")]
    name: serde_json::Value,
    #[serde(rename = "count")]
    #[schemars(range(min = 0))]
    #[expect(dead_code, reason = "nobody reads it")]
    claimed_to_be_positive: i64,
}

#[tokio::test]
async fn a_wrong_service_is_found_out() {
    async fn careless(_: Ctx<Things>, req: Request<Sloppy>) -> Result<Reply> {
        drop(req.body);
        Ok(Reply::empty())
    }
    async fn writes(cx: Ctx<Things>, req: Request<()>) -> Result<Reply> {
        let thing = super::service::Thing {
            id: base::ServerId::random(&base::Entropy::seeded(1)),
            name: "left behind".into(),
            size: 1,
            project: base::ProjectId::new("p1"),
            shared: false,
        };
        cx.things.lock().push(thing);
        Err(api::Error::not_found(req.param("id")))
    }
    async fn breaks(_: Ctx<Things>, req: Request<()>) -> Result<Reply> {
        let id: i32 = req.param("id").parse().map_err(api::Error::internal)?;
        Ok(Reply::json(&id))
    }
    let table: Vec<Op<Things>> = vec![
        Op::post("/v1/things", "things:create", careless),
        Op::get("/v1/things/{id}", "things:show", breaks),
        Op::delete("/v1/things/{id}", "things:delete", writes),
    ];
    let count = Op::get("/v1/count", "things:list", |cx: Ctx<Things>, _: Request<()>| async move {
        Ok(Reply::json(&cx.things.lock().len()))
    });
    let table = [table, vec![count]].concat();
    let mut suite = Suite::new(&NOVA, api::router(state(&NOVA, settings()), table.clone()), &table);
    suite.watch("admin", "/v1/count");
    let report = suite.check().await;
    let text = report.to_string();
    assert!(text.contains("POST /v1/things: too small for count: answered: 200"), "{text}");
    assert!(text.contains("GET /v1/things/{id}: path parameter not-an-id: answered: 500"), "{text}");
    assert!(text.contains("a malformed request changed /v1/count: 0 became"), "{text}");
    assert_eq!(report.without_happy.len(), 4);
    assert_eq!(report.without_foreign, ["GET /v1/things/{id}", "DELETE /v1/things/{id}"]);
    assert!(std::panic::catch_unwind(|| report.assert_complete()).is_err());
}
