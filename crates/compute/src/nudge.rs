//! Hints from other services that hosts' specs or servers' ports changed.

use std::sync::{Arc, OnceLock, Weak};

use base::{HostId, ServerId};
use contract::services::HostNudge;

use crate::State;

/// A handle that can be given to other services before compute itself is assembled; hints before that are lost, which
/// is harmless: everything is looked at when the reconcilers start.
#[derive(Clone, Default)]
pub struct Nudge(Arc<OnceLock<Weak<State>>>);

impl Nudge {
    pub(crate) fn lead_to(&self, state: &Arc<State>) {
        let _ = self.0.set(Arc::downgrade(state));
    }

    fn state(&self) -> Option<Arc<State>> {
        self.0.get()?.upgrade()
    }
}

impl HostNudge for Nudge {
    fn host_changed(&self, host: HostId) {
        if let Some(state) = self.state() {
            state.hint("host", host);
            // A volume that became usable is waited for by servers of that host.
            state.hosts.wake_waiting(&state, host);
        }
    }

    fn device_changed(&self, device_id: &str) {
        if let (Some(state), Ok(id)) = (self.state(), device_id.parse::<ServerId>()) {
            state.stale.lock().insert(id);
            state.hint("server", id);
        }
    }
}
