//! What a fleet is like, as data: hosts, links, tenants, how often things break.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The profile used where none is given.
pub const DEFAULT: &str = include_str!("../profiles/default.toml");

/// A fleet: a TOML file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Kinds of hosts; each host is one of them, by their shares.
    pub host: Vec<HostProfile>,
    /// The network between agents and server.
    #[serde(default)]
    pub link: LinkProfile,
    /// What tenants do.
    #[serde(default)]
    pub workload: Workload,
    /// How often things break.
    #[serde(default)]
    pub faults: Rates,
}

/// What a kind of host is like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostProfile {
    /// Name of the kind.
    pub name: String,
    /// How many of them there are, in relation to the other kinds.
    pub share: u64,
    /// Physical CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Local disk in GiB.
    pub disk_gib: u64,
    /// NUMA nodes.
    pub numa_nodes: u32,
    /// Milliseconds from start to running: at least, and at most for an ordinary boot.
    pub boot_ms: (u64, u64),
    /// Boots in a million that are slow.
    pub slow_boot_ppm: u32,
    /// How long a slow boot takes at most.
    pub slow_boot_ms: u64,
    /// Image download in MiB/s; 0 = at once.
    pub image_mib_s: u64,
    /// Driver calls in a million that fail.
    pub failures_ppm: u32,
}

impl Default for HostProfile {
    fn default() -> Self {
        HostProfile {
            name: "host".into(),
            share: 1,
            vcpus: 64,
            memory_mib: 512 * 1024,
            disk_gib: 8192,
            numa_nodes: 2,
            boot_ms: (400, 3_000),
            slow_boot_ppm: 20_000,
            slow_boot_ms: 25_000,
            image_mib_s: 120,
            failures_ppm: 0,
        }
    }
}

impl HostProfile {
    /// As the simulated drivers want it.
    pub fn drivers(&self) -> sim::Profile {
        sim::Profile {
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            disk_gib: self.disk_gib,
            boot_ms: self.boot_ms.0..=self.boot_ms.1,
            slow_boot: (self.slow_boot_ppm, self.slow_boot_ms),
            numa_nodes: self.numa_nodes,
            image_mib_s: self.image_mib_s,
            fault_ppm: self.failures_ppm,
        }
    }
}

/// The network between agents and server when nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkProfile {
    /// Milliseconds a message takes: least and most.
    pub delay_ms: (u64, u64),
    /// Messages in a million that are lost.
    pub loss_ppm: u32,
}

impl Default for LinkProfile {
    fn default() -> Self {
        LinkProfile { delay_ms: (1, 8), loss_ppm: 0 }
    }
}

/// What tenants do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Tenants; 0: one for every ten hosts, at most 50.
    pub tenants: u64,
    /// Clients of each tenant that work at the same time.
    pub clients: u64,
    /// Servers that the tenants keep, for each host.
    pub servers_per_host: u64,
    /// Seconds a client thinks between two calls, on average.
    pub think_s: f64,
    /// Seconds, on average, after which an operator evacuates what is on hosts that are down; 0 = never.
    pub evacuate_s: u64,
    /// Seconds, on average, after which an operator drains a host: disables it and takes its servers elsewhere; 0 = never.
    pub drain_s: u64,
    /// How often each thing is done, in relation to the others.
    pub weights: Weights,
}

impl Default for Workload {
    fn default() -> Self {
        Workload {
            tenants: 0,
            clients: 2,
            servers_per_host: 10,
            think_s: 6.0,
            evacuate_s: 60,
            drain_s: 300,
            weights: Weights::default(),
        }
    }
}

/// Relative frequencies of what clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "each is named after what is done")]
pub struct Weights {
    pub create_server: u64,
    pub delete_server: u64,
    pub power: u64,
    pub reboot: u64,
    pub create_volume: u64,
    pub delete_volume: u64,
    pub attach_volume: u64,
    pub detach_volume: u64,
    pub snapshot: u64,
    pub boot_from_volume: u64,
    pub floating_ip: u64,
    pub interface: u64,
    pub network: u64,
    pub security_group: u64,
    pub read: u64,
}

