//! Tokens as signed claims: Keystone's `jws` provider (`keystone/token/providers/jws`).
//!
//! ES256; the claims are Keystone's, so a Python Keystone with our public keys reads these tokens and we read its. The key
//! repository is Keystone's too: one directory whose `private.pem` signs, another whose every file is a public key that
//! verifies. Nothing turns over by itself: an operator who wants a new key puts its public half everywhere first. Unlike
//! Fernet tokens these can be read by who holds them, and are about three times as long.
//!
//! Two claims are ours and ignored by Python: the microseconds of the moment of issue and the user's token generation, as in
//! `logic::payload`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{Error, Result, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use federation::jose::{Claims, KeySet, SigningKey, seconds};
use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value, json};

use crate::keys::Repository;
use crate::logic::payload::{self, Federated, Payload, PayloadScope};

/// Longest token looked at: one with a hundred groups of an identity provider.
const LONGEST: usize = 8 * 1024;
/// The file that signs.
const PRIVATE: &str = "private.pem";
/// What tells that a directory has changed: name, time and size of each file.
type Print = Vec<(String, i64, u64)>;

struct Ring {
    key: SigningKey,
    set: KeySet,
    print: Print,
}

/// The keys that sign and verify tokens.
pub struct Jws {
    /// Private, public; `None` in memory.
    directories: Option<(PathBuf, PathBuf)>,
    ring: RwLock<Arc<Ring>>,
    looked: Mutex<i64>,
}

impl std::fmt::Debug for Jws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Jws({:?})", self.directories)
    }
}

impl Jws {
    /// Opens the repositories beside that of the Fernet keys; where nothing signs, a key pair is made.
    ///
    /// # Errors
    /// `Internal` where a directory cannot be used, `BadRequest` where a file in it is no key, or the private key is open to
    /// others.
    pub fn open(beside: &Repository) -> Result<Self> {
        let place = |name: &str| match beside.beside(name) {
            Repository::Directory(path) => Some(path),
            Repository::Memory => None,
        };
        let directories = place("jws-private-keys").zip(place("jws-public-keys"));
        let ring = match &directories {
            Some((private, public)) => {
                setup(private, public)?;
                load(private, public)?
            }
            None => {
                let key = SigningKey::from_pem(&SigningKey::generate()?)?;
                Ring { set: KeySet::from_pem(&key.public_pem())?, key, print: Vec::new() }
            }
        };
        Ok(Jws { directories, ring: RwLock::new(Arc::new(ring)), looked: Mutex::new(0) })
    }

    /// Signs a payload issued at `now`.
    ///
    /// # Errors
    /// `Internal` where the system gives no randomness.
    pub fn seal(&self, payload: &Payload, now: Timestamp) -> Result<String> {
        self.look(now, 10);
        self.ring.read().clone().key.sign("JWT", &claims(payload, now))
    }

    /// What a token says and the whole second it was issued in. `None` where no key fits or it is none of Keystone's.
    pub fn open_token(&self, token: &str, now: Timestamp) -> Option<(Payload, i64)> {
        if token.len() > LONGEST || !token.starts_with("ey") {
            return None;
        }
        self.look(now, 10);
        let signed = |ring: Arc<Ring>| ring.set.signed(token).ok();
        let held = self.ring.read().clone();
        let claims = signed(held).or_else(|| {
            // Another server may have been given a new key just now.
            self.look(now, 1).then(|| signed(self.ring.read().clone())).flatten()
        })?;
        Some((payload_of(&claims)?, seconds(&claims, "iat").ok()??))
    }

    /// Reads the directories again if that was not done in the last `age` seconds; whether something changed.
    fn look(&self, now: Timestamp, age: i64) -> bool {
        let Some((private, public)) = &self.directories else { return false };
        let now = now.as_secs();
        {
            let mut looked = self.looked.lock();
            if (now - *looked).abs() < age {
                return false;
            }
            *looked = now;
        }
        if print(private, public).is_ok_and(|print| print == self.ring.read().print) {
            return false;
        }
        match load(private, public) {
            Ok(fresh) => {
                *self.ring.write() = Arc::new(fresh);
                true
            }
            Err(error) => {
                tracing::warn!(error = %error.chain(), "the keys of signed tokens could not be read again");
                false
            }
        }
    }
}

