//! The driver with real QEMU: a guest of one boot sector where that is enough, else the mini image (`mini.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod mini;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::{Entropy, ImageId, ProjectId, ServerId, UserId, VolumeId};
use contract::drivers::{BlockDevice, GuestPlan, Hypervisor, LiveDisks};
use contract::host::{DiskSource, DiskSpec, GuestMetadata, ImageRef, Power, PowerObserved, ServerSpec};
use qemu::{Config, Qemu};

/// Writes "up\n" to COM1 again and again, with a pause of a BIOS tick (`int 0x15, ah=0x86`).
const GUEST: [u8; 23] = [
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'u', 0xee, // mov al, 'u'; out dx, al
    0xb0, b'p', 0xee, //
    0xb0, b'\n', 0xee, //
    0xb4, 0x86, // mov ah, 0x86
    0xb9, 0x01, 0x00, // mov cx, 1
    0x31, 0xd2, // xor dx, dx
    0xcd, 0x15, // int 0x15
    0xeb, 0xe9, // jmp to the start
];

struct World {
    dir: tempfile::TempDir,
    entropy: Entropy,
}

impl World {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new()
            .prefix("allod-qemu")
            .disable_cleanup(std::env::var("KEEP").is_ok())
            .tempdir()
            .unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let mut disk = vec![0_u8; 1 << 20];
        disk[..GUEST.len()].copy_from_slice(&GUEST);
        disk[510] = 0x55;
        disk[511] = 0xaa;
        std::fs::create_dir(dir.path().join("images")).unwrap();
        std::fs::write(dir.path().join("images/boot.raw"), disk).unwrap();
        World { dir, entropy: Entropy::system() }
    }

    fn config(&self) -> Config {
        Config {
            dir: self.dir.path().join("guests"),
            hostname: "test".into(),
            user: nix::unistd::geteuid().is_root().then_some((64117, 64117)),
            grace: Duration::from_millis(300),
            guard: None,
        }
    }

    async fn driver(&self) -> Qemu {
        Qemu::new(self.config()).await.unwrap()
    }

    fn plan(&self) -> GuestPlan {
        let image = ImageRef {
            id: ImageId::random(&self.entropy),
            sha512: String::new(),
            format: "raw".into(),
            size: 1,
        };
        let spec = ServerSpec {
            id: ServerId::random(&self.entropy),
            generation: 1,
            project_id: ProjectId::new("p"),
            user_id: UserId::new("u"),
            name: "a".into(),
            power: Power::Running,
            reboots: 0,
            reboot_hard: true,
            vcpus: 1,
            memory_mib: 32,
            properties: BTreeMap::new(),
            disks: vec![DiskSpec {
                name: "root".into(),
                source: DiskSource::Image { image, size_gib: 1 },
                serial: String::new(),
                device: "/dev/vda".into(),
            }],
            nics: vec![],
            config_drive: true,
            disks_from: None,
            metadata: GuestMetadata::default(),
        };
        GuestPlan {
            spec: spec.into(),
            disks: vec![None],
            images: vec![Some(self.dir.path().join("images/boot.raw"))],
            taps: vec![],
            config_drive: Some(vec![0; 1 << 20]),
        }
    }

    fn volume(&self, plan: &mut GuestPlan) -> (VolumeId, PathBuf) {
        let volume = VolumeId::random(&self.entropy);
        let path = self.dir.path().join(format!("{volume}.qcow2"));
        qemu_img(&["create", "-q", "-f", "qcow2", &path.display().to_string(), "16M"]);
        std::os::unix::fs::chown(&path, Some(64117), Some(64117)).unwrap();
        Arc::make_mut(&mut plan.spec).disks.push(DiskSpec {
            name: volume.to_string(),
            source: DiskSource::Volume { volume },
            serial: volume.to_string()[..20].into(),
            device: "/dev/vdb".into(),
        });
        plan.disks.push(Some(BlockDevice { path: path.clone(), format: "qcow2" }));
        plan.images.push(None);
        (volume, path)
    }

    fn pid(&self, id: ServerId) -> i32 {
        let state = std::fs::read(self.dir.path().join(format!("guests/{id}/state.json"))).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        i32::try_from(state["process"]["pid"].as_i64().unwrap()).unwrap()
    }
}

