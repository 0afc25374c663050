//! Image records: list, create, show, update, delete, tags, deactivation.

use std::collections::BTreeMap;

use ::api::paging::Dir;
use ::api::{Ctx, Reply, Request};
use base::{Error, ImageId, Kind, ProjectId, Result};
use serde_json::Value;
use store::{Query, Tx};

use super::see::{allowed, find, missing, target};
use super::view::ImageView;
use crate::State;
use crate::logic::attributes::{self, invalid};
use crate::logic::filter::{self, Filter};
use crate::logic::patch;
use crate::model::{Image, Member, status};

/// Items of a page unless asked otherwise.
const PAGE: usize = 25;
/// Most items of a page.
const MAX_PAGE: usize = 1000;

pub(crate) async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let filter = Filter::parse(req.query_pairs().iter())?;
    let mut page = req.page(MAX_PAGE)?;
    page.sort_within(filter::SORT_KEYS)?;
    if req.query_pairs().has("sort") && req.query_pairs().has("sort_key") {
        return Err(Error::bad_request("Old and new sorting syntax cannot be combined"));
    }
    if !page.limited {
        page.limit = PAGE;
    }
    // Glance's direction where none is given is descending; `sort=` has its own default.
    let plain = !req.query_pairs().has("sort") && !req.query_pairs().has("sort_dir");
    let keys: Vec<(String, bool)> =
        page.sort.iter().map(|(key, dir)| (key.clone(), plain || *dir == Dir::Desc)).collect();
    let admin = cx.is_admin();
    let project = cx.auth().project_id().cloned();
    let mut images = {
        let filter = filter.clone();
        cx.store().read(move |tx| candidates(tx, &filter, project.as_ref(), admin)).await?
    };
    images.retain(|i| filter.matches(i));
    images.sort_by(|a, b| filter::order(&keys, a, b));
    if let Some(marker) = &page.marker {
        filter::after(&mut images, marker)?;
    }
    let more = images.len() > page.limit;
    images.truncate(page.limit);
    let next = images.last().filter(|_| more).map(|i| i.id.to_string());
    let views: Vec<ImageView<'_>> = images.iter().map(ImageView).collect();
    Ok(cx.list(&req, &page, "images", &views, next.as_deref()))
}

/// Images the caller may see and that have the wanted visibility.
fn candidates(
    tx: &mut Tx<'_>,
    filter: &Filter,
    project: Option<&ProjectId>,
    admin: bool,
) -> Result<Vec<Image>> {
    let mut query = Query::new();
    for column in ["status", "name"] {
        if let Some(value) = filter.exactly(column) {
            query = query.eq(column, value);
        }
    }
    let wanted = filter.visibility.as_deref();
    if let Some(one) = wanted.filter(|w| *w != "all") {
        query = query.eq("visibility", one);
    }
    // Other projects' community images are shown only to who asks for them.
    let mut any = match (wanted, admin) {
        (Some(_), true) => Vec::new(),
        (None, true) => vec![Query::new().ne("visibility", "community")],
        (Some(_), false) => vec![Query::new().is_in("visibility", ["public", "community"])],
        (None, false) => vec![Query::new().eq("visibility", "public")],
    };
    if let Some(project) = project.filter(|_| !any.is_empty()) {
        any.push(Query::new().eq("owner", project));
        if !admin && matches!(wanted, None | Some("all" | "shared")) {
            let mut offered = Query::new().eq("member_id", project);
            if let Some(answer) = &filter.member_status {
                offered = offered.eq("status", answer);
            }
            let ids: Vec<ImageId> = tx.list::<Member>(&offered)?.into_iter().map(|m| m.image_id).collect();
            if !ids.is_empty() {
                any.push(Query::new().is_in("id", ids).eq("visibility", "shared"));
            }
        }
    }
    if !any.is_empty() {
        query = query.any_of(any);
    }
    tx.list::<Image>(&query)
}

pub(crate) async fn create(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let Some(body) = req.body.as_object() else {
        return Err(Error::bad_request("Malformed request body: it is not of type 'object'"));
    };
    let admin = cx.is_admin();
    let own = cx.auth().project_id().cloned();
    if own.is_none() && !admin {
        return Err(Error::forbidden("An image needs a token that is scoped to a project."));
    }
    let id = match body.get("id") {
        None => ImageId::random(&cx.entropy),
        Some(Value::String(text)) => text.parse().map_err(|_| invalid("id", "it is not a UUID"))?,
        Some(_) => return Err(invalid("id", "it is not of type 'string'")),
    };
    let mut image = blank(id, own.clone());
    for (name, value) in body.iter().filter(|(name, _)| *name != "id") {
        attributes::set(&mut image, name, value, cx.config.bounds)?;
    }
    if image.owner != own && !admin {
        let owner = image.owner.as_ref().map(ToString::to_string).unwrap_or_default();
        return Err(Error::forbidden(format!("You are not permitted to create images owned by '{owner}'.")));
    }
    cx.allow(&target(&image))?;
    may_be_visible(&cx, &image, "shared")?;
    image.touched_at = cx.now();
    let image = cx
        .store()
        .write(move |tx| {
            let mut image = image.clone();
            tx.insert(&mut image)?;
            Ok(image)
        })
        .await
        .map_err(|error| match error.kind() {
            Kind::Conflict => Error::conflict(format!("Image ID {id} already exists!")),
            _ => error,
        })?;
    Ok(Reply::json(&ImageView(&image))
        .location(cx.url(&format!("/v2/images/{id}")))
        .header("openstack-image-import-methods", super::import::METHODS)
        .header("openstack-image-store-ids", super::import::STORE))
}

