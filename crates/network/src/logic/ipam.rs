//! Addresses of a subnet: validity, pools, what is free.
//!
//! Invariant: an address handed out by [`first_free`] or [`nth`] lies in a pool; a pool never holds the network's
//! address, the IPv4 broadcast address or the gateway.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base::net::IpNet;
use base::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Neutron's 400 with its usual words.
pub fn invalid_input(reason: impl AsRef<str>) -> Error {
    Error::bad_request(format!("Invalid input for operation: {}.", reason.as_ref())).code("InvalidInput")
}

/// A range of addresses, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
}

impl Pool {
    /// How many addresses it holds.
    pub fn size(&self) -> u128 {
        number(self.end).saturating_sub(number(self.start)).saturating_add(1)
    }

    /// Whether `ip` lies in it.
    pub fn holds(&self, ip: IpAddr) -> bool {
        same_version(ip, self.start) && (number(self.start)..=number(self.end)).contains(&number(ip))
    }
}

/// An address as a number.
pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address `n` of the same version as `like`.
pub fn address(like: IpAddr, n: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(n)),
    }
}

/// Whether both are IPv4 or both IPv6.
pub fn same_version(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

/// 4 or 6.
pub fn version(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 4 } else { 6 }
}

/// Whether the prefixes share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The gateway a subnet gets when none is asked for: its first host address.
pub fn default_gateway(cidr: &IpNet) -> IpAddr {
    let first = number(cidr.network());
    let single = cidr.network() == last(cidr);
    address(cidr.network(), if single { first } else { first + 1 })
}

/// The last address of the prefix (IPv4: broadcast).
fn last(cidr: &IpNet) -> IpAddr {
    match cidr {
        IpNet::V4(n) => IpAddr::V4(n.broadcast()),
        IpNet::V6(n) => IpAddr::V6(n.broadcast()),
    }
}

/// Whether `ip` may be a gateway or fixed address of `cidr`: inside, not the network's own address (IPv6: the
/// subnet-router anycast address), not the IPv4 broadcast. /31, /32, /127 and /128 have no such reserved addresses.
pub fn usable(cidr: &IpNet, ip: IpAddr) -> bool {
    if !same_version(cidr.network(), ip) || !cidr.contains(&ip) {
        return false;
    }
    if cidr.max_prefix_len() - cidr.prefix_len() <= 1 {
        return true;
    }
    ip != cidr.network() && !(ip.is_ipv4() && ip == last(cidr))
}

/// The pools a subnet gets when none are asked for: everything usable but the gateway.
pub fn default_pools(cidr: &IpNet, gateway: Option<IpAddr>) -> Vec<Pool> {
    let net = cidr.network();
    let (low, high) = (number(net), number(last(cidr)));
    if low == high {
        return if gateway == Some(net) { Vec::new() } else { vec![Pool { start: net, end: net }] };
    }
    let (first, end) = (low + 1, if net.is_ipv4() { high - 1 } else { high });
    if first > end || (net.is_ipv4() && first == end && cidr.prefix_len() == 31) {
        return Vec::new();
    }
    let pool = |a: u128, b: u128| Pool { start: address(net, a), end: address(net, b) };
    match gateway.filter(|g| same_version(*g, net)).map(number).filter(|g| (first..=end).contains(g)) {
        None => vec![pool(first, end)],
        Some(g) => {
            let mut pools = Vec::new();
            if g > first {
                pools.push(pool(first, g - 1));
            }
            if g < end {
                pools.push(pool(g + 1, end));
            }
            pools
        }
    }
}

/// Checks pools against their subnet, Neutron's way.
///
/// # Errors
/// `InvalidAllocationPool`, `OutOfBoundsAllocationPool` (400), `OverlappingAllocationPools`,
/// `GatewayConflictWithAllocationPools` (409).
pub fn check_pools(cidr: &IpNet, pools: &[Pool], gateway: Option<IpAddr>) -> Result<()> {
    let show = |p: &Pool| format!("{}-{}", p.start, p.end);
    for pool in pools {
        if !same_version(pool.start, pool.end) || number(pool.start) > number(pool.end) {
            let text = format!("The allocation pool {} is not valid.", show(pool));
            return Err(Error::bad_request(text).code("InvalidAllocationPool"));
        }
        if !usable(cidr, pool.start) || !usable(cidr, pool.end) {
            let text = format!("The allocation pool {} spans beyond the subnet cidr {cidr}.", show(pool));
            return Err(Error::bad_request(text).code("OutOfBoundsAllocationPool"));
        }
        if let Some(gateway) = gateway.filter(|g| pool.holds(*g)) {
            let text = format!("Gateway ip {gateway} conflicts with allocation pool {}.", show(pool));
            return Err(Error::conflict(text).code("GatewayConflictWithAllocationPools"));
        }
    }
    let mut sorted: Vec<&Pool> = pools.iter().collect();
    sorted.sort_by_key(|p| number(p.start));
    for pair in sorted.windows(2) {
        if let [a, b] = pair
            && number(a.end) >= number(b.start)
        {
            let text =
                format!("Found overlapping allocation pools: {} {} for subnet {cidr}.", show(a), show(b));
            return Err(Error::conflict(text).code("OverlappingAllocationPools"));
        }
    }
    Ok(())
}

/// How many addresses the pools hold.
pub fn capacity(pools: &[Pool]) -> u128 {
    pools.iter().fold(0, |sum, p| sum.saturating_add(p.size()))
}

