//! A cloud that is only as right as it is told to be: answers the calls of the cases from a [`World`], which a variant of
//! `variants.rs` breaks in one place. All variants are served at once, each under a path of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Request, Response};
use serde_json::{Map, Value, json};

/// What the cloud has and how it answers.
#[derive(Clone)]
pub struct World {
    /// Roles of the user.
    pub roles: Vec<String>,
    /// Service types in the catalog.
    pub catalog: Vec<String>,
    pub flavors: Vec<Value>,
    pub images: Vec<Value>,
    pub volume_types: Vec<Value>,
    /// `None`: the cloud has no such resource.
    pub default_rules: Option<Vec<Value>>,
    /// Rules a new security group has.
    pub group_rules: Vec<Value>,
    /// What every guest says.
    pub console: String,
    /// `METHOD service/path…` → status, for calls whose path begins so.
    pub faults: BTreeMap<String, u16>,
    /// Status a new volume and a new backup come to.
    pub volume_status: String,
    pub backup_status: String,
    /// Whether restoring makes a volume.
    pub restores: bool,
    /// Looks at a volume before it is available.
    pub slow: u32,
    /// Whether secrets are listed.
    pub lists_secrets: bool,
    /// Which S3 answers: index of [`Stub::s3`].
    pub s3: usize,
    /// Highest microversion of compute.
    pub compute: String,
    /// Things by collection (`volume/volumes`).
    pub things: BTreeMap<String, Vec<Value>>,
    /// Bytes of images.
    pub files: BTreeMap<String, Vec<u8>>,
    pub next: u64,
}

struct Served {
    worlds: Mutex<BTreeMap<String, World>>,
    base: String,
    s3: Vec<String>,
}

/// A running stub.
pub struct Stub {
    served: Arc<Served>,
}

/// Behaviours of S3 on a host root.
const S3: [(u16, &str); 3] = [
    (
        403,
        "<?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>",
    ),
    (404, "<html>nothing here</html>"),
    (
        200,
        "<?xml version=\"1.0\"?><ListAllMyBucketsResult><Buckets></Buckets><Owner><ID>x</ID></Owner></ListAllMyBucketsResult>",
    ),
];

