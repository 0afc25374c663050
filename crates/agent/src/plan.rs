//! What to do next on a host: pure, no I/O, no clock of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{NetworkId, PortId, ServerId, SnapshotId, Timestamp, VolumeId};
use contract::drivers::Guest;
use contract::host::{
    DiskSource, HostReport, HostSpec, MetadataPort, Power, PowerObserved, ServerReport, ServerSpec,
    SnapshotReport, SnapshotSpec, VolumeReport, VolumeSpec,
};

/// No failure is waited out longer, in microseconds. What says that it is, is a clock that was set back since.
const LONGEST_PAUSE: i64 = 8_000_000;

/// Names one object of a host. The order is the order of work: volumes before servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A volume.
    Volume(VolumeId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A network's metadata namespace.
    Metadata(NetworkId),
    /// A server.
    Server(ServerId),
    /// A plugged port that no server has.
    Port(PortId),
}

/// What is known of an object from the last work on it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// Generation last worked on.
    pub generation: u64,
    /// Whether that work ended well.
    pub converged: bool,
    /// The guest as last observed.
    pub guest: Option<Guest>,
    /// Present size of a volume in GiB.
    pub size_gib: u64,
    /// Last error.
    pub error: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// Not before this moment again.
    pub not_before: Timestamp,
}

impl Known {
    /// Adds this object's line to a report.
    pub fn tell(&self, key: &Key, report: &mut HostReport) {
        match key {
            Key::Server(id) => report.servers.push(ServerReport {
                id: *id,
                generation: self.generation,
                converged: self.converged,
                power: self.guest.as_ref().map(|g| g.power),
                reboots: self.guest.as_ref().map_or(0, |g| g.reboots),
                volumes: self.guest.as_ref().map(|g| g.volumes.clone()).unwrap_or_default(),
                ports: self.guest.as_ref().map(|g| g.ports.clone()).unwrap_or_default(),
                error: self.error.clone(),
            }),
            Key::Volume(id) => report.volumes.push(VolumeReport {
                id: *id,
                generation: self.generation,
                ready: self.converged,
                size_gib: self.size_gib,
                error: self.error.clone(),
            }),
            Key::Snapshot(id) => report.snapshots.push(SnapshotReport {
                id: *id,
                ready: self.converged,
                error: self.error.clone(),
            }),
            Key::Metadata(_) | Key::Port(_) => {}
        }
    }
}

/// What the drivers found.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Guests.
    pub guests: BTreeMap<ServerId, Guest>,
    /// Volumes and their sizes in GiB.
    pub volumes: BTreeMap<VolumeId, u64>,
    /// Snapshots.
    pub snapshots: BTreeSet<SnapshotId>,
    /// Plugged ports.
    pub ports: BTreeSet<PortId>,
    /// Metadata namespaces.
    pub metadata: BTreeSet<NetworkId>,
    /// Metadata namespaces that this process listens in.
    pub listening: BTreeSet<NetworkId>,
}

/// A piece of work on one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make the object as the spec says.
    Ensure(Key),
    /// Make it go.
    Remove(Key),
}

impl Step {
    /// The object.
    pub fn key(&self) -> Key {
        match self {
            Step::Ensure(key) | Step::Remove(key) => *key,
        }
    }

    /// What kind of work it is, as metrics and traces name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Step::Ensure(Key::Server(_)) => "ensure server",
            Step::Ensure(Key::Volume(_)) => "ensure volume",
            Step::Ensure(Key::Snapshot(_)) => "ensure snapshot",
            Step::Ensure(Key::Metadata(_)) => "ensure metadata",
            Step::Ensure(Key::Port(_)) => "ensure port",
            Step::Remove(Key::Server(_)) => "remove server",
            Step::Remove(Key::Volume(_)) => "remove volume",
            Step::Remove(Key::Snapshot(_)) => "remove snapshot",
            Step::Remove(Key::Metadata(_)) => "remove metadata",
            Step::Remove(Key::Port(_)) => "remove port",
        }
    }
}

/// Metadata ports by network, of all servers of the spec.
pub fn metadata_ports(spec: &HostSpec) -> BTreeMap<NetworkId, MetadataPort> {
    spec.servers
        .iter()
        .flat_map(|s| &s.nics)
        .filter_map(|nic| nic.metadata_port.clone().map(|port| (nic.network, port)))
        .collect()
}

