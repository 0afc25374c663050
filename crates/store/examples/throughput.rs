//! Writes and reads per second, and CPU time per operation.
//!
//!     cargo run --release -p store --example throughput [URL] [SECONDS]
//!
//! URL is `sqlite:///path` or `postgresql://…`; without one, a file in a temporary directory. CPU time is of this
//! process alone: PostgreSQL's is not in it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::{Entropy, ProjectId, ServerId, SystemClock};
use store::{Migration, Order, Query, Step, Store};

store::resource! {
    /// As large as a server is.
    pub struct Machine, table "machines", id ServerId {
        unique: [[name]],
        index: [project_id, status],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Name.
        pub name: String,
        /// Status.
        pub status: String,
        /// The rest.
        pub metadata: Vec<(String, String)>,
    }
}

const MIGRATIONS: &[Migration] = &[Migration::new(1, "machines", &[Step::table::<Machine>()])];

fn machine(entropy: &Entropy, project: u64) -> Machine {
    let id = ServerId::random(entropy);
    Machine {
        id,
        meta: store::Meta::default(),
        project_id: ProjectId::new(format!("project{project}")),
        name: format!("machine-{id}"),
        status: "ACTIVE".into(),
        metadata: (0..10).map(|n| (format!("key{n}"), format!("some value {n}"))).collect(),
    }
}

/// CPU seconds of this process, from `/proc/self/stat` (in ticks of 10 ms).
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Runs `tasks` loops of `work` for `time` and prints what they did.
async fn measure<F, Fut>(name: &str, tasks: usize, time: Duration, work: F)
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let done = Arc::new(AtomicUsize::new(0));
    let (began, cpu_before) = (Instant::now(), cpu());
    let loops: Vec<_> = (0..tasks)
        .map(|_| {
            let (work, done) = (work.clone(), done.clone());
            tokio::spawn(async move {
                while began.elapsed() < time {
                    work().await;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for one in loops {
        one.await.unwrap();
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu() - cpu_before);
    #[expect(clippy::cast_precision_loss, reason = "a figure to be read")]
    let n = done.load(Ordering::Relaxed) as f64;
    println!(
        "{name:<38} {tasks:>4} at once {:>9.0} /s {:>8.1} µs CPU each {:>8.2} ms each",
        n / seconds,
        cpu / n * 1e6,
        seconds * 1e3 * f64::from(u32::try_from(tasks).unwrap()) / n
    );
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let dir = tempfile::tempdir().unwrap();
    let url = args.next().unwrap_or_else(|| format!("sqlite://{}/bench.sqlite", dir.path().display()));
    let time = Duration::from_secs_f64(args.next().map_or(2.0, |s| s.parse().unwrap()));
    let entropy = Entropy::system();
    let schemas = [("bench", MIGRATIONS)];
    let store = Store::open(&url, Arc::new(SystemClock), entropy.clone(), &schemas).await.unwrap();
    let mut ids = Vec::new();
    for project in 0..20 {
        let many: Vec<Machine> = (0..500).map(|_| machine(&entropy, project)).collect();
        ids.extend(many.iter().map(|m| m.id));
        store.write(move |tx| many.iter().cloned().try_for_each(|mut m| tx.insert(&mut m))).await.unwrap();
    }
    let ids = Arc::new(ids);
    for tasks in [1, 16, 128] {
        let (s, e) = (store.clone(), entropy.clone());
        measure("insert, durable", tasks, time, move || {
            let (store, machine) = (s.clone(), machine(&e, 1000));
            async move { store.write(move |tx| tx.insert(&mut machine.clone())).await.unwrap() }
        })
        .await;
    }
    let (s, e, known) = (store.clone(), entropy.clone(), ids.clone());
    measure("read, update, wake, durable", 128, time, move || {
        let id = known[usize::try_from(e.below(known.len() as u64)).unwrap()];
        let store = s.clone();
        async move {
            let work = move |tx: &mut store::Tx<'_>| {
                let mut machine = tx.need::<Machine>(&id)?;
                machine.status = "SHUTOFF".into();
                tx.wake("machine", id);
                tx.update(&mut machine)
            };
            store.write(work).await.unwrap();
        }
    })
    .await;
    for tasks in [1, 16] {
        let (s, e, known) = (store.clone(), entropy.clone(), ids.clone());
        measure("get by id", tasks, time, move || {
            let id = known[usize::try_from(e.below(known.len() as u64)).unwrap()];
            let store = s.clone();
            async move { assert_eq!(store.read(move |tx| tx.need::<Machine>(&id)).await.unwrap().id, id) }
        })
        .await;
    }
    for limit in [20, 500] {
        let (s, e) = (store.clone(), entropy.clone());
        measure(&format!("list {limit} of one project, newest first"), 16, time, move || {
            let query = Query::new()
                .eq("project_id", format!("project{}", e.below(20)))
                .sort("created_at", Order::Desc)
                .limit(limit);
            let store = s.clone();
            async move {
                let found = store.read(move |tx| tx.list::<Machine>(&query)).await.unwrap();
                assert_eq!(found.len(), limit);
            }
        })
        .await;
    }
}
