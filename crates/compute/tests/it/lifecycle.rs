//! Servers from birth to death.

use std::sync::atomic::Ordering;

use serde_json::json;

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_built_shown_and_deleted_whole() {
    let w = World::new(2).await;
    let id = w.boot("one").await;
    let shown = w.member().get(&format!("/v2.1/servers/{id}")).await.expect(200);
    assert_eq!(shown.at("/server/OS-EXT-STS:power_state"), json!(1));
    assert_eq!(shown.at("/server/addresses/private/0/version"), json!(4));
    assert_eq!(shown.at("/server/flavor/original_name"), json!("SCS-1L-1-5"));
    assert_eq!(w.nets.ports.lock().len(), 1);
    let console = w.act(&id, json!({"os-getConsoleOutput": {}})).await.expect(200);
    assert!(console.text_at("/output").contains("booted"));
    let _ = w.member().delete(&format!("/v2.1/servers/{id}")).await.expect(204);
    w.gone(&id).await;
    assert!(w.nets.ports.lock().is_empty());
    let usage = w.member().get("/v2.1/limits").await.expect(200);
    assert_eq!(usage.at("/limits/absolute/totalInstancesUsed"), json!(0));
    for (host, sim) in &w.hosts {
        use contract::drivers::Hypervisor as _;
        use contract::services::Placement as _;
        assert!(sim.hypervisor.observe().await.unwrap().is_empty());
        let used = w.placement.usage(base::ResourceProviderId(host.0)).await.unwrap();
        assert!(used.values().all(|n| *n == 0), "{used:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_follows_wishes() {
    let w = World::new(1).await;
    let id = w.boot("one").await;
    for (action, status) in [
        ("os-stop", "SHUTOFF"),
        ("os-start", "ACTIVE"),
        ("pause", "PAUSED"),
        ("unpause", "ACTIVE"),
        ("suspend", "SUSPENDED"),
        ("resume", "ACTIVE"),
    ] {
        let _ = w.act(&id, json!({action: null})).await.expect(202);
        w.wait(&id, status).await;
    }
    let _ = w.act(&id, json!({"reboot": {"type": "HARD"}})).await.expect(202);
    w.wait(&id, "ACTIVE").await;
    let refused = w.act(&id, json!({"os-start": null})).await.expect(409);
    assert!(refused.text().contains("while it is in vm_state active"), "{}", refused.text());
    let _ = w.act(&id, json!({"lock": null})).await.expect(202);
    let _ = w.act(&id, json!({"os-stop": null})).await.expect(409);
    let _ = w.act(&id, json!({"unlock": null})).await.expect(202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_ends_by_itself_stays_down_until_it_is_started() {
    let w = World::new(1).await;
    let id = w.boot("one").await;
    w.hosts[0].1.hypervisor.shut_down(id.parse().unwrap());
    let shown = w.wait(&id, "SHUTOFF").await;
    assert_eq!(shown.at("/server/OS-EXT-STS:power_state"), json!(4));
    let _ = w.act(&id, json!({"os-start": null})).await.expect(202);
    w.wait(&id, "ACTIVE").await;
    w.hosts[0].1.hypervisor.crash(id.parse().unwrap());
    let _ = w.wait(&id, "SHUTOFF").await;
    let _ = w.act(&id, json!({"reboot": {"type": "HARD"}})).await.expect(202);
    w.wait(&id, "ACTIVE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_come_and_go_live() {
    let w = World::new(1).await;
    let id = w.boot("one").await;
    let volume = w.vols.add("p1", w.hosts[0].0);
    let path = format!("/v2.1/servers/{id}/os-volume_attachments");
    let made = w.member().post(&path, json!({"volumeAttachment": {"volumeId": volume}})).await.expect(200);
    assert_eq!(made.text_at("/volumeAttachment/device"), "/dev/vdb");
    w.until("in use", || async { w.vols.status(volume) == "in-use" }).await;
    let again = w.member().post(&path, json!({"volumeAttachment": {"volumeId": volume}})).await;
    assert_eq!(again.status, 400);
    let _ = w.act(&id, json!({"suspend": null})).await.expect(202);
    w.wait(&id, "SUSPENDED").await;
    let refused = w.member().delete(&format!("{path}/{volume}")).await.expect(409);
    assert!(refused.text().contains("suspended"), "{}", refused.text());
    let _ = w.act(&id, json!({"resume": null})).await.expect(202);
    w.wait(&id, "ACTIVE").await;
    let _ = w.member().delete(&format!("{path}/{volume}")).await.expect(202);
    w.until("available", || async { w.vols.status(volume) == "available" }).await;
    w.until("not listed", || async {
        w.member().get(&path).await.at("/volumeAttachments").as_array().is_some_and(Vec::is_empty)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_want_a_volume_at_once_one_gets_it() {
    let w = World::new(1).await;
    let (one, two) = (w.boot("one").await, w.boot("two").await);
    for _ in 0..5 {
        let volume = w.vols.add("p1", w.hosts[0].0);
        let ask = async |server: &str| {
            let path = format!("/v2.1/servers/{server}/os-volume_attachments");
            w.member().post(&path, json!({"volumeAttachment": {"volumeId": volume}})).await.status
        };
        let mut answers = [tokio::join!(ask(&one), ask(&two))].map(|(a, b)| [a, b]).concat();
        answers.sort_unstable();
        assert_eq!(answers, [200, 400]);
        w.until("in use", || async { w.vols.status(volume) == "in-use" }).await;
    }
    // Deleted servers hold nothing.
    let volume = w.vols.add("p1", w.hosts[0].0);
    for server in [&one, &two] {
        let path = format!("/v2.1/servers/{server}/os-volume_attachments");
        w.until("free", || async { w.vols.status(volume) == "available" }).await;
        let _ = w.member().post(&path, json!({"volumeAttachment": {"volumeId": volume}})).await.expect(200);
        let _ = w.member().delete(&format!("/v2.1/servers/{server}")).await.expect(204);
        w.gone(server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boot_from_volume_makes_and_deletes_it() {
    let w = World::new(2).await;
    let body = json!({"server": {
        "name": "bfv", "flavorRef": w.flavor("SCS-1L-1"), "imageRef": "",
        "min_count": 1, "max_count": 1, "networks": [{"uuid": w.network}],
        "block_device_mapping_v2": [{
            "boot_index": "0", "delete_on_termination": true, "destination_type": "volume", "source_type": "image",
            "uuid": w.image, "volume_size": "8",
        }],
    }});
    let made = w.member().post("/v2.1/servers", body).await.expect(202);
    let id = made.text_at("/server/id");
    let shown = w.wait(&id, "ACTIVE").await;
    assert_eq!(shown.at("/server/image"), json!(""));
    let volume: base::VolumeId =
        shown.text_at("/server/os-extended-volumes:volumes_attached/0/id").parse().unwrap();
    w.until("in use", || async { w.vols.status(volume) == "in-use" }).await;
    let _ = w.act(&id, json!({"forceDelete": null})).await.expect(202);
    w.gone(&id).await;
    assert_eq!(w.vols.status(volume), "gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_come_and_go() {
    let w = World::new(1).await;
    let id = w.boot("one").await;
    let other = w.nets.add("p1", "other");
    let path = format!("/v2.1/servers/{id}/os-interface");
    let made = w.member().post(&path, json!({"interfaceAttachment": {"net_id": other}})).await.expect(200);
    let port = made.text_at("/interfaceAttachment/port_id");
    assert!(!made.text_at("/interfaceAttachment/fixed_ips/0/ip_address").is_empty());
    let given = w.nets.add_port("p1", other);
    let _ = w.member().post(&path, json!({"interfaceAttachment": {"port_id": given}})).await.expect(200);
    w.until("three", || async {
        w.member().get(&path).await.at("/interfaceAttachments").as_array().is_some_and(|l| l.len() == 3)
    })
    .await;
    let _ = w.member().delete(&format!("{path}/{port}")).await.expect(202);
    let _ = w.member().delete(&format!("{path}/{given}")).await.expect(202);
    w.until("one", || async {
        w.member().get(&path).await.at("/interfaceAttachments").as_array().is_some_and(|l| l.len() == 1)
    })
    .await;
    // Ours is deleted, the user's is free again.
    w.until("free", || async { w.nets.ports.lock().get(&given).is_some_and(|p| p.device_id.is_empty()) })
        .await;
    assert_eq!(w.nets.ports.lock().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_host_and_no_port_are_faults() {
    let w = World::new(0).await;
    let made = w.member().post("/v2.1/servers", w.body("none")).await.expect(202);
    let id = made.text_at("/server/id");
    let shown = w.wait(&id, "ERROR").await;
    assert!(shown.text_at("/server/fault/message").contains("No valid host"), "{}", shown.text());
    let _ = w.member().delete(&format!("/v2.1/servers/{id}")).await.expect(204);
    w.gone(&id).await;

    let w = World::new(1).await;
    w.nets.full.store(true, Ordering::SeqCst);
    let made = w.member().post("/v2.1/servers", w.body("full")).await.expect(202);
    let id = made.text_at("/server/id");
    let shown = w.wait(&id, "ERROR").await;
    assert!(shown.text_at("/server/fault/message").contains("port"), "{}", shown.text());
    let _ = w.member().delete(&format!("/v2.1/servers/{id}")).await.expect(204);
    w.gone(&id).await;
}

/// Whatever call fails however often, in the end there is exactly one port and the server runs; and in the end of its
/// end nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_steps_converge() {
    let w = World::new(1).await;
    for n in 1..5 {
        w.nets.faults.next(n);
        w.vols.faults.next(n);
        let body = json!({"server": {
            "name": "bfv", "flavorRef": w.flavor("SCS-1L-1"), "networks": [{"uuid": w.network}],
            "block_device_mapping_v2": [{
                "boot_index": 0, "delete_on_termination": true, "destination_type": "volume", "source_type": "image",
                "uuid": w.image, "volume_size": 1,
            }],
        }});
        let made = w.member().post("/v2.1/servers", body).await.expect(202);
        let id = made.text_at("/server/id");
        w.wait(&id, "ACTIVE").await;
        assert_eq!(w.nets.ports.lock().len(), 1);
        assert_eq!(w.vols.volumes.lock().len(), 1);
        w.nets.faults.next(n);
        w.vols.faults.next(n);
        let _ = w.member().delete(&format!("/v2.1/servers/{id}")).await.expect(204);
        w.gone(&id).await;
        assert!(w.nets.ports.lock().is_empty() && w.vols.volumes.lock().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quota_is_never_overdrawn() {
    let quota = [("instances".to_owned(), 5)].into();
    let w = World::with(1, compute::Config { quota, ..compute::Config::default() }, true).await;
    let tries = (0..12).map(|n| {
        let (client, body) = (w.member(), w.body(&format!("s{n}")));
        tokio::spawn(async move { client.post("/v2.1/servers", body).await.status })
    });
    let mut answers = Vec::new();
    for one in tries.collect::<Vec<_>>() {
        answers.push(one.await.unwrap());
    }
    assert_eq!(answers.iter().filter(|s| **s == 202).count(), 5, "{answers:?}");
    assert_eq!(answers.iter().filter(|s| **s == 403).count(), 7, "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anti_affinity_holds_under_haste() {
    let w = World::new(4).await;
    let group = w
        .member()
        .post("/v2.1/os-server-groups", json!({"server_group": {"name": "g", "policy": "anti-affinity"}}))
        .await
        .expect(200)
        .text_at("/server_group/id");
    let mut ids = Vec::new();
    for n in 0..5 {
        let mut body = w.body(&format!("s{n}"));
        body["os:scheduler_hints"] = json!({"group": group});
        ids.push(w.member().post("/v2.1/servers", body).await.expect(202).text_at("/server/id"));
    }
    w.until("decided", || async {
        for id in &ids {
            if w.show(id).await.text_at("/server/status") == "BUILD" {
                return false;
            }
        }
        true
    })
    .await;
    let mut hosts = Vec::new();
    let mut failed = 0;
    for id in &ids {
        let shown = w.show(id).await;
        match shown.text_at("/server/status").as_str() {
            "ACTIVE" => hosts.push(shown.text_at("/server/OS-EXT-SRV-ATTR:host")),
            _ => failed += 1,
        }
    }
    hosts.sort();
    hosts.dedup();
    assert_eq!((hosts.len(), failed), (4, 1));
}

/// The control plane's own share of building servers; a debug build on a shared machine, so only a floor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_servers_at_once() {
    let w = World::new(10).await;
    let began = std::time::Instant::now();
    let next = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let (w, next) = (w.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= 200 {
                        break;
                    }
                    let _ = w.member().post("/v2.1/servers", w.body(&format!("s{n}"))).await.expect(202);
                }
            })
        })
        .collect();
    for one in workers {
        one.await.unwrap();
    }
    let posted = began.elapsed();
    w.until("200 active", || async {
        let list = w.member().get("/v2.1/servers?status=ACTIVE&limit=1000").await;
        list.at("/servers").as_array().is_some_and(|l| l.len() == 200)
    })
    .await;
    let all = began.elapsed();
    println!("posted in {posted:?}, all ACTIVE in {all:?}: {:.0} per second", 200.0 / all.as_secs_f64());
    let began = std::time::Instant::now();
    let detail = w.member().get("/v2.1/servers/detail?limit=100").await.expect(200);
    println!("detail of 100 in {:?}", began.elapsed());
    assert_eq!(detail.at("/servers").as_array().unwrap().len(), 100);
    assert!(detail.text().contains("servers_links"));
}
