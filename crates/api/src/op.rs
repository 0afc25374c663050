//! An operation: one row of a service's table.

use std::any::TypeId;
use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Method;
use base::Result;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;

use crate::request::{self, Head, RawBody, Request};
use crate::{Ctx, Mv, Reply};

pub(crate) type Fut = Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;
/// Receives the body already collected (JSON operations) or as it comes (raw operations).
pub(crate) type Handler<S> = Arc<dyn Fn(Ctx<S>, Head, Incoming) -> Result<Fut> + Send + Sync>;

/// What [`Op::watched`] calls.
pub type Watch<S> = Arc<dyn Fn(&Ctx<S>, &Called, std::result::Result<&Reply, &base::Error>) + Send + Sync>;

/// A call as [`Op::watched`] tells it.
#[derive(Debug, Clone)]
pub struct Called {
    /// Path parameters by name.
    pub params: Vec<(String, String)>,
    /// Where it came from, if known.
    pub peer: Option<std::net::IpAddr>,
}

/// A request's body on its way to the handler.
pub(crate) enum Incoming {
    /// Collected, within the limit.
    Bytes(bytes::Bytes),
    /// Not read yet.
    Stream(Body),
}

/// What a token must be scoped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScopeKind {
    /// A project.
    Project,
    /// A domain.
    Domain,
    /// The system.
    System,
}

/// How the body of an operation is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// No body; one that is sent is not looked at.
    None,
    /// JSON.
    Json,
    /// As a stream.
    Raw,
}

/// Whether a token is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenNeed {
    /// Yes: 401 without one.
    Required,
    /// Taken if sent (and then it must be valid).
    Optional,
    /// Not looked at.
    Never,
}

/// What is known about an operation without running it: for documents, metrics, tests.
#[derive(Debug, Clone)]
pub struct OpInfo {
    /// `"GET /v2.0/networks/{id}"`; for an action `"POST /v2.1/servers/{id}/action reboot"`.
    pub id: String,
    /// Method.
    pub method: Method,
    /// Path template below the service's prefix.
    pub path: Cow<'static, str>,
    /// The key of the body that selects it, for an action.
    pub action: Option<Cow<'static, str>>,
    /// Name of its policy rule.
    pub policy: Cow<'static, str>,
    /// The rule unless the operator overrides it; `None` = [`OpInfo::rule`] by method.
    pub default_rule: Option<Cow<'static, str>>,
    /// Scopes a token may have; empty = any.
    pub scopes: &'static [ScopeKind],
    /// Status of a success.
    pub status: u16,
    /// First microversion.
    pub since: Mv,
    /// Last microversion.
    pub until: Mv,
    /// Whether a token is needed.
    pub token: TokenNeed,
    /// One line for people.
    pub summary: Cow<'static, str>,
    /// Largest body in bytes; `None` = the service's limit.
    pub body_limit: Option<usize>,
    /// How the body is read.
    pub body: BodyKind,
    /// Content types understood.
    pub consumes: &'static [&'static str],
    /// Schema of the body.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

impl OpInfo {
    /// The rule unless the operator overrides it: the one given, else reader or member of the project, or admin.
    pub fn rule(&self) -> &str {
        let reads = self.method == Method::GET || self.method == Method::HEAD;
        let by_method = if reads { "rule:project_reader_or_admin" } else { "rule:project_member_or_admin" };
        self.default_rule.as_deref().unwrap_or(by_method)
    }
}

/// One operation of a service: [`OpInfo`] and the handler.
pub struct Op<S> {
    pub(crate) info: OpInfo,
    pub(crate) handler: Handler<S>,
}

impl<S> std::fmt::Debug for Op<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.info.fmt(f)
    }
}

impl<S> Clone for Op<S> {
    fn clone(&self) -> Self {
        Op { info: self.info.clone(), handler: self.handler.clone() }
    }
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $name:ident $method:ident),* $(,)?) => {$(
        $(#[$doc])*
        pub fn $name<T, F, R>(
            path: impl Into<Cow<'static, str>>, policy: impl Into<Cow<'static, str>>, handler: F,
        ) -> Self
        where
            T: DeserializeOwned + JsonSchema + Send + 'static,
            F: Fn(Ctx<S>, Request<T>) -> R + Send + Sync + 'static,
            R: Future<Output = Result<Reply>> + Send + 'static,
        {
            Self::json(Method::$method, path.into(), None, policy.into(), handler)
        }
    )*};
}

