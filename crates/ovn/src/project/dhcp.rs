//! DHCP options. Every value is text that OVN parses again on each host, so each is built from parsed values; strings
//! are quoted, and what cannot be quoted is refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use base::net::{IpNet, Ipv4Net};
use contract::net::{NetworkItem, SubnetItem};

use super::spaced;

/// Seconds; Neutron's and OVN's value.
const LEASE: &str = "43200";

/// `{a, b}`
fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    format!("{{{}}}", items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(", "))
}

/// A string with inner quotes; `None` if it has what OVN's lexer would not give back as it is.
fn quoted(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\' || c == ' ';
    (!text.is_empty() && text.len() <= 255 && text.chars().all(plain)).then(|| format!("\"{text}\""))
}

fn domain(text: &str) -> Option<String> {
    let text = text.trim_end_matches('.');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    text.chars().all(plain).then(|| quoted(text)).flatten()
}

/// Options of a subnet's `DHCP_Options` row; `None` where OVN does not answer.
pub fn subnet_options(
    network: &NetworkItem,
    subnet: &SubnetItem,
    fallback: &[IpAddr],
) -> Option<BTreeMap<String, String>> {
    if !subnet.dhcp {
        return None;
    }
    let servers = if subnet.dns_servers.is_empty() { fallback } else { &subnet.dns_servers };
    match subnet.cidr {
        IpNet::V4(_) => Some(v4(network, subnet, servers)),
        IpNet::V6(_) => match subnet.ipv6_address_mode.as_deref() {
            None | Some("slaac") => None,
            mode => Some(v6(subnet, servers, mode == Some("dhcpv6-stateless"))),
        },
    }
}

fn v4(network: &NetworkItem, subnet: &SubnetItem, servers: &[IpAddr]) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    let v4 = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    };
    let gateway = subnet.gateway.as_ref().and_then(v4);
    let metadata = subnet.metadata_address.as_ref().and_then(v4);
    // Without an address to answer from, OVN cannot answer.
    let Some(server) = gateway.or(metadata) else { return options };
    let mut put = |key: &str, value: String| options.insert(key.to_owned(), value);
    put("server_id", server.to_string());
    put("server_mac", subnet.server_mac.to_string());
    put("lease_time", LEASE.to_owned());
    put("mtu", network.mtu.to_string());
    if let Some(gateway) = gateway {
        put("router", gateway.to_string());
    }
    let servers: Vec<Ipv4Addr> = servers.iter().filter_map(v4).collect();
    if !servers.is_empty() {
        put("dns_server", list(servers));
    }
    if let Some(domain) = domain(&network.dns_domain) {
        put("domain_name", domain);
    }
    let mut routes: Vec<(Ipv4Net, Ipv4Addr)> = Vec::new();
    if let Some(metadata) = metadata {
        routes.push((Ipv4Net::from(Ipv4Addr::new(169, 254, 169, 254)), metadata));
    }
    routes.extend(subnet.host_routes.iter().filter_map(|route| match route {
        (IpNet::V4(to), IpAddr::V4(by)) => Some((to.trunc(), *by)),
        _ => None,
    }));
    // A client that gets these ignores `router`: the default route must be among them.
    if !routes.is_empty() {
        if let Some(gateway) = gateway
            && routes.iter().all(|(to, _)| to.prefix_len() != 0)
        {
            routes.push((Ipv4Net::default(), gateway));
        }
        put("classless_static_route", list(routes.iter().map(|(to, by)| format!("{to},{by}"))));
    }
    options
}

fn v6(subnet: &SubnetItem, servers: &[IpAddr], stateless: bool) -> BTreeMap<String, String> {
    let mut options = BTreeMap::from([("server_id".to_owned(), subnet.server_mac.to_string())]);
    let servers: Vec<&IpAddr> = servers.iter().filter(|s| s.is_ipv6()).collect();
    if !servers.is_empty() {
        options.insert("dns_server".into(), list(servers));
    }
    if stateless {
        options.insert("dhcpv6_stateless".into(), "true".into());
    }
    options
}

