//! What has not converged, and what lies around. It may be so for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{HostId, ServerId};
use compute::model::{DiskState, Server, VmState};
use contract::drivers::Guest;
use contract::host::PowerObserved;
use volume::model::status;

use super::{Open, View, Violation};

/// How long something may be under way while nothing is wrong: the longest pause after a failure is a minute, and a host
/// that fails is given two.
pub const PATIENCE: Duration = Duration::from_secs(360);
/// The same for the network backend: less than the time between two full hand-overs, which would hide what was missed.
const NETWORK_PATIENCE: Duration = Duration::from_secs(150);

struct Found<'a> {
    view: &'a View,
    open: Vec<Open>,
}

impl Found<'_> {
    fn add(&mut self, rule: &'static str, subject: String, text: impl Into<String>, host: Option<HostId>) {
        let excused = self.view.excused(host);
        let violation = Violation { rule, subject, text: text.into() };
        self.open.push(Open { violation, excused, patience: PATIENCE });
    }
}

/// All soft rules.
pub fn all(view: &View) -> Vec<Open> {
    let mut found = Found { view, open: Vec::new() };
    servers(&mut found);
    volumes(&mut found);
    hosts(&mut found);
    orphans(&mut found);
    network(&mut found);
    found.open
}

/// Servers are what their rows say, or carry an error that says why not.
fn servers(found: &mut Found<'_>) {
    let view = found.view;
    let mut guests: BTreeMap<(HostId, ServerId), &Guest> = BTreeMap::new();
    for machine in &view.machines {
        guests.extend(machine.guests.iter().map(|g| ((machine.id, g.id), g)));
    }
    for server in &view.servers {
        let guest = server.host_id.and_then(|h| guests.get(&(h, server.id)).copied());
        let machine = server.host_id.and_then(|h| view.machine(h));
        let runs = machine.is_some_and(|m| m.running.contains(&server.id));
        if let Some((rule, text)) = server_open(server, guest, runs) {
            found.add(rule, format!("server {}", server.id), text, server.host_id);
        }
    }
}

fn server_open(server: &Server, guest: Option<&Guest>, runs: bool) -> Option<(&'static str, String)> {
    let task = server.task.as_deref().unwrap_or("none");
    if server.deleting {
        return Some(("unconverged", "shall go and does not".into()));
    }
    if server.vm_state == VmState::Error {
        let told = server.fault.as_ref().is_some_and(|f| !f.message.is_empty() && !f.details.is_empty());
        return (!told).then(|| ("unconverged", "is in error and does not say why".into()));
    }
    if server.vm_state == VmState::Building || server.task.is_some() {
        return Some(("unconverged", format!("is {} with task {task}", server.vm_state.as_str())));
    }
    let power = guest.map(|g| g.power);
    let as_told = match server.vm_state {
        VmState::Active => power == Some(PowerObserved::Running) && runs,
        VmState::Stopped => matches!(power, None | Some(PowerObserved::Shutdown | PowerObserved::Crashed)),
        VmState::Paused => power == Some(PowerObserved::Paused),
        VmState::Suspended => power == Some(PowerObserved::Suspended),
        VmState::Building | VmState::Error => true,
    };
    if !as_told {
        return Some((
            "not-as-told",
            format!(
                "is told {} and its guest is {power:?}, on the processor: {runs}",
                server.vm_state.as_str()
            ),
        ));
    }
    let moving = |s: DiskState| s != DiskState::Attached;
    if server.disks.iter().any(|d| moving(d.state)) {
        return Some(("unconverged", "has a volume under way".into()));
    }
    if server.nics.iter().any(|n| n.detaching || n.plugged.is_none()) {
        return Some(("unconverged", "has an interface under way".into()));
    }
    let guest = guest?;
    let wanted: BTreeSet<_> = server.disks.iter().map(|d| d.volume).collect();
    let ports: BTreeSet<_> = server.nics.iter().map(|n| n.port).collect();
    if wanted != guest.volumes.iter().copied().collect() {
        return Some(("not-as-told", format!("shall have volumes {wanted:?} and has {:?}", guest.volumes)));
    }
    if ports != guest.ports.iter().copied().collect() {
        return Some(("not-as-told", format!("shall have ports {ports:?} and has {:?}", guest.ports)));
    }
    None
}

/// Volumes and snapshots come to an end of what is done with them.
fn volumes(found: &mut Found<'_>) {
    let view = found.view;
    let mut attached: BTreeMap<_, Vec<&volume::model::Attachment>> = BTreeMap::new();
    for attachment in &view.attachments {
        attached.entry(attachment.volume_id).or_default().push(attachment);
    }
    // A server that could not be built keeps what was reserved for it until it is deleted.
    let failed = |a: &&volume::model::Attachment| {
        view.servers.iter().any(|s| Some(s.id) == a.server_id && s.vm_state == VmState::Error)
    };
    for volume in &view.volumes {
        let held = attached.get(&volume.id).map_or(&[][..], Vec::as_slice);
        let text = match volume.status.as_str() {
            _ if volume.doomed => "shall go and does not".to_owned(),
            status::AVAILABLE if held.is_empty() => continue,
            status::IN_USE if held.iter().any(|a| a.status == "attached") => continue,
            status::RESERVED if !held.is_empty() && held.iter().all(failed) => continue,
            status::ERROR | status::ERROR_EXTENDING | status::ERROR_DELETING if volume.error.is_some() => {
                continue;
            }
            other => format!("is {other} with {} attachments", held.len()),
        };
        found.add("unconverged", format!("volume {}", volume.id), text, volume.host);
    }
    for snapshot in &view.snapshots {
        let text = match snapshot.status.as_str() {
            _ if snapshot.doomed => "shall go and does not".to_owned(),
            status::AVAILABLE => continue,
            status::ERROR | status::ERROR_DELETING if snapshot.error.is_some() => continue,
            other => format!("is {other}"),
        };
        found.add("unconverged", format!("snapshot {}", snapshot.id), text, snapshot.host);
    }
}