/// The `n`th address of the pools, counted from 0.
pub fn nth(pools: &[Pool], n: u128) -> Option<IpAddr> {
    let mut left = n;
    for pool in pools {
        if left < pool.size() {
            return Some(address(pool.start, number(pool.start) + left));
        }
        left -= pool.size();
    }
    None
}

/// The lowest address of the pools that is not taken.
pub fn first_free(pools: &[Pool], taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    pools.iter().find_map(|pool| {
        let mut next = number(pool.start);
        for used in taken.range(pool.start..=pool.end) {
            if number(*used) != next {
                break;
            }
            next += 1;
        }
        (next <= number(pool.end)).then(|| address(pool.start, next))
    })
}

/// Whether addresses of this subnet follow from the MAC (SLAAC, DHCPv6 stateless).
pub fn is_auto(address_mode: Option<&str>) -> bool {
    matches!(address_mode, Some("slaac" | "dhcpv6-stateless"))
}

/// Reads a prefix. Bits beyond the prefix length are cut off, as Neutron does; a bare address is refused.
///
/// # Errors
/// The reason.
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    if !text.contains('/') {
        let hint = text.parse::<IpAddr>().map(|ip| format!(", '{}' is recommended", IpNet::from(ip)));
        return Err(format!("'{text}' isn't a recognized IP subnet cidr{}", hint.unwrap_or_default()));
    }
    text.parse::<IpNet>().map(|n| n.trunc()).map_err(|_| format!("'{text}' is not a valid IP subnet"))
}

/// What decides whether a subnet's shape is lawful.
#[derive(Debug, Clone)]
pub struct Shape<'a> {
    /// Prefix.
    pub cidr: IpNet,
    /// DHCP wanted.
    pub dhcp: bool,
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// IPv6 modes.
    pub ra_mode: Option<&'a str>,
    /// See `ra_mode`.
    pub address_mode: Option<&'a str>,
}

/// Neutron's `_validate_subnet`, the part that needs no database.
///
/// # Errors
/// `InvalidInput`.
pub fn check_shape(s: &Shape<'_>) -> Result<()> {
    let v4 = s.cidr.network().is_ipv4();
    if s.dhcp {
        let host_bits = s.cidr.max_prefix_len() - s.cidr.prefix_len();
        if host_bits < 2 {
            return Err(invalid_input(
                "Subnet has a prefix length that is incompatible with DHCP service enabled",
            ));
        }
        if s.cidr.network().is_multicast() {
            return Err(invalid_input("Multicast IP subnet is not supported if enable_dhcp is True"));
        }
        if s.cidr.network().is_loopback() {
            return Err(invalid_input("Loopback IP subnet is not supported if enable_dhcp is True"));
        }
        if s.cidr.prefix_len() == 0 {
            return Err(invalid_input("0 is not allowed as CIDR prefix length"));
        }
    }
    if let Some(gateway) = s.gateway {
        if gateway.is_ipv4() != v4 {
            let wanted = if v4 { 4 } else { 6 };
            return Err(invalid_input(format!(
                "gateway_ip '{gateway}' does not match the ip_version '{wanted}'"
            )));
        }
        // IPv6 gateways may be link-local; an address outside of the subnet is fine for others as well (on-link).
        if s.cidr.contains(&gateway) && !usable(&s.cidr, gateway) {
            return Err(invalid_input("Gateway is not valid on subnet"));
        }
    }
    if v4 {
        for (name, value) in [("ipv6_ra_mode", s.ra_mode), ("ipv6_address_mode", s.address_mode)] {
            if value.is_some() {
                return Err(invalid_input(format!("{name} is not valid when ip_version is 4")));
            }
        }
        return Ok(());
    }
    if !s.dhcp && (s.ra_mode.is_some() || s.address_mode.is_some()) {
        return Err(invalid_input(
            "ipv6_ra_mode or ipv6_address_mode cannot be set when enable_dhcp is set to False",
        ));
    }
    if let (Some(ra), Some(mode)) = (s.ra_mode, s.address_mode)
        && ra != mode
    {
        return Err(invalid_input(format!(
            "ipv6_ra_mode set to '{ra}' with ipv6_address_mode set to '{mode}' is not valid. If both attributes are set, they must be the same value"
        )));
    }
    if (is_auto(s.address_mode) || is_auto(s.ra_mode)) && s.cidr.prefix_len() != 64 {
        let mode = s.address_mode.or(s.ra_mode).unwrap_or_default();
        return Err(invalid_input(format!(
            "Invalid CIDR {} for IPv6 address mode. OpenStack uses the EUI-64 address format, which requires the prefix to be /64 ({mode})",
            s.cidr
        )));
    }
    Ok(())
}

/// The lowest prefix of this length within `prefixes` that shares no address with `taken`.
pub fn carve(prefixes: &[IpNet], taken: &[IpNet], length: u8) -> Option<IpNet> {
    for prefix in prefixes.iter().filter(|p| p.prefix_len() <= length && length <= p.max_prefix_len()) {
        let step = 1_u128.checked_shl(u32::from(prefix.max_prefix_len() - length)).unwrap_or(0);
        let end = number(last(prefix));
        let mut at = number(prefix.network());
        while at <= end {
            let candidate = IpNet::new(address(prefix.network(), at), length).ok()?;
            let Some(other) =
                taken.iter().find(|t| same_version(t.network(), prefix.network()) && overlap(t, &candidate))
            else {
                return Some(candidate);
            };
            // Behind what is in the way, at the next multiple of the step.
            let behind = number(last(other)).max(number(last(&candidate)));
            if step == 0 || behind >= end {
                break;
            }
            at = behind + 1;
            at += (step - at % step) % step;
        }
    }
    None
}
