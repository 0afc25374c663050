//! The scope KaaS: a cluster, by its kubeconfig. The version policy is checked here; the conformance tests of Kubernetes are
//! run by sonobuoy, and their results read here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::Timestamp;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use osclient::{Client, Trust, http_client};
use regex_automata::meta::Regex;
use serde_json::Value;
use tokio::process::Command;

use crate::checks::{Finding, Level, Note, Notes, Verdict};
use crate::facts::{Abort, Known};
use crate::rules::{Branch, Check, OkToFail, Scope, TestCase};
use crate::run::CaseResult;
use crate::tree;

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

/// A cluster to judge.
pub struct Cluster {
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
    /// The program that runs conformance tests.
    pub sonobuoy: PathBuf,
    /// `parallel`, `serial` or `dry`.
    pub mode: String,
    /// Where sonobuoy's results go.
    pub output: PathBuf,
    /// What is known of Kubernetes.
    pub sources: Sources,
    /// Present time.
    pub now: Timestamp,
}

/// Runs cases one after the other: they disturb each other in the cluster.
pub async fn run(
    cluster: &Cluster,
    scope: &Scope,
    cases: &[&TestCase],
    mut done: impl FnMut(&CaseResult),
) -> Vec<CaseResult> {
    let mut results = Vec::new();
    for case in cases {
        let begin = std::time::Instant::now();
        let finding = match evaluate(cluster, scope, &case.check).await {
            Ok(notes) if notes.fine() => Finding { verdict: Verdict::Pass, notes: notes.0 },
            Ok(notes) => Finding { verdict: Verdict::Fail, notes: notes.0 },
            Err(Abort(text)) => {
                Finding { verdict: Verdict::Abort, notes: vec![Note { level: Level::Error, text }] }
            }
        };
        let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let result =
            CaseResult { id: case.id.clone(), verdict: finding.verdict, notes: finding.notes, millis };
        done(&result);
        results.push(result);
    }
    results
}

async fn evaluate(cluster: &Cluster, scope: &Scope, check: &Check) -> Known<Notes> {
    match check {
        Check::KubernetesVersion { patch_days, vulnerable_days, vulnerable_warn_days, severity } => {
            let policy = Policy {
                patch: patch_days * 86_400,
                vulnerable: vulnerable_days * 86_400,
                warn: vulnerable_warn_days * 86_400,
                now: cluster.now.as_secs(),
            };
            let running = cluster_version(&cluster.kubeconfig).await?;
            let releases = cluster.sources.releases().await?;
            let ranges = cluster.sources.ranges(*severity).await?;
            version_policy(&running, &scope.branches, &releases, &ranges, &policy)
        }
        Check::Sonobuoy { results, arguments } => {
            sonobuoy(cluster, results, arguments, &scope.ok_to_fail).await
        }
        _ => Err(Abort("this case is not about a cluster".into())),
    }
}

/// A version of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u64, u64, u64);

