//! Moving a server that stands still to another host, with its local disks: cold migration.
//!
//! The server is stopped; the other host fetches its disks piece by piece through the control plane; then the row names
//! the other host and the server goes on there. The first host keeps its copy until the move is confirmed, so that it can
//! be taken back. See `docs/adr/0016-servers-move-standing-still.md`.
//!
//! Invariant: the row names one host, and only that one's spec ever says that the server runs. A host is named in place of
//! another only after that one told, of the newest generation of the server, that it stands still: its ledger takes no
//! older one, so it cannot run the server again. No lease is needed for that proof, and none would do: both hosts live.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::reconcile::Outcome;
use base::{Error, HostId, Result, ServerId, Timestamp};
use bytes::Bytes;
use contract::host::{DiskPart, DisksFrom, Power, PowerObserved, ServerReport, ServerSpec};
use store::{Query, Tx};
use uuid::Uuid;

use crate::State;
use crate::logic::fold::server_spec;
use crate::logic::state::task;
use crate::model::{Aggregate, Host, Move, Server, Stage, Told, VmState};
use crate::reconcile::{LATER, Step, finish_action, merge, zone_of};

/// The move's claim on the other host is held under its own id.
pub(crate) fn consumer(moving: Uuid) -> ServerId {
    ServerId(moving)
}

/// Notes what a host tells of a server that moves; answers whether that is news.
pub(crate) fn note(moving: &mut Move, host: HostId, report: &ServerReport, now: Timestamp) -> bool {
    let held = if moving.source == host {
        &mut moving.source_told
    } else if moving.target == Some(host) {
        &mut moving.target_told
    } else {
        return false;
    };
    let told = Told {
        generation: report.generation,
        power: report.power.filter(|_| report.converged),
        failing: report.error.clone().map(|why| {
            let since = held.as_ref().and_then(|t| t.failing.as_ref()).map_or(now, |(since, _)| *since);
            (since, why)
        }),
    };
    let news = held.as_ref() != Some(&told);
    *held = Some(told);
    news
}

/// The moves that servers are in.
pub(crate) fn of<'a>(
    tx: &mut Tx<'_>,
    servers: impl Iterator<Item = &'a Server>,
) -> Result<BTreeMap<ServerId, Move>> {
    let ids: Vec<Uuid> = servers.filter_map(|s| s.moving).collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let moves = tx.list::<Move>(&Query::new().is_in("id", ids))?;
    Ok(moves.into_iter().map(|m| (m.server_id, m)).collect())
}

/// Wakes the folds of all hosts that have to do with a server.
pub(crate) fn wake_hosts(tx: &mut Tx<'_>, server: &Server) -> Result<()> {
    let moves = of(tx, std::iter::once(server))?;
    let hosts: BTreeSet<HostId> = moves.values().flat_map(Move::hosts).chain(server.host_id).collect();
    hosts.into_iter().for_each(|host| tx.wake("host", host));
    Ok(())
}

/// Servers of which the next step is not their owner's.
pub(crate) fn under_way(tx: &mut Tx<'_>) -> Result<Vec<String>> {
    let moves = tx.list::<Move>(&Query::new().eq("open", true))?;
    Ok(moves.iter().filter(|m| m.stage != Stage::Verify).map(|m| m.server_id.to_string()).collect())
}

/// Moves from and to hosts.
pub(crate) fn touching(tx: &mut Tx<'_>, hosts: &[HostId]) -> Result<Vec<Move>> {
    let mut moves = tx.list::<Move>(&Query::new().is_in("source", hosts).eq("open", true))?;
    moves.extend(tx.list::<Move>(&Query::new().is_in("target", hosts).eq("open", true))?);
    moves.sort_unstable_by_key(|m| m.id);
    moves.dedup_by_key(|m| m.id);
    Ok(moves)
}

