//! The OpenAPI 3.1 document of a service, made from its operations.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::op::{BodyKind, TokenNeed};
use crate::{Dialect, Mv, Op, OpInfo};

/// The document. `server_url` is where the service is reachable.
pub fn document<S>(dialect: &Dialect, ops: &[Op<S>], server_url: &str) -> Value {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for op in ops {
        let info = &op.info;
        let path = info.path.replace("{*", "{");
        let place = paths.entry(path).or_insert_with(|| json!({}));
        let Some(place) = place.as_object_mut() else { continue };
        let method = info.method.as_str().to_ascii_lowercase();
        let one = operation(&mut generator, info);
        match place.get_mut(&method) {
            None => {
                place.insert(method, one);
            }
            Some(existing) => merge(existing, one),
        }
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {"title": format!("Allod {} API", dialect.service_type), "version": version_of(dialect)},
        "servers": [{"url": server_url}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
        },
    })
}

fn version_of(dialect: &Dialect) -> String {
    dialect.microversions.map_or_else(|| "1".to_owned(), |range| range.max.to_string())
}

fn operation(generator: &mut SchemaGenerator, info: &OpInfo) -> Value {
    let mut one = json!({
        "operationId": info.id,
        "summary": &*info.summary,
        "x-openstack-policy": &*info.policy,
        "parameters": parameters(&info.path),
        "responses": {info.status.to_string(): {"description": "Success"}, "default": {"description": "Error"}},
    });
    let Some(map) = one.as_object_mut() else { return one };
    if info.token == TokenNeed::Required {
        map.insert("security".into(), json!([{"token": []}]));
    }
    if info.since > Mv::MIN {
        map.insert("x-openstack-min-version".into(), info.since.to_string().into());
    }
    if info.until < Mv::MAX {
        map.insert("x-openstack-max-version".into(), info.until.to_string().into());
    }
    let content = match info.body {
        BodyKind::None => return one,
        BodyKind::Raw => json!({"application/octet-stream": {}}),
        BodyKind::Json => {
            let schema = (info.schema)(generator).to_value();
            let schema = match &info.action {
                None => schema,
                Some(action) => json!({
                    "type": "object", "required": [action], "properties": {(&**action): schema},
                    "additionalProperties": false,
                }),
            };
            let mut types = Map::new();
            for media in info.consumes {
                types.insert((*media).to_owned(), json!({"schema": schema}));
            }
            Value::Object(types)
        }
    };
    map.insert("requestBody".into(), json!({"content": content}));
    one
}

/// Another operation at the same place: an action, or other microversions. Their bodies become alternatives.
fn merge(existing: &mut Value, other: Value) {
    if let (Some(ids), Some(id)) = (existing.get_mut("x-openstack-operations"), other.get("operationId")) {
        if let Some(ids) = ids.as_array_mut() {
            ids.push(id.clone());
        }
    } else if let (Some(first), Some(id)) =
        (existing.get("operationId").cloned(), other.get("operationId").cloned())
        && let Some(map) = existing.as_object_mut()
    {
        map.insert("x-openstack-operations".into(), json!([first, id]));
    }
    let Some(Value::Object(more)) = other.pointer("/requestBody/content").cloned() else { return };
    let Some(content) = existing.pointer_mut("/requestBody/content").and_then(Value::as_object_mut) else {
        return;
    };
    for (media, body) in more {
        let Some(schema) = body.get("schema").cloned() else { continue };
        let place = content.entry(media).or_insert_with(|| json!({"schema": {"oneOf": []}}));
        let Some(old) = place.get_mut("schema") else { continue };
        match old.get_mut("oneOf").and_then(Value::as_array_mut) {
            Some(choices) => choices.push(schema),
            None => *old = json!({"oneOf": [old.take(), schema]}),
        }
    }
}

fn parameters(path: &str) -> Vec<Value> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            let name = name.trim_start_matches('*');
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
        })
        .collect()
}
