//! `/v2.0/security-groups` and `/v2.0/security-group-rules`.

use std::collections::{BTreeMap, BTreeSet};

use api::{JsonSchema, Op, Reply, Request, Target};
use base::net::IpNet;
use base::{Error, ProjectId, Result, SecurityGroupId, SecurityGroupRuleId};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use store::{Meta, Query, Tx};

use super::listing::{self, View};
use super::wire::{
    Bulk, LaxBool, LaxInt, Maybe, Name, One, Patch, Text, Uuid, What, Wire, invalid, missing, not_found,
    read_only,
};
use super::{
    Cx, attributes, check_revision, expected_revision, narrow, own_rows, owner, standard, target, view,
};
use crate::State;
use crate::db::{groups, quota};
use crate::logic::rules::{self, RuleSpec};
use crate::model::{Member, Port, SecurityGroup, SecurityGroupRule};

const ATTRIBUTES: &[&str] = attributes!["stateful", "shared", "security_group_rules"];
const RULE_ATTRIBUTES: &[&str] = attributes![
    "security_group_id",
    "ethertype",
    "direction",
    "protocol",
    "port_range_min",
    "port_range_max",
    "remote_ip_prefix",
    "remote_group_id",
    "remote_address_group_id",
    "normalized_cidr",
    "belongs_to_default_sg",
];

/// A security group in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GroupBody {
    name: Maybe<Name>,
    description: Maybe<Name>,
    stateful: Maybe<LaxBool>,
    project_id: Maybe<Text<0, 255>>,
    tenant_id: Maybe<Text<0, 255>>,
}

impl Wire for GroupBody {
    const ONE: &'static str = "security_group";
    const MANY: &'static str = "security_groups";
}

/// A protocol's name or number.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(transparent)]
pub(super) struct Protocol(String);

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a protocol's name or number")]
        enum Either {
            Number(i64),
            Name(String),
        }
        Ok(Protocol(match Either::deserialize(deserializer)? {
            Either::Number(n) => n.to_string(),
            Either::Name(text) => text,
        }))
    }
}

/// What a rule says, in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleBody {
    security_group_id: Maybe<Uuid>,
    direction: Maybe<Direction>,
    ethertype: Patch<Ethertype>,
    protocol: Patch<Protocol>,
    port_range_min: Patch<LaxInt<{ i64::MIN }, { i64::MAX }>>,
    port_range_max: Patch<LaxInt<{ i64::MIN }, { i64::MAX }>>,
    remote_ip_prefix: Patch<Text<0, 64>>,
    // No UUID by type: what names no group is a 404, as upstream's tests want it.
    remote_group_id: Patch<Text<1, 255>>,
    remote_address_group_id: Patch<Uuid>,
    description: Patch<Name>,
    project_id: Maybe<Text<0, 255>>,
    tenant_id: Maybe<Text<0, 255>>,
}

impl Wire for RuleBody {
    const ONE: &'static str = "security_group_rule";
    const MANY: &'static str = "security_group_rules";
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Direction {
    /// To the guest.
    Ingress,
    /// From the guest.
    Egress,
}

/// Which IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum Ethertype {
    /// IPv4.
    #[serde(rename = "IPv4", alias = "ipv4", alias = "IPV4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6", alias = "ipv6", alias = "IPV6")]
    V6,
}

pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.0/security-groups", "get_security_group", list).summary("Lists security groups."),
        Op::post("/v2.0/security-groups", "create_security_group", create)
            .status(201)
            .summary("Creates security groups."),
        Op::get("/v2.0/security-groups/{id}", "get_security_group", show).summary("Shows a security group."),
        Op::put("/v2.0/security-groups/{id}", "update_security_group", update)
            .summary("Changes a security group."),
        Op::delete("/v2.0/security-groups/{id}", "delete_security_group", remove)
            .summary("Removes a security group."),
        Op::get("/v2.0/security-group-rules", "get_security_group_rule", list_rules).summary("Lists rules."),
        Op::post("/v2.0/security-group-rules", "create_security_group_rule", create_rules)
            .status(201)
            .summary("Adds rules."),
        Op::get("/v2.0/security-group-rules/{id}", "get_security_group_rule", show_rule_op)
            .summary("Shows a rule."),
        Op::delete("/v2.0/security-group-rules/{id}", "delete_security_group_rule", remove_rule)
            .summary("Removes a rule."),
    ]
}

