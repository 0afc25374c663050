//! Fernet keys: where they are kept, which one signs, and how they turn over.
//!
//! The layout is Keystone's: a directory of files named by numbers. `0` is the staged key (the next to sign, already
//! known to all servers that share the directory), the highest number signs (primary), those between only read
//! (secondary). A rotation makes the staged key the primary and stages a new one, so that a server that has not
//! looked yet can read what another signs already.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{Entropy, Error, Result, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use fernet::Fernet;
use parking_lot::{Mutex, RwLock};

use crate::password::digest;

/// Longest token looked at; ours have at most about 330 characters.
const LONGEST: usize = 1024;
const LOCK: &str = ".rotating";

/// Where keys are kept.
#[derive(Debug, Clone)]
pub enum Repository {
    /// In a directory (made with mode 0700 if missing); servers that share it understand each other's tokens.
    Directory(PathBuf),
    /// In memory: tokens end with the process. For tests.
    Memory,
}

impl Repository {
    /// The repository `name` beside this one.
    pub fn beside(&self, name: &str) -> Self {
        match self {
            Repository::Directory(path) => Repository::Directory(path.with_file_name(name)),
            Repository::Memory => Repository::Memory,
        }
    }
}

struct Ring {
    primary: Fernet,
    others: Vec<Fernet>,
    names: Vec<u64>,
    fingerprint: Vec<(u64, i64, u64)>,
}

/// The keys in use.
pub struct Keys {
    repository: Repository,
    ring: RwLock<Arc<Ring>>,
    /// Keys of a repository in memory, by number.
    memory: Mutex<Vec<(u64, String)>>,
    /// When the directory was last looked at, in milliseconds of the clock.
    looked: Mutex<i64>,
    max_active: usize,
    entropy: Entropy,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({:?})", self.repository)
    }
}

/// Makes the text of a new key.
pub(crate) type Make<'a> = &'a dyn Fn() -> Result<String>;

impl Keys {
    /// Opens the repository; an empty one gets a primary and a staged key. `max_active`: how many keys are kept at
    /// most, staged and primary included (Keystone: 3); with a rotation every `r` a token is readable for
    /// `(max_active - 2) * r` at least.
    ///
    /// # Errors
    /// `Internal` where the directory cannot be used, `BadRequest` where a file in it is no key or open to others.
    pub fn open(repository: Repository, max_active: usize, entropy: Entropy) -> Result<Self> {
        let max_active = max_active.max(3);
        let memory = match &repository {
            Repository::Directory(path) => {
                setup(path, &|| Ok(fresh(&entropy)))?;
                Vec::new()
            }
            Repository::Memory => vec![(0, fresh(&entropy)), (1, fresh(&entropy))],
        };
        let ring = match &repository {
            Repository::Directory(path) => load(path)?,
            Repository::Memory => ring(memory.clone(), Vec::new())?,
        };
        Ok(Keys {
            repository,
            ring: RwLock::new(Arc::new(ring)),
            memory: Mutex::new(memory),
            looked: Mutex::new(0),
            max_active,
            entropy,
        })
    }

    /// Signs and encrypts `payload` as a token issued at `now`, without padding.
    pub fn seal(&self, payload: &[u8], now: Timestamp) -> String {
        self.look(now, 10_000);
        let ring = self.ring.read().clone();
        let seconds = u64::try_from(now.as_secs()).unwrap_or(0);
        let token = ring.primary.encrypt_at_time(payload, seconds);
        token.trim_end_matches('=').to_owned()
    }

