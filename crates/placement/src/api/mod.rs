//! The table of all operations of placement.

mod allocations;
mod candidates;
mod inventories;
mod names;
mod providers;

use ::api::{Ctx, Op, Target};
use base::{Error, ResourceProviderId, Result};
use store::Tx;

use crate::State;
use crate::model::Provider;

/// Who may use placement: administrators and the services of the cloud.
const STAFF: &str = "rule:context_is_admin or role:service";

/// Rules that no single operation owns.
pub(crate) const RULES: &[(&str, &str)] = &[];

/// All operations.
pub fn ops() -> Vec<Op<State>> {
    let mut ops = provider_ops();
    ops.extend(inventory_ops());
    ops.extend(name_ops());
    ops.extend(allocation_ops());
    let mut ops: Vec<_> = ops.into_iter().map(|op| op.default_rule(STAFF)).collect();
    ops.push(
        Op::get("/usages", "placement:usages", allocations::project_usages)
            .since(1, 9)
            .default_rule(
                "rule:context_is_admin or role:service or (role:reader and project_id:%(project_id)s)",
            )
            .summary("Sum of a project's claims"),
    );
    ops.extend(::api::versions::placement());
    ops
}

fn provider_ops() -> Vec<Op<State>> {
    const ONE: &str = "/resource_providers/{uuid}";
    vec![
        Op::get("/resource_providers", "placement:resource_providers:list", providers::list)
            .summary("List resource providers"),
        Op::post("/resource_providers", "placement:resource_providers:create", providers::create)
            .status(201)
            .summary("Create a resource provider"),
        Op::get(ONE, "placement:resource_providers:show", providers::show)
            .summary("Show a resource provider"),
        Op::put(ONE, "placement:resource_providers:update", providers::update)
            .summary("Rename a resource provider"),
        Op::delete(ONE, "placement:resource_providers:delete", providers::delete)
            .summary("Delete a resource provider"),
        Op::get(
            "/resource_providers/{uuid}/usages",
            "placement:resource_providers:usages",
            providers::usages,
        )
        .summary("What is claimed at a provider"),
        Op::get(
            "/resource_providers/{uuid}/aggregates",
            "placement:resource_providers:aggregates:list",
            providers::aggregates,
        )
        .since(1, 1)
        .summary("Aggregates of a provider"),
        Op::put(
            "/resource_providers/{uuid}/aggregates",
            "placement:resource_providers:aggregates:update",
            providers::set_aggregates,
        )
        .since(1, 1)
        .summary("Set the aggregates of a provider"),
        Op::get(
            "/resource_providers/{uuid}/allocations",
            "placement:resource_providers:allocations:list",
            allocations::of_provider,
        )
        .summary("Claims at a provider"),
    ]
}

fn inventory_ops() -> Vec<Op<State>> {
    const ALL: &str = "/resource_providers/{uuid}/inventories";
    const ONE: &str = "/resource_providers/{uuid}/inventories/{class}";
    vec![
        Op::get(ALL, "placement:resource_providers:inventories:list", inventories::list)
            .summary("Inventories of a provider"),
        Op::post(ALL, "placement:resource_providers:inventories:create", inventories::create)
            .status(201)
            .summary("Add an inventory"),
        Op::put(ALL, "placement:resource_providers:inventories:update", inventories::replace)
            .summary("Replace all inventories"),
        Op::delete(ALL, "placement:resource_providers:inventories:delete", inventories::clear)
            .since(1, 5)
            .summary("Delete all inventories"),
        Op::get(ONE, "placement:resource_providers:inventories:show", inventories::show)
            .summary("Show an inventory"),
        Op::put(ONE, "placement:resource_providers:inventories:update", inventories::update)
            .summary("Change an inventory"),
        Op::delete(ONE, "placement:resource_providers:inventories:delete", inventories::delete)
            .summary("Delete an inventory"),
    ]
}

fn name_ops() -> Vec<Op<State>> {
    const TRAITS_OF: &str = "/resource_providers/{uuid}/traits";
    vec![
        Op::get("/traits", "placement:traits:list", names::traits).since(1, 6).summary("List traits"),
        Op::get("/traits/{name}", "placement:traits:show", names::show_trait)
            .since(1, 6)
            .status(204)
            .summary("Whether a trait exists"),
        Op::put("/traits/{name}", "placement:traits:update", names::put_trait)
            .since(1, 6)
            .status(201)
            .summary("Create a trait"),
        Op::delete("/traits/{name}", "placement:traits:delete", names::delete_trait)
            .since(1, 6)
            .summary("Delete a trait"),
        Op::get(TRAITS_OF, "placement:resource_providers:traits:list", names::provider_traits)
            .since(1, 6)
            .summary("Traits of a provider"),
        Op::put(TRAITS_OF, "placement:resource_providers:traits:update", names::set_provider_traits)
            .since(1, 6)
            .summary("Set the traits of a provider"),
        Op::delete(TRAITS_OF, "placement:resource_providers:traits:delete", names::clear_provider_traits)
            .since(1, 6)
            .summary("Remove all traits of a provider"),
        Op::get("/resource_classes", "placement:resource_classes:list", names::classes)
            .since(1, 2)
            .summary("List resource classes"),
        Op::post("/resource_classes", "placement:resource_classes:create", names::create_class)
            .since(1, 2)
            .status(201)
            .summary("Create a resource class"),
        Op::get("/resource_classes/{name}", "placement:resource_classes:show", names::show_class)
            .since(1, 2)
            .summary("Show a resource class"),
        Op::put("/resource_classes/{name}", "placement:resource_classes:update", names::put_class)
            .since(1, 7)
            .status(201)
            .summary("Make sure that a resource class exists"),
        Op::delete("/resource_classes/{name}", "placement:resource_classes:delete", names::delete_class)
            .since(1, 2)
            .summary("Delete a resource class"),
    ]
}

fn allocation_ops() -> Vec<Op<State>> {
    vec![
        Op::get("/allocations/{consumer}", "placement:allocations:list", allocations::show)
            .summary("Claims of a consumer"),
        Op::put("/allocations/{consumer}", "placement:allocations:update", allocations::put)
            .status(204)
            .summary("Replace the claims of a consumer"),
        Op::delete("/allocations/{consumer}", "placement:allocations:delete", allocations::delete)
            .summary("Release the claims of a consumer"),
        Op::post("/allocations", "placement:allocations:manage", allocations::post)
            .since(1, 13)
            .status(204)
            .summary("Replace the claims of several consumers"),
        Op::get("/allocation_candidates", "placement:allocation_candidates:list", candidates::list)
            .since(1, 10)
            .summary("Providers with room"),
    ]
}

/// The provider's id in the path.
fn provider_id<T>(req: &::api::Request<T>) -> Result<ResourceProviderId> {
    req.id_or("uuid", |text| no_provider(text))
}

fn no_provider(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("No resource provider with uuid {id} found"))
}

/// The provider, or the 404 that names it.
fn need(tx: &mut Tx<'_>, id: ResourceProviderId) -> Result<Provider> {
    tx.get::<Provider>(&id)?.ok_or_else(|| no_provider(id))
}

/// Refuses a change made from an old view of the provider.
fn same_epoch(provider: &Provider, sent: Option<u64>) -> Result<()> {
    match sent {
        Some(sent) if sent != provider.epoch => {
            Err(Error::conflict("resource provider generation conflict").code("placement.concurrent_update"))
        }
        _ => Ok(()),
    }
}

/// Nothing here belongs to a project.
fn allow(cx: &Ctx<State>) -> Result<()> {
    cx.allow(&Target::none())
}
