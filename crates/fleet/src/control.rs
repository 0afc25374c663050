//! The server side: the whole assembled cloud as a process that can die and be started again on the same database.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use base::{Entropy, Error, HostId, PortId, ServerId};
use cloud::{Beginning, Cloud, External, Parts, Passwords, Site};
use contract::net::{Item, Key, NetEvent, NetHost, NetworkBackend};
use contract::services::HostAccess;
use parking_lot::Mutex;
use sim::SimNetwork;
use store::{Fate, Gate, Store};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::clock::VirtualClock;
use crate::fault::Commit;
use crate::host::Machine;
use crate::trace::Trace;

/// URL of the simulated cloud.
pub const URL: &str = "https://cloud.sim";

/// One server process.
pub struct Server {
    /// The cloud.
    pub cloud: Cloud,
    /// Ends with the process.
    pub dead: CancellationToken,
}

/// What decides over a process's life.
struct Life {
    dead: CancellationToken,
    /// Transactions of all processes: reads and writes.
    transactions: Arc<(AtomicU64, AtomicU64)>,
    /// The next transaction that writes is its last.
    last: Mutex<Option<Commit>>,
    trace: Trace,
}

fn dead() -> Error {
    Error::unavailable("the server process is dead")
}

impl Gate for Life {
    fn read(&self) -> base::Result<()> {
        self.transactions.0.fetch_add(1, Ordering::Relaxed);
        if self.dead.is_cancelled() { Err(dead()) } else { Ok(()) }
    }

    fn write(&self) -> Fate {
        if self.dead.is_cancelled() {
            return Fate::Lost(dead());
        }
        self.transactions.1.fetch_add(1, Ordering::Relaxed);
        let last = self.last.lock().take();
        if let Some(commit) = last {
            self.trace.event("server", format_args!("dies {commit:?} a commit"));
            self.dead.cancel();
        }
        match last {
            None => Fate::Carry,
            Some(Commit::Before) => Fate::Lost(dead()),
            Some(Commit::After) => Fate::Unheard(dead()),
        }
    }
}

/// The backend of one process: what a dead one asks for has no effect.
struct Backend {
    fabric: Arc<SimNetwork>,
    life: Arc<Life>,
    dice: Entropy,
}

impl Backend {
    /// The way to the network's database takes a moment.
    async fn way(&self) -> base::Result<()> {
        tokio::time::sleep(Duration::from_millis(1 + self.dice.below(3))).await;
        if self.life.dead.is_cancelled() { Err(dead()) } else { Ok(()) }
    }
}

#[async_trait]
impl NetworkBackend for Backend {
    async fn apply(&self, item: &Item) -> base::Result<()> {
        self.way().await?;
        self.fabric.apply(item).await
    }
    async fn remove(&self, key: Key) -> base::Result<()> {
        self.way().await?;
        self.fabric.remove(key).await
    }
    async fn sync(&self, items: &[Item]) -> base::Result<usize> {
        self.way().await?;
        self.fabric.sync(items).await
    }
    async fn ports_up(&self) -> base::Result<BTreeSet<PortId>> {
        self.way().await?;
        self.fabric.ports_up().await
    }
    async fn hosts(&self) -> base::Result<Vec<NetHost>> {
        self.fabric.hosts().await
    }
    fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.fabric.events()
    }
}

/// The way to live hosts. Nobody reads consoles in a simulation.
#[derive(Default)]
struct Hosts(Mutex<BTreeMap<HostId, std::sync::Weak<Machine>>>);

#[async_trait]
impl HostAccess for Hosts {
    async fn console_log(&self, host: HostId, _: ServerId, _: Option<usize>) -> base::Result<String> {
        Err(Error::unavailable(format!("Host {host} is simulated.")))
    }

    async fn read_disk(
        &self,
        host: HostId,
        server: ServerId,
        disk: &str,
        offset: u64,
    ) -> base::Result<bytes::Bytes> {
        let machine = self.0.lock().get(&host).and_then(std::sync::Weak::upgrade);
        let machine = machine.ok_or_else(|| Error::unavailable(format!("Host {host} is not known.")))?;
        machine.read_disk(server, disk, offset).await
    }
}

struct Process {
    server: Arc<Server>,
    life: Arc<Life>,
}

/// The control plane: at most one server process at a time on one database.
pub struct Control {
    /// The database, as the simulator itself sees it.
    pub store: Store,
    /// The network backend.
    pub fabric: Arc<SimNetwork>,
    /// The server's clock.
    pub clock: Arc<VirtualClock>,
    site: Site,
    seed: u64,
    trace: Trace,
    process: Mutex<Option<Process>>,
    hosts: Arc<Hosts>,
    starts: Mutex<u64>,
    transactions: Arc<(AtomicU64, AtomicU64)>,
    /// Holds files of keys, images and leases.
    directory: tempfile::TempDir,
}

