//! The local OVN and Open vSwitch daemons: `ovsdb-server` (Northbound, Southbound and the switch's database in one
//! process), `ovn-northd`, `ovs-vswitchd`, `ovn-controller`, from a private run directory. A host that joined another one
//! runs only what belongs to its own switch.
//!
//! Invariant: the daemons outlive this process, because guests' traffic goes through them; [`Engines::start`] adopts
//! those that run and starts those that do not. Only [`Engines::stop`], [`stop`] and [`purge`] end them, and only by
//! the pidfiles of this instance.

mod daemon;
pub(crate) mod plumbing;
pub mod underlay;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::net::IpNet;
use base::{Error, Result};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ovsdb::{Client, Config as DbConfig, Ref, Remote, Txn, Value, Watch};
use crate::record::Record;
use crate::sys;
use crate::vswitch::{self, columns};
use daemon::{Backoff, Spec};

/// The switch's datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datapath {
    /// The kernel's module.
    System,
    /// Inside `ovs-vswitchd`; needs nothing of the kernel but `AF_PACKET` and taps.
    Netdev,
}

impl Datapath {
    /// `system` if the kernel has the module (or can load it), else `netdev`.
    pub async fn probe() -> Self {
        if Path::new("/sys/module/openvswitch").exists()
            || sys::run(None, "modprobe", &["openvswitch"], "").await.is_ok()
        {
            Datapath::System
        } else {
            Datapath::Netdev
        }
    }

    /// As the switch calls it.
    pub fn name(self) -> &'static str {
        match self {
            Datapath::System => "system",
            Datapath::Netdev => "netdev",
        }
    }
}

/// The external network and how the host takes part in it.
#[derive(Debug, Clone, PartialEq)]
pub struct External {
    /// Physical network name of the bridge mapping, e.g. `public`.
    pub physical_network: String,
    /// E.g. 172.24.4.0/24.
    pub cidr: IpNet,
    /// The host's address on the bridge: the gateway of the external subnet.
    pub gateway: IpAddr,
}

/// Key and certificate with which a host speaks to the Southbound database, or that with hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of the private key.
    pub key: PathBuf,
    /// PEM file of the certificate.
    pub certificate: PathBuf,
    /// PEM file of the only CA that is trusted.
    pub ca: PathBuf,
}

/// Where the Southbound database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Southbound {
    /// Here, for this host only.
    Local,
    /// Here, and joined hosts reach it: over TLS, with the rights of `ovn-controller` on their own rows only.
    Served {
        /// Where it listens.
        listen: SocketAddr,
        /// The server's.
        tls: Tls,
    },
    /// At another host: neither Northbound nor Southbound nor `ovn-northd` run here.
    Remote {
        /// Its address.
        address: SocketAddr,
        /// This host's.
        tls: Tls,
    },
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Databases, logs and records go to `ovn` below it.
    pub state_dir: PathBuf,
    /// Names this instance among several on one machine: up to 8 of `a-z0-9`; empty for the only one.
    pub instance: String,
    /// Host name and chassis name; unique and stable.
    pub hostname: String,
    /// Underlay address for tunnels; 127.0.0.1 on a single machine.
    pub encap_ip: IpAddr,
    /// The device that has that address. The userspace datapath takes it into a bridge of its own, which then has the
    /// address, because it finds no way to other hosts else. `None`: there are no other hosts.
    pub underlay: Option<String>,
    /// The Southbound database.
    pub southbound: Southbound,
    /// The external network, if any.
    pub external: Option<External>,
    /// Named network namespace to run in; made if it is not there. With the userspace datapath each instance needs
    /// a namespace of its own: all of them call their datapath device `ovs-netdev`.
    pub netns: Option<String>,
    /// The datapath; probed if `None`.
    pub datapath: Option<Datapath>,
}

impl Config {
    /// Name of the integration bridge: `br-int`, with an instance `bi-<instance>`.
    pub fn integration_bridge(&self) -> String {
        if self.instance.is_empty() { "br-int".into() } else { format!("bi-{}", self.instance) }
    }

    /// Name of the external bridge: `br-ex`, with an instance `bx-<instance>`.
    pub fn external_bridge(&self) -> String {
        if self.instance.is_empty() { "br-ex".into() } else { format!("bx-{}", self.instance) }
    }

