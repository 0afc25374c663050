//! Pages, order and filters of Cinder's lists.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use ::api::Query;
use base::{Error, Result, Timestamp};

use super::input::python_dict;

/// Most items of a page.
const MAX: usize = 1000;

/// What a list asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Asked for, cut to the maximum.
    pub limit: Option<usize>,
    /// Items to skip.
    pub offset: usize,
    /// Id of the last item of the page before.
    pub marker: Option<String>,
    /// Keys with direction (`true`: descending).
    pub sort: Vec<(String, bool)>,
}

impl Page {
    /// Reads `limit`, `offset`, `marker` and `sort` (or `sort_key` and `sort_dir`).
    ///
    /// # Errors
    /// `BadRequest` naming the parameter.
    pub fn parse(query: &Query, keys: &[&str]) -> Result<Self> {
        let number = |key: &str| -> Result<Option<usize>> {
            query
                .get(key)
                .map(|text| {
                    text.parse::<u64>()
                        .ok()
                        .filter(|n| *n <= i64::MAX as u64 && !text.starts_with('+'))
                        .and_then(|n| usize::try_from(n).ok())
                        .ok_or_else(|| Error::bad_request(format!("Invalid input for query parameter '{key}': '{text}' is not a non-negative integer.")))
                })
                .transpose()
        };
        let sort = sort(query)?;
        if let Some((key, _)) = sort.iter().find(|(k, _)| !keys.contains(&k.as_str())) {
            return Err(Error::bad_request(format!("Invalid input received: Invalid sort key: {key}.")));
        }
        Ok(Page {
            limit: number("limit")?.map(|n| n.min(MAX)),
            offset: number("offset")?.unwrap_or(0),
            marker: query.get("marker").filter(|m| !m.is_empty()).map(str::to_owned),
            sort,
        })
    }

    /// Cuts sorted items to this page; answers the marker of the next one. Cinder gives a link after every full page.
    ///
    /// # Errors
    /// `BadRequest` where the marker is no item.
    pub fn cut<T>(&self, items: &mut Vec<T>, id: impl Fn(&T) -> String) -> Result<Option<String>> {
        if let Some(marker) = &self.marker {
            match items.iter().position(|i| id(i) == *marker) {
                Some(at) => drop(items.drain(..=at)),
                None => {
                    return Err(Error::bad_request(format!("Invalid marker: {marker} could not be found.")));
                }
            }
        }
        items.drain(..self.offset.min(items.len()));
        let limit = self.limit.unwrap_or(MAX);
        let full = limit > 0 && items.len() >= limit && (self.limit.is_some() || items.len() > limit);
        items.truncate(limit);
        Ok(if full { items.last().map(id) } else { None })
    }
}

fn sort(query: &Query) -> Result<Vec<(String, bool)>> {
    let descending = |text: &str| match text.to_ascii_lowercase().as_str() {
        "asc" => Ok(false),
        "desc" => Ok(true),
        _ => Err(Error::bad_request(format!(
            "Invalid input received: Invalid sort direction: {text}, must be 'desc' or 'asc'."
        ))),
    };
    if let Some(text) = query.get("sort") {
        if query.has("sort_key") || query.has("sort_dir") {
            return Err(Error::bad_request(
                "Invalid input received: The 'sort_key' and 'sort_dir' parameters are deprecated and cannot be used with the 'sort' parameter.",
            ));
        }
        return text
            .split(',')
            .filter(|p| !p.trim().is_empty())
            .map(|part| {
                let (key, dir) = part.trim().split_once(':').unwrap_or((part.trim(), "desc"));
                Ok((key.trim().to_owned(), descending(dir.trim())?))
            })
            .collect();
    }
    let dir = query.get("sort_dir").map(descending).transpose()?;
    Ok(query.get("sort_key").map(|key| (key.to_owned(), dir.unwrap_or(true))).into_iter().collect())
}

/// A value of a column, comparable with others of the same column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// A number or a moment.
    Number(i64),
    /// Text.
    Text(String),
}

/// Sorts by the keys, then newest first, then by id descending (Cinder's own order).
pub fn sort_by<T>(
    items: &mut [T],
    keys: &[(String, bool)],
    cell: impl Fn(&T, &str) -> Cell,
    newest: impl Fn(&T) -> (Timestamp, String),
) {
    items.sort_by(|a, b| {
        for (key, descending) in keys {
            let order = cell(a, key).cmp(&cell(b, key));
            let order = if *descending { order.reverse() } else { order };
            if order != Ordering::Equal {
                return order;
            }
        }
        newest(b).cmp(&newest(a))
    });
}

/// Filters by name; parameters of paging are left out.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    /// Exact values.
    pub exact: Vec<(String, String)>,
    /// `name~` and the like: contained text.
    pub like: Vec<(String, String)>,
    /// Wanted metadata.
    pub metadata: BTreeMap<String, String>,
    /// Wanted image metadata.
    pub image_metadata: BTreeMap<String, String>,
    /// Of all projects.
    pub all_tenants: bool,
}

impl Filters {
    /// Reads filters in `known`; others are ignored, as Cinder does for users. `like`: whether `name~` is understood.
    ///
    /// # Errors
    /// `BadRequest` naming the parameter.
    pub fn parse(query: &Query, known: &[&str], like: bool) -> Result<Self> {
        let mut filters =
            Filters { all_tenants: query.bool("all_tenants")?.unwrap_or(false), ..Filters::default() };
        for (key, value) in query.iter() {
            let plain = match key {
                "display_name" => "name",
                "tenant_id" => "project_id",
                other => other,
            };
            if plain == "metadata" {
                filters.metadata.extend(python_dict("metadata", value)?);
            } else if plain == "glance_metadata" {
                filters.image_metadata.extend(python_dict("glance_metadata", value)?);
            } else if known.contains(&plain) {
                filters.exact.push((plain.to_owned(), value.to_owned()));
            } else if let Some(name) = plain.strip_suffix('~').filter(|n| like && known.contains(n)) {
                filters.like.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok(filters)
    }

    /// Whether an item passes; `cell` gives its value of a name as text.
    pub fn pass(&self, metadata: &BTreeMap<String, String>, cell: impl Fn(&str) -> String) -> bool {
        self.exact.iter().all(|(key, value)| match key.as_str() {
            "bootable" | "multiattach" => cell(key).eq_ignore_ascii_case(value),
            _ => cell(key) == *value,
        }) && self.like.iter().all(|(key, value)| cell(key).contains(value.as_str()))
            && self.metadata.iter().all(|(key, value)| metadata.get(key) == Some(value))
    }
}
