//! A server is given to another host only when its own cannot run it any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api::testing::Answer;
use base::{Clock, Entropy, ServerId, SystemClock};
use contract::drivers::Hypervisor as _;
use contract::services::ControlPlane as _;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::world::World;

fn short() -> compute::Config {
    compute::Config {
        lease: Duration::from_millis(300),
        lease_margin: Duration::from_millis(150),
        ..compute::Config::default()
    }
}

impl World {
    pub async fn evacuate(&self, id: &str) -> Answer {
        let admin = self.client("admin:adm").at("compute 2.90");
        admin.post(&format!("/v2.1/servers/{id}/action"), json!({"evacuate": {}})).await
    }

    pub async fn force(&self, host: usize, down: bool) {
        let admin = self.client("admin:adm").at("compute 2.90");
        let path = format!("/v2.1/os-services/{}", self.hosts[host].0);
        let _ = admin.put(&path, json!({"forced_down": down})).await.expect(200);
    }

    async fn host_of(&self, id: &str) -> Option<usize> {
        let name = self.show(id).await.at("/server/OS-EXT-SRV-ATTR:hypervisor_hostname").clone();
        let number = name.as_str()?.strip_prefix("sim-")?.parse().unwrap();
        Some(number)
    }

    async fn has(&self, host: usize, id: &str) -> bool {
        let id: ServerId = id.parse().unwrap();
        self.hosts[host].1.hypervisor.observe().await.unwrap().iter().any(|g| g.id == id)
    }
}

/// Looks all the time for servers whose guests run on two hosts.
struct Watcher {
    found: Arc<Mutex<Vec<ServerId>>>,
    looks: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watcher {
    fn new(w: &Arc<World>) -> Self {
        let (found, looks, stop) = (Arc::default(), Arc::default(), Arc::default());
        let (w, f, l, s): (_, Arc<Mutex<Vec<_>>>, Arc<AtomicUsize>, Arc<AtomicBool>) =
            (w.clone(), Arc::clone(&found), Arc::clone(&looks), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !s.load(Ordering::SeqCst) {
                let mut running: BTreeMap<ServerId, u32> = BTreeMap::new();
                // One moment for all hosts.
                let now = SystemClock.now();
                for (_, host) in &w.hosts {
                    for id in host.hypervisor.running(now) {
                        *running.entry(id).or_default() += 1;
                    }
                }
                f.lock().extend(running.iter().filter(|(_, n)| **n > 1).map(|(id, _)| *id));
                l.fetch_add(1, Ordering::SeqCst);
                std::thread::park_timeout(Duration::from_micros(100));
            }
        });
        Watcher { found, looks, stop, thread: Some(thread) }
    }

