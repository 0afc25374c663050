//! `/flavors` and what is under it.

use std::collections::{BTreeMap, BTreeSet};

use ::api::types::{Int, LaxBool, LaxInt, Name, Patch, Text};
use ::api::{Ctx, Op, Reply, Request, Target};
use base::{Error, FlavorId, Result};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::ADMIN;
use super::wire::{gate, links, project};
use crate::State;
use crate::logic::names;
use crate::model::{Flavor, FlavorSize, Texts};

/// Every user with a role somewhere may look.
const ANY: &str = "role:reader or rule:context_is_admin";

pub(super) fn ops() -> Vec<Op<State>> {
    const ONE: &str = "/v2.1/flavors/{id}";
    const SPECS: &str = "/v2.1/flavors/{id}/os-extra_specs";
    const SPEC: &str = "/v2.1/flavors/{id}/os-extra_specs/{key}";
    vec![
        Op::get("/v2.1/flavors", "os_compute_api:flavors:index", list)
            .default_rule(ANY)
            .summary("List flavors"),
        Op::get("/v2.1/flavors/detail", "os_compute_api:flavors:detail", detail)
            .default_rule(ANY)
            .summary("List flavors with details"),
        Op::post("/v2.1/flavors", "os_compute_api:os-flavor-manage:create", create)
            .default_rule(ADMIN)
            .summary("Create a flavor"),
        Op::get(ONE, "os_compute_api:flavors:show", show).default_rule(ANY).summary("Show a flavor"),
        Op::put(ONE, "os_compute_api:os-flavor-manage:update", update)
            .since(2, 55)
            .default_rule(ADMIN)
            .summary("Change a flavor's description"),
        Op::delete(ONE, "os_compute_api:os-flavor-manage:delete", delete)
            .status(202)
            .default_rule(ADMIN)
            .summary("Delete a flavor"),
        Op::get(SPECS, "os_compute_api:os-flavor-extra-specs:index", specs)
            .default_rule(ANY)
            .summary("List extra specs"),
        Op::post(SPECS, "os_compute_api:os-flavor-extra-specs:create", create_specs)
            .default_rule(ADMIN)
            .summary("Set extra specs"),
        Op::get(SPEC, "os_compute_api:os-flavor-extra-specs:show", show_spec)
            .default_rule(ANY)
            .summary("Show an extra spec"),
        Op::put(SPEC, "os_compute_api:os-flavor-extra-specs:update", update_spec)
            .default_rule(ADMIN)
            .summary("Set an extra spec"),
        Op::delete(SPEC, "os_compute_api:os-flavor-extra-specs:delete", delete_spec)
            .status(200)
            .default_rule(ADMIN)
            .summary("Delete an extra spec"),
        Op::get("/v2.1/flavors/{id}/os-flavor-access", "os_compute_api:os-flavor-access", access)
            .default_rule(ADMIN)
            .summary("Projects that may use a private flavor"),
        Op::action(
            "/v2.1/flavors/{id}/action",
            "addTenantAccess",
            "os_compute_api:os-flavor-access:add_tenant_access",
            add_access,
        )
        .default_rule(ADMIN)
        .summary("Let a project use a private flavor"),
        Op::action(
            "/v2.1/flavors/{id}/action",
            "removeTenantAccess",
            "os_compute_api:os-flavor-access:remove_tenant_access",
            remove_access,
        )
        .default_rule(ADMIN)
        .summary("Take a private flavor away from a project"),
    ]
}

pub(super) fn no_flavor(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("Flavor {id} could not be found."))
}

/// The flavor, if the caller may see it.
pub(super) fn visible(tx: &mut Tx<'_>, cx: &Ctx<State>, id: &str) -> Result<Flavor> {
    let flavor = tx.get::<Flavor>(&FlavorId::new(id))?.filter(|f| may_see(cx, f));
    flavor.ok_or_else(|| no_flavor(id))
}

fn may_see(cx: &Ctx<State>, flavor: &Flavor) -> bool {
    flavor.public || cx.is_admin() || cx.auth().project_id().is_some_and(|p| flavor.projects.contains(p))
}

