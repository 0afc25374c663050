//! The invariant checker.
//!
//! Two kinds of rules look at one [`View`] of everything. *Hard* ones hold at every moment, whatever is broken. *Soft* ones
//! say what has not converged or lies around; they must pass, within a patience that runs only while nothing is wrong that
//! could excuse them, and at rest there must be none at all.

pub mod hard;
pub mod soft;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use base::{HostId, ServerId, Timestamp};
use serde::Serialize;
use tokio::time::Instant;

pub use view::{MachineView, View};

/// What a rule found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Violation {
    /// The rule's name.
    pub rule: &'static str,
    /// What it is about: kind and id.
    pub subject: String,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.rule, self.subject, self.text)
    }
}

/// What a soft rule found.
#[derive(Debug, Clone)]
pub struct Open {
    /// What would be the violation.
    pub violation: Violation,
    /// Something is wrong that explains it.
    pub excused: bool,
    /// How long it may last.
    pub patience: Duration,
}

/// A look, as the next one needs it.
struct Before {
    at: Timestamp,
    servers: BTreeMap<ServerId, HostId>,
    /// When hosts were last heard of.
    heard: BTreeMap<HostId, Timestamp>,
}

/// What the checker remembers from one look to the next.
#[derive(Default)]
pub struct Checker {
    /// Generation and revision of every row that had one.
    generations: BTreeMap<String, (u64, u64)>,
    /// Generation of the spec that each host's agent held.
    held: BTreeMap<u64, u64>,
    /// Since when something is open without excuse.
    open: BTreeMap<(&'static str, String), Instant>,
    /// Volumes that shall go with a server.
    bound: BTreeMap<String, String>,
    /// What is on the root disk of each server, as it was first seen on the host where it runs.
    roots: BTreeMap<ServerId, u64>,
    /// What the last look saw.
    before: Option<Before>,
    /// What was reported; once is enough.
    told: BTreeSet<(&'static str, String)>,
    /// How many soft findings the last look had.
    pub unconverged: usize,
}

impl Checker {
    /// Looks; answers what is wrong and was not told before.
    pub fn look(&mut self, view: &View, at_rest: bool) -> Vec<Violation> {
        let mut found = hard::all(view);
        found.extend(self.generations(view));
        found.extend(self.let_go_early(view));
        found.extend(self.other_disks(view));
        let mut open = soft::all(view);
        open.extend(self.leftover_volumes(view));
        self.unconverged = open.len();
        let now = Instant::now();
        let mut still = BTreeMap::new();
        for one in open {
            let key = (one.violation.rule, one.violation.subject.clone());
            if at_rest {
                found.push(one.violation);
                continue;
            }
            if one.excused {
                continue;
            }
            let since = *self.open.get(&key).unwrap_or(&now);
            if now.duration_since(since) > one.patience {
                let lasts = now.duration_since(since).as_secs();
                let text = format!("{} (for {lasts} s)", one.violation.text);
                found.push(Violation { text, ..one.violation });
            }
            still.insert(key, since);
        }
        self.open = still;
        found.retain(|v| self.told.insert((v.rule, v.subject.clone())));
        found
    }

    /// Generations never go back, neither in the database nor at the agents.
    fn generations(&mut self, view: &View) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut now = BTreeMap::new();
        for (subject, generation, revision) in view.generations() {
            if let Some(before) = self.generations.get(&subject)
                && (generation < before.0 || revision < before.1)
            {
                let text = format!(
                    "generation {} and revision {} became {generation} and {revision}",
                    before.0, before.1
                );
                found.push(Violation { rule: "generation-back", subject: subject.clone(), text });
            }
            now.insert(subject, (generation, revision));
        }
        self.generations = now;
        for machine in &view.machines {
            let Some(generation) = machine.spec_generation else { continue };
            let before = self.held.insert(machine.number, generation).unwrap_or(0);
            if generation < before {
                found.push(Violation {
                    rule: "generation-back",
                    subject: format!("agent {}", machine.name),
                    text: format!("held spec {before} and holds {generation}"),
                });
            }
        }
        found
    }

    /// A server's row goes only after its host let go of the guest, unless the host had not been heard of for long.
    fn let_go_early(&mut self, view: &View) -> Vec<Violation> {
        let now = Before {
            at: view.now,
            servers: view.servers.iter().filter_map(|s| Some((s.id, s.host_id?))).collect(),
            heard: view.hosts.iter().map(|h| (h.id, h.seen_at)).collect(),
        };
        let Some(Before { at, servers, heard }) = self.before.replace(now) else { return Vec::new() };
        let mut found = Vec::new();
        let there: BTreeSet<ServerId> = view.servers.iter().map(|s| s.id).collect();
        for machine in &view.machines {
            // Certainly not taken for dead at any time between the two looks.
            let last = heard.get(&machine.id).copied().unwrap_or_default();
            if view.now > last.plus_secs(60) || at < last.plus_secs(-10) {
                continue;
            }
            for guest in &machine.running {
                let had = servers.get(guest) == Some(&machine.id);
                if had && !there.contains(guest) {
                    let text = format!("its row is gone and it runs on {}", machine.name);
                    let subject = format!("server {guest}");
                    found.push(Violation { rule: "let-go-early", subject, text });
                }
            }
        }
        found
    }

    /// A server has the disk that it always had, wherever it is; unless it was evacuated, which loses it.
    fn other_disks(&mut self, view: &View) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut now = BTreeMap::new();
        for server in &view.servers {
            let machine = server.host_id.and_then(|h| view.machine(h));
            let seen = machine.and_then(|m| m.roots.get(&server.id)).copied();
            let before = self.roots.get(&server.id).copied();
            if let (Some(seen), Some(before)) = (seen, before)
                && seen != before
                && !view.evacuated.contains(&server.id.to_string())
            {
                let text = format!("its root disk was {before:016x} and is {seen:016x}");
                found.push(Violation { rule: "disk-lost", subject: format!("server {}", server.id), text });
            }
            now.extend(seen.or(before).map(|root| (server.id, root)));
        }
        self.roots = now;
        found
    }

    /// Volumes that were to go with a server that is gone.
    fn leftover_volumes(&mut self, view: &View) -> Vec<Open> {
        for server in &view.servers {
            for disk in server.disks.iter().filter(|d| d.delete_on_termination) {
                self.bound.insert(disk.volume.to_string(), server.id.to_string());
            }
        }
        let servers: BTreeSet<String> = view.servers.iter().map(|s| s.id.to_string()).collect();
        let volumes: BTreeSet<String> =
            view.volumes.iter().filter(|v| !v.doomed).map(|v| v.id.to_string()).collect();
        self.bound.retain(|volume, server| volumes.contains(volume) || servers.contains(server));
        let left = self.bound.iter().filter(|(v, s)| volumes.contains(*v) && !servers.contains(*s));
        left.map(|(volume, server)| Open {
            violation: Violation {
                rule: "orphan",
                subject: format!("volume {volume}"),
                text: format!("was to go with server {server}, which is gone"),
            },
            excused: view.troubled,
            patience: soft::PATIENCE,
        })
        .collect()
    }
}
