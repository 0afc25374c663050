//! Cases against a cloud that is broken in one place at a time.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cluster_variants;
mod clusters;
mod stub;
mod stubcluster;
mod variants;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base::SystemClock;
use certify::checks::Verdict;
use certify::facts::{Facts, Settings};
use certify::journal::{Header, Journal};
use certify::rules::{Kind, Scope, TestCase};
use certify::run::{self, CaseResult};
use osclient::{Cloud, Options, Session};
use stub::{Stub, World};

static GUEST: std::sync::OnceLock<Option<certify::rules::Guest>> = std::sync::OnceLock::new();

fn cloud(stub: &Stub, world: &str) -> Cloud {
    let auth = [
        ("auth_url", stub.auth_url(world)),
        ("username", "u".into()),
        ("password", "p".into()),
        ("project_name", "p".into()),
    ];
    Cloud {
        name: world.into(),
        auth_type: "password".into(),
        auth: auth.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        interface: "public".into(),
        // No TLS here; reading the machine's certificates for each variant would take most of the time.
        verify: false,
        ..Cloud::default()
    }
}

async fn facts(stub: &Stub, world: &str, journals: &std::path::Path) -> Facts {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = Options { retries: 0, timeout: Duration::from_secs(10) };
    let session = Session::connect(cloud(stub, world), options).await.unwrap();
    let header = Header {
        run: world.replace('.', "-"),
        cloud: world.into(),
        region: None,
        auth_url: String::new(),
        project: None,
    };
    let settings = Settings {
        run: "run".into(),
        guest: GUEST.get_or_init(|| Scope::builtin(Kind::Iaas).unwrap().guest).clone(),
        storage_seconds: 1,
        poll: Duration::from_millis(5),
        output: journals.to_owned(),
    };
    Facts::new(session, Arc::new(SystemClock), settings, Journal::begin(journals, &header).unwrap())
}

async fn judged(facts: &Facts, cases: &[&TestCase]) -> Vec<CaseResult> {
    match run::refused(&facts.session.token().roles) {
        Some(reason) => run::aborted(cases, &reason),
        None => run::run(facts, cases, |_| {}).await,
    }
}

fn automatic(scope: &Scope) -> Vec<&TestCase> {
    let unavailable = ["scs-0101-flavor-property", "scs-0101-image-property", "scs-0101-rngd"];
    scope.testcases.iter().filter(|c| !c.check.is_manual() && !unavailable.contains(&c.id.as_str())).collect()
}

/// Things that belong to the cloud and not to the run.
fn left(stub: &Stub, world: &str) -> Vec<String> {
    let own = ["network/networks", "network/subnetpools", "network/extensions"];
    let mut left: Vec<String> = stub.left(world).into_iter().filter(|c| !own.contains(&c.as_str())).collect();
    if stub.things(world, "network/networks").len() > 1 {
        left.push("network/networks".into());
    }
    left
}

#[tokio::test]
async fn the_right_cloud_passes_every_case_and_is_left_as_it_was() {
    let stub = Stub::serve(BTreeMap::from([("right".to_owned(), variants::right())])).await;
    let dir = tempfile::tempdir().unwrap();
    let scope = Scope::builtin(Kind::Iaas).unwrap();
    let facts = facts(&stub, "right", dir.path()).await;
    let beyond: Vec<TestCase> = Scope::beyond(Kind::Iaas).unwrap();
    let mut cases = automatic(&scope);
    assert_eq!(cases.len(), 85);
    // The stub has no TLS.
    cases.extend(beyond.iter().filter(|c| c.id != "beyond-0125-https"));
    let wrong: Vec<_> =
        judged(&facts, &cases).await.into_iter().filter(|r| r.verdict != Verdict::Pass).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(left(&stub, "right"), Vec::<String>::new());
    assert!(facts.journal.finish().unwrap());
}

