//! Servers, hosts and a balancer as processes, clients that create and delete as fast as they are let, and books of what
//! they were told, to be compared with what is there in the end.

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

/// Simulated hosts.
pub const HOSTS: usize = 4;
/// Servers that the load makes at most.
const SERVERS: usize = 400;

/// The program under test: that of this build, or the one named by `ALLOD_TEST_BINARY`.
pub fn ours() -> PathBuf {
    std::env::var_os("ALLOD_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_allod").into(), PathBuf::from)
}

/// The program of the version before, named by `ALLOD_TEST_PREVIOUS` (see `scripts/upgrade-test`).
pub fn previous() -> Option<PathBuf> {
    std::env::var_os("ALLOD_TEST_PREVIOUS").map(PathBuf::from)
}

/// Passes connections on, to one backend after the other; one that refuses is left out.
pub async fn balance(listener: TcpListener, backends: Arc<Mutex<Vec<SocketAddr>>>) {
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

/// A role of the program, as a process.
pub struct Process {
    child: Child,
    binary: PathBuf,
    pub state: PathBuf,
    role: &'static str,
    config: PathBuf,
}

impl Process {
    pub fn start(binary: &Path, role: &'static str, dir: &Path, name: &str, config: &str) -> Self {
        Self::start_in(binary, role, dir.join(name), &dir.join(format!("{name}.toml")), config)
    }

    /// In a state directory that another role may have as well.
    pub fn start_in(binary: &Path, role: &'static str, state: PathBuf, file: &Path, config: &str) -> Self {
        std::fs::write(file, config).unwrap();
        let child = Self::spawn(binary, role, &state, file);
        Process { child, binary: binary.to_owned(), state, role, config: file.to_owned() }
    }

    fn spawn(binary: &Path, role: &str, state: &Path, config: &Path) -> Child {
        let log =
            std::fs::File::options().create(true).append(true).open(config.with_extension("log")).unwrap();
        let mut command = Command::new(binary);
        command.arg(role).arg("--state").arg(state).arg("--config").arg(config);
        command.stderr(log).env("ALLOD_LOG", "info").spawn().unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = std::fs::remove_file(self.state.join("run/listening"));
    }

    pub fn again(&mut self) {
        self.child = Self::spawn(&self.binary, self.role, &self.state, &self.config);
    }

    /// Asks it to end and waits until it has.
    pub async fn end(&mut self) {
        self.signal("-TERM");
        let role = self.role;
        let child = Mutex::new(&mut self.child);
        let ended = async || child.lock().try_wait().unwrap().is_some();
        until(&format!("the {role} ends"), Duration::from_secs(20), ended).await;
        let _ = std::fs::remove_file(self.state.join("run/listening"));
    }

    /// What is started the next time.
    pub fn binary(&mut self) -> &mut PathBuf {
        &mut self.binary
    }

    /// Another version takes its place.
    pub async fn replace(&mut self, binary: &Path) {
        self.end().await;
        self.binary = binary.to_owned();
        self.again();
    }

    pub async fn listens(&self) -> SocketAddr {
        let file = self.state.join("run/listening");
        until("a server listens", Duration::from_secs(90), async || file.exists()).await;
        let config: Value =
            serde_json::from_slice(&std::fs::read(self.state.join("config.json")).unwrap()).unwrap();
        config["listen"].as_str().unwrap().parse().unwrap()
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.config.with_extension("log")).unwrap_or_default()
    }

    /// Waits until it ended by itself; answers what it said.
    pub async fn refused(mut self) -> String {
        let child = Mutex::new(&mut self.child);
        let ended = async || child.lock().try_wait().unwrap().is_some_and(|status| !status.success());
        until("it does not start", Duration::from_secs(60), ended).await;
        self.log()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.child.id().to_string()]).output();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
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
pub struct Books {
    /// Networks that were acknowledged, and whether their deletion was.
    pub networks: Mutex<BTreeMap<String, bool>>,
    /// The same of servers.
    pub servers: Mutex<BTreeMap<String, bool>>,
    /// Requests without an answer, and when.
    pub nothing: Mutex<Vec<Instant>>,
    /// Answers that say that it is the cloud's fault.
    pub failures: Mutex<Vec<(Instant, String)>>,
    pub refused: AtomicUsize,
    pub answered: AtomicUsize,
    pub stop: AtomicBool,
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

