//! All services joined into one cloud, as a library: `allod server`, the simulator and tests build the same thing.
//!
//! A cloud is made of a [`Site`] (what an operator configures) and [`Parts`] (what differs between a real and a simulated
//! cloud: the database, the network backend, how live hosts are asked, time and chance). Every service is handed the others as
//! `contract` traits.
//!
//! Invariant: no policy and no I/O of its own; whatever happens, happens in a service. What is listening, and where keys
//! and images are kept, is the caller's business.
//!
//! Start reading at [`assemble`], then [`populate`].

mod populate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use api::{Service, Settings};
use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use base::{Clock, Entropy, HostId};
use contract::net::NetworkBackend;
use contract::services::{ControlPlane, HostAccess, Images, Networks, Placement, Volumes};
use reconcile::{Controller, Handle, Options, Shards, Sharing};
use store::{Schema, Store};

pub use populate::{Beginning, External, Passwords, call, populate};

/// Every service's migrations: what [`Store::open`] is to be given.
pub const SCHEMAS: &[Schema] = &[
    ("identity", identity::MIGRATIONS),
    ("image", image::MIGRATIONS),
    ("placement", placement::MIGRATIONS),
    ("network", network::MIGRATIONS),
    ("volume", volume::MIGRATIONS),
    ("compute", compute::MIGRATIONS),
];

/// What an operator configures.
#[derive(Debug, Clone)]
pub struct Site {
    /// URL under which clients reach the API, without a slash at the end.
    pub url: String,
    /// Where the keys of tokens are kept.
    pub keys: identity::Repository,
    /// Cost of password hashes.
    pub bcrypt_cost: u32,
    /// Rules for passwords and logins, limits, trusts, the audit trail.
    pub identity: identity::Operator,
    /// Directory of image files.
    pub images: PathBuf,
    /// How hosts are fenced and when they count as down.
    pub fencing: Fencing,
    /// Overrides of policy rules: texts of `policy.yaml` files by service.
    pub policy: BTreeMap<String, String>,
}

/// How hosts are fenced and when they count as down.
#[derive(Debug, Clone)]
pub struct Fencing {
    /// How long a host with leases runs its guests without hearing from the control plane.
    pub lease: Duration,
    /// How much later it is sure to have stopped them.
    pub margin: Duration,
    /// How long after its last sign of life a host counts as down.
    pub down_after: Duration,
}

impl Default for Fencing {
    fn default() -> Self {
        let compute = compute::Config::default();
        Fencing { lease: compute.lease, margin: compute.lease_margin, down_after: compute.down_after }
    }
}

/// What differs between a real and a simulated cloud.
pub struct Parts {
    /// The database, opened with [`SCHEMAS`].
    pub store: Store,
    /// The network backend.
    pub backend: Arc<dyn NetworkBackend>,
    /// How live hosts are asked; `None`: through the agents' link.
    pub hosts: Option<Arc<dyn HostAccess>>,
    /// How the work is shared with other replicas on the same database; `None`: this process does all of it.
    pub replica: Option<Replica>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Entropy,
}

/// One of several servers on a database.
pub struct Replica {
    /// How it takes part.
    pub sharing: Sharing,
    /// Carries a replica's certificate and trusts only the cloud's CA.
    pub http: reqwest::Client,
}

/// Hosts belong to the replica that has their shard.
struct HostOwners(Shards);

#[async_trait::async_trait]
impl link::Owners for HostOwners {
    fn owner(&self, host: HostId) -> link::Owner {
        match self.0.owner(&host.to_string()) {
            reconcile::Owner::Me => link::Owner::Me,
            reconcile::Owner::Other(replica) => link::Owner::Other(replica.address),
            reconcile::Owner::Nobody => link::Owner::Nobody,
        }
    }

    async fn moved(&self, host: HostId) {
        self.0.moved(&host.to_string()).await;
    }
}

/// The assembled cloud.
pub struct Cloud {
    /// All routes.
    pub router: Router,
    /// The running reconcilers.
    pub handle: Handle,
    /// The database.
    pub store: Store,
    /// Keystone v3.
    pub identity: Arc<identity::State>,
    /// Neutron v2.0.
    pub network: Arc<network::State>,
    /// Cinder v3.
    pub volume: Arc<volume::State>,
    /// Nova v2.1; the agents' [`ControlPlane`].
    pub compute: Arc<compute::State>,
}

impl Site {
    fn settings(&self, prefix: &str) -> Settings {
        Settings {
            public_url: self.url.clone(),
            prefix: prefix.to_owned(),
            auth_url: format!("{}/identity/v3", self.url),
            ..Settings::default()
        }
    }

    fn policy(&self, service: &str) -> Option<String> {
        self.policy.get(service).cloned()
    }
}

