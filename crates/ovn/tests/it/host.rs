use contract::drivers::HostNetwork;
use contract::host::{MetadataPort, NicSpec};
use ovn::Host;

use super::support::{Bed, exec};

fn nic(port: &str) -> NicSpec {
    NicSpec {
        port: port.parse().unwrap(),
        network: "11111111-2222-3333-4444-000000000001".parse().unwrap(),
        mac: "fa:16:3e:00:01:11".parse().unwrap(),
        mtu: 1442,
        fixed_ips: vec!["10.0.1.11".parse().unwrap()],
        metadata_port: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taps_are_plugged_found_again_and_removed() {
    let bed = Bed::new("tap");
    let engines = bed.start().await;
    let host = Host::new(&engines, 65_534).unwrap();
    let nic = nic("aaaaaaaa-bbbb-cccc-dddd-000000000001");
    let tap = host.plug(&nic).await.unwrap();
    assert_eq!(tap, "tapaaaaaaaa-bb");
    let shown = exec(bed.netns(), &["ip", "-d", "link", "show", &tap]).await.unwrap();
    for expected in ["mtu 1442", "type tap", "user nobody", "vnet_hdr off", "persist on", ",UP"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(!shown.contains("multi_queue"), "{shown}");
    assert_eq!(host.plug(&nic).await.unwrap(), tap, "again");
    assert_eq!(host.observe().await.unwrap(), vec![nic.port]);
    assert!(!host.installed(nic.port).await.unwrap(), "no logical port of that name");

    // The host's process starts again.
    drop(host);
    let host = Host::new(&engines, 65_534).unwrap();
    assert_eq!(host.observe().await.unwrap(), vec![nic.port]);
    host.unplug(nic.port).await.unwrap();
    host.unplug(nic.port).await.unwrap();
    assert_eq!(host.observe().await.unwrap(), vec![]);
    assert!(exec(bed.netns(), &["ip", "link", "show", &tap]).await.is_err());
    engines.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_namespaces_come_and_go() {
    let bed = Bed::new("meta");
    let engines = bed.start().await;
    let host = Host::new(&engines, 65_534).unwrap();
    let network = nic("aaaaaaaa-bbbb-cccc-dddd-000000000001").network;
    let port = MetadataPort {
        port: "aaaaaaaa-bbbb-cccc-dddd-0000000000ff".parse().unwrap(),
        mac: "fa:16:3e:00:01:02".parse().unwrap(),
        addresses: vec!["10.0.1.2/24".parse().unwrap(), "fd00:1::2/64".parse().unwrap()],
    };
    let listener = host.metadata_listener(network, &port).await.unwrap().unwrap();
    assert_eq!(listener.local_addr().unwrap().to_string(), "169.254.169.254:80");
    drop(listener);
    let listener = host.metadata_listener(network, &port).await.unwrap();
    assert_eq!(host.observe_metadata().await.unwrap(), vec![network]);
    assert_eq!(host.observe().await.unwrap(), vec![], "it is no guest's port");
    let namespace = format!("ovnmeta-{network}");
    let shown = exec(&namespace, &["ip", "-o", "addr", "show", "eth0"]).await.unwrap();
    for expected in ["10.0.1.2/24", "169.254.169.254/32", "fd00:1::2/64", "fe80::a9fe:a9fe/64"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    drop(listener);
    host.remove_metadata(network).await.unwrap();
    host.remove_metadata(network).await.unwrap();
    assert_eq!(host.observe_metadata().await.unwrap(), vec![]);
    assert!(exec(bed.netns(), &["ip", "link", "show", "meta11111111-22"]).await.is_err());

    // What is left is removed by the purge.
    host.metadata_listener(network, &port).await.unwrap();
    let tap = host.plug(&nic("aaaaaaaa-bbbb-cccc-dddd-000000000001")).await.unwrap();
    assert!(exec(bed.netns(), &["ip", "link", "show", &tap]).await.is_ok());
    drop((host, engines));
    drop(bed);
    assert!(!std::path::Path::new("/run/netns").join(namespace).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_takes_what_is_ours_and_leaves_the_rest() {
    let mut bed = Bed::new("purge");
    let netns = bed.namespace("given").await;
    bed.config.netns = Some(netns.clone());
    exec(&netns, &["ip", "link", "add", "tapforeign", "type", "veth", "peer", "name", "foreign1"])
        .await
        .unwrap();
    exec(&netns, &["nft", "add", "table", "ip", "foreign"]).await.unwrap();
    let before = exec(&netns, &["ip", "-o", "link"]).await.unwrap().lines().count();
    let engines = bed.start().await;
    let host = Host::new(&engines, 65_534).unwrap();
    let nic = nic("aaaaaaaa-bbbb-cccc-dddd-000000000002");
    host.plug(&nic).await.unwrap();
    let port = MetadataPort { port: nic.port, mac: nic.mac, addresses: vec!["10.0.1.2/24".parse().unwrap()] };
    let network: base::NetworkId = "21111111-2222-3333-4444-000000000001".parse().unwrap();
    host.metadata_listener(network, &port).await.unwrap();
    assert!(exec(&netns, &["nft", "list", "tables"]).await.unwrap().contains("table ip allod"));
    drop((host, engines));
    for _ in 0..2 {
        ovn::engines::purge(bed.dir.path(), Some(&netns)).await.unwrap();
    }
    let links = exec(&netns, &["ip", "-o", "link"]).await.unwrap();
    assert_eq!(links.lines().count(), before, "{links}");
    assert!(links.contains("tapforeign"));
    assert_eq!(exec(&netns, &["nft", "list", "tables"]).await.unwrap().trim(), "table ip foreign");
    assert!(!std::path::Path::new("/run/netns").join(format!("ovnmeta-{network}")).exists());
    assert!(!bed.dir.path().join("ovn").exists());
}
