//! Signed tokens: JSON Web Signatures in their compact form, and the key sets that verify them.
//!
//! The cryptography is ring's, which TLS brings along; what is here is the envelope: three parts, a header that may only
//! choose among the asymmetric algorithms its key is for, and claims that are checked one by one. A claim of the wrong
//! type is a refusal, never "not there".

use std::collections::BTreeMap;

use base::{Error, Result, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// Longest token looked at.
pub const LONGEST: usize = 16 * 1024;
/// Most keys of a set.
const MOST_KEYS: usize = 100;
/// Seconds by which the clocks of an issuer and ours may differ (for `nbf` and `iat`; an end is an end).
const LEEWAY: i64 = 60;

/// The DER before the point of a public key on P-256.
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Claims of a token.
pub type Claims = Map<String, Value>;

#[derive(Debug, Clone)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Key {
    kid: Option<String>,
    alg: Option<String>,
    material: Material,
}

/// Public keys of an issuer.
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<Key>);

/// What a token must say.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    /// Who made it.
    pub issuer: &'a str,
    /// For whom it is: one of these is in `aud`, or is the client it was made for (`azp`, `client_id`).
    pub audiences: &'a [String],
    /// The present moment.
    pub now: Timestamp,
}

fn refused(why: &'static str) -> Error {
    Error::unauthenticated(why)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

fn member(map: &Map<String, Value>, name: &str) -> Option<String> {
    map.get(name).and_then(Value::as_str).map(str::to_owned)
}

/// An uncompressed point.
fn point(map: &Map<String, Value>, size: usize) -> Option<Vec<u8>> {
    let (x, y) = (decode(map.get("x")?.as_str()?)?, decode(map.get("y")?.as_str()?)?);
    (x.len() == size && y.len() == size).then(|| [vec![4], x, y].concat())
}

fn read_key(value: &Value) -> Option<Key> {
    let map = value.as_object()?;
    if map.get("use").is_some_and(|u| u != "sig") {
        return None;
    }
    let bytes = |name: &str| decode(map.get(name)?.as_str()?);
    let material = match (map.get("kty")?.as_str()?, map.get("crv").and_then(Value::as_str)) {
        ("RSA", _) => Material::Rsa { n: bytes("n")?, e: bytes("e")? },
        ("EC", Some("P-256")) => Material::P256(point(map, 32)?),
        ("EC", Some("P-384")) => Material::P384(point(map, 48)?),
        ("OKP", Some("Ed25519")) => Material::Ed25519(bytes("x")?),
        _ => return None,
    };
    Some(Key { kid: member(map, "kid"), alg: member(map, "alg"), material })
}

impl Key {
    /// Whether the signature is this key's, under an algorithm the key is for.
    fn verifies(&self, alg: &str, message: &[u8], sig: &[u8]) -> bool {
        if self.alg.as_deref().is_some_and(|own| own != alg) {
            return false;
        }
        let unparsed = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, sig).is_ok()
        };
        match (&self.material, alg) {
            (Material::Rsa { n, e }, _) => {
                let algorithm = match alg {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(algorithm, message, sig).is_ok()
            }
            (Material::P256(key), "ES256") => unparsed(&signature::ECDSA_P256_SHA256_FIXED, key),
            (Material::P384(key), "ES384") => unparsed(&signature::ECDSA_P384_SHA384_FIXED, key),
            (Material::Ed25519(key), "EdDSA" | "Ed25519") => unparsed(&signature::ED25519, key),
            _ => false,
        }
    }
}

/// The three parts of a token, none of them believed.
struct Parts<'a> {
    alg: String,
    kid: Option<String>,
    signed: &'a str,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

fn parts(token: &str) -> Result<Parts<'_>> {
    let malformed = || refused("it is no signed token");
    if token.len() > LONGEST {
        return Err(malformed());
    }
    let (signed, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
    let (header, claims) = signed.split_once('.').ok_or_else(malformed)?;
    let header = decode(header).ok_or_else(malformed)?;
    let header: Map<String, Value> = serde_json::from_slice(&header).map_err(|_| malformed())?;
    if header.contains_key("crit") {
        return Err(refused("its header has extensions that are not understood"));
    }
    Ok(Parts {
        alg: member(&header, "alg").ok_or_else(malformed)?,
        kid: member(&header, "kid"),
        signed,
        claims: decode(claims).ok_or_else(malformed)?,
        signature: decode(signature).ok_or_else(malformed)?,
    })
}

