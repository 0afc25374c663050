//! Values of columns (RFC 7047 section 5.1) and their JSON.
//!
//! A set of exactly one element is sent as the bare atom, so a scalar and a set of one are the same here: [`Value::Set`].

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::{Error, Result};

/// A real number that has a total order.
#[derive(Debug, Clone, Copy)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.total_cmp(&other.0) == Ordering::Equal
    }
}
impl Eq for Real {}
impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Real {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// One element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Atom {
    /// `integer`
    Int(i64),
    /// `real`
    Real(Real),
    /// `boolean`
    Bool(bool),
    /// `string`
    Str(String),
    /// `uuid`: of a row
    Uuid(Uuid),
    /// A row inserted by the same transaction
    Named(String),
}

impl Atom {
    fn from_json(json: &Json) -> Result<Self> {
        match json {
            Json::Bool(b) => Ok(Atom::Bool(*b)),
            Json::String(s) => Ok(Atom::Str(s.clone())),
            Json::Number(n) => match n.as_i64() {
                Some(i) => Ok(Atom::Int(i)),
                None => n.as_f64().map(|f| Atom::Real(Real(f))).ok_or_else(|| bad(json)),
            },
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(tag), Json::String(id)] if tag == "uuid" => {
                    Uuid::try_parse(id).map(Atom::Uuid).map_err(|_| bad(json))
                }
                [Json::String(tag), Json::String(id)] if tag == "named-uuid" => Ok(Atom::Named(id.clone())),
                _ => Err(bad(json)),
            },
            _ => Err(bad(json)),
        }
    }

    /// RFC 7047 `<atom>`.
    pub fn to_json(&self) -> Json {
        match self {
            Atom::Int(i) => json!(i),
            Atom::Real(Real(f)) => json!(f),
            Atom::Bool(b) => json!(b),
            Atom::Str(s) => json!(s),
            Atom::Uuid(u) => json!(["uuid", u.to_string()]),
            Atom::Named(n) => json!(["named-uuid", n]),
        }
    }
}

impl From<&str> for Atom {
    fn from(text: &str) -> Self {
        Atom::Str(text.to_owned())
    }
}
impl From<String> for Atom {
    fn from(text: String) -> Self {
        Atom::Str(text)
    }
}
impl From<bool> for Atom {
    fn from(b: bool) -> Self {
        Atom::Bool(b)
    }
}
impl From<i64> for Atom {
    fn from(i: i64) -> Self {
        Atom::Int(i)
    }
}
impl From<Uuid> for Atom {
    fn from(u: Uuid) -> Self {
        Atom::Uuid(u)
    }
}

/// What a column holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// A scalar (one element), an optional (none or one) or a set.
    Set(BTreeSet<Atom>),
    /// A map.
    Map(BTreeMap<Atom, Atom>),
}

fn bad(json: &Json) -> Error {
    let mut text = json.to_string();
    text.truncate(text.char_indices().nth(80).map_or(text.len(), |(at, _)| at));
    Error::Protocol(format!("not a value: {text}"))
}

impl Value {
    /// The empty set.
    pub fn none() -> Self {
        Value::Set(BTreeSet::new())
    }

    /// A scalar.
    pub fn one(atom: impl Into<Atom>) -> Self {
        Value::Set(BTreeSet::from([atom.into()]))
    }

    /// A set.
    pub fn set<A: Into<Atom>>(atoms: impl IntoIterator<Item = A>) -> Self {
        Value::Set(atoms.into_iter().map(Into::into).collect())
    }

    /// A map.
    pub fn map<K: Into<Atom>, V: Into<Atom>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Value::Map(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        match self {
            Value::Set(s) => s.is_empty(),
            Value::Map(m) => m.is_empty(),
        }
    }

    /// Reads RFC 7047 `<value>`.
    ///
    /// # Errors
    /// [`Error::Protocol`] for anything else.
    pub fn from_json(json: &Json) -> Result<Self> {
        if let Json::Array(parts) = json
            && let [Json::String(tag), Json::Array(elements)] = parts.as_slice()
        {
            if tag == "set" {
                return elements.iter().map(Atom::from_json).collect::<Result<_>>().map(Value::Set);
            }
            if tag == "map" {
                let pair = |e: &Json| match e.as_array().map(Vec::as_slice) {
                    Some([k, v]) => Ok((Atom::from_json(k)?, Atom::from_json(v)?)),
                    _ => Err(bad(e)),
                };
                return elements.iter().map(pair).collect::<Result<_>>().map(Value::Map);
            }
        }
        Atom::from_json(json).map(|a| Value::Set(BTreeSet::from([a])))
    }

