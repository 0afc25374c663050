//! What holds at every moment.

use std::collections::{BTreeMap, BTreeSet};

use contract::host::PowerObserved;

use super::{View, Violation};
use crate::workload::Expect;

/// Whether a guest uses its disks and addresses.
pub fn up(power: PowerObserved) -> bool {
    matches!(power, PowerObserved::Running | PowerObserved::Paused)
}

/// All hard rules.
pub fn all(view: &View) -> Vec<Violation> {
    let mut found = double_runs(view);
    found.extend(addresses(view));
    found.extend(claims(view));
    found.extend(quotas(view));
    found.extend(loose_rows(view));
    found.extend(promises(view));
    found.extend(lost_volumes(view));
    found.extend(view.failures.iter().map(|text| Violation {
        rule: "api-5xx",
        subject: text.clone(),
        text: "no call may fail like this".into(),
    }));
    found
}

/// No server runs on two hosts.
pub fn double_runs(view: &View) -> Vec<Violation> {
    let mut on: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for machine in &view.machines {
        for guest in &machine.running {
            on.entry(*guest).or_default().push(&machine.name);
        }
    }
    on.into_iter()
        .filter(|(_, hosts)| hosts.len() > 1)
        .map(|(id, hosts)| Violation {
            rule: "double-run",
            subject: format!("server {id}"),
            text: format!("runs on {}", hosts.join(" and ")),
        })
        .collect()
}

/// No address and no MAC twice in a network, and each port's addresses are those written down for it.
pub fn addresses(view: &View) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut macs = BTreeMap::new();
    let mut ips = BTreeMap::new();
    let mut of_ports = BTreeSet::new();
    for port in &view.ports {
        if let Some(other) = macs.insert((port.network_id, port.mac_address), port.id) {
            let text = format!("{} is also that of port {other}", port.mac_address);
            found.push(Violation { rule: "mac-twice", subject: format!("port {}", port.id), text });
        }
        for ip in &port.fixed_ips {
            of_ports.insert((ip.subnet_id, ip.ip_address, port.id));
            if let Some(other) = ips.insert((port.network_id, ip.ip_address), port.id) {
                let text = format!("{} is also that of port {other}", ip.ip_address);
                found.push(Violation { rule: "ip-twice", subject: format!("port {}", port.id), text });
            }
        }
    }
    let written: BTreeSet<_> = view.addresses.iter().map(|a| (a.subnet_id, a.ip, a.port_id)).collect();
    for (subnet, ip, port) in of_ports.symmetric_difference(&written) {
        found.push(Violation {
            rule: "address-book",
            subject: format!("address {ip} of subnet {subnet}"),
            text: format!("port {port} and the address book do not agree"),
        });
    }
    found
}

/// Claims are what consumers hold, and never above inventory.
pub fn claims(view: &View) -> Vec<Violation> {
    let mut sums: BTreeMap<_, BTreeMap<&str, u64>> = BTreeMap::new();
    for consumer in &view.consumers {
        for (provider, amounts) in &consumer.claims {
            for (class, amount) in amounts {
                *sums.entry(*provider).or_default().entry(class).or_default() += amount;
            }
        }
    }
    let mut found = Vec::new();
    for provider in &view.providers {
        let sum = sums.remove(&provider.id).unwrap_or_default();
        let used: BTreeMap<&str, u64> = provider.used.iter().map(|(c, n)| (c.as_str(), *n)).collect();
        let subject = || format!("provider {}", provider.name);
        if sum != used {
            let text = format!("says {used:?} and its consumers {sum:?}");
            found.push(Violation { rule: "claims-recount", subject: subject(), text });
        }
        for (class, amount) in sum {
            let room = provider
                .inventories
                .get(class)
                .map_or(0.0, |s| s.total.saturating_sub(s.reserved) as f64 * s.allocation_ratio);
            if amount as f64 > room {
                let text = format!("{amount} of {class} are claimed and there are {room}");
                found.push(Violation { rule: "over-allocation", subject: subject(), text });
            }
        }
    }
    found.extend(sums.into_keys().map(|id| Violation {
        rule: "orphan",
        subject: format!("claims on provider {id}"),
        text: "there is no such provider".into(),
    }));
    found
}

