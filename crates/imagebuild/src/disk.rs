//! An ordinary BIOS disk put together by hand: MBR with GRUB's boot sector, GRUB's core image in the gap before the first
//! partition, one ext4 partition that starts at 1 MiB.
//!
//! GRUB's boot sector loads LBA 1 (its default), and the core image made by `grub-mkimage` expects to be there and to go
//! on in LBA 2, so no block list needs patching. `grub-install` would need a mounted device; this needs a file.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base::{Error, Result};

use crate::tool::{self, io};

const SECTOR: u64 = 512;
/// First sector of the partition.
const START: u64 = 2048;
const GRUB: &str = "/usr/lib/grub/i386-pc";

/// The root filesystem to be.
pub struct Filesystem<'a> {
    /// Directory with its content.
    pub tree: &'a Path,
    /// Its label.
    pub label: &'a str,
    /// Size in MiB.
    pub mib: u64,
}

/// What GRUB shall do.
pub struct Boot<'a> {
    /// Configuration built into the core image.
    pub script: &'a str,
    /// Modules beside those that read the disk.
    pub modules: &'a [&'a str],
}

/// Makes `output` (qcow2, compressed) from a directory. Answers the disk's size in bytes.
///
/// # Errors
/// Where a tool is missing or complains, or the content does not fit.
pub fn make(filesystem: &Filesystem<'_>, boot: &Boot<'_>, scratch: &Path, output: &Path) -> Result<u64> {
    let raw = scratch.join("disk.raw");
    let part = scratch.join("root.ext4");
    ext4(filesystem, &part)?;
    let core = core_image(boot, scratch)?;
    let size = START * SECTOR + filesystem.mib * 1024 * 1024;
    let mut disk =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&raw).map_err(io(&raw))?;
    disk.set_len(size).map_err(io(&raw))?;
    let boot_sector = std::fs::read(format!("{GRUB}/boot.img"))
        .map_err(|e| Error::unavailable("GRUB's boot.img is missing; install grub-pc-bin").caused_by(e))?;
    let mbr = master_boot_record(&boot_sector, filesystem.mib * 1024 * 1024 / SECTOR, filesystem.label)?;
    disk.write_all(&mbr).and_then(|()| disk.write_all(&core)).map_err(io(&raw))?;
    copy_sparse(&part, &mut disk, START * SECTOR).map_err(io(&part))?;
    disk.sync_all().map_err(io(&raw))?;
    drop(disk);
    publish(&raw, output)?;
    Ok(size)
}

/// Compresses into qcow2 beside the output, then renames.
fn publish(raw: &Path, output: &Path) -> Result<()> {
    let name = output.file_name().ok_or_else(|| Error::bad_request("the output must name a file"))?;
    let parent = match output.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    };
    std::fs::create_dir_all(&parent).map_err(io(&parent))?;
    let aside = parent.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let made = tool::run(
        "qemu-img",
        &[&"convert", &"-c", &"-q", &"-f", &"raw", &"-O", &"qcow2", &"-o", &"compat=1.1", &raw, &aside],
    )
    .and_then(|()| {
        File::open(&aside).and_then(|f| f.sync_all()).map_err(io(&aside))?;
        std::fs::rename(&aside, output).map_err(io(output))
    });
    if made.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    made
}

