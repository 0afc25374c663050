//! How the versions of a scope stood on each day of the past, of spans of equal results.

use std::collections::BTreeMap;

use base::Timestamp;

use super::evaluate::{Latest, Rules, day};

/// Seconds of a day.
pub const DAY: i64 = 86_400;

/// A case that came to the same result from `since` to `last`, without a gap in which nothing held.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// The case.
    pub case: String,
    /// What it came to.
    pub result: i64,
    /// First time.
    pub since: Timestamp,
    /// Last time.
    pub last: Timestamp,
}

/// A version stood like this from `from` to `to` (days; `to` is the last one).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// The version.
    pub version: String,
    /// How far it held.
    pub validity: String,
    /// What its deciding cases came to; `None`: something was missing.
    pub result: Option<i64>,
    /// First day.
    pub from: String,
    /// Last day.
    pub to: String,
}

/// Phases of all versions between two moments, oldest first. A day is judged by what was known at its end, or now.
pub fn phases(rules: &Rules, stretches: &[Stretch], from: Timestamp, now: Timestamp) -> Vec<Phase> {
    let mut cases: BTreeMap<&str, Vec<&Stretch>> = BTreeMap::new();
    for stretch in stretches {
        cases.entry(&stretch.case).or_default().push(stretch);
    }
    let mut phases: Vec<Phase> = Vec::new();
    let mut open: BTreeMap<String, usize> = BTreeMap::new();
    let mut at = Timestamp::from_secs(from.as_secs().div_euclid(DAY) * DAY);
    while at <= now {
        let end = at.plus_secs(DAY).min(now.plus_secs(1)).plus_secs(-1);
        let results = known(rules, &cases, end);
        let today = day(at);
        for version in rules.versions(&today, &results) {
            let result = if results.is_empty() { None } else { version.result() };
            let held = open.get(&version.name).copied().and_then(|i| phases.get_mut(i));
            match held {
                Some(phase) if phase.result == result && phase.validity == version.validity => {
                    phase.to.clone_from(&today);
                }
                _ => {
                    open.insert(version.name.clone(), phases.len());
                    let (version, validity) = (version.name, version.validity);
                    phases.push(Phase { version, validity, result, from: today.clone(), to: today.clone() });
                }
            }
        }
        at = at.plus_secs(DAY);
    }
    phases
}

/// What held at a moment.
fn known(rules: &Rules, cases: &BTreeMap<&str, Vec<&Stretch>>, at: Timestamp) -> BTreeMap<String, Latest> {
    let mut results = BTreeMap::new();
    for (case, stretches) in cases {
        let newest = stretches.iter().filter(|s| s.since <= at).max_by_key(|s| (s.last.min(at), s.since));
        let Some(stretch) = newest else { continue };
        let seen = stretch.last.min(at);
        if rules.end(case, seen).is_some_and(|end| at < end) {
            let latest = Latest { result: stretch.result, at: seen, report: String::new() };
            results.insert((*case).to_owned(), latest);
        }
    }
    results
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use certify::rules::{Kind, Scope};

    use super::*;

    #[test]
    fn days_between_runs_and_after_the_last_are_told() {
        let rules = Rules::new(Scope::builtin(Kind::Kaas).unwrap()).unwrap();
        let version = rules.scope.versions[0].clone();
        let cases = rules.scope.targets(&version).remove("main").unwrap();
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let stretch = |case: &String, result, since: &str, last: &str| Stretch {
            case: case.clone(),
            result,
            since: at(since),
            last: at(last),
        };
        let mut all: Vec<Stretch> = cases.iter().map(|c| stretch(c, 1, "2026-03-03", "2026-03-31")).collect();
        all.push(stretch(&cases[0], -1, "2026-04-02T10:00:00", "2026-04-02T10:00:00"));
        let gone = rules.end(&cases[0], at("2026-04-02")).unwrap();
        let found = phases(&rules, &all, at("2026-03-01"), gone.plus_secs(DAY + 3600));
        let told: Vec<_> = found.iter().map(|p| (p.result, p.from.as_str(), p.to.as_str())).collect();
        assert_eq!(
            told[..3].iter().map(|t| (t.0, t.1)).collect::<Vec<_>>(),
            [(None, "2026-03-01"), (Some(1), "2026-03-03"), (Some(-1), "2026-04-02"),]
        );
        let (end, last) = (day(gone), day(gone.plus_secs(DAY)));
        assert_eq!(told[3], (None, end.as_str(), last.as_str()), "{told:?}");
    }
}
