//! Hypervisors: what hosts have and what is used of it.

use std::collections::BTreeMap;

use ::api::types::parse_bool;
use ::api::{Ctx, Op, Reply, Request};
use base::{Error, HostId, Result};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::ADMIN;
use super::lists::{cut, number, own, strict};
use crate::State;
use crate::model::{Host, Server};

/// Operations on hypervisors.
pub fn ops() -> Vec<Op<State>> {
    const ALL: &str = "/v2.1/os-hypervisors";
    const ONE: &str = "/v2.1/os-hypervisors/{id}";
    let below = |tail: &str| format!("{ONE}/{tail}");
    let ops = vec![
        Op::get(ALL, "os_compute_api:os-hypervisors:list", list).summary("List hypervisors"),
        Op::get("/v2.1/os-hypervisors/detail", "os_compute_api:os-hypervisors:list-detail", detail)
            .summary("List hypervisors with details"),
        Op::get("/v2.1/os-hypervisors/statistics", "os_compute_api:os-hypervisors:statistics", statistics)
            .until(2, 87)
            .summary("Sum of all hypervisors"),
        Op::get(ONE, "os_compute_api:os-hypervisors:show", show).summary("Show a hypervisor"),
        Op::get(below("uptime"), "os_compute_api:os-hypervisors:uptime", uptime)
            .until(2, 87)
            .summary("Show how long a hypervisor runs"),
        Op::get(below("search"), "os_compute_api:os-hypervisors:search", search)
            .until(2, 52)
            .summary("Find hypervisors by name"),
        Op::get(below("servers"), "os_compute_api:os-hypervisors:servers", servers)
            .until(2, 52)
            .summary("List servers of hypervisors found by name"),
    ];
    ops.into_iter().map(|op| op.default_rule(ADMIN)).collect()
}

/// What servers use of a host.
#[derive(Default, Clone)]
struct Used {
    servers: Vec<(String, String)>,
    vcpus: u64,
    ram: u64,
    disk: u64,
    busy: u64,
}

impl Used {
    fn add(&mut self, server: &Server) {
        self.servers.push((server.id.to_string(), server.name.clone()));
        self.vcpus += u64::from(server.size.vcpus);
        self.ram += server.size.ram;
        // A server that boots from a volume has no root disk here.
        let root = if server.image.is_some() { server.size.disk } else { 0 };
        self.disk += root + server.size.ephemeral + server.size.swap.div_ceil(1024);
        self.busy += u64::from(server.task.is_some());
    }
}

type Usage = BTreeMap<HostId, Used>;

fn usage(tx: &mut Tx<'_>, hosts: &[Host]) -> Result<Usage> {
    let ids: Vec<HostId> = hosts.iter().map(|h| h.id).collect();
    let mut usage = Usage::new();
    for server in tx.list::<Server>(&Query::new().is_in("host_id", ids))? {
        if let Some(host) = server.host_id {
            usage.entry(host).or_default().add(&server);
        }
    }
    Ok(usage)
}

/// What is shown besides the names.
#[derive(Clone, Copy)]
struct Parts {
    detail: bool,
    servers: bool,
    uptime: bool,
}

fn id_of(cx: &Ctx<State>, host: &Host) -> Value {
    if cx.since(2, 53) { json!(host.id) } else { json!(number(host.id)) }
}

fn view(cx: &Ctx<State>, host: &Host, used: &Used, parts: Parts) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("id".into(), id_of(cx, host));
    map.insert("hypervisor_hostname".into(), json!(host.name));
    map.insert("state".into(), json!(if cx.is_up(host) { "up" } else { "down" }));
    map.insert("status".into(), json!(if host.disabled { "disabled" } else { "enabled" }));
    if parts.detail {
        details(cx, host, used, &mut map);
    }
    if parts.servers {
        let one = |(id, name): &(String, String)| json!({"uuid": id, "name": name});
        let servers: Vec<Value> = used.servers.iter().map(one).collect();
        // Since 2.75 the list is there also where it is empty.
        if !servers.is_empty() || cx.since(2, 75) {
            map.insert("servers".into(), json!(servers));
        }
    }
    if parts.uptime {
        // Agents do not tell it; Nova says null where a driver does not.
        map.insert("uptime".into(), Value::Null);
    }
    map
}

