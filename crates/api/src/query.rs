//! Query strings: parsed once, kept in order, repeated keys kept.

use base::{Error, Result};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor, value::MapDeserializer};
use serde::forward_to_deserialize_any;

/// Clients ask for a few hundred ids at once; what is beyond this only wastes our time.
const MAX_PAIRS: usize = 2000;

/// The parameters of a query string, percent-decoded, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=1&b=2`.
    ///
    /// # Errors
    /// `BadRequest` where a part is not UTF-8 or contains a NUL.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut pairs = Vec::new();
        for part in text.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let key = decode(key, true)
                .ok_or_else(|| Error::bad_request("A query parameter's name is not UTF-8."))?;
            let value = decode(value, true).ok_or_else(|| {
                Error::bad_request(format!("Invalid input for query parameter '{key}': it is not UTF-8."))
            })?;
            if key.contains('\0') || value.contains('\0') {
                let key = key.replace('\0', "");
                return Err(Error::bad_request(format!(
                    "Invalid input for query parameter '{key}': a NUL character is not allowed."
                )));
            }
            pairs.push((key, value));
            if pairs.len() > MAX_PAIRS {
                return Err(Error::bad_request(format!("A query may have at most {MAX_PAIRS} parameters.")));
            }
        }
        Ok(Query(pairs))
    }

    /// The last value of `key` (as webob's `params[key]` answers).
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values of `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Whether `key` occurs.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// A boolean in any of OpenStack's spellings.
    ///
    /// # Errors
    /// `BadRequest` naming the parameter.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|text| {
                crate::types::parse_bool(text).ok_or_else(|| {
                    Error::bad_request(format!(
                        "Invalid input for query parameter '{key}': '{text}' is not a boolean."
                    ))
                })
            })
            .transpose()
    }

    /// As a struct: see [`crate::Request::query`].
    ///
    /// # Errors
    /// `BadRequest` naming the parameter.
    pub fn parse<Q: DeserializeOwned>(&self) -> Result<Q> {
        let mut grouped: Vec<(&str, Values<'_>)> = Vec::with_capacity(self.0.len());
        for (key, value) in self.iter() {
            match grouped.iter_mut().find(|(k, _)| *k == key) {
                Some((_, values)) => values.0.push(value),
                None => grouped.push((key, Values(vec![value]))),
            }
        }
        let mut track = serde_path_to_error::Track::new();
        let source = MapDeserializer::<_, serde::de::value::Error>::new(grouped.into_iter());
        let result = Q::deserialize(serde_path_to_error::Deserializer::new(source, &mut track));
        result.map_err(|error| {
            let path = track.path().to_string();
            if path == "." {
                Error::bad_request(format!("Invalid query: {error}."))
            } else {
                Error::bad_request(format!("Invalid input for query parameter '{path}': {error}."))
            }
        })
    }

    /// The query as text again, without the parameters named `without` and with `with` added.
    pub fn rebuild(&self, without: &[&str], with: &[(&str, &str)]) -> String {
        let mut text = String::new();
        let kept = self.iter().filter(|(k, _)| !without.contains(k));
        for (key, value) in kept.chain(with.iter().copied()) {
            if !text.is_empty() {
                text.push('&');
            }
            encode(key, &mut text);
            text.push('=');
            encode(value, &mut text);
        }
        text
    }
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub fn encode(text: &str, into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~:,".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push('%');
            into.push(char::from(HEX[usize::from(byte >> 4)]));
            into.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Percent-decodes; `None` where the result is not UTF-8 or an escape is broken. `plus`: `+` is a space.
pub fn decode(text: &str, plus: bool) -> Option<String> {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let high = rest.next().and_then(digit)?;
                let low = rest.next().and_then(digit)?;
                bytes.push(high << 4 | low);
            }
            b'+' if plus => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

/// The values of one parameter.
struct Values<'a>(Vec<&'a str>);

type ValueError = serde::de::value::Error;

impl<'de> IntoDeserializer<'de, ValueError> for Values<'de> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Values<'de> {
    fn last(&self) -> &'de str {
        self.0.last().copied().unwrap_or("")
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
            use serde::de::Error as _;
            let text = self.last();
            visitor.$visit(text.parse().map_err(|_| ValueError::custom(format!("'{text}' is not a valid number")))?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Values<'de> {
    type Error = ValueError;

    numbers!(deserialize_u8 visit_u8, deserialize_u16 visit_u16, deserialize_u32 visit_u32, deserialize_u64 visit_u64,
        deserialize_i8 visit_i8, deserialize_i16 visit_i16, deserialize_i32 visit_i32, deserialize_i64 visit_i64,
        deserialize_f32 visit_f32, deserialize_f64 visit_f64);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_borrowed_str(self.last())
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        use serde::de::Error as _;
        let text = self.last();
        visitor.visit_bool(
            crate::types::parse_bool(text)
                .ok_or_else(|| ValueError::custom(format!("'{text}' is not a boolean")))?,
        )
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        let items = self.0.into_iter().map(|v| Values(vec![v]));
        visitor.visit_seq(serde::de::value::SeqDeserializer::new(items))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        visitor.visit_enum(self.last().into_deserializer())
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Filter {
        #[serde(default)]
        limit: Option<u32>,
        #[serde(default)]
        shared: Option<bool>,
        #[serde(default)]
        tags: Vec<String>,
        #[serde(default)]
        size: Option<crate::types::LaxInt<0, 9>>,
    }

    #[test]
    fn reads_a_struct() {
        let query = Query::from_text("limit=7&tags=a&tags=b%20c&shared=True&size=3").unwrap();
        let filter: Filter = query.parse().unwrap();
        assert_eq!((filter.limit, filter.shared, filter.tags.len()), (Some(7), Some(true), 2));
        assert_eq!(filter.size.unwrap().get(), 3);
        assert_eq!(
            query.rebuild(&["limit"], &[("marker", "ä")]),
            "tags=a&tags=b%20c&shared=True&size=3&marker=%C3%A4"
        );
    }

    #[test]
    fn names_what_is_wrong() {
        assert!(Query::from_text(&"id=1&".repeat(2001)).is_err());
        for (text, expected) in [
            ("limit=x", "'limit': 'x' is not a valid number"),
            ("limit=-1", "'limit'"),
            ("shared=maybe", "'shared': 'maybe' is not a boolean"),
            ("size=10", "'size': 10 is greater"),
            ("colour=red", "colour"),
        ] {
            let error = Query::from_text(text).unwrap().parse::<Filter>().unwrap_err();
            assert!(error.public().contains(expected), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,200}") {
            if let Ok(query) = Query::from_text(&text) {
                let _ = query.parse::<Filter>();
                let _ = query.parse::<std::collections::HashMap<String, String>>();
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(pairs in proptest::collection::vec(("[^\0]{1,20}", "[^\0]{0,20}"), 0..6)) {
            let with: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let text = Query::default().rebuild(&[], &with);
            let query = Query::from_text(&text).unwrap();
            proptest::prop_assert_eq!(query.iter().collect::<Vec<_>>(), with);
        }
    }
}
