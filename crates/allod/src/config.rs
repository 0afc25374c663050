//! Configuration: a small TOML file, and what `allod up` was told; kept in the state directory, so that every other
//! command needs only `--state`.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base::net::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files;
use crate::telemetry::Telemetry;

/// All settings; every one has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the API listens. Port 0: chosen by the system at the first start, then kept.
    pub listen: SocketAddr,
    /// URL under which clients reach the API; empty = `https://` + `listen`.
    pub public_url: String,
    /// More host names and addresses for the server's certificate.
    pub names: Vec<String>,
    /// `postgresql://…`; empty = SQLite in the state directory.
    pub database: String,
    /// Region in the catalog.
    pub region: String,
    /// Number of simulated hosts; 0 = real drivers.
    pub sim_hosts: u32,
    /// Whether those are in a process of their own (`allod sim-agents`) though there is one server; for tests.
    pub sim_apart: bool,
    /// Cost of password hashes.
    pub bcrypt_rounds: u32,
    /// Rules for passwords and logins, limits, trusts, the audit trail.
    pub identity: identity::Operator,
    /// Device through which guests of this host reach those of others; empty: there are no other hosts.
    pub underlay: String,
    /// Joining and fencing of hosts.
    pub hosts: Hosts,
    /// The external network.
    pub external: External,
    /// This server as one of several on a database.
    pub replica: Replica,
    /// Initial passwords; empty = random.
    pub passwords: Passwords,
    /// Where the agent serves its metrics (port 0: chosen by the system, see `run/agent-listening`).
    pub agent_listen: SocketAddr,
    /// Traces.
    pub telemetry: Telemetry,
    /// Overrides of policy rules (`policy.yaml` files by service name).
    pub policy: std::collections::BTreeMap<String, PathBuf>,
}

/// The external network that floating IPs come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct External {
    /// Its prefix.
    pub cidr: IpNet,
    /// The host's address in it: gateway of the cloud's routers.
    pub gateway: IpAddr,
    /// First address to give out; `None` = the one after the gateway.
    pub first: Option<IpAddr>,
    /// Last address to give out; `None` = the last of the prefix.
    pub last: Option<IpAddr>,
}

/// Joining and fencing of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hosts {
    /// Port on which hosts reach the Southbound database.
    pub southbound_port: u16,
    /// Life of a joined host's certificate; renewed when a third is left.
    pub certificate_secs: u32,
    /// How long a host with leases runs its guests without hearing from the server.
    pub lease_secs: u32,
    /// How much later than the end of a lease its host is sure to have stopped its guests.
    pub lease_margin_secs: u32,
    /// How long after its last sign of life a host counts as down.
    pub down_after_secs: u32,
    /// Whether the host of `allod up` itself has leases; joined hosts always have.
    pub local_lease: bool,
}

impl Default for Hosts {
    fn default() -> Self {
        Hosts {
            southbound_port: 6642,
            certificate_secs: 30 * 86_400,
            lease_secs: 60,
            lease_margin_secs: 15,
            down_after_secs: 75,
            local_lease: false,
        }
    }
}

/// One of several servers on a PostgreSQL database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replica {
    /// Directory that all replicas see: token keys, CA, first passwords, images. `None` = this server is the only one.
    pub shared_dir: Option<PathBuf>,
    /// URL under which other replicas reach this one; empty = `https://` + `listen`.
    pub address: String,
    /// How long a replica's part of the work waits for it before others take it over.
    pub lease_secs: u32,
    /// URL of the agent at the OVN databases (its `agent_listen`); empty = they are on this machine.
    pub ovn_agent: String,
}

impl Default for Replica {
    fn default() -> Self {
        Replica { shared_dir: None, address: String::new(), lease_secs: 10, ovn_agent: String::new() }
    }
}

/// Initial passwords.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Passwords {
    /// User `admin`.
    pub admin: String,
    /// User `demo`.
    pub demo: String,
    /// User `alt`.
    pub alt: String,
}

impl External {
    /// Reads `CIDR,ADDRESS`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parse = || {
            let (cidr, gateway) = text.split_once(',')?;
            let (cidr, gateway) = (cidr.parse::<IpNet>().ok()?, gateway.parse().ok()?);
            cidr.contains(&gateway).then_some(External { cidr, gateway, first: None, last: None })
        };
        parse().ok_or_else(|| "a prefix and an address in it, like 172.24.4.0/24,172.24.4.2".to_owned())
    }
}

