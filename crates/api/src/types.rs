//! Wire types that check themselves: used in bodies and queries, they make the 400 that names the field.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

use base::net::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use base::MacAddr as Mac;

/// A boolean in any of OpenStack's spellings (oslo.utils `bool_from_string`, strict).
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Some(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Some(false),
        _ => None,
    }
}

macro_rules! inline_schema {
    ($name:expr, $schema:expr) => {
        fn schema_name() -> Cow<'static, str> {
            $name.into()
        }
        fn inline_schema() -> bool {
            true
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            $schema
        }
    };
}

/// Text of `MIN` to `MAX` characters without control characters (line breaks and tabs are allowed).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Text<const MIN: usize, const MAX: usize>(String);

impl<const MIN: usize, const MAX: usize> Text<MIN, MAX> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The text, owned.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl<const MIN: usize, const MAX: usize> Deref for Text<MIN, MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MIN: usize, const MAX: usize> From<Text<MIN, MAX>> for String {
    fn from(text: Text<MIN, MAX>) -> String {
        text.0
    }
}

/// Checks length and characters of `text`.
fn check_text(text: &str, min: usize, max: usize, breaks: bool) -> Result<(), String> {
    // Bytes bound characters from above, so the common short text is not counted.
    let length = if text.len() <= max && text.len() < 4 * min.max(1) || text.len() > max {
        text.chars().count()
    } else {
        text.len().min(max)
    };
    if length < min {
        return Err(if text.is_empty() {
            "may not be empty".into()
        } else {
            format!("has fewer than {min} characters")
        });
    }
    if length > max {
        return Err(format!("has more than {max} characters"));
    }
    let bad = |c: char| c.is_control() && !(breaks && matches!(c, '\n' | '\r' | '\t'));
    if text.chars().any(bad) { Err("contains a control character".into()) } else { Ok(()) }
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Text<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        check_text(&text, MIN, MAX, true).map_err(D::Error::custom)?;
        Ok(Text(text))
    }
}

impl<const MIN: usize, const MAX: usize> JsonSchema for Text<MIN, MAX> {
    inline_schema!("Text", json_schema!({"type": "string", "minLength": MIN, "maxLength": MAX}));
}

/// A name: 1 to 255 characters, not only blanks, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The text, owned.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        check_text(&text, 1, 255, false).map_err(D::Error::custom)?;
        if text.trim().is_empty() { Err(D::Error::custom("is blank")) } else { Ok(Name(text)) }
    }
}

impl JsonSchema for Name {
    inline_schema!("Name", json_schema!({"type": "string", "minLength": 1, "maxLength": 255}));
}

macro_rules! integer {
    ($(#[$doc:meta])* $name:ident, $label:literal, $lax:literal, $schema:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name<const MIN: i64, const MAX: i64>(i64);

        impl<const MIN: i64, const MAX: i64> $name<MIN, MAX> {
            /// The number.
            pub fn get(self) -> i64 {
                self.0
            }
            /// The number as unsigned; below zero (only where `MIN` is) becomes 0.
            pub fn unsigned(self) -> u64 {
                u64::try_from(self.0).unwrap_or(0)
            }
        }

        impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for $name<MIN, MAX> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(IntVisitor { min: MIN, max: MAX, lax: $lax }).map(Self)
            }
        }

        impl<const MIN: i64, const MAX: i64> JsonSchema for $name<MIN, MAX> {
            inline_schema!($label, { let (min, max) = (MIN, MAX); $schema(min, max) });
        }
    };
}

integer! {
    /// A whole number in `MIN..=MAX`.
    Int, "Int", false, |min: i64, max: i64| json_schema!({"type": "integer", "minimum": min, "maximum": max})
}
integer! {
    /// A whole number in `MIN..=MAX`, also as text (`"8"`), as Nova and Cinder take it.
    LaxInt, "LaxInt", true,
    |min: i64, max: i64| json_schema!({"type": ["integer", "string"], "minimum": min, "maximum": max, "pattern": "^-?[0-9]+$"})
}

struct IntVisitor {
    min: i64,
    max: i64,
    lax: bool,
}

