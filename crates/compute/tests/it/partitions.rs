//! Random schedules of partitions in virtual time. In each, a few hosts with a few servers are cut off, hear nothing, are
//! slow, lose their agent or their power, are declared dead while they live; the server process dies; clocks of hosts run
//! fast and slow, that of the next server process is another; and servers are evacuated at every chance. No server may
//! ever run on two hosts, and in the end each runs on one.
//!
//! A schedule follows from its seed and can be run alone: `ALLOD_PARTITION_SEED=n`. `make partitions N=100000` is the long
//! run. The same schedules with a part of the rule taken out do find servers that run twice.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::AddAssign;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use base::{Clock, Entropy, Result, ServerId, Timestamp};
use contract::drivers::{Guest, GuestLease, GuestPlan, Hypervisor};
use contract::host::{HostCapacity, PowerObserved};
use parking_lot::Mutex;
use serde_json::json;
use sim::SimHypervisor;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::world::{Plan, Way, World};

/// How late the guard of a guest may notice that the lease has ended: it looks each quarter of a second.
const LATE: i64 = 1_000_000;
/// How far the clocks of two server processes may be apart, in milliseconds.
const SERVER_SKEW_MS: u64 = 10_000;
/// How far they are where they are further apart than they may.
const TOO_FAR_MS: u64 = 120_000;

/// What of the rule is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Whole,
    /// Agents ask for leases and do not keep to them.
    Ignored,
    /// Clocks of server processes are up to two minutes apart, which the margin does not cover.
    ClocksApart,
}

/// Virtual time with an error of its own: shifted, and running fast or slow by parts in a million.
struct Crooked {
    start: Instant,
    /// In milliseconds.
    shift: AtomicI64,
    ppm: i64,
}

impl Crooked {
    fn new(start: Instant, shift: i64, ppm: i64) -> Arc<Self> {
        Arc::new(Crooked { start, shift: AtomicI64::new(shift), ppm })
    }

    fn shift(&self, ms: i64) {
        self.shift.store(ms, Ordering::SeqCst);
    }
}

impl Clock for Crooked {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.start.elapsed().as_micros()).unwrap();
        let begin = Timestamp::from_secs(1_767_225_600).0 + self.shift.load(Ordering::SeqCst) * 1_000;
        Timestamp(begin + elapsed + elapsed / 1_000 * self.ppm / 1_000)
    }
}

/// What came of schedules.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Tally {
    schedules: u64,
    /// Hosts or servers in trouble, by kind.
    troubles: BTreeMap<&'static str, u64>,
    /// Servers that were given to another host.
    moved: u64,
    /// Looks: one after each thing that a hypervisor did.
    looks: u64,
    /// Times that a server began to run on a second host.
    double: u64,
    /// Schedules in which one did.
    caught: u64,
    /// Hash of what ran where at which time.
    hash: u64,
}

impl AddAssign<&Tally> for Tally {
    fn add_assign(&mut self, other: &Tally) {
        self.schedules += other.schedules;
        for (kind, n) in &other.troubles {
            *self.troubles.entry(*kind).or_default() += n;
        }
        self.moved += other.moved;
        self.looks += other.looks;
        self.double += other.double;
        self.caught += other.caught;
        // Whatever the order in which they end.
        self.hash ^= other.hash;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let troubles: u64 = self.troubles.values().sum();
        let (n, moved, looks) = (self.schedules, self.moved, self.looks);
        write!(f, "{n} schedules, {troubles} troubles, {moved} evacuations, {looks} looks, ")?;
        write!(f, "{} double runs in {} schedules", self.double, self.caught)
    }
}

/// Looks at all hosts after each thing that one of their hypervisors did. A guest stops running when its lease ends and
/// begins only by what its hypervisor does, so no double run begins unseen.
#[derive(Default)]
struct Watch {
    hosts: OnceLock<Vec<(Arc<SimHypervisor>, Arc<Crooked>)>>,
    start: OnceLock<Instant>,
    seen: Mutex<(Tally, DefaultHasher, BTreeSet<ServerId>)>,
}

impl Watch {
    fn look(&self) {
        let Some(hosts) = self.hosts.get() else { return };
        let mut running: BTreeMap<ServerId, u32> = BTreeMap::new();
        let mut seen = self.seen.lock();
        let (tally, hash, twice) = &mut *seen;
        self.start.get().unwrap().elapsed().as_micros().hash(hash);
        for (n, (hypervisor, clock)) in hosts.iter().enumerate() {
            n.hash(hash);
            for id in hypervisor.running(Timestamp(clock.now().0 - LATE)) {
                id.hash(hash);
                *running.entry(id).or_default() += 1;
            }
        }
        tally.looks += 1;
        let now: BTreeSet<ServerId> = running.into_iter().filter(|(_, n)| *n > 1).map(|(id, _)| id).collect();
        tally.double += now.difference(twice).count() as u64;
        *twice = now;
    }
}

