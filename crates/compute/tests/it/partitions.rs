//! Random partitions in virtual time: hosts are cut off, their agents die, they are declared dead while they live, their
//! clocks run fast and slow; servers are evacuated at every chance. No server may ever run on two hosts.
//!
//! `ALLOD_PARTITIONS=100000 cargo nextest run -p compute no_partition --no-capture` is the long run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Clock, Entropy, ServerId, Timestamp};
use tokio::time::Instant;

use crate::world::World;

const HOSTS: u64 = 3;
const SERVERS: u64 = 4;

/// Virtual time with an error of its own: shifted, and running fast or slow by parts in a million.
struct Crooked {
    start: Instant,
    shift: i64,
    ppm: i64,
}

impl Clock for Crooked {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.start.elapsed().as_micros()).unwrap();
        let begin = Timestamp::from_secs(1_767_225_600 + self.shift);
        Timestamp(begin.0 + elapsed + elapsed / 1_000_000 * self.ppm)
    }
}

#[derive(Default)]
struct Tally {
    double: usize,
    looks: usize,
    moved: usize,
}

struct Schedule {
    w: Arc<World>,
    clocks: Vec<Arc<dyn Clock>>,
    dice: Entropy,
    servers: Vec<String>,
    tally: Rc<RefCell<Tally>>,
}

/// Counts servers that run on more than one host at this moment.
fn look(w: &World, clocks: &[Arc<dyn Clock>], tally: &RefCell<Tally>) {
    let mut running: BTreeMap<ServerId, u32> = BTreeMap::new();
    for ((_, host), clock) in w.hosts.iter().zip(clocks) {
        for id in host.hypervisor.running(clock.now()) {
            *running.entry(id).or_default() += 1;
        }
    }
    let mut tally = tally.borrow_mut();
    tally.looks += 1;
    tally.double += running.values().filter(|n| **n > 1).count();
}

impl Schedule {
    fn below(&self, n: u64) -> usize {
        usize::try_from(self.dice.below(n)).unwrap()
    }

    async fn pause(&self, most_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.dice.below(most_ms))).await;
    }

    async fn try_evacuation(&self) {
        let server = &self.servers[self.below(SERVERS)];
        if self.w.evacuate(server).await.status == 200 {
            self.tally.borrow_mut().moved += 1;
        }
    }

    /// One host in trouble, from its beginning to its end.
    async fn partition(&self) {
        let host = self.below(HOSTS);
        let kind = self.dice.below(5);
        // 0: cut off; 1: and the agent dies; 2: declared dead alive; 3: cut off and declared dead; 4: flapping.
        if kind == 1 {
            self.w.kill(host);
        }
        if kind != 2 {
            self.w.gates[host].cut(true);
        }
        if kind == 2 || kind == 3 {
            self.w.force(host, true).await;
        }
        let end = Instant::now() + Duration::from_millis(self.dice.below(200_000));
        while Instant::now() < end {
            self.pause(if kind == 4 { 4_000 } else { 20_000 }).await;
            if kind == 4 {
                self.w.gates[host].cut(self.dice.below(4) > 0);
            }
            self.try_evacuation().await;
        }
        if kind == 1 {
            self.w.revive(host);
        }
        for step in [self.dice.below(2), 2] {
            if step != 1 {
                self.w.gates[host].cut(false);
            }
            if step != 0 {
                self.w.force(host, false).await;
            }
            self.pause(3_000).await;
            self.try_evacuation().await;
        }
        self.pause(40_000).await;
    }

    /// In the end every server runs once.
    async fn rest(&self) {
        let end = Instant::now() + Duration::from_secs(1200);
        loop {
            let mut running: BTreeMap<String, u32> = BTreeMap::new();
            for ((_, host), clock) in self.w.hosts.iter().zip(&self.clocks) {
                for id in host.hypervisor.running(clock.now()) {
                    *running.entry(id.to_string()).or_default() += 1;
                }
            }
            if self.servers.iter().all(|s| running.get(s) == Some(&1)) {
                return;
            }
            assert!(Instant::now() < end, "not at rest: {running:?}");
            for server in &self.servers {
                let _ = self.w.evacuate(server).await;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

/// Runs so many partitions, two at a time at most.
fn run(seed: u64, partitions: u64, obey: bool) -> Tally {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let start = Instant::now();
        let dice = Entropy::seeded(seed);
        let crooked = |_: u64| {
            let shift = i64::try_from(dice.below(2_000_000)).unwrap() - 1_000_000;
            let ppm = i64::try_from(dice.below(20_000)).unwrap() - 10_000;
            Arc::new(Crooked { start, shift, ppm }) as Arc<dyn Clock>
        };
        let clocks: Vec<Arc<dyn Clock>> = (0..HOSTS).map(crooked).collect();
        let of = |n: u64| clocks[usize::try_from(n).unwrap()].clone();
        let server_clock = Arc::new(Crooked { start, shift: 0, ppm: 0 });
        let config = compute::Config::default();
        let leases: Option<&(dyn Fn(u64) -> Arc<dyn Clock> + Sync)> = if obey { Some(&of) } else { None };
        let w = World::make(HOSTS, config, true, leases, server_clock).await;
        if !obey {
            liars(&w);
        }
        let mut servers = Vec::new();
        for n in 0..SERVERS {
            servers.push(w.boot(&format!("s{n}")).await);
        }
        let tally: Rc<RefCell<Tally>> = Rc::default();
        let (w2, clocks2, tally2) = (w.clone(), clocks.clone(), tally.clone());
        let watcher = tokio::task::spawn_local(async move {
            loop {
                look(&w2, &clocks2, &tally2);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let schedule = Rc::new(Schedule { w, clocks, dice, servers, tally: tally.clone() });
        for _ in 0..partitions / 2 {
            let second = schedule.clone();
            let second = tokio::task::spawn_local(async move {
                second.pause(120_000).await;
                second.partition().await;
            });
            schedule.partition().await;
            second.await.unwrap();
        }
        if obey {
            schedule.rest().await;
        }
        watcher.abort();
        tally.take()
    })
}

/// Agents that ask for leases and do not keep to them.
fn liars(w: &Arc<World>) {
    for ((id, _), gate) in w.hosts.iter().zip(&w.gates) {
        let (id, gate) = (*id, gate.clone());
        tokio::task::spawn_local(async move {
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

#[test]
fn no_partition_runs_a_server_twice() {
    let asked = std::env::var("ALLOD_PARTITIONS").ok().and_then(|n| n.parse().ok());
    let partitions: u64 = asked.unwrap_or(120);
    let begin = std::time::Instant::now();
    let each = partitions.min(2000);
    let (mut double, mut looks, mut moved, mut done) = (0, 0, 0, 0);
    for seed in 0..partitions.div_ceil(each) {
        let tally = run(seed, each, true);
        double += tally.double;
        looks += tally.looks;
        moved += tally.moved;
        done += each;
        println!(
            "seed {seed}: {done} partitions, {moved} evacuations, {looks} looks, {double} double runs, {:.0} s",
            begin.elapsed().as_secs_f64()
        );
        assert_eq!(double, 0, "seed {seed}");
    }
    assert!(moved as u64 > partitions / 10, "{moved} evacuations: nothing was tried");
}

#[test]
fn without_the_rule_the_same_partitions_run_servers_twice() {
    let tally = run(0, 40, false);
    println!("{} evacuations, {} double runs in {} looks", tally.moved, tally.double, tally.looks);
    assert!(tally.double > 0);
}
