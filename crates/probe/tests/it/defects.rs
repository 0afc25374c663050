//! One test for each defect that was found in the older health monitor (D01 to D37; D19, D30, D32 and D33 are in `killed.rs`,
//! D09, D31, D34 and D36 in `program.rs`). The table of docs/probe.md says which is which.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{Fake, Setup, clean, control, setup, setup_seen};
use probe::engine::{Failure, Unseen};
use probe::hands::Output;
use probe::learned::{LEARNING, Learned};
use probe::meter::{Meter, Told};
use probe::push::{Pusher, influx, otlp};
use probe::record::{Class, Iteration, Measure, Place, Record};
use probe::report::{Report, summaries};
use probe::scenario::{Check, Scenario};
use serde_json::{Value, json};

use crate::common;
use crate::stub::{Fault, Seen, Stub, World};

/// A record out of thin air.
pub fn record(op: &str, class: Class, us: u64) -> Record {
    Record {
        seq: 1,
        iteration: 1,
        step: op.replace('.', "-"),
        op: op.into(),
        service: "network".into(),
        name: None,
        id: None,
        at: "2026-01-01T00:00:00.000000Z".into(),
        us,
        class,
        message: class.failed().then(|| "as told".into()),
        request_id: None,
        attempts: Vec::new(),
        looks: 0,
        place: Place::default(),
        cause: None,
        measures: Vec::new(),
    }
}

pub fn iteration(number: u64, records: Vec<Record>) -> Iteration {
    Iteration {
        number,
        run: "r".into(),
        cloud: "c".into(),
        region: None,
        scenario: "s".into(),
        at: "2026-01-01T00:00:00.000000Z".into(),
        us: records.iter().map(|r| r.us).sum(),
        stopped: false,
        calls: 0,
        failed_calls: 0,
        records,
        left: Vec::new(),
    }
}

fn output(stdout: String) -> Result<Output, Failure> {
    Ok(Output { status: 0, stdout, stderr: String::new() })
}

fn failures(iteration: &Iteration) -> Vec<String> {
    iteration.failures().map(Record::told).collect()
}

fn guests() -> Scenario {
    let mut scenario = Scenario::builtin("default").unwrap();
    scenario.set("guests=3").unwrap();
    scenario
}

/// Guests that do all they should; `special` may answer otherwise.
fn well(
    special: impl Fn(&str, &str) -> Option<Result<Output, Failure>> + Send + Sync + 'static,
) -> Arc<Fake> {
    Fake::new(move |target, command| {
        if let Some(answer) = special(&target.address, command) {
            return answer;
        }
        if command.contains(" bench ") {
            return output(
                json!({"cpu_seconds": 0.2, "disk_write": 500.0, "disk_sync": 1.0, "disk_slow": 0.0})
                    .to_string(),
            );
        }
        let words: Vec<&str> = command.split(' ').collect();
        let row = |peer: &str| {
            let part = json!({"sent": 10, "received": 10, "median_us": 400});
            json!({"peer": peer, "icmp": part, "udp": part, "tcp": part}).to_string()
        };
        match words.get(1) {
            Some(&"matrix") => output(words[4..].iter().map(|p| row(p)).collect::<Vec<_>>().join("\n")),
            Some(&"throughput") => {
                output(json!({"sent_mbit_s": 10_000.0, "received_mbit_s": 10_000.0}).to_string())
            }
            _ => output(String::new()),
        }
    })
}

async fn inside(stub: &Stub, mut scenario: Scenario, hands: Arc<Fake>) -> Setup {
    // What the guests' metadata says has a test of its own.
    scenario.steps.retain(|s| !s.id.ends_with("user-data"));
    let mut setup = setup(stub, scenario, hands).await;
    setup.engine.agent = Some(b"agent".to_vec());
    setup
}

