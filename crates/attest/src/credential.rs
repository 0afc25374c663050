//! Verifiable credentials (W3C, data model 2.0) as JSON Web Tokens (`vc+jwt`), by issuers that are their keys (`did:key`).

use base::{Error, Result};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Map, Value, json};

use crate::SigningKey;

/// First entries of every credential's `@context`: the data model, and a place for terms that have no definition elsewhere.
pub const CONTEXT: [&str; 2] =
    ["https://www.w3.org/ns/credentials/v2", "https://www.w3.org/ns/credentials/undefined-terms/v2"];
/// Marks an Ed25519 key in a `did:key`.
const MULTICODEC: [u8; 2] = [0xed, 0x01];
const BASE58: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// The DID of an Ed25519 key.
pub fn did(public: &[u8; 32]) -> String {
    format!("did:key:z{}", base58([MULTICODEC.as_slice(), public].concat()))
}

/// The key in a `did:key`.
pub fn key_of(did: &str) -> Option<[u8; 32]> {
    let bytes = unbase58(did.strip_prefix("did:key:z")?)?;
    bytes.strip_prefix(&MULTICODEC)?.try_into().ok()
}

/// Signs a credential; issuer and contexts are added.
pub fn sign(key: &SigningKey, mut credential: Map<String, Value>) -> String {
    let did = key.did();
    let name = did.trim_start_matches("did:key:");
    let header = json!({"alg": "EdDSA", "typ": "vc+jwt", "cty": "vc", "kid": format!("{did}#{name}")});
    credential.insert("@context".into(), json!(CONTEXT));
    credential.insert("issuer".into(), json!(did));
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&Value::Object(credential)));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(key.raw(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// Checks the signature of a credential against the key that its issuer is; the credential. Whether the issuer is one to
/// believe, and whether it is still good, is for the caller to say.
///
/// # Errors
/// `Unauthenticated` for whatever is no such credential or not signed by its issuer.
pub fn verify(token: &str) -> Result<Map<String, Value>> {
    let refused = |why: &str| Error::unauthenticated(format!("the credential is refused: {why}"));
    let parts: Vec<&str> = token.trim().split('.').collect();
    let [header, payload, signature] = parts.as_slice() else {
        return Err(refused("it has not three parts"));
    };
    let read = |text: &str| -> Option<Map<String, Value>> {
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok()
    };
    let head = read(header).ok_or_else(|| refused("its header is not JSON"))?;
    let credential = read(payload).ok_or_else(|| refused("it is not JSON"))?;
    if head.get("alg") != Some(&json!("EdDSA")) || head.get("typ") != Some(&json!("vc+jwt")) {
        return Err(refused("its header does not say EdDSA and vc+jwt"));
    }
    let issuer = credential.get("issuer").and_then(Value::as_str).unwrap_or_default();
    let key = key_of(issuer).ok_or_else(|| refused("its issuer is no did:key of Ed25519"))?;
    let kid = head.get("kid").and_then(Value::as_str).unwrap_or_default();
    if kid.split('#').next() != Some(issuer) {
        return Err(refused("its key is not its issuer's"));
    }
    let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).map_err(|_| refused("no signature"))?;
    let signed = format!("{header}.{payload}");
    let valid = UnparsedPublicKey::new(&ED25519, key).verify(signed.as_bytes(), &signature);
    valid.map(|()| credential).map_err(|_| refused("its signature is wrong"))
}

fn base58(mut number: Vec<u8>) -> String {
    let zeros = number.iter().take_while(|b| **b == 0).count();
    let mut digits = Vec::new();
    while number.iter().any(|b| *b != 0) {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest * 256 + u32::from(*byte);
            *byte = u8::try_from(value / 58).unwrap_or(0);
            rest = value % 58;
        }
        digits.push(usize::try_from(rest).unwrap_or(0));
    }
    digits.extend(std::iter::repeat_n(0, zeros));
    digits.iter().rev().filter_map(|d| BASE58.get(*d)).map(|b| char::from(*b)).collect()
}

fn unbase58(text: &str) -> Option<Vec<u8>> {
    // A key has 48 digits; more is not worth the time.
    (text.len() <= 64).then_some(())?;
    let mut bytes: Vec<u8> = Vec::new();
    for c in text.bytes() {
        let mut carry = u32::try_from(BASE58.iter().position(|b| *b == c)?).ok()?;
        for byte in bytes.iter_mut().rev() {
            carry += u32::from(*byte) * 58;
            *byte = u8::try_from(carry & 0xff).ok()?;
            carry >>= 8;
        }
        if carry > 0 {
            bytes.insert(0, u8::try_from(carry).ok()?);
        }
    }
    let zeros = text.bytes().take_while(|b| *b == b'1').count();
    Some([vec![0; zeros], bytes].concat())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use base::Entropy;
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u64) -> SigningKey {
        SigningKey::read(&SigningKey::generate(&Entropy::seeded(seed))).unwrap()
    }

    fn credential() -> Map<String, Value> {
        json!({"type": ["VerifiableCredential"], "credentialSubject": {"name": "c"}})
            .as_object()
            .cloned()
            .unwrap()
    }

    /// The example of the method's specification.
    #[test]
    fn dids_are_those_of_the_specification() {
        let did = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
        let key = key_of(did).unwrap();
        assert_eq!(super::did(&key), did);
        assert_eq!(key_of("did:key:zDnaerx9CtbPJ1q36T5Ln5wYt3MQYeGRG5ehnPAmxcf5mDZpv"), None, "P-256");
    }

    #[test]
    fn what_is_changed_is_not_believed() {
        let token = sign(&key(1), credential());
        assert_eq!(verify(&token).unwrap()["credentialSubject"]["name"], "c");
        let parts: Vec<&str> = token.split('.').collect();
        let other = sign(&key(2), credential());
        let theirs: Vec<&str> = other.split('.').collect();
        for wrong in [
            format!("{}.{}.{}", parts[0], parts[1], theirs[2]),
            format!("{}.{}.{}", parts[0], theirs[1], parts[2]),
            format!("{}.{}.{}", theirs[0], parts[1], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{}", parts[0], parts[1]),
            "..".to_owned(),
            String::new(),
        ] {
            assert!(verify(&wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn base58_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(unbase58(&base58(bytes.clone())), Some(bytes));
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in "\\PC{0,200}") {
            prop_assert!(verify(&text).is_err());
            prop_assert!(SigningKey::read(&text).is_err());
        }
    }
}
