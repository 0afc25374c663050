//! What the tests share: the service with a recording backend.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::testing::{Answer, Client, FakeAuthenticator, Suite};
use async_trait::async_trait;
use base::net::IpNet;
use base::{Entropy, Error, ManualClock, PortId, ProjectId, Result};
use contract::net::{Item, Key, NetEvent, NetHost, NetworkBackend, PortRole};
use network::{Config, ExternalNetwork, MIGRATIONS, Parts, State};
use parking_lot::Mutex;
use reconcile::Reconciler;
use serde_json::{Value, json};
use store::Store;
use tokio::sync::broadcast;

/// A backend that keeps what it is given.
pub struct Recorder {
    pub items: Mutex<BTreeMap<Key, Item>>,
    pub log: Mutex<Vec<String>>,
    pub up: Mutex<BTreeSet<PortId>>,
    pub away: Mutex<bool>,
    events: broadcast::Sender<NetEvent>,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder {
            items: Mutex::default(),
            log: Mutex::default(),
            up: Mutex::default(),
            away: Mutex::default(),
            events: broadcast::Sender::new(64),
        }
    }
}

impl Recorder {
    fn here(&self) -> Result<()> {
        if *self.away.lock() { Err(Error::unavailable("away")) } else { Ok(()) }
    }

    pub fn event(&self, event: NetEvent) {
        let _ = self.events.send(event);
    }

    pub fn has(&self, key: Key) -> bool {
        self.items.lock().contains_key(&key)
    }
}

#[async_trait]
impl NetworkBackend for Recorder {
    async fn apply(&self, item: &Item) -> Result<()> {
        self.here()?;
        let mut items = self.items.lock();
        let missing = |key: Key| !items.contains_key(&key);
        // A strict backend: what an item stands on must be there.
        match item {
            Item::Port(p) if missing(Key::Network(p.network_id)) => return Err(Error::conflict("no switch")),
            Item::Router(r) if r.interfaces.iter().any(|i| missing(Key::Port(i.port_id))) => {
                return Err(Error::conflict("no switch port"));
            }
            Item::FloatingIp(f) if f.target.as_ref().is_some_and(|t| missing(Key::Router(t.router_id))) => {
                return Err(Error::conflict("no router"));
            }
            _ => {}
        }
        self.log.lock().push(format!("apply {:?}", item.key()));
        if let Item::Port(p) = item
            && p.role == PortRole::RouterInterface
        {
            self.up.lock().insert(p.id);
            self.event(NetEvent::PortUp(p.id));
        }
        items.insert(item.key(), item.clone());
        Ok(())
    }

    async fn remove(&self, key: Key) -> Result<()> {
        self.here()?;
        self.log.lock().push(format!("remove {key:?}"));
        self.items.lock().remove(&key);
        Ok(())
    }

    async fn sync(&self, all: &[Item]) -> Result<usize> {
        self.here()?;
        let wanted: BTreeMap<Key, Item> = all.iter().map(|i| (i.key(), i.clone())).collect();
        let mut items = self.items.lock();
        let gone = items.keys().filter(|k| !wanted.contains_key(k)).count();
        let repaired = gone + wanted.iter().filter(|(k, i)| items.get(k) != Some(i)).count();
        *items = wanted;
        Ok(repaired)
    }

    async fn ports_up(&self) -> Result<BTreeSet<PortId>> {
        self.here()?;
        Ok(self.up.lock().clone())
    }

    async fn hosts(&self) -> Result<Vec<NetHost>> {
        self.here()?;
        Ok(vec![NetHost {
            id: "h1".into(),
            hostname: "host-1".into(),
            gateway: true,
            physical_networks: vec!["physnet1".into()],
            alive: true,
        }])
    }

    fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.events.subscribe()
    }
}

/// The service with an external network `public` (203.0.113.0/24, pool .10 to .30).
pub struct World {
    pub st: Arc<State>,

    pub backend: Arc<Recorder>,
    pub suite: Suite,
    pub public: String,
    net: Arc<dyn Reconciler>,
    pub sync: Arc<dyn Reconciler>,
    wakes: tokio::sync::Mutex<store::Subscription>,
}

