//! `os-services`: one `nova-compute` per host, and the parts of this process that Nova runs as services of their own.

use ::api::types::{LaxBool, Text};
use ::api::{Ctx, JsonSchema, Op, Reply, Request};
use base::{Error, HostId, Result, Timestamp};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Query, Tx};
use uuid::Uuid;

use super::ADMIN;
use super::lists::{number, own, strict};
use crate::State;
use crate::model::{Aggregate, Host, JoinedHost, Server};
use crate::reconcile::zone_of;

pub(crate) const COMPUTE: &str = "nova-compute";
/// The zone of what is not a compute host.
pub(crate) const INTERNAL: &str = "internal";
/// The name under which this process shows as a host of control services.
pub(crate) const CONTROLLER: &str = "controller";
/// Name, number, id of the control services, all of which this very process is.
pub(crate) const CONTROL: &[(&str, u64, Uuid)] = &[
    ("nova-scheduler", 1, Uuid::from_u128(0x616c_6c6f_6400_4000_8000_0000_0000_0001)),
    ("nova-conductor", 2, Uuid::from_u128(0x616c_6c6f_6400_4000_8000_0000_0000_0002)),
];

/// Operations on services.
pub fn ops() -> Vec<Op<State>> {
    const UPDATE: &str = "os_compute_api:os-services:update";
    const ONE: &str = "/v2.1/os-services/{service_id}";
    let legacy = |name: &str| format!("/v2.1/os-services/{name}");
    let ops = vec![
        Op::get("/v2.1/os-services", "os_compute_api:os-services:list", list).summary("List services"),
        Op::put(ONE, UPDATE, update).since(2, 53).summary("Enable, disable or force down a compute service"),
        Op::put(legacy("enable"), UPDATE, enable).until(2, 52).summary("Enable a compute service"),
        Op::put(legacy("disable"), UPDATE, disable).until(2, 52).summary("Disable a compute service"),
        Op::put(legacy("disable-log-reason"), UPDATE, disable_with_reason)
            .until(2, 52)
            .summary("Disable a compute service and say why"),
        Op::put(legacy("force-down"), UPDATE, force_down)
            .since(2, 11)
            .until(2, 52)
            .summary("Declare a compute service dead, or alive again"),
        Op::delete(ONE, "os_compute_api:os-services:delete", delete).summary("Forget a compute service"),
    ];
    ops.into_iter().map(|op| op.default_rule(ADMIN)).collect()
}

/// A service as it is shown.
struct Shown {
    id: Value,
    binary: &'static str,
    host: String,
    zone: String,
    enabled: bool,
    up: bool,
    updated: Timestamp,
    disabled_reason: Option<String>,
    forced_down: bool,
}

impl Shown {
    fn of_host(cx: &Ctx<State>, host: &Host, aggregates: &[Aggregate]) -> Self {
        Shown {
            id: if cx.since(2, 53) { json!(host.id) } else { json!(number(host.id)) },
            binary: COMPUTE,
            host: host.name.clone(),
            zone: zone_of(aggregates, &host.name, &cx.config.default_zone),
            enabled: !host.disabled,
            up: cx.is_up(host),
            updated: cx.hosts.seen(host.id).map_or(host.seen_at, |s| s.max(host.seen_at)),
            disabled_reason: host.disabled_reason.clone(),
            forced_down: host.forced_down,
        }
    }

    fn view(&self, cx: &Ctx<State>) -> Map<String, Value> {
        let mut map = Map::new();
        for (key, value) in [
            ("id", self.id.clone()),
            ("binary", json!(self.binary)),
            ("host", json!(self.host)),
            ("zone", json!(self.zone)),
            ("status", json!(if self.enabled { "enabled" } else { "disabled" })),
            ("state", json!(if self.up { "up" } else { "down" })),
            ("updated_at", json!(self.updated.iso_naive())),
            ("disabled_reason", json!(self.disabled_reason)),
        ] {
            map.insert(key.into(), value);
        }
        if cx.since(2, 11) {
            map.insert("forced_down".into(), json!(self.forced_down));
        }
        map
    }
}

