//! What replicas of the server share beside the database: one directory with token keys, the CA, the first passwords and
//! the images. See `docs/adr/0010-replicas-share-a-directory.md`.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base::{Clock, Entropy, SystemClock};
use nix::fcntl::{Flock, FlockArg};
use reconcile::Sharing;
use store::{Replica, Store};

use crate::config::{Config, State};
use crate::files;
use crate::pki::Pki;

/// How long a server may take to make what a cloud begins with before another tries.
const BEGINNING: Duration = Duration::from_secs(60);

/// Where keys and images are.
pub struct Places {
    /// Token keys.
    pub fernet: PathBuf,
    /// Images.
    pub images: PathBuf,
}

/// The directory that replicas share, or the state directory where there is one server.
pub fn places(state: &State, config: &Config) -> Places {
    let base = config.replica.shared_dir.as_deref().unwrap_or(state.dir());
    Places { fernet: base.join("fernet"), images: base.join("images") }
}

/// Brings CA and passwords of the shared directory into the state directory; the first replica makes them.
pub fn join(state: &State, config: &Config) -> Result<()> {
    let Some(shared) = &config.replica.shared_dir else { return Ok(()) };
    make_dir(shared)?;
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(shared.join(".lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .with_context(|| format!("cannot lock {}", shared.display()))?;
    make_dir(&shared.join("pki"))?;
    Pki::open(&shared.join("pki"), SystemClock.now())?;
    let held = fs::read(state.path("pki/ca.crt")).ok();
    if held.is_some_and(|held| fs::read(shared.join("pki/ca.crt")).is_ok_and(|ours| ours != held)) {
        bail!(
            "{} has another CA than {}: a replica starts with an empty state directory, or with that of the one server \
             there was, whose pki, fernet, images and secrets.json were copied to the shared directory before",
            state.path("pki").display(),
            shared.display()
        );
    }
    for name in ["ca.crt", "ca.key"] {
        copy(&shared.join("pki").join(name), &state.path("pki").join(name))?;
    }
    let (ours, theirs) = (state.path("secrets.json"), shared.join("secrets.json"));
    if !theirs.exists() {
        crate::bootstrap::secrets(state, config)?;
        copy(&ours, &theirs)?;
    }
    copy(&theirs, &ours)
}

fn make_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|held| held == content) { Ok(()) } else { files::write_secret(to, &content) }
}

/// How this server takes part; `None` where it is the only one.
pub fn replica(config: &Config, pki: &Pki) -> Result<Option<cloud::Replica>> {
    if config.replica.shared_dir.is_none() {
        return Ok(None);
    }
    let address = match config.replica.address.as_str() {
        "" => format!("https://{}", config.listen),
        given => given.trim_end_matches('/').to_owned(),
    };
    let me = Replica {
        id: Entropy::system().uuid().to_string(),
        name: format!("{}@{}", std::process::id(), config.listen),
        address,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        schemas: store::newest(cloud::SCHEMAS),
        ..Replica::default()
    };
    let ttl = Duration::from_secs(config.replica.lease_secs.into());
    Ok(Some(cloud::Replica { sharing: Sharing { me, ttl }, http: pki.replica_client()? }))
}

/// Runs `work` while no other replica does the same.
pub async fn one_at_a_time<T>(store: &Store, work: impl Future<Output = Result<T>>) -> Result<T> {
    let (name, holder) = ("populate", Entropy::system().uuid().to_string());
    while store.shared() && store.lease(name, &holder, BEGINNING).await?.is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let done = work.await;
    if store.shared() {
        store.release(name, &holder).await?;
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_have_one_ca_and_one_set_of_passwords() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.replica.shared_dir = Some(dir.path().join("shared"));
        let states: Vec<State> =
            ["a", "b"].iter().map(|name| State::create(&dir.path().join(name)).unwrap()).collect();
        std::thread::scope(|scope| {
            for state in &states {
                scope.spawn(|| join(state, &config).unwrap());
            }
        });
        for name in ["pki/ca.crt", "pki/ca.key", "secrets.json"] {
            let [a, b] = [0, 1].map(|n| fs::read(states[n].path(name)).unwrap());
            assert_eq!(a, b, "{name}");
        }
        let stranger = State::create(&dir.path().join("c")).unwrap();
        Pki::open(&stranger.path("pki"), SystemClock.now()).unwrap();
        assert!(join(&stranger, &config).unwrap_err().to_string().contains("another CA"));
    }
}