fn brief(cx: &Ctx<State>, flavor: &Flavor) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("id".into(), json!(flavor.id));
    map.insert("name".into(), json!(flavor.name));
    if cx.since(2, 55) {
        map.insert("description".into(), json!(flavor.description));
    }
    map.insert("links".into(), links(cx, "flavors", flavor.id.as_str()));
    map
}

fn full(cx: &Ctx<State>, flavor: &Flavor) -> Value {
    let size = &flavor.size;
    let mut map = brief(cx, flavor);
    map.insert("ram".into(), json!(size.ram));
    map.insert("disk".into(), json!(size.disk));
    // Before 2.75 no swap was told as an empty text.
    map.insert("swap".into(), if size.swap == 0 && !cx.since(2, 75) { json!("") } else { json!(size.swap) });
    map.insert("OS-FLV-EXT-DATA:ephemeral".into(), json!(size.ephemeral));
    map.insert("OS-FLV-DISABLED:disabled".into(), json!(flavor.disabled));
    map.insert("vcpus".into(), json!(size.vcpus));
    map.insert("os-flavor-access:is_public".into(), json!(flavor.public));
    map.insert("rxtx_factor".into(), json!(size.rxtx_factor));
    if cx.since(2, 61) {
        map.insert("extra_specs".into(), json!(size.extra_specs));
    }
    Value::Object(map)
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    collection(cx, req, false).await
}

async fn detail(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    collection(cx, req, true).await
}

/// `is_public`: true unless an administrator asks otherwise; `None` is both.
fn wanted(cx: &Ctx<State>, text: Option<&str>) -> Result<Option<bool>> {
    let Some(text) = text else { return Ok(if cx.is_admin() { Some(true) } else { None }) };
    if text.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let public = ::api::types::parse_bool(text)
        .ok_or_else(|| Error::bad_request(format!("Invalid is_public filter [{text}]")))?;
    Ok(if cx.is_admin() { Some(public) } else { None })
}

async fn collection(cx: Ctx<State>, req: Request<()>, detail: bool) -> Result<Reply> {
    cx.allow(&Target::none())?;
    let known = ["limit", "marker", "is_public", "minRam", "minDisk", "sort_key", "sort_dir"];
    super::lists::strict(&cx, &req, &known)?;
    let query = req.query_pairs();
    let page = req.page(cx.state().config.max_limit)?;
    let public = wanted(&cx, query.get("is_public"))?;
    let number = |key: &str| -> Result<u64> {
        query.get(key).map_or(Ok(0), |t| {
            t.parse().map_err(|_| Error::bad_request(format!("Invalid {key} filter [{t}]")))
        })
    };
    let (min_disk, min_ram) = (number("minDisk")?, number("minRam")?);
    let mut all = cx.store().read(|tx| tx.list::<Flavor>(&Query::new())).await?;
    all.retain(|f| {
        may_see(&cx, f)
            && public.is_none_or(|p| f.public == p)
            && f.size.disk >= min_disk
            && f.size.ram >= min_ram
            && !f.disabled
    });
    sort(&mut all, &page)?;
    if let Some(marker) = &page.marker {
        let at = all.iter().position(|f| f.id.as_str() == marker);
        let at = at.ok_or_else(|| Error::bad_request(format!("marker [{marker}] not found")))?;
        all.drain(..=at);
    }
    all.truncate(page.limit);
    let items: Vec<Value> =
        all.iter().map(|f| if detail { full(&cx, f) } else { Value::Object(brief(&cx, f)) }).collect();
    let next = all.last().filter(|_| all.len() == page.limit).map(|f| f.id.to_string());
    Ok(cx.list(&req, &page, "flavors", &items, next.as_deref()))
}

