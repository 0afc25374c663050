//! The reconciler of kind `server`: builds up what a row asks for, tears down what shall go.

mod place;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ::reconcile::{Outcome, Reconciler};
use async_trait::async_trait;
use base::{Error, PortId, Result, ServerId};
use contract::services::{PortInfo, PortRequest, VolumeOrigin, VolumeRequest};
use parking_lot::Mutex;
use store::{Order, Query, Tx, Version};

use crate::State;
use crate::hosts::unfinished;
use crate::leases::REBUILDING;
use crate::logic::{fold, names};
use crate::model::{
    Disk, DiskState, Fault, Host, HostLease, InstanceAction, Move, Nic, Origin, PastServer, Plugged, Server,
    Usage, VmState, VolumeClaim,
};
use crate::moving;

/// How soon a volume that is being made is looked at again.
const SOON: Duration = Duration::from_millis(250);
/// Servers that a sweep reads at once.
const PAGE: usize = 500;
/// How soon a server that waits for its host is looked at again; the host's report comes sooner.
pub(crate) const LATER: Duration = Duration::from_secs(5);

pub(crate) use place::zone_of;

/// The reconciler of kind `server`; keys are server ids.
pub(crate) struct Servers {
    state: Arc<State>,
    /// Versions of rows that the last sweep found converged; whether one is follows from the row alone.
    converged: Mutex<HashMap<ServerId, Version>>,
}

impl Servers {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Servers { state, converged: Mutex::default() }
    }
}

/// Whether a server goes, is being built, or has something under way.
fn open(s: &Server) -> bool {
    s.deleting
        || ((s.vm_state == VmState::Building || rebuilding(s)) && !s.ready)
        || (s.vm_state != VmState::Error && unfinished(s))
}

#[async_trait]
impl Reconciler for Servers {
    fn kind(&self) -> &'static str {
        "server"
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome> {
        let mut found = self.state.find(std::slice::from_ref(&key.to_owned())).await?;
        match found.pop() {
            Some(Found { server, ports }) => {
                let moves = server.moving.is_some() && !server.deleting;
                let moved = if moves {
                    self.state.advance(vec![server.clone()]).await?.remove(&server.id)
                } else {
                    None
                };
                self.state.work_on(Found { server, ports }, moved).await
            }
            None => Ok(Outcome::Done),
        }
    }

    async fn reconcile_many(&self, keys: &[String]) -> Vec<Result<Outcome>> {
        let state = &self.state;
        let found = match state.find(keys).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(error = %error.chain(), "servers are worked on one by one");
                return futures::future::join_all(keys.iter().map(|key| self.reconcile(key))).await;
            }
        };
        let plain = found.iter().map(|found| &found.server).filter(|s| plain(s)).cloned().collect();
        let built = state.build_together(plain).await.unwrap_or_else(|error| {
            tracing::debug!(error = %error.chain(), "servers are built one by one");
            BTreeSet::new()
        });
        let movers = found.iter().map(|found| &found.server).filter(|s| s.moving.is_some() && !s.deleting);
        let moved = state.advance(movers.cloned().collect()).await;
        if let Err(error) = &moved {
            tracing::debug!(error = %error.chain(), "servers are moved one by one");
        }
        let mut found: BTreeMap<String, Found> =
            found.into_iter().map(|found| (found.server.id.to_string(), found)).collect();
        let each = keys.iter().map(|key| {
            let found = found.remove(key).filter(|found| !built.contains(&found.server.id));
            let moved = moved.as_ref();
            async move {
                match found {
                    Some(found) if found.server.moving.is_some() && moved.is_err() => {
                        self.reconcile(key).await
                    }
                    Some(found) => {
                        let moved = moved.ok().and_then(|moved| moved.get(&found.server.id)).copied();
                        state.work_on(found, moved).await
                    }
                    None => Ok(Outcome::Done),
                }
            }
        });
        futures::future::join_all(each.collect::<Vec<_>>()).await
    }

    /// A server that has a host is worked on where the host is: there its reports are.
    async fn shards(&self, keys: &[String]) -> Result<Vec<u32>> {
        let ids: Vec<ServerId> = keys.iter().filter_map(|key| key.parse().ok()).collect();
        let servers =
            self.state.store.read(move |tx| tx.list::<Server>(&Query::new().is_in("id", &ids))).await?;
        let hosts: BTreeMap<String, String> =
            servers.iter().filter_map(|s| Some((s.id.to_string(), s.host_id?.to_string()))).collect();
        Ok(keys.iter().map(|key| ::reconcile::shard_of(hosts.get(key).unwrap_or(key))).collect())
    }

    /// Servers that go, are being built, or have something under way. Of those that did not change since they were found
    /// converged only the versions are read.
    async fn sweep(&self) -> Result<Vec<String>> {
        let mut keys = self.state.store.read(moving::under_way).await?;
        let before = std::mem::take(&mut *self.converged.lock());
        let mut converged = HashMap::with_capacity(before.len());
        let mut last = String::new();
        loop {
            // Page by page: neither memory nor readers are held for long, however many servers there are.
            let after = last.clone();
            let page = move |tx: &mut Tx<'_>| {
                tx.versions::<Server>(&Query::new().gt("id", &after).sort("id", Order::Asc).limit(PAGE))
            };
            let page = self.state.store.read(page).await?;
            let mut changed = Vec::new();
            for (id, version) in page.iter().filter_map(|(id, v)| Some((id.parse::<ServerId>().ok()?, *v))) {
                if before.get(&id) == Some(&version) {
                    converged.insert(id, version);
                } else {
                    changed.push(id);
                }
            }
            if !changed.is_empty() {
                let rows = move |tx: &mut Tx<'_>| tx.list::<Server>(&Query::new().is_in("id", &changed));
                for server in self.state.store.read(rows).await? {
                    if open(&server) {
                        keys.push(server.id.to_string());
                    } else {
                        converged.insert(server.id, Version::of(&server.meta));
                    }
                }
            }
            match page.last() {
                Some((id, _)) if page.len() == PAGE => last.clone_from(id),
                _ => break,
            }
        }
        *self.converged.lock() = converged;
        Ok(keys)
    }
}

