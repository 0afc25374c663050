//! A small table in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Result;
use parking_lot::Mutex;

use crate::tx::Version;
use crate::{Query, Resource, Store};

/// A table in memory, as values made of its rows. Every look asks the database for ids and versions, and for those rows
/// that are new to it: what it answers is as fresh as a read, at a fraction of the cost where few rows change. For tables of
/// thousands of rows that are read whole again and again (hosts, providers), not for what grows without end.
pub struct Mirror<R, V = R> {
    make: fn(R) -> V,
    held: Mutex<Arc<Rows<V>>>,
}

type Rows<V> = BTreeMap<String, (Version, Arc<V>)>;

impl<R: Resource, V: Send + Sync + 'static> Mirror<R, V> {
    /// An empty one; `make` says what is kept of a row.
    pub fn new(make: fn(R) -> V) -> Self {
        Mirror { make, held: Mutex::default() }
    }

    /// All rows as they are now, in the order of their ids.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn look(&self, store: &Store) -> Result<Vec<Arc<V>>> {
        let held = self.held.lock().clone();
        let known = held.clone();
        let (versions, fresh) = store
            .read(move |tx| {
                let versions = tx.versions::<R>(&Query::new())?;
                let is_new =
                    |(id, version): &&(String, Version)| known.get(id).is_none_or(|(v, _)| v != version);
                let changed: Vec<&String> = versions.iter().filter(is_new).map(|(id, _)| id).collect();
                let fresh = match changed.len() {
                    0 => Vec::new(),
                    n if n == versions.len() => tx.list::<R>(&Query::new())?,
                    _ => tx.list::<R>(&Query::new().is_in("id", changed))?,
                };
                Ok((versions, fresh))
            })
            .await?;
        if fresh.is_empty() && versions.len() == held.len() {
            return Ok(held.values().map(|(_, value)| value.clone()).collect());
        }
        let mut made: Rows<V> = fresh
            .into_iter()
            .map(|row| (row.id().to_string(), (Version::of(row.meta()), Arc::new((self.make)(row)))))
            .collect();
        for (id, _) in versions {
            if let (false, Some(kept)) = (made.contains_key(&id), held.get(&id)) {
                made.insert(id, kept.clone());
            }
        }
        let values = made.values().map(|(_, value)| value.clone()).collect();
        // Of two looks at the same time one is forgotten, which costs the next look a few rows.
        *self.held.lock() = Arc::new(made);
        Ok(values)
    }
}
