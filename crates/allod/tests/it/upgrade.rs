//! Versions side by side, under load. The server of this build stands for the older of two: the newer one is this test,
//! which opens the same database with one migration more for two services, rewrites all rows with fields that the servers
//! do not know, at the top and inside, and goes on writing them. In the end every field it was acknowledged is there.
//!
//! `scripts/upgrade-test REF` runs the same with a program built from an older commit (`ALLOD_TEST_PREVIOUS`): servers and
//! hosts of that version are there first and are replaced one by one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base::{Entropy, SystemClock};
use parking_lot::Mutex;
use serde_json::json;
use store::{Migration, Query, Schema, Step, Store};
use tokio::net::TcpListener;

use crate::api::{Answer, Api};
use crate::load::{self, Books, HOSTS, Process};
use crate::postgres;

mod next {
    //! Rows as a version to come has them: one field more, and one more in each of their interfaces.

    use serde_json::{Map, Value};
    use store::{Backfill, Resource, Tx};

    store::resource! {
        /// A network with a new column.
        pub struct Network, table "networks", id String {
            unique: [],
            index: [of_next],
        } {
            /// New.
            #[serde(default)]
            pub of_next: Option<String>,
            /// What there was.
            #[serde(flatten)]
            pub rest: Map<String, Value>,
        }
    }

    store::resource! {
        /// A server with a new column.
        pub struct Server, table "compute_servers", id String {
            unique: [],
            index: [of_next],
        } {
            /// New.
            #[serde(default)]
            pub of_next: Option<String>,
            /// What there was.
            #[serde(flatten)]
            pub rest: Map<String, Value>,
        }
    }

    /// Both kinds of rows.
    pub trait Next: Resource<Id = String> {
        fn mark(&mut self, mark: &str);
        fn marks(&self) -> Vec<Option<&str>>;
    }

    impl Next for Network {
        fn mark(&mut self, mark: &str) {
            self.of_next = Some(mark.to_owned());
        }

        fn marks(&self) -> Vec<Option<&str>> {
            vec![self.of_next.as_deref()]
        }
    }

    impl Next for Server {
        fn mark(&mut self, mark: &str) {
            self.of_next = Some(mark.to_owned());
            for nic in self.rest["nics"].as_array_mut().unwrap() {
                nic["of_next"] = mark.into();
            }
        }

        fn marks(&self) -> Vec<Option<&str>> {
            let nics = self.rest["nics"].as_array().unwrap();
            std::iter::once(self.of_next.as_deref())
                .chain(nics.iter().map(|n| n["of_next"].as_str()))
                .collect()
        }
    }

    /// Every row gets the field.
    pub struct Fill<T>(std::marker::PhantomData<T>);

    impl<T: Next> Backfill for Fill<T> {
        type Row = T;

        fn change(tx: &mut Tx<'_>, mut row: T) -> base::Result<()> {
            if row.marks().contains(&None) {
                row.mark("filled");
                tx.update_status(&mut row)?;
            }
            Ok(())
        }
    }
}

/// The schema of the version to come.
fn schemas() -> &'static [Schema] {
    let of_network: &[Step] =
        &[Step::table::<next::Network>(), Step::backfill::<next::Fill<next::Network>>()];
    let of_compute: &[Step] = &[Step::table::<next::Server>(), Step::backfill::<next::Fill<next::Server>>()];
    let longer = |service: &'static str, migrations: &[Migration]| -> Schema {
        let steps = match service {
            "network" => of_network,
            "compute" => of_compute,
            _ => return (service, migrations.to_vec().leak()),
        };
        let steps = steps.to_vec().leak();
        (service, [migrations, &[Migration::new(1000, "of the next version", steps)]].concat().leak())
    };
    cloud::SCHEMAS.iter().map(|(service, migrations)| longer(service, migrations)).collect::<Vec<_>>().leak()
}

