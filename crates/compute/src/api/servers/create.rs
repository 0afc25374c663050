//! Creating servers: everything is checked, ids are chosen, one transaction writes; the reconciler does the rest.

use std::collections::BTreeSet;

use ::api::{Ctx, Reply, Request, Target};
use base::{
    AttachmentId, Error, FlavorId, ImageId, NetworkId, PortId, Result, SecurityGroupId, ServerGroupId,
    ServerId, VolumeId,
};
use contract::host::{ImageRef, Power};
use contract::services::{ImageInfo, NetworkInfo};
use serde_json::json;
use store::{Query, Tx};

use super::super::flavors::no_flavor;
use super::super::keypairs::key_id;
use super::super::wire::{links, record};
use super::body::{self, Create, Destination, Mapping, Networks, New, Source, Word};
use crate::State;
use crate::logic::{names, quota};
use crate::model::{
    Aggregate, BootImage, Disk, DiskState, Flavor, Host, KeyPair, Nic, Origin, QuotaSet, Server, ServerGroup,
    Usage, VmState, VolumeClaim,
};
use crate::reconcile::zone_of;

/// What a request asks for, after every question to other services.
struct Plan {
    /// Everything but ids; `flavor_*`, `size` and `key` are filled in the transaction.
    server: Server,
    flavor: String,
    key_name: Option<String>,
    group: Option<ServerGroupId>,
    min: u64,
    max: u64,
    image: Option<ImageInfo>,
    zone: Option<String>,
    swap: Option<u64>,
    ephemeral: Option<u64>,
}

pub(super) async fn create(cx: Ctx<State>, req: Request<Create>) -> Result<Reply> {
    let project = cx.project_id()?.clone();
    cx.allow(&Target::project(&project).user(cx.user_id()))?;
    let reservation = req.body.server.return_reservation_id.is_some_and(|r| r.0);
    let sent = req.body.server.admin_pass.as_ref().map(|p| p.as_str().to_owned());
    let pass = sent.filter(|p| !p.is_empty()).unwrap_or_else(|| cx.state().entropy.password(12));
    let plan = plan(&cx, req.body, &pass).await?;
    let cx2 = cx.clone();
    let made = cx.store().write(move |tx| write(tx, &cx2, &plan)).await?;
    let Some(first) = made.first() else { return Err(Error::internal("no server was made")) };
    if reservation {
        return Ok(Reply::json(&json!({"reservation_id": first.reservation_id})));
    }
    let id = first.id.to_string();
    let groups: Vec<_> = if first.security_groups.is_empty() {
        vec![json!({"name": "default"})]
    } else {
        first.security_groups.iter().map(|g| json!({"name": g})).collect()
    };
    let body = json!({"server": {
        "id": id, "links": links(&cx, "servers", &id), "OS-DCF:diskConfig": first.disk_config,
        "security_groups": groups, "adminPass": pass,
    }});
    let url = cx.url(&format!("/v2.1/servers/{id}"));
    Ok(Reply::json(&body).location(url))
}

