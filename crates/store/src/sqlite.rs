//! SQLite: one writer thread with group commit, a few readers.
//!
//! Closures that queue up while a commit is on its way to the disk share the next one: each runs in a savepoint of its
//! own, then one fsync covers all. A closure that fails or panics takes only its savepoint with it.
//!
//! Small reads run in the caller's task, because handing a 10 µs read to a thread costs more than the read. A read that
//! turns out to be large is broken off and run again on a blocking thread, and so is every later one of the same
//! closure: the runtime never waits for a big list.

use std::any::TypeId;
use std::collections::HashMap;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Clock, Error, Result, Timestamp};
use parking_lot::Mutex;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{ErrorCode, OpenFlags};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::outbox::{Outbox, Wake};
use crate::tx::{Connection, Failure, Tx};
use crate::value::Value;
use crate::{Ended, Work};

/// Closures that may share one commit.
const BATCH: usize = 128;
/// Readers at a time.
const READERS: usize = 8;
/// Rows that a read in the caller's task may see.
const INLINE_ROWS: usize = 64;
/// A read in the caller's task that takes longer than this, several times, is moved to blocking threads.
const INLINE_TIME: Duration = Duration::from_micros(500);
/// How many times.
const STRIKES: u8 = 4;

/// Work that waits for the writer: run in the batch's transaction, then told whether the batch is on disk.
trait Job: Send {
    fn run(&mut self, handle: &mut Handle) -> Vec<Wake>;
    fn finish(self: Box<Self>, commit: Result<(), String>);
}

struct Write<T> {
    work: Work<T>,
    now: Timestamp,
    result: Option<Result<T>>,
    answer: oneshot::Sender<Ended<T>>,
}

impl<T: Send> Job for Write<T> {
    fn run(&mut self, handle: &mut Handle) -> Vec<Wake> {
        let (result, wakes) = savepoint(handle, &*self.work, self.now);
        self.result = Some(result);
        wakes
    }

    fn finish(self: Box<Self>, commit: Result<(), String>) {
        let ended = match (commit, self.result) {
            // What the closure refused is refused, whatever became of the others.
            (_, Some(Err(error))) => Ended::Done(Err(error)),
            (Ok(()), Some(result)) => Ended::Done(result),
            (Ok(()), None) => Ended::Done(Err(Error::internal("a transaction was not run"))),
            (Err(why), _) => {
                Ended::Again(Error::unavailable("The database could not write.").caused_by(why), 3)
            }
        };
        let _ = self.answer.send(ended);
    }
}

pub(crate) struct Sqlite {
    path: Option<PathBuf>,
    /// In memory: the one connection, used in the caller's task, so that virtual time never waits for a thread.
    memory: Option<Mutex<Handle>>,
    writer: Option<mpsc::UnboundedSender<Box<dyn Job>>>,
    readers: Arc<Mutex<Vec<Handle>>>,
    permits: Arc<Semaphore>,
    /// Closures that were found too slow for the caller's task: how many times.
    slow: Mutex<HashMap<TypeId, u8>>,
    clock: Arc<dyn Clock>,
    outbox: Arc<Outbox>,
}

fn internal(error: rusqlite::Error) -> Error {
    Error::internal(error)
}

