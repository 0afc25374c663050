//! What a server's states mean, and how a host's report changes them.

use std::time::Duration;

use base::{Error, Result, Timestamp};
use contract::host::{Power, PowerObserved, ServerReport};

use crate::model::{Fault, Server, VmState, power};

/// Nova's `status` of a server.
pub fn status(server: &Server) -> &'static str {
    match (server.vm_state, server.task.as_deref()) {
        (VmState::Error, _) => "ERROR",
        (_, Some(task::PREPARING | task::MIGRATING | task::FINISHING)) => "RESIZE",
        (_, Some(task::REVERTING)) => "REVERT_RESIZE",
        _ if moved(server) => "VERIFY_RESIZE",
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
    }
}

/// Words for what is done with a server that moves.
pub mod task {
    /// It is being stopped.
    pub const PREPARING: &str = "resize_prep";
    /// Its disks are on their way.
    pub const MIGRATING: &str = "resize_migrating";
    /// It is being started.
    pub const FINISHING: &str = "resize_finish";
    /// Its first host forgets it.
    pub const CONFIRMING: &str = "resize_confirming";
    /// It goes back.
    pub const REVERTING: &str = "resize_reverting";
    /// All of them.
    pub const ALL: [&str; 5] = [PREPARING, MIGRATING, FINISHING, CONFIRMING, REVERTING];
}

/// Whether a server came to another host and waits for its owner to say that it is well.
pub fn moved(server: &Server) -> bool {
    let done = server.task.as_deref().is_none_or(|t| t == task::CONFIRMING);
    server.moving.is_some() && done && matches!(server.vm_state, VmState::Active | VmState::Stopped)
}

/// Nova's `vm_state`.
pub fn vm_state(server: &Server) -> &'static str {
    if moved(server) { "resized" } else { server.vm_state.as_str() }
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
            // Also of a server that moves: it is not started behind anybody's back there either.
            server.power = Power::Stopped;
            change = Change::Spec;
            Some(VmState::Stopped)
        }
        _ => None,
    };
    let moving = server.moving.is_some() && server.task.as_deref().is_some_and(|t| task::ALL.contains(&t));
    if let Some(state) = settled.filter(|_| !moving) {
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
        None => ("vm_state", vm_state(server)),
    };
    Error::conflict(format!("Cannot '{action}' instance {} while it is in {what} {is}", server.id))
}

/// Refuses an action unless the server is in one of `states` and nothing else is being done with it.
pub fn need(server: &Server, action: &str, states: &[VmState]) -> Result<()> {
    let busy = server.deleting || server.task.is_some() || server.moving.is_some();
    if busy || !states.contains(&server.vm_state) {
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
