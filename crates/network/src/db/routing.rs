//! Routers' ports and where floating IPs lead.

use std::net::IpAddr;

use base::{Error, NetworkId, PortId, Result, RouterId, SubnetId};
use contract::net::Key;
use store::{Query, Tx};

use super::{bury, wake};
use crate::logic::ipam::same_version;
use crate::model::{FixedIp, FloatingIp, Port, ROUTER_INTERFACE, Router, Subnet};

/// All ports of a router: interfaces and gateway.
pub fn ports_of(tx: &mut Tx<'_>, router: RouterId) -> Result<Vec<Port>> {
    let rows = tx.list::<Port>(&Query::new().eq("device_id", router.to_string()))?;
    Ok(rows.into_iter().filter(|p| super::ports::trusted(&p.device_owner)).collect())
}

/// The router's interfaces.
pub fn interfaces_of(tx: &mut Tx<'_>, router: RouterId) -> Result<Vec<Port>> {
    Ok(ports_of(tx, router)?.into_iter().filter(|p| p.device_owner == ROUTER_INTERFACE).collect())
}

/// A change of a router's ports is one of the router: the item the backend holds is the router's.
pub fn touch(tx: &mut Tx<'_>, router: &mut Router) -> Result<()> {
    tx.update(router)?;
    wake(tx, Key::Router(router.id))
}

/// The router through which an address of `subnet` reaches the external network; the one that is the subnet's gateway
/// first.
pub fn router_between(tx: &mut Tx<'_>, external: NetworkId, subnet: &Subnet) -> Result<Option<RouterId>> {
    let query = Query::new().eq("network_id", subnet.network_id).eq("device_owner", ROUTER_INTERFACE);
    let mut found: Vec<(bool, RouterId)> = Vec::new();
    for port in tx.list::<Port>(&query)? {
        let Some(ip) = port.fixed_ips.iter().find(|f| f.subnet_id == subnet.id) else { continue };
        let Ok(id) = port.device_id.parse::<RouterId>() else { continue };
        let router = tx.get::<Router>(&id)?;
        if router.is_some_and(|r| r.gateway_network_id == Some(external)) {
            found.push((Some(ip.ip_address) != subnet.gateway_ip, id));
        }
    }
    found.sort();
    Ok(found.first().map(|(_, id)| *id))
}

/// Which of the port's IPv4 addresses a floating IP shall lead to.
///
/// # Errors
/// `BadRequest` where the port has none, several and none was named, or not the named one.
pub fn target_address(port: &Port, wanted: Option<IpAddr>) -> Result<FixedIp> {
    let bad =
        |text: String| Error::bad_request(format!("Bad floatingip request: {text}.")).code("BadRequest");
    let v4: Vec<&FixedIp> = port.fixed_ips.iter().filter(|f| f.ip_address.is_ipv4()).collect();
    match wanted {
        Some(ip) => port
            .fixed_ips
            .iter()
            .find(|f| f.ip_address == ip && same_version(f.ip_address, ip))
            .copied()
            .ok_or_else(|| bad(format!("Port {} does not have fixed ip {ip}", port.id))),
        None => match v4.as_slice() {
            [] => Err(bad(format!(
                "Cannot add floating IP to port {} that has no fixed IPv4 addresses",
                port.id
            ))),
            [one] => Ok(**one),
            _ => Err(bad(format!(
                "Port {} has multiple fixed IPv4 addresses.  Must provide a specific IPv4 address when assigning a floating IP",
                port.id
            ))),
        },
    }
}

/// Leads a floating IP to a port's address. The row is not written.
///
/// # Errors
/// `BadRequest`, `ExternalGatewayForFloatingIPNotFound` (404), `FloatingIPPortAlreadyAssociated` (409).
pub fn associate(tx: &mut Tx<'_>, fip: &mut FloatingIp, port: &Port, wanted: Option<IpAddr>) -> Result<()> {
    let fixed = target_address(port, wanted)?;
    let subnet = tx.need::<Subnet>(&fixed.subnet_id)?;
    let external = fip.floating_network_id;
    let Some(router) = router_between(tx, external, &subnet)? else {
        return Err(Error::not_found(format!(
            "External network {external} is not reachable from subnet {}.  Therefore, cannot associate Port {} with a Floating IP.",
            subnet.id, port.id
        ))
        .code("ExternalGatewayForFloatingIPNotFound"));
    };
    for other in tx.list::<FloatingIp>(&Query::new().eq("port_id", port.id))? {
        if other.id != fip.id
            && other.fixed_ip_address == Some(fixed.ip_address)
            && other.floating_network_id == external
        {
            return Err(Error::conflict(format!(
                "Cannot associate floating IP {} ({}) with port {} using fixed IP {}, as that fixed IP already has a floating IP on external network {external}.",
                fip.floating_ip_address, fip.id, port.id, fixed.ip_address
            ))
            .code("FloatingIPPortAlreadyAssociated"));
        }
    }
    fip.port_id = Some(port.id);
    fip.fixed_ip_address = Some(fixed.ip_address);
    fip.router_id = Some(router);
    Ok(())
}

/// Makes a floating IP lead nowhere. The row is not written.
pub fn disassociate(fip: &mut FloatingIp) {
    fip.port_id = None;
    fip.fixed_ip_address = None;
    fip.router_id = None;
}

fn detach(tx: &mut Tx<'_>, mut fip: FloatingIp) -> Result<()> {
    disassociate(&mut fip);
    tx.update(&mut fip)?;
    wake(tx, Key::FloatingIp(fip.id))
}

/// Removes a floating IP and the port that holds its address.
pub fn delete_floating(tx: &mut Tx<'_>, fip: &FloatingIp) -> Result<()> {
    tx.delete::<FloatingIp>(&fip.id)?;
    if let Some(port) = tx.get::<Port>(&fip.floating_port_id)? {
        super::ports::delete(tx, &port)?;
    }
    bury(tx, Key::FloatingIp(fip.id))
}

/// Takes all floating IPs off a port.
pub fn detach_port(tx: &mut Tx<'_>, port: PortId) -> Result<()> {
    for fip in tx.list::<FloatingIp>(&Query::new().eq("port_id", port))? {
        detach(tx, fip)?;
    }
    Ok(())
}

/// Takes the floating IPs off one address of a port.
pub fn detach_address(tx: &mut Tx<'_>, port: PortId, ip: IpAddr) -> Result<()> {
    for fip in tx.list::<FloatingIp>(&Query::new().eq("port_id", port))? {
        if fip.fixed_ip_address == Some(ip) {
            detach(tx, fip)?;
        }
    }
    Ok(())
}

/// Whether a floating IP leads through this router to an address of this subnet.
pub fn needs_interface(tx: &mut Tx<'_>, router: RouterId, subnet: SubnetId) -> Result<bool> {
    for fip in tx.list::<FloatingIp>(&Query::new().eq("router_id", router))? {
        if let Some(port) = fip.port_id.map(|id| tx.get::<Port>(&id)).transpose()?.flatten()
            && port
                .fixed_ips
                .iter()
                .any(|f| f.subnet_id == subnet && Some(f.ip_address) == fip.fixed_ip_address)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