impl Default for External {
    fn default() -> Self {
        External {
            cidr: IpNet::V4(base::net::Ipv4Net::new_assert([172, 24, 4, 0].into(), 24)),
            gateway: [172, 24, 4, 1].into(),
            first: None,
            last: None,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 8443)),
            public_url: String::new(),
            names: vec!["localhost".into()],
            database: String::new(),
            region: "RegionOne".into(),
            sim_hosts: 0,
            sim_apart: false,
            bcrypt_rounds: 12,
            identity: identity::Operator::default(),
            underlay: String::new(),
            hosts: Hosts::default(),
            external: External::default(),
            replica: Replica::default(),
            passwords: Passwords::default(),
            agent_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            telemetry: Telemetry::default(),
            policy: std::collections::BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads a TOML file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Config =
            toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        config.check()?;
        Ok(config)
    }

    /// Refuses what cannot work.
    pub fn check(&self) -> Result<()> {
        if !self.external.cidr.contains(&self.external.gateway) {
            bail!(
                "external.gateway {} is not in external.cidr {}",
                self.external.gateway,
                self.external.cidr
            );
        }
        if !(4..=31).contains(&self.bcrypt_rounds) {
            bail!("bcrypt_rounds is between 4 and 31");
        }
        if !(0.0..=1.0).contains(&self.telemetry.sample_ratio) {
            bail!("telemetry.sample_ratio is between 0 and 1");
        }
        let hosts = &self.hosts;
        if hosts.lease_secs < 3 || hosts.lease_margin_secs < 2 || hosts.certificate_secs < 30 {
            bail!("hosts.lease_secs is at least 3, hosts.lease_margin_secs 2, hosts.certificate_secs 30");
        }
        if self.replica.shared_dir.is_some() && self.database.is_empty() {
            bail!("replica.shared_dir needs a PostgreSQL database: SQLite is one server's");
        }
        if !(1..=600).contains(&self.replica.lease_secs) {
            bail!("replica.lease_secs is between 1 and 600");
        }
        if self.sim_hosts > 10_000 {
            bail!("sim_hosts is at most 10000");
        }
        Ok(())
    }

    /// The URL under which clients reach the API.
    pub fn url(&self) -> String {
        if self.public_url.is_empty() {
            format!("https://{}", self.listen)
        } else {
            self.public_url.trim_end_matches('/').to_owned()
        }
    }

    /// Whether simulated hosts are not in the server's process.
    pub fn hosts_apart(&self) -> bool {
        self.sim_apart || self.replica.shared_dir.is_some()
    }

    /// The store's URL.
    pub fn database_url(&self, state: &State) -> String {
        if self.database.is_empty() {
            format!("sqlite://{}", state.path("db/allod.sqlite").display())
        } else {
            self.database.clone()
        }
    }
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct State {
    dir: PathBuf,
}

impl State {
    /// Opens the directory, making it (mode 0700) where there is none.
    pub fn create(dir: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        if !dir.is_dir() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let dir = dir.canonicalize().with_context(|| format!("cannot use {}", dir.display()))?;
        for (sub, mode) in [("run", 0o700), ("log", 0o700), ("pki", 0o700), ("db", 0o700), ("fernet", 0o700)]
        {
            let path = dir.join(sub);
            if !path.is_dir() {
                fs::DirBuilder::new()
                    .mode(mode)
                    .create(&path)
                    .with_context(|| format!("cannot make {}", path.display()))?;
            }
        }
        Ok(State { dir })
    }

    /// Opens a directory that `allod up` made.
    pub fn open(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("no cloud in {}", dir.display()))?;
        if !dir.join("config.json").is_file() {
            bail!("no cloud in {} (start one with `allod up --state {}`)", dir.display(), dir.display());
        }
        Ok(State { dir })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path below the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The configuration in effect.
    pub fn config(&self) -> Result<Config> {
        let text = fs::read_to_string(self.path("config.json")).context("cannot read config.json")?;
        serde_json::from_str(&text).context("config.json is damaged")
    }

    /// Keeps the configuration in effect: what differs from the defaults, so that the version before, to which an upgrade may
    /// be taken back, reads it unless something new was asked for.
    pub fn keep(&self, config: &Config) -> Result<()> {
        let mut kept = serde_json::to_value(config)?;
        differing(&mut kept, &serde_json::to_value(Config::default())?);
        // Others read this one.
        kept["listen"] = config.listen.to_string().into();
        files::write_secret(&self.path("config.json"), &serde_json::to_vec_pretty(&kept)?)
    }
}

/// Removes what is as in `default`.
fn differing(kept: &mut Value, default: &Value) {
    if let (Value::Object(kept), Value::Object(default)) = (kept, default) {
        kept.retain(|name, value| {
            let Some(default) = default.get(name) else { return true };
            if value == default {
                return false;
            }
            differing(value, default);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_differs() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::create(dir.path()).unwrap();
        let mut config = Config { sim_hosts: 3, ..Config::default() };
        config.hosts.lease_secs = 9;
        config.external.first = Some([172, 24, 4, 7].into());
        config.policy.insert("compute".into(), "/p".into());
        state.keep(&config).unwrap();
        assert_eq!(state.config().unwrap(), config);
        let kept: Value = serde_json::from_slice(&fs::read(state.path("config.json")).unwrap()).unwrap();
        let wanted = serde_json::json!({
            "listen": "127.0.0.1:8443", "sim_hosts": 3, "hosts": {"lease_secs": 9},
            "external": {"first": "172.24.4.7"}, "policy": {"compute": "/p"},
        });
        assert_eq!(kept, wanted);
    }

    #[test]
    fn a_file_names_what_it_gets_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allod.toml");
        fs::write(&path, "listen = '127.0.0.1:0'\n[external]\ncidr = '10.9.0.0/24'\ngateway = '10.9.0.1'\n")
            .unwrap();
        assert_eq!(Config::read(&path).unwrap().external.gateway.to_string(), "10.9.0.1");
        fs::write(&path, "listn = 1").unwrap();
        assert!(format!("{:#}", Config::read(&path).unwrap_err()).contains("listn"));
        fs::write(&path, "[external]\ngateway = '10.9.0.1'").unwrap();
        assert!(Config::read(&path).unwrap_err().to_string().contains("external.gateway"));
    }
}
