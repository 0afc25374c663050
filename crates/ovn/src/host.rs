//! Plugging on this host: taps and metadata namespaces, through the local Open_vSwitch database.
//!
//! Invariant: what is plugged is read from the switch's database and the record, never from memory, so a new process
//! finds what an old one made. `iface-id` = port id is the only key by which OVN binds a device.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use base::{Error, MacAddr, NetworkId, PortId, Result};
use contract::drivers::HostNetwork;
use contract::host::{MetadataPort, NicSpec};

use crate::engines::{Engines, plumbing};
use crate::ovsdb::txn::Mutation;
use crate::ovsdb::{Client, Ref, Remote, Txn, Value};
use crate::record::{Kind, Record};
use crate::{sys, vswitch};

/// Where guests look for metadata.
const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same over IPv6 (link-local, so it needs no route).
const METADATA_ADDRESS6: &str = "fe80::a9fe:a9fe/64";
/// The switch answers in milliseconds; while it is being started again it may take seconds.
const WITHIN: Duration = Duration::from_secs(10);

/// How this host plugs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The instance's state directory; the record of what was made is below it.
    pub state_dir: PathBuf,
    /// Socket of the local Open_vSwitch database.
    pub socket: PathBuf,
    /// The integration bridge.
    pub bridge: String,
    /// The namespace of the switch and the taps.
    pub netns: Option<String>,
    /// The user who may open the taps (the unprivileged user of the hypervisor).
    pub tap_owner: u32,
}

/// The host's side of the network.
pub struct Host {
    client: Client,
    config: Config,
    record: Record,
}

impl Host {
    /// Uses the switch of `engines`.
    ///
    /// # Errors
    /// If the record cannot be opened.
    pub fn new(engines: &Engines, tap_owner: u32) -> Result<Self> {
        let of = engines.config();
        Host::connect(Config {
            state_dir: of.state_dir.clone(),
            socket: engines.socket(),
            bridge: of.integration_bridge(),
            netns: of.netns.clone(),
            tap_owner,
        })
    }

    /// Uses a switch that somebody else runs.
    ///
    /// # Errors
    /// If the record cannot be opened.
    pub fn connect(config: Config) -> Result<Self> {
        let record = Record::open(&config.state_dir).map_err(Error::internal)?;
        let client = vswitch::connect(Remote::Unix(config.socket.clone()));
        Ok(Host { client, config, record })
    }

    /// Plugs a device that is there as the port, and waits until the switch has it.
    ///
    /// # Errors
    /// If the switch does not take it.
    pub async fn attach(&self, device: &str, port: PortId, mac: MacAddr) -> Result<()> {
        self.client.ready(WITHIN).await?;
        let ids = [
            ("iface-id", port.to_string()),
            ("attached-mac", mac.to_string()),
            ("iface-status", "active".to_owned()),
        ];
        let mut txn = Txn::new();
        let (bridge, there) = self.client.read(|db| {
            let bridge = db.named("Bridge", &self.config.bridge).next().map(|(u, _)| u);
            let interface = db.named("Interface", device).next();
            (
                bridge,
                interface.map(|(u, i)| (u, ids.iter().all(|(k, v)| i.external_id(k) == Some(v.as_str())))),
            )
        });
        let bridge = bridge.ok_or_else(|| Error::unavailable("The host's switch is not set up yet."))?;
        match there {
            Some((_, true)) => {}
            Some((interface, false)) => {
                let keys = Value::set(ids.iter().map(|(k, _)| *k).chain(["ovn-installed"]));
                let change: Vec<Mutation> = vec![
                    ("external_ids".into(), "delete", keys),
                    ("external_ids".into(), "insert", Value::map(ids)),
                ];
                txn.mutate("Interface", &Ref::Uuid(interface), change);
            }
            None => vswitch::add_port(&mut txn, &Ref::Uuid(bridge), device, "", Value::map(ids)),
        }
        if txn.writes() {
            vswitch::commit(&self.client, txn, WITHIN).await?;
        }
        let error = self
            .client
            .read(|db| db.named("Interface", device).next().map(|(_, i)| i.text("error").to_owned()));
        match error {
            Some(error) if error.is_empty() => Ok(()),
            Some(error) => Err(Error::internal(format!("{device}: {error}"))),
            None => Err(Error::retry(format!("{device} was unplugged meanwhile"))),
        }
    }

    /// Takes a device out of the switch.
    ///
    /// # Errors
    /// Of the database.
    pub async fn detach(&self, device: &str) -> Result<()> {
        self.client.ready(WITHIN).await?;
        let mut txn = Txn::new();
        vswitch::remove_port(&self.client, &mut txn, device);
        if txn.writes() {
            let next = vec![("next_cfg".to_owned(), "+=", Value::one(1))];
            txn.mutate_where("Open_vSwitch", vec![], next);
            self.client.transact(&txn).await?;
        }
        Ok(())
    }

    async fn drop_link(&self, name: &str) -> Result<()> {
        plumbing::remove_link(self.config.netns.as_deref(), name).await.map_err(Error::internal)?;
        self.record.remove(Kind::Link, name).map_err(Error::internal)
    }

