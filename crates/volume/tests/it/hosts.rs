//! Volumes as hosts make, grow, snapshot and delete them; and what the compute service does with them.

use std::time::Duration;

use base::{AttachmentId, Kind, ServerId, VolumeId};
use contract::host::{DiskSource, DiskSpec, VolumeSource};
use contract::services::{HostPart, VolumeOrigin, VolumeRequest, Volumes};
use serde_json::json;

use crate::lab::{FakeHost, Lab, act, make, status};

#[tokio::test]
async fn a_volume_is_made_grown_and_deleted_by_the_only_host() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let id = make(&own, "p1", json!({"size": 2})).await;
    lab.settle().await;
    assert_eq!(status(&own, "p1", &id).await, "creating", "there is no host yet");
    let mut host = FakeHost::new(&lab, "h1");
    host.turn(&lab).await;
    lab.settle().await;
    assert_eq!(*lab.nudges.0.lock(), [host.id]);
    let spec = host.spec(&lab).await;
    assert_eq!(
        (spec.volumes.len(), spec.volumes[0].size_gib, &spec.volumes[0].source),
        (1, 2, &VolumeSource::Blank)
    );
    assert_eq!(host.spec(&lab).await, spec, "the same question has the same answer");
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &id).await, "available");
    let spec = host.spec(&lab).await;
    assert_eq!(
        spec.volumes[0].source,
        VolumeSource::Volume(spec.volumes[0].id),
        "from now on it has to be there"
    );
    let admin = lab.as_("admin").get(&format!("/v3/admin-project/volumes/{id}")).await;
    assert_eq!(admin.text_at("/volume/os-vol-host-attr:host"), "h1@local#local");

    let before = host.spec(&lab).await;
    let _ = own.put(&format!("/v3/p1/volumes/{id}"), json!({"volume": {"name": "other"}})).await.expect(200);
    assert_eq!(host.spec(&lab).await, before, "a name is nothing to a host");
    let _ = act(&own, "p1", &id, json!({"os-extend": {"new_size": 5}})).await.expect(202);
    assert_eq!(status(&own, "p1", &id).await, "extending");
    let grown = host.spec(&lab).await;
    assert!(grown.volumes[0].generation > before.volumes[0].generation);
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &id).await, "available");
    assert_eq!(own.get(&format!("/v3/p1/volumes/{id}")).await.at("/volume/size"), 5);

    let _ = own.delete(&format!("/v3/p1/volumes/{id}")).await.expect(202);
    assert_eq!(status(&own, "p1", &id).await, "deleting");
    let _ = own.delete(&format!("/v3/p1/volumes/{id}")).await.expect(202);
    host.turn(&lab).await;
    assert!(host.volumes.is_empty());
    assert_eq!(status(&own, "p1", &id).await, "gone");
}

#[tokio::test]
async fn a_host_that_fails_is_told_after_a_while_and_believed_when_it_recovers() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let mut host = FakeHost::new(&lab, "h1");
    host.turn(&lab).await;
    let id = make(&own, "p1", json!({})).await;
    lab.settle().await;
    host.failing = Some("disk full".to_owned());
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &id).await, "creating", "most failures pass");
    lab.clock.advance(Duration::from_secs(31));
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &id).await, "error");
    host.failing = None;
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &id).await, "available");
    // Growing.
    host.failing = Some("disk full".to_owned());
    let _ = act(&own, "p1", &id, json!({"os-extend": {"new_size": 9}})).await.expect(202);
    lab.clock.advance(Duration::from_secs(31));
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &id).await, "error_extending");
    // A snapshot that cannot be made is given up, and the host is no longer asked.
    host.failing = None;
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &id).await, "available");
    host.failing = Some("in use".to_owned());
    let body = json!({"snapshot": {"volume_id": id, "name": "s"}});
    let snapshot = own.post("/v3/p1/snapshots", body).await.expect(202).text_at("/snapshot/id");
    let path = format!("/v3/p1/snapshots/{snapshot}");
    assert_eq!(host.spec(&lab).await.snapshots.len(), 1);
    lab.clock.advance(Duration::from_secs(31));
    host.turn(&lab).await;
    assert_eq!(own.get(&path).await.text_at("/snapshot/status"), "error");
    assert!(host.spec(&lab).await.snapshots.is_empty());
    let _ = own.delete(&path).await.expect(202);
    host.turn(&lab).await;
    let _ = own.get(&path).await.expect(404);
}

