//! Security group rules: what is lawful, what is the same, what a rule means in numbers.
//!
//! Invariant: two rules with the same [`RuleSpec::fingerprint`] let the same packets pass.

use base::net::IpNet;
use base::{Error, Result, SecurityGroupId};

/// Protocol names as Neutron knows them, with their numbers.
const PROTOCOLS: &[(&str, u8)] = &[
    ("ah", 51),
    ("dccp", 33),
    ("egp", 8),
    ("esp", 50),
    ("gre", 47),
    ("hopopt", 0),
    ("icmp", 1),
    ("icmpv6", 58),
    ("igmp", 2),
    ("ip", 0),
    ("ipip", 4),
    ("ipv6-encap", 41),
    ("ipv6-frag", 44),
    ("ipv6-icmp", 58),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("ipv6-route", 43),
    ("ospf", 89),
    ("pgm", 113),
    ("rsvp", 46),
    ("sctp", 132),
    ("tcp", 6),
    ("udp", 17),
    ("udplite", 136),
    ("vrrp", 112),
];
/// Protocols with port numbers.
const WITH_PORTS: &[u8] = &[6, 17, 33, 132, 136];
/// Protocols that exist in IPv6 only.
const ONLY_V6: &[u8] = &[41, 43, 44, 58, 59, 60];

/// What a rule says, apart from whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// To the guest.
    pub ingress: bool,
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// Name or number as text, lower-case.
    pub protocol: Option<String>,
    /// First port, or ICMP type.
    pub min: Option<u16>,
    /// Last port, or ICMP code.
    pub max: Option<u16>,
    /// Remote prefix.
    pub prefix: Option<IpNet>,
    /// Remote group; `PARENT` in templates.
    pub group: Option<String>,
}

/// The protocol as Neutron keeps it: lower-case name, or number as text; `None` for any.
///
/// # Errors
/// `SecurityGroupRuleInvalidProtocol`.
pub fn protocol(text: &str) -> Result<Option<String>> {
    let lower = text.to_ascii_lowercase();
    if lower.is_empty() || lower == "any" {
        return Ok(None);
    }
    if lower.parse::<u8>().is_ok() || PROTOCOLS.iter().any(|(name, _)| *name == lower) {
        return Ok(Some(lower));
    }
    let names: Vec<String> = PROTOCOLS.iter().map(|(name, _)| format!("'{name}'")).collect();
    Err(Error::bad_request(format!(
        "Security group rule protocol {text} not supported. Only protocol values [None, {}] and integer representations [0 to 255] are supported.",
        names.join(", ")
    ))
    .code("SecurityGroupRuleInvalidProtocol"))
}

/// The protocol's number for rules of this IP version (`icmp` means ICMPv6 in an IPv6 rule); `None` for any.
pub fn protocol_number(protocol: Option<&str>, v6: bool) -> Option<u8> {
    let text = protocol?;
    let number = match text.parse::<u8>() {
        Ok(n) => n,
        Err(_) => PROTOCOLS.iter().find(|(name, _)| *name == text)?.1,
    };
    match (text, number) {
        ("ip", _) => None,
        (_, 1) if v6 => Some(58),
        _ => Some(number),
    }
}

/// Reads a remote prefix: an address is taken as its own prefix.
///
/// # Errors
/// The reason.
pub fn prefix(text: &str) -> Result<IpNet, String> {
    let bad = || format!("'{text}' is not a valid IP subnet");
    if text.contains('/') {
        text.parse().map_err(|_| bad())
    } else {
        text.parse::<std::net::IpAddr>().map(IpNet::from).map_err(|_| bad())
    }
}

impl RuleSpec {
    /// Neutron's `_validate_security_group_rule`.
    ///
    /// # Errors
    /// 400 with Neutron's types.
    pub fn check(&self) -> Result<()> {
        let ethertype = if self.v6 { "IPv6" } else { "IPv4" };
        if self.prefix.is_some() && self.group.is_some() {
            return Err(Error::bad_request("Only remote_ip_prefix or remote_group_id may be provided.")
                .code("SecurityGroupRemoteGroupAndRemoteIpPrefix"));
        }
        if let Some(prefix) = self.prefix.filter(|p| p.network().is_ipv6() != self.v6) {
            let text = format!("Conflicting value ethertype {ethertype} for CIDR {prefix}");
            return Err(Error::bad_request(text).code("SecurityGroupRuleParameterConflict"));
        }
        let number = protocol_number(self.protocol.as_deref(), self.v6);
        if let Some(name) = self.protocol.as_deref().filter(|_| !self.v6)
            && number.is_some_and(|n| ONLY_V6.contains(&n))
        {
            let text = format!("Invalid ethertype {ethertype} for protocol {name}.");
            return Err(Error::bad_request(text).code("SecurityGroupEthertypeConflictWithProtocol"));
        }
        self.check_range(number)
    }

