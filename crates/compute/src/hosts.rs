//! Hosts: folding their specs, hearing their reports, knowing whether they live.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ::reconcile::{Outcome, Reconciler, Together};
use async_trait::async_trait;
use base::{Error, HostId, ResourceProviderId, Result, ServerId, Timestamp};
use bytes::Bytes;
use contract::host::{DiskPart, HostCapacity, HostReport, HostSpec, PowerObserved, ServerReport, ServerSpec};
use contract::services::{ControlPlane, Inventory};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use store::{Query, Tx, Version};
use tokio::sync::watch;

use crate::State;
use crate::leases::{Given, raise};
use crate::logic::fold::server_spec;
use crate::model::{DiskState, Host, HostLease, JoinedHost, Server};
use crate::moving;
use crate::reports::News;

/// How long an agent's question for a newer spec is held.
const LONG_POLL: Duration = Duration::from_secs(30);
/// How often at least the moment of the last report is written down: other replicas, and the next process, know only that.
const SEEN_EVERY: Duration = Duration::from_secs(20);
/// How often reports are looked at as if they were new, against changes that were missed.
const FULL_EVERY: i64 = 60;

/// Hosts that a sweep reads at once.
const PAGE: usize = 64;
/// Signs of life that are written down at once.
const SIGNS: usize = 64;

/// What a host said of itself, and when.
type Sign = (Arc<HostReport>, Timestamp);

/// Where signs of life wait for those before them: a thousand hosts that live shall not be a thousand transactions.
pub(crate) type Signs = Together<Sign, Result<()>>;

pub(crate) fn signs() -> Signs {
    Together::new(SIGNS)
}

/// What is in memory of one host; everything in it can be lost.
struct Runtime {
    spec: watch::Sender<Option<Arc<HostSpec>>>,
    /// The servers of the spec that was folded last, in id order, with the SHA-256 of each: hashing a spec costs what
    /// changed in it.
    digests: Mutex<Vec<(Arc<ServerSpec>, [u8; 32])>>,
    told: Mutex<Told>,
}

impl Runtime {
    fn new() -> Self {
        Runtime { spec: watch::Sender::new(None), digests: Mutex::default(), told: Mutex::default() }
    }

    /// SHA-256 of a spec's content in hex, over everything but its generation.
    fn hash(&self, spec: &HostSpec) -> Result<String> {
        let mut held = self.digests.lock();
        let mut digests = Vec::with_capacity(spec.servers.len());
        let rest = (&spec.host, &spec.volumes, &spec.snapshots);
        let mut whole = Sha256::new_with_prefix(serde_json::to_vec(&rest).map_err(Error::internal)?);
        for server in &spec.servers {
            let same = held.binary_search_by_key(&server.id, |(s, _)| s.id).ok().map(|at| &held[at]);
            let digest = match same {
                Some((known, digest)) if Arc::ptr_eq(known, server) => *digest,
                _ => Sha256::digest(serde_json::to_vec(server).map_err(Error::internal)?).into(),
            };
            whole.update(digest);
            digests.push((server.clone(), digest));
        }
        *held = digests;
        Ok(hex::encode(whole.finalize()))
    }
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
    /// Version of the agent as last written.
    version: String,
    /// The spec generation of the newest report.
    generation: u64,
    /// Its servers.
    servers: BTreeMap<ServerId, ServerReport>,
    /// How many of them do what.
    guests: BTreeMap<PowerObserved, usize>,
    /// Reports that have been applied to rows, with the version of the row to which that was nothing new.
    applied: HashMap<ServerId, (ServerReport, Option<Version>)>,
    /// When all were applied.
    full: Option<Timestamp>,
    /// Servers that shall go, with the first generation of the spec without them.
    leaving: BTreeMap<ServerId, u64>,
    /// Servers that wait for something of this host.
    waiting: BTreeSet<ServerId>,
    /// The newest lease that was given by this process.
    given: Option<Given>,
}