    /// RFC 7047 `<value>`.
    pub fn to_json(&self) -> Json {
        match self {
            Value::Set(s) => match s.first() {
                Some(only) if s.len() == 1 => only.to_json(),
                _ => json!(["set", s.iter().map(Atom::to_json).collect::<Vec<_>>()]),
            },
            Value::Map(m) => {
                json!(["map", m.iter().map(|(k, v)| json!([k.to_json(), v.to_json()])).collect::<Vec<_>>()])
            }
        }
    }

    /// Applies the difference of an `update2` `modify` to a set or map: elements in only one of both; pairs that are
    /// new (add), the same (remove) or of another value (replace).
    pub fn apply_diff(&mut self, diff: Value) {
        match (self, diff) {
            (Value::Set(have), Value::Set(diff)) => {
                for atom in diff {
                    if !have.remove(&atom) {
                        have.insert(atom);
                    }
                }
            }
            (Value::Map(have), Value::Map(diff)) => {
                for (key, value) in diff {
                    if have.get(&key) == Some(&value) {
                        have.remove(&key);
                    } else {
                        have.insert(key, value);
                    }
                }
            }
            // An empty map and an empty set look alike until the first element comes.
            (have, diff) => {
                if !diff.is_empty() {
                    *have = diff;
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            "(set|map|uuid|named-uuid|insert|modify|delete|initial|[a-z]{0,4})".prop_map(Json::from),
            Just(json!("6f3a5c1e-0d7b-4c3e-9a8f-112233445566")),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
                prop::collection::btree_map(
                    "(insert|modify|delete|initial|up|ports|[a-z]{0,3})",
                    inner,
                    0..5
                )
                .prop_map(|m| Json::Object(m.into_iter().collect())),
            ]
        })
    }

    fn any_atom() -> impl Strategy<Value = Atom> {
        prop_oneof![
            any::<i64>().prop_map(Atom::Int),
            any::<bool>().prop_map(Atom::Bool),
            ".{0,6}".prop_map(Atom::Str),
            any::<u128>().prop_map(|u| Atom::Uuid(Uuid::from_u128(u))),
        ]
    }

    fn any_set() -> impl Strategy<Value = BTreeSet<Atom>> {
        prop::collection::btree_set(any_atom(), 0..6)
    }

    proptest! {
        #[test]
        fn decoder_never_panics(json in any_json()) {
            let _ = Value::from_json(&json);
        }

        #[test]
        fn round_trip(set in any_set(), map in prop::collection::btree_map(any_atom(), any_atom(), 0..5)) {
            for value in [Value::Set(set), Value::Map(map)] {
                prop_assert_eq!(Value::from_json(&value.to_json()), Ok(value));
            }
        }

        #[test]
        fn set_difference_leads_from_old_to_new(old in any_set(), new in any_set()) {
            let diff = old.symmetric_difference(&new).cloned().collect();
            let mut have = Value::Set(old);
            have.apply_diff(Value::Set(diff));
            prop_assert_eq!(have, Value::Set(new));
        }
    }

    #[test]
    fn bare_atoms_and_sets_of_one_are_the_same() {
        assert_eq!(Value::from_json(&json!(true)), Value::from_json(&json!(["set", [true]])));
        assert_eq!(Value::from_json(&json!(["set", []])), Ok(Value::none()));
        assert!(Value::from_json(&json!(["uuid", "zz"])).is_err());
        assert!(Value::from_json(&json!(["map", [["a"]]])).is_err());
    }

    #[test]
    fn map_difference_adds_removes_replaces() {
        let mut have = Value::map([("a", "1"), ("b", "2"), ("c", "3")]);
        have.apply_diff(Value::map([("a", "1"), ("b", "9"), ("d", "4")]));
        assert_eq!(have, Value::map([("b", "9"), ("c", "3"), ("d", "4")]));
    }
}
