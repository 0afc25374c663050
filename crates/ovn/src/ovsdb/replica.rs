//! The in-memory copy of watched tables.
//!
//! Invariant: after each applied message the copy equals the server's tables at one moment; a reconnect replaces it
//! whole and tells the differences as if they had happened one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value as Json;
use uuid::Uuid;

use super::value::Atom;
use super::{Error, Result, Schema, Value};

/// A table to watch.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Its name.
    pub table: &'static str,
    /// Columns to copy; those the server lacks are left out.
    pub columns: &'static [&'static str],
    /// Keys of `external_ids` (text to text) by which rows are looked up.
    pub index: &'static [&'static str],
    /// Whether listeners are told each change. Each told change keeps two copies of its row for a while.
    pub tell: bool,
}

/// A row: its columns that differ from the schema's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    columns: BTreeMap<String, Value>,
}

impl Row {
    /// A row with these columns.
    pub fn new(columns: BTreeMap<String, Value>) -> Self {
        Row { columns }
    }

    /// The column as sent; `None` if it has its default.
    pub fn get(&self, column: &str) -> Option<&Value> {
        self.columns.get(column)
    }

    fn first(&self, column: &str) -> Option<&Atom> {
        match self.columns.get(column)? {
            Value::Set(set) => set.first(),
            Value::Map(_) => None,
        }
    }

    /// A text; empty if absent.
    pub fn text(&self, column: &str) -> &str {
        match self.first(column) {
            Some(Atom::Str(text)) => text,
            _ => "",
        }
    }

    /// An integer; 0 if absent.
    pub fn int(&self, column: &str) -> i64 {
        match self.first(column) {
            Some(Atom::Int(i)) => *i,
            _ => 0,
        }
    }

    /// A boolean, if present. The default of a plain boolean is false and is not sent.
    pub fn bool(&self, column: &str) -> Option<bool> {
        match self.first(column) {
            Some(Atom::Bool(b)) => Some(*b),
            _ => None,
        }
    }

    /// Rows referred to.
    pub fn refs(&self, column: &str) -> impl Iterator<Item = Uuid> + '_ {
        let set = match self.columns.get(column) {
            Some(Value::Set(set)) => Some(set),
            _ => None,
        };
        set.into_iter().flatten().filter_map(|a| match a {
            Atom::Uuid(u) => Some(*u),
            _ => None,
        })
    }

    /// Whether the column refers to that row.
    pub fn has_ref(&self, column: &str, row: Uuid) -> bool {
        matches!(self.columns.get(column), Some(Value::Set(set)) if set.contains(&Atom::Uuid(row)))
    }

    /// Texts of a set.
    pub fn texts(&self, column: &str) -> impl Iterator<Item = &str> + '_ {
        let set = match self.columns.get(column) {
            Some(Value::Set(set)) => Some(set),
            _ => None,
        };
        set.into_iter().flatten().filter_map(|a| match a {
            Atom::Str(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// The value of a key of a text-to-text map.
    pub fn key(&self, column: &str, key: &str) -> Option<&str> {
        match self.columns.get(column)? {
            Value::Map(map) => match map.get(&Atom::from(key))? {
                Atom::Str(text) => Some(text),
                _ => None,
            },
            Value::Set(_) => None,
        }
    }

    /// The value of a key of `external_ids`.
    pub fn external_id(&self, key: &str) -> Option<&str> {
        self.key("external_ids", key)
    }

    /// All text pairs of a map.
    pub fn pairs(&self, column: &str) -> impl Iterator<Item = (&str, &str)> + '_ {
        let map = match self.columns.get(column) {
            Some(Value::Map(map)) => Some(map),
            _ => None,
        };
        map.into_iter().flatten().filter_map(|(k, v)| match (k, v) {
            (Atom::Str(k), Atom::Str(v)) => Some((k.as_str(), v.as_str())),
            _ => None,
        })
    }
}

/// A row that came, changed or went.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its table.
    pub table: &'static str,
    /// Its id.
    pub uuid: Uuid,
    /// As it was.
    pub old: Option<Arc<Row>>,
    /// As it is.
    pub new: Option<Arc<Row>>,
}

#[derive(Debug, Clone, Default)]
struct Table {
    rows: BTreeMap<Uuid, Arc<Row>>,
    names: HashMap<String, BTreeSet<Uuid>>,
    external: HashMap<(&'static str, String), BTreeSet<Uuid>>,
    index: &'static [&'static str],
    tell: bool,
}

impl Table {
    fn reindex(&mut self, uuid: Uuid, row: &Row, add: bool) {
        fn put<K: std::hash::Hash + Eq>(
            index: &mut HashMap<K, BTreeSet<Uuid>>,
            key: K,
            uuid: Uuid,
            add: bool,
        ) {
            if add {
                index.entry(key).or_default().insert(uuid);
            } else if let Some(set) = index.get_mut(&key) {
                set.remove(&uuid);
                if set.is_empty() {
                    index.remove(&key);
                }
            }
        }
        let name = row.text("name");
        if !name.is_empty() {
            put(&mut self.names, name.to_owned(), uuid, add);
        }
        for key in self.index {
            if let Some(value) = row.external_id(key) {
                put(&mut self.external, (key, value.to_owned()), uuid, add);
            }
        }
    }

