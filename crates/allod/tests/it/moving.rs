//! A cloud moves: to PostgreSQL and back, into a backup and out of it, from the schema of the version before.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::api::{Answer, Api, until};
use crate::{World, postgres, walk};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_moves_to_postgresql_and_back() {
    let database = postgres::Server::start();
    let world = World::up("");
    let api = world.login("demo").await;
    furnish(&api).await;
    let before = walk::everything(&world.login("admin").await).await;
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
    walk::same(&before, &world.login("admin").await).await;
    let network = json!({"network": {"name": "made on PostgreSQL"}});
    world.login("demo").await.make("/network/v2.0/networks", network).await;
    let there = walk::everything(&world.login("admin").await).await;
    world.allod(&["down"]);

    let file = world.state().join("db/back.sqlite");
    world.allod(&["database", "copy", "--to", &format!("sqlite://{}", file.display())]);
    up(&world, &config(&world, &format!("sqlite://{}", file.display())));
    at_rest(&api).await;
    walk::same(&there, &world.login("admin").await).await;
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

/// Restores into `database` (empty: SQLite) and compares everything that the APIs say.
async fn restored(backup: &Path, key: [&str; 2], database: &str, before: &Before) {
    let world = World::empty();
    let file = config(&world, database);
    let restore = ["restore", "--input", backup.to_str().unwrap(), "--config", &file];
    let refused = world.run(&restore);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is encrypted"), "{refused:?}");
    let wrong = world.run(&[&restore[..], &["--identity", before.wrong.to_str().unwrap()]].concat());
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && told.contains("cannot be decrypted"), "{told}");
    assert!(!world.state().join("db/allod.sqlite").exists() && !world.state().join("fernet/0").exists());
    let restore = [&restore[..], &key].concat();
    world.allod(&restore);
    assert_eq!(world.read("secrets.json"), before.passwords);
    let again = world.run(&restore);
    assert!(String::from_utf8_lossy(&again.stderr).contains("there already"));
    // The hosts come back with what they had.
    up(&world, &file);
    let api = world.login("demo").await;
    at_rest(&api).await;
    // One network of the load may be there or not.
    for left in api.get("/network/v2.0/networks?name=load").await["networks"].as_array().unwrap() {
        let path = format!("/network/v2.0/networks/{}", left["id"].as_str().unwrap());
        assert!(matches!(api.call("DELETE", &path, None).await, Answer::Told(204, _)));
    }
    println!("{} answers are the same", walk::same(&before.answers, &world.login("admin").await).await);
    let images = api.get("/image/v2/images?name=mini").await;
    let path = format!("/image/v2/images/{}/file", images["images"][0]["id"].as_str().unwrap());
    assert!(matches!(api.call("GET", &path, None).await, Answer::Told(200, _)), "the image has its bytes");
    // Tokens of before the backup are good, and what was told to be secret is.
    assert!(matches!(
        before.api.at(&world.url()).call("GET", "/network/v2.0/networks", None).await,
        Answer::Told(200, _)
    ));
    furnish_more(&api).await;
}

/// What a backup is compared with.
struct Before {
    answers: std::collections::BTreeMap<String, String>,
    passwords: String,
    api: Api,
    /// A key that decrypts nothing.
    wrong: PathBuf,
}

async fn furnish_more(api: &Api) {
    let body = json!({"network": {"name": "after"}});
    api.make("/network/v2.0/networks", body).await;
}