    /// Name of the underlay bridge: `br-phy`, with an instance `bp-<instance>`.
    pub fn underlay_bridge(&self) -> String {
        if self.instance.is_empty() { "br-phy".into() } else { format!("bp-{}", self.instance) }
    }

    fn central(&self) -> bool {
        !matches!(self.southbound, Southbound::Remote { .. })
    }

    /// Name of the nftables table: `allod`, with an instance `allod_<instance>`.
    pub fn nat_table(&self) -> String {
        if self.instance.is_empty() { "allod".into() } else { format!("allod_{}", self.instance) }
    }

    fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if self.instance.len() > 8 || !self.instance.chars().all(plain) {
            return Err(Error::bad_request("'instance' is up to 8 of a-z and 0-9"));
        }
        if self.hostname.is_empty()
            || !self.hostname.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        {
            return Err(Error::bad_request("'hostname' is no host name"));
        }
        let mapping = self.external.as_ref().map_or("", |e| e.physical_network.as_str());
        if mapping.chars().any(|c| !(c.is_ascii_alphanumeric() || "-._".contains(c))) {
            return Err(Error::bad_request("'physical_network' is letters, digits and -._"));
        }
        Ok(())
    }
}

/// Directories of an instance.
#[derive(Debug, Clone)]
struct Dirs {
    data: PathBuf,
    run: PathBuf,
    logs: PathBuf,
}

impl Dirs {
    /// A unix socket's path has at most 107 bytes; the longest name below `run` has about 30.
    fn of(state_dir: &Path) -> io::Result<Self> {
        let data = std::path::absolute(state_dir)?.join("ovn");
        let mut run = data.join("run");
        if run.as_os_str().len() > 72 {
            let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, data.as_os_str().as_bytes());
            run = Path::new("/run/allod").join(id.simple().to_string().get(..16).unwrap_or("ovn"));
        }
        Ok(Dirs { logs: data.join("log"), data, run })
    }

    fn make(&self) -> io::Result<()> {
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        [&self.data, &self.logs, &self.run].into_iter().try_for_each(|dir| private.create(dir))
    }

    fn socket(&self) -> PathBuf {
        self.run.join("db.sock")
    }
}

const OVSDB: &str = "ovsdb";
const NORTHD: &str = "northd";
const VSWITCHD: &str = "vswitchd";
const CONTROLLER: &str = "controller";
/// In the order in which they are ended.
const DAEMONS: [&str; 4] = [CONTROLLER, NORTHD, VSWITCHD, OVSDB];

/// How a daemon fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Its pid, while it runs.
    pub pid: Option<u32>,
    /// Whether it ran before this process did.
    pub adopted: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it does not run.
    pub error: Option<String>,
}

struct Shared {
    config: Config,
    datapath: Datapath,
    record: Record,
    status: Mutex<BTreeMap<&'static str, Status>>,
    stopping: watch::Sender<bool>,
}

/// The running daemons and their supervisor. Dropping it ends the supervision, not the daemons.
pub struct Engines {
    shared: Arc<Shared>,
    specs: Vec<Spec>,
    dirs: Dirs,
    tasks: Mutex<JoinSet<()>>,
}

impl Engines {
    /// Makes everything run: adopts what runs, starts what does not. Answers when the switch and its bridges are there
    /// and all daemons have said that they are ready.
    ///
    /// # Errors
    /// 400 for a bad configuration; otherwise internal, naming the daemon and its log.
    pub async fn start(config: Config) -> Result<Self> {
        config.check()?;
        let dirs = Dirs::of(&config.state_dir).map_err(Error::internal)?;
        dirs.make().map_err(Error::internal)?;
        let record = Record::open(&config.state_dir).map_err(Error::internal)?;
        let datapath = match config.datapath {
            Some(datapath) => datapath,
            None => Datapath::probe().await,
        };
        let specs = specs(&config, &dirs);
        let stopping = watch::Sender::new(false);
        let shared = Arc::new(Shared { config, datapath, record, status: Mutex::default(), stopping });
        bring_up(&shared, &specs, &dirs).await.map_err(Error::internal)?;
        let mut tasks = JoinSet::new();
        for spec in &specs {
            tasks.spawn(supervise(Arc::clone(&shared), spec.clone()));
        }
        Ok(Engines { shared, specs, dirs, tasks: Mutex::new(tasks) })
    }

