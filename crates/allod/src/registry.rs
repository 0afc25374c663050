//! `allod registry`: the compliance registry as a process of its own, with its accounts, its key and its TLS.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use attest::SigningKey;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::map_request;
use base::{Clock, Entropy, SystemClock};
use certify::rules::{Kind, Scope};
use clap::{Args, Subcommand};
use parking_lot::RwLock;
use registry::Registry;
use registry::accounts::{Accounts, is_name, new_password};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::backup::{self, Backup, Of, Output};
use crate::files::{only, write_secret};
use crate::moving::{self, Dump};
use crate::pki::Pki;
use crate::seal;
use crate::tls::Tls;

/// What a registry can be told to do.
#[derive(Subcommand)]
pub enum Command {
    /// Take reports and show how clouds stand.
    Serve(Box<Serve>),
    /// Add an account to a bootstrap file: makes a password, keeps only its hash there.
    Account(Account),
    /// Write database, keys, CA and accounts into a file, while it serves or not.
    Backup {
        #[command(flatten)]
        place: Place,
        /// File to make (mode 0600).
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        seal: seal::Seal,
    },
    /// Make a registry from a backup, in an empty directory and an empty database.
    Restore {
        #[command(flatten)]
        place: Place,
        /// The backup.
        #[arg(long, value_name = "FILE")]
        input: PathBuf,
        #[command(flatten)]
        key: seal::Key,
    },
}

/// Where a registry keeps what it has.
#[derive(Args)]
pub struct Place {
    /// Directory of database, key and certificates.
    #[arg(long, value_name = "DIR", default_value = "./allod-registry", env = "ALLOD_REGISTRY")]
    state: PathBuf,
    /// Database [default: SQLite in the directory]: `postgresql://USER@HOST/NAME?passwordfile=FILE`.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
}

/// Files of the directory that stand in a backup.
const FILES: [&str; 4] = [ISSUER, BOOTSTRAP, "pki/ca.crt", "pki/ca.key"];
/// Key of certificates.
const ISSUER: &str = "issuer.key";
/// Accounts.
const BOOTSTRAP: &str = "bootstrap.yaml";

/// How a registry is served.
#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    place: Place,
    /// Accounts, as the compliance monitor has them; read again on SIGHUP [default: bootstrap.yaml in the directory].
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,
    /// Address and port.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where others reach it: stands in pages and certificates [default: the address].
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// More host names and addresses for the certificate that is made here.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    names: Vec<String>,
    /// Rules of a scope, in place of those built in of the same uuid, or one more scope (YAML).
    #[arg(long, value_name = "FILE")]
    rules: Vec<PathBuf>,
    /// Key that certificates are signed with (Ed25519: PKCS#8 in PEM, or OpenSSH's) [default: issuer.key in the directory].
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Certificate chain to show, of a public CA; read again on SIGHUP [default: one of a CA made here].
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// HTTP without TLS, on a loopback address, behind a proxy that has it.
    #[arg(long, conflicts_with_all = ["tls_certificate", "names"])]
    plain_http: bool,
}

/// An account to add.
#[derive(Args)]
pub struct Account {
    /// Its name, and that of the environment that it reports.
    name: String,
    /// The bootstrap file; made where there is none.
    #[arg(long, value_name = "FILE")]
    bootstrap: PathBuf,
    /// Where its password is written (mode 0600), for whoever reports.
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// Public key that its reports are signed with (a `.pub` file).
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// Roles: read_any, append_any, admin, approve.
    #[arg(long, value_name = "ROLES", value_delimiter = ',')]
    roles: Vec<String>,
    /// Accounts that may report for it.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    delegates: Vec<String>,
    /// Group it is shown in.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

/// Does it.
pub async fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(serve) => serve.run().await,
        Command::Account(account) => account.add(),
        Command::Backup { place, output, seal } => place.backup(&output, &seal).await,
        Command::Restore { place, input, key } => place.restore(&Backup { path: &input, key: &key }).await,
    }
}

impl Place {
    fn database(&self) -> String {
        let own = || format!("sqlite://{}", self.state.join("registry.db").display());
        self.database.clone().unwrap_or_else(own)
    }

    fn dump(&self) -> Dump {
        Dump(self.state.join(format!("dump-{}", std::process::id())))
    }

