//! The resources of the network service, as they lie in the store.
//!
//! Everything a user named is a field here; what follows from other rows (a network's subnets, a router's gateway
//! address, whether a network is shared) is looked up, never stored twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use base::net::IpNet;
use base::{
    FloatingIpId, MacAddr, NetworkId, PortId, ProjectId, RouterId, SecurityGroupId, SecurityGroupRuleId,
    SubnetId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AddressKey, MemberKey, RbacPolicyId, SubnetPoolId, TombstoneKey};
use crate::logic::ipam::Pool;

/// `device_owner` of a router's interface.
pub const ROUTER_INTERFACE: &str = "network:router_interface";
/// `device_owner` of a router's gateway port.
pub const ROUTER_GATEWAY: &str = "network:router_gateway";
/// `device_owner` of a floating IP's own port.
pub const FLOATING_IP: &str = "network:floatingip";
/// `device_owner` of a network's metadata port.
pub const DISTRIBUTED: &str = "network:distributed";

store::resource! {
    /// A network.
    pub struct Network, table "networks", id NetworkId {
        unique: [],
        index: [project_id, name, external],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Name.
        pub name: String,
        /// Words about it.
        pub description: String,
        /// Whether it forwards.
        pub admin_state_up: bool,
        /// `router:external`.
        pub external: bool,
        /// MTU offered to guests.
        pub mtu: u32,
        /// Whether new ports have port security.
        pub port_security_enabled: bool,
        /// `geneve`, `flat` or `vlan`.
        pub network_type: String,
        /// Physical network of a provider network.
        pub physical_network: Option<String>,
        /// VLAN id of a provider network; the tunnel key shown for geneve.
        pub segmentation_id: Option<u32>,
        /// Whether it is the default external network.
        pub is_default: bool,
        /// DNS domain.
        pub dns_domain: String,
        /// Zones asked for.
        pub availability_zone_hints: Vec<String>,
        /// Tags.
        pub tags: BTreeSet<String>,
    }
}

store::resource! {
    /// Who may use another project's network or external network.
    pub struct RbacPolicy, table "network_rbac", id RbacPolicyId {
        unique: [[object_id, target_project, action]],
        index: [project_id, object_id, target_project, action],
    } {
        /// Owner of the policy.
        pub project_id: ProjectId,
        /// `network`.
        pub object_type: String,
        /// The network.
        pub object_id: NetworkId,
        /// `access_as_shared` or `access_as_external`.
        pub action: String,
        /// A project's id, or `*`.
        pub target_project: String,
    }
}

/// A route: destination prefix and next hop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Through whom.
    pub nexthop: IpAddr,
}

store::resource! {
    /// A subnet.
    pub struct Subnet, table "subnets", id SubnetId {
        unique: [],
        index: [project_id, network_id, name, subnetpool_id],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Its network.
        pub network_id: NetworkId,
        /// Name.
        pub name: String,
        /// Words about it.
        pub description: String,
        /// 4 or 6.
        pub ip_version: u8,
        /// Prefix.
        pub cidr: IpNet,
        /// Gateway.
        pub gateway_ip: Option<IpAddr>,
        /// Whether guests get their address by DHCP.
        pub enable_dhcp: bool,
        /// Name servers.
        pub dns_nameservers: Vec<IpAddr>,
        /// Where addresses are taken from.
        pub allocation_pools: Vec<Pool>,
        /// Routes offered to guests.
        pub host_routes: Vec<Route>,
        /// `slaac`, `dhcpv6-stateful`, `dhcpv6-stateless`.
        pub ipv6_ra_mode: Option<String>,
        /// The same.
        pub ipv6_address_mode: Option<String>,
        /// The pool the prefix was taken from.
        pub subnetpool_id: Option<SubnetPoolId>,
        /// Device owners that take addresses from here.
        pub service_types: Vec<String>,
        /// Whether fixed addresses are published in DNS.
        pub dns_publish_fixed_ip: bool,
        /// Tags.
        pub tags: BTreeSet<String>,
    }
}