/// A server that is to be worked on.
struct Found {
    server: Server,
    /// Its ports as they are now, where they may have changed.
    ports: Option<Vec<PortInfo>>,
}

/// What a step of the build says.
pub(crate) enum Step<T> {
    /// Go on.
    Next(T),
    /// Wait.
    Wait(Duration),
    /// It cannot be.
    Fail(Error),
}

/// Whether the server is being made anew on another host.
fn rebuilding(server: &Server) -> bool {
    server.task.as_deref() == Some(REBUILDING)
}

/// Whether the server needs no more than any host and ports that are made for it.
fn plain(server: &Server) -> bool {
    server.vm_state == VmState::Building
        && !(server.deleting || server.ready || rebuilding(server))
        && server.host_id.is_none()
        && server.disks.is_empty()
        && server.group_id.is_none()
        && server.same_host.is_empty()
        && server.different_host.is_empty()
        && server.nics.iter().all(|n| !n.given && !n.detaching && n.fixed_ip.is_none())
}

/// Whether an error is a refusal that asking again does not change.
fn refused(error: &Error) -> bool {
    !error.is_transient()
}

impl State {
    /// The servers of these keys, with their ports where they may have changed.
    async fn find(&self, keys: &[String]) -> Result<Vec<Found>> {
        let ids: Vec<ServerId> = keys.iter().filter_map(|key| key.parse().ok()).collect();
        let hinted: BTreeSet<ServerId> = {
            let mut stale = self.stale.lock();
            ids.iter().filter(|id| stale.remove(id)).copied().collect()
        };
        let found = self.find_with_ports(ids, &hinted).await;
        if found.is_err() {
            self.stale.lock().extend(hinted);
        }
        found
    }

    async fn find_with_ports(&self, ids: Vec<ServerId>, hinted: &BTreeSet<ServerId>) -> Result<Vec<Found>> {
        let servers = self.store.read(move |tx| tx.list::<Server>(&Query::new().is_in("id", &ids))).await?;
        // A hint that ports changed may have come to another replica.
        let asks = |s: &Server| s.ready && !s.deleting && (self.store.shared() || hinted.contains(&s.id));
        let devices: Vec<String> = servers.iter().filter(|s| asks(s)).map(|s| s.id.to_string()).collect();
        let mut ports =
            if devices.is_empty() { BTreeMap::new() } else { self.deps.networks.ports_of(&devices).await? };
        let found = servers.into_iter().map(|server| {
            let ports = asks(&server).then(|| ports.remove(&server.id.to_string()).unwrap_or_default());
            Found { server, ports }
        });
        Ok(found.collect())
    }

