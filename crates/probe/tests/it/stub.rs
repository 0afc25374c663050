//! A cloud that keeps what is made in it, insists on the order of removal as a real one does, and fails as it is told to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Request, Response};
use serde_json::{Value, json};

/// What happens to a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, and nothing is done.
    Status(u16),
    /// No answer, and nothing is done.
    HangBefore,
    /// It is done, and there is no answer.
    HangAfter,
    /// It is done, later.
    Slow(Duration),
}

/// A call that came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// After the service (`network/v2.0/ports`).
    pub path: String,
    pub body: Value,
}

impl Seen {
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.contains(path)
    }
}

type Judge = Box<dyn FnMut(usize, &Seen) -> Option<Fault> + Send>;

pub struct World {
    pub things: BTreeMap<String, Vec<Value>>,
    pub seen: Vec<Seen>,
    /// Asked about every call, with its number.
    pub judge: Judge,
    /// How many looks until something is ready.
    pub looks: u32,
    /// Servers whose name ends so go to ERROR.
    pub broken: Vec<String>,
    /// Which host the next servers are on, in turn.
    pub hosts: Vec<String>,
    /// Types in the catalog.
    pub services: Vec<&'static str>,
    pub next: u64,
}

impl Default for World {
    fn default() -> Self {
        let mut things = BTreeMap::new();
        let outside = json!({"id": "ext", "name": "public", "router:external": true, "status": "ACTIVE"});
        things.insert("networks".to_owned(), vec![outside]);
        World {
            things,
            seen: Vec::new(),
            judge: Box::new(|_, _| None),
            looks: 1,
            broken: Vec::new(),
            hosts: vec!["host-1".into(), "host-2".into()],
            services: vec!["identity", "compute", "network", "image", "volumev3"],
            next: 0,
        }
    }
}

/// Where a server's volumes stand.
pub const ATTACHED: &str = "os-extended-volumes:volumes_attached";

#[derive(Clone)]
pub struct Stub {
    pub world: Arc<Mutex<World>>,
    pub base: String,
}

/// Path, key of a list, key of one.
const COLLECTIONS: &[(&str, &str, &str)] = &[
    ("networks", "networks", "network"),
    ("subnets", "subnets", "subnet"),
    ("routers", "routers", "router"),
    ("ports", "ports", "port"),
    ("floatingips", "floatingips", "floatingip"),
    ("security-groups", "security_groups", "security_group"),
    ("security-group-rules", "security_group_rules", "security_group_rule"),
    ("volumes", "volumes", "volume"),
    ("servers", "servers", "server"),
    ("os-keypairs", "keypairs", "keypair"),
    ("loadbalancers", "loadbalancers", "loadbalancer"),
    ("listeners", "listeners", "listener"),
    ("pools", "pools", "pool"),
    ("members", "members", "member"),
];

impl Stub {
    pub async fn start(world: World) -> Stub {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let stub = Stub { world: Arc::new(Mutex::new(world)), base };
        let app = axum::Router::new().fallback(answer).with_state(stub.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        stub
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        f(&mut self.world.lock().unwrap())
    }

    /// Everything that is there, but what was there from the beginning.
    pub fn left(&self) -> Vec<String> {
        self.with(|w| {
            let all = w.things.iter().flat_map(|(c, t)| t.iter().map(move |v| (c, v)));
            let made =
                all.filter(|(c, v)| v["id"] != "ext" && *c != "security-group-rules" && *c != "interfaces");
            made.map(|(c, v)| format!("{c} {}", v["name"].as_str().unwrap_or_default())).collect()
        })
    }

    pub fn cloud(&self) -> osclient::Cloud {
        let auth = [
            ("auth_url", format!("{}/identity/v3", self.base)),
            ("username", "u".into()),
            ("password", "p".into()),
            ("project_name", "p".into()),
        ];
        osclient::Cloud {
            name: "stub".into(),
            auth_type: "password".into(),
            auth: auth.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            interface: "public".into(),
            ..osclient::Cloud::default()
        }
    }
}

async fn answer(State(stub): State<Stub>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, 8 << 20).await.unwrap_or_default();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().trim_start_matches('/').to_owned(),
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    };
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let (number, fault) = stub.with(|w| {
        let number = w.seen.len();
        w.seen.push(seen.clone());
        let fault = (w.judge)(number, &seen);
        (number, fault)
    });
    match fault {
        Some(Fault::HangBefore) => std::future::pending().await,
        Some(Fault::Slow(by)) => tokio::time::sleep(by).await,
        _ => {}
    }
    let (status, body) = match fault {
        Some(Fault::Status(status)) => (status, json!({"error": {"message": "as told", "code": status}})),
        _ => stub.with(|w| w.handle(&stub.base, &parts.method, &seen, &query)),
    };
    if matches!(fault, Some(Fault::HangAfter)) {
        std::future::pending::<()>().await;
    }
    let response =
        Response::builder().status(status).header("x-openstack-request-id", format!("req-{number}"));
    let text = if body.is_null() { String::new() } else { body.to_string() };
    response.header("x-subject-token", "t").body(Body::from(text)).unwrap()
}

