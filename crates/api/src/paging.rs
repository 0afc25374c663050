//! Pages of a list: `limit`, `marker`, sorting, and the links to the next page in each dialect's form.

use base::{Error, Result};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::dialect::Paging;
use crate::{Ctx, Query, Reply, Request};

/// A sort direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dir {
    /// Ascending.
    Asc,
    /// Descending.
    Desc,
}

/// Which page of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// At most so many items (already cut to the service's maximum).
    pub limit: usize,
    /// Whether the caller asked for a limit.
    pub limited: bool,
    /// Id of the last item of the page before.
    pub marker: Option<String>,
    /// Neutron's `page_reverse`: the page before the marker.
    pub reverse: bool,
    /// Sort keys with directions, as asked; the service checks the names.
    pub sort: Vec<(String, Dir)>,
}

impl Page {
    /// Reads `limit`, `marker`, `page_reverse`, and either `sort_key`/`sort_dir` pairs or `sort=key:dir,key`.
    ///
    /// # Errors
    /// `BadRequest` naming the parameter.
    pub fn from_query(query: &Query, max_limit: usize) -> Result<Self> {
        let asked = match query.get("limit") {
            None => None,
            Some(text) => Some(
                text.parse::<i64>().ok().filter(|n| *n >= 0 && !text.starts_with('+')).ok_or_else(|| {
                    Error::bad_request(format!(
                        "Invalid input for query parameter 'limit': '{text}' is not a non-negative integer."
                    ))
                })?,
            ),
        };
        // Services take limit=0 as "no limit of my own".
        let limit = match asked {
            None | Some(0) => max_limit,
            Some(n) => usize::try_from(n).unwrap_or(max_limit).min(max_limit),
        };
        let marker = query.get("marker").filter(|m| !m.is_empty()).map(str::to_owned);
        if marker.as_ref().is_some_and(|m| m.len() > 255) {
            return Err(Error::bad_request("Invalid input for query parameter 'marker': it is too long."));
        }
        let reverse = query.bool("page_reverse")?.unwrap_or(false);
        Ok(Page { limit, limited: asked.is_some_and(|n| n > 0), marker, reverse, sort: sort_of(query)? })
    }

    /// Checks the sort keys against those the service can sort by.
    ///
    /// # Errors
    /// `BadRequest` naming the key.
    pub fn sort_within(&self, allowed: &[&str]) -> Result<()> {
        match self.sort.iter().find(|(key, _)| !allowed.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => Err(Error::bad_request(format!(
                "Invalid input for query parameter 'sort_key': '{key}' is not a sort key."
            ))),
        }
    }
}

fn sort_of(query: &Query) -> Result<Vec<(String, Dir)>> {
    let direction = |text: &str| match text.to_ascii_lowercase().as_str() {
        "asc" => Ok(Dir::Asc),
        "desc" => Ok(Dir::Desc),
        _ => Err(Error::bad_request(format!(
            "Invalid input for query parameter 'sort_dir': '{text}' is neither 'asc' nor 'desc'."
        ))),
    };
    let mut sort = Vec::new();
    if let Some(text) = query.get("sort") {
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, dir) = part.split_once(':').unwrap_or((part, "asc"));
            sort.push((key.to_owned(), direction(dir)?));
        }
        return Ok(sort);
    }
    let dirs: Vec<&str> = query.all("sort_dir").collect();
    for dir in &dirs {
        direction(dir)?;
    }
    for (i, key) in query.all("sort_key").enumerate() {
        let dir = dirs.get(i).or(dirs.last()).copied().unwrap_or("asc");
        sort.push((key.to_owned(), direction(dir)?));
    }
    if sort.len() > 16 {
        return Err(Error::bad_request("Invalid input for query parameter 'sort_key': too many sort keys."));
    }
    Ok(sort)
}

impl<S> Ctx<S> {
    /// The URL of this list's page after the item `marker`, with the other parameters as they were.
    pub fn next_url<T>(&self, req: &Request<T>, page: &Page, marker: &str) -> String {
        let limit = page.limit.to_string();
        let mut with = vec![("marker", marker)];
        if page.limited {
            with.insert(0, ("limit", limit.as_str()));
        }
        let query = req.query_pairs().rebuild(&["limit", "marker", "page_reverse"], &with);
        self.url(&format!("{}?{query}", req.path()))
    }

    /// A list's answer: `{"<key>": items}` with this dialect's link to the next page, which is given where `next` is
    /// the id of the last item and there are more after it.
    pub fn list<T, I: Serialize>(
        &self,
        req: &Request<T>,
        page: &Page,
        key: &str,
        items: &[I],
        next: Option<&str>,
    ) -> Reply {
        let next = next.map(|marker| self.next_url(req, page, marker));
        let first = matches!(self.dialect.paging, Paging::Glance).then(|| {
            let query = req.query_pairs().rebuild(&["marker"], &[]);
            if query.is_empty() { req.path().to_owned() } else { format!("{}?{query}", req.path()) }
        });
        let own = matches!(self.dialect.paging, Paging::Keystone).then(|| {
            let query = req.query_pairs().rebuild(&[], &[]);
            let path =
                if query.is_empty() { req.path().to_owned() } else { format!("{}?{query}", req.path()) };
            self.url(&path)
        });
        let base = self.base_url();
        Reply::json(&List { paging: self.dialect.paging, key, items, next, first, own, base })
    }
}

struct List<'a, I> {
    paging: Paging,
    key: &'a str,
    items: &'a [I],
    next: Option<String>,
    first: Option<String>,
    own: Option<String>,
    base: &'a str,
}

#[derive(Serialize)]
struct Link<'a> {
    rel: &'a str,
    href: &'a str,
}

#[derive(Serialize)]
struct KeystoneLinks<'a> {
    next: Option<&'a str>,
    #[serde(rename = "self")]
    own: &'a str,
    previous: Option<&'a str>,
}

impl<I: Serialize> Serialize for List<'_, I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(self.key, self.items)?;
        match self.paging {
            Paging::Links => {
                if let Some(next) = &self.next {
                    map.serialize_entry(&format!("{}_links", self.key), &[Link { rel: "next", href: next }])?;
                }
            }
            Paging::Glance => {
                // Glance's links are paths, not URLs.
                if let Some(next) = &self.next {
                    map.serialize_entry("next", next.strip_prefix(self.base).unwrap_or(next))?;
                }
                if let Some(first) = &self.first {
                    map.serialize_entry("first", first)?;
                }
                map.serialize_entry("schema", &format!("/v2/schemas/{}", self.key))?;
            }
            Paging::Keystone => {
                let own = self.own.as_deref().unwrap_or("");
                map.serialize_entry(
                    "links",
                    &KeystoneLinks { next: self.next.as_deref(), own, previous: None },
                )?;
            }
            Paging::None => {}
        }
        map.end()
    }
}
