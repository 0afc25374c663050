//! The Debian image: `mmdebstrap` or `debootstrap`, cloud-init, the distribution's kernel and initramfs, the same disk
//! layout as the mini image. Needs root, because installing packages runs their scripts in a chroot.

use std::path::Path;

use base::{Error, Result};
use sha2::{Digest, Sha512};

use crate::disk::{Boot, Filesystem};
use crate::packages::Apt;
use crate::tool::{self, Scratch, io};
use crate::{Options, Progress, Report, Steps, disk};

/// Room beyond the installed files, until the filesystem grows with the disk.
const SPARE_MIB: u64 = 400;

const PACKAGES: &str = "linux-image-cloud-amd64,initramfs-tools,systemd-sysv,dbus,udev,kmod,cloud-init,cloud-guest-utils,\
netplan.io,systemd-resolved,openssh-server,sudo,iproute2,iputils-ping,e2fsprogs,ca-certificates,curl,less,vim-tiny,apt,\
procps,unattended-upgrades";

/// GRUB reads a small configuration from the disk, so that the guest can change its kernel command line.
const GRUB: Boot<'static> = Boot {
    script: "set root=(hd0,msdos1)\nset prefix=(hd0,msdos1)/boot/grub\nnormal\n",
    modules: &[
        "linux",
        "boot",
        "normal",
        "configfile",
        "test",
        "echo",
        "serial",
        "terminal",
        "search",
        "gzio",
        "all_video",
    ],
};

const GRUB_CFG: &str = "serial --unit=0 --speed=115200\nterminal_input serial console\nterminal_output serial console\n\
set timeout=1\nmenuentry Debian {\n  linux /vmlinuz root=LABEL=cloudimg-root ro console=tty0 console=ttyS0,115200n8\n  \
initrd /initrd.img\n}\n";

/// The only locale that is there without generating one: cloud-init's own default ends in an error.
/// Debian's package of cloud-init never writes sources of packages; so a mirror that user data names would do nothing.
const CLOUD_CFG: &str = "datasource_list: [ConfigDrive, OpenStack, Ec2, None]\nlocale: C.UTF-8\ndatasource:\n  OpenStack:\n    max_wait: 120\n\
apt:\n  preserve_sources_list: false\n  sources_list: |\n";

fn cloud_cfg(release: &str) -> String {
    // What cloud-init calls the mirrors of user data, or else its own.
    format!("{CLOUD_CFG}{}", sources(release, "$MIRROR", "$SECURITY").replace("deb ", "    deb "))
}

/// Suites of a release in sources of packages.
fn sources(release: &str, mirror: &str, security: &str) -> String {
    format!(
        "deb {mirror} {release} main\ndeb {mirror} {release}-updates main\ndeb {security} {release}-security main\n"
    )
}

/// Builds the Debian image.
///
/// # Errors
/// As [`crate::build_mini`]; `Unavailable` without root, or without both `mmdebstrap` and `debootstrap`.
pub fn build(options: &Options, tell: &(dyn Fn(&Progress) + Sync)) -> Result<Report> {
    let mut steps = Steps::new(5, tell);
    steps.next("preparing");
    // Checks the release's name, the keyring, and says which mirror.
    let apt = Apt::open(&options.cache, &options.release, options.mirror.as_deref())?;
    let scratch = Scratch::new(&options.cache, "debian")?;
    let root = scratch.0.join("root");
    std::fs::create_dir_all(&root).map_err(io(&root))?;
    steps.next("installing packages (a few minutes)");
    bootstrap(&apt, &options.release, &root)?;
    steps.next("configuring");
    configure(&root, &options.release)?;
    let (kernel, packages) = inventory(&root)?;
    steps.next("writing the disk");
    let used = tool::output(tool::command("du").args(["-sm", "--apparent-size"]).arg(&root))?;
    let used: u64 = used.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(1024);
    let filesystem = Filesystem { tree: &root, label: "cloudimg-root", mib: used * 5 / 4 + SPARE_MIB };
    let virtual_size = disk::make(&filesystem, &GRUB, &scratch.0, &options.output)?;
    steps.next("hashing the image");
    let mut file = std::fs::File::open(&options.output).map_err(io(&options.output))?;
    let mut hash = Sha512::new();
    let size = std::io::copy(&mut file, &mut hash).map_err(io(&options.output))?;
    let sha512 = hex::encode(hash.finalize());
    Ok(Report { output: options.output.clone(), size, virtual_size, sha512, kernel, packages })
}

