//! Carries out the plan: one task per object, never two for the same one.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Error, Result, ServerId};
use contract::drivers::{BlockDevice, Guest, GuestPlan};
use contract::host::{DiskPart, DiskSource, Power, PowerObserved, ServerSpec, VolumeSource};
use tracing::Instrument;

use crate::ledger::Start;
use crate::plan::{Key, Known, Observed, Step, metadata_ports, plan};
use crate::{Agent, SWEEP, configdrive, metadata};

/// How long a start waits for the switch to have the guest's flows; after that the guest starts all the same, because
/// a guest without network for a moment is better than no guest while OVN is away.
const FLOWS: Duration = Duration::from_secs(10);

impl Agent {
    pub(crate) async fn converge_loop(self: Arc<Self>) {
        let mut events = self.drivers.hypervisor.events();
        loop {
            if let Err(error) = self.pass().await {
                tracing::warn!(host = %self.config.host, error = %error.chain(), "cannot observe the host");
            }
            // In order, so that a simulation replays exactly.
            tokio::select! {
                biased;
                () = self.work.notified() => {}
                _ = events.recv() => {}
                () = tokio::time::sleep(self.pause()) => {}
            }
        }
    }

    /// Until the next retry is due, at most [`SWEEP`].
    fn pause(&self) -> Duration {
        let now = self.now();
        let known = self.known.lock();
        let next = known.values().filter(|k| !k.converged && k.not_before > now).map(|k| k.not_before).min();
        let until = next.map_or(SWEEP, |t| Duration::from_micros(u64::try_from(t.0 - now.0).unwrap_or(0)));
        until.clamp(Duration::from_millis(20), SWEEP)
    }

    async fn pass(self: &Arc<Self>) -> Result<()> {
        let Some(spec) = self.spec() else { return Ok(()) };
        if !self.may_run() {
            // Cut off: servers of this spec may run elsewhere by now. The next lease tells.
            return Ok(());
        }
        // What was worked on while we looked may have been seen half done, and be done now: a guest that starts has no
        // process yet, and would be told of as one that ended. The end of that work brings the next look.
        let busy = self.inflight.lock().clone();
        let observed = self.observe().await?;
        self.note(&observed, &busy);
        let steps = {
            let known = self.known.lock();
            let mut steps = plan(&spec, &observed, &known, self.now());
            steps.retain(|s| !busy.contains(&s.key()));
            steps
        };
        for step in steps {
            let Ok(permit) = self.permits.clone().try_acquire_owned() else { break };
            let key = step.key();
            self.inflight.lock().insert(key);
            let this = self.clone();
            tokio::spawn(async move {
                let (began, kind) = (Instant::now(), step.kind());
                let span = tracing::info_span!("converge", ?step, otel.name = kind);
                let outcome = this.take(&step).instrument(span).await;
                let result = if outcome.is_ok() { "ok" } else { "error" };
                metrics::counter!("allod_agent_steps_total", "step" => kind, "result" => result).increment(1);
                metrics::histogram!("allod_agent_step_seconds", "step" => kind).record(began.elapsed());
                this.settle(step, outcome);
                this.inflight.lock().remove(&key);
                drop(permit);
                this.work.notify_one();
                this.report.notify_one();
            });
        }
        Ok(())
    }

    pub(crate) async fn observe(&self) -> Result<Observed> {
        let d = &self.drivers;
        Ok(Observed {
            guests: d.hypervisor.observe().await?.into_iter().map(|g| (g.id, g)).collect(),
            volumes: d.storage.observe().await?.into_iter().collect(),
            snapshots: d.storage.observe_snapshots().await?.into_iter().collect(),
            ports: d.network.observe().await?.into_iter().collect(),
            metadata: d.network.observe_metadata().await?.into_iter().collect(),
            listening: self.metadata.networks(),
        })
    }

    /// Guests change by themselves: what is observed goes into the next report, but of what was `busy`.
    pub(crate) fn note(&self, observed: &Observed, busy: &BTreeSet<Key>) {
        let mut known = self.known.lock();
        let mut changed = false;
        for (id, guest) in &observed.guests {
            let key = Key::Server(*id);
            let entry = known.entry(key).or_default();
            if !busy.contains(&key) && entry.guest.as_ref() != Some(guest) {
                entry.guest = Some(guest.clone());
                changed = true;
            }
        }
        for (id, size) in &observed.volumes {
            known.entry(Key::Volume(*id)).or_default().size_gib = *size;
        }
        for id in &observed.snapshots {
            known.entry(Key::Snapshot(*id)).or_default();
        }
        let before = known.len();
        // What is neither there nor wanted is not told of: the server waits for that.
        let spec = self.spec();
        known.retain(|key, k| match (key, &spec) {
            (Key::Server(id), Some(spec)) => {
                observed.guests.contains_key(id) || spec.servers.iter().any(|s| s.id == *id)
            }
            (Key::Volume(id), Some(spec)) => {
                observed.volumes.contains_key(id) || spec.volumes.iter().any(|v| v.id == *id)
            }
            (Key::Snapshot(id), Some(spec)) => {
                observed.snapshots.contains(id) || spec.snapshots.iter().any(|s| s.id == *id)
            }
            (Key::Server(_) | Key::Volume(_) | Key::Snapshot(_), None) => {
                k.generation > 0 || k.guest.is_some()
            }
            (Key::Metadata(_) | Key::Port(_), _) => true,
        });
        if changed || known.len() != before {
            self.report.notify_one();
        }
    }