impl Default for Weights {
    fn default() -> Self {
        Weights {
            create_server: 30,
            delete_server: 12,
            power: 8,
            reboot: 5,
            create_volume: 5,
            delete_volume: 3,
            attach_volume: 5,
            detach_volume: 4,
            snapshot: 2,
            boot_from_volume: 3,
            floating_ip: 4,
            interface: 3,
            network: 2,
            security_group: 2,
            read: 8,
        }
    }
}

/// How often things break: times in an hour of virtual time, over the whole fleet, and for each host where it says so.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Power loss of a host, per host.
    pub host_loss: f64,
    /// A host that cannot reach the server, per host.
    pub link_loss: f64,
    /// Slow and lossy links, per host.
    pub link_delay: f64,
    /// Agents that are killed, per host.
    pub agent_crash: f64,
    /// Agents that are killed just after they wrote their ledger, per host.
    pub ledger_crash: f64,
    /// Reports that come twice and late, per host.
    pub report_noise: f64,
    /// Slow disks, per host.
    pub slow_disk: f64,
    /// Full disks, per host.
    pub full_disk: f64,
    /// Clocks that are wrong, per host.
    pub clock_skew: f64,
    /// Guests that end by themselves, per host.
    pub guest_crash: f64,
    /// Server processes that die, sometimes in the middle of a transaction.
    pub server_failover: f64,
    /// Outages of OVN.
    pub ovn_outage: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Rates {
            host_loss: 0.1,
            link_loss: 0.2,
            link_delay: 0.2,
            agent_crash: 0.2,
            ledger_crash: 0.2,
            report_noise: 0.3,
            slow_disk: 0.1,
            full_disk: 0.1,
            clock_skew: 0.1,
            guest_crash: 0.3,
            server_failover: 3.0,
            ovn_outage: 1.5,
        }
    }
}

impl Profile {
    /// Reads a TOML file's text.
    ///
    /// # Errors
    /// What is not a profile, with the line.
    pub fn parse(text: &str) -> Result<Self> {
        let profile: Profile = toml::from_str(text).context("the profile cannot be read")?;
        profile.check()?;
        Ok(profile)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.host.is_empty(), "host: a profile has at least one kind of host");
        ensure!(self.host.iter().any(|h| h.share > 0), "host.share: all are 0");
        for host in &self.host {
            ensure!(host.boot_ms.0 <= host.boot_ms.1, "host {}: boot_ms: the least comes first", host.name);
            ensure!(host.vcpus > 0, "host {}: vcpus: at least 1", host.name);
        }
        ensure!(self.link.delay_ms.0 <= self.link.delay_ms.1, "link.delay_ms: the least comes first");
        ensure!(self.workload.think_s > 0.0, "workload.think_s: more than 0");
        Ok(())
    }

    /// The kind of the `n`th host: the shares, spread evenly.
    pub fn kind(&self, n: u64) -> &HostProfile {
        let total: u64 = self.host.iter().map(|h| h.share).sum();
        let mut place = n % total.max(1);
        for host in &self.host {
            if place < host.share {
                return host;
            }
            place -= host.share;
        }
        // `check` made sure of one.
        self.host.last().unwrap_or_else(|| unreachable!("a profile has hosts"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_is_one() {
        let profile = Profile::parse(DEFAULT).unwrap();
        assert!(profile.host.len() > 1);
        let names: Vec<&str> = (0..20).map(|n| profile.kind(n).name.as_str()).collect();
        for host in &profile.host {
            assert!(names.contains(&host.name.as_str()), "{} is never used", host.name);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let told = |text: &str| format!("{:#}", Profile::parse(text).unwrap_err());
        assert!(told("host = []").contains("at least one kind"));
        assert!(told("[[host]]\nvcpu = 4").contains("vcpu"));
        assert!(told("[[host]]\nboot_ms = [5, 1]").contains("boot_ms"));
    }
}
