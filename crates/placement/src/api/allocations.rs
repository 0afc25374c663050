//! `/allocations`, the claims at a provider, and the sums of a project.

use std::collections::BTreeMap;

use ::api::types::{Int, Name, Text};
use ::api::{Ctx, Reply, Request, Target};
use base::{Error, ProjectId, ResourceProviderId, Result, UserId};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Query, Tx};
use uuid::Uuid;

use super::providers::consumers_at;
use super::{allow, need, provider_id};
use crate::State;
use crate::claims::{self, Wanted};
use crate::model::{Amounts, Consumer, Provider};

type Amount = Int<1, { i32::MAX as i64 }>;

fn consumer_id(text: &str) -> Result<Uuid> {
    Uuid::try_parse(text)
        .map_err(|_| Error::bad_request(format!("Malformed consumer id: '{text}' is not a UUID.")))
}

pub(super) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let Ok(id) = Uuid::try_parse(req.param("consumer")) else {
        return Ok(Reply::json(&json!({"allocations": {}})));
    };
    let (consumer, epochs) = cx
        .store()
        .read(move |tx| {
            let consumer = tx.get::<Consumer>(&id)?;
            let mut epochs = BTreeMap::new();
            for provider in consumer.iter().flat_map(|c| c.claims.keys()) {
                epochs.insert(*provider, tx.get::<Provider>(provider)?.map_or(0, |p| p.epoch));
            }
            Ok((consumer, epochs))
        })
        .await?;
    let Some(consumer) = consumer else { return Ok(Reply::json(&json!({"allocations": {}}))) };
    let mut claims = Map::new();
    for (provider, amounts) in &consumer.claims {
        let epoch = epochs.get(provider).copied().unwrap_or(0);
        claims.insert(provider.to_string(), json!({"generation": epoch, "resources": amounts}));
    }
    let mut body = Map::new();
    body.insert("allocations".into(), Value::Object(claims));
    if cx.since(1, 12) {
        body.insert("project_id".into(), json!(consumer.project_id));
        body.insert("user_id".into(), json!(consumer.user_id));
    }
    if cx.since(1, 28) {
        body.insert("consumer_generation".into(), json!(consumer.epoch));
    }
    if cx.since(1, 38) {
        body.insert("consumer_type".into(), json!(consumer.consumer_type));
    }
    Ok(Reply::json(&Value::Object(body)))
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
struct Claim {
    resources: BTreeMap<String, Amount>,
    // Told by GET, so that its answer can be sent back.
    #[serde(default, rename = "generation")]
    _generation: Option<i64>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OldProvider {
    uuid: ::api::types::Uuid,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OldClaim {
    resource_provider: OldProvider,
    resources: BTreeMap<String, Amount>,
}

/// A list before 1.12, a map by provider since.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Claims {
    Old(Vec<OldClaim>),
    New(BTreeMap<String, Claim>),
}

/// `null` where the consumer is thought to be new.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(super) struct Body {
    allocations: Claims,
    project_id: Option<Text<1, 255>>,
    user_id: Option<Text<1, 255>>,
    #[serde(default)]
    consumer_generation: ::api::types::Patch<Int<0, { i64::MAX }>>,
    consumer_type: Option<Name>,
    // Told by allocation candidates, so that their answer can be sent back.
    #[serde(default, rename = "mappings")]
    _mappings: Option<BTreeMap<String, Vec<String>>>,
}

struct Checked {
    wanted: Wanted,
    /// `None`: not checked; `Some(None)`: must be new.
    epoch: Option<Option<u64>>,
}

fn check(cx: &Ctx<State>, consumer: Uuid, body: &Body) -> Result<Checked> {
    let bad = |field: &str, why: &str| cx.dialect().invalid_field(field, why);
    let mut claims: BTreeMap<ResourceProviderId, Amounts> = BTreeMap::new();
    let amounts =
        |r: &BTreeMap<String, Amount>| r.iter().map(|(c, n)| (c.clone(), n.unsigned())).collect::<Amounts>();
    match &body.allocations {
        Claims::New(map) if cx.since(1, 12) => {
            for (provider, claim) in map {
                let id = provider
                    .parse()
                    .map_err(|_| bad("allocations", &format!("'{provider}' is not a UUID")))?;
                if claim.resources.is_empty() {
                    return Err(bad("resources", "may not be empty"));
                }
                claims.insert(id, amounts(&claim.resources));
            }
        }
        Claims::Old(list) if !cx.since(1, 12) => {
            for claim in list {
                if claim.resources.is_empty() {
                    return Err(bad("resources", "may not be empty"));
                }
                claims.insert(ResourceProviderId(claim.resource_provider.uuid.0), amounts(&claim.resources));
            }
        }
        _ => return Err(bad("allocations", "it has not the form of this version")),
    }
    if claims.is_empty() && !cx.since(1, 28) {
        return Err(bad("allocations", "may not be empty"));
    }
    if cx.since(1, 8) && (body.project_id.is_none() || body.user_id.is_none()) {
        return Err(bad("project_id", "project_id and user_id are required properties"));
    }
    let epoch = match (&body.consumer_generation, cx.since(1, 28)) {
        (::api::types::Patch::Absent, true) => {
            return Err(bad("consumer_generation", "is a required property"));
        }
        (sent, true) => Some(sent.as_ref().map(|n| n.unsigned())),
        (_, false) => None,
    };
    if cx.since(1, 38) && body.consumer_type.is_none() {
        return Err(bad("consumer_type", "is a required property"));
    }
    let text = |t: &Option<Text<1, 255>>| t.as_ref().map_or_else(String::new, |t| t.as_str().to_owned());
    let wanted = Wanted {
        consumer,
        project: ProjectId::new(text(&body.project_id)),
        user: UserId::new(text(&body.user_id)),
        consumer_type: body
            .consumer_type
            .as_ref()
            .map_or_else(|| "unknown".to_owned(), |t| t.as_str().to_owned()),
        claims,
    };
    Ok(Checked { wanted, epoch })
}

