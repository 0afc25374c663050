//! What one case makes in the cloud, in the journal of the run, and removed when the case ends.

use std::time::Duration;

use osclient::cleanup::{self, Pace};
use osclient::journal::Entry;
pub use osclient::journal::{Header, Journal, Thing};
use parking_lot::Mutex;

use crate::checks::Notes;
use crate::facts::{Abort, Facts, Known};

/// A part of a run that clears up after itself.
pub struct Scope {
    journal: Journal,
    mine: Mutex<Vec<u64>>,
}

impl Scope {
    /// In a journal.
    pub fn new(journal: &Journal) -> Scope {
        Scope { journal: journal.clone(), mine: Mutex::default() }
    }

    /// Before making something: an error means that it must not be made.
    pub async fn intend(&self, thing: Thing, name: &str) -> Known<u64> {
        let seq = self.journal.intend(thing, name).await.map_err(|e| Abort(e.to_string()))?;
        self.mine.lock().push(seq);
        Ok(seq)
    }

    /// After: under which id it is found.
    pub fn made(&self, seq: u64, id: &str) -> Known<()> {
        self.journal.made(seq, id).map_err(|e| Abort(e.to_string()))
    }

    /// Removes everything; what could not be removed is told and stays in the journal.
    pub async fn clear(&self, facts: &Facts, notes: &mut Notes) {
        let mine = self.mine.lock().clone();
        let left: Vec<Entry> = self.journal.left().into_iter().filter(|e| mine.contains(&e.seq)).collect();
        for text in remove(&facts.session, &self.journal, &left, facts.settings.poll).await {
            notes.warning(text);
        }
    }
}

/// Removes `entries`; tells what could not be removed.
pub async fn remove(
    session: &osclient::Session,
    journal: &Journal,
    entries: &[Entry],
    poll: Duration,
) -> Vec<String> {
    let left = cleanup::remove(session, journal, entries, Pace { poll, ..Pace::default() }).await;
    let told = |(entry, why): (Entry, String)| {
        format!("{} {} is left behind: {why}", entry.thing.name(), entry.name)
    };
    left.into_iter().map(told).collect()
}
