//! All that a database holds, as text: for copies from one engine to the other, for backups, for tests of upgrades.
//!
//! Lines of JSON: a head (format, migrations, shapes of the tables), the rows of each table in order of their ids, and an
//! end with the number of rows and the SHA-256 of each table. Written from one snapshot, while servers work; loaded in
//! one transaction into an empty database of either engine, with the schema it was written from: opening it brings the
//! schema up to date. Leases and replicas are of a moment and are left out.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::migrate::{self, Applied, Schema, Shape, ident};
use crate::query::Sql;
use crate::tx::Tx;
use crate::value::Value;
use crate::{Store, settle};

/// Format of the lines.
const FORMAT: u32 = 1;
/// Rows read at once.
const PAGE: usize = 1000;
/// Rows written with one statement.
const CHUNK: usize = 50;
/// Columns that every table has.
const COMMON: [&str; 6] = ["id", "body", "generation", "revision", "created_at", "updated_at"];
/// The table of wake-ups; its numbers are the engine's own.
const OUTBOX: &str = "allod_outbox";

/// What a table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// How many rows.
    pub rows: u64,
    /// SHA-256 of all of them, in order of their ids.
    pub sha256: String,
}

/// What a database holds, by table.
pub type Content = BTreeMap<String, Counted>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Head { format: u32, migrations: Vec<Applied>, shapes: Vec<Shape> },
    Table(String),
    Row(Vec<Json>),
    End(Content),
}

fn io(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::internal(error)
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::bad_request(format!("The dump is damaged: {why}."))
}

/// Rows of a table, page by page, in order.
fn rows(tx: &mut Tx<'_>, shape: &Shape, each: &mut dyn FnMut(Vec<Json>) -> Result<()>) -> Result<()> {
    let columns: Vec<String> =
        COMMON.into_iter().chain(shape.columns.iter().map(|(c, _)| c.as_str())).map(ident).collect();
    let head = format!("SELECT {} FROM {}", columns.join(", "), ident(&shape.table));
    let mut after: Option<Value> = None;
    loop {
        let text = match &after {
            Some(_) => format!("{head} WHERE id > ? ORDER BY id LIMIT {PAGE}"),
            None => format!("{head} ORDER BY id LIMIT {PAGE}"),
        };
        let sql = Sql::of(tx.connection.postgres(), &text, after.clone());
        let page = tx.connection.query(&sql.text, &sql.params)?;
        let full = page.len() == PAGE;
        for row in page {
            after = row.first().cloned();
            each(row.into_iter().map(Value::json).collect())?;
        }
        if !full {
            return Ok(());
        }
    }
}

fn wakes(tx: &mut Tx<'_>, each: &mut dyn FnMut(Vec<Json>) -> Result<()>) -> Result<()> {
    let rows = tx.connection.query("SELECT kind, object FROM allod_outbox ORDER BY seq", &[])?;
    rows.into_iter().try_for_each(|row| each(row.into_iter().map(Value::json).collect()))
}

/// Walks through everything; answers what there is.
fn walk(tx: &mut Tx<'_>, shapes: &[Shape], each: &mut dyn FnMut(&Line) -> Result<()>) -> Result<Content> {
    let mut content = Content::new();
    let names = shapes.iter().map(|s| (s.table.as_str(), Some(s)));
    for (name, shape) in names.chain([(OUTBOX, None)]) {
        each(&Line::Table(name.to_owned()))?;
        let (mut count, mut hash) = (0_u64, Sha256::new());
        let mut one = |row: Vec<Json>| {
            count += 1;
            hash.update(serde_json::to_vec(&row).map_err(io)?);
            hash.update(b"\n");
            each(&Line::Row(row))
        };
        match shape {
            Some(shape) => rows(tx, shape, &mut one)?,
            None => wakes(tx, &mut one)?,
        }
        content.insert(name.to_owned(), Counted { rows: count, sha256: hex::encode(hash.finalize()) });
    }
    Ok(content)
}

impl Store {
    /// Writes everything into a new file (mode 0600), as it is at one moment.
    ///
    /// # Errors
    /// Where the database was written by a newer version, or the file cannot be written.
    pub async fn dump(&self, schemas: &'static [Schema], path: &Path) -> Result<Content> {
        let shapes = migrate::shapes(schemas)?;
        let path = path.to_owned();
        self.read(move |tx| {
            let migrations = migrate::applied(tx)?;
            let known = |a: &Applied| {
                schemas.iter().any(|(s, all)| *s == a.service && all.iter().any(|m| m.number == a.number))
            };
            if let Some(newer) = migrations.iter().find(|a| !known(a)) {
                return Err(Error::conflict(format!(
                    "The database was written by a newer version ({} migration {}): use that.",
                    newer.service, newer.number
                )));
            }
            // From the start each time: a transaction may be run again.
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
            let mut out = BufWriter::with_capacity(1 << 20, file.map_err(io)?);
            let mut write = |line: &Line| {
                serde_json::to_writer(&mut out, line).map_err(io)?;
                out.write_all(b"\n").map_err(io)
            };
            write(&Line::Head { format: FORMAT, migrations, shapes: shapes.clone() })?;
            let content = walk(tx, &shapes, &mut write)?;
            write(&Line::End(content.clone()))?;
            out.into_inner().map_err(io)?.sync_all().map_err(io)?;
            Ok(content)
        })
        .await
    }

