//! YAML exactly as PyYAML's `safe_dump(…, default_flow_style=False, sort_keys=False, explicit_start=True)` writes it, which is
//! how reports have always looked: same quotes, same folding at 80 columns.

use regex_automata::meta::Regex;

/// Width beyond which PyYAML folds.
const WIDTH: usize = 80;

/// What YAML 1.1 would take for something else than text.
const NOT_TEXT: &[&str] = &[
    r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$",
    r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    r"^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$",
    r"^(?:~|null|Null|NULL|)$",
    r"^(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?(?:[ \t]*(?:Z|[-+][0-9]{1,2}(?::[0-9]{2})?))?)$",
    r"^(?:=|<<)$",
];

/// A document.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Null,
    Int(i64),
    /// Written as it is: dates, booleans.
    Bare(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl From<&str> for Node {
    fn from(text: &str) -> Self {
        Node::Text(text.to_owned())
    }
}

/// Writes a document.
pub(crate) fn dump(node: &Node) -> String {
    let not_text = NOT_TEXT.iter().filter_map(|p| Regex::new(p).ok()).collect();
    let mut writer = Writer { out: String::from("---\n"), column: 0, not_text };
    writer.block(node, 0);
    writer.out
}

struct Writer {
    out: String,
    column: usize,
    not_text: Vec<Regex>,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn line(&mut self, indent: usize) {
        self.out.push('\n');
        self.column = 0;
        self.put(&" ".repeat(indent));
    }

    fn end(&mut self) {
        self.out.push('\n');
        self.column = 0;
    }

    /// A mapping or list at the beginning of a line.
    fn block(&mut self, node: &Node, indent: usize) {
        match node {
            Node::Map(entries) => {
                for (key, value) in entries {
                    self.put(&" ".repeat(indent));
                    self.text(key, indent, false);
                    self.put(":");
                    self.value(value, indent);
                }
            }
            Node::List(items) => {
                for item in items {
                    self.put(&" ".repeat(indent));
                    self.put("-");
                    self.value(item, indent);
                }
            }
            other => self.value(other, indent),
        }
    }

    /// What stands after `key:` or `-`.
    fn value(&mut self, node: &Node, indent: usize) {
        match node {
            Node::Null => self.put(" null"),
            Node::Int(number) => self.put(&format!(" {number}")),
            Node::Bare(text) => self.put(&format!(" {text}")),
            Node::Text(text) => {
                self.put(" ");
                self.text(text, indent, true);
            }
            Node::List(items) if items.is_empty() => self.put(" []"),
            Node::Map(entries) if entries.is_empty() => self.put(" {}"),
            Node::List(_) => {
                self.end();
                return self.block(node, indent);
            }
            Node::Map(_) => {
                self.end();
                return self.block(node, indent + 2);
            }
        }
        self.end();
    }

    fn text(&mut self, text: &str, indent: usize, split: bool) {
        let found = Analysis::of(text);
        if found.plain && !self.not_text.iter().any(|r| r.is_match(text)) {
            self.folded(text, indent, split, false);
        } else if found.single {
            self.put("'");
            self.folded(text, indent, split, true);
            self.put("'");
        } else {
            self.double(text, indent, split);
        }
    }

    /// Breaks at single spaces once the line is wide.
    fn folded(&mut self, text: &str, indent: usize, split: bool, quoted: bool) {
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let space = chars.get(at) == Some(&' ');
            let run = chars.iter().skip(at).take_while(|c| (**c == ' ') == space).count();
            let piece: String = chars.iter().skip(at).take(run).collect();
            let edge = at == 0 || at + run == chars.len();
            if space && run == 1 && split && self.column > WIDTH && !(quoted && edge) {
                self.line(indent + 2);
            } else if quoted {
                // PyYAML counts a doubled quote as the two characters it is.
                self.put(&piece.replace('\'', "''"));
            } else {
                self.put(&piece);
            }
            at += run;
        }
    }

    fn double(&mut self, text: &str, indent: usize, split: bool) {
        self.put("\"");
        let chars: Vec<char> = text.chars().collect();
        let (mut start, mut end) = (0, 0);
        let piece = |from: usize, to: usize| {
            chars.iter().skip(from).take(to.saturating_sub(from)).collect::<String>()
        };
        while end <= chars.len() {
            let c = chars.get(end).copied();
            if c.is_none_or(|c| !(' '..='~').contains(&c) || c == '"' || c == '\\') {
                if start < end {
                    self.put(&piece(start, end));
                    start = end;
                }
                if let Some(c) = c {
                    self.put(&escaped(c));
                    start = end + 1;
                }
            }
            let inside = end > 0 && end + 1 < chars.len();
            let wide = self.column + end.saturating_sub(start) > WIDTH;
            if inside && (c == Some(' ') || start >= end) && wide && split {
                self.put(&piece(start, end));
                self.put("\\");
                start = start.max(end);
                self.line(indent + 2);
                if chars.get(start) == Some(&' ') {
                    self.put("\\");
                }
            }
            end += 1;
        }
        self.put("\"");
    }
}