    /// Makes the namespace, the veth pair and the addresses of a network's metadata port.
    async fn metadata_namespace(&self, namespace: &str, device: &str, port: &MetadataPort) -> io::Result<()> {
        let outer = self.config.netns.as_deref();
        self.record.add(Kind::Link, device)?;
        plumbing::make_netns(&self.record, namespace).await?;
        let name = device.to_owned();
        if !sys::in_netns(outer, move || Ok(sys::link_exists(&name))).await? {
            let args = ["link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", namespace];
            sys::run(outer, "ip", &args, "").await?;
        }
        let mut batch = format!("link set eth0 address {}\n", port.mac);
        for address in &port.addresses {
            let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
            batch += &format!("addr replace {address} dev eth0{nodad}\n");
        }
        batch += &format!("addr replace {METADATA_ADDRESS}/32 dev eth0\nlink set eth0 up\n");
        sys::run(Some(namespace), "ip", &["-batch", "-"], &batch).await?;
        // A kernel without IPv6 is no obstacle.
        let v6 = format!("addr replace {METADATA_ADDRESS6} dev eth0 nodad\n");
        if let Err(e) = sys::run(Some(namespace), "ip", &["-batch", "-"], &v6).await {
            tracing::debug!(error = %e, "no metadata over IPv6");
        }
        // What is sent into a userspace datapath must carry its checksums.
        sys::in_netns(Some(namespace), || sys::tx_checksum_off("eth0")).await?;
        let name = device.to_owned();
        sys::in_netns(outer, move || {
            sys::tx_checksum_off(&name)?;
            sys::link_up(&name, None)
        })
        .await
    }
}

/// Switches transmit checksum offload off on a device inside a namespace: what sends into a userspace datapath must
/// send whole packets.
///
/// # Errors
/// If there is no such device.
pub async fn checksum_offload_off(netns: Option<&str>, device: &str) -> Result<()> {
    let device = device.to_owned();
    sys::in_netns(netns, move || sys::tx_checksum_off(&device)).await.map_err(Error::internal)
}

/// `tap` and the first 11 characters of the port's id, as every OpenStack names it.
pub fn tap_name(port: PortId) -> String {
    format!("tap{}", start_of(port))
}

/// The plugged end of a metadata namespace's only link.
fn veth_name(network: NetworkId) -> String {
    format!("meta{}", start_of(network))
}

fn start_of(id: impl ToString) -> String {
    id.to_string().chars().take(11).collect()
}

const NAMESPACE: &str = "ovnmeta-";

#[async_trait]
impl HostNetwork for Host {
    async fn plug(&self, nic: &NicSpec) -> Result<String> {
        let name = tap_name(nic.port);
        self.record.add(Kind::Link, &name).map_err(Error::internal)?;
        let (device, owner, mtu) = (name.clone(), self.config.tap_owner, nic.mtu);
        let make = move || {
            sys::make_tap(&device, owner)?;
            sys::link_up(&device, Some(mtu))
        };
        sys::in_netns(self.config.netns.as_deref(), make).await.map_err(Error::internal)?;
        self.attach(&name, nic.port, nic.mac).await?;
        Ok(name)
    }

    async fn installed(&self, port: PortId) -> Result<bool> {
        self.client.ready(WITHIN).await?;
        Ok(self.client.read(|db| {
            let mut interfaces = db.external("Interface", "iface-id", &port.to_string());
            interfaces.any(|(_, i)| i.external_id("ovn-installed") == Some("true"))
        }))
    }

    async fn unplug(&self, port: PortId) -> Result<()> {
        let name = tap_name(port);
        self.detach(&name).await?;
        self.drop_link(&name).await
    }

    async fn observe(&self) -> Result<Vec<PortId>> {
        self.client.ready(WITHIN).await?;
        Ok(self.client.read(|db| {
            let guests = db.rows("Interface").filter(|(_, i)| i.text("name").starts_with("tap"));
            guests.filter_map(|(_, i)| i.external_id("iface-id")?.parse().ok()).collect()
        }))
    }

    async fn metadata_listener(
        &self,
        network: NetworkId,
        port: &MetadataPort,
    ) -> Result<Option<TcpListener>> {
        let (namespace, device) = (format!("{NAMESPACE}{network}"), veth_name(network));
        self.metadata_namespace(&namespace, &device, port).await.map_err(Error::internal)?;
        self.attach(&device, port.port, port.mac).await?;
        let listen = || {
            let listener = TcpListener::bind(SocketAddr::new(IpAddr::V4(METADATA_ADDRESS), 80))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        sys::in_netns(Some(&namespace), listen).await.map(Some).map_err(Error::internal)
    }

    async fn remove_metadata(&self, network: NetworkId) -> Result<()> {
        let namespace = format!("{NAMESPACE}{network}");
        let device = veth_name(network);
        self.detach(&device).await?;
        self.drop_link(&device).await?;
        plumbing::remove_netns(&namespace).await.map_err(Error::internal)?;
        self.record.remove(Kind::Netns, &namespace).map_err(Error::internal)
    }

    async fn observe_metadata(&self) -> Result<Vec<NetworkId>> {
        let things = self.record.list().map_err(Error::internal)?;
        let namespaces =
            things.iter().filter(|(kind, name)| *kind == Kind::Netns && sys::netns_path(name).exists());
        Ok(namespaces.filter_map(|(_, name)| name.strip_prefix(NAMESPACE)?.parse().ok()).collect())
    }
}