/// The version to come at work: what it was acknowledged, and the revision of the row then.
#[derive(Default)]
struct Marks {
    networks: Mutex<BTreeMap<String, (String, u64)>>,
    servers: Mutex<BTreeMap<String, (String, u64)>>,
}

async fn open(url: &str) -> Store {
    Store::open(url, Arc::new(SystemClock), Entropy::system(), schemas()).await.unwrap()
}

/// Writes into the newest rows, which the servers write as well.
async fn mark<T: next::Next>(store: &Store, mark: String, count: usize) -> Vec<(String, u64)> {
    let query = Query::new().sort("created_at", store::Order::Desc).limit(count);
    let ids = store.read(move |tx| tx.list_ids::<T>(&query)).await.unwrap();
    let mut done = Vec::new();
    for id in ids {
        let mark = mark.clone();
        let written = store.write(move |tx| {
            let Some(mut row) = tx.get::<T>(&id)? else { return Ok(None) };
            row.mark(&mark);
            tx.update_status(&mut row)?;
            Ok(Some((row.id().clone(), row.meta().revision)))
        });
        // Where others keep being faster nothing was acknowledged.
        match written.await {
            Ok(written) => done.extend(written),
            Err(error) => assert_eq!(error.kind(), base::Kind::Conflict, "{error:?}"),
        }
    }
    done
}

impl Marks {
    async fn write(&self, store: &Store, round: usize, count: usize) {
        let text = format!("round {round}");
        for (id, revision) in mark::<next::Network>(store, text.clone(), count).await {
            self.networks.lock().insert(id, (text.clone(), revision));
        }
        for (id, revision) in mark::<next::Server>(store, text.clone(), count).await {
            self.servers.lock().insert(id, (text.clone(), revision));
        }
    }

    /// Every mark that was acknowledged is there; answers how many rows are, and how many of them were written by the
    /// version before after that.
    async fn check(&self, store: &Store) -> (usize, usize) {
        let (networks, servers) = (self.networks.lock().clone(), self.servers.lock().clone());
        let networks = compare::<next::Network>(store, networks).await;
        let servers = compare::<next::Server>(store, servers).await;
        (networks.0 + servers.0, networks.1 + servers.1)
    }
}

async fn compare<T: next::Next>(store: &Store, told: BTreeMap<String, (String, u64)>) -> (usize, usize) {
    let rows = store.read(|tx| tx.list::<T>(&Query::new())).await.unwrap();
    let (mut there, mut later) = (0, 0);
    for row in rows {
        let Some((mark, revision)) = told.get(row.id()) else { continue };
        assert!(
            row.marks().iter().all(|m| *m == Some(mark)),
            "{} {}: {mark}, {:?}",
            T::KIND,
            row.id(),
            row.marks()
        );
        there += 1;
        later += usize::from(row.meta().revision > *revision);
        // The column says what the row says.
        let query = Query::new().eq("of_next", mark.as_str()).eq("id", row.id().as_str());
        assert!(store.read(move |tx| tx.exists::<T>(&query)).await.unwrap());
    }
    (there, later)
}

/// Rows that the version to come wrote last are written by this one.
async fn late(books: &Books, demo: &Api) {
    let all = books.networks.lock().clone();
    for (id, _) in all.into_iter().filter(|(_, deleted)| !deleted).take(40) {
        let path = format!("/network/v2.0/networks/{id}");
        let body = json!({"network": {"description": "late"}});
        assert!(matches!(demo.call("PUT", &path, Some(body)).await, Answer::Told(200, _)));
    }
}

/// Servers behind a balancer.
struct Cloud {
    dir: tempfile::TempDir,
    url: String,
    config: String,
    servers: Vec<Process>,
    backends: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Cloud {
    async fn new(more: impl Fn(&Path) -> String) -> (Self, TcpListener) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = format!(
            "listen = \"127.0.0.1:0\"\nbcrypt_rounds = 4\nsim_hosts = {HOSTS}\npublic_url = \"{url}\"\n{}",
            more(dir.path())
        );
        (Cloud { dir, url, config, servers: Vec::new(), backends: Arc::default() }, listener)
    }

