//! What the newest results of a subject come to: for each version of a scope, and for the scope.
//!
//! The rules are those of `certify`; the verdicts are the compliance monitor's (ADR 0024): of the cases of a target any
//! failure counts more than anything missing, that more than anything inconclusive, that more than what passed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use base::Timestamp;
use certify::rules::Scope;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::lifetime;
use crate::model::Span;

/// PASS, ABORT, FAIL.
pub const RESULTS: [i64; 3] = [1, 0, -1];
/// Cases of this target decide.
const MAIN: &str = "main";

/// The newest result of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latest {
    /// 1, 0 or -1.
    pub result: i64,
    /// When it was found out.
    pub at: Timestamp,
    /// In which report.
    pub report: String,
}

impl Latest {
    /// What the newest span of a case says.
    pub(crate) fn of(span: &Span) -> Self {
        Latest { result: span.result, at: span.last, report: span.report.clone() }
    }
}

/// A version and its cases.
struct Version {
    name: String,
    targets: BTreeMap<String, Vec<String>>,
}

/// A scope, prepared for evaluation.
pub struct Rules {
    /// As `certify` knows it.
    pub scope: Scope,
    versions: Vec<Version>,
    /// Case → how many stable versions count it.
    attention: BTreeMap<String, i64>,
    /// All cases, as JSON: the same for every subject.
    cases: String,
}

/// How a version came out.
#[derive(Debug, Clone)]
pub struct VersionState {
    /// Its name.
    pub name: String,
    /// Its place among all versions of the scope.
    pub index: usize,
    /// How far it holds.
    pub validity: String,
    /// Target → its cases and what they come to.
    pub targets: BTreeMap<String, (Vec<String>, Option<i64>)>,
}

impl VersionState {
    /// What the cases that decide come to; `None`: something is missing.
    pub fn result(&self) -> Option<i64> {
        self.targets.get(MAIN).map_or(Some(1), |(_, result)| *result)
    }

    /// To which target a case belongs.
    pub fn target_of(&self, case: &str) -> Option<&str> {
        self.targets.iter().find(|(_, (ids, _))| ids.iter().any(|i| i == case)).map(|(t, _)| t.as_str())
    }

    /// The mark upstream puts behind the version's name.
    pub fn mark(&self) -> &'static str {
        mark(&self.validity)
    }
}

/// `*` draft, `†` soon deprecated, `††` deprecated.
pub fn mark(validity: &str) -> &'static str {
    match validity {
        "draft" => "*",
        "warn" => "†",
        "deprecated" => "††",
        _ => "",
    }
}

/// How a scope came out for a subject.
#[derive(Debug, Clone)]
pub struct ScopeState {
    /// Results that hold.
    pub results: BTreeMap<String, Latest>,
    /// All versions the timeline knows today, newest first.
    pub versions: Vec<VersionState>,
    /// Those that were looked at, in this order, until one passed.
    pub relevant: Vec<String>,
    /// Those that passed or are inconclusive or not complete, with their marks.
    pub passed: Vec<(String, &'static str)>,
    /// Of the last one that was looked at; -1 if there was none.
    pub result: Option<i64>,
    /// The place of the best one that did not fail and is no draft.
    pub best: Option<usize>,
    /// Its validity, else `deprecated`.
    pub validity: String,
}

impl ScopeState {
    /// Without its cases: what an overview needs.
    #[must_use]
    pub fn brief(self) -> Self {
        ScopeState { results: BTreeMap::new(), versions: Vec::new(), ..self }
    }
}

impl Rules {
    /// Prepares a scope.
    ///
    /// # Errors
    /// A lifetime that nobody knows.
    pub fn new(scope: Scope) -> Result<Self> {
        for case in &scope.testcases {
            if let Some(lifetime) = case.lifetime.as_deref().filter(|l| !lifetime::KNOWN.contains(l)) {
                bail!("rules: case {} has the unknown lifetime {lifetime}", case.id);
            }
        }
        let versions: Vec<Version> = scope
            .versions
            .iter()
            .map(|v| Version { name: v.version.clone(), targets: scope.targets(v) })
            .collect();
        let mut attention = BTreeMap::new();
        for (version, prepared) in scope.versions.iter().zip(&versions) {
            for id in prepared.targets.get(MAIN).into_iter().flatten() {
                *attention.entry(id.clone()).or_default() += i64::from(version.stabilized_at.is_some());
            }
        }
        let mut rules = Rules { scope, versions, attention, cases: String::new() };
        rules.cases = Value::Object(rules.shown_cases()).to_string();
        Ok(rules)
    }

    /// When a result of a case ends to hold; `None`: no such case.
    pub fn end(&self, case: &str, at: Timestamp) -> Option<Timestamp> {
        Some(lifetime::end(at, self.scope.case(case)?.lifetime.as_deref()))
    }

    /// How many stable versions count a case.
    pub fn attention(&self, case: &str) -> i64 {
        self.attention.get(case).copied().unwrap_or(0)
    }

    /// Versions of `day`, as the timeline has them, with what `results` come to.
    pub fn versions(&self, day: &str, results: &BTreeMap<String, Latest>) -> Vec<VersionState> {
        let valid: BTreeMap<&str, &str> =
            self.scope.on(day).into_iter().map(|(v, s)| (v.version.as_str(), s)).collect();
        let state = |(index, version): (usize, &Version)| {
            let validity = (*valid.get(version.name.as_str())?).to_owned();
            let targets = version.targets.iter().map(|(target, ids)| {
                let of = |id: &String| results.get(id).map(|l| l.result);
                (target.clone(), (ids.clone(), overall(ids.iter().map(of))))
            });
            let targets = targets.collect();
            Some(VersionState { name: version.name.clone(), index, validity, targets })
        };
        self.versions.iter().enumerate().filter_map(state).collect()
    }

