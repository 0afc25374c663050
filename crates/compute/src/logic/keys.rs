//! SSH keys: reading public ones (RFC 4253, section 6.6), making ed25519 pairs (OpenSSH's PROTOCOL.key).

use base::{Entropy, Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

fn colons(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

const KINDS: &[&str] = &[
    "ssh-rsa",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-dss",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// MD5 fingerprint of an OpenSSH public key line.
///
/// # Errors
/// `BadRequest` where it is none.
pub fn ssh_fingerprint(line: &str) -> Result<String> {
    let bad = |why: &str| Error::bad_request(format!("Keypair data is invalid: {why}"));
    let mut parts = line.split_whitespace();
    let kind = parts.next().unwrap_or("");
    if !KINDS.contains(&kind) {
        return Err(bad("failed to generate fingerprint: it does not begin with a known key type"));
    }
    if line.trim().lines().count() != 1 {
        return Err(bad("it must be one line"));
    }
    let blob = parts.next().and_then(|b| STANDARD.decode(b).ok());
    let blob = blob.ok_or_else(|| bad("failed to generate fingerprint: the key is not base64"))?;
    let inner = blob.get(..4).and_then(|n| n.try_into().ok()).map(u32::from_be_bytes);
    let inner = inner.and_then(|n| blob.get(4..4 + usize::try_from(n).ok()?));
    if inner != Some(kind.as_bytes()) || blob.len() < 4 + kind.len() + 8 {
        return Err(bad("failed to generate fingerprint: the key is not of the type it says"));
    }
    Ok(colons(&Md5::digest(&blob)))
}

/// SHA-1 fingerprint of a PEM certificate.
///
/// # Errors
/// `BadRequest` where it is none.
pub fn x509_fingerprint(pem: &str) -> Result<String> {
    let bad = || Error::bad_request("Keypair data is invalid: failed to generate X509 fingerprint.");
    let body = pem.split_once("-----BEGIN CERTIFICATE-----").ok_or_else(bad)?.1;
    let body = body.split_once("-----END CERTIFICATE-----").ok_or_else(bad)?.0;
    let compact: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let der = STANDARD.decode(compact).map_err(|_| bad())?;
    // A certificate is a DER SEQUENCE.
    if der.first() != Some(&0x30) || der.len() < 64 {
        return Err(bad());
    }
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &der);
    Ok(colons(digest.as_ref()).to_uppercase())
}

fn string(into: &mut Vec<u8>, bytes: &[u8]) {
    into.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
    into.extend_from_slice(bytes);
}

/// A fresh ed25519 pair: private key file and public key line.
///
/// # Errors
/// `Internal` where the library refuses.
pub fn generate(entropy: &Entropy, comment: &str) -> Result<(String, String)> {
    let mut seed = [0; 32];
    entropy.fill(&mut seed);
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|e| Error::internal(e.to_string()))?;
    let public = pair.public_key().as_ref();
    let mut blob = Vec::new();
    string(&mut blob, b"ssh-ed25519");
    string(&mut blob, public);
    let mut check = [0; 4];
    entropy.fill(&mut check);
    let mut secret = Vec::new();
    secret.extend_from_slice(&check);
    secret.extend_from_slice(&check);
    secret.extend_from_slice(&blob);
    let mut both = seed.to_vec();
    both.extend_from_slice(public);
    string(&mut secret, &both);
    string(&mut secret, comment.as_bytes());
    let mut pad = 1;
    while secret.len() % 8 != 0 {
        secret.push(pad);
        pad += 1;
    }
    let mut file = b"openssh-key-v1\0".to_vec();
    string(&mut file, b"none");
    string(&mut file, b"none");
    string(&mut file, b"");
    file.extend_from_slice(&1u32.to_be_bytes());
    string(&mut file, &blob);
    string(&mut file, &secret);
    let text = STANDARD.encode(file);
    let mut pem = String::from("-----BEGIN OPENSSH PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(70) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END OPENSSH PRIVATE KEY-----\n");
    Ok((pem, format!("ssh-ed25519 {} {comment}", STANDARD.encode(blob))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_pair_is_read_again() {
        let (private, public) = generate(&Entropy::seeded(1), "Generated-by-Nova").unwrap();
        assert!(private.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
        assert_eq!(ssh_fingerprint(&public).unwrap().len(), 47);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for bad in [
            "",
            "ssh-rsa",
            "ssh-rsa !!!",
            "ssh-rsa AAAA",
            "hello world",
            "ssh-ed25519 AAAAB3NzaC1yc2EAAAADAQAB",
        ] {
            assert!(ssh_fingerprint(bad).is_err(), "{bad}");
        }
        assert!(x509_fingerprint("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----").is_err());
    }
}
