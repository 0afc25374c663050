//! The queue of one reconciler: each key once, due times, backoff, and what the outbox may forget.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use base::{Entropy, Result, Timestamp};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Outcome;
use crate::status::TaskStatus;

/// Pauses after failures: doubled each time between the two, with jitter.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub most: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { first: Duration::from_millis(100), most: Duration::from_secs(60) }
    }
}

/// A wake-up brings news, so it shortens a pause after a failure to this. Not to nothing: two reconcilers that fail and
/// wake each other must not spin.
const PAUSE_DESPITE_NEWS: Duration = Duration::from_secs(1);

/// Who queued a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Wake,
    Hint,
    Sweep,
}

/// Where a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// In `ready`.
    #[default]
    Ready,
    Running,
    /// In `due`.
    Waiting(Instant),
}

#[derive(Default)]
struct Entry {
    place: Place,
    /// Woken since its last run began.
    news: bool,
    /// Only a sweep knows of it.
    swept: bool,
    failures: u32,
    failing_since: Option<Timestamp>,
    /// After a failure, a wake-up does not run it before this.
    not_before: Option<Instant>,
    /// Outbox places that are not acknowledged yet.
    seqs: Vec<i64>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    ready: VecDeque<String>,
    due: BTreeSet<(Instant, String)>,
    /// Keys that converged while a sweep was looking: what it says of them may be old.
    converged_during_sweep: Option<BTreeSet<String>>,
    status: TaskStatus,
}

impl State {
    /// Makes a waiting key ready, or due earlier.
    fn hasten(&mut self, key: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Place::Waiting(due) = entry.place else { return };
        let earliest = entry.not_before.unwrap_or(now);
        if due <= earliest {
            return;
        }
        self.due.remove(&(due, key.to_owned()));
        if earliest <= now {
            entry.place = Place::Ready;
            self.ready.push_back(key.to_owned());
        } else {
            entry.place = Place::Waiting(earliest);
            self.due.insert((earliest, key.to_owned()));
        }
    }
}

pub(crate) struct Queue {
    limits: Limits,
    state: Mutex<State>,
}

impl Queue {
    pub fn new(limits: Limits) -> Self {
        Queue { limits, state: Mutex::default() }
    }

    /// Queues a key on a wake-up (`seq` is its place in the outbox) or a hint (`seq` is 0).
    pub fn push(&self, key: &str, source: Source, seq: i64) {
        let mut state = self.state.lock();
        if let Some(entry) = state.entries.get_mut(key) {
            entry.news = true;
            entry.swept = false;
            if seq > 0 {
                entry.seqs.push(seq);
            }
            state.hasten(key, Instant::now());
            return;
        }
        let seqs = if seq > 0 { vec![seq] } else { Vec::new() };
        let entry = Entry { news: true, swept: source == Source::Sweep, seqs, ..Entry::default() };
        state.entries.insert(key.to_owned(), entry);
        state.ready.push_back(key.to_owned());
    }

    /// A sweep begins to look; `false` while another still looks.
    pub fn sweep_begins(&self) -> bool {
        let mut state = self.state.lock();
        let free = state.converged_during_sweep.is_none();
        if free {
            state.converged_during_sweep = Some(BTreeSet::new());
        }
        free
    }

    /// What the sweep found. Keys that are known have their own time.
    pub fn sweep_ends(&self, found: Result<Vec<String>>, now: Timestamp) {
        let mut state = self.state.lock();
        let converged = state.converged_during_sweep.take().unwrap_or_default();
        state.status.last_sweep = Some(now);
        let keys = match found {
            Ok(keys) => keys,
            Err(error) => {
                state.status.sweep_failures += 1;
                state.status.last_error = Some((String::new(), error.chain()));
                return;
            }
        };
        let unknown: Vec<String> = keys
            .into_iter()
            .filter(|key| !converged.contains(key) && !state.entries.contains_key(key))
            .collect();
        drop(state);
        for key in unknown {
            self.push(&key, Source::Sweep, 0);
        }
    }