    async fn backup(&self, output: &Path, seal: &seal::Seal) -> Result<()> {
        let output = Output::new(output, seal)?;
        let store = moving::source(&self.database(), registry::model::SCHEMAS).await?;
        let dump = self.dump();
        let content = store.dump(registry::model::SCHEMAS, &dump.0).await?;
        let (there, missing): (Vec<&str>, _) = FILES.iter().partition(|f| self.state.join(f).exists());
        let files: Vec<_> = there.iter().map(|f| (self.state.join(f), (*f).to_owned())).collect();
        output.write(Of::Registry, false, &files, &dump, |_| {})?;
        moving::print(&content);
        let lacks = |file: &&str| [ISSUER, BOOTSTRAP].contains(file);
        for file in missing.into_iter().filter(lacks) {
            eprintln!("allod: {} is not there, and not in the backup", self.state.join(file).display());
        }
        Ok(())
    }

    async fn restore(&self, input: &Backup<'_>) -> Result<()> {
        backup::verify(input, Of::Registry)?;
        std::fs::create_dir_all(&self.state).with_context(|| self.state.display().to_string())?;
        let _only = only(&self.state.join("lock"), "registry")?;
        for taken in FILES.iter().chain(&["registry.db"]).map(|f| self.state.join(f)) {
            if taken.exists() {
                bail!("{} is there already: a backup is restored into an empty directory", taken.display());
            }
        }
        let content = backup::load(input, self.dump(), &self.database(), registry::model::SCHEMAS).await?;
        backup::unpack_files(input, |path| FILES.contains(&path).then(|| self.state.join(path)))?;
        moving::print(&content);
        Ok(())
    }
}

impl Account {
    /// Appends to the file; what comes out must be sound as a whole.
    fn add(self) -> Result<()> {
        if !is_name(&self.name) {
            bail!("{:?}: 1 to 128 letters, digits, '.', '_' and '-'", self.name);
        }
        let mut text = match std::fs::read_to_string(&self.bootstrap) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "accounts:\n".to_owned(),
            Err(error) => return Err(error).with_context(|| self.bootstrap.display().to_string()),
        };
        let (password, hash) = new_password(&Entropy::system())?;
        let quoted = |items: &[String]| serde_json::to_string(items);
        let mut entry = format!("- subject: {}\n  api_keys:\n  - \"{hash}\"\n", self.name);
        if let Some(file) = &self.public_key {
            let line = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let mut words = line.split_whitespace();
            let (Some(kind), Some(key)) = (words.next(), words.next()) else {
                bail!("{}: not a public key of SSH", file.display());
            };
            entry.push_str(&format!(
                "  keys:\n  - public_key: \"{key}\"\n    public_key_type: \"{kind}\"\n    public_key_name: \"primary\"\n"
            ));
        }
        for (name, items) in [("roles", &self.roles), ("delegates", &self.delegates)] {
            if !items.is_empty() {
                entry.push_str(&format!("  {name}: {}\n", quoted(items)?));
            }
        }
        if let Some(group) = &self.group {
            entry.push_str(&format!("  group: {}\n", serde_json::to_string(group)?));
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&entry);
        Accounts::parse(&text).with_context(|| format!("{} with {}", self.bootstrap.display(), self.name))?;
        write_secret(&self.password_file, password.as_bytes())?;
        write_secret(&self.bootstrap, text.as_bytes())?;
        println!(
            "{} is in {}; its password is in {}",
            self.name,
            self.bootstrap.display(),
            self.password_file.display()
        );
        Ok(())
    }
}

/// The certificate that is shown, as it was last read.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

/// Tells the registry who asks: the other end of the connection.
async fn direct(mut request: Request) -> Request {
    if let Some(api::Peer(address)) = request.extensions().get().copied() {
        request.extensions_mut().insert(registry::api::Client(address));
    }
    request
}

/// The same on a loopback address: whom the proxy adds at the end of `X-Forwarded-For`. Without a proxy, the other end.
async fn behind_proxy(mut request: Request) -> Request {
    let told = || request.headers().get_all("x-forwarded-for").iter().next_back()?.to_str().ok();
    let forwarded = || told()?.rsplit(',').next()?.trim().parse().ok();
    let peer = || request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    if let Some(address) = forwarded().or_else(peer) {
        request.extensions_mut().insert(registry::api::Client(address));
    }
    request
}

impl Serve {
    fn bootstrap(&self) -> PathBuf {
        self.bootstrap.clone().unwrap_or_else(|| self.place.state.join(BOOTSTRAP))
    }

