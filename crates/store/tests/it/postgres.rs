//! A PostgreSQL server of the test's own: shared by the tests of this process, on a unix socket, gone with the process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs SQL as an administrator would.
pub fn execute(url: &str, sql: &str) {
    let done = Command::new(tool("psql")).args([url, "-qc", sql]).stdout(Stdio::null()).status().unwrap();
    assert!(done.success(), "{sql}");
}

/// One database of the shared cluster, or of the server named by `ALLOD_TEST_POSTGRES`.
pub struct Server {
    cluster: Option<Arc<Cluster>>,
    url: String,
}

struct Cluster {
    dir: tempfile::TempDir,
    child: Mutex<std::process::Child>,
}

impl Server {
    pub fn start() -> Self {
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let (cluster, base) = match std::env::var("ALLOD_TEST_POSTGRES") {
            Ok(url) => (None, url),
            Err(_) => {
                let cluster = Cluster::shared();
                let host = cluster.dir.path().display().to_string().replace('/', "%2F");
                (Some(cluster), format!("postgresql://postgres@{host}"))
            }
        };
        let made = Command::new(tool("psql"))
            .args([&format!("{base}/postgres"), "-qc", &format!("CREATE DATABASE {name}")])
            .status()
            .unwrap();
        assert!(made.success(), "cannot make a database");
        Server { cluster, url: format!("{base}/{name}") }
    }

    pub fn url(&self) -> String {
        assert!(self.cluster.is_some() || std::env::var("ALLOD_TEST_POSTGRES").is_ok());
        self.url.clone()
    }
}

impl Server {
    /// Stops the server as an operator would, and starts it again.
    pub fn restart(&mut self) {
        let cluster = self.cluster.as_ref().expect("a server of the test's own");
        let mut child = cluster.child.lock().unwrap();
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        child.wait().unwrap();
        *child = Cluster::spawn(cluster.dir.path(), &[]);
        drop(child);
        cluster.ready();
    }

    /// A server that is reached by TCP and TLS, with a certificate for `name`; answers also the CA's file and the port.
    pub fn with_tls(name: &str) -> (Self, PathBuf, u16) {
        let cluster = Cluster::prepare();
        let dir = cluster.path().to_owned();
        let file = |name: &str| dir.join(name).display().to_string();
        let openssl = |args: &[&str]| {
            let done = unprivileged(Path::new("openssl")).args(args).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        };
        let (ca, ca_key, key, request, certificate) =
            (file("ca.crt"), file("ca.key"), file("server.key"), file("server.csr"), file("server.crt"));
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        openssl(
            &[&["req", "-x509", "-subj", "/CN=ca", "-keyout", &ca_key, "-out", &ca], &new_key[..]].concat(),
        );
        openssl(&[&["req", "-subj", "/CN=pg", "-keyout", &key, "-out", &request], &new_key[..]].concat());
        std::fs::write(dir.join("san"), format!("subjectAltName=DNS:{name}\n")).unwrap();
        let san = file("san");
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-extfile",
            &san,
            "-out",
            &certificate,
        ]);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = [
            "ssl=on".to_owned(),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("ssl_cert_file={certificate}"),
            format!("ssl_key_file={key}"),
        ];
        let settings: Vec<&str> = settings.iter().flat_map(|s| ["-c", s]).collect();
        let child = Mutex::new(Cluster::spawn(&dir, &settings));
        let cluster = Arc::new(Cluster { dir: cluster, child });
        let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let up =
            || Command::new(tool("psql")).args([&url, "-qc", "SELECT 1"]).output().unwrap().status.success();
        while !up() {
            assert!(std::time::Instant::now() < deadline, "PostgreSQL did not start");
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
        (Server { cluster: Some(cluster), url }, ca.into(), port)
    }
}

impl Cluster {
    fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap();
        if let Some(cluster) = shared.upgrade() {
            return cluster;
        }
        let cluster = Arc::new(Cluster::start());
        *shared = Arc::downgrade(&cluster);
        cluster
    }

    fn start() -> Self {
        let dir = Self::prepare();
        let child = Mutex::new(Self::spawn(dir.path(), &[]));
        let cluster = Cluster { dir, child };
        cluster.ready();
        cluster
    }

    fn prepare() -> tempfile::TempDir {
        let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        if is_root() {
            // PostgreSQL refuses to run as root.
            assert!(
                Command::new("chown")
                    .args(["nobody", &dir.path().display().to_string()])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let data = dir.path().join("data");
        let mut init = unprivileged(&tool("initdb"));
        init.args(["-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale=C", "-D"]).arg(&data);
        let output = init.output().unwrap();
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        dir
    }

    fn spawn(dir: &Path, more: &[&str]) -> std::process::Child {
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        unprivileged(&tool("postgres"))
            .arg("-D")
            .arg(dir.join("data"))
            .arg("-k")
            .arg(dir)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "max_connections=300",
                "-c",
                "shared_buffers=32MB",
            ])
            .args(more)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn ready(&self) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !self.answers() {
            assert!(std::time::Instant::now() < deadline, "PostgreSQL did not start");
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    }

    fn answers(&self) -> bool {
        let ask = Command::new(tool("pg_isready")).arg("-q").arg("-h").arg(self.dir.path()).status();
        ask.is_ok_and(|s| s.success())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        // SIGQUIT: immediate shutdown, children included.
        let _ = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
        let _ = child.wait();
    }
}

fn is_root() -> bool {
    String::from_utf8_lossy(&Command::new("id").arg("-u").output().unwrap().stdout).trim() == "0"
}

fn unprivileged(tool: &Path) -> Command {
    if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(tool);
        command
    } else {
        Command::new(tool)
    }
}

fn tool(name: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path().join("bin").join(name))
        .filter(|p| p.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(name))
}
