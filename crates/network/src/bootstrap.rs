//! What a new cloud starts with, made once and found again: an external network, and a network for a project to use.

use std::net::IpAddr;

use base::net::IpNet;
use base::{Error, NetworkId, ProjectId, Result, RouterId, SubnetId};
use contract::net::Key;
use store::{Meta, Query, Tx};

use crate::api::{self, EXTERNAL};
use crate::db::{self, routing, wake};
use crate::logic::ipam::{self, Pool};
use crate::model::{Network, Port, ROUTER_INTERFACE, Router, Subnet};
use crate::{Env, State};

/// An external network on a physical network.
#[derive(Debug, Clone)]
pub struct ExternalNetwork {
    /// Owner: the administrators' project.
    pub project_id: ProjectId,
    /// Name, `public`.
    pub name: String,
    /// Key of the hosts' bridge mappings.
    pub physical_network: String,
    /// VLAN; `None` for untagged.
    pub vlan: Option<u16>,
    /// Prefix.
    pub cidr: IpNet,
    /// Gateway: an address outside of the pool that the host or a router holds.
    pub gateway: IpAddr,
    /// Where floating IPs and router gateways take their addresses from; `None` = all but the gateway.
    pub pool: Option<(IpAddr, IpAddr)>,
}

/// A network of a project, with a router if it shall reach out.
#[derive(Debug, Clone)]
pub struct PrivateNetwork {
    /// Owner.
    pub project_id: ProjectId,
    /// Name, `private`.
    pub name: String,
    /// Prefix.
    pub cidr: IpNet,
    /// Name servers for guests.
    pub dns_servers: Vec<IpAddr>,
    /// The external network its router shall lead to; `None` = no router.
    pub external: Option<NetworkId>,
}

impl State {
    /// Makes the external network unless the project has one of that name; answers its id.
    ///
    /// # Errors
    /// `BadRequest` where prefix, gateway and pool do not fit; from the store.
    pub async fn ensure_external_network(&self, wanted: ExternalNetwork) -> Result<NetworkId> {
        let env = self.env.clone();
        self.write(move |tx| {
            let same = Query::new()
                .eq("project_id", &wanted.project_id)
                .eq("name", &wanted.name)
                .eq("external", true);
            if let Some(found) = tx.first::<Network>(&same)? {
                return Ok(found.id);
            }
            external(tx, &env, &wanted)
        })
        .await
    }

    /// Makes the network (and its subnet and router) unless the project has one of that name; answers its id.
    ///
    /// # Errors
    /// `BadRequest` where the prefix is none; `OverQuota`; from the store.
    pub async fn ensure_network(&self, wanted: PrivateNetwork) -> Result<NetworkId> {
        let env = self.env.clone();
        self.write(move |tx| {
            let same = Query::new()
                .eq("project_id", &wanted.project_id)
                .eq("name", &wanted.name)
                .eq("external", false);
            let net = match tx.first::<Network>(&same)? {
                Some(net) => net,
                None => private(tx, &env, &wanted)?,
            };
            if let Some(external) = wanted.external {
                connect(tx, &env, &net, external)?;
            }
            Ok(net.id)
        })
        .await
    }
}

fn subnet(env: &Env, net: &Network, cidr: IpNet, gateway: IpAddr) -> Subnet {
    Subnet {
        id: SubnetId::random(&env.entropy),
        meta: Meta::default(),
        project_id: net.project_id.clone(),
        network_id: net.id,
        name: format!("{}-subnet", net.name),
        description: String::new(),
        ip_version: ipam::version(cidr.network()),
        cidr: cidr.trunc(),
        gateway_ip: Some(gateway),
        enable_dhcp: false,
        dns_nameservers: Vec::new(),
        allocation_pools: ipam::default_pools(&cidr.trunc(), Some(gateway)),
        host_routes: Vec::new(),
        ipv6_ra_mode: None,
        ipv6_address_mode: None,
        subnetpool_id: None,
        service_types: Vec::new(),
        dns_publish_fixed_ip: false,
        tags: Default::default(),
    }
}

fn external(tx: &mut Tx<'_>, env: &Env, wanted: &ExternalNetwork) -> Result<NetworkId> {
    let mut net = api::blank_network(env, wanted.project_id.clone());
    net.name.clone_from(&wanted.name);
    net.external = true;
    net.is_default = true;
    net.mtu = env.config.provider_mtu;
    net.network_type = if wanted.vlan.is_some() { "vlan" } else { "flat" }.into();
    net.physical_network = Some(wanted.physical_network.clone());
    net.segmentation_id = wanted.vlan.map(u32::from);
    tx.insert(&mut net)?;
    api::set_wildcard(tx, env, &net, EXTERNAL, true)?;
    let mut subnet = subnet(env, &net, wanted.cidr, wanted.gateway);
    if let Some((start, end)) = wanted.pool {
        subnet.allocation_pools = vec![Pool { start, end }];
        ipam::check_pools(&subnet.cidr, &subnet.allocation_pools, subnet.gateway_ip)?;
    }
    if !ipam::usable(&subnet.cidr, wanted.gateway) {
        return Err(Error::bad_request(format!(
            "gateway {} is no address of {}",
            wanted.gateway, subnet.cidr
        )));
    }
    api::insert_subnet(tx, env, &net, subnet)?;
    Ok(net.id)
}

fn private(tx: &mut Tx<'_>, env: &Env, wanted: &PrivateNetwork) -> Result<Network> {
    let mut net = api::blank_network(env, wanted.project_id.clone());
    net.name.clone_from(&wanted.name);
    db::quota::claim::<Network>(tx, env, &wanted.project_id, "network", 1)?;
    tx.insert(&mut net)?;
    let mut subnet = subnet(env, &net, wanted.cidr, ipam::default_gateway(&wanted.cidr.trunc()));
    subnet.enable_dhcp = true;
    subnet.dns_nameservers.clone_from(&wanted.dns_servers);
    api::insert_subnet(tx, env, &net, subnet)?;
    tx.need::<Network>(&net.id)
}

/// Leads the network to the external one by a router, unless it has one already.
fn connect(tx: &mut Tx<'_>, env: &Env, net: &Network, external: NetworkId) -> Result<()> {
    let interfaces = Query::new().eq("network_id", net.id).eq("device_owner", ROUTER_INTERFACE);
    let subnets = db::networks::subnets_of(tx, net.id)?;
    let Some(subnet) = subnets.first() else { return Ok(()) };
    if tx.exists::<Port>(&interfaces)? {
        return Ok(());
    }
    let external = tx.need::<Network>(&external)?;
    db::quota::claim::<Router>(tx, env, &net.project_id, "router", 1)?;
    let mut router: Router = api::blank_router(env, net.project_id.clone());
    router.name = format!("{}-router", net.name);
    let id: RouterId = router.id;
    api::connect_gateway(tx, env, &mut router, &external, None)?;
    tx.insert(&mut router)?;
    api::interface_on(tx, env, &router, subnet)?;
    routing::touch(tx, &mut router)?;
    wake(tx, Key::Router(id))
}
