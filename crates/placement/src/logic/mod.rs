//! Pure functions: capacity, names.

pub(crate) mod names;

use base::{Error, Result};
use contract::services::Inventory;

/// Whether `amount` more may be claimed where `used` is claimed already.
///
/// # Errors
/// `Conflict` that names provider and class.
pub(crate) fn fits(
    provider: &str,
    class: &str,
    stock: Option<&Inventory>,
    used: u64,
    amount: u64,
) -> Result<()> {
    let no = |why: String| Err(Error::conflict(format!("Unable to allocate inventory: {why}")));
    let Some(stock) = stock else {
        return no(format!("resource provider '{provider}' has no inventory of class '{class}'."));
    };
    if !stock.deals(amount) {
        return no(format!(
            "{amount} of '{class}' on '{provider}' violates min_unit {}, max_unit {} or step_size {}.",
            stock.min_unit, stock.max_unit, stock.step_size
        ));
    }
    if !stock.fits(used, amount) {
        return no(format!("'{class}' on resource provider '{provider}' would exceed the capacity."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is accepted in whatever order, the sum stays within the capacity.
        #[test]
        fn never_above_capacity(total in 0u64..100, reserved in 0u64..20, ratio in 0.1f64..16.0, claims in prop::collection::vec(1u64..40, 0..50)) {
            let stock = Inventory { total, reserved, min_unit: 1, max_unit: 30, step_size: 1, allocation_ratio: ratio };
            let mut used = 0;
            for claim in claims {
                if fits("p", "VCPU", Some(&stock), used, claim).is_ok() {
                    used += claim;
                    prop_assert!(claim <= 30);
                }
                prop_assert!(used as f64 <= total.saturating_sub(reserved) as f64 * ratio);
            }
        }
    }
}
