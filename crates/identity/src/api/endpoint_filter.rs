//! Which endpoints a project sees in its catalog (`OS-EP-FILTER`). A project for which nothing is said sees all.

use std::collections::BTreeMap;

use ::api::{Op, Reply, Request, Target};
use base::{EndpointId, Error, ProjectId, Result};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::{Cx, catalog, enforce, inserted, listed, listed_all, one, projects};
use crate::directory;
use crate::logic::body::{Doc, Kind, invalid, may, may_null, must, shape};
use crate::model::{Endpoint, EndpointFilter, EndpointGroup, Project};
use crate::state::State;
use crate::words::no_endpoint_group;

shape!(
    EndpointGroupCreate,
    "endpoint_group",
    false,
    [
        must("name", Kind::Text(1, 255)),
        must("filters", Kind::Object),
        may_null("description", Kind::Text(0, 65_535)),
    ]
);

shape!(
    EndpointGroupUpdate,
    "endpoint_group",
    false,
    [
        may("id", Kind::Id),
        may("name", Kind::Text(1, 255)),
        may("filters", Kind::Object),
        may_null("description", Kind::Text(0, 65_535)),
    ]
);

pub(super) fn ops() -> Vec<Op<State>> {
    const GROUPS: &str = "/v3/OS-EP-FILTER/endpoint_groups";
    const GROUP: &str = "/v3/OS-EP-FILTER/endpoint_groups/{endpoint_group_id}";
    const IN_PROJECT: &str = "/v3/OS-EP-FILTER/endpoint_groups/{endpoint_group_id}/projects/{project_id}";
    const ENDPOINT: &str = "/v3/OS-EP-FILTER/projects/{project_id}/endpoints/{endpoint_id}";
    vec![
        Op::get(GROUPS, "identity:list_endpoint_groups", list).summary("Lists endpoint groups."),
        Op::post(GROUPS, "identity:create_endpoint_group", create)
            .status(201)
            .summary("Makes an endpoint group."),
        Op::get(GROUP, "identity:get_endpoint_group", show).summary("Shows an endpoint group."),
        Op::patch(GROUP, "identity:update_endpoint_group", update).summary("Changes an endpoint group."),
        Op::delete(GROUP, "identity:delete_endpoint_group", delete).summary("Deletes an endpoint group."),
        Op::get(
            "/v3/OS-EP-FILTER/endpoint_groups/{endpoint_group_id}/endpoints",
            "identity:list_endpoints_associated_with_endpoint_group",
            endpoints_of_group,
        )
        .summary("Lists the endpoints of a group."),
        Op::get(
            "/v3/OS-EP-FILTER/endpoint_groups/{endpoint_group_id}/projects",
            "identity:list_projects_associated_with_endpoint_group",
            projects_of_group,
        )
        .summary("Lists the projects that see a group."),
        Op::put(IN_PROJECT, "identity:add_endpoint_group_to_project", add_group)
            .status(204)
            .summary("Shows a group to a project."),
        Op::get(IN_PROJECT, "identity:get_endpoint_group_in_project", check_group)
            .summary("Checks whether a project sees a group."),
        Op::delete(IN_PROJECT, "identity:remove_endpoint_group_from_project", remove_group)
            .summary("Hides a group from a project."),
        Op::get(
            "/v3/OS-EP-FILTER/projects/{project_id}/endpoint_groups",
            "identity:list_endpoint_groups_for_project",
            groups_of_project,
        )
        .summary("Lists the groups a project sees."),
        Op::get(
            "/v3/OS-EP-FILTER/projects/{project_id}/endpoints",
            "identity:list_endpoints_for_project",
            endpoints_of_project,
        )
        .summary("Lists the endpoints a project was shown."),
        Op::get(
            "/v3/OS-EP-FILTER/endpoints/{endpoint_id}/projects",
            "identity:list_projects_for_endpoint",
            projects_of_endpoint,
        )
        .summary("Lists the projects that were shown an endpoint."),
        Op::put(ENDPOINT, "identity:add_endpoint_to_project", add_endpoint)
            .status(204)
            .summary("Shows an endpoint to a project."),
        Op::get(ENDPOINT, "identity:check_endpoint_in_project", check_endpoint)
            .status(204)
            .summary("Checks whether a project was shown an endpoint."),
        Op::delete(ENDPOINT, "identity:remove_endpoint_from_project", remove_endpoint)
            .summary("Hides an endpoint from a project."),
    ]
}

fn wire(cx: &Cx, group: &EndpointGroup) -> Value {
    let path = format!("/v3/OS-EP-FILTER/endpoint_groups/{}", group.id);
    json!({
        "id": group.id, "name": group.name, "description": group.description, "filters": group.filters,
        "links": {"self": cx.url(&path)},
    })
}

