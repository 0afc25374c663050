//! The simulator on small fleets: it replays, its checker finds what is planted, and what it found once stays mended.

#![allow(clippy::unwrap_used)]

mod fencing;
mod hardship;
mod mended;
mod planted;
mod replay;

use fleet::fault::Script;
use fleet::{Options, Outcome, simulate};

/// A fleet of the default profile on which nothing breaks but what `script` says.
fn options(hosts: u64, seed: u64, minutes: u64, script: &str) -> Options {
    let mut options = Options::new(hosts, seed).unwrap();
    options.minutes = minutes;
    options.script = Some(Script::parse(script, hosts).unwrap());
    options
}

/// Runs, and nothing may be wrong.
#[track_caller]
fn sound(options: Options) -> Outcome {
    let outcome = simulate(options).unwrap();
    assert!(outcome.sound(), "{}", outcome.summary());
    outcome
}
