//! What other services may ask: [`contract::services::Volumes`].

use std::collections::BTreeMap;

use async_trait::async_trait;
use base::{AttachmentId, Error, HostId, Kind, Result, ServerId, SnapshotId, VolumeId};
use contract::AuthContext;
use contract::host::{ImageRef, VolumeSource};
use contract::services::{ImageInfo, VolumeInfo, VolumeOrigin, VolumeRequest, Volumes};
use store::Tx;

use crate::State;
use crate::api::common::{attachments, default_type, no_snapshot, type_named, wake_volume};
use crate::api::remove;
use crate::logic::machine::{by_attachments, may_attach, no_volume, same_volume, size_over};
use crate::logic::quota::{self, Claim};
use crate::model::{Attachment, Host, Snapshot, Volume, status};

/// Bytes of a GiB.
const GIB: u64 = 1 << 30;

/// The image as a host needs it.
pub(crate) fn image_ref(image: &ImageInfo) -> ImageRef {
    ImageRef {
        id: image.id,
        sha512: image.sha512.clone(),
        format: image.disk_format.clone(),
        size: image.size,
    }
}

/// Whether an image fits into a volume.
///
/// # Errors
/// `BadRequest` in Cinder's words.
pub(crate) fn image_size(image: &ImageInfo, size_gib: u64) -> Result<()> {
    let bad = |text: String| Err(Error::bad_request(format!("Invalid input received: {text}")));
    if image.status != "active" {
        return bad(format!("Image {} is not active.", image.id));
    }
    if !matches!(image.disk_format.as_str(), "raw" | "qcow2" | "iso") || image.container_format != "bare" {
        return bad(format!(
            "Image {} of format {} in {} cannot be made a volume.",
            image.id, image.disk_format, image.container_format
        ));
    }
    let least = image.virtual_size.div_ceil(GIB);
    if least > size_gib {
        return bad(format!("Size of specified image {least}GB is larger than volume size {size_gib}GB."));
    }
    if image.min_disk_gib > size_gib {
        return bad(format!(
            "Volume size {size_gib}GB cannot be smaller than the image minDisk size {}GB.",
            image.min_disk_gib
        ));
    }
    Ok(())
}

/// Makes the volume bootable and keeps what the image said.
pub(crate) fn bootable_from(image: &ImageInfo, volume: &mut Volume) {
    volume.bootable = true;
    volume.image_metadata = image_metadata(image);
}

fn image_metadata(image: &ImageInfo) -> BTreeMap<String, String> {
    let mut metadata = image.properties.clone();
    metadata.extend([
        ("image_id".to_owned(), image.id.to_string()),
        ("image_name".to_owned(), image.name.clone()),
        ("container_format".to_owned(), image.container_format.clone()),
        ("disk_format".to_owned(), image.disk_format.clone()),
        ("min_disk".to_owned(), image.min_disk_gib.to_string()),
        ("min_ram".to_owned(), image.min_ram_mib.to_string()),
        ("size".to_owned(), image.size.to_string()),
    ]);
    metadata
}

fn info(tx: &mut Tx<'_>, volume: Volume) -> Result<VolumeInfo> {
    let attachments = attachments(tx, volume.id)?;
    Ok(VolumeInfo {
        id: volume.id,
        project_id: volume.project_id,
        status: volume.status,
        size_gib: volume.size_gib,
        bootable: volume.bootable,
        multiattach: volume.multiattach,
        host: volume.host,
        image_metadata: volume.image_metadata,
        image_id: volume.image_id,
        attachments: attachments
            .into_iter()
            .filter_map(|a| a.server_id.map(|s| (a.id, s, a.device.unwrap_or_default())))
            .collect(),
    })
}

/// Gives the volume the status its attachments leave it in, unless something else happens to it.
pub(crate) fn settle(tx: &mut Tx<'_>, volume: &mut Volume) -> Result<()> {
    let now = by_attachments(attachments(tx, volume.id)?.iter());
    let own = [status::AVAILABLE, status::RESERVED, status::ATTACHING, status::IN_USE, status::DETACHING];
    if own.contains(&volume.status.as_str()) && volume.status != now {
        now.clone_into(&mut volume.status);
    }
    tx.update_status(volume)
}

#[async_trait]
impl Volumes for State {
    async fn get(&self, auth: &AuthContext, id: VolumeId) -> Result<VolumeInfo> {
        let admin = self.policy.allows("context_is_admin", auth, &::api::Target::none());
        let project = auth.project_id().cloned();
        self.store
            .read(move |tx| {
                let own = |v: &Volume| admin || Some(&v.project_id) == project.as_ref();
                let volume = tx.get::<Volume>(&id)?.filter(own).ok_or_else(|| no_volume(id))?;
                info(tx, volume)
            })
            .await
    }

    async fn snapshot(&self, auth: &AuthContext, id: SnapshotId) -> Result<(VolumeId, u64)> {
        let admin = self.policy.allows("context_is_admin", auth, &::api::Target::none());
        let project = auth.project_id().cloned();
        let own = move |s: &Snapshot| admin || Some(&s.project_id) == project.as_ref();
        let snapshot = self.store.read(move |tx| tx.get::<Snapshot>(&id)).await?;
        let snapshot = snapshot.filter(own).ok_or_else(|| no_snapshot(id))?;
        Ok((snapshot.volume_id, snapshot.size_gib))
    }

    async fn describe(&self, id: VolumeId) -> Result<VolumeInfo> {
        self.store
            .read(move |tx| {
                let volume = tx.get::<Volume>(&id)?.ok_or_else(|| no_volume(id))?;
                info(tx, volume)
            })
            .await
    }