/// A hypervisor that is watched.
struct Watched {
    inner: Arc<SimHypervisor>,
    watch: Arc<Watch>,
    /// Grows each time the power goes.
    boots: Arc<AtomicU64>,
}

#[async_trait]
impl Hypervisor for Watched {
    async fn capacity(&self) -> Result<HostCapacity> {
        self.inner.capacity().await
    }
    async fn observe(&self) -> Result<Vec<Guest>> {
        self.inner.observe().await
    }
    async fn ensure(&self, plan: &GuestPlan, start: bool) -> Result<Guest> {
        let boot = self.boots.load(Ordering::SeqCst);
        let made = self.inner.ensure(plan, start).await;
        if boot != self.boots.load(Ordering::SeqCst) {
            // It was started on a machine whose power has gone meanwhile.
            self.inner.crash(plan.spec.id);
        }
        self.watch.look();
        made
    }
    async fn lease(&self, lease: &GuestLease) -> Result<()> {
        let told = self.inner.lease(lease).await;
        self.watch.look();
        told
    }
    async fn remove(&self, id: ServerId) -> Result<()> {
        let removed = self.inner.remove(id).await;
        self.watch.look();
        removed
    }
    async fn read_disk(&self, id: ServerId, disk: &str, offset: u64) -> Result<bytes::Bytes> {
        self.inner.read_disk(id, disk, offset).await
    }
    async fn has_disk(&self, id: ServerId, transfer: uuid::Uuid, disk: &str) -> Result<bool> {
        self.inner.has_disk(id, transfer, disk).await
    }
    async fn write_disk(
        &self,
        id: ServerId,
        transfer: uuid::Uuid,
        disk: &str,
        offset: u64,
        piece: bytes::Bytes,
    ) -> Result<()> {
        self.inner.write_disk(id, transfer, disk, offset, piece).await
    }
    async fn console_log(&self, id: ServerId, length: Option<usize>) -> Result<String> {
        self.inner.console_log(id, length).await
    }
    fn events(&self) -> broadcast::Receiver<ServerId> {
        self.inner.events()
    }
}

/// Names the seed of a schedule that panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("schedule {0} failed: ALLOD_PARTITION_SEED={0} runs it alone", self.0);
        }
    }
}

struct Schedule {
    w: Arc<World>,
    dice: Entropy,
    clocks: Vec<Arc<Crooked>>,
    boots: Vec<Arc<AtomicU64>>,
    server_clock: Arc<Crooked>,
    servers: Vec<String>,
    rule: Rule,
    /// One server process at a time.
    restart: tokio::sync::Mutex<()>,
    tally: Mutex<Tally>,
}

const TROUBLES: [&str; 9] = [
    "cut off",
    "cut off, agent dead",
    "declared dead alive",
    "cut off, declared dead",
    "flapping",
    "answers lost",
    "slow",
    "power lost",
    SERVER_DEAD,
];
const SERVER_DEAD: &str = "cut off, server process dead";

impl Schedule {
    fn below(&self, n: usize) -> usize {
        usize::try_from(self.dice.below(n as u64)).unwrap()
    }

