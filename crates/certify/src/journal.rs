//! What a run makes in the cloud: written down, and on the disk, before it is made. A run that is killed leaves its journal,
//! and `allod certify cleanup` removes what stands in it, by id or by its unique name, and nothing else.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::checks::Notes;
use crate::facts::{Abort, Facts, Known};

/// What can be made, in the order in which it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Thing {
    /// A server.
    Server,
    /// A subnet at a router; its name is `ROUTER/SUBNET`.
    RouterInterface,
    /// A router.
    Router,
    /// A subnet.
    Subnet,
    /// A network.
    Network,
    /// A security group.
    SecurityGroup,
    /// A backup.
    Backup,
    /// A volume.
    Volume,
    /// An image.
    Image,
    /// A secret.
    Secret,
}

/// Which cloud the journal is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    /// The run.
    pub run: String,
    /// Name of the cloud in `clouds.yaml`.
    pub cloud: String,
    /// Its region.
    pub region: Option<String>,
    /// Where one logs in.
    pub auth_url: String,
    /// The project.
    pub project: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Run(Header),
    Make { seq: u64, thing: Thing, name: String },
    Made { seq: u64, id: String },
    Gone { seq: u64 },
}

/// Something that was made, or may have been.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its number in the journal.
    pub seq: u64,
    /// What.
    pub thing: Thing,
    /// Its name.
    pub name: String,
    /// Its id, if the cloud's answer came.
    pub id: Option<String>,
}

struct Inner {
    file: File,
    path: PathBuf,
    next: u64,
    open: BTreeMap<u64, Entry>,
}

/// The journal of a run. Cheap to clone.
#[derive(Clone)]
pub struct Journal(Arc<Mutex<Inner>>);

impl Journal {
    /// Begins one in `dir`.
    pub fn begin(dir: &Path, header: &Header) -> Result<Journal> {
        std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        let path = dir.join(format!("{}.jsonl", header.run));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.with_context(|| format!("{}", path.display()))?;
        let mut inner = Inner { file, path, next: 0, open: BTreeMap::new() };
        inner.write(&Line::Run(header.clone()))?;
        Ok(Journal(Arc::new(Mutex::new(inner))))
    }

    /// Continues one that a killed run left; a torn last line is what was not made yet.
    pub fn open(path: &Path) -> Result<(Header, Journal)> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        let (mut header, mut next, mut open) = (None, 0, BTreeMap::new());
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(Line::Run(found)) => header = Some(found),
                Ok(Line::Make { seq, thing, name }) => {
                    next = next.max(seq + 1);
                    open.insert(seq, Entry { seq, thing, name, id: None });
                }
                Ok(Line::Made { seq, id }) => {
                    if let Some(entry) = open.get_mut(&seq) {
                        entry.id = Some(id);
                    }
                }
                Ok(Line::Gone { seq }) => drop(open.remove(&seq)),
                Err(_) => break,
            }
        }
        let header = header.with_context(|| format!("{} is no journal", path.display()))?;
        let mut file =
            OpenOptions::new().append(true).open(path).with_context(|| format!("{}", path.display()))?;
        if !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        let inner = Inner { file, path: path.to_owned(), next, open };
        Ok((header, Journal(Arc::new(Mutex::new(inner)))))
    }

    /// Journals in `dir`.
    pub fn all(dir: &Path) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
            .collect();
        found.sort();
        found
    }

    /// A part of the run that clears up after itself.
    pub fn scope(&self) -> Scope {
        Scope { journal: self.clone(), mine: Mutex::default() }
    }

    /// What was made and is not known to be gone, in the order of removal.
    pub fn left(&self) -> Vec<Entry> {
        let mut left: Vec<Entry> = self.0.lock().open.values().cloned().collect();
        left.sort_by_key(|e| (e.thing, e.seq));
        left
    }

    /// Notes that something is gone.
    pub fn gone(&self, seq: u64) -> Result<()> {
        let mut inner = self.0.lock();
        inner.write(&Line::Gone { seq })?;
        inner.open.remove(&seq);
        Ok(())
    }

    /// Removes the journal if nothing is left; whether it did.
    pub fn finish(&self) -> Result<bool> {
        let inner = self.0.lock();
        if inner.open.is_empty() {
            std::fs::remove_file(&inner.path)?;
        }
        Ok(inner.open.is_empty())
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.0.lock().path.clone()
    }
}

impl Inner {
    fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data().context("the journal could not be written")
    }
}

/// What one case made.
pub struct Scope {
    journal: Journal,
    mine: Mutex<Vec<u64>>,
}

impl Scope {
    /// Before making something: an error means that it must not be made.
    pub fn intend(&self, thing: Thing, name: &str) -> Known<u64> {
        let mut inner = self.journal.0.lock();
        let seq = inner.next;
        inner.next += 1;
        let line = Line::Make { seq, thing, name: name.to_owned() };
        inner.write(&line).map_err(|e| Abort(format!("journal: {e:#}")))?;
        inner.open.insert(seq, Entry { seq, thing, name: name.to_owned(), id: None });
        self.mine.lock().push(seq);
        Ok(seq)
    }

    /// After: under which id it is found.
    pub fn made(&self, seq: u64, id: &str) -> Known<()> {
        let mut inner = self.journal.0.lock();
        let line = Line::Made { seq, id: id.to_owned() };
        inner.write(&line).map_err(|e| Abort(format!("journal: {e:#}")))?;
        if let Some(entry) = inner.open.get_mut(&seq) {
            entry.id = Some(id.to_owned());
        }
        Ok(())
    }

    /// Removes everything; what could not be removed is told and stays in the journal.
    pub async fn clear(&self, facts: &Facts, notes: &mut Notes) {
        let mine = self.mine.lock().clone();
        let left: Vec<Entry> = self.journal.left().into_iter().filter(|e| mine.contains(&e.seq)).collect();
        for text in crate::cleanup::remove(&facts.session, &self.journal, &left, facts.settings.poll).await {
            notes.warning(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_run_leaves_what_it_made() {
        let dir = tempfile::tempdir().unwrap();
        let header = Header {
            run: "r".into(),
            cloud: "c".into(),
            region: None,
            auth_url: "https://c".into(),
            project: None,
        };
        let journal = Journal::begin(dir.path(), &header).unwrap();
        let scope = journal.scope();
        let volume = scope.intend(Thing::Volume, "v").unwrap();
        scope.made(volume, "id-v").unwrap();
        let server = scope.intend(Thing::Server, "s").unwrap();
        let network = scope.intend(Thing::Network, "n").unwrap();
        journal.gone(network).unwrap();
        let path = journal.path();
        drop(journal);
        // Killed while it wrote.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"make\":{\"se").unwrap();

        let (found, journal) = Journal::open(&path).unwrap();
        assert_eq!(found.cloud, "c");
        let left = journal.left();
        let told: Vec<_> = left.iter().map(|e| (e.thing, e.name.as_str(), e.id.as_deref())).collect();
        assert_eq!(told, [(Thing::Server, "s", None), (Thing::Volume, "v", Some("id-v"))]);
        assert!(!journal.finish().unwrap());
        journal.gone(server).unwrap();
        journal.gone(volume).unwrap();
        assert!(journal.finish().unwrap() && Journal::all(dir.path()).is_empty());
    }
}
