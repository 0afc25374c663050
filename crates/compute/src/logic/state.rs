//! What a server's states mean, and how a host's report changes them.

use std::time::Duration;

use base::{Error, Result, Timestamp};
use contract::host::{Power, PowerObserved, ServerReport};

use crate::model::{Fault, Server, VmState, power};

/// Nova's `status` of a server.
pub fn status(server: &Server) -> &'static str {
    match (server.vm_state, server.task.as_deref()) {
        (VmState::Active, Some("rebooting")) => "REBOOT",
        (VmState::Active, Some("rebooting_hard")) => "HARD_REBOOT",
        (VmState::Active, Some("rebuilding")) => "REBUILD",
        (VmState::Active, Some("updating_password")) => "PASSWORD",
        (VmState::Active, _) => "ACTIVE",
        (VmState::Building, _) => "BUILD",
        (VmState::Stopped, Some("rebooting_hard")) => "HARD_REBOOT",
        (VmState::Stopped, _) => "SHUTOFF",
        (VmState::Paused, Some("rebooting_hard")) => "HARD_REBOOT",
        (VmState::Paused, _) => "PAUSED",
        (VmState::Suspended, Some("rebooting_hard")) => "HARD_REBOOT",
        (VmState::Suspended, _) => "SUSPENDED",
        (VmState::Error, _) => "ERROR",
    }
}

/// All values a `status` filter may have.
pub const STATUSES: &[&str] = &[
    "ACTIVE",
    "BUILD",
    "DELETED",
    "ERROR",
    "HARD_REBOOT",
    "MIGRATING",
    "PASSWORD",
    "PAUSED",
    "REBOOT",
    "REBUILD",
    "RESCUE",
    "RESIZE",
    "REVERT_RESIZE",
    "SHELVED",
    "SHELVED_OFFLOADED",
    "SHUTOFF",
    "SOFT_DELETED",
    "SUSPENDED",
    "UNKNOWN",
    "VERIFY_RESIZE",
];

/// What a report changed in a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    None,
    /// Status only.
    Status,
    /// What the host shall do.
    Spec,
}

fn number(observed: PowerObserved) -> u8 {
    match observed {
        PowerObserved::Running => power::RUNNING,
        PowerObserved::Paused => power::PAUSED,
        PowerObserved::Suspended => power::SUSPENDED,
        PowerObserved::Shutdown => power::SHUTDOWN,
        PowerObserved::Crashed => power::CRASHED,
    }
}

/// Takes what the host says of a server. A guest that ended by itself becomes a stopped one: it is not started again
/// behind the back of whoever shut it down. An error that lasts longer than `patience` is the server's fault.
pub fn apply_report(
    server: &mut Server,
    report: &ServerReport,
    now: Timestamp,
    patience: Duration,
) -> Change {
    if report.generation != server.meta.generation {
        return Change::None;
    }
    if !report.converged {
        return failing(server, report, now, patience);
    }
    let Some(observed) = report.power else { return Change::None };
    let before = (server.vm_state, server.task.clone(), server.power_state, server.failing_since);
    server.failing_since = None;
    server.power_state = number(observed);
    let mut change = Change::None;
    let settled = match (server.power, observed) {
        (Power::Running, PowerObserved::Running) => Some(VmState::Active),
        (Power::Paused, PowerObserved::Paused) => Some(VmState::Paused),
        (Power::Suspended, PowerObserved::Suspended) => Some(VmState::Suspended),
        (Power::Stopped, PowerObserved::Shutdown | PowerObserved::Crashed) => Some(VmState::Stopped),
        (_, PowerObserved::Shutdown | PowerObserved::Crashed) => {
            server.power = Power::Stopped;
            change = Change::Spec;
            Some(VmState::Stopped)
        }
        _ => None,
    };
    if let Some(state) = settled {
        if state == VmState::Active && server.launched_at.is_none() {
            server.launched_at = Some(now);
        }
        if server.vm_state == VmState::Error || server.vm_state == VmState::Building {
            server.fault = None;
        }
        server.vm_state = state;
        server.task = None;
    }
    if before != (server.vm_state, server.task.clone(), server.power_state, server.failing_since) {
        change = change.max(Change::Status);
    }
    change
}

fn failing(server: &mut Server, report: &ServerReport, now: Timestamp, patience: Duration) -> Change {
    let Some(error) = &report.error else { return Change::None };
    let Some(since) = server.failing_since else {
        server.failing_since = Some(now);
        return Change::Status;
    };
    if now < since.plus(patience) || server.vm_state == VmState::Error {
        return Change::None;
    }
    server.vm_state = VmState::Error;
    server.task = None;
    server.fault = Some(Fault {
        code: 500,
        message: "The host could not make the server as asked.".to_owned(),
        details: error.clone(),
        created: now,
    });
    Change::Status
}

/// Nova's words for an action in a wrong state.
pub fn conflict(server: &Server, action: &str) -> Error {
    let (what, is) = match &server.task {
        Some(task) => ("task_state", task.as_str()),
        None => ("vm_state", server.vm_state.as_str()),
    };
    Error::conflict(format!("Cannot '{action}' instance {} while it is in {what} {is}", server.id))
}

/// Refuses an action unless the server is in one of `states` and nothing else is being done with it.
pub fn need(server: &Server, action: &str, states: &[VmState]) -> Result<()> {
    if server.deleting || server.task.is_some() || !states.contains(&server.vm_state) {
        return Err(conflict(server, action));
    }
    Ok(())
}

/// Refuses an action on a locked server, except to administrators.
pub fn unlocked(server: &Server, admin: bool) -> Result<()> {
    if server.locked.is_some() && !admin {
        return Err(Error::conflict(format!("Instance {} is locked", server.id)));
    }
    Ok(())
}