fn sort(all: &mut [Flavor], page: &::api::Page) -> Result<()> {
    page.sort_within(&[
        "created_at",
        "description",
        "disabled",
        "ephemeral_gb",
        "flavorid",
        "id",
        "is_public",
        "memory_mb",
        "name",
        "root_gb",
        "rxtx_factor",
        "swap",
        "updated_at",
        "vcpu_weight",
        "vcpus",
    ])?;
    let keys: Vec<(&str, bool)> = if page.sort.is_empty() {
        vec![("name", false)]
    } else {
        page.sort.iter().map(|(k, d)| (k.as_str(), *d == ::api::paging::Dir::Desc)).collect()
    };
    all.sort_by(|a, b| {
        for (key, desc) in &keys {
            let order = match *key {
                "memory_mb" => a.size.ram.cmp(&b.size.ram),
                "root_gb" => a.size.disk.cmp(&b.size.disk),
                "vcpus" => a.size.vcpus.cmp(&b.size.vcpus),
                "created_at" => a.meta.created_at.cmp(&b.meta.created_at),
                "name" => a.name.cmp(&b.name),
                _ => a.id.cmp(&b.id),
            };
            let order = if *desc { order.reverse() } else { order };
            if order.is_ne() {
                return order;
            }
        }
        a.id.cmp(&b.id)
    });
    Ok(())
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&Target::none())?;
    let id = req.param("id").to_owned();
    let flavor = cx
        .store()
        .read({
            let cx = cx.clone();
            move |tx| visible(tx, &cx, &id)
        })
        .await?;
    Ok(Reply::json(&json!({"flavor": full(&cx, &flavor)})))
}

type Size = LaxInt<0, { i32::MAX as i64 }>;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    flavor: New,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct New {
    name: Name,
    id: Option<Id>,
    ram: LaxInt<1, { i32::MAX as i64 }>,
    vcpus: LaxInt<1, { i32::MAX as i64 }>,
    disk: Size,
    #[serde(rename = "OS-FLV-EXT-DATA:ephemeral")]
    ephemeral: Option<Size>,
    swap: Option<Size>,
    rxtx_factor: Option<Factor>,
    #[serde(rename = "os-flavor-access:is_public")]
    public: Option<LaxBool>,
    #[serde(default)]
    description: Patch<Text<0, 65535>>,
}

/// A flavor's id: text or a number.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Id {
    Text(Text<1, 64>),
    Number(Int<0, { i64::MAX }>),
}

/// A number, also as text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Factor {
    Number(f64),
    Text(Text<1, 32>),
}

impl Factor {
    fn get(&self, cx: &Ctx<State>) -> Result<f64> {
        let number = match self {
            Factor::Number(n) => Some(*n),
            Factor::Text(t) => t.parse().ok(),
        };
        number
            .filter(|n| n.is_finite() && *n > 0.0 && *n < 3.4e38)
            .ok_or_else(|| cx.dialect().invalid_field("rxtx_factor", "it is not a positive number"))
    }
}

fn flavor_id(cx: &Ctx<State>, id: Option<Id>) -> Result<FlavorId> {
    let text = match id {
        None => return Ok(FlavorId::new(cx.state().entropy.uuid().to_string())),
        Some(Id::Text(t)) if &*t == "auto" => {
            return Ok(FlavorId::new(cx.state().entropy.uuid().to_string()));
        }
        Some(Id::Text(t)) => t.into_string(),
        Some(Id::Number(n)) => n.get().to_string(),
    };
    let plain = |c: char| c.is_alphanumeric() || "-_. ".contains(c);
    if text.trim() != text || !text.chars().all(plain) {
        return Err(cx
            .dialect()
            .invalid_field("id", "it may hold letters, digits, '-', '_', '.' and inner spaces"));
    }
    Ok(FlavorId::new(text))
}

