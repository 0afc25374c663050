//! What is around servers: flavors, keys, groups, quotas, hosts' views, usage. Hosts and servers are put into the store
//! as the core would; other services are never asked, and say so if they are.

mod account;
mod flavors;
mod hosts;
mod keypairs;
mod limits;
mod server_groups;
mod small;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::testing::{Client, FakeAuthenticator};
use async_trait::async_trait;
use base::*;
use compute::model::*;
use compute::{Config, Deps, Nudge, State};
use contract::AuthContext;
use contract::host::{HostCapacity, Power};
use contract::services::*;
use futures::stream::BoxStream;
use store::Store;

pub struct Lab {
    pub clock: Arc<ManualClock>,
    pub store: Store,
    pub router: axum::Router,
    client: Client,
}

impl Lab {
    pub async fn new() -> Lab {
        Lab::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Lab {
        let clock = Arc::new(ManualClock::default());
        let store = Store::memory(clock.clone(), &[("compute", MIGRATIONS)]).await.unwrap();
        let mut config = Config::default();
        change(&mut config);
        let nobody = Arc::new(Nobody);
        let deps = Deps {
            images: nobody.clone(),
            networks: nobody.clone(),
            volumes: nobody.clone(),
            placement: nobody,
            host_parts: Vec::new(),
        };
        let state = State::new(
            config,
            store.clone(),
            Arc::new(FakeAuthenticator),
            clock.clone(),
            Entropy::seeded(7),
            deps,
            &Nudge::default(),
        )
        .unwrap();
        let router = compute::router(state);
        Lab { clock, store, client: Client::new(router.clone()), router }
    }

    /// A caller at a microversion: `2.1` without a header.
    pub fn at(&self, token: &str, version: &str) -> Client {
        self.client.with_token(token).at(&format!("compute {version}"))
    }

    pub async fn host(&self, n: u64) -> Host {
        let now = self.clock.now();
        let host = host(n, now);
        self.store.write(move |tx| tx.insert(&mut host.clone()).map(|()| host.clone())).await.unwrap()
    }

    pub async fn server(&self, n: u64, change: impl FnOnce(&mut Server)) -> Server {
        let mut server = server(n);
        change(&mut server);
        self.store.write(move |tx| tx.insert(&mut server.clone()).map(|()| server.clone())).await.unwrap()
    }
}

pub fn host(n: u64, now: Timestamp) -> Host {
    Host {
        id: HostId::random(&Entropy::seeded(n)),
        meta: store::Meta::default(),
        agent_version: String::new(),
        name: format!("host-{n}"),
        capacity: HostCapacity {
            hostname: format!("host-{n}"),
            hypervisor_type: "QEMU".into(),
            hypervisor_version: 10_000_002,
            accelerator: "tcg".into(),
            vcpus: 8,
            memory_mib: 16384,
            disk_gib: 100,
            disk_free_gib: 90,
            cpu_info: serde_json::json!({"arch": "x86_64"}),
            host_ip: Some("192.0.2.1".parse().unwrap()),
            moves_disks: true,
        },
        seen_at: now,
        disabled: false,
        disabled_reason: None,
        forced_down: false,
        spec_generation: 0,
        spec_hash: String::new(),
    }
}

pub fn server(n: u64) -> Server {
    Server {
        id: ServerId::random(&Entropy::seeded(1000 + n)),
        meta: store::Meta::default(),
        project_id: ProjectId::new("p1"),
        user_id: UserId::new("u1"),
        name: format!("server-{n}"),
        description: None,
        hostname: format!("server-{n}"),
        flavor_id: FlavorId::new("f1"),
        flavor_name: "small".into(),
        size: FlavorSize {
            vcpus: 2,
            ram: 1024,
            disk: 10,
            ephemeral: 0,
            swap: 0,
            rxtx_factor: 1.0,
            extra_specs: Texts::new(),
        },
        image: None,
        key: None,
        user_data: None,
        config_drive: false,
        metadata: Texts::new(),
        tags: BTreeSet::new(),
        admin_pass: None,
        security_groups: Vec::new(),
        zone_wanted: None,
        host_wanted: None,
        same_host: Vec::new(),
        different_host: Vec::new(),
        group_id: None,
        reservation_id: "r-1".into(),
        launch_index: 0,
        disk_config: "MANUAL".into(),
        access_ip_v4: None,
        access_ip_v6: None,
        trusted_certs: None,
        locked: None,
        nics: Vec::new(),
        disks: Vec::new(),
        host_id: None,
        host_name: None,
        zone: None,
        ready: false,
        power: Power::Running,
        reboots: 0,
        reboot_hard: false,
        vm_state: VmState::Active,
        task: None,
        power_state: 1,
        fault: None,
        failing_since: None,
        launched_at: None,
        deleting: false,
        moving: None,
    }
}

/// Other services, none of which these resources ask.
struct Nobody;

fn nobody<T>() -> Result<T> {
    Err(Error::unavailable("no one should have asked"))
}

#[async_trait]
impl Images for Nobody {
    async fn get(&self, _: &AuthContext, _: ImageId) -> Result<ImageInfo> {
        nobody()
    }
    async fn describe(&self, _: ImageId) -> Result<ImageInfo> {
        nobody()
    }
    async fn read(&self, _: ImageId, _: u64) -> Result<BoxStream<'static, Result<axum::body::Bytes>>> {
        nobody()
    }
    async fn local_path(&self, _: ImageId) -> Result<Option<std::path::PathBuf>> {
        nobody()
    }
}

