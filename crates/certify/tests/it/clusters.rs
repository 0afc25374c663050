//! Cases of KaaS against a cluster that says one version, and a sonobuoy that finds what it is told.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use base::Timestamp;
use certify::checks::Verdict;
use certify::kube::{self, Cluster, Sources};
use certify::rules::{Kind, Scope};
use serde_json::json;

const NOW: &str = "2026-11-21";

async fn api(version: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |headers: HeaderMap| async move {
        let known = headers.get("authorization").is_some_and(|v| v == "Bearer key-of-the-cluster");
        let status = if known { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        (status, Json(json!({"major": "1", "minor": "36", "gitVersion": version})))
    };
    let app = axum::Router::new().route("/version", axum::routing::get(answer));
    tokio::spawn(async move { axum::serve(listener, app).await });
    server
}

/// What Kubernetes says of itself: 1.36.3 came out `days` ago, and a vulnerability is in 1.36.0 to 1.36.1.
fn sources(dir: &Path, days: i64) -> Sources {
    let released = Timestamp::parse(NOW).unwrap().plus_secs(-days * 86_400).iso_seconds();
    let release = |tag: &str, pre: bool| json!({"tag_name": tag, "published_at": released, "draft": false, "prerelease": pre});
    let record = json!({"containers": {"cna": {"metrics": [{"cvssV3_1": {"baseScore": 9.1}}], "affected": [
        {"product": "Kubernetes", "versions": [{"version": "1.36.0", "lessThanOrEqual": "1.36.1", "status": "affected"}]}]}}});
    let write = |name: &str, value: serde_json::Value| {
        let path = dir.join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path.display().to_string()
    };
    write("CVE-2026-1.json", record);
    Sources {
        releases: write(
            "releases.json",
            json!([release("v1.36.3", false), release("v1.36.4-rc.0", true), release("v1.37.0", false)]),
        ),
        vulnerabilities: write(
            "feed.json",
            json!({"items": [{"id": "CVE-2026-1"}, {"id": "CVE-of-which-nothing-is-known"}]}),
        ),
        records: dir.display().to_string(),
    }
}

/// A sonobuoy whose only test has this name and status.
fn sonobuoy(dir: &Path, name: &str, status: &str) -> std::path::PathBuf {
    let path = dir.join("sonobuoy");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --kubeconfig ] && shift 2\n[ \"$1\" = retrieve ] || exit 0\nmkdir -p \"$3/plugins/e2e\"\n\
         echo 'items: [{{items: [{{items: [{{name: \"{name}\", status: {status}}}]}}]}}]' > \"$3/plugins/e2e/sonobuoy_results.yaml\"\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

async fn judged(case: &str, version: &'static str, days: i64, test: (&str, &str)) -> Verdict {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig.yaml");
    let text = json!({
        "current-context": "c",
        "contexts": [{"name": "other", "context": {}}, {"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": api(version).await, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "u", "user": {"token": "key-of-the-cluster"}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let cluster = Cluster {
        kubeconfig,
        sonobuoy: sonobuoy(dir.path(), test.0, test.1),
        mode: "dry".into(),
        output: dir.path().to_owned(),
        sources: sources(dir.path(), days),
        now: Timestamp::parse(NOW).unwrap(),
    };
    let scope = Scope::builtin(Kind::Kaas).unwrap();
    kube::run(&cluster, &scope, &[scope.case(case).unwrap()], |_| {}).await.remove(0).verdict
}

#[tokio::test]
async fn a_cluster_must_run_a_recent_patch_of_a_living_branch() {
    let cases = [
        ("v1.36.3", 100, Verdict::Pass),
        ("v1.36.2", 31, Verdict::Pass),
        ("v1.36.2+allod1", 31, Verdict::Pass),
        ("v1.36.2", 32, Verdict::Fail),
        ("v1.36.1", 13, Verdict::Pass),
        ("v1.36.1", 15, Verdict::Fail),
        ("v1.34.9", 1, Verdict::Fail),
        ("v1.37.0", 1, Verdict::Fail),
        ("v1.36.3-vendor.1", 1, Verdict::Abort),
    ];
    for (version, days, expect) in cases {
        assert_eq!(
            judged("version-policy-check", version, days, ("", "")).await,
            expect,
            "{version} after {days} days"
        );
    }
}

#[tokio::test]
async fn conformance_is_what_sonobuoy_finds() {
    for case in ["cncf-k8s-conformance", "kaas-networking-check"] {
        let verdict = |name: &'static str, status: &'static str| judged(case, "v1.36.3", 1, (name, status));
        assert_eq!(verdict("[sig-apps] runs", "passed").await, Verdict::Pass);
        assert_eq!(verdict("[sig-apps] runs", "failed").await, Verdict::Fail);
        let allowed = "[sig-network] Netpol [Feature:SCTPConnectivity] connects";
        assert_eq!(verdict(allowed, "failed").await, Verdict::Pass);
        assert_eq!(verdict("[sig-apps] runs", "[").await, Verdict::Abort, "results that are not YAML");
    }
}