    /// `moved`: what is to be said of a server that took a step to another host; nothing else is done with it.
    async fn work_on(&self, Found { server, ports }: Found, moved: Option<Outcome>) -> Result<Outcome> {
        let (id, asked) = (server.id, ports.is_some());
        let outcome = match moved {
            Some(outcome) => Ok(outcome),
            None if server.deleting => self.tear_down(&server).await,
            None => self.build_up(server, ports).await,
        };
        // What the ports of a server that moves are now is asked when it stands somewhere.
        if asked && (outcome.is_err() || moved.is_some()) {
            self.stale.lock().insert(id);
        }
        outcome
    }

    async fn build_up(&self, mut server: Server, ports: Option<Vec<PortInfo>>) -> Result<Outcome> {
        if server.ready {
            return self.keep_up(server, ports).await;
        }
        if server.vm_state != VmState::Building && !rebuilding(&server) {
            // A build that failed stays failed until it is deleted.
            return Ok(Outcome::Done);
        }
        if server.host_id.is_none() {
            if rebuilding(&server) {
                // What it had at the host that was lost.
                self.deps.placement.deallocate(server.id).await?;
            }
            match self.place(std::slice::from_mut(&mut server)).await?.pop() {
                Some(Step::Wait(pause)) => return Ok(Outcome::After(pause)),
                Some(Step::Fail(error)) => return self.fail(&server, &error).await,
                Some(Step::Next(())) | None => {}
            }
        }
        match self.bring_disks(&mut server).await? {
            Step::Next(()) => {}
            Step::Wait(pause) => {
                // Where it goes is kept: its volumes are being made there.
                self.keep_place(&server).await?;
                return Ok(Outcome::After(pause));
            }
            Step::Fail(error) => return self.fail(&server, &error).await,
        }
        match self.bring_nics(&mut server, false).await? {
            Step::Next(()) => {}
            Step::Wait(pause) => return Ok(Outcome::After(pause)),
            Step::Fail(error) => return self.fail(&server, &error).await,
        }
        self.hand_over(vec![server]).await?;
        Ok(Outcome::Done)
    }

    /// Writes everything that was brought; from now on the hosts have the servers.
    async fn hand_over(&self, built: Vec<Server>) -> Result<()> {
        self.store
            .write(move |tx| {
                let rows = tx.list::<Server>(&Query::new().is_in("id", built.iter().map(|s| s.id)))?;
                let mut rows: BTreeMap<ServerId, Server> = rows.into_iter().map(|s| (s.id, s)).collect();
                let mut handed = Vec::new();
                for built in &built {
                    let Some(mut server) = rows.remove(&built.id) else { continue };
                    if server.deleting || server.ready {
                        tx.wake("server", server.id);
                        continue;
                    }
                    server.host_id = built.host_id;
                    server.host_name.clone_from(&built.host_name);
                    server.zone.clone_from(&built.zone);
                    merge(&mut server, built);
                    server.ready = true;
                    if !rebuilding(&server) {
                        server.task = Some("spawning".to_owned());
                    }
                    handed.push(server);
                }
                tx.update_many(&mut handed)?;
                handed.iter().filter_map(|s| s.host_id).for_each(|host| tx.wake("host", host));
                Ok(())
            })
            .await
    }

    /// Builds servers that need no more than a host and new ports, all together. Answers whom it dealt with;
    /// the others are to be looked at one by one, as are all where this fails.
    async fn build_together(&self, mut servers: Vec<Server>) -> Result<BTreeSet<ServerId>> {
        if servers.len() < 2 {
            return Ok(BTreeSet::new());
        }
        let mut placed = self.place(&mut servers).await?.into_iter();
        servers.retain(|_| matches!(placed.next(), Some(Step::Next(()))));
        self.bring_ports(&mut servers).await?;
        let built = servers.iter().map(|s| s.id).collect();
        self.hand_over(servers).await?;
        Ok(built)
    }

