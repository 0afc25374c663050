//! Lists: filters on every attribute, `fields`, sorting, `limit`/`marker`/`page_reverse` with links, tags.
//!
//! Handlers hand in the rows as JSON objects, already cut to what the caller may see; a filter on an attribute that was
//! cut away therefore cannot be used to learn it.

use std::cmp::Ordering;

use api::{Ctx, Query, Reply, Request};
use base::{Error, Result};
use serde_json::{Map, Value};

use api::types::parse_bool;

/// A resource as it goes over the wire.
pub type View = Map<String, Value>;

/// Query parameters that are not filters.
const RESERVED: &[&str] =
    &["fields", "limit", "marker", "page_reverse", "sort_key", "sort_dir", "sort", "verbose", "retrieve_all"];
/// Filters that exist besides a resource's own attributes.
const TAG_FILTERS: &[&str] = &["tags", "tags-any", "not-tags", "not-tags-any"];
/// Most items on one page.
const MAX_LIMIT: usize = 1000;

/// Cuts a view to the wanted `fields`.
pub fn pick_fields<T>(req: &Request<T>, view: View) -> View {
    let wanted: Vec<&str> =
        req.query_pairs().all("fields").flat_map(|f| f.split(',')).filter(|f| !f.is_empty()).collect();
    if wanted.is_empty() {
        return view;
    }
    view.into_iter().filter(|(key, _)| wanted.contains(&key.as_str())).collect()
}

/// The answer of a show: `{"<key>": view}` with `fields` applied.
pub fn one<T>(req: &Request<T>, key: &str, view: View) -> Reply {
    wrapped(key, Value::Object(pick_fields(req, view)))
}

/// `{"<key>": value}`.
pub fn wrapped(key: &str, value: impl Into<Value>) -> Reply {
    let mut map = Map::new();
    map.insert(key.to_owned(), value.into());
    Reply::json(&map)
}

/// `null`, or the value as JSON.
pub fn json<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// Whether one attribute equals what a filter says.
fn equals(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(s) => s == wanted,
        Value::Bool(b) => parse_bool(wanted) == Some(*b),
        Value::Number(n) => wanted.parse::<i64>().ok().is_some_and(|w| n.as_i64() == Some(w)),
        Value::Null => wanted.is_empty() || wanted.eq_ignore_ascii_case("null") || wanted == "None",
        Value::Array(items) => items.iter().any(|item| equals(item, wanted)),
        Value::Object(_) => false,
    }
}

/// `fixed_ips=ip_address=10.0.0.5`, `ip_address_substr`, `subnet_id`.
fn nested(value: &Value, wanted: &str) -> bool {
    let Some((key, text)) = wanted.split_once('=') else { return equals(value, wanted) };
    let (key, substring) = match key {
        "ip_address_substr" => ("ip_address", true),
        other => (other, false),
    };
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|item| item.get(key)).any(|v| match v {
        Value::String(s) if substring => s.contains(text),
        other => equals(other, text),
    })
}

fn tags_match(view: &View, key: &str, wanted: &str) -> bool {
    let own: Vec<&str> =
        view.get("tags").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let mut asked = wanted.split(',').filter(|t| !t.is_empty());
    match key {
        "tags" => asked.all(|t| own.contains(&t)),
        "tags-any" => asked.any(|t| own.contains(&t)),
        "not-tags" => !asked.all(|t| own.contains(&t)),
        _ => !asked.any(|t| own.contains(&t)),
    }
}

/// The distinct filter names of a query.
fn filters(query: &Query) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (key, _) in query.iter() {
        if !RESERVED.contains(&key) && !names.contains(&key) {
            names.push(key);
        }
    }
    names
}

/// Keeps the views that every filter of the query accepts.
///
/// # Errors
/// `HTTPBadRequest` naming parameters that are no attribute of the resource.
pub fn filter(query: &Query, attributes: &[&str], views: Vec<View>) -> Result<Vec<View>> {
    let names = filters(query);
    let unknown: Vec<String> = names
        .iter()
        .filter(|n| !TAG_FILTERS.contains(n) && **n != "changed_since" && !attributes.contains(n))
        .map(|n| format!("'{n}'"))
        .collect();
    if !unknown.is_empty() {
        let text = format!("[{}] is invalid attribute for filtering", unknown.join(", "));
        return Err(Error::bad_request(text).code("HTTPBadRequest"));
    }
    let since = match query.get("changed_since") {
        None => None,
        Some(text) => Some(base::Timestamp::parse(text).ok_or_else(|| {
            Error::bad_request(format!(
                "Invalid input for changed_since. Reason: '{text}' is not a valid time."
            ))
            .code("InvalidInput")
        })?),
    };
    for name in names.iter().filter(|n| BOOLEANS.contains(n)) {
        if let Some(bad) = query.all(name).find(|v| parse_bool(v).is_none()) {
            return Err(super::wire::invalid(name, format!("'{bad}' cannot be converted to boolean"))
                .code("InvalidInput"));
        }
    }
    let keep = |view: &View| {
        let recent = since.is_none_or(|since| {
            let at = view.get("updated_at").and_then(Value::as_str).and_then(base::Timestamp::parse);
            at.is_none_or(|at| at >= since)
        });
        recent
            && names.iter().filter(|n| **n != "changed_since").all(|name| {
                if TAG_FILTERS.contains(name) {
                    return query.all(name).all(|wanted| tags_match(view, name, wanted));
                }
                let Some(value) = view.get(*name) else { return false };
                if *name == "fixed_ips" {
                    return fixed_ips(value, query);
                }
                query.all(name).any(|wanted| equals(value, wanted))
            })
    };
    Ok(views.into_iter().filter(keep).collect())
}

