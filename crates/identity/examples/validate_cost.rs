//! What a validation costs: `GET /v3/auth/tokens` through the real router on a SQLite file, CPU of the whole process.
//!
//! `cargo run --release -p identity --example validate_cost`

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::testing::Client;
use base::{Entropy, SystemClock};
use identity::{Bootstrap, BootstrapEndpoint, Config, State};
use serde_json::json;
use store::Store;

fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

async fn client(several_servers: bool, directory: &std::path::Path) -> Result<(Client, String), base::Error> {
    let clock = Arc::new(SystemClock);
    let path = directory.join(format!("{several_servers}.db"));
    let store =
        Store::sqlite(&path, clock.clone(), Entropy::system(), &[("identity", identity::MIGRATIONS)]).await?;
    let config = Config { bcrypt_cost: 12, several_servers, ..Config::default() };
    let state = State::new(config, store, clock, Entropy::system())?;
    let endpoint = |n: usize| BootstrapEndpoint {
        service_type: format!("service-{n}"),
        name: format!("name-{n}"),
        url: format!("https://cloud.test/{n}/%(project_id)s"),
    };
    let endpoints = (0..8).map(endpoint).collect();
    let what = Bootstrap { admin_password: "secret".into(), region: "RegionOne".into(), endpoints };
    identity::bootstrap(&state, what).await?;
    let client = Client::new(api::router(state, identity::ops()));
    let user = json!({"name": "admin", "domain": {"id": "default"}, "password": "secret"});
    let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
    let login =
        json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}});
    let (started, before) = (Instant::now(), cpu());
    let answer = client.post("/v3/auth/tokens", login).await;
    println!("login: {} after {:?}, {:?} CPU", answer.status, started.elapsed(), cpu() - before);
    Ok((client, answer.header("x-subject-token").to_owned()))
}

#[tokio::main]
async fn main() -> Result<(), base::Error> {
    let directory = tempfile::tempdir().map_err(base::Error::internal)?;
    for (name, several) in [("one server", false), ("several servers", true)] {
        let (client, token) = client(several, directory.path()).await?;
        let client = client.with_token(&token).with_header("x-subject-token", &token);
        let count = 20_000;
        let (started, before) = (Instant::now(), cpu());
        let mut bytes = 0;
        for _ in 0..count {
            let answer = client.get("/v3/auth/tokens").await;
            if answer.status != 200 {
                return Err(base::Error::internal(answer.text()));
            }
            bytes = answer.body.len();
        }
        let (wall, used) = (started.elapsed(), cpu() - before);
        println!("{name}: {bytes} bytes, {:?} wall, {:?} CPU each", wall / count, used / count);
    }
    Ok(())
}
