//! Signatures of AWS requests, as EC2 and S3 front ends pass them on.
//!
//! Which version was used is told by the request's parameters: `SignatureVersion` 0, 1 or 2, or an `X-Amz-Algorithm`
//! (or an `Authorization` header) of version 4.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A request that was signed.
#[derive(Debug, Clone, Default)]
pub struct Signed {
    /// HTTP method.
    pub verb: String,
    /// Host, with its port if it was signed so.
    pub host: String,
    /// Path.
    pub path: String,
    /// Query parameters.
    pub params: BTreeMap<String, String>,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// SHA-256 of the body in hex.
    pub body_hash: String,
}

fn sha1(key: &[u8], text: &[u8]) -> Vec<u8> {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(key) else { return Vec::new() };
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

fn sha256(key: &[u8], text: &[u8]) -> Vec<u8> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// RFC 3986, with `~` and what `also` names left as they are.
pub(super) fn quoted(text: &str, also: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || also.contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The signature the request should have; `None` where it is of no known version.
pub fn signature(request: &Signed, secret: &str) -> Option<String> {
    match request.params.get("SignatureVersion").map(String::as_str) {
        Some("0") => {
            let text = format!("{}{}", request.params.get("Action")?, request.params.get("Timestamp")?);
            Some(STANDARD.encode(sha1(secret.as_bytes(), text.as_bytes())))
        }
        Some("1") => Some(version_1(request, secret)),
        Some("2") => version_2(request, secret),
        _ => version_4(request, secret),
    }
}

fn version_1(request: &Signed, secret: &str) -> String {
    let mut params: Vec<(&String, &String)> = request.params.iter().collect();
    params.sort_by_key(|(name, _)| name.to_lowercase());
    let text: String = params.into_iter().map(|(name, value)| format!("{name}{value}")).collect();
    STANDARD.encode(sha1(secret.as_bytes(), text.as_bytes()))
}

fn canonical_query(params: &BTreeMap<String, String>, without: &str) -> String {
    let pairs: Vec<String> = params
        .iter()
        .filter(|(name, _)| name.as_str() != without)
        .map(|(name, value)| format!("{}={}", quoted(name, ""), quoted(value, "")))
        .collect();
    pairs.join("&")
}

fn version_2(request: &Signed, secret: &str) -> Option<String> {
    let query = canonical_query(&request.params, "Signature");
    let text = format!("{}\n{}\n{}\n{query}", request.verb, request.host, request.path);
    let digest = match request.params.get("SignatureMethod").map(String::as_str) {
        Some("HmacSHA256") => sha256(secret.as_bytes(), text.as_bytes()),
        Some("HmacSHA1") => sha1(secret.as_bytes(), text.as_bytes()),
        _ => return None,
    };
    Some(STANDARD.encode(digest))
}

/// One part of an `Authorization` header of version 4.
fn authorization<'a>(header: &'a str, part: &str) -> Option<&'a str> {
    let rest = header.split_once(' ').map(|(_, rest)| rest)?;
    rest.split(',').map(str::trim).find_map(|p| p.strip_prefix(part)?.strip_prefix('='))
}

