//! Roles, and which role implies which.

use ::api::{Op, Reply, Request, Target};
use base::{DomainId, Error, Result, RoleId};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::{
    Cx, enforce, entity, immutable, immutable_error, listed, may_change, merge_options, one, options,
    own_domain_target,
};
use crate::directory;
use crate::logic::body::{Doc, Kind, may, may_null, must, shape};
use crate::model::{Assignment, ImpliedRole, Role};
use crate::revocations::{self, Of};
use crate::state::State;
use crate::words::{no_role, told};

shape!(
    RoleCreate,
    "role",
    true,
    [
        must("name", Kind::Text(1, 255)),
        may_null("description", Kind::Text(0, 255)),
        may_null("domain_id", Kind::Id),
        may("options", Kind::Object),
    ]
);

shape!(
    RoleUpdate,
    "role",
    true,
    [
        may("name", Kind::Text(1, 255)),
        may_null("description", Kind::Text(0, 255)),
        may("options", Kind::Object),
    ]
);

pub(super) fn ops() -> Vec<Op<State>> {
    const IMPLIED: &str = "/v3/roles/{prior_role_id}/implies/{implied_role_id}";
    vec![
        Op::get("/v3/roles", "identity:list_roles", list).summary("Lists roles."),
        Op::post("/v3/roles", "identity:create_role", create).status(201).summary("Makes a role."),
        Op::get("/v3/roles/{role_id}", "identity:get_role", show).summary("Shows a role."),
        Op::patch("/v3/roles/{role_id}", "identity:update_role", update).summary("Changes a role."),
        Op::delete("/v3/roles/{role_id}", "identity:delete_role", delete).summary("Deletes a role."),
        Op::get("/v3/roles/{role_id}/implies", "identity:list_implied_roles", list_implied)
            .summary("Lists the roles a role implies."),
        Op::put(IMPLIED, "identity:create_implied_role", imply)
            .status(201)
            .summary("Makes a role imply another."),
        Op::get(IMPLIED, "identity:get_implied_role", show_implied)
            .summary("Shows that a role implies another."),
        Op::head(IMPLIED, "identity:get_implied_role", check_implied)
            .summary("Checks whether a role implies another."),
        Op::delete(IMPLIED, "identity:delete_implied_role", imply_no_more)
            .summary("Ends that a role implies another."),
        Op::get("/v3/role_inferences", "identity:list_role_inference_rules", list_inferences)
            .summary("Lists which roles imply which."),
    ]
}

pub(super) fn wire(cx: &Cx, role: &Role) -> Value {
    let own = json!({
        "id": role.id, "name": role.name, "domain_id": role.domain(), "description": role.description,
        "options": role.options,
    });
    entity(cx, &format!("/v3/roles/{}", role.id), own, &role.extra)
}

/// Adds the policy attributes of a role.
pub(super) fn target(onto: Target, role: &Role) -> Target {
    onto.set("target.role.id", role.id.as_str())
        .set("target.role.name", role.name.as_str())
        .set("target.role.domain_id", role.domain().unwrap_or("None"))
}

/// The role of a path parameter, if the caller may. A role that does not exist is no secret: that is told first, as
/// in Keystone.
async fn allowed<T>(cx: &Cx, req: &Request<T>, param: &str) -> Result<Role> {
    let text = req.param(param).to_owned();
    let id = RoleId::new(text.clone());
    let role = cx.read(move |tx| tx.get::<Role>(&id)).await?.ok_or_else(|| no_role(&text))?;
    enforce(cx, &target(own_domain_target(cx), &role))?;
    Ok(role)
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &own_domain_target(&cx))?;
    // Without a domain only global roles are listed.
    let domain = req.query_pairs().get("domain_id").unwrap_or("").to_owned();
    if let Some(own) = super::token_domain(&cx)
        && !domain.is_empty()
        && domain != own.as_str()
        && !cx.allows("admin_or_reader", &Target::none())
    {
        return listed(&cx, &req, "roles", Vec::new(), &[]);
    }
    let found = cx.read(move |tx| tx.list::<Role>(&Query::new().eq("domain_key", &domain))).await?;
    let items = found.iter().map(|r| wire(&cx, r)).collect();
    listed(&cx, &req, "roles", items, &["name"])
}