async fn plan(cx: &Ctx<State>, body: Create, pass: &str) -> Result<Plan> {
    let Create { server: new, hints } = body;
    body::gates(cx, &new)?;
    if new.personality.as_ref().is_some_and(|p| !p.is_empty()) {
        return Err(Error::bad_request(
            "Personality files are not supported: use user_data or a config drive.",
        ));
    }
    if new.block_device_mapping.as_ref().is_some_and(|b| !b.is_empty()) {
        return Err(Error::bad_request(
            "block_device_mapping is not supported: use block_device_mapping_v2.",
        ));
    }
    let min = new.min_count.map_or(1, |n| n.unsigned());
    let max = new.max_count.map_or(min, |n| n.unsigned());
    if min > max {
        return Err(Error::bad_request("min_count must be <= max_count"));
    }
    let (zone, host_wanted) = placement_of(cx, &new)?;
    let image_id = match new.image.as_deref().filter(|t| !t.is_empty()) {
        None => None,
        Some(text) => {
            let text = text.rsplit('/').next().unwrap_or("");
            let id: ImageId = text
                .parse()
                .map_err(|_| cx.dialect().invalid_field("imageRef", &format!("'{text}' is not a 'uuid'")))?;
            Some(id)
        }
    };
    let image = match image_id {
        None => None,
        Some(id) => Some(image(cx, id).await?),
    };
    let mut mapped = mappings(cx, new.block_device_mapping_v2.as_deref().unwrap_or(&[]), image_id).await?;
    if image.is_none() && !mapped.disks.iter().any(|d| d.boot_index == Some(0)) {
        return Err(Error::bad_request(if mapped.disks.is_empty() {
            "Invalid imageRef provided."
        } else {
            "Block Device Mapping is Invalid: Boot sequence for the instance and image/block device mapping combination is not valid."
        }));
    }
    if image.is_some() && mapped.disks.iter().any(|d| d.boot_index == Some(0)) {
        return Err(Error::bad_request(
            "Block Device Mapping is Invalid: Boot sequence for the instance and image/block device mapping combination is not valid.",
        ));
    }
    let nics = nics(cx, new.networks.as_ref(), max).await?;
    if max > 1 && mapped.disks.iter().any(|d| d.origin == Origin::Existing) {
        return Err(Error::bad_request("Cannot attach one or more volumes to multiple instances"));
    }
    let groups: Vec<String> =
        new.security_groups.iter().flatten().map(|g| g.name.as_str().to_owned()).collect();
    let security_groups = security_groups(cx, groups).await?;
    let group = hints.as_ref().and_then(|h| h.group).map(|g| ServerGroupId(g.0));
    let ids = |h: Option<&body::Hosts>| h.map(body::Hosts::ids).unwrap_or_default();
    let same_host = ids(hints.as_ref().and_then(|h| h.same_host.as_ref()));
    let different_host = ids(hints.as_ref().and_then(|h| h.different_host.as_ref()));
    let swap = mapped.swap.take();
    let server = Server {
        id: ServerId::random(&cx.state().entropy),
        meta: store::Meta::default(),
        project_id: cx.project_id()?.clone(),
        user_id: cx.user_id().clone(),
        description: new.description.value().map(String::from),
        hostname: new.hostname.map_or(Ok(String::new()), |h| body::hostname(cx, &h))?,
        name: body::name(cx, new.name)?,
        flavor_id: FlavorId::new(""),
        flavor_name: String::new(),
        size: crate::model::FlavorSize::default(),
        image: image.as_ref().map(boot_image),
        key: None,
        user_data: new.user_data.map(|d| d.text().to_owned()),
        config_drive: new.config_drive.is_some_and(|c| c.0) || cx.state().config.force_config_drive,
        metadata: new.metadata.map(|m| m.0).unwrap_or_default(),
        tags: new.tags.as_deref().map_or_else(|| Ok(BTreeSet::new()), body::tags)?,
        admin_pass: Some(pass.to_owned()),
        security_groups,
        zone_wanted: zone.clone(),
        host_wanted,
        same_host,
        different_host,
        group_id: group,
        reservation_id: format!("r-{}", cx.state().entropy.password(8).to_ascii_lowercase()),
        launch_index: 0,
        disk_config: new.disk_config.map_or("MANUAL", body::DiskConfig::as_str).to_owned(),
        access_ip_v4: body::v4(cx, new.access_v4.as_deref())?,
        access_ip_v6: body::v6(cx, new.access_v6.as_deref())?,
        trusted_certs: new.trusted_image_certificates.map(|c| c.into_iter().map(String::from).collect()),
        locked: None,
        nics,
        disks: mapped.disks,
        host_id: None,
        host_name: None,
        zone: None,
        ready: false,
        power: Power::Running,
        reboots: 0,
        reboot_hard: false,
        vm_state: VmState::Building,
        moving: None,
        task: Some("scheduling".to_owned()),
        power_state: crate::model::power::NOSTATE,
        fault: None,
        failing_since: None,
        launched_at: None,
        deleting: false,
    };
    let key_name = new.key_name.map(String::from);
    Ok(Plan {
        server,
        flavor: new.flavor.id(),
        key_name,
        group,
        min,
        max,
        image,
        zone,
        swap,
        ephemeral: mapped.ephemeral,
    })
}

