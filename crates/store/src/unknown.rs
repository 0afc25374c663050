//! Fields of a newer program: what this one does not know it leaves as it found it.
//!
//! What is unknown is seen by comparison: a stored body is read and written again by this program, and what is missing then
//! it does not know. That works at every depth, and tells what this program deleted from what it never saw.

use serde_json::{Map, Value};

/// Puts into `new` what `held` has and `known` (the same as this program writes it) does not.
pub(crate) fn keep(held: &Value, known: &Value, new: &mut Value) {
    match (held, known, new) {
        (Value::Object(held), Value::Object(known), Value::Object(new)) => {
            for (name, value) in held {
                match (known.get(name), new.get_mut(name)) {
                    (None, None) => drop(new.insert(name.clone(), value.clone())),
                    (Some(known), Some(new)) => keep(value, known, new),
                    // Written by this program now, or taken away by it.
                    (None, Some(_)) | (Some(_), None) => {}
                }
            }
        }
        (Value::Array(held), Value::Array(known), Value::Array(new)) if held.len() == known.len() => {
            let mut free: Vec<usize> = (0..known.len()).collect();
            let equal = *known == *new;
            for (n, element) in new.iter_mut().enumerate() {
                let found = if equal { Some(n) } else { alike(element, known, &free) };
                let Some(found) = found else { continue };
                free.retain(|f| *f != found);
                if let (Some(held), Some(known)) = (held.get(found), known.get(found)) {
                    keep(held, known, element);
                }
            }
        }
        _ => {}
    }
}

/// Which element of the old list an element of the new one was: the one with which it has most in common, if that is at
/// least half of what it has.
fn alike(element: &Value, known: &[Value], free: &[usize]) -> Option<usize> {
    let fields = element.as_object()?;
    let common = |n: &usize| {
        let other = known.get(*n).and_then(Value::as_object)?;
        let same = common(fields, other);
        (same > 0 && 2 * same >= fields.len()).then_some((same, std::cmp::Reverse(*n)))
    };
    free.iter().filter_map(common).max().map(|(_, std::cmp::Reverse(n))| n)
}

fn common(one: &Map<String, Value>, other: &Map<String, Value>) -> usize {
    one.iter().filter(|(name, value)| other.get(*name) == Some(*value)).count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept(held: Value, known: Value, mut new: Value) -> Value {
        keep(&held, &known, &mut new);
        new
    }

    #[test]
    fn unknown_fields_stay_at_every_depth_and_deleted_ones_go() {
        let held =
            json!({"name": "a", "new": 1, "map": {"k": "v", "gone": "x"}, "deep": {"known": 1, "new": [2]}});
        let known = json!({"name": "a", "map": {"k": "v", "gone": "x"}, "deep": {"known": 1}});
        let new = json!({"name": "b", "map": {"k": "w"}, "deep": {"known": 3}});
        let wanted = json!({"name": "b", "map": {"k": "w"}, "deep": {"known": 3, "new": [2]}, "new": 1});
        assert_eq!(kept(held, known, new), wanted);
    }

    #[test]
    fn elements_of_lists_are_known_again_by_what_they_have_in_common() {
        let nic = |port: &str, done: bool| json!({"port": port, "tag": null, "done": done});
        let with = |mut nic: Value, new: u32| {
            nic["new"] = new.into();
            nic
        };
        let held = json!([with(nic("a", false), 1), with(nic("b", false), 2), with(nic("c", false), 3)]);
        let known = json!([nic("a", false), nic("b", false), nic("c", false)]);
        // The first went, another changed, one was added.
        let new = json!([nic("b", true), nic("c", false), nic("d", true)]);
        let wanted = json!([with(nic("b", true), 2), with(nic("c", false), 3), nic("d", true)]);
        assert_eq!(kept(held.clone(), known.clone(), new), wanted);
        assert_eq!(kept(held.clone(), known.clone(), known), held, "nothing changed, nothing is lost");
    }

    #[test]
    fn what_is_no_longer_an_object_is_left_alone() {
        assert_eq!(kept(json!({"a": {"new": 1}}), json!({"a": {}}), json!({"a": null})), json!({"a": null}));
        assert_eq!(kept(json!([{"new": 1}]), json!([{}]), json!([1])), json!([1]));
    }
}
