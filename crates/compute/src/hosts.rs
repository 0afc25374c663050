//! Hosts: folding their specs, taking their reports, knowing whether they live.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ::reconcile::{Outcome, Reconciler};
use async_trait::async_trait;
use base::{Error, HostId, ResourceProviderId, Result, ServerId, Timestamp};
use contract::host::{HostCapacity, HostReport, HostSpec, ServerReport};
use contract::services::{ControlPlane, Inventory};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use store::Query;
use tokio::sync::watch;

use crate::State;
use crate::leases::{Given, fence_of, raise};
use crate::logic::fold::server_spec;
use crate::logic::state::{Change, apply_report};
use crate::model::{DiskState, Host, JoinedHost, Server};

/// How long an agent's question for a newer spec is held.
const LONG_POLL: Duration = Duration::from_secs(30);
/// How often the moment of the last report is written down.
const SEEN_EVERY: i64 = 20;
/// How often reports are looked at as if they were new, against changes that were missed.
const FULL_EVERY: i64 = 60;

/// What is in memory of one host; everything in it can be lost.
struct Runtime {
    spec: watch::Sender<Option<Arc<HostSpec>>>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// Sequence of the newest report.
    sequence: u64,
    /// When it came.
    seen: Option<Timestamp>,
    /// When that was last written down.
    written: Option<Timestamp>,
    /// Capacity as last written.
    capacity: Option<HostCapacity>,
    /// The spec generation of the newest report.
    generation: u64,
    /// Its servers.
    servers: BTreeMap<ServerId, ServerReport>,
    /// Reports that have been applied to rows.
    applied: HashMap<ServerId, ServerReport>,
    /// When all were applied.
    full: Option<Timestamp>,
    /// Servers that shall go, with the first generation of the spec without them.
    leaving: BTreeMap<ServerId, u64>,
    /// Servers that wait for something of this host.
    waiting: BTreeSet<ServerId>,
    /// The newest lease that was given by this process.
    given: Option<Given>,
}

/// All hosts in memory.
#[derive(Default)]
pub(crate) struct Hosts(Mutex<HashMap<HostId, Arc<Runtime>>>);

impl Hosts {
    fn of(&self, id: HostId) -> Arc<Runtime> {
        self.0
            .lock()
            .entry(id)
            .or_insert_with(|| Arc::new(Runtime { spec: watch::Sender::new(None), told: Mutex::default() }))
            .clone()
    }

    /// The newest report of a server by its host.
    pub(crate) fn server(&self, host: HostId, id: ServerId) -> Option<ServerReport> {
        self.of(host).told.lock().servers.get(&id).cloned()
    }

    /// The newest lease that this process gave the host.
    pub(crate) fn given(&self, host: HostId) -> Option<Given> {
        self.of(host).told.lock().given
    }

    /// Notes a sign of life.
    pub(crate) fn alive(&self, host: HostId, now: Timestamp) {
        self.of(host).told.lock().seen = Some(now);
    }

    /// Remembers a lease.
    pub(crate) fn give(&self, host: HostId, given: Given) {
        self.of(host).told.lock().given = Some(given);
    }

    /// When the host last reported to this process.
    pub(crate) fn seen(&self, host: HostId) -> Option<Timestamp> {
        self.of(host).told.lock().seen
    }

    /// Whether the host has let go of a server that is in no spec any more; if not, its next report that tells so wakes
    /// the server's reconciler.
    pub(crate) fn gone(&self, host: HostId, id: ServerId) -> bool {
        let runtime = self.of(host);
        let spec = runtime.spec.borrow().clone();
        let Some(spec) = spec.filter(|s| !s.servers.iter().any(|x| x.id == id)) else {
            runtime.told.lock().leaving.insert(id, u64::MAX);
            return false;
        };
        let mut told = runtime.told.lock();
        let since = match told.leaving.get(&id) {
            Some(since) if *since != u64::MAX => *since,
            _ => spec.generation,
        };
        let gone = told.generation >= since && !told.servers.contains_key(&id);
        if gone {
            told.leaving.remove(&id);
        } else {
            told.leaving.insert(id, since);
        }
        gone
    }

    /// Remembers that the server's reconciler wants to run when the host's parts change.
    pub(crate) fn wait(&self, host: HostId, id: ServerId) {
        self.of(host).told.lock().waiting.insert(id);
    }

