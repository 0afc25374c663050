//! The link between agents and servers: HTTP over mutual TLS.
//!
//! Agents always call, servers never do: hosts may sit behind NAT. What a server wants to ask a live host (a console
//! log) waits in a queue that the agent long-polls. Every message is a full picture with a generation or a sequence,
//! so that repeating one is harmless.
//!
//! Invariant: both sides speak only through `contract` traits; in a simulation they are handed to each other without
//! this crate. Authentication is the TLS layer's: the binary mounts [`routes`] only behind a verified client
//! certificate, and a host may only speak for the id in that certificate.
//!
//! Start reading at [`routes`] (server side), then [`Client`] (agent side).

mod client;
mod questions;
mod relay;
mod server;

pub use client::Client;
pub use questions::Questions;
pub use relay::{Owner, Owners, Relay, Replica};
pub use server::{Peer, relayed, routes};

use base::{HostId, ServerId};
use base64::Engine;
use bytes::Bytes;
use contract::services::HostAccess;
use serde::{Deserialize, Serialize};

/// A question to a live host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Names the question in its answer.
    pub id: u64,
    /// What is asked.
    pub what: Ask,
}

/// What can be asked of a live host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// The last `length` lines of a serial console.
    ConsoleLog {
        /// Of which server.
        server: ServerId,
        /// How many lines; all if `None`.
        length: Option<usize>,
    },
    /// A piece of a local disk of a server that stands still; answered in base64.
    ReadDisk {
        /// Of which server.
        server: ServerId,
        /// Which disk.
        disk: String,
        /// Where the piece begins.
        offset: u64,
    },
}

impl Ask {
    /// Asks a host at hand.
    pub(crate) async fn of(self, access: &dyn HostAccess, host: HostId) -> base::Result<String> {
        match self {
            Ask::ConsoleLog { server, length } => access.console_log(host, server, length).await,
            Ask::ReadDisk { server, disk, offset } => {
                let piece = access.read_disk(host, server, &disk, offset).await?;
                Ok(base64::engine::general_purpose::STANDARD.encode(piece))
            }
        }
    }
}

/// The bytes of an answer in base64.
pub(crate) fn bytes_of(answer: &str) -> base::Result<Bytes> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(answer);
    decoded.map(Bytes::from).map_err(|_| base::Error::unavailable("The host's answer is damaged."))
}

/// An answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question's id.
    pub id: u64,
    /// The text, or why there is none.
    pub result: Result<String, Failure>,
}

/// What a host holds when it asks for its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Generation of its spec.
    pub generation: u64,
}

/// How long a lease is, counted from before it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// In milliseconds.
    pub milliseconds: u64,
}

/// A failure on the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// HTTP status of its kind.
    pub status: u16,
    /// What the caller may read.
    pub message: String,
}

impl From<base::Error> for Failure {
    fn from(error: base::Error) -> Self {
        Failure { status: error.kind().status(), message: error.public().to_owned() }
    }
}

impl From<Failure> for base::Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure.status {
            400 => base::Kind::BadRequest,
            403 => base::Kind::Forbidden,
            404 => base::Kind::NotFound,
            409 => base::Kind::Conflict,
            503 => base::Kind::Unavailable,
            _ => return base::Error::internal(failure.message),
        };
        base::Error::new(kind, failure.message)
    }
}
