//! SSH signatures of files (OpenSSH's `PROTOCOL.sshsig`): what `ssh-keygen -Y sign` writes, read and written here.

use base::{Error, Result};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use ring::signature as algorithm;
use ring::signature::UnparsedPublicKey;
use sha2::{Digest, Sha256, Sha512};

use crate::SigningKey;
use crate::wire::{Reader, push};

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "\n-----END SSH SIGNATURE-----";
const MAGIC: &[u8] = b"SSHSIG";
/// Larger than any signature of a key that anybody has.
const LARGEST: usize = 16 << 10;

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Of its two parts in a `.pub` file, as `ssh-ed25519` and `AAAA…`.
    ///
    /// # Errors
    /// `BadRequest` where the second is no key of the kind that the first names, or of a kind that cannot be verified.
    pub fn parse(kind: &str, text: &str) -> Result<Self> {
        let blob = BASE64_STANDARD.decode(text).map_err(|_| Error::bad_request("not a key in base64"))?;
        match Reader(&blob).text() {
            Some(found) if found == kind => {}
            Some(found) => return Err(Error::bad_request(format!("a key of type {found}, not {kind}"))),
            None => return Err(Error::bad_request("not an SSH public key")),
        }
        let scheme = Scheme::of(&blob);
        scheme
            .map(|_| ())
            .ok_or_else(|| Error::bad_request(format!("not a {kind} key that can be verified")))?;
        Ok(PublicKey(blob))
    }

    pub(crate) fn of_blob(blob: Vec<u8>) -> Self {
        PublicKey(blob)
    }

    /// Its fingerprint as `ssh-keygen -l` shows it.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(&self.0)))
    }
}

/// What a key's blob says about it.
struct Scheme<'a> {
    kind: Kind,
    /// What ring takes: 32 bytes, a point, or an RSA key's two numbers.
    key: Key<'a>,
    /// Of a FIDO token: for whom it signs.
    application: Option<&'a [u8]>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ed25519,
    P256,
    P384,
    Rsa,
}

enum Key<'a> {
    Bytes(&'a [u8]),
    Rsa { n: &'a [u8], e: &'a [u8] },
}

impl<'a> Scheme<'a> {
    fn of(blob: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(blob);
        let name = reader.text()?;
        let token = name.starts_with("sk-");
        let (kind, key) = match name {
            "ssh-ed25519" | "sk-ssh-ed25519@openssh.com" => {
                let key = reader.string().filter(|k| k.len() == 32)?;
                (Kind::Ed25519, Key::Bytes(key))
            }
            "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "sk-ecdsa-sha2-nistp256@openssh.com" => {
                let kind = match reader.text()? {
                    "nistp256" if name.contains("nistp256") => Kind::P256,
                    "nistp384" if name.contains("nistp384") => Kind::P384,
                    _ => return None,
                };
                (kind, Key::Bytes(reader.string()?))
            }
            "ssh-rsa" => {
                let (e, n) = (unsigned(reader.string()?)?, unsigned(reader.string()?)?);
                (Kind::Rsa, Key::Rsa { n, e })
            }
            _ => return None,
        };
        let application = if token { Some(reader.string()?) } else { None };
        reader.end()?;
        Some(Scheme { kind, key, application })
    }

    fn verifies(&self, name: &str, mut signature: Reader<'_>, message: &[u8]) -> Option<()> {
        let expected = match (self.kind, self.application) {
            (Kind::Ed25519, None) => name == "ssh-ed25519",
            (Kind::Ed25519, Some(_)) => name == "sk-ssh-ed25519@openssh.com",
            (Kind::P256, None) => name == "ecdsa-sha2-nistp256",
            (Kind::P256, Some(_)) => name == "sk-ecdsa-sha2-nistp256@openssh.com",
            (Kind::P384, None) => name == "ecdsa-sha2-nistp384",
            (Kind::P384, Some(_)) => false,
            (Kind::Rsa, _) => name == "rsa-sha2-256" || name == "rsa-sha2-512",
        };
        expected.then_some(())?;
        let bytes = signature.string()?;
        let message = match self.application {
            None => message.to_vec(),
            Some(application) => {
                let (flags, counter) = (signature.take(1)?, signature.take(4)?);
                let parts = [&Sha256::digest(application)[..], flags, counter, &Sha256::digest(message)[..]];
                parts.concat()
            }
        };
        signature.end()?;
        let of = |how: &'static dyn algorithm::VerificationAlgorithm, key: &[u8], bytes: &[u8]| {
            UnparsedPublicKey::new(how, key).verify(&message, bytes).ok()
        };
        match (&self.key, self.kind) {
            (Key::Bytes(key), Kind::Ed25519) => of(&algorithm::ED25519, key, bytes),
            (Key::Bytes(key), Kind::P256) => of(&algorithm::ECDSA_P256_SHA256_FIXED, key, &fixed(bytes, 32)?),
            (Key::Bytes(key), Kind::P384) => of(&algorithm::ECDSA_P384_SHA384_FIXED, key, &fixed(bytes, 48)?),
            (Key::Rsa { n, e }, _) => {
                let how = match name {
                    "rsa-sha2-256" => &algorithm::RSA_PKCS1_2048_8192_SHA256,
                    _ => &algorithm::RSA_PKCS1_2048_8192_SHA512,
                };
                algorithm::RsaPublicKeyComponents { n, e }.verify(how, &message, bytes).ok()
            }
            (Key::Bytes(_), Kind::Rsa) => None,
        }
    }
}

/// A number without the zero that says it is not negative.
fn unsigned(number: &[u8]) -> Option<&[u8]> {
    let rest = number.strip_prefix(&[0]).unwrap_or(number);
    rest.first().is_some_and(|first| *first != 0).then_some(rest)
}

