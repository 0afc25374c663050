//! The audit trail: who did what to what, and whether it succeeded, as CADF events (DSP0262, the form Keystone notifies
//! in). Every authentication and every change is written to the log stream at once (target `audit`) and, a moment later
//! and together with others, to the tables, where it can be queried; a crash in between loses the row, not the line.
//!
//! Invariant: an event holds ids, names and addresses, never a secret.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::api::{Called, Method, Op, Reply};
use base::{Entropy, Error, Result, Timestamp};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use store::Store;

use crate::api::Cx;
use crate::model::AuditRecord;
use crate::state::State;
use crate::tokens::Validated;

/// Most events that wait for the tables; beyond that the oldest are left to the log.
const MOST_WAITING: usize = 20_000;
/// How long events are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(1000);

/// Events on their way to the tables.
pub struct Trail {
    store: Store,
    entropy: Entropy,
    waiting: Mutex<Vec<AuditRecord>>,
    writing: AtomicBool,
}

impl std::fmt::Debug for Trail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trail({} waiting)", self.waiting.lock().len())
    }
}

/// What happened.
#[derive(Debug, Clone)]
struct Event {
    action: String,
    success: bool,
    code: u16,
    initiator: Map<String, Value>,
    domain_id: Option<String>,
    target_type: String,
    target_id: String,
    also: Map<String, Value>,
}

impl Trail {
    /// A trail that ends in `store`.
    pub fn new(store: Store, entropy: Entropy) -> Self {
        Trail { store, entropy, waiting: Mutex::default(), writing: AtomicBool::new(false) }
    }

    fn record(self: &Arc<Self>, event: Event, now: Timestamp) {
        let id = self.entropy.uuid().to_string();
        let outcome = if event.success { "success" } else { "failure" };
        let mut cadf = json!({
            "typeURI": "http://schemas.dmtf.org/cloud/audit/1.0/event", "eventType": "activity", "id": id,
            "eventTime": now.iso_micros(), "action": event.action, "outcome": outcome,
            "initiator": event.initiator,
            "target": {"id": event.target_id, "typeURI": event.target_type},
            "observer": {"id": "identity", "typeURI": "service/security"},
        });
        if let Some(map) = cadf.as_object_mut() {
            if !event.success {
                map.insert(
                    "reason".into(),
                    json!({"reasonType": "HTTP", "reasonCode": event.code.to_string()}),
                );
            }
            map.extend(event.also);
        }
        tracing::info!(target: "audit", event = %cadf);
        let initiator_id = cadf.pointer("/initiator/id").and_then(Value::as_str).map(str::to_owned);
        let record = AuditRecord {
            id,
            meta: store::Meta::default(),
            at: now,
            initiator_id,
            domain_id: event.domain_id,
            action: event.action,
            outcome: outcome.to_owned(),
            event: cadf,
        };
        {
            let mut waiting = self.waiting.lock();
            if waiting.len() >= MOST_WAITING {
                waiting.drain(..MOST_WAITING / 2);
            }
            waiting.push(record);
        }
        self.later();
    }

    /// Has the events written after a moment, if nobody is at it. Outside of a runtime the next reader does it.
    fn later(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.writing.swap(true, Ordering::SeqCst) {
            return;
        }
        let this = self.clone();
        runtime.spawn(async move {
            tokio::time::sleep(GATHER).await;
            this.writing.store(false, Ordering::SeqCst);
            if let Err(error) = this.flush().await {
                tracing::warn!(error = error.chain(), "audit events wait for the database");
            }
        });
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// The store's; the events go on waiting.
    pub async fn flush(&self) -> Result<()> {
        let taken = std::mem::take(&mut *self.waiting.lock());
        if taken.is_empty() {
            return Ok(());
        }
        let rows = Arc::new(taken);
        let batch = rows.clone();
        let written = self
            .store
            .write(move |tx| {
                for record in batch.iter() {
                    tx.insert(&mut record.clone())?;
                }
                Ok(())
            })
            .await;
        if written.is_err() {
            let mut waiting = self.waiting.lock();
            let mut again: Vec<AuditRecord> = rows.as_ref().clone();
            again.append(&mut waiting);
            *waiting = again;
        }
        written
    }
}

/// Who acts, as CADF names it.
fn initiator(id: Option<&str>, peer: Option<IpAddr>, request: &str) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("id".into(), json!(id.unwrap_or("unknown")));
    map.insert("typeURI".into(), json!("service/security/account/user"));
    map.insert("request_id".into(), json!(request));
    if let Some(peer) = peer {
        map.insert("host".into(), json!({"address": peer.to_string()}));
    }
    map
}

/// Notes an attempt to get a token.
pub(crate) fn authentication(
    cx: &Cx,
    peer: Option<IpAddr>,
    claimed: Option<String>,
    made: std::result::Result<&Validated, &Error>,
) {
    tell(cx, peer, claimed, made, "authenticate", None);
}

