//! A cluster that passes every case, and what happens to it: each requirement broken in turn, and what the standard allows.
//! `now` is the moment everything is dated by.

use std::collections::BTreeMap;

use base::Timestamp;
use certify::checks::Verdict;
use serde_json::{Value, json};

use super::stubcluster::{FEED, RELEASES, World, ok};

/// One change of the right cluster, and what a case must then say.
pub struct Variant {
    /// `CASE.WHAT`.
    pub name: String,
    /// The case.
    pub case: String,
    /// What it must come to.
    pub expect: Verdict,
    /// The change.
    pub change: Box<dyn Fn(&mut World) + Send + Sync>,
}

const VERSION: &str = "version-policy-check";
const CONFORMANCE: &str = "cncf-k8s-conformance";
const NETWORKING: &str = "kaas-networking-check";
const NODES: &str = "beyond-0214-node-labels";
const CLASSES: &str = "beyond-0211-default-storage-class";
const NODES_PATH: &str = "/api/v1/nodes";
const CLASSES_PATH: &str = "/apis/storage.k8s.io/v1/storageclasses";
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The vulnerability the right cluster does not have any more.
const CVE: &str = "/api/cve/CVE-2026-1";

/// A release, so many hours old.
fn release(now: Timestamp, tag: &str, hours: i64) -> Value {
    let at = now.plus_secs(-hours * 3600).iso_seconds();
    json!({"tag_name": tag, "name": tag, "published_at": at, "draft": false, "prerelease": false})
}

/// A record of a vulnerability (CVE JSON 5).
fn record(metric: &str, score: f64, product: &str, versions: &Value) -> Value {
    json!({"dataType": "CVE_RECORD", "cveMetadata": {"cveId": "CVE-2026-1"}, "containers": {"cna": {
        "metrics": [{"format": "CVSS", metric: {"baseScore": score, "baseSeverity": "HIGH"}}],
        "affected": [{"vendor": "Kubernetes", "product": product, "defaultStatus": "unaffected", "versions": versions}],
    }}})
}

fn test(name: &str, status: &str) -> Value {
    json!({"name": name, "status": status})
}

fn results(tests: &[Value]) -> String {
    let suite = json!({"name": "Kubernetes e2e suite", "status": "passed", "items": tests});
    json!({"name": "e2e", "status": "passed", "items": [{"name": "junit_01.xml", "items": [suite]}]})
        .to_string()
}

fn node(name: &str, region: &str, zone: &str) -> Value {
    let metadata =
        json!({"name": name, "labels": {"kubernetes.io/hostname": name, REGION: region, ZONE: zone}});
    json!({"metadata": metadata, "spec": {}, "status": {}})
}

fn class(name: &str, default: bool) -> Value {
    json!({"metadata": {"name": name, "annotations": {DEFAULT: default.to_string()}}, "provisioner": "cinder.csi.openstack.org"})
}