fn found(program: &str) -> bool {
    tool::command(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

fn bootstrap(apt: &Apt, release: &str, root: &Path) -> Result<()> {
    let include = format!("--include={PACKAGES}");
    let keyring = format!("--keyring={}", crate::packages::KEYRING);
    if found("mmdebstrap") {
        let mut command = tool::command("mmdebstrap");
        command.args(["--quiet", "--variant=minbase", "--mode=auto", &include, &keyring, release]);
        command.arg(root).args(apt.sources());
        return tool::output(&mut command).map(drop);
    }
    if found("debootstrap") {
        let mut command = tool::command("debootstrap");
        // The cloud packages are installed after, by apt, which knows the order of their scripts.
        command.args(["--variant=minbase", &keyring, release]).arg(root).arg(apt.mirror());
        tool::output(&mut command)?;
        let sources = apt.sources().join("\n") + "\n";
        tool::write(&root.join("etc/apt/sources.list"), sources.as_bytes(), 0o644)?;
        tool::write(&root.join("usr/sbin/policy-rc.d"), b"#!/bin/sh\nexit 101\n", 0o755)?;
        let names: Vec<&str> = PACKAGES.split(',').collect();
        for arguments in
            [vec!["update", "-q"], [vec!["install", "-qy", "--no-install-recommends"], names].concat()]
        {
            let mut command = tool::command("chroot");
            tool::output(command.arg(root).arg("apt-get").args(arguments))?;
        }
        let policy = root.join("usr/sbin/policy-rc.d");
        return std::fs::remove_file(&policy).map_err(io(&policy));
    }
    Err(Error::unavailable("neither mmdebstrap nor debootstrap is installed; install mmdebstrap"))
}

fn configure(root: &Path, release: &str) -> Result<()> {
    let file = |path: &str, content: &str| tool::write(&root.join(path), content.as_bytes(), 0o644);
    file("etc/fstab", "LABEL=cloudimg-root / ext4 defaults,errors=remount-ro,x-systemd.growfs 0 1\n")?;
    file("etc/hostname", "debian\n")?;
    file("boot/grub/grub.cfg", GRUB_CFG)?;
    file("etc/cloud/cloud.cfg.d/90_allod.cfg", &cloud_cfg(release))?;
    file("etc/initramfs-tools/conf.d/allod", "MODULES=most\n")?;
    // What a mirror at build time was need not be reachable from the guest.
    let archive = "http://deb.debian.org/debian";
    file("etc/apt/sources.list", &sources(release, archive, &format!("{archive}-security")))?;
    for stale in ["etc/machine-id", "var/lib/dbus/machine-id"] {
        let path = root.join(stale);
        if path.exists() {
            std::fs::write(&path, b"").map_err(io(&path))?;
        }
    }
    for pattern in ["etc/ssh", "var/cache/apt/archives", "var/lib/apt/lists"] {
        let dir = root.join(pattern);
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let stale = pattern != "etc/ssh" || name.starts_with("ssh_host_");
            if stale && entry.file_type().is_ok_and(|t| t.is_file()) {
                std::fs::remove_file(entry.path()).map_err(io(&entry.path()))?;
            }
        }
    }
    Ok(())
}

/// Kernel release and installed packages.
fn inventory(root: &Path) -> Result<(String, Vec<String>)> {
    let boot = root.join("boot");
    let kernel = std::fs::read_dir(&boot)
        .map_err(io(&boot))?
        .flatten()
        .find_map(|e| e.file_name().to_string_lossy().strip_prefix("vmlinuz-").map(str::to_owned))
        .ok_or_else(|| Error::unavailable("no kernel was installed"))?;
    let status = root.join("var/lib/dpkg/status");
    let text = std::fs::read_to_string(&status).map_err(io(&status))?;
    let field = |stanza: &str, name: &str| {
        stanza.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned()).unwrap_or_default()
    };
    let packages = text
        .split("\n\n")
        .filter(|s| s.contains("install ok installed"))
        .map(|s| {
            format!("{}_{}_{}.deb", field(s, "Package:"), field(s, "Version:"), field(s, "Architecture:"))
        })
        .collect();
    Ok((kernel, packages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_of_user_data_are_heeded() {
        let text = cloud_cfg("bookworm");
        assert!(text.ends_with(
            "\napt:\n  preserve_sources_list: false\n  sources_list: |\n    deb $MIRROR bookworm main\n    \
             deb $MIRROR bookworm-updates main\n    deb $SECURITY bookworm-security main\n"
        ));
    }
}
