//! Members: projects a shared image is offered to, and their answers.

use ::api::{Ctx, JsonSchema, Reply, Request, Target};
use base::{Error, ImageId, Kind, ProjectId, Result};
use serde::{Deserialize, Serialize};
use store::{Query, Tx};

use super::see::{allowed, find, membership, missing};
use super::view::MemberView;
use crate::State;
use crate::model::{Image, Member};

/// Body of POST.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct NewMember {
    /// The project.
    member: String,
}

/// Body of PUT.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Answer {
    /// `accepted`, `pending` or `rejected`.
    status: String,
}

#[derive(Serialize)]
struct Members<'a> {
    members: Vec<MemberView<'a>>,
    schema: &'static str,
}

/// 403 for images that have no members.
fn shared(image: &Image) -> Result<()> {
    if image.visibility == "shared" {
        return Ok(());
    }
    Err(Error::forbidden("Only shared images have members."))
}

fn owns(cx: &Ctx<State>, image: &Image) -> bool {
    cx.is_admin() || (image.owner.is_some() && image.owner.as_ref() == cx.auth().project_id())
}

fn no_member(id: impl std::fmt::Display, image: ImageId) -> Error {
    Error::not_found(format!("{id} not found in the member list of the image {image}."))
}

pub(crate) async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id: ImageId = req.id_or("image_id", missing)?;
    let state = cx.state().clone();
    let members = state
        .store()
        .read(move |tx| {
            let image = find(tx, &cx, id)?;
            shared(&image)?;
            let mut members = tx.list::<Member>(&Query::new().eq("image_id", id))?;
            if !owns(&cx, &image) {
                members.retain(|m| Some(&m.member_id) == cx.auth().project_id());
            }
            members.sort_by_key(|m| (m.meta.created_at, m.member_id.clone()));
            Ok(members)
        })
        .await?;
    let members = members.iter().map(MemberView).collect();
    Ok(Reply::json(&Members { members, schema: "/v2/schemas/members" }))
}

pub(crate) async fn create(cx: Ctx<State>, req: Request<NewMember>) -> Result<Reply> {
    let id: ImageId = req.id_or("image_id", missing)?;
    let project: ProjectId =
        req.body.member.parse().map_err(|_| {
            Error::bad_request("Member can't be empty and has at most 64 characters without '/'")
        })?;
    let member_id = cx.entropy.uuid();
    let state = cx.state().clone();
    let member = state
        .store()
        .write(move |tx| {
            let image = allowed(tx, &cx, id)?;
            shared(&image)?;
            if tx.count::<Member>(&Query::new().eq("image_id", id))? >= cx.config.members as u64 {
                return Err(Error::too_large(format!(
                    "The limit has been exceeded on the number of allowed image members for this image. Maximum: {}",
                    cx.config.members
                )));
            }
            let mut member = Member {
                id: member_id,
                meta: store::Meta::default(),
                image_id: id,
                member_id: project.clone(),
                status: "pending".to_owned(),
            };
            tx.insert(&mut member)?;
            Ok(member)
        })
        .await
        .map_err(|error| match error.kind() {
            Kind::Conflict => Error::conflict("The image member already exists."),
            _ => error,
        })?;
    Ok(Reply::json(&MemberView(&member)))
}

/// The member, if the caller may know: the owner of the image, and the member itself.
fn known(tx: &mut Tx<'_>, cx: &Ctx<State>, image: &Image, text: &str) -> Result<Member> {
    shared(image)?;
    let none = || no_member(text, image.id);
    let project: ProjectId = text.parse().map_err(|_| none())?;
    if !owns(cx, image) && cx.auth().project_id() != Some(&project) {
        return Err(none());
    }
    membership(tx, image.id, &project)?.ok_or_else(none)
}

pub(crate) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    let text = req.param("member_id").to_owned();
    let state = cx.state().clone();
    let member = state
        .store()
        .read(move |tx| {
            let image = find(tx, &cx, id)?;
            known(tx, &cx, &image, &text)
        })
        .await?;
    Ok(Reply::json(&MemberView(&member)))
}

pub(crate) async fn update(cx: Ctx<State>, req: Request<Answer>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    let text = req.param("member_id").to_owned();
    let answer = req.body.status;
    if !["accepted", "pending", "rejected"].contains(&answer.as_str()) {
        return Err(Error::bad_request("Invalid status: it must be one of accepted, pending, rejected"));
    }
    let state = cx.state().clone();
    let member = state
        .store()
        .write(move |tx| {
            let image = find(tx, &cx, id)?;
            let mut member = known(tx, &cx, &image, &text)?;
            // Only the member answers; the owner cannot answer for it.
            cx.allow(&Target::none().set("member_id", member.member_id.as_str()))?;
            member.status.clone_from(&answer);
            tx.update(&mut member)?;
            Ok(member)
        })
        .await?;
    Ok(Reply::json(&MemberView(&member)))
}

pub(crate) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    let text = req.param("member_id").to_owned();
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let image = allowed(tx, &cx, id)?;
            let member = known(tx, &cx, &image, &text)?;
            tx.delete::<Member>(&member.id).map(|_| ())
        })
        .await?;
    Ok(Reply::empty())
}
