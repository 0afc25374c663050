//! `allod registry` as its operator runs it: accounts, TLS, uploads by our client, reload, a second one on PostgreSQL.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use base::{Clock, SystemClock};
use serde_json::Value;

const REPORT: &str = include_str!("../../../registry/tests/data/upstream-report.yaml");
const IAAS: &str = "50393e6f-2ae1-4c5c-a62c-3b75f2abef3f";

fn allod(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_allod")).args(arguments).current_dir(dir).output().unwrap()
}

fn fine(dir: &Path, arguments: &[&str]) -> String {
    let output = allod(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A registry; ended when it is dropped.
struct Served {
    child: Child,
    state: PathBuf,
}

impl Served {
    fn start(dir: &Path, state: &str, more: &[&str]) -> Self {
        let log = std::fs::File::create(dir.join(format!("{state}.log"))).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_allod"))
            .args(["registry", "serve", "--state", state, "--bootstrap", "accounts.yaml"])
            .args(["--listen", "127.0.0.1:0"])
            .args(more)
            .current_dir(dir)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Served { child, state: dir.join(state) }
    }

    async fn url(&mut self) -> String {
        let file = self.state.join("listening");
        let (state, child) = (self.state.clone(), &mut self.child);
        until("the registry listens", async || {
            assert!(child.try_wait().unwrap().is_none(), "ended: {}", log(&state));
            std::fs::read_to_string(&file).ok()
        })
        .await
    }

    fn client(&self) -> reqwest::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        crate::client(&std::fs::read_to_string(self.state.join("pki/ca.crt")).unwrap())
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(state: &Path) -> String {
    std::fs::read_to_string(state.with_extension("log")).unwrap_or_default()
}

async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn keygen(dir: &Path, arguments: &[&str]) {
    let done = Command::new("ssh-keygen").args(arguments).current_dir(dir).stderr(Stdio::null()).status();
    assert!(done.unwrap().success(), "{arguments:?}");
}

/// A signed report of now, in upstream's format.
fn report(dir: &Path, name: &str, run: &str) {
    let now = SystemClock.now().iso_naive().replace('T', " ");
    let text = REPORT.replace("2026-11-21 05:12:43.517284", &now);
    let text = text.replace("5b0f1c6e-8a41-4a3e-9d0b-2f5f0f8f3a11", run);
    std::fs::write(dir.join(name), text).unwrap();
    keygen(dir, &["-q", "-Y", "sign", "-n", "report", "-f", "key", name]);
}

fn accounts(dir: &Path) {
    keygen(dir, &["-q", "-t", "ed25519", "-N", "", "-f", "key"]);
    let of = |name: &str, more: &[&str]| {
        let secret = format!("{name}.secret");
        let add = ["registry", "account", name, "--bootstrap", "accounts.yaml", "--password-file", &secret];
        fine(dir, &[&add[..], more].concat())
    };
    let told = of("cloud-a", &["--public-key", "key.pub"]);
    of("boss", &["--roles", "read_any,admin"]);
    let secret = std::fs::read_to_string(dir.join("cloud-a.secret")).unwrap();
    let file = std::fs::read_to_string(dir.join("accounts.yaml")).unwrap();
    assert!(!file.contains(&secret) && !told.contains(&secret));
    for name in ["cloud-a.secret", "accounts.yaml"] {
        assert_eq!(dir.join(name).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let again =
        allod(dir, &["registry", "account", "boss", "--bootstrap", "accounts.yaml", "--password-file", "x"]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("is there twice"));
    assert_eq!(std::fs::read_to_string(dir.join("accounts.yaml")).unwrap(), file, "nothing is written");
}

fn upload(dir: &Path, url: &str, state: &str, name: &str) -> Output {
    let ca = format!("{state}/pki/ca.crt");
    let arguments = ["certify", "upload", "--url", url, "--cacert", &ca, "--account", "cloud-a"];
    allod(dir, &[&arguments[..], &["--password-file", "cloud-a.secret", name]].concat())
}

async fn status(client: &reqwest::Client, url: &str) -> Value {
    let status: Value = client.get(format!("{url}/status")).send().await.unwrap().json().await.unwrap();
    status["cloud-a"][IAAS]["results"]["scs-0100-syntax-check"]["report"].clone()
}

#[tokio::test]
async fn a_registry_takes_uploads_reads_its_accounts_again_and_keeps_what_it_took() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    accounts(dir);
    let mut served = Served::start(dir, "registry", &[]);
    let url = served.url().await;
    assert!(url.starts_with("https://"), "{url}");
    report(dir, "report.yaml", "one");
    let sent = upload(dir, &url, "registry", "report.yaml");
    assert!(sent.status.success(), "{}{}", String::from_utf8_lossy(&sent.stderr), log(&served.state));
    let again = upload(dir, &url, "registry", "report.yaml");
    assert!(String::from_utf8_lossy(&again.stderr).contains("409"));
    let client = served.client();
    assert_eq!(status(&client, &url).await, "one");
    let second = allod(
        dir,
        &[
            "registry",
            "serve",
            "--state",
            "registry",
            "--bootstrap",
            "accounts.yaml",
            "--listen",
            "127.0.0.1:0",
        ],
    );
    assert!(String::from_utf8_lossy(&second.stderr).contains("another registry runs"));

    // A broken file changes nothing; a good one does.
    let file = std::fs::read_to_string(dir.join("accounts.yaml")).unwrap();
    std::fs::write(dir.join("accounts.yaml"), file.replace("read_any", "read_all")).unwrap();
    served.signal("-HUP");
    until("the fault is told", async || log(&served.state).contains("no role read_all").then_some(())).await;
    let secret = std::fs::read_to_string(dir.join("boss.secret")).unwrap();
    let boss = async || {
        let request = client.get(format!("{url}/reports?subject=cloud-a")).basic_auth("boss", Some(&secret));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(boss().await, 200);
    std::fs::write(dir.join("accounts.yaml"), file.replace("\"read_any\",", "")).unwrap();
    served.signal("-HUP");
    until("the role is gone", async || (boss().await == 401).then_some(())).await;

    served.signal("-TERM");
    assert!(served.child.wait().unwrap().success(), "{}", log(&served.state));
    assert!(!served.state.join("listening").exists());
    let text = log(&served.state);
    assert!(!text.contains(&secret) && !text.contains("$argon2"), "{text}");
    let issuer = std::fs::read_to_string(served.state.join("issuer.key")).unwrap();
    drop(served);
    let mut served = Served::start(dir, "registry", &[]);
    let url = served.url().await;
    assert_eq!(status(&served.client(), &url).await, "one");
    assert_eq!(std::fs::read_to_string(served.state.join("issuer.key")).unwrap(), issuer);
}

#[tokio::test]
async fn two_registries_on_one_postgresql_show_the_same() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    accounts(dir);
    let server = crate::postgres::Server::start();
    let database = server.url();
    let mut first = Served::start(dir, "first", &["--database", &database]);
    let there = first.url().await;
    let mut second = Served::start(dir, "second", &["--database", &database, "--key", "first/issuer.key"]);
    let here = second.url().await;
    report(dir, "report.yaml", "one");
    assert!(upload(dir, &there, "first", "report.yaml").status.success(), "{}", log(&first.state));
    report(dir, "later.yaml", "two");
    assert!(upload(dir, &here, "second", "later.yaml").status.success(), "{}", log(&second.state));
    assert!(String::from_utf8_lossy(&upload(dir, &there, "first", "later.yaml").stderr).contains("409"));
    let (one, other) = (status(&first.client(), &there).await, status(&second.client(), &here).await);
    assert_eq!((one, other), ("two".into(), "two".into()));
    let issuer = async |client: reqwest::Client, url: &str| {
        client.get(format!("{url}/issuer")).send().await.unwrap().text().await.unwrap()
    };
    assert_eq!(issuer(first.client(), &there).await, issuer(second.client(), &here).await);
    assert!(!first.state.join("registry.db").exists());
}

#[tokio::test]
async fn a_backup_is_the_registry_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    accounts(dir);
    let mut served = Served::start(dir, "registry", &[]);
    let url = served.url().await;
    report(dir, "report.yaml", "one");
    assert!(upload(dir, &url, "registry", "report.yaml").status.success(), "{}", log(&served.state));
    std::fs::write(dir.join("word"), "a passphrase that is long enough\n").unwrap();
    let backup = ["registry", "backup", "--state", "registry", "--output", "one.backup"];
    let told = allod(dir, &[&backup[..], &["--passphrase-file", "word"]].concat());
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert!(String::from_utf8_lossy(&told.stderr).contains("bootstrap.yaml is not there"), "it is elsewhere");
    assert_eq!(dir.join("one.backup").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let refused = |arguments: &[&str], why: &str| {
        let output = allod(dir, arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(why), "{arguments:?}: {text}");
    };
    refused(&backup, "");
    refused(&[&backup[..], &["--unencrypted"]].concat(), "is there already");
    refused(
        &["restore", "--state", "cloud", "--input", "one.backup", "--passphrase-file", "word"],
        "backup of a registry",
    );
    let restore = |state| {
        let arguments = ["registry", "restore", "--state", state, "--input", "one.backup"];
        [&arguments[..], &["--passphrase-file", "word"]].concat()
    };
    // What comes after the backup is not in it.
    report(dir, "later.yaml", "two");
    assert!(upload(dir, &url, "registry", "later.yaml").status.success());
    refused(&restore("registry"), "another registry runs");
    drop(served);
    refused(&restore("registry"), "is there already");
    fine(dir, &restore("second"));
    for name in ["issuer.key", "pki/ca.crt", "pki/ca.key"] {
        let read = |state: &str| std::fs::read(dir.join(state).join(name)).unwrap();
        assert_eq!(read("registry"), read("second"), "{name}");
    }
    let mut served = Served::start(dir, "second", &[]);
    let url = served.url().await;
    assert_eq!(status(&served.client(), &url).await, "one");
    assert!(upload(dir, &url, "second", "later.yaml").status.success(), "{}", log(&served.state));
    assert_eq!(status(&served.client(), &url).await, "two");
}
