//! `limits`: what a project may have and has, in the words clients ask before they build something.

use ::api::{Ctx, Mv, Op, Reply, Request};
use base::{ProjectId, Result};
use serde_json::{Map, Value, json};

use super::lists::{own, strict};
use super::quotas::{effective_limits, in_use};
use super::wire;
use crate::State;

const OTHER_PROJECT: &str = "os_compute_api:limits:other_project";

/// Operations on limits.
pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.1/limits", "os_compute_api:limits", show)
            .default_rule("@")
            .summary("Show limits and what is used of them"),
    ]
}

/// Name in the answer, limit, last microversion that shows it (`None`: all).
const NAMES: &[(&str, &str, Option<Mv>)] = &[
    ("maxTotalInstances", "instances", None),
    ("maxTotalCores", "cores", None),
    ("maxTotalRAMSize", "ram", None),
    ("maxServerMeta", "metadata_items", None),
    ("maxImageMeta", "metadata_items", Some(Mv(2, 38))),
    ("maxPersonality", "injected_files", Some(Mv(2, 56))),
    ("maxPersonalitySize", "injected_file_content_bytes", Some(Mv(2, 56))),
    ("maxTotalKeypairs", "key_pairs", None),
    ("maxServerGroups", "server_groups", None),
    ("maxServerGroupMembers", "server_group_members", None),
    ("maxTotalFloatingIps", "floating_ips", Some(Mv(2, 35))),
    ("maxSecurityGroups", "security_groups", Some(Mv(2, 35))),
    ("maxSecurityGroupRules", "security_group_rules", Some(Mv(2, 35))),
];

/// Name in the answer, what is counted, last microversion that shows it.
const USED: &[(&str, &str, Option<Mv>)] = &[
    ("totalRAMUsed", "ram", None),
    ("totalCoresUsed", "cores", None),
    ("totalInstancesUsed", "instances", None),
    ("totalServerGroupsUsed", "server_groups", None),
    // Counted by the network service; Nova answers 0 since it has no network of its own.
    ("totalFloatingIpsUsed", "floating_ips", Some(Mv(2, 35))),
    ("totalSecurityGroupsUsed", "security_groups", Some(Mv(2, 35))),
];

fn project(cx: &Ctx<State>, req: &Request<()>) -> Result<Option<ProjectId>> {
    strict(cx, req, &["tenant_id", "reserved"])?;
    cx.allow(&own(cx))?;
    match req.query_pairs().get("tenant_id") {
        None => Ok(cx.auth().project_id().cloned()),
        Some(text) => {
            let id = wire::project(text)?;
            if cx.auth().project_id() != Some(&id) {
                cx.allow_rule(OTHER_PROJECT, &own(cx))?;
            }
            Ok(Some(id))
        }
    }
}

/// `reserved` is taken and changes nothing: nothing is ever reserved without being used.
async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = project(&cx, &req)?;
    let operator = cx.config.quota.clone();
    let (limits, used) = cx
        .store()
        .read(move |tx| {
            let limits = effective_limits(tx, &operator, id.as_ref())?;
            let used = id.as_ref().map(|id| in_use(tx, id)).transpose()?.unwrap_or_default();
            Ok((limits, used))
        })
        .await?;
    let seen = |last: &Option<Mv>| last.is_none_or(|last| cx.mv <= last);
    let mut absolute = Map::new();
    for (name, resource, _) in NAMES.iter().filter(|(_, _, last)| seen(last)) {
        absolute.insert((*name).into(), json!(limits.get(*resource).copied().unwrap_or(-1)));
    }
    for (name, resource, _) in USED.iter().filter(|(_, _, last)| seen(last)) {
        absolute.insert((*name).into(), json!(used.get(resource).copied().unwrap_or(0)));
    }
    let none: [Value; 0] = [];
    Ok(Reply::json(&json!({"limits": {"rate": none, "absolute": absolute}})))
}
