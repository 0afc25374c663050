//! Small things: extensions (history, which clients still ask for), migrations, events that other services send.

use std::collections::BTreeMap;

use ::api::types::{Text, Uuid};
use ::api::{Ctx, JsonSchema, Op, Reply, Request};
use base::{Error, Result, ServerId, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use store::Query;

use super::ADMIN;
use super::lists::{own, strict};
use crate::State;
use crate::model::{Move, Server, Stage};

/// Operations on small things.
pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.1/extensions", "os_compute_api:extensions", extensions)
            .default_rule("@")
            .summary("List extensions"),
        Op::get("/v2.1/extensions/{alias}", "os_compute_api:extensions", extension)
            .default_rule("@")
            .summary("Show an extension"),
        Op::get("/v2.1/os-migrations", "os_compute_api:os-migrations:index", migrations)
            .default_rule(ADMIN)
            .summary("List migrations"),
        Op::post(
            "/v2.1/os-server-external-events",
            "os_compute_api:os-server-external-events:create",
            events,
        )
        .default_rule("rule:context_is_admin or role:service")
        .summary("Tell of events outside compute"),
    ]
}

/// Alias and name of everything Nova calls an extension and this service has.
const EXTENSIONS: &[(&str, &str)] = &[
    ("NMN", "Multinic"),
    ("OS-DCF", "DiskConfig"),
    ("OS-EXT-AZ", "ExtendedAvailabilityZone"),
    ("OS-EXT-IPS", "ExtendedIps"),
    ("OS-EXT-IPS-MAC", "ExtendedIpsMac"),
    ("OS-EXT-SRV-ATTR", "ExtendedServerAttributes"),
    ("OS-EXT-STS", "ExtendedStatus"),
    ("OS-FLV-DISABLED", "FlavorDisabled"),
    ("OS-FLV-EXT-DATA", "FlavorExtraData"),
    ("OS-SCH-HNT", "SchedulerHints"),
    ("OS-SRV-USG", "ServerUsage"),
    ("os-access-ips", "AccessIPs"),
    ("os-admin-actions", "AdminActions"),
    ("os-aggregates", "Aggregates"),
    ("os-attach-interfaces", "AttachInterfaces"),
    ("os-availability-zone", "AvailabilityZone"),
    ("os-block-device-mapping", "BlockDeviceMapping"),
    ("os-config-drive", "ConfigDrive"),
    ("os-console-output", "ConsoleOutput"),
    ("os-extended-volumes", "ExtendedVolumes"),
    ("os-flavor-access", "FlavorAccess"),
    ("os-flavor-extra-specs", "FlavorExtraSpecs"),
    ("os-flavor-manage", "FlavorManage"),
    ("os-flavor-rxtx", "FlavorRxtx"),
    ("os-hypervisors", "Hypervisors"),
    ("os-instance-actions", "InstanceActions"),
    ("os-keypairs", "Keypairs"),
    ("os-lock-server", "LockServer"),
    ("os-migrations", "Migrations"),
    ("os-multiple-create", "MultipleCreate"),
    ("os-pause-server", "PauseServer"),
    ("os-quota-class-sets", "QuotaClasses"),
    ("os-quota-sets", "Quotas"),
    ("os-security-groups", "SecurityGroups"),
    ("os-server-external-events", "ServerExternalEvents"),
    ("os-server-groups", "ServerGroups"),
    ("os-services", "Services"),
    ("os-simple-tenant-usage", "SimpleTenantUsage"),
    ("os-suspend-server", "SuspendServer"),
    ("os-used-limits", "UsedLimits"),
    ("os-user-data", "UserData"),
    ("os-volumes", "Volumes"),
];

/// The fields that Nova itself filled with placeholders when it froze extensions.
fn extension_view((alias, name): &(&str, &str)) -> Value {
    json!({
        "alias": alias,
        "name": name,
        "description": format!("{name} support."),
        "links": [],
        "namespace": "http://docs.openstack.org/compute/ext/fake_xml",
        "updated": "2014-12-03T00:00:00Z",
    })
}

