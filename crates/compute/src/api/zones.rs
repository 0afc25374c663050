//! Availability zones, as aggregates and hosts make them.

use std::collections::BTreeMap;

use ::api::{Ctx, Op, Reply, Request};
use base::Result;
use serde_json::{Map, Value, json};
use store::Query;

use super::ADMIN;
use super::lists::own;
use super::services::{COMPUTE, CONTROL, CONTROLLER, INTERNAL};
use crate::State;
use crate::model::{Aggregate, Host};
use crate::reconcile::zone_of;

/// Operations on zones.
pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.1/os-availability-zone", "os_compute_api:os-availability-zone:list", list)
            .default_rule("@")
            .summary("List availability zones"),
        Op::get("/v2.1/os-availability-zone/detail", "os_compute_api:os-availability-zone:detail", detail)
            .default_rule(ADMIN)
            .summary("List availability zones with their hosts"),
    ]
}

/// Hosts by zone.
async fn zones(cx: &Ctx<State>) -> Result<BTreeMap<String, Vec<Host>>> {
    let (hosts, aggregates) = cx
        .store()
        .read(|tx| Ok((tx.list::<Host>(&Query::new())?, tx.list::<Aggregate>(&Query::new())?)))
        .await?;
    let mut zones: BTreeMap<String, Vec<Host>> = BTreeMap::new();
    for host in hosts {
        let zone = zone_of(&aggregates, &host.name, &cx.config.default_zone);
        zones.entry(zone).or_default().push(host);
    }
    Ok(zones)
}

/// A zone is available while one of its hosts takes servers.
fn available(hosts: &[Host]) -> bool {
    hosts.iter().any(|h| !h.disabled)
}

fn entry(name: &str, available: bool, hosts: Value) -> Value {
    json!({"zoneName": name, "zoneState": {"available": available}, "hosts": hosts})
}

/// Available zones first, as Nova lists them.
fn ordered(zones: &BTreeMap<String, Vec<Host>>) -> Vec<(&String, &Vec<Host>)> {
    let (mut yes, no): (Vec<_>, Vec<_>) = zones.iter().partition(|(_, hosts)| available(hosts));
    yes.extend(no);
    yes
}

async fn list(cx: Ctx<State>, _: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let zones = zones(&cx).await?;
    let items: Vec<Value> =
        ordered(&zones).into_iter().map(|(name, hosts)| entry(name, available(hosts), Value::Null)).collect();
    Ok(Reply::json(&json!({"availabilityZoneInfo": items})))
}

async fn detail(cx: Ctx<State>, _: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let zones = zones(&cx).await?;
    let service = |active: bool, up: bool, at: base::Timestamp| json!({"active": active, "available": up, "updated_at": at.iso_naive()});
    let control: Map<String, Value> =
        CONTROL.iter().map(|(name, _, _)| ((*name).to_owned(), service(true, true, cx.now()))).collect();
    let mut items = vec![entry(INTERNAL, true, json!({CONTROLLER: control}))];
    for (name, hosts) in ordered(&zones) {
        // Nova tells hosts of available zones only.
        let shown = if available(hosts) {
            let mut map = Map::new();
            for host in hosts {
                let seen = cx.hosts.seen(host.id).map_or(host.seen_at, |s| s.max(host.seen_at));
                map.insert(
                    host.name.clone(),
                    json!({COMPUTE: service(!host.disabled, cx.is_up(host), seen)}),
                );
            }
            Value::Object(map)
        } else {
            Value::Null
        };
        items.push(entry(name, available(hosts), shown));
    }
    Ok(Reply::json(&json!({"availabilityZoneInfo": items})))
}