    /// The database socket: Northbound, Southbound and the local switch are all served there.
    pub fn socket(&self) -> PathBuf {
        self.dirs.socket()
    }

    /// Where the sockets are; `OVN_RUNDIR=<this> ovn-nbctl show` works.
    pub fn run_dir(&self) -> &Path {
        &self.dirs.run
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The datapath in use.
    pub fn datapath(&self) -> Datapath {
        self.shared.datapath
    }

    /// Daemons by name.
    pub fn status(&self) -> BTreeMap<&'static str, Status> {
        self.shared.status.lock().clone()
    }

    /// Ends the supervision and the daemons; databases and what is plugged stay.
    ///
    /// # Errors
    /// If a daemon cannot be ended.
    pub async fn stop(&self) -> Result<()> {
        self.shared.stopping.send_replace(true);
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while tasks.join_next().await.is_some() {}
        for name in DAEMONS {
            if let Some(spec) = self.specs.iter().find(|s| s.name == name) {
                spec.stop().await.map_err(Error::internal)?;
            }
        }
        let netns = self.shared.config.netns.as_deref();
        underlay::give_back(&self.dirs.data, netns).await.map_err(Error::internal)
    }
}

/// The database socket of an instance, whether it runs or not.
pub fn socket(state_dir: &Path) -> PathBuf {
    Dirs::of(state_dir).map_or_else(|_| state_dir.join("ovn/db.sock"), |dirs| dirs.socket())
}

/// The daemons that were started in a state directory, in the order in which they would be ended, with the pid of each
/// that runs.
pub fn running(state_dir: &Path) -> Vec<(&'static str, Option<u32>)> {
    let Ok(dirs) = Dirs::of(state_dir) else { return Vec::new() };
    let pidfile = |name: &str| dirs.run.join(format!("{name}.pid"));
    let started = DAEMONS.into_iter().filter(|name| pidfile(name).exists());
    started.map(|name| (name, daemon::running(&pidfile(name)))).collect()
}

/// Ends the daemons of an instance whose supervisor is not running (any more). `netns` is where the instance ran.
///
/// # Errors
/// If a daemon cannot be ended.
pub async fn stop(state_dir: &Path, netns: Option<&str>) -> Result<()> {
    let dirs = Dirs::of(state_dir).map_err(Error::internal)?;
    for name in DAEMONS {
        daemon::stop(&dirs.run.join(format!("{name}.pid"))).await.map_err(Error::internal)?;
    }
    underlay::give_back(&dirs.data, netns).await.map_err(Error::internal)
}

/// Ends the daemons of an instance and removes everything it made: recorded taps, namespaces and tables, its run
/// directory and its databases. What is not recorded stays. `netns` is where the instance ran.
///
/// # Errors
/// If something cannot be removed; it stays recorded.
pub async fn purge(state_dir: &Path, netns: Option<&str>) -> Result<()> {
    let dirs = Dirs::of(state_dir).map_err(Error::internal)?;
    if !dirs.data.exists() {
        return Ok(());
    }
    stop(state_dir, netns).await?;
    plumbing::remove_recorded(state_dir, netns).await.map_err(Error::internal)?;
    for dir in [&dirs.run, &dirs.data] {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::internal(e)),
            _ => {}
        }
    }
    Ok(())
}

fn specs(config: &Config, dirs: &Dirs) -> Vec<Spec> {
    let socket = format!("unix:{}", dirs.socket().display());
    let spec = |name, program, unixctl| Spec {
        name,
        program,
        args: vec![],
        run: dirs.run.clone(),
        logs: dirs.logs.clone(),
        netns: config.netns.clone(),
        unixctl,
    };
    let mut ovsdb = spec(OVSDB, "ovsdb-server", true);
    // The tools look for the second and third name when OVN_RUNDIR is set.
    let sockets: &[&str] =
        if config.central() { &["db.sock", "ovnnb_db.sock", "ovnsb_db.sock"] } else { &["db.sock"] };
    for name in sockets {
        ovsdb.args.push(format!("--remote=punix:{}", dirs.run.join(name).display()).into());
    }
    if let Southbound::Served { tls, .. } = &config.southbound {
        // Where it listens, and with which rights, stands in the database: see `serve_southbound`.
        ovsdb.args.push("--remote=db:OVN_Southbound,SB_Global,connections".into());
        ovsdb.args.extend(tls.arguments());
    }
    ovsdb.args.extend(databases(config).iter().map(|(file, ..)| dirs.data.join(file).into_os_string()));
    let mut northd = spec(NORTHD, "ovn-northd", true);
    northd.args = vec![
        format!("--ovnnb-db={socket}").into(),
        format!("--ovnsb-db={socket}").into(),
        "--n-threads=1".into(),
    ];
    let mut vswitchd = spec(VSWITCHD, "ovs-vswitchd", true);
    vswitchd.args = vec![socket.clone().into()];
    let mut controller = spec(CONTROLLER, "ovn-controller", false);
    controller.args = vec![socket.into()];
    if !config.central() {
        return vec![ovsdb, vswitchd, controller];
    }
    vec![ovsdb, northd, vswitchd, controller]
}

