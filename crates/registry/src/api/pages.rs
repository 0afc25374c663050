//! Pages for people: how a cloud stands case by case, its past, its reports, what a scope asks for, its certificates.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use base::{Error, Result};
use serde_json::Value;
use store::{Order, Query};

use super::table::{GROUP, summary};
use super::{Answer, Caller, Site, Three, Two, certificates, reports};
use crate::certificate::{NAMESPACE, standing};
use crate::intake::redacted;
use crate::logic::evaluate::{Rules, ScopeState, day};
use crate::logic::history::{DAY, Stretch, phases};
use crate::model::{Certificate, Report, Span};
use crate::page::{Block, Inline, Line, Page, View, line, link};
use crate::{Registry, alias};

/// Days of history: 18 months (scs-0004).
const HISTORY: i64 = 549;
/// Reports and spans that a page of history shows or reads at most.
const MOST_REPORTS: usize = 1_000;
const MOST_SPANS: usize = 20_000;

/// A subject, or the members of a group; unknown to everybody: 404.
fn members(registry: &Registry, subject: &str) -> Result<Vec<String>> {
    let accounts = registry.accounts();
    let found = match subject.strip_prefix(GROUP) {
        Some(group) => accounts.group(group),
        None => accounts.get(subject).map(|a| a.subject.clone()).into_iter().collect(),
    };
    if found.is_empty() { Err(Error::not_found("There is no such subject.")) } else { Ok(found) }
}

fn word(result: Option<i64>) -> &'static str {
    match result {
        Some(1) => "✅ pass",
        Some(0) => "❔ DNF",
        None => "❓ MISSING",
        Some(_) => "🛑 FAIL",
    }
}

/// The cases of one subject.
fn cases(page: &mut Page, registry: &Registry, rules: &Rules, state: &ScopeState) {
    if state.results.is_empty() {
        page.paragraph(line("No recent test results available."));
        return;
    }
    let relevant: Vec<_> = state.versions.iter().filter(|v| state.relevant.contains(&v.name)).collect();
    let mut head: Vec<String> = vec!["testcase id".into(), "result".into(), "holds until".into()];
    head.extend(relevant.iter().map(|v| format!("{}{}", v.name, v.mark())));
    head.push("description".into());
    let mut rows = Vec::new();
    for (value, ids) in rules.buckets(state) {
        for id in ids {
            let Some(case) = rules.scope.case(&id) else { continue };
            let name = case.url.as_ref().map_or(line(id.clone()), |url| vec![link(id.clone(), url)]);
            // A failure that no stable version counts is no failure of the cloud.
            let mild = value == Some(-1) && rules.attention(&id) == 0;
            let mut result = line(if mild { "🟧 FAIL" } else { word(value) });
            let mut until = line("");
            if let Some(latest) = state.results.get(&id) {
                let url = format!("{}page/report/{}#{id}", registry.url(), latest.report);
                let title = format!("{} {}", latest.report, latest.at.iso_seconds());
                result.extend([" (".into(), Inline::Link(day(latest.at), url, title), ")".into()]);
                until = line(rules.end(&id, latest.at).map(day).unwrap_or_default());
            }
            let mut row: Vec<Line> = vec![name, result, until];
            for version in &relevant {
                row.push(line(version.target_of(&id).map_or("", |t| if t == "main" { "X" } else { "" })));
            }
            row.push(line(case.title.clone()));
            rows.push(row);
        }
    }
    page.blocks.push(Block::Table(head.into_iter().map(line).collect(), rows));
}

async fn details(registry: &Registry, subject: &str, scope: &str, drafts: bool) -> Result<Page> {
    let rules = registry.scope(scope)?;
    let subjects = members(registry, subject)?;
    let title = match subject.strip_prefix(GROUP) {
        Some(group) => format!("Details for group {group}"),
        None => format!("Details for subject {subject}"),
    };
    let mut page = Page::new(if drafts { format!("{title} (incl. drafts)") } else { title });
    page.paragraph(line(
        "Version numbers are suffixed by a symbol depending on state: * for draft, † for warn (soon to be deprecated), and †† for deprecated.",
    ));
    let mut states = Vec::new();
    for subject in &subjects {
        states.push((subject, registry.state(subject, rules, drafts).await?));
    }
    if states.len() > 1 {
        let jump = |(s, state): &(&String, ScopeState)| {
            let shown = summary(Some(state).filter(|s| !s.results.is_empty()));
            vec![link(s.as_str(), format!("#{s}")), format!(" {shown}").into()]
        };
        page.blocks.push(Block::List(states.iter().map(jump).collect()));
    }
    for (subject, state) in &states {
        page.heading(2, format!("{subject}: {}", rules.scope.name), subject.as_str());
        let (url, name) = (registry.url(), alias(rules));
        page.paragraph(vec![
            link("spec overview", format!("{url}page/scope/{name}")),
            " · ".into(),
            link("history", format!("{url}page/history/{subject}/{name}")),
        ]);
        cases(&mut page, registry, rules, state);
    }
    Ok(page)
}

