//! Request bodies: `{"user": {...}}` checked against a table of fields, with Keystone's error texts.
//!
//! One table per body gives the validation and the OpenAPI schema. What the table does not name is kept (Keystone's
//! extra attributes) or refused, as the table says.

use std::borrow::Cow;
use std::marker::PhantomData;

use base::{Error, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

/// What a field may hold.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Text of so many characters, at least one of them visible unless `0` is allowed.
    Text(usize, usize),
    /// A password: text whose value is never repeated in an error.
    Secret,
    /// An id: letters, digits and `-_.:@`; 1 to 64 characters.
    Id,
    /// `true` or `false`.
    Bool,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// An absolute URL, possibly with `%(name)s` or `$(name)s` places.
    Url,
    /// Up to 80 different tags.
    Tags,
    /// A whole number from the first to the second.
    Int(i64, i64),
    /// Text, or an object.
    TextOrObject,
    /// Up to 100 different texts of so many characters at most.
    Texts(usize),
    /// Any object.
    Object,
    /// An array of objects.
    Objects,
}

/// One field of a body.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// Whether it must be there.
    pub required: bool,
    /// Whether it may be null.
    pub nullable: bool,
}

/// An optional field.
pub const fn may(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, required: false, nullable: false }
}

/// An optional field that may be null.
pub const fn may_null(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, required: false, nullable: true }
}

/// A required field.
pub const fn must(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, required: true, nullable: false }
}

/// A table of fields.
pub trait Shape: Send + Sync + 'static {
    /// Name in the OpenAPI document.
    const NAME: &'static str;
    /// The single key of the body; empty where the fields are the body itself.
    const KEY: &'static str;
    /// Its fields.
    const FIELDS: &'static [Field];
    /// Whether other fields are taken.
    const EXTRA: bool = true;
}

/// Declares a [`Shape`].
macro_rules! shape {
    ($(#[$doc:meta])* $name:ident, $key:literal, $extra:literal, [$($field:expr),* $(,)?]) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name;
        impl $crate::logic::body::Shape for $name {
            const NAME: &'static str = stringify!($name);
            const KEY: &'static str = $key;
            const FIELDS: &'static [$crate::logic::body::Field] = &[$($field),*];
            const EXTRA: bool = $extra;
        }
    };
}
pub(crate) use shape;

/// A body of shape `S` as it came; [`Doc::check`] makes it usable.
#[derive(Debug)]
pub struct Doc<S>(Value, PhantomData<S>);

impl<'de, S> Deserialize<'de> for Doc<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|v| Doc(v, PhantomData))
    }
}

impl<S: Shape> JsonSchema for Doc<S> {
    fn schema_name() -> Cow<'static, str> {
        S::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let properties: Map<String, Value> =
            S::FIELDS.iter().map(|f| (f.name.to_owned(), schema_of(f.kind, f.nullable))).collect();
        let required: Vec<&str> = S::FIELDS.iter().filter(|f| f.required).map(|f| f.name).collect();
        let inner = json!({
            "type": "object", "properties": properties, "required": required,
            "additionalProperties": S::EXTRA,
        });
        if S::KEY.is_empty() {
            return Schema::try_from(inner).unwrap_or_default();
        }
        let mut outer = Map::new();
        outer.insert(S::KEY.to_owned(), inner);
        schemars::json_schema!({"type": "object", "properties": outer, "required": [S::KEY]})
    }
}

/// A body with a list of things of shape `S` under its key, as it came; [`Docs::check`] makes it usable.
#[derive(Debug)]
pub struct Docs<S>(Value, PhantomData<S>);

impl<'de, S> Deserialize<'de> for Docs<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|v| Docs(v, PhantomData))
    }
}

impl<S: Shape> JsonSchema for Docs<S> {
    fn schema_name() -> Cow<'static, str> {
        S::NAME.into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = Doc::<S>::json_schema(generator);
        let inner = one.as_value().pointer(&format!("/properties/{}", S::KEY)).cloned();
        let mut outer = Map::new();
        outer.insert(S::KEY.to_owned(), json!({"type": "array", "minItems": 1, "items": inner}));
        schemars::json_schema!({"type": "object", "properties": outer, "required": [S::KEY]})
    }
}