impl Tls {
    fn arguments(&self) -> [OsString; 3] {
        let argument = |name: &str, path: &Path| {
            let mut argument = OsString::from(name);
            argument.push(path);
            argument
        };
        [
            argument("--private-key=", &self.key),
            argument("--certificate=", &self.certificate),
            argument("--ca-cert=", &self.ca),
        ]
    }
}

/// File, schemas in the order of preference.
const DATABASES: [(&str, [&str; 2]); 3] = [
    ("nb.db", ["/usr/share/ovn/ovn-nb.ovsschema", "/usr/local/share/ovn/ovn-nb.ovsschema"]),
    ("sb.db", ["/usr/share/ovn/ovn-sb.ovsschema", "/usr/local/share/ovn/ovn-sb.ovsschema"]),
    (
        "conf.db",
        ["/usr/share/openvswitch/vswitch.ovsschema", "/usr/local/share/openvswitch/vswitch.ovsschema"],
    ),
];

/// The databases of this host: the switch's is the last.
fn databases(config: &Config) -> &'static [(&'static str, [&'static str; 2])] {
    if config.central() { &DATABASES } else { DATABASES.get(2..).unwrap_or_default() }
}

async fn make_databases(config: &Config, dirs: &Dirs) -> io::Result<()> {
    let make = databases(config).iter().map(|&(file, schemas)| async move {
        let path = dirs.data.join(file);
        if path.exists() {
            return Ok(());
        }
        let found = schemas.into_iter().find(|s| Path::new(s).exists());
        let schema = found.ok_or_else(|| {
            let hint = "install openvswitch-switch, ovn-central and ovn-host";
            io::Error::new(io::ErrorKind::NotFound, format!("{}: not found; {hint}", schemas[0]))
        })?;
        // Made aside and renamed, so that a file which is there is whole.
        let aside = dirs.data.join(format!("{file}.new"));
        let _ = std::fs::remove_file(&aside);
        sys::run(None, "ovsdb-tool", &["create", &aside.to_string_lossy(), schema], "").await?;
        std::fs::rename(&aside, &path)?;
        let _ = std::fs::remove_file(dirs.data.join(format!(".{file}.new.~lock~")));
        Ok(())
    });
    futures::future::try_join_all(make).await.map(|_| ())
}

fn spec<'a>(specs: &'a [Spec], name: &str) -> io::Result<&'a Spec> {
    specs.iter().find(|s| s.name == name).ok_or_else(|| io::Error::other("no such daemon"))
}

/// What is independent runs side by side: a cold start is bound by the slowest chain, not by the sum.
async fn bring_up(shared: &Shared, specs: &[Spec], dirs: &Dirs) -> io::Result<()> {
    let netns = async {
        match &shared.config.netns {
            Some(name) => plumbing::make_netns(&shared.record, name).await,
            None => Ok(()),
        }
    };
    tokio::try_join!(make_databases(&shared.config, dirs), netns)?;
    start(shared, spec(specs, OVSDB)?).await?;
    let cold = spec(specs, VSWITCHD)?.running().is_none();
    if cold && shared.datapath == Datapath::Netdev {
        plumbing::claim_userspace_switch(&shared.config, &shared.record).await?;
    }
    if spec(specs, CONTROLLER)?.running().is_none() {
        remove_stale_sockets(&dirs.run);
    }
    let remote = Remote::Unix(dirs.socket());
    let switch = async {
        configure_switch(shared, dirs, cold).await?;
        start(shared, spec(specs, VSWITCHD)?).await?;
        underlay::take(&shared.config, &dirs.data, shared.datapath).await?;
        tokio::try_join!(plumbing::restore(&shared.config, &shared.record), async {
            start(shared, spec(specs, CONTROLLER)?).await
        })
        .map(|_| ())
    };
    let central = async {
        if !shared.config.central() {
            return Ok(());
        }
        tokio::try_join!(init_global(remote.clone(), &NB), init_global(remote.clone(), &SB))?;
        serve_southbound(&shared.config, remote.clone()).await?;
        start(shared, spec(specs, NORTHD)?).await
    };
    tokio::try_join!(switch, central).map(|_| ())
}

