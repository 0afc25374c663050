//! Which host a server goes to: filter, then weigh.

use std::collections::{BTreeMap, BTreeSet};

use base::HostId;
use contract::services::Candidate;

/// A host with room, and what else the choice depends on.
#[derive(Debug, Clone)]
pub struct HostView {
    /// The host.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its availability zone.
    pub zone: String,
    /// Whether it takes new servers (enabled and alive).
    pub up: bool,
    /// What it has and what is claimed.
    pub candidate: Candidate,
}

/// What a server asks of its host besides room.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Only this zone.
    pub zone: Option<String>,
    /// Only this host, by name.
    pub host: Option<String>,
    /// Only these hosts (volumes, affinity, `same_host`); `None` = any.
    pub only: Option<BTreeSet<HostId>>,
    /// None of these (`different_host`, anti-affinity).
    pub never: BTreeSet<HostId>,
    /// Members of its group by host, for soft policies.
    pub members: BTreeMap<HostId, u32>,
    /// +1: where members are; -1: where they are not; 0: does not matter.
    pub soft: i8,
    /// At most so many members on one host (anti-affinity with `max_server_per_host`).
    pub most: Option<u32>,
}

/// How many of the best hosts the choice is made among: servers that are placed at the same time spread.
const SUBSET: usize = 3;

/// Hosts that may take the server.
pub fn filter<'a>(hosts: &'a [HostView], ask: &Ask) -> Vec<&'a HostView> {
    hosts
        .iter()
        .filter(|h| {
            h.up && ask.zone.as_ref().is_none_or(|z| *z == h.zone)
                && ask.host.as_ref().is_none_or(|n| *n == h.name)
                && ask.only.as_ref().is_none_or(|only| only.contains(&h.id))
                && !ask.never.contains(&h.id)
                && ask.most.is_none_or(|most| ask.members.get(&h.id).copied().unwrap_or(0) < most)
        })
        .collect()
}

fn free(host: &HostView, class: &str) -> f64 {
    let Some(inventory) = host.candidate.inventories.get(class) else { return 0.0 };
    let all = inventory.total.saturating_sub(inventory.reserved) as f64 * inventory.allocation_ratio;
    let used = host.candidate.used.get(class).copied().unwrap_or(0) as f64;
    if all > 0.0 { (all - used) / all } else { 0.0 }
}

/// Best hosts first: most free memory and CPU by share, then soft (anti-)affinity above both. `chance` is a random
/// number that decides among the best few.
pub fn order<'a>(mut hosts: Vec<&'a HostView>, ask: &Ask, chance: u64) -> Vec<&'a HostView> {
    let score = |h: &HostView| {
        let members = f64::from(ask.members.get(&h.id).copied().unwrap_or(0));
        free(h, "MEMORY_MB") + free(h, "VCPU") + f64::from(ask.soft) * members * 10.0
    };
    hosts.sort_by(|a, b| score(b).total_cmp(&score(a)).then_with(|| a.id.cmp(&b.id)));
    if ask.soft == 0 && hosts.len() > 1 {
        let among = hosts.len().min(SUBSET) as u64;
        let pick = usize::try_from(chance % among).unwrap_or(0);
        hosts.swap(0, pick);
    }
    hosts
}

#[cfg(test)]
mod tests {
    use base::{Entropy, ResourceProviderId};
    use contract::services::Inventory;
    use proptest::prelude::*;

    use super::*;

    fn host(n: u64, zone: &str, up: bool, used: u64) -> HostView {
        let id = HostId::random(&Entropy::seeded(n));
        let stock = Inventory { total: 100, reserved: 0, allocation_ratio: 1.0, max_unit: 100 };
        HostView {
            id,
            name: format!("h{n}"),
            zone: zone.into(),
            up,
            candidate: Candidate {
                provider: ResourceProviderId(id.0),
                name: format!("h{n}"),
                inventories: [("VCPU".to_owned(), stock.clone()), ("MEMORY_MB".to_owned(), stock)].into(),
                used: [("VCPU".to_owned(), used), ("MEMORY_MB".to_owned(), used)].into(),
            },
        }
    }

    proptest! {
        /// No host that a filter excludes is ever chosen, whatever chance says.
        #[test]
        fn filters_hold(
            hosts in prop::collection::vec((0u64..50, prop::bool::ANY, 0u64..100), 0..20),
            never in prop::collection::btree_set(0u64..50, 0..5),
            zone in prop::option::of(prop::sample::select(vec!["a", "b"])),
            most in prop::option::of(1u32..3),
            chance in prop::num::u64::ANY,
        ) {
            let hosts: Vec<_> = hosts.iter().map(|(n, up, used)| host(*n, if n % 2 == 0 { "a" } else { "b" }, *up, *used)).collect();
            let never: BTreeSet<_> = never.iter().map(|n| HostId::random(&Entropy::seeded(*n))).collect();
            let members: BTreeMap<_, _> = hosts.iter().enumerate().map(|(i, h)| (h.id, u32::try_from(i % 4).unwrap())).collect();
            let ask = Ask { zone: zone.map(str::to_owned), never: never.clone(), members: members.clone(), most, ..Ask::default() };
            let chosen = order(filter(&hosts, &ask), &ask, chance);
            for h in chosen {
                prop_assert!(h.up && !never.contains(&h.id));
                prop_assert!(zone.is_none_or(|z| z == h.zone));
                prop_assert!(most.is_none_or(|m| members[&h.id] < m));
            }
        }

        /// Affinity goes where the members are, anti-affinity where they are fewest.
        #[test]
        fn soft_policies_lead(at in 0usize..5, chance in prop::num::u64::ANY) {
            let hosts: Vec<_> = (0..5).map(|n| host(n, "a", true, 90 - n * 10)).collect();
            let members = BTreeMap::from([(hosts[at].id, 2)]);
            let near = Ask { members: members.clone(), soft: 1, ..Ask::default() };
            prop_assert_eq!(order(filter(&hosts, &near), &near, chance)[0].id, hosts[at].id);
            let far = Ask { members, soft: -1, ..Ask::default() };
            prop_assert_ne!(order(filter(&hosts, &far), &far, chance)[0].id, hosts[at].id);
        }
    }

    #[test]
    fn the_emptiest_hosts_come_first() {
        let hosts: Vec<_> = (0..10).map(|n| host(n, "a", true, n * 10)).collect();
        let ask = Ask::default();
        for chance in 0..20 {
            let best = order(filter(&hosts, &ask), &ask, chance)[0].name.clone();
            assert!(["h0", "h1", "h2"].contains(&best.as_str()), "{best}");
        }
    }
}
