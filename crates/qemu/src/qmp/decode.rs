//! What QEMU says, one JSON object a line (QEMU `docs/interop/qmp-spec.rst`), from bytes that come in any pieces.

use serde_json::Value;

/// No message is longer; QEMU is no more trusted than the guest in it.
const LONGEST: usize = 16 * 1024 * 1024;

/// A message of the server.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Message {
    /// The first line: `{"QMP": {"version": …, "capabilities": […]}}`.
    Greeting,
    /// Success of the command with that id.
    Return(u64, Value),
    /// Failure of the command with that id (`None` where QEMU could not read the command).
    Error {
        /// The command.
        id: Option<u64>,
        /// `GenericError`, `CommandNotFound`, `DeviceNotFound` …
        class: String,
        /// For humans.
        text: String,
    },
    /// Something happened.
    Event {
        /// E.g. `SHUTDOWN`.
        name: String,
        /// Its data, `null` if none.
        data: Value,
    },
}

/// Why a stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken(pub &'static str);

/// Collects bytes and answers whole messages.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes what was read; answers the messages it completes.
    ///
    /// # Errors
    /// On what is no message, and on a message that is too long. The stream is of no use after that.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, Broken> {
        self.buffer.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = line.trim_ascii();
            if !line.is_empty() {
                messages.push(message(line)?);
            }
        }
        if self.buffer.len() > LONGEST {
            return Err(Broken("a message is too long"));
        }
        Ok(messages)
    }
}

fn message(line: &[u8]) -> Result<Message, Broken> {
    let value: Value = serde_json::from_slice(line).map_err(|_| Broken("a line is no JSON"))?;
    let Value::Object(mut map) = value else { return Err(Broken("a line is no object")) };
    let id = map.get("id").and_then(Value::as_u64);
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    if map.contains_key("QMP") {
        return Ok(Message::Greeting);
    }
    if let Some(value) = map.remove("return") {
        return id.map(|id| Message::Return(id, value)).ok_or(Broken("a return without our id"));
    }
    if let Some(error) = map.remove("error") {
        return Ok(Message::Error { id, class: text(error.get("class")), text: text(error.get("desc")) });
    }
    if map.contains_key("event") {
        let data = map.remove("data").unwrap_or(Value::Null);
        return Ok(Message::Event { name: text(map.get("event")), data });
    }
    Err(Broken("a message of no known kind"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn encode(message: &Message) -> String {
        let value = match message {
            Message::Greeting => json!({"QMP": {}}),
            Message::Return(id, v) => json!({"return": v, "id": id}),
            Message::Error { id, class, text } => match id {
                Some(id) => json!({"id": id, "error": {"class": class, "desc": text}}),
                None => json!({"error": {"class": class, "desc": text}}),
            },
            Message::Event { name, data } => {
                json!({"event": name, "data": data, "timestamp": {"seconds": 1}})
            }
        };
        format!("{value}\r\n")
    }

    fn messages() -> impl Strategy<Value = Message> {
        prop_oneof![
            Just(Message::Greeting),
            (any::<u64>(), ".*").prop_map(|(id, s)| Message::Return(id, json!({"x": [s, null]}))),
            (any::<Option<u64>>(), ".*", ".*").prop_map(|(id, class, text)| Message::Error {
                id,
                class,
                text
            }),
            (".*", any::<i64>()).prop_map(|(name, n)| Message::Event { name, data: json!(n) }),
        ]
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same_messages(sent in prop::collection::vec(messages(), 0..8), cut in 1usize..40) {
            let bytes: Vec<u8> = sent.iter().flat_map(|m| encode(m).into_bytes()).collect();
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                got.extend(decoder.push(piece).unwrap());
            }
            prop_assert_eq!(got, sent);
            prop_assert!(decoder.buffer.is_empty());
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..40) {
            let mut decoder = Decoder::default();
            for piece in bytes.chunks(cut) {
                if decoder.push(piece).is_err() { break; }
            }
        }
    }

    #[test]
    fn refuses_what_is_no_message() {
        for line in ["[]\n", "{}\n", "{\"return\": {}}\n", "nonsense\n", "{\"return\": 1, \"id\": \"x\"}\n"] {
            assert!(Decoder::default().push(line.as_bytes()).is_err(), "{line}");
        }
        let mut decoder = Decoder::default();
        let mut last = Ok(vec![]);
        for _ in 0..20 {
            last = decoder.push(&[b'x'; 1024 * 1024]);
        }
        assert!(last.is_err(), "bounded");
    }
}
