//! Servers go to another host, standing still, and take their disks with them.

use std::time::Duration;

use contract::drivers::Hypervisor as _;
use contract::services::Placement as _;
use serde_json::{Value, json};

use crate::world::World;

impl World {
    fn at(&self, name: &str) -> usize {
        name.strip_prefix("sim-").unwrap().parse().unwrap()
    }

    async fn host(&self, id: &str) -> usize {
        self.at(&self.show(id).await.text_at("/server/OS-EXT-SRV-ATTR:host"))
    }

    fn root(&self, host: usize, id: &str) -> Option<u64> {
        self.hosts[host].1.hypervisor.content(id.parse().unwrap(), "root")
    }

    /// An action of an administrator.
    async fn order(&self, id: &str, body: Value) -> api::testing::Answer {
        let admin = self.client("admin:adm").at("compute 2.96");
        admin.post(&format!("/v2.1/servers/{id}/action"), body).await
    }

    async fn used(&self, host: usize) -> u64 {
        let provider = base::ResourceProviderId(self.hosts[host].0.0);
        self.placement.usage(provider).await.unwrap().get("VCPU").copied().unwrap_or(0)
    }

    async fn migrations(&self, id: &str) -> Value {
        let admin = self.client("admin:adm").at("compute 2.96");
        let path = format!("/v2.1/os-migrations?instance_uuid={id}");
        admin.get(&path).await.expect(200).at("/migrations").clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_takes_its_disks_along() {
    let w = World::new(2).await;
    let id = w.boot("one").await;
    let old = w.host(&id).await;
    let content = w.root(old, &id).unwrap();
    let ports = w.nets.ports.lock().clone();
    let _ = w.order(&id, json!({"migrate": null})).await.expect(202);
    let moved = w.wait(&id, "VERIFY_RESIZE").await;
    assert_eq!(moved.text_at("/server/OS-EXT-STS:vm_state"), "resized");
    let new = w.host(&id).await;
    assert_ne!(new, old);
    assert_eq!((w.root(new, &id), w.root(old, &id)), (Some(content), Some(content)), "both have it for now");
    assert!(w.used(old).await > 0 && w.used(new).await > 0, "and both are claimed");
    for (port, info) in &ports {
        let now = w.nets.ports.lock()[port].clone();
        assert_eq!((now.mac, &now.fixed_ips), (info.mac, &info.fixed_ips));
        assert_eq!(now.host.as_deref(), Some(format!("sim-{new}").as_str()));
    }
    for body in [json!({"migrate": null}), json!({"os-stop": null}), json!({"reboot": {"type": "HARD"}})] {
        let _ = w.order(&id, body).await.expect(409);
    }
    assert_eq!(w.migrations(&id).await[0]["status"], "finished");
    let _ = w.act(&id, json!({"confirmResize": null})).await.expect(204);
    w.wait(&id, "ACTIVE").await;
    w.until("the first host forgets it", || async { w.root(old, &id).is_none() }).await;
    assert_eq!(w.root(new, &id), Some(content));
    assert_eq!(w.used(old).await, 0);
    assert!(w.used(new).await > 0);
    assert_eq!(w.migrations(&id).await[0]["status"], "confirmed");
    let _ = w.act(&id, json!({"confirmResize": null})).await.expect(409);
    // And back, with what was written meanwhile: the disks that the first host had are worth nothing.
    let _ = w.order(&id, json!({"migrate": {"host": format!("sim-{old}")}})).await.expect(202);
    w.wait(&id, "VERIFY_RESIZE").await;
    assert_eq!((w.host(&id).await, w.root(old, &id)), (old, Some(content)));
    let _ = w.order(&id, json!({"confirmResize": null})).await.expect(204);
    w.wait(&id, "ACTIVE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_taken_back() {
    let w = World::new(2).await;
    let id = w.boot("one").await;
    let old = w.host(&id).await;
    let content = w.root(old, &id);
    let _ = w.act(&id, json!({"os-stop": null})).await.expect(202);
    w.wait(&id, "SHUTOFF").await;
    let _ = w.order(&id, json!({"migrate": null})).await.expect(202);
    w.wait(&id, "VERIFY_RESIZE").await;
    let new = w.host(&id).await;
    let on = |host: usize| {
        let hypervisor = w.hosts[host].1.hypervisor.clone();
        async move {
            hypervisor
                .observe()
                .await
                .unwrap()
                .iter()
                .any(|g| g.power == contract::host::PowerObserved::Running)
        }
    };
    assert!(!on(old).await && !on(new).await, "it was off and stays off");
    let _ = w.act(&id, json!({"revertResize": null})).await.expect(202);
    w.wait(&id, "SHUTOFF").await;
    assert_eq!((w.host(&id).await, w.root(old, &id)), (old, content));
    w.until("the other host forgets it", || async { w.root(new, &id).is_none() }).await;
    assert_eq!(w.used(new).await, 0);
    assert_eq!(w.migrations(&id).await[0]["status"], "reverted");
    let _ = w.act(&id, json!({"os-start": null})).await.expect(202);
    w.wait(&id, "ACTIVE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_cannot_be_leaves_the_server_where_it_is() {
    let w = World::new(1).await;
    let id = w.boot("one").await;
    let _ = w.order(&id, json!({"migrate": null})).await.expect(202);
    w.wait(&id, "ACTIVE").await;
    let list = w.migrations(&id).await;
    assert_eq!((list[0]["status"].as_str(), w.used(0).await), (Some("error"), 1));
    let actions = w.client("admin:adm").at("compute 2.96");
    let actions = actions.get(&format!("/v2.1/servers/{id}/os-instance-actions")).await;
    let action =
        actions.at("/instanceActions").as_array().unwrap().iter().find(|a| a["action"] == "migrate").cloned();
    assert_eq!(action.unwrap()["message"], "Error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_move_is_refused_with_its_reason() {
    let w = World::new(2).await;
    let id = w.boot("one").await;
    let host = w.host(&id).await;
    assert_eq!(w.act(&id, json!({"migrate": null})).await.status, 403, "only administrators");
    for (body, status) in [
        (json!({"host": "nowhere"}), 400),
        (json!({"host": format!("sim-{host}")}), 400),
        (json!({"host": 7}), 400),
        (json!({"colour": "red"}), 400),
    ] {
        let answer = w.order(&id, json!({"migrate": body})).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
    }
    let old = w.client("admin:adm").at("compute 2.55");
    let body = json!({"migrate": {"host": "sim-0"}});
    let _ = old.post(&format!("/v2.1/servers/{id}/action"), body).await.expect(400);
    for action in ["confirmResize", "revertResize"] {
        let _ = w.act(&id, json!({action: null})).await.expect(409);
    }
    let volume = w.vols.add("p1", w.hosts[host].0);
    let path = format!("/v2.1/servers/{id}/os-volume_attachments");
    let _ = w.member().post(&path, json!({"volumeAttachment": {"volumeId": volume}})).await.expect(200);
    w.until("in use", || async { w.vols.status(volume) == "in-use" }).await;
    let refused = w.order(&id, json!({"migrate": null})).await.expect(409);
    assert!(refused.text().contains("volumes"), "{}", refused.text());
    assert_eq!(w.migrations(&id).await, json!([]), "a refusal writes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_can_be_deleted_on_its_way() {
    let w = World::new(2).await;
    let mut ids = Vec::new();
    for n in 0..6 {
        let id = w.boot(&format!("s{n}")).await;
        let _ = w.order(&id, json!({"migrate": null})).await.expect(202);
        tokio::time::sleep(Duration::from_millis(n * 4)).await;
        let _ = w.member().delete(&format!("/v2.1/servers/{id}")).await.expect(204);
        ids.push(id);
    }
    for id in &ids {
        w.gone(id).await;
    }
    w.until("nothing is left", || async {
        let left = (0..2).any(|h| !w.hosts[h].1.hypervisor.guests().is_empty());
        !left && w.used(0).await == 0 && w.used(1).await == 0 && w.nets.ports.lock().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_host_is_drained() {
    let w = World::new(3).await;
    let admin = w.client("admin:adm").at("compute 2.96");
    let mut ids = Vec::new();
    for n in 0..9 {
        ids.push(w.boot(&format!("s{n}")).await);
    }
    let path = format!("/v2.1/os-services/{}", w.hosts[0].0);
    let _ = admin.put(&path, json!({"status": "disabled", "disabled_reason": "repair"})).await.expect(200);
    for id in &ids {
        if w.host(id).await == 0 {
            let _ = w.order(id, json!({"migrate": null})).await.expect(202);
        }
    }
    for id in &ids {
        w.until("it arrives or stays", || async {
            let status = w.show(id).await.text_at("/server/status");
            if status == "VERIFY_RESIZE" {
                let _ = w.order(id, json!({"confirmResize": null})).await;
            }
            status == "ACTIVE" && w.host(id).await != 0
        })
        .await;
    }
    w.until("the host is empty", || async {
        w.hosts[0].1.hypervisor.guests().is_empty() && w.used(0).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_do_not_answer_are_neither_left_nor_chosen() {
    let config = compute::Config { down_after: Duration::from_secs(1), ..compute::Config::default() };
    let w = World::with(2, config, true).await;
    let id = w.boot("one").await;
    let old = w.host(&id).await;
    w.force(old, true).await;
    let refused = w.order(&id, json!({"migrate": null})).await.expect(409);
    assert!(refused.text().contains("does not answer"), "{}", refused.text());
    w.force(old, false).await;
    // The other one is lost while disks are on their way: it hears nothing of the server at first, and then is given up.
    w.gates[1 - old].cut(true);
    let _ = w.order(&id, json!({"migrate": null})).await.expect(202);
    w.until("called off", || async { w.migrations(&id).await[0]["status"] == "error" }).await;
    w.wait(&id, "ACTIVE").await;
    assert_eq!((w.host(&id).await, w.used(1 - old).await), (old, 0));
    w.gates[1 - old].cut(false);
    w.until("it moves after all", || async {
        let _ = w.order(&id, json!({"migrate": null})).await;
        w.show(&id).await.text_at("/server/status") == "VERIFY_RESIZE"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_cannot_say_what_becomes_of_a_server_that_moved() {
    let w = World::new(2).await;
    let id = w.boot("one").await;
    let _ = w.order(&id, json!({"migrate": null})).await.expect(202);
    w.wait(&id, "VERIFY_RESIZE").await;
    let stranger = w.client("member:p2:u2").at("compute 2.96");
    for (action, status) in [("migrate", 403), ("confirmResize", 404), ("revertResize", 404)] {
        let answer = stranger.post(&format!("/v2.1/servers/{id}/action"), json!({action: null})).await;
        assert_eq!(answer.status, status, "{action}: {}", answer.text());
    }
    assert_eq!(stranger.get("/v2.1/os-migrations").await.status, 403, "a list for administrators");
    assert_eq!(w.show(&id).await.text_at("/server/status"), "VERIFY_RESIZE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_killed_on_the_way_goes_on() {
    let w = World::new(3).await;
    let mut servers = Vec::new();
    for n in 0..6 {
        let id = w.boot(&format!("s{n}")).await;
        let root = w.root(w.host(&id).await, &id);
        servers.push((id, root));
    }
    for (id, _) in &servers {
        let _ = w.order(id, json!({"migrate": null})).await.expect(202);
    }
    for round in 0..9 {
        w.restart(Duration::from_millis(1)).await;
        w.revive(round % 3);
        tokio::time::sleep(Duration::from_millis(3 * u64::try_from(round).unwrap())).await;
    }
    for (n, (id, root)) in servers.iter().enumerate() {
        w.wait(id, "VERIFY_RESIZE").await;
        let (action, code) = if n % 2 == 0 { ("confirmResize", 204) } else { ("revertResize", 202) };
        let _ = w.act(id, json!({action: null})).await.expect(code);
        w.restart(Duration::from_millis(1)).await;
        w.revive(n % 3);
        w.wait(id, "ACTIVE").await;
        assert_eq!(w.root(w.host(id).await, id), *root);
    }
    w.until("each is on one host, with one claim", || async {
        let copies: usize = w.hosts.iter().map(|(_, host)| host.hypervisor.guests().len()).sum();
        let mut used = 0;
        for host in 0..3 {
            used += w.used(host).await;
        }
        (copies, used) == (6, 6)
    })
    .await;
}