impl<S: Shape> Docs<S> {
    /// The checked fields of each.
    ///
    /// # Errors
    /// `BadRequest` in Keystone's words, naming the field.
    pub fn check(&self) -> Result<Vec<Fields>> {
        let inner = self.0.get(S::KEY).ok_or_else(|| missing(S::KEY))?;
        let items = inner.as_array().ok_or_else(|| wrong_type(S::KEY, inner, "'array'"))?;
        if items.is_empty() {
            return Err(invalid(S::KEY, "[] should be non-empty"));
        }
        let maps = items.iter().enumerate().map(|(i, item)| {
            let map =
                item.as_object().ok_or_else(|| wrong_type(&format!("{}/{i}", S::KEY), item, "'object'"))?;
            checked::<S>(map)
        });
        maps.collect()
    }
}

fn checked<S: Shape>(map: &Map<String, Value>) -> Result<Fields> {
    for field in S::FIELDS {
        match map.get(field.name) {
            None if field.required => return Err(missing(field.name)),
            None => {}
            Some(Value::Null) if field.nullable => {}
            Some(value) => check(field.name, field.kind, field.nullable, value)?,
        }
    }
    if !S::EXTRA
        && let Some(other) = map.keys().find(|k| S::FIELDS.iter().all(|f| f.name != k.as_str()))
    {
        let other = shown(&Value::String(other.clone()));
        return Err(Error::bad_request(format!(
            "Additional properties are not allowed ({other} was unexpected)"
        )));
    }
    Ok(Fields(map.clone()))
}

impl<S: Shape> Doc<S> {
    /// The checked fields.
    ///
    /// # Errors
    /// `BadRequest` in Keystone's words, naming the field.
    pub fn check(&self) -> Result<Fields> {
        if S::KEY.is_empty() {
            let map = self.0.as_object().ok_or_else(|| wrong_type("body", &self.0, "'object'"))?;
            return checked::<S>(map);
        }
        let inner = self.0.get(S::KEY).ok_or_else(|| missing(S::KEY))?;
        let map = inner.as_object().ok_or_else(|| wrong_type(S::KEY, inner, "'object'"))?;
        checked::<S>(map)
    }
}

/// Checked fields; taking one removes it, so that what is left are the extra attributes.
#[derive(Debug, Clone, Default)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Whether nothing was sent.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the field was sent, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A text field without surrounding space.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.raw_text(name).map(|t| t.trim().to_owned())
    }

    /// A text field as it is.
    pub fn raw_text(&mut self, name: &str) -> Option<String> {
        match self.0.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// A text field that may be null: `None` = not sent, `Some(None)` = null.
    pub fn nullable(&mut self, name: &str) -> Option<Option<String>> {
        match self.0.remove(name) {
            None => None,
            Some(Value::String(text)) => Some(Some(text)),
            Some(_) => Some(None),
        }
    }

    /// A boolean.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        self.0.remove(name).and_then(|v| v.as_bool())
    }

    /// A whole number.
    pub fn int(&mut self, name: &str) -> Option<i64> {
        self.0.remove(name).and_then(|v| v.as_i64())
    }

    /// A field as it is.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// Tags or texts.
    pub fn tags(&mut self, name: &str) -> Option<Vec<String>> {
        match self.0.remove(name)? {
            Value::Array(items) => Some(items.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect()),
            _ => None,
        }
    }

    /// An object.
    pub fn object(&mut self, name: &str) -> Option<Map<String, Value>> {
        match self.0.remove(name)? {
            Value::Object(map) => Some(map),
            _ => None,
        }
    }

    /// An array of objects.
    pub fn objects(&mut self, name: &str) -> Option<Vec<Map<String, Value>>> {
        match self.0.remove(name)? {
            Value::Array(items) => Some(
                items
                    .into_iter()
                    .filter_map(|v| if let Value::Object(m) = v { Some(m) } else { None })
                    .collect(),
            ),
            _ => None,
        }
    }

    /// `id` in a body must be that of the path.
    ///
    /// # Errors
    /// `BadRequest` where it is another.
    pub fn same_id(&mut self, id: &str) -> Result<()> {
        match self.0.remove("id") {
            None => Ok(()),
            Some(Value::String(other)) if other == id => Ok(()),
            Some(_) => Err(Error::bad_request("Cannot change ID")),
        }
    }

    /// Everything not taken yet, without what the server makes itself.
    pub fn extra(mut self) -> Map<String, Value> {
        for own in ["id", "links", "password", "original_password"] {
            self.0.remove(own);
        }
        self.0
    }
}

