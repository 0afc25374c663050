//! What the agent must not forget: the last accepted spec, and which starts it already made.
//!
//! One JSON file, written aside, fsynced and renamed; the version before is kept as `ledger.json.old`. Simulated hosts keep
//! the same with a [`Keeper`] instead.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{Error, Result, ServerId};
use contract::host::HostSpec;
use serde::{Deserialize, Serialize};

/// A start of a guest that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Generation of the server spec that asked for it.
    pub generation: u64,
    /// Boot of the machine in which it was made.
    pub boot_id: String,
}

/// What a ledger keeps; to be looked at through a [`Ledger`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Kept {
    spec: Option<Arc<HostSpec>>,
    starts: BTreeMap<ServerId, Start>,
    /// Reports numbered below this may have been sent.
    #[serde(default)]
    sequences: u64,
}

/// Keeps the ledger where there is no disk: simulated hosts.
pub trait Keeper: Send + Sync + 'static {
    /// What was kept last, if anything.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn load(&self) -> Result<Option<Kept>>;

    /// Keeps this in place of what was kept before, for good.
    ///
    /// # Errors
    /// Where it cannot be kept; then what was before is.
    fn save(&self, kept: &Kept) -> Result<()>;
}

enum Place {
    File(PathBuf),
    Keeper(Arc<dyn Keeper>),
}

/// The ledger, as it is kept.
pub struct Ledger {
    place: Place,
    content: Kept,
}

impl Ledger {
    /// Reads `ledger.json` in `dir`, or begins an empty one.
    ///
    /// # Errors
    /// Where the file cannot be read, or both it and the version before are damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::internal(format!("{}: {e}", dir.display())))?;
        let path = dir.join("ledger.json");
        let content = match read(&path) {
            Ok(content) => content,
            Err(error) => read(&path.with_extension("json.old"))
                .ok()
                .flatten()
                .map(Some)
                .ok_or_else(|| Error::internal(format!("{}: {error}", path.display())))?,
        };
        Ok(Ledger { place: Place::File(path), content: content.unwrap_or_default() })
    }

    /// What `keeper` keeps, or an empty ledger.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn kept_by(keeper: Arc<dyn Keeper>) -> Result<Self> {
        let content = keeper.load()?.unwrap_or_default();
        Ok(Ledger { place: Place::Keeper(keeper), content })
    }

    /// The last accepted spec.
    pub fn spec(&self) -> Option<&Arc<HostSpec>> {
        self.content.spec.as_ref()
    }

    /// Takes a newer spec and writes it to disk before it answers.
    ///
    /// # Errors
    /// `Conflict` for an older generation, or the same generation with other content.
    pub fn accept(&mut self, spec: Arc<HostSpec>) -> Result<()> {
        if let Some(held) = &self.content.spec {
            if held.host != spec.host {
                return Err(Error::conflict(format!("spec is for host {}, not {}", spec.host, held.host)));
            }
            if spec.generation < held.generation {
                return Err(Error::conflict(format!(
                    "spec generation {} is older than {}",
                    spec.generation, held.generation
                )));
            }
            if spec.generation == held.generation && *held != spec {
                return Err(Error::conflict(format!(
                    "spec generation {} came with other content",
                    spec.generation
                )));
            }
        }
        let keep: std::collections::BTreeSet<_> = spec.servers.iter().map(|s| s.id).collect();
        self.content.starts.retain(|id, _| keep.contains(id));
        self.content.spec = Some(spec);
        self.save()
    }

    /// The last start of a server.
    pub fn start(&self, id: ServerId) -> Option<&Start> {
        self.content.starts.get(&id)
    }

    /// Records a start before it is made.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn record_start(&mut self, id: ServerId, start: Start) -> Result<()> {
        if self.content.starts.get(&id) == Some(&start) {
            return Ok(());
        }
        self.content.starts.insert(id, start);
        self.save()
    }

    /// A number above all that reports may have had, and above `now`; so many from it on are taken. A clock that is set back
    /// must not make the server ignore what this agent says.
    ///
    /// # Errors
    /// Where the disk refuses; then the numbers are not taken.
    pub fn take_sequences(&mut self, now: u64, count: u64) -> Result<u64> {
        let first = now.max(self.content.sequences);
        let before = std::mem::replace(&mut self.content.sequences, first.saturating_add(count));
        self.save().inspect_err(|_| self.content.sequences = before)?;
        Ok(first)
    }

    /// The first number that was not taken.
    pub fn next_sequence(&self) -> u64 {
        self.content.sequences
    }

    fn save(&self) -> Result<()> {
        let path = match &self.place {
            Place::File(path) => path,
            Place::Keeper(keeper) => return keeper.save(&self.content),
        };
        let bytes = serde_json::to_vec(&self.content).map_err(Error::internal)?;
        let aside = path.with_extension("json.new");
        let old = path.with_extension("json.old");
        let io = |e: std::io::Error| Error::internal(format!("{}: {e}", path.display()));
        let mut file = File::create(&aside).map_err(io)?;
        file.write_all(&bytes).map_err(io)?;
        file.sync_all().map_err(io)?;
        // The hard link keeps the version before without a moment in which no ledger exists.
        let _ = fs::remove_file(&old);
        let _ = fs::hard_link(path, &old);
        fs::rename(&aside, path).map_err(io)?;
        if let Some(dir) = path.parent() {
            File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> std::io::Result<Option<Kept>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(std::io::Error::other),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use base::{Entropy, HostId};

    use super::*;

    fn spec(host: HostId, generation: u64) -> Arc<HostSpec> {
        Arc::new(HostSpec { generation, ..HostSpec::empty(host) })
    }

    #[test]
    fn refuses_what_is_older_or_other() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostId::random(&Entropy::seeded(1));
        let mut ledger = Ledger::open(dir.path()).unwrap();
        ledger.accept(spec(host, 5)).unwrap();
        assert!(ledger.accept(spec(host, 4)).is_err());
        ledger.accept(spec(host, 5)).unwrap();
        assert!(ledger.accept(spec(HostId::random(&Entropy::seeded(2)), 6)).is_err());
        drop(ledger);
        let mut again = Ledger::open(dir.path()).unwrap();
        assert_eq!(again.spec().map(|s| s.generation), Some(5));
        assert!(again.accept(spec(host, 4)).is_err());
    }

    #[test]
    fn numbers_of_reports_grow_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Ledger::open(dir.path()).unwrap().take_sequences(1_000, 10).unwrap(), 1_000);
        assert_eq!(Ledger::open(dir.path()).unwrap().take_sequences(5, 10).unwrap(), 1_010);
        assert_eq!(Ledger::open(dir.path()).unwrap().take_sequences(9_000, 10).unwrap(), 9_000);
    }

    #[test]
    fn a_damaged_ledger_falls_back_to_the_version_before() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostId::random(&Entropy::seeded(1));
        let mut ledger = Ledger::open(dir.path()).unwrap();
        ledger.accept(spec(host, 5)).unwrap();
        ledger.accept(spec(host, 6)).unwrap();
        fs::write(dir.path().join("ledger.json"), b"{torn").unwrap();
        assert_eq!(Ledger::open(dir.path()).unwrap().spec().map(|s| s.generation), Some(5));
        fs::write(dir.path().join("ledger.json.old"), b"{torn").unwrap();
        assert!(Ledger::open(dir.path()).is_err(), "never begins anew over a damaged ledger");
    }
}
