//! A whole life of the mini image under the driver: what a tenant sees from inside is compared with what was asked for.
//!
//! The guest's only link is a tap in a network namespace of this test; it is reached over its link-local address, so no
//! DHCP server is needed, and nothing is left when the namespace goes with its last process.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{MacAddr, NetworkId, PortId, ServerId};
use contract::drivers::{GuestPlan, Hypervisor};
use contract::host::{NicSpec, Power, PowerObserved, ServerSpec};
use qemu::Qemu;

use crate::{World, kill, until};

/// The mini image: built once per recipe, kept between runs.
fn image() -> PathBuf {
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../imagebuild-cache");
    let path = cache.join(format!("mini-{}.qcow2", imagebuild::mini_recipe()));
    if !path.exists() {
        imagebuild::build_mini(&imagebuild::Options::new(&path, &cache), &|_| {}).unwrap();
    }
    path
}

/// A DHCP server: busybox, from the package the image was built with.
fn busybox(into: &Path) -> PathBuf {
    let archives =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../imagebuild-cache/apt-bookworm/archives");
    let archive = std::fs::read_dir(archives)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.file_name().unwrap().to_string_lossy().starts_with("busybox-static_"))
        .unwrap();
    run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(into));
    into.join("bin/busybox")
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

struct Mini {
    world: World,
    driver: Qemu,
    plan: GuestPlan,
    id: ServerId,
}

const USER_DATA: &str =
    "#!/bin/sh\necho \"user data as $(id -un) on $(hostname)\"\ntouch /root/user-data-ran\n";