    /// The next key that is due; it is running from now on.
    pub fn pop(&self) -> Option<String> {
        let mut state = self.state.lock();
        let now = Instant::now();
        while state.due.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, key)) = state.due.pop_first()
        {
            if let Some(entry) = state.entries.get_mut(&key) {
                entry.place = Place::Ready;
            }
            state.ready.push_back(key);
        }
        let key = state.ready.pop_front()?;
        let State { entries, status, .. } = &mut *state;
        if let Some(entry) = entries.get_mut(&key) {
            entry.place = Place::Running;
            entry.news = false;
            if std::mem::take(&mut entry.swept) {
                status.missed += 1;
            }
        }
        Some(key)
    }

    /// Notes the end of a run; answers the outbox places that may be forgotten: all where the key converged, else all
    /// but one, so that a crash does not lose the key.
    pub fn done(
        &self,
        key: &str,
        result: Result<Outcome>,
        took: Duration,
        now: Timestamp,
        entropy: &Entropy,
    ) -> Vec<i64> {
        let mut state = self.state.lock();
        let State { entries, ready, due, converged_during_sweep, status } = &mut *state;
        status.runs += 1;
        status.last_run = Some(now);
        status.last_duration = took;
        let Some(entry) = entries.get_mut(key) else { return Vec::new() };
        let failed = result.is_err();
        let pause = match result {
            Ok(outcome) => {
                entry.failures = 0;
                entry.failing_since = None;
                entry.not_before = None;
                match outcome {
                    Outcome::Done => None,
                    Outcome::After(pause) => Some(pause),
                }
            }
            Err(error) => {
                status.failures += 1;
                status.last_error = Some((key.to_owned(), error.chain()));
                entry.failures = entry.failures.saturating_add(1);
                entry.failing_since.get_or_insert(now);
                let pause = self.backoff(entry.failures, entropy);
                entry.not_before = Some(Instant::now() + pause.min(PAUSE_DESPITE_NEWS));
                Some(pause)
            }
        };
        let pause = match pause {
            Some(pause) if entry.news && failed => Some(pause.min(PAUSE_DESPITE_NEWS)),
            _ if entry.news => Some(Duration::ZERO),
            pause => pause,
        };
        let Some(pause) = pause else {
            if let Some(converged) = converged_during_sweep {
                converged.insert(key.to_owned());
            }
            return entries.remove(key).map(|e| e.seqs).unwrap_or_default();
        };
        if pause.is_zero() {
            entry.place = Place::Ready;
            ready.push_back(key.to_owned());
        } else {
            let at = Instant::now() + pause;
            entry.place = Place::Waiting(at);
            due.insert((at, key.to_owned()));
        }
        let kept = entry.seqs.pop();
        std::mem::replace(&mut entry.seqs, kept.into_iter().collect())
    }

    fn backoff(&self, failures: u32, entropy: &Entropy) -> Duration {
        let pause =
            self.limits.first.saturating_mul(2_u32.saturating_pow(failures.min(16).saturating_sub(1)));
        let pause = pause.min(self.limits.most);
        let jitter = u64::try_from(pause.as_micros() / 4).unwrap_or(0);
        pause + Duration::from_micros(entropy.below(jitter))
    }

    /// Forgets a running key that another replica works on; answers its outbox places, which stay that one's to acknowledge.
    pub fn pass_on(&self, key: &str) -> Vec<i64> {
        self.state.lock().entries.remove(key).map(|e| e.seqs).unwrap_or_default()
    }

    /// When the next key can run; `None` where there is none.
    pub fn next_due(&self) -> Option<Instant> {
        let state = self.state.lock();
        if state.ready.is_empty() { state.due.first().map(|(due, _)| *due) } else { Some(Instant::now()) }
    }

    /// Whether as many keys can run now.
    pub fn fills(&self, batch: usize) -> bool {
        let (state, now) = (self.state.lock(), Instant::now());
        let due = state.due.iter().take(batch).take_while(|(due, _)| *due <= now).count();
        state.ready.len() + due >= batch
    }

    /// Nothing to do now: no key is ready or running, none that has news waits, none is due within 50 ms, no sweep looks.
    pub fn is_idle(&self) -> bool {
        let soon = Instant::now() + Duration::from_millis(50);
        let state = self.state.lock();
        let quiet = |e: &Entry| matches!(e.place, Place::Waiting(due) if due > soon && !e.news);
        state.converged_during_sweep.is_none() && state.entries.values().all(quiet)
    }

    /// Drops all keys that do not run; the outbox and the sweeps know them.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.ready.clear();
        state.due.clear();
        state.entries.retain(|_, e| e.place == Place::Running);
    }

    pub fn status(&self, kind: &str) -> TaskStatus {
        let state = self.state.lock();
        let running = state.entries.values().filter(|e| e.place == Place::Running).count();
        let failing = state.entries.iter().filter_map(|(k, e)| e.failing_since.map(|t| (k, t)));
        let oldest = failing.clone().min_by_key(|(_, t)| *t).map(|(k, t)| (k.clone(), t));
        TaskStatus {
            kind: kind.to_owned(),
            running,
            backlog: state.entries.len() - running,
            failing: failing.count(),
            oldest_unconverged: oldest,
            ..state.status.clone()
        }
    }
}
