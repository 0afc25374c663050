//! Schema changes: numbered per service, forward only, each step idempotent and recorded; made while servers work.
//!
//! A change that takes something away from older servers comes in two releases: the first expands (tables, columns,
//! indexes, backfills), the next contracts (drops). Every migration says which older servers it leaves able to work, the
//! database remembers it, and only those that it leaves behind are refused.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::query::{Order, Query, Sql};
use crate::resource::{ColumnKind, Resource};
use crate::tx::Tx;
use crate::value::Value;
use crate::{Engine, Store, settle};

/// A service's name and its migrations, oldest first.
pub type Schema = (&'static str, &'static [Migration]);

/// Rows that a backfill changes in one transaction.
const BATCH: usize = 500;
/// How often a change that a lock was in the way of is tried.
const TRIES: u32 = 60;
/// Pause between tries.
const PAUSE: Duration = Duration::from_millis(500);

/// One numbered change.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) steps: &'static [Step],
    compatible_from: Option<u32>,
}

impl Migration {
    /// Migration `number` (1, 2, …) of a service.
    pub const fn new(number: u32, name: &'static str, steps: &'static [Step]) -> Self {
        Migration { number, name, steps, compatible_from: None }
    }

    /// Says that servers whose newest migration is `number` or later can go on working beside this one. Without it, one
    /// that drops something leaves only servers that know it, one that does not leaves all.
    #[must_use]
    pub const fn compatible_from(mut self, number: u32) -> Self {
        self.compatible_from = Some(number);
        self
    }

    /// The oldest newest migration of servers that can work with this one.
    pub(crate) fn oldest(&self) -> u32 {
        let contracts = self.steps.iter().any(|s| s.kind() == StepKind::Contract);
        self.compatible_from.unwrap_or(if contracts { self.number } else { 0 })
    }

    fn backfills(&self) -> bool {
        self.steps.iter().any(|s| matches!(s.0, Change::Backfill(..)))
    }
}

/// What a step does to servers that do not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKind {
    /// Nothing: something is added.
    Expand,
    /// Nothing: rows are rewritten, in small transactions.
    Backfill,
    /// Something is taken away.
    Contract,
}

/// Changes every row of a resource; may meet a row twice, so it must be harmless to repeat.
pub trait Backfill: 'static {
    /// Whose rows.
    type Row: Resource;
    /// Changes one and writes it.
    ///
    /// # Errors
    /// Any: the migration stops, and goes on with the next start.
    fn change(tx: &mut Tx<'_>, row: Self::Row) -> Result<()>;
}

/// One step of a migration.
#[derive(Debug, Clone, Copy)]
pub struct Step(pub(crate) Change);