impl IntVisitor {
    fn bound<E: serde::de::Error>(&self, n: i64) -> Result<i64, E> {
        if n < self.min {
            Err(E::custom(format!("{n} is less than the minimum of {}", self.min)))
        } else if n > self.max {
            Err(E::custom(format!("{n} is greater than the maximum of {}", self.max)))
        } else {
            Ok(n)
        }
    }
}

impl Visitor<'_> for IntVisitor {
    type Value = i64;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer from {} to {}", self.min, self.max)
    }
    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<i64, E> {
        self.bound(n)
    }
    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<i64, E> {
        match i64::try_from(n) {
            Ok(n) => self.bound(n),
            Err(_) => Err(E::custom(format!("{n} is greater than the maximum of {}", self.max))),
        }
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<i64, E> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        match text.parse::<i64>() {
            Ok(n) if self.lax && plain => self.bound(n),
            Err(_) if self.lax && plain => Err(E::custom(format!("'{text}' is out of range"))),
            _ => Err(E::invalid_type(Unexpected::Str(text), &self)),
        }
    }
}

/// A boolean, also as `"true"`, `"True"`, `"1"`, `1`, `"yes"`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct LaxBool(pub bool);

impl<'de> Deserialize<'de> for LaxBool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = bool;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean")
            }
            fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<bool, E> {
                Ok(b)
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<bool, E> {
                match n {
                    0 => Ok(false),
                    1 => Ok(true),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(n), &self)),
                }
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<bool, E> {
                parse_bool(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(V).map(LaxBool)
    }
}

impl JsonSchema for LaxBool {
    inline_schema!("LaxBool", json_schema!({"type": ["boolean", "string", "integer"]}));
}

macro_rules! parsed {
    ($(#[$doc:meta])* $name:ident($inner:ty), $expecting:literal, $parse:expr, $schema:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl std::str::FromStr for $name {
            type Err = base::Error;
            fn from_str(text: &str) -> Result<Self, base::Error> {
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                parse(text).map($name).map_err(base::Error::bad_request)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct V;
                impl Visitor<'_> for V {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(V)
            }
        }

        impl JsonSchema for $name {
            inline_schema!(stringify!($name), $schema);
        }
    };
}

parsed! {
    /// A UUID, with dashes or without; shown with.
    Uuid(uuid::Uuid), "a UUID",
    |text| uuid::Uuid::try_parse(text).ok().filter(|_| text.len() == 36 || text.len() == 32)
        .ok_or_else(|| format!("'{text}' is not a valid UUID")),
    json_schema!({"type": "string", "format": "uuid"})
}
parsed! {
    /// An IP address.
    Ip(IpAddr), "an IP address",
    |text| text.parse().map_err(|_| format!("'{text}' is not a valid IP address")),
    json_schema!({"type": "string", "oneOf": [{"format": "ipv4"}, {"format": "ipv6"}]})
}
parsed! {
    /// A network as `address/length` without host bits.
    Cidr(IpNet), "a CIDR",
    |text| {
        let net: IpNet = text.parse().map_err(|_| format!("'{text}' is not a valid IP subnet"))?;
        if net.addr() == net.network() {
            Ok(net)
        } else {
            Err(format!("'{text}' isn't a recognized IP subnet cidr, '{}' is recommended", net.trunc()))
        }
    },
    json_schema!({"type": "string", "format": "cidr"})
}
parsed! {
    /// A network as `address/length`, host bits cut off; a bare address is a network of one (security group rules,
    /// address pairs).
    Prefix(IpNet), "an IP address or CIDR",
    |text| {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(IpNet::from(address));
        }
        text.parse::<IpNet>().map(|n| n.trunc()).map_err(|_| format!("'{text}' is neither a valid IP address, nor is it a valid IP subnet"))
    },
    json_schema!({"type": "string", "format": "cidr"})
}

/// A field that may be absent, null, or have a value. Use with `#[serde(default)]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Patch<T> {
    /// Not sent: stays as it is.
    #[default]
    Absent,
    /// `null`: cleared.
    Null,
    /// A new value.
    Value(T),
}

/// Another name of [`Patch`].
pub type Field<T> = Patch<T>;

impl<T> Patch<T> {
    /// Whether it was not sent.
    pub fn is_absent(&self) -> bool {
        matches!(self, Patch::Absent)
    }

