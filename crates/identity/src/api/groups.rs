//! Groups of users, and who is in them.

use ::api::{Op, Reply, Request, Target};
use base::{DomainId, Error, GroupId, Result, UserId};
use serde_json::{Value, json};
use store::{Query, Tx};

use super::grants::not_of_administrators;
use super::{
    Cx, default_domain, enforce, entity, listed, listed_from, one, own_domain_target, token_domain, users,
};
use crate::directory;
use crate::ldap;
use crate::logic::body::{Doc, Kind, may, may_null, must, shape};
use crate::model::{Actor, Assignment, Group, Membership, User};
use crate::state::State;
use crate::words::{no_group, no_user, told};

shape!(
    GroupCreate,
    "group",
    true,
    [
        must("name", Kind::Text(1, 255)),
        may("domain_id", Kind::Id),
        may_null("description", Kind::Text(0, 65_535)),
    ]
);

shape!(
    GroupUpdate,
    "group",
    true,
    [
        may("name", Kind::Text(1, 255)),
        may("domain_id", Kind::Id),
        may_null("description", Kind::Text(0, 65_535)),
    ]
);

pub(super) fn ops() -> Vec<Op<State>> {
    const MEMBER: &str = "/v3/groups/{group_id}/users/{user_id}";
    vec![
        Op::get("/v3/groups", "identity:list_groups", list).summary("Lists groups."),
        Op::post("/v3/groups", "identity:create_group", create).status(201).summary("Makes a group."),
        Op::get("/v3/groups/{group_id}", "identity:get_group", show).summary("Shows a group."),
        Op::patch("/v3/groups/{group_id}", "identity:update_group", update).summary("Changes a group."),
        Op::delete("/v3/groups/{group_id}", "identity:delete_group", delete).summary("Deletes a group."),
        Op::get("/v3/groups/{group_id}/users", "identity:list_users_in_group", list_users)
            .summary("Lists the users in a group."),
        Op::put(MEMBER, "identity:add_user_to_group", add).status(204).summary("Adds a user to a group."),
        Op::get(MEMBER, "identity:check_user_in_group", check)
            .status(204)
            .summary("Checks whether a user is in a group."),
        Op::delete(MEMBER, "identity:remove_user_from_group", take_out)
            .summary("Takes a user out of a group."),
    ]
}

pub(super) fn wire(cx: &Cx, group: &Group) -> Value {
    let own = json!({
        "id": group.id, "name": group.name, "domain_id": group.domain_id, "description": group.description,
    });
    entity(cx, &format!("/v3/groups/{}", group.id), own, &group.extra)
}

/// Adds the policy attributes of a group; of one that does not exist: nothing.
pub(super) fn target(onto: Target, group: Option<&Group>) -> Target {
    match group {
        None => onto,
        Some(group) => onto
            .set("target.group.id", group.id.as_str())
            .set("target.group.domain_id", group.domain_id.as_str()),
    }
}

async fn allowed<T>(cx: &Cx, req: &Request<T>) -> Result<Group> {
    let text = req.param("group_id").to_owned();
    let id = GroupId::new(text.clone());
    let group = cx.read(move |tx| tx.get::<Group>(&id)).await?;
    enforce(cx, &target(Target::none(), group.as_ref()))?;
    group.ok_or_else(|| no_group(&text))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &own_domain_target(&cx))?;
    let pairs = req.query_pairs();
    let mut query = Query::new();
    if let Some(name) = pairs.get("name") {
        query = query.eq("name", name);
    }
    let own = token_domain(&cx);
    for domain in pairs.get("domain_id").into_iter().chain(own.as_ref().map(DomainId::as_str)) {
        query = query.eq("domain_id", domain);
    }
    listed_from(&cx, &req, "groups", query, |_: &Group| true, wire, &["domain_id", "name"]).await
}

fn conflict(name: &str, domain: &DomainId) -> String {
    format!("Duplicate entry found with name {name} at domain ID {domain}")
}

async fn create(cx: Cx, req: Request<Doc<GroupCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let domain = fields.text("domain_id");
    let asked = match &domain {
        None => Target::none(),
        Some(domain) => Target::none().set("target.group.domain_id", domain.as_str()),
    };
    enforce(&cx, &asked)?;
    let group = Group {
        id: GroupId::random(&cx.entropy),
        meta: store::Meta::default(),
        domain_id: domain.map_or_else(|| default_domain(&cx), DomainId::new),
        name: fields.text("name").unwrap_or_default(),
        description: fields.nullable("description").flatten().unwrap_or_default(),
        extra: fields.extra(),
    };
    let made = cx
        .write(move |tx| {
            let mut group = group.clone();
            directory::domain(tx, &group.domain_id)?;
            ldap::not_in_directory(tx, &group.domain_id)?;
            told(tx.insert(&mut group), "group", || conflict(&group.name, &group.domain_id))?;
            Ok(group)
        })
        .await?;
    Ok(one("group", wire(&cx, &made)))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let group = allowed(&cx, &req).await?;
    Ok(one("group", wire(&cx, &group)))
}

