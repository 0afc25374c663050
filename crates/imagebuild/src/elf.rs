//! Just enough ELF (System V ABI, x86-64 supplement) to copy a program with all it needs: `DT_NEEDED` of programs and
//! libraries, `depends=` of kernel modules. Files come from signed packages, yet nothing here trusts an offset.

use base::{Error, Result};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    number(bytes, at).map(|b| usize::from(u16::from_le_bytes(b)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

fn size_at(bytes: &[u8], at: usize) -> Option<usize> {
    u64_at(bytes, at).and_then(|n| usize::try_from(n).ok())
}

/// Names of the shared libraries a program or library asks for; empty for a static one.
///
/// # Errors
/// Where the bytes are no little-endian 64-bit ELF file, or a table points outside.
pub fn needed(bytes: &[u8]) -> Result<Vec<String>> {
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(Error::unavailable("not a 64-bit ELF file"));
    }
    dynamic(bytes).ok_or_else(|| Error::unavailable("a broken ELF file"))
}

struct Segment {
    kind: u32,
    offset: usize,
    address: u64,
    length: usize,
}

fn segments(bytes: &[u8]) -> Option<Vec<Segment>> {
    let (table, size, count) = (size_at(bytes, 32)?, u16_at(bytes, 54)?, u16_at(bytes, 56)?);
    (0..count)
        .map(|i| {
            let at = table.checked_add(i.checked_mul(size)?)?;
            Some(Segment {
                kind: u32_at(bytes, at)?,
                offset: size_at(bytes, at + 8)?,
                address: u64_at(bytes, at + 16)?,
                length: size_at(bytes, at + 32)?,
            })
        })
        .collect()
}

fn dynamic(bytes: &[u8]) -> Option<Vec<String>> {
    let segments = segments(bytes)?;
    let Some(dynamic) = segments.iter().find(|s| s.kind == PT_DYNAMIC) else { return Some(Vec::new()) };
    let entries: Vec<(u64, u64)> = (0..dynamic.length / 16)
        .map(|i| {
            let at = dynamic.offset.checked_add(i * 16)?;
            Some((u64_at(bytes, at)?, u64_at(bytes, at + 8)?))
        })
        .collect::<Option<_>>()?;
    let strings = entries.iter().find(|(tag, _)| *tag == DT_STRTAB)?.1;
    let load = segments.iter().find(|s| {
        s.kind == PT_LOAD
            && strings >= s.address
            && strings - s.address < u64::try_from(s.length).unwrap_or(u64::MAX)
    })?;
    let table = load.offset.checked_add(usize::try_from(strings - load.address).ok()?)?;
    entries
        .iter()
        .filter(|(tag, _)| *tag == DT_NEEDED)
        .map(|(_, name)| {
            let from = bytes.get(table.checked_add(usize::try_from(*name).ok()?)?..)?;
            let end = from.iter().position(|b| *b == 0)?;
            String::from_utf8(from.get(..end)?.to_vec()).ok()
        })
        .collect()
}

/// Names of the modules a kernel module needs (its `.modinfo` has `depends=a,b`).
pub fn module_depends(bytes: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = bytes.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let rest = bytes.get(at + KEY.len()..).unwrap_or_default();
    let end = rest.iter().position(|b| *b == 0).unwrap_or(0);
    let text = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_this_very_program() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needed(&bytes).unwrap().iter().any(|n| n.starts_with("libc.so")));
    }

    #[test]
    fn reads_depends() {
        let bytes = b"x\0license=GPL\0depends=virtio,virtio_ring\0name=virtio_blk\0";
        assert_eq!(module_depends(bytes), ["virtio", "virtio_ring"]);
        assert!(module_depends(b"\0depends=\0").is_empty());
    }

    proptest! {
        #[test]
        fn never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = needed(&bytes);
            for (to, from) in bytes.iter_mut().zip(*b"\x7fELF\x02\x01") { *to = from; }
            let _ = needed(&bytes);
            let _ = module_depends(&bytes);
        }
    }
}