fn details(cx: &Ctx<State>, host: &Host, used: &Used, map: &mut Map<String, Value>) {
    let capacity = &host.capacity;
    let ip = capacity.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
    for (key, value) in [
        ("hypervisor_type", json!(capacity.hypervisor_type)),
        ("hypervisor_version", json!(capacity.hypervisor_version)),
        ("host_ip", json!(ip)),
        (
            "service",
            json!({"id": id_of(cx, host), "host": host.name, "disabled_reason": host.disabled_reason}),
        ),
    ] {
        map.insert(key.into(), value);
    }
    if !cx.since(2, 88) {
        // Text until 2.27, an object since.
        let info = if capacity.cpu_info.is_null() { json!({}) } else { capacity.cpu_info.clone() };
        map.insert("cpu_info".into(), if cx.since(2, 28) { info } else { json!(info.to_string()) });
        numbers(host, used, map);
    }
}

const NUMBERS: &[&str] = &[
    "vcpus",
    "vcpus_used",
    "memory_mb",
    "memory_mb_used",
    "free_ram_mb",
    "local_gb",
    "local_gb_used",
    "free_disk_gb",
    "disk_available_least",
    "running_vms",
    "current_workload",
];

fn numbers(host: &Host, used: &Used, map: &mut Map<String, Value>) {
    let capacity = &host.capacity;
    // What is promised may exceed what is there; clients know negative numbers here.
    let left = |all: u64, used: u64| {
        i64::try_from(all).unwrap_or(i64::MAX).saturating_sub(i64::try_from(used).unwrap_or(i64::MAX))
    };
    let values = [
        json!(capacity.vcpus),
        json!(used.vcpus),
        json!(capacity.memory_mib),
        json!(used.ram),
        json!(left(capacity.memory_mib, used.ram)),
        json!(capacity.disk_gib),
        json!(used.disk),
        json!(left(capacity.disk_gib, used.disk)),
        json!(capacity.disk_free_gib),
        json!(used.servers.len()),
        json!(used.busy),
    ];
    for (name, value) in NUMBERS.iter().zip(values) {
        map.insert((*name).into(), value);
    }
}

/// `with_servers`, which versions before 2.53 do not have.
fn with_servers(cx: &Ctx<State>, req: &Request<()>) -> Result<bool> {
    match req.query_pairs().get("with_servers").filter(|_| cx.since(2, 53)) {
        None => Ok(false),
        Some(text) => parse_bool(text).ok_or_else(|| {
            Error::bad_request(format!(
                "Invalid input for query parameters with_servers. Value: {text}. It is not a boolean."
            ))
        }),
    }
}

async fn all(cx: Ctx<State>, req: Request<()>, detail: bool) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    strict(&cx, &req, &["limit", "marker", "hypervisor_hostname_pattern", "with_servers"])?;
    let mut page = req.page(cx.config.max_limit)?;
    let servers = with_servers(&cx, &req)?;
    if !cx.since(2, 33) {
        (page.limit, page.limited, page.marker) = (usize::MAX, false, None);
    }
    let pattern = req.query_pairs().get("hypervisor_hostname_pattern").filter(|_| cx.since(2, 53));
    if pattern.is_some() && (page.limited || page.marker.is_some()) {
        return Err(Error::bad_request(
            "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported.",
        ));
    }
    // Servers are looked at only where something of them is shown.
    let counts = servers || (detail && !cx.since(2, 88));
    let (mut hosts, usage) = cx
        .store()
        .read(move |tx| {
            let hosts = tx.list::<Host>(&Query::new())?;
            let usage = if counts { usage(tx, &hosts)? } else { Usage::new() };
            Ok((hosts, usage))
        })
        .await?;
    if let Some(pattern) = pattern {
        hosts.retain(|h| h.name.contains(pattern));
        if hosts.is_empty() {
            return Err(no_match(pattern));
        }
    }
    let by_uuid = cx.since(2, 53);
    hosts.sort_by_key(|h| (number(h.id), h.id));
    let (hosts, next) =
        cut(hosts, &page, |h| if by_uuid { h.id.to_string() } else { number(h.id).to_string() })?;
    let parts = Parts { detail, servers, uptime: detail && cx.since(2, 88) };
    let none = Used::default();
    let items: Vec<_> =
        hosts.iter().map(|h| view(&cx, h, usage.get(&h.id).unwrap_or(&none), parts)).collect();
    Ok(cx.list(&req, &page, "hypervisors", &items, next.as_deref()))
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    all(cx, req, false).await
}