fn escaped(c: char) -> String {
    let known = [
        ('\0', '0'),
        ('\x07', 'a'),
        ('\x08', 'b'),
        ('\t', 't'),
        ('\n', 'n'),
        ('\x0b', 'v'),
        ('\x0c', 'f'),
        ('\r', 'r'),
        ('\x1b', 'e'),
        ('"', '"'),
        ('\\', '\\'),
        ('\u{85}', 'N'),
        ('\u{a0}', '_'),
        ('\u{2028}', 'L'),
        ('\u{2029}', 'P'),
    ];
    match (known.iter().find(|(k, _)| *k == c), u32::from(c)) {
        (Some((_, letter)), _) => format!("\\{letter}"),
        (None, code @ 0..=0xff) => format!("\\x{code:02X}"),
        (None, code @ 0x100..=0xffff) => format!("\\u{code:04X}"),
        (None, code) => format!("\\U{code:08X}"),
    }
}

/// In which styles a text can be written.
struct Analysis {
    plain: bool,
    single: bool,
}

impl Analysis {
    fn of(text: &str) -> Analysis {
        if text.is_empty() {
            return Analysis { plain: false, single: true };
        }
        let chars: Vec<char> = text.chars().collect();
        let blank = |c: Option<&char>| {
            c.is_none_or(|c| {
                matches!(c, '\0' | ' ' | '\t' | '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
            })
        };
        let mut indicator = text.starts_with("---") || text.starts_with("...");
        for (index, c) in chars.iter().enumerate() {
            let followed = blank(chars.get(index + 1));
            let preceded = index == 0 || blank(chars.get(index - 1));
            indicator |= match c {
                '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@'
                | '`'
                    if index == 0 =>
                {
                    true
                }
                '?' | '-' if index == 0 => followed,
                ':' => followed,
                '#' => preceded,
                _ => false,
            };
        }
        let special = chars.iter().any(|c| !(' '..='~').contains(c));
        let edges = chars.first() == Some(&' ') || chars.last() == Some(&' ');
        Analysis { plain: !indicator && !special && !edges, single: !special }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_pyyaml_does() {
        let wide = "word ".repeat(30) + "end";
        let cases = [
            ("plain text", " plain text\n"),
            ("scs-0100-syntax-check: PASS", " 'scs-0100-syntax-check: PASS'\n"),
            ("", " ''\n"),
            ("2026-11-21", " '2026-11-21'\n"),
            ("1_000", " '1_000'\n"),
            ("off", " 'off'\n"),
            ("it's", " it's\n"),
            ("'tis", " '''tis'\n"),
            ("- a", " '- a'\n"),
            ("-a", " -a\n"),
            ("tab\there", " \"tab\\there\"\n"),
            ("Über", " \"\\xDCber\"\n"),
            ("a #b", " 'a #b'\n"),
        ];
        for (text, expected) in cases {
            let out = dump(&Node::Map(vec![("k".into(), text.into())]));
            assert_eq!(out, format!("---\nk:{expected}"), "{text:?}");
        }
        let out = dump(&Node::Map(vec![("k".into(), Node::from(wide.as_str()))]));
        assert_eq!(out.lines().nth(1).map(str::len), Some(82), "{out}");
        assert!(out.lines().nth(2).unwrap().starts_with("  word"), "{out}");
    }

    #[test]
    fn lists_are_not_indented() {
        let list = Node::List(vec!["a".into(), Node::Int(1)]);
        let node = Node::Map(vec![
            ("m".into(), Node::Map(vec![("l".into(), list), ("e".into(), Node::List(vec![]))])),
            ("n".into(), Node::Null),
        ]);
        assert_eq!(dump(&node), "---\nm:\n  l:\n  - a\n  - 1\n  e: []\nn: null\n");
    }
}