fn show_rule(r: &SecurityGroupRule, default: bool) -> View {
    let mut v = view(json!({
        "id": r.id,
        "security_group_id": r.security_group_id,
        "direction": r.direction,
        "ethertype": r.ethertype,
        "protocol": r.protocol,
        "port_range_min": r.port_range_min,
        "port_range_max": r.port_range_max,
        "remote_ip_prefix": r.remote_ip_prefix,
        "normalized_cidr": r.remote_ip_prefix.map(|p| p.trunc()),
        "remote_group_id": r.remote_group_id,
        "remote_address_group_id": null,
        "belongs_to_default_sg": default,
    }));
    standard(&mut v, &r.project_id, &r.description, None, &r.meta);
    v
}

fn show_group(g: &SecurityGroup, rules: &[SecurityGroupRule]) -> View {
    let rules: Vec<Value> =
        rules.iter().map(|r| Value::Object(show_rule(r, g.default_of.is_some()))).collect();
    let mut v = view(json!({
        "id": g.id, "name": g.name, "stateful": g.stateful, "shared": false, "security_group_rules": rules,
    }));
    standard(&mut v, &g.project_id, &g.description, Some(&g.tags), &g.meta);
    v
}

fn group_target(g: &SecurityGroup) -> Target {
    target(What::SecurityGroup, g.id, &g.project_id)
}

fn seen(cx: &Cx, tx: &mut Tx<'_>, id: SecurityGroupId) -> Result<SecurityGroup> {
    let group = tx.get::<SecurityGroup>(&id)?.ok_or_else(|| not_found(What::SecurityGroup, id))?;
    cx.allow(&group_target(&group))?;
    Ok(group)
}

/// Makes the caller's default group, which every project has as soon as someone looks.
async fn with_default(cx: &Cx) -> Result<()> {
    let Some(project) = cx.auth().project_id().cloned() else { return Ok(()) };
    let asked = project.clone();
    if cx.store.read(move |tx| groups::find_default(tx, &asked)).await?.is_none() {
        let c = cx.clone();
        cx.state().write(move |tx| groups::ensure_default(tx, &c.env, &project)).await?;
    }
    Ok(())
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    with_default(&cx).await?;
    let query = own_rows(&cx, narrow(Query::new(), &req, &["id", "name", "project_id"]));
    let views = cx
        .store
        .read(move |tx| {
            let mut rows = tx.list::<SecurityGroup>(&query)?;
            rows.sort_by_key(|g| (g.meta.created_at, g.id));
            let mut all: BTreeMap<SecurityGroupId, Vec<SecurityGroupRule>> = BTreeMap::new();
            let ids = Query::new().is_in("security_group_id", rows.iter().map(|g| g.id));
            for rule in tx.list::<SecurityGroupRule>(&ids)? {
                all.entry(rule.security_group_id).or_default().push(rule);
            }
            Ok(rows
                .iter()
                .map(|g| show_group(g, all.get(&g.id).map_or(&[], Vec::as_slice)))
                .collect::<Vec<_>>())
        })
        .await?;
    listing::list(&cx, &req, "security_groups", ATTRIBUTES, views)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SecurityGroupId = req.id_or("id", |t| not_found(What::SecurityGroup, t))?;
    let c = cx.clone();
    let v = cx
        .store
        .read(move |tx| {
            let group = seen(&c, tx, id)?;
            Ok(show_group(&group, &groups::rules_of(tx, id)?))
        })
        .await?;
    Ok(listing::one(&req, "security_group", v))
}

fn create_one(cx: &Cx, tx: &mut Tx<'_>, body: &GroupBody) -> Result<View> {
    let project = owner(cx, &body.project_id, &body.tenant_id)?;
    cx.allow(&Target::project(&project))?;
    let name = body.name.0.as_ref().map_or("", |n| n.as_str());
    if name.eq_ignore_ascii_case("default") {
        return Err(Error::conflict("Default security group already exists.")
            .code("SecurityGroupDefaultAlreadyExists"));
    }
    groups::ensure_default(tx, &cx.env, &project)?;
    quota::claim::<SecurityGroup>(tx, &cx.env, &project, "security_group", 1)?;
    let group = SecurityGroup {
        id: SecurityGroupId::random(&cx.env.entropy),
        meta: Meta::default(),
        project_id: project,
        name: name.to_owned(),
        description: body.description.0.as_ref().map_or_else(String::new, |t| t.as_str().to_owned()),
        stateful: body.stateful.0.is_none_or(|b| b.0),
        default_of: None,
        tags: BTreeSet::new(),
    };
    let group = groups::create(tx, &cx.env, group)?;
    Ok(show_group(&group, &groups::rules_of(tx, group.id)?))
}