/// What hosts told this process lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Hosts that reported to this process lately.
    pub up: usize,
    /// Hosts that reported to this process once, and not lately.
    pub down: usize,
    /// Converged guests of the former by what they do.
    pub guests: BTreeMap<PowerObserved, usize>,
}

/// All hosts in memory.
#[derive(Default)]
pub(crate) struct Hosts(Mutex<HashMap<HostId, Arc<Runtime>>>);

impl Hosts {
    fn of(&self, id: HostId) -> Arc<Runtime> {
        self.0.lock().entry(id).or_insert_with(|| Arc::new(Runtime::new())).clone()
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

    /// Hosts that told of themselves since `since`, the others, and what guests of the former do.
    pub(crate) fn census(&self, since: Timestamp) -> Census {
        let mut census = Census::default();
        for runtime in self.0.lock().values() {
            let told = runtime.told.lock();
            match told.seen {
                Some(seen) if seen >= since => census.up += 1,
                Some(_) => {
                    census.down += 1;
                    continue;
                }
                None => continue,
            }
            for (power, count) in &told.guests {
                *census.guests.entry(*power).or_default() += count;
            }
        }
        census
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

    /// The desired content of hosts' specs, generation 0, with the rows it was read beside: one snapshot for all.
    async fn contents(&self, hosts: &[HostId]) -> Result<Vec<Content>> {
        let ids = hosts.to_vec();
        // A server's spec follows from its generation: those that are held need not be read again.
        let held: Vec<Arc<HostSpec>> =
            hosts.iter().filter_map(|host| self.hosts.of(*host).spec.borrow().clone()).collect();
        let known = held.clone();
        let (rows, leases, here, changed, moves) = self
            .store
            .read(move |tx| {
                let rows = tx.list::<Host>(&Query::new().is_in("id", &ids))?;
                let leases = tx.list::<HostLease>(&Query::new().is_in("id", &ids))?;
                let here = Query::new().is_in("host_id", &ids).eq("deleting", false);
                let here = tx.versions::<Server>(&here)?;
                let here: HashMap<ServerId, u64> =
                    here.iter().filter_map(|(id, v)| Some((id.parse().ok()?, v.generation))).collect();
                let known: HashMap<ServerId, u64> =
                    known.iter().flat_map(|spec| &spec.servers).map(|s| (s.id, s.generation)).collect();
                let changed = here.iter().filter(|(id, generation)| known.get(id) != Some(*generation));
                let mut changed: BTreeSet<ServerId> = changed.map(|(id, _)| *id).collect();
                // What two hosts have of a server that moves differs under one generation.
                let moves = moving::touching(tx, &ids)?;
                changed.extend(moves.iter().map(|m| m.server_id));
                let changed = tx.list::<Server>(&Query::new().is_in("id", changed))?;
                Ok((rows, leases, here, changed, moves))
            })
            .await?;
        let mut specs: BTreeMap<HostId, HostSpec> =
            hosts.iter().map(|host| (*host, HostSpec::empty(*host))).collect();
        for server in changed.iter().filter(|s| s.ready && !s.deleting) {
            if let Some(spec) = server.host_id.and_then(|host| specs.get_mut(&host)) {
                spec.servers.push(Arc::new(server_spec(server)));
            }
        }
        for (host, server) in moving::passing(&moves, &changed) {
            if let Some(spec) = specs.get_mut(&host) {
                spec.servers.push(Arc::new(server));
            }
        }
        let changed: BTreeSet<ServerId> = changed.iter().map(|s| s.id).collect();
        for held in &held {
            let Some(spec) = specs.get_mut(&held.host) else { continue };
            let same =
                |s: &&Arc<ServerSpec>| here.get(&s.id) == Some(&s.generation) && !changed.contains(&s.id);
            spec.servers.extend(held.servers.iter().filter(same).cloned());
        }
        let mut specs: Vec<HostSpec> = specs.into_values().collect();
        for part in &self.deps.host_parts {
            part.contribute(&mut specs).await?;
        }
        let content = |mut spec: HostSpec| {
            spec.servers.sort_unstable_by_key(|s| s.id);
            spec.volumes.sort_unstable_by_key(|v| v.id);
            spec.snapshots.sort_unstable_by_key(|s| s.id);
            let lease = leases.iter().find(|l| l.id == spec.host);
            Content {
                row: rows.iter().find(|r| r.id == spec.host).map(|r| r.spec_generation),
                fence: lease.map_or(0, |l| l.fence),
                spec,
            }
        };
        Ok(specs.into_iter().map(content).collect())
    }

    /// Those of the contents that differ from what the agents hold.
    fn changed(&self, contents: Vec<Content>) -> Vec<Content> {
        let differs = |content: &mut Content| {
            let Some(held) = self.hosts.of(content.spec.host).spec.borrow().clone() else { return true };
            content.spec.generation = held.generation;
            let differs = *held != content.spec;
            content.spec.generation = 0;
            differs
        };
        contents.into_iter().filter_map(|mut content| differs(&mut content).then_some(content)).collect()
    }

    /// Folds the specs of hosts and hands them to their agents.
    async fn fold(&self, hosts: &[HostId]) -> Result<()> {
        let changed = self.changed(self.contents(hosts).await?);
        if changed.is_empty() {
            return Ok(());
        }
        let mut wanted = BTreeMap::new();
        for content in &changed {
            let hash = self.hosts.of(content.spec.host).hash(&content.spec)?;
            wanted.insert(content.spec.host, (content.row, content.fence, hash));
        }
        let generations = self.store.write(move |tx| number(tx, &wanted)).await?;
        for Content { mut spec, .. } in changed {
            let Some(generation) = generations.get(&spec.host) else { continue };
            spec.generation = *generation;
            let runtime = self.hosts.of(spec.host);
            let leaving: Vec<ServerId> = {
                let mut told = runtime.told.lock();
                let gone = told
                    .leaving
                    .iter_mut()
                    .filter(|(id, since)| **since == u64::MAX && !spec.servers.iter().any(|s| s.id == **id));
                gone.map(|(id, since)| {
                    *since = *generation;
                    *id
                })
                .collect()
            };
            runtime.spec.send_replace(Some(Arc::new(spec)));
            for server in leaving {
                self.hint("server", server);
            }
        }
        Ok(())
    }

    /// Makes the host's row and provider as the report says.
    async fn register(&self, report: &Arc<HostReport>) -> Result<()> {
        let now = self.clock.now();
        let runtime = self.hosts.of(report.host);
        let (known, due) = {
            let told = runtime.told.lock();
            let same = |c: &HostCapacity| HostCapacity { disk_free_gib: 0, ..c.clone() };
            let known = told.capacity.as_ref().is_some_and(|c| same(c) == same(&report.capacity))
                && told.version == report.version;
            let every = SEEN_EVERY.min(self.config.down_after / 4);
            (known, told.written.is_none_or(|w| now > w.plus(every)))
        };
        if known && !due {
            return Ok(());
        }
        if !known {
            self.provide(report.host, &report.capacity).await?;
        }
        self.signs.call((report.clone(), now), |all| self.note_all(all)).await?;
        let mut told = runtime.told.lock();
        told.capacity = Some(report.capacity.clone());
        told.version.clone_from(&report.version);
        told.written = Some(now);
        Ok(())
    }

    async fn note_all(&self, all: Vec<Sign>) -> Vec<Result<()>> {
        if all.len() > 1 && self.note(all.clone()).await.is_ok() {
            return all.iter().map(|_| Ok(())).collect();
        }
        // One of them is in the way of the others.
        let mut noted = Vec::with_capacity(all.len());
        for sign in all {
            noted.push(self.note(vec![sign]).await);
        }
        noted
    }

    /// Writes down what hosts say of themselves, and that they live.
    async fn note(&self, all: Vec<Sign>) -> Result<()> {
        self.store
            .write(move |tx| {
                // Of two reports of one host the later one.
                let signs: BTreeMap<HostId, &Sign> = all.iter().map(|sign| (sign.0.host, sign)).collect();
                // A host that joined is the one that its certificate names.
                for joined in tx.list::<JoinedHost>(&Query::new().is_in("id", signs.keys()))? {
                    let hostname = signs.get(&joined.id).map(|(report, _)| &report.capacity.hostname);
                    if let Some(hostname) = hostname.filter(|name| joined.name.as_ref() != Some(name)) {
                        let id = joined.id;
                        return Err(Error::forbidden(format!("Host {id} did not join as '{hostname}'.")));
                    }
                }
                let mut hosts = tx.list::<Host>(&Query::new().is_in("id", signs.keys()))?;
                for host in &mut hosts {
                    let Some((report, at)) = signs.get(&host.id) else { continue };
                    host.name.clone_from(&report.capacity.hostname);
                    host.capacity = report.capacity.clone();
                    host.agent_version.clone_from(&report.version);
                    host.seen_at = host.seen_at.max(*at);
                }
                tx.update_status_many(&mut hosts)?;
                let known: BTreeSet<HostId> = hosts.iter().map(|host| host.id).collect();
                for (id, (report, at)) in signs.into_iter().filter(|(id, _)| !known.contains(id)) {
                    tx.wake("host", id);
                    tx.insert(&mut Host {
                        id,
                        meta: store::Meta::default(),
                        name: report.capacity.hostname.clone(),
                        capacity: report.capacity.clone(),
                        agent_version: report.version.clone(),
                        seen_at: *at,
                        disabled: false,
                        disabled_reason: None,
                        forced_down: false,
                        spec_generation: 0,
                        spec_hash: String::new(),
                    })?;
                }
                Ok(())
            })
            .await
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
            min_unit: 1,
            max_unit: total.max(1),
            step_size: 1,
            allocation_ratio: ratio,
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
}

/// What a host's spec shall be, and what stood beside it when that was read.
struct Content {
    spec: HostSpec,
    /// The generation of its row, where it has one. Should another replica fold meanwhile, this reading is too old.
    row: Option<u64>,
    /// Generation below which specs of the host were not to be trusted.
    fence: u64,
}

/// Writes the hashes of specs and answers their generations; a spec that is the one written last keeps its own.
fn number(
    tx: &mut Tx<'_>,
    wanted: &BTreeMap<HostId, (Option<u64>, u64, String)>,
) -> Result<BTreeMap<HostId, u64>> {
    let rows = tx.list::<Host>(&Query::new().is_in("id", wanted.keys()))?;
    let leases = tx.list::<HostLease>(&Query::new().is_in("id", wanted.keys()))?;
    let mut generations = BTreeMap::new();
    let mut grown = Vec::new();
    for mut host in rows {
        let Some((before, fence, hash)) = wanted.get(&host.id) else { continue };
        let id = host.id;
        if leases.iter().find(|l| l.id == id).map_or(0, |l| l.fence) != *fence {
            // What was read may still have a server that was taken from the host meanwhile.
            return Err(Error::retry(format!("servers were taken from host {id} while its spec was folded")));
        }
        if Some(host.spec_generation) != *before {
            return Err(Error::unavailable(format!("the spec of host {id} was folded by another replica")));
        }
        if host.spec_hash != *hash {
            host.spec_generation += 1;
            host.spec_hash.clone_from(hash);
            generations.insert(id, host.spec_generation);
            grown.push(host);
        } else {
            generations.insert(id, host.spec_generation);
        }
    }
    tx.update_status_many(&mut grown)?;
    Ok(generations)
}

/// Whether a server has interfaces or volumes under way.
pub(crate) fn unfinished(server: &Server) -> bool {
    server.disks.iter().any(|d| d.state != DiskState::Attached)
        || server.nics.iter().any(|n| n.detaching || n.plugged.is_none())
}

#[async_trait]
impl ControlPlane for State {
    async fn spec(&self, host: HostId, after: u64) -> Result<Option<Arc<HostSpec>>> {
        let mut spec = self.hosts.of(host).spec.subscribe();
        let newer = spec.wait_for(|s| s.as_ref().is_some_and(|s| s.generation > after));
        match tokio::time::timeout(LONG_POLL, newer).await {
            Ok(Ok(found)) => Ok(found.clone()),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    async fn lease(&self, host: HostId, generation: u64) -> Result<Duration> {
        self.give_lease(host, generation).await
    }

    async fn disk(&self, host: HostId, part: &DiskPart) -> Result<Bytes> {
        self.pass_disk(host, part).await
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
        let report = Arc::new(report);
        self.register(&report).await?;
        self.catch_up(&report).await?;
        let (changed, gone) = {
            let mut told = runtime.told.lock();
            told.generation = report.generation;
            told.servers = report.servers.iter().map(|s| (s.id, s.clone())).collect();
            told.guests.clear();
            for power in report.servers.iter().filter(|s| s.converged).filter_map(|s| s.power) {
                *told.guests.entry(power).or_default() += 1;
            }
            let full = told.full.is_none_or(|f| now > f.plus_secs(FULL_EVERY));
            if full {
                told.full = Some(now);
            }
            let news = |s: &ServerReport| match told.applied.get(&s.id) {
                Some((applied, _)) if applied == s && !full => None,
                Some((applied, settled)) if applied == s => Some((s.clone(), *settled)),
                _ => Some((s.clone(), None)),
            };
            let changed: Vec<_> = report.servers.iter().filter_map(news).collect();
            let gone: Vec<ServerId> = told
                .leaving
                .iter()
                .filter(|(id, since)| report.generation >= **since && !told.servers.contains_key(*id))
                .map(|(id, _)| *id)
                .collect();
            (changed, gone)
        };
        let settled = self.take(News { report: report.clone(), changed: changed.clone() }).await?;
        {
            let mut told = runtime.told.lock();
            let present: std::collections::HashSet<ServerId> = report.servers.iter().map(|s| s.id).collect();
            told.applied.retain(|id, _| present.contains(id));
            let applied = changed.into_iter().map(|(server, _)| {
                let version = settled.get(&(report.host, server.id)).copied();
                (server.id, (server, version))
            });
            told.applied.extend(applied);
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
            self.0.fold(&[id]).await?;
        }
        Ok(Outcome::Done)
    }

    async fn reconcile_many(&self, keys: &[String]) -> Vec<Result<Outcome>> {
        let ids: Vec<HostId> = keys.iter().filter_map(|key| key.parse().ok()).collect();
        if self.0.fold(&ids).await.is_ok() {
            return keys.iter().map(|_| Ok(Outcome::Done)).collect();
        }
        // One of them is in the way of the others.
        futures::future::join_all(keys.iter().map(|key| self.reconcile(key))).await
    }

    /// Hosts whose spec is not what its fold would be now.
    async fn sweep(&self) -> Result<Vec<String>> {
        let hosts = self.0.store.read(|tx| tx.list_ids::<Host>(&Query::new())).await?;
        let hosts: Vec<HostId> = hosts.iter().filter_map(|key| key.parse().ok()).collect();
        let mut keys = Vec::new();
        for some in hosts.chunks(PAGE) {
            let changed = self.0.changed(self.0.contents(some).await?);
            keys.extend(changed.iter().map(|content| content.spec.host.to_string()));
        }
        Ok(keys)
    }
}
