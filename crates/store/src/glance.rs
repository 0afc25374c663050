//! PostgreSQL: rows by id, read without a transaction.
//!
//! A transaction needs a connection of the pool, a thread and a beginning and an end of its own, which cost many times what
//! one look at an index does. Looks have one connection for all, driven by whoever looks.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::{Client, Config, Statement};

use crate::postgres::{borrowed, values};
use crate::query::Sql;
use crate::tls::Tls;
use crate::value::Value;
use crate::wire::{Connection, driven};

/// How long the server may take, a new connection included.
const PATIENCE: Duration = Duration::from_secs(10);

struct Open {
    client: Client,
    connection: Option<Connection>,
    /// Prepared here, by text.
    statements: HashMap<String, Statement>,
}

pub(crate) struct Glances {
    config: (Config, Tls),
    open: Mutex<Option<Open>>,
}

impl Glances {
    pub fn new(config: (Config, Tls)) -> Self {
        Glances { config, open: Mutex::default() }
    }

    /// Rows that were committed when the call began, or later. `None`: the connection was of no use, and the next call opens
    /// another.
    pub async fn rows(&self, sql: &Sql) -> Option<Vec<Vec<Value>>> {
        let mut held = self.open.lock().await;
        // Answers to whoever was dropped while it waited are thrown away by the client: the connection stays good.
        match tokio::time::timeout(PATIENCE, self.ask(&mut held, sql)).await {
            Ok(Ok(rows)) => return Some(rows),
            Ok(Err(error)) => tracing::debug!(%error, "a look at the database failed"),
            Err(_) => tracing::debug!("a look at the database took too long"),
        }
        *held = None;
        None
    }

    async fn ask(
        &self,
        held: &mut Option<Open>,
        sql: &Sql,
    ) -> Result<Vec<Vec<Value>>, tokio_postgres::Error> {
        let open = match held {
            Some(open) => open,
            None => {
                let (client, connection) = self.config.0.connect(self.config.1.clone()).await?;
                held.insert(Open {
                    client,
                    connection: Some(Box::pin(connection)),
                    statements: HashMap::new(),
                })
            }
        };
        let statement = match open.statements.get(&sql.text) {
            Some(statement) => statement.clone(),
            None => {
                let statement = driven(&mut open.connection, open.client.prepare(&sql.text)).await?;
                open.statements.insert(sql.text.clone(), statement.clone());
                statement
            }
        };
        let rows =
            driven(&mut open.connection, open.client.query(&statement, &borrowed(&sql.params))).await?;
        values(&rows)
    }
}
