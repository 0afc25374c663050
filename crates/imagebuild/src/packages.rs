//! Signed Debian packages through apt, with indexes and archives of our own: the machine's package state is neither read
//! nor changed, so the same release comes out on Debian and on Ubuntu.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::{Error, Result};

use crate::tool::{self, io};

/// Indexes older than this are read anew.
const FRESH: Duration = Duration::from_secs(24 * 3600);
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// A private apt: its own sources, indexes and archive.
///
/// Holds the cache's lock as long as it lives: apt itself does not wait for another apt, it fails.
pub struct Apt {
    root: PathBuf,
    mirror: String,
    sources: Vec<String>,
    _lock: File,
}

impl Apt {
    /// Prepares apt for a release under `cache`.
    ///
    /// # Errors
    /// Where the release's name is not one, or the directories cannot be made.
    pub fn open(cache: &Path, release: &str, mirror: Option<&str>) -> Result<Self> {
        if release.is_empty() || !release.chars().all(|c| c.is_ascii_lowercase()) {
            return Err(Error::bad_request("the release must be a Debian code name such as bookworm"));
        }
        let mirror = mirror.map(str::to_owned).or_else(host_mirror).unwrap_or_else(|| DEFAULT_MIRROR.into());
        if mirror.contains(char::is_whitespace) {
            return Err(Error::bad_request("the mirror must be a URL"));
        }
        if !Path::new(KEYRING).exists() {
            return Err(Error::unavailable(format!("{KEYRING} is missing; install debian-archive-keyring")));
        }
        std::fs::create_dir_all(cache).map_err(io(cache))?;
        let cache = cache.canonicalize().map_err(io(cache))?;
        let root = cache.join(format!("apt-{release}"));
        for dir in ["lists/partial", "archives/partial", "preferences.d", "trusted.d"] {
            let dir = root.join(dir);
            std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        }
        // Taken before anything is written: another build may be reading these files.
        let lock = root.join("allod.lock");
        let lock = File::create(&lock).and_then(|f| f.lock().map(|()| f)).map_err(io(&lock))?;
        let mirror = mirror.trim_end_matches('/');
        let sources: Vec<String> = [
            (mirror.to_owned(), release.to_owned()),
            (mirror.to_owned(), format!("{release}-updates")),
            (format!("{mirror}-security"), format!("{release}-security")),
        ]
        .iter()
        .map(|(mirror, suite)| format!("deb [signed-by={KEYRING}] {mirror} {suite} main"))
        .collect();
        tool::write(&root.join("sources.list"), (sources.join("\n") + "\n").as_bytes(), 0o644)?;
        tool::write(&root.join("status"), b"", 0o644)?;
        let at = root.display();
        let config = format!(
            "Dir::State \"{at}\";\nDir::State::status \"{at}/status\";\nDir::State::lists \"{at}/lists\";\n\
             Dir::Cache \"{at}\";\nDir::Cache::archives \"{at}/archives\";\n\
             Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"{at}/preferences.d\";\n\
             Dir::Etc::trustedparts \"{at}/trusted.d\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\n\
             APT::Get::List-Cleanup \"false\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
             APT::Default-Release \"\";\n"
        );
        tool::write(&root.join("apt.conf"), config.as_bytes(), 0o644)?;
        Ok(Apt { root, mirror: mirror.to_owned(), sources, _lock: lock })
    }

    /// The mirror's URL.
    pub fn mirror(&self) -> &str {
        &self.mirror
    }

    /// Lines for a `sources.list`.
    pub fn sources(&self) -> &[String] {
        &self.sources
    }

    fn apt<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Result<String> {
        let mut command = tool::command(program);
        command.env("APT_CONFIG", self.root.join("apt.conf")).args(arguments).current_dir(&self.root);
        tool::output(&mut command)
    }

