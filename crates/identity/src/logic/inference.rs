//! Implied roles: who has a role has those it implies, and those they imply.

use std::collections::{BTreeMap, BTreeSet};

/// Which roles a role implies directly, by id.
pub type Rules = BTreeMap<String, BTreeSet<String>>;

/// `roles` and all they imply. Circles do no harm.
pub fn closure<'a>(rules: &'a Rules, roles: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let mut open: Vec<&str> = roles.into_iter().collect();
    let mut all = BTreeSet::new();
    while let Some(role) = open.pop() {
        if all.insert(role)
            && let Some(implied) = rules.get(role)
        {
            open.extend(implied.iter().map(String::as_str));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(pairs: &[(&str, &str)]) -> Rules {
        let mut rules = Rules::new();
        for (prior, implied) in pairs {
            rules.entry((*prior).into()).or_default().insert((*implied).into());
        }
        rules
    }

    #[test]
    fn implication_is_transitive_and_survives_circles() {
        let rules =
            rules(&[("admin", "manager"), ("manager", "member"), ("member", "reader"), ("reader", "member")]);
        assert_eq!(closure(&rules, ["admin"]), BTreeSet::from(["admin", "manager", "member", "reader"]));
        assert_eq!(closure(&rules, ["reader"]), BTreeSet::from(["member", "reader"]));
        assert_eq!(closure(&rules, ["other"]), BTreeSet::from(["other"]));
        assert!(closure(&rules, []).is_empty());
    }
}