/// Boot sector and partition table in one.
fn master_boot_record(boot: &[u8], sectors: u64, label: &str) -> Result<[u8; 512]> {
    const TABLE: usize = 446;
    let broken = || Error::unavailable("GRUB's boot.img is not a boot sector");
    let mut mbr: [u8; 512] = boot.try_into().map_err(|_| broken())?;
    // GRUB's drive check is for floppy emulation; grub-bios-setup replaces the jump likewise (grub-core/boot/i386/pc/boot.S).
    let check = mbr.get_mut(0x66..0x68).ok_or_else(broken)?;
    check.copy_from_slice(&[0x90, 0x90]);
    let sectors = u32::try_from(sectors).map_err(|_| Error::bad_request("the disk is larger than 2 TiB"))?;
    let mut table = [0_u8; 64];
    let start = u32::try_from(START).map_err(Error::internal)?;
    // Bootable, CHS beyond reach, Linux, CHS beyond reach, first sector, sectors.
    table[..8].copy_from_slice(&[0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    table[8..12].copy_from_slice(&start.to_le_bytes());
    table[12..16].copy_from_slice(&sectors.to_le_bytes());
    // Disk signature: the same for the same image.
    let signature = label.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    mbr[TABLE - 6..TABLE - 2].copy_from_slice(&signature.to_le_bytes());
    mbr[TABLE - 2..TABLE].fill(0);
    mbr[TABLE..TABLE + 64].copy_from_slice(&table);
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(mbr)
}

fn core_image(boot: &Boot<'_>, scratch: &Path) -> Result<Vec<u8>> {
    let (script, core) = (scratch.join("grub.cfg"), scratch.join("core.img"));
    tool::write(&script, boot.script.as_bytes(), 0o644)?;
    let mut command = tool::command("grub-mkimage");
    command.args(["-O", "i386-pc", "-d", GRUB, "-p", "(,msdos1)/boot/grub", "-c"]).arg(&script);
    command.arg("-o").arg(&core).args(["biosdisk", "part_msdos", "ext2"]).args(boot.modules);
    tool::output(&mut command)?;
    let bytes = std::fs::read(&core).map_err(io(&core))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > (START - 1) * SECTOR {
        return Err(Error::unavailable("GRUB's core image does not fit before the first partition"));
    }
    Ok(bytes)
}

/// The same features whatever release of e2fsprogs builds, all known to GRUB 2.02 and Linux 4.
const MKE2FS_CONF: &str = "[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
blocksize = 4096
inode_size = 256
inode_ratio = 8192
[fs_types]
ext4 = {
features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
";

fn ext4(filesystem: &Filesystem<'_>, part: &Path) -> Result<()> {
    let config = part.with_extension("conf");
    tool::write(&config, MKE2FS_CONF.as_bytes(), 0o644)?;
    let mut command = tool::command("mke2fs");
    command.env("MKE2FS_CONFIG", &config);
    command.args(["-q", "-F", "-t", "ext4", "-m", "1", "-J", "size=4", "-L", filesystem.label]);
    // Stable ids so that equal content gives equal bytes; room in the group descriptors to grow to 256 GiB online (beyond that the kernel
    // turns to meta_bg; more reserve would need a larger journal for one transaction of its size).
    command.args(["-U", "6c6c6f64-6d69-4e69-8000-000000000001", "-E"]);
    command.arg(
        "hash_seed=6c6c6f64-6d69-4e69-8000-000000000002,root_owner=0:0,resize=67108864,lazy_itable_init=1,nodiscard",
    );
    command.arg("-d").arg(filesystem.tree).arg(part).arg(format!("{}M", filesystem.mib));
    tool::output(&mut command)?;
    settle(filesystem.tree, part)
}

/// `mke2fs -d` keeps what cannot be chosen outside: change and access times, and the owner where an ordinary user builds.
/// Settles them inside the image.
fn settle(tree: &Path, part: &Path) -> Result<()> {
    let foreign = std::fs::metadata(tree).map_err(io(tree))?.uid() != 0;
    let owner = if foreign { &[("uid", "0"), ("gid", "0")][..] } else { &[] };
    let moment = format!("@{}", tool::EPOCH);
    let times = [
        ("ctime", moment.as_str()),
        ("ctime_extra", "0"),
        ("atime", moment.as_str()),
        ("atime_extra", "0"),
        ("crtime", moment.as_str()),
        ("crtime_extra", "0"),
    ];
    let mut commands = String::new();
    let mut open = vec![tree.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).map_err(io(&dir))? {
            let entry = entry.map_err(io(&dir))?;
            let path = entry.path();
            let inside = path.strip_prefix(tree).map_err(Error::internal)?.display();
            for (field, value) in owner.iter().chain(&times) {
                let _ = writeln!(commands, "set_inode_field \"/{inside}\" {field} {value}");
            }
            if entry.file_type().map_err(io(&path))?.is_dir() {
                open.push(path);
            }
        }
    }
    let script = part.with_extension("debugfs");
    tool::write(&script, commands.as_bytes(), 0o644)?;
    tool::run("debugfs", &[&"-w", &"-f", &script, &part])
}

/// Copies a file into another at an offset, leaving holes where there are only zeros.
fn copy_sparse(from: &Path, to: &mut File, at: u64) -> std::io::Result<()> {
    let mut from = File::open(from)?;
    let mut buffer = vec![0_u8; 1024 * 1024];
    let mut offset = at;
    loop {
        let n = from.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..n).filter(|c| !c.is_empty()) else { return Ok(()) };
        if chunk.iter().any(|b| *b != 0) {
            to.seek(SeekFrom::Start(offset))?;
            to.write_all(chunk)?;
        }
        offset += u64::try_from(n).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_record_keeps_code_and_has_one_partition() {
        let mut boot = [0xeb_u8; 512];
        boot[0x5c..0x64].copy_from_slice(&1_u64.to_le_bytes());
        let mbr = master_boot_record(&boot, 4096, "x").unwrap();
        assert_eq!(mbr[..0x66], boot[..0x66]);
        assert_eq!(mbr[446], 0x80);
        assert_eq!(mbr[450], 0x83);
        assert_eq!(mbr[454..462], [0, 8, 0, 0, 0, 16, 0, 0]);
        assert_eq!(mbr[462..510], [0; 48]);
        assert_eq!(mbr[510..], [0x55, 0xaa]);
        assert!(master_boot_record(&boot[..100], 4096, "x").is_err());
    }
}
