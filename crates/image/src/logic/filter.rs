//! Filters and order of the image list. Source: Glance `api/v2/images.py`, `RequestDeserializer._get_filters`, and the
//! API reference ("in" and comparison operators).

use std::cmp::Ordering;

use base::{Error, ImageId, Result, Timestamp};

use super::attributes::VISIBILITIES;
use crate::model::Image;

/// Keys a list can be sorted by.
pub const SORT_KEYS: &[&str] =
    &["name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at"];
/// Parameters that are not filters.
const NOT_FILTERS: &[&str] = &["limit", "marker", "sort", "sort_key", "sort_dir", "page_reverse"];

/// Which images a list shall hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// `visibility`; `None`: all the caller sees but other projects' community images.
    pub visibility: Option<String>,
    /// `member_status`: of images shared with the caller, those it answered so (`None`: all).
    pub member_status: Option<String>,
    tests: Vec<Test>,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    /// A text attribute is one of these.
    Text(&'static str, Vec<String>),
    /// A number is exactly, at least, at most.
    Number(&'static str, Compare, u64),
    Flag(&'static str, bool),
    Tag(String),
    Time(&'static str, Compare, Timestamp),
    Property(String, String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
}

impl Compare {
    fn holds<T: Ord>(self, left: &T, right: &T) -> bool {
        let order = left.cmp(right);
        match self {
            Compare::Eq => order == Ordering::Equal,
            Compare::Neq => order != Ordering::Equal,
            Compare::Gt => order == Ordering::Greater,
            Compare::Gte => order != Ordering::Less,
            Compare::Lt => order == Ordering::Less,
            Compare::Lte => order != Ordering::Greater,
        }
    }
}

impl Filter {
    /// Reads the query of a list.
    ///
    /// # Errors
    /// `BadRequest` naming the parameter.
    pub fn parse<'a>(query: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut filter = Filter { member_status: Some("accepted".to_owned()), ..Filter::default() };
        let mut hidden = false;
        for (key, value) in query.filter(|(key, _)| !NOT_FILTERS.contains(key)) {
            filter.add(key, value, &mut hidden)?;
        }
        filter.tests.push(Test::Flag("os_hidden", hidden));
        Ok(filter)
    }

    fn add(&mut self, key: &str, value: &str, hidden: &mut bool) -> Result<()> {
        let test = match key {
            "visibility" => {
                if value == "all" || VISIBILITIES.contains(&value) {
                    self.visibility = Some(value.to_owned());
                    return Ok(());
                }
                return Err(Error::bad_request(format!("Invalid visibility value: {value}")));
            }
            "member_status" => {
                if !["pending", "accepted", "rejected", "all"].contains(&value) {
                    return Err(Error::bad_request(format!("Invalid status: {value}")));
                }
                self.member_status = Some(value.to_owned()).filter(|v| v != "all");
                return Ok(());
            }
            // Version 1 had it; some clients still send `is_public=None`.
            "is_public" | "deleted" => return Ok(()),
            "os_hidden" => {
                *hidden = flag(key, value)?;
                return Ok(());
            }
            "protected" => Test::Flag("protected", flag(key, value)?),
            "name" => Test::Text("name", one_or_in(key, value)?),
            "status" => Test::Text("status", one_or_in(key, value)?),
            "id" => Test::Text("id", one_or_in(key, value)?),
            "container_format" => Test::Text("container_format", one_or_in(key, value)?),
            "disk_format" => Test::Text("disk_format", one_or_in(key, value)?),
            "owner" => Test::Text("owner", vec![value.to_owned()]),
            "checksum" => Test::Text("checksum", vec![value.to_owned()]),
            "os_hash_value" => Test::Text("os_hash_value", vec![value.to_owned()]),
            "os_hash_algo" => Test::Text("os_hash_algo", vec![value.to_owned()]),
            "size" => Test::Number("size", Compare::Eq, number(key, value)?),
            "size_min" => Test::Number("size", Compare::Gte, number(key, value)?),
            "size_max" => Test::Number("size", Compare::Lte, number(key, value)?),
            "virtual_size" => Test::Number("virtual_size", Compare::Eq, number(key, value)?),
            "min_disk" => Test::Number("min_disk", Compare::Eq, number(key, value)?),
            "min_ram" => Test::Number("min_ram", Compare::Eq, number(key, value)?),
            "tag" => Test::Tag(value.to_owned()),
            "created_at" => time("created_at", value)?,
            "updated_at" => time("updated_at", value)?,
            _ => Test::Property(key.to_owned(), value.to_owned()),
        };
        self.tests.push(test);
        Ok(())
    }

    /// Whether the attributes pass (visibility is the caller's matter).
    pub fn matches(&self, image: &Image) -> bool {
        self.tests.iter().all(|test| test.matches(image))
    }

    /// The only allowed value of a column, where the filter names exactly one: lets the store use an index.
    pub fn exactly(&self, name: &str) -> Option<&str> {
        self.tests.iter().find_map(|test| match test {
            Test::Text(key, values) if *key == name => match values.as_slice() {
                [one] => Some(one.as_str()),
                _ => None,
            },
            _ => None,
        })
    }
}

impl Test {
    fn matches(&self, image: &Image) -> bool {
        match self {
            Test::Text(key, values) => text(image, key).is_some_and(|t| values.contains(&t)),
            Test::Number(key, compare, value) => {
                number_of(image, key).is_some_and(|n| compare.holds(&n, value))
            }
            Test::Flag("protected", value) => image.protected == *value,
            Test::Flag(_, value) => image.os_hidden == *value,
            Test::Tag(tag) => image.tags.contains(tag),
            Test::Time(key, compare, moment) => {
                let at = if *key == "created_at" { image.meta.created_at } else { image.meta.updated_at };
                // Shown times have whole seconds, so they are compared so.
                compare.holds(&at.as_secs(), &moment.as_secs())
            }
            Test::Property(key, value) => image.properties.get(key) == Some(value),
        }
    }
}

fn text(image: &Image, key: &str) -> Option<String> {
    match key {
        "name" => image.name.clone(),
        "status" => Some(image.status.clone()),
        "id" => Some(image.id.to_string()),
        "container_format" => image.container_format.clone(),
        "disk_format" => image.disk_format.clone(),
        "owner" => image.owner.as_ref().map(ToString::to_string),
        "checksum" => image.data.as_ref().map(|d| d.checksum.clone()),
        "os_hash_value" => image.data.as_ref().map(|d| d.sha512.clone()),
        "os_hash_algo" => image.data.as_ref().map(|_| "sha512".to_owned()),
        _ => None,
    }
}

fn number_of(image: &Image, key: &str) -> Option<u64> {
    match key {
        "size" => image.data.as_ref().map(|d| d.size),
        "virtual_size" => image.data.as_ref().map(|d| d.virtual_size),
        "min_disk" => Some(image.min_disk),
        "min_ram" => Some(image.min_ram),
        _ => None,
    }
}

/// `a`, or `in:a,b,"c,d"`.
fn one_or_in(key: &str, value: &str) -> Result<Vec<String>> {
    let Some(list) = value.strip_prefix("in:") else { return Ok(vec![value.to_owned()]) };
    let bad = || {
        Error::bad_request(format!(
            "Invalid filter value '{list}' of '{key}'. The quote is not closed, or there is no comma before or after it."
        ))
    };
    let mut values = Vec::new();
    let mut rest = list;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (inside, after) = quoted.split_once('"').ok_or_else(bad)?;
            values.push(inside.to_owned());
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None if after.is_empty() => return Ok(values),
                None => return Err(bad()),
            }
        } else {
            let (plain, next) = rest.split_once(',').map_or((rest, None), |(p, n)| (p, Some(n)));
            if plain.contains('"') {
                return Err(bad());
            }
            values.push(plain.to_owned());
            match next {
                Some(next) => rest = next,
                None => return Ok(values),
            }
        }
    }
}

