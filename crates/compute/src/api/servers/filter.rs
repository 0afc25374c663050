//! Which servers a list shows, and in which order.

use std::collections::BTreeSet;

use ::api::paging::Dir;
use ::api::{Ctx, Page, Query, Target};
use base::{Error, ProjectId, Result, Timestamp};
use regex_automata::meta::Regex;

use crate::State;
use crate::logic::state::{STATUSES, status, vm_state};
use crate::model::Server;

/// A list's filters, read and checked.
#[derive(Default)]
pub(super) struct Filter {
    /// `None`: all projects.
    pub project: Option<ProjectId>,
    /// Nothing can match.
    pub nothing: bool,
    /// Addresses must be asked for.
    pub ip: Option<Regex>,
    pub ip6: Option<Regex>,
    name: Option<Regex>,
    statuses: BTreeSet<String>,
    image: Option<String>,
    flavor: Option<String>,
    host: Option<String>,
    zone: Option<String>,
    ids: Option<BTreeSet<String>>,
    user: Option<String>,
    reservation: Option<String>,
    key_name: Option<String>,
    description: Option<Regex>,
    hostname: Option<Regex>,
    locked: Option<bool>,
    vm_state: Option<String>,
    task_state: Option<String>,
    power_state: Option<u8>,
    config_drive: Option<bool>,
    /// Servers that changed then or later.
    pub(super) changed_since: Option<Timestamp>,
    changed_before: Option<Timestamp>,
    tags: Vec<String>,
    tags_any: Vec<String>,
    not_tags: Vec<String>,
    not_tags_any: Vec<String>,
}

