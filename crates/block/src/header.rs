//! The few header fields of qcow2 that matter here, read without starting a process and without taking locks.
//! Source: QEMU `docs/interop/qcow2.rst`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use base::{Error, Result};
use contract::drivers::BlockDevice;

const MAGIC: &[u8] = b"QFI\xfb";
/// Incompatible feature bits that keep the image in one file: dirty, compression type, extended L2 entries.
const HARMLESS: u64 = 1 | 1 << 3 | 1 << 4;

/// Size of the disk inside, in bytes.
///
/// # Errors
/// `Internal` where the file cannot be read or is not of that format.
pub fn virtual_size(disk: &BlockDevice) -> Result<u64> {
    if disk.format == "raw" {
        return Ok(std::fs::metadata(&disk.path).map_err(Error::internal)?.len());
    }
    let header = read(&disk.path)?;
    if header.get(..4) != Some(MAGIC) {
        return Err(Error::internal("not a qcow2 file"));
    }
    Ok(be64(&header, 24))
}

/// Refuses an image that would make QEMU open any other file; answers its virtual size. The image service looked at it
/// already; a host does not rely on that.
pub(crate) fn check_self_contained(path: &Path, format: &'static str) -> Result<u64> {
    if format == "raw" {
        return Ok(std::fs::metadata(path).map_err(Error::internal)?.len());
    }
    let header = read(path)?;
    let refuse = |why: &str| Err(Error::bad_request(format!("the image is not acceptable: {why}")));
    if header.get(..4) != Some(MAGIC) {
        return refuse("it is not qcow2");
    }
    let version = be32(&header, 4);
    if !(2..=3).contains(&version) {
        return refuse("unknown qcow2 version");
    }
    if be64(&header, 8) != 0 {
        return refuse("it has a backing file");
    }
    if be32(&header, 32) != 0 {
        return refuse("it is encrypted");
    }
    if version == 3 && be64(&header, 72) & !HARMLESS != 0 {
        return refuse("it is corrupt, has an external data file, or needs an unknown feature");
    }
    Ok(be64(&header, 24))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut header = Vec::with_capacity(112);
    File::open(path).map_err(Error::internal)?.take(112).read_to_end(&mut header).map_err(Error::internal)?;
    header.resize(112, 0);
    Ok(header)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}