/// The id of the key a token says it is signed with; nothing of it is believed.
///
/// # Errors
/// `Unauthenticated` for what is no signed token.
pub fn key_id(token: &str) -> Result<Option<String>> {
    parts(token).map(|p| p.kid)
}

impl KeySet {
    /// Reads a JSON Web Key Set. Keys of kinds that are not understood, or not for signatures, are left out.
    ///
    /// # Errors
    /// `BadRequest` where it is no set, or holds no key that can be used.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |what: &str| Error::bad_request(format!("the key set {what}"));
        let set: Value = serde_json::from_slice(bytes).map_err(|_| bad("is not JSON"))?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or_else(|| bad("has no 'keys'"))?;
        let keys: Vec<Key> = keys.iter().take(MOST_KEYS).filter_map(read_key).collect();
        if keys.is_empty() { Err(bad("has no key that can be used")) } else { Ok(KeySet(keys)) }
    }

    /// A set of one public key on P-256, in PEM, as `keystone-manage create_jws_keypair` writes it.
    ///
    /// # Errors
    /// `BadRequest` where it is none.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let bad = || Error::bad_request("not the PEM of a public key on P-256");
        let key = match rustls_pemfile::read_one_from_slice(pem.as_bytes()) {
            Ok(Some((rustls_pemfile::Item::SubjectPublicKeyInfo(der), _))) => {
                der.as_ref().strip_prefix(&SPKI_P256).ok_or_else(bad)?.to_vec()
            }
            _ => return Err(bad()),
        };
        Ok(KeySet(vec![Key { kid: None, alg: Some("ES256".into()), material: Material::P256(key) }]))
    }

    /// Adds the keys of another set.
    pub fn extend(&mut self, other: KeySet) {
        self.0.extend(other.0);
    }

    /// Whether a key of this id is there; of no id: whether any key is.
    pub fn knows(&self, kid: Option<&str>) -> bool {
        match kid {
            None => !self.0.is_empty(),
            Some(kid) => self.0.iter().any(|k| k.kid.as_deref() == Some(kid)),
        }
    }

    /// The claims of a token whose signature is by a key of the set; nothing else is checked.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub fn signed(&self, token: &str) -> Result<Claims> {
        let Parts { alg, kid, signed, claims, signature } = parts(token)?;
        let candidates = self.0.iter().filter(|k| kid.is_none() || k.kid.is_none() || k.kid == kid);
        if !candidates.take(MOST_KEYS).any(|k| k.verifies(&alg, signed.as_bytes(), &signature)) {
            return Err(refused("its signature is by no key of the issuer"));
        }
        serde_json::from_slice(&claims).map_err(|_| refused("its claims are no JSON object"))
    }

    /// The claims of a token that is what is expected.
    ///
    /// # Errors
    /// `Unauthenticated`, with the reason for the log.
    pub fn verify(&self, token: &str, expected: &Expected<'_>) -> Result<Claims> {
        let claims = self.signed(token)?;
        let now = expected.now.as_secs();
        if claims.get("iss").and_then(Value::as_str) != Some(expected.issuer) {
            return Err(refused("it is of another issuer"));
        }
        if seconds(&claims, "exp")?.is_none_or(|end| end <= now) {
            return Err(refused("it has ended, or has no end"));
        }
        if seconds(&claims, "nbf")?.is_some_and(|start| start > now + LEEWAY) {
            return Err(refused("it is not valid yet"));
        }
        if seconds(&claims, "iat")?.is_some_and(|at| at > now + LEEWAY) {
            return Err(refused("it was made in the future"));
        }
        if !audiences(&claims)?.iter().any(|a| expected.audiences.contains(a)) {
            return Err(refused("it is for somebody else"));
        }
        if claims.contains_key("cnf") {
            return Err(refused("it is bound to a key, of which nothing was proved"));
        }
        Ok(claims)
    }
}