    /// Reads the indexes anew if they are old.
    ///
    /// # Errors
    /// Where the mirror cannot be read; no error as long as older indexes are there.
    pub fn update(&self) -> Result<()> {
        let stamp = self.root.join("updated");
        let fresh = std::fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .is_ok_and(|t| t.elapsed().is_ok_and(|age| age < FRESH));
        if fresh {
            return Ok(());
        }
        match self.apt("apt-get", &["update", "-q", "-o", "APT::Update::Error-Mode=any"]) {
            Ok(_) => tool::write(&stamp, b"", 0o644),
            Err(error) if stamp.exists() => {
                tracing::warn!(error = %error.chain(), "using older package indexes");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What a metapackage stands for: its first dependency, e.g. `linux-image-6.1.0-56-cloud-amd64`.
    ///
    /// # Errors
    /// Where the package is unknown.
    pub fn points_to(&self, name: &str) -> Result<String> {
        let text = self.apt("apt-cache", &["show", "--no-all-versions", name])?;
        text.lines()
            .find_map(|l| l.strip_prefix("Depends: "))
            .and_then(|d| d.split([' ', ',']).next())
            .map(str::to_owned)
            .ok_or_else(|| Error::unavailable(format!("the release has no package {name}")))
    }

    /// Fetches packages with all their dependencies.
    ///
    /// # Errors
    /// Where one is unknown or cannot be fetched.
    pub fn fetch_with_dependencies(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut arguments = vec!["install", "--print-uris", "-qq", "-y", "--no-install-recommends"];
        arguments.extend_from_slice(names);
        // 'uri' file size hash
        let listed = self.apt("apt-get", &arguments)?;
        let files: Vec<PathBuf> = listed
            .lines()
            .filter_map(|l| l.split_whitespace().nth(1))
            .map(|file| self.root.join("archives").join(file))
            .collect();
        let mut arguments = vec!["install", "--download-only", "-qq", "-y", "--no-install-recommends"];
        arguments.extend_from_slice(names);
        // Files that are there already are not listed by --print-uris; the download is what says the whole set.
        self.apt("apt-get", &arguments)?;
        let mut all = self.closure(names)?;
        all.extend(files);
        all.sort();
        all.dedup();
        all.retain(|f| f.exists());
        Ok(all)
    }

    /// Archive files of packages and their dependencies, as apt would install them into nothing.
    fn closure(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut arguments = vec!["install", "--simulate", "-y", "--no-install-recommends"];
        arguments.extend_from_slice(names);
        let text = self.apt("apt-get", &arguments)?;
        // Inst name (version Origin [arch])
        Ok(text
            .lines()
            .filter_map(|l| l.strip_prefix("Inst "))
            .filter_map(|l| {
                let (name, rest) = l.split_once(" (")?;
                let version = rest.split(' ').next()?.replace(':', "%3a");
                let arch = rest.split('[').nth(1)?.split(']').next()?;
                Some(self.root.join("archives").join(format!("{name}_{version}_{arch}.deb")))
            })
            .collect())
    }

    /// Fetches one package without dependencies.
    ///
    /// # Errors
    /// Where it is unknown or cannot be fetched.
    pub fn fetch(&self, name: &str) -> Result<PathBuf> {
        let listed = self.apt("apt-get", &["download", "--print-uris", "-qq", name])?;
        let file = listed
            .split_whitespace()
            .nth(1)
            .ok_or_else(|| Error::unavailable(format!("the release has no package {name}")))?;
        let path = self.root.join("archives").join(file);
        if path.exists() {
            return Ok(path);
        }
        // `download` writes under its final name only what it has verified.
        let scratch = tool::Scratch::new(&self.root, "download")?;
        let mut command = tool::command("apt-get");
        command.env("APT_CONFIG", self.root.join("apt.conf")).args(["download", "-qq", name]);
        tool::output(command.current_dir(&scratch.0))?;
        let found = scratch.0.join(file);
        std::fs::rename(&found, &path).map_err(io(&found))?;
        Ok(path)
    }
}

/// Unpacks archives over one another into `into`.
///
/// # Errors
/// Where one is broken.
pub fn unpack(archives: &[PathBuf], into: &Path) -> Result<()> {
    std::fs::create_dir_all(into).map_err(io(into))?;
    for archive in archives {
        tool::run("dpkg-deb", &[&"-x", archive, &into])?;
    }
    Ok(())
}

/// The mirror this machine uses, if it is Debian.
fn host_mirror() -> Option<String> {
    ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .find_map(|text| {
            text.lines()
                .filter(|l| l.starts_with("URIs:") || l.starts_with("deb "))
                .flat_map(str::split_whitespace)
                .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
                .map(str::to_owned)
        })
}
