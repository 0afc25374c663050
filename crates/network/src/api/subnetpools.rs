//! `/v2.0/subnetpools`, and taking a subnet's prefix from a pool.

use std::collections::BTreeSet;

use api::{JsonSchema, Op, Reply, Request};
use base::net::IpNet;
use base::{Error, ProjectId, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Meta, Query, Tx};

use super::listing::{self, View};
use super::wire::{
    Bulk, LaxBool, LaxInt, Maybe, Name, One, Patch, Text, What, Wire, invalid, missing, not_found, read_only,
};
use super::{
    Cx, attribute_rules, attributes, check_revision, expected_revision, narrow, owner, standard, target, view,
};
use crate::State;
use crate::db::quota;
use crate::ids::SubnetPoolId;
use crate::logic::ipam;
use crate::model::{Subnet, SubnetPool};

const ATTRIBUTES: &[&str] = attributes![
    "ip_version",
    "prefixes",
    "default_prefixlen",
    "min_prefixlen",
    "max_prefixlen",
    "default_quota",
    "shared",
    "is_default",
    "address_scope_id",
];

/// A subnet pool in a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoolBody {
    name: Maybe<Name>,
    description: Maybe<Name>,
    prefixes: Maybe<Vec<Text<1, 64>>>,
    default_prefixlen: Patch<LaxInt<0, 128>>,
    min_prefixlen: Patch<LaxInt<0, 128>>,
    max_prefixlen: Patch<LaxInt<0, 128>>,
    default_quota: Patch<LaxInt<0, 2_147_483_647>>,
    shared: Maybe<LaxBool>,
    is_default: Maybe<LaxBool>,
    address_scope_id: Patch<Text<1, 36>>,
    project_id: Maybe<Text<0, 255>>,
    tenant_id: Maybe<Text<0, 255>>,
}

impl Wire for PoolBody {
    const ONE: &'static str = "subnetpool";
    const MANY: &'static str = "subnetpools";
}

pub fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.0/subnetpools", "get_subnetpool", list).summary("Lists subnet pools."),
        Op::post("/v2.0/subnetpools", "create_subnetpool", create)
            .status(201)
            .summary("Creates subnet pools."),
        Op::get("/v2.0/subnetpools/{id}", "get_subnetpool", show).summary("Shows a subnet pool."),
        Op::put("/v2.0/subnetpools/{id}", "update_subnetpool", update).summary("Changes a subnet pool."),
        Op::delete("/v2.0/subnetpools/{id}", "delete_subnetpool", remove).summary("Removes a subnet pool."),
    ]
}

fn show_pool(p: &SubnetPool) -> View {
    let mut v = view(json!({
        "id": p.id, "name": p.name, "ip_version": p.ip_version, "prefixes": p.prefixes,
        "default_prefixlen": p.default_prefixlen, "min_prefixlen": p.min_prefixlen,
        "max_prefixlen": p.max_prefixlen, "default_quota": p.default_quota, "shared": p.shared,
        "is_default": p.is_default, "address_scope_id": null,
    }));
    standard(&mut v, &p.project_id, &p.description, Some(&p.tags), &p.meta);
    v
}

fn pool_target(p: &SubnetPool) -> api::Target {
    target(What::SubnetPool, p.id, &p.project_id).flag("shared", p.shared).visible(p.shared)
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let query = narrow(Query::new(), &req, &["id", "name", "project_id"]);
    let c = cx.clone();
    let views = cx
        .store
        .read(move |tx| {
            let mut query = query.clone();
            if !c.is_admin() {
                let mut any = vec![Query::new().eq("shared", true)];
                any.extend(c.auth().project_id().map(|p| Query::new().eq("project_id", p)));
                query = query.any_of(any);
            }
            Ok(tx.list::<SubnetPool>(&query)?.iter().map(show_pool).collect::<Vec<_>>())
        })
        .await?;
    listing::list(&cx, &req, "subnetpools", ATTRIBUTES, views)
}

fn seen(cx: &Cx, tx: &mut Tx<'_>, id: SubnetPoolId) -> Result<SubnetPool> {
    let pool = tx.get::<SubnetPool>(&id)?.ok_or_else(|| not_found(What::SubnetPool, id))?;
    cx.allow_rule("get_subnetpool", &pool_target(&pool))?;
    Ok(pool)
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SubnetPoolId = req.id_or("id", |t| not_found(What::SubnetPool, t))?;
    let c = cx.clone();
    let pool = cx.store.read(move |tx| seen(&c, tx, id)).await?;
    Ok(listing::one(&req, "subnetpool", show_pool(&pool)))
}

