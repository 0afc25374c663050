//! The HTTP API of a registry, on SQLite in memory or, with `ALLOD_TEST_POSTGRES`, on PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod certificates;
mod pages;
mod world;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use registry::accounts::Accounts;
use registry::model::{Outcome, Report, Span, Standing, Upload};
use serde_json::json;
use store::Query;
use world::{IAAS, World};

const UPSTREAM: &str = include_str!("../data/upstream-report.yaml");
const OLD: &str = include_str!("../data/old-report.yaml");
const RUN: &str = "5b0f1c6e-8a41-4a3e-9d0b-2f5f0f8f3a11";

/// Rows of all tables that an upload writes.
async fn rows(world: &World) -> [u64; 4] {
    let count = world.registry.store().read(|tx| {
        let all = Query::new();
        Ok([
            tx.count::<Upload>(&all)?,
            tx.count::<Report>(&all)?,
            tx.count::<Outcome>(&all)?,
            tx.count::<Span>(&all)?,
        ])
    });
    count.await.unwrap()
}

#[tokio::test]
async fn a_report_as_upstream_writes_it_is_taken() {
    let world = World::new().await;
    let answer = world.upload("cloud-a", UPSTREAM).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, "null"));
    let status = world.status("cloud-a").await;
    let result = |id: &str| status["results"][id]["result"].clone();
    assert_eq!(result("scs-0100-syntax-check"), json!(1));
    assert_eq!(result("scs-0101-entropy-avail"), json!(0));
    assert_eq!(result("scs-0103-flavor-1l-1"), json!(-1));
    assert_eq!(result("scs-9999-not-yet-known"), json!(null), "unknown cases are kept and not shown");
    assert_eq!(status["results"]["scs-0100-syntax-check"]["checked_at"], "2026-11-21T05:12:43.517284");
    assert_eq!(status["results"]["scs-0100-syntax-check"]["report"], RUN);
    assert_eq!((&status["result"], &status["passed_str"]), (&json!(-1), &json!("")));
    assert_eq!(status["relevant"], json!(["v5.1"]));
    assert_eq!(status["versions"]["next"]["validity"], "draft");
    assert_eq!(status["versions"]["v5.1"]["targets"]["main"]["testcases"].as_array().unwrap().len(), 54);
    assert_eq!(status["buckets"]["null"].as_array().unwrap().len(), 51);
    assert_eq!(rows(&world).await, [1, 1, 4, 4]);

    let again = world.upload("cloud-a", UPSTREAM).await;
    assert_eq!((again.status.as_u16(), again.detail().as_str()), (409, "Conflict: report already present"));
    assert_eq!(rows(&world).await, [1, 1, 4, 4], "nothing is written of what is refused");

    // What was signed is there to verify once more.
    let evidence = world.get(&format!("/reports/{RUN}/upload"), Some("cloud-a")).await;
    assert_eq!(evidence.text, world.signed("cloud-a", UPSTREAM));
    let own = world.get("/reports", Some("cloud-a")).await.json();
    assert_eq!(
        (own.as_array().unwrap().len(), &own[0]["checked_at"]),
        (1, &json!("2026-11-21 05:12:43.517284"))
    );
    let one = world.get(&format!("/reports/{RUN}"), Some("cloud-a")).await.json();
    assert_eq!(one, own[0]);
}

