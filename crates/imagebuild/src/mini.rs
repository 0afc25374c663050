//! The mini image: Debian's cloud kernel, busybox, dropbear and a few scripts of ours (`src/mini/`).
//!
//! What the guest does is in `mini/instance.sh`: DHCP on all NICs, metadata from a config drive or the metadata service,
//! keys for `root` and `debian`, user data once per instance, root filesystem grown. Console markers, each after
//! `allod-mini: `: `metadata from …`, `instance ID hostname NAME`, `host key Fingerprint: …`, `ready SECONDS`,
//! `user-data starts`, `user-data done status N`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use base::{Error, Result};
use sha2::{Digest, Sha256, Sha512};

use crate::cpio::Archive;
use crate::disk::{Boot, Filesystem};
use crate::packages::{Apt, unpack};
use crate::tool::{self, Scratch, io};
use crate::{Options, Progress, Report, Steps, disk, elf};

/// Size of the root filesystem in the image; it grows with the disk.
const ROOT_MIB: u64 = 96;

/// Modules the root filesystem has; what they depend on comes along.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_scsi",
    "virtio_balloon",
    "virtio_rng",
    "virtio_console",
    "sd_mod",
    "sr_mod",
    "ata_piix",
    "xen_blkfront",
    "xen_netfront",
    "vmxnet3",
    "isofs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_utf8",
    "button",
    "evdev",
    "loop",
    "nbd",
    "dummy",
    "8021q",
    "ext2",
    "overlay",
];

/// Modules that may be needed to reach the root filesystem.
const BOOT_MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ata_piix", "xen_blkfront"];

/// Programs copied from packages, with the libraries they need.
const PROGRAMS: &[&str] = &["usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/bin/dbclient", "sbin/resize2fs"];

/// Busybox programs whose link lives in `/sbin`.
const SBIN: &[&str] = &[
    "init",
    "poweroff",
    "reboot",
    "halt",
    "getty",
    "mdev",
    "udhcpc",
    "acpid",
    "modprobe",
    "ifconfig",
    "ip",
    "route",
    "fdisk",
    "findfs",
    "losetup",
    "mkswap",
    "swapon",
    "swapoff",
    "sysctl",
    "syslogd",
    "klogd",
    "blkdiscard",
    "fstrim",
];

/// Files of ours: path in the image, content, mode.
const FILES: &[(&str, &str, u32)] = &[
    ("etc/inittab", include_str!("mini/inittab"), 0o644),
    ("etc/mdev.conf", include_str!("mini/mdev.conf"), 0o644),
    ("etc/profile", include_str!("mini/profile"), 0o644),
    ("etc/acpi/PWRF/00000080", include_str!("mini/poweroff.sh"), 0o755),
    ("lib/allod/start", include_str!("mini/start.sh"), 0o755),
    ("lib/allod/disk", include_str!("mini/disk.sh"), 0o755),
    ("lib/allod/nic", include_str!("mini/nic.sh"), 0o755),
    ("lib/allod/dhcp", include_str!("mini/dhcp.sh"), 0o755),
    ("lib/allod/instance", include_str!("mini/instance.sh"), 0o755),
    ("lib/allod/json.awk", include_str!("mini/json.awk"), 0o644),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndebian:x:1000:1000:debian:/home/debian:/bin/sh\n", 0o644),
    ("etc/group", "root:x:0:\ntty:x:5:\ndisk:x:6:\ndebian:x:1000:\n", 0o644),
    ("etc/shadow", "root:*:19700:0:99999:7:::\ndebian:*:19700:0:99999:7:::\n", 0o600),
    ("etc/shells", "/bin/sh\n", 0o644),
    ("etc/hostname", "allod-mini\n", 0o644),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644),
    ("etc/issue", "allod-mini \\n \\l\n", 0o644),
    (
        "etc/os-release",
        "ID=allod-mini\nNAME=\"Allod mini\"\nPRETTY_NAME=\"Allod mini\"\nVERSION_ID=1\n",
        0o644,
    ),
    ("etc/resolv.conf", "", 0o644),
];