/// Servers in hosts' specs beside those that they have: such that come, and such that left and may come back.
pub(crate) fn passing(moves: &[Move], servers: &[Server]) -> Vec<(HostId, ServerSpec)> {
    let mut specs = Vec::new();
    for moving in moves {
        let server = servers.iter().find(|s| s.id == moving.server_id);
        let Some(server) = server.filter(|s| !s.deleting && s.moving == Some(moving.id)) else { continue };
        let still = || ServerSpec { power: Power::Stopped, nics: Vec::new(), ..server_spec(server) };
        if moving.stage.keeps_source() && server.host_id != Some(moving.source) {
            specs.push((moving.source, still()));
        }
        if moving.stage == Stage::Copying
            && let Some(target) = moving.target
        {
            let from = DisksFrom { host: moving.source, transfer: moving.id };
            specs.push((target, ServerSpec { disks_from: Some(from), ..still() }));
        }
    }
    specs
}

fn down(power: PowerObserved) -> bool {
    matches!(power, PowerObserved::Shutdown | PowerObserved::Crashed)
}

/// What a host told of the present generation, if it has converged.
fn of_now(told: Option<&Told>, server: &Server) -> Option<PowerObserved> {
    told.filter(|t| t.generation == server.meta.generation).and_then(|t| t.power)
}

/// The state of a server that stands where it shall be.
fn settle(server: &mut Server, power: PowerObserved) {
    server.task = None;
    server.fault = None;
    server.failing_since = None;
    server.vm_state = if power == PowerObserved::Running { VmState::Active } else { VmState::Stopped };
}

/// A server that moves, as it was read.
type Mover = (Server, Move);

