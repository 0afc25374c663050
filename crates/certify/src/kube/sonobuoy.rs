//! Conformance tests of Kubernetes: `sonobuoy` runs them, its results are read here.

use std::collections::BTreeMap;

use regex_automata::meta::Regex;
use serde_json::Value;
use tokio::process::Command;

use super::Cluster;
use crate::checks::Notes;
use crate::facts::{Abort, Known};
use crate::rules::OkToFail;
use crate::tree;

/// Has the tests run in the cluster, and tells which failed that may not.
pub(super) async fn run(
    cluster: &Cluster,
    results: &str,
    arguments: &[String],
    ok: &[OkToFail],
) -> Known<Notes> {
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
    let path = dir.join("plugins/e2e/sonobuoy_results.yaml");
    let text = std::fs::read_to_string(&path).map_err(|e| Abort(format!("{}: {e}", path.display())))?;
    let mut notes = conformance(&text, ok)?;
    // What the tests found stands, whatever became of their namespace.
    if let Err(Abort(text)) = cleaned {
        notes.warning(format!("sonobuoy has left something in the cluster: {text}"));
    }
    Ok(notes)
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
    let strange = || Abort("sonobuoy's results are not what they should be".into());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for file in items(&value).ok_or_else(strange)? {
        for suite in items(file).ok_or_else(strange)? {
            for test in items(suite).ok_or_else(strange)? {
                let test = test.as_object().ok_or_else(strange)?;
                let status = test.get("status").map_or("skipped", |s| s.as_str().unwrap_or("unknown"));
                let status = if status == "failed" {
                    let name = test.get("name").and_then(Value::as_str).ok_or_else(strange)?;
                    match patterns.iter().find(|(r, _)| r.is_match(name)) {
                        Some((_, reason)) => {
                            notes.warning(format!("failed, as it may ({reason}): {name}"));
                            "failed, as allowed"
                        }
                        None => {
                            notes.error(format!("failed: {name}"));
                            status
                        }
                    }
                } else {
                    status
                };
                *counts.entry(status.to_owned()).or_default() += 1;
            }
        }
    }
    if !counts.contains_key("passed") {
        notes.warning("no test has passed: nothing is shown by this");
    }
    let told: Vec<String> = counts.iter().map(|(status, n)| format!("{n} {status}")).collect();
    notes.info(format!("sonobuoy: {}", told.join(", ")));
    Ok(notes)
}

/// Items of a file, a suite or the whole; `None`: it is no such thing.
fn items(of: &Value) -> Option<&[Value]> {
    match of.as_object()?.get("items") {
        Some(items) => items.as_array().map(Vec::as_slice),
        None => Some(&[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Kind, Scope};

    #[test]
    fn failures_count_unless_they_may_be() {
        let ok = Scope::builtin(Kind::Kaas).unwrap().ok_to_fail;
        let fine = |text: &str| conformance(text, &ok).ok().map(|notes| notes.fine());
        let failed = |name: &str| {
            fine(&format!(
                "items: [{{items: [{{items: [{{status: passed}}, {{name: \"{name}\", status: failed}}]}}]}}]"
            ))
        };
        assert_eq!(failed("[sig-network] something"), Some(false));
        assert_eq!(failed("[sig-network] Feature:SCTPConnectivity x"), Some(true));
        assert_eq!(fine("items: [{items: [{items: [{status: failed}]}]}]"), None, "which one?");
        assert_eq!(fine("items: null"), None);
        assert_eq!(fine(""), None);
        assert_eq!(fine("{}"), Some(true), "as upstream sees it");
    }
}
