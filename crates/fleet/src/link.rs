//! The network between an agent and the server: delay, loss, repetition, partition.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Entropy, Error, HostId, Result};
use bytes::Bytes;
use contract::host::{DiskPart, HostReport, HostSpec};
use contract::services::ControlPlane;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::host::Machine;
use crate::profile::LinkProfile;

/// How long a sender waits for an answer that does not come.
const TIMEOUT: Duration = Duration::from_secs(10);

struct State {
    down: u32,
    /// Ends calls under way when the link goes.
    cut: CancellationToken,
    link: LinkProfile,
    twice_ppm: u32,
    late_s: u64,
}

/// One host's link.
pub struct Wire {
    usual: LinkProfile,
    state: Mutex<State>,
    dice: Entropy,
}

impl Wire {
    /// A link that is up.
    pub fn new(usual: LinkProfile, dice: Entropy) -> Self {
        let state = State { down: 0, cut: CancellationToken::new(), link: usual, twice_ppm: 0, late_s: 0 };
        Wire { usual, state: Mutex::new(state), dice }
    }

    /// Cuts the link, once more.
    pub fn cut(&self) {
        let mut state = self.state.lock();
        state.down += 1;
        state.cut.cancel();
    }

    /// Takes one cut back.
    pub fn mend(&self) {
        let mut state = self.state.lock();
        state.down = state.down.saturating_sub(1);
        if state.down == 0 {
            state.cut = CancellationToken::new();
        }
    }

    /// Another delay and loss than usual; `None`: as usual.
    pub fn set(&self, link: Option<LinkProfile>) {
        self.state.lock().link = link.unwrap_or(self.usual);
    }

    /// Reports come twice.
    pub fn set_noise(&self, twice_ppm: u32, late_s: u64) {
        let mut state = self.state.lock();
        (state.twice_ppm, state.late_s) = (twice_ppm, late_s);
    }

    fn strikes(&self, ppm: u32) -> bool {
        ppm > 0 && self.dice.below(1_000_000) < u64::from(ppm)
    }

    /// When a report that was just sent comes a second time.
    fn again(&self) -> Option<Duration> {
        let (twice, late) = {
            let state = self.state.lock();
            (state.twice_ppm, state.late_s)
        };
        self.strikes(twice).then(|| Duration::from_millis(self.dice.below(late.max(1) * 1_000)))
    }

    /// Ends when the link is cut.
    async fn broken(&self) {
        let cut = self.state.lock().cut.clone();
        cut.cancelled().await;
    }

    /// One message in one direction.
    pub(crate) async fn carry(&self) -> Result<()> {
        let (down, link) = {
            let state = self.state.lock();
            (state.down > 0, state.link)
        };
        if down || self.strikes(link.loss_ppm) {
            tokio::time::sleep(TIMEOUT).await;
            return Err(Error::unavailable("the server does not answer"));
        }
        let (low, high) = link.delay_ms;
        tokio::time::sleep(Duration::from_millis(low + self.dice.below(high - low + 1))).await;
        Ok(())
    }
}

/// The way of one agent to the server.
pub struct AgentLink {
    machine: Arc<Machine>,
    control: Arc<Control>,
    dead: CancellationToken,
}

impl AgentLink {
    /// For an agent that lives until `dead`.
    pub fn new(machine: Arc<Machine>, control: Arc<Control>, dead: CancellationToken) -> Self {
        AgentLink { machine, control, dead }
    }

    /// Asks the server, over the link, while both live.
    async fn ask<T>(&self, call: impl Future<Output = Result<T>>, life: &CancellationToken) -> Result<T> {
        tokio::select! {
            biased;
            () = life.cancelled() => Err(Error::unavailable("the server closed the connection")),
            () = self.machine.wire.broken() => {
                tokio::time::sleep(TIMEOUT).await;
                Err(Error::unavailable("the server does not answer"))
            }
            result = call => result,
        }
    }

    fn alive(&self) -> Result<()> {
        if self.dead.is_cancelled() { Err(Error::unavailable("the agent is dead")) } else { Ok(()) }
    }
}

#[async_trait]
impl ControlPlane for AgentLink {
    async fn spec(&self, host: HostId, after: u64) -> Result<Option<Arc<HostSpec>>> {
        self.alive()?;
        self.machine.wire.carry().await?;
        let server = self.control.current()?;
        let spec = self.ask(server.cloud.compute.spec(host, after), &server.dead).await?;
        self.machine.wire.carry().await?;
        self.alive()?;
        if let Some(spec) = &spec {
            let (name, servers) = (&self.machine.name, spec.servers.len());
            self.machine.trace.event("spec", format_args!("{name} {} {servers}", spec.generation));
        }
        Ok(spec)
    }

    async fn lease(&self, host: HostId, generation: u64) -> Result<Duration> {
        self.alive()?;
        self.machine.wire.carry().await?;
        let server = self.control.current()?;
        let term = self.ask(server.cloud.compute.lease(host, generation), &server.dead).await;
        self.machine.wire.carry().await?;
        self.alive()?;
        let told = if term.is_ok() { "given" } else { "refused" };
        self.machine.trace.event("lease", format_args!("{} {generation} {told}", self.machine.name));
        term
    }

    async fn disk(&self, host: HostId, part: &DiskPart) -> Result<Bytes> {
        self.alive()?;
        self.machine.wire.carry().await?;
        let server = self.control.current()?;
        let piece = self.ask(server.cloud.compute.disk(host, part), &server.dead).await;
        self.machine.wire.carry().await?;
        self.alive()?;
        let (name, ended) = (&self.machine.name, if piece.is_ok() { "" } else { " failed" });
        let DiskPart { server, disk, offset, .. } = part;
        self.machine.trace.event("disk", format_args!("{name} {server} {disk} {offset}{ended}"));
        piece
    }

    async fn report(&self, report: HostReport) -> Result<()> {
        self.alive()?;
        let again = self.machine.wire.again();
        if let Some(late) = again {
            let (machine, control, report) = (self.machine.clone(), self.control.clone(), report.clone());
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                if let Ok(server) = control.current() {
                    machine.trace.event("again", format_args!("{} {}", machine.name, report.sequence));
                    let _ = server.cloud.compute.report(report).await;
                }
            });
        }
        self.machine.wire.carry().await?;
        let server = self.control.current()?;
        let (sequence, servers) = (report.sequence, report.servers.len());
        let taken = self.ask(server.cloud.compute.report(report), &server.dead).await;
        let (name, ended) = (&self.machine.name, if taken.is_ok() { "" } else { " failed" });
        self.machine.trace.event("report", format_args!("{name} {sequence} {servers}{ended}"));
        taken?;
        self.machine.wire.carry().await
    }
}