/// `'name' is a required property`
pub fn missing(name: &str) -> Error {
    Error::bad_request(format!("'{name}' is a required property"))
}

/// 400 for a field, in Keystone's words.
pub fn invalid(path: &str, reason: &str) -> Error {
    Error::bad_request(format!("Invalid input for field '{path}': {reason}"))
}

/// 400 for a value of the wrong type.
pub fn wrong_type(path: &str, value: &Value, wanted: &str) -> Error {
    invalid(path, &format!("{} is not of type {wanted}", shown(value)))
}

/// A value as Python would show it, cut to a readable length.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => format!("'{}'", text.chars().take(80).collect::<String>()),
        Value::Object(_) => "the object".to_owned(),
        Value::Array(_) => "the list".to_owned(),
        Value::Number(n) => n.to_string(),
    };
    text.replace(|c: char| c.is_control(), "?")
}

/// Checks one value.
///
/// # Errors
/// `BadRequest` naming `path`.
pub fn check(path: &str, kind: Kind, nullable: bool, value: &Value) -> Result<()> {
    let or_null = if nullable { ", 'null'" } else { "" };
    let text = || value.as_str().ok_or_else(|| wrong_type(path, value, &format!("'string'{or_null}")));
    match kind {
        Kind::Text(min, max) => check_text(path, text()?, min, max),
        Kind::Secret => {
            let Some(secret) = value.as_str() else {
                return Err(invalid(path, &format!("the value is not of type 'string'{or_null}")));
            };
            if secret.chars().count() > crate::password::LONGEST {
                return Err(Error::forbidden(format!(
                    "The password length must be less than or equal to {}. The server could not comply with the request because the password is invalid.",
                    crate::password::LONGEST
                )));
            }
            Ok(())
        }
        Kind::Id => {
            let id = text()?;
            let fine = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
            if id.is_empty() || id.len() > 64 || !id.chars().all(fine) {
                return Err(invalid(path, &format!("{} does not match '^[a-zA-Z0-9-]+$'", shown(value))));
            }
            Ok(())
        }
        Kind::Bool if value.is_boolean() => Ok(()),
        Kind::Bool => Err(wrong_type(path, value, &format!("'boolean'{or_null}"))),
        Kind::OneOf(allowed) => {
            if allowed.contains(&text()?) {
                Ok(())
            } else {
                let allowed: Vec<String> = allowed.iter().map(|a| format!("'{a}'")).collect();
                Err(invalid(path, &format!("{} is not one of [{}]", shown(value), allowed.join(", "))))
            }
        }
        Kind::Url => check_url(path, text()?),
        Kind::Tags => check_tags(path, value),
        Kind::Int(min, max) => {
            let number =
                value.as_i64().ok_or_else(|| wrong_type(path, value, &format!("'integer'{or_null}")))?;
            if number < min {
                return Err(invalid(path, &format!("{number} is less than the minimum of {min}")));
            }
            if number > max {
                return Err(invalid(path, &format!("{number} is greater than the maximum of {max}")));
            }
            Ok(())
        }
        Kind::TextOrObject if value.is_string() || value.is_object() => Ok(()),
        Kind::TextOrObject => Err(wrong_type(path, value, "'string', 'object'")),
        Kind::Texts(longest) => check_texts(path, value, longest),
        Kind::Object if value.is_object() => Ok(()),
        Kind::Object => Err(wrong_type(path, value, &format!("'object'{or_null}"))),
        Kind::Objects => {
            let items =
                value.as_array().ok_or_else(|| wrong_type(path, value, &format!("'array'{or_null}")))?;
            match items.iter().enumerate().find(|(_, v)| !v.is_object()) {
                None => Ok(()),
                Some((i, v)) => Err(wrong_type(&format!("{path}/{i}"), v, "'object'")),
            }
        }
    }
}

