//! A key pair of an iteration, as OpenSSH writes it.

use anyhow::{Result, anyhow};
use base::Entropy;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::signature::{Ed25519KeyPair, KeyPair};

/// An ed25519 key pair.
pub struct Key {
    /// A line for `authorized_keys`.
    pub public: String,
    /// The file of the private key.
    pub private: String,
}

fn push(out: &mut Vec<u8>, part: &[u8]) {
    out.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(part);
}

impl Key {
    /// A new one.
    pub fn generate(entropy: &Entropy, comment: &str) -> Result<Key> {
        const KIND: &[u8] = b"ssh-ed25519";
        let mut seed = [0; 32];
        entropy.fill(&mut seed);
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|e| anyhow!("no key pair: {e}"))?;
        let public = pair.public_key().as_ref();
        let mut blob = Vec::new();
        push(&mut blob, KIND);
        push(&mut blob, public);
        let mut secret = Vec::new();
        // Twice the same number: how a reader sees that it deciphered well.
        let check = entropy.u64().to_be_bytes();
        secret.extend([&check[..4], &check[..4]].concat());
        push(&mut secret, KIND);
        push(&mut secret, public);
        push(&mut secret, &[seed.as_slice(), public].concat());
        push(&mut secret, comment.as_bytes());
        secret.extend((1u8..=8).take((8 - secret.len() % 8) % 8));
        let mut file = b"openssh-key-v1\0".to_vec();
        for part in [b"none".as_slice(), b"none", b""] {
            push(&mut file, part);
        }
        file.extend(1u32.to_be_bytes());
        push(&mut file, &blob);
        push(&mut file, &secret);
        let mut private = String::from("-----BEGIN OPENSSH PRIVATE KEY-----\n");
        for line in BASE64_STANDARD.encode(file).as_bytes().chunks(70) {
            private.push_str(&String::from_utf8_lossy(line));
            private.push('\n');
        }
        private.push_str("-----END OPENSSH PRIVATE KEY-----\n");
        Ok(Key { public: format!("ssh-ed25519 {} {comment}", BASE64_STANDARD.encode(blob)), private })
    }
}
