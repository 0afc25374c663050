//! Desired state of the network as a backend needs it, and the server-side trait of network drivers.
//!
//! Each [`Item`] is one resource with everything around it that its rows need, so that a backend can project it
//! without asking back. `revision` is the resource's generation; a backend ignores an item older than what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use async_trait::async_trait;
use base::net::IpNet;
use base::{
    FloatingIpId, MacAddr, NetworkId, PortId, ProjectId, Result, RouterId, SecurityGroupId,
    SecurityGroupRuleId, SubnetId,
};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Names one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "id")]
pub enum Key {
    /// A network with its subnets.
    Network(NetworkId),
    /// A port.
    Port(PortId),
    /// A router with its gateway, interfaces and routes.
    Router(RouterId),
    /// A floating IP.
    FloatingIp(FloatingIpId),
    /// A security group with its rules.
    SecurityGroup(SecurityGroupId),
}

/// One resource as it shall be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Item {
    /// A network with its subnets.
    Network(NetworkItem),
    /// A port.
    Port(PortItem),
    /// A router.
    Router(RouterItem),
    /// A floating IP.
    FloatingIp(FloatingIpItem),
    /// A security group.
    SecurityGroup(SecurityGroupItem),
}

impl Item {
    /// The item's key.
    pub fn key(&self) -> Key {
        match self {
            Item::Network(i) => Key::Network(i.id),
            Item::Port(i) => Key::Port(i.id),
            Item::Router(i) => Key::Router(i.id),
            Item::FloatingIp(i) => Key::FloatingIp(i.id),
            Item::SecurityGroup(i) => Key::SecurityGroup(i.id),
        }
    }

    /// The generation the item was made from.
    pub fn revision(&self) -> u64 {
        match self {
            Item::Network(i) => i.revision,
            Item::Port(i) => i.revision,
            Item::Router(i) => i.revision,
            Item::FloatingIp(i) => i.revision,
            Item::SecurityGroup(i) => i.revision,
        }
    }
}

/// A logical switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkItem {
    /// The network.
    pub id: NetworkId,
    /// Generation.
    pub revision: u64,
    /// Owner.
    pub project_id: ProjectId,
    /// Display name (never used in a match or name).
    pub name: String,
    /// Whether the network forwards.
    pub admin_state_up: bool,
    /// MTU offered to guests.
    pub mtu: u32,
    /// Physical network name for a provider network (key of `ovn-bridge-mappings`); `None` for tenant networks.
    pub physical_network: Option<String>,
    /// VLAN of a provider network.
    pub vlan: Option<u16>,
    /// Whether it is external (`router:external`).
    pub external: bool,
    /// Domain name for DHCP option 15, e.g. `openstacklocal`.
    pub dns_domain: String,
    /// Subnets.
    pub subnets: Vec<SubnetItem>,
    /// The metadata port (localport), if any subnet has DHCP.
    pub metadata_port: Option<PortId>,
}

/// A subnet of a logical switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubnetItem {
    /// The subnet.
    pub id: SubnetId,
    /// Its prefix.
    pub cidr: IpNet,
    /// Gateway address.
    pub gateway: Option<IpAddr>,
    /// Whether OVN answers DHCP.
    pub dhcp: bool,
    /// Name servers to offer.
    pub dns_servers: Vec<IpAddr>,
    /// `(destination, next hop)` to offer.
    pub host_routes: Vec<(IpNet, IpAddr)>,
    /// `slaac`, `dhcpv6-stateful`, `dhcpv6-stateless` for IPv6.
    pub ipv6_address_mode: Option<String>,
    /// The same for router advertisements.
    pub ipv6_ra_mode: Option<String>,
    /// Address of the metadata port in this subnet (next hop of 169.254.169.254/32).
    pub metadata_address: Option<IpAddr>,
    /// MAC used as DHCP `server_mac` (stable, derived from the subnet).
    pub server_mac: MacAddr,
}

/// What a logical switch port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortRole {
    /// A guest or any device bound on a host.
    Device,
    /// A router's interface or gateway on this network.
    RouterInterface,
    /// The metadata localport.
    Metadata,
    /// An address reserved only (floating IP ports and the like): no logical switch port.
    AddressOnly,
}

/// A logical switch port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortItem {
    /// The port.
    pub id: PortId,
    /// Generation.
    pub revision: u64,
    /// Owner.
    pub project_id: ProjectId,
    /// Display name.
    pub name: String,
    /// Its network.
    pub network_id: NetworkId,
    /// What it is for.
    pub role: PortRole,
    /// For `RouterInterface`: its router.
    pub router_id: Option<RouterId>,
    /// `admin_state_up`.
    pub enabled: bool,
    /// MAC address.
    pub mac: MacAddr,
    /// `(subnet, address)`.
    pub fixed_ips: Vec<(SubnetId, IpAddr)>,
    /// `(address or prefix, MAC)` also allowed as source.
    pub allowed_address_pairs: Vec<(IpNet, MacAddr)>,
    /// Whether anti-spoofing and security groups hold.
    pub port_security: bool,
    /// Its groups.
    pub security_groups: BTreeSet<SecurityGroupId>,
    /// `device_id`, `device_owner` (kept in `external_ids`).
    pub device_id: String,
    /// See `device_id`.
    pub device_owner: String,
    /// Hostname of the host the port is bound to (`binding:host_id`), if bound.
    pub host: Option<String>,
    /// Per-port DHCP options (`extra_dhcp_opts`), name to value, IPv4.
    pub extra_dhcp_opts: BTreeMap<String, String>,
    /// DNS name the port is known by (host name).
    pub dns_name: String,
}

