//! The command line of a guest.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base::{Error, Result};
use contract::host::ServerSpec;
use tokio::process::Command;

use crate::accel::{Accelerator, QEMU};
use crate::devices::Device;
use crate::process::Process;
use crate::{Config, io};

/// PCIe root ports: how many disks and interfaces a guest can have, cold and hot together.
pub(crate) const ROOT_PORTS: u32 = 16;
/// The serial console's character device.
pub(crate) const CONSOLE: &str = "console";
/// Bytes of console output that QEMU keeps until they are read; a power of two.
const RING: u32 = 1 << 20;
/// How long QEMU may take to open its QMP socket.
const START: Duration = Duration::from_secs(30);

/// Arguments that every guest has.
fn machine(spec: &ServerSpec, accelerator: Accelerator) -> Vec<String> {
    let cpu = match accelerator {
        Accelerator::Kvm => "host",
        // Everything that translation can do, RDRAND and RDSEED included: guests need entropy early.
        // Without 57-bit addresses: a fifth level of page tables costs a translated guest a fifth of its speed.
        Accelerator::Tcg => "max,la57=off",
    };
    let accel = match accelerator {
        Accelerator::Kvm => "kvm".to_owned(),
        // The default cache is up to a gigabyte; a kernel's boot needs about 100 MiB, with less it is translated twice.
        Accelerator::Tcg => {
            format!("tcg,thread=multi,tb-size={}", if spec.memory_mib > 1024 { 256 } else { 128 })
        }
    };
    let mut arguments: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-vga",
        "none",
        "-no-shutdown",
        "-boot",
        "strict=on",
        "-rtc",
        "base=utc",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.extend(["-name".into(), format!("guest={},debug-threads=on", spec.id)]);
    arguments.extend(["-uuid".into(), spec.id.to_string()]);
    // By this cloud-init's ds-identify knows an OpenStack cloud, and asks for its metadata.
    arguments.extend([
        "-smbios".into(),
        format!(
            "type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova,version=Allod,serial={},family=Virtual Machine",
            spec.id
        ),
    ]);
    arguments.extend([
        "-machine".into(),
        "q35,usb=off,smm=off,dump-guest-core=off".into(),
        "-accel".into(),
        accel,
    ]);
    arguments.extend(["-cpu".into(), cpu.into(), "-smp".into(), spec.vcpus.to_string()]);
    arguments.extend(["-m".into(), format!("{}M", spec.memory_mib)]);
    arguments.extend(random(&spec.properties));
    for port in 0..ROOT_PORTS {
        // Eight root ports share a slot of the root complex as functions: fewer devices for the firmware to look at.
        let (slot, function) = (4 + port / 8, port % 8);
        let multi = if function == 0 { ",multifunction=on" } else { "" };
        arguments.push("-device".into());
        arguments.push(format!(
            "pcie-root-port,id=rp{port},chassis={},bus=pcie.0,addr=0x{slot:x}.{function},io-reserve=0{multi}",
            port + 1
        ));
    }
    arguments
}

/// A source of random numbers (virtio-rng), unless the flavor forbids it: `hw_rng:allowed`, `hw_rng:rate_bytes` and
/// `hw_rng:rate_period` (milliseconds), as Nova's flavors say it. An image need not ask by `hw_rng_model`: a kernel that
/// does not want it loses nothing, and an old one boots sooner.
fn random(properties: &BTreeMap<String, String>) -> Vec<String> {
    let told = |name: &str| properties.get(name).map(String::as_str);
    // QEMU does not start with more.
    let number = |name: &str, most: u64| {
        told(name).and_then(|t| t.parse::<u64>().ok()).filter(|n| *n > 0).map(|n| n.min(most))
    };
    let yes = |t: &str| ["1", "t", "true", "on", "y", "yes"].contains(&t.to_ascii_lowercase().as_str());
    if !told("hw_rng:allowed").is_none_or(yes) {
        return Vec::new();
    }
    // libvirt's period is a second where none is told, QEMU's is a minute.
    let rate = number("hw_rng:rate_bytes", u64::MAX >> 1).map_or(String::new(), |bytes| {
        let period = number("hw_rng:rate_period", u32::MAX.into()).unwrap_or(1000);
        format!(",max-bytes={bytes},period={period}")
    });
    let device = format!("virtio-rng-pci,rng=rng0,bus=pcie.0,addr=0x2{rate}");
    ["-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", &device].map(str::to_owned).to_vec()
}

