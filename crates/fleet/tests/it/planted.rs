//! Every rule can fail: what is planted is found.

use std::collections::BTreeMap;

use base::{Entropy, PortId, ServerId, VolumeId};
use compute::model::{Fault, Server, Usage, VmState};
use contract::drivers::{Guest, GuestLease, Hypervisor};
use contract::host::{PowerObserved, VolumeSource, VolumeSpec};
use contract::net::{Key, NetworkBackend};
use fleet::check::{Checker, View, Violation};
use fleet::run::{Run, runtime};
use fleet::workload::Expect;
use store::Query;

use crate::options;

/// A fleet at rest with servers, volumes, floating IPs.
async fn at_rest() -> Run {
    let mut options = options(4, 7, 5, "");
    options.profile.workload.think_s = 1.0;
    options.profile.workload.weights.attach_volume = 20;
    options.profile.workload.weights.floating_ip = 15;
    options.profile.workload.weights.create_volume = 15;
    let mut run = Run::prepare(options).await.unwrap();
    run.work().await.unwrap();
    run.rest().await.unwrap();
    let found = Checker::default().look(&run.view().await.unwrap(), true);
    assert!(found.is_empty(), "wrong before anything was planted: {found:?}");
    run
}

fn now(view: &View) -> Vec<Violation> {
    Checker::default().look(view, true)
}

#[track_caller]
fn expect(view: &View, rule: &str, subject: impl ToString) {
    let (found, subject) = (now(view), subject.to_string());
    let is = |v: &Violation| v.rule == rule && v.subject.contains(&subject);
    assert!(found.iter().any(is), "no {rule} about {subject} in {found:?}");
}

fn running(view: &View) -> Server {
    let there = |s: &&Server| s.vm_state == VmState::Active && !s.nics.is_empty();
    view.servers.iter().find(there).unwrap().clone()
}

#[test]
fn on_hosts() {
    runtime().unwrap().block_on(async {
        let run = at_rest().await;
        let view = run.view().await.unwrap();
        let server = running(&view);
        let machine = |v: &View, id| v.machines.iter().position(|m| Some(m.id) == id).unwrap();
        let home = machine(&view, server.host_id);
        let other = (home + 1) % run.machines.len();

        let guest = view.machines[home].guests.iter().find(|g| g.id == server.id).unwrap().clone();
        run.machines[other].sim.hypervisor.plant(guest.clone());
        assert!(
            now(&run.view().await.unwrap()).iter().all(|v| v.rule != "double-run"),
            "it has no lease there"
        );
        let servers = view.machines[other].running.iter().copied().chain([server.id]).collect();
        let until = base::Timestamp(i64::MAX);
        run.machines[other].sim.hypervisor.lease(&GuestLease { until, servers }).await.unwrap();
        expect(&run.view().await.unwrap(), "double-run", server.id);
        run.machines[other].sim.hypervisor.plant(Guest { power: PowerObserved::Shutdown, ..guest.clone() });
        assert!(now(&run.view().await.unwrap()).iter().all(|v| v.rule != "double-run"));
        expect(&run.view().await.unwrap(), "orphan", format!("guest {}", server.id));

        let dice = Entropy::seeded(99);
        let stray = Guest { id: ServerId::random(&dice), ..guest.clone() };
        run.machines[home].sim.hypervisor.plant(stray.clone());
        expect(&run.view().await.unwrap(), "orphan", format!("guest {}", stray.id));

        run.machines[home]
            .sim
            .hypervisor
            .plant(Guest { ports: vec![PortId::random(&dice)], ..guest.clone() });
        expect(&run.view().await.unwrap(), "not-as-told", server.id);
        run.machines[home].sim.hypervisor.crash(server.id);
        expect(&run.view().await.unwrap(), "not-as-told", server.id);

        let volume = view.volumes.iter().find(|v| v.made && v.host.is_some()).unwrap();
        run.machines[machine(&view, volume.host)].sim.storage.lose(volume.id);
        expect(&run.view().await.unwrap(), "volume-lost", volume.id);

        let id = VolumeId::random(&dice);
        let spec = VolumeSpec { id, generation: 1, size_gib: 1, source: VolumeSource::Blank };
        loop {
            // The simulated driver fails now and then.
            use contract::drivers::BlockStorage;
            if run.machines[home].sim.storage.ensure(&spec, None).await.is_ok() {
                break;
            }
        }
        expect(&run.view().await.unwrap(), "orphan", format!("volume {id} on"));
    });
}

