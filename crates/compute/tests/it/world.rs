//! A small cloud in one process.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use api::testing::{Answer, Client, FakeAuthenticator};
use async_trait::async_trait;
use base::{
    AttachmentId, Clock, Entropy, Error, HostId, ImageId, MacAddr, NetworkId, PortId, ProjectId, Result,
    SecurityGroupId, ServerId, SnapshotId, SubnetId, SystemClock, VolumeId,
};
use bytes::Bytes;
use contract::AuthContext;
use contract::host::{HostReport, HostSpec, VolumeSource, VolumeSpec};
use contract::services::*;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use serde_json::{Value, json};
use store::Store;
use tokio::sync::watch;

/// Fails the next `n` calls.
#[derive(Default)]
pub struct Faults(AtomicU32);

impl Faults {
    pub fn next(&self, n: u32) {
        self.0.store(n, Ordering::SeqCst);
    }
    fn check(&self) -> Result<()> {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if left.is_ok() { Err(Error::unavailable("injected fault")) } else { Ok(()) }
    }
}

#[derive(Default)]
pub struct Nets {
    pub networks: Mutex<BTreeMap<NetworkId, NetworkInfo>>,
    pub ports: Mutex<BTreeMap<PortId, PortInfo>>,
    pub faults: Faults,
    pub full: AtomicBool,
}

impl Nets {
    pub fn add(&self, project: &str, name: &str) -> NetworkId {
        let id = NetworkId(uuid::Uuid::new_v4());
        let info = NetworkInfo {
            id,
            name: name.into(),
            project_id: ProjectId::new(project),
            shared: false,
            external: false,
            subnets: vec![SubnetId(uuid::Uuid::new_v4())],
            port_security: true,
        };
        self.networks.lock().insert(id, info);
        id
    }

    pub fn add_port(&self, project: &str, network: NetworkId) -> PortId {
        let id = PortId(uuid::Uuid::new_v4());
        let port = self.make(id, network, ProjectId::new(project), String::new(), None);
        self.ports.lock().insert(id, port);
        id
    }

    fn make(
        &self,
        id: PortId,
        network: NetworkId,
        project: ProjectId,
        device: String,
        ip: Option<IpAddr>,
    ) -> PortInfo {
        let n = u32::try_from(self.ports.lock().len()).unwrap() + 10;
        let ip = ip.unwrap_or_else(|| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n)));
        let networks = self.networks.lock();
        let info = &networks[&network];
        PortInfo {
            id,
            network_id: network,
            network_name: info.name.clone(),
            project_id: project,
            status: "ACTIVE".into(),
            mac: MacAddr([
                0xfa,
                0x16,
                0x3e,
                0,
                u8::try_from(n >> 8 & 255).unwrap(),
                u8::try_from(n & 255).unwrap(),
            ]),
            mtu: 1442,
            fixed_ips: vec![FixedIpInfo {
                subnet_id: info.subnets[0],
                ip,
                cidr: "10.0.0.0/8".parse().unwrap(),
                gateway: None,
                dns_servers: vec![],
                dhcp: true,
                host_routes: vec![],
            }],
            floating_ips: vec![],
            device_id: device,
            host: None,
            security_groups: vec![(SecurityGroupId(uuid::Uuid::nil()), "default".into())],
            metadata_port: None,
        }
    }
}

fn sees(auth: &AuthContext, project: &ProjectId) -> bool {
    auth.project_id() == Some(project) || auth.has_role("admin")
}

