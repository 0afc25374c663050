//! The table of operations, and what all handlers share: owners, targets of policy, revisions, standard attributes.

mod catalog;
mod default_rules;
mod floatingips;
mod groups;
mod info;
mod listing;
mod networks;
mod ports;
mod quotas;
mod rbac;
mod router_ports;
mod routers;
mod subnetpools;
mod subnets;
mod tags;
mod wire;

use std::collections::BTreeSet;
use std::fmt::Display;

use api::{Ctx, Op, Request, Target, versions};
use base::{Error, ProjectId, Result};
use serde_json::Value;
use store::{Meta, Query};

use crate::State;
use crate::logic::ipam::invalid_input;
pub(crate) use catalog::is_dns_name;
pub(crate) use default_rules::template_row;
use listing::View;
pub(crate) use networks::{EXTERNAL, SHARED, blank as blank_network, set_wildcard};
pub(crate) use router_ports::interface_on;
pub(crate) use routers::{blank as blank_router, connect_gateway};
pub(crate) use subnets::insert as insert_subnet;
use wire::{Maybe, Text, What, not_found};

/// A handler's context.
pub(crate) type Cx = Ctx<State>;

/// Rules that are not of one operation: who sees shared things, who may set which attribute.
pub(crate) const RULES: &[(&str, &str)] = &[
    ("network_owner", "role:member and project_id:%(network_project_id)s"),
    ("admin_or_network_owner", "rule:admin_only or rule:network_owner"),
    ("get_network", "rule:project_reader_or_admin or (role:reader and True:%(shared)s)"),
    ("get_port", "rule:project_reader_or_admin or (role:reader and project_id:%(network_project_id)s)"),
    ("update_port", "rule:project_member_or_admin or rule:network_owner"),
    ("delete_port", "rule:project_member_or_admin or rule:network_owner"),
    ("get_subnet", "rule:project_reader_or_admin or (role:reader and True:%(shared)s)"),
    ("get_subnetpool", "rule:project_reader_or_admin or (role:reader and True:%(shared)s)"),
    ("create_network:shared", "rule:admin_only"),
    ("create_network:router:external", "rule:admin_only"),
    ("create_network:is_default", "rule:admin_only"),
    ("create_network:provider:network_type", "rule:admin_only"),
    ("create_network:provider:physical_network", "rule:admin_only"),
    ("create_network:provider:segmentation_id", "rule:admin_only"),
    ("update_network:shared", "rule:admin_only"),
    ("update_network:router:external", "rule:admin_only"),
    ("update_network:is_default", "rule:admin_only"),
    ("update_network:provider:network_type", "rule:admin_only"),
    ("update_network:provider:physical_network", "rule:admin_only"),
    ("update_network:provider:segmentation_id", "rule:admin_only"),
    ("get_network:provider", "rule:admin_only"),
    ("create_subnet:service_types", "rule:admin_only"),
    ("update_subnet:service_types", "rule:admin_only"),
    ("create_subnetpool:shared", "rule:admin_only"),
    ("create_subnetpool:is_default", "rule:admin_only"),
    ("update_subnetpool:is_default", "rule:admin_only"),
    ("create_port:device_owner", "rule:admin_or_network_owner"),
    ("create_port:mac_address", "rule:admin_or_network_owner"),
    ("create_port:fixed_ips:ip_address", "rule:admin_or_network_owner"),
    ("create_port:port_security_enabled", "rule:admin_or_network_owner"),
    ("create_port:allowed_address_pairs", "rule:admin_or_network_owner"),
    ("create_port:binding:host_id", "rule:admin_only"),
    ("create_port:binding:profile", "rule:admin_only"),
    ("update_port:device_owner", "rule:admin_or_network_owner"),
    ("update_port:mac_address", "rule:admin_only"),
    ("update_port:fixed_ips:ip_address", "rule:admin_or_network_owner"),
    ("update_port:port_security_enabled", "rule:admin_or_network_owner"),
    ("update_port:allowed_address_pairs", "rule:admin_or_network_owner"),
    ("update_port:binding:host_id", "rule:admin_only"),
    ("update_port:binding:profile", "rule:admin_only"),
    ("get_agent", "rule:admin_only"),
    ("get_port:binding", "rule:admin_only"),
    ("create_router:distributed", "rule:admin_only"),
    ("create_router:ha", "rule:admin_only"),
    ("create_router:external_gateway_info:enable_snat", "rule:admin_only"),
    ("create_router:external_gateway_info:external_fixed_ips", "rule:admin_only"),
    ("update_router:distributed", "rule:admin_only"),
    ("update_router:ha", "rule:admin_only"),
    ("update_router:external_gateway_info:enable_snat", "rule:admin_only"),
    ("update_router:external_gateway_info:external_fixed_ips", "rule:admin_only"),
    ("get_router:internals", "rule:admin_only"),
    ("create_floatingip:floating_ip_address", "rule:admin_only"),
    ("create_rbac_policy:target_tenant", "rule:admin_only"),
];

/// All operations of the service.
pub fn ops() -> Vec<Op<State>> {
    let mut all = versions::neutron();
    all.extend(info::ops());
    all.extend(networks::ops());
    all.extend(subnets::ops());
    all.extend(subnetpools::ops());
    all.extend(ports::ops());
    all.extend(routers::ops());
    all.extend(floatingips::ops());
    all.extend(groups::ops());
    all.extend(default_rules::ops());
    all.extend(quotas::ops());
    all.extend(rbac::ops());
    all.extend(tags::ops());
    all
}

