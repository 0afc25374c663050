//! What a cloud begins with: catalog, tenants, flavors, the external network.

use std::net::IpAddr;

use anyhow::{Context, Result};
use base::ProjectId;
use base::net::IpNet;
use identity::{BootstrapEndpoint, Place};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Cloud;

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

/// What a new cloud is given.
#[derive(Clone)]
pub struct Beginning {
    /// URL under which clients reach the API.
    pub url: String,
    /// Region in the catalog.
    pub region: String,
    /// Passwords of the first users.
    pub passwords: Passwords,
    /// The external network.
    pub external: External,
    /// Whether project `demo` also gets an image `mini` and a network `private`: for hosts that boot nothing.
    pub demo: bool,
}

/// Passwords of the first users.
#[derive(Clone, Serialize, Deserialize)]
pub struct Passwords {
    /// User `admin`, project `admin`.
    pub admin: String,
    /// User `demo`, project `demo`.
    pub demo: String,
    /// User `alt`, project `alt`.
    pub alt: String,
}

/// The external network that floating IPs come from.
#[derive(Debug, Clone)]
pub struct External {
    /// Its prefix.
    pub cidr: IpNet,
    /// Gateway of the cloud's routers.
    pub gateway: IpAddr,
    /// First and last address to give out; `None`: all but the gateway.
    pub pool: Option<(IpAddr, IpAddr)>,
}

/// Makes what is missing of a cloud's beginning; asked again it changes nothing.
///
/// # Errors
/// Where the database does not answer.
pub async fn populate(cloud: &Cloud, beginning: &Beginning) -> Result<()> {
    let Beginning { url, region, passwords, external, demo: demonstrate } = beginning;
    let endpoints = CATALOG.iter().map(|(kind, name, path)| BootstrapEndpoint {
        service_type: (*kind).to_owned(),
        name: (*name).to_owned(),
        url: format!("{url}{path}"),
    });
    let what = identity::Bootstrap {
        admin_password: passwords.admin.clone(),
        region: region.clone(),
        endpoints: endpoints.collect(),
    };
    identity::bootstrap(&cloud.identity, what).await?;
    let admin = cloud.identity.ensure_project("admin", "").await?;
    let demo = tenant(cloud, "demo", &passwords.demo).await?;
    tenant(cloud, "alt", &passwords.alt).await?;
    compute::seed_flavors(&cloud.store, true).await?;
    let external = network::ExternalNetwork {
        project_id: admin,
        name: "public".into(),
        physical_network: "public".into(),
        vlan: None,
        cidr: external.cidr,
        gateway: external.gateway,
        pool: external.pool,
    };
    cloud.network.ensure_external_network(external).await?;
    if *demonstrate {
        let private = network::PrivateNetwork {
            project_id: demo.clone(),
            name: "private".into(),
            cidr: "10.0.0.0/16".parse().context("a prefix")?,
            dns_servers: Vec::new(),
            external: None,
        };
        cloud.network.ensure_network(private).await?;
        demo_image(cloud, &passwords.demo).await?;
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

/// Calls the cloud's own API without a network in between; answers head and JSON body.
///
/// # Errors
/// Where the answer is no success; the text says which.
pub async fn call(
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
