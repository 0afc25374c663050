//! What goes wrong, by kind.

use std::fmt;

/// How a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The configuration is not to be used: file, cloud, a value.
    Config,
    /// The cloud refused the credentials.
    Auth,
    /// The name of the server has no address.
    Name,
    /// No connection: route, port, or it broke.
    Connect,
    /// The certificate was not accepted, or TLS failed otherwise.
    Tls,
    /// No answer in time.
    Timeout,
    /// The catalog has no such endpoint.
    NoEndpoint,
    /// An answer with this status.
    Status(u16),
    /// An answer that is not what the API promises.
    Protocol,
}

impl Kind {
    /// Name of the kind in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Config => "configuration",
            Kind::Auth => "authentication",
            Kind::Name => "name",
            Kind::Connect => "connection",
            Kind::Tls => "tls",
            Kind::Timeout => "timeout",
            Kind::NoEndpoint => "no-endpoint",
            Kind::Status(_) => "status",
            Kind::Protocol => "protocol",
        }
    }
}

/// A failed call, or a configuration that allows none.
#[derive(Debug, Clone)]
pub struct Error {
    /// What kind of failure.
    pub kind: Kind,
    /// For people; never a secret.
    pub message: String,
    /// Method and URL (without its query) of the call, if there was one.
    pub call: Option<String>,
    /// Under which the cloud's operator finds the call.
    pub request_id: Option<String>,
}

impl Error {
    /// An error without a call.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), call: None, request_id: None }
    }

    /// The configuration is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Error::new(Kind::Config, message)
    }

    /// The answer is not what it should be.
    pub fn protocol(message: impl Into<String>) -> Self {
        Error::new(Kind::Protocol, message)
    }

    /// Status of the answer, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self.kind {
            Kind::Status(status) => Some(status),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(call) = &self.call {
            write!(f, "{call}: ")?;
        }
        if let Kind::Status(status) = self.kind {
            write!(f, "{status} ")?;
        }
        f.write_str(&self.message)?;
        if let Some(id) = &self.request_id {
            write!(f, " ({id})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
