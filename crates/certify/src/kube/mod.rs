//! The scope KaaS: a cluster, by its kubeconfig. The version policy is checked here; the conformance tests of Kubernetes are
//! run by sonobuoy, and their results read here.

mod sonobuoy;
mod version;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::Timestamp;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use osclient::{Client, Trust, http_client};
use serde_json::Value;

use crate::checks::{Finding, Level, Note, Notes, Verdict};
use crate::facts::{Abort, Known};
use crate::rules::{Check, Scope, TestCase};
use crate::run::CaseResult;
use crate::tree;

pub use version::{Sources, Version};

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
            let policy = version::Policy {
                patch: patch_days * 86_400,
                vulnerable: vulnerable_days * 86_400,
                warn: vulnerable_warn_days * 86_400,
                severity: *severity,
                now: cluster.now.as_secs(),
            };
            let running = running_version(&access(&cluster.kubeconfig)?).await?;
            version::judge(&running, &scope.branches, &cluster.sources.told().await?, &policy)
        }
        Check::Sonobuoy { results, arguments } => {
            sonobuoy::run(cluster, results, arguments, &scope.ok_to_fail).await
        }
        Check::NodeLabels { labels } => node_labels(&access(&cluster.kubeconfig)?, labels).await,
        Check::DefaultStorageClass => default_storage_class(&access(&cluster.kubeconfig)?).await,
        _ => Err(Abort("this case is not about a cluster".into())),
    }
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

impl Access {
    async fn get(&self, path: &str) -> Known<Value> {
        let url = format!("{}{path}", self.server);
        let mut request = self.client.get(&url).header("accept", "application/json");
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let told = |e: &dyn std::fmt::Display| Abort(format!("{url}: {e}"));
        let response =
            request.send().await.and_then(|r| r.error_for_status()).map_err(|e| told(&e.without_url()))?;
        response.json().await.map_err(|e| told(&e.without_url()))
    }

    /// The things of a collection.
    async fn list(&self, path: &str) -> Known<Vec<Value>> {
        let mut answer = self.get(path).await?;
        match answer.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => Err(Abort(format!("{}{path}: no list", self.server))),
        }
    }
}

async fn running_version(access: &Access) -> Known<Version> {
    let body = access.get("/version").await?;
    let version = body.get("gitVersion").and_then(Value::as_str).unwrap_or_default();
    Version::parse(version).ok_or_else(|| {
        Abort(format!("the cluster says {version:?}, no released version (vX.Y.Z or vX.Y.Z+build)"))
    })
}

fn name(of: &Value) -> &str {
    of.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

/// Every node says where it is (scs-0214-v2, "Decision"); that all say the same is allowed. A single node is no cluster that
/// outlives a machine.
async fn node_labels(access: &Access, labels: &[String]) -> Known<Notes> {
    let mut notes = Notes::default();
    let nodes = access.list("/api/v1/nodes").await?;
    if nodes.len() < 2 {
        notes.error(format!("the cluster has {} node(s)", nodes.len()));
    }
    for label in labels {
        let value = |node: &Value| {
            let value = node.pointer("/metadata/labels").and_then(|l| l.get(label)).and_then(Value::as_str);
            value.map(str::to_owned)
        };
        notes.offenders(
            &format!("no label {label}"),
            nodes.iter().filter(|n| value(n).is_none()).map(name).collect(),
        );
        let values: BTreeSet<_> = nodes.iter().filter_map(value).collect();
        notes.info(format!("{label}: {}", values.into_iter().collect::<Vec<_>>().join(", ")));
    }
    Ok(notes)
}

/// Exactly one storage class is the default, and has a provisioner (scs-0211-v1, "Decision"). That its volumes can be had is
/// not tried: nothing is made in the cluster.
async fn default_storage_class(access: &Access) -> Known<Notes> {
    let mut notes = Notes::default();
    let classes = access.list("/apis/storage.k8s.io/v1/storageclasses").await?;
    let default = |class: &&Value| {
        let annotations = class.pointer("/metadata/annotations");
        annotations.and_then(|a| a.get("storageclass.kubernetes.io/is-default-class")) == Some(&"true".into())
    };
    let defaults: Vec<&Value> = classes.iter().filter(default).collect();
    if defaults.len() != 1 {
        let names: Vec<&str> = defaults.iter().map(|c| name(c)).collect();
        notes.error(format!(
            "{} of {} storage classes are the default: {}",
            names.len(),
            classes.len(),
            names.join(", ")
        ));
    }
    let lacks = |c: &&&Value| c.get("provisioner") == Some(&"kubernetes.io/no-provisioner".into());
    notes.offenders("without a provisioner", defaults.iter().filter(lacks).map(|c| name(c)).collect());
    Ok(notes)
}
