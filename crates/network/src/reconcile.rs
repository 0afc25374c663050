//! From rows to the backend, and from the backend to the status of ports and floating IPs.
//!
//! `net` works on items, each by itself: there is a row, so the backend gets its item; there is none, so the backend forgets it and
//! the tombstone goes. `net-sync` hands over everything at start and every five minutes, which is the only repair.
//! While it runs no single item does: else it would take away what was made after it looked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use base::{Error, NetworkId, PortId, Result, SubnetId, Timestamp};
use contract::net::{Item, Key, NetEvent};
use reconcile::{Options, Outcome, Reconciler};
use store::{Query, Resource, Tx};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::State;
use crate::db::{self, KIND};
use crate::ids::{TombstoneKey, key_text, parse_key};
use crate::logic::project;
use crate::model::{FloatingIp, Network, Port, Router, SecurityGroup, SecurityGroupRule, Subnet, Tombstone};

/// Time between two full hand-overs, as in Neutron.
const SYNC_EVERY: Duration = Duration::from_secs(300);
/// Items that are read at once.
const BATCH_OF_KEYS: usize = 64;
/// Most status changes in one transaction.
const BATCH: usize = 256;

/// The service's reconcilers, for [`reconcile::Controller::add`].
pub fn reconcilers(st: &Arc<State>) -> Vec<(Arc<dyn Reconciler>, Options)> {
    vec![
        (Arc::new(Net(st.clone())), Options { batch: BATCH_OF_KEYS, ..Options::default() }),
        (
            Arc::new(Sync { st: st.clone(), done: AtomicBool::new(false), follows: AtomicBool::new(false) }),
            Options { workers: 1, ..Options::default() },
        ),
    ]
}

/// Works on items.
struct Net(Arc<State>);

/// Hands over everything, and follows the backend's events from its first run on.
struct Sync {
    st: Arc<State>,
    done: AtomicBool,
    follows: AtomicBool,
}

/// The item a key stands for; `None` where there is no row.
fn item(tx: &mut Tx<'_>, key: Key, dns_domain: &str) -> Result<Option<Item>> {
    Ok(match key {
        Key::Network(id) => match tx.get::<Network>(&id)? {
            None => None,
            Some(net) => {
                let subnets = db::networks::subnets_of(tx, id)?;
                let metadata = db::networks::metadata_port(tx, id)?;
                Some(Item::Network(project::network(&net, &subnets, metadata.as_ref(), dns_domain)))
            }
        },
        Key::Port(id) => tx.get::<Port>(&id)?.map(|p| Item::Port(project::port(&p))),
        Key::Router(id) => match tx.get::<Router>(&id)? {
            None => None,
            Some(router) => {
                let ports = db::routing::ports_of(tx, id)?;
                let nets: BTreeSet<NetworkId> = ports.iter().map(|p| p.network_id).collect();
                let networks = by_id(tx.list::<Network>(&Query::new().is_in("id", &nets))?, |n| n.id);
                let subnets = by_id(tx.list::<Subnet>(&Query::new().is_in("network_id", &nets))?, |s| s.id);
                Some(Item::Router(project::router(&router, &ports, &networks, &subnets)))
            }
        },
        Key::FloatingIp(id) => tx.get::<FloatingIp>(&id)?.map(|f| Item::FloatingIp(project::floating_ip(&f))),
        Key::SecurityGroup(id) => match tx.get::<SecurityGroup>(&id)? {
            None => None,
            Some(group) => {
                let rules = db::groups::rules_of(tx, id)?;
                Some(Item::SecurityGroup(project::security_group(&group, &rules)))
            }
        },
    })
}

fn by_id<R: Resource, K: Ord>(rows: Vec<R>, id: impl Fn(&R) -> K) -> BTreeMap<K, R> {
    rows.into_iter().map(|r| (id(&r), r)).collect()
}

fn grouped<R, K: Ord>(rows: Vec<R>, key: impl Fn(&R) -> K) -> BTreeMap<K, Vec<R>> {
    let mut map: BTreeMap<K, Vec<R>> = BTreeMap::new();
    for row in rows {
        map.entry(key(&row)).or_default().push(row);
    }
    map
}