/// What a project is told to use is what it uses.
pub fn quotas(view: &View) -> Vec<Violation> {
    let mut count: BTreeMap<_, (u64, u64, u64)> = BTreeMap::new();
    for server in &view.servers {
        let sum = count.entry(server.project_id.clone()).or_default();
        sum.0 += 1;
        sum.1 += u64::from(server.size.vcpus);
        sum.2 += server.size.ram;
    }
    let mut found = Vec::new();
    for usage in &view.usage {
        let told = (usage.instances, usage.cores, usage.ram);
        let counted = count.remove(&usage.id).unwrap_or_default();
        if told != counted {
            let text = format!("(servers, cores, RAM) are written as {told:?} and counted as {counted:?}");
            found.push(Violation { rule: "quota-recount", subject: format!("project {}", usage.id), text });
        }
    }
    found.extend(count.into_iter().map(|(project, counted)| Violation {
        rule: "quota-recount",
        subject: format!("project {project}"),
        text: format!("nothing is written and {counted:?} counted"),
    }));
    found
}

/// Rows that belong to rows that are not there; each was written in one transaction with its owner.
pub fn loose_rows(view: &View) -> Vec<Violation> {
    let ports: BTreeSet<_> = view.ports.iter().map(|p| p.id).collect();
    let groups: BTreeSet<_> = view.groups.iter().map(|g| g.id).collect();
    let networks: BTreeSet<_> = view.networks.iter().map(|n| n.id).collect();
    let volumes: BTreeSet<_> = view.volumes.iter().map(|v| v.id).collect();
    let mut found = Vec::new();
    let mut orphan = |there: bool, subject: String, owner: &str| {
        if !there {
            found.push(Violation { rule: "orphan", subject, text: format!("its {owner} is gone") });
        }
    };
    for address in &view.addresses {
        orphan(ports.contains(&address.port_id), format!("address {}", address.id), "port");
    }
    for member in &view.members {
        let there = ports.contains(&member.port_id) && groups.contains(&member.security_group_id);
        orphan(there, format!("member {}", member.id), "port or group");
    }
    for rule in &view.rules {
        orphan(groups.contains(&rule.security_group_id), format!("rule {}", rule.id), "group");
    }
    for subnet in &view.subnets {
        orphan(networks.contains(&subnet.network_id), format!("subnet {}", subnet.id), "network");
    }
    for port in &view.ports {
        orphan(networks.contains(&port.network_id), format!("port {}", port.id), "network");
    }
    for floating in &view.floating {
        orphan(ports.contains(&floating.floating_port_id), format!("floating {}", floating.id), "port");
        let leads = floating.port_id.is_none_or(|p| ports.contains(&p));
        orphan(leads, format!("floating {}", floating.id), "guest's port");
    }
    for attachment in &view.attachments {
        let there = volumes.contains(&attachment.volume_id);
        orphan(there, format!("attachment {}", attachment.id), "volume");
    }
    found
}

/// What the cloud acknowledged is so.
pub fn promises(view: &View) -> Vec<Violation> {
    let servers: BTreeMap<String, bool> =
        view.servers.iter().map(|s| (s.id.to_string(), s.deleting)).collect();
    let volumes: BTreeMap<String, bool> = view.volumes.iter().map(|v| (v.id.to_string(), v.doomed)).collect();
    let floating: BTreeMap<String, bool> = view.floating.iter().map(|f| (f.id.to_string(), false)).collect();
    let mut found = Vec::new();
    for (kind, id, expect) in &view.promises {
        let rows = match *kind {
            "server" => &servers,
            "volume" => &volumes,
            _ => &floating,
        };
        let text = match (expect, rows.get(id)) {
            (Expect::Present, None | Some(true)) => "was acknowledged and is gone",
            (Expect::Gone, Some(false)) => "was deleted and is back",
            _ => continue,
        };
        found.push(Violation { rule: "acknowledged", subject: format!("{kind} {id}"), text: text.into() });
    }
    found
}

/// A volume that was made is on its host.
pub fn lost_volumes(view: &View) -> Vec<Violation> {
    let mut found = Vec::new();
    for volume in view.volumes.iter().filter(|v| v.made && !v.doomed) {
        let Some(machine) = volume.host.and_then(|h| view.machine(h)) else { continue };
        if !machine.volumes.iter().any(|(id, _)| *id == volume.id) {
            found.push(Violation {
                rule: "volume-lost",
                subject: format!("volume {}", volume.id),
                text: format!("{} does not have it", machine.name),
            });
        }
    }
    found
}