fn prefixes(texts: &[Text<1, 64>]) -> Result<Vec<IpNet>> {
    let mut nets = Vec::new();
    for text in texts {
        nets.push(ipam::parse_cidr(text).map_err(|e| invalid("prefixes", e))?);
    }
    if nets
        .iter()
        .any(|n| ipam::version(n.network()) != nets.first().map_or(0, |f| ipam::version(f.network())))
    {
        let text = "Cannot mix IPv4 and IPv6 prefixes in a subnet pool.";
        return Err(Error::bad_request(text).code("PrefixVersionMismatch"));
    }
    Ok(IpNet::aggregate(&nets))
}

/// Checks that min ≤ default ≤ max fits the IP version.
fn check_lengths(p: &SubnetPool) -> Result<()> {
    let bound = if p.ip_version == 4 { 32 } else { 128 };
    let bad = |code, text: String| Err(Error::bad_request(text).code(code));
    if p.max_prefixlen > bound || p.min_prefixlen > bound {
        return bad(
            "UnsupportedMaxSubnetPoolPrefix",
            format!(
                "Prefix '{}' not supported in IPv{} pool.",
                p.max_prefixlen.max(p.min_prefixlen),
                p.ip_version
            ),
        );
    }
    if p.min_prefixlen > p.max_prefixlen {
        return bad(
            "IllegalSubnetPoolPrefixBounds",
            format!(
                "Illegal prefix bounds: min_prefixlen={}, max_prefixlen={}.",
                p.min_prefixlen, p.max_prefixlen
            ),
        );
    }
    if !(p.min_prefixlen..=p.max_prefixlen).contains(&p.default_prefixlen) {
        return bad(
            "IllegalSubnetPoolPrefixBounds",
            format!(
                "Illegal prefix bounds: default_prefixlen={}, min_prefixlen={}, max_prefixlen={}.",
                p.default_prefixlen, p.min_prefixlen, p.max_prefixlen
            ),
        );
    }
    Ok(())
}

/// At most one default pool of each IP version.
fn check_default(tx: &mut Tx<'_>, p: &SubnetPool) -> Result<()> {
    if p.is_default
        && tx
            .list::<SubnetPool>(&Query::new())?
            .iter()
            .any(|o| o.id != p.id && o.is_default && o.ip_version == p.ip_version)
    {
        let text = format!(
            "A default subnetpool for this IP family has already been set. Only one default may exist per IP family (IPv{})",
            p.ip_version
        );
        return Err(super::invalid_input(text));
    }
    Ok(())
}

fn length(field: &Patch<LaxInt<0, 128>>) -> Option<u8> {
    field.as_ref().and_then(|n| u8::try_from(n.get()).ok())
}

fn create_one(cx: &Cx, tx: &mut Tx<'_>, body: &PoolBody) -> Result<View> {
    let project = owner(cx, &body.project_id, &body.tenant_id)?;
    let to = api::Target::project(&project);
    cx.allow(&to)?;
    attribute_rules(
        cx,
        &to,
        &[
            ("shared", body.shared.0.is_some_and(|b| b.0)),
            ("is_default", body.is_default.0.is_some_and(|b| b.0)),
        ],
    )?;
    let Some(name) = &body.name.0 else { return Err(missing("name")) };
    let nets = prefixes(body.prefixes.0.as_deref().ok_or_else(|| missing("prefixes"))?)?;
    let Some(first) = nets.first() else { return Err(invalid("prefixes", "at least one prefix is needed")) };
    if body.address_scope_id.as_ref().is_some() {
        return Err(invalid("address_scope_id", "address scopes are not supported"));
    }
    quota::claim::<SubnetPool>(tx, &cx.env, &project, "subnetpool", 1)?;
    let v4 = first.network().is_ipv4();
    let min = length(&body.min_prefixlen).unwrap_or(if v4 { 8 } else { 64 });
    let mut pool = SubnetPool {
        id: SubnetPoolId::random(&cx.env.entropy),
        meta: Meta::default(),
        project_id: project,
        name: name.as_str().to_owned(),
        description: body.description.0.as_ref().map_or_else(String::new, |t| t.as_str().to_owned()),
        ip_version: ipam::version(first.network()),
        default_prefixlen: length(&body.default_prefixlen).unwrap_or(min),
        min_prefixlen: min,
        max_prefixlen: length(&body.max_prefixlen).unwrap_or(if v4 { 32 } else { 128 }),
        default_quota: body.default_quota.as_ref().map(|n| n.get()),
        shared: body.shared.0.is_some_and(|b| b.0),
        is_default: body.is_default.0.is_some_and(|b| b.0),
        prefixes: nets,
        tags: BTreeSet::new(),
    };
    check_lengths(&pool)?;
    check_default(tx, &pool)?;
    tx.insert(&mut pool)?;
    Ok(show_pool(&pool))
}

