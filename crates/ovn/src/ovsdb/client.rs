//! The connection: one task owns the socket; callers talk to it through a bounded queue.
//!
//! The task never waits for a caller and never stops reading because it has something to write: `ovsdb-server` stops
//! reading from a client that does not read, so waiting on either side would be a deadlock.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use parking_lot::RwLock;
use serde_json::{Map, Value as Json, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::frame::Framer;
use super::replica::{Change, Replica, Watch};
use super::txn::{Answer, Txn};
use super::{Error, Result, Schema};

/// How long a call may take before its caller is told that the backend is not reachable.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Silence after which we ask the peer for a sign of life.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// More unsent bytes than this, and callers wait.
const OUT_LIMIT: usize = 4 << 20;
/// Changes kept for a slow listener before it is told that it lost some.
const CHANGES: usize = 1024;

/// A connection that somebody else made.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Makes connections to a database that is reached in a way of its own, e.g. through an authenticated tunnel.
#[async_trait]
pub trait Dial: Send + Sync + std::fmt::Debug {
    /// One connection.
    ///
    /// # Errors
    /// Where there is none now; it is asked again.
    async fn dial(&self) -> io::Result<Box<dyn Stream>>;
}

/// Where a database listens.
#[derive(Debug, Clone)]
pub enum Remote {
    /// A unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
    /// Where this leads.
    Through(Arc<dyn Dial>),
}

impl Remote {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Remote::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
            Remote::Tcp(address) => Box::new(tokio::net::TcpStream::connect(address).await?),
            Remote::Through(way) => way.dial().await?,
        })
    }
}

impl From<&Path> for Remote {
    fn from(path: &Path) -> Self {
        Remote::Unix(path.to_owned())
    }
}

/// What to connect to and what to watch.
#[derive(Debug, Clone)]
pub struct Config {
    /// Servers of the database, tried in turn.
    pub remotes: Vec<Remote>,
    /// E.g. `OVN_Northbound`.
    pub database: &'static str,
    /// Tables to copy.
    pub watches: &'static [Watch],
}

struct Call {
    method: &'static str,
    params: Json,
    reply: oneshot::Sender<Result<Json>>,
}

struct Shared {
    replica: RwLock<Replica>,
    schema: RwLock<Arc<Schema>>,
    /// Grows with each applied message; 0 while nothing has been read yet.
    version: watch::Sender<u64>,
    connected: watch::Sender<bool>,
    changes: broadcast::Sender<Change>,
}

/// A connection to one database. Cheap to clone; the connection ends with the last clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    calls: mpsc::Sender<Call>,
    config: Arc<Config>,
}

impl Client {
    /// Starts connecting in the background; see [`Client::ready`].
    pub fn connect(config: Config) -> Self {
        let config = Arc::new(config);
        let shared = Arc::new(Shared {
            replica: RwLock::new(Replica::new(config.watches)),
            schema: RwLock::default(),
            version: watch::Sender::new(0),
            connected: watch::Sender::new(false),
            changes: broadcast::Sender::new(CHANGES),
        });
        let (calls, queue) = mpsc::channel(64);
        tokio::spawn(run(Arc::clone(&config), Arc::clone(&shared), queue));
        Client { shared, calls, config }
    }

