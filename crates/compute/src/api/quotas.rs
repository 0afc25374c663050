//! Limits of projects (`os-quota-sets`) and their defaults (`os-quota-class-sets`).
//!
//! A limit is the built-in one, unless the operator's configuration has another, unless the class `default` has
//! another, unless the project has its own. Limits of single users do not exist: a project's limits bind its users.

use std::collections::BTreeMap;

use ::api::types::{LaxBool, LaxInt};
use ::api::{Ctx, JsonSchema, Mv, Op, Reply, Request, Target};
use base::{Error, ProjectId, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::lists::{own, strict};
use super::{ADMIN, READER};
use crate::State;
use crate::logic::quota::{RESOURCES, effective};
use crate::model::{QuotaSet, ServerGroup, Usage};

/// Id of the row of the class `default`.
const DEFAULT_CLASS: &str = "class:default";
/// Resources that quota classes show only since 2.50.
const GROUPS: &[&str] = &["server_groups", "server_group_members"];

/// Operations on limits.
pub fn ops() -> Vec<Op<State>> {
    const ONE: &str = "/v2.1/os-quota-sets/{project_id}";
    const CLASS: &str = "/v2.1/os-quota-class-sets/{name}";
    vec![
        Op::get(ONE, "os_compute_api:os-quota-sets:show", show)
            .default_rule(READER)
            .summary("Show the limits of a project"),
        Op::get("/v2.1/os-quota-sets/{project_id}/detail", "os_compute_api:os-quota-sets:detail", detail)
            .default_rule(READER)
            .summary("Show the limits of a project and what it uses"),
        Op::get(
            "/v2.1/os-quota-sets/{project_id}/defaults",
            "os_compute_api:os-quota-sets:defaults",
            defaults,
        )
        .default_rule("@")
        .summary("Show default limits"),
        Op::put(ONE, "os_compute_api:os-quota-sets:update", update)
            .default_rule(ADMIN)
            .summary("Set limits of a project"),
        Op::delete(ONE, "os_compute_api:os-quota-sets:delete", delete)
            .status(202)
            .default_rule(ADMIN)
            .summary("Return a project to the default limits"),
        Op::get(CLASS, "os_compute_api:os-quota-class-sets:show", show_class)
            .default_rule(ADMIN)
            .summary("Show the limits of a quota class"),
        Op::put(CLASS, "os_compute_api:os-quota-class-sets:update", update_class)
            .default_rule(ADMIN)
            .summary("Set the limits of a quota class"),
    ]
}

/// Id of a project's row.
fn row_of(project: &ProjectId) -> String {
    format!("project:{project}")
}

/// The limits of a project; of none: the defaults. `operator`: the configuration's.
///
/// # Errors
/// From the store.
pub(crate) fn effective_limits(
    tx: &mut Tx<'_>,
    operator: &BTreeMap<String, i64>,
    project: Option<&ProjectId>,
) -> Result<BTreeMap<String, i64>> {
    let mut rows = Vec::new();
    for id in std::iter::once(DEFAULT_CLASS.to_owned()).chain(project.map(row_of)) {
        rows.extend(tx.get::<QuotaSet>(&id)?);
    }
    let mut layers = vec![operator];
    layers.extend(rows.iter().map(|row| &row.limits));
    Ok(effective(&layers))
}

/// What a project uses of the limits that are counted for projects.
///
/// # Errors
/// From the store.
pub(crate) fn in_use(tx: &mut Tx<'_>, project: &ProjectId) -> Result<BTreeMap<&'static str, u64>> {
    let usage = tx.get::<Usage>(project)?;
    let of = |f: fn(&Usage) -> u64| usage.as_ref().map_or(0, f);
    let groups = tx.count::<ServerGroup>(&Query::new().eq("project_id", project))?;
    Ok(BTreeMap::from([
        ("instances", of(|u| u.instances)),
        ("cores", of(|u| u.cores)),
        ("ram", of(|u| u.ram)),
        ("server_groups", groups),
    ]))
}

/// Resources that this microversion shows.
fn shown(cx: &Ctx<State>) -> impl Iterator<Item = &'static str> {
    let mv = cx.mv;
    RESOURCES
        .iter()
        .filter(move |(_, _, last)| last.is_none_or(|(major, minor)| mv <= Mv(major, minor)))
        .map(|(name, _, _)| *name)
}

fn set(cx: &Ctx<State>, id: Option<&str>, limits: &BTreeMap<String, i64>) -> Map<String, Value> {
    let mut map = Map::new();
    if let Some(id) = id {
        map.insert("id".into(), json!(id));
    }
    for name in shown(cx) {
        map.insert(name.into(), json!(limits.get(name).copied().unwrap_or(-1)));
    }
    map
}

/// The project in the path, if the caller may. Projects are not ours: whether one exists is not told.
fn project<T>(cx: &Ctx<State>, req: &Request<T>) -> Result<ProjectId> {
    strict(cx, req, &["user_id"])?;
    let text = req.param("project_id");
    let id: ProjectId =
        text.parse().map_err(|_| Error::bad_request(format!("Project ID {text} is not a valid project.")))?;
    cx.allow(&Target::project(&id).visible(true))?;
    Ok(id)
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = project(&cx, &req)?;
    let (operator, of) = (cx.config.quota.clone(), id.clone());
    let limits = cx.store().read(move |tx| effective_limits(tx, &operator, Some(&of))).await?;
    Ok(Reply::json(&json!({"quota_set": set(&cx, Some(id.as_str()), &limits)})))
}

async fn detail(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = project(&cx, &req)?;
    let (operator, of) = (cx.config.quota.clone(), id.clone());
    let (limits, used) = cx
        .store()
        .read(move |tx| Ok((effective_limits(tx, &operator, Some(&of))?, in_use(tx, &of)?)))
        .await?;
    let mut map = Map::new();
    map.insert("id".into(), json!(id));
    for name in shown(&cx) {
        let limit = limits.get(name).copied().unwrap_or(-1);
        let used = used.get(name).copied().unwrap_or(0);
        map.insert(name.into(), json!({"in_use": used, "limit": limit, "reserved": 0}));
    }
    Ok(Reply::json(&json!({"quota_set": map})))
}

async fn defaults(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = project(&cx, &req)?;
    let operator = cx.config.quota.clone();
    let limits = cx.store().read(move |tx| effective_limits(tx, &operator, None)).await?;
    Ok(Reply::json(&json!({"quota_set": set(&cx, Some(id.as_str()), &limits)})))
}

type Limit = Option<LaxInt<-1, 0x7fff_ffff>>;

/// Limits to set.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(default)]
    instances: Limit,
    #[serde(default)]
    cores: Limit,
    #[serde(default)]
    ram: Limit,
    #[serde(default)]
    metadata_items: Limit,
    #[serde(default)]
    key_pairs: Limit,
    #[serde(default)]
    server_groups: Limit,
    #[serde(default)]
    server_group_members: Limit,
    #[serde(default)]
    injected_files: Limit,
    #[serde(default)]
    injected_file_content_bytes: Limit,
    #[serde(default)]
    injected_file_path_bytes: Limit,
    #[serde(default)]
    fixed_ips: Limit,
    #[serde(default)]
    floating_ips: Limit,
    #[serde(default)]
    security_group_rules: Limit,
    #[serde(default)]
    security_groups: Limit,
    /// Sets limits below what is used. Not for classes.
    #[serde(default)]
    force: Option<LaxBool>,
}

