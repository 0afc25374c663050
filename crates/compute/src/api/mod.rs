//! The table of all operations of compute.

// COMPUTE-B (see /work/notes/requests.md) writes aggregates, flavors, hypervisors, keypairs, limits, lists, misc, quotas,
// server_groups, services, usage, zones: they are on their way, please do not write them.
mod aggregates;
mod attachments;
mod flavors;
mod hypervisors;
mod instance_actions;
mod interfaces;
mod keypairs;
mod limits;
mod lists;
mod misc;
mod quotas;
mod server_groups;
mod servers;
mod services;
mod usage;
mod versions;
mod wire;
mod zones;

use std::collections::HashSet;
use std::sync::Arc;

use ::api::Op;
use axum::http::{Request, Uri};
use tower::ServiceExt as _;

use crate::State;

/// Only administrators of the cloud.
pub(crate) const ADMIN: &str = "rule:context_is_admin";
/// Whoever may read in its project.
pub(crate) const READER: &str = "rule:project_reader_or_admin";
/// Whoever may write in its project.
pub(crate) const MEMBER: &str = "rule:project_member_or_admin";

/// Rules that no single operation owns, and those shared by operations.
pub(crate) const RULES: &[(&str, &str)] = &[
    ("os_compute_api:servers:index:get_all_tenants", ADMIN),
    ("os_compute_api:servers:create:forced_host", ADMIN),
    ("os_compute_api:servers:create:zero_disk_flavor", "role:member or rule:context_is_admin"),
    ("os_compute_api:servers:create:trusted_certs", "role:member or rule:context_is_admin"),
    ("os_compute_api:os-extended-server-attributes", ADMIN),
    ("os_compute_api:servers:show:host_status", ADMIN),
    ("os_compute_api:servers:allow_all_filters", ADMIN),
    ("os_compute_api:os-flavor-access", ADMIN),
    ("os_compute_api:limits:other_project", ADMIN),
    ("os_compute_api:os-server-groups:index:all_projects", ADMIN),
    ("network:attach_external_network", ADMIN),
];

/// All operations.
pub fn ops() -> Vec<Op<State>> {
    let mut ops = versions::ops();
    ops.extend(servers::ops());
    ops.extend(interfaces::ops());
    ops.extend(attachments::ops());
    ops.extend(instance_actions::ops());
    ops.extend(flavors::ops());
    ops.extend(keypairs::ops());
    ops.extend(server_groups::ops());
    ops.extend(quotas::ops());
    ops.extend(limits::ops());
    ops.extend(hypervisors::ops());
    ops.extend(services::ops());
    ops.extend(aggregates::ops());
    ops.extend(zones::ops());
    ops.extend(usage::ops());
    ops.extend(misc::ops());
    ops
}

/// The router of the service: [`ops`] behind Nova's older forms of paths, `/v2/…` and `/v2.1/{project_id}/…`.
pub fn router(state: Arc<State>) -> axum::Router {
    let ops = ops();
    let known: HashSet<String> =
        ops.iter().filter_map(|op| op.info().path.split('/').nth(2).map(str::to_owned)).collect();
    let inner = ::api::router(state, ops);
    let service = inner.map_request(move |mut req: Request<axum::body::Body>| {
        if let Some(uri) = newer(req.uri(), &known) {
            *req.uri_mut() = uri;
        }
        req
    });
    axum::Router::new().fallback_service(service)
}

/// The path as the operations have it, where it is in an older form.
fn newer(uri: &Uri, known: &HashSet<String>) -> Option<Uri> {
    let path = uri.path();
    let rest = path.strip_prefix("/v2.1/").or_else(|| path.strip_prefix("/v2/"))?;
    let old = path.starts_with("/v2/") && !rest.is_empty();
    let (first, tail) = rest.split_once('/').unwrap_or((rest, ""));
    let project =
        !known.contains(first) && !tail.is_empty() && known.contains(tail.split('/').next().unwrap_or(""));
    if !old && !project {
        return None;
    }
    let mut text = format!("/v2.1/{}", if project { tail } else { rest });
    if let Some(query) = uri.query() {
        text.push('?');
        text.push_str(query);
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_paths_lead_to_the_same_place() {
        let known: HashSet<String> = ["servers", "flavors"].iter().map(|s| (*s).to_owned()).collect();
        let to = |text: &str| newer(&text.parse().unwrap(), &known).map(|u| u.to_string());
        assert_eq!(to("/v2.1/servers/servers").as_deref(), None);
        assert_eq!(to("/v2.1/abc/servers?x=1").as_deref(), Some("/v2.1/servers?x=1"));
        assert_eq!(to("/v2/abc/servers/1/action").as_deref(), Some("/v2.1/servers/1/action"));
        assert_eq!(to("/v2/flavors").as_deref(), Some("/v2.1/flavors"));
        assert_eq!(to("/v2/"), None);
        assert_eq!(to("/v2.1/nonsense/nothing"), None);
    }
}