/// The zone and the host asked for. `zone:host` and the fields of 2.74 are for administrators.
fn placement_of(cx: &Ctx<State>, new: &New) -> Result<(Option<String>, Option<String>)> {
    let mut zone = new.availability_zone.as_deref().map(str::to_owned);
    let mut host = new.host.as_deref().or(new.hypervisor_hostname.as_deref()).map(str::to_owned);
    if let Some(text) = &zone
        && let Some((z, rest)) = text.split_once(':')
    {
        let (h, node) = rest.split_once(':').unwrap_or((rest, ""));
        let wanted = if h.is_empty() { node } else { h };
        if text.matches(':').count() > 2 || wanted.is_empty() {
            return Err(Error::bad_request(format!(
                "Unable to parse availability_zone '{text}': it must be 'zone', 'zone:host' or 'zone:host:node'."
            )));
        }
        host = Some(wanted.to_owned());
        zone = Some(z.to_owned()).filter(|z| !z.is_empty());
    }
    if host.is_some() {
        cx.allow_rule("os_compute_api:servers:create:forced_host", &Target::none())?;
    }
    Ok((zone, host))
}

pub(super) async fn image(cx: &Ctx<State>, id: ImageId) -> Result<ImageInfo> {
    let image = cx.state().deps.images.get(cx.auth(), id).await.map_err(|e| match e.kind() {
        base::Kind::NotFound => {
            Error::bad_request(format!("Can not find requested image: Image {id} could not be found."))
        }
        _ => e,
    })?;
    if image.status != "active" {
        return Err(Error::bad_request(format!("Image {id} is not active.")));
    }
    Ok(image)
}

fn boot_image(image: &ImageInfo) -> BootImage {
    BootImage {
        image: ImageRef {
            id: image.id,
            sha512: image.sha512.clone(),
            format: image.disk_format.clone(),
            size: image.size,
        },
        properties: image.properties.clone(),
    }
}

#[derive(Default)]
struct Mapped {
    disks: Vec<Disk>,
    swap: Option<u64>,
    ephemeral: Option<u64>,
}

fn invalid(why: impl std::fmt::Display) -> Error {
    Error::bad_request(format!("Block Device Mapping is Invalid: {why}"))
}

async fn mappings(cx: &Ctx<State>, list: &[Mapping], image: Option<ImageId>) -> Result<Mapped> {
    let mut mapped = Mapped::default();
    let mut local_boot = false;
    for m in list {
        let source = m.source_type.unwrap_or(Source::Volume);
        let destination = m.destination_type.unwrap_or(if source == Source::Blank {
            Destination::Local
        } else {
            Destination::Volume
        });
        if destination == Destination::Local {
            match source {
                // The image itself, told twice.
                Source::Image
                    if image.is_some_and(|i| m.uuid.as_deref() == Some(i.to_string().as_str()))
                        && !local_boot =>
                {
                    local_boot = true;
                }
                Source::Blank if m.guest_format.as_deref() == Some("swap") => {
                    mapped.swap = Some(m.volume_size.map_or(0, body::VolumeSize::get) * 1024);
                }
                Source::Blank => {
                    let size = m.volume_size.map_or(0, body::VolumeSize::get);
                    mapped.ephemeral = Some(mapped.ephemeral.unwrap_or(0) + size);
                }
                _ => return Err(invalid("only the image of imageRef and blank disks can be local.")),
            }
            continue;
        }
        let disk = volume(cx, m, source).await?;
        mapped.disks.push(disk);
    }
    number(&mut mapped.disks, image.is_some())?;
    Ok(mapped)
}

/// Boot order and device names.
fn number(disks: &mut [Disk], local_root: bool) -> Result<()> {
    let mut order: Vec<u32> = disks.iter().filter_map(|d| d.boot_index).collect();
    order.sort_unstable();
    if order.windows(2).any(|w| matches!(w, [a, b] if a == b)) {
        return Err(invalid(
            "Boot sequence for the instance and image/block device mapping combination is not valid.",
        ));
    }
    disks.sort_by_key(|d| d.boot_index.unwrap_or(u32::MAX));
    let mut taken: Vec<String> = disks.iter().map(|d| d.device.clone()).filter(|d| !d.is_empty()).collect();
    if local_root {
        taken.push("/dev/vda".to_owned());
    }
    let ids: BTreeSet<VolumeId> = disks.iter().map(|d| d.volume).collect();
    if ids.len() != disks.len() {
        return Err(invalid("a volume is given twice."));
    }
    for disk in disks.iter_mut().filter(|d| d.device.is_empty()) {
        disk.device = names::device(&taken.iter().map(String::as_str).collect::<Vec<_>>());
        taken.push(disk.device.clone());
    }
    let devices: BTreeSet<&str> = disks.iter().map(|d| d.device.as_str()).collect();
    if devices.len() != disks.len() {
        return Err(invalid("a device name is given twice."));
    }
    Ok(())
}

