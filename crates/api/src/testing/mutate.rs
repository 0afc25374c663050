//! From the schema of a body: a body that should be taken, and many that must not be.

use serde_json::{Map, Value, json};

/// A body that must be refused, and why.
#[derive(Debug, Clone)]
pub(crate) struct Bad {
    pub what: String,
    pub body: Value,
    /// The field at fault; a good message names it or one of its parents.
    pub fields: Vec<String>,
}

/// A schema with its definitions at hand.
pub(crate) struct Shape {
    root: Value,
    defs: Map<String, Value>,
}

const MAX_DEPTH: usize = 8;
const ALL: [&str; 6] = ["object", "array", "string", "integer", "boolean", "null"];

impl Shape {
    pub fn of(schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema) -> Self {
        let mut generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
        let root = schema(&mut generator).to_value();
        let defs = generator.take_definitions(true);
        Shape { root, defs }
    }

    pub fn root(&self) -> &Value {
        &self.root
    }

    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let mut at = schema;
        for _ in 0..MAX_DEPTH {
            let Some(name) = at.get("$ref").and_then(Value::as_str) else { break };
            match self.defs.get(name.rsplit('/').next().unwrap_or(name)) {
                Some(target) => at = target,
                None => break,
            }
        }
        at
    }

    /// The alternatives of a schema (`anyOf`, `oneOf`), or itself.
    fn choices<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.resolve(schema);
        let list = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array);
        match list {
            Some(list) if schema.get("type").is_none() => list.iter().flat_map(|s| self.choices(s)).collect(),
            _ => vec![schema],
        }
    }

    /// JSON types a schema takes; `None` where it takes any.
    fn types(&self, schema: &Value) -> Option<Vec<String>> {
        let mut all = Vec::new();
        for choice in self.choices(schema) {
            match choice.get("type") {
                Some(Value::String(one)) => all.push(one.clone()),
                Some(Value::Array(many)) => {
                    all.extend(many.iter().filter_map(Value::as_str).map(str::to_owned))
                }
                _ => match (choice.get("enum"), choice.get("const")) {
                    (Some(Value::Array(values)), _) => {
                        all.extend(values.iter().map(|v| type_of(v).to_owned()))
                    }
                    (_, Some(value)) => all.push(type_of(value).to_owned()),
                    _ => return None,
                },
            }
        }
        Some(all)
    }

    /// A value the schema should take, as small as possible.
    pub fn good(&self, schema: &Value, depth: usize) -> Value {
        let choices = self.choices(schema);
        let not_null = |s: &&&Value| s.get("type").and_then(Value::as_str) != Some("null");
        let Some(schema) = choices.iter().find(not_null).or(choices.first()) else { return Value::Null };
        if let Some(value) = schema.get("const") {
            return value.clone();
        }
        if let Some(value) = schema.get("enum").and_then(Value::as_array).and_then(|v| v.first()) {
            return value.clone();
        }
        let kind = match schema.get("type") {
            Some(Value::String(one)) => one.as_str(),
            Some(Value::Array(many)) => many.iter().find_map(Value::as_str).unwrap_or("null"),
            _ => "object",
        };
        let number = |key: &str| schema.get(key).and_then(Value::as_u64).unwrap_or(0);
        match kind {
            "string" => json!(good_text(schema, usize::try_from(number("minLength")).unwrap_or(0))),
            "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(1)),
            "boolean" => json!(true),
            "array" => {
                let items = schema.get("items").filter(|_| number("minItems") > 0 && depth < MAX_DEPTH);
                json!(items.map(|s| vec![self.good(s, depth + 1)]).unwrap_or_default())
            }
            "object" => self.good_object(schema, depth),
            _ => Value::Null,
        }
    }

    fn good_object(&self, schema: &Value, depth: usize) -> Value {
        let mut map = Map::new();
        let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        for name in required.iter().filter_map(Value::as_str) {
            let inner = schema.get("properties").and_then(|p| p.get(name));
            if let Some(inner) = inner.filter(|_| depth < MAX_DEPTH) {
                map.insert(name.to_owned(), self.good(inner, depth + 1));
            }
        }
        Value::Object(map)
    }

    /// Bodies that differ from `base` in one place where the schema forbids it.
    pub fn bad(&self, base: &Value) -> Vec<Bad> {
        let mut all = Vec::new();
        self.walk(&self.root, base, &mut Vec::new(), base, &mut all);
        all
    }

    fn walk(&self, schema: &Value, here: &Value, path: &mut Vec<String>, base: &Value, all: &mut Vec<Bad>) {
        if path.len() > MAX_DEPTH {
            return;
        }
        self.wrong_types(schema, path, base, all);
        let choices = self.choices(schema);
        let solid: Vec<&Value> = choices
            .iter()
            .copied()
            .filter(|s| s.get("type").and_then(Value::as_str) != Some("null"))
            .collect();
        // Of several shapes nobody can tell which one a body that fits none was meant to be.
        let [schema] = solid.as_slice() else { return };
        self.wrong_values(schema, path, base, all);
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
        let mut put = |what: String, field: &str, value: Option<Value>| {
            let mut full = path.clone();
            full.push(field.to_owned());
            all.push(Bad { what, body: replace(base, &full, value), fields: full });
        };
        if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
            put("unknown field".into(), "no_such_field", Some(json!("x")));
        }
        for name in
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            put(format!("missing {name}"), name, None);
        }
        for (name, inner) in properties {
            let existing = here.get(name).cloned();
            let value = existing.unwrap_or_else(|| self.good(inner, path.len()));
            path.push(name.clone());
            // Bodies of optional objects are walked too, with the object put in.
            let base = replace(base, path, Some(value.clone()));
            self.walk(inner, &value, path, &base, all);
            path.pop();
        }
    }

    fn wrong_types(&self, schema: &Value, path: &[String], base: &Value, all: &mut Vec<Bad>) {
        let Some(types) = self.types(schema) else { return };
        let takes = |t: &str| types.iter().any(|x| x == t || (x == "number" && t == "integer"));
        let wrong = |t: &&&str| !takes(t) && **t != "null";
        let mut candidates: Vec<&str> = ALL.iter().filter(wrong).copied().take(3).collect();
        if !takes("null") && !path.is_empty() {
            candidates.push("null");
        }
        for kind in candidates {
            let value = match kind {
                "object" => json!({"a": 1}),
                "array" => json!([[]]),
                "string" => json!("wrong"),
                "integer" => json!(-7),
                "boolean" => json!(true),
                _ => Value::Null,
            };
            all.push(Bad {
                what: format!("{kind} for {}", show(path)),
                body: replace(base, path, Some(value)),
                fields: path.to_vec(),
            });
        }
    }

    fn wrong_values(&self, schema: &Value, path: &[String], base: &Value, all: &mut Vec<Bad>) {
        let mut put = |what: &str, value: Value| {
            all.push(Bad {
                what: format!("{what} for {}", show(path)),
                body: replace(base, path, Some(value)),
                fields: path.to_vec(),
            });
        };
        let takes = |kind: &str| match schema.get("type") {
            Some(Value::String(one)) => one == kind,
            Some(Value::Array(many)) => many.iter().any(|t| t == kind),
            _ => false,
        };
        let number = |key: &str| schema.get(key).and_then(Value::as_i64);
        if takes("string") && !path.is_empty() {
            put("NUL", json!("a\u{0}b"));
            if let Some(n) = number("maxLength").and_then(|n| usize::try_from(n).ok()).filter(|n| *n < 60_000)
            {
                put("overlong text", json!("x".repeat(n + 1)));
            }
            if number("minLength").is_some_and(|n| n > 0) {
                put("empty text", json!(""));
            }
            if schema.get("format").is_some()
                || schema.get("enum").is_some()
                || schema.get("pattern").is_some()
            {
                put("nonsense", json!("?! nonsense"));
            }
        }
        if takes("integer") || takes("number") {
            if let Some(n) = number("minimum").and_then(|n| n.checked_sub(1)) {
                put("too small", json!(n));
            }
            if let Some(n) = number("maximum").and_then(|n| n.checked_add(1)) {
                put("too large", json!(n));
            }
            if !takes("number") {
                put("fraction", json!(1.5));
            }
        }
        if takes("array")
            && let Some(items) = schema.get("items")
            && let Some(types) = self.types(items)
            && !types.iter().any(|t| t == "boolean")
        {
            put("wrong item", json!([true]));
        }
    }
}