/// A moment in whole seconds.
///
/// # Errors
/// `Unauthenticated` where it is there and no number.
pub fn seconds(claims: &Claims, name: &str) -> Result<Option<i64>> {
    match claims.get(name) {
        None => Ok(None),
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
        Some(value) => match (value.as_i64(), value.as_f64()) {
            (Some(n), _) => Ok(Some(n)),
            (None, Some(f)) if f.is_finite() && f.abs() < 9e15 => Ok(Some(f as i64)),
            _ => Err(refused("one of its moments is no number")),
        },
    }
}

fn audiences(claims: &Claims) -> Result<Vec<String>> {
    let odd = || refused("its audience is no text");
    let mut all = Vec::new();
    match claims.get("aud") {
        None => {}
        Some(Value::String(one)) => all.push(one.clone()),
        Some(Value::Array(items)) => {
            for item in items {
                all.push(item.as_str().map(str::to_owned).ok_or_else(odd)?);
            }
        }
        Some(_) => return Err(odd()),
    }
    for name in ["azp", "client_id"] {
        if let Some(value) = claims.get(name) {
            all.push(value.as_str().map(str::to_owned).ok_or_else(odd)?);
        }
    }
    Ok(all)
}

/// A private key on P-256 (ES256).
pub struct SigningKey {
    pair: EcdsaKeyPair,
    kid: String,
    random: SystemRandom,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.kid)
    }
}

