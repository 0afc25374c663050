//! Reads the text of a database dump: `CREATE TABLE` for the names of columns, `INSERT INTO` for rows. What mysqldump
//! and mariadb-dump write, `sqlite3 .dump`, and `pg_dump --inserts`.

use std::collections::HashMap;

use base::{Error, Result};
use serde_json::Value;

/// One table: rows of cells; a cell is text or NULL.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
}

/// The tables of a dump, by name.
#[derive(Debug, Default)]
pub struct Dump(HashMap<String, Table>);

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    columns: &'a [String],
    cells: &'a [Option<String>],
}

impl Row<'_> {
    /// A cell that is not NULL.
    pub fn get(&self, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|c| c == column)?;
        self.cells.get(at)?.as_deref()
    }

    /// Text; empty where there is none.
    pub fn text(&self, column: &str) -> String {
        self.get(column).unwrap_or_default().to_owned()
    }

    /// Text that is there and not empty.
    pub fn some(&self, column: &str) -> Option<String> {
        self.get(column).filter(|t| !t.is_empty()).map(str::to_owned)
    }

    /// A flag, as databases write it.
    pub fn flag(&self, column: &str, otherwise: bool) -> bool {
        self.get(column).map_or(otherwise, |t| matches!(t, "1" | "true" | "TRUE" | "t" | "\u{1}"))
    }

    /// A number.
    pub fn number(&self, column: &str) -> Option<i64> {
        self.get(column)?.parse().ok()
    }

    /// JSON.
    pub fn json(&self, column: &str) -> Option<Value> {
        serde_json::from_str(self.get(column)?).ok()
    }
}

impl Dump {
    /// Reads the tables named in `wanted`.
    ///
    /// # Errors
    /// `BadRequest` where the text breaks off or is no SQL.
    pub fn read(text: &[u8], wanted: &[&str]) -> Result<Self> {
        let mut reader =
            Reader { text, at: 0, backslash: text.windows(14).any(|w| w == b"CREATE TABLE `" as &[u8]) };
        let mut dump = Dump::default();
        while let Some(word) = reader.statement() {
            match word.as_str() {
                "CREATE" => dump.create(&mut reader, wanted)?,
                "INSERT" => dump.insert(&mut reader, wanted)?,
                _ => reader.skip_statement(),
            }
        }
        if dump.0.is_empty() {
            return Err(Error::bad_request("the dump has no table of a Keystone"));
        }
        Ok(dump)
    }

    fn create(&mut self, reader: &mut Reader<'_>, wanted: &[&str]) -> Result<()> {
        let mut word = reader.word();
        if word != "TABLE" {
            reader.skip_statement();
            return Ok(());
        }
        word = reader.name();
        if word == "IF" {
            reader.name();
            reader.name();
            word = reader.name();
        }
        if !wanted.contains(&word.as_str()) || !reader.take(b'(') {
            reader.skip_statement();
            return Ok(());
        }
        let table = self.0.entry(word).or_default();
        loop {
            reader.space();
            let quoted = matches!(reader.peek(), Some(b'`' | b'"'));
            let name = reader.name();
            if name.is_empty() {
                return Err(reader.broken());
            }
            // The last three are MySQL's, which quotes all names; elsewhere a column may be called so.
            const CLAUSES: [&str; 8] =
                ["PRIMARY", "UNIQUE", "CONSTRAINT", "FOREIGN", "CHECK", "KEY", "INDEX", "FULLTEXT"];
            let mut clauses = CLAUSES.iter().take(if reader.backslash { 8 } else { 5 });
            if quoted || !clauses.any(|c| name.eq_ignore_ascii_case(c)) {
                table.columns.push(name);
            }
            if !reader.skip_item() {
                break;
            }
        }
        reader.skip_statement();
        Ok(())
    }

    fn insert(&mut self, reader: &mut Reader<'_>, wanted: &[&str]) -> Result<()> {
        while !matches!(reader.word().as_str(), "INTO" | "") {}
        let name = reader.name();
        if !wanted.contains(&name.as_str()) {
            reader.skip_statement();
            return Ok(());
        }
        let known = self.0.entry(name).or_default();
        let mut columns = None;
        if reader.take(b'(') {
            let mut named = Vec::new();
            loop {
                named.push(reader.name());
                if !reader.take(b',') {
                    break;
                }
            }
            if !reader.take(b')') {
                return Err(reader.broken());
            }
            columns = Some(named);
        }
        if reader.word() != "VALUES" {
            return Err(reader.broken());
        }
        loop {
            if !reader.take(b'(') {
                return Err(reader.broken());
            }
            let mut row = Vec::with_capacity(known.columns.len());
            loop {
                row.push(reader.value()?);
                if !reader.take(b',') {
                    break;
                }
            }
            if !reader.take(b')') {
                return Err(reader.broken());
            }
            // In the order of the table, where the statement has one of its own.
            if let Some(columns) = columns.as_ref().filter(|c| **c != known.columns) {
                if known.columns.is_empty() {
                    known.columns.clone_from(columns);
                } else {
                    let at = |name: &String| columns.iter().position(|c| c == name);
                    let sorted =
                        known.columns.iter().map(|c| at(c).and_then(|i| row.get(i).cloned().flatten()));
                    row = sorted.collect();
                }
            }
            if row.len() != known.columns.len() {
                return Err(reader.broken());
            }
            known.rows.push(row);
            if !reader.take(b',') {
                break;
            }
        }
        reader.skip_statement();
        Ok(())
    }

