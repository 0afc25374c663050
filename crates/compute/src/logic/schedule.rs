//! Which host a server goes to: filter, then weigh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::HostId;
use contract::services::Candidate;

/// A host, and what the choice depends on.
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
    /// Whether it takes disks over from other hosts.
    pub takes_disks: bool,
    candidate: Arc<Candidate>,
    /// Share of memory and of CPU that is free, added up.
    share: f64,
}

impl HostView {
    /// A host as placement knows it.
    pub fn new(id: HostId, name: String, zone: String, up: bool, candidate: Arc<Candidate>) -> Self {
        let share = share(&candidate);
        HostView { id, name, zone, up, takes_disks: false, candidate, share }
    }

    /// Its provider.
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// Counts a claim that is about to be made, for the next choice.
    pub fn claim(&mut self, resources: &BTreeMap<String, u64>) {
        let candidate = Arc::make_mut(&mut self.candidate);
        for (class, amount) in resources {
            *candidate.used.entry(class.clone()).or_default() += amount;
        }
        self.share = share(candidate);
    }
}

fn share(candidate: &Candidate) -> f64 {
    let free = |class: &str| {
        let all = candidate.inventories.get(class).map_or(0, |i| i.capacity()) as f64;
        let used = candidate.used.get(class).copied().unwrap_or(0) as f64;
        if all > 0.0 { (all - used) / all } else { 0.0 }
    };
    free("MEMORY_MB") + free("VCPU")
}

/// What a server asks of its host.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Room, by resource class.
    pub resources: BTreeMap<String, u64>,
    /// Traits it must have.
    pub required: Vec<String>,
    /// Traits it must not have.
    pub forbidden: Vec<String>,
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
    /// Only a host that takes disks over: the server comes from another one.
    pub with_disks: bool,
}

/// How many of the best hosts the choice is made among: servers that are placed at the same time spread.
const SUBSET: usize = 3;

fn admits(host: &HostView, ask: &Ask) -> bool {
    host.up
        && (host.takes_disks || !ask.with_disks)
        && ask.zone.as_ref().is_none_or(|z| *z == host.zone)
        && ask.host.as_ref().is_none_or(|n| *n == host.name)
        && ask.only.as_ref().is_none_or(|only| only.contains(&host.id))
        && !ask.never.contains(&host.id)
        && ask.most.is_none_or(|most| ask.members.get(&host.id).copied().unwrap_or(0) < most)
}

fn carries(host: &HostView, ask: &Ask) -> bool {
    let traits = &host.candidate.traits;
    host.candidate.has_room(&ask.resources)
        && ask.required.iter().all(|t| traits.contains(t))
        && !ask.forbidden.iter().any(|t| traits.contains(t))
}

/// The host a server goes to: of those that may take it, most free memory and CPU by share, and soft (anti-)affinity
/// above both. `chance` is a random number that decides among the best few. `None` where no host fits.
pub fn choose(hosts: &[HostView], ask: &Ask, chance: u64) -> Option<usize> {
    let score = |h: &HostView| {
        if ask.soft == 0 {
            return h.share;
        }
        let members = f64::from(ask.members.get(&h.id).copied().unwrap_or(0));
        h.share + f64::from(ask.soft) * members * 10.0
    };
    let admitted = hosts.iter().enumerate().filter(|(_, h)| admits(h, ask));
    let mut scored: Vec<(f64, usize)> = admitted.map(|(at, h)| (score(h), at)).collect();
    // Ties go by the order of ids, which is that of `hosts`.
    scored.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let among = if ask.soft == 0 { SUBSET } else { 1 };
    // Room is looked at last, and only until enough hosts are found: it is the dear question.
    let best: Vec<usize> = scored
        .into_iter()
        .map(|(_, at)| at)
        .filter(|at| hosts.get(*at).is_some_and(|h| carries(h, ask)))
        .take(among)
        .collect();
    let pick = usize::try_from(chance % best.len().max(1) as u64).unwrap_or(0);
    best.get(pick).copied()
}

#[cfg(test)]
mod tests {
    use base::{Entropy, ResourceProviderId};
    use contract::services::Inventory;
    use proptest::prelude::*;

    use super::*;

