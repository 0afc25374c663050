//! `/allocation_candidates`: providers that could carry a request, one provider each (no nesting, no granular groups).

use ::api::{Ctx, Reply, Request};
use base::{Error, Result};
use contract::services::has_room;
use serde_json::{Map, Value, json};

use super::allow;
use super::providers::{Traits, amounts, known_parameters, member_of};
use crate::State;
use crate::model::Provider;

const PARAMETERS: &[(&str, u16)] =
    &[("resources", 10), ("limit", 16), ("required", 17), ("member_of", 21), ("in_tree", 31)];

pub(super) async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let query = req.query_pairs();
    if let Some((key, _)) = query.iter().find(|(k, _)| {
        k.strip_prefix("resources")
            .or_else(|| k.strip_prefix("required"))
            .is_some_and(|rest| !rest.is_empty())
    }) {
        return Err(Error::bad_request(format!(
            "Granular request groups ('{key}') are not offered: providers of this cloud are not nested."
        )));
    }
    known_parameters(&cx, query, PARAMETERS)?;
    let text = query.get("resources").ok_or_else(|| {
        Error::bad_request("Invalid query string parameters: 'resources' is a required property")
    })?;
    let resources = amounts(text)?;
    let traits = Traits::parse(query, "required", cx.since(1, 22))?;
    let tree = query.get("in_tree").map(str::to_owned);
    let limit = match query.get("limit") {
        None => usize::MAX,
        Some(text) => text.parse().ok().filter(|n| *n > 0).ok_or_else(|| {
            Error::bad_request(format!(
                "Invalid query string parameters: limit '{text}' is not a positive integer"
            ))
        })?,
    };
    let all = cx.store().read(|tx| tx.list::<Provider>(&store::Query::new())).await?;
    let mut fit = Vec::new();
    for provider in &all {
        let in_tree =
            tree.as_ref().is_none_or(|t| provider.root.to_string() == *t || provider.id.to_string() == *t);
        if in_tree
            && has_room(&provider.inventories, &provider.used, &resources)
            && traits.accepts(provider)
            && member_of(query, provider)?
        {
            fit.push(provider);
        }
    }
    fit.truncate(limit);
    let requests: Vec<Value> = fit.iter().map(|p| request(&cx, p, &resources)).collect();
    let mut summaries = Map::new();
    for provider in fit {
        summaries.insert(provider.id.to_string(), summary(&cx, provider, &resources));
    }
    Ok(Reply::json(&json!({"allocation_requests": requests, "provider_summaries": summaries})))
}

fn request(
    cx: &Ctx<State>,
    provider: &Provider,
    resources: &std::collections::BTreeMap<String, u64>,
) -> Value {
    let id = provider.id.to_string();
    if !cx.since(1, 12) {
        return json!({"allocations": [{"resource_provider": {"uuid": id}, "resources": resources}]});
    }
    let mut one = Map::new();
    one.insert("allocations".into(), json!({id.clone(): {"resources": resources}}));
    if cx.since(1, 34) {
        one.insert("mappings".into(), json!({"": [id]}));
    }
    Value::Object(one)
}

fn summary(cx: &Ctx<State>, provider: &Provider, wanted: &std::collections::BTreeMap<String, u64>) -> Value {
    let mut resources = Map::new();
    for (class, stock) in &provider.inventories {
        // Before 1.27 only what was asked for is told.
        if cx.since(1, 27) || wanted.contains_key(class) {
            let used = provider.used.get(class).copied().unwrap_or(0);
            resources.insert(class.clone(), json!({"capacity": stock.capacity(), "used": used}));
        }
    }
    let mut one = Map::new();
    one.insert("resources".into(), Value::Object(resources));
    if cx.since(1, 17) {
        one.insert("traits".into(), json!(provider.traits));
    }
    if cx.since(1, 29) {
        one.insert("parent_provider_uuid".into(), json!(provider.parent));
        one.insert("root_provider_uuid".into(), json!(provider.root));
    }
    Value::Object(one)
}
