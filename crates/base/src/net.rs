//! Network addresses.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{Entropy, Error};

/// The part of an address that tells one client from another: who has one IPv6 address of a /64 has all of them.
pub fn client_network(address: std::net::IpAddr) -> std::net::IpAddr {
    match address.to_canonical() {
        std::net::IpAddr::V6(v6) => {
            let mut parts = v6.segments();
            parts[4..].fill(0);
            std::net::IpAddr::from(parts)
        }
        v4 => v4,
    }
}

/// A MAC address; shown lower-case with colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A fresh address with OpenStack's prefix `fa:16:3e`.
    pub fn random(entropy: &Entropy) -> Self {
        let mut tail = [0; 3];
        entropy.fill(&mut tail);
        MacAddr([0xfa, 0x16, 0x3e, tail[0], tail[1], tail[2]])
    }

    /// The IPv6 interface identifier made from this address (EUI-64, RFC 4291 appendix A) under `prefix` (a /64).
    pub fn eui64(self, prefix: std::net::Ipv6Addr) -> std::net::Ipv6Addr {
        let m = self.0;
        let mut octets = prefix.octets();
        octets[8..].copy_from_slice(&[m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]);
        octets.into()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", m[0], m[1], m[2], m[3], m[4], m[5])
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::bad_request(format!("'{text}' is not a valid MAC address"));
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || text.contains('+') { Err(bad()) } else { Ok(MacAddr(bytes)) }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for MacAddr {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MacAddr".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_reads_and_shows() {
        let mac: MacAddr = "FA:16:3e:00:01:0a".parse().unwrap();
        assert_eq!(mac.to_string(), "fa:16:3e:00:01:0a");
        for bad in ["", "fa:16:3e:00:01", "fa:16:3e:00:01:0a:0b", "fa:16:3e:00:01:+a", "zz:16:3e:00:01:0a"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
        assert_eq!(
            mac.eui64("fd00:6::".parse().unwrap()),
            "fd00:6::f816:3eff:fe00:10a".parse::<std::net::Ipv6Addr>().unwrap()
        );
    }
}
