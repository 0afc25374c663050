//! Cases of KaaS against clusters that are broken in one place at a time, and a sonobuoy that finds what it is told.

use std::collections::BTreeMap;

use base::Timestamp;
use certify::checks::Verdict;
use certify::kube::{self, Cluster, Sources};
use certify::rules::{Kind, Scope, TestCase};
use certify::run::CaseResult;

use super::cluster_variants::{self as variants, Variant};
use super::stubcluster::{FEED, RECORDS, RELEASES, Stub};

const NOW: &str = "2026-11-21";

async fn judged(stub: &Stub, world: &str, output: &std::path::Path, cases: &[&TestCase]) -> Vec<CaseResult> {
    let base = format!("http://127.0.0.1:{}", stub.port(world));
    let cluster = Cluster {
        kubeconfig: stub.kubeconfig(world),
        sonobuoy: stub.sonobuoy(),
        mode: "dry".into(),
        output: output.join(world),
        sources: Sources {
            releases: format!("{base}{RELEASES}"),
            vulnerabilities: format!("{base}{FEED}"),
            records: format!("{base}{RECORDS}"),
        },
        now: Timestamp::parse(NOW).unwrap(),
    };
    kube::run(&cluster, &Scope::builtin(Kind::Kaas).unwrap(), cases, |_| {}).await
}

fn cases() -> Vec<TestCase> {
    let scope = Scope::builtin(Kind::Kaas).unwrap();
    let automatic = scope.testcases.into_iter().filter(|c| !c.check.is_manual());
    automatic.chain(Scope::beyond(Kind::Kaas).unwrap()).collect()
}

#[tokio::test]
async fn every_requirement_broken_in_turn_is_found() {
    let now = Timestamp::parse(NOW).unwrap();
    let (all, cases) = (variants::all(now), cases());
    let mut worlds = BTreeMap::from([("right".to_owned(), variants::right(now))]);
    for variant in &all {
        let mut world = variants::right(now);
        (variant.change)(&mut world);
        worlds.insert(variant.name.clone(), world);
    }
    assert_eq!(worlds.len(), all.len() + 1, "two variants have the same name");
    for case in &cases {
        for wanted in [Verdict::Fail, Verdict::Pass, Verdict::Abort] {
            let there = |v: &&Variant| v.case == case.id && v.expect == wanted;
            assert!(
                all.iter().any(|v| there(&v)),
                "{} has no variant that comes to {}",
                case.id,
                wanted.name()
            );
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let stub = Stub::serve(dir.path(), worlds).await;
    let output = tempfile::tempdir().unwrap();
    let right = judged(&stub, "right", output.path(), &cases.iter().collect::<Vec<_>>()).await;
    assert!(right.iter().all(|r| r.verdict == Verdict::Pass), "{right:#?}");
    let mut wrong = Vec::new();
    for variant in &all {
        let case = cases.iter().find(|c| c.id == variant.case).unwrap();
        let result = judged(&stub, &variant.name, output.path(), &[case]).await.remove(0);
        if result.verdict != variant.expect {
            let (is, should) = (result.verdict.name(), variant.expect.name());
            wrong.push(format!("{}: {is}, not {should}: {:?}", variant.name, result.notes));
        }
    }
    assert!(wrong.is_empty(), "{} of {} variants:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}

#[tokio::test]
async fn what_kubernetes_says_may_lie_in_files() {
    let now = Timestamp::parse(NOW).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut old = variants::right(now);
    old.answers.get_mut("/version").unwrap().body["gitVersion"] = "v1.36.2".into();
    let right = variants::right(now);
    let put = |name: &str, path: &str| {
        let place = dir.path().join(name);
        std::fs::write(&place, right.answers[path].body.to_string()).unwrap();
        place.display().to_string()
    };
    put("CVE-2026-1.json", "/api/cve/CVE-2026-1");
    let sources = Sources {
        releases: put("releases.json", RELEASES),
        vulnerabilities: put("feed.json", FEED),
        records: dir.path().display().to_string(),
    };
    let stubs = tempfile::tempdir().unwrap();
    let worlds = BTreeMap::from([("right".to_owned(), right.clone()), ("old".to_owned(), old)]);
    let stub = Stub::serve(stubs.path(), worlds).await;
    let scope = Scope::builtin(Kind::Kaas).unwrap();
    for (world, expect) in [("right", Verdict::Pass), ("old", Verdict::Fail)] {
        let cluster = Cluster {
            kubeconfig: stub.kubeconfig(world),
            sonobuoy: stub.sonobuoy(),
            mode: "dry".into(),
            output: dir.path().to_owned(),
            sources: sources.clone(),
            now,
        };
        let case = scope.case("version-policy-check").unwrap();
        assert_eq!(kube::run(&cluster, &scope, &[case], |_| {}).await[0].verdict, expect, "{world}");
    }
}