    /// The rows of a table.
    pub fn rows<'a>(&'a self, table: &str) -> impl Iterator<Item = Row<'a>> + use<'a> {
        let table = self.0.get(table);
        table.into_iter().flat_map(|t| t.rows.iter().map(|cells| Row { columns: &t.columns, cells }))
    }

    /// How many rows a table has.
    pub fn count(&self, table: &str) -> usize {
        self.0.get(table).map_or(0, |t| t.rows.len())
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    /// Whether a backslash in text means something (MySQL), or is one.
    backslash: bool,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn broken(&self) -> Error {
        Error::bad_request(format!("the dump cannot be read at byte {}", self.at))
    }

    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Passes over space and comments.
    fn space(&mut self) {
        loop {
            let rest = self.rest();
            if rest.first().is_some_and(u8::is_ascii_whitespace) {
                self.at += 1;
            } else if rest.starts_with(b"--") || rest.starts_with(b"#") {
                self.at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            } else if rest.starts_with(b"/*") {
                self.at += rest.windows(2).position(|w| w == b"*/").map_or(rest.len(), |p| p + 2);
            } else {
                return;
            }
        }
    }

    /// The first word of the next statement.
    fn statement(&mut self) -> Option<String> {
        loop {
            self.space();
            match self.peek()? {
                b';' => self.at += 1,
                b if b.is_ascii_alphabetic() => return Some(self.word()),
                // A line of a client's own (`\connect`).
                _ => {
                    let rest = self.rest();
                    self.at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                }
            }
        }
    }

    /// A bare word, in capitals.
    fn word(&mut self) -> String {
        self.space();
        let rest = self.rest();
        let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        let word = String::from_utf8_lossy(rest.get(..length).unwrap_or_default()).to_ascii_uppercase();
        self.at += length;
        word
    }

    /// A name, quoted or not; of `schema.table` the last part.
    fn name(&mut self) -> String {
        loop {
            self.space();
            let name = match self.peek() {
                Some(quote @ (b'`' | b'"')) => {
                    self.at += 1;
                    let rest = self.rest();
                    let length = rest.iter().take_while(|b| **b != quote).count();
                    let name = String::from_utf8_lossy(rest.get(..length).unwrap_or_default()).into_owned();
                    self.at += length + 1;
                    name
                }
                _ => {
                    let rest = self.rest();
                    let length =
                        rest.iter().take_while(|b| b.is_ascii_alphanumeric() || b"_$-".contains(b)).count();
                    let name = String::from_utf8_lossy(rest.get(..length).unwrap_or_default()).into_owned();
                    self.at += length;
                    name
                }
            };
            if self.peek() != Some(b'.') {
                return name;
            }
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Passes over text in quotes; the quote is the present byte.
    fn quoted(&mut self, quote: u8) {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += 1;
            if byte == b'\\' && self.backslash && quote == b'\'' {
                self.at += 1;
            } else if byte == quote {
                return;
            }
        }
    }

    /// Passes over the rest of a statement.
    fn skip_statement(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b';' => {
                    self.at += 1;
                    return;
                }
                quote @ (b'\'' | b'`' | b'"') => self.quoted(quote),
                _ => self.at += 1,
            }
        }
    }

    /// Passes over the rest of an item of a list in parentheses; whether another follows.
    fn skip_item(&mut self) -> bool {
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'(' => depth += 1,
                b')' if depth == 0 => {
                    self.at += 1;
                    return false;
                }
                b')' => depth -= 1,
                b',' if depth == 0 => {
                    self.at += 1;
                    return true;
                }
                quote @ (b'\'' | b'`' | b'"') => {
                    self.quoted(quote);
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
        false
    }

    /// A value: text, a number, NULL, bytes.
    fn value(&mut self) -> Result<Option<String>> {
        self.space();
        match self.peek() {
            Some(b'\'') => self.string().map(Some),
            Some(_) => {
                let rest = self.rest();
                let length =
                    rest.iter().take_while(|b| !b.is_ascii_whitespace() && !b",)'".contains(b)).count();
                let bare = String::from_utf8_lossy(rest.get(..length).unwrap_or_default()).into_owned();
                if length == 0 {
                    return Err(self.broken());
                }
                self.at += length;
                // `_binary '…'`, `X'…'`, `E'…'`
                self.space();
                if self.peek() == Some(b'\'') {
                    let text = self.string()?;
                    return Ok(Some(if bare.eq_ignore_ascii_case("x") { bytes(&text) } else { text }));
                }
                Ok(match bare.strip_prefix("0x") {
                    _ if bare.eq_ignore_ascii_case("null") => None,
                    Some(digits) => Some(bytes(digits)),
                    None => Some(bare),
                })
            }
            None => Err(self.broken()),
        }
    }

    fn string(&mut self) -> Result<String> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            // In runs: most text has nothing special.
            let rest = self.text.get(self.at..).unwrap_or_default();
            let plain = rest.iter().take_while(|b| **b != b'\'' && **b != b'\\').count();
            out.extend_from_slice(rest.get(..plain).unwrap_or_default());
            self.at += plain;
            match self.peek().ok_or_else(|| self.broken())? {
                b'\'' => {
                    self.at += 1;
                    if self.peek() != Some(b'\'') {
                        break;
                    }
                    self.at += 1;
                    out.push(b'\'');
                }
                _ if !self.backslash => {
                    self.at += 1;
                    out.push(b'\\');
                }
                _ => {
                    let escaped = self.text.get(self.at + 1).copied().ok_or_else(|| self.broken())?;
                    self.at += 2;
                    out.push(match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'0' => 0,
                        b'Z' => 26,
                        b'b' => 8,
                        other => other,
                    });
                }
            }
        }
        String::from_utf8(out).or_else(|e| Ok(String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }
}