const BOOLEANS: &[&str] =
    &["admin_state_up", "shared", "router:external", "is_default", "port_security_enabled"];

/// Values of one nested key are alternatives, different keys must all hold.
fn fixed_ips(value: &Value, query: &Query) -> bool {
    let asked: Vec<&str> = query.all("fixed_ips").collect();
    let key = |text: &str| text.split_once('=').map_or(String::new(), |(k, _)| k.to_owned());
    asked.iter().all(|one| {
        let group = key(one);
        asked.iter().filter(|other| key(other) == group).any(|other| nested(value, other))
    })
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Less,
        (_, Value::Null) => Ordering::Greater,
        (Value::Number(x), Value::Number(y)) => {
            x.as_f64().partial_cmp(&y.as_f64()).unwrap_or(Ordering::Equal)
        }
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        _ => a.to_string().cmp(&b.to_string()),
    }
}

fn id_of(view: &View) -> &str {
    view.get("id").and_then(Value::as_str).unwrap_or_default()
}

/// Everything a Neutron list does with its parameters: filter, sort, cut to the page, cut to the fields, links.
/// `attributes` are those that can be filtered and sorted by.
///
/// # Errors
/// `HTTPBadRequest` for unknown filters, sort keys or a bad limit; 404 for a marker that is not in the list.
pub fn list<S, T>(
    cx: &Ctx<S>,
    req: &Request<T>,
    key: &str,
    attributes: &[&str],
    views: Vec<View>,
) -> Result<Reply> {
    page(cx, req, key, attributes, filter(req.query_pairs(), attributes, views)?)
}

/// As [`list`], for views that have been filtered.
///
/// # Errors
/// As [`list`].
pub fn page<S, T>(
    cx: &Ctx<S>,
    req: &Request<T>,
    key: &str,
    attributes: &[&str],
    mut views: Vec<View>,
) -> Result<Reply> {
    let page = req.page(MAX_LIMIT).map_err(|e| e.code("HTTPBadRequest"))?;
    if let Some((bad, _)) = page.sort.iter().find(|(k, _)| !attributes.contains(&k.as_str())) {
        let text = format!("['{bad}'] is invalid attribute for sort_keys");
        return Err(Error::bad_request(text).code("HTTPBadRequest"));
    }
    let paged = page.limited || page.marker.is_some();
    if !page.sort.is_empty() || paged {
        views.sort_by(|a, b| {
            for (key, dir) in &page.sort {
                let null = Value::Null;
                let order = compare(a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null));
                let order = if *dir == api::paging::Dir::Desc { order.reverse() } else { order };
                if order != Ordering::Equal {
                    return order;
                }
            }
            id_of(a).cmp(id_of(b))
        });
    }
    let (mut views, full) = if paged { cut(&page, views)? } else { (views, false) };
    let mut map = Map::new();
    let ends = views.first().map(id_of).map(str::to_owned).zip(views.last().map(id_of).map(str::to_owned));
    for view in &mut views {
        *view = pick_fields(req, std::mem::take(view));
    }
    map.insert(key.to_owned(), Value::Array(views.into_iter().map(Value::Object).collect()));
    if let Some((first, last)) = ends.filter(|_| page.limited) {
        map.insert(format!("{key}_links"), links(cx, req, &page, full, &first, &last));
    }
    Ok(Reply::json(&map))
}

/// The page after (or, reversed, before) the marker, and whether it is full.
fn cut(page: &api::Page, mut views: Vec<View>) -> Result<(Vec<View>, bool)> {
    let at = match &page.marker {
        None => None,
        Some(marker) => Some(views.iter().position(|v| id_of(v) == marker).ok_or_else(|| {
            Error::not_found(format!("The marker '{marker}' could not be found.")).code("HTTPNotFound")
        })?),
    };
    let wanted = if page.reverse {
        let end = at.unwrap_or(views.len());
        let start = end.saturating_sub(page.limit);
        views.truncate(end);
        views.split_off(start)
    } else {
        let mut rest = views.split_off(at.map_or(0, |i| i + 1));
        rest.truncate(page.limit);
        rest
    };
    let full = wanted.len() >= page.limit;
    Ok((wanted, full))
}

/// Upstream's links: a full page has both, a short one only the link back.
fn links<S, T>(
    cx: &Ctx<S>,
    req: &Request<T>,
    page: &api::Page,
    full: bool,
    first: &str,
    last: &str,
) -> Value {
    let query = req.query_pairs();
    let href = |extra: &[(&str, &str)]| {
        cx.url(&format!("{}?{}", req.path(), query.rebuild(&["marker", "page_reverse"], extra)))
    };
    let mut links = Vec::new();
    if full || page.reverse {
        links.push(serde_json::json!({"rel": "next", "href": href(&[("marker", last)])}));
    }
    if full || !page.reverse {
        links.push(serde_json::json!({"rel": "previous", "href": href(&[("marker", first), ("page_reverse", "True")])}));
    }
    Value::Array(links)
}
