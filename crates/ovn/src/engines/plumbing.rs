//! The host's side of the external network, and the instance's namespace.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::Config;
use crate::record::{Kind, Record};
use crate::sys;

/// Makes the named namespace, if it is not there, and records it.
pub async fn make_netns(record: &Record, name: &str) -> io::Result<()> {
    if !sys::netns_path(name).exists() {
        record.add(Kind::Netns, name)?;
        sys::run(None, "ip", &["netns", "add", name], "").await?;
    }
    sys::in_netns(Some(name), || sys::link_up("lo", None)).await
}

/// Gives the host its address on the external bridge, lets it forward, and hides the external network behind the
/// host's own addresses. Idempotent; needed after each start of `ovs-vswitchd`.
pub async fn restore(config: &Config, record: &Record) -> io::Result<()> {
    let Some(external) = &config.external else { return Ok(()) };
    let netns = config.netns.as_deref();
    let bridge = config.external_bridge();
    appeared(netns, &bridge, Duration::from_secs(10)).await?;
    let device = bridge.clone();
    let v6 = external.gateway.is_ipv6();
    sys::in_netns(netns, move || {
        sys::tx_checksum_off(&device)?;
        sys::link_up(&device, None)?;
        // Relative to the namespace of this thread.
        let forward =
            if v6 { "/proc/sys/net/ipv6/conf/all/forwarding" } else { "/proc/sys/net/ipv4/ip_forward" };
        if std::fs::read_to_string(forward)?.trim() != "1" {
            std::fs::write(forward, "1")?;
        }
        Ok(())
    })
    .await?;
    let address = format!("{}/{}", external.gateway, external.cidr.prefix_len());
    sys::run(netns, "ip", &["address", "replace", &address, "dev", &bridge], "").await?;
    let table = config.nat_table();
    record.add(Kind::Table, &table)?;
    if let Err(e) = sys::run(netns, "nft", &["-f", "-"], &ruleset(config, &table)).await {
        // Guests then reach the host and each other, but nothing behind the host.
        tracing::warn!(error = %e, "no NAT for the external network (is nftables installed?)");
    }
    Ok(())
}

fn ruleset(config: &Config, table: &str) -> String {
    let Some(external) = &config.external else { return String::new() };
    let family = if matches!(external.gateway, IpAddr::V4(_)) { "ip" } else { "ip6" };
    let bridge = config.external_bridge();
    let cidr = external.cidr;
    // The table is made, deleted and made again in one transaction of nft: it may or may not be there.
    format!(
        "table {family} {table} {{ }}\n\
         delete table {family} {table}\n\
         table {family} {table} {{\n\
         chain postrouting {{\n\
         type nat hook postrouting priority srcnat; policy accept;\n\
         {family} saddr {cidr} {family} daddr != {cidr} oifname != \"{bridge}\" masquerade\n\
         }}\n}}\n"
    )
}

/// The device every userspace datapath makes in its namespace, under this name only.
const DATAPATH_DEVICE: &str = "ovs-netdev";

/// Two userspace datapaths cannot share a namespace. The devices of the one before stay when its daemon ends (they are
/// persistent taps) and are used again; so they are recorded to be removed at last.
pub async fn claim_userspace_switch(config: &Config, record: &Record) -> io::Result<()> {
    let netns = config.netns.as_deref();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    // The kernel lets go of a daemon's devices a moment after its end.
    while sys::in_netns(netns, || sys::tap_in_use(DATAPATH_DEVICE)).await? {
        if tokio::time::Instant::now() > deadline {
            let why = "another Open vSwitch with the userspace datapath runs in this network namespace; \
                       stop it, or run this instance in a namespace of its own";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for device in [DATAPATH_DEVICE, &config.integration_bridge(), &config.external_bridge()] {
        record.add(Kind::Link, device)?;
    }
    Ok(())
}

/// Waits until an interface is there: `ovs-vswitchd` makes a bridge's a moment after it has read the database.
pub async fn appeared(netns: Option<&str>, link: &str, within: Duration) -> io::Result<()> {
    let deadline = tokio::time::Instant::now() + within;
    loop {
        let name = link.to_owned();
        if sys::in_netns(netns, move || Ok(sys::link_exists(&name))).await? {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(io::Error::other(format!("{link} did not appear")));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Removes an interface; one that is gone is no error.
pub async fn remove_link(netns: Option<&str>, name: &str) -> io::Result<()> {
    let link = name.to_owned();
    if sys::in_netns(netns, move || Ok(sys::link_exists(&link))).await? {
        sys::run(netns, "ip", &["link", "delete", "dev", name], "").await?;
    }
    Ok(())
}

/// Removes a named namespace; one that is gone is no error.
pub async fn remove_netns(name: &str) -> io::Result<()> {
    if sys::netns_path(name).exists() {
        sys::run(None, "ip", &["netns", "delete", name], "").await?;
    }
    Ok(())
}

/// Removes everything recorded. A namespace goes last, what is inside goes with it.
pub async fn remove_recorded(state_dir: &Path, netns: Option<&str>) -> io::Result<()> {
    let record = Record::open(state_dir)?;
    let mut things = record.list()?;
    things.sort_by_key(|(kind, _)| *kind == Kind::Netns);
    let there = netns.is_none_or(|n| sys::netns_path(n).exists());
    for (kind, name) in things {
        match kind {
            Kind::Link if there => remove_link(netns, &name).await?,
            Kind::Table if there => {
                for family in ["ip", "ip6"] {
                    // Deleting needs the table to be there: make it first.
                    let ruleset = format!("table {family} {name} {{ }}\ndelete table {family} {name}\n");
                    if let Err(e) = sys::run(netns, "nft", &["-f", "-"], &ruleset).await {
                        tracing::warn!(error = %e, "nftables table not removed");
                    }
                }
            }
            Kind::Netns => remove_netns(&name).await?,
            Kind::Link | Kind::Table => {}
        }
        record.remove(kind, &name)?;
    }
    Ok(())
}