    fn made(map: &Mutex<BTreeMap<String, bool>>) -> usize {
        map.lock().len()
    }

    /// In one line.
    pub fn summary(&self) -> String {
        format!(
            "{} answers ({} of them 4xx), {} networks and {} servers acknowledged, {} requests without an answer",
            self.answered.load(Ordering::SeqCst),
            self.refused.load(Ordering::SeqCst),
            Self::made(&self.networks),
            Self::made(&self.servers),
            self.nothing.lock().len()
        )
    }

    /// What was acknowledged is there, what was acknowledged to be gone is not; every server is on one host and active.
    pub async fn agree(&self, api: &Api, agents: &Path) {
        let listed = api.get("/network/v2.0/networks?fields=id").await;
        let ids = |list: &Value| -> BTreeSet<String> {
            list.as_array().unwrap().iter().map(|n| n["id"].as_str().unwrap().to_owned()).collect()
        };
        let there = ids(&listed["networks"]);
        for (id, deleted) in self.networks.lock().iter() {
            assert_eq!(there.contains(id), !deleted, "network {id}, deleted: {deleted}");
        }
        let held: BTreeSet<String> =
            self.servers.lock().iter().filter(|(_, deleted)| !**deleted).map(|(id, _)| id.clone()).collect();
        let gone: BTreeSet<String> =
            self.servers.lock().iter().filter(|(_, deleted)| **deleted).map(|(id, _)| id.clone()).collect();
        let settled = async || {
            let list = api.get("/compute/v2.1/servers/detail?limit=1000").await;
            let servers = list["servers"].as_array().unwrap();
            let active: BTreeSet<String> = servers
                .iter()
                .inspect(|s| assert_ne!(s["status"], "ERROR", "{s}"))
                .filter(|s| s["status"] == "ACTIVE")
                .map(|s| s["id"].as_str().unwrap().to_owned())
                .collect();
            held.is_subset(&active) && active.len() == servers.len() && active.is_disjoint(&gone)
        };
        until("every server is active or gone", Duration::from_secs(60), settled).await;
        // A host lets go of a server a moment after its row went.
        let once = async || {
            let ledgers = ledgers(agents);
            let all: BTreeSet<&String> = ledgers.iter().flatten().collect();
            assert_eq!(ledgers.iter().map(BTreeSet::len).sum::<usize>(), all.len(), "no server on two hosts");
            held.iter().all(|id| all.contains(id)) && gone.iter().all(|id| !all.contains(id))
        };
        until("hosts have what they shall", Duration::from_secs(30), once).await;
    }
}

/// Makes networks and deletes nine of ten.
pub async fn networks(api: Api, books: Arc<Books>, worker: usize) {
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
        delete(&api, &books, &path, id, &books.networks).await;
    }
}

async fn delete(api: &Api, books: &Books, path: &str, id: String, held: &Mutex<BTreeMap<String, bool>>) {
    match books.note(api.call("DELETE", path, None).await) {
        Some((204 | 404, _)) => drop(held.lock().insert(id, true)),
        Some((409, _)) => {}
        Some((status, body)) => panic!("DELETE {path}: {status} {body}"),
        // Whether it was done is not known.
        None => drop(held.lock().remove(&id)),
    }
}

