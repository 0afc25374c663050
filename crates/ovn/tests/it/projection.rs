//! The projection against a real Northbound, with `ovn-northd` and the parser of `ovn-trace` as judges.

use std::collections::BTreeMap;
use std::time::Duration;

use contract::net::*;
use ovn::backend::Config;
use ovn::ovsdb::{Client, Ref, Remote, Txn, Value, Watch};
use ovn::{Backend, Engines};

use super::golden::rules;
use super::scene::{self, group, guest_port, id, mac, network, port_id};
use super::support::{Bed, exec, until};

const LIMIT: Duration = Duration::from_secs(10);
const WATCHES: &[Watch] = &[
    Watch { table: "Logical_Switch", columns: &["name", "external_ids"], index: &[], tell: false },
    Watch {
        table: "Logical_Switch_Port",
        columns: &["name", "addresses", "external_ids", "dhcpv4_options"],
        index: &[],
        tell: false,
    },
    Watch { table: "ACL", columns: &["match", "external_ids"], index: &[], tell: false },
    Watch { table: "Port_Group", columns: &["name", "ports"], index: &[], tell: false },
    Watch { table: "DHCP_Options", columns: &["options", "external_ids"], index: &[], tell: false },
    Watch { table: "NAT", columns: &["external_ids", "logical_ip"], index: &[], tell: false },
    Watch { table: "HA_Chassis", columns: &["chassis_name"], index: &[], tell: false },
];

fn other(engines: &Engines) -> Client {
    let remotes = vec![Remote::Unix(engines.socket())];
    Client::connect(ovn::ovsdb::Config { remotes, database: "OVN_Northbound", watches: WATCHES })
}