fn apply(tx: &mut Tx<'_>, checked: &Checked) -> Result<()> {
    if let Some(epoch) = checked.epoch {
        let held = tx.get::<Consumer>(&checked.wanted.consumer)?.map(|c| c.epoch);
        if held != epoch {
            let say = |e: Option<u64>| e.map_or_else(|| "null".to_owned(), |e| e.to_string());
            return Err(Error::conflict(format!(
                "consumer generation conflict - expected {} but got {}",
                say(held),
                say(epoch)
            ))
            .code("placement.concurrent_update"));
        }
    }
    claims::set(tx, &checked.wanted)
}

pub(super) async fn put(cx: Ctx<State>, req: Request<Body>) -> Result<Reply> {
    allow(&cx)?;
    let checked = check(&cx, consumer_id(req.param("consumer"))?, &req.body)?;
    cx.store().write(move |tx| apply(tx, &checked)).await?;
    Ok(Reply::empty())
}

pub(super) async fn post(cx: Ctx<State>, req: Request<BTreeMap<String, Body>>) -> Result<Reply> {
    allow(&cx)?;
    if req.body.is_empty() {
        return Err(cx.dialect().invalid_field("body", "it does not have enough properties"));
    }
    let mut all = Vec::new();
    for (consumer, body) in &req.body {
        // Here an empty map releases, whatever the version.
        let empty = matches!(&body.allocations, Claims::New(map) if map.is_empty());
        let id = consumer_id(consumer)?;
        if empty && !cx.since(1, 28) {
            let wanted = Wanted {
                consumer: id,
                project: ProjectId::new(""),
                user: UserId::new(""),
                consumer_type: String::new(),
                claims: BTreeMap::new(),
            };
            all.push(Checked { wanted, epoch: None });
        } else {
            all.push(check(&cx, id, body)?);
        }
    }
    // Those that give back go first: a move of claims between consumers must find the room.
    all.sort_by_key(|c| !c.wanted.claims.is_empty());
    cx.store().write(move |tx| all.iter().try_for_each(|c| apply(tx, c))).await?;
    Ok(Reply::empty())
}

pub(super) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let text = req.param("consumer").to_owned();
    let missing = move || Error::not_found(format!("No allocations for consumer '{text}'"));
    let Ok(id) = Uuid::try_parse(req.param("consumer")) else { return Err(missing()) };
    let released = cx.store().write(move |tx| claims::release(tx, id)).await?;
    if released { Ok(Reply::empty()) } else { Err(missing()) }
}

pub(super) async fn of_provider(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let (provider, consumers) = cx.store().read(move |tx| Ok((need(tx, id)?, consumers_at(tx, id)?))).await?;
    let mut map = Map::new();
    for consumer in consumers {
        let Some(amounts) = consumer.claims.get(&id) else { continue };
        let mut one = json!({"resources": amounts});
        if let (true, Some(fields)) = (cx.since(1, 28), one.as_object_mut()) {
            fields.insert("consumer_generation".into(), json!(consumer.epoch));
        }
        map.insert(consumer.id.to_string(), one);
    }
    Ok(Reply::json(&json!({"allocations": map, "resource_provider_generation": provider.epoch})))
}

pub(super) async fn project_usages(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let query = req.query_pairs();
    let project = query.get("project_id").filter(|p| !p.is_empty()).ok_or_else(|| {
        Error::bad_request("Invalid query string parameters: 'project_id' is a required property")
    })?;
    let project = ProjectId::new(project);
    let user = query.get("user_id").map(UserId::new);
    let kind = query.get("consumer_type").map(str::to_owned);
    cx.allow(&Target::project(&project).visible(true))?;
    let consumers =
        cx.store().read(move |tx| tx.list::<Consumer>(&Query::new().eq("project_id", &project))).await?;
    let mut sums: BTreeMap<String, Amounts> = BTreeMap::new();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for c in consumers.iter().filter(|c| user.as_ref().is_none_or(|u| c.user_id == *u)) {
        if kind.as_ref().is_some_and(|k| k != "all" && *k != c.consumer_type) {
            continue;
        }
        let group = if kind.as_deref() == Some("all") { "all".to_owned() } else { c.consumer_type.clone() };
        *counts.entry(group.clone()).or_default() += 1;
        let sum = sums.entry(group).or_default();
        for (class, n) in c.claims.values().flatten() {
            *sum.entry(class.clone()).or_default() += n;
        }
    }
    if cx.since(1, 38) {
        let mut map = Map::new();
        for (group, sum) in sums {
            let mut one = json!(sum);
            if let Some(fields) = one.as_object_mut() {
                fields.insert("consumer_count".into(), json!(counts.get(&group)));
            }
            map.insert(group, one);
        }
        return Ok(Reply::json(&json!({"usages": map})));
    }
    let mut total = Amounts::new();
    for (class, n) in sums.values().flatten() {
        *total.entry(class.clone()).or_default() += n;
    }
    Ok(Reply::json(&json!({"usages": total})))
}