    fn host(n: u64, zone: &str, up: bool, used: u64) -> HostView {
        let id = HostId::random(&Entropy::seeded(n));
        let stock = Inventory {
            total: 100,
            reserved: 0,
            min_unit: 1,
            max_unit: 100,
            step_size: 1,
            allocation_ratio: 1.0,
        };
        let candidate = Candidate {
            provider: ResourceProviderId(id.0),
            name: format!("h{n}"),
            inventories: [("VCPU".to_owned(), stock.clone()), ("MEMORY_MB".to_owned(), stock)].into(),
            used: [("VCPU".to_owned(), used), ("MEMORY_MB".to_owned(), used)].into(),
            traits: if n.is_multiple_of(3) { vec!["FAST".to_owned()] } else { Vec::new() },
        };
        HostView::new(id, format!("h{n}"), zone.into(), up, Arc::new(candidate))
    }

    proptest! {
        /// No host that a filter excludes is ever chosen, whatever chance says; and one is chosen if any passes.
        #[test]
        fn filters_hold(
            hosts in prop::collection::vec((0u64..50, prop::bool::ANY, 0u64..100), 0..20),
            never in prop::collection::btree_set(0u64..50, 0..5),
            zone in prop::option::of(prop::sample::select(vec!["a", "b"])),
            most in prop::option::of(1u32..3),
            room in 0u64..100,
            fast in prop::option::of(prop::bool::ANY),
            chance in prop::num::u64::ANY,
        ) {
            let hosts: Vec<_> = hosts.iter().map(|(n, up, used)| host(*n, if n % 2 == 0 { "a" } else { "b" }, *up, *used)).collect();
            let never: BTreeSet<_> = never.iter().map(|n| HostId::random(&Entropy::seeded(*n))).collect();
            let members: BTreeMap<_, _> = hosts.iter().enumerate().map(|(i, h)| (h.id, u32::try_from(i % 4).unwrap())).collect();
            let traits = |want: bool| if fast == Some(want) { vec!["FAST".to_owned()] } else { Vec::new() };
            let ask = Ask {
                resources: [("VCPU".to_owned(), room + 1)].into(),
                required: traits(true),
                forbidden: traits(false),
                zone: zone.map(str::to_owned),
                never: never.clone(),
                members: members.clone(),
                most,
                ..Ask::default()
            };
            let fits = |h: &HostView| {
                h.up && !never.contains(&h.id)
                    && zone.is_none_or(|z| z == h.zone)
                    && most.is_none_or(|m| members[&h.id] < m)
                    && h.candidate().used["VCPU"] + room < 100
                    && fast.is_none_or(|f| h.candidate().traits.is_empty() != f)
            };
            let chosen = choose(&hosts, &ask, chance);
            prop_assert_eq!(chosen.is_some(), hosts.iter().any(fits));
            prop_assert!(chosen.is_none_or(|at| fits(&hosts[at])));
        }

        /// Claims that are counted never promise more than there is.
        #[test]
        fn counted_claims_fit(claims in prop::collection::vec(1u64..60, 1..30), chance in prop::num::u64::ANY) {
            let mut hosts: Vec<_> = (0..3).map(|n| host(n, "a", true, 10)).collect();
            for amount in claims {
                let ask = Ask { resources: [("VCPU".to_owned(), amount)].into(), ..Ask::default() };
                if let Some(at) = choose(&hosts, &ask, chance) {
                    hosts[at].claim(&ask.resources);
                }
                prop_assert!(hosts.iter().all(|h| h.candidate().used["VCPU"] <= 100));
            }
        }

        /// Affinity goes where the members are, anti-affinity where they are fewest.
        #[test]
        fn soft_policies_lead(at in 0usize..5, chance in prop::num::u64::ANY) {
            let hosts: Vec<_> = (0..5).map(|n| host(n, "a", true, 90 - n * 10)).collect();
            let members = BTreeMap::from([(hosts[at].id, 2)]);
            let near = Ask { members: members.clone(), soft: 1, ..Ask::default() };
            prop_assert_eq!(choose(&hosts, &near, chance), Some(at));
            let far = Ask { members, soft: -1, ..Ask::default() };
            prop_assert_ne!(choose(&hosts, &far, chance), Some(at));
        }
    }

    #[test]
    fn the_emptiest_hosts_come_first() {
        let hosts: Vec<_> = (0..10).map(|n| host(n, "a", true, n * 10)).collect();
        let ask = Ask::default();
        for chance in 0..20 {
            let best = hosts[choose(&hosts, &ask, chance).unwrap()].name.clone();
            assert!(["h0", "h1", "h2"].contains(&best.as_str()), "{best}");
        }
    }
}