    async fn ensure_volume(&self, request: &VolumeRequest) -> Result<VolumeInfo> {
        match self.describe(request.id).await {
            Err(error) if error.kind() == Kind::NotFound => {}
            other => return other,
        }
        let image = match request.origin {
            VolumeOrigin::Image(id) => Some(self.images.describe(id).await?),
            _ => None,
        };
        if let Some(image) = &image {
            image_size(image, request.size_gib)?;
        }
        let request = request.clone();
        let config = self.config.clone();
        self.store
            .write(move |tx| {
                if let Some(there) = tx.get::<Volume>(&request.id)? {
                    return info(tx, there);
                }
                let mut volume = asked(tx, &config, &request, image.as_ref())?;
                tx.insert(&mut volume)?;
                wake_volume(tx, volume.id);
                info(tx, volume)
            })
            .await
    }

    async fn reserve(&self, id: VolumeId, attachment: AttachmentId, server: ServerId) -> Result<()> {
        self.store
            .write(move |tx| {
                let mut volume = tx.get::<Volume>(&id)?.ok_or_else(|| no_volume(id))?;
                if let Some(there) = tx.get::<Attachment>(&attachment)? {
                    return same_volume(&there, id);
                }
                may_attach(&volume)?;
                let mut row = Attachment::reserved(attachment, &volume, Some(server), true);
                tx.insert(&mut row)?;
                settle(tx, &mut volume)
            })
            .await
    }

    async fn attached(
        &self,
        id: VolumeId,
        attachment: AttachmentId,
        device: &str,
        host: HostId,
    ) -> Result<()> {
        let device = device.to_owned();
        self.store
            .write(move |tx| {
                let mut volume = tx.get::<Volume>(&id)?.ok_or_else(|| no_volume(id))?;
                let mut row = tx
                    .get::<Attachment>(&attachment)?
                    .filter(|a| a.volume_id == id)
                    .ok_or_else(|| crate::api::common::no_attachment(attachment))?;
                if row.status == "attached" && row.device.as_deref() == Some(&device) && volume.host.is_some()
                {
                    return Ok(());
                }
                row.status = "attached".to_owned();
                row.device = Some(device.clone());
                row.attached_at = row.attached_at.or(Some(tx.now()));
                row.host_name = tx.get::<Host>(&host)?.map(|h| h.name).or(row.host_name);
                tx.update_status(&mut row)?;
                volume.host = volume.host.or(Some(host));
                settle(tx, &mut volume)
            })
            .await
    }

    async fn detached(&self, id: VolumeId, attachment: AttachmentId) -> Result<()> {
        self.store
            .write(move |tx| {
                if tx.get::<Attachment>(&attachment)?.is_none_or(|a| a.volume_id != id) {
                    return Ok(());
                }
                tx.delete::<Attachment>(&attachment)?;
                match tx.get::<Volume>(&id)? {
                    Some(mut volume) => settle(tx, &mut volume),
                    None => Ok(()),
                }
            })
            .await
    }

    async fn delete(&self, id: VolumeId) -> Result<()> {
        self.store
            .write(move |tx| {
                let Some(mut volume) = tx.get::<Volume>(&id)? else { return Ok(()) };
                // A volume that is still being made for a server that goes is given up as well.
                remove(tx, &mut volume, true, true)
            })
            .await
    }
}

/// A volume another service asks for.
fn asked(
    tx: &mut Tx<'_>,
    config: &crate::Config,
    request: &VolumeRequest,
    image: Option<&ImageInfo>,
) -> Result<Volume> {
    let project = &request.project_id;
    let kind = match &request.volume_type {
        Some(text) => type_named(tx, text, project, false)?,
        None => default_type(tx, &config.default_type)?,
    };
    let zone = config.availability_zone.clone();
    let mut volume = Volume::blank(request.id, project.clone(), request.user_id.clone(), zone, tx.now());
    volume.name.clone_from(&request.name);
    volume.size_gib = request.size_gib;
    volume.volume_type_id = kind.id;
    volume.host = request.host;
    match (&request.origin, image) {
        (VolumeOrigin::Image(id), Some(image)) => {
            volume.source = VolumeSource::Image(image_ref(image));
            volume.image_id = Some(*id);
            bootable_from(image, &mut volume);
        }
        (VolumeOrigin::Snapshot(id), _) => {
            let own = |s: &Snapshot| s.project_id == *project;
            let snapshot = tx.get::<Snapshot>(id)?.filter(own).ok_or_else(|| no_snapshot(id))?;
            size_over(Some(request.size_gib), snapshot.size_gib, "snapshot")?;
            if snapshot.host.is_some() && request.host.is_some() && snapshot.host != request.host {
                return Err(Error::conflict(format!(
                    "Snapshot {id} is stored on another host than the server's."
                )));
            }
            volume.source = VolumeSource::Snapshot(*id);
            volume.snapshot_id = Some(*id);
            volume.host = snapshot.host.or(request.host);
            if let Some(origin) = tx.get::<Volume>(&snapshot.volume_id)? {
                volume.bootable = origin.bootable;
                volume.image_metadata = origin.image_metadata;
                volume.image_id = origin.image_id;
            }
        }
        _ => {}
    }
    quota::claim_size(tx, &config.quotas, project, volume.size_gib)?;
    let claim = Claim { volumes: 1, gigabytes: volume.size_gib, snapshots: 0 };
    quota::claim(tx, &config.quotas, project, &kind, claim)?;
    Ok(volume)
}
