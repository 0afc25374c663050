//! Volumes: list, create, show, update, delete, summary.

use ::api::{Ctx, Reply, Request, Target};
use base::{Error, ImageId, Kind, ProjectId, Result, SnapshotId, VolumeId};
use contract::host::VolumeSource;
use contract::services::ImageInfo;
use serde_json::{Value, json};
use store::{Query, Tx};

use super::common::{
    attachments, default_type, here, missing_volume, no_snapshot, paged, type_named, volume, wake_volume,
};
use super::view::{self, Around};
use crate::State;
use crate::logic::input::{Fields, invalid};
use crate::logic::list::{Cell, Filters, Page, sort_by};
use crate::logic::machine::{may_delete, no_volume, size_over};
use crate::logic::quota::{self, Claim};
use crate::model::{Snapshot, Volume, status};
use crate::service::{bootable_from, image_ref, image_size};

const SORT_KEYS: &[&str] = &[
    "id",
    "status",
    "size",
    "availability_zone",
    "name",
    "display_name",
    "bootable",
    "created_at",
    "updated_at",
    "host",
    "volume_type_id",
    "volume_type",
    "user_id",
    "project_id",
];
const FILTERS: &[&str] = &[
    "name",
    "status",
    "bootable",
    "availability_zone",
    "id",
    "size",
    "volume_type_id",
    "volume_type",
    "multiattach",
    "project_id",
    "snapshot_id",
    "source_volid",
    "user_id",
    "description",
    "migration_status",
    "host",
];

pub(crate) async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    listing(cx, req, false).await
}

pub(crate) async fn detail(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    listing(cx, req, true).await
}

/// Volumes of the caller's project, or of all for an administrator who asks.
fn scope(cx: &Ctx<State>, project: &ProjectId, filters: &Filters) -> Query {
    let one = filters.exact.iter().find(|(k, _)| k == "project_id").map(|(_, v)| v.clone());
    match (cx.is_admin() && filters.all_tenants, one) {
        (true, None) => Query::new(),
        (true, Some(one)) => Query::new().eq("project_id", one),
        (false, _) => Query::new().eq("project_id", project),
    }
}

fn passing(volumes: Vec<Volume>, around: &Around, filters: &Filters) -> Vec<Volume> {
    let keep = |v: &Volume| {
        filters.pass(&v.metadata, |key| cell_text(v, around, key))
            && filters.image_metadata.iter().all(|(k, x)| v.image_metadata.get(k) == Some(x))
    };
    volumes.into_iter().filter(keep).collect()
}

async fn listing(cx: Ctx<State>, req: Request<()>, full: bool) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::project(&project))?;
    let page = Page::parse(req.query_pairs(), SORT_KEYS)?;
    let filters = Filters::parse(req.query_pairs(), FILTERS, cx.since(3, 34))?;
    let query = scope(&cx, &project, &filters);
    let (volumes, around) = cx
        .store()
        .read(move |tx| {
            let volumes = tx.list::<Volume>(&query)?;
            let around = Around::load(tx, &volumes)?;
            Ok((volumes, around))
        })
        .await?;
    let mut volumes = passing(volumes, &around, &filters);
    let newest = |v: &Volume| (v.meta.created_at, v.id.to_string());
    sort_by(&mut volumes, &page.sort, |v, key| cell(v, &around, key), newest);
    let with_count = full || cx.since(3, 45);
    let count =
        (with_count && req.query_pairs().bool("with_count")?.unwrap_or(false)).then_some(volumes.len());
    let next = page.cut(&mut volumes, |v| v.id.to_string())?;
    let items = volumes
        .iter()
        .map(|v| {
            if full { view::full_volume(&cx, &project, v, &around) } else { view::summary(&cx, &project, v) }
        })
        .collect();
    Ok(paged(&cx, &req, &page, "volumes", items, next, count))
}

fn cell_text(volume: &Volume, around: &Around, key: &str) -> String {
    match key {
        "id" => volume.id.to_string(),
        "name" | "display_name" => volume.name.clone(),
        "status" => volume.status.clone(),
        "size" => volume.size_gib.to_string(),
        "bootable" => volume.bootable.to_string(),
        "multiattach" => volume.multiattach.to_string(),
        "availability_zone" => volume.availability_zone.clone(),
        "volume_type_id" => volume.volume_type_id.to_string(),
        "volume_type" => around.type_name(volume).to_owned(),
        "project_id" => volume.project_id.to_string(),
        "user_id" => volume.user_id.to_string(),
        "description" => volume.description.clone().unwrap_or_default(),
        "snapshot_id" => volume.snapshot_id.map(|s| s.to_string()).unwrap_or_default(),
        "source_volid" => volume.source_volid.map(|s| s.to_string()).unwrap_or_default(),
        "host" => around.host(volume.host).unwrap_or_default(),
        _ => String::new(),
    }
}

