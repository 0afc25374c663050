//! A simulated machine: outlives its agents, loses power, fills its disk.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use agent::ledger::{Keeper, Kept, Ledger};
use agent::{Agent, Drivers};
use base::{Clock, Entropy, Error, HostId, Result, ServerId};
use bytes::Bytes;
use contract::host::HostSpec;
use contract::services::HostAccess as _;
use parking_lot::Mutex;
use sim::{SimHost, SimNetwork};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::VirtualClock;
use crate::control::Control;
use crate::drivers::guarded;
use crate::link::{AgentLink, Wire};
use crate::profile::{HostProfile, LinkProfile};
use crate::trace::Trace;

/// What is wrong with a machine, and what its agents share.
pub struct Machine {
    /// Its number, as in fault scripts.
    pub number: u64,
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its simulated drivers.
    pub sim: SimHost,
    /// Its link to the server.
    pub wire: Wire,
    /// Counts leases; nobody sets it.
    pub lease_clock: Arc<VirtualClock>,
    /// Its guests stand still without a lease. Switched off only to see that this is what keeps servers from running twice.
    pub fenced: bool,
    /// Its clock.
    pub clock: Arc<VirtualClock>,
    /// Nothing can be written.
    pub disk_full: AtomicBool,
    /// Milliseconds that driver calls take longer, at most.
    pub disk_delay_ms: AtomicU64,
    /// The next ledger write kills the agent.
    pub die_at_ledger: AtomicBool,
    /// An agent was killed by its ledger.
    pub died_at_ledger: Notify,
    /// Chance on this host.
    pub dice: Entropy,
    /// What happened.
    pub trace: Trace,
    ledger: Mutex<Option<Kept>>,
    boot: AtomicU64,
    trouble: Mutex<Trouble>,
    running: Mutex<Option<Running>>,
}

#[derive(Default)]
struct Trouble {
    /// Faults that last.
    active: u32,
    /// Of these, such that keep the agent from running.
    off: u32,
    /// When the last one ended.
    calm_since: Option<Instant>,
}

struct Running {
    /// Its tasks own it: it has a way to this machine, which would be held by itself.
    agent: Weak<Agent>,
    dead: CancellationToken,
}

