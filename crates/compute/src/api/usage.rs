//! `os-simple-tenant-usage`: how long which servers ran in a span of time, from living servers and from what is kept
//! of deleted ones. A server counts from when it first ran.

use std::collections::BTreeMap;

use ::api::{Ctx, Op, Page, Reply, Request, Target};
use base::{Error, ProjectId, Result, Timestamp};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::lists::{cut, own, strict};
use super::{ADMIN, READER, wire};
use crate::State;
use crate::model::{PastServer, Server};

/// Operations on usage.
pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.1/os-simple-tenant-usage", "os_compute_api:os-simple-tenant-usage:list", list)
            .default_rule(ADMIN)
            .summary("Usage of all projects"),
        Op::get(
            "/v2.1/os-simple-tenant-usage/{project_id}",
            "os_compute_api:os-simple-tenant-usage:show",
            show,
        )
        .default_rule(READER)
        .summary("Usage of a project"),
    ]
}

/// A server's run, living or past.
struct Run {
    id: String,
    project: ProjectId,
    name: String,
    flavor: String,
    vcpus: u32,
    ram: u64,
    disk: u64,
    started: Timestamp,
    ended: Option<Timestamp>,
    state: &'static str,
}

impl From<Server> for Run {
    fn from(server: Server) -> Self {
        Run {
            id: server.id.to_string(),
            project: server.project_id,
            name: server.name,
            flavor: server.flavor_name,
            vcpus: server.size.vcpus,
            ram: server.size.ram,
            disk: server.size.disk + server.size.ephemeral,
            started: server.launched_at.unwrap_or(server.meta.created_at),
            ended: None,
            state: server.vm_state.as_str(),
        }
    }
}

impl From<PastServer> for Run {
    fn from(past: PastServer) -> Self {
        Run {
            id: past.id.to_string(),
            project: past.project_id,
            name: past.name,
            flavor: past.flavor,
            vcpus: past.vcpus,
            ram: past.ram,
            disk: past.disk,
            started: past.started_at,
            ended: Some(past.ended_at),
            state: "terminated",
        }
    }
}

/// A span of time and the moment of asking.
#[derive(Clone, Copy)]
struct Span {
    start: Timestamp,
    stop: Timestamp,
    now: Timestamp,
}

impl Run {
    fn touches(&self, span: &Span) -> bool {
        self.started <= span.stop && self.ended.is_none_or(|ended| ended >= span.start)
    }

    /// Hours within the span.
    fn hours(&self, span: &Span) -> f64 {
        let from = self.started.max(span.start);
        let to = self.ended.unwrap_or(span.now).min(span.stop).max(from);
        (to.0 - from.0) as f64 / 3_600_000_000.0
    }

    fn view(&self, span: &Span) -> Value {
        json!({
            "instance_id": self.id,
            "name": self.name,
            "hours": self.hours(span),
            "tenant_id": self.project,
            "flavor": self.flavor,
            "vcpus": self.vcpus,
            "memory_mb": self.ram,
            "local_gb": self.disk,
            "started_at": self.started.iso_naive(),
            "ended_at": self.ended.map(Timestamp::iso_naive),
            "state": self.state,
            "uptime": (self.ended.unwrap_or(span.now).0 - self.started.0).max(0) / 1_000_000,
        })
    }
}

/// Sums of a project.
#[derive(Default)]
struct Sum {
    hours: f64,
    vcpus: f64,
    ram: f64,
    disk: f64,
    servers: Vec<Value>,
}

impl Sum {
    fn of<'a>(runs: impl Iterator<Item = &'a Run>, span: &Span) -> Self {
        let mut sum = Sum::default();
        for run in runs {
            let hours = run.hours(span);
            sum.hours += hours;
            sum.vcpus += hours * f64::from(run.vcpus);
            sum.ram += hours * run.ram as f64;
            sum.disk += hours * run.disk as f64;
            sum.servers.push(run.view(span));
        }
        sum
    }

    fn view(self, project: &ProjectId, span: &Span, detailed: bool) -> Value {
        let mut map = Map::new();
        for (key, value) in [
            ("tenant_id", json!(project)),
            ("start", json!(span.start.iso_naive())),
            ("stop", json!(span.stop.iso_naive())),
            ("total_hours", json!(self.hours)),
            ("total_vcpus_usage", json!(self.vcpus)),
            ("total_memory_mb_usage", json!(self.ram)),
            ("total_local_gb_usage", json!(self.disk)),
        ] {
            map.insert(key.into(), value);
        }
        if detailed {
            map.insert("server_usages".into(), json!(self.servers));
        }
        Value::Object(map)
    }
}

fn moment(text: &str) -> Result<Timestamp> {
    // Three forms, one with a blank; never a zone.
    let bad = || Error::bad_request("Datetime is in invalid format");
    if text.ends_with(['Z', 'z']) || text.len() < 19 {
        return Err(bad());
    }
    Timestamp::parse(&text.replacen(' ', "T", 1)).ok_or_else(bad)
}