/// Joins the services: each is handed the others as traits.
///
/// # Errors
/// Where a policy file is wrong, keys cannot be read, or the database does not answer.
#[expect(clippy::too_many_lines, reason = "one paragraph per service, read from top to bottom")]
pub async fn assemble(site: &Site, parts: Parts) -> Result<Cloud> {
    let Parts { store, backend, hosts, replica, clock, entropy } = parts;
    let identity = identity_of(site, &store, &clock, &entropy)?;
    let auth = identity.authenticator();
    let image = image::State::new(
        image::Config {
            settings: site.settings("/image"),
            policy_yaml: site.policy("image"),
            ..image::Config::new(&site.images)
        },
        store.clone(),
        auth.clone(),
        clock.clone(),
        entropy.clone(),
    )?;
    let placement = placement::State::new(
        placement::Config { settings: site.settings("/placement"), policy_yaml: site.policy("placement") },
        store.clone(),
        auth.clone(),
        clock.clone(),
        entropy.clone(),
    )?;
    let network = network::State::new(
        network::Config {
            settings: site.settings("/network"),
            policy_yaml: site.policy("network"),
            ..network::Config::default()
        },
        network::Parts {
            store: store.clone(),
            authenticator: auth.clone(),
            backend,
            clock: clock.clone(),
            entropy: entropy.clone(),
        },
    )?;
    let images: Arc<dyn Images> = image.clone();
    let volume = volume::State::new(
        volume::Config {
            settings: site.settings("/volume"),
            policy_yaml: site.policy("volume"),
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
            settings: site.settings("/compute"),
            policy_yaml: site.policy("compute"),
            lease: site.fencing.lease,
            lease_margin: site.fencing.margin,
            down_after: site.fencing.down_after,
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
    let sharing = replica.as_ref().map(|r| r.sharing.clone());
    let mut controller = Controller::new(store.clone(), clock, entropy).sharing(sharing);
    let many = Options { workers: 32, ..Options::default() };
    for reconciler in [image.reconcilers(), volume.reconcilers()].concat() {
        controller = controller.add(reconciler, many);
    }
    // Under load fewer runs with more keys each: they share transactions.
    let together = Options { workers: 2, batch: 512, ..Options::default() };
    for reconciler in compute.reconcilers() {
        controller = controller.add(reconciler, together);
    }
    for (reconciler, options) in network::reconcilers(&network) {
        controller = controller.add(reconciler, options);
    }
    let handle = controller.start().await?;
    compute.set_controller(handle.waker());
    let owners = || Arc::new(HostOwners(handle.shards().clone()));
    let relay = replica.map(|r| Arc::new(link::Relay::new(owners(), r.http, questions.clone())));
    let access: Arc<dyn HostAccess> = match (hosts, &relay) {
        (Some(hosts), _) => hosts,
        (None, Some(relay)) => relay.clone(),
        (None, None) => questions.clone(),
    };
    compute.set_host_access(access);
    let control: Arc<dyn ControlPlane> = compute.clone();
    let agents = link::routes(control, images, questions);
    let agents = match relay {
        Some(relay) => link::relayed(agents, relay),
        None => agents,
    };
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
        .merge(agents);
    Ok(Cloud { router, handle, store, identity, network, volume, compute })
}

fn identity_of(
    site: &Site,
    store: &Store,
    clock: &Arc<dyn Clock>,
    entropy: &Entropy,
) -> Result<Arc<identity::State>> {
    let config = identity::Config {
        settings: site.settings("/identity"),
        policy_yaml: site.policy("identity"),
        keys: site.keys.clone(),
        bcrypt_cost: site.bcrypt_cost,
        operator: site.identity.clone(),
        ..identity::Config::default()
    };
    Ok(identity::State::new(config, store.clone(), clock.clone(), entropy.clone())?)
}

/// The identity service by itself, for services that are elsewhere: its state and its routes. Its catalog begins with
/// itself.
///
/// # Errors
/// Where a policy file is wrong, keys cannot be read, or the database does not answer.
pub async fn identity_alone(
    site: &Site,
    beginning: &Beginning,
    store: Store,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
) -> Result<(Arc<identity::State>, Router)> {
    let identity = identity_of(site, &store, &clock, &entropy)?;
    let endpoint = identity::BootstrapEndpoint {
        service_type: "identity".into(),
        name: "keystone".into(),
        url: format!("{}/identity", beginning.url),
    };
    let what = identity::Bootstrap {
        admin_password: beginning.passwords.admin.clone(),
        region: beginning.region.clone(),
        endpoints: vec![endpoint],
    };
    identity::bootstrap(&identity, what).await?;
    let routes = api::router(identity.clone(), identity::ops());
    let router = service("/identity", &identity, identity::ops(), routes);
    Ok((identity, router))
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