impl Mini {
    /// In a network namespace of this thread; the runtime must have no other threads that start processes.
    async fn new() -> Self {
        // Where it must be built, its packages are not to be had in a namespace of one's own.
        let image = image();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let world = World::new();
        let at = world.dir.path().to_owned();
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at.join("key")));
        let mut config = world.config();
        config.grace = Duration::from_secs(30);
        let driver = Qemu::new(config).await.unwrap();
        let mut plan = world.plan();
        let id = plan.spec.id;
        std::fs::copy(image, at.join("images/mini.qcow2")).unwrap();
        plan.images = vec![Some(at.join("images/mini.qcow2"))];
        if let contract::host::DiskSource::Image { image, .. } =
            &mut Arc::make_mut(&mut plan.spec).disks[0].source
        {
            image.format = "qcow2".into();
        }
        Arc::make_mut(&mut plan.spec).memory_mib = 128;
        let mut mini = Mini { world, driver, plan, id };
        mini.plan.config_drive = Some(mini.config_drive());
        mini.add_nic(1);
        mini
    }

    fn spec(&mut self) -> &mut ServerSpec {
        Arc::make_mut(&mut self.plan.spec)
    }

    /// A VFAT filesystem as the agent makes it.
    fn config_drive(&self) -> Vec<u8> {
        let at = self.world.dir.path();
        let dir = at.join("openstack/latest");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("meta_data.json"), self.meta_data()).unwrap();
        std::fs::write(dir.join("user_data"), USER_DATA).unwrap();
        let image = at.join("config-drive");
        std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
        run(Command::new("mkfs.vfat").args(["-n", "config-2"]).arg(&image));
        run(Command::new("mcopy").args(["-s", "-i"]).arg(&image).arg(at.join("openstack")).arg("::"));
        std::fs::read(image).unwrap()
    }

    fn add_nic(&mut self, n: u8) {
        let tap = format!("tap{n}");
        let user = self.world.config().user.map_or(0, |(uid, _)| uid).to_string();
        run(Command::new("ip").args(["tuntap", "add", &tap, "mode", "tap", "user", &user]));
        run(Command::new("ip").args(["link", "set", &tap, "up"]));
        self.plan.taps.push(tap);
        let nic = NicSpec {
            port: PortId::random(&self.world.entropy),
            network: NetworkId::random(&self.world.entropy),
            mac: format!("fa:16:3e:00:00:{n:02x}").parse::<MacAddr>().unwrap(),
            mtu: 1400,
            fixed_ips: vec![],
            metadata_port: None,
        };
        self.spec().nics.push(nic);
    }

    fn meta_data(&self) -> String {
        let key = std::fs::read_to_string(self.world.dir.path().join("key.pub")).unwrap();
        let meta = serde_json::json!({
            "uuid": self.id, "name": "mini", "hostname": "mini.example", "public_keys": {"mine": key},
        });
        meta.to_string()
    }

    async fn ensure(&mut self, power: Power, start: bool) -> contract::drivers::Guest {
        self.spec().power = power;
        self.spec().generation += 1;
        self.driver.ensure(&self.plan, start).await.unwrap()
    }

    async fn console(&self) -> String {
        self.driver.console_log(self.id, None).await.unwrap()
    }

    /// Waits until the console has said `marker` that many times.
    async fn said(&self, marker: &str, times: usize) {
        until(&format!("'{marker}' ×{times}"), || async {
            (self.console().await.matches(marker).count() >= times).then_some(())
        })
        .await;
    }

    fn try_ssh(&self, script: &str) -> Option<String> {
        let output = Command::new("timeout")
            .args(["20", "ssh", "-6", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR"])
            .arg("-i")
            .arg(self.world.dir.path().join("key"))
            .args(["root@fe80::f816:3eff:fe00:1%tap1", script])
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a script in the guest until it succeeds.
    async fn ssh(&self, script: &str) -> String {
        until(&format!("ssh {script}"), || async { self.try_ssh(script) }).await
    }
}

#[tokio::test]
async fn the_mini_image_lives_as_it_is_told() {
    let mut m = Mini::new().await;
    let begin = Instant::now();
    assert_eq!(m.ensure(Power::Running, true).await.power, PowerObserved::Running);
    m.said("allod-mini: ready", 1).await;
    println!("ready after {:?}", begin.elapsed());
    m.said("user-data done status 0", 1).await;
    assert!(m.console().await.contains("user data as root on mini"));
    let hello = m.ssh("hostname; cat /sys/class/net/eth0/mtu; test -e /root/user-data-ran && echo ran").await;
    println!("SSH after {:?}", begin.elapsed());
    assert_eq!(hello, "mini\n1400\nran\n");
    let root: u64 = m.ssh("df -m / | awk 'NR==2 {print $2}'").await.trim().parse().unwrap();
    assert!(root > 900, "the root filesystem fills its disk of 1 GiB: {root} MiB");
    // scs-0101: entropy is there, from the host's device and the CPU's instructions.
    let random = m.ssh("cd /proc/sys/kernel/random; cat entropy_avail /sys/class/misc/hw_random/rng_current; grep -wo rdrand /proc/cpuinfo").await;
    assert_eq!(random, "256\nvirtio_rng.0\nrdrand\n");
    let pid = m.world.pid(m.id);
    let pss = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    println!("{}", pss.lines().find(|l| l.starts_with("Pss:")).unwrap());

    hot_plugging(&mut m).await;
    pausing_and_suspending(&mut m).await;
    restarts(&mut m).await;
    m.driver.remove(m.id).await.unwrap();
}

async fn hot_plugging(m: &mut Mini) {
    let (volume, _) = m.world.volume(&mut m.plan);
    let serial = m.plan.spec.disks[1].serial.clone();
    assert_eq!(m.ensure(Power::Running, false).await.volumes, [volume]);
    let link = format!("/dev/disk/by-id/virtio-{serial}");
    let size = m
        .ssh(&format!("echo mine | dd of={link} conv=notrunc,fsync 2>/dev/null; blockdev --getsize64 {link}"))
        .await;
    assert_eq!(size.trim(), (16 << 20).to_string());
    m.spec().disks.pop();
    m.plan.disks.pop();
    m.plan.images.pop();
    assert_eq!(m.ensure(Power::Running, false).await.volumes, []);
    m.ssh(&format!("test ! -e {link} && ! grep -q 16384 /proc/partitions")).await;

    m.add_nic(2);
    assert_eq!(m.ensure(Power::Running, false).await.ports.len(), 2);
    m.ssh("grep -q 00:02 /sys/class/net/eth1/address").await;
    m.spec().nics.pop();
    m.plan.taps.pop();
    assert_eq!(m.ensure(Power::Running, false).await.ports.len(), 1);
    m.ssh("test ! -e /sys/class/net/eth1").await;
}

async fn pausing_and_suspending(m: &mut Mini) {
    m.ssh("touch /tmp/in-memory").await;
    assert_eq!(m.ensure(Power::Paused, false).await.power, PowerObserved::Paused);
    assert_eq!(m.ensure(Power::Running, false).await.power, PowerObserved::Running);
    m.ssh("test -e /tmp/in-memory").await;
    assert_eq!(m.ensure(Power::Suspended, false).await.power, PowerObserved::Suspended);
    assert_eq!(m.ensure(Power::Running, false).await.power, PowerObserved::Running);
    m.ssh("test -e /tmp/in-memory").await;
}

async fn restarts(m: &mut Mini) {
    // The driver goes and comes back: same process, same guest.
    let pid = m.world.pid(m.id);
    let mut config = m.world.config();
    config.grace = Duration::from_secs(30);
    m.driver = Qemu::new(config).await.unwrap();
    assert_eq!(m.ensure(Power::Running, false).await.power, PowerObserved::Running);
    assert_eq!(m.world.pid(m.id), pid);
    m.ssh("test -e /tmp/in-memory").await;

    // A soft reboot: the guest shuts down in order and boots, once.
    m.spec().reboots = 1;
    m.spec().reboot_hard = false;
    assert_eq!(m.ensure(Power::Running, false).await.reboots, 1);
    assert!(m.console().await.contains("allod-mini: power button"));
    m.said("allod-mini: ready", 2).await;
    m.ssh("test ! -e /tmp/in-memory; touch /root/on-disk; sync").await;
    assert_eq!(m.ensure(Power::Running, false).await.reboots, 1);

    // Killed, told so, started again: the disk is as it was, and user data does not run a second time.
    kill(m.world.pid(m.id));
    until("the crash is seen", || async {
        (m.driver.observe().await.unwrap()[0].power == PowerObserved::Crashed).then_some(())
    })
    .await;
    assert_eq!(m.ensure(Power::Running, true).await.power, PowerObserved::Running);
    m.said("allod-mini: ready", 3).await;
    m.ssh("test -e /root/on-disk").await;
    assert_eq!(m.console().await.matches("user-data starts").count(), 1);

    // The guest powers itself off: that is no crash.
    m.ssh("poweroff").await;
    until("the guest is down", || async {
        (m.driver.observe().await.unwrap()[0].power == PowerObserved::Shutdown).then_some(())
    })
    .await;
    assert_eq!(m.ensure(Power::Running, false).await.power, PowerObserved::Shutdown);
}

/// A DHCP server on tap1 that tells MTU and routes as OVN does; gone when this is.
struct Dhcp(Child);

impl Dhcp {
    fn start(at: &Path) -> Self {
        let config = at.join("udhcpd.conf");
        let text = format!(
            "start 10.9.0.20\nend 10.9.0.20\ninterface tap1\nlease_file {0}/leases\npidfile {0}/udhcpd.pid\n\
             option subnet 255.255.255.0\noption mtu 1342\n\
             option staticroutes 169.254.169.254/32 10.9.0.1, 0.0.0.0/0 10.9.0.1\n",
            at.display()
        );
        std::fs::write(&config, text).unwrap();
        std::fs::write(at.join("leases"), "").unwrap();
        Dhcp(Command::new(busybox(at)).args(["udhcpd", "-f"]).arg(config).spawn().unwrap())
    }
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers the paths it knows, 404 to others, for as long as the test runs.
fn serve(listener: TcpListener, pages: Vec<(&'static str, String)>) {
    for mut stream in listener.incoming().flatten() {
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).is_err() {
            continue;
        }
        let path = line.split(' ').nth(1).unwrap_or_default();
        let (status, body) = match pages.iter().find(|(p, _)| *p == path) {
            Some((_, body)) => ("200 OK", body.as_str()),
            None => ("404 Not Found", "no"),
        };
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
}

#[tokio::test]
async fn metadata_comes_over_the_network() {
    let mut m = Mini::new().await;
    m.plan.config_drive = None;
    m.spec().config_drive = false;
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
    for address in ["10.9.0.1/24", "169.254.169.254/32"] {
        run(Command::new("ip").args(["address", "add", address, "dev", "tap1"]));
    }
    let listener = TcpListener::bind("169.254.169.254:80").unwrap();
    let pages = vec![
        ("/openstack/latest/meta_data.json", m.meta_data()),
        ("/openstack/latest/user_data", USER_DATA.to_owned()),
    ];
    // Inherits this thread's namespace; ends with the test process.
    std::thread::spawn(move || serve(listener, pages));
    let _dhcp = Dhcp::start(m.world.dir.path());
    m.ensure(Power::Running, true).await;
    m.said("metadata from http://169.254.169.254/openstack", 1).await;
    m.said("user-data done status 0", 1).await;
    assert!(m.console().await.contains("user data as root on mini"));
    let seen = m.ssh("hostname; ip -4 -o address show eth0; cat /sys/class/net/eth0/mtu; ip route").await;
    assert!(
        seen.starts_with("mini\n") && seen.contains("inet 10.9.0.20/24") && seen.contains("\n1342\n"),
        "{seen}"
    );
    assert!(seen.contains("169.254.169.254 via 10.9.0.1") && seen.contains("default via 10.9.0.1"), "{seen}");
    m.driver.remove(m.id).await.unwrap();
}