    /// Wakes the servers that wait for something of the host.
    pub(crate) fn wake_waiting(&self, state: &State, host: HostId) {
        let waiting = std::mem::take(&mut self.of(host).told.lock().waiting);
        for id in waiting {
            state.hint("server", id);
        }
    }
}

impl State {
    /// Whether a host reported lately and is not declared dead.
    pub(crate) fn is_up(&self, host: &Host) -> bool {
        let seen = self.hosts.seen(host.id).map_or(host.seen_at, |s| s.max(host.seen_at));
        !host.forced_down && self.clock.now() < seen.plus(self.config.down_after)
    }

    /// The desired content of a host's spec, generation 0.
    async fn content(&self, host: HostId) -> Result<HostSpec> {
        let servers = self.store.read(move |tx| tx.list::<Server>(&Query::new().eq("host_id", host))).await?;
        let mut spec = HostSpec {
            host,
            generation: 0,
            servers: servers.iter().filter(|s| s.ready && !s.deleting).map(server_spec).collect(),
            volumes: Vec::new(),
            snapshots: Vec::new(),
        };
        for part in &self.deps.host_parts {
            part.contribute(host, &mut spec).await?;
        }
        spec.servers.sort_unstable_by_key(|s| s.id);
        spec.volumes.sort_unstable_by_key(|v| v.id);
        spec.snapshots.sort_unstable_by_key(|s| s.id);
        Ok(spec)
    }

    /// Folds a host's spec and hands it to its agent; answers whether it was new.
    async fn fold(&self, id: HostId) -> Result<bool> {
        let fence = self.store.read(move |tx| fence_of(tx, id)).await?;
        // The row as it was before its content was read: should another replica fold meanwhile, this reading is too old.
        let before = self.store.read(move |tx| Ok(tx.get::<Host>(&id)?.map(|h| h.spec_generation))).await?;
        let mut spec = self.content(id).await?;
        let runtime = self.hosts.of(id);
        let held = runtime.spec.borrow().clone();
        if let Some(held) = &held {
            spec.generation = held.generation;
            if **held == spec {
                return Ok(false);
            }
            spec.generation = 0;
        }
        let text = serde_json::to_vec(&spec).map_err(Error::internal)?;
        let hash = hex::encode(Sha256::digest(&text));
        let generation = self
            .store
            .write(move |tx| {
                let Some(mut host) = tx.get::<Host>(&id)? else { return Ok(None) };
                if fence_of(tx, id)? != fence {
                    // What was read may still have a server that was taken from the host meanwhile.
                    return Err(Error::retry(format!(
                        "servers were taken from host {id} while its spec was folded"
                    )));
                }
                if Some(host.spec_generation) != before {
                    return Err(Error::unavailable(format!(
                        "the spec of host {id} was folded by another replica"
                    )));
                }
                if host.spec_hash != hash {
                    host.spec_generation += 1;
                    host.spec_hash.clone_from(&hash);
                    tx.update_status(&mut host)?;
                }
                Ok(Some(host.spec_generation))
            })
            .await?;
        let Some(generation) = generation else { return Ok(false) };
        spec.generation = generation;
        let leaving: Vec<ServerId> = {
            let mut told = runtime.told.lock();
            let gone = told
                .leaving
                .iter_mut()
                .filter(|(id, since)| **since == u64::MAX && !spec.servers.iter().any(|s| s.id == **id));
            gone.map(|(id, since)| {
                *since = generation;
                *id
            })
            .collect()
        };
        runtime.spec.send_replace(Some(Arc::new(spec)));
        for server in leaving {
            self.hint("server", server);
        }
        Ok(true)
    }

