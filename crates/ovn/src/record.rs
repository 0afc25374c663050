//! The record of what we made on this machine outside our own directory: one empty file per thing, written before the
//! thing is made and deleted after it is gone. What is not recorded is never removed.

use std::io;
use std::path::{Path, PathBuf};

/// What kind of thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A network interface in the instance's namespace.
    Link,
    /// A named network namespace.
    Netns,
    /// An nftables table of family `ip`.
    Table,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Link, Kind::Netns, Kind::Table];

    fn prefix(self) -> &'static str {
        match self {
            Kind::Link => "link.",
            Kind::Netns => "netns.",
            Kind::Table => "table.",
        }
    }
}

/// The record's directory.
#[derive(Debug, Clone)]
pub struct Record(PathBuf);

impl Record {
    /// The record of the instance with that state directory.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("ovn").join("made");
        std::fs::create_dir_all(&dir)?;
        Ok(Record(dir))
    }

    /// Notes a thing that is about to be made.
    ///
    /// # Errors
    /// Of the file system.
    pub fn add(&self, kind: Kind, name: &str) -> io::Result<()> {
        std::fs::write(self.0.join(format!("{}{name}", kind.prefix())), b"")
    }

    /// Strikes out a thing that is gone.
    ///
    /// # Errors
    /// Of the file system.
    pub fn remove(&self, kind: Kind, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.0.join(format!("{}{name}", kind.prefix()))) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Everything recorded.
    ///
    /// # Errors
    /// Of the file system.
    pub fn list(&self) -> io::Result<Vec<(Kind, String)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let file = entry?.file_name();
            let Some(file) = file.to_str() else { continue };
            if let Some((kind, name)) =
                Kind::ALL.iter().find_map(|k| Some((*k, file.strip_prefix(k.prefix())?)))
            {
                all.push((kind, name.to_owned()));
            }
        }
        Ok(all)
    }
}
