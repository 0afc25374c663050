//! PostgreSQL: SERIALIZABLE transactions on pooled connections; closures run on blocking threads.

use std::any::TypeId;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use base::{Clock, Error, Result, Timestamp};
use bytes::BytesMut;
use deadpool::Runtime;
use deadpool::managed::{Object, Pool};
use futures::StreamExt;
use futures::future::join_all;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{AsyncMessage, Client, Row, Statement};

use crate::glance::Glances;
use crate::lane::Lane;
use crate::outbox::{Outbox, Wake};
use crate::tls::Tls;
use crate::tx::{Connection, Failure, Tx};
use crate::value::Value;
use crate::wire::Wires;
use crate::{Ended, Work};

/// Connections of one process, apart from the one that listens.
const CONNECTIONS: usize = 16;
/// A connection that nobody used for so long is looked at first: the server may have closed it.
const UNUSED: Duration = Duration::from_millis(50);
/// Writes that wait for what comes next. `join_all` begins as many in their order.
const LATER: usize = 24;
/// Answers that a transaction keeps of a table.
const KNOWN: usize = 64;

/// Time between polls of the outbox, where notifications are lost.
pub(crate) const POLL: Duration = Duration::from_secs(5);
/// How long a server waits for another that changes the schema.
const MIGRATING: Duration = Duration::from_secs(600);
/// Pause before a broken listener connects again.
const RECONNECT: Duration = Duration::from_secs(1);

pub(crate) struct Postgres {
    config: (tokio_postgres::Config, Tls),
    source: Source,
    lane: Lane,
    pub glances: Glances,
    clock: Arc<dyn Clock>,
    outbox: Arc<Outbox>,
}

/// Where sessions come from.
#[derive(Clone)]
pub(crate) struct Source {
    pool: Pool<Wires>,
    /// Names this process in notifications: it does not wake itself.
    origin: Arc<str>,
}

impl Source {
    pub async fn session(&self) -> Result<Session> {
        let mut wire = self.pool.get().await.map_err(unavailable)?;
        while wire.unused() > UNUSED {
            let look = move || {
                let open = wire.look();
                (wire, open)
            };
            let (looked, open) = tokio::task::spawn_blocking(look).await.map_err(Error::internal)?;
            // The pool forgets one that is closed.
            wire = if open { looked } else { self.pool.get().await.map_err(unavailable)? };
        }
        Ok(Session {
            wire,
            origin: self.origin.clone(),
            begin: None,
            again: None,
            failed: false,
            tell: false,
            hopeful: false,
            dashed: false,
            later: Vec::new(),
            writes: 0,
            known: None,
        })
    }
}

