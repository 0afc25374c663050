//! `application/openstack-images-v2.1-json-patch` (RFC 6902 with `op` and `path`) and its older form v2.0, in which the
//! operation is the key: `{"replace": "/name", "value": "x"}`. Only `add`, `replace` and `remove` of one attribute.
//! Source: Glance `api/v2/images.py`, `RequestDeserializer.update` and `ImagesController.update`.

use base::{Error, Result};
use serde_json::Value;

use super::attributes::{self, Bounds, is_base};
use crate::model::Image;

/// Content type of the present form.
pub const V2_1: &str = "application/openstack-images-v2.1-json-patch";
/// Content type of the older form.
pub const V2_0: &str = "application/openstack-images-v2.0-json-patch";

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// New, or in the present form also in place of an old value.
    Add,
    /// In place of an old value.
    Replace,
    /// Away.
    Remove,
}

/// One change of a patch.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What to do.
    pub verb: Verb,
    /// To which attribute.
    pub attribute: String,
    /// The new value (null for [`Verb::Remove`]).
    pub value: Value,
    /// Whether the older form was used, where `add` refuses what exists.
    pub old_form: bool,
}

/// Most changes in one patch.
const MAX_CHANGES: usize = 1024;

/// Reads the body of a PATCH. `old_form`: v2.0.
///
/// # Errors
/// `BadRequest` that names the change, `Forbidden` where an attribute may not be written.
pub fn parse(body: &Value, old_form: bool) -> Result<Vec<Change>> {
    let Some(items) = body.as_array() else {
        return Err(Error::bad_request("Request body must be a JSON array of operation objects."));
    };
    if items.len() > MAX_CHANGES {
        return Err(Error::bad_request(format!("Request body must have at most {MAX_CHANGES} operations.")));
    }
    items.iter().map(|item| change(item, old_form)).collect()
}

fn change(item: &Value, old_form: bool) -> Result<Change> {
    let Some(object) = item.as_object() else {
        return Err(Error::bad_request("Operations must be JSON objects."));
    };
    let (verb, path) = if old_form {
        let mut named = object.iter().filter(|(key, _)| verb_of(key).is_some());
        match (named.next(), named.next()) {
            (Some((verb, path)), None) => (verb.as_str(), Some(path)),
            (None, _) => return Err(Error::bad_request("Operations must be one of add, remove, replace.")),
            _ => {
                return Err(Error::bad_request(
                    "Operation objects must contain only one member named \"add\", \"remove\", or \"replace\".",
                ));
            }
        }
    } else {
        (text(object.get("op"), "op")?, object.get("path"))
    };
    let Some(verb) = verb_of(verb) else {
        return Err(Error::bad_request(format!(
            "Invalid operation: `{verb}`. It must be one of: add, remove, replace."
        )));
    };
    let attribute = pointer(text(path, "path")?)?;
    attributes::writable(&attribute)?;
    let value = match (verb, object.get("value")) {
        (Verb::Remove, _) => Value::Null,
        (_, Some(value)) => value.clone(),
        (_, None) => {
            return Err(Error::bad_request(format!(
                "Operation on '{attribute}' requires a member named \"value\"."
            )));
        }
    };
    Ok(Change { verb, attribute, value, old_form })
}

fn verb_of(text: &str) -> Option<Verb> {
    match text {
        "add" => Some(Verb::Add),
        "replace" => Some(Verb::Replace),
        "remove" => Some(Verb::Remove),
        _ => None,
    }
}

fn text<'a>(value: Option<&'a Value>, name: &str) -> Result<&'a str> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(Error::bad_request(format!("Operation member \"{name}\" must be a string."))),
        None => Err(Error::bad_request(format!("Unable to find '{name}' in JSON Schema change"))),
    }
}

/// A JSON pointer (RFC 6901) of exactly one part.
fn pointer(path: &str) -> Result<String> {
    let bad = |why: &str| Error::bad_request(format!("Pointer `{path}` {why}."));
    let Some(rest) = path.strip_prefix('/') else { return Err(bad("does not start with \"/\"")) };
    if rest.contains("//") || rest.starts_with('/') {
        return Err(bad("contains adjacent \"/\""));
    }
    if rest.is_empty() || rest.ends_with('/') {
        return Err(bad("ends with \"/\""));
    }
    let mut rest_of = rest.split('~').skip(1);
    if rest_of.any(|after| !after.starts_with(['0', '1'])) {
        return Err(bad("contains \"~\" not part of a recognized escape sequence"));
    }
    let (first, deeper) = rest.split_once('/').map_or((rest, false), |(first, _)| (first, true));
    let name = first.replace("~1", "/").replace("~0", "~");
    if deeper {
        attributes::writable(&name)?;
        return Err(Error::bad_request(format!("Invalid JSON pointer for this resource: '{path}'")));
    }
    Ok(name)
}

/// Applies one change.
///
/// # Errors
/// As [`attributes::set`]; `Conflict` where a property is missing (replace, remove) or there already (add, older form);
/// `Forbidden` where the image's own attribute would be removed.
pub fn apply(image: &mut Image, change: &Change, bounds: Bounds) -> Result<()> {
    let name = change.attribute.as_str();
    let own = is_base(name);
    let there = own || image.properties.contains_key(name);
    match change.verb {
        Verb::Replace if !there => Err(Error::conflict(format!("Property {name} does not exist."))),
        Verb::Add if there && change.old_form => {
            Err(Error::conflict(format!("Property {name} already present.")))
        }
        Verb::Add | Verb::Replace => attributes::set(image, name, &change.value, bounds),
        Verb::Remove if own => Err(Error::forbidden(format!("Property {name} may not be removed."))),
        Verb::Remove if !there => Err(Error::conflict(format!("Property {name} does not exist."))),
        Verb::Remove => {
            image.properties.remove(name);
            Ok(())
        }
    }
}
