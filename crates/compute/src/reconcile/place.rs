//! Which host a server goes to, and its claim there.

use std::collections::{BTreeMap, BTreeSet};

use base::{Error, HostId, Kind, ResourceProviderId, Result, ServerId};
use contract::services::Claim;
use store::{Query, Tx};

use super::{Step, refused};
use crate::State;
use crate::logic::schedule::{self, Ask, HostView};
use crate::model::{Aggregate, Host, Origin, Server, ServerGroup};
use crate::moving;

/// How often a choice is made anew because others were faster.
const ROUNDS: usize = 16;

impl State {
    /// Chooses hosts and claims them, for all servers with one look at the hosts and one claim. Answers in their order.
    /// A server that moves goes to another host than it has, which is claimed for the move.
    pub(crate) async fn place(&self, servers: &mut [Server]) -> Result<Vec<Step<()>>> {
        let mut told: Vec<Option<Step<()>>> = servers.iter().map(|_| None).collect();
        for _ in 0..ROUNDS {
            let mut board = self.board().await?;
            let mut claims = Vec::new();
            let mut chosen = Vec::new();
            for (at, (server, told)) in
                servers.iter().zip(&mut told).enumerate().filter(|(_, (_, t))| t.is_none())
            {
                let ask = match self.ask(server).await {
                    Ok(ask) => ask,
                    Err(error) if refused(&error) => {
                        *told = Some(Step::Fail(error));
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let choice = schedule::choose(&board, &ask, self.entropy.u64());
                let Some(host) = choice.and_then(|at| board.get_mut(at)) else {
                    *told = Some(Step::Fail(no_valid_host()));
                    continue;
                };
                host.claim(&ask.resources);
                claims.push(Claim {
                    consumer: server.moving.map_or(server.id, moving::consumer),
                    project: server.project_id.clone(),
                    user: server.user_id.clone(),
                    provider: host.candidate().provider,
                    resources: ask.resources,
                });
                chosen.push((at, host.id, host.name.clone(), host.zone.clone()));
            }
            if claims.is_empty() {
                break;
            }
            let claimed = self.deps.placement.allocate(&claims).await?;
            for ((at, id, name, zone), claimed) in chosen.into_iter().zip(claimed) {
                match claimed {
                    Ok(()) => {}
                    // It is full now: look again.
                    Err(error) if error.kind() == Kind::Conflict => continue,
                    Err(error) => return Err(error),
                }
                let (Some(server), Some(told)) = (servers.get_mut(at), told.get_mut(at)) else { continue };
                server.host_id = Some(id);
                server.host_name = Some(name);
                server.zone = Some(zone);
                if server.moving.is_some() || server.group_id.is_none() || self.join_group(server).await? {
                    *told = Some(Step::Next(()));
                } else {
                    server.host_id = None;
                }
            }
        }
        let busy = || Error::unavailable("Other servers were faster, many times.");
        told.into_iter().map(|t| t.ok_or_else(busy)).collect()
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
        let (required, forbidden) = traits(server);
        let mut ask = Ask {
            resources: resources(server),
            required,
            forbidden,
            zone: server.zone_wanted.clone(),
            host: server.host_wanted.clone(),
            never: server.host_id.into_iter().collect(),
            with_disks: server.moving.is_some(),
            ..Ask::default()
        };
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
        ask.never.extend(different);
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

    /// All hosts as the choice sees them, in the order of their ids.
    async fn board(&self) -> Result<Vec<HostView>> {
        let providers = self.deps.placement.providers().await?;
        let hosts = self.host_rows.look(&self.store).await?;
        let aggregates = self.store.read(|tx| tx.list::<Aggregate>(&Query::new())).await?;
        let by_id: BTreeMap<ResourceProviderId, _> = providers.into_iter().map(|p| (p.provider, p)).collect();
        let view = |host: &Host| {
            let candidate = by_id.get(&ResourceProviderId(host.id.0))?.clone();
            let zone = zone_of(&aggregates, &host.name, &self.config.default_zone);
            let up = !host.disabled && self.is_up(host);
            let mut view = HostView::new(host.id, host.name.clone(), zone, up, candidate);
            view.takes_disks = host.capacity.moves_disks;
            Some(view)
        };
        Ok(hosts.iter().filter_map(|host| view(host)).collect())
    }
}

fn no_valid_host() -> Error {
    Error::not_found("No valid host was found. There are not enough hosts available.").code("NoValidHost")
}

/// What a server takes of its host, by resource class.
fn resources(server: &Server) -> BTreeMap<String, u64> {
    let mut resources = BTreeMap::from([
        ("VCPU".to_owned(), u64::from(server.size.vcpus)),
        ("MEMORY_MB".to_owned(), server.size.ram),
    ]);
    let root = if server.image.is_some() { server.size.disk } else { 0 };
    let local = root + server.size.ephemeral + server.size.swap.div_ceil(1024);
    if local > 0 {
        resources.insert("DISK_GB".to_owned(), local);
    }
    resources
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