async fn create(cx: Cx, req: Request<Bulk<GroupBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let v = cx.state().write(move |tx| create_one(&c, tx, &body)).await?;
            Ok(listing::wrapped("security_group", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies.iter().map(|b| create_one(&c, tx, b).map(Value::Object)).collect::<Result<Vec<_>>>()
            };
            Ok(listing::wrapped("security_groups", cx.state().write(make).await?))
        }
    }
}

/// Devices whose metadata names the group.
fn devices_of(tx: &mut Tx<'_>, group: SecurityGroupId) -> Result<Vec<String>> {
    let members = tx.list::<Member>(&Query::new().eq("security_group_id", group))?;
    let ports = tx.list::<Port>(&Query::new().is_in("id", members.iter().map(|m| m.port_id)))?;
    Ok(ports.into_iter().map(|p| p.device_id).collect())
}

async fn update(cx: Cx, req: Request<One<GroupBody>>) -> Result<Reply> {
    let id: SecurityGroupId = req.id_or("id", |t| not_found(What::SecurityGroup, t))?;
    let expected = expected_revision(&req)?;
    let (c, body) = (cx.clone(), req.body.0);
    read_only(&[("project_id", body.project_id.0.is_some()), ("tenant_id", body.tenant_id.0.is_some())])?;
    let (v, devices) = cx
        .store
        .write(move |tx| {
            let mut group = seen(&c, tx, id)?;
            check_revision(expected, &group.meta)?;
            let renamed = body.name.0.as_ref().is_some_and(|n| n.as_str() != group.name);
            if renamed && group.default_of.is_some() {
                return Err(Error::conflict("Updating default security group not allowed.")
                    .code("SecurityGroupCannotUpdateDefault"));
            }
            if let Some(name) = &body.name.0 {
                if renamed && name.eq_ignore_ascii_case("default") {
                    return Err(Error::conflict("Default security group already exists.")
                        .code("SecurityGroupDefaultAlreadyExists"));
                }
                group.name = name.as_str().to_owned();
            }
            if let Some(text) = &body.description.0 {
                group.description = text.as_str().to_owned();
            }
            if let Some(stateful) = body.stateful.0 {
                if stateful.0 != group.stateful
                    && tx.count::<Member>(&Query::new().eq("security_group_id", id))? > 0
                {
                    let text = format!("Security Group {id} in use.");
                    return Err(Error::conflict(text).code("SecurityGroupInUse"));
                }
                group.stateful = stateful.0;
            }
            groups::touch(tx, &mut group)?;
            let devices = if renamed { devices_of(tx, id)? } else { Vec::new() };
            Ok((show_group(&group, &groups::rules_of(tx, id)?), devices))
        })
        .await?;
    cx.nudge_devices(devices);
    Ok(listing::wrapped("security_group", v))
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SecurityGroupId = req.id_or("id", |t| not_found(What::SecurityGroup, t))?;
    let expected = expected_revision(&req)?;
    let c = cx.clone();
    cx.store
        .write(move |tx| {
            let group = seen(&c, tx, id)?;
            check_revision(expected, &group.meta)?;
            if group.default_of.is_some() && !c.is_admin() {
                return Err(Error::conflict("Insufficient rights for removing default security group.")
                    .code("SecurityGroupCannotRemoveDefault"));
            }
            groups::delete(tx, &group)
        })
        .await?;
    Ok(Reply::empty())
}

/// A port, ICMP type or code of a body.
fn range_value(field: &Patch<LaxInt<{ i64::MIN }, { i64::MAX }>>) -> Result<Option<u16>> {
    field
        .as_ref()
        .map(|n| u16::try_from(n.get()).map_err(|_| rules::invalid_port(&n.get().to_string())))
        .transpose()
}

fn remote_prefix(field: &Patch<Text<0, 64>>) -> Result<Option<IpNet>> {
    field
        .as_ref()
        .filter(|t| !t.is_empty())
        .map(|t| rules::prefix(t).map_err(|e| invalid("remote_ip_prefix", e)))
        .transpose()
}

/// What a body says, checked; `group` is the remote group.
pub(super) fn read_spec(
    direction: Option<Direction>,
    ethertype: Option<Ethertype>,
    protocol: Option<&Protocol>,
    range: (Option<u16>, Option<u16>),
    prefix: Option<IpNet>,
    group: Option<String>,
) -> Result<RuleSpec> {
    let spec = RuleSpec {
        ingress: direction.ok_or_else(|| missing("direction"))? == Direction::Ingress,
        v6: ethertype == Some(Ethertype::V6),
        protocol: protocol.map(|p| rules::protocol(&p.0)).transpose()?.flatten(),
        min: range.0,
        max: range.1,
        prefix,
        group,
    };
    spec.check()?;
    Ok(spec)
}

