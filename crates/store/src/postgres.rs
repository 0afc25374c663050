//! PostgreSQL: SERIALIZABLE transactions on pooled connections; closures run on blocking threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use base::{Clock, Error, Result};
use bytes::BytesMut;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{AsyncMessage, NoTls};

use crate::Work;
use crate::outbox::{Outbox, Wake};
use crate::tx::{Connection, Failure, Tx};
use crate::value::Value;

/// Connections of one process.
const CONNECTIONS: usize = 16;

pub(crate) struct Postgres {
    pool: Pool,
    clock: Arc<dyn Clock>,
    outbox: Arc<Outbox>,
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::unavailable("The database does not answer.").caused_by(error)
}

impl Postgres {
    pub async fn connect(url: &str, clock: Arc<dyn Clock>, outbox: Arc<Outbox>) -> Result<Self> {
        let mut config: tokio_postgres::Config =
            url.parse().map_err(|_| Error::bad_request("The PostgreSQL URL is not valid."))?;
        config.application_name("allod");
        let manager = Manager::from_config(
            config.clone(),
            NoTls,
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(std::time::Duration::from_secs(30)))
            .create_timeout(Some(std::time::Duration::from_secs(10)))
            .build()
            .map_err(unavailable)?;
        tokio::spawn(listen(config, Arc::downgrade(&outbox), pool.clone()));
        Ok(Postgres { pool, clock, outbox })
    }

    pub async fn run<T: Send + 'static>(&self, work: Work<T>, writable: bool) -> Result<T> {
        let now = self.clock.now();
        let client = self.pool.get().await.map_err(unavailable)?;
        let outbox = self.outbox.clone();
        let runtime = Handle::current();
        let run = move || {
            let mut session = Session { client, runtime };
            let mode = if writable { "READ WRITE" } else { "READ ONLY" };
            session.batch(&format!("BEGIN ISOLATION LEVEL SERIALIZABLE {mode}"))?;
            let result = catch_unwind(AssertUnwindSafe(|| {
                let mut tx = Tx::new(&mut session, now, writable);
                let value = work(&mut tx)?;
                let wakes = tx.flush_wakes()?;
                Ok((value, wakes))
            }))
            .unwrap_or_else(|_| Err(Error::internal("a transaction panicked")));
            match result {
                Ok((value, wakes)) => {
                    session.batch("COMMIT")?;
                    outbox.deliver(wakes);
                    Ok(value)
                }
                Err(error) => {
                    session.batch("ROLLBACK")?;
                    Err(error)
                }
            }
        };
        tokio::task::spawn_blocking(run).await.map_err(Error::internal)?
    }
}

/// Listens for other replicas' wake-ups; on every notification reads what is new. Ends with the store.
async fn listen(config: tokio_postgres::Config, outbox: std::sync::Weak<Outbox>, pool: Pool) {
    while outbox.strong_count() > 0 {
        if let Ok((client, mut connection)) = config.connect(NoTls).await {
            let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
            let (sender, mut notified) = tokio::sync::mpsc::channel::<()>(1);
            let driver = tokio::spawn(async move {
                while let Some(Ok(message)) = messages.next().await {
                    if matches!(message, AsyncMessage::Notification(_)) {
                        let _ = sender.try_send(());
                    }
                }
            });
            let _ = client.batch_execute("LISTEN allod").await;
            loop {
                let woken = tokio::time::timeout(std::time::Duration::from_secs(5), notified.recv()).await;
                let Some(outbox) = outbox.upgrade() else { break };
                // A timeout polls all the same: the fallback where notifications are lost.
                if matches!(woken, Ok(None)) || poll(&pool, &outbox).await.is_err() {
                    break;
                }
            }
            driver.abort();
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

async fn poll(pool: &Pool, outbox: &Outbox) -> Result<()> {
    let client = pool.get().await.map_err(unavailable)?;
    for kind in outbox.kinds() {
        let rows = client
            .query("SELECT seq, object FROM allod_outbox WHERE kind = $1 ORDER BY seq", &[&kind])
            .await
            .map_err(unavailable)?;
        outbox.deliver(rows.iter().map(|r| Wake { kind, seq: r.get(0), key: r.get(1) }).collect());
    }
    Ok(())
}

struct Session {
    client: deadpool_postgres::Object,
    runtime: Handle,
}

impl ToSql for Value {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Value::Null => Ok(IsNull::Yes),
            Value::Int(n) if *ty == Type::INT4 => i32::try_from(*n)?.to_sql(ty, out),
            Value::Int(n) => n.to_sql(ty, out),
            Value::Text(text) => text.as_str().to_sql(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn failure(error: tokio_postgres::Error) -> Failure {
    let Some(told) = error.as_db_error() else { return Failure::Other(unavailable(error)) };
    match told.code() {
        &SqlState::UNIQUE_VIOLATION => Failure::Unique(told.constraint().unwrap_or_default().to_owned()),
        &SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED => {
            Failure::Retry(error.to_string())
        }
        &SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN | &SqlState::CANNOT_CONNECT_NOW => {
            Failure::Other(unavailable(error))
        }
        _ => Failure::Other(Error::internal(error)),
    }
}

impl Connection for Session {
    fn postgres(&self) -> bool {
        true
    }

    fn query(&mut self, sql: &str, params: &[Value]) -> std::result::Result<Vec<Vec<Value>>, Failure> {
        let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|p| p as &(dyn ToSql + Sync)).collect();
        let rows = self.runtime.block_on(async {
            let statement = self.client.prepare_cached(sql).await?;
            self.client.query(&statement, &params).await
        });
        let mut found = Vec::new();
        for row in rows.map_err(failure)? {
            let mut values = Vec::with_capacity(row.len());
            for (i, column) in row.columns().iter().enumerate() {
                values.push(if *column.type_() == Type::INT8 {
                    row.try_get::<_, Option<i64>>(i).map_err(failure)?.map_or(Value::Null, Value::Int)
                } else if *column.type_() == Type::INT4 {
                    row.try_get::<_, Option<i32>>(i)
                        .map_err(failure)?
                        .map_or(Value::Null, |n| Value::Int(n.into()))
                } else {
                    row.try_get::<_, Option<String>>(i).map_err(failure)?.map_or(Value::Null, Value::Text)
                });
            }
            found.push(values);
        }
        Ok(found)
    }

    fn execute(&mut self, sql: &str, params: &[Value]) -> std::result::Result<u64, Failure> {
        let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|p| p as &(dyn ToSql + Sync)).collect();
        self.runtime
            .block_on(async {
                let statement = self.client.prepare_cached(sql).await?;
                self.client.execute(&statement, &params).await
            })
            .map_err(failure)
    }

    fn batch(&mut self, sql: &str) -> std::result::Result<(), Failure> {
        self.runtime.block_on(self.client.batch_execute(sql)).map_err(failure)
    }
}
