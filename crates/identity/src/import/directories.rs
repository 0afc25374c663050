//! Domains of a Keystone that have their users in a directory: what is known of entries, and how the directory is asked.

use std::collections::BTreeMap;

use base::{DomainId, GroupId, UserId};
use serde_json::{Map, Value};

use super::Secrets;
use super::convert::Keystone;
use super::dump::Dump;
use crate::model::{DomainConfig, Group, LdapEntry, User};

/// Tables that are read.
pub const TABLES: [&str; 3] = ["id_mapping", "sensitive_config", "whitelisted_config"];

impl Keystone {
    /// Entries of directories; users and groups have been read. Keystone has no row of a group, and none of a user before the
    /// first login, but grants to them.
    pub(super) fn entries(&mut self, dump: &Dump) {
        for row in dump.rows("id_mapping") {
            let (id, domain, local_id) = (row.text("public_id"), row.text("domain_id"), row.text("local_id"));
            if !self.domain_ids.contains(&domain) {
                self.report.leave("directory entries", &id, "its domain is not there");
                continue;
            }
            let domain_id = DomainId::new(domain);
            let kind = row.text("entity_type");
            // Called by what the directory calls them until it is read.
            if kind == "group" && self.group_ids.insert(id.clone()) {
                self.groups.push(Group {
                    id: GroupId::new(id.clone()),
                    meta: store::Meta::default(),
                    domain_id: domain_id.clone(),
                    name: local_id.clone(),
                    description: String::new(),
                    extra: Map::new(),
                });
            }
            if kind == "user" && self.user_ids.insert(id.clone()) {
                self.users.push(User::new(UserId::new(id.clone()), domain_id.clone(), local_id.clone()));
            }
            let meta = store::Meta::default();
            self.entries.push(LdapEntry { id, meta, domain_id, kind, local_id, dn: String::new() });
        }
    }

    /// Configurations of domains; with keys, secrets too.
    pub(super) fn configurations(&mut self, dump: &Dump, secrets: Option<&Secrets>) {
        let mut all: BTreeMap<String, DomainConfig> = BTreeMap::new();
        for (table, secret) in [("whitelisted_config", false), ("sensitive_config", true)] {
            for row in dump.rows(table) {
                let (domain, group, option) = (row.text("domain_id"), row.text("group"), row.text("option"));
                let label = format!("{domain} {group}/{option}");
                if !self.domain_ids.contains(&domain) {
                    self.report.leave("domain configurations", &label, "its domain is not there");
                    continue;
                }
                let value = row.json("value").unwrap_or_else(|| Value::String(row.text("value")));
                let config = all.entry(domain.clone()).or_insert_with(|| DomainConfig {
                    id: DomainId::new(domain),
                    meta: store::Meta::default(),
                    options: BTreeMap::new(),
                    secrets: BTreeMap::new(),
                });
                match (secret, secrets) {
                    (false, _) => drop(config.options.entry(group).or_default().insert(option, value)),
                    (true, Some(keys)) => {
                        let sealed = keys.seal(value.as_str().unwrap_or(&value.to_string()));
                        config.secrets.entry(group).or_default().insert(option, sealed);
                    }
                    (true, None) => {
                        self.report.leave(
                            "domain configurations",
                            &label,
                            "it is a secret, and there are no credential keys",
                        );
                    }
                }
            }
        }
        self.configurations = all.into_values().collect();
    }
}