async fn update(cx: Cx, req: Request<Doc<GroupUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let held = allowed(&cx, &req).await?;
    not_of_administrators(&cx, Actor::Group(held.id.clone())).await?;
    fields.same_id(held.id.as_str())?;
    if fields.text("domain_id").is_some_and(|d| d != held.domain_id.as_str()) {
        return Err(Error::bad_request("Invalid input for field 'domain_id': Cannot change Domain ID"));
    }
    let (name, description) = (fields.text("name"), fields.nullable("description"));
    let (extra, id) = (fields.extra(), held.id);
    let changed = cx
        .write(move |tx| {
            let mut group = directory::group(tx, &id)?;
            ldap::not_mirrored(tx, id.as_str())?;
            if let Some(name) = &name {
                group.name.clone_from(name);
            }
            if let Some(description) = &description {
                group.description = description.clone().unwrap_or_default();
            }
            group.extra.extend(extra.clone());
            told(tx.update(&mut group), "group", || conflict(&group.name, &group.domain_id))?;
            Ok(group)
        })
        .await?;
    Ok(one("group", wire(&cx, &changed)))
}

/// Deletes a group and what is the group's.
pub(super) fn remove(tx: &mut Tx<'_>, id: &GroupId) -> Result<()> {
    tx.delete_where::<Membership>(&Query::new().eq("group_id", id))?;
    tx.delete_where::<Assignment>(&Query::new().eq("group_id", id))?;
    tx.delete::<Group>(id)?;
    directory::touch_all(tx)
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = allowed(&cx, &req).await?.id;
    not_of_administrators(&cx, Actor::Group(id.clone())).await?;
    cx.write(move |tx| {
        directory::group(tx, &id)?;
        ldap::not_mirrored(tx, id.as_str())?;
        remove(tx, &id)
    })
    .await?;
    Ok(Reply::empty())
}

async fn list_users(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = allowed(&cx, &req).await?.id;
    let mut found = cx
        .read(move |tx| {
            let members = tx.list::<Membership>(&Query::new().eq("group_id", &id))?;
            tx.list::<User>(&Query::new().is_in("id", members.iter().map(|m| &m.user_id)))
        })
        .await?;
    if let Some(fits) = users::expiring(&req)? {
        found.retain(fits);
    }
    let items = found.iter().map(|u| users::wire(&cx, u)).collect();
    listed(&cx, &req, "users", items, &["domain_id", "enabled", "name"])
}

/// Group and user of the path, if the caller may.
async fn pair(cx: &Cx, req: &Request<()>) -> Result<(GroupId, UserId)> {
    let (group_text, user_text) = (req.param("group_id").to_owned(), req.param("user_id").to_owned());
    let (group_id, user_id) = (GroupId::new(group_text.clone()), UserId::new(user_text.clone()));
    let (group, user) =
        cx.read(move |tx| Ok((tx.get::<Group>(&group_id)?, tx.get::<User>(&user_id)?))).await?;
    enforce(cx, &target(users::target(user.as_ref()), group.as_ref()))?;
    let user = user.ok_or_else(|| no_user(&user_text))?;
    let group = group.ok_or_else(|| no_group(&group_text))?;
    Ok((group.id, user.id))
}

async fn add(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (group, user) = pair(&cx, &req).await?;
    not_of_administrators(&cx, Actor::Group(group.clone())).await?;
    cx.write(move |tx| {
        directory::group(tx, &group)?;
        directory::user(tx, &user)?;
        ldap::not_mirrored(tx, group.as_str())?;
        let mut membership = Membership::new(&user, &group);
        if tx.get::<Membership>(&membership.id)?.is_none() {
            directory::insert_once(tx, &mut membership)?;
            directory::touch_user(tx, &user)?;
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}

fn not_in(user: &UserId, group: &GroupId) -> Error {
    Error::not_found(format!("User '{user}' not found in group '{group}'."))
}

async fn check(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (group, user) = pair(&cx, &req).await?;
    let id = Membership::id_of(&user, &group);
    let found = cx.read(move |tx| tx.get::<Membership>(&id)).await?;
    found.map(|_| Reply::empty()).ok_or_else(|| not_in(&user, &group))
}

async fn take_out(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (group, user) = pair(&cx, &req).await?;
    not_of_administrators(&cx, Actor::Group(group.clone())).await?;
    cx.write(move |tx| {
        ldap::not_mirrored(tx, group.as_str())?;
        if !tx.delete::<Membership>(&Membership::id_of(&user, &group))? {
            return Err(not_in(&user, &group));
        }
        directory::touch_user(tx, &user)
    })
    .await?;
    Ok(Reply::empty())
}
