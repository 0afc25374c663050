//! Making, changing and removing ports with everything that hangs on them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base::{Error, MacAddr, NetworkId, PortId, ProjectId, Result, SecurityGroupId, SubnetId};
use contract::net::Key;
use store::{Meta, Query, Tx};

use super::{bury, ipam, routing, wake};
use crate::Env;
use crate::ids::MemberKey;
use crate::logic::ipam as addresses;
use crate::logic::ipam::invalid_input;
use crate::model::{FixedIp, Member, Network, Port, ROUTER_INTERFACE, Subnet};

/// A wanted fixed address: in a subnet, of a value, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// In this subnet.
    pub subnet: Option<SubnetId>,
    /// This address.
    pub ip: Option<IpAddr>,
}

/// A port without addresses, to be filled in and given to [`create`].
pub fn blank(env: &Env, net: &Network, project: ProjectId) -> Port {
    Port {
        id: PortId::random(&env.entropy),
        meta: Meta::default(),
        project_id: project,
        network_id: net.id,
        name: String::new(),
        description: String::new(),
        mac_address: MacAddr::random(&env.entropy),
        admin_state_up: true,
        status: "DOWN".into(),
        device_id: String::new(),
        device_owner: String::new(),
        fixed_ips: Vec::new(),
        security_groups: BTreeSet::new(),
        allowed_address_pairs: Vec::new(),
        port_security_enabled: net.port_security_enabled,
        host_id: String::new(),
        vnic_type: "normal".into(),
        binding_profile: Default::default(),
        extra_dhcp_opts: Vec::new(),
        dns_name: String::new(),
        tags: BTreeSet::new(),
    }
}

/// Whether the cloud itself owns ports of this owner: no port security, no groups.
pub fn trusted(device_owner: &str) -> bool {
    device_owner.starts_with("network:")
}

/// 409 for a MAC that another port of the network has.
pub fn mac_in_use(net: NetworkId, mac: MacAddr) -> Error {
    let text = format!("Unable to complete operation for network {net}. The mac address {mac} is in use.");
    Error::conflict(text).code("MacAddressInUse")
}

fn exhausted(net: NetworkId) -> Error {
    Error::conflict(format!("No more IP addresses available on network {net}."))
        .code("IpAddressGenerationFailure")
}

/// Writes the port with its addresses and memberships. `given_mac`: the MAC is the caller's choice.
///
/// # Errors
/// As [`allocate`], and `MacAddressInUse`.
pub fn create(
    tx: &mut Tx<'_>,
    env: &Env,
    subnets: &[Subnet],
    mut port: Port,
    wants: Option<&[Want]>,
    given_mac: bool,
) -> Result<Port> {
    let same_mac = |tx: &mut Tx<'_>, mac: &MacAddr| {
        tx.count::<Port>(&Query::new().eq("network_id", port.network_id).eq("mac_address", mac))
    };
    let mut tries = 0;
    while same_mac(tx, &port.mac_address)? > 0 {
        tries += 1;
        if given_mac || tries > 16 {
            return Err(mac_in_use(port.network_id, port.mac_address));
        }
        port.mac_address = MacAddr::random(&env.entropy);
    }
    port.fixed_ips = allocate(tx, env, subnets, &port, wants, &[])?;
    tx.insert(&mut port)?;
    for group in &port.security_groups {
        join(tx, *group, port.id)?;
    }
    wake(tx, Key::Port(port.id))?;
    Ok(port)
}