fn cell(volume: &Volume, around: &Around, key: &str) -> Cell {
    match key {
        "size" => Cell::Number(i64::try_from(volume.size_gib).unwrap_or(i64::MAX)),
        "created_at" => Cell::Number(volume.meta.created_at.0),
        "updated_at" => Cell::Number(volume.meta.updated_at.0),
        _ => Cell::Text(cell_text(volume, around, key)),
    }
}

pub(crate) async fn summary(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::project(&project))?;
    let filters = Filters::parse(req.query_pairs(), FILTERS, false)?;
    let query = scope(&cx, &project, &filters);
    let volumes = cx.store().read(move |tx| tx.list::<Volume>(&query)).await?;
    let size: u64 = volumes.iter().map(|v| v.size_gib).sum();
    let mut view = json!({"total_size": size, "total_count": volumes.len()});
    if let (true, Some(map)) = (cx.since(3, 36), view.as_object_mut()) {
        let mut metadata: std::collections::BTreeMap<&str, Vec<&str>> = std::collections::BTreeMap::new();
        for (key, value) in volumes.iter().flat_map(|v| &v.metadata) {
            let values = metadata.entry(key).or_default();
            if !values.contains(&value.as_str()) {
                values.push(value);
            }
        }
        map.insert("metadata".to_owned(), json!(metadata));
    }
    Ok(Reply::json(&json!({"volume-summary": view})))
}

pub(crate) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    let id = req.id_or("volume_id", missing_volume)?;
    let state = cx.state().clone();
    let body = state.store().read(move |tx| shown(tx, &cx, &project, id)).await?;
    Ok(Reply::json(&body))
}

/// `{"volume": …}` of a volume the operation may read.
fn shown(tx: &mut Tx<'_>, cx: &Ctx<State>, project: &ProjectId, id: VolumeId) -> Result<Value> {
    let found = volume(tx, cx, id)?;
    let around = Around::load(tx, std::slice::from_ref(&found))?;
    Ok(json!({"volume": view::full_volume(cx, project, &found, &around)}))
}

/// `{"volume": …}` as the answer to a change.
fn render(tx: &mut Tx<'_>, cx: &Ctx<State>, project: &ProjectId, volume: &Volume) -> Result<Value> {
    let around = Around::load(tx, std::slice::from_ref(volume))?;
    Ok(json!({"volume": view::volume(cx, project, volume, &around)}))
}

/// What a creation asks for.
struct Wanted {
    id: VolumeId,
    name: String,
    description: Option<String>,
    size: Option<u64>,
    kind: Option<String>,
    zone: Option<String>,
    snapshot: Option<SnapshotId>,
    source: Option<VolumeId>,
    image: Option<ImageInfo>,
    metadata: std::collections::BTreeMap<String, String>,
    multiattach: bool,
}

pub(crate) async fn create(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::project(&project))?;
    let wanted = wanted(&cx, &req.body).await?;
    let state = cx.state().clone();
    let body = state
        .store()
        .write(move |tx| {
            let mut volume = assemble(tx, &cx, &project, &wanted)?;
            tx.insert(&mut volume)?;
            wake_volume(tx, volume.id);
            render(tx, &cx, &project, &volume)
        })
        .await?;
    Ok(Reply::json(&body))
}