    /// Waits until the connection is up and the first dump is in.
    ///
    /// # Errors
    /// [`Error::Disconnected`] after `within`.
    pub async fn ready(&self, within: Duration) -> Result<()> {
        let mut connected = self.shared.connected.subscribe();
        match timeout(within, connected.wait_for(|up| *up)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::Disconnected(format!("{} did not answer in {within:?}", self.config.database))),
        }
    }

    /// Whether the connection is up now.
    pub fn is_connected(&self) -> bool {
        *self.shared.connected.borrow()
    }

    /// Reads the copy. The closure must be short: updates wait for it.
    pub fn read<T>(&self, f: impl FnOnce(&Replica) -> T) -> T {
        f(&self.shared.replica.read())
    }

    /// The server's schema (empty before the first connection).
    pub fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.shared.schema.read())
    }

    /// Changes of tables that tell them ([`Watch::tell`]) from now on. A listener that falls behind gets `Lagged` and must read the replica again.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// Waits until the copy satisfies `f`.
    ///
    /// # Errors
    /// [`Error::Disconnected`] after `within`.
    pub async fn wait_for<T>(&self, within: Duration, mut f: impl FnMut(&Replica) -> Option<T>) -> Result<T> {
        let mut version = self.shared.version.subscribe();
        let wait = async {
            loop {
                version.borrow_and_update();
                if let Some(found) = self.read(&mut f) {
                    return Ok(found);
                }
                if version.changed().await.is_err() {
                    return Err(Error::Disconnected("closed".into()));
                }
            }
        };
        timeout(within, wait).await.unwrap_or_else(|_| {
            Err(Error::Disconnected(format!("what was waited for did not come in {within:?}")))
        })
    }

    /// Runs a transaction. When it answers, the replica shows what was written.
    ///
    /// # Errors
    /// [`Error::Refused`] if nothing took place, [`Error::Disconnected`] if that is not known.
    pub async fn transact(&self, txn: &Txn) -> Result<Answer> {
        self.ready(CALL_TIMEOUT).await?;
        let mut params = vec![json!(self.config.database)];
        params.extend(txn.to_json(&self.schema()));
        let result = self.call("transact", Json::Array(params)).await?;
        Answer::from_json(result)
    }

    /// Waits until the copy shows everything that was committed before this call, by whomever.
    ///
    /// # Errors
    /// [`Error::Disconnected`] if the server does not answer.
    pub async fn catch_up(&self) -> Result<()> {
        let mut txn = Txn::new();
        // The server sends all updates before the answer of a transaction, even of one that does nothing.
        txn.comment("");
        self.transact(&txn).await.map(|_| ())
    }

    async fn call(&self, method: &'static str, params: Json) -> Result<Json> {
        let (reply, answer) = oneshot::channel();
        let call = async {
            self.calls.send(Call { method, params, reply }).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        timeout(CALL_TIMEOUT, call)
            .await
            .unwrap_or_else(|_| Err(Error::Disconnected("no answer in time".into())))
    }
}

fn closed() -> Error {
    Error::Disconnected("the connection broke".into())
}

/// Connects, serves, and connects again, until the last client is gone.
async fn run(config: Arc<Config>, shared: Arc<Shared>, mut calls: mpsc::Receiver<Call>) {
    let mut wait = Duration::from_millis(10);
    for attempt in 0_usize.. {
        let Some(remote) = config.remotes.get(attempt % config.remotes.len().max(1)) else { return };
        let began = Instant::now();
        let ended = match remote.connect().await {
            Ok(stream) => serve(stream, &config, &shared, &mut calls).await,
            Err(e) => Err(Error::Disconnected(e.to_string())),
        };
        let was_up = shared.connected.send_replace(false);
        match ended {
            Ok(()) => return,
            Err(e) if was_up => tracing::warn!(database = config.database, error = %e, "connection lost"),
            Err(e) => tracing::debug!(database = config.database, error = %e, "no connection yet"),
        }
        if began.elapsed() > Duration::from_secs(10) {
            wait = Duration::from_millis(10);
        }
        // Callers that come meanwhile wait in the queue; only the end of all clients is of interest here.
        if calls.is_closed() && calls.is_empty() {
            return;
        }
        tokio::time::sleep(wait).await;
        // A local server that starts is there in a moment, and asking costs nothing.
        let most = if matches!(remote, Remote::Unix(_)) { 250 } else { 2000 };
        wait = (wait * 2).min(Duration::from_millis(most));
    }
}

struct Wire<S> {
    stream: S,
    framer: Framer,
    out: BytesMut,
    next_id: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn send(&mut self, method: &str, params: &Json) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.push(&json!({"method": method, "params": params, "id": id}));
        id
    }

    fn push(&mut self, message: &Json) {
        self.out.extend_from_slice(message.to_string().as_bytes());
    }

    /// Whether it was an `echo` request, which is then answered.
    fn echoed(&mut self, message: &Json) -> bool {
        if message.get("method").and_then(Json::as_str) != Some("echo") {
            return false;
        }
        let reply = json!({"result": message.get("params"), "error": null, "id": message.get("id")});
        self.push(&reply);
        true
    }

    async fn read_more(&mut self) -> Result<()> {
        match self.stream.read_buf(self.framer.buffer()).await {
            Ok(0) => Err(closed()),
            Ok(_) => Ok(()),
            Err(e) => Err(Error::Disconnected(e.to_string())),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        while !self.out.is_empty() {
            self.stream.write_buf(&mut self.out).await.map_err(|e| Error::Disconnected(e.to_string()))?;
        }
        Ok(())
    }

    /// A call before the session serves others.
    async fn call(&mut self, method: &str, params: &Json) -> Result<Json> {
        let id = self.send(method, params);
        let answer = async {
            loop {
                self.flush().await?;
                while let Some(message) = self.framer.value()? {
                    if !self.echoed(&message) && message.get("id").and_then(Json::as_u64) == Some(id) {
                        return outcome(message);
                    }
                }
                self.read_more().await?;
            }
        };
        timeout(CALL_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| Err(Error::Disconnected("no answer in time".into())))
    }
}

