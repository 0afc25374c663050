//! A simulated network backend: holds the items it was given, and says a port is up once a simulated host plugged it.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use base::{Error, PortId, Result};
use contract::net::{Item, Key, NetEvent, NetHost, NetworkBackend, PortRole};
use parking_lot::Mutex;
use tokio::sync::broadcast;

#[derive(Default)]
struct State {
    items: BTreeMap<Key, Item>,
    /// Where ports are plugged: for a moment it may be two hosts, when a server was given to another.
    plugged: BTreeSet<(PortId, String)>,
    hosts: BTreeMap<String, NetHost>,
    outage: bool,
}

/// The simulated fabric between simulated hosts.
pub struct SimNetwork {
    state: Mutex<State>,
    events: broadcast::Sender<NetEvent>,
}

impl Default for SimNetwork {
    fn default() -> Self {
        SimNetwork { state: Mutex::default(), events: broadcast::Sender::new(4096) }
    }
}

impl SimNetwork {
    /// The item held under `key`.
    pub fn item(&self, key: Key) -> Option<Item> {
        self.state.lock().items.get(&key).cloned()
    }

    /// All items held.
    pub fn items(&self) -> Vec<Item> {
        self.state.lock().items.values().cloned().collect()
    }

    /// While `true`, every call fails as if OVN were away.
    pub fn set_outage(&self, outage: bool) {
        self.state.lock().outage = outage;
    }

    pub(crate) fn add_host(&self, hostname: &str) {
        let host = NetHost {
            id: hostname.to_owned(),
            hostname: hostname.to_owned(),
            gateway: true,
            physical_networks: vec!["public".into()],
            alive: true,
        };
        self.state.lock().hosts.insert(hostname.to_owned(), host);
        let _ = self.events.send(NetEvent::HostsChanged);
    }

    pub(crate) fn plugged(&self, port: PortId, host: &str) {
        let up = {
            let mut state = self.state.lock();
            state.plugged.insert((port, host.to_owned()));
            state.up(port)
        };
        if up {
            let _ = self.events.send(NetEvent::PortUp(port));
        }
    }

    pub(crate) fn unplugged(&self, port: PortId, host: &str) {
        let down = {
            let mut state = self.state.lock();
            let was = state.up(port);
            state.plugged.remove(&(port, host.to_owned()));
            was && !state.up(port)
        };
        if down {
            let _ = self.events.send(NetEvent::PortDown(port));
        }
    }
}

impl State {
    fn available(&self) -> Result<()> {
        if self.outage { Err(Error::unavailable("The network backend is away.")) } else { Ok(()) }
    }

    /// Answers whether the item was new or changed.
    fn put(&mut self, item: &Item) -> bool {
        let key = item.key();
        match self.items.get(&key) {
            Some(held) if held.revision() > item.revision() || held == item => false,
            _ => {
                self.items.insert(key, item.clone());
                true
            }
        }
    }

    fn up(&self, port: PortId) -> bool {
        match self.items.get(&Key::Port(port)) {
            Some(Item::Port(p)) if p.role == PortRole::RouterInterface => true,
            // As on a real chassis: plugged elsewhere than where it is bound, nothing of it is installed.
            Some(Item::Port(p)) => self
                .plugged
                .range((port, String::new())..)
                .take_while(|(id, _)| *id == port)
                .any(|(_, host)| p.host.as_ref().is_none_or(|bound| bound == host)),
            _ => false,
        }
    }
}

#[async_trait]
impl NetworkBackend for SimNetwork {
    async fn apply(&self, item: &Item) -> Result<()> {
        let event = {
            let mut state = self.state.lock();
            state.available()?;
            let Key::Port(port) = item.key() else {
                state.put(item);
                return Ok(());
            };
            let was = state.up(port);
            state.put(item);
            match (was, state.up(port)) {
                (_, true) => Some(NetEvent::PortUp(port)),
                (true, false) => Some(NetEvent::PortDown(port)),
                (false, false) => None,
            }
        };
        if let Some(event) = event {
            let _ = self.events.send(event);
        }
        Ok(())
    }

    async fn remove(&self, key: Key) -> Result<()> {
        let mut state = self.state.lock();
        state.available()?;
        state.items.remove(&key);
        Ok(())
    }

    async fn sync(&self, items: &[Item]) -> Result<usize> {
        let mut state = self.state.lock();
        state.available()?;
        let wanted: BTreeSet<Key> = items.iter().map(Item::key).collect();
        let before = state.items.len();
        state.items.retain(|key, _| wanted.contains(key));
        let mut repaired = before - state.items.len();
        for item in items {
            repaired += usize::from(state.put(item));
        }
        Ok(repaired)
    }

    async fn ports_up(&self) -> Result<BTreeSet<PortId>> {
        let state = self.state.lock();
        state.available()?;
        let ports = state.items.keys().filter_map(|key| match key {
            Key::Port(port) if state.up(*port) => Some(*port),
            _ => None,
        });
        Ok(ports.collect())
    }

    async fn hosts(&self) -> Result<Vec<NetHost>> {
        Ok(self.state.lock().hosts.values().cloned().collect())
    }

    fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.events.subscribe()
    }
}
