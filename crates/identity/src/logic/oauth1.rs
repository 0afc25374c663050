//! Signatures of OAuth 1.0a (RFC 5849): reading the `Authorization` header, and what was signed.
//!
//! HMAC with SHA-1 (what `oauthlib` and keystoneauth use), SHA-256 and SHA-512. `PLAINTEXT` is not taken: it sends the
//! secrets themselves; nor is RSA, for which consumers would need keys.

use ::api::query::decode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::Hmac;
use sha1::Sha1;
use sha2::{Sha256, Sha512};

use super::ec2::quoted;

/// Longest header looked at.
const LONGEST: usize = 4096;

/// A request that says it is signed.
#[derive(Debug, Clone, Default)]
pub struct Signed {
    /// HTTP method.
    pub method: String,
    /// The URLs, without query, by which the client may have known the place: as configured, and as the request has it.
    pub urls: Vec<String>,
    /// Parameters of the header, decoded; `realm` is none.
    pub params: Vec<(String, String)>,
    /// Parameters of the query, decoded.
    pub query: Vec<(String, String)>,
}

/// The parameters of an `Authorization: OAuth …`; `None` where it is no such header or says something twice.
pub fn parameters(header: &str) -> Option<Vec<(String, String)>> {
    let (scheme, rest) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("oauth") || header.len() > LONGEST {
        return None;
    }
    let mut params: Vec<(String, String)> = Vec::new();
    for part in rest.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (name, value) = part.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let (name, value) = (decode(name.trim(), false)?, decode(value, false)?);
        if params.iter().any(|(known, _)| *known == name) {
            return None;
        }
        if name != "realm" {
            params.push((name, value));
        }
    }
    Some(params)
}

/// RFC 5849, 3.4.1.2: scheme and host in lower case, without the scheme's own port.
fn plain_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
    let port = if scheme == "https" { ":443" } else { ":80" };
    format!("{scheme}://{}{path}", host.strip_suffix(port).unwrap_or(&host))
}

fn fits<M: hmac::Mac + hmac::digest::KeyInit>(key: &str, text: &str, signature: &[u8]) -> bool {
    // HMAC takes keys of any length, and compares in constant time.
    <M as hmac::Mac>::new_from_slice(key.as_bytes()).is_ok_and(|mut mac| {
        mac.update(text.as_bytes());
        mac.verify_slice(signature).is_ok()
    })
}

impl Signed {
    /// A parameter of the header that is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// Seconds of its timestamp.
    pub fn timestamp(&self) -> Option<i64> {
        let text = self.get("oauth_timestamp").filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?;
        text.parse().ok()
    }

    /// What is signed (3.4.1.1), as the client had the place at `url`.
    fn base(&self, url: &str, with_query: bool) -> String {
        let of_query = self.query.iter().filter(|_| with_query);
        let signed = self.params.iter().filter(|(name, _)| name != "oauth_signature").chain(of_query);
        let mut pairs: Vec<(String, String)> = signed.map(|(n, v)| (quoted(n, ""), quoted(v, ""))).collect();
        pairs.sort_unstable();
        let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let method = self.method.to_ascii_uppercase();
        format!("{method}&{}&{}", quoted(&plain_url(url), ""), quoted(&pairs.join("&"), ""))
    }

