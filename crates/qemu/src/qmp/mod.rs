//! A client of the QEMU Machine Protocol (QEMU `docs/interop/qmp-spec.rst`): one connection, commands answered by id,
//! events to whoever listens.
//!
//! Invariant: every command ends, with an answer, an error or its deadline; a lost connection fails all that wait.

mod decode;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{Error, Result};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot};

use self::decode::{Broken, Decoder, Message};

/// A command that takes longer than this is given up; long work is done by jobs.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Who listens must greet in this time.
const GREETING: Duration = Duration::from_secs(5);
/// Commands waiting at the same time; more is a bug of ours.
const WAITING: usize = 256;

/// What QEMU refused: error class and text.
type Refusal = (String, String);
/// Commands that wait; `None` once the connection is gone.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Value, Refusal>>>>>>;

/// Something that happened in the guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// E.g. `DEVICE_DELETED`.
    pub name: String,
    /// Its data, `null` if none.
    pub data: Value,
}

/// A connection to one QEMU.
pub struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Waiting,
    next: AtomicU64,
    events: broadcast::WeakSender<Event>,
    reader: tokio::task::AbortHandle,
    peer: Option<i32>,
    within: Duration,
}

fn gone(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::unavailable("QEMU does not answer.").caused_by(error)
}

