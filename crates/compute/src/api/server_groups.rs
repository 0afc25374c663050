//! Server groups: which servers shall be near one another, and which far.

use std::collections::BTreeMap;

use ::api::types::{LaxInt, Name};
use ::api::{Ctx, JsonSchema, Op, Reply, Request, Target};
use base::{Error, Result, ServerGroupId, ServerId};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::lists::{own, strict};
use super::quotas::effective_limits;
use crate::State;
use crate::logic::quota;
use crate::model::{Server, ServerGroup};

const ALL: &str = "/v2.1/os-server-groups";
const ONE: &str = "/v2.1/os-server-groups/{id}";
const EVERY_PROJECT: &str = "os_compute_api:os-server-groups:index:all_projects";

/// Operations on server groups.
pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get(ALL, "os_compute_api:os-server-groups:index", list).summary("List server groups"),
        Op::post(ALL, "os_compute_api:os-server-groups:create", create).summary("Create a server group"),
        Op::get(ONE, "os_compute_api:os-server-groups:show", show).summary("Show a server group"),
        Op::delete(ONE, "os_compute_api:os-server-groups:delete", delete).summary("Delete a server group"),
    ]
}

fn missing(id: &str) -> Error {
    Error::not_found(format!("Instance group {id} could not be found."))
}

fn view(cx: &Ctx<State>, group: &ServerGroup, members: &[ServerId]) -> Value {
    let mut map = Map::new();
    map.insert("id".into(), json!(group.id));
    map.insert("name".into(), json!(group.name));
    if cx.since(2, 64) {
        map.insert("policy".into(), json!(group.policy));
        let rules: Map<String, Value> =
            group.max_per_host.map(|n| ("max_server_per_host".to_owned(), json!(n))).into_iter().collect();
        map.insert("rules".into(), json!(rules));
    } else {
        map.insert("policies".into(), json!([group.policy]));
        map.insert("metadata".into(), json!({}));
    }
    map.insert("members".into(), json!(members));
    if cx.since(2, 13) {
        map.insert("project_id".into(), json!(group.project_id));
        map.insert("user_id".into(), json!(group.user_id));
    }
    Value::Object(map)
}

/// Servers of these groups that are not on their way out.
fn members(tx: &mut Tx<'_>, groups: &[ServerGroup]) -> Result<BTreeMap<ServerGroupId, Vec<ServerId>>> {
    let ids: Vec<ServerGroupId> = groups.iter().map(|g| g.id).collect();
    let mut by_group: BTreeMap<ServerGroupId, Vec<ServerId>> = BTreeMap::new();
    let mut servers = tx.list::<Server>(&Query::new().is_in("group_id", ids).eq("deleting", false))?;
    servers.sort_by_key(|s| (s.meta.created_at, s.id));
    for server in servers {
        if let Some(group) = server.group_id {
            by_group.entry(group).or_default().push(server.id);
        }
    }
    Ok(by_group)
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    strict(&cx, &req, &["all_projects", "limit", "offset"])?;
    cx.allow(&own(&cx))?;
    let page = req.page(cx.config.max_limit)?;
    let offset = match req.query_pairs().get("offset") {
        None => 0,
        Some(text) => text.parse::<usize>().map_err(|_| {
            Error::bad_request(format!(
                "Invalid input for query parameters offset. Value: {text}. It is not a non-negative integer."
            ))
        })?,
    };
    let every = req.query_pairs().has("all_projects");
    let mut query = Query::new();
    if every && cx.is_admin() {
        cx.allow_rule(EVERY_PROJECT, &own(&cx))?;
    } else {
        query = query.eq("project_id", cx.project_id()?);
    }
    let (groups, members) = cx
        .store()
        .read(move |tx| {
            let mut groups = tx.list::<ServerGroup>(&query)?;
            groups.sort_by_key(|g| (g.meta.created_at, g.id));
            let groups: Vec<_> = groups.into_iter().skip(offset).take(page.limit).collect();
            let members = members(tx, &groups)?;
            Ok((groups, members))
        })
        .await?;
    let none = Vec::new();
    let items: Vec<Value> =
        groups.iter().map(|g| view(&cx, g, members.get(&g.id).unwrap_or(&none))).collect();
    Ok(Reply::json(&json!({"server_groups": items})))
}

