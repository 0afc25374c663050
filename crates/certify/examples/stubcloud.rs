//! Serves the broken clouds of the tests to other programs: `stubcloud DIR` writes `DIR/clouds.yaml` (a cloud per variant)
//! and `DIR/variants.json` (case and expected verdict of each), then serves until it is ended.

#[path = "../tests/it/stub.rs"]
#[allow(dead_code, clippy::unwrap_used, missing_docs)]
mod stub;
#[path = "../tests/it/variants.rs"]
#[allow(clippy::unwrap_used)]
mod variants;

use std::collections::BTreeMap;

use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: stubcloud DIR")?;
    let all = variants::all();
    let mut worlds = BTreeMap::from([("right".to_owned(), variants::right())]);
    for variant in &all {
        let mut world = variants::right();
        (variant.change)(&mut world);
        worlds.insert(variant.name.clone(), world);
    }
    let names: Vec<String> = worlds.keys().cloned().collect();
    let stub = stub::Stub::serve(worlds).await;
    let clouds: BTreeMap<&String, _> = names
        .iter()
        .map(|name| {
            let auth = json!({"auth_url": stub.auth_url(name), "username": "u", "password": "p", "project_name": "p",
                "user_domain_name": "Default", "project_domain_name": "Default"});
            (name, json!({"auth": auth, "region_name": "Stub", "identity_api_version": 3, "verify": false}))
        })
        .collect();
    // JSON is YAML.
    std::fs::write(format!("{dir}/clouds.yaml"), json!({ "clouds": clouds }).to_string())?;
    let told: Vec<_> =
        all.iter().map(|v| json!({"name": v.name, "case": v.case, "expect": v.expect.name()})).collect();
    std::fs::write(format!("{dir}/variants.json"), json!(told).to_string())?;
    println!("ready");
    std::future::pending::<()>().await;
    Ok(())
}