    /// Fills an empty database from a dump, in one transaction; then reads it back and compares.
    ///
    /// # Errors
    /// `Conflict` where the database is not empty, `BadRequest` where the dump is damaged; then nothing is written.
    pub async fn load(&self, path: &Path) -> Result<Content> {
        let path = path.to_owned();
        let (shapes, told) = self.write(move |tx| load(tx, &path)).await?;
        self.vacuum().await;
        let found = self.read(move |tx| walk(tx, &shapes, &mut |_| Ok(()))).await?;
        if found != told {
            let differ: Vec<&str> = told
                .iter()
                .filter(|(table, counted)| found.get(*table) != Some(counted))
                .map(|(table, _)| table.as_str())
                .collect();
            return Err(Error::internal(format!("read back, these tables differ: {}", differ.join(", "))));
        }
        Ok(found)
    }

    /// Counts and hashes everything, as it is at one moment.
    ///
    /// # Errors
    /// From the database only.
    pub async fn content(&self, schemas: &[Schema]) -> Result<Content> {
        let shapes = migrate::shapes(schemas)?;
        self.read(move |tx| walk(tx, &shapes, &mut |_| Ok(()))).await
    }
}

fn refuse_what_holds_something(tx: &mut Tx<'_>, shapes: &[Shape]) -> Result<()> {
    let own = ["allod_migrations", OUTBOX];
    for table in own.into_iter().chain(shapes.iter().map(|s| s.table.as_str())) {
        if migrate::columns(tx, table)?.is_empty() {
            continue;
        }
        let found = tx.connection.query(&format!("SELECT COUNT(*) FROM {}", ident(table)), &[])?;
        if found.first().and_then(|r| r.first()).is_some_and(|n| n.int() > 0) {
            return Err(Error::conflict(format!("The database is not empty: table {table} has rows.")));
        }
    }
    Ok(())
}

/// Names come from a file: they are quoted, and still only letters are let through.
fn checked(shapes: Vec<Shape>) -> Result<Vec<Shape>> {
    let good = |name: &String| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    for shape in &shapes {
        let columns = shape.columns.iter().map(|(c, _)| c);
        let names = columns.chain(shape.unique.iter().flatten()).chain(&shape.index).chain([&shape.table]);
        if let Some(bad) = names.into_iter().find(|n| !good(n)) {
            return Err(damaged(format!("'{bad}' is no name")));
        }
    }
    Ok(shapes)
}

fn load(tx: &mut Tx<'_>, path: &Path) -> Result<(Vec<Shape>, Content)> {
    let file = File::open(path).map_err(|e| Error::bad_request(format!("{}: {e}", path.display())))?;
    let mut lines = BufReader::with_capacity(1 << 20, file)
        .lines()
        .map(|line| serde_json::from_str::<Line>(&line.map_err(io)?).map_err(damaged));
    let Some(Line::Head { format: FORMAT, migrations, shapes }) = lines.next().transpose()? else {
        return Err(damaged("it has no head of a format that is known here"));
    };
    let shapes = checked(shapes)?;
    refuse_what_holds_something(tx, &shapes)?;
    migrate::own_tables(tx)?;
    for shape in &shapes {
        migrate::make(tx, shape)?;
    }
    for migration in &migrations {
        migrate::note(tx, migration)?;
        // Whether older servers were writing when it was dumped is not known.
        settle::mark(tx, &migration.service, migration.number)?;
    }
    let mut into: Option<(String, Vec<String>)> = None;
    let mut waiting: Vec<Vec<Value>> = Vec::new();
    for line in lines {
        match line? {
            Line::Row(row) => {
                let Some((table, columns)) = &into else { return Err(damaged("a row without a table")) };
                if row.len() != columns.len() {
                    return Err(damaged(format!("a row of {table} has {} columns", row.len())));
                }
                waiting.push(row.iter().map(Value::of_json).collect::<Result<_>>()?);
                if waiting.len() == CHUNK {
                    insert(tx, table, columns, std::mem::take(&mut waiting))?;
                }
            }
            next @ (Line::Table(_) | Line::End(_)) => {
                if let Some((table, columns)) = &into {
                    for row in std::mem::take(&mut waiting) {
                        insert(tx, table, columns, vec![row])?;
                    }
                }
                match next {
                    Line::End(content) => return Ok((shapes, content)),
                    Line::Table(name) => into = Some((name.clone(), columns_of(&shapes, &name)?)),
                    _ => {}
                }
            }
            Line::Head { .. } => return Err(damaged("it has a second head")),
        }
    }
    Err(damaged("its end is missing"))
}

fn columns_of(shapes: &[Shape], table: &str) -> Result<Vec<String>> {
    if table == OUTBOX {
        return Ok(vec!["kind".to_owned(), "object".to_owned()]);
    }
    let shape = shapes.iter().find(|s| s.table == table);
    let shape = shape.ok_or_else(|| damaged(format!("table {table} has no shape")))?;
    let own = shape.columns.iter().map(|(c, _)| c.clone());
    Ok(COMMON.into_iter().map(str::to_owned).chain(own).collect())
}

fn insert(tx: &mut Tx<'_>, table: &str, columns: &[String], rows: Vec<Vec<Value>>) -> Result<()> {
    let names: Vec<String> = columns.iter().map(|c| ident(c)).collect();
    let row = format!("({})", vec!["?"; columns.len()].join(", "));
    let text = format!(
        "INSERT INTO {} ({}) VALUES {}",
        ident(table),
        names.join(", "),
        vec![row.as_str(); rows.len()].join(", ")
    );
    let sql = Sql::of(tx.connection.postgres(), &text, rows.into_iter().flatten());
    tx.connection.execute(&sql.text, &sql.params)?;
    Ok(())
}