#[test]
fn in_networks() {
    runtime().unwrap().block_on(async {
        let run = at_rest().await;
        let view = run.view().await.unwrap();
        let port = view.ports.iter().find(|p| p.device_owner.starts_with("compute:")).unwrap().clone();
        let same_net = |p: &&network::model::Port| p.network_id == port.network_id && p.id != port.id;
        let twin = view.ports.iter().find(same_net).unwrap().clone();

        // The database itself keeps MACs apart, so this one is planted in the view.
        let mut planted = view.clone();
        for p in planted.ports.iter_mut().filter(|p| p.id == twin.id) {
            p.mac_address = port.mac_address;
        }
        expect(&planted, "mac-twice", "port");

        let mut moved = twin.clone();
        moved.fixed_ips = port.fixed_ips.clone();
        run.control.store.write(move |tx| tx.update(&mut moved.clone())).await.unwrap();
        let planted = run.view().await.unwrap();
        expect(&planted, "ip-twice", "port");
        expect(&planted, "address-book", twin.fixed_ips[0].ip_address);
        expect(&planted, "projection", twin.id);

        let group =
            view.groups.iter().find(|g| view.rules.iter().any(|r| r.security_group_id == g.id)).unwrap().id;
        run.control.store.write(move |tx| tx.delete::<network::model::SecurityGroup>(&group)).await.unwrap();
        expect(&run.view().await.unwrap(), "orphan", "rule");

        let id = port.id;
        run.control.store.write(move |tx| tx.delete::<network::model::Port>(&id)).await.unwrap();
        expect(&run.view().await.unwrap(), "orphan", "address");

        let mut lonely = twin.clone();
        lonely.device_owner = "compute:nova".into();
        lonely.device_id = "a-server-that-is-gone".into();
        let there = lonely.id;
        let change = move |tx: &mut store::Tx<'_>| {
            lonely.clone_into(&mut lonely.clone());
            let mut row = tx.need::<network::model::Port>(&there)?;
            row.device_owner.clone_from(&lonely.device_owner);
            row.device_id.clone_from(&lonely.device_id);
            tx.update(&mut row)
        };
        run.control.store.write(change).await.unwrap();
        expect(&run.view().await.unwrap(), "orphan", format!("port {there}"));

        let router = view.routers[0].id;
        while run.control.fabric.remove(Key::Router(router)).await.is_err() {}
        expect(&run.view().await.unwrap(), "projection", router);

        let mut floating = view.floating[0].clone();
        floating.status = if floating.status == "ACTIVE" { "DOWN" } else { "ACTIVE" }.into();
        let id = floating.id;
        run.control.store.write(move |tx| tx.update_status(&mut floating.clone())).await.unwrap();
        expect(&run.view().await.unwrap(), "unconverged", id);
    });
}

#[test]
fn in_accounts() {
    runtime().unwrap().block_on(async {
        let run = at_rest().await;
        let view = run.view().await.unwrap();
        let server = running(&view);

        let mut usage: Usage = view.usage.iter().find(|u| u.instances > 0).unwrap().clone();
        usage.cores += 1;
        let id = usage.id.clone();
        run.control.store.write(move |tx| tx.update_status(&mut usage.clone())).await.unwrap();
        expect(&run.view().await.unwrap(), "quota-recount", id);

        let mut provider = view.providers.iter().find(|p| !p.used.is_empty()).unwrap().clone();
        provider.inventories.values_mut().for_each(|stock| stock.total = 1);
        provider.used.values_mut().for_each(|used| *used += 1);
        let name = provider.name.clone();
        run.control.store.write(move |tx| tx.update_status(&mut provider.clone())).await.unwrap();
        expect(&run.view().await.unwrap(), "over-allocation", &name);
        expect(&run.view().await.unwrap(), "claims-recount", &name);

        let mut consumer = view.consumers[0].clone();
        consumer.id = Entropy::seeded(5).uuid();
        consumer.claims = BTreeMap::new();
        let id = consumer.id;
        run.control.store.write(move |tx| tx.insert(&mut consumer.clone())).await.unwrap();
        expect(&run.view().await.unwrap(), "orphan", format!("claims of {id}"));

        let attached = view.attachments.iter().find(|a| a.server_id.is_some()).unwrap();
        let (volume, attachment) = (attached.volume_id, attached.id);
        run.control.store.write(move |tx| tx.delete::<volume::model::Volume>(&volume)).await.unwrap();
        expect(&run.view().await.unwrap(), "orphan", attachment);

        let tenant = &run.tenants.all[0];
        tenant.owned.lock().servers.insert("never-made".into(), Expect::Present);
        expect(&run.view().await.unwrap(), "acknowledged", "never-made");
        tenant.owned.lock().servers.insert(server.id.to_string(), Expect::Gone);
        expect(&run.view().await.unwrap(), "acknowledged", server.id);

        let mut planted = view.clone();
        planted.failures.push("GET / answered 500".into());
        expect(&planted, "api-5xx", "GET /");
    });
}

