//! scs-0114: what volume types say in their descriptions.

use super::Notes;
use crate::facts::{Known, VolumeType};

/// The aspects in `[scs:a, b]…` at the start of a description; `None` if it does not start so.
fn aspects(description: Option<&str>) -> Option<Vec<&str>> {
    let (inside, _) = description?.strip_prefix("[scs:")?.split_once(']')?;
    if inside.contains('[') {
        return None;
    }
    Some(if inside.is_empty() { Vec::new() } else { inside.split(',').map(str::trim).collect() })
}

/// Where there are aspects, they are known, sorted, and each there once.
pub(super) fn syntax(types: &[VolumeType], known: &[String]) -> Known<Notes> {
    let mut notes = Notes::default();
    for kind in types {
        let Some(found) = aspects(kind.description.as_deref()) else { continue };
        if !found.is_sorted() {
            notes.error(format!("volume type {}: aspects are not sorted", kind.name));
        }
        let mut seen: Vec<&str> = found.clone();
        seen.sort_unstable();
        seen.dedup();
        if seen.len() != found.len() {
            notes.error(format!("volume type {}: an aspect is named twice", kind.name));
        }
        let unknown: Vec<&str> = seen.into_iter().filter(|a| !known.iter().any(|k| k == a)).collect();
        notes.offenders(&format!("volume type {}: unknown aspects", kind.name), unknown);
    }
    Ok(notes)
}

/// Some volume type has the aspect.
pub(super) fn aspect(types: &[VolumeType], wanted: &str) -> Known<Notes> {
    let mut notes = Notes::default();
    if !types.iter().any(|t| aspects(t.description.as_deref()).is_some_and(|a| a.contains(&wanted))) {
        notes.error(format!("no volume type has the aspect {wanted}"));
    }
    Ok(notes)
}
