//! Fields and filters by microversion, old forms of paths, refusals that name what is wrong.

use serde_json::{Value, json};

use crate::world::World;

/// First version that shows a field, last version that does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_appear_with_their_version() {
    let w = World::new(1).await;
    let id = w.boot("one").await;
    let path = format!("/v2.1/servers/{id}");
    for (field, minor) in [
        ("locked", 9),
        ("description", 19),
        ("tags", 26),
        ("trusted_image_certificates", 63),
        ("server_groups", 71),
        ("locked_reason", 73),
        ("OS-EXT-SRV-ATTR:hostname", 90),
        ("pinned_availability_zone", 96),
    ] {
        let at = |m: u16| {
            let client = w.client("member:p1:u1").at(&format!("compute 2.{m}"));
            let path = path.clone();
            async move {
                client.get(&path).await.expect(200).json()["server"].as_object().unwrap().contains_key(field)
            }
        };
        assert!(at(minor).await, "{field} at 2.{minor}");
        assert!(!at(minor - 1).await, "{field} at 2.{}", minor - 1);
    }
    let show = |version: &str| {
        let (client, path) = (w.client("member:p1:u1").at(version), path.clone());
        async move { client.get(&path).await.expect(200) }
    };
    assert!(show("compute 2.46").await.at("/server/flavor/id").is_string());
    assert_eq!(show("compute 2.47").await.at("/server/flavor/vcpus"), json!(1));
    assert!(show("compute 2.2").await.at("/server/os-extended-volumes:volumes_attached").is_array());
    assert!(show("compute 2.96").await.at("/server/OS-EXT-SRV-ATTR:host").is_null());
    let legacy =
        w.client("member:p1:u1").with_header("X-OpenStack-Nova-API-Version", "2.19").get(&path).await;
    assert_eq!(legacy.header("x-openstack-nova-api-version"), "2.19");
    assert_eq!(w.client("member:p1:u1").at("compute 2.97").get(&path).await.status, 406);
    assert_eq!(w.client("member:p1:u1").at("compute nonsense").get(&path).await.status, 400);
    // Old forms of paths.
    for old in
        [format!("/v2.1/0123456789abcdef0123456789abcdef/servers/{id}"), format!("/v2/p1/servers/{id}")]
    {
        let _ = w.client("member:p1:u1").get(&old).await.expect(200);
    }
    let root = w.client("").get("/").await.expect(200);
    assert_eq!(root.text_at("/versions/0/id"), "v2.0");
    assert_eq!(root.text_at("/versions/1/version"), "2.96");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_filter_sort_and_page() {
    let w = World::new(1).await;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(w.boot(&format!("srv-{n}")).await);
    }
    let names = |query: &str| {
        let (client, path) = (w.member(), format!("/v2.1/servers?{query}"));
        async move {
            let answer = client.get(&path).await.expect(200);
            let list = answer.at("/servers");
            list.as_array()
                .unwrap()
                .iter()
                .map(|s| s["name"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(names("name=%5Esrv-%5B12%5D&sort_key=display_name&sort_dir=asc").await, ["srv-1", "srv-2"]);
    assert_eq!(names("name=rv-3").await, ["srv-3"]);
    assert!(names("name=%5B").await.is_empty());
    assert_eq!(names("status=ACTIVE&limit=2&sort_key=display_name&sort_dir=desc").await, ["srv-3", "srv-2"]);
    assert!(names("status=SHUTOFF").await.is_empty());
    assert!(names(&format!("image={}", uuid::Uuid::new_v4())).await.is_empty());
    assert_eq!(names(&format!("image={}", w.image)).await.len(), 4);
    assert!(names("flavor=nonsense").await.is_empty());
    assert_eq!(names("ip=10.0.0.").await.len(), 4);
    assert!(names("ip=192.168").await.is_empty());
    assert_eq!(names("changes-since=2020-01-01T00:00:00Z").await.len(), 4);
    assert!(names("changes-since=2999-01-01T00:00:00Z").await.is_empty());
    let marker = format!("marker={}&limit=1&sort_key=display_name&sort_dir=asc", ids[1]);
    assert_eq!(names(&marker).await, ["srv-2"]);
    let _ = w.member().put(&format!("/v2.1/servers/{}/tags/red", ids[0]), json!(null)).await.expect(201);
    assert_eq!(names("tags=red").await, ["srv-0"]);
    assert_eq!(names("not-tags=red").await.len(), 3);
    let page = w.member().get("/v2.1/servers?limit=4").await.expect(200);
    assert!(page.text_at("/servers_links/0/href").contains("marker="));
    for (query, status) in [
        ("limit=-1", 400),
        ("limit=x", 400),
        ("marker=nonsense", 400),
        ("status=nonsense", 400),
        ("sort_key=nonsense", 400),
        ("changes-since=yesterday", 400),
        ("all_tenants=1", 403),
        ("nonsense=1", 400),
    ] {
        assert_eq!(w.member().get(&format!("/v2.1/servers?{query}")).await.status, status, "{query}");
    }
    let old = w.client("member:p1:u1");
    let answer = old.get("/v2.1/servers?status=nonsense").await.expect(200);
    assert_eq!(answer.at("/servers"), json!([]));
    let all =
        w.client("admin:adm").at("compute 2.96").get("/v2.1/servers?all_tenants=True").await.expect(200);
    assert_eq!(all.at("/servers").as_array().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_creations_are_refused_and_write_nothing() {
    let w = World::new(1).await;
    let given = w.nets.add_port("p2", w.network);
    let change = |f: &dyn Fn(&mut Value)| {
        let mut body = w.body("x");
        f(&mut body["server"]);
        body
    };
    let cases: Vec<(&str, Value, u16)> = vec![
        ("blank name", change(&|s| s["name"] = json!("  ")), 400),
        ("long name", change(&|s| s["name"] = json!("x".repeat(256))), 400),
        ("no flavor", change(&|s| s["flavorRef"] = json!("-1")), 400),
        ("bad image", change(&|s| s["imageRef"] = json!("-1")), 400),
        ("unknown image", change(&|s| s["imageRef"] = json!(uuid::Uuid::new_v4())), 400),
        ("no image", change(&|s| s["imageRef"] = json!("")), 400),
        ("bad network", change(&|s| s["networks"] = json!([{"uuid": "nonsense"}])), 400),
        ("unknown network", change(&|s| s["networks"] = json!([{"uuid": uuid::Uuid::new_v4()}])), 400),
        ("foreign port", change(&|s| s["networks"] = json!([{"port": given}])), 400),
        (
            "no networks",
            change(&|s| {
                s.as_object_mut().unwrap().remove("networks");
            }),
            400,
        ),
        ("empty networks", change(&|s| s["networks"] = json!([])), 400),
        (
            "counts",
            change(&|s| {
                s["min_count"] = json!(3);
                s["max_count"] = json!(2);
            }),
            400,
        ),
        ("zero", change(&|s| s["min_count"] = json!(0)), 400),
        ("negative", change(&|s| s["min_count"] = json!("-1")), 400),
        ("unknown field", change(&|s| s["nonsense"] = json!(1)), 400),
        ("unknown key", change(&|s| s["key_name"] = json!("nonsense")), 400),
        ("unknown group", change(&|s| s["security_groups"] = json!([{"name": "missing"}])), 400),
        ("unknown zone", change(&|s| s["availability_zone"] = json!("mars")), 400),
        ("host as member", change(&|s| s["availability_zone"] = json!("nova:sim-0")), 403),
        ("user data", change(&|s| s["user_data"] = json!("!!!")), 400),
        ("metadata value", change(&|s| s["metadata"] = json!({"a": "x".repeat(260)})), 400),
        ("metadata type", change(&|s| s["metadata"] = json!({"a": 1})), 400),
        ("tags", change(&|s| s["tags"] = json!(["a/b"])), 400),
        ("address", change(&|s| s["accessIPv4"] = json!("1.2.3")), 400),
        ("personality", change(&|s| s["personality"] = json!([])), 400),
        ("hostname", change(&|s| s["hostname"] = json!("a b")), 400),
        (
            "bdm size",
            change(&|s| {
                s["imageRef"] = json!("");
                s["block_device_mapping_v2"] = json!([{"boot_index": 0, "source_type": "image", "destination_type": "volume", "uuid": w.image}]);
            }),
            400,
        ),
        (
            "bdm and image",
            change(&|s| {
                s["block_device_mapping_v2"] = json!([
                    {"boot_index": 0, "source_type": "blank", "destination_type": "volume", "volume_size": 1},
                ]);
            }),
            400,
        ),
        (
            "bdm index twice",
            change(&|s| {
                s["imageRef"] = json!("");
                let one = json!({"boot_index": 0, "source_type": "blank", "destination_type": "volume", "volume_size": 1});
                s["block_device_mapping_v2"] = json!([one, one]);
            }),
            400,
        ),
        (
            "group hint",
            json!({"server": w.body("x")["server"], "os:scheduler_hints": {"group": uuid::Uuid::new_v4()}}),
            400,
        ),
    ];
    for (what, body, status) in cases {
        let answer = w.member().post("/v2.1/servers", body).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
    }
    let usage = w.member().get("/v2.1/limits").await.expect(200);
    assert_eq!(usage.at("/limits/absolute/totalInstancesUsed"), json!(0));
    assert_eq!(w.nets.ports.lock().len(), 1);
    for id in ["nonsense", "6f3a5c1e-0d7b-4c3e-9a8f-112233445566"] {
        for method in ["GET", "DELETE"] {
            let answer =
                w.member().call(method.parse().unwrap(), &format!("/v2.1/servers/{id}")).send().await;
            assert_eq!(answer.status, 404);
            assert!(answer.text().contains("itemNotFound"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_servers_of_one_request() {
    let w = World::new(2).await;
    let mut body = w.body("many");
    body["server"]["min_count"] = json!(1);
    body["server"]["max_count"] = json!(3);
    body["server"]["return_reservation_id"] = json!(true);
    let made = w.member().post("/v2.1/servers", body).await.expect(202);
    assert!(made.text_at("/reservation_id").starts_with("r-"));
    w.until("three", || async {
        let list = w.member().get("/v2.1/servers?status=ACTIVE").await;
        list.at("/servers").as_array().is_some_and(|l| l.len() == 3)
    })
    .await;
    assert_eq!(w.nets.ports.lock().len(), 3);
    // Without networks, old clients get the only one there is.
    let mut body = w.body("auto");
    body["server"].as_object_mut().unwrap().remove("networks");
    let made = w.client("member:p1:u1").post("/v2.1/servers", body).await.expect(202);
    w.wait(&made.text_at("/server/id"), "ACTIVE").await;
    w.nets.add("p1", "second");
    let mut body = w.body("auto");
    body["server"]["networks"] = json!("auto");
    assert_eq!(w.member().post("/v2.1/servers", body).await.status, 409);
    let mut body = w.body("none");
    body["server"]["networks"] = json!("none");
    let made = w.member().post("/v2.1/servers", body).await.expect(202);
    let shown = w.wait(&made.text_at("/server/id"), "ACTIVE").await;
    assert_eq!(shown.at("/server/addresses"), json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floating_address_reaches_the_guest_metadata() {
    let w = World::new(1).await;
    let id = w.boot("one").await;
    let floating: std::net::IpAddr = "172.24.4.9".parse().unwrap();
    {
        let mut ports = w.nets.ports.lock();
        let port = ports.values_mut().next().unwrap();
        let fixed = port.fixed_ips[0].ip;
        port.floating_ips = vec![(fixed, floating)];
    }
    let before = spec_of(&w, &id).await;
    assert_eq!(before.metadata.public_ipv4, None);
    contract::services::HostNudge::device_changed(&w.nudge, &id);
    w.until("told", || async { spec_of(&w, &id).await.metadata.public_ipv4 == Some(floating) }).await;
    let shown = w.member().get(&format!("/v2.1/servers/{id}")).await.expect(200);
    assert_eq!(shown.text_at("/server/addresses/private/1/OS-EXT-IPS:type"), "floating");
    w.wait(&id, "ACTIVE").await;
    // The user deletes the port: the interface goes.
    w.nets.ports.lock().clear();
    contract::services::HostNudge::device_changed(&w.nudge, &id);
    w.until("no nic", || async { spec_of(&w, &id).await.nics.is_empty() }).await;
}

async fn spec_of(w: &World, id: &str) -> std::sync::Arc<contract::host::ServerSpec> {
    use contract::services::ControlPlane as _;
    let spec = w.state.spec(w.hosts[0].0, 0).await.unwrap().unwrap();
    spec.servers.iter().find(|s| s.id.to_string() == id).unwrap().clone()
}

fn report(host: base::HostId, sequence: u64, generation: u64) -> contract::host::HostReport {
    contract::host::HostReport {
        host,
        sequence,
        generation,
        at: base::Timestamp(0),
        version: "0.1.0".into(),
        capacity: contract::host::HostCapacity {
            hostname: "h".into(),
            vcpus: 4,
            memory_mib: 4096,
            disk_gib: 100,
            ..contract::host::HostCapacity::default()
        },
        servers: vec![],
        volumes: vec![],
        snapshots: vec![],
    }
}

/// The database is older than what an agent holds: the next spec is above it, or the agent would refuse it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn specs_go_above_what_an_agent_holds() {
    use contract::services::ControlPlane as _;
    let w = World::new(0).await;
    let host = base::HostId::random(&w.entropy);
    w.state.report(report(host, 1, 0)).await.unwrap();
    let first = w.state.spec(host, 0).await.unwrap().unwrap();
    assert_eq!(first.generation, 1);
    w.state.report(report(host, 2, 50)).await.unwrap();
    let next = w.state.spec(host, 50).await.unwrap().unwrap();
    assert_eq!(next.generation, 51);
    // An older report changes nothing.
    w.state.report(report(host, 1, 99)).await.unwrap();
    assert_eq!(w.state.spec(host, 50).await.unwrap().unwrap().generation, 51);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_are_disabled_or_elsewhere_get_nothing() {
    let w = World::new(2).await;
    let admin = w.client("admin:adm").at("compute 2.96");
    let (first, second) = (w.hosts[0].0, w.hosts[1].0);
    let _ = admin.put(&format!("/v2.1/os-services/{first}"), json!({"status": "disabled"})).await.expect(200);
    for n in 0..3 {
        let id = w.boot(&format!("s{n}")).await;
        assert_eq!(w.show(&id).await.text_at("/server/OS-EXT-SRV-ATTR:host"), "sim-1");
    }
    let _ = admin.put(&format!("/v2.1/os-services/{second}"), json!({"forced_down": true})).await.expect(200);
    let made = w.member().post("/v2.1/servers", w.body("none")).await.expect(202);
    w.wait(&made.text_at("/server/id"), "ERROR").await;
    let _ = admin.put(&format!("/v2.1/os-services/{first}"), json!({"status": "enabled"})).await.expect(200);
    let zone = json!({"aggregate": {"name": "a", "availability_zone": "az2"}});
    let number = admin.post("/v2.1/os-aggregates", zone).await.expect(200).at("/aggregate/id");
    let add = json!({"add_host": {"host": "sim-0"}});
    let _ = admin.post(&format!("/v2.1/os-aggregates/{number}/action"), add).await.expect(200);
    let mut body = w.body("zoned");
    body["server"]["availability_zone"] = json!("az2");
    let made = w.member().post("/v2.1/servers", body).await.expect(202);
    let shown = w.wait(&made.text_at("/server/id"), "ACTIVE").await;
    assert_eq!(shown.text_at("/server/OS-EXT-AZ:availability_zone"), "az2");
    assert_eq!(shown.text_at("/server/pinned_availability_zone"), "az2");
}

/// A row that changed without anybody being told: what the host says is held against it within a minute, though the host
/// says nothing new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_are_held_against_rows_that_changed_unseen() {
    use contract::services::ControlPlane as _;
    let clock = std::sync::Arc::new(base::ManualClock::default());
    let w = World::make(crate::world::Plan { clock: clock.clone(), ..crate::world::Plan::default() }).await;
    let id: base::ServerId = w.boot("a").await.parse().unwrap();
    w.kill(0);
    let row = w.store.read(move |tx| tx.get::<compute::model::Server>(&id)).await.unwrap().unwrap();
    let server = contract::host::ServerReport {
        id,
        generation: row.meta.generation,
        converged: true,
        power: Some(contract::host::PowerObserved::Running),
        reboots: 0,
        volumes: vec![],
        ports: vec![],
        error: None,
    };
    let mut sequence = u64::MAX / 2;
    let mut tell = async || {
        sequence += 1;
        let servers = vec![server.clone()];
        let same = contract::host::HostReport { servers, ..report(w.hosts[0].0, sequence, 0) };
        w.state.report(same).await.unwrap();
    };
    let power = || async { w.show(&id.to_string()).await.at("/server/OS-EXT-STS:power_state") };
    for _ in 0..3 {
        // Twice nothing new, so that only the row's version is looked at then.
        tell().await;
        clock.advance(std::time::Duration::from_secs(61));
        tell().await;
        clock.advance(std::time::Duration::from_secs(61));
        tell().await;
        assert_eq!(power().await, 1);
        let change = move |tx: &mut store::Tx<'_>| {
            let mut row = tx.get::<compute::model::Server>(&id)?.unwrap();
            row.power_state = 4;
            tx.update_status(&mut row)
        };
        w.store.write(change).await.unwrap();
        tell().await;
        assert_eq!(power().await, 4, "nothing new was said, and it is not a minute later");
        clock.advance(std::time::Duration::from_secs(61));
        tell().await;
        assert_eq!(power().await, 1);
    }
}

/// What is to be done is found by a sweep although nobody was told, in whatever way an earlier sweep had found the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_finds_what_changed_unseen() {
    let w = World::with(1, compute::Config::default(), true).await;
    let id: base::ServerId = w.boot("a").await.parse().unwrap();
    let servers = w.state.reconcilers().into_iter().find(|r| r.kind() == "server").unwrap();
    for _ in 0..2 {
        assert_eq!(servers.sweep().await.unwrap(), Vec::<String>::new());
    }
    let change = move |tx: &mut store::Tx<'_>| {
        let mut row = tx.get::<compute::model::Server>(&id)?.unwrap();
        row.deleting = true;
        tx.update(&mut row)
    };
    w.store.write(change).await.unwrap();
    for _ in 0..2 {
        assert_eq!(servers.sweep().await.unwrap(), [id.to_string()]);
    }
}