enum Kind {
    Address,
    Addresses,
    Bool,
    Number(u64),
    Text,
    Domains,
    Routes,
}

/// A port's own option (`extra_dhcp_opts`, IPv4) in OVN's words, `None` if OVN has no such option or the value is no
/// value of it.
pub fn port_option(name: &str, value: &str) -> Option<(&'static str, String)> {
    use Kind::{Address, Addresses, Bool, Domains, Number, Routes, Text};
    let (u8, u16, u32) = (Number(0xff), Number(0xffff), Number(0xffff_ffff));
    let (ovn, kind) = match name {
        "netmask" | "1" => ("netmask", Address),
        "router" | "3" => ("router", Addresses),
        "dns-server" | "dns-servers" | "6" => ("dns_server", Addresses),
        "log-server" | "7" => ("log_server", Addresses),
        "lpr-server" | "9" => ("lpr_server", Addresses),
        "domain-name" | "15" => ("domain_name", Text),
        "swap-server" | "16" => ("swap_server", Address),
        "ip-forward-enable" | "19" => ("ip_forward_enable", Bool),
        "policy-filter" | "21" => ("policy_filter", Addresses),
        "default-ttl" | "23" => ("default_ttl", u8),
        "mtu" | "26" => ("mtu", u16),
        "router-discovery" | "31" => ("router_discovery", Bool),
        "router-solicitation" | "32" => ("router_solicitation", Address),
        "arp-timeout" | "35" => ("arp_cache_timeout", u32),
        "ethernet-encap" | "36" => ("ethernet_encap", Bool),
        "tcp-ttl" | "37" => ("tcp_ttl", u8),
        "tcp-keepalive" | "tcp-keepalive-interval" | "38" => ("tcp_keepalive_interval", u32),
        "nis-server" | "41" => ("nis_server", Addresses),
        "ntp-server" | "42" => ("ntp_server", Addresses),
        "lease-time" | "51" => ("lease_time", u32),
        "T1" | "58" => ("T1", u32),
        "T2" | "59" => ("T2", u32),
        "tftp-server" | "66" => ("tftp_server", Text),
        "bootfile-name" | "67" => ("bootfile_name", Text),
        "domain-search" | "119" => ("domain_search_list", Domains),
        "classless-static-route" | "121" => ("classless_static_route", Routes),
        "server-ip-address" | "tftp-server-address" | "150" => ("tftp_server_address", Addresses),
        "path-prefix" | "210" => ("path_prefix", Text),
        "ms-classless-static-route" | "249" => ("ms_classless_static_route", Routes),
        "wpad" | "252" => ("wpad", Text),
        _ => return None,
    };
    encode(&kind, value).map(|text| (ovn, text))
}

