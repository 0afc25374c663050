//! Tenants: what they make, change and delete through the API, and what they may rely on.

mod operator;
mod ops;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base::Entropy;
use identity::Place;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{Api, NoAnswer, Reply};
use crate::control::Control;
use crate::profile::Workload;

/// Password of everybody in a simulation.
pub const PASSWORD: &str = "simulated";
/// Tokens live for an hour.
const LOGIN_EVERY: Duration = Duration::from_secs(45 * 60);

/// What a tenant may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The cloud said that it was made: it is there.
    Present,
    /// A deletion was asked for and nobody answered.
    Unsure,
    /// The cloud said that it goes: it comes to an end and never comes back.
    Gone,
}

/// What a tenant made.
#[derive(Debug, Default)]
pub struct Owned {
    /// Servers by id.
    pub servers: BTreeMap<String, Expect>,
    /// Volumes by id.
    pub volumes: BTreeMap<String, Expect>,
    /// Floating IPs by id.
    pub floating: BTreeMap<String, Expect>,
    /// Networks besides the first: id.
    pub networks: BTreeSet<String>,
    /// Snapshots.
    pub snapshots: BTreeSet<String>,
    /// Security groups.
    pub groups: BTreeSet<String>,
    made: u64,
}

/// A project and its user.
pub struct Tenant {
    /// Name of both.
    pub name: String,
    /// The project's id.
    pub project: String,
    /// What it made.
    pub owned: Mutex<Owned>,
    account: Account,
    network: String,
    router: String,
    /// Servers it keeps.
    target: usize,
}

/// Who calls: an application credential, and a token of it.
pub struct Account {
    credential: String,
    token: Mutex<(String, Option<Instant>)>,
}

/// What is the same for all tenants.
pub struct Common {
    /// The API.
    pub api: Api,
    /// Flavors that servers are made of.
    pub flavors: Vec<String>,
    /// The image.
    pub image: String,
    /// The external network.
    pub external: String,
    /// An administrator.
    pub admin: Account,
}

/// All tenants and what they share.
pub struct Tenants {
    /// What they share.
    pub common: Arc<Common>,
    /// The tenants.
    pub all: Vec<Arc<Tenant>>,
}

impl Tenants {
    /// Makes projects, users, and a network with a router for each. Done before anything else runs, because logins by
    /// password hash on threads.
    ///
    /// # Errors
    /// Where the cloud refuses.
    pub async fn prepare(control: &Arc<Control>, api: &Api, workload: &Workload, hosts: u64) -> Result<Self> {
        let account = Account::make(api, "admin").await?;
        let admin = account.token.lock().0.clone();
        let images = api.must(&admin, "GET", "/image/v2/images?name=mini", Value::Null).await?;
        let image = images.text("/images/0/id");
        let public = json!([{"op": "replace", "path": "/visibility", "value": "public"}]);
        api.must(&admin, "PATCH", &format!("/image/v2/images/{image}"), public).await?;
        let networks = "/network/v2.0/networks?router:external=true";
        let external = api.must(&admin, "GET", networks, Value::Null).await?.text("/networks/0/id");
        let flavors = api.must(&admin, "GET", "/compute/v2.1/flavors/detail", Value::Null).await?;
        let small = |f: &&Value| {
            let number = |name: &str| f[name].as_u64().unwrap_or(u64::MAX);
            number("vcpus") <= 2 && number("ram") <= 8192 && (1..=20).contains(&number("disk"))
        };
        let flavors = flavors.list("/flavors");
        let flavors: Vec<String> =
            flavors.iter().filter(small).filter_map(|f| f["id"].as_str()).map(str::to_owned).collect();
        let common = Arc::new(Common { api: api.clone(), flavors, image, external, admin: account });
        let count = if workload.tenants > 0 { workload.tenants } else { hosts.div_ceil(10).clamp(1, 50) };
        let target = usize::try_from(workload.servers_per_host * hosts / count)?.max(1);
        let mut all = Vec::new();
        for n in 0..count {
            all.push(Arc::new(Tenant::prepare(control, &common, &format!("tenant-{n:02}"), target).await?));
        }
        Ok(Tenants { common, all })
    }

    /// Starts all clients; they stop when `stop` is cancelled.
    pub fn begin(
        &self,
        workload: &Workload,
        seed: u64,
        stop: &CancellationToken,
    ) -> tokio::task::JoinSet<()> {
        let mut clients = tokio::task::JoinSet::new();
        for (n, tenant) in self.all.iter().enumerate() {
            for c in 0..workload.clients {
                let number = u64::try_from(n).unwrap_or(0) * 1_000 + c;
                let client = ops::Client {
                    tenant: tenant.clone(),
                    common: self.common.clone(),
                    dice: Entropy::seeded(seed.rotate_left(29) ^ number.wrapping_mul(0xa076_1d64_78bd_642f)),
                    workload: workload.clone(),
                };
                clients.spawn(client.run(stop.clone()));
            }
        }
        let dice = Entropy::seeded(seed ^ 0x6f70_6572_6174_6f72);
        clients.spawn(operator::run(self.common.clone(), workload.evacuate_s, dice, stop.clone()));
        let dice = Entropy::seeded(seed ^ 0x0064_7261_696e_6572);
        clients.spawn(operator::drain(self.common.clone(), workload.drain_s, dice, stop.clone()));
        clients
    }
}