    fn set(&mut self, uuid: Uuid, new: Option<Arc<Row>>) -> Option<Arc<Row>> {
        let old = match &new {
            Some(row) => self.rows.insert(uuid, Arc::clone(row)),
            None => self.rows.remove(&uuid),
        };
        if let Some(row) = &old {
            self.reindex(uuid, row, false);
        }
        if let Some(row) = &new {
            self.reindex(uuid, row, true);
        }
        old
    }
}

/// A copy of tables with look-up by name and by selected `external_ids`.
#[derive(Debug, Clone, Default)]
pub struct Replica {
    tables: BTreeMap<&'static str, Table>,
}

impl Replica {
    /// An empty copy of the watched tables.
    pub fn new(watches: &[Watch]) -> Self {
        let table = |w: &Watch| (w.table, Table { index: w.index, tell: w.tell, ..Table::default() });
        Replica { tables: watches.iter().map(table).collect() }
    }

    /// The row.
    pub fn row(&self, table: &str, uuid: Uuid) -> Option<&Arc<Row>> {
        self.tables.get(table)?.rows.get(&uuid)
    }

    /// All rows of a table, in uuid order.
    pub fn rows(&self, table: &str) -> impl Iterator<Item = (Uuid, &Arc<Row>)> + '_ {
        self.tables.get(table).into_iter().flat_map(|t| t.rows.iter().map(|(u, r)| (*u, r)))
    }

    /// Rows of that name, in uuid order.
    pub fn named(&self, table: &str, name: &str) -> impl Iterator<Item = (Uuid, &Arc<Row>)> + '_ {
        let table = self.tables.get(table);
        let ids = table.and_then(|t| t.names.get(name));
        ids.into_iter().flatten().filter_map(move |u| Some((*u, table?.rows.get(u)?)))
    }

    /// Rows whose `external_ids` have that pair, in uuid order. The key must be one of the table's index keys.
    pub fn external<'a>(
        &'a self,
        table: &str,
        key: &str,
        value: &str,
    ) -> impl Iterator<Item = (Uuid, &'a Arc<Row>)> + 'a {
        let table = self.tables.get(table);
        let ids = table.and_then(|t| {
            let key = t.index.iter().find(|k| **k == key)?;
            t.external.get(&(*key, value.to_owned()))
        });
        ids.into_iter().flatten().filter_map(move |u| Some((*u, table?.rows.get(u)?)))
    }

    /// Puts a row as it is. For tests and for building copies by hand.
    pub fn put(&mut self, table: &'static str, uuid: Uuid, row: Row) {
        self.tables.entry(table).or_default().set(uuid, Some(Arc::new(row)));
    }

    /// Applies RFC 7047bis `<table-updates2>`.
    ///
    /// # Errors
    /// [`Error::Protocol`] if it is none, or changes a row that is not there; the copy is then of no use.
    pub fn apply(&mut self, schema: &Schema, updates: &Json) -> Result<Vec<Change>> {
        let bad = |what: &str| Error::Protocol(format!("update: {what}"));
        let mut changes = Vec::new();
        for (name, rows) in updates.as_object().ok_or_else(|| bad("not an object"))? {
            let Some((&table_name, table)) = self.tables.iter_mut().find(|(t, _)| **t == name.as_str())
            else {
                return Err(bad("a table that was not asked for"));
            };
            for (uuid, update) in rows.as_object().ok_or_else(|| bad("rows"))? {
                let uuid = Uuid::try_parse(uuid).map_err(|_| bad("row id"))?;
                let update = update.as_object().ok_or_else(|| bad("row"))?;
                let Some((kind, body)) = update.iter().next() else { return Err(bad("empty row update")) };
                let new = match kind.as_str() {
                    "initial" | "insert" => Some(changed(schema, name, Row::default(), body, false)?),
                    "modify" => {
                        let old =
                            table.rows.get(&uuid).ok_or_else(|| bad("modifies a row that is not there"))?;
                        Some(changed(schema, name, Row::clone(old), body, true)?)
                    }
                    "delete" => None,
                    _ => return Err(bad("kind of change")),
                }
                .map(Arc::new);
                let old = table.set(uuid, new.clone());
                if table.tell {
                    changes.push(Change { table: table_name, uuid, old, new });
                }
            }
        }
        Ok(changes)
    }

    /// What leads from this copy to `next`.
    pub fn changes_to(&self, next: &Replica) -> Vec<Change> {
        let mut changes = Vec::new();
        for (&table, after) in next.tables.iter().filter(|(_, t)| t.tell) {
            let empty = BTreeMap::new();
            let before = self.tables.get(table).map_or(&empty, |t| &t.rows);
            for (&uuid, new) in &after.rows {
                let old = before.get(&uuid);
                if old != Some(new) {
                    changes.push(Change { table, uuid, old: old.cloned(), new: Some(Arc::clone(new)) });
                }
            }
            for (&uuid, old) in before.iter().filter(|(u, _)| !after.rows.contains_key(u)) {
                changes.push(Change { table, uuid, old: Some(Arc::clone(old)), new: None });
            }
        }
        changes
    }
}

