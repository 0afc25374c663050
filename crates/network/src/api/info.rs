//! What the service tells about itself: `/v2.0`, extensions, agents, availability zones, service providers.

use api::{Op, Reply, Request, Target};
use base::Result;
use contract::net::NetHost;
use serde_json::{Value, json};

use super::catalog::EXTENSIONS;
use super::listing::{self, View};
use super::wire::{What, not_found};
use super::{Cx, view};
use crate::State;

const AGENT_ATTRIBUTES: &[&str] = &[
    "id",
    "agent_type",
    "binary",
    "host",
    "alive",
    "admin_state_up",
    "availability_zone",
    "topic",
    "description",
];

pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.0", "get_api", resources).default_rule("").summary("Lists the resources there are."),
        Op::get("/v2.0/extensions", "get_extension", extensions)
            .default_rule("")
            .summary("Lists extensions."),
        Op::get("/v2.0/extensions/{alias}", "get_extension", extension)
            .default_rule("")
            .summary("Shows an extension."),
        Op::get("/v2.0/agents", "get_agents", agents).default_rule("").summary("Lists hosts."),
        Op::get("/v2.0/agents/{id}", "get_agents", agent).default_rule("").summary("Shows a host."),
        Op::get("/v2.0/availability_zones", "get_availability_zone", zones)
            .default_rule("")
            .summary("Lists availability zones."),
        Op::get("/v2.0/service-providers", "get_service_provider", providers)
            .default_rule("")
            .summary("Lists providers of services; there are none."),
    ]
}

async fn resources(cx: Cx, _: Request<()>) -> Result<Reply> {
    let all = [
        ("network", "networks"),
        ("subnet", "subnets"),
        ("subnetpool", "subnetpools"),
        ("port", "ports"),
        ("router", "routers"),
        ("floatingip", "floatingips"),
        ("security_group", "security-groups"),
        ("security_group_rule", "security-group-rules"),
        ("rbac_policy", "rbac-policies"),
    ];
    let list: Vec<Value> = all
        .iter()
        .map(|(name, path)| {
            let href = cx.url(&format!("/v2.0/{path}"));
            json!({"name": name, "collection": path.replace('-', "_"), "links": [{"rel": "self", "href": href}]})
        })
        .collect();
    Ok(listing::wrapped("resources", list))
}

fn show_extension((alias, name, description): &(&str, &str, &str)) -> View {
    view(json!({
        "alias": alias, "name": name, "description": description, "updated": "2026-11-21T00:00:00-00:00", "links": [],
    }))
}

async fn extensions(_: Cx, req: Request<()>) -> Result<Reply> {
    let all: Vec<View> = EXTENSIONS.iter().map(|e| listing::pick_fields(&req, show_extension(e))).collect();
    Ok(listing::wrapped("extensions", listing::json(&all)))
}

async fn extension(_: Cx, req: Request<()>) -> Result<Reply> {
    let alias = req.param("alias");
    let found =
        EXTENSIONS.iter().find(|(a, _, _)| *a == alias).ok_or_else(|| not_found(What::Extension, alias))?;
    Ok(listing::one(&req, "extension", show_extension(found)))
}

/// A host as an agent, in the form Neutron gives OVN controllers.
fn show_agent(cx: &Cx, host: &NetHost) -> View {
    let now = cx.now().iso_naive();
    let now = now.split('.').next().unwrap_or_default().replace('T', " ");
    let id = host
        .id
        .parse::<uuid::Uuid>()
        .unwrap_or_else(|_| uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, host.id.as_bytes()));
    let kind = if host.gateway { "OVN Controller Gateway agent" } else { "OVN Controller agent" };
    view(json!({
        "id": id,
        "agent_type": kind,
        "binary": "ovn-controller",
        "host": host.hostname,
        "topic": "n/a",
        "description": "",
        "alive": host.alive,
        "admin_state_up": true,
        "availability_zone": cx.env.config.availability_zone,
        "created_at": now,
        "started_at": now,
        "heartbeat_timestamp": now,
        "resources_synced": null,
        "configurations": {
            "chassis_name": host.id,
            "bridge-mappings": host.physical_networks.join(","),
        },
    }))
}

/// The hosts the caller may know of: a list leaves out what policy hides, as Neutron's lists do.
async fn hosts(cx: &Cx) -> Result<Vec<NetHost>> {
    if cx.allows("get_agent", &Target::none()) { cx.backend.hosts().await } else { Ok(Vec::new()) }
}

async fn agents(cx: Cx, req: Request<()>) -> Result<Reply> {
    let hosts = hosts(&cx).await?;
    let views = hosts.iter().map(|h| show_agent(&cx, h)).collect();
    listing::list(&cx, &req, "agents", AGENT_ATTRIBUTES, views)
}

async fn agent(cx: Cx, req: Request<()>) -> Result<Reply> {
    let hosts = hosts(&cx).await?;
    let wanted = req.param("id");
    let found = hosts
        .iter()
        .map(|h| show_agent(&cx, h))
        .find(|v| v.get("id").and_then(Value::as_str) == Some(wanted));
    Ok(listing::one(&req, "agent", found.ok_or_else(|| not_found(What::Agent, wanted))?))
}

async fn zones(cx: Cx, req: Request<()>) -> Result<Reply> {
    let zone = |resource: &str| {
        view(json!({"name": cx.env.config.availability_zone, "resource": resource, "state": "available"}))
    };
    let views = listing::filter(
        req.query_pairs(),
        &["name", "resource", "state"],
        vec![zone("network"), zone("router")],
    )?;
    let views: Vec<View> = views.into_iter().map(|v| listing::pick_fields(&req, v)).collect();
    Ok(listing::wrapped("availability_zones", listing::json(&views)))
}

async fn providers(_: Cx, _: Request<()>) -> Result<Reply> {
    Ok(listing::wrapped("service_providers", Vec::<Value>::new()))
}
