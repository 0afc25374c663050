//! Reading bodies whose fields Cinder takes in several spellings.

use std::collections::BTreeMap;

use ::api::types::parse_bool;
use base::{Error, Result};
use serde_json::{Map, Value};

/// A body's object under its key.
pub struct Fields<'a>(&'a Map<String, Value>);

/// 400 naming the field.
pub fn invalid(field: &str, reason: &str) -> Error {
    Error::bad_request(format!("Invalid input for field/attribute {field}. {reason}"))
}

impl<'a> Fields<'a> {
    /// `{"<key>": {…}}`.
    ///
    /// # Errors
    /// `BadRequest` where it is not.
    pub fn of(body: &'a Value, key: &str) -> Result<Self> {
        match body.get(key) {
            Some(Value::Object(map)) => Ok(Fields(map)),
            Some(_) => Err(invalid(key, "It is not of type 'object'.")),
            None => Err(Error::bad_request(format!("Invalid input: '{key}' is a required property"))),
        }
    }

    /// The value itself as an object.
    ///
    /// # Errors
    /// `BadRequest` where it is none.
    pub fn whole(body: &'a Value) -> Result<Self> {
        body.as_object()
            .map(Fields)
            .ok_or_else(|| Error::bad_request("Invalid input: it is not of type 'object'"))
    }

    /// Refuses fields that are not in `known`.
    ///
    /// # Errors
    /// `BadRequest` naming one.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        match self.0.keys().find(|k| !known.contains(&k.as_str())) {
            None => Ok(()),
            Some(key) => Err(invalid(key, "Additional properties are not allowed.")),
        }
    }

    /// The field, unless absent or null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|v| !v.is_null())
    }

    /// Whether it was sent, null included.
    pub fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    /// Text of at most `max` characters.
    ///
    /// # Errors
    /// `BadRequest` naming the field.
    pub fn text(&self, field: &str, max: usize) -> Result<Option<String>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) if text.chars().count() <= max => Ok(Some(text.clone())),
            Some(Value::String(_)) => Err(invalid(field, &format!("It has more than {max} characters."))),
            Some(_) => Err(invalid(field, "It is not of type 'string'.")),
        }
    }

    /// Text that must be there.
    ///
    /// # Errors
    /// `BadRequest` naming the field.
    pub fn need_text(&self, field: &str, max: usize) -> Result<String> {
        self.text(field, max)?.ok_or_else(|| invalid(field, "It is a required property."))
    }

    /// A name: without blanks around it.
    ///
    /// # Errors
    /// `BadRequest` naming the field.
    pub fn name(&self, field: &str) -> Result<Option<String>> {
        let name = self.text(field, 255)?;
        if name.as_ref().is_some_and(|n| n.chars().any(char::is_control)) {
            return Err(invalid(field, "It contains a control character."));
        }
        Ok(name.map(|n| n.trim().to_owned()))
    }

    /// An id.
    ///
    /// # Errors
    /// `BadRequest` naming the field.
    pub fn id<T: std::str::FromStr>(&self, field: &str) -> Result<Option<T>> {
        match self.text(field, 64)? {
            None => Ok(None),
            Some(text) => {
                text.parse().map(Some).map_err(|_| invalid(field, &format!("'{text}' is not a 'uuid'.")))
            }
        }
    }

    /// A whole number in `range`, also as text.
    ///
    /// # Errors
    /// `BadRequest` naming the field.
    pub fn number(&self, field: &str, range: std::ops::RangeInclusive<i64>) -> Result<Option<i64>> {
        let number = match self.get(field) {
            None => return Ok(None),
            Some(Value::Number(n)) => n.as_i64(),
            Some(Value::String(t)) if !t.starts_with('+') => t.trim().parse().ok(),
            Some(_) => None,
        };
        match number {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            Some(n) => {
                Err(invalid(field, &format!("{n} is not between {} and {}.", range.start(), range.end())))
            }
            None => Err(invalid(field, "It is not an integer.")),
        }
    }

    /// A size in GiB.
    ///
    /// # Errors
    /// `BadRequest` naming the field.
    pub fn size(&self, field: &str) -> Result<Option<u64>> {
        let most = i64::try_from(super::machine::MAX_GIB).unwrap_or(i64::MAX);
        Ok(self.number(field, 1..=most)?.map(i64::unsigned_abs))
    }

    /// A boolean in any spelling.
    ///
    /// # Errors
    /// `BadRequest` naming the field.
    pub fn boolean(&self, field: &str) -> Result<Option<bool>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(Value::String(text)) => match parse_bool(text) {
                Some(b) => Ok(Some(b)),
                None => Err(invalid(field, &format!("'{text}' is not a boolean."))),
            },
            Some(_) => Err(invalid(field, "It is not of type 'boolean'.")),
        }
    }

    /// Metadata.
    ///
    /// # Errors
    /// `BadRequest` naming the key.
    pub fn metadata(&self, field: &str) -> Result<Option<BTreeMap<String, String>>> {
        self.get(field).map(metadata).transpose()
    }
}