store::resource! {
    /// A pool of prefixes for subnets.
    pub struct SubnetPool, table "subnetpools", id SubnetPoolId {
        unique: [],
        index: [project_id, name, shared],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Name.
        pub name: String,
        /// Words about it.
        pub description: String,
        /// 4 or 6.
        pub ip_version: u8,
        /// Prefixes, compacted.
        pub prefixes: Vec<IpNet>,
        /// Prefix length where none is asked for.
        pub default_prefixlen: u8,
        /// Shortest prefix length.
        pub min_prefixlen: u8,
        /// Longest prefix length.
        pub max_prefixlen: u8,
        /// Addresses (IPv4) or /64s (IPv6) a project may take.
        pub default_quota: Option<i64>,
        /// Whether other projects may use it.
        pub shared: bool,
        /// Whether it is the default of its IP version.
        pub is_default: bool,
        /// Tags.
        pub tags: BTreeSet<String>,
    }
}

/// A fixed address of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FixedIp {
    /// Its subnet.
    pub subnet_id: SubnetId,
    /// The address.
    pub ip_address: IpAddr,
}

/// An address pair a port may send from besides its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPair {
    /// Address or prefix, as written.
    pub ip_address: String,
    /// MAC; the port's own where none was given.
    pub mac_address: MacAddr,
}

/// A DHCP option of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DhcpOption {
    /// Name, e.g. `bootfile-name`.
    pub opt_name: String,
    /// Value.
    pub opt_value: Option<String>,
    /// 4 or 6.
    #[serde(default = "four")]
    pub ip_version: u8,
}

fn four() -> u8 {
    4
}

store::resource! {
    /// A port.
    pub struct Port, table "ports", id PortId {
        unique: [[network_id, mac_address]],
        index: [project_id, network_id, device_id, device_owner, name, status],
    } {
        /// Owner; empty for ports the cloud made for itself.
        pub project_id: ProjectId,
        /// Its network.
        pub network_id: NetworkId,
        /// Name.
        pub name: String,
        /// Words about it.
        pub description: String,
        /// MAC.
        pub mac_address: MacAddr,
        /// Whether it forwards.
        pub admin_state_up: bool,
        /// `ACTIVE`, `DOWN` or `N/A`.
        pub status: String,
        /// What it belongs to.
        pub device_id: String,
        /// What kind of thing that is.
        pub device_owner: String,
        /// Addresses.
        pub fixed_ips: Vec<FixedIp>,
        /// Groups.
        pub security_groups: BTreeSet<SecurityGroupId>,
        /// Further addresses it may use.
        pub allowed_address_pairs: Vec<AddressPair>,
        /// Whether anti-spoofing and security groups hold.
        pub port_security_enabled: bool,
        /// `binding:host_id`; empty = unbound.
        pub host_id: String,
        /// `binding:vnic_type`.
        pub vnic_type: String,
        /// `binding:profile`.
        pub binding_profile: BTreeMap<String, serde_json::Value>,
        /// DHCP options.
        pub extra_dhcp_opts: Vec<DhcpOption>,
        /// Host name in DNS.
        pub dns_name: String,
        /// Tags.
        pub tags: BTreeSet<String>,
    }
}

store::resource! {
    /// An address in use. Its key is (subnet, address): the store's primary key keeps two ports from one address.
    pub struct Allocation, table "ip_allocations", id AddressKey {
        unique: [],
        index: [subnet_id, network_id, port_id],
    } {
        /// The subnet.
        pub subnet_id: SubnetId,
        /// Its network.
        pub network_id: NetworkId,
        /// Who uses it.
        pub port_id: PortId,
        /// The address.
        pub ip: IpAddr,
    }
}

store::resource! {
    /// A port's membership in a security group.
    pub struct Member, table "security_group_members", id MemberKey {
        unique: [],
        index: [security_group_id, port_id],
    } {
        /// The group.
        pub security_group_id: SecurityGroupId,
        /// The port.
        pub port_id: PortId,
    }
}

store::resource! {
    /// A router. Its interfaces and its gateway are ports with its id as `device_id`.
    pub struct Router, table "routers", id RouterId {
        unique: [],
        index: [project_id, name, gateway_network_id],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Name.
        pub name: String,
        /// Words about it.
        pub description: String,
        /// Whether it forwards.
        pub admin_state_up: bool,
        /// External network of the gateway.
        pub gateway_network_id: Option<NetworkId>,
        /// Port of the gateway.
        pub gateway_port_id: Option<PortId>,
        /// Whether guests without floating IP go out by the gateway's address.
        pub enable_snat: bool,
        /// Static routes.
        pub routes: Vec<Route>,
        /// Kept for clients that set it; OVN routers are distributed.
        pub distributed: bool,
        /// Kept for clients that set it; OVN gateways are highly available.
        pub ha: bool,
        /// Zones asked for.
        pub availability_zone_hints: Vec<String>,
        /// Tags.
        pub tags: BTreeSet<String>,
    }
}

