//! The reconciler of kind `server`: builds up what a row asks for, tears down what shall go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ::reconcile::{Outcome, Reconciler};
use async_trait::async_trait;
use base::{Error, HostId, Kind, ResourceProviderId, Result, ServerId};
use contract::services::{PortInfo, PortRequest, VolumeOrigin, VolumeRequest};
use store::{Query, Tx};

use crate::State;
use crate::hosts::unfinished;
use crate::leases::REBUILDING;
use crate::logic::schedule::{self, Ask, HostView};
use crate::logic::{fold, names};
use crate::model::{
    Aggregate, Disk, DiskState, Fault, Host, HostLease, InstanceAction, Nic, Origin, PastServer, Plugged,
    Server, ServerGroup, Usage, VmState, VolumeClaim,
};

/// How soon a volume that is being made is looked at again.
const SOON: Duration = Duration::from_millis(250);
/// How soon a server that waits for its host is looked at again; the host's report comes sooner.
const LATER: Duration = Duration::from_secs(5);

/// The reconciler of kind `server`; keys are server ids.
pub(crate) struct Servers(pub Arc<State>);

#[async_trait]
impl Reconciler for Servers {
    fn kind(&self) -> &'static str {
        "server"
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome> {
        let Ok(id) = key.parse::<ServerId>() else { return Ok(Outcome::Done) };
        let state = &self.0;
        // A hint that ports changed may have come to another replica.
        let stale = state.stale.lock().remove(&id) || state.store.shared();
        let Some(server) = state.store.read(move |tx| tx.get::<Server>(&id)).await? else {
            return Ok(Outcome::Done);
        };
        let outcome = if server.deleting {
            state.tear_down(&server).await
        } else {
            state.build_up(server, stale).await
        };
        if stale && outcome.is_err() {
            state.stale.lock().insert(id);
        }
        outcome
    }

    /// A server that has a host is worked on where the host is: there its reports are.
    async fn shard(&self, key: &str) -> Result<u32> {
        let Ok(id) = key.parse::<ServerId>() else { return Ok(::reconcile::shard_of(key)) };
        let server = self.0.store.read(move |tx| tx.get::<Server>(&id)).await?;
        let host = server.and_then(|s| s.host_id).map(|host| host.to_string());
        Ok(::reconcile::shard_of(host.as_deref().unwrap_or(key)))
    }

    /// Servers that go, are being built, or have something under way.
    async fn sweep(&self) -> Result<Vec<String>> {
        let all = self.0.store.read(|tx| tx.list::<Server>(&Query::new())).await?;
        let open = |s: &Server| {
            s.deleting
                || ((s.vm_state == VmState::Building || rebuilding(s)) && !s.ready)
                || (s.vm_state != VmState::Error && unfinished(s))
        };
        Ok(all.into_iter().filter(open).map(|s| s.id.to_string()).collect())
    }
}

