//! What all handlers share: the project in the URL, loading with permission, links, lists.

use ::api::{Ctx, Reply, Request, Target};
use base::{AttachmentId, Error, HostId, ProjectId, Result, SnapshotId, VolumeId, VolumeTypeId};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use crate::State;
use crate::logic::list::Page;
use crate::logic::machine::no_volume;
use crate::model::{Attachment, Snapshot, TypeAccess, Volume, VolumeType};

/// The token's project, which the URL may repeat.
pub(crate) fn here<T>(cx: &Ctx<State>, req: &Request<T>) -> Result<ProjectId> {
    let own = cx.project_id()?;
    let told = req.param("project_id");
    if !told.is_empty() && told != own.as_str() {
        return Err(Error::bad_request("Malformed request url"));
    }
    Ok(own.clone())
}

/// 404 for a path parameter that is no volume id.
pub(crate) fn missing_volume(text: &str) -> Error {
    no_volume(text)
}

/// The 404 of a snapshot.
pub(crate) fn no_snapshot(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("Snapshot {id} could not be found."))
}

/// 404 for a path parameter that is no snapshot id.
pub(crate) fn missing_snapshot(text: &str) -> Error {
    no_snapshot(text)
}

/// The 404 of an attachment.
pub(crate) fn no_attachment(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("Volume attachment could not be found with filter: attachment_id = {id}."))
}

/// 404 for a path parameter that is no attachment id.
pub(crate) fn missing_attachment(text: &str) -> Error {
    no_attachment(text)
}

/// The 404 of a type.
pub(crate) fn no_type(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("Volume type {id} could not be found."))
}

/// 404 for a path parameter that is no type id.
pub(crate) fn missing_type(text: &str) -> Error {
    no_type(text)
}

/// The volume, if this operation's rule lets the caller at it.
pub(crate) fn volume(tx: &mut Tx<'_>, cx: &Ctx<State>, id: VolumeId) -> Result<Volume> {
    let volume = tx.get::<Volume>(&id)?.ok_or_else(|| no_volume(id))?;
    cx.allow(&Target::project(&volume.project_id).user(&volume.user_id).missing(no_volume(id).public()))?;
    Ok(volume)
}

/// The snapshot, if this operation's rule lets the caller at it.
pub(crate) fn snapshot(tx: &mut Tx<'_>, cx: &Ctx<State>, id: SnapshotId) -> Result<Snapshot> {
    let snapshot = tx.get::<Snapshot>(&id)?.ok_or_else(|| no_snapshot(id))?;
    cx.allow(
        &Target::project(&snapshot.project_id).user(&snapshot.user_id).missing(no_snapshot(id).public()),
    )?;
    Ok(snapshot)
}

/// The attachment, if this operation's rule lets the caller at it.
pub(crate) fn attachment(tx: &mut Tx<'_>, cx: &Ctx<State>, id: AttachmentId) -> Result<Attachment> {
    let attachment = tx.get::<Attachment>(&id)?.ok_or_else(|| no_attachment(id))?;
    cx.allow(&Target::project(&attachment.project_id).missing(no_attachment(id).public()))?;
    Ok(attachment)
}

/// Whether a project may use a type.
pub(crate) fn may_use(tx: &mut Tx<'_>, kind: &VolumeType, project: &ProjectId, admin: bool) -> Result<bool> {
    Ok(admin
        || kind.is_public
        || tx.exists::<TypeAccess>(&Query::new().eq("type_id", kind.id).eq("project_id", project))?)
}

/// A type by id or name that the project may use.
pub(crate) fn type_named(
    tx: &mut Tx<'_>,
    text: &str,
    project: &ProjectId,
    admin: bool,
) -> Result<VolumeType> {
    let by_id = match text.parse::<VolumeTypeId>() {
        Ok(id) => tx.get::<VolumeType>(&id)?,
        Err(_) => None,
    };
    let kind = match by_id {
        Some(kind) => kind,
        None => tx.first::<VolumeType>(&Query::new().eq("name", text))?.ok_or_else(|| no_type(text))?,
    };
    if may_use(tx, &kind, project, admin)? { Ok(kind) } else { Err(no_type(text)) }
}

/// The default type.
pub(crate) fn default_type(tx: &mut Tx<'_>, name: &str) -> Result<VolumeType> {
    tx.first::<VolumeType>(&Query::new().eq("name", name))?
        .ok_or_else(|| Error::not_found("Default volume type can not be found."))
}

/// Attachments of a volume.
pub(crate) fn attachments(tx: &mut Tx<'_>, volume: VolumeId) -> Result<Vec<Attachment>> {
    tx.list::<Attachment>(&Query::new().eq("volume_id", volume).sort("created_at", store::Order::Asc))
}

/// `self` and `bookmark` of a thing.
pub(crate) fn links(cx: &Ctx<State>, project: &ProjectId, path: &str) -> Value {
    json!([
        {"rel": "self", "href": cx.url(&format!("/v3/{project}{path}"))},
        {"rel": "bookmark", "href": cx.url(&format!("/{project}{path}"))},
    ])
}

/// `{"<key>": items, "<key>_links": [next]}`.
pub(crate) fn paged<T>(
    cx: &Ctx<State>,
    req: &Request<T>,
    page: &Page,
    key: &str,
    items: Vec<Value>,
    next: Option<String>,
    count: Option<usize>,
) -> Reply {
    let mut body = Map::new();
    body.insert(key.to_owned(), Value::Array(items));
    if let Some(marker) = next {
        let limit = page.limit.map(|l| l.to_string());
        let mut with = vec![("marker", marker.as_str())];
        if let Some(limit) = &limit {
            with.insert(0, ("limit", limit));
        }
        let query = req.query_pairs().rebuild(&["limit", "marker", "offset"], &with);
        let href = cx.url(&format!("{}?{query}", req.path()));
        body.insert(format!("{key}_links"), json!([{"rel": "next", "href": href}]));
    }
    if let Some(count) = count {
        body.insert("count".to_owned(), json!(count));
    }
    Reply::json(&body)
}

/// Asks a reconciler to see to a volume, and thereby its host.
pub(crate) fn wake_volume(tx: &mut Tx<'_>, id: VolumeId) {
    tx.wake("volume", id);
}

/// The host's name as Cinder shows it.
pub(crate) fn host_label(name: &str) -> String {
    format!("{name}@local#local")
}

/// A host id as text where its name is unknown.
pub(crate) fn host_text(id: HostId) -> String {
    host_label(&id.to_string())
}