fn check_text(path: &str, text: &str, min: usize, max: usize) -> Result<()> {
    let length = text.chars().count();
    let value = Value::String(text.to_owned());
    if length < min {
        return Err(invalid(path, &format!("{} is too short", shown(&value))));
    }
    if length > max {
        return Err(invalid(path, &format!("{} is too long", shown(&value))));
    }
    if min > 0 && text.trim().is_empty() {
        return Err(invalid(path, &format!("{} does not match '[\\\\S]+'", shown(&value))));
    }
    Ok(())
}

fn check_url(path: &str, url: &str) -> Result<()> {
    let bad = || Error::bad_request(format!("Cannot create an endpoint with an invalid URL: {url}."));
    let short: String = url.chars().take(80).collect();
    if url.chars().count() > 225 {
        return Err(invalid(path, &format!("'{short}' is too long")));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(invalid(path, &format!("'{short}' does not match '^[a-zA-Z0-9+.-]+:.+'")));
    };
    let fine = |c: char| c.is_ascii_alphanumeric() || "+.-".contains(c);
    if scheme.is_empty()
        || !scheme.chars().all(fine)
        || rest.is_empty()
        || url.chars().any(char::is_whitespace)
    {
        return Err(invalid(path, &format!("'{short}' does not match '^[a-zA-Z0-9+.-]+:.+'")));
    }
    // Every place must be one that can be filled.
    crate::logic::catalog::fill(url, Some("p"), "u").map(|_| ()).ok_or_else(bad)
}

fn check_texts(path: &str, value: &Value, longest: usize) -> Result<()> {
    let items = value.as_array().ok_or_else(|| wrong_type(path, value, "'array'"))?;
    if items.len() > 100 {
        return Err(invalid(path, "the list is too long"));
    }
    for (i, item) in items.iter().enumerate() {
        let place = format!("{path}/{i}");
        let text = item.as_str().ok_or_else(|| wrong_type(&place, item, "'string'"))?;
        check_text(&place, text, 1, longest)?;
        if items.iter().take(i).any(|other| other == item) {
            return Err(invalid(path, "the list has non-unique elements"));
        }
    }
    Ok(())
}

/// Checks a list of tags.
///
/// # Errors
/// `BadRequest` naming the tag's place.
pub fn check_tags(path: &str, value: &Value) -> Result<()> {
    let items = value.as_array().ok_or_else(|| wrong_type(path, value, "'array'"))?;
    if items.len() > 80 {
        return Err(invalid(path, "the list is too long"));
    }
    for (i, item) in items.iter().enumerate() {
        let place = format!("{path}/{i}");
        let tag = item.as_str().ok_or_else(|| wrong_type(&place, item, "'string'"))?;
        check_tag(&place, tag)?;
        if items.iter().take(i).any(|other| other == item) {
            return Err(invalid(path, "the list has non-unique elements"));
        }
    }
    Ok(())
}

/// Checks one tag.
///
/// # Errors
/// `BadRequest` naming `path`.
pub fn check_tag(path: &str, tag: &str) -> Result<()> {
    let value = Value::String(tag.to_owned());
    match tag.chars().count() {
        0 => Err(invalid(path, &format!("{} is too short", shown(&value)))),
        256.. => Err(invalid(path, &format!("{} is too long", shown(&value)))),
        _ if tag.contains([',', '/']) => {
            Err(invalid(path, &format!("{} does not match '^[^,/]*$'", shown(&value))))
        }
        _ => Ok(()),
    }
}

