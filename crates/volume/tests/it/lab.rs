//! A service on an in-memory database, images that are only told of, and hosts that do as they are told.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::dialect;
use api::testing::{Answer, Client, FakeAuthenticator, Suite};
use async_trait::async_trait;
use base::{
    Entropy, Error, HostId, ImageId, ManualClock, ProjectId, Result, SnapshotId, Timestamp, VolumeId,
};
use bytes::Bytes;
use contract::AuthContext;
use contract::host::{HostCapacity, HostReport, HostSpec, SnapshotReport, VolumeReport};
use contract::services::{HostNudge, HostPart, ImageInfo, Images};
use futures::stream::BoxStream;
use parking_lot::Mutex;
use serde_json::{Value, json};
use store::Store;
use volume::{Config, State};

#[derive(Default)]
pub struct FakeImages(pub Mutex<BTreeMap<ImageId, ImageInfo>>);

#[async_trait]
impl Images for FakeImages {
    async fn get(&self, auth: &AuthContext, id: ImageId) -> Result<ImageInfo> {
        let image = self.describe(id).await?;
        if image.owner.as_ref() == auth.project_id() {
            Ok(image)
        } else {
            Err(Error::not_found("no such image"))
        }
    }
    async fn describe(&self, id: ImageId) -> Result<ImageInfo> {
        self.0.lock().get(&id).cloned().ok_or_else(|| Error::not_found("no such image"))
    }
    async fn read(&self, _: ImageId, _: u64) -> Result<BoxStream<'static, Result<Bytes>>> {
        Err(Error::not_found("no bytes here"))
    }
    async fn local_path(&self, _: ImageId) -> Result<Option<std::path::PathBuf>> {
        Ok(None)
    }
}

#[derive(Default)]
pub struct Nudges(pub Mutex<Vec<HostId>>);

impl HostNudge for Nudges {
    fn host_changed(&self, host: HostId) {
        self.0.lock().push(host);
    }
    fn device_changed(&self, _: &str) {}
}

pub struct Lab {
    pub clock: Arc<ManualClock>,
    pub state: Arc<State>,
    pub router: axum::Router,
    pub client: Client,
    pub images: Arc<FakeImages>,
    pub nudges: Arc<Nudges>,
    pub entropy: Entropy,
}

impl Lab {
    pub async fn new() -> Lab {
        Lab::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Lab {
        let clock = Arc::new(ManualClock::default());
        let store = Store::memory(clock.clone(), &[("volume", volume::MIGRATIONS)]).await.unwrap();
        let mut config = Config::default();
        change(&mut config);
        let images = Arc::new(FakeImages::default());
        let entropy = Entropy::seeded(7);
        let state = State::new(
            config,
            store,
            Arc::new(FakeAuthenticator),
            images.clone(),
            clock.clone(),
            entropy.clone(),
        )
        .await
        .unwrap();
        let nudges = Arc::new(Nudges::default());
        state.set_nudge(nudges.clone());
        let router = api::router(state.clone(), volume::ops());
        let client = Client::new(router.clone()).at("volume 3.71");
        Lab { clock, state, router, client, images, nudges, entropy }
    }

    pub fn as_(&self, token: &str) -> Client {
        self.client.with_token(token)
    }

    /// At another microversion than the newest.
    pub fn at(&self, version: &str) -> Client {
        Client::new(self.router.clone()).at(version)
    }

    pub fn suite(&self) -> Suite {
        Suite::new(&dialect::CINDER, self.router.clone(), &volume::ops())
    }

    /// Runs the reconcilers as their controller would.
    pub async fn settle(&self) {
        for reconciler in self.state.reconcilers() {
            for key in reconciler.sweep().await.unwrap() {
                reconciler.reconcile(&key).await.unwrap();
            }
        }
    }

    pub fn image(&self, owner: &str, virtual_size: u64) -> ImageId {
        let id = ImageId::random(&self.entropy);
        let image = ImageInfo {
            id,
            name: "debian".to_owned(),
            status: "active".to_owned(),
            owner: Some(ProjectId::new(owner)),
            disk_format: "qcow2".to_owned(),
            container_format: "bare".to_owned(),
            size: 1000,
            virtual_size,
            min_disk_gib: 2,
            min_ram_mib: 64,
            sha512: "ab".to_owned(),
            properties: [("os_distro".to_owned(), "debian".to_owned())].into(),
        };
        self.images.0.lock().insert(id, image);
        id
    }
}

pub struct FakeHost {
    pub id: HostId,
    pub name: String,
    pub volumes: BTreeMap<VolumeId, (u64, u64)>,
    pub snapshots: Vec<SnapshotId>,
    pub failing: Option<String>,
    pub free_gib: u64,
    sequence: u64,
}

impl FakeHost {
    pub fn new(lab: &Lab, name: &str) -> FakeHost {
        FakeHost {
            id: HostId::random(&lab.entropy),
            name: name.to_owned(),
            volumes: BTreeMap::new(),
            snapshots: Vec::new(),
            failing: None,
            free_gib: 500,
            sequence: 0,
        }
    }