async fn create(cx: Ctx<State>, req: Request<Create>) -> Result<Reply> {
    cx.allow(&Target::none())?;
    let new = req.body.flavor;
    gate(&cx, !new.description.is_absent(), 2, 55, "description")?;
    let id = flavor_id(&cx, new.id)?;
    let name = new.name.into_string();
    if name.trim() != name {
        return Err(cx.dialect().invalid_field("name", "it may not begin or end with a blank"));
    }
    let size = FlavorSize {
        vcpus: u32::try_from(new.vcpus.get()).unwrap_or(1),
        ram: new.ram.unsigned(),
        disk: new.disk.unsigned(),
        ephemeral: new.ephemeral.map_or(0, LaxInt::unsigned),
        swap: new.swap.map_or(0, LaxInt::unsigned),
        rxtx_factor: new.rxtx_factor.map_or(Ok(1.0), |f| f.get(&cx))?,
        extra_specs: Texts::new(),
    };
    keeps_promise(&name, &size)?;
    let public = new.public.is_none_or(|p| p.0);
    let description = new.description.value().map(Text::into_string);
    let made = cx
        .store()
        .write(move |tx| {
            let mut flavor = Flavor {
                id: id.clone(),
                meta: store::Meta::default(),
                name: name.clone(),
                size: size.clone(),
                public,
                disabled: false,
                projects: BTreeSet::new(),
                description: description.clone(),
            };
            tx.insert(&mut flavor).map_err(|e| match store::unique_violation(&e) {
                Some(what) if what.columns == ["id"] => {
                    Error::conflict(format!("Flavor with ID {id} already exists."))
                }
                Some(_) => Error::conflict(format!("Flavor with name {name} already exists.")),
                None => e,
            })?;
            Ok(flavor)
        })
        .await?;
    Ok(Reply::json(&json!({"flavor": full(&cx, &made)})))
}

/// A flavor named `SCS-…` must give at least what its name says.
fn keeps_promise(name: &str, size: &FlavorSize) -> Result<()> {
    let Some(promise) = names::scs(name)? else { return Ok(()) };
    if size.vcpus < promise.vcpus || size.ram * 10 < promise.ram_tenths * 1024 || size.disk < promise.disk {
        return Err(Error::bad_request(format!(
            "Invalid input for field/attribute name. Value: {name}. The flavor gives less than its SCS name promises."
        )));
    }
    Ok(())
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Update {
    flavor: Description,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Description {
    description: Option<Text<0, 65535>>,
}

/// Changes one flavor.
async fn change(
    cx: &Ctx<State>,
    id: &str,
    f: impl Fn(&mut Flavor) -> Result<()> + Send + Sync + 'static,
) -> Result<Flavor> {
    cx.allow(&Target::none())?;
    let (cx2, id) = (cx.clone(), id.to_owned());
    cx.store()
        .write(move |tx| {
            let mut flavor = visible(tx, &cx2, &id)?;
            f(&mut flavor)?;
            tx.update(&mut flavor)?;
            Ok(flavor)
        })
        .await
}

async fn update(cx: Ctx<State>, req: Request<Update>) -> Result<Reply> {
    let text = req.body.flavor.description.as_ref().map(|t| t.as_str().to_owned());
    let flavor = change(&cx, req.param("id"), move |f| {
        f.description.clone_from(&text);
        Ok(())
    })
    .await?;
    Ok(Reply::json(&json!({"flavor": full(&cx, &flavor)})))
}

async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&Target::none())?;
    let id = req.param("id").to_owned();
    cx.store()
        .write(
            move |tx| {
                if tx.delete::<Flavor>(&FlavorId::new(id.as_str()))? { Ok(()) } else { Err(no_flavor(&id)) }
            },
        )
        .await?;
    Ok(Reply::empty())
}

async fn specs(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&Target::none())?;
    let id = req.param("id").to_owned();
    let flavor = cx
        .store()
        .read({
            let cx = cx.clone();
            move |tx| visible(tx, &cx, &id)
        })
        .await?;
    Ok(Reply::json(&json!({"extra_specs": flavor.size.extra_specs})))
}

/// The value of an extra spec: text, or a number that becomes text.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
enum SpecValue {
    Text(Text<0, 255>),
    Number(f64),
}