/// Keystone's claims; what is not there is left out.
fn claims(payload: &Payload, now: Timestamp) -> Value {
    let mut map = Map::new();
    map.insert("sub".into(), json!(payload.user_id));
    map.insert("iat".into(), json!(now.as_secs()));
    map.insert("exp".into(), json!(payload.expires_at.as_secs()));
    map.insert("openstack_methods".into(), json!(payload.methods));
    map.insert("openstack_audit_ids".into(), json!(payload.audit_ids));
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(name.to_owned(), value);
        }
    };
    match &payload.scope {
        PayloadScope::Unscoped => {}
        PayloadScope::Domain(id) => put("openstack_domain_id", Some(json!(id))),
        PayloadScope::Project(id) => put("openstack_project_id", Some(json!(id))),
        PayloadScope::System => put("openstack_system", Some(json!("all"))),
    }
    put("openstack_trust_id", payload.trust_id.as_ref().map(|t| json!(t)));
    put("openstack_app_cred_id", payload.application_credential_id.as_ref().map(|a| json!(a)));
    put("openstack_access_token_id", payload.access_token_id.as_ref().map(|a| json!(a)));
    let by = payload.federated.as_ref();
    put("openstack_group_ids", by.map(|by| json!(by.group_ids)));
    put("openstack_idp_id", by.map(|by| json!(by.idp_id)));
    put("openstack_protocol_id", by.map(|by| json!(by.protocol_id)));
    put("openstack_thumbprint", payload.thumbprint.as_ref().map(|t| json!(t)));
    put("allod_issued_micros", payload.issued_micros.map(|m| json!(m)));
    put("allod_generation", payload.generation.map(|g| json!(g)));
    Value::Object(map)
}

/// A claim that may be missing; the outer `None`: it is there and no text.
fn text(claims: &Claims, name: &str) -> Option<Option<String>> {
    match claims.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) => Some(Some(text.clone())),
        Some(_) => None,
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect()
}

/// A whole number that may be missing; the outer `None`: it is there and none.
fn number(claims: &Claims, name: &str) -> Option<Option<u64>> {
    claims.get(name).map_or(Some(None), |n| n.as_u64().map(Some))
}

fn payload_of(claims: &Claims) -> Option<Payload> {
    let scopes = ["openstack_system", "openstack_domain_id", "openstack_project_id"];
    let scope = match scopes.map(|name| text(claims, name)) {
        [Some(None), Some(None), Some(None)] => PayloadScope::Unscoped,
        [Some(Some(all)), Some(None), Some(None)] if all == "all" => PayloadScope::System,
        [Some(None), Some(Some(id)), Some(None)] => PayloadScope::Domain(id),
        [Some(None), Some(None), Some(Some(id))] => PayloadScope::Project(id),
        _ => return None,
    };
    let methods = texts(claims.get("openstack_methods")?)?;
    let methods = methods.iter().map(|m| payload::method(m)).collect::<Option<Vec<_>>>()?;
    let audit_ids = texts(claims.get("openstack_audit_ids")?)?;
    let sixteen = |a: &String| URL_SAFE_NO_PAD.decode(a).is_ok_and(|bytes| bytes.len() == 16);
    if !(1..=2).contains(&audit_ids.len()) || !audit_ids.iter().all(sixteen) {
        return None;
    }
    let groups = match claims.get("openstack_group_ids") {
        None | Some(Value::Null) => Vec::new(),
        // Keystone's ids of groups are objects in some tokens, texts in others.
        Some(Value::Array(items)) => {
            let id = |g: &Value| g.as_str().or_else(|| g.get("id")?.as_str()).map(str::to_owned);
            items.iter().map(id).collect::<Option<Vec<_>>>()?
        }
        Some(_) => return None,
    };
    let federated = match (text(claims, "openstack_idp_id")?, text(claims, "openstack_protocol_id")?) {
        (None, None) => None,
        (Some(idp_id), Some(protocol_id)) => Some(Federated { idp_id, protocol_id, group_ids: groups }),
        _ => return None,
    };
    let micros = number(claims, "allod_issued_micros")?.map(u32::try_from).transpose().ok()?;
    Some(Payload {
        user_id: text(claims, "sub")??,
        methods: payload::ordered(&methods),
        scope,
        expires_at: Timestamp::from_secs(seconds(claims, "exp").ok()??),
        audit_ids,
        application_credential_id: text(claims, "openstack_app_cred_id")?,
        trust_id: text(claims, "openstack_trust_id")?,
        access_token_id: text(claims, "openstack_access_token_id")?,
        federated,
        thumbprint: match text(claims, "openstack_thumbprint")? {
            // It is bound, and no certificate has this thumbprint.
            Some(empty) if empty.is_empty() => return None,
            other => other,
        },
        issued_micros: match micros {
            Some(micros) if micros >= 1_000_000 => return None,
            other => other,
        },
        generation: number(claims, "allod_generation")?,
    })
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::internal(format!("keys of signed tokens in {path}: {error}"))
}

