//! The documents: pure functions from a server spec.

use std::collections::BTreeMap;

use contract::host::ServerSpec;
use serde_json::{Value, json};

/// Versions of the OpenStack format that are served, oldest first; all answer the newest content.
const OPENSTACK: [&str; 9] = [
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    "2020-10-14",
];
/// Versions of the EC2 format that are served.
const EC2: [&str; 9] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
];

/// An answer: content type and bytes.
pub type Document = (&'static str, Vec<u8>);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// Answers `path` for a server; `None` is a 404.
pub fn answer(server: &ServerSpec, path: &str) -> Option<Document> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        [] => Some((TEXT, lines(EC2.iter().copied().chain(["latest"])))),
        ["openstack"] => Some((TEXT, lines(OPENSTACK.iter().copied().chain(["latest"])))),
        ["openstack", version, rest @ ..] if *version == "latest" || OPENSTACK.contains(version) => {
            openstack(server, rest)
        }
        [version, rest @ ..] if *version == "latest" || EC2.contains(version) => ec2(server, rest),
        _ => None,
    }
}

/// The config drive's files.
pub fn files(server: &ServerSpec) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for version in ["latest", "2020-10-14", "2018-08-27"] {
        for name in
            ["meta_data.json", "network_data.json", "vendor_data.json", "vendor_data2.json", "user_data"]
        {
            if let Some((_, bytes)) = openstack(server, &[name]) {
                files.push((format!("openstack/{version}/{name}"), bytes));
            }
        }
    }
    if let Some(bytes) = json_bytes(&ec2_document(server)) {
        files.push(("ec2/latest/meta-data.json".into(), bytes));
    }
    if let Some(user_data) = user_data(server) {
        files.push(("ec2/latest/user-data".into(), user_data));
    }
    files
}

fn openstack(server: &ServerSpec, rest: &[&str]) -> Option<Document> {
    let json = |value: &Value| json_bytes(value).map(|bytes| (JSON, bytes));
    match rest {
        [] => {
            let mut names =
                vec!["meta_data.json", "network_data.json", "vendor_data.json", "vendor_data2.json"];
            if server.metadata.user_data.is_some() {
                names.push("user_data");
            }
            Some((TEXT, lines(names)))
        }
        ["meta_data.json"] => json(&meta_data(server)),
        ["network_data.json"] => json(&server.metadata.network_data),
        ["vendor_data.json" | "vendor_data2.json"] => json(&json!({})),
        ["user_data"] => user_data(server).map(|bytes| ("application/octet-stream", bytes)),
        _ => None,
    }
}

fn meta_data(server: &ServerSpec) -> Value {
    let m = &server.metadata;
    let keys: Vec<Value> =
        m.public_keys.iter().map(|(name, data)| json!({"name": name, "type": "ssh", "data": data})).collect();
    let mut document = json!({
        "uuid": server.id,
        "name": server.name,
        "hostname": m.hostname,
        "availability_zone": m.availability_zone,
        "launch_index": m.launch_index,
        "project_id": server.project_id,
        "meta": m.meta,
        "devices": m.devices,
        "dedicated_cpus": [],
        "keys": keys,
    });
    if let Value::Object(map) = &mut document {
        if !m.public_keys.is_empty() {
            map.insert("public_keys".into(), json!(m.public_keys));
        }
        if let Some(password) = &m.admin_pass {
            map.insert("admin_pass".into(), json!(password));
        }
    }
    document
}

fn ec2(server: &ServerSpec, rest: &[&str]) -> Option<Document> {
    match rest {
        [] => {
            let user_data = server.metadata.user_data.as_ref().map(|_| "user-data");
            Some((TEXT, lines(["meta-data/"].into_iter().chain(user_data))))
        }
        ["user-data"] => user_data(server).map(|bytes| ("application/octet-stream", bytes)),
        ["meta-data", path @ ..] => {
            let mut node = &ec2_document(server);
            for part in path {
                node = node.get(part.split_once('=').map_or(*part, |(index, _)| index))?;
            }
            Some((TEXT, ec2_text(node)?))
        }
        _ => None,
    }
}

/// Nova's EC2 rendering: objects list their keys (with `/` where there is more below), lists one item a line.
fn ec2_text(node: &Value) -> Option<Vec<u8>> {
    match node {
        Value::Object(map) => Some(lines(
            map.iter()
                .map(|(key, value)| match value {
                    Value::Object(inner) if inner.contains_key("_name") => {
                        format!("{key}={}", inner.get("_name").and_then(Value::as_str).unwrap_or_default())
                    }
                    Value::Object(_) => format!("{key}/"),
                    _ => key.clone(),
                })
                .filter(|key| key != "_name"),
        )),
        Value::Array(items) => Some(lines(items.iter().filter_map(|i| i.as_str().map(str::to_owned)))),
        Value::String(text) => Some(text.clone().into_bytes()),
        Value::Number(number) => Some(number.to_string().into_bytes()),
        Value::Null => Some(Vec::new()),
        Value::Bool(_) => None,
    }
}

