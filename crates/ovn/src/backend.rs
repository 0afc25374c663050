//! The server's side: items to Northbound rows, and what Northbound and Southbound tell back.
//!
//! Invariant: each item is one transaction, guarded by the rows it was computed from; a lost race is computed again
//! from a fresh copy. Nothing here waits for hosts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Error, NetworkId, PortId, Result};
use contract::net::{Item, Key, NetEvent, NetHost, NetworkBackend};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::time::Instant;
use uuid::Uuid;

use crate::diff::{self, Owned};
use crate::ovsdb::{Change, Client, Config as DbConfig, Remote, Replica, Row, Txn, Value, Watch};
use crate::project::{self, REVISION, RowSet};

/// How long to wait for the databases.
const WITHIN: Duration = Duration::from_secs(10);
/// How often a guarded transaction is computed again.
const ATTEMPTS: usize = 8;
/// How often hosts are asked for a sign of life at most; each time every host writes a row.
const ASK_HOSTS: Duration = Duration::from_secs(30);

const SB_WATCHES: &[Watch] = &[
    Watch {
        table: "Chassis",
        columns: &["name", "hostname", "other_config", "external_ids"],
        index: &[],
        tell: true,
    },
    Watch {
        table: "Chassis_Private",
        columns: &["name", "nb_cfg", "nb_cfg_timestamp"],
        index: &[],
        tell: false,
    },
];

/// What the backend is told about its surroundings.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Name servers offered by subnets that name none.
    pub dns_servers: Vec<std::net::IpAddr>,
}

impl Config {
    /// Offers the name servers of this machine, as far as a guest can reach them.
    pub fn from_host() -> Self {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Config { dns_servers: name_servers(&text) }
    }
}

/// Name servers of a `resolv.conf(5)`, without those that only the machine itself reaches.
fn name_servers(text: &str) -> Vec<std::net::IpAddr> {
    let words = text.lines().filter_map(|l| l.trim().strip_prefix("nameserver"));
    let parsed = words.filter_map(|rest| rest.trim().parse::<std::net::IpAddr>().ok());
    parsed.filter(|ip| !ip.is_loopback() && !ip.is_unspecified()).collect()
}

/// OVN as a network backend.
pub struct Backend {
    inner: Arc<Inner>,
    task: tokio::task::JoinHandle<()>,
}

struct Inner {
    nb: Client,
    sb: Client,
    config: Config,
    events: broadcast::Sender<NetEvent>,
    /// Revisions of items that leave no row behind.
    seen: Mutex<HashMap<Key, u64>>,
    asked: Mutex<Option<Instant>>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// Uses the databases behind these sockets (they may be the same). Connects in the background.
    pub fn connect(nb: &Path, sb: &Path, config: Config) -> Self {
        Backend::with_remotes(vec![nb.into()], vec![sb.into()], config)
    }

    /// Uses databases anywhere.
    pub fn with_remotes(nb: Vec<Remote>, sb: Vec<Remote>, config: Config) -> Self {
        let nb =
            Client::connect(DbConfig { remotes: nb, database: "OVN_Northbound", watches: diff::WATCHES });
        let sb = Client::connect(DbConfig { remotes: sb, database: "OVN_Southbound", watches: SB_WATCHES });
        let events = broadcast::Sender::new(1024);
        let inner =
            Arc::new(Inner { nb, sb, config, events, seen: Mutex::default(), asked: Mutex::default() });
        let task = tokio::spawn(watch(Arc::clone(&inner)));
        Backend { inner, task }
    }

    /// Waits until both databases answer.
    ///
    /// # Errors
    /// 503 after `within`.
    pub async fn ready(&self, within: Duration) -> Result<()> {
        self.inner.nb.ready(within).await?;
        Ok(self.inner.sb.ready(within).await?)
    }
}

fn network_of(item: &Item) -> Option<NetworkId> {
    match item {
        Item::Network(n) => Some(n.id),
        Item::Port(p) => Some(p.network_id),
        _ => None,
    }
}