    fn settle(&self, step: Step, outcome: Result<Known>) {
        let mut known = self.known.lock();
        let key = step.key();
        match (step, outcome) {
            (Step::Ensure(_), Ok(done)) => {
                known.insert(key, Known { converged: true, ..done });
            }
            (Step::Remove(_), Ok(_)) => {
                known.remove(&key);
            }
            (step, Err(error)) => {
                let generation = self.generation(key);
                let entry = known.entry(key).or_default();
                entry.failures =
                    if entry.generation == generation { entry.failures.saturating_add(1) } else { 1 };
                entry.generation = generation;
                entry.converged = false;
                entry.error = Some(error.chain());
                let seconds = 1_i64 << entry.failures.min(5);
                entry.not_before = base::Timestamp(self.now().0 + seconds * 250_000);
                tracing::warn!(host = %self.config.host, ?step, error = %error.chain(), "step failed");
            }
        }
    }

    fn generation(&self, key: Key) -> u64 {
        let Some(spec) = self.spec() else { return 0 };
        let found = match key {
            Key::Server(id) => spec.servers.iter().find(|s| s.id == id).map(|s| s.generation),
            Key::Volume(id) => spec.volumes.iter().find(|v| v.id == id).map(|v| v.generation),
            Key::Snapshot(id) => spec.snapshots.iter().find(|s| s.id == id).map(|s| s.generation),
            Key::Metadata(_) | Key::Port(_) => None,
        };
        found.unwrap_or(0)
    }

    async fn take(self: &Arc<Self>, step: &Step) -> Result<Known> {
        let d = &self.drivers;
        match *step {
            Step::Ensure(Key::Volume(id)) => self.ensure_volume(id).await,
            Step::Ensure(Key::Snapshot(id)) => {
                let spec = self.spec();
                let Some(snapshot) = spec.as_ref().and_then(|s| s.snapshots.iter().find(|s| s.id == id))
                else {
                    return Ok(Known::default());
                };
                d.storage.ensure_snapshot(snapshot).await?;
                Ok(Known { generation: snapshot.generation, ..Known::default() })
            }
            Step::Ensure(Key::Metadata(network)) => {
                let Some(port) = self.spec().and_then(|s| metadata_ports(&s).remove(&network)) else {
                    return Ok(Known::default());
                };
                let listener = d.network.metadata_listener(network, &port).await?;
                self.metadata.serve(network, listener, metadata::Directory::new(self.spec.subscribe()))?;
                Ok(Known::default())
            }
            Step::Ensure(Key::Server(id)) => self.ensure_server(id).await,
            Step::Ensure(Key::Port(_)) => Ok(Known::default()),
            Step::Remove(Key::Server(id)) => d.hypervisor.remove(id).await.map(|()| Known::default()),
            Step::Remove(Key::Port(port)) => d.network.unplug(port).await.map(|()| Known::default()),
            Step::Remove(Key::Volume(id)) => d.storage.remove(id).await.map(|()| Known::default()),
            Step::Remove(Key::Snapshot(id)) => d.storage.remove_snapshot(id).await.map(|()| Known::default()),
            Step::Remove(Key::Metadata(network)) => {
                self.metadata.stop(network);
                d.network.remove_metadata(network).await.map(|()| Known::default())
            }
        }
    }

    async fn ensure_volume(&self, id: base::VolumeId) -> Result<Known> {
        let spec = self.spec();
        let Some(volume) = spec.as_ref().and_then(|s| s.volumes.iter().find(|v| v.id == id)) else {
            return Ok(Known::default());
        };
        let exists = self.drivers.storage.observe().await?.iter().any(|(found, _)| *found == id);
        let image = match &volume.source {
            VolumeSource::Image(image) if !exists => {
                Some(self.drivers.images.fetch(image, &self.image_cache()).await?)
            }
            _ => None,
        };
        self.drivers.storage.ensure(volume, image.as_deref()).await?;
        Ok(Known { generation: volume.generation, size_gib: volume.size_gib, ..Known::default() })
    }

    fn image_cache(&self) -> PathBuf {
        self.config.state_dir.join("images")
    }

