//! Identity: Keystone v3.
//!
//! Users, groups, projects, domains, roles and who has which; the catalog; tokens. Other services know it as a
//! [`contract::auth::Authenticator`] only.
//!
//! Invariant: a token gives exactly the rights the tables give at the moment of the request; every change that could
//! take a right away moves an epoch in its own transaction (`directory::touch_*`), and what is remembered of tokens is
//! good only under the epoch it was found in, on any number of servers.
//!
//! Start reading at [`State`], then `tokens` (what a token is worth), `login` (how one is got), `api::ops` (the table
//! of operations), [`bootstrap()`] (what is there from the start).

mod api;
mod audit;
mod bootstrap;
mod cache;
mod clients;
mod compliance;
mod directory;
mod external;
mod federation;
pub mod import;
mod jws;
mod keys;
mod ldap;
mod logic;
mod login;
mod model;
mod oauth1;
mod oidc;
mod password;
mod revocations;
mod saml;
mod secrets;
mod state;
mod throttle;
mod tokens;
mod words;

pub use api::ops;
pub use bootstrap::{Bootstrap, BootstrapEndpoint, DEFAULT_DOMAIN, bootstrap};
pub use compliance::{Compliance, OAuth2, Operator};
pub use external::External;
pub use keys::Repository;
pub use model::{MIGRATIONS, Place};
pub use saml::Saml;
pub use state::{Config, LimitModel, SharedFetch, State, TokenProvider};
