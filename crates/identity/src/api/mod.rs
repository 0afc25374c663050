//! The table of operations, the default policy, and what the handlers share.

mod application_credentials;
mod assignments;
mod audit_events;
mod auth;
mod catalog;
mod credentials;
mod domain_config;
mod domains;
mod ec2;
mod endpoint_filter;
mod federation;
mod grants;
mod groups;
mod json_home;
mod limits;
mod oauth1;
mod oauth2;
mod oidc;
mod oidc_clients;
mod policies;
mod projects;
mod revoke;
mod roles;
mod rules;
mod saml;
mod trusts;
mod users;
mod websso;

use std::cmp::Reverse;

use ::api::paging::Dir;
use ::api::{Ctx, Op, Reply, Request, Target, versions};
use base::{DomainId, Error, Result, Timestamp};
use contract::Scope;
use serde_json::{Map, Value, json};
use store::{Query, Resource, Tx};

use crate::logic::body::invalid;
use crate::state::State;
use crate::words::told;
pub(crate) use catalog::plain_region;
pub use rules::POLICY;
pub(crate) use users::{PasswordChange, set_password};

pub(crate) type Cx = Ctx<State>;

/// All operations of the identity service.
pub fn ops() -> Vec<Op<State>> {
    let mut ops = versions::keystone(json_home::document);
    ops.extend(auth::ops());
    ops.extend(users::ops());
    ops.extend(groups::ops());
    ops.extend(projects::ops());
    ops.extend(domains::ops());
    ops.extend(roles::ops());
    ops.extend(grants::ops());
    ops.extend(assignments::ops());
    ops.extend(application_credentials::ops());
    ops.extend(catalog::ops());
    ops.extend(trusts::ops());
    ops.extend(credentials::ops());
    ops.extend(ec2::ops());
    ops.extend(limits::ops());
    ops.extend(policies::ops());
    ops.extend(endpoint_filter::ops());
    ops.extend(domain_config::ops());
    ops.extend(revoke::ops());
    ops.extend(oauth1::ops());
    ops.extend(oauth2::ops());
    ops.extend(audit_events::ops());
    ops.extend(federation::ops());
    ops.extend(websso::ops());
    ops.extend(saml::ops());
    ops.extend(oidc_clients::ops());
    ops.extend(oidc::ops());
    ops.into_iter().map(crate::audit::watched).collect()
}

/// Enforces the operation's rule. What does not exist and what is foreign are refused alike, with a 403, as Keystone
/// does: an absent target lacks the attributes a rule for anyone but administrators needs.
pub(crate) fn enforce(cx: &Cx, target: &Target) -> Result<()> {
    let rule = &cx.op().policy;
    if cx.allows(rule, target) { Ok(()) } else { Err(cx.dialect().policy_denied(rule)) }
}

/// The domain of a domain-scoped token.
pub(crate) fn token_domain(cx: &Cx) -> Option<DomainId> {
    if let Scope::Domain { id, .. } = &cx.auth().scope { Some(id.clone()) } else { None }
}

/// The target of a list: for a domain-scoped token its own domain, to which the answer is then confined.
pub(crate) fn own_domain_target(cx: &Cx) -> Target {
    match token_domain(cx) {
        Some(id) => Target::none().set("domain_id", id.as_str()).set("target.domain_id", id.as_str()),
        None => Target::none(),
    }
}

/// The domain a new thing goes into where the body names none: Keystone's default domain, unless the token is for
/// another domain.
pub(crate) fn default_domain(cx: &Cx) -> DomainId {
    token_domain(cx).unwrap_or_else(|| DomainId::new("default"))
}

impl State {
    /// A read in one transaction.
    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<T> + Send + Sync + 'static,
    {
        self.store.read(work).await
    }

    /// A write in one transaction. Every write of this service goes this way: what is remembered of tokens depends on it.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<T> + Send + Sync + 'static,
    {
        self.tokens.write(work).await
    }
}

/// `{"links": {"self": …}}` and extra attributes around an entity's own.
pub(crate) fn entity(cx: &Cx, path: &str, own: Value, extra: &Map<String, Value>) -> Value {
    let mut map = extra.clone();
    if let Value::Object(own) = own {
        map.extend(own);
    }
    map.insert("links".into(), json!({"self": cx.url(path)}));
    Value::Object(map)
}