fn schema_of(kind: Kind, nullable: bool) -> Value {
    let typed = |name: &str| if nullable { json!([name, "null"]) } else { json!(name) };
    match kind {
        Kind::Text(min, max) => json!({"type": typed("string"), "minLength": min, "maxLength": max}),
        Kind::Secret => json!({"type": typed("string"), "writeOnly": true}),
        Kind::Id => json!({"type": typed("string"), "minLength": 1, "maxLength": 64}),
        Kind::Bool => json!({"type": typed("boolean")}),
        Kind::OneOf(allowed) => json!({"type": typed("string"), "enum": allowed}),
        Kind::Url => json!({"type": typed("string"), "format": "uri", "maxLength": 225}),
        Kind::Int(min, max) => json!({"type": typed("integer"), "minimum": min, "maximum": max}),
        Kind::TextOrObject => json!({"type": ["string", "object"]}),
        Kind::Tags => {
            json!({"type": typed("array"), "items": {"type": "string", "maxLength": 255}, "maxItems": 80})
        }
        Kind::Texts(longest) => {
            let text = json!({"type": "string", "minLength": 1, "maxLength": longest});
            json!({"type": typed("array"), "items": text, "maxItems": 100})
        }
        Kind::Object => json!({"type": typed("object")}),
        Kind::Objects => json!({"type": typed("array"), "items": {"type": "object"}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    shape!(
        Thing,
        "thing",
        false,
        [
            must("name", Kind::Text(1, 5)),
            may("enabled", Kind::Bool),
            may_null("description", Kind::Text(0, 9)),
            may("tags", Kind::Tags),
            may("url", Kind::Url),
            may("kind", Kind::OneOf(&["a", "b"])),
            may("secret", Kind::Secret),
        ]
    );

    fn outcome(body: Value) -> String {
        match serde_json::from_value::<Doc<Thing>>(body).unwrap().check() {
            Ok(_) => "fine".into(),
            Err(e) => e.public().to_owned(),
        }
    }

    #[test]
    fn errors_name_the_field_in_keystones_words() {
        let cases = [
            (json!(null), "'thing' is a required property"),
            (json!({}), "'thing' is a required property"),
            (json!({"thing": 5}), "Invalid input for field 'thing': 5 is not of type 'object'"),
            (json!({"thing": {}}), "'name' is a required property"),
            (json!({"thing": {"name": 5}}), "Invalid input for field 'name': 5 is not of type 'string'"),
            (json!({"thing": {"name": ""}}), "Invalid input for field 'name': '' is too short"),
            (json!({"thing": {"name": "abcdef"}}), "Invalid input for field 'name': 'abcdef' is too long"),
            (
                json!({"thing": {"name": " "}}),
                "Invalid input for field 'name': ' ' does not match '[\\\\S]+'",
            ),
            (
                json!({"thing": {"name": "a", "enabled": "yes"}}),
                "Invalid input for field 'enabled': 'yes' is not of type 'boolean'",
            ),
            (
                json!({"thing": {"name": "a", "enabled": null}}),
                "Invalid input for field 'enabled': None is not of type 'boolean'",
            ),
            (
                json!({"thing": {"name": "a", "description": 1}}),
                "Invalid input for field 'description': 1 is not of type 'string', 'null'",
            ),
            (
                json!({"thing": {"name": "a", "tags": ["x", "x"]}}),
                "Invalid input for field 'tags': the list has non-unique elements",
            ),
            (
                json!({"thing": {"name": "a", "tags": ["a,b"]}}),
                "Invalid input for field 'tags/0': 'a,b' does not match '^[^,/]*$'",
            ),
            (
                json!({"thing": {"name": "a", "kind": "c"}}),
                "Invalid input for field 'kind': 'c' is not one of ['a', 'b']",
            ),
            (
                json!({"thing": {"name": "a", "secret": 12345}}),
                "Invalid input for field 'secret': the value is not of type 'string'",
            ),
            (
                json!({"thing": {"name": "a", "other": 1}}),
                "Additional properties are not allowed ('other' was unexpected)",
            ),
            (
                json!({"thing": {"name": "a", "url": "nonsense"}}),
                "Invalid input for field 'url': 'nonsense' does not match '^[a-zA-Z0-9+.-]+:.+'",
            ),
            (
                json!({"thing": {"name": "a", "url": "http://x/%(bad)s"}}),
                "Cannot create an endpoint with an invalid URL: http://x/%(bad)s.",
            ),
            (
                json!({"thing": {"name": "a", "description": null, "tags": ["x"], "url": "http://x/$(project_id)s"}}),
                "fine",
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(outcome(body.clone()), expected, "{body}");
        }
    }
}
