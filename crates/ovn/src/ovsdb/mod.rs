//! A client of the Open vSwitch Database protocol (RFC 7047 and the extensions of `ovsdb-server(7)`).
//!
//! One [`Client`] holds one connection to one database, keeps an in-memory copy of the tables it was asked to watch
//! ([`Replica`]), and sends transactions ([`Txn`]). Invariant: when [`Client::transact`] answers, the replica already
//! shows what the transaction wrote, because `ovsdb-server` sends updates before the reply on the same connection.
//!
//! Start reading at [`client`]; [`frame`] and [`value`] are what an unfriendly peer can reach and never panic.

pub mod client;
pub mod frame;
pub mod replica;
pub mod schema;
pub mod txn;
pub mod value;

pub use client::{Client, Config, Dial, Remote, Stream};
pub use replica::{Change, Replica, Row, Watch};
pub use schema::Schema;
pub use txn::{Ref, Txn};
pub use value::{Atom, Value};

use std::fmt;

/// Why a call to a database failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// No connection, or it broke before the answer came: whether the transaction took place is not known.
    Disconnected(String),
    /// The server refused an operation; nothing of the transaction took place.
    Refused {
        /// RFC 7047 error tag, e.g. `constraint violation`, `timed out`, `referential integrity violation`.
        error: String,
        /// The server's explanation.
        details: String,
    },
    /// The peer sent what is no OVSDB.
    Protocol(String),
}

impl Error {
    /// Whether a `wait` guard failed or a unique index was hit: the replica was behind; read it again and retry.
    pub fn is_stale(&self) -> bool {
        matches!(self, Error::Refused { error, .. } if matches!(error.as_str(), "timed out" | "constraint violation" | "referential integrity violation"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Disconnected(why) => write!(f, "ovsdb: not connected: {why}"),
            Error::Refused { error, details } => write!(f, "ovsdb: {error}: {details}"),
            Error::Protocol(why) => write!(f, "ovsdb: protocol: {why}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for base::Error {
    fn from(error: Error) -> Self {
        match &error {
            Error::Disconnected(_) => {
                base::Error::unavailable("The network backend is not reachable now.").caused_by(error)
            }
            Error::Refused { .. } if error.is_stale() => base::Error::retry(error),
            _ => base::Error::internal(error),
        }
    }
}

/// Result of a call to a database.
pub type Result<T, E = Error> = std::result::Result<T, E>;