#[async_trait]
impl Networks for Nets {
    async fn available(&self, auth: &AuthContext) -> Result<Vec<NetworkInfo>> {
        Ok(self
            .networks
            .lock()
            .values()
            .filter(|n| auth.project_id() == Some(&n.project_id))
            .cloned()
            .collect())
    }
    async fn network(&self, auth: &AuthContext, id: NetworkId) -> Result<NetworkInfo> {
        let found = self.networks.lock().get(&id).filter(|n| sees(auth, &n.project_id)).cloned();
        found.ok_or_else(|| Error::not_found("no network"))
    }
    async fn port(&self, auth: &AuthContext, id: PortId) -> Result<PortInfo> {
        let found = self.ports.lock().get(&id).filter(|p| sees(auth, &p.project_id)).cloned();
        found.ok_or_else(|| Error::not_found("no port"))
    }
    async fn security_groups(&self, _: &AuthContext, names: &[String]) -> Result<Vec<SecurityGroupId>> {
        if names.iter().any(|n| n == "missing") {
            return Err(Error::bad_request("Security group missing not found."));
        }
        Ok(vec![SecurityGroupId(uuid::Uuid::nil())])
    }
    async fn ensure_ports(&self, requests: &[PortRequest]) -> Result<Vec<PortInfo>> {
        self.faults.check()?;
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::over_quota("Quota exceeded for resources: ['port']."));
        }
        let mut made = Vec::new();
        for r in requests {
            let held = self.ports.lock().get(&r.id).cloned();
            let mut port = held.unwrap_or_else(|| {
                self.make(r.id, r.network_id, r.project_id.clone(), r.device_id.clone(), r.fixed_ip)
            });
            port.host = Some(r.host.clone());
            self.ports.lock().insert(r.id, port.clone());
            made.push(port);
        }
        Ok(made)
    }
    async fn claim_port(&self, port: PortId, device: &str, _: &str) -> Result<PortInfo> {
        self.faults.check()?;
        let mut ports = self.ports.lock();
        let held = ports.get_mut(&port).ok_or_else(|| Error::not_found("no port"))?;
        if !held.device_id.is_empty() && held.device_id != device {
            return Err(Error::conflict("in use"));
        }
        held.device_id = device.into();
        Ok(held.clone())
    }
    async fn bind_port(&self, port: PortId, host: Option<&str>) -> Result<()> {
        self.faults.check()?;
        if let Some(p) = self.ports.lock().get_mut(&port) {
            p.host = host.map(str::to_owned);
        }
        Ok(())
    }
    async fn release_port(&self, port: PortId, device: &str) -> Result<()> {
        self.faults.check()?;
        if let Some(p) = self.ports.lock().get_mut(&port).filter(|p| p.device_id == device) {
            p.device_id.clear();
            p.host = None;
        }
        Ok(())
    }
    async fn delete_port(&self, port: PortId) -> Result<()> {
        self.faults.check()?;
        self.ports.lock().remove(&port);
        Ok(())
    }
    async fn ports_of(&self, devices: &[String]) -> Result<BTreeMap<String, Vec<PortInfo>>> {
        let mut all: BTreeMap<String, Vec<PortInfo>> = BTreeMap::new();
        for port in self.ports.lock().values().filter(|p| devices.contains(&p.device_id)) {
            all.entry(port.device_id.clone()).or_default().push(port.clone());
        }
        Ok(all)
    }
    async fn set_security_group(
        &self,
        _: &AuthContext,
        device: &str,
        group: &str,
        present: bool,
    ) -> Result<()> {
        if group == "missing" {
            return Err(Error::not_found("Security group missing not found."));
        }
        for port in self.ports.lock().values_mut().filter(|p| p.device_id == device) {
            port.security_groups.retain(|(_, n)| n != group);
            if present {
                port.security_groups.push((SecurityGroupId(uuid::Uuid::new_v4()), group.into()));
            }
        }
        Ok(())
    }
}

#[derive(Default)]
pub struct Vols {
    pub volumes: Mutex<BTreeMap<VolumeId, VolumeInfo>>,
    pub faults: Faults,
    nudge: Mutex<Option<compute::Nudge>>,
}

impl Vols {
    pub fn add(&self, project: &str, host: HostId) -> VolumeId {
        let id = VolumeId(uuid::Uuid::new_v4());
        self.volumes.lock().insert(id, info(id, ProjectId::new(project), 1, "available", Some(host)));
        self.nudge.lock().as_ref().unwrap().host_changed(host);
        id
    }
    pub fn status(&self, id: VolumeId) -> String {
        self.volumes.lock().get(&id).map_or_else(|| "gone".into(), |v| v.status.clone())
    }
}

fn info(id: VolumeId, project: ProjectId, size: u64, status: &str, host: Option<HostId>) -> VolumeInfo {
    VolumeInfo {
        id,
        project_id: project,
        status: status.into(),
        size_gib: size,
        bootable: true,
        multiattach: false,
        host,
        image_metadata: BTreeMap::new(),
        image_id: None,
        attachments: vec![],
    }
}

