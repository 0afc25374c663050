//! Bytes: streaming, ranges, limits, inspection, import, concurrency, crashes.

use std::time::Duration;

use api::Method;
use axum::body::Body;
use bytes::Bytes;
use contract::services::Images;
use futures::StreamExt;
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;

use crate::lab::{Lab, files, make, upload};

#[tokio::test]
async fn ranges_and_empty_answers() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let id = make(&own, json!({})).await;
    let path = format!("/v2/images/{id}/file");
    let none = own.get(&path).await.expect(204);
    assert!(none.body.is_empty(), "no data yet");
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    let _ = upload(&own, &id, bytes.clone()).await.expect(204);
    let whole = own.get(&path).await.expect(200);
    assert_eq!(whole.body, bytes);
    assert_eq!(whole.header("content-length"), "1000000");
    assert_eq!(whole.header("content-type"), "application/octet-stream");
    assert_eq!(whole.header("content-md5").len(), 32);
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=999990-", 999_990, 1_000_000),
        ("bytes=-10", 999_990, 1_000_000),
        ("bytes=-2000000", 0, 1_000_000),
        ("bytes=300000-5000000", 300_000, 1_000_000),
    ] {
        let part = own.call(Method::GET, &path).header("range", range).send().await.expect(206);
        assert_eq!(part.body, bytes[start..end], "{range}");
        assert_eq!(part.header("content-range"), format!("bytes {start}-{}/1000000", end - 1));
    }
    for range in [
        "bytes=1000000-",
        "bytes=9-5",
        "bytes=a-b",
        "bytes=-0",
        "bytes=-",
        "lines=1-2",
        "bytes=1-2,4-5",
        "bytes=18446744073709551616-",
    ] {
        let _ = own.call(Method::GET, &path).header("range", range).send().await.expect(416);
    }
    let _ = upload(&own, &id, "again").await.expect(409);
    let head = own.call(Method::HEAD, &path).send().await.expect(200);
    assert_eq!(head.header("content-length"), "1000000");
}

#[tokio::test]
async fn uploads_that_are_refused_leave_a_queued_image_and_no_file() {
    let lab = Lab::with(|c| c.max_image_bytes = 100_000).await;
    let own = lab.as_("member:p1");
    let bare = own.post("/v2/images", json!({})).await.expect(201).text_at("/id");
    let answer = upload(&own, &bare, "x").await.expect(400);
    assert!(answer.text().contains("disk_format"));
    let qcow2 = make(&own, json!({"disk_format": "qcow2"})).await;
    let answer = upload(&own, &qcow2, vec![0; 70_000]).await.expect(415);
    assert!(answer.text().contains("qcow2"), "{}", answer.text());
    let mut evil = vec![0; 70_000];
    evil[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    evil[15] = 8;
    let answer = upload(&own, &qcow2, evil.clone()).await.expect(400);
    assert!(answer.text().contains("backing file"), "{}", answer.text());
    let raw = make(&own, json!({})).await;
    let _ = upload(&own, &raw, evil).await.expect(415);
    let _ = upload(&own, &raw, vec![0; 100_001]).await.expect(413);
    let chunks =
        futures::stream::iter((0..30).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![0; 10_000]))));
    let path = format!("/v2/images/{raw}/file");
    let unannounced = own
        .call(Method::PUT, &path)
        .header("content-type", "application/octet-stream")
        .body(Body::from_stream(chunks));
    let _ = unannounced.send().await.expect(413);
    let broken = futures::stream::iter([Ok(Bytes::from("half")), Err(std::io::Error::other("gone"))]);
    let broken = own
        .call(Method::PUT, &path)
        .header("content-type", "application/octet-stream")
        .body(Body::from_stream(broken));
    let _ = broken.send().await.expect(400);
    let _ = own.call(Method::PUT, &path).json(&json!({})).send().await.expect(415);
    let _ = upload(&lab.as_("member:p2"), &raw, "x").await.expect(404);
    let _ = upload(&lab.as_("reader:p1"), &raw, "x").await.expect(403);
    for id in [&bare, &qcow2, &raw] {
        assert_eq!(own.get(&format!("/v2/images/{id}")).await.text_at("/status"), "queued");
    }
    assert!(files(&lab.data()).is_empty() && files(&lab.incoming()).is_empty());
    let _ = upload(&own, &raw, vec![9; 1024]).await.expect(204);
}

