//! Faults as data: a script in TOML, written by hand or drawn from the seed.

use anyhow::{Context, Result, ensure};
use base::Entropy;
use serde::{Deserialize, Serialize};

use crate::profile::Rates;

/// A fault script.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What goes wrong, in order of time.
    #[serde(default)]
    pub fault: Vec<Fault>,
}

/// Something that goes wrong for a while.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// When, in seconds of virtual time after the tenants began.
    pub at: u64,
    /// For how many seconds.
    #[serde(rename = "for", default)]
    pub lasts: u64,
    /// What.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What goes wrong. Hosts are numbered from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// The host's power goes; it comes back as a new boot.
    HostLoss {
        /// Which host.
        host: u64,
    },
    /// No message passes between host and server; guests run on.
    LinkLoss {
        /// Which host.
        host: u64,
    },
    /// Messages take long and some are lost.
    LinkDelay {
        /// Which host.
        host: u64,
        /// Milliseconds a message takes at most.
        delay_ms: u64,
        /// Messages in a million that are lost.
        loss_ppm: u32,
    },
    /// The agent is killed and started again; guests run on.
    AgentCrash {
        /// Which host.
        host: u64,
    },
    /// The agent is killed right after it next wrote its ledger, before it acts on it.
    LedgerCrash {
        /// Which host.
        host: u64,
    },
    /// Reports come twice, and the second time late: after newer ones.
    ReportNoise {
        /// Which host.
        host: u64,
        /// Reports in a million that come again.
        twice_ppm: u32,
        /// Seconds they are late at most.
        late_s: u64,
    },
    /// Every call to a driver takes longer.
    SlowDisk {
        /// Which host.
        host: u64,
        /// By so many milliseconds at most.
        delay_ms: u64,
    },
    /// Nothing can be written, the ledger neither.
    FullDisk {
        /// Which host.
        host: u64,
    },
    /// The host's clock is wrong.
    ClockSkew {
        /// Which host.
        host: u64,
        /// By so many seconds.
        seconds: i64,
    },
    /// A guest's process vanishes.
    GuestCrash {
        /// Which host.
        host: u64,
    },
    /// The server process dies, and another starts on the same database after `for` seconds.
    ServerFailover {
        /// In the middle of a transaction: `before` or `after` its commit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        commit: Option<Commit>,
        /// The clock of the new server is wrong by so many seconds.
        #[serde(default, skip_serializing_if = "is_zero")]
        skew_s: i64,
    },
    /// The network backend refuses everything.
    OvnOutage,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Where in a transaction a server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Commit {
    /// Nothing was written.
    Before,
    /// All was written and nobody learnt of it.
    After,
}

impl Kind {
    /// Its name in scripts.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::HostLoss { .. } => "host_loss",
            Kind::LinkLoss { .. } => "link_loss",
            Kind::LinkDelay { .. } => "link_delay",
            Kind::AgentCrash { .. } => "agent_crash",
            Kind::LedgerCrash { .. } => "ledger_crash",
            Kind::ReportNoise { .. } => "report_noise",
            Kind::SlowDisk { .. } => "slow_disk",
            Kind::FullDisk { .. } => "full_disk",
            Kind::ClockSkew { .. } => "clock_skew",
            Kind::GuestCrash { .. } => "guest_crash",
            Kind::ServerFailover { .. } => "server_failover",
            Kind::OvnOutage => "ovn_outage",
        }
    }

    /// The host it happens to.
    pub fn host(&self) -> Option<u64> {
        match self {
            Kind::HostLoss { host }
            | Kind::LinkLoss { host }
            | Kind::LinkDelay { host, .. }
            | Kind::AgentCrash { host }
            | Kind::LedgerCrash { host }
            | Kind::ReportNoise { host, .. }
            | Kind::SlowDisk { host, .. }
            | Kind::FullDisk { host }
            | Kind::ClockSkew { host, .. }
            | Kind::GuestCrash { host } => Some(*host),
            Kind::ServerFailover { .. } | Kind::OvnOutage => None,
        }
    }
}

impl Script {
    /// Reads a TOML file's text for a fleet of so many hosts.
    ///
    /// # Errors
    /// What is not a script, and hosts that are not there.
    pub fn parse(text: &str, hosts: u64) -> Result<Self> {
        let script: Script = toml::from_str(text).context("the fault script cannot be read")?;
        for (n, fault) in script.fault.iter().enumerate() {
            if let Some(host) = fault.kind.host() {
                ensure!(host < hosts, "fault {n}: host {host} is not one of {hosts}");
            }
        }
        Ok(script)
    }