fn bytes(digits: &str) -> String {
    String::from_utf8_lossy(&hex::decode(digits).unwrap_or_default()).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dumps_of_three_databases_say_the_same() {
        let mysql = r#"-- MySQL dump
/*!40101 SET NAMES utf8 */;
DROP TABLE IF EXISTS `user`;
CREATE TABLE `user` (
  `id` varchar(64) NOT NULL,
  `extra` text DEFAULT 'a,(b',
  `key` int(11) DEFAULT NULL,
  `enabled` tinyint(1),
  PRIMARY KEY (`id`,`key`),
  KEY `ix` (`key`)
) ENGINE=InnoDB;
LOCK TABLES `user` WRITE;
INSERT INTO `user` VALUES ('1','{\"a\": \'x;\\n\'}',NULL,1),('2','it\'s (ü), b''c',-5,0);
INSERT INTO `other` VALUES ('(;',1);
UNLOCK TABLES;
"#;
        let sqlite = r#"PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE IF NOT EXISTS "user" (id VARCHAR(64) NOT NULL, extra TEXT, "key" INTEGER, enabled BOOLEAN, PRIMARY KEY (id), CHECK (enabled IN (0, 1)));
INSERT INTO user VALUES('1','{"a": ''x;\n''}',NULL,1);
INSERT INTO user VALUES('2','it''s (ü), b''c',-5,0);
COMMIT;
"#;
        let postgres = r#"CREATE TABLE public."user" (
    id character varying(64) NOT NULL,
    extra text,
    key integer,
    enabled boolean
);
INSERT INTO public."user" (id, extra, key, enabled) VALUES ('1', '{"a": ''x;\n''}', NULL, true);
INSERT INTO public."user" (enabled, id, extra, key) VALUES (false, '2', 'it''s (ü), b''c', -5);
ALTER TABLE ONLY public."user" ADD CONSTRAINT user_pkey PRIMARY KEY (id);
"#;
        for text in [mysql, sqlite, postgres] {
            let dump = Dump::read(text.as_bytes(), &["user"]).unwrap();
            let rows: Vec<Row<'_>> = dump.rows("user").collect();
            assert_eq!(rows.len(), 2, "{text}");
            let (one, two) = (rows[0], rows[1]);
            assert_eq!((one.get("id"), one.get("key"), one.flag("enabled", false)), (Some("1"), None, true));
            assert_eq!(one.text("extra"), r#"{"a": 'x;\n'}"#, "{text}");
            assert_eq!((two.text("extra").as_str(), two.number("key")), ("it's (ü), b'c", Some(-5)));
            assert!(!two.flag("enabled", true));
        }
        assert!(Dump::read(b"nothing here", &["user"]).is_err());
        let broken = mysql.replace("-5,0);", "-5");
        assert!(Dump::read(broken.as_bytes(), &["user"]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "[ ()'`\",;a\\\\-]{0,60}", head in 0..3usize) {
            let head = ["", "INSERT INTO `user` VALUES (", "CREATE TABLE `user` ("][head];
            let _ = Dump::read(format!("{head}{text}").as_bytes(), &["user"]);
        }
    }
}
