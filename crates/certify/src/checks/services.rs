//! scs-0123: services in the catalog.

use hmac::{Hmac, Mac};
use osclient::{Method, Request};
use sha2::{Digest, Sha256};

use super::Notes;
use crate::facts::{Abort, Facts, Known};

/// A service of one of the types is in the catalog.
pub(super) fn any_of(facts: &Facts, kinds: &[String]) -> Known<Notes> {
    let mut notes = Notes::default();
    let catalog = facts.session.catalog();
    if !kinds.iter().any(|k| catalog.has(k)) {
        notes.error(format!("the catalog has no service of type {}", kinds.join(" or ")));
    }
    Ok(notes)
}

/// Where there is object storage, S3 answers on its host: an unknown access key is refused as S3 refuses it.
pub(super) async fn swift_s3(facts: &Facts) -> Known<Notes> {
    let mut notes = Notes::default();
    if !facts.session.catalog().has("object-store") {
        notes.info("no object storage in the catalog: nothing to check");
        return Ok(notes);
    }
    let endpoint = facts.session.endpoint("object-store")?;
    let (scheme, rest) = endpoint.split_once("://").ok_or_else(|| Abort(format!("{endpoint} is no URL")))?;
    let host = rest.split('/').next().unwrap_or_default();
    let at = facts.clock.now().iso_seconds().replace(['-', ':'], "");
    let request = Request::new(Method::GET, format!("{scheme}://{host}/"))
        .anonymous()
        .header("x-amz-date", at.clone())
        .header("x-amz-content-sha256", hex::encode(Sha256::digest([])))
        .header("authorization", signature(host, &at));
    let told = match facts.session.send_any(request).await {
        Ok(reply) if reply.status < 300 => {
            return Err(Abort("S3 lists buckets for an access key that does not exist".into()));
        }
        Ok(reply) => String::from_utf8_lossy(&reply.bytes).into_owned(),
        Err(error) => error.to_string(),
    };
    if !told.contains("InvalidAccessKeyId") && !told.contains("NoSuchKey") {
        notes.error(format!("{scheme}://{host}/ does not answer as S3 does to an unknown access key"));
    }
    Ok(notes)
}

/// AWS signature version 4 of listing buckets, with the key `doesnotexist`.
fn signature(host: &str, at: &str) -> String {
    let day = at.get(..8).unwrap_or_default();
    let scope = format!("{day}/us-east-1/s3/aws4_request");
    let empty = hex::encode(Sha256::digest([]));
    let names = "host;x-amz-content-sha256;x-amz-date";
    let canonical =
        format!("GET\n/\n\nhost:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{at}\n\n{names}\n{empty}");
    let told = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let mut key = b"AWS4".to_vec();
    for part in [day, "us-east-1", "s3", "aws4_request", &told] {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) else { return String::new() };
        mac.update(part.as_bytes());
        key = mac.finalize().into_bytes().to_vec();
    }
    format!(
        "AWS4-HMAC-SHA256 Credential=doesnotexist/{scope}, SignedHeaders={names}, Signature={}",
        hex::encode(key)
    )
}

/// Beyond: endpoints answer, whatever they answer, below 500.
pub(super) async fn answer(facts: &Facts, kinds: &[String]) -> Known<Notes> {
    let mut notes = Notes::default();
    for kind in kinds {
        let told = match facts.session.endpoint(kind) {
            Err(error) => Some(error.to_string()),
            Ok(url) => match facts.session.send_any(Request::new(Method::GET, url.clone())).await {
                Err(error) => Some(error.to_string()),
                Ok(reply) if reply.status >= 500 => Some(format!("{url} answers {}", reply.status)),
                Ok(_) => None,
            },
        };
        if let Some(told) = told {
            notes.error(format!("{kind}: {told}"));
        }
    }
    Ok(notes)
}

/// Beyond: public endpoints are https.
pub(super) fn https(facts: &Facts) -> Known<Notes> {
    let mut notes = Notes::default();
    for entry in &facts.session.catalog().0 {
        for endpoint in
            entry.endpoints.iter().filter(|e| e.interface == "public" && !e.url.starts_with("https://"))
        {
            notes.error(format!("{}: {} is not https", entry.kind, endpoint.url));
        }
    }
    Ok(notes)
}
