//! `/resource_providers`.

use std::collections::{BTreeMap, BTreeSet};

use ::api::types::{Int, Name, Patch, Uuid};
use ::api::{Ctx, Query, Reply, Request};
use base::{Error, ResourceProviderId, Result};
use contract::services::has_room;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{allow, need, provider_id, same_epoch};
use crate::State;
use crate::model::{Consumer, Provider};

pub(super) fn view(cx: &Ctx<State>, p: &Provider) -> Value {
    let prefix = cx.settings_prefix();
    let own = format!("{prefix}/resource_providers/{}", p.id);
    let mut links = vec![json!({"rel": "self", "href": own})];
    let mut add = |since: u16, rel: &str| {
        if cx.since(1, since) {
            links.push(json!({"rel": rel, "href": format!("{own}/{rel}")}));
        }
    };
    add(0, "inventories");
    add(0, "usages");
    add(1, "aggregates");
    add(6, "traits");
    add(11, "allocations");
    let mut map = Map::new();
    map.insert("uuid".into(), json!(p.id));
    map.insert("name".into(), json!(p.name));
    map.insert("generation".into(), json!(p.epoch));
    map.insert("links".into(), json!(links));
    if cx.since(1, 14) {
        map.insert("parent_provider_uuid".into(), json!(p.parent));
        map.insert("root_provider_uuid".into(), json!(p.root));
    }
    Value::Object(map)
}

impl State {
    pub(crate) fn prefix(&self) -> &str {
        &self.config.settings.prefix
    }
}

/// The path under which the service is mounted: links in placement are paths.
pub(super) trait Prefix {
    fn settings_prefix(&self) -> &str;
}

impl Prefix for Ctx<State> {
    fn settings_prefix(&self) -> &str {
        self.state().prefix()
    }
}

/// `VCPU:2,MEMORY_MB:512`.
pub(super) fn amounts(text: &str) -> Result<BTreeMap<String, u64>> {
    let bad = || {
        Error::bad_request(format!(
            "Badly formed resources parameter. Expected resources query string parameter in form: ?resources=VCPU:2,MEMORY_MB:1024. Got: {text}."
        ))
    };
    let mut map = BTreeMap::new();
    for part in text.split(',') {
        let (class, amount) = part.split_once(':').ok_or_else(bad)?;
        let amount: u64 = amount.parse().map_err(|_| bad())?;
        if amount == 0 || class.is_empty() || amount > 1 << 53 {
            return Err(bad());
        }
        map.insert(class.to_owned(), amount);
    }
    Ok(map)
}

/// `required=A,!B`: required and forbidden traits; `in:A,B` (1.39) is a set of which one must be there.
#[derive(Debug, Default)]
pub(super) struct Traits {
    all: Vec<String>,
    none: Vec<String>,
    any: Vec<Vec<String>>,
}

impl Traits {
    pub(super) fn parse(query: &Query, key: &str, negation: bool) -> Result<Self> {
        let mut traits = Traits::default();
        for text in query.all(key) {
            if let Some(list) = text.strip_prefix("in:") {
                traits.any.push(list.split(',').map(str::to_owned).collect());
                continue;
            }
            for name in text.split(',') {
                match name.strip_prefix('!') {
                    Some(name) if negation => traits.none.push(name.to_owned()),
                    _ if name.is_empty() => {
                        return Err(Error::bad_request(format!(
                            "Invalid query string parameters: Expected '{key}' parameter value of the form: HW_CPU_X86_VMX,CUSTOM_MAGIC. Got: {text}"
                        )));
                    }
                    _ => traits.all.push(name.to_owned()),
                }
            }
        }
        Ok(traits)
    }

    pub(super) fn accepts(&self, provider: &Provider) -> bool {
        let has = |t: &String| provider.traits.contains(t);
        self.all.iter().all(has)
            && !self.none.iter().any(has)
            && self.any.iter().all(|set| set.iter().any(has))
    }
}