/// Whether a guest is already as its spec says.
pub fn satisfied(spec: &ServerSpec, guest: &Guest) -> bool {
    let power = match (spec.power, guest.power) {
        (Power::Running, PowerObserved::Running)
        | (Power::Paused, PowerObserved::Paused)
        | (Power::Suspended, PowerObserved::Suspended)
        // A guest that ended by itself stays down until a newer generation asks for a start.
        | (Power::Stopped | Power::Running, PowerObserved::Shutdown | PowerObserved::Crashed) => true,
        _ => false,
    };
    // Lists of two or three: looked at for every guest at every turn, and not worth a set.
    let volumes = || wanted_volumes(spec);
    let ports = || spec.nics.iter().map(|n| n.port);
    power
        && guest.reboots >= spec.reboots
        && volumes().all(|v| guest.volumes.contains(&v))
        && guest.volumes.iter().all(|v| volumes().any(|w| w == *v))
        && ports().all(|p| guest.ports.contains(&p))
        && guest.ports.iter().all(|p| ports().any(|w| w == *p))
}

/// Volumes a server shall have.
pub fn wanted_volumes(spec: &ServerSpec) -> impl Iterator<Item = VolumeId> + '_ {
    spec.disks.iter().filter_map(|d| match d.source {
        DiskSource::Volume { volume } => Some(volume),
        _ => None,
    })
}

/// Whether a spec has all that the one before had, and a server that was not so before: then there are steps to be taken,
/// and nothing that somebody waits to see gone.
pub fn only_adds(before: &HostSpec, spec: &HostSpec) -> bool {
    // All lists are in id order.
    let server = |s: &Arc<ServerSpec>| spec.servers.binary_search_by_key(&s.id, |s| s.id).is_ok();
    let volume = |v: &VolumeSpec| spec.volumes.binary_search_by_key(&v.id, |v| v.id).is_ok();
    let snapshot = |s: &SnapshotSpec| spec.snapshots.binary_search_by_key(&s.id, |s| s.id).is_ok();
    let same = |s: &Arc<ServerSpec>| {
        let held = before.servers.binary_search_by_key(&s.id, |s| s.id).ok();
        held.and_then(|at| before.servers.get(at)).is_some_and(|held| held.generation == s.generation)
    };
    before.servers.iter().all(server)
        && before.volumes.iter().all(volume)
        && before.snapshots.iter().all(snapshot)
        && !spec.servers.iter().all(same)
}

/// The steps that can be taken now. Objects with work in flight are left out by the caller.
pub fn plan(spec: &HostSpec, observed: &Observed, known: &BTreeMap<Key, Known>, now: Timestamp) -> Vec<Step> {
    let mut steps = Vec::new();
    let fresh = |key: &Key, generation: u64| {
        known.get(key).is_some_and(|k| k.converged && k.generation == generation)
    };
    let waiting = |key: &Key, generation: u64| {
        known.get(key).is_some_and(|k| {
            k.generation == generation && (1..=LONGEST_PAUSE).contains(&(k.not_before.0 - now.0))
        })
    };
    let mut ensure = |key: Key, generation: u64, present: bool| {
        if !(waiting(&key, generation) || fresh(&key, generation) && present) {
            steps.push(Step::Ensure(key));
        }
    };
    for volume in &spec.volumes {
        let present = observed.volumes.get(&volume.id).is_some_and(|size| *size >= volume.size_gib);
        ensure(Key::Volume(volume.id), volume.generation, present);
    }
    for snapshot in &spec.snapshots {
        ensure(Key::Snapshot(snapshot.id), snapshot.generation, observed.snapshots.contains(&snapshot.id));
    }
    let metadata = metadata_ports(spec);
    for network in metadata.keys() {
        ensure(Key::Metadata(*network), 0, observed.listening.contains(network));
    }
    for server in &spec.servers {
        let present = observed.guests.get(&server.id).is_some_and(|guest| satisfied(server, guest));
        ensure(Key::Server(server.id), server.generation, present);
    }
    steps.extend(removals(spec, observed, &metadata).into_iter().map(Step::Remove));
    steps
}