#[async_trait]
impl Volumes for Vols {
    async fn get(&self, auth: &AuthContext, id: VolumeId) -> Result<VolumeInfo> {
        let found = self.volumes.lock().get(&id).filter(|v| sees(auth, &v.project_id)).cloned();
        found.ok_or_else(|| Error::not_found("no volume"))
    }
    async fn snapshot(&self, _: &AuthContext, _: SnapshotId) -> Result<(VolumeId, u64)> {
        Err(Error::not_found("no snapshot"))
    }
    async fn describe(&self, id: VolumeId) -> Result<VolumeInfo> {
        self.volumes
            .lock()
            .get(&id)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("Volume {id} could not be found.")))
    }
    async fn ensure_volume(&self, r: &VolumeRequest) -> Result<VolumeInfo> {
        self.faults.check()?;
        let made = {
            let mut all = self.volumes.lock();
            all.entry(r.id)
                .or_insert_with(|| info(r.id, r.project_id.clone(), r.size_gib, "creating", r.host))
                .clone()
        };
        if let (Some(host), Some(nudge)) = (r.host, self.nudge.lock().as_ref()) {
            nudge.host_changed(host);
        }
        Ok(made)
    }
    async fn reserve(&self, volume: VolumeId, attachment: AttachmentId, server: ServerId) -> Result<()> {
        self.faults.check()?;
        let mut all = self.volumes.lock();
        let held = all.get_mut(&volume).ok_or_else(|| Error::not_found("no volume"))?;
        if held.attachments.iter().any(|(a, ..)| *a == attachment) {
            return Ok(());
        }
        if held.status != "available" {
            return Err(Error::conflict(format!("volume is {}", held.status)));
        }
        held.status = "reserved".into();
        held.attachments.push((attachment, server, String::new()));
        Ok(())
    }
    async fn attached(&self, volume: VolumeId, _: AttachmentId, device: &str, _: HostId) -> Result<()> {
        self.faults.check()?;
        if let Some(v) = self.volumes.lock().get_mut(&volume) {
            v.status = "in-use".into();
            v.attachments[0].2 = device.into();
        }
        Ok(())
    }
    async fn detached(&self, volume: VolumeId, attachment: AttachmentId) -> Result<()> {
        self.faults.check()?;
        if let Some(v) = self.volumes.lock().get_mut(&volume) {
            v.attachments.retain(|(a, ..)| *a != attachment);
            v.status = "available".into();
        }
        Ok(())
    }
    async fn delete(&self, volume: VolumeId) -> Result<()> {
        self.faults.check()?;
        self.volumes.lock().remove(&volume);
        Ok(())
    }
}

#[async_trait]
impl HostPart for Vols {
    async fn contribute(&self, specs: &mut [HostSpec]) -> Result<()> {
        for spec in specs {
            for v in self.volumes.lock().values().filter(|v| v.host == Some(spec.host)) {
                let source = VolumeSource::Blank;
                spec.volumes.push(VolumeSpec { id: v.id, generation: 1, size_gib: v.size_gib, source });
            }
        }
        Ok(())
    }
    async fn report(&self, reports: &[Arc<HostReport>]) -> Result<()> {
        for r in reports.iter().flat_map(|report| &report.volumes).filter(|r| r.ready) {
            if let Some(v) = self.volumes.lock().get_mut(&r.id).filter(|v| v.status == "creating") {
                v.status = "available".into();
            }
        }
        Ok(())
    }
}

#[derive(Default)]
pub struct Imgs(pub Mutex<BTreeMap<ImageId, ImageInfo>>);

impl Imgs {
    pub fn add(&self, name: &str) -> ImageId {
        let id = ImageId(uuid::Uuid::new_v4());
        self.0.lock().insert(
            id,
            ImageInfo {
                id,
                name: name.into(),
                status: "active".into(),
                owner: None,
                disk_format: "qcow2".into(),
                container_format: "bare".into(),
                size: 1 << 20,
                virtual_size: 1 << 30,
                min_disk_gib: 1,
                min_ram_mib: 64,
                sha512: "00".into(),
                properties: BTreeMap::new(),
            },
        );
        id
    }
}

#[async_trait]
impl Images for Imgs {
    async fn get(&self, _: &AuthContext, id: ImageId) -> Result<ImageInfo> {
        self.describe(id).await
    }
    async fn describe(&self, id: ImageId) -> Result<ImageInfo> {
        self.0.lock().get(&id).cloned().ok_or_else(|| Error::not_found("no image"))
    }
    async fn read(&self, _: ImageId, _: u64) -> Result<BoxStream<'static, Result<Bytes>>> {
        Ok(Box::pin(futures::stream::empty()))
    }
    async fn local_path(&self, _: ImageId) -> Result<Option<std::path::PathBuf>> {
        Ok(None)
    }
}

