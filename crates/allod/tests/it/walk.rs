//! Everything that an administrator can read: each GET of the op tables, on each thing that the lists name.

use std::collections::{BTreeMap, BTreeSet};

use api::Op;
use serde_json::Value;

use crate::api::Api;

/// Things of one list that are looked at one by one.
const EACH: usize = 12;
/// What another start of a cloud makes anew: times and counts of writes, moments of signs of life, usage until now.
const VOLATILE: [&str; 18] = [
    "updated_at",
    "updated",
    "revision_number",
    "heartbeat_timestamp",
    "generation",
    "resource_provider_generation",
    "timestamp",
    "uptime",
    "hours",
    "total_hours",
    "total_local_gb_usage",
    "total_memory_mb_usage",
    "total_vcpus_usage",
    "start",
    "stop",
    "host_time",
    "last-update",
    "request_id",
];
/// What is measured, or needs more than a token, or is bytes, or grows by being looked at.
const NOT: [&str; 7] = [
    "/v3/auth/tokens",
    "/uptime",
    "/diagnostics",
    "/v2/images/{image_id}/file",
    "/allocation_candidates",
    "/v2.0/agents",
    "/audit_events",
];

struct Service {
    prefix: &'static str,
    microversion: &'static str,
    paths: Vec<String>,
}

fn service<S: Send + Sync + 'static>(
    prefix: &'static str,
    microversion: &'static str,
    ops: &[Op<S>],
) -> Service {
    let reads = ops.iter().map(Op::info).filter(|op| op.method == "GET").map(|op| op.path.to_string());
    let paths: BTreeSet<String> = reads.filter(|path| !NOT.iter().any(|not| path.contains(not))).collect();
    Service { prefix, microversion, paths: paths.into_iter().collect() }
}

fn services() -> Vec<Service> {
    vec![
        service("/identity", "", &identity::ops()),
        service("/image", "", &image::ops()),
        service("/placement", "placement 1.39", &placement::ops()),
        service("/compute", "compute 2.96", &compute::ops()),
        service("/network", "", &network::ops()),
        service("/volume", "volume 3.70", &volume::ops()),
    ]
}

/// The names of the things in a list: the first list of objects in an answer.
fn names(answer: &Value) -> Vec<String> {
    let lists = answer.as_object().into_iter().flat_map(|fields| fields.values().filter_map(Value::as_array));
    let name = |thing: &Value| {
        let inner = thing.as_object()?.values().next().filter(|v| v.is_object());
        let of = |thing: &Value| {
            ["id", "uuid", "name"].iter().find_map(|key| Some(thing[*key].as_str()?.to_owned()))
        };
        of(thing).or_else(|| of(inner?)).or_else(|| Some(thing["id"].as_u64()?.to_string()))
    };
    let plain = |thing: &Value| thing.as_str().map(str::to_owned);
    let mut found =
        lists.map(|list| list.iter().filter_map(|t| name(t).or_else(|| plain(t))).collect::<Vec<_>>());
    found.find(|names| !names.is_empty()).unwrap_or_default()
}

fn forget(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !VOLATILE.contains(&name.as_str()));
            fields.values_mut().for_each(forget);
        }
        Value::Array(items) => items.iter_mut().for_each(forget),
        _ => {}
    }
}

/// Asks for everything; answers what was said, by path. Nothing may be the cloud's fault.
pub async fn everything(admin: &Api) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let projects = names(&admin.get("/identity/v3/projects").await);
    for service in services() {
        let mut lists: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let ask = async |path: &str| {
            let scope = if matches!(service.prefix, "/compute" | "/volume") { "?all_tenants=1" } else { "" };
            let (status, body) =
                admin.read(&format!("{}{path}{scope}", service.prefix), service.microversion).await;
            assert!(status < 500 || status == 501, "GET {}{path}: {status} {body}", service.prefix);
            (status, body)
        };
        let mut note = |path: &str, status: u16, mut body: Value| {
            forget(&mut body);
            all.insert(format!("{}{path}", service.prefix), format!("{status} {}", admin.without_url(&body)));
        };
        for path in service.paths.iter().filter(|p| !p.contains('{')) {
            let (status, body) = ask(path).await;
            lists.insert(path.clone(), names(&body).into_iter().take(EACH).collect());
            note(path, status, body);
        }
        for path in service.paths.iter().filter(|p| p.matches('{').count() == 1) {
            let Some((list, rest)) = path.split_once("/{") else { continue };
            let Some((parameter, rest)) = rest.split_once('}') else { continue };
            let ids = match (lists.get(list), parameter) {
                (Some(ids), _) => ids,
                (None, "project_id") => &projects,
                (None, _) => continue,
            };
            for id in ids {
                let path = format!("{list}/{id}{rest}");
                let (status, body) = ask(&path).await;
                note(&path, status, body);
            }
        }
    }
    all
}

/// Every answer is as it was, as soon as hosts that came back have told what they have; answers how many there are.
pub async fn same(before: &BTreeMap<String, String>, admin: &Api) -> usize {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(45);
    loop {
        let after = everything(admin).await;
        if *before == after {
            assert!(before.len() > 300, "only {} answers", before.len());
            return before.len();
        }
        if tokio::time::Instant::now() > deadline {
            let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            let differ: Vec<String> = paths
                .into_iter()
                .filter(|path| before.get(*path) != after.get(*path))
                .map(|path| {
                    format!("{path}\n  before {:?}\n  after  {:?}", before.get(path), after.get(path))
                })
                .collect();
            panic!("{} of {} answers differ:\n{}", differ.len(), before.len(), differ.join("\n"));
        }
    }
}