/// What is next for it.
enum Next {
    /// Its owner decides; until then it is as any other.
    Owner,
    /// A host has to do something first.
    Wait,
    /// It stands still: a host is chosen.
    Place,
    /// The other host has its disks, or it goes back: it is given to that host.
    Give(HostId, Option<String>),
    /// It stands at the other host.
    Arrived(PowerObserved),
    /// The first host forgets it.
    Confirm,
    /// It stands at the first host again.
    Returned(PowerObserved),
    /// It stays where it is, for this reason.
    CallOff(&'static str),
}

/// A change of the row and its move, in a transaction.
type Change = dyn Fn(&mut Tx<'_>, &mut Server, &mut Move) -> Result<()> + Send + Sync;

impl State {
    /// The next step of servers that move, all together; those that wait for their owner are not answered.
    pub(crate) async fn advance(&self, servers: Vec<Server>) -> Result<BTreeMap<ServerId, Outcome>> {
        if servers.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (movers, hosts) = self.store.read(move |tx| movers(tx, &servers)).await?;
        let lives: BTreeSet<HostId> = hosts.iter().filter(|h| self.is_up(h)).map(|h| h.id).collect();
        let mut told = BTreeMap::new();
        let (mut place, mut give, mut arrived, mut confirm, mut returned) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for mover in movers {
            let (server, moving) = &mover;
            let (id, next) = (server.id, self.next(server, moving, &lives));
            let waits = matches!(next, Next::Wait | Next::Place | Next::Give(..));
            match next {
                Next::Owner => continue,
                Next::Wait => {}
                Next::Place => place.push(mover),
                Next::Give(host, name) => give.push((mover, host, name)),
                Next::Arrived(power) => arrived.push((mover, power)),
                Next::Confirm => confirm.push(mover),
                Next::Returned(power) => returned.push((mover, power)),
                Next::CallOff(why) => self.call_off(server, moving, why).await?,
            }
            told.insert(id, if waits { Outcome::After(LATER) } else { Outcome::Done });
        }
        self.choose(place).await?;
        self.give(give).await?;
        self.arrive(arrived).await?;
        self.confirm(confirm).await?;
        self.welcome_back(returned).await?;
        Ok(told)
    }

    fn next(&self, server: &Server, moving: &Move, lives: &BTreeSet<HostId>) -> Next {
        let source = of_now(moving.source_told.as_ref(), server);
        let target = of_now(moving.target_told.as_ref(), server);
        match (moving.stage, moving.target) {
            (Stage::Stopping, _) if source.is_some_and(down) => Next::Place,
            (Stage::Stopping, _) if server.vm_state == VmState::Error => {
                Next::CallOff("Its host could not stop it.")
            }
            (Stage::Stopping, _) if !lives.contains(&moving.source) => {
                Next::CallOff("Its host does not answer.")
            }
            (Stage::Copying, Some(host)) if target.is_some_and(down) => {
                Next::Give(host, moving.target_name.clone())
            }
            (Stage::Copying, Some(host)) => {
                let failing = moving.target_told.as_ref().and_then(|t| t.failing.as_ref());
                if let Some((since, why)) = failing
                    && self.clock.now() > since.plus(self.config.patience)
                {
                    tracing::warn!(server = %server.id, why, "a server's disks do not arrive");
                    return Next::CallOff("The other host could not take the server's disks over.");
                }
                if lives.contains(&moving.source) && lives.contains(&host) {
                    return Next::Wait;
                }
                Next::CallOff("One of its two hosts does not answer.")
            }
            (Stage::Starting, _) => target.map_or(Next::Wait, Next::Arrived),
            (Stage::Confirming, _) => Next::Confirm,
            (Stage::Reverting, _) if target.is_some_and(down) => {
                Next::Give(moving.source, Some(moving.source_name.clone()))
            }
            (Stage::Returning, _) => source.map_or(Next::Wait, Next::Returned),
            (Stage::Stopping | Stage::Copying | Stage::Reverting, _) => Next::Wait,
            (Stage::Verify | Stage::Ended, _) => Next::Owner,
        }
    }

    /// One transaction on servers that move, as far as nothing changed them since they were read that matters to a host.
    /// `spec`: the hosts have to hear of it.
    async fn step(&self, read: Vec<Mover>, spec: bool, change: Box<Change>) -> Result<()> {
        if read.is_empty() {
            return Ok(());
        }
        self.store
            .write(move |tx| {
                let rows = tx.list::<Server>(&Query::new().is_in("id", read.iter().map(|(s, _)| s.id)))?;
                let mut rows: BTreeMap<ServerId, Server> = rows.into_iter().map(|s| (s.id, s)).collect();
                let mut held = of(tx, rows.values())?;
                let (mut servers, mut moves) = (Vec::new(), Vec::new());
                for (before, stage) in read.iter().map(|(server, moving)| (server, moving.stage)) {
                    let (Some(mut server), Some(mut moving)) =
                        (rows.remove(&before.id), held.remove(&before.id))
                    else {
                        continue;
                    };
                    let same = server.meta.generation == before.meta.generation && !server.deleting;
                    if !same || moving.stage != stage {
                        tx.wake("server", server.id);
                        continue;
                    }
                    change(tx, &mut server, &mut moving)?;
                    if spec || server.moving.is_none() || moving.stage == Stage::Copying {
                        moving.hosts().for_each(|host| tx.wake("host", host));
                    }
                    servers.push(server);
                    moves.push(moving);
                }
                if spec {
                    tx.update_many(&mut servers)?
                } else {
                    tx.update_status_many(&mut servers)?
                }
                tx.update_status_many(&mut moves)
            })
            .await
    }

    /// Chooses where servers go that stand still.
    async fn choose(&self, read: Vec<Mover>) -> Result<()> {
        if read.is_empty() {
            return Ok(());
        }
        let wanted =
            |(server, moving): &Mover| Server { host_wanted: moving.host_wanted.clone(), ..server.clone() };
        let mut placed: Vec<Server> = read.iter().map(wanted).collect();
        let told = self.place(&mut placed).await?;
        let (mut chosen, mut hosts) = (Vec::new(), BTreeMap::new());
        for ((mover, placed), told) in read.into_iter().zip(placed).zip(told) {
            match told {
                Step::Fail(error) => self.call_off(&mover.0, &mover.1, error.public()).await?,
                Step::Wait(_) => {}
                Step::Next(()) => {
                    hosts.insert(placed.id, (placed.host_id, placed.host_name));
                    chosen.push(mover);
                }
            }
        }
        let change = move |_: &mut Tx<'_>, server: &mut Server, moving: &mut Move| {
            if let Some((host, name)) = hosts.get(&server.id) {
                (moving.target, moving.target_name) = (*host, name.clone());
                moving.stage = Stage::Copying;
                server.task = Some(task::MIGRATING.to_owned());
            }
            Ok(())
        };
        self.step(chosen, false, Box::new(change)).await
    }

    /// From now on servers are at other hosts, with their ports.
    async fn give(&self, read: Vec<(Mover, HostId, Option<String>)>) -> Result<()> {
        if read.is_empty() {
            return Ok(());
        }
        let zones = self.store.read(|tx| tx.list::<Aggregate>(&Query::new())).await?;
        let (mut movers, mut there) = (Vec::new(), Vec::new());
        for (mover, host, name) in read {
            let zone = name.as_ref().map(|name| zone_of(&zones, name, &self.config.default_zone));
            there.push(Server { host_id: Some(host), host_name: name, zone, ..mover.0.clone() });
            movers.push(mover);
        }
        if self.bring_ports(&mut there).await.is_err() {
            // One of them is in the way of the others.
            for server in &mut there {
                // A port that is gone is taken off as from any other server.
                if let Step::Fail(error) = self.bring_nics(server, true).await? {
                    tracing::info!(server = %server.id, error = %error.chain(), "an interface cannot follow");
                }
            }
        }
        let there: BTreeMap<ServerId, Server> = there.into_iter().map(|s| (s.id, s)).collect();
        let change = move |_: &mut Tx<'_>, server: &mut Server, moving: &mut Move| {
            let Some(there) = there.get(&server.id) else { return Ok(()) };
            server.host_id = there.host_id;
            server.host_name.clone_from(&there.host_name);
            server.zone.clone_from(&there.zone);
            merge(server, there);
            server.power = moving.power;
            server.failing_since = None;
            if moving.stage == Stage::Copying {
                moving.stage = Stage::Starting;
                server.task = Some(task::FINISHING.to_owned());
            } else {
                moving.stage = Stage::Returning;
            }
            Ok(())
        };
        self.step(movers, true, Box::new(change)).await
    }

