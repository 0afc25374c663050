//! Five hosts that are network namespaces, with the agent in each; one of them drops packets. Needs root.

use std::process::Command;
use std::sync::Arc;

use common::{Fake, setup};
use probe::engine::Failure;
use probe::hands::Output;
use probe::peers::suspects;
use probe::record::Class;
use probe::scenario::Scenario;

use crate::common;
use crate::stub::{Stub, World};

const HOSTS: usize = 5;
const BAD: usize = 3;

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).output().is_ok_and(|o| o.status.success())
}

/// Namespaces on one bridge; gone when the test is.
struct Lab(String);

impl Lab {
    fn name(&self, host: usize) -> String {
        format!("{}-{host}", self.0)
    }

    fn build() -> Option<Lab> {
        let lab = Lab(format!("aprobe-{}", std::process::id()));
        let hub = lab.name(9);
        let mut fine = ip(&format!("netns add {hub}")) && ip(&format!("-n {hub} link add hub type bridge"));
        fine = fine && ip(&format!("-n {hub} link set hub up"));
        for host in 0..HOSTS {
            let name = lab.name(host);
            for words in [
                format!("netns add {name}"),
                format!("-n {name} link set lo up"),
                format!("-n {name} link add eth0 type veth peer name p{host} netns {hub}"),
                format!("-n {name} addr add 10.77.0.{}/24 dev eth0", host + 1),
                format!("-n {name} link set eth0 up"),
                format!("-n {hub} link set p{host} master hub up"),
            ] {
                fine = fine && ip(&words);
            }
        }
        // One in four of what comes in, but TCP, which would only be slow.
        let rules = "table inet t {\n chain i {\n type filter hook input priority 0;\n meta l4proto { udp, icmp } numgen random mod 100 < 25 drop;\n }\n}\n";
        let file = std::env::temp_dir().join(format!("{}.nft", lab.0));
        std::fs::write(&file, rules).unwrap();
        fine = fine && ip(&format!("netns exec {} nft -f {}", lab.name(BAD), file.display()));
        std::fs::remove_file(&file).unwrap();
        fine.then_some(lab)
    }

    /// Does something in a namespace, on a thread of its own.
    fn within<T: Send + 'static>(
        &self,
        host: usize,
        deed: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name(host))).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            deed()
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in (0..HOSTS).chain([9]) {
            ip(&format!("netns del {}", self.name(host)));
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[tokio::test]
async fn a_host_that_drops_packets_is_named_within_three_iterations() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("not root: left out");
        return;
    }
    let Some(lab) = Lab::build() else { panic!("no namespaces, bridge or nft") };
    for host in 0..HOSTS {
        // Serves until the process ends.
        drop(lab.within(host, || probe_agent::run(&words("serve 5201"))));
    }
    let hosts: Vec<String> = (0..HOSTS).map(|h| format!("host-{h}")).collect();
    let stub = Stub::start(World { hosts, ..World::default() }).await;
    let of = stub.clone();
    let lab = Arc::new(lab);
    let inside = lab.clone();
    let hands = Fake::new(move |target, command| {
        let said = |stdout: String| Ok(Output { status: 0, stdout, stderr: String::new() });
        let Some((_, rest)) = command.split_once(" matrix ") else { return said(String::new()) };
        // The cloud says which host a guest is on; there it measures.
        let host = |address: &str| -> usize {
            of.with(|w| {
                let guest = w.things["servers"]
                    .iter()
                    .find(|s| s.to_string().contains(&format!("\"{address}\"")))
                    .unwrap();
                guest["hostId"].as_str().unwrap().trim_start_matches("host-").parse().unwrap()
            })
        };
        let parts: Vec<&str> = rest.split(' ').collect();
        let peers = &parts[2..];
        let real = |peer: &&str| format!("10.77.0.{}", host(peer) + 1);
        let command = format!("matrix 5201 20 {}", peers.iter().map(real).collect::<Vec<_>>().join(" "));
        let lines =
            inside.within(host(&target.address), move || probe_agent::run(&words(&command))).join().unwrap();
        let lines = lines.map_err(|e| Failure::new(Class::Tool, e))?;
        // Lines come in the order of the addresses.
        let named = |(line, peer): (&str, &&str)| line.replacen(&real(peer), peer, 1);
        said(lines.lines().zip(peers).map(named).collect::<Vec<_>>().join("\n"))
    });
    let mut scenario = Scenario::builtin("default").unwrap();
    scenario.set("guests=5").unwrap();
    scenario
        .steps
        .retain(|s| !s.id.ends_with("user-data") && !["throughput", "bench"].contains(&s.id.as_str()));
    let mut setup = setup(&stub, scenario, hands).await;
    setup.engine.agent = Some(b"agent".to_vec());
    let mut seen = Vec::new();
    for number in 1..=3 {
        seen.push(setup.engine.iterate(number).await.unwrap());
        if suspects(&seen).first().is_some_and(|s| s.host == format!("host-{BAD}")) {
            break;
        }
    }
    let told = suspects(&seen);
    assert!(!told.is_empty() && told.iter().all(|s| s.host == format!("host-{BAD}")), "{told:?}");
}