pub(crate) type Batch = fn(&mut Tx<'_>, Option<&str>) -> Result<Option<String>>;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Table(&'static str, fn() -> Result<Shape>),
    Data(fn(&mut Tx<'_>) -> Result<()>),
    Backfill(&'static str, Batch),
    DropUnique(&'static str, &'static [&'static str]),
    DropIndex(&'static str, &'static str),
    DropColumn(&'static str, &'static str),
    DropTable(&'static str),
}

impl Step {
    /// Makes the resource's table with all declared columns and indexes; where it exists, adds those that are missing.
    /// Declare a new column in the resource and add a migration with this step: old and new databases end alike. Rows that
    /// are there have NULL in a new column until they are written again: see [`Step::backfill`].
    pub const fn table<R: Resource>() -> Self {
        Step(Change::Table(R::TABLE, shape::<R>))
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

    /// Changes data with the typed API, in one transaction: for few rows.
    pub const fn data(change: fn(&mut Tx<'_>) -> Result<()>) -> Self {
        Step(Change::Data(change))
    }

    /// Rewrites all rows of a table, some hundreds a transaction, while servers work.
    pub const fn backfill<B: Backfill>() -> Self {
        Step(Change::Backfill(<B::Row as Resource>::TABLE, batch::<B>))
    }

    /// What it does to servers that do not know it.
    pub(crate) fn kind(&self) -> StepKind {
        match self.0 {
            Change::Table(..) => StepKind::Expand,
            Change::Data(_) | Change::Backfill(..) => StepKind::Backfill,
            Change::DropUnique(..)
            | Change::DropIndex(..)
            | Change::DropColumn(..)
            | Change::DropTable(_) => StepKind::Contract,
        }
    }

    /// The table it works on, as far as it says.
    fn table_name(&self) -> Option<&'static str> {
        match self.0 {
            Change::Table(table, _)
            | Change::Backfill(table, _)
            | Change::DropUnique(table, _)
            | Change::DropIndex(table, _)
            | Change::DropColumn(table, _)
            | Change::DropTable(table) => Some(table),
            Change::Data(_) => None,
        }
    }

    fn describe(&self) -> String {
        match self.0 {
            Change::Table(table, _) => format!("table {table} with its columns and indexes"),
            Change::Data(_) => "change data".to_owned(),
            Change::Backfill(table, _) => format!("rewrite the rows of {table}"),
            Change::DropUnique(table, group) => format!("drop uniqueness of {} in {table}", group.join(", ")),
            Change::DropIndex(table, column) => format!("drop the index of {table}.{column}"),
            Change::DropColumn(table, column) => format!("drop the column {table}.{column}"),
            Change::DropTable(table) => format!("drop the table {table}"),
        }
    }

    fn apply(&self, tx: &mut Tx<'_>) -> Result<()> {
        let sql = match self.0 {
            Change::Table(_, shape) => return make(tx, &shape()?),
            Change::Data(change) => return change(tx),
            Change::Backfill(..) => return Ok(()),
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

fn batch<B: Backfill>(tx: &mut Tx<'_>, after: Option<&str>) -> Result<Option<String>> {
    let mut query = Query::new().sort("id", Order::Asc).limit(BATCH);
    if let Some(after) = after {
        query = query.gt("id", after);
    }
    let rows = tx.list::<B::Row>(&query)?;
    let last = if rows.len() == BATCH { rows.last().map(|r| r.id().to_string()) } else { None };
    for row in rows {
        B::change(tx, row)?;
    }
    Ok(last)
}

/// A table as it is made: the same on both engines, and in dumps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub table: String,
    /// Names, and whether they hold integers.
    pub columns: Vec<(String, bool)>,
    pub unique: Vec<Vec<String>>,
    pub index: Vec<String>,
}

fn shape<R: Resource>() -> Result<Shape> {
    let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let column = |name: &&str| match R::column_kind(name) {
        Some(kind) => Ok(((*name).to_owned(), kind == ColumnKind::Int)),
        None => Err(Error::internal(format!("{} declares a column {name} that is no field", R::TABLE))),
    };
    Ok(Shape {
        table: R::TABLE.to_owned(),
        columns: R::columns().iter().map(column).collect::<Result<_>>()?,
        unique: R::UNIQUE.iter().map(|g| owned(g)).collect(),
        index: owned(R::INDEX),
    })
}

impl Shape {
    /// Its indexes: statements that make them, with `CREATE … INDEX` still to be completed by `how`.
    fn indexes(&self, how: &str) -> Vec<(String, String)> {
        let table = ident(&self.table);
        let mut all = Vec::new();
        for group in &self.unique {
            let names: Vec<&str> = group.iter().map(String::as_str).collect();
            let name = unique_index(&self.table, &names);
            let group: Vec<String> = group.iter().map(|c| ident(c)).collect();
            let columns = group.join(", ");
            all.push((
                name.clone(),
                format!("CREATE UNIQUE INDEX {how} {} ON {table} ({columns})", ident(&name)),
            ));
        }
        let name = index_name(&self.table, "created_at");
        all.push((name.clone(), format!("CREATE INDEX {how} {} ON {table} (created_at, id)", ident(&name))));
        for column in &self.index {
            let name = index_name(&self.table, column);
            // Lists are filtered by one column and begin with the oldest or newest: nothing is left to sort.
            let columns = format!("{}, created_at, id", ident(column));
            all.push((name.clone(), format!("CREATE INDEX {how} {} ON {table} ({columns})", ident(&name))));
        }
        all
    }
}

/// Makes a table, or what it lacks.
pub(crate) fn make(tx: &mut Tx<'_>, shape: &Shape) -> Result<()> {
    let postgres = tx.connection.postgres();
    let text = if postgres { "TEXT COLLATE \"C\"" } else { "TEXT" };
    let table = ident(&shape.table);
    let kind = |int: bool| if int { "BIGINT" } else { text };
    // The body comes last: SQLite reads a row from its beginning, and what comes after a long body is on another page.
    let own: String = shape.columns.iter().map(|(c, int)| format!("{} {}, ", ident(c), kind(*int))).collect();
    tx.connection.batch(&format!(
        "CREATE TABLE IF NOT EXISTS {table} (id {text} PRIMARY KEY NOT NULL, generation BIGINT NOT NULL, \
         revision BIGINT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, {own}body TEXT NOT NULL)"
    ))?;
    let there = columns(tx, &shape.table)?;
    for (column, int) in &shape.columns {
        if !there.contains(column) {
            let kind = kind(*int);
            tx.connection.batch(&format!("ALTER TABLE {table} ADD COLUMN {} {kind}", ident(column)))?;
        }
    }
    for (_, statement) in shape.indexes("IF NOT EXISTS") {
        tx.connection.batch(&statement)?;
    }
    Ok(())
}

/// The tables as these migrations leave them.
pub(crate) fn shapes(schemas: &[Schema]) -> Result<Vec<Shape>> {
    let mut all: BTreeMap<&str, Shape> = BTreeMap::new();
    for step in schemas.iter().flat_map(|(_, m)| m.iter()).flat_map(|m| m.steps) {
        match step.0 {
            Change::Table(table, shape) => drop(all.insert(table, shape()?)),
            Change::DropTable(table) => drop(all.remove(table)),
            _ => {}
        }
    }
    Ok(all.into_values().collect())
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

pub(crate) fn columns(tx: &mut Tx<'_>, table: &str) -> Result<Vec<String>> {
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

/// Brings the database up to date, one migration at a time. Two replicas that start at once wait for each other.
pub(crate) async fn run(store: &Store, schemas: &[Schema]) -> Result<()> {
    check(schemas)?;
    store.write(own_tables).await?;
    for (service, migrations) in schemas.iter().copied() {
        store.0.outbox.knows(service, migrations.last().map_or(0, |m| m.number));
    }
    let applied = store.read(applied).await?;
    refuse_older(schemas, &applied)?;
    store.0.outbox.notice(&applied);
    settle::mark_newer(store, schemas, &applied).await?;
    migrate_all(store, schemas, &applied).await?;
    if !store.shared() {
        // There is nobody else.
        store.settle(schemas, "").await?;
    }
    Ok(())
}

async fn migrate_all(store: &Store, schemas: &[Schema], applied: &[Applied]) -> Result<()> {
    let done =
        |service: &str, number: u32| applied.iter().any(|a| a.service == service && a.number == number);
    let pending = |(service, migrations): &Schema| migrations.iter().any(|m| !done(service, m.number));
    if !schemas.iter().any(pending) {
        return Ok(());
    }
    let guard = match &store.0.engine {
        Engine::Postgres(postgres) => Some(postgres.alone_here().await?),
        Engine::Sqlite(_) => None,
    };
    let mut changed = false;
    for (service, migrations) in schemas.iter().copied() {
        for migration in migrations {
            changed |= migrate(store, service, migration).await?;
        }
    }
    drop(guard);
    if changed && store.shared() && !store.replicas().await?.is_empty() {
        // Older servers have to notice before anything new is written: from then on they keep fields they do not know.
        tokio::time::sleep(crate::postgres::POLL + Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Applies one migration, if it is not; whether it did.
async fn migrate(store: &Store, service: &'static str, migration: &'static Migration) -> Result<bool> {
    let number = migration.number;
    let is_done =
        move |tx: &mut Tx<'_>| Ok(applied(tx)?.iter().any(|a| a.service == service && a.number == number));
    if store.read(is_done).await? {
        return Ok(false);
    }
    if let Engine::Postgres(postgres) = &store.0.engine {
        for step in migration.steps {
            if let Change::Table(_, shape) = step.0 {
                grow(store, postgres, shape()?).await?;
            }
        }
    }
    if migration.backfills() {
        patiently(async || {
            store
                .write(move |tx| {
                    short_locks(tx)?;
                    let tables = migration.steps.iter().filter(|s| matches!(s.0, Change::Table(..)));
                    tables.map(|s| s.apply(tx)).collect::<Result<Vec<()>>>().map(drop)
                })
                .await
        })
        .await?;
        for step in migration.steps {
            if let Change::Backfill(_, batch) = step.0 {
                backfill(store, batch).await?;
            }
        }
    }
    patiently(async || store.write(move |tx| apply(tx, service, migration)).await).await?;
    tracing::info!(service, number, name = migration.name, "migration applied");
    Ok(true)
}

/// Rewrites all rows, batch by batch.
pub(crate) async fn backfill(store: &Store, batch: Batch) -> Result<()> {
    let mut after: Option<String> = None;
    loop {
        let from = after.take();
        after = store.write(move |tx| batch(tx, from.as_deref())).await?;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// On PostgreSQL, what a table that is there lacks is added without keeping anybody from writing to it: columns at once,
/// indexes beside the work.
async fn grow(store: &Store, postgres: &crate::postgres::Postgres, shape: Shape) -> Result<()> {
    let name = shape.table.clone();
    let there = store.read(move |tx| columns(tx, &name)).await?;
    if there.is_empty() {
        return Ok(());
    }
    let missing: Vec<String> = shape
        .columns
        .iter()
        .filter(|(column, _)| !there.contains(column))
        .map(|(column, int)| {
            let kind = if *int { "BIGINT" } else { "TEXT COLLATE \"C\"" };
            format!("ADD COLUMN IF NOT EXISTS {} {kind}", ident(column))
        })
        .collect();
    if !missing.is_empty() {
        let sql = format!(
            "SET LOCAL lock_timeout = '2s'; ALTER TABLE {} {}",
            ident(&shape.table),
            missing.join(", ")
        );
        // Statements sent together are one transaction.
        patiently(async || postgres.alone(&sql).await).await?;
    }
    for (name, statement) in shape.indexes("CONCURRENTLY IF NOT EXISTS") {
        let wanted = Value::Text(name.clone());
        let broken = store
            .read(move |tx| {
                let sql = Sql::of(
                    true,
                    "SELECT COUNT(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                     WHERE c.relname = ? AND NOT i.indisvalid",
                    [wanted.clone()],
                );
                Ok(tx.connection.query(&sql.text, &sql.params)?)
            })
            .await?;
        if broken.first().and_then(|r| r.first()).is_some_and(|n| n.int() > 0) {
            // Left by one that was broken off.
            postgres.alone(&format!("DROP INDEX CONCURRENTLY IF EXISTS {}", ident(&name))).await?;
        }
        patiently(async || postgres.alone(&statement).await).await?;
    }
    Ok(())
}

/// Tries again where a lock was in the way.
async fn patiently<T>(mut work: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut tries = 0;
    loop {
        match work().await {
            Err(error) if matches!(error.kind(), Kind::Retry | Kind::Conflict) && tries < TRIES => tries += 1,
            other => return other,
        }
        tokio::time::sleep(PAUSE).await;
    }
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

/// Only a migration that took something away, which this program still needs, keeps it out.
fn refuse_older(schemas: &[Schema], applied: &[Applied]) -> Result<()> {
    for (service, migrations) in schemas.iter().copied() {
        let newest = migrations.last().map_or(0, |m| m.number);
        let newer = applied.iter().filter(|a| a.service == service && a.number > newest);
        for found in newer {
            if found.compatible_from > newest {
                return Err(Error::conflict(format!(
                    "The database was written by a newer version: {service} migration {} is unknown here (newest is \
                     {newest}) and leaves only versions that know migration {}.",
                    found.number, found.compatible_from
                )));
            }
            tracing::warn!(
                service,
                number = found.number,
                "the database is newer than this program; it can go on"
            );
        }
    }
    Ok(())
}

/// A migration that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub service: String,
    pub number: u32,
    pub name: String,
    pub at: i64,
    pub compatible_from: u32,
}

pub(crate) fn own_tables(tx: &mut Tx<'_>) -> Result<()> {
    if tx.connection.postgres() {
        // CREATE TABLE IF NOT EXISTS fails where two do it at once.
        tx.connection.query("SELECT CAST(pg_advisory_xact_lock(7236591034) AS TEXT)", &[])?;
    }
    if columns(tx, "allod_replicas")?.is_empty() {
        let serial = if tx.connection.postgres() {
            "BIGSERIAL PRIMARY KEY"
        } else {
            "INTEGER PRIMARY KEY AUTOINCREMENT"
        };
        tx.connection.batch(&format!(
            "CREATE TABLE IF NOT EXISTS allod_migrations (service TEXT NOT NULL, number BIGINT NOT NULL, name TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (service, number));
             CREATE TABLE IF NOT EXISTS allod_outbox (seq {serial}, kind TEXT NOT NULL, object TEXT NOT NULL);
             CREATE INDEX IF NOT EXISTS allod_outbox_by_kind ON allod_outbox (kind, seq);
             CREATE TABLE IF NOT EXISTS allod_leases (name TEXT PRIMARY KEY NOT NULL, holder TEXT NOT NULL, token BIGINT NOT NULL, expires_at BIGINT NOT NULL);
             CREATE TABLE IF NOT EXISTS allod_replicas (id TEXT PRIMARY KEY NOT NULL, body TEXT NOT NULL, expires_at BIGINT NOT NULL)"
        ))?;
    }
    if columns(tx, "allod_unsettled")?.is_empty() {
        tx.connection.batch(
            "CREATE TABLE IF NOT EXISTS allod_unsettled (service TEXT NOT NULL, number BIGINT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (service, number))",
        )?;
    }
    if !columns(tx, "allod_migrations")?.iter().any(|c| c == "compatible_from") {
        // What the catalog said is of the snapshot, from before the lock.
        let unless = if tx.connection.postgres() { "IF NOT EXISTS" } else { "" };
        let column = "compatible_from BIGINT NOT NULL DEFAULT 0";
        tx.connection.batch(&format!("ALTER TABLE allod_migrations ADD COLUMN {unless} {column}"))?;
    }
    Ok(())
}

pub(crate) fn applied(tx: &mut Tx<'_>) -> Result<Vec<Applied>> {
    // One that was last opened by a version without the column.
    let old = !columns(tx, "allod_migrations")?.iter().any(|c| c == "compatible_from");
    let compatible = if old { "0" } else { "compatible_from" };
    let sql = format!(
        "SELECT service, number, name, at, {compatible} FROM allod_migrations ORDER BY service, number"
    );
    let rows = tx.connection.query(&sql, &[])?;
    let parse = |row: Vec<Value>| {
        let mut row = row.into_iter();
        Some(Applied {
            service: row.next()?.text(),
            number: u32::try_from(row.next()?.int()).ok()?,
            name: row.next()?.text(),
            at: row.next()?.int(),
            compatible_from: u32::try_from(row.next()?.int()).ok()?,
        })
    };
    Ok(rows.into_iter().filter_map(parse).collect())
}

/// No statement of this transaction waits long for a lock, so that nobody waits long behind it.
fn short_locks(tx: &mut Tx<'_>) -> Result<()> {
    if tx.connection.postgres() {
        tx.connection.batch("SET LOCAL lock_timeout = '2s'")?;
    }
    Ok(())
}

fn apply(tx: &mut Tx<'_>, service: &'static str, migration: &Migration) -> Result<()> {
    short_locks(tx)?;
    if applied(tx)?.iter().any(|a| a.service == service && a.number == migration.number) {
        return Ok(());
    }
    for step in migration.steps {
        step.apply(tx)?;
    }
    let done = Applied {
        service: service.to_owned(),
        number: migration.number,
        name: migration.name.to_owned(),
        at: tx.now().0,
        compatible_from: migration.oldest(),
    };
    if !tx.living()?.is_empty() {
        // They do not know it yet, and go on writing.
        settle::mark(tx, service, migration.number)?;
    }
    note(tx, &done)
}

/// Writes down that a migration was applied.
pub(crate) fn note(tx: &mut Tx<'_>, done: &Applied) -> Result<()> {
    let sql = Sql::of(
        tx.connection.postgres(),
        "INSERT INTO allod_migrations (service, number, name, at, compatible_from) VALUES (?, ?, ?, ?, ?)",
        [
            Value::Text(done.service.clone()),
            Value::Int(i64::from(done.number)),
            Value::Text(done.name.clone()),
            Value::Int(done.at),
            Value::Int(i64::from(done.compatible_from)),
        ],
    );
    tx.connection.execute(&sql.text, &sql.params)?;
    Ok(())
}

/// A migration that opening the database would apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// Whose.
    pub service: String,
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The most that one of its steps does.
    pub kind: StepKind,
    /// What it does.
    pub steps: Vec<String>,
    /// About how many rows are in the tables that are there already.
    pub rows: u64,
    /// Servers whose newest migration is older than this cannot work beside it.
    pub compatible_from: u32,
}

impl Store {
    /// What opening the database with these migrations would do; nothing is changed.
    ///
    /// # Errors
    /// Where this program is too old for the database.
    pub async fn pending(&self, schemas: &'static [Schema]) -> Result<Vec<Pending>> {
        check(schemas)?;
        self.read(move |tx| {
            let applied = if columns(tx, "allod_migrations")?.is_empty() { Vec::new() } else { applied(tx)? };
            refuse_older(schemas, &applied)?;
            let mut all = Vec::new();
            for (service, migrations) in schemas {
                for migration in migrations.iter() {
                    let number = migration.number;
                    if !applied.iter().any(|a| a.service == *service && a.number == number) {
                        all.push(describe(tx, service, migration)?);
                    }
                }
            }
            Ok(all)
        })
        .await
    }
}

fn describe(tx: &mut Tx<'_>, service: &str, migration: &Migration) -> Result<Pending> {
    let mut tables: Vec<&str> = migration.steps.iter().filter_map(Step::table_name).collect();
    tables.sort_unstable();
    tables.dedup();
    let mut rows = 0;
    for table in tables {
        if columns(tx, table)?.is_empty() {
            continue;
        }
        let sql = if tx.connection.postgres() {
            // What the last ANALYZE saw: counting would read everything.
            Sql::of(
                true,
                "SELECT CAST(GREATEST(reltuples, 0) AS BIGINT) FROM pg_class WHERE relname = ? AND relkind = 'r'",
                [Value::Text(table.to_owned())],
            )
        } else {
            Sql::new(format!("SELECT COUNT(*) FROM {}", ident(table)), false)
        };
        let found = tx.connection.query(&sql.text, &sql.params)?;
        rows += u64::try_from(found.first().and_then(|r| r.first()).map_or(0, Value::int)).unwrap_or(0);
    }
    Ok(Pending {
        service: service.to_owned(),
        number: migration.number,
        name: migration.name.to_owned(),
        kind: migration.steps.iter().map(Step::kind).max().unwrap_or(StepKind::Expand),
        steps: migration.steps.iter().map(Step::describe).collect(),
        rows,
        compatible_from: migration.oldest(),
    })
}
