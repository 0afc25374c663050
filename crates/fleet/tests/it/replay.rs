//! A seed replays a run exactly.

use fleet::{Options, simulate};

use crate::sound;

fn whole(seed: u64) -> Options {
    let mut options = Options::new(12, seed).unwrap();
    options.minutes = 12;
    // Much more than usual goes wrong.
    let faults = &mut options.profile.faults;
    faults.server_failover = 15.0;
    faults.ovn_outage = 10.0;
    faults.ledger_crash = 2.0;
    faults.agent_crash = 2.0;
    faults.host_loss = 1.0;
    faults.link_loss = 1.0;
    faults.report_noise = 2.0;
    options
}

#[test]
fn the_same_seed_is_the_same_run_and_another_is_not() {
    let (first, again) = (sound(whole(41)), sound(whole(41)));
    assert_eq!(first.hash, again.hash);
    assert_eq!(first.events, again.events);
    assert!(first.events["fault"] > 20, "{:?}", first.events);
    assert!(first.events["server"] > 3, "no failover: {:?}", first.events);
    assert_ne!(simulate(whole(42)).unwrap().hash, first.hash);
}

#[test]
fn small_fleets_of_several_seeds_are_sound() {
    for seed in 1..=3 {
        let mut options = Options::new(16, seed).unwrap();
        options.minutes = 15;
        let outcome = sound(options);
        assert!(outcome.servers_made > 60, "{}", outcome.summary());
        let calls = &outcome.calls.answers;
        for what in ["create_server 202", "delete_server 204", "create_volume 202", "create_network 201"] {
            assert!(calls.get(what).copied().unwrap_or(0) > 0, "no {what}: {calls:?}");
        }
    }
}

#[test]
fn a_run_leaves_nothing_in_memory_or_on_disk() {
    let runtime = fleet::run::runtime().unwrap();
    let control = runtime.block_on(async {
        let mut options = whole(7);
        options.minutes = 1;
        let mut run = fleet::Run::prepare(options).await.unwrap();
        run.work().await.unwrap();
        let control = std::sync::Arc::downgrade(&run.control);
        run.outcome();
        control
    });
    drop(runtime);
    // It holds the database and the directory.
    assert_eq!(control.strong_count(), 0);
}
