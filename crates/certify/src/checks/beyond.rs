//! Cases of `beyond` that move bytes: images are uploaded, volumes restored, and what comes back is compared.

use std::time::Instant;

use osclient::{Method, Request, Service};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Notes, backup};
use crate::facts::{Abort, Facts, Known};
use crate::journal::{Scope, Thing};

/// Bytes of the pattern.
const PATTERN: usize = 4 << 20;

/// Uploads bytes as an image; its id.
async fn upload(facts: &Facts, scope: &Scope, images: &Service, bytes: Vec<u8>) -> Known<String> {
    let name = facts.name("0104-image");
    let seq = scope.intend(Thing::Image, &name).await?;
    let body =
        json!({"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "private"});
    let made = images.post("/images", body).await?;
    let id = made.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    scope.made(seq, &id)?;
    let request = Request::new(Method::PUT, format!("{}/images/{id}/file", images.url())).bytes(bytes);
    facts.session.send(request).await?;
    active(facts, images, &id).await?;
    Ok(id)
}

async fn active(facts: &Facts, images: &Service, id: &str) -> Known<()> {
    let begin = Instant::now();
    loop {
        let found = images.get(&format!("/images/{id}")).await?;
        match found.get("status").and_then(Value::as_str) {
            Some("active") => return Ok(()),
            Some(status @ ("killed" | "deleted")) => return Err(Abort(format!("the image became {status}"))),
            _ if begin.elapsed().as_secs() > facts.settings.storage_seconds => {
                return Err(Abort("the image does not become active".into()));
            }
            _ => tokio::time::sleep(facts.settings.poll).await,
        }
    }
}

fn pattern(facts: &Facts) -> Vec<u8> {
    let mut bytes = vec![0; PATTERN];
    facts.entropy.fill(&mut bytes);
    bytes
}

/// A member uploads an image and reads it back.
pub(super) async fn image_upload(facts: &Facts) -> Known<Notes> {
    let mut notes = Notes::default();
    let images = facts.image()?;
    let scope = Scope::new(&facts.journal);
    let bytes = pattern(facts);
    let sent = Sha256::digest(&bytes);
    let result: Known<_> = async {
        let id = upload(facts, &scope, &images, bytes).await?;
        let mut hash = Sha256::new();
        facts.session.read(&format!("{}/images/{id}/file", images.url()), |piece| hash.update(piece)).await?;
        Ok(hash.finalize())
    }
    .await;
    scope.clear(facts, &mut notes).await;
    match result {
        Ok(read) if read == sent => {}
        Ok(_) => notes.error("the image read back is not the one uploaded"),
        Err(Abort(text)) => notes.error(text),
    }
    Ok(notes)
}

/// A volume made from a known image is backed up; the restored one must hold the same bytes. It is read by way of an image.
pub(super) async fn restored_content(facts: &Facts) -> Known<Notes> {
    let mut notes = Notes::default();
    let scope = Scope::new(&facts.journal);
    let bytes = pattern(facts);
    let result = read_restored(facts, &scope, &bytes).await;
    scope.clear(facts, &mut notes).await;
    match result {
        Ok(None) => {}
        Ok(Some(text)) => notes.error(text),
        Err(Abort(text)) => notes.error(text),
    }
    Ok(notes)
}

async fn read_restored(facts: &Facts, scope: &Scope, bytes: &[u8]) -> Known<Option<String>> {
    let (images, storage) = (facts.image()?, facts.storage().await?);
    let image = upload(facts, scope, &images, bytes.to_vec()).await?;
    let volume = backup::volume(facts, scope, &storage, json!({"size": 1, "imageRef": image})).await?;
    let restored = backup::restore(facts, scope, &storage, &volume).await?;
    let name = facts.name("0117-copy");
    let seq = scope.intend(Thing::Image, &name).await?;
    let action = json!({"os-volume_upload_image": {
        "image_name": name, "disk_format": "raw", "container_format": "bare", "force": false,
    }});
    let made = storage.post(&format!("/volumes/{restored}/action"), action).await?;
    let copy = made
        .pointer("/os-volume_upload_image/image_id")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    scope.made(seq, &copy)?;
    active(facts, &images, &copy).await?;
    let (mut at, mut wrong) = (0_usize, None);
    let url = format!("{}/images/{copy}/file", images.url());
    facts
        .session
        .read(&url, |piece| {
            // The pattern first, then nothing but zeros.
            let differs =
                |(offset, byte): (usize, &u8)| *byte != bytes.get(at + offset).copied().unwrap_or(0);
            if wrong.is_none() && piece.iter().enumerate().any(differs) {
                wrong = Some(at);
            }
            at += piece.len();
        })
        .await?;
    Ok(match wrong {
        Some(at) => Some(format!("the restored volume differs from what was backed up, near byte {at}")),
        None if at < bytes.len() => Some(format!("the restored volume ends after {at} bytes")),
        None => None,
    })
}
