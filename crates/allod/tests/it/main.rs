//! The binary as an operator runs it, on simulated hosts.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod api;
mod certify;
mod clients;
mod load;
mod moving;
// The same server as the store's tests start.
#[path = "../../../store/tests/it/postgres.rs"]
#[allow(dead_code, clippy::expect_used, reason = "not every crate needs all of it")]
mod postgres;
mod registry;
mod replicas;
mod telemetry;
mod upgrade;
mod walk;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A cloud on simulated hosts; gone with its directory when it is dropped.
pub struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// `config` is added to settings that make a test fast.
    pub fn up(config: &str) -> Self {
        let world = World { dir: tempfile::tempdir().unwrap() };
        let file = world.dir.path().join("allod.toml");
        std::fs::write(&file, format!("bcrypt_rounds = 4\n{config}")).unwrap();
        let file = file.to_str().unwrap().to_owned();
        world.allod(&["up", "--listen", "127.0.0.1:0", "--sim-hosts", "2", "--detach", "--config", &file]);
        world
    }

    /// A directory without a cloud.
    pub fn empty() -> Self {
        World { dir: tempfile::tempdir().unwrap() }
    }

    /// Logs in.
    pub async fn login(&self, user: &str) -> api::Api {
        let secrets: serde_json::Value = serde_json::from_str(&self.read("secrets.json")).unwrap();
        let http = client(&self.read("pki/ca.crt"));
        api::Api::login(http, &self.url(), user, secrets[user].as_str().unwrap()).await.unwrap()
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A file of the state directory.
    pub fn read(&self, path: impl AsRef<Path>) -> String {
        std::fs::read_to_string(self.state().join(path)).unwrap()
    }

    /// Where the API is.
    pub fn url(&self) -> String {
        self.read("ready").trim().to_owned()
    }

    /// Runs the binary on this cloud; it must succeed.
    pub fn allod(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Runs the binary on this cloud.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_allod"))
            .args(arguments)
            .env("ALLOD_STATE", self.state())
            .output()
            .unwrap()
    }

    /// An HTTP client that trusts this cloud, and speaks for a host if it shall.
    pub fn client(&self, host: bool) -> reqwest::Client {
        self.client_with(host.then(|| {
            let name = format!("pki/host-{}", self.read("host_id").trim());
            let key = self.read(format!("{name}.key"));
            let key = rustls_pemfile::private_key(&mut key.as_bytes()).unwrap().unwrap();
            (certificates(&self.read(format!("{name}.crt"))), key)
        }))
    }

    /// An HTTP client that trusts this cloud, with this certificate.
    pub fn client_with(&self, identity: Option<Identity>) -> reqwest::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificates(&self.read("ca.crt")).remove(0)).unwrap();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots);
        let tls = match identity {
            Some((chain, key)) => tls.with_client_auth_cert(chain, key).unwrap(),
            None => tls.with_no_client_auth(),
        };
        reqwest::Client::builder().use_preconfigured_tls(tls).build().unwrap()
    }
}

/// A client's certificate, with what comes with it, and its key.
pub type Identity =
    (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>);

fn certificates(pem: &str) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    rustls_pemfile::certs(&mut pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

/// An HTTP client that trusts one CA.
pub fn client(ca: &str) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pemfile::certs(&mut ca.as_bytes()).next().unwrap().unwrap()).unwrap();
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    reqwest::Client::builder().use_preconfigured_tls(tls).build().unwrap()
}

impl Drop for World {
    fn drop(&mut self) {
        if self.state().exists() {
            let output = self.run(&["down", "--purge"]);
            if !std::thread::panicking() {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                assert!(!self.state().exists(), "purged");
            }
        }
    }
}
