//! Security groups: the default group, template rules, membership.

use base::{Error, ProjectId, Result, SecurityGroupId, SecurityGroupRuleId};
use contract::net::Key;
use store::{Meta, Query, Tx};

use super::{bury, quota, wake};
use crate::Env;
use crate::logic::rules::RuleSpec;
use crate::model::{DefaultRule, Member, SecurityGroup, SecurityGroupRule};

/// In a template: the group the rule ends up in.
pub const PARENT: &str = "PARENT";

/// The template a fresh cloud starts with: everything out, nothing in but from the default group's own members.
pub fn factory_template() -> Vec<(RuleSpec, bool)> {
    let rule = |ingress, v6| RuleSpec {
        ingress,
        v6,
        protocol: None,
        min: None,
        max: None,
        prefix: None,
        group: ingress.then(|| PARENT.to_owned()),
    };
    vec![
        (rule(false, false), true),
        (rule(false, true), true),
        (rule(true, false), false),
        (rule(true, true), false),
    ]
}

/// The project's default group, made on first use. Two at once: the store's unique column lets one win, and the
/// other's transaction is run again by [`retry_default`].
pub fn ensure_default(tx: &mut Tx<'_>, env: &Env, project: &ProjectId) -> Result<SecurityGroup> {
    if let Some(group) = find_default(tx, project)? {
        return Ok(group);
    }
    let group = SecurityGroup {
        id: SecurityGroupId::random(&env.entropy),
        meta: Meta::default(),
        project_id: project.clone(),
        name: "default".into(),
        description: "Default security group".into(),
        stateful: true,
        default_of: Some(project.clone()),
        tags: Default::default(),
    };
    create(tx, env, group)
}

/// The project's default group, if it has been made.
pub fn find_default(tx: &mut Tx<'_>, project: &ProjectId) -> Result<Option<SecurityGroup>> {
    Ok(tx.list::<SecurityGroup>(&Query::new().eq("default_of", project))?.into_iter().next())
}

/// Writes a group with the rules of the template.
pub fn create(tx: &mut Tx<'_>, env: &Env, mut group: SecurityGroup) -> Result<SecurityGroup> {
    tx.insert(&mut group)?;
    let default = group.default_of.is_some();
    for rule in tx.list::<DefaultRule>(&Query::new())? {
        if (default && rule.used_in_default_sg) || (!default && rule.used_in_non_default_sg) {
            let remote = rule.remote_group_id.as_deref().and_then(|g| match g {
                PARENT => Some(group.id),
                other => other.parse().ok(),
            });
            let spec = RuleSpec { group: remote.map(|g| g.to_string()), ..spec_of_default(&rule) };
            let mut row = rule_row(env, &group, &spec, rule.description.clone());
            tx.insert(&mut row)?;
        }
    }
    wake(tx, Key::SecurityGroup(group.id))?;
    Ok(group)
}

fn spec_of_default(r: &DefaultRule) -> RuleSpec {
    RuleSpec {
        ingress: r.direction == "ingress",
        v6: r.ethertype == "IPv6",
        protocol: r.protocol.clone(),
        min: r.port_range_min,
        max: r.port_range_max,
        prefix: r.remote_ip_prefix,
        group: r.remote_group_id.clone(),
    }
}

/// A rule's row.
pub fn rule_row(env: &Env, group: &SecurityGroup, spec: &RuleSpec, description: String) -> SecurityGroupRule {
    SecurityGroupRule {
        id: SecurityGroupRuleId::random(&env.entropy),
        meta: Meta::default(),
        project_id: group.project_id.clone(),
        security_group_id: group.id,
        direction: if spec.ingress { "ingress" } else { "egress" }.into(),
        ethertype: if spec.v6 { "IPv6" } else { "IPv4" }.into(),
        protocol: spec.protocol.clone(),
        port_range_min: spec.min,
        port_range_max: spec.max,
        remote_ip_prefix: spec.prefix,
        remote_group_id: spec.group_id(),
        description,
        fingerprint: spec.fingerprint(),
    }
}

/// Adds a rule to a group.
///
/// # Errors
/// `SecurityGroupRuleExists` (409), `OverQuota`.
pub fn add_rule(
    tx: &mut Tx<'_>,
    env: &Env,
    group: &mut SecurityGroup,
    spec: &RuleSpec,
    description: String,
) -> Result<SecurityGroupRule> {
    let mut row = rule_row(env, group, spec, description);
    let same = Query::new().eq("security_group_id", group.id).eq("fingerprint", &row.fingerprint);
    if let Some(twin) = tx.list::<SecurityGroupRule>(&same)?.first() {
        let text = format!("Security group rule already exists. Rule id is {}.", twin.id);
        return Err(Error::conflict(text).code("SecurityGroupRuleExists"));
    }
    quota::claim::<SecurityGroupRule>(tx, env, &group.project_id, "security_group_rule", 1)?;
    tx.insert(&mut row)?;
    touch(tx, group)?;
    Ok(row)
}

/// A change of a rule is one of its group: the item the backend holds is the group's.
pub fn touch(tx: &mut Tx<'_>, group: &mut SecurityGroup) -> Result<()> {
    tx.update(group)?;
    wake(tx, Key::SecurityGroup(group.id))
}

/// The group's rules, oldest first.
pub fn rules_of(tx: &mut Tx<'_>, group: SecurityGroupId) -> Result<Vec<SecurityGroupRule>> {
    let mut rows = tx.list::<SecurityGroupRule>(&Query::new().eq("security_group_id", group))?;
    rows.sort_by_key(|r| (r.meta.created_at, r.id));
    Ok(rows)
}

/// Removes a group with its rules, and rules of other groups that name it.
///
/// # Errors
/// `SecurityGroupInUse` where a port is in it.
pub fn delete(tx: &mut Tx<'_>, group: &SecurityGroup) -> Result<()> {
    if tx.count::<Member>(&Query::new().eq("security_group_id", group.id))? > 0 {
        let text = format!("Security Group {} in use.", group.id);
        return Err(Error::conflict(text).code("SecurityGroupInUse"));
    }
    for rule in rules_of(tx, group.id)? {
        tx.delete::<SecurityGroupRule>(&rule.id)?;
    }
    for rule in tx.list::<SecurityGroupRule>(&Query::new().eq("remote_group_id", group.id))? {
        tx.delete::<SecurityGroupRule>(&rule.id)?;
        if let Some(mut other) = tx.get::<SecurityGroup>(&rule.security_group_id)? {
            touch(tx, &mut other)?;
        }
    }
    tx.delete::<SecurityGroup>(&group.id)?;
    bury(tx, Key::SecurityGroup(group.id))
}
