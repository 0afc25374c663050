//! PostgreSQL: SERIALIZABLE transactions on pooled connections; closures run on blocking threads.

use std::any::TypeId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use base::{Clock, Error, Result, Timestamp};
use bytes::BytesMut;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures::{FutureExt, StreamExt};
use tokio::runtime::Handle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{AsyncMessage, Row};

use crate::lane::Lane;
use crate::outbox::{Outbox, Wake};
use crate::tls::Tls;
use crate::tx::{Connection, Failure, Tx};
use crate::value::Value;
use crate::{Ended, Work};

/// Connections of one process.
const CONNECTIONS: usize = 16;

/// Time between polls of the outbox, where notifications are lost.
pub(crate) const POLL: Duration = Duration::from_secs(5);
/// How long a server waits for another that changes the schema.
const MIGRATING: Duration = Duration::from_secs(600);
/// Pause before a broken listener connects again.
const RECONNECT: Duration = Duration::from_secs(1);

pub(crate) struct Postgres {
    source: Source,
    lane: Lane,
    clock: Arc<dyn Clock>,
    outbox: Arc<Outbox>,
}

/// Where sessions come from.
#[derive(Clone)]
pub(crate) struct Source {
    pool: Pool,
    /// Names this process in notifications: it does not wake itself.
    origin: Arc<str>,
}

impl Source {
    pub async fn session(&self) -> Result<Session> {
        let client = self.pool.get().await.map_err(unavailable)?;
        let (runtime, origin) = (Handle::current(), self.origin.clone());
        Ok(Session { client, runtime, origin, begin: None, again: None, failed: false, tell: false })
    }
}

pub(crate) fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::unavailable("The database does not answer.").caused_by(error)
}

impl Postgres {
    pub async fn connect(
        url: &str,
        origin: String,
        clock: Arc<dyn Clock>,
        outbox: Arc<Outbox>,
    ) -> Result<Self> {
        let (mut config, tls) = crate::tls::read(url)?;
        config.application_name("allod").connect_timeout(Duration::from_secs(10));
        let manager = Manager::from_config(
            config.clone(),
            tls.clone(),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(Duration::from_secs(30)))
            .create_timeout(Some(Duration::from_secs(10)))
            .build()
            .map_err(unavailable)?;
        let origin: Arc<str> = origin.into();
        tokio::spawn(listen((config, tls), origin.clone(), Arc::downgrade(&outbox), pool.clone()));
        let source = Source { pool, origin };
        let lane = Lane::new(source.clone(), clock.clone(), outbox.clone());
        Ok(Postgres { source, lane, clock, outbox })
    }

    /// Waits until no other process migrates; nobody else does while the answer is kept. It is a session's lock that is
    /// asked for again and again: one that waited would hold a snapshot, which `CREATE INDEX CONCURRENTLY` waits for.
    pub async fn alone_here(&self) -> Result<deadpool_postgres::ClientWrapper> {
        let client = self.source.pool.get().await.map_err(unavailable)?;
        // Out of the pool: the lock ends with the connection.
        let client = deadpool_postgres::Object::take(client);
        let deadline = tokio::time::Instant::now() + MIGRATING;
        loop {
            let asked = client.query_one("SELECT pg_try_advisory_lock(7236591035)", &[]).await;
            if asked.map_err(unavailable)?.get::<_, bool>(0) {
                return Ok(client);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::unavailable("Another server has been changing the schema for too long."));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Runs a statement that PostgreSQL wants outside of a transaction, or that must not wait long for a lock.
    pub async fn alone(&self, sql: &str) -> Result<()> {
        let client = self.source.pool.get().await.map_err(unavailable)?;
        let done = client.batch_execute(sql).await;
        done.map_err(|error| match error.code() {
            Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED) => {
                Error::retry("The table is locked.").caused_by(error)
            }
            Some(_) => Error::internal(error),
            None => unavailable(error),
        })
    }

    /// One attempt; a closure that met other writers waits in line for its next one.
    pub async fn write<T: Send + 'static>(&self, work: Work<T>, closure: TypeId) -> Ended<T> {
        if self.lane.takes(closure) {
            return self.lane.write(work).await;
        }
        let ended = self.run(work, true).await;
        if matches!(&ended, Ended::Again(error, _) if error.kind() == base::Kind::Retry) {
            self.lane.met(closure);
        }
        ended
    }