async fn extensions(_: Ctx<State>, _: Request<()>) -> Result<Reply> {
    let all: Vec<Value> = EXTENSIONS.iter().map(extension_view).collect();
    Ok(Reply::json(&json!({"extensions": all})))
}

async fn extension(_: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let alias = req.param("alias");
    let found = EXTENSIONS.iter().find(|(known, _)| *known == alias);
    let found = found.ok_or_else(|| Error::not_found("The resource could not be found."))?;
    Ok(Reply::json(&json!({"extension": extension_view(found)})))
}

/// How moves end.
const ENDS: [&str; 3] = ["confirmed", "reverted", "error"];

/// Nova's word for how far a move is.
fn migration_status(moving: &Move) -> &str {
    match moving.stage {
        Stage::Stopping => "pre-migrating",
        Stage::Copying => "migrating",
        Stage::Starting => "post-migrating",
        Stage::Verify => "finished",
        Stage::Confirming => "confirming",
        Stage::Reverting | Stage::Returning => "reverting",
        Stage::Ended => &moving.status,
    }
}

fn migration_view(cx: &Ctx<State>, moving: &Move) -> Value {
    let (_, low) = moving.id.as_u64_pair();
    let mut view = json!({
        // Nova counts them; ours have no order.
        "id": low & 0x7fff_ffff,
        "status": migration_status(moving),
        "instance_uuid": moving.server_id,
        "source_node": moving.source_name,
        "source_compute": moving.source_name,
        "dest_node": moving.target_name,
        "dest_compute": moving.target_name,
        "dest_host": Value::Null,
        "old_instance_type_id": Value::Null,
        "new_instance_type_id": Value::Null,
        "created_at": moving.meta.created_at.iso_naive(),
        "updated_at": moving.meta.updated_at.iso_naive(),
    });
    if let Some(map) = view.as_object_mut() {
        if cx.since(2, 23) {
            map.insert("migration_type".into(), json!("migration"));
        }
        if cx.since(2, 59) {
            map.insert("uuid".into(), json!(moving.id));
        }
        if cx.since(2, 80) {
            map.insert("user_id".into(), json!(moving.user_id));
            map.insert("project_id".into(), json!(moving.project_id));
        }
    }
    view
}