impl Version {
    /// `v1.36.2` or `1.36.2+build`; with a suffix it is none.
    pub fn parse(text: &str) -> Option<Version> {
        let plain = text.trim().trim_start_matches('v').split('+').next()?;
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

/// Seconds after which a patch must be in use.
struct Policy {
    patch: i64,
    vulnerable: i64,
    warn: i64,
    now: i64,
}

/// Versions with a vulnerability: from, to, and whether the last belongs to them.
type Range = (Version, Version, bool);

fn version_policy(
    running: &Version,
    branches: &[Branch],
    releases: &[(Version, i64)],
    ranges: &[Range],
    policy: &Policy,
) -> Known<Notes> {
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
    if !supported.contains(&running.branch().as_str()) {
        notes.error(format!("{running}: branch {} is not supported (any more)", running.branch()));
        return Ok(notes);
    }
    let vulnerable =
        ranges.iter().any(|(from, to, last)| from <= running && (running < to || (*last && running == to)));
    let newer = releases.iter().filter(|(v, _)| v.branch() == running.branch() && v > running);
    for (version, released) in newer {
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

impl Sources {
    async fn read(&self, place: &str) -> Known<Value> {
        let told = |e: &dyn std::fmt::Display| Abort(format!("{place}: {e}"));
        if !place.starts_with("http") {
            let text = std::fs::read_to_string(place).map_err(|e| told(&e))?;
            return serde_json::from_str(&text).map_err(|e| told(&e));
        }
        let trust = Trust { verify: true, ca: None, identity: None };
        let client = http_client(&trust, Duration::from_secs(60))?;
        let response = client.get(place).header("accept", "application/json").send().await;
        let response = response.and_then(|r| r.error_for_status()).map_err(|e| told(&e))?;
        response.json().await.map_err(|e| told(&e))
    }

    async fn releases(&self) -> Known<Vec<(Version, i64)>> {
        let list = self.read(&self.releases).await?;
        let list = list.as_array().ok_or_else(|| Abort(format!("{}: no list of releases", self.releases)))?;
        let flag = |r: &Value, name: &str| r.get(name) == Some(&Value::Bool(true));
        let one = |r: &Value| {
            let tag = r.get("tag_name")?.as_str()?.split('-').next()?;
            Some((Version::parse(tag)?, Timestamp::parse(r.get("published_at")?.as_str()?)?.as_secs()))
        };
        Ok(list.iter().filter(|r| !flag(r, "draft") && !flag(r, "prerelease")).filter_map(one).collect())
    }

    /// Versions with vulnerabilities of at least this severity.
    async fn ranges(&self, severity: f64) -> Known<Vec<Range>> {
        let feed = self.read(&self.vulnerabilities).await?;
        let items = feed.get("items").and_then(Value::as_array).cloned();
        let items =
            items.ok_or_else(|| Abort(format!("{}: no list of vulnerabilities", self.vulnerabilities)))?;
        let mut ranges = Vec::new();
        for id in items.iter().filter_map(|i| i.get("id")?.as_str()) {
            let place = if self.records.starts_with("http") {
                format!("{}/{id}", self.records)
            } else {
                format!("{}/{id}.json", self.records)
            };
            // One record that cannot be had says nothing about the others.
            if let Ok(record) = self.read(&place).await {
                ranges.extend(affected(&record, severity));
            }
        }
        Ok(ranges)
    }
}

/// Versions a record (CVE JSON 5) names as affected, if it is severe enough.
fn affected(record: &Value, severity: f64) -> Vec<Range> {
    let cna = record.pointer("/containers/cna").unwrap_or(&Value::Null);
    let list = |v: &Value, name: &str| v.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let severe = list(cna, "metrics").iter().filter_map(Value::as_object).flatten().any(|(key, metric)| {
        let cvss = key.to_lowercase().starts_with("cvssv");
        cvss && metric.get("baseScore").and_then(Value::as_f64).is_some_and(|s| s >= severity)
    });
    if !severe {
        return Vec::new();
    }
    let of_kubernetes = |a: &&Value| a.get("product").and_then(Value::as_str) == Some("Kubernetes");
    let mut ranges = Vec::new();
    for affected in list(cna, "affected").iter().filter(of_kubernetes) {
        for version in list(affected, "versions") {
            let text = |name: &str| version.get(name).and_then(Value::as_str);
            if text("status") != Some("affected") {
                continue;
            }
            let from = text("version").and_then(Version::parse);
            let to = |name: &str| text(name).and_then(Version::parse);
            let least = from.unwrap_or(Version(0, 0, 0));
            if let Some(last) = to("lessThanOrEqual") {
                ranges.push((least, last, true));
            } else if let Some(end) = to("lessThan") {
                ranges.push((least, end, false));
            } else if let Some(one) = from {
                ranges.push((one, one, true));
            }
        }
    }
    ranges
}

/// How a cluster is reached.
struct Access {
    server: String,
    client: Client,
    token: Option<String>,
}

fn access(path: &Path) -> Known<Access> {
    let told = |what: &str| Abort(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| told(&e.to_string()))?;
    // Whoever runs the cluster wrote it.
    let config = tree::yaml(&text).map_err(|_| told("not YAML"))?;
    let named = |list: &str, one: &str, name: &str| {
        let found = config
            .get(list)?
            .as_array()?
            .iter()
            .find(|e| e.get("name").and_then(Value::as_str) == Some(name))?;
        found.get(one).cloned()
    };
    let current =
        config.get("current-context").and_then(Value::as_str).ok_or_else(|| told("no current-context"))?;
    let context =
        named("contexts", "context", current).ok_or_else(|| told("the current context is not there"))?;
    let part = |name: &str| context.get(name).and_then(Value::as_str).unwrap_or_default();
    let cluster = named("clusters", "cluster", part("cluster"))
        .ok_or_else(|| told("the context's cluster is not there"))?;
    let user = named("users", "user", part("user")).unwrap_or_default();
    let dir = path.parent().unwrap_or(Path::new("."));
    // Data in the file, or a file beside it.
    let pem = |of: &Value, name: &str| -> Known<Option<Vec<u8>>> {
        if let Some(data) = of.get(format!("{name}-data")).and_then(Value::as_str) {
            return BASE64_STANDARD
                .decode(data)
                .map(Some)
                .map_err(|_| told(&format!("{name}-data is no base64")));
        }
        match of.get(name).and_then(Value::as_str) {
            Some(file) => std::fs::read(dir.join(file)).map(Some).map_err(|e| told(&format!("{file}: {e}"))),
            None => Ok(None),
        }
    };
    let mut identity = pem(&user, "client-certificate")?;
    if let (Some(identity), Some(key)) = (&mut identity, pem(&user, "client-key")?) {
        identity.extend(key);
    }
    let token = match user.get("tokenFile").and_then(Value::as_str) {
        Some(file) => Some(
            std::fs::read_to_string(dir.join(file))
                .map_err(|e| told(&format!("{file}: {e}")))?
                .trim()
                .to_owned(),
        ),
        None => user.get("token").and_then(Value::as_str).map(str::to_owned),
    };
    let verify = cluster.get("insecure-skip-tls-verify") != Some(&Value::Bool(true));
    let trust = Trust { verify, ca: pem(&cluster, "certificate-authority")?, identity };
    let server = cluster.get("server").and_then(Value::as_str).ok_or_else(|| told("no server"))?;
    let client = http_client(&trust, Duration::from_secs(30))?;
    Ok(Access { server: server.trim_end_matches('/').to_owned(), client, token })
}

async fn cluster_version(kubeconfig: &Path) -> Known<Version> {
    let access = access(kubeconfig)?;
    let url = format!("{}/version", access.server);
    let mut request = access.client.get(&url);
    if let Some(token) = &access.token {
        request = request.bearer_auth(token);
    }
    let told = |e: &dyn std::fmt::Display| Abort(format!("{url}: {e}"));
    let response =
        request.send().await.and_then(|r| r.error_for_status()).map_err(|e| told(&e.without_url()))?;
    let body: Value = response.json().await.map_err(|e| told(&e.without_url()))?;
    let version = body.get("gitVersion").and_then(Value::as_str).unwrap_or_default();
    Version::parse(version)
        .ok_or_else(|| told(&format!("{version:?} is no released version (vX.Y.Z or vX.Y.Z+build)")))
}

async fn sonobuoy(cluster: &Cluster, results: &str, arguments: &[String], ok: &[OkToFail]) -> Known<Notes> {
    let dir = cluster.output.join(results);
    std::fs::create_dir_all(&dir).map_err(|e| Abort(format!("{}: {e}", dir.display())))?;
    let call = |arguments: Vec<String>| {
        let mut command = Command::new(&cluster.sonobuoy);
        command
            .arg("--kubeconfig")
            .arg(&cluster.kubeconfig)
            .args(arguments)
            .stdout(std::process::Stdio::null());
        async move {
            let status = command.status().await;
            let status = status.map_err(|e| {
                Abort(format!("{} (0.57 or newer) is needed: {e}", cluster.sonobuoy.display()))
            })?;
            if status.success() { Ok(()) } else { Err(Abort(format!("sonobuoy ended with {status}"))) }
        }
    };
    let delete = || call(vec!["delete".into(), "--wait".into()]);
    let mut run = vec!["run".to_owned(), "--wait".into()];
    run.extend(arguments.iter().cloned());
    match cluster.mode.as_str() {
        "parallel" => run.push("--e2e-parallel=true".into()),
        "dry" => run.extend(["--plugin-env".to_owned(), "e2e.E2E_DRYRUN=true".to_owned()]),
        _ => {}
    }
    let whole = async {
        delete().await?;
        call(run).await?;
        call(vec!["retrieve".into(), "-x".into(), dir.display().to_string()]).await
    };
    let ended = whole.await;
    let cleaned = delete().await;
    ended?;
    cleaned?;
    let path = dir.join("plugins/e2e/sonobuoy_results.yaml");
    let text = std::fs::read_to_string(&path).map_err(|e| Abort(format!("{}: {e}", path.display())))?;
    conformance(&text, ok)
}

/// Results of sonobuoy: failures that may not be.
fn conformance(text: &str, ok: &[OkToFail]) -> Known<Notes> {
    let mut notes = Notes::default();
    let value = tree::yaml(text).map_err(|_| Abort("sonobuoy's results are not YAML".into()))?;
    let mut patterns = Vec::new();
    for rule in ok {
        let regex = Regex::new(&rule.pattern)
            .map_err(|_| Abort(format!("broken pattern in the rules: {}", rule.pattern)))?;
        patterns.push((regex, &rule.reason));
    }
    let items = |v: &Value| v.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for test in items(&value).iter().flat_map(items).flat_map(|suite| items(&suite)) {
        let field = |name: &str| test.get(name).and_then(Value::as_str).unwrap_or_default();
        let status = if field("status").is_empty() { "skipped" } else { field("status") };
        let allowed = patterns.iter().find(|(r, _)| r.is_match(field("name")));
        let status = match (status, allowed) {
            ("failed", Some((_, reason))) => {
                notes.warning(format!("failed, as it may ({reason}): {}", field("name")));
                "failed, as allowed"
            }
            ("failed", None) => {
                notes.error(format!("failed: {}", field("name")));
                "failed"
            }
            (other, _) => other,
        };
        *counts.entry(status.to_owned()).or_default() += 1;
    }
    let told: Vec<String> = counts.iter().map(|(status, n)| format!("{n} {status}")).collect();
    notes.info(format!("sonobuoy: {}", told.join(", ")));
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Kind;

    fn judged(running: &str, releases: &[(&str, i64)], ranges: &[Range]) -> Verdict {
        let scope = Scope::builtin(Kind::Kaas).unwrap();
        let now = Timestamp::parse("2026-11-21").unwrap().as_secs();
        let policy = Policy { patch: 31 * 86_400, vulnerable: 14 * 86_400, warn: 2 * 86_400, now };
        let releases: Vec<_> =
            releases.iter().map(|(v, days)| (Version::parse(v).unwrap(), now - days * 86_400)).collect();
        let running = Version::parse(running).unwrap();
        let notes = version_policy(&running, &scope.branches, &releases, ranges, &policy).unwrap();
        if notes.fine() { Verdict::Pass } else { Verdict::Fail }
    }

    #[test]
    fn patches_must_be_in_use_in_time() {
        let v = |t| Version::parse(t).unwrap();
        assert_eq!(judged("1.36.2", &[("1.36.2", 90), ("1.35.9", 90)], &[]), Verdict::Pass);
        assert_eq!(judged("v1.36.2+allod.1", &[("1.36.3", 30)], &[]), Verdict::Pass);
        assert_eq!(judged("1.36.2", &[("1.36.3", 32)], &[]), Verdict::Fail);
        assert_eq!(judged("1.36.2", &[("1.36.3", 15)], &[]), Verdict::Pass);
        assert_eq!(judged("1.36.2", &[("1.36.3", 15)], &[(v("1.36.0"), v("1.36.3"), false)]), Verdict::Fail);
        assert_eq!(judged("1.36.2", &[("1.36.3", 10)], &[(v("1.36.0"), v("1.36.2"), true)]), Verdict::Pass);
        assert_eq!(judged("1.36.2", &[("1.36.3", 15)], &[(v("1.36.0"), v("1.36.2"), false)]), Verdict::Pass);
        assert_eq!(judged("1.34.9", &[], &[]), Verdict::Fail, "the branch ended in October");
        assert_eq!(judged("1.37.0", &[], &[]), Verdict::Fail, "a branch nobody knows");
        assert_eq!(Version::parse("v1.36.2-gke.100"), None);
    }

    #[test]
    fn vulnerabilities_count_when_severe() {
        let record = |score: f64| {
            serde_json::json!({"containers": {"cna": {
                "metrics": [{"cvssV3_1": {"baseScore": score}}],
                "affected": [
                    {"product": "Kubernetes", "versions": [
                        {"version": "1.36.0", "lessThan": "1.36.3", "status": "affected"},
                        {"version": "v1.35.1", "status": "affected"},
                        {"version": "1.36.3", "status": "unaffected"}]},
                    {"product": "Other", "versions": [{"version": "1.0.0", "status": "affected"}]}],
            }}})
        };
        assert_eq!(affected(&record(8.8), 8.0).len(), 2);
        assert_eq!(affected(&record(7.9), 8.0).len(), 0);
    }

    #[test]
    fn failures_count_unless_they_may_be() {
        let scope = Scope::builtin(Kind::Kaas).unwrap();
        let results = |name: &str| {
            format!(
                "items: [{{items: [{{items: [{{name: a, status: passed}}, {{name: \"{name}\", status: failed}}]}}]}}]"
            )
        };
        assert!(!conformance(&results("[sig-network] something"), &scope.ok_to_fail).unwrap().fine());
        assert!(
            conformance(&results("[sig-network] Feature:SCTPConnectivity x"), &scope.ok_to_fail)
                .unwrap()
                .fine()
        );
    }
}