fn filters(given: Map<String, Value>) -> Result<BTreeMap<String, String>> {
    let mut filters = BTreeMap::new();
    for (key, value) in given {
        let place = format!("filters/{key}");
        if !["service_id", "region_id", "interface"].contains(&key.as_str()) {
            return Err(invalid(&place, "an endpoint group is chosen by service_id, region_id or interface"));
        }
        let text = value.as_str().ok_or_else(|| invalid(&place, "the value is not of type 'string'"))?;
        if key == "interface" && !["admin", "internal", "public"].contains(&text) {
            return Err(invalid(&place, "must be one of 'admin', 'internal', 'public'"));
        }
        filters.insert(key, text.to_owned());
    }
    if filters.is_empty() {
        return Err(Error::bad_request("filters field is required and cannot be empty"));
    }
    Ok(filters)
}

fn group(tx: &mut Tx<'_>, id: &str) -> Result<EndpointGroup> {
    tx.get::<EndpointGroup>(&id.to_owned())?.ok_or_else(|| no_endpoint_group(id))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    listed_all::<EndpointGroup, _>(&cx, &req, "endpoint_groups", wire, &["name"]).await
}

async fn create(cx: Cx, req: Request<Doc<EndpointGroupCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let made = EndpointGroup {
        id: cx.entropy.uuid().simple().to_string(),
        meta: store::Meta::default(),
        name: fields.text("name").unwrap_or_default(),
        description: fields.nullable("description").flatten(),
        filters: filters(fields.object("filters").unwrap_or_default())?,
    };
    let made = inserted(&cx, made).await?;
    Ok(one("endpoint_group", wire(&cx, &made)))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_group_id").to_owned();
    let found = cx.read(move |tx| group(tx, &id)).await?;
    Ok(one("endpoint_group", wire(&cx, &found)))
}

