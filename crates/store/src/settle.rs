//! What older servers left undone. While one of them works beside newer ones, or after an upgrade was taken back, it writes
//! rows without the columns and without the backfilled fields of migrations it does not know. Such migrations are noted,
//! and done once more when nobody is left who does not know them.

use base::{Error, Result};

use crate::Store;
use crate::migrate::{self, Applied, Change, Migration, Schema, Shape, columns, ident};
use crate::query::Sql;
use crate::tx::Tx;
use crate::value::Value;

/// Rows looked at together.
const PAGE: usize = 500;

/// Notes that servers may be writing that do not know a migration.
pub(crate) fn mark(tx: &mut Tx<'_>, service: &str, number: u32) -> Result<()> {
    let sql = Sql::of(
        tx.connection.postgres(),
        "INSERT INTO allod_unsettled (service, number, at) VALUES (?, ?, ?) \
         ON CONFLICT (service, number) DO UPDATE SET at = excluded.at",
        [Value::Text(service.to_owned()), Value::Int(i64::from(number)), Value::Int(tx.now().0)],
    );
    tx.connection.execute(&sql.text, &sql.params)?;
    Ok(())
}

/// A program that opens a database of a newer one says so.
pub(crate) async fn mark_newer(store: &Store, schemas: &[Schema], applied: &[Applied]) -> Result<()> {
    let newest = |service: &str| {
        schemas.iter().find(|(s, _)| *s == service).map(|(_, m)| m.last().map_or(0, |m| m.number))
    };
    let newer: Vec<(String, u32)> = applied
        .iter()
        .filter(|a| newest(&a.service).is_none_or(|n| a.number > n))
        .map(|a| (a.service.clone(), a.number))
        .collect();
    if newer.is_empty() {
        return Ok(());
    }
    store.write(move |tx| newer.iter().try_for_each(|(service, number)| mark(tx, service, *number))).await
}

/// The newest migration of each service.
pub fn newest(schemas: &[Schema]) -> std::collections::BTreeMap<String, u32> {
    schemas.iter().map(|(s, all)| ((*s).to_owned(), all.last().map_or(0, |m| m.number))).collect()
}

struct Unsettled {
    service: String,
    migration: &'static Migration,
    at: i64,
}

fn unsettled(tx: &mut Tx<'_>, schemas: &[Schema]) -> Result<Vec<Unsettled>> {
    if columns(tx, "allod_unsettled")?.is_empty() {
        return Ok(Vec::new());
    }
    let rows = tx
        .connection
        .query("SELECT service, number, at FROM allod_unsettled ORDER BY service, number", &[])?;
    let parse = |row: Vec<Value>| {
        let mut row = row.into_iter();
        let (service, number, at) = (row.next()?.text(), row.next()?.int(), row.next()?.int());
        // Those that only a newer program knows are that one's.
        let (_, migrations) = schemas.iter().find(|(s, _)| *s == service)?;
        let migration = migrations.iter().find(|m| i64::from(m.number) == number)?;
        Some(Unsettled { service, migration, at })
    };
    Ok(rows.into_iter().filter_map(parse).collect())
}

