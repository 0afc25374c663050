//! The overview: clouds × scopes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Path, State};
use base::Result;

use super::{Answer, Site, certificates};
use crate::accounts::{About, Accounts};
use crate::certificate::standing;
use crate::logic::evaluate::{ScopeState, passed};
use crate::model::Certificate;
use crate::page::{Inline, Line, Page, View, line, link};
use crate::{Registry, alias};

/// Marks a group where a subject is expected.
pub(super) const GROUP: &str = "group-";

/// How a state looks: upstream's symbols, and the versions that passed.
pub(super) fn summary(state: Option<&ScopeState>) -> String {
    let Some(state) = state else { return "🛑 –".into() };
    let symbol = match (state.result, state.validity.as_str()) {
        (Some(-1), _) | (_, "deprecated") => "🛑",
        (None, _) | (_, "warn") => "🟧",
        (Some(0), _) => "✅*",
        _ => "✅",
    };
    let passed = passed(state);
    format!("{symbol} {}", if passed.is_empty() { "–" } else { &passed })
}

/// The worse, the smaller; a group is as good as its worst member.
fn score(state: Option<&ScopeState>) -> u8 {
    match state.map(|s| s.result) {
        Some(Some(-1)) => 0,
        Some(None) => 1,
        None => 2,
        Some(Some(0)) => 3,
        Some(Some(_)) => 4,
    }
}

/// A row: a subject, or the members of a group.
struct Row {
    name: String,
    path: String,
    about: About,
    subjects: Vec<String>,
}

/// Rows of all accounts that stand for a cloud: they have results, or something to say for themselves.
fn rows(accounts: &Accounts, with_results: &BTreeSet<String>) -> Vec<Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for account in accounts.all() {
        let speaks = account.about.name.is_some() || account.about.description.is_some();
        if !speaks && !with_results.contains(&account.subject) {
            continue;
        }
        let path = account.group.as_ref().map_or(account.subject.clone(), |g| format!("{GROUP}{g}"));
        let row = rows.entry(path.clone()).or_insert_with(|| Row {
            name: account.group.clone().unwrap_or_else(|| account.subject.clone()),
            path,
            about: About::default(),
            subjects: Vec::new(),
        });
        row.subjects.push(account.subject.clone());
        let (have, more) = (&mut row.about, &account.about);
        let fields = [
            (&mut have.name, &more.name),
            (&mut have.description, &more.description),
            (&mut have.operator, &more.operator),
            (&mut have.url, &more.url),
            (&mut have.health, &more.health),
        ];
        for (field, value) in fields {
            if field.is_none() {
                field.clone_from(value);
            }
        }
    }
    rows.into_values().collect()
}

/// The certificate a row has in a scope: that of a member, the best there is.
fn certified(registry: &Registry, all: &[Certificate], row: &Row, uuid: &str) -> Line {
    let mine = all.iter().filter(|c| c.scope == uuid && row.subjects.contains(&c.subject));
    let now = registry.now();
    let order = ["valid", "revoked", "expired"];
    let best = mine.min_by_key(|c| order.iter().position(|o| *o == standing(c, now)));
    let Some(best) = best else { return line("–") };
    let url = format!("{}page/certificate/{}", registry.url(), best.id);
    vec![link(format!("{} {}", best.version, standing(best, now)), url)]
}

async fn page(registry: &Arc<Registry>, detail: &str, drafts: bool) -> Result<Page> {
    let mut states: BTreeMap<String, BTreeMap<String, ScopeState>> = BTreeMap::new();
    for (subject, rules, state) in registry.states(None, None, drafts).await? {
        states.entry(subject).or_default().insert(rules.scope.uuid.clone(), state.brief());
    }
    let certificates = certificates::some(registry, None, None).await?;
    let with_results = states.keys().cloned().collect();
    let rows = rows(&registry.accounts(), &with_results);
    let suffix = if drafts { " (incl. drafts)" } else { "" };
    let mut page = Page::new(format!("SCS compliance overview{suffix}"));
    let marks = "* draft, † soon deprecated, †† deprecated; ✅* inconclusive, 🟧 incomplete or soon deprecated, 🛑 not passed";
    page.paragraph(line(marks));
    for rules in registry.scopes() {
        let uuid = &rules.scope.uuid;
        page.heading(2, &rules.scope.name, alias(rules));
        page.paragraph(vec![link("What is asked", format!("{}page/scope/{}", registry.url(), alias(rules)))]);
        let mut cells = Vec::new();
        for row in &rows {
            let mut of: Vec<Option<&ScopeState>> =
                row.subjects.iter().map(|s| states.get(s).and_then(|scopes| scopes.get(uuid))).collect();
            let certificate = certified(registry, &certificates, row, uuid);
            let known = of.iter().any(Option::is_some)
                || certificates.iter().any(|c| row.subjects.contains(&c.subject) && c.scope == *uuid);
            if !known {
                continue;
            }
            of.sort_by_key(|s| score(*s));
            let shown = summary(of.first().copied().flatten());
            let name = row.about.name.clone().unwrap_or_else(|| row.name.clone());
            let name = row.about.url.as_ref().map_or(line(name.clone()), |url| vec![link(name, url)]);
            let text = |t: &Option<String>| line(t.clone().unwrap_or_default());
            let health: Line = row.about.health.iter().map(|u| link("HM", u)).collect::<Vec<Inline>>();
            let path = format!("{}/{}", row.path, alias(rules));
            cells.push(vec![
                name,
                text(&row.about.description),
                text(&row.about.operator),
                vec![link(shown, format!("{}page/{detail}/{path}", registry.url()))],
                certificate,
                vec![link("history", format!("{}page/history/{path}", registry.url()))],
                health,
            ]);
        }
        if cells.is_empty() {
            page.paragraph(line("No recent test results available."));
        } else {
            let head = ["Name", "Description", "Operator", "Result", "Certificate", "History", "HealthMon"];
            page.table(&head, cells);
        }
    }
    Ok(page)
}

/// `GET /{view}/table`.
pub(super) async fn table(State(registry): Site, Path(view): Path<String>) -> Answer {
    let view = View::of(&view)?;
    Ok(page(&registry, "detail", false).await?.answer(view, registry.url()))
}

/// `GET /{view}/table_full`: drafts, too.
pub(super) async fn table_full(State(registry): Site, Path(view): Path<String>) -> Answer {
    let view = View::of(&view)?;
    Ok(page(&registry, "detail_full", true).await?.answer(view, registry.url()))
}