    /// Opens a token: its payload and the whole second it was issued in. `None` where no key fits.
    pub fn open_token(&self, token: &str, now: Timestamp) -> Option<(Vec<u8>, i64)> {
        let bare = token.trim_end_matches('=');
        if bare.len() > LONGEST || !bare.starts_with("gAAAA") {
            return None;
        }
        // The time is in the first 9 bytes: a version byte and 8 bytes big-endian.
        let head = URL_SAFE_NO_PAD.decode(bare.get(..12)?).ok()?;
        let issued = u64::from_be_bytes(head.get(1..9)?.try_into().ok()?);
        let issued = i64::try_from(issued).ok()?;
        let padded = format!("{bare}{}", "=".repeat((4 - bare.len() % 4) % 4));
        let seconds = u64::try_from(now.as_secs()).unwrap_or(0);
        let ring = self.ring.read().clone();
        let found = ring.open(&padded, seconds).or_else(|| {
            // Another server may have rotated; a forger may make us look, but only once a second.
            self.look(now, 1_000).then(|| self.ring.read().clone().open(&padded, seconds)).flatten()
        });
        found.map(|payload| (payload, issued))
    }

    /// Encrypts what is kept for long, as Keystone does its credentials.
    pub fn seal_at_rest(&self, secret: &[u8], now: Timestamp) -> String {
        self.look(now, 10_000);
        let seconds = u64::try_from(now.as_secs()).unwrap_or(0);
        self.ring.read().clone().primary.encrypt_at_time(secret, seconds)
    }

    /// Decrypts what [`Keys::seal_at_rest`] made, whatever its age. `None` where no key fits.
    pub fn open_at_rest(&self, sealed: &str, now: Timestamp) -> Option<Vec<u8>> {
        // The clock of who sealed it may be ahead.
        let seconds = u64::try_from(now.as_secs()).unwrap_or(0).saturating_add(86_400 * 3650);
        let ring = self.ring.read().clone();
        ring.open(sealed, seconds).or_else(|| {
            self.look(now, 1_000).then(|| self.ring.read().clone().open(sealed, seconds)).flatten()
        })
    }

    /// What was sealed at rest, sealed anew with the primary key; the inner `None`: it is so already. The outer `None`: no
    /// key fits.
    pub fn renew(&self, sealed: &str, now: Timestamp) -> Option<Option<String>> {
        let seconds = u64::try_from(now.as_secs()).unwrap_or(0).saturating_add(86_400 * 3650);
        if self.ring.read().primary.decrypt_at_time(sealed, None, seconds).is_ok() {
            return Some(None);
        }
        let plain = self.open_at_rest(sealed, now)?;
        Some(Some(self.seal_at_rest(&plain, now)))
    }

    /// The number of the primary key, after a look at the directory.
    pub fn primary(&self, now: Timestamp) -> u64 {
        self.look(now, 0);
        self.ring.read().names.first().copied().unwrap_or(0)
    }

    /// Numbers of the keys, the primary first, then falling to the staged key.
    pub fn numbers(&self) -> Vec<u64> {
        self.ring.read().names.clone()
    }

    /// Reads the directory again if it was last read more than `age` milliseconds ago; whether something changed.
    fn look(&self, now: Timestamp, age: i64) -> bool {
        let Repository::Directory(path) = &self.repository else { return false };
        let now = now.0 / 1000;
        {
            let mut looked = self.looked.lock();
            if (now - *looked).abs() < age {
                return false;
            }
            *looked = now;
        }
        let fresh = fingerprint(path).ok();
        if fresh.as_ref().is_none_or(|f| *f == self.ring.read().fingerprint) {
            return false;
        }
        match load(path) {
            Ok(ring) => {
                *self.ring.write() = Arc::new(ring);
                true
            }
            Err(error) => {
                tracing::warn!(error = %error.chain(), "the token keys could not be read again");
                false
            }
        }
    }

    /// Makes the staged key the primary, stages a new one, and drops the oldest beyond the limit.
    ///
    /// # Errors
    /// `Conflict` where another server rotates now; `Internal` where files cannot be written.
    pub fn rotate(&self) -> Result<()> {
        self.rotate_from(None).map(drop)
    }