impl Stub {
    /// Serves the worlds, by name.
    pub async fn serve(worlds: BTreeMap<String, World>) -> Stub {
        let mut s3 = Vec::new();
        for (status, text) in S3 {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            s3.push(format!("http://{}", listener.local_addr().unwrap()));
            let answer = move || async move {
                Response::builder()
                    .status(status)
                    .header("content-type", "application/xml")
                    .body(Body::from(text))
                    .unwrap()
            };
            tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let served = Arc::new(Served { worlds: Mutex::new(worlds), base, s3 });
        let app = axum::Router::new().fallback(answer).with_state(served.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Stub { served }
    }

    /// Where one logs in to a world.
    pub fn auth_url(&self, world: &str) -> String {
        format!("{}/{world}/identity/v3", self.served.base)
    }

    /// Things of a collection that are there now.
    pub fn things(&self, world: &str, collection: &str) -> Vec<Value> {
        let worlds = self.served.worlds.lock().unwrap();
        worlds[world].things.get(collection).cloned().unwrap_or_default()
    }

    /// Every collection that is not empty.
    pub fn left(&self, world: &str) -> Vec<String> {
        let worlds = self.served.worlds.lock().unwrap();
        worlds[world].things.iter().filter(|(_, t)| !t.is_empty()).map(|(c, _)| c.clone()).collect()
    }
}

async fn answer(State(served): State<Arc<Served>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, 64 << 20).await.unwrap_or_default();
    let path = parts.uri.path().trim_start_matches('/').to_owned();
    let (world, path) = path.split_once('/').unwrap_or((path.as_str(), ""));
    let call = Call {
        method: parts.method,
        path: path.trim_end_matches('/').to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        json: serde_json::from_slice(&bytes).unwrap_or_default(),
        bytes: bytes.to_vec(),
        root: format!("{}/{world}", served.base),
        s3: served.s3.clone(),
    };
    let mut worlds = served.worlds.lock().unwrap();
    let (status, body) = match worlds.get_mut(world) {
        Some(world) => world.answer(&call),
        None => (404, Out::Json(json!({"error": {"message": "no such world"}}))),
    };
    let mut response = Response::builder().status(status).header("x-openstack-request-id", "req-stub");
    if call.path.ends_with("auth/tokens") {
        response = response.header("x-subject-token", "stub-token");
    }
    match body {
        Out::Bytes(bytes) => {
            response.header("content-type", "application/octet-stream").body(Body::from(bytes)).unwrap()
        }
        Out::Json(Value::Null) => response.body(Body::empty()).unwrap(),
        Out::Json(value) => {
            response.header("content-type", "application/json").body(Body::from(value.to_string())).unwrap()
        }
    }
}

struct Call {
    method: Method,
    path: String,
    query: String,
    json: Value,
    bytes: Vec<u8>,
    root: String,
    s3: Vec<String>,
}

enum Out {
    Json(Value),
    Bytes(Vec<u8>),
}

/// Collections that are all alike: path after the service's version, key of a list, key of one.
const COLLECTIONS: &[(&str, &str, &str, &str)] = &[
    ("network", "networks", "networks", "network"),
    ("network", "subnets", "subnets", "subnet"),
    ("network", "routers", "routers", "router"),
    ("network", "ports", "ports", "port"),
    ("network", "floatingips", "floatingips", "floatingip"),
    ("network", "security-groups", "security_groups", "security_group"),
    ("network", "subnetpools", "subnetpools", "subnetpool"),
    ("network", "extensions", "extensions", "extension"),
    ("volume", "volumes", "volumes", "volume"),
    ("volume", "backups", "backups", "backup"),
    ("compute", "servers", "servers", "server"),
    ("image", "images", "images", ""),
    ("keys", "secrets", "secrets", ""),
];

const PROJECT: &str = "5f705f705f705f705f705f705f705f70";

impl World {
    fn answer(&mut self, call: &Call) -> (u16, Out) {
        let told = format!("{} {}", call.method, call.path);
        if let Some((_, status)) = self.faults.iter().find(|(fault, _)| told.starts_with(fault.as_str())) {
            return (*status, Out::Json(json!({"error": {"message": "as told", "code": status}})));
        }
        let segments: Vec<&str> = call.path.split('/').collect();
        match segments.as_slice() {
            ["identity", "v3"] => (
                200,
                Out::Json(
                    json!({"version": {"id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
                "links": [{"rel": "self", "href": format!("{}/identity/v3/", call.root)}], "media-types": []}}),
                ),
            ),
            ["identity", "v3", "auth", "tokens"] => (201, Out::Json(self.token(call))),
            ["compute", "v2.1"] => (
                200,
                Out::Json(json!({"version": {"id": "v2.1", "status": "CURRENT", "version": self.compute,
                "min_version": "2.1", "updated": "2013-07-23T11:33:21Z", "links": [{"rel": "self", "href": format!("{}/compute/v2.1/", call.root)}]}})),
            ),
            ["compute", "v2.1", "flavors", "detail"] => (200, Out::Json(json!({"flavors": self.flavors}))),
            ["compute", "v2.1", "flavors", id, "os-extra_specs"] => {
                let found =
                    self.flavors.iter().find(|f| f["id"] == *id).and_then(|f| f.get("extra_specs")).cloned();
                (200, Out::Json(json!({"extra_specs": found.unwrap_or_else(|| json!({}))})))
            }
            ["compute", "v2.1", "servers", id, "action"]
                if call.json.get("os-getConsoleOutput").is_some() =>
            {
                let there =
                    self.things.get("compute/servers").is_some_and(|s| s.iter().any(|s| s["id"] == *id));
                if there { (200, Out::Json(json!({"output": self.console}))) } else { missing() }
            }
            ["image"] => (
                300,
                Out::Json(json!({"versions": [{"id": "v2.9", "status": "CURRENT",
                "links": [{"rel": "self", "href": format!("{}/image/v2/", call.root)}]}]})),
            ),
            ["image", "v2", "images"] if call.method == Method::GET => {
                let mut all = self.images.clone();
                all.extend(self.things.get("image/images").into_iter().flatten().cloned());
                (
                    200,
                    Out::Json(json!({"images": all, "schema": "/v2/schemas/images", "first": "/v2/images"})),
                )
            }
            ["image", "v2", "images", id, "file"] => self.file(call, id),
            ["network", "v2.0", "default-security-group-rules"] => match &self.default_rules {
                Some(rules) => (200, Out::Json(json!({"default_security_group_rules": rules}))),
                None => missing(),
            },
            ["network", "v2.0", "routers", _, "add_router_interface" | "remove_router_interface"] => {
                (200, Out::Json(json!({"id": "x"})))
            }
            ["volume", "v3"] => (
                300,
                Out::Json(
                    json!({"versions": [{"id": "v3.0", "status": "CURRENT", "version": "3.70", "min_version": "3.0",
                "updated": "2016-02-08T12:20:21Z", "links": [{"rel": "self", "href": format!("{}/volume/v3/", call.root)}]}]}),
                ),
            ),
            ["volume", "v3", _, "types"] => (200, Out::Json(json!({"volume_types": self.volume_types}))),
            ["volume", "v3", _, "backups", id, "restore"] => self.restore(call, id),
            ["volume", "v3", _, "volumes", id, "action"] => self.copy(call, id),
            ["keys"] => (
                300,
                Out::Json(
                    json!({"versions": {"values": [{"id": "v1", "status": "stable", "updated": "2015-04-28T00:00:00Z",
                "links": [{"rel": "self", "href": format!("{}/keys/v1/", call.root)}], "media-types": []}]}}),
                ),
            ),
            ["keys", "v1", "secrets", _, "payload"] => (200, Out::Bytes(b"foo".to_vec())),
            ["volume", _, _, rest @ ..] => self.collection(call, "volume", rest),
            [service, _, rest @ ..] => self.collection(call, service, rest),
            _ => missing(),
        }
    }

