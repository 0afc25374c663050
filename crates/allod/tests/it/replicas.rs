//! Three servers on one PostgreSQL behind a TCP balancer, with simulated hosts on the real link, under load: one is
//! killed after the other, one is stopped for longer than its leases and comes back, the database is restarted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::api::{Answer, Api, until};
use crate::postgres;

const LEASE: u64 = 3;
const HOSTS: usize = 4;

/// Passes connections on, to one backend after the other; one that refuses is left out.
async fn balance(listener: TcpListener, backends: Arc<Mutex<Vec<SocketAddr>>>) {
    let turn = AtomicUsize::new(0);
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let first = turn.fetch_add(1, Ordering::SeqCst);
        let backends = backends.lock().clone();
        tokio::spawn(async move {
            for n in 0..backends.len() {
                let Ok(mut server) = TcpStream::connect(backends[(first + n) % backends.len()]).await else {
                    continue;
                };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                return;
            }
        });
    }
}

struct Process {
    child: Child,
    state: PathBuf,
    role: &'static str,
    config: PathBuf,
}

impl Process {
    fn start(role: &'static str, dir: &Path, name: &str, config: &str) -> Self {
        let file = dir.join(format!("{name}.toml"));
        std::fs::write(&file, config).unwrap();
        let state = dir.join(name);
        let child = Self::spawn(role, &state, &file);
        Process { child, state, role, config: file }
    }

    fn spawn(role: &str, state: &Path, config: &Path) -> Child {
        let log =
            std::fs::File::options().create(true).append(true).open(config.with_extension("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_allod"));
        command.arg(role).arg("--state").arg(state).arg("--config").arg(config);
        command.stderr(log).env("ALLOD_LOG", "info").spawn().unwrap()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = std::fs::remove_file(self.state.join("run/listening"));
    }

    fn again(&mut self) {
        self.child = Self::spawn(self.role, &self.state, &self.config);
    }

    async fn listens(&self) -> SocketAddr {
        let file = self.state.join("run/listening");
        until("a replica listens", Duration::from_secs(90), async || file.exists()).await;
        let config: Value =
            serde_json::from_slice(&std::fs::read(self.state.join("config.json")).unwrap()).unwrap();
        config["listen"].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.child.id().to_string()]).output();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.config.with_extension("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!(
                "== {}\n{}",
                self.config.display(),
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
    }
}

/// What clients were told.
#[derive(Default)]
struct Books {
    /// Networks that were acknowledged, and whether their deletion was.
    networks: Mutex<BTreeMap<String, bool>>,
    servers: Mutex<BTreeSet<String>>,
    /// Requests without an answer, and when.
    nothing: Mutex<Vec<Instant>>,
    /// Answers that say that it is the cloud's fault.
    failures: Mutex<Vec<(Instant, String)>>,
    refused: AtomicUsize,
    answered: AtomicUsize,
    stop: AtomicBool,
}

impl Books {
    fn note(&self, answer: Answer) -> Option<(u16, Value)> {
        match answer {
            Answer::Nothing => {
                self.nothing.lock().push(Instant::now());
                None
            }
            Answer::Told(status, body) if status >= 500 => {
                self.failures.lock().push((Instant::now(), format!("{status} {body}")));
                None
            }
            Answer::Told(status, body) => {
                self.answered.fetch_add(1, Ordering::SeqCst);
                if status >= 400 {
                    self.refused.fetch_add(1, Ordering::SeqCst);
                }
                Some((status, body))
            }
        }
    }
}

async fn networks(api: Api, books: Arc<Books>, worker: usize) {
    let mut n = 0;
    while !books.stop.load(Ordering::SeqCst) {
        let body = json!({"network": {"name": format!("w{worker}-{n}")}});
        n += 1;
        let made = books.note(api.call("POST", "/network/v2.0/networks", Some(body)).await);
        let Some((201, body)) = made else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let id = body["network"]["id"].as_str().unwrap().to_owned();
        books.networks.lock().insert(id.clone(), false);
        if n % 10 == 0 {
            continue;
        }
        let path = format!("/network/v2.0/networks/{id}");
        match books.note(api.call("DELETE", &path, None).await) {
            Some((204 | 404, _)) => drop(books.networks.lock().insert(id, true)),
            Some((409, _)) => {}
            Some((status, body)) => panic!("DELETE {path}: {status} {body}"),
            // Whether it was done is not known.
            None => drop(books.networks.lock().remove(&id)),
        }
    }
}

