//! The JSON Home document names what is there, as Keystone's does.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::world::World;

const BASE: &str = "https://docs.openstack.org/api/openstack-identity/3";

/// A path without the names of its parameters.
fn bare(path: &str) -> String {
    let part = |p: &str| if p.starts_with('{') { "{}".to_owned() } else { p.to_owned() };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn what_it_names_is_there_and_what_is_there_is_named() {
    let world = World::new().await;
    let client = world.anyone.with_header("accept", "application/json-home");
    let home = client.get("/v3").await.expect(200).at("/resources");
    let home = home.as_object().unwrap();
    assert_eq!(home.len(), 120);
    let user = &home[&format!("{BASE}/rel/user")];
    let vars = json!({"user_id": format!("{BASE}/param/user_id")});
    assert_eq!(*user, json!({"href-template": "/users/{user_id}", "href-vars": vars}));
    assert_eq!(home[&format!("{BASE}/rel/limits")]["hints"]["status"], "experimental");
    let trust = &home[&format!("{BASE}/ext/OS-TRUST/1.0/rel/trust")]["href-vars"]["trust_id"];
    assert_eq!(*trust, format!("{BASE}/ext/OS-TRUST/1.0/param/trust_id"));

    let path = |r: &Value| r["href"].as_str().or(r["href-template"].as_str()).unwrap().to_owned();
    let named: BTreeSet<String> = home.values().map(|r| bare(&format!("/v3{}", path(r)))).collect();
    let there: BTreeSet<String> = identity::ops().iter().map(|op| bare(&op.info().path)).collect();
    let wrong: Vec<&String> = named.difference(&there).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    // What Keystone does not name either, and what is ours.
    let silent = [
        "/",
        "/v3",
        "/v3/OS-FEDERATION/domains",
        "/v3/OS-FEDERATION/projects",
        "/v3/OS-INHERIT/projects/{}/groups/{}/roles/inherited_to_projects",
        "/v3/OS-INHERIT/projects/{}/users/{}/roles/inherited_to_projects",
        "/v3/projects/{}/tags",
    ];
    let ours = ["/v3/OS-ALLOD", "/v3/OS-OIDC", "/.well-known", "/oidc"];
    let untold: Vec<&String> = there
        .difference(&named)
        .filter(|p| !silent.contains(&p.as_str()) && !ours.iter().any(|o| p.starts_with(o)))
        .collect();
    assert!(untold.is_empty(), "{untold:?}");

    // At the root the paths begin with the version.
    let home = client.get("/").await.expect(200).at("/resources");
    assert_eq!(home[format!("{BASE}/rel/users")]["href"], "/v3/users");
}