/// `{"user": {…}}`.
pub(crate) fn one(key: &str, value: Value) -> Reply {
    let id = value.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut map = Map::new();
    map.insert(key.to_owned(), value);
    Reply::json(&Value::Object(map)).about(id)
}

/// A list in Keystone's form: filtered by the query (`name`, `name__contains`, …; only attributes named in `filters`),
/// then sorted, then by `marker` and `limit`.
pub(crate) fn listed<T>(
    cx: &Cx,
    req: &Request<T>,
    key: &str,
    items: Vec<Value>,
    filters: &[&str],
) -> Result<Reply> {
    let page = req.page(usize::MAX)?;
    let mut items = items;
    items.retain(|item| fits(req.query_pairs(), filters, item));
    // The last key first: the sort is stable.
    for (key, direction) in page.sort.iter().rev() {
        items.sort_by_cached_key(|item| {
            let text = item.get(key).map(Value::to_string).unwrap_or_default();
            // Reversed keys, not a reversed list: equals keep their order.
            let (rising, falling) =
                if *direction == Dir::Desc { (None, Some(Reverse(text))) } else { (Some(text), None) };
            (rising, falling)
        });
    }
    if let Some(marker) = &page.marker {
        let at = items.iter().position(|i| i.get("id").and_then(Value::as_str) == Some(marker));
        let at =
            at.ok_or_else(|| Error::bad_request(format!("Marker {} could not be found.", short(marker))))?;
        items.drain(..=at);
    }
    let more = items.len() > page.limit;
    items.truncate(page.limit);
    let last = items.last().and_then(|i| i.get("id")).and_then(Value::as_str).map(str::to_owned);
    Ok(cx.list(req, &page, key, &items, last.as_deref().filter(|_| more)))
}

/// Rows read at once where a page is looked for.
const CHUNK: usize = 2000;

/// [`listed`] of a table that may be large: of `R`, what `query` asks for and `keep` leaves. Where a page is asked for in
/// the table's own order, which is the usual case, no more is read than it needs. All of an answer is read in one
/// transaction.
pub(crate) async fn listed_from<R, T>(
    cx: &Cx,
    req: &Request<T>,
    key: &str,
    query: Query,
    keep: impl Fn(&R) -> bool + Send + Sync + 'static,
    wire: fn(&Cx, &R) -> Value,
    filters: &'static [&'static str],
) -> Result<Reply>
where
    R: Resource + Send,
{
    let page = req.page(usize::MAX)?;
    let query = narrowed(req, query);
    if page.limit == usize::MAX || !page.sort.is_empty() {
        let mut found = cx.read(move |tx| tx.list::<R>(&query)).await?;
        found.retain(keep);
        return listed(cx, req, key, found.iter().map(|r| wire(cx, r)).collect(), filters);
    }
    let (of, wanted) = (cx.clone(), req.query_pairs().clone());
    let (marker, limit) = (page.marker.clone(), page.limit);
    let found = cx.read(move |tx| {
        let shown = |r: &R| Some(wire(&of, r)).filter(|item| fits(&wanted, filters, item));
        some_of(tx, &query, marker.as_deref(), limit, &keep, &shown)
    });
    let mut items = found.await?;
    let more = items.len() > page.limit;
    items.truncate(page.limit);
    let last = items.last().and_then(|i| i.get("id")).and_then(Value::as_str).map(str::to_owned);
    Ok(cx.list(req, &page, key, &items, last.as_deref().filter(|_| more)))
}

/// [`listed_from`] of a whole table.
pub(crate) async fn listed_all<R, T>(
    cx: &Cx,
    req: &Request<T>,
    key: &str,
    wire: fn(&Cx, &R) -> Value,
    filters: &'static [&'static str],
) -> Result<Reply>
where
    R: Resource + Send,
{
    listed_from(cx, req, key, Query::new(), |_: &R| true, wire, filters).await
}

