//! Passwords: bcrypt, off the request threads, with bounded parallelism.
//!
//! bcrypt reads 72 bytes (its terminating zero included). Keystone cuts longer passwords off, so that two long
//! passwords with the same beginning are one. Here a password of 72 bytes or more is first made into the 44 characters
//! of the base64 of its SHA-256, and its hash is marked with `sha256+`; shorter ones have the very hashes Keystone makes.
//!
//! Hashes that a Keystone wrote and that were taken over are verified as it does, whichever of its algorithms made them
//! (`foreign`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base::{Entropy, Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

mod foreign;

const MARK: &str = "sha256+";
/// Longest password in bytes that bcrypt reads whole.
const WHOLE: usize = 71;
/// Longest password taken at all, in characters: Keystone's `[identity] max_password_length`.
pub const LONGEST: usize = 4096;

/// Makes and checks hashes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Passwords {
    cost: u32,
    turns: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    most_waiting: usize,
    nobody: Arc<str>,
}

impl Passwords {
    /// `cost`: bcrypt's (4 to 31). `parallel`: how many hashes at once; 0 = one less than there are processors, at
    /// least one, so that a flood of logins leaves a processor for everyone else.
    ///
    /// # Errors
    /// `BadRequest` where the cost is out of range.
    pub fn new(cost: u32, parallel: usize) -> Result<Self> {
        if !(4..=31).contains(&cost) {
            return Err(Error::bad_request("identity.bcrypt_cost: must be 4 to 31"));
        }
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let parallel = if parallel == 0 { processors.saturating_sub(1).max(1) } else { parallel };
        Ok(Passwords {
            cost,
            turns: Arc::new(Semaphore::new(parallel)),
            waiting: Arc::default(),
            most_waiting: parallel.saturating_mul(128),
            // A hash nobody's password has: checking against it takes as long as against a real one.
            nobody: format!("$2b${cost:02}${}", ".".repeat(53)).into(),
        })
    }

    /// The hash of `password`.
    ///
    /// # Errors
    /// `Unavailable` where too many wait already.
    pub async fn hash(&self, password: &str, entropy: &Entropy) -> Result<String> {
        let mut salt = [0; 16];
        entropy.fill(&mut salt);
        let (input, mark) = prepare(password);
        let cost = self.cost;
        let hash = self.run(move || bcrypt::hash_with_salt(input.as_bytes(), cost, salt)).await?;
        let text = hash.map_err(Error::internal)?.format_for_version(bcrypt::Version::TwoB);
        Ok(format!("{mark}{text}"))
    }

    /// Whether `password` is that of `hash`. `None` (there is no such user, or it has no password) takes as long and
    /// is no.
    ///
    /// # Errors
    /// `Unavailable` where too many wait already.
    pub async fn verify(&self, password: &str, hash: Option<&str>) -> Result<bool> {
        let known = hash.unwrap_or(&self.nobody).to_owned();
        let password = password.to_owned();
        let same = self.run(move || matches(&password, &known)).await?;
        Ok(same && hash.is_some())
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let _waiting = Waiting::enter(&self.waiting, self.most_waiting)?;
        let turn = self.turns.clone().acquire_owned().await.map_err(Error::internal)?;
        let task = tokio::task::spawn_blocking(move || {
            // Held by the work itself: a caller who goes away does not make room for one more at the same time.
            let _turn = turn;
            work()
        });
        task.await.map_err(Error::internal)
    }
}

struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn enter(count: &Arc<AtomicUsize>, most: usize) -> Result<Self> {
        let guard = Waiting(count.clone());
        if count.fetch_add(1, Ordering::Relaxed) >= most {
            return Err(Error::unavailable("Too many logins are waiting; try again later."));
        }
        Ok(guard)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether `password` is that of a hash of ours or Keystone's. A hash that does not parse matches nothing.
fn matches(password: &str, known: &str) -> bool {
    if let Some(stored) = known.strip_prefix(MARK) {
        let (input, mark) = prepare(password);
        return bcrypt::verify(input.as_bytes(), stored).unwrap_or(false) && mark == MARK;
    }
    if known.starts_with("$2") {
        // A hash of ours that is not marked is that of a short password, whose terminating zero is among the 72 bytes: no
        // longer one is taken for it. One of Keystone's may be that of the beginning of a long one.
        let read = password.as_bytes().get(..WHOLE + 1).unwrap_or(password.as_bytes());
        return bcrypt::verify(read, known).unwrap_or(false);
    }
    foreign::matches(password.as_bytes(), known).unwrap_or(false)
}

fn prepare(password: &str) -> (String, &'static str) {
    if password.len() <= WHOLE {
        (password.to_owned(), "")
    } else {
        (STANDARD.encode(Sha256::digest(password.as_bytes())), MARK)
    }
}

/// The SHA-256 of a machine-made secret, in hex: enough for 64 random bytes, and quick.
pub fn digest(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Whether two digests are equal, in a time that does not tell where they differ.
pub fn same_digest(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_passwords_differ_beyond_72_bytes() {
        let passwords = Passwords::new(4, 1).unwrap();
        let entropy = Entropy::seeded(1);
        let long = "a".repeat(100);
        let hash = passwords.hash(&long, &entropy).await.unwrap();
        assert!(hash.starts_with("sha256+$2b$04$"));
        assert!(passwords.verify(&long, Some(&hash)).await.unwrap());
        assert!(!passwords.verify(&format!("{long}b"), Some(&hash)).await.unwrap());
        assert!(!passwords.verify(&"a".repeat(72), Some(&hash)).await.unwrap());
        let short = passwords.hash(&"a".repeat(71), &entropy).await.unwrap();
        assert!(short.starts_with("$2b$04$"));
        assert!(passwords.verify(&"a".repeat(71), Some(&short)).await.unwrap());
        assert!(!passwords.verify(&long, Some(&short)).await.unwrap());
        // The intermediate form is no way in.
        let form = STANDARD.encode(Sha256::digest(long.as_bytes()));
        assert!(!passwords.verify(&form, Some(&hash)).await.unwrap());
    }

    #[tokio::test]
    async fn hashes_of_python_are_read_and_nobody_never_matches() {
        let passwords = Passwords::new(4, 1).unwrap();
        // python3 -c "import bcrypt; print(bcrypt.hashpw(b'secret', b'$2b$04$abcdefghijklmnopqrstuu'))"
        let python = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";
        assert!(passwords.verify("secret", Some(python)).await.unwrap());
        assert!(!passwords.verify("Secret", Some(python)).await.unwrap());
        assert!(!passwords.verify("secret", None).await.unwrap());
        assert!(!passwords.verify("secret", Some("no hash")).await.unwrap());
    }

    /// Made by keystone 29.1: `conformance/fixtures/hashes.py`.
    #[tokio::test]
    async fn hashes_of_keystone_are_read() {
        let passwords = Passwords::new(4, 1).unwrap();
        let all = include_str!("password/keystone-hashes.txt");
        let mut seen = 0;
        for line in all.lines().filter(|l| !l.starts_with('#')) {
            let (password, hash) = line.split_once('\t').unwrap();
            assert!(passwords.verify(password, Some(hash)).await.unwrap(), "{hash}");
            for other in [format!("x{password}"), password.to_uppercase(), String::new()] {
                assert!(!passwords.verify(&other, Some(hash)).await.unwrap(), "{hash} {other}");
            }
            for cut in [10, 20, hash.len() - 1] {
                assert!(!passwords.verify(password, hash.get(..cut)).await.unwrap(), "{hash} {cut}");
            }
            seen += 1;
        }
        assert_eq!(seen, 10);
        // Nobody makes us compute for ever, or take all memory.
        for hash in [
            "$scrypt$ln=40,r=8,p=1$c2FsdHNhbHRzYWx0c2E$c2FsdHNhbHRzYWx0c2E",
            "$scrypt$ln=10,r=8,p=1000000$c2FsdHNhbHRzYWx0c2E$c2FsdHNhbHRzYWx0c2E",
            "$pbkdf2-sha512$4294967295$c2FsdHNhbHRzYWx0c2E$c2FsdHNhbHRzYWx0c2E",
            "$pbkdf2-sha512$1$c2FsdHNhbHRzYWx0c2E$",
            "$bcrypt-sha256$v=2,t=2b,r=31$abcdefghijklmnopqrstuu$short",
        ] {
            assert!(!passwords.verify("secret", Some(hash)).await.unwrap(), "{hash}");
        }
    }

    #[test]
    fn digests_compare() {
        assert!(same_digest(&digest("a"), &digest("a")));
        assert!(!same_digest(&digest("a"), &digest("b")));
        assert!(!same_digest("", &digest("b")));
    }
}
