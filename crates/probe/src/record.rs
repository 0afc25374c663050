//! What came of one operation: one record, however many attempts it took, and one kind of failure.

use std::fmt;

use osclient::{Call, Error, Kind};
use serde::{Deserialize, Serialize};

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Well.
    Ok,
    /// No connection: name, route, port, TLS, or it broke.
    Transport,
    /// No end in time: of a call, or of a change that was asked for.
    Timeout,
    /// 401 and 403.
    Auth,
    /// 404.
    NotFound,
    /// 409: what it is about is not in a state for it.
    Conflict,
    /// 413 and 429, and 403 for a quota: a limit.
    Limit,
    /// Other 4xx.
    Client,
    /// 5xx.
    Server,
    /// An answer that is not what the API promises.
    Protocol,
    /// The cloud accepted, and what it made came to nothing.
    Fault,
    /// A guest, or the way to it, does not do what it should.
    DataPlane,
    /// A tool of the probe, in a guest or here, did not run.
    Tool,
    /// Not tried, for what it needs failed or is not there.
    Skipped,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 14] = [
        Class::Ok,
        Class::Transport,
        Class::Timeout,
        Class::Auth,
        Class::NotFound,
        Class::Conflict,
        Class::Limit,
        Class::Client,
        Class::Server,
        Class::Protocol,
        Class::Fault,
        Class::DataPlane,
        Class::Tool,
        Class::Skipped,
    ];

    /// Its name in all outputs.
    pub fn name(self) -> &'static str {
        match self {
            Class::Ok => "ok",
            Class::Transport => "transport",
            Class::Timeout => "timeout",
            Class::Auth => "auth",
            Class::NotFound => "not-found",
            Class::Conflict => "conflict",
            Class::Limit => "limit",
            Class::Client => "client",
            Class::Server => "server",
            Class::Protocol => "protocol",
            Class::Fault => "fault",
            Class::DataPlane => "data-plane",
            Class::Tool => "tool",
            Class::Skipped => "skipped",
        }
    }

    /// Whether it counts as a failure. What was not tried neither failed nor worked.
    pub fn failed(self) -> bool {
        !matches!(self, Class::Ok | Class::Skipped)
    }

    /// Of an HTTP status.
    pub fn of_status(status: u16) -> Class {
        match status {
            401 | 403 => Class::Auth,
            404 => Class::NotFound,
            409 => Class::Conflict,
            413 | 429 => Class::Limit,
            400..500 => Class::Client,
            500.. => Class::Server,
            _ => Class::Ok,
        }
    }

    /// Of a call, which may be an attempt among others.
    pub fn of_call(call: &Call) -> Class {
        match (call.failure.as_deref(), call.status) {
            (Some("timeout"), _) => Class::Timeout,
            (Some("protocol" | "configuration"), _) => Class::Protocol,
            (Some(_), _) | (None, None) => Class::Transport,
            (None, Some(status)) => Class::of_status(status),
        }
    }

    /// Of the client's error.
    pub fn of_error(error: &Error) -> Class {
        match error.kind {
            Kind::Status(403) if error.message.to_lowercase().contains("quota") => Class::Limit,
            Kind::Status(status) => Class::of_status(status),
            Kind::Timeout => Class::Timeout,
            Kind::Auth => Class::Auth,
            Kind::Name | Kind::Connect | Kind::Tls => Class::Transport,
            Kind::Config | Kind::Protocol => Class::Protocol,
            Kind::NoEndpoint => Class::NotFound,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where something is: what a failure or a delay may be put down to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Host, as the cloud tells tenants (`hostId`) or administrators of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The other host, where two are involved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// Something that was measured besides its duration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What (`loss`, `rtt`, `throughput`).
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what (`ms`, `Mbit/s`).
    pub unit: String,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number in the run.
    pub seq: u64,
    /// The iteration, from 1.
    pub iteration: u64,
    /// The step of the scenario.
    pub step: String,
    /// What was done (`network.create`, `guest.login`).
    pub op: String,
    /// Which service did it (`network`); `guest` for the data plane.
    pub service: String,
    /// To what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When it began (ISO 8601).
    pub at: String,
    /// How long it took, in microseconds, with everything it waited for.
    pub us: u64,
    /// How it ended.
    pub class: Class,
    /// Why, if not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Under which id the cloud's operator finds the last call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Every call it took. Looks at something that changes are not attempts: only their number is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Call>,
    /// How often was looked.
    #[serde(default)]
    pub looks: u32,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// The record that is the reason for this not to be tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<u64>,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measures: Vec<Measure>,
}

impl Record {
    /// Its duration in seconds.
    pub fn seconds(&self) -> f64 {
        seconds(self.us)
    }

    /// One line for people.
    pub fn told(&self) -> String {
        let what = self.name.as_deref().or(self.id.as_deref()).unwrap_or("");
        let mut text = format!("{} {what}: {}", self.op, self.class);
        if let Some(message) = &self.message {
            text.push_str(&format!(": {message}"));
        }
        if let Some(id) = self.request_id.as_ref().filter(|id| !text.contains(id.as_str())) {
            text.push_str(&format!(" ({id})"));
        }
        if let Some(host) = &self.place.host {
            text.push_str(&format!(" [host {host}]"));
        }
        text
    }
}

/// Microseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "a duration")]
pub fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// An iteration: what all outputs are made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    /// Its number, from 1.
    pub number: u64,
    /// The run.
    pub run: String,
    /// The cloud.
    pub cloud: String,
    /// Its region.
    pub region: Option<String>,
    /// The scenario.
    pub scenario: String,
    /// When it began (ISO 8601).
    pub at: String,
    /// How long it took, in microseconds.
    pub us: u64,
    /// Whether somebody asked it to stop.
    pub stopped: bool,
    /// How many HTTP calls it made.
    pub calls: u64,
    /// How many of them failed.
    pub failed_calls: u64,
    /// Everything it did.
    pub records: Vec<Record>,
    /// What could not be removed (`network allod-…: why`).
    pub left: Vec<String>,
}

impl Iteration {
    /// What failed.
    pub fn failures(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|r| r.class.failed())
    }

    /// How many records ended so.
    pub fn count(&self, class: Class) -> usize {
        self.records.iter().filter(|r| r.class == class).count()
    }

    /// Whether everything that was tried worked, something was tried, and nothing is left.
    pub fn fine(&self) -> bool {
        self.failures().next().is_none() && self.count(Class::Ok) > 0 && self.left.is_empty() && !self.stopped
    }
}