#[derive(Default)]
struct Access(Mutex<BTreeMap<HostId, Arc<agent::Agent>>>);

#[async_trait]
impl HostAccess for Access {
    async fn console_log(&self, host: HostId, server: ServerId, length: Option<usize>) -> Result<String> {
        let found = self.0.lock().get(&host).cloned();
        found.ok_or_else(|| Error::unavailable("no such host"))?.console_log(host, server, length).await
    }
    async fn read_disk(&self, host: HostId, server: ServerId, disk: &str, offset: u64) -> Result<Bytes> {
        let found = self.0.lock().get(&host).cloned();
        found.ok_or_else(|| Error::unavailable("no such host"))?.read_disk(host, server, disk, offset).await
    }
}

pub struct World {
    pub state: Arc<compute::State>,
    pub placement: Arc<placement::State>,
    pub router: axum::Router,
    pub store: Store,
    pub nets: Arc<Nets>,
    pub vols: Arc<Vols>,
    pub hosts: Vec<(HostId, sim::SimHost)>,
    pub gates: Vec<Arc<Gate>>,
    pub network: NetworkId,
    pub image: ImageId,
    pub nudge: compute::Nudge,
    pub entropy: Entropy,
    config: compute::Config,
    deps: compute::Deps,
    limits: reconcile::Limits,
    /// The server process that answers now.
    server: Mutex<Server>,
    machines: Vec<(Machine, Mutex<watch::Sender<bool>>)>,
    access: Arc<Access>,
    clock: Arc<dyn Clock>,
    _dir: tempfile::TempDir,
}

/// A server process.
struct Server {
    state: Arc<compute::State>,
    router: axum::Router,
    handle: Option<reconcile::Handle>,
    life: Arc<Life>,
}

/// Whether a server process lives.
#[derive(Default)]
pub struct Life(AtomicBool);

impl Life {
    fn check(&self) -> Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(Error::unavailable("the server is dead")) } else { Ok(()) }
    }
}

impl store::Gate for Life {
    fn read(&self) -> Result<()> {
        self.check()
    }
    fn write(&self) -> store::Fate {
        self.check().map_or_else(store::Fate::Lost, |()| store::Fate::Carry)
    }
}

/// A ledger without a disk.
#[derive(Default)]
struct Memory(Mutex<Option<agent::ledger::Kept>>);

impl agent::ledger::Keeper for Memory {
    fn load(&self) -> Result<Option<agent::ledger::Kept>> {
        Ok(self.0.lock().clone())
    }
    fn save(&self, kept: &agent::ledger::Kept) -> Result<()> {
        *self.0.lock() = Some(kept.clone());
        Ok(())
    }
}

/// What an agent is started from, again and again.
struct Machine {
    id: HostId,
    state_dir: std::path::PathBuf,
    drivers: agent::Drivers,
    gate: Arc<Gate>,
    clock: Arc<dyn Clock>,
    lease_clock: Option<Arc<dyn Clock>>,
    /// Its ledger, where it is not on a disk.
    ledger: Option<Arc<Memory>>,
    boot: AtomicU32,
}

impl Machine {
    fn start(&self) -> (Arc<agent::Agent>, watch::Sender<bool>) {
        let boot_id = self.boot.load(Ordering::SeqCst).to_string();
        let config = agent::Config { host: self.id, state_dir: self.state_dir.clone(), boot_id };
        let (drivers, gate, clock) = (self.drivers.clone(), self.gate.clone(), self.clock.clone());
        let ledger = match &self.ledger {
            Some(memory) => agent::ledger::Ledger::kept_by(memory.clone()),
            None => agent::ledger::Ledger::open(&self.state_dir),
        };
        let leases = self.lease_clock.clone();
        let agent = agent::Agent::with_ledger(config, drivers, gate, clock, ledger.unwrap(), leases);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(agent.clone().run(stopped));
        (agent, stop)
    }
}

/// How messages between an agent and the control plane fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Nothing passes.
    Cut,
    /// What is asked arrives, and the answer is lost.
    Deaf,
    /// Each message takes up to so many milliseconds.
    Slow(u64),
}

