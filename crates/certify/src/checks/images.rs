//! scs-0102 and scs-0104: what images say of themselves, and which there must be.

use std::collections::BTreeMap;

use regex_automata::meta::Regex;

use super::Notes;
use crate::dates;
use crate::facts::{Abort, Image, Known, integer};
use crate::rules::Accept;

/// Every image has an accepted value.
pub(super) fn property(images: &[Image], property: &str, accept: &[Accept]) -> Known<Notes> {
    let mut notes = Notes::default();
    for image in images {
        let mut fine = false;
        for rule in accept {
            fine = fine || accepted(image, property, rule)?;
        }
        if !fine {
            let value = image.get(property).map_or_else(|| "not set".to_owned(), ToString::to_string);
            notes.error(format!("image {}: {property} is {value}", image.name()));
        }
    }
    if property == "min_ram" {
        let small = images.iter().filter(|i| matches!(i.number("min_ram"), Some(1..64)));
        let names: Vec<_> = small.map(Image::name).collect();
        if !names.is_empty() {
            notes.warning(format!("min_ram is below 64 MiB: {}", names.join(", ")));
        }
    }
    Ok(notes)
}

fn accepted(image: &Image, property: &str, rule: &Accept) -> Known<bool> {
    let value = image.get(property);
    let text = value.and_then(serde_json::Value::as_str);
    // A value of another kind is neither right nor wrong: nobody can tell.
    let must_be_text = || match (value, text) {
        (Some(_), None) => Err(Abort(format!("image {}: {property} is no text", image.name()))),
        _ => Ok(text),
    };
    Ok(match rule {
        Accept::Absent => value.is_none(),
        Accept::Unset => value.is_none() || text == Some(""),
        Accept::Set => match (text, value.and_then(integer)) {
            (Some(text), _) => !text.is_empty(),
            (None, Some(number)) => number != 0,
            (None, None) => value.is_some_and(|v| *v != serde_json::json!(false)),
        },
        Accept::OneOf(list) => text.is_some_and(|t| list.iter().any(|l| l == t)),
        Accept::AtLeast(least) => value.and_then(integer).is_some_and(|n| n >= *least),
        Accept::Date => must_be_text()?.is_some_and(|t| dates::any(t).is_some()),
        Accept::Url(schemes) => {
            let scheme = must_be_text()?.and_then(|t| t.split_once("://")).map(|(scheme, _)| scheme);
            scheme.is_some_and(|s| schemes.iter().any(|l| l == s))
        }
        Accept::Pattern(pattern) => match must_be_text()? {
            Some(text) => regex(&format!("^(?:{pattern})$"))?.is_match(text),
            None => false,
        },
    })
}

fn regex(pattern: &str) -> Known<Regex> {
    Regex::new(pattern).map_err(|_| Abort(format!("the rules have a broken pattern: {pattern}")))
}

/// Every image names a disk size that holds its bytes.
pub(super) fn min_disk(images: &[Image]) -> Known<Notes> {
    let mut notes = Notes::default();
    for image in images {
        let Some(gib) = image.number("min_disk").filter(|n| *n != 0) else {
            notes.error(format!("image {}: min_disk is not set", image.name()));
            continue;
        };
        let size =
            image.number("size").ok_or_else(|| Abort(format!("image {} has no size", image.name())))?;
        if gib.saturating_mul(1 << 30) < size {
            notes.error(format!("image {}: min_disk {gib} GiB does not hold its {size} bytes", image.name()));
        }
    }
    Ok(notes)
}

fn registered(image: &Image) -> Known<Option<i64>> {
    let text = image
        .texts("created_at")?
        .ok_or_else(|| Abort(format!("image {} has no created_at", image.name())))?;
    Ok(dates::strict(text))
}

fn built(image: &Image) -> Known<Option<i64>> {
    Ok(image.texts("image_build_date")?.and_then(dates::any))
}

/// Every image was built at a date before its registration and not in the future.
pub(super) fn build_date(images: &[Image], now: i64) -> Known<Notes> {
    let mut notes = Notes::default();
    for image in images {
        let name = image.name();
        let (registered, built) = (registered(image)?, built(image)?);
        match (built, registered) {
            (None, _) => notes.error(format!("image {name}: image_build_date is not set or no date")),
            (Some(_), None) => {
                let told = image.text("created_at").unwrap_or_default();
                notes.error(format!("image {name}: created_at {told} is not YYYY-MM-DDTHH:MM:SSZ"));
            }
            (Some(built), Some(registered)) if built > registered => {
                notes.error(format!("image {name}: built after it was registered"));
            }
            _ => {}
        }
        if built.or(registered).unwrap_or(0) > now {
            notes.error(format!("image {name}: built in the future"));
        }
    }
    Ok(notes)
}

/// When an image is too old.
pub(super) struct Recency<'a> {
    pub slack: f64,
    pub periods: &'a BTreeMap<String, i64>,
    pub exempt: &'a [String],
    pub no_promise: &'a [String],
    pub now: i64,
}

enum Age {
    Fine,
    Outdated,
    /// `provided_until` cannot be read.
    Unclear,
}

