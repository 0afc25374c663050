//! The catalog: services, endpoints, regions.

use ::api::{Op, Reply, Request, Target};
use base::{EndpointId, Error, RegionId, Result, ServiceId};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::{Cx, enforce, entity, listed_all, one};
use crate::directory;
use crate::logic::body::{Doc, Fields, Kind, may, may_null, missing, must, shape};
use crate::model::{Endpoint, EndpointFilter, Limit, PolicyAssociation, Region, RegisteredLimit, Service};
use crate::state::State;
use crate::words::{duplicate, no_endpoint, no_region, no_service, told};

shape!(
    ServiceCreate,
    "service",
    true,
    [
        must("type", Kind::Text(1, 255)),
        may("name", Kind::Text(1, 255)),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
    ]
);

shape!(
    ServiceUpdate,
    "service",
    true,
    [
        may("type", Kind::Text(1, 255)),
        may("name", Kind::Text(1, 255)),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
    ]
);

const INTERFACES: &[&str] = &["admin", "internal", "public"];

shape!(
    EndpointCreate,
    "endpoint",
    true,
    [
        must("interface", Kind::OneOf(INTERFACES)),
        must("service_id", Kind::Id),
        must("url", Kind::Url),
        may_null("region_id", Kind::Text(0, 255)),
        may_null("region", Kind::Text(0, 255)),
        may("enabled", Kind::Bool),
    ]
);

shape!(
    EndpointUpdate,
    "endpoint",
    true,
    [
        may("interface", Kind::OneOf(INTERFACES)),
        may("service_id", Kind::Id),
        may("url", Kind::Url),
        may_null("region_id", Kind::Text(0, 255)),
        may_null("region", Kind::Text(0, 255)),
        may("enabled", Kind::Bool),
    ]
);

shape!(
    RegionCreate,
    "region",
    true,
    [
        may("id", Kind::Text(0, 64)),
        may_null("description", Kind::Text(0, 65_535)),
        may_null("parent_region_id", Kind::Text(0, 64)),
    ]
);

shape!(
    RegionUpdate,
    "region",
    true,
    [may_null("description", Kind::Text(0, 65_535)), may_null("parent_region_id", Kind::Text(0, 64)),]
);

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v3/services", "identity:list_services", list_services).summary("Lists services."),
        Op::post("/v3/services", "identity:create_service", create_service)
            .status(201)
            .summary("Makes a service."),
        Op::get("/v3/services/{service_id}", "identity:get_service", show_service)
            .summary("Shows a service."),
        Op::patch("/v3/services/{service_id}", "identity:update_service", update_service)
            .summary("Changes a service."),
        Op::delete("/v3/services/{service_id}", "identity:delete_service", delete_service)
            .summary("Deletes a service and its endpoints."),
        Op::get("/v3/endpoints", "identity:list_endpoints", list_endpoints).summary("Lists endpoints."),
        Op::post("/v3/endpoints", "identity:create_endpoint", create_endpoint)
            .status(201)
            .summary("Makes an endpoint."),
        Op::get("/v3/endpoints/{endpoint_id}", "identity:get_endpoint", show_endpoint)
            .summary("Shows an endpoint."),
        Op::patch("/v3/endpoints/{endpoint_id}", "identity:update_endpoint", update_endpoint)
            .summary("Changes an endpoint."),
        Op::delete("/v3/endpoints/{endpoint_id}", "identity:delete_endpoint", delete_endpoint)
            .summary("Deletes an endpoint."),
        Op::get("/v3/regions", "identity:list_regions", list_regions).summary("Lists regions."),
        Op::post("/v3/regions", "identity:create_region", create_region)
            .status(201)
            .summary("Makes a region."),
        Op::get("/v3/regions/{region_id}", "identity:get_region", show_region).summary("Shows a region."),
        Op::put("/v3/regions/{region_id}", "identity:create_region", put_region)
            .status(201)
            .summary("Makes a region with a chosen id."),
        Op::patch("/v3/regions/{region_id}", "identity:update_region", update_region)
            .summary("Changes a region."),
        Op::delete("/v3/regions/{region_id}", "identity:delete_region", delete_region)
            .summary("Deletes a region and those in it."),
    ]
}

// ---- services

fn service_wire(cx: &Cx, service: &Service) -> Value {
    let own = json!({
        "id": service.id, "type": service.service_type, "name": service.name, "description": service.description,
        "enabled": service.enabled,
    });
    entity(cx, &format!("/v3/services/{}", service.id), own, &service.extra)
}