fn device_name(text: Option<&str>) -> Result<String> {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(String::new()) };
    let short = text.strip_prefix("/dev/").unwrap_or(text);
    if short.is_empty() || short.len() > 16 || !short.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(invalid(format!("The supplied device path ({text}) is invalid.")));
    }
    Ok(format!("/dev/{short}"))
}

/// A mapping to a volume.
async fn volume(cx: &Ctx<State>, m: &Mapping, source: Source) -> Result<Disk> {
    let entropy = &cx.state().entropy;
    let uuid = |what: &str| -> Result<uuid::Uuid> {
        let text = m.uuid.as_deref().ok_or_else(|| invalid(format!("a {what} needs its uuid.")))?;
        uuid::Uuid::try_parse(text)
            .map_err(|_| cx.dialect().invalid_field("uuid", &format!("'{text}' is not a 'uuid'")))
    };
    let size = m.volume_size.map_or(0, body::VolumeSize::get);
    let (mut near, mut shared) = (None, false);
    let (volume, origin, size, state) = match source {
        Source::Volume => {
            let id = VolumeId(uuid("volume")?);
            let found = cx.state().deps.volumes.get(cx.auth(), id).await.map_err(|e| match e.kind() {
                base::Kind::NotFound => invalid(format!("failed to get volume {id}.")),
                _ => e,
            })?;
            if found.status != "available" && !(found.multiattach && found.status == "in-use") {
                return Err(invalid(format!("volume {id} has status '{}'.", found.status)));
            }
            shared = found.multiattach;
            (id, Origin::Existing, found.size_gib, DiskState::Reserved)
        }
        Source::Image => {
            let id = ImageId(uuid("image")?);
            let found = image(cx, id).await.map_err(|e| match e.kind() {
                base::Kind::BadRequest => invalid(format!("failed to get image {id}.")),
                _ => e,
            })?;
            if size == 0 {
                return Err(invalid(
                    "Images with destination_type 'volume' need to have a non-zero size specified",
                ));
            }
            if size < found.min_disk_gib.max(found.virtual_size.div_ceil(1 << 30)) {
                return Err(Error::bad_request(format!(
                    "Volume is smaller than the minimum size specified in image metadata. Volume size is {} bytes, minimum size is {} bytes.",
                    size << 30,
                    found.min_disk_gib.max(found.virtual_size.div_ceil(1 << 30)) << 30
                )));
            }
            (VolumeId::random(entropy), Origin::Image(id), size, DiskState::Creating)
        }
        Source::Snapshot => {
            let id = base::SnapshotId(uuid("snapshot")?);
            let (of, least) =
                cx.state().deps.volumes.snapshot(cx.auth(), id).await.map_err(|e| match e.kind() {
                    base::Kind::NotFound => invalid(format!("failed to get snapshot {id}.")),
                    _ => e,
                })?;
            if size != 0 && size < least {
                return Err(invalid(format!(
                    "volume_size {size} is smaller than the snapshot's {least} GiB."
                )));
            }
            near = Some(of);
            (VolumeId::random(entropy), Origin::Snapshot(id), size.max(least), DiskState::Creating)
        }
        Source::Blank => {
            if size == 0 {
                return Err(invalid(
                    "Blank volumes (source: 'blank', dest: 'volume') need to have non-zero size",
                ));
            }
            (VolumeId::random(entropy), Origin::Blank, size, DiskState::Creating)
        }
    };
    Ok(Disk {
        volume,
        attachment: AttachmentId::random(entropy),
        origin,
        near,
        size,
        volume_type: m.volume_type.as_deref().filter(|t| !t.is_empty()).map(str::to_owned),
        boot_index: m.boot_index.and_then(|n| u32::try_from(n.get()).ok()),
        device: device_name(m.device_name.as_deref())?,
        tag: m.tag.as_ref().map(body::Tag::checked).transpose()?,
        delete_on_termination: m.delete_on_termination.is_some_and(|d| d.0),
        state,
        shared,
    })
}