async fn wanted(cx: &Ctx<State>, body: &Value) -> Result<Wanted> {
    let fields = Fields::of(body, "volume")?;
    let name = fields.name("name")?.or(fields.name("display_name")?).unwrap_or_default();
    let description = fields.text("description", 255)?.or(fields.text("display_description", 255)?);
    let size = fields.size("size")?;
    let kind = fields.text("volume_type", 255)?.filter(|t| !t.is_empty());
    let snapshot = fields.id("snapshot_id")?;
    let source = fields.id("source_volid")?;
    let image_field = if fields.get("imageRef").is_some() { "imageRef" } else { "image_id" };
    let image = match fields.text(image_field, 255)?.filter(|t| !t.is_empty()) {
        Some(text) => Some(image(cx, &text).await?),
        None => None,
    };
    for unsupported in ["backup_id", "consistencygroup_id", "group_id", "source_replica"] {
        if fields.get(unsupported).is_some() {
            return Err(invalid(unsupported, "This cloud has no such resource."));
        }
    }
    let sources =
        usize::from(snapshot.is_some()) + usize::from(source.is_some()) + usize::from(image.is_some());
    if sources > 1 {
        return Err(Error::bad_request(
            "Invalid input: snapshot_id, source_volid and imageRef exclude one another.",
        ));
    }
    if size.is_none() && snapshot.is_none() && source.is_none() {
        return Err(invalid("size", "It is a required property."));
    }
    Ok(Wanted {
        id: VolumeId::random(&cx.entropy),
        name,
        description,
        size,
        kind,
        zone: fields.text("availability_zone", 255)?.filter(|z| !z.is_empty()),
        snapshot,
        source,
        image,
        metadata: fields.metadata("metadata")?.unwrap_or_default(),
        multiattach: fields.boolean("multiattach")?.unwrap_or(false),
    })
}

async fn image(cx: &Ctx<State>, text: &str) -> Result<ImageInfo> {
    let bad = || Error::bad_request("Invalid image identifier or unable to access requested image.");
    // Older clients send a URL that ends with the id.
    let id = text.rsplit('/').next().unwrap_or(text).parse::<ImageId>().map_err(|_| bad())?;
    cx.images.get(cx.auth(), id).await.map_err(|error| match error.kind() {
        Kind::NotFound | Kind::Forbidden => bad(),
        _ => error,
    })
}

fn assemble(tx: &mut Tx<'_>, cx: &Ctx<State>, project: &ProjectId, wanted: &Wanted) -> Result<Volume> {
    let admin = cx.is_admin();
    let zone = wanted.zone.clone().unwrap_or_else(|| cx.config.availability_zone.clone());
    if zone != cx.config.availability_zone {
        return Err(Error::bad_request(format!(
            "Invalid input received: Availability zone '{zone}' is invalid."
        )));
    }
    let mut volume = Volume::blank(wanted.id, project.clone(), cx.user_id().clone(), zone, tx.now());
    volume.name.clone_from(&wanted.name);
    volume.description.clone_from(&wanted.description);
    volume.metadata.clone_from(&wanted.metadata);
    let mut kind = None;
    volume.size_gib = if let Some(id) = wanted.snapshot {
        kind = from_snapshot(tx, cx, project, id, &mut volume)?;
        size_over(wanted.size, volume.size_gib, "snapshot")?
    } else if let Some(id) = wanted.source {
        kind = Some(from_volume(tx, cx, project, id, &mut volume)?);
        size_over(wanted.size, volume.size_gib, "original volume")?
    } else {
        let size = wanted.size.ok_or_else(|| invalid("size", "It is a required property."))?;
        if let Some(image) = &wanted.image {
            image_size(image, size)?;
            volume.source = VolumeSource::Image(image_ref(image));
            volume.image_id = Some(image.id);
            bootable_from(image, &mut volume);
        }
        size
    };
    let kind = match (&wanted.kind, kind) {
        (Some(text), _) => type_named(tx, text, project, admin)?,
        (None, Some(id)) => tx.need::<crate::model::VolumeType>(&id)?,
        (None, None) => default_type(tx, &cx.config.default_type)?,
    };
    volume.volume_type_id = kind.id;
    volume.multiattach =
        wanted.multiattach || kind.extra_specs.get("multiattach").is_some_and(|v| v == "<is> True");
    quota::claim_size(tx, &cx.config.quotas, project, volume.size_gib)?;
    let claim = Claim { volumes: 1, gigabytes: volume.size_gib, snapshots: 0 };
    quota::claim(tx, &cx.config.quotas, project, &kind, claim)?;
    Ok(volume)
}

fn from_snapshot(
    tx: &mut Tx<'_>,
    cx: &Ctx<State>,
    project: &ProjectId,
    id: SnapshotId,
    volume: &mut Volume,
) -> Result<Option<base::VolumeTypeId>> {
    let own = |s: &Snapshot| s.project_id == *project || cx.is_admin();
    let snapshot = tx.get::<Snapshot>(&id)?.filter(own).ok_or_else(|| no_snapshot(id))?;
    if snapshot.status != status::AVAILABLE {
        return Err(Error::bad_request(format!(
            "Invalid snapshot: Originating snapshot status must be one of 'available' values (it is {}).",
            snapshot.status
        )));
    }
    volume.size_gib = snapshot.size_gib;
    volume.source = VolumeSource::Snapshot(id);
    volume.snapshot_id = Some(id);
    volume.host = snapshot.host;
    let Some(origin) = tx.get::<Volume>(&snapshot.volume_id)? else { return Ok(None) };
    volume.bootable = origin.bootable;
    volume.image_metadata = origin.image_metadata;
    volume.image_id = origin.image_id;
    Ok(Some(origin.volume_type_id))
}