/// As [`create`] for ports of one network that take any address, in as few statements as can be.
///
/// # Errors
/// As [`create`]; then the transaction must not be committed.
pub fn create_many(
    tx: &mut Tx<'_>,
    env: &Env,
    subnets: &[Subnet],
    mut ports: Vec<Port>,
) -> Result<Vec<Port>> {
    let Some(net) = ports.first().map(|p| p.network_id) else { return Ok(ports) };
    let v6 = |s: &&Subnet| s.cidr.network().is_ipv6();
    let several = subnets.iter().filter(v6).count() > 1 || subnets.iter().filter(|s| !v6(s)).count() > 1;
    let plain =
        |s: &Subnet| s.service_types.is_empty() && !addresses::is_auto(s.ipv6_address_mode.as_deref());
    if several || ports.len() < 2 || !subnets.iter().all(plain) {
        return ports.into_iter().map(|port| create(tx, env, subnets, port, None, false)).collect();
    }
    // Whether another port of the network has one of these is not asked: of 50,000 ports in a network, one in 300 new ones
    // meets one of them. The database refuses it, and the transaction is run again with others.
    let mut seen = BTreeSet::new();
    for port in &mut ports {
        while !seen.insert(port.mac_address) {
            port.mac_address = MacAddr::random(&env.entropy);
        }
    }
    for subnet in subnets {
        let ids: Vec<PortId> = ports.iter().map(|p| p.id).collect();
        let ips = ipam::take_many(tx, &env.entropy, subnet, &ids)?.ok_or_else(|| exhausted(net))?;
        for (port, ip) in ports.iter_mut().zip(ips) {
            port.fixed_ips.push(ip);
        }
    }
    tx.insert_many(&mut ports)?;
    let of = |p: &Port| p.security_groups.iter().map(|g| member(*g, p.id)).collect::<Vec<_>>();
    let mut members: Vec<Member> = ports.iter().flat_map(of).collect();
    tx.insert_many(&mut members)?;
    for port in &ports {
        wake(tx, Key::Port(port.id))?;
    }
    Ok(ports)
}

fn member(group: SecurityGroupId, port: PortId) -> Member {
    Member { id: MemberKey::of(group, port), meta: Meta::default(), security_group_id: group, port_id: port }
}

fn join(tx: &mut Tx<'_>, group: SecurityGroupId, port: PortId) -> Result<()> {
    tx.insert(&mut member(group, port))
}

/// Replaces the port's groups.
pub fn set_groups(tx: &mut Tx<'_>, port: &mut Port, groups: BTreeSet<SecurityGroupId>) -> Result<()> {
    for gone in port.security_groups.difference(&groups) {
        tx.delete::<Member>(&MemberKey::of(*gone, port.id))?;
    }
    for new in groups.difference(&port.security_groups) {
        join(tx, *new, port.id)?;
    }
    port.security_groups = groups;
    Ok(())
}

/// Finds the subnet of one wanted address, Neutron's way.
fn subnet_for<'a>(subnets: &'a [Subnet], port: &Port, want: &Want) -> Result<&'a Subnet> {
    let net = port.network_id;
    let subnet = match (want.subnet, want.ip) {
        (Some(id), _) => subnets.iter().find(|s| s.id == id).ok_or_else(|| {
            invalid_input(format!(
                "Failed to create port on network {net}, because fixed_ips included invalid subnet {id}"
            ))
        })?,
        (None, Some(ip)) => subnets.iter().find(|s| s.cidr.contains(&ip)).ok_or_else(|| {
            let text =
                format!("IP address {ip} is not a valid IP for any of the subnets on the specified network.");
            Error::bad_request(text).code("InvalidIpForNetwork")
        })?,
        (None, None) => return Err(invalid_input("IP allocation requires subnet_id or ip_address")),
    };
    if let Some(ip) = want.ip.filter(|ip| !addresses::usable(&subnet.cidr, *ip)) {
        let text = format!("IP address {ip} is not a valid IP for the specified subnet.");
        return Err(Error::bad_request(text).code("InvalidIpForSubnet"));
    }
    let auto = addresses::is_auto(subnet.ipv6_address_mode.as_deref());
    if let Some(ip) = want.ip.filter(|_| auto && !trusted(&port.device_owner))
        && Some(ip) != eui64(subnet, port.mac_address)
    {
        let text = format!(
            "IPv6 address {ip} cannot be directly assigned to a port on subnet {} as the subnet is configured for automatic addresses",
            subnet.id
        );
        return Err(Error::bad_request(text).code("AllocationOnAutoAddressSubnet"));
    }
    Ok(subnet)
}

/// The address the MAC makes in a SLAAC subnet.
pub fn eui64(subnet: &Subnet, mac: MacAddr) -> Option<IpAddr> {
    match subnet.cidr.network() {
        IpAddr::V6(prefix) => Some(IpAddr::V6(mac.eui64(prefix))),
        IpAddr::V4(_) => None,
    }
}

