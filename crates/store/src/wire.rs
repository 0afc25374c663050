//! PostgreSQL: a connection that is driven by the thread whose transaction it carries.
//!
//! With the connection in a task of its own each statement wakes two threads, one to send it and one to take the answer:
//! on a machine that has something else to do they cost more than the statement, and a transaction lasts that much longer.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;

use base::{Error, Result};
use deadpool::managed::{Metrics, RecycleError, RecycleResult};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, Config, Statement};

use crate::postgres::unavailable;
use crate::tls::Tls;

pub(crate) type Connection =
    Pin<Box<dyn Future<Output = std::result::Result<(), tokio_postgres::Error>> + Send>>;
type Answer<T> = std::result::Result<T, tokio_postgres::Error>;

/// Nothing is sent or received but in a call; calls are made by blocking threads, one at a time.
pub(crate) struct Wire {
    /// Always there but in `drop`.
    runtime: Option<Runtime>,
    client: Client,
    /// `None` once it ended.
    connection: Option<Connection>,
    /// Prepared here, by text.
    statements: HashMap<String, Statement>,
    /// When it was driven last.
    used: Instant,
}

impl Wire {
    fn open(config: &Config, tls: Tls) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(Error::internal)?;
        let (client, connection) = runtime.block_on(config.connect(tls)).map_err(unavailable)?;
        let connection = Some(Box::pin(connection) as Connection);
        Ok(Wire {
            runtime: Some(runtime),
            client,
            connection,
            statements: HashMap::new(),
            used: Instant::now(),
        })
    }

    /// How long nobody used it.
    pub fn unused(&self) -> std::time::Duration {
        self.used.elapsed()
    }

    /// Whether the connection is still there, as far as is known without asking the server.
    pub fn is_open(&self) -> bool {
        self.connection.is_some() && !self.client.is_closed()
    }

    /// Looks whether the server closed it meanwhile.
    pub fn look(&mut self) -> bool {
        self.drive(async |_, connection| {
            step(connection).await;
            // What came in is seen when the runtime has looked at its sockets.
            tokio::task::yield_now().await;
            step(connection).await;
        });
        self.is_open()
    }

    /// Runs `ask` to its end. What it sends with its first polls goes out together.
    pub fn wait<T>(&mut self, ask: impl AsyncFnOnce(&Client) -> T) -> T {
        self.drive(async |client, connection| driven(connection, ask(client)).await)
    }

    /// Sends a command whose answer nobody waits for.
    pub fn send(&mut self, sql: &str) {
        self.post(sql);
        self.drive(async |_, connection| step(connection).await);
    }

    /// Puts a command before what is sent next. Should it fail, so does that.
    pub fn post(&mut self, sql: &str) {
        use futures::FutureExt;
        let _ = self.client.batch_execute(sql).now_or_never();
    }

    /// The statement of a text; prepared when it is asked for first.
    ///
    /// # Errors
    /// As the server says.
    pub fn prepare(&mut self, sql: &str) -> Answer<Statement> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.wait(async |client| client.prepare(sql).await)?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    fn drive<T>(&mut self, work: impl AsyncFnOnce(&Client, &mut Option<Connection>) -> T) -> T {
        self.used = Instant::now();
        let Wire { runtime, client, connection, .. } = self;
        match runtime {
            Some(runtime) => runtime.block_on(work(client, connection)),
            None => unreachable!("only a dropped wire has no runtime"),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.connection = None;
        // It is also dropped by the pool, where waiting for a runtime's end is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Drives the connection until `answer` is there, which is asked for on it.
pub(crate) async fn driven<T>(connection: &mut Option<Connection>, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(answer),
        Poll::Pending => {
            advance(connection, cx);
            Poll::Pending
        }
    })
    .await
}

/// Sends and receives what can be without waiting.
fn advance(connection: &mut Option<Connection>, cx: &mut Context<'_>) {
    if connection.as_mut().is_some_and(|c| c.as_mut().poll(cx).is_ready()) {
        // Whoever waits for an answer is told so.
        *connection = None;
    }
}

async fn step(connection: &mut Option<Connection>) {
    poll_fn(|cx| {
        advance(connection, cx);
        Poll::Ready(())
    })
    .await;
}

/// Makes connections for the pool.
pub(crate) struct Wires {
    pub config: Config,
    pub tls: Tls,
}

impl deadpool::managed::Manager for Wires {
    type Type = Wire;
    type Error = Error;

    async fn create(&self) -> Result<Wire> {
        let (config, tls) = (self.config.clone(), self.tls.clone());
        let made = tokio::task::spawn_blocking(move || Wire::open(&config, tls)).await;
        made.unwrap_or_else(|e| Err(Error::internal(e)))
    }

    async fn recycle(&self, wire: &mut Wire, _: &Metrics) -> RecycleResult<Error> {
        if wire.is_open() { Ok(()) } else { Err(RecycleError::message("the connection is closed")) }
    }
}
