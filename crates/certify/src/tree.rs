//! Reads what others wrote in YAML or JSON into a tree of bounded size: aliases of YAML can make gigabytes of a kilobyte.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Visitor};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess};
use serde_json::{Map, Number, Value};

/// Values of a tree; a report has some thousands.
const MOST_NODES: usize = 500_000;

/// What may still be read.
pub struct Budget {
    nodes: Cell<usize>,
    bytes: Cell<usize>,
}

impl Budget {
    /// For a text of so many bytes: what it tells without aliases, and a little more.
    pub fn of(bytes: usize) -> Self {
        Budget { nodes: Cell::new(MOST_NODES), bytes: Cell::new(bytes * 2 + 1024) }
    }

    fn spend<E: Error>(&self, bytes: usize) -> Result<(), E> {
        let nodes = self.nodes.get().checked_sub(1);
        let bytes = self.bytes.get().checked_sub(bytes + 1);
        let (Some(nodes), Some(bytes)) = (nodes, bytes) else { return Err(E::custom("too large")) };
        self.nodes.set(nodes);
        self.bytes.set(bytes);
        Ok(())
    }

    /// No database keeps NUL in texts.
    fn text<E: Error>(&self, text: &str) -> Result<(), E> {
        if text.contains('\0') {
            return Err(E::custom("NUL characters are not allowed"));
        }
        self.spend(text.len())
    }
}

/// Reads one document.
///
/// # Errors
/// What the format says, also for tags, keys that are lists, and numbers that JSON has not.
pub fn read<'d, D: Deserializer<'d>>(from: D, budget: &Budget) -> Result<Value, D::Error> {
    Tree(budget).deserialize(from)
}

/// Reads YAML of one document.
///
/// # Errors
/// As [`read`].
pub fn yaml(text: &str) -> Result<Value, serde_norway::Error> {
    read(serde_norway::Deserializer::from_str(text), &Budget::of(text.len()))
}

struct Tree<'b>(&'b Budget);

impl<'d> DeserializeSeed<'d> for Tree<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'d>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'d> Visitor<'d> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a list, a text, a number, true, false or null")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.0.spend(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'d>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.0.spend(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.0.spend(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.0.spend(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.0.spend(0)?;
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.0.text(value)?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'d>>(self, mut items: A) -> Result<Value, A::Error> {
        self.0.spend(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Tree(self.0))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'d>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.0.spend(0)?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key(self.0))? {
            let value = entries.next_value_seed(Tree(self.0))?;
            if map.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
        }
        Ok(Value::Object(map))
    }
}

/// A key: what is no text becomes one as Python's `json` writes it.
struct Key<'b>(&'b Budget);

impl<'d> DeserializeSeed<'d> for Key<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'d>>(self, from: D) -> Result<String, D::Error> {
        from.deserialize_any(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is a text")
    }

    fn visit_unit<E: Error>(self) -> Result<String, E> {
        self.visit_str("null")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<String, E> {
        self.visit_str(if value { "true" } else { "false" })
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<String, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<String, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<String, E> {
        self.0.text(value)?;
        Ok(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_kilobyte_of_aliases_makes_no_gigabytes() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x]\n");
        for n in 1..12 {
            let before = vec![format!("*a{}", n - 1); 8].join(", ");
            bomb.push_str(&format!("a{n}: &a{n} [{before}]\n"));
        }
        assert!(bomb.len() < 1024);
        assert!(yaml(&bomb).is_err());
        let fine = yaml("base: &b {x: 1}\none: *b\ntwo: *b\n3: {null: [true, 1.5, ~]}").unwrap();
        assert_eq!(
            fine,
            json!({"base": {"x": 1}, "one": {"x": 1}, "two": {"x": 1}, "3": {"null": [true, 1.5, null]}})
        );
        for wrong in ["a: 1\na: 2", "a: .nan", "a: \"\\0\"", "[a]: b", "a: !t b"] {
            assert!(yaml(wrong).is_err(), "{wrong}");
        }
    }
}