#[tokio::test]
async fn old_reports_and_json_are_taken() {
    let world = World::new().await;
    assert_eq!(world.upload("cloud-a", OLD).await.status, 200);
    let status = world.status("cloud-a").await;
    assert_eq!(status["results"]["scs-0100-syntax-check"]["result"], -1, "the last version counts");
    let listed = world.get("/results", Some("reviewer")).await.json();
    let versions: Vec<_> =
        listed.as_array().unwrap().iter().map(|r| r["version"].as_str().unwrap()).collect();
    assert_eq!(versions.len(), 2);
    assert!(versions.contains(&"v4") && versions.contains(&"v5.1"));
    let document = json!({
        "spec": {"uuid": IAAS}, "subject": "cloud-a", "checked_at": "2026-11-21T05:00:00",
        "run": {"uuid": "j", "invocations": {"i": {"results": {"scs-0100-syntax-check": 1}, "stdout": ["\u{1F600}"]}}},
    });
    let text = document.to_string();
    let wrong = world.signed("cloud-a", &text.replace("\u{1F600}", "a\\u0000b"));
    let answer = world.call("POST", "/reports", Some("cloud-a"), "application/x-signed-json", wrong).await;
    assert!(answer.status == 422 && answer.detail().contains("NUL"), "{}", answer.text);
    let body = world.signed("cloud-a", &text);
    let answer = world.call("POST", "/reports", Some("cloud-a"), "application/x-signed-json", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(world.status("cloud-a").await["results"]["scs-0100-syntax-check"]["result"], 1);
}

/// The whole way of a stranger: `allod certify --sign`, then `curl` or `allod certify upload`.
#[tokio::test]
async fn a_report_of_certify_signed_by_ssh_keygen_is_taken_and_a_changed_one_is_not() {
    use certify::checks::Verdict;
    use certify::rules::{Kind, Scope};
    use certify::run::CaseResult;
    let mut world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let keygen = |args: &[&str]| {
        let done =
            Command::new("ssh-keygen").args(args).current_dir(dir.path()).stdout(Stdio::null()).status();
        assert!(done.unwrap().success());
    };
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f", "key"]);
    let key = attest::SigningKey::read(&std::fs::read_to_string(dir.path().join("key")).unwrap()).unwrap();
    world.keys.insert("cloud-a", key);
    world.registry.replace(Accounts::parse(&world::bootstrap(&world.keys)).unwrap());

    let scope = Scope::builtin(Kind::Iaas).unwrap();
    let result = |id: &str, verdict| CaseResult { id: id.into(), verdict, notes: Vec::new(), millis: 1 };
    let results =
        [result("scs-0100-syntax-check", Verdict::Pass), result("scs-0117-test-backup", Verdict::Abort)];
    let report = certify::report::Report {
        scope: &scope,
        subject: "cloud-a",
        at: world.now(),
        date: "2026-11-22",
        run: "of-certify".into(),
        argv: Vec::new(),
        assignment: vec![("os_cloud".into(), "cloud-a".into())],
        sections: Vec::new(),
        forced_version: None,
        forced_tests: None,
        results: &results,
        manual: &[],
        beyond: &[],
        beyond_rules: &[],
        summaries: &[],
        calls: 2,
        millis: 2,
    };
    let text = report.yaml(|| "invocation".into());
    std::fs::write(dir.path().join("report.yaml"), &text).unwrap();
    keygen(&["-q", "-Y", "sign", "-n", "report", "-f", "key", "report.yaml"]);
    let signature = std::fs::read_to_string(dir.path().join("report.yaml.sig")).unwrap();
    let send =
        |body: String| world.call("POST", "/reports", Some("cloud-a"), "application/x-signed-yaml", body);
    for changed in [
        text.replace("scs-0117-test-backup: 0", "scs-0117-test-backup: 1"),
        format!("{text}\n"),
        format!(" {text}"),
        format!("{text}---\n{UPSTREAM}"),
        String::new(),
    ] {
        assert_ne!(changed, text);
        let answer = send(format!("{signature}&{changed}")).await;
        assert_eq!(answer.status, 401, "{}", answer.text);
        assert!(answer.detail().contains("verification failed"), "{}", answer.text);
    }
    assert_eq!(rows(&world).await, [0; 4]);
    let answer = send(format!("{signature}&{text}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(world.status("cloud-a").await["results"]["scs-0117-test-backup"]["result"], 0);
}

#[tokio::test]
async fn what_is_wrong_is_told_and_nothing_is_written() {
    let world = World::new().await;
    let yaml = "application/x-signed-yaml";
    let (_, mine) = world.report("cloud-a", "2026-11-22 05:00:00", &World::all(1));
    let good = world.signed("cloud-a", &mine);
    let with = |from: &str, to: &str| world.signed("cloud-a", &mine.replace(from, to));
    let foreign = world.signed("cloud-b", &mine);
    let (_, theirs) = world.report("cloud-b", "2026-11-22 05:00:00", &World::all(1));
    let both = world.signed("cloud-a", &format!("{mine}{theirs}"));
    let uuid = mine.split("  uuid: ").nth(2).unwrap().split('\n').next().unwrap().to_owned();
    let twice = world.signed("cloud-a", &format!("{mine}{mine}"));
    let cases: Vec<(Option<&str>, &str, String, u16, &str)> = vec![
        (None, yaml, good.clone(), 401, "Not authenticated"),
        (Some("nobody"), yaml, good.clone(), 401, "Incorrect username or password"),
        (Some("cloud-a"), "application/yaml", good.clone(), 415, "application/x-signed-yaml"),
        (Some("cloud-a"), "", good.clone(), 415, "application/x-signed-yaml"),
        (Some("cloud-a"), yaml, mine.clone(), 401, "missing signature"),
        (Some("cloud-a"), yaml, String::new(), 401, "missing signature"),
        (Some("cloud-a"), yaml, foreign, 401, "not signed with a key of this account"),
        (Some("cloud-b"), yaml, good.clone(), 401, "not signed with a key of this account"),
        (Some("cloud-a"), yaml, both, 401, "Permission denied"),
        (Some("cloud-a"), yaml, twice, 409, "already present"),
        (Some("cloud-a"), yaml, world.signed("cloud-a", "a: [1"), 422, "document 1: not YAML"),
        (Some("cloud-a"), yaml, world.signed("cloud-a", "- 1"), 422, "document 1: a mapping is wanted"),
        (Some("cloud-a"), yaml, world.signed("cloud-a", "!x {a: 1}"), 422, "document 1"),
        (Some("cloud-a"), yaml, with("2026-11-22 05", "2026-11-24 05"), 422, "checked_at: is in the future"),
        (
            Some("cloud-a"),
            yaml,
            with("scs-0100-syntax-check: 1", "scs-0100-syntax-check: 7"),
            422,
            "scs-0100-syntax-check",
        ),
        (Some("cloud-a"), yaml, with(IAAS, "other-scope"), 422, "document 1: spec.uuid"),
        (Some("cloud-a"), yaml, with(&uuid, "'<b>'"), 422, "run.uuid"),
        (Some("cloud-a"), "application/x-signed-json", good.clone(), 422, "not JSON"),
    ];
    for (account, kind, body, status, detail) in cases {
        let answer = world.call("POST", "/reports", account, kind, body).await;
        assert_eq!(answer.status.as_u16(), status, "{detail}: {}", answer.text);
        assert!(answer.detail().contains(detail), "{detail}: {}", answer.text);
        assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401);
    }
    let large = "x".repeat(registry::api::LARGEST_REPORT + 1);
    let answer = world.call("POST", "/reports", Some("cloud-a"), yaml, large).await;
    assert_eq!(answer.status, 413);
    assert_eq!(rows(&world).await, [0; 4]);
    let empty = world.upload("cloud-a", "# nothing\n").await;
    assert_eq!((empty.status.as_u16(), empty.detail().as_str()), (200, "empty reports"));
    assert_eq!(rows(&world).await, [0; 4]);
}

#[tokio::test]
async fn delegates_report_for_those_who_name_them() {
    let world = World::new().await;
    let (_, b) = world.report("cloud-b", "2026-11-22 05:00:00", &World::all(1));
    let (_, c) = world.report("cloud-c", "2026-11-22 05:00:00", &World::all(1));
    let (_, own) = world.report("delegate", "2026-11-22 05:00:00", &World::all(0));
    // It may for cloud-b, and not for cloud-c; then neither.
    let answer = world.upload("delegate", &format!("{b}{c}")).await;
    assert_eq!((answer.status.as_u16(), answer.detail().as_str()), (401, "delegation problem?"));
    assert_eq!(rows(&world).await, [0; 4]);
    assert_eq!(world.upload("delegate", &format!("{b}{own}")).await.status, 200);
    assert_eq!(world.status("cloud-b").await["result"], 1);
    assert_eq!(world.status("delegate").await["result"], 0);
    // Who may read any report is not thereby allowed to write one.
    assert_eq!(world.upload("reviewer", &c).await.status, 401);
}

#[tokio::test]
async fn results_hold_for_their_lifetime_and_late_reports_change_nothing() {
    let world = World::new().await;
    let (_, good) = world.report("cloud-a", "2026-11-20 05:00:00", &World::all(1));
    assert_eq!(world.upload("cloud-a", &good).await.status, 200);
    let status = world.status("cloud-a").await;
    assert_eq!((&status["result"], &status["passed_str"]), (&json!(1), &json!("v5.1")));
    assert_eq!((&status["best_passed"], &status["validity"]), (&json!(1), &json!("effective")));
    // One case fails two days later, and an older report that it passed comes late.
    let case = vec![("scs-0100-syntax-check".to_owned(), -1)];
    let (_, bad) = world.report("cloud-a", "2026-11-22 05:00:00", &case);
    assert_eq!(world.upload("cloud-a", &bad).await.status, 200);
    let (_, late) = world.report("cloud-a", "2026-11-21 05:00:00", &World::all(1));
    assert_eq!(world.upload("cloud-a", &late).await.status, 200);
    let status = world.status("cloud-a").await;
    assert_eq!((&status["result"], &status["passed_str"]), (&json!(-1), &json!("")));
    // A week's results of Saturday 21st hold until Monday 30th.
    world.days(7);
    assert_eq!(world.status("cloud-a").await["result"], -1, "Sunday 29th");
    let held = |status: &serde_json::Value| status["results"].as_object().unwrap().len();
    assert_eq!(held(&world.status("cloud-a").await), 54);
    world.days(1);
    assert_eq!(world.status("cloud-a").await, json!(null));
    let all = world.get("/status", None).await;
    assert_eq!(all.json(), json!({}), "who has nothing that holds is not there, as upstream");
}

#[tokio::test]
async fn reviewers_approve_results() {
    let world = World::new().await;
    assert_eq!(world.upload("cloud-a", UPSTREAM).await.status, 200);
    let open = world.get("/results?approved=0&limit=5", Some("reviewer")).await.json();
    let checks: Vec<_> = open.as_array().unwrap().iter().map(|r| r["check"].as_str().unwrap()).collect();
    assert_eq!(checks.len(), 2, "{checks:?}");
    let mut approval = json!({"reportuuid": RUN, "scopeuuid": IAAS, "version": "*", "check": "scs-0103-flavor-1l-1", "approval": true});
    for (account, status) in [(None, 401), (Some("cloud-a"), 401), (Some("delegate"), 401)] {
        assert_eq!(world.post("/results", account, approval.clone()).await.status.as_u16(), status);
    }
    let mut wrong = approval.clone();
    wrong["check"] = json!("scs-0100");
    let answer = world.post("/results", Some("reviewer"), json!([approval, wrong])).await;
    assert_eq!((answer.status.as_u16(), answer.detail().as_str()), (404, "item 1: there is no such result"));
    wrong.as_object_mut().unwrap().remove("approval");
    let answer = world.post("/results", Some("reviewer"), json!([wrong])).await;
    assert!(answer.status == 422 && answer.detail().contains("approval"), "{}", answer.text);
    assert_eq!(world.get("/results?approved=1", Some("reviewer")).await.json().as_array().unwrap().len(), 2);
    let answer = world.post("/results", Some("reviewer"), json!([approval])).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, "null"));
    assert_eq!(
        world.get("/results?approved=true", Some("reviewer")).await.json().as_array().unwrap().len(),
        3
    );
    approval["approval"] = json!(false);
    assert_eq!(world.post("/results", Some("reviewer"), approval).await.status, 200);
    let page = world.get("/results?limit=1&skip=3", Some("reviewer")).await.json();
    assert_eq!(page.as_array().unwrap().len(), 1);
    for (query, field) in
        [("limit=x", "limit"), ("skip=-1", "skip"), ("approved=maybe", "approved"), ("limit=101", "limit")]
    {
        let answer = world.get(&format!("/results?{query}"), Some("reviewer")).await;
        assert!(answer.status == 422 && answer.detail().starts_with(field), "{}", answer.text);
    }
    world.days(8);
    assert_eq!(world.get("/results", Some("reviewer")).await.json(), json!([]), "seven days are listed");
}