/// A logical router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterItem {
    /// The router.
    pub id: RouterId,
    /// Generation.
    pub revision: u64,
    /// Owner.
    pub project_id: ProjectId,
    /// Display name.
    pub name: String,
    /// `admin_state_up`.
    pub enabled: bool,
    /// Gateway.
    pub gateway: Option<RouterPortItem>,
    /// `enable_snat` of the gateway.
    pub enable_snat: bool,
    /// Interfaces.
    pub interfaces: Vec<RouterPortItem>,
    /// Static routes `(destination, next hop)`.
    pub routes: Vec<(IpNet, IpAddr)>,
}

/// A port of a logical router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterPortItem {
    /// The port.
    pub port_id: PortId,
    /// Its network.
    pub network_id: NetworkId,
    /// MAC.
    pub mac: MacAddr,
    /// Addresses with prefix length, and the subnet's gateway (next hop of the default route for a gateway port).
    pub addresses: Vec<RouterAddress>,
    /// MTU of the network.
    pub mtu: u32,
}

/// An address of a router port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterAddress {
    /// Its subnet.
    pub subnet_id: SubnetId,
    /// The address.
    pub ip: IpAddr,
    /// The subnet's prefix.
    pub cidr: IpNet,
    /// The subnet's gateway.
    pub gateway: Option<IpAddr>,
    /// IPv6 router advertisement mode of the subnet.
    pub ipv6_ra_mode: Option<String>,
}

/// A floating IP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FloatingIpItem {
    /// The floating IP.
    pub id: FloatingIpId,
    /// Generation.
    pub revision: u64,
    /// Owner.
    pub project_id: ProjectId,
    /// External network.
    pub network_id: NetworkId,
    /// The external address.
    pub address: IpAddr,
    /// Where it leads, if associated.
    pub target: Option<FloatingIpTarget>,
}

/// Where a floating IP leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FloatingIpTarget {
    /// Through which router.
    pub router_id: RouterId,
    /// The guest's port.
    pub port_id: PortId,
    /// The guest's fixed address.
    pub fixed_ip: IpAddr,
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecurityGroupItem {
    /// The group.
    pub id: SecurityGroupId,
    /// Generation.
    pub revision: u64,
    /// Owner.
    pub project_id: ProjectId,
    /// Display name.
    pub name: String,
    /// Whether flows are tracked.
    pub stateful: bool,
    /// Rules.
    pub rules: Vec<SecurityGroupRuleItem>,
}

/// A rule of a security group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecurityGroupRuleItem {
    /// The rule.
    pub id: SecurityGroupRuleId,
    /// True: to the guest.
    pub ingress: bool,
    /// 4 or 6.
    pub ip_version: u8,
    /// IP protocol number; `None` = any.
    pub protocol: Option<u8>,
    /// Port range (TCP, UDP, SCTP …) or ICMP type and code.
    pub port_min: Option<u16>,
    /// See `port_min`.
    pub port_max: Option<u16>,
    /// Remote prefix.
    pub remote_prefix: Option<IpNet>,
    /// Remote group.
    pub remote_group: Option<SecurityGroupId>,
}

/// What a backend tells by itself. Hints: may repeat, may be lost; [`NetworkBackend::ports_up`] is the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetEvent {
    /// The port's flows are installed where it is plugged.
    PortUp(PortId),
    /// It is no longer.
    PortDown(PortId),
    /// The set of hosts changed.
    HostsChanged,
}

/// A host as the network backend knows it (`openstack network agent list`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetHost {
    /// Chassis name.
    pub id: String,
    /// Host name.
    pub hostname: String,
    /// Whether it may carry gateways.
    pub gateway: bool,
    /// Physical networks it reaches.
    pub physical_networks: Vec<String>,
    /// Whether it reported lately.
    pub alive: bool,
}

/// The server side of a network driver: `ovn`, `sim`.
#[async_trait]
pub trait NetworkBackend: Send + Sync {
    /// Makes the item so. Returns when the backend accepted it, not when every host has it. Older revisions are ignored.
    async fn apply(&self, item: &Item) -> Result<()>;

    /// Removes the item; missing is success.
    async fn remove(&self, key: Key) -> Result<()>;

    /// Makes everything so and removes what is ours and not listed. Answers how many items it had to repair.
    async fn sync(&self, items: &[Item]) -> Result<usize>;

    /// Ports whose flows are installed.
    async fn ports_up(&self) -> Result<BTreeSet<PortId>>;

    /// Hosts.
    async fn hosts(&self) -> Result<Vec<NetHost>>;

    /// Hints.
    fn events(&self) -> broadcast::Receiver<NetEvent>;
}