/// All items, in the order a backend can make them from nothing.
fn all_items(tx: &mut Tx<'_>, dns_domain: &str) -> Result<Vec<Item>> {
    let networks: BTreeMap<NetworkId, Network> = by_id(tx.list::<Network>(&Query::new())?, |n| n.id);
    let subnets: BTreeMap<SubnetId, Subnet> = by_id(tx.list::<Subnet>(&Query::new())?, |s| s.id);
    let on = grouped(subnets.values().cloned().collect(), |s: &Subnet| s.network_id);
    let ports = tx.list::<Port>(&Query::new())?;
    let metadata: BTreeMap<NetworkId, &Port> = ports
        .iter()
        .filter(|p| p.device_owner == crate::model::DISTRIBUTED)
        .map(|p| (p.network_id, p))
        .collect();
    let mut items = Vec::new();
    for net in networks.values() {
        let subnets = on.get(&net.id).map_or(&[][..], Vec::as_slice);
        let metadata = metadata.get(&net.id).copied();
        items.push(Item::Network(project::network(net, subnets, metadata, dns_domain)));
    }
    let rules = grouped(tx.list::<SecurityGroupRule>(&Query::new())?, |r| r.security_group_id);
    for group in tx.list::<SecurityGroup>(&Query::new())? {
        let rules = rules.get(&group.id).map_or(&[][..], Vec::as_slice);
        items.push(Item::SecurityGroup(project::security_group(&group, rules)));
    }
    items.extend(ports.iter().map(|p| Item::Port(project::port(p))));
    let trusted = ports.into_iter().filter(|p| db::ports::trusted(&p.device_owner)).collect();
    let by_device = grouped(trusted, |p: &Port| p.device_id.clone());
    for router in tx.list::<Router>(&Query::new())? {
        let ports = by_device.get(&router.id.to_string()).map_or(&[][..], Vec::as_slice);
        items.push(Item::Router(project::router(&router, ports, &networks, &subnets)));
    }
    items.extend(
        tx.list::<FloatingIp>(&Query::new())?.iter().map(|f| Item::FloatingIp(project::floating_ip(f))),
    );
    Ok(items)
}

/// Items that a backend needs before this one. No circles: floating IP, router, port, network or group.
fn needs(item: &Item) -> Vec<Key> {
    match item {
        Item::Network(_) | Item::SecurityGroup(_) => Vec::new(),
        Item::Port(p) => {
            let groups = p.security_groups.iter().map(|g| Key::SecurityGroup(*g));
            std::iter::once(Key::Network(p.network_id)).chain(groups).collect()
        }
        Item::Router(r) => r
            .interfaces
            .iter()
            .chain(&r.gateway)
            .flat_map(|p| [Key::Network(p.network_id), Key::Port(p.port_id)])
            .collect(),
        Item::FloatingIp(f) => {
            f.target.iter().flat_map(|t| [Key::Router(t.router_id), Key::Port(t.port_id)]).collect()
        }
    }
}

impl State {
    /// What keys stand for: the item, or none and whether a tombstone is there.
    async fn read_items(&self, keys: Vec<Key>) -> Result<Vec<(Option<Item>, bool)>> {
        let domain = self.env.config.dns_domain.clone();
        self.store
            .read(move |tx| {
                let ports =
                    keys.iter().filter_map(|key| if let Key::Port(id) = key { Some(*id) } else { None });
                let ports = by_id(tx.list::<Port>(&Query::new().is_in("id", ports))?, |p| p.id);
                let mut items = Vec::with_capacity(keys.len());
                for key in &keys {
                    items.push(match key {
                        Key::Port(id) => ports.get(id).map(|p| Item::Port(project::port(p))),
                        key => item(tx, *key, &domain)?,
                    });
                }
                let missing = keys.iter().zip(&items).filter(|(_, item)| item.is_none());
                let missing: Vec<TombstoneKey> = missing.map(|(key, _)| TombstoneKey::of(*key)).collect();
                let stones: BTreeSet<String> = if missing.is_empty() {
                    BTreeSet::new()
                } else {
                    tx.list_ids::<Tombstone>(&Query::new().is_in("id", missing))?.into_iter().collect()
                };
                let buried = |key: &Key| stones.contains(&TombstoneKey::of(*key).to_string());
                Ok(items.into_iter().zip(&keys).map(|(item, key)| (item, buried(key))).collect())
            })
            .await
    }

    /// Hands an item over, after those it needs that this process has not handed over yet.
    async fn hand_over(&self, item: Item) -> Result<()> {
        let mut stack = vec![item];
        while let Some(item) = stack.pop() {
            let missing: Vec<Key> = {
                let applied = self.applied.lock();
                needs(&item).into_iter().filter(|k| !applied.contains(k)).collect()
            };
            let first: Vec<Item> = if missing.is_empty() {
                Vec::new()
            } else {
                self.read_items(missing).await?.into_iter().filter_map(|(item, _)| item).collect()
            };
            if first.is_empty() {
                self.backend.apply(&item).await?;
                self.applied.lock().insert(item.key());
            } else {
                stack.push(item);
                stack.extend(first);
            }
        }
        Ok(())
    }

    /// Makes the backend's item as the row is.
    async fn follow(&self, key: Key, item: Option<Item>, buried: bool) -> Result<Outcome> {
        match item {
            Some(item) => {
                self.hand_over(item).await?;
                if let Key::FloatingIp(id) = key {
                    self.floating_status(id).await?;
                }
            }
            None => self.take_away(key, buried).await?,
        }
        Ok(Outcome::Done)
    }