async fn start(shared: &Shared, spec: &Spec) -> io::Result<()> {
    let (pid, adopted) = spec.start().await?;
    shared.status.lock().insert(spec.name, Status { pid: Some(pid), adopted, ..Status::default() });
    Ok(())
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The sender is gone only when nobody can ask for a stop any more; the task is then aborted.
    if stopping.wait_for(|s| *s).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Keeps one daemon running until [`Engines::stop`].
async fn supervise(shared: Arc<Shared>, spec: Spec) {
    let mut backoff = Backoff::new();
    let mut stopping = shared.stopping.subscribe();
    let set = |f: &dyn Fn(&mut Status)| f(shared.status.lock().entry(spec.name).or_default());
    loop {
        if let Some(pid) = spec.running() {
            tokio::select! {
                () = stopped(&mut stopping) => return,
                ended = sys::ended(pid) => if let Err(e) = ended {
                    tracing::error!(daemon = spec.name, error = %e, "cannot be watched");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                },
            }
            if spec.running().is_some() {
                continue;
            }
            tracing::warn!(daemon = spec.name, pid, "ended; starting it again");
            set(&|s| s.pid = None);
        }
        tokio::select! {
            () = stopped(&mut stopping) => return,
            () = tokio::time::sleep(backoff.next()) => {}
        }
        match spec.start().await {
            Ok((pid, _)) => {
                backoff.started();
                set(&|s| {
                    *s = Status { pid: Some(pid), adopted: false, restarts: s.restarts + 1, error: None }
                });
                // Bridges' own interfaces may be lost with the daemon, and with them their addresses.
                if spec.name == VSWITCHD {
                    let data = shared.config.state_dir.join("ovn");
                    if let Err(e) = underlay::take(&shared.config, &data, shared.datapath).await {
                        tracing::error!(error = %e, "the underlay bridge could not be restored");
                    }
                    if let Err(e) = plumbing::restore(&shared.config, &shared.record).await {
                        tracing::error!(error = %e, "the external bridge could not be restored");
                    }
                }
            }
            Err(e) => {
                tracing::error!(daemon = spec.name, error = %e, "does not start");
                set(&|s| s.error = Some(e.to_string()));
            }
        }
    }
}

/// `ovn-controller` puts its pid into its socket's name, so each one that was killed leaves one behind.
fn remove_stale_sockets(run: &Path) {
    for entry in std::fs::read_dir(run).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| n.starts_with("ovn-controller.") && n.ends_with(".ctl")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

struct Global {
    database: &'static str,
    watches: &'static [Watch],
}

const NB: Global = Global {
    database: "OVN_Northbound",
    watches: &[Watch { table: "NB_Global", columns: &["name"], index: &[], tell: false }],
};
const SB: Global = Global {
    database: "OVN_Southbound",
    watches: &[Watch { table: "SB_Global", columns: &["options"], index: &[], tell: false }],
};

const WITHIN: Duration = Duration::from_secs(10);

/// Without its single row, `ovn-northd` has nothing to write to.
async fn init_global(remote: Remote, global: &'static Global) -> io::Result<()> {
    let config = DbConfig { remotes: vec![remote], database: global.database, watches: global.watches };
    let client = Client::connect(config);
    client.ready(WITHIN).await.map_err(io::Error::other)?;
    let [Watch { table, .. }] = global.watches else { return Ok(()) };
    if client.read(|db| db.rows(table).next().is_none()) {
        let mut txn = Txn::new();
        txn.insert(table, BTreeMap::new());
        client.transact(&txn).await.map_err(io::Error::other)?;
    }
    Ok(())
}

/// Tells the Southbound database where hosts reach it. With the role, a host may write only what bears its own chassis
/// name, which is the common name of its certificate.
async fn serve_southbound(config: &Config, remote: Remote) -> io::Result<()> {
    let listen = match &config.southbound {
        Southbound::Served { listen, .. } => {
            Some(format!("pssl:{}:{}", listen.port(), bracketed(listen.ip())))
        }
        _ => None,
    };
    let watches: &'static [Watch] = &[
        Watch { table: "SB_Global", columns: &["connections"], index: &[], tell: false },
        Watch { table: "Connection", columns: &["target", "role"], index: &[], tell: false },
    ];
    let client = Client::connect(DbConfig { remotes: vec![remote], database: "OVN_Southbound", watches });
    client.ready(WITHIN).await.map_err(io::Error::other)?;
    let (global, held) = client.read(|db| {
        let held = db.rows("Connection").map(|(_, c)| c.text("target").to_owned()).collect::<Vec<_>>();
        (db.rows("SB_Global").next().map(|(u, _)| u), held)
    });
    let Some(global) = global else { return Ok(()) };
    if held == listen.iter().cloned().collect::<Vec<_>>() {
        return Ok(());
    }
    let mut txn = Txn::new();
    let rows = match listen {
        Some(target) => {
            let row = [("target", Value::one(target)), ("role", Value::one("ovn-controller"))];
            Value::one(txn.insert("Connection", columns(row)))
        }
        None => Value::none(),
    };
    txn.update("SB_Global", &Ref::Uuid(global), columns([("connections", rows)]));
    client.transact(&txn).await.map_err(io::Error::other).map(|_| ())
}

fn bracketed(ip: IpAddr) -> String {
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}

/// Writes what `ovs-vswitchd` and `ovn-controller` read: bridges and `external_ids`.
async fn configure_switch(shared: &Shared, dirs: &Dirs, cold: bool) -> io::Result<()> {
    let client = vswitch::connect(Remote::Unix(dirs.socket()));
    client.ready(WITHIN).await.map_err(io::Error::other)?;
    let mut txn = Txn::new();
    let settings = settings(shared, dirs);
    let keys = |map: &BTreeMap<&str, String>| Value::set(map.keys().map(|k| (*k).to_owned()));
    let pairs =
        |map: &BTreeMap<&str, String>| Value::map(map.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
    let other =
        BTreeMap::from([("n-handler-threads", "1".to_owned()), ("n-revalidator-threads", "1".to_owned())]);
    let root = match client.read(|db| db.rows("Open_vSwitch").next().map(|(u, _)| u)) {
        Some(root) => {
            let root = Ref::Uuid(root);
            let mut mutations = Vec::new();
            for (column, map) in [("external_ids", &settings), ("other_config", &other)] {
                mutations.push((column.to_owned(), "delete", keys(map)));
                mutations.push((column.to_owned(), "insert", pairs(map)));
            }
            txn.mutate("Open_vSwitch", &root, mutations);
            root
        }
        None => txn.insert(
            "Open_vSwitch",
            columns([("external_ids", pairs(&settings)), ("other_config", pairs(&other))]),
        ),
    };
    add_bridge(&client, &mut txn, &root, shared, &shared.config.integration_bridge(), "secure");
    if shared.config.external.is_some() {
        add_bridge(&client, &mut txn, &root, shared, &shared.config.external_bridge(), "standalone");
    }
    // From the database, unlike from arguments, `ovn-controller` takes newer files as they come.
    let held: Vec<Ref> = client.read(|db| db.rows("SSL").map(|(u, _)| Ref::Uuid(u)).collect());
    if let Southbound::Remote { tls, .. } = &shared.config.southbound {
        let text = |path: &Path| Value::one(path.to_string_lossy().into_owned());
        let row = columns([
            ("private_key", text(&tls.key)),
            ("certificate", text(&tls.certificate)),
            ("ca_cert", text(&tls.ca)),
        ]);
        match held.first() {
            Some(ssl) => txn.update("SSL", ssl, row),
            None => {
                let ssl = txn.insert("SSL", row);
                txn.mutate("Open_vSwitch", &root, vec![("ssl".into(), "insert", Value::one(ssl))]);
            }
        }
    }
    if let Some(underlay) = underlay::bridge(&shared.config, &dirs.data, shared.datapath).await? {
        let (bridge, device) = (shared.config.underlay_bridge(), &underlay.device);
        if client.read(|db| db.named("Bridge", &bridge).next().is_none()) {
            let row = add_bridge_with(&mut txn, &root, shared, &bridge, "standalone", &underlay.mac);
            vswitch::add_port(&mut txn, &row, device, "", Value::map::<String, String>([]));
        }
    }
    if cold {
        forget_lost_devices(&client, &mut txn, shared.config.netns.as_deref()).await?;
    }
    client.transact(&txn).await.map_err(io::Error::other).map(|_| ())
}

fn settings(shared: &Shared, dirs: &Dirs) -> BTreeMap<&'static str, String> {
    let config = &shared.config;
    let mut settings = BTreeMap::from([
        ("system-id", config.hostname.clone()),
        ("hostname", config.hostname.clone()),
        (
            "ovn-remote",
            match &config.southbound {
                Southbound::Remote { address, .. } => {
                    format!("ssl:{}:{}", bracketed(address.ip()), address.port())
                }
                _ => format!("unix:{}", dirs.socket().display()),
            },
        ),
        ("ovn-encap-type", "geneve".to_owned()),
        ("ovn-encap-ip", config.encap_ip.to_string()),
        ("ovn-bridge", config.integration_bridge()),
        ("ovn-bridge-datapath-type", shared.datapath.name().to_owned()),
        // A few chassis need all of the Southbound database anyway.
        ("ovn-monitor-all", "true".to_owned()),
        ("ovn-openflow-probe-interval", "60".to_owned()),
    ]);
    if let Some(external) = &config.external {
        let mapping = format!("{}:{}", external.physical_network, config.external_bridge());
        settings.insert("ovn-bridge-mappings", mapping);
        settings.insert("ovn-cms-options", "enable-chassis-as-gw,availability-zones=nova".to_owned());
    }
    settings
}

fn add_bridge(client: &Client, txn: &mut Txn, root: &Ref, shared: &Shared, name: &str, fail_mode: &str) {
    if client.read(|db| db.named("Bridge", name).next().is_some()) {
        return;
    }
    // A fixed address: guests' routers learn it, and it must not change when the daemon is started again.
    let id = uuid::Uuid::new_v5(
        &uuid::Uuid::NAMESPACE_OID,
        format!("{}/{name}", shared.config.hostname).as_bytes(),
    );
    let [a, b, c, d, e, ..] = *id.as_bytes();
    let mac = base::MacAddr([0x02, a, b, c, d, e]).to_string();
    add_bridge_with(txn, root, shared, name, fail_mode, &mac);
}

fn add_bridge_with(
    txn: &mut Txn,
    root: &Ref,
    shared: &Shared,
    name: &str,
    fail_mode: &str,
    mac: &str,
) -> Ref {
    let bridge = txn.insert(
        "Bridge",
        columns([
            ("name", Value::one(name)),
            ("datapath_type", Value::one(shared.datapath.name())),
            ("fail_mode", Value::one(fail_mode)),
            ("other_config", Value::map([("hwaddr", mac)])),
        ]),
    );
    vswitch::add_port(txn, &bridge, name, "internal", Value::map::<String, String>([]));
    txn.mutate("Open_vSwitch", root, vec![("bridges".into(), "insert", Value::one(bridge.clone()))]);
    bridge
}

/// After a reboot the taps are gone, and no flow of an earlier life is installed.
async fn forget_lost_devices(client: &Client, txn: &mut Txn, netns: Option<&str>) -> io::Result<()> {
    let plugged: Vec<(uuid::Uuid, String)> = client.read(|db| {
        let rows = db.rows("Interface").filter(|(_, i)| i.external_id("iface-id").is_some());
        rows.map(|(u, i)| (u, i.text("name").to_owned())).collect()
    });
    let names: Vec<String> = plugged.iter().map(|(_, n)| n.clone()).collect();
    let there =
        sys::in_netns(netns, move || Ok(names.iter().map(|n| sys::link_exists(n)).collect::<Vec<_>>()))
            .await?;
    for ((interface, name), there) in plugged.into_iter().zip(there) {
        if there {
            let stale = Value::set(["ovn-installed", "ovn-installed-ts"]);
            txn.mutate("Interface", &Ref::Uuid(interface), vec![("external_ids".into(), "delete", stale)]);
        } else {
            vswitch::remove_port(client, txn, &name);
        }
    }
    Ok(())
}
