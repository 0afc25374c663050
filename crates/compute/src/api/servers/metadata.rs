//! What hangs on a server: metadata, tags, addresses, security groups, password, diagnostics.

use std::collections::BTreeMap;

use ::api::types::{Metadata, Text};
use ::api::{Ctx, Op, Reply, Request};
use base::{Error, Result};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::wire::{owned, server_id};
use super::super::{ADMIN, MEMBER};
use super::{body, limits_of, save, view};
use crate::State;
use crate::logic::quota;
use crate::logic::state::unlocked;
use crate::model::{Server, power};

pub(super) fn ops() -> Vec<Op<State>> {
    const META: &str = "/v2.1/servers/{id}/metadata";
    const KEY: &str = "/v2.1/servers/{id}/metadata/{key}";
    const TAGS: &str = "/v2.1/servers/{id}/tags";
    const TAG: &str = "/v2.1/servers/{id}/tags/{tag}";
    vec![
        Op::get(META, "os_compute_api:server-metadata:index", list).summary("List metadata"),
        Op::post(META, "os_compute_api:server-metadata:create", add).summary("Add metadata"),
        Op::put(META, "os_compute_api:server-metadata:update_all", replace).summary("Replace metadata"),
        Op::get(KEY, "os_compute_api:server-metadata:show", show).summary("Show a metadata item"),
        Op::put(KEY, "os_compute_api:server-metadata:update", put).summary("Set a metadata item"),
        Op::delete(KEY, "os_compute_api:server-metadata:delete", remove).summary("Delete a metadata item"),
        Op::get(TAGS, "os_compute_api:os-server-tags:index", tags).since(2, 26).summary("List tags"),
        Op::put(TAGS, "os_compute_api:os-server-tags:update_all", set_tags)
            .since(2, 26)
            .summary("Replace tags"),
        Op::delete(TAGS, "os_compute_api:os-server-tags:delete_all", clear_tags)
            .since(2, 26)
            .summary("Delete all tags"),
        Op::get(TAG, "os_compute_api:os-server-tags:show", has_tag)
            .since(2, 26)
            .status(204)
            .summary("Whether a server has a tag"),
        Op::put(TAG, "os_compute_api:os-server-tags:update", add_tag)
            .since(2, 26)
            .status(201)
            .summary("Add a tag"),
        Op::delete(TAG, "os_compute_api:os-server-tags:delete", remove_tag)
            .since(2, 26)
            .summary("Delete a tag"),
        Op::get("/v2.1/servers/{id}/ips", "os_compute_api:ips:index", ips).summary("List addresses"),
        Op::get("/v2.1/servers/{id}/ips/{network}", "os_compute_api:ips:show", ips_of)
            .summary("List addresses on a network"),
        Op::get("/v2.1/servers/{id}/os-security-groups", "os_compute_api:os-security-groups:list", groups)
            .summary("Security groups of a server"),
        Op::get("/v2.1/servers/{id}/os-server-password", "os_compute_api:os-server-password:show", password)
            .summary("The encrypted password the guest posted"),
        Op::delete(
            "/v2.1/servers/{id}/os-server-password",
            "os_compute_api:os-server-password:clear",
            clear_password,
        )
        .summary("Forget the password"),
        Op::get("/v2.1/servers/{id}/diagnostics", "os_compute_api:os-server-diagnostics", diagnostics)
            .default_rule(ADMIN)
            .summary("What the hypervisor knows"),
        Op::get("/v2.1/servers/{id}/topology", "os_compute_api:compute:server:topology:index", topology)
            .since(2, 78)
            .summary("NUMA topology of a server"),
        Op::get("/v2.1/servers/{id}/migrations", "os_compute_api:servers:migrations:index", migrations)
            .since(2, 23)
            .default_rule(ADMIN)
            .summary("Migrations of a server"),
        Op::post("/v2.1/servers/{id}/remote-consoles", "os_compute_api:os-remote-consoles", consoles)
            .since(2, 6)
            .status(501)
            .default_rule(MEMBER)
            .summary("Not offered by this cloud"),
    ]
}

async fn found<T>(cx: &Ctx<State>, req: &Request<T>) -> Result<Server> {
    let id = server_id(req)?;
    let cx2 = cx.clone();
    cx.store().read(move |tx| owned(tx, &cx2, id)).await
}

