//! What is usual here: learned from iterations, kept between runs, with no limit set by hand.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base::Timestamp;
use serde::{Deserialize, Serialize};

use crate::record::{Class, Iteration};
use crate::stats::{median, spread, tail};

/// Iterations that are remembered.
const MEMORY: usize = 200;
/// Iterations before anything is called unusual.
pub const LEARNING: usize = 8;
/// Chance of calling a usual iteration unusual, in one look at one kind of thing.
const FALSE_ALARM: f64 = 1e-4;
/// Slower than usual by less than this is nobody's trouble.
const WORTH: f64 = 1.25;

/// How iterations ended, for the objectives.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Fate {
    at: i64,
    good: u64,
    bad: u64,
}

/// Something that is slower than usual.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unusual {
    /// What (`server.active`).
    pub at: String,
    /// Now; seconds, or what the measure is in.
    pub now: f64,
    /// Usually.
    pub usual: f64,
    /// How likely that would be by chance.
    pub chance: f64,
}

/// How fast the allowance for failures is used up: 1 is just as fast as the objective allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Burn {
    /// Over which time.
    pub window: String,
    /// How fast.
    pub rate: f64,
}

/// Windows of burn rates, in seconds: those of the multi-window alerts of Google's SRE workbook.
pub const WINDOWS: [(&str, i64); 5] =
    [("5m", 300), ("30m", 1800), ("1h", 3600), ("6h", 21_600), ("3d", 259_200)];

/// What was learned of a scenario on a cloud.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Learned {
    series: BTreeMap<String, VecDeque<f64>>,
    fates: VecDeque<Fate>,
    #[serde(skip)]
    path: Option<PathBuf>,
}

/// One value of an iteration for each thing it did: more is worse.
fn values(iteration: &Iteration) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for record in iteration.records.iter().filter(|r| r.class == Class::Ok) {
        if record.us > 0 {
            all.entry(record.op.clone()).or_default().push(record.seconds());
        }
        for measure in record.measures.iter().filter(|m| m.value > 0.0) {
            // Of rates the inverse: less is worse.
            let value = if measure.unit.ends_with("/s") { 1.0 / measure.value } else { measure.value };
            all.entry(format!("{} {}", record.op, measure.name)).or_default().push(value);
        }
    }
    if iteration.fine() {
        all.insert("iteration".into(), vec![crate::record::seconds(iteration.us)]);
    }
    all.into_iter().map(|(name, values)| (name, median(values))).collect()
}

impl Learned {
    /// What was learned before, if anything.
    pub fn load(dir: &Path, cloud: &str, scenario: &str) -> Result<Learned> {
        let plain = |text: &str| -> String {
            text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
        };
        let path = dir.join(format!("learned-{}-{}.json", plain(cloud), plain(scenario)));
        let mut learned: Learned = match std::fs::read(&path) {
            // What cannot be read is learned anew.
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(_) => Learned::default(),
        };
        learned.path = Some(path);
        Ok(learned)
    }

    /// What is unusual in an iteration; then it becomes part of what is usual.
    pub fn judge(&mut self, iteration: &Iteration, now: Timestamp) -> Vec<Unusual> {
        let mut unusual = Vec::new();
        for (at, now) in values(iteration) {
            let series = self.series.entry(at.clone()).or_default();
            if series.len() >= LEARNING {
                let logs: Vec<f64> = series.iter().map(|v| v.ln()).collect();
                let usual = median(logs.iter().copied());
                #[expect(clippy::cast_precision_loss, reason = "a count")]
                let n = logs.len() as f64;
                let error = spread(&logs, usual).max(0.02) * (1.0 + std::f64::consts::FRAC_PI_2 / n).sqrt();
                let chance = tail((now.ln() - usual) / error, n - 1.0);
                if chance < FALSE_ALARM && now / usual.exp() > WORTH {
                    unusual.push(Unusual { at, now, usual: usual.exp(), chance });
                }
            }
            series.push_back(now);
            if series.len() > MEMORY {
                series.pop_front();
            }
        }
        let bad = u64::try_from(iteration.failures().count()).unwrap_or(u64::MAX);
        let good = u64::try_from(iteration.count(Class::Ok)).unwrap_or(u64::MAX);
        self.fates.push_back(Fate { at: now.0 / 1_000_000, good, bad });
        let oldest = now.0 / 1_000_000 - WINDOWS.iter().map(|(_, s)| *s).max().unwrap_or(0);
        while self.fates.front().is_some_and(|f| f.at < oldest) {
            self.fates.pop_front();
        }
        unusual
    }

    /// Burn rates against an objective (0.99: one of a hundred operations may fail).
    pub fn burns(&self, objective: f64, now: Timestamp) -> Vec<Burn> {
        let allowance = (1.0 - objective).max(1e-9);
        let burn = |(window, seconds): (&str, i64)| {
            let recent = self.fates.iter().filter(|f| f.at > now.0 / 1_000_000 - seconds);
            let (good, bad) = recent.fold((0, 0), |(g, b), f| (g + f.good, b + f.bad));
            #[expect(clippy::cast_precision_loss, reason = "counts")]
            let share = if good + bad == 0 { 0.0 } else { bad as f64 / (good + bad) as f64 };
            Burn { window: window.to_owned(), rate: share / allowance }
        };
        WINDOWS.into_iter().map(burn).collect()
    }

    /// Keeps it for the next run.
    pub fn save(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?).with_context(|| format!("{}", new.display()))?;
        std::fs::rename(&new, path).with_context(|| format!("{}", path.display()))
    }
}