/// The group, if the caller may.
fn find(tx: &mut Tx<'_>, cx: &Ctx<State>, id: ServerGroupId) -> Result<ServerGroup> {
    let words = missing(&id.to_string());
    let group = tx.get::<ServerGroup>(&id)?.ok_or_else(|| missing(&id.to_string()))?;
    cx.allow(&Target::project(&group.project_id).user(&group.user_id).missing(words.public()))?;
    Ok(group)
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id: ServerGroupId = req.id_or("id", missing)?;
    let known = cx.clone();
    let (group, members) = cx
        .store()
        .read(move |tx| {
            let group = find(tx, &known, id)?;
            let members = members(tx, std::slice::from_ref(&group))?;
            Ok((group, members.into_values().next().unwrap_or_default()))
        })
        .await?;
    Ok(Reply::json(&json!({"server_group": view(&cx, &group, &members)})))
}

async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id: ServerGroupId = req.id_or("id", missing)?;
    let known = cx.clone();
    cx.store()
        .write(move |tx| {
            find(tx, &known, id)?;
            tx.delete::<ServerGroup>(&id).map(drop)
        })
        .await?;
    Ok(Reply::empty())
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rules {
    #[serde(default)]
    max_server_per_host: Option<LaxInt<1, 0x7fff_ffff>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewGroup {
    name: Name,
    /// Before 2.64: exactly one.
    #[serde(default)]
    policies: Option<Vec<String>>,
    /// Since 2.64.
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    rules: Option<Rules>,
}

/// Body of POST.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    server_group: NewGroup,
}

/// The policy that is asked for, in the form of the asked version.
fn policy(cx: &Ctx<State>, new: &NewGroup) -> Result<String> {
    let bad = |field: &str, reason: &str| Err(cx.dialect().invalid_field(field, reason));
    let unknown = |field: &str| {
        bad("server_group", &format!("Additional properties are not allowed ('{field}' was unexpected)"))
    };
    let (field, asked) = if cx.since(2, 64) {
        if new.policies.is_some() {
            return unknown("policies");
        }
        match &new.policy {
            None => return bad("server_group", "'policy' is a required property"),
            Some(policy) => ("policy", policy),
        }
    } else {
        if new.policy.is_some() {
            return unknown("policy");
        }
        if new.rules.is_some() {
            return unknown("rules");
        }
        match new.policies.as_deref() {
            None => return bad("server_group", "'policies' is a required property"),
            Some([policy]) => ("policies", policy),
            Some([]) => return bad("policies", "it is too short: one policy is needed"),
            Some(_) => return bad("policies", "it is too long: only one policy is allowed"),
        }
    };
    let soft = cx.since(2, 15) && ["soft-affinity", "soft-anti-affinity"].contains(&asked.as_str());
    if !soft && !["affinity", "anti-affinity"].contains(&asked.as_str()) {
        return bad(field, &format!("'{asked}' is not a policy"));
    }
    Ok(asked.clone())
}

async fn create(cx: Ctx<State>, req: Request<Create>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let new = req.body.server_group;
    let policy = policy(&cx, &new)?;
    let most = new.rules.and_then(|r| r.max_server_per_host);
    if most.is_some() && policy != "anti-affinity" {
        return Err(Error::bad_request("Only anti-affinity policy supports rules."));
    }
    if new.name.trim() != new.name.as_str() {
        return Err(cx.dialect().invalid_field("name", "it may not begin or end with a blank"));
    }
    let group = ServerGroup {
        id: ServerGroupId::random(&cx.entropy),
        meta: store::Meta::default(),
        project_id: cx.project_id()?.clone(),
        user_id: cx.user_id().clone(),
        name: new.name.into_string(),
        policy,
        max_per_host: most.and_then(|n| u32::try_from(n.get()).ok()),
    };
    let operator = cx.config.quota.clone();
    let group = cx
        .store()
        .write(move |tx| {
            let mut group = group.clone();
            let limits = effective_limits(tx, &operator, Some(&group.project_id))?;
            let used = tx.count::<ServerGroup>(&Query::new().eq("project_id", &group.project_id))?;
            if !quota::within(&limits, "server_groups", used, 1) {
                return Err(Error::over_quota("Quota exceeded, too many server groups."));
            }
            tx.insert(&mut group)?;
            Ok(group)
        })
        .await?;
    Ok(Reply::json(&json!({"server_group": view(&cx, &group, &[])})))
}
