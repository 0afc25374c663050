//! Everything that happened, in order, as one number.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Events kept for the report of a failing run.
const KEPT: usize = 200;

struct State {
    hash: Sha256,
    counts: BTreeMap<&'static str, u64>,
    last: VecDeque<String>,
    file: Option<Box<dyn Write + Send>>,
}

/// The trace of a run: two runs are the same if and only if their hashes are. Cheap to clone.
#[derive(Clone)]
pub struct Trace {
    start: Instant,
    state: Arc<Mutex<State>>,
}

impl Trace {
    /// An empty trace; events are also written to `file`, one a line.
    pub fn new(file: Option<Box<dyn Write + Send>>) -> Self {
        let state = State { hash: Sha256::new(), counts: BTreeMap::new(), last: VecDeque::new(), file };
        Trace { start: Instant::now(), state: Arc::new(Mutex::new(state)) }
    }

    /// Notes an event of a kind.
    pub fn event(&self, kind: &'static str, what: impl Display) {
        let line = format!("{:.3} {kind} {what}\n", self.start.elapsed().as_secs_f64());
        let mut state = self.state.lock();
        state.hash.update(line.as_bytes());
        *state.counts.entry(kind).or_default() += 1;
        if let Some(file) = &mut state.file {
            let _ = file.write_all(line.as_bytes());
        }
        if state.last.len() == KEPT {
            state.last.pop_front();
        }
        state.last.push_back(line);
    }

    /// Events by kind.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().counts.clone()
    }

    /// The hash of all events so far, in hex.
    pub fn hash(&self) -> String {
        hex::encode(self.state.lock().hash.clone().finalize())
    }

    /// The last events.
    pub fn last(&self) -> Vec<String> {
        self.state.lock().last.iter().cloned().collect()
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
