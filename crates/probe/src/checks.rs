//! Steps that look at the API alone: what is there, what answers.

use osclient::{Method, Request, Session, parameter};
use serde_json::{Value, json};

use crate::board::{Item, Unfit};
use crate::engine::{About, Done, Failure, Pass, Worked};
use crate::make::major;
use crate::record::Class;
use crate::scenario::{Check, Find, Step};

/// Services that a cloud has.
const NEEDED: [&str; 5] = ["identity", "compute", "network", "image", "block-storage"];

/// A list of each service that a member may ask for: service, path, key.
const LISTS: &[(&str, &str, &str)] = &[
    ("compute", "/servers?limit=1", "servers"),
    ("network", "/networks?limit=1", "networks"),
    ("image", "/images?limit=1", "images"),
    ("block-storage", "/volumes?limit=1", "volumes"),
    ("load-balancer", "/lbaas/loadbalancers?limit=1", "loadbalancers"),
    ("key-manager", "/secrets?limit=1", "secrets"),
    ("dns", "/zones?limit=1", "zones"),
    ("orchestration", "/stacks?limit=1", "stacks"),
    ("shared-file-system", "/shares?limit=1", "shares"),
    ("container-infrastructure-management", "/clusters?limit=1", "clusters"),
    ("object-store", "?limit=1", ""),
];

fn about(op: &str, service: &str) -> About {
    About { op: op.into(), service: service.into(), ..About::default() }
}

/// A check of the API.
pub(crate) async fn check(pass: &Pass<'_>, step: &Step, check: Check, mut item: Item) -> Worked {
    let limit = pass.limit(step, pass.engine.scenario.call_limit);
    match check {
        Check::Catalogue => {
            let (result, seq) =
                pass.operate(step, about("catalog.list", "identity"), limit, true, catalogue).await;
            item.failed = result.err().map(|_| seq);
        }
        Check::Token => {
            let issue = |session: Session| async move {
                session.login().await?;
                Ok(Done::default())
            };
            let (result, seq) =
                pass.operate(step, about("token.issue", "identity"), limit, true, issue).await;
            item.failed = result.err().map(|_| seq);
        }
        _ => {
            for (service, path, key) in LISTS {
                if pass.engine.session.endpoint(service).is_err() {
                    continue;
                }
                let about = about(&format!("{}.list", if key.is_empty() { "object" } else { key }), service);
                let list = |session: Session| list(session, service, path, key);
                let (result, seq) = pass.operate(step, about, limit, true, list).await;
                item.failed = item.failed.or(result.err().map(|_| seq));
            }
        }
    }
    Worked { failed: item.failed, item }
}

async fn catalogue(session: Session) -> Result<Done, Failure> {
    let url = format!("{}/auth/catalog", osclient::auth::identity_url(session.cloud()));
    let reply = session.send(Request::new(Method::GET, url)).await?;
    let entries = reply.json.get("catalog").and_then(Value::as_array);
    let entries = entries.ok_or_else(|| Failure::new(Class::Protocol, "the answer has no catalog"))?.len();
    let missing: Vec<&str> = NEEDED.into_iter().filter(|s| session.endpoint(s).is_err()).collect();
    if !missing.is_empty() {
        return Err(Failure::new(Class::NotFound, format!("the catalog lacks {}", missing.join(", "))));
    }
    Ok(json!({ "services": entries }).into())
}

async fn list(session: Session, service: &str, path: &str, key: &str) -> Result<Done, Failure> {
    let service = session.service(service, major(service))?;
    let reply = service.call(Method::GET, path, None).await?;
    if !key.is_empty() && !reply.json.get(key).is_some_and(Value::is_array) {
        return Err(Failure::new(Class::Protocol, format!("no list {key:?} in the answer")));
    }
    Ok(Done::default())
}

