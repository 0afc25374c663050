//! What other services ask of this one: [`contract::services::Networks`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use async_trait::async_trait;
use base::net::IpNet;
use base::{Error, NetworkId, PortId, ProjectId, Result, SecurityGroupId, SubnetId};
use contract::AuthContext;
use contract::host::MetadataPort;
use contract::services::{FixedIpInfo, NetworkInfo, Networks, PortInfo, PortRequest};
use store::{Query, Tx};

use crate::api::{EXTERNAL, SHARED};
use crate::db::ports::Want;
use crate::db::{self, groups, opened_to, openings, quota};
use crate::model::{DISTRIBUTED, FloatingIp, Network, Port, SecurityGroup, Subnet};
use crate::{Env, State};

fn no_network(id: NetworkId) -> Error {
    Error::not_found(format!("Network {id} could not be found.")).code("NetworkNotFound")
}

fn no_port(id: PortId) -> Error {
    Error::not_found(format!("Port {id} could not be found.")).code("PortNotFound")
}

fn network_info(net: &Network, shared: bool, subnets: Vec<SubnetId>) -> NetworkInfo {
    NetworkInfo {
        id: net.id,
        name: net.name.clone(),
        project_id: net.project_id.clone(),
        shared,
        external: net.external,
        subnets,
        port_security: net.port_security_enabled,
    }
}

/// Everything that several ports' infos need, read at once.
struct Surroundings {
    networks: BTreeMap<NetworkId, Network>,
    subnets: BTreeMap<SubnetId, Subnet>,
    metadata: BTreeMap<NetworkId, Port>,
    floating: BTreeMap<PortId, Vec<(IpAddr, IpAddr)>>,
    groups: BTreeMap<SecurityGroupId, String>,
}

impl Surroundings {
    fn read(tx: &mut Tx<'_>, ports: &[Port]) -> Result<Self> {
        let nets: BTreeSet<NetworkId> = ports.iter().map(|p| p.network_id).collect();
        let groups: BTreeSet<&SecurityGroupId> = ports.iter().flat_map(|p| &p.security_groups).collect();
        let of_nets = Query::new().is_in("network_id", &nets);
        let mut floating: BTreeMap<PortId, Vec<(IpAddr, IpAddr)>> = BTreeMap::new();
        for fip in tx.list::<FloatingIp>(&Query::new().is_in("port_id", ports.iter().map(|p| p.id)))? {
            if let (Some(port), Some(fixed)) = (fip.port_id, fip.fixed_ip_address) {
                floating.entry(port).or_default().push((fixed, fip.floating_ip_address));
            }
        }
        Ok(Surroundings {
            networks: tx
                .list::<Network>(&Query::new().is_in("id", &nets))?
                .into_iter()
                .map(|n| (n.id, n))
                .collect(),
            subnets: tx.list::<Subnet>(&of_nets)?.into_iter().map(|s| (s.id, s)).collect(),
            metadata: tx
                .list::<Port>(&of_nets.eq("device_owner", DISTRIBUTED))?
                .into_iter()
                .map(|p| (p.network_id, p))
                .collect(),
            floating,
            groups: tx
                .list::<SecurityGroup>(&Query::new().is_in("id", groups))?
                .into_iter()
                .map(|g| (g.id, g.name))
                .collect(),
        })
    }

    fn metadata_port(&self, net: NetworkId) -> Option<MetadataPort> {
        let port = self.metadata.get(&net)?;
        let address = |f: &crate::model::FixedIp| {
            IpNet::new(f.ip_address, self.subnets.get(&f.subnet_id)?.cidr.prefix_len()).ok()
        };
        Some(MetadataPort {
            port: port.id,
            mac: port.mac_address,
            addresses: port.fixed_ips.iter().filter_map(address).collect(),
        })
    }

    fn info(&self, port: &Port) -> PortInfo {
        let net = self.networks.get(&port.network_id);
        let fixed = |f: &crate::model::FixedIp| {
            let subnet = self.subnets.get(&f.subnet_id)?;
            Some(FixedIpInfo {
                subnet_id: subnet.id,
                ip: f.ip_address,
                cidr: subnet.cidr,
                gateway: subnet.gateway_ip,
                dns_servers: subnet.dns_nameservers.clone(),
                dhcp: subnet.enable_dhcp,
                host_routes: subnet.host_routes.iter().map(|r| (r.destination, r.nexthop)).collect(),
            })
        };
        PortInfo {
            id: port.id,
            network_id: port.network_id,
            network_name: net.map(|n| n.name.clone()).unwrap_or_default(),
            project_id: port.project_id.clone(),
            status: port.status.clone(),
            mac: port.mac_address,
            mtu: net.map_or(1500, |n| n.mtu),
            fixed_ips: port.fixed_ips.iter().filter_map(fixed).collect(),
            floating_ips: self.floating.get(&port.id).cloned().unwrap_or_default(),
            device_id: port.device_id.clone(),
            host: (!port.host_id.is_empty()).then(|| port.host_id.clone()),
            security_groups: port
                .security_groups
                .iter()
                .filter_map(|g| Some((*g, self.groups.get(g)?.clone())))
                .collect(),
            metadata_port: self.metadata_port(port.network_id),
        }
    }
}

