//! The version policy (scs-0210): what Kubernetes says of its releases and vulnerabilities, and what that means for a cluster.

use std::time::Duration;

use base::Timestamp;
use futures::{StreamExt, TryStreamExt, stream};
use osclient::{Client, Trust, http_client};
use serde_json::Value;

use crate::checks::Notes;
use crate::facts::{Abort, Known};
use crate::rules::Branch;

/// Records that are asked for at the same time.
const AT_ONCE: usize = 5;

/// Where releases and vulnerabilities of Kubernetes are told.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Releases, as GitHub's API lists them: URL or file.
    pub releases: String,
    /// The official list of vulnerabilities: URL or file.
    pub vulnerabilities: String,
    /// Where one of them is explained: URL or directory, with the id behind it.
    pub records: String,
}

impl Default for Sources {
    fn default() -> Self {
        Sources {
            releases: "https://api.github.com/repos/kubernetes/kubernetes/releases?per_page=100".into(),
            vulnerabilities:
                "https://kubernetes.io/docs/reference/issues-security/official-cve-feed/index.json".into(),
            records: "https://cveawg.mitre.org/api/cve".into(),
        }
    }
}

/// A version of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u64, u64, u64);

impl Version {
    /// `v1.36.2` or `1.36.2+build`; with a suffix it is none.
    pub fn parse(text: &str) -> Option<Version> {
        let plain = text.trim();
        let plain = plain.strip_prefix('v').unwrap_or(plain).split('+').next()?;
        let parts: Option<Vec<u64>> = plain.split('.').map(|p| p.parse().ok()).collect();
        match parts?.as_slice() {
            [a, b, c] => Some(Version(*a, *b, *c)),
            _ => None,
        }
    }

