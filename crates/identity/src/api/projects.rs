//! Projects and their tags.

use std::borrow::Cow;

use ::api::{JsonSchema, Op, Reply, Request, Target};
use base::{DomainId, Error, ProjectId, Result};
use schemars::{Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::{
    Cx, asked, default_domain, enforce, entity, immutable, immutable_error, listed, listed_from, may_change,
    merge_options, one, options, own_domain_target, token_domain,
};
use crate::directory;
use crate::logic::body::{
    Doc, Fields, Kind, check_tag, check_tags, invalid, may, may_null, missing, must, shape,
};
use crate::model::{
    ApplicationCredential, Assignment, Credential, Domain, EndpointFilter, Limit, Project, User,
};
use crate::revocations::{self, Of};
use crate::state::{LimitModel, State};
use crate::words::{no_domain, no_project, no_tag, told};

shape!(
    ProjectCreate,
    "project",
    true,
    [
        must("name", Kind::Text(1, 64)),
        may_null("domain_id", Kind::Id),
        may_null("parent_id", Kind::Id),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
        may("is_domain", Kind::Bool),
        may("tags", Kind::Tags),
        may("options", Kind::Object),
    ]
);

shape!(
    ProjectUpdate,
    "project",
    true,
    [
        may("name", Kind::Text(1, 64)),
        may_null("domain_id", Kind::Id),
        may_null("parent_id", Kind::Id),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
        may("is_domain", Kind::Bool),
        may("tags", Kind::Tags),
        may("options", Kind::Object),
    ]
);

/// The body of `PUT /v3/projects/{id}/tags`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct Tags(Map<String, Value>);

impl JsonSchema for Tags {
    fn schema_name() -> Cow<'static, str> {
        "Tags".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let tag = json!({"type": "string", "minLength": 1, "maxLength": 255});
        schemars::json_schema!({
            "type": "object", "required": ["tags"],
            "properties": {"tags": {"type": "array", "items": tag, "maxItems": 80}},
        })
    }
}

/// Levels of projects below a domain, the topmost included (Keystone's default); with strict limits there is one.
fn deepest(model: LimitModel) -> usize {
    match model {
        LimitModel::Flat => 5,
        LimitModel::StrictTwoLevel => 1,
    }
}
const OPTIONS: &[(&str, bool)] = &[("immutable", true)];

pub(super) fn ops() -> Vec<Op<State>> {
    const TAGS: &str = "/v3/projects/{project_id}/tags";
    const TAG: &str = "/v3/projects/{project_id}/tags/{tag}";
    vec![
        Op::get("/v3/projects", "identity:list_projects", list).summary("Lists projects."),
        Op::post("/v3/projects", "identity:create_project", create).status(201).summary("Makes a project."),
        Op::get("/v3/projects/{project_id}", "identity:get_project", show).summary("Shows a project."),
        Op::patch("/v3/projects/{project_id}", "identity:update_project", update)
            .summary("Changes a project."),
        Op::delete("/v3/projects/{project_id}", "identity:delete_project", delete)
            .summary("Deletes a project."),
        Op::get(TAGS, "identity:list_project_tags", list_tags).summary("Lists a project's tags."),
        Op::put(TAGS, "identity:update_project_tags", put_tags).summary("Replaces a project's tags."),
        Op::delete(TAGS, "identity:delete_project_tags", delete_tags).summary("Removes a project's tags."),
        Op::get(TAG, "identity:get_project_tag", check_one_tag).status(204).summary("Checks a tag."),
        Op::put(TAG, "identity:create_project_tag", put_tag).status(201).summary("Adds a tag."),
        Op::delete(TAG, "identity:delete_project_tag", delete_tag).summary("Removes a tag."),
    ]
}

pub(super) fn wire(cx: &Cx, project: &Project) -> Value {
    let own = json!({
        "id": project.id, "name": project.name, "domain_id": project.domain_id, "description": project.description,
        "enabled": project.enabled, "parent_id": project.parent_id, "is_domain": false, "tags": project.tags,
        "options": project.options,
    });
    entity(cx, &format!("/v3/projects/{}", project.id), own, &project.extra)
}