fn ec2_document(server: &ServerSpec) -> Value {
    let m = &server.metadata;
    let local =
        server.nics.iter().flat_map(|n| &n.fixed_ips).find(|ip| ip.is_ipv4()).map(ToString::to_string);
    let short = |id: &str| id.chars().filter(|c| *c != '-').take(8).collect::<String>();
    let keys: BTreeMap<String, Value> = m
        .public_keys
        .iter()
        .enumerate()
        .map(|(i, (name, data))| (i.to_string(), json!({"_name": name, "openssh-key": data})))
        .collect();
    let mut document = json!({
        "ami-id": m.image_id.map_or_else(|| "None".into(), |id| format!("ami-{}", short(&id.to_string()))),
        "ami-launch-index": m.launch_index,
        "ami-manifest-path": "unavailable",
        "block-device-mapping": {"ami": "vda", "root": server.disks.first().map_or("/dev/vda", |d| d.device.as_str())},
        "hostname": m.hostname,
        "instance-action": "none",
        "instance-id": format!("i-{}", short(&server.id.to_string())),
        "instance-type": m.instance_type,
        "local-hostname": m.hostname,
        "local-ipv4": local.unwrap_or_default(),
        "placement": {"availability-zone": m.availability_zone},
        "public-hostname": m.hostname,
        "public-ipv4": m.public_ipv4.map(|ip| ip.to_string()).unwrap_or_default(),
        "reservation-id": format!("r-{}", short(&server.id.to_string())),
        "security-groups": m.security_groups,
    });
    if let Value::Object(map) = &mut document
        && !keys.is_empty()
    {
        map.insert("public-keys".into(), json!(keys));
    }
    document
}

/// User data is kept as it came, in base64 (RFC 4648); guests get the bytes.
fn user_data(server: &ServerSpec) -> Option<Vec<u8>> {
    server.metadata.user_data.as_ref().and_then(|text| decode_base64(text))
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    let clean: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    base64::engine::general_purpose::STANDARD.decode(clean).ok()
}

fn json_bytes(value: &Value) -> Option<Vec<u8>> {
    serde_json::to_vec(value).ok()
}

fn lines<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> Vec<u8> {
    let items: Vec<String> = items.into_iter().map(|i| i.as_ref().to_owned()).collect();
    items.join("\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use base::{Entropy, ProjectId, ServerId, UserId};
    use contract::host::{GuestMetadata, Power};

    use super::*;

    fn server() -> ServerSpec {
        ServerSpec {
            id: ServerId::random(&Entropy::seeded(3)),
            generation: 1,
            project_id: ProjectId::new("p"),
            user_id: UserId::new("u"),
            name: "web".into(),
            power: Power::Running,
            reboots: 0,
            reboot_hard: false,
            vcpus: 1,
            memory_mib: 64,
            properties: BTreeMap::new(),
            disks: vec![],
            nics: vec![],
            config_drive: false,
            disks_from: None,
            metadata: GuestMetadata {
                hostname: "web".into(),
                public_keys: [("mine".to_owned(), "ssh-ed25519 AAAA x".to_owned())].into(),
                meta: [("role".to_owned(), "db".to_owned())].into(),
                user_data: Some("IyEvYmluL3NoCg==".into()),
                ..GuestMetadata::default()
            },
        }
    }

    fn text(path: &str) -> Option<String> {
        answer(&server(), path).map(|(_, bytes)| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn openstack_format() {
        let meta: Value = serde_json::from_str(&text("/openstack/latest/meta_data.json").unwrap()).unwrap();
        assert_eq!(meta["meta"]["role"], "db");
        assert_eq!(meta["public_keys"]["mine"], "ssh-ed25519 AAAA x");
        assert_eq!(text("/openstack/2018-08-27/user_data").unwrap(), "#!/bin/sh\n");
        assert!(text("/openstack/1999-01-01/user_data").is_none());
        assert!(text("/openstack/latest/../secrets").is_none());
    }

    #[test]
    fn ec2_format() {
        assert_eq!(text("/latest/meta-data/hostname").unwrap(), "web");
        assert_eq!(text("/2009-04-04/meta-data/public-keys/").unwrap(), "0=mine");
        assert_eq!(text("/latest/meta-data/public-keys/0/openssh-key").unwrap(), "ssh-ed25519 AAAA x");
        assert!(text("/latest/meta-data/").unwrap().contains("placement/"));
        assert_eq!(text("/latest/user-data").unwrap(), "#!/bin/sh\n");
        assert!(text("/latest/meta-data/nothing").is_none());
    }
}