    /// Servers go on at their new hosts.
    async fn arrive(&self, read: Vec<(Mover, PowerObserved)>) -> Result<()> {
        let powers: BTreeMap<ServerId, PowerObserved> = read.iter().map(|((s, _), p)| (s.id, *p)).collect();
        let change = move |tx: &mut Tx<'_>, server: &mut Server, moving: &mut Move| {
            moving.stage = Stage::Verify;
            powers.get(&server.id).into_iter().for_each(|power| settle(server, *power));
            // Its ports may have changed meanwhile.
            tx.wake("server", server.id);
            finish_action(tx, server.id, "migrate", None)
        };
        self.step(read.into_iter().map(|(mover, _)| mover).collect(), false, Box::new(change)).await
    }

    /// The first hosts forget servers; what was claimed of the second is the servers'.
    async fn confirm(&self, read: Vec<Mover>) -> Result<()> {
        if read.is_empty() {
            return Ok(());
        }
        let claims: Vec<_> = read.iter().map(|(server, moving)| (server.id, consumer(moving.id))).collect();
        self.deps.placement.take_over(&claims).await?;
        let change = |tx: &mut Tx<'_>, server: &mut Server, moving: &mut Move| {
            end(tx, server, moving, "confirmed");
            server.task = None;
            finish_action(tx, server.id, "confirmResize", None)
        };
        self.step(read, false, Box::new(change)).await
    }

    /// Servers go on at their first hosts.
    async fn welcome_back(&self, read: Vec<(Mover, PowerObserved)>) -> Result<()> {
        for ((_, moving), _) in &read {
            self.deps.placement.deallocate(consumer(moving.id)).await?;
        }
        let powers: BTreeMap<ServerId, PowerObserved> = read.iter().map(|((s, _), p)| (s.id, *p)).collect();
        let change = move |tx: &mut Tx<'_>, server: &mut Server, moving: &mut Move| {
            end(tx, server, moving, "reverted");
            powers.get(&server.id).into_iter().for_each(|power| settle(server, *power));
            finish_action(tx, server.id, "revertResize", None)
        };
        self.step(read.into_iter().map(|(mover, _)| mover).collect(), false, Box::new(change)).await
    }

    /// The server stays where it is and goes on there.
    async fn call_off(&self, server: &Server, moving: &Move, why: &str) -> Result<()> {
        tracing::info!(server = %server.id, why, "a server cannot be moved");
        self.deps.placement.deallocate(consumer(moving.id)).await?;
        let mut here = server.clone();
        // They may have been bound to the other host already.
        if let Step::Fail(error) = self.bring_nics(&mut here, true).await? {
            tracing::info!(server = %server.id, error = %error.chain(), "an interface is lost");
        }
        let why = why.to_owned();
        let change = move |tx: &mut Tx<'_>, server: &mut Server, moving: &mut Move| {
            end(tx, server, moving, "error");
            moving.message = Some(why.clone());
            server.power = moving.power;
            let up = moving.power == Power::Running;
            server.task = up.then(|| "powering-on".to_owned());
            if server.vm_state != VmState::Error {
                server.vm_state = if up { VmState::Active } else { VmState::Stopped };
            }
            finish_action(tx, server.id, "migrate", Some(&why))
        };
        self.step(vec![(server.clone(), moving.clone())], true, Box::new(change)).await
    }

    /// A piece of a disk for the host that the server goes to.
    pub(crate) async fn pass_disk(&self, host: HostId, part: &DiskPart) -> Result<Bytes> {
        let id = part.transfer;
        let moving = self.store.read(move |tx| tx.get::<Move>(&id)).await?;
        let moving = moving.filter(|m| {
            m.open && m.stage == Stage::Copying && m.target == Some(host) && m.server_id == part.server
        });
        let moving = moving.ok_or_else(|| {
            Error::conflict(format!("Server {} does not move to host {host}.", part.server))
        })?;
        let access = self.access.read().clone();
        let access = access.ok_or_else(|| Error::unavailable("No host can be asked at present."))?;
        let read = access.read_disk(moving.source, part.server, &part.disk, part.offset);
        tokio::time::timeout(Duration::from_secs(30), read)
            .await
            .map_err(|_| Error::unavailable(format!("Host {} does not answer.", moving.source_name)))?
    }
}

/// Servers with the moves that they are in, and the hosts of these.
fn movers(tx: &mut Tx<'_>, servers: &[Server]) -> Result<(Vec<Mover>, Vec<Host>)> {
    let mut moves = of(tx, servers.iter())?;
    let hosts: BTreeSet<HostId> = moves.values().flat_map(Move::hosts).collect();
    let hosts = tx.list::<Host>(&Query::new().is_in("id", hosts))?;
    let movers = servers.iter().filter_map(|s| Some((s.clone(), moves.remove(&s.id)?)));
    Ok((movers.collect(), hosts))
}

/// A move ends: where the server stands, it stays.
fn end(tx: &mut Tx<'_>, server: &mut Server, moving: &mut Move, status: &str) {
    (moving.open, moving.stage) = (false, Stage::Ended);
    status.clone_into(&mut moving.status);
    server.moving = None;
    tx.wake("server", server.id);
}
