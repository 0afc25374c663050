//! A service on an in-memory database and a directory of its own.

use std::path::PathBuf;
use std::sync::Arc;

use api::testing::{Answer, Client, FakeAuthenticator, Suite};
use api::{Method, dialect};
use base::{Entropy, ManualClock};
use image::{Config, State};
use serde_json::{Value, json};
use store::Store;
use tempfile::TempDir;

pub const V2_1: &str = "application/openstack-images-v2.1-json-patch";

pub struct Lab {
    pub directory: TempDir,
    pub clock: Arc<ManualClock>,
    pub store: Store,
    pub state: Arc<State>,
    pub router: axum::Router,
    pub client: Client,
}

impl Lab {
    pub async fn new() -> Lab {
        Lab::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Lab {
        let directory = TempDir::new().unwrap();
        let clock = Arc::new(ManualClock::default());
        let store = Store::memory(clock.clone(), &[("image", image::MIGRATIONS)]).await.unwrap();
        let mut config = Config::new(directory.path().join("images"));
        change(&mut config);
        let state =
            State::new(config, store.clone(), Arc::new(FakeAuthenticator), clock.clone(), Entropy::seeded(7))
                .unwrap();
        let router = api::router(state.clone(), image::ops());
        let client = Client::new(router.clone()).with_header("accept", "application/json");
        Lab { directory, clock, store, state, router, client }
    }

    /// The same database and directory in a new process.
    pub fn restart(self) -> Lab {
        let config = Config::new(self.directory.path().join("images"));
        let state = State::new(
            config,
            self.store.clone(),
            Arc::new(FakeAuthenticator),
            self.clock.clone(),
            Entropy::seeded(8),
        )
        .unwrap();
        let router = api::router(state.clone(), image::ops());
        let client = Client::new(router.clone()).with_header("accept", "application/json");
        Lab { state, router, client, ..self }
    }

    pub fn suite(&self) -> Suite {
        Suite::new(&dialect::GLANCE, self.router.clone(), &image::ops())
    }

    pub fn as_(&self, token: &str) -> Client {
        self.client.with_token(token)
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("images/data")
    }

    pub fn incoming(&self) -> PathBuf {
        self.directory.path().join("images/incoming")
    }

    /// Runs the reconciler as its controller would until nothing is left.
    pub async fn settle(&self) {
        for reconciler in self.state.reconcilers() {
            for key in reconciler.sweep().await.unwrap() {
                reconciler.reconcile(&key).await.unwrap();
            }
        }
    }

    pub async fn reconcile(&self, key: &str) {
        self.state.reconcilers()[0].reconcile(key).await.unwrap();
    }
}

pub fn files(path: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub async fn make(client: &Client, extra: Value) -> String {
    let mut body = json!({"name": "image", "disk_format": "raw", "container_format": "bare"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    client.post("/v2/images", body).await.expect(201).text_at("/id")
}

pub async fn upload(client: &Client, id: &str, bytes: impl Into<bytes::Bytes>) -> Answer {
    client
        .call(Method::PUT, &format!("/v2/images/{id}/file"))
        .header("content-type", "application/octet-stream")
        .bytes(bytes)
        .send()
        .await
}

pub async fn patch(client: &Client, id: &str, changes: Value) -> Answer {
    client
        .call(Method::PATCH, &format!("/v2/images/{id}"))
        .json(&changes)
        .header("content-type", V2_1)
        .send()
        .await
}