fn removals(spec: &HostSpec, observed: &Observed, metadata: &BTreeMap<NetworkId, MetadataPort>) -> Vec<Key> {
    let servers: BTreeSet<_> = spec.servers.iter().map(|s| s.id).collect();
    let volumes: BTreeSet<_> = spec.volumes.iter().map(|v| v.id).collect();
    let snapshots: BTreeSet<_> = spec.snapshots.iter().map(|s| s.id).collect();
    let ports: BTreeSet<_> = spec.servers.iter().flat_map(|s| &s.nics).map(|n| n.port).collect();
    // What a guest still holds is not taken from under it.
    let held: BTreeSet<_> = observed.guests.values().flat_map(|g| g.volumes.iter().copied()).collect();
    let plugged: BTreeSet<_> = observed.guests.values().flat_map(|g| g.ports.iter().copied()).collect();
    let mut keys = Vec::new();
    keys.extend(observed.guests.keys().filter(|id| !servers.contains(id)).map(|id| Key::Server(*id)));
    keys.extend(
        observed.ports.iter().filter(|p| !ports.contains(p) && !plugged.contains(p)).map(|p| Key::Port(*p)),
    );
    keys.extend(observed.snapshots.iter().filter(|s| !snapshots.contains(s)).map(|s| Key::Snapshot(*s)));
    keys.extend(
        observed
            .volumes
            .keys()
            .filter(|v| !volumes.contains(v) && !held.contains(v))
            .map(|v| Key::Volume(*v)),
    );
    keys.extend(observed.metadata.iter().filter(|n| !metadata.contains_key(n)).map(|n| Key::Metadata(*n)));
    keys
}

#[cfg(test)]
mod tests {
    use base::{Entropy, HostId};
    use contract::host::VolumeSpec;
    use proptest::prelude::*;

    use super::*;

    fn host(volumes: &[u8]) -> HostSpec {
        HostSpec {
            host: HostId::random(&Entropy::seeded(0)),
            generation: 1,
            servers: vec![],
            volumes: volumes
                .iter()
                .map(|n| VolumeSpec {
                    id: VolumeId::random(&Entropy::seeded(u64::from(*n))),
                    generation: 1,
                    size_gib: 1,
                    source: contract::host::VolumeSource::Blank,
                })
                .collect(),
            snapshots: vec![],
        }
    }

    #[test]
    fn a_volume_held_by_a_guest_stays() {
        let id = VolumeId::random(&Entropy::seeded(1));
        let server = ServerId::random(&Entropy::seeded(2));
        let mut observed = Observed { volumes: [(id, 1)].into(), ..Observed::default() };
        let guest =
            Guest { id: server, power: PowerObserved::Running, reboots: 0, volumes: vec![id], ports: vec![] };
        observed.guests.insert(server, guest);
        let steps = plan(&host(&[]), &observed, &BTreeMap::new(), Timestamp(0));
        assert_eq!(steps, vec![Step::Remove(Key::Server(server))]);
        observed.guests.clear();
        let steps = plan(&host(&[]), &observed, &BTreeMap::new(), Timestamp(0));
        assert_eq!(steps, vec![Step::Remove(Key::Volume(id))]);
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nothing_waiting() {
        let spec = host(&[3]);
        let failed = |not_before| Known { generation: 1, not_before, ..Known::default() };
        let planned = |not_before| {
            let known = [(Key::Volume(spec.volumes[0].id), failed(not_before))].into();
            plan(&spec, &Observed::default(), &known, Timestamp::from_secs(100)).len()
        };
        assert_eq!(planned(Timestamp::from_secs(104)), 0);
        assert_eq!(planned(Timestamp::from_secs(99)), 1);
        assert_eq!(planned(Timestamp::from_secs(3_700)), 1);
    }

    proptest! {
        /// Doing every step and planning again leaves nothing to do.
        #[test]
        fn volumes_converge(wanted in prop::collection::btree_set(0u8..20, 0..10), there in prop::collection::btree_set(0u8..20, 0..10)) {
            let spec = host(&wanted.iter().copied().collect::<Vec<_>>());
            let mut observed = Observed {
                volumes: there.iter().map(|n| (VolumeId::random(&Entropy::seeded(u64::from(*n))), 1)).collect(),
                ..Observed::default()
            };
            let mut known = BTreeMap::new();
            for step in plan(&spec, &observed, &known, Timestamp(0)) {
                match step {
                    Step::Ensure(Key::Volume(id)) => {
                        observed.volumes.insert(id, 1);
                        known.insert(Key::Volume(id), Known { generation: 1, converged: true, ..Known::default() });
                    }
                    Step::Remove(Key::Volume(id)) => { observed.volumes.remove(&id); }
                    other => prop_assert!(false, "unexpected {:?}", other),
                }
            }
            prop_assert!(plan(&spec, &observed, &known, Timestamp(0)).is_empty());
            prop_assert_eq!(observed.volumes.len(), wanted.len());
        }
    }
}