async fn update(cx: Cx, req: Request<Doc<EndpointGroupUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_group_id").to_owned();
    fields.same_id(&id)?;
    let chosen = fields.object("filters").map(filters).transpose()?;
    let (name, description) = (fields.text("name"), fields.nullable("description"));
    let changed = cx
        .write(move |tx| {
            let mut held = group(tx, &id)?;
            if let Some(name) = &name {
                held.name.clone_from(name);
            }
            if let Some(description) = &description {
                held.description.clone_from(description);
            }
            if let Some(chosen) = &chosen {
                held.filters.clone_from(chosen);
            }
            tx.update(&mut held)?;
            directory::touch_all(tx)?;
            Ok(held)
        })
        .await?;
    Ok(one("endpoint_group", wire(&cx, &changed)))
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_group_id").to_owned();
    cx.write(move |tx| {
        group(tx, &id)?;
        tx.delete_where::<EndpointFilter>(&Query::new().eq("endpoint_group_id", &id))?;
        tx.delete::<EndpointGroup>(&id)?;
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}

async fn endpoints_of_group(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_group_id").to_owned();
    let found = cx
        .read(move |tx| {
            let group = group(tx, &id)?;
            let mut all = tx.list::<Endpoint>(&Query::new())?;
            all.retain(|e| group.holds(e));
            Ok(all)
        })
        .await?;
    let items = found.iter().map(|e| catalog::endpoint_wire(&cx, e)).collect();
    listed(&cx, &req, "endpoints", items, &[])
}

fn projects_seeing(tx: &mut Tx<'_>, query: &Query) -> Result<Vec<Project>> {
    let all = tx.list::<EndpointFilter>(query)?;
    tx.list::<Project>(&Query::new().is_in("id", all.iter().map(|f| &f.project_id)))
}

async fn projects_of_group(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_group_id").to_owned();
    let found = cx
        .read(move |tx| {
            group(tx, &id)?;
            projects_seeing(tx, &Query::new().eq("endpoint_group_id", &id))
        })
        .await?;
    let items = found.iter().map(|p| projects::wire(&cx, p)).collect();
    listed(&cx, &req, "projects", items, &[])
}

async fn projects_of_endpoint(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_id").to_owned();
    let found = cx
        .read(move |tx| {
            let endpoint = catalog::endpoint(tx, &id)?;
            projects_seeing(tx, &Query::new().eq("endpoint_id", &endpoint.id))
        })
        .await?;
    let items = found.iter().map(|p| projects::wire(&cx, p)).collect();
    listed(&cx, &req, "projects", items, &[])
}

async fn groups_of_project(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = ProjectId::new(req.param("project_id"));
    let found = cx
        .read(move |tx| {
            directory::project(tx, &id)?;
            let all = tx.list::<EndpointFilter>(&Query::new().eq("project_id", &id))?;
            let ids: Vec<String> = all.into_iter().filter_map(|f| f.endpoint_group_id).collect();
            tx.list::<EndpointGroup>(&Query::new().is_in("id", &ids))
        })
        .await?;
    let items = found.iter().map(|g| wire(&cx, g)).collect();
    listed(&cx, &req, "endpoint_groups", items, &["name"])
}

async fn endpoints_of_project(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = ProjectId::new(req.param("project_id"));
    let found = cx
        .read(move |tx| {
            directory::project(tx, &id)?;
            let seen = directory::visible_endpoints(tx, &id)?.unwrap_or_default();
            tx.list::<Endpoint>(&Query::new().is_in("id", &seen))
        })
        .await?;
    let items = found.iter().map(|e| catalog::endpoint_wire(&cx, e)).collect();
    listed(&cx, &req, "endpoints", items, &[])
}

/// The filter the path names; project and endpoint or group must exist.
async fn named(cx: &Cx, req: &Request<()>, by_group: bool) -> Result<EndpointFilter> {
    enforce(cx, &Target::none())?;
    let text = |name: &str| req.param(name).to_owned();
    let (project, endpoint, of_group) = (text("project_id"), text("endpoint_id"), text("endpoint_group_id"));
    cx.read(move |tx| {
        let (mut endpoint_id, mut endpoint_group_id) = (None::<EndpointId>, None);
        if by_group {
            endpoint_group_id = Some(group(tx, &of_group)?.id);
        } else {
            endpoint_id = Some(catalog::endpoint(tx, &endpoint)?.id);
        }
        let project_id = directory::project(tx, &ProjectId::new(project.clone()))?.id;
        let (kind, what) = if by_group { ("group", &of_group) } else { ("endpoint", &endpoint) };
        let id = EndpointFilter::id_of(&project_id, kind, what);
        Ok(EndpointFilter { id, meta: store::Meta::default(), project_id, endpoint_id, endpoint_group_id })
    })
    .await
}

async fn add(cx: &Cx, wanted: EndpointFilter) -> Result<Reply> {
    cx.write(move |tx| {
        if tx.get::<EndpointFilter>(&wanted.id)?.is_some() {
            return Err(Error::conflict(
                "Conflict occurred attempting to store project_endpoint - Duplicate entry.",
            ));
        }
        directory::insert_once(tx, &mut wanted.clone())?;
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}

fn not_seen(filter: &EndpointFilter) -> Error {
    let what = filter.endpoint_id.as_ref().map(EndpointId::as_str);
    let what = what.or(filter.endpoint_group_id.as_deref()).unwrap_or_default();
    Error::not_found(format!("Endpoint {what} not found in project {}", filter.project_id))
}

async fn held(cx: &Cx, wanted: &EndpointFilter) -> Result<()> {
    let id = wanted.id.clone();
    let found = cx.read(move |tx| tx.get::<EndpointFilter>(&id)).await?;
    found.map(|_| ()).ok_or_else(|| not_seen(wanted))
}

async fn remove(cx: &Cx, wanted: EndpointFilter) -> Result<Reply> {
    cx.write(move |tx| {
        if !tx.delete::<EndpointFilter>(&wanted.id)? {
            return Err(not_seen(&wanted));
        }
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}

async fn add_group(cx: Cx, req: Request<()>) -> Result<Reply> {
    let wanted = named(&cx, &req, true).await?;
    add(&cx, wanted).await
}

async fn check_group(cx: Cx, req: Request<()>) -> Result<Reply> {
    let wanted = named(&cx, &req, true).await?;
    held(&cx, &wanted).await?;
    let group = wanted.endpoint_group_id.unwrap_or_default();
    let path = format!("/v3/OS-EP-FILTER/endpoint_groups/{group}/projects/{}", wanted.project_id);
    let shown = json!({
        "endpoint_group_id": group, "project_id": wanted.project_id, "links": {"self": cx.url(&path)},
    });
    Ok(one("project_endpoint_group", shown))
}

async fn remove_group(cx: Cx, req: Request<()>) -> Result<Reply> {
    let wanted = named(&cx, &req, true).await?;
    remove(&cx, wanted).await
}

async fn add_endpoint(cx: Cx, req: Request<()>) -> Result<Reply> {
    let wanted = named(&cx, &req, false).await?;
    add(&cx, wanted).await
}

async fn check_endpoint(cx: Cx, req: Request<()>) -> Result<Reply> {
    let wanted = named(&cx, &req, false).await?;
    held(&cx, &wanted).await?;
    Ok(Reply::empty())
}

async fn remove_endpoint(cx: Cx, req: Request<()>) -> Result<Reply> {
    let wanted = named(&cx, &req, false).await?;
    remove(&cx, wanted).await
}