    fn token(&self, call: &Call) -> Value {
        let endpoint = |kind: &str| match kind {
            "identity" => format!("{}/identity/v3", call.root),
            "compute" => format!("{}/compute/v2.1", call.root),
            "image" => format!("{}/image", call.root),
            "network" => format!("{}/network", call.root),
            "key-manager" => format!("{}/keys", call.root),
            "object-store" => format!("{}/swift/v1", call.s3[self.s3]),
            "volume" | "volumev3" | "block-storage" => format!("{}/volume/v3/{PROJECT}", call.root),
            other => format!("{}/{other}", call.root),
        };
        let catalog: Vec<Value> = self.catalog.iter().map(|kind| json!({
            "type": kind, "name": kind, "id": kind,
            "endpoints": [{"interface": "public", "region": "Stub", "region_id": "Stub", "url": endpoint(kind), "id": format!("{kind}-e")}],
        })).collect();
        json!({"token": {
            "methods": ["password"], "expires_at": "2099-01-01T00:00:00.000000Z", "issued_at": "2026-01-01T00:00:00.000000Z",
            "user": {"id": "u", "name": "u", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": PROJECT, "name": "p", "domain": {"id": "default", "name": "Default"}},
            "roles": self.roles.iter().map(|r| json!({"id": r, "name": r})).collect::<Vec<_>>(),
            "catalog": catalog, "audit_ids": ["a"], "is_domain": false,
        }})
    }

    fn id(&mut self) -> String {
        self.next += 1;
        format!("00000000-0000-4000-8000-{:012}", self.next)
    }

    fn insert(&mut self, service: &str, collection: &str, mut thing: Map<String, Value>) -> Value {
        let id = self.id();
        thing.insert("id".into(), json!(id));
        let (status, extra) = match collection {
            "volumes" => {
                (self.volume_status.as_str(), json!({"left": self.slow, "attachments": [], "size": 1}))
            }
            "backups" => (self.backup_status.as_str(), json!({})),
            "servers" => (
                "ACTIVE",
                json!({"addresses": {"net": [{"addr": "10.1.0.100", "version": 4, "OS-EXT-IPS:type": "fixed"}]}, "flavor": {}, "links": [], "metadata": {}}),
            ),
            "security-groups" => ("", json!({"security_group_rules": self.group_rules})),
            "images" => ("queued", json!({"visibility": "private"})),
            _ => ("ACTIVE", json!({"project_id": PROJECT})),
        };
        thing.insert("status".into(), json!(status));
        if let Value::Object(extra) = extra {
            thing.extend(extra);
        }
        let value = Value::Object(thing);
        self.things.entry(format!("{service}/{collection}")).or_default().push(value.clone());
        value
    }

    fn collection(&mut self, call: &Call, service: &str, rest: &[&str]) -> (u16, Out) {
        let rest: Vec<&str> = rest.iter().filter(|s| **s != "detail").copied().collect();
        let Some((collection, tail)) = rest.split_first() else { return missing() };
        let Some((_, _, list, one)) = COLLECTIONS.iter().find(|(s, c, ..)| *s == service && c == collection)
        else {
            return missing();
        };
        let key = format!("{service}/{collection}");
        match (&call.method, tail) {
            (&Method::POST, []) => {
                let body = if one.is_empty() { &call.json } else { &call.json[*one] };
                let made = self.insert(service, collection, body.as_object().cloned().unwrap_or_default());
                if service == "keys" {
                    let reference =
                        format!("{}/keys/v1/secrets/{}", call.root, made["id"].as_str().unwrap_or_default());
                    if let Some(last) = self.things.get_mut(&key).and_then(|t| t.last_mut()) {
                        last["secret_ref"] = json!(reference);
                    }
                    return (201, Out::Json(json!({"secret_ref": reference})));
                }
                (201, Out::Json(if one.is_empty() { made } else { json!({*one: made}) }))
            }
            (&Method::GET, []) => {
                let hidden = service == "keys" && !self.lists_secrets;
                let all = self.things.get(&key).cloned().unwrap_or_default();
                let found: Vec<Value> =
                    all.into_iter().filter(|t| !hidden && matches(t, &call.query)).collect();
                (200, Out::Json(json!({*list: found, "total": 0})))
            }
            (&Method::GET, [id]) => {
                let Some(found) =
                    self.things.get_mut(&key).and_then(|t| t.iter_mut().find(|t| t["id"] == **id))
                else {
                    return missing();
                };
                let left = found["left"].as_u64().unwrap_or(0);
                if left > 0 {
                    found["left"] = json!(left - 1);
                    let mut early = found.clone();
                    early["status"] = json!("creating");
                    return (200, Out::Json(json!({*one: early})));
                }
                (200, Out::Json(if one.is_empty() { found.clone() } else { json!({*one: found}) }))
            }
            (&Method::DELETE, [id]) => {
                let Some(all) = self.things.get_mut(&key) else { return missing() };
                let before = all.len();
                all.retain(|t| t["id"] != **id);
                if all.len() == before { missing() } else { (204, Out::Json(Value::Null)) }
            }
            _ => missing(),
        }
    }

    fn file(&mut self, call: &Call, id: &str) -> (u16, Out) {
        let images = self.things.get_mut("image/images");
        let Some(image) = images.and_then(|t| t.iter_mut().find(|t| t["id"] == id)) else { return missing() };
        if call.method == Method::PUT {
            image["status"] = json!("active");
            self.files.insert(id.into(), call.bytes.clone());
            return (204, Out::Json(Value::Null));
        }
        (200, Out::Bytes(self.files.get(id).cloned().unwrap_or_default()))
    }

    fn restore(&mut self, call: &Call, id: &str) -> (u16, Out) {
        let backup =
            self.things.get("volume/backups").and_then(|t| t.iter().find(|t| t["id"] == id)).cloned();
        let Some(backup) = backup else { return missing() };
        let name = call.json.pointer("/restore/name").cloned().unwrap_or(json!("restored"));
        let mut volume = Value::Null;
        if self.restores {
            let image = self
                .things
                .get("volume/volumes")
                .and_then(|t| t.iter().find(|v| v["id"] == backup["volume_id"]))
                .map(|v| v["imageRef"].clone());
            let mut thing = Map::new();
            thing.insert("name".into(), name.clone());
            thing.insert("imageRef".into(), image.unwrap_or_default());
            volume = self.insert("volume", "volumes", thing);
        }
        (
            202,
            Out::Json(json!({"restore": {"backup_id": id, "volume_id": volume["id"], "volume_name": name}})),
        )
    }

    /// A volume as an image: what was in the image the volume came from.
    fn copy(&mut self, call: &Call, id: &str) -> (u16, Out) {
        let volume =
            self.things.get("volume/volumes").and_then(|t| t.iter().find(|t| t["id"] == id)).cloned();
        let Some(volume) = volume else { return missing() };
        let content =
            self.files.get(volume["imageRef"].as_str().unwrap_or_default()).cloned().unwrap_or_default();
        let mut thing = Map::new();
        let name = call.json.pointer("/os-volume_upload_image/image_name").cloned().unwrap_or_default();
        thing.insert("name".into(), name);
        let made = self.insert("image", "images", thing);
        if let Some(last) = self.things.get_mut("image/images").and_then(|t| t.last_mut()) {
            last["status"] = json!("active");
        }
        self.files.insert(made["id"].as_str().unwrap_or_default().into(), content);
        (202, Out::Json(json!({"os-volume_upload_image": {"image_id": made["id"]}})))
    }
}

fn missing() -> (u16, Out) {
    (404, Out::Json(json!({"itemNotFound": {"message": "not found", "code": 404}})))
}

/// Whether a thing matches the filters that the cases use.
fn matches(thing: &Value, query: &str) -> bool {
    query.split('&').filter_map(|p| p.split_once('=')).all(|(name, value)| {
        let value = value.replace("%5E", "^").replace("%24", "$");
        match name {
            "name" => thing["name"].as_str() == Some(value.trim_start_matches('^').trim_end_matches('$')),
            "router:external" | "router%3Aexternal" => thing["router:external"] == json!(true),
            "id" => thing["id"].as_str() == Some(value.as_str()),
            "network_id" | "device_id" | "status" | "shared" => false,
            _ => true,
        }
    })
}