/// All arguments. `slots` gives each device its root port.
pub(crate) fn arguments(
    spec: &ServerSpec,
    accelerator: Accelerator,
    socket: &Path,
    devices: &[(Device, u32)],
    paused: bool,
) -> Vec<String> {
    let mut arguments = machine(spec, accelerator);
    if paused {
        arguments.push("-S".into());
    }
    // A ring in QEMU's memory, emptied into a bounded file by us: a guest that writes without end fills nothing, and one
    // that writes while we are away keeps its last mebibyte for us.
    arguments.extend(["-chardev".into(), format!("ringbuf,id={CONSOLE},size={RING}")]);
    arguments.extend(["-serial".into(), format!("chardev:{CONSOLE}")]);
    arguments
        .extend(["-chardev".into(), format!("socket,id=qmp,path={},server=on,wait=off", escaped(socket))]);
    arguments.extend(["-mon".into(), "chardev=qmp,mode=control".into()]);
    if devices.iter().any(|(device, _)| !device.takes_port()) {
        arguments.extend(["-device".into(), "virtio-scsi-pci,id=scsi0,bus=pcie.0,addr=0x3".into()]);
    }
    for (device, slot) in devices {
        for node in device.blockdevs() {
            arguments.extend(["-blockdev".into(), node.to_string()]);
        }
        if let Some(net) = device.netdev() {
            arguments.extend(["-netdev".into(), net.to_string()]);
        }
        arguments.extend(["-device".into(), device.device(*slot).to_string()]);
    }
    arguments
}

/// QEMU's option syntax doubles commas.
pub(crate) fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Starts QEMU in a session of its own, as the guests' user, and waits for its QMP socket.
pub(crate) async fn start(
    config: &Config,
    accelerator: Accelerator,
    dir: &Path,
    socket: &Path,
    arguments: &[String],
) -> Result<Process> {
    let server = dir.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    let _ = std::fs::remove_file(socket);
    let errors = dir.join("qemu.log");
    let stderr = std::fs::File::create(&errors).map_err(io(&errors))?;
    // setsid and setpriv replace themselves: the child's pid is QEMU's, or its guard's.
    let mut command = Command::new("setsid");
    if let Some(guard) = &config.guard {
        // The guard stays, as QEMU's parent; without it QEMU dies.
        command.arg(guard).args(["guest-guard", "--lease"]).arg(crate::guard::path(&config.dir));
        command.args(["--server", server, "--", "setpriv", "--pdeathsig", "KILL"]);
        if config.user.is_none() {
            command.arg("--no-new-privs");
        }
    } else if config.user.is_some() {
        command.arg("setpriv");
    }
    if let Some((uid, gid)) = config.user {
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}"));
        match (accelerator, kvm_group()) {
            (Accelerator::Kvm, Some(group)) => command.arg(format!("--groups={group}")),
            _ => command.arg("--clear-groups"),
        };
        command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
    }
    command.arg(QEMU).args(arguments).current_dir(config.root());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    let mut child = command.spawn().map_err(Error::internal)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let process = pid.and_then(Process::find).ok_or_else(|| Error::internal("QEMU ended at once"))?;
    let wait = async {
        loop {
            if socket.exists() {
                return Ok(());
            }
            if let Ok(Some(status)) = child.try_wait() {
                let text = std::fs::read_to_string(&errors).unwrap_or_default();
                return Err(Error::internal(format!("QEMU ended ({status}): {}", text.trim())));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(START, wait).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            process.kill().await?;
            return Err(Error::unavailable("QEMU does not start."));
        }
    }
    // Reap it when it ends, so that it does not stay as a zombie that looks alive.
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
    if config.guard.is_none() {
        return Ok(process);
    }
    // The socket is there a moment before QEMU listens on it.
    let find = async {
        while process.alive() {
            let peer = crate::Qmp::connect(socket).await.ok().and_then(|qmp| qmp.peer());
            if let Some(guarded) = peer.and_then(Process::find) {
                return Some(guarded);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    };
    let guarded = tokio::time::timeout(START, find).await.ok().flatten();
    match guarded {
        Some(guarded) => Ok(guarded),
        None => {
            process.kill().await?;
            Err(Error::unavailable("QEMU ended as soon as it had started."))
        }
    }
}

fn kvm_group() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/dev/kvm").ok().map(|m| m.gid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_as_the_flavor_says() {
        let device = |told: &[(&str, &str)]| {
            let told = told.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            random(&told).pop().map(|d| d.replace("virtio-rng-pci,rng=rng0,bus=pcie.0,addr=0x2", "rng"))
        };
        assert_eq!(device(&[]).unwrap(), "rng");
        assert_eq!(device(&[("hw_rng:allowed", "True"), ("hw_rng_model", "virtio")]).unwrap(), "rng");
        assert_eq!(device(&[("hw_rng:allowed", "no"), ("hw_rng_model", "virtio")]), None);
        assert_eq!(device(&[("hw_rng:rate_bytes", "2048")]).unwrap(), "rng,max-bytes=2048,period=1000");
        let both = [("hw_rng:rate_bytes", "2048"), ("hw_rng:rate_period", "500")];
        assert_eq!(device(&both).unwrap(), "rng,max-bytes=2048,period=500");
        let far =
            [("hw_rng:rate_bytes", "18446744073709551615"), ("hw_rng:rate_period", "9223372036854775807")];
        assert_eq!(device(&far).unwrap(), "rng,max-bytes=9223372036854775807,period=4294967295");
        assert_eq!(device(&[("hw_rng:rate_bytes", "0"), ("hw_rng:rate_period", "500")]).unwrap(), "rng");
    }
}
