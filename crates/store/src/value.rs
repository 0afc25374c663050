//! What a column holds.

use base::{Error, Result};
use serde::Serialize;

/// A column's value: the portable subset of both engines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// 64-bit integer; booleans are 0 and 1.
    Int(i64),
    /// Text; lists and maps are their JSON.
    Text(String),
    /// Values of one kind, to look for any of them; no column holds such.
    List(Vec<Value>),
}

impl Value {
    /// What `value` is in a column.
    ///
    /// # Errors
    /// `BadRequest` for a NUL character (PostgreSQL cannot store it) or a number that is no 64-bit integer.
    pub fn of(value: impl Serialize) -> Result<Self> {
        let json = serde_json::to_value(value).map_err(Error::internal)?;
        Self::of_json(&json)
    }

    pub(crate) fn of_json(json: &serde_json::Value) -> Result<Self> {
        use serde_json::Value as Json;
        Ok(match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Int(i64::from(*b)),
            Json::Number(n) => match n.as_i64() {
                Some(n) => Value::Int(n),
                None => return Err(Error::bad_request(format!("{n} is not a 64-bit integer"))),
            },
            Json::String(text) => Value::Text(text.clone()).checked()?,
            other => Value::Text(other.to_string()).checked()?,
        })
    }

    fn checked(self) -> Result<Self> {
        match &self {
            Value::Text(text) if text.contains('\0') => {
                Err(Error::bad_request("NUL characters are not allowed."))
            }
            _ => Ok(self),
        }
    }

    pub(crate) fn int(&self) -> i64 {
        if let Value::Int(n) = self { *n } else { 0 }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Value::Text(text) => text,
            Value::Int(n) => n.to_string(),
            Value::Null | Value::List(_) => String::new(),
        }
    }

    /// In JSON.
    pub(crate) fn json(self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Int(n) => n.into(),
            Value::Text(text) => text.into(),
            Value::List(values) => values.into_iter().map(Value::json).collect(),
        }
    }
}
