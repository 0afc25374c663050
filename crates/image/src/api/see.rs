//! Who may see which image.

use ::api::{Ctx, Target};
use base::{Error, ImageId, ProjectId, Result};
use store::{Query, Tx};

use crate::State;
use crate::model::{Image, Member};

/// The 404 of an image that is not there or not to be known of.
pub(crate) fn no_image(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("No image found with ID {id}"))
}

/// The same, for a path parameter that is no id.
pub(crate) fn missing(text: &str) -> Error {
    no_image(text)
}

/// The membership of a project in an image.
pub(crate) fn membership(tx: &mut Tx<'_>, image: ImageId, project: &ProjectId) -> Result<Option<Member>> {
    let query = Query::new().eq("image_id", image).eq("member_id", project);
    Ok(tx.list::<Member>(&query)?.into_iter().next())
}

/// Whether a caller may know of the image.
pub(crate) fn visible_to(
    tx: &mut Tx<'_>,
    image: &Image,
    project: Option<&ProjectId>,
    admin: bool,
) -> Result<bool> {
    if admin || matches!(image.visibility.as_str(), "public" | "community") || image.owner.is_none() {
        return Ok(true);
    }
    let Some(project) = project else { return Ok(false) };
    if image.owner.as_ref() == Some(project) {
        return Ok(true);
    }
    Ok(image.visibility == "shared" && membership(tx, image.id, project)?.is_some())
}

/// The image, if the caller may see it.
pub(crate) fn find(tx: &mut Tx<'_>, cx: &Ctx<State>, id: ImageId) -> Result<Image> {
    let image = tx.get::<Image>(&id)?.ok_or_else(|| no_image(id))?;
    if visible_to(tx, &image, cx.auth().project_id(), cx.is_admin())? { Ok(image) } else { Err(no_image(id)) }
}

/// What a rule is checked against. Only for images the caller may see: a denial is a 403.
pub(crate) fn target(image: &Image) -> Target {
    let target = match &image.owner {
        Some(owner) => Target::project(owner),
        None => Target::none(),
    };
    target.visible(true).set("visibility", image.visibility.clone()).missing(no_image(image.id).public())
}

/// The image, if the caller may see it and this operation's rule lets it.
pub(crate) fn allowed(tx: &mut Tx<'_>, cx: &Ctx<State>, id: ImageId) -> Result<Image> {
    let image = find(tx, cx, id)?;
    cx.allow(&target(&image))?;
    Ok(image)
}