fn missing() -> (u16, Value) {
    (404, json!({"itemNotFound": {"message": "not found"}}))
}

fn in_use() -> (u16, Value) {
    (409, json!({"NeutronError": {"message": "in use"}}))
}

impl World {
    fn handle(&mut self, base: &str, method: &Method, seen: &Seen, query: &str) -> (u16, Value) {
        let segments: Vec<&str> = seen.path.split('/').filter(|s| *s != "detail" && *s != "lbaas").collect();
        match segments.as_slice() {
            ["identity", "v3", "auth", "tokens"] => (201, self.token(base)),
            ["identity", "v3", "auth", "catalog"] => {
                (200, json!({"catalog": self.token(base)["token"]["catalog"]}))
            }
            ["image", "v2", "images"] => (
                200,
                json!({"images": [{"id": "img", "name": "small", "status": "active", "min_disk": 1, "min_ram": 64, "os_distro": "debian"}]}),
            ),
            ["compute", "v2.1", ""] => {
                (200, json!({"version": {"id": "v2.1", "min_version": "2.1", "version": "2.96"}}))
            }
            ["compute", "v2.1", "flavors"] => (
                200,
                json!({"flavors": [{"id": "big", "name": "big", "ram": 4096, "disk": 20, "vcpus": 4},
                {"id": "small", "name": "small", "ram": 512, "disk": 5, "vcpus": 1}]}),
            ),
            ["compute", "v2.1", "os-availability-zone"] => (
                200,
                json!({"availabilityZoneInfo": [{"zoneName": "az1", "zoneState": {"available": true}}]}),
            ),
            ["compute", "v2.1", "servers", id, "metadata"] => match self.find("servers", id) {
                Some(_) => (200, json!({"metadata": seen.body["metadata"]})),
                None => missing(),
            },
            ["compute", "v2.1", "servers", id, "os-volume_attachments", rest @ ..] => {
                let volume = rest.first().copied().or(seen.body["volumeAttachment"]["volumeId"].as_str());
                let (id, volume) = ((*id).to_owned(), volume.unwrap_or_default().to_owned());
                let attached = method == Method::POST;
                if self.find("servers", &id).is_none() {
                    return missing();
                }
                let Some(found) = self.find("volumes", &volume) else { return missing() };
                found["attached"] = if attached { json!(id) } else { Value::Null };
                found["status"] = json!(if attached { "in-use" } else { "available" });
                (if attached { 200 } else { 202 }, json!({"volumeAttachment": {"id": volume}}))
            }
            ["network", "v2.0", "routers", id, verb] => self.interface(id, verb, &seen.body),
            ["load-balancer", _, "pools", _, "members"] => {
                self.collection(method, "members", &[], &seen.body, query)
            }
            [_, _, _, "volumes", rest @ ..] => self.collection(method, "volumes", rest, &seen.body, query),
            [_, _, collection, rest @ ..] => self.collection(method, collection, rest, &seen.body, query),
            _ => missing(),
        }
    }

