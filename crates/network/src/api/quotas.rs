//! `/v2.0/quotas`.

use std::collections::BTreeMap;

use api::{JsonSchema, Op, Reply, Request, Target};
use base::{Error, ProjectId, Result};
use schemars::{Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use store::{Meta, Query, Tx};

use super::Cx;
use super::listing::{self, View};
use super::wire::{LaxInt, One, What, Wire, not_found};
use crate::db::quota;
use crate::model::{
    FloatingIp, Network, Port, Quota, RbacPolicy, Router, SecurityGroup, SecurityGroupRule, Subnet,
    SubnetPool,
};
use crate::{Env, State};

type Limit = LaxInt<-1, 2_147_483_647>;

/// Limits in a request, by resource.
#[derive(Debug)]
pub struct QuotaBody {
    limits: BTreeMap<String, i64>,
    /// Refuse limits below what is in use.
    check: bool,
}

/// A member's value: a limit, or one of the switches of newer clients.
#[derive(Deserialize)]
#[serde(untagged, expecting = "an integer from -1 to 2147483647")]
enum Setting {
    Switch(bool),
    Limit(Limit),
}

impl<'de> Deserialize<'de> for QuotaBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let map = BTreeMap::<String, Setting>::deserialize(deserializer)?;
        let mut body = QuotaBody { limits: BTreeMap::new(), check: false };
        for (name, value) in map {
            let known = crate::QUOTAS.iter().any(|(n, _)| *n == name);
            match (name.as_str(), value) {
                ("check_limit", Setting::Switch(on)) => body.check = on,
                ("force", Setting::Switch(_)) => {}
                (_, Setting::Limit(limit)) if known => drop(body.limits.insert(name, limit.get())),
                (_, Setting::Switch(_)) if known => {
                    return Err(D::Error::custom(format!(
                        "'{name}' must be an integer from -1 to 2147483647"
                    )));
                }
                _ => return Err(D::Error::custom(format!("Unrecognized attribute(s) '{name}'"))),
            }
        }
        Ok(body)
    }
}

impl JsonSchema for QuotaBody {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "QuotaBody".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let properties: Map<String, Value> = crate::QUOTAS
            .iter()
            .map(|(name, _)| ((*name).to_owned(), json!({"type": "integer", "minimum": -1})))
            .collect();
        schemars::json_schema!({"type": "object", "properties": properties, "additionalProperties": false})
    }
}

impl Wire for QuotaBody {
    const ONE: &'static str = "quota";
    const MANY: &'static str = "quotas";
}

pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.0/quotas", "get_quota", list)
            .default_rule("rule:admin_only")
            .summary("Lists projects whose limits differ from the defaults."),
        Op::get("/v2.0/quotas/{project_id}", "get_quota:own", show)
            .default_rule("rule:project_reader_or_admin")
            .summary("Shows a project's limits."),
        Op::get("/v2.0/quotas/{project_id}/default", "get_quota:own", show_default)
            .summary("Shows the limits a project would have if none were set."),
        Op::get("/v2.0/quotas/{project_id}/details.json", "get_quota:own", details)
            .summary("Shows a project's limits and what it uses."),
        Op::get("/v2.0/quotas/{project_id}/details", "get_quota:own", details)
            .summary("Shows a project's limits and what it uses."),
        Op::put("/v2.0/quotas/{project_id}", "update_quota", update)
            .default_rule("rule:admin_only")
            .summary("Sets a project's limits."),
        Op::delete("/v2.0/quotas/{project_id}", "delete_quota", remove)
            .default_rule("rule:admin_only")
            .summary("Has a project use the default limits again."),
    ]
}

/// The project of the path. A caller may ask for its own, administrators for any.
fn project_of<T>(cx: &Cx, req: &Request<T>) -> Result<ProjectId> {
    let words =
        |t: &str| Error::not_found(format!("Tenant {t} could not be found.")).code("TenantQuotaNotFound");
    let project: ProjectId = req.id_or("project_id", words)?;
    cx.allow(&Target::project(&project).visible(true))?;
    Ok(project)
}