    async fn start(&mut self, binary: &Path, name: &str) {
        let server = Process::start(binary, "server", self.dir.path(), name, &self.config);
        let address = server.listens().await;
        self.servers.push(server);
        self.backends.lock().push(address);
    }

    /// Fills the database and the directory of keys from the cloud of the version before that is checked in.
    fn restore(&self, name: &str) {
        let file = self.dir.path().join("restore.toml");
        std::fs::write(&file, &self.config).unwrap();
        let mut command = std::process::Command::new(load::ours());
        command.args(["restore", "--input", crate::moving::PREVIOUS, "--config"]).arg(file);
        let output = command.arg("--state").arg(self.dir.path().join(name)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn replace(&mut self, n: usize, binary: &Path) {
        self.servers[n].replace(binary).await;
        // A version that cannot read the configuration another one kept chooses a port anew.
        let address = self.servers[n].listens().await;
        self.backends.lock()[n] = address;
    }
}

fn failures(books: &Books) -> Vec<String> {
    books.failures.lock().iter().map(|(_, text)| text.clone()).collect()
}

/// Waits until the clients had so many more answers, and have so many more servers.
async fn more(books: &Books, answers: usize, servers: usize) {
    let told = || (books.answered.load(Ordering::SeqCst), books.servers.lock().len());
    let (answered, made) = told();
    let deadline = Instant::now() + Duration::from_secs(60);
    while told().0 < answered + answers || told().1 < made + servers {
        assert!(
            Instant::now() < deadline,
            "{:?} after {:?}: {:?}",
            told(),
            (answered, made),
            failures(books)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn stop(books: &Books, workers: Vec<tokio::task::JoinHandle<()>>) {
    books.stop.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
}

async fn ready(base: &Path, url: &str) -> (Api, Api) {
    let (demo, admin) = load::logins(base, url).await;
    load::quotas(&admin, &demo).await;
    load::all_up(&admin).await;
    (demo, admin)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_two_versions_work_side_by_side() {
    let database = postgres::Server::start();
    let (new, old) = (load::ours(), load::previous());
    let first = old.clone().unwrap_or_else(|| new.clone());
    let (mut cloud, listener) = Cloud::new(|dir| {
        let shared = dir.join("shared");
        let shared = shared.display();
        format!("database = \"{}\"\n[replica]\nshared_dir = \"{shared}\"\nlease_secs = 3\n", database.url())
    })
    .await;
    if old.is_none() {
        cloud.restore("a");
    }
    for name in ["a", "b", "c"] {
        cloud.start(&first, name).await;
    }
    tokio::spawn(load::balance(listener, cloud.backends.clone()));
    let mut agents = Process::start(&first, "sim-agents", cloud.dir.path(), "agents", &cloud.config);
    let (demo, admin) = ready(&cloud.dir.path().join("shared"), &cloud.url).await;
    let body = load::server_body(&demo).await;
    let books = Arc::new(Books::default());
    let workers = load::clients(&demo, &books, &body);
    let begin = Instant::now();
    more(&books, 60, 4).await;

    let (marks, enough) = (Arc::new(Marks::default()), Arc::new(AtomicBool::new(false)));
    let next = match &old {
        Some(_) => None,
        None => {
            let (url, marks, enough) = (database.url(), marks.clone(), enough.clone());
            // Made where it runs: it cannot move between threads.
            let work = move || tokio::runtime::Handle::current().block_on(next_version(url, marks, enough));
            Some(tokio::task::spawn_blocking(work))
        }
    };
    for n in 0..3 {
        cloud.replace(n, &new).await;
        more(&books, 60, 4).await;
    }
    if let Some(old) = &old {
        // One goes back: it works on the schema of the version after it.
        cloud.replace(0, old).await;
        more(&books, 80, 5).await;
        cloud.replace(0, &new).await;
    }
    // Hosts kept their agents until here.
    agents.replace(&new).await;
    more(&books, 60, 4).await;
    enough.store(true, Ordering::SeqCst);
    let next = match next {
        Some(next) => Some(next.await.unwrap()),
        None => None,
    };
    stop(&books, workers).await;
    let seconds = begin.elapsed().as_secs();
    books.agree(&demo, &agents.state).await;
    load::all_up(&admin).await;
    println!("PostgreSQL, {seconds} s: {}, failures: {:?}", books.summary(), failures(&books));
    if let Some(store) = next {
        late(&books, &demo).await;
        let (there, later) = marks.check(&store).await;
        println!(
            "{there} rows with fields of the next version, {later} of them written by this one afterwards"
        );
        assert!(later > 10, "the versions wrote the same rows");
    }
    assert_eq!(failures(&books), Vec::<String>::new());
    assert!(books.answered.load(Ordering::SeqCst) > 300 && books.servers.lock().len() > 20, "there was load");
}

/// Brings the schema up to its own while servers work, and writes until it is enough.
async fn next_version(url: String, marks: Arc<Marks>, enough: Arc<AtomicBool>) -> Store {
    let store = open(&url).await;
    let mut round = 0;
    while !enough.load(Ordering::SeqCst) {
        marks.write(&store, round, 10).await;
        round += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_server_is_replaced_while_hosts_go_on() {
    let (new, old) = (load::ours(), load::previous());
    let first = old.clone().unwrap_or_else(|| new.clone());
    let (mut cloud, listener) = Cloud::new(|_| "sim_apart = true\n".to_owned()).await;
    if old.is_none() {
        cloud.restore("a");
    }
    cloud.start(&first, "a").await;
    tokio::spawn(load::balance(listener, cloud.backends.clone()));
    let state = cloud.dir.path().join("a");
    let file = cloud.dir.path().join("agents.toml");
    let agents = Process::start_in(&first, "sim-agents", state.clone(), &file, &cloud.config);
    let (demo, admin) = ready(&state, &cloud.url).await;
    let body = load::server_body(&demo).await;
    let books = Arc::new(Books::default());
    let workers = load::clients(&demo, &books, &body);
    let begin = Instant::now();
    more(&books, 60, 4).await;

    let marks = Marks::default();
    let database = format!("sqlite://{}", state.join("db/allod.sqlite").display());
    let mut away = Duration::ZERO;
    for round in 0..3 {
        let stopped = Instant::now();
        cloud.servers[0].end().await;
        if old.is_none() {
            // The version to come was here, and the one before comes back.
            marks.write(&open(&database).await, round, 1000).await;
        }
        // Of two versions: forth, back and forth again.
        let binary = if round == 1 { &first } else { &new };
        *cloud.servers[0].binary() = binary.clone();
        cloud.servers[0].again();
        let address = cloud.servers[0].listens().await;
        *cloud.backends.lock() = vec![address];
        away = away.max(stopped.elapsed());
        more(&books, 80, 5).await;
    }
    stop(&books, workers).await;
    let seconds = begin.elapsed().as_secs();
    books.agree(&demo, &state).await;
    load::all_up(&admin).await;
    println!(
        "SQLite, {seconds} s, away for at most {away:.1?}: {}, failures: {:?}",
        books.summary(),
        failures(&books)
    );
    assert!(!agents.log().contains("panicked"));
    if old.is_none() {
        late(&books, &demo).await;
        cloud.servers[0].end().await;
        let (there, later) = marks.check(&open(&database).await).await;
        println!(
            "{there} rows with fields of the next version, {later} of them written by this one afterwards"
        );
        assert!(later > 10, "the versions wrote the same rows");
    }
    assert_eq!(failures(&books), Vec::<String>::new());
    assert!(books.answered.load(Ordering::SeqCst) > 200 && books.servers.lock().len() > 10, "there was load");
}
