//! `allod identity import`: takes over the database of an existing Keystone.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use base::{Entropy, SystemClock};
use identity::Repository;
use identity::import::{Secrets, dump::Dump};

use crate::config::{Config, State};
use crate::files;
use crate::process::Process;

/// Where a Keystone is.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// A dump of its database: of mysqldump, `pg_dump --inserts` or `sqlite3 .dump`.
    #[arg(long, value_name = "FILE")]
    from_dump: Option<PathBuf>,
    /// Its database: `mysql://USER@HOST/NAME?passwordfile=FILE` (needs mysqldump or mariadb-dump on this machine).
    #[arg(long, value_name = "URL")]
    from: Option<String>,
}

/// What is to be done with it.
#[derive(clap::Args)]
// Not the name of the subcommand's own group.
#[group(id = "what")]
pub struct Import {
    #[command(flatten)]
    source: Source,
    /// Configuration file (TOML) of a cloud that is not there yet.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keystone's `[credential] key_repository`, to take credentials (EC2 keys, TOTP seeds) along.
    #[arg(long, value_name = "DIR")]
    credential_keys: Option<PathBuf>,
    /// Only tell what would be taken.
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Imports into the database of a state directory.
pub async fn run(dir: &Path, import: Import) -> Result<()> {
    let state = State::create(dir)?;
    match (&import.config, state.config()) {
        (Some(file), _) => state.keep(&Config::read(file)?)?,
        (None, Ok(_)) => {}
        (None, Err(_)) => state.keep(&Config::default())?,
    }
    let config = state.config()?;
    let (url, places) = (config.database_url(&state), crate::shared::places(&state, &config));
    // A server on SQLite takes it that nobody else writes.
    if url.starts_with("sqlite:") {
        for role in ["up", "server"] {
            if Process::read(&state.path(&format!("run/{role}.pid"))).is_some() {
                bail!("the cloud is up: stop it first (`allod down`)");
            }
        }
    }
    let started = Instant::now();
    let text = match (import.source.from_dump, import.source.from) {
        (Some(file), _) => std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?,
        (None, Some(url)) => mysqldump(&state, &url).await?,
        (None, None) => bail!("--from-dump or --from is needed"),
    };
    let dump =
        Dump::read(&text, &identity::import::tables()).map_err(|e| anyhow::anyhow!(e.public().to_owned()))?;
    drop(text);
    let store = crate::moving::open(&url).await?;
    let secrets = import.credential_keys.as_deref().map(|there| {
        let here = Repository::Directory(places.fernet.clone()).beside("credential-keys");
        Secrets::open(there, here, Entropy::system(), &SystemClock)
            .map_err(|e| anyhow::anyhow!(e.public().to_owned()))
    });
    let secrets = secrets.transpose()?;
    let report = identity::import::import(&store, &dump, secrets.as_ref(), import.dry_run).await?;
    if import.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
        eprintln!("{:.1} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// `mysql://USER@HOST:PORT/NAME?passwordfile=FILE&socket=PATH`
#[derive(Debug, Default, PartialEq, Eq)]
struct Mysql {
    user: String,
    host: String,
    port: Option<u16>,
    name: String,
    password_file: Option<String>,
    socket: Option<String>,
}

fn parse(url: &str) -> Result<Mysql> {
    crate::moving::refuse_password(url)?;
    let rest = url.strip_prefix("mysql://").or_else(|| url.strip_prefix("mysql+pymysql://"));
    let rest = rest.context("--from: mysql://USER@HOST/NAME?passwordfile=FILE")?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (user_host, name) = place.split_once('/').context("--from: the name of the database is missing")?;
    let (user, host) = user_host.split_once('@').unwrap_or(("", user_host));
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().context("--from: the port is no number")?)),
        None => (host, None),
    };
    let mut mysql =
        Mysql { user: user.into(), host: host.into(), port, name: name.into(), ..Mysql::default() };
    for (key, value) in query.split('&').filter_map(|p| p.split_once('=')) {
        match key {
            "passwordfile" => mysql.password_file = Some(value.to_owned()),
            "socket" | "unix_socket" => mysql.socket = Some(value.to_owned()),
            "charset" => {}
            other => bail!("--from: there is no parameter '{other}'"),
        }
    }
    if name.is_empty() || name.starts_with('-') {
        bail!("--from: the name of the database is missing");
    }
    Ok(mysql)
}

/// A dump of one moment, by the program that knows how; the password goes to it in a file, not in its command line.
async fn mysqldump(state: &State, url: &str) -> Result<Vec<u8>> {
    let Mysql { user, host, port, name, password_file, socket } = parse(url)?;
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut options = String::from("[client]\n");
    let mut option = |key: &str, value: &str| options.push_str(&format!("{key}={}\n", quoted(value)));
    if !user.is_empty() {
        option("user", &user);
    }
    match &socket {
        Some(path) => option("socket", path),
        None => option("host", &host),
    }
    if let Some(port) = port {
        option("port", &port.to_string());
    }
    if let Some(file) = password_file {
        let password = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
        option("password", password.trim_end_matches('\n'));
    }
    let secret = crate::moving::Dump(state.path("run/mysqldump.cnf"));
    if let Some(parent) = secret.0.parent() {
        std::fs::create_dir_all(parent)?;
    }
    files::write_secret(&secret.0, options.as_bytes())?;
    for program in ["mariadb-dump", "mysqldump"] {
        let run = tokio::process::Command::new(program)
            .arg(format!("--defaults-extra-file={}", secret.0.display()))
            .args(["--single-transaction", "--skip-lock-tables", "--default-character-set=utf8mb4"])
            .args(["--skip-triggers", "--", &name])
            .stdin(std::process::Stdio::null())
            .output();
        match run.await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot run {program}")),
            Ok(output) if output.status.success() => return Ok(output.stdout),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                bail!("{program} failed: {}", said.trim());
            }
        }
    }
    bail!("neither mariadb-dump nor mysqldump is on this machine: make a dump elsewhere and use --from-dump")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_keystone_are_read() -> Result<()> {
        let found = parse("mysql+pymysql://keystone@db.example:3307/keystone?charset=utf8&passwordfile=/x")?;
        assert_eq!(
            (found.user.as_str(), found.host.as_str(), found.port),
            ("keystone", "db.example", Some(3307))
        );
        assert_eq!((found.name.as_str(), found.password_file.as_deref()), ("keystone", Some("/x")));
        for bad in [
            "mysql://u:p@h/d",
            "postgresql://h/d",
            "mysql://h",
            "mysql://h/",
            "mysql://h/--x",
            "mysql://h/d?x=y",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