/// Makes servers and deletes one of three.
pub async fn servers(api: Api, books: Arc<Books>, body: Value) {
    let mut last: Option<String> = None;
    while !books.stop.load(Ordering::SeqCst) && books.servers.lock().len() < SERVERS {
        let made = books.note(api.call("POST", "/compute/v2.1/servers", Some(body.clone())).await);
        if let Some((202, body)) = &made {
            let id = body["server"]["id"].as_str().unwrap().to_owned();
            books.servers.lock().insert(id.clone(), false);
            if books.servers.lock().len().is_multiple_of(3)
                && let Some(last) = last.take()
            {
                delete(&api, &books, &format!("/compute/v2.1/servers/{last}"), last.clone(), &books.servers)
                    .await;
            }
            last = Some(id);
        } else if let Some((status, body)) = made {
            // Others kept being faster: to be asked again.
            assert_eq!(status, 409, "a server is refused: {body}");
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Two clients of networks and one of servers.
pub fn clients(api: &Api, books: &Arc<Books>, body: &Value) -> Vec<tokio::task::JoinHandle<()>> {
    let mut workers: Vec<_> = (0..2).map(|n| tokio::spawn(networks(api.clone(), books.clone(), n))).collect();
    workers.push(tokio::spawn(servers(api.clone(), books.clone(), body.clone())));
    workers
}

/// Servers in the ledgers of the hosts, by host.
pub fn ledgers(agents: &Path) -> Vec<BTreeSet<String>> {
    let one = |n: usize| {
        let text = std::fs::read(agents.join(format!("sim/{n}/ledger.json"))).unwrap();
        let ledger: Value = serde_json::from_slice(&text).unwrap();
        let servers = ledger["spec"]["servers"].as_array().cloned().unwrap_or_default();
        servers.iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
    };
    (1..=HOSTS).map(one).collect()
}

/// The demo user and the administrator of the cloud with these passwords and this CA.
pub async fn logins(base: &Path, url: &str) -> (Api, Api) {
    let secrets: Value = serde_json::from_slice(&std::fs::read(base.join("secrets.json")).unwrap()).unwrap();
    let http = crate::client(&std::fs::read_to_string(base.join("pki/ca.crt")).unwrap());
    let login = async |user: &str| Api::login(http.clone(), url, user, secrets[user].as_str().unwrap()).await;
    (login("demo").await.unwrap(), login("admin").await.unwrap())
}

/// Room for the load.
pub async fn quotas(admin: &Api, demo: &Api) {
    let project = demo.get("/identity/v3/auth/projects").await["projects"][0]["id"].clone();
    let project = project.as_str().unwrap();
    let path = format!("/compute/v2.1/os-quota-sets/{project}");
    let body = json!({"quota_set": {"instances": 1000, "cores": 10000, "ram": 10_000_000}});
    assert!(matches!(admin.call("PUT", &path, Some(body)).await, Answer::Told(200, _)));
    let path = format!("/network/v2.0/quotas/{project}");
    let body = json!({"quota": {"network": 100_000, "port": 100_000}});
    assert!(matches!(admin.call("PUT", &path, Some(body)).await, Answer::Told(200, _)));
}

/// What a server is asked for with.
pub async fn server_body(api: &Api) -> Value {
    let image = api.get("/image/v2/images?name=mini").await["images"][0]["id"].clone();
    let network = api.get("/network/v2.0/networks?name=private").await["networks"][0]["id"].clone();
    let flavors = api.get("/compute/v2.1/flavors?sort_key=memory_mb&limit=1").await;
    json!({"server": {"name": "load", "imageRef": image, "flavorRef": flavors["flavors"][0]["id"],
        "networks": [{"uuid": network}]}})
}

/// Waits until every host is up.
pub async fn all_up(admin: &Api) {
    let up = async || {
        let hosts = admin.get("/compute/v2.1/os-services?binary=nova-compute").await;
        hosts["services"].as_array().unwrap().iter().filter(|s| s["state"] == "up").count() == HOSTS
    };
    until("all hosts report", Duration::from_secs(60), up).await;
}