#[tokio::test]
async fn snapshots_and_copies_keep_their_origin_until_they_are_whole() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let mut host = FakeHost::new(&lab, "h1");
    host.turn(&lab).await;
    let image = lab.image("p1", 3 << 30);
    let origin = make(&own, "p1", json!({"size": 3, "imageRef": image})).await;
    lab.settle().await;
    assert!(
        matches!(&host.spec(&lab).await.volumes[0].source, VolumeSource::Image(i) if i.id == image && i.format == "qcow2")
    );
    host.turn(&lab).await;
    let body = json!({"snapshot": {"volume_id": origin}});
    let snapshot = own.post("/v3/p1/snapshots", body).await.expect(202).text_at("/snapshot/id");
    let early = own.post("/v3/p1/volumes", json!({"volume": {"snapshot_id": snapshot}})).await.expect(400);
    assert!(early.text().contains("available"));
    let _ = own.delete(&format!("/v3/p1/volumes/{origin}")).await.expect(400);
    host.turn(&lab).await;
    let path = format!("/v3/p1/snapshots/{snapshot}");
    let shown = own.get(&path).await;
    assert_eq!(
        (shown.text_at("/snapshot/status"), shown.at("/snapshot/size")),
        ("available".to_owned(), json!(3))
    );
    assert_eq!(shown.text_at("/snapshot/os-extended-snapshot-attributes:progress"), "100%");

    let restored = own.post("/v3/p1/volumes", json!({"volume": {"snapshot_id": snapshot}})).await.expect(202);
    assert_eq!(
        (restored.at("/volume/size"), restored.text_at("/volume/bootable")),
        (json!(3), "true".to_owned())
    );
    let clone = make(&own, "p1", json!({"source_volid": origin, "size": 4})).await;
    let _ = own.delete(&path).await.expect(202);
    let _ = own.delete(&format!("/v3/p1/volumes/{origin}")).await.expect(400);
    let spec = host.spec(&lab).await;
    assert_eq!((spec.volumes.len(), spec.snapshots.len()), (3, 1), "the snapshot is still being read");
    host.turn(&lab).await;
    host.turn(&lab).await;
    let _ = own.get(&path).await.expect(404);
    let _ = own.delete(&format!("/v3/p1/volumes/{origin}")).await.expect(202);
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &origin).await, "gone");
    assert_eq!(status(&own, "p1", &clone).await, "available");
    let cascade = own.post("/v3/p1/snapshots", json!({"snapshot": {"volume_id": clone}})).await.expect(202);
    host.turn(&lab).await;
    let _ = own.delete(&format!("/v3/p1/volumes/{clone}?cascade=true")).await.expect(202);
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &clone).await, "gone");
    let _ = own.get(&format!("/v3/p1/snapshots/{}", cascade.text_at("/snapshot/id"))).await.expect(404);
}

#[tokio::test]
async fn with_several_hosts_the_first_attachment_decides() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let (mut first, mut second) = (FakeHost::new(&lab, "h1"), FakeHost::new(&lab, "h2"));
    first.turn(&lab).await;
    second.free_gib = 900;
    second.turn(&lab).await;
    let id = make(&own, "p1", json!({})).await;
    lab.settle().await;
    assert_eq!(status(&own, "p1", &id).await, "available");
    assert!(first.spec(&lab).await.volumes.is_empty() && second.spec(&lab).await.volumes.is_empty());
    let key: VolumeId = id.parse().unwrap();
    assert_eq!(lab.state.describe(key).await.unwrap().host, None);
    let (attachment, server) = (AttachmentId::random(&lab.entropy), ServerId::random(&lab.entropy));
    lab.state.reserve(key, attachment, server).await.unwrap();
    let mut spec = first.empty_spec();
    spec.servers.push(server_with(server, key).into());
    lab.state.contribute(std::slice::from_mut(&mut spec)).await.unwrap();
    assert_eq!(spec.volumes.len(), 1);
    assert_eq!(lab.state.describe(key).await.unwrap().host, Some(first.id));
    let mut other = second.empty_spec();
    other.servers.push(server_with(server, key).into());
    lab.state.contribute(std::slice::from_mut(&mut other)).await.unwrap();
    assert!(other.volumes.is_empty(), "it stays where it was made");
    // A snapshot of a volume that lies nowhere yet places both where there is most room.
    let loose = make(&own, "p1", json!({})).await;
    lab.settle().await;
    let _ = own.post("/v3/p1/snapshots", json!({"snapshot": {"volume_id": loose}})).await.expect(202);
    lab.settle().await;
    let spec = second.spec(&lab).await;
    assert_eq!((spec.volumes.len(), spec.snapshots.len()), (1, 1));
    // A volume without a host goes at once.
    let gone = make(&own, "p1", json!({})).await;
    lab.settle().await;
    let _ = own.delete(&format!("/v3/p1/volumes/{gone}")).await.expect(202);
    lab.settle().await;
    assert_eq!(status(&own, "p1", &gone).await, "gone");
}

