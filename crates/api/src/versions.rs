//! Version documents: what keystoneauth and openstacksdk read to find out which versions a service speaks.
//!
//! Each function returns the operations a service adds to its table; all are public and answer with and without a
//! trailing slash.

use serde_json::{Value, json};

use crate::{Ctx, Op, Reply, Request, Service, dialect};

const UPDATED: &str = "2026-11-21T00:00:00Z";

fn document<S, F>(path: &'static str, status: u16, make: F) -> Op<S>
where
    S: Service,
    F: Fn(&Ctx<S>) -> Value + Send + Sync + 'static,
{
    let op = Op::get(path, "", move |cx: Ctx<S>, _: Request<()>| {
        let reply = Reply::json(&make(&cx));
        async move { Ok(reply) }
    });
    op.public().status(status).summary("Which versions there are.")
}

/// `{min, max}` of a dialect as text.
fn range(dialect: &crate::Dialect) -> (String, String) {
    dialect.microversions.map_or_else(Default::default, |r| (r.min.to_string(), r.max.to_string()))
}

fn nova_version(base: &str) -> Value {
    let (min, max) = range(&dialect::NOVA);
    json!({
        "id": "v2.1", "status": "CURRENT", "version": max, "min_version": min, "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{base}/v2.1/")}],
    })
}

/// Nova: `/` (200, all versions) and `/v2.1`.
pub fn nova<S: Service>() -> Vec<Op<S>> {
    vec![
        document("/", 200, |cx: &Ctx<S>| json!({"versions": [nova_version(cx.base_url())]})),
        document("/v2.1", 200, |cx: &Ctx<S>| {
            let mut version = nova_version(cx.base_url());
            if let Some(map) = version.as_object_mut() {
                let media = json!([{"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}]);
                map.insert("media-types".into(), media);
                if let Some(links) = map.get_mut("links").and_then(Value::as_array_mut) {
                    links.push(json!({"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}));
                }
            }
            json!({"version": version})
        }),
    ]
}

fn cinder_version(base: &str) -> Value {
    let (min, max) = range(&dialect::CINDER);
    json!({
        "id": "v3.0", "status": "CURRENT", "version": max, "min_version": min, "updated": UPDATED,
        "links": [
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
            {"rel": "self", "href": format!("{base}/v3/")},
        ],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}],
    })
}

/// Cinder: `/` (300) and `/v3` (200), both with all versions.
pub fn cinder<S: Service>() -> Vec<Op<S>> {
    vec![
        document("/", 300, |cx: &Ctx<S>| json!({"versions": [cinder_version(cx.base_url())]})),
        document("/v3", 200, |cx: &Ctx<S>| json!({"versions": [cinder_version(cx.base_url())]})),
    ]
}

/// Neutron: `/` (200). `/v2.0` needs a token and lists resources; it is the service's own.
pub fn neutron<S: Service>() -> Vec<Op<S>> {
    vec![document("/", 200, |cx: &Ctx<S>| {
        json!({"versions": [
            {"id": "v2.0", "status": "CURRENT", "links": [{"rel": "self", "href": cx.url("/v2.0/")}]},
        ]})
    })]
}

/// Glance: `/` (300) and `/versions` (200).
pub fn glance<S: Service>() -> Vec<Op<S>> {
    fn versions(base: &str) -> Value {
        // 2.10 to 2.14 and 2.16 depend on parts (multi-store, cache) that are not there.
        let known = [15, 9, 7, 6, 5, 4, 3, 2, 1, 0];
        let list: Vec<Value> = known
            .iter()
            .enumerate()
            .map(|(i, minor)| {
                let status = if i == 0 { "CURRENT" } else { "SUPPORTED" };
                let links = json!([{"rel": "self", "href": format!("{base}/v2/")}]);
                json!({"id": format!("v2.{minor}"), "status": status, "links": links})
            })
            .collect();
        json!({"versions": list})
    }
    vec![
        document("/", 300, |cx: &Ctx<S>| versions(cx.base_url())),
        document("/versions", 200, |cx: &Ctx<S>| versions(cx.base_url())),
    ]
}

fn keystone_version(base: &str) -> Value {
    json!({
        "id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{base}/v3/")}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    })
}

/// Keystone: `/` (300, `versions.values`) and `/v3` (200); to who prefers it the JSON Home document, which `home` makes for
/// paths below a prefix.
pub fn keystone<S: Service>(home: fn(&str) -> Value) -> Vec<Op<S>> {
    let op = move |path: &'static str, prefix: &'static str, status: u16, make: fn(&str) -> Value| {
        let handler = move |cx: Ctx<S>, req: Request<()>| {
            let reply = match prefers_home(req.header("accept").unwrap_or_default()) {
                true => Reply::bytes("application/json-home", home(prefix).to_string()).status(200),
                false => Reply::json(&make(cx.base_url())),
            };
            async move { Ok(reply.header("vary", "Accept")) }
        };
        Op::get(path, "", handler).public().status(status).summary("Which versions there are.")
    };
    vec![
        op("/", "/v3", 300, |base| json!({"versions": {"values": [keystone_version(base)]}})),
        op("/v3", "", 200, |base| json!({"version": keystone_version(base)})),
    ]
}

/// Whether an `Accept` header likes JSON Home better than JSON.
fn prefers_home(accept: &str) -> bool {
    let quality = |wanted: &str| {
        let mut best = 0.0;
        for item in accept.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let fits = parts
                .next()
                .is_some_and(|t| t.eq_ignore_ascii_case(wanted) || t == "*/*" || t == "application/*");
            let quality =
                parts.find_map(|p| p.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f64>().ok());
            if let (true, Some(quality)) = (fits, quality)
                && quality > best
            {
                best = quality;
            }
        }
        best
    };
    quality("application/json-home") > quality("application/json")
}

/// Placement: `/` (200).
pub fn placement<S: Service>() -> Vec<Op<S>> {
    vec![document("/", 200, |_| {
        let (min, max) = range(&dialect::PLACEMENT);
        json!({"versions": [
            {"id": "v1.0", "status": "CURRENT", "min_version": min, "max_version": max,
             "links": [{"rel": "self", "href": ""}]},
        ]})
    })]
}