    /// `None` if absent, `Some(None)` if null.
    pub fn sent(self) -> Option<Option<T>> {
        match self {
            Patch::Absent => None,
            Patch::Null => Some(None),
            Patch::Value(value) => Some(Some(value)),
        }
    }

    /// The value; absent and null are both `None`.
    pub fn value(self) -> Option<T> {
        self.sent().flatten()
    }

    /// As [`Patch::value`], by reference.
    pub fn as_ref(&self) -> Option<&T> {
        match self {
            Patch::Value(value) => Some(value),
            _ => None,
        }
    }

    /// The value where null is not allowed.
    ///
    /// # Errors
    /// `BadRequest` naming `field` where null was sent.
    pub fn not_null(self, field: &str) -> base::Result<Option<T>> {
        match self {
            Patch::Absent => Ok(None),
            Patch::Value(value) => Ok(Some(value)),
            Patch::Null => Err(base::Error::bad_request(format!(
                "Invalid input for {field}. Reason: null is not allowed."
            ))),
        }
    }

    /// Sets `place` if it was sent.
    pub fn apply<U: From<T>>(self, place: &mut Option<U>) {
        if let Some(sent) = self.sent() {
            *place = sent.map(U::from);
        }
    }

    /// With another value type.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Patch<U> {
        match self {
            Patch::Absent => Patch::Absent,
            Patch::Null => Patch::Null,
            Patch::Value(value) => Patch::Value(f(value)),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Option::<T>::deserialize(deserializer)? {
            None => Patch::Null,
            Some(value) => Patch::Value(value),
        })
    }
}

impl<T: JsonSchema> JsonSchema for Patch<T> {
    fn schema_name() -> Cow<'static, str> {
        Option::<T>::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        Option::<T>::schema_id()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Option::<T>::json_schema(generator)
    }
}

/// Metadata: keys of 1 to 255 characters, values of at most 255, both text without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Metadata(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(deserializer)?;
        for (key, value) in &map {
            check_text(key, 1, 255, false).map_err(|e| D::Error::custom(format!("the key '{key}' {e}")))?;
            check_text(value, 0, 255, true)
                .map_err(|e| D::Error::custom(format!("the value of '{key}' {e}")))?;
        }
        Ok(Metadata(map))
    }
}

impl JsonSchema for Metadata {
    inline_schema!(
        "Metadata",
        json_schema!({"type": "object", "additionalProperties": {"type": "string", "maxLength": 255}})
    );
}

/// Base64 text of at most `MAX` decoded bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base64<const MAX: usize> {
    text: String,
    bytes: Vec<u8>,
}

impl<const MAX: usize> Base64<MAX> {
    /// The text as sent.
    pub fn text(&self) -> &str {
        &self.text
    }
    /// The decoded bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// The decoded bytes, owned.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Base64<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        let text = String::deserialize(deserializer)?;
        let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(compact)
            .map_err(|_| D::Error::custom("is not valid base64"))?;
        if bytes.len() > MAX {
            return Err(D::Error::custom(format!("decodes to more than {MAX} bytes")));
        }
        Ok(Base64 { text, bytes })
    }
}