/// How one kind of thing that has no owner is found by its id, and shown.
pub(crate) struct Entity<R> {
    /// Its name in bodies.
    pub key: &'static str,
    /// Reads it, or tells that it is not there.
    pub need: fn(&mut Tx<'_>, &str) -> Result<R>,
    /// As it is shown.
    pub wire: fn(&Cx, &R) -> Value,
}

impl<R: Resource + Clone + Send + Sync + 'static> Entity<R> {
    /// Shows it.
    pub(crate) async fn show(&self, cx: &Cx, id: &str) -> Result<Reply> {
        let (id, need) = (id.to_owned(), self.need);
        let found = cx.read(move |tx| need(tx, &id)).await?;
        Ok(one(self.key, (self.wire)(cx, &found)))
    }

    /// Writes it, with what hangs on it, under an id that must not be taken.
    pub(crate) async fn create<F>(&self, cx: &Cx, made: R, id: &str, also: F) -> Result<Reply>
    where
        F: Fn(&mut Tx<'_>) -> Result<()> + Send + Sync + 'static,
    {
        let (id, key) = (id.to_owned(), self.key);
        let insert = move |tx: &mut Tx<'_>| {
            let mut made = made.clone();
            told(tx.insert(&mut made), key, || format!("Duplicate entry found with ID {id}"))?;
            also(tx)?;
            Ok(made)
        };
        let made = cx.write(insert).await?;
        Ok(one(self.key, (self.wire)(cx, &made)))
    }

    /// Changes it, with what hangs on it.
    pub(crate) async fn update<F>(&self, cx: &Cx, id: &str, change: F) -> Result<Reply>
    where
        F: Fn(&mut Tx<'_>, &mut R) -> Result<()> + Send + Sync + 'static,
    {
        let (id, need) = (id.to_owned(), self.need);
        let update = move |tx: &mut Tx<'_>| {
            let mut held = need(tx, &id)?;
            change(tx, &mut held)?;
            tx.update(&mut held)?;
            Ok(held)
        };
        let made = cx.write(update).await?;
        Ok(one(self.key, (self.wire)(cx, &made)))
    }
}

/// Writes a new thing that nothing else hangs on.
pub(crate) async fn inserted<R>(cx: &Cx, made: R) -> Result<R>
where
    R: Resource + Clone + Send + Sync + 'static,
{
    let insert = move |tx: &mut Tx<'_>| {
        let mut made = made.clone();
        tx.insert(&mut made)?;
        Ok(made)
    };
    cx.write(insert).await
}

/// The first items after `marker` in the table's own order, at least one more than `limit` where there are.
fn some_of<R: Resource>(
    tx: &mut Tx<'_>,
    query: &Query,
    marker: Option<&str>,
    limit: usize,
    keep: &dyn Fn(&R) -> bool,
    shown: &dyn Fn(&R) -> Option<Value>,
) -> Result<Vec<Value>> {
    if let Some(marker) = marker {
        // One that the caller could not see is no marker.
        if tx.count::<R>(&query.clone().eq("id", marker))? == 0 {
            return Err(Error::bad_request(format!("Marker {} could not be found.", short(marker))));
        }
    }
    let mut items = Vec::new();
    let (mut after, mut chunk) = (marker.map(str::to_owned), limit.saturating_add(1).min(CHUNK));
    loop {
        let found = tx.list::<R>(&query.clone().after(after.take()).limit(chunk))?;
        items.extend(found.iter().filter(|r| keep(r)).filter_map(shown));
        after = found.last().map(|r| r.id().to_string());
        if found.len() < chunk || items.len() > limit {
            return Ok(items);
        }
        chunk = CHUNK;
    }
}

/// Lets the database find names by their beginning or a part; it knows no case of letters beyond ASCII, and what it finds is
/// looked at again.
fn narrowed<T>(req: &Request<T>, mut query: Query) -> Query {
    for (name, wanted) in req.query_pairs().iter().filter(|(_, wanted)| wanted.is_ascii()) {
        query = match name {
            "name__contains" | "name__icontains" | "name__endswith" | "name__iendswith" => {
                query.contains("name", wanted)
            }
            "name__startswith" | "name__istartswith" | "name__iequals" => query.prefix("name", wanted),
            _ => query,
        };
    }
    query
}