    async fn ensure_server(&self, id: ServerId) -> Result<Known> {
        let spec = self.spec();
        let Some(server) = spec.as_ref().and_then(|s| s.servers.iter().find(|s| s.id == id)) else {
            return Ok(Known::default());
        };
        self.receive_disks(server).await?;
        let start = self.may_start(server).await?;
        let plan = self.prepare(server).await?;
        if start && server.power == Power::Running {
            self.wait_for_flows(server).await;
        }
        let guest = self.drivers.hypervisor.ensure(&plan, start).await?;
        self.unplug_unused(server, &guest).await?;
        Ok(Known { generation: server.generation, guest: Some(guest), ..Known::default() })
    }

    /// Fetches the local disks of a server that is on its way here from another host.
    async fn receive_disks(&self, server: &ServerSpec) -> Result<()> {
        let Some(from) = server.disks_from else { return Ok(()) };
        let hypervisor = &self.drivers.hypervisor;
        for disk in server.disks.iter().filter(|d| !matches!(d.source, DiskSource::Volume { .. })) {
            if hypervisor.has_disk(server.id, from.transfer, &disk.name).await? {
                continue;
            }
            let mut offset = 0;
            loop {
                // It may have been called off, and another move begun.
                let spec = self.spec();
                let wanted = spec.as_ref().and_then(|s| s.servers.iter().find(|s| s.id == server.id));
                if wanted.is_none_or(|s| s.disks_from != Some(from)) {
                    return Err(Error::conflict(format!("server {} does not come here any more", server.id)));
                }
                let (transfer, name) = (from.transfer, disk.name.clone());
                let part = DiskPart { server: server.id, transfer, disk: name, offset };
                let piece = self.control.disk(self.config.host, &part).await?;
                let length = piece.len();
                hypervisor.write_disk(server.id, transfer, &disk.name, offset, piece).await?;
                if length == 0 {
                    break;
                }
                offset = offset.saturating_add(u64::try_from(length).unwrap_or(0));
            }
        }
        Ok(())
    }

    /// Whether a guest that is down shall be started: once per generation that asks for it, and again when the machine
    /// itself was rebooted. Recorded before the start, so that a crash in between cannot start it twice.
    async fn may_start(&self, server: &ServerSpec) -> Result<bool> {
        if server.power == Power::Stopped {
            return Ok(false);
        }
        if !self.may_run() {
            return Err(Error::unavailable("the lease of this host has ended"));
        }
        let guests = self.drivers.hypervisor.observe().await?;
        let up = guests.iter().any(|g| {
            g.id == server.id && !matches!(g.power, PowerObserved::Shutdown | PowerObserved::Crashed)
        });
        let mut ledger = self.ledger.lock();
        let first = ledger
            .start(server.id)
            .is_none_or(|s| s.boot_id != self.config.boot_id || s.generation < server.generation);
        let absent = !guests.iter().any(|g| g.id == server.id);
        if up || first || absent {
            let record = Start { generation: server.generation, boot_id: self.config.boot_id.clone() };
            ledger.record_start(server.id, record)?;
        }
        Ok(!up && (first || absent))
    }

    /// Everything around the guest, in this host's terms.
    async fn prepare(&self, server: &Arc<ServerSpec>) -> Result<GuestPlan> {
        let mut disks = Vec::with_capacity(server.disks.len());
        let mut images = Vec::with_capacity(server.disks.len());
        for disk in &server.disks {
            let (device, image): (Option<BlockDevice>, Option<PathBuf>) = match &disk.source {
                DiskSource::Volume { volume } => {
                    let ready = self.known.lock().get(&Key::Volume(*volume)).is_some_and(|k| k.converged);
                    if !ready {
                        return Err(Error::unavailable(format!("volume {volume} is not ready on this host")));
                    }
                    (Some(self.drivers.storage.device(*volume)), None)
                }
                DiskSource::Image { image, .. } => {
                    (None, Some(self.drivers.images.fetch(image, &self.image_cache()).await?))
                }
                DiskSource::Blank { .. } => (None, None),
            };
            disks.push(device);
            images.push(image);
        }
        let mut taps = Vec::with_capacity(server.nics.len());
        for nic in &server.nics {
            taps.push(self.drivers.network.plug(nic).await?);
        }
        let config_drive =
            if server.config_drive { Some(configdrive::build(&metadata::files(server))?) } else { None };
        Ok(GuestPlan { spec: server.clone(), disks, images, taps, config_drive })
    }

    async fn wait_for_flows(&self, server: &ServerSpec) {
        let wait = async {
            for nic in &server.nics {
                while !self.drivers.network.installed(nic.port).await.unwrap_or(false) {
                    tokio::time::sleep(Duration::from_millis(25)).await;
                }
            }
        };
        if tokio::time::timeout(FLOWS, wait).await.is_err() {
            tracing::warn!(server = %server.id, "flows not installed in time; the guest starts without waiting longer");
        }
    }

    async fn unplug_unused(&self, server: &ServerSpec, guest: &Guest) -> Result<()> {
        for port in &guest.ports {
            if !server.nics.iter().any(|n| n.port == *port) {
                self.drivers.network.unplug(*port).await?;
            }
        }
        Ok(())
    }
}
