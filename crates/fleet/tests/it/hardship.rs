//! One kind of trouble without end: much more of it than a seed draws.

use fleet::Options;

use crate::{options, sound};

const HOSTS: u64 = 5;

fn busy(seed: u64, script: &str) -> Options {
    let mut options = options(HOSTS, seed, 7, script);
    options.profile.workload.think_s = 1.2;
    options.profile.workload.servers_per_host = 5;
    let weights = &mut options.profile.workload.weights;
    (weights.delete_server, weights.boot_from_volume, weights.attach_volume) = (40, 12, 12);
    options.check_every = 15;
    options
}

#[test]
fn a_server_that_dies_in_the_middle_of_transactions() {
    let mut script = String::new();
    for (n, at) in (15..400).step_by(9).enumerate() {
        let commit = if n % 2 == 0 { "before" } else { "after" };
        script +=
            &format!("[[fault]]\nat = {at}\nfor = 1\nkind = \"server_failover\"\ncommit = \"{commit}\"\n");
    }
    let outcome = sound(busy(11, &script));
    assert!(outcome.events["server"] > 60, "{:?}", outcome.events);
}

#[test]
fn agents_that_die_at_their_ledgers() {
    let mut script = String::new();
    for host in 0..HOSTS {
        for at in (10..400).step_by(11) {
            script +=
                &format!("[[fault]]\nat = {}\nfor = 2\nkind = \"ledger_crash\"\nhost = {host}\n", at + host);
        }
    }
    let outcome = sound(busy(12, &script));
    assert!(outcome.events["agent"] > 100, "{:?}", outcome.events);
}

#[test]
fn links_that_lose_double_and_delay() {
    let mut script = String::new();
    for host in 0..HOSTS {
        script += &format!(
            "[[fault]]\nat = 10\nfor = 400\nkind = \"report_noise\"\nhost = {host}\ntwice_ppm = 600000\nlate_s = 40\n"
        );
        script += &format!(
            "[[fault]]\nat = 10\nfor = 400\nkind = \"link_delay\"\nhost = {host}\ndelay_ms = 3000\nloss_ppm = 150000\n"
        );
        for at in (40..380).step_by(70) {
            script += &format!(
                "[[fault]]\nat = {}\nfor = 25\nkind = \"link_loss\"\nhost = {host}\n",
                at + 9 * host
            );
        }
    }
    sound(busy(13, &script));
}

#[test]
fn hosts_that_lose_power_and_a_network_that_goes_away() {
    let mut script = String::new();
    for host in 0..HOSTS {
        for at in (30..360).step_by(100) {
            script += &format!(
                "[[fault]]\nat = {}\nfor = 20\nkind = \"host_loss\"\nhost = {host}\n",
                at + 19 * host
            );
        }
    }
    for at in (20..380).step_by(50) {
        script += &format!("[[fault]]\nat = {at}\nfor = 20\nkind = \"ovn_outage\"\n");
    }
    sound(busy(14, &script));
}
