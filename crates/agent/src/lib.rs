//! The agent: makes one host as its [`HostSpec`] says, and says what it found.
//!
//! Three loops around one ledger. *Spec*: long-polls the control plane, writes what it accepts to disk before acting on
//! it. *Converge*: compares the ledger with what the drivers observe and works on each object by itself, so that a slow
//! one holds up no other. *Report*: sends what is, on change and every 30 s.
//!
//! Invariant: it runs with the control plane down, for as long as it takes; it never acts on a spec older than the
//! ledger's; and it removes nothing before it holds a spec. Where it has leases, nothing runs without a valid one.
//!
//! Start reading at [`plan::plan`] (pure: what to do next), then [`Agent::run`].

pub mod configdrive;
mod converge;
pub mod images;
mod lease;
pub mod ledger;
pub mod metadata;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base::{Clock, HostId, Result, ServerId, Timestamp};
use bytes::Bytes;
use contract::drivers::{BlockStorage, HostNetwork, Hypervisor, ImageSource};
use contract::host::{HostCapacity, HostReport, HostSpec, Power, PowerObserved};
use contract::services::{ControlPlane, HostAccess};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::ledger::Ledger;
use crate::plan::{Key, Known};

/// How often everything is looked at anew without being asked.
const SWEEP: Duration = Duration::from_secs(10);
/// How often a report is sent when nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How soon a lease that was not given is asked for again.
const LEASE_RETRY: Duration = Duration::from_secs(1);
/// Objects worked on at the same time.
const PARALLEL: usize = 16;
/// Numbers of reports that are written down as used at once.
const SEQUENCES: u64 = 1_000_000;

/// What an agent is made of.
pub struct Config {
    /// The host's id; stable over restarts.
    pub host: HostId,
    /// Directory for the ledger and the image cache.
    pub state_dir: PathBuf,
    /// Identifies this boot of the machine: guests that ran are started again after a reboot of the host.
    pub boot_id: String,
}

/// The drivers of a host.
#[derive(Clone)]
pub struct Drivers {
    /// Runs guests.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Stores volumes.
    pub storage: Arc<dyn BlockStorage>,
    /// Plugs ports.
    pub network: Arc<dyn HostNetwork>,
    /// Brings images.
    pub images: Arc<dyn ImageSource>,
}

/// What an operator sees of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStatus {
    /// Its host.
    pub host: HostId,
    /// Generation of the spec it holds.
    pub generation: u64,
    /// Steps being taken.
    pub inflight: usize,
    /// Objects that are not yet as they shall be.
    pub unconverged: usize,
    /// Of these, the ones whose last step failed.
    pub failing: usize,
    /// Guests by what they do.
    pub guests: BTreeMap<PowerObserved, usize>,
}

/// One host's agent.
pub struct Agent {
    config: Config,
    drivers: Drivers,
    control: Arc<dyn ControlPlane>,
    clock: Arc<dyn Clock>,
    ledger: Mutex<Ledger>,
    spec: watch::Sender<Option<Arc<HostSpec>>>,
    known: Mutex<BTreeMap<Key, Known>>,
    inflight: Mutex<BTreeSet<Key>>,
    capacity: Mutex<Option<HostCapacity>>,
    metadata: metadata::Listeners,
    lease: Option<lease::Lease>,
    /// What the hypervisor is told of the lease is told in order.
    telling: tokio::sync::Mutex<()>,
    renew: Notify,
    work: Notify,
    report: Notify,
    sequence: AtomicU64,
    permits: Arc<tokio::sync::Semaphore>,
}

impl Agent {
    /// Opens the ledger; starts nothing.
    ///
    /// # Errors
    /// Where the state directory cannot be read or written.
    pub fn new(
        config: Config,
        drivers: Drivers,
        control: Arc<dyn ControlPlane>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let ledger = Ledger::open(&config.state_dir)?;
        Ok(Agent::with_ledger(config, drivers, control, clock, ledger, None))
    }

    /// The same for a host with leases: guests stand still when the control plane was not heard of for a lease's time.
    /// `lease_clock` measures it: a clock that nobody sets, and that counts while the machine sleeps.
    ///
    /// # Errors
    /// Where the state directory cannot be read or written.
    pub fn leased(
        config: Config,
        drivers: Drivers,
        control: Arc<dyn ControlPlane>,
        clock: Arc<dyn Clock>,
        lease_clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let ledger = Ledger::open(&config.state_dir)?;
        Ok(Agent::with_ledger(config, drivers, control, clock, ledger, Some(lease_clock)))
    }