/// A domain as the project that it is too.
fn domain_wire(cx: &Cx, domain: &Domain) -> Value {
    let own = json!({
        "id": domain.id, "name": domain.name, "domain_id": null, "description": domain.description,
        "enabled": domain.enabled, "parent_id": null, "is_domain": true, "tags": domain.tags,
        "options": domain.options,
    });
    entity(cx, &format!("/v3/projects/{}", domain.id), own, &domain.extra)
}

/// The domain a path to a project names, if the caller may do with it what `rule` says.
async fn as_domain<T>(cx: &Cx, req: &Request<T>, rule: &str) -> Result<Option<Domain>> {
    let id = DomainId::new(req.param("project_id"));
    let found = cx.read(move |tx| tx.get::<Domain>(&id)).await?;
    Ok(found.filter(|d| cx.allows(rule, &super::domains::target(Target::none(), Some(d)))))
}

/// Adds the policy attributes of a project; of one that does not exist: nothing.
pub(super) fn target(onto: Target, project: Option<&Project>) -> Target {
    match project {
        None => onto,
        Some(project) => onto
            .set("target.project.id", project.id.as_str())
            .set("target.project.domain_id", project.domain_id.as_str()),
    }
}

async fn allowed<T>(cx: &Cx, req: &Request<T>) -> Result<Project> {
    let text = req.param("project_id").to_owned();
    let id = ProjectId::new(text.clone());
    let project = cx.read(move |tx| tx.get::<Project>(&id)).await?;
    enforce(cx, &target(Target::none(), project.as_ref()))?;
    project.ok_or_else(|| no_project(&text))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &own_domain_target(&cx))?;
    let pairs = req.query_pairs();
    let take = |key: &str| pairs.get(key).map(str::to_owned);
    let (name, domain, parent, own) = (take("name"), take("domain_id"), take("parent_id"), token_domain(&cx));
    if asked(&req, "is_domain") {
        let own = token_domain(&cx);
        let domains = cx.read(|tx| tx.list::<Domain>(&Query::new())).await?;
        let seen = domains.iter().filter(|d| own.as_ref().is_none_or(|own| *own == d.id));
        let items = seen.map(|d| domain_wire(&cx, d)).collect();
        return listed(&cx, &req, "projects", items, &["enabled", "name"]);
    }
    let mut query = Query::new();
    if let Some(name) = &name {
        query = query.eq("name", name);
    }
    for domain in domain.as_deref().into_iter().chain(own.as_ref().map(DomainId::as_str)) {
        query = query.eq("domain_id", domain);
    }
    if let Some(parent) = &parent {
        query = query.eq("parent_id", parent);
    }
    let tags = |key: &str| pairs.get(key).map(|t| t.split(',').map(str::to_owned).collect::<Vec<_>>());
    let (all, any) = (tags("tags"), tags("tags-any"));
    let (not_all, not_any) = (tags("not-tags"), tags("not-tags-any"));
    let keep = move |project: &Project| {
        let has = |tag: &String| project.tags.contains(tag);
        all.as_ref().is_none_or(|tags| tags.iter().all(has))
            && any.as_ref().is_none_or(|tags| tags.iter().any(has))
            && not_all.as_ref().is_none_or(|tags| !tags.iter().all(has))
            && not_any.as_ref().is_none_or(|tags| !tags.iter().any(has))
    };
    listed_from(&cx, &req, "projects", query, keep, wire, &["domain_id", "enabled", "name", "parent_id"])
        .await
}

fn conflict(name: &str, domain: &DomainId) -> String {
    format!("Duplicate entry found with name {name} at domain ID {domain}")
}