fn control(cx: &Ctx<State>) -> Vec<Shown> {
    let one = |(binary, number, id): &(&'static str, u64, Uuid)| Shown {
        id: if cx.since(2, 53) { json!(id) } else { json!(number) },
        binary,
        host: CONTROLLER.to_owned(),
        zone: INTERNAL.to_owned(),
        enabled: true,
        // It answers, so it lives.
        up: true,
        updated: cx.now(),
        disabled_reason: None,
        forced_down: false,
    };
    CONTROL.iter().map(one).collect()
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    strict(&cx, &req, &["host", "binary"])?;
    let (mut hosts, aggregates) = cx
        .store()
        .read(|tx| Ok((tx.list::<Host>(&Query::new())?, tx.list::<Aggregate>(&Query::new())?)))
        .await?;
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    let mut all = control(&cx);
    all.extend(hosts.iter().map(|h| Shown::of_host(&cx, h, &aggregates)));
    let query = req.query_pairs();
    let wanted = |key: &str, is: &str| query.get(key).is_none_or(|wanted| wanted.is_empty() || wanted == is);
    all.retain(|s| wanted("host", &s.host) && wanted("binary", s.binary));
    let items: Vec<_> = all.iter().map(|s| s.view(&cx)).collect();
    Ok(Reply::json(&json!({"services": items})))
}

fn missing(id: &str) -> Error {
    Error::not_found(format!("Compute service {id} could not be found."))
}

/// The host in the path: by its id since 2.53, by number before.
fn find(tx: &mut Tx<'_>, text: &str, by_id: bool) -> Result<Host> {
    if by_id {
        let id: HostId = text.parse().map_err(|_| Error::bad_request(format!("Invalid uuid {text}")))?;
        return tx.get::<Host>(&id)?.ok_or_else(|| missing(text));
    }
    let wanted: u64 = text
        .parse()
        .map_err(|_| Error::bad_request(format!("Invalid service id: '{text}' is not a number")))?;
    let hosts = tx.list::<Host>(&Query::new())?;
    hosts.into_iter().find(|h| number(h.id) == wanted).ok_or_else(|| missing(text))
}

/// Refuses changes of services that are this process.
fn not_control(text: &str) -> Result<()> {
    let mine = CONTROL.iter().find(|(_, number, id)| {
        text == number.to_string() || Uuid::try_parse(text).is_ok_and(|text| text == *id)
    });
    match mine {
        None => Ok(()),
        Some((binary, _, _)) => Err(Error::bad_request(format!(
            "Updating a {binary} service is not supported. Only nova-compute services can be updated."
        ))),
    }
}

/// Body of PUT by id.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Update {
    #[serde(default)]
    status: Option<Status>,
    #[serde(default)]
    disabled_reason: Option<Text<1, 255>>,
    #[serde(default)]
    forced_down: Option<LaxBool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Status {
    Enabled,
    Disabled,
}

/// What is to be set; `None`: stays.
#[derive(Clone, Default)]
struct Setting {
    disabled: Option<bool>,
    reason: Option<String>,
    forced_down: Option<bool>,
}

impl Setting {
    fn apply(&self, host: &mut Host) {
        if let Some(disabled) = self.disabled {
            host.disabled = disabled;
            host.disabled_reason.clone_from(&self.reason);
        }
        if let Some(forced) = self.forced_down {
            host.forced_down = forced;
        }
    }
}

async fn update(cx: Ctx<State>, req: Request<Update>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let text = req.param("service_id").to_owned();
    not_control(&text)?;
    let body = req.body;
    if body.status.is_none() && body.forced_down.is_none() && body.disabled_reason.is_none() {
        return Err(Error::bad_request(
            "No updates were requested. Fields 'status' or 'forced_down' should be specified.",
        ));
    }
    if body.disabled_reason.is_some() && body.status != Some(Status::Disabled) {
        return Err(Error::bad_request("Specifying disabled_reason requires that status is disabled."));
    }
    let setting = Setting {
        disabled: body.status.map(|s| s == Status::Disabled),
        reason: body.disabled_reason.map(Text::into_string),
        forced_down: body.forced_down.map(|b| b.0),
    };
    let (host, aggregates) = cx
        .store()
        .write(move |tx| {
            let mut host = find(tx, &text, true)?;
            setting.apply(&mut host);
            tx.update_status(&mut host)?;
            Ok((host, tx.list::<Aggregate>(&Query::new())?))
        })
        .await?;
    Ok(Reply::json(&json!({"service": Shown::of_host(&cx, &host, &aggregates).view(&cx)})))
}

