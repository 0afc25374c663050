//! What is inside a Fernet token: Keystone's versioned msgpack tuples.
//!
//! `keystone/token/token_formatters.py`: the first element is the version, ids that are UUIDs travel as
//! `[true, 16 bytes]` and others as `[false, text]`, `expires_at` as seconds in a double, audit ids as 16 bytes, methods
//! as a bit set. Allod appends two integers that Python ignores: the microseconds of the moment of issue (the Fernet
//! header has whole seconds only) and the user's token generation (see `model::User::token_generation`), so that a
//! revocation needs no comparison of clocks.

use std::fmt;

use base::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeSeq as _, Serializer};
use uuid::Uuid;

/// Names of authentication methods by bit, in the order of Keystone's `[auth] methods`; what is not on by default there
/// comes last.
const METHODS: [&str; 8] =
    ["external", "password", "token", "oauth1", "mapped", "application_credential", "ec2credential", "totp"];
/// The method of tokens that are bound to a client certificate. Keystone's `[auth] methods` has no such method and so no bit
/// for it: the version of the payload says it.
pub const BY_CERTIFICATE: &str = "oauth2_credential";

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PayloadScope {
    /// Nothing but who the user is.
    Unscoped,
    /// A domain's id.
    Domain(String),
    /// A project's id.
    Project(String),
    /// The whole cloud.
    System,
}

/// That a token came through an identity provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Federated {
    /// The identity provider.
    pub idp_id: String,
    /// The name of the protocol.
    pub protocol_id: String,
    /// The groups that were claimed. Here they are told to others: what a token of ours gives is in the tables.
    pub group_ids: Vec<String>,
}

/// The content of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The user.
    pub user_id: String,
    /// Authentication methods, in Keystone's order.
    pub methods: Vec<&'static str>,
    /// What it is for.
    pub scope: PayloadScope,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Its own audit id, then that of the first token of the chain if it was made from another token.
    pub audit_ids: Vec<String>,
    /// The application credential it was got with.
    pub application_credential_id: Option<String>,
    /// The trust it was got by; its user is the trustee, also where the trustee impersonates.
    pub trust_id: Option<String>,
    /// The OAuth 1.0a access token it was got with.
    pub access_token_id: Option<String>,
    /// The identity provider it came through.
    pub federated: Option<Federated>,
    /// The thumbprint of the client certificate it is bound to, see `logic::certificate`.
    pub thumbprint: Option<String>,
    /// Microseconds (0..1,000,000) of the moment of issue; `None` in tokens of a Python Keystone.
    pub issued_micros: Option<u32>,
    /// The user's token generation; `None` in tokens of a Python Keystone.
    pub generation: Option<u64>,
}

/// The static name of a method, if Keystone has it.
pub fn method(name: &str) -> Option<&'static str> {
    METHODS.iter().chain([&BY_CERTIFICATE]).find(|m| **m == name).copied()
}

