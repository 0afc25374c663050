//! Steps that change the cloud: making, waiting, calling, removing.

use std::time::{Duration, Instant};

use osclient::cleanup::Place as Api;
use osclient::journal::{Entry, Thing};
use osclient::{Method, Service};
use serde_json::{Map, Value, json};

use crate::board::{Item, Unfit};
use crate::engine::{About, Done, Failure, Pass, Worked};
use crate::record::{Class, Place};
use crate::scenario::{Call, Step};

/// Longest pause between two looks, in first pauses.
const SLOWEST: u32 = 8;

/// The service that has a kind of thing, as reports call it.
pub(crate) fn service(thing: Thing) -> &'static str {
    Api::of(thing).service
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// A step of an item that cannot be tried.
fn unfit(pass: &Pass<'_>, step: &Step, about: &About, mut item: Item, why: &Unfit) -> Worked {
    let seq = pass.skip(step, about, why);
    item.failed = item.failed.or(Some(seq));
    Worked { item, failed: Some(seq) }
}

/// Makes an item.
pub(crate) async fn make(pass: &Pass<'_>, step: &Step, mut item: Item) -> Worked {
    let Some(thing) = step.make else { return Worked { item, failed: None } };
    let api = Api::of(thing);
    let engine = pass.engine;
    item.name = format!("allod-{}-{}-{}-{}", engine.run, pass.number, step.id, item.index + 1);
    let mut about = About {
        op: format!("{}.create", thing.name()),
        service: api.service.to_owned(),
        name: Some(item.name.clone()),
        ..About::default()
    };
    if let Some(cause) = item.failed {
        return unfit(pass, step, &about, item, &Unfit::Because(cause));
    }
    let body = match pass.filled(&item, &engine.scenario.body(step)) {
        Ok(body) => body,
        Err(why) => return unfit(pass, step, &about, item, &why),
    };
    let mut body = body.as_object().cloned().unwrap_or_default();
    if thing == Thing::RouterInterface {
        let part = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        item.name = format!("{}/{}", part("router_id"), part("subnet_id"));
        about.name = Some(item.name.clone());
    } else {
        body.insert(api.named.into(), item.name.clone().into());
    }
    marked(thing, &mut body, &engine.run);
    item.brings = thing == Thing::Server && brings(&mut body);
    let noted = match item.brings {
        true => engine.journal.intend_with_volumes(&item.name).await,
        false => engine.journal.intend(thing, &item.name).await,
    };
    let seq = match noted {
        Ok(seq) => seq,
        // What cannot be written down is not made.
        Err(e) => return unfit(pass, step, &about, item, &Unfit::Missing(e.to_string())),
    };
    item.journal = Some(seq);
    item.begun = Some(Instant::now());
    item.place.zone = text(&Value::Object(body.clone()), "availability_zone").map(str::to_owned);
    about.place = item.place.clone();
    let limit = pass.limit(step, engine.scenario.call_limit);
    let (name, body) = (item.name.clone(), Value::Object(body));
    let (result, record) = pass
        .operate(step, about, limit, false, |session| {
            let (name, body) = (name.clone(), body.clone());
            async move {
                let service = session.service(api.service, api.major)?;
                let made = post(&service, thing, &api, &name, body).await?;
                let id = match thing {
                    Thing::Keypair | Thing::RouterInterface => Some(name.as_str()),
                    _ => text(&made, "id"),
                };
                let missing = || Failure::new(Class::Protocol, "the answer has no id");
                // Written at once: whatever ends this task later, the id is known.
                engine
                    .journal
                    .made(seq, id.ok_or_else(missing)?)
                    .map_err(|e| Failure::new(Class::Tool, e.to_string()))?;
                Ok(made.into())
            }
        })
        .await;
    match result {
        Ok(done) => {
            item.id = match thing {
                Thing::Keypair | Thing::RouterInterface => Some(item.name.clone()),
                _ => text(&done.value, "id").map(str::to_owned),
            };
            item.value = done.value;
            Worked { item, failed: None }
        }
        Err(_) => {
            item.failed = Some(record);
            Worked { item, failed: Some(record) }
        }
    }
}

