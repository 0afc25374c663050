//! What a transaction can do.

use base::{Error, Result, Timestamp};
use serde_json::Value as Json;

use crate::migrate::ident;
use crate::outbox::Wake;
use crate::query::{Query, Sql, sortable};
use crate::resource::{ColumnKind, Resource, conflict};
use crate::value::Value;

/// How an engine runs a statement; `$n` parameters in order of appearance.
pub(crate) trait Connection {
    fn postgres(&self) -> bool;
    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Vec<Value>>, Failure>;
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, Failure>;
    /// As `execute`, and the transaction goes on after [`Failure::Unique`].
    fn execute_unique(&mut self, sql: &str, params: &[Value]) -> Result<u64, Failure>;
    /// Takes a write on, to send it with what comes next; it may break uniqueness. Should it not change as many rows as
    /// expected, or fail, the closure is run again without this. `false`: it was not taken, and is to be executed.
    fn later(&mut self, _sql: &str, _params: &[Value], _changes: u64) -> Result<bool, Failure> {
        Ok(false)
    }
    /// The answer of a statement of this transaction, where it is kept and nothing was written to the table since.
    fn known(&self, _table: &'static str, _sql: &str, _params: &[Value]) -> Option<Vec<Vec<Value>>> {
        None
    }
    /// Keeps what a statement answers, or would.
    fn learn(&mut self, _table: &'static str, _sql: &str, _params: &[Value], _rows: &[Vec<Value>]) {}
    /// Forgets what is known of a table, or of all.
    fn unlearn(&mut self, _table: Option<&'static str>) {}
    /// Tells other processes, on commit, that the outbox has something new.
    fn notify(&mut self) -> Result<(), Failure> {
        Ok(())
    }
    /// Runs statements without parameters.
    fn batch(&mut self, sql: &str) -> Result<(), Failure>;
}

/// What an engine says when a statement fails.
pub(crate) enum Failure {
    /// A unique index refused: its name, or the columns (SQLite tells only those).
    Unique(String),
    /// Another writer was in the way.
    Retry(String),
    /// Everything else.
    Other(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unique(what) => Error::conflict("It exists already.").caused_by(what),
            Failure::Retry(why) => Error::retry(why),
            Failure::Other(error) => error,
        }
    }
}

/// A transaction. Its moment stands still: everything it writes has the same time.
pub struct Tx<'a> {
    pub(crate) connection: &'a mut dyn Connection,
    now: Timestamp,
    writable: bool,
    pub(crate) wakes: Vec<Wake>,
    /// A unique index refused a write: what refused it may be invisible to this snapshot and visible to the next.
    pub(crate) violated: bool,
    /// Rows may have fields that this program does not know: they are kept.
    behind: bool,
    /// Statements so far.
    statements: u64,
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        let kind = if self.writable { "write" } else { "read" };
        metrics::counter!("allod_store_statements_total", "kind" => kind).increment(self.statements);
    }
}

/// A compare-and-set that met another revision. A transaction reads its own snapshot, so the copy came from outside it
/// and running the closure again cannot help.
#[derive(Debug)]
struct Stale(String);

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was changed or deleted", self.0)
    }
}

impl std::error::Error for Stale {}

pub(crate) fn is_stale(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|s| s.is::<Stale>())
}

impl<'a> Tx<'a> {
    pub(crate) fn new(connection: &'a mut dyn Connection, now: Timestamp, writable: bool) -> Self {
        Tx { connection, now, writable, wakes: Vec::new(), violated: false, behind: false, statements: 0 }
    }

    pub(crate) fn keep_unknown(&mut self, behind: bool) {
        self.behind = behind;
    }

