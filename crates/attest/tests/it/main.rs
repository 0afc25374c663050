//! Signatures against the program that everybody else uses: `ssh-keygen`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;
use std::process::{Command, Stdio};

use attest::SigningKey;
use attest::sshsig::{PublicKey, sign, verify};
use base::Entropy;
use proptest::prelude::*;

const MESSAGE: &[u8] = b"subject: a\n---\nsubject: \xc3\xa4\n";

fn keygen(dir: &Path, args: &[&str]) {
    let done = Command::new("ssh-keygen").args(args).current_dir(dir).stdout(Stdio::null()).status().unwrap();
    assert!(done.success(), "{args:?}");
}

/// A key of `ssh-keygen` and its signature of [`MESSAGE`].
fn made(kind: &[&str], hash: &str) -> (PublicKey, String) {
    let (place, name) = (tempfile::tempdir().unwrap(), "key");
    let dir = place.path();
    keygen(dir, &[&["-q", "-N", "", "-f", name, "-t"][..], kind].concat());
    std::fs::write(dir.join("message"), MESSAGE).unwrap();
    let option = format!("hashalg={hash}");
    keygen(dir, &["-q", "-Y", "sign", "-n", "report", "-O", &option, "-f", name, "message"]);
    let signature = std::fs::read_to_string(dir.join("message.sig")).unwrap();
    let public = std::fs::read_to_string(dir.join(format!("{name}.pub"))).unwrap();
    let mut words = public.split_whitespace();
    (PublicKey::parse(words.next().unwrap(), words.next().unwrap()).unwrap(), signature)
}

#[test]
fn what_ssh_keygen_signs_is_verified() {
    let kinds: [&[&str]; 4] =
        [&["ed25519"], &["ecdsa", "-b", "256"], &["ecdsa", "-b", "384"], &["rsa", "-b", "2048"]];
    let mut keys = Vec::new();
    for kind in kinds {
        for hash in ["sha256", "sha512"] {
            let (key, signature) = made(kind, hash);
            assert_eq!(verify([&key], "report", &signature, MESSAGE).unwrap(), &key, "{kind:?}");
            for wrong in [
                verify([&key], "report", &signature, b"other"),
                verify([&key], "file", &signature, MESSAGE),
                verify(&keys, "report", &signature, MESSAGE),
                verify([], "report", &signature, MESSAGE),
                verify([&key], "report", &format!(" {signature}"), MESSAGE),
                verify([&key], "report", &signature.replacen('U', "V", 1), MESSAGE),
            ] {
                assert_eq!(wrong.unwrap_err().kind(), base::Kind::Unauthenticated, "{kind:?}");
            }
            keys.push(key);
        }
    }
    let (key, signature) = made(&["ed25519"], "sha512");
    keys.push(key.clone());
    assert_eq!(verify(&keys, "report", &signature, MESSAGE).unwrap(), &key, "one of several");
}

#[test]
fn what_is_signed_here_ssh_keygen_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::read(&SigningKey::generate(&Entropy::seeded(3))).unwrap();
    let signature = sign(&key, "certificate", MESSAGE);
    assert!(verify([&key.verifying()], "certificate", &signature, MESSAGE).is_ok());
    std::fs::write(dir.path().join("message"), MESSAGE).unwrap();
    std::fs::write(dir.path().join("message.sig"), &signature).unwrap();
    std::fs::write(dir.path().join("signers"), format!("me {}\n", key.ssh())).unwrap();
    let check = ["-Y", "verify", "-f", "signers", "-I", "me", "-n", "certificate", "-s", "message.sig"];
    let verified = Command::new("ssh-keygen")
        .args(check)
        .current_dir(dir.path())
        .stdin(std::fs::File::open(dir.path().join("message")).unwrap())
        .stdout(Stdio::null())
        .status();
    assert!(verified.unwrap().success());
}

#[test]
fn keys_of_openssh_are_read_and_those_behind_passphrases_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    keygen(dir.path(), &["-q", "-t", "ed25519", "-N", "", "-f", "plain", "-C", "some body"]);
    let key = SigningKey::read(&std::fs::read_to_string(dir.path().join("plain")).unwrap()).unwrap();
    let public = std::fs::read_to_string(dir.path().join("plain.pub")).unwrap();
    assert!(public.starts_with(&key.ssh()));
    keygen(dir.path(), &["-q", "-t", "ed25519", "-N", "geheim", "-f", "locked"]);
    keygen(dir.path(), &["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", "rsa"]);
    for (name, why) in [("locked", "passphrase"), ("rsa", "Ed25519"), ("plain.pub", "neither")] {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        let error = SigningKey::read(&text).unwrap_err();
        assert!(error.public().contains(why), "{name}: {}", error.public());
    }
    assert!(PublicKey::parse("ssh-rsa", public.split(' ').nth(1).unwrap()).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        use base64::Engine;
        let key = SigningKey::read(&SigningKey::generate(&Entropy::seeded(3))).unwrap().verifying();
        let blob = [b"SSHSIG\0\0\0\x01".as_slice(), &bytes].concat();
        let text = base64::prelude::BASE64_STANDARD.encode(blob);
        let armored = format!("-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n");
        prop_assert!(verify([&key], "report", &armored, MESSAGE).is_err());
        let text = base64::prelude::BASE64_STANDARD.encode(&bytes);
        prop_assert!(PublicKey::parse("ssh-rsa", &text).is_err());
    }
}