impl<S: Send + Sync + 'static> Op<S> {
    verbs! {
        /// `GET path`; `HEAD` is answered from it too. Status 200.
        get GET,
        /// `HEAD path` on its own, where it is not just GET without a body. Status 204 (Keystone's checks).
        head HEAD,
        /// `POST path`. Status 200 unless set.
        post POST,
        /// `PUT path`. Status 200 unless set.
        put PUT,
        /// `PATCH path`. Status 200 unless set.
        patch PATCH,
        /// `DELETE path`. Status 204 unless set.
        delete DELETE,
    }

    /// `POST path` with a body of the single key `action`; `T` is the value under that key (`()` takes any).
    pub fn action<T, F, R>(
        path: impl Into<Cow<'static, str>>,
        action: impl Into<Cow<'static, str>>,
        policy: impl Into<Cow<'static, str>>,
        handler: F,
    ) -> Self
    where
        T: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(Ctx<S>, Request<T>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Reply>> + Send + 'static,
    {
        Self::json(Method::POST, path.into(), Some(action.into()), policy.into(), handler)
    }

    /// An operation whose body is a stream, of any length and content type.
    pub fn raw<F, R>(
        method: Method,
        path: impl Into<Cow<'static, str>>,
        policy: impl Into<Cow<'static, str>>,
        handler: F,
    ) -> Self
    where
        F: Fn(Ctx<S>, Request<RawBody>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Reply>> + Send + 'static,
    {
        let mut info = Self::describe(method, path.into(), None, policy.into());
        info.body = BodyKind::Raw;
        let handler: Handler<S> = Arc::new(move |cx, head, body| {
            let body = match body {
                Incoming::Bytes(bytes) => Body::from(bytes),
                Incoming::Stream(body) => body,
            };
            Ok(Box::pin(handler(cx, Request { body: RawBody(body), head })))
        });
        Op { info, handler }
    }

    fn json<T, F, R>(
        method: Method,
        path: Cow<'static, str>,
        action: Option<Cow<'static, str>>,
        policy: Cow<'static, str>,
        handler: F,
    ) -> Self
    where
        T: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(Ctx<S>, Request<T>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Reply>> + Send + 'static,
    {
        let mut info = Self::describe(method, path, action, policy);
        let bodiless = TypeId::of::<T>() == TypeId::of::<()>();
        info.body = if bodiless && info.action.is_none() { BodyKind::None } else { BodyKind::Json };
        info.schema = match bodiless {
            // An action without arguments takes anything under its key.
            true => <serde_json::Value as JsonSchema>::json_schema,
            false => <T as JsonSchema>::json_schema,
        };
        let key = info.action.clone();
        let handler: Handler<S> = Arc::new(move |cx, head, body| {
            let bytes = match body {
                Incoming::Bytes(bytes) => bytes,
                Incoming::Stream(_) => bytes::Bytes::new(),
            };
            let body: T = request::parse(cx.dialect(), &bytes, key.as_deref(), bodiless)?;
            Ok(Box::pin(handler(cx, Request { body, head })))
        });
        Op { info, handler }
    }

    fn describe(
        method: Method,
        path: Cow<'static, str>,
        action: Option<Cow<'static, str>>,
        policy: Cow<'static, str>,
    ) -> OpInfo {
        let mut id = format!("{method} {path}");
        if let Some(action) = &action {
            id.push(' ');
            id.push_str(action);
        }
        let status = if method == Method::DELETE || method == Method::HEAD { 204 } else { 200 };
        OpInfo {
            id,
            method,
            path,
            action,
            policy,
            default_rule: None,
            scopes: &[],
            status,
            since: Mv::MIN,
            until: Mv::MAX,
            token: TokenNeed::Required,
            summary: Cow::Borrowed(""),
            body_limit: None,
            body: BodyKind::None,
            consumes: &["application/json"],
            schema: <() as JsonSchema>::json_schema,
        }
    }

    /// Status of a success.
    #[must_use]
    pub fn status(mut self, code: u16) -> Self {
        self.info.status = code;
        self
    }

    /// First microversion that has it.
    #[must_use]
    pub fn since(mut self, major: u16, minor: u16) -> Self {
        self.info.since = Mv(major, minor);
        self
    }

    /// Last microversion that has it.
    #[must_use]
    pub fn until(mut self, major: u16, minor: u16) -> Self {
        self.info.until = Mv(major, minor);
        self
    }

    /// Needs no token and looks at none.
    #[must_use]
    pub fn public(mut self) -> Self {
        self.info.token = TokenNeed::Never;
        self
    }

    /// Works without a token; a token that is sent must be valid ([`Ctx::maybe_auth`]).
    #[must_use]
    pub fn token_optional(mut self) -> Self {
        self.info.token = TokenNeed::Optional;
        self
    }

    /// One line for the documents.
    #[must_use]
    pub fn summary(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.info.summary = text.into();
        self
    }

    /// Largest body in bytes.
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.info.body_limit = Some(bytes);
        self
    }

    /// The rule of this operation's policy unless the operator overrides it (oslo.policy syntax). Without it:
    /// `rule:project_reader_or_admin` for GET and HEAD, `rule:project_member_or_admin` for the others.
    #[must_use]
    pub fn default_rule(mut self, rule: impl Into<Cow<'static, str>>) -> Self {
        self.info.default_rule = Some(rule.into());
        self
    }

    /// Scopes a token may have; others are 403.
    #[must_use]
    pub fn scopes(mut self, scopes: &'static [ScopeKind]) -> Self {
        self.info.scopes = scopes;
        self
    }

    /// Content types it understands instead of `application/json`.
    #[must_use]
    pub fn consumes(mut self, types: &'static [&'static str]) -> Self {
        self.info.consumes = types;
        self
    }

    /// Tells `watch` how each call of the handler ended: for an audit trail. What was refused before the handler ran (no
    /// token, no role that could do) is not told.
    #[must_use]
    pub fn watched(mut self, watch: Watch<S>) -> Self {
        let inner = self.handler.clone();
        self.handler = Arc::new(move |cx, head, body| {
            let (cx_then, watch) = (cx.clone(), watch.clone());
            let call = Called { params: head.params.clone(), peer: head.peer };
            match inner(cx, head, body) {
                Err(error) => {
                    watch(&cx_then, &call, Err(&error));
                    Err(error)
                }
                Ok(future) => Ok(Box::pin(async move {
                    let result = future.await;
                    watch(&cx_then, &call, result.as_ref());
                    result
                })),
            }
        });
        self
    }

    /// What is known about it.
    pub fn info(&self) -> &OpInfo {
        &self.info
    }
}