    /// The same with a ledger that was opened before, with leases if there is a clock for them; starts nothing.
    pub fn with_ledger(
        config: Config,
        drivers: Drivers,
        control: Arc<dyn ControlPlane>,
        clock: Arc<dyn Clock>,
        mut ledger: Ledger,
        lease_clock: Option<Arc<dyn Clock>>,
    ) -> Arc<Self> {
        let spec = ledger.spec().cloned();
        let now = u64::try_from(clock.now().0).unwrap_or(0);
        let sequence = ledger.take_sequences(now, SEQUENCES).unwrap_or_else(|error| {
            tracing::warn!(host = %config.host, error = %error.chain(), "numbers of reports not written down");
            now.max(ledger.next_sequence())
        });
        let lease = lease_clock.map(|clock| {
            lease::Lease::open(clock, config.state_dir.join("lease.json"), config.boot_id.clone())
        });
        Arc::new(Agent {
            config,
            drivers,
            control,
            clock,
            ledger: Mutex::new(ledger),
            spec: watch::Sender::new(spec),
            known: Mutex::default(),
            inflight: Mutex::default(),
            capacity: Mutex::default(),
            metadata: metadata::Listeners::default(),
            lease,
            telling: tokio::sync::Mutex::default(),
            renew: Notify::new(),
            work: Notify::new(),
            report: Notify::new(),
            // From the clock, so that they also grow where the ledger was lost.
            sequence: AtomicU64::new(sequence),
            permits: Arc::new(tokio::sync::Semaphore::new(PARALLEL)),
        })
    }

