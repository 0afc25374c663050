//! Removing what a journal names: by id, or by its name where the cloud's answer never came.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};

use crate::journal::{Entry, Header, Journal, Thing};
use crate::{Cloud, Environment, Error, Options, Result, Service, Session, parameter};

/// How to go about it.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Time between two looks.
    pub poll: Duration,
    /// How long something may take to go.
    pub limit: Duration,
    /// How many of a kind at once.
    pub parallel: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { poll: Duration::from_millis(500), limit: Duration::from_secs(300), parallel: 8 }
    }
}

/// Where things of a kind are in the API.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Service.
    pub service: &'static str,
    /// Version of its API.
    pub major: &'static str,
    /// Path of the collection.
    pub path: &'static str,
    /// Path under which all are listed in full.
    pub listing: &'static str,
    /// Key of a list.
    pub list: &'static str,
    /// Key of one; empty: one has no key, and is gone when its deletion is answered.
    pub one: &'static str,
    /// Which property is its state.
    pub state: &'static str,
    /// Which property is its name.
    pub named: &'static str,
}

impl Place {
    const fn new(
        service: (&'static str, &'static str),
        path: &'static str,
        listing: &'static str,
        list: &'static str,
        one: &'static str,
    ) -> Place {
        let (service, major) = service;
        Place { service, major, path, listing, list, one, state: "status", named: "name" }
    }

    /// Of a kind.
    pub const fn of(thing: Thing) -> Place {
        const NETWORK: (&str, &str) = ("network", "v2.0");
        const STORAGE: (&str, &str) = ("block-storage", "v3");
        const COMPUTE: (&str, &str) = ("compute", "v2.1");
        const BALANCER: (&str, &str) = ("load-balancer", "v2");
        const BALANCERS: &str = "/lbaas/loadbalancers";
        const GROUPS: &str = "/security-groups";
        match thing {
            Thing::FloatingIp => Place {
                named: "description",
                ..Place::new(NETWORK, "/floatingips", "/floatingips", "floatingips", "floatingip")
            },
            Thing::LoadBalancer => Place {
                state: "provisioning_status",
                ..Place::new(BALANCER, BALANCERS, BALANCERS, "loadbalancers", "loadbalancer")
            },
            Thing::Server => Place::new(COMPUTE, "/servers", "/servers/detail", "servers", "server"),
            Thing::Keypair => Place::new(COMPUTE, "/os-keypairs", "/os-keypairs", "keypairs", "keypair"),
            Thing::Port => Place::new(NETWORK, "/ports", "/ports", "ports", "port"),
            Thing::RouterInterface | Thing::Router => {
                Place::new(NETWORK, "/routers", "/routers", "routers", "router")
            }
            Thing::Subnet => Place::new(NETWORK, "/subnets", "/subnets", "subnets", "subnet"),
            Thing::Network => Place::new(NETWORK, "/networks", "/networks", "networks", "network"),
            Thing::SecurityGroup => Place::new(NETWORK, GROUPS, GROUPS, "security_groups", "security_group"),
            Thing::Backup => Place::new(STORAGE, "/backups", "/backups/detail", "backups", "backup"),
            Thing::Snapshot => {
                Place::new(STORAGE, "/snapshots", "/snapshots/detail", "snapshots", "snapshot")
            }
            Thing::Volume => Place::new(STORAGE, "/volumes", "/volumes/detail", "volumes", "volume"),
            Thing::Image => Place::new(("image", "v2"), "/images", "/images", "images", ""),
            Thing::Secret => Place::new(("key-manager", "v1"), "/secrets", "/secrets", "secrets", ""),
        }
    }

    /// The state of one, as the cloud shows it.
    pub fn state<'a>(&self, shown: &'a Value) -> &'a str {
        shown.get(self.one).and_then(|v| v.get(self.state)).and_then(Value::as_str).unwrap_or_default()
    }
}

/// What became of a journal.
#[derive(Debug)]
pub struct Cleaned {
    /// Whose it is.
    pub header: Header,
    /// How many things are gone now.
    pub removed: usize,
    /// What could not be removed, and why.
    pub left: Vec<(Entry, String)>,
}