impl Limits {
    /// What was sent, if this microversion has it.
    fn sent(&self, cx: &Ctx<State>) -> Result<BTreeMap<String, i64>> {
        let all = [
            ("instances", self.instances),
            ("cores", self.cores),
            ("ram", self.ram),
            ("metadata_items", self.metadata_items),
            ("key_pairs", self.key_pairs),
            ("server_groups", self.server_groups),
            ("server_group_members", self.server_group_members),
            ("injected_files", self.injected_files),
            ("injected_file_content_bytes", self.injected_file_content_bytes),
            ("injected_file_path_bytes", self.injected_file_path_bytes),
            ("fixed_ips", self.fixed_ips),
            ("floating_ips", self.floating_ips),
            ("security_group_rules", self.security_group_rules),
            ("security_groups", self.security_groups),
        ];
        let mut sent = BTreeMap::new();
        for (name, limit) in all {
            let Some(limit) = limit else { continue };
            if !shown(cx).any(|known| known == name) {
                return Err(unexpected(cx, name));
            }
            sent.insert(name.to_owned(), limit.get());
        }
        Ok(sent)
    }
}

fn unexpected(cx: &Ctx<State>, field: &str) -> Error {
    let reason = format!("Additional properties are not allowed ('{field}' was unexpected)");
    cx.dialect().invalid_field(field, &reason)
}

/// Body of PUT.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Update {
    #[serde(deserialize_with = "super::lists::object")]
    quota_set: Limits,
}