/// The way from an agent to the control plane.
pub struct Gate {
    to: Mutex<(Arc<compute::State>, Arc<Life>)>,
    way: watch::Sender<Way>,
    dice: Entropy,
}

impl Gate {
    fn new(state: Arc<compute::State>, life: Arc<Life>, dice: Entropy) -> Self {
        Gate { to: Mutex::new((state, life)), way: watch::Sender::new(Way::Open), dice }
    }

    pub fn cut(&self, cut: bool) {
        self.set(if cut { Way::Cut } else { Way::Open });
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    fn lead_to(&self, state: Arc<compute::State>, life: Arc<Life>) {
        *self.to.lock() = (state, life);
        self.way.send_modify(|_| ());
    }

    /// One message.
    async fn message(&self, answer: bool) -> Result<()> {
        let way = *self.way.borrow();
        if let Way::Slow(most) = way {
            tokio::time::sleep(Duration::from_millis(self.dice.below(most))).await;
        }
        match *self.way.borrow() {
            Way::Cut => Err(Error::unavailable("cut off")),
            Way::Deaf if answer => Err(Error::unavailable("no answer")),
            _ => Ok(()),
        }
    }

    /// What is asked while the way is cut is lost; what is answered then is lost, too, as is what a dead server says.
    async fn pass<T, F>(&self, call: impl FnOnce(Arc<compute::State>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.message(false).await?;
        let (state, life) = self.to.lock().clone();
        life.check()?;
        let answer = call(state).await;
        life.check()?;
        self.message(true).await?;
        answer
    }
}

#[async_trait]
impl ControlPlane for Gate {
    async fn spec(&self, host: HostId, after: u64) -> Result<Option<Arc<HostSpec>>> {
        let mut way = self.way.subscribe();
        let poll = self.pass(|state| async move { state.spec(host, after).await });
        // Cut short, so that a poll that waits does not hide that the way is open again.
        tokio::select! {
            biased;
            _ = way.changed() => Ok(None),
            answer = poll => answer,
        }
    }

    async fn report(&self, report: HostReport) -> Result<()> {
        self.pass(|state| async move { state.report(report).await }).await
    }

    async fn disk(&self, host: HostId, part: &contract::host::DiskPart) -> Result<Bytes> {
        {
            let part = part.clone();
            self.pass(|state| async move { state.disk(host, &part).await }).await
        }
    }

    async fn lease(&self, host: HostId, generation: u64) -> Result<Duration> {
        self.pass(|state| async move { state.lease(host, generation).await }).await
    }
}

/// The hypervisor that a host's agent is given.
pub type Wrap<'a> = &'a (dyn Fn(u64, &sim::SimHost) -> Arc<dyn contract::drivers::Hypervisor> + Sync);

/// What a world is like.
pub struct Plan<'a> {
    /// Hosts.
    pub count: u64,
    pub config: compute::Config,
    /// Whether reconcilers run.
    pub run: bool,
    /// The lease clock of each host, where hosts have leases.
    pub leases: Option<&'a (dyn Fn(u64) -> Arc<dyn Clock> + Sync)>,
    /// The server's clock.
    pub clock: Arc<dyn Clock>,
    pub limits: reconcile::Limits,
    pub seed: u64,
    /// Something between agents and their simulated hypervisors; ledgers are in memory then.
    pub hypervisors: Option<Wrap<'a>>,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Plan {
            count: 1,
            config: compute::Config::default(),
            run: true,
            leases: None,
            clock: Arc::new(SystemClock),
            limits: reconcile::Limits { first: Duration::from_millis(5), most: Duration::from_millis(50) },
            seed: 7,
            hypervisors: None,
        }
    }
}

pub const FLAVOR: &str = "SCS-1L-1-5";

impl World {
    pub async fn new(hosts: u64) -> Arc<Self> {
        Self::with(hosts, compute::Config::default(), true).await
    }

    pub async fn with(count: u64, config: compute::Config, run: bool) -> Arc<Self> {
        Self::make(Plan { count, config, run, ..Plan::default() }).await
    }

    /// Hosts with leases.
    pub async fn leased(count: u64, config: compute::Config) -> Arc<Self> {
        let clock = |_: u64| Arc::new(SystemClock) as Arc<dyn Clock>;
        Self::make(Plan { count, config, leases: Some(&clock), ..Plan::default() }).await
    }

