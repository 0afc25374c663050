//! Hands in the guests: how commands get into them.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::engine::Failure;
use crate::record::Class;

/// A guest, and the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Whom to log in as.
    pub user: String,
    /// Its address.
    pub address: String,
    /// Address of the guest that one goes through.
    pub via: Option<String>,
    /// File of the private key.
    pub key: PathBuf,
}

/// What a command said.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// A way into guests.
pub trait Hands: Send + Sync {
    /// Runs a command. An error means that there was no way in; what the command itself came to is in its output.
    fn run<'a>(
        &'a self,
        target: &'a Target,
        command: &'a str,
        input: Option<&'a [u8]>,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Output, Failure>>;
}

/// The `ssh` of this machine: agents, proxies and ciphers are as its owner knows them.
pub struct Ssh;

impl Hands for Ssh {
    fn run<'a>(
        &'a self,
        target: &'a Target,
        command: &'a str,
        input: Option<&'a [u8]>,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Output, Failure>> {
        Box::pin(run(target, command, input, limit))
    }
}

fn options(key: &std::path::Path) -> Vec<String> {
    // Host keys of guests that are some seconds old are known to nobody; what is measured is whether they answer.
    let mut all = vec!["-F".into(), "none".into(), "-i".into(), key.display().to_string()];
    for option in [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "GlobalKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "ConnectTimeout=8",
    ] {
        all.extend(["-o".to_owned(), option.to_owned()]);
    }
    all
}

async fn run(
    target: &Target,
    command: &str,
    input: Option<&[u8]>,
    limit: Duration,
) -> Result<Output, Failure> {
    let mut ssh = Command::new("ssh");
    ssh.args(options(&target.key)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(via) = &target.via {
        let inner: Vec<String> = options(&target.key);
        ssh.arg("-o").arg(format!("ProxyCommand=ssh {} -W %h:%p {}@{via}", inner.join(" "), target.user));
    }
    ssh.arg(format!("{}@{}", target.user, target.address)).arg(command).kill_on_drop(true);
    let tool = |e: std::io::Error| Failure::new(Class::Tool, format!("ssh: {e}"));
    let mut child = ssh.spawn().map_err(tool)?;
    let running = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A guest that hangs up says so by its status.
            let _ = stdin.write_all(input.unwrap_or_default()).await;
            let _ = stdin.shutdown().await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(limit, running).await {
        Err(_) => return Err(Failure::new(Class::Timeout, format!("no end within {} s", limit.as_secs()))),
        Ok(output) => output.map_err(tool)?,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    match output.status.code() {
        // That is ssh itself: no way in.
        Some(255) | None => {
            let reason = stderr.lines().last().unwrap_or("ssh failed").to_owned();
            Err(Failure::new(Class::DataPlane, reason))
        }
        Some(status) => Ok(Output { status, stdout, stderr }),
    }
}
