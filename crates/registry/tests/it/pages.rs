//! Pages as people see them.

use serde_json::json;

use crate::world::World;
use crate::{RUN, UPSTREAM};

const NAME: &str = "scs-compatible-iaas";

#[tokio::test]
async fn pages_come_in_three_forms_and_escape_what_others_wrote() {
    let world = World::new().await;
    assert_eq!(world.upload("cloud-a", UPSTREAM).await.status, 200);
    for (view, kind, tag) in [
        ("page", "text/html", "<!doctype html>"),
        ("fragment", "text/html", "<table>"),
        ("markdown", "text/markdown", "|---|"),
    ] {
        let answer = world.get(&format!("/{view}/table"), None).await;
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with(kind), "{view}");
        assert!(answer.text.contains(tag), "{view}: {}", answer.text);
        assert!(
            answer.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'")
        );
    }
    let table = world.get("/page/table", None).await.text;
    assert!(
        table.contains("Cloud &lt;A&gt;")
            && table.contains("A &amp; co")
            && table.contains("https://a.example/")
    );
    assert!(!table.contains("reviewer") && !table.contains("delegate"), "accounts that are no clouds");
    assert!(table.contains("🛑 –"));
    let detail = world.get(&format!("/page/detail/cloud-a/{NAME}"), None).await.text;
    assert!(detail.contains("scs-0103-flavor-1l-1") && detail.contains(&format!("page/report/{RUN}#")));
    let report = world.get(&format!("/page/report/{RUN}"), None).await.text;
    assert!(report.contains("missing &lt;b&gt;") && report.contains("id=\"scs-0100-syntax-check\""));
    assert!(!report.contains("hunter2") && report.contains("redacted"));
    let full = world.get(&format!("/page/report_full/{RUN}"), Some("cloud-a")).await.text;
    assert!(full.contains("hunter2"));
    let scope = world.get(&format!("/markdown/scope/{NAME}"), None).await.text;
    assert!(scope.contains("scs-0103-v1") && scope.contains("effective") && scope.contains("draft"));
    for path in [
        "/page/detail/nobody/scs-compatible-iaas",
        "/page/detail/group-none/scs-compatible-iaas",
        "/page/detail/cloud-a/x",
        "/page/report/x",
        "/page/scope/x",
        "/page/certificate/x",
        "/badge/nobody/scs-compatible-iaas",
    ] {
        assert_eq!(world.get(path, None).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_group_is_as_good_as_its_worst_member() {
    let world = World::new().await;
    let (_, b) = world.report("cloud-b", "2026-11-22 05:00:00", &World::all(1));
    assert_eq!(world.upload("cloud-b", &b).await.status, 200);
    let badge = |s: &str| format!("/badge/{s}/{NAME}.svg");
    assert!(world.get(&badge("cloud-b"), None).await.text.contains("v5.1"));
    assert!(world.get("/markdown/table", None).await.text.contains("✅ v5.1"));
    let (_, c) = world.report("cloud-c", "2026-11-22 05:00:00", &World::all(-1));
    assert_eq!(world.upload("cloud-c", &c).await.status, 200);
    let table = world.get("/markdown/table", None).await.text;
    assert!(table.contains("group-twins") && table.contains("🛑 –") && !table.contains("✅ v5.1"), "{table}");
    assert!(world.get(&badge("cloud-c"), None).await.text.contains("not passed"));
    let detail = world.get(&format!("/page/detail/group-twins/{NAME}"), None).await.text;
    assert!(
        detail.contains("id=\"cloud-b\"")
            && detail.contains("id=\"cloud-c\"")
            && detail.contains("href=\"#cloud-c\"")
    );
    let draft = world.get("/markdown/table_full", None).await.text;
    assert!(draft.contains("incl. drafts") || draft.contains("detail_full"));
}

#[tokio::test]
async fn history_tells_what_was_when() {
    let world = World::new().await;
    let (_, good) = world.report("cloud-a", "2026-11-10 05:00:00", &World::all(1));
    assert_eq!(world.upload("cloud-a", &good).await.status, 200);
    let (_, again) = world.report("cloud-a", "2026-11-16 05:00:00", &World::all(1));
    assert_eq!(world.upload("cloud-a", &again).await.status, 200);
    let case = vec![("scs-0100-syntax-check".to_owned(), -1)];
    let (_, bad) = world.report("cloud-a", "2026-11-20 05:00:00", &case);
    assert_eq!(world.upload("cloud-a", &bad).await.status, 200);
    let text = world.get(&format!("/markdown/history/cloud-a/{NAME}"), None).await.text;
    for row in
        ["| v5.1 | 2026-11-20 | 2026-11-22 | 🛑 FAIL |", "| v5.1 | 2026-11-10 | 2026-11-19 | ✅ pass |"]
    {
        assert!(text.contains(row), "{row}: {text}");
    }
    assert_eq!(text.matches("2026-11-16T05:00:00Z").count(), 1, "its report");
    let metrics = world.get("/metrics/cloud-a", Some("cloud-a")).await;
    assert_eq!(
        metrics.headers["content-type"],
        json!("text/plain; version=0.0.4; charset=utf-8").as_str().unwrap()
    );
    assert!(metrics.text.contains("scs_testcase_result{subject=\"cloud-a\",scope=\"scs-compatible-iaas\",testcase=\"scs-0100-syntax-check\"} -1"));
    let nothing = world.get(&format!("/markdown/history/cloud-b/{NAME}"), None).await.text;
    assert!(nothing.contains("Nothing was reported"));
}