/// Takes the port's addresses. `wants` of `None`: one of each IP version the network has; addresses of `kept` are the
/// port's already. Subnets with automatic addresses are always included, except for router interfaces.
///
/// # Errors
/// `InvalidInput`, `InvalidIpForNetwork`, `InvalidIpForSubnet`, `AllocationOnAutoAddressSubnet` (400),
/// `IpAddressAlreadyAllocated`, `IpAddressGenerationFailure` (409).
pub fn allocate(
    tx: &mut Tx<'_>,
    env: &Env,
    subnets: &[Subnet],
    port: &Port,
    wants: Option<&[Want]>,
    kept: &[FixedIp],
) -> Result<Vec<FixedIp>> {
    let serves = |s: &&Subnet| {
        s.service_types.is_empty()
            || s.service_types.iter().any(|t| port.device_owner.starts_with(t.as_str()))
    };
    let auto = |s: &Subnet| addresses::is_auto(s.ipv6_address_mode.as_deref());
    let mut ips = kept.to_vec();
    match wants {
        Some(wants) => {
            for want in wants {
                let subnet = subnet_for(subnets, port, want)?;
                ips.push(match want.ip {
                    Some(ip) => ipam::take(tx, subnet, port.id, ip)?,
                    None if auto(subnet) && !trusted(&port.device_owner) => {
                        match eui64(subnet, port.mac_address) {
                            Some(ip) => ipam::take(tx, subnet, port.id, ip)?,
                            None => return Err(exhausted(port.network_id)),
                        }
                    }
                    None => ipam::take_any(tx, &env.entropy, subnet, port.id)?.ok_or_else(|| {
                        let text = format!("No more IP addresses available for subnet {}.", subnet.id);
                        Error::conflict(text).code("IpAddressGenerationFailure")
                    })?,
                });
            }
        }
        None => {
            for v6 in [false, true] {
                let mut candidates =
                    subnets.iter().filter(|s| s.cidr.network().is_ipv6() == v6 && !auto(s)).peekable();
                if candidates.peek().is_none() {
                    continue;
                }
                let mut found = None;
                for subnet in candidates.filter(serves) {
                    found = ipam::take_any(tx, &env.entropy, subnet, port.id)?;
                    if found.is_some() {
                        break;
                    }
                }
                ips.push(found.ok_or_else(|| exhausted(port.network_id))?);
            }
        }
    }
    if port.device_owner != ROUTER_INTERFACE {
        for subnet in subnets.iter().filter(|s| auto(s)).filter(serves) {
            let has = ips.iter().any(|f| f.subnet_id == subnet.id);
            if let Some(ip) = eui64(subnet, port.mac_address).filter(|_| !has) {
                ips.push(ipam::take(tx, subnet, port.id, ip)?);
            }
        }
    }
    Ok(ips)
}

/// Replaces the port's addresses; those that stay keep their rows. A subnet asked for without an address keeps the
/// address the port has there.
///
/// # Errors
/// As [`allocate`].
pub fn readdress(
    tx: &mut Tx<'_>,
    env: &Env,
    subnets: &[Subnet],
    port: &mut Port,
    wants: &[Want],
) -> Result<()> {
    let mut old = port.fixed_ips.clone();
    let mut kept = Vec::new();
    let mut new = Vec::new();
    for pass in [true, false] {
        for want in wants.iter().filter(|w| w.ip.is_some() == pass) {
            let fits = |f: &FixedIp| {
                want.subnet.is_none_or(|s| s == f.subnet_id) && want.ip.is_none_or(|ip| ip == f.ip_address)
            };
            match old.iter().position(fits) {
                Some(at) => kept.push(old.remove(at)),
                None => new.push(*want),
            }
        }
    }
    for gone in &old {
        ipam::release(tx, gone)?;
        routing::detach_address(tx, port.id, gone.ip_address)?;
    }
    port.fixed_ips = allocate(tx, env, subnets, port, Some(&new), &kept)?;
    Ok(())
}

/// Removes the port, its addresses and memberships, and takes floating IPs off it.
pub fn delete(tx: &mut Tx<'_>, port: &Port) -> Result<()> {
    for ip in &port.fixed_ips {
        ipam::release(tx, ip)?;
    }
    for group in &port.security_groups {
        tx.delete::<Member>(&MemberKey::of(*group, port.id))?;
    }
    routing::detach_port(tx, port.id)?;
    tx.delete::<Port>(&port.id)?;
    bury(tx, Key::Port(port.id))
}

/// Writes a changed port and has the backend learn of it.
pub fn update(tx: &mut Tx<'_>, port: &mut Port) -> Result<()> {
    tx.update(port)?;
    wake(tx, Key::Port(port.id))
}