async fn security_groups(cx: &Ctx<State>, names: Vec<String>) -> Result<Vec<SecurityGroupId>> {
    if names.is_empty() || names.iter().all(|n| n == "default") {
        return Ok(Vec::new());
    }
    cx.state().deps.networks.security_groups(cx.auth(), &names).await
}

/// The interfaces asked for; ports that do not exist yet get their ids here.
async fn nics(cx: &Ctx<State>, asked: Option<&Networks>, count: u64) -> Result<Vec<Nic>> {
    let list = match asked {
        Some(Networks::Word(Word::None)) => return Ok(Vec::new()),
        Some(Networks::List(list)) if !list.is_empty() => list,
        Some(Networks::Word(Word::Auto)) => return only_network(cx, true).await,
        _ => return only_network(cx, false).await,
    };
    let mut nics: Vec<Nic> = Vec::new();
    for network in list {
        let port = network.port.as_ref().map(|p| PortId(p.0));
        if (port.is_some() || network.fixed_ip.is_some()) && count > 1 {
            return Err(Error::bad_request(
                "Unable to launch multiple instances with a single configured port ID or fixed IP: launch them one by one.",
            ));
        }
        let tag = network.tag.as_ref().map(body::Tag::checked).transpose()?;
        if let Some(port) = port {
            nics.push(given(cx, port, tag).await?);
            continue;
        }
        let id = network
            .uuid
            .map(|u| NetworkId(u.0))
            .ok_or_else(|| cx.dialect().invalid_field("networks", "an entry needs 'uuid' or 'port'"))?;
        usable(cx, id).await?;
        nics.push(fresh(cx, id, network.fixed_ip.map(|ip| ip.0), tag));
    }
    let ports: BTreeSet<PortId> = nics.iter().map(|n| n.port).collect();
    if ports.len() != nics.len() {
        return Err(Error::bad_request("Port is given twice: each port may be used once."));
    }
    Ok(nics)
}

/// A port that the user brings.
pub(in super::super) async fn given(cx: &Ctx<State>, port: PortId, tag: Option<String>) -> Result<Nic> {
    let info = cx.state().deps.networks.port(cx.auth(), port).await.map_err(|e| match e.kind() {
        base::Kind::NotFound => Error::bad_request(format!("Port id {port} could not be found.")),
        _ => e,
    })?;
    if !info.device_id.is_empty() {
        return Err(Error::conflict(format!("Port {port} is still in use.")));
    }
    if info.fixed_ips.is_empty() {
        return Err(Error::bad_request(format!("Port {port} requires a FixedIP in order to be used.")));
    }
    Ok(Nic {
        port,
        network: info.network_id,
        given: true,
        fixed_ip: None,
        tag,
        detaching: false,
        plugged: None,
    })
}

/// A network that the caller may use.
pub(in super::super) async fn usable(cx: &Ctx<State>, id: NetworkId) -> Result<NetworkInfo> {
    let info = cx.state().deps.networks.network(cx.auth(), id).await.map_err(|e| match e.kind() {
        base::Kind::NotFound => Error::bad_request(format!("Network {id} could not be found.")),
        _ => e,
    })?;
    let own = cx.auth().project_id() == Some(&info.project_id);
    if info.external && !info.shared && !own {
        cx.allow_rule("network:attach_external_network", &Target::none()).map_err(|_| {
            Error::forbidden(format!("It is not allowed to create an interface on external network {id}"))
        })?;
    }
    if info.subnets.is_empty() {
        return Err(Error::bad_request(format!(
            "Network {id} requires a subnet in order to boot instances on."
        )));
    }
    Ok(info)
}

/// A port to be made.
pub(in super::super) fn fresh(
    cx: &Ctx<State>,
    network: NetworkId,
    fixed_ip: Option<std::net::IpAddr>,
    tag: Option<String>,
) -> Nic {
    let port = PortId::random(&cx.state().entropy);
    Nic { port, network, given: false, fixed_ip, tag, detaching: false, plugged: None }
}