/// What a step of the build says.
enum Step<T> {
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

/// Whether an error is a refusal that asking again does not change.
fn refused(error: &Error) -> bool {
    !error.is_transient()
}

impl State {
    async fn build_up(&self, mut server: Server, stale: bool) -> Result<Outcome> {
        if server.ready {
            return self.keep_up(server, stale).await;
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
            match self.place(&mut server).await? {
                Step::Next(()) => {}
                Step::Wait(pause) => return Ok(Outcome::After(pause)),
                Step::Fail(error) => return self.fail(&server, &error).await,
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
        match self.bring_nics(&mut server).await? {
            Step::Next(()) => {}
            Step::Wait(pause) => return Ok(Outcome::After(pause)),
            Step::Fail(error) => return self.fail(&server, &error).await,
        }
        self.hand_over(server).await
    }

    /// Writes everything that was brought; from now on the host has the server.
    async fn hand_over(&self, built: Server) -> Result<Outcome> {
        self.store
            .write(move |tx| {
                let Some(mut server) = tx.get::<Server>(&built.id)? else { return Ok(()) };
                if server.deleting || server.ready {
                    tx.wake("server", server.id);
                    return Ok(());
                }
                server.host_id = built.host_id;
                server.host_name.clone_from(&built.host_name);
                server.zone.clone_from(&built.zone);
                merge(&mut server, &built);
                server.ready = true;
                if !rebuilding(&server) {
                    server.task = Some("spawning".to_owned());
                }
                tx.update(&mut server)?;
                if let Some(host) = server.host_id {
                    tx.wake("host", host);
                }
                Ok(())
            })
            .await?;
        Ok(Outcome::Done)
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

    /// Chooses a host and claims it.
    async fn place(&self, server: &mut Server) -> Result<Step<()>> {
        let mut resources: BTreeMap<String, u64> = BTreeMap::from([
            ("VCPU".to_owned(), u64::from(server.size.vcpus)),
            ("MEMORY_MB".to_owned(), server.size.ram),
        ]);
        let root = if server.image.is_some() { server.size.disk } else { 0 };
        let local = root + server.size.ephemeral + server.size.swap.div_ceil(1024);
        if local > 0 {
            resources.insert("DISK_GB".to_owned(), local);
        }
        let (required, forbidden) = traits(server);
        // Losing a race for a host means that it is full now: look again.
        for _ in 0..5 {
            let candidates = self.deps.placement.candidates(&resources, &required, &forbidden).await?;
            let ask = match self.ask(server).await {
                Ok(ask) => ask,
                Err(error) if refused(&error) => return Ok(Step::Fail(error)),
                Err(error) => return Err(error),
            };
            let views = self.views(candidates).await?;
            let fit = schedule::order(schedule::filter(&views, &ask), &ask, self.entropy.u64());
            let mut lost = false;
            for host in fit {
                let claim = self
                    .deps
                    .placement
                    .allocate(
                        server.id,
                        &server.project_id,
                        &server.user_id,
                        host.candidate.provider,
                        &resources,
                    )
                    .await;
                match claim {
                    Ok(()) => {
                        server.host_id = Some(host.id);
                        server.host_name = Some(host.name.clone());
                        server.zone = Some(host.zone.clone());
                        if server.group_id.is_none() || self.join_group(server).await? {
                            return Ok(Step::Next(()));
                        }
                        server.host_id = None;
                        lost = true;
                        break;
                    }
                    Err(error) if error.kind() == Kind::Conflict => lost = true,
                    Err(error) => return Err(error),
                }
            }
            if !lost {
                break;
            }
        }
        Ok(Step::Fail(
            Error::not_found("No valid host was found. There are not enough hosts available.")
                .code("NoValidHost"),
        ))
    }

    /// Writes the place of a group's member, unless another member took a place meanwhile that forbids it.
    async fn join_group(&self, placed: &Server) -> Result<bool> {
        let placed = placed.clone();
        self.store
            .write(move |tx| {
                let Some(mut server) = tx.get::<Server>(&placed.id)? else { return Ok(true) };
                let (Some(group_id), Some(host)) = (server.group_id, placed.host_id) else { return Ok(true) };
                if let Some(group) = tx.get::<ServerGroup>(&group_id)? {
                    let members = tx.list::<Server>(&Query::new().eq("group_id", group_id))?;
                    let others: Vec<HostId> = members
                        .iter()
                        .filter(|m| m.id != server.id && !m.deleting)
                        .filter_map(|m| m.host_id)
                        .collect();
                    let here = others.iter().filter(|h| **h == host).count();
                    let most = usize::try_from(group.max_per_host.unwrap_or(1)).unwrap_or(1);
                    let fits = match group.policy.as_str() {
                        "affinity" => here == others.len(),
                        "anti-affinity" => here < most,
                        _ => true,
                    };
                    if !fits {
                        return Ok(false);
                    }
                }
                server.host_id = placed.host_id;
                server.host_name.clone_from(&placed.host_name);
                server.zone.clone_from(&placed.zone);
                tx.update_status(&mut server)?;
                Ok(true)
            })
            .await
    }

    /// What the server asks of its host besides room.
    async fn ask(&self, server: &Server) -> Result<Ask> {
        let mut ask =
            Ask { zone: server.zone_wanted.clone(), host: server.host_wanted.clone(), ..Ask::default() };
        for disk in &server.disks {
            let stored = match disk.origin {
                Origin::Existing => Some(disk.volume),
                _ => disk.near,
            };
            let Some(stored) = stored else { continue };
            if let Some(host) = self.deps.volumes.describe(stored).await?.host {
                only(&mut ask, BTreeSet::from([host]));
            }
        }
        let hints = (server.same_host.clone(), server.different_host.clone(), server.group_id, server.id);
        if hints.0.is_empty() && hints.1.is_empty() && hints.2.is_none() {
            return Ok(ask);
        }
        let (same, different, group) = self
            .store
            .read(move |tx| {
                let (same, different, group, me) = &hints;
                let group = match group {
                    None => None,
                    Some(id) => tx.get::<ServerGroup>(id)?.map(|g| (g, *id)),
                };
                let group = match group {
                    None => None,
                    Some((group, id)) => {
                        let members = tx.list::<Server>(&Query::new().eq("group_id", id))?;
                        let hosts: Vec<HostId> = members
                            .iter()
                            .filter(|m| m.id != *me && !m.deleting)
                            .filter_map(|m| m.host_id)
                            .collect();
                        Some((group, hosts))
                    }
                };
                Ok((hosts_of(tx, same)?, hosts_of(tx, different)?, group))
            })
            .await?;
        if !server.same_host.is_empty() {
            only(&mut ask, same);
        }
        ask.never = different;
        if let Some((group, hosts)) = group {
            for host in &hosts {
                *ask.members.entry(*host).or_default() += 1;
            }
            match group.policy.as_str() {
                "affinity" if !hosts.is_empty() => only(&mut ask, hosts.into_iter().collect()),
                "anti-affinity" => ask.most = Some(group.max_per_host.unwrap_or(1)),
                "soft-affinity" => ask.soft = 1,
                "soft-anti-affinity" => ask.soft = -1,
                _ => {}
            }
        }
        Ok(ask)
    }

    async fn views(&self, candidates: Vec<contract::services::Candidate>) -> Result<Vec<HostView>> {
        let (hosts, aggregates) = self
            .store
            .read(|tx| Ok((tx.list::<Host>(&Query::new())?, tx.list::<Aggregate>(&Query::new())?)))
            .await?;
        let by_id: BTreeMap<ResourceProviderId, &Host> =
            hosts.iter().map(|h| (ResourceProviderId(h.id.0), h)).collect();
        Ok(candidates
            .into_iter()
            .filter_map(|candidate| {
                let host = by_id.get(&candidate.provider)?;
                Some(HostView {
                    id: host.id,
                    name: host.name.clone(),
                    zone: zone_of(&aggregates, &host.name, &self.config.default_zone),
                    up: !host.disabled && self.is_up(host),
                    candidate,
                })
            })
            .collect())
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
    async fn bring_nics(&self, server: &mut Server) -> Result<Step<()>> {
        let Some(host) = server.host_name.clone() else { return Ok(Step::Next(())) };
        let owner = format!("compute:{}", server.zone.as_deref().unwrap_or(&self.config.default_zone));
        let device = server.id.to_string();
        let mut nics = std::mem::take(&mut server.nics);
        let mut failed = None;
        // On another host the same ports are plugged anew.
        let moved = rebuilding(server) && !server.ready;
        for nic in nics.iter_mut().filter(|n| (n.plugged.is_none() || moved) && !n.detaching) {
            match self.bring_nic(server, nic, &device, &owner, &host).await {
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

    async fn bring_nic(
        &self,
        server: &Server,
        nic: &Nic,
        device: &str,
        owner: &str,
        host: &str,
    ) -> Result<PortInfo> {
        let networks = &self.deps.networks;
        let info = if nic.given {
            networks.claim_port(nic.port, device, owner).await?
        } else {
            let request = PortRequest {
                id: nic.port,
                network_id: nic.network,
                project_id: server.project_id.clone(),
                name: String::new(),
                fixed_ip: nic.fixed_ip,
                security_groups: server.security_groups.clone(),
                device_id: device.to_owned(),
                device_owner: owner.to_owned(),
                dns_name: server.hostname.clone(),
            };
            networks.ensure_port(&request).await?
        };
        networks.bind_port(nic.port, Some(host)).await?;
        Ok(info)
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
    async fn keep_up(&self, mut server: Server, stale: bool) -> Result<Outcome> {
        let before = server.clone();
        let mut wait = None;
        if stale {
            self.refresh_nics(&mut server).await?;
        }
        match self.bring_disks(&mut server).await? {
            Step::Next(()) => {}
            Step::Wait(pause) => wait = Some(pause),
            Step::Fail(error) => self.drop_disks(&mut server, &error),
        }
        match self.bring_nics(&mut server).await? {
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

    /// Ports may have changed: addresses, groups, floating addresses; or they are gone.
    async fn refresh_nics(&self, server: &mut Server) -> Result<()> {
        let device = server.id.to_string();
        let mut found = self.deps.networks.ports_of(std::slice::from_ref(&device)).await?;
        let ports = found.remove(&device).unwrap_or_default();
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
        Ok(())
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
    Ok(())
}

/// Notes how an action ended.
fn finish_action(tx: &mut Tx<'_>, id: ServerId, action: &str, failure: Option<&str>) -> Result<()> {
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
fn merge(server: &mut Server, found: &Server) {
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

fn only(ask: &mut Ask, hosts: BTreeSet<HostId>) {
    ask.only = Some(match ask.only.take() {
        None => hosts,
        Some(before) => before.intersection(&hosts).copied().collect(),
    });
}

fn hosts_of(tx: &mut Tx<'_>, servers: &[ServerId]) -> Result<BTreeSet<HostId>> {
    Ok(tx.list::<Server>(&Query::new().is_in("id", servers))?.into_iter().filter_map(|s| s.host_id).collect())
}

/// Traits that flavor and image ask for (`trait:NAME=required|forbidden`).
fn traits(server: &Server) -> (Vec<String>, Vec<String>) {
    let (mut required, mut forbidden) = (Vec::new(), Vec::new());
    let image = server.image.iter().flat_map(|i| &i.properties);
    for (key, value) in server.size.extra_specs.iter().chain(image) {
        let Some(name) = key.strip_prefix("trait:") else { continue };
        match value.as_str() {
            "required" => required.push(name.to_owned()),
            "forbidden" => forbidden.push(name.to_owned()),
            _ => {}
        }
    }
    (required, forbidden)
}

/// The availability zone of a host.
pub(crate) fn zone_of(aggregates: &[Aggregate], host: &str, default: &str) -> String {
    aggregates
        .iter()
        .filter(|a| a.hosts.contains(host))
        .find_map(|a| a.metadata.get("availability_zone").cloned())
        .unwrap_or_else(|| default.to_owned())
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