async fn servers(api: Api, books: Arc<Books>, body: Value) {
    while !books.stop.load(Ordering::SeqCst) && books.servers.lock().len() < 400 {
        let made = books.note(api.call("POST", "/compute/v2.1/servers", Some(body.clone())).await);
        if let Some((202, body)) = &made {
            books.servers.lock().insert(body["server"]["id"].as_str().unwrap().to_owned());
        } else if let Some((status, body)) = made {
            // Others kept being faster: to be asked again.
            assert_eq!(status, 409, "a server is refused: {body}");
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Servers in the ledgers of the hosts, by host.
fn ledgers(agents: &Path) -> Vec<BTreeSet<String>> {
    let one = |n: usize| {
        let text = std::fs::read(agents.join(format!("sim/{n}/ledger.json"))).unwrap();
        let ledger: Value = serde_json::from_slice(&text).unwrap();
        let servers = ledger["spec"]["servers"].as_array().cloned().unwrap_or_default();
        servers.iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
    };
    (1..=HOSTS).map(one).collect()
}

async fn quotas(admin: &Api, project: &str) {
    let path = format!("/compute/v2.1/os-quota-sets/{project}");
    let body = json!({"quota_set": {"instances": 1000, "cores": 10000, "ram": 10_000_000}});
    assert!(matches!(admin.call("PUT", &path, Some(body)).await, Answer::Told(200, _)));
    let path = format!("/network/v2.0/quotas/{project}");
    let body = json!({"quota": {"network": 100_000, "port": 100_000}});
    assert!(matches!(admin.call("PUT", &path, Some(body)).await, Answer::Told(200, _)));
}

async fn server_body(api: &Api) -> Value {
    let image = api.get("/image/v2/images?name=mini").await["images"][0]["id"].clone();
    let network = api.get("/network/v2.0/networks?name=private").await["networks"][0]["id"].clone();
    let flavors = api.get("/compute/v2.1/flavors?sort_key=memory_mb&limit=1").await;
    json!({"server": {"name": "load", "imageRef": image, "flavorRef": flavors["flavors"][0]["id"],
        "networks": [{"uuid": network}]}})
}

/// Whichever replica is asked, the one that works on the host acts, and soon.
async fn every_replica_reaches_every_host(demo: &Api, backends: &[SocketAddr], body: &Value) {
    for address in backends {
        let api = demo.at(&format!("https://{address}"));
        let made = api.make("/compute/v2.1/servers", body.clone()).await;
        let path = format!("/compute/v2.1/servers/{}", made["server"]["id"].as_str().unwrap());
        // Far less than the half minute that a host's question for news is held.
        let active = async || api.get(&path).await["server"]["status"] == "ACTIVE";
        until("a change made anywhere wakes the host", Duration::from_secs(15), active).await;
        for other in backends {
            let api = demo.at(&format!("https://{other}"));
            let ask = json!({"os-getConsoleOutput": {"length": 5}});
            let answer = api.call("POST", &format!("{path}/action"), Some(ask)).await;
            assert!(matches!(answer, Answer::Told(200, _)), "{address} by {other}: {answer:?}");
        }
        let ask = json!({"console_log": {"server": made["server"]["id"], "length": 5}});
        let answer = api.call("POST", "/agent/v1/ask", Some(ask)).await;
        assert!(matches!(answer, Answer::Told(401, _)), "only replicas may ask: {answer:?}");
    }
}

/// The errors of the moments around a restart of the database, and all others.
fn split(errors: &[(Instant, String)], from: Instant, to: Instant) -> (usize, Vec<String>) {
    let (during, others): (Vec<_>, Vec<_>) = errors.iter().partition(|(at, _)| *at >= from && *at <= to);
    (during.len(), others.into_iter().map(|(_, text)| text.clone()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one story, told from top to bottom")]
async fn three_replicas_lose_nothing_whatever_falls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut database = postgres::Server::start();
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let config = format!(
        "listen = \"127.0.0.1:0\"\nbcrypt_rounds = 4\nsim_hosts = {HOSTS}\npublic_url = \"{url}\"\n\
         database = \"{}\"\n[replica]\nshared_dir = \"{}\"\nlease_secs = {LEASE}\n",
        database.url(),
        dir.path().join("shared").display()
    );
    let mut replicas: Vec<Process> =
        ["a", "b", "c"].iter().map(|name| Process::start("server", dir.path(), name, &config)).collect();
    let backends = Arc::new(Mutex::new(Vec::new()));
    for replica in &replicas {
        let address = replica.listens().await;
        backends.lock().push(address);
    }
    tokio::spawn(balance(listener, backends.clone()));
    let agents = Process::start("sim-agents", dir.path(), "agents", &config);

    let secrets: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("shared/secrets.json")).unwrap()).unwrap();
    let http = crate::client(&std::fs::read_to_string(dir.path().join("shared/pki/ca.crt")).unwrap());
    let login = async |user: &str| {
        let password = secrets[user].as_str().unwrap().to_owned();
        Api::login(http.clone(), &url, user, &password).await.unwrap()
    };
    let (demo, admin) = (login("demo").await, login("admin").await);
    let project = demo.get("/identity/v3/auth/projects").await["projects"][0]["id"].clone();
    quotas(&admin, project.as_str().unwrap()).await;
    let body = server_body(&demo).await;
    let up = async || {
        let hosts = admin.get("/compute/v2.1/os-services?binary=nova-compute").await;
        hosts["services"].as_array().unwrap().iter().filter(|s| s["state"] == "up").count() == HOSTS
    };
    until("all hosts report", Duration::from_secs(60), up).await;

    let books = Arc::new(Books::default());
    let mut workers: Vec<_> =
        (0..2).map(|n| tokio::spawn(networks(demo.clone(), books.clone(), n))).collect();
    workers.push(tokio::spawn(servers(demo.clone(), books.clone(), body.clone())));
    let pause = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    let begin = Instant::now();
    pause(3).await;
    // `make test` has three; the long run kills one every five seconds for two minutes.
    let rounds: usize = std::env::var("ALLOD_TEST_KILLS").map_or(3, |n| n.parse().unwrap());
    for round in 0..rounds {
        let replica = &mut replicas[round % 3];
        replica.kill();
        pause(LEASE + 1).await;
        replica.again();
        replica.listens().await;
        pause(1).await;
    }
    // It is stopped, its work is taken over, it comes back and thinks that nothing happened.
    let (stopped_at, held) = (Instant::now(), backends.lock().remove(0));
    replicas[0].signal("-STOP");
    pause(3 * LEASE).await;
    replicas[0].signal("-CONT");
    backends.lock().push(held);
    let stopped_until = Instant::now() + Duration::from_secs(1);
    pause(3).await;
    let restart_from = Instant::now();
    database.restart();
    let restart_to = Instant::now() + Duration::from_secs(3);
    pause(6).await;
    books.stop.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    let seconds = begin.elapsed().as_secs_f64();

    // What was acknowledged is there, what was acknowledged to be gone is not.
    let listed = demo.get("/network/v2.0/networks?fields=id").await;
    let there: BTreeSet<String> =
        listed["networks"].as_array().unwrap().iter().map(|n| n["id"].as_str().unwrap().to_owned()).collect();
    for (id, deleted) in books.networks.lock().iter() {
        assert_eq!(there.contains(id), !deleted, "network {id}, deleted: {deleted}");
    }
    let acknowledged = books.servers.lock().clone();
    let settled = async || {
        let list = demo.get("/compute/v2.1/servers/detail?limit=1000").await;
        let servers = list["servers"].as_array().unwrap();
        let active: BTreeSet<String> = servers
            .iter()
            .inspect(|s| assert_ne!(s["status"], "ERROR", "{s}"))
            .filter(|s| s["status"] == "ACTIVE")
            .map(|s| s["id"].as_str().unwrap().to_owned())
            .collect();
        acknowledged.is_subset(&active) && active.len() == servers.len()
    };
    until("every server is active", Duration::from_secs(60), settled).await;
    let addresses = backends.lock().clone();
    every_replica_reaches_every_host(&demo, &addresses, &body).await;
    let held = ledgers(&agents.state);
    let all: BTreeSet<String> = held.iter().flatten().cloned().collect();
    assert_eq!(held.iter().map(BTreeSet::len).sum::<usize>(), all.len(), "no server on two hosts");
    assert!(acknowledged.is_subset(&all));

    // Errors of the cloud only while its database was away.
    let failures = books.failures.lock();
    let (during, others) = split(&failures, restart_from, restart_to);
    let (answered, refused) = (books.answered.load(Ordering::SeqCst), books.refused.load(Ordering::SeqCst));
    let nothing = books.nothing.lock();
    let stopped = nothing.iter().filter(|at| (stopped_at..stopped_until).contains(*at)).count();
    println!(
        "{answered} answers in {seconds:.0} s ({refused} of them 4xx), {} networks and {} servers acknowledged; \
         {} requests without an answer ({stopped} while a replica was stopped), {during} failures while the \
         database restarted, {} others",
        books.networks.lock().len(),
        acknowledged.len(),
        nothing.len(),
        others.len()
    );
    assert!(others.is_empty(), "{others:?}");
    assert!(answered > 300 && acknowledged.len() > 20, "there was load");
}
