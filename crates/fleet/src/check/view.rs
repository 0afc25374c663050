//! Everything at one moment: the database, the network backend, the machines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base::{Clock, HostId, PortId, Result, ServerId, SnapshotId, VolumeId};
use compute::model as nova;
use contract::drivers::Guest;
use contract::net::{Item, Key};
use network::model as neutron;
use placement::model as place;
use store::{Query, Resource};
use volume::model as cinder;

use crate::control::Control;
use crate::host::Machine;
use crate::workload::{Expect, Tenants};

/// A machine at one moment.
#[derive(Debug, Clone)]
pub struct MachineView {
    /// Its number.
    pub number: u64,
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Guests on it.
    pub guests: Vec<Guest>,
    /// Of these, those whose CPUs run now: with a lease.
    pub running: BTreeSet<ServerId>,
    /// What is on their root disks.
    pub roots: BTreeMap<ServerId, u64>,
    /// Volumes on it, with their sizes.
    pub volumes: Vec<(VolumeId, u64)>,
    /// Snapshots on it.
    pub snapshots: Vec<SnapshotId>,
    /// Ports plugged in it.
    pub plugged: Vec<PortId>,
    /// Generation of the spec that its agent holds, where one runs.
    pub spec_generation: Option<u64>,
    /// For how long nothing has been wrong with it; `None` while something is.
    pub calm: Option<Duration>,
}

/// Everything at one moment.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "rows of these tables")]
pub struct View {
    pub servers: Vec<nova::Server>,
    pub hosts: Vec<nova::Host>,
    pub usage: Vec<nova::Usage>,
    pub ports: Vec<neutron::Port>,
    pub addresses: Vec<neutron::Allocation>,
    pub members: Vec<neutron::Member>,
    pub groups: Vec<neutron::SecurityGroup>,
    pub rules: Vec<neutron::SecurityGroupRule>,
    pub networks: Vec<neutron::Network>,
    pub subnets: Vec<neutron::Subnet>,
    pub routers: Vec<neutron::Router>,
    pub floating: Vec<neutron::FloatingIp>,
    pub tombstones: Vec<neutron::Tombstone>,
    pub volumes: Vec<cinder::Volume>,
    pub snapshots: Vec<cinder::Snapshot>,
    pub attachments: Vec<cinder::Attachment>,
    pub providers: Vec<place::Provider>,
    pub consumers: Vec<place::Consumer>,
    pub moves: Vec<nova::Move>,
    /// What the network backend shall hold; `None` where no server can say.
    pub wanted: Option<BTreeMap<Key, Item>>,
    /// What it holds.
    pub held: BTreeMap<Key, Item>,
    /// The moment, by the server's clock.
    pub now: base::Timestamp,
    /// The machines.
    pub machines: Vec<MachineView>,
    /// What tenants rely on: kind, id, what.
    pub promises: Vec<(&'static str, String, Expect)>,
    /// Servers whose evacuation was asked for and not refused.
    pub evacuated: BTreeSet<String>,
    /// Answers of 500 and above.
    pub failures: Vec<String>,
    /// Something is wrong that concerns all: no server, no network backend.
    pub troubled: bool,
}

impl View {
    /// Looks at everything.
    ///
    /// # Errors
    /// From the database.
    pub async fn take(
        control: &Control,
        machines: &[Arc<Machine>],
        tenants: &Tenants,
        troubled: bool,
    ) -> Result<Self> {
        let mut view = control
            .store
            .read(|tx| {
                fn all<R: Resource>(tx: &mut store::Tx<'_>) -> Result<Vec<R>> {
                    tx.list::<R>(&Query::new())
                }
                Ok(View {
                    servers: all(tx)?,
                    hosts: all(tx)?,
                    usage: all(tx)?,
                    ports: all(tx)?,
                    addresses: all(tx)?,
                    members: all(tx)?,
                    groups: all(tx)?,
                    rules: all(tx)?,
                    networks: all(tx)?,
                    subnets: all(tx)?,
                    routers: all(tx)?,
                    floating: all(tx)?,
                    tombstones: all(tx)?,
                    volumes: all(tx)?,
                    snapshots: all(tx)?,
                    attachments: all(tx)?,
                    providers: all(tx)?,
                    consumers: all(tx)?,
                    moves: tx.list(&Query::new().eq("open", true))?,
                    ..View::default()
                })
            })
            .await?;
        if let Ok(server) = control.current() {
            let items = server.cloud.network.projection().await?;
            view.wanted = Some(items.into_iter().map(|i| (i.key(), i)).collect());
        }
        view.held = control.fabric.items().into_iter().map(|i| (i.key(), i)).collect();
        view.machines = machines.iter().map(|m| MachineView::of(m)).collect();
        for tenant in &tenants.all {
            let owned = tenant.owned.lock();
            let kinds =
                [("server", &owned.servers), ("volume", &owned.volumes), ("floating", &owned.floating)];
            for (kind, things) in kinds {
                view.promises.extend(things.iter().map(|(id, expect)| (kind, id.clone(), *expect)));
            }
        }
        view.evacuated = tenants.common.api.look(|calls| calls.evacuated.clone());
        view.failures = tenants.common.api.look(|calls| calls.failures.clone());
        view.troubled = troubled;
        view.now = control.clock.now();
        Ok(view)
    }

    /// The machine of an id.
    pub fn machine(&self, id: HostId) -> Option<&MachineView> {
        self.machines.iter().find(|m| m.id == id)
    }

    /// Whether something concerns all, or this host: what is open there is excused.
    pub fn excused(&self, host: Option<HostId>) -> bool {
        self.troubled || host.and_then(|h| self.machine(h)).is_some_and(|m| m.calm.is_none())
    }

    /// Subject, generation and revision of all rows that have them.
    pub fn generations(&self) -> Vec<(String, u64, u64)> {
        fn rows<'a, R: Resource>(kind: &'a str, all: &'a [R]) -> impl Iterator<Item = (String, u64, u64)> + 'a
        where
            R::Id: std::fmt::Display,
        {
            all.iter().map(move |r| (format!("{kind} {}", r.id()), r.meta().generation, r.meta().revision))
        }
        let hosts = self.hosts.iter().map(|h| (format!("spec of {}", h.name), h.spec_generation, 0));
        rows("server", &self.servers)
            .chain(rows("port", &self.ports))
            .chain(rows("network", &self.networks))
            .chain(rows("router", &self.routers))
            .chain(rows("floating", &self.floating))
            .chain(rows("volume", &self.volumes))
            .chain(rows("provider", &self.providers))
            .chain(hosts)
            .collect()
    }
}

impl MachineView {
    fn of(machine: &Machine) -> Self {
        let guests = machine.sim.hypervisor.guests();
        let root = |g: &Guest| Some((g.id, machine.sim.hypervisor.content(g.id, "root")?));
        MachineView {
            roots: guests.iter().filter_map(root).collect(),
            guests,
            number: machine.number,
            id: machine.id,
            name: machine.name.clone(),
            running: machine.sim.hypervisor.running(machine.lease_clock.now()),
            volumes: machine.sim.storage.volumes(),
            snapshots: machine.sim.storage.snapshots(),
            plugged: machine.sim.network.plugged(),
            spec_generation: machine.spec().map(|s| s.generation),
            calm: machine.calm(),
        }
    }
}