/// The methods in Keystone's order, each once.
pub fn ordered(methods: &[&'static str]) -> Vec<&'static str> {
    METHODS.iter().chain([&BY_CERTIFICATE]).filter(|m| methods.contains(m)).copied().collect()
}

/// Packs a payload; `None` only where an audit id is not the text of 16 bytes, or a trust's id that of a UUID, or where
/// the form has no place for what limits the token.
pub fn pack(payload: &Payload) -> Option<Vec<u8>> {
    let mut items = Vec::with_capacity(9);
    let federated = payload.federated.as_ref();
    let federated = federated.filter(|_| {
        payload.application_credential_id.is_none()
            && payload.trust_id.is_none()
            && payload.access_token_id.is_none()
    });
    let version = match (&payload.scope, &payload.application_credential_id) {
        _ if payload.thumbprint.is_some() => 10,
        (PayloadScope::Project(_), None)
            if payload.access_token_id.is_some() && payload.trust_id.is_none() =>
        {
            7
        }
        (PayloadScope::Project(_), None) if payload.trust_id.is_some() => 3,
        (PayloadScope::Project(_), Some(_)) => 9,
        (PayloadScope::Unscoped, _) if federated.is_some() => 4,
        (PayloadScope::Project(_), None) if federated.is_some() => 5,
        (PayloadScope::Domain(_), _) if federated.is_some() => 6,
        (PayloadScope::Unscoped, _) => 0,
        (PayloadScope::Domain(_), _) => 1,
        (PayloadScope::Project(_), None) => 2,
        (PayloadScope::System, _) => 8,
    };
    if payload.access_token_id.is_some() && version != 7 {
        return None;
    }
    let limited = payload.application_credential_id.is_some() || payload.trust_id.is_some();
    if version == 10 && (limited || federated.is_some() || payload.scope == PayloadScope::System) {
        return None;
    }
    items.push(Part::Int(version));
    items.push(id_part(&payload.user_id));
    let bits =
        METHODS.iter().enumerate().filter(|(_, m)| payload.methods.contains(m)).map(|(i, _)| 1i64 << i).sum();
    items.push(Part::Int(bits));
    match &payload.scope {
        // Project and domain, always both.
        scope if version == 10 => {
            let of = |id: Option<&String>| id.map_or(id_less(), |id| id_part(id));
            let project = if let PayloadScope::Project(id) = scope { Some(id) } else { None };
            let domain = if let PayloadScope::Domain(id) = scope { Some(id) } else { None };
            items.extend([of(project), of(domain)]);
        }
        PayloadScope::Unscoped => {}
        PayloadScope::Domain(id) if version == 6 => items.push(id_part(id)),
        PayloadScope::Domain(id) => items.push(match hex_uuid(id) {
            Some(bytes) => Part::Bytes(bytes),
            None => Part::Text(id.clone()),
        }),
        PayloadScope::Project(id) => items.push(id_part(id)),
        PayloadScope::System => items.push(Part::Text("all".into())),
    }
    if let (4..=6, Some(by)) = (version, federated) {
        items.push(Part::Many(by.group_ids.iter().map(|g| id_part(g)).collect()));
        items.push(id_part(&by.idp_id));
        items.push(Part::Text(by.protocol_id.clone()));
    }
    if let Some(id) = &payload.access_token_id {
        items.push(id_part(id));
    }
    #[expect(clippy::cast_precision_loss, reason = "microseconds of our age need 51 bits")]
    items.push(Part::Float(payload.expires_at.0 as f64 / 1e6));
    let audit_ids: Option<Vec<Part>> =
        payload.audit_ids.iter().map(|a| URL_SAFE_NO_PAD.decode(a).ok().map(Part::Bytes)).collect();
    items.push(Part::Many(audit_ids?));
    if let (9, Some(id)) = (version, &payload.application_credential_id) {
        items.push(id_part(id));
    }
    if let (3, Some(id)) = (version, &payload.trust_id) {
        items.push(Part::Bytes(hex_uuid(id)?));
    }
    if let Some(thumbprint) = &payload.thumbprint {
        items.push(Part::Many(vec![Part::Bool(false), Part::Text(thumbprint.clone())]));
    }
    if let (Some(micros), Some(generation)) = (payload.issued_micros, payload.generation) {
        items.push(Part::Int(i64::from(micros)));
        items.push(Part::Int(i64::try_from(generation).ok()?));
    }
    rmp_serde::to_vec(&Part::Many(items)).ok()
}

/// Reads a payload; `None` for what Keystone would not recognise.
pub fn unpack(bytes: &[u8]) -> Option<Payload> {
    let mut reader = bytes;
    let whole = Part::deserialize(&mut rmp_serde::Deserializer::new(&mut reader)).ok()?;
    if !reader.is_empty() {
        return None;
    }
    let Part::Many(items) = whole else { return None };
    let mut items = items.into_iter();
    let version = items.next()?.int()?;
    let user_id = items.next()?.id()?;
    let bits = items.next()?.int()?;
    let mut methods: Vec<&'static str> =
        METHODS.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, m)| *m).collect();
    if version == 10 {
        methods.push(BY_CERTIFICATE);
    }
    let scope = match version {
        0 | 4 => PayloadScope::Unscoped,
        1 => PayloadScope::Domain(items.next()?.domain()?),
        6 => PayloadScope::Domain(items.next()?.id()?),
        2 | 3 | 5 | 7 | 9 => PayloadScope::Project(items.next()?.id()?),
        8 => {
            if items.next()?.text()? != "all" {
                return None;
            }
            PayloadScope::System
        }
        10 => match (items.next()?.id_or_none()?, items.next()?.id_or_none()?) {
            (None, None) => PayloadScope::Unscoped,
            (Some(project), None) => PayloadScope::Project(project),
            (None, Some(domain)) => PayloadScope::Domain(domain),
            (Some(_), Some(_)) => return None,
        },
        _ => return None,
    };
    let federated = if (4..=6).contains(&version) {
        let Part::Many(groups) = items.next()? else { return None };
        let group_ids: Option<Vec<String>> = groups.into_iter().map(Part::id).collect();
        let (group_ids, idp_id) = (group_ids?, items.next()?.id()?);
        Some(Federated { idp_id, protocol_id: items.next()?.text()?, group_ids })
    } else {
        None
    };
    let access_token_id = if version == 7 { Some(items.next()?.id()?) } else { None };
    let expires_at = items.next()?.moment()?;
    let Part::Many(audit_ids) = items.next()? else { return None };
    let audit_ids: Option<Vec<String>> = audit_ids.into_iter().map(Part::audit_id).collect();
    let audit_ids = audit_ids.filter(|a| (1..=2).contains(&a.len()))?;
    let application_credential_id = if version == 9 { Some(items.next()?.id()?) } else { None };
    let trust_id = if version == 3 { Some(items.next()?.uuid()?) } else { None };
    // An empty one is what no certificate has; it must not pass for none.
    let thumbprint = if version == 10 { Some(items.next()?.id().filter(|t| !t.is_empty())?) } else { None };
    let issued_micros = match items.next() {
        None => None,
        Some(part) => Some(part.int().and_then(|n| u32::try_from(n).ok()).filter(|n| *n < 1_000_000)?),
    };
    let generation = match items.next() {
        None => None,
        Some(part) => Some(part.int().and_then(|n| u64::try_from(n).ok())?),
    };
    Some(Payload {
        user_id,
        methods,
        scope,
        expires_at,
        audit_ids,
        application_credential_id,
        trust_id,
        access_token_id,
        federated,
        thumbprint,
        issued_micros,
        generation,
    })
}

