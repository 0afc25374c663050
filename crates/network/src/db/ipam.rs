//! Taking and giving back addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base::{Entropy, Error, PortId, Result};
use store::{Meta, Query, Tx};

use crate::ids::AddressKey;
use crate::logic::ipam;
use crate::model::{Allocation, FixedIp, Subnet};

/// Random picks before the pool is read whole: with half the pool in use, one in 250 requests reads it.
const PROBES: usize = 8;

fn allocation(subnet: &Subnet, port: PortId, ip: IpAddr) -> Allocation {
    Allocation {
        id: AddressKey::of(subnet.id, ip),
        meta: Meta::default(),
        subnet_id: subnet.id,
        network_id: subnet.network_id,
        port_id: port,
        ip,
    }
}

fn insert(tx: &mut Tx<'_>, subnet: &Subnet, port: PortId, ip: IpAddr) -> Result<FixedIp> {
    tx.insert(&mut allocation(subnet, port, ip))?;
    Ok(FixedIp { subnet_id: subnet.id, ip_address: ip })
}

/// A random address of the pools.
fn any(entropy: &Entropy, subnet: &Subnet, capacity: u128) -> Option<IpAddr> {
    let n = (u128::from(entropy.u64()) << 64 | u128::from(entropy.u64())) % capacity;
    ipam::nth(&subnet.allocation_pools, n)
}

/// Takes this address for the port.
///
/// # Errors
/// `IpAddressAlreadyAllocated` (409).
pub fn take(tx: &mut Tx<'_>, subnet: &Subnet, port: PortId, ip: IpAddr) -> Result<FixedIp> {
    if tx.get::<Allocation>(&AddressKey::of(subnet.id, ip))?.is_some() {
        let text = format!("IP address {ip} already allocated in subnet {}.", subnet.id);
        return Err(Error::conflict(text).code("IpAddressAlreadyAllocated"));
    }
    insert(tx, subnet, port, ip)
}

/// Takes any free address of the pools; `None` where all are in use.
pub fn take_any(
    tx: &mut Tx<'_>,
    entropy: &Entropy,
    subnet: &Subnet,
    port: PortId,
) -> Result<Option<FixedIp>> {
    let pools = &subnet.allocation_pools;
    let capacity = ipam::capacity(pools);
    if capacity == 0 {
        return Ok(None);
    }
    for _ in 0..PROBES {
        let Some(ip) = any(entropy, subnet, capacity) else { continue };
        if tx.get::<Allocation>(&AddressKey::of(subnet.id, ip))?.is_none() {
            return insert(tx, subnet, port, ip).map(Some);
        }
    }
    take_first(tx, subnet, port)
}

/// Takes any free address for each port; `None` where there are not enough.
pub fn take_many(
    tx: &mut Tx<'_>,
    entropy: &Entropy,
    subnet: &Subnet,
    ports: &[PortId],
) -> Result<Option<Vec<FixedIp>>> {
    let capacity = ipam::capacity(&subnet.allocation_pools);
    if capacity == 0 {
        return Ok(None);
    }
    let mut found: BTreeSet<IpAddr> = BTreeSet::new();
    for _ in 0..PROBES {
        let missing = ports.len() - found.len();
        if missing == 0 {
            break;
        }
        let probes: BTreeSet<IpAddr> = (0..missing).filter_map(|_| any(entropy, subnet, capacity)).collect();
        let keys = probes.iter().map(|ip| AddressKey::of(subnet.id, *ip).to_string());
        let taken: BTreeSet<String> =
            tx.list_ids::<Allocation>(&Query::new().is_in("id", keys))?.into_iter().collect();
        let free = |ip: &IpAddr| !taken.contains(&AddressKey::of(subnet.id, *ip).to_string());
        found.extend(probes.into_iter().filter(free));
    }
    let mut rows: Vec<Allocation> =
        ports.iter().zip(&found).map(|(port, ip)| allocation(subnet, *port, *ip)).collect();
    tx.insert_many(&mut rows)?;
    let mut ips: Vec<FixedIp> =
        rows.iter().map(|a| FixedIp { subnet_id: subnet.id, ip_address: a.ip }).collect();
    // A pool that is nearly full is searched for the rest.
    for port in ports.iter().skip(ips.len()) {
        match take_first(tx, subnet, *port)? {
            Some(ip) => ips.push(ip),
            None => return Ok(None),
        }
    }
    Ok(Some(ips))
}

/// Takes the lowest free address of the pools.
pub fn take_first(tx: &mut Tx<'_>, subnet: &Subnet, port: PortId) -> Result<Option<FixedIp>> {
    match ipam::first_free(&subnet.allocation_pools, &taken(tx, subnet)?) {
        None => Ok(None),
        Some(ip) => insert(tx, subnet, port, ip).map(Some),
    }
}

/// All addresses in use.
pub fn taken(tx: &mut Tx<'_>, subnet: &Subnet) -> Result<BTreeSet<IpAddr>> {
    let rows = tx.list::<Allocation>(&Query::new().eq("subnet_id", subnet.id))?;
    Ok(rows.into_iter().map(|a| a.ip).collect())
}

/// Gives one address back.
pub fn release(tx: &mut Tx<'_>, ip: &FixedIp) -> Result<()> {
    tx.delete::<Allocation>(&AddressKey::of(ip.subnet_id, ip.ip_address)).map(|_| ())
}
