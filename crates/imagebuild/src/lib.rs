//! Builds guest images from signed Debian packages.
//!
//! Two recipes: [`build_mini`] (kernel, busybox, dropbear; at most 40 MB, boots in seconds even without KVM) and
//! [`build_debian`] (a Debian system with cloud-init). Both make an ordinary disk: MBR, GRUB in the gap before the first
//! partition, one ext4 partition. Invariant: no mount, no loop device, no network block device — every byte is put in place by
//! `mke2fs -d` and by this crate, so it works in a container; and the output appears whole under its name or not at all.
//!
//! Everything blocks: call it from a thread of its own. Start at [`mini::build`], then [`disk`] and [`packages`].

mod cpio;
mod debian;
mod disk;
mod elf;
mod mini;
mod packages;
mod tool;

use std::path::PathBuf;

pub use debian::build as build_debian;
pub use mini::build as build_mini;
pub use mini::recipe as mini_recipe;

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done now, for a human.
    pub step: String,
    /// Steps done.
    pub done: u32,
    /// Steps in all.
    pub total: u32,
}

/// What to build and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The qcow2 file to make; replaced if it exists.
    pub output: PathBuf,
    /// Where packages and indexes are kept between builds.
    pub cache: PathBuf,
    /// Debian release by code name, e.g. `bookworm`.
    pub release: String,
    /// Debian mirror; `None`: that of this machine's apt if it is Debian, else `http://deb.debian.org/debian`.
    pub mirror: Option<String>,
}

impl Options {
    /// `output` from Debian bookworm, packages kept under `cache`.
    pub fn new(output: impl Into<PathBuf>, cache: impl Into<PathBuf>) -> Self {
        Options { output: output.into(), cache: cache.into(), release: "bookworm".into(), mirror: None }
    }
}

/// What was built.
#[derive(Debug, Clone)]
pub struct Report {
    /// The image.
    pub output: PathBuf,
    /// Length of the file in bytes.
    pub size: u64,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// SHA-512 of the file, lower-case hex.
    pub sha512: String,
    /// Kernel release, e.g. `6.1.0-56-cloud-amd64`.
    pub kernel: String,
    /// Packages used, as `name_version_arch.deb`.
    pub packages: Vec<String>,
}

/// Counts steps and tells the caller.
struct Steps<'a> {
    done: u32,
    total: u32,
    tell: &'a (dyn Fn(&Progress) + Sync),
}

impl<'a> Steps<'a> {
    fn new(total: u32, tell: &'a (dyn Fn(&Progress) + Sync)) -> Self {
        Steps { done: 0, total, tell }
    }

    fn next(&mut self, step: &str) {
        tracing::debug!(step, "image build");
        (self.tell)(&Progress { step: step.to_owned(), done: self.done, total: self.total });
        self.done = (self.done + 1).min(self.total);
    }
}
