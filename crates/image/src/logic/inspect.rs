//! What stored bytes really are, and whether a host may open them. Nothing here trusts a name or a declaration.
//!
//! Formats and fields: QEMU `docs/interop/qcow2.rst`, VMware Virtual Disk Format 5.0, Microsoft VHD and VHDX (MS-VHDX),
//! VirtualBox VDI, ECMA-119 (ISO 9660), UEFI (GPT). What a virtual machine monitor would follow to another file, or
//! choke on, is refused.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};

/// A format told by the bytes themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probed {
    /// Nothing known: plain bytes of a disk, or anything else.
    Raw,
    /// A disk with an MBR or GPT partition table; a kind of raw.
    Gpt,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// VMware.
    Vmdk,
    /// Microsoft VHD (also "vpc").
    Vhd,
    /// Microsoft VHDX.
    Vhdx,
    /// VirtualBox.
    Vdi,
    /// ISO 9660.
    Iso,
    /// Parallels.
    Ploop,
    /// QEMU enhanced disk: obsolete, never accepted.
    Qed,
    /// An encrypted device: never accepted, because no host has the key.
    Luks,
}

impl Probed {
    /// Glance's name.
    pub const fn name(self) -> &'static str {
        match self {
            Probed::Raw | Probed::Gpt => "raw",
            Probed::Qcow2 => "qcow2",
            Probed::Vmdk => "vmdk",
            Probed::Vhd => "vhd",
            Probed::Vhdx => "vhdx",
            Probed::Vdi => "vdi",
            Probed::Iso => "iso",
            Probed::Ploop => "ploop",
            Probed::Qed => "qed",
            Probed::Luks => "luks",
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspection {
    /// The format.
    pub format: Probed,
    /// Size of the disk inside, in bytes.
    pub virtual_size: u64,
}

/// Why bytes are not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// They are of another format than declared.
    Mismatch {
        /// The declaration.
        declared: String,
        /// The truth.
        found: &'static str,
    },
    /// They would harm whoever opens them.
    Unsafe(String),
    /// They could not be read.
    Io(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Mismatch { declared, found } => {
                write!(
                    f,
                    "Image content did not match the declared disk format: declared '{declared}', found '{found}'"
                )
            }
            Refusal::Unsafe(why) => write!(f, "Image content is not acceptable: {why}"),
            Refusal::Io(_) => f.write_str("Image content could not be read"),
        }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Refusal::Io(error.to_string())
    }
}

/// A result of inspection.
pub type Verdict<T> = Result<T, Refusal>;

pub(crate) fn unsafe_because<T>(why: impl Into<String>) -> Verdict<T> {
    Err(Refusal::Unsafe(why.into()))
}

/// Bytes at any offset, with reads past the end told apart from reads inside.
pub(crate) struct Source<R> {
    reader: R,
    pub length: u64,
}

impl<R: Read + Seek> Source<R> {
    /// Exactly `length` bytes at `offset`; `None` where the file ends before.
    pub fn at(&mut self, offset: u64, length: usize) -> Verdict<Option<Vec<u8>>> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        self.reader.seek(SeekFrom::Start(offset))?;
        self.reader.read_exact(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// As [`Source::at`]; a file that ends before is refused.
    pub fn need(&mut self, offset: u64, length: usize, what: &str) -> Verdict<Vec<u8>> {
        match self.at(offset, length)? {
            Some(bytes) => Ok(bytes),
            None => unsafe_because(format!("{what} lies outside of the file")),
        }
    }

    /// Up to `length` bytes at `offset`.
    pub fn upto(&mut self, offset: u64, length: usize) -> Verdict<Vec<u8>> {
        let there = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX).min(length);
        Ok(self.at(offset, there)?.unwrap_or_default())
    }
}

/// Probes the bytes and checks that they are safe to open as what they are.
///
/// # Errors
/// [`Refusal::Unsafe`], [`Refusal::Io`].
pub fn inspect<R: Read + Seek>(mut reader: R) -> Verdict<Inspection> {
    let length = reader.seek(SeekFrom::End(0))?;
    let mut source = Source { reader, length };
    let format = probe(&mut source)?;
    let virtual_size = match format {
        Probed::Qcow2 => super::qcow2::check(&mut source)?,
        Probed::Vmdk => super::vmdk::check(&mut source)?,
        Probed::Vhd => super::vhd::check(&mut source)?,
        Probed::Vhdx => super::vhd::check_vhdx(&mut source)?,
        Probed::Vdi => super::vhd::check_vdi(&mut source)?,
        Probed::Qed => return unsafe_because("the format 'qed' is not supported"),
        Probed::Luks => return unsafe_because("it is encrypted (LUKS)"),
        Probed::Raw | Probed::Gpt | Probed::Iso | Probed::Ploop => length,
    };
    Ok(Inspection { format, virtual_size })
}