/// The right cluster.
pub fn right(now: Timestamp) -> World {
    let version = json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.3", "gitCommit": "0", "gitTreeState": "clean",
        "buildDate": "2026-10-01T00:00:00Z", "goVersion": "go1.26", "compiler": "gc", "platform": "linux/amd64",
    });
    let mut candidate = release(now, "v1.36.4-rc.0", 2400);
    candidate["prerelease"] = json!(true);
    let mut draft = release(now, "v1.36.9", 2400);
    draft["draft"] = json!(true);
    let releases = [
        release(now, "v1.37.0", 720),
        candidate,
        draft,
        release(now, "v1.36.3", 1000),
        release(now, "v1.36.2", 2000),
        release(now, "v1.35.9", 2400),
        release(now, "v1.36.0", 5000),
    ];
    let versions =
        json!([{"version": "1.36.0", "lessThan": "1.36.3", "status": "affected", "versionType": "semver"}]);
    let nodes =
        [("cp-0", "a"), ("cp-1", "b"), ("cp-2", "c"), ("w-0", "a"), ("w-1", "b")].map(|(name, zone)| {
            let mut node = node(name, "r", zone);
            if name.starts_with("cp") {
                node["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = json!("");
            }
            node
        });
    let pod = json!({"metadata": {"name": "test-pod"}, "status": {"phase": "Running"}});
    let claim = json!({"metadata": {"name": "test-pvc"}, "status": {"phase": "Bound"}});
    let volume = json!({"metadata": {"name": "v"}, "spec": {"claimRef": {"name": "test-pvc"}, "accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Bound"}});
    let answers = [
        ("/version", version),
        (RELEASES, json!(releases)),
        (FEED, json!({"items": [{"id": "CVE-2026-1"}, {"id": "CVE-2026-2"}, {"id": "CVE-not-published"}]})),
        (CVE, record("cvssV3_1", 9.1, "Kubernetes", &versions)),
        // Records without a score are many.
        (
            "/api/cve/CVE-2026-2",
            json!({"cveMetadata": {"cveId": "CVE-2026-2"}, "containers": {"cna": {"affected": []}}}),
        ),
        (NODES_PATH, json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": nodes})),
        (CLASSES_PATH, json!({"items": [class("ssd", true), class("hdd", false)]})),
        // What upstream's script about the storage class makes and looks at.
        ("/api/v1/namespaces/default/persistentvolumeclaims", claim.clone()),
        ("/api/v1/namespaces/default/persistentvolumeclaims/test-pvc", claim),
        ("/api/v1/namespaces/default/pods", pod.clone()),
        ("/api/v1/namespaces/default/pods/test-pod", pod),
        ("/api/v1/persistentvolumes", json!({"items": [volume]})),
    ];
    let tests = [
        test("[sig-api-machinery] ResourceQuota should verify [Conformance]", "passed"),
        test("[sig-network] Netpol NetworkPolicy between server and client should deny all", "passed"),
        test("[sig-windows] something else", "skipped"),
        json!({"name": "[ReportBeforeSuite]"}),
    ];
    World {
        answers: answers.map(|(path, body)| (path.to_owned(), ok(body))).into(),
        authorization: "Bearer key-of-the-cluster".into(),
        kubeconfig: json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "preferences": {},
            "contexts": [{"name": "other", "context": {"cluster": "other", "user": "u"}}, {"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [
                {"name": "other", "cluster": {"server": "https://127.0.0.1:9"}},
                {"name": "k", "cluster": {"server": "SERVER", "certificate-authority-data": "CA"}},
            ],
            "users": [{"name": "u", "user": {"token": "key-of-the-cluster"}}],
        }),
        files: BTreeMap::new(),
        fails: Vec::new(),
        results: Some(results(&tests)),
    }
}

struct List(Vec<Variant>);

impl List {
    fn add(
        &mut self,
        case: &str,
        what: &str,
        expect: Verdict,
        change: impl Fn(&mut World) + Send + Sync + 'static,
    ) {
        let (name, case) = (format!("{case}.{what}"), case.to_owned());
        self.0.push(Variant { name, case, expect, change: Box::new(change) });
    }

    /// A version that the cluster says, with what more is changed.
    fn version(
        &mut self,
        what: &str,
        expect: Verdict,
        version: &'static str,
        change: impl Fn(&mut World) + Send + Sync + 'static,
    ) {
        self.add(VERSION, what, expect, move |w| {
            body(w, "/version")["gitVersion"] = json!(version);
            change(w);
        });
    }

    /// 1.36.2 runs, 1.36.3 came out three weeks ago, and this is what is told of a vulnerability.
    fn vulnerability(&mut self, now: Timestamp, what: &str, expect: Verdict, told: Value) {
        self.version(&format!("vulnerability-{what}"), expect, "v1.36.2", move |w| {
            body(w, RELEASES)[3] = release(now, "v1.36.3", 500);
            *body(w, CVE) = told.clone();
        });
    }
}

