//! Two guests as namespaces, with packets.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use contract::drivers::HostNetwork;
use contract::host::MetadataPort;
use contract::net::*;
use ovn::backend::Config;
use ovn::{Backend, Host};
use tokio::io::AsyncWriteExt;

use super::scene::{self, group, guest_port, id, metadata_port, network, port_id, rule};
use super::support::{Bed, exec, until};

const LIMIT: Duration = Duration::from_secs(10);

/// What a DHCP client does with its answer.
const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip link set $interface mtu $mtu
ip addr replace $ip/$mask dev $interface
set -- $staticroutes
while [ -n "$1" ]; do
  case "$1" in 0.0.0.0/0) ip route replace default via $2 ;; *) ip route replace $1 via $2 ;; esac
  shift 2
done
echo "ip=$ip mtu=$mtu dns=$dns domain=$domain routes=$staticroutes"
"#;

async fn ping(from: &str, to: &str) -> bool {
    exec(from, &["busybox", "ping", "-c", "1", "-W", "1", to]).await.is_ok()
}

async fn pings(from: &str, to: &str) {
    until(&format!("ping {to}"), LIMIT, async || ping(from, to).await.then_some(())).await;
}

struct Cloud {
    engines: ovn::Engines,
    backend: Backend,
    host: Host,
    vm1: String,
    vm2: String,
    /// Last: it is purged when no supervisor starts daemons again.
    bed: Bed,
}

async fn cloud(name: &str) -> Cloud {
    let bed = Bed::new(name);
    let engines = bed.start().await;
    let backend = Backend::connect(&engines.socket(), &engines.socket(), Config::default());
    let host = Host::new(&engines, 65_534).unwrap();
    backend.ready(LIMIT).await.unwrap();
    let began = Instant::now();
    assert!(backend.sync(&scene::all()).await.unwrap() >= scene::all().len());
    println!("projected in {:?}", began.elapsed());
    assert_eq!(backend.sync(&scene::all()).await.unwrap(), 0, "the second time there is nothing to do");
    let mut guests = Vec::new();
    for number in [11_u8, 12] {
        let device = format!("vm{number}");
        let guest = bed.guest(&format!("g{number}"), &device, &scene::mac(number)).await;
        let began = Instant::now();
        let mut events = backend.events();
        host.attach(&device, port_id(number), guest_port(number).mac).await.unwrap();
        until("installed", LIMIT, async || host.installed(port_id(number)).await.unwrap().then_some(()))
            .await;
        println!("plugged and installed in {:?}", began.elapsed());
        tokio::time::timeout(LIMIT, async {
            while events.recv().await.unwrap() != NetEvent::PortUp(port_id(number)) {}
        })
        .await
        .unwrap();
        println!("up after {:?}", began.elapsed());
        guests.push(guest);
    }
    assert!(backend.ports_up().await.unwrap().contains(&port_id(12)));
    let [vm1, vm2] = <[String; 2]>::try_from(guests).unwrap();
    Cloud { bed, engines, backend, host, vm1, vm2 }
}

impl Cloud {
    async fn dhcp(&self, guest: &str) -> String {
        let script = self.bed.dir.path().join("dhcp.sh");
        std::fs::write(&script, SCRIPT).unwrap();
        exec(self.bed.netns(), &["chmod", "+x", script.to_str().unwrap()]).await.unwrap();
        let script = script.to_str().unwrap();
        let client = [
            "busybox",
            "udhcpc",
            "-i",
            "eth0",
            "-n",
            "-q",
            "-t",
            "8",
            "-T",
            "1",
            "-s",
            script,
            "-O",
            "staticroutes",
            "-O",
            "mtu",
        ];
        exec(guest, &client).await.unwrap()
    }

    async fn apply(&self, item: Item) {
        self.backend.apply(&item).await.unwrap_or_else(|e| panic!("{e:?}"));
    }