async fn create(cx: Cx, req: Request<Bulk<PoolBody>>) -> Result<Reply> {
    let c = cx.clone();
    match req.body {
        Bulk::One(body) => {
            let v = cx.store.write(move |tx| create_one(&c, tx, &body)).await?;
            Ok(listing::wrapped("subnetpool", v))
        }
        Bulk::Many(bodies) => {
            let make = move |tx: &mut Tx<'_>| {
                bodies.iter().map(|b| create_one(&c, tx, b).map(Value::Object)).collect::<Result<Vec<_>>>()
            };
            Ok(listing::wrapped("subnetpools", cx.store.write(make).await?))
        }
    }
}

async fn update(cx: Cx, req: Request<One<PoolBody>>) -> Result<Reply> {
    let id: SubnetPoolId = req.id_or("id", |t| not_found(What::SubnetPool, t))?;
    let expected = expected_revision(&req)?;
    let (c, body) = (cx.clone(), req.body.0);
    read_only(&[
        ("shared", body.shared.0.is_some()),
        ("project_id", body.project_id.0.is_some()),
        ("tenant_id", body.tenant_id.0.is_some()),
    ])?;
    let v = cx
        .store
        .write(move |tx| {
            let mut pool = tx.get::<SubnetPool>(&id)?.ok_or_else(|| not_found(What::SubnetPool, id))?;
            let to = pool_target(&pool);
            c.allow(&to)?;
            check_revision(expected, &pool.meta)?;
            attribute_rules(&c, &to, &[("is_default", body.is_default.0.is_some())])?;
            apply(&mut pool, &body)?;
            check_lengths(&pool)?;
            check_default(tx, &pool)?;
            tx.update(&mut pool)?;
            Ok(show_pool(&pool))
        })
        .await?;
    Ok(listing::wrapped("subnetpool", v))
}

fn apply(pool: &mut SubnetPool, body: &PoolBody) -> Result<()> {
    if let Some(name) = &body.name.0 {
        pool.name = name.as_str().to_owned();
    }
    if let Some(text) = &body.description.0 {
        pool.description = text.as_str().to_owned();
    }
    if let Some(texts) = &body.prefixes.0 {
        let mut nets = prefixes(texts)?;
        if nets.iter().any(|n| ipam::version(n.network()) != pool.ip_version) {
            return Err(invalid("prefixes", format!("the pool is of IP version {}", pool.ip_version)));
        }
        // Prefixes can be added, not taken away.
        if let Some(gone) = pool.prefixes.iter().find(|old| !nets.iter().any(|n| n.contains(*old))) {
            let text = format!(
                "Illegal subnetpool update : Existing prefixes must be a subset of the new prefixes ({gone} is missing)."
            );
            return Err(Error::bad_request(text).code("IllegalSubnetPoolPrefixUpdate"));
        }
        nets.sort();
        pool.prefixes = nets;
    }
    pool.min_prefixlen = length(&body.min_prefixlen).unwrap_or(pool.min_prefixlen);
    pool.max_prefixlen = length(&body.max_prefixlen).unwrap_or(pool.max_prefixlen);
    pool.default_prefixlen = length(&body.default_prefixlen).unwrap_or(pool.default_prefixlen);
    if let Some(quota) = body.default_quota.clone().sent() {
        pool.default_quota = quota.map(LaxInt::get);
    }
    if let Some(default) = body.is_default.0 {
        pool.is_default = default.0;
    }
    Ok(())
}

async fn remove(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id: SubnetPoolId = req.id_or("id", |t| not_found(What::SubnetPool, t))?;
    let expected = expected_revision(&req)?;
    let c = cx.clone();
    cx.store
        .write(move |tx| {
            let pool = tx.get::<SubnetPool>(&id)?.ok_or_else(|| not_found(What::SubnetPool, id))?;
            c.allow(&pool_target(&pool))?;
            check_revision(expected, &pool.meta)?;
            if tx.count::<Subnet>(&Query::new().eq("subnetpool_id", id))? > 0 {
                let text = format!(
                    "Unable to complete operation on subnet pool {id}: Subnet pool has existing allocations."
                );
                return Err(Error::conflict(text).code("SubnetPoolInUse"));
            }
            tx.delete::<SubnetPool>(&id).map(|_| ())
        })
        .await?;
    Ok(Reply::empty())
}

