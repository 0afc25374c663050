//! Carries out a fault script.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::check::hard::up;
use crate::control::Control;
use crate::fault::{Commit, Fault, Kind};
use crate::host::Machine;
use crate::profile::LinkProfile;
use crate::trace::Trace;

/// How long a process that shall die in its next transaction may wait for one.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Breaks things.
pub struct Breakage {
    control: Arc<Control>,
    machines: Vec<Arc<Machine>>,
    trace: Trace,
    /// One failover at a time.
    failover: tokio::sync::Mutex<()>,
    common: Mutex<Common>,
}

#[derive(Default)]
struct Common {
    outages: u32,
    failovers: u32,
    calm_since: Option<Instant>,
}

impl Breakage {
    /// Of this fleet.
    pub fn new(control: Arc<Control>, machines: Vec<Arc<Machine>>, trace: Trace) -> Arc<Self> {
        let failover = tokio::sync::Mutex::new(());
        Arc::new(Breakage { control, machines, trace, failover, common: Mutex::default() })
    }

    /// Whether something is wrong, or was within the last so long, that concerns all.
    pub fn troubled(&self, within: Duration) -> bool {
        let common = self.common.lock();
        let lately = common.calm_since.is_some_and(|since| since.elapsed() < within);
        common.outages > 0 || common.failovers > 0 || lately
    }

    /// Carries out one fault, from its moment to its end.
    ///
    /// # Errors
    /// Where a server cannot be started again.
    pub async fn happen(self: Arc<Self>, fault: Fault, begin: Instant) -> Result<()> {
        tokio::time::sleep_until(begin + Duration::from_secs(fault.at)).await;
        let name = fault.kind.name();
        self.trace.event("fault", format_args!("{name} begins {:?}", fault.kind.host()));
        let lasts = Duration::from_secs(fault.lasts);
        match fault.kind {
            Kind::ServerFailover { commit, skew_s } => self.fail_over(commit, skew_s, lasts).await?,
            Kind::OvnOutage => self.outage(lasts).await,
            ref kind => {
                let machine = kind.host().and_then(|n| self.machines.get(usize::try_from(n).ok()?));
                let machine = machine.context("a fault on a host that is not there")?.clone();
                self.on_host(&machine, kind, lasts).await;
            }
        }
        self.trace.event("fault", format_args!("{name} ends"));
        Ok(())
    }

    async fn fail_over(&self, commit: Option<Commit>, skew_s: i64, lasts: Duration) -> Result<()> {
        let _one = self.failover.lock().await;
        self.common.lock().failovers += 1;
        self.control.kill(commit);
        self.control.bury(LAST_WORDS).await;
        tokio::time::sleep(lasts).await;
        self.control.clock.set_skew(skew_s);
        let started = self.control.start().await;
        let mut common = self.common.lock();
        common.failovers -= 1;
        common.calm_since = Some(Instant::now());
        started
    }

    async fn outage(&self, lasts: Duration) {
        self.common.lock().outages += 1;
        self.control.fabric.set_outage(true);
        tokio::time::sleep(lasts).await;
        let mut common = self.common.lock();
        common.outages -= 1;
        common.calm_since = Some(Instant::now());
        self.control.fabric.set_outage(common.outages > 0);
    }

    async fn on_host(&self, machine: &Arc<Machine>, kind: &Kind, lasts: Duration) {
        let off = matches!(kind, Kind::HostLoss { .. } | Kind::AgentCrash { .. });
        machine.fault_begins(off);
        match kind {
            Kind::HostLoss { .. } => {
                machine.power_off();
                tokio::time::sleep(lasts).await;
            }
            Kind::AgentCrash { .. } => {
                machine.kill();
                tokio::time::sleep(lasts).await;
            }
            Kind::LedgerCrash { .. } => {
                machine.die_at_ledger.store(true, Ordering::SeqCst);
                let died = machine.died_at_ledger.notified();
                let died = tokio::time::timeout(Duration::from_secs(120), died).await.is_ok();
                machine.die_at_ledger.store(false, Ordering::SeqCst);
                if died {
                    tokio::time::sleep(lasts).await;
                }
            }
            Kind::LinkLoss { .. } => {
                machine.wire.cut();
                tokio::time::sleep(lasts).await;
                machine.wire.mend();
            }
            Kind::LinkDelay { delay_ms, loss_ppm, .. } => {
                machine
                    .wire
                    .set(Some(LinkProfile { delay_ms: (1, (*delay_ms).max(1)), loss_ppm: *loss_ppm }));
                tokio::time::sleep(lasts).await;
                machine.wire.set(None);
            }
            Kind::ReportNoise { twice_ppm, late_s, .. } => {
                machine.wire.set_noise(*twice_ppm, *late_s);
                tokio::time::sleep(lasts).await;
                machine.wire.set_noise(0, 0);
            }
            Kind::SlowDisk { delay_ms, .. } => {
                machine.disk_delay_ms.store(*delay_ms, Ordering::SeqCst);
                tokio::time::sleep(lasts).await;
                machine.disk_delay_ms.store(0, Ordering::SeqCst);
            }
            Kind::FullDisk { .. } => {
                machine.disk_full.store(true, Ordering::SeqCst);
                tokio::time::sleep(lasts).await;
                machine.disk_full.store(false, Ordering::SeqCst);
            }
            Kind::ClockSkew { seconds, .. } => {
                machine.clock.set_skew(*seconds);
                tokio::time::sleep(lasts).await;
                machine.clock.set_skew(0);
            }
            Kind::GuestCrash { .. } => {
                let guests = machine.sim.hypervisor.guests();
                let running: Vec<_> = guests.iter().filter(|g| up(g.power)).collect();
                let n = machine.dice.below(u64::try_from(running.len()).unwrap_or(0));
                if let Some(guest) = running.get(usize::try_from(n).unwrap_or(0)) {
                    machine.sim.hypervisor.crash(guest.id);
                }
            }
            Kind::ServerFailover { .. } | Kind::OvnOutage => {}
        }
        machine.fault_ends(off);
        machine.start(&self.control);
    }
}