    fn log(&self, daemon: &str) -> String {
        std::fs::read_to_string(self.bed.dir.path().join(format!("ovn/log/{daemon}.log"))).unwrap()
    }
}

fn tcp_5000(number: u8) -> SecurityGroupRuleItem {
    SecurityGroupRuleItem {
        protocol: Some(6),
        port_min: Some(5000),
        port_max: Some(5000),
        ..rule(number, true)
    }
}

fn icmp(number: u8) -> SecurityGroupRuleItem {
    SecurityGroupRuleItem { protocol: Some(1), ..rule(number, true) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_talk_as_the_rules_say() {
    let cloud = cloud("rules").await;
    let (vm1, vm2) = (cloud.vm1.as_str(), cloud.vm2.as_str());
    let answer = cloud.dhcp(vm1).await;
    for expected in [
        "ip=10.0.1.11 ",
        "mtu=1442",
        "dns=10.0.1.3",
        "domain=cloud.example",
        "169.254.169.254/32 10.0.1.2",
        "10.9.0.0/16 10.0.1.9",
    ] {
        assert!(answer.contains(expected), "{expected}: {answer}");
    }
    cloud.dhcp(vm2).await;
    pings(vm1, "10.0.1.1").await;

    // OVN answers for names it knows, to whatever server was asked.
    let named = until("names", LIMIT, async || {
        exec(vm1, &["busybox", "nslookup", "vm12.cloud.example", "8.8.8.8"]).await.ok()
    })
    .await;
    assert!(named.contains("10.0.1.12"), "{named}");

    // The router announces itself; a guest's own IPv6 address reaches it.
    until("an IPv6 default route", LIMIT, async || {
        exec(vm1, &["ip", "-6", "route", "show", "default"]).await.ok().filter(|r| r.contains("proto ra"))
    })
    .await;
    exec(vm1, &["ip", "addr", "add", "fd00:1::b/64", "dev", "eth0", "nodad"]).await.unwrap();
    until("ping6", LIMIT, async || {
        exec(vm1, &["busybox", "ping6", "-c", "1", "-W", "1", "fd00:1::1"]).await.ok()
    })
    .await;

    // Default deny, then a rule, then only members of the own group.
    assert!(!ping(vm1, "10.0.1.12").await, "nothing allows it");
    cloud.apply(Item::SecurityGroup(group(2, &[icmp(10), tcp_5000(11)]))).await;
    pings(vm1, "10.0.1.12").await;
    let own = SecurityGroupRuleItem { remote_group: Some(id(6, 1)), ..tcp_5000(12) };
    cloud.apply(Item::SecurityGroup(group(3, &[icmp(10), own.clone()]))).await;

    // An established connection is cut when its rule goes.
    let received = cloud.bed.dir.path().join("received");
    let file = std::fs::File::create(&received).unwrap();
    let nc = |guest: &str, args: &[&str]| {
        let mut command = tokio::process::Command::new("ip");
        command.args(["netns", "exec", guest, "busybox", "nc"]).args(args).kill_on_drop(true);
        command
    };
    let _server = nc(vm2, &["-l", "-p", "5000"]).stdin(Stdio::piped()).stdout(file).spawn().unwrap();
    let got = async |text: &str| {
        until(text, LIMIT, async || std::fs::read_to_string(&received).unwrap().contains(text).then_some(()))
            .await;
    };
    until("server", LIMIT, async || {
        exec(vm2, &["busybox", "netstat", "-lnt"]).await.ok().filter(|t| t.contains(":5000"))
    })
    .await;
    let mut client =
        nc(vm1, &["10.0.1.12", "5000"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    input.write_all(b"first\n").await.unwrap();
    got("first").await;
    cloud.apply(Item::SecurityGroup(group(4, &[icmp(10)]))).await;
    let cut = Instant::now();
    let mut n = 0;
    until("the cut", LIMIT, async || {
        n += 1;
        let line = format!("late{n}\n");
        input.write_all(line.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        (!std::fs::read_to_string(&received).unwrap().contains(&line)).then_some(())
    })
    .await;
    println!("connection cut within {:?}", cut.elapsed());
    assert!(ping(vm1, "10.0.1.12").await, "another rule still holds");

    // An older item is ignored.
    cloud.apply(Item::SecurityGroup(group(3, &[own]))).await;
    pings(vm1, "10.0.1.12").await;

    // The last one: the port leaves the cloud.
    let mut events = cloud.backend.events();
    cloud.host.detach("vm12").await.unwrap();
    tokio::time::timeout(LIMIT, async {
        while events.recv().await.unwrap() != NetEvent::PortDown(port_id(12)) {}
    })
    .await
    .unwrap();
    for daemon in ["controller", "northd"] {
        let log = cloud.log(daemon);
        let bad: Vec<_> =
            log.lines().filter(|l| l.contains("error parsing") || l.contains("|ERR|")).collect();
        assert!(bad.is_empty(), "{bad:#?}");
    }
    cloud.engines.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_world_is_reached_and_reaches_in() {
    let cloud = cloud("world").await;
    let (vm1, vm2, host) = (cloud.vm1.as_str(), cloud.vm2.as_str(), cloud.bed.netns());
    cloud.apply(Item::SecurityGroup(group(2, &[icmp(10), tcp_5000(11)]))).await;
    cloud.dhcp(vm1).await;
    cloud.dhcp(vm2).await;

    // A floating IP answers the host; a transfer through it is whole.
    let began = Instant::now();
    pings(host, "172.24.4.21").await;
    println!("floating IP answers after {:?}", began.elapsed());
    transfer(&cloud).await;

    // One guest reaches another by its floating address, through the router and back.
    pings(vm2, "172.24.4.21").await;

    // Out: to the host, and by its masquerade to a world that knows no way back to us.
    pings(vm2, "172.24.4.1").await;
    let world = cloud.bed.namespace("world").await;
    exec(host, &["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", &world])
        .await
        .unwrap();
    exec(host, &["ip", "addr", "add", "198.51.100.1/24", "dev", "uplink"]).await.unwrap();
    exec(host, &["ip", "link", "set", "uplink", "up"]).await.unwrap();
    exec(&world, &["ip", "addr", "add", "198.51.100.2/24", "dev", "eth0"]).await.unwrap();
    exec(&world, &["ip", "link", "set", "eth0", "up"]).await.unwrap();
    pings(vm2, "198.51.100.2").await;
    pings(vm1, "198.51.100.2").await;

    metadata(&cloud).await;
    heals(&cloud).await;

    // Another process takes over while packets flow.
    let Cloud { bed, engines, backend, host: _host, .. } = &cloud;
    let pids: Vec<_> = engines.status().values().map(|s| s.pid).collect();
    let again = bed.start().await;
    assert_eq!(pids, again.status().values().map(|s| s.pid).collect::<Vec<_>>());
    assert!(ping(host, "172.24.4.21").await, "adopted without a gap");

    // Everything down and up again, as after a reboot that kept the taps.
    drop(again);
    engines.stop().await.unwrap();
    assert!(!ping(host, "172.24.4.21").await);
    let began = Instant::now();
    let again = bed.start().await;
    println!("up again in {:?}", began.elapsed());
    until("installed", LIMIT, async || cloud.host.installed(port_id(11)).await.unwrap().then_some(())).await;
    pings(host, "172.24.4.21").await;
    println!("traffic again after {:?}", began.elapsed());

    // Without its target the floating IP is silent.
    backend
        .apply(&Item::FloatingIp(FloatingIpItem { revision: 2, target: None, ..scene::floating_ip() }))
        .await
        .unwrap();
    until("silence", LIMIT, async || (!ping(host, "172.24.4.21").await).then_some(())).await;
    assert_eq!(backend.sync(&[]).await.unwrap(), 9, "all items but the floating IP that left before");
    assert_eq!(backend.sync(&[]).await.unwrap(), 0);
    again.stop().await.unwrap();
}

async fn transfer(cloud: &Cloud) {
    let (file, sent) = (cloud.bed.dir.path().join("transfer"), cloud.bed.dir.path().join("sent"));
    let data: Vec<u8> = (0..2_000_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes())
        .take(3_000_000)
        .collect();
    std::fs::write(&sent, &data).unwrap();
    let shell = |text: String| ["sh".to_owned(), "-c".to_owned(), text];
    let serve = shell(format!("exec busybox nc -l -p 5000 > {}", file.display()));
    let mut server = tokio::process::Command::new("ip");
    let mut server = server
        .args(["netns", "exec", &cloud.vm1])
        .args(&serve)
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    until("server", LIMIT, async || {
        exec(&cloud.vm1, &["busybox", "netstat", "-lnt"]).await.ok().filter(|t| t.contains(":5000"))
    })
    .await;
    let began = Instant::now();
    let send = shell(format!("exec busybox nc 172.24.4.21 5000 < {}", sent.display()));
    let mut client = tokio::process::Command::new("ip");
    let mut client =
        client.args(["netns", "exec", cloud.bed.netns()]).args(&send).kill_on_drop(true).spawn().unwrap();
    until("transfer", LIMIT, async || std::fs::metadata(&file).ok().filter(|m| m.len() == data.len() as u64))
        .await;
    println!("3 MB through the floating IP in {:?}", began.elapsed());
    assert!(std::fs::read(&file).unwrap() == data);
    let _ = (client.kill().await, server.kill().await);
}

async fn metadata(cloud: &Cloud) {
    let port = MetadataPort {
        port: port_id(scene::METADATA),
        mac: metadata_port().mac,
        addresses: vec!["10.0.1.2/24".parse().unwrap()],
    };
    let listener = cloud.host.metadata_listener(network(1), &port).await.unwrap().unwrap();
    let serve = std::thread::spawn(move || {
        listener.set_nonblocking(false).unwrap();
        let (mut stream, peer) = listener.accept().unwrap();
        let mut request = [0; 512];
        let _ = stream.read(&mut request).unwrap();
        let body = format!("you are {}", peer.ip());
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    });
    let body = until("metadata", LIMIT, async || {
        exec(&cloud.vm1, &["busybox", "wget", "-q", "-Y", "off", "-O", "-", "http://169.254.169.254/"])
            .await
            .ok()
    })
    .await;
    assert_eq!(body, "you are 10.0.1.11");
    serve.join().unwrap();
}

async fn heals(cloud: &Cloud) {
    let kill = |name: &str| {
        let pid = cloud.engines.status()[name].pid.unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        pid
    };
    let back = async |name: &str, was: u32| {
        until(name, LIMIT, async || cloud.engines.status()[name].pid.filter(|p| *p != was)).await;
    };
    for name in ["ovsdb", "northd", "controller", "vswitchd"] {
        let was = kill(name);
        let began = Instant::now();
        back(name, was).await;
        pings(cloud.bed.netns(), "172.24.4.21").await;
        pings(&cloud.vm2, "198.51.100.2").await;
        println!("{name} killed: traffic after {:?}", began.elapsed());
    }
    let all = ["ovsdb", "northd", "controller", "vswitchd"].map(|name| (name, kill(name)));
    let began = Instant::now();
    for (name, was) in all {
        back(name, was).await;
    }
    pings(cloud.bed.netns(), "172.24.4.21").await;
    println!("all killed: traffic after {:?}", began.elapsed());
    // The control plane works again, too.
    cloud.apply(Item::SecurityGroup(group(9, &[tcp_5000(11)]))).await;
    until("the new rule", LIMIT, async || (!ping(&cloud.vm1, "10.0.1.12").await).then_some(())).await;
    cloud.apply(Item::SecurityGroup(group(10, &[icmp(10)]))).await;
    pings(&cloud.vm1, "10.0.1.12").await;
}