    fn token(&self, base: &str) -> Value {
        let endpoint = |kind: &str| match kind {
            "identity" => format!("{base}/identity/v3"),
            "compute" => format!("{base}/compute/v2.1"),
            "volumev3" => format!("{base}/volume/v3/p"),
            other => format!("{base}/{other}"),
        };
        let catalog: Vec<Value> = self
            .services
            .iter()
            .map(|k| json!({"type": k, "name": k, "endpoints": [{"interface": "public", "region": "R", "url": endpoint(k)}]}))
            .collect();
        json!({"token": {"user": {"id": "u"}, "project": {"id": "p", "name": "p"}, "roles": [{"name": "member"}],
            "expires_at": "2099-01-01T00:00:00.000000Z", "catalog": catalog}})
    }

    fn find(&mut self, collection: &str, id: &str) -> Option<&mut Value> {
        self.things.get_mut(collection)?.iter_mut().find(|t| t["id"] == id)
    }

    fn interface(&mut self, router: &str, verb: &str, body: &Value) -> (u16, Value) {
        if self.find("routers", router).is_none() {
            return missing();
        }
        let subnet = body["subnet_id"].clone();
        let all = self.things.entry("interfaces".into()).or_default();
        if verb == "add_router_interface" {
            all.push(json!({"id": subnet, "router": router}));
        } else {
            let before = all.len();
            all.retain(|i| i["id"] != subnet);
            if all.len() == before {
                return missing();
            }
        }
        (200, json!({"id": router, "subnet_id": subnet}))
    }

    /// Whether something else still needs it.
    fn needed(&self, collection: &str, id: &str) -> bool {
        let any = |collection: &str, test: &dyn Fn(&Value) -> bool| {
            self.things.get(collection).is_some_and(|t| t.iter().any(test))
        };
        match collection {
            "networks" => {
                any("ports", &|p| p["network_id"] == id)
                    || any("interfaces", &|i| {
                        any("subnets", &|s| s["id"] == i["id"] && s["network_id"] == id)
                    })
            }
            "subnets" => any("interfaces", &|i| i["id"] == id),
            "routers" => any("interfaces", &|i| i["router"] == id),
            "ports" => any("servers", &|s| {
                s["networks"].as_array().is_some_and(|n| n.iter().any(|n| n["port"] == id))
            }),
            "security-groups" => {
                any("ports", &|p| p["security_groups"].as_array().is_some_and(|g| g.iter().any(|g| g == id)))
            }
            "volumes" => any("volumes", &|v| v["id"] == id && v["status"] == "in-use"),
            _ => false,
        }
    }

    fn collection(
        &mut self,
        method: &Method,
        collection: &str,
        rest: &[&str],
        body: &Value,
        query: &str,
    ) -> (u16, Value) {
        let Some((_, list, one)) = COLLECTIONS.iter().find(|(c, ..)| *c == collection) else {
            return missing();
        };
        match (method, rest) {
            (&Method::POST, []) => (201, json!({*one: self.insert(collection, &body[*one])})),
            (&Method::GET, []) => {
                let all = self.things.get(collection).cloned().unwrap_or_default();
                let found: Vec<Value> = all.into_iter().filter(|t| matches(t, query)).collect();
                (200, json!({*list: found}))
            }
            (&Method::GET, [id]) => {
                let broken = self.broken.clone();
                let Some(found) = self.find(collection, id) else { return missing() };
                let looks = found["looks"].as_u64().unwrap_or(0);
                found["looks"] = json!(looks.saturating_sub(1));
                if looks == 0 {
                    let name = found["name"].as_str().unwrap_or_default();
                    if collection == "servers" && broken.iter().any(|b| name.ends_with(b)) {
                        found["status"] = json!("ERROR");
                        found["fault"] = json!({"message": "No valid host was found"});
                    } else if let Some(ready) = found["ready"].as_str().map(str::to_owned) {
                        found["status"] = json!(ready);
                        found["provisioning_status"] = json!(ready);
                        found["ready"] = Value::Null;
                    }
                }
                (200, json!({*one: found}))
            }
            (&Method::DELETE, [id]) => {
                if self.find(collection, id).is_none() {
                    return missing();
                }
                if self.needed(collection, id) {
                    return in_use();
                }
                if collection == "servers" {
                    self.bury(id);
                    for volume in self.things.entry("volumes".into()).or_default() {
                        if volume["attached"] == **id {
                            volume["status"] = json!("available");
                        }
                    }
                }
                if collection == "loadbalancers" {
                    // The client asks for all that belongs to it to go.
                    for part in ["listeners", "pools", "members"] {
                        self.things.remove(part);
                    }
                }
                self.things.entry(collection.into()).or_default().retain(|t| t["id"] != **id);
                (204, Value::Null)
            }
            _ => missing(),
        }
    }