    /// As [`Keys::rotate`], if the primary is still the one of this number; whether it was.
    ///
    /// # Errors
    /// As [`Keys::rotate`].
    pub fn rotate_from(&self, expected: Option<u64>) -> Result<bool> {
        let other = |now: Option<u64>| expected.is_some() && expected != now;
        let fresh_ring = match &self.repository {
            Repository::Directory(path) => {
                let _lock = Lock::take(path)?;
                let held = fingerprint(path).map_err(Error::internal)?;
                if other(held.last().map(|(n, _, _)| *n)) {
                    return Ok(false);
                }
                rotate(path, self.max_active, &|| Ok(fresh(&self.entropy)))?;
                load(path)?
            }
            Repository::Memory => {
                let mut keys = self.memory.lock();
                if other(keys.last().map(|(n, _)| *n)) {
                    return Ok(false);
                }
                let next = keys.iter().map(|(n, _)| *n).max().unwrap_or(0) + 1;
                if let Some(staged) = keys.iter_mut().find(|(n, _)| *n == 0) {
                    staged.0 = next;
                }
                keys.push((0, fresh(&self.entropy)));
                keys.sort_unstable();
                while keys.len() > self.max_active {
                    keys.remove(1);
                }
                ring(keys.clone(), Vec::new())?
            }
        };
        *self.ring.write() = Arc::new(fresh_ring);
        Ok(true)
    }

    /// Whether the primary has been primary for `interval` seconds.
    pub fn due(&self, now: Timestamp, interval: i64) -> bool {
        if matches!(self.repository, Repository::Memory) {
            return false;
        }
        self.look(now, 0);
        let ring = self.ring.read().clone();
        // The file was renamed, not written, when it became primary, so the staged key's age is the primary's reign.
        let staged = ring.fingerprint.iter().find(|(n, _, _)| *n == 0);
        staged.is_some_and(|(_, at, _)| now.0 - at >= interval.saturating_mul(1_000_000))
    }

    /// Rotates if the primary has been primary for `interval` seconds; whether it did. Several servers may ask at once.
    ///
    /// # Errors
    /// As [`Keys::rotate`], except that another server's rotation is no error.
    pub fn rotate_if_due(&self, now: Timestamp, interval: i64) -> Result<bool> {
        if !self.due(now, interval) {
            return Ok(false);
        }
        match self.rotate() {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == base::Kind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Ring {
    fn open(&self, token: &str, seconds: u64) -> Option<Vec<u8>> {
        let mut all = std::iter::once(&self.primary).chain(&self.others);
        all.find_map(|key| key.decrypt_at_time(token, None, seconds).ok())
    }
}

fn fresh(entropy: &Entropy) -> String {
    let mut key = [0; 32];
    entropy.fill(&mut key);
    URL_SAFE.encode(key)
}

fn ring(mut keys: Vec<(u64, String)>, fingerprint: Vec<(u64, i64, u64)>) -> Result<Ring> {
    keys.sort_unstable_by_key(|k| std::cmp::Reverse(k.0));
    let names = keys.iter().map(|(n, _)| *n).collect();
    let mut fernets = Vec::with_capacity(keys.len());
    for (number, text) in &keys {
        fernets.push(
            Fernet::new(text.trim()).ok_or_else(|| {
                Error::bad_request(format!("token key {number}: not the base64 of 32 bytes"))
            })?,
        );
    }
    let mut fernets = fernets.into_iter();
    let primary = fernets.next().ok_or_else(|| Error::bad_request("there is no token key"))?;
    Ok(Ring { primary, others: fernets.collect(), names, fingerprint })
}

pub(crate) fn fingerprint(path: &Path) -> std::io::Result<Vec<(u64, i64, u64)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|n| n.parse::<u64>().ok()) else { continue };
        // A key may be renamed between the listing and this question.
        let Ok(meta) = entry.metadata() else { continue };
        let modified = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        all.push((number, i64::try_from(modified.as_micros()).unwrap_or(i64::MAX), meta.len()));
    }
    all.sort_unstable();
    Ok(all)
}

fn load(path: &Path) -> Result<Ring> {
    let (keys, print) = texts(path)?;
    ring(keys, print)
}

