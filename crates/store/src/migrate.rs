//! Schema changes: numbered per service, forward only, each step idempotent and recorded.

use std::collections::BTreeMap;

use base::{Error, Result};

use crate::Store;
use crate::query::Sql;
use crate::resource::{ColumnKind, Resource};
use crate::tx::Tx;
use crate::value::Value;

/// A service's name and its migrations, oldest first.
pub type Schema = (&'static str, &'static [Migration]);

/// One numbered change.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    number: u32,
    name: &'static str,
    steps: &'static [Step],
}

impl Migration {
    /// Migration `number` (1, 2, …) of a service.
    pub const fn new(number: u32, name: &'static str, steps: &'static [Step]) -> Self {
        Migration { number, name, steps }
    }
}

/// One step of a migration.
#[derive(Debug, Clone, Copy)]
pub struct Step(Change);

#[derive(Debug, Clone, Copy)]
enum Change {
    Table(&'static str, fn(&mut Tx<'_>) -> Result<()>),
    Data(fn(&mut Tx<'_>) -> Result<()>),
    DropUnique(&'static str, &'static [&'static str]),
    DropIndex(&'static str, &'static str),
    DropColumn(&'static str, &'static str),
    DropTable(&'static str),
}

impl Step {
    /// Makes the resource's table with all declared columns and indexes; where it exists, adds those that are missing.
    /// Declare a new column in the resource and add a migration with this step: old and new databases end alike.
    pub const fn table<R: Resource>() -> Self {
        Step(Change::Table(R::TABLE, table::<R>))
    }

    /// Drops the uniqueness of a group of columns, as it was declared.
    pub const fn drop_unique(table: &'static str, group: &'static [&'static str]) -> Self {
        Step(Change::DropUnique(table, group))
    }

    /// Drops the index of a column.
    pub const fn drop_index(table: &'static str, column: &'static str) -> Self {
        Step(Change::DropIndex(table, column))
    }

    /// Drops a column that no index uses any more; the field in the body stays where it is.
    pub const fn drop_column(table: &'static str, column: &'static str) -> Self {
        Step(Change::DropColumn(table, column))
    }

    /// Drops a table with all it holds.
    pub const fn drop_table(table: &'static str) -> Self {
        Step(Change::DropTable(table))
    }

    /// Changes data with the typed API.
    pub const fn data(change: fn(&mut Tx<'_>) -> Result<()>) -> Self {
        Step(Change::Data(change))
    }

    fn apply(&self, tx: &mut Tx<'_>) -> Result<()> {
        let sql = match self.0 {
            Change::Table(_, make) => return make(tx),
            Change::Data(change) => return change(tx),
            Change::DropUnique(table, group) => {
                format!("DROP INDEX IF EXISTS {}", ident(&unique_index(table, group)))
            }
            Change::DropIndex(table, column) => {
                format!("DROP INDEX IF EXISTS {}", ident(&index_name(table, column)))
            }
            Change::DropColumn(table, column) => {
                if !columns(tx, table)?.iter().any(|c| c == column) {
                    return Ok(());
                }
                format!("ALTER TABLE {} DROP COLUMN {}", ident(table), ident(column))
            }
            Change::DropTable(table) => format!("DROP TABLE IF EXISTS {}", ident(table)),
        };
        Ok(tx.connection.batch(&sql)?)
    }
}

/// A name as SQL reads it, whatever keyword it may be (`user`, `order`, `default`).
pub(crate) fn ident(name: &str) -> String {
    format!("\"{name}\"")
}

fn index_name(table: &str, column: &str) -> String {
    short(format!("{table}_by_{column}"))
}

/// Name of a unique index; PostgreSQL tells it in violations, so it must fit its 63 bytes.
pub(crate) fn unique_index(table: &str, group: &[&str]) -> String {
    short(format!("{table}_unique_{}", group.join("_")))
}

fn short(name: String) -> String {
    if name.len() <= 63 {
        return name;
    }
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let head: String = name.chars().take(46).collect();
    format!("{head}_{hash:016x}")
}

fn table<R: Resource>(tx: &mut Tx<'_>) -> Result<()> {
    let postgres = tx.connection.postgres();
    let text = if postgres { "TEXT COLLATE \"C\"" } else { "TEXT" };
    let kind = |column: &str| match R::column_kind(column) {
        Some(ColumnKind::Int) => Ok("BIGINT"),
        Some(ColumnKind::Text) => Ok(text),
        None => Err(Error::internal(format!("{} declares a column {column} that is no field", R::TABLE))),
    };
    let (name, table) = (R::TABLE, ident(R::TABLE));
    tx.connection.batch(&format!(
        "CREATE TABLE IF NOT EXISTS {table} (id {text} PRIMARY KEY NOT NULL, body TEXT NOT NULL, \
         generation BIGINT NOT NULL, revision BIGINT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL)"
    ))?;
    let there = columns(tx, name)?;
    for column in R::columns() {
        if !there.iter().any(|c| c == column) {
            tx.connection.batch(&format!(
                "ALTER TABLE {table} ADD COLUMN {} {}",
                ident(column),
                kind(column)?
            ))?;
        }
    }
    for group in R::UNIQUE {
        let index = ident(&unique_index(name, group));
        let group: Vec<String> = group.iter().map(|c| ident(c)).collect();
        let group = group.join(", ");
        tx.connection.batch(&format!("CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {table} ({group})"))?;
    }
    let index = ident(&index_name(name, "created_at"));
    tx.connection.batch(&format!("CREATE INDEX IF NOT EXISTS {index} ON {table} (created_at, id)"))?;
    for column in R::INDEX {
        let (index, column) = (ident(&index_name(name, column)), ident(column));
        // Lists are filtered by one column and begin with the oldest or newest: nothing is left to sort.
        let columns = format!("{column}, created_at, id");
        tx.connection.batch(&format!("CREATE INDEX IF NOT EXISTS {index} ON {table} ({columns})"))?;
    }
    Ok(())
}

fn columns(tx: &mut Tx<'_>, table: &str) -> Result<Vec<String>> {
    let mut sql = Sql::new("", tx.connection.postgres());
    if tx.connection.postgres() {
        sql.push("SELECT CAST(column_name AS TEXT) FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = ");
        sql.bind(Value::Text(table.to_owned()));
    } else {
        sql.push("SELECT name FROM pragma_table_info(").bind(Value::Text(table.to_owned())).push(")");
    }
    let rows = tx.connection.query(&sql.text, &sql.params)?;
    Ok(rows.into_iter().filter_map(|r| r.into_iter().next()).map(Value::text).collect())
}

/// Brings the database up to date, one migration a transaction. Two replicas that start at once wait for each other.
pub(crate) async fn run(store: &Store, schemas: &[Schema]) -> Result<()> {
    check(schemas)?;
    store.write(own_tables).await?;
    for (service, migrations) in schemas.iter().copied() {
        let newest = migrations.last().map_or(0, |m| m.number);
        let done = store.read(move |tx| applied(tx, service)).await?;
        if let Some(newer) = done.iter().find(|n| **n > newest) {
            return Err(Error::conflict(format!(
                "The database was written by a newer version: {service} migration {newer} is unknown here (newest is {newest})."
            )));
        }
        for migration in migrations.iter().filter(|m| !done.contains(&m.number)) {
            store.write(move |tx| apply(tx, service, migration)).await?;
            tracing::debug!(service, number = migration.number, name = migration.name, "migration applied");
        }
    }
    Ok(())
}

/// Mistakes of a programmer that would show up late, or never.
fn check(schemas: &[Schema]) -> Result<()> {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for (service, migrations) in schemas.iter().copied() {
        if !migrations.windows(2).all(|two| two[0].number < two[1].number) {
            return Err(Error::internal(format!("the migrations of {service} are not in order")));
        }
        for step in migrations.iter().flat_map(|m| m.steps) {
            if let Change::Table(table, _) = step.0
                && let Some(other) = owners.insert(table, service)
                && other != service
            {
                return Err(Error::internal(format!(
                    "table {table} is declared by {other} and by {service}"
                )));
            }
        }
    }
    Ok(())
}

fn own_tables(tx: &mut Tx<'_>) -> Result<()> {
    if tx.connection.postgres() {
        // CREATE TABLE IF NOT EXISTS fails where two do it at once.
        tx.connection.query("SELECT CAST(pg_advisory_xact_lock(7236591034) AS TEXT)", &[])?;
    }
    let serial =
        if tx.connection.postgres() { "BIGSERIAL PRIMARY KEY" } else { "INTEGER PRIMARY KEY AUTOINCREMENT" };
    tx.connection.batch(&format!(
        "CREATE TABLE IF NOT EXISTS allod_migrations (service TEXT NOT NULL, number BIGINT NOT NULL, name TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (service, number));
         CREATE TABLE IF NOT EXISTS allod_outbox (seq {serial}, kind TEXT NOT NULL, object TEXT NOT NULL);
         CREATE INDEX IF NOT EXISTS allod_outbox_by_kind ON allod_outbox (kind, seq);
         CREATE TABLE IF NOT EXISTS allod_leases (name TEXT PRIMARY KEY NOT NULL, holder TEXT NOT NULL, token BIGINT NOT NULL, expires_at BIGINT NOT NULL)"
    ))?;
    Ok(())
}

fn applied(tx: &mut Tx<'_>, service: &str) -> Result<Vec<u32>> {
    let mut sql = Sql::new("SELECT number FROM allod_migrations WHERE service = ", tx.connection.postgres());
    sql.bind(Value::Text(service.to_owned()));
    let rows = tx.connection.query(&sql.text, &sql.params)?;
    Ok(rows.iter().filter_map(|r| r.first()).filter_map(|v| u32::try_from(v.int()).ok()).collect())
}

fn apply(tx: &mut Tx<'_>, service: &'static str, migration: &Migration) -> Result<()> {
    if tx.connection.postgres() {
        // One migrator at a time. LOCK takes no snapshot: what comes after it sees what the one before committed.
        // SQLite's writer is alone anyway.
        tx.connection.batch("LOCK TABLE allod_migrations IN EXCLUSIVE MODE")?;
    }
    if applied(tx, service)?.contains(&migration.number) {
        return Ok(());
    }
    for step in migration.steps {
        step.apply(tx)?;
    }
    let mut sql = Sql::new(
        "INSERT INTO allod_migrations (service, number, name, at) VALUES (",
        tx.connection.postgres(),
    );
    sql.bind(Value::Text(service.to_owned()))
        .push(", ")
        .bind(Value::Int(i64::from(migration.number)))
        .push(", ");
    sql.bind(Value::Text(migration.name.to_owned())).push(", ").bind(Value::Int(tx.now().0)).push(")");
    tx.connection.execute(&sql.text, &sql.params)?;
    Ok(())
}