    /// Makes the host's row and provider as the report says; answers whether the host is new.
    async fn register(&self, report: &HostReport) -> Result<()> {
        let now = self.clock.now();
        let runtime = self.hosts.of(report.host);
        let (known, due) = {
            let told = runtime.told.lock();
            let same = |c: &HostCapacity| HostCapacity { disk_free_gib: 0, ..c.clone() };
            let known = told.capacity.as_ref().is_some_and(|c| same(c) == same(&report.capacity));
            (known, told.written.is_none_or(|w| now > w.plus_secs(SEEN_EVERY)))
        };
        if known && !due {
            return Ok(());
        }
        let (id, capacity) = (report.host, report.capacity.clone());
        if !known {
            self.provide(id, &capacity).await?;
        }
        let stored = capacity.clone();
        self.store
            .write(move |tx| {
                // A host that joined is the one that its certificate names.
                let joined = tx.get::<JoinedHost>(&id)?;
                if joined.is_some_and(|j| j.name.as_ref() != Some(&stored.hostname)) {
                    return Err(Error::forbidden(format!(
                        "Host {id} did not join as '{}'.",
                        stored.hostname
                    )));
                }
                match tx.get::<Host>(&id)? {
                    Some(mut host) => {
                        host.name.clone_from(&stored.hostname);
                        host.capacity = stored.clone();
                        host.seen_at = host.seen_at.max(now);
                        tx.update_status(&mut host)
                    }
                    None => {
                        tx.wake("host", id);
                        tx.insert(&mut Host {
                            id,
                            meta: store::Meta::default(),
                            name: stored.hostname.clone(),
                            capacity: stored.clone(),
                            seen_at: now,
                            disabled: false,
                            disabled_reason: None,
                            forced_down: false,
                            spec_generation: 0,
                            spec_hash: String::new(),
                        })
                    }
                }
            })
            .await?;
        let mut told = runtime.told.lock();
        told.capacity = Some(capacity);
        told.written = Some(now);
        Ok(())
    }

    /// An agent may hold a newer generation than ours: its row was deleted, or the database is an older copy. The next
    /// fold goes above it, because the agent would refuse anything else.
    async fn catch_up(&self, report: &HostReport) -> Result<()> {
        let runtime = self.hosts.of(report.host);
        let behind = runtime.spec.borrow().as_ref().is_none_or(|s| s.generation < report.generation);
        if report.generation == 0 || !behind {
            return Ok(());
        }
        let (id, generation) = (report.host, report.generation);
        let raised = self
            .store
            .write(move |tx| {
                let Some(mut host) = tx.get::<Host>(&id)? else { return Ok(false) };
                if host.spec_generation >= generation {
                    return Ok(false);
                }
                host.spec_generation = generation;
                host.spec_hash.clear();
                // That spec is not known here: it may name servers that other hosts have.
                raise(tx, id, generation + 1)?;
                tx.wake("host", id);
                tx.update_status(&mut host)?;
                Ok(true)
            })
            .await?;
        if raised {
            tracing::warn!(host = %id, generation, "the agent holds a newer spec than the database; going above it");
            runtime.spec.send_replace(None);
            self.hint("host", id);
        }
        Ok(())
    }

    async fn provide(&self, id: HostId, capacity: &HostCapacity) -> Result<()> {
        let c = &self.config;
        let stock = |total: u64, reserved: u64, ratio: f64| Inventory {
            total,
            reserved: reserved.min(total),
            allocation_ratio: ratio,
            max_unit: total.max(1),
        };
        let inventories = BTreeMap::from([
            ("VCPU".to_owned(), stock(u64::from(capacity.vcpus), 0, c.cpu_ratio)),
            ("MEMORY_MB".to_owned(), stock(capacity.memory_mib, c.reserved_memory_mib, c.ram_ratio)),
            ("DISK_GB".to_owned(), stock(capacity.disk_gib, 0, c.disk_ratio)),
        ]);
        let traits = [
            "COMPUTE_NODE",
            "COMPUTE_DEVICE_TAGGING",
            "COMPUTE_NET_ATTACH_INTERFACE",
            "COMPUTE_VOLUME_ATTACH",
            "COMPUTE_IMAGE_TYPE_QCOW2",
            "COMPUTE_IMAGE_TYPE_RAW",
            "COMPUTE_STORAGE_BUS_VIRTIO",
            "COMPUTE_NET_VIF_MODEL_VIRTIO",
        ];
        let traits: Vec<String> = traits.iter().map(|t| (*t).to_owned()).collect();
        self.deps
            .placement
            .ensure_provider(ResourceProviderId(id.0), &capacity.hostname, &inventories, &traits)
            .await
    }

    /// Applies what a report says of servers to their rows.
    async fn take_servers(&self, host: HostId, changed: Vec<ServerReport>) -> Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        let patience = self.config.patience;
        self.store
            .write(move |tx| {
                let now = tx.now();
                let mut refold = false;
                for report in &changed {
                    let Some(mut server) = tx.get::<Server>(&report.id)? else { continue };
                    if server.host_id != Some(host) || !server.ready || server.deleting {
                        continue;
                    }
                    let change = apply_report(&mut server, report, now, patience);
                    match change {
                        Change::None => {}
                        Change::Status => tx.update_status(&mut server)?,
                        Change::Spec => {
                            tx.update(&mut server)?;
                            refold = true;
                        }
                    }
                    if unfinished(&server) {
                        tx.wake("server", server.id);
                    }
                }
                if refold {
                    tx.wake("host", host);
                }
                Ok(())
            })
            .await
    }
}