/// A regular expression as databases take it; what is none is taken as plain text.
fn pattern(text: &str) -> Result<Regex> {
    if text.len() > 1024 {
        return Err(Error::bad_request("Invalid input for query parameter 'name': it is too long."));
    }
    let small = Regex::config().nfa_size_limit(Some(1 << 20)).hybrid_cache_capacity(1 << 20);
    let build = |t: &str| Regex::builder().configure(small.clone()).build(t).ok();
    build(text)
        .or_else(|| build(&escape(text)))
        .ok_or_else(|| Error::bad_request("Invalid regular expression."))
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn time(query: &Query, key: &str) -> Result<Option<Timestamp>> {
    let Some(text) = query.get(key) else { return Ok(None) };
    let moment = Timestamp::parse(text).or_else(|| Timestamp::parse(&text.replacen(' ', "+", 1)));
    moment.map(Some).ok_or_else(|| {
        Error::bad_request(format!(
            "Invalid input for query parameters {key}. Value: {text}. '{text}' is not a 'date-time'"
        ))
    })
}

fn list(query: &Query, key: &str) -> Vec<String> {
    query
        .get(key)
        .map(|t| t.split(',').filter(|p| !p.is_empty()).map(str::to_owned).collect())
        .unwrap_or_default()
}

/// Query parameters a list knows.
const KNOWN: &[&str] = &[
    "access_ip_v4",
    "access_ip_v6",
    "all_tenants",
    "auto_disk_config",
    "availability_zone",
    "block_device_mapping",
    "changes-before",
    "changes-since",
    "config_drive",
    "created_at",
    "deleted",
    "description",
    "display_description",
    "display_name",
    "flavor",
    "host",
    "hostname",
    "image",
    "image_ref",
    "info_cache",
    "instance_type_id",
    "ip",
    "ip6",
    "kernel_id",
    "key_name",
    "launch_index",
    "launched_at",
    "limit",
    "locked",
    "locked_by",
    "marker",
    "metadata",
    "name",
    "node",
    "not-tags",
    "not-tags-any",
    "pci_devices",
    "power_state",
    "progress",
    "project_id",
    "ramdisk_id",
    "reservation_id",
    "root_device_name",
    "security_groups",
    "services",
    "soft_deleted",
    "sort_dir",
    "sort_key",
    "status",
    "system_metadata",
    "tags",
    "tags-any",
    "task_state",
    "tenant_id",
    "terminated_at",
    "user_id",
    "uuid",
    "vm_state",
];

impl Filter {
    pub(super) fn read(cx: &Ctx<State>, query: &Query) -> Result<Self> {
        if cx.since(2, 75)
            && let Some((key, _)) = query.iter().find(|(k, _)| !KNOWN.contains(k))
        {
            return Err(Error::bad_request(format!(
                "Invalid query string parameters: Additional properties are not allowed ('{key}' was unexpected)"
            )));
        }
        let admin = cx.is_admin();
        let all = query.get("all_tenants").map_or(Ok(false), |text| {
            // The bare key means yes.
            if text.is_empty() { Ok(true) } else { ::api::types::parse_bool(text).ok_or(()) }
        });
        let all = all.map_err(|()| {
            Error::bad_request("Invalid input for query parameter 'all_tenants': not a boolean.")
        })?;
        let mut filter = Filter { project: cx.auth().project_id().cloned(), ..Filter::default() };
        if all {
            cx.allow_rule("os_compute_api:servers:index:get_all_tenants", &Target::none())?;
            filter.project = query.get("project_id").or_else(|| query.get("tenant_id")).map(ProjectId::new);
        }
        if !all && filter.project.is_none() {
            return Err(Error::forbidden("This operation needs a token that is scoped to a project."));
        }
        filter.common(cx, query)?;
        if admin || cx.since(2, 83) {
            filter.extended(query);
        }
        if admin {
            filter.host = query.get("host").or_else(|| query.get("node")).map(str::to_owned);
            filter.user = query.get("user_id").map(str::to_owned);
            filter.reservation = query.get("reservation_id").map(str::to_owned);
        }
        if cx.since(2, 26) {
            filter.tags = list(query, "tags");
            filter.tags_any = list(query, "tags-any");
            filter.not_tags = list(query, "not-tags");
            filter.not_tags_any = list(query, "not-tags-any");
        }
        if cx.since(2, 73) {
            filter.locked = query.bool("locked")?;
        }
        // Deleted servers are not kept.
        let deleted = query.bool("deleted").unwrap_or(None);
        filter.nothing |= admin && deleted == Some(true);
        Ok(filter)
    }

    fn common(&mut self, cx: &Ctx<State>, query: &Query) -> Result<()> {
        self.name = query
            .get("name")
            .or_else(|| query.get("display_name"))
            .filter(|t| !t.is_empty())
            .map(pattern)
            .transpose()?;
        self.ip = query.get("ip").map(pattern).transpose()?;
        self.ip6 = query.get("ip6").filter(|_| cx.since(2, 5) || cx.is_admin()).map(pattern).transpose()?;
        for text in query.all("status") {
            let word = text.to_ascii_uppercase();
            if STATUSES.contains(&word.as_str()) {
                self.nothing |= word == "DELETED" && !cx.is_admin();
                self.statuses.insert(word);
            } else if cx.since(2, 38) {
                return Err(Error::bad_request(format!("Invalid status value: {text}")));
            } else {
                self.nothing = true;
            }
        }
        let last = |key: &str| query.get(key).map(|t| t.rsplit('/').next().unwrap_or("").to_owned());
        self.image = last("image").or_else(|| last("image_ref"));
        self.flavor = last("flavor").or_else(|| last("instance_type_id"));
        self.changed_since = time(query, "changes-since")?;
        if cx.since(2, 66) {
            self.changed_before = time(query, "changes-before")?;
            if let (Some(since), Some(before)) = (self.changed_since, self.changed_before)
                && since > before
            {
                return Err(Error::bad_request(
                    "The value of changes-since must be less than or equal to changes-before.",
                ));
            }
        }
        if let Some(text) = query.get("uuid") {
            self.ids = Some(BTreeSet::from([text.to_owned()]));
        }
        Ok(())
    }

    fn extended(&mut self, query: &Query) {
        let own = |key: &str| query.get(key).map(str::to_owned);
        self.zone = own("availability_zone");
        self.key_name = own("key_name");
        self.vm_state = own("vm_state");
        self.task_state = own("task_state");
        self.power_state = query.get("power_state").and_then(|t| t.parse().ok());
        self.config_drive = query.get("config_drive").and_then(::api::types::parse_bool);
        self.description = query.get("description").and_then(|t| pattern(t).ok());
        self.hostname = query.get("hostname").and_then(|t| pattern(t).ok());
    }

    /// Whether the row passes (addresses aside).
    pub(super) fn accepts(&self, s: &Server) -> bool {
        let is = |want: &Option<String>, have: Option<&str>| want.as_deref().is_none_or(|w| have == Some(w));
        let like = |want: &Option<Regex>, have: &str| want.as_ref().is_none_or(|r| r.is_match(have));
        let image = s.image.as_ref().map(|i| i.image.id.to_string());
        let zone = s.zone.as_deref().or(s.zone_wanted.as_deref());
        like(&self.name, &s.name)
            && (self.statuses.is_empty() || self.statuses.contains(status(s)))
            && is(&self.image, image.as_deref())
            && is(&self.flavor, Some(s.flavor_id.as_str()))
            && is(&self.host, s.host_name.as_deref())
            && is(&self.zone, zone)
            && is(&self.user, Some(s.user_id.as_str()))
            && is(&self.reservation, Some(&s.reservation_id))
            && is(&self.key_name, s.key.as_ref().map(|(n, _)| n.as_str()))
            && is(&self.vm_state, Some(vm_state(s)))
            && is(&self.task_state, s.task.as_deref())
            && like(&self.description, s.description.as_deref().unwrap_or(""))
            && like(&self.hostname, &s.hostname)
            && self.power_state.is_none_or(|p| s.power_state == p)
            && self.config_drive.is_none_or(|c| s.config_drive == c)
            && self.locked.is_none_or(|l| s.locked.is_some() == l)
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&s.id.to_string()))
            && self.changed_since.is_none_or(|t| s.meta.updated_at >= t)
            && self.changed_before.is_none_or(|t| s.meta.updated_at <= t)
            && self.tags.iter().all(|t| s.tags.contains(t))
            && (self.tags_any.is_empty() || self.tags_any.iter().any(|t| s.tags.contains(t)))
            && (self.not_tags.is_empty() || !self.not_tags.iter().all(|t| s.tags.contains(t)))
            && !self.not_tags_any.iter().any(|t| s.tags.contains(t))
    }
}

