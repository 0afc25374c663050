//! Malicious and broken headers, and honest images made by the real `qemu-img`.

use std::fs::File;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use image::inspect::{Probed, Refusal, inspect, inspect_as};

type Change = fn(&mut Vec<u8>);

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn le32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn le64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// A header QEMU would open: 64 KiB clusters, 1 GiB.
fn qcow2() -> Vec<u8> {
    let mut b = vec![0; 4 << 16];
    b[..4].copy_from_slice(b"QFI\xfb");
    put32(&mut b, 4, 3);
    put32(&mut b, 20, 16);
    put64(&mut b, 24, 1 << 30);
    put32(&mut b, 36, 2);
    put64(&mut b, 40, 3 << 16);
    put64(&mut b, 48, 1 << 16);
    put32(&mut b, 56, 1);
    put32(&mut b, 96, 4);
    put32(&mut b, 100, 112);
    b
}

#[test]
fn qcow2_headers_that_are_refused() {
    let cases: &[(&str, &str, Change)] = &[
        ("version 0", "version", |b| put32(b, 4, 0)),
        ("version 1", "version", |b| put32(b, 4, 1)),
        ("version 4", "version", |b| put32(b, 4, 4)),
        ("backing file", "backing", |b| {
            put64(b, 8, 512);
            put32(b, 16, 11);
            b[512..523].copy_from_slice(b"/etc/passwd");
        }),
        ("backing offset without length", "backing", |b| put64(b, 8, 512)),
        ("backing length without offset", "backing", |b| put32(b, 16, 11)),
        ("cluster bits 8", "cluster", |b| put32(b, 20, 8)),
        ("cluster bits 22", "cluster", |b| put32(b, 20, 22)),
        ("cluster bits 63", "cluster", |b| put32(b, 20, 63)),
        ("cluster bits max", "cluster", |b| put32(b, 20, u32::MAX)),
        ("AES", "encrypted", |b| put32(b, 32, 1)),
        ("LUKS", "encrypted", |b| put32(b, 32, 2)),
        ("crypto extension", "encrypted", |b| {
            put32(b, 112, 0x0537_be77);
            put32(b, 116, 16);
        }),
        ("corrupt bit", "corrupt", |b| put64(b, 72, 2)),
        ("external data bit", "data file", |b| put64(b, 72, 4)),
        ("raw external autoclear bit", "data file", |b| put64(b, 88, 2)),
        ("data file name extension", "data file", |b| {
            put32(b, 112, 0x4441_5441);
            put32(b, 116, 8);
            b[120..128].copy_from_slice(b"/dev/sda");
        }),
        ("data file name after another extension", "data file", |b| {
            put32(b, 112, 0x6803_f857);
            put32(b, 116, 3);
            put32(b, 128, 0x4441_5441);
            put32(b, 132, 8);
        }),
        ("unknown incompatible bit 5", "unknown features", |b| put64(b, 72, 1 << 5)),
        ("unknown incompatible bit 63", "unknown features", |b| put64(b, 72, 1 << 63)),
        ("header length 0", "header length", |b| put32(b, 100, 0)),
        ("header length 72", "header length", |b| put32(b, 100, 72)),
        ("header length 105", "header length", |b| put32(b, 100, 105)),
        ("header length over the cluster", "header length", |b| put32(b, 100, 1 << 17)),
        ("header length max", "header length", |b| put32(b, 100, u32::MAX)),
        ("header length over the bound", "header length", |b| put32(b, 100, 8192)),
        ("unknown compression", "compression", |b| {
            put64(b, 72, 8);
            b[104] = 2;
        }),
        ("compression without its bit", "compression", |b| b[104] = 1),
        ("compression bit without type", "compression", |b| put64(b, 72, 8)),
        ("refcount order 7", "refcount width", |b| put32(b, 96, 7)),
        ("extension longer than the header", "extension", |b| {
            put32(b, 112, 0x6803_f857);
            put32(b, 116, u32::MAX);
        }),
        ("L1 of 32 MiB and one entry", "L1 table", |b| put32(b, 36, (32 << 20) / 8 + 1)),
        ("L1 max", "L1 table", |b| put32(b, 36, u32::MAX)),
        ("L1 empty", "virtual size", |b| put32(b, 36, 0)),
        ("size over the L1", "virtual size", |b| put64(b, 24, 1 << 40)),
        ("size 2^63", "virtual size", |b| put64(b, 24, 1 << 63)),
        ("size max", "virtual size", |b| put64(b, 24, u64::MAX)),
        ("L1 outside", "L1 table", |b| put64(b, 40, 1 << 40)),
        ("L1 past the end by wrap", "L1 table", |b| put64(b, 40, !0xffff)),
        ("L1 unaligned", "L1 table", |b| put64(b, 40, (3 << 16) + 8)),
        ("L1 over the header", "L1 table", |b| put64(b, 40, 0)),
        ("no refcount table", "refcount table", |b| put32(b, 56, 0)),
        ("refcount table too large", "refcount table", |b| put32(b, 56, 1 << 20)),
        ("refcount table outside", "refcount table", |b| put64(b, 48, 1 << 30)),
        ("too many snapshots", "snapshots", |b| put32(b, 60, 65_537)),
        ("snapshots outside", "snapshot table", |b| {
            put32(b, 60, 5);
            put64(b, 64, 1 << 30);
        }),
        ("cut in the version 2 part", "outside", |b| b.truncate(71)),
        ("cut in the version 3 part", "outside", |b| b.truncate(100)),
        ("magic only", "outside", |b| b.truncate(4)),
        ("cut before the tables", "outside", |b| b.truncate(512)),
        ("also an ISO", "more than one", |b| b[32769..32774].copy_from_slice(b"CD001")),
        ("also a VDI", "more than one", |b| b[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe])),
    ];
    assert!(cases.len() >= 40);
    assert_eq!(inspect(Cursor::new(qcow2())).unwrap().virtual_size, 1 << 30, "the unchanged header is fine");
    for (name, word, change) in cases {
        let mut bytes = qcow2();
        change(&mut bytes);
        match inspect_as("qcow2", "bare", Cursor::new(bytes)) {
            Err(Refusal::Unsafe(why)) => assert!(why.contains(word), "{name}: {why}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn qcow2_version_2_has_no_feature_words() {
    let mut bytes = qcow2();
    put32(&mut bytes, 4, 2);
    bytes[72..112].fill(0);
    assert_eq!(inspect(Cursor::new(&bytes)).unwrap().format, Probed::Qcow2);
    put32(&mut bytes, 72, 0x4441_5441);
    put32(&mut bytes, 76, 4);
    assert!(matches!(inspect(Cursor::new(&bytes)), Err(Refusal::Unsafe(_))), "extensions start at 72");
}

const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
    createType=\"monolithicSparse\"\n\n# Extent description\nRW 2097152 SPARSE \"disk.vmdk\"\n\n\
    #DDB\nddb.adapterType = \"ide\"\n";

fn vmdk(descriptor: &str) -> Vec<u8> {
    let mut b = vec![0; 64 << 10];
    b[..4].copy_from_slice(b"KDMV");
    le32(&mut b, 4, 1);
    le64(&mut b, 12, 2_097_152);
    le64(&mut b, 20, 128);
    le64(&mut b, 28, 1);
    le64(&mut b, 36, 20);
    le32(&mut b, 44, 512);
    le64(&mut b, 56, 26);
    b[512..512 + descriptor.len()].copy_from_slice(descriptor.as_bytes());
    b
}

#[test]
fn vmdk_that_are_refused() {
    let good = inspect_as("vmdk", "bare", Cursor::new(vmdk(DESCRIPTOR))).unwrap();
    assert_eq!((good.format, good.virtual_size), (Probed::Vmdk, 1 << 30));
    let texts: &[(&str, &str, &str, &str)] = &[
        ("flat extent", "SPARSE \"disk", "FLAT \"disk", "extent type"),
        ("device extent", "SPARSE \"disk.vmdk\"", "VMFSRDM \"/dev/sda\"", "extent type"),
        ("absolute extent", "\"disk.vmdk\"", "\"/etc/shadow\"", "elsewhere"),
        ("extent above", "\"disk.vmdk\"", "\"../disk.vmdk\"", "elsewhere"),
        ("extent with protocol", "\"disk.vmdk\"", "\"nbd:host\"", "elsewhere"),
        ("extent with backslash", "\"disk.vmdk\"", "\"a\\\\b\"", "elsewhere"),
        ("unquoted extent", "\"disk.vmdk\"", "disk.vmdk", "elsewhere"),
        ("two extents", "\"disk.vmdk\"", "\"disk.vmdk\"\nRW 1 SPARSE \"b.vmdk\"", "2 extents"),
        ("no extent", "RW 2097152 SPARSE \"disk.vmdk\"", "", "0 extents"),
        (
            "extent hidden by a carriage return",
            "# Extent description",
            "#\rRW 1 FLAT \"/etc/x\" 0",
            "extent type",
        ),
        ("type flat", "monolithicSparse", "monolithicFlat", "type"),
        ("type split", "monolithicSparse", "twoGbMaxExtentSparse", "type"),
        ("type vmfs", "monolithicSparse", "vmfs", "type"),
        ("two types", "version=1", "createType=\"monolithicFlat\"", "more than one"),
        ("no type", "createType=\"monolithicSparse\"", "", "no createType"),
        ("parent", "parentCID=ffffffff", "parentCID=11111111", "parent"),
        ("parent hint", "version=1", "parentFileNameHint=\"/etc/x\"", "another file"),
        ("nonsense", "version=1", "version 1", "not understood"),
        ("no descriptor start", "# Disk DescriptorFile", "# Something", "does not start"),
    ];
    for (name, from, to, word) in texts {
        match inspect(Cursor::new(vmdk(&DESCRIPTOR.replace(from, to)))) {
            Err(Refusal::Unsafe(why)) => assert!(why.contains(word), "{name}: {why}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let headers: &[(&str, &str, Change)] = &[
        ("version", "version", |b| le32(b, 4, 9)),
        ("capacity 0", "capacity", |b| le64(b, 12, 0)),
        ("capacity wraps", "capacity", |b| le64(b, 12, u64::MAX)),
        ("grain", "grain size", |b| le64(b, 20, 3)),
        ("grain tables", "grain table", |b| le32(b, 44, 0)),
        ("descriptor at 0", "descriptor", |b| le64(b, 28, 0)),
        ("descriptor outside", "outside", |b| le64(b, 28, 1 << 30)),
        ("descriptor wraps", "outside", |b| le64(b, 28, u64::MAX)),
        ("descriptor huge", "too large", |b| le64(b, 36, 1 << 20)),
        ("descriptor twice", "after its end", |b| b[512 + 1000] = b'R'),
        ("directory outside", "outside", |b| le64(b, 56, 1 << 40)),
        ("directory at the end without footer", "footer", |b| le64(b, 56, u64::MAX)),
        ("cut", "outside", |b| b.truncate(500)),
        ("old ESX kind", "other files", |b| b[..4].copy_from_slice(b"COWD")),
    ];
    for (name, word, change) in headers {
        let mut bytes = vmdk(DESCRIPTOR);
        change(&mut bytes);
        match inspect(Cursor::new(bytes)) {
            Err(Refusal::Unsafe(why)) => assert!(why.contains(word), "{name}: {why}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let text = "# Disk DescriptorFile\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"/etc/shadow\" 0\n";
    assert!(
        matches!(inspect(Cursor::new(text)), Err(Refusal::Unsafe(_))),
        "a text file that names any other"
    );
}

fn vdi() -> Vec<u8> {
    let mut b = vec![0; 2 << 20];
    b[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
    le32(&mut b, 0x44, 0x0001_0001);
    le32(&mut b, 0x4c, 1);
    le32(&mut b, 0x154, 512);
    le32(&mut b, 0x158, 1 << 20);
    le32(&mut b, 0x168, 512);
    le64(&mut b, 0x170, 64 << 20);
    le32(&mut b, 0x178, 1 << 20);
    le32(&mut b, 0x180, 64);
    b
}

#[test]
fn other_formats_that_are_refused() {
    assert_eq!(inspect(Cursor::new(vdi())).unwrap().virtual_size, 64 << 20);
    let cases: &[(&str, Change)] = &[
        ("version", |b| le32(b, 0x44, 2)),
        ("differencing", |b| le32(b, 0x4c, 4)),
        ("undo", |b| le32(b, 0x4c, 3)),
        ("link uuid", |b| b[0x1a8] = 1),
        ("parent uuid", |b| b[0x1b8] = 1),
        ("size over the map", |b| le64(b, 0x170, 65 << 20)),
        ("size 0", |b| le64(b, 0x170, 0)),
        ("blocks", |b| le32(b, 0x180, u32::MAX)),
        ("map outside", |b| le32(b, 0x154, u32::MAX)),
        ("sector size", |b| le32(b, 0x168, 4096)),
        ("cut", |b| b.truncate(0x50)),
    ];
    for (name, change) in cases {
        let mut bytes = vdi();
        change(&mut bytes);
        assert!(matches!(inspect(Cursor::new(bytes)), Err(Refusal::Unsafe(_))), "vdi {name}");
    }
    for bytes in [
        b"QED\0".to_vec(),
        b"LUKS\xba\xbe\x00\x02".to_vec(),
        b"conectix".to_vec(),
        [b"conectix".to_vec(), vec![0; 4096]].concat(),
        b"vhdxfile".to_vec(),
        [b"vhdxfile".to_vec(), vec![0; 1 << 20]].concat(),
    ] {
        assert!(matches!(inspect(Cursor::new(&bytes)), Err(Refusal::Unsafe(_))), "{:?}", &bytes[..4]);
    }
}

#[test]
fn declared_and_found_must_agree() {
    let plain = vec![0x5a; 1024];
    let mut partitioned = vec![0; 4096];
    partitioned[450] = 0xee;
    partitioned[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut iso = vec![0; 64 << 10];
    iso[32769..32774].copy_from_slice(b"CD001");
    let mut vhd = vec![0; 1 << 20];
    vhd.extend_from_slice(&{
        let mut footer = vec![0; 512];
        footer[..8].copy_from_slice(b"conectix");
        put64(&mut footer, 48, 1 << 20);
        put32(&mut footer, 60, 2);
        let sum = footer.iter().fold(0_u32, |s, b| s + u32::from(*b));
        put32(&mut footer, 64, !sum);
        footer
    });
    let ok =
        |declared, container, bytes: &Vec<u8>| inspect_as(declared, container, Cursor::new(bytes.clone()));
    assert!(ok("raw", "bare", &plain).is_ok());
    assert!(ok("raw", "bare", &Vec::new()).is_ok());
    assert!(ok("ami", "ami", &plain).is_ok());
    assert!(ok("aki", "aki", &plain).is_ok());
    assert!(ok("raw", "bare", &partitioned).is_ok());
    assert!(ok("iso", "bare", &iso).is_ok());
    assert!(ok("qcow2", "bare", &qcow2()).is_ok());
    assert!(ok("vmdk", "ova", &plain).is_ok(), "an archive");
    assert_eq!(ok("vhd", "bare", &vhd).unwrap().virtual_size, 1 << 20);
    assert!(ok("raw", "bare", &vhd).is_ok(), "a fixed VHD read as raw is only a disk with a trailing sector");
    for (declared, container, bytes) in [
        ("qcow2", "bare", &plain),
        ("vmdk", "bare", &plain),
        ("vhd", "bare", &plain),
        ("vhdx", "bare", &plain),
        ("vdi", "bare", &plain),
        ("iso", "bare", &plain),
        ("ploop", "bare", &plain),
        ("qcow2", "bare", &partitioned),
        ("aki", "aki", &partitioned),
        ("raw", "bare", &iso),
        ("raw", "bare", &qcow2()),
        ("ami", "ami", &qcow2()),
        ("vmdk", "ova", &qcow2()),
        ("raw", "bare", &vmdk(DESCRIPTOR)),
        ("qcow2", "bare", &vdi()),
    ] {
        assert!(
            matches!(ok(declared, container, bytes), Err(Refusal::Mismatch { .. })),
            "{declared} {container}"
        );
    }
}

fn make(path: &Path, arguments: &[&str]) {
    let mut command = Command::new("qemu-img");
    command.arg("create").arg("-q").args(arguments).arg(path).arg("64M");
    assert!(command.status().unwrap().success(), "{arguments:?}");
}

#[test]
fn images_of_the_real_qemu_img() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("image");
    let honest: &[(&str, &[&str])] = &[
        ("raw", &["-f", "raw"]),
        ("qcow2", &["-f", "qcow2"]),
        ("qcow2", &["-f", "qcow2", "-o", "compat=0.10"]),
        ("qcow2", &["-f", "qcow2", "-o", "compression_type=zstd,extended_l2=on,cluster_size=128k"]),
        ("qcow2", &["-f", "qcow2", "-o", "cluster_size=512"]),
        ("qcow2", &["-f", "qcow2", "-o", "cluster_size=2M,lazy_refcounts=on"]),
        ("vmdk", &["-f", "vmdk"]),
        ("vmdk", &["-f", "vmdk", "-o", "subformat=streamOptimized"]),
        ("vhd", &["-f", "vpc", "-o", "force_size=on"]),
        ("vhd", &["-f", "vpc", "-o", "subformat=fixed,force_size=on"]),
        ("vhdx", &["-f", "vhdx"]),
        ("vdi", &["-f", "vdi"]),
    ];
    for (declared, arguments) in honest {
        make(&path, arguments);
        let found = inspect_as(declared, "bare", File::open(&path).unwrap());
        assert_eq!(found.map(|f| f.virtual_size), Ok(64 << 20), "{arguments:?}");
        std::fs::remove_file(&path).unwrap();
    }
    // A stream-optimized image with content has its directory at the end and a footer.
    let raw = directory.path().join("raw");
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"])
        .arg(&raw)
        .arg(&path);
    assert!(command.status().unwrap().success());
    assert_eq!(inspect(File::open(&path).unwrap()).map(|f| f.virtual_size), Ok(1 << 20));
    std::fs::remove_file(&path).unwrap();

    let backing = directory.path().join("raw");
    let backing = backing.to_str().unwrap();
    let data = format!("data_file={},data_file_raw=on", directory.path().join("data").display());
    let parts: &[&[&str]] = &[
        &["-f", "qcow2", "-b", backing, "-F", "raw"],
        &["-f", "qcow2", "-o", &data],
        &[
            "-f",
            "qcow2",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            "--object",
            "secret,id=s,data=abc",
        ],
        &["-f", "qcow"],
        &["-f", "qed"],
        &["-f", "vmdk", "-o", "subformat=monolithicFlat"],
        &["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
        &["-f", "luks", "-o", "key-secret=s,iter-time=10", "--object", "secret,id=s,data=abc"],
    ];
    for arguments in parts {
        make(&path, arguments);
        let found = inspect(File::open(&path).unwrap());
        assert!(matches!(found, Err(Refusal::Unsafe(_))), "{arguments:?}: {found:?}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn no_bytes_make_it_panic() {
    use proptest::prelude::*;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let bases = [qcow2(), vmdk(DESCRIPTOR), vdi(), [b"conectix".to_vec(), vec![0; 2048]].concat(), {
        let mut b = vec![0; 512 << 10];
        b[..8].copy_from_slice(b"vhdxfile");
        b[192 << 10..(192 << 10) + 4].copy_from_slice(b"regi");
        b
    }];
    let strategy =
        (0..bases.len(), prop::collection::vec((0..640_usize, any::<u8>()), 1..24), 0..100_000_usize);
    runner
        .run(&strategy, |(base, changes, cut)| {
            let mut bytes = bases[base].clone();
            for (at, value) in changes {
                bytes[at % 640] = value;
            }
            bytes.truncate(cut.max(16));
            let _ = inspect(Cursor::new(&bytes));
            let _ = inspect_as("vhd", "bare", Cursor::new(&bytes));
            Ok(())
        })
        .unwrap();
}