/// Agents hold the newest spec.
fn hosts(found: &mut Found<'_>) {
    let view = found.view;
    for machine in &view.machines {
        let Some(host) = view.hosts.iter().find(|h| h.id == machine.id) else {
            let text = "never registered";
            found.add("unconverged", format!("host {}", machine.name), text, Some(machine.id));
            continue;
        };
        if machine.spec_generation.unwrap_or(0) != host.spec_generation {
            let text = format!("holds spec {:?} of {}", machine.spec_generation, host.spec_generation);
            found.add("unconverged", format!("host {}", machine.name), text, Some(machine.id));
        }
    }
}

/// What belongs to something that is gone.
fn orphans(found: &mut Found<'_>) {
    let view = found.view;
    let placed: BTreeMap<ServerId, Option<HostId>> = view.servers.iter().map(|s| (s.id, s.host_id)).collect();
    let by_text: BTreeSet<String> = view.servers.iter().map(|s| s.id.to_string()).collect();
    let nics: BTreeSet<_> = view.servers.iter().flat_map(|s| &s.nics).map(|n| n.port).collect();
    let volumes: BTreeMap<_, _> = view.volumes.iter().map(|v| (v.id, v.host)).collect();
    let snapshots: BTreeSet<_> = view.snapshots.iter().map(|s| s.id).collect();
    let moves: BTreeSet<String> = view.moves.iter().map(|m| m.id.to_string()).collect();
    // Where servers that move have a copy besides.
    let also: BTreeSet<(ServerId, Option<HostId>)> =
        view.moves.iter().flat_map(|m| [(m.server_id, Some(m.source)), (m.server_id, m.target)]).collect();
    for consumer in &view.consumers {
        let id = consumer.id.to_string();
        if !by_text.contains(&id) && !moves.contains(&id) {
            found.add("orphan", format!("claims of {}", consumer.id), "there is no such server", None);
        }
    }
    for port in view.ports.iter().filter(|p| p.device_owner.starts_with("compute:")) {
        if !by_text.contains(&port.device_id) {
            found.add(
                "orphan",
                format!("port {}", port.id),
                format!("server {} is gone", port.device_id),
                None,
            );
        }
    }
    for attachment in &view.attachments {
        if let Some(server) = attachment.server_id.filter(|s| !placed.contains_key(s)) {
            let text = format!("server {server} is gone");
            found.add("orphan", format!("attachment {}", attachment.id), text, None);
        }
    }
    for machine in &view.machines {
        let host = Some(machine.id);
        for guest in &machine.guests {
            if placed.get(&guest.id) != Some(&host) && !also.contains(&(guest.id, host)) {
                found.add(
                    "orphan",
                    format!("guest {} on {}", guest.id, machine.name),
                    "is not placed there",
                    host,
                );
            }
        }
        for (volume, _) in &machine.volumes {
            if volumes.get(volume) != Some(&host) {
                found.add(
                    "orphan",
                    format!("volume {volume} on {}", machine.name),
                    "is not stored there",
                    host,
                );
            }
        }
        for snapshot in machine.snapshots.iter().filter(|s| !snapshots.contains(s)) {
            found.add("orphan", format!("snapshot {snapshot} on {}", machine.name), "is gone", host);
        }
        for port in machine.plugged.iter().filter(|p| !nics.contains(p)) {
            found.add("orphan", format!("port {port} in {}", machine.name), "no server has it", host);
        }
    }
}

/// The network backend holds what the rows say, and rows say what it did.
fn network(found: &mut Found<'_>) {
    let view = found.view;
    let before = found.open.len();
    if let Some(wanted) = &view.wanted {
        for (key, item) in wanted {
            match view.held.get(key) {
                None => found.add("projection", format!("{key:?}"), "the backend does not have it", None),
                Some(held) if held != item => {
                    let text = format!("the backend has it otherwise: {held:?} instead of {item:?}");
                    found.add("projection", format!("{key:?}"), text, None);
                }
                Some(_) => {}
            }
        }
        for key in view.held.keys().filter(|k| !wanted.contains_key(k)) {
            found.add("projection", format!("{key:?}"), "the backend has it and no row says so", None);
        }
    }
    for stone in &view.tombstones {
        found.add("unconverged", format!("tombstone {}", stone.id), "the backend did not confirm", None);
    }
    for floating in &view.floating {
        let leads = floating.port_id.is_some() && floating.router_id.is_some();
        if leads != (floating.status == "ACTIVE") {
            let text = format!("is {} and leads somewhere: {leads}", floating.status);
            found.add("unconverged", format!("floating {}", floating.id), text, None);
        }
    }
    for open in found.open.iter_mut().skip(before) {
        open.patience = NETWORK_PATIENCE;
    }
    ports(found);
}

/// Ports of running guests are up.
fn ports(found: &mut Found<'_>) {
    let view = found.view;
    let up: BTreeSet<_> = view
        .machines
        .iter()
        .flat_map(|m| &m.guests)
        .filter(|g| super::hard::up(g.power))
        .flat_map(|g| g.ports.iter().copied())
        .collect();
    let of: BTreeMap<_, _> =
        view.servers.iter().flat_map(|s| s.nics.iter().map(move |n| (n.port, s.host_id))).collect();
    for port in view.ports.iter().filter(|p| up.contains(&p.id) && p.status != "ACTIVE") {
        let host = of.get(&port.id).copied().flatten();
        found.add(
            "unconverged",
            format!("port {}", port.id),
            format!("is {} under a guest", port.status),
            host,
        );
    }
}