/// The only network the project has.
pub(in super::super) async fn only_network(cx: &Ctx<State>, auto: bool) -> Result<Vec<Nic>> {
    let all = cx.state().deps.networks.available(cx.auth()).await?;
    match all.as_slice() {
        [] if auto => Err(Error::bad_request(
            "Unable to automatically allocate a network for project: it has none, and there is no default one.",
        )),
        [] => Ok(Vec::new()),
        [one] => {
            if one.subnets.is_empty() {
                return Err(Error::bad_request(format!(
                    "Network {} requires a subnet in order to boot instances on.",
                    one.id
                )));
            }
            Ok(vec![fresh(cx, one.id, None, None)])
        }
        _ => Err(Error::conflict("Multiple possible networks found, use a Network ID to be more specific.")),
    }
}

/// The one transaction: flavor, key, group, quota, rows, wake-ups.
fn write(tx: &mut Tx<'_>, cx: &Ctx<State>, plan: &Plan) -> Result<Vec<Server>> {
    let flavor = tx.get::<Flavor>(&FlavorId::new(plan.flavor.as_str()))?;
    let flavor = flavor
        .filter(|f| f.public || cx.is_admin() || f.projects.contains(&plan.server.project_id))
        .ok_or_else(|| Error::bad_request(no_flavor(&plan.flavor).public()))?;
    fits(cx, &flavor, plan)?;
    let mut server = plan.server.clone();
    server.flavor_id = flavor.id.clone();
    server.flavor_name.clone_from(&flavor.name);
    server.size = flavor.size.clone();
    if let Some(swap) = plan.swap {
        server.size.swap = swap;
    }
    if let Some(ephemeral) = plan.ephemeral {
        server.size.ephemeral = ephemeral;
    }
    if let Some(name) = &plan.key_name {
        let key = tx.get::<KeyPair>(&key_id(&server.user_id, name))?;
        let key = key.ok_or_else(|| Error::bad_request("Invalid key_name provided."))?;
        server.key = Some((key.name, key.public_key));
    }
    if let Some(zone) = &plan.zone {
        known_zone(tx, cx, zone)?;
    }
    let limits = limits_of(tx, cx.state(), &server.project_id)?;
    let items = server.metadata.len() as u64;
    if !quota::within(&limits, "metadata_items", 0, items) {
        let most = limits.get("metadata_items").copied().unwrap_or(0);
        return Err(Error::over_quota(format!("Maximum number of metadata items exceeds {most}")));
    }
    let count = claim(tx, &server, &limits, plan.min, plan.max)?;
    if let Some(group) = plan.group {
        join(tx, &server, group, &limits, count)?;
    }
    let name = server.name.clone();
    let mut made = Vec::new();
    for index in 0..count {
        let mut one = server.clone();
        if index > 0 {
            fresh_ids(cx, &mut one);
        }
        if plan.max > 1 {
            one.name = format!("{name}-{}", index + 1);
        }
        one.launch_index = u32::try_from(index).unwrap_or(0);
        if one.hostname.is_empty() {
            one.hostname = names::hostname(&one.name, one.id);
        } else if plan.max > 1 {
            one.hostname = format!("{}-{}", one.hostname, index + 1);
        }
        for disk in &one.disks {
            VolumeClaim::take(tx, one.id, disk)?;
        }
        tx.insert(&mut one)?;
        record(tx, cx, &one, "create")?;
        tx.wake("server", one.id);
        made.push(one);
    }
    Ok(made)
}

/// Other servers of the same request have ids of their own.
fn fresh_ids(cx: &Ctx<State>, server: &mut Server) {
    let entropy = &cx.state().entropy;
    server.id = ServerId::random(entropy);
    for nic in server.nics.iter_mut().filter(|n| !n.given) {
        nic.port = PortId::random(entropy);
    }
    for disk in &mut server.disks {
        disk.attachment = AttachmentId::random(entropy);
        if disk.origin != Origin::Existing {
            disk.volume = VolumeId::random(entropy);
        }
    }
}