/// What policy is checked against: a thing of a project, with Neutron's words where it may not be known.
fn target(what: What, id: impl Display, project: &ProjectId) -> Target {
    let missing = not_found(what, id);
    Target::project(project).missing(missing.public()).missing_code(missing.type_code())
}

/// Checks the rules of attributes that are present in a body: `create_network` and `shared` make
/// `create_network:shared`.
fn attribute_rules(cx: &Cx, target: &Target, present: &[(&str, bool)]) -> Result<()> {
    for (attribute, _) in present.iter().filter(|(_, present)| *present) {
        let rule = format!("{}:{attribute}", cx.op().policy);
        if !cx.allows(&rule, target) {
            return Err(Error::forbidden(format!(
                "(rule:{} and rule:{rule}) is disallowed by policy",
                cx.op().policy
            ))
            .code("PolicyNotAuthorized"));
        }
    }
    Ok(())
}

/// The owner of a new thing: `project_id`/`tenant_id` of the body (of another project: administrators only), else the
/// token's project.
fn owner(cx: &Cx, project: &Maybe<Text<0, 255>>, tenant: &Maybe<Text<0, 255>>) -> Result<ProjectId> {
    let given = project.0.as_ref().or(tenant.0.as_ref());
    let own = cx.auth().project_id();
    match given {
        Some(id) if own.is_none_or(|o| o.as_str() != id.as_str()) => {
            if !cx.is_admin() {
                return Err(Error::bad_request(
                    "Specifying 'project_id' or 'tenant_id' other than the authenticated project in request requires admin privileges",
                )
                .code("HTTPBadRequest"));
            }
            id.parse()
                .map_err(|_| wire::invalid("project_id", format!("'{}' is not a project's id", id.as_str())))
        }
        _ => own.cloned().ok_or_else(|| {
            Error::bad_request("Running without keystone AuthN requires that tenant_id is specified")
                .code("HTTPBadRequest")
        }),
    }
}

/// The revision a client expects (`If-Match: revision_number=5`).
fn expected_revision<T>(req: &Request<T>) -> Result<Option<u64>> {
    let Some(text) = req.header("if-match") else { return Ok(None) };
    let bad = || {
        Error::bad_request(format!(
            "Invalid value '{text}' of header If-Match: it must be 'revision_number=<number>'."
        ))
        .code("HTTPBadRequest")
    };
    let number = text.trim().trim_matches('"').strip_prefix("revision_number=").ok_or_else(bad)?;
    number.parse().map(Some).map_err(|_| bad())
}

/// 412 where the thing has another revision than the client expects.
fn check_revision(expected: Option<u64>, meta: &Meta) -> Result<()> {
    match expected {
        Some(wanted) if wanted != meta.revision => Err(Error::precondition_failed(format!(
            "Constrained to {wanted}, but current revision is {}",
            meta.revision
        ))
        .code("RevisionNumberConstraintFailed")),
        _ => Ok(()),
    }
}

/// Narrows a query by filters on columns, so that the database does what it can. The list machinery checks all filters
/// again.
fn narrow<T>(mut query: Query, req: &Request<T>, columns: &[&'static str]) -> Query {
    for column in columns {
        let names: &[&str] = if *column == "project_id" { &["project_id", "tenant_id"] } else { &[column] };
        for name in names {
            let values: Vec<&str> = req.query_pairs().all(name).collect();
            if !values.is_empty() && values.iter().all(|v| !v.is_empty()) {
                query = query.is_in(column, values);
            }
        }
    }
    query
}

/// Cuts a query to the caller's project, unless the caller sees everything.
fn own_rows(cx: &Cx, query: Query) -> Query {
    if cx.is_admin() {
        return query;
    }
    // No project, nothing of one's own: no project has an empty id but the cloud's own, whose things nobody owns.
    match cx.auth().project_id() {
        Some(project) => query.eq("project_id", project),
        None => query.is_null("id"),
    }
}

/// `json!({…})` as a view.
fn view(value: Value) -> View {
    match value {
        Value::Object(map) => map,
        _ => View::new(),
    }
}

/// Adds what every resource has: owner twice, description, tags, times, revision.
fn standard(
    view: &mut View,
    project: &ProjectId,
    description: &str,
    tags: Option<&BTreeSet<String>>,
    meta: &Meta,
) {
    view.insert("tenant_id".into(), project.as_str().into());
    view.insert("project_id".into(), project.as_str().into());
    view.insert("description".into(), description.into());
    if let Some(tags) = tags {
        view.insert("tags".into(), listing::json(tags));
    }
    view.insert("created_at".into(), meta.created_at.iso_seconds().into());
    view.insert("updated_at".into(), meta.updated_at.iso_seconds().into());
    view.insert("revision_number".into(), meta.revision.into());
}

/// Attributes every resource can be filtered and sorted by.
macro_rules! attributes {
    ($($name:literal),* $(,)?) => {
        &["id", "name", "tenant_id", "project_id", "description", "tags", "created_at", "updated_at", "revision_number", $($name),*]
    };
}
use attributes;