#[async_trait]
impl Placement for Nobody {
    async fn ensure_provider(
        &self,
        _: ResourceProviderId,
        _: &str,
        _: &BTreeMap<String, Inventory>,
        _: &[String],
    ) -> Result<()> {
        nobody()
    }
    async fn providers(&self) -> Result<Vec<Arc<Candidate>>> {
        nobody()
    }
    async fn allocate(&self, _: &[Claim]) -> Result<Vec<Result<()>>> {
        nobody()
    }
    async fn take_over(&self, _: &[(ServerId, ServerId)]) -> Result<()> {
        nobody()
    }
    async fn deallocate(&self, _: ServerId) -> Result<()> {
        nobody()
    }
    async fn usage(&self, _: ResourceProviderId) -> Result<BTreeMap<String, u64>> {
        nobody()
    }
}

#[async_trait]
impl Networks for Nobody {
    async fn available(&self, _: &AuthContext) -> Result<Vec<NetworkInfo>> {
        nobody()
    }
    async fn network(&self, _: &AuthContext, _: NetworkId) -> Result<NetworkInfo> {
        nobody()
    }
    async fn port(&self, _: &AuthContext, _: PortId) -> Result<PortInfo> {
        nobody()
    }
    async fn security_groups(&self, _: &AuthContext, _: &[String]) -> Result<Vec<SecurityGroupId>> {
        nobody()
    }
    async fn ensure_ports(&self, _: &[PortRequest]) -> Result<Vec<PortInfo>> {
        nobody()
    }
    async fn claim_port(&self, _: PortId, _: &str, _: &str) -> Result<PortInfo> {
        nobody()
    }
    async fn bind_port(&self, _: PortId, _: Option<&str>) -> Result<()> {
        nobody()
    }
    async fn release_port(&self, _: PortId, _: &str) -> Result<()> {
        nobody()
    }
    async fn delete_port(&self, _: PortId) -> Result<()> {
        nobody()
    }
    async fn ports_of(&self, _: &[String]) -> Result<BTreeMap<String, Vec<PortInfo>>> {
        nobody()
    }
    async fn set_security_group(&self, _: &AuthContext, _: &str, _: &str, _: bool) -> Result<()> {
        nobody()
    }
}

#[async_trait]
impl Volumes for Nobody {
    async fn get(&self, _: &AuthContext, _: VolumeId) -> Result<VolumeInfo> {
        nobody()
    }
    async fn snapshot(&self, _: &AuthContext, _: SnapshotId) -> Result<(VolumeId, u64)> {
        nobody()
    }
    async fn describe(&self, _: VolumeId) -> Result<VolumeInfo> {
        nobody()
    }
    async fn ensure_volume(&self, _: &VolumeRequest) -> Result<VolumeInfo> {
        nobody()
    }
    async fn reserve(&self, _: VolumeId, _: AttachmentId, _: ServerId) -> Result<()> {
        nobody()
    }
    async fn attached(&self, _: VolumeId, _: AttachmentId, _: &str, _: HostId) -> Result<()> {
        nobody()
    }
    async fn detached(&self, _: VolumeId, _: AttachmentId) -> Result<()> {
        nobody()
    }
    async fn delete(&self, _: VolumeId) -> Result<()> {
        nobody()
    }
}