    pub async fn run<T: Send + 'static>(&self, work: Work<T>, writable: bool) -> Ended<T> {
        let now = self.clock.now();
        let mut session = match self.source.session().await {
            Ok(session) => session,
            Err(error) => return Ended::Done(Err(error)),
        };
        let outbox = self.outbox.clone();
        let run = move || match session.transaction(&*work, now, writable) {
            Ok((value, wakes)) => {
                outbox.deliver(wakes);
                Ended::Done(Ok(value))
            }
            Err(ended) => ended,
        };
        let ended = tokio::task::spawn_blocking(run).await;
        ended.unwrap_or_else(|e| Ended::Done(Err(Error::internal(e))))
    }
}

/// Listens for other replicas' wake-ups; on every notification reads what is new. Ends with the store.
async fn listen(config: (tokio_postgres::Config, Tls), origin: Arc<str>, outbox: Weak<Outbox>, pool: Pool) {
    while outbox.strong_count() > 0 {
        if let Err(error) = listen_once(&config, &origin, &outbox, &pool).await {
            tracing::warn!(error = %error.chain(), "not listening for other replicas' wake-ups; trying again");
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn listen_once(
    (config, tls): &(tokio_postgres::Config, Tls),
    origin: &str,
    outbox: &Weak<Outbox>,
    pool: &Pool,
) -> Result<()> {
    let (client, mut connection) = config.connect(tls.clone()).await.map_err(unavailable)?;
    let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
    let (sender, mut notified) = tokio::sync::mpsc::channel::<()>(1);
    let own = origin.to_owned();
    // Ends when the client is dropped, or the server is gone.
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            if matches!(message, AsyncMessage::Notification(told) if told.payload() != own) {
                let _ = sender.try_send(());
            }
        }
    });
    client.batch_execute("LISTEN allod").await.map_err(unavailable)?;
    loop {
        let Some(outbox) = outbox.upgrade() else { return Ok(()) };
        // What came before LISTEN, or while nobody listened, is read as well.
        poll(pool, &outbox).await?;
        drop(outbox);
        if matches!(tokio::time::timeout(POLL, notified.recv()).await, Ok(None)) {
            return Err(Error::unavailable("The database closed the connection."));
        }
    }
}

async fn poll(pool: &Pool, outbox: &Outbox) -> Result<()> {
    let client = pool.get().await.map_err(unavailable)?;
    let newest = "SELECT service, MAX(number) FROM allod_migrations GROUP BY service";
    if let Ok(rows) = client.query(newest, &[]).await {
        outbox.newest(rows.iter().map(|r| (r.get::<_, String>(0), r.get::<_, i64>(1))));
    }
    let kinds = outbox.kinds();
    if kinds.is_empty() {
        return Ok(());
    }
    let before = outbox.given();
    let sql = "SELECT seq, kind, object FROM allod_outbox WHERE kind = ANY($1) ORDER BY seq";
    let statement = match client.prepare_cached(sql).await {
        Ok(statement) => statement,
        // The schema is not there yet.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(()),
        Err(error) => return Err(unavailable(error)),
    };
    let rows = client.query(&statement, &[&kinds]).await.map_err(unavailable)?;
    let wakes = rows.iter().filter_map(|row| {
        let kind = kinds.iter().copied().find(|k| *k == row.get::<_, &str>(1))?;
        Some(Wake { kind, seq: row.get(0), key: row.get(2) })
    });
    let wakes: Vec<Wake> = wakes.collect();
    outbox.prune(&before, &wakes);
    outbox.deliver(wakes);
    Ok(())
}

/// Why a transaction has to be run again, whatever its closure made of the failure.
pub(crate) enum Again {
    /// Another writer was in the way.
    Conflict(String),
    /// The connection broke before the commit was sent, or the server had no room.
    Lost(String),
}

impl Again {
    pub fn ended<T>(&self) -> Ended<T> {
        let error = match self {
            Again::Conflict(why) => Error::retry(why.clone()),
            Again::Lost(why) => unavailable(why.clone()),
        };
        Ended::Again(error, crate::ATTEMPTS)
    }
}

pub(crate) struct Session {
    client: deadpool_postgres::Object,
    runtime: Handle,
    origin: Arc<str>,
    /// The beginning of the transaction, which is sent together with its first statement: no round trip of its own.
    begin: Option<&'static str>,
    again: Option<Again>,
    /// A statement failed, and with it everything up to the savepoint before it. What is committed nevertheless is
    /// nothing, and PostgreSQL does not call that an error.
    failed: bool,
    /// Other replicas are notified, together with the commit.
    tell: bool,
}