fn number(key: &str, value: &str) -> Result<u64> {
    value
        .parse::<u64>()
        .ok()
        .filter(|n| *n <= i64::MAX as u64 && !value.starts_with('+'))
        .ok_or_else(|| Error::bad_request(format!("Bad value passed to filter {key} got {value}")))
}

fn flag(key: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Error::bad_request(format!(
            "Invalid value '{value}' for '{key}' filter. Valid values are case sensitive 'true' or 'false'."
        ))),
    }
}

/// `2026-11-21T00:00:00Z`, or with an operator before it: `gte:2026-11-21`.
fn time(key: &'static str, value: &str) -> Result<Test> {
    let (compare, text) = match value.split_once(':') {
        Some(("eq", rest)) => (Compare::Eq, rest),
        Some(("neq", rest)) => (Compare::Neq, rest),
        Some(("gt", rest)) => (Compare::Gt, rest),
        Some(("gte", rest)) => (Compare::Gte, rest),
        Some(("lt", rest)) => (Compare::Lt, rest),
        Some(("lte", rest)) => (Compare::Lte, rest),
        _ => (Compare::Eq, value),
    };
    match Timestamp::parse(text) {
        Some(moment) => Ok(Test::Time(key, compare, moment)),
        None => Err(Error::bad_request(format!(
            "Bad value '{text}' for filter {key}: it is not an ISO 8601 time, or its operator is unknown."
        ))),
    }
}

/// The order of a list: by `keys` (`true`: descending), then newest first, then by id, so that it is total.
pub fn order(keys: &[(String, bool)], left: &Image, right: &Image) -> Ordering {
    for (key, descending) in keys {
        let order = by_key(key, left, right);
        let order = if *descending { order.reverse() } else { order };
        if order != Ordering::Equal {
            return order;
        }
    }
    let newest = |i: &Image| (i.meta.created_at, i.id);
    let named = |key: &str| keys.iter().any(|(k, _)| k == key);
    if named("created_at") || named("id") { left.id.cmp(&right.id) } else { newest(right).cmp(&newest(left)) }
}

fn by_key(key: &str, left: &Image, right: &Image) -> Ordering {
    let size = |i: &Image| i.data.as_ref().map(|d| d.size);
    match key {
        "name" => left.name.cmp(&right.name),
        "status" => left.status.cmp(&right.status),
        "container_format" => left.container_format.cmp(&right.container_format),
        "disk_format" => left.disk_format.cmp(&right.disk_format),
        "size" => size(left).cmp(&size(right)),
        "created_at" => left.meta.created_at.cmp(&right.meta.created_at),
        "updated_at" => left.meta.updated_at.cmp(&right.meta.updated_at),
        _ => left.id.cmp(&right.id),
    }
}

/// Items after `marker`.
///
/// # Errors
/// `BadRequest` where no item has that id.
pub fn after(images: &mut Vec<Image>, marker: &str) -> Result<()> {
    let id = marker.parse::<ImageId>().ok();
    match images.iter().position(|i| Some(i.id) == id) {
        Some(at) => {
            images.drain(..=at);
            Ok(())
        }
        None => Err(Error::bad_request(format!("Invalid marker. Image {marker} could not be found."))),
    }
}
