//! The store: typed resources in SQLite or PostgreSQL behind one facade, and the only crate that contains SQL.
//!
//! A resource is a Rust struct declared by [`resource!`]; its declared fields are columns, the whole is a JSON body.
//! Every call runs in one transaction given as a closure: [`Store::read`] sees a snapshot, [`Store::write`] commits
//! everything or nothing and is retried whole when the database says two writers met.
//!
//! Invariant: what `write` answered is on disk; two writers never overwrite each other (compare-and-set by revision);
//! uniqueness is the database's word, told as a typed conflict. SQL is one portable subset: text, 64-bit integers.
//!
//! Start reading at [`Tx`] (what a closure can do), then [`Query`], then `sqlite.rs`, `postgres.rs` with `wire.rs`, and `lane.rs`.

mod dump;
mod gate;
mod glance;
mod lane;
mod lease;
mod migrate;
mod mirror;
mod outbox;
mod postgres;
mod query;
mod resource;
mod settle;
mod share;
mod sqlite;
mod tls;
mod tx;
mod unknown;
mod value;
mod wire;

use std::any::TypeId;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use base::{Clock, Entropy, Error, Result};

pub use dump::{Content, Counted};
pub use gate::{Fate, Gate};
pub use lease::Lease;
pub use migrate::{Backfill, Migration, Pending, Schema, Step, StepKind};
pub use mirror::Mirror;
pub use outbox::{Subscription, Waiting, Wake};
pub use query::{Order, Query};
pub use resource::{ColumnKind, Meta, Resource, UniqueViolation, kind_of, unique_violation};
pub use settle::newest;
pub use share::{Fence, Replica, Shares, fenced, shard_lease};
pub use tx::{Tx, Version};
pub use value::Value;

/// How often a transaction is tried before its conflict is told to the caller.
const ATTEMPTS: u32 = 12;

/// How an engine's attempt at a transaction ended.
pub(crate) enum Ended<T> {
    Done(Result<T>),
    /// Nothing was written; a new attempt may succeed. The error is the caller's after so many attempts.
    Again(Error, u32),
}

impl<T> Ended<T> {
    /// What a closure said, where the engine has nothing to add.
    fn of(result: Result<T>) -> Self {
        match result {
            Err(error) if error.kind() == base::Kind::Retry => {
                let attempts = if tx::is_stale(&error) { 1 } else { ATTEMPTS };
                Ended::Again(error, attempts)
            }
            other => Ended::Done(other),
        }
    }
}

enum Engine {
    Sqlite(Box<sqlite::Sqlite>),
    Postgres(Box<postgres::Postgres>),
}

struct Inner {
    engine: Engine,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    outbox: Arc<outbox::Outbox>,
}

/// A database; cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>, Option<Arc<dyn Gate>>);

impl Store {
    /// Opens by URL: `sqlite:///path/to/file` or `postgresql://…`; brings the schema up to date.
    ///
    /// # Errors
    /// An URL of another kind, a database that cannot be opened, or one that a newer version wrote.
    pub async fn open(
        url: &str,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
        schemas: &[Schema],
    ) -> Result<Self> {
        if let Some(path) = url.strip_prefix("sqlite://") {
            Self::sqlite(Path::new(path), clock, entropy, schemas).await
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Self::postgres(url, clock, entropy, schemas).await
        } else {
            Err(Error::bad_request("The database URL begins with sqlite:// or postgresql://."))
        }
    }

    /// Opens what is there without bringing its schema up to date: to look at it, or to fill it with [`Store::load`].
    /// A SQLite file is made where there is none and `make` says so.
    ///
    /// # Errors
    /// An URL of another kind, or a database that cannot be opened.
    pub async fn peek(url: &str, clock: Arc<dyn Clock>, entropy: Entropy, make: bool) -> Result<Self> {
        let outbox = Arc::new(outbox::Outbox::default());
        let engine = if let Some(path) = url.strip_prefix("sqlite://") {
            let path = Path::new(path);
            if !make && !path.exists() {
                return Err(Error::not_found(format!("There is no database in {}.", path.display())));
            }
            Engine::Sqlite(Box::new(sqlite::Sqlite::file(path, clock.clone(), outbox.clone())?))
        } else {
            let origin = entropy.uuid().to_string();
            Engine::Postgres(postgres::Postgres::connect(url, origin, clock.clone(), outbox.clone()).await?)
        };
        Ok(Store(Arc::new(Inner { engine, clock, entropy, outbox }), None))
    }