/// Whether a server has interfaces or volumes under way.
pub(crate) fn unfinished(server: &Server) -> bool {
    server.disks.iter().any(|d| d.state != DiskState::Attached)
        || server.nics.iter().any(|n| n.detaching || n.plugged.is_none())
}

#[async_trait]
impl ControlPlane for State {
    async fn spec(&self, host: HostId, after: u64) -> Result<Option<HostSpec>> {
        let mut spec = self.hosts.of(host).spec.subscribe();
        let newer = spec.wait_for(|s| s.as_ref().is_some_and(|s| s.generation > after));
        match tokio::time::timeout(LONG_POLL, newer).await {
            Ok(Ok(found)) => Ok(found.as_ref().map(|s| HostSpec::clone(s))),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    async fn lease(&self, host: HostId, generation: u64) -> Result<Duration> {
        self.give_lease(host, generation).await
    }

    async fn admit(&self, host: HostId) -> Result<()> {
        let joined = self.store.read(move |tx| tx.get::<JoinedHost>(&host)).await?;
        if joined.is_some_and(|j| j.removed) {
            return Err(Error::forbidden(format!("Host {host} was removed from this cloud.")));
        }
        Ok(())
    }

    async fn report(&self, report: HostReport) -> Result<()> {
        let now = self.clock.now();
        let runtime = self.hosts.of(report.host);
        {
            let mut told = runtime.told.lock();
            if report.sequence <= told.sequence {
                return Ok(());
            }
            told.sequence = report.sequence;
            told.seen = Some(now);
        }
        self.register(&report).await?;
        self.catch_up(&report).await?;
        let (changed, gone) = {
            let mut told = runtime.told.lock();
            told.generation = report.generation;
            told.servers = report.servers.iter().map(|s| (s.id, s.clone())).collect();
            let full = told.full.is_none_or(|f| now > f.plus_secs(FULL_EVERY));
            if full {
                told.full = Some(now);
            }
            let changed: Vec<ServerReport> = report
                .servers
                .iter()
                .filter(|s| full || told.applied.get(&s.id) != Some(*s))
                .cloned()
                .collect();
            let gone: Vec<ServerId> = told
                .leaving
                .iter()
                .filter(|(id, since)| report.generation >= **since && !told.servers.contains_key(*id))
                .map(|(id, _)| *id)
                .collect();
            (changed, gone)
        };
        for part in &self.deps.host_parts {
            part.report(&report).await?;
        }
        self.take_servers(report.host, changed.clone()).await?;
        {
            let mut told = runtime.told.lock();
            let present: std::collections::HashSet<ServerId> = report.servers.iter().map(|s| s.id).collect();
            told.applied.retain(|id, _| present.contains(id));
            told.applied.extend(changed.into_iter().map(|s| (s.id, s)));
        }
        for id in gone {
            self.hint("server", id);
        }
        // Volumes that became usable are waited for.
        self.hosts.wake_waiting(self, report.host);
        Ok(())
    }
}

/// The reconciler of kind `host`: folds.
pub(crate) struct Folds(pub Arc<State>);

#[async_trait]
impl Reconciler for Folds {
    fn kind(&self) -> &'static str {
        "host"
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome> {
        if let Ok(id) = key.parse::<HostId>() {
            self.0.fold(id).await?;
        }
        Ok(Outcome::Done)
    }

    /// Hosts whose spec is not what its fold would be now.
    async fn sweep(&self) -> Result<Vec<String>> {
        let hosts = self.0.store.read(|tx| tx.list_ids::<Host>(&Query::new())).await?;
        let mut keys = Vec::new();
        for key in hosts {
            let Ok(id) = key.parse::<HostId>() else { continue };
            let held = self.0.hosts.of(id).spec.borrow().clone();
            let stale = match held {
                None => true,
                Some(held) => {
                    let mut content = self.0.content(id).await?;
                    content.generation = held.generation;
                    content != *held
                }
            };
            if stale {
                keys.push(key);
            }
        }
        Ok(keys)
    }
}