/// There are no limits of single users, and writing a project's instead would bind everyone.
fn no_user<T>(req: &Request<T>) -> Result<()> {
    if req.query_pairs().has("user_id") {
        return Err(Error::bad_request(
            "Invalid input for query parameters user_id. This cloud has no limits of single users.",
        ));
    }
    Ok(())
}

/// Adds limits to a row, or makes it.
fn merge(tx: &mut Tx<'_>, id: &str, limits: &BTreeMap<String, i64>) -> Result<()> {
    match tx.get::<QuotaSet>(&id.to_owned())? {
        Some(mut row) => {
            row.limits.extend(limits.clone());
            tx.update(&mut row)
        }
        None if limits.is_empty() => Ok(()),
        None => tx.insert(&mut QuotaSet {
            id: id.to_owned(),
            meta: store::Meta::default(),
            limits: limits.clone(),
        }),
    }
}

async fn update(cx: Ctx<State>, req: Request<Update>) -> Result<Reply> {
    let id = project(&cx, &req)?;
    no_user(&req)?;
    let sent = req.body.quota_set.sent(&cx)?;
    let force = req.body.quota_set.force.is_some_and(|f| f.0);
    let operator = cx.config.quota.clone();
    let limits = cx
        .store()
        .write(move |tx| {
            let used = in_use(tx, &id)?;
            for (name, limit) in &sent {
                let minimum = used.get(name.as_str()).copied().unwrap_or(0);
                if !force && u64::try_from(*limit).is_ok_and(|limit| limit < minimum) {
                    return Err(Error::bad_request(format!(
                        "Quota limit {limit} for {name} must be greater than or equal to already used and reserved {minimum}."
                    )));
                }
            }
            merge(tx, &row_of(&id), &sent)?;
            effective_limits(tx, &operator, Some(&id))
        })
        .await?;
    Ok(Reply::json(&json!({"quota_set": set(&cx, None, &limits)})))
}

async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = project(&cx, &req)?;
    no_user(&req)?;
    cx.store().write(move |tx| tx.delete::<QuotaSet>(&row_of(&id)).map(drop)).await?;
    Ok(Reply::empty())
}

// Classes.

/// Body of PUT of a class.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UpdateClass {
    #[serde(deserialize_with = "super::lists::object")]
    quota_class_set: Limits,
}

/// The row of a class. Every name may be asked for; only `default` has an effect.
fn class_row<T>(cx: &Ctx<State>, req: &Request<T>) -> Result<(String, String)> {
    strict(cx, req, &[])?;
    cx.allow(&own(cx))?;
    let name = req.param("name");
    let good = |c: char| !c.is_control() && c != '/';
    if !(1..=255).contains(&name.chars().count()) || !name.chars().all(good) {
        return Err(Error::bad_request("Invalid quota class: a name has 1 to 255 characters."));
    }
    Ok((name.to_owned(), format!("class:{name}")))
}

fn class_limits(
    tx: &mut Tx<'_>,
    operator: &BTreeMap<String, i64>,
    row: &str,
) -> Result<BTreeMap<String, i64>> {
    let row = tx.get::<QuotaSet>(&row.to_owned())?;
    let mut layers = vec![operator];
    layers.extend(row.iter().map(|row| &row.limits));
    Ok(effective(&layers))
}

fn class_view(cx: &Ctx<State>, id: Option<&str>, limits: &BTreeMap<String, i64>) -> Reply {
    let mut map = set(cx, id, limits);
    if !cx.since(2, 50) {
        map.retain(|name, _| !GROUPS.contains(&name.as_str()));
    }
    Reply::json(&json!({"quota_class_set": map}))
}

async fn show_class(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let (name, row) = class_row(&cx, &req)?;
    let operator = cx.config.quota.clone();
    let limits = cx.store().read(move |tx| class_limits(tx, &operator, &row)).await?;
    Ok(class_view(&cx, Some(&name), &limits))
}

async fn update_class(cx: Ctx<State>, req: Request<UpdateClass>) -> Result<Reply> {
    let (_, row) = class_row(&cx, &req)?;
    let limits = &req.body.quota_class_set;
    if limits.force.is_some() {
        return Err(unexpected(&cx, "force"));
    }
    let sent = limits.sent(&cx)?;
    if !cx.since(2, 50)
        && let Some(name) = GROUPS.iter().find(|name| sent.contains_key(**name))
    {
        return Err(unexpected(&cx, name));
    }
    let operator = cx.config.quota.clone();
    let limits = cx
        .store()
        .write(move |tx| {
            merge(tx, &row, &sent)?;
            class_limits(tx, &operator, &row)
        })
        .await?;
    Ok(class_view(&cx, None, &limits))
}