/// D01, D10, D11: pairs that do not reach each other are counted, once, where they failed, and nowhere else.
#[tokio::test]
async fn d01_unreachable_pairs_are_counted() {
    let stub = Stub::start(World::default()).await;
    let hands = well(|from, command| {
        let dead = json!({"sent": 10, "received": 0});
        let to = command
            .split(' ')
            .skip(4)
            .map(|p| json!({"peer": p, "icmp": dead, "udp": dead, "tcp": dead}).to_string());
        // One guest of three reaches nobody, and another not one of its two.
        (command.contains(" matrix ") && from.ends_with('1'))
            .then(|| output(to.collect::<Vec<_>>().join("\n")))
    });
    let setup = inside(&stub, guests(), hands).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    let pairs: Vec<_> = iteration.records.iter().filter(|r| r.op == "pair.reach").collect();
    assert_eq!(pairs.len(), 6);
    let bad = pairs.iter().filter(|r| r.class == Class::DataPlane).count();
    let summary = summaries(std::slice::from_ref(&iteration));
    let told = summary.iter().find(|s| s.op == "pair.reach").unwrap();
    assert_eq!(told.failed.get(&Class::DataPlane).copied().unwrap_or(0), bad);
    assert_eq!(iteration.failures().count(), bad, "{:?}", failures(&iteration));
    // D10: what a period counts is the sum of what its iterations counted. D11: one without pairs adds none.
    let empty = self::iteration(2, vec![record("network.create", Class::Timeout, 5)]);
    let both = summaries(&[iteration.clone(), empty]);
    assert_eq!(both.iter().find(|s| s.op == "pair.reach").unwrap().failed, told.failed);
    assert_eq!(both.iter().find(|s| s.op == "network.create").unwrap().failed[&Class::Timeout], 1);
}

/// D02: 409, then 201: one record with both attempts, no failure.
#[tokio::test]
async fn d02_a_conflict_that_passes_is_no_failure() {
    let stub = Stub::start(World::default()).await;
    let mut told = false;
    stub.with(|w| {
        w.judge = Box::new(move |_, s| {
            (s.is("POST", "/security-groups") && !std::mem::replace(&mut told, true))
                .then_some(Fault::Status(409))
        });
    });
    let setup = setup(&stub, control(), Fake::closed()).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    assert!(iteration.fine(), "{:?}", failures(&iteration));
    let record = iteration.records.iter().find(|r| r.op == "security-group.create").unwrap();
    let attempts: Vec<_> = record.attempts.iter().map(|a| (a.status, a.total_us > 0)).collect();
    assert_eq!(attempts, [(Some(409), true), (Some(201), true)]);
    assert_eq!(iteration.failed_calls, 1);
}

