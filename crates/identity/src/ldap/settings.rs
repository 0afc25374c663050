//! Keystone's options of an LDAP domain, and what they make of entries.

use std::collections::BTreeMap;

use base::{Error, Result};
use ldap3::ldap_escape;
use serde_json::{Map, Value};

use super::client::Entry;
use super::mirror::{Person, Team};

/// Where entries of one kind are, and what is what in them.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Below which entry they are.
    pub tree: String,
    /// Their class and the operator's condition, as a filter.
    filter: String,
    /// What names an entry for good.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What is read of an entry.
    pub attributes: Vec<String>,
    description: String,
}

/// The options of one domain. Not `Debug`: it holds a password.
#[derive(Clone)]
pub struct Settings {
    pub url: String,
    pub start_tls: bool,
    /// Whether the server must prove who it is.
    pub verify: bool,
    /// A file of certificates to trust instead of the system's.
    pub ca_file: Option<String>,
    /// Who reads; `None` = anybody may.
    pub bind: Option<(String, String)>,
    pub subtree: bool,
    pub page: i32,
    pub users: Kind,
    pub groups: Kind,
    pub members_are_ids: bool,
    /// The attribute of a group that names its members.
    pub member: String,
    mail: Option<String>,
    enabled: Option<String>,
    enabled_mask: i64,
    enabled_invert: bool,
    enabled_default: String,
    /// Attributes of the directory by what they become here.
    additional: BTreeMap<String, String>,
}

struct Options<'a>(&'a BTreeMap<String, Value>);

impl Options<'_> {
    fn text(&self, name: &str) -> Option<String> {
        match self.0.get(name) {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            Some(Value::Number(n)) => Some(n.to_string()),
            Some(Value::Bool(flag)) => Some(flag.to_string()),
            _ => None,
        }
    }

    fn or(&self, name: &str, otherwise: &str) -> String {
        self.text(name).unwrap_or_else(|| otherwise.to_owned())
    }

    fn flag(&self, name: &str) -> bool {
        self.text(name)
            .is_some_and(|text| matches!(text.to_ascii_lowercase().as_str(), "true" | "1" | "yes" | "on"))
    }

    fn list(&self, name: &str) -> Option<Vec<String>> {
        match self.0.get(name)? {
            Value::Array(all) => Some(all.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            Value::String(text) => {
                Some(text.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect())
            }
            _ => None,
        }
    }
}

fn wrong(option: &str, why: &str) -> Error {
    Error::unavailable("The directory of the domain is not configured well.")
        .caused_by(format!("ldap/{option}: {why}"))
}

impl Settings {
    /// Reads them; `password` is the one of who reads.
    ///
    /// # Errors
    /// `Unavailable` where an option says what cannot be done; which is in the log.
    pub fn read(options: Option<&BTreeMap<String, Value>>, password: Option<String>) -> Result<Self> {
        let none = BTreeMap::new();
        let of = Options(options.unwrap_or(&none));
        if of.flag("user_enabled_emulation") {
            return Err(wrong("user_enabled_emulation", "is not supported"));
        }
        let suffix = of.or("suffix", "cn=example,cn=com");
        let kind = |which: &str, ou: &str, class: &str, name: &str, more: &[Option<&String>]| {
            let option = |what: &str| format!("{which}_{what}");
            let class = of.or(&option("objectclass"), class);
            let filter = of.text(&option("filter")).unwrap_or_default();
            let (id, name) = (of.or(&option("id_attribute"), "cn"), of.or(&option("name_attribute"), name));
            let described = if which == "user" { "description_attribute" } else { "desc_attribute" };
            let description = of.or(&option(described), "description");
            let mut attributes = vec![id.clone(), name.clone(), description.clone()];
            attributes.extend(more.iter().filter_map(|m| m.cloned()));
            Kind {
                tree: of.or(&option("tree_dn"), &format!("{ou},{suffix}")),
                filter: format!("(objectClass={}){filter}", ldap_escape(class)),
                id,
                name,
                attributes,
                description,
            }
        };
        let ignored = of.list("user_attribute_ignore").unwrap_or_default();
        let unless_ignored =
            |name: &str, attribute: String| (!ignored.iter().any(|i| i == name)).then_some(attribute);
        let mail = unless_ignored("email", of.or("user_mail_attribute", "mail"));
        let enabled = unless_ignored("enabled", of.or("user_enabled_attribute", "enabled"));
        let mut additional = BTreeMap::new();
        for pair in of.list("user_additional_attribute_mapping").unwrap_or_default() {
            let (theirs, ours) = pair
                .split_once(':')
                .ok_or_else(|| wrong("user_additional_attribute_mapping", "is attribute:name"))?;
            additional.insert(theirs.trim().to_owned(), ours.trim().to_owned());
        }
        let member = of.or("group_member_attribute", "member");
        let more: Vec<Option<&String>> =
            [mail.as_ref(), enabled.as_ref()].into_iter().chain(additional.keys().map(Some)).collect();
        let users = kind("user", "ou=Users", "inetOrgPerson", "sn", &more);
        let groups = kind("group", "ou=UserGroups", "groupOfNames", "ou", &[Some(&member)]);
        let url = of.or("url", "ldap://localhost");
        if !url.starts_with("ldap://") && !url.starts_with("ldaps://") {
            return Err(wrong("url", "begins with ldap:// or ldaps://"));
        }
        let demand = of.or("tls_req_cert", "demand");
        Ok(Settings {
            // Keystone takes several and asks them in turn; so do names with several addresses.
            url: url.split(',').next().unwrap_or_default().trim().to_owned(),
            start_tls: of.flag("use_tls"),
            verify: demand == "demand",
            ca_file: of.text("tls_cacertfile"),
            bind: of.text("user").map(|user| (user, password.unwrap_or_default())),
            subtree: of.or("query_scope", "one") == "sub",
            page: of.text("page_size").and_then(|t| t.parse().ok()).filter(|n| *n > 0).unwrap_or(500),
            users,
            groups,
            members_are_ids: of.flag("group_members_are_ids"),
            member,
            mail,
            enabled,
            enabled_mask: of.text("user_enabled_mask").and_then(|t| t.parse().ok()).unwrap_or(0),
            enabled_invert: of.flag("user_enabled_invert"),
            enabled_default: of.or("user_enabled_default", "True"),
            additional,
        })
    }

