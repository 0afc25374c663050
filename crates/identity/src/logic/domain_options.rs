//! The options of a domain's configuration that Keystone's API takes, and their defaults.

use serde_json::Value;

/// Group, option, default (as JSON).
const IDENTITY: &[(&str, &str)] = &[("driver", "\"sql\""), ("list_limit", "null")];

const LDAP: &[(&str, &str)] = &[
    ("url", "\"ldap://localhost\""),
    ("user", "null"),
    ("suffix", "\"cn=example,cn=com\""),
    ("query_scope", "\"one\""),
    ("page_size", "0"),
    ("alias_dereferencing", "\"default\""),
    ("debug_level", "null"),
    ("chase_referrals", "null"),
    ("user_tree_dn", "null"),
    ("user_filter", "null"),
    ("user_objectclass", "\"inetOrgPerson\""),
    ("user_id_attribute", "\"cn\""),
    ("user_name_attribute", "\"sn\""),
    ("user_mail_attribute", "\"mail\""),
    ("user_description_attribute", "\"description\""),
    ("user_pass_attribute", "\"userPassword\""),
    ("user_enabled_attribute", "\"enabled\""),
    ("user_enabled_invert", "false"),
    ("user_enabled_mask", "0"),
    ("user_enabled_default", "\"True\""),
    ("user_attribute_ignore", "[\"default_project_id\"]"),
    ("user_default_project_id_attribute", "null"),
    ("user_enabled_emulation", "false"),
    ("user_enabled_emulation_dn", "null"),
    ("user_enabled_emulation_use_group_config", "false"),
    ("user_additional_attribute_mapping", "[]"),
    ("group_tree_dn", "null"),
    ("group_filter", "null"),
    ("group_objectclass", "\"groupOfNames\""),
    ("group_id_attribute", "\"cn\""),
    ("group_name_attribute", "\"ou\""),
    ("group_members_are_ids", "false"),
    ("group_member_attribute", "\"member\""),
    ("group_desc_attribute", "\"description\""),
    ("group_attribute_ignore", "[]"),
    ("group_additional_attribute_mapping", "[]"),
    ("tls_cacertfile", "null"),
    ("tls_cacertdir", "null"),
    ("use_tls", "false"),
    ("tls_req_cert", "\"demand\""),
    ("use_pool", "true"),
    ("pool_size", "10"),
    ("pool_retry_max", "3"),
    ("pool_retry_delay", "0.1"),
    ("pool_connection_timeout", "-1"),
    ("pool_connection_lifetime", "600"),
    ("use_auth_pool", "true"),
    ("auth_pool_size", "100"),
    ("auth_pool_connection_lifetime", "60"),
];

/// The groups with their options that are shown.
pub const GROUPS: &[(&str, &[(&str, &str)])] = &[("identity", IDENTITY), ("ldap", LDAP)];

/// Whether an option exists and may be shown.
pub fn shown(group: &str, option: &str) -> bool {
    options(group).is_some_and(|all| all.iter().any(|(name, _)| *name == option))
}

/// Whether an option exists, is taken, and never shown.
pub fn secret(group: &str, option: &str) -> bool {
    (group, option) == ("ldap", "password")
}

/// The options of a group.
pub fn options(group: &str) -> Option<&'static [(&'static str, &'static str)]> {
    GROUPS.iter().find(|(name, _)| *name == group).map(|(_, options)| *options)
}

/// A default as a value.
pub fn default_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_json() {
        for (_, all) in GROUPS {
            for (name, text) in *all {
                assert!(serde_json::from_str::<Value>(text).is_ok(), "{name}");
            }
        }
        assert!(shown("ldap", "url") && !shown("ldap", "password") && secret("ldap", "password"));
    }
}
