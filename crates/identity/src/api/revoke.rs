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
        // Keystone still says what became of PKI tokens.
        Op::get("/v3/auth/tokens/OS-PKI/revoked", "", gone).public().status(410).summary("Is no more."),
        Op::get("/v3/OS-SIMPLE-CERT/ca", "", gone).public().status(410).summary("Is no more."),
        Op::get("/v3/OS-SIMPLE-CERT/certificates", "", gone).public().status(410).summary("Is no more."),
    ]
}

async fn gone(_: Cx, _: Request<()>) -> Result<Reply> {
    let message = "This API is no longer available due to the removal of support for PKI tokens.";
    Ok(Reply::json(&json!({"error": {"code": 410, "message": message, "title": "Gone"}})))
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
        ("OS-OAUTH1:access_token_id", event.access_token_id.clone()),
        ("OS-OAUTH1:consumer_id", event.consumer_id.clone()),
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
