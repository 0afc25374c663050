//! The simulated drivers pass the contract tests of their traits.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Entropy, NetworkId, ProjectId, ServerId, UserId};
use contract::drivers::GuestPlan;
use contract::host::{GuestMetadata, Power, ServerSpec};
use contract::net::{Item, NetworkItem};
use contract::suite;
use sim::{Profile, SimHost, SimNetwork};

fn host() -> (SimHost, Entropy) {
    let entropy = Entropy::seeded(1);
    (SimHost::new("h1", Profile::default(), &entropy, Arc::new(SimNetwork::default())), entropy)
}

#[tokio::test(start_paused = true)]
async fn storage() {
    let (host, entropy) = host();
    suite::block_storage(&*host.storage, &entropy).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn hypervisor() {
    let (host, entropy) = host();
    let spec = ServerSpec {
        id: ServerId::random(&entropy),
        generation: 0,
        project_id: ProjectId::random(&entropy),
        user_id: UserId::random(&entropy),
        name: "a".into(),
        power: Power::Running,
        reboots: 0,
        reboot_hard: false,
        vcpus: 1,
        memory_mib: 64,
        properties: BTreeMap::new(),
        disks: vec![],
        nics: vec![],
        config_drive: false,
        disks_from: None,
        metadata: GuestMetadata::default(),
    };
    let plan =
        GuestPlan { spec: spec.into(), disks: vec![], images: vec![], taps: vec![], config_drive: None };
    suite::hypervisor(&*host.hypervisor, plan).await.unwrap();
}

#[tokio::test]
async fn network() {
    let entropy = Entropy::seeded(2);
    let items: Vec<Item> = (0..3)
        .map(|n| {
            Item::Network(NetworkItem {
                id: NetworkId::random(&entropy),
                revision: n,
                project_id: ProjectId::new("p"),
                name: format!("n{n}"),
                admin_state_up: true,
                mtu: 1442,
                physical_network: None,
                vlan: None,
                external: false,
                dns_domain: String::new(),
                subnets: vec![],
                metadata_port: None,
            })
        })
        .collect();
    suite::network_backend(&SimNetwork::default(), &items).await.unwrap();
}