impl Tenant {
    async fn prepare(control: &Arc<Control>, common: &Common, name: &str, target: usize) -> Result<Self> {
        let api = &common.api;
        let admin = common.admin.token.lock().0.clone();
        let identity = control.current()?.cloud.identity.clone();
        let project = identity.ensure_project(name, "").await?;
        let user = identity.ensure_user(name, PASSWORD, Some(&project)).await?;
        identity.ensure_assignment(&user, "member", &Place::Project(project.clone())).await?;
        let unlimited = json!({"quota_set": {"instances": -1, "cores": -1, "ram": -1}});
        api.must(&admin, "PUT", &format!("/compute/v2.1/os-quota-sets/{project}"), unlimited).await?;
        let unlimited = json!({"quota": {"port": -1, "network": -1, "subnet": -1, "floatingip": -1,
            "security_group": -1, "security_group_rule": -1}});
        api.must(&admin, "PUT", &format!("/network/v2.0/quotas/{project}"), unlimited).await?;
        let unlimited = json!({"quota_set": {"volumes": -1, "gigabytes": -1, "snapshots": -1}});
        let path = format!("/volume/v3/os-quota-sets/{project}");
        api.must(&admin, "PUT", &path, unlimited).await?;
        let account = Account::make(api, name).await?;
        let token = account.token.lock().0.clone();
        let net = json!({"network": {"name": format!("{name}-net")}});
        let network = api.must(&token, "POST", "/network/v2.0/networks", net).await?.text("/network/id");
        let subnet = json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": "10.16.0.0/16"}});
        let subnet = api.must(&token, "POST", "/network/v2.0/subnets", subnet).await?.text("/subnet/id");
        let gateway = json!({"network_id": common.external});
        let router = json!({"router": {"name": "router", "external_gateway_info": gateway}});
        let router = api.must(&token, "POST", "/network/v2.0/routers", router).await?.text("/router/id");
        let path = format!("/network/v2.0/routers/{router}/add_router_interface");
        api.must(&token, "PUT", &path, json!({"subnet_id": subnet})).await?;
        Ok(Tenant {
            name: name.to_owned(),
            project: project.to_string(),
            owned: Mutex::default(),
            account,
            network,
            router,
            target,
        })
    }

    async fn call(
        &self,
        api: &Api,
        what: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Reply, NoAnswer> {
        self.account.call(api, what, method, path, body).await
    }
}

impl Account {
    /// Of the user and project of this name.
    async fn make(api: &Api, name: &str) -> Result<Self> {
        let login = api.login(name, PASSWORD, name).await?;
        let token = login.token.context("a login without a token")?;
        let user = login.body.pointer("/token/user/id").and_then(Value::as_str).unwrap_or_default();
        let body = json!({"application_credential": {"name": "sim", "secret": PASSWORD}});
        let path = format!("/identity/v3/users/{user}/application_credentials");
        let credential = api.must(&token, "POST", &path, body).await?.text("/application_credential/id");
        Ok(Account { credential, token: Mutex::new((token, Some(Instant::now()))) })
    }

    /// A token that is not old. Application credentials: their secret is checked in the caller's task.
    async fn token(&self, api: &Api) -> Result<String, NoAnswer> {
        {
            let held = self.token.lock();
            if held.1.is_some_and(|made| made.elapsed() < LOGIN_EVERY) {
                return Ok(held.0.clone());
            }
        }
        let body = json!({"auth": {"identity": {"methods": ["application_credential"],
            "application_credential": {"id": self.credential, "secret": PASSWORD}}}});
        let reply = api.call("login", "", "POST", "/identity/v3/auth/tokens", Some(&body)).await?;
        let Some(token) = reply.token else { return Err(NoAnswer) };
        *self.token.lock() = (token.clone(), Some(Instant::now()));
        Ok(token)
    }

    async fn call(
        &self,
        api: &Api,
        what: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Reply, NoAnswer> {
        let token = self.token(api).await?;
        let reply = api.call(what, &token, method, path, body.as_ref()).await?;
        if reply.status == 401 {
            self.token.lock().1 = None;
        }
        Ok(reply)
    }
}

/// Waits for all clients to stop.
///
/// # Errors
/// Where one panicked.
pub async fn end(mut clients: tokio::task::JoinSet<()>) -> Result<()> {
    while let Some(ended) = clients.join_next().await {
        ended.context("a client of the workload panicked")?;
    }
    Ok(())
}
