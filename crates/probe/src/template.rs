//! `{…}` in the bodies of a scenario: values of `set`, what other steps made, and the item's own number and name.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// What a reference stands for; `None`: nothing.
pub type Lookup<'a> = dyn Fn(&str) -> Result<Value, String> + 'a;

/// `value` with all references replaced. A text that is nothing but a reference becomes what it stands for, of any kind.
pub fn fill(value: &Value, lookup: &Lookup<'_>) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(name) if !name.contains(['{', '}']) => lookup(name)?,
            _ => Value::String(fill_text(text, lookup)?),
        },
        Value::Array(all) => Value::Array(all.iter().map(|v| fill(v, lookup)).collect::<Result<_, _>>()?),
        Value::Object(all) => {
            let filled: Result<Map<String, Value>, String> =
                all.iter().map(|(k, v)| Ok((k.clone(), fill(v, lookup)?))).collect();
            // What stands for nothing is not sent.
            Value::Object(filled?.into_iter().filter(|(_, v)| !v.is_null()).collect())
        }
        other => other.clone(),
    })
}

/// A text with all references replaced.
pub fn fill_text(text: &str, lookup: &Lookup<'_>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, behind) = after.split_once('}').ok_or_else(|| format!("{text:?}: a brace is open"))?;
        out.push_str(before);
        match lookup(name)? {
            Value::String(s) => out.push_str(&s),
            other => out.push_str(&other.to_string()),
        }
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

/// All names that are referred to.
pub fn names(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    match value {
        Value::String(text) => {
            found.extend(text.split('{').skip(1).filter_map(|t| Some(t.split_once('}')?.0.to_owned())));
        }
        Value::Array(all) => all.iter().for_each(|v| found.extend(names(v))),
        Value::Object(all) => all.values().for_each(|v| found.extend(names(v))),
        _ => {}
    }
    found
}

/// Steps among `ids` that are referred to.
pub fn steps(value: &Value, ids: &BTreeSet<String>) -> BTreeSet<String> {
    let of = |name: String| name.split('.').next().unwrap_or_default().to_owned();
    names(value).into_iter().map(of).filter(|s| ids.contains(s)).collect()
}

/// `i`, `n`, `i*4`, `n+1` of an item's number from zero.
pub fn number(name: &str, index: usize) -> Option<usize> {
    let (base, rest) = (name.get(..1)?, name.get(1..)?);
    let value = match base {
        "i" => index,
        "n" => index + 1,
        _ => return None,
    };
    match rest.get(..1) {
        None => Some(value),
        Some("*") => value.checked_mul(rest.get(1..)?.parse().ok()?),
        Some("+") => value.checked_add(rest.get(1..)?.parse().ok()?),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_become_what_they_stand_for() {
        let lookup = |name: &str| match name {
            "guests" => Ok(json!(4)),
            "network.id" => Ok(json!("abc")),
            "nothing" => Ok(Value::Null),
            other => number(other, 2).map(Value::from).ok_or(format!("{other} is nothing")),
        };
        let value = json!({"count": "{guests}", "cidr": "10.250.{i*4}.0/22", "net": ["{network.id}"], "none": "{nothing}", "n": "{n}"});
        let filled = fill(&value, &lookup).unwrap();
        assert_eq!(filled, json!({"count": 4, "cidr": "10.250.8.0/22", "net": ["abc"], "n": 3}));
        assert!(fill(&json!("{what}"), &lookup).is_err() && fill(&json!("a {b"), &lookup).is_err());
        let ids = BTreeSet::from(["network".to_owned()]);
        assert_eq!(steps(&value, &ids), ids);
    }
}