/// `GET /{view}/detail/{subject}/{scope}`.
pub(super) async fn detail(State(registry): Site, Path((view, subject, scope)): Three) -> Answer {
    let view = View::of(&view)?;
    Ok(details(&registry, &subject, &scope, false).await?.answer(view, registry.url()))
}

/// `GET /{view}/detail_full/{subject}/{scope}`: drafts, too.
pub(super) async fn detail_full(State(registry): Site, Path((view, subject, scope)): Three) -> Answer {
    let view = View::of(&view)?;
    Ok(details(&registry, &subject, &scope, true).await?.answer(view, registry.url()))
}

async fn past(registry: &Registry, page: &mut Page, subject: &str, rules: &Rules) -> Result<()> {
    let now = registry.now();
    let from = now.plus_secs(-HISTORY * DAY);
    let (of, uuid) = (subject.to_owned(), rules.scope.uuid.clone());
    let (spans, reports) = registry
        .store()
        .read(move |tx| {
            let mine = || Query::new().eq("subject", &of).eq("scope", &uuid);
            let spans = mine().ge("last", from).sort("last", Order::Desc).limit(MOST_SPANS);
            let of_subject = Query::new().eq("subject", &of).ge("checked_at", from);
            let reports = of_subject.sort("checked_at", Order::Desc).limit(MOST_REPORTS);
            Ok((tx.list::<Span>(&spans)?, tx.list::<Report>(&reports)?))
        })
        .await?;
    let stretch = |s: Span| Stretch { case: s.testcase, result: s.result, since: s.since, last: s.last };
    let stretches: Vec<Stretch> = spans.into_iter().map(stretch).collect();
    // Before the first result there is nothing to tell.
    let Some(first) = stretches.iter().map(|s| s.since).min() else {
        page.paragraph(line("Nothing was reported in the last 18 months."));
        return Ok(());
    };
    let mut found = phases(rules, &stretches, from.max(first), now);
    found.reverse();
    let row = |p: &crate::logic::history::Phase| {
        let version = format!("{}{}", p.version, crate::logic::evaluate::mark(&p.validity));
        vec![line(version), line(p.from.clone()), line(p.to.clone()), line(word(p.result))]
    };
    page.heading(3, "Versions, day by day", format!("{subject}-versions"));
    page.table(&["version", "from", "to", "result"], found.iter().map(row).collect());
    page.heading(3, "Reports", format!("{subject}-reports"));
    let row = |r: &Report| {
        let [passed, open, failed] = r.counts;
        let url = format!("{}page/report/{}", registry.url(), r.id);
        vec![
            vec![link(r.checked_at.iso_seconds(), url)],
            line(passed.to_string()),
            line(open.to_string()),
            line(failed.to_string()),
        ]
    };
    let shown: Vec<_> = reports.iter().filter(|r| r.scope == rules.scope.uuid).map(row).collect();
    page.table(&["checked at", "passed", "inconclusive", "failed"], shown);
    Ok(())
}

/// `GET /{view}/history/{subject}/{scope}`: 18 months.
pub(super) async fn history(State(registry): Site, Path((view, subject, scope)): Three) -> Answer {
    let view = View::of(&view)?;
    let rules = registry.scope(&scope)?;
    let subjects = members(&registry, &subject)?;
    // Evaluating 18 months day by day takes some time; a few at once are enough.
    let _turn = registry.turn().await?;
    let mut page = Page::new(format!("History of {subject}: {}", rules.scope.name));
    for subject in &subjects {
        page.heading(2, subject, subject);
        past(&registry, &mut page, subject, rules).await?;
        let uuid = rules.scope.uuid.clone();
        let found = certificates::some(&registry, Some(subject.clone()), Some(uuid)).await?;
        if !found.is_empty() {
            page.heading(3, "Certificates", format!("{subject}-certificates"));
            list(&mut page, &registry, &found);
        }
    }
    Ok(page.answer(view, registry.url()))
}