    /// Makes the ports of servers and binds them to their hosts, all together. Ports that were given are not made here.
    pub(crate) async fn bring_ports(&self, servers: &mut [Server]) -> Result<()> {
        let mut requests = Vec::new();
        for server in servers.iter() {
            if server.nics.iter().any(|nic| nic.given || nic.detaching) {
                return Err(Error::conflict(format!("server {} needs a look of its own", server.id)));
            }
            requests.extend(server.nics.iter().map(|nic| self.port_request(server, nic)));
        }
        let ports = self.deps.networks.ensure_ports(&requests).await?;
        let ports: BTreeMap<PortId, PortInfo> = ports.into_iter().map(|p| (p.id, p)).collect();
        for nic in servers.iter_mut().flat_map(|s| &mut s.nics) {
            nic.plugged = ports.get(&nic.port).map(plugged);
        }
        Ok(())
    }

    fn port_request(&self, server: &Server, nic: &Nic) -> PortRequest {
        PortRequest {
            id: nic.port,
            network_id: nic.network,
            project_id: server.project_id.clone(),
            name: String::new(),
            fixed_ip: nic.fixed_ip,
            security_groups: server.security_groups.clone(),
            device_id: server.id.to_string(),
            device_owner: self.owner(server),
            dns_name: server.hostname.clone(),
            host: server.host_name.clone().unwrap_or_default(),
        }
    }

    /// What its ports say of who has them.
    fn owner(&self, server: &Server) -> String {
        format!("compute:{}", server.zone.as_deref().unwrap_or(&self.config.default_zone))
    }

    async fn keep_place(&self, placed: &Server) -> Result<()> {
        let (id, host, name, zone) =
            (placed.id, placed.host_id, placed.host_name.clone(), placed.zone.clone());
        let disks = placed.disks.clone();
        self.store
            .write(move |tx| {
                let Some(mut server) = tx.get::<Server>(&id)? else { return Ok(()) };
                if server.host_id == host && server.disks == disks {
                    return Ok(());
                }
                server.host_id = host;
                server.host_name.clone_from(&name);
                server.zone.clone_from(&zone);
                server.task = Some("block_device_mapping".to_owned());
                server.disks.clone_from(&disks);
                tx.update_status(&mut server)
            })
            .await
    }