impl Recency<'_> {
    fn age(&self, image: &Image) -> Known<Age> {
        let built = match built(image)? {
            Some(built) => built,
            None => registered(image)?.unwrap_or(0),
        };
        let frequency = image.text("replace_frequency").unwrap_or("never");
        let Some(period) =
            self.periods.get(frequency).filter(|_| !self.exempt.iter().any(|e| e == frequency))
        else {
            return Ok(Age::Fine);
        };
        #[expect(clippy::cast_precision_loss, reason = "seconds of a few years")]
        if self.now as f64 <= built as f64 + self.slack * *period as f64 {
            return Ok(Age::Fine);
        }
        let until = image.texts("provided_until")?.ok_or_else(|| {
            Abort(format!(
                "image {} is outdated and has no provided_until (upstream's check aborts on it)",
                image.name()
            ))
        })?;
        if self.no_promise.iter().any(|n| n == until) {
            return Ok(Age::Fine);
        }
        Ok(match dates::any(until) {
            None => Age::Unclear,
            Some(until) if self.now > until => Age::Fine,
            Some(_) => Age::Outdated,
        })
    }
}

/// No image is older than it says it gets, unless the one it was replaced by is current.
pub(super) fn recency(images: &[Image], rule: &Recency<'_>) -> Known<Notes> {
    let mut notes = Notes::default();
    let by_name: BTreeMap<&str, &Image> = images.iter().map(|i| (i.name(), i)).collect();
    if by_name.len() != images.len() {
        notes.warning("several images have the same name; the last of them counts");
    }
    for image in images {
        let name = image.name();
        match rule.age(image)? {
            Age::Fine => continue,
            Age::Unclear => {
                notes.error(format!("image {name}: provided_until is no date"));
                continue;
            }
            Age::Outdated => {}
        }
        if image.get("os_hidden") != Some(&serde_json::json!(true)) {
            notes.warning(format!("image {name} is outdated and not hidden"));
        }
        // `Ubuntu 24.04 20260801` is replaced by `Ubuntu 24.04`.
        let short = name.rsplit_once(' ').map(|(short, _)| short.trim_end());
        let replaced = match short.and_then(|s| by_name.get(s)) {
            Some(replacement) => matches!(rule.age(replacement)?, Age::Fine),
            None => false,
        };
        if !replaced {
            notes.error(format!("image {name} is outdated and nothing current replaces it"));
        }
    }
    Ok(notes)
}

/// At most one public image of a purpose per distribution, version and architecture.
pub(super) fn unique(images: &[Image], purpose: &str) -> Known<Notes> {
    let mut notes = Notes::default();
    let mut groups: BTreeMap<(&str, &str, &str), Vec<&str>> = BTreeMap::new();
    for image in images {
        let seen = image.text("visibility") == Some("public")
            && image.get("os_hidden") != Some(&serde_json::json!(true));
        let filled = |name: &str| image.text(name).filter(|t| !t.is_empty());
        let (Some(distro), Some(version)) = (filled("os_distro"), filled("os_version")) else { continue };
        if seen && image.text("os_purpose") == Some(purpose) {
            groups
                .entry((image.text("architecture").unwrap_or_default(), distro, version))
                .or_default()
                .push(image.name());
        }
    }
    for ((architecture, distro, version), names) in groups.into_iter().filter(|(_, names)| names.len() > 1) {
        notes.offenders(&format!("several {purpose} images of {distro} {version} {architecture}"), names);
    }
    Ok(notes)
}

/// Images with exactly this name (the last), or whose name begins with a match.
fn named<'a>(images: &'a [Image], name: Option<&str>, pattern: Option<&str>) -> Known<Vec<&'a Image>> {
    let by_name: BTreeMap<&str, &Image> = images.iter().map(|i| (i.name(), i)).collect();
    match (name, pattern) {
        (_, Some(pattern)) => {
            let regex = regex(&format!("^(?:{pattern})"))?;
            Ok(by_name.iter().filter(|(name, _)| regex.is_match(**name)).map(|(_, image)| *image).collect())
        }
        (Some(name), None) => Ok(by_name.get(name).copied().into_iter().collect()),
        (None, None) => Err(Abort("the rules name no image".into())),
    }
}

/// Images of that name come from one of the places.
pub(super) fn source(
    images: &[Image],
    name: Option<&str>,
    pattern: Option<&str>,
    places: &[String],
) -> Known<Notes> {
    let mut notes = Notes::default();
    for image in named(images, name, pattern)? {
        let from = image.texts("image_source")?.unwrap_or_default();
        if !places.iter().any(|p| from.starts_with(p.as_str())) {
            notes.error(format!(
                "image {}: image_source {from:?} begins with none of {}",
                image.name(),
                places.join(", ")
            ));
        }
    }
    Ok(notes)
}

/// There is an image of that name.
pub(super) fn present(images: &[Image], name: Option<&str>, pattern: Option<&str>) -> Known<Notes> {
    let mut notes = Notes::default();
    if named(images, name, pattern)?.is_empty() {
        notes.error(format!("there is no image {:?}", name.or(pattern).unwrap_or_default()));
    }
    Ok(notes)
}