/// Body of `enable` and `disable`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    host: Text<1, 255>,
    binary: Text<1, 255>,
}

/// Body of `disable-log-reason`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NamedReason {
    host: Text<1, 255>,
    binary: Text<1, 255>,
    disabled_reason: Text<1, 255>,
}

/// Body of `force-down`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NamedDown {
    host: Text<1, 255>,
    binary: Text<1, 255>,
    forced_down: LaxBool,
}

/// Sets something by host and binary, as versions before 2.53 do.
async fn set(cx: &Ctx<State>, host: &str, binary: &str, setting: Setting) -> Result<()> {
    cx.allow(&own(cx))?;
    let nothing = Error::not_found(format!("Could not find binary {binary} on host {host}."));
    if host == CONTROLLER && CONTROL.iter().any(|(name, _, _)| *name == binary) {
        return Err(Error::bad_request(format!(
            "Updating a {binary} service is not supported. Only nova-compute services can be updated."
        )));
    }
    if binary != COMPUTE {
        return Err(nothing);
    }
    let name = host.to_owned();
    let found = cx
        .store()
        .write(move |tx| {
            let Some(mut host) = tx.first::<Host>(&Query::new().eq("name", &name))? else { return Ok(false) };
            setting.apply(&mut host);
            tx.update_status(&mut host)?;
            Ok(true)
        })
        .await?;
    if found { Ok(()) } else { Err(nothing) }
}

async fn enable(cx: Ctx<State>, req: Request<Named>) -> Result<Reply> {
    let (host, binary) = (req.body.host.as_str(), req.body.binary.as_str());
    set(&cx, host, binary, Setting { disabled: Some(false), ..Setting::default() }).await?;
    Ok(Reply::json(&json!({"service": {"host": host, "binary": binary, "status": "enabled"}})))
}

async fn disable(cx: Ctx<State>, req: Request<Named>) -> Result<Reply> {
    let (host, binary) = (req.body.host.as_str(), req.body.binary.as_str());
    set(&cx, host, binary, Setting { disabled: Some(true), ..Setting::default() }).await?;
    Ok(Reply::json(&json!({"service": {"host": host, "binary": binary, "status": "disabled"}})))
}

async fn disable_with_reason(cx: Ctx<State>, req: Request<NamedReason>) -> Result<Reply> {
    let (host, binary) = (req.body.host.as_str(), req.body.binary.as_str());
    let reason = req.body.disabled_reason.as_str();
    if reason.trim() != reason {
        return Err(Error::bad_request("Disabled reason contains invalid characters or is too long"));
    }
    let setting = Setting { disabled: Some(true), reason: Some(reason.to_owned()), ..Setting::default() };
    set(&cx, host, binary, setting).await?;
    Ok(Reply::json(&json!({"service": {
        "host": host, "binary": binary, "status": "disabled", "disabled_reason": reason,
    }})))
}

async fn force_down(cx: Ctx<State>, req: Request<NamedDown>) -> Result<Reply> {
    let (host, binary) = (req.body.host.as_str(), req.body.binary.as_str());
    let forced = req.body.forced_down.0;
    set(&cx, host, binary, Setting { forced_down: Some(forced), ..Setting::default() }).await?;
    Ok(Reply::json(&json!({"service": {"host": host, "binary": binary, "forced_down": forced}})))
}

/// Forgets a host without servers: its row and its places in aggregates. The certificate of a host that joined with a
/// token is refused from now on; any other host that lives comes back with its next report: stop its agent first.
async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let text = req.param("service_id").to_owned();
    let by_id = cx.since(2, 53);
    not_control(&text)?;
    cx.store()
        .write(move |tx| {
            let host = find(tx, &text, by_id)?;
            if tx.exists::<Server>(&Query::new().eq("host_id", host.id))? {
                return Err(Error::conflict(
                    "Unable to delete compute service that is hosting instances. Migrate or delete the instances first.",
                ));
            }
            for mut aggregate in tx.list::<Aggregate>(&Query::new())? {
                if aggregate.hosts.remove(&host.name) {
                    tx.update(&mut aggregate)?;
                }
            }
            if let Some(mut joined) = tx.get::<JoinedHost>(&host.id)? {
                joined.removed = true;
                joined.name = None;
                tx.update(&mut joined)?;
            }
            tx.delete::<Host>(&host.id).map(drop)
        })
        .await?;
    Ok(Reply::empty())
}
