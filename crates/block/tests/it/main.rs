//! The driver on real files with the real `qemu-img`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Entropy, ImageId, Kind, Result, SnapshotId, VolumeId};
use block::{Config, FileStorage, Format, virtual_size};
use contract::drivers::{BlockDevice, BlockStorage, LiveDisks};
use contract::host::{ImageRef, SnapshotSpec, VolumeSource, VolumeSpec};
use parking_lot::Mutex;
use tempfile::TempDir;

const GIB: u64 = 1 << 30;

struct Lab {
    directory: TempDir,
    storage: FileStorage,
    entropy: Entropy,
}

impl Lab {
    fn new(format: Format) -> Lab {
        let directory = TempDir::new().unwrap();
        let config = Config { format, ..Config::new(directory.path().join("block")) };
        Lab { storage: FileStorage::open(config).unwrap(), directory, entropy: Entropy::seeded(1) }
    }

    fn spec(&self, size_gib: u64, source: VolumeSource) -> VolumeSpec {
        VolumeSpec { id: VolumeId::random(&self.entropy), generation: 1, size_gib, source }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        ["volumes", "snapshots"]
            .iter()
            .flat_map(|room| std::fs::read_dir(self.directory.path().join("block").join(room)).unwrap())
            .map(|e| e.unwrap().path())
            .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with('.'))
            .collect()
    }
}

fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn write(disk: &BlockDevice, pattern: u8) {
    let path = disk.path.to_str().unwrap();
    tool("qemu-io", &["-f", disk.format, "-c", &format!("write -P {pattern} 1M 64k"), path]);
}

/// Whether 64 KiB at 1 MiB all are `pattern`.
fn holds(disk: &BlockDevice, pattern: u8) -> bool {
    let path = disk.path.to_str().unwrap();
    let text = tool("qemu-io", &["-r", "-f", disk.format, "-c", &format!("read -P {pattern} 1M 64k"), path]);
    !text.contains("Pattern verification failed")
}

fn image_ref(format: &str) -> ImageRef {
    ImageRef {
        id: ImageId::random(&Entropy::seeded(9)),
        sha512: String::new(),
        format: format.into(),
        size: 0,
    }
}