/// Groups that the item names; they are there, empty, even if they are nobody's item.
fn named_groups(item: &Item) -> Vec<Key> {
    match item {
        Item::Port(port) => port.security_groups.iter().map(|g| Key::SecurityGroup(*g)).collect(),
        Item::SecurityGroup(group) => {
            group.rules.iter().filter_map(|r| r.remote_group).map(Key::SecurityGroup).collect()
        }
        _ => Vec::new(),
    }
}

/// Networks first, then what stands on them.
fn rank(key: Key) -> u8 {
    match key {
        Key::Network(_) => 0,
        Key::SecurityGroup(_) => 1,
        Key::Router(_) => 2,
        Key::Port(_) => 3,
        Key::FloatingIp(_) => 4,
    }
}

impl Inner {
    /// Makes rows so; `plan` reads the copy anew each time the guard says that it was behind.
    async fn commit(
        &self,
        what: &str,
        plan: impl Fn(&Replica) -> Result<Txn, diff::Missing>,
    ) -> Result<bool> {
        self.nb.ready(WITHIN).await?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let mut txn = self
                .nb
                .read(&plan)
                .map_err(|missing| Error::retry(format!("{what}: {} is not there yet", missing.0)))?;
            if !txn.writes() {
                return Ok(false);
            }
            txn.comment(format!("allod: {what}"));
            match self.nb.transact(&txn).await {
                Ok(_) => return Ok(true),
                Err(e) if e.is_stale() => last = Some(e),
                Err(e) => return Err(e.into()),
            }
        }
        Err(last.map_or_else(|| Error::retry("no attempt"), Error::retry))
    }

    /// The group that every guarded port is in must be there before the first port.
    async fn base(&self) -> Result<bool> {
        let set = project::base_rows();
        self.commit("drop group", |db| diff::diff(db, &set, &diff::port_group_scope(db, project::DROP_GROUP)))
            .await
    }

    async fn apply(&self, item: &Item) -> Result<bool> {
        let key = item.key();
        let mut repaired = false;
        if matches!(item, Item::Port(_)) {
            repaired = self.base().await?;
        }
        let older = |held: Option<u64>| held.is_some_and(|held| held > item.revision());
        if older(self.seen.lock().get(&key).copied()) {
            return Ok(false);
        }
        if matches!(item, Item::Router(_)) {
            // An empty copy would take a router's gateway away from the chassis that carries it.
            self.sb.ready(WITHIN).await?;
        }
        let plan = |db: &Replica| {
            if older(diff::revision(db, key)) {
                return Ok(Txn::new());
            }
            let mut context = diff::context(db, key, network_of(item));
            context.dns_servers.clone_from(&self.config.dns_servers);
            if let Item::Router(router) = item
                && let Some(gateway) = &router.gateway
            {
                let switch = project::switch_name(gateway.network_id);
                if db.named("Logical_Switch", &switch).next().is_none() {
                    return Err(diff::Missing(switch));
                }
                context.gateways = self.gateways(db, &router.id.to_string(), &switch);
            }
            diff::diff(db, &project::project(item, &context), &diff::scope(db, key))
        };
        let written = self.commit(&format!("{key:?} revision {}", item.revision()), plan).await?;
        let _ = self.seen.lock().insert(key, item.revision());
        if written && let Item::FloatingIp(floating) = item {
            self.forget_neighbours("ip", &floating.address.to_string()).await;
        }
        Ok(written || repaired)
    }

    /// Chassis that may carry a router's gateway: those that reach the network. Each router ranks them by a hash of
    /// its own, so that gateways spread and a chassis that comes or goes moves only what it must.
    fn gateways(&self, db: &Replica, router: &str, switch: &str) -> Vec<String> {
        let network = db.named("Logical_Switch", switch).next().map(|(_, r)| r);
        let physical =
            network.and_then(|r| r.external_id("neutron:provnet-physical-network")).unwrap_or_default();
        let mut ranked: Vec<(Uuid, String)> = self.sb.read(|sb| {
            let able = sb.rows("Chassis").map(|(_, c)| host(c)).filter(|h| h.gateway);
            able.filter(|h| h.physical_networks.iter().any(|p| p == physical))
                .map(|h| (Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{router} {}", h.id).as_bytes()), h.id))
                .collect()
        });
        ranked.sort();
        ranked.into_iter().map(|(_, name)| name).collect()
    }

    /// Hosts came or went: every gateway group is ranked again.
    async fn rank_gateways(&self) -> Result<usize> {
        self.nb.ready(WITHIN).await?;
        self.sb.ready(WITHIN).await?;
        let groups: Vec<(String, String)> = self.nb.read(|db| {
            let ours = db.rows("HA_Chassis_Group").filter_map(|(_, g)| {
                Some((g.text("name").to_owned(), g.external_id("neutron:router_id")?.to_owned()))
            });
            ours.collect()
        });
        let mut changed = 0;
        for (name, router) in groups {
            let plan = |db: &Replica| {
                let switch = db
                    .rows("Logical_Router_Port")
                    .find(|(_, p)| {
                        p.external_id("neutron:router_name") == Some(&name)
                            && p.external_id("neutron:is_ext_gw") == Some("True")
                    })
                    .and_then(|(_, p)| p.external_id("neutron:network_name").map(str::to_owned));
                let Some(switch) = switch else { return Ok(Txn::new()) };
                let rows = project::gateway_group(&name, &router, &self.gateways(db, &router, &switch));
                diff::diff(db, &RowSet { rows, ..RowSet::default() }, &diff::group_scope(db, &name))
            };
            changed += usize::from(self.commit(&name, plan).await?);
        }
        Ok(changed)
    }

    /// OVN keeps what it has learnt about addresses; it must learn again when an address moves.
    async fn forget_neighbours(&self, column: &str, value: &str) {
        let mut txn = Txn::new();
        txn.delete_where("MAC_Binding", vec![(column.to_owned(), "==", Value::one(value))]);
        if let Err(e) = self.sb.transact(&txn).await {
            tracing::warn!(error = %e, value, "learnt addresses not removed");
        }
    }

    async fn remove(&self, key: Key) -> Result<bool> {
        self.nb.ready(WITHIN).await?;
        let stale: Vec<(&str, String)> = self.nb.read(|db| match key {
            Key::FloatingIp(id) => {
                let rows = db.external("NAT", "neutron:fip_id", &id.to_string());
                rows.map(|(_, r)| ("ip", r.text("external_ip").to_owned())).collect()
            }
            Key::Router(_) => {
                let owned = diff::scope(db, key);
                let ports = owned.iter().filter_map(|o| o.row_in(db, "Logical_Router_Port"));
                ports.map(|r| ("mac", r.text("mac").to_owned())).collect()
            }
            _ => Vec::new(),
        });
        let plan = |db: &Replica| {
            let set = RowSet { member_of: None, ..RowSet::default() };
            let mut owned = diff::scope(db, key);
            if let Key::Network(id) = key {
                owned.extend(names_of(db, id));
            }
            diff::diff(db, &set, &owned)
        };
        let written = self.commit(&format!("remove {key:?}"), plan).await?;
        self.seen.lock().remove(&key);
        for (column, value) in stale {
            self.forget_neighbours(column, &value).await;
        }
        Ok(written)
    }

    fn up_ports(db: &Replica) -> BTreeSet<PortId> {
        db.rows("Logical_Switch_Port").filter(|(_, r)| is_up(r)).filter_map(|(_, r)| port_id(r)).collect()
    }
}

/// DNS rows are held weakly and would outlive their switch.
fn names_of(db: &Replica, network: NetworkId) -> Vec<Owned> {
    let rows = db.external("DNS", "ls_name", &project::switch_name(network));
    rows.map(|(uuid, _)| Owned::root("DNS", uuid)).collect()
}

fn port_id(row: &Row) -> Option<PortId> {
    row.external_id("neutron:port_name")?;
    row.text("name").parse().ok()
}

fn is_up(row: &Row) -> bool {
    row.bool("up") == Some(true) && row.bool("enabled") != Some(false)
}

fn host(chassis: &Row) -> NetHost {
    // Older versions keep these in `external_ids`.
    let option =
        |key| chassis.key("other_config", key).or_else(|| chassis.external_id(key)).unwrap_or_default();
    let mappings = option("ovn-bridge-mappings").split(',').filter_map(|m| m.split_once(':'));
    NetHost {
        id: chassis.text("name").to_owned(),
        hostname: chassis.text("hostname").to_owned(),
        gateway: option("ovn-cms-options").split(',').any(|o| o == "enable-chassis-as-gw"),
        physical_networks: mappings.map(|(network, _)| network.to_owned()).collect(),
        alive: false,
    }
}

/// Turns changes of both databases into hints, until the backend is dropped.
async fn watch(inner: Arc<Inner>) {
    let (mut nb, mut sb) = (inner.nb.changes(), inner.sb.changes());
    let mut known = BTreeSet::new();
    loop {
        tokio::select! {
            change = nb.recv() => match change {
                Ok(change) => port_changed(&inner, &change, &mut known),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let now = inner.nb.read(Inner::up_ports);
                    for port in now.difference(&known) {
                        let _ = inner.events.send(NetEvent::PortUp(*port));
                    }
                    for port in known.difference(&now) {
                        let _ = inner.events.send(NetEvent::PortDown(*port));
                    }
                    known = now;
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
            change = sb.recv() => {
                let hosts = match change {
                    Ok(change) => change.table == "Chassis",
                    Err(broadcast::error::RecvError::Lagged(_)) => true,
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if hosts {
                    let _ = inner.events.send(NetEvent::HostsChanged);
                    if let Err(e) = inner.rank_gateways().await {
                        tracing::warn!(error = %e.chain(), "gateways not ranked; the next sync does it");
                    }
                }
            }
        }
    }
}

fn port_changed(inner: &Inner, change: &Change, known: &mut BTreeSet<PortId>) {
    if change.table != "Logical_Switch_Port" {
        return;
    }
    let Some(port) = change.new.as_ref().or(change.old.as_ref()).and_then(|r| port_id(r)) else { return };
    let up = change.new.as_ref().is_some_and(|r| is_up(r));
    let event = if up && known.insert(port) {
        NetEvent::PortUp(port)
    } else if !up && known.remove(&port) {
        NetEvent::PortDown(port)
    } else {
        return;
    };
    let _ = inner.events.send(event);
}

/// Every item that has rows in Northbound.
fn held_items(db: &Replica) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    let id = |row: &Row, prefix: &str| row.text("name").strip_prefix(prefix).map(str::to_owned);
    for (_, row) in db.rows("Logical_Switch").filter(|(_, r)| r.external_id(REVISION).is_some()) {
        keys.extend(id(row, "neutron-").and_then(|i| i.parse().ok()).map(Key::Network));
    }
    for (_, row) in db.rows("Logical_Router").filter(|(_, r)| r.external_id(REVISION).is_some()) {
        keys.extend(id(row, "neutron-").and_then(|i| i.parse().ok()).map(Key::Router));
    }
    keys.extend(db.rows("Logical_Switch_Port").filter_map(|(_, r)| port_id(r)).map(Key::Port));
    let id = |row: &Row, key: &str| row.external_id(key).map(str::to_owned);
    for (_, row) in db.rows("NAT") {
        keys.extend(id(row, "neutron:fip_id").and_then(|i| i.parse().ok()).map(Key::FloatingIp));
    }
    for (_, row) in db.rows("Port_Group") {
        keys.extend(
            id(row, "neutron:security_group_id").and_then(|i| i.parse().ok()).map(Key::SecurityGroup),
        );
    }
    // These stand alone and outlive what they belong to.
    for (_, row) in db.rows("DHCP_Options") {
        keys.extend(id(row, "neutron:network_id").and_then(|i| i.parse().ok()).map(Key::Network));
    }
    for (_, row) in db.rows("HA_Chassis_Group") {
        keys.extend(id(row, "neutron:router_id").and_then(|i| i.parse().ok()).map(Key::Router));
    }
    for (_, row) in db.rows("DNS") {
        keys.extend(id(row, "port_id").and_then(|i| i.parse().ok()).map(Key::Port));
    }
    keys
}

#[async_trait]
impl NetworkBackend for Backend {
    async fn apply(&self, item: &Item) -> Result<()> {
        self.inner.apply(item).await.map(|_| ())
    }

    async fn remove(&self, key: Key) -> Result<()> {
        self.inner.remove(key).await.map(|_| ())
    }

    async fn sync(&self, items: &[Item]) -> Result<usize> {
        let mut repaired = usize::from(self.inner.base().await?);
        let mut ordered: Vec<&Item> = items.iter().collect();
        ordered.sort_by_key(|i| rank(i.key()));
        let mut keep: BTreeSet<Key> = items.iter().map(Item::key).collect();
        keep.extend(items.iter().flat_map(named_groups));
        self.inner.nb.catch_up().await?;
        let mut failed = None;
        for item in ordered {
            match self.inner.apply(item).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(key = ?item.key(), revision = item.revision(), "written by a synchronisation");
                    repaired += 1;
                }
                // One item that cannot be done must not keep the others from being repaired.
                Err(e) => failed = Some(e),
            }
        }
        self.inner.nb.ready(WITHIN).await?;
        let mut gone: Vec<Key> = self.inner.nb.read(held_items).difference(&keep).copied().collect();
        gone.sort_by_key(|key| std::cmp::Reverse(rank(*key)));
        for key in gone {
            match self.inner.remove(key).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(?key, "removed by a synchronisation");
                    repaired += 1;
                }
                Err(e) => failed = Some(e),
            }
        }
        repaired += self.inner.rank_gateways().await?;
        failed.map_or(Ok(repaired), Err)
    }

    async fn ports_up(&self) -> Result<BTreeSet<PortId>> {
        self.inner.nb.ready(WITHIN).await?;
        Ok(self.inner.nb.read(Inner::up_ports))
    }

    async fn hosts(&self) -> Result<Vec<NetHost>> {
        let inner = &self.inner;
        inner.nb.ready(WITHIN).await?;
        inner.sb.ready(WITHIN).await?;
        let asked = inner.nb.read(|db| db.rows("NB_Global").map(|(_, g)| g.int("nb_cfg")).max().unwrap_or(0));
        let answered: BTreeMap<String, i64> = inner.sb.read(|db| {
            db.rows("Chassis_Private").map(|(_, c)| (c.text("name").to_owned(), c.int("nb_cfg"))).collect()
        });
        let mut hosts: Vec<NetHost> = inner.sb.read(|db| db.rows("Chassis").map(|(_, c)| host(c)).collect());
        for host in &mut hosts {
            // One round may be under way.
            host.alive = answered.get(&host.id).is_some_and(|n| n + 1 >= asked);
        }
        let due = {
            let mut last = inner.asked.lock();
            let due = last.is_none_or(|l| l.elapsed() > ASK_HOSTS);
            if due {
                *last = Some(Instant::now());
            }
            due
        };
        if due {
            let mut txn = Txn::new();
            txn.mutate_where("NB_Global", vec![], vec![("nb_cfg".into(), "+=", Value::one(1))]);
            inner.nb.transact(&txn).await?;
        }
        Ok(hosts)
    }

    fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.inner.events.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_that_guests_reach() {
        let text = "# none\nsearch x\nnameserver 127.0.0.53\n nameserver 9.9.9.9 \nnameserver ::1\nnameserver fe80::1%eth0\nnameserver 2620:fe::fe";
        let want: Vec<std::net::IpAddr> = vec!["9.9.9.9".parse().unwrap(), "2620:fe::fe".parse().unwrap()];
        assert_eq!(name_servers(text), want);
    }
}
