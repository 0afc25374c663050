//! What is known of subjects: newest results by scope, spans of equal results, and how they are kept up to date.

use std::collections::BTreeMap;

use base::{Entropy, Result, Timestamp};
use store::{Query, Tx};

use crate::Registry;
use crate::intake::Submission;
use crate::logic::evaluate::{Latest, Rules, ScopeState};
use crate::logic::lifetime;
use crate::model::Span;

/// Subject → scope → its newest results.
pub(crate) type Known = BTreeMap<String, BTreeMap<String, BTreeMap<String, Latest>>>;

impl Registry {
    /// Newest results, whether they still hold or not.
    pub(crate) async fn known(&self, subject: Option<String>, scope: Option<String>) -> Result<Known> {
        let spans = self.store.read(move |tx| {
            let mut query = Query::new().eq("newest", true);
            if let Some(subject) = &subject {
                query = query.eq("subject", subject);
            }
            if let Some(scope) = &scope {
                query = query.eq("scope", scope);
            }
            tx.list::<Span>(&query)
        });
        let mut known = Known::new();
        for span in spans.await? {
            let latest = Latest { result: span.result, at: span.last, report: span.report };
            known
                .entry(span.subject)
                .or_default()
                .entry(span.scope)
                .or_default()
                .insert(span.testcase, latest);
        }
        Ok(known)
    }

    /// How every subject stands in every scope in which something holds.
    pub(crate) async fn states(
        &self,
        subject: Option<String>,
        scope: Option<String>,
        drafts: bool,
    ) -> Result<BTreeMap<String, BTreeMap<String, ScopeState>>> {
        let now = self.now();
        let mut states: BTreeMap<String, BTreeMap<String, ScopeState>> = BTreeMap::new();
        for (subject, scopes) in self.known(subject, scope).await? {
            for (uuid, results) in scopes {
                // Results of a scope that is no longer served are kept, and not shown.
                let Ok(rules) = self.scope(&uuid) else { continue };
                let state = rules.evaluate(results, now, drafts);
                if !state.results.is_empty() {
                    states.entry(subject.clone()).or_default().insert(uuid, state);
                }
            }
        }
        Ok(states)
    }

    /// How one subject stands in one scope, be it that nothing holds.
    pub(crate) async fn state(&self, subject: &str, rules: &Rules, drafts: bool) -> Result<ScopeState> {
        let (subject, uuid) = (subject.to_owned(), rules.scope.uuid.clone());
        let mut known = self.known(Some(subject.clone()), Some(uuid.clone())).await?;
        let results = known.remove(&subject).and_then(|mut s| s.remove(&uuid)).unwrap_or_default();
        Ok(rules.evaluate(results, self.now(), drafts))
    }
}

/// Brings the spans of a subject up to date with a report.
pub(crate) fn record(tx: &mut Tx<'_>, entropy: &Entropy, rules: &Rules, report: &Submission) -> Result<()> {
    let query = Query::new().eq("subject", &report.subject).eq("scope", &report.scope).eq("newest", true);
    let mut newest: BTreeMap<String, Span> =
        tx.list::<Span>(&query)?.into_iter().map(|s| (s.testcase.clone(), s)).collect();
    let (mut added, mut changed): (BTreeMap<String, Span>, BTreeMap<String, Span>) = Default::default();
    let mut closed = Vec::new();
    // Of an old report with several versions the last one counts, as upstream evaluates it.
    let cases: BTreeMap<&String, i64> = report.results.iter().map(|((_, case), r)| (case, *r)).collect();
    for (case, result) in cases {
        let fresh = |newest| Span {
            id: entropy.uuid().simple().to_string(),
            meta: Default::default(),
            subject: report.subject.clone(),
            scope: report.scope.clone(),
            testcase: case.clone(),
            result,
            since: report.checked_at,
            last: report.checked_at,
            report: report.run.clone(),
            newest,
        };
        match newest.remove(case) {
            None => drop(added.insert(case.clone(), fresh(true))),
            // Late: it tells of the past alone.
            Some(span) if report.checked_at < span.last => closed.push(fresh(false)),
            Some(mut span) if span.result == result && report.checked_at < end(rules, case, span.last) => {
                span.last = report.checked_at;
                span.report.clone_from(&report.run);
                changed.insert(case.clone(), span);
            }
            Some(mut span) => {
                span.newest = false;
                changed.insert(case.clone(), span);
                added.insert(case.clone(), fresh(true));
            }
        }
    }
    let mut changed: Vec<Span> = changed.into_values().collect();
    tx.update_status_many(&mut changed)?;
    let mut added: Vec<Span> = added.into_values().chain(closed).collect();
    tx.insert_many(&mut added)
}

/// Cases that the rules do not know hold for a week: rules may come to know them.
fn end(rules: &Rules, case: &str, at: Timestamp) -> Timestamp {
    rules.end(case, at).unwrap_or_else(|| lifetime::end(at, None))
}
