//! The course of a run: which cases, all at once, each with its verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Result, bail};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use regex_automata::meta::Regex;
use serde::Serialize;

use crate::checks::{self, Level, Note, Verdict};
use crate::facts::Facts;
use crate::rules::{Scope, TestCase};

/// What a case came to.
#[derive(Debug, Clone, Serialize)]
pub struct CaseResult {
    /// The case.
    pub id: String,
    /// Its verdict.
    pub verdict: Verdict,
    /// What led to it.
    pub notes: Vec<Note>,
    /// How long it took, with what it had to wait for.
    pub millis: u64,
}

/// Which cases to run.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Versions of the scope, as asked for or as they hold today.
    pub versions: Vec<(String, String)>,
    /// Only ids that begin with a match.
    pub tests: Option<String>,
    /// Only cases of these sections.
    pub sections: Vec<String>,
    /// Recommended cases, too.
    pub recommended: bool,
    /// No case that boots a guest.
    pub no_guest: bool,
}

impl Choice {
    /// Versions that hold on `date`, or the one asked for.
    pub fn versions(scope: &Scope, date: &str, forced: Option<&str>) -> Result<Vec<(String, String)>> {
        let valid: Vec<(String, String)> =
            scope.on(date).into_iter().map(|(v, s)| (v.version.clone(), s.to_owned())).collect();
        let Some(forced) = forced else {
            if valid.is_empty() {
                bail!("no version of {} holds on {date}", scope.name);
            }
            return Ok(valid);
        };
        if let Some(found) = valid.iter().find(|(v, _)| v == forced) {
            return Ok(vec![found.clone()]);
        }
        if scope.versions.iter().any(|v| v.version == forced) {
            return Ok(vec![(forced.to_owned(), "deprecated".to_owned())]);
        }
        let known: Vec<_> = scope.versions.iter().map(|v| v.version.as_str()).collect();
        bail!("{} has no version {forced:?}; known: {}", scope.name, known.join(", "))
    }

    /// The cases, sorted; a direct match of a whole id takes that case even if no version asks for it.
    pub fn cases<'a>(&self, scope: &'a Scope) -> Result<Vec<&'a TestCase>> {
        let begins = |pattern: &String| {
            Regex::new(&format!("^(?:{pattern})")).map_err(|e| anyhow::anyhow!("--tests: {e}"))
        };
        let tests = self.tests.as_ref().map(begins).transpose()?;
        let mut ids = BTreeSet::new();
        for (name, _) in &self.versions {
            for version in scope.versions.iter().filter(|v| v.version == *name) {
                ids.extend(scope.targets(version).into_values().flatten());
            }
        }
        if self.recommended {
            for module in &scope.modules {
                ids.extend(
                    module.targets.iter().filter(|(t, _)| *t == "recommended").flat_map(|(_, i)| i.clone()),
                );
            }
        }
        if let Some(exact) = self.tests.as_ref().filter(|t| scope.case(t).is_some()) {
            ids.insert(exact.clone());
        }
        let wanted = |case: &&TestCase| {
            tests.as_ref().is_none_or(|t| t.is_match(&case.id))
                && (self.sections.is_empty()
                    || case.section.as_ref().is_some_and(|s| self.sections.contains(s)))
                && !case.check.is_manual()
                && !(self.no_guest && case.check.wants_guest())
        };
        Ok(ids.iter().filter_map(|id| scope.case(id)).filter(wanted).collect())
    }
}

/// Why nobody with such roles may run the cases; `None`: they may.
pub fn refused(roles: &[String]) -> Option<String> {
    if let Some(high) = roles.iter().find(|r| matches!(r.as_str(), "admin" | "manager")) {
        return Some(format!("the user has the role {high}: the cases are for plain members"));
    }
    (!roles.iter().any(|r| r == "member")).then(|| "the user has not the role member".to_owned())
}

/// Runs cases at the same time; `done` hears of each.
pub async fn run(facts: &Facts, cases: &[&TestCase], mut done: impl FnMut(&CaseResult)) -> Vec<CaseResult> {
    let one = |case: &TestCase| {
        let (id, check) = (case.id.clone(), case.check.clone());
        async move {
            let begin = Instant::now();
            let finding = checks::evaluate(&check, facts).await;
            let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            CaseResult { id, verdict: finding.verdict, notes: finding.notes, millis }
        }
    };
    let mut running: FuturesUnordered<_> = cases.iter().map(|c| one(c)).collect();
    let mut results = BTreeMap::new();
    while let Some(result) = running.next().await {
        done(&result);
        results.insert(result.id.clone(), result);
    }
    results.into_values().collect()
}

/// Every case ABORTs, for one reason.
pub fn aborted(cases: &[&TestCase], reason: &str) -> Vec<CaseResult> {
    let note = Note { level: Level::Error, text: reason.to_owned() };
    let one = |c: &&TestCase| CaseResult {
        id: c.id.clone(),
        verdict: Verdict::Abort,
        notes: vec![note.clone()],
        millis: 0,
    };
    cases.iter().map(one).collect()
}

/// How a version came out.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The version.
    pub version: String,
    /// How far it holds (`effective`, `draft`).
    pub validity: String,
    /// Which cases (`main`).
    pub target: String,
    /// `PASS`, `TENTATIVE pass` (something was not run) or `FAIL`.
    pub verdict: &'static str,
    /// Ids that passed; the others below.
    pub passed: Vec<String>,
    /// Failed.
    pub failed: Vec<String>,
    /// Aborted.
    pub aborted: Vec<String>,
    /// Not run.
    pub missing: Vec<String>,
}

/// Sums up versions.
pub fn summaries(scope: &Scope, versions: &[(String, String)], results: &[CaseResult]) -> Vec<Summary> {
    let verdicts: BTreeMap<&str, Verdict> = results.iter().map(|r| (r.id.as_str(), r.verdict)).collect();
    let mut all = Vec::new();
    for (name, validity) in versions {
        let Some(version) = scope.versions.iter().find(|v| v.version == *name) else { continue };
        for (target, ids) in scope.targets(version) {
            let with = |wanted: Option<Verdict>| -> Vec<String> {
                ids.iter().filter(|id| verdicts.get(id.as_str()).copied() == wanted).cloned().collect()
            };
            let (failed, aborted, missing) =
                (with(Some(Verdict::Fail)), with(Some(Verdict::Abort)), with(None));
            let verdict = match (failed.is_empty() && aborted.is_empty(), missing.is_empty()) {
                (false, _) => "FAIL",
                (true, false) => "TENTATIVE pass",
                (true, true) => "PASS",
            };
            let (version, validity) = (name.clone(), validity.clone());
            let passed = with(Some(Verdict::Pass));
            all.push(Summary { version, validity, target, verdict, passed, failed, aborted, missing });
        }
    }
    all
}
