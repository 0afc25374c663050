//! A cloud's network on this machine, inside a namespace of its own, gone at the end.

use std::path::Path;
use std::time::Duration;

use ovn::engines::{Config, External};
use ovn::{Engines, engines};
use tempfile::TempDir;

/// An instance of its own.
pub struct Bed {
    pub dir: TempDir,
    pub config: Config,
}

impl Bed {
    pub fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("allod-ovn-").tempdir().unwrap();
        let external = External {
            physical_network: "public".into(),
            cidr: "172.24.4.0/24".parse().unwrap(),
            gateway: "172.24.4.1".parse().unwrap(),
        };
        let config = Config {
            state_dir: dir.path().to_owned(),
            instance: String::new(),
            hostname: "host1".into(),
            encap_ip: "127.0.0.1".parse().unwrap(),
            external: Some(external),
            netns: Some(format!("at-{name}-{}", std::process::id())),
            datapath: None,
        };
        Bed { dir, config }
    }

    pub fn netns(&self) -> &str {
        self.config.netns.as_deref().unwrap()
    }

    pub async fn start(&self) -> Engines {
        Engines::start(self.config.clone()).await.unwrap_or_else(|e| panic!("{e:?}"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let (dir, netns) = (self.dir.path().to_owned(), self.config.netns.clone());
        let purge = async move { engines::purge(&dir, netns.as_deref()).await };
        let result = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(purge)
        });
        if let Ok(Err(e)) = result.join() {
            eprintln!("purge: {e:?}");
        }
    }
}

/// Waits until `f` answers something, at most `limit`.
pub async fn until<T>(what: &str, limit: Duration, mut f: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some(found) = f().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not in {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// PSS of a process in KiB.
pub fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}

/// Runs a program in a namespace; its standard output if it succeeds.
pub async fn exec(netns: &str, args: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new("ip");
    command.args(["netns", "exec", netns]).args(args).kill_on_drop(true);
    let output = command.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr) + &text(&output.stdout))
    }
}

/// Whether the directory is on a socket path that works.
pub fn exists(path: &Path) -> bool {
    path.exists()
}
