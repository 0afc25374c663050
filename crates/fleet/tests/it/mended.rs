//! What the simulator found once; each with the script that showed it.

use crate::{options, sound};

/// Also: what a host had failed to make and was then told to forget was reported for ever, so that deleting it never ended.
///
/// An agent's pauses after failures were kept as moments of a clock: set back, the clock kept it from trying for an hour.
#[test]
fn a_clock_that_is_set_back_does_not_stop_an_agent() {
    let mut script = String::new();
    for host in 0..5 {
        script +=
            &format!("[[fault]]\nat = 60\nfor = 300\nkind = \"clock_skew\"\nhost = {host}\nseconds = 3600\n");
        script += &format!("[[fault]]\nat = 120\nfor = 260\nkind = \"full_disk\"\nhost = {host}\n");
    }
    let mut options = options(5, 1, 8, &script);
    options.profile.workload.think_s = 2.0;
    sound(options);
}

/// Reports were numbered from the clock at the agent's start: started under a clock set back, the agent was not heard.
#[test]
fn an_agent_is_heard_after_its_clock_was_set_back() {
    let mut script = String::new();
    for host in 0..5 {
        script +=
            &format!("[[fault]]\nat = 60\nfor = 120\nkind = \"clock_skew\"\nhost = {host}\nseconds = 3600\n");
        script += &format!("[[fault]]\nat = 90\nfor = 10\nkind = \"agent_crash\"\nhost = {host}\n");
        script += &format!("[[fault]]\nat = 200\nfor = 10\nkind = \"agent_crash\"\nhost = {host}\n");
    }
    sound(options(5, 2, 10, &script));
}

/// An agent's first report, before it had looked at its host, said that nothing was there: what was going away was taken
/// for gone while it still ran.
#[test]
fn an_agent_looks_before_it_reports() {
    let mut script = String::new();
    for host in 0..5 {
        for at in (30..280).step_by(9) {
            script +=
                &format!("[[fault]]\nat = {}\nfor = 2\nkind = \"agent_crash\"\nhost = {host}\n", at + host);
        }
        script +=
            &format!("[[fault]]\nat = 20\nfor = 270\nkind = \"slow_disk\"\nhost = {host}\ndelay_ms = 9000\n");
    }
    let mut options = options(5, 3, 5, &script);
    options.profile.workload.think_s = 1.5;
    options.profile.workload.weights.delete_server = 60;
    options.check_every = 2;
    sound(options);
}
