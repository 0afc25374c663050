//! One guest: from any state to the wanted one.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Error, Result, ServerId, VolumeId};
use bytes::Bytes;
use contract::drivers::{Guest, GuestPlan};
use contract::host::{DiskSource, Power, PowerObserved};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, broadcast};
use uuid::Uuid;

use crate::accel::Accelerator;
use crate::console::Console;
use crate::devices::{Device, disk_name};
use crate::process::Process;
use crate::state::State;
use crate::{Config, Qmp, disks, io, launch};

/// How long a guest may take to give up a device.
const UNPLUG: Duration = Duration::from_secs(30);
/// How long saving or restoring memory may take.
const MEMORY: Duration = Duration::from_secs(300);
/// A guest that does not react to its power button may not have listened yet: it is pressed again this often.
const PRESS: Duration = Duration::from_secs(5);
/// Events after which a guest is looked at.
const HINTS: [&str; 6] = ["SHUTDOWN", "STOP", "RESUME", "GUEST_PANICKED", "RESET", "BLOCK_IO_ERROR"];
/// Longest text that a console log answers with.
const LOG_ANSWER: usize = 256 * 1024;

/// A guest's directory and connection; all work on it goes through one lock.
pub(crate) struct Machine {
    id: ServerId,
    config: Config,
    accelerator: Accelerator,
    events: broadcast::Sender<ServerId>,
    turn: Mutex<()>,
    console: Mutex<Console>,
    qmp: parking_lot::Mutex<Option<(Process, Arc<Qmp>)>>,
}

