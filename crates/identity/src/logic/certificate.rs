//! What Keystone sees of a client certificate (`keystone/common/utils.py`): its thumbprint, and the names of its subject and
//! issuer as attributes that a mapping reads.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

/// Columns of the base64 in a PEM block (RFC 7468, section 2).
const COLUMNS: usize = 64;

/// What a token bound to this certificate (DER) says of it in `x5t#S256`.
///
/// Keystone and the filter `oauth2_mtls_token` of keystonemiddleware digest the PEM text, line ends included, and keep the
/// padding; RFC 8705 (section 3.1) digests the DER and drops it. Ours is Keystone's: who compares is keystonemiddleware.
pub fn thumbprint(der: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update("-----BEGIN CERTIFICATE-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(COLUMNS) {
        digest.update(line);
        digest.update("\n");
    }
    digest.update("-----END CERTIFICATE-----\n");
    URL_SAFE.encode(digest.finalize())
}

/// `SSL_CLIENT_SUBJECT_DN_CN` and so on: the attributes of subject and issuer, values in the form of RFC 4514 (section 2.4).
///
/// An attribute that is there twice, is empty, or is no text, is left out, so that no rule that asks for it fits: what a
/// mapping made of one of several values could be what the authority never meant to certify, and what is empty would not be
/// compared. `None` where it is no certificate.
pub fn attributes(der: &[u8]) -> Option<BTreeMap<String, String>> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let mut all = BTreeMap::new();
    for (of, name) in [("SUBJECT", certificate.subject()), ("ISSUER", certificate.issuer())] {
        for (key, values) in gathered(name) {
            if let [Some(value)] = values.as_slice() {
                all.insert(format!("SSL_CLIENT_{of}_DN_{key}"), value.clone());
            }
        }
    }
    Some(all)
}

fn gathered(name: &X509Name<'_>) -> BTreeMap<String, Vec<Option<String>>> {
    let mut all: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    for attribute in name.iter_attributes() {
        let value = attribute.as_str().ok().filter(|v| !v.is_empty()).map(escaped);
        all.entry(key(&attribute.attr_type().to_id_string())).or_default().push(value);
    }
    all
}

/// The short names of RFC 4514 (section 3), and the one beside them that Keystone knows.
fn key(oid: &str) -> String {
    let name = match oid {
        "2.5.4.3" => "CN",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "EMAILADDRESS",
        other => other,
    };
    name.to_owned()
}

fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (at, c) in value.chars().enumerate() {
        match c {
            '\0' => out.push_str("\\00"),
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', c]),
            '#' if at == 0 => out.push_str("\\#"),
            ' ' if at == 0 || at == last => out.push_str("\\ "),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    const THUMBPRINTS: [(usize, &str); 4] = [
        (48, "khjGOHGdpRClueaw4USufZ7lIhRcxbAbxVaEX0ZNqec="),
        (96, "aP_aJtyqzh6NNcZa0RrNoECiTxa8x26rvZBUE89nnio="),
        (100, "JKYwccOyV3_XJzcf-R685sB8mpN0zBt2ggyOLhJhRzw="),
        (256, "QUyfPrUD-HFmMDMjgpvcgj8zo5mE_UdSCITnamnCK_M="),
    ];
    const UID: &[u64] = &[0, 9, 2342, 19_200_300, 100, 1, 1];
    const DC: &[u64] = &[0, 9, 2342, 19_200_300, 100, 1, 25];
    const EMAIL: &[u64] = &[1, 2, 840, 113_549, 1, 9, 1];

    fn certificate(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn custom(oid: &[u64]) -> DnType {
        DnType::CustomDnType(oid.to_vec())
    }

    /// `urlsafe_b64encode(sha256(ssl.DER_cert_to_PEM_cert(bytes(range(n))).encode()).digest())` by Python: with whole lines
    /// only, and with a part of one.
    #[test]
    fn the_thumbprint_is_that_of_python() {
        let bytes: Vec<u8> = (0..=255).collect();
        for (length, expected) in THUMBPRINTS {
            assert_eq!(thumbprint(&bytes[..length]), expected, "{length}");
        }
    }

    #[test]
    fn names_are_attributes_with_keystones_keys() {
        let der = certificate(&[
            (DnType::CommonName, "client01"),
            (DnType::OrganizationName, "ACME, \"Inc\" <a+b>; "),
            (DnType::OrganizationalUnitName, "#1\\2=3"),
            (DnType::CountryName, "DE"),
            (DnType::LocalityName, " "),
            (DnType::StateOrProvinceName, "Bürgenland"),
            (custom(UID), "4711"),
            (custom(DC), "default"),
            (custom(EMAIL), "a@example.org"),
            (custom(&[2, 5, 4, 5]), "serial"),
        ]);
        let all = attributes(&der).unwrap();
        for of in ["SUBJECT", "ISSUER"] {
            for (key, value) in [
                ("CN", "client01"),
                ("O", "ACME\\, \\\"Inc\\\" \\<a\\+b\\>\\;\\ "),
                ("OU", "\\#1\\\\2=3"),
                ("C", "DE"),
                ("L", "\\ "),
                ("ST", "Bürgenland"),
                ("UID", "4711"),
                ("DC", "default"),
                ("EMAILADDRESS", "a@example.org"),
                ("2.5.4.5", "serial"),
            ] {
                let found = all.get(&format!("SSL_CLIENT_{of}_DN_{key}")).map(String::as_str);
                assert_eq!(found, Some(value), "{of} {key}");
            }
        }
        assert_eq!(all.len(), 20);
        assert!(attributes(b"").is_none() && attributes(b"no certificate").is_none());
        let mut more = der;
        more.push(0);
        assert!(attributes(&more).is_none(), "something after it");
    }

    /// `openssl req -x509 -subj "/CN=one/CN=two/O=ACME"`.
    const TWICE: &str = "MIIBqzCCAVGgAwIBAgIUZSUzqo/wKTK+HFpkMxFfS5+UppEwCgYIKoZIzj0EAwIwKzEMMAoGA1UEAwwDb25lMQwwCgYDVQQDDAN0d28xDTALBgNVBAoMBEFDTUUwHhcNMjYxMTIyMTA0MzEyWhcNMjYxMTIzMTA0MzEyWjArMQwwCgYDVQQDDANvbmUxDDAKBgNVBAMMA3R3bzENMAsGA1UECgwEQUNNRTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABO+DiO4c2ffoZ2axPiojzGz6FtuCttiAS2WXY7QyF58HHWOAGQDDBKx7cBeBAii0N8XkkYjBbxpp/0cvhEZ0OHmjUzBRMB0GA1UdDgQWBBQq+q4Zcz2dE4GdCQeWm4muSWXolTAfBgNVHSMEGDAWgBQq+q4Zcz2dE4GdCQeWm4muSWXolTAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQCTX0sK3umgvtq5f3Fli+VuX7fn4IwJt6Rd9i8SrPI74gIgBegjRso+wUdd/b8GHl/rA7oEKuRRrC3zTnk+yYux2BQ=";

    #[test]
    fn what_is_there_twice_or_empty_is_not_there() {
        let all = attributes(&STANDARD.decode(TWICE).unwrap()).unwrap();
        let expected = ["SSL_CLIENT_ISSUER_DN_O", "SSL_CLIENT_SUBJECT_DN_O"];
        assert_eq!(all.into_keys().collect::<Vec<_>>(), expected);
        let names = [(DnType::CommonName, ""), (DnType::OrganizationName, "ACME")];
        assert_eq!(attributes(&certificate(&names)).unwrap().into_keys().collect::<Vec<_>>(), expected);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (thumbprint(&bytes), attributes(&bytes));
        }

        #[test]
        fn what_is_escaped_is_one_value(text in ".{0,20}") {
            // Read back as RFC 4514 says: no character that would end the value stands alone.
            let mut back = String::new();
            let quoted = escaped(&text);
            let mut rest = quoted.chars();
            while let Some(c) = rest.next() {
                match c {
                    '\\' => match rest.next() {
                        Some('0') => { prop_assert_eq!(rest.next(), Some('0')); back.push('\0'); }
                        other => back.extend(other),
                    },
                    c => { prop_assert!(!",+;<>\"\0".contains(c)); back.push(c); }
                }
            }
            prop_assert_eq!(back, text);
        }
    }
}
