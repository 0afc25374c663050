//! `/servers`: create, list, show, change, delete.

mod actions;
mod body;
mod create;
mod filter;
mod metadata;
mod migration;
mod view;

use ::api::types::{Name, Patch, Text};
use ::api::{Ctx, Op, Reply, Request, Target};
use base::{Error, Result, ServerId};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Order, Query};

pub(super) use create::{fresh, given, limits_of, only_network, usable};
pub(super) use view::host_id;

use super::wire::{gate, owned, record, server_id};
use crate::State;
use crate::logic::{names, state};
use crate::model::Server;
use filter::Filter;

/// Rows that a list reads at once.
const CHUNK: usize = 500;

pub(super) fn ops() -> Vec<Op<State>> {
    const ONE: &str = "/v2.1/servers/{id}";
    let mut ops = vec![
        Op::get("/v2.1/servers", "os_compute_api:servers:index", list).summary("List servers"),
        Op::get("/v2.1/servers/detail", "os_compute_api:servers:detail", detail)
            .summary("List servers with details"),
        Op::post("/v2.1/servers", "os_compute_api:servers:create", create::create)
            .status(202)
            .summary("Create servers"),
        Op::get(ONE, "os_compute_api:servers:show", show).summary("Show a server"),
        Op::put(ONE, "os_compute_api:servers:update", update).summary("Change a server"),
        Op::delete(ONE, "os_compute_api:servers:delete", delete).summary("Delete a server"),
    ];
    ops.extend(actions::ops());
    ops.extend(metadata::ops());
    ops
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let page = req.page(cx.state().config.max_limit)?;
    let servers = find(&cx, &req, &page).await?;
    let items: Vec<Value> = servers.iter().map(|s| view::brief(&cx, s)).collect();
    Ok(cx.list(&req, &page, "servers", &items, next(&servers, &page).as_deref()))
}

async fn detail(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let page = req.page(cx.state().config.max_limit)?;
    let servers = find(&cx, &req, &page).await?;
    let around = view::around(&cx, &servers).await?;
    let items: Vec<Value> = servers.iter().map(|s| view::full(&cx, s, &around, None)).collect();
    Ok(cx.list(&req, &page, "servers", &items, next(&servers, &page).as_deref()))
}

/// A full page has a next one, as far as Nova tells.
fn next(servers: &[Server], page: &::api::Page) -> Option<String> {
    servers.last().filter(|_| servers.len() == page.limit).map(|s| s.id.to_string())
}

async fn find(cx: &Ctx<State>, req: &Request<()>, page: &::api::Page) -> Result<Vec<Server>> {
    let filter = Filter::read(cx, req.query_pairs())?;
    cx.allow(&filter.project.as_ref().map_or_else(Target::none, |p| Target::project(p).visible(true)))?;
    if filter.nothing {
        return Ok(Vec::new());
    }
    if page.sort.is_empty() && filter.ip.is_none() && filter.ip6.is_none() {
        return newest(cx, filter, page).await;
    }
    let query = of_project(&filter);
    let servers = cx.store().read(move |tx| tx.list::<Server>(&query)).await?;
    let mut servers: Vec<Server> = servers.into_iter().filter(|s| filter.accepts(s)).collect();
    if filter.ip.is_some() || filter.ip6.is_some() {
        let devices: Vec<String> = servers.iter().map(|s| s.id.to_string()).collect();
        let ports = cx.state().deps.networks.ports_of(&devices).await?;
        servers.retain(|s| {
            let ips: Vec<_> = ports
                .get(&s.id.to_string())
                .into_iter()
                .flatten()
                .flat_map(|p| p.fixed_ips.iter().map(|f| f.ip))
                .collect();
            let fit = |r: &Option<regex_automata::meta::Regex>, v4: bool| {
                r.as_ref()
                    .is_none_or(|r| ips.iter().any(|ip| ip.is_ipv4() == v4 && r.is_match(&ip.to_string())))
            };
            fit(&filter.ip, true) && fit(&filter.ip6, false)
        });
    }
    filter::sort(&mut servers, page)?;
    filter::cut(servers, page)
}

/// A page of the list as it is sorted unless asked otherwise: what is read does not grow with what there is.
async fn newest(cx: &Ctx<State>, filter: Filter, page: &::api::Page) -> Result<Vec<Server>> {
    let (marker, limit) = (page.marker.clone(), page.limit);
    cx.store()
        .read(move |tx| {
            let mut after = marker.clone();
            if let Some(marker) = &marker {
                let there =
                    marker.parse().ok().map(|id: ServerId| tx.get::<Server>(&id)).transpose()?.flatten();
                let shown = |s: &Server| {
                    filter.project.as_ref().is_none_or(|p| s.project_id == *p) && filter.accepts(s)
                };
                if !there.is_some_and(|s| shown(&s)) {
                    return Err(Error::bad_request(format!("marker [{marker}] not found")));
                }
            }
            let mut chunk = limit.clamp(1, CHUNK);
            let mut found = Vec::new();
            while found.len() < limit {
                let query = of_project(&filter).sort("created_at", Order::Desc).after(after).limit(chunk);
                let some = tx.list::<Server>(&query)?;
                let last = some.len() < chunk;
                after = some.last().map(|s| s.id.to_string());
                found.extend(some.into_iter().filter(|s| filter.accepts(s)).take(limit - found.len()));
                if last {
                    break;
                }
                // Few of what was read are wanted.
                chunk = CHUNK.min(chunk * 4);
            }
            Ok(found)
        })
        .await
}