fn files(path: &Path) -> std::io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // A key may be renamed between the listing and this question.
        if let (false, Ok(meta)) = (hidden, fs::metadata(entry.path())) {
            all.push((entry.path(), meta));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all.into_iter().filter(|(_, meta)| meta.is_file()).collect())
}

fn print(private: &Path, public: &Path) -> std::io::Result<Print> {
    let mut all = Vec::new();
    for (path, meta) in files(private)?.into_iter().chain(files(public)?) {
        let modified = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let at = i64::try_from(modified.as_micros()).unwrap_or(i64::MAX);
        all.push((path.display().to_string(), at, meta.len()));
    }
    Ok(all)
}

fn load(private: &Path, public: &Path) -> Result<Ring> {
    let print = print(private, public).map_err(io(private))?;
    let file = private.join(PRIVATE);
    if fs::metadata(&file).map_err(io(&file))?.permissions().mode() & 0o077 != 0 {
        return Err(Error::bad_request(format!(
            "{}: must not be open to others (chmod 600)",
            file.display()
        )));
    }
    let named =
        |path: &Path, error: &Error| Error::bad_request(format!("{}: {}", path.display(), error.public()));
    let key =
        SigningKey::from_pem(&fs::read_to_string(&file).map_err(io(&file))?).map_err(|e| named(&file, &e))?;
    // What is signed here must be read here, whatever the operator put beside it.
    let mut set = KeySet::from_pem(&key.public_pem())?;
    for (path, _) in files(public).map_err(io(public))? {
        let pem = fs::read_to_string(&path).map_err(io(&path))?;
        set.extend(KeySet::from_pem(&pem).map_err(|e| named(&path, &e))?);
    }
    Ok(Ring { key, set, print })
}

/// Makes the directories, and a key pair where nothing signs yet. Several servers may start at once: one wins.
fn setup(private: &Path, public: &Path) -> Result<()> {
    for path in [private, public] {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io(path))?;
    }
    if private.join(PRIVATE).exists() {
        return Ok(());
    }
    let pem = SigningKey::generate()?;
    let key = SigningKey::from_pem(&pem)?;
    // First what verifies, so that no token is made that others cannot read.
    place(public, &format!("{}.pem", key.kid()), &key.public_pem())?;
    place(private, PRIVATE, &pem)
}

