//! `/v2.0/default-security-group-rules`: the template of new security groups.

use api::{JsonSchema, Op, Reply, Request};
use base::net::IpNet;
use base::{Error, Result, SecurityGroupRuleId};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Meta, Query, Tx};

use super::groups::{Direction, Ethertype, Protocol, read_spec};
use super::listing::{self, View};
use super::wire::{Bulk, LaxBool, LaxInt, Maybe, Name, Patch, Text, What, Wire, invalid, not_found};
use super::{Cx, view};
use crate::State;
use crate::db::groups::PARENT;
use crate::logic::rules::{self, RuleSpec};
use crate::model::DefaultRule;

const ATTRIBUTES: &[&str] = &[
    "id",
    "description",
    "direction",
    "ethertype",
    "protocol",
    "port_range_min",
    "port_range_max",
    "remote_ip_prefix",
    "remote_group_id",
    "remote_address_group_id",
    "used_in_default_sg",
    "used_in_non_default_sg",
];

/// A rule of the template in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DefaultRuleBody {
    direction: Maybe<Direction>,
    ethertype: Patch<Ethertype>,
    protocol: Patch<Protocol>,
    port_range_min: Patch<LaxInt<0, 65_535>>,
    port_range_max: Patch<LaxInt<0, 65_535>>,
    remote_ip_prefix: Patch<Text<0, 64>>,
    remote_group_id: Patch<Text<1, 36>>,
    used_in_default_sg: Maybe<LaxBool>,
    used_in_non_default_sg: Maybe<LaxBool>,
    description: Patch<Name>,
}

impl Wire for DefaultRuleBody {
    const ONE: &'static str = "default_security_group_rule";
    const MANY: &'static str = "default_security_group_rules";
}

pub fn ops() -> Vec<Op<State>> {
    const ROOT: &str = "/v2.0/default-security-group-rules";
    const ONE: &str = "/v2.0/default-security-group-rules/{id}";
    vec![
        Op::get(ROOT, "get_default_security_group_rule", list)
            .default_rule("")
            .summary("Lists the template's rules."),
        Op::post(ROOT, "create_default_security_group_rule", create)
            .default_rule("rule:admin_only")
            .status(201)
            .summary("Adds a rule to the template."),
        Op::get(ONE, "get_default_security_group_rule", show)
            .default_rule("")
            .summary("Shows a rule of the template."),
        Op::delete(ONE, "delete_default_security_group_rule", remove)
            .default_rule("rule:admin_only")
            .summary("Removes a rule from the template."),
    ]
}

fn show_rule(r: &DefaultRule) -> View {
    view(json!({
        "id": r.id, "description": r.description, "direction": r.direction, "ethertype": r.ethertype,
        "protocol": r.protocol, "port_range_min": r.port_range_min, "port_range_max": r.port_range_max,
        "remote_ip_prefix": r.remote_ip_prefix, "remote_group_id": r.remote_group_id, "remote_address_group_id": null,
        "used_in_default_sg": r.used_in_default_sg, "used_in_non_default_sg": r.used_in_non_default_sg,
    }))
}

/// A template rule's row.
pub(crate) fn template_row(
    id: SecurityGroupRuleId,
    spec: &RuleSpec,
    default: bool,
    other: bool,
    description: String,
) -> DefaultRule {
    DefaultRule {
        id,
        meta: Meta::default(),
        direction: if spec.ingress { "ingress" } else { "egress" }.into(),
        ethertype: if spec.v6 { "IPv6" } else { "IPv4" }.into(),
        protocol: spec.protocol.clone(),
        port_range_min: spec.min,
        port_range_max: spec.max,
        remote_ip_prefix: spec.prefix,
        remote_group_id: spec.group.clone(),
        used_in_default_sg: default,
        used_in_non_default_sg: other,
        description,
        fingerprint: format!("{}/{default}/{other}", spec.fingerprint()),
    }
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let views = cx
        .store
        .read(|tx| {
            let mut rows = tx.list::<DefaultRule>(&Query::new())?;
            rows.sort_by_key(|r| (r.meta.created_at, r.id));
            Ok(rows.iter().map(show_rule).collect::<Vec<_>>())
        })
        .await?;
    listing::list(&cx, &req, "default_security_group_rules", ATTRIBUTES, views)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SecurityGroupRuleId = req.id_or("id", |t| not_found(What::DefaultRule, t))?;
    let row = cx
        .store
        .read(move |tx| tx.get::<DefaultRule>(&id)?.ok_or_else(|| not_found(What::DefaultRule, id)))
        .await?;
    Ok(listing::one(&req, "default_security_group_rule", show_rule(&row)))
}

fn create_one(cx: &Cx, tx: &mut Tx<'_>, body: &DefaultRuleBody) -> Result<View> {
    let port = |f: &Patch<LaxInt<0, 65_535>>| f.as_ref().and_then(|n| u16::try_from(n.get()).ok());
    let prefix: Option<IpNet> = body
        .remote_ip_prefix
        .as_ref()
        .filter(|t| !t.is_empty())
        .map(|t| rules::prefix(t).map_err(|e| invalid("remote_ip_prefix", e)))
        .transpose()?;
    let group = body.remote_group_id.as_ref().map(|g| g.as_str().to_owned());
    if let Some(group) =
        group.as_deref().filter(|g| *g != PARENT && g.parse::<base::SecurityGroupId>().is_err())
    {
        return Err(invalid("remote_group_id", format!("'{group}' is neither a UUID nor {PARENT}")));
    }
    let range = (port(&body.port_range_min), port(&body.port_range_max));
    let spec = read_spec(
        body.direction.0,
        body.ethertype.as_ref().copied(),
        body.protocol.as_ref(),
        range,
        prefix,
        group,
    )?;
    let default = body.used_in_default_sg.0.is_some_and(|b| b.0);
    let other = body.used_in_non_default_sg.0.is_none_or(|b| b.0);
    let description = body.description.as_ref().map_or_else(String::new, |t| t.as_str().to_owned());
    let id = SecurityGroupRuleId::random(&cx.env.entropy);
    let mut new = template_row(id, &spec, default, other, description);
    if let Some(twin) = tx.first::<DefaultRule>(&Query::new().eq("fingerprint", &new.fingerprint))? {
        let text = format!("Default Security group rule already exists. Rule id is {}.", twin.id);
        return Err(Error::conflict(text).code("DefaultSecurityGroupRuleExists"));
    }
    tx.insert(&mut new)?;
    Ok(show_rule(&new))
}

async fn create(cx: Cx, req: Request<Bulk<DefaultRuleBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let v = cx.store.write(move |tx| create_one(&c, tx, &body)).await?;
            Ok(listing::wrapped("default_security_group_rule", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies.iter().map(|b| create_one(&c, tx, b).map(Value::Object)).collect::<Result<Vec<_>>>()
            };
            Ok(listing::wrapped("default_security_group_rules", cx.store.write(make).await?))
        }
    }
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SecurityGroupRuleId = req.id_or("id", |t| not_found(What::DefaultRule, t))?;
    cx.store
        .write(
            move |tx| {
                if tx.delete::<DefaultRule>(&id)? { Ok(()) } else { Err(not_found(What::DefaultRule, id)) }
            },
        )
        .await?;
    Ok(Reply::empty())
}
