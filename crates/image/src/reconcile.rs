//! Imports staged bytes; cleans up after deleted images and dead uploads.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::reconcile::{Outcome, Reconciler};
use async_trait::async_trait;
use base::{ImageId, Result};
use store::Query;

use crate::State;
use crate::api::{abandon, commit};
use crate::files::Received;
use crate::model::{Image, status};

/// The reconciler of kind `image`; keys are image ids.
pub(crate) struct Images(pub Arc<State>);

#[async_trait]
impl Reconciler for Images {
    fn kind(&self) -> &'static str {
        "image"
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome> {
        let Ok(id) = key.parse::<ImageId>() else { return Ok(Outcome::Done) };
        let Some(image) = self.0.store().read(move |tx| tx.get::<Image>(&id)).await? else {
            let files = self.0.files.clone();
            crate::service::blocking(move || files.remove(id)).await?;
            return Ok(Outcome::Done);
        };
        match image.status.as_str() {
            status::IMPORTING => self.import(&image).await?,
            status::SAVING | status::UPLOADING => self.bury(&image).await?,
            _ => {}
        }
        Ok(Outcome::Done)
    }

    /// Images with an upload under way, bytes without an image, and temporary files no one writes or waits for.
    async fn sweep(&self) -> Result<Vec<String>> {
        let (rows, busy) = self
            .0
            .store()
            .read(|tx| {
                let rows = tx.list::<Image>(&Query::new())?;
                let busy: Vec<Image> = rows.iter().filter(|i| i.upload.is_some()).cloned().collect();
                Ok((rows.into_iter().map(|i| i.id).collect::<BTreeSet<ImageId>>(), busy))
            })
            .await?;
        let files = self.0.files.clone();
        crate::service::blocking(move || {
            let named = |i: &Image| i.upload.as_ref().map(|u| u.token.clone());
            let tokens: BTreeSet<String> = busy.iter().filter_map(named).collect();
            let (data, incoming) = files.list()?;
            for token in incoming.iter().filter(|t| !tokens.contains(*t)) {
                files.discard_if_stale(token)?;
            }
            let mut keys: Vec<String> =
                data.iter().filter(|id| !rows.contains(id)).map(ToString::to_string).collect();
            for image in busy.iter().filter(|i| unfinished(i)) {
                if !files.alive(&named(image).unwrap_or_default())? {
                    keys.push(image.id.to_string());
                }
            }
            Ok(keys)
        })
        .await
    }
}

/// Whether something has to come of the image's upload.
fn unfinished(image: &Image) -> bool {
    match image.status.as_str() {
        status::UPLOADING => image.upload.as_ref().is_none_or(|u| u.staged.is_none()),
        status::SAVING | status::IMPORTING => true,
        _ => false,
    }
}

impl Images {
    async fn import(&self, image: &Image) -> Result<()> {
        let Some(upload) = &image.upload else { return Ok(()) };
        let (files, token) = (self.0.files.clone(), upload.token.clone());
        let taken = crate::service::blocking(move || files.take(&token)).await?;
        let (Some(incoming), Some((md5, sha512))) = (taken, upload.staged.clone()) else {
            if self.0.files.alive(&upload.token)? {
                // Another replica is at it.
                return Ok(());
            }
            let why = Some("the staged data is gone".to_owned());
            return abandon(&self.0, image.id, &upload.token, why).await;
        };
        let received = Received { size: upload.size, md5, sha512 };
        match commit(&self.0, image, incoming, received).await {
            Ok(()) => Ok(()),
            Err(error) if !error.is_transient() => {
                tracing::info!(image = %image.id, error = %error.chain(), "import failed");
                abandon(&self.0, image.id, &upload.token, Some(error.public().to_owned())).await
            }
            Err(error) => Err(error),
        }
    }

    /// An upload whose writer is gone.
    async fn bury(&self, image: &Image) -> Result<()> {
        let Some(upload) = &image.upload else { return Ok(()) };
        if image.status == status::UPLOADING && upload.staged.is_some() {
            return Ok(());
        }
        let (files, token) = (self.0.files.clone(), upload.token.clone());
        if crate::service::blocking(move || files.alive(&token)).await? {
            return Ok(());
        }
        tracing::info!(image = %image.id, "an upload died; the image waits for data again");
        abandon(&self.0, image.id, &upload.token, None).await
    }
}