async fn create(cx: Cx, req: Request<Doc<ProjectCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let domain = fields.nullable("domain_id").flatten();
    let asked = match &domain {
        None => Target::none(),
        Some(domain) => Target::none().set("target.project.domain_id", domain.as_str()),
    };
    enforce(&cx, &asked)?;
    let parent = fields.nullable("parent_id").flatten();
    if fields.flag("is_domain") == Some(true) {
        if domain.is_some() || parent.is_some() {
            return Err(invalid(
                "is_domain",
                "a project that acts as a domain has neither domain nor parent",
            ));
        }
        return create_domain(&cx, fields).await;
    }
    let project = Project {
        id: ProjectId::random(&cx.entropy),
        meta: store::Meta::default(),
        domain_id: DomainId::new(domain.clone().unwrap_or_default()),
        name: fields.text("name").unwrap_or_default(),
        parent_id: parent.clone().unwrap_or_default(),
        description: fields.nullable("description").flatten().unwrap_or_default(),
        enabled: fields.flag("enabled").unwrap_or(true),
        tags: fields.tags("tags").unwrap_or_default(),
        options: options(fields.object("options"), OPTIONS)?.unwrap_or_default(),
        extra: fields.extra(),
        revoked_before: None,
    };
    let (default, by_admin) = (default_domain(&cx), cx.allows("admin_required", &Target::none()));
    let deepest = deepest(cx.config.operator.limit_model);
    let made = cx
        .write(move |tx| {
            let mut project = project.clone();
            settle(tx, &mut project, domain.as_deref(), parent.as_deref(), &default, by_admin, deepest)?;
            told(tx.insert(&mut project), "project", || conflict(&project.name, &project.domain_id))?;
            Ok(project)
        })
        .await?;
    Ok(one("project", wire(&cx, &made)))
}

/// A project that acts as a domain is a domain.
async fn create_domain(cx: &Cx, mut fields: Fields) -> Result<Reply> {
    if !cx.allows("identity:create_domain", &Target::none()) {
        return Err(cx.dialect().policy_denied("identity:create_domain"));
    }
    let domain = Domain {
        id: DomainId::random(&cx.entropy),
        meta: store::Meta::default(),
        name: fields.text("name").unwrap_or_default(),
        description: fields.nullable("description").flatten().unwrap_or_default(),
        enabled: fields.flag("enabled").unwrap_or(true),
        tags: fields.tags("tags").unwrap_or_default(),
        options: options(fields.object("options"), OPTIONS)?.unwrap_or_default(),
        extra: fields.extra(),
        revoked_before: None,
    };
    let made = cx
        .write(move |tx| {
            let mut domain = domain.clone();
            let name = domain.name.clone();
            told(tx.insert(&mut domain), "project", || format!("Duplicate entry found with name {name}"))?;
            Ok(domain)
        })
        .await?;
    Ok(one("project", domain_wire(cx, &made)))
}