/// Metadata: an object of texts of at most 255 characters.
///
/// # Errors
/// `BadRequest` naming the key.
pub fn metadata(value: &Value) -> Result<BTreeMap<String, String>> {
    let Some(map) = value.as_object() else { return Err(invalid("metadata", "It is not of type 'object'.")) };
    let mut metadata = BTreeMap::new();
    for (key, value) in map {
        metadata_key(key)?;
        let Some(text) = value.as_str() else {
            return Err(invalid(&format!("metadata.{key}"), "It is not of type 'string'."));
        };
        if text.chars().count() > 255 {
            return Err(invalid(&format!("metadata.{key}"), "It has more than 255 characters."));
        }
        metadata.insert(key.clone(), text.to_owned());
    }
    if metadata.len() > 128 {
        return Err(invalid("metadata", "It has more than 128 items."));
    }
    Ok(metadata)
}

/// A metadata key has 1 to 255 characters.
///
/// # Errors
/// `BadRequest`.
pub fn metadata_key(key: &str) -> Result<()> {
    if key.is_empty() || key.chars().count() > 255 || key.chars().any(char::is_control) {
        return Err(invalid("metadata", "A key has 1 to 255 characters."));
    }
    Ok(())
}

/// A dictionary as Python writes it, which clients put into queries: `{'a': 'b'}`. JSON is taken too.
///
/// # Errors
/// `BadRequest`.
pub fn python_dict(field: &str, text: &str) -> Result<BTreeMap<String, String>> {
    let bad =
        || Error::bad_request(format!("Invalid filter value for '{field}': '{text}' is not a dictionary."));
    let inner = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(bad)?;
    let mut rest = inner.trim_start();
    let mut found = BTreeMap::new();
    while !rest.is_empty() {
        let (key, after) = python_text(rest).ok_or_else(bad)?;
        let after = after.trim_start().strip_prefix(':').ok_or_else(bad)?;
        let (value, after) = python_text(after.trim_start()).ok_or_else(bad)?;
        found.insert(key, value);
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(next) => rest = next.trim_start(),
            None if rest.is_empty() => {}
            None => return Err(bad()),
        }
    }
    Ok(found)
}

/// A quoted Python string (an optional `u` before it) and what follows it.
fn python_text(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('u').unwrap_or(text);
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            c if c == quote => return Some((value, text.get(at + 1..)?)),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries_as_python_writes_them() {
        let read = |text| python_dict("metadata", text).map(|m| m.into_iter().collect::<Vec<_>>());
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(read("{'Type': 'work'}").unwrap(), [pair("Type", "work")]);
        assert_eq!(read("{u'a':\"b\", 'c' : 'd\\'e'}").unwrap(), [pair("a", "b"), pair("c", "d'e")]);
        assert_eq!(read("{}").unwrap(), []);
        for bad in ["", "a", "{'a'}", "{'a':1}", "{'a':'b'", "{'a':'b' 'c':'d'}", "{'a:'b'}"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