/// The pool a new subnet shall take its prefix from, if any.
///
/// # Errors
/// `SubnetPoolNotFound`; `BadRequest` where the default is asked for and there is none.
pub fn wanted(
    cx: &Cx,
    tx: &mut Tx<'_>,
    id: Option<&str>,
    default: bool,
    version: Option<i64>,
) -> Result<Option<SubnetPool>> {
    if let Some(text) = id {
        let id: SubnetPoolId =
            text.parse().map_err(|_| invalid("subnetpool_id", format!("'{text}' is not a valid UUID")))?;
        let pool = seen(cx, tx, id)?;
        if version.is_some_and(|v| v != i64::from(pool.ip_version)) {
            return Err(super::invalid_input(
                "Cannot allocate requested subnet: IP version differs from the pool's",
            ));
        }
        return Ok(Some(pool));
    }
    if !default {
        return Ok(None);
    }
    let version = version.ok_or_else(|| missing("ip_version"))?;
    let all = tx.list::<SubnetPool>(&Query::new())?;
    let found = all.into_iter().find(|p| p.is_default && i64::from(p.ip_version) == version);
    found.map(Some).ok_or_else(|| {
        Error::bad_request(format!("Bad subnets request: No default subnetpool found for IPv{version}."))
            .code("BadRequest")
    })
}

/// Takes a prefix from the pool: the given one, or the lowest free one of the length.
///
/// # Errors
/// `MinPrefixSubnetAllocationError`, `MaxPrefixSubnetAllocationError` (400), `SubnetAllocationError`,
/// `SubnetPoolQuotaExceeded` (409).
pub fn carve(
    tx: &mut Tx<'_>,
    pool: &SubnetPool,
    project: &ProjectId,
    cidr: Option<IpNet>,
    prefixlen: Option<u8>,
) -> Result<IpNet> {
    let length = cidr.map(|c| c.prefix_len()).or(prefixlen).unwrap_or(pool.default_prefixlen);
    if length < pool.min_prefixlen {
        let text = format!(
            "Unable to allocate subnet with prefix length {length}, minimum allowed prefix is {}.",
            pool.min_prefixlen
        );
        return Err(Error::bad_request(text).code("MinPrefixSubnetAllocationError"));
    }
    if length > pool.max_prefixlen {
        let text = format!(
            "Unable to allocate subnet with prefix length {length}, maximum allowed prefix is {}.",
            pool.max_prefixlen
        );
        return Err(Error::bad_request(text).code("MaxPrefixSubnetAllocationError"));
    }
    let rows = tx.list::<Subnet>(&Query::new().eq("subnetpool_id", pool.id))?;
    // IPv4 quotas count addresses, IPv6 quotas /64 networks.
    let unit = |len: u8| -> u128 { 1 << (if pool.ip_version == 4 { 32_u8 } else { 64 }).saturating_sub(len) };
    let mine: u128 =
        rows.iter().filter(|s| s.project_id == *project).map(|s| unit(s.cidr.prefix_len())).sum();
    if let Some(quota) = pool.default_quota.and_then(|q| u128::try_from(q).ok())
        && mine + unit(length) > quota
    {
        return Err(
            Error::conflict("Per-tenant subnet pool prefix quota exceeded.").code("SubnetPoolQuotaExceeded")
        );
    }
    let taken: Vec<IpNet> = rows.iter().map(|s| s.cidr).collect();
    let found = match cidr {
        Some(c)
            if pool.prefixes.iter().any(|p| p.contains(&c))
                && !taken.iter().any(|t| ipam::overlap(t, &c)) =>
        {
            Some(c)
        }
        Some(_) => None,
        None => ipam::carve(&pool.prefixes, &taken, length),
    };
    found.ok_or_else(|| {
        let what = if cidr.is_some() {
            "Cannot allocate requested subnet from the available set of prefixes"
        } else {
            "Insufficient prefix space to allocate subnet size"
        };
        Error::conflict(format!("Failed to allocate subnet: {what}.")).code("SubnetAllocationError")
    })
}
