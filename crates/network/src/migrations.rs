//! Schema changes, numbered, forward only.

use base::{Result, SecurityGroupRuleId};
use store::Tx;

use crate::api::template_row;
use crate::db::groups::factory_template;
use crate::model::{
    Allocation, DefaultRule, FloatingIp, Member, Network, Port, Quota, RbacPolicy, Router, SecurityGroup,
    SecurityGroupRule, Subnet, SubnetPool, Tombstone,
};

/// The service's tables, and the template of security groups.
pub const MIGRATIONS: &[store::Migration] = &[store::Migration::new(
    1,
    "network",
    &[
        store::Step::table::<Network>(),
        store::Step::table::<RbacPolicy>(),
        store::Step::table::<Subnet>(),
        store::Step::table::<SubnetPool>(),
        store::Step::table::<Port>(),
        store::Step::table::<Allocation>(),
        store::Step::table::<Member>(),
        store::Step::table::<Router>(),
        store::Step::table::<FloatingIp>(),
        store::Step::table::<SecurityGroup>(),
        store::Step::table::<SecurityGroupRule>(),
        store::Step::table::<DefaultRule>(),
        store::Step::table::<Quota>(),
        store::Step::table::<Tombstone>(),
        store::Step::data(template),
    ],
)];

/// Writes the template once: what an operator removes stays removed.
fn template(tx: &mut Tx<'_>) -> Result<()> {
    for (spec, other) in factory_template() {
        // The same id in every cloud: two servers that start at once write the same row.
        let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, spec.fingerprint().as_bytes());
        let mut row = template_row(SecurityGroupRuleId(id), &spec, true, other, String::new());
        if tx.get::<DefaultRule>(&row.id)?.is_none() {
            tx.insert(&mut row)?;
        }
    }
    Ok(())
}