    /// A user, if the entry has what it needs.
    pub fn person(&self, entry: &Entry) -> Option<Person> {
        let mut extra = Map::new();
        if let Some(mail) = self.mail.as_ref().and_then(|a| entry.first(a)) {
            extra.insert("email".into(), Value::String(mail.to_owned()));
        }
        for (theirs, ours) in &self.additional {
            if let Some(value) = entry.first(theirs) {
                extra.insert(ours.clone(), Value::String(value.to_owned()));
            }
        }
        Some(Person {
            local_id: entry.first(&self.users.id)?.to_owned(),
            name: short(entry.first(&self.users.name)?)?,
            dn: entry.dn.clone(),
            enabled: self.is_enabled(entry),
            description: entry.first(&self.users.description).map(str::to_owned),
            extra,
        })
    }

    fn is_enabled(&self, entry: &Entry) -> bool {
        let Some(attribute) = &self.enabled else { return true };
        let text = entry.first(attribute).unwrap_or(&self.enabled_default);
        if self.enabled_mask != 0 {
            // Active Directory: a bit says that the account is disabled.
            return text.trim().parse::<i64>().is_ok_and(|n| n & self.enabled_mask != self.enabled_mask);
        }
        let yes = matches!(text.trim().to_ascii_lowercase().as_str(), "true" | "1" | "yes");
        yes != self.enabled_invert
    }

    /// A group, if the entry has what it needs.
    pub fn team(&self, entry: &Entry) -> Option<Team> {
        Some(Team {
            local_id: entry.first(&self.groups.id)?.to_owned(),
            name: short(entry.first(&self.groups.name)?)?,
            dn: entry.dn.clone(),
            description: entry.first(&self.groups.description).unwrap_or_default().to_owned(),
            members: entry.all(&self.member).to_vec(),
        })
    }
}

/// A name the tables take.
fn short(name: &str) -> Option<String> {
    let name = name.trim();
    (1..=255).contains(&name.chars().count()).then(|| name.to_owned())
}

impl Kind {
    /// The name of an entry there is not.
    pub fn nobody(&self) -> String {
        format!("{}=0f8fad5b-d9cb-469f-a165-70867728950e,{}", self.id, self.tree)
    }

    /// Entries of this kind of which `attribute` is `value`, or all.
    pub fn filter(&self, only: Option<(&str, &str)>) -> String {
        let only = only.map(|(attribute, value)| format!("({attribute}={})", ldap_escape(value)));
        format!("(&{}{})", self.filter, only.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(options: Value) -> Settings {
        let map: BTreeMap<String, Value> = serde_json::from_value(options).unwrap();
        Settings::read(Some(&map), None).unwrap()
    }

    fn entry(values: &[(&str, &str)]) -> Entry {
        Entry::new("cn=a,dc=b", values.iter().map(|(k, v)| ((*k).to_owned(), vec![(*v).to_owned()])))
    }

    #[test]
    fn defaults_are_keystones() {
        let s = settings(json!({"suffix": "dc=b"}));
        assert_eq!(s.users.tree, "ou=Users,dc=b");
        assert_eq!(s.groups.tree, "ou=UserGroups,dc=b");
        assert_eq!(
            s.users.filter(Some(("cn", "a)(b*"))),
            "(&(objectClass=inetOrgPerson)(cn=a\\29\\28b\\2a))"
        );
        assert!(s.verify && !s.subtree && !s.members_are_ids && s.page == 500);
        let person = s.person(&entry(&[("cn", "1"), ("SN", "ann"), ("mail", "a@b")])).unwrap();
        assert_eq!((person.local_id.as_str(), person.name.as_str(), person.enabled), ("1", "ann", true));
        assert_eq!(person.extra["email"], "a@b");
        assert!(s.person(&entry(&[("cn", "1")])).is_none());
        assert!(
            Settings::read(Some(&BTreeMap::from([("url".to_owned(), json!("http://x"))])), None).is_err()
        );
    }

    #[test]
    fn accounts_are_disabled_as_the_directory_says() {
        let active = settings(
            json!({"user_enabled_attribute": "userAccountControl", "user_enabled_mask": "2", "user_enabled_default": "512"}),
        );
        for (text, enabled) in [("512", true), ("514", false), ("66050", false), ("nonsense", false)] {
            assert_eq!(active.is_enabled(&entry(&[("userAccountControl", text)])), enabled, "{text}");
        }
        assert!(active.is_enabled(&entry(&[])));
        let locked = settings(
            json!({"user_enabled_attribute": "locked", "user_enabled_invert": true, "user_enabled_default": "False"}),
        );
        assert!(locked.is_enabled(&entry(&[])) && !locked.is_enabled(&entry(&[("locked", "TRUE")])));
        let plain = settings(json!({}));
        assert!(
            plain.is_enabled(&entry(&[("enabled", "TRUE")]))
                && !plain.is_enabled(&entry(&[("enabled", "FALSE")]))
        );
        let ignored = settings(json!({"user_attribute_ignore": ["enabled", "email"]}));
        assert!(ignored.is_enabled(&entry(&[("enabled", "FALSE")])));
    }
}