    /// A SQLite file: WAL, every commit on disk.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub async fn sqlite(
        path: &Path,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
        schemas: &[Schema],
    ) -> Result<Self> {
        let outbox = Arc::new(outbox::Outbox::default());
        let engine = sqlite::Sqlite::file(path, clock.clone(), outbox.clone())?;
        Self::with(Engine::Sqlite(Box::new(engine)), clock, entropy, outbox, schemas).await
    }

    /// A database in memory, gone with its last handle; for tests and simulations. Calls run in the caller's task.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub async fn memory(clock: Arc<dyn Clock>, schemas: &[Schema]) -> Result<Self> {
        let outbox = Arc::new(outbox::Outbox::default());
        let engine = sqlite::Sqlite::memory(clock.clone(), outbox.clone())?;
        Self::with(Engine::Sqlite(Box::new(engine)), clock, Entropy::seeded(0), outbox, schemas).await
    }

    /// A PostgreSQL database; SERIALIZABLE transactions.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub async fn postgres(
        url: &str,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
        schemas: &[Schema],
    ) -> Result<Self> {
        let outbox = Arc::new(outbox::Outbox::default());
        let origin = entropy.uuid().to_string();
        let engine = postgres::Postgres::connect(url, origin, clock.clone(), outbox.clone()).await?;
        Self::with(Engine::Postgres(engine), clock, entropy, outbox, schemas).await
    }

    async fn with(
        engine: Engine,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
        outbox: Arc<outbox::Outbox>,
        schemas: &[Schema],
    ) -> Result<Self> {
        let store = Store(Arc::new(Inner { engine, clock, entropy, outbox }), None);
        migrate::run(&store, schemas).await?;
        Ok(store)
    }

    /// The same database for a simulated process whose life `gate` knows: its transactions end as the gate says.
    #[must_use]
    pub fn behind(&self, gate: Arc<dyn Gate>) -> Self {
        Store(self.0.clone(), Some(gate))
    }

    /// The clock that transactions take their moment from.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// Runs `work` on a snapshot; what it writes is refused. `work` may be run again, whole, so it must not have effects
    /// of its own.
    ///
    /// # Errors
    /// What `work` answers, or `Internal`/`Unavailable` from the database.
    pub async fn read<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<T> + Send + Sync + 'static,
    {
        if let Some(gate) = &self.1 {
            gate.read()?;
        }
        let (began, mut attempt) = (Instant::now(), 0);
        let work: Work<T> = Arc::new(work);
        loop {
            let ended = match &self.0.engine {
                Engine::Sqlite(sqlite) => Ended::of(sqlite.read(work.clone(), TypeId::of::<F>()).await),
                Engine::Postgres(postgres) => postgres.run(work.clone(), false).await,
            };
            if let Some(result) = self.again(&mut attempt, ended).await {
                metrics::histogram!("allod_store_seconds", "kind" => "read").record(began.elapsed());
                return result;
            }
        }
    }

    /// Those of `ids` that are there, in no order, as they were committed when the call began or later. On PostgreSQL this is
    /// one statement without a transaction around it: for what is asked all the time, of a few rows.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn glance<R: Resource>(&self, ids: Vec<R::Id>) -> Result<Vec<R>> {
        if let Engine::Postgres(postgres) = &self.0.engine {
            if let Some(gate) = &self.1 {
                gate.read()?;
            }
            let began = Instant::now();
            if let Some(rows) = postgres.glances.rows(&tx::by_ids::<R>(&ids, true)).await {
                metrics::counter!("allod_store_statements_total", "kind" => "read").increment(1);
                metrics::histogram!("allod_store_seconds", "kind" => "read").record(began.elapsed());
                return rows.into_iter().map(tx::decode).collect();
            }
        }
        // A transaction knows how to wait for a database that is away.
        self.read(move |tx| tx.of_ids(&ids)).await
    }

    /// Runs `work` in a transaction and answers once it is on disk. `work` is run again, whole, when another writer was
    /// in the way, so it must not have effects of its own.
    ///
    /// # Errors
    /// What `work` answers (then nothing is written), `Conflict` for a uniqueness violation or when others keep being
    /// faster.
    pub async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<T> + Send + Sync + 'static,
    {
        let fate = self.1.as_ref().map_or(Fate::Carry, |gate| gate.write());
        if let Fate::Lost(error) = fate {
            return Err(error);
        }
        let result = self.attempts(Arc::new(work), TypeId::of::<F>()).await;
        match fate {
            Fate::Unheard(error) => result.and(Err(error)),
            Fate::Carry | Fate::Lost(_) => result,
        }
    }

    async fn attempts<T: Send + 'static>(&self, work: Work<T>, closure: TypeId) -> Result<T> {
        let (began, mut attempt) = (Instant::now(), 0);
        let (fence, behind) = (share::fence(), self.0.outbox.behind());
        let work: Work<T> = Arc::new(move |tx| {
            tx.keep_unknown(behind);
            if let Some(fence) = &fence {
                tx.check_fence(fence)?;
            }
            work(tx)
        });
        loop {
            let ended = match &self.0.engine {
                Engine::Sqlite(sqlite) => match sqlite.write(work.clone()).await {
                    Ended::Done(result) => Ended::of(result),
                    again => again,
                },
                Engine::Postgres(postgres) => postgres.write(work.clone(), closure).await,
            };
            if let Some(result) = self.again(&mut attempt, ended).await {
                metrics::histogram!("allod_store_seconds", "kind" => "write").record(began.elapsed());
                return result;
            }
        }
    }

    /// `None`: try again, after a pause that grows and is never the same for two.
    async fn again<T>(&self, attempt: &mut u32, ended: Ended<T>) -> Option<Result<T>> {
        let (error, attempts) = match ended {
            Ended::Again(error, attempts) => (error, attempts),
            Ended::Done(result) => return Some(result),
        };
        *attempt += 1;
        if *attempt >= attempts {
            let retry = error.kind() == base::Kind::Retry;
            return Some(Err(if retry { Error::conflict(error.public()).caused_by(error) } else { error }));
        }
        metrics::counter!("allod_store_retries_total").increment(1);
        let micros = self.0.entropy.below(500 << (*attempt).min(8));
        tokio::time::sleep(std::time::Duration::from_micros(micros)).await;
        None
    }

    /// Wake-ups of one kind, those that were not acknowledged before a restart first.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn subscribe(&self, kind: &'static str) -> Result<Subscription> {
        let subscription = self.0.outbox.subscribe(kind);
        let pending = self.read(move |tx| tx.pending_wakes(kind)).await?;
        self.0.outbox.deliver(pending);
        Ok(subscription)
    }

    /// Reads wake-ups that other replicas wrote and delivers them here; the in-process ones came by themselves. Called
    /// on a timer as the fallback of notification.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn poll_outbox(&self) -> Result<()> {
        let kinds = self.0.outbox.kinds();
        let mut pending = Vec::new();
        for kind in kinds {
            pending.extend(self.read(move |tx| tx.pending_wakes(kind)).await?);
        }
        self.0.outbox.deliver(pending);
        Ok(())
    }

    /// Whether other processes may write to this database, so that polling is worth it.
    pub fn shared(&self) -> bool {
        matches!(self.0.engine, Engine::Postgres(_))
    }

    /// After much was written at once: PostgreSQL learns how large its tables are and clears up now, rather than some time
    /// later beside those who ask. SQLite needs neither. Where it fails, that is logged: the database would do it itself.
    pub async fn vacuum(&self) {
        if let Engine::Postgres(postgres) = &self.0.engine
            && let Err(error) = postgres.alone("VACUUM (ANALYZE)").await
        {
            tracing::warn!(%error, "the database was not vacuumed");
        }
    }

    /// A consistent copy of a SQLite database in a new file.
    ///
    /// # Errors
    /// On PostgreSQL (use `pg_dump`), or where the file cannot be written.
    pub async fn backup(&self, path: &Path) -> Result<()> {
        match &self.0.engine {
            Engine::Sqlite(sqlite) => sqlite.backup(path).await,
            Engine::Postgres(_) => Err(Error::not_implemented("PostgreSQL is backed up with pg_dump.")),
        }
    }
}

/// The work of a transaction.
pub(crate) type Work<T> = Arc<dyn Fn(&mut Tx<'_>) -> Result<T> + Send + Sync>;
