//! The audit trail, as far as the caller may see it. Not part of Keystone.

use ::api::{Op, Reply, Request};
use base::{Result, Timestamp};
use serde_json::{Value, json};
use store::{Order, Query};

use super::{Cx, enforce, own_domain_target, token_domain};
use crate::logic::body::invalid;
use crate::model::AuditRecord;
use crate::state::State;

/// Most events in one answer.
const MOST: usize = 1000;

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v3/OS-ALLOD/audit_events", "identity:list_audit_events", list).summary(
            "Lists CADF events, the latest first; filters: initiator_id, action, outcome, since, before, marker, limit.",
        ),
    ]
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &own_domain_target(&cx))?;
    let page = req.page(MOST)?;
    let pairs = req.query_pairs();
    let moment = |name: &str| match pairs.get(name) {
        None => Ok(None),
        Some(text) => {
            Timestamp::parse(text).map(Some).ok_or_else(|| invalid(name, "must be a date and time"))
        }
    };
    let (since, before) = (moment("since")?, moment("before")?);
    let text = |name: &str| pairs.get(name).map(str::to_owned);
    let (initiator, action, outcome) = (text("initiator_id"), text("action"), text("outcome"));
    // A token for a domain shows what the domain's own users did, whoever holds it.
    let (own, marker, limit) = (token_domain(&cx), page.marker.clone(), page.limit.min(MOST));
    cx.trail.flush().await?;
    let found = cx
        .read(move |tx| {
            let mut query = Query::new().sort("at", Order::Desc).after(marker.as_deref()).limit(limit);
            for (column, value) in [("initiator_id", &initiator), ("action", &action), ("outcome", &outcome)]
            {
                if let Some(value) = value {
                    query = query.eq(column, value);
                }
            }
            if let Some(own) = &own {
                query = query.eq("domain_id", own.as_str());
            }
            if let Some(since) = since {
                query = query.ge("at", since);
            }
            if let Some(before) = before {
                query = query.lt("at", before);
            }
            tx.list::<AuditRecord>(&query)
        })
        .await?;
    let events: Vec<&Value> = found.iter().map(|r| &r.event).collect();
    let own = cx.url("/v3/OS-ALLOD/audit_events");
    Ok(Reply::json(&json!({"audit_events": events, "links": {"self": own, "next": null, "previous": null}})))
}