async fn post(
    service: &Service,
    thing: Thing,
    api: &Api,
    name: &str,
    mut body: Value,
) -> Result<Value, Failure> {
    if thing == Thing::RouterInterface {
        let router = name.split('/').next().unwrap_or_default();
        if let Some(body) = body.as_object_mut() {
            body.remove("router_id");
        }
        return Ok(service.put(&format!("/routers/{router}/add_router_interface"), body).await?);
    }
    // Scheduler hints stand beside the server.
    let hints = body.as_object_mut().and_then(|b| b.remove("os:scheduler_hints"));
    let mut whole = if api.one.is_empty() { body } else { json!({ api.one: body }) };
    if let (Some(hints), Some(whole)) = (hints, whole.as_object_mut()) {
        whole.insert("os:scheduler_hints".into(), hints);
    }
    let made = service.post(api.path, whole).await?;
    Ok(if api.one.is_empty() { made } else { made.get(api.one).cloned().unwrap_or_default() })
}

/// A mark for people who wonder whose it is.
fn marked(thing: Thing, body: &mut Map<String, Value>, run: &str) {
    let mark = format!("allod probe {run}");
    match thing {
        Thing::Server | Thing::Volume => {
            let metadata = body.entry("metadata").or_insert_with(|| json!({}));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("allod-probe".into(), run.into());
            }
        }
        Thing::Keypair | Thing::Image | Thing::Secret | Thing::FloatingIp | Thing::RouterInterface => {}
        _ => {
            body.entry("description").or_insert_with(|| mark.into());
        }
    }
}

/// Whether the cloud is to make volumes for a server. They go when it goes: what we made we remove.
fn brings(body: &mut Map<String, Value>) -> bool {
    let mappings = body.get_mut("block_device_mapping_v2").and_then(Value::as_array_mut);
    let mut any = false;
    for mapping in mappings.into_iter().flatten().filter_map(Value::as_object_mut) {
        let is = |name: &str, what: &str| mapping.get(name).and_then(Value::as_str) == Some(what);
        if !is("destination_type", "local") && !is("source_type", "volume") {
            mapping.insert("delete_on_termination".into(), true.into());
            any = true;
        }
    }
    any
}

/// Any other call, for an item.
pub(crate) async fn call(pass: &Pass<'_>, step: &Step, call: &Call, item: Item) -> Worked {
    let about = About {
        op: call.op.clone(),
        service: call.service.clone(),
        place: item.place.clone(),
        ..About::default()
    };
    if let Some(cause) = item.failed {
        return unfit(pass, step, &about, item, &Unfit::Because(cause));
    }
    let filled = pass
        .filled(&item, &Value::from(call.path.as_str()))
        .and_then(|path| Ok((path, pass.filled(&item, &step.body)?)));
    let (path, body) = match filled {
        Ok(filled) => filled,
        Err(why) => return unfit(pass, step, &about, item, &why),
    };
    let Ok(method) = Method::from_bytes(call.method.as_bytes()) else {
        return unfit(pass, step, &about, item, &Unfit::Missing(format!("{} is no method", call.method)));
    };
    let limit = pass.limit(step, pass.engine.scenario.call_limit);
    let again = method == Method::GET;
    let major = major(&call.service);
    let mut item = item;
    item.begun = Some(Instant::now());
    let (result, record) = pass
        .operate(step, about, limit, again, |session| {
            let (path, body, method) = (path.clone(), body.clone(), method.clone());
            async move {
                let service = session.service(&call.service, major)?;
                let body = Some(body).filter(|b| !b.is_null());
                Ok(service.call(method, path.as_str().unwrap_or_default(), body).await?.json.into())
            }
        })
        .await;
    match result {
        Ok(done) if pass.referred.contains(&step.id) => item.value = done.value,
        Ok(_) => {}
        Err(_) => item.failed = Some(record),
    }
    Worked { failed: item.failed, item }
}

/// Version of a service's API.
pub(crate) fn major(service: &str) -> &'static str {
    match service {
        "compute" => "v2.1",
        "network" => "v2.0",
        "block-storage" | "identity" => "v3",
        "key-manager" => "v1",
        _ => "v2",
    }
}

/// Waits for an item of another step; what it shows is the item's from then on.
pub(crate) async fn wait(pass: &Pass<'_>, step: &Step, target: &str, child: Item) -> Worked {
    let engine = pass.engine;
    let until = step.until.clone().unwrap_or_default();
    let making = engine.scenario.steps.iter().find(|s| s.id == target).and_then(|s| s.make);
    let found = pass.board.read().of(target).iter().find(|i| i.index == child.index).cloned();
    let (Some(thing), Some(mut item)) = (making, found) else { return Worked { item: child, failed: None } };
    let api = Api::of(thing);
    let asked = asked(pass, step, target, &item);
    let about = About {
        op: format!("{}.{}", asked.op, until.to_lowercase()),
        service: api.service.to_owned(),
        name: Some(item.name.clone()),
        id: item.id.clone(),
        place: item.place.clone(),
        begun: asked.begun,
    };
    // What it needs besides may have failed, without any fault of its own.
    if let Some(cause) = item.failed.or(child.failed) {
        pass.skip(step, &about, &Unfit::Because(cause));
        return Worked { item, failed: None };
    }
    let limit = pass.limit(step, engine.scenario.change_limit);
    let path = format!("{}/{}", api.path, item.id.clone().unwrap_or_default());
    let seen: parking_lot::Mutex<Value> = Default::default();
    let (result, record) = pass
        .operate(step, about, limit, false, |session| look(session, &api, &path, &until, engine.pause, &seen))
        .await;
    let value = seen.into_inner();
    place(&value, &mut item.place);
    if !value.is_null() {
        item.value = value;
    }
    Worked { item, failed: result.err().map(|_| record) }
}