fn info(tx: &mut Tx<'_>, port: &Port) -> Result<PortInfo> {
    Ok(Surroundings::read(tx, std::slice::from_ref(port))?.info(port))
}

/// Whether a project may put ports on a network.
fn may_use(tx: &mut Tx<'_>, net: &Network, project: &ProjectId) -> Result<bool> {
    Ok(net.project_id == *project || openings(tx, Some(project), net.id)?.contains(SHARED))
}

/// A request's port as far as it is known before it has an address.
fn port_of(env: &Env, net: &Network, groups: &BTreeSet<SecurityGroupId>, request: &PortRequest) -> Port {
    let mut port = db::ports::blank(env, net, request.project_id.clone());
    port.id = request.id;
    port.name = request.name.clone();
    port.device_id = request.device_id.clone();
    port.device_owner = request.device_owner.clone();
    port.host_id = request.host.clone();
    if crate::api::is_dns_name(&request.dns_name) {
        port.dns_name = request.dns_name.clone();
    }
    if port.port_security_enabled {
        port.security_groups.clone_from(groups);
    }
    port
}

/// The groups of a request's port, which are all the project's.
fn groups_of(tx: &mut Tx<'_>, env: &Env, request: &PortRequest) -> Result<BTreeSet<SecurityGroupId>> {
    if request.security_groups.is_empty() {
        return Ok(BTreeSet::from([groups::ensure_default(tx, env, &request.project_id)?.id]));
    }
    let wanted: BTreeSet<SecurityGroupId> = request.security_groups.iter().copied().collect();
    let found = tx.list::<SecurityGroup>(&Query::new().is_in("id", &wanted))?;
    let own =
        |id: &&SecurityGroupId| found.iter().any(|g| g.id == **id && g.project_id == request.project_id);
    match wanted.iter().find(|id| !own(id)) {
        None => Ok(wanted),
        Some(group) => {
            let text = format!("Security group {group} does not exist");
            Err(Error::bad_request(text).code("SecurityGroupNotFound"))
        }
    }
}

/// Makes ports of one project in one network.
fn make_ports(tx: &mut Tx<'_>, env: &Env, requests: &[&PortRequest]) -> Result<Vec<Port>> {
    let Some(first) = requests.first() else { return Ok(Vec::new()) };
    let net = tx.get::<Network>(&first.network_id)?.ok_or_else(|| no_network(first.network_id))?;
    if !may_use(tx, &net, &first.project_id)? {
        return Err(no_network(net.id));
    }
    quota::claim::<Port>(tx, env, &first.project_id, "port", requests.len())?;
    let subnets = db::networks::subnets_of(tx, net.id)?;
    if subnets.is_empty() {
        let text = format!("Network {} requires a subnet in order to boot instances on.", net.id);
        return Err(Error::bad_request(text).code("NetworkRequiresSubnet"));
    }
    let mut known: BTreeMap<&[SecurityGroupId], BTreeSet<SecurityGroupId>> = BTreeMap::new();
    let (mut made, mut plain) = (Vec::new(), Vec::new());
    for request in requests {
        let asked = request.security_groups.as_slice();
        if net.port_security_enabled && !known.contains_key(asked) {
            known.insert(asked, groups_of(tx, env, request)?);
        }
        let none = BTreeSet::new();
        let port = port_of(env, &net, known.get(asked).unwrap_or(&none), request);
        match request.fixed_ip {
            None => plain.push(port),
            Some(ip) => {
                let want = [Want { subnet: None, ip: Some(ip) }];
                made.push(db::ports::create(tx, env, &subnets, port, Some(&want), false)?);
            }
        }
    }
    made.extend(db::ports::create_many(tx, env, &subnets, plain)?);
    Ok(made)
}