fn checked(cx: &Ctx<State>, map: &BTreeMap<String, SpecValue>) -> Result<Texts> {
    let mut specs = Texts::new();
    for (key, value) in map {
        let plain = |c: char| c.is_ascii_alphanumeric() || " -_.:".contains(c);
        if key.is_empty() || key.len() > 255 || !key.chars().all(plain) {
            return Err(cx.dialect().invalid_field(
                "extra_specs",
                &format!(
                    "the key '{key}' may hold letters, digits, spaces, '-', '_', '.' and ':', at most 255"
                ),
            ));
        }
        let text = match value {
            SpecValue::Text(t) => t.as_str().to_owned(),
            SpecValue::Number(n) => n.to_string(),
        };
        if key == "scs:cpu-type"
            && !["crowded-core", "shared-core", "dedicated-thread", "dedicated-core"].contains(&text.as_str())
        {
            return Err(cx.dialect().invalid_field("scs:cpu-type", "it is not one of the words of scs-0103"));
        }
        if cx.since(2, 86) {
            crate::logic::extra_specs::check(key, &text)
                .map_err(|reason| cx.dialect().invalid_field(&format!("extra_specs.{key}"), &reason))?;
        }
        specs.insert(key.clone(), text);
    }
    Ok(specs)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateSpecs {
    extra_specs: BTreeMap<String, SpecValue>,
}

async fn create_specs(cx: Ctx<State>, req: Request<CreateSpecs>) -> Result<Reply> {
    let new = checked(&cx, &req.body.extra_specs)?;
    let answer = json!({"extra_specs": new});
    change(&cx, req.param("id"), move |f| {
        f.size.extra_specs.extend(new.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::json(&answer))
}

fn no_spec(id: &str, key: &str) -> Error {
    Error::not_found(format!("Flavor {id} has no extra specs with key {key}."))
}

async fn show_spec(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&Target::none())?;
    let (id, key) = (req.param("id").to_owned(), req.param("key").to_owned());
    let flavor = cx
        .store()
        .read({
            let (cx, id) = (cx.clone(), id.clone());
            move |tx| visible(tx, &cx, &id)
        })
        .await?;
    let value = flavor.size.extra_specs.get(&key).ok_or_else(|| no_spec(&id, &key))?;
    Ok(Reply::json(&json!({key: value})))
}

async fn update_spec(cx: Ctx<State>, req: Request<BTreeMap<String, SpecValue>>) -> Result<Reply> {
    let key = req.param("key").to_owned();
    let specs = checked(&cx, &req.body)?;
    if specs.len() != 1 || !specs.contains_key(&key) {
        return Err(Error::bad_request(
            "Request body and URI mismatch: the body must hold just the key of the path",
        ));
    }
    let answer = json!(specs);
    change(&cx, req.param("id"), move |f| {
        f.size.extra_specs.extend(specs.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::json(&answer))
}

async fn delete_spec(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let (id, key) = (req.param("id").to_owned(), req.param("key").to_owned());
    change(&cx, &id.clone(), move |f| {
        f.size.extra_specs.remove(&key).map(|_| ()).ok_or_else(|| no_spec(&id, &key))
    })
    .await?;
    Ok(Reply::empty())
}

fn access_view(flavor: &Flavor) -> Reply {
    let list: Vec<Value> =
        flavor.projects.iter().map(|p| json!({"flavor_id": flavor.id, "tenant_id": p})).collect();
    Reply::json(&json!({"flavor_access": list}))
}

async fn access(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&Target::none())?;
    let id = req.param("id").to_owned();
    let flavor = cx
        .store()
        .read({
            let cx = cx.clone();
            move |tx| visible(tx, &cx, &id)
        })
        .await?;
    if flavor.public {
        return Err(Error::not_found("Access list not available for public flavors."));
    }
    Ok(access_view(&flavor))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tenant {
    tenant: Text<1, 255>,
}

async fn add_access(cx: Ctx<State>, req: Request<Tenant>) -> Result<Reply> {
    let tenant = project(&req.body.tenant)?;
    let flavor = change(&cx, req.param("id"), move |f| {
        if f.public {
            return Err(Error::conflict("Can not add access to a public flavor."));
        }
        if f.projects.insert(tenant.clone()) {
            Ok(())
        } else {
            Err(Error::conflict(format!(
                "Flavor access already exists for flavor {} and project {tenant} combination.",
                f.id
            )))
        }
    })
    .await?;
    Ok(access_view(&flavor))
}

async fn remove_access(cx: Ctx<State>, req: Request<Tenant>) -> Result<Reply> {
    let tenant = project(&req.body.tenant)?;
    let flavor = change(&cx, req.param("id"), move |f| {
        if f.projects.remove(&tenant) {
            Ok(())
        } else {
            Err(Error::not_found(format!("Flavor access not found for {} / {tenant} combination.", f.id)))
        }
    })
    .await?;
    Ok(access_view(&flavor))
}
