//! Revocations for services that keep tokens without asking for each (`OS-REVOKE`).

use ::api::{Op, Reply, Request, Target};
use base::{Result, Timestamp};
use serde_json::{Map, Value, json};
use store::{Order, Query};

use super::{Cx, enforce};
use crate::logic::body::invalid;
use crate::model::RevocationEvent;
use crate::state::State;

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v3/OS-REVOKE/events", "identity:list_revoke_events", list)
            .summary("Lists which tokens were revoked, since a moment."),
    ]
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let since = match req.query_pairs().get("since") {
        None => None,
        Some(text) => {
            Some(Timestamp::parse(text).ok_or_else(|| invalid("since", "must be a date and time"))?)
        }
    };
    let found = cx
        .read(move |tx| {
            let query = Query::new().sort("revoked_at", Order::Asc);
            let query = if let Some(since) = since { query.ge("revoked_at", since) } else { query };
            tx.list::<RevocationEvent>(&query)
        })
        .await?;
    let events: Vec<Value> = found.iter().map(wire).collect();
    let links = json!({"next": null, "self": cx.url("/v3/OS-REVOKE/events"), "previous": null});
    Ok(Reply::json(&json!({"events": events, "links": links})))
}

/// Only what an event is about.
fn wire(event: &RevocationEvent) -> Value {
    let mut map = Map::new();
    let about = [
        ("audit_id", event.audit_id.clone()),
        ("user_id", event.user_id.as_ref().map(ToString::to_string)),
        ("project_id", event.project_id.as_ref().map(ToString::to_string)),
        ("domain_id", event.domain_id.as_ref().map(ToString::to_string)),
        ("role_id", event.role_id.as_ref().map(ToString::to_string)),
        ("OS-TRUST:trust_id", event.trust_id.clone()),
    ];
    for (key, value) in about {
        if let Some(value) = value {
            map.insert(key.to_owned(), Value::String(value));
        }
    }
    map.insert("issued_before".into(), json!(event.issued_before.iso_micros()));
    map.insert("revoked_at".into(), json!(event.revoked_at.iso_micros()));
    Value::Object(map)
}