fn create_rule(cx: &Cx, tx: &mut Tx<'_>, body: &RuleBody) -> Result<(View, SecurityGroupId)> {
    let Some(id) = body.security_group_id.0 else { return Err(missing("security_group_id")) };
    if body.project_id.0.is_some() || body.tenant_id.0.is_some() {
        owner(cx, &body.project_id, &body.tenant_id)?;
    }
    let mut group = seen(cx, tx, SecurityGroupId(id.0))?;
    if body.remote_address_group_id.as_ref().is_some() {
        return Err(invalid("remote_address_group_id", "address groups are not supported"));
    }
    let remote = match body.remote_group_id.as_ref() {
        None => None,
        Some(text) => {
            let id: SecurityGroupId =
                text.parse().map_err(|_| not_found(What::SecurityGroup, text.as_str()))?;
            let remote = tx.get::<SecurityGroup>(&id)?;
            if !remote.is_some_and(|r| r.project_id == group.project_id || cx.is_admin()) {
                return Err(not_found(What::SecurityGroup, id));
            }
            Some(id.to_string())
        }
    };
    let spec = read_spec(
        body.direction.0,
        body.ethertype.as_ref().copied(),
        body.protocol.as_ref(),
        (range_value(&body.port_range_min)?, range_value(&body.port_range_max)?),
        remote_prefix(&body.remote_ip_prefix)?,
        remote,
    )?;
    let description = body.description.as_ref().map_or_else(String::new, |t| t.as_str().to_owned());
    let row = groups::add_rule(tx, &cx.env, &mut group, &spec, description)?;
    Ok((show_rule(&row, group.default_of.is_some()), group.id))
}

async fn create_rules(cx: Cx, req: Request<Bulk<RuleBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let (v, _) = cx.store.write(move |tx| create_rule(&c, tx, &body)).await?;
            Ok(listing::wrapped("security_group_rule", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies
                    .iter()
                    .map(|b| create_rule(&c, tx, b).map(|(v, _)| Value::Object(v)))
                    .collect::<Result<Vec<_>>>()
            };
            Ok(listing::wrapped("security_group_rules", cx.store.write(make).await?))
        }
    }
}

async fn list_rules(cx: Cx, req: Request<()>) -> Result<Reply> {
    with_default(&cx).await?;
    let query = own_rows(&cx, narrow(Query::new(), &req, &["id", "project_id", "security_group_id"]));
    let views = cx
        .store
        .read(move |tx| {
            let mut rows = tx.list::<SecurityGroupRule>(&query)?;
            rows.sort_by_key(|r| (r.meta.created_at, r.id));
            let projects: BTreeSet<&ProjectId> = rows.iter().map(|r| &r.project_id).collect();
            let defaults: BTreeSet<SecurityGroupId> = tx
                .list::<SecurityGroup>(&Query::new().is_in("default_of", projects))?
                .into_iter()
                .map(|g| g.id)
                .collect();
            Ok(rows.iter().map(|r| show_rule(r, defaults.contains(&r.security_group_id))).collect::<Vec<_>>())
        })
        .await?;
    listing::list(&cx, &req, "security_group_rules", RULE_ATTRIBUTES, views)
}

fn rule_seen(cx: &Cx, tx: &mut Tx<'_>, id: SecurityGroupRuleId) -> Result<SecurityGroupRule> {
    let rule = tx.get::<SecurityGroupRule>(&id)?.ok_or_else(|| not_found(What::SecurityGroupRule, id))?;
    cx.allow(&target(What::SecurityGroupRule, id, &rule.project_id))?;
    Ok(rule)
}

async fn show_rule_op(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SecurityGroupRuleId = req.id_or("id", |t| not_found(What::SecurityGroupRule, t))?;
    let c = cx.clone();
    let v = cx
        .store
        .read(move |tx| {
            let rule = rule_seen(&c, tx, id)?;
            let group = tx.get::<SecurityGroup>(&rule.security_group_id)?;
            Ok(show_rule(&rule, group.is_some_and(|g| g.default_of.is_some())))
        })
        .await?;
    Ok(listing::one(&req, "security_group_rule", v))
}

async fn remove_rule(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SecurityGroupRuleId = req.id_or("id", |t| not_found(What::SecurityGroupRule, t))?;
    let c = cx.clone();
    cx.store
        .write(move |tx| {
            let rule = rule_seen(&c, tx, id)?;
            tx.delete::<SecurityGroupRule>(&id)?;
            if let Some(mut group) = tx.get::<SecurityGroup>(&rule.security_group_id)? {
                groups::touch(tx, &mut group)?;
            }
            Ok(())
        })
        .await?;
    Ok(Reply::empty())
}