fn changed(schema: &Schema, table: &str, mut row: Row, body: &Json, modify: bool) -> Result<Row> {
    let columns = body.as_object().ok_or_else(|| Error::Protocol("update: columns".into()))?;
    for (name, json) in columns {
        let value = Value::from_json(json)?;
        let composite = schema.column(table, name).is_some_and(|c| c.composite);
        match row.columns.get_mut(name) {
            Some(have) if modify && composite => have.apply_diff(value),
            _ => {
                row.columns.insert(name.clone(), value);
            }
        }
    }
    row.columns.retain(|_, v| !v.is_empty());
    Ok(row)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::value::tests::any_json;
    use super::*;

    const A: &str = "00000000-0000-0000-0000-00000000000a";

    fn schema() -> Schema {
        let text_map = json!({"key": "string", "value": "string", "min": 0, "max": "unlimited"});
        Schema::from_json(&json!({"version": "1.0.0", "tables": {"T": {"columns": {
            "name": {"type": "string"},
            "up": {"type": {"key": "boolean", "min": 0, "max": 1}},
            "ports": {"type": {"key": {"type": "uuid", "refTable": "P"}, "min": 0, "max": "unlimited"}},
            "external_ids": {"type": text_map}
        }}}}))
        .unwrap()
    }

    fn replica() -> Replica {
        Replica::new(&[Watch {
            table: "T",
            columns: &["name", "up", "ports", "external_ids"],
            index: &["k"],
            tell: true,
        }])
    }

    #[test]
    fn insert_modify_delete_keep_the_indexes() {
        let (schema, mut replica) = (schema(), replica());
        let port = "00000000-0000-0000-0000-0000000000b1";
        let row =
            json!({"name": "n", "ports": ["uuid", port], "external_ids": ["map", [["k", "1"], ["x", "y"]]]});
        replica.apply(&schema, &json!({"T": {A: {"insert": row}}})).unwrap();
        assert_eq!(replica.named("T", "n").count(), 1);
        assert_eq!(replica.external("T", "k", "1").count(), 1);

        let change =
            json!({"up": true, "ports": ["uuid", port], "external_ids": ["map", [["k", "2"], ["x", "y"]]]});
        let changes = replica.apply(&schema, &json!({"T": {A: {"modify": change}}})).unwrap();
        assert_eq!(changes[0].old.as_ref().unwrap().bool("up"), None);
        let (_, row) = replica.external("T", "k", "2").next().unwrap();
        assert_eq!((row.bool("up"), row.refs("ports").count(), row.external_id("x")), (Some(true), 0, None));
        assert_eq!(replica.external("T", "k", "1").count(), 0);

        // An optional scalar carries its new value, here none.
        replica.apply(&schema, &json!({"T": {A: {"modify": {"up": ["set", []]}}}})).unwrap();
        assert_eq!(replica.named("T", "n").next().unwrap().1.bool("up"), None);

        replica.apply(&schema, &json!({"T": {A: {"delete": null}}})).unwrap();
        assert_eq!(replica.rows("T").count() + replica.named("T", "n").count(), 0);
        assert!(
            replica.apply(&schema, &json!({"T": {A: {"modify": {}}}})).is_err(),
            "a row that is not there"
        );
    }

    #[test]
    fn a_new_dump_is_told_as_changes() {
        let (schema, mut old, mut new) = (schema(), replica(), replica());
        let b = "00000000-0000-0000-0000-00000000000b";
        old.apply(&schema, &json!({"T": {A: {"initial": {"name": "a"}}, b: {"initial": {"name": "b"}}}}))
            .unwrap();
        let c = "00000000-0000-0000-0000-00000000000c";
        new.apply(&schema, &json!({"T": {A: {"initial": {"name": "a2"}}, c: {"initial": {}}}})).unwrap();
        let kinds: Vec<_> = old.changes_to(&new).iter().map(|c| (c.old.is_some(), c.new.is_some())).collect();
        assert_eq!(kinds, vec![(true, true), (false, true), (true, false)]);
    }

    proptest! {
        #[test]
        fn never_panics(updates in prop::collection::vec(any_json(), 1..4)) {
            let (schema, mut replica) = (schema(), replica());
            for update in updates {
                let _ = replica.apply(&schema, &update);
                let _ = replica.apply(&schema, &json!({"T": {A: update}}));
            }
        }
    }
}
