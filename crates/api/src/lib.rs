//! What every service's HTTP side has in common: a table of operations becomes a router.
//!
//! A service lists its operations ([`Op`]) once; from that list come routing, token check, microversions, policy,
//! body validation, error envelopes, OpenAPI, metrics labels and the list of cases its tests owe.
//!
//! Invariant: the order of a request is fixed in one place ([`router`]): request id, limits, token, microversion,
//! policy (the part that needs no target), body, handler. A handler never runs for a caller who could not be allowed,
//! and no input makes a 5xx.
//!
//! Start reading at [`Op`] and [`Ctx`], then [`router`], then [`Dialect`]; `docs/adding-an-endpoint.md` shows the use.

pub mod ctx;
pub mod dialect;
mod metrics;
pub mod microversion;
pub mod op;
pub mod openapi;
pub mod paging;
pub mod policy;
pub mod query;
pub mod reply;
pub mod request;
pub mod router;
pub mod service;
pub mod testing;
pub mod types;
pub mod versions;

pub use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
pub use base::{Error, Kind, Result};
pub use ctx::Ctx;
pub use dialect::Dialect;
pub use microversion::{Mv, MvRange};
pub use op::{BodyKind, Called, Op, OpInfo, ScopeKind, TokenNeed, Watch};
pub use paging::Page;
pub use policy::{Policy, Target};
pub use query::Query;
pub use reply::Reply;
pub use request::{Certificate, Peer, RawBody, Request};
pub use router::router;
pub use schemars::JsonSchema;
pub use service::{Service, Settings};
