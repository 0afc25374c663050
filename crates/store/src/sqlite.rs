//! SQLite: one writer thread with group commit, a few readers.
//!
//! Closures that queue up while a commit is on its way to the disk share the next one: each runs in a savepoint of its
//! own, then one fsync covers all. A closure that fails or panics takes only its savepoint with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{Clock, Error, Result};
use parking_lot::Mutex;
use rusqlite::types::ValueRef;
use rusqlite::{ErrorCode, OpenFlags};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::Work;
use crate::outbox::{Outbox, Wake};
use crate::tx::{Connection, Failure, Tx};
use crate::value::Value;

/// Closures that may share one commit.
const BATCH: usize = 128;
/// Readers at a time.
const READERS: usize = 4;

/// What a closure left to be done after the commit: told whether it held.
type Finish = Box<dyn FnOnce(Result<(), String>) + Send>;
/// A closure on the writer's connection.
type Job = Box<dyn FnOnce(&mut Handle) -> (Finish, Vec<Wake>) + Send>;

pub(crate) struct Sqlite {
    path: Option<PathBuf>,
    /// In memory: the one connection, used in the caller's task, so that virtual time never waits for a thread.
    memory: Option<Mutex<Handle>>,
    writer: Option<mpsc::UnboundedSender<Job>>,
    readers: Arc<Mutex<Vec<Handle>>>,
    permits: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
    outbox: Arc<Outbox>,
}

fn internal(error: rusqlite::Error) -> Error {
    Error::internal(error)
}

impl Sqlite {
    pub fn file(path: &Path, clock: Arc<dyn Clock>, outbox: Arc<Outbox>) -> Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::internal(format!("{}: {e}", dir.display())))?;
        }
        let connection = rusqlite::Connection::open(path).map_err(internal)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=10000; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-4096;",
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
            clock,
            outbox,
        })
    }

    pub async fn read<T: Send + 'static>(
        &self,
        work: Arc<dyn Fn(&mut Tx<'_>) -> Result<T> + Send + Sync>,
    ) -> Result<T> {
        let now = self.clock.now();
        let run = move |handle: &mut Handle| {
            handle.0.execute_batch("BEGIN").map_err(internal)?;
            let result = guarded(|| work(&mut Tx::new(handle, now, false)));
            handle.0.execute_batch("ROLLBACK").map_err(internal)?;
            result
        };
        if let Some(memory) = &self.memory {
            return run(&mut memory.lock());
        }
        let Some(path) = self.path.clone() else { return Err(Error::internal("no database file")) };
        let _permit = self.permits.clone().acquire_owned().await.map_err(Error::internal)?;
        let readers = self.readers.clone();
        tokio::task::spawn_blocking(move || {
            let held = readers.lock().pop();
            let mut handle = match held {
                Some(handle) => handle,
                None => Handle::reader(&path)?,
            };
            let result = run(&mut handle);
            readers.lock().push(handle);
            result
        })
        .await
        .map_err(Error::internal)?
    }

    pub async fn write<T: Send + 'static>(&self, work: Work<T>) -> Result<T> {
        let now = self.clock.now();
        let Some(writer) = &self.writer else {
            let Some(memory) = &self.memory else { return Err(Error::internal("no database")) };
            let (result, wakes) = {
                let mut handle = memory.lock();
                handle.0.execute_batch("BEGIN IMMEDIATE").map_err(internal)?;
                let done = savepoint(&mut handle, &*work, now);
                handle.0.execute_batch("COMMIT").map_err(internal)?;
                done
            };
            self.outbox.deliver(wakes);
            return result;
        };
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |handle| {
            let (result, wakes) = savepoint(handle, &*work, now);
            let finish: Finish = Box::new(move |commit| {
                let result = match commit {
                    Ok(()) => result,
                    Err(why) => result.and(Err(Error::internal(why))),
                };
                let _ = sender.send(result);
            });
            (finish, wakes)
        });
        writer.send(job).map_err(|_| Error::internal("the writer ended"))?;
        receiver.await.map_err(|_| Error::internal("the writer dropped a transaction"))?
    }

    pub async fn backup(&self, path: &Path) -> Result<()> {
        let Some(source) = self.path.clone() else {
            return Err(Error::bad_request("A database in memory has no file."));
        };
        let target = path.to_string_lossy().into_owned();
        tokio::task::spawn_blocking(move || {
            let handle = Handle::reader(&source)?;
            handle.0.execute("VACUUM INTO ?1", [target]).map_err(internal)?;
            Ok(())
        })
        .await
        .map_err(Error::internal)?
    }
}

fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::internal("a transaction panicked")))
}

/// Runs a closure in a savepoint; what it wrote stays only if it succeeded.
fn savepoint<T>(
    handle: &mut Handle,
    work: &(dyn Fn(&mut Tx<'_>) -> Result<T> + Send + Sync),
    now: base::Timestamp,
) -> (Result<T>, Vec<Wake>) {
    if let Err(error) = handle.0.execute_batch("SAVEPOINT job") {
        return (Err(internal(error)), Vec::new());
    }
    let result = guarded(|| {
        let mut tx = Tx::new(handle, now, true);
        let value = work(&mut tx)?;
        let wakes = tx.flush_wakes()?;
        Ok((value, wakes))
    });
    let end = if result.is_ok() { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" };
    let ended = handle.0.execute_batch(end).map_err(internal);
    match (result, ended) {
        (Ok((value, wakes)), Ok(())) => (Ok(value), wakes),
        (Err(error), _) | (Ok(_), Err(error)) => (Err(error), Vec::new()),
    }
}

fn writer(mut handle: Handle, mut jobs: mpsc::UnboundedReceiver<Job>, outbox: &Outbox) {
    while let Some(first) = jobs.blocking_recv() {
        let begun = handle.0.execute_batch("BEGIN IMMEDIATE").map_err(|e| e.to_string());
        let mut finishes = Vec::new();
        let mut wakes = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            let (finish, woken) = job(&mut handle);
            finishes.push(finish);
            wakes.extend(woken);
            next = if finishes.len() < BATCH { jobs.try_recv().ok() } else { None };
        }
        let committed = begun.and_then(|()| handle.0.execute_batch("COMMIT").map_err(|e| e.to_string()));
        if committed.is_err() {
            let _ = handle.0.execute_batch("ROLLBACK");
        } else {
            outbox.deliver(wakes);
        }
        for finish in finishes {
            finish(committed.clone());
        }
    }
}

/// One connection.
struct Handle(rusqlite::Connection);

impl Handle {
    fn new(connection: rusqlite::Connection) -> Self {
        connection.set_prepared_statement_cache_capacity(256);
        Handle(connection)
    }

    fn reader(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = rusqlite::Connection::open_with_flags(path, flags).map_err(internal)?;
        connection
            .execute_batch("PRAGMA busy_timeout=10000; PRAGMA query_only=ON; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-2048;")
            .map_err(internal)?;
        Ok(Handle::new(connection))
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Int(n) => ValueRef::Integer(*n),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

fn failure(error: rusqlite::Error) -> Failure {
    match &error {
        rusqlite::Error::SqliteFailure(code, message) if code.code == ErrorCode::ConstraintViolation => {
            let message = message.clone().unwrap_or_default();
            match message.strip_prefix("UNIQUE constraint failed: ") {
                Some(columns) => Failure::Unique(columns.to_owned()),
                None => Failure::Other(internal(error)),
            }
        }
        rusqlite::Error::SqliteFailure(code, _)
            if matches!(code.code, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) =>
        {
            Failure::Retry(error.to_string())
        }
        _ => Failure::Other(internal(error)),
    }
}

impl Connection for Handle {
    fn postgres(&self) -> bool {
        false
    }

    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Vec<Value>>, Failure> {
        let mut statement = self.0.prepare_cached(sql).map_err(failure)?;
        let width = statement.column_count();
        let mut rows = statement.query(rusqlite::params_from_iter(params)).map_err(failure)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(failure)? {
            let mut values = Vec::with_capacity(width);
            for i in 0..width {
                values.push(match row.get_ref(i).map_err(failure)? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(n) => Value::Int(n),
                    ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                    ValueRef::Real(_) | ValueRef::Blob(_) => {
                        return Err(Failure::Other(Error::internal("a column of an unknown kind")));
                    }
                });
            }
            found.push(values);
        }
        Ok(found)
    }

    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, Failure> {
        let mut statement = self.0.prepare_cached(sql).map_err(failure)?;
        let changed = statement.execute(rusqlite::params_from_iter(params)).map_err(failure)?;
        Ok(u64::try_from(changed).unwrap_or(0))
    }

    fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        self.0.execute_batch(sql).map_err(failure)
    }
}
