//! What is known of subjects: newest results by scope, spans of equal results, and how they are kept up to date.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Entropy, Result, Timestamp};
use store::{Query, Tx};

use crate::Registry;
use crate::intake::Submission;
use crate::logic::evaluate::{Latest, Rules, ScopeState};
use crate::logic::lifetime;
use crate::model::{Span, Standing};

impl Registry {
    /// Newest results, whether they still hold or not, by subject and scope. Of one subject they are read; those of all are
    /// kept in memory, and only what has changed is read again.
    async fn known(&self, subject: Option<String>, scope: Option<String>) -> Result<Vec<Arc<Standing>>> {
        let mut known = match subject {
            Some(subject) => {
                let rows =
                    self.store.read(move |tx| tx.list::<Standing>(&Query::new().eq("subject", &subject)));
                rows.await?.into_iter().map(Arc::new).collect()
            }
            None => self.standings.look(&self.store).await?,
        };
        if let Some(scope) = scope {
            known.retain(|s| s.scope == scope);
        }
        Ok(known)
    }

    /// How every subject stands in every scope in which something holds; each is worked out when it is asked for, for of
    /// many clouds all states at once are much. Those of a subject are next to each other.
    pub(crate) async fn states(
        self: &Arc<Self>,
        subject: Option<String>,
        scope: Option<String>,
        drafts: bool,
    ) -> Result<impl Iterator<Item = (String, Arc<Rules>, ScopeState)> + Send + use<>> {
        let (now, known) = (self.now(), self.known(subject, scope).await?);
        let registry = self.clone();
        Ok(known.into_iter().filter_map(move |standing| {
            // Results of a scope that is no longer served are kept, and not shown.
            let rules = registry.rules.get(&standing.scope)?.clone();
            let state = rules.evaluate(standing.results.clone(), now, drafts);
            (!state.results.is_empty()).then(|| (standing.subject.clone(), rules, state))
        }))
    }

    /// How one subject stands in one scope, be it that nothing holds.
    pub(crate) async fn state(&self, subject: &str, rules: &Rules, drafts: bool) -> Result<ScopeState> {
        let mut known = self.known(Some(subject.to_owned()), Some(rules.scope.uuid.clone())).await?;
        let results = known.pop().map(|s| s.results.clone()).unwrap_or_default();
        Ok(rules.evaluate(results, self.now(), drafts))
    }
}

/// Brings spans and standing of a subject up to date with a report.
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
    let newest = changed.values().chain(added.values()).filter(|s| s.newest);
    stand(tx, report, newest.map(|s| (s.testcase.clone(), Latest::of(s))).collect())?;
    let mut changed: Vec<Span> = changed.into_values().collect();
    tx.update_status_many(&mut changed)?;
    let mut added: Vec<Span> = added.into_values().chain(closed).collect();
    tx.insert_many(&mut added)
}

/// Writes what is new of the newest results.
fn stand(tx: &mut Tx<'_>, report: &Submission, newer: BTreeMap<String, Latest>) -> Result<()> {
    let fresh = Standing::new(&report.subject, &report.scope);
    match tx.get::<Standing>(&fresh.id)? {
        Some(mut standing) => {
            standing.results.extend(newer);
            tx.update_status(&mut standing)
        }
        None => tx.insert(&mut Standing { results: newer, ..fresh }),
    }
}

/// Cases that the rules do not know hold for a week: rules may come to know them.
fn end(rules: &Rules, case: &str, at: Timestamp) -> Timestamp {
    rules.end(case, at).unwrap_or_else(|| lifetime::end(at, None))
}