/// A value of msgpack as far as tokens use it.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Vec<u8>),
    Text(String),
    Many(Vec<Part>),
}

fn hex_uuid(id: &str) -> Option<Vec<u8>> {
    // Only the 32 lower-case digits come back as they went in.
    let canonical = id.len() == 32 && !id.bytes().any(|b| b.is_ascii_uppercase());
    if canonical { Uuid::try_parse(id).ok().map(|u| u.as_bytes().to_vec()) } else { None }
}

fn id_part(id: &str) -> Part {
    match hex_uuid(id) {
        Some(bytes) => Part::Many(vec![Part::Bool(true), Part::Bytes(bytes)]),
        None => Part::Many(vec![Part::Bool(false), Part::Text(id.to_owned())]),
    }
}

/// Where an id could be and is none.
fn id_less() -> Part {
    Part::Many(vec![Part::Bool(false), Part::Nil])
}

impl Part {
    fn int(self) -> Option<i64> {
        if let Part::Int(n) = self { Some(n) } else { None }
    }

    fn text(self) -> Option<String> {
        match self {
            Part::Text(text) => Some(text),
            Part::Bytes(bytes) => String::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    fn uuid_hex(bytes: &[u8]) -> Option<String> {
        Uuid::from_slice(bytes).ok().map(|u| u.simple().to_string())
    }

    /// As [`Part::id`], or `[false, nil]`.
    fn id_or_none(self) -> Option<Option<String>> {
        if self == id_less() { Some(None) } else { self.id().map(Some) }
    }

    /// `[is_bytes, value]`.
    fn id(self) -> Option<String> {
        let Part::Many(pair) = self else { return None };
        match <[Part; 2]>::try_from(pair).ok()? {
            [Part::Bool(true), Part::Bytes(bytes)] => Part::uuid_hex(&bytes),
            [Part::Bool(false), value] => value.text(),
            _ => None,
        }
    }

    fn uuid(self) -> Option<String> {
        if let Part::Bytes(bytes) = self { Part::uuid_hex(&bytes) } else { None }
    }

    fn domain(self) -> Option<String> {
        match self {
            Part::Bytes(bytes) if bytes.len() == 16 => Part::uuid_hex(&bytes),
            other => other.text(),
        }
    }

    fn moment(self) -> Option<Timestamp> {
        match self {
            Part::Int(n) => n.checked_mul(1_000_000).map(Timestamp),
            #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
            Part::Float(f) if f.is_finite() && f.abs() < 9e12 => Some(Timestamp((f * 1e6).round() as i64)),
            _ => None,
        }
    }

    fn audit_id(self) -> Option<String> {
        if let Part::Bytes(bytes) = self { Some(URL_SAFE_NO_PAD.encode(bytes)) } else { None }
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Part::Nil => serializer.serialize_unit(),
            Part::Bool(b) => serializer.serialize_bool(*b),
            Part::Int(n) => serializer.serialize_i64(*n),
            Part::Float(f) => serializer.serialize_f64(*f),
            Part::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Part::Text(text) => serializer.serialize_str(text),
            Part::Many(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Part;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a part of a token")
            }
            fn visit_unit<E>(self) -> Result<Part, E> {
                Ok(Part::Nil)
            }
            fn visit_bool<E>(self, b: bool) -> Result<Part, E> {
                Ok(Part::Bool(b))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Part, E> {
                Ok(Part::Int(n))
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Part, E> {
                i64::try_from(n).map(Part::Int).map_err(E::custom)
            }
            fn visit_f64<E>(self, f: f64) -> Result<Part, E> {
                Ok(Part::Float(f))
            }
            fn visit_str<E>(self, text: &str) -> Result<Part, E> {
                Ok(Part::Text(text.to_owned()))
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Part, E> {
                Ok(Part::Bytes(bytes.to_vec()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Part, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Part::Many(items))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn audit_id(seed: u8) -> String {
        URL_SAFE_NO_PAD.encode([seed; 16])
    }

    /// What the tokens below have in common: of a user, for a project, and nothing else.
    fn of_python() -> Payload {
        Payload {
            user_id: "11".repeat(16),
            methods: vec!["password"],
            scope: PayloadScope::Project("22".repeat(16)),
            expires_at: Timestamp::from_secs(1_795_253_084),
            audit_ids: vec![audit_id(7)],
            application_credential_id: None,
            trust_id: None,
            access_token_id: None,
            federated: None,
            thumbprint: None,
            issued_micros: None,
            generation: None,
        }
    }

    /// `msgpack.packb((2, (True, b"\x11" * 16), 2, (True, b"\x22" * 16), 1795253084.0, [b"\x07" * 16]))` by Python's
    /// msgpack 1.1, which is what Keystone 30 packs.
    #[test]
    fn the_bytes_are_those_of_python() {
        let payload = of_python();
        let expected = hex::decode(concat!(
            "960292c3c410111111111111111111111111111111110292c3c41022222222222222222222222222222222",
            "cb41dac058d700000091c41007070707070707070707070707070707"
        ))
        .unwrap();
        assert_eq!(pack(&payload).unwrap(), expected);
        assert_eq!(unpack(&expected).unwrap(), payload);
    }

    /// Keystone 29.1: `TokenFormatter` packing a federated project-scoped token (see conformance/federation.py).
    #[test]
    fn federated_bytes_are_those_of_python() {
        let payload = Payload {
            methods: vec!["token", "mapped"],
            federated: Some(Federated {
                idp_id: "keycloak".into(),
                protocol_id: "openid".into(),
                group_ids: vec!["33".repeat(16)],
            }),
            ..of_python()
        };
        let expected = hex::decode(FEDERATED).unwrap();
        assert_eq!(pack(&payload).unwrap(), expected);
        assert_eq!(unpack(&expected).unwrap(), payload);
    }

    /// `msgpack.packb((10, (True, b"\x11" * 16), 0, (True, b"\x22" * 16), (False, None), 1795253084.0, [b"\x07" * 16],
    /// (False, thumbprint)))` by Python's msgpack, as `Oauth2CredentialsScopedPayload` of Keystone 29 makes it.
    #[test]
    fn bound_bytes_are_those_of_python() {
        let payload = Payload {
            methods: vec![BY_CERTIFICATE],
            thumbprint: Some("JKYwccOyV3_XJzcf-R685sB8mpN0zBt2ggyOLhJhRzw=".into()),
            ..of_python()
        };
        let expected = hex::decode(BOUND).unwrap();
        assert_eq!(pack(&payload).unwrap(), expected);
        assert_eq!(unpack(&expected).unwrap(), payload);
        // What has no form is not packed as something else.
        for wrong in [
            Payload { scope: PayloadScope::System, ..payload.clone() },
            Payload { application_credential_id: Some("a".into()), ..payload.clone() },
            Payload { trust_id: Some("33".repeat(16)), ..payload.clone() },
            Payload { access_token_id: Some("a".into()), ..payload.clone() },
        ] {
            assert_eq!(pack(&wrong), None);
        }
    }

    const BOUND: &str = "980a92c3c410111111111111111111111111111111110092c3c4102222222222222222222222222222222292c2c0cb41dac058d700000091c4100707070707070707070707070707070792c2d92c4a4b597763634f7956335f584a7a63662d523638357342386d704e307a4274326767794f4c684a68527a773d";

    const FEDERATED: &str = "990592c3c410111111111111111111111111111111111492c3c410222222222222222222222222222222229192c3c4103333333333333333333333333333333392c2a86b6579636c6f616ba66f70656e6964cb41dac058d700000091c41007070707070707070707070707070707";

    fn ids() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<u128>().prop_map(|n| Uuid::from_u128(n).simple().to_string()),
            "[a-zA-Z0-9_-]{1,64}",
        ]
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(
            user_id in ids(), scope in 0..4u8, id in ids(), app in proptest::option::of(ids()), trust in any::<Option<u128>>(),
            access in proptest::option::of(ids()),
            by in proptest::option::of((ids(), proptest::collection::vec(ids(), 0..3))),
            bound in proptest::option::of("[a-zA-Z0-9_-]{43}="),
            at in 0..4_000_000_000_000_000i64, micros in 0..1_000_000u32, generation in 0..u64::MAX / 2, two in any::<bool>(),
        ) {
            let scope = match scope {
                0 => PayloadScope::Unscoped,
                1 => PayloadScope::Domain(id),
                2 => PayloadScope::Project(id),
                _ => PayloadScope::System,
            };
            let application_credential_id = app.filter(|_| matches!(scope, PayloadScope::Project(_)));
            let trust_id = trust.map(|n| Uuid::from_u128(n).simple().to_string());
            let trust_id =
                trust_id.filter(|_| matches!(scope, PayloadScope::Project(_)) && application_credential_id.is_none());
            let access_token_id = access.filter(|_| {
                matches!(scope, PayloadScope::Project(_)) && application_credential_id.is_none() && trust_id.is_none()
            });
            let federated = by
                .filter(|_| scope != PayloadScope::System && application_credential_id.is_none() && trust_id.is_none())
                .filter(|_| access_token_id.is_none())
                .map(|(idp_id, group_ids)| Federated { idp_id, protocol_id: "openid".into(), group_ids });
            let audit_ids = if two { vec![audit_id(1), audit_id(2)] } else { vec![audit_id(1)] };
            let free = application_credential_id.is_none() && trust_id.is_none() && access_token_id.is_none();
            let thumbprint = bound.filter(|_| free && federated.is_none() && scope != PayloadScope::System);
            let by = thumbprint.as_ref().map(|_| BY_CERTIFICATE);
            let payload = Payload {
                user_id, methods: ["password", "token"].into_iter().chain(by).collect(), scope, expires_at: Timestamp(at), audit_ids,
                application_credential_id, trust_id, access_token_id, federated, thumbprint, issued_micros: Some(micros), generation: Some(generation),
            };
            prop_assert_eq!(unpack(&pack(&payload).unwrap()), Some(payload));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = unpack(&bytes);
        }

        #[test]
        fn broken_payloads_do_not_make_it_panic(cut in 0..80usize, flip in 0..80usize, with in any::<u8>()) {
            let payload = Payload {
                user_id: "11".repeat(16), methods: vec!["password"], scope: PayloadScope::Domain("default".into()),
                expires_at: Timestamp(1), audit_ids: vec![audit_id(1)], application_credential_id: None, trust_id: None,
                access_token_id: None, federated: None, thumbprint: None, issued_micros: Some(3), generation: Some(4),
            };
            let mut bytes = pack(&payload).unwrap();
            if let Some(byte) = bytes.get_mut(flip) { *byte ^= with; }
            bytes.truncate(cut);
            let _ = unpack(&bytes);
        }
    }
}