    /// The transaction's moment.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    fn sql(&self, text: impl Into<String>) -> Sql {
        Sql::new(text, self.connection.postgres())
    }

    pub(crate) fn rows(&mut self, sql: &Sql) -> Result<Vec<Vec<Value>>> {
        self.statements += 1;
        Ok(self.connection.query(&sql.text, &sql.params)?)
    }

    /// As `rows`, of a resource.
    fn rows_of<R: Resource>(&mut self, sql: &Sql) -> Result<Vec<Vec<Value>>> {
        if let Some(rows) = self.connection.known(R::TABLE, &sql.text, &sql.params) {
            return Ok(rows);
        }
        let rows = self.rows(sql)?;
        self.connection.learn(R::TABLE, &sql.text, &sql.params, &rows);
        Ok(rows)
    }

    pub(crate) fn change(&mut self, sql: &Sql) -> Result<u64> {
        self.connection.unlearn(None);
        self.statements += 1;
        Ok(self.connection.execute(&sql.text, &sql.params)?)
    }

    fn may_write(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::internal("a read transaction tried to write")) }
    }

    /// The resource with this id, if there is one.
    ///
    /// # Errors
    /// From the database only.
    pub fn get<R: Resource>(&mut self, id: &R::Id) -> Result<Option<R>> {
        self.by_text::<R>(&id.to_string())
    }

    fn by_text<R: Resource>(&mut self, id: &str) -> Result<Option<R>> {
        if id.contains('\0') {
            return Ok(None);
        }
        let sql = self.by_id::<R>(id);
        self.rows_of::<R>(&sql)?.into_iter().next().map(decode).transpose()
    }

    fn by_id<R: Resource>(&self, id: &str) -> Sql {
        let mut sql = self.sql(format!("SELECT {BODY} FROM {} WHERE id = ", ident(R::TABLE)));
        sql.bind(Value::Text(id.to_owned()));
        sql
    }

    pub(crate) fn of_ids<R: Resource>(&mut self, ids: &[R::Id]) -> Result<Vec<R>> {
        let sql = by_ids::<R>(ids, self.connection.postgres());
        self.rows_of::<R>(&sql)?.into_iter().map(decode).collect()
    }

    /// The resource with this id.
    ///
    /// # Errors
    /// `NotFound` that names kind and id.
    pub fn need<R: Resource>(&mut self, id: &R::Id) -> Result<R> {
        self.get(id)?.ok_or_else(|| Error::not_found(format!("{} {id} could not be found.", R::KIND)))
    }

    /// Resources that match, in order.
    ///
    /// # Errors
    /// `BadRequest` where the marker of [`Query::after`] is unknown or a value cannot be stored.
    pub fn list<R: Resource>(&mut self, query: &Query) -> Result<Vec<R>> {
        self.select::<R>(BODY, query, true)?.into_iter().map(decode).collect()
    }

    /// Ids (as text) of resources that match, in order.
    ///
    /// # Errors
    /// As [`Tx::list`].
    pub fn list_ids<R: Resource>(&mut self, query: &Query) -> Result<Vec<String>> {
        Ok(self
            .select::<R>("id", query, true)?
            .into_iter()
            .filter_map(|r| r.into_iter().next())
            .map(Value::text)
            .collect())
    }

    fn select<R: Resource>(&mut self, what: &str, query: &Query, ordered: bool) -> Result<Vec<Vec<Value>>> {
        let mut sql = self.sql(format!("SELECT {what} FROM {}", ident(R::TABLE)));
        sql.filters::<R>(query)?;
        if let Some(marker) = &query.after {
            let values = self.sort_values::<R>(query, marker)?;
            sql.after::<R>(query, &values, marker)?;
        }
        if ordered {
            sql.order::<R>(query)?;
        }
        self.rows_of::<R>(&sql)
    }

    fn sort_values<R: Resource>(&mut self, query: &Query, marker: &str) -> Result<Vec<Value>> {
        let unknown = || Error::bad_request(format!("marker: {marker} could not be found."));
        if marker.contains('\0') {
            return Err(unknown());
        }
        let mut columns = vec!["id".to_owned()];
        for (name, _) in query.order_by() {
            columns.push(sortable::<R>(name)?);
        }
        let mut sql = self.sql(format!("SELECT {} FROM {} WHERE id = ", columns.join(", "), ident(R::TABLE)));
        sql.bind(Value::Text(marker.to_owned()));
        let row = self.rows(&sql)?.into_iter().next().ok_or_else(unknown)?;
        Ok(row.into_iter().skip(1).collect())
    }

    /// The first that matches.
    ///
    /// # Errors
    /// As [`Tx::list`].
    pub fn first<R: Resource>(&mut self, query: &Query) -> Result<Option<R>> {
        Ok(self.list::<R>(&query.clone().limit(1))?.into_iter().next())
    }

    /// Whether any matches.
    ///
    /// # Errors
    /// As [`Tx::list`].
    pub fn exists<R: Resource>(&mut self, query: &Query) -> Result<bool> {
        Ok(!self.list_ids::<R>(&query.clone().limit(1))?.is_empty())
    }

    /// How many match (order and page are ignored).
    ///
    /// # Errors
    /// As [`Tx::list`].
    pub fn count<R: Resource>(&mut self, query: &Query) -> Result<u64> {
        self.number::<R>("COUNT(*)", query)
    }

    /// Sum of an integer column over those that match (order and page are ignored).
    ///
    /// # Errors
    /// As [`Tx::list`].
    pub fn sum<R: Resource>(&mut self, column: &'static str, query: &Query) -> Result<u64> {
        if R::column_kind(column) != Some(ColumnKind::Int) {
            return Err(Error::internal(format!("{}.{column} is no integer column", R::TABLE)));
        }
        self.number::<R>(&format!("CAST(COALESCE(SUM({}), 0) AS BIGINT)", ident(column)), query)
    }

    fn number<R: Resource>(&mut self, expression: &str, query: &Query) -> Result<u64> {
        let mut sql = self.sql(format!("SELECT {expression} FROM {}", ident(R::TABLE)));
        sql.filters::<R>(query)?;
        let rows = self.rows(&sql)?;
        let value = rows.first().and_then(|r| r.first()).map_or(0, Value::int);
        Ok(u64::try_from(value).unwrap_or(0))
    }

    /// Inserts; sets the resource's meta (generation 1, revision 1, the transaction's moment).
    ///
    /// # Errors
    /// `Conflict` that names the columns; see [`crate::unique_violation`].
    pub fn insert<R: Resource>(&mut self, resource: &mut R) -> Result<()> {
        self.may_write()?;
        let now = self.now;
        *resource.meta_mut() = crate::Meta { generation: 1, revision: 1, created_at: now, updated_at: now };
        let columns = R::columns();
        let (body, values) = encode(resource, &columns)?;
        let names: String = columns.iter().map(|c| format!(", {}", ident(c))).collect();
        let mut sql = self.sql(format!(
            "INSERT INTO {} (id, body, generation, revision, created_at, updated_at{names}) VALUES (",
            ident(R::TABLE)
        ));
        sql.bind(Value::Text(resource.id().to_string()).no_nul()?)
            .push(", ")
            .bind(Value::Text(body))
            .push(", 1, 1, ");
        sql.bind(Value::Int(now.0)).push(", ").bind(Value::Int(now.0));
        for value in values {
            sql.push(", ").bind(value);
        }
        sql.push(")");
        self.apply::<R>(&sql, 1, true).map(drop)
    }

    /// Writes rows of a resource; answers how many changed. On PostgreSQL it may be the expected number for the time being.
    fn apply<R: Resource>(&mut self, sql: &Sql, expected: u64, unique: bool) -> Result<u64> {
        self.connection.unlearn(Some(R::TABLE));
        if self.connection.later(&sql.text, &sql.params, expected)? {
            self.statements += 1;
            return Ok(expected);
        }
        if unique { self.execute_unique::<R>(sql) } else { self.change(sql) }
    }

    fn execute_unique<R: Resource>(&mut self, sql: &Sql) -> Result<u64> {
        self.statements += 1;
        self.connection.execute_unique(&sql.text, &sql.params).map_err(|failure| match failure {
            Failure::Unique(what) => {
                self.violated = true;
                conflict::<R>(violated::<R>(&what))
            }
            other => other.into(),
        })
    }

    /// As [`Tx::insert`] for several at once: on PostgreSQL one statement, whatever their number.
    ///
    /// # Errors
    /// As [`Tx::insert`]; then none is inserted.
    pub fn insert_many<R: Resource>(&mut self, resources: &mut [R]) -> Result<()> {
        if !self.connection.postgres() || resources.len() < 2 {
            return resources.iter_mut().try_for_each(|r| self.insert(r));
        }
        self.may_write()?;
        let now = self.now;
        for resource in resources.iter_mut() {
            *resource.meta_mut() =
                crate::Meta { generation: 1, revision: 1, created_at: now, updated_at: now };
        }
        let columns = R::columns();
        let rows = resources.iter().map(|r| record(r, &columns)).collect::<Result<Vec<_>>>()?;
        let names: String = columns.iter().map(|c| format!(", {}", ident(c))).collect();
        let mut sql = self.sql(format!(
            "INSERT INTO {} (id, body, generation, revision, created_at, updated_at{names}) \
             SELECT id, body, 1, 1, ",
            ident(R::TABLE)
        ));
        sql.push("CAST(").bind(Value::Int(now.0)).push(" AS BIGINT), CAST(").bind(Value::Int(now.0));
        sql.push(" AS BIGINT)").push(&names).push(" FROM ");
        let expected = rows.len() as u64;
        sql.records::<R>(&columns, rows);
        self.apply::<R>(&sql, expected, true).map(drop)
    }

    /// As [`Tx::update`] for several at once: on PostgreSQL one statement, whatever their number.
    ///
    /// # Errors
    /// As [`Tx::update`]; then none is written.
    pub fn update_many<R: Resource>(&mut self, resources: &mut [R]) -> Result<()> {
        self.put_many(resources, 1)
    }

    /// As [`Tx::update_status`] for several at once.
    ///
    /// # Errors
    /// As [`Tx::update`]; then none is written.
    pub fn update_status_many<R: Resource>(&mut self, resources: &mut [R]) -> Result<()> {
        self.put_many(resources, 0)
    }

    fn put_many<R: Resource>(&mut self, resources: &mut [R], generations: u64) -> Result<()> {
        if !self.connection.postgres() || resources.len() < 2 || self.behind {
            return resources.iter_mut().try_for_each(|r| self.put(r, generations));
        }
        self.may_write()?;
        let columns = R::columns();
        let rows = resources.iter().map(|r| record(r, &columns)).collect::<Result<Vec<_>>>()?;
        let wanted = rows.len() as u64;
        let mut sql = self.sql(format!("UPDATE {} AS t SET body = v.body, ", ident(R::TABLE)));
        let grow = i64::try_from(generations).unwrap_or(0);
        sql.push("generation = t.generation + ").bind(Value::Int(grow));
        sql.push(", revision = t.revision + 1, updated_at = ").bind(Value::Int(self.now.0));
        for column in &columns {
            let name = ident(column);
            sql.push(", ").push(&name).push(" = v.").push(&name);
        }
        sql.push(" FROM ").records::<R>(&columns, rows);
        sql.push(" WHERE t.id = v.id AND t.revision = v.held");
        if self.apply::<R>(&sql, wanted, !R::UNIQUE.is_empty())? != wanted {
            return Err(Error::retry(Stale(format!("one of {wanted} {}s", R::KIND))));
        }
        for resource in resources {
            let now = self.now;
            let meta = resource.meta_mut();
            meta.generation += generations;
            meta.revision += 1;
            meta.updated_at = now;
        }
        Ok(())
    }

    /// Id, generation, revision and last change of what matches: what is needed to know whether a copy is still good. They
    /// are in no order where neither an order nor a page was asked for: who holds copies looks them up by id.
    ///
    /// # Errors
    /// As [`Tx::list`].
    pub fn versions<R: Resource>(&mut self, query: &Query) -> Result<Vec<(String, Version)>> {
        let rows = self.select::<R>("id, generation, revision, updated_at", query, query.is_ordered())?;
        let unsigned = |v: Option<Value>| v.and_then(|v| u64::try_from(v.int()).ok()).unwrap_or(0);
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                let mut row = row.into_iter();
                let id = row.next()?.text();
                let (generation, revision) = (unsigned(row.next()), unsigned(row.next()));
                let updated_at = Timestamp(row.next().as_ref().map_or(0, Value::int));
                Some((id, Version { generation, revision, updated_at }))
            })
            .collect())
    }

    /// Writes a change of the spec: generation + 1, revision + 1.
    ///
    /// # Errors
    /// `Retry` where someone else wrote since it was read (the transaction is run again), `Conflict` by uniqueness.
    pub fn update<R: Resource>(&mut self, resource: &mut R) -> Result<()> {
        self.put(resource, 1)
    }

    /// Writes a change of the status: revision + 1.
    ///
    /// # Errors
    /// As [`Tx::update`].
    pub fn update_status<R: Resource>(&mut self, resource: &mut R) -> Result<()> {
        self.put(resource, 0)
    }

    fn put<R: Resource>(&mut self, resource: &mut R, generations: u64) -> Result<()> {
        self.may_write()?;
        let held = *resource.meta();
        let columns = R::columns();
        let (mut body, values) = encode(resource, &columns)?;
        if self.behind {
            body = self.with_unknown::<R>(&resource.id().to_string(), body)?;
        }
        let meta = crate::Meta {
            generation: held.generation + generations,
            revision: held.revision + 1,
            created_at: held.created_at,
            updated_at: self.now,
        };
        let number = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let mut sql = self.sql(format!("UPDATE {} SET body = ", ident(R::TABLE)));
        let text = body.clone();
        sql.bind(Value::Text(body)).push(", generation = ").bind(number(meta.generation));
        sql.push(", revision = ")
            .bind(number(meta.revision))
            .push(", updated_at = ")
            .bind(Value::Int(self.now.0));
        for (column, value) in columns.iter().zip(values) {
            sql.push(", ").push(&ident(column)).push(" = ").bind(value);
        }
        sql.push(" WHERE id = ").bind(Value::Text(resource.id().to_string()));
        sql.push(" AND revision = ").bind(number(held.revision));
        if self.apply::<R>(&sql, 1, !R::UNIQUE.is_empty())? == 0 {
            return Err(Error::retry(Stale(format!("{} {}", R::KIND, resource.id()))));
        }
        let row = [Value::Text(text), number(meta.generation), number(meta.revision)];
        let row = row.into_iter().chain([Value::Int(meta.created_at.0), Value::Int(meta.updated_at.0)]);
        let read = self.by_id::<R>(&resource.id().to_string());
        self.connection.learn(R::TABLE, &read.text, &read.params, &[row.collect()]);
        *resource.meta_mut() = meta;
        Ok(())
    }

    /// A body with the fields of the stored one that a newer program wrote.
    fn with_unknown<R: Resource>(&mut self, id: &str, body: String) -> Result<String> {
        let mut sql = self.sql(format!("SELECT body FROM {} WHERE id = ", ident(R::TABLE)));
        sql.bind(Value::Text(id.to_owned()));
        let Some(held) = self.rows(&sql)?.into_iter().next().and_then(|r| r.into_iter().next()) else {
            return Ok(body);
        };
        let held: Json = serde_json::from_str(&held.text()).map_err(Error::internal)?;
        // As this program knows it. One that it could not read it would not be writing.
        let known: R = serde_json::from_value(held.clone()).map_err(Error::internal)?;
        let known = serde_json::to_value(known).map_err(Error::internal)?;
        if known == held {
            return Ok(body);
        }
        let mut new: Json = serde_json::from_str(&body).map_err(Error::internal)?;
        crate::unknown::keep(&held, &known, &mut new);
        serde_json::to_string(&new).map_err(Error::internal)
    }

    /// Deletes; `false` where there was nothing.
    ///
    /// # Errors
    /// From the database only.
    pub fn delete<R: Resource>(&mut self, id: &R::Id) -> Result<bool> {
        self.may_write()?;
        let mut sql = self.sql(format!("DELETE FROM {} WHERE id = ", ident(R::TABLE)));
        sql.bind(Value::Text(id.to_string()).no_nul()?);
        Ok(self.change(&sql)? > 0)
    }

    /// Deletes all that match; answers how many (order and page are ignored).
    ///
    /// # Errors
    /// As [`Tx::list`].
    pub fn delete_where<R: Resource>(&mut self, query: &Query) -> Result<u64> {
        self.may_write()?;
        let mut sql = self.sql(format!("DELETE FROM {}", ident(R::TABLE)));
        sql.filters::<R>(query)?;
        self.change(&sql)
    }

    /// Wakes the reconciler `kind` for `key` once this transaction is committed, and again after a crash until it was
    /// worked on.
    pub fn wake(&mut self, kind: &'static str, key: impl ToString) {
        let key = key.to_string();
        if !self.wakes.iter().any(|w| w.kind == kind && w.key == key) {
            self.wakes.push(Wake { kind, key, seq: 0 });
        }
    }
}