fn limits(env: &Env, own: Option<&Quota>) -> View {
    let mut v = View::new();
    for (name, _) in crate::QUOTAS {
        let own = own.and_then(|q| q.limits.get(*name).copied());
        let limit = own.or_else(|| env.config.quotas.get(name).copied()).unwrap_or(-1);
        v.insert((*name).to_owned(), limit.into());
    }
    v
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let rows = cx.store.read(|tx| tx.list::<Quota>(&Query::new())).await?;
    let views: Vec<View> = rows
        .iter()
        .map(|q| {
            let mut v = limits(&cx.env, Some(q));
            v.insert("project_id".into(), q.id.as_str().into());
            v.insert("tenant_id".into(), q.id.as_str().into());
            listing::pick_fields(&req, v)
        })
        .collect();
    Ok(listing::wrapped("quotas", listing::json(&views)))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    // `/v2.0/quotas/tenant` and `/project` answer whose token it is.
    if matches!(req.param("project_id"), "tenant" | "project") {
        let id = cx.project_id()?;
        return Ok(Reply::json(&json!({req.param("project_id"): {"tenant_id": id, "project_id": id}})));
    }
    let project = project_of(&cx, &req)?;
    let own = cx.store.read(move |tx| tx.get::<Quota>(&project)).await?;
    Ok(listing::one(&req, "quota", limits(&cx.env, own.as_ref())))
}

async fn show_default(cx: Cx, req: Request<()>) -> Result<Reply> {
    project_of(&cx, &req)?;
    Ok(listing::one(&req, "quota", limits(&cx.env, None)))
}

fn used(tx: &mut Tx<'_>, project: &ProjectId, resource: &str) -> Result<u64> {
    let own = Query::new().eq("project_id", project);
    match resource {
        "network" => tx.count::<Network>(&own),
        "subnet" => tx.count::<Subnet>(&own),
        "subnetpool" => tx.count::<SubnetPool>(&own),
        "port" => tx.count::<Port>(&own),
        "router" => tx.count::<Router>(&own),
        "floatingip" => tx.count::<FloatingIp>(&own),
        "security_group" => tx.count::<SecurityGroup>(&own),
        "security_group_rule" => tx.count::<SecurityGroupRule>(&own),
        "rbac_policy" => tx.count::<RbacPolicy>(&own),
        _ => Ok(0),
    }
}

async fn details(cx: Cx, req: Request<()>) -> Result<Reply> {
    let project = project_of(&cx, &req)?;
    let c = cx.clone();
    let v = cx
        .store
        .read(move |tx| {
            let mut v = View::new();
            for (name, _) in crate::QUOTAS {
                let limit = quota::limit(tx, &c.env, &project, name)?;
                v.insert(
                    (*name).to_owned(),
                    json!({"limit": limit, "used": used(tx, &project, name)?, "reserved": 0}),
                );
            }
            Ok(v)
        })
        .await?;
    Ok(listing::one(&req, "quota", v))
}

async fn update(cx: Cx, req: Request<One<QuotaBody>>) -> Result<Reply> {
    let project = project_of(&cx, &req)?;
    let (c, changes, check) = (cx.clone(), req.body.0.limits, req.body.0.check);
    let v = cx
        .store
        .write(move |tx| {
            for (name, limit) in changes.iter().filter(|(_, limit)| check && **limit >= 0) {
                let used = used(tx, &project, name)?;
                if i64::try_from(used).unwrap_or(i64::MAX) > *limit {
                    let text = format!(
                        "Quota limit {limit} for {name} must be greater than or equal to already used {used}"
                    );
                    return Err(Error::bad_request(text).code("HTTPBadRequest"));
                }
            }
            let found = tx.get::<Quota>(&project)?;
            let fresh = found.is_none();
            let mut row = found.unwrap_or_else(|| Quota {
                id: project.clone(),
                meta: Meta::default(),
                limits: BTreeMap::new(),
            });
            row.limits.extend(changes.clone());
            if fresh {
                tx.insert(&mut row)?
            } else {
                tx.update(&mut row)?
            }
            Ok(limits(&c.env, Some(&row)))
        })
        .await?;
    Ok(listing::wrapped("quota", v))
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let project = project_of(&cx, &req)?;
    cx.store
        .write(
            move |tx| {
                if tx.delete::<Quota>(&project)? { Ok(()) } else { Err(not_found(What::Quota, &project)) }
            },
        )
        .await?;
    Ok(Reply::empty())
}