    /// Evaluates the newest results by the rules of `now`; what holds no more is left out.
    pub fn evaluate(
        &self,
        mut results: BTreeMap<String, Latest>,
        now: Timestamp,
        drafts: bool,
    ) -> ScopeState {
        results.retain(|case, latest| self.end(case, latest.at).is_some_and(|end| now < end));
        let versions = self.versions(&day(now), &results);
        let mut state = ScopeState {
            results,
            versions: Vec::new(),
            relevant: Vec::new(),
            passed: Vec::new(),
            result: Some(-1),
            best: None,
            validity: "deprecated".into(),
        };
        for version in versions.iter().filter(|v| drafts || v.validity != "draft") {
            state.relevant.push(version.name.clone());
            state.result = version.result();
            if state.result != Some(-1) {
                state.passed.push((version.name.clone(), version.mark()));
                if version.validity != "draft" {
                    state.best = Some(version.index);
                    state.validity.clone_from(&version.validity);
                    break;
                }
            }
        }
        state.versions = versions;
        state
    }

    /// Cases of the versions that were looked at, by what they came to; those that decide first.
    pub fn buckets(&self, state: &ScopeState) -> Vec<(Option<i64>, Vec<String>)> {
        let relevant = state.versions.iter().filter(|v| state.relevant.contains(&v.name));
        let cases: BTreeSet<&String> =
            relevant.flat_map(|v| v.targets.values().flat_map(|(ids, _)| ids)).collect();
        let mut buckets = Vec::new();
        for value in [Some(-1), None, Some(0), Some(1)] {
            let is = |id: &&&String| state.results.get(**id).map(|l| l.result) == value;
            let mut ids: Vec<String> = cases.iter().filter(is).map(|id| (*id).clone()).collect();
            ids.sort_by_key(|id| (self.attention(id) == 0, id.clone()));
            if !ids.is_empty() {
                buckets.push((value, ids));
            }
        }
        buckets
    }

    /// A state as the monitor's `/status` shows it: JSON.
    pub fn json(&self, state: &ScopeState) -> String {
        let results: Map<String, Value> = state
            .results
            .iter()
            .map(|(id, l)| {
                let shown = json!({"result": l.result, "checked_at": python_iso(l.at), "report": l.report});
                (id.clone(), shown)
            })
            .collect();
        let versions: Map<String, Value> = state
            .versions
            .iter()
            .map(|v| {
                let target = |(name, (ids, result)): (&String, &(Vec<String>, Option<i64>))| {
                    (name.clone(), json!({"testcases": ids, "result": result}))
                };
                let targets: Map<String, Value> = v.targets.iter().map(target).collect();
                let of: Map<String, Value> = v
                    .targets
                    .iter()
                    .flat_map(|(t, (ids, _))| ids.iter().map(move |id| (id.clone(), json!(t))))
                    .collect();
                let shown = json!({
                    "_idx": v.index, "result": v.result(), "targets": targets, "tc_target": of, "validity": v.validity,
                });
                (v.name.clone(), shown)
            })
            .collect();
        let buckets: Map<String, Value> = self
            .buckets(state)
            .into_iter()
            .map(|(value, ids)| (value.map_or("null".into(), |v| v.to_string()), json!(ids)))
            .collect();
        let own = json!({
            "name": self.scope.name,
            "results": results,
            "buckets": buckets,
            "versions": versions,
            "relevant": state.relevant,
            "result": state.result,
            "passed": state.passed.iter().map(|(v, _)| v).collect::<Vec<_>>(),
            "passed_str": passed(state),
            "best_passed": state.best,
            "validity": state.validity,
        })
        .to_string();
        format!("{{\"testcases\":{},{}", self.cases, own.strip_prefix('{').unwrap_or_default())
    }

    fn shown_cases(&self) -> Map<String, Value> {
        let case = |c: &certify::rules::TestCase| {
            let mut shown = Map::new();
            shown.insert("id".into(), json!(c.id));
            shown.insert("description".into(), json!(c.title));
            let optional = [("lifetime", &c.lifetime), ("section", &c.section), ("url", &c.url)];
            for (name, value) in optional {
                if let Some(value) = value {
                    shown.insert(name.into(), json!(value));
                }
            }
            shown.insert("attn".into(), json!(self.attention(&c.id)));
            (c.id.clone(), Value::Object(shown))
        };
        self.scope.testcases.iter().map(case).collect()
    }
}

/// The versions that passed, each with its mark.
pub fn passed(state: &ScopeState) -> String {
    let names: Vec<String> = state.passed.iter().map(|(name, mark)| format!("{name}{mark}")).collect();
    names.join(", ")
}

/// What some cases come to together.
fn overall(results: impl Iterator<Item = Option<i64>>) -> Option<i64> {
    let found: BTreeSet<Option<i64>> = results.collect();
    [Some(-1), None, Some(0)].into_iter().find(|v| found.contains(v)).unwrap_or(Some(1))
}

/// `YYYY-MM-DD` (UTC).
pub fn day(at: Timestamp) -> String {
    at.iso_seconds().chars().take(10).collect()
}

/// As Python writes a naive moment: a fraction only where there is one.
pub fn python_iso(at: Timestamp) -> String {
    let text = at.iso_naive();
    text.strip_suffix(".000000").unwrap_or(&text).to_owned()
}