type Closure<T> = dyn Fn(&mut Tx<'_>) -> Result<T> + Send + Sync;

impl Session {
    fn transaction<T>(
        &mut self,
        work: &Closure<T>,
        now: Timestamp,
        writable: bool,
    ) -> std::result::Result<(T, Vec<Wake>), Ended<T>> {
        // A snapshot is all that a read needs, and it never fails for others' writes.
        self.open(if writable {
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE"
        } else {
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        });
        let result = self.closure(work, now, writable);
        if let Some(again) = self.give_up() {
            return Err(again.ended());
        }
        if self.begin.take().is_some() {
            // Nothing was asked of the database.
            return result;
        }
        if !writable {
            // Nobody waits for the end of a read: whoever has the connection next comes after it.
            let _ = self.client.batch_execute("COMMIT").now_or_never();
            return result;
        }
        match result {
            Ok(done) => match self.commit("COMMIT") {
                Ok(()) => Ok(done),
                Err((Some(again @ Again::Conflict(_)), _)) => Err(again.ended()),
                // Whether it was committed is not known: the caller has to look.
                Err((_, error)) => Err(Ended::Done(Err(error))),
            },
            Err(ended) => {
                let _ = self.batch("ROLLBACK");
                Err(ended)
            }
        }
    }

    /// What begins the transaction, or the savepoint, of what comes next.
    pub fn open(&mut self, begin: &'static str) {
        // What was opened before and not used is good enough.
        self.begin.get_or_insert(begin);
        self.failed = false;
    }

    /// What was opened and not used.
    pub fn opened(&self) -> Option<&'static str> {
        self.begin
    }

    /// Runs a closure in what was opened.
    pub fn closure<T>(
        &mut self,
        work: &Closure<T>,
        now: Timestamp,
        writable: bool,
    ) -> std::result::Result<(T, Vec<Wake>), Ended<T>> {
        let mut tx = Tx::new(self, now, writable);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let value = work(&mut tx)?;
            Ok((value, tx.flush_wakes()?))
        }));
        let violated = tx.violated;
        drop(tx);
        let failed = std::mem::take(&mut self.failed);
        match done.unwrap_or_else(|_| Err(Error::internal("a transaction panicked"))) {
            Ok(_) if failed => {
                Err(Ended::Done(Err(Error::internal("a transaction went on after a failed statement"))))
            }
            Ok(done) => Ok(done),
            // The refusing row may be newer than this snapshot: the closure sees it the next time, and may choose
            // another value.
            Err(error) if violated && !crate::tx::is_stale(&error) => Err(Ended::Again(error, 3)),
            Err(error) => Err(Ended::of(Err(error))),
        }
    }

    /// Ends a transaction that has to be run again, and says why.
    pub fn give_up(&mut self) -> Option<Again> {
        let again = self.again.take()?;
        (self.begin, self.failed, self.tell) = (None, false, false);
        let _ = self.batch("ROLLBACK");
        Some(again)
    }

    /// Commits by `sql`.
    pub fn commit(&mut self, sql: &str) -> std::result::Result<(), (Option<Again>, Error)> {
        self.begin = None;
        let done = if std::mem::take(&mut self.tell) {
            // One round trip, and no commit where the notification is refused.
            self.batch(&format!("NOTIFY allod, '{}'; {sql}", self.origin))
        } else {
            self.batch(sql)
        };
        done.map_err(|failure| {
            let again = self.again.take();
            let _ = self.batch("ROLLBACK");
            (again, failure.into())
        })
    }

    /// Sends the beginning without waiting for its answer: should it be refused, so is the statement that follows.
    fn begin(&mut self) {
        if let Some(begin) = self.begin.take() {
            let _ = self.client.batch_execute(begin).now_or_never();
        }
    }

    fn failure(&mut self, error: tokio_postgres::Error) -> Failure {
        self.failed = true;
        let Some(told) = error.as_db_error() else {
            if error.is_closed() || self.client.is_closed() {
                self.again = Some(Again::Lost(error.to_string()));
                return Failure::Other(unavailable(error));
            }
            return Failure::Other(Error::internal(error));
        };
        match told.code() {
            &SqlState::UNIQUE_VIOLATION => Failure::Unique(told.constraint().unwrap_or_default().to_owned()),
            &SqlState::T_R_SERIALIZATION_FAILURE
            | &SqlState::T_R_DEADLOCK_DETECTED
            | &SqlState::LOCK_NOT_AVAILABLE
            | &SqlState::IN_FAILED_SQL_TRANSACTION => {
                self.again = Some(Again::Conflict(told.message().to_owned()));
                Failure::Retry(error.to_string())
            }
            // Also where there is no room for another predicate lock: a transaction that stands still keeps those of all
            // that came after it.
            &SqlState::ADMIN_SHUTDOWN
            | &SqlState::CRASH_SHUTDOWN
            | &SqlState::CANNOT_CONNECT_NOW
            | &SqlState::OUT_OF_MEMORY => {
                self.again = Some(Again::Lost(told.message().to_owned()));
                Failure::Other(unavailable(error))
            }
            &SqlState::DISK_FULL | &SqlState::READ_ONLY_SQL_TRANSACTION | &SqlState::TOO_MANY_CONNECTIONS => {
                Failure::Other(Error::unavailable("The database could not write.").caused_by(error))
            }
            // An indexed value beyond a third of a page.
            &SqlState::PROGRAM_LIMIT_EXCEEDED => {
                Failure::Other(Error::bad_request("A value is too long.").caused_by(error))
            }
            _ => Failure::Other(Error::internal(error)),
        }
    }
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