/// Notes that a service provider was, or should have been, told who somebody is.
pub(crate) fn vouching(
    cx: &Cx,
    peer: Option<IpAddr>,
    to: &str,
    made: std::result::Result<&Validated, &Error>,
) {
    let to: String = to.chars().take(64).collect();
    tell(cx, peer, None, made, "create/assertion", Some(("service/security/service_provider", to)));
}

/// Notes what was done with what somebody proved; `about` what, if it is not the account itself.
fn tell(
    cx: &Cx,
    peer: Option<IpAddr>,
    claimed: Option<String>,
    made: std::result::Result<&Validated, &Error>,
    action: &str,
    about: Option<(&str, String)>,
) {
    let mut also = Map::new();
    let (id, domain) = match made {
        Ok(valid) => {
            also.insert("methods".into(), json!(valid.auth.methods));
            also.insert("scope".into(), json!(valid.auth.scope));
            if let Some(trust) = &valid.trust {
                also.insert("trustee_user_id".into(), json!(trust.trustee));
            }
            (Some(valid.auth.user_id.to_string()), Some(valid.auth.user_domain_id.to_string()))
        }
        Err(_) => (claimed, None),
    };
    let code = made.err().map_or(201, |e| e.kind().status());
    let mut who = initiator(id.as_deref(), peer, cx.request_id());
    if let Ok(valid) = made {
        who.insert("username".into(), json!(valid.auth.user_name));
        if let Some(thumbprint) = &valid.thumbprint {
            who.insert("credential".into(), json!({"x5t#S256": thumbprint}));
        }
    }
    let account = || ("service/security/account/user", id.unwrap_or_else(|| "unknown".into()));
    let (target_type, target_id) = about.unwrap_or_else(account);
    let event = Event {
        action: action.to_owned(),
        success: made.is_ok(),
        code,
        initiator: who,
        domain_id: domain,
        target_type: target_type.to_owned(),
        target_id,
        also,
    };
    cx.trail.record(event, cx.now());
}

/// What kind of thing a path is about: its last fixed part in the singular.
fn kind_of(path: &str) -> String {
    let fixed =
        path.split('/').rfind(|p| !p.is_empty() && !p.starts_with('{') && *p != "inherited_to_projects");
    let name = fixed.unwrap_or("unknown");
    match name {
        "policies" => "policy".into(),
        "OS-EC2" => "credential".into(),
        "config" => "domain_config".into(),
        other => other.strip_suffix('s').unwrap_or(other).to_owned(),
    }
}

/// Has every change by `op` noted. Logins note themselves: they know who.
pub(crate) fn watched(op: Op<State>) -> Op<State> {
    let info = op.info();
    let reads = info.method == Method::GET || info.method == Method::HEAD;
    let logs_in = ["/v3/auth/tokens", "/v3/ec2tokens", "/v3/s3tokens", "/v3/OS-OAUTH2/token"];
    let path = info.path.as_ref();
    let vouches = path.starts_with("/v3/auth/OS-FEDERATION/saml2");
    let comes_in = path.starts_with("/oidc/") || path.ends_with("/protocols/{protocol_id}/auth");
    if reads || (info.method == Method::POST && (comes_in || vouches || logs_in.contains(&path))) {
        return op;
    }
    let kind = kind_of(&info.path);
    let grants = info.path.contains("/roles/{role_id}") && info.method == Method::PUT;
    let verb = match info.method.as_str() {
        "POST" if kind == "password" => "update",
        "POST" => "create",
        "PUT" if grants || kind == "implie" => "create",
        "DELETE" => "delete",
        _ => "update",
    };
    let action = format!("{verb}/{kind}");
    op.watched(Arc::new(move |cx, call, result| note(cx, call, result, &action, &kind)))
}

fn note(cx: &Cx, call: &Called, result: std::result::Result<&Reply, &Error>, action: &str, kind: &str) {
    let auth = cx.maybe_auth();
    let mut who = initiator(auth.map(|a| a.user_id.as_str()), call.peer, cx.request_id());
    if let Some(auth) = auth {
        who.insert("username".into(), json!(auth.user_name));
        who.insert("scope".into(), json!(auth.scope));
        who.insert("credential".into(), json!({"audit_id": auth.audit_id}));
    }
    let made = result.ok().and_then(Reply::subject).filter(|id| !id.is_empty());
    let last = call.params.last().map(|(_, value)| value.as_str());
    let mut also = Map::new();
    let places: Map<String, Value> = call.params.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    also.insert(
        "attachments".into(),
        json!([{"name": "path", "typeURI": "mime:application/json", "content": places}]),
    );
    let event = Event {
        action: action.to_owned(),
        success: result.is_ok(),
        code: result.err().map_or(200, |e| e.kind().status()),
        initiator: who,
        domain_id: auth.map(|a| a.user_domain_id.to_string()),
        target_type: format!("data/security/{kind}"),
        target_id: made.or(last).unwrap_or("unknown").to_owned(),
        also,
    };
    cx.trail.record(event, cx.now());
}