impl Control {
    /// An empty database, no process.
    ///
    /// # Errors
    /// Where no temporary directory can be made.
    pub async fn new(seed: u64, clock: Arc<VirtualClock>, trace: Trace) -> Result<Arc<Self>> {
        let directory = tempfile::tempdir().context("no temporary directory")?;
        let store = Store::memory(clock.clone(), cloud::SCHEMAS).await?;
        let site = Site {
            url: URL.to_owned(),
            keys: identity::Repository::Directory(directory.path().join("keys")),
            bcrypt_cost: 4,
            identity: identity::Operator::default(),
            images: directory.path().join("images"),
            fencing: cloud::Fencing::default(),
            policy: BTreeMap::new(),
        };
        Ok(Arc::new(Control {
            store,
            fabric: Arc::default(),
            clock,
            site,
            seed,
            trace,
            process: Mutex::default(),
            hosts: Arc::default(),
            starts: Mutex::default(),
            transactions: Arc::default(),
            directory,
        }))
    }

    /// Starts a server process.
    ///
    /// # Errors
    /// Where the services cannot be assembled.
    pub async fn start(&self) -> Result<()> {
        let start = {
            let mut starts = self.starts.lock();
            *starts += 1;
            *starts
        };
        let entropy = Entropy::seeded(self.seed ^ start.wrapping_mul(0xd134_2543_de82_ef95));
        let token = CancellationToken::new();
        let life = Arc::new(Life {
            dead: token.clone(),
            transactions: self.transactions.clone(),
            last: Mutex::default(),
            trace: self.trace.clone(),
        });
        let backend =
            Backend { fabric: self.fabric.clone(), life: life.clone(), dice: Entropy::seeded(entropy.u64()) };
        let parts = Parts {
            store: self.store.behind(life.clone()),
            backend: Arc::new(backend),
            hosts: Some(self.hosts.clone()),
            replica: None,
            clock: self.clock.clone(),
            entropy,
        };
        let cloud = cloud::assemble(&self.site, parts).await?;
        self.trace.event("server", format_args!("{start} starts"));
        *self.process.lock() = Some(Process { server: Arc::new(Server { cloud, dead: token }), life });
        Ok(())
    }

    /// Fills an empty cloud: catalog, flavors, external network.
    ///
    /// # Errors
    /// Where the database refuses.
    pub async fn populate(&self, admin_password: &str) -> Result<()> {
        let address = |text: &str| text.parse::<IpAddr>().context("an address");
        let beginning = Beginning {
            url: URL.to_owned(),
            region: "sim".to_owned(),
            passwords: Passwords {
                admin: admin_password.to_owned(),
                demo: admin_password.to_owned(),
                alt: admin_password.to_owned(),
            },
            external: External {
                cidr: "198.18.0.0/20".parse().context("a prefix")?,
                gateway: address("198.18.0.1")?,
                pool: Some((address("198.18.0.10")?, address("198.18.15.250")?)),
            },
            demo: true,
        };
        cloud::populate(&self.current()?.cloud, &beginning).await
    }

    /// From now on servers reach this machine.
    pub fn join(&self, machine: &Arc<Machine>) {
        self.hosts.0.lock().insert(machine.id, Arc::downgrade(machine));
    }

    /// A directory for a machine's few files.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn directory(&self, machine: &str) -> std::io::Result<std::path::PathBuf> {
        let path = self.directory.path().join(machine);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Transactions so far that the servers asked for: reads and writes.
    pub fn transactions(&self) -> (u64, u64) {
        (self.transactions.0.load(Ordering::Relaxed), self.transactions.1.load(Ordering::Relaxed))
    }

    /// The living process.
    ///
    /// # Errors
    /// `Unavailable` where there is none.
    pub fn current(&self) -> base::Result<Arc<Server>> {
        let process = self.process.lock();
        let server = process.as_ref().map(|p| &p.server).filter(|s| !s.dead.is_cancelled());
        server.cloned().ok_or_else(|| Error::unavailable("no server answers"))
    }

    /// The process dies: now, or in its next transaction that writes.
    pub fn kill(&self, commit: Option<Commit>) {
        if let Some(process) = &*self.process.lock() {
            match commit {
                None => process.life.dead.cancel(),
                Some(_) => *process.life.last.lock() = commit,
            }
        }
    }

    /// Waits until the process is dead (at most so long, then it is killed), and clears away what is left of it.
    pub async fn bury(&self, within: Duration) {
        let Some(server) = self.process.lock().as_ref().map(|p| p.server.clone()) else { return };
        let _ = tokio::time::timeout(within, server.dead.cancelled()).await;
        server.dead.cancel();
        *self.process.lock() = None;
        self.trace.event("server", "is dead");
        // How many milliseconds that takes depends on the order in which tokio wakes what waits for the stop, so it is given
        // a second whatever it takes: else a seed does not replay.
        tokio::join!(
            server.cloud.handle.stop_within(Duration::ZERO),
            tokio::time::sleep(Duration::from_secs(1))
        );
    }
}
