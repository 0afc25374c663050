//! Removing what a journal names: by id, or by its name where the cloud's answer never came.

use std::time::{Duration, Instant};

use anyhow::Result;
use osclient::{Error, Service, Session, parameter};
use serde_json::{Value, json};

use crate::journal::{Entry, Journal, Thing};

/// How long something may take to go.
const LIMIT: Duration = Duration::from_secs(300);

/// Where things of a kind are: service, version, path, key of a list, key of one, how a list is narrowed by name.
struct Place {
    service: &'static str,
    major: &'static str,
    path: &'static str,
    list: &'static str,
    one: &'static str,
    listing: &'static str,
}

fn place(thing: Thing) -> Place {
    let (service, major, path, list, one, listing) = match thing {
        Thing::Server => ("compute", "v2.1", "/servers", "servers", "server", "/servers/detail"),
        Thing::RouterInterface | Thing::Router => {
            ("network", "v2.0", "/routers", "routers", "router", "/routers")
        }
        Thing::Subnet => ("network", "v2.0", "/subnets", "subnets", "subnet", "/subnets"),
        Thing::Network => ("network", "v2.0", "/networks", "networks", "network", "/networks"),
        Thing::SecurityGroup => {
            ("network", "v2.0", "/security-groups", "security_groups", "security_group", "/security-groups")
        }
        Thing::Backup => ("block-storage", "v3", "/backups", "backups", "backup", "/backups/detail"),
        Thing::Volume => ("block-storage", "v3", "/volumes", "volumes", "volume", "/volumes/detail"),
        Thing::Image => ("image", "v2", "/images", "images", "", "/images"),
        Thing::Secret => ("key-manager", "v1", "/secrets", "secrets", "", "/secrets"),
    };
    Place { service, major, path, list, one, listing }
}

/// Removes `entries`, which are in the order of removal; tells what could not be removed, which stays in the journal.
pub async fn remove(session: &Session, journal: &Journal, entries: &[Entry], poll: Duration) -> Vec<String> {
    let mut told = Vec::new();
    for entry in entries {
        match one(session, entry, poll).await {
            Ok(()) => {
                if let Err(error) = journal.gone(entry.seq) {
                    told.push(format!("{error:#}"));
                }
            }
            Err(error) => told.push(format!("{:?} {} is left behind: {error}", entry.thing, entry.name)),
        }
    }
    told
}

async fn one(session: &Session, entry: &Entry, poll: Duration) -> Result<(), Error> {
    let place = place(entry.thing);
    let service = session.service(place.service, place.major)?;
    if entry.thing == Thing::RouterInterface {
        let Some((router, subnet)) = entry.name.split_once('/') else { return Ok(()) };
        let path = format!("/routers/{router}/remove_router_interface");
        return match service.put(&path, json!({"subnet_id": subnet})).await {
            // Neither the router nor the interface has to be there.
            Err(e) if matches!(e.status(), Some(404)) => Ok(()),
            other => other.map(drop),
        };
    }
    let ids = match &entry.id {
        Some(id) if !id.is_empty() => vec![id.clone()],
        _ => by_name(&service, &place, &entry.name).await?,
    };
    for id in ids {
        let path = format!("{}/{id}", place.path);
        gone(&service, &place, &path, poll).await?;
    }
    Ok(())
}

/// Ids of everything with exactly this name.
async fn by_name(service: &Service, place: &Place, name: &str) -> Result<Vec<String>, Error> {
    // Nova reads the name as a regular expression; the run's names have nothing special in them.
    let found =
        match service.list(&format!("{}?{}", place.listing, parameter("name", name)), place.list).await {
            Ok(found) => found,
            // A cloud that has no such things at all made none.
            Err(e) if e.status() == Some(404) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
    let ids = found.iter().filter(|v| v.get("name").and_then(Value::as_str) == Some(name)).filter_map(|v| {
        let reference = v.get("secret_ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next());
        v.get("id").and_then(Value::as_str).or(reference).map(str::to_owned)
    });
    Ok(ids.collect())
}

/// Deletes, and waits until it is gone; what is busy is tried again.
async fn gone(service: &Service, place: &Place, path: &str, poll: Duration) -> Result<(), Error> {
    let begin = Instant::now();
    loop {
        match service.delete(path).await {
            Ok(()) => break,
            // 400: Cinder about a volume that is still being written; 409: in use.
            Err(e) if matches!(e.status(), Some(400 | 409)) && begin.elapsed() < LIMIT => {
                tokio::time::sleep(poll).await
            }
            Err(e) => return Err(e),
        }
    }
    if place.one.is_empty() {
        return Ok(());
    }
    loop {
        match service.get(path).await {
            Err(e) if e.status() == Some(404) => return Ok(()),
            Err(e) => return Err(e),
            Ok(found) => {
                let status = found
                    .pointer(&format!("/{}/status", place.one))
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let failed = status.eq_ignore_ascii_case("error_deleting");
                if failed || begin.elapsed() > LIMIT {
                    return Err(Error::protocol(format!("{path} does not go (status {status})")));
                }
            }
        }
        tokio::time::sleep(poll).await;
    }
}