impl SigningKey {
    /// A new key, in PEM (PKCS#8).
    ///
    /// # Errors
    /// `Internal` where the system gives no randomness.
    pub fn generate() -> Result<String> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| Error::internal("no key could be made"))?;
        Ok(pem("PRIVATE KEY", document.as_ref()))
    }

    /// Reads a key in PEM (PKCS#8).
    ///
    /// # Errors
    /// `BadRequest` where it is none on P-256.
    pub fn from_pem(text: &str) -> Result<Self> {
        let bad = || Error::bad_request("not the PEM of a private key on P-256");
        let der = match rustls_pemfile::read_one_from_slice(text.as_bytes()) {
            Ok(Some((rustls_pemfile::Item::Pkcs8Key(der), _))) => der,
            _ => return Err(bad()),
        };
        let random = SystemRandom::new();
        let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der(), &random).map_err(|_| bad())?;
        let (x, y) = coordinates(pair.public_key().as_ref());
        // RFC 7638: the members in this order, without space.
        let thumb = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let kid = URL_SAFE_NO_PAD.encode(Sha256::digest(thumb.as_bytes()));
        Ok(SigningKey { pair, kid, random })
    }

    /// The key's id: its thumbprint.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public half as a member of a key set.
    pub fn public(&self) -> Value {
        let (x, y) = coordinates(self.pair.public_key().as_ref());
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid, "x": x, "y": y})
    }

    /// The public half in PEM, as Keystone's key repository keeps it.
    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &[&SPKI_P256, self.pair.public_key().as_ref()].concat())
    }

    /// Signs claims. `kind`: the header's `typ`.
    ///
    /// # Errors
    /// `Internal` where the system gives no randomness.
    pub fn sign(&self, kind: &str, claims: &Value) -> Result<String> {
        let header = json!({"alg": "ES256", "typ": kind, "kid": self.kid});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.pair.sign(&self.random, signed.as_bytes());
        let signature = signature.map_err(|_| Error::internal("a token could not be signed"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }
}

fn coordinates(point: &[u8]) -> (String, String) {
    let half = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
    (half(1..33), half(33..65))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// The key set of some keys.
pub fn key_set<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> Value {
    let all: BTreeMap<&str, Value> = keys.into_iter().map(|k| (k.kid(), k.public())).collect();
    json!({"keys": all.into_values().collect::<Vec<_>>()})
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_secs(1_767_225_600);

    fn key() -> SigningKey {
        SigningKey::from_pem(&SigningKey::generate().unwrap()).unwrap()
    }

    fn good() -> Value {
        json!({"iss": "https://i", "aud": ["x", "us"], "exp": NOW.as_secs() + 10, "iat": NOW.as_secs(), "sub": "s"})
    }

    fn check(keys: &KeySet, token: &str) -> Result<Claims> {
        keys.verify(token, &Expected { issuer: "https://i", audiences: &["us".to_owned()], now: NOW })
    }

    #[test]
    fn only_what_is_wholly_right_is_believed() {
        let (own, other) = (key(), key());
        let set = KeySet::parse(key_set([&own]).to_string().as_bytes()).unwrap();
        let changed = |name: &str, value: Value| {
            let mut claims = good();
            claims.as_object_mut().unwrap().insert(name.into(), value);
            own.sign("JWT", &claims).unwrap()
        };
        let without = |name: &str| {
            let mut claims = good();
            claims.as_object_mut().unwrap().remove(name);
            own.sign("JWT", &claims).unwrap()
        };
        let token = own.sign("JWT", &good()).unwrap();
        assert_eq!(check(&set, &token).unwrap().get("sub"), Some(&json!("s")));
        assert!(check(&set, &changed("aud", json!("us"))).is_ok());
        assert!(check(&set, &changed("azp", json!("other"))).is_ok());
        let mut by_client = good();
        by_client
            .as_object_mut()
            .unwrap()
            .extend([("aud".into(), json!("account")), ("azp".into(), json!("us"))]);
        assert!(check(&set, &own.sign("JWT", &by_client).unwrap()).is_ok());
        let now = NOW.as_secs();
        let mut forged: Vec<String> =
            vec![other.sign("JWT", &good()).unwrap(), without("exp"), without("iss"), without("aud")];
        for (name, value) in [
            ("iss", json!("https://i/")),
            ("iss", json!(["https://i"])),
            ("exp", json!(now)),
            ("exp", json!((now + 100).to_string())),
            ("exp", json!(null)),
            ("nbf", json!(now + 61)),
            ("nbf", json!("0")),
            ("iat", json!(now + 61)),
            ("aud", json!("them")),
            ("aud", json!([])),
            ("aud", json!({"us": true})),
            ("aud", json!(["us", 1])),
            ("azp", json!(1)),
            ("cnf", json!({"jkt": "x"})),
        ] {
            forged.push(changed(name, value));
        }
        // A header that chooses no algorithm, or a secret one with the public key as its secret.
        let (_, rest) = token.split_once('.').unwrap();
        for header in
            [r#"{"alg":"none"}"#, r#"{"alg":"HS256"}"#, r#"{"alg":"ES384"}"#, r#"{"alg":"RS256"}"#, r#"{}"#]
        {
            forged.push(format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header)));
        }
        let crit = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","crit":["b64"],"b64":false}"#);
        forged.push(format!("{crit}.{rest}"));
        let (signed, _) = token.rsplit_once('.').unwrap();
        forged.extend([
            format!("{signed}."),
            signed.to_owned(),
            String::new(),
            "a.b.c".into(),
            format!("{token}A"),
        ]);
        for token in forged {
            let error = check(&set, &token).unwrap_err();
            assert_eq!(error.kind(), base::Kind::Unauthenticated, "{token}");
        }
    }

    /// RFC 7515, appendix A.2 (RS256) and A.3 (ES256).
    #[test]
    fn examples_of_the_standard_verify() {
        let rsa = r#"{"keys":[{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}]}"#;
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        let claims = KeySet::parse(rsa.as_bytes()).unwrap().signed(token).unwrap();
        assert_eq!(claims.get("iss"), Some(&json!("joe")));
        let ec = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
        let token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        assert!(KeySet::parse(ec.as_bytes()).unwrap().signed(token).is_ok());
        assert!(KeySet::parse(rsa.as_bytes()).unwrap().signed(token).is_err());
        // The thumbprint of RFC 7638's own example is of an RSA key; ours is the same procedure for P-256.
        assert!(KeySet::parse(br#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#).is_err());
    }

    #[test]
    fn keys_of_keystone_are_read() {
        let key = key();
        let set = KeySet::from_pem(&key.public_pem()).unwrap();
        assert!(set.signed(&key.sign("JWT", &json!({"a": 1})).unwrap()).is_ok());
        assert!(KeySet::from_pem("nonsense").is_err());
        assert!(SigningKey::from_pem(&key.public_pem()).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(token in "[A-Za-z0-9._=-]{0,80}") {
            let set = KeySet::parse(key_set([&key()]).to_string().as_bytes()).unwrap();
            prop_assert!(check(&set, &token).is_err());
        }
    }
}
