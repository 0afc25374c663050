//! A client of any OpenStack cloud: what `allod certify` and `allod probe` speak through.
//!
//! Reads `clouds.yaml`, `secure.yaml` and `OS_*` as openstacksdk does ([`config`]), logs in at Keystone v3 ([`auth`]),
//! picks endpoints from the catalog, asks services for their versions, and notes every call: how long it took, how it
//! ended, under which request id the cloud's operator finds it ([`Call`]).
//!
//! Whoever makes something in a cloud writes it into a [`journal`] before, and [`cleanup`] removes what stands there.
//!
//! Invariant: no secret in errors, notes or `Debug`; every request ends within the cloud's time limit.
//!
//! Start reading at [`Session::connect`], then [`Service`].

pub mod auth;
mod catalog;
pub mod cleanup;
pub mod config;
mod connect;
mod error;
pub mod journal;
#[cfg(test)]
mod proxied;
mod session;
mod transport;

pub use catalog::{Catalog, Endpoint, Entry};
pub use config::{Cloud, Environment};
pub use error::{Error, Kind, Result};
pub use reqwest::{Client, Method};
pub use session::{Body, Reply, Request, Service, Session, parameter};
pub use transport::{Call, Ear, Options, Trust, http_client};