fn from_volume(
    tx: &mut Tx<'_>,
    cx: &Ctx<State>,
    project: &ProjectId,
    id: VolumeId,
    volume: &mut Volume,
) -> Result<base::VolumeTypeId> {
    let own = |v: &Volume| v.project_id == *project || cx.is_admin();
    let origin = tx.get::<Volume>(&id)?.filter(own).ok_or_else(|| no_volume(id))?;
    if !matches!(origin.status.as_str(), status::AVAILABLE | status::IN_USE) {
        return Err(crate::logic::machine::invalid_volume(format!(
            "Invalid source volume: volume {id} is {}.",
            origin.status
        )));
    }
    volume.size_gib = origin.size_gib;
    volume.source_volid = Some(id);
    volume.bootable = origin.bootable;
    volume.image_metadata = origin.image_metadata;
    volume.image_id = origin.image_id;
    // A volume that no host has made yet is copied by making the same again.
    if origin.made {
        volume.source = VolumeSource::Volume(id);
        volume.host = origin.host;
    } else {
        volume.source = origin.source;
    }
    Ok(origin.volume_type_id)
}

pub(crate) async fn update(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    let id = req.id_or("volume_id", missing_volume)?;
    let fields = Fields::of(&req.body, "volume")?;
    fields.only(&["name", "display_name", "description", "display_description", "metadata"])?;
    let name = fields.name("name")?.or(fields.name("display_name")?);
    let description = fields.text("description", 255)?.or(fields.text("display_description", 255)?);
    let metadata = fields.metadata("metadata")?;
    let clears = fields.has("description") && description.is_none();
    if name.is_none() && description.is_none() && metadata.is_none() && !clears && !fields.has("name") {
        return Err(Error::bad_request(
            "Invalid input for field/attribute volume. It has no field that can be updated.",
        ));
    }
    let state = cx.state().clone();
    let body = state
        .store()
        .write(move |tx| {
            let mut volume = volume(tx, &cx, id)?;
            if let Some(name) = &name {
                volume.name.clone_from(name);
            }
            if description.is_some() || clears {
                volume.description.clone_from(&description);
            }
            if let Some(metadata) = &metadata {
                volume.metadata.clone_from(metadata);
            }
            // No host has to do anything: the generation stays.
            tx.update_status(&mut volume)?;
            render(tx, &cx, &project, &volume)
        })
        .await?;
    Ok(Reply::json(&body))
}

pub(crate) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("volume_id", missing_volume)?;
    let cascade = req.query_pairs().bool("cascade")?.unwrap_or(false);
    let force = cx.since(3, 23) && req.query_pairs().bool("force")?.unwrap_or(false);
    if force && !cx.allows("volume:force_delete", &Target::none()) {
        return Err(cx.dialect().policy_denied("volume:force_delete"));
    }
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let mut volume = volume(tx, &cx, id)?;
            remove(tx, &mut volume, cascade, force)
        })
        .await?;
    Ok(Reply::empty())
}

/// Begins the deletion of a volume.
pub(crate) fn remove(tx: &mut Tx<'_>, volume: &mut Volume, cascade: bool, force: bool) -> Result<()> {
    let id = volume.id;
    if volume.doomed {
        return Ok(());
    }
    let attached = !attachments(tx, id)?.is_empty();
    let mut snapshots = tx.list::<Snapshot>(&Query::new().eq("volume_id", id))?;
    let held = if cascade { 0 } else { snapshots.len() as u64 };
    may_delete(volume, attached, held, force)?;
    for snapshot in &mut snapshots {
        snapshot.status = status::DELETING.to_owned();
        snapshot.doomed = true;
        snapshot.since = tx.now();
        tx.update_status(snapshot)?;
        tx.wake("volume_snapshot", snapshot.id);
    }
    volume.status = status::DELETING.to_owned();
    volume.doomed = true;
    volume.since = tx.now();
    tx.update_status(volume)?;
    wake_volume(tx, id);
    Ok(())
}