fn body<'a>(world: &'a mut World, path: &str) -> &'a mut Value {
    &mut world.answers.get_mut(path).unwrap().body
}

/// All variants.
pub fn all(now: Timestamp) -> Vec<Variant> {
    let mut list = List(Vec::new());
    versions(&mut list, now);
    vulnerabilities(&mut list, now);
    sources(&mut list, now);
    access(&mut list);
    conformance(&mut list);
    nodes(&mut list);
    classes(&mut list);
    list.0
}

fn versions(list: &mut List, now: Timestamp) {
    use Verdict::{Abort, Fail, Pass};
    let none = |_: &mut World| {};
    let harmless = |w: &mut World| *body(w, FEED) = json!({"items": []});
    let newest = move |hours: i64| {
        move |w: &mut World| {
            harmless(w);
            body(w, RELEASES)[3] = release(now, "v1.36.3", hours);
        }
    };
    list.version("build", Pass, "v1.36.3+allod.1", none);
    list.version("no-v", Pass, "1.36.3", none);
    list.version("blanks", Pass, " v1.36.3 ", none);
    list.version("newer-than-all", Pass, "v1.36.7", none);
    list.version("patch-30-days", Pass, "v1.36.2", newest(30 * 24));
    list.version("patch-31-days", Pass, "v1.36.2", newest(31 * 24 - 1));
    list.version("patch-32-days", Fail, "v1.36.2", newest(31 * 24 + 1));
    list.version("two-patches-behind", Fail, "v1.36.1", newest(24));
    list.version("branch-before", Pass, "v1.35.9", none);
    list.version("branch-before-old", Fail, "v1.35.8", none);
    list.version("branch-ended", Fail, "v1.34.9", none);
    list.version("branch-long-ended", Fail, "v1.25.16", none);
    list.version("branch-not-known", Fail, "v1.37.0", none);
    list.version("other-major", Fail, "v2.36.3", none);
    list.version("suffix", Abort, "v1.36.3-gke.100", none);
    list.version("candidate", Abort, "v1.36.4-rc.0", none);
    list.version("two-numbers", Abort, "v1.36", none);
    list.version("four-numbers", Abort, "v1.36.3.1", none);
    list.version("two-v", Abort, "vv1.36.3", none);
    list.version("big-v", Abort, "V1.36.3", none);
    list.version("empty", Abort, "", none);
    list.version("words", Abort, "newest", none);
}