    async fn pause(&self, most_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.dice.below(most_ms))).await;
    }

    async fn try_evacuation(&self) {
        let server = &self.servers[self.below(self.servers.len())];
        if self.w.evacuate(server).await.status == 200 {
            self.tally.lock().moved += 1;
        }
    }

    /// Tries all servers every second, for half a minute at most.
    async fn try_all(&self, end: Instant) {
        for _ in 0..30 {
            for server in &self.servers {
                if self.w.evacuate(server).await.status == 200 {
                    self.tally.lock().moved += 1;
                }
            }
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Declares a host dead, or takes that back, when the server is there again at the latest.
    async fn declare(&self, host: usize, down: bool) {
        let admin = "admin:adm";
        let path = format!("/v2.1/os-services/{}", self.w.hosts[host].0);
        loop {
            let client = self.w.client(admin).at("compute 2.90");
            if client.put(&path, json!({"forced_down": down})).await.status == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn begin(&self, host: usize, kind: &str) {
        match kind {
            "cut off, agent dead" => self.w.kill(host),
            "power lost" => {
                self.w.power_off(host);
                self.boots[host].fetch_add(1, Ordering::SeqCst);
                // The clock that counts leases begins anew with the boot.
                self.clocks[host].shift(skew(&self.dice, 4_000_000_000));
            }
            _ => {}
        }
        match kind {
            "declared dead alive" | "power lost" => {}
            "answers lost" => self.w.gates[host].set(Way::Deaf),
            "slow" => self.w.gates[host].set(Way::Slow(1 + self.dice.below(40_000))),
            _ => self.w.gates[host].cut(true),
        }
    }

    /// One host in trouble, from its beginning to its end.
    async fn trouble(&self) {
        let host = self.below(self.w.hosts.len());
        let kind = match self.rule {
            Rule::ClocksApart => SERVER_DEAD,
            _ => TROUBLES[self.below(TROUBLES.len())],
        };
        *self.tally.lock().troubles.entry(kind).or_default() += 1;
        self.begin(host, kind);
        if matches!(kind, "declared dead alive" | "cut off, declared dead") {
            self.declare(host, true).await;
        }
        let flaps = kind == "flapping";
        let end = Instant::now() + Duration::from_millis(self.dice.below(200_000));
        let mut restarts = usize::from(kind == SERVER_DEAD);
        while Instant::now() < end {
            self.pause(if flaps { 4_000 } else { 20_000 }).await;
            if flaps {
                self.w.gates[host].cut(self.dice.below(4) > 0);
            }
            if restarts > 0 {
                restarts -= 1;
                let _one = self.restart.lock().await;
                let (apart, away) = match self.rule {
                    Rule::ClocksApart => (TOO_FAR_MS, 2_000),
                    _ => (SERVER_SKEW_MS, 90_000),
                };
                self.server_clock.shift(skew(&self.dice, apart));
                self.w.restart(Duration::from_millis(self.dice.below(away))).await;
            }
            self.try_evacuation().await;
            if self.rule == Rule::ClocksApart {
                self.try_all(end).await;
            }
        }
        if matches!(kind, "cut off, agent dead" | "power lost") {
            self.w.revive(host);
        }
        // The way opens before or after the operator takes it back.
        for step in [self.dice.below(2), 2] {
            if step != 1 {
                self.w.gates[host].cut(false);
            }
            if step != 0 {
                self.declare(host, false).await;
            }
            self.pause(3_000).await;
            self.try_evacuation().await;
        }
        self.pause(40_000).await;
    }

    /// In the end every server runs once, and nothing is left of it elsewhere.
    async fn rest(&self) {
        let end = Instant::now() + Duration::from_secs(1200);
        loop {
            let mut guests: Vec<(String, bool)> = Vec::new();
            for ((_, host), clock) in self.w.hosts.iter().zip(&self.clocks) {
                let running = host.hypervisor.running(clock.now());
                let all = host.hypervisor.guests();
                guests.extend(all.iter().map(|g| {
                    (g.id.to_string(), g.power == PowerObserved::Running && running.contains(&g.id))
                }));
            }
            guests.sort_unstable();
            let ids = guests.iter().filter(|(_, runs)| *runs).map(|(id, _)| id);
            if guests.len() == self.servers.len() && ids.eq(&self.servers) {
                return;
            }
            assert!(Instant::now() < end, "not at rest: {guests:?} of {:?}", self.servers);
            for server in &self.servers {
                let _ = self.w.evacuate(server).await;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

/// Up to half of `ms` more or less.
fn skew(dice: &Entropy, ms: u64) -> i64 {
    i64::try_from(dice.below(ms)).unwrap() - i64::try_from(ms / 2).unwrap()
}

async fn prepare(seed: u64, rule: Rule, watch: &Arc<Watch>) -> Schedule {
    let dice = Entropy::seeded(seed);
    let start = *watch.start.get_or_init(Instant::now);
    let (count, servers) = (2 + dice.below(3), 2 + dice.below(4));
    let clocks: Vec<Arc<Crooked>> =
        (0..count).map(|_| Crooked::new(start, skew(&dice, 2_000_000_000), skew(&dice, 20_000))).collect();
    let boots: Vec<Arc<AtomicU64>> = (0..count).map(|_| Arc::default()).collect();
    let server_clock = Crooked::new(start, 0, 0);
    let at = |n: u64| usize::try_from(n).unwrap();
    let leases = |n: u64| clocks[at(n)].clone() as Arc<dyn Clock>;
    let wrap = |n: u64, host: &sim::SimHost| {
        let (inner, boots) = (host.hypervisor.clone(), boots[at(n)].clone());
        Arc::new(Watched { inner, watch: watch.clone(), boots }) as Arc<dyn Hypervisor>
    };
    let w = World::make(Plan {
        count,
        leases: if rule == Rule::Ignored { None } else { Some(&leases) },
        clock: server_clock.clone(),
        limits: reconcile::Limits { first: Duration::from_millis(100), most: Duration::from_secs(10) },
        seed: dice.u64(),
        hypervisors: Some(&wrap),
        ..Plan::default()
    })
    .await;
    if rule == Rule::Ignored {
        liars(&w);
    }
    let watched =
        w.hosts.iter().zip(&clocks).map(|((_, host), clock)| (host.hypervisor.clone(), clock.clone()));
    let _ = watch.hosts.set(watched.collect());
    let mut ids = Vec::new();
    for n in 0..servers {
        ids.push(w.boot(&format!("s{n}")).await);
    }
    ids.sort_unstable();
    let (restart, tally) = (tokio::sync::Mutex::default(), Mutex::default());
    Schedule { w, dice, clocks, boots, server_clock, servers: ids, rule, restart, tally }
}

/// Runs one schedule: troubles, two at a time at most, and then rest.
fn run(seed: u64, rule: Rule) -> Tally {
    let _named = Named(seed);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async move {
        let watch = Arc::new(Watch::default());
        let schedule = Arc::new(prepare(seed, rule, &watch).await);
        let second = schedule.clone();
        let (first, others) = (1 + schedule.dice.below(3), schedule.dice.below(3));
        let second = tokio::spawn(async move {
            second.pause(120_000).await;
            for _ in 0..others {
                second.trouble().await;
            }
        });
        for _ in 0..first {
            schedule.trouble().await;
        }
        second.await.unwrap();
        if rule != Rule::Ignored {
            schedule.rest().await;
        }
        schedule.w.halt().await;
        let mut tally = std::mem::take(&mut *schedule.tally.lock());
        let seen = watch.seen.lock();
        tally += &seen.0;
        tally.schedules = 1;
        tally.caught = u64::from(tally.double > 0);
        tally.hash = seen.1.finish();
        tally
    })
}

/// Agents that ask for leases and do not keep to them.
fn liars(w: &Arc<World>) {
    for ((id, _), gate) in w.hosts.iter().zip(&w.gates) {
        let (id, gate) = (*id, gate.clone());
        tokio::spawn(async move {
            use contract::services::ControlPlane as _;
            loop {
                let spec = gate.spec(id, 0).await;
                let generation = spec.ok().flatten().map_or(0, |s| s.generation);
                let _ = gate.lease(id, generation).await;
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        });
    }
}

/// So many schedules from the first seed on, on all processors.
fn all(first: u64, count: u64, rule: Rule) -> Tally {
    let begin = std::time::Instant::now();
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        let worker = || {
            loop {
                let n = next.fetch_add(1, Ordering::SeqCst);
                if n >= count {
                    return;
                }
                let tally = run(first + n, rule);
                if rule == Rule::Whole {
                    assert_eq!(tally.double, 0, "schedule {}: {tally}", first + n);
                }
                let mut sum = sum.lock();
                *sum += &tally;
                if sum.schedules.is_multiple_of(5_000) {
                    println!("{sum}, {:.0} s", begin.elapsed().as_secs_f64());
                }
            }
        };
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let sum = sum.into_inner();
    println!("{rule:?}: {sum}, {:.1} s", begin.elapsed().as_secs_f64());
    println!("{:?}", sum.troubles);
    sum
}

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

#[test]
fn no_partition_runs_a_server_twice() {
    if let Some(seed) = asked("ALLOD_PARTITION_SEED") {
        assert_eq!(all(seed, 1, Rule::Whole).double, 0);
        return;
    }
    let count = asked("ALLOD_PARTITIONS").unwrap_or(30);
    let sum = all(0, count, Rule::Whole);
    assert_eq!(sum.double, 0);
    assert!(sum.moved > count / 4, "{sum}: nothing was tried");
}

#[test]
fn without_the_rule_the_same_schedules_run_servers_twice() {
    let count = asked("ALLOD_PARTITIONS").map_or(12, |n| n.div_ceil(20));
    assert!(all(0, count, Rule::Ignored).caught > count / 10);
}

/// What the margin is for, and what it is not: the clocks of server processes must be kept together.
#[test]
fn server_clocks_further_apart_than_the_margin_run_servers_twice() {
    let count = asked("ALLOD_PARTITIONS").map_or(12, |n| n.div_ceil(20));
    assert!(all(0, count, Rule::ClocksApart).caught > 0);
}

#[test]
fn a_seed_replays_its_schedule() {
    for seed in [3, 4] {
        assert_eq!(run(seed, Rule::Whole), run(seed, Rule::Whole));
    }
    assert_ne!(run(3, Rule::Whole).hash, run(4, Rule::Whole).hash);
}
