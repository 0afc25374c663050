//! What a run makes in the cloud: written down, and on the disk, before it is made. A run that is killed leaves its journal,
//! and [`crate::cleanup`] removes what stands in it, by id or by its unique name, and nothing else.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::Session;

/// What can be made, in the order in which it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Thing {
    /// A floating IP; its description is its name.
    FloatingIp,
    /// A load balancer, with all that belongs to it.
    LoadBalancer,
    /// A server.
    Server,
    /// A key pair; its name is its id.
    Keypair,
    /// A port.
    Port,
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
    /// A snapshot of a volume.
    Snapshot,
    /// A volume.
    Volume,
    /// An image.
    Image,
    /// A secret.
    Secret,
}

impl Thing {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Thing::FloatingIp => "floating-ip",
            Thing::LoadBalancer => "load-balancer",
            Thing::Server => "server",
            Thing::Keypair => "keypair",
            Thing::Port => "port",
            Thing::RouterInterface => "router-interface",
            Thing::Router => "router",
            Thing::Subnet => "subnet",
            Thing::Network => "network",
            Thing::SecurityGroup => "security-group",
            Thing::Backup => "backup",
            Thing::Snapshot => "snapshot",
            Thing::Volume => "volume",
            Thing::Image => "image",
            Thing::Secret => "secret",
        }
    }
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

impl Header {
    /// Of a run at the cloud that one is logged in to.
    pub fn of(session: &Session, run: &str) -> Header {
        let cloud = session.cloud();
        Header {
            run: run.to_owned(),
            cloud: cloud.name.clone(),
            region: cloud.region.clone(),
            auth_url: crate::auth::identity_url(cloud),
            project: session.token().project_id.clone(),
        }
    }
}

/// Where a tool keeps what must outlive it: `$XDG_STATE_HOME/allod/TOOL`.
pub fn state_dir(tool: &str) -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state"));
    Some(state.or(home)?.join("allod").join(tool))
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Run(Header),
    Make {
        seq: u64,
        thing: Thing,
        name: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        brings: bool,
    },
    Made {
        seq: u64,
        id: String,
    },
    Gone {
        seq: u64,
    },
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
    /// Whether the cloud makes volumes for it, that go when it goes.
    pub brings: bool,
}

struct Inner {
    file: Arc<File>,
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
        std::fs::create_dir_all(dir).map_err(|e| about(dir, &e))?;
        let path = dir.join(format!("{}.jsonl", header.run));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = Arc::new(file.map_err(|e| about(&path, &e))?);
        locked(&file, &path)?;
        let mut inner = Inner { file, path, next: 0, open: BTreeMap::new() };
        inner.write(&Line::Run(header.clone()))?;
        Ok(Journal(Arc::new(Mutex::new(inner))))
    }

    /// Continues one that a killed run left; a torn last line is what was not made yet. `ResourceBusy`: the run is alive.
    pub fn open(path: &Path) -> Result<(Header, Journal)> {
        let mut file = OpenOptions::new().append(true).open(path).map_err(|e| about(path, &e))?;
        locked(&file, path)?;
        let text = std::fs::read_to_string(path).map_err(|e| about(path, &e))?;
        let (mut header, mut next, mut open) = (None, 0, BTreeMap::new());
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(Line::Run(found)) => header = Some(found),
                Ok(Line::Make { seq, thing, name, brings }) => {
                    next = next.max(seq + 1);
                    open.insert(seq, Entry { seq, thing, name, id: None, brings });
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
        let header = header.ok_or_else(|| Error::other(format!("{} is no journal", path.display())))?;
        if !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        let inner = Inner { file: Arc::new(file), path: path.to_owned(), next, open };
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

    /// Before making something: it is on the disk when this returns, and an error means that it must not be made.
    pub async fn intend(&self, thing: Thing, name: &str) -> Result<u64> {
        self.note(thing, name, false).await
    }

    /// The same for a server for which the cloud makes volumes, that go when it goes.
    pub async fn intend_with_volumes(&self, name: &str) -> Result<u64> {
        self.note(Thing::Server, name, true).await
    }

    async fn note(&self, thing: Thing, name: &str, brings: bool) -> Result<u64> {
        let (seq, file) = {
            let mut inner = self.0.lock();
            let seq = inner.next;
            inner.next += 1;
            inner.write(&Line::Make { seq, thing, name: name.to_owned(), brings })?;
            inner.open.insert(seq, Entry { seq, thing, name: name.to_owned(), id: None, brings });
            (seq, inner.file.clone())
        };
        // Not on the thread that times the calls of others.
        let synced = tokio::task::spawn_blocking(move || file.sync_data()).await;
        synced.map_err(Error::other)?.map_err(|e| about(&self.path(), &e))?;
        Ok(seq)
    }

    /// After: under which id it is found. A line that is lost only means that it is found by its name.
    pub fn made(&self, seq: u64, id: &str) -> Result<()> {
        let mut inner = self.0.lock();
        inner.write(&Line::Made { seq, id: id.to_owned() })?;
        if let Some(entry) = inner.open.get_mut(&seq) {
            entry.id = Some(id.to_owned());
        }
        Ok(())
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
        (&*self.file).write_all(text.as_bytes()).map_err(|e| about(&self.path, &e))
    }
}

/// The run that writes a journal holds its lock until it ends, however it ends.
fn locked(file: &File, path: &Path) -> Result<()> {
    file.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => {
            Error::new(ErrorKind::ResourceBusy, format!("{}: its run is alive", path.display()))
        }
        TryLockError::Error(e) => about(path, &e),
    })
}

fn about(path: &Path, error: &Error) -> Error {
    Error::new(error.kind(), format!("journal {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_killed_run_leaves_what_it_made() {
        let dir = tempfile::tempdir().unwrap();
        let header = Header {
            run: "r".into(),
            cloud: "c".into(),
            region: None,
            auth_url: "https://c".into(),
            project: None,
        };
        let journal = Journal::begin(dir.path(), &header).unwrap();
        let volume = journal.intend(Thing::Volume, "v").await.unwrap();
        journal.made(volume, "id-v").unwrap();
        let server = journal.intend(Thing::Server, "s").await.unwrap();
        let network = journal.intend(Thing::Network, "n").await.unwrap();
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