/// The keys of a directory by number, and what tells that it has changed.
#[expect(clippy::type_complexity, reason = "two lists")]
pub(crate) fn texts(path: &Path) -> Result<(Vec<(u64, String)>, Vec<(u64, i64, u64)>)> {
    let io = |e: std::io::Error| Error::internal(format!("token keys in {}: {e}", path.display()));
    let print = fingerprint(path).map_err(io)?;
    let mut keys = Vec::with_capacity(print.len());
    for (number, _, _) in &print {
        let file = path.join(number.to_string());
        let mode = fs::metadata(&file).map_err(io)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(Error::bad_request(format!(
                "{}: must not be open to others (chmod 600)",
                file.display()
            )));
        }
        keys.push((*number, fs::read_to_string(&file).map_err(io)?));
    }
    Ok((keys, print))
}

/// Writes a key under a name that must not exist yet; whether it was written.
fn place(path: &Path, number: u64, text: &str) -> std::io::Result<bool> {
    // Unique among all that may write here at once.
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let some = digest(text).get(..12).unwrap_or_default().to_owned();
    let temporary = path.join(format!(".{}-{count}-{some}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    // A hard link fails where the name is taken, and readers never see half a key.
    let linked = written.and_then(|()| fs::hard_link(&temporary, path.join(number.to_string())));
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

pub(crate) fn setup(path: &Path, make: Make<'_>) -> Result<()> {
    let io = |e: std::io::Error| Error::internal(format!("token keys in {}: {e}", path.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
    if fingerprint(path).map_err(io)?.is_empty() {
        // Two servers may start at once on an empty directory: the first to place a name wins it.
        place(path, 1, &make()?).map_err(io)?;
        place(path, 0, &make()?).map_err(io)?;
    }
    Ok(())
}

pub(crate) fn rotate(path: &Path, max_active: usize, make: Make<'_>) -> Result<()> {
    let io = |e: std::io::Error| Error::internal(format!("token keys in {}: {e}", path.display()));
    let numbers: Vec<u64> = fingerprint(path).map_err(io)?.into_iter().map(|(n, _, _)| n).collect();
    let next = numbers.last().copied().unwrap_or(0) + 1;
    if numbers.first() == Some(&0) {
        fs::rename(path.join("0"), path.join(next.to_string())).map_err(io)?;
    } else {
        place(path, next, &make()?).map_err(io)?;
    }
    place(path, 0, &make()?).map_err(io)?;
    let mut kept: Vec<u64> = fingerprint(path).map_err(io)?.into_iter().map(|(n, _, _)| n).collect();
    while kept.len() > max_active {
        let oldest = kept.remove(1);
        fs::remove_file(path.join(oldest.to_string())).map_err(io)?;
    }
    Ok(())
}

/// Held while rotating; a lock left by a crash is taken over after a minute.
pub(crate) struct Lock(PathBuf);

impl Lock {
    pub(crate) fn take(path: &Path) -> Result<Self> {
        let file = path.join(LOCK);
        for _ in 0..2 {
            match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file) {
                Ok(_) => return Ok(Lock(file)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    let age =
                        fs::metadata(&file).and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok());
                    if age.is_some_and(|a| a.as_secs() < 60) {
                        break;
                    }
                    let _ = fs::remove_file(&file);
                }
                Err(e) => return Err(Error::internal(format!("{}: {e}", file.display()))),
            }
        }
        Err(Error::conflict("The token keys are being rotated by another server."))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_767_225_600);

    fn directory() -> (tempfile::TempDir, Repository) {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::Directory(dir.path().join("fernet"));
        (dir, repository)
    }

    fn later(seconds: i64) -> Timestamp {
        NOW.plus_secs(seconds)
    }

    #[test]
    fn a_token_of_python_opens() {
        // cryptography 45: Fernet(base64url(bytes(range(32)))).encrypt_at_time(payload, 1767225600)
        let (dir, repository) = directory();
        let path = dir.path().join("fernet");
        fs::create_dir(&path).unwrap();
        for number in [0, 1] {
            let file = path.join(number.to_string());
            fs::write(&file, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let keys = Keys::open(repository, 3, Entropy::seeded(1)).unwrap();
        let token = "gAAAAABpVbkAGpVwkmlvWggeeoc6CJM42bixjc2EmDAAJF1ZgTTaYBzgtLQpEfRtDox4_BzNVCBLJC6MpH7BOU1hGST1nEoRFgkwbnnNhys0HcU3cW-pJvE5W1LZozD-jcPTdzmWTLDCsPHf9hZWinUSJ08z0L36eClnj8JtQTplrtzpNrCvxhQ";
        let (payload, issued) = keys.open_token(token, NOW).unwrap();
        assert_eq!(issued, NOW.as_secs());
        let payload = crate::logic::payload::unpack(&payload).unwrap();
        assert_eq!(payload.user_id, "11".repeat(16));
        assert_eq!(payload.expires_at, Timestamp::from_secs(4_102_444_800));
    }

    #[test]
    fn keys_are_private_and_turn_over() {
        let (dir, repository) = directory();
        let path = dir.path().join("fernet");
        let keys = Keys::open(repository.clone(), 3, Entropy::seeded(1)).unwrap();
        assert_eq!(keys.numbers(), [1, 0]);
        for number in [0, 1] {
            let mode = fs::metadata(path.join(number.to_string())).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let other = Keys::open(repository, 3, Entropy::seeded(2)).unwrap();
        let old = keys.seal(b"one", NOW);
        keys.rotate().unwrap();
        assert_eq!(keys.numbers(), [2, 1, 0]);
        // The new primary was staged before, so that a server that has not looked again can read it.
        let new = keys.seal(b"two", NOW);
        assert_eq!(other.numbers(), [1, 0]);
        assert_eq!(other.open_token(&new, NOW).unwrap().0, b"two");
        assert_eq!(keys.open_token(&old, NOW).unwrap().0, b"one");
        keys.rotate().unwrap();
        assert_eq!(keys.numbers(), [3, 2, 0]);
        assert!(keys.open_token(&old, NOW).is_none(), "the first key is gone");
        // The other server finds the key it does not know by looking again.
        let third = keys.seal(b"three", later(5));
        assert_eq!(other.open_token(&third, later(5)).unwrap().0, b"three");
        assert_eq!(other.numbers(), [3, 2, 0]);
        assert!(!path.join(LOCK).exists());
    }

    #[test]
    fn rotation_is_by_age_and_locked() {
        let (dir, repository) = directory();
        let path = dir.path().join("fernet");
        let keys = Keys::open(repository, 3, Entropy::seeded(1)).unwrap();
        let made = Timestamp(fingerprint(&path).unwrap()[0].1);
        assert!(!keys.rotate_if_due(made.plus_secs(99), 100).unwrap());
        let lock = Lock::take(&path).unwrap();
        assert!(!keys.rotate_if_due(made.plus_secs(101), 100).unwrap(), "another server rotates");
        drop(lock);
        assert!(keys.rotate_if_due(made.plus_secs(101), 100).unwrap());
        assert_eq!(keys.numbers(), [2, 1, 0]);
        assert!(!keys.rotate_if_due(made.plus_secs(50), 100).unwrap());
    }

    #[test]
    fn an_open_key_file_is_refused() {
        let (dir, repository) = directory();
        Keys::open(repository.clone(), 3, Entropy::seeded(1)).unwrap();
        let file = dir.path().join("fernet/1");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(Keys::open(repository, 3, Entropy::seeded(1)).unwrap_err().kind(), base::Kind::BadRequest);
    }

    #[test]
    fn forged_and_broken_tokens_do_not_open() {
        let keys = Keys::open(Repository::Memory, 3, Entropy::seeded(1)).unwrap();
        let token = keys.seal(b"payload", NOW);
        assert!(keys.open_token(&token, NOW).is_some());
        for cut in 0..token.len() {
            assert!(keys.open_token(&token[..cut], NOW).is_none(), "{cut}");
        }
        for at in (0..token.len()).step_by(3) {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).unwrap();
            // The last character carries bits that the decoder may ignore.
            assert!(
                forged == token || keys.open_token(&forged, NOW).is_none_or(|_| at == token.len() - 1),
                "{at}"
            );
        }
        assert!(keys.open_token("gAAAAé", NOW).is_none());
        assert!(keys.open_token(&"gAAAA".repeat(1000), NOW).is_none());
    }
}