/// Finds what a scenario builds on. The items have failed if it is not there.
pub(crate) async fn find(pass: &Pass<'_>, step: &Step, find: Find) -> Vec<Item> {
    let limit = pass.limit(step, pass.engine.scenario.call_limit);
    let wanted = |name: &str| {
        pass.engine
            .scenario
            .set
            .get(name)
            .and_then(Value::as_str)
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
    };
    let (op, service, name) = match find {
        Find::Image => ("image.find", "image", wanted("image")),
        Find::Flavor => ("flavor.find", "compute", wanted("flavor")),
        Find::ExternalNetwork => ("network.find", "network", wanted("external")),
        Find::Zones => ("zone.find", "compute", wanted("zone")),
    };
    // A flavor must hold the image, if that is known.
    let image = pass.board.read().of("image").first().map(|i| (i.failed, i.value.clone()));
    let mut about = about(op, service);
    about.name.clone_from(&name);
    if let (Find::Flavor, Some((Some(cause), _))) = (find, &image) {
        let seq = pass.skip(step, &about, &Unfit::Because(*cause));
        return vec![Item { failed: Some(seq), ..Item::default() }];
    }
    let image = image.map(|(_, value)| value).unwrap_or_default();
    let (result, seq) = pass
        .operate(step, about, limit, true, |session| {
            let (name, image) = (name.clone(), image.clone());
            async move {
                let found = match find {
                    Find::Image => find_image(&session, name.as_deref()).await?,
                    Find::Flavor => find_flavor(&session, name.as_deref(), &image).await?,
                    Find::ExternalNetwork => find_external(&session, name.as_deref()).await?,
                    Find::Zones => find_zones(&session, name.as_deref()).await?,
                };
                if found.is_empty() {
                    let which = name.map_or_else(|| "that fits".to_owned(), |n| format!("named {n:?}"));
                    return Err(Failure::new(Class::NotFound, format!("there is none {which}")));
                }
                Ok(Value::Array(found).into())
            }
        })
        .await;
    let Ok(done) = result else { return vec![Item { failed: Some(seq), ..Item::default() }] };
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let item = |(index, value): (usize, &Value)| Item {
        index,
        name: text(value, "name").unwrap_or_default(),
        id: text(value, "id").or_else(|| text(value, "name")),
        value: value.clone(),
        ..Item::default()
    };
    done.value.as_array().into_iter().flatten().enumerate().map(item).collect()
}

fn named(value: &Value, name: &str) -> bool {
    ["name", "id"].iter().any(|k| value.get(*k).and_then(Value::as_str) == Some(name))
}

fn number(value: &Value, name: &str) -> i64 {
    value.get(name).and_then(Value::as_i64).unwrap_or(0)
}

/// One, the best by `weight` unless a name says which.
fn choose<K: Ord>(all: Vec<Value>, name: Option<&str>, weight: impl Fn(&Value) -> K) -> Vec<Value> {
    let fitting = all.into_iter().filter(|v| name.is_none_or(|n| named(v, n)));
    fitting.min_by_key(weight).into_iter().collect()
}

async fn find_image(session: &Session, name: Option<&str>) -> Result<Vec<Value>, Failure> {
    let service = session.service("image", "v2")?;
    let path = match name {
        Some(name) => format!("/images?{}", parameter("name", name)),
        None => "/images?status=active".to_owned(),
    };
    let mut all = service.list(&path, "images").await?;
    if let (true, Some(id)) = (all.is_empty(), name) {
        all = service.list(&format!("/images?{}", parameter("id", id)), "images").await?;
    }
    all.retain(|i| i.get("status").and_then(Value::as_str).is_none_or(|s| s == "active"));
    // Small ones first: what is looked at is the cloud, not its guests.
    let mut chosen = choose(all, name, |i| (number(i, "min_ram"), number(i, "min_disk"), number(i, "size")));
    for image in chosen.iter_mut() {
        let size = number(image, "size").max(number(image, "virtual_size"));
        image["gib"] = number(image, "min_disk").max(gib(size)).max(1).into();
    }
    Ok(chosen)
}

async fn find_flavor(session: &Session, name: Option<&str>, image: &Value) -> Result<Vec<Value>, Failure> {
    let service = session.service("compute", "v2.1")?;
    let mut all = service.list("/flavors/detail", "flavors").await?;
    if name.is_none() {
        let (ram, disk) =
            (number(image, "min_ram"), number(image, "min_disk").max(gib(number(image, "virtual_size"))));
        all.retain(|f| {
            number(f, "ram") >= ram && (number(f, "disk") >= disk.max(1) || number(f, "disk") == 0)
        });
    }
    // Without a disk of its own only where nothing else is.
    Ok(choose(all, name, |f| {
        (number(f, "disk") == 0, number(f, "ram"), number(f, "vcpus"), number(f, "disk"))
    }))
}

fn gib(bytes: i64) -> i64 {
    bytes.saturating_add((1 << 30) - 1) >> 30
}

async fn find_external(session: &Session, name: Option<&str>) -> Result<Vec<Value>, Failure> {
    let service = session.service("network", "v2.0")?;
    let path = format!("/networks?{}", parameter("router:external", "True"));
    let all = service.list(&path, "networks").await?;
    Ok(choose(all, name, |_| 0))
}

async fn find_zones(session: &Session, name: Option<&str>) -> Result<Vec<Value>, Failure> {
    let service = session.service("compute", "v2.1")?;
    let all = service.list("/os-availability-zone", "availabilityZoneInfo").await?;
    let open = |z: &Value| z.pointer("/zoneState/available").and_then(Value::as_bool).unwrap_or(true);
    let zone = |z: Value| {
        let zone = z.get("zoneName").and_then(Value::as_str)?.to_owned();
        Some(json!({ "name": zone })).filter(|v| name.is_none_or(|n| named(v, n)))
    };
    Ok(all.into_iter().filter(open).filter_map(zone).collect())
}
