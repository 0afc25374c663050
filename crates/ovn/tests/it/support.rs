//! A cloud's network on this machine, inside a namespace of its own, gone at the end.

use std::time::Duration;

use ovn::engines::{Config, External};
use ovn::{Engines, engines};
use parking_lot::Mutex;
use tempfile::TempDir;

/// An instance of its own.
pub struct Bed {
    pub dir: TempDir,
    pub config: Config,
    netns: Mutex<Vec<String>>,
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
            underlay: None,
            southbound: engines::Southbound::Local,
            external: Some(external),
            netns: Some(format!("at-{name}-{}", std::process::id())),
            datapath: None,
        };
        Bed { dir, config, netns: Mutex::default() }
    }

    pub fn netns(&self) -> &str {
        self.config.netns.as_deref().unwrap()
    }

    /// A further namespace, gone at the end.
    pub async fn namespace(&self, name: &str) -> String {
        let name = format!("{name}-{}", self.netns());
        self.netns.lock().push(name.clone());
        let made = tokio::process::Command::new("ip").args(["netns", "add", &name]).status().await.unwrap();
        assert!(made.success());
        exec(&name, &["ip", "link", "set", "lo", "up"]).await.unwrap();
        name
    }

    /// A namespace with an `eth0` whose other end is `device` in the bed's namespace.
    pub async fn guest(&self, name: &str, device: &str, mac: &str) -> String {
        let guest = self.namespace(name).await;
        let pair = ["ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", &guest];
        exec(self.netns(), &pair).await.unwrap();
        exec(self.netns(), &["ip", "link", "set", device, "up"]).await.unwrap();
        exec(&guest, &["ip", "link", "set", "eth0", "address", mac, "up"]).await.unwrap();
        ovn::host::checksum_offload_off(Some(&guest), "eth0").await.unwrap();
        guest
    }

    pub async fn start(&self) -> Engines {
        Engines::start(self.config.clone()).await.unwrap_or_else(|e| panic!("{e:?}"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let (dir, netns) = (self.dir.path().to_owned(), self.config.netns.clone());
        let purge = async move { engines::purge(&dir, netns.as_deref()).await };
        for name in self.netns.lock().iter() {
            let _ = std::process::Command::new("ip").args(["netns", "delete", name]).status();
        }
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
