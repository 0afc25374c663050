//! Which accelerator works, and what the host has.

use std::process::Stdio;
use std::time::Duration;

use base::{Error, Result};
use contract::host::HostCapacity;
use serde_json::json;
use tokio::process::Command;

use crate::Config;

/// The program.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// How guests' CPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware.
    Kvm,
    /// Translation.
    Tcg,
}

/// A boot sector that waits for three ticks of the BIOS clock, asleep in between, and then writes 0x15 to the debug-exit
/// port: it needs interrupts, not only instructions.
const PROBE: [u8; 25] = [
    0xfb, // sti
    0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
    0x8b, 0x1e, 0x6c, 0x04, // mov bx, [0x46c]
    0xf4, // wait: hlt
    0xa1, 0x6c, 0x04, // mov ax, [0x46c]
    0x29, 0xd8, // sub ax, bx
    0x3d, 0x03, 0x00, // cmp ax, 3
    0x72, 0xf5, // jb wait
    0xb0, 0x15, 0xe6, 0xf4, // mov al, 0x15; out 0xf4, al
    0xf4, // hlt
];
/// QEMU's exit code then: (0x15 << 1) | 1.
const PROVED: i32 = 0x2b;

impl Accelerator {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    /// `dir` is where the probe's disk may be made. KVM only where a guest really ran under it: a `/dev/kvm` that opens proves nothing (nested, broken or filtered
    /// virtualisation hangs in the first guest instruction).
    pub async fn prove(dir: &std::path::Path) -> Self {
        if !std::path::Path::new("/dev/kvm").exists() {
            return Accelerator::Tcg;
        }
        // An emulated /dev/kvm (some sandboxes have one) runs boot sectors, slowly, and hangs in every kernel: the CPU
        // itself must have the extensions.
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if cfg!(target_arch = "x86_64") && !cpu.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
        {
            tracing::warn!("/dev/kvm is there, but the CPU has no virtualisation; guests use TCG");
            return Accelerator::Tcg;
        }
        match probe("kvm", dir).await {
            Ok(true) => Accelerator::Kvm,
            Ok(false) => {
                tracing::warn!("a probe guest under KVM did not run; guests use TCG");
                Accelerator::Tcg
            }
            Err(error) => {
                tracing::warn!(error = %error.chain(), "cannot probe KVM; guests use TCG");
                Accelerator::Tcg
            }
        }
    }
}

/// Whether a guest under `accelerator` reaches its marker in two seconds.
async fn probe(accelerator: &str, dir: &std::path::Path) -> Result<bool> {
    let mut sector = [0_u8; 512];
    sector.iter_mut().zip(PROBE).for_each(|(to, from)| *to = from);
    sector[510] = 0x55;
    sector[511] = 0xaa;
    let path = dir.join(format!(".probe-{}-{accelerator}", std::process::id()));
    std::fs::write(&path, sector).map_err(crate::io(&path))?;
    let mut child = Command::new(QEMU)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "16", "-no-reboot", "-machine"])
        .arg(format!("pc,accel={accelerator}"))
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-drive"])
        .arg(format!("file={},format=raw,if=ide", crate::launch::escaped(&path)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::internal)?;
    let status = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
    if status.is_err() {
        let _ = child.kill().await;
    }
    let _ = std::fs::remove_file(&path);
    Ok(matches!(status, Ok(Ok(status)) if status.code() == Some(PROVED)))
}

/// QEMU's version as Nova shows it: 10.0.2 is 10000002.
pub(crate) async fn version() -> Result<u64> {
    let output = Command::new(QEMU)
        .arg("--version")
        .output()
        .await
        .map_err(|e| Error::unavailable("QEMU is not installed.").caused_by(e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers = text.split("version ").nth(1).unwrap_or_default();
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u64>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    Ok(next() * 1_000_000 + next() * 1000 + next())
}

pub(crate) fn capacity(config: &Config, accelerator: Accelerator, version: u64) -> Result<HostCapacity> {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse::<u64>().ok());
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpu.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split(": ").nth(1)).unwrap_or_default().to_owned()
    };
    let disk = nix::sys::statvfs::statvfs(&config.dir).map_err(Error::internal)?;
    let gib = |blocks: u64| blocks.saturating_mul(disk.fragment_size()) >> 30;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let features: Vec<String> = field("flags").split(' ').map(str::to_owned).collect();
    Ok(HostCapacity {
        hostname: config.hostname.clone(),
        hypervisor_type: "QEMU".into(),
        hypervisor_version: version,
        accelerator: accelerator.name().into(),
        vcpus: u32::try_from(cpus).unwrap_or(1),
        memory_mib: kib.unwrap_or(0) / 1024,
        disk_gib: gib(disk.blocks()),
        disk_free_gib: gib(disk.blocks_available()),
        cpu_info: json!({
            "arch": std::env::consts::ARCH,
            "model": field("model name"),
            "vendor": field("vendor_id"),
            "features": features,
            "topology": {"sockets": 1, "cores": cpus, "threads": 1},
        }),
        host_ip: None,
        moves_disks: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_probe_guest_runs_where_guests_can_run() {
        let dir = tempfile::tempdir().unwrap();
        assert!(probe("tcg", dir.path()).await.unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(version().await.unwrap() > 5_000_000);
    }
}