impl Store {
    /// Does what older servers left undone, as far as none of them lives; `me` is this process among the replicas. Answers
    /// whether nothing is left.
    ///
    /// # Errors
    /// From the database only; what was not done is done with the next call.
    pub async fn settle(&self, schemas: &[Schema], me: &str) -> Result<bool> {
        let known = schemas.to_vec();
        let todo = self.read(move |tx| unsettled(tx, &known)).await?;
        if todo.is_empty() {
            return Ok(true);
        }
        let replicas = self.replicas().await?;
        let mut all = true;
        for Unsettled { service, migration, at } in todo {
            let knows = |r: &crate::Replica| r.schemas.get(&service).is_some_and(|n| *n >= migration.number);
            if replicas.iter().any(|r| r.id != me && !knows(r)) {
                all = false;
                continue;
            }
            for step in migration.steps {
                match step.0 {
                    Change::Table(_, shape) => refresh(self, shape()?).await?,
                    Change::Backfill(_, batch) => migrate::backfill(self, batch).await?,
                    _ => {}
                }
            }
            tracing::info!(service, number = migration.number, "what older servers wrote is up to date");
            let number = i64::from(migration.number);
            self.write(move |tx| {
                let sql = Sql::of(
                    tx.connection.postgres(),
                    // One that came back meanwhile noted it anew.
                    "DELETE FROM allod_unsettled WHERE service = ? AND number = ? AND at = ?",
                    [Value::Text(service.clone()), Value::Int(number), Value::Int(at)],
                );
                tx.connection.execute(&sql.text, &sql.params)?;
                Ok(())
            })
            .await?;
        }
        Ok(all)
    }
}

/// A row whose columns are not what its body says.
#[derive(Clone)]
struct Stale {
    id: Value,
    revision: Value,
    values: Vec<Value>,
}

/// Makes the columns of all rows what their bodies say.
async fn refresh(store: &Store, shape: Shape) -> Result<()> {
    if shape.columns.is_empty() {
        return Ok(());
    }
    let shape = std::sync::Arc::new(shape);
    let mut after: Option<Value> = None;
    loop {
        let (from, of) = (after.take(), shape.clone());
        let (stale, last) = store.read(move |tx| page(tx, &of, from.clone())).await?;
        if !stale.is_empty() {
            tracing::info!(
                table = shape.table,
                rows = stale.len(),
                "columns that an older server left stale"
            );
            let of = shape.clone();
            store.write(move |tx| stale.iter().try_for_each(|row| set(tx, &of, row.clone()))).await?;
        }
        match last {
            Some(last) => after = Some(last),
            None => return Ok(()),
        }
    }
}

fn page(tx: &mut Tx<'_>, shape: &Shape, after: Option<Value>) -> Result<(Vec<Stale>, Option<Value>)> {
    let names: Vec<String> = shape.columns.iter().map(|(c, _)| ident(c)).collect();
    let head = format!("SELECT id, revision, body, {} FROM {}", names.join(", "), ident(&shape.table));
    let from = if after.is_some() { "WHERE id > ? " } else { "" };
    let text = format!("{head} {from}ORDER BY id LIMIT {PAGE}");
    let sql = Sql::of(tx.connection.postgres(), &text, after);
    let rows = tx.connection.query(&sql.text, &sql.params)?;
    let last = if rows.len() == PAGE { rows.last().and_then(|r| r.first()).cloned() } else { None };
    let mut stale = Vec::new();
    for row in rows {
        let mut row = row.into_iter();
        let (Some(id), Some(revision), Some(body)) = (row.next(), row.next(), row.next()) else { continue };
        let body: serde_json::Value = serde_json::from_str(&body.text()).map_err(Error::internal)?;
        let wanted =
            |(name, _): &(String, bool)| Value::of_json(body.get(name).unwrap_or(&serde_json::Value::Null));
        let values: Vec<Value> = shape.columns.iter().map(wanted).collect::<Result<_>>()?;
        if row.ne(values.iter().cloned()) {
            stale.push(Stale { id, revision, values });
        }
    }
    Ok((stale, last))
}

/// A row that was written since it was read was written whole, by a server that knows its columns.
fn set(tx: &mut Tx<'_>, shape: &Shape, row: Stale) -> Result<()> {
    let names: Vec<String> = shape.columns.iter().map(|(c, _)| format!("{} = ?", ident(c))).collect();
    let text =
        format!("UPDATE {} SET {} WHERE id = ? AND revision = ?", ident(&shape.table), names.join(", "));
    let params = row.values.into_iter().chain([row.id, row.revision]);
    let sql = Sql::of(tx.connection.postgres(), &text, params);
    tx.connection.execute(&sql.text, &sql.params)?;
    Ok(())
}