#[tokio::test]
async fn a_projects_bytes_are_bounded() {
    let lab = Lab::with(|c| c.project_bytes = Some(1000)).await;
    let own = lab.as_("member:p1");
    let (first, second) = (make(&own, json!({})).await, make(&own, json!({})).await);
    let _ = upload(&own, &first, vec![0; 600]).await.expect(204);
    let _ = upload(&own, &second, vec![0; 401]).await.expect(413);
    let other = make(&lab.as_("member:p2"), json!({})).await;
    let _ = upload(&lab.as_("member:p2"), &other, vec![0; 900]).await.expect(204);
    let _ = upload(&own, &second, vec![0; 400]).await.expect(204);
    let third = make(&own, json!({})).await;
    let _ = upload(&own, &third, vec![0; 1]).await.expect(413);
}

#[tokio::test]
async fn staged_bytes_are_imported() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let id = make(&own, json!({})).await;
    let path = format!("/v2/images/{id}");
    let import = |method: &'static str| {
        let (own, path) = (own.clone(), format!("/v2/images/{id}/import"));
        async move { own.post(&path, json!({"method": {"name": method}})).await }
    };
    let _ = import("glance-direct").await.expect(409);
    let _ = import("web-download").await.expect(400);
    let stage = |bytes: &'static str| {
        own.call(Method::PUT, &format!("/v2/images/{id}/stage"))
            .header("content-type", "application/octet-stream")
            .bytes(bytes)
            .send()
    };
    let _ = stage("staged").await.expect(204);
    assert_eq!(own.get(&path).await.text_at("/status"), "uploading");
    let _ = own.get(&format!("{path}/file")).await.expect(204);
    let _ = stage("again").await.expect(409);
    lab.settle().await;
    assert_eq!(own.get(&path).await.text_at("/status"), "uploading", "staged bytes wait");
    let _ = import("glance-direct").await.expect(202);
    assert_eq!(own.get(&path).await.text_at("/status"), "importing");
    lab.settle().await;
    let shown = own.get(&path).await;
    assert_eq!((shown.text_at("/status"), shown.at("/size")), ("active".to_owned(), json!(6)));
    assert_eq!(own.get(&format!("{path}/file")).await.text(), "staged");
    assert!(files(&lab.incoming()).is_empty());

    let wrong = make(&own, json!({"disk_format": "iso"})).await;
    let put = own
        .call(Method::PUT, &format!("/v2/images/{wrong}/stage"))
        .header("content-type", "application/octet-stream");
    let _ = put.bytes("not an iso").send().await.expect(204);
    let _ = own
        .post(&format!("/v2/images/{wrong}/import"), json!({"method": {"name": "glance-direct"}}))
        .await
        .expect(202);
    lab.settle().await;
    let shown = own.get(&format!("/v2/images/{wrong}")).await;
    assert_eq!(
        (shown.text_at("/status"), shown.text_at("/os_glance_failed_import")),
        ("queued".to_owned(), "file".to_owned())
    );
    assert_eq!(files(&lab.data()), [id]);
    assert!(files(&lab.incoming()).is_empty());
}

/// An upload that goes on until its sender is dropped.
struct Slow {
    send: tokio::sync::mpsc::Sender<Result<Bytes, std::io::Error>>,
    answer: tokio::task::JoinHandle<u16>,
}

