//! Limits of projects.

use std::collections::BTreeMap;

use base::{Error, Result};

/// A resource with a limit: name, default, and the last microversion that shows it (`None`: all).
pub type Resource = (&'static str, i64, Option<(u16, u16)>);

/// Resources with a limit.
pub const RESOURCES: &[Resource] = &[
    ("instances", 1000, None),
    ("cores", 4000, None),
    ("ram", 8 * 1024 * 1024, None),
    ("metadata_items", 128, None),
    ("key_pairs", 100, None),
    ("server_groups", 100, None),
    ("server_group_members", 100, None),
    ("injected_files", 0, Some((2, 56))),
    ("injected_file_content_bytes", 0, Some((2, 56))),
    ("injected_file_path_bytes", 0, Some((2, 56))),
    ("fixed_ips", -1, Some((2, 35))),
    ("floating_ips", -1, Some((2, 35))),
    ("security_group_rules", -1, Some((2, 35))),
    ("security_groups", -1, Some((2, 35))),
];

/// The limits of a project: the defaults, then the operator's, then its own.
pub fn effective(classes: &[&BTreeMap<String, i64>]) -> BTreeMap<String, i64> {
    let mut limits: BTreeMap<String, i64> = RESOURCES.iter().map(|(n, d, _)| ((*n).to_owned(), *d)).collect();
    for class in classes {
        for (name, limit) in *class {
            limits.insert(name.clone(), *limit);
        }
    }
    limits
}

/// Whether `used + more` stays within the limit.
pub fn within(limits: &BTreeMap<String, i64>, name: &str, used: u64, more: u64) -> bool {
    let limit = limits.get(name).copied().unwrap_or(-1);
    u64::try_from(limit).map_or(true, |limit| used.saturating_add(more) <= limit)
}

/// Refuses with Nova's words where one of `(name, used, more)` would go over its limit.
///
/// # Errors
/// `OverQuota`.
pub fn check(limits: &BTreeMap<String, i64>, asks: &[(&str, u64, u64)]) -> Result<()> {
    let over: Vec<_> = asks.iter().filter(|(n, used, more)| !within(limits, n, *used, *more)).collect();
    if over.is_empty() {
        return Ok(());
    }
    let list =
        |f: &dyn Fn(&(&str, u64, u64)) -> String| over.iter().map(|a| f(a)).collect::<Vec<_>>().join(", ");
    let names = list(&|(n, _, _)| (*n).to_owned());
    let asked = list(&|(_, _, more)| more.to_string());
    let used = list(&|(_, used, _)| used.to_string());
    let allowed = list(&|(n, _, _)| limits.get(*n).copied().unwrap_or(-1).to_string());
    Err(Error::over_quota(format!(
        "Quota exceeded for {names}: Requested {asked}, but already used {used} of {allowed} {names}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_quota_says_what_and_how_much() {
        let own = BTreeMap::from([("instances".to_owned(), 2)]);
        let limits = effective(&[&own]);
        assert!(check(&limits, &[("instances", 1, 1), ("cores", 1, 1)]).is_ok());
        let error = check(&limits, &[("instances", 2, 1)]).unwrap_err();
        assert_eq!(
            error.public(),
            "Quota exceeded for instances: Requested 1, but already used 2 of 2 instances"
        );
        assert!(within(&effective(&[&BTreeMap::from([("ram".to_owned(), -1)])]), "ram", u64::MAX, 1));
    }
}