    pub fn empty_spec(&self) -> HostSpec {
        HostSpec { host: self.id, generation: 0, servers: vec![], volumes: vec![], snapshots: vec![] }
    }

    pub async fn spec(&self, lab: &Lab) -> HostSpec {
        let mut spec = self.empty_spec();
        lab.state.contribute(std::slice::from_mut(&mut spec)).await.unwrap();
        spec
    }

    /// Becomes what it is told to be, unless it fails, and reports.
    pub async fn turn(&mut self, lab: &Lab) {
        let spec = self.spec(lab).await;
        if self.failing.is_none() {
            self.volumes = spec.volumes.iter().map(|v| (v.id, (v.generation, v.size_gib))).collect();
            self.snapshots = spec.snapshots.iter().map(|s| s.id).collect();
        }
        self.report(lab, &spec).await;
    }

    async fn report(&mut self, lab: &Lab, spec: &HostSpec) {
        self.sequence += 1;
        let failed = |id: &VolumeId| self.failing.is_some() && spec.volumes.iter().any(|v| v.id == *id);
        let mut ids: Vec<VolumeId> = self.volumes.keys().copied().collect();
        ids.extend(spec.volumes.iter().map(|v| v.id).filter(|id| !self.volumes.contains_key(id)));
        let volumes = ids
            .iter()
            .map(|id| VolumeReport {
                id: *id,
                generation: spec.volumes.iter().find(|v| v.id == *id).map_or(0, |v| v.generation),
                ready: !failed(id),
                size_gib: self.volumes.get(id).map_or(0, |(_, size)| *size),
                error: if failed(id) { self.failing.clone() } else { None },
            })
            .collect();
        let snapshots = spec
            .snapshots
            .iter()
            .map(|s| s.id)
            .chain(self.snapshots.iter().copied().filter(|id| !spec.snapshots.iter().any(|s| s.id == *id)))
            .map(|id| SnapshotReport {
                id,
                ready: self.snapshots.contains(&id),
                error: if self.snapshots.contains(&id) { None } else { self.failing.clone() },
            })
            .collect();
        let report = HostReport {
            host: self.id,
            sequence: self.sequence,
            generation: spec.generation,
            at: Timestamp::default(),
            version: "0.1.0".into(),
            capacity: HostCapacity {
                hostname: self.name.clone(),
                disk_gib: 1000,
                disk_free_gib: self.free_gib,
                ..HostCapacity::default()
            },
            servers: vec![],
            volumes,
            snapshots,
        };
        lab.state.report(&[Arc::new(report)]).await.unwrap();
    }
}

pub async fn make(client: &Client, project: &str, extra: Value) -> String {
    let mut body = json!({"name": "v", "size": 1});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    client
        .post(&format!("/v3/{project}/volumes"), json!({"volume": body}))
        .await
        .expect(202)
        .text_at("/volume/id")
}

pub async fn status(client: &Client, project: &str, id: &str) -> String {
    let answer = client.get(&format!("/v3/{project}/volumes/{id}")).await;
    if answer.status == 404 { "gone".to_owned() } else { answer.text_at("/volume/status") }
}

pub async fn act(client: &Client, project: &str, id: &str, action: Value) -> Answer {
    client.post(&format!("/v3/{project}/volumes/{id}/action"), action).await
}