fn blank(id: ImageId, owner: Option<ProjectId>) -> Image {
    Image {
        id,
        meta: store::Meta::default(),
        owner,
        name: None,
        status: status::QUEUED.to_owned(),
        visibility: "shared".to_owned(),
        disk_format: None,
        container_format: None,
        probed: None,
        min_disk: 0,
        min_ram: 0,
        protected: false,
        os_hidden: false,
        tags: Vec::new(),
        properties: BTreeMap::new(),
        data: None,
        upload: None,
        touched_at: base::Timestamp::default(),
    }
}

/// Public and community images change what others see: they have rules of their own.
fn may_be_visible(cx: &Ctx<State>, image: &Image, before: &str) -> Result<()> {
    match image.visibility.as_str() {
        now if now == before => Ok(()),
        "public" => cx.allow_rule("publicize_image", &target(image)),
        "community" => cx.allow_rule("communitize_image", &target(image)),
        _ => Ok(()),
    }
}

pub(crate) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    let image = cx.clone().store().read(move |tx| find(tx, &cx, id)).await?;
    Ok(Reply::json(&ImageView(&image)))
}

pub(crate) async fn update(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    let old_form = req.header("content-type").is_some_and(|t| t.starts_with(patch::V2_0));
    let changes = patch::parse(&req.body, old_form)?;
    let state = cx.state().clone();
    let image = state
        .store()
        .write(move |tx| {
            let mut image = allowed(tx, &cx, id)?;
            let before = image.clone();
            for change in &changes {
                patch::apply(&mut image, change, cx.config.bounds)?;
            }
            if image.owner != before.owner && !cx.is_admin() {
                return Err(Error::forbidden("Owner can't be updated by non admin."));
            }
            may_be_visible(&cx, &image, &before.visibility)?;
            if image != before {
                tx.update(&mut image)?;
            }
            Ok(image)
        })
        .await?;
    Ok(Reply::json(&ImageView(&image)))
}

pub(crate) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id: ImageId = req.id_or("image_id", missing)?;
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let image = allowed(tx, &cx, id)?;
            if image.protected {
                return Err(Error::forbidden(format!("Image {id} is protected and cannot be deleted.")));
            }
            for member in tx.list::<Member>(&Query::new().eq("image_id", id))? {
                tx.delete::<Member>(&member.id)?;
            }
            tx.delete::<Image>(&id)?;
            tx.wake("image", id);
            Ok(())
        })
        .await?;
    Ok(Reply::empty())
}

pub(crate) async fn add_tag(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    let tag = req.param("tag").to_owned();
    attributes::tag(&tag)?;
    let bounds = cx.config.bounds;
    change(cx, id, move |image| {
        if !image.tags.contains(&tag) {
            image.tags.push(tag.clone());
        }
        attributes::tag_count(image.tags.len(), bounds)
    })
    .await
}

pub(crate) async fn delete_tag(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    let tag = req.param("tag").to_owned();
    change(cx, id, move |image| {
        let before = image.tags.len();
        image.tags.retain(|t| *t != tag);
        if image.tags.len() == before {
            return Err(Error::not_found(format!("Tag '{tag}' could not be found on image {id}.")));
        }
        Ok(())
    })
    .await
}

pub(crate) async fn deactivate(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    change(cx, id, |image| step(image, status::ACTIVE, status::DEACTIVATED, "deactivate")).await
}

pub(crate) async fn reactivate(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    change(cx, id, |image| step(image, status::DEACTIVATED, status::ACTIVE, "reactivate")).await
}

/// From one status to the other; being there already is success.
fn step(image: &mut Image, from: &str, to: &str, verb: &str) -> Result<()> {
    if image.status == from {
        image.status = to.to_owned();
    }
    if image.status == to {
        return Ok(());
    }
    Err(Error::forbidden(format!("Not allowed to {verb} image in status '{}'", image.status)))
}

/// Changes an image in one transaction; 204.
async fn change<F>(cx: Ctx<State>, id: ImageId, edit: F) -> Result<Reply>
where
    F: Fn(&mut Image) -> Result<()> + Send + Sync + 'static,
{
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let mut image = allowed(tx, &cx, id)?;
            let before = image.clone();
            edit(&mut image)?;
            if image != before { tx.update(&mut image) } else { Ok(()) }
        })
        .await?;
    Ok(Reply::empty())
}
