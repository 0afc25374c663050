//! Availability zones, extensions, services, pools.

use ::api::{Ctx, Reply, Request, Target};
use base::{Error, Result};
use serde_json::{Value, json};
use store::Query;

use super::common::{here, host_label};
use crate::State;
use crate::model::Host;

/// Seconds without a report after which a host counts as down.
const DOWN_AFTER: i64 = 90;

/// Extensions that have operations here: alias, name, what for.
const EXTENSIONS: &[(&str, &str, &str)] = &[
    ("os-availability-zone", "AvailabilityZones", "Describe Availability Zones."),
    ("os-extended-snapshot-attributes", "ExtendedSnapshotAttributes", "Extended SnapshotAttributes support."),
    ("os-hosts", "Hosts", "Admin-only host administration."),
    ("os-quota-class-sets", "QuotaClasses", "Quota classes management support."),
    ("os-quota-sets", "Quotas", "Quota management support."),
    ("os-services", "Services", "Services support."),
    ("os-snapshot-actions", "SnapshotActions", "Enable snapshot manager actions."),
    ("os-types-extra-specs", "TypesExtraSpecs", "Type extra specs support."),
    ("os-types-manage", "TypesManage", "Types manage support."),
    ("os-vol-host-attr", "VolumeHostAttribute", "Expose host as an attribute of a volume."),
    ("os-vol-image-meta", "VolumeImageMetadata", "Show image metadata associated with the volume."),
    (
        "os-vol-tenant-attr",
        "VolumeTenantAttribute",
        "Expose the internal project_id as an attribute of a volume.",
    ),
    ("os-volume-actions", "VolumeActions", "Enable volume actions."),
    ("os-volume-transfer", "VolumeTransfer", "Volume transfer management support."),
    ("os-volume-type-access", "VolumeTypeAccess", "Volume type access support."),
    ("scheduler-stats", "Scheduler_stats", "Scheduler stats support."),
];

pub(crate) async fn zones(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let zone = json!({"zoneName": cx.config.availability_zone, "zoneState": {"available": true}});
    Ok(Reply::json(&json!({"availabilityZoneInfo": [zone]})))
}

fn extension((alias, name, description): &(&str, &str, &str)) -> Value {
    json!({"alias": alias, "name": name, "description": description, "links": [], "updated": "2026-11-21T00:00:00+00:00"})
}

pub(crate) async fn extensions(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let list: Vec<Value> = EXTENSIONS.iter().map(extension).collect();
    Ok(Reply::json(&json!({"extensions": list})))
}

pub(crate) async fn show_extension(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let alias = req.param("alias");
    match EXTENSIONS.iter().find(|(a, ..)| *a == alias) {
        Some(found) => Ok(Reply::json(&json!({"extension": extension(found)}))),
        None => Err(Error::not_found(format!("Extension {alias} could not be found."))),
    }
}

async fn hosts(cx: &Ctx<State>) -> Result<Vec<Host>> {
    cx.allow(&Target::none())?;
    let seen = cx.seen.read().clone();
    let mut hosts =
        cx.store().read(|tx| tx.list::<Host>(&Query::new().sort("name", store::Order::Asc))).await?;
    for host in &mut hosts {
        if let Some(seen) = seen.get(&host.id) {
            host.seen_at = host.seen_at.max(seen.at);
            host.free_gib = seen.free_gib;
        }
    }
    Ok(hosts)
}

pub(crate) async fn services(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let now = cx.now();
    let zone = cx.config.availability_zone.clone();
    let mut list = vec![json!({
        "binary": "cinder-scheduler", "host": "allod", "zone": zone, "status": "enabled", "state": "up",
        "updated_at": now.iso_naive(), "disabled_reason": null,
    })];
    for host in hosts(&cx).await? {
        let up = host.seen_at.plus_secs(DOWN_AFTER) > now;
        list.push(json!({
            "binary": "cinder-volume", "host": format!("{}@local", host.name), "zone": zone, "status": "enabled",
            "state": if up { "up" } else { "down" }, "updated_at": host.seen_at.iso_naive(), "disabled_reason": null,
            "frozen": false, "replication_status": "disabled", "active_backend_id": null,
        }));
    }
    let wanted =
        |key: &str, item: &Value| req.query_pairs().get(key).is_none_or(|v| item.get(key) == Some(&json!(v)));
    list.retain(|item| wanted("binary", item) && wanted("host", item));
    Ok(Reply::json(&json!({"services": list})))
}

pub(crate) async fn list_hosts(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let now = cx.now();
    let zone = cx.config.availability_zone.clone();
    let list: Vec<Value> = hosts(&cx)
        .await?
        .iter()
        .map(|host| {
            let up = host.seen_at.plus_secs(DOWN_AFTER) > now;
            json!({
                "service-status": if up { "available" } else { "unavailable" }, "service": "cinder-volume", "zone": zone,
                "service-state": "enabled", "host_name": format!("{}@local", host.name),
                "last-update": host.seen_at.iso_naive(),
            })
        })
        .collect();
    Ok(Reply::json(&json!({"hosts": list})))
}

pub(crate) async fn pools(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let detail = req.query_pairs().bool("detail")?.unwrap_or(false);
    let list: Vec<Value> = hosts(&cx)
        .await?
        .iter()
        .map(|host| {
            let name = host_label(&host.name);
            if !detail {
                return json!({"name": name});
            }
            json!({"name": name, "capabilities": {
                "total_capacity_gb": host.total_gib, "free_capacity_gb": host.free_gib, "reserved_percentage": 0,
                "storage_protocol": "file", "vendor_name": "Allod", "driver_version": env!("CARGO_PKG_VERSION"),
                "volume_backend_name": "local", "pool_name": "local", "thin_provisioning_support": true, "multiattach": false,
                "QoS_support": false, "timestamp": host.seen_at.iso_naive(),
            }})
        })
        .collect();
    Ok(Reply::json(&json!({"pools": list})))
}