#[tokio::test]
async fn a_volume_lives_from_blank_to_removed() {
    for format in [Format::Qcow2, Format::Raw] {
        let lab = Lab::new(format);
        let mut spec = lab.spec(1, VolumeSource::Blank);
        lab.storage.ensure(&spec, None).await.unwrap();
        lab.storage.ensure(&spec, None).await.unwrap();
        assert_eq!(lab.storage.observe().await.unwrap(), [(spec.id, 1)]);

        let disk = lab.storage.device(spec.id);
        assert_eq!(disk.format, format.name());
        let meta = std::fs::metadata(&disk.path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert!(meta.blocks() * 512 < GIB / 8, "thin");
        write(&disk, 7);

        spec.size_gib = 3;
        lab.storage.ensure(&spec, None).await.unwrap();
        assert_eq!(lab.storage.observe().await.unwrap(), [(spec.id, 3)]);
        assert!(holds(&disk, 7), "growing keeps the content");
        spec.size_gib = 2;
        lab.storage.ensure(&spec, None).await.unwrap();
        assert_eq!(lab.storage.observe().await.unwrap(), [(spec.id, 3)], "never shrinks");

        lab.storage.remove(spec.id).await.unwrap();
        lab.storage.remove(spec.id).await.unwrap();
        assert!(lab.storage.observe().await.unwrap().is_empty());
        assert!(lab.leftovers().is_empty());
    }
}

#[tokio::test]
async fn from_an_image_of_either_format_and_no_reference_to_it_remains() {
    for (format, image_format) in
        [(Format::Qcow2, "qcow2"), (Format::Qcow2, "raw"), (Format::Raw, "qcow2"), (Format::Raw, "raw")]
    {
        let lab = Lab::new(format);
        let image = BlockDevice {
            path: lab.file("image"),
            format: if image_format == "raw" { "raw" } else { "qcow2" },
        };
        tool("qemu-img", &["create", "-q", "-f", image_format, image.path.to_str().unwrap(), "16M"]);
        write(&image, 42);
        let spec = lab.spec(1, VolumeSource::Image(image_ref(image_format)));
        lab.storage.ensure(&spec, Some(&image.path)).await.unwrap();
        std::fs::remove_file(&image.path).unwrap();
        let disk = lab.storage.device(spec.id);
        assert_eq!(virtual_size(&disk).unwrap(), GIB);
        assert!(holds(&disk, 42));
    }
}

#[tokio::test]
async fn an_image_that_refers_elsewhere_or_is_too_large_makes_no_volume() {
    let lab = Lab::new(Format::Qcow2);
    let secret = lab.file("secret");
    std::fs::write(&secret, vec![1; 1 << 20]).unwrap();
    let secret = secret.to_str().unwrap();
    let case = |name: &str, arguments: &[&str]| {
        let path = lab.file(name);
        let mut all = vec!["create", "-q", "-f", "qcow2"];
        all.extend_from_slice(arguments);
        all.push(path.to_str().unwrap());
        if arguments.first() != Some(&"-b") {
            all.push(if name == "large" { "2G" } else { "16M" });
        }
        tool("qemu-img", &all);
        path
    };
    let data = format!("data_file={}", lab.file("data").display());
    let images = [
        case("backed", &["-b", secret, "-F", "raw"]),
        case("external", &["-o", &data]),
        case("large", &[]),
        {
            let path = lab.file("nonsense");
            std::fs::write(&path, b"not an image").unwrap();
            path
        },
    ];
    for image in &images {
        let spec = lab.spec(1, VolumeSource::Image(image_ref("qcow2")));
        let error = lab.storage.ensure(&spec, Some(image)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::BadRequest, "{image:?}: {error:?}");
    }
    let spec = lab.spec(1, VolumeSource::Image(image_ref("vmdk")));
    assert_eq!(
        lab.storage.ensure(&spec, Some(Path::new(secret))).await.unwrap_err().kind(),
        Kind::BadRequest
    );
    assert!(lab.storage.observe().await.unwrap().is_empty());
    assert!(lab.leftovers().is_empty());
}

#[tokio::test]
async fn snapshots_and_clones_are_whole_copies() {
    let lab = Lab::new(Format::Qcow2);
    let origin = lab.spec(1, VolumeSource::Blank);
    lab.storage.ensure(&origin, None).await.unwrap();
    let disk = lab.storage.device(origin.id);
    write(&disk, 1);

    let snapshot = SnapshotSpec { id: SnapshotId::random(&lab.entropy), generation: 1, volume: origin.id };
    lab.storage.ensure_snapshot(&snapshot).await.unwrap();
    lab.storage.ensure_snapshot(&snapshot).await.unwrap();
    assert_eq!(lab.storage.observe_snapshots().await.unwrap(), [snapshot.id]);
    write(&disk, 2);

    let restored = lab.spec(2, VolumeSource::Snapshot(snapshot.id));
    lab.storage.ensure(&restored, None).await.unwrap();
    let clone = lab.spec(1, VolumeSource::Volume(origin.id));
    lab.storage.ensure(&clone, None).await.unwrap();
    lab.storage.remove_snapshot(snapshot.id).await.unwrap();
    lab.storage.remove_snapshot(snapshot.id).await.unwrap();
    lab.storage.remove(origin.id).await.unwrap();

    let restored_disk = lab.storage.device(restored.id);
    assert!(holds(&restored_disk, 1), "content of the snapshot's moment");
    assert_eq!(virtual_size(&restored_disk).unwrap(), 2 * GIB);
    assert!(holds(&lab.storage.device(clone.id), 2), "content of now");
    assert!(lab.storage.observe_snapshots().await.unwrap().is_empty());

    let missing = lab.spec(1, VolumeSource::Snapshot(snapshot.id));
    assert_eq!(lab.storage.ensure(&missing, None).await.unwrap_err().kind(), Kind::NotFound);
    let orphan = SnapshotSpec { id: SnapshotId::random(&lab.entropy), generation: 1, volume: origin.id };
    assert_eq!(lab.storage.ensure_snapshot(&orphan).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_start_sweeps_what_a_crash_left() {
    let lab = Lab::new(Format::Qcow2);
    let spec = lab.spec(1, VolumeSource::Blank);
    lab.storage.ensure(&spec, None).await.unwrap();
    let volumes = lab.directory.path().join("block/volumes");
    let half = VolumeId::random(&lab.entropy);
    std::fs::write(volumes.join(format!(".{half}.qcow2.1.1")), b"half").unwrap();
    std::fs::write(volumes.join("README"), b"not ours").unwrap();
    assert_eq!(lab.storage.observe().await.unwrap().len(), 1, "half a volume is none");
    FileStorage::open(Config::new(lab.directory.path().join("block"))).unwrap();
    assert!(lab.leftovers().is_empty());
    assert!(volumes.join("README").exists());
    assert_eq!(lab.storage.observe().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_full_or_missing_tool_leaves_nothing() {
    let directory = TempDir::new().unwrap();
    let config = Config { qemu_img: "/nonexistent/qemu-img".into(), ..Config::new(directory.path()) };
    let storage = FileStorage::open(config).unwrap();
    let id = VolumeId::random(&Entropy::seeded(3));
    let spec = VolumeSpec { id, generation: 1, size_gib: 1, source: VolumeSource::Blank };
    assert_eq!(storage.ensure(&spec, None).await.unwrap_err().kind(), Kind::Unavailable);
    assert!(storage.observe().await.unwrap().is_empty());
    let spec = VolumeSpec { size_gib: u64::MAX, ..spec };
    assert_eq!(storage.ensure(&spec, None).await.unwrap_err().kind(), Kind::BadRequest);
}

#[tokio::test]
async fn formats_may_be_mixed_in_one_directory() {
    let lab = Lab::new(Format::Qcow2);
    let spec = lab.spec(1, VolumeSource::Blank);
    lab.storage.ensure(&spec, None).await.unwrap();
    let config = Config { format: Format::Raw, ..Config::new(lab.directory.path().join("block")) };
    let other = FileStorage::open(config).unwrap();
    other.ensure(&spec, None).await.unwrap();
    assert_eq!(other.observe().await.unwrap(), [(spec.id, 1)]);
    assert_eq!(other.device(spec.id).format, "qcow2");
    other.remove(spec.id).await.unwrap();
    assert!(other.observe().await.unwrap().is_empty());
}

/// A guest process that has a disk open: `qemu-storage-daemon` takes the locks QEMU takes.
struct Holder(std::process::Child);

impl Holder {
    fn open(disk: &BlockDevice, directory: &Path) -> Holder {
        let pid = directory.join("holder.pid");
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=f,filename={}", disk.path.display()))
            .arg("--blockdev")
            .arg(format!("driver={},node-name=d,file=f", disk.format))
            .arg("--export")
            .arg(format!(
                "vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={}",
                directory.join("sock").display()
            ))
            .arg("--pidfile")
            .arg(&pid)
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !pid.exists() {
            assert!(std::time::Instant::now() < deadline, "the holder did not start");
            std::thread::yield_now();
        }
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_disk_open_elsewhere_is_neither_copied_nor_grown_behind_its_back() {
    let lab = Lab::new(Format::Qcow2);
    let mut spec = lab.spec(1, VolumeSource::Blank);
    lab.storage.ensure(&spec, None).await.unwrap();
    let holder = Holder::open(&lab.storage.device(spec.id), lab.directory.path());
    let snapshot = SnapshotSpec { id: SnapshotId::random(&lab.entropy), generation: 1, volume: spec.id };
    assert_eq!(lab.storage.ensure_snapshot(&snapshot).await.unwrap_err().kind(), Kind::Conflict);
    spec.size_gib = 2;
    assert_eq!(lab.storage.ensure(&spec, None).await.unwrap_err().kind(), Kind::Conflict);
    let clone = lab.spec(1, VolumeSource::Volume(spec.id));
    assert_eq!(lab.storage.ensure(&clone, None).await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(lab.storage.observe().await.unwrap(), [(spec.id, 1)]);
    assert!(lab.leftovers().is_empty());
    drop(holder);
    lab.storage.ensure_snapshot(&snapshot).await.unwrap();
    lab.storage.ensure(&spec, None).await.unwrap();
    assert_eq!(lab.storage.observe().await.unwrap(), [(spec.id, 2)]);
}

#[derive(Default)]
struct FakeLive {
    held: Mutex<Vec<VolumeId>>,
    calls: Mutex<Vec<String>>,
    broken: bool,
}

#[async_trait]
impl LiveDisks for FakeLive {
    async fn in_use(&self, id: VolumeId) -> Result<bool> {
        Ok(self.held.lock().contains(&id))
    }
    async fn copy(&self, _: VolumeId, target: &BlockDevice) -> Result<()> {
        self.calls.lock().push(format!("copy to {} bytes", virtual_size(target)?));
        write(target, 99);
        if self.broken { Err(base::Error::unavailable("the guest went away")) } else { Ok(()) }
    }
    async fn grow(&self, _: VolumeId, bytes: u64) -> Result<()> {
        self.calls.lock().push(format!("grow to {bytes}"));
        Ok(())
    }
}

#[tokio::test]
async fn volumes_of_running_guests_go_through_the_hypervisor() {
    for broken in [false, true] {
        let directory = TempDir::new().unwrap();
        let live = Arc::new(FakeLive { broken, ..FakeLive::default() });
        let storage = FileStorage::open(Config::new(directory.path())).unwrap().with_live(live.clone());
        let entropy = Entropy::seeded(4);
        let id = VolumeId::random(&entropy);
        let mut spec = VolumeSpec { id, generation: 1, size_gib: 1, source: VolumeSource::Blank };
        storage.ensure(&spec, None).await.unwrap();
        live.held.lock().push(id);

        let snapshot = SnapshotSpec { id: SnapshotId::random(&entropy), generation: 1, volume: id };
        let done = storage.ensure_snapshot(&snapshot).await;
        assert_eq!(done.is_err(), broken);
        assert_eq!(storage.observe_snapshots().await.unwrap().len(), usize::from(!broken));
        spec.size_gib = 2;
        storage.ensure(&spec, None).await.unwrap();
        assert_eq!(*live.calls.lock(), [format!("copy to {GIB} bytes"), format!("grow to {}", 2 * GIB)]);
        assert_eq!(storage.remove(id).await.unwrap_err().kind(), Kind::Conflict);
    }
}

#[tokio::test]
async fn it_keeps_the_contract() {
    for format in [Format::Qcow2, Format::Raw] {
        let lab = Lab::new(format);
        contract::suite::block_storage(&lab.storage, &lab.entropy).await.unwrap();
        assert!(lab.leftovers().is_empty());
    }
}

#[tokio::test]
async fn a_volume_that_was_made_and_is_missing_is_not_made_anew() {
    let lab = Lab::new(Format::Qcow2);
    let mut spec = lab.spec(1, VolumeSource::Blank);
    lab.storage.ensure(&spec, None).await.unwrap();
    spec.source = VolumeSource::Volume(spec.id);
    spec.size_gib = 2;
    lab.storage.ensure(&spec, None).await.unwrap();
    assert_eq!(lab.storage.observe().await.unwrap(), [(spec.id, 2)]);
    std::fs::remove_file(lab.storage.device(spec.id).path).unwrap();
    assert_eq!(lab.storage.ensure(&spec, None).await.unwrap_err().kind(), Kind::NotFound);
    assert!(lab.storage.observe().await.unwrap().is_empty());
}

#[tokio::test]
async fn files_belong_to_the_configured_user() {
    let directory = TempDir::new().unwrap();
    let me = std::fs::metadata(directory.path()).unwrap();
    let owner = if me.uid() == 0 { (64055, 64055) } else { (me.uid(), me.gid()) };
    let storage = FileStorage::open(Config { owner: Some(owner), ..Config::new(directory.path()) }).unwrap();
    let id = VolumeId::random(&Entropy::seeded(5));
    let spec = VolumeSpec { id, generation: 1, size_gib: 1, source: VolumeSource::Blank };
    storage.ensure(&spec, None).await.unwrap();
    let meta = std::fs::metadata(storage.device(id).path).unwrap();
    assert_eq!((meta.uid(), meta.gid()), owner);
}