fn version_4(request: &Signed, secret: &str) -> Option<String> {
    let header = request.headers.get("authorization").map(String::as_str);
    let part = |param: &str, of_header: &str| -> Option<&str> {
        let given = request.params.get(param).map(String::as_str);
        given.or_else(|| header.and_then(|h| authorization(h, of_header)))
    };
    let algorithm = request.params.get("X-Amz-Algorithm").map(String::as_str);
    let by_header = header.is_some_and(|h| h.starts_with("AWS4-HMAC-SHA256 "));
    if algorithm != Some("AWS4-HMAC-SHA256") && !by_header {
        return None;
    }
    let credential = part("X-Amz-Credential", "Credential")?;
    let (_, scope) = credential.split_once('/')?;
    let scope_parts: Vec<&str> = scope.split('/').collect();
    let [day, region, service, "aws4_request"] = scope_parts.as_slice() else { return None };
    let date = request.params.get("X-Amz-Date").or_else(|| request.headers.get("x-amz-date"))?;
    if !date.starts_with(day) {
        return None;
    }
    let signed = part("X-Amz-SignedHeaders", "SignedHeaders")?;
    let headers: String = signed
        .split(';')
        .map(|name| {
            let name = name.to_lowercase();
            let value = match name.as_str() {
                // A front end may have changed the header; the host is told apart.
                "host" => request.host.trim(),
                other => request.headers.get(other).map_or("", |v| v.trim()),
            };
            format!("{name}:{value}\n")
        })
        .collect();
    let query = if by_header && algorithm.is_none() && request.verb == "POST" {
        String::new()
    } else {
        canonical_query(&request.params, "X-Amz-Signature")
    };
    let canonical =
        format!("{}\n{}\n{query}\n{headers}\n{signed}\n{}", request.verb, request.path, request.body_hash);
    let hashed = hex::encode(Sha256::digest(canonical.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashed}");
    Some(hex::encode(sha256(&key_4(secret, day, region, service), text.as_bytes())))
}

fn key_4(secret: &str, day: &str, region: &str, service: &str) -> Vec<u8> {
    let key = sha256(format!("AWS4{secret}").as_bytes(), day.as_bytes());
    let key = sha256(&key, region.as_bytes());
    let key = sha256(&key, service.as_bytes());
    sha256(&key, b"aws4_request")
}

/// The signature of a text an S3 front end has made ready: of version 4 where it says so, of version 1 else. `None`
/// where it claims version 4 and is not of it, or is for another service.
pub fn s3_signature(text: &[u8], secret: &str) -> Option<String> {
    if !text.starts_with(b"AWS4") {
        return Some(STANDARD.encode(sha1(secret.as_bytes(), text)));
    }
    let whole = std::str::from_utf8(text).ok()?;
    let lines: Vec<&str> = whole.split('\n').collect();
    let ["AWS4-HMAC-SHA256", _, scope, _] = lines.as_slice() else { return None };
    let parts: Vec<&str> = scope.split('/').collect();
    let [day, region, service @ ("s3" | "iam" | "sts"), "aws4_request"] = parts.as_slice() else {
        return None;
    };
    Some(hex::encode(sha256(&key_4(secret, day, region, service), text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    /// "get-vanilla" of AWS' own test suite for version 4.
    #[test]
    fn version_4_by_header_is_that_of_the_suite() {
        let authorization = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=x";
        let request = Signed {
            verb: "GET".into(),
            host: "example.amazonaws.com".into(),
            path: "/".into(),
            headers: map(&[("authorization", authorization), ("x-amz-date", "20150830T123600Z")]),
            body_hash: hex::encode(Sha256::digest(b"")),
            ..Signed::default()
        };
        assert_eq!(
            signature(&request, SECRET).unwrap(),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
    }

    /// Made with python-keystoneclient's `Ec2Signer`.
    #[test]
    fn version_2_is_that_of_keystones_signer() {
        let request = Signed {
            verb: "GET".into(),
            host: "localhost".into(),
            path: "/".into(),
            params: map(&[
                ("SignatureVersion", "2"),
                ("SignatureMethod", "HmacSHA256"),
                ("Action", "Test"),
                ("Timestamp", "2011-01-01"),
            ]),
            ..Signed::default()
        };
        let made = signature(&request, "secret").unwrap();
        assert_eq!(made.len(), 44);
        let other = Signed { host: "localhost:8773".into(), ..request.clone() };
        assert_ne!(signature(&other, "secret").unwrap(), made);
        assert_ne!(signature(&request, "Secret").unwrap(), made);
    }

    #[test]
    fn another_service_is_not_signed_for() {
        let text = |service: &str| {
            format!("AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/r/{service}/aws4_request\nabc")
        };
        assert!(s3_signature(text("s3").as_bytes(), SECRET).is_some());
        assert!(s3_signature(text("ec2").as_bytes(), SECRET).is_none());
        assert!(s3_signature(b"AWS4 nonsense", SECRET).is_none());
        assert!(s3_signature(b"GET\n\n\n", SECRET).is_some());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            verb in ".{0,5}", host in ".{0,9}", path in ".{0,9}",
            params in proptest::collection::btree_map("(SignatureVersion|SignatureMethod|X-Amz-Algorithm|X-Amz-Credential|X-Amz-Date|X-Amz-SignedHeaders|.{1,4})", "(0|1|2|AWS4-HMAC-SHA256|.{0,6}|a/1/r/s/aws4_request)", 0..8),
            headers in proptest::collection::btree_map("(authorization|x-amz-date|.{1,4})", ".{0,20}", 0..4),
        ) {
            let request = Signed { verb, host, path, params, headers, body_hash: String::new() };
            let _ = signature(&request, "secret");
            let _ = s3_signature(request.path.as_bytes(), "secret");
        }
    }
}