    /// The script as TOML.
    pub fn text(&self) -> String {
        toml::to_string(self).unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// Draws a script from a seed: `rates` over `seconds` of virtual time.
    pub fn draw(seed: u64, rates: &Rates, hosts: u64, seconds: u64) -> Self {
        // A stream of its own: the workload draws from others, so that a script can be cut down without changing it.
        let dice = Entropy::seeded(seed ^ 0x6661_756c_7473);
        let mut fault = Vec::new();
        let mut add = |rate: f64, lasts: (u64, u64), make: &dyn Fn(&Entropy) -> Kind| {
            for _ in 0..count(&dice, rate * seconds as f64 / 3600.0) {
                let at = dice.below(seconds.max(1));
                let lasts = lasts.0 + dice.below(lasts.1 - lasts.0 + 1);
                fault.push(Fault { at, lasts, kind: make(&dice) });
            }
        };
        let n = hosts.max(1);
        let each = hosts as f64;
        add(rates.host_loss * each, (20, 600), &|d| Kind::HostLoss { host: d.below(n) });
        add(rates.link_loss * each, (5, 400), &|d| Kind::LinkLoss { host: d.below(n) });
        add(rates.link_delay * each, (30, 600), &|d| Kind::LinkDelay {
            host: d.below(n),
            delay_ms: 50 + d.below(4_000),
            loss_ppm: u32::try_from(d.below(300_000)).unwrap_or(0),
        });
        add(rates.agent_crash * each, (1, 90), &|d| Kind::AgentCrash { host: d.below(n) });
        add(rates.ledger_crash * each, (1, 60), &|d| Kind::LedgerCrash { host: d.below(n) });
        add(rates.report_noise * each, (60, 900), &|d| Kind::ReportNoise {
            host: d.below(n),
            twice_ppm: 100_000 + u32::try_from(d.below(600_000)).unwrap_or(0),
            late_s: 1 + d.below(90),
        });
        add(rates.slow_disk * each, (30, 600), &|d| Kind::SlowDisk {
            host: d.below(n),
            delay_ms: 100 + d.below(5_000),
        });
        add(rates.full_disk * each, (30, 400), &|d| Kind::FullDisk { host: d.below(n) });
        add(rates.clock_skew * each, (60, 900), &|d| Kind::ClockSkew {
            host: d.below(n),
            seconds: i64::try_from(d.below(7_200)).unwrap_or(0) - 3_600,
        });
        add(rates.guest_crash * each, (0, 0), &|d| Kind::GuestCrash { host: d.below(n) });
        add(rates.server_failover, (1, 45), &|d| Kind::ServerFailover {
            commit: match d.below(3) {
                0 => None,
                1 => Some(Commit::Before),
                _ => Some(Commit::After),
            },
            skew_s: if d.below(3) == 0 { i64::try_from(d.below(8)).unwrap_or(0) - 4 } else { 0 },
        });
        add(rates.ovn_outage, (5, 240), &|_| Kind::OvnOutage);
        fault.sort_by_key(|f: &Fault| (f.at, f.kind.name(), f.kind.host()));
        Script { fault }
    }
}

/// A whole number of events whose mean is `mean`.
fn count(dice: &Entropy, mean: f64) -> u64 {
    let whole = mean.max(0.0).floor();
    let rest = mean - whole;
    let more = (dice.below(1_000_000) as f64) < rest * 1e6;
    whole as u64 + u64::from(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_as_it_was_written() {
        let script = Script::draw(7, &Rates::default(), 40, 3600);
        assert!(script.fault.len() > 20);
        assert_eq!(Script::parse(&script.text(), 40).unwrap(), script);
        assert_ne!(Script::draw(8, &Rates::default(), 40, 3600), script);
        for kind in ["host_loss", "ledger_crash", "server_failover", "ovn_outage"] {
            assert!(script.fault.iter().any(|f| f.kind.name() == kind), "no {kind}");
        }
    }

    #[test]
    fn hosts_that_are_not_there_are_named() {
        let error = Script::parse("[[fault]]\nat = 1\nkind = \"agent_crash\"\nhost = 9\n", 9).unwrap_err();
        assert!(error.to_string().contains("host 9"));
    }
}
