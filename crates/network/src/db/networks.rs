//! Networks with their subnets and metadata ports.

use base::{Error, NetworkId, ProjectId, Result};
use contract::net::Key;
use store::{Query, Tx};

use super::{bury, ipam, ports, routing, wake};
use crate::Env;
use crate::logic::ipam as addresses;
use crate::model::{Allocation, DISTRIBUTED, FloatingIp, Network, Port, RbacPolicy, Subnet};

/// The subnets of a network, oldest first.
pub fn subnets_of(tx: &mut Tx<'_>, net: NetworkId) -> Result<Vec<Subnet>> {
    let mut rows = tx.list::<Subnet>(&Query::new().eq("network_id", net))?;
    rows.sort_by_key(|s| (s.meta.created_at, s.id));
    Ok(rows)
}

/// A change of a subnet is one of its network: the item the backend holds is the network's.
pub fn touch(tx: &mut Tx<'_>, id: NetworkId) -> Result<()> {
    let mut net = tx.need::<Network>(&id)?;
    tx.update(&mut net)?;
    wake(tx, Key::Network(id))
}

/// The network's metadata port.
pub fn metadata_port(tx: &mut Tx<'_>, net: NetworkId) -> Result<Option<Port>> {
    let query = Query::new().eq("network_id", net).eq("device_owner", DISTRIBUTED);
    Ok(tx.list::<Port>(&query)?.into_iter().next())
}

/// Gives the metadata port an address in this subnet, and makes the port if it is the network's first DHCP subnet. A
/// subnet without a free address goes without metadata, as in Neutron.
pub fn add_metadata(tx: &mut Tx<'_>, env: &Env, net: &Network, subnet: &Subnet) -> Result<()> {
    let found = metadata_port(tx, net.id)?;
    let fresh = found.is_none();
    let mut port = found.unwrap_or_else(|| {
        let mut port = ports::blank(env, net, ProjectId::new(""));
        port.device_owner = DISTRIBUTED.into();
        port.device_id = format!("ovnmeta-{}", net.id);
        port.port_security_enabled = false;
        port
    });
    let auto = addresses::is_auto(subnet.ipv6_address_mode.as_deref());
    let taken = match ports::eui64(subnet, port.mac_address).filter(|_| auto) {
        Some(ip) => Some(ipam::take(tx, subnet, port.id, ip)?),
        None => ipam::take_first(tx, subnet, port.id)?,
    };
    let Some(ip) = taken else { return Ok(()) };
    port.fixed_ips.push(ip);
    if fresh {
        tx.insert(&mut port)?;
    } else {
        tx.update(&mut port)?;
    }
    wake(tx, Key::Port(port.id))
}

/// Takes the metadata port's address in this subnet back, and the port with its last address.
pub fn drop_metadata(tx: &mut Tx<'_>, subnet: &Subnet) -> Result<()> {
    let Some(mut port) = metadata_port(tx, subnet.network_id)? else { return Ok(()) };
    let Some(at) = port.fixed_ips.iter().position(|f| f.subnet_id == subnet.id) else { return Ok(()) };
    let ip = port.fixed_ips.remove(at);
    ipam::release(tx, &ip)?;
    if port.fixed_ips.is_empty() { ports::delete(tx, &port) } else { ports::update(tx, &mut port) }
}

/// Removes a network with its subnets, metadata port and policies.
///
/// # Errors
/// `NetworkInUse` where a port of anyone is on it.
pub fn delete(tx: &mut Tx<'_>, net: &Network) -> Result<()> {
    // Floating IPs that lead nowhere go with their network, as in Neutron.
    for fip in tx.list::<FloatingIp>(&Query::new().eq("floating_network_id", net.id).is_null("port_id"))? {
        routing::delete_floating(tx, &fip)?;
    }
    let rows = tx.list::<Port>(&Query::new().eq("network_id", net.id))?;
    let mut used: Vec<String> =
        rows.iter().filter(|p| p.device_owner != DISTRIBUTED).map(|p| p.id.to_string()).collect();
    if !used.is_empty() {
        used.truncate(10);
        return Err(in_use(net.id, &used));
    }
    for port in &rows {
        ports::delete(tx, port)?;
    }
    for subnet in subnets_of(tx, net.id)? {
        tx.delete::<Subnet>(&subnet.id)?;
    }
    for policy in tx.list::<RbacPolicy>(&Query::new().eq("object_id", net.id))? {
        tx.delete::<RbacPolicy>(&policy.id)?;
    }
    tx.delete::<Network>(&net.id)?;
    bury(tx, Key::Network(net.id))
}

fn in_use(net: NetworkId, ports: &[String]) -> Error {
    Error::conflict(format!(
        "Unable to complete operation on network {net}. There are one or more ports still in use on the network, id for these ports is {}.",
        ports.join(",")
    ))
    .code("NetworkInUse")
}

/// Removes a subnet. Ports that have automatic addresses in it lose them.
///
/// # Errors
/// `SubnetInUse` where a port needs an address of it.
pub fn delete_subnet(tx: &mut Tx<'_>, subnet: &Subnet) -> Result<()> {
    drop_metadata(tx, subnet)?;
    let auto = addresses::is_auto(subnet.ipv6_address_mode.as_deref());
    let users = tx.list::<Allocation>(&Query::new().eq("subnet_id", subnet.id))?;
    for user in users {
        let Some(mut port) = tx.get::<Port>(&user.port_id)? else {
            tx.delete::<Allocation>(&user.id)?;
            continue;
        };
        if !auto || ports::trusted(&port.device_owner) {
            return Err(Error::conflict(format!(
                "Unable to complete operation on subnet {}: One or more ports have an IP allocation from this subnet.",
                subnet.id
            ))
            .code("SubnetInUse"));
        }
        port.fixed_ips.retain(|f| f.subnet_id != subnet.id);
        tx.delete::<Allocation>(&user.id)?;
        ports::update(tx, &mut port)?;
    }
    tx.delete::<Subnet>(&subnet.id)?;
    touch(tx, subnet.network_id)
}
