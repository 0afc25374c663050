//! A run: a fleet from its first boot to its rest.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant as RealInstant};

use anyhow::{Context, Result, bail};
use compute::model::{Server, VmState};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::breakage::Breakage;
use crate::check::{Checker, View, Violation};
use crate::client::{Api, Calls};
use crate::clock::VirtualClock;
use crate::control::Control;
use crate::fault::Script;
use crate::host::Machine;
use crate::profile::Profile;
use crate::trace::Trace;
use crate::workload::{self, PASSWORD, Tenants};

/// How long everything may take to come to rest, in virtual time.
const REST: Duration = Duration::from_secs(30 * 60);
/// Agents start within so many milliseconds.
const STAGGER_MS: u64 = 10_000;

/// Told of samples.
pub type Progress = Box<dyn FnMut(&Sample)>;

/// What to simulate.
pub struct Options {
    /// Hosts.
    pub hosts: u64,
    /// What they are like.
    pub profile: Profile,
    /// The seed: everything follows from it.
    pub seed: u64,
    /// Virtual minutes in which tenants work and things break.
    pub minutes: u64,
    /// What breaks; `None`: drawn from the seed.
    pub script: Option<Script>,
    /// Guests without a lease stand still. `false` only to see that nothing else keeps servers from running twice.
    pub fenced: bool,
    /// Seconds of virtual time between two looks of the checker.
    pub check_every: u64,
    /// Where every event is written, if anywhere.
    pub trace: Option<Box<dyn Write + Send>>,
    /// Told of every sample as it is taken.
    pub progress: Option<Progress>,
}

impl Options {
    /// So many hosts of the default profile for a virtual hour.
    ///
    /// # Errors
    /// Never, as long as the default profile is one.
    pub fn new(hosts: u64, seed: u64) -> Result<Self> {
        Ok(Options {
            hosts,
            profile: Profile::parse(crate::profile::DEFAULT)?,
            seed,
            minutes: 60,
            script: None,
            fenced: true,
            check_every: 60,
            trace: None,
            progress: None,
        })
    }
}

/// The fleet at one moment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    /// Seconds of virtual time since the tenants began.
    pub at: u64,
    /// Servers by state.
    pub servers: BTreeMap<String, u64>,
    /// What has not converged.
    pub unconverged: usize,
    /// Hosts with an agent that runs and a link that is up.
    pub hosts_well: usize,
    /// Calls since the sample before.
    pub calls: usize,
    /// Their processor time in microseconds: median and 99 of 100. Real time.
    pub call_us: (u32, u32),
    /// Violations so far.
    pub violations: usize,
    /// Transactions of the servers so far: reads and writes.
    pub transactions: (u64, u64),
    /// Servers that were asked for so far.
    pub servers_asked: u64,
    /// Memory of the process in MiB; with several runs in one process, of all.
    pub memory_mib: u64,
    /// Seconds of real time that the checker took so far.
    pub checking_s: f64,
    /// Seconds of real time since the start.
    pub wall_s: f64,
}

/// What came of a run.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Hosts.
    pub hosts: u64,
    /// Virtual minutes of work.
    pub minutes: u64,
    /// Seconds of virtual time until everything was at rest, after the work.
    pub rest_s: u64,
    /// Hash of everything that happened.
    pub hash: String,
    /// What is wrong: seconds of virtual time, and what.
    pub violations: Vec<(u64, Violation)>,
    /// The faults.
    pub script: Script,
    /// Samples.
    pub samples: Vec<Sample>,
    /// Calls.
    pub calls: Calls,
    /// Events by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// Servers that were made in all.
    pub servers_made: u64,
    /// Keys that reconcilers found only by sweeping, since the last server process started.
    pub missed: BTreeMap<String, u64>,
    /// Seconds of real time.
    pub wall_s: f64,
    /// The last events, where something is wrong.
    pub last: Vec<String>,
}

/// Runs a fleet on a runtime of its own, in virtual time.
///
/// # Errors
/// Where the run itself cannot be carried out; what it found is in the outcome.
pub fn simulate(options: Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let mut run = Run::prepare(options).await?;
        run.work().await?;
        run.rest().await?;
        Ok(run.outcome())
    })
}

