//! A cloud moves: to PostgreSQL and back, into a backup and out of it, from the schema of the version before.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::World;
use crate::api::{Answer, Api, until};
use crate::postgres;

/// What a tenant has after a while.
async fn furnish(api: &Api) {
    let network = api.make("/network/v2.0/networks", json!({"network": {"name": "moved ü"}})).await;
    let subnet =
        json!({"subnet": {"network_id": network["network"]["id"], "ip_version": 4, "cidr": "10.9.0.0/24"}});
    api.make("/network/v2.0/subnets", subnet).await;
    api.make("/network/v2.0/routers", json!({"router": {"name": "r"}})).await;
    api.make(
        "/compute/v2.1/os-keypairs",
        json!({"keypair": {"name": "k", "public_key":
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIiZ5nMNyzQZ9kTBdT5Ztw9QaDrNxiQWhG2V0C5CVdmZ t"}}),
    )
    .await;
    let image = api.get("/image/v2/images?name=mini").await["images"][0]["id"].clone();
    let network = api.get("/network/v2.0/networks?name=private").await["networks"][0]["id"].clone();
    let flavor = api.get("/compute/v2.1/flavors?limit=1").await["flavors"][0]["id"].clone();
    let body = json!({"server": {"name": "s", "imageRef": image, "flavorRef": flavor, "key_name": "k",
        "networks": [{"uuid": network}]}});
    api.make("/compute/v2.1/servers", body).await;
    let project = api.get("/identity/v3/auth/projects").await["projects"][0]["id"].clone();
    let volumes = format!("/volume/v3/{}/volumes", project.as_str().unwrap());
    api.make(&volumes, json!({"volume": {"size": 1, "name": "v"}})).await;
    at_rest(api).await;
}

/// Nothing is on its way.
async fn at_rest(api: &Api) {
    let rested = async || {
        let servers = api.get("/compute/v2.1/servers/detail").await;
        let ports = api.get("/network/v2.0/ports").await;
        let mut servers = servers["servers"].as_array().unwrap().iter();
        let bound = |p: &&Value| p["device_owner"].as_str().is_some_and(|o| o.starts_with("compute:"));
        servers.all(|s| s["status"] == "ACTIVE" && s["OS-EXT-STS:task_state"].is_null())
            && ports["ports"].as_array().unwrap().iter().filter(bound).all(|p| p["status"] == "ACTIVE")
    };
    until("nothing is on its way", Duration::from_secs(30), rested).await;
}

fn config(world: &World, database: &str) -> String {
    let file = world.state().with_extension("toml");
    std::fs::write(
        &file,
        format!("bcrypt_rounds = 4\nlisten = \"127.0.0.1:0\"\nsim_hosts = 2\ndatabase = \"{database}\"\n"),
    )
    .unwrap();
    file.to_str().unwrap().to_owned()
}

fn up(world: &World, config: &str) {
    world.allod(&["up", "--detach", "--config", config]);
}

fn same(before: &[(String, String)], after: &[(String, String)]) {
    for (one, other) in before.iter().zip(after) {
        assert_eq!(one, other);
    }
    assert_eq!(before.len(), after.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_moves_to_postgresql_and_back() {
    let database = postgres::Server::start();
    let world = World::up("");
    let api = world.login("demo").await;
    furnish(&api).await;
    let before = api.everything().await;
    let refused = world.run(&["database", "copy", "--to", &database.url()]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("is up"));
    world.allod(&["down"]);
    let with_password = database.url().replace("postgres@", "postgres:secret@");
    let refused = world.run(&["database", "copy", "--to", &with_password]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("passwordfile"));
    let told = world.allod(&["database", "copy", "--to", &database.url()]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("compute_servers"));
    let again = world.run(&["database", "copy", "--to", &database.url()]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"), "{again:?}");

    up(&world, &config(&world, &database.url()));
    // A token of before the move is good after it.
    at_rest(&api).await;
    same(&before, &api.everything().await);
    let network = json!({"network": {"name": "made on PostgreSQL"}});
    world.login("demo").await.make("/network/v2.0/networks", network).await;
    let there = api.everything().await;
    world.allod(&["down"]);

    let file = world.state().join("db/back.sqlite");
    world.allod(&["database", "copy", "--to", &format!("sqlite://{}", file.display())]);
    up(&world, &config(&world, &format!("sqlite://{}", file.display())));
    at_rest(&api).await;
    same(&there, &api.everything().await);
}

/// Creates and deletes for as long as it may.
async fn load(api: Api, stop: Arc<AtomicBool>) -> usize {
    let mut done = 0;
    while !stop.load(Ordering::SeqCst) {
        let body = json!({"network": {"name": "load"}});
        let made = api.make("/network/v2.0/networks", body).await;
        let path = format!("/network/v2.0/networks/{}", made["network"]["id"].as_str().unwrap());
        assert!(matches!(api.call("DELETE", &path, None).await, Answer::Told(204, _)));
        done += 1;
    }
    done
}

/// Restores into `database` (empty: SQLite) and compares what the APIs say.
async fn restored(backup: &Path, database: &str, before: &[(String, String)], passwords: &str) {
    let world = World::empty();
    let file = config(&world, database);
    let backup = backup.to_str().unwrap();
    world.allod(&["restore", "--input", backup, "--config", &file]);
    assert_eq!(world.read("secrets.json"), passwords);
    let again = world.run(&["restore", "--input", backup, "--config", &file]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("there already"));
    // The hosts come back with what they had.
    up(&world, &file);
    let api = world.login("demo").await;
    at_rest(&api).await;
    same(before, &without_load(api.everything().await));
    let images = api.get("/image/v2/images?name=mini").await;
    let path = format!("/image/v2/images/{}/file", images["images"][0]["id"].as_str().unwrap());
    assert!(matches!(api.call("GET", &path, None).await, Answer::Told(200, _)), "the image has its bytes");
    furnish_more(&api).await;
}

async fn furnish_more(api: &Api) {
    let body = json!({"network": {"name": "after"}});
    api.make("/network/v2.0/networks", body).await;
}

/// One network of the load may be there or not.
fn without_load(mut all: Vec<(String, String)>) -> Vec<(String, String)> {
    for (path, text) in &mut all {
        if path == "/network/v2.0/networks" {
            let mut body: Value = serde_json::from_str(text).unwrap();
            body["networks"].as_array_mut().unwrap().retain(|n| n["name"] != "load");
            *text = body.to_string();
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_the_cloud() {
    let database = postgres::Server::start();
    let world = World::up("");
    let api = world.login("demo").await;
    furnish(&api).await;
    let before = api.everything().await;
    let stop = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn(load(api.clone(), stop.clone()));
    let file = world.state().join("backup.gz");
    let name = file.to_str().unwrap().to_owned();
    let backed_up = tokio::task::spawn_blocking(move || {
        world.allod(&["backup", "--output", &name, "--images"]);
        let again = world.run(&["backup", "--output", &name]);
        assert!(String::from_utf8_lossy(&again.stderr).contains("there already"));
        world
    });
    let world = backed_up.await.unwrap();
    stop.store(true, Ordering::SeqCst);
    assert!(loading.await.unwrap() > 0);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let passwords = world.read("secrets.json");
    world.allod(&["down"]);

    let whole = std::fs::read(&file).unwrap();
    let torn = world.state().join("torn.gz");
    std::fs::write(&torn, &whole[..whole.len() - 100]).unwrap();
    let refused = World::empty().run(&["restore", "--input", torn.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && (told.contains("cut off") || told.contains("damaged")), "{told}");

    restored(&file, "", &before, &passwords).await;
    restored(&file, &database.url(), &before, &passwords).await;
}

/// A cloud of the version before: `allod up --sim-hosts 2`, what `furnish` makes, `allod backup`.
const PREVIOUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/previous.backup.gz");

async fn upgraded(database: &str) {
    let world = World::empty();
    let file = config(&world, database);
    world.allod(&["restore", "--input", PREVIOUS, "--config", &file]);
    let told: Value = serde_json::from_slice(&world.allod(&["upgrade", "--check", "--json"]).stdout).unwrap();
    assert_eq!(told["contracts"], false, "agents and servers of the version before go on: {told}");
    let pending = told["pending"].as_array().unwrap().len();
    let again: Value =
        serde_json::from_slice(&world.allod(&["upgrade", "--check", "--json"]).stdout).unwrap();
    assert_eq!(again["pending"].as_array().unwrap().len(), pending, "asking changes nothing");
    up(&world, &file);
    let api = world.login("demo").await;
    at_rest(&api).await;
    let servers = api.get("/compute/v2.1/servers").await;
    assert_eq!(servers["servers"][0]["name"], "s");
    let keys = api.get("/compute/v2.1/os-keypairs").await;
    assert_eq!(keys["keypairs"][0]["keypair"]["name"], "k");
    furnish_more(&api).await;
    let text = String::from_utf8(world.allod(&["upgrade", "--check"]).stdout).unwrap();
    assert!(text.contains("up to date"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_of_the_version_before_is_upgraded() {
    let database = postgres::Server::start();
    upgraded("").await;
    upgraded(&database.url()).await;
}
