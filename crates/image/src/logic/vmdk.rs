//! VMDK: only one file with its descriptor inside (`monolithicSparse`, `streamOptimized`). A descriptor can name any
//! file of the reader as an extent or a parent, so every line that could is refused.
//! Source: VMware Virtual Disk Format 5.0; QEMU `block/vmdk.c` for what a reader does with it.

use std::io::{Read, Seek};

use super::inspect::num::{le32, le64};
use super::inspect::{Source, Verdict, unsafe_because};

const SECTOR: u64 = 512;
/// Grain directory at the end: the real header is in the footer.
const AT_END: u64 = u64::MAX;
const MAX_DESCRIPTOR: u64 = 1 << 20;

/// Whether the file starts with a text descriptor.
pub(crate) fn is_descriptor(head: &[u8]) -> bool {
    let text: Vec<u8> = head.iter().map(u8::to_ascii_lowercase).collect();
    // A reader skips empty and comment lines before it looks for "version".
    text.windows(21).any(|w| w == b"# disk descriptorfile") && head.first() == Some(&b'#')
}

/// Checks the headers and the descriptor; answers the virtual size.
pub(crate) fn check<R: Read + Seek>(source: &mut Source<R>) -> Verdict<u64> {
    let head = source.upto(0, 512)?;
    if !head.starts_with(b"KDMV") {
        return unsafe_because("this kind of vmdk keeps its data in other files");
    }
    let head = source.need(0, 512, "the vmdk header")?;
    let version = le32(&head, 4);
    if !(1..=3).contains(&version) {
        return unsafe_because(format!("vmdk version {version} is not supported"));
    }
    let capacity = le64(&head, 12);
    let grain = le64(&head, 20);
    if !grain.is_power_of_two() || !(8..=128).contains(&grain) {
        return unsafe_because("vmdk grain size is out of range");
    }
    if le32(&head, 44) != 512 {
        return unsafe_because("vmdk grain table size is out of range");
    }
    let Some(virtual_size) = capacity.checked_mul(SECTOR).filter(|s| *s <= i64::MAX as u64 && *s > 0) else {
        return unsafe_because("vmdk capacity is out of range");
    };
    descriptor(source, le64(&head, 28), le64(&head, 36))?;
    let directory = le64(&head, 56);
    if directory == AT_END {
        footer(source, &head)?;
    } else if directory.checked_mul(SECTOR).is_none_or(|at| at >= source.length) {
        return unsafe_because("vmdk grain directory lies outside of the file");
    }
    Ok(virtual_size)
}

/// The footer's header must say the same as the first, but for the place of the grain directory.
fn footer<R: Read + Seek>(source: &mut Source<R>, head: &[u8]) -> Verdict<()> {
    let Some(start) = source.length.checked_sub(3 * SECTOR) else {
        return unsafe_because("vmdk has no footer");
    };
    let tail = source.need(start, 1536, "the vmdk footer")?;
    let second = tail.get(512..1024).unwrap_or_default();
    let marker = le64(&tail, 0) == 1 && le32(&tail, 8) == 0 && le32(&tail, 12) == 3;
    let end = tail.get(1024..1536).is_some_and(|e| le64(e, 0) == 0 && le32(e, 8) == 0 && le32(e, 12) == 0);
    if !marker || !end || second.get(..56) != head.get(..56) || second.get(64..79) != head.get(64..79) {
        return unsafe_because("vmdk footer does not agree with its header");
    }
    let directory = le64(second, 56);
    if directory == AT_END || directory.checked_mul(SECTOR).is_none_or(|at| at >= source.length) {
        return unsafe_because("vmdk grain directory lies outside of the file");
    }
    Ok(())
}

fn descriptor<R: Read + Seek>(source: &mut Source<R>, sector: u64, sectors: u64) -> Verdict<()> {
    let (Some(at), Some(length)) = (sector.checked_mul(SECTOR), sectors.checked_mul(SECTOR)) else {
        return unsafe_because("vmdk descriptor lies outside of the file");
    };
    if at == 0 || length == 0 || length > MAX_DESCRIPTOR {
        return unsafe_because("vmdk has no descriptor of its own, or one that is too large");
    }
    let bytes = source.need(at, usize::try_from(length).unwrap_or(0), "the vmdk descriptor")?;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    if bytes.iter().skip(end).any(|b| *b != 0) {
        return unsafe_because("vmdk descriptor has text after its end");
    }
    let Ok(text) = std::str::from_utf8(bytes.get(..end).unwrap_or_default()) else {
        return unsafe_because("vmdk descriptor is not text");
    };
    check_text(text)
}

/// The lines of the descriptor.
fn check_text(text: &str) -> Verdict<()> {
    if !text.starts_with("# Disk DescriptorFile") {
        return unsafe_because("vmdk descriptor does not start as one");
    }
    let mut extents = 0;
    let mut kind = None;
    for line in text.split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some((key, value)) = line.split_once('=') {
            let key = key.trim().to_ascii_lowercase();
            let value = value.trim().trim_matches('"');
            match key.as_str() {
                "createtype" if kind.replace(value.to_owned()).is_some() => {
                    return unsafe_because("vmdk descriptor has more than one createType");
                }
                "parentcid" if !value.eq_ignore_ascii_case("ffffffff") => {
                    return unsafe_because("vmdk has a parent");
                }
                "parentfilenamehint" | "changetrackpath" => {
                    return unsafe_because(format!("vmdk descriptor names another file ({key})"));
                }
                _ => continue,
            }
        } else {
            extent(line)?;
            extents += 1;
        }
    }
    match kind.as_deref() {
        Some("monolithicSparse" | "streamOptimized") => {}
        Some(other) => return unsafe_because(format!("vmdk type '{other}' is not supported")),
        None => return unsafe_because("vmdk descriptor has no createType"),
    }
    if extents == 1 {
        Ok(())
    } else {
        unsafe_because(format!("vmdk has {extents} extents; exactly one is allowed"))
    }
}

/// `RW 4192256 SPARSE "disk.vmdk"`: the one extent is the file itself, so its name must be a plain one.
fn extent(line: &str) -> Verdict<()> {
    let mut words = line.splitn(4, char::is_whitespace);
    let (access, sectors, kind, name) =
        (words.next(), words.next(), words.next(), words.next().unwrap_or(""));
    if !matches!(access, Some("RW" | "RDONLY")) || sectors.is_none_or(|s| s.parse::<u64>().is_err()) {
        return unsafe_because("vmdk descriptor has a line that is not understood");
    }
    if kind != Some("SPARSE") {
        return unsafe_because(format!("vmdk extent type '{}' is not supported", kind.unwrap_or("")));
    }
    let name = name.trim();
    let plain = name.len() > 2 && name.starts_with('"') && name.ends_with('"');
    let inner = name.trim_matches('"');
    if !plain || inner.is_empty() || inner.starts_with('.') || inner.contains(['/', '\\', ':', '"']) {
        return unsafe_because("vmdk extent names a file elsewhere");
    }
    Ok(())
}