fn vulnerabilities(list: &mut List, now: Timestamp) {
    use Verdict::{Abort, Fail, Pass};
    let affected = |entry: Value| json!([entry]);
    let range = |end: &str, to: &str| json!([{"version": "1.36.0", end: to, "status": "affected"}]);
    let severe = |versions: Value| record("cvssV3_1", 8.0, "Kubernetes", &versions);
    let cases = [
        ("before", Fail, severe(range("lessThan", "1.36.3"))),
        ("up-to", Fail, severe(range("lessThanOrEqual", "1.36.2"))),
        ("ends-before", Pass, severe(range("lessThan", "1.36.2"))),
        ("ended-before", Pass, severe(range("lessThanOrEqual", "1.36.1"))),
        ("with-v", Fail, severe(range("lessThan", "v1.36.3"))),
        (
            "both-ends",
            Fail,
            severe(affected(
                json!({"version": "1.36.0", "lessThanOrEqual": "1.36.2", "lessThan": "1.36.1", "status": "affected"}),
            )),
        ),
        (
            "from-zero",
            Fail,
            severe(affected(json!({"version": "0", "lessThan": "1.36.3", "status": "affected"}))),
        ),
        (
            "from-words",
            Fail,
            severe(affected(json!({"version": "unspecified", "lessThan": "1.36.3", "status": "affected"}))),
        ),
        ("only-this", Fail, severe(affected(json!({"version": "v1.36.2", "status": "affected"})))),
        ("only-another", Pass, severe(affected(json!({"version": "1.36.1", "status": "affected"})))),
        ("from-to", Fail, severe(affected(json!({"version": "v1.36.0 - v1.36.3", "status": "affected"})))),
        (
            "from-to-before",
            Pass,
            severe(affected(json!({"version": "1.36.0 - 1.36.2", "status": "affected"}))),
        ),
        ("branch-x", Pass, severe(affected(json!({"version": "1.36.x", "status": "affected"})))),
        ("nothing-said", Pass, severe(affected(json!({"version": "n/a", "status": "affected"})))),
        (
            "unaffected",
            Pass,
            severe(affected(json!({"version": "1.36.0", "lessThan": "1.36.3", "status": "unaffected"}))),
        ),
        ("no-versions", Pass, severe(json!([]))),
        ("other-product", Pass, record("cvssV3_1", 9.8, "kubelet", &range("lessThan", "1.36.3"))),
        ("harmless", Pass, record("cvssV3_1", 7.9, "Kubernetes", &range("lessThan", "1.36.3"))),
        ("worst", Fail, record("cvssV3_1", 10.0, "Kubernetes", &range("lessThan", "1.36.3"))),
        ("score-4", Fail, record("cvssV4_0", 8.7, "Kubernetes", &range("lessThan", "1.36.3"))),
        ("score-2", Fail, record("cvssV2_0", 8.7, "Kubernetes", &range("lessThan", "1.36.3"))),
        ("score-of-another-kind", Pass, record("other", 9.9, "Kubernetes", &range("lessThan", "1.36.3"))),
        ("end-two-numbers", Abort, severe(range("lessThan", "1.37"))),
        ("end-star", Abort, severe(range("lessThanOrEqual", "*"))),
        (
            "reversed",
            Abort,
            severe(affected(json!({"version": "1.36.3", "lessThan": "1.36.1", "status": "affected"}))),
        ),
        ("no-status", Abort, severe(affected(json!({"version": "1.36.0", "lessThan": "1.36.3"})))),
        ("no-version", Abort, severe(affected(json!({"lessThan": "1.36.3", "status": "affected"})))),
    ];
    for (what, expect, told) in cases {
        list.vulnerability(now, what, expect, told);
    }
    // What is missing from a record that would be severe.
    let mut no_score = severe(range("lessThan", "1.36.3"));
    no_score["containers"]["cna"]["metrics"][0]["cvssV3_1"] = json!({"vectorString": "CVSS:3.1/AV:N"});
    list.vulnerability(now, "no-score", Abort, no_score);
    let mut second = severe(range("lessThan", "1.36.3"));
    second["containers"]["cna"]["metrics"] =
        json!([{"cvssV3_1": {"baseScore": 5.0}}, {"cvssV4_0": {"baseScore": 9.0}}]);
    list.vulnerability(now, "second-score", Fail, second);
    for part in ["product", "versions"] {
        let mut told = severe(range("lessThan", "1.36.3"));
        told["containers"]["cna"]["affected"][0].as_object_mut().unwrap().remove(part);
        list.vulnerability(now, &format!("no-{part}-named"), Abort, told);
    }
    for part in ["metrics", "affected"] {
        let mut told = severe(range("lessThan", "1.36.3"));
        told["containers"]["cna"].as_object_mut().unwrap().remove(part);
        list.vulnerability(now, &format!("without-{part}"), Pass, told);
    }
    list.vulnerability(
        now,
        "rejected",
        Pass,
        json!({"cveMetadata": {"state": "REJECTED"}, "containers": {"cna": {"rejectedReasons": []}}}),
    );
    // How long one may wait, with a vulnerability.
    for (hours, expect) in [(47, Pass), (49, Pass), (14 * 24 - 1, Pass), (14 * 24 + 1, Fail)] {
        list.version(&format!("vulnerable-{hours}-hours"), expect, "v1.36.2", move |w| {
            body(w, RELEASES)[3] = release(now, "v1.36.3", hours);
        });
    }
    list.version("vulnerable-and-nothing-newer", Pass, "v1.36.2", move |w| {
        body(w, RELEASES).as_array_mut().unwrap().remove(3);
    });
}

