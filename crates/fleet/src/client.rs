//! Calls of the cloud's API without a network in between, counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use axum::body::Body;
use axum::http::Request;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::control::Control;
use crate::trace::Trace;

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Body; `Null` where it is no JSON.
    pub body: Value,
    /// The token of a login.
    pub token: Option<String>,
}

impl Reply {
    /// Whether the call did what was asked.
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The text at a JSON pointer; empty where none is.
    pub fn text(&self, pointer: &str) -> String {
        self.body.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// The list at a JSON pointer; empty where none is.
    pub fn list(&self, pointer: &str) -> Vec<Value> {
        self.body.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
    }
}

/// The server died before it answered, or there was none: nobody knows whether the call was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoAnswer;

/// What was called.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Calls {
    /// By what was done and how it was answered (`create_server 202`).
    pub answers: BTreeMap<String, u64>,
    /// Servers whose evacuation was not refused.
    #[serde(skip)]
    pub evacuated: BTreeSet<String>,
    /// Answers of 500 and above, with what was called.
    pub failures: Vec<String>,
    /// Processor time of calls that were answered, in microseconds; real, so not part of what a seed replays.
    #[serde(skip)]
    pub micros: Vec<u32>,
}

/// The API as one or more callers use it; cheap to clone.
#[derive(Clone)]
pub struct Api {
    control: Arc<Control>,
    trace: Trace,
    calls: Arc<Mutex<Calls>>,
}

impl Api {
    /// Of this control plane.
    pub fn new(control: Arc<Control>, trace: Trace) -> Self {
        Api { control, trace, calls: Arc::default() }
    }

    /// What was called so far.
    pub fn calls(&self) -> Calls {
        self.calls.lock().clone()
    }

    /// Reads the numbers of calls without a copy.
    pub fn look<T>(&self, look: impl FnOnce(&Calls) -> T) -> T {
        look(&self.calls.lock())
    }

    /// Calls; `what` is the name under which it is counted.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn call(
        &self,
        what: &str,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply, NoAnswer> {
        let answered = self.send(token, method, path, body).await;
        let told = match &answered {
            Ok(reply) => reply.status.to_string(),
            Err(NoAnswer) => "none".to_owned(),
        };
        self.trace.event("call", format_args!("{what} {method} {path} {told}"));
        let mut calls = self.calls.lock();
        *calls.answers.entry(format!("{what} {told}")).or_default() += 1;
        if what == "evacuate" && answered.as_ref().map_or(true, Reply::ok) {
            calls.evacuated.extend(path.rsplit('/').nth(1).map(str::to_owned));
        }
        if let Ok(reply) = &answered
            && reply.status >= 500
        {
            let at = self.trace.elapsed().as_secs();
            calls.failures.push(format!("{at} s: {method} {path} answered {} {}", reply.status, reply.body));
        }
        answered
    }

    async fn send(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply, NoAnswer> {
        let server = self.control.current().map_err(|_| NoAnswer)?;
        let patch = path.starts_with("/image") && method == "PATCH";
        let kind = if patch { "application/openstack-images-v2.1-json-patch" } else { "application/json" };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "cloud.sim")
            .header("x-auth-token", token)
            .header("content-type", kind);
        if path.starts_with("/compute") {
            // Since 2.95 an evacuated server waits for its owner to start it.
            let old = body.is_some_and(|b| b.get("evacuate").is_some());
            let version = if old { "compute 2.94" } else { "compute 2.96" };
            request = request.header("openstack-api-version", version);
        } else if path.starts_with("/volume") {
            request = request.header("openstack-api-version", "volume 3.70");
        }
        let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string()));
        let Ok(request) = request.body(body) else { return Err(NoAnswer) };
        let began = Instant::now();
        let answer = tokio::select! {
            biased;
            () = server.dead.cancelled() => return Err(NoAnswer),
            answer = server.cloud.router.clone().oneshot(request) => answer,
        };
        let Ok(answer) = answer;
        let (parts, body) = answer.into_parts();
        let bytes = axum::body::to_bytes(body, 64 << 20).await.map_err(|_| NoAnswer)?;
        // A process that died while it answered has not answered.
        if server.dead.is_cancelled() {
            return Err(NoAnswer);
        }
        self.calls.lock().micros.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
        Ok(Reply {
            status: parts.status.as_u16(),
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            token: parts.headers.get("x-subject-token").and_then(|t| t.to_str().ok()).map(str::to_owned),
        })
    }

    /// A call that has to succeed: for preparing a run.
    ///
    /// # Errors
    /// Any answer but a success.
    pub async fn must(&self, token: &str, method: &str, path: &str, body: Value) -> Result<Reply> {
        let body = Some(body).filter(|b| !b.is_null());
        match self.call("prepare", token, method, path, body.as_ref()).await {
            Ok(reply) if reply.ok() => Ok(reply),
            Ok(reply) => bail!("{method} {path} answers {}: {}", reply.status, reply.body),
            Err(NoAnswer) => bail!("{method} {path}: no server"),
        }
    }

    /// Logs in with a password.
    ///
    /// # Errors
    /// Where that is refused.
    pub async fn login(&self, user: &str, password: &str, project: &str) -> Result<Reply> {
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": user, "domain": domain, "password": password}}},
            "scope": {"project": {"name": project, "domain": domain}},
        }});
        self.must("", "POST", "/identity/v3/auth/tokens", body).await
    }
}