/// Servers of the filter's project, or all, that changed when the filter asks for: rows that need not be read whole.
fn of_project(filter: &Filter) -> Query {
    let query = match filter.changed_since {
        Some(since) => Query::new().ge("updated_at", since),
        None => Query::new(),
    };
    match &filter.project {
        Some(project) => query.eq("project_id", project),
        None => query,
    }
}

/// A server as "show" tells it.
async fn shown(cx: &Ctx<State>, server: &Server) -> Result<Value> {
    let around = view::around(cx, std::slice::from_ref(server)).await?;
    let group = server.group_id.map(|g| g.to_string()).into_iter().collect();
    Ok(view::full(cx, server, &around, Some(group)))
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    let server = cx
        .store()
        .read({
            let cx = cx.clone();
            move |tx| owned(tx, &cx, id)
        })
        .await?;
    Ok(Reply::json(&json!({"server": shown(&cx, &server).await?})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Update {
    server: Changes,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Changes {
    name: Option<Name>,
    #[serde(rename = "OS-DCF:diskConfig")]
    disk_config: Option<body::DiskConfig>,
    #[serde(rename = "accessIPv4")]
    access_v4: Option<Text<0, 64>>,
    #[serde(rename = "accessIPv6")]
    access_v6: Option<Text<0, 64>>,
    #[serde(default)]
    description: Patch<Text<0, 255>>,
    hostname: Option<Text<1, 255>>,
}

async fn update(cx: Ctx<State>, req: Request<Update>) -> Result<Reply> {
    let id = server_id(&req)?;
    let new = req.body.server;
    gate(&cx, !new.description.is_absent(), 2, 19, "description")?;
    gate(&cx, new.hostname.is_some(), 2, 90, "hostname")?;
    let name = new.name.map(|n| body::name(&cx, n)).transpose()?;
    let v4 = new.access_v4.as_deref().map(|t| body::v4(&cx, Some(t))).transpose()?;
    let v6 = new.access_v6.as_deref().map(|t| body::v6(&cx, Some(t))).transpose()?;
    let description = new.description.sent().map(|d| d.map(String::from));
    let hostname = new.hostname.map(|h| body::hostname(&cx, &h)).transpose()?;
    let disk_config = new.disk_config.map(body::DiskConfig::as_str);
    let cx2 = cx.clone();
    let server = cx
        .store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            let before = server.clone();
            if let Some(name) = &name {
                server.name.clone_from(name);
            }
            if let Some(v4) = v4 {
                server.access_ip_v4 = v4;
            }
            if let Some(v6) = v6 {
                server.access_ip_v6 = v6;
            }
            if let Some(description) = &description {
                server.description.clone_from(description);
            }
            if let Some(hostname) = &hostname {
                server.hostname.clone_from(hostname);
            }
            if let Some(config) = disk_config {
                config.clone_into(&mut server.disk_config);
            }
            save(tx, &before, &mut server)?;
            Ok(server)
        })
        .await?;
    Ok(Reply::json(&json!({"server": shown(&cx, &server).await?})))
}

/// Writes a server: as a change of the spec where its host must know.
pub(super) fn save(tx: &mut store::Tx<'_>, before: &Server, server: &mut Server) -> Result<()> {
    use crate::logic::fold::server_spec;
    if !server.ready || server_spec(before) == server_spec(server) {
        return tx.update_status(server);
    }
    tx.update(server)?;
    crate::moving::wake_hosts(tx, server)
}

async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    remove(&cx, id, "delete").await?;
    Ok(Reply::empty())
}

/// Marks a server for going; the reconciler takes it apart.
async fn remove(cx: &Ctx<State>, id: ServerId, action: &'static str) -> Result<()> {
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            state::unlocked(&server, cx2.is_admin())?;
            if server.deleting {
                return Ok(());
            }
            server.deleting = true;
            server.task = Some("deleting".to_owned());
            tx.update(&mut server)?;
            record(tx, &cx2, &server, action)?;
            tx.wake("server", id);
            if server.ready { crate::moving::wake_hosts(tx, &server) } else { Ok(()) }
        })
        .await
}

/// Device name for a volume that is attached without one.
pub(super) fn device(server: &Server, wanted: Option<&str>) -> Result<String> {
    let Some(text) = wanted.filter(|t| !t.is_empty()) else {
        return Ok(crate::reconcile::next_device(server));
    };
    let short = text.strip_prefix("/dev/").unwrap_or(text);
    if short.is_empty() || short.len() > 16 || !short.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Error::bad_request(format!("The supplied device path ({text}) is invalid.")));
    }
    let full = format!("/dev/{short}");
    let free = names::device(&[]) != full || server.image.is_none();
    if !free || server.disks.iter().any(|d| d.device == full) {
        return Ok(crate::reconcile::next_device(server));
    }
    Ok(full)
}