const SORT_KEYS: &[&str] = &[
    "access_ip_v4",
    "access_ip_v6",
    "auto_disk_config",
    "availability_zone",
    "config_drive",
    "created_at",
    "display_description",
    "display_name",
    "host",
    "hostname",
    "image_ref",
    "instance_type_id",
    "kernel_id",
    "key_name",
    "launch_index",
    "launched_at",
    "locked",
    "locked_by",
    "node",
    "power_state",
    "progress",
    "project_id",
    "ramdisk_id",
    "root_device_name",
    "task_state",
    "terminated_at",
    "updated_at",
    "user_id",
    "uuid",
    "vm_state",
];

/// Sorts as asked; newest first otherwise.
pub(super) fn sort(servers: &mut [Server], page: &Page) -> Result<()> {
    page.sort_within(SORT_KEYS)?;
    let newest = [("created_at".to_owned(), Dir::Desc), ("uuid".to_owned(), Dir::Desc)];
    let keys = if page.sort.is_empty() { newest.as_slice() } else { page.sort.as_slice() };
    servers.sort_by(|a, b| {
        for (key, dir) in keys {
            let order = match key.as_str() {
                "created_at" => a.meta.created_at.cmp(&b.meta.created_at),
                "updated_at" => a.meta.updated_at.cmp(&b.meta.updated_at),
                "launched_at" => a.launched_at.cmp(&b.launched_at),
                "display_name" => a.name.cmp(&b.name),
                "display_description" => a.description.cmp(&b.description),
                "hostname" => a.hostname.cmp(&b.hostname),
                "host" | "node" => a.host_name.cmp(&b.host_name),
                "availability_zone" => a.zone.cmp(&b.zone),
                "instance_type_id" => a.flavor_id.cmp(&b.flavor_id),
                "key_name" => a.key.cmp(&b.key),
                "launch_index" => a.launch_index.cmp(&b.launch_index),
                "power_state" => a.power_state.cmp(&b.power_state),
                "project_id" => a.project_id.cmp(&b.project_id),
                "task_state" => a.task.cmp(&b.task),
                "user_id" => a.user_id.cmp(&b.user_id),
                "vm_state" => vm_state(a).cmp(vm_state(b)),
                "uuid" => a.id.cmp(&b.id),
                _ => std::cmp::Ordering::Equal,
            };
            let order = if *dir == Dir::Desc { order.reverse() } else { order };
            if order.is_ne() {
                return order;
            }
        }
        b.id.cmp(&a.id)
    });
    Ok(())
}

/// The part of the sorted list that the page shows.
pub(super) fn cut(mut servers: Vec<Server>, page: &Page) -> Result<Vec<Server>> {
    if let Some(marker) = &page.marker {
        let at = servers.iter().position(|s| s.id.to_string() == *marker);
        let at = at.ok_or_else(|| Error::bad_request(format!("marker [{marker}] not found")))?;
        servers.drain(..=at);
    }
    servers.truncate(page.limit);
    Ok(servers)
}