    async fn take_away(&self, key: Key, buried: bool) -> Result<()> {
        self.applied.lock().remove(&key);
        self.backend.remove(key).await?;
        if buried {
            self.store.write(move |tx| tx.delete::<Tombstone>(&TombstoneKey::of(key)).map(|_| ())).await?;
        }
        Ok(())
    }

    /// Writes the floating IP's status once the backend took it.
    async fn floating_status(&self, id: base::FloatingIpId) -> Result<()> {
        let differs =
            |f: &FloatingIp| (f.router_id.is_some() && f.port_id.is_some()) != (f.status == "ACTIVE");
        let found = self.store.read(move |tx| tx.get::<FloatingIp>(&id)).await?;
        if !found.is_some_and(|f| differs(&f)) {
            return Ok(());
        }
        self.store
            .write(move |tx| {
                let Some(mut fip) = tx.get::<FloatingIp>(&id)? else { return Ok(()) };
                if differs(&fip) {
                    fip.status = if fip.port_id.is_some() { "ACTIVE" } else { "DOWN" }.into();
                    tx.update_status(&mut fip)?;
                }
                Ok(())
            })
            .await
    }

    /// Writes what the backend says of these ports: up or not.
    async fn port_status(&self, changes: Vec<(PortId, bool)>) -> Result<()> {
        for chunk in changes.chunks(BATCH) {
            let chunk = chunk.to_vec();
            let devices = self
                .store
                .write(move |tx| {
                    let mut ports =
                        tx.list::<Port>(&Query::new().is_in("id", chunk.iter().map(|(id, _)| id)))?;
                    let up: BTreeMap<PortId, bool> = chunk.iter().copied().collect();
                    ports.retain_mut(|port| {
                        let up = up.get(&port.id).is_some_and(|up| *up);
                        let status = if up && port.admin_state_up { "ACTIVE" } else { "DOWN" };
                        let differs = port.status != status && port.status != "N/A";
                        if differs {
                            port.status = status.into();
                        }
                        differs
                    });
                    tx.update_status_many(&mut ports)?;
                    Ok(ports.into_iter().map(|p| p.device_id).collect::<Vec<_>>())
                })
                .await?;
            self.nudge_devices(devices);
        }
        Ok(())
    }

    /// Asks the backend which ports are up and writes what differs.
    pub(crate) async fn refresh_ports(&self) -> Result<()> {
        let up = self.backend.ports_up().await?;
        let rows = self.store.read(|tx| tx.list::<Port>(&Query::new().ne("status", "N/A"))).await?;
        let differs = |p: &Port| (up.contains(&p.id) && p.admin_state_up) != (p.status == "ACTIVE");
        self.port_status(rows.iter().filter(|p| differs(p)).map(|p| (p.id, up.contains(&p.id))).collect())
            .await
    }

    /// Writes what the backend told: ports up and down, other hosts. `lost`: some of it was missed.
    async fn take_events(&self, ports: BTreeMap<PortId, bool>, hosts: bool, lost: bool) -> Result<()> {
        self.port_status(ports.into_iter().collect()).await?;
        if lost {
            self.refresh_ports().await?;
        }
        if hosts {
            self.wake_gateways().await?;
        }
        Ok(())
    }

    /// Which host carries a gateway depends on the hosts there are.
    async fn wake_gateways(&self) -> Result<()> {
        self.store
            .write(|tx| {
                for router in tx.list::<Router>(&Query::new().is_not_null("gateway_network_id"))? {
                    db::wake(tx, Key::Router(router.id))?;
                }
                Ok(())
            })
            .await
    }

    /// What the backend shall hold, by the rows there are now.
    ///
    /// # Errors
    /// From the store.
    pub async fn projection(&self) -> Result<Vec<Item>> {
        let domain = self.env.config.dns_domain.clone();
        self.store.read(move |tx| all_items(tx, &domain)).await
    }

    /// Hands everything over; answers how many items the backend had to repair.
    ///
    /// # Errors
    /// From the store or the backend.
    pub async fn sync(&self) -> Result<usize> {
        let gate = self.gate.write().await;
        let domain = self.env.config.dns_domain.clone();
        let (at, items, stones) = self
            .store
            .read(move |tx| Ok((tx.now(), all_items(tx, &domain)?, tx.list_ids::<Tombstone>(&Query::new())?)))
            .await?;
        let repaired = self.backend.sync(&items).await?;
        *self.applied.lock() = items.iter().map(Item::key).collect();
        drop(gate);
        if !stones.is_empty() {
            self.store
                .write(move |tx| tx.delete_where::<Tombstone>(&Query::new().is_in("id", &stones)).map(|_| ()))
                .await?;
        }
        self.wake_newer(at).await?;
        self.refresh_ports().await?;
        Ok(repaired)
    }

