//! VHD, VHDX and VDI: refused where they have a parent. Sources: Microsoft "Virtual Hard Disk Image Format
//! Specification" (2006), MS-VHDX, VirtualBox `VDICore.h` as QEMU `block/vdi.c` reads it.

use std::io::{Read, Seek};

use super::inspect::num::{be32, be64, le16, le32, le64};
use super::inspect::{Source, Verdict, unsafe_because};

const COOKIE: &[u8] = b"conectix";

/// Whether the last sector is a VHD footer.
pub(crate) fn fixed<R: Read + Seek>(source: &mut Source<R>) -> Verdict<bool> {
    let Some(at) = source.length.checked_sub(512) else { return Ok(false) };
    Ok(source.need(at, 512, "the vhd footer")?.starts_with(COOKIE))
}

/// Checks a fixed VHD (data, then a footer).
pub(crate) fn check_fixed<R: Read + Seek>(source: &mut Source<R>) -> Verdict<u64> {
    let data = source.length.saturating_sub(512);
    let footer = source.need(data, 512, "the vhd footer")?;
    let size = footer_size(&footer, 2)?;
    if size > data {
        return unsafe_because("vhd is shorter than its footer says");
    }
    Ok(size)
}

/// Checks a dynamic VHD (copy of the footer, dynamic header, table, data).
pub(crate) fn check<R: Read + Seek>(source: &mut Source<R>) -> Verdict<u64> {
    let footer = source.need(0, 512, "the vhd header")?;
    let size = footer_size(&footer, 3)?;
    let header = source.need(be64(&footer, 16), 1024, "the vhd dynamic header")?;
    if !header.starts_with(b"cxsparse") || !sums(&header, 36) {
        return unsafe_because("vhd dynamic header is damaged");
    }
    let (entries, block) = (u64::from(be32(&header, 28)), u64::from(be32(&header, 32)));
    if !block.is_power_of_two() || !(512..=256 << 20).contains(&block) || entries * block < size {
        return unsafe_because("vhd block table is out of range");
    }
    let parented = header.get(40..56).is_some_and(|id| id.iter().any(|b| *b != 0))
        || header.get(64..768).is_some_and(|names| names.iter().any(|b| *b != 0));
    if parented {
        return unsafe_because("vhd has a parent");
    }
    if be64(&header, 16).checked_add(entries * 4).is_none_or(|end| end > source.length) {
        return unsafe_because("vhd block table lies outside of the file");
    }
    Ok(size)
}

fn footer_size(footer: &[u8], kind: u32) -> Verdict<u64> {
    if !footer.starts_with(COOKIE) || !sums(footer, 64) {
        return unsafe_because("vhd footer is damaged");
    }
    match be32(footer, 60) {
        found if found == kind => {}
        4 => return unsafe_because("vhd has a parent"),
        other => return unsafe_because(format!("vhd type {other} is not supported here")),
    }
    let size = be64(footer, 48);
    // The format's own bound: 2040 GiB.
    if size == 0 || size > 2040 << 30 { unsafe_because("vhd size is out of range") } else { Ok(size) }
}

/// One's complement of the sum of all bytes but the checksum itself.
fn sums(bytes: &[u8], at: usize) -> bool {
    let sum = bytes
        .iter()
        .enumerate()
        .filter(|(i, _)| !(at..at + 4).contains(i))
        .fold(0_u32, |sum, (_, b)| sum.wrapping_add(u32::from(*b)));
    be32(bytes, at) == !sum
}

/// `8B7CA206-4790-4B9A-B8FE-575F050F886E` as stored: the metadata region.
const METADATA_REGION: [u8; 16] =
    [0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e];
/// `CAA16737-FA36-4D43-B3B6-33F0AA44E76B`: file parameters.
const FILE_PARAMETERS: [u8; 16] =
    [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b];
/// `2FA54224-CD1B-4876-B211-5DBED83BF4B8`: virtual disk size.
const DISK_SIZE: [u8; 16] =
    [0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8];