/// Whether an item has what the query asks for.
fn fits(wanted: &::api::Query, filters: &[&str], item: &Value) -> bool {
    wanted.iter().all(|(name, wanted)| {
        let (name, how) = name.split_once("__").unwrap_or((name, "equals"));
        !filters.contains(&name) || matches(item.get(name).unwrap_or(&Value::Null), how, wanted)
    })
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

fn matches(value: &Value, how: &str, wanted: &str) -> bool {
    let text = match value {
        Value::Bool(flag) => return truth(wanted) == *flag,
        Value::String(text) => text.as_str(),
        Value::Null => return wanted.is_empty() || wanted == "null",
        _ => return false,
    };
    let (low, wanted_low) = (text.to_lowercase(), wanted.to_lowercase());
    match how {
        "contains" => text.contains(wanted),
        "icontains" => low.contains(&wanted_low),
        "startswith" => text.starts_with(wanted),
        "istartswith" => low.starts_with(&wanted_low),
        "endswith" => text.ends_with(wanted),
        "iendswith" => low.ends_with(&wanted_low),
        "iequals" => low == wanted_low,
        _ => text == wanted,
    }
}

/// Keystone's reading of a flag in a query: present and not a word for "no".
pub(crate) fn truth(text: &str) -> bool {
    !matches!(text.to_ascii_lowercase().as_str(), "0" | "false" | "f" | "no" | "n" | "off")
}

/// Whether a flag is set in the query.
pub(crate) fn asked<T>(req: &Request<T>, name: &str) -> bool {
    req.query_pairs().get(name).is_some_and(truth)
}

/// Refuses options that Keystone does not know; known ones are kept.
pub(crate) fn options(
    given: Option<Map<String, Value>>,
    known: &[(&str, bool)],
) -> Result<Option<Map<String, Value>>> {
    let Some(map) = given else { return Ok(None) };
    for (name, value) in &map {
        let Some((_, flag)) = known.iter().find(|(n, _)| n == name) else {
            return Err(invalid("options", &format!("'{}' is not an option", short(name))));
        };
        if *flag && !value.is_boolean() && !value.is_null() {
            return Err(invalid(&format!("options/{name}"), "the value is not of type 'boolean', 'null'"));
        }
    }
    Ok(Some(map))
}

/// Takes over given options; null removes one.
pub(crate) fn merge_options(into: &mut Map<String, Value>, given: Map<String, Value>) {
    for (name, value) in given {
        if value.is_null() {
            into.remove(&name);
        } else {
            into.insert(name, value);
        }
    }
}

/// The `expires_at` of a body: a moment to come.
pub(crate) fn expiry(text: Option<&str>, now: Timestamp) -> Result<Option<Timestamp>> {
    let Some(text) = text else { return Ok(None) };
    let at = Timestamp::parse(text).ok_or_else(|| {
        Error::bad_request(
            "Invalid input for field 'expires_at': Timestamp not in expected format. The server could not comply with the request since it is either malformed or otherwise incorrect. The client is assumed to be in error.",
        )
    })?;
    if at <= now {
        return Err(Error::bad_request(
            "Invalid input for field 'expires_at': The 'expires_at' must not be before now. The server could not comply with the request since it is either malformed or otherwise incorrect. The client is assumed to be in error.",
        ));
    }
    Ok(Some(at))
}

/// Whether a resource is marked immutable.
pub(crate) fn immutable(options: &Map<String, Value>) -> bool {
    options.get("immutable") == Some(&Value::Bool(true))
}

/// 403 for a change of what is immutable.
pub(crate) fn immutable_error(verb: &str, kind: &str, id: &str) -> Error {
    Error::forbidden(format!(
        "Unable to {verb} immutable {kind} resource: `{id}. Set resource option \"immutable\" to false first."
    ))
}

/// A change of an immutable resource is taken only if it is what makes it mutable.
pub(crate) fn may_change(
    held: &Map<String, Value>,
    given: Option<&Map<String, Value>>,
    kind: &str,
    id: &str,
) -> Result<()> {
    let releases =
        given.is_some_and(|o| matches!(o.get("immutable"), Some(Value::Bool(false) | Value::Null)));
    if immutable(held) && !releases { Err(immutable_error("update", kind, id)) } else { Ok(()) }
}