async fn trace(bed: &Bed, engines: &Engines, switch: &str, flow: &str) -> String {
    let db = format!("--db=unix:{}", engines.socket().display());
    let mut command = tokio::process::Command::new("ovn-trace");
    let output = command.args([&db, "--minimal", switch, flow]).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{}: {said}", bed.netns());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything at once, with text that wants to break out.
fn rich() -> Vec<Item> {
    let mut port = guest_port(12);
    port.allowed_address_pairs = vec![
        ("10.0.1.100/32".parse().unwrap(), mac(12).parse().unwrap()),
        ("10.0.1.128/25".parse().unwrap(), mac(99).parse().unwrap()),
    ];
    let options = [
        ("mtu", "1300"),
        ("bootfile-name", "pxelinux.0"),
        ("121", "10.7.0.0/16,10.0.1.7"),
        ("domain-search", "a.example,b.example"),
        ("tftp-server", "boot.example"),
        ("ntp-server", "10.0.1.5,10.0.1.6"),
        ("server-ip-address", "10.0.1.5"),
        ("wpad", "http://x/y"),
        ("lease-time", "600"),
        ("ip-forward-enable", "true"),
        ("249", "10.8.0.0/16,10.0.1.8"),
        ("path-prefix", "/p"),
        ("66", "\"; drop"),
    ];
    port.extra_dhcp_opts = options.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    port.name = "\"; } drop; {".into();
    let mut items = scene::all();
    items.retain(|i| !matches!(i.key(), Key::SecurityGroup(_)) && i.key() != Key::Port(port.id));
    items.push(Item::Port(port));
    items.push(Item::Port(PortItem { port_security: false, ..guest_port(13) }));
    items.push(Item::SecurityGroup(SecurityGroupItem { name: "$x == @y".into(), ..group(1, &rules()) }));
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn northd_and_the_parser_accept_everything() {
    let bed = Bed::new("accept");
    let engines = bed.start().await;
    let backend = Backend::connect(&engines.socket(), &engines.socket(), Config::default());
    backend.ready(LIMIT).await.unwrap();
    backend.sync(&rich()).await.unwrap();
    assert_eq!(backend.sync(&rich()).await.unwrap(), 0);
    let db = format!("--db=unix:{}", engines.socket().display());
    exec(bed.netns(), &["ovn-nbctl", &db, "--wait=sb", "sync"]).await.unwrap();

    let switch = format!("neutron-{}", network(1));
    let discover = |number: u8| {
        format!(
            "inport == \"{}\" && eth.src == {} && eth.dst == ff:ff:ff:ff:ff:ff && ip4.src == 0.0.0.0 && \
             ip4.dst == 255.255.255.255 && udp.src == 68 && udp.dst == 67 && ip.ttl == 64",
            port_id(number),
            mac(number)
        )
    };
    for number in [11, 12] {
        let out = trace(&bed, &engines, &switch, &discover(number)).await;
        assert!(out.contains("output("), "an offer comes back: {out}");
    }
    let flows = exec(bed.netns(), &["ovn-sbctl", &db, "lflow-list"]).await.unwrap();
    for expected in [
        "put_dhcp_opts(offerip = 10.0.1.12",
        "domain_search_list",
        "put_dhcpv6_opts(ia_addr = fd00:1::b",
        "ct_snat",
        "put_nd_ra_opts",
    ] {
        assert!(flows.contains(expected), "{expected}");
    }
    assert!(!flows.contains("drop; {"), "no user text in flows");

    // A spoofed source goes nowhere; the paired one does.
    let from = |ip: &str| {
        format!(
            "inport == \"{}\" && eth.src == {} && eth.dst == {} && ip4.src == {ip} && ip4.dst == 10.0.1.13 && icmp4.type == 8 && ip.ttl == 64",
            port_id(12),
            mac(12),
            mac(13)
        )
    };
    assert!(!trace(&bed, &engines, &switch, &from("10.0.1.66")).await.contains("output"));
    for good in ["10.0.1.12", "10.0.1.100"] {
        assert!(trace(&bed, &engines, &switch, &from(good)).await.contains("output"), "{good}");
    }

    // A network that is down forwards nothing, and forwards again when it is up.
    let down = |revision, up| Item::Network(NetworkItem { revision, admin_state_up: up, ..scene::private() });
    backend.apply(&down(2, false)).await.unwrap();
    exec(bed.netns(), &["ovn-nbctl", &db, "--wait=sb", "sync"]).await.unwrap();
    assert!(!trace(&bed, &engines, &switch, &from("10.0.1.12")).await.contains("output"));
    backend.apply(&down(3, true)).await.unwrap();
    exec(bed.netns(), &["ovn-nbctl", &db, "--wait=sb", "sync"]).await.unwrap();
    assert!(trace(&bed, &engines, &switch, &from("10.0.1.12")).await.contains("output"));

    let hosts = until("a host", LIMIT, async || backend.hosts().await.ok().filter(|h| !h.is_empty())).await;
    let expected = NetHost {
        id: "host1".into(),
        hostname: "host1".into(),
        gateway: true,
        physical_networks: vec!["public".into()],
        alive: true,
    };
    assert_eq!(hosts, vec![expected]);
    let log = std::fs::read_to_string(bed.dir.path().join("ovn/log/northd.log")).unwrap();
    // A port may be asked for before ovn-controller has registered its chassis: northd says so and mends it by itself.
    let passing = ["poll", "Unknown chassis"];
    let bad: Vec<_> =
        log.lines().filter(|l| l.contains("|WARN|") && !passing.iter().any(|p| l.contains(p))).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    engines.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_network_backend() {
    let bed = Bed::new("suite");
    let engines = bed.start().await;
    let backend = Backend::connect(&engines.socket(), &engines.socket(), Config::default());
    let rank = |i: &Item| match i {
        Item::Network(_) => 0,
        Item::Router(_) => 1,
        Item::FloatingIp(_) => 3,
        _ => 2,
    };
    let mut items = rich();
    items.sort_by_key(rank);
    items.insert(0, Item::SecurityGroup(SecurityGroupItem { id: id(6, 2), ..group(1, &[]) }));
    let hosts = async || backend.hosts().await.ok().filter(|h| !h.is_empty()).map(|_| ());
    until("a host", LIMIT, hosts).await;
    contract::suite::network_backend(&backend, &items).await.unwrap();
    engines.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drift_is_repaired_and_foreign_rows_stay() {
    let bed = Bed::new("drift");
    let engines = bed.start().await;
    let backend = Backend::connect(&engines.socket(), &engines.socket(), Config::default());
    backend.ready(LIMIT).await.unwrap();
    backend.sync(&scene::all()).await.unwrap();
    let nb = other(&engines);
    nb.ready(LIMIT).await.unwrap();
    until("the gateway's chassis", LIMIT, async || nb.read(|db| db.rows("HA_Chassis").next().map(|_| ())))
        .await;

    nb.catch_up().await.unwrap();
    let (port, acl, switch, options) = nb.read(|db| {
        let port = db.named("Logical_Switch_Port", &port_id(11).to_string()).next().unwrap().0;
        let acl = db
            .rows("ACL")
            .find(|(_, a)| a.external_id("neutron:security_group_rule_id").is_some())
            .unwrap()
            .0;
        let switch = db
            .named("Logical_Switch", &format!("neutron-{}", network(1)))
            .next()
            .unwrap()
            .1
            .text("name")
            .to_owned();
        let options = db.rows("DHCP_Options").next().unwrap().0;
        (port, acl, switch, options)
    });
    let one = |c: &str, v: Value| BTreeMap::from([(c.to_owned(), v)]);
    let mut txn = Txn::new();
    txn.update("Logical_Switch_Port", &Ref::Uuid(port), one("addresses", Value::one("unknown")));
    txn.update("ACL", &Ref::Uuid(acl), one("match", Value::one("ip")));
    txn.delete("DHCP_Options", options);
    txn.insert("Logical_Switch", one("name", Value::one(switch)));
    txn.insert("Logical_Switch", one("name", Value::one("somebody-elses")));
    txn.insert("Port_Group", one("name", Value::one("pg_foreign")));
    nb.transact(&txn).await.unwrap();
    assert_eq!(backend.sync(&scene::all()).await.unwrap(), 3, "network, group, port");
    assert_eq!(backend.sync(&scene::all()).await.unwrap(), 0);
    nb.catch_up().await.unwrap();
    nb.read(|db| {
        assert_eq!(db.rows("Logical_Switch").count(), 3, "two of ours, one foreign");
        assert_eq!(
            db.row("Logical_Switch_Port", port).unwrap().texts("addresses").next().unwrap().len(),
            "fa:16:3e:00:01:0b 10.0.1.11 fd00:1::b".len()
        );
        assert_ne!(db.row("ACL", acl).unwrap().text("match"), "ip");
        assert!(db.row("Logical_Switch_Port", port).unwrap().refs("dhcpv4_options").next().is_some());
    });

    // Subnets come and go under a port.
    let mut changed = scene::private();
    changed.revision = 2;
    changed.subnets.iter_mut().for_each(|s| s.dhcp = false);
    backend.apply(&Item::Network(changed.clone())).await.unwrap();
    let linked = |n: usize| {
        nb.wait_for(LIMIT, move |db| {
            (db.row("Logical_Switch_Port", port)?.refs("dhcpv4_options").count() == n).then_some(())
        })
    };
    linked(0).await.unwrap();
    changed.revision = 3;
    changed.subnets.iter_mut().for_each(|s| s.dhcp = true);
    backend.apply(&Item::Network(changed)).await.unwrap();
    linked(1).await.unwrap();

    // What others need first is asked for again later; removal of what is not there succeeds.
    let early = FloatingIpItem {
        target: Some(FloatingIpTarget {
            router_id: id(4, 9),
            port_id: port_id(11),
            fixed_ip: "10.0.1.11".parse().unwrap(),
        }),
        revision: 2,
        ..scene::floating_ip()
    };
    assert_eq!(backend.apply(&Item::FloatingIp(early)).await.unwrap_err().kind(), base::Kind::Retry);
    backend.remove(Key::Port(port_id(77))).await.unwrap();

    // A group that only others name is there at once, empty: members are then denied everything.
    let foreign = PortItem { security_groups: [id(6, 5)].into(), revision: 2, ..guest_port(11) };
    backend.apply(&Item::Port(foreign)).await.unwrap();
    let name = ovn::project::group_name(id(6, 5));
    nb.wait_for(LIMIT, |db| {
        db.named("Port_Group", &name).next().filter(|(_, g)| g.has_ref("ports", port)).map(|_| ())
    })
    .await
    .unwrap();
    nb.catch_up().await.unwrap();
    let old = nb.read(|db| {
        db.named("Port_Group", &ovn::project::group_name(id(6, 1))).next().unwrap().1.has_ref("ports", port)
    });
    assert!(!old, "it left the other group");

    backend.remove(Key::Router(id(4, 1))).await.unwrap();
    backend.sync(&[]).await.unwrap();
    nb.wait_for(LIMIT, |db| {
        let foreign =
            db.rows("Logical_Switch").map(|(_, s)| s.text("name")).collect::<Vec<_>>() == ["somebody-elses"];
        let empty = ["Logical_Switch_Port", "DHCP_Options", "NAT", "HA_Chassis"]
            .iter()
            .all(|t| db.rows(t).next().is_none());
        (foreign && empty).then_some(())
    })
    .await
    .unwrap();
    engines.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_ports_at_once() {
    let bed = Bed::new("many");
    let engines = bed.start().await;
    let backend =
        std::sync::Arc::new(Backend::connect(&engines.socket(), &engines.socket(), Config::default()));
    backend.ready(LIMIT).await.unwrap();
    backend.sync(&scene::all()).await.unwrap();
    let began = std::time::Instant::now();
    let calls = (20..220_u8).map(|number| {
        let backend = std::sync::Arc::clone(&backend);
        let port = PortItem { security_groups: [id(6, number % 7)].into(), ..guest_port(number) };
        tokio::spawn(async move { backend.apply(&Item::Port(port)).await })
    });
    for result in futures::future::join_all(calls).await {
        result.unwrap().unwrap_or_else(|e| panic!("{e:?}"));
    }
    println!("200 ports by 200 callers in {:?}", began.elapsed());
    let nb = other(&engines);
    nb.ready(LIMIT).await.unwrap();
    let members =
        nb.read(|db| db.named("Port_Group", "neutron_pg_drop").next().unwrap().1.refs("ports").count());
    assert_eq!(members, 202);
    let db = format!("--db=unix:{}", engines.socket().display());
    exec(bed.netns(), &["ovn-nbctl", &db, "--wait=sb", "sync"]).await.unwrap();
    println!("202 ports in Southbound after {:?}", began.elapsed());
    for (name, status) in engines.status() {
        println!("{name}: PSS {} KiB", super::support::pss(status.pid.unwrap()));
    }
    engines.stop().await.unwrap();
}
