//! One bad host among others is named, and no other.

use base::Entropy;
use probe::peers::{WINDOW, judges, suspects};
use probe::record::{Class, Iteration, Measure, Place, Record};

use crate::defects::{iteration, record};

/// About one, with the tail that durations have.
fn noise(entropy: &Entropy) -> f64 {
    let uniform = || f64::from(u32::try_from(entropy.below(1 << 20)).unwrap()) / f64::from(1 << 20);
    let sum: f64 = (0..6).map(|_| uniform()).sum::<f64>() - 3.0;
    // One in fifty takes long for no reason.
    if entropy.below(50) == 0 { 3.0 } else { (sum * 0.25).exp() }
}

fn micros(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration")]
    let us = value as u64;
    us
}

#[derive(Clone, Copy)]
struct Fault {
    slower: f64,
    loss: u64,
}

/// What a matrix and the boots of guests on `hosts` hosts, two on each, look like with host 0 bad.
fn world(entropy: &Entropy, number: u64, hosts: usize, fault: Option<Fault>) -> Iteration {
    let mut records: Vec<Record> = Vec::new();
    let bad = |host: usize| fault.filter(|_| host == 0);
    for guest in 0..hosts * 2 {
        let host = guest % hosts;
        let factor = bad(host).map_or(1.0, |f| f.slower);
        let mut boot = record("server.active", Class::Ok, micros(5e6 * noise(entropy) * factor));
        boot.service = "compute".into();
        boot.place.host = Some(format!("host-{host}"));
        records.push(boot);
        for other in (0..hosts * 2).filter(|o| *o != guest) {
            let peer = other % hosts;
            let involved = bad(host).or(bad(peer));
            let lost = (0..10).filter(|_| entropy.below(100) < involved.map_or(0, |f| f.loss)).count();
            let class = if lost == 10 { Class::DataPlane } else { Class::Ok };
            let mut pair = record("pair.reach", class, 1);
            pair.service = "guest".into();
            pair.place.host = Some(format!("host-{host}"));
            pair.place.peer = Some(format!("host-{peer}"));
            let rtt = 0.4 * noise(entropy) * involved.map_or(1.0, |f| f.slower);
            let loss = f64::from(u32::try_from(lost).unwrap()) / 10.0;
            pair.measures = vec![
                Measure { name: "udp-loss".into(), value: loss, unit: "1".into() },
                Measure { name: "udp-rtt".into(), value: rtt, unit: "ms".into() },
            ];
            records.push(pair);
        }
    }
    iteration(number, records)
}

#[test]
fn one_bad_host_among_five_is_named_within_three_iterations() {
    for (seed, fault) in [
        (1, Fault { slower: 3.0, loss: 0 }),
        (2, Fault { slower: 1.0, loss: 20 }),
        (3, Fault { slower: 2.0, loss: 5 }),
    ] {
        let entropy = Entropy::seeded(seed);
        let mut seen = Vec::new();
        let named = (1..=3).find(|n| {
            seen.push(world(&entropy, *n, 5, Some(fault)));
            suspects(&seen).first().is_some_and(|s| s.host == "host-0")
        });
        assert!(named.is_some(), "seed {seed}");
        let told = suspects(&seen);
        assert!(told.iter().all(|s| s.host == "host-0"), "{told:?}");
        // Without a report only what hosts are judged by stays in memory.
        for iteration in &mut seen {
            let elsewhere =
                Record { place: Place::default(), us: 90_000_000, ..iteration.records[0].clone() };
            assert!(!judges(&elsewhere) && iteration.records.iter().all(judges));
            iteration.records.push(elsewhere);
        }
        assert_eq!(suspects(&seen), told);
    }
}

#[test]
fn one_slow_host_of_forty_is_named_by_its_boots() {
    let entropy = Entropy::seeded(7);
    let seen: Vec<Iteration> = (1..=3)
        .map(|n| {
            let mut all = world(&entropy, n, 40, Some(Fault { slower: 6.0, loss: 0 }));
            all.records.retain(|r| r.op == "server.active");
            all
        })
        .collect();
    let told = suspects(&seen);
    assert!(told.len() == 1 && told[0].host == "host-0", "{told:?}");
}

#[test]
fn a_thousand_clean_iterations_name_nobody() {
    let entropy = Entropy::seeded(99);
    let mut seen: Vec<Iteration> = Vec::new();
    for number in 1..=1000 {
        seen.push(world(&entropy, number, 5, None));
        if seen.len() > WINDOW {
            seen.remove(0);
        }
        assert_eq!(suspects(&seen), [], "iteration {number}");
    }
}