/// Removes what the journals in `dir` name, or those about one cloud; journals of runs that are alive are left alone.
pub async fn journals(dir: &Path, cloud: Option<&str>, options: Options, pace: Pace) -> Result<Vec<Cleaned>> {
    let mut all = Vec::new();
    for path in Journal::all(dir) {
        let (header, journal) = match Journal::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => continue,
            other => other.map_err(|e| Error::config(e.to_string()))?,
        };
        if cloud.is_some_and(|c| c != header.cloud) {
            continue;
        }
        let of = Cloud::load(&Environment::of_process(), Some(&header.cloud), header.region.as_deref())?;
        let session = Session::connect(of, options).await?;
        let now = Header::of(&session, &header.run);
        if (&now.auth_url, &now.project) != (&header.auth_url, &header.project) {
            let message = format!("{}: {} is another cloud or project now", path.display(), header.cloud);
            return Err(Error::config(message));
        }
        let entries = journal.left();
        let left = remove(&session, &journal, &entries, pace).await;
        let still = journal.left();
        let removed = entries.iter().filter(|e| !still.iter().any(|s| s.seq == e.seq)).count();
        journal.finish().map_err(|e| Error::config(e.to_string()))?;
        all.push(Cleaned { header, removed, left });
    }
    Ok(all)
}

/// Removes `entries`, which are in the order of removal, kind after kind; what could not be removed stays in the journal and
/// is told, with its reason.
pub async fn remove(
    session: &Session,
    journal: &Journal,
    entries: &[Entry],
    pace: Pace,
) -> Vec<(Entry, String)> {
    let (mut all, mut left) = (Vec::new(), Vec::new());
    for entry in entries {
        match brought(session, journal, entry, pace).await {
            Ok(volumes) => all.extend([entry.clone()].into_iter().chain(volumes)),
            Err(e) => left.push((entry.clone(), e.to_string())),
        }
    }
    all.sort_by_key(|e| (e.thing, e.seq));
    for kind in all.chunk_by(|a, b| a.thing == b.thing) {
        let removing = kind.iter().map(|entry| async move {
            let removed = one(session, entry, pace).await.map_err(|e| e.to_string());
            removed.and_then(|()| journal.gone(entry.seq).map_err(|e| e.to_string())).map_err(|e| (entry, e))
        });
        let results: Vec<_> =
            futures::stream::iter(removing).buffer_unordered(pace.parallel.max(1)).collect().await;
        left.extend(
            results.into_iter().filter_map(std::result::Result::err).map(|(e, why)| (e.clone(), why)),
        );
    }
    left
}

/// Removes one, and waits until it is gone. What is not there is gone.
pub async fn one(session: &Session, entry: &Entry, pace: Pace) -> Result<()> {
    let place = Place::of(entry.thing);
    let service = match session.service(place.service, place.major) {
        // A cloud that has no such service made none.
        Err(e) if e.kind == crate::Kind::NoEndpoint && entry.id.is_none() => return Ok(()),
        other => other?,
    };
    if entry.thing == Thing::RouterInterface {
        return interface(&service, &entry.name, pace).await;
    }
    for id in ids(&service, &place, entry, pace).await? {
        gone(&service, &place, &id, pace).await?;
    }
    Ok(())
}

/// Under which ids an entry is found.
async fn ids(service: &Service, place: &Place, entry: &Entry, pace: Pace) -> Result<Vec<String>> {
    match &entry.id {
        Some(id) if !id.is_empty() => return Ok(vec![id.clone()]),
        _ if entry.thing == Thing::Keypair => return Ok(vec![entry.name.clone()]),
        _ => {}
    }
    let found = by_name(service, place, &entry.name).await?;
    if !found.is_empty() {
        return Ok(found);
    }
    // The request may have been on its way when its sender was killed.
    tokio::time::sleep(pace.poll).await;
    by_name(service, place, &entry.name).await
}