#[test]
fn what_does_not_converge() {
    runtime().unwrap().block_on(async {
        let run = at_rest().await;
        let view = run.view().await.unwrap();
        let server = running(&view);
        let mut checker = Checker::default();
        assert!(checker.look(&view, false).is_empty());

        let mut stuck = server.clone();
        stuck.task = Some("rebooting".into());
        run.control.store.write(move |tx| tx.update_status(&mut stuck.clone())).await.unwrap();
        let planted = run.view().await.unwrap();
        expect(&planted, "unconverged", server.id);
        // While the fleet works it may last a while, not for ever, and not at all as long as something excuses it.
        let mut excused = planted.clone();
        excused.troubled = true;
        assert!(checker.look(&planted, false).is_empty());
        tokio::time::advance(std::time::Duration::from_secs(300)).await;
        assert!(checker.look(&excused, false).is_empty());
        tokio::time::advance(std::time::Duration::from_secs(300)).await;
        assert!(checker.look(&planted, false).is_empty());
        tokio::time::advance(std::time::Duration::from_secs(400)).await;
        let found = checker.look(&planted, false);
        assert!(
            found.iter().any(|v| v.rule == "unconverged" && v.subject.contains(&server.id.to_string())),
            "{found:?}"
        );
        assert!(checker.look(&planted, false).is_empty(), "told twice");

        let id = server.id;
        let mute = move |tx: &mut store::Tx<'_>| {
            let mut row = tx.need::<Server>(&id)?;
            row.task = None;
            row.vm_state = VmState::Error;
            row.fault =
                Some(Fault { code: 500, message: String::new(), details: String::new(), created: tx.now() });
            tx.update_status(&mut row)
        };
        run.control.store.write(mute).await.unwrap();
        expect(&run.view().await.unwrap(), "unconverged", id);

        let ids = run.control.store.read(|tx| tx.list::<volume::model::Volume>(&Query::new())).await.unwrap();
        let mut volume = ids.into_iter().find(|v| v.status == "available").unwrap();
        volume.status = "creating".into();
        let id = volume.id;
        run.control.store.write(move |tx| tx.update_status(&mut volume.clone())).await.unwrap();
        expect(&run.view().await.unwrap(), "unconverged", id);
    });
}

#[test]
fn what_goes_back() {
    runtime().unwrap().block_on(async {
        let run = at_rest().await;
        let view = run.view().await.unwrap();
        let mut checker = Checker::default();
        assert!(checker.look(&view, true).is_empty());
        let mut planted = view.clone();
        let server = planted.servers.iter_mut().find(|s| s.meta.generation > 1).unwrap();
        server.meta.generation -= 1;
        server.vm_state = VmState::Stopped;
        let machine = planted.machines.iter_mut().find(|m| m.spec_generation > Some(1)).unwrap();
        machine.spec_generation = Some(1);
        planted.servers.retain(|s| s.vm_state != VmState::Active || s.meta.generation == 0);
        let found = checker.look(&planted, true);
        assert!(found.iter().any(|v| v.rule == "let-go-early"), "{found:?}");
        let back: Vec<&str> =
            found.iter().filter(|v| v.rule == "generation-back").map(|v| v.subject.as_str()).collect();
        assert!(
            back.iter().any(|s| s.starts_with("server")) && back.iter().any(|s| s.starts_with("agent")),
            "{found:?}"
        );
    });
}

#[test]
fn a_volume_that_was_to_go_with_its_server() {
    runtime().unwrap().block_on(async {
        let run = at_rest().await;
        let mut view = run.view().await.unwrap();
        let volume = view.volumes[0].id;
        let mut checker = Checker::default();
        let mut server = running(&view);
        let disk = compute::model::Disk {
            volume,
            attachment: base::AttachmentId::random(&Entropy::seeded(1)),
            origin: compute::model::Origin::Blank,
            near: None,
            size: 1,
            volume_type: None,
            boot_index: None,
            device: String::new(),
            tag: None,
            delete_on_termination: true,
            state: compute::model::DiskState::Attached,
            shared: false,
        };
        server.disks.push(disk);
        let id = server.id;
        view.servers.push(server);
        checker.look(&view, false);
        view.servers.retain(|s| s.id != id);
        let found = checker.look(&view, true);
        assert!(found.iter().any(|v| v.rule == "orphan" && v.text.contains("was to go")), "{found:?}");
    });
}