/// Newest first.
async fn migrations(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    strict(
        &cx,
        &req,
        &[
            "hidden",
            "host",
            "instance_uuid",
            "source_compute",
            "status",
            "migration_type",
            "limit",
            "marker",
            "changes-since",
            "changes-before",
            "user_id",
            "project_id",
        ],
    )?;
    let page = req.page(cx.config.max_limit)?;
    let asked = |name: &str| req.query_pairs().get(name).map(str::to_owned);
    let mut query = Query::new();
    if let Some(status) = asked("status") {
        query = query.eq("open", !ENDS.contains(&status.as_str()));
    }
    if let Some(server) = asked("instance_uuid").and_then(|id| id.parse::<ServerId>().ok()) {
        query = query.eq("server_id", server);
    }
    let mut all = cx.store().read(move |tx| tx.list::<Move>(&query)).await?;
    let is = |name: &str, value: &str| asked(name).is_none_or(|asked| asked == value);
    let when = |name: &str| match asked(name) {
        None => Ok(None),
        Some(text) => Timestamp::parse(&text)
            .map(Some)
            .ok_or_else(|| Error::bad_request(format!("Invalid input for query parameter '{name}': {text}"))),
    };
    let (since, before) = (when("changes-since")?, when("changes-before")?);
    all.retain(|m| {
        let host = asked("host").is_none_or(|h| m.source_name == h || m.target_name.as_deref() == Some(&h));
        host && is("instance_uuid", &m.server_id.to_string())
            && is("source_compute", &m.source_name)
            && is("status", migration_status(m))
            && is("migration_type", "migration")
            && is("user_id", m.user_id.as_str())
            && is("project_id", m.project_id.as_str())
            && since.is_none_or(|t| m.meta.updated_at >= t)
            && before.is_none_or(|t| m.meta.updated_at <= t)
    });
    all.sort_by_key(|m| (std::cmp::Reverse(m.meta.created_at), m.id));
    let mut next = None;
    if cx.since(2, 59) {
        if let Some(marker) = &page.marker {
            let at = all.iter().position(|m| m.id.to_string() == *marker);
            let at = at.ok_or_else(|| Error::bad_request(format!("Marker {marker} could not be found.")))?;
            all.drain(..=at);
        }
        if all.len() > page.limit {
            all.truncate(page.limit);
            next = all.last().map(|m| m.id.to_string());
        }
    }
    let views: Vec<Value> = all.iter().map(|m| migration_view(&cx, m)).collect();
    Ok(cx.list(&req, &page, "migrations", &views, next.as_deref()))
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
enum EventStatus {
    #[serde(rename = "failed")]
    Failed,
    #[serde(rename = "completed")]
    Completed,
    #[serde(rename = "in-progress")]
    InProgress,
}

impl EventStatus {
    fn as_str(self) -> &'static str {
        match self {
            EventStatus::Failed => "failed",
            EventStatus::Completed => "completed",
            EventStatus::InProgress => "in-progress",
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Event {
    server_uuid: Uuid,
    name: String,
    #[serde(default)]
    status: Option<EventStatus>,
    #[serde(default)]
    tag: Option<Text<1, 255>>,
}

/// Body of POST.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Events {
    events: Vec<Event>,
}

/// Names of events with the microversion that brought them.
const EVENTS: &[(&str, u16)] = &[
    ("network-changed", 1),
    ("network-vif-plugged", 1),
    ("network-vif-unplugged", 1),
    ("network-vif-deleted", 1),
    ("volume-extended", 51),
    ("power-update", 76),
    ("accelerator-request-bound", 82),
    ("volume-reimaged", 93),
];

fn known(cx: &Ctx<State>, events: &[Event]) -> Result<()> {
    if events.is_empty() {
        return Err(cx.dialect().invalid_field("events", "[] is too short"));
    }
    for (i, event) in events.iter().enumerate() {
        let found = EVENTS.iter().any(|(name, since)| *name == event.name && cx.since(2, *since));
        if !found {
            let reason = format!("'{}' is not one of the events of this version", event.name);
            return Err(cx.dialect().invalid_field(&format!("events[{i}].name"), &reason));
        }
    }
    Ok(())
}

/// Whatever happened, the server is looked at again: what is true is asked, not told.
async fn events(cx: Ctx<State>, req: Request<Events>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let events = req.body.events;
    known(&cx, &events)?;
    let ids: Vec<ServerId> = events.iter().map(|e| ServerId(e.server_uuid.0)).collect();
    let servers = cx.store().read(move |tx| tx.list::<Server>(&Query::new().is_in("id", &ids))).await?;
    let placed: BTreeMap<ServerId, bool> = servers.iter().map(|s| (s.id, s.host_id.is_some())).collect();
    let mut answers = Vec::new();
    let (mut good, mut bad) = (0_usize, 0_usize);
    for event in &events {
        let id = ServerId(event.server_uuid.0);
        let sent = event.status.unwrap_or(EventStatus::Completed);
        let (code, status) = match placed.get(&id) {
            None => (404, "failed"),
            Some(false) => (422, "failed"),
            Some(true) => (200, sent.as_str()),
        };
        if code == 200 {
            good += 1;
            cx.stale.lock().insert(id);
            cx.hint("server", id);
        } else {
            bad += 1;
        }
        let mut answer = json!({"name": event.name, "server_uuid": id, "status": status, "code": code});
        if let (Some(map), Some(tag)) = (answer.as_object_mut(), &event.tag) {
            map.insert("tag".into(), json!(tag));
        }
        answers.push(answer);
    }
    if good == 0 {
        return Err(Error::not_found("No instances found for any event"));
    }
    Ok(Reply::json(&json!({"events": answers})).status(if bad == 0 { 200 } else { 207 }))
}