fn list(page: &mut Page, registry: &Registry, certificates: &[Certificate]) {
    let row = |c: &Certificate| {
        let scope = registry.scope(&c.scope).map_or(c.scope.clone(), |r| r.scope.name.clone());
        let revoked = c.revoked_at.map(|t| t.iso_seconds()).unwrap_or_default();
        vec![
            vec![link(c.id.as_str(), format!("{}page/certificate/{}", registry.url(), c.id))],
            line(c.subject.clone()),
            line(format!("{scope} {}", c.version)),
            line(c.issued_at.iso_seconds()),
            line(c.expires_at.iso_seconds()),
            line(standing(c, registry.now())),
            line(format!("{revoked} {}", c.reason.as_deref().unwrap_or_default()).trim().to_owned()),
        ]
    };
    let head = ["certificate", "subject", "scope", "issued", "expires", "status", "revoked"];
    page.table(&head, certificates.iter().map(row).collect());
}

/// `GET /{view}/certificates`.
pub(super) async fn certificates(State(registry): Site, Path(view): Path<String>) -> Answer {
    let view = View::of(&view)?;
    let found = certificates::some(&registry, None, None).await?;
    let mut page = Page::new("Certificates");
    if found.is_empty() {
        page.paragraph(line("No certificate has been issued."));
    } else {
        list(&mut page, &registry, &found);
    }
    let url = registry.url();
    page.paragraph(vec![
        "Revoked certificates: ".into(),
        link("list", format!("{url}crl")),
        " with its ".into(),
        link("signature", format!("{url}crl/signature")),
        "; the issuer's ".into(),
        link("key", format!("{url}issuer")),
        ".".into(),
    ]);
    Ok(page.answer(view, url))
}

