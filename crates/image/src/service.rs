//! What other services may ask: [`contract::services::Images`].

use std::path::PathBuf;

use ::api::Target;
use async_trait::async_trait;
use base::{Error, ImageId, Result};
use bytes::Bytes;
use contract::AuthContext;
use contract::services::{ImageInfo, Images};
use futures::stream::BoxStream;

use crate::State;
use crate::api::visible_to;
use crate::model::{Image, status};

pub(crate) use contract::blocking;

fn info(image: Image) -> ImageInfo {
    let data = image.data;
    ImageInfo {
        id: image.id,
        name: image.name.unwrap_or_default(),
        status: image.status,
        owner: image.owner,
        disk_format: image.probed.or(image.disk_format).unwrap_or_default(),
        container_format: image.container_format.unwrap_or_default(),
        size: data.as_ref().map_or(0, |d| d.size),
        virtual_size: data.as_ref().map_or(0, |d| d.virtual_size),
        min_disk_gib: image.min_disk,
        min_ram_mib: image.min_ram,
        sha512: data.map(|d| d.sha512).unwrap_or_default(),
        properties: image.properties,
    }
}

fn no_image(id: ImageId) -> Error {
    Error::not_found(format!("Image {id} could not be found."))
}

impl State {
    async fn stored(&self, id: ImageId) -> Result<Image> {
        let image = self.store().read(move |tx| tx.get::<Image>(&id)).await?;
        image.filter(|i| i.data.is_some()).ok_or_else(|| no_image(id))
    }
}

#[async_trait]
impl Images for State {
    async fn get(&self, auth: &AuthContext, id: ImageId) -> Result<ImageInfo> {
        let admin = self.policy.allows("context_is_admin", auth, &Target::none());
        let project = auth.project_id().cloned();
        let image = self
            .store()
            .read(move |tx| {
                let Some(image) = tx.get::<Image>(&id)? else { return Ok(None) };
                Ok(visible_to(tx, &image, project.as_ref(), admin)?.then_some(image))
            })
            .await?;
        image.map(info).ok_or_else(|| no_image(id))
    }

    async fn describe(&self, id: ImageId) -> Result<ImageInfo> {
        let image = self.store().read(move |tx| tx.get::<Image>(&id)).await?;
        image.map(info).ok_or_else(|| no_image(id))
    }

    async fn read(&self, id: ImageId, offset: u64) -> Result<BoxStream<'static, Result<Bytes>>> {
        let image = self.stored(id).await?;
        let size = image.data.map_or(0, |d| d.size);
        self.files.read(id, offset.min(size), size.saturating_sub(offset)).await
    }

    async fn local_path(&self, id: ImageId) -> Result<Option<PathBuf>> {
        let image = self.stored(id).await?;
        Ok((image.status != status::DEACTIVATED).then(|| self.files.path(id)))
    }
}
