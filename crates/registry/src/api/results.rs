//! `/results`: single results, and what reviewers say of them.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use base::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json as value};
use store::{Order, Query};

use super::{Answer, Caller, LARGEST, Parameters, Site, body, content_type, json, login, nothing, permit};
use crate::accounts::{APPROVE, READ_ANY};
use crate::logic::evaluate::python_iso;
use crate::model::Outcome;

/// How far back results are listed, as upstream's.
const DAYS: i64 = 7;
/// Approvals of one request.
const MOST: usize = 1_000;

/// `GET /results?approved&limit&skip`: oldest first.
pub(super) async fn list(State(registry): Site, caller: Caller, query: RawQuery) -> Answer {
    let account = login(&registry, &caller).await?;
    permit(&account, None, READ_ANY)?;
    let parameters = Parameters::parse(query, &["approved", "limit", "skip"])?;
    let ((limit, skip), approved) = (parameters.page()?, parameters.truth("approved")?);
    let since = registry.now().plus_secs(-DAYS * 86_400);
    let outcomes = registry.store().read(move |tx| {
        let mut query = Query::new().gt("checked_at", since).sort("checked_at", Order::Asc);
        if let Some(approved) = approved {
            query = query.eq("approval", approved);
        }
        let ids: Vec<String> =
            tx.list_ids::<Outcome>(&query.limit(skip + limit))?.into_iter().skip(skip).collect();
        tx.list::<Outcome>(&Query::new().is_in("id", &ids).sort("checked_at", Order::Asc))
    });
    let shown = |o: Outcome| {
        value!({
            "reportuuid": o.report, "subject": o.subject, "checked_at": python_iso(o.checked_at), "scopeuuid": o.scope,
            "version": o.version, "check": o.testcase, "result": o.result, "approval": o.approval,
        })
    };
    Ok(json(StatusCode::OK, &outcomes.await?.into_iter().map(shown).collect::<Vec<_>>()))
}

/// What a reviewer says of one result.
#[derive(Debug, Clone, Deserialize)]
struct Approval {
    reportuuid: String,
    scopeuuid: String,
    version: String,
    check: String,
    approval: bool,
}

/// `POST /results`: one approval or a list of them; all, or none.
pub(super) async fn approve(State(registry): Site, caller: Caller, content: Body) -> Answer {
    let account = login(&registry, &caller).await?;
    permit(&account, None, APPROVE)?;
    if content_type(&caller.headers).map(|t| t.split(';').next().unwrap_or_default().trim())
        != Some("application/json")
    {
        return Err(Error::unsupported_media_type("Content-Type is application/json.").into());
    }
    let approvals = approvals(&body(content, LARGEST).await?)?;
    let written = registry.store().write(move |tx| {
        for (index, approval) in approvals.iter().enumerate() {
            let query = Query::new()
                .eq("report", &approval.reportuuid)
                .eq("version", &approval.version)
                .eq("testcase", &approval.check);
            let found = tx.first::<Outcome>(&query)?.filter(|o| o.scope == approval.scopeuuid);
            let mut outcome =
                found.ok_or_else(|| Error::not_found(format!("item {index}: there is no such result")))?;
            if outcome.approval != approval.approval {
                outcome.approval = approval.approval;
                tx.update_status(&mut outcome)?;
            }
        }
        Ok(())
    });
    written.await?;
    Ok(nothing())
}

fn approvals(content: &[u8]) -> Result<Vec<Approval>> {
    let document: Value = serde_json::from_slice(content)
        .map_err(|e| Error::unprocessable(format!("The body is not JSON: {e}")))?;
    let items = match document {
        Value::Array(items) if items.len() <= MOST => items,
        Value::Array(_) => return Err(Error::unprocessable(format!("More than {MOST} items."))),
        one => vec![one],
    };
    let read = |(index, item): (usize, Value)| {
        let wrong = |e: serde_json::Error| Error::unprocessable(format!("item {index}: {e}"));
        let approval: Approval = serde_json::from_value(item).map_err(wrong)?;
        let texts = [&approval.reportuuid, &approval.scopeuuid, &approval.version, &approval.check];
        if texts.iter().any(|t| t.contains('\0')) {
            return Err(Error::unprocessable(format!("item {index}: NUL characters are not allowed")));
        }
        Ok(approval)
    };
    items.into_iter().enumerate().map(read).collect()
}