/// Writes a file whole under a name, unless the name is taken.
fn place(directory: &Path, name: &str, text: &str) -> Result<()> {
    let told = io(directory);
    let temporary = directory.join(format!(".{}-{name}", std::process::id()));
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(&told)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    // A hard link fails where the name is taken, and readers never see half a key.
    let linked = written.and_then(|()| fs::hard_link(&temporary, directory.join(name)));
    fs::remove_file(&temporary).map_err(&told)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(told(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Made by Keystone 29.0: `keystone.common.jwt_utils.create_jws_keypair` and `JWSFormatter.create_token`.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAELtHqgMz2y42AroJLeERiO8uyIQGE
8tOwnyWPYTu3F++pi/hBFbvPpoa96yOnZ1RBdo+Pua3c7kf/WI4B1MUygQ==
-----END PUBLIC KEY-----
";
    const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhMzQ0ZTk4YzRkOTA0OTM2YmRiNGQxNTFmYzhhMDU2MCIsImlhdCI6MTc5NTI5NDA4OCwiZXhwIjoxNzk1Mjg0MDAwLCJvcGVuc3RhY2tfbWV0aG9kcyI6WyJwYXNzd29yZCIsInRva2VuIl0sIm9wZW5zdGFja19hdWRpdF9pZHMiOlsid1htRkZaMHVRbmFMZ1l0WURSVVd4dyIsImxDOUVkaERCVEhtV24yQ1BPdnFCbWciXSwib3BlbnN0YWNrX3Byb2plY3RfaWQiOiI3Y2M5Njk0NzBjNTI0MTE5OWQ3MmJhZjM2YjVhNGYxMyIsIm9wZW5zdGFja190cnVzdF9pZCI6IjcwM2M4YzMzYWFmZDRhZDViYzJjMzIwMTEyMjVkZGE3In0.1AzeyKwNLuL6Vl2qoc0Yze4klsri8-FRhWLWi18DbpCuGO8U85v8wQktRUzuudHX1KOZDm8RRtLRtnE7zwr5Yw";
    const NOW: Timestamp = Timestamp::from_secs(1_795_294_088);

    fn scoped(scope: PayloadScope) -> Payload {
        Payload {
            user_id: "a344e98c4d904936bdb4d151fc8a0560".into(),
            methods: vec!["password", "token"],
            scope,
            expires_at: NOW.plus_secs(60),
            audit_ids: vec!["wXmFFZ0uQnaLgYtYDRUWxw".into()],
            application_credential_id: None,
            trust_id: None,
            access_token_id: None,
            federated: None,
            thumbprint: None,
            issued_micros: Some(7),
            generation: Some(3),
        }
    }

    #[test]
    fn a_token_of_keystone_is_read() {
        let place = tempfile::tempdir().unwrap();
        let jws = Jws::open(&Repository::Directory(place.path().join("fernet"))).unwrap();
        assert!(jws.open_token(TOKEN, NOW).is_none(), "its key is not known");
        fs::write(place.path().join("jws-public-keys/keystone.pem"), PUBLIC).unwrap();
        let (payload, issued) = jws.open_token(TOKEN, NOW.plus_secs(11)).unwrap();
        assert_eq!((payload.user_id.as_str(), issued), ("a344e98c4d904936bdb4d151fc8a0560", NOW.as_secs()));
        assert_eq!(payload.scope, PayloadScope::Project("7cc969470c5241199d72baf36b5a4f13".into()));
        assert_eq!(payload.trust_id.as_deref(), Some("703c8c33aafd4ad5bc2c32011225dda7"));
        assert_eq!(
            (payload.methods.as_slice(), payload.audit_ids.len()),
            (["password", "token"].as_slice(), 2)
        );
        assert_eq!((payload.issued_micros, payload.generation), (None, None));
        assert!(jws.open_token(&"ey".repeat(10_000), NOW).is_none());
    }

    #[test]
    fn what_is_signed_is_read_back_and_odd_claims_are_not() {
        let jws = Jws::open(&Repository::Memory).unwrap();
        let by = Federated { idp_id: "i".into(), protocol_id: "p".into(), group_ids: vec!["g".into()] };
        for payload in [
            scoped(PayloadScope::Unscoped),
            scoped(PayloadScope::System),
            scoped(PayloadScope::Domain("default".into())),
            Payload { federated: Some(by), ..scoped(PayloadScope::Project("p".into())) },
            Payload {
                application_credential_id: Some("a".into()),
                ..scoped(PayloadScope::Project("p".into()))
            },
            Payload { access_token_id: Some("a".into()), ..scoped(PayloadScope::Project("p".into())) },
            Payload {
                thumbprint: Some("t".into()),
                methods: vec![payload::BY_CERTIFICATE],
                ..scoped(PayloadScope::Project("p".into()))
            },
        ] {
            let token = jws.seal(&payload, NOW).unwrap();
            assert_eq!(jws.open_token(&token, NOW), Some((payload, NOW.as_secs())));
        }
        let good = claims(&scoped(PayloadScope::Project("p".into())), NOW);
        assert!(payload_of(good.as_object().unwrap()).is_some());
        for (name, value) in [
            ("openstack_thumbprint", json!(1)),
            ("openstack_thumbprint", json!("")),
            ("openstack_access_token_id", json!(1)),
            ("openstack_system", json!("all")),
            ("openstack_domain_id", json!("d")),
            ("openstack_project_id", json!(1)),
            ("openstack_methods", json!(["unheard"])),
            ("openstack_audit_ids", json!([])),
            ("openstack_audit_ids", json!(["short"])),
            ("openstack_idp_id", json!("only")),
            ("exp", json!("soon")),
            ("sub", Value::Null),
            ("allod_generation", json!(-1)),
            ("allod_issued_micros", json!(1_000_000)),
        ] {
            let mut claims = good.as_object().unwrap().clone();
            claims.insert(name.into(), value.clone());
            assert!(payload_of(&claims).is_none(), "{name} {value}");
        }
    }
}