/// `A8D35F2D-B30B-454D-ABF7-D3D84834AB0C`: parent locator.
const PARENT_LOCATOR: [u8; 16] =
    [0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c];

/// Checks VHDX: both region tables, and the metadata each names.
pub(crate) fn check_vhdx<R: Read + Seek>(source: &mut Source<R>) -> Verdict<u64> {
    let mut size = None;
    for at in [192 << 10, 256 << 10] {
        let table = source.need(at, 64 << 10, "the vhdx region table")?;
        if !table.starts_with(b"regi") {
            continue;
        }
        let found = vhdx_metadata(source, &table)?;
        if size.replace(found).is_some_and(|before| before != found) {
            return unsafe_because("vhdx region tables disagree");
        }
    }
    match size {
        Some(size) => Ok(size),
        None => unsafe_because("vhdx has no region table"),
    }
}

fn vhdx_metadata<R: Read + Seek>(source: &mut Source<R>, table: &[u8]) -> Verdict<u64> {
    let count = le32(table, 8);
    if count > 2047 {
        return unsafe_because("vhdx region table is out of range");
    }
    let entries = table.get(16..).unwrap_or_default().chunks_exact(32).take(count as usize);
    let mut regions = entries.filter(|e| e.get(..16) == Some(&METADATA_REGION));
    let (Some(region), None) = (regions.next(), regions.next()) else {
        return unsafe_because("vhdx has no metadata region, or more than one");
    };
    let start = le64(region, 16);
    let meta = source.need(start, 64 << 10, "the vhdx metadata")?;
    let items = le16(&meta, 10);
    if !meta.starts_with(b"metadata") || items > 2047 {
        return unsafe_because("vhdx metadata is damaged");
    }
    let (mut size, mut parameters) = (None, false);
    for item in meta.get(32..).unwrap_or_default().chunks_exact(32).take(usize::from(items)) {
        let Some(at) = start.checked_add(u64::from(le32(item, 16))) else {
            return unsafe_because("vhdx metadata is damaged");
        };
        let id = item.get(..16).unwrap_or_default();
        if id == FILE_PARAMETERS {
            parameters = true;
            if le32(&source.need(at, 8, "the vhdx file parameters")?, 4) & 2 != 0 {
                return unsafe_because("vhdx has a parent");
            }
        } else if id == PARENT_LOCATOR {
            return unsafe_because("vhdx has a parent");
        } else if id == DISK_SIZE {
            size = Some(le64(&source.need(at, 8, "the vhdx disk size")?, 0));
        }
    }
    // The format's own bound: 64 TiB.
    match size {
        Some(size) if parameters && (1..=64 << 40).contains(&size) => Ok(size),
        _ => unsafe_because("vhdx metadata lacks the disk's size or parameters"),
    }
}

/// Checks VDI.
pub(crate) fn check_vdi<R: Read + Seek>(source: &mut Source<R>) -> Verdict<u64> {
    let head = source.need(0, 512, "the vdi header")?;
    if le32(&head, 0x44) != 0x0001_0001 {
        return unsafe_because("vdi version is not supported");
    }
    if !matches!(le32(&head, 0x4c), 1 | 2) {
        return unsafe_because("vdi is a difference to a parent");
    }
    if head.get(0x1a8..0x1c8).is_some_and(|ids| ids.iter().any(|b| *b != 0)) {
        return unsafe_because("vdi has a parent");
    }
    let (size, block, blocks) = (le64(&head, 0x170), le32(&head, 0x178), u64::from(le32(&head, 0x180)));
    if le32(&head, 0x168) != 512 || block != 1 << 20 {
        return unsafe_because("vdi geometry is not supported");
    }
    if size == 0 || size > blocks << 20 || blocks > 0x1fff_fff8 {
        return unsafe_because("vdi size is out of range");
    }
    if u64::from(le32(&head, 0x154)).checked_add(blocks * 4).is_none_or(|end| end > source.length) {
        return unsafe_because("vdi block map lies outside of the file");
    }
    Ok(size)
}