/// SQLite in memory; with `ALLOD_TEST_POSTGRES=postgresql://…` a new database of that (throw-away) server.
async fn open(clock: Arc<ManualClock>) -> Store {
    let schemas = [("network", MIGRATIONS)];
    let Ok(base) = std::env::var("ALLOD_TEST_POSTGRES") else {
        return Store::memory(clock, &schemas).await.unwrap();
    };
    let name = format!("network_{}", Entropy::system().uuid().simple());
    let made = std::process::Command::new("psql")
        .args([&format!("{base}/postgres"), "-qc", &format!("CREATE DATABASE {name}")])
        .status()
        .unwrap();
    assert!(made.success(), "cannot make a database");
    Store::postgres(&format!("{base}/{name}"), clock, Entropy::system(), &schemas).await.unwrap()
}

pub async fn world() -> World {
    world_with(Config::default()).await
}

pub async fn world_with(config: Config) -> World {
    let clock = Arc::new(ManualClock::default());
    let store = open(clock.clone()).await;
    let backend = Arc::new(Recorder::default());
    let st = State::new(
        config,
        Parts {
            store: store.clone(),
            authenticator: Arc::new(FakeAuthenticator),
            backend: backend.clone(),
            clock,
            entropy: Entropy::seeded(7),
        },
    )
    .unwrap();
    let router = api::router(st.clone(), network::ops());
    let suite = Suite::new(&api::dialect::NEUTRON, router, &network::ops());
    let wakes = tokio::sync::Mutex::new(store.subscribe("net").await.unwrap());
    let public = st
        .ensure_external_network(ExternalNetwork {
            project_id: ProjectId::new("admin-project"),
            name: "public".into(),
            physical_network: "physnet1".into(),
            vlan: None,
            cidr: cidr("203.0.113.0/24"),
            gateway: "203.0.113.1".parse().unwrap(),
            pool: Some(("203.0.113.10".parse().unwrap(), "203.0.113.30".parse().unwrap())),
        })
        .await
        .unwrap()
        .to_string();
    let mut all = network::reconcilers(&st).into_iter().map(|(r, _)| r);
    let (net, sync) = (all.next().unwrap(), all.next().unwrap());
    World { st, backend, suite, public, net, sync, wakes }
}

pub fn cidr(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl World {
    pub fn client(&self) -> Client {
        self.suite.client()
    }

    /// Member of project `p1`.
    pub fn own(&self) -> Client {
        self.client().with_token("member:p1")
    }

    /// Member of another project.
    pub fn foreign(&self) -> Client {
        self.client().foreign("member:p2")
    }

    pub fn admin(&self) -> Client {
        self.client().with_token("admin")
    }

    /// Works off all wake-ups; panics where one fails.
    pub async fn settle(&self) {
        let mut wakes = self.wakes.lock().await;
        while let Some(wake) = wakes.try_next() {
            self.net.reconcile(&wake.key).await.unwrap_or_else(|e| panic!("{}: {e:?}", wake.key));
        }
    }

    /// Runs one key.
    pub async fn reconcile(&self, key: &str) -> Result<reconcile::Outcome> {
        self.net.reconcile(key).await
    }

    pub async fn sweep(&self) -> Vec<String> {
        self.net.sweep().await.unwrap()
    }

    /// Forgets wake-ups, as a crash between commit and delivery would, had the store not kept them.
    pub async fn lose_wakes(&self) {
        let mut wakes = self.wakes.lock().await;
        while wakes.try_next().is_some() {}
    }
}

/// A member's wishes, short.
pub trait Wishes {
    async fn network(&self, name: &str) -> String;
    async fn subnet(&self, net: &str, cidr: &str) -> Answer;
    async fn port(&self, net: &str, more: Value) -> Answer;
    async fn router(&self, public: &str) -> String;
}

impl Wishes for Client {
    async fn network(&self, name: &str) -> String {
        self.post("/v2.0/networks", json!({"network": {"name": name}}))
            .await
            .expect(201)
            .text_at("/network/id")
    }

    async fn subnet(&self, net: &str, cidr: &str) -> Answer {
        let version = if cidr.contains(':') { 6 } else { 4 };
        self.post(
            "/v2.0/subnets",
            json!({"subnet": {"network_id": net, "cidr": cidr, "ip_version": version}}),
        )
        .await
    }

    async fn port(&self, net: &str, more: Value) -> Answer {
        let mut body = json!({"network_id": net});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.post("/v2.0/ports", json!({"port": body})).await
    }

    async fn router(&self, public: &str) -> String {
        let body = json!({"router": {"name": "r", "external_gateway_info": {"network_id": public}}});
        self.post("/v2.0/routers", body).await.expect(201).text_at("/router/id")
    }
}
