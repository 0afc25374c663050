//! An Ed25519 key that signs.

use base::{Entropy, Error, Result};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls_pemfile::Item;

use crate::sshsig::PublicKey;
use crate::wire::{Reader, push};

/// PKCS#8 of an Ed25519 key, up to its 32 bytes.
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const OPENSSH: (&str, &str) = ("-----BEGIN OPENSSH PRIVATE KEY-----", "-----END OPENSSH PRIVATE KEY-----");

/// A private key; shown by its public half only.
pub struct SigningKey(Ed25519KeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.did())
    }
}

impl SigningKey {
    /// A new key as a PEM file (PKCS#8), for [`SigningKey::read`].
    pub fn generate(entropy: &Entropy) -> String {
        let mut seed = [0; 32];
        entropy.fill(&mut seed);
        let text = BASE64_STANDARD.encode([PKCS8.as_slice(), &seed].concat());
        format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
    }

    /// Reads a key file: PKCS#8 in PEM, or OpenSSH's own form without a passphrase.
    ///
    /// # Errors
    /// `BadRequest` that says what is wrong with the file, and nothing of what is in it.
    pub fn read(text: &str) -> Result<Self> {
        if let Some((_, body)) = text.split_once(OPENSSH.0) {
            let body = body.split(OPENSSH.1).next().unwrap_or_default();
            let seed = openssh(body)?;
            let pair = Ed25519KeyPair::from_seed_unchecked(&seed);
            return pair.map(SigningKey).map_err(|_| Error::bad_request("not an Ed25519 key"));
        }
        match rustls_pemfile::read_one_from_slice(text.as_bytes()) {
            Ok(Some((Item::Pkcs8Key(der), _))) => {
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
                    .map(SigningKey)
                    .map_err(|_| Error::bad_request("not the PEM of an Ed25519 key"))
            }
            _ => Err(Error::bad_request("neither an OpenSSH private key nor a PKCS#8 key in PEM")),
        }
    }

    /// The 32 bytes of the public half.
    pub fn public(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().unwrap_or_default()
    }

    /// The public half as SSH has it: `ssh-ed25519 AAAA…`.
    pub fn ssh(&self) -> String {
        format!("ssh-ed25519 {}", BASE64_STANDARD.encode(self.blob()))
    }

    /// The public half as SSH encodes it.
    pub(crate) fn blob(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        push(&mut blob, b"ssh-ed25519");
        push(&mut blob, &self.public());
        blob
    }

    /// The public half, to verify with.
    pub fn verifying(&self) -> PublicKey {
        PublicKey::of_blob(self.blob())
    }

    /// The public half as a DID (`did:key`), which needs nobody to resolve it.
    pub fn did(&self) -> String {
        crate::credential::did(&self.public())
    }

    /// The public half as a JWK.
    pub fn jwk(&self) -> serde_json::Value {
        let x = BASE64_URL_SAFE_NO_PAD.encode(self.public());
        serde_json::json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "x": x})
    }

    /// Signs bytes as they are.
    pub(crate) fn raw(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }
}

/// The seed in an `OPENSSH PRIVATE KEY`.
fn openssh(body: &str) -> Result<[u8; 32]> {
    let odd = || Error::bad_request("not an OpenSSH private key");
    let text: String = body.split_whitespace().collect();
    let bytes = BASE64_STANDARD.decode(text).map_err(|_| odd())?;
    let mut file = Reader(bytes.strip_prefix(b"openssh-key-v1\0").ok_or_else(odd)?);
    let cipher = file.text().ok_or_else(odd)?;
    if cipher != "none" {
        return Err(Error::bad_request("the key is behind a passphrase: a credential wants one without"));
    }
    let (_kdf, _options) = (file.string().ok_or_else(odd)?, file.string().ok_or_else(odd)?);
    if file.u32() != Some(1) {
        return Err(odd());
    }
    let _public = file.string().ok_or_else(odd)?;
    let mut secret = Reader(file.string().ok_or_else(odd)?);
    if secret.u32().ok_or_else(odd)? != secret.u32().ok_or_else(odd)? {
        return Err(odd());
    }
    if secret.text() != Some("ssh-ed25519") {
        return Err(Error::bad_request("not an Ed25519 key (ssh-keygen -t ed25519 makes one)"));
    }
    let public = secret.string().ok_or_else(odd)?;
    let private = secret.string().ok_or_else(odd)?;
    match private.split_at_checked(32) {
        Some((seed, half)) if half == public => seed.try_into().map_err(|_| odd()),
        _ => Err(odd()),
    }
}