/// Guests outlive the driver, so a test that fails must end them itself.
impl Drop for World {
    fn drop(&mut self) {
        for guest in std::fs::read_dir(self.dir.path().join("guests")).into_iter().flatten().flatten() {
            let state = std::fs::read(guest.path().join("state.json")).unwrap_or_default();
            let state: serde_json::Value = serde_json::from_slice(&state).unwrap_or_default();
            let Some(pid) = state["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) else {
                continue;
            };
            if std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == self.dir.path()) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }
}

fn qemu_img(arguments: &[&str]) {
    assert!(std::process::Command::new("qemu-img").args(arguments).status().unwrap().success());
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "{what} in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn console_grows(driver: &Qemu, id: ServerId) {
    let before = driver.console_log(id, None).await.unwrap().len();
    until("the guest writes", || async {
        let now = driver.console_log(id, None).await.unwrap();
        (now.len() > before && now.contains("up")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_the_contract() {
    let world = World::new();
    let driver = world.driver().await;
    contract::suite::hypervisor(&driver, world.plan()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_guest_is_told_from_a_stopped_one_and_starts_again() {
    let world = World::new();
    let driver = world.driver().await;
    let plan = world.plan();
    let id = plan.spec.id;
    driver.ensure(&plan, true).await.unwrap();
    console_grows(&driver, id).await;
    kill(world.pid(id));
    until("the crash is seen", || async {
        (driver.observe().await.unwrap()[0].power == PowerObserved::Crashed).then_some(())
    })
    .await;
    assert_eq!(
        driver.ensure(&plan, false).await.unwrap().power,
        PowerObserved::Crashed,
        "not without being asked"
    );
    assert_eq!(driver.ensure(&plan, true).await.unwrap().power, PowerObserved::Running);
    driver.remove(id).await.unwrap();
    assert!(!Path::new(&world.config().dir.join(id.to_string())).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_go_on_while_the_driver_is_away_and_are_found_again() {
    let world = World::new();
    let plan = world.plan();
    let id = plan.spec.id;
    let first = world.driver().await;
    first.ensure(&plan, true).await.unwrap();
    let pid = world.pid(id);
    drop(first);
    let second = world.driver().await;
    console_grows(&second, id).await;
    assert_eq!(second.ensure(&plan, false).await.unwrap().power, PowerObserved::Running);
    assert_eq!(world.pid(id), pid, "the same process");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    if world.config().user.is_some() {
        assert!(status.contains("Uid:\t64117\t64117\t64117\t64117"), "unprivileged");
        assert!(status.contains("CapEff:\t0000000000000000"));
    }
    assert!(status.contains("Seccomp:\t2"), "under seccomp");
    second.purge().await.unwrap();
    assert!(second.observe().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_survives_suspend() {
    let world = World::new();
    let driver = world.driver().await;
    let mut plan = world.plan();
    let id = plan.spec.id;
    driver.ensure(&plan, true).await.unwrap();
    console_grows(&driver, id).await;
    Arc::make_mut(&mut plan.spec).power = Power::Suspended;
    assert_eq!(driver.ensure(&plan, false).await.unwrap().power, PowerObserved::Suspended);
    let again = world.driver().await;
    assert_eq!(again.observe().await.unwrap()[0].power, PowerObserved::Suspended, "known without a process");
    let before = again.console_log(id, None).await.unwrap();
    Arc::make_mut(&mut plan.spec).power = Power::Running;
    assert_eq!(again.ensure(&plan, false).await.unwrap().power, PowerObserved::Running);
    console_grows(&again, id).await;
    let after = again.console_log(id, None).await.unwrap();
    assert!(!after[before.len()..].contains("SeaBIOS"), "resumed, not booted");
    again.remove(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_plugged_copied_and_grown_while_the_guest_runs() {
    let world = World::new();
    let driver = world.driver().await;
    let mut plan = world.plan();
    let id = plan.spec.id;
    driver.ensure(&plan, true).await.unwrap();
    console_grows(&driver, id).await;
    let (volume, path) = world.volume(&mut plan);
    assert_eq!(driver.ensure(&plan, false).await.unwrap().volumes, [volume]);
    assert!(driver.in_use(volume).await.unwrap());
    let target = world.dir.path().join("copy.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", &target.display().to_string(), "16M"]);
    std::os::unix::fs::chown(&target, Some(64117), Some(64117)).unwrap();
    driver.copy(volume, &BlockDevice { path: target.clone(), format: "qcow2" }).await.unwrap();
    driver.grow(volume, 32 << 20).await.unwrap();
    kill(world.pid(id));
    until("the crash is seen", || async {
        (driver.observe().await.unwrap()[0].power == PowerObserved::Crashed).then_some(())
    })
    .await;
    let guest = driver.ensure(&plan, true).await.unwrap();
    assert_eq!(
        (guest.power, guest.volumes),
        (PowerObserved::Running, vec![volume]),
        "plugged at the next start, too"
    );
    driver.remove(id).await.unwrap();
    qemu_img(&["compare", "-q", &target.display().to_string(), &path.display().to_string()]);
    assert!(!driver.in_use(volume).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_plans_are_errors_and_leave_no_process() {
    let world = World::new();
    let driver = world.driver().await;
    let mut plan = world.plan();
    plan.images = vec![Some(world.dir.path().join("images/no-such-file"))];
    assert!(driver.ensure(&plan, true).await.is_err());
    for _ in 0..20 {
        let (_, _) = world.volume(&mut plan);
    }
    plan.images[0] = Some(world.dir.path().join("images/boot.raw"));
    let error = driver.ensure(&plan, true).await.unwrap_err();
    assert!(error.public().contains("at most 16"), "{error:?}");
    assert_ne!(driver.observe().await.unwrap()[0].power, PowerObserved::Running);
}

/// Changes the state file as a crash at a bad moment would have left it.
fn edit_state(world: &World, id: ServerId, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = world.dir.path().join(format!("guests/{id}/state.json"));
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut state);
    std::fs::write(&path, state.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_started_but_never_recorded_gives_way_to_its_successor() {
    let world = World::new();
    let plan = world.plan();
    let id = plan.spec.id;
    world.driver().await.ensure(&plan, true).await.unwrap();
    let lost = world.pid(id);
    edit_state(&world, id, |state| state["process"] = serde_json::Value::Null);
    let driver = world.driver().await;
    assert_eq!(driver.ensure(&plan, true).await.unwrap().power, PowerObserved::Running);
    assert_ne!(world.pid(id), lost);
    let stat = std::fs::read_to_string(format!("/proc/{lost}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the lost process holds no disk: {stat}");
    driver.remove(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recycled_pid_is_neither_trusted_nor_killed() {
    let world = World::new();
    let plan = world.plan();
    let id = plan.spec.id;
    let driver = world.driver().await;
    driver.ensure(&plan, true).await.unwrap();
    kill(world.pid(id));
    let mut other = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    edit_state(&world, id, |state| state["process"]["pid"] = other.id().into());
    let driver = world.driver().await;
    assert_eq!(driver.observe().await.unwrap()[0].power, PowerObserved::Crashed);
    let mut stopped = plan.clone();
    Arc::make_mut(&mut stopped.spec).power = Power::Stopped;
    assert_eq!(driver.ensure(&stopped, false).await.unwrap().power, PowerObserved::Shutdown);
    driver.remove(id).await.unwrap();
    assert!(other.try_wait().unwrap().is_none(), "the other process goes on");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_process_owns_nothing_it_need_not_write() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    let Some((uid, _)) = world.config().user else { return };
    let plan = world.plan();
    let driver = world.driver().await;
    driver.ensure(&plan, true).await.unwrap();
    console_grows(&driver, plan.spec.id).await;
    let dir = world.config().dir.join(plan.spec.id.to_string());
    let mut theirs: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .filter(|entry| entry.metadata().unwrap().uid() == uid)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    theirs.sort();
    assert_eq!(theirs, ["config.img", "root.qcow2", "run"]);
    let own = std::fs::metadata(&dir).unwrap();
    assert_eq!((own.uid(), own.mode() & 0o777), (0, 0o710), "it can make and replace nothing");
    driver.remove(plan.spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_is_closed_to_the_guests_user_does_no_harm() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let closed = world.dir.path().join("closed");
    let deep = closed.join("a".repeat(60)).join("b".repeat(60));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let driver = Qemu::new(Config { dir: deep.join("guests"), ..world.config() }).await.unwrap();
    let plan = world.plan();
    assert_eq!(driver.ensure(&plan, true).await.unwrap().power, PowerObserved::Running);
    console_grows(&driver, plan.spec.id).await;
    driver.purge().await.unwrap();
}