fn span(cx: &Ctx<State>, req: &Request<()>) -> Result<Span> {
    let now = cx.now();
    let query = req.query_pairs();
    let read = |key: &str| query.get(key).map_or(Ok(now), moment);
    let (start, stop) = (read("start")?, read("end")?);
    if start > stop {
        return Err(Error::bad_request(
            "Invalid start time. The start time cannot occur after the end time.",
        ));
    }
    Ok(Span { start, stop, now })
}

/// Runs that touch the span, of a project or all, in the order of pages.
fn runs(tx: &mut Tx<'_>, project: Option<&ProjectId>, span: &Span) -> Result<Vec<Run>> {
    let base = || match project {
        Some(id) => Query::new().eq("project_id", id),
        None => Query::new(),
    };
    let living = tx.list::<Server>(&base())?.into_iter().filter(|s| s.launched_at.is_some()).map(Run::from);
    let past = tx.list::<PastServer>(&base().ge("ended_at", span.start))?.into_iter().map(Run::from);
    let mut runs: Vec<Run> = living.chain(past).filter(|run| run.touches(span)).collect();
    runs.sort_by(|a, b| (&a.project, a.started, &a.id).cmp(&(&b.project, b.started, &b.id)));
    Ok(runs)
}

/// The page that is asked for; versions before 2.40 have none.
fn page(cx: &Ctx<State>, req: &Request<()>) -> Result<Page> {
    let mut page = req.page(cx.config.max_limit)?;
    if !cx.since(2, 40) {
        (page.limit, page.limited, page.marker) = (usize::MAX, false, None);
    }
    Ok(page)
}

const PARAMETERS: &[&str] = &["start", "end", "detailed", "limit", "marker"];

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    strict(&cx, &req, PARAMETERS)?;
    let (page, span) = (page(&cx, &req)?, span(&cx, &req)?);
    let detailed = req.query_pairs().get("detailed") == Some("1");
    let found = cx.store().read(move |tx| runs(tx, None, &span)).await?;
    let (found, next) = cut(found, &page, |run| run.id.clone())?;
    let mut projects: BTreeMap<&ProjectId, Vec<&Run>> = BTreeMap::new();
    for run in &found {
        projects.entry(&run.project).or_default().push(run);
    }
    let items: Vec<Value> = projects
        .into_iter()
        .map(|(id, runs)| Sum::of(runs.into_iter(), &span).view(id, &span, detailed))
        .collect();
    Ok(cx.list(&req, &page, "tenant_usages", &items, next.as_deref()))
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    strict(&cx, &req, PARAMETERS)?;
    let id = wire::project(req.param("project_id"))?;
    // Projects are not ours: whether one exists is not told.
    cx.allow(&Target::project(&id).visible(true))?;
    let (page, span) = (page(&cx, &req)?, span(&cx, &req)?);
    let of = id.clone();
    let found = cx.store().read(move |tx| runs(tx, Some(&of), &span)).await?;
    let (found, next) = cut(found, &page, |run| run.id.clone())?;
    let mut map = Map::new();
    let usage =
        if found.is_empty() { json!({}) } else { Sum::of(found.iter(), &span).view(&id, &span, true) };
    map.insert("tenant_usage".into(), usage);
    if let Some(next) = next {
        let href = cx.next_url(&req, &page, &next);
        map.insert("tenant_usage_links".into(), json!([{"rel": "next", "href": href}]));
    }
    Ok(Reply::json(&map))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(started: i64, ended: Option<i64>) -> Run {
        Run {
            id: "a".into(),
            project: ProjectId::new("p"),
            name: "n".into(),
            flavor: "f".into(),
            vcpus: 2,
            ram: 1024,
            disk: 10,
            started: Timestamp::from_secs(started),
            ended: ended.map(Timestamp::from_secs),
            state: "active",
        }
    }

    #[test]
    fn only_hours_within_the_span_count() {
        let at = |hours: i64| hours * 3600;
        let span = Span {
            start: Timestamp::from_secs(at(10)),
            stop: Timestamp::from_secs(at(20)),
            now: Timestamp::from_secs(at(15)),
        };
        for (started, ended, touches, hours) in [
            (12, Some(14), true, 2.0),
            (5, Some(12), true, 2.0),
            (5, None, true, 5.0),
            (1, Some(5), false, 0.0),
            (14, None, true, 1.0),
        ] {
            let run = run(at(started), ended.map(at));
            assert_eq!(run.touches(&span), touches, "{started} {ended:?}");
            assert!((run.hours(&span) - hours).abs() < 1e-9, "{started} {ended:?}: {}", run.hours(&span));
        }
    }

    #[test]
    fn moments_have_three_forms() {
        for good in ["2026-01-02T03:04:05", "2026-01-02T03:04:05.678", "2026-01-02 03:04:05.678901"] {
            assert!(moment(good).is_ok(), "{good}");
        }
        for bad in ["2026-01-02", "yesterday", "2026-01-02T03:04:05Z", "", "2026-13-02T03:04:05"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }
}
