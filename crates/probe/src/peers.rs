//! Which host is bad: one that does worse than its peers at the same things, by more than chance explains.
//!
//! No limit is set by hand. Durations, round trips and rates are compared as logarithms with those of the other hosts in
//! the same iterations, measured by their spread; failures by how unlikely it is that they all fall on one host. Where two
//! hosts are involved, the one whose absence makes things well is to blame.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::record::{Class, Iteration, Record};
use crate::stats::{at_least, median, spread, tail};

/// Chance of naming a host that is as good as the others, in one look at one kind of thing.
pub const FALSE_ALARM: f64 = 1e-6;
/// How many iterations are looked at together.
pub const WINDOW: usize = 3;
/// A host must be this much worse, whatever its spread: an eighth slower is nobody's cause.
const WORTH: f64 = 1.125;

/// What is held against a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suspicion {
    /// The host.
    pub host: String,
    /// At what it is bad (`server.active`, `pair.reach icmp-rtt`).
    pub at: String,
    /// How much worse than its peers: a factor; for failures and losses the difference of shares.
    pub worse: f64,
    /// How likely that would be by chance.
    pub chance: f64,
    /// For people.
    pub told: String,
}

/// One value: of one host, or of two.
#[derive(Debug, Clone)]
struct Point {
    hosts: Vec<String>,
    value: f64,
}

impl Point {
    fn of(&self, host: &str) -> bool {
        self.hosts.iter().any(|h| h == host)
    }
}

#[derive(Default)]
struct Topic {
    /// Logarithms; more is worse.
    values: Vec<Point>,
    /// 1: failed or lost.
    fates: Vec<(Point, u64, u64)>,
}

fn topics(iterations: &[&Iteration]) -> BTreeMap<String, Topic> {
    let mut topics: BTreeMap<String, Topic> = BTreeMap::new();
    for record in iterations.iter().flat_map(|i| &i.records) {
        if record.class == Class::Skipped {
            continue;
        }
        if !judges(record) {
            continue;
        }
        let mut hosts: Vec<String> = record.place.host.iter().chain(&record.place.peer).cloned().collect();
        hosts.dedup();
        let point = |value: f64| Point { hosts: hosts.clone(), value };
        let topic = topics.entry(record.op.clone()).or_default();
        topic.fates.push((point(0.0), u64::from(record.class.failed()), 1));
        // A matrix of pairs takes as long as its slowest pair; what counts there is what was measured.
        if record.class == Class::Ok
            && record.us > 0
            && record.measures.is_empty() | (record.service != "guest")
        {
            topic.values.push(point(record.seconds().ln()));
        }
        for measure in &record.measures {
            let topic = topics.entry(format!("{} {}", record.op, measure.name)).or_default();
            if measure.name.ends_with("loss") {
                // Of ten packets.
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of ten")]
                let lost = (measure.value.clamp(0.0, 1.0) * 10.0).round() as u64;
                topic.fates.push((point(0.0), lost, 10));
            } else if measure.value > 0.0 {
                let more_is_better = measure.unit.ends_with("/s");
                let log = measure.value.ln();
                topic.values.push(point(if more_is_better { -log } else { log }));
            }
        }
    }
    topics
}

/// Whether a host is judged by it.
pub fn judges(record: &Record) -> bool {
    record.place.host.is_some() || record.place.peer.is_some()
}

/// Hosts that are worse than their peers in the last iterations, the worst first.
pub fn suspects(iterations: &[Iteration]) -> Vec<Suspicion> {
    let window: Vec<&Iteration> = iterations.iter().rev().take(WINDOW).collect();
    let mut all = Vec::new();
    for (name, topic) in topics(&window) {
        all.extend(slow(&name, &topic.values));
        all.extend(failing(&name, &topic.fates));
    }
    all.sort_by(|a, b| a.chance.total_cmp(&b.chance));
    all
}

fn hosts<'a>(points: impl Iterator<Item = &'a Point>) -> BTreeSet<&'a str> {
    points.flat_map(|p| p.hosts.iter().map(String::as_str)).collect()
}

/// Who is worst of all, and by how much beyond chance. With one bad host the others look well without it; so only the worst
/// is judged, and against those it has nothing to do with.
fn slow(at: &str, points: &[Point]) -> Option<Suspicion> {
    let names = hosts(points.iter());
    // Of two nobody knows which is the bad one.
    if names.len() < 3 {
        return None;
    }
    let middle = |host: &str| median(points.iter().filter(|p| p.of(host)).map(|p| p.value));
    let (worst, _) = names.iter().map(|n| (*n, middle(n))).max_by(|a, b| a.1.total_cmp(&b.1))?;
    let mine: Vec<f64> = points.iter().filter(|p| p.of(worst)).map(|p| p.value).collect();
    let others: Vec<f64> = points.iter().filter(|p| !p.of(worst)).map(|p| p.value).collect();
    if others.len() < 3 || mine.len() < 2 {
        return None;
    }
    let (ours, theirs) = (median(mine.iter().copied()), median(others.iter().copied()));
    let noise = spread(&others, theirs).max(spread(&mine, ours)).max(0.02);
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    let (n, m) = (mine.len() as f64, others.len() as f64);
    // Medians vary more than means: by the root of π/2.
    let error = noise * (std::f64::consts::FRAC_PI_2 * (1.0 / n + 1.0 / m)).sqrt();
    let trials = f64::from(u32::try_from(names.len()).unwrap_or(u32::MAX));
    let chance = (tail((ours - theirs) / error, n + m - 2.0) * trials).min(1.0);
    let worse = (ours - theirs).exp();
    (chance < FALSE_ALARM && worse > WORTH).then(|| Suspicion {
        host: worst.to_owned(),
        at: at.to_owned(),
        worse,
        chance,
        told: format!("{at}: {worse:.1} times as bad as on the {} others", names.len() - 1),
    })
}

fn failing(at: &str, fates: &[(Point, u64, u64)]) -> Option<Suspicion> {
    let names = hosts(fates.iter().map(|(p, ..)| p));
    if names.len() < 3 {
        return None;
    }
    let sums = |with: &dyn Fn(&Point) -> bool| {
        let chosen = fates.iter().filter(|(p, ..)| with(p));
        chosen.fold((0, 0), |(bad, all), (_, b, n)| (bad + b, all + n))
    };
    let (bad, all) = sums(&|_| true);
    let judged = names.iter().copied().map(|host| {
        let (mine, drawn) = sums(&|p| p.of(host));
        (host, mine, drawn, at_least(mine, drawn, bad, all))
    });
    let (worst, mine, drawn, chance) = judged.min_by(|a, b| a.3.total_cmp(&b.3))?;
    let trials = f64::from(u32::try_from(names.len()).unwrap_or(u32::MAX));
    let chance = (chance * trials).min(1.0);
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
    let (ours, theirs) = (share(mine, drawn), share(bad - mine, all - drawn));
    (chance < FALSE_ALARM && ours > theirs).then(|| Suspicion {
        host: worst.to_owned(),
        at: at.to_owned(),
        worse: ours - theirs,
        chance,
        told: format!("{at}: {:.0} % fail or are lost, {:.0} % without it", ours * 100.0, theirs * 100.0),
    })
}