/// What stands between the question and GitHub, kubernetes.io and MITRE.
fn sources(list: &mut List, now: Timestamp) {
    use Verdict::{Abort, Fail, Pass};
    let places = [("releases", RELEASES), ("feed", FEED), ("record", CVE)];
    for (what, path) in places {
        let page = json!("<html>come back later</html>");
        list.add(VERSION, &format!("{what}-html"), Abort, move |w| *body(w, path) = page.clone());
        list.add(VERSION, &format!("{what}-breaks"), Abort, move |w| {
            w.answers.get_mut(path).unwrap().breaks = true
        });
        list.add(VERSION, &format!("{what}-html-500"), Abort, move |w| {
            let answer = w.answers.get_mut(path).unwrap();
            (answer.status, answer.body) = (500, json!("<html>sorry</html>"));
        });
    }
    for (what, path) in &places[..2] {
        let limit = json!({"message": "API rate limit exceeded"});
        let path = *path;
        list.add(VERSION, &format!("{what}-rate-limit"), Abort, move |w| {
            let answer = w.answers.get_mut(path).unwrap();
            (answer.status, answer.body) = (403, limit.clone());
        });
    }
    list.add(VERSION, "record-500", Pass, |w| {
        let answer = w.answers.get_mut(CVE).unwrap();
        (answer.status, answer.body) = (500, json!({"error": "SERVICE_NOT_AVAILABLE"}));
    });
    list.add(VERSION, "feed-no-id", Abort, |w| body(w, FEED)["items"][1] = json!({"summary": "?"}));
    list.add(VERSION, "feed-empty", Pass, |w| body(w, FEED)["items"] = json!([]));
    list.add(VERSION, "releases-empty", Pass, |w| *body(w, RELEASES) = json!([]));
    list.version("branch-ended-rate-limit", Fail, "v1.34.1", |w| {
        *body(w, RELEASES) = json!({"message": "API rate limit exceeded"});
    });
    list.version("branch-ended-no-feed", Abort, "v1.34.1", |w| *body(w, FEED) = json!({}));
    for field in ["tag_name", "published_at", "draft", "prerelease"] {
        list.add(VERSION, &format!("release-without-{field}"), Abort, move |w| {
            body(w, RELEASES)[6].as_object_mut().unwrap().remove(field);
        });
    }
    list.add(VERSION, "release-strange-tag", Abort, move |w| {
        body(w, RELEASES)[6] = release(now, "kubelet", 9)
    });
    list.add(VERSION, "release-strange-moment", Abort, |w| {
        body(w, RELEASES)[6]["published_at"] = json!("yesterday");
    });
    list.add(VERSION, "candidate-not-said", Pass, move |w| {
        body(w, RELEASES)[1] = release(now, "v1.36.3-rc.1", 2400)
    });
    list.add(VERSION, "candidate-of-a-newer", Fail, move |w| {
        body(w, RELEASES)[1] = release(now, "v1.36.4-rc.1", 2400)
    });
    // The first that decides, decides.
    list.version("strange-release-after", Fail, "v1.36.1", |w| body(w, RELEASES)[6]["tag_name"] = json!("?"));
    list.version("strange-release-before", Abort, "v1.36.1", |w| {
        body(w, RELEASES)[0]["tag_name"] = json!("?")
    });
}

