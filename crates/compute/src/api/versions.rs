//! Version documents. The root begins with a v2.0 entry: Tempest asserts it.

use ::api::{Ctx, Op, Reply, Request};
use base::Result;
use serde_json::{Value, json};

use crate::State;

pub(super) fn ops() -> Vec<Op<State>> {
    let doc = |op: Op<State>| op.public().summary("Which versions there are.");
    vec![doc(Op::get("/", "", root)), doc(Op::get("/v2.1", "", current)), doc(Op::get("/v2", "", legacy))]
}

fn entry(cx: &Ctx<State>, new: bool) -> Value {
    let (id, status, max, min, updated) = if new {
        ("v2.1", "CURRENT", "2.96", "2.1", "2013-07-23T11:33:21Z")
    } else {
        ("v2.0", "SUPPORTED", "", "", "2011-01-21T11:33:21Z")
    };
    let href = cx.url(if new { "/v2.1/" } else { "/v2/" });
    json!({
        "id": id, "status": status, "version": max, "min_version": min, "updated": updated,
        "links": [{"rel": "self", "href": href}],
    })
}

fn one(cx: &Ctx<State>, new: bool) -> Value {
    let mut version = entry(cx, new);
    let number = if new { "2.1" } else { "2" };
    if let Some(map) = version.as_object_mut() {
        if let Some(links) = map.get_mut("links").and_then(Value::as_array_mut) {
            links.push(
                json!({"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}),
            );
        }
        let kind = format!("application/vnd.openstack.compute+json;version={number}");
        map.insert("media-types".into(), json!([{"base": "application/json", "type": kind}]));
    }
    json!({"version": version})
}

async fn root(cx: Ctx<State>, _: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&json!({"versions": [entry(&cx, false), entry(&cx, true)]})))
}

async fn current(cx: Ctx<State>, _: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&one(&cx, true)))
}

async fn legacy(cx: Ctx<State>, _: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&one(&cx, false)))
}
