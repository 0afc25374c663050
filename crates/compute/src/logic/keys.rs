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

/// The length-prefixed fields that make up a key's bytes.
fn fields(mut blob: &[u8]) -> Option<Vec<&[u8]>> {
    let mut fields = Vec::new();
    while !blob.is_empty() {
        let (length, rest) = blob.split_first_chunk::<4>()?;
        let (field, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        fields.push(field);
        blob = rest;
    }
    Some(fields)
}

/// Whether the fields are those of a key of this kind (RFC 4253, RFC 5656, RFC 8709, OpenSSH's PROTOCOL.u2f).
fn whole(kind: &str, fields: &[&[u8]]) -> bool {
    let Some((name, fields)) = fields.split_first() else { return false };
    let point = |curve: &[u8], point: &[u8], kind: &str| {
        let size = match kind {
            "nistp256" => 32,
            "nistp384" => 48,
            _ => 66,
        };
        curve == kind.as_bytes() && point.len() == 1 + 2 * size && point.first() == Some(&4)
    };
    let fits = match (kind, fields) {
        ("ssh-rsa", [e, n]) => !e.is_empty() && n.len() >= 96,
        ("ssh-ed25519", [key]) => key.len() == 32,
        ("sk-ssh-ed25519@openssh.com", [key, application]) => key.len() == 32 && !application.is_empty(),
        ("sk-ecdsa-sha2-nistp256@openssh.com", [curve, key, application]) => {
            point(curve, key, "nistp256") && !application.is_empty()
        }
        ("ssh-dss", [p, q, g, y]) => ![p, q, g, y].iter().any(|n| n.is_empty()),
        (_, [curve, key]) => kind.strip_prefix("ecdsa-sha2-").is_some_and(|name| point(curve, key, name)),
        _ => false,
    };
    *name == kind.as_bytes() && fits
}

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
    if !fields(&blob).is_some_and(|fields| whole(kind, &fields)) {
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
    Ok(colons(digest.as_ref()))
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

    /// Fingerprints are those that `ssh-keygen -l -E md5` and `openssl x509 -fingerprint` tell.
    #[test]
    fn fingerprints_are_those_of_the_tools() {
        for (key, fingerprint) in [
            (
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMumI9fDaffpukN6t9UP+BufN43EwIxeqOU/cng+kOGH root@vm",
                "40:60:87:e9:1c:d8:71:d8:e6:1a:cb:e7:9e:c2:ab:72",
            ),
            (
                "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBJ21GFE+4chppgPE6AwahB0Sc/SxzqhecHsoaFKSsoCxD7iBxl1d4JjJe7tOyeGaj/qjTpTfE+2GSeZLbI5yFEU=",
                "4a:4b:ed:82:d8:c5:53:d5:6b:97:9a:90:aa:08:9b:4c",
            ),
            (
                "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC9wdcQERndd4INPKG8ITW4QLjDKZUDOhjtBFJZzNlky5yK4yEQW/+2IqBrp3pl6j3qN6FaSpUDNtNf86oGpR/0HpkcZhC1AYhvizGP3iWj6ePc9o1MwGEgNfDVxwJg4ylyEqkeNgU/GIaBIU5d/6jmjvG9gnRTCtQFUqcRKnHPIrvxuUa4mbRHdkLjKcWLhglObQmOg/ev8ZMsjoy2uKBqCBfNf711u8OT1cPHDPpR5rbaAxmuFplbfk1iwD32gnOxvFSt/P6OyUOL4bbMU3pPum5hmheBSabX703Jl9MyiZzYpuSbTtwhwsG8xCMj9RWDBzI7Dukg7P+kJjSSv1mT root@vm\n",
                "74:6d:4d:5d:3a:f2:2f:a7:91:40:c2:b2:db:03:f2:d1",
            ),
        ] {
            assert_eq!(ssh_fingerprint(key).unwrap(), fingerprint);
        }
        let pem = "-----BEGIN CERTIFICATE-----
MIIBMjCB5aADAgECAhQvg/zJXLOYghTrw2BG9v2X1XtLbzAFBgMrZXAwDzENMAsG
A1UEAwwEdGVzdDAeFw0yNjExMjExMTM0MTFaFw0zNjExMTgxMTM0MTFaMA8xDTAL
BgNVBAMMBHRlc3QwKjAFBgMrZXADIQCwpMC9m6N1m4fUEVNFLhFHdr5eDOeHZluM
n/NzZYrF9qNTMFEwHQYDVR0OBBYEFFdEoAwkjNyzPm+sJf2gsybNdAI3MB8GA1Ud
IwQYMBaAFFdEoAwkjNyzPm+sJf2gsybNdAI3MA8GA1UdEwEB/wQFMAMBAf8wBQYD
K2VwA0EAHeXT/muIO7XSHdacSh4mZBw5aXYlYSa786n3gBuoZxiDY6xMT2yaWebk
I0WukyoOYRmprKCSURZ68bR1ZJeLAw==
-----END CERTIFICATE-----
";
        assert_eq!(
            x509_fingerprint(pem).unwrap(),
            "a1:9e:6a:19:d0:74:28:eb:3e:21:16:ce:38:90:cb:62:af:1f:74:16"
        );
    }

    #[test]
    fn a_key_has_all_its_fields_and_no_more() {
        let (_, public) = generate(&Entropy::seeded(1), "x").unwrap();
        let blob = STANDARD.decode(public.split(' ').nth(1).unwrap()).unwrap();
        let line = |bytes: &[u8]| format!("ssh-ed25519 {}", STANDARD.encode(bytes));
        assert!(ssh_fingerprint(&line(&blob)).is_ok());
        for length in 0..blob.len() {
            assert!(ssh_fingerprint(&line(&blob[..length])).is_err(), "{length}");
        }
        let mut more = blob;
        more.push(0);
        assert!(ssh_fingerprint(&line(&more)).is_err());
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