    pub async fn make(plan: Plan<'_>) -> Arc<Self> {
        let Plan { count, config, run, leases, clock, limits, seed, hypervisors } = plan;
        let entropy = Entropy::seeded(seed);
        let store = Store::memory(
            clock.clone(),
            &[("placement", placement::MIGRATIONS), ("compute", compute::MIGRATIONS)],
        )
        .await
        .unwrap();
        compute::seed_flavors(&store, true).await.unwrap();
        let auth = Arc::new(FakeAuthenticator);
        let placement = placement::State::new(
            placement::Config::default(),
            store.clone(),
            auth.clone(),
            clock.clone(),
            entropy.clone(),
        )
        .unwrap();
        let (nets, vols, images) =
            (Arc::new(Nets::default()), Arc::new(Vols::default()), Arc::new(Imgs::default()));
        let nudge = compute::Nudge::default();
        *vols.nudge.lock() = Some(nudge.clone());
        let deps = compute::Deps {
            images: images.clone(),
            networks: nets.clone(),
            volumes: vols.clone(),
            placement: placement.clone(),
            host_parts: vec![vols.clone()],
        };
        let life = Arc::new(Life::default());
        let behind = store.behind(life.clone());
        let state = compute::State::new(
            config.clone(),
            behind,
            auth,
            clock.clone(),
            entropy.clone(),
            deps.clone(),
            &nudge,
        )
        .unwrap();
        let network = nets.add("p1", "private");
        let image = images.add("mini");
        let dir = tempfile::tempdir().unwrap();
        let fabric = Arc::new(sim::SimNetwork::default());
        let access = Arc::new(Access::default());
        let (mut hosts, mut gates, mut machines) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..count {
            let profile =
                sim::Profile { boot_ms: 0..=2, vcpus: 64, memory_mib: 256 * 1024, ..sim::Profile::default() };
            let host = sim::SimHost::new(&format!("sim-{n}"), profile, &entropy, fabric.clone());
            let id = HostId::random(&entropy);
            let hypervisor: Arc<dyn contract::drivers::Hypervisor> = host.hypervisor.clone();
            let drivers = agent::Drivers {
                hypervisor: hypervisors.map_or(hypervisor, |wrap| wrap(n, &host)),
                storage: host.storage.clone(),
                network: host.network.clone(),
                images: host.images.clone(),
            };
            let state_dir = dir.path().join(format!("h{n}"));
            std::fs::create_dir_all(&state_dir).unwrap();
            let dice = Entropy::seeded(entropy.u64());
            let gate = Arc::new(Gate::new(state.clone(), life.clone(), dice));
            gates.push(gate.clone());
            let lease_clock = leases.map(|clock| clock(n));
            let ledger = hypervisors.is_some().then(Arc::default);
            let (clock, boot) = (clock.clone(), AtomicU32::new(1));
            let machine = Machine { id, state_dir, drivers, gate, clock, lease_clock, ledger, boot };
            let (agent, stop) = machine.start();
            access.0.lock().insert(id, agent);
            machines.push((machine, Mutex::new(stop)));
            hosts.push((id, host));
        }
        state.set_host_access(access.clone());
        let router = compute::router(state.clone());
        let server = Server { state: state.clone(), router: router.clone(), handle: None, life };
        let world = Arc::new(World {
            router,
            state,
            placement,
            store,
            nets,
            vols,
            hosts,
            gates,
            machines,
            access,
            clock,
            network,
            image,
            nudge,
            entropy,
            config,
            deps,
            limits,
            server: Mutex::new(server),
            _dir: dir,
        });
        if run {
            world.start().await;
        }
        if count > 0 && run {
            let admin = world.client("admin:adm").at("compute 2.96");
            world
                .until("all hosts registered", || async {
                    let list = admin.get("/v2.1/os-services?binary=nova-compute").await;
                    list.at("/services").as_array().is_some_and(|l| l.len() as u64 == count)
                })
                .await;
        }
        world
    }

    /// The agent of a host dies.
    pub fn kill(&self, host: usize) {
        self.machines[host].1.lock().send_replace(true);
    }

    /// Another one is started.
    pub fn revive(&self, host: usize) {
        self.kill(host);
        let (machine, stop) = &self.machines[host];
        let (agent, stopper) = machine.start();
        *stop.lock() = stopper;
        self.access.0.lock().insert(machine.id, agent);
    }