/// Makes the ports that are missing, and binds those that are there to their hosts.
fn ensure_ports(tx: &mut Tx<'_>, env: &Env, requests: &[PortRequest]) -> Result<Vec<PortInfo>> {
    let held = tx.list::<Port>(&Query::new().is_in("id", requests.iter().map(|r| r.id)))?;
    let mut ports: BTreeMap<PortId, Port> = held.into_iter().map(|p| (p.id, p)).collect();
    let mut missing: BTreeMap<(NetworkId, &ProjectId), Vec<&PortRequest>> = BTreeMap::new();
    for request in requests {
        match ports.get_mut(&request.id) {
            Some(port) if port.host_id != request.host => {
                port.host_id.clone_from(&request.host);
                db::ports::update(tx, port)?;
            }
            Some(_) => {}
            None => missing.entry((request.network_id, &request.project_id)).or_default().push(request),
        }
    }
    for alike in missing.values() {
        ports.extend(make_ports(tx, env, alike)?.into_iter().map(|p| (p.id, p)));
    }
    let all: Vec<Port> = requests.iter().filter_map(|r| ports.get(&r.id).cloned()).collect();
    let around = Surroundings::read(tx, &all)?;
    Ok(all.iter().map(|p| around.info(p)).collect())
}

impl State {
    pub(crate) fn is_admin(&self, auth: &AuthContext) -> bool {
        use ::api::Service;
        self.policy().allows("context_is_admin", auth, &::api::Target::none())
    }

    /// Changes a port if it is there.
    async fn change_port<T: Send + 'static>(
        &self,
        id: PortId,
        work: impl Fn(&mut Port) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Option<(T, PortInfo)>> {
        self.write(move |tx| {
            let Some(mut port) = tx.get::<Port>(&id)? else { return Ok(None) };
            let before = port.clone();
            let result = work(&mut port)?;
            if port != before {
                db::ports::update(tx, &mut port)?;
            }
            Ok(Some((result, info(tx, &port)?)))
        })
        .await
    }

    fn sees(&self, auth: &AuthContext, project: &ProjectId) -> bool {
        auth.project_id() == Some(project) || self.is_admin(auth)
    }
}

/// A group of a project by id or name.
fn find_group(tx: &mut Tx<'_>, env: &Env, project: &ProjectId, text: &str) -> Result<SecurityGroupId> {
    if let Ok(id) = text.parse::<SecurityGroupId>()
        && tx.get::<SecurityGroup>(&id)?.is_some_and(|g| g.project_id == *project)
    {
        return Ok(id);
    }
    if text == "default" {
        return groups::ensure_default(tx, env, project).map(|g| g.id);
    }
    let rows = tx.list::<SecurityGroup>(&Query::new().eq("project_id", project).eq("name", text))?;
    match rows.as_slice() {
        [one] => Ok(one.id),
        [] => Err(Error::bad_request(format!("Security group {text} not found for project {project}."))),
        _ => Err(Error::conflict(format!(
            "Multiple security groups found matching '{text}'. Use an ID to be more specific."
        ))),
    }
}

#[async_trait]
impl Networks for State {
    async fn available(&self, auth: &AuthContext) -> Result<Vec<NetworkInfo>> {
        let project = auth.project_id().cloned();
        self.store
            .read(move |tx| {
                let shared: BTreeSet<NetworkId> =
                    opened_to(tx, project.as_ref(), SHARED)?.into_iter().collect();
                let mut any = vec![Query::new().is_in("id", &shared)];
                any.extend(project.as_ref().map(|p| Query::new().eq("project_id", p).eq("external", false)));
                let mut rows = tx.list::<Network>(&Query::new().any_of(any))?;
                rows.sort_by_key(|n| (n.meta.created_at, n.id));
                let mut infos = Vec::new();
                for net in &rows {
                    let subnets = db::networks::subnets_of(tx, net.id)?.iter().map(|s| s.id).collect();
                    infos.push(network_info(net, shared.contains(&net.id), subnets));
                }
                Ok(infos)
            })
            .await
    }

    async fn network(&self, auth: &AuthContext, id: NetworkId) -> Result<NetworkInfo> {
        let (project, admin) = (auth.project_id().cloned(), self.is_admin(auth));
        self.store
            .read(move |tx| {
                let net = tx.get::<Network>(&id)?.ok_or_else(|| no_network(id))?;
                let opened = openings(tx, project.as_ref(), id)?;
                let (shared, external) = (opened.contains(SHARED), opened.contains(EXTERNAL));
                if !admin && !shared && !external && project.as_ref() != Some(&net.project_id) {
                    return Err(no_network(id));
                }
                let subnets = db::networks::subnets_of(tx, id)?.iter().map(|s| s.id).collect();
                Ok(network_info(&net, shared, subnets))
            })
            .await
    }

    async fn port(&self, auth: &AuthContext, id: PortId) -> Result<PortInfo> {
        let found = self.store.read(move |tx| tx.get::<Port>(&id)?.map(|p| info(tx, &p)).transpose()).await?;
        found.filter(|p| self.sees(auth, &p.project_id)).ok_or_else(|| no_port(id))
    }