    /// Whether it was signed with these secrets (`token`: empty where there is no token yet).
    pub fn verifies(&self, client: &str, token: &str) -> bool {
        let check = match self.get("oauth_signature_method") {
            Some("HMAC-SHA1") => fits::<Hmac<Sha1>>,
            Some("HMAC-SHA256") => fits::<Hmac<Sha256>>,
            Some("HMAC-SHA512") => fits::<Hmac<Sha512>>,
            _ => return false,
        };
        let given = self.get("oauth_signature").and_then(|text| STANDARD.decode(text).ok());
        let (Some(given), None | Some("1.0")) = (given, self.get("oauth_version")) else { return false };
        let key = format!("{}&{}", quoted(client, ""), quoted(token, ""));
        // keystoneauth signs the place of tokens without the `nocatalog` it may add to it.
        let forms = if self.query.is_empty() { &[true][..] } else { &[true, false] };
        self.urls.iter().any(|url| forms.iter().any(|query| check(&key, &self.base(url, *query), &given)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn signed(method: &str, url: &str, header: &str, query: &[(&str, &str)]) -> Signed {
        Signed {
            method: method.into(),
            urls: vec![url.into()],
            params: parameters(header).unwrap(),
            query: query.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        }
    }

    /// OAuth Core 1.0a, appendix A.5.
    #[test]
    fn the_example_of_the_standard_verifies() {
        let header = "OAuth realm=\"http://photos.example.net/\", oauth_consumer_key=\"dpf43f3p2l4k3l03\", oauth_token=\"nnch734d00sl2jdk\", oauth_signature_method=\"HMAC-SHA1\", oauth_signature=\"tR3%2BTy81lMeYAr%2FFid0kMTYa%2FWM%3D\", oauth_timestamp=\"1191242096\", oauth_nonce=\"kllo9940pd9333jh\", oauth_version=\"1.0\"";
        let query = [("file", "vacation.jpg"), ("size", "original")];
        let request = signed("GET", "http://Photos.example.net:80/photos", header, &query);
        assert!(request.verifies("kd94hf93k423kf44", "pfkkdhi9sl3r4s00"));
        assert!(!request.verifies("kd94hf93k423kf44", "pfkkdhi9sl3r4s01"));
        assert!(!request.verifies("kd94hf93k423kf45", "pfkkdhi9sl3r4s00"));
        assert_eq!(request.timestamp(), Some(1_191_242_096));
        for (from, to) in [("nonce=\"k", "nonce=\"l"), ("HMAC-SHA1", "PLAINTEXT"), ("\"1.0\"", "\"2.0\"")] {
            let other = signed("GET", "http://photos.example.net/photos", &header.replace(from, to), &query);
            assert!(!other.verifies("kd94hf93k423kf44", "pfkkdhi9sl3r4s00"), "{to}");
        }
        let other = signed("POST", "http://photos.example.net/photos", header, &query);
        assert!(!other.verifies("kd94hf93k423kf44", "pfkkdhi9sl3r4s00"));
        let other = signed("GET", "https://photos.example.net/photos", header, &query);
        assert!(!other.verifies("kd94hf93k423kf44", "pfkkdhi9sl3r4s00"));
    }

    /// Made by oauthlib 3.3, which is what Keystone verifies with: escapes, a query, three methods.
    #[test]
    fn signatures_of_oauthlib_verify() {
        for (method, signature) in [
            ("HMAC-SHA1", "Ldf5o6WlZGNwKM2TpzWDFsHvywE%3D"),
            ("HMAC-SHA256", "7r10hRwjN2vo%2BMghwqjVvfxhZDKC0rtbveE%2B9GRvtFI%3D"),
            (
                "HMAC-SHA512",
                "luOqZUo87p4gJnRsfpJEdEeuquhQqRZtFu2nvs6KhC6dCIZ%2Bi2LXFHnyevOM0EnWqX4zM9jJrYM1jKh2IWzDpg%3D%3D",
            ),
        ] {
            let header = format!(
                "OAuth oauth_nonce=\"n-1\", oauth_timestamp=\"1795294088\", oauth_version=\"1.0\", oauth_signature_method=\"{method}\", oauth_consumer_key=\"0123456789abcdef0123456789abcdef\", oauth_token=\"aa\", oauth_verifier=\"aB3%20%2B%2F~%C3%A9\", oauth_signature=\"{signature}\""
            );
            let url = "https://cloud.test:8443/identity/v3/auth/tokens";
            let request = signed("POST", url, &header, &[("a", "b c"), ("nocatalog", "")]);
            assert!(request.verifies("fedcba98", "bb"), "{method}");
            assert!(!request.verifies("fedcba98", ""), "{method}");
            assert_eq!(request.get("oauth_verifier"), Some("aB3 +/~é"));
        }
    }

    #[test]
    fn what_is_no_header_is_none() {
        for text in ["", "Basic YTpi", "OAuth a", "OAuth a=\"1\", a=\"2\"", "OAuth a=\"%zz\""] {
            assert!(parameters(text).is_none(), "{text}");
        }
        let long = format!("OAuth a=\"{}\"", "x".repeat(LONGEST));
        assert!(parameters(&long).is_none());
        assert_eq!(parameters("oauth realm=\"r\",a=b").unwrap(), [("a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn urls_are_made_plain() {
        assert_eq!(plain_url("HTTPS://Cloud.Test:443/a/B"), "https://cloud.test/a/B");
        assert_eq!(plain_url("https://cloud.test:8443"), "https://cloud.test:8443/");
    }
}