impl Machine {
    pub fn new(
        id: ServerId,
        config: Config,
        accelerator: Accelerator,
        events: broadcast::Sender<ServerId>,
    ) -> Self {
        Machine {
            id,
            config,
            accelerator,
            events,
            turn: Mutex::default(),
            console: Mutex::default(),
            qmp: parking_lot::Mutex::default(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.config.dir.join(self.id.to_string())
    }

    fn socket(&self) -> PathBuf {
        self.dir().join("run/qmp.sock")
    }

    /// The guest's directory is ours; the guests' group passes through. Its user owns only the room of the socket.
    fn make_dir(&self) -> Result<PathBuf> {
        let (dir, run) = (self.dir(), self.dir().join("run"));
        std::fs::create_dir_all(&run).map_err(io(&run))?;
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(io(path))
        };
        if let Some((uid, gid)) = self.config.user {
            chown(&dir, None, Some(gid)).map_err(io(&dir))?;
            chown(&run, Some(uid), Some(gid)).map_err(io(&run))?;
        }
        mode(&dir, 0o710)?;
        mode(&run, 0o700)?;
        Ok(dir)
    }

    /// The connection to the running process.
    pub async fn monitor(&self, process: Process) -> Result<Arc<Qmp>> {
        if let Some((held, qmp)) = &*self.qmp.lock()
            && *held == process
            && qmp.alive()
        {
            return Ok(qmp.clone());
        }
        let qmp = Arc::new(Qmp::connect(&self.socket()).await?);
        let mut events = qmp.events();
        let (id, hints, pid) = (self.id, self.events.clone(), process);
        tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) if HINTS.contains(&event.name.as_str()) => drop(hints.send(id)),
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break,
                }
            }
            // The connection ended: the process may have, too.
            pid.ended(Duration::from_secs(1)).await;
            let _ = hints.send(id);
        });
        *self.qmp.lock() = Some((process, qmp.clone()));
        Ok(qmp)
    }

    /// What the guest does; `None` where it does not exist.
    pub async fn observe(&self) -> Result<Option<Guest>> {
        if !self.dir().join("state.json").exists() {
            return Ok(None);
        }
        let state = State::read(&self.dir())?;
        self.empty_console(&state).await;
        let power = self.power(&state).await;
        Ok(Some(self.report(&state, power)))
    }

    fn report(&self, state: &State, power: PowerObserved) -> Guest {
        Guest {
            id: self.id,
            power,
            reboots: state.reboots,
            volumes: state.volumes.values().copied().collect(),
            ports: state.ports.values().copied().collect(),
        }
    }

    async fn power(&self, state: &State) -> PowerObserved {
        let Some(process) = state.running() else {
            return match state.ended {
                Some(ended) => ended,
                None if state.suspended => PowerObserved::Suspended,
                None if state.process.is_none() => PowerObserved::Shutdown,
                None => PowerObserved::Crashed,
            };
        };
        if process.stopped() {
            // By its guard: it would not answer.
            return PowerObserved::Paused;
        }
        let status = match self.monitor(process).await {
            Ok(qmp) => qmp.call("query-status", json!({})).await,
            Err(error) => Err(error),
        };
        // A QEMU that does not answer at this moment still runs its guest.
        let Ok(status) = status else { return PowerObserved::Running };
        match status.get("status").and_then(Value::as_str).unwrap_or_default() {
            "shutdown" => PowerObserved::Shutdown,
            "guest-panicked" | "internal-error" => PowerObserved::Crashed,
            // `io-error` is how QEMU waits where the host has no room left: it goes on when there is.
            "paused" | "prelaunch" | "save-vm" | "restore-vm" | "finish-migrate" | "io-error" => {
                PowerObserved::Paused
            }
            _ => PowerObserved::Running,
        }
    }

    /// Makes the guest as planned.
    pub async fn ensure(&self, plan: &GuestPlan, start: bool) -> Result<Guest> {
        let _turn = self.turn.lock().await;
        let dir = self.make_dir()?;
        let mut state = State::read(&dir)?;
        if state.process.is_none() {
            state.reboots = state.reboots.max(plan.spec.reboots);
            state.write(&dir)?;
        }
        self.collect(&mut state).await?;
        let devices = self.wanted(plan).await?;
        match plan.spec.power {
            Power::Stopped => self.stop(&mut state).await?,
            Power::Suspended if state.suspended && state.running().is_none() => {}
            wanted => {
                let up = state.running().is_some();
                if !up && (start || state.suspended) {
                    self.launch(&mut state, plan, &devices, wanted == Power::Running).await?;
                }
                if state.running().is_some() {
                    self.replug(&mut state, plan, &devices).await?;
                    self.reboot(&mut state, plan).await?;
                    self.settle(&mut state, plan).await?;
                }
            }
        }
        if state.running().is_none() {
            self.note_devices(&mut state, plan, &devices)?;
        }
        let power = self.power(&state).await;
        Ok(self.report(&state, power))
    }

    /// A guest that powered itself off waits in `-no-shutdown`, one that can never run again waits, too: the process is
    /// ended and the fact written down.
    async fn collect(&self, state: &mut State) -> Result<()> {
        let Some(process) = state.running() else { return Ok(()) };
        match self.power(state).await {
            ended @ (PowerObserved::Shutdown | PowerObserved::Crashed) => {
                self.end(state, process, ended).await
            }
            _ => Ok(()),
        }
    }

    /// A process that was started just before we were killed is not in the state file, and holds the disks.
    async fn end_orphan(&self) -> Result<()> {
        let Ok(qmp) = Qmp::connect(&self.socket()).await else { return Ok(()) };
        let Some(process) = qmp.peer().and_then(Process::find) else { return Ok(()) };
        tracing::warn!(server = %self.id, pid = process.pid, "ending a guest process that was never recorded");
        process.kill().await
    }

    async fn wanted(&self, plan: &GuestPlan) -> Result<Vec<Device>> {
        let mut devices = disks::prepare(&self.config, &self.dir(), plan).await?;
        for (nic, tap) in plan.spec.nics.iter().zip(&plan.taps) {
            devices.push(Device::nic(nic, tap));
        }
        Ok(devices)
    }

    /// Writes down which devices the guest has from its next start on.
    fn note_devices(&self, state: &mut State, plan: &GuestPlan, devices: &[Device]) -> Result<()> {
        let before = state.clone();
        let gone: Vec<String> =
            state.slots.keys().filter(|name| !devices.iter().any(|d| d.name() == *name)).cloned().collect();
        for name in gone {
            state.forget(&name);
        }
        for device in devices.iter().filter(|d| d.takes_port()) {
            state.slot(device.name())?;
        }
        state.config_drive = devices.iter().any(|d| !d.takes_port());
        self.note_contents(state, plan);
        if *state == before { Ok(()) } else { state.write(&self.dir()) }
    }

    fn note_contents(&self, state: &mut State, plan: &GuestPlan) {
        for disk in &plan.spec.disks {
            if let DiskSource::Volume { volume } = disk.source
                && state.slots.contains_key(&disk_name(&disk.name))
            {
                state.volumes.insert(disk_name(&disk.name), volume);
            }
        }
        for nic in &plan.spec.nics {
            let name = crate::devices::nic_name(nic.port);
            if state.slots.contains_key(&name) {
                state.ports.insert(name, nic.port);
            }
        }
    }

    async fn launch(&self, state: &mut State, plan: &GuestPlan, devices: &[Device], run: bool) -> Result<()> {
        let dir = self.dir();
        self.end_orphan().await?;
        if !state.suspended {
            self.note_devices(state, plan, devices)?;
        }
        let mut plugged = Vec::new();
        for device in devices.iter().filter(|d| d.takes_port()) {
            if let Some(slot) = state.slots.get(device.name()) {
                plugged.push((device.clone(), *slot));
            }
        }
        if state.config_drive {
            plugged.push((Device::config_drive(&self.config.seen(&dir.join("config.img"))), 0));
        }
        let resume = state.suspended;
        let socket = self.socket();
        let at = self.config.seen(&socket);
        let arguments = launch::arguments(&plan.spec, self.accelerator, &at, &plugged, resume || !run);
        let process = launch::start(&self.config, self.accelerator, &dir, &socket, &arguments).await?;
        state.process = Some(process);
        state.ended = None;
        if !resume {
            // A cold start is what an outstanding reboot would have brought.
            state.reboots = state.reboots.max(plan.spec.reboots);
            return state.write(&dir);
        }
        if let Err(error) = self.restore(process).await {
            process.kill().await?;
            return Err(error);
        }
        state.suspended = false;
        state.write(&dir)?;
        let _ = std::fs::remove_file(dir.join("vmstate.qcow2"));
        Ok(())
    }

    /// Loads the memory of a suspended guest into a fresh process.
    async fn restore(&self, process: Process) -> Result<()> {
        let qmp = self.monitor(process).await?;
        let path = self.dir().join("vmstate.qcow2");
        qmp.call("blockdev-add", vmstate_node(&self.config.seen(&path))).await?;
        let job = json!({"job-id": "load", "tag": "suspend", "vmstate": "vmstate", "devices": ["vmstate"]});
        qmp.job("snapshot-load", job, "load", MEMORY).await?;
        qmp.call("blockdev-del", json!({"node-name": "vmstate"})).await?;
        Ok(())
    }

    async fn suspend(&self, state: &mut State, process: Process, memory_mib: u64) -> Result<()> {
        let dir = self.dir();
        let _ = std::fs::remove_file(dir.join("vmstate.qcow2"));
        let path = disks::memory_file(&self.config, &dir, memory_mib).await?;
        let qmp = self.monitor(process).await?;
        qmp.call("stop", json!({})).await?;
        let _ = qmp.call("blockdev-del", json!({"node-name": "vmstate"})).await;
        qmp.call("blockdev-add", vmstate_node(&self.config.seen(&path))).await?;
        let job = json!({"job-id": "save", "tag": "suspend", "vmstate": "vmstate", "devices": ["vmstate"]});
        qmp.job("snapshot-save", job, "save", MEMORY).await?;
        state.suspended = true;
        state.write(&dir)?;
        self.quit(process).await?;
        state.process = None;
        state.write(&dir)
    }

    /// Brings a running process to running, paused or suspended.
    async fn settle(&self, state: &mut State, plan: &GuestPlan) -> Result<()> {
        let Some(process) = state.running() else { return Ok(()) };
        let now = self.power(state).await;
        match (plan.spec.power, now) {
            (Power::Running, PowerObserved::Paused) => {
                self.monitor(process).await?.call("cont", json!({})).await?;
            }
            (Power::Paused, PowerObserved::Running) => {
                self.monitor(process).await?.call("stop", json!({})).await?;
            }
            (Power::Suspended, PowerObserved::Running | PowerObserved::Paused) => {
                self.suspend(state, process, plan.spec.memory_mib).await?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn reboot(&self, state: &mut State, plan: &GuestPlan) -> Result<()> {
        if state.reboots >= plan.spec.reboots {
            return Ok(());
        }
        let Some(process) = state.running() else { return Ok(()) };
        let qmp = self.monitor(process).await?;
        if !plan.spec.reboot_hard && self.power(state).await == PowerObserved::Running {
            self.wait_shutdown(state, &qmp).await;
        }
        // Written first: a reset that is done twice would be worse than one that is lost with this process.
        state.reboots = plan.spec.reboots;
        state.write(&self.dir())?;
        qmp.call("system_reset", json!({})).await?;
        if self.power(state).await != PowerObserved::Running && plan.spec.power == Power::Running {
            qmp.call("cont", json!({})).await?;
        }
        Ok(())
    }

    /// Presses the power button until the guest shut down by itself; `false` when it does not in its grace.
    async fn wait_shutdown(&self, state: &State, qmp: &Qmp) -> bool {
        let down = async {
            let mut pressed: Option<Instant> = None;
            while state.running().is_some() && self.power(state).await == PowerObserved::Running {
                if pressed.is_none_or(|at| at.elapsed() >= PRESS) {
                    let _ = qmp.call("system_powerdown", json!({})).await;
                    pressed = Some(Instant::now());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(self.config.grace, down).await.is_ok()
    }

    async fn stop(&self, state: &mut State) -> Result<()> {
        let dir = self.dir();
        if state.suspended {
            state.suspended = false;
            state.ended = Some(PowerObserved::Shutdown);
            state.write(&dir)?;
            let _ = std::fs::remove_file(dir.join("vmstate.qcow2"));
        }
        let Some(process) = state.running() else {
            if state.process.is_some() && state.ended != Some(PowerObserved::Shutdown) {
                state.ended = Some(PowerObserved::Shutdown);
                state.write(&dir)?;
            }
            return Ok(());
        };
        if self.power(state).await == PowerObserved::Running {
            let qmp = self.monitor(process).await?;
            self.wait_shutdown(state, &qmp).await;
        }
        self.end(state, process, PowerObserved::Shutdown).await
    }

    /// Ends the process and writes down as what.
    async fn end(&self, state: &mut State, process: Process, ended: PowerObserved) -> Result<()> {
        // Written first: a process that vanishes after this was ended by us and did not crash.
        state.ended = Some(ended);
        state.write(&self.dir())?;
        self.quit(process).await
    }

    async fn quit(&self, process: Process) -> Result<()> {
        if let Ok(qmp) = self.monitor(process).await {
            let _ = self.console.lock().await.empty(&qmp, &self.dir()).await;
            let _ = qmp.call("quit", json!({})).await;
        }
        *self.qmp.lock() = None;
        if !process.ended(Duration::from_secs(5)).await {
            process.kill().await?;
        }
        Ok(())
    }

    /// Plugs what is missing and unplugs what is too much, while the guest runs.
    async fn replug(&self, state: &mut State, plan: &GuestPlan, devices: &[Device]) -> Result<()> {
        let Some(process) = state.running() else { return Ok(()) };
        let gone: Vec<String> =
            state.slots.keys().filter(|name| !devices.iter().any(|d| d.name() == *name)).cloned().collect();
        for name in gone {
            self.unplug(process, &name).await?;
            state.forget(&name);
            state.write(&self.dir())?;
        }
        for device in devices.iter().filter(|d| d.takes_port()) {
            if !state.slots.contains_key(device.name()) {
                self.plug(state, process, device).await?;
                self.note_contents(state, plan);
                state.write(&self.dir())?;
            }
        }
        Ok(())
    }

    async fn plug(&self, state: &mut State, process: Process, device: &Device) -> Result<()> {
        let qmp = self.monitor(process).await?;
        let slot = state.slot(device.name())?;
        let plugged = async {
            for node in device.blockdevs() {
                // Left over from a try that was cut short.
                let _ = qmp.call("blockdev-del", json!({"node-name": device.name()})).await;
                qmp.call("blockdev-add", node).await?;
            }
            if let Some(net) = device.netdev() {
                let _ = qmp.call("netdev_del", json!({"id": format!("{}-tap", device.name())})).await;
                qmp.call("netdev_add", net).await?;
            }
            qmp.call("device_add", device.device(slot)).await
        };
        if let Err(error) = plugged.await {
            // Is it there from a try whose answer was lost?
            if !self.has_device(&qmp, device.name()).await {
                state.forget(device.name());
                return Err(error);
            }
        }
        Ok(())
    }

    async fn has_device(&self, qmp: &Qmp, name: &str) -> bool {
        let path = format!("/machine/peripheral/{name}-dev");
        qmp.call("qom-list", json!({"path": path})).await.is_ok()
    }

    async fn unplug(&self, process: Process, name: &str) -> Result<()> {
        let qmp = self.monitor(process).await?;
        let end = tokio::time::Instant::now() + UNPLUG;
        while self.has_device(&qmp, name).await {
            if tokio::time::Instant::now() > end {
                return Err(Error::unavailable("The guest does not give up the device."));
            }
            // Asked again while a guest that boots does not listen yet; QEMU refuses while one is pending.
            let _ = qmp.call("device_del", json!({"id": format!("{name}-dev")})).await;
            let mut events = qmp.events();
            let _ = tokio::time::timeout(Duration::from_millis(500), events.recv()).await;
        }
        if name.starts_with("d-") {
            // The node is released a moment after its device.
            for _ in 0..50 {
                match qmp.call("blockdev-del", json!({"node-name": name})).await {
                    Ok(_) => return Ok(()),
                    Err(error) if error.chain().contains("Failed to find node") => return Ok(()),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
            return Err(Error::unavailable("The disk is still in use."));
        }
        let _ = qmp.call("netdev_del", json!({"id": format!("{name}-tap")})).await;
        Ok(())
    }

    /// Waits for its turn; refused while a process has the disks open.
    async fn down(&self) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let turn = self.turn.lock().await;
        if State::read(&self.dir())?.running().is_some() {
            return Err(Error::conflict(format!("Server {} has its disks open.", self.id)));
        }
        Ok(turn)
    }

    /// A piece of a local disk.
    pub async fn read_disk(&self, disk: &str, offset: u64) -> Result<Bytes> {
        let _turn = self.down().await?;
        let (dir, disk) = (self.dir(), disk.to_owned());
        contract::blocking(move || disks::read(&dir, &disk, offset)).await
    }

    /// Whether a local disk came by this transfer.
    pub fn has_disk(&self, transfer: Uuid, disk: &str) -> bool {
        disks::came(&self.dir(), transfer, disk)
    }

    /// A piece of a local disk from another host. From now on there is a guest here, which is off.
    pub async fn write_disk(&self, transfer: Uuid, disk: &str, offset: u64, piece: Bytes) -> Result<()> {
        let _turn = self.down().await?;
        let dir = self.make_dir()?;
        if !dir.join("state.json").exists() {
            State::default().write(&dir)?;
        }
        let (config, disk) = (self.config.clone(), disk.to_owned());
        // Its end is written through to the device, which can take a while.
        contract::blocking(move || disks::take(&config, &dir, transfer, &disk, offset, &piece)).await
    }

    /// Ends the guest and deletes its files.
    pub async fn remove(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let dir = self.dir();
        if !dir.exists() {
            return Ok(());
        }
        match State::read(&dir).ok().and_then(|s| s.running()) {
            Some(process) => process.kill().await?,
            None => self.end_orphan().await?,
        }
        *self.qmp.lock() = None;
        std::fs::remove_dir_all(&dir).map_err(io(&dir))
    }

    /// The last lines of the serial console.
    pub async fn console_log(&self, length: Option<usize>) -> Result<String> {
        let state = State::read(&self.dir())?;
        self.empty_console(&state).await;
        let bytes = self.console.lock().await.read(&self.dir())?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let skip = length.map_or(0, |n| lines.len().saturating_sub(n));
        let text: String = lines.get(skip..).unwrap_or_default().concat();
        let cut = text.char_indices().rev().nth(LOG_ANSWER).map_or(0, |(i, _)| i);
        Ok(text.get(cut..).unwrap_or_default().to_owned())
    }

    /// Moves what the guest wrote from QEMU's ring to the log. What cannot be read now is read later.
    async fn empty_console(&self, state: &State) {
        let Some(process) = state.running() else { return };
        let Ok(qmp) = self.monitor(process).await else { return };
        // One at a time, so that pieces stay in order.
        let console = self.console.lock().await;
        if let Err(error) = console.empty(&qmp, &self.dir()).await {
            tracing::debug!(server = %self.id, error = %error.chain(), "cannot read the console");
        }
    }

    /// The running process and the device name of a volume, if it is plugged.
    pub fn volume(&self, id: VolumeId) -> Option<(Process, String)> {
        let state = State::read(&self.dir()).ok()?;
        let process = state.running()?;
        let name = state.volumes.iter().find(|(_, volume)| **volume == id)?.0.clone();
        Some((process, name))
    }
}

fn vmstate_node(path: &Path) -> Value {
    json!({"driver": "qcow2", "node-name": "vmstate", "file": {"driver": "file", "filename": path}})
}