async fn detail(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    all(cx, req, true).await
}

fn no_match(pattern: &str) -> Error {
    Error::not_found(format!("No hypervisor matching '{pattern}' could be found."))
}

/// The host in the path, by id since 2.53 and by number before, with what is used of it.
async fn find(cx: &Ctx<State>, req: &Request<()>) -> Result<(Host, Used)> {
    let text = req.param("id").to_owned();
    let by_uuid = cx.since(2, 53);
    cx.store()
        .read(move |tx| {
            let missing = || Error::not_found(format!("Compute host {text} could not be found."));
            let host = if by_uuid {
                let id: HostId = text
                    .parse()
                    .map_err(|_| Error::bad_request(format!("Invalid input: '{text}' is not a UUID.")))?;
                tx.get::<Host>(&id)?
            } else {
                let wanted: u64 = text.parse().map_err(|_| missing())?;
                tx.list::<Host>(&Query::new())?.into_iter().find(|h| number(h.id) == wanted)
            };
            let host = host.ok_or_else(missing)?;
            let used = usage(tx, std::slice::from_ref(&host))?.remove(&host.id).unwrap_or_default();
            Ok((host, used))
        })
        .await
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    strict(&cx, &req, &["with_servers"])?;
    let servers = with_servers(&cx, &req)?;
    let (host, used) = find(&cx, &req).await?;
    let parts = Parts { detail: true, servers, uptime: cx.since(2, 88) };
    Ok(Reply::json(&json!({"hypervisor": view(&cx, &host, &used, parts)})))
}

/// Agents do not tell how long their host runs; Nova answers 501 for drivers that do not know.
async fn uptime(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    find(&cx, &req).await?;
    Err(Error::not_implemented("Virt driver does not implement uptime function."))
}

async fn statistics(cx: Ctx<State>, _: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let (hosts, usage) = cx
        .store()
        .read(|tx| {
            let hosts = tx.list::<Host>(&Query::new())?;
            let usage = usage(tx, &hosts)?;
            Ok((hosts, usage))
        })
        .await?;
    let mut sums: BTreeMap<&str, i64> = NUMBERS.iter().map(|name| (*name, 0)).collect();
    let none = Used::default();
    // Nova counts hosts whose service is enabled.
    let counted: Vec<&Host> = hosts.iter().filter(|h| !h.disabled).collect();
    for host in &counted {
        let mut map = Map::new();
        numbers(host, usage.get(&host.id).unwrap_or(&none), &mut map);
        for (name, sum) in &mut sums {
            *sum = sum.saturating_add(map.get(*name).and_then(Value::as_i64).unwrap_or(0));
        }
    }
    sums.insert("count", i64::try_from(counted.len()).unwrap_or(i64::MAX));
    Ok(Reply::json(&json!({"hypervisor_statistics": sums})))
}

/// Hosts whose name contains the pattern in the path.
async fn matching(cx: &Ctx<State>, req: &Request<()>, parts: Parts) -> Result<Reply> {
    cx.allow(&own(cx))?;
    let pattern = req.param("id").to_owned();
    let (hosts, usage) = cx
        .store()
        .read(move |tx| {
            let mut hosts = tx.list::<Host>(&Query::new())?;
            hosts.retain(|h| h.name.contains(&pattern));
            if hosts.is_empty() {
                return Err(no_match(&pattern));
            }
            let usage = usage(tx, &hosts)?;
            Ok((hosts, usage))
        })
        .await?;
    let none = Used::default();
    let items: Vec<_> = hosts.iter().map(|h| view(cx, h, usage.get(&h.id).unwrap_or(&none), parts)).collect();
    Ok(Reply::json(&json!({"hypervisors": items})))
}

async fn search(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    matching(&cx, &req, Parts { detail: false, servers: false, uptime: false }).await
}

async fn servers(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    matching(&cx, &req, Parts { detail: false, servers: true, uptime: false }).await
}
