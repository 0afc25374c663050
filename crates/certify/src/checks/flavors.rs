//! scs-0100 and scs-0103: names of flavors, and the flavors that every cloud has.

use serde_json::{Map, Value};

use super::Notes;
use crate::facts::{Abort, Flavor, Known};
use crate::flavor_name;

/// Where a flavor tells its name.
const NAME: &str = "scs:name-v2";

/// Every name with the prefix follows the grammar.
pub(super) fn syntax(flavors: &[Flavor], prefix: &str) -> Known<Notes> {
    let mut notes = Notes::default();
    for flavor in flavors.iter().filter(|f| f.name.starts_with(prefix)) {
        match flavor_name::parse(&flavor.name) {
            Err(reason) => notes.error(format!("flavor {}: {reason}", flavor.name)),
            Ok(found) if found.old => {
                notes.warning(format!("flavor {}: written in the old form (v1)", flavor.name))
            }
            Ok(_) => {}
        }
    }
    Ok(notes)
}

/// Every flavor with such a name is at least what it says.
pub(super) fn semantics(flavors: &[Flavor], prefix: &str) -> Known<Notes> {
    let mut notes = Notes::default();
    for flavor in flavors.iter().filter(|f| f.name.starts_with(prefix)) {
        // What cannot be read is the business of the other case.
        let Ok(said) = flavor_name::parse(&flavor.name) else { continue };
        let name = &flavor.name;
        let unknown = |what: &str| Abort(format!("flavor {name}: {what} is no number"));
        let vcpus = flavor.vcpus.ok_or_else(|| unknown("vcpus"))?;
        let ram = flavor.ram.ok_or_else(|| unknown("ram"))?;
        let disk = flavor.disk.ok_or_else(|| unknown("disk"))?;
        if vcpus < i64::try_from(said.cpus).unwrap_or(i64::MAX) {
            notes.error(format!("flavor {name}: {vcpus} CPUs are fewer than {}", said.cpus));
        }
        // GiB in tenths, rounded: 4045 MiB count as 4 GiB, 4000 MiB do not.
        #[expect(clippy::cast_precision_loss, reason = "MiB of memory are far below 2^52")]
        let gib = ((ram as f64 + 51.0) / 102.4).trunc() / 10.0;
        if gib < said.ram {
            notes.error(format!("flavor {name}: {gib} GiB of memory are less than {}", said.ram));
        }
        let promised = match &said.disk {
            None => 0,
            Some(disk) => disk.gib.ok_or_else(|| {
                Abort(format!(
                    "flavor {name}: a disk without a size cannot be compared (upstream's check aborts on it)"
                ))
            })?,
        };
        if disk < i64::try_from(promised).unwrap_or(i64::MAX) {
            notes.error(format!("flavor {name}: a disk of {disk} GiB is less than {promised}"));
        }
    }
    Ok(notes)
}

/// A flavor every cloud has.
pub(super) struct Wanted<'a> {
    pub name: &'a str,
    pub vcpus: i64,
    pub ram: i64,
    pub disk: i64,
    pub extra_specs: &'a Map<String, Value>,
}

/// The flavor exists and is exactly as specified.
pub(super) fn present(flavors: &[Flavor], wanted: &Wanted<'_>) -> Known<Notes> {
    let mut notes = Notes::default();
    // What the extra spec says goes before the name, and of several the last.
    let by_spec =
        flavors.iter().rfind(|f| f.extra_specs.get(NAME).and_then(Value::as_str) == Some(wanted.name));
    let Some(flavor) = by_spec.or_else(|| flavors.iter().find(|f| f.name == wanted.name)) else {
        notes.error(format!("flavor {} is missing", wanted.name));
        return Ok(notes);
    };
    let numbers = [
        ("vcpus", flavor.vcpus, wanted.vcpus),
        ("ram", flavor.ram, wanted.ram),
        ("disk", flavor.disk, wanted.disk),
    ];
    for (what, is, should) in numbers {
        if is != Some(should) {
            let is = is.map_or_else(|| "no number".to_owned(), |n| n.to_string());
            notes.error(format!("flavor {}: {what} is {is}, should be {should}", flavor.name));
        }
    }
    for (key, should) in wanted.extra_specs {
        let is = flavor.extra_specs.get(key).unwrap_or(&Value::Null);
        if is != should {
            notes.error(format!("flavor {}: {key} is {is}, should be {should}", flavor.name));
        }
    }
    Ok(notes)
}

/// Beyond: extra specs of any flavor have the values the standard knows, and agree with the names they give.
pub(super) fn extra_specs(flavors: &[Flavor]) -> Known<Notes> {
    let mut notes = Notes::default();
    for flavor in flavors {
        for (key, value) in &flavor.extra_specs {
            let text = value.as_str().unwrap_or_default();
            let wrong = if key.starts_with("scs:name-v") {
                match flavor_name::parse(text) {
                    Err(reason) => Some(reason),
                    Ok(said) => flavor
                        .vcpus
                        .is_some_and(|v| v < i64::try_from(said.cpus).unwrap_or(i64::MAX))
                        .then(|| format!("promises {} CPUs", said.cpus)),
                }
            } else if key == "scs:cpu-type" {
                let known = ["crowded-core", "shared-core", "dedicated-thread", "dedicated-core"];
                (!known.contains(&text)).then(|| "not a kind of CPU".to_owned())
            } else if key.starts_with("scs:disk") && key.ends_with("-type") {
                let known = ["network", "hdd", "ssd", "nvme"];
                (!known.contains(&text)).then(|| "not a kind of disk".to_owned())
            } else {
                None
            };
            if let Some(reason) = wrong {
                notes.error(format!("flavor {}: {key} = {text:?}: {reason}", flavor.name));
            }
        }
    }
    Ok(notes)
}
