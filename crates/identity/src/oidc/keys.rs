//! The keys that sign for this cloud: laid out and turned over as token keys are (see `crate::keys`).
//!
//! All keys of the directory are published, the staged one too, so that who keeps our key set knows a key before it signs.

use std::sync::Arc;

use base::{Result, Timestamp};
use federation::jose::{Claims, KeySet, SigningKey, key_set};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

use crate::keys::{self, Lock, Repository};

/// Most keys kept, staged and primary included.
const MOST: usize = 4;

struct Ring {
    /// The primary first, then falling to the staged key.
    keys: Vec<SigningKey>,
    public: Value,
    set: KeySet,
    fingerprint: Vec<(u64, i64, u64)>,
}

/// The signing keys in use.
pub struct Signing {
    repository: Repository,
    ring: RwLock<Arc<Ring>>,
    looked: Mutex<i64>,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signing({:?})", self.repository)
    }
}

fn ring(mut texts: Vec<(u64, String)>, fingerprint: Vec<(u64, i64, u64)>) -> Result<Ring> {
    texts.sort_unstable_by_key(|k| std::cmp::Reverse(k.0));
    let keys: Vec<SigningKey> = texts.iter().map(|(_, t)| SigningKey::from_pem(t)).collect::<Result<_>>()?;
    let public = key_set(&keys);
    let set = KeySet::parse(public.to_string().as_bytes())?;
    Ok(Ring { keys, public, set, fingerprint })
}

impl Signing {
    /// Opens the repository; an empty one gets a primary and a staged key.
    ///
    /// # Errors
    /// `Internal` where the directory cannot be used, `BadRequest` where a file in it is no key or open to others.
    pub fn open(repository: Repository) -> Result<Self> {
        let first = match &repository {
            Repository::Directory(path) => {
                keys::setup(path, &SigningKey::generate)?;
                let (texts, print) = keys::texts(path)?;
                ring(texts, print)?
            }
            Repository::Memory => {
                ring(vec![(0, SigningKey::generate()?), (1, SigningKey::generate()?)], Vec::new())?
            }
        };
        Ok(Signing { repository, ring: RwLock::new(Arc::new(first)), looked: Mutex::new(0) })
    }

    /// The published key set.
    pub fn public(&self, now: Timestamp) -> Value {
        self.look(now);
        self.ring.read().public.clone()
    }

    /// Signs claims. `kind`: the header's `typ`.
    ///
    /// # Errors
    /// `Internal`.
    pub fn sign(&self, kind: &str, claims: &Value, now: Timestamp) -> Result<String> {
        self.look(now);
        let ring = self.ring.read().clone();
        let key = ring.keys.first().ok_or_else(|| base::Error::internal("there is no signing key"))?;
        key.sign(kind, claims)
    }

    /// The claims of a token we signed and that has not ended.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub fn own(&self, token: &str, issuer: &str, now: Timestamp) -> Result<Claims> {
        self.look(now);
        let claims = self.ring.read().set.signed(token)?;
        let end = federation::jose::seconds(&claims, "exp")?.unwrap_or(0);
        let ours = claims.get("iss").and_then(Value::as_str) == Some(issuer);
        if ours && end > now.as_secs() { Ok(claims) } else { Err(crate::words::unauthorized()) }
    }

    /// Reads the directory again if that was not done in the last ten seconds.
    fn look(&self, now: Timestamp) {
        let Repository::Directory(path) = &self.repository else { return };
        let now = now.as_secs();
        {
            let mut looked = self.looked.lock();
            if (now - *looked).abs() < 10 {
                return;
            }
            *looked = now;
        }
        if keys::fingerprint(path).is_ok_and(|print| print == self.ring.read().fingerprint) {
            return;
        }
        match keys::texts(path).and_then(|(texts, print)| ring(texts, print)) {
            Ok(fresh) => *self.ring.write() = Arc::new(fresh),
            Err(error) => {
                tracing::warn!(error = %error.chain(), "the signing keys could not be read again");
            }
        }
    }

    /// Makes the staged key the primary and stages a new one.
    ///
    /// # Errors
    /// `Conflict` where another server rotates now; `Internal` where files cannot be written.
    pub fn rotate(&self) -> Result<()> {
        let fresh = match &self.repository {
            Repository::Directory(path) => {
                let _lock = Lock::take(path)?;
                keys::rotate(path, MOST, &SigningKey::generate)?;
                let (texts, print) = keys::texts(path)?;
                ring(texts, print)?
            }
            Repository::Memory => {
                let staged = vec![(0, SigningKey::generate()?), (1, SigningKey::generate()?)];
                let mut fresh = ring(staged, Vec::new())?;
                let held = self.ring.read().clone();
                fresh.set.extend(held.set.clone());
                fresh
            }
        };
        *self.ring.write() = Arc::new(fresh);
        Ok(())
    }

    /// Rotates if the primary has been primary for `interval` seconds; whether it did.
    ///
    /// # Errors
    /// As [`Signing::rotate`], except that another server's rotation is no error.
    pub fn rotate_if_due(&self, now: Timestamp, interval: i64) -> Result<bool> {
        let Repository::Directory(path) = &self.repository else { return Ok(false) };
        let print = keys::fingerprint(path).map_err(base::Error::internal)?;
        let staged = print.iter().find(|(n, _, _)| *n == 0).map(|(_, at, _)| *at);
        if staged.is_none_or(|at| now.0 - at < interval.saturating_mul(1_000_000)) {
            return Ok(false);
        }
        match self.rotate() {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == base::Kind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::from_secs(1_767_225_600);

    #[test]
    fn what_was_signed_before_a_rotation_is_ours_after_it_and_on_other_servers() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::Directory(dir.path().join("oidc-keys"));
        let (one, two) = (Signing::open(repository.clone()).unwrap(), Signing::open(repository).unwrap());
        let claims = json!({"iss": "i", "exp": NOW.as_secs() + 10});
        let token = one.sign("JWT", &claims, NOW).unwrap();
        let known: Vec<Value> = two.public(NOW).get("keys").unwrap().as_array().unwrap().clone();
        for round in 1..3 {
            one.rotate().unwrap();
            let at = NOW.plus_secs(round);
            assert!(one.own(&token, "i", at).is_ok());
            assert!(two.own(&token, "i", at).is_ok());
            let later = one.sign("JWT", &claims, at).unwrap();
            // Known to all before it signs: the first new primary was staged.
            if round == 1 {
                let kid = federation::jose::key_id(&later).unwrap().unwrap();
                assert!(known.iter().any(|k| k.get("kid").and_then(Value::as_str) == Some(&kid)));
            }
        }
        assert!(one.own(&token, "other", NOW).is_err());
        assert!(one.own(&token, "i", NOW.plus_secs(10)).is_err());
        // At most four keys: in the end a token's key is gone.
        for _ in 0..3 {
            one.rotate().unwrap();
        }
        assert!(one.own(&token, "i", NOW.plus_secs(3)).is_err());
        assert_eq!(one.public(NOW).get("keys").unwrap().as_array().unwrap().len(), MOST);
    }
}
