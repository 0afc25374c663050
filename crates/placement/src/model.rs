//! Resources of placement.

use std::collections::BTreeMap;

use base::{ProjectId, ResourceProviderId, UserId};
use contract::services::Inventory;
use store::{Migration, Step};
use uuid::Uuid;

/// Amounts by resource class.
pub type Amounts = BTreeMap<String, u64>;

store::resource! {
    /// A resource provider with everything that is known of it.
    pub struct Provider, table "placement_providers", id ResourceProviderId {
        unique: [[name]],
        index: [parent],
    } {
        /// Name, unique.
        pub name: String,
        /// The provider it is a part of.
        pub parent: Option<ResourceProviderId>,
        /// Top of its tree; its own id where it has no parent.
        pub root: ResourceProviderId,
        /// Grows with every change a client makes; clients must know it to change something.
        pub epoch: u64,
        /// By resource class.
        pub inventories: BTreeMap<String, Inventory>,
        /// Claimed by resource class: the sum over all consumers.
        pub used: Amounts,
        /// Trait names, sorted.
        pub traits: Vec<String>,
        /// Aggregates, sorted.
        pub aggregates: Vec<Uuid>,
    }
}

store::resource! {
    /// Who claims what.
    pub struct Consumer, table "placement_consumers", id Uuid {
        unique: [],
        index: [project_id],
    } {
        /// For whom.
        pub project_id: ProjectId,
        /// By whom.
        pub user_id: UserId,
        /// `INSTANCE`, `MIGRATION`, … or `unknown`.
        pub consumer_type: String,
        /// Grows with every change of the claims.
        pub epoch: u64,
        /// Claims by provider.
        pub claims: BTreeMap<ResourceProviderId, Amounts>,
    }
}

store::resource! {
    /// A trait the operator made (`CUSTOM_…`).
    pub struct CustomTrait, table "placement_traits", id String {
        unique: [],
        index: [],
    } {}
}

store::resource! {
    /// A resource class the operator made (`CUSTOM_…`).
    pub struct CustomClass, table "placement_classes", id String {
        unique: [],
        index: [],
    } {}
}

/// The tables.
pub const MIGRATIONS: &[Migration] = &[Migration::new(
    1,
    "placement",
    &[
        Step::table::<Provider>(),
        Step::table::<Consumer>(),
        Step::table::<CustomTrait>(),
        Step::table::<CustomClass>(),
    ],
)];