const INIT: &str = include_str!("mini/initramfs.sh");

const GRUB: Boot<'static> = Boot {
    script: "linux /boot/vmlinuz console=tty0 console=ttyS0,115200n8 quiet net.ifnames=0 panic=10\n\
             initrd /boot/initrd\nboot\n",
    modules: &["linux", "boot"],
};

/// A name for the recipe (not for the packages): changes when what is built here changes.
pub fn recipe() -> String {
    let mut hash = Sha256::new();
    for (path, content, mode) in FILES {
        hash.update(format!("{path}\0{mode}\0{content}\0"));
    }
    hash.update(format!(
        "{INIT}\0{}\0{MODULES:?}{BOOT_MODULES:?}{PROGRAMS:?}{SBIN:?}{ROOT_MIB}",
        GRUB.script
    ));
    hex::encode(hash.finalize()).chars().take(16).collect()
}

/// Builds the mini image.
///
/// # Errors
/// `BadRequest` for options that make no sense, `Unavailable` where a tool is missing, the mirror cannot be reached, or
/// there is no room; the message says which.
pub fn build(options: &Options, tell: &(dyn Fn(&Progress) + Sync)) -> Result<Report> {
    let mut steps = Steps::new(6, tell);
    steps.next("reading package indexes");
    let apt = Apt::open(&options.cache, &options.release, options.mirror.as_deref())?;
    apt.update()?;
    steps.next("fetching packages");
    let kernel_package = apt.points_to("linux-image-cloud-amd64")?;
    let kernel_archive = apt.fetch(&kernel_package)?;
    let archives = apt.fetch_with_dependencies(&["busybox-static", "dropbear-bin", "e2fsprogs"])?;
    steps.next("unpacking packages");
    let scratch = Scratch::new(&options.cache, "mini")?;
    let (packages, kernel_tree) = (scratch.0.join("packages"), scratch.0.join("kernel"));
    unpack(&archives, &packages)?;
    unpack(std::slice::from_ref(&kernel_archive), &kernel_tree)?;
    steps.next("collecting files");
    let kernel = Kernel::find(&kernel_tree)?;
    let root = scratch.0.join("root");
    let busybox = packages.join("bin/busybox");
    let busybox = if busybox.exists() { busybox } else { packages.join("usr/bin/busybox") };
    fill_root(&root, &packages, &busybox)?;
    kernel.install_modules(&root)?;
    std::fs::create_dir_all(root.join("boot")).map_err(io(&root))?;
    copy(&kernel.image, &root.join("boot/vmlinuz"), 0o644)?;
    tool::write(&root.join("boot/initrd"), &initramfs(&kernel, &root, &busybox)?, 0o644)?;
    settle_times(&root)?;
    steps.next("writing the disk");
    let filesystem = Filesystem { tree: &root, label: "allod-mini", mib: ROOT_MIB };
    let virtual_size = disk::make(&filesystem, &GRUB, &scratch.0, &options.output)?;
    steps.next("hashing the image");
    let bytes = std::fs::read(&options.output).map_err(io(&options.output))?;
    let mut names: Vec<String> = archives
        .iter()
        .chain([&kernel_archive])
        .filter_map(|a| a.file_name())
        .map(|n| n.to_string_lossy().replace("%3a", ":"))
        .collect();
    names.sort();
    Ok(Report {
        output: options.output.clone(),
        size: u64::try_from(bytes.len()).map_err(Error::internal)?,
        virtual_size,
        sha512: hex::encode(Sha512::digest(&bytes)),
        kernel: kernel.release,
        packages: names,
    })
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let content = std::fs::read(from).map_err(io(from))?;
    tool::write(to, &content, mode)
}

/// The kernel of a package and its modules by name.
struct Kernel {
    release: String,
    image: PathBuf,
    modules: BTreeMap<String, PathBuf>,
}

