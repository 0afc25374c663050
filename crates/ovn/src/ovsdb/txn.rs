//! Transactions (RFC 7047 section 5.2).

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use super::{Error, Result, Schema, Value, value::Atom};

/// A row that is there, or one that the same transaction inserts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ref {
    /// There.
    Uuid(Uuid),
    /// Inserted by the same transaction.
    Named(String),
}

impl From<Ref> for Atom {
    fn from(r: Ref) -> Self {
        match r {
            Ref::Uuid(u) => Atom::Uuid(u),
            Ref::Named(n) => Atom::Named(n),
        }
    }
}

/// Columns of a row.
pub type Columns = BTreeMap<String, Value>;

/// A condition: column, function (`==`, `!=`, `includes`, `excludes` …), value.
pub type Condition = (String, &'static str, Value);

/// How a column shall be mutated: column, mutator (`insert`, `delete`, `+=` …), value.
pub type Mutation = (String, &'static str, Value);

#[derive(Debug, Clone, PartialEq)]
enum Op {
    Insert { table: String, name: String, row: Columns },
    Update { table: String, on: Vec<Condition>, row: Columns },
    Mutate { table: String, on: Vec<Condition>, mutations: Vec<Mutation> },
    Delete { table: String, on: Vec<Condition> },
    Wait { table: String, on: Vec<Condition>, columns: Vec<String>, rows: Vec<Columns> },
    Select { table: String, on: Vec<Condition>, columns: Vec<String> },
    Comment(String),
}

/// A transaction being built. All or nothing of it takes place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Txn {
    ops: Vec<Op>,
    inserts: usize,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it writes anything (guards and comments do not count).
    pub fn writes(&self) -> bool {
        self.ops.iter().any(|op| !matches!(op, Op::Wait { .. } | Op::Comment(_) | Op::Select { .. }))
    }

    /// Inserts a row and answers how to refer to it inside this transaction.
    pub fn insert(&mut self, table: &str, row: Columns) -> Ref {
        self.inserts += 1;
        let name = format!("row{}", self.inserts);
        self.insert_as(table, &name, row);
        Ref::Named(name)
    }

    /// A name for a row that will be inserted with [`Txn::insert_as`]; others may refer to it before that.
    pub fn name(&mut self) -> Ref {
        self.inserts += 1;
        Ref::Named(format!("row{}", self.inserts))
    }

    /// Inserts a row under a name from [`Txn::name`].
    pub fn insert_as(&mut self, table: &str, name: &str, row: Columns) {
        self.ops.push(Op::Insert { table: table.to_owned(), name: name.to_owned(), row });
    }

    /// Sets columns of one row.
    pub fn update(&mut self, table: &str, row: &Ref, columns: Columns) {
        self.ops.push(Op::Update { table: table.to_owned(), on: vec![is(row)], row: columns });
    }

    /// Mutates one row.
    pub fn mutate(&mut self, table: &str, row: &Ref, mutations: Vec<Mutation>) {
        self.ops.push(Op::Mutate { table: table.to_owned(), on: vec![is(row)], mutations });
    }

    /// Mutates every row that meets the conditions (none: all rows).
    pub fn mutate_where(&mut self, table: &str, on: Vec<Condition>, mutations: Vec<Mutation>) {
        self.ops.push(Op::Mutate { table: table.to_owned(), on, mutations });
    }

    /// Deletes one row.
    pub fn delete(&mut self, table: &str, row: Uuid) {
        self.ops.push(Op::Delete { table: table.to_owned(), on: vec![is(&Ref::Uuid(row))] });
    }

    /// Deletes every row that meets the conditions.
    pub fn delete_where(&mut self, table: &str, on: Vec<Condition>) {
        self.ops.push(Op::Delete { table: table.to_owned(), on });
    }

    /// Lets the transaction fail with `timed out` unless exactly these rows meet the conditions now.
    pub fn wait(&mut self, table: &str, on: Vec<Condition>, columns: &[&str], rows: Vec<Columns>) {
        let columns = columns.iter().map(|c| (*c).to_owned()).collect();
        self.ops.push(Op::Wait { table: table.to_owned(), on, columns, rows });
    }

    /// Asks for columns as they are at this point of the transaction; see [`Answer::rows`].
    pub fn select(&mut self, table: &str, on: Vec<Condition>, columns: &[&str]) {
        let columns = columns.iter().map(|c| (*c).to_owned()).collect();
        self.ops.push(Op::Select { table: table.to_owned(), on, columns });
    }

    /// Writes a comment into the server's log.
    pub fn comment(&mut self, text: impl Into<String>) {
        self.ops.push(Op::Comment(text.into()));
    }

    /// The operations as `transact` takes them. Columns and tables the server does not know are left out.
    pub fn to_json(&self, schema: &Schema) -> Vec<Json> {
        self.ops.iter().filter_map(|op| op.to_json(schema)).collect()
    }
}

/// The condition `_uuid == row`.
pub fn is(row: &Ref) -> Condition {
    ("_uuid".into(), "==", Value::one(row.clone()))
}

fn columns_json(row: &Columns, keep: impl Fn(&str) -> bool) -> Json {
    Json::Object(
        row.iter().filter(|(c, _)| keep(c)).map(|(c, v)| (c.clone(), v.to_json())).collect::<Map<_, _>>(),
    )
}

fn conditions_json(on: &[Condition]) -> Json {
    on.iter().map(|(c, f, v)| json!([c, f, v.to_json()])).collect()
}

impl Op {
    fn to_json(&self, schema: &Schema) -> Option<Json> {
        let known = |table: &str| schema.has_table(table);
        Some(match self {
            Op::Insert { table, name, row } if known(table) => json!({
                "op": "insert", "table": table, "uuid-name": name, "row": columns_json(row, |c| schema.has(table, c))
            }),
            Op::Update { table, on, row } if known(table) => json!({
                "op": "update", "table": table, "where": conditions_json(on),
                "row": columns_json(row, |c| schema.has(table, c))
            }),
            Op::Mutate { table, on, mutations } if known(table) => json!({
                "op": "mutate", "table": table, "where": conditions_json(on), "mutations":
                    mutations.iter().filter(|(c, ..)| schema.has(table, c))
                        .map(|(c, m, v)| json!([c, m, v.to_json()])).collect::<Vec<_>>()
            }),
            Op::Delete { table, on } if known(table) => {
                json!({ "op": "delete", "table": table, "where": conditions_json(on) })
            }
            Op::Wait { table, on, columns, rows } if known(table) => json!({
                "op": "wait", "timeout": 0, "table": table, "where": conditions_json(on), "columns": columns,
                "until": "==", "rows": rows.iter().map(|r| columns_json(r, |_| true)).collect::<Vec<_>>()
            }),
            Op::Select { table, on, columns } if known(table) => {
                json!({ "op": "select", "table": table, "where": conditions_json(on), "columns": columns })
            }
            Op::Comment(text) => json!({ "op": "comment", "comment": text }),
            _ => return None,
        })
    }
}

/// What a transaction that took place answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    results: Vec<Json>,
}

