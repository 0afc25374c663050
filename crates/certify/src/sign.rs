//! Signatures as the compliance monitor verifies them: `ssh-keygen -Y`, namespace `report`.
//!
//! The program is called instead of a library: then keys in agents, on FIDO tokens and behind passphrases work, private keys
//! never enter this process, and what signs is what verifies.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

const NAMESPACE: &str = "report";

/// Signs a file; the signature's file, beside it.
pub(crate) fn sign(key: &Path, file: &Path) -> Result<PathBuf> {
    let signature = PathBuf::from(format!("{}.sig", file.display()));
    // ssh-keygen asks before it overwrites.
    let _ = std::fs::remove_file(&signature);
    let output = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"])
        .args([key, file])
        .stdin(Stdio::inherit())
        .output()
        .context("ssh-keygen (package openssh-client) is needed to sign")?;
    if !output.status.success() {
        bail!("ssh-keygen could not sign: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(signature)
}

/// What is uploaded: signature, `&`, report.
pub(crate) fn envelope(report: &Path) -> Result<Vec<u8>> {
    let path = PathBuf::from(format!("{}.sig", report.display()));
    let mut body =
        std::fs::read(&path).with_context(|| format!("{} (sign with --sign KEY)", path.display()))?;
    if !body.ends_with(b"-----END SSH SIGNATURE-----\n") {
        bail!("{} is no SSH signature", path.display());
    }
    body.push(b'&');
    body.extend(std::fs::read(report).with_context(|| format!("{}", report.display()))?);
    Ok(body)
}