/// `GET /{view}/certificate/{id}`, with what is needed to verify it.
pub(super) async fn certificate(State(registry): Site, Path((view, id)): Two) -> Answer {
    let view = View::of(&view)?;
    let found = certificates::one(&registry, id).await?;
    let mut page = Page::new(format!("Certificate of {}", found.subject));
    list(&mut page, &registry, std::slice::from_ref(&found));
    let place = format!("{}certificates/{}", registry.url(), found.id);
    page.paragraph(vec![
        link("document", place.as_str()),
        " · ".into(),
        link("signature", format!("{place}/signature")),
        " · ".into(),
        link("verifiable credential", format!("{place}/credential")),
        " · ".into(),
        link("revocation list", format!("{}crl", registry.url())),
    ]);
    page.heading(2, "How to verify it", "verify");
    let signer = format!("registry {}", registry.key().ssh());
    page.blocks.push(Block::Text(
        None,
        format!(
            "curl -o certificate.json {place}\ncurl -o certificate.json.sig {place}/signature\necho '{signer}' > signers\n\
             ssh-keygen -Y verify -f signers -I registry -n {NAMESPACE} -s certificate.json.sig < certificate.json\n"
        ),
    ));
    page.paragraph(line(
        "The key must be the one that the registry's operator tells you by another way than this page; and the certificate must not stand in the revocation list.",
    ));
    page.blocks.push(Block::Text(Some("Document".into()), found.document));
    Ok(page.answer(view, registry.url()))
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn lines(value: Option<&Value>) -> String {
    let lines: Vec<String> =
        value.and_then(Value::as_array).into_iter().flatten().map(|l| text(Some(l))).collect();
    lines.join("\n")
}

fn shown(registry: &Registry, report: &Report, data: &Value, title: &str) -> Page {
    let mut page = Page::new(format!("Report {} ({title})", report.id));
    let url = registry.url();
    let scope = registry.scope(&report.scope).map_or(report.scope.clone(), |r| r.scope.name.clone());
    let assignment = data.pointer("/run/assignment").and_then(Value::as_object);
    let assigned: Vec<String> =
        assignment.into_iter().flatten().map(|(k, v)| format!("{k}={}", text(Some(v)))).collect();
    page.blocks.push(Block::List(vec![
        vec!["uuid: ".into(), link(report.id.as_str(), format!("{url}reports/{}", report.id))],
        line(format!("subject: {}", report.subject)),
        vec!["scope: ".into(), link(scope, format!("{url}page/scope/{}", report.scope))],
        line(format!("checked at: {}", text(data.get("checked_at")))),
        line(format!("variable assignment: {}", assigned.join(", "))),
    ]));
    let invocations = data.pointer("/run/invocations").and_then(Value::as_object);
    for (id, invocation) in invocations.into_iter().flatten() {
        page.heading(2, format!("Invocation {id}"), id);
        let mut items = vec![
            vec!["cmd: ".into(), Inline::Code(text(invocation.get("cmd")))],
            line(format!("rc: {}", text(invocation.get("rc")))),
        ];
        for channel in ["critical", "error", "warning"] {
            items.push(line(format!("{channel}: {}", text(invocation.get(channel)))));
        }
        page.blocks.push(Block::List(items));
        let results = invocation.get("results").and_then(Value::as_object);
        let row = |(id, result): (&String, &Value)| {
            vec![vec![Inline::Anchor(id.clone()), id.as_str().into()], line(word(result.as_i64()))]
        };
        page.table(&["testcase id", "result"], results.into_iter().flatten().map(row).collect());
        for (name, title) in [("stdout", "Captured stdout"), ("stderr", "Captured stderr")] {
            let captured = lines(invocation.get(name));
            if !captured.is_empty() {
                page.blocks.push(Block::Text(Some(title.into()), captured));
            }
        }
        if invocation.get("redacted") == Some(&Value::Bool(true)) {
            let full = format!("{url}page/report_full/{}#{id}", report.id);
            page.paragraph(vec![link("show unredacted (requires login)", full)]);
        }
    }
    page
}

/// `GET /{view}/report/{run}`: what is public of a report.
pub(super) async fn report(State(registry): Site, Path((view, run)): Two) -> Answer {
    let view = View::of(&view)?;
    let found = reports::find(&registry, run).await?;
    let page = shown(&registry, &found, &redacted(&found.data), "redacted");
    Ok(page.answer(view, registry.url()))
}

/// `GET /{view}/report_full/{run}`: all of it, for its subject and those who may read any.
pub(super) async fn report_full(State(registry): Site, caller: Caller, Path((view, run)): Two) -> Answer {
    let view = View::of(&view)?;
    let found = reports::whole(&registry, &caller, run).await?;
    Ok(shown(&registry, &found, &found.data, "full").answer(view, registry.url()))
}

/// `GET /{view}/scope/{scope}`: modules and versions.
pub(super) async fn scope(State(registry): Site, Path((view, scope)): Two) -> Answer {
    let view = View::of(&view)?;
    let rules = registry.scope(&scope)?;
    let valid = rules.scope.on(&day(registry.now()));
    let mut page = Page::new(rules.scope.name.clone());
    let mut head = vec!["Scope versions ->".to_owned()];
    head.extend(valid.iter().map(|(v, _)| v.version.clone()));
    let row = |name: &str, cell: &dyn Fn(&certify::rules::Version, &str) -> String| {
        let mut row = vec![line(name)];
        row.extend(valid.iter().map(|(v, state)| line(cell(v, state))));
        row
    };
    let mut rows = vec![
        row("State", &|_, state| state.to_owned()),
        row("Stabilized at", &|v, _| v.stabilized_at.clone().unwrap_or_default()),
    ];
    let used: BTreeSet<&str> = valid.iter().flat_map(|(v, _)| v.include.iter().map(String::as_str)).collect();
    let mut modules: Vec<_> = rules.scope.modules.iter().filter(|m| used.contains(m.id.as_str())).collect();
    modules.sort_by(|a, b| a.id.cmp(&b.id));
    for module in modules {
        let standard = module.id.starts_with("scs-");
        let name = if standard { format!("{}: {}", module.id, module.name) } else { module.name.clone() };
        let mut cells = vec![vec![link(name, module.url.as_str())]];
        let included = |v: &certify::rules::Version| if v.include.contains(&module.id) { "X" } else { "" };
        cells.extend(valid.iter().map(|(v, _)| line(included(v))));
        rows.push(cells);
    }
    page.blocks.push(Block::Table(head.into_iter().map(line).collect(), rows));
    Ok(page.answer(view, registry.url()))
}
