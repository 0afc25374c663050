//! `/reports`: what is uploaded, and what was.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use base::{Error, Result, Timestamp};
use serde_json::Value;
use store::{Order, Query};

use super::{
    Answer, Caller, LARGEST_REPORT, Parameters, Site, body, content_type, json, login, nothing, permit,
};
use crate::accounts::{APPEND_ANY, Account, Accounts, READ_ANY};
use crate::intake::{self, Format, Submission};
use crate::model::{Outcome, Report, Upload};
use crate::{Registry, standing};

/// `POST /reports`.
pub(super) async fn add(State(registry): Site, caller: Caller, content: Body) -> Answer {
    let account = login(&registry, &caller).await?;
    let format = Format::of(content_type(&caller.headers))?;
    let content = body(content, LARGEST_REPORT).await?;
    let (upload, submissions) = {
        // A large text takes some time and memory; a few at once are enough.
        let _turn = registry.turn().await?;
        let (account, id, now) = (account.clone(), registry.entropy.uuid().to_string(), registry.now());
        let read = tokio::task::spawn_blocking(move || read(&content, format, &account, id, now));
        read.await.map_err(|e| Error::internal(e.to_string()))??
    };
    if submissions.is_empty() {
        return Ok(json(StatusCode::OK, &serde_json::json!({"detail": "empty reports"})));
    }
    check(&registry, &account, &registry.accounts(), &submissions)?;
    keep(&registry, upload, submissions).await?;
    Ok(nothing())
}

/// What a body holds, if the account signed it.
fn read(
    content: &[u8],
    format: Format,
    account: &Account,
    id: String,
    now: Timestamp,
) -> Result<(Upload, Vec<Submission>)> {
    let signed = intake::signed(content, account.keys())?;
    let submissions = intake::documents(signed.text, format, now)?;
    let upload = Upload {
        id,
        meta: Default::default(),
        account: account.subject.clone(),
        key: signed.key.fingerprint(),
        json: format == Format::Json,
        signature: signed.signature.to_owned(),
        text: signed.text.to_owned(),
    };
    Ok((upload, submissions))
}

/// Whether the account may speak for every subject, and every scope is known.
fn check(
    registry: &Registry,
    account: &Account,
    accounts: &Accounts,
    submissions: &[Submission],
) -> Result<()> {
    for subject in intake::subjects(submissions) {
        permit(account, Some(subject), APPEND_ANY)?;
        if !accounts.may_report(account, subject) {
            return Err(Error::unauthenticated("delegation problem?"));
        }
    }
    for (index, submission) in submissions.iter().enumerate() {
        if !registry.rules.contains_key(&submission.scope) {
            let place = format!("document {}: spec.uuid", index + 1);
            return Err(Error::unprocessable(format!("{place}: this registry knows no such scope")));
        }
    }
    Ok(())
}

/// Writes everything, or nothing.
async fn keep(registry: &Registry, upload: Upload, submissions: Vec<Submission>) -> Result<()> {
    let (entropy, rules) = (registry.entropy.clone(), registry.rules.clone());
    let written = registry.store().write(move |tx| {
        tx.insert(&mut upload.clone())?;
        for submission in &submissions {
            if tx.get::<Report>(&submission.run)?.is_some() {
                return Err(Error::conflict("Conflict: report already present"));
            }
            tx.insert(&mut Report {
                id: submission.run.clone(),
                meta: Default::default(),
                subject: submission.subject.clone(),
                scope: submission.scope.clone(),
                checked_at: submission.checked_at,
                counts: submission.counts(),
                upload: upload.id.clone(),
                data: submission.data.clone(),
            })?;
            let outcome = |((version, testcase), result): (&(String, String), &i64)| Outcome {
                id: entropy.uuid().simple().to_string(),
                meta: Default::default(),
                report: submission.run.clone(),
                subject: submission.subject.clone(),
                scope: submission.scope.clone(),
                version: version.clone(),
                testcase: testcase.clone(),
                result: *result,
                approval: *result == 1,
                checked_at: submission.checked_at,
            };
            tx.insert_many(&mut submission.results.iter().map(outcome).collect::<Vec<_>>())?;
            if let Some(rules) = rules.get(&submission.scope) {
                standing::record(tx, &entropy, rules, submission)?;
            }
        }
        Ok(())
    });
    written.await
}

/// `GET /reports?subject&limit&skip`: newest first.
pub(super) async fn list(State(registry): Site, caller: Caller, query: RawQuery) -> Answer {
    let account = login(&registry, &caller).await?;
    let parameters = Parameters::parse(query, &["subject", "limit", "skip"])?;
    let (limit, skip) = parameters.page()?;
    let subject = match parameters.text("subject") {
        None => Some(account.subject.clone()),
        Some(subject) => {
            permit(&account, Some(subject), READ_ANY)?;
            // Empty: no restriction.
            Some(subject.to_owned()).filter(|s| !s.is_empty())
        }
    };
    let reports = registry.store().read(move |tx| {
        let mut query = Query::new().sort("checked_at", Order::Desc).limit(skip + limit);
        if let Some(subject) = &subject {
            query = query.eq("subject", subject);
        }
        let ids: Vec<String> = tx.list_ids::<Report>(&query)?.into_iter().skip(skip).collect();
        let query = Query::new().is_in("id", &ids).sort("checked_at", Order::Desc);
        tx.list::<Report>(&query)
    });
    let data: Vec<Value> = reports.await?.into_iter().map(|r| r.data).collect();
    Ok(json(StatusCode::OK, &data))
}

/// A report, for whoever may see all of it.
pub(super) async fn whole(registry: &Registry, caller: &Caller, run: String) -> Result<Report> {
    let account = login(registry, caller).await?;
    let report = find(registry, run).await?;
    permit(&account, Some(&report.subject), READ_ANY)?;
    Ok(report)
}

/// A report.
pub(super) async fn find(registry: &Registry, run: String) -> Result<Report> {
    let found = registry.store().read(move |tx| tx.get::<Report>(&run)).await?;
    found.ok_or_else(|| Error::not_found("Not Found"))
}

/// `GET /reports/{run}`.
pub(super) async fn show(State(registry): Site, caller: Caller, Path(run): Path<String>) -> Answer {
    let report = whole(&registry, &caller, run).await?;
    let text = serde_json::to_string_pretty(&report.data).map_err(Error::internal)?;
    Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
}

/// `GET /reports/{run}/upload`: the bytes it came in, signature and all, to verify once more. For those alone who may see
/// every subject in it.
pub(super) async fn upload(State(registry): Site, caller: Caller, Path(run): Path<String>) -> Answer {
    let account = login(&registry, &caller).await?;
    let report = find(&registry, run).await?;
    let id = report.upload.clone();
    let upload = registry.store().read(move |tx| tx.need::<Upload>(&id)).await?;
    if account.subject != upload.account {
        permit(&account, None, READ_ANY)?;
    }
    let kind = if upload.json { "application/x-signed-json" } else { "application/x-signed-yaml" };
    Ok(([(CONTENT_TYPE, kind)], format!("{}&{}", upload.signature, upload.text)).into_response())
}