    /// The power of a host goes; it is revived under another boot.
    pub fn power_off(&self, host: usize) {
        self.kill(host);
        self.machines[host].0.boot.fetch_add(1, Ordering::SeqCst);
        self.hosts[host].1.power_off();
    }

    pub async fn start(&self) {
        let (store, state) = {
            let server = self.server.lock();
            (self.store.behind(server.life.clone()), server.state.clone())
        };
        let mut controller = reconcile::Controller::new(store, self.clock.clone(), self.entropy.clone());
        for one in state.reconcilers() {
            let options = reconcile::Options {
                workers: 4,
                batch: 16,
                limits: self.limits,
                ..reconcile::Options::default()
            };
            controller = controller.add(one, options);
        }
        let handle = controller.start().await.unwrap();
        state.set_controller(handle.waker());
        self.server.lock().handle = Some(handle);
    }

    /// The server process dies; after a while another one starts on its database, knowing nothing else.
    pub async fn restart(&self, after: Duration) {
        let handle = {
            let mut server = self.server.lock();
            server.life.0.store(true, Ordering::SeqCst);
            server.handle.take()
        };
        // Agents that wait for it notice.
        self.gates.iter().for_each(|gate| gate.way.send_modify(|_| ()));
        if let Some(handle) = handle {
            handle.stop_within(Duration::ZERO).await;
        }
        tokio::time::sleep(after).await;
        let life = Arc::new(Life::default());
        let state = compute::State::new(
            self.config.clone(),
            self.store.behind(life.clone()),
            Arc::new(FakeAuthenticator),
            self.clock.clone(),
            self.entropy.clone(),
            self.deps.clone(),
            &self.nudge,
        )
        .unwrap();
        state.set_host_access(self.access.clone());
        let router = compute::router(state.clone());
        *self.server.lock() = Server { state: state.clone(), router, handle: None, life: life.clone() };
        self.start().await;
        self.gates.iter().for_each(|gate| gate.lead_to(state.clone(), life.clone()));
    }

    /// Everything ends: agents, reconcilers.
    pub async fn halt(&self) {
        (0..self.machines.len()).for_each(|host| self.kill(host));
        let handle = self.server.lock().handle.take();
        if let Some(handle) = handle {
            handle.stop_within(Duration::ZERO).await;
        }
        // Agents know the way to the service, which knows the way to them: without this nothing would be freed.
        self.access.0.lock().clear();
    }

    pub fn client(&self, token: &str) -> Client {
        Client::new(self.server.lock().router.clone()).with_token(token)
    }

    pub fn member(&self) -> Client {
        self.client("member:p1:u1").at("compute 2.96")
    }

    /// Waits for a condition, at most ten seconds.
    pub async fn until<F, R>(&self, what: &str, condition: F)
    where
        F: Fn() -> R,
        R: Future<Output = bool>,
    {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !condition().await {
            assert!(tokio::time::Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    pub fn body(&self, name: &str) -> Value {
        json!({"server": {
            "name": name, "flavorRef": self.flavor(FLAVOR), "imageRef": self.image.to_string(),
            "networks": [{"uuid": self.network.to_string()}],
        }})
    }

    pub fn flavor(&self, name: &str) -> String {
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, format!("scs-flavor:{name}").as_bytes()).to_string()
    }

    pub async fn show(&self, id: &str) -> Answer {
        self.client("admin:adm").at("compute 2.96").get(&format!("/v2.1/servers/{id}")).await
    }

    pub async fn wait(&self, id: &str, status: &str) -> Answer {
        self.until(&format!("{id} {status}"), || async {
            self.show(id).await.text_at("/server/status") == status
        })
        .await;
        self.until(&format!("{id} idle"), || async {
            self.show(id).await.at("/server/OS-EXT-STS:task_state").is_null()
        })
        .await;
        self.show(id).await
    }

    /// A server that runs.
    pub async fn boot(&self, name: &str) -> String {
        let made = self.member().post("/v2.1/servers", self.body(name)).await.expect(202);
        let id = made.text_at("/server/id");
        self.wait(&id, "ACTIVE").await;
        id
    }

    pub async fn act(&self, id: &str, body: Value) -> Answer {
        self.member().post(&format!("/v2.1/servers/{id}/action"), body).await
    }

    pub async fn gone(&self, id: &str) {
        self.until(&format!("{id} gone"), || async { self.show(id).await.status == 404 }).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for n in 0..self.machines.len() {
            self.kill(n);
        }
    }
}