fn good_text(schema: &Value, min: usize) -> String {
    match schema.get("format").and_then(Value::as_str) {
        Some("uuid") => "6f3a5c1e-0d7b-4c3e-9a8f-112233445566".into(),
        Some("ipv4" | "ip") => "192.0.2.1".into(),
        Some("cidr") => "192.0.2.0/24".into(),
        Some("date-time") => "2026-11-21T00:00:00Z".into(),
        Some("base64") => "eA==".into(),
        _ if schema.get("oneOf").is_some() => "192.0.2.1".into(),
        _ if schema.get("pattern").and_then(Value::as_str).is_some_and(|p| p.contains("fA-F]{2}:")) => {
            "fa:16:3e:00:00:01".into()
        }
        _ if schema.get("pattern").is_some() => "1".into(),
        _ => "x".repeat(min),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn show(path: &[String]) -> String {
    if path.is_empty() { "the body".into() } else { path.join(".") }
}

/// `base` with the value at `path` replaced, or removed for `None`; objects on the way are made.
fn replace(base: &Value, path: &[String], value: Option<Value>) -> Value {
    let Some((head, tail)) = path.split_first() else { return value.unwrap_or(Value::Null) };
    let mut map = base.as_object().cloned().unwrap_or_default();
    if tail.is_empty() {
        match value {
            Some(value) => map.insert(head.clone(), value),
            None => map.remove(head),
        };
    } else {
        let inner = map.get(head).cloned().unwrap_or_else(|| json!({}));
        map.insert(head.clone(), replace(&inner, tail, value));
    }
    Value::Object(map)
}