fn encode(kind: &Kind, value: &str) -> Option<String> {
    let value = value.trim();
    let words = || {
        let words = value.trim_matches(['{', '}']).split([',', ' ']).filter(|w| !w.is_empty());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    match kind {
        Kind::Address => value.parse::<Ipv4Addr>().ok().map(|ip| ip.to_string()),
        Kind::Addresses => {
            let all: Vec<Ipv4Addr> = words().iter().map(|w| w.parse().ok()).collect::<Option<_>>()?;
            match all.as_slice() {
                [] => None,
                [one] => Some(one.to_string()),
                more => Some(list(more)),
            }
        }
        Kind::Bool => match value {
            "1" | "true" | "True" => Some("1".into()),
            "0" | "false" | "False" => Some("0".into()),
            _ => None,
        },
        Kind::Number(max) => value.parse::<u64>().ok().filter(|n| n <= max).map(|n| n.to_string()),
        Kind::Text => quoted(value.trim_matches('"')),
        Kind::Domains => {
            let all: Vec<String> = words().iter().map(|w| domain(w)).collect::<Option<_>>()?;
            let text = all.iter().map(|d| d.trim_matches('"')).collect::<Vec<_>>().join(",");
            quoted(&text)
        }
        Kind::Routes => {
            let words = words();
            let routes: Vec<String> = words
                .chunks(2)
                .map(|pair| match pair {
                    [to, by] => {
                        let (to, by): (Ipv4Net, Ipv4Addr) = (to.parse().ok()?, by.parse().ok()?);
                        Some(format!("{},{by}", to.trunc()))
                    }
                    _ => None,
                })
                .collect::<Option<_>>()?;
            (!routes.is_empty()).then(|| list(routes))
        }
    }
}

/// A subnet's options with a port's own over them; static routes of the port are added to the subnet's.
pub fn overridden(
    base: &BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut options = base.clone();
    for (name, value) in own {
        let inner = |text: &str| text.trim_matches(['{', '}']).to_owned();
        let value = match base.get(name) {
            Some(had) if name == "classless_static_route" => format!("{{{}, {}}}", inner(had), inner(value)),
            _ => value.clone(),
        };
        options.insert(name.clone(), value);
    }
    // The default route must be among the routes; see `v4`.
    let gateway = options.get("router").filter(|r| !r.starts_with('{')).cloned();
    if let (Some(routes), Some(gateway)) = (options.get_mut("classless_static_route"), gateway)
        && !routes.contains("0.0.0.0/0,")
    {
        *routes = format!("{}, 0.0.0.0/0,{gateway}}}", routes.trim_end_matches('}'));
    }
    options
}

/// `name -> addresses` and back, for the names by which a port is known; empty if the name is no host name.
pub fn dns_records(name: &str, domain_name: &str, addresses: &[IpAddr]) -> BTreeMap<String, String> {
    let label = |l: &str| {
        !l.is_empty() && l.len() <= 63 && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let name = name.to_ascii_lowercase();
    if addresses.is_empty() || !name.split('.').all(label) {
        return BTreeMap::new();
    }
    let all = spaced(addresses);
    let mut records = BTreeMap::from([(name.clone(), all.clone())]);
    let zone = domain_name.trim_end_matches('.').to_ascii_lowercase();
    let mut full = name;
    if !zone.is_empty() && zone.split('.').all(label) {
        full = format!("{full}.{zone}");
        records.insert(full.clone(), all);
    }
    records.extend(addresses.iter().map(|ip| (reverse(ip), full.clone())));
    records
}

fn reverse(ip: &IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            let nibbles: Vec<String> =
                octets.iter().rev().flat_map(|o| [o & 15, o >> 4]).map(|n| format!("{n:x}")).collect();
            format!("{}.ip6.arpa", nibbles.join("."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_options_are_checked() {
        let good = [
            ("mtu", "1400", "1400"),
            ("26", "1400", "1400"),
            ("ntp-server", "10.0.0.1,10.0.0.2", "{10.0.0.1, 10.0.0.2}"),
            ("bootfile-name", "pxelinux.0", "\"pxelinux.0\""),
            ("classless-static-route", "10.1.0.5/16,10.0.0.9", "{10.1.0.0/16,10.0.0.9}"),
            ("domain-search", "a.example, b.example", "\"a.example,b.example\""),
        ];
        for (name, value, want) in good {
            assert_eq!(port_option(name, value).map(|o| o.1).as_deref(), Some(want), "{name}");
        }
        let bad = [
            ("mtu", "70000"),
            ("mtu", "14x"),
            ("ntp-server", "localhost"),
            ("bootfile-name", "a\"; drop"),
            ("bootfile-name", "a\\"),
            ("classless-static-route", "10.1.0.0/16"),
            ("no-such-option", "1"),
            ("domain-search", "a b\"c"),
        ];
        for (name, value) in bad {
            assert_eq!(port_option(name, value), None, "{name}={value}");
        }
    }

    #[test]
    fn names_forward_and_back() {
        let addresses = ["10.0.1.12".parse().unwrap(), "fd00::1".parse().unwrap()];
        let records = dns_records("VM1", "cloud.example.", &addresses);
        assert_eq!(records["vm1"], "10.0.1.12 fd00::1");
        assert_eq!(records["vm1.cloud.example"], "10.0.1.12 fd00::1");
        assert_eq!(records["12.1.0.10.in-addr.arpa"], "vm1.cloud.example");
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(records[six], "vm1.cloud.example");
        assert!(dns_records("a b", "x", &addresses).is_empty());
    }
}
