//! `allod server`: all services behind one listener.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use api::{Service, Settings};
use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use base::{Clock, Entropy, HostId, ProjectId, SystemClock};
use contract::net::NetworkBackend;
use contract::services::{ControlPlane, HostAccess, Images, Networks, Placement, Volumes};
use identity::{BootstrapEndpoint, Place};
use reconcile::{Controller, Handle, Options};
use serde_json::json;
use store::{Schema, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bootstrap::{self, Secrets};
use crate::config::{Config, State};
use crate::pki::Pki;

/// Every service's migrations.
const SCHEMAS: &[Schema] = &[
    ("identity", identity::MIGRATIONS),
    ("image", image::MIGRATIONS),
    ("placement", placement::MIGRATIONS),
    ("network", network::MIGRATIONS),
    ("volume", volume::MIGRATIONS),
    ("compute", compute::MIGRATIONS),
];

/// The catalog: type, name, path of the public endpoint.
const CATALOG: [(&str, &str, &str); 7] = [
    ("identity", "keystone", "/identity/v3"),
    ("image", "glance", "/image"),
    ("placement", "placement", "/placement"),
    ("compute", "nova", "/compute/v2.1"),
    ("network", "neutron", "/network"),
    ("volumev3", "cinderv3", "/volume/v3/%(project_id)s"),
    ("block-storage", "cinder", "/volume/v3/%(project_id)s"),
];

/// The assembled cloud.
pub struct Cloud {
    /// All routes.
    pub router: Router,
    /// The running reconcilers.
    pub handle: Handle,
    store: Store,
    identity: Arc<identity::State>,
    network: Arc<network::State>,
    compute: Arc<compute::State>,
    fleet: Option<Arc<Fleet>>,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(state: &State) -> Result<()> {
    let mut config = state.config()?;
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    config.listen = listener.local_addr()?;
    state.keep(&config)?;
    let pki = Pki::open(&state.path("pki"), SystemClock.now())?;
    let secrets = bootstrap::secrets(state, &config)?;
    bootstrap::client_files(state, &config, &secrets, &pki)?;
    let cloud = assemble(state, &config).await?;
    populate(&cloud, &config, &secrets).await?;
    let (stop, stopped) = watch::channel(false);
    if let Some(fleet) = &cloud.fleet {
        simulate(state, &config, &cloud, fleet, &stopped)?;
    }
    let mut addresses = vec![config.listen.ip(), [127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
    addresses.extend(config.names.iter().filter_map(|n| n.parse::<std::net::IpAddr>().ok()));
    addresses.sort_unstable();
    addresses.dedup();
    let names: Vec<String> =
        config.names.iter().filter(|n| n.parse::<std::net::IpAddr>().is_err()).cloned().collect();
    let tls = pki.server_config(&addresses, &names)?;
    let serving = tokio::spawn(crate::listener::serve(listener, tls, cloud.router.clone(), stopped));
    tokio::spawn(cloud.identity.clone().housekeeping());
    crate::files::write_secret(&state.path("run/listening"), config.url().as_bytes())?;
    tracing::info!(url = config.url(), "serving");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(true);
    let _ = std::fs::remove_file(state.path("run/listening"));
    serving.await??;
    let _ = tokio::time::timeout(Duration::from_secs(5), cloud.handle.stop()).await;
    Ok(())
}

fn settings(config: &Config, prefix: &str) -> Settings {
    Settings {
        public_url: config.url(),
        prefix: prefix.to_owned(),
        auth_url: format!("{}/identity/v3", config.url()),
        ..Settings::default()
    }
}

fn policy(config: &Config, service: &str) -> Result<Option<String>> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read policy file {}", path.display()))
    };
    config.policy.get(service).map(read).transpose()
}

/// Joins the services: each is handed the others as traits.
pub async fn assemble(state: &State, config: &Config) -> Result<Cloud> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy = Entropy::system();
    let store = Store::open(&config.database_url(state), clock.clone(), entropy.clone(), SCHEMAS).await?;
    let identity = identity::State::new(
        identity::Config {
            settings: settings(config, "/identity"),
            policy_yaml: policy(config, "identity")?,
            keys: identity::Repository::Directory(state.path("fernet")),
            bcrypt_cost: config.bcrypt_rounds,
            ..identity::Config::default()
        },
        store.clone(),
        clock.clone(),
        entropy.clone(),
    )?;
    let auth = identity.authenticator();
    let image = image::State::new(
        image::Config {
            settings: settings(config, "/image"),
            policy_yaml: policy(config, "image")?,
            ..image::Config::new(state.path("images"))
        },
        store.clone(),
        auth.clone(),
        clock.clone(),
        entropy.clone(),
    )?;
    let placement = placement::State::new(
        placement::Config {
            settings: settings(config, "/placement"),
            policy_yaml: policy(config, "placement")?,
        },
        store.clone(),
        auth.clone(),
        clock.clone(),
        entropy.clone(),
    )?;
    let backend = network_backend(state, config);
    let network = network::State::new(
        network::Config {
            settings: settings(config, "/network"),
            policy_yaml: policy(config, "network")?,
            ..network::Config::default()
        },
        network::Parts {
            store: store.clone(),
            authenticator: auth.clone(),
            backend: backend.driver.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
        },
    )?;
    let images: Arc<dyn Images> = image.clone();
    let volume = volume::State::new(
        volume::Config {
            settings: settings(config, "/volume"),
            policy_yaml: policy(config, "volume")?,
            ..volume::Config::default()
        },
        store.clone(),
        auth.clone(),
        images.clone(),
        clock.clone(),
        entropy.clone(),
    )
    .await?;
    let nudge = compute::Nudge::default();
    network.set_nudge(Arc::new(nudge.clone()));
    volume.set_nudge(Arc::new(nudge.clone()));
    let compute = compute::State::new(
        compute::Config {
            settings: settings(config, "/compute"),
            policy_yaml: policy(config, "compute")?,
            ..compute::Config::default()
        },
        store.clone(),
        auth,
        clock.clone(),
        entropy.clone(),
        compute::Deps {
            images: images.clone(),
            networks: network.clone() as Arc<dyn Networks>,
            volumes: volume.clone() as Arc<dyn Volumes>,
            placement: placement.clone() as Arc<dyn Placement>,
            host_parts: vec![volume.clone()],
        },
        &nudge,
    )?;
    let questions = Arc::new(link::Questions::default());
    match &backend.fleet {
        Some(fleet) => compute.set_host_access(fleet.clone()),
        None => compute.set_host_access(questions.clone()),
    }
    let mut controller = Controller::new(store.clone(), clock, entropy);
    let many = Options { workers: 32, ..Options::default() };
    let reconcilers = [image.reconcilers(), volume.reconcilers(), compute.reconcilers()].concat();
    for reconciler in reconcilers {
        controller = controller.add(reconciler, many);
    }
    for (reconciler, options) in network::reconcilers(&network) {
        controller = controller.add(reconciler, options);
    }
    let handle = controller.start().await?;
    compute.set_controller(handle.clone());
    let control: Arc<dyn ControlPlane> = compute.clone();
    let router = Router::new()
        .merge(service(
            "/identity",
            &identity,
            identity::ops(),
            api::router(identity.clone(), identity::ops()),
        ))
        .merge(service("/image", &image, image::ops(), api::router(image.clone(), image::ops())))
        .merge(service(
            "/placement",
            &placement,
            placement::ops(),
            api::router(placement.clone(), placement::ops()),
        ))
        .merge(service("/network", &network, network::ops(), api::router(network.clone(), network::ops())))
        .merge(service("/volume", &volume, volume::ops(), api::router(volume.clone(), volume::ops())))
        .merge(service("/compute", &compute, compute::ops(), compute::router(compute.clone())))
        .merge(link::routes(control, images, questions))
        .merge(crate::status::routes(handle.clone()));
    Ok(Cloud { router, handle, store, identity, network, compute, fleet: backend.fleet })
}

/// A service under its prefix, and its OpenAPI document at `/openapi/<service>.json`, made when it is asked for.
fn service<S: Service>(prefix: &'static str, state: &Arc<S>, ops: Vec<api::Op<S>>, router: Router) -> Router {
    let (dialect, url) = (state.dialect(), format!("{}{prefix}", state.settings().public_url));
    let ops = Arc::new(ops);
    let document = move || {
        let (ops, url) = (ops.clone(), url.clone());
        async move { axum::Json(api::openapi::document(dialect, &ops, &url)).into_response() }
    };
    Router::new().route(&format!("/openapi{prefix}.json"), get(document)).nest_service(prefix, router)
}

struct Backend {
    driver: Arc<dyn NetworkBackend>,
    fleet: Option<Arc<Fleet>>,
}

/// Simulated hosts of this process, for questions to them.
#[derive(Default)]
pub struct Fleet {
    fabric: Arc<sim::SimNetwork>,
    agents: parking_lot::RwLock<BTreeMap<HostId, Arc<agent::Agent>>>,
}

#[async_trait::async_trait]
impl HostAccess for Fleet {
    async fn console_log(
        &self,
        host: HostId,
        server: base::ServerId,
        length: Option<usize>,
    ) -> base::Result<String> {
        let agent = self.agents.read().get(&host).cloned();
        match agent {
            Some(agent) => agent.console_log(host, server, length).await,
            None => Err(base::Error::unavailable(format!("Host {host} does not answer."))),
        }
    }
}

fn network_backend(state: &State, config: &Config) -> Backend {
    if config.sim_hosts > 0 {
        let fleet = Arc::new(Fleet::default());
        return Backend { driver: fleet.fabric.clone(), fleet: Some(fleet) };
    }
    let socket = ovn::engines::socket(state.dir());
    Backend {
        driver: Arc::new(ovn::Backend::connect(&socket, &socket, ovn::backend::Config::from_host())),
        fleet: None,
    }
}

/// What a cloud begins with: catalog, tenants, flavors, the external network; with simulated hosts also an image and a
/// network, so that clients and benchmarks have something to use.
async fn populate(cloud: &Cloud, config: &Config, secrets: &Secrets) -> Result<()> {
    let url = config.url();
    let endpoints = CATALOG.iter().map(|(kind, name, path)| BootstrapEndpoint {
        service_type: (*kind).to_owned(),
        name: (*name).to_owned(),
        url: format!("{url}{path}"),
    });
    let what = identity::Bootstrap {
        admin_password: secrets.admin.clone(),
        region: config.region.clone(),
        endpoints: endpoints.collect(),
    };
    identity::bootstrap(&cloud.identity, what).await?;
    let admin = cloud.identity.ensure_project("admin", "").await?;
    let demo = tenant(cloud, "demo", &secrets.demo).await?;
    tenant(cloud, "alt", &secrets.alt).await?;
    compute::seed_flavors(&cloud.store, true).await?;
    let external = network::ExternalNetwork {
        project_id: admin,
        name: "public".into(),
        physical_network: "public".into(),
        vlan: None,
        cidr: config.external.cidr,
        gateway: config.external.gateway,
        pool: config.external.first.zip(config.external.last),
    };
    cloud.network.ensure_external_network(external).await?;
    if config.sim_hosts > 0 {
        let private = network::PrivateNetwork {
            project_id: demo.clone(),
            name: "private".into(),
            cidr: "10.0.0.0/16".parse().context("a prefix")?,
            dns_servers: Vec::new(),
            external: None,
        };
        cloud.network.ensure_network(private).await?;
        demo_image(cloud, &secrets.demo).await?;
    }
    Ok(())
}

async fn tenant(cloud: &Cloud, name: &str, password: &str) -> Result<ProjectId> {
    let project = cloud.identity.ensure_project(name, "").await?;
    let user = cloud.identity.ensure_user(name, password, Some(&project)).await?;
    cloud.identity.ensure_assignment(&user, "member", &Place::Project(project.clone())).await?;
    cloud.identity.ensure_assignment(&user, "load-balancer_member", &Place::Project(project.clone())).await?;
    Ok(project)
}

/// An image `mini` of a raw boot sector: valid, tiny, and enough for hosts that boot nothing. Made through the API, as
/// its owner would.
async fn demo_image(cloud: &Cloud, password: &str) -> Result<()> {
    let login = json!({"auth": {
        "identity": {"methods": ["password"], "password": {
            "user": {"name": "demo", "domain": {"id": "default"}, "password": password}}},
        "scope": {"project": {"name": "demo", "domain": {"id": "default"}}},
    }});
    let (answer, _) =
        call(cloud, "POST", "/identity/v3/auth/tokens", "", "application/json", login.to_string()).await?;
    let token =
        answer.headers.get("x-subject-token").and_then(|t| t.to_str().ok()).context("no token")?.to_owned();
    let (_, images) =
        call(cloud, "GET", "/image/v2/images?name=mini&status=active", &token, "", String::new()).await?;
    if images["images"].as_array().is_some_and(|found| !found.is_empty()) {
        return Ok(());
    }
    let image = json!({"name": "mini", "disk_format": "raw", "container_format": "bare"}).to_string();
    let (_, image) = call(cloud, "POST", "/image/v2/images", &token, "application/json", image).await?;
    let path = format!("/image/v2/images/{}/file", image["id"].as_str().context("no image id")?);
    let mut disk = vec![0_u8; 1 << 20];
    if let Some(signature) = disk.get_mut(510..512) {
        signature.copy_from_slice(&[0x55, 0xaa]);
    }
    call(cloud, "PUT", &path, &token, "application/octet-stream", disk).await?;
    Ok(())
}

/// Calls our own API without a network in between.
async fn call(
    cloud: &Cloud,
    method: &str,
    path: &str,
    token: &str,
    content_type: &str,
    body: impl Into<axum::body::Body>,
) -> Result<(axum::http::response::Parts, serde_json::Value)> {
    use tower::ServiceExt;
    let mut request = axum::http::Request::builder().method(method).uri(path);
    for (name, value) in [("x-auth-token", token), ("content-type", content_type)] {
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    let answer = cloud.router.clone().oneshot(request.body(body.into())?).await?;
    let (parts, body) = answer.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await?;
    if !parts.status.is_success() {
        anyhow::bail!("{method} {path} answers {}: {}", parts.status, String::from_utf8_lossy(&bytes));
    }
    Ok((parts, serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// Agents on simulated drivers, in this process, joined to the control plane without a network in between.
fn simulate(
    state: &State,
    config: &Config,
    cloud: &Cloud,
    fleet: &Fleet,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    let entropy = Entropy::seeded(1);
    for n in 1..=config.sim_hosts {
        let host =
            sim::SimHost::new(&format!("sim-{n}"), sim::Profile::default(), &entropy, fleet.fabric.clone());
        let drivers = agent::Drivers {
            hypervisor: host.hypervisor,
            storage: host.storage,
            network: host.network,
            images: host.images,
        };
        // Ids follow from the seed: the same hosts after every restart.
        let id = HostId::random(&entropy);
        let config =
            agent::Config { host: id, state_dir: state.path(&format!("sim/{n}")), boot_id: "sim".into() };
        let agent = agent::Agent::new(config, drivers, cloud.compute.clone(), Arc::new(SystemClock))?;
        fleet.agents.write().insert(id, agent.clone());
        tokio::spawn(agent.run(stop.clone()));
    }
    Ok(())
}