    fn branch(self) -> String {
        format!("{}.{}", self.0, self.1)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// When what must be in use.
pub(super) struct Policy {
    /// Seconds after which a patch must be in use.
    pub patch: i64,
    /// The same, when the running version has a vulnerability.
    pub vulnerable: i64,
    /// Seconds after which that is worth a warning.
    pub warn: i64,
    /// Least base score of a vulnerability that counts.
    pub severity: f64,
    /// Present time.
    pub now: i64,
}

/// Versions with a vulnerability: from, to, and whether the last belongs to them.
type Range = (Version, Version, bool);

/// What Kubernetes tells of itself.
pub(super) struct Told {
    /// As GitHub's API answers.
    pub releases: Value,
    /// Records of vulnerabilities (CVE JSON 5).
    pub records: Vec<Value>,
}

/// Judges a version. What stands in the way of a verdict only stands in its way when the verdict depends on it, in upstream's
/// order: vulnerabilities, the branch, releases from the first to the one that decides.
pub(super) fn judge(running: &Version, branches: &[Branch], told: &Told, policy: &Policy) -> Known<Notes> {
    let mut notes = Notes::default();
    let today = Timestamp::from_secs(policy.now).iso_seconds();
    let supported: Vec<&str> = branches
        .iter()
        .filter(|b| b.end_of_life.as_str() > today.get(..10).unwrap_or_default())
        .map(|b| b.branch.as_str())
        .collect();
    if supported.len() < 2 {
        return Err(Abort(
            "the rules know fewer than two supported branches of Kubernetes: they are out of date".into(),
        ));
    }
    if supported.len() < 3 {
        notes.warning("the rules know fewer than three supported branches of Kubernetes");
    }
    let mut vulnerable = false;
    for record in &told.records {
        let ranges = affected(record, policy.severity)?;
        vulnerable |= ranges
            .iter()
            .any(|(from, to, last)| from <= running && (running < to || (*last && running == to)));
    }
    if !supported.contains(&running.branch().as_str()) {
        notes.error(format!("{running}: branch {} is not supported (any more)", running.branch()));
        return Ok(notes);
    }
    let releases = told.releases.as_array().ok_or_else(|| Abort("no list of releases".into()))?;
    for entry in releases {
        let (version, released) = match release(entry) {
            Ok(Some(release)) => release,
            Ok(None) => continue,
            Err(_) if !notes.fine() => continue,
            Err(abort) => return Err(abort),
        };
        if version.branch() != running.branch() || version <= *running {
            continue;
        }
        let age = policy.now - released;
        if age > policy.patch {
            notes.error(format!("{running}: {version} is out for {} days", age / 86_400));
        } else if vulnerable && age > policy.vulnerable {
            notes.error(format!("{running} has a vulnerability; {version} is out for {} days", age / 86_400));
        } else if vulnerable && age > policy.warn {
            notes.warning(format!("{running} has a vulnerability; {version} is out"));
        }
    }
    Ok(notes)
}

/// A release and its moment; `None`: not one that anybody must run.
fn release(entry: &Value) -> Known<Option<(Version, i64)>> {
    let strange = || Abort(format!("a release that cannot be understood: {entry}"));
    let flag = |name: &str| entry.get(name).and_then(Value::as_bool).ok_or_else(strange);
    if flag("draft")? || flag("prerelease")? {
        return Ok(None);
    }
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let version = text("tag_name").and_then(|tag| Version::parse(tag.split('-').next()?));
    let moment = text("published_at").and_then(Timestamp::parse);
    Ok(Some((version.ok_or_else(strange)?, moment.ok_or_else(strange)?.as_secs())))
}

impl Sources {
    /// Everything, from files or over HTTP. An answer counts whatever its status is, as long as it is JSON: what is not
    /// published is told as a JSON error.
    pub(super) async fn told(&self) -> Known<Told> {
        let client = http_client(&Trust { verify: true, ca: None, identity: None }, Duration::from_secs(60))?;
        let records = async {
            let feed = read(&client, &self.vulnerabilities).await?;
            let strange = || Abort(format!("{}: no list of vulnerabilities", self.vulnerabilities));
            let items = feed.get("items").and_then(Value::as_array).ok_or_else(strange)?;
            let id =
                |item: &Value| item.get("id").and_then(Value::as_str).map(str::to_owned).ok_or_else(strange);
            let ids: Vec<String> = items.iter().map(id).collect::<Known<_>>()?;
            stream::iter(ids).map(|id| self.record(&client, id)).buffered(AT_ONCE).try_collect().await
        };
        let (releases, records) = tokio::join!(read(&client, &self.releases), records);
        Ok(Told { releases: releases?, records: records? })
    }

    async fn record(&self, client: &Client, id: String) -> Known<Value> {
        if self.records.starts_with("http") {
            return read(client, &format!("{}/{id}", self.records)).await;
        }
        let path = format!("{}/{id}.json", self.records);
        // Not published, as an URL says with a 404.
        if std::path::Path::new(&path).exists() { read(client, &path).await } else { Ok(Value::Null) }
    }
}

async fn read(client: &Client, place: &str) -> Known<Value> {
    let told = |e: &dyn std::fmt::Display| Abort(format!("{place}: {e}"));
    if !place.starts_with("http") {
        let text = std::fs::read_to_string(place).map_err(|e| told(&e))?;
        return serde_json::from_str(&text).map_err(|e| told(&e));
    }
    let response = client.get(place).header("accept", "application/json").send().await;
    let response = response.map_err(|e| told(&e.without_url()))?;
    let status = response.status();
    response.json().await.map_err(|_| told(&format!("{status}, and no JSON")))
}

/// Versions a record (CVE JSON 5) names as affected, if it is severe enough. A record without them says nothing; one that
/// names them in a way that cannot be understood stands in the way of a verdict.
fn affected(record: &Value, severity: f64) -> Known<Vec<Range>> {
    let id = record.pointer("/cveMetadata/cveId").and_then(Value::as_str).unwrap_or("a record");
    let strange = || Abort(format!("{id}: what it affects cannot be understood"));
    let part = |name: &str| record.pointer(&format!("/containers/cna/{name}"));
    let (Some(metrics), Some(products)) = (part("metrics"), part("affected")) else {
        return Ok(Vec::new());
    };
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().ok_or_else(strange);
    if !severe(&list(Some(metrics))?, severity).ok_or_else(strange)? {
        return Ok(Vec::new());
    }
    let mut ranges = Vec::new();
    for product in list(Some(products))? {
        if product.get("product").ok_or_else(strange)? != "Kubernetes" {
            continue;
        }
        for version in list(product.get("versions"))? {
            if version.get("status").ok_or_else(strange)? == "affected" {
                ranges.extend(range(&version).ok_or_else(strange)?);
            }
        }
    }
    Ok(ranges)
}

/// Whether one of the scores reaches this one; `None`: a metric without a score.
fn severe(metrics: &[Value], severity: f64) -> Option<bool> {
    for (key, metric) in metrics.iter().filter_map(Value::as_object).flatten() {
        let cvss = key.to_lowercase().starts_with("cvssv");
        if cvss && metric.get("baseScore")?.as_f64()? >= severity {
            return Some(true);
        }
    }
    Some(false)
}

/// The versions that one entry means, if any of them has three numbers; `None`: it contradicts itself.
fn range(entry: &Value) -> Option<Option<Range>> {
    let text = entry.get("version")?.as_str()?;
    let from = Version::parse(text);
    let end = |name: &str| entry.get(name).map(|end| end.as_str().and_then(Version::parse));
    let least = from.unwrap_or(Version(0, 0, 0));
    let range = match (end("lessThanOrEqual"), end("lessThan")) {
        (Some(last), _) => (least, last?, true),
        (None, Some(end)) => (least, end?, false),
        (None, None) => match (from, text.split_once(" - ")) {
            (Some(one), _) => (one, one, true),
            // Not what the schema means, and yet written: `1.36.0 - 1.36.2`.
            (None, Some((from, to))) => match (Version::parse(from), Version::parse(to)) {
                (Some(from), Some(to)) => (from, to, false),
                _ => return Some(None),
            },
            (None, None) => return Some(None),
        },
    };
    (range.0 <= range.1).then_some(Some(range))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rules::{Kind, Scope};

    const NOW: &str = "2026-11-21";

    fn policy() -> Policy {
        let now = Timestamp::parse(NOW).unwrap().as_secs();
        Policy { patch: 31 * 86_400, vulnerable: 14 * 86_400, warn: 2 * 86_400, severity: 8.0, now }
    }

    fn record(score: f64, versions: &Value) -> Value {
        json!({"containers": {"cna": {
            "metrics": [{"cvssV3_1": {"baseScore": score}}],
            "affected": [{"product": "Kubernetes", "versions": versions}, {"product": "Other", "versions": []}],
        }}})
    }

    /// Whether the running version is fine, `None`: it cannot be found out.
    fn judged(running: &str, releases: &[(&str, i64)], versions: Value) -> Option<bool> {
        let scope = Scope::builtin(Kind::Kaas).unwrap();
        let release = |(tag, days): &(&str, i64)| {
            let at = Timestamp::from_secs(policy().now - days * 86_400).iso_seconds();
            json!({"tag_name": tag, "published_at": at, "draft": false, "prerelease": false})
        };
        let releases = releases.iter().map(release).collect::<Vec<_>>().into();
        let told = Told { releases, records: vec![Value::Null, record(8.0, &versions)] };
        let notes = judge(&Version::parse(running).unwrap(), &scope.branches, &told, &policy());
        notes.ok().map(|n| n.fine())
    }

    #[test]
    fn patches_must_be_in_use_in_time() {
        let none = || json!([]);
        let to =
            |end: &str, version: &str| json!([{"version": "1.36.0", "status": "affected", end: version}]);
        assert_eq!(judged("1.36.2", &[("1.36.2", 90), ("1.35.9", 90)], none()), Some(true));
        assert_eq!(judged("v1.36.2+allod.1", &[("1.36.3", 30)], none()), Some(true));
        assert_eq!(judged("1.36.2", &[("1.36.3", 32)], none()), Some(false));
        assert_eq!(judged("1.36.2", &[("1.36.3", 15)], none()), Some(true));
        assert_eq!(judged("1.36.2", &[("1.36.3", 15)], to("lessThan", "1.36.3")), Some(false));
        assert_eq!(judged("1.36.2", &[("1.36.3", 10)], to("lessThanOrEqual", "1.36.2")), Some(true));
        assert_eq!(judged("1.36.2", &[("1.36.3", 15)], to("lessThan", "1.36.2")), Some(true));
        assert_eq!(judged("1.34.9", &[], none()), Some(false), "the branch ended in October");
        assert_eq!(judged("1.37.0", &[], none()), Some(false), "a branch nobody knows");
        assert_eq!(Version::parse("v1.36.2-gke.100"), None);
        assert_eq!(Version::parse("vv1.36.2"), None);
    }

    #[test]
    fn vulnerabilities_count_when_severe_and_understood() {
        let count = |score, versions| affected(&record(score, &versions), 8.0).map(|r| r.len()).ok();
        let versions = json!([
            {"version": "1.36.0", "lessThan": "1.36.3", "status": "affected"},
            {"version": "v1.35.1", "status": "affected"},
            {"version": "1.33.0 - 1.33.4", "status": "affected"},
            {"version": "n/a", "status": "affected"},
            {"version": "1.36.3", "status": "unaffected"}]);
        assert_eq!(count(8.8, versions.clone()), Some(3));
        assert_eq!(count(7.9, versions), Some(0));
        assert_eq!(
            count(9.0, json!([{"version": "1.36.0", "lessThan": "1.36", "status": "affected"}])),
            None
        );
        assert_eq!(
            count(9.0, json!([{"version": "1.36.3", "lessThan": "1.36.0", "status": "affected"}])),
            None
        );
        assert_eq!(count(9.0, json!([{"version": "1.36.3"}])), None);
        assert_eq!(count(9.0, Value::Null), None);
        assert_eq!(count(1.0, Value::Null), Some(0));
    }
}
