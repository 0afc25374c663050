//! The service catalog of a token.

use serde::{Deserialize, Serialize};

/// One way to reach a service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoint {
    /// `public`, `internal` or `admin`.
    #[serde(default)]
    pub interface: String,
    /// Its region.
    #[serde(default)]
    pub region: Option<String>,
    /// Its region, as newer clouds name it.
    #[serde(default)]
    pub region_id: Option<String>,
    /// Where.
    #[serde(default)]
    pub url: String,
}

/// A service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Its type (`compute`).
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Its name (`nova`).
    #[serde(default)]
    pub name: Option<String>,
    /// Where it is.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// All services a token may use.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Catalog(pub Vec<Entry>);

/// Types under which one service is found, the official first.
const ALIASES: &[&[&str]] = &[
    &["block-storage", "volumev3", "volume", "volumev2", "block-store"],
    &["load-balancer", "octavia"],
    &["compute", "nova"],
    &["identity", "keystone"],
    &["image", "glance"],
    &["network", "neutron"],
    &["key-manager", "barbican"],
    &["object-store", "swift"],
];

impl Catalog {
    /// Whether a service of exactly this type is in the catalog.
    pub fn has(&self, kind: &str) -> bool {
        self.0.iter().any(|e| e.kind == kind)
    }

    /// URL of a service, by its type or one of its aliases.
    pub fn endpoint(&self, kind: &str, interface: &str, region: Option<&str>) -> Option<&str> {
        let alone = [kind];
        let names = ALIASES.iter().find(|names| names.contains(&kind)).copied().unwrap_or(&alone);
        // The type asked for goes before its aliases.
        std::iter::once(kind)
            .chain(names.iter().copied())
            .find_map(|name| {
                self.0.iter().filter(|e| e.kind == name).flat_map(|e| &e.endpoints).find(|e| {
                    e.interface == interface
                        && region.is_none_or(|r| {
                            e.region_id.as_deref() == Some(r) || e.region.as_deref() == Some(r)
                        })
                })
            })
            .map(|e| e.url.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_interface_and_alias_choose() {
        let catalog: Catalog = serde_json::from_value(serde_json::json!([
            {"type": "volumev3", "name": "cinderv3", "endpoints": [
                {"interface": "public", "region": "A", "region_id": "A", "url": "https://a/v3/p"},
                {"interface": "internal", "region": "A", "url": "https://a-internal/v3/p"},
                {"interface": "public", "region": "B", "url": "https://b/v3/p"}]},
        ]))
        .unwrap();
        assert_eq!(catalog.endpoint("block-storage", "public", None), Some("https://a/v3/p"));
        assert_eq!(catalog.endpoint("block-storage", "public", Some("B")), Some("https://b/v3/p"));
        assert_eq!(catalog.endpoint("volumev3", "internal", Some("A")), Some("https://a-internal/v3/p"));
        assert_eq!(catalog.endpoint("volumev3", "admin", None), None);
        assert!(catalog.has("volumev3") && !catalog.has("block-storage"));
    }
}