/// The volumes that the cloud made for a server, which have no name to find them by. Clouds forget them when the server came
/// to nothing; so they are written down before the server goes, and with it the knowledge of them. Which they are is the
/// cloud's word: those that go when the server goes. A volume of somebody else that was attached to it does not.
pub async fn brought(session: &Session, journal: &Journal, entry: &Entry, pace: Pace) -> Result<Vec<Entry>> {
    if !entry.brings {
        return Ok(Vec::new());
    }
    let place = Place::of(entry.thing);
    let mut service = session.service(place.service, place.major)?;
    service.discover().await?;
    // The first that tells what goes with the server.
    let service = service.at("2.3");
    let mut known: Vec<Entry> = journal.left().into_iter().filter(|e| e.thing == Thing::Volume).collect();
    let before = known.len();
    for id in ids(&service, &place, entry, pace).await? {
        let shown = match service.get(&format!("{}/{id}", place.path)).await {
            Err(e) if e.status() == Some(404) => continue,
            other => other?,
        };
        let attached =
            shown.pointer("/server/os-extended-volumes:volumes_attached").and_then(Value::as_array);
        for volume in attached.into_iter().flatten() {
            let goes = volume.get("delete_on_termination").and_then(Value::as_bool) == Some(true);
            let Some(id) = volume.get("id").and_then(Value::as_str).filter(|_| goes) else { continue };
            if known.iter().any(|e| e.id.as_deref() == Some(id)) {
                continue;
            }
            let name = format!("{id} of {}", entry.name);
            let unwritten = |e: std::io::Error| Error::config(e.to_string());
            let seq = journal.intend(Thing::Volume, &name).await.map_err(unwritten)?;
            journal.made(seq, id).map_err(unwritten)?;
            known.push(Entry { seq, thing: Thing::Volume, name, id: Some(id.to_owned()), brings: false });
        }
    }
    Ok(known.split_off(before))
}

async fn interface(service: &Service, name: &str, pace: Pace) -> Result<()> {
    let Some((router, subnet)) = name.split_once('/') else { return Ok(()) };
    let path = format!("/routers/{router}/remove_router_interface");
    let begin = Instant::now();
    loop {
        match service.put(&path, json!({"subnet_id": subnet})).await {
            // Neither the router nor the interface has to be there.
            Err(e) if e.status() == Some(404) => return Ok(()),
            Err(e) if e.status() == Some(409) && begin.elapsed() < pace.limit => {
                tokio::time::sleep(pace.poll).await;
            }
            other => return other.map(drop),
        }
    }
}

/// Ids of everything with exactly this name.
async fn by_name(service: &Service, place: &Place, name: &str) -> Result<Vec<String>> {
    // Nova reads the name as a regular expression; the run's names have nothing special in them.
    let found = match service
        .list(&format!("{}?{}", place.listing, parameter(place.named, name)), place.list)
        .await
    {
        Ok(found) => found,
        // A cloud that has no such things at all made none.
        Err(e) if e.status() == Some(404) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let ids =
        found.iter().filter(|v| v.get(place.named).and_then(Value::as_str) == Some(name)).filter_map(|v| {
            let reference = v.get("secret_ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next());
            v.get("id").and_then(Value::as_str).or(reference).map(str::to_owned)
        });
    Ok(ids.collect())
}

/// Deletes, and waits until it is gone; what is busy is tried again.
async fn gone(service: &Service, place: &Place, id: &str, pace: Pace) -> Result<()> {
    let begin = Instant::now();
    let path = format!("{}/{id}", place.path);
    let deletion = if place.list == "loadbalancers" { format!("{path}?cascade=true") } else { path.clone() };
    let known = loop {
        match service.delete_known(&deletion).await {
            Ok(known) => break known,
            // 400: Cinder about a volume that is still being written; 409: in use, or not to be changed just now.
            Err(e) if matches!(e.status(), Some(400 | 409)) && begin.elapsed() < pace.limit => {
                tokio::time::sleep(pace.poll).await;
            }
            Err(e) => return Err(e),
        }
    };
    if place.one.is_empty() {
        return Ok(());
    }
    loop {
        match service.get(&path).await {
            Err(e) if e.status() == Some(404) => return Ok(()),
            Err(e) => return Err(e),
            Ok(found) => {
                let status = place.state(&found);
                // Octavia shows what was deleted for a while.
                if status.eq_ignore_ascii_case("deleted") {
                    return Ok(());
                }
                // Cinder about a backup, where the service that could delete it does not run.
                if !known && !status.to_ascii_lowercase().contains("delet") {
                    return Err(Error::protocol(format!("{path} is there, and its deletion answers 404")));
                }
                let failed = status.eq_ignore_ascii_case("error_deleting");
                if failed || begin.elapsed() > pace.limit {
                    return Err(Error::protocol(format!("{path} does not go (status {status})")));
                }
            }
        }
        tokio::time::sleep(pace.poll).await;
    }
}