const BODY: &str = "body, generation, revision, created_at, updated_at";

/// What asks for the resources with these ids.
pub(crate) fn by_ids<R: Resource>(ids: &[R::Id], postgres: bool) -> Sql {
    let texts = ids.iter().map(ToString::to_string).filter(|id| !id.contains('\0'));
    let mut sql = Sql::new(format!("SELECT {BODY} FROM {} WHERE ", ident(R::TABLE)), postgres);
    sql.is_one_of("id", texts.map(Value::Text).collect());
    sql
}

pub(crate) fn decode<R: Resource>(row: Vec<Value>) -> Result<R> {
    let mut row = row.into_iter();
    let body = row.next().map(Value::text).unwrap_or_default();
    let mut resource: R =
        serde_json::from_str(&body).map_err(|e| Error::internal(format!("{}: {e}", R::TABLE)))?;
    let mut next = || row.next().as_ref().map_or(0, Value::int);
    let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
    *resource.meta_mut() = crate::Meta {
        generation: unsigned(next()),
        revision: unsigned(next()),
        created_at: Timestamp(next()),
        updated_at: Timestamp(next()),
    };
    Ok(resource)
}

/// Which state of a row a copy is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// [`crate::Meta::generation`].
    pub generation: u64,
    /// [`crate::Meta::revision`].
    pub revision: u64,
    /// [`crate::Meta::updated_at`]: tells a row from one that was deleted and made again.
    pub updated_at: Timestamp,
}