fn conflict(name: &str) -> String {
    format!("Duplicate entry found with name {name}")
}

async fn create(cx: Cx, req: Request<Doc<RoleCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let role = Role {
        id: RoleId::random(&cx.entropy),
        meta: store::Meta::default(),
        name: fields.text("name").unwrap_or_default(),
        domain_key: fields.nullable("domain_id").flatten().unwrap_or_default(),
        description: fields.nullable("description").flatten(),
        options: options(fields.object("options"), &[("immutable", true)])?.unwrap_or_default(),
        extra: fields.extra(),
    };
    let made = cx
        .write(move |tx| {
            let mut role = role.clone();
            if let Some(domain) = role.domain() {
                directory::domain(tx, &DomainId::new(domain))?;
            }
            told(tx.insert(&mut role), "role", || conflict(&role.name))?;
            Ok(role)
        })
        .await?;
    Ok(one("role", wire(&cx, &made)))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let role = allowed(&cx, &req, "role_id").await?;
    Ok(one("role", wire(&cx, &role)))
}

async fn update(cx: Cx, req: Request<Doc<RoleUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let held = allowed(&cx, &req, "role_id").await?;
    fields.same_id(held.id.as_str())?;
    if fields.has("domain_id") && fields.nullable("domain_id").flatten().as_deref() != held.domain() {
        return Err(Error::bad_request("Invalid input for field 'domain_id': Cannot change Domain ID"));
    }
    let (name, description) = (fields.text("name"), fields.nullable("description"));
    let given = options(fields.object("options"), &[("immutable", true)])?;
    let (extra, id) = (fields.extra(), held.id);
    let changed = cx
        .write(move |tx| {
            let mut role = directory::role(tx, &id)?;
            may_change(&role.options, given.as_ref(), "role", role.id.as_str())?;
            if let Some(name) = &name {
                role.name.clone_from(name);
            }
            if let Some(description) = &description {
                role.description.clone_from(description);
            }
            if let Some(given) = &given {
                merge_options(&mut role.options, given.clone());
            }
            role.extra.extend(extra.clone());
            told(tx.update(&mut role), "role", || conflict(&role.name))?;
            directory::touch_all(tx)?;
            Ok(role)
        })
        .await?;
    Ok(one("role", wire(&cx, &changed)))
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = allowed(&cx, &req, "role_id").await?.id;
    cx.write(move |tx| {
        let role = directory::role(tx, &id)?;
        if immutable(&role.options) {
            return Err(immutable_error("delete", "role", id.as_str()));
        }
        tx.delete_where::<ImpliedRole>(&Query::new().eq("prior_role_id", &id))?;
        tx.delete_where::<ImpliedRole>(&Query::new().eq("implied_role_id", &id))?;
        tx.delete_where::<Assignment>(&Query::new().eq("role_id", &id))?;
        revocations::note(tx, Of::Role(&id))?;
        tx.delete::<Role>(&id)?;
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}

// ---- implied roles

fn brief(cx: &Cx, role: &Role) -> Value {
    json!({
        "id": role.id, "name": role.name, "links": {"self": cx.url(&format!("/v3/roles/{}", role.id))},
    })
}

fn implied_by(tx: &mut Tx<'_>, prior: &RoleId) -> Result<Vec<Role>> {
    let rules = tx.list::<ImpliedRole>(&Query::new().eq("prior_role_id", prior))?;
    tx.list::<Role>(&Query::new().is_in("id", rules.iter().map(|r| &r.implied_role_id)))
}

async fn list_implied(cx: Cx, req: Request<()>) -> Result<Reply> {
    let prior = allowed(&cx, &req, "role_id").await?;
    let id = prior.id.clone();
    let implied = cx.read(move |tx| implied_by(tx, &id)).await?;
    let implies: Vec<Value> = implied.iter().map(|r| brief(&cx, r)).collect();
    Ok(Reply::json(&json!({
        "role_inference": {"prior_role": brief(&cx, &prior), "implies": implies},
        "links": {"self": cx.url(&format!("/v3/roles/{}/implies", prior.id))},
    })))
}

/// Both roles of the path, if the caller may.
async fn both(cx: &Cx, req: &Request<()>) -> Result<(Role, Role)> {
    let prior = allowed(cx, req, "prior_role_id").await?;
    let implied = allowed(cx, req, "implied_role_id").await?;
    Ok((prior, implied))
}

fn inference(cx: &Cx, prior: &Role, implied: &Role) -> Reply {
    Reply::json(&json!({
        "role_inference": {"prior_role": brief(cx, prior), "implies": brief(cx, implied)},
        "links": {"self": cx.url(&format!("/v3/roles/{}/implies/{}", prior.id, implied.id))},
    }))
}

async fn imply(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (prior, implied) = both(&cx, &req).await?;
    // Nothing may lead to admin by the back door, and nothing global to a domain's own role.
    if implied.name == "admin" || (prior.domain().is_none() && implied.domain().is_some()) {
        return Err(Error::forbidden(format!("{} cannot be an implied roles.", implied.id)));
    }
    let (from, to) = (prior.id.clone(), implied.id.clone());
    cx.write(move |tx| {
        directory::role(tx, &from)?;
        directory::role(tx, &to)?;
        let mut rule = ImpliedRole::new(&from, &to);
        if tx.get::<ImpliedRole>(&rule.id)?.is_none() {
            directory::insert_once(tx, &mut rule)?;
            directory::touch_all(tx)?;
        }
        Ok(())
    })
    .await?;
    Ok(inference(&cx, &prior, &implied))
}

async fn present(cx: &Cx, prior: &Role, implied: &Role) -> Result<()> {
    let id = ImpliedRole::id_of(&prior.id, &implied.id);
    let found = cx.read(move |tx| tx.get::<ImpliedRole>(&id)).await?;
    found.map(|_| ()).ok_or_else(|| not_implied(&prior.id, &implied.id))
}

fn not_implied(prior: &RoleId, implied: &RoleId) -> Error {
    Error::not_found(format!("{prior} does not imply {implied}."))
}

async fn show_implied(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (prior, implied) = both(&cx, &req).await?;
    present(&cx, &prior, &implied).await?;
    Ok(inference(&cx, &prior, &implied))
}

async fn check_implied(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (prior, implied) = both(&cx, &req).await?;
    present(&cx, &prior, &implied).await?;
    Ok(Reply::empty())
}

async fn imply_no_more(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (prior, implied) = both(&cx, &req).await?;
    let (from, to) = (prior.id, implied.id);
    cx.write(move |tx| {
        if !tx.delete::<ImpliedRole>(&ImpliedRole::id_of(&from, &to))? {
            return Err(not_implied(&from, &to));
        }
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}

async fn list_inferences(cx: Cx, _: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let (roles, rules) =
        cx.read(|tx| Ok((tx.list::<Role>(&Query::new())?, tx.list::<ImpliedRole>(&Query::new())?))).await?;
    let mut inferences = Vec::new();
    for prior in &roles {
        let implied = rules.iter().filter(|r| r.prior_role_id == prior.id);
        let implied = implied.filter_map(|r| roles.iter().find(|i| i.id == r.implied_role_id));
        let implies: Vec<Value> = implied.map(|r| brief(&cx, r)).collect();
        if !implies.is_empty() {
            inferences.push(json!({"prior_role": brief(&cx, prior), "implies": implies}));
        }
    }
    let mut body = Map::new();
    body.insert("role_inferences".into(), Value::Array(inferences));
    body.insert("links".into(), json!({"self": cx.url("/v3/role_inferences")}));
    Ok(Reply::json(&Value::Object(body)))
}