    async fn security_groups(&self, auth: &AuthContext, names: &[String]) -> Result<Vec<SecurityGroupId>> {
        let project = auth
            .project_id()
            .cloned()
            .ok_or_else(|| Error::bad_request("Security groups need a token that is scoped to a project."))?;
        let names = names.to_vec();
        let env = self.env.clone();
        self.write(move |tx| names.iter().map(|n| find_group(tx, &env, &project, n)).collect()).await
    }

    async fn ensure_ports(&self, requests: &[PortRequest]) -> Result<Vec<PortInfo>> {
        let (requests, env) = (requests.to_vec(), self.env.clone());
        self.write(move |tx| ensure_ports(tx, &env, &requests)).await
    }

    async fn claim_port(&self, port: PortId, device_id: &str, device_owner: &str) -> Result<PortInfo> {
        let (device, owner) = (device_id.to_owned(), device_owner.to_owned());
        let changed = self
            .change_port(port, move |p| {
                if !p.device_id.is_empty() && p.device_id != device {
                    let text = format!(
                        "Unable to complete operation on port {} for network {}. Port already has an attached device {}.",
                        p.id, p.network_id, p.device_id
                    );
                    return Err(Error::conflict(text).code("PortInUse"));
                }
                p.device_id.clone_from(&device);
                p.device_owner.clone_from(&owner);
                Ok(())
            })
            .await?;
        changed.map(|(_, info)| info).ok_or_else(|| no_port(port))
    }

    async fn bind_port(&self, port: PortId, host: Option<&str>) -> Result<()> {
        let wanted = host.unwrap_or_default().to_owned();
        let changed = self
            .change_port(port, move |p| {
                p.host_id.clone_from(&wanted);
                Ok(())
            })
            .await?;
        if changed.is_none() && host.is_some() { Err(no_port(port)) } else { Ok(()) }
    }

    async fn release_port(&self, port: PortId, device_id: &str) -> Result<()> {
        let device = device_id.to_owned();
        self.change_port(port, move |p| {
            if p.device_id == device {
                p.device_id.clear();
                p.device_owner.clear();
                p.host_id.clear();
                p.binding_profile.clear();
            }
            Ok(())
        })
        .await
        .map(|_| ())
    }

    async fn delete_port(&self, port: PortId) -> Result<()> {
        self.write(move |tx| match tx.get::<Port>(&port)? {
            None => Ok(()),
            Some(row) => db::ports::delete(tx, &row),
        })
        .await
    }

    async fn ports_of(&self, devices: &[String]) -> Result<BTreeMap<String, Vec<PortInfo>>> {
        let devices: Vec<String> = devices.iter().filter(|d| !d.is_empty()).cloned().collect();
        if devices.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.store
            .read(move |tx| {
                let mut ports = tx.list::<Port>(&Query::new().is_in("device_id", &devices))?;
                ports.sort_by_key(|p| (p.meta.created_at, p.id));
                let around = Surroundings::read(tx, &ports)?;
                let mut map: BTreeMap<String, Vec<PortInfo>> = BTreeMap::new();
                for port in &ports {
                    map.entry(port.device_id.clone()).or_default().push(around.info(port));
                }
                Ok(map)
            })
            .await
    }

    async fn set_security_group(
        &self,
        auth: &AuthContext,
        device_id: &str,
        group: &str,
        present: bool,
    ) -> Result<()> {
        let project = auth
            .project_id()
            .cloned()
            .ok_or_else(|| Error::bad_request("Security groups need a token that is scoped to a project."))?;
        let (device, group, admin) = (device_id.to_owned(), group.to_owned(), self.is_admin(auth));
        let env = self.env.clone();
        self.write(move |tx| {
            let rows = tx.list::<Port>(&Query::new().eq("device_id", &device))?;
            let rows: Vec<Port> = rows.into_iter().filter(|p| admin || p.project_id == project).collect();
            // An administrator works on the groups of the server's project.
            let owner = rows.first().map_or(&project, |p| &p.project_id).clone();
            let id = find_group(tx, &env, &owner, &group).map_err(|e| match e.kind() {
                ::api::Kind::BadRequest => Error::not_found(e.public()),
                _ => e,
            })?;
            let mut found = false;
            for mut port in rows.into_iter().filter(|p| p.port_security_enabled) {
                let mut set = port.security_groups.clone();
                let changed = if present { set.insert(id) } else { set.remove(&id) };
                found = true;
                if changed {
                    db::ports::set_groups(tx, &mut port, set)?;
                    db::ports::update(tx, &mut port)?;
                } else if !present {
                    return Err(Error::not_found(format!(
                        "Security group {group} not associated with the instance {device}"
                    )));
                }
            }
            if found {
                Ok(())
            } else {
                Err(Error::bad_request("The server has no port that can have security groups."))
            }
        })
        .await?;
        self.nudge_devices([device_id.to_owned()]);
        Ok(())
    }
}