fn outcome(mut message: Json) -> Result<Json> {
    match message.get("error") {
        None | Some(Json::Null) => Ok(message.get_mut("result").map(Json::take).unwrap_or_default()),
        Some(error) => {
            let text = |key: &str| error.get(key).and_then(Json::as_str).map(str::to_owned);
            let tag = text("error").or_else(|| error.as_str().map(str::to_owned));
            Err(Error::Refused {
                error: tag.unwrap_or_default(),
                details: text("details").unwrap_or_default(),
            })
        }
    }
}

/// `get_schema`, `monitor_cond_since`; the dump replaces the copy.
async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    config: &Config,
    shared: &Shared,
) -> Result<()> {
    let schema = Schema::from_json(&wire.call("get_schema", &json!([config.database])).await?)?;
    let mut requests = Map::new();
    for watch in config.watches.iter().filter(|w| schema.has_table(w.table)) {
        let columns: Vec<_> = watch.columns.iter().filter(|c| schema.has(watch.table, c)).collect();
        requests.insert(watch.table.into(), json!([{"columns": columns}]));
    }
    let none = uuid::Uuid::nil().to_string();
    let params = json!([config.database, "allod", requests, none]);
    let reply = wire.call("monitor_cond_since", &params).await?;
    let dump = reply.get(2).ok_or_else(|| Error::Protocol("monitor_cond_since answered no dump".into()))?;
    let mut fresh = Replica::new(config.watches);
    fresh.apply(&schema, dump)?;
    *shared.schema.write() = Arc::new(schema);
    let changes = {
        let mut replica = shared.replica.write();
        let changes = replica.changes_to(&fresh);
        *replica = fresh;
        changes
    };
    publish(shared, changes);
    shared.connected.send_replace(true);
    Ok(())
}

fn publish(shared: &Shared, changes: Vec<Change>) {
    shared.version.send_modify(|v| *v += 1);
    for change in changes {
        // No listener is no error.
        let _ = shared.changes.send(change);
    }
}

/// Serves one connection. `Ok` when the last client is gone.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: &Config,
    shared: &Shared,
    calls: &mut mpsc::Receiver<Call>,
) -> Result<()> {
    let mut wire = Wire { stream, framer: Framer::default(), out: BytesMut::new(), next_id: 0 };
    begin(&mut wire, config, shared).await?;
    let mut pending: HashMap<u64, oneshot::Sender<Result<Json>>> = HashMap::new();
    let mut heard = Instant::now();
    let mut probed = false;
    loop {
        while let Some(message) = wire.framer.value()? {
            dispatch(&mut wire, shared, &mut pending, message)?;
        }
        let (mut reader, mut writer) = tokio::io::split(&mut wire.stream);
        let room = wire.out.len() < OUT_LIMIT;
        tokio::select! {
            read = reader.read_buf(wire.framer.buffer()) => {
                match read {
                    Ok(0) => return Err(closed()),
                    Ok(_) => (heard, probed) = (Instant::now(), false),
                    Err(e) => return Err(Error::Disconnected(e.to_string())),
                }
            }
            written = writer.write_buf(&mut wire.out), if !wire.out.is_empty() => {
                written.map_err(|e| Error::Disconnected(e.to_string()))?;
            }
            call = calls.recv(), if room => {
                let Some(call) = call else { return Ok(()) };
                // A caller that has given up meanwhile does not want it done any more.
                if !call.reply.is_closed() {
                    let id = wire.send(call.method, &call.params);
                    pending.insert(id, call.reply);
                }
            }
            () = tokio::time::sleep_until(heard + PROBE_AFTER * if probed { 2 } else { 1 }) => {
                if probed {
                    return Err(Error::Disconnected("the server is silent".into()));
                }
                wire.send("echo", &json!([]));
                probed = true;
            }
        }
    }
}

fn dispatch<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    shared: &Shared,
    pending: &mut HashMap<u64, oneshot::Sender<Result<Json>>>,
    message: Json,
) -> Result<()> {
    if wire.echoed(&message) {
        return Ok(());
    }
    match message.get("method").and_then(Json::as_str) {
        Some("update3") => {
            let updates = message.get("params").and_then(|p| p.get(2)).unwrap_or(&Json::Null);
            let schema = Arc::clone(&shared.schema.read());
            let changes = shared.replica.write().apply(&schema, updates)?;
            publish(shared, changes);
        }
        // The server drops the monitor, e.g. because the schema was converted: start again.
        Some("monitor_canceled") => return Err(Error::Disconnected("the server ended the monitor".into())),
        Some(_) => {}
        None => {
            if let Some(reply) = message.get("id").and_then(Json::as_u64).and_then(|id| pending.remove(&id)) {
                let _ = reply.send(outcome(message));
            }
        }
    }
    Ok(())
}