/// A runtime of one thread whose time is virtual: it goes on to the next timer when nothing can run.
///
/// # Errors
/// Where the system has no threads left.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().context("no runtime")
}

/// A fleet that runs.
pub struct Run {
    /// The server side.
    pub control: Arc<Control>,
    /// The hosts.
    pub machines: Vec<Arc<Machine>>,
    /// The tenants.
    pub tenants: Tenants,
    /// The API as an observer uses it.
    pub api: Api,
    options: Options,
    trace: Trace,
    breakage: Arc<Breakage>,
    checker: Checker,
    script: Script,
    begin: Instant,
    began: RealInstant,
    samples: Vec<Sample>,
    violations: Vec<(u64, Violation)>,
    calls_seen: usize,
    checking: Duration,
    rest_s: u64,
}

impl Run {
    /// A cloud with its hosts up and its tenants ready.
    ///
    /// # Errors
    /// Where that does not come about.
    pub async fn prepare(mut options: Options) -> Result<Self> {
        let began = RealInstant::now();
        let clock = VirtualClock::new();
        let trace = Trace::new(options.trace.take());
        let control = Control::new(options.seed, clock.clone(), trace.clone()).await?;
        control.start().await?;
        // What reconcilers do at their start is over before anything waits for a thread.
        settle().await;
        control.populate(PASSWORD).await?;
        let api = Api::new(control.clone(), trace.clone());
        let workload = options.profile.workload.clone();
        let tenants = Tenants::prepare(&control, &api, &workload, options.hosts).await?;
        settle().await;
        let mut machines = Vec::new();
        for n in 0..options.hosts {
            let (kind, link) = (options.profile.kind(n), options.profile.link);
            let fabric = control.fabric.clone();
            let mut machine = Machine::new(n, kind, link, options.seed, &clock, fabric, trace.clone());
            machine.fenced = options.fenced;
            let machine = Arc::new(machine);
            control.join(&machine);
            let (starting, of) = (machine.clone(), control.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(starting.dice.below(STAGGER_MS))).await;
                starting.start(&of);
            });
            machines.push(machine);
        }
        let breakage = Breakage::new(control.clone(), machines.clone(), trace.clone());
        let seconds = options.minutes * 60;
        let rates = &options.profile.faults;
        let drawn = || Script::draw(options.seed, rates, options.hosts, seconds);
        let mut script = options.script.clone().unwrap_or_else(drawn);
        // Everything is mended when the work ends.
        script.fault.retain(|f| f.at < seconds);
        for fault in &mut script.fault {
            fault.lasts = fault.lasts.min(seconds - fault.at);
        }
        let mut run = Run {
            control,
            machines,
            tenants,
            api,
            options,
            trace,
            breakage,
            checker: Checker::default(),
            script,
            begin: Instant::now(),
            began,
            samples: Vec::new(),
            violations: Vec::new(),
            calls_seen: 0,
            checking: Duration::ZERO,
            rest_s: 0,
        };
        run.registered().await?;
        run.begin = Instant::now();
        run.trace.event("run", "begins");
        Ok(run)
    }

    /// Waits until all hosts are known.
    async fn registered(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let count = |tx: &mut store::Tx<'_>| tx.count::<compute::model::Host>(&store::Query::new());
            let known = self.control.store.read(count).await?;
            if known >= self.options.hosts {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("only {known} of {} hosts registered", self.options.hosts);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Tenants work, things break, the checker looks.
    ///
    /// # Errors
    /// Where a server cannot be started again, or a client panicked.
    pub async fn work(&mut self) -> Result<()> {
        let stop = CancellationToken::new();
        let clients = self.tenants.begin(&self.options.profile.workload, self.options.seed, &stop);
        let mut faults = tokio::task::JoinSet::new();
        for fault in self.script.fault.clone() {
            faults.spawn(self.breakage.clone().happen(fault, self.begin));
        }
        let end = self.begin + Duration::from_secs(self.options.minutes * 60);
        let mut next = self.begin;
        while next < end {
            next = (next + Duration::from_secs(self.options.check_every.max(1))).min(end);
            tokio::time::sleep_until(next).await;
            self.look(false).await?;
        }
        stop.cancel();
        workload::end(clients).await?;
        while let Some(ended) = faults.join_next().await {
            ended.context("a fault panicked")??;
        }
        self.trace.event("run", "ends");
        Ok(())
    }

    /// Waits for rest and looks once more, as nothing may be open then.
    ///
    /// # Errors
    /// From the database.
    pub async fn rest(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_secs(30)).await;
            self.look(false).await?;
            if self.checker.unconverged == 0 || began.elapsed() > REST {
                break;
            }
        }
        self.rest_s = began.elapsed().as_secs();
        self.look(true).await
    }

    /// One look of the checker, and a sample.
    ///
    /// # Errors
    /// From the database.
    pub async fn look(&mut self, at_rest: bool) -> Result<()> {
        let began = RealInstant::now();
        let view = self.view().await?;
        let found = self.checker.look(&view, at_rest);
        self.checking += began.elapsed();
        let at = self.begin.elapsed().as_secs();
        for violation in found {
            self.trace.event("violation", &violation);
            self.violations.push((at, violation));
        }
        let sample = self.sample(&view, at);
        if let Some(progress) = &mut self.options.progress {
            progress(&sample);
        }
        self.samples.push(sample);
        Ok(())
    }

    /// Everything as it is now.
    ///
    /// # Errors
    /// From the database.
    pub async fn view(&self) -> Result<View> {
        let lately = Duration::from_secs(self.options.check_every.max(60));
        let troubled = self.breakage.troubled(lately);
        let mut view = View::take(&self.control, &self.machines, &self.tenants, troubled).await?;
        for machine in &mut view.machines {
            // What was wrong since the last look counts as wrong.
            machine.calm = machine.calm.filter(|calm| *calm >= lately);
        }
        Ok(view)
    }

    fn sample(&mut self, view: &View, at: u64) -> Sample {
        let mut servers: BTreeMap<String, u64> = BTreeMap::new();
        for server in &view.servers {
            *servers.entry(state_of(server).to_owned()).or_default() += 1;
        }
        let seen = self.calls_seen;
        let mut micros = self.api.look(|calls| calls.micros.get(seen..).unwrap_or_default().to_vec());
        self.calls_seen += micros.len();
        micros.sort_unstable();
        let part = |n: usize| micros.get(micros.len().saturating_sub(1) * n / 100).copied().unwrap_or(0);
        Sample {
            at,
            servers,
            unconverged: self.checker.unconverged,
            hosts_well: view.machines.iter().filter(|m| m.calm.is_some()).count(),
            calls: micros.len(),
            call_us: (part(50), part(99)),
            violations: self.violations.len(),
            transactions: self.control.transactions(),
            servers_asked: self.api.look(asked),
            memory_mib: memory_mib(),
            checking_s: self.checking.as_secs_f64(),
            wall_s: self.began.elapsed().as_secs_f64(),
        }
    }

    /// What came of it.
    pub fn outcome(self) -> Outcome {
        let status = self.control.current().map(|s| s.cloud.handle.status()).unwrap_or_default();
        let calls = self.api.calls();
        Outcome {
            seed: self.options.seed,
            hosts: self.options.hosts,
            minutes: self.options.minutes,
            rest_s: self.rest_s,
            hash: self.trace.hash(),
            servers_made: asked(&calls),
            last: if self.violations.is_empty() { Vec::new() } else { self.trace.last() },
            violations: self.violations,
            script: self.script,
            samples: self.samples,
            calls,
            events: self.trace.counts(),
            missed: status.into_iter().map(|t| (t.kind, t.missed)).collect(),
            wall_s: self.began.elapsed().as_secs_f64(),
        }
    }
}

/// Requests for servers that were accepted.
fn asked(calls: &Calls) -> u64 {
    let of = |what: &str| calls.answers.get(what).copied().unwrap_or(0);
    of("create_server 202") + of("boot_from_volume 202")
}

/// The process's memory in RAM.
fn memory_mib() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 256
}

/// Lets everything that can run now run.
async fn settle() {
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

fn state_of(server: &Server) -> &'static str {
    match server.vm_state {
        _ if server.deleting => "deleting",
        VmState::Error => "error",
        VmState::Building => "building",
        VmState::Active => "active",
        VmState::Stopped => "stopped",
        VmState::Paused => "paused",
        VmState::Suspended => "suspended",
    }
}
