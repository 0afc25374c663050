//! What must be remembered of a guest: written before QEMU is told, fsynced, renamed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base::{Error, PortId, Result, VolumeId};
use contract::host::PowerObserved;
use serde::{Deserialize, Serialize};

use crate::io;
use crate::process::Process;

/// A guest's state file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The process last started.
    pub process: Option<Process>,
    /// What it ended as, where that is known; a process that is gone without it crashed.
    pub ended: Option<PowerObserved>,
    /// Reboots done.
    pub reboots: u64,
    /// Memory is saved in `vmstate.qcow2`.
    pub suspended: bool,
    /// Device name → number of the root port it is plugged into.
    pub slots: BTreeMap<String, u32>,
    /// Volumes plugged, by device name.
    pub volumes: BTreeMap<String, VolumeId>,
    /// Ports plugged, by device name.
    pub ports: BTreeMap<String, PortId>,
    /// Whether the guest was started with a config drive.
    #[serde(default)]
    pub config_drive: bool,
}

impl State {
    /// Reads the file; a guest without one was never started.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("state.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::internal(format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
            Err(e) => Err(io(&path)(e)),
        }
    }

    /// Writes the file.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join("state.json");
        let aside = dir.join("state.json.new");
        let bytes = serde_json::to_vec(self).map_err(Error::internal)?;
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)
            .map_err(io(&aside))?;
        file.write_all(&bytes).map_err(io(&aside))?;
        file.sync_all().map_err(io(&aside))?;
        fs::rename(&aside, &path).map_err(io(&path))?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(io(dir))
    }

    /// The process, if it still runs.
    pub fn running(&self) -> Option<Process> {
        self.process.filter(Process::alive)
    }

    /// The root port for a device: its own, or a free one.
    pub fn slot(&mut self, device: &str) -> Result<u32> {
        if let Some(slot) = self.slots.get(device) {
            return Ok(*slot);
        }
        let free = (0..crate::launch::ROOT_PORTS).find(|n| !self.slots.values().any(|used| used == n));
        let slot = free.ok_or_else(|| {
            Error::bad_request(format!(
                "A server has at most {} disks and interfaces.",
                crate::launch::ROOT_PORTS
            ))
        })?;
        self.slots.insert(device.to_owned(), slot);
        Ok(slot)
    }

    /// Forgets a device.
    pub fn forget(&mut self, device: &str) {
        self.slots.remove(device);
        self.volumes.remove(device);
        self.ports.remove(device);
    }
}