/// How the cluster is reached.
fn access(list: &mut List) {
    use Verdict::{Abort, Pass};
    let cluster = |w: &mut World, name: &str, value: Option<Value>| {
        let cluster = w.kubeconfig["clusters"][1]["cluster"].as_object_mut().unwrap();
        match value {
            Some(value) => cluster.insert(name.into(), value),
            None => cluster.remove(name),
        };
    };
    list.add(VERSION, "ca-beside", Pass, move |w| {
        cluster(w, "certificate-authority-data", None);
        cluster(w, "certificate-authority", Some(json!("ca.pem")));
    });
    list.add(VERSION, "ca-missing", Abort, move |w| {
        cluster(w, "certificate-authority-data", None);
        cluster(w, "certificate-authority", Some(json!("nowhere.pem")));
    });
    list.add(VERSION, "ca-not-looked-at", Pass, move |w| {
        cluster(w, "certificate-authority-data", None);
        cluster(w, "insecure-skip-tls-verify", Some(json!(true)));
    });
    list.add(VERSION, "token-wrong", Abort, |w| w.kubeconfig["users"][0]["user"]["token"] = json!("another"));
    for (what, text) in
        [("token-beside", "key-of-the-cluster"), ("token-beside-line", "key-of-the-cluster\n")]
    {
        list.add(VERSION, what, Pass, move |w| {
            w.kubeconfig["users"][0]["user"] = json!({"tokenFile": "token"});
            w.files.insert("token".into(), text.into());
        });
    }
    list.add(VERSION, "anonymous", Abort, |w| w.kubeconfig["users"][0]["user"] = json!({}));
    list.add(VERSION, "no-current-context", Abort, |w| {
        w.kubeconfig.as_object_mut().unwrap().remove("current-context");
    });
    list.add(VERSION, "unknown-context", Abort, |w| w.kubeconfig["current-context"] = json!("d"));
    list.add(VERSION, "nobody-there", Abort, |w| w.kubeconfig["current-context"] = json!("other"));
    for status in [403, 404, 500, 503] {
        list.add(VERSION, &format!("api-{status}"), Abort, move |w| {
            let answer = w.answers.get_mut("/version").unwrap();
            (answer.status, answer.body) = (status, json!({"kind": "Status", "code": status}));
        });
    }
    list.add(VERSION, "api-breaks", Abort, |w| w.answers.get_mut("/version").unwrap().breaks = true);
    list.add(VERSION, "api-html", Abort, |w| *body(w, "/version") = json!("<html>a proxy</html>"));
}

fn conformance(list: &mut List) {
    use Verdict::{Abort, Fail, Pass};
    let allowed = [
        "[sig-scheduling] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly] [Conformance]",
        "[sig-network] Services should be able to switch session affinity for NodePort service [LinuxOnly] [Conformance]",
        "[sig-network] Services should have session affinity work for NodePort service [LinuxOnly] [Conformance]",
        "[sig-scheduling] SchedulerPredicates validates that there exists conflict between pods with same hostPort and protocol but one using 0.0.0.0 hostIP [Serial] [Conformance]",
        "[sig-network] Netpol NetworkPolicy between server and client should allow ingress access from updated namespace",
        "[sig-network] Netpol [Feature:SCTPConnectivity] NetworkPolicy should enforce policy",
        "[sig-network] Netpol should allow egress access to server in CIDR block [Feature:NetworkPolicy]",
        "[sig-network] Netpol should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed [Feature:NetworkPolicy]",
        "[sig-network] Netpol should enforce except clause while egress access to server in CIDR block [Feature:NetworkPolicy]",
    ];
    for case in [CONFORMANCE, NETWORKING] {
        let mut given = |what: &str, expect, text: Option<String>| {
            list.add(case, what, expect, move |w| w.results.clone_from(&text));
        };
        let passed = test("[sig-apps] Deployment should run", "passed");
        let mut tests =
            |what: &str, expect, test: Value| given(what, expect, Some(results(&[passed.clone(), test])));
        tests("failed", Fail, test("[sig-apps] Job should run", "failed"));
        tests(
            "failed-nearly-allowed",
            Fail,
            test(
                "[sig-network] Services should have session affinity work for service with type clusterIP",
                "failed",
            ),
        );
        tests("skipped", Pass, test("[sig-apps] Job should run", "skipped"));
        tests("timeout", Pass, test("[sig-apps] Job should run", "timeout"));
        tests("no-status", Pass, json!({"name": "[sig-apps] Job should run"}));
        tests("status-null", Pass, json!({"name": "[sig-apps] Job should run", "status": null}));
        tests("failed-no-name", Abort, json!({"status": "failed"}));
        tests("test-is-text", Abort, json!("failed"));
        for (index, name) in allowed.iter().enumerate() {
            tests(&format!("allowed-{}", index + 1), Pass, test(name, "failed"));
        }
        given("none-run", Pass, Some(results(&[])));
        given("no-items", Pass, Some("name: e2e\nstatus: passed\n".into()));
        given("items-null", Abort, Some("name: e2e\nitems:\n".into()));
        given("empty", Abort, Some(String::new()));
        given("a-list", Abort, Some("- items: []\n".into()));
        given("not-yaml", Abort, Some("items: [{".into()));
        given("none", Abort, None);
        for what in ["delete", "run", "retrieve"] {
            list.add(case, &format!("{what}-fails"), Abort, move |w| w.fails.push(what.into()));
        }
        list.add(case, "delete-after-fails", Pass, |w| w.fails.push("delete-after".into()));
    }
}

