//! What one client of a tenant does: thinks, picks something, does it, keeps what the cloud answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::Entropy;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Common, Expect, Tenant};
use crate::client::{NoAnswer, Reply};
use crate::profile::Workload;

type Done = Result<(), NoAnswer>;

pub(super) struct Client {
    pub tenant: Arc<Tenant>,
    pub common: Arc<Common>,
    pub dice: Entropy,
    pub workload: Workload,
}

#[derive(Clone, Copy)]
enum Op {
    CreateServer,
    DeleteServer,
    Power,
    Reboot,
    CreateVolume,
    DeleteVolume,
    AttachVolume,
    DetachVolume,
    Snapshot,
    BootFromVolume,
    FloatingIp,
    Interface,
    Network,
    SecurityGroup,
    Read,
}

impl Client {
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            // Between half and one and a half of the average.
            let think = self.workload.think_s * (500.0 + self.dice.below(1_000) as f64);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(Duration::from_millis(think as u64)) => {}
            }
            // What was not answered is done again when the dice say so.
            let _ = self.once().await;
        }
    }

    fn op(&self) -> Op {
        let w = self.workload.weights;
        let (have, target) = {
            let owned = self.tenant.owned.lock();
            (owned.servers.values().filter(|e| **e == Expect::Present).count(), self.tenant.target)
        };
        // As many servers as there shall be, give or take: then as many are deleted as made.
        let create = if have < target { w.create_server * 3 } else { w.create_server / 4 };
        let delete = if have * 10 < target * 8 { w.delete_server / 4 } else { w.delete_server * 2 };
        let table = [
            (create, Op::CreateServer),
            (delete, Op::DeleteServer),
            (w.power, Op::Power),
            (w.reboot, Op::Reboot),
            (w.create_volume, Op::CreateVolume),
            (w.delete_volume, Op::DeleteVolume),
            (w.attach_volume, Op::AttachVolume),
            (w.detach_volume, Op::DetachVolume),
            (w.snapshot, Op::Snapshot),
            (w.boot_from_volume, Op::BootFromVolume),
            (w.floating_ip, Op::FloatingIp),
            (w.interface, Op::Interface),
            (w.network, Op::Network),
            (w.security_group, Op::SecurityGroup),
            (w.read, Op::Read),
        ];
        let mut place = self.dice.below(table.iter().map(|(weight, _)| weight).sum());
        for (weight, op) in table {
            if place < weight {
                return op;
            }
            place -= weight;
        }
        Op::Read
    }

    async fn once(&self) -> Done {
        match self.op() {
            Op::CreateServer => self.create_server().await,
            Op::DeleteServer => self.delete_server().await,
            Op::Power => self.power().await,
            Op::Reboot => self.reboot().await,
            Op::CreateVolume => self.create_volume().await,
            Op::DeleteVolume => self.delete_volume().await,
            Op::AttachVolume => self.attach_volume().await,
            Op::DetachVolume => self.detach_volume().await,
            Op::Snapshot => self.snapshot().await,
            Op::BootFromVolume => self.boot_from_volume().await,
            Op::FloatingIp => self.floating_ip().await,
            Op::Interface => self.interface().await,
            Op::Network => self.network().await,
            Op::SecurityGroup => self.security_group().await,
            Op::Read => self.read().await,
        }
    }

    async fn call(
        &self,
        what: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Reply, NoAnswer> {
        self.tenant.call(&self.common.api, what, method, path, body).await
    }

    fn one<'a, T>(&self, of: &'a [T]) -> Option<&'a T> {
        let n = self.dice.below(u64::try_from(of.len()).unwrap_or(0));
        of.get(usize::try_from(n).unwrap_or(0))
    }

    fn any(&self, of: &BTreeMap<String, Expect>) -> Option<String> {
        let present: Vec<&String> =
            of.iter().filter(|(_, e)| **e == Expect::Present).map(|(id, _)| id).collect();
        self.one(&present).map(|id| (*id).clone())
    }

    fn server(&self) -> Option<String> {
        self.any(&self.tenant.owned.lock().servers)
    }

    fn volume(&self) -> Option<String> {
        self.any(&self.tenant.owned.lock().volumes)
    }

    fn name(&self, kind: &str) -> String {
        let mut owned = self.tenant.owned.lock();
        owned.made += 1;
        format!("{kind}-{}", owned.made)
    }

    fn some_network(&self) -> String {
        let owned = self.tenant.owned.lock();
        let others: Vec<&String> = owned.networks.iter().collect();
        match self.one(&others) {
            Some(id) if self.dice.below(4) == 0 => (*id).clone(),
            _ => self.tenant.network.clone(),
        }
    }

    async fn create_server(&self) -> Done {
        let Some(flavor) = self.one(&self.common.flavors) else { return Ok(()) };
        let mut server = json!({
            "name": self.name("vm"), "flavorRef": flavor, "imageRef": self.common.image,
            "networks": [{"uuid": self.some_network()}],
        });
        if self.dice.below(8) == 0 {
            server["max_count"] = json!(1 + self.dice.below(3));
        }
        let reply = self
            .call("create_server", "POST", "/compute/v2.1/servers", Some(json!({"server": server})))
            .await?;
        self.keep_server(&reply);
        Ok(())
    }

    fn keep_server(&self, reply: &Reply) {
        if reply.ok() {
            self.tenant.owned.lock().servers.insert(reply.text("/server/id"), Expect::Present);
        }
    }

    async fn boot_from_volume(&self) -> Done {
        let Some(flavor) = self.one(&self.common.flavors) else { return Ok(()) };
        let server = json!({
            "name": self.name("bfv"), "flavorRef": flavor, "networks": [{"uuid": self.some_network()}],
            "block_device_mapping_v2": [{
                "uuid": self.common.image, "source_type": "image", "destination_type": "volume",
                "volume_size": 1 + self.dice.below(10), "boot_index": 0,
                "delete_on_termination": self.dice.below(2) == 0,
            }],
        });
        let body = json!({"server": server});
        let reply = self.call("boot_from_volume", "POST", "/compute/v2.1/servers", Some(body)).await?;
        self.keep_server(&reply);
        Ok(())
    }

    async fn delete_server(&self) -> Done {
        // First what was asked for before and not answered.
        let id = {
            let owned = self.tenant.owned.lock();
            let unsure = owned.servers.iter().find(|(_, e)| **e == Expect::Unsure).map(|(id, _)| id.clone());
            unsure.or_else(|| self.any(&owned.servers))
        };
        let Some(id) = id else { return Ok(()) };
        self.tenant.owned.lock().servers.insert(id.clone(), Expect::Unsure);
        let reply =
            self.call("delete_server", "DELETE", &format!("/compute/v2.1/servers/{id}"), None).await?;
        let now = if reply.ok() || reply.status == 404 { Expect::Gone } else { Expect::Present };
        self.tenant.owned.lock().servers.insert(id, now);
        Ok(())
    }

    async fn action(&self, what: &str, id: &str, body: Value) -> Done {
        self.call(what, "POST", &format!("/compute/v2.1/servers/{id}/action"), Some(body)).await.map(drop)
    }

    async fn power(&self) -> Done {
        let Some(id) = self.server() else { return Ok(()) };
        let shown = self.call("show_server", "GET", &format!("/compute/v2.1/servers/{id}"), None).await?;
        let what = match (shown.text("/server/status").as_str(), self.dice.below(6)) {
            ("ACTIVE", 0) => "pause",
            ("ACTIVE", 1) => "suspend",
            ("ACTIVE", _) => "os-stop",
            ("PAUSED", _) => "unpause",
            ("SUSPENDED", _) => "resume",
            _ => "os-start",
        };
        self.action(what, &id, json!({what: null})).await
    }

    async fn reboot(&self) -> Done {
        let Some(id) = self.server() else { return Ok(()) };
        let kind = if self.dice.below(2) == 0 { "SOFT" } else { "HARD" };
        self.action("reboot", &id, json!({"reboot": {"type": kind}})).await
    }

    fn volumes_path(&self, rest: &str) -> String {
        format!("/volume/v3/{}{rest}", self.tenant.project)
    }

    async fn create_volume(&self) -> Done {
        let body = json!({"volume": {"name": self.name("vol"), "size": 1 + self.dice.below(20)}});
        let reply = self.call("create_volume", "POST", &self.volumes_path("/volumes"), Some(body)).await?;
        if reply.ok() {
            self.tenant.owned.lock().volumes.insert(reply.text("/volume/id"), Expect::Present);
        }
        Ok(())
    }

    async fn delete_volume(&self) -> Done {
        let Some(id) = self.volume() else { return Ok(()) };
        self.tenant.owned.lock().volumes.insert(id.clone(), Expect::Unsure);
        let path = self.volumes_path(&format!("/volumes/{id}"));
        let reply = self.call("delete_volume", "DELETE", &path, None).await?;
        let now = if reply.ok() || reply.status == 404 { Expect::Gone } else { Expect::Present };
        self.tenant.owned.lock().volumes.insert(id, now);
        Ok(())
    }

    async fn attach_volume(&self) -> Done {
        let (Some(server), Some(volume)) = (self.server(), self.volume()) else { return Ok(()) };
        let body = json!({"volumeAttachment": {"volumeId": volume}});
        let path = format!("/compute/v2.1/servers/{server}/os-volume_attachments");
        self.call("attach_volume", "POST", &path, Some(body)).await.map(drop)
    }

    async fn detach_volume(&self) -> Done {
        let path = self.volumes_path("/volumes/detail?status=in-use&limit=20");
        let found = self.call("list_volumes", "GET", &path, None).await?;
        let volumes = found.list("/volumes");
        let Some(volume) = self.one(&volumes) else { return Ok(()) };
        let id = volume["id"].as_str().unwrap_or_default();
        let Some(server) = volume["attachments"][0]["server_id"].as_str() else { return Ok(()) };
        let path = format!("/compute/v2.1/servers/{server}/os-volume_attachments/{id}");
        self.call("detach_volume", "DELETE", &path, None).await.map(drop)
    }

    async fn snapshot(&self) -> Done {
        let old = self.tenant.owned.lock().snapshots.iter().next().cloned();
        if let Some(id) = old.filter(|_| self.dice.below(2) == 0) {
            let path = self.volumes_path(&format!("/snapshots/{id}"));
            let reply = self.call("delete_snapshot", "DELETE", &path, None).await?;
            if reply.ok() || reply.status == 404 {
                self.tenant.owned.lock().snapshots.remove(&id);
            }
            return Ok(());
        }
        let Some(volume) = self.volume() else { return Ok(()) };
        let body = json!({"snapshot": {"volume_id": volume, "force": true, "name": self.name("snap")}});
        let reply =
            self.call("create_snapshot", "POST", &self.volumes_path("/snapshots"), Some(body)).await?;
        if reply.ok() {
            self.tenant.owned.lock().snapshots.insert(reply.text("/snapshot/id"));
        }
        Ok(())
    }

    async fn floating_ip(&self) -> Done {
        let held = self.any(&self.tenant.owned.lock().floating);
        match (held, self.dice.below(3)) {
            (Some(id), 0) => {
                self.tenant.owned.lock().floating.insert(id.clone(), Expect::Unsure);
                let path = format!("/network/v2.0/floatingips/{id}");
                let reply = self.call("delete_floating_ip", "DELETE", &path, None).await?;
                let now = if reply.ok() || reply.status == 404 { Expect::Gone } else { Expect::Present };
                self.tenant.owned.lock().floating.insert(id, now);
                Ok(())
            }
            (Some(id), 1) => {
                let Some(server) = self.server() else { return Ok(()) };
                let path = format!("/network/v2.0/ports?device_id={server}");
                let ports = self.call("list_ports", "GET", &path, None).await?;
                let port = ports.text("/ports/0/id");
                let body = json!({"floatingip": {"port_id": if port.is_empty() { Value::Null } else { json!(port) }}});
                let path = format!("/network/v2.0/floatingips/{id}");
                self.call("associate_floating_ip", "PUT", &path, Some(body)).await.map(drop)
            }
            _ => {
                let body = json!({"floatingip": {"floating_network_id": self.common.external}});
                let path = "/network/v2.0/floatingips";
                let reply = self.call("create_floating_ip", "POST", path, Some(body)).await?;
                if reply.ok() {
                    self.tenant.owned.lock().floating.insert(reply.text("/floatingip/id"), Expect::Present);
                }
                Ok(())
            }
        }
    }

    async fn interface(&self) -> Done {
        let Some(server) = self.server() else { return Ok(()) };
        let path = format!("/compute/v2.1/servers/{server}/os-interface");
        let found = self.call("list_interfaces", "GET", &path, None).await?;
        let nics = found.list("/interfaceAttachments");
        if nics.len() > 1 {
            let Some(nic) = self.one(&nics) else { return Ok(()) };
            let path = format!("{path}/{}", nic["port_id"].as_str().unwrap_or_default());
            return self.call("detach_interface", "DELETE", &path, None).await.map(drop);
        }
        let body = json!({"interfaceAttachment": {"net_id": self.some_network()}});
        self.call("attach_interface", "POST", &path, Some(body)).await.map(drop)
    }

    async fn network(&self) -> Done {
        let old = self.tenant.owned.lock().networks.iter().next().cloned();
        if let Some(id) = old.filter(|_| self.dice.below(3) == 0) {
            return self.delete_network(&id).await;
        }
        let body = json!({"network": {"name": self.name("net")}});
        let made = self.call("create_network", "POST", "/network/v2.0/networks", Some(body)).await?;
        if !made.ok() {
            return Ok(());
        }
        let id = made.text("/network/id");
        self.tenant.owned.lock().networks.insert(id.clone());
        let cidr = format!("10.{}.{}.0/24", 32 + self.dice.below(200), self.dice.below(256));
        let body = json!({"subnet": {"network_id": id, "ip_version": 4, "cidr": cidr}});
        let subnet = self.call("create_subnet", "POST", "/network/v2.0/subnets", Some(body)).await?;
        let path = format!("/network/v2.0/routers/{}/add_router_interface", self.tenant.router);
        let body = json!({"subnet_id": subnet.text("/subnet/id")});
        self.call("add_router_interface", "PUT", &path, Some(body)).await.map(drop)
    }

    async fn delete_network(&self, id: &str) -> Done {
        let path = format!("/network/v2.0/subnets?network_id={id}");
        let subnets = self.call("list_subnets", "GET", &path, None).await?;
        for subnet in subnets.list("/subnets") {
            let path = format!("/network/v2.0/routers/{}/remove_router_interface", self.tenant.router);
            let body = json!({"subnet_id": subnet["id"]});
            self.call("remove_router_interface", "PUT", &path, Some(body)).await?;
        }
        let reply =
            self.call("delete_network", "DELETE", &format!("/network/v2.0/networks/{id}"), None).await?;
        if reply.ok() || reply.status == 404 {
            self.tenant.owned.lock().networks.remove(id);
        }
        Ok(())
    }

    async fn security_group(&self) -> Done {
        let old = self.tenant.owned.lock().groups.iter().next().cloned();
        match (old, self.dice.below(3)) {
            (Some(id), 0) => {
                let path = format!("/network/v2.0/security-groups/{id}");
                let reply = self.call("delete_group", "DELETE", &path, None).await?;
                if reply.ok() || reply.status == 404 {
                    self.tenant.owned.lock().groups.remove(&id);
                }
                Ok(())
            }
            (Some(id), 1) => {
                let port = 1 + self.dice.below(60_000);
                let body = json!({"security_group_rule": {"security_group_id": id, "direction": "ingress",
                    "protocol": "tcp", "port_range_min": port, "port_range_max": port}});
                let path = "/network/v2.0/security-group-rules";
                self.call("create_rule", "POST", path, Some(body)).await.map(drop)
            }
            _ => {
                let body = json!({"security_group": {"name": self.name("group")}});
                let path = "/network/v2.0/security-groups";
                let reply = self.call("create_group", "POST", path, Some(body)).await?;
                if reply.ok() {
                    self.tenant.owned.lock().groups.insert(reply.text("/security_group/id"));
                }
                Ok(())
            }
        }
    }

    /// Lists, and adopts servers and volumes whose making was not answered.
    async fn read(&self) -> Done {
        let servers = self.call("list_servers", "GET", "/compute/v2.1/servers/detail?limit=30", None).await?;
        {
            let mut owned = self.tenant.owned.lock();
            for server in servers.list("/servers") {
                if let Some(id) = server["id"].as_str() {
                    owned.servers.entry(id.to_owned()).or_insert(Expect::Present);
                }
            }
        }
        let path = self.volumes_path("/volumes/detail?limit=30");
        let volumes = self.call("list_volumes", "GET", &path, None).await?;
        let mut owned = self.tenant.owned.lock();
        for volume in volumes.list("/volumes") {
            // Volumes that go with their server are not ours to rely on.
            let own = volume["name"].as_str().is_some_and(|n| n.starts_with("vol-"));
            if let Some(id) = volume["id"].as_str().filter(|_| own) {
                owned.volumes.entry(id.to_owned()).or_insert(Expect::Present);
            }
        }
        Ok(())
    }
}
