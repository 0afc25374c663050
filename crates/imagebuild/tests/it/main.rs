//! Builds the mini image for real and looks at it from outside. Booting it is tested by the crate `qemu`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::PathBuf;
use std::process::Command;

use imagebuild::{Options, build_mini};

/// Packages and indexes are kept between runs; nothing else is.
fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../imagebuild-cache")
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn mini_is_small_whole_and_reproducible() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("mini.qcow2");
    let steps = std::sync::Mutex::new(Vec::new());
    let report = build_mini(&Options::new(&output, cache()), &|p| {
        assert!(p.done < p.total);
        steps.lock().unwrap().push(p.step.clone());
    })
    .unwrap();
    println!("{report:#?}");
    assert_eq!(steps.lock().unwrap().len(), 6, "every step is told");
    assert!(report.size <= 40 * 1024 * 1024, "{} bytes", report.size);
    assert!(report.packages.iter().any(|p| p.starts_with("dropbear-bin_")));
    run("qemu-img", &["check", "-q", &output.to_string_lossy()]);

    let raw = dir.path().join("disk.raw");
    run("qemu-img", &["convert", "-O", "raw", &output.to_string_lossy(), &raw.to_string_lossy()]);
    let bytes = std::fs::read(&raw).unwrap();
    assert_eq!(bytes.len() as u64, report.virtual_size);
    assert_eq!(&bytes[510..512], [0x55, 0xaa], "a boot sector");
    let part = dir.path().join("part");
    std::fs::write(&part, &bytes[2048 * 512..]).unwrap();
    let part = part.to_string_lossy();
    run("e2fsck", &["-fn", &part]);
    let stat = run("debugfs", &["-R", "stat /root", &part]);
    assert!(stat.contains("User:     0"), "{stat}");

    let again = build_mini(&Options::new(&output, cache()), &|_| {}).unwrap();
    assert_eq!(again.sha512, report.sha512, "the same packages give the same bytes");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left beside the output");
}

#[test]
fn bad_options_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for release in ["", "Book worm", "../x", "bookworm main\ndeb http://evil"] {
        let options = Options { release: release.into(), ..Options::new(dir.path().join("x"), dir.path()) };
        assert_eq!(build_mini(&options, &|_| {}).unwrap_err().kind(), base::error::Kind::BadRequest);
    }
}

#[test]
fn builds_that_share_a_cache_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let builds: Vec<_> = (0..3)
        .map(|i| {
            let options = Options::new(dir.path().join(format!("{i}.qcow2")), cache());
            std::thread::spawn(move || build_mini(&options, &|_| {}).unwrap().sha512)
        })
        .collect();
    let hashes: std::collections::BTreeSet<_> = builds.into_iter().map(|b| b.join().unwrap()).collect();
    assert_eq!(hashes.len(), 1);
}
