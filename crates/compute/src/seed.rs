//! The SCS flavors.

use base::{Error, FlavorId, Result};
use serde::Deserialize;
use store::{Query, Store};
use uuid::Uuid;

use crate::model::{Flavor, FlavorSize};

#[derive(Deserialize)]
struct Row {
    name: String,
    vcpus: u32,
    ram: u64,
    disk: u64,
    cpu: String,
    disk0: Option<String>,
    mandatory: bool,
}

const DATA: &str = include_str!("../data/scs-flavors.yaml");

fn flavor(row: Row) -> Flavor {
    let mut specs = crate::model::Texts::new();
    let old = row.name.splitn(3, '-').collect::<Vec<_>>();
    let old = match old.as_slice() {
        [scs, cpu, rest] => format!("{scs}-{cpu}:{}", rest.replace('-', ":")),
        _ => row.name.clone(),
    };
    specs.insert("scs:name-v1".into(), old);
    specs.insert("scs:name-v2".into(), row.name.clone());
    specs.insert("scs:cpu-type".into(), row.cpu);
    if let Some(kind) = row.disk0 {
        specs.insert("scs:disk0-type".into(), kind);
    }
    Flavor {
        // The same id on every cloud: scripts that remember ids survive a reinstallation.
        id: FlavorId::new(
            Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("scs-flavor:{}", row.name).as_bytes()).to_string(),
        ),
        meta: store::Meta::default(),
        name: row.name,
        size: FlavorSize {
            vcpus: row.vcpus,
            ram: row.ram,
            disk: row.disk,
            ephemeral: 0,
            swap: 0,
            rxtx_factor: 1.0,
            extra_specs: specs,
        },
        public: true,
        disabled: false,
        projects: std::collections::BTreeSet::new(),
        description: None,
    }
}

/// Makes the standard flavors of scs-0103-v1 where there is no flavor at all yet: the mandatory ones, and with
/// `recommended` the others too. A cloud whose operator chose other flavors is left alone.
///
/// # Errors
/// From the store.
pub async fn seed_flavors(store: &Store, recommended: bool) -> Result<()> {
    store
        .write(move |tx| {
            if tx.exists::<Flavor>(&Query::new())? {
                return Ok(());
            }
            let rows: Vec<Row> = serde_norway::from_str(DATA).map_err(Error::internal)?;
            for row in rows.into_iter().filter(|r| r.mandatory || recommended) {
                tx.insert(&mut flavor(row))?;
            }
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_what_its_name_promises() {
        let rows: Vec<Row> = serde_norway::from_str(DATA).unwrap();
        assert_eq!(rows.iter().filter(|r| r.mandatory).count(), 15);
        assert_eq!(rows.len(), 31);
        for row in rows {
            let promise = crate::logic::names::scs(&row.name).unwrap().unwrap();
            assert_eq!(promise.vcpus, row.vcpus);
            assert_eq!(promise.ram_tenths * 1024, row.ram * 10);
            assert_eq!(promise.disk, row.disk);
            assert_eq!(row.disk0.is_some(), row.disk > 0);
            let made = flavor(row);
            assert_eq!(made.size.extra_specs["scs:name-v1"].matches('-').count(), 1);
        }
    }
}