impl Qmp {
    /// Connects and leaves capabilities negotiation. The path may be longer than the 107 bytes of a Unix socket's name.
    ///
    /// # Errors
    /// `Unavailable` where nobody listens or answers.
    pub async fn connect(path: &Path) -> Result<Self> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(gone("the socket has no name"));
        };
        // By way of an open directory every path is short.
        let dir = std::fs::File::open(dir).map_err(gone)?;
        let short = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir));
        let stream = UnixStream::connect(Path::new(&short).join(name)).await.map_err(gone)?;
        Self::on(stream, TIMEOUT).await
    }

    async fn on(stream: UnixStream, within: Duration) -> Result<Self> {
        let peer = stream.peer_cred().ok().and_then(|c| c.pid());
        let (read, write) = stream.into_split();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let events = broadcast::Sender::new(256);
        let (greeted, greeting) = oneshot::channel();
        let weak = events.downgrade();
        // The task has the only sender: listeners learn of the end by the channel's.
        let reader = tokio::spawn(listen(read, waiting.clone(), events, greeted)).abort_handle();
        let writer = tokio::sync::Mutex::new(write);
        let qmp = Qmp { writer, waiting, next: AtomicU64::new(1), events: weak, reader, peer, within };
        let greeted = tokio::time::timeout(GREETING, greeting).await.map_err(gone)?;
        greeted.map_err(|_| gone("what listens is no QEMU"))?;
        qmp.call("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// The process at the other end.
    pub fn peer(&self) -> Option<i32> {
        self.peer
    }

    /// Whether QEMU still listens.
    pub fn alive(&self) -> bool {
        self.waiting.lock().is_some()
    }

    /// Runs a command.
    ///
    /// # Errors
    /// `Internal` with QEMU's text, `Unavailable` where it went away or does not answer in time.
    pub async fn call(&self, command: &str, arguments: Value) -> Result<Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            let Some(waiting) = waiting.as_mut() else { return Err(gone(format!("{command}: closed"))) };
            if waiting.len() >= WAITING {
                return Err(Error::unavailable("Too many commands wait for QEMU."));
            }
            waiting.insert(id, sender);
        }
        let _forget = Forget(&self.waiting, id);
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments, "id": id}));
        let work = async {
            {
                let mut writer = self.writer.lock().await;
                writer.write_all(line.as_bytes()).await.map_err(gone)?;
            }
            answer.await.map_err(|_| gone(format!("{command}: closed")))
        };
        match tokio::time::timeout(self.within, work).await {
            Ok(answer) => {
                answer?.map_err(|(class, text)| Error::internal(format!("{command}: {class}: {text}")))
            }
            Err(_) => Err(Error::unavailable("QEMU does not answer in time.").caused_by(command.to_owned())),
        }
    }

    /// Events from now on; the channel closes with the connection.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        match self.events.upgrade() {
            Some(sender) => sender.subscribe(),
            None => broadcast::Sender::new(1).subscribe(),
        }
    }

    /// Runs a background job to its end and dismisses it.
    ///
    /// # Errors
    /// The job's own error.
    pub async fn job(&self, command: &str, arguments: Value, id: &str, within: Duration) -> Result<()> {
        self.call(command, arguments).await?;
        let end = async {
            loop {
                let jobs = self.call("query-jobs", json!({})).await?;
                let job = jobs.as_array().and_then(|jobs| jobs.iter().find(|j| j["id"] == id).cloned());
                match job {
                    None => return Ok(()),
                    Some(job) if job["status"] == "concluded" => {
                        let error = job.get("error").and_then(Value::as_str).map(str::to_owned);
                        self.call("job-dismiss", json!({"id": id})).await?;
                        return error.map_or(Ok(()), |e| Err(Error::internal(format!("{command}: {e}"))));
                    }
                    Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        match tokio::time::timeout(within, end).await {
            Ok(result) => result,
            Err(_) => {
                let _ = self.call("job-cancel", json!({"id": id})).await;
                Err(Error::unavailable("A job of QEMU did not end in time.").caused_by(command.to_owned()))
            }
        }
    }
}

/// Takes a command off the list whatever became of it.
struct Forget<'a>(&'a Waiting, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.0.lock().as_mut() {
            waiting.remove(&self.1);
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn listen(
    mut stream: OwnedReadHalf,
    waiting: Waiting,
    events: broadcast::Sender<Event>,
    greeted: oneshot::Sender<()>,
) {
    let mut greeted = Some(greeted);
    let mut decoder = Decoder::default();
    let mut buffer = vec![0_u8; 8 * 1024];
    let why = loop {
        let n = match stream.read(&mut buffer).await {
            Ok(0) => break "end of stream",
            Ok(n) => n,
            Err(_) => break "cannot be read",
        };
        match decoder.push(buffer.get(..n).unwrap_or_default()) {
            Ok(messages) => messages.into_iter().for_each(|m| take(m, &waiting, &events, &mut greeted)),
            Err(Broken(what)) => break what,
        }
    };
    tracing::debug!(why, "QMP connection ended");
    // Nobody answers any more: dropping the senders tells those who wait.
    waiting.lock().take();
}

fn take(
    message: Message,
    waiting: &Waiting,
    events: &broadcast::Sender<Event>,
    greeted: &mut Option<oneshot::Sender<()>>,
) {
    let (id, result) = match message {
        Message::Greeting => {
            if let Some(greeted) = greeted.take() {
                let _ = greeted.send(());
            }
            return;
        }
        Message::Event { name, data } => {
            let _ = events.send(Event { name, data });
            return;
        }
        Message::Return(id, value) => (id, Ok(value)),
        Message::Error { id: Some(id), class, text } => (id, Err((class, text))),
        Message::Error { id: None, class, text } => {
            tracing::warn!(class, text, "QEMU could not read a command");
            return;
        }
    };
    if let Some(sender) = waiting.lock().as_mut().and_then(|w| w.remove(&id)) {
        let _ = sender.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that answers each line with what `answer` says.
    async fn fake(answer: impl Fn(&Value) -> String + Send + 'static) -> Qmp {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            theirs.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
            let (mut text, mut buffer) = (String::new(), [0; 4096]);
            while let Ok(n) = theirs.read(&mut buffer).await {
                if n == 0 {
                    break;
                }
                text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                while let Some(end) = text.find('\n') {
                    let line: String = text.drain(..=end).collect();
                    match answer(&serde_json::from_str(&line).unwrap()).as_str() {
                        "close" => return,
                        reply => theirs.write_all(reply.as_bytes()).await.unwrap(),
                    }
                }
            }
        });
        Qmp::on(ours, Duration::from_millis(200)).await.unwrap()
    }

    #[tokio::test]
    async fn answers_find_their_commands_and_events_their_listeners() {
        let qmp = fake(|c| match c["execute"].as_str().unwrap() {
            "bad" => format!("{{\"id\": {}, \"error\": {{\"class\": \"C\", \"desc\": \"d\"}}}}\n", c["id"]),
            "silent" => String::new(),
            name => format!(
                "{{\"event\": \"STOP\", \"data\": 1}}\n{{\"return\": \"{name}\", \"id\": {}}}\n",
                c["id"]
            ),
        })
        .await;
        let mut events = qmp.events();
        let (a, b) = tokio::join!(qmp.call("a", json!({})), qmp.call("b", json!({})));
        assert_eq!((a.unwrap(), b.unwrap()), (json!("a"), json!("b")));
        assert_eq!(events.recv().await.unwrap(), Event { name: "STOP".into(), data: json!(1) });
        assert!(qmp.call("bad", json!({})).await.unwrap_err().chain().contains("bad: C: d"));
        let late = qmp.call("silent", json!({})).await.unwrap_err();
        assert_eq!(late.kind(), base::Kind::Unavailable);
        assert!(qmp.waiting.lock().as_ref().unwrap().is_empty(), "nothing is left waiting");
    }

    #[tokio::test]
    async fn a_lost_connection_fails_what_waits_and_what_comes() {
        let qmp = fake(|c| match c["execute"].as_str() {
            Some("quit") => "close".into(),
            _ => format!("{{\"return\": {{}}, \"id\": {}}}\n", c["id"]),
        })
        .await;
        let mut events = qmp.events();
        assert_eq!(qmp.call("quit", json!({})).await.unwrap_err().kind(), base::Kind::Unavailable);
        assert!(events.recv().await.is_err(), "listeners learn of the end");
        assert!(!qmp.alive());
        assert!(qmp.call("x", json!({})).await.is_err());
        assert!(qmp.events().recv().await.is_err());
    }

    #[tokio::test]
    async fn what_is_no_qemu_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        assert!(Qmp::on(ours, TIMEOUT).await.is_err());
    }
}
