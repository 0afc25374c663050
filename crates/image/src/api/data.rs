//! Bytes in and out.

use contract::blocking;
use std::sync::Arc;

use ::api::{Ctx, RawBody, Reply, Request};
use base::{Error, ImageId, Kind, ProjectId, Result};
use store::{Query, Tx};

use super::see::{allowed, find, missing, target};
use crate::State;
use crate::files::{Incoming, Received, too_large};
use crate::logic::inspect::{self, Inspection, Refusal};
use crate::model::{Data, Image, Upload, status};

pub(crate) async fn upload(cx: Ctx<State>, req: Request<RawBody>) -> Result<Reply> {
    receive(cx, req, status::SAVING).await
}

/// Takes bytes for an image: `becomes` is `saving` (inspected and published at once) or `uploading` (staged).
pub(crate) async fn receive(cx: Ctx<State>, req: Request<RawBody>, becomes: &'static str) -> Result<Reply> {
    let id: ImageId = req.id_or("image_id", missing)?;
    let announced = req.header("content-length").and_then(|t| t.parse::<u64>().ok());
    let limit = cx.config.max_image_bytes;
    if announced.is_some_and(|n| n > limit) {
        return Err(too_large(limit));
    }
    let state = cx.state().clone();
    let token = state.entropy.uuid().simple().to_string();
    let incoming = {
        let (state, token) = (state.clone(), token.clone());
        blocking(move || state.files.begin(token)).await?
    };
    let begun = {
        let token = token.clone();
        state.store().write(move |tx| begin(tx, &cx, id, &token, announced, becomes)).await
    };
    let limit = match begun {
        Ok(limit) => limit,
        Err(error) => {
            state.files.discard(&token)?;
            return Err(error);
        }
    };
    // A task of its own: a client that goes away ends the request, but what was begun is brought to an end.
    let stream = req.body.into_stream();
    let work = tokio::spawn(async move {
        let done = match incoming.receive(stream, limit).await {
            Ok((incoming, received)) if becomes == status::SAVING => {
                publish(&state, id, incoming, received).await
            }
            Ok((incoming, received)) => staged(&state, id, &incoming, received).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &done {
            tracing::info!(image = %id, error = %error.chain(), "upload failed");
            abandon(&state, id, &token, None).await?;
        }
        done
    });
    work.await.map_err(Error::internal)??;
    Ok(Reply::empty())
}

/// Claims the image for an upload; answers how many bytes it may bring.
fn begin(
    tx: &mut Tx<'_>,
    cx: &Ctx<State>,
    id: ImageId,
    token: &str,
    announced: Option<u64>,
    becomes: &str,
) -> Result<u64> {
    let mut image = allowed(tx, cx, id)?;
    if image.status != status::QUEUED {
        return Err(Error::conflict(format!(
            "Image status transition from {} to {becomes} is not allowed",
            image.status
        )));
    }
    if becomes == status::SAVING {
        formats(&image)?;
    }
    let mut limit = cx.config.max_image_bytes;
    if let (Some(bound), Some(owner)) = (cx.config.project_bytes, &image.owner) {
        let used = used(tx, owner)?;
        let left = bound.saturating_sub(used);
        if announced.unwrap_or(1) > left {
            return Err(Error::over_quota(format!(
                "User has exceeded the image storage quota of {bound} bytes; {used} bytes are in use."
            )));
        }
        limit = limit.min(left);
    }
    image.status = becomes.to_owned();
    image.upload =
        Some(Upload { token: token.to_owned(), size: announced.unwrap_or(0), staged: None, failure: None });
    image.touched_at = tx.now();
    tx.update_status(&mut image)?;
    Ok(limit)
}

/// Both formats must be known before bytes are checked against them.
pub(crate) fn formats(image: &Image) -> Result<(&str, &str)> {
    match (&image.disk_format, &image.container_format) {
        (Some(disk), Some(container)) => Ok((disk, container)),
        _ => Err(Error::bad_request(
            "Properties disk_format, container_format must be set prior to saving data.",
        )),
    }
}

/// Bytes a project's images hold or are about to.
fn used(tx: &mut Tx<'_>, owner: &ProjectId) -> Result<u64> {
    let images = tx.list::<Image>(&Query::new().eq("owner", owner))?;
    Ok(images
        .iter()
        .map(|i| i.data.as_ref().map(|d| d.size).or(i.upload.as_ref().map(|u| u.size)).unwrap_or(0))
        .fold(0, u64::saturating_add))
}

/// Inspects what came in and makes the image active.
async fn publish(state: &Arc<State>, id: ImageId, incoming: Incoming, received: Received) -> Result<()> {
    let image = state.store().read(move |tx| tx.get::<Image>(&id)).await?.ok_or_else(|| gone(id))?;
    if image.upload.as_ref().is_none_or(|u| u.token != incoming.token) {
        return Err(gone(id));
    }
    commit(state, &image, incoming, received).await
}

/// Inspects the bytes as what the image declares, gives them their final name and makes the image active. Whoever
/// calls this holds the lock of `incoming`, so that no one takes the upload for dead in between.
pub(crate) async fn commit(
    state: &Arc<State>,
    image: &Image,
    mut incoming: Incoming,
    received: Received,
) -> Result<()> {
    let id = image.id;
    let (disk, container) = formats(image)?;
    let (disk, container) = (disk.to_owned(), container.to_owned());
    let files = state.files.clone();
    let (incoming, found) = blocking(move || {
        let found = inspect::inspect_as(&disk, &container, incoming.reader()?).map_err(refused)?;
        files.publish(&incoming, id)?;
        Ok((incoming, found))
    })
    .await?;
    let token = incoming.token.clone();
    state.store().write(move |tx| activate(tx, id, &token, &received, found)).await?;
    // Only now the other name goes, and with it the lock.
    state.files.discard(&incoming.token)
}

fn activate(tx: &mut Tx<'_>, id: ImageId, token: &str, received: &Received, found: Inspection) -> Result<()> {
    let mut image = tx.get::<Image>(&id)?.ok_or_else(|| gone(id))?;
    if image.upload.as_ref().is_none_or(|u| u.token != token) {
        return Err(gone(id));
    }
    image.status = status::ACTIVE.to_owned();
    image.upload = None;
    image.probed = Some(found.format.name().to_owned());
    image.data = Some(Data {
        size: received.size,
        virtual_size: found.virtual_size,
        checksum: received.md5.clone(),
        sha512: received.sha512.clone(),
    });
    image.touched_at = tx.now();
    tx.update_status(&mut image)
}

/// Notes that staged bytes are whole.
async fn staged(state: &Arc<State>, id: ImageId, incoming: &Incoming, received: Received) -> Result<()> {
    let token = incoming.token.clone();
    state
        .store()
        .write(move |tx| {
            let mut image = tx.get::<Image>(&id)?.ok_or_else(|| gone(id))?;
            match &mut image.upload {
                Some(upload) if upload.token == token => {
                    upload.size = received.size;
                    upload.staged = Some((received.md5.clone(), received.sha512.clone()));
                }
                _ => return Err(gone(id)),
            }
            tx.update_status(&mut image)
        })
        .await
}

/// Ends an upload that failed or died: nothing of it stays, and the image waits for bytes again. `why` is kept for
/// people where the failure could not be answered to anyone.
pub(crate) async fn abandon(state: &Arc<State>, id: ImageId, token: &str, why: Option<String>) -> Result<()> {
    let files = state.files.clone();
    let named = token.to_owned();
    // The bytes go first: while the row still names the upload, no other one can have published.
    let current = state.store().read(move |tx| tx.get::<Image>(&id)).await?;
    let ours = |image: &Image| image.upload.as_ref().is_some_and(|u| u.token == named);
    let remove = current.as_ref().is_none_or(ours);
    let named = token.to_owned();
    blocking(move || {
        if remove {
            files.remove(id)?;
        }
        files.discard(&named)
    })
    .await?;
    let token = token.to_owned();
    state
        .store()
        .write(move |tx| {
            let Some(mut image) = tx.get::<Image>(&id)? else { return Ok(()) };
            if image.upload.as_ref().is_none_or(|u| u.token != token) {
                return Ok(());
            }
            image.status = status::QUEUED.to_owned();
            image.upload = why.clone().map(|failure| Upload {
                token: String::new(),
                size: 0,
                staged: None,
                failure: Some(failure),
            });
            image.touched_at = tx.now();
            tx.update_status(&mut image)
        })
        .await
}

fn gone(id: ImageId) -> Error {
    Error::gone(format!(
        "Image {id} could not be found after upload. The image may have been deleted during the upload."
    ))
}

/// A refusal as an answer: 415 for the wrong format, 400 for harmful content.
pub(crate) fn refused(refusal: Refusal) -> Error {
    match &refusal {
        Refusal::Mismatch { .. } => Error::unsupported_media_type(refusal.to_string()),
        Refusal::Unsafe(_) => Error::bad_request(refusal.to_string()),
        Refusal::Io(detail) => Error::internal(detail.clone()),
    }
}

pub(crate) async fn download(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    let state = cx.state().clone();
    let image = {
        let cx = cx.clone();
        state.store().read(move |tx| find(tx, &cx, id)).await?
    };
    cx.allow(&target(&image))?;
    if image.status == status::DEACTIVATED && !cx.is_admin() {
        return Err(Error::forbidden(
            "The requested image has been deactivated. Image data download is forbidden.",
        ));
    }
    let Some(data) = &image.data else { return Ok(Reply::empty().status(204)) };
    let (start, length) = match req.header("range") {
        None => (0, data.size),
        Some(text) => range(text, data.size)?,
    };
    let stream = state.files.read(id, start, length).await?;
    let reply =
        Reply::stream("application/octet-stream", Some(length), stream).header("accept-ranges", "bytes");
    if req.header("range").is_some() {
        let end = (start + length).saturating_sub(1);
        return Ok(reply.status(206).header("content-range", format!("bytes {start}-{end}/{}", data.size)));
    }
    Ok(reply.header("content-md5", &data.checksum))
}

/// One byte range (RFC 9110, section 14): start and length.
fn range(text: &str, size: u64) -> Result<(u64, u64)> {
    let bad = || {
        Error::new(
            Kind::RangeNotSatisfiable,
            format!("The byte range passed in the 'Range' header ({text}) cannot be served."),
        )
    };
    let (first, last) = text.trim().strip_prefix("bytes=").and_then(|r| r.split_once('-')).ok_or_else(bad)?;
    let number = |t: &str| t.trim().parse::<u64>().map_err(|_| bad());
    let (start, end) = match (first.trim(), last.trim()) {
        ("", suffix) => (size.saturating_sub(number(suffix)?), size),
        (first, "") => (number(first)?, size),
        (first, last) => (number(first)?, number(last)?.saturating_add(1).min(size)),
    };
    if start >= end { Err(bad()) } else { Ok((start, end - start)) }
}