/// As [`inspect`], and the format must be the declared one (`disk_format` of the image).
///
/// # Errors
/// Also [`Refusal::Mismatch`].
pub fn inspect_as<R: Read + Seek>(declared: &str, container: &str, mut reader: R) -> Verdict<Inspection> {
    let length = reader.seek(SeekFrom::End(0))?;
    let mut source = Source { reader, length };
    let found = probe(&mut source)?;
    // A fixed VHD is a raw disk with a footer: only the declaration makes it one.
    if declared == "vhd" && matches!(found, Probed::Raw | Probed::Gpt) && super::vhd::fixed(&mut source)? {
        let virtual_size = super::vhd::check_fixed(&mut source)?;
        return Ok(Inspection { format: Probed::Vhd, virtual_size });
    }
    // Archives (ova, docker, compressed) carry their disks inside; outside they must look like no disk at all.
    let archive = !matches!(container, "bare" | "ami" | "ari" | "aki");
    let same = match found {
        Probed::Raw => archive || matches!(declared, "raw" | "ami" | "ari" | "aki"),
        Probed::Gpt => matches!(declared, "raw" | "ami"),
        other => other.name() == declared,
    };
    if !same {
        return Err(Refusal::Mismatch { declared: declared.to_owned(), found: found.name() });
    }
    inspect(source.reader)
}

/// All formats whose marks the bytes carry; more than one means that two readers would see two disks.
fn probe<R: Read + Seek>(source: &mut Source<R>) -> Verdict<Probed> {
    let head = source.upto(0, 512)?;
    let starts = |magic: &[u8]| head.starts_with(magic);
    let mut found = Vec::new();
    if starts(b"QFI\xfb") {
        found.push(Probed::Qcow2);
    }
    if starts(b"KDMV") || starts(b"COWD") || super::vmdk::is_descriptor(&head) {
        found.push(Probed::Vmdk);
    }
    if starts(b"conectix") {
        found.push(Probed::Vhd);
    }
    if starts(b"vhdxfile") {
        found.push(Probed::Vhdx);
    }
    if head.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        found.push(Probed::Vdi);
    }
    if starts(b"QED\0") {
        found.push(Probed::Qed);
    }
    if starts(b"LUKS\xba\xbe") {
        found.push(Probed::Luks);
    }
    if starts(b"WithoutFreeSpace") || starts(b"WithouFreSpacExt") {
        found.push(Probed::Ploop);
    }
    let iso = (16..20_u64).try_fold(false, |yes, sector| -> Verdict<bool> {
        Ok(yes || source.at(sector * 2048 + 1, 5)?.as_deref() == Some(b"CD001"))
    })?;
    if iso {
        found.push(Probed::Iso);
    }
    match found.as_slice() {
        [] if has_partitions(&head) => Ok(Probed::Gpt),
        [] => Ok(Probed::Raw),
        [one] => Ok(*one),
        many => {
            let names: Vec<_> = many.iter().map(|f| f.name()).collect();
            unsafe_because(format!("it is more than one format at once ({})", names.join(", ")))
        }
    }
}

/// A boot sector with a signature and at least one used, sane partition entry.
fn has_partitions(head: &[u8]) -> bool {
    head.get(510..512) == Some(&[0x55, 0xaa])
        && head.get(446..510).is_some_and(|table| {
            let entries = table.chunks_exact(16);
            entries.clone().all(|e| matches!(e.first(), Some(0 | 0x80)))
                && entries.into_iter().any(|e| e.get(4).is_some_and(|kind| *kind != 0))
        })
}

/// Big-endian and little-endian numbers at an offset; zero outside (callers check lengths first).
pub(crate) mod num {
    /// Big-endian 64 bits.
    pub fn be64(bytes: &[u8], at: usize) -> u64 {
        bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
    }
    /// Big-endian 32 bits.
    pub fn be32(bytes: &[u8], at: usize) -> u32 {
        bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
    }
    /// Little-endian 64 bits.
    pub fn le64(bytes: &[u8], at: usize) -> u64 {
        bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }
    /// Little-endian 32 bits.
    pub fn le32(bytes: &[u8], at: usize) -> u32 {
        bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }
    /// Little-endian 16 bits.
    pub fn le16(bytes: &[u8], at: usize) -> u16 {
        bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
    }
}