    fn check_range(&self, number: Option<u8>) -> Result<()> {
        if self.min.is_none() && self.max.is_none() {
            return Ok(());
        }
        let Some(number) = number else {
            return Err(Error::bad_request("Must also specify protocol if port range is given.")
                .code("SecurityGroupProtocolRequiredWithPorts"));
        };
        if WITH_PORTS.contains(&number) {
            return match (self.min, self.max) {
                (Some(0), _) | (_, Some(0)) => Err(invalid_port("0")),
                (Some(min), Some(max)) if min <= max => Ok(()),
                _ => {
                    Err(Error::bad_request("For TCP/UDP protocols, port_range_min must be <= port_range_max")
                        .code("SecurityGroupInvalidPortRange"))
                }
            };
        }
        if number == 1 || number == 58 {
            for (attribute, field, value) in
                [("port_range_min", "type", self.min), ("port_range_max", "code", self.max)]
            {
                if let Some(value) = value.filter(|v| *v > 255) {
                    let text =
                        format!("Invalid value for ICMP {field} ({attribute}) {value}. It must be 0 to 255.");
                    return Err(Error::bad_request(text).code("SecurityGroupInvalidIcmpValue"));
                }
            }
            return match (self.min, self.max) {
                (None, Some(code)) => Err(Error::bad_request(format!(
                    "ICMP code (port-range-max) {code} is provided but ICMP type (port-range-min) is missing."
                ))
                .code("SecurityGroupMissingIcmpType")),
                _ => Ok(()),
            };
        }
        let name = self.protocol.as_deref().unwrap_or_default();
        Err(Error::bad_request(format!("Security group rule protocol {name} does not support port ranges."))
            .code("SecurityGroupRuleInvalidProtocol"))
    }

    /// The same for rules that let the same packets pass: protocols by number, "everywhere" as no prefix.
    pub fn fingerprint(&self) -> String {
        let text = |o: Option<String>| o.unwrap_or_else(|| "+".into());
        let prefix = self.prefix.map(|p| p.trunc()).filter(|p| p.prefix_len() > 0);
        [
            if self.ingress { "in".to_owned() } else { "out".to_owned() },
            if self.v6 { "6".to_owned() } else { "4".to_owned() },
            text(protocol_number(self.protocol.as_deref(), self.v6).map(|n| n.to_string())),
            text(self.min.map(|n| n.to_string())),
            text(self.max.map(|n| n.to_string())),
            text(prefix.map(|p| p.to_string())),
            text(self.group.clone()),
        ]
        .join("/")
    }

    /// The remote group as an id; `None` where there is none.
    pub fn group_id(&self) -> Option<SecurityGroupId> {
        self.group.as_deref().and_then(|g| g.parse().ok())
    }
}

/// 400 for a port that is none.
pub fn invalid_port(value: &str) -> Error {
    Error::bad_request(format!("Invalid value for port {value}")).code("SecurityGroupInvalidPortValue")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: Option<&str>, min: Option<u16>, max: Option<u16>) -> RuleSpec {
        RuleSpec {
            ingress: true,
            v6: false,
            protocol: protocol.map(Into::into),
            min,
            max,
            prefix: None,
            group: None,
        }
    }

    #[test]
    fn refusals_have_neutrons_types() {
        let cases = [
            (rule(None, Some(1), Some(2)), "SecurityGroupProtocolRequiredWithPorts"),
            (rule(Some("tcp"), Some(2), Some(1)), "SecurityGroupInvalidPortRange"),
            (rule(Some("tcp"), Some(2), None), "SecurityGroupInvalidPortRange"),
            (rule(Some("udp"), Some(0), Some(1)), "SecurityGroupInvalidPortValue"),
            (rule(Some("icmp"), Some(256), None), "SecurityGroupInvalidIcmpValue"),
            (rule(Some("icmp"), None, Some(1)), "SecurityGroupMissingIcmpType"),
            (rule(Some("ipv6-icmp"), None, None), "SecurityGroupEthertypeConflictWithProtocol"),
            (rule(Some("gre"), Some(1), Some(1)), "SecurityGroupRuleInvalidProtocol"),
        ];
        for (spec, wanted) in cases {
            assert_eq!(spec.check().unwrap_err().type_code(), wanted, "{spec:?}");
        }
        assert!(rule(Some("icmp"), Some(8), Some(0)).check().is_ok());
        assert!(rule(Some("6"), Some(22), Some(22)).check().is_ok());
    }

    #[test]
    fn names_and_numbers_are_the_same_rule() {
        let mut a = rule(Some("tcp"), Some(22), Some(22));
        let b = rule(Some("6"), Some(22), Some(22));
        assert_eq!(a.fingerprint(), b.fingerprint());
        a.prefix = Some("0.0.0.0/0".parse().unwrap());
        assert_eq!(a.fingerprint(), b.fingerprint());
        a.prefix = Some("10.0.0.0/8".parse().unwrap());
        assert_ne!(a.fingerprint(), b.fingerprint());
    }
}