impl Answer {
    /// Reads the result array: every element counts, and so do those beyond the last operation (constraints are
    /// checked at the end and told there).
    ///
    /// # Errors
    /// [`Error::Refused`] with the first error found.
    pub fn from_json(result: Json) -> Result<Self> {
        let Json::Array(results) = result else {
            return Err(Error::Protocol("transact answered no array".into()));
        };
        for result in &results {
            if let Some(error) = result.get("error").and_then(Json::as_str) {
                let details = result.get("details").and_then(Json::as_str).unwrap_or_default().to_owned();
                return Err(Error::Refused { error: error.to_owned(), details });
            }
        }
        Ok(Answer { results })
    }

    /// Rows of the first `select`.
    pub fn rows(&self) -> Vec<BTreeMap<String, Value>> {
        let rows = self.results.iter().find_map(|r| r.get("rows").and_then(Json::as_array));
        let read = |row: &Json| {
            let columns = row.as_object()?.iter();
            Some(columns.filter_map(|(c, v)| Some((c.clone(), Value::from_json(v).ok()?))).collect())
        };
        rows.into_iter().flatten().filter_map(read).collect()
    }

    /// How many rows the operations updated, mutated or deleted.
    pub fn count(&self) -> u64 {
        self.results.iter().filter_map(|r| r.get("count").and_then(Json::as_u64)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        Schema::from_json(
            &json!({"version": "1.0.0", "tables": {"T": {"columns": {"name": {"type": "string"}}}}}),
        )
        .unwrap()
    }

    #[test]
    fn unknown_columns_and_tables_are_left_out() {
        let mut txn = Txn::new();
        let columns = Columns::from([("name".into(), Value::one("a")), ("tier".into(), Value::one(1))]);
        let row = txn.insert("T", columns);
        assert_eq!(row, Ref::Named("row1".into()));
        txn.insert("Later", Columns::new());
        txn.mutate(
            "T",
            &row,
            vec![("tier".into(), "+=", Value::one(1)), ("name".into(), "insert", Value::one("b"))],
        );
        let ops = txn.to_json(&schema());
        assert_eq!(
            ops,
            vec![
                json!({"op": "insert", "table": "T", "uuid-name": "row1", "row": {"name": "a"}}),
                json!({"op": "mutate", "table": "T", "where": [["_uuid", "==", ["named-uuid", "row1"]]],
                       "mutations": [["name", "insert", "b"]]}),
            ]
        );
    }

    #[test]
    fn errors_are_found_wherever_they_stand() {
        let extra = json!([{"count": 1}, {}, {"error": "constraint violation", "details": "duplicate"}]);
        let error = Answer::from_json(extra).unwrap_err();
        assert!(error.is_stale(), "{error}");
        let middle = json!([{"error": "timed out"}, null]);
        assert!(Answer::from_json(middle).unwrap_err().is_stale());
        assert_eq!(
            Answer::from_json(json!([{"count": 1}, {"uuid": ["uuid", "x"]}, {"count": 2}])).unwrap().count(),
            3
        );
    }
}