type Answer<T> = std::result::Result<T, Failure>;

/// Borrowed parameters, as the client wants them.
fn borrowed(params: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    params.iter().map(|p| p as &(dyn ToSql + Sync)).collect()
}

fn value(row: &Row, i: usize, ty: &Type) -> std::result::Result<Value, tokio_postgres::Error> {
    Ok(match *ty {
        Type::INT8 => row.try_get::<_, Option<i64>>(i)?.map_or(Value::Null, Value::Int),
        Type::INT4 => row.try_get::<_, Option<i32>>(i)?.map_or(Value::Null, |n| Value::Int(n.into())),
        _ => row.try_get::<_, Option<String>>(i)?.map_or(Value::Null, Value::Text),
    })
}

impl Connection for Session {
    fn postgres(&self) -> bool {
        true
    }

    fn query(&mut self, sql: &str, params: &[Value]) -> Answer<Vec<Vec<Value>>> {
        self.begin();
        let rows = self.runtime.block_on(async {
            let statement = self.client.prepare_cached(sql).await?;
            self.client.query(&statement, &borrowed(params)).await
        });
        let rows = rows.map_err(|e| self.failure(e))?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let values = row.columns().iter().enumerate().map(|(i, c)| value(row, i, c.type_()));
            found.push(values.collect::<std::result::Result<_, _>>().map_err(|e| self.failure(e))?);
        }
        Ok(found)
    }

    fn execute(&mut self, sql: &str, params: &[Value]) -> Answer<u64> {
        self.begin();
        let changed = self.runtime.block_on(async {
            let statement = self.client.prepare_cached(sql).await?;
            self.client.execute(&statement, &borrowed(params)).await
        });
        changed.map_err(|e| self.failure(e))
    }

    fn execute_unique(&mut self, sql: &str, params: &[Value]) -> Answer<u64> {
        self.begin();
        let changed = self.runtime.block_on(async {
            let client = &self.client;
            let statement = client.prepare_cached(sql).await?;
            let params = borrowed(params);
            // A failed statement ends a PostgreSQL transaction, unless a savepoint is before it. The three are sent
            // together, in this order, and cost one round trip.
            let (before, changed, after) = futures::join!(
                client.batch_execute("SAVEPOINT one"),
                client.execute(&statement, &params),
                client.batch_execute("RELEASE one"),
            );
            before?;
            if changed.is_err() {
                client.batch_execute("ROLLBACK TO one; RELEASE one").await?;
            } else {
                after?;
            }
            Ok(changed)
        });
        match changed {
            Ok(changed) => changed.map_err(|e| {
                let failure = self.failure(e);
                self.failed = false;
                failure
            }),
            Err(e) => Err(self.failure(e)),
        }
    }

    fn batch(&mut self, sql: &str) -> Answer<()> {
        self.begin();
        let done = self.runtime.block_on(self.client.batch_execute(sql));
        done.map_err(|e| self.failure(e))
    }

    fn notify(&mut self) -> Answer<()> {
        self.tell = true;
        Ok(())
    }
}