fn nodes(list: &mut List) {
    use Verdict::{Abort, Fail, Pass};
    let mut items = |what: &str, expect, change: fn(&mut Vec<Value>)| {
        list.add(NODES, what, expect, move |w| change(body(w, NODES_PATH)["items"].as_array_mut().unwrap()));
    };
    items("one-node", Fail, |n| n.truncate(1));
    items("no-node", Fail, Vec::clear);
    items("two-nodes", Pass, |n| n.truncate(2));
    items("workers-only", Pass, |n| drop(n.drain(..3)));
    items("one-zone", Pass, |n| n.iter_mut().for_each(|n| n["metadata"]["labels"][ZONE] = json!("a")));
    items("several-regions", Pass, |n| n[0]["metadata"]["labels"][REGION] = json!("s"));
    items("control-plane-no-zone", Fail, |n| {
        drop(n[0]["metadata"]["labels"].as_object_mut().unwrap().remove(ZONE))
    });
    items("worker-no-zone", Fail, |n| drop(n[4]["metadata"]["labels"].as_object_mut().unwrap().remove(ZONE)));
    items("control-plane-no-region", Fail, |n| {
        drop(n[1]["metadata"]["labels"].as_object_mut().unwrap().remove(REGION))
    });
    items("worker-no-region", Fail, |n| {
        drop(n[3]["metadata"]["labels"].as_object_mut().unwrap().remove(REGION))
    });
    items("old-labels", Fail, |n| {
        for node in n {
            node["metadata"]["labels"] = json!({"failure-domain.beta.kubernetes.io/zone": "a", "failure-domain.beta.kubernetes.io/region": "r"});
        }
    });
    list.add(NODES, "forbidden", Abort, |w| w.answers.get_mut(NODES_PATH).unwrap().status = 403);
}

fn classes(list: &mut List) {
    use Verdict::{Abort, Fail, Pass};
    let mut items = |what: &str, expect, items: Vec<Value>| {
        list.add(CLASSES, what, expect, move |w| body(w, CLASSES_PATH)["items"] = json!(items));
    };
    items("only-one", Pass, vec![class("any-name", true)]);
    items("none", Fail, vec![]);
    items("no-default", Fail, vec![class("a", false), class("b", false)]);
    items("two-defaults", Fail, vec![class("a", true), class("b", true)]);
    let mut local = class("local", true);
    local["provisioner"] = json!("kubernetes.io/no-provisioner");
    items("no-provisioner", Fail, vec![local.clone()]);
    local["metadata"]["annotations"][DEFAULT] = json!("false");
    items("another-has-no-provisioner", Pass, vec![local, class("b", true)]);
    let mut silent = class("silent", false);
    silent["metadata"]["annotations"] = json!({});
    items("another-says-nothing", Pass, vec![class("a", true), silent]);
    list.add(CLASSES, "forbidden", Abort, |w| w.answers.get_mut(CLASSES_PATH).unwrap().status = 403);
}
