//! Programs of the host, started with a clean environment; their complaints become errors.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use base::{Error, Result};

/// Moment given to everything that is made, so that two builds of the same packages are alike (2024-01-01T00:00:00Z).
pub const EPOCH: &str = "1704067200";

/// A command with nothing of the caller's environment but `PATH` and proxies.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = format!("{}:/usr/sbin:/sbin:/usr/bin:/bin", path.to_string_lossy());
    command.env_clear().env("PATH", path).env("LC_ALL", "C").env("SOURCE_DATE_EPOCH", EPOCH);
    command.env("E2FSPROGS_FAKE_TIME", EPOCH).env("DEBIAN_FRONTEND", "noninteractive");
    for name in ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs to the end and answers standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| {
        let package = package_of(&name).map(|p| format!("; install the package {p}")).unwrap_or_default();
        Error::unavailable(format!("{name} cannot be started{package}")).caused_by(e)
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = text.lines().rev().take(10).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Err(Error::unavailable(format!("{name} failed ({}): {}", output.status, tail.join("\n"))))
}

/// Runs a program with arguments.
pub fn run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> Result<()> {
    let mut command = command(program);
    for argument in arguments {
        command.arg(argument);
    }
    output(&mut command).map(drop)
}

/// Which Debian package has a program we need.
fn package_of(program: &str) -> Option<&'static str> {
    Some(match program {
        "apt-get" | "apt-cache" => "apt",
        "dpkg-deb" => "dpkg",
        "mke2fs" | "debugfs" => "e2fsprogs",
        "grub-mkimage" => "grub-common",
        "qemu-img" => "qemu-utils",
        "depmod" => "kmod",
        "xz" => "xz-utils",
        "zstd" => "zstd",
        _ => return None,
    })
}

/// An error that names the file.
pub fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |e| Error::unavailable(format!("{}: {e}", path.display()))
}

/// Writes a file, making its directories, with a mode.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io(parent))?;
    }
    std::fs::write(path, content).map_err(io(path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io(path))
}

/// A directory that goes when this goes.
pub struct Scratch(pub std::path::PathBuf);

impl Scratch {
    /// Makes `<parent>/.<name>.<pid>`, empty.
    pub fn new(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(format!(".{name}.{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).map_err(io(&path))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