fn slow(lab: &Lab, id: &str) -> Slow {
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let call = lab
        .as_("member:p1")
        .call(Method::PUT, &format!("/v2/images/{id}/file"))
        .header("content-type", "application/octet-stream")
        .body(Body::from_stream(ReceiverStream::new(receive)));
    Slow { send, answer: tokio::spawn(async move { call.send().await.status }) }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_uploads_at_once_and_other_requests_between_them() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let mut ids = Vec::new();
    for i in 0..8 {
        ids.push(make(&own, json!({"name": format!("i{i}")})).await);
    }
    let uploads: Vec<Slow> = ids.iter().map(|id| slow(&lab, id)).collect();
    for upload in &uploads {
        upload.send.send(Ok(Bytes::from(vec![1; 1 << 20]))).await.unwrap();
    }
    until("all saving", async || {
        own.get("/v2/images?status=saving").await.json()["images"].as_array().unwrap().len() == 8
    })
    .await;
    let _ = upload(&own, &ids[0], "second writer").await.expect(409);
    lab.settle().await;
    assert_eq!(
        own.get("/v2/images?status=saving").await.json()["images"].as_array().unwrap().len(),
        8,
        "they live"
    );
    for (i, upload) in uploads.into_iter().enumerate() {
        upload.send.send(Ok(Bytes::from(vec![u8::try_from(i).unwrap(); 1 << 20]))).await.unwrap();
        drop(upload.send);
        assert_eq!(upload.answer.await.unwrap(), 204);
    }
    for (i, id) in ids.iter().enumerate() {
        let body = own.get(&format!("/v2/images/{id}/file")).await.body;
        assert_eq!((body.len(), body[0], usize::from(body[(2 << 20) - 1])), (2 << 20, 1, i));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_deleted_during_its_upload() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let id = make(&own, json!({})).await;
    let writer = slow(&lab, &id);
    writer.send.send(Ok(Bytes::from("x"))).await.unwrap();
    until("saving", async || own.get(&format!("/v2/images/{id}")).await.text_at("/status") == "saving").await;
    let _ = own.delete(&format!("/v2/images/{id}")).await.expect(204);
    drop(writer.send);
    assert_eq!(writer.answer.await.unwrap(), 410);
    assert!(files(&lab.data()).is_empty() && files(&lab.incoming()).is_empty());
}

/// What a process leaves that dies at a point of an upload, by its traces: the row, the temporary file, the final file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_point_of_an_upload() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let id = make(&own, json!({})).await;
    let untouched = make(&own, json!({})).await;
    let _ = upload(&own, &untouched, "whole").await.expect(204);
    // While bytes come in: the row says `saving`, the temporary file is there, no one holds its lock.
    for published in [false, true] {
        let writer = slow(&lab, &id);
        writer.send.send(Ok(Bytes::from("half"))).await.unwrap();
        until("saving", async || own.get(&format!("/v2/images/{id}")).await.text_at("/status") == "saving")
            .await;
        let token = files(&lab.incoming()).pop().unwrap();
        let path = lab.incoming().join(&token);
        // A copy has no lock, as a file whose writer was killed.
        std::fs::copy(&path, path.with_extension("copy")).unwrap();
        std::fs::rename(path.with_extension("copy"), &path).unwrap();
        if published {
            std::fs::hard_link(&path, lab.data().join(&id)).unwrap();
        }
        lab.settle().await;
        assert_eq!(own.get(&format!("/v2/images/{id}")).await.text_at("/status"), "queued");
        assert_eq!(files(&lab.data()), std::slice::from_ref(&untouched));
        assert!(files(&lab.incoming()).is_empty());
        drop(writer.send);
        assert_eq!(writer.answer.await.unwrap(), 410, "what was taken for dead cannot commit");
        assert_eq!(files(&lab.data()), std::slice::from_ref(&untouched));
    }
    // After a delete was committed and before its bytes went.
    std::fs::write(lab.data().join("6f3a5c1e-0d7b-4c3e-9a8f-112233445566"), "orphan").unwrap();
    let lab = lab.restart();
    lab.settle().await;
    assert_eq!(files(&lab.data()), std::slice::from_ref(&untouched));
    let own = lab.as_("member:p1");
    let _ = upload(&own, &id, "second try").await.expect(204);
    assert_eq!(own.get(&format!("/v2/images/{untouched}/file")).await.text(), "whole");
}

#[tokio::test]
async fn what_other_services_see() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let id =
        make(&own, json!({"disk_format": "ami", "container_format": "ami", "os_distro": "x", "min_disk": 3}))
            .await;
    let images: &dyn Images = &*lab.state;
    let key = id.parse().unwrap();
    let queued = images.describe(key).await.unwrap();
    assert_eq!((queued.status.as_str(), queued.size), ("queued", 0));
    assert!(images.read(key, 0).await.is_err() && images.local_path(key).await.is_err());
    let _ = upload(&own, &id, "kernel").await.expect(204);
    let caller = |token: &str| api::testing::caller(token).unwrap();
    let info = images.get(&caller("reader:p1"), key).await.unwrap();
    assert_eq!(
        (
            info.status.as_str(),
            info.disk_format.as_str(),
            info.container_format.as_str(),
            info.size,
            info.min_disk_gib
        ),
        ("active", "raw", "ami", 6, 3),
        "the probed format, not the declared one"
    );
    assert_eq!((info.sha512.len(), info.properties["os_distro"].as_str()), (128, "x"));
    assert!(images.get(&caller("member:p2"), key).await.is_err());
    assert!(images.get(&caller("admin"), key).await.is_ok());
    let parts: Vec<Bytes> = images.read(key, 3).await.unwrap().map(|b| b.unwrap()).collect().await;
    assert_eq!(parts.concat(), b"nel");
    assert_eq!(std::fs::read(images.local_path(key).await.unwrap().unwrap()).unwrap(), b"kernel");
}
