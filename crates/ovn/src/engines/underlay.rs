//! The device through which tunnels leave. The userspace datapath sends them itself, so the device is taken into a bridge,
//! and its addresses and routes move to the bridge's own interface; they go back when the daemons end.
//!
//! Invariant: what was on the device is on disk before it is moved.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Config, Datapath, plumbing};
use crate::record::{Kind, Record};
use crate::sys;

/// What a device had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Underlay {
    pub device: String,
    bridge: String,
    pub mac: String,
    addresses: Vec<String>,
    /// Arguments of `ip route`, without the device.
    routes: Vec<String>,
}

fn path(data: &Path) -> std::path::PathBuf {
    data.join("underlay.json")
}

fn held(data: &Path) -> io::Result<Option<Underlay>> {
    match std::fs::read(path(data)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The address for tunnels of a device: its first one, wherever it is at present.
///
/// # Errors
/// If the device is not there or has no address.
pub async fn address(state_dir: &Path, netns: Option<&str>, device: &str) -> io::Result<IpAddr> {
    let found = match held(&state_dir.join("ovn"))? {
        Some(held) if held.device == device => held,
        _ => look(netns, device, "").await?,
    };
    let first = found.addresses.first().and_then(|a| a.split('/').next()?.parse().ok());
    first.ok_or_else(|| io::Error::other(format!("{device} has no address")))
}

async fn look(netns: Option<&str>, device: &str, bridge: &str) -> io::Result<Underlay> {
    let json = |text: String| serde_json::from_str::<Value>(&text).map_err(io::Error::other);
    let link = json(sys::run(netns, "ip", &["-j", "address", "show", "dev", device], "").await?)?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut addresses = Vec::new();
    for address in link[0]["addr_info"].as_array().into_iter().flatten() {
        if address["scope"] != "link" {
            addresses.push(format!("{}/{}", text(&address["local"]), address["prefixlen"]));
        }
    }
    let mut routes = Vec::new();
    for route in json(sys::run(netns, "ip", &["-j", "route", "show", "dev", device], "").await?)?
        .as_array()
        .into_iter()
        .flatten()
        .filter(|r| r["protocol"] != "kernel")
    {
        let by = route["gateway"].as_str().map(|g| format!(" via {g}")).unwrap_or_default();
        routes.push(format!("{}{by}", text(&route["dst"])));
    }
    Ok(Underlay {
        device: device.to_owned(),
        bridge: bridge.to_owned(),
        mac: text(&link[0]["address"]),
        addresses,
        routes,
    })
}

/// What the bridge shall be made of; `None` where none is needed. Writes down what the device has.
pub(super) async fn bridge(config: &Config, data: &Path, datapath: Datapath) -> io::Result<Option<Underlay>> {
    let Some(device) = config.underlay.as_deref().filter(|_| datapath == Datapath::Netdev) else {
        return Ok(None);
    };
    if let Some(held) = held(data)? {
        return Ok(Some(held));
    }
    let found = look(config.netns.as_deref(), device, &config.underlay_bridge()).await?;
    if found.addresses.is_empty() {
        return Err(io::Error::other(format!("the underlay device {device} has no address")));
    }
    let aside = path(data).with_extension("new");
    std::fs::write(&aside, serde_json::to_vec(&found)?)?;
    std::fs::rename(&aside, path(data))?;
    Ok(Some(found))
}

/// Moves addresses and routes from the device to the bridge. Idempotent; needed after each start of `ovs-vswitchd`.
pub(super) async fn take(config: &Config, data: &Path, datapath: Datapath) -> io::Result<()> {
    let Some(held) = bridge(config, data, datapath).await? else { return Ok(()) };
    let netns = config.netns.as_deref();
    plumbing::appeared(netns, &held.bridge, std::time::Duration::from_secs(10)).await?;
    Record::open(&config.state_dir)?.add(Kind::Link, &held.bridge)?;
    let (bridge, device) = (held.bridge.clone(), held.device.clone());
    sys::in_netns(netns, move || {
        // What the host sends into a userspace datapath must carry its checksums.
        sys::tx_checksum_off(&bridge)?;
        sys::link_up(&device, None)?;
        sys::link_up(&bridge, None)
    })
    .await?;
    shift(netns, &held, &held.device, &held.bridge).await
}

/// Gives addresses and routes back to the device, if they were taken.
pub(super) async fn give_back(data: &Path, netns: Option<&str>) -> io::Result<()> {
    let Some(held) = held(data)? else { return Ok(()) };
    if netns.is_some_and(|n| !sys::netns_path(n).exists()) {
        return Ok(());
    }
    shift(netns, &held, &held.bridge, &held.device).await
}

async fn shift(netns: Option<&str>, held: &Underlay, from: &str, to: &str) -> io::Result<()> {
    for address in &held.addresses {
        // Gone already, or with its device.
        let _ = sys::run(netns, "ip", &["address", "delete", address, "dev", from], "").await;
        sys::run(netns, "ip", &["address", "replace", address, "dev", to], "").await?;
    }
    for route in &held.routes {
        let words: Vec<&str> =
            ["route", "replace"].into_iter().chain(route.split(' ')).chain(["dev", to]).collect();
        sys::run(netns, "ip", &words, "").await?;
    }
    Ok(())
}
