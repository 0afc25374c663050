//! qcow2 headers: refused where they name another file, need an unknown feature, or would cost the reader memory or
//! crashes. Bounds are QEMU's own (`block/qcow2.h`). Source: QEMU `docs/interop/qcow2.rst`.

use std::io::{Read, Seek};

use super::inspect::num::{be32, be64};
use super::inspect::{Source, Verdict, unsafe_because};

/// Incompatible features that keep the image in one file: dirty refcounts, compression type, extended L2 entries.
const COMPRESSION: u64 = 1 << 3;
const KNOWN_INCOMPATIBLE: u64 = 1 | COMPRESSION | 1 << 4;
/// Autoclear bit 1: the external data file is raw.
const RAW_EXTERNAL: u64 = 1 << 1;
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65_536;
const DATA_FILE_NAME: u32 = 0x4441_5441;
const CRYPTO: u32 = 0x0537_be77;

/// Checks the header and answers the virtual size.
pub(crate) fn check<R: Read + Seek>(source: &mut Source<R>) -> Verdict<u64> {
    let head = source.need(0, 72, "the qcow2 header")?;
    let version = be32(&head, 4);
    if !(2..=3).contains(&version) {
        return unsafe_because(format!("qcow2 version {version} is not supported"));
    }
    if be64(&head, 8) != 0 || be32(&head, 16) != 0 {
        return unsafe_because("qcow2 has a backing file");
    }
    let cluster_bits = be32(&head, 20);
    if !(9..=21).contains(&cluster_bits) {
        return unsafe_because(format!("qcow2 cluster size 2^{cluster_bits} is out of range"));
    }
    if be32(&head, 32) != 0 {
        return unsafe_because("qcow2 is encrypted");
    }
    let mut extended_l2 = false;
    let mut header_length = 72;
    if version == 3 {
        let rest = source.need(0, 104, "the qcow2 header")?;
        extended_l2 = features(&rest)?;
        header_length = u64::from(be32(&rest, 100));
        check_length(source, &rest, header_length, cluster_bits)?;
    }
    extensions(source, header_length, 1 << cluster_bits)?;
    tables(source, &head, cluster_bits, extended_l2)
}

/// Feature words of a version 3 header; answers whether L2 entries are extended.
fn features(head: &[u8]) -> Verdict<bool> {
    let incompatible = be64(head, 72);
    if incompatible & (1 << 1) != 0 {
        return unsafe_because("qcow2 is marked corrupt");
    }
    if incompatible & (1 << 2) != 0 || be64(head, 88) & RAW_EXTERNAL != 0 {
        return unsafe_because("qcow2 has an external data file");
    }
    let unknown = incompatible & !KNOWN_INCOMPATIBLE;
    if unknown != 0 {
        return unsafe_because(format!("qcow2 needs unknown features ({unknown:#x})"));
    }
    if be32(head, 96) > 6 {
        return unsafe_because("qcow2 refcount width is out of range");
    }
    Ok(incompatible & (1 << 4) != 0)
}

fn check_length<R: Read + Seek>(
    source: &mut Source<R>,
    head: &[u8],
    length: u64,
    cluster_bits: u32,
) -> Verdict<()> {
    if length < 104 || !length.is_multiple_of(8) || length > 1 << cluster_bits {
        return unsafe_because(format!("qcow2 header length {length} is out of range"));
    }
    let compression =
        if length > 104 { source.need(104, 1, "the qcow2 header")?.first().copied().unwrap_or(0) } else { 0 };
    if compression > 1 {
        return unsafe_because(format!("qcow2 compression type {compression} is unknown"));
    }
    if (compression != 0) != (be64(head, 72) & COMPRESSION != 0) {
        return unsafe_because("qcow2 compression type and feature bit disagree");
    }
    // Unknown further header fields must be zero or ignorable; QEMU ignores them, and so do we up to a bound.
    if length > 4096 {
        unsafe_because(format!("qcow2 header length {length} is out of range"))
    } else {
        Ok(())
    }
}

/// Header extensions: each is a type, a length and data padded to 8 bytes, all inside of the first cluster.
fn extensions<R: Read + Seek>(source: &mut Source<R>, from: u64, cluster: u64) -> Verdict<()> {
    let mut at = from;
    // A file that ends with its header has no extensions.
    while at + 8 <= cluster && at < source.length {
        let entry = source.need(at, 8, "a qcow2 header extension")?;
        let (kind, length) = (be32(&entry, 0), u64::from(be32(&entry, 4)));
        match kind {
            0 => return Ok(()),
            DATA_FILE_NAME => return unsafe_because("qcow2 names an external data file"),
            CRYPTO => return unsafe_because("qcow2 is encrypted"),
            _ => {}
        }
        let end = at + 8 + length;
        if end > cluster || end > source.length {
            return unsafe_because("a qcow2 header extension lies outside of the header");
        }
        at = end.next_multiple_of(8);
    }
    Ok(())
}

/// Sizes and places of the tables the header points to.
fn tables<R: Read + Seek>(
    source: &mut Source<R>,
    head: &[u8],
    cluster_bits: u32,
    extended_l2: bool,
) -> Verdict<u64> {
    let cluster = 1_u64 << cluster_bits;
    let virtual_size = be64(head, 24);
    if virtual_size > i64::MAX as u64 {
        return unsafe_because("qcow2 virtual size is out of range");
    }
    let l1_entries = u64::from(be32(head, 36));
    if l1_entries * 8 > MAX_L1_BYTES {
        return unsafe_because(format!("qcow2 L1 table of {l1_entries} entries is too large"));
    }
    let per_l1_entry = u128::from(cluster) * u128::from(cluster / if extended_l2 { 16 } else { 8 });
    if u128::from(virtual_size) > per_l1_entry * u128::from(l1_entries) {
        return unsafe_because("qcow2 virtual size is larger than its L1 table can map");
    }
    let refcount_clusters = u64::from(be32(head, 56));
    if refcount_clusters == 0 || refcount_clusters * cluster > MAX_REFCOUNT_TABLE_BYTES.max(cluster) {
        return unsafe_because("qcow2 refcount table is out of range");
    }
    let snapshots = be32(head, 60);
    if snapshots > MAX_SNAPSHOTS {
        return unsafe_because(format!("qcow2 has {snapshots} snapshots"));
    }
    let places = [
        ("L1 table", be64(head, 40), l1_entries * 8),
        ("refcount table", be64(head, 48), 8),
        ("snapshot table", be64(head, 64), u64::from(snapshots) * 40),
    ];
    for (what, offset, length) in places {
        if length == 0 {
            continue;
        }
        if !offset.is_multiple_of(cluster) || offset == 0 {
            return unsafe_because(format!("qcow2 {what} is not at a cluster"));
        }
        if offset.checked_add(length).is_none_or(|end| end > source.length) {
            return unsafe_because(format!("qcow2 {what} lies outside of the file"));
        }
    }
    Ok(virtual_size)
}