/// D03, D13: all outputs are made of the same records, and every kind of operation is in each of them.
#[tokio::test]
async fn d03_all_outputs_agree() {
    let stub = Stub::start(World::default()).await;
    stub.with(|w| {
        w.broken = vec!["guest-2".into()];
        w.judge = Box::new(|_, s| s.is("POST", "/floatingips").then_some(Fault::Status(500)));
    });
    let mut setup = setup(&stub, control(), Fake::closed()).await;
    let meter = Arc::new(Meter::new("c", None).unwrap());
    struct Into(Arc<Meter>);
    impl probe::engine::Witness for Into {
        fn record(&self, record: &Record) {
            self.0.record(record);
        }
    }
    setup.engine.witness = Arc::new(Into(meter.clone()));
    let iteration = setup.engine.iterate(1).await.unwrap();
    let (failed, skipped) = (iteration.failures().count(), iteration.count(Class::Skipped));
    assert!(failed >= 4 && skipped >= 2, "{:?}", failures(&iteration));
    let told = Told::default();
    let all = std::slice::from_ref(&iteration);
    let report = Report::new(all, &told);
    let (junit, text) = (report.junit(), meter.text());
    let json: Value = serde_json::to_value(&report).unwrap();
    let lines = influx("c", &iteration);
    let otlp = otlp(&iteration, 1).to_string();
    assert_eq!(junit.matches("<failure").count(), failed);
    assert_eq!(junit.matches("<skipped").count(), skipped);
    assert_eq!(junit.matches("<testcase").count(), iteration.records.len());
    assert_eq!(json["iterations"][0]["records"].as_array().unwrap().len(), iteration.records.len());
    let counted = |class: Class| -> u64 {
        let lines = text.lines().filter(|l| {
            l.starts_with("allod_probe_operations_total{") && l.contains(&format!("class=\"{class}\""))
        });
        lines.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    for class in Class::ALL {
        let in_json: u64 = json["operations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o["failed"][class.name()].as_u64().unwrap_or(0))
            .sum();
        let count = u64::try_from(iteration.count(class)).unwrap();
        assert_eq!(counted(class), count, "{class}");
        assert!(!class.failed() || in_json == count, "{class}");
    }
    assert_eq!(
        lines.lines().filter(|l| l.ends_with("return_code=1")).count(),
        failed + 1,
        "and the iteration itself"
    );
    assert_eq!(lines.lines().count(), iteration.records.len() - skipped + 1);
    for record in iteration.records.iter().filter(|r| r.class != Class::Skipped) {
        let op = format!("op=\"{}\"", record.op);
        assert!(
            text.contains(&op) && junit.contains(&record.op) && otlp.contains(&record.op),
            "{}",
            record.op
        );
    }
    report.write(setup.dir.path()).unwrap();
    let html = std::fs::read_to_string(setup.dir.path().join("report.html")).unwrap();
    assert!(html.contains("No valid host was found") && html.contains("<svg"));
}

/// D04: a list that hangs is one failure, of the class timeout.
#[tokio::test]
async fn d04_a_hanging_list_is_a_timeout() {
    let stub = Stub::start(World::default()).await;
    stub.with(|w| {
        w.judge = Box::new(|_, s| s.is("GET", "network/v2.0/networks").then_some(Fault::HangBefore))
    });
    let mut scenario = control();
    scenario.only(&["lists".into()]).unwrap();
    let limit = Duration::from_millis(200);
    let setup = setup_seen(&stub, scenario, Fake::closed(), Arc::new(Unseen), limit).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    assert_eq!(
        (iteration.failures().count(), iteration.count(Class::Timeout)),
        (1, 1),
        "{:?}",
        failures(&iteration)
    );
}

/// D05, D20, D21: an image service that is down is one failure in each iteration, and no call is made with what it did not say.
#[tokio::test]
async fn d05_an_outage_is_one_failure_in_each_iteration() {
    let stub = Stub::start(World::default()).await;
    stub.with(|w| w.judge = Box::new(|_, s| s.path.starts_with("image/").then_some(Fault::Status(503))));
    let mut scenario = control();
    scenario.steps.retain(|s| s.id != "lists");
    let setup = setup(&stub, scenario, Fake::closed()).await;
    for number in 1..=3 {
        let iteration = setup.engine.iterate(number).await.unwrap();
        let failed: Vec<_> = iteration.failures().collect();
        assert_eq!(failed.len(), 1, "{:?}", failures(&iteration));
        assert_eq!(
            (failed[0].op.as_str(), failed[0].class, failed[0].attempts.len()),
            ("image.find", Class::Server, 3)
        );
        let skipped =
            iteration.records.iter().filter(|r| r.op == "server.create" && r.class == Class::Skipped);
        assert!(skipped.clone().count() == 4 && skipped.clone().all(|r| r.cause.is_some()));
    }
    stub.with(|w| assert!(!w.seen.iter().any(|s| s.is("POST", "/servers"))));
    assert_eq!(stub.left(), Vec::<String>::new());
}

/// D06: of 100 calls 10 time out: 90 %.
#[test]
fn d06_a_timeout_weighs_like_any_failure() {
    let class = |i| if i % 10 == 0 { Class::Timeout } else { Class::Ok };
    let all = iteration(1, (0..100).map(|i| record("network.create", class(i), 1000)).collect());
    let sum = &summaries(std::slice::from_ref(&all))[0];
    assert!((sum.success - 0.9).abs() < 1e-12);
    let lines = influx("c", &all);
    assert_eq!(
        lines.lines().filter(|l| l.contains("cmd=neutron") && l.ends_with("return_code=1")).count(),
        10
    );
    assert!(!lines.contains("return_code=2"));
}

/// A cloud with load balancers, and guests behind them that answer all requests but some.
async fn balanced(failing: usize) -> (Stub, Arc<Fake>) {
    let mut world = World { looks: 3, ..World::default() };
    world.services.push("load-balancer");
    let stub = Stub::start(world).await;
    let of = stub.clone();
    let hands = well(move |_, command| {
        command.contains("/hostname").then(|| {
            let named = |s: &Value| s["name"].as_str().filter(|n| n.contains("-guest-")).map(str::to_owned);
            let names: Vec<String> = of.with(|w| w.things["servers"].iter().filter_map(named).collect());
            let answers = names.iter().cycle().take(2 * names.len() - failing);
            output(answers.map(|n| format!("{n}\n")).collect())
        })
    });
    (stub, hands)
}

/// D27: where there is no load balancer, or making it failed, its checks are skipped and say why; the rest goes on.
#[tokio::test]
async fn d27_what_is_skipped_says_why() {
    let stub = Stub::start(World::default()).await;
    let setup = inside(&stub, guests(), well(|_, _| None)).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    assert!(iteration.fine(), "{:?}", failures(&iteration));
    let skipped: Vec<_> = iteration.records.iter().filter(|r| r.step.starts_with("balancer")).collect();
    assert!(skipped.len() > 5 && skipped.iter().all(|r| r.class == Class::Skipped), "{skipped:?}");
    assert!(skipped.iter().all(|r| r.message.as_ref().unwrap().contains("load-balancer")));

    let (stub, hands) = balanced(0).await;
    stub.with(|w| {
        w.judge = Box::new(|_, s| s.is("POST", "/lbaas/loadbalancers").then_some(Fault::Status(500)));
    });
    let setup = inside(&stub, guests(), hands).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    let failed: Vec<_> = iteration.failures().collect();
    assert!(failed.len() == 1 && failed[0].op == "load-balancer.create", "{:?}", failures(&iteration));
    for step in
        ["balancer-active", "balancer-listener", "balancer-pool", "balancer-member", "balancer-contract"]
    {
        let of: Vec<_> = iteration.records.iter().filter(|r| r.step == step).collect();
        let told = |r: &&Record| r.class == Class::Skipped && r.message.is_some();
        assert!(!of.is_empty() && of.iter().all(told), "{step}: {of:?}");
        assert!(of.iter().any(|r| r.cause.is_some()), "{step}: {of:?}");
    }
    assert_eq!(iteration.records.iter().filter(|r| r.op == "pair.reach" && r.class == Class::Ok).count(), 6);
    assert!(!stub.with(|w| w.seen.iter().any(|s| s.is("POST", "/lbaas/listeners"))));
}

/// A way to make guests, and what it changes.
type Boot<'a> = (&'a str, &'a dyn Fn(&mut Value));

/// D24: each check works when it is the only one, however the guests were made; the members of a load balancer are its guests.
#[tokio::test]
async fn d24_each_check_works_alone() {
    let steps = Scenario::builtin("default").unwrap().steps;
    let checks: Vec<_> = steps.iter().filter_map(|s| Some((s.id.clone(), s.check?))).collect();
    let networks = |body: &mut Value| {
        body["networks"] = json!([{"uuid": "{network.id}"}]);
        body["security_groups"] = json!([{"name": "{group.id}"}]);
    };
    let boots: [Boot<'_>; 4] =
        [("image", &|_| {}), ("networks", &networks), ("volume", &|_| {}), ("implicit-volume", &|_| {})];
    for (boot, change) in boots {
        for (step, check) in checks.iter().filter(|(id, _)| !id.ends_with("user-data") && id != "world") {
            let (stub, hands) = balanced(0).await;
            let mut scenario = guests();
            if boot != "networks" {
                scenario.set(&format!("boot={boot}")).unwrap();
            }
            let guest = scenario.steps.iter_mut().find(|s| s.id == "guest").unwrap();
            change(&mut guest.body);
            if boot == "networks" {
                guest.each = None;
                guest.on = Some("network".into());
                guest.count = Some("{guests}".into());
                scenario.steps.retain(|s| s.id != "port");
            }
            scenario.only(std::slice::from_ref(step)).unwrap();
            let setup = inside(&stub, scenario, hands).await;
            let iteration = setup.engine.iterate(1).await.unwrap();
            assert!(iteration.fine(), "{boot}, {step}: {:?}", failures(&iteration));
            let of: Vec<_> = iteration.records.iter().filter(|r| r.step == *step).collect();
            assert!(!of.is_empty() && of.iter().all(|r| r.class == Class::Ok), "{boot}, {step}: {of:?}");
            let rules =
                stub.with(|w| w.seen.iter().filter(|s| s.is("POST", "/security-group-rules")).count());
            let expected = match check {
                Check::Reach => 2,
                check if check.in_guests() => 5,
                _ => 0,
            };
            assert_eq!(rules, expected, "{boot}, {step}");
            if *check == Check::Balancer {
                let member = |s: &&Seen| s.is("POST", "/members");
                let members: Vec<Value> =
                    stub.with(|w| w.seen.iter().filter(member).map(|s| s.body.clone()).collect());
                assert_eq!(members.len(), 3, "{boot}");
                assert!(
                    members.iter().all(|m| m["member"]["address"].as_str().unwrap().starts_with("10.0.0.")),
                    "{members:?}"
                );
            }
            assert_eq!(stub.left(), Vec::<String>::new(), "{boot}, {step}");
        }
    }
}

/// D07, D23: the parts of a load balancer are made one after the other, each when it takes changes again; two requests that fail are two.
#[tokio::test]
async fn d07_failed_requests_are_counted_as_such() {
    for failing in [0, 2] {
        let (stub, hands) = balanced(failing).await;
        let setup = inside(&stub, guests(), hands).await;
        let iteration = setup.engine.iterate(1).await.unwrap();
        let told = failures(&iteration);
        if failing == 0 {
            assert!(iteration.fine(), "{told:?}");
        } else {
            assert!(told.len() == 1 && told[0].contains("2 of 6 requests failed"), "{told:?}");
        }
        assert_eq!(
            iteration.records.iter().filter(|r| r.op == "member.create" && r.class == Class::Ok).count(),
            3
        );
        assert_eq!(stub.left(), Vec::<String>::new());
        stub.with(|w| {
            let listener = w.seen.iter().position(|s| s.is("POST", "/listeners")).unwrap();
            let looks = w.seen[..listener].iter().filter(|s| s.is("GET", "/loadbalancers/")).count();
            assert!(looks > 3, "{looks}");
        });
    }
}

/// D08: any failure makes an iteration fail, 256 as one.
#[test]
fn d08_any_failure_fails_the_iteration() {
    for class in Class::ALL.into_iter().filter(|c| c.failed()) {
        let good = record("network.create", Class::Ok, 5);
        assert!(iteration(1, vec![good.clone()]).fine());
        assert!(!iteration(1, vec![good, record("guest.login", class, 5)]).fine(), "{class}");
    }
    let many = iteration(1, (0..256).map(|_| record("network.create", Class::Server, 5)).collect());
    let told = Told::default();
    assert!(!Report::new(std::slice::from_ref(&many), &told).fine);
    assert!(!iteration(1, Vec::new()).fine(), "nothing tried is not well");
}

/// D12: 306 pairs that fail are 306; no way into a guest is something else, and once.
#[tokio::test]
async fn d12_any_number_of_failed_pings_is_counted() {
    let stub = Stub::start(World::default()).await;
    let hands = well(|_, command| {
        let dead = json!({"sent": 10, "received": 0});
        let rows = command.split(' ').skip(4).map(|p| json!({"peer": p, "icmp": dead}).to_string());
        command.contains(" matrix ").then(|| output(rows.collect::<Vec<_>>().join("\n")))
    });
    let mut scenario = guests();
    scenario.set("guests=18").unwrap();
    let setup = inside(&stub, scenario, hands).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    assert_eq!(
        iteration.records.iter().filter(|r| r.op == "pair.reach" && r.class == Class::DataPlane).count(),
        306
    );

    let stub = Stub::start(World::default()).await;
    let gone = well(|_, command| {
        command.contains(" matrix ").then(|| Err(Failure::new(Class::DataPlane, "connection reset")))
    });
    let setup = inside(&stub, guests(), gone).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    let told = failures(&iteration);
    assert!(told.len() == 3 && told.iter().all(|t| t.contains("connection reset")), "{told:?}");
}

/// D14: a metrics server that is dead keeps nobody waiting; what it missed it gets later.
#[tokio::test]
async fn d14_a_dead_metrics_server_costs_nothing() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool.jsonl");
    // A port that nobody listens on.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/write", listener.local_addr().unwrap());
    drop(listener);
    let pusher = Pusher::start(url, "text/plain", spool.clone()).unwrap();
    let begin = std::time::Instant::now();
    for n in 0..100 {
        pusher.push(format!("line {n}"));
    }
    assert!(begin.elapsed() < Duration::from_millis(100));
    pusher.finish().await.unwrap();
    assert_eq!(std::fs::read_to_string(&spool).unwrap().lines().count(), 100);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/write", listener.local_addr().unwrap());
    let got: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
    let take = got.clone();
    let app = axum::Router::new().fallback(move |body: String| {
        take.lock().push(body);
        std::future::ready("")
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    let pusher = Pusher::start(url, "text/plain", spool.clone()).unwrap();
    pusher.push("line 100".into());
    pusher.finish().await.unwrap();
    assert_eq!(*got.lock(), (0..=100).map(|n| format!("line {n}")).collect::<Vec<_>>());
    assert!(!spool.exists());
}

/// D15: what is measured is the call, in its parts; a connection that is there is not counted again.
#[tokio::test]
async fn d15_calls_are_measured_in_their_parts() {
    let stub = Stub::start(World::default()).await;
    stub.with(|w| {
        w.judge =
            Box::new(|_, s| s.is("POST", "/routers").then_some(Fault::Slow(Duration::from_millis(120))));
    });
    let setup = setup(&stub, control(), Fake::closed()).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    let router = iteration.records.iter().find(|r| r.op == "router.create").unwrap();
    let call = &router.attempts[0];
    assert!(
        call.first_byte_us >= 120_000 && call.total_us >= call.first_byte_us && router.us >= call.total_us
    );
    assert!(call.connect_us.is_none() && call.dns_us.is_none(), "the connection was there: {call:?}");
    let fresh = setup.engine.session.calls().into_iter().find(|c| c.connect_us.is_some()).unwrap();
    assert!(fresh.dns_us.is_some() && fresh.tls_us.is_none() && fresh.total_us >= fresh.connect_us.unwrap());
}

/// D16: how long a guest takes to let us in is its own time.
#[tokio::test]
async fn d16_a_slow_login_is_no_other_guests() {
    let stub = Stub::start(World::default()).await;
    let tries = parking_lot::Mutex::new(BTreeMap::<String, u32>::new());
    let hands = well(move |address, command| {
        let mut tries = tries.lock();
        let slow = tries.len() == 1 || tries.keys().next().is_some_and(|first| first == address);
        let count = tries.entry(address.to_owned()).or_insert(0);
        *count += 1;
        (command == "true" && slow && *count < 40).then(|| Err(Failure::new(Class::DataPlane, "refused")))
    });
    let setup = inside(&stub, guests(), hands).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    let mut times: Vec<u64> =
        iteration.records.iter().filter(|r| r.op == "guest.login").map(|r| r.us).collect();
    times.sort_unstable();
    assert_eq!(times.len(), 3);
    assert!(times[0] * 4 < times[2], "{times:?}");
}

/// D17, D18: rates are in what they say, a failure is in both series, and a tool that is missing is said to be.
#[tokio::test]
async fn d17_rates_and_failures_of_tools() {
    let stub = Stub::start(World::default()).await;
    let setup = inside(&stub, guests(), well(|_, _| None)).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    let lines = influx("c", &iteration);
    assert!(lines.contains("cmd=iperf3,method=s1 duration=10,return_code=0"), "{lines}");
    assert!(lines.contains("cmd=iperf3,method=r1 duration=10,return_code=0"), "{lines}");

    let stub = Stub::start(World::default()).await;
    let hands = well(|_, command| match command {
        c if c.contains(" throughput ") => Some(output(json!({"error": "connection refused"}).to_string())),
        c if c.contains(" bench ") => {
            Some(Ok(Output { status: 127, stdout: String::new(), stderr: "not found".into() }))
        }
        _ => None,
    });
    let setup = inside(&stub, guests(), hands).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    let lines = influx("c", &iteration);
    for method in ["s1", "r1"] {
        assert!(lines.contains(&format!("cmd=iperf3,method={method} duration=0,return_code=1")), "{lines}");
    }
    let bench: Vec<_> = iteration.records.iter().filter(|r| r.op == "guest.bench").collect();
    assert!(bench.len() == 3 && bench.iter().all(|r| r.class == Class::Tool), "{bench:?}");
    assert!(lines.contains("cmd=4000pi") && !lines.contains("duration=,"));
}

/// D22: whatever is down, iterations go on, and each says so.
#[tokio::test]
async fn d22_an_outage_does_not_end_the_watch() {
    for down in ["compute/", "network/", "volume/", "identity/v3/auth/catalog"] {
        let stub = Stub::start(World::default()).await;
        stub.with(|w| w.judge = Box::new(move |_, s| s.path.starts_with(down).then_some(Fault::Status(503))));
        let setup = setup(&stub, control(), Fake::closed()).await;
        for number in 1..=2 {
            let iteration = setup.engine.iterate(number).await.unwrap();
            assert!(
                !iteration.fine() && iteration.failures().all(|r| r.class == Class::Server),
                "{:?}",
                failures(&iteration)
            );
        }
        stub.with(|w| w.judge = Box::new(|_, _| None));
        let iteration = setup.engine.iterate(3).await.unwrap();
        assert!(iteration.fine(), "{down}: {:?}", failures(&iteration));
        assert_eq!(stub.left(), Vec::<String>::new());
    }
}

/// D23: what is not ready is not used.
#[tokio::test]
async fn d23_the_next_call_waits_for_the_state() {
    let stub = Stub::start(World { looks: 12, ..World::default() }).await;
    let setup = setup(&stub, control(), Fake::closed()).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    assert!(iteration.fine(), "{:?}", failures(&iteration));
    let waits: Vec<_> = iteration
        .records
        .iter()
        .filter(|r| r.op == "volume.available" && r.step == "volume-available")
        .collect();
    assert!(waits.iter().all(|r| r.looks > 10) && waits.len() == 4, "{waits:?}");
    stub.with(|w| {
        let at = |method: &str, path: &str| w.seen.iter().position(|s| s.is(method, path)).unwrap();
        let last_look =
            w.seen.iter().take(at("POST", "os-volume_attachments")).rposition(|s| s.is("GET", "/volumes/id"));
        assert!(last_look.unwrap() > at("POST", "/volumes"));
    });
}

/// D25: one error that was put in is one that is counted, whatever it hits.
#[tokio::test]
async fn d25_one_error_is_one() {
    let posts = [
        "networks",
        "subnets",
        "routers",
        "ports",
        "security-groups",
        "security-group-rules",
        "volumes",
        "servers",
    ];
    for path in posts {
        let stub = Stub::start(World::default()).await;
        let mut told = false;
        stub.with(|w| {
            w.judge = Box::new(move |_, s| {
                (s.method == "POST" && s.path.ends_with(path) && !std::mem::replace(&mut told, true))
                    .then_some(Fault::Status(500))
            });
        });
        let setup = setup(&stub, control(), Fake::closed()).await;
        let iteration = setup.engine.iterate(1).await.unwrap();
        assert_eq!(iteration.failures().count(), 1, "{path}: {:?}", failures(&iteration));
        assert_eq!(iteration.failed_calls, 1, "{path}");
        assert_eq!(stub.left(), Vec::<String>::new(), "{path}");
    }
}

/// D26: a guest that came to nothing is said once, with its reason and its host, and later checks leave it out.
#[tokio::test]
async fn d26_a_broken_guest_is_told_once() {
    let stub = Stub::start(World { broken: vec!["-guest-2".into()], ..World::default() }).await;
    let setup = inside(&stub, guests(), well(|_, _| None)).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    let failed: Vec<_> = iteration.failures().collect();
    assert_eq!(failed.len(), 1, "{:?}", failures(&iteration));
    assert_eq!(failed[0].class, Class::Fault);
    assert!(failed[0].message.as_ref().unwrap().contains("No valid host") && failed[0].place.host.is_some());
    let because: Vec<_> =
        iteration.records.iter().filter(|r| r.cause == Some(failed[0].seq)).map(|r| r.op.as_str()).collect();
    for op in ["guest.login", "pair.reach", "server.metadata"] {
        assert!(because.contains(&op), "{because:?}");
    }
    assert_eq!(iteration.records.iter().filter(|r| r.op == "pair.reach" && r.class == Class::Ok).count(), 2);
}

/// D28, D29: what does not go is named, whatever it is, until cleanup removed it.
#[tokio::test]
async fn d28_what_is_left_is_named() {
    for path in [
        "networks",
        "routers",
        "ports",
        "security-groups",
        "volumes",
        "servers",
        "os-keypairs",
        "floatingips",
    ] {
        let stub = Stub::start(World::default()).await;
        stub.with(|w| {
            w.judge = Box::new(move |_, s| {
                (s.method == "DELETE" && s.path.split('/').rev().nth(1) == Some(path))
                    .then_some(Fault::Status(500))
            });
        });
        let mut scenario = control();
        scenario.change_limit = 0.2;
        let Setup { engine, dir, stop: _stop } = setup(&stub, scenario, Fake::closed()).await;
        let iteration = engine.iterate(1).await.unwrap();
        assert!(!iteration.left.is_empty() && !iteration.fine(), "{path}");
        assert!(!engine.journal.finish().unwrap());
        drop(engine);
        stub.with(|w| w.judge = Box::new(|_, _| None));
        assert_eq!(clean(&stub, dir.path()).await, Vec::<String>::new());
        assert_eq!(stub.left(), Vec::<String>::new(), "{path}");
    }
}

/// D35: what takes twice as long as usual is found without a limit that somebody set; what varies as usual is not.
#[test]
fn d35_twice_as_slow_is_unusual() {
    let dir = tempfile::tempdir().unwrap();
    let mut learned = Learned::load(dir.path(), "c", "s").unwrap();
    let now = base::Timestamp::from_secs(1_800_000_000);
    let usual = |n: u64| 1_000_000 + n * 7919 % 13 * 10_000;
    let one = |n: u64, us: u64| {
        iteration(
            n,
            vec![
                record("server.active", Class::Ok, us),
                record("network.create", Class::Ok, usual(n + 5) / 10),
            ],
        )
    };
    for n in 0..60 {
        let told = learned.judge(&one(n, usual(n)), now);
        assert_eq!(told, [], "{n}");
        if n == u64::try_from(LEARNING).unwrap() {
            learned.save().unwrap();
            learned = Learned::load(dir.path(), "c", "s").unwrap();
        }
    }
    let told = learned.judge(&one(60, 2 * usual(3)), now);
    let at: Vec<_> = told.iter().map(|u| u.at.as_str()).collect();
    assert!(at.contains(&"server.active") && !at.contains(&"network.create"), "{told:?}");
}

/// The allowance of failures, and how fast it is used up.
#[test]
fn burn_rates_are_shares_of_the_allowance() {
    let dir = tempfile::tempdir().unwrap();
    let mut learned = Learned::load(dir.path(), "c", "s").unwrap();
    let now = base::Timestamp::from_secs(1_800_000_000);
    let bad = iteration(1, vec![record("a.b", Class::Ok, 5), record("a.b", Class::Server, 5)]);
    learned.judge(&bad, now);
    let later = now.plus(Duration::from_secs(1000));
    let good = iteration(2, (0..2).map(|_| record("a.b", Class::Ok, 5)).collect());
    learned.judge(&good, later);
    let rates: BTreeMap<String, f64> =
        learned.burns(0.99, later).into_iter().map(|b| (b.window, b.rate)).collect();
    assert!(rates["5m"].abs() < 1e-9 && (rates["1h"] - 25.0).abs() < 1e-9, "{rates:?}");
}

/// D37: every failure that is told names its record.
#[test]
fn d37_what_is_told_names_its_record() {
    let mut bad = record("network.create", Class::Server, 5);
    bad.seq = 4711;
    let told = Told::default();
    let all = [iteration(1, vec![bad])];
    let dir = tempfile::tempdir().unwrap();
    Report::new(&all, &told).write(dir.path()).unwrap();
    let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(html.contains("<td>4711</td>"));
    let _: Measure = serde_json::from_value(json!({"name": "x", "value": 1.0, "unit": "s"})).unwrap();
}