async fn list_services(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    listed_all::<Service, _>(&cx, &req, "services", service_wire, &["type", "name"]).await
}

pub(super) fn service(tx: &mut Tx<'_>, id: &str) -> Result<Service> {
    tx.get::<Service>(&ServiceId::new(id))?.ok_or_else(|| no_service(id))
}

async fn create_service(cx: Cx, req: Request<Doc<ServiceCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let service = Service {
        id: ServiceId::random(&cx.entropy),
        meta: store::Meta::default(),
        service_type: fields.text("type").unwrap_or_default(),
        name: fields.text("name").unwrap_or_default(),
        description: fields.nullable("description").flatten(),
        enabled: fields.flag("enabled").unwrap_or(true),
        extra: fields.extra(),
    };
    let made = cx
        .write(move |tx| {
            let mut service = service.clone();
            tx.insert(&mut service)?;
            directory::touch_all(tx)?;
            Ok(service)
        })
        .await?;
    Ok(one("service", service_wire(&cx, &made)))
}

async fn show_service(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("service_id").to_owned();
    let found = cx.read(move |tx| service(tx, &id)).await?;
    Ok(one("service", service_wire(&cx, &found)))
}

async fn update_service(cx: Cx, req: Request<Doc<ServiceUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id = req.param("service_id").to_owned();
    fields.same_id(&id)?;
    let (kind, name, description) =
        (fields.text("type"), fields.text("name"), fields.nullable("description"));
    let (enabled, extra) = (fields.flag("enabled"), fields.extra());
    let changed = cx
        .write(move |tx| {
            let mut service = service(tx, &id)?;
            if let Some(kind) = &kind {
                service.service_type.clone_from(kind);
            }
            if let Some(name) = &name {
                service.name.clone_from(name);
            }
            if let Some(description) = &description {
                service.description.clone_from(description);
            }
            service.enabled = enabled.unwrap_or(service.enabled);
            service.extra.extend(extra.clone());
            tx.update(&mut service)?;
            directory::touch_all(tx)?;
            Ok(service)
        })
        .await?;
    Ok(one("service", service_wire(&cx, &changed)))
}