    /// Runs until `stop` turns true. Guests are left as they are.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let spec = tokio::spawn(self.clone().spec_loop());
        let converge = tokio::spawn(self.clone().converge_loop());
        let report = tokio::spawn(self.clone().report_loop());
        let lease = tokio::spawn(self.clone().lease_loop());
        let _ = stop.wait_for(|stopped| *stopped).await;
        for task in [spec, converge, report, lease] {
            task.abort();
        }
        self.metadata.close();
    }

    /// The spec this agent holds.
    pub fn spec(&self) -> Option<Arc<HostSpec>> {
        self.spec.borrow().clone()
    }

    /// What this agent does now; costs nothing that grows with the cloud.
    pub fn status(&self) -> AgentStatus {
        let known = self.known.lock();
        let mut status = AgentStatus {
            host: self.config.host,
            generation: self.spec.borrow().as_ref().map_or(0, |s| s.generation),
            inflight: self.inflight.lock().len(),
            unconverged: known.values().filter(|k| !k.converged).count(),
            failing: known.values().filter(|k| k.error.is_some()).count(),
            guests: BTreeMap::new(),
        };
        for guest in known.values().filter_map(|k| k.guest.as_ref()) {
            *status.guests.entry(guest.power).or_default() += 1;
        }
        status
    }

    async fn spec_loop(self: Arc<Self>) {
        let mut backoff = Duration::from_millis(100);
        loop {
            let after = self.spec.borrow().as_ref().map_or(0, |s| s.generation);
            match self.control.spec(self.config.host, after).await {
                Ok(Some(spec)) => {
                    backoff = Duration::from_millis(100);
                    self.accept(spec).await;
                }
                Ok(None) => backoff = Duration::from_millis(100),
                Err(error) => {
                    tracing::warn!(host = %self.config.host, error = %error.chain(), "control plane not reachable");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    async fn accept(self: &Arc<Self>, spec: Arc<HostSpec>) {
        let (this, new) = (self.clone(), spec.clone());
        match contract::blocking(move || this.ledger.lock().accept(new)).await {
            Ok(()) => {
                let before = self.spec.send_replace(Some(spec.clone()));
                self.tell_lease().await;
                self.renew.notify_one();
                self.work.notify_one();
                // What only adds is told of when it is there.
                if !before.is_some_and(|before| plan::only_adds(&before, &spec)) {
                    self.report.notify_one();
                }
            }
            Err(error) => {
                tracing::error!(host = %self.config.host, error = %error.chain(), "spec refused");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// Whether guests may run here now.
    pub(crate) fn may_run(&self) -> bool {
        self.lease.as_ref().is_none_or(lease::Lease::valid)
    }

    async fn lease_loop(self: Arc<Self>) {
        let Some(lease) = &self.lease else { return };
        self.tell_lease().await;
        loop {
            let generation = self.spec.borrow().as_ref().map_or(0, |s| s.generation);
            // Before it is asked for: however long the answer takes, the control plane counts from a later moment.
            let asked = lease.now();
            let pause = match self.control.lease(self.config.host, generation).await {
                Ok(term) => {
                    if let Err(error) = lease.extend(asked.plus(term)) {
                        tracing::error!(host = %self.config.host, error = %error.chain(), "lease not written down");
                    }
                    self.tell_lease().await;
                    self.work.notify_one();
                    term / 3
                }
                Err(error) => {
                    tracing::warn!(host = %self.config.host, error = %error.chain(), "lease not renewed");
                    LEASE_RETRY
                }
            };
            // A new spec may be what the control plane waits for, or name servers that it has not seen this host hold.
            let _ = tokio::time::timeout(pause, self.renew.notified()).await;
        }
    }

    /// Hands the lease to the hypervisor: the servers of the present spec, until its end.
    async fn tell_lease(&self) {
        let Some(lease) = &self.lease else { return };
        let _turn = self.telling.lock().await;
        let told = lease.of_guests(self.spec.borrow().as_deref());
        if let Err(error) = self.drivers.hypervisor.lease(&told).await {
            tracing::error!(host = %self.config.host, error = %error.chain(), "the hypervisor has no newer lease");
        }
    }

    /// What was worked on since this agent began, or is: that work tells what came of it.
    fn worked_on(&self) -> BTreeSet<Key> {
        let mut all = self.inflight.lock().clone();
        all.extend(self.known.lock().keys());
        all
    }

    async fn report_loop(self: Arc<Self>) {
        // Before it has looked, an agent would say that there is nothing, and what goes away would be taken for gone.
        while let Err(error) = self.observe().await.map(|observed| self.note(&observed, &self.worked_on())) {
            tracing::warn!(host = %self.config.host, error = %error.chain(), "cannot observe the host");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        loop {
            match self.build_report().await {
                Ok(report) => match self.control.report(report).await {
                    // Hosts that are not known get no lease: now this one is.
                    Ok(()) if !self.may_run() => self.renew.notify_one(),
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!(host = %self.config.host, error = %error.chain(), "report not taken");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        self.report.notify_one();
                    }
                },
                Err(error) => {
                    tracing::warn!(host = %self.config.host, error = %error.chain(), "cannot measure the host")
                }
            }
            let _ = tokio::time::timeout(HEARTBEAT, self.report.notified()).await;
        }
    }

    async fn build_report(&self) -> Result<HostReport> {
        let capacity = self.drivers.hypervisor.capacity().await?;
        *self.capacity.lock() = Some(capacity.clone());
        let generation = self.spec.borrow().as_ref().map_or(0, |s| s.generation);
        let known = self.known.lock();
        let mut report = HostReport {
            host: self.config.host,
            sequence: self.sequence.fetch_add(1, Ordering::SeqCst) + 1,
            generation,
            at: self.clock.now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity,
            servers: Vec::new(),
            volumes: Vec::new(),
            snapshots: Vec::new(),
        };
        for (key, known) in known.iter() {
            known.tell(key, &mut report);
        }
        Ok(report)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

#[async_trait]
impl HostAccess for Agent {
    async fn console_log(&self, host: HostId, server: ServerId, length: Option<usize>) -> Result<String> {
        if host != self.config.host {
            return Err(base::Error::unavailable(format!("Host {host} is not reachable from here.")));
        }
        self.drivers.hypervisor.console_log(server, length).await
    }

    async fn read_disk(&self, host: HostId, server: ServerId, disk: &str, offset: u64) -> Result<Bytes> {
        let spec = self.spec();
        let held = spec.as_ref().and_then(|s| s.servers.iter().find(|s| s.id == server));
        if host != self.config.host || held.is_none_or(|s| s.power != Power::Stopped) {
            return Err(base::Error::conflict(format!("Server {server} does not stand still on this host.")));
        }
        self.drivers.hypervisor.read_disk(server, disk, offset).await
    }
}
