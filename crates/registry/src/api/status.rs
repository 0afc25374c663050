//! How subjects stand: JSON, metrics, a badge.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use base::{Error, Kind};
use futures::stream;
use serde_json::Value;

use super::{Answer, Caller, Parameters, Site, Two, login, permit, takes_json};
use crate::accounts::READ_ANY;
use crate::alias;
use crate::logic::evaluate::{Rules, ScopeState, passed};
use crate::page::escaped;

/// `GET /status?subject&scopeuuid`.
pub(super) async fn show(State(registry): Site, headers: HeaderMap, query: RawQuery) -> Answer {
    if !takes_json(&headers) {
        return Err(Error::new(Kind::NotAcceptable, "client needs to accept application/json").into());
    }
    let parameters = Parameters::parse(query, &["subject", "scopeuuid"])?;
    let given = |name: &str| parameters.text(name).map(str::to_owned);
    let mut states = registry.states(given("subject"), given("scopeuuid"), false).await?.peekable();
    let mut comma = "";
    let subjects = std::iter::from_fn(move || {
        let (subject, rules, state) = states.next()?;
        let of = |rules: &Rules, state: &ScopeState| {
            format!("{}:{}", Value::from(rules.scope.uuid.as_str()), rules.json(state))
        };
        let mut scopes = vec![of(&rules, &state)];
        while let Some((_, rules, state)) = states.next_if(|(next, ..)| *next == subject) {
            scopes.push(of(&rules, &state));
        }
        let comma = std::mem::replace(&mut comma, ",");
        Some(format!("{comma}{}:{{{}}}", Value::from(subject), scopes.join(",")))
    });
    // Written one subject at a time: of many it is long.
    let pieces = std::iter::once("{".to_owned()).chain(subjects).chain(std::iter::once("}".to_owned()));
    let body = Body::from_stream(stream::iter(pieces.map(Ok::<_, Infallible>)));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// `GET /metrics/{subject}`: upstream's documentation has it, its code has not.
pub(super) async fn metrics(State(registry): Site, caller: Caller, Path(subject): Path<String>) -> Answer {
    let account = login(&registry, &caller).await?;
    permit(&account, Some(&subject), READ_ANY)?;
    if registry.accounts().get(&subject).is_none() {
        return Err(Error::not_found("Not Found").into());
    }
    let mut out = String::from(
        "# HELP scs_version_result What the deciding cases come to: 1 pass, 0 inconclusive, -1 fail, NaN incomplete.\n\
         # TYPE scs_version_result gauge\n\
         # HELP scs_testcase_result Newest result that holds: 1 pass, 0 inconclusive, -1 fail.\n\
         # TYPE scs_testcase_result gauge\n\
         # HELP scs_testcase_expires_seconds Until when that result holds.\n\
         # TYPE scs_testcase_expires_seconds gauge\n",
    );
    for rules in registry.scopes() {
        let state = registry.state(&subject, rules, true).await?;
        let scope = alias(rules);
        for version in &state.versions {
            let value = version.result().map_or("NaN".into(), |r| r.to_string());
            out.push_str(&format!(
                "scs_version_result{{subject=\"{subject}\",scope=\"{scope}\",version=\"{}\",validity=\"{}\"}} {value}\n",
                version.name, version.validity
            ));
        }
        for (case, latest) in &state.results {
            let labels = format!("{{subject=\"{subject}\",scope=\"{scope}\",testcase=\"{case}\"}}");
            let end = rules.end(case, latest.at).unwrap_or(latest.at).as_secs();
            out.push_str(&format!("scs_testcase_result{labels} {}\n", latest.result));
            out.push_str(&format!("scs_testcase_expires_seconds{labels} {end}\n"));
        }
    }
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], out).into_response())
}

/// `GET /badge/{subject}/{scope}`: an image of how a subject stands, to link to its page.
pub(super) async fn badge(State(registry): Site, Path((subject, scope)): Two) -> Answer {
    let rules = registry.scope(scope.strip_suffix(".svg").unwrap_or(&scope))?;
    if registry.accounts().get(&subject).is_none() {
        return Err(Error::not_found("Not Found").into());
    }
    let state = registry.state(&subject, rules, false).await?;
    let (word, color) = match (state.result, state.validity.as_str()) {
        (Some(1), "effective") => (passed(&state), "#13692f"),
        (Some(-1), _) | (_, "deprecated") => ("not passed".to_owned(), "#b3121d"),
        (None, _) => ("incomplete".to_owned(), "#8a5a00"),
        _ => (passed(&state), "#8a5a00"),
    };
    let name = &rules.scope.name;
    let width = |text: &str| 14 + 7 * text.chars().count();
    let (left, right) = (width(name), width(&word));
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total}\" height=\"20\" role=\"img\" aria-label=\"{n}: {w}\">\
         <title>{n}: {w}</title><rect width=\"{left}\" height=\"20\" fill=\"#444\"/>\
         <rect x=\"{left}\" width=\"{right}\" height=\"20\" fill=\"{color}\"/>\
         <g fill=\"#fff\" font-family=\"system-ui,sans-serif\" font-size=\"11\" text-anchor=\"middle\">\
         <text x=\"{a}\" y=\"14\">{n}</text><text x=\"{b}\" y=\"14\">{w}</text></g></svg>\n",
        total = left + right,
        n = escaped(name),
        w = escaped(&word),
        a = left / 2,
        b = left + right / 2,
    );
    Ok(([(CONTENT_TYPE, "image/svg+xml"), (CACHE_CONTROL, "no-cache, max-age=300")], svg).into_response())
}
