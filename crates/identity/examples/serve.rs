//! The identity service alone on plain HTTP, in memory, for conformance runs while developing:
//! `cargo run -p identity --example serve -- 127.0.0.1:5000 DIR` writes DIR/clouds.yaml and serves until killed.

use std::net::SocketAddr;
use std::sync::Arc;

use base::{Entropy, SystemClock};
use identity::{Bootstrap, BootstrapEndpoint, Compliance, Config, Operator, State};
use store::Store;

#[tokio::main]
async fn main() -> base::Result<()> {
    let mut args = std::env::args().skip(1);
    let wrong = || base::Error::bad_request("usage: serve ADDRESS:PORT DIR");
    let address: SocketAddr = args.next().and_then(|a| a.parse().ok()).ok_or_else(wrong)?;
    let dir = args.next().ok_or_else(wrong)?;
    let clock = Arc::new(SystemClock);
    let store = Store::memory(clock.clone(), &[("identity", identity::MIGRATIONS)]).await?;
    let url = format!("http://{address}");
    let security_compliance = Compliance {
        lockout_failure_attempts: Some(2),
        lockout_duration: 5,
        unique_last_password_count: 2,
        ..Compliance::default()
    };
    let config = Config {
        settings: api::Settings { public_url: url.clone(), ..api::Settings::default() },
        bcrypt_cost: 4,
        operator: Operator { security_compliance, ..Operator::default() },
        ..Config::default()
    };
    let state = State::new(config, store, clock, Entropy::system())?;
    let password = Entropy::system().uuid().simple().to_string();
    let endpoint = BootstrapEndpoint {
        service_type: "identity".into(),
        name: "keystone".into(),
        url: format!("{url}/v3"),
    };
    let what =
        Bootstrap { admin_password: password.clone(), region: "RegionOne".into(), endpoints: vec![endpoint] };
    identity::bootstrap(&state, what).await?;
    let clouds = format!(
        "clouds:\n  admin:\n    auth: {{auth_url: '{url}/v3', username: admin, password: '{password}', project_name: admin, user_domain_name: Default, project_domain_name: Default}}\n    region_name: RegionOne\n"
    );
    std::fs::write(format!("{dir}/clouds.yaml"), clouds).map_err(base::Error::internal)?;
    let router = api::router(state, identity::ops());
    let listener = tokio::net::TcpListener::bind(address).await.map_err(base::Error::internal)?;
    axum::serve(listener, router).await.map_err(base::Error::internal)
}