/// Whether the image fits into the flavor.
fn fits(cx: &Ctx<State>, flavor: &Flavor, plan: &Plan) -> Result<()> {
    let too_big = |have: &Option<u64>, allowed: u64| have.is_some_and(|n| n > allowed);
    if too_big(&plan.swap, flavor.size.swap) || too_big(&plan.ephemeral, flavor.size.ephemeral) {
        return Err(invalid("Swap or ephemeral disks are larger than the flavor allows."));
    }
    let Some(image) = &plan.image else { return Ok(()) };
    let size = &flavor.size;
    if image.min_ram_mib > size.ram {
        return Err(Error::bad_request("Flavor's memory is too small for requested image."));
    }
    if size.disk == 0 {
        cx.allow_rule(
            "os_compute_api:servers:create:zero_disk_flavor",
            &Target::project(&plan.server.project_id),
        )
        .map_err(|_| {
            Error::forbidden("Only volume-backed servers are allowed for flavors with zero disk.")
        })?;
        return Ok(());
    }
    if image.min_disk_gib > size.disk || image.virtual_size > size.disk << 30 {
        return Err(Error::bad_request(format!(
            "Flavor's disk is too small for requested image. Flavor disk is {} bytes, image is {} bytes.",
            size.disk << 30,
            image.virtual_size.max(image.min_disk_gib << 30)
        )));
    }
    Ok(())
}

fn known_zone(tx: &mut Tx<'_>, cx: &Ctx<State>, zone: &str) -> Result<()> {
    let default = &cx.state().config.default_zone;
    let aggregates = tx.list::<Aggregate>(&Query::new())?;
    let hosts = tx.list::<Host>(&Query::new())?;
    let known = zone == default || hosts.iter().any(|h| zone_of(&aggregates, &h.name, default) == zone);
    if known { Ok(()) } else { Err(Error::bad_request("The requested availability zone is not available")) }
}

/// The limits of a project.
pub(in super::super) fn limits_of(
    tx: &mut Tx<'_>,
    state: &State,
    project: &base::ProjectId,
) -> Result<std::collections::BTreeMap<String, i64>> {
    let (class, own) = ("class:default".to_owned(), format!("project:{project}"));
    let sets = tx.list::<QuotaSet>(&Query::new().is_in("id", [&class, &own]))?;
    let none = std::collections::BTreeMap::new();
    let limits = |id: &str| sets.iter().find(|q| q.id == id).map_or(&none, |q| &q.limits);
    Ok(quota::effective(&[&state.config.quota, limits(&class), limits(&own)]))
}

/// Claims quota for as many servers as there is room for, at least `min`; answers how many.
fn claim(
    tx: &mut Tx<'_>,
    server: &Server,
    limits: &std::collections::BTreeMap<String, i64>,
    min: u64,
    max: u64,
) -> Result<u64> {
    let held = tx.get::<Usage>(&server.project_id)?;
    let new = held.is_none();
    let mut usage = held.unwrap_or_else(|| Usage {
        id: server.project_id.clone(),
        meta: store::Meta::default(),
        instances: 0,
        cores: 0,
        ram: 0,
    });
    let asks = |n: u64| {
        [
            ("instances", usage.instances, n),
            ("cores", usage.cores, n * u64::from(server.size.vcpus)),
            ("ram", usage.ram, n * server.size.ram),
        ]
    };
    let mut count = max;
    while count > min && quota::check(limits, &asks(count)).is_err() {
        count -= 1;
    }
    quota::check(limits, &asks(count))?;
    usage.instances += count;
    usage.cores += count * u64::from(server.size.vcpus);
    usage.ram += count * server.size.ram;
    if new {
        tx.insert(&mut usage)?
    } else {
        tx.update_status(&mut usage)?
    }
    Ok(count)
}

fn join(
    tx: &mut Tx<'_>,
    server: &Server,
    id: ServerGroupId,
    limits: &std::collections::BTreeMap<String, i64>,
    count: u64,
) -> Result<()> {
    let group = tx.get::<ServerGroup>(&id)?.filter(|g| g.project_id == server.project_id);
    group.ok_or_else(|| Error::bad_request(format!("Instance group {id} could not be found.")))?;
    let members = tx.count::<Server>(&Query::new().eq("group_id", id))?;
    if !quota::within(limits, "server_group_members", members, count) {
        return Err(Error::over_quota("Quota exceeded, too many servers in group"));
    }
    Ok(())
}