/// Decides domain and parent of a new project.
fn settle(
    tx: &mut Tx<'_>,
    project: &mut Project,
    domain: Option<&str>,
    parent: Option<&str>,
    default: &DomainId,
    by_admin: bool,
    deepest: usize,
) -> Result<()> {
    let bad = |error: Error| Error::bad_request(error.public().to_owned());
    let above = match parent {
        Some(id) if Some(id) != domain => {
            let found = tx.get::<Project>(&ProjectId::new(id))?;
            // A foreign project is as good as none.
            let found = found.filter(|p| by_admin || domain == Some(p.domain_id.as_str()));
            if found.is_none() && tx.get::<Domain>(&DomainId::new(id))?.is_none() {
                return Err(bad(no_project(id)));
            }
            found
        }
        _ => None,
    };
    project.domain_id = match (domain, &above, parent) {
        (Some(domain), _, _) => DomainId::new(domain),
        (None, Some(above), _) => above.domain_id.clone(),
        (None, None, Some(parent)) => DomainId::new(parent),
        (None, None, None) => default.clone(),
    };
    let domain =
        tx.get::<Domain>(&project.domain_id)?.ok_or_else(|| bad(no_domain(project.domain_id.as_str())))?;
    let Some(above) = above else {
        if parent.is_some_and(|p| p != domain.id.as_str()) {
            return Err(invalid("parent_id", "the parent is in another domain"));
        }
        project.parent_id = domain.id.as_str().to_owned();
        return Ok(());
    };
    if above.domain_id != project.domain_id {
        return Err(invalid("parent_id", "the parent is in another domain"));
    }
    let chain = directory::ancestors(tx, &above)?;
    if chain.len() + 2 > deepest {
        return Err(Error::forbidden(format!("Max hierarchy depth reached for {} branch.", above.id)));
    }
    if !above.enabled || chain.iter().any(|p| !p.enabled) {
        return Err(Error::forbidden(format!(
            "Cannot create project in a branch containing a disabled project: {}",
            above.id
        )));
    }
    project.parent_id = above.id.as_str().to_owned();
    Ok(())
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    if let Some(domain) = as_domain(&cx, &req, "identity:get_domain").await? {
        return Ok(one("project", domain_wire(&cx, &domain)));
    }
    let project = allowed(&cx, &req).await?;
    let mut shown = wire(&cx, &project);
    let flags =
        ["parents_as_list", "parents_as_ids", "subtree_as_list", "subtree_as_ids"].map(|f| asked(&req, f));
    let [parents_list, parents_ids, subtree_list, subtree_ids] = flags;
    if (parents_list && parents_ids) || (subtree_list && subtree_ids) {
        return Err(Error::bad_request(
            "Cannot use the _as_list and _as_ids query params of the same kind at the same time.",
        ));
    }
    if flags.iter().any(|f| *f) {
        let (of, user) = (project.clone(), cx.user_id().clone());
        let (above, below, mine) = cx
            .read(move |tx| {
                let above = directory::ancestors(tx, &of)?;
                Ok((above, directory::below(tx, of.id.as_str())?, directory::projects_of(tx, &user)?))
            })
            .await?;
        // Lists are of projects the caller has a role on; ids are of all, as in Keystone.
        let known = |p: &&Project| mine.iter().any(|m| m.id == p.id);
        let list = |of: &[Project]| -> Value {
            of.iter().filter(known).map(|p| json!({"project": wire(&cx, p)})).collect()
        };
        if let Some(map) = shown.as_object_mut() {
            if parents_list {
                map.insert("parents".into(), list(&above));
            } else if parents_ids {
                map.insert("parents".into(), chain(&project, &above));
            }
            if subtree_list {
                map.insert("subtree".into(), list(&below));
            } else if subtree_ids {
                map.insert("subtree".into(), tree(project.id.as_str(), &below));
            }
        }
    }
    Ok(one("project", shown))
}

/// `{parent: {its parent: … {domain: null}}}`
fn chain(project: &Project, above: &[Project]) -> Value {
    let mut value = json!({(project.domain_id.as_str()): null});
    for ancestor in above.iter().rev() {
        value = json!({(ancestor.id.as_str()): value});
    }
    value
}

/// `{child: {grandchild: null}}`
fn tree(parent: &str, all: &[Project]) -> Value {
    let children: Map<String, Value> = all
        .iter()
        .filter(|p| p.parent_id == parent)
        .map(|p| (p.id.as_str().to_owned(), tree(p.id.as_str(), all)))
        .collect();
    if children.is_empty() { Value::Null } else { Value::Object(children) }
}