    /// What another server wrote while this one handed everything over may have been taken away again.
    async fn wake_newer(&self, at: Timestamp) -> Result<()> {
        if !self.store.shared() {
            return Ok(());
        }
        // Clocks of servers differ a little.
        let since = at.plus_secs(-5);
        self.store
            .write(move |tx| {
                let newer = || Query::new().ge("updated_at", since);
                for row in tx.list::<Network>(&newer())? {
                    db::wake(tx, Key::Network(row.id))?;
                }
                for row in tx.list::<SecurityGroup>(&newer())? {
                    db::wake(tx, Key::SecurityGroup(row.id))?;
                }
                for row in tx.list::<Port>(&newer())? {
                    db::wake(tx, Key::Port(row.id))?;
                }
                for row in tx.list::<Router>(&newer())? {
                    db::wake(tx, Key::Router(row.id))?;
                }
                for row in tx.list::<FloatingIp>(&newer())? {
                    db::wake(tx, Key::FloatingIp(row.id))?;
                }
                Ok(())
            })
            .await
    }
}

/// Follows the backend's events while the service is there. They come in bursts: one transaction takes many.
async fn follow_events(st: Weak<State>, mut events: broadcast::Receiver<NetEvent>) {
    loop {
        let mut ports: BTreeMap<PortId, bool> = BTreeMap::new();
        let (mut lost, mut hosts) = (false, false);
        let mut next = Some(events.recv().await);
        while let Some(event) = next.take() {
            match event {
                Ok(NetEvent::PortUp(id)) => drop(ports.insert(id, true)),
                Ok(NetEvent::PortDown(id)) => drop(ports.insert(id, false)),
                Ok(NetEvent::HostsChanged) => hosts = true,
                Err(RecvError::Lagged(_)) => lost = true,
                Err(RecvError::Closed) => return,
            }
            if ports.len() < BATCH {
                next = events.try_recv().ok().map(Ok);
            }
        }
        let Some(st) = st.upgrade() else { return };
        if let Err(error) = st.take_events(ports, hosts, lost).await {
            // The next full hand-over looks again.
            tracing::warn!(error = %error.chain(), "network events not written");
        }
    }
}

#[async_trait]
impl Reconciler for Net {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn reconcile(&self, text: &str) -> Result<Outcome> {
        let key = parse_key(text).ok_or_else(|| Error::internal(format!("'{text}' is no key of an item")))?;
        let _open = self.0.gate.read().await;
        match self.0.read_items(vec![key]).await?.pop() {
            Some((item, buried)) => self.0.follow(key, item, buried).await,
            None => Ok(Outcome::Done),
        }
    }

    async fn reconcile_many(&self, texts: &[String]) -> Vec<Result<Outcome>> {
        let keys: Option<Vec<Key>> = texts.iter().map(|text| parse_key(text)).collect();
        let open = self.0.gate.read().await;
        let items = match keys.clone() {
            Some(keys) => self.0.read_items(keys).await,
            None => Err(Error::internal("one of several is no key of an item")),
        };
        let (Some(keys), Ok(items)) = (keys, items) else {
            drop(open);
            return futures::future::join_all(texts.iter().map(|text| self.reconcile(text))).await;
        };
        let each = keys.into_iter().zip(items).map(|(key, (item, buried))| self.0.follow(key, item, buried));
        futures::future::join_all(each).await
    }

    async fn sweep(&self) -> Result<Vec<String>> {
        self.0
            .store
            .read(|tx| {
                let mut keys = tx.list_ids::<Tombstone>(&Query::new())?;
                let waiting = Query::new().eq("status", "DOWN").is_not_null("port_id");
                keys.extend(tx.list::<FloatingIp>(&waiting)?.iter().map(|f| key_text(Key::FloatingIp(f.id))));
                Ok(keys)
            })
            .await
    }
}

#[async_trait]
impl Reconciler for Sync {
    fn kind(&self) -> &'static str {
        "net-sync"
    }

    async fn reconcile(&self, _: &str) -> Result<Outcome> {
        if !self.follows.swap(true, Ordering::SeqCst) {
            tokio::spawn(follow_events(Arc::downgrade(&self.st), self.st.backend.events()));
        }
        let repaired = self.st.sync().await?;
        if repaired > 0 && self.done.load(Ordering::SeqCst) {
            tracing::warn!(repaired, "the network backend differed from what it was told");
        }
        self.done.store(true, Ordering::SeqCst);
        Ok(Outcome::After(SYNC_EVERY))
    }

    async fn sweep(&self) -> Result<Vec<String>> {
        let first = !self.done.load(Ordering::SeqCst);
        Ok(if first { vec!["all".into()] } else { Vec::new() })
    }
}