    fn accounts(&self) -> Result<Accounts> {
        let path = self.bootstrap();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} (make it with `allod registry account`)", path.display()))?;
        Accounts::parse(&text).with_context(|| path.display().to_string())
    }

    /// Scopes built in, and those of files.
    fn scopes(&self) -> Result<Vec<Scope>> {
        let mut scopes = vec![Scope::builtin(Kind::Iaas)?, Scope::builtin(Kind::Kaas)?];
        for file in &self.rules {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let scope = Scope::parse(&text).with_context(|| file.display().to_string())?;
            scopes.retain(|s| s.uuid != scope.uuid);
            scopes.push(scope);
        }
        Ok(scopes)
    }

    fn key(&self) -> Result<SigningKey> {
        let path = self.key.clone().unwrap_or_else(|| self.place.state.join(ISSUER));
        if self.key.is_none() && !path.exists() {
            write_secret(&path, SigningKey::generate(&Entropy::system()).as_bytes())?;
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        SigningKey::read(&text).with_context(|| path.display().to_string())
    }

    async fn run(self) -> Result<()> {
        if self.plain_http && !self.listen.ip().is_loopback() {
            bail!("--plain-http: {} is no loopback address", self.listen.ip());
        }
        std::fs::create_dir_all(&self.place.state).with_context(|| self.place.state.display().to_string())?;
        let _only = only(&self.place.state.join("lock"), "registry")?;
        let listener = TcpListener::bind(self.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {}", self.listen))?;
        let address = listener.local_addr()?;
        let scheme = if self.plain_http { "http" } else { "https" };
        let url = self.url.clone().unwrap_or_else(|| format!("{scheme}://{address}/"));
        let database = self.place.database();
        let (clock, entropy): (Arc<dyn Clock>, _) = (Arc::new(SystemClock), Entropy::system());
        let store = Store::open(&database, clock, entropy.clone(), registry::model::SCHEMAS).await?;
        let (key, scopes, accounts) = (self.key()?, self.scopes()?, self.accounts()?);
        let registry = Registry::new(store, entropy, key, scopes, accounts, &url)?;
        let router = registry::api::router(registry.clone());
        let (stop, mut stopped) = watch::channel(false);
        let (shown, serving) = if self.plain_http {
            let until = async move { crate::command::stopped(&mut stopped).await };
            let router = router.layer(map_request(behind_proxy));
            let router = router.into_make_service_with_connect_info::<SocketAddr>();
            let serving = async move {
                axum::serve(listener, router).with_graceful_shutdown(until).await.map_err(Into::into)
            };
            (None, tokio::spawn(serving))
        } else {
            let (tls, shown) = self.tls(address.ip())?;
            let router = router.layer(map_request(direct));
            (shown, tokio::spawn(crate::listener::serve(listener, tls, router, stopped)))
        };
        write_secret(&self.place.state.join("listening"), format!("{scheme}://{address}").as_bytes())?;
        tracing::info!(url, address = %address, issuer = registry.key().did(), "serving");
        self.until_told(&registry, shown.as_deref()).await?;
        stop.send_replace(true);
        let _ = std::fs::remove_file(self.place.state.join("listening"));
        serving.await?
    }

    /// Waits for the end, and reads again what may have changed when told to.
    async fn until_told(&self, registry: &Registry, shown: Option<&Shown>) -> Result<()> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut again = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = again.recv() => {}
            }
            match self.accounts() {
                Ok(accounts) => {
                    registry.replace(accounts);
                    tracing::info!("accounts read again");
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "the accounts stay as they were"),
            }
            let Some(shown) = shown else { continue };
            match self.certified() {
                Ok(certified) => *shown.0.write() = Arc::new(certified),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the certificate stays as it was")
                }
            }
        }
    }

    /// The chain and the key of files.
    fn certified(&self) -> Result<CertifiedKey> {
        let (Some(chain), Some(key)) = (&self.tls_certificate, &self.tls_key) else { bail!("no files") };
        let text = std::fs::read(chain).with_context(|| chain.display().to_string())?;
        let certificates: Vec<_> = rustls_pemfile::certs(&mut &text[..]).collect::<Result<_, _>>()?;
        if certificates.is_empty() {
            bail!("{}: no certificate", chain.display());
        }
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(certificates, crate::pki::key(key)?, &provider)
            .with_context(|| format!("{} and {}", chain.display(), key.display()))
    }

    fn tls(&self, address: IpAddr) -> Result<(Tls, Option<Arc<Shown>>)> {
        if self.tls_certificate.is_some() {
            let shown = Arc::new(Shown(RwLock::new(Arc::new(self.certified()?))));
            let mut config =
                rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(shown.clone());
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            return Ok((Tls::plain(config), Some(shown)));
        }
        let pki = Pki::open(&self.place.state.join("pki"), SystemClock.now())?;
        let mut names = self.names.clone();
        names.push("localhost".into());
        Ok((pki.listener(address, &names, None)?, None))
    }
}
