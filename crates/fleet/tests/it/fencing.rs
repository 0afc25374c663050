//! Partitions with an operator who evacuates: nothing runs twice, and what prevents it is the fence.

use fleet::{Options, simulate};

use crate::{options, sound};

const HOSTS: u64 = 6;

/// Every host is cut off again and again, most of the time for longer than its lease.
fn partitions(seed: u64) -> Options {
    let dice = base::Entropy::seeded(seed);
    let mut script = String::new();
    for host in 0..HOSTS {
        let mut at = 60 + dice.below(120);
        while at < 560 {
            let lasts = 20 + dice.below(180);
            script += &format!("[[fault]]\nat = {at}\nfor = {lasts}\nkind = \"link_loss\"\nhost = {host}\n");
            at += lasts + dice.below(200);
        }
    }
    let mut options = options(HOSTS, seed, 11, &script);
    let workload = &mut options.profile.workload;
    (workload.think_s, workload.evacuate_s, workload.servers_per_host) = (3.0, 8, 5);
    options.check_every = 5;
    options
}

#[test]
fn nothing_runs_twice() {
    let outcome = sound(partitions(21));
    let evacuated = outcome.calls.answers.get("evacuate 200").copied().unwrap_or(0);
    assert!(evacuated > 10, "{:?}", outcome.calls.answers);
}

#[test]
fn without_the_fence_something_does() {
    let outcome = simulate(Options { fenced: false, ..partitions(21) }).unwrap();
    let twice = outcome.violations.iter().filter(|(_, v)| v.rule == "double-run").count();
    assert!(twice > 0, "{}", outcome.summary());
}