#[tokio::test]
async fn every_requirement_broken_in_turn_is_found() {
    let scope = Scope::builtin(Kind::Iaas).unwrap();
    let all = variants::all();
    let worlds: BTreeMap<String, World> = all
        .iter()
        .map(|v| {
            let mut world = variants::right();
            (v.change)(&mut world);
            (v.name.clone(), world)
        })
        .collect();
    assert_eq!(worlds.len(), all.len(), "two variants have the same name");
    for case in automatic(&scope) {
        for wanted in [Verdict::Fail, Verdict::Pass] {
            let there = all.iter().any(|v| v.case == case.id && v.expect == wanted);
            assert!(there, "{} has no variant that comes to {}", case.id, wanted.name());
        }
    }
    let stub = Stub::serve(worlds).await;
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for variant in &all {
        let case = scope.case(&variant.case).unwrap();
        let facts = facts(&stub, &variant.name, dir.path()).await;
        let result = judged(&facts, &[case]).await.remove(0);
        if result.verdict != variant.expect {
            wrong.push(format!(
                "{}: {}, not {}: {:?}",
                variant.name,
                result.verdict.name(),
                variant.expect.name(),
                result.notes
            ));
        }
        let others = ["others-things", "nameless", "may-not-delete"];
        let mine = left(&stub, &variant.name);
        if !mine.is_empty() && !others.iter().any(|o| variant.name.ends_with(o)) {
            wrong.push(format!("{}: left behind {mine:?}", variant.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} variants:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    println!("{} variants", all.len());
}

#[tokio::test]
async fn beyond_finds_what_the_cases_do_not() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 7] = [
        ("beyond-0103-extra-specs", |w| w.flavors[0]["extra_specs"]["scs:cpu-type"] = "fast".into()),
        ("beyond-0102-os_distro-canonical", |w| w.images[0]["os_distro"] = "Ubuntu".into()),
        ("beyond-0102-os_version-canonical", |w| w.images[0]["os_version"] = "noble".into()),
        ("beyond-0116-payload", |w| w.catalog.retain(|k| k != "key-manager")),
        ("beyond-0123-endpoints-answer", |w| w.faults.extend([("GET load-balancer".to_owned(), 503)])),
        ("beyond-0126-default-network", |w| drop(w.things.remove("network/networks"))),
        ("beyond-0127-dns-integration", |w| drop(w.things.remove("network/extensions"))),
    ];
    let rules = Scope::beyond(Kind::Iaas).unwrap();
    let worlds = changes.iter().map(|(id, change)| {
        let mut world = variants::right();
        change(&mut world);
        ((*id).to_owned(), world)
    });
    let stub = Stub::serve(worlds.collect()).await;
    let dir = tempfile::tempdir().unwrap();
    for (id, _) in changes {
        let facts = facts(&stub, id, dir.path()).await;
        let case = rules.iter().find(|c| c.id == id).unwrap();
        assert_eq!(judged(&facts, &[case]).await[0].verdict, Verdict::Fail, "{id}");
    }
}

#[tokio::test]
async fn what_a_killed_run_made_is_removed_and_nothing_else() {
    use certify::journal::Thing;
    let mut world = variants::right();
    let others = serde_json::json!({"id": "o", "name": "others", "status": "available"});
    world.things.insert("volume/volumes".into(), vec![others]);
    let stub = Stub::serve(BTreeMap::from([("killed".to_owned(), world)])).await;
    let dir = tempfile::tempdir().unwrap();
    let facts = facts(&stub, "killed", dir.path()).await;
    let (network, storage) = (facts.network().unwrap(), facts.storage().await.unwrap());
    let scope = certify::journal::Scope::new(&facts.journal);
    // Made, and the answer written down.
    let seq = scope.intend(Thing::Network, "n").await.unwrap();
    let made = network.post("/networks", serde_json::json!({"network": {"name": "n"}})).await.unwrap();
    scope.made(seq, made["network"]["id"].as_str().unwrap()).unwrap();
    // Made, and killed before the answer came.
    scope.intend(Thing::Volume, "v").await.unwrap();
    storage.post("/volumes", serde_json::json!({"volume": {"name": "v", "size": 1}})).await.unwrap();
    // Written down, and killed before it was made.
    scope.intend(Thing::SecurityGroup, "g").await.unwrap();
    let path = facts.journal.path();
    drop((scope, facts.journal));

    let (_, journal) = Journal::open(&path).unwrap();
    let told =
        certify::journal::remove(&facts.session, &journal, &journal.left(), Duration::from_millis(5)).await;
    assert_eq!(told, Vec::<String>::new());
    assert!(journal.finish().unwrap());
    let names: BTreeSet<String> = stub
        .things("killed", "volume/volumes")
        .iter()
        .map(|v| v["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, BTreeSet::from(["others".to_owned()]));
    assert_eq!(stub.things("killed", "network/networks").len(), 1, "the external one");
}