/// For every route: who sees or changes what of cloud-a.
#[tokio::test]
async fn nothing_of_a_subject_is_seen_or_changed_by_another() {
    let world = World::new().await;
    assert_eq!(world.upload("cloud-a", UPSTREAM).await.status, 200);
    let own = [
        "/reports?subject=cloud-a".to_owned(),
        format!("/reports/{RUN}"),
        format!("/reports/{RUN}/upload"),
        format!("/page/report_full/{RUN}"),
        "/metrics/cloud-a".to_owned(),
    ];
    let any = ["/reports?subject=".to_owned(), "/results".to_owned()];
    for path in own.iter().chain(&any) {
        for account in [None, Some("cloud-b"), Some("delegate")] {
            let answer = world.get(path, account).await;
            assert_eq!(answer.status, 401, "{path} by {account:?}: {}", answer.text);
            assert!(!answer.text.contains("hunter2"));
        }
        assert_eq!(world.get(path, Some("reviewer")).await.status, 200, "{path}");
    }
    for path in &own {
        let answer = world.get(path, Some("cloud-a")).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    }
    for path in &any {
        assert_eq!(world.get(path, Some("cloud-a")).await.status, 401, "{path}");
    }
    assert_eq!(world.get("/reports", Some("cloud-b")).await.json(), json!([]));
    // What is public holds nothing that is not.
    let name = "scs-compatible-iaas";
    for path in [
        "/status".to_owned(),
        "/page/table".into(),
        "/page/table_full".into(),
        format!("/page/detail/cloud-a/{name}"),
        format!("/page/detail_full/cloud-a/{name}"),
        format!("/page/history/cloud-a/{name}"),
        format!("/page/report/{RUN}"),
        format!("/page/scope/{name}"),
        "/page/certificates".into(),
        format!("/badge/cloud-a/{name}"),
        "/certificates".into(),
        "/crl".into(),
        "/crl/signature".into(),
        "/credentials/status".into(),
        "/issuer".into(),
    ] {
        let answer = world.get(&path, None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        for secret in ["hunter2", "$2b$", "PRIVATE"] {
            assert!(!answer.text.contains(secret), "{path} tells {secret}");
        }
    }
    let before = rows(&world).await;
    let (_, text) = world.report("cloud-a", "2026-11-22 05:00:00", &World::all(1));
    for account in ["cloud-b", "delegate", "reviewer"] {
        assert_eq!(world.upload(account, &text).await.status, 401, "{account}");
    }
    let asked = json!({"subject": "cloud-a", "scope": IAAS, "version": "v5.1"});
    for account in [None, Some("cloud-a"), Some("cloud-b"), Some("delegate")] {
        assert_eq!(world.post("/certificates", account, asked.clone()).await.status, 401);
        assert_eq!(world.post("/certificates/x/revoke", account, json!({"reason": "x"})).await.status, 401);
    }
    assert_eq!(rows(&world).await, before);
}

#[tokio::test]
async fn accounts_are_replaced_while_it_runs() {
    let world = World::new().await;
    assert_eq!(world.upload("cloud-a", UPSTREAM).await.status, 200);
    world.registry.replace(Accounts::parse("accounts: []").unwrap());
    assert_eq!(world.get("/reports", Some("cloud-a")).await.status, 401);
    assert_eq!(world.status("cloud-a").await["result"], -1, "what was reported stays");
    let login = world.registry.login(None, "cloud-a", "cloud-a".into()).await;
    assert_eq!(login.err().unwrap().kind(), base::Kind::Unauthenticated);
}

#[tokio::test]
async fn the_protocol_is_kept() {
    let world = World::new().await;
    let root = world.get("/", None).await;
    assert_eq!(root.status, 307);
    assert_eq!(root.headers["location"], "https://registry.example/page/table");
    assert_eq!((world.get("/healthz", None).await.status.as_u16()), 200);
    assert_eq!(world.get("/nowhere", None).await.json(), json!({"detail": "Not Found"}));
    assert_eq!(world.call("DELETE", "/reports", Some("reviewer"), "", "").await.status, 405);
    assert_eq!(world.get("/book/table", None).await.status, 422);
    let router = registry::api::router(world.registry.clone());
    let request = axum::http::Request::get("/status").header("accept", "text/html");
    let answer = tower::ServiceExt::oneshot(router, request.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!(answer.unwrap().status(), 406);
}

#[tokio::test]
async fn strangers_who_fill_their_queue_keep_nobody_else_out() {
    let world = World::new().await;
    let router = registry::api::router(world.registry.clone());
    let ask = |address: &str, account: &str| {
        let login = BASE64_STANDARD.encode(format!("{account}:{account}"));
        let request = axum::http::Request::get("/reports").header("authorization", format!("Basic {login}"));
        let mut request = request.body(axum::body::Body::empty()).unwrap();
        request.extensions_mut().insert(registry::api::Client(address.parse().unwrap()));
        tower::ServiceExt::oneshot(router.clone(), request)
    };
    // All of them ask before the first is answered: each guess takes some tenths of a second.
    let strangers = (0..20).map(|n| ask(&format!("2001:db8::{n}"), "stranger"));
    let asked = strangers.chain([ask("2001:db8:0:1::1", "cloud-a"), ask("192.0.2.1", "cloud-b")]);
    let answers = futures::future::join_all(asked).await;
    let status: Vec<u16> = answers.into_iter().map(|a| a.unwrap().status().as_u16()).collect();
    let count = |wanted| status[..20].iter().filter(|s| **s == wanted).count();
    assert_eq!((count(401), count(429)), (8, 12), "{status:?}");
    assert_eq!(status[20..], [200, 200]);
}

#[tokio::test]
async fn a_standing_is_what_the_newest_spans_say_and_all_are_seen_as_each_is() {
    let world = World::new().await;
    let cases = World::all(1).into_iter().map(|(case, _)| case).take(4).collect::<Vec<_>>();
    // Days in no order: some reports come late, some change a verdict, some have other cases.
    let days = [3_usize, 1, 7, 5, 6, 2, 20, 19, 21, 12];
    for (index, day) in days.into_iter().enumerate() {
        let told = cases.iter().enumerate().filter(|(n, _)| (n + index) % 3 > 0);
        let results = told.map(|(n, case)| (case.clone(), if (n + day) % 4 > 1 { 1 } else { -1 }));
        let subject = ["cloud-a", "cloud-b", "cloud-c"][index % 3];
        let (_, text) =
            world.report(subject, &format!("2026-11-{day:02} 05:00:00"), &results.collect::<Vec<_>>());
        assert_eq!(world.upload(subject, &text).await.status, 200);
        let read = world.registry.store().read(|tx| {
            Ok((tx.list::<Span>(&Query::new().eq("newest", true))?, tx.list::<Standing>(&Query::new())?))
        });
        let (spans, standings) = read.await.unwrap();
        let key = |subject: &str, case: &str| format!("{subject} {case}");
        let spans: BTreeMap<_, _> =
            spans.into_iter().map(|s| (key(&s.subject, &s.testcase), (s.result, s.last, s.report))).collect();
        let of = |s: Standing| {
            let subject = s.subject;
            s.results.into_iter().map(move |(case, l)| (key(&subject, &case), (l.result, l.at, l.report)))
        };
        assert_eq!(spans, standings.into_iter().flat_map(of).collect());
        let all = world.get("/status", None).await.json();
        let mut one_by_one = serde_json::Map::new();
        for subject in ["cloud-a", "cloud-b", "cloud-c"] {
            let one = world.get(&format!("/status?subject={subject}"), None).await.json();
            one_by_one.extend(one.as_object().unwrap().clone());
        }
        assert_eq!(all, serde_json::Value::Object(one_by_one));
    }
    assert_eq!(world.get("/status?scopeuuid=no-such", None).await.text, "{}");
}
