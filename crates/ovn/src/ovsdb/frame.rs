//! Framing: JSON values stand back to back on the stream (RFC 7047 section 4), so a value ends where its brackets do.
//!
//! The scanner looks at each byte once, however the bytes are cut into reads; a whole-buffer parse per read would be
//! quadratic for the large first dump.

use bytes::{Buf, BytesMut};
use serde_json::Value as Json;

use super::{Error, Result};

/// No message is larger: a peer that sends more is broken.
const MAX_FRAME: usize = 512 << 20;

/// Cuts a byte stream into JSON values.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: BytesMut,
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Framer {
    /// Where to read bytes into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole value, `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the bytes are no JSON object or array, or a value exceeds the limit.
    pub fn value(&mut self) -> Result<Option<Json>> {
        if self.depth == 0 && self.scanned == 0 {
            let blank = self.buffer.iter().take_while(|b| b.is_ascii_whitespace()).count();
            self.buffer.advance(blank);
        }
        let mut end = None;
        for (at, byte) in self.buffer.iter().enumerate().skip(self.scanned) {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        end = Some(at + 1);
                        break;
                    }
                }
                _ => {}
            }
            if self.depth == 0 {
                return Err(Error::Protocol("a message starts with neither { nor [".into()));
            }
        }
        let Some(end) = end else {
            self.scanned = self.buffer.len();
            if self.scanned > MAX_FRAME {
                return Err(Error::Protocol("message too long".into()));
            }
            return Ok(None);
        };
        let frame = self.buffer.split_to(end);
        self.scanned = 0;
        serde_json::from_slice(&frame).map(Some).map_err(|e| Error::Protocol(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(framer: &mut Framer, bytes: &[u8]) -> Vec<Json> {
        framer.buffer().extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Ok(Some(v)) = framer.value() {
            out.push(v);
        }
        out
    }

    #[test]
    fn values_back_to_back_with_brackets_in_strings() {
        let text = br#" {"a":"}\"]["} [1,[2,"\\"]]
        {"id":null}"#;
        for cut in 0..text.len() {
            let mut framer = Framer::default();
            let mut got = feed(&mut framer, &text[..cut]);
            got.extend(feed(&mut framer, &text[cut..]));
            assert_eq!(got.len(), 3, "cut at {cut}");
            assert_eq!(got[0]["a"], "}\"][");
        }
    }

    proptest! {
        #[test]
        fn never_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut framer = Framer::default();
            for chunk in chunks {
                framer.buffer().extend_from_slice(&chunk);
                while let Ok(Some(_)) = framer.value() {}
            }
        }

        #[test]
        fn finds_every_value_however_cut(texts in prop::collection::vec("[ -~]{0,20}", 1..8), size in 1_usize..9) {
            let stream: String = texts.iter().map(|t| serde_json::json!({"m": [t]}).to_string()).collect();
            let mut framer = Framer::default();
            let got: Vec<Json> = stream.as_bytes().chunks(size).flat_map(|c| feed(&mut framer, c)).collect();
            let want: Vec<Json> = texts.iter().map(|t| serde_json::json!({"m": [t]})).collect();
            prop_assert_eq!(got, want);
        }
    }
}
