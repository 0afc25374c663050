//! The identity service by its real router, on a database in memory and a clock that stands still.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod clients;
mod compliance;
mod coverage;
mod credentials;
mod escalation;
mod extensions;
mod external;
mod federation;
mod grants;
mod import;
mod json_home;
mod jws;
mod ldap;
mod limits;
mod managers;
mod matrix;
mod oauth1;
mod policy;
// The store's own way to have a PostgreSQL server in a test.
#[path = "../../../store/tests/it/postgres.rs"]
#[allow(dead_code)]
mod postgres;
mod projects;
mod replicas;
mod saml;
mod secrets;
mod tokens;
mod trusts;
mod users;
mod world;