impl Sqlite {
    pub fn file(path: &Path, clock: Arc<dyn Clock>, outbox: Arc<Outbox>) -> Result<Self> {
        let told = |e: std::io::Error| Error::internal(format!("{}: {e}", path.display()));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(told)?;
        }
        // The file holds password hashes and user data; SQLite gives -wal and -shm the same mode.
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(told)?;
        let connection = rusqlite::Connection::open(path).map_err(internal)?;
        connection
            .execute_batch(
                "PRAGMA busy_timeout=10000; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA temp_store=MEMORY; \
                 PRAGMA cache_size=-16384; PRAGMA journal_size_limit=16777216;",
            )
            .map_err(internal)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let handle = Handle::new(connection);
        let deliver = outbox.clone();
        std::thread::Builder::new()
            .name("sqlite-writer".into())
            .spawn(move || writer(handle, receiver, &deliver))
            .map_err(Error::internal)?;
        Ok(Sqlite {
            path: Some(path.to_owned()),
            memory: None,
            writer: Some(sender),
            readers: Arc::default(),
            permits: Arc::new(Semaphore::new(READERS)),
            slow: Mutex::default(),
            clock,
            outbox,
        })
    }

    pub fn memory(clock: Arc<dyn Clock>, outbox: Arc<Outbox>) -> Result<Self> {
        let connection = rusqlite::Connection::open_in_memory().map_err(internal)?;
        Ok(Sqlite {
            path: None,
            memory: Some(Mutex::new(Handle::new(connection))),
            writer: None,
            readers: Arc::default(),
            permits: Arc::new(Semaphore::new(READERS)),
            slow: Mutex::default(),
            clock,
            outbox,
        })
    }

    /// `closure` is the type of the caller's closure: what is learnt of one call holds for the next.
    pub async fn read<T: Send + 'static>(&self, work: Work<T>, closure: TypeId) -> Result<T> {
        let now = self.clock.now();
        if let Some(memory) = &self.memory {
            return snapshot(&mut memory.lock(), &*work, now);
        }
        let Some(path) = self.path.clone() else { return Err(Error::internal("no database file")) };
        if let Some(result) = self.read_inline(&path, &work, closure, now) {
            return result;
        }
        let permit = self.permits.clone().acquire_owned().await.map_err(Error::internal)?;
        let readers = self.readers.clone();
        tokio::task::spawn_blocking(move || {
            let mut handle = reader(&readers, &path)?;
            let result = snapshot(&mut handle, &*work, now);
            readers.lock().push(handle);
            drop(permit);
            result
        })
        .await
        .map_err(Error::internal)?
    }

    /// `None`: too large for the caller's task, or all readers are busy.
    fn read_inline<T>(
        &self,
        path: &Path,
        work: &Work<T>,
        closure: TypeId,
        now: Timestamp,
    ) -> Option<Result<T>> {
        if self.slow.lock().get(&closure).is_some_and(|strikes| *strikes >= STRIKES) {
            return None;
        }
        let _permit = self.permits.clone().try_acquire_owned().ok()?;
        let mut handle = match reader(&self.readers, path) {
            Ok(handle) => handle,
            Err(error) => return Some(Err(error)),
        };
        handle.rows_left = Some(INLINE_ROWS);
        let began = Instant::now();
        let result = snapshot(&mut handle, &**work, now);
        let broken_off = std::mem::take(&mut handle.broken_off);
        handle.rows_left = None;
        self.readers.lock().push(handle);
        if broken_off || began.elapsed() > INLINE_TIME {
            let mut slow = self.slow.lock();
            let strikes = slow.entry(closure).or_default();
            *strikes = if broken_off { STRIKES } else { strikes.saturating_add(1) };
        }
        if broken_off { None } else { Some(result) }
    }

    pub async fn write<T: Send + 'static>(&self, work: Work<T>) -> Ended<T> {
        let now = self.clock.now();
        if let Some(memory) = &self.memory {
            let (result, wakes) = savepoint(&mut memory.lock(), &*work, now);
            self.outbox.deliver(wakes);
            return Ended::Done(result);
        }
        let Some(writer) = &self.writer else { return Ended::Done(Err(Error::internal("no database"))) };
        let (answer, receiver) = oneshot::channel();
        let job = Box::new(Write { work, now, result: None, answer });
        if writer.send(job).is_err() {
            return Ended::Done(Err(Error::internal("the writer ended")));
        }
        let ended = receiver.await;
        ended.unwrap_or_else(|_| Ended::Done(Err(Error::internal("the writer dropped a transaction"))))
    }

    pub async fn backup(&self, path: &Path) -> Result<()> {
        let Some(source) = self.path.clone() else {
            return Err(Error::bad_request("A database in memory has no file."));
        };
        let target = path.to_owned();
        let permit = self.permits.clone().acquire_owned().await.map_err(Error::internal)?;
        tokio::task::spawn_blocking(move || {
            let told = |e: std::io::Error| Error::internal(format!("{}: {e}", target.display()));
            // VACUUM INTO takes an empty file: made here, so that it is never readable by others.
            std::fs::OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(&target)
                .map_err(told)?;
            let copied = rusqlite::Connection::open(&source)
                .and_then(|c| c.execute("VACUUM INTO ?1", [target.to_string_lossy()]))
                .map_err(internal)
                .and_then(|_| std::fs::File::open(&target).and_then(|f| f.sync_all()).map_err(told));
            if copied.is_err() {
                let _ = std::fs::remove_file(&target);
            }
            drop(permit);
            copied
        })
        .await
        .map_err(Error::internal)?
    }
}

fn reader(readers: &Mutex<Vec<Handle>>, path: &Path) -> Result<Handle> {
    let held = readers.lock().pop();
    held.map_or_else(|| Handle::reader(path), Ok)
}

fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::internal("a transaction panicked")))
}