impl Version {
    /// The version of a copy.
    pub fn of(meta: &crate::Meta) -> Self {
        Version { generation: meta.generation, revision: meta.revision, updated_at: meta.updated_at }
    }
}

/// A resource as a record of [`Sql::records`].
fn record<R: Resource>(resource: &R, columns: &[&'static str]) -> Result<serde_json::Value> {
    let (body, values) = encode(resource, columns)?;
    let id = Value::Text(resource.id().to_string()).no_nul()?.text();
    let mut map = serde_json::Map::new();
    map.insert("id".into(), id.into());
    map.insert("body".into(), body.into());
    map.insert("held".into(), resource.meta().revision.into());
    for (column, value) in columns.iter().zip(values) {
        map.insert((*column).to_owned(), value.json());
    }
    Ok(serde_json::Value::Object(map))
}

/// Body and column values of a resource.
fn encode<R: Resource>(resource: &R, columns: &[&'static str]) -> Result<(String, Vec<Value>)> {
    let json = serde_json::to_value(resource).map_err(Error::internal)?;
    let mut values = Vec::with_capacity(columns.len());
    for column in columns {
        let value = Value::of_json(json.get(column).unwrap_or(&serde_json::Value::Null))
            .map_err(|e| Error::bad_request(format!("{column}: {}", e.public())))?;
        let kind = R::column_kind(column).unwrap_or(ColumnKind::Text);
        if matches!((&value, kind), (Value::Int(_), ColumnKind::Text) | (Value::Text(_), ColumnKind::Int)) {
            return Err(Error::internal(format!("{}.{column} does not hold its kind", R::TABLE)));
        }
        values.push(value);
    }
    let body = json.to_string();
    // JSON text escapes NUL as \u0000: storable, but refused all the same, so that both engines answer alike.
    if body.contains("\\u0000") && has_nul(&json) {
        return Err(Error::bad_request("NUL characters are not allowed."));
    }
    Ok((body, values))
}

fn has_nul(json: &serde_json::Value) -> bool {
    match json {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(items) => items.iter().any(has_nul),
        serde_json::Value::Object(map) => map.iter().any(|(k, v)| k.contains('\0') || has_nul(v)),
        _ => false,
    }
}

impl Value {
    fn no_nul(self) -> Result<Self> {
        match &self {
            Value::Text(text) if text.contains('\0') => {
                Err(Error::bad_request("NUL characters are not allowed."))
            }
            _ => Ok(self),
        }
    }
}

/// The unique group an engine complains about: PostgreSQL names the index, SQLite `table.column, table.column`.
fn violated<R: Resource>(what: &str) -> &'static [&'static str] {
    let columns: Vec<&str> = what.split(", ").filter_map(|c| c.rsplit('.').next()).collect();
    R::UNIQUE
        .iter()
        .find(|group| {
            crate::migrate::unique_index(R::TABLE, group) == what || group.iter().eq(columns.iter())
        })
        .copied()
        .unwrap_or(&["id"])
}