impl<const MAX: usize> JsonSchema for Base64<MAX> {
    inline_schema!(
        "Base64",
        json_schema!({"type": "string", "format": "base64", "maxLength": MAX.div_ceil(3) * 4})
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn takes<T: serde::de::DeserializeOwned>(value: Value) -> bool {
        serde_json::from_value::<T>(value).is_ok()
    }

    #[test]
    fn text_counts_characters() {
        assert!(takes::<Text<0, 3>>(json!("äöü")));
        assert!(!takes::<Text<0, 3>>(json!("äöüx")));
        assert!(takes::<Text<3, 300>>(json!("äöü")));
        assert!(!takes::<Text<3, 300>>(json!("äö")));
        assert!(takes::<Text<0, 9>>(json!("a\nb\t")));
        assert!(!takes::<Text<0, 9>>(json!("a\u{1b}")));
        assert!(!takes::<Name>(json!("a\nb")));
    }

    proptest::proptest! {
        #[test]
        fn text_agrees_with_counting(text in "[a-zäß€😀]{0,12}") {
            let length = text.chars().count();
            proptest::prop_assert_eq!(takes::<Text<2, 7>>(json!(text.clone())), (2..=7).contains(&length));
            proptest::prop_assert_eq!(takes::<Text<0, 5>>(json!(text)), length <= 5);
        }
    }

    #[test]
    fn numbers_and_booleans() {
        for (value, lax, strict) in [
            (json!(5), true, true),
            (json!("5"), true, false),
            (json!("-5"), true, false),
            (json!("+5"), false, false),
            (json!(" 5"), false, false),
            (json!(""), false, false),
            (json!("-"), false, false),
            (json!("5.0"), false, false),
            (json!(5.0), false, false),
            (json!(true), false, false),
            (json!(null), false, false),
            (json!("99999999999999999999"), false, false),
            (json!(11), false, false),
        ] {
            assert_eq!(takes::<LaxInt<-10, 10>>(value.clone()), lax, "{value}");
            assert_eq!(takes::<Int<-10, 10>>(value.clone()), strict, "{value}");
        }
        for (value, expected) in [
            (json!(true), Some(true)),
            (json!("False"), Some(false)),
            (json!("1"), Some(true)),
            (json!(0), Some(false)),
            (json!(2), None),
            (json!("maybe"), None),
            (json!(null), None),
        ] {
            assert_eq!(
                serde_json::from_value::<LaxBool>(value.clone()).ok().map(|b| b.0),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn addresses_and_ids() {
        assert_eq!(serde_json::from_value::<Cidr>(json!("10.0.0.0/24")).unwrap().to_string(), "10.0.0.0/24");
        let error = serde_json::from_value::<Cidr>(json!("10.0.0.1/24")).unwrap_err().to_string();
        assert!(error.contains("'10.0.0.0/24' is recommended"), "{error}");
        assert_eq!(
            serde_json::from_value::<Prefix>(json!("10.0.0.1/24")).unwrap().to_string(),
            "10.0.0.0/24"
        );
        assert_eq!(serde_json::from_value::<Prefix>(json!("fd00::1")).unwrap().to_string(), "fd00::1/128");
        for bad in ["10.0.0.0/33", "10.0.0.256", "", "fe80::1%eth0", "10.0.0.0/-1", "010.0.0.1"] {
            assert!(!takes::<Prefix>(json!(bad)) && !takes::<Ip>(json!(bad)), "{bad}");
        }
        assert!(takes::<Uuid>(json!("6f3a5c1e0d7b4c3e9a8f112233445566")));
        assert!(!takes::<Uuid>(json!("urn:uuid:6f3a5c1e-0d7b-4c3e-9a8f-112233445566")));
        assert!(!takes::<Uuid>(json!("{6f3a5c1e-0d7b-4c3e-9a8f-112233445566}")));
    }

    #[test]
    fn a_patch_tells_absent_from_null() {
        #[derive(Deserialize)]
        struct Body {
            #[serde(default)]
            name: Patch<Name>,
        }
        let read = |value: Value| serde_json::from_value::<Body>(value).unwrap().name;
        assert!(read(json!({})).is_absent());
        assert_eq!(read(json!({"name": null})).sent(), Some(None));
        assert_eq!(read(json!({"name": "a"})).value().unwrap().as_str(), "a");
        assert!(read(json!({"name": null})).not_null("name").is_err());
        let mut place = Some("old".to_owned());
        read(json!({})).apply(&mut place);
        assert_eq!(place.as_deref(), Some("old"));
        read(json!({"name": null})).apply(&mut place);
        assert_eq!(place, None);
    }

    #[test]
    fn base64_is_bounded_after_decoding() {
        let read = |text: &str| serde_json::from_value::<Base64<4>>(json!(text));
        assert_eq!(read("YWJj\nZA==").unwrap().bytes(), b"abcd");
        assert!(read("YWJjZGU=").is_err());
        assert!(read("YW!=").is_err());
        assert!(takes::<Metadata>(json!({"k": "v"})));
        assert!(!takes::<Metadata>(json!({"k": "x".repeat(256)})));
        assert!(!takes::<Metadata>(json!({"": "v"})));
    }
}