    fn end(mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        (self.found.lock().len(), self.looks.load(Ordering::SeqCst))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_host_gives_its_servers_only_with_proof() {
    let w = World::leased(2, short()).await;
    let id = w.boot("one").await;
    let watcher = Watcher::new(&w);
    let old = w.host_of(&id).await.unwrap();
    let before = w.nets.ports.lock().clone();
    let live = w.evacuate(&id).await.expect(400);
    assert!(live.text().contains("still in use"), "{}", live.text());
    w.gates[old].cut(true);
    w.force(old, true).await;
    let early = w.evacuate(&id).await.expect(409);
    assert!(early.text().contains("lease"), "{}", early.text());
    assert_eq!(
        w.show(&id).await.at("/server/OS-EXT-STS:task_state"),
        Value::Null,
        "a refusal changes nothing"
    );
    w.until("proof", || async { w.evacuate(&id).await.status == 200 }).await;
    let again = w.evacuate(&id).await.status;
    assert!([400, 409].contains(&again), "it is on its way, or there already: {again}");
    w.wait(&id, "ACTIVE").await;
    let new = w.host_of(&id).await.unwrap();
    assert_ne!(new, old);
    assert!(
        w.has(new, &id).await && w.has(old, &id).await,
        "the old host still has its guest, standing still"
    );
    let after = w.nets.ports.lock().clone();
    for (port, info) in &before {
        let now = &after[port];
        assert_eq!((now.mac, &now.fixed_ips, &now.device_id), (info.mac, &info.fixed_ips, &info.device_id));
        assert_eq!(now.host.as_deref(), Some(format!("sim-{new}").as_str()));
    }
    w.gates[old].cut(false);
    w.force(old, false).await;
    w.until("the old host lets go", || async { !w.has(old, &id).await }).await;
    w.until("it carries leases again", || async {
        w.state.lease(w.hosts[old].0, u64::MAX).await.is_err()
            && w.show(&id).await.text_at("/server/status") == "ACTIVE"
    })
    .await;
    let used = |host: usize| {
        use contract::services::Placement as _;
        w.placement.usage(base::ResourceProviderId(w.hosts[host].0.0))
    };
    assert!(used(old).await.unwrap().values().all(|n| *n == 0), "its claim is given back");
    assert!(used(new).await.unwrap().values().any(|n| *n > 0));
    let (double, looks) = watcher.end();
    assert!(double == 0 && looks > 10, "{double} double runs in {looks} looks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_follow_is_refused_with_its_reason() {
    let w = World::leased(2, short()).await;
    let id = w.boot("one").await;
    let host = w.host_of(&id).await.unwrap();
    let volume = w.vols.add("p1", w.hosts[host].0);
    let path = format!("/v2.1/servers/{id}/os-volume_attachments");
    let _ = w.member().post(&path, json!({"volumeAttachment": {"volumeId": volume}})).await.expect(200);
    w.until("in use", || async { w.vols.status(volume) == "in-use" }).await;
    w.gates[host].cut(true);
    w.force(host, true).await;
    let refused = w.evacuate(&id).await.expect(409);
    assert!(refused.text().contains("volumes"), "{}", refused.text());
    let member = w.act(&id, json!({"evacuate": {}})).await;
    assert_eq!(member.status, 403, "only administrators");
    let old = w.client("admin:adm").at("compute 2.13");
    let path = format!("/v2.1/servers/{id}/action");
    for (body, status) in [
        (json!({"onSharedStorage": true}), 400),
        (json!({"host": "nowhere"}), 404),
        (json!({"host": format!("sim-{host}")}), 400),
        (json!({"force": true}), 400),
        (json!({"colour": "red"}), 400),
    ] {
        let answer = old.post(&path, json!({"evacuate": body})).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_leases_proves_nothing() {
    let w = World::new(2).await;
    let id = w.boot("one").await;
    let host = w.host_of(&id).await.unwrap();
    w.gates[host].cut(true);
    w.force(host, true).await;
    let refused = w.evacuate(&id).await.expect(409);
    assert!(refused.text().contains("never held a lease"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_declared_dead_gets_no_lease() {
    let w = World::leased(1, short()).await;
    let host = w.hosts[0].0;
    w.force(0, true).await;
    let refused = || async { w.state.lease(host, 0).await.is_err_and(|e| e.kind() == base::Kind::Forbidden) };
    w.until("no lease", refused).await;
}

/// Cuts, heals, declares dead, evacuates and deletes at random; answers double runs, looks and evacuations.
async fn schedule(w: &Arc<World>, seed: u64, time: Duration) -> (usize, usize, usize) {
    let entropy = Entropy::seeded(seed);
    let mut servers = Vec::new();
    for n in 0..6 {
        servers.push(w.boot(&format!("s{n}")).await);
    }
    let watcher = Watcher::new(w);
    let (begin, mut moved) = (Instant::now(), 0);
    while begin.elapsed() < time {
        let host = usize::try_from(entropy.below(w.hosts.len() as u64)).unwrap();
        w.gates[host].cut(true);
        w.force(host, true).await;
        let (cut, length) = (Instant::now(), Duration::from_millis(entropy.below(1500)));
        while cut.elapsed() < length {
            let server = &servers[usize::try_from(entropy.below(servers.len() as u64)).unwrap()];
            moved += usize::from(w.evacuate(server).await.status == 200);
            tokio::time::sleep(Duration::from_millis(entropy.below(20))).await;
        }
        // The way opens before or after the operator takes it back.
        for step in [entropy.below(2), 2] {
            if step != 1 {
                w.gates[host].cut(false);
            }
            if step != 0 {
                w.force(host, false).await;
            }
            tokio::time::sleep(Duration::from_millis(entropy.below(100))).await;
        }
    }
    let (double, looks) = watcher.end();
    (double, looks, moved)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_schedule_of_partitions_runs_a_server_twice() {
    let w = World::leased(3, short()).await;
    let (double, looks, moved) = schedule(&w, 11, Duration::from_secs(6)).await;
    println!("{moved} evacuations, {looks} looks");
    assert!(moved > 0 && looks > 100, "{moved} evacuations, {looks} looks: nothing was tried");
    assert_eq!(double, 0);
}

/// The same with agents that ask for leases and do not keep to them: the test above can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_rule_servers_run_twice() {
    let w = World::with(3, short(), true).await;
    let liars: Vec<_> = w
        .hosts
        .iter()
        .zip(&w.gates)
        .map(|((id, _), gate)| {
            let (id, gate) = (*id, gate.clone());
            tokio::spawn(async move {
                let mut generation = 0;
                loop {
                    if let Ok(Some(spec)) = gate.spec(id, 0).await {
                        generation = generation.max(spec.generation);
                    }
                    let _ = gate.lease(id, generation).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        })
        .collect();
    let (double, _, moved) = schedule(&w, 11, Duration::from_secs(6)).await;
    liars.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(double > 0, "{moved} evacuations and no double run: the watcher sees nothing");
}