async fn update(cx: Cx, req: Request<Doc<ProjectUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    if let Some(domain) = as_domain(&cx, &req, "identity:update_domain").await? {
        fields.same_id(domain.id.as_str())?;
        if fields.flag("is_domain") == Some(false) {
            return Err(invalid("is_domain", "Update of `is_domain` is not allowed."));
        }
        for fixed in ["domain_id", "parent_id"] {
            if fields.nullable(fixed).flatten().is_some() {
                return Err(invalid(fixed, "a project that acts as a domain has neither domain nor parent"));
            }
        }
        let change = Change::of(&mut fields)?;
        let changed = super::domains::apply(&cx, domain.id, change, fields.extra()).await?;
        return Ok(one("project", domain_wire(&cx, &changed)));
    }
    let held = allowed(&cx, &req).await?;
    fields.same_id(held.id.as_str())?;
    if fields.nullable("domain_id").is_some_and(|d| d.as_deref() != Some(held.domain_id.as_str())) {
        return Err(Error::bad_request("Invalid input for field 'domain_id': Cannot change Domain ID"));
    }
    if fields.nullable("parent_id").is_some_and(|p| p.as_deref() != Some(held.parent_id.as_str())) {
        return Err(Error::forbidden("Update of `parent_id` is not allowed."));
    }
    if fields.flag("is_domain") == Some(true) {
        return Err(invalid("is_domain", "Update of `is_domain` is not allowed."));
    }
    let change = Change::of(&mut fields)?;
    let (extra, id) = (fields.extra(), held.id);
    let changed = cx
        .write(move |tx| {
            let mut project = directory::project(tx, &id)?;
            may_change(&project.options, change.options.as_ref(), "project", project.id.as_str())?;
            if let Some(enabled) = change.enabled {
                turn(tx, &mut project, enabled)?;
            }
            if let Some(name) = &change.name {
                project.name.clone_from(name);
            }
            if let Some(description) = &change.description {
                project.description.clone_from(description);
            }
            if let Some(tags) = &change.tags {
                project.tags.clone_from(tags);
            }
            if let Some(options) = &change.options {
                merge_options(&mut project.options, options.clone());
            }
            project.extra.extend(extra.clone());
            told(tx.update(&mut project), "project", || conflict(&project.name, &project.domain_id))?;
            directory::touch_all(tx)?;
            Ok(project)
        })
        .await?;
    Ok(one("project", wire(&cx, &changed)))
}

/// What a change of a project or domain has in common.
pub(super) struct Change {
    pub name: Option<String>,
    pub description: Option<String>,
    pub enabled: Option<bool>,
    pub tags: Option<Vec<String>>,
    pub options: Option<Map<String, Value>>,
}

impl Change {
    pub(super) fn of(fields: &mut Fields) -> Result<Self> {
        Ok(Change {
            name: fields.text("name"),
            description: fields.nullable("description").map(Option::unwrap_or_default),
            enabled: fields.flag("enabled"),
            tags: fields.tags("tags"),
            options: options(fields.object("options"), OPTIONS)?,
        })
    }
}

fn turn(tx: &mut Tx<'_>, project: &mut Project, enabled: bool) -> Result<()> {
    if enabled && !project.enabled && directory::ancestors(tx, project)?.iter().any(|p| !p.enabled) {
        return Err(Error::forbidden(format!(
            "Cannot enable project {} since it has disabled parents.",
            project.id
        )));
    }
    if !enabled && project.enabled {
        if directory::below(tx, project.id.as_str())?.iter().any(|p| p.enabled) {
            return Err(Error::forbidden(format!(
                "Cannot disable project {} since its subtree contains enabled projects.",
                project.id
            )));
        }
        project.revoked_before = Some(tx.now());
        revocations::note(tx, Of::Project(&project.id))?;
    }
    project.enabled = enabled;
    Ok(())
}