/// An age identity in a file, and its public key.
fn identity(path: &Path) -> String {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    std::fs::write(path, identity.to_string().expose_secret()).unwrap();
    identity.to_public().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_the_cloud() {
    let database = postgres::Server::start();
    let world = World::up("");
    let api = world.login("demo").await;
    furnish(&api).await;
    let keys = tempfile::tempdir().unwrap();
    let file = |name: &str| keys.path().join(name);
    let (public, _) = (identity(&file("key")), identity(&file("wrong")));
    std::fs::write(file("passphrase"), "correct horse battery staple\n").unwrap();
    let before = Before {
        answers: walk::everything(&world.login("admin").await).await,
        passwords: world.read("secrets.json"),
        api: api.clone(),
        wrong: file("wrong"),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn(load(api.clone(), stop.clone()));
    let (to_key, to_words, words) = (file("to-key"), file("to-words"), file("passphrase"));
    let backed_up = tokio::task::spawn_blocking(move || {
        let to = |path: &Path, how: &[&str]| {
            world.run(&[&["backup", "--images", "--output", path.to_str().unwrap()], how].concat())
        };
        let refused = to(&to_key, &[]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--unencrypted"), "{refused:?}");
        let done = to(&to_key, &["--recipient", &public]);
        assert!(done.status.success(), "{done:?}");
        let again = to(&to_key, &["--unencrypted"]);
        assert!(String::from_utf8_lossy(&again.stderr).contains("there already"));
        let done = to(&to_words, &["--passphrase-file", words.to_str().unwrap()]);
        assert!(done.status.success(), "{done:?}");
        world
    });
    let world = backed_up.await.unwrap();
    stop.store(true, Ordering::SeqCst);
    assert!(loading.await.unwrap() > 0);
    let (to_key, to_words) = (file("to-key"), file("to-words"));
    assert_eq!(std::fs::metadata(&to_key).unwrap().permissions().mode() & 0o777, 0o600);
    world.allod(&["down"]);

    let whole = std::fs::read(&to_key).unwrap();
    assert!(whole.starts_with(b"age-encryption.org/v1"));
    let torn = file("torn");
    std::fs::write(&torn, &whole[..whole.len() - 100]).unwrap();
    let (torn, key) = (torn.to_str().unwrap().to_owned(), file("key").to_str().unwrap().to_owned());
    let refused = World::empty().run(&["restore", "--input", &torn, "--identity", &key]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && (told.contains("cut off") || told.contains("damaged")), "{told}");

    restored(&to_key, ["--identity", &key], "", &before).await;
    let words = file("passphrase");
    restored(&to_words, ["--passphrase-file", words.to_str().unwrap()], &database.url(), &before).await;
}

/// The keys of signed tokens and those of stored secrets are in a backup: what was signed and sealed before is good after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signed_tokens_and_sealed_secrets_outlive_a_restore() {
    const SIGNED: &str = "\n[identity]\ntoken_provider = \"jws\"\n";
    let signed = |world: &World| {
        let file = config(world, "");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text + SIGNED).unwrap();
        file
    };
    let world = World::empty();
    up(&world, &signed(&world));
    let api = world.login("demo").await;
    let claims = URL_SAFE_NO_PAD.decode(api.token().split('.').nth(1).unwrap()).unwrap();
    let user = serde_json::from_slice::<Value>(&claims).unwrap()["sub"].clone();
    let secret = json!({"credential": {"type": "cert", "blob": "what is sealed", "user_id": user}});
    let made = api.make("/identity/v3/credentials", secret).await;
    let path = format!("/identity/v3/credentials/{}", made["credential"]["id"].as_str().unwrap());
    let backups = tempfile::tempdir().unwrap();
    let backup = backups.path().join("backup");
    let backup = backup.to_str().unwrap();
    world.allod(&["backup", "--output", backup, "--unencrypted"]);
    world.allod(&["down"]);
    let restored = World::empty();
    let file = signed(&restored);
    restored.allod(&["restore", "--input", backup, "--config", &file]);
    for keys in ["jws-private-keys/private.pem", "credential-keys/1"] {
        assert_eq!(world.read(keys), restored.read(keys));
    }
    up(&restored, &file);
    let same = api.at(&restored.url());
    assert_eq!(same.get(&path).await["credential"]["blob"], "what is sealed");
}

/// A cloud of the version before: `allod up --sim-hosts 2`, what `furnish` makes, `allod backup`.
pub const PREVIOUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/previous.backup.gz");

async fn upgraded(database: &str) {
    let world = World::empty();
    let file = config(&world, database);
    world.allod(&["restore", "--input", PREVIOUS, "--config", &file]);
    let told: Value = serde_json::from_slice(&world.allod(&["upgrade", "--check", "--json"]).stdout).unwrap();
    assert_eq!(told["agents"].as_array().unwrap().len(), 2);
    let warnings = told["warnings"].to_string();
    assert!(warnings.contains("the agent of sim-1 does not tell its version"), "{warnings}");
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
    // Hosts report with their version; the check tells it.
    let told = async || {
        let text = String::from_utf8(world.allod(&["upgrade", "--check"]).stdout).unwrap();
        assert!(text.contains("up to date"), "{text}");
        let ours = format!("sim-1                    version {}", env!("CARGO_PKG_VERSION"));
        text.contains(&ours) && !text.contains("WARNING")
    };
    until("agents tell their version", Duration::from_secs(30), told).await;
    let status = String::from_utf8(world.allod(&["status"]).stdout).unwrap();
    assert!(status.contains(&format!("agent {}\n", env!("CARGO_PKG_VERSION"))), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_of_the_version_before_is_upgraded() {
    let database = postgres::Server::start();
    upgraded("").await;
    upgraded(&database.url()).await;
}