    /// A server goes, and the volumes that go with it; but those of one that came to nothing are forgotten.
    fn bury(&mut self, server: &str) {
        let Some(found) = self.find("servers", server).cloned() else { return };
        for volume in found[ATTACHED].as_array().into_iter().flatten() {
            let volumes = self.things.entry("volumes".into()).or_default();
            if found["status"] == "ERROR" || volume["delete_on_termination"] != json!(true) {
                volumes
                    .iter_mut()
                    .filter(|v| v["id"] == volume["id"])
                    .for_each(|v| v["status"] = json!("available"));
            } else {
                volumes.retain(|v| v["id"] != volume["id"]);
            }
        }
    }

    /// Volumes that a server is made with, or takes.
    fn bring(&mut self, server: &mut Value) {
        let mappings = server["block_device_mapping_v2"].as_array().cloned().unwrap_or_default();
        for mapping in mappings.iter().filter(|m| m["destination_type"] == "volume") {
            if mapping["source_type"] == "volume" {
                let volumes = self.things.entry("volumes".into()).or_default();
                let volume = volumes.iter_mut().find(|v| v["id"] == mapping["uuid"]).unwrap();
                assert_eq!(volume["status"], "available", "{volume}");
                volume["status"] = json!("in-use");
                volume["attached"] = server["id"].clone();
                server[ATTACHED] = json!([{"id": volume["id"], "delete_on_termination": false}]);
                continue;
            }
            let id = json!(format!("{}-brought", server["id"].as_str().unwrap()));
            let volume = json!({"id": id, "name": "", "status": "in-use", "attached": server["id"], "ready": null, "looks": 0});
            self.things.entry("volumes".into()).or_default().push(volume);
            server[ATTACHED] = json!([{"id": id, "delete_on_termination": mapping["delete_on_termination"]}]);
        }
    }

    fn insert(&mut self, collection: &str, body: &Value) -> Value {
        self.next += 1;
        let mut thing = body.clone();
        let id = if collection == "os-keypairs" {
            body["name"].clone()
        } else {
            json!(format!("id-{}", self.next))
        };
        thing["id"] = id;
        let (status, ready) = match collection {
            "servers" => ("BUILD", "ACTIVE"),
            "volumes" => ("creating", "available"),
            "loadbalancers" => ("PENDING_CREATE", "ACTIVE"),
            _ => ("ACTIVE", "ACTIVE"),
        };
        thing["status"] = json!(status);
        thing["ready"] = json!(ready);
        thing["looks"] = json!(self.looks);
        if collection == "servers" {
            let host = usize::try_from(self.next).unwrap() % self.hosts.len();
            thing["hostId"] = json!(self.hosts[host]);
            thing["addresses"] =
                json!({"net": [{"addr": format!("10.0.0.{}", self.next), "OS-EXT-IPS:type": "fixed"}]});
        }
        if collection == "servers" {
            self.bring(&mut thing);
        }
        if collection == "ports" {
            thing["fixed_ips"] = json!([{"ip_address": format!("10.0.0.{}", self.next), "subnet_id": "s"}]);
        }
        if collection == "loadbalancers" {
            thing["vip_address"] = json!("10.0.0.1");
            thing["provisioning_status"] = json!("PENDING_CREATE");
        }
        if collection == "floatingips" {
            thing["floating_ip_address"] = json!(format!("203.0.113.{}", self.next % 250));
            thing["name"] = thing["description"].clone();
        }
        self.things.entry(collection.into()).or_default().push(thing.clone());
        thing
    }
}

fn matches(thing: &Value, query: &str) -> bool {
    query.split('&').filter_map(|p| p.split_once('=')).all(|(name, value)| match name {
        "name" | "description" => thing[name].as_str() == Some(value),
        "router:external" | "router%3Aexternal" => thing["router:external"] == json!(true),
        _ => true,
    })
}