type Closure<T> = dyn Fn(&mut Tx<'_>) -> Result<T> + Send + Sync;

fn snapshot<T>(handle: &mut Handle, work: &Closure<T>, now: Timestamp) -> Result<T> {
    handle.run("BEGIN").map_err(internal)?;
    let result = guarded(|| work(&mut Tx::new(handle, now, false)));
    handle.run("ROLLBACK").map_err(internal)?;
    result
}

/// Runs a closure in a savepoint; what it wrote stays only if it succeeded.
fn savepoint<T>(handle: &mut Handle, work: &Closure<T>, now: Timestamp) -> (Result<T>, Vec<Wake>) {
    if let Err(error) = handle.run("SAVEPOINT job") {
        return (Err(internal(error)), Vec::new());
    }
    let result = guarded(|| {
        let mut tx = Tx::new(handle, now, true);
        let value = work(&mut tx)?;
        let wakes = tx.flush_wakes()?;
        Ok((value, wakes))
    });
    if handle.connection.is_autocommit() {
        // The disk is full or failed: SQLite gave up the whole transaction.
        let lost = || Error::unavailable("The database could not write.");
        return (Err(result.err().unwrap_or_else(lost)), Vec::new());
    }
    let undone = if result.is_ok() { Ok(()) } else { handle.run("ROLLBACK TO job") };
    let ended = undone.and_then(|()| handle.run("RELEASE job")).map_err(internal);
    match (result, ended) {
        (Ok((value, wakes)), Ok(())) => (Ok(value), wakes),
        (Err(error), _) | (Ok(_), Err(error)) => (Err(error), Vec::new()),
    }
}

fn writer(mut handle: Handle, mut jobs: mpsc::UnboundedReceiver<Box<dyn Job>>, outbox: &Outbox) {
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = Vec::new();
        let mut wakes = Vec::new();
        let mut outcome = handle.run("BEGIN IMMEDIATE").map_err(|e| e.to_string());
        let mut next = Some(first);
        while let Some(mut job) = next {
            if outcome.is_ok() {
                wakes.extend(job.run(&mut handle));
                if handle.connection.is_autocommit() {
                    outcome = Err("the batch was rolled back".into());
                }
            }
            batch.push(job);
            next = if outcome.is_ok() && batch.len() < BATCH { jobs.try_recv().ok() } else { None };
        }
        let outcome = outcome.and_then(|()| handle.run("COMMIT").map_err(|e| e.to_string()));
        match &outcome {
            Ok(()) => outbox.deliver(wakes),
            Err(why) => {
                tracing::error!(why, transactions = batch.len(), "the database could not write");
                if !handle.connection.is_autocommit() {
                    let _ = handle.run("ROLLBACK");
                }
            }
        }
        for job in batch {
            job.finish(outcome.clone());
        }
    }
}

/// One connection.
struct Handle {
    connection: rusqlite::Connection,
    /// Rows that may still be read in the caller's task; `None` for no limit.
    rows_left: Option<usize>,
    /// The limit was met: the result is worthless.
    broken_off: bool,
}

impl Handle {
    fn new(connection: rusqlite::Connection) -> Self {
        connection.set_prepared_statement_cache_capacity(256);
        Handle { connection, rows_left: None, broken_off: false }
    }

    fn reader(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = rusqlite::Connection::open_with_flags(path, flags).map_err(internal)?;
        connection
            .execute_batch("PRAGMA busy_timeout=10000; PRAGMA query_only=ON; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-1024;")
            .map_err(internal)?;
        Ok(Handle::new(connection))
    }

    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Int(n) => ValueRef::Integer(*n),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            // For `json_each`.
            list @ Value::List(_) => return Ok(ToSqlOutput::from(list.clone().json().to_string())),
        }))
    }
}

fn failure(error: rusqlite::Error) -> Failure {
    let rusqlite::Error::SqliteFailure(code, message) = &error else {
        return Failure::Other(internal(error));
    };
    match code.code {
        ErrorCode::ConstraintViolation => {
            match message.as_deref().and_then(|m| m.strip_prefix("UNIQUE constraint failed: ")) {
                Some(columns) => Failure::Unique(columns.to_owned()),
                None => Failure::Other(internal(error)),
            }
        }
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Failure::Retry(error.to_string()),
        ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly => {
            Failure::Other(Error::unavailable("The database could not write.").caused_by(error))
        }
        _ => Failure::Other(internal(error)),
    }
}

fn value(column: ValueRef<'_>) -> Result<Value, Failure> {
    Ok(match column {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) => Value::Int(n),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Real(_) | ValueRef::Blob(_) => {
            return Err(Failure::Other(Error::internal("a column of an unknown kind")));
        }
    })
}

impl Connection for Handle {
    fn postgres(&self) -> bool {
        false
    }

    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Vec<Value>>, Failure> {
        let mut statement = self.connection.prepare_cached(sql).map_err(failure)?;
        let width = statement.column_count();
        let mut rows = statement.query(rusqlite::params_from_iter(params)).map_err(failure)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(failure)? {
            if let Some(left) = &mut self.rows_left {
                if *left == 0 {
                    self.broken_off = true;
                    return Err(Failure::Other(Error::internal("too large for the caller's task")));
                }
                *left -= 1;
            }
            let mut values = Vec::with_capacity(width);
            for i in 0..width {
                values.push(value(row.get_ref(i).map_err(failure)?)?);
            }
            found.push(values);
        }
        Ok(found)
    }

    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, Failure> {
        let mut statement = self.connection.prepare_cached(sql).map_err(failure)?;
        let changed = statement.execute(rusqlite::params_from_iter(params)).map_err(failure)?;
        Ok(u64::try_from(changed).unwrap_or(0))
    }

    fn execute_unique(&mut self, sql: &str, params: &[Value]) -> Result<u64, Failure> {
        // A refused statement undoes itself alone.
        self.execute(sql, params)
    }

    fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        self.connection.execute_batch(sql).map_err(failure)
    }
}