/// A connection of its own, driven by a task; it ends when the client is dropped.
async fn apart((config, tls): &(tokio_postgres::Config, Tls)) -> Result<Client> {
    let (client, connection) = config.connect(tls.clone()).await.map_err(unavailable)?;
    tokio::spawn(connection);
    Ok(client)
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
    ) -> Result<Box<Self>> {
        let (mut config, tls) = crate::tls::read(url)?;
        config.application_name("allod").connect_timeout(Duration::from_secs(10));
        let pool = Pool::builder(Wires { config: config.clone(), tls: tls.clone() })
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(Duration::from_secs(30)))
            .create_timeout(Some(Duration::from_secs(10)))
            .build()
            .map_err(unavailable)?;
        let origin: Arc<str> = origin.into();
        let config = (config, tls);
        tokio::spawn(listen(config.clone(), origin.clone(), Arc::downgrade(&outbox)));
        let source = Source { pool, origin };
        let lane = Lane::new(source.clone(), clock.clone(), outbox.clone());
        let glances = Glances::new(config.clone());
        Ok(Box::new(Postgres { config, source, lane, glances, clock, outbox }))
    }

    /// Waits until no other process migrates; nobody else does while the answer is kept. It is a session's lock that is
    /// asked for again and again: one that waited would hold a snapshot, which `CREATE INDEX CONCURRENTLY` waits for.
    pub async fn alone_here(&self) -> Result<Client> {
        // The lock ends with the connection.
        let client = apart(&self.config).await?;
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
        let done = apart(&self.config).await?.batch_execute(sql).await;
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
async fn listen(config: (tokio_postgres::Config, Tls), origin: Arc<str>, outbox: Weak<Outbox>) {
    while outbox.strong_count() > 0 {
        if let Err(error) = listen_once(&config, &origin, &outbox).await {
            tracing::warn!(error = %error.chain(), "not listening for other replicas' wake-ups; trying again");
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn listen_once(
    (config, tls): &(tokio_postgres::Config, Tls),
    origin: &str,
    outbox: &Weak<Outbox>,
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
        poll(&client, &outbox).await?;
        drop(outbox);
        if matches!(tokio::time::timeout(POLL, notified.recv()).await, Ok(None)) {
            return Err(Error::unavailable("The database closed the connection."));
        }
    }
}

async fn poll(client: &Client, outbox: &Outbox) -> Result<()> {
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
    let rows = match client.query(sql, &[&kinds]).await {
        Ok(rows) => rows,
        // The schema is not there yet.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(()),
        Err(error) => return Err(unavailable(error)),
    };
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
    wire: Object<Wires>,
    origin: Arc<str>,
    /// The beginning of the transaction, which is sent together with its first statement: no round trip of its own.
    begin: Option<&'static str>,
    again: Option<Again>,
    /// A statement failed, and with it everything up to the savepoint before it. What is committed nevertheless is
    /// nothing, and PostgreSQL does not call that an error.
    failed: bool,
    /// Other replicas are notified, together with the commit.
    tell: bool,
    /// Writes are taken to do what they are expected to, and go out with what comes next.
    hopeful: bool,
    /// One of them did something else.
    dashed: bool,
    later: Vec<Later>,
    /// Rows changed, or about to be, by statements since the transaction began.
    writes: u64,
    /// What the transaction read already; `None`: it is not kept.
    known: Option<Known>,
}

/// What a transaction read, by table and by statement with its parameters; it reads no other until it writes there.
type Known = HashMap<&'static str, HashMap<(String, Vec<Value>), Vec<Vec<Value>>>>;

/// A write that was not sent yet.
struct Later {
    statement: Statement,
    params: Vec<Value>,
    /// Rows that it is expected to change.
    changes: u64,
}

type Closure<T> = dyn Fn(&mut Tx<'_>) -> Result<T> + Send + Sync;
/// What a closure answers, and what it wakes.
type Closed<T> = std::result::Result<(T, Vec<Wake>), Ended<T>>;

/// What a closure leaves behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Everything was sent, and did what was expected.
    Settled,
    /// Others come after it.
    Open,
}

pub(crate) const WRITE: &str = "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE";
/// A snapshot is all that a read needs, and it never fails for others' writes.
const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

impl Session {
    fn transaction<T>(&mut self, work: &Closure<T>, now: Timestamp, writable: bool) -> Closed<T> {
        self.open(if writable { WRITE } else { READ });
        let anew = |session: &mut Session| {
            let _ = session.batch("ROLLBACK");
            session.open(WRITE);
        };
        let result = self.closure(work, now, writable, anew);
        if let Some(again) = self.give_up() {
            return Err(again.ended());
        }
        if self.begin.take().is_some() {
            // Nothing was asked of the database.
            return result;
        }
        if !writable {
            // Nobody waits for the end of a read: whoever has the connection next comes after it.
            self.wire.send("COMMIT");
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

    /// Runs a closure in what was opened: in the hope that its writes do what it expects of them, so that they need not be
    /// waited for one by one; should one not, undoes everything by `anew` and runs it again, waiting for each.
    pub fn closure<T>(
        &mut self,
        work: &Closure<T>,
        now: Timestamp,
        writable: bool,
        anew: impl FnOnce(&mut Session),
    ) -> Closed<T> {
        self.hopeful = writable;
        let closed = self.once(work, now, writable, End::Settled);
        self.hopeful = false;
        if !std::mem::take(&mut self.dashed) || self.again.is_some() {
            return closed;
        }
        anew(self);
        self.once(work, now, writable, End::Settled)
    }

    /// Runs one closure of several that share what was opened, in the hope that all of them do what they are expected to:
    /// what it wrote may not be sent yet, and what it wakes is not written. `None`: the hope was wrong, and nothing of the
    /// transaction may stay.
    pub fn hopefully<T>(&mut self, work: &Closure<T>, now: Timestamp) -> Option<Closed<T>> {
        self.hopeful = true;
        self.known.get_or_insert_default();
        let before = self.writes;
        let closed = self.once(work, now, true, End::Open);
        self.hopeful = false;
        // What it refused stays undone only where it had not written.
        let kept = closed.is_ok() || self.writes == before;
        (kept && !self.failed && self.again.is_none()).then_some(closed)
    }

    /// Writes what closures wake, and waits for all that was put off.
    pub fn wake(&mut self, mut wakes: Vec<Wake>, now: Timestamp) -> Result<Vec<Wake>> {
        let mut seen = HashSet::new();
        wakes.retain(|w| seen.insert((w.kind, w.key.clone())));
        let mut tx = Tx::new(self, now, true);
        tx.wakes = wakes;
        let wakes = tx.flush_wakes();
        drop(tx);
        self.settle()?;
        wakes
    }

    /// Forgets everything about a transaction that was hoped for in vain.
    pub fn despair(&mut self) {
        (self.begin, self.failed, self.tell, self.dashed, self.known) = (None, false, false, false, None);
        self.later.clear();
        let _ = self.batch("ROLLBACK");
    }

    fn once<T>(&mut self, work: &Closure<T>, now: Timestamp, writable: bool, end: End) -> Closed<T> {
        let mut tx = Tx::new(self, now, writable);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let value = work(&mut tx)?;
            Ok((value, if end == End::Open { std::mem::take(&mut tx.wakes) } else { tx.flush_wakes()? }))
        }));
        let violated = tx.violated;
        drop(tx);
        if end == End::Settled {
            let _ = self.settle();
        }
        let failed = self.failed;
        self.failed &= end == End::Open;
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
        self.despair();
        Some(again)
    }

    /// Commits by `sql`.
    pub fn commit(&mut self, sql: &str) -> std::result::Result<(), (Option<Again>, Error)> {
        (self.begin, self.known) = (None, None);
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

    /// Asks, after everything that was put off; all of it goes out together.
    fn ask<T>(
        &mut self,
        ask: impl AsyncFnOnce(&Client) -> std::result::Result<T, tokio_postgres::Error>,
    ) -> Answer<T> {
        if let Some(begin) = self.begin.take() {
            // Should it be refused, so is the statement that follows.
            self.wire.post(begin);
        }
        let later = std::mem::take(&mut self.later);
        let (before, answer) = self.wire.wait(async |client| {
            let before = join_all(later.iter().map(|l| execute(client, &l.statement, &l.params)));
            futures::join!(before, ask(client))
        });
        for (write, done) in later.iter().zip(before) {
            match done {
                Ok(changed) if changed == write.changes => {}
                Ok(_) => return Err(self.dash()),
                // What follows a failed statement fails for that only.
                Err(error) => {
                    let failure = self.failure(error);
                    return Err(if self.again.is_some() { failure } else { self.dash() });
                }
            }
        }
        answer.map_err(|e| self.failure(e))
    }

    fn dash(&mut self) -> Failure {
        (self.dashed, self.failed) = (true, true);
        Failure::Retry("a write did not do what was expected of it".to_owned())
    }

    /// Sends what was put off.
    fn settle(&mut self) -> Answer<()> {
        if self.later.is_empty() {
            return Ok(());
        }
        if self.failed {
            // All that is undone.
            self.later.clear();
            return Ok(());
        }
        self.ask(async |_| Ok(()))
    }

    fn prepare(&mut self, sql: &str) -> Answer<Statement> {
        self.wire.prepare(sql).map_err(|e| self.failure(e))
    }

    fn failure(&mut self, error: tokio_postgres::Error) -> Failure {
        self.failed = true;
        let Some(told) = error.as_db_error() else {
            if error.is_closed() || !self.wire.is_open() {
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
            // An array of the type.
            Value::List(values) => values.to_sql(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

type Answer<T> = std::result::Result<T, Failure>;

/// Borrowed parameters, as the client wants them.
pub(crate) fn borrowed(params: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    params.iter().map(|p| p as &(dyn ToSql + Sync)).collect()
}

fn value(row: &Row, i: usize, ty: &Type) -> std::result::Result<Value, tokio_postgres::Error> {
    Ok(match *ty {
        Type::INT8 => row.try_get::<_, Option<i64>>(i)?.map_or(Value::Null, Value::Int),
        Type::INT4 => row.try_get::<_, Option<i32>>(i)?.map_or(Value::Null, |n| Value::Int(n.into())),
        _ => row.try_get::<_, Option<String>>(i)?.map_or(Value::Null, Value::Text),
    })
}

pub(crate) fn values(rows: &[Row]) -> std::result::Result<Vec<Vec<Value>>, tokio_postgres::Error> {
    let of_row =
        |row: &Row| row.columns().iter().enumerate().map(|(i, c)| value(row, i, c.type_())).collect();
    rows.iter().map(of_row).collect()
}

impl Connection for Session {
    fn postgres(&self) -> bool {
        true
    }

    fn query(&mut self, sql: &str, params: &[Value]) -> Answer<Vec<Vec<Value>>> {
        let statement = self.prepare(sql)?;
        let rows = self.ask(async |client| client.query(&statement, &borrowed(params)).await)?;
        values(&rows).map_err(|e| self.failure(e))
    }

    fn execute(&mut self, sql: &str, params: &[Value]) -> Answer<u64> {
        self.writes += 1;
        let statement = self.prepare(sql)?;
        self.ask(async |client| execute(client, &statement, params).await)
    }

    fn execute_unique(&mut self, sql: &str, params: &[Value]) -> Answer<u64> {
        self.writes += 1;
        let statement = self.prepare(sql)?;
        let changed = self.ask(async |client| {
            // A failed statement ends a PostgreSQL transaction, unless a savepoint is before it. The three are sent
            // together, in this order, and cost one round trip.
            let (before, changed, after) = futures::join!(
                client.batch_execute("SAVEPOINT one"),
                execute(client, &statement, params),
                client.batch_execute("RELEASE one"),
            );
            before?;
            if changed.is_err() {
                client.batch_execute("ROLLBACK TO one; RELEASE one").await?;
            } else {
                after?;
            }
            Ok(changed)
        })?;
        changed.map_err(|e| {
            let failure = self.failure(e);
            self.failed = false;
            failure
        })
    }

    fn later(&mut self, sql: &str, params: &[Value], changes: u64) -> Answer<bool> {
        if !self.hopeful {
            return Ok(false);
        }
        self.writes += 1;
        let statement = self.prepare(sql)?;
        self.later.push(Later { statement, params: params.to_vec(), changes });
        if self.later.len() == LATER {
            self.settle()?;
        }
        Ok(true)
    }

    fn known(&self, table: &'static str, sql: &str, params: &[Value]) -> Option<Vec<Vec<Value>>> {
        self.known.as_ref()?.get(table)?.get(&(sql.to_owned(), params.to_vec())).cloned()
    }

    fn learn(&mut self, table: &'static str, sql: &str, params: &[Value], rows: &[Vec<Value>]) {
        let Some(known) = &mut self.known else { return };
        let of_table = known.entry(table).or_default();
        if rows.len() <= 4 && of_table.len() < KNOWN {
            of_table.insert((sql.to_owned(), params.to_vec()), rows.to_vec());
        }
    }

    fn unlearn(&mut self, table: Option<&'static str>) {
        let Some(known) = &mut self.known else { return };
        match table {
            Some(table) => drop(known.remove(table)),
            None => known.clear(),
        }
    }

    fn batch(&mut self, sql: &str) -> Answer<()> {
        self.ask(async |client| client.batch_execute(sql).await)
    }

    fn notify(&mut self) -> Answer<()> {
        self.tell = true;
        Ok(())
    }
}

async fn execute(
    client: &Client,
    statement: &Statement,
    params: &[Value],
) -> std::result::Result<u64, tokio_postgres::Error> {
    client.execute(statement, &borrowed(params)).await
}