/// The request whose outcome is waited for: what made the thing, or what was asked for since.
struct Asked {
    op: String,
    begun: Option<Instant>,
}

fn asked(pass: &Pass<'_>, step: &Step, target: &str, item: &Item) -> Asked {
    let steps = &pass.engine.scenario.steps;
    let by = |id: &str| steps.iter().find(|s| s.id == id);
    let since = step.needs.as_deref().and_then(by).and_then(|s| Some((s, s.call.as_ref()?)));
    let Some((needed, call)) = since else {
        let made = by(target).and_then(|s| s.make).map_or("", Thing::name);
        return Asked { op: made.to_owned(), begun: item.begun };
    };
    let board = pass.board.read();
    let count = board.of(target).len().max(1);
    // One of several things that belong to it, and were asked for one after the other: the last.
    let begun = board.of(&needed.id).iter().filter(|i| i.index % count == item.index % count);
    Asked { op: call.op.clone(), begun: begun.filter_map(|i| i.begun).max() }
}

async fn look(
    session: osclient::Session,
    api: &Api,
    path: &str,
    until: &str,
    first: Duration,
    seen: &parking_lot::Mutex<Value>,
) -> Result<Done, Failure> {
    let service = session.service(api.service, api.major)?;
    let mut pause = first;
    let mut looks = 0;
    let mut whereabouts = Place::default();
    loop {
        looks += 1;
        match service.get(path).await {
            Ok(shown) => {
                let status = api.state(&shown).to_owned();
                let one = shown.get(api.one).cloned().unwrap_or_default();
                let fault = one
                    .pointer("/fault/message")
                    .and_then(Value::as_str)
                    .unwrap_or("no reason given")
                    .to_owned();
                seen.lock().clone_from(&one);
                place(&one, &mut whereabouts);
                if status.eq_ignore_ascii_case(until) {
                    return Ok(Done { value: one, looks, place: Some(whereabouts), ..Done::default() });
                }
                if status.to_lowercase().starts_with("error") {
                    let message = format!("{status} instead of {until}: {fault}");
                    return Err(Failure {
                        place: Some(Box::new(whereabouts)),
                        ..Failure::new(Class::Fault, message)
                    });
                }
            }
            // A look that fails is a failed call, and says nothing about what is looked at.
            Err(e) if !matches!(e.status(), Some(404 | 401 | 403)) && looks < 1000 => {}
            Err(e) => return Err(e.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(first * SLOWEST);
    }
}

/// Where the cloud says that something is.
fn place(shown: &Value, place: &mut Place) {
    let known = |names: &[&str]| {
        names.iter().find_map(|n| text(shown, n).filter(|t| !t.is_empty())).map(str::to_owned)
    };
    if let Some(host) = known(&["OS-EXT-SRV-ATTR:host", "hostId", "os-vol-host-attr:host"]) {
        place.host = Some(host);
    }
    if let Some(zone) = known(&["OS-EXT-AZ:availability_zone", "availability_zone"]) {
        place.zone = Some(zone);
    }
}

/// Removes an item of another step before the end.
pub(crate) async fn remove(pass: &Pass<'_>, step: &Step, target: &str, child: Item) -> Worked {
    let engine = pass.engine;
    let making = engine.scenario.steps.iter().find(|s| s.id == target).and_then(|s| s.make);
    let found = pass.board.read().of(target).iter().find(|i| i.index == child.index).cloned();
    let (Some(thing), Some(item)) = (making, found) else { return Worked { item: child, failed: None } };
    let Some(seq) = item.journal else { return Worked { item, failed: None } };
    let entry = Entry { seq, thing, name: item.name.clone(), id: item.id.clone(), brings: item.brings };
    // The volumes of a server are in the journal then, and go at the end.
    pass.removed(step, &entry, item.place.clone()).await;
    Worked { item, failed: None }
}