fn server_with(id: ServerId, volume: VolumeId) -> contract::host::ServerSpec {
    contract::host::ServerSpec {
        id,
        generation: 1,
        project_id: base::ProjectId::new("p1"),
        user_id: base::UserId::new("u"),
        name: "s".to_owned(),
        power: contract::host::Power::Running,
        reboots: 0,
        reboot_hard: false,
        vcpus: 1,
        memory_mib: 64,
        properties: std::collections::BTreeMap::new(),
        disks: vec![DiskSpec {
            name: volume.to_string(),
            source: DiskSource::Volume { volume },
            serial: String::new(),
            device: "/dev/vdb".to_owned(),
        }],
        nics: vec![],
        config_drive: false,
        disks_from: None,
        metadata: contract::host::GuestMetadata::default(),
    }
}

#[tokio::test]
async fn the_compute_service_uses_volumes() {
    let lab = Lab::new().await;
    let own = lab.as_("member:p1");
    let mut host = FakeHost::new(&lab, "h1");
    host.turn(&lab).await;
    let image = lab.image("p1", 1 << 30);
    let request = VolumeRequest {
        id: VolumeId::random(&lab.entropy),
        project_id: base::ProjectId::new("p1"),
        user_id: base::UserId::new("u"),
        name: String::new(),
        size_gib: 2,
        origin: VolumeOrigin::Image(image),
        volume_type: None,
        host: Some(host.id),
    };
    let made = lab.state.ensure_volume(&request).await.unwrap();
    assert_eq!((made.status.as_str(), made.host, made.bootable), ("creating", Some(host.id), true));
    assert_eq!(lab.state.ensure_volume(&request).await.unwrap(), made, "asking twice is harmless");
    let (attachment, server) = (AttachmentId::random(&lab.entropy), ServerId::random(&lab.entropy));
    let early = lab.state.reserve(request.id, attachment, server).await.unwrap_err();
    assert_eq!(early.kind(), Kind::BadRequest);
    host.turn(&lab).await;
    lab.state.reserve(request.id, attachment, server).await.unwrap();
    lab.state.reserve(request.id, attachment, server).await.unwrap();
    let id = request.id.to_string();
    assert_eq!(status(&own, "p1", &id).await, "reserved");
    let second = lab.state.reserve(request.id, AttachmentId::random(&lab.entropy), server).await.unwrap_err();
    assert_eq!(second.kind(), Kind::BadRequest);
    lab.state.attached(request.id, attachment, "/dev/vda", host.id).await.unwrap();
    lab.state.attached(request.id, attachment, "/dev/vda", host.id).await.unwrap();
    let shown = own.get(&format!("/v3/p1/volumes/{id}")).await.json();
    assert_eq!(
        shown["volume"]["attachments"],
        json!([{"id": id, "attachment_id": attachment, "volume_id": id, "server_id": server, "host_name": "h1",
            "device": "/dev/vda", "attached_at": "2026-01-01T00:00:00.000000"}])
    );
    assert_eq!(shown["volume"]["status"], "in-use");
    let info = lab.state.describe(request.id).await.unwrap();
    assert_eq!(info.attachments, [(attachment, server, "/dev/vda".to_owned())]);
    assert_eq!(info.image_metadata["os_distro"], "debian");
    // A user cannot pull it from under the server.
    let _ = act(&own, "p1", &id, json!({"os-detach": {}})).await.expect(409);
    let _ = act(&lab.as_("admin"), "admin-project", &id, json!({"os-force_detach": {}})).await.expect(409);
    let _ = own.delete(&format!("/v3/p1/attachments/{attachment}")).await.expect(409);
    let _ = own.delete(&format!("/v3/p1/volumes/{id}")).await.expect(400);
    assert_eq!(lab.state.delete(request.id).await.unwrap_err().kind(), Kind::BadRequest);
    // Growing while attached.
    let _ = act(&own, "p1", &id, json!({"os-extend": {"new_size": 3}})).await.expect(202);
    host.turn(&lab).await;
    assert_eq!(status(&own, "p1", &id).await, "in-use");
    lab.state.detached(request.id, attachment).await.unwrap();
    lab.state.detached(request.id, attachment).await.unwrap();
    assert_eq!(status(&own, "p1", &id).await, "available");
    lab.state.delete(request.id).await.unwrap();
    lab.state.delete(request.id).await.unwrap();
    host.turn(&lab).await;
    lab.state.delete(request.id).await.unwrap();
    assert_eq!(status(&own, "p1", &id).await, "gone");
    let caller = |token: &str| api::testing::caller(token).unwrap();
    let other = make(&own, "p1", json!({})).await.parse().unwrap();
    assert!(lab.state.get(&caller("member:p1"), other).await.is_ok());
    assert_eq!(lab.state.get(&caller("member:p2"), other).await.unwrap_err().kind(), Kind::NotFound);
}
