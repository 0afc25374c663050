//! The QEMU driver: one process per guest, spoken to by QMP.
//!
//! Each guest has a directory of ours with its state file, local disks and console log; the guests' user owns the files
//! it must write and the room of the QMP socket, and can neither make nor replace others. QEMU runs as that user under
//! seccomp, in a session of its own: it belongs to nobody, so guests go on while this process is away, and are found
//! again by pid, start time *and* boot. `-no-shutdown` keeps a guest that powered itself off visible, so that it is
//! never taken for one whose process was killed. On a host with leases each process is the child of a small guard that
//! stops it when the lease ends, and without which it dies: see [`guard`].
//!
//! Invariant: the state file says which devices a guest has and where they are plugged before QEMU is told; whatever
//! is killed when, `ensure` finds its way from there. No policy here: when to start is the agent's word.
//!
//! Start reading at [`Qemu`] (the verbs), then `launch.rs` (the command line), then `qmp/`.

mod accel;
mod console;
mod devices;
mod disks;
pub mod guard;
mod guest;
mod launch;
mod live;
mod process;
mod qmp;
mod state;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base::{Error, Result, ServerId};
use bytes::Bytes;
use contract::drivers::{Guest, GuestLease, GuestPlan, Hypervisor};
use contract::host::HostCapacity;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use uuid::Uuid;

pub use accel::Accelerator;
pub use qmp::Qmp;

use crate::guest::Machine;

/// Where and as whom guests run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the guests.
    pub dir: PathBuf,
    /// Name of this host.
    pub hostname: String,
    /// User and group of guest processes; `None` = ours (only sensible when we are unprivileged).
    pub user: Option<(u32, u32)>,
    /// How long a guest may take to shut down when asked by ACPI.
    pub grace: std::time::Duration,
    /// The program that stands over each guest of a host with leases: `PROGRAM guest-guard …` runs [`guard::run`].
    pub guard: Option<PathBuf>,
}

/// The driver.
pub struct Qemu {
    config: Config,
    accelerator: Accelerator,
    version: u64,
    machines: Mutex<BTreeMap<ServerId, Arc<Machine>>>,
    events: broadcast::Sender<ServerId>,
}

impl Config {
    /// Where QEMU stands: paths below are told relative to it, so that it need not pass through what is above (a home
    /// directory that is closed to others), and so that a socket's path stays short.
    pub(crate) fn root(&self) -> &Path {
        self.dir.parent().unwrap_or(&self.dir)
    }

    /// A path as QEMU shall use it.
    pub(crate) fn seen(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.root()).map_or_else(|_| path.to_owned(), Path::to_owned)
    }
}

pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |error| Error::internal(format!("{}: {error}", path.display()))
}

impl Qemu {
    /// Opens the directory, finds guests that run, and proves which accelerator works.
    ///
    /// # Errors
    /// Where QEMU is not installed or the directory cannot be used.
    pub async fn new(config: Config) -> Result<Self> {
        let mut config = config;
        std::fs::create_dir_all(&config.dir).map_err(io(&config.dir))?;
        config.dir = std::path::absolute(&config.dir).map_err(io(&config.dir))?;
        // The guests' user must reach its files below; nobody else can list them.
        std::fs::set_permissions(&config.dir, PermissionsExt::from_mode(0o711)).map_err(io(&config.dir))?;
        let mode = std::fs::metadata(config.root()).map_err(io(config.root()))?.permissions().mode();
        if config.user.is_some() && mode & 0o001 == 0 {
            let open = PermissionsExt::from_mode(mode & 0o7777 | 0o001);
            std::fs::set_permissions(config.root(), open).map_err(io(config.root()))?;
        }
        let version = accel::version().await?;
        let accelerator = Accelerator::prove(&config.dir).await;
        tracing::info!(version, accelerator = accelerator.name(), "QEMU");
        process::open_tun();
        let driver = Qemu {
            config,
            accelerator,
            version,
            machines: Mutex::default(),
            events: broadcast::Sender::new(1024),
        };
        for id in driver.known()? {
            driver.machine(id);
        }
        Ok(driver)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Ids of all guests with a directory.
    fn known(&self) -> Result<Vec<ServerId>> {
        let entries = std::fs::read_dir(&self.config.dir).map_err(io(&self.config.dir))?;
        Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
    }

    fn machine(&self, id: ServerId) -> Arc<Machine> {
        let mut machines = self.machines.lock();
        let make = || Arc::new(Machine::new(id, self.config.clone(), self.accelerator, self.events.clone()));
        machines.entry(id).or_insert_with(make).clone()
    }

    /// Ends every guest and deletes its files: what `allod down --purge` does.
    ///
    /// # Errors
    /// Where a process or file resists.
    pub async fn purge(&self) -> Result<()> {
        for id in self.known()? {
            self.remove(id).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn capacity(&self) -> Result<HostCapacity> {
        accel::capacity(&self.config, self.accelerator, self.version)
    }

    async fn observe(&self) -> Result<Vec<Guest>> {
        let mut guests = Vec::new();
        for id in self.known()? {
            if let Some(guest) = self.machine(id).observe().await? {
                guests.push(guest);
            }
        }
        Ok(guests)
    }

    async fn ensure(&self, plan: &GuestPlan, start: bool) -> Result<Guest> {
        self.machine(plan.spec.id).ensure(plan, start).await
    }

    async fn remove(&self, id: ServerId) -> Result<()> {
        self.machine(id).remove().await?;
        self.machines.lock().remove(&id);
        Ok(())
    }

    async fn lease(&self, lease: &GuestLease) -> Result<()> {
        guard::write(&self.config.dir, lease).map_err(io(&self.config.dir))
    }

    async fn console_log(&self, id: ServerId, length: Option<usize>) -> Result<String> {
        self.machine(id).console_log(length).await
    }

    async fn read_disk(&self, id: ServerId, disk: &str, offset: u64) -> Result<Bytes> {
        self.machine(id).read_disk(disk, offset).await
    }

    async fn has_disk(&self, id: ServerId, transfer: Uuid, disk: &str) -> Result<bool> {
        Ok(self.machine(id).has_disk(transfer, disk))
    }

    async fn write_disk(
        &self,
        id: ServerId,
        transfer: Uuid,
        disk: &str,
        offset: u64,
        piece: Bytes,
    ) -> Result<()> {
        self.machine(id).write_disk(transfer, disk, offset, piece).await
    }

    fn events(&self) -> broadcast::Receiver<ServerId> {
        self.events.subscribe()
    }
}
