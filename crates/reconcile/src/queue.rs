//! The queue of one reconciler: each key once, due times, backoff.

use std::collections::{BTreeMap, VecDeque};
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

/// Who queued a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Wake,
    Hint,
    Sweep,
}

#[derive(Default)]
struct Entry {
    running: bool,
    queued: bool,
    /// Woken while it ran.
    again: bool,
    failures: u32,
    failing_since: Option<Timestamp>,
    due: Option<Instant>,
    /// Outbox places to acknowledge after a run that began after they came.
    seqs: Vec<i64>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    ready: VecDeque<String>,
    status: TaskStatus,
}

pub(crate) struct Queue {
    limits: Limits,
    state: Mutex<State>,
}

impl Queue {
    pub fn new(limits: Limits) -> Self {
        Queue { limits, state: Mutex::default() }
    }

    pub fn push(&self, key: &str, source: Source, seq: i64) {
        let mut state = self.state.lock();
        let State { entries, ready, status } = &mut *state;
        if source == Source::Sweep && entries.contains_key(key) {
            // It is known and has its own time.
            return;
        }
        let entry = entries.entry(key.to_owned()).or_default();
        if source == Source::Sweep {
            status.missed += 1;
        }
        if seq > 0 {
            entry.seqs.push(seq);
        }
        if entry.running {
            entry.again = true;
        } else if !entry.queued {
            // A wake-up brings news: it does not wait for a retry that is due later.
            entry.queued = true;
            entry.due = None;
            ready.push_back(key.to_owned());
        }
    }

    /// The next key that is due; it is running from now on.
    pub fn pop(&self) -> Option<String> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let State { entries, ready, .. } = &mut *state;
        let due: Vec<String> = entries
            .iter()
            .filter(|(_, e)| !e.queued && !e.running && e.due.is_some_and(|d| d <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            if let Some(entry) = entries.get_mut(&key) {
                entry.queued = true;
                entry.due = None;
                ready.push_back(key);
            }
        }
        let key = ready.pop_front()?;
        if let Some(entry) = entries.get_mut(&key) {
            entry.queued = false;
            entry.running = true;
        }
        Some(key)
    }

    /// Notes the end of a run; answers the outbox places that are worked off.
    pub fn done(
        &self,
        key: &str,
        result: Result<Outcome>,
        took: Duration,
        now: Timestamp,
        entropy: &Entropy,
    ) -> Vec<i64> {
        let mut state = self.state.lock();
        let State { entries, ready, status } = &mut *state;
        status.runs += 1;
        status.last_run = Some(now);
        status.last_duration = took;
        let Some(entry) = entries.get_mut(key) else { return Vec::new() };
        entry.running = false;
        let pause = match result {
            Ok(outcome) => {
                entry.failures = 0;
                entry.failing_since = None;
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
                let pause = self.limits.first * 2_u32.saturating_pow(entry.failures.min(16) - 1);
                let pause = pause.min(self.limits.most);
                let jitter = u64::try_from(pause.as_micros() / 4).unwrap_or(0);
                Some(pause + Duration::from_micros(entropy.below(jitter)))
            }
        };
        if std::mem::take(&mut entry.again) {
            entry.queued = true;
            ready.push_back(key.to_owned());
            return Vec::new();
        }
        match pause {
            Some(pause) => {
                entry.due = Some(Instant::now() + pause);
                Vec::new()
            }
            None => entries.remove(key).map(|e| e.seqs).unwrap_or_default(),
        }
    }

    /// Until the next retry; long where there is none.
    pub fn next_due(&self) -> Duration {
        let state = self.state.lock();
        let next = state.entries.values().filter(|e| !e.running && !e.queued).filter_map(|e| e.due).min();
        next.map_or(Duration::from_secs(60), |due| due.saturating_duration_since(Instant::now()))
    }

    pub fn is_idle(&self) -> bool {
        let soon = Instant::now() + Duration::from_millis(50);
        let state = self.state.lock();
        state.entries.values().all(|e| !e.queued && !e.running && e.due.is_none_or(|d| d > soon))
    }

    pub fn status(&self, kind: &str) -> TaskStatus {
        let state = self.state.lock();
        let oldest = state.entries.iter().filter_map(|(k, e)| e.failing_since.map(|t| (k.clone(), t)));
        TaskStatus {
            kind: kind.to_owned(),
            running: state.entries.values().filter(|e| e.running).count(),
            backlog: state.entries.values().filter(|e| !e.running).count(),
            oldest_unconverged: oldest.min_by_key(|(_, t)| *t),
            ..state.status.clone()
        }
    }
}
