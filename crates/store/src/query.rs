//! What to list: filters, order, a page.

use base::{Error, Result};
use serde::Serialize;

use crate::migrate::ident;
use crate::resource::{ColumnKind, Resource};
use crate::value::Value;

/// Ascending or descending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Smallest first.
    #[default]
    Asc,
    /// Largest first.
    Desc,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Filter {
    Compare(&'static str, &'static str, Value),
    In(&'static str, Vec<Value>),
    Null(&'static str, bool),
    Like(&'static str, String),
    Any(Vec<Filter>),
    All(Vec<Filter>),
}

/// A question to one table. Columns are declared fields and `id`, `created_at`, `updated_at`, `generation`, `revision`.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub(crate) filters: Vec<Filter>,
    pub(crate) sort: Vec<(&'static str, Order)>,
    pub(crate) after: Option<String>,
    pub(crate) limit: Option<usize>,
    /// A value that cannot be stored; told when the query is run.
    pub(crate) broken: Option<String>,
}

impl Query {
    /// Everything, oldest first.
    pub fn new() -> Self {
        Self::default()
    }

    fn compare(mut self, column: &'static str, operator: &'static str, value: impl Serialize) -> Self {
        match Value::of(value) {
            Ok(Value::Null) if operator == "=" => self.filters.push(Filter::Null(column, true)),
            Ok(Value::Null) if operator == "<>" => self.filters.push(Filter::Null(column, false)),
            Ok(value) => self.filters.push(Filter::Compare(column, operator, value)),
            Err(error) => self.broken = Some(error.public().to_owned()),
        }
        self
    }

    /// `column` is `value` (`None` means: is null).
    #[must_use]
    pub fn eq(self, column: &'static str, value: impl Serialize) -> Self {
        self.compare(column, "=", value)
    }

    /// `column` is not `value`. Null is not equal to anything, and is left out.
    #[must_use]
    pub fn ne(self, column: &'static str, value: impl Serialize) -> Self {
        self.compare(column, "<>", value)
    }

    /// `column` is larger than `value`.
    #[must_use]
    pub fn gt(self, column: &'static str, value: impl Serialize) -> Self {
        self.compare(column, ">", value)
    }

    /// `column` is `value` or larger.
    #[must_use]
    pub fn ge(self, column: &'static str, value: impl Serialize) -> Self {
        self.compare(column, ">=", value)
    }

    /// `column` is smaller than `value`.
    #[must_use]
    pub fn lt(self, column: &'static str, value: impl Serialize) -> Self {
        self.compare(column, "<", value)
    }

    /// `column` is `value` or smaller.
    #[must_use]
    pub fn le(self, column: &'static str, value: impl Serialize) -> Self {
        self.compare(column, "<=", value)
    }

    /// `column` is one of `values`; any number of them.
    #[must_use]
    pub fn is_in<V: Serialize>(mut self, column: &'static str, values: impl IntoIterator<Item = V>) -> Self {
        match values.into_iter().map(Value::of).collect::<Result<Vec<_>>>() {
            Ok(values) => self.filters.push(Filter::In(column, values)),
            Err(error) => self.broken = Some(error.public().to_owned()),
        }
        self
    }

    /// `column` is null.
    #[must_use]
    pub fn is_null(mut self, column: &'static str) -> Self {
        self.filters.push(Filter::Null(column, true));
        self
    }

    /// `column` is not null.
    #[must_use]
    pub fn is_not_null(mut self, column: &'static str) -> Self {
        self.filters.push(Filter::Null(column, false));
        self
    }

    fn like(mut self, column: &'static str, text: &str, before: &str) -> Self {
        if text.contains('\0') {
            self.broken = Some("NUL characters are not allowed.".into());
            return self;
        }
        let escaped = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        self.filters.push(Filter::Like(column, format!("{before}{escaped}%")));
        self
    }

    /// `column` begins with `text` (ASCII case is ignored).
    #[must_use]
    pub fn prefix(self, column: &'static str, text: &str) -> Self {
        self.like(column, text, "")
    }

    /// `column` contains `text` (ASCII case is ignored).
    #[must_use]
    pub fn contains(self, column: &'static str, text: &str) -> Self {
        self.like(column, text, "%")
    }

    /// At least one of `queries`' filters holds (their order and page are ignored).
    #[must_use]
    pub fn any_of(mut self, queries: impl IntoIterator<Item = Query>) -> Self {
        let mut any = Vec::new();
        for query in queries {
            self.broken = self.broken.or(query.broken);
            any.push(Filter::All(query.filters));
        }
        self.filters.push(Filter::Any(any));
        self
    }

    /// Sorts by `column`; called again for further columns. Ties are broken by id. A sort by `created_at` alone (which
    /// is the default) is what the indexes are made for.
    #[must_use]
    pub fn sort(mut self, column: &'static str, order: Order) -> Self {
        self.sort.push((column, order));
        self
    }

    /// Begins after the resource with this id, in the query's order; `None` begins at the start.
    #[must_use]
    pub fn after(mut self, marker: Option<impl ToString>) -> Self {
        self.after = marker.map(|m| m.to_string());
        self
    }

    /// What it is sorted by, the id aside.
    pub(crate) fn order_by(&self) -> &[(&'static str, Order)] {
        if self.sort.is_empty() { &[("created_at", Order::Asc)] } else { &self.sort }
    }

    /// Whether it matters in which order they come.
    pub(crate) fn is_ordered(&self) -> bool {
        !self.sort.is_empty() || self.limit.is_some() || self.after.is_some()
    }

    /// At most `limit` resources.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// At most `limit` resources where there is one.
    #[must_use]
    pub fn limit_opt(mut self, limit: Option<usize>) -> Self {
        self.limit = limit.or(self.limit);
        self
    }
}

/// SQL of one dialect with its parameters, numbered `$1`, `$2`, … in order of appearance.
pub(crate) struct Sql {
    pub text: String,
    pub params: Vec<Value>,
    pub postgres: bool,
}

impl Sql {
    pub fn new(text: impl Into<String>, postgres: bool) -> Self {
        Sql { text: text.into(), params: Vec::new(), postgres }
    }

    /// `text` with a parameter at every question mark.
    pub fn of(postgres: bool, text: &str, params: impl IntoIterator<Item = Value>) -> Self {
        let mut sql = Sql::new("", postgres);
        let mut params = params.into_iter();
        for (i, part) in text.split('?').enumerate() {
            if i > 0 {
                sql.bind(params.next().unwrap_or(Value::Null));
            }
            sql.push(part);
        }
        sql
    }

    pub fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    pub fn bind(&mut self, value: Value) -> &mut Self {
        self.params.push(value);
        let n = self.params.len();
        self.text.push_str(&format!("${n}"));
        self
    }

    /// A table `v` with the columns `id`, `body`, `held` and a resource's own, made of JSON records (PostgreSQL only).
    pub fn records<R: Resource>(
        &mut self,
        columns: &[&'static str],
        rows: Vec<serde_json::Value>,
    ) -> &mut Self {
        self.push("jsonb_to_recordset(CAST(CAST(")
            .bind(Value::Text(serde_json::Value::Array(rows).to_string()))
            .push(" AS TEXT) AS JSONB)) AS v(id TEXT, body TEXT, held BIGINT");
        for column in columns {
            let kind = match R::column_kind(column) {
                Some(ColumnKind::Int) => " BIGINT",
                _ => " TEXT",
            };
            self.push(", ").push(&ident(column)).push(kind);
        }
        self.push(")")
    }

    /// ` WHERE …` of the query's filters.
    pub fn filters<R: Resource>(&mut self, query: &Query) -> Result<()> {
        if let Some(broken) = &query.broken {
            return Err(Error::bad_request(broken.clone()));
        }
        self.push(" WHERE ");
        self.all::<R>(&query.filters)
    }

    fn all<R: Resource>(&mut self, filters: &[Filter]) -> Result<()> {
        if filters.is_empty() {
            self.push("1=1");
        }
        // SQLite knows nothing of how many rows a condition leaves. It would take the index of a flag, and so a large part
        // of the table, as readily as that of an id. A plus keeps an index from being used.
        let names_rows = |f: &Filter| matches!(f, Filter::In(..) | Filter::Compare(_, "=", Value::Text(_)));
        let by_flag = |f: &Filter| matches!(f, Filter::Compare(_, "=", Value::Int(_)));
        let named = !self.postgres && filters.iter().any(names_rows);
        for (i, filter) in filters.iter().enumerate() {
            if i > 0 {
                self.push(" AND ");
            }
            if named && by_flag(filter) {
                self.push("+");
            }
            self.filter::<R>(filter)?;
        }
        Ok(())
    }

    fn filter<R: Resource>(&mut self, filter: &Filter) -> Result<()> {
        match filter {
            Filter::Compare(name, operator, value) => {
                if kind::<R>(name)? != kind_of_value(value) {
                    // A number asked of a text column or the reverse: equal to nothing.
                    self.push(if *operator == "<>" { "1=1" } else { "1=0" });
                    return Ok(());
                }
                self.push(&ident(name)).push(" ").push(operator).push(" ");
                self.bind(value.clone());
            }
            Filter::In(name, values) => self.one_of::<R>(name, values)?,
            Filter::Null(name, is) => {
                kind::<R>(name)?;
                self.push(&ident(name)).push(if *is { " IS NULL" } else { " IS NOT NULL" });
            }
            Filter::Like(name, pattern) => {
                kind::<R>(name)?;
                let column = ident(name);
                if !self.postgres {
                    // Ignores ASCII case.
                    self.push(&column).push(" LIKE ");
                    self.bind(Value::Text(pattern.clone())).push(" ESCAPE '\\'");
                    return Ok(());
                }
                // LOWER changes ASCII only on columns of collation "C". ILIKE would lower the pattern for each row, too.
                let cased = pattern.bytes().any(|b| b.is_ascii_alphabetic());
                self.push(&if cased { format!("LOWER({column})") } else { column }).push(" LIKE ");
                self.bind(Value::Text(pattern.to_ascii_lowercase()));
            }
            Filter::Any(filters) if filters.is_empty() => {
                self.push("1=0");
            }
            Filter::Any(filters) => {
                for (i, filter) in filters.iter().enumerate() {
                    self.push(if i > 0 { " OR " } else { "(" });
                    self.filter::<R>(filter)?;
                }
                self.push(")");
            }
            Filter::All(filters) => {
                self.push("(");
                self.all::<R>(filters)?;
                self.push(")");
            }
        }
        Ok(())
    }

    /// One parameter for any number of values, so that the statement stays the same and stays prepared.
    fn one_of<R: Resource>(&mut self, name: &'static str, values: &[Value]) -> Result<()> {
        let kind = kind::<R>(name)?;
        let some = |v: &&Value| **v != Value::Null && kind_of_value(v) == kind;
        self.is_one_of(&ident(name), values.iter().filter(some).cloned().collect());
        Ok(())
    }

    /// That `expression` is among values of one kind. PostgreSQL is given an array: of a set that a function returns it
    /// believes that it has a hundred elements, and reads a whole table for it, which in a transaction that others may
    /// meet also counts as having seen all of it.
    pub fn is_one_of(&mut self, expression: &str, values: Vec<Value>) -> &mut Self {
        let (before, after) =
            if self.postgres { (" = ANY(", ")") } else { (" IN (SELECT value FROM json_each(", "))") };
        self.push(expression).push(before).bind(Value::List(values)).push(after)
    }

    /// ` ORDER BY … LIMIT …`.
    pub fn order<R: Resource>(&mut self, query: &Query) -> Result<()> {
        self.push(" ORDER BY ");
        for (name, order) in query.order_by() {
            let expression = sortable::<R>(name)?;
            self.push(&expression).push(if *order == Order::Asc { ", " } else { " DESC, " });
        }
        self.push("id").push(if id_order(query) == Order::Asc { "" } else { " DESC" });
        if let Some(limit) = query.limit {
            self.push(" LIMIT ").bind(Value::Int(i64::try_from(limit).unwrap_or(i64::MAX)));
        }
        Ok(())
    }

    /// ` AND (…)`: what comes after a row with these sort values.
    pub fn after<R: Resource>(&mut self, query: &Query, row: &[Value], id: &str) -> Result<()> {
        let sort = query.order_by();
        let order = id_order(query);
        if sort.iter().all(|(_, other)| *other == order) {
            // As one comparison of rows an index begins right at the marker, however many rows share its sort values.
            self.push(" AND (");
            for (name, _) in sort {
                self.push(&sortable::<R>(name)?).push(", ");
            }
            self.push(if order == Order::Asc { "id) > (" } else { "id) < (" });
            for j in 0..sort.len() {
                self.bind(row.get(j).cloned().unwrap_or(Value::Null)).push(", ");
            }
            self.bind(Value::Text(id.to_owned())).push(")");
            return Ok(());
        }
        if let Some(((name, order), value)) = sort.first().zip(row.first()) {
            // Implied by what follows; with it an index begins at the first row of the marker's value.
            let operator = if *order == Order::Asc { " >= " } else { " <= " };
            self.push(" AND ").push(&sortable::<R>(name)?).push(operator).bind(value.clone());
        }
        self.push(" AND (");
        for i in 0..=sort.len() {
            self.push(if i > 0 { " OR (" } else { "(" });
            for (j, (name, order)) in sort.iter().enumerate().take(i + 1) {
                let operator = if j < i {
                    " = "
                } else if *order == Order::Asc {
                    " > "
                } else {
                    " < "
                };
                let value = row.get(j).cloned().unwrap_or(Value::Null);
                self.push(&sortable::<R>(name)?).push(operator);
                self.bind(value).push(if j < i { " AND " } else { "" });
            }
            if i == sort.len() {
                self.push(if order == Order::Asc { "id > " } else { "id < " });
                self.bind(Value::Text(id.to_owned()));
            }
            self.push(")");
        }
        self.push(")");
        Ok(())
    }
}

fn id_order(query: &Query) -> Order {
    query.order_by().last().map_or(Order::Asc, |(_, order)| *order)
}

/// Nulls sort first in one engine and last in the other: they are given a value.
pub(crate) fn sortable<R: Resource>(name: &str) -> Result<String> {
    Ok(match kind::<R>(name)? {
        _ if ["id", "created_at", "updated_at", "generation", "revision"].contains(&name) => name.to_owned(),
        ColumnKind::Text => format!("COALESCE({}, '')", ident(name)),
        ColumnKind::Int => format!("COALESCE({}, -1)", ident(name)),
    })
}

fn kind_of_value(value: &Value) -> ColumnKind {
    if matches!(value, Value::Int(_)) { ColumnKind::Int } else { ColumnKind::Text }
}

/// The kind of a column that queries may use.
fn kind<R: Resource>(name: &str) -> Result<ColumnKind> {
    let known = ["id", "created_at", "updated_at", "generation", "revision"].contains(&name)
        || R::columns().contains(&name);
    match R::column_kind(name) {
        Some(kind) if known => Ok(kind),
        _ => Err(Error::internal(format!("{} has no column {name}", R::TABLE))),
    }
}
