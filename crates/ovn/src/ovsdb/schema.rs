//! What tables and columns a server knows (RFC 7047 section 3.2), as far as we need it.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::{Error, Result};

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Whether it may hold more than one element: then `modify` carries a difference, otherwise the new value.
    pub composite: bool,
    /// Whether it is a map.
    pub map: bool,
}

/// A database's schema.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    /// `major.minor.patch`
    pub version: String,
    tables: HashMap<String, HashMap<String, Column>>,
}

impl Schema {
    /// Reads a `<database-schema>`.
    ///
    /// # Errors
    /// [`Error::Protocol`] if it is none.
    pub fn from_json(json: &Json) -> Result<Self> {
        let bad = |what: &str| Error::Protocol(format!("schema: {what}"));
        let tables = json.get("tables").and_then(Json::as_object).ok_or_else(|| bad("no tables"))?;
        let mut schema = Schema {
            version: json.get("version").and_then(Json::as_str).unwrap_or_default().to_owned(),
            tables: HashMap::with_capacity(tables.len()),
        };
        for (table, body) in tables {
            let columns = body.get("columns").and_then(Json::as_object).ok_or_else(|| bad(table))?;
            let read = |(name, body): (&String, &Json)| {
                let kind = body.get("type");
                let max = kind.and_then(|t| t.get("max"));
                let composite = max.is_some_and(|m| m.as_str() == Some("unlimited") || m.as_u64() > Some(1));
                (name.clone(), Column { composite, map: kind.and_then(|t| t.get("value")).is_some() })
            };
            schema.tables.insert(table.clone(), columns.iter().map(read).collect());
        }
        Ok(schema)
    }

    /// The column, if the server knows it.
    pub fn column(&self, table: &str, column: &str) -> Option<Column> {
        self.tables.get(table)?.get(column).copied()
    }

    /// Whether the server knows the table.
    pub fn has_table(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// Whether the server knows the column (`_uuid` and `_version` are always known).
    pub fn has(&self, table: &str, column: &str) -> bool {
        matches!(column, "_uuid" | "_version") || self.column(table, column).is_some()
    }
}
