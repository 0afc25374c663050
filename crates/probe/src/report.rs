//! What is told of a run when it is over: JSON, JUnit, and one HTML page with plots. All are made of the same iterations.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::meter::Told;
use crate::record::{Class, Iteration, Record, seconds};
use crate::stats::{quantile, sorted};

/// How one kind of operation went over all iterations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The operation.
    pub op: String,
    /// Which service.
    pub service: String,
    /// How often it was tried.
    pub tried: usize,
    /// How often it failed, by class.
    pub failed: BTreeMap<Class, usize>,
    /// How often it was not tried.
    pub skipped: usize,
    /// Share of those tried that worked.
    pub success: f64,
    /// Seconds, of those that worked.
    pub min: f64,
    /// Middle.
    pub median: f64,
    /// Mean.
    pub mean: f64,
    /// 95 of 100 took no longer.
    pub p95: f64,
    /// Longest.
    pub max: f64,
}

/// Sums up, in the order in which operations first came.
pub fn summaries(iterations: &[Iteration]) -> Vec<Summary> {
    let mut order: Vec<&str> = Vec::new();
    let mut by_op: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in iterations.iter().flat_map(|i| &i.records) {
        let all = by_op.entry(record.op.as_str()).or_default();
        if all.is_empty() {
            order.push(&record.op);
        }
        all.push(record);
    }
    let sum = |op: &str| {
        let records = by_op.get(op)?;
        let times = sorted(records.iter().filter(|r| r.class == Class::Ok).map(|r| r.seconds()));
        let mut failed = BTreeMap::new();
        for record in records.iter().filter(|r| r.class.failed()) {
            *failed.entry(record.class).or_insert(0) += 1;
        }
        let skipped = records.iter().filter(|r| r.class == Class::Skipped).count();
        let tried = records.len() - skipped;
        #[expect(clippy::cast_precision_loss, reason = "counts")]
        let (n, good, of) = (times.len().max(1) as f64, times.len() as f64, tried.max(1) as f64);
        Some(Summary {
            op: op.to_owned(),
            service: records.first()?.service.clone(),
            tried,
            failed,
            skipped,
            success: if tried == 0 { 1.0 } else { good / of },
            min: quantile(&times, 0.0),
            median: quantile(&times, 0.5),
            mean: times.iter().sum::<f64>() / n,
            p95: quantile(&times, 0.95),
            max: quantile(&times, 1.0),
        })
    };
    order.into_iter().filter_map(sum).collect()
}

/// A run.
#[derive(Serialize)]
pub struct Report<'a> {
    /// Whether all was well.
    pub fine: bool,
    /// What was learned at the end.
    pub told: &'a Told,
    /// How operations went.
    pub operations: Vec<Summary>,
    /// Everything.
    pub iterations: &'a [Iteration],
}

impl<'a> Report<'a> {
    /// Of iterations.
    pub fn new(iterations: &'a [Iteration], told: &'a Told) -> Self {
        let fine = !iterations.is_empty() && iterations.iter().all(Iteration::fine);
        Report { fine, told, operations: summaries(iterations), iterations }
    }

    /// Writes `report.json`, `report.xml` (JUnit) and `report.html`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        let file = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("{}", path.display()))
        };
        file("report.json", serde_json::to_string_pretty(self)?)?;
        file("report.xml", self.junit())?;
        file("report.html", crate::html::page(self))
    }

    /// As continuous integration reads it: a suite for each iteration, a case for each operation.
    pub fn junit(&self) -> String {
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
        for iteration in self.iterations {
            let failures = iteration.failures().count() + iteration.left.len();
            out.push_str(&format!(
                "<testsuite name=\"{} {} {}\" timestamp=\"{}\" time=\"{:.6}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{}\">\n",
                escaped(&iteration.cloud),
                escaped(&iteration.scenario),
                iteration.number,
                escaped(iteration.at.split('.').next().unwrap_or_default()),
                seconds(iteration.us),
                iteration.records.len() + iteration.left.len(),
                iteration.count(Class::Skipped),
            ));
            for record in &iteration.records {
                let name = record.name.as_deref().unwrap_or_default();
                let head = format!(
                    "<testcase classname=\"{}\" name=\"{} {}\" time=\"{:.6}\"",
                    escaped(&record.step),
                    escaped(&record.op),
                    escaped(name),
                    record.seconds()
                );
                let message = escaped(record.message.as_deref().unwrap_or_default());
                out.push_str(&match record.class {
                    Class::Ok => format!("{head}/>\n"),
                    Class::Skipped => format!("{head}><skipped message=\"{message}\"/></testcase>\n"),
                    class => format!(
                        "{head}><failure type=\"{class}\" message=\"{message}\">{}</failure></testcase>\n",
                        escaped(&record.told())
                    ),
                });
            }
            for left in &iteration.left {
                out.push_str(&format!(
                    "<testcase classname=\"cleanup\" name=\"left behind\"><failure type=\"left\" message=\"{}\"/></testcase>\n",
                    escaped(left)
                ));
            }
            out.push_str("</testsuite>\n");
        }
        out.push_str("</testsuites>\n");
        out
    }
}

/// Text for XML and HTML, in elements and attributes.
pub(crate) fn escaped(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    kept.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