store::resource! {
    /// A floating IP.
    pub struct FloatingIp, table "floatingips", id FloatingIpId {
        unique: [[port_id, fixed_ip_address, floating_network_id]],
        index: [project_id, floating_network_id, port_id, router_id, floating_port_id, status],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// External network.
        pub floating_network_id: NetworkId,
        /// External address.
        pub floating_ip_address: IpAddr,
        /// The port that holds the external address.
        pub floating_port_id: PortId,
        /// Where it leads.
        pub port_id: Option<PortId>,
        /// See `port_id`.
        pub fixed_ip_address: Option<IpAddr>,
        /// Through which router.
        pub router_id: Option<RouterId>,
        /// `ACTIVE` where it leads somewhere and the backend has it, else `DOWN`.
        pub status: String,
        /// Words about it.
        pub description: String,
        /// DNS name.
        pub dns_name: String,
        /// DNS domain.
        pub dns_domain: String,
        /// Tags.
        pub tags: BTreeSet<String>,
    }
}

store::resource! {
    /// A security group.
    pub struct SecurityGroup, table "security_groups", id SecurityGroupId {
        unique: [[default_of]],
        index: [project_id, name],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Name.
        pub name: String,
        /// Words about it.
        pub description: String,
        /// Whether flows are tracked.
        pub stateful: bool,
        /// The project whose default group it is.
        pub default_of: Option<ProjectId>,
        /// Tags.
        pub tags: BTreeSet<String>,
    }
}

store::resource! {
    /// A rule of a security group.
    pub struct SecurityGroupRule, table "security_group_rules", id SecurityGroupRuleId {
        unique: [[security_group_id, fingerprint]],
        index: [project_id, security_group_id, remote_group_id],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Its group.
        pub security_group_id: SecurityGroupId,
        /// `ingress` or `egress`.
        pub direction: String,
        /// `IPv4` or `IPv6`.
        pub ethertype: String,
        /// Name or number.
        pub protocol: Option<String>,
        /// First port or ICMP type.
        pub port_range_min: Option<u16>,
        /// Last port or ICMP code.
        pub port_range_max: Option<u16>,
        /// Remote prefix, as written.
        pub remote_ip_prefix: Option<IpNet>,
        /// Remote group.
        pub remote_group_id: Option<SecurityGroupId>,
        /// Words about it.
        pub description: String,
        /// The same for rules that mean the same.
        pub fingerprint: String,
    }
}

store::resource! {
    /// A rule that new security groups start with.
    pub struct DefaultRule, table "default_security_group_rules", id SecurityGroupRuleId {
        unique: [[fingerprint]],
        index: [direction],
    } {
        /// `ingress` or `egress`.
        pub direction: String,
        /// `IPv4` or `IPv6`.
        pub ethertype: String,
        /// Name or number.
        pub protocol: Option<String>,
        /// First port or ICMP type.
        pub port_range_min: Option<u16>,
        /// Last port or ICMP code.
        pub port_range_max: Option<u16>,
        /// Remote prefix.
        pub remote_ip_prefix: Option<IpNet>,
        /// A group's id, or `PARENT` for the group the rule ends up in.
        pub remote_group_id: Option<String>,
        /// Whether default groups get it.
        pub used_in_default_sg: bool,
        /// Whether other groups get it.
        pub used_in_non_default_sg: bool,
        /// Words about it.
        pub description: String,
        /// The same for rules that mean the same and are used in the same groups.
        pub fingerprint: String,
    }
}

store::resource! {
    /// Limits of a project that differ from the defaults.
    pub struct Quota, table "network_quotas", id ProjectId {
        unique: [],
        index: [],
    } {
        /// Limit by resource; −1 = none.
        pub limits: BTreeMap<String, i64>,
    }
}

store::resource! {
    /// Something the backend may still hold though its row is gone. Removed once the backend confirmed.
    pub struct Tombstone, table "network_tombstones", id TombstoneKey {
        unique: [],
        index: [],
    } {
        /// Whose request removed it, for the log; empty where it is not known.
        pub reason: String,
    }
}