/// `member_of=UUID` or `in:UUID,UUID`, `!` before it for the reverse.
pub(super) fn member_of(query: &Query, provider: &Provider) -> Result<bool> {
    for text in query.all("member_of") {
        let (wanted, list) = match text.strip_prefix('!') {
            Some(rest) => (false, rest),
            None => (true, text),
        };
        let mut found = false;
        for id in list.strip_prefix("in:").unwrap_or(list).split(',') {
            let id: Uuid = id.parse().map_err(|_| {
                Error::bad_request(format!(
                    "Expected 'member_of' parameter to contain valid UUID(s). Got: {id}"
                ))
            })?;
            found |= provider.aggregates.contains(&id.0);
        }
        if found != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

const FILTERS: &[(&str, u16)] =
    &[("name", 0), ("uuid", 0), ("member_of", 3), ("resources", 4), ("in_tree", 14), ("required", 18)];

pub(super) fn known_parameters(cx: &Ctx<State>, query: &Query, known: &[(&str, u16)]) -> Result<()> {
    match query.iter().find(|(key, _)| !known.iter().any(|(k, since)| k == key && cx.since(1, *since))) {
        None => Ok(()),
        Some((key, _)) => Err(Error::bad_request(format!(
            "Invalid query string parameters: Additional properties are not allowed ('{key}' was unexpected)"
        ))
        .code("placement.query.bad_value")),
    }
}

pub(super) async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let query = req.query_pairs().clone();
    known_parameters(&cx, &query, FILTERS)?;
    let uuid = |key: &str| -> Result<Option<ResourceProviderId>> {
        query
            .get(key)
            .map(|t| {
                t.parse().map_err(|_| {
                    Error::bad_request(format!(
                        "Invalid query string parameters: '{t}' is not a 'uuid' ({key})"
                    ))
                })
            })
            .transpose()
    };
    let (id, tree) = (uuid("uuid")?, uuid("in_tree")?);
    let room = query.get("resources").map(amounts).transpose()?;
    let traits = Traits::parse(&query, "required", cx.since(1, 22))?;
    let all = cx.store().read(|tx| tx.list::<Provider>(&store::Query::new())).await?;
    let root = tree.map(|t| all.iter().find(|p| p.id == t).map(|p| p.root));
    let mut found = Vec::new();
    for p in &all {
        let fits = id.is_none_or(|id| p.id == id)
            && query.get("name").is_none_or(|n| p.name == n)
            && root.is_none_or(|root| root == Some(p.root))
            && room.as_ref().is_none_or(|r| has_room(&p.inventories, &p.used, r))
            && traits.accepts(p)
            && member_of(&query, p)?;
        if fits {
            found.push(view(&cx, p));
        }
    }
    Ok(Reply::json(&json!({"resource_providers": found})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    name: Name,
    uuid: Option<Uuid>,
    #[serde(default)]
    parent_provider_uuid: Patch<Uuid>,
}

pub(super) async fn create(cx: Ctx<State>, req: Request<Create>) -> Result<Reply> {
    allow(&cx)?;
    if !cx.since(1, 14) && !req.body.parent_provider_uuid.is_absent() {
        return Err(cx.dialect().invalid_field("parent_provider_uuid", "it needs version 1.14"));
    }
    let id = ResourceProviderId(req.body.uuid.map_or_else(|| cx.state().entropy.uuid(), |u| u.0));
    let name = req.body.name.into_string();
    let parent = req.body.parent_provider_uuid.value().map(|u| ResourceProviderId(u.0));
    let made = cx
        .store()
        .write(move |tx| {
            let root = match parent {
                None => id,
                Some(parent) => {
                    let found = tx.get::<Provider>(&parent)?;
                    found
                        .ok_or_else(|| {
                            Error::bad_request("parent_provider_uuid: parent provider does not exist.")
                        })?
                        .root
                }
            };
            let mut provider = Provider {
                id,
                meta: store::Meta::default(),
                name: name.clone(),
                parent,
                root,
                epoch: 0,
                inventories: BTreeMap::new(),
                used: BTreeMap::new(),
                traits: Vec::new(),
                aggregates: Vec::new(),
            };
            tx.insert(&mut provider).map_err(|e| {
                let Some(what) = store::unique_violation(&e) else { return e };
                let which =
                    if what.columns == ["id"] { format!("uuid: {id}") } else { format!("name: {name}") };
                Error::conflict(format!("Conflicting resource provider {which} already exists."))
                    .code("placement.duplicate_name")
            })?;
            Ok(provider)
        })
        .await?;
    let url = cx.url(&format!("/resource_providers/{id}"));
    let reply = if cx.since(1, 20) { Reply::json(&view(&cx, &made)).status(200) } else { Reply::empty() };
    Ok(reply.location(url))
}

pub(super) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let provider = cx.store().read(move |tx| need(tx, id)).await?;
    Ok(Reply::json(&view(&cx, &provider)))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Update {
    name: Name,
    #[serde(default)]
    parent_provider_uuid: Patch<Uuid>,
}

pub(super) async fn update(cx: Ctx<State>, req: Request<Update>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let name = req.body.name.into_string();
    let parent = req.body.parent_provider_uuid.sent().map(|p| p.map(|u| ResourceProviderId(u.0)));
    if parent.is_some() && !cx.since(1, 14) {
        return Err(cx.dialect().invalid_field("parent_provider_uuid", "it needs version 1.14"));
    }
    let made = cx
        .store()
        .write(move |tx| {
            let mut provider = need(tx, id)?;
            provider.name.clone_from(&name);
            if let Some(parent) = parent
                && parent != provider.parent
            {
                move_to(tx, &mut provider, parent)?;
            }
            tx.update(&mut provider).map_err(|e| match store::unique_violation(&e) {
                Some(_) => Error::conflict(format!("Conflicting resource provider {name} already exists."))
                    .code("placement.duplicate_name"),
                None => e,
            })?;
            Ok(provider)
        })
        .await?;
    Ok(Reply::json(&view(&cx, &made)))
}

/// Gives a provider without children another parent.
fn move_to(
    tx: &mut store::Tx<'_>,
    provider: &mut Provider,
    parent: Option<ResourceProviderId>,
) -> Result<()> {
    if provider.parent.is_some() {
        return Err(Error::bad_request("parent_provider_uuid: re-parenting a provider is not allowed."));
    }
    let Some(parent) = parent else { return Ok(()) };
    let found = tx.get::<Provider>(&parent)?;
    let found =
        found.ok_or_else(|| Error::bad_request("parent_provider_uuid: parent provider does not exist."))?;
    if found.root == provider.id {
        return Err(Error::bad_request(
            "parent_provider_uuid: creating a loop in the provider tree is not allowed.",
        ));
    }
    if tx.exists::<Provider>(&store::Query::new().eq("parent", provider.id))? {
        return Err(Error::bad_request("parent_provider_uuid: the provider has children."));
    }
    provider.parent = Some(parent);
    provider.root = found.root;
    Ok(())
}

pub(super) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    cx.store()
        .write(move |tx| {
            let provider = need(tx, id)?;
            if !provider.used.is_empty() {
                return Err(Error::conflict(format!(
                    "Unable to delete resource provider {id}: Resource provider has allocations."
                ))
                .code("placement.resource_provider.inuse"));
            }
            if tx.exists::<Provider>(&store::Query::new().eq("parent", id))? {
                return Err(Error::conflict(format!(
                    "Unable to delete parent resource provider {id}: It has child resource providers."
                ))
                .code("placement.resource_provider.cannot_delete_parent"));
            }
            tx.delete::<Provider>(&id)
        })
        .await?;
    Ok(Reply::empty())
}

pub(super) async fn usages(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let provider = cx.store().read(move |tx| need(tx, id)).await?;
    let mut usages: BTreeMap<&str, u64> = provider.inventories.keys().map(|c| (c.as_str(), 0)).collect();
    usages.extend(provider.used.iter().map(|(c, n)| (c.as_str(), *n)));
    Ok(Reply::json(&json!({"resource_provider_generation": provider.epoch, "usages": usages})))
}

fn aggregates_view(cx: &Ctx<State>, provider: &Provider) -> Reply {
    let mut body = json!({"aggregates": provider.aggregates});
    if let (true, Some(map)) = (cx.since(1, 19), body.as_object_mut()) {
        map.insert("resource_provider_generation".into(), json!(provider.epoch));
    }
    Reply::json(&body)
}

pub(super) async fn aggregates(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let provider = cx.store().read(move |tx| need(tx, id)).await?;
    Ok(aggregates_view(&cx, &provider))
}

/// A list before 1.19, an object with the generation since.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Aggregates {
    List(BTreeSet<Uuid>),
    Object { aggregates: BTreeSet<Uuid>, resource_provider_generation: Int<0, { i64::MAX }> },
}

pub(super) async fn set_aggregates(cx: Ctx<State>, req: Request<Aggregates>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let (list, epoch) = match (req.body, cx.since(1, 19)) {
        (Aggregates::List(list), false) => (list, None),
        (Aggregates::Object { aggregates, resource_provider_generation }, true) => {
            (aggregates, Some(resource_provider_generation.unsigned()))
        }
        _ => {
            return Err(cx
                .dialect()
                .invalid_field("aggregates", "the body has not the form of this version"));
        }
    };
    let list: Vec<uuid::Uuid> = list.into_iter().map(|u| u.0).collect();
    let provider = cx
        .store()
        .write(move |tx| {
            let mut provider = need(tx, id)?;
            same_epoch(&provider, epoch)?;
            provider.aggregates.clone_from(&list);
            provider.epoch += 1;
            tx.update(&mut provider)?;
            Ok(provider)
        })
        .await?;
    Ok(aggregates_view(&cx, &provider))
}

/// Consumers that claim something at the provider.
pub(super) fn consumers_at(tx: &mut store::Tx<'_>, id: ResourceProviderId) -> Result<Vec<Consumer>> {
    let all = tx.list::<Consumer>(&store::Query::new())?;
    Ok(all.into_iter().filter(|c| c.claims.contains_key(&id)).collect())
}
