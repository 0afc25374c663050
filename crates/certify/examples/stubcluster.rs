//! Serves the broken clusters of the tests to other programs: `stubcluster DIR` makes a directory per variant (its kubeconfig
//! and what is beside), `DIR/bin/sonobuoy`, `DIR/ca.pem` and `DIR/variants.json` (case, expected verdict and port of each), then
//! serves until it is ended.

#[path = "../tests/it/cluster_variants.rs"]
#[allow(clippy::unwrap_used)]
mod cluster_variants;
#[path = "../tests/it/stubcluster.rs"]
#[allow(dead_code, clippy::unwrap_used, missing_docs)]
mod stubcluster;

use std::collections::BTreeMap;

use base::{Clock, SystemClock};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: stubcluster DIR")?;
    let now = SystemClock.now();
    let all = cluster_variants::all(now);
    let mut worlds = BTreeMap::from([("right".to_owned(), cluster_variants::right(now))]);
    for variant in &all {
        let mut world = cluster_variants::right(now);
        (variant.change)(&mut world);
        worlds.insert(variant.name.clone(), world);
    }
    let stub = stubcluster::Stub::serve(std::path::Path::new(&dir), worlds).await;
    let right = ("right", "", "PASS");
    let told = all.iter().map(|v| (v.name.as_str(), v.case.as_str(), v.expect.name()));
    let told: Vec<_> = std::iter::once(right)
        .chain(told)
        .map(|(name, case, expect)| json!({"name": name, "case": case, "expect": expect, "port": stub.port(name)}))
        .collect();
    std::fs::write(format!("{dir}/variants.json"), json!(told).to_string())?;
    println!("ready");
    std::future::pending::<()>().await;
    Ok(())
}