impl Kernel {
    fn find(tree: &Path) -> Result<Self> {
        let boot = tree.join("boot");
        let (release, image) = std::fs::read_dir(&boot)
            .map_err(io(&boot))?
            .flatten()
            .find_map(|e| {
                let name = e.file_name().to_string_lossy().into_owned();
                name.strip_prefix("vmlinuz-").map(|r| (r.to_owned(), e.path()))
            })
            .ok_or_else(|| Error::unavailable("the kernel package has no kernel"))?;
        let mut modules = BTreeMap::new();
        let at = ["lib/modules", "usr/lib/modules"].map(|d| tree.join(d).join(&release));
        let mut open: Vec<PathBuf> = at.into_iter().filter(|d| d.is_dir()).collect();
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(&dir).map_err(io(&dir))?.flatten() {
                let path = entry.path();
                let file = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    open.push(path);
                } else if let Some((name, _)) = file.split_once(".ko") {
                    modules.insert(name.replace('-', "_"), path);
                }
            }
        }
        Ok(Kernel { release, image, modules })
    }

    /// The module's bytes, decompressed; `None` where it is built into the kernel or does not exist.
    fn module(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.modules.get(name) else { return Ok(None) };
        let tool = match path.extension().and_then(|e| e.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            _ => return std::fs::read(path).map(Some).map_err(io(path)),
        };
        let output = tool::command(tool).args(["-dc"]).arg(path).output().map_err(io(path))?;
        if output.status.success() {
            return Ok(Some(output.stdout));
        }
        Err(Error::unavailable(format!("{} cannot be decompressed", path.display())))
    }

    /// Those modules and all they depend on.
    fn closure(&self, wanted: &[&str]) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut open: Vec<String> = wanted.iter().map(|n| n.replace('-', "_")).collect();
        while let Some(name) = open.pop() {
            if found.contains_key(&name) {
                continue;
            }
            let Some(bytes) = self.module(&name)? else { continue };
            open.extend(elf::module_depends(&bytes).into_iter().map(|n| n.replace('-', "_")));
            found.insert(name, bytes);
        }
        Ok(found)
    }

    fn directory(&self) -> String {
        format!("lib/modules/{}", self.release)
    }

    fn install_modules(&self, root: &Path) -> Result<()> {
        for (name, bytes) in self.closure(MODULES)? {
            tool::write(&root.join(self.directory()).join(format!("kernel/{name}.ko")), &bytes, 0o644)?;
        }
        for list in ["modules.builtin", "modules.order", "modules.builtin.modinfo"] {
            if let Some(kernel_dir) = self
                .modules
                .values()
                .next()
                .and_then(|p| p.ancestors().find(|a| a.file_name().is_some_and(|n| *n == *self.release)))
                && kernel_dir.join(list).exists()
            {
                copy(&kernel_dir.join(list), &root.join(self.directory()).join(list), 0o644)?;
            }
        }
        tool::run("depmod", &[&"-b", &root, &self.release])
    }
}

/// Everything but kernel and modules.
fn fill_root(root: &Path, packages: &Path, busybox: &Path) -> Result<()> {
    for dir in [
        "bin",
        "sbin",
        "lib",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "mnt",
        "home/debian",
        "var/lib/allod-mini",
        "var/log",
        "etc/dropbear",
        "boot",
        "lib64",
    ] {
        let dir = root.join(dir);
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
    }
    symlink("../run", root.join("var/run")).map_err(io(root))?;
    for (path, content, mode) in FILES {
        tool::write(&root.join(path), content.as_bytes(), *mode)?;
    }
    copy(busybox, &root.join("bin/busybox"), 0o755)?;
    let applets = tool::output(tool::command(&busybox.to_string_lossy()).arg("--list"))?;
    let taken: BTreeSet<&str> = PROGRAMS.iter().filter_map(|p| p.rsplit('/').next()).collect();
    for applet in applets.lines().filter(|a| !matches!(*a, "busybox" | "dpkg" | "dpkg-deb" | "rpm")) {
        let dir = if SBIN.contains(&applet) { "sbin" } else { "bin" };
        if !taken.contains(applet) {
            let link = root.join(dir).join(applet);
            symlink("/bin/busybox", &link).map_err(io(&link))?;
        }
    }
    copy_programs(root, packages)?;
    copyrights(root, packages)
}