/// One transaction on one server.
async fn change<T>(
    cx: &Ctx<State>,
    req: &Request<T>,
    f: impl Fn(&mut Server) -> Result<()> + Send + Sync + 'static,
) -> Result<Server> {
    let id = server_id(req)?;
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            unlocked(&server, cx2.is_admin())?;
            let before = server.clone();
            f(&mut server)?;
            if server.metadata.len() > before.metadata.len() {
                let limits = limits_of(tx, cx2.state(), &server.project_id)?;
                if !quota::within(&limits, "metadata_items", 0, server.metadata.len() as u64) {
                    let most = limits.get("metadata_items").copied().unwrap_or(0);
                    return Err(Error::over_quota(format!(
                        "Maximum number of metadata items exceeds {most}"
                    )));
                }
            }
            if server != before {
                save(tx, &before, &mut server)?;
            }
            Ok(server)
        })
        .await
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&json!({"metadata": found(&cx, &req).await?.metadata})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct All {
    metadata: Metadata,
}

async fn add(cx: Ctx<State>, req: Request<All>) -> Result<Reply> {
    let new = req.body.metadata.0.clone();
    let server = change(&cx, &req, move |s| {
        s.metadata.extend(new.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::json(&json!({"metadata": server.metadata})))
}

async fn replace(cx: Ctx<State>, req: Request<All>) -> Result<Reply> {
    let new = req.body.metadata.0.clone();
    let server = change(&cx, &req, move |s| {
        s.metadata.clone_from(&new);
        Ok(())
    })
    .await?;
    Ok(Reply::json(&json!({"metadata": server.metadata})))
}

fn no_item() -> Error {
    Error::not_found("Metadata item was not found")
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let server = found(&cx, &req).await?;
    let value = server.metadata.get(req.param("key")).ok_or_else(no_item)?;
    Ok(Reply::json(&json!({"meta": {req.param("key"): value}})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Item {
    meta: Metadata,
}

async fn put(cx: Ctx<State>, req: Request<Item>) -> Result<Reply> {
    let key = req.param("key").to_owned();
    let new = req.body.meta.0.clone();
    if new.len() != 1 {
        return Err(cx.dialect().invalid_field("meta", "it must hold exactly one item"));
    }
    if !new.contains_key(&key) {
        return Err(Error::bad_request("Request body and URI mismatch"));
    }
    let answer = json!({"meta": new});
    change(&cx, &req, move |s| {
        s.metadata.extend(new.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::json(&answer))
}

async fn remove(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let key = req.param("key").to_owned();
    change(&cx, &req, move |s| s.metadata.remove(&key).map(|_| ()).ok_or_else(no_item)).await?;
    Ok(Reply::empty())
}

async fn tags(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&json!({"tags": found(&cx, &req).await?.tags})))
}

/// `{"tags": […]}`.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Tags {
    tags: Vec<body::Tag>,
}

/// By hand, because a derived one would take a list of one list for the object.
impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Tags;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with the key 'tags'")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Tags, A::Error> {
                let mut tags = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "tags" || tags.is_some() {
                        return Err(A::Error::unknown_field(&key, &["tags"]));
                    }
                    tags = Some(map.next_value()?);
                }
                let tags = tags.ok_or_else(|| A::Error::missing_field("tags"))?;
                Ok(Tags { tags })
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Tags are of no interest to the host.
async fn set_tags(cx: Ctx<State>, req: Request<Tags>) -> Result<Reply> {
    let new = body::tags(&req.body.tags)?;
    let server = change(&cx, &req, move |s| {
        s.tags.clone_from(&new);
        Ok(())
    })
    .await?;
    Ok(Reply::json(&json!({"tags": server.tags})))
}

async fn clear_tags(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    change(&cx, &req, |s| {
        s.tags.clear();
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}

fn no_tag(server: &Server, tag: &str) -> Error {
    Error::not_found(format!("Server {} has no tag '{tag}'", server.id))
}

async fn has_tag(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let server = found(&cx, &req).await?;
    if server.tags.contains(req.param("tag")) {
        Ok(Reply::empty())
    } else {
        Err(no_tag(&server, req.param("tag")))
    }
}

async fn add_tag(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let before = found(&cx, &req).await?;
    let tag = body::tag(req.param("tag"))?;
    let new = !before.tags.contains(&tag);
    let url = cx.url(&format!("/v2.1/servers/{}/tags/{tag}", before.id));
    change(&cx, &req, move |s| {
        s.tags.insert(tag.clone());
        if s.tags.len() > 50 {
            return Err(Error::bad_request("The number of tags exceeded the per-server limit 50"));
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty().status(if new { 201 } else { 204 }).location(url))
}

async fn remove_tag(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let tag = req.param("tag").to_owned();
    change(&cx, &req, move |s| if s.tags.remove(&tag) { Ok(()) } else { Err(no_tag(s, &tag)) }).await?;
    Ok(Reply::empty())
}

async fn addresses(cx: &Ctx<State>, req: &Request<()>) -> Result<serde_json::Map<String, Value>> {
    let server = found(cx, req).await?;
    let around = view::around(cx, std::slice::from_ref(&server)).await?;
    let none = Vec::new();
    let mut all = view::addresses(&server, around.ports.get(&server.id.to_string()).unwrap_or(&none));
    // Here only the address and its version are told.
    for list in all.values_mut() {
        for one in list.as_array_mut().into_iter().flatten() {
            *one = json!({"version": one["version"], "addr": one["addr"]});
        }
    }
    Ok(all)
}

async fn ips(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&json!({"addresses": addresses(&cx, &req).await?})))
}

async fn ips_of(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let all = addresses(&cx, &req).await?;
    let name = req.param("network");
    let list =
        all.get(name).ok_or_else(|| Error::not_found("Instance is not a member of specified network"))?;
    Ok(Reply::json(&json!({name: list})))
}

async fn groups(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let server = found(&cx, &req).await?;
    let around = view::around(&cx, std::slice::from_ref(&server)).await?;
    let ports = around.ports.get(&server.id.to_string());
    let groups: BTreeMap<String, &str> = ports
        .into_iter()
        .flatten()
        .flat_map(|p| p.security_groups.iter().map(|(id, name)| (id.to_string(), name.as_str())))
        .collect();
    let list: Vec<Value> = groups
        .into_iter()
        .map(|(id, name)| {
            json!({"id": id, "name": name, "description": "", "tenant_id": server.project_id, "rules": []})
        })
        .collect();
    Ok(Reply::json(&json!({"security_groups": list})))
}

async fn password(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    found(&cx, &req).await?;
    // Guests of this cloud post none.
    Ok(Reply::json(&json!({"password": ""})))
}

async fn clear_password(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    change(&cx, &req, |s| {
        s.admin_pass = None;
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}

async fn diagnostics(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let server = found(&cx, &req).await?;
    if server.power_state != power::RUNNING {
        return Err(crate::logic::state::conflict(&server, "get_diagnostics"));
    }
    if !cx.since(2, 48) {
        return Ok(Reply::json(&json!({"memory": server.size.ram * 1024, "vcpus": server.size.vcpus})));
    }
    let uptime = server.launched_at.map_or(0, |t| (cx.now().0 - t.0) / 1_000_000);
    let nics: Vec<Value> = server
        .nics
        .iter()
        .filter_map(|n| n.plugged.as_ref())
        .map(|p| json!({"mac_address": p.spec.mac, "rx_octets": null, "rx_packets": null, "tx_octets": null, "tx_packets": null}))
        .collect();
    Ok(Reply::json(&json!({
        "state": "running", "driver": "libvirt", "hypervisor": "qemu", "hypervisor_os": "linux", "uptime": uptime,
        "config_drive": server.config_drive, "num_cpus": server.size.vcpus, "num_nics": nics.len(),
        "num_disks": server.disks.len() + usize::from(server.image.is_some()), "cpu_details": [], "disk_details": [],
        "nic_details": nics, "memory_details": {"maximum": server.size.ram, "used": null},
    })))
}

async fn topology(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    found(&cx, &req).await?;
    Ok(Reply::json(&json!({"nodes": [], "pagesize_kb": null})))
}

async fn migrations(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    found(&cx, &req).await?;
    Ok(Reply::json(&json!({"migrations": []})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Console {
    remote_console: ConsoleKind,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ConsoleKind {
    #[serde(rename = "protocol")]
    _protocol: Text<1, 32>,
    #[serde(rename = "type")]
    _kind: Text<1, 32>,
}

async fn consoles(cx: Ctx<State>, req: Request<Console>) -> Result<Reply> {
    let _ = &req.body.remote_console;
    found(&cx, &req).await?;
    Err(Error::not_implemented("This cloud does not offer remote consoles."))
}