/// Deletes a project and what is the project's.
pub(super) fn remove(tx: &mut Tx<'_>, id: &ProjectId) -> Result<()> {
    tx.delete_where::<Assignment>(&Query::new().eq("project_id", id))?;
    tx.delete_where::<ApplicationCredential>(&Query::new().eq("project_id", id))?;
    tx.delete_where::<Credential>(&Query::new().eq("project_id", id))?;
    tx.delete_where::<Limit>(&Query::new().eq("project_id", id))?;
    tx.delete_where::<EndpointFilter>(&Query::new().eq("project_id", id))?;
    super::trusts::of_project_end(tx, id)?;
    crate::oauth1::of_project_end(tx, id)?;
    revocations::note(tx, Of::Project(id))?;
    for mut user in tx.list::<User>(&Query::new().eq("default_project_id", id))? {
        user.default_project_id = None;
        tx.update(&mut user)?;
    }
    tx.delete::<Project>(id)?;
    directory::touch_all(tx)
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    if let Some(domain) = as_domain(&cx, &req, "identity:delete_domain").await? {
        return super::domains::erase(&cx, domain.id).await;
    }
    let id = allowed(&cx, &req).await?.id;
    cx.write(move |tx| {
        let project = directory::project(tx, &id)?;
        if immutable(&project.options) {
            return Err(immutable_error("delete", "project", id.as_str()));
        }
        if tx.exists::<Project>(&Query::new().eq("parent_id", id.as_str()))? {
            return Err(Error::forbidden(format!(
                "Cannot delete the project {id} since it is not a leaf in the hierarchy. Use the cascade option if you want to delete a whole subtree."
            )));
        }
        remove(tx, &id)
    })
    .await?;
    Ok(Reply::empty())
}

fn tags_reply(cx: &Cx, project: &Project) -> Reply {
    let own = cx.url(&format!("/v3/projects/{}/tags", project.id));
    Reply::json(&json!({"links": {"self": own}, "tags": project.tags}))
}

/// Changes a project's tags.
async fn change_tags(
    cx: &Cx,
    id: ProjectId,
    change: impl Fn(&mut Vec<String>) -> Result<()> + Send + Sync + 'static,
) -> Result<Project> {
    cx.write(move |tx| {
        let mut project = directory::project(tx, &id)?;
        may_change(&project.options, None, "project", project.id.as_str())?;
        change(&mut project.tags)?;
        tx.update(&mut project)?;
        Ok(project)
    })
    .await
}

async fn list_tags(cx: Cx, req: Request<()>) -> Result<Reply> {
    let project = allowed(&cx, &req).await?;
    Ok(tags_reply(&cx, &project))
}

async fn put_tags(cx: Cx, req: Request<Tags>) -> Result<Reply> {
    let given = req.body.0.get("tags").ok_or_else(|| missing("tags"))?;
    check_tags("tags", given)?;
    let tags: Vec<String> = serde_json::from_value(given.clone()).map_err(Error::internal)?;
    let project = allowed(&cx, &req).await?;
    let project = change_tags(&cx, project.id, move |held| {
        held.clone_from(&tags);
        Ok(())
    });
    Ok(tags_reply(&cx, &project.await?))
}

async fn delete_tags(cx: Cx, req: Request<()>) -> Result<Reply> {
    let project = allowed(&cx, &req).await?;
    let emptied = change_tags(&cx, project.id, |held| {
        held.clear();
        Ok(())
    });
    emptied.await?;
    Ok(Reply::empty())
}

async fn check_one_tag(cx: Cx, req: Request<()>) -> Result<Reply> {
    let project = allowed(&cx, &req).await?;
    let tag = req.param("tag");
    if project.tags.iter().any(|t| t == tag) { Ok(Reply::empty()) } else { Err(no_tag(tag)) }
}

async fn put_tag(cx: Cx, req: Request<()>) -> Result<Reply> {
    let project = allowed(&cx, &req).await?;
    let tag = req.param("tag").to_owned();
    check_tag("tag", &tag)?;
    let path = req.path().to_owned();
    let added = change_tags(&cx, project.id, move |held| {
        if !held.contains(&tag) {
            if held.len() >= 80 {
                return Err(invalid("tags", "the list is too long"));
            }
            held.push(tag.clone());
        }
        Ok(())
    });
    added.await?;
    Ok(Reply::empty().location(cx.url(&path)))
}

async fn delete_tag(cx: Cx, req: Request<()>) -> Result<Reply> {
    let project = allowed(&cx, &req).await?;
    let tag = req.param("tag").to_owned();
    let removed = change_tags(&cx, project.id, move |held| {
        let before = held.len();
        held.retain(|t| *t != tag);
        if held.len() == before { Err(no_tag(&tag)) } else { Ok(()) }
    });
    removed.await?;
    Ok(Reply::empty())
}