/// Programs, the dynamic loader and the libraries they need, found by what their headers ask for.
fn copy_programs(root: &Path, packages: &Path) -> Result<()> {
    const LIBRARY_DIRS: [&str; 4] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib", "usr/lib"];
    let mut open = Vec::new();
    for program in PROGRAMS {
        let from = [packages.join(program), packages.join("usr").join(program)]
            .into_iter()
            .find(|p| p.exists())
            .ok_or_else(|| Error::unavailable(format!("the packages have no {program}")))?;
        let name = program.rsplit('/').next().unwrap_or(program);
        let bytes = std::fs::read(&from).map_err(io(&from))?;
        open.extend(elf::needed(&bytes)?);
        tool::write(&root.join("usr/sbin").join(name), &bytes, 0o755)?;
    }
    let mut done = BTreeSet::new();
    while let Some(name) = open.pop() {
        if !done.insert(name.clone()) {
            continue;
        }
        let from = LIBRARY_DIRS
            .iter()
            .map(|d| packages.join(d).join(&name))
            .find(|p| p.exists())
            .ok_or_else(|| Error::unavailable(format!("the packages have no library {name}")))?;
        let bytes = std::fs::read(&from).map_err(io(&from))?;
        open.extend(elf::needed(&bytes)?);
        // The loader's path is fixed by the programs; others are found in its default directories.
        let to = if name.starts_with("ld-linux") { "lib64" } else { "usr/lib" };
        tool::write(&root.join(to).join(&name), &bytes, 0o755)?;
    }
    Ok(())
}

/// What we distribute comes with its licences.
fn copyrights(root: &Path, packages: &Path) -> Result<()> {
    let mut text = String::new();
    let docs = packages.join("usr/share/doc");
    for name in
        ["busybox-static", "dropbear-bin", "e2fsprogs", "libc6", "libtomcrypt1", "libtommath1", "zlib1g"]
    {
        if docs.join(name).join("copyright").exists() {
            text.push_str(&format!("{name}: https://sources.debian.org/copyright/license/{name}/\n"));
        }
    }
    tool::write(&root.join("usr/share/doc/SOURCES"), text.as_bytes(), 0o644)
}

fn initramfs(kernel: &Kernel, root: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "root", "lib", "lib/modules"] {
        archive.directory(dir);
    }
    let modules = kernel.directory();
    archive.directory(&modules);
    archive.directory(&format!("{modules}/kernel"));
    for (name, bytes) in kernel.closure(BOOT_MODULES)? {
        archive.file(&format!("{modules}/kernel/{name}.ko"), 0o644, &bytes);
    }
    for list in ["modules.dep", "modules.alias", "modules.symbols"] {
        let path = root.join(&modules).join(list);
        archive.file(&format!("{modules}/{list}"), 0o644, &std::fs::read(&path).map_err(io(&path))?);
    }
    archive.file("bin/busybox", 0o755, &std::fs::read(busybox).map_err(io(busybox))?);
    archive.link("bin/sh", "busybox");
    archive.file("init", 0o755, INIT.as_bytes());
    Ok(archive.finish())
}

/// The same times for the same content.
fn settle_times(root: &Path) -> Result<()> {
    let mut command = tool::command("find");
    command.arg(root).args(["-exec", "touch", "-h", "-d", &format!("@{}", tool::EPOCH), "{}", "+"]);
    tool::output(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipe_is_stable_and_short() {
        assert_eq!(recipe(), recipe());
        assert_eq!(recipe().len(), 16);
    }

    #[test]
    fn scripts_say_how_they_are_run_and_paths_are_relative() {
        for (path, content, mode) in FILES {
            assert!(!path.starts_with('/'));
            assert_eq!(*mode == 0o755, content.starts_with("#!/bin/sh\n"), "{path}");
        }
        assert!(INIT.starts_with("#!/bin/busybox sh\n"));
    }
}
