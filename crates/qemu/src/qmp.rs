//! A QMP client (QEMU Machine Protocol, docs/interop/qmp-spec.rst): commands with ids, events as they come.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{Error, Result};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot};

/// A command that takes longer than this is given up; long work is done by jobs.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longest line taken from QEMU.
const LINE: u64 = 16 * 1024 * 1024;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value>>>>>;

/// A connection to one QEMU.
pub struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Waiting,
    next: AtomicU64,
    events: broadcast::Sender<Value>,
    reader: tokio::task::AbortHandle,
}

/// What a line from QEMU is.
#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Event(Value),
    Reply(u64, std::result::Result<Value, String>),
    Unknown,
}

fn parse(line: &str) -> Message {
    let Ok(Value::Object(mut object)) = serde_json::from_str(line) else { return Message::Unknown };
    if object.contains_key("QMP") {
        return Message::Greeting;
    }
    if object.contains_key("event") {
        return Message::Event(Value::Object(object));
    }
    let Some(id) = object.get("id").and_then(Value::as_u64) else { return Message::Unknown };
    if let Some(value) = object.remove("return") {
        return Message::Reply(id, Ok(value));
    }
    match object.get("error") {
        Some(error) => {
            let text = error.get("desc").and_then(Value::as_str).unwrap_or("unknown error");
            Message::Reply(id, Err(text.to_owned()))
        }
        None => Message::Unknown,
    }
}

impl Qmp {
    /// Connects and leaves capabilities negotiation.
    ///
    /// # Errors
    /// `Unavailable` where nobody listens or answers.
    pub async fn connect(path: &Path) -> Result<Self> {
        let gone = |e: std::io::Error| Error::unavailable("QEMU does not answer.").caused_by(e);
        let stream = UnixStream::connect(path).await.map_err(gone)?;
        let (read, write) = stream.into_split();
        let waiting: Waiting = Arc::default();
        let events = broadcast::Sender::new(256);
        let reader = tokio::spawn(listen(read, waiting.clone(), events.clone())).abort_handle();
        let qmp =
            Qmp { writer: tokio::sync::Mutex::new(write), waiting, next: AtomicU64::new(1), events, reader };
        qmp.call("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Whether QEMU still listens.
    pub fn alive(&self) -> bool {
        !self.reader.is_finished()
    }

    /// Runs a command.
    ///
    /// # Errors
    /// `Internal` with QEMU's text, `Unavailable` where it went away or does not answer in time.
    pub async fn call(&self, command: &str, arguments: Value) -> Result<Value> {
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().insert(id, sender);
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments, "id": id}));
        let sent = async {
            let mut writer = self.writer.lock().await;
            writer.write_all(line.as_bytes()).await
        };
        let answer = tokio::time::timeout(TIMEOUT, async {
            sent.await.map_err(|e| Error::unavailable("QEMU went away.").caused_by(e))?;
            receiver.await.map_err(|_| Error::unavailable("QEMU went away."))?
        })
        .await;
        self.waiting.lock().remove(&id);
        match answer {
            Ok(Err(error)) => {
                Err(Error::new(error.kind(), error.public())
                    .caused_by(format!("{command}: {}", error.chain())))
            }
            Ok(ok) => ok,
            Err(_) => Err(Error::unavailable("QEMU does not answer in time.").caused_by(command.to_owned())),
        }
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Value> {
        self.events.subscribe()
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

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn listen(read: OwnedReadHalf, waiting: Waiting, events: broadcast::Sender<Value>) {
    use tokio::io::AsyncReadExt;
    let mut reader = BufReader::new(read);
    let mut line = String::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE).read_line(&mut line).await {
            Ok(n) if n > 0 => {}
            _ => break,
        }
        match parse(&line) {
            Message::Reply(id, result) => {
                if let Some(sender) = waiting.lock().remove(&id) {
                    let _ = sender.send(result.map_err(Error::internal));
                }
            }
            Message::Event(event) => {
                let _ = events.send(event);
            }
            Message::Greeting | Message::Unknown => {}
        }
    }
    // Nobody answers any more: dropping the senders tells those who wait.
    waiting.lock().clear();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages() {
        assert_eq!(parse(r#"{"QMP": {"version": {}}}"#), Message::Greeting);
        assert_eq!(parse(r#"{"return": {}, "id": 3}"#), Message::Reply(3, Ok(json!({}))));
        let refused = parse(r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 4}"#);
        assert_eq!(refused, Message::Reply(4, Err("no".into())));
        assert!(matches!(parse(r#"{"event": "STOP"}"#), Message::Event(_)));
    }

    proptest! {
        #[test]
        fn any_line_is_taken(line in ".*") {
            let _ = parse(&line);
        }
    }
}