/// An ECDSA signature's two numbers, each of `size` bytes.
fn fixed(bytes: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut reader = Reader(bytes);
    let mut out = Vec::with_capacity(size * 2);
    for _ in 0..2 {
        let number = unsigned(reader.string()?)?;
        out.extend(std::iter::repeat_n(0, size.checked_sub(number.len())?));
        out.extend(number);
    }
    reader.end()?;
    Some(out)
}

/// What is signed of a message.
fn signed(namespace: &str, hash: &str, digest: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for part in [namespace.as_bytes(), b"", hash.as_bytes(), digest] {
        push(&mut out, part);
    }
    out
}

/// Which of `keys` signed `message` under `namespace`.
///
/// # Errors
/// `Unauthenticated`: none of them did, or `armored` is no SSH signature.
pub fn verify<'k>(
    keys: impl IntoIterator<Item = &'k PublicKey>,
    namespace: &str,
    armored: &str,
    message: &[u8],
) -> Result<&'k PublicKey> {
    let refused = |why: &str| Error::unauthenticated(format!("verification failed: {why}"));
    let body = armored.strip_prefix(BEGIN).and_then(|b| b.split_once(END)).map(|(body, _)| body);
    let body = body.filter(|b| b.len() <= LARGEST).ok_or_else(|| refused("not an SSH signature"))?;
    let text: String = body.split_whitespace().collect();
    let blob = BASE64_STANDARD.decode(text).map_err(|_| refused("the signature is not base64"))?;
    let parts = parts(&blob).ok_or_else(|| refused("the signature is broken"))?;
    if parts.namespace != namespace.as_bytes() {
        return Err(refused(&format!("not a signature of the namespace {namespace}")));
    }
    let digest = match parts.hash {
        "sha256" => Sha256::digest(message).to_vec(),
        "sha512" => Sha512::digest(message).to_vec(),
        _ => return Err(refused("the signature's hash is not known")),
    };
    let key = keys.into_iter().find(|k| k.0 == parts.key);
    let key = key.ok_or_else(|| refused("not signed with a key of this account"))?;
    let signed = signed(namespace, parts.hash, &digest);
    let mut signature = Reader(parts.signature);
    let verified = Scheme::of(&key.0)
        .and_then(|scheme| scheme.verifies(signature.text()?, Reader(signature.0), &signed));
    verified.map(|()| key).ok_or_else(|| refused("what was signed is not what was sent"))
}

struct Parts<'a> {
    key: &'a [u8],
    namespace: &'a [u8],
    hash: &'a str,
    signature: &'a [u8],
}

fn parts(blob: &[u8]) -> Option<Parts<'_>> {
    let mut reader = Reader(blob.strip_prefix(MAGIC)?);
    (reader.u32()? == 1).then_some(())?;
    let (key, namespace) = (reader.string()?, reader.string()?);
    let _reserved = reader.string()?;
    let (hash, signature) = (reader.text()?, reader.string()?);
    reader.end()?;
    Some(Parts { key, namespace, hash, signature })
}

/// Signs a message as `ssh-keygen -Y sign` would.
pub fn sign(key: &SigningKey, namespace: &str, message: &[u8]) -> String {
    let digest = Sha512::digest(message);
    let mut signature = Vec::new();
    push(&mut signature, b"ssh-ed25519");
    push(&mut signature, &key.raw(&signed(namespace, "sha512", &digest)));
    let mut blob = MAGIC.to_vec();
    blob.extend(1u32.to_be_bytes());
    for part in [&key.blob()[..], namespace.as_bytes(), b"", b"sha512", &signature] {
        push(&mut blob, part);
    }
    let mut out = String::from(BEGIN);
    for line in BASE64_STANDARD.encode(blob).as_bytes().chunks(70) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(END.trim_start());
    out.push('\n');
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use base::Entropy;

    use super::*;

    /// What a FIDO token does, after OpenSSH's `PROTOCOL.u2f`; there is none at hand.
    #[test]
    fn tokens_sign_for_their_application_and_their_counter() {
        let key = SigningKey::read(&SigningKey::generate(&Entropy::seeded(5))).unwrap();
        let name = "sk-ssh-ed25519@openssh.com";
        let mut blob = Vec::new();
        for part in [name.as_bytes(), &key.public(), b"ssh:"] {
            push(&mut blob, part);
        }
        let public = PublicKey::parse(name, &BASE64_STANDARD.encode(&blob)).unwrap();
        let armored = |application: &[u8], counter: u32| {
            let message = signed("report", "sha512", &Sha512::digest(b"m"));
            let rest = [&[1][..], &7u32.to_be_bytes()].concat();
            let what = [&Sha256::digest(application)[..], &rest, &Sha256::digest(&message)[..]].concat();
            let mut signature = Vec::new();
            push(&mut signature, name.as_bytes());
            push(&mut signature, &key.raw(&what));
            signature.push(1);
            signature.extend(counter.to_be_bytes());
            let mut out = MAGIC.to_vec();
            out.extend(1u32.to_be_bytes());
            for part in [&blob[..], b"report", b"", b"sha512", &signature] {
                push(&mut out, part);
            }
            format!("{BEGIN}{}{END}\n", BASE64_STANDARD.encode(out))
        };
        assert!(verify([&public], "report", &armored(b"ssh:", 7), b"m").is_ok());
        for (application, counter) in [(&b"ssh:other"[..], 7), (b"ssh:", 8)] {
            assert!(verify([&public], "report", &armored(application, counter), b"m").is_err());
        }
        assert!(verify([&key.verifying()], "report", &armored(b"ssh:", 7), b"m").is_err(), "another key");
    }
}