impl Machine {
    /// A machine with nothing on it; its agent does not run yet.
    pub fn new(
        number: u64,
        profile: &HostProfile,
        link: LinkProfile,
        seed: u64,
        clock: &VirtualClock,
        fabric: Arc<SimNetwork>,
        trace: Trace,
    ) -> Self {
        // Everything of a host is drawn from its own stream, so that hosts do not change each other's luck.
        let dice = Entropy::seeded(seed.rotate_left(17) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let name = format!("host-{number:04}");
        let sim = SimHost::new(&name, profile.drivers(), &dice, fabric);
        Machine {
            number,
            id: HostId::random(&dice),
            name,
            sim,
            wire: Wire::new(link, Entropy::seeded(dice.u64())),
            clock: clock.another(),
            lease_clock: clock.another(),
            fenced: true,
            disk_full: AtomicBool::new(false),
            disk_delay_ms: AtomicU64::new(0),
            die_at_ledger: AtomicBool::new(false),
            died_at_ledger: Notify::new(),
            dice,
            trace,
            ledger: Mutex::default(),
            boot: AtomicU64::new(1),
            trouble: Mutex::default(),
            running: Mutex::default(),
        }
    }

    /// Starts an agent, unless one runs or something keeps it from running. Answers `false` where it must be tried again.
    pub fn start(self: &Arc<Self>, control: &Arc<Control>) -> bool {
        let mut running = self.running.lock();
        if self.trouble.lock().off > 0 || running.as_ref().is_some_and(|r| !r.dead.is_cancelled()) {
            return true;
        }
        let dead = CancellationToken::new();
        let keeper = Arc::new(LedgerOf { machine: self.clone(), dead: dead.clone() });
        let Ok(ledger) = Ledger::kept_by(keeper) else { return false };
        let Ok(directory) = control.directory(&self.name) else { return false };
        let config = agent::Config {
            host: self.id,
            state_dir: directory,
            boot_id: self.boot.load(Ordering::SeqCst).to_string(),
        };
        let drivers: Drivers = guarded(self, &dead);
        let link = Arc::new(AgentLink::new(self.clone(), control.clone(), dead.clone()));
        let leases = Some(self.lease_clock.clone() as Arc<dyn Clock>);
        let agent = Agent::with_ledger(config, drivers, link, self.clock.clone(), ledger, leases);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(agent.clone().run(stopped));
        let over = dead.clone();
        tokio::spawn(async move {
            over.cancelled().await;
            stop.send_replace(true);
        });
        self.trace.event("agent", format_args!("{} starts", self.name));
        *running = Some(Running { agent: Arc::downgrade(&agent), dead });
        true
    }

    /// Kills the agent: from now on nothing it does has an effect.
    pub fn kill(&self) {
        if let Some(running) = &*self.running.lock() {
            running.dead.cancel();
        }
        self.trace.event("agent", format_args!("{} dies", self.name));
    }

    /// The power goes.
    pub fn power_off(&self) {
        self.kill();
        self.sim.power_off();
        self.boot.fetch_add(1, Ordering::SeqCst);
    }

    /// The spec that the running agent holds.
    pub fn spec(&self) -> Option<Arc<HostSpec>> {
        self.running.lock().as_ref().filter(|r| !r.dead.is_cancelled())?.agent.upgrade()?.spec()
    }

    /// What a server asks the living agent over the link: a piece of a disk.
    ///
    /// # Errors
    /// Where no agent answers, or has no such disk.
    pub async fn read_disk(&self, server: ServerId, disk: &str, offset: u64) -> Result<Bytes> {
        let away = || Error::unavailable(format!("{} does not answer", self.name));
        let held = {
            let running = self.running.lock();
            let living = running.as_ref().filter(|r| !r.dead.is_cancelled());
            living.and_then(|r| Some((r.agent.upgrade()?, r.dead.clone())))
        };
        let (agent, dead) = held.ok_or_else(away)?;
        self.wire.carry().await?;
        let piece = agent.read_disk(self.id, server, disk, offset).await;
        self.wire.carry().await?;
        if dead.is_cancelled() { Err(away()) } else { piece }
    }

    /// Whether an agent runs.
    pub fn runs(&self) -> bool {
        self.running.lock().as_ref().is_some_and(|r| !r.dead.is_cancelled())
    }

    /// A fault begins; `off`: such that no agent can run.
    pub fn fault_begins(&self, off: bool) {
        let mut trouble = self.trouble.lock();
        trouble.active += 1;
        trouble.off += u32::from(off);
    }

    /// A fault ends.
    pub fn fault_ends(&self, off: bool) {
        let mut trouble = self.trouble.lock();
        trouble.active = trouble.active.saturating_sub(1);
        trouble.off = trouble.off.saturating_sub(u32::from(off));
        trouble.calm_since = Some(Instant::now());
    }

    /// For how long nothing has been wrong with it; `None` while something is.
    pub fn calm(&self) -> Option<Duration> {
        let trouble = self.trouble.lock();
        match trouble.calm_since {
            _ if trouble.active > 0 => None,
            None => Some(Duration::MAX),
            Some(since) => Some(since.elapsed()),
        }
    }

    /// Its clock's present moment.
    pub fn now(&self) -> base::Timestamp {
        self.clock.now()
    }
}

/// The ledger of one agent on the machine's disk.
struct LedgerOf {
    machine: Arc<Machine>,
    dead: CancellationToken,
}

impl Keeper for LedgerOf {
    fn load(&self) -> Result<Option<Kept>> {
        Ok(self.machine.ledger.lock().clone())
    }

    fn save(&self, kept: &Kept) -> Result<()> {
        if self.dead.is_cancelled() {
            return Err(Error::unavailable("the agent is dead"));
        }
        if self.machine.disk_full.load(Ordering::SeqCst) {
            return Err(Error::unavailable("no space left on device"));
        }
        *self.machine.ledger.lock() = Some(kept.clone());
        if self.machine.die_at_ledger.swap(false, Ordering::SeqCst) {
            self.dead.cancel();
            self.machine.trace.event("agent", format_args!("{} dies at its ledger", self.machine.name));
            self.machine.died_at_ledger.notify_one();
        }
        Ok(())
    }
}
