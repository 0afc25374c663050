//! What replicas of the server share beside the database: one directory with token keys, the CA, the first passwords and
//! the images. See `docs/adr/0010-replicas-share-a-directory.md`.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base::{Clock, Entropy, SystemClock};
use nix::fcntl::{Flock, FlockArg};
use reconcile::Sharing;
use store::{Replica, Store};
use tokio::sync::watch;

use crate::config::{Config, State};
use crate::files;
use crate::pki::Pki;

/// How long a server may take to make what a cloud begins with before another tries.
const BEGINNING: Duration = Duration::from_secs(60);
/// How often what older servers left undone is looked for.
const SETTLING: Duration = Duration::from_secs(30);

/// Where keys and images are.
pub struct Places {
    /// Where directories of keys are.
    pub base: PathBuf,
    /// Token keys.
    pub fernet: PathBuf,
    /// Images.
    pub images: PathBuf,
}

/// The directory that replicas share, or the state directory where there is one server.
pub fn places(state: &State, config: &Config) -> Places {
    let base = config.replica.shared_dir.as_deref().unwrap_or(state.dir());
    Places { base: base.to_owned(), fernet: base.join("fernet"), images: base.join("images") }
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

/// This server among those that work on the database.
fn me(state: &State, config: &Config) -> Result<Replica> {
    let address = match config.replica.address.as_str() {
        "" => format!("https://{}", config.listen),
        given => given.trim_end_matches('/').to_owned(),
    };
    Ok(Replica {
        id: Entropy::system().uuid().to_string(),
        name: format!("{}@{}", std::process::id(), config.listen),
        address,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        schemas: store::newest(cloud::SCHEMAS),
        alone: config.replica.shared_dir.is_none(),
        home: crate::bootstrap::host_id(state)?.to_string(),
    })
}

/// A place among the servers of a PostgreSQL database.
pub struct Membership {
    store: Store,
    me: Replica,
    ttl: Duration,
    lost: watch::Receiver<Option<String>>,
}

impl Membership {
    /// Joins. A server with a shared directory works beside others that have it; one without suffers nobody, and nobody
    /// suffers it. One that was killed elsewhere counts as living for as long as its lease lasts.
    pub async fn join(state: &State, config: &Config, store: &Store) -> Result<Self> {
        let me = me(state, config)?;
        let ttl = Duration::from_secs(config.replica.lease_secs.into());
        let begin = Instant::now();
        loop {
            let refused = match alone(store, &me, ttl).await? {
                None => break,
                Some(other) => other,
            };
            if begin.elapsed() > ttl + Duration::from_secs(1) {
                bail!(
                    "another server works on this database: {refused}. Servers that work together have the same \
                     replica.shared_dir; stop the other one, or configure both as replicas"
                );
            }
            tokio::time::sleep(ttl / 20).await;
        }
        let (lose, lost) = watch::channel(None);
        let membership = Membership { store: store.clone(), me, ttl, lost };
        if membership.me.alone {
            tokio::spawn(stay(store.clone(), membership.me.clone(), ttl, lose));
        }
        tokio::spawn(settle(store.clone(), membership.me.id.clone()));
        Ok(membership)
    }

    /// How this server shares the work; `None` where it does all of it.
    pub fn replica(&self, pki: &Pki) -> Result<Option<cloud::Replica>> {
        if self.me.alone {
            return Ok(None);
        }
        let sharing = Sharing { me: self.me.clone(), ttl: self.ttl };
        Ok(Some(cloud::Replica { sharing, http: pki.replica_client()? }))
    }

    /// Ends when another server took the database; says which.
    pub async fn lost(&mut self) -> String {
        let told = self.lost.wait_for(Option::is_some).await.map(|told| told.clone());
        match told {
            Ok(told) => told.unwrap_or_default(),
            // Replicas suffer each other.
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets another one begin at once.
    pub async fn leave(self) {
        if self.me.alone
            && let Err(error) = self.store.leave("alone", &self.me.id).await
        {
            tracing::warn!(error = %error.chain(), "the next server waits until our lease ends");
        }
    }
}

/// Takes the place of the only server, or looks whether there is one; answers who is in the way.
async fn alone(store: &Store, me: &Replica, ttl: Duration) -> Result<Option<String>> {
    if !me.alone {
        let others = store.replicas().await?;
        let other = others.into_iter().find(|r| r.alone && r.home != me.home);
        return Ok(other.map(|r| format!("{} at {} (version {})", r.name, r.address, r.version)));
    }
    match store.alone(me, ttl).await {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == base::Kind::Conflict => Ok(Some(error.public().to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// Renews the place of the only server until somebody else has it.
async fn stay(store: Store, me: Replica, ttl: Duration, lose: watch::Sender<Option<String>>) {
    loop {
        tokio::time::sleep(ttl / 3).await;
        if lose.is_closed() {
            return;
        }
        match alone(&store, &me, ttl).await {
            Ok(None) => {}
            Ok(Some(other)) => {
                lose.send_replace(Some(other));
                return;
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "our lease is not renewed"),
        }
    }
}

/// Does what older servers left undone, once they are gone; one may come back at any time.
async fn settle(store: Store, me: String) {
    loop {
        if let Err(error) = store.settle(cloud::SCHEMAS, &me).await {
            tracing::warn!(error = %error.chain(), "what older servers wrote is not up to date yet");
        }
        tokio::time::sleep(SETTLING).await;
    }
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