    /// Makes and claims the server's volumes.
    async fn bring_disks(&self, server: &mut Server) -> Result<Step<()>> {
        let Some(host) = server.host_id else { return Ok(Step::Next(())) };
        let mut wait = None;
        let (project, user, id) = (server.project_id.clone(), server.user_id.clone(), server.id);
        for disk in &mut server.disks {
            if disk.state == DiskState::Creating {
                let request = VolumeRequest {
                    id: disk.volume,
                    project_id: project.clone(),
                    user_id: user.clone(),
                    name: String::new(),
                    size_gib: disk.size,
                    origin: match disk.origin {
                        Origin::Image(image) => VolumeOrigin::Image(image),
                        Origin::Snapshot(snapshot) => VolumeOrigin::Snapshot(snapshot),
                        Origin::Blank | Origin::Existing => VolumeOrigin::Blank,
                    },
                    volume_type: disk.volume_type.clone(),
                    host: Some(host),
                };
                let made = match self.deps.volumes.ensure_volume(&request).await {
                    Ok(made) => made,
                    Err(error) if refused(&error) => return Ok(Step::Fail(error)),
                    Err(error) => return Err(error),
                };
                match made.status.as_str() {
                    "available" | "reserved" | "attaching" | "in-use" => disk.state = DiskState::Reserved,
                    status if status.starts_with("error") => {
                        return Ok(Step::Fail(Error::internal(format!(
                            "Volume {} did not finish being created: it is in {status} status.",
                            disk.volume
                        ))));
                    }
                    _ => {
                        self.hosts.wait(host, id);
                        wait = Some(SOON);
                        continue;
                    }
                }
            }
            if disk.state == DiskState::Reserved {
                match self.deps.volumes.reserve(disk.volume, disk.attachment, id).await {
                    Ok(()) => disk.state = DiskState::Attaching,
                    Err(error) if refused(&error) => return Ok(Step::Fail(error)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(wait.map_or(Step::Next(()), Step::Wait))
    }

    /// Makes or claims the server's ports and binds them to its host.
    pub(crate) async fn bring_nics(&self, server: &mut Server, moved: bool) -> Result<Step<()>> {
        let Some(host) = server.host_name.clone() else { return Ok(Step::Next(())) };
        let mut nics = std::mem::take(&mut server.nics);
        let mut failed = None;
        // On another host the same ports are plugged anew.
        let moved = moved || rebuilding(server) && !server.ready;
        for nic in nics.iter_mut().filter(|n| (n.plugged.is_none() || moved) && !n.detaching) {
            match self.bring_nic(server, nic, &host).await {
                Ok(info) => nic.plugged = Some(plugged(&info)),
                Err(error) if refused(&error) => {
                    failed = Some(error);
                    break;
                }
                Err(error) => {
                    server.nics = nics;
                    return Err(error);
                }
            }
        }
        server.nics = nics;
        Ok(failed.map_or(Step::Next(()), Step::Fail))
    }

    async fn bring_nic(&self, server: &Server, nic: &Nic, host: &str) -> Result<PortInfo> {
        let networks = &self.deps.networks;
        if nic.given {
            let info = networks.claim_port(nic.port, &server.id.to_string(), &self.owner(server)).await?;
            networks.bind_port(nic.port, Some(host)).await?;
            return Ok(info);
        }
        let made = networks.ensure_ports(&[self.port_request(server, nic)]).await?.pop();
        made.ok_or_else(|| Error::internal(format!("port {} was not made", nic.port)))
    }

    /// A failed build: its claim on a host is given back, the reason is kept. Ports and volumes go with the server.
    async fn fail(&self, server: &Server, error: &Error) -> Result<Outcome> {
        tracing::info!(server = %server.id, error = %error.chain(), "a server cannot be built");
        self.deps.placement.deallocate(server.id).await?;
        let (id, host, disks) = (server.id, server.host_id, server.disks.clone());
        let (message, details) = (error.public().to_owned(), error.chain());
        let code = if error.type_code() == "NoValidHost" { 500 } else { error.kind().status() };
        self.store
            .write(move |tx| {
                let Some(mut server) = tx.get::<Server>(&id)? else { return Ok(()) };
                if server.deleting {
                    return Ok(());
                }
                let action = if rebuilding(&server) { "evacuate" } else { "create" };
                server.vm_state = VmState::Error;
                server.task = None;
                server.fault = Some(Fault {
                    code,
                    message: message.clone(),
                    details: details.clone(),
                    created: tx.now(),
                });
                if host.is_some() {
                    server.disks.clone_from(&disks);
                }
                server.host_id = None;
                server.host_name = None;
                tx.update_status(&mut server)?;
                finish_action(tx, id, action, Some(&message))
            })
            .await?;
        Ok(Outcome::Done)
    }
}

impl State {
    /// A server that its host has: interfaces and volumes come and go, ports change.
    async fn keep_up(&self, mut server: Server, ports: Option<Vec<PortInfo>>) -> Result<Outcome> {
        let before = server.clone();
        let mut wait = None;
        if let Some(ports) = ports {
            refresh_nics(&mut server, &ports);
        }
        match self.bring_disks(&mut server).await? {
            Step::Next(()) => {}
            Step::Wait(pause) => wait = Some(pause),
            Step::Fail(error) => self.drop_disks(&mut server, &error),
        }
        match self.bring_nics(&mut server, false).await? {
            Step::Next(()) => {}
            Step::Wait(pause) => wait = Some(pause),
            Step::Fail(error) => {
                tracing::info!(server = %server.id, error = %error.chain(), "an interface cannot be attached");
                for nic in server.nics.iter_mut().filter(|n| n.plugged.is_none()) {
                    nic.detaching = true;
                }
            }
        }
        self.settle_disks(&before, &mut server).await?;
        self.settle_nics(&before, &mut server).await?;
        if server != before {
            self.write_kept(before, server.clone()).await?;
        }
        if wait.is_none() && unfinished(&server) {
            wait = Some(LATER);
        }
        Ok(wait.map_or(Outcome::Done, Outcome::After))
    }

    /// Writes interfaces and volumes; what the host must know is a change of the spec.
    async fn write_kept(&self, before: Server, after: Server) -> Result<()> {
        self.store
            .write(move |tx| {
                let Some(mut server) = tx.get::<Server>(&after.id)? else { return Ok(()) };
                let old = fold::server_spec(&server);
                merge(&mut server, &after);
                let held = server.disks.clone();
                server.disks.retain(|d| {
                    after.disks.iter().any(|x| x.attachment == d.attachment)
                        || !before.disks.iter().any(|x| x.attachment == d.attachment)
                });
                server.nics.retain(|n| {
                    after.nics.iter().any(|x| x.port == n.port)
                        || !before.nics.iter().any(|x| x.port == n.port)
                });
                let gone = |d: &&Disk| !server.disks.iter().any(|x| x.attachment == d.attachment);
                held.iter().filter(gone).try_for_each(|disk| VolumeClaim::give_back(tx, disk))?;
                if fold::server_spec(&server) == old {
                    return tx.update_status(&mut server);
                }
                tx.update(&mut server)?;
                if let Some(host) = server.host_id {
                    tx.wake("host", host);
                }
                tx.wake("server", server.id);
                Ok(())
            })
            .await
    }

    /// Volumes that cannot be attached after all are taken off again.
    fn drop_disks(&self, server: &mut Server, error: &Error) {
        tracing::info!(server = %server.id, error = %error.chain(), "a volume cannot be attached");
        for disk in &mut server.disks {
            if matches!(disk.state, DiskState::Creating | DiskState::Reserved) {
                disk.state = DiskState::Detaching;
            }
        }
    }

    /// Tells the volume service what the host did.
    async fn settle_disks(&self, before: &Server, server: &mut Server) -> Result<()> {
        let Some(host) = server.host_id else { return Ok(()) };
        let report = self.hosts.server(host, server.id);
        let current = report.filter(|r| r.generation == before.meta.generation);
        let mut gone = Vec::new();
        for disk in &mut server.disks {
            let was = before.disks.iter().find(|d| d.attachment == disk.attachment).map(|d| d.state);
            let there = current.as_ref().map(|r| r.volumes.contains(&disk.volume));
            let converged = current.as_ref().is_some_and(|r| r.converged);
            match (disk.state, was) {
                (DiskState::Attaching, Some(DiskState::Attaching)) if there == Some(true) && converged => {
                    self.deps.volumes.attached(disk.volume, disk.attachment, &disk.device, host).await?;
                    disk.state = DiskState::Attached;
                }
                (DiskState::Detaching, Some(DiskState::Detaching)) if there == Some(false) => {
                    self.deps.volumes.detached(disk.volume, disk.attachment).await?;
                    gone.push(disk.attachment);
                }
                _ => {}
            }
        }
        server.disks.retain(|d| !gone.contains(&d.attachment));
        Ok(())
    }

    /// Ports that the host has unplugged are given back.
    async fn settle_nics(&self, before: &Server, server: &mut Server) -> Result<()> {
        let Some(host) = server.host_id else { return Ok(()) };
        let report = self.hosts.server(host, server.id);
        let current = report.filter(|r| r.generation == before.meta.generation);
        let mut gone = Vec::new();
        for nic in server.nics.iter().filter(|n| n.detaching) {
            let written = before.nics.iter().any(|n| n.port == nic.port && n.detaching);
            let unplugged = current.as_ref().is_some_and(|r| !r.ports.contains(&nic.port));
            if written && (unplugged || nic.plugged.is_none()) {
                self.give_back(nic, &server.id.to_string()).await?;
                gone.push(nic.port);
            }
        }
        server.nics.retain(|n| !gone.contains(&n.port));
        Ok(())
    }

    async fn give_back(&self, nic: &Nic, device: &str) -> Result<()> {
        if nic.given {
            self.deps.networks.release_port(nic.port, device).await
        } else {
            self.deps.networks.delete_port(nic.port).await
        }
    }

    /// Undoes everything in reverse; the row goes last.
    async fn tear_down(&self, server: &Server) -> Result<Outcome> {
        if let (Some(host), true) = (server.host_id, server.ready) {
            let (row, lease) =
                self.store.read(move |tx| Ok((tx.get::<Host>(&host)?, tx.get::<HostLease>(&host)?))).await?;
            // A host that is away lets go when it comes back: its spec will not have the server. Until its lease has
            // ended, though, the guest may still use what would be given back here.
            let ended = lease.is_none_or(|l| self.clock.now() >= l.until.plus(self.config.lease_margin));
            let away = ended && row.is_none_or(|h| !self.is_up(&h));
            if !away && !self.hosts.gone(host, server.id) {
                self.hint("host", host);
                return Ok(Outcome::After(LATER));
            }
        }
        for disk in &server.disks {
            self.deps.volumes.detached(disk.volume, disk.attachment).await?;
            if disk.delete_on_termination {
                self.deps.volumes.delete(disk.volume).await?;
            }
        }
        for nic in &server.nics {
            self.give_back(nic, &server.id.to_string()).await?;
        }
        self.deps.placement.deallocate(server.id).await?;
        if let Some(moving) = server.moving {
            self.deps.placement.deallocate(moving::consumer(moving)).await?;
        }
        let id = server.id;
        self.store.write(move |tx| bury(tx, id)).await?;
        Ok(Outcome::Done)
    }
}

/// Deletes the row, frees what it paid for, keeps what reports need.
fn bury(tx: &mut Tx<'_>, id: ServerId) -> Result<()> {
    let Some(server) = tx.get::<Server>(&id)? else { return Ok(()) };
    tx.delete::<Server>(&id)?;
    server.disks.iter().try_for_each(|disk| VolumeClaim::give_back(tx, disk))?;
    if let Some(mut usage) = tx.get::<Usage>(&server.project_id)? {
        usage.instances = usage.instances.saturating_sub(1);
        usage.cores = usage.cores.saturating_sub(u64::from(server.size.vcpus));
        usage.ram = usage.ram.saturating_sub(server.size.ram);
        tx.update_status(&mut usage)?;
    }
    if let Some(started_at) = server.launched_at {
        tx.insert(&mut PastServer {
            id,
            meta: store::Meta::default(),
            project_id: server.project_id.clone(),
            name: server.name.clone(),
            flavor: server.flavor_name.clone(),
            vcpus: server.size.vcpus,
            ram: server.size.ram,
            disk: server.size.disk + server.size.ephemeral,
            started_at,
            ended_at: tx.now(),
        })?;
    }
    tx.delete_where::<InstanceAction>(&Query::new().eq("server_id", id))?;
    moving::wake_hosts(tx, &server)?;
    tx.delete_where::<Move>(&Query::new().eq("server_id", id))?;
    Ok(())
}

/// Ports may have changed: addresses, groups, floating addresses; or they are gone.
fn refresh_nics(server: &mut Server, ports: &[PortInfo]) {
    server.nics.retain_mut(|nic| {
        if nic.plugged.is_none() {
            return true;
        }
        match ports.iter().find(|p| p.id == nic.port) {
            Some(info) => {
                nic.plugged = Some(plugged(info));
                true
            }
            None => false,
        }
    });
}

/// Notes how an action ended.
pub(crate) fn finish_action(
    tx: &mut Tx<'_>,
    id: ServerId,
    action: &str,
    failure: Option<&str>,
) -> Result<()> {
    let all = tx.list::<InstanceAction>(&Query::new().eq("server_id", id))?;
    for mut one in all.into_iter().filter(|a| a.action == action && a.finish.is_none()) {
        one.finish = Some(tx.now());
        one.success = Some(failure.is_none());
        one.message = failure.map(|_| "Error".to_owned());
        tx.update_status(&mut one)?;
    }
    Ok(())
}

/// Takes over what a reconcile step found out about interfaces and volumes; a wish to detach that came meanwhile stays.
pub(crate) fn merge(server: &mut Server, found: &Server) {
    for nic in &mut server.nics {
        if let Some(new) = found.nics.iter().find(|n| n.port == nic.port) {
            nic.plugged.clone_from(&new.plugged);
            nic.detaching |= new.detaching;
        }
    }
    for disk in &mut server.disks {
        if let Some(new) = found.disks.iter().find(|d| d.attachment == disk.attachment)
            && disk.state != DiskState::Detaching
        {
            disk.state = new.state;
        }
    }
}

fn plugged(info: &PortInfo) -> Plugged {
    Plugged {
        spec: info.nic(),
        addresses: info.fixed_ips.clone(),
        security_groups: info.security_groups.iter().map(|(_, name)| name.clone()).collect(),
        floating: info.floating_ips.iter().map(|(_, floating)| *floating).collect(),
    }
}

/// A new volume of a server, with the next free device name.
pub(crate) fn next_device(server: &Server) -> String {
    let mut taken: Vec<String> = server.disks.iter().map(|d: &Disk| d.device.clone()).collect();
    let locals = usize::from(server.image.is_some())
        + usize::from(server.size.ephemeral > 0)
        + usize::from(server.size.swap > 0);
    for _ in 0..locals {
        let next = names::device(&taken.iter().map(String::as_str).collect::<Vec<_>>());
        taken.push(next);
    }
    names::device(&taken.iter().map(String::as_str).collect::<Vec<_>>())
}