async fn delete_service(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("service_id").to_owned();
    cx.write(move |tx| {
        let service = service(tx, &id)?;
        for endpoint in tx.list::<Endpoint>(&Query::new().eq("service_id", &service.id))? {
            forget_endpoint(tx, &endpoint.id)?;
        }
        tx.delete_where::<PolicyAssociation>(&Query::new().eq("service_id", &service.id))?;
        tx.delete_where::<RegisteredLimit>(&Query::new().eq("service_id", &service.id))?;
        tx.delete_where::<Limit>(&Query::new().eq("service_id", &service.id))?;
        tx.delete::<Service>(&service.id)?;
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}

// ---- endpoints

pub(super) fn endpoint_wire(cx: &Cx, endpoint: &Endpoint) -> Value {
    let own = json!({
        "id": endpoint.id, "interface": endpoint.interface, "region_id": endpoint.region_id,
        "region": endpoint.region_id, "service_id": endpoint.service_id, "url": endpoint.url,
        "enabled": endpoint.enabled,
    });
    entity(cx, &format!("/v3/endpoints/{}", endpoint.id), own, &endpoint.extra)
}

pub(super) fn endpoint(tx: &mut Tx<'_>, id: &str) -> Result<Endpoint> {
    tx.get::<Endpoint>(&EndpointId::new(id))?.ok_or_else(|| no_endpoint(id))
}

async fn list_endpoints(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    listed_all::<Endpoint, _>(
        &cx,
        &req,
        "endpoints",
        endpoint_wire,
        &["interface", "service_id", "region_id"],
    )
    .await
}

/// `region_id` must exist; `region`, the older name, is made if it does not.
struct WantedRegion {
    id: Option<Option<String>>,
    made: bool,
}

impl WantedRegion {
    fn of(fields: &mut Fields) -> Self {
        let id = fields.nullable("region_id");
        let old = fields.nullable("region");
        WantedRegion { made: id.is_none() && old.is_some(), id: id.or(old) }
    }

    /// The region to be set, if any was named.
    fn settle(&self, tx: &mut Tx<'_>) -> Result<Option<Option<RegionId>>> {
        let Some(id) = &self.id else { return Ok(None) };
        let Some(id) = id.as_ref().filter(|i| !i.is_empty()) else { return Ok(Some(None)) };
        let region = RegionId::new(id.clone());
        if tx.get::<Region>(&region)?.is_none() {
            if !self.made {
                return Err(Error::bad_request(no_region(id).public().to_owned()));
            }
            directory::insert_once(tx, &mut plain_region(region.clone()))?;
        }
        Ok(Some(Some(region)))
    }
}

async fn create_endpoint(cx: Cx, req: Request<Doc<EndpointCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let region = WantedRegion::of(&mut fields);
    let endpoint = Endpoint {
        id: EndpointId::random(&cx.entropy),
        meta: store::Meta::default(),
        service_id: ServiceId::new(fields.text("service_id").unwrap_or_default()),
        interface: fields.text("interface").unwrap_or_default(),
        region_id: None,
        url: fields.text("url").unwrap_or_default(),
        enabled: fields.flag("enabled").unwrap_or(true),
        extra: fields.extra(),
    };
    let made = cx
        .write(move |tx| {
            let mut endpoint = endpoint.clone();
            let named = service(tx, endpoint.service_id.as_str());
            named.map_err(|e| Error::bad_request(e.public().to_owned()))?;
            endpoint.region_id = region.settle(tx)?.flatten();
            tx.insert(&mut endpoint)?;
            directory::touch_all(tx)?;
            Ok(endpoint)
        })
        .await?;
    Ok(one("endpoint", endpoint_wire(&cx, &made)))
}

async fn show_endpoint(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_id").to_owned();
    let found = cx.read(move |tx| endpoint(tx, &id)).await?;
    Ok(one("endpoint", endpoint_wire(&cx, &found)))
}

async fn update_endpoint(cx: Cx, req: Request<Doc<EndpointUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_id").to_owned();
    fields.same_id(&id)?;
    let region = WantedRegion::of(&mut fields);
    let (interface, of, url) = (fields.text("interface"), fields.text("service_id"), fields.text("url"));
    let (enabled, extra) = (fields.flag("enabled"), fields.extra());
    let changed = cx
        .write(move |tx| {
            let mut endpoint = endpoint(tx, &id)?;
            if let Some(of) = &of {
                let named = service(tx, of).map_err(|e| Error::bad_request(e.public().to_owned()))?;
                endpoint.service_id = named.id;
            }
            if let Some(interface) = &interface {
                endpoint.interface.clone_from(interface);
            }
            if let Some(url) = &url {
                endpoint.url.clone_from(url);
            }
            if let Some(region) = region.settle(tx)? {
                endpoint.region_id = region;
            }
            endpoint.enabled = enabled.unwrap_or(endpoint.enabled);
            endpoint.extra.extend(extra.clone());
            tx.update(&mut endpoint)?;
            directory::touch_all(tx)?;
            Ok(endpoint)
        })
        .await?;
    Ok(one("endpoint", endpoint_wire(&cx, &changed)))
}

async fn delete_endpoint(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("endpoint_id").to_owned();
    cx.write(move |tx| {
        let endpoint = endpoint(tx, &id)?;
        forget_endpoint(tx, &endpoint.id)?;
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}

/// Deletes an endpoint and what refers to it.
fn forget_endpoint(tx: &mut Tx<'_>, id: &EndpointId) -> Result<()> {
    tx.delete_where::<EndpointFilter>(&Query::new().eq("endpoint_id", id))?;
    tx.delete_where::<PolicyAssociation>(&Query::new().eq("endpoint_id", id))?;
    tx.delete::<Endpoint>(id)?;
    Ok(())
}

// ---- regions

/// A region without anything but its id.
pub(crate) fn plain_region(id: RegionId) -> Region {
    Region {
        id,
        meta: store::Meta::default(),
        parent_region_id: None,
        description: String::new(),
        extra: Map::new(),
    }
}

fn region_wire(cx: &Cx, region: &Region) -> Value {
    let own = json!({
        "id": region.id, "parent_region_id": region.parent_region_id, "description": region.description,
    });
    let mut path = String::from("/v3/regions/");
    ::api::query::encode(region.id.as_str(), &mut path);
    entity(cx, &path, own, &region.extra)
}

pub(super) fn region(tx: &mut Tx<'_>, id: &str) -> Result<Region> {
    tx.get::<Region>(&RegionId::new(id))?.ok_or_else(|| no_region(id))
}

async fn list_regions(cx: Cx, req: Request<()>) -> Result<Reply> {
    listed_all::<Region, _>(&cx, &req, "regions", region_wire, &["parent_region_id"]).await
}

async fn create_region(cx: Cx, req: Request<Doc<RegionCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id = fields.text("id").filter(|i| !i.is_empty());
    let id = id.map_or_else(|| RegionId::random(&cx.entropy), RegionId::new);
    make_region(cx, id, fields).await
}

async fn put_region(cx: Cx, req: Request<Doc<RegionCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id: RegionId = req.id_or("region_id", no_region)?;
    fields.same_id(id.as_str())?;
    make_region(cx, id, fields).await
}

async fn make_region(cx: Cx, id: RegionId, mut fields: Fields) -> Result<Reply> {
    if id.as_str().len() > 64 || id.as_str().contains('/') {
        return Err(crate::logic::body::invalid("id", "must have at most 64 characters and no '/'"));
    }
    let parent = fields.nullable("parent_region_id").flatten().filter(|p| !p.is_empty()).map(RegionId::new);
    let description = fields.nullable("description").flatten().unwrap_or_default();
    let wanted = Region { parent_region_id: parent, description, extra: fields.extra(), ..plain_region(id) };
    let made = cx
        .write(move |tx| {
            let mut region = wanted.clone();
            if tx.get::<Region>(&region.id)?.is_some() {
                return Err(duplicate("region", &format!("Duplicate ID, {}", region.id)));
            }
            check_parent(tx, &region)?;
            told(tx.insert(&mut region), "region", || format!("Duplicate ID, {}", region.id))?;
            Ok(region)
        })
        .await?;
    Ok(one("region", region_wire(&cx, &made)))
}

/// The parent must exist, and must not be in the region itself.
fn check_parent(tx: &mut Tx<'_>, of: &Region) -> Result<()> {
    let mut next = of.parent_region_id.clone();
    for _ in 0..64 {
        let Some(id) = next else { return Ok(()) };
        if id == of.id {
            break;
        }
        next = region(tx, id.as_str())?.parent_region_id;
    }
    let parent = of.parent_region_id.as_ref().map_or("", RegionId::as_str);
    Err(Error::bad_request(format!(
        "The specified parent region {parent} would create a circular region hierarchy."
    )))
}

async fn show_region(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = req.param("region_id").to_owned();
    let found = cx.read(move |tx| region(tx, &id)).await?;
    Ok(one("region", region_wire(&cx, &found)))
}

async fn update_region(cx: Cx, req: Request<Doc<RegionUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id = req.param("region_id").to_owned();
    if fields.is_empty() {
        return Err(missing("region/description"));
    }
    fields.same_id(&id)?;
    let (description, parent) = (fields.nullable("description"), fields.nullable("parent_region_id"));
    let extra = fields.extra();
    let changed = cx
        .write(move |tx| {
            let mut region = region(tx, &id)?;
            if let Some(description) = &description {
                region.description = description.clone().unwrap_or_default();
            }
            if let Some(parent) = &parent {
                region.parent_region_id = parent.clone().filter(|p| !p.is_empty()).map(RegionId::new);
                check_parent(tx, &region)?;
            }
            region.extra.extend(extra.clone());
            tx.update(&mut region)?;
            Ok(region)
        })
        .await?;
    Ok(one("region", region_wire(&cx, &changed)))
}

async fn delete_region(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("region_id").to_owned();
    cx.write(move |tx| {
        let root = region(tx, &id)?.id;
        let mut all = vec![root.clone()];
        let mut open = vec![root];
        while !open.is_empty() {
            let next = tx.list::<Region>(&Query::new().is_in("parent_region_id", &open))?;
            open = next.into_iter().map(|r| r.id).filter(|r| !all.contains(r)).collect();
            all.extend(open.clone());
        }
        if tx.exists::<Endpoint>(&Query::new().is_in("region_id", &all))? {
            return Err(Error::forbidden(format!(
                "Unable to delete region {id} because it or its child regions have associated endpoints."
            )));
        }
        for region in &all {
            tx.delete_where::<PolicyAssociation>(&Query::new().eq("region_id", region))?;
            tx.delete::<Region>(region)?;
        }
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}
