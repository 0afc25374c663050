//! Keystone's tables as resources of ours. Pure: what cannot be said in ours is in the report.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use base::{
    ApplicationCredentialId, DomainId, EndpointId, GroupId, ProjectId, RegionId, RoleId, ServiceId,
    Timestamp, UserId,
};
use serde_json::{Map, Value};

use super::dump::{Dump, Row};
use super::extensions::Extensions;
use super::{Report, Secrets};
use crate::logic::inference::{Rules, closure};
use crate::model::{
    AccessRule, Actor, ApplicationCredential, Assignment, Domain, DomainConfig, Endpoint, Extra, Group,
    ImpliedRole, LdapEntry, Membership, Place, Project, Region, Role, RuleOfAccess, Service, User,
};

/// Tables that are read.
pub const TABLES: [&str; 22] = [
    "access_rule",
    "application_credential",
    "application_credential_access_rule",
    "application_credential_role",
    "assignment",
    "endpoint",
    "federated_user",
    "group",
    "implied_role",
    "local_user",
    "nonlocal_user",
    "password",
    "project",
    "project_option",
    "project_tag",
    "region",
    "role",
    "role_option",
    "service",
    "system_assignment",
    "user",
    "user_group_membership",
];
const USER_OPTIONS: &str = "user_option";
/// What Keystone writes where a role has no domain.
const NO_DOMAIN: &str = "<<null>>";
/// What Keystone writes as the domain of domains.
const ROOT: &str = "<<keystone.domain.root>>";

/// Names of options by their ids.
const OPTIONS: [(&str, &str); 8] = [
    ("1000", "ignore_change_password_upon_first_use"),
    ("1001", "ignore_password_expiry"),
    ("1002", "ignore_lockout_failure_attempts"),
    ("1003", "lock_password"),
    ("1004", "ignore_user_inactivity"),
    ("MFAR", "multi_factor_auth_rules"),
    ("MFAE", "multi_factor_auth_enabled"),
    ("IMMU", "immutable"),
];

/// All tables to read from a dump.
pub fn tables() -> Vec<&'static str> {
    TABLES
        .into_iter()
        .chain(super::extensions::TABLES)
        .chain(super::directories::TABLES)
        .chain([USER_OPTIONS])
        .collect()
}

/// What a dump holds, as resources.
#[derive(Debug, Default)]
pub struct Keystone {
    pub regions: Vec<Region>,
    pub services: Vec<Service>,
    pub endpoints: Vec<Endpoint>,
    pub domains: Vec<Domain>,
    pub projects: Vec<Project>,
    pub roles: Vec<Role>,
    pub implied: Vec<ImpliedRole>,
    pub users: Vec<User>,
    pub groups: Vec<Group>,
    pub memberships: Vec<Membership>,
    pub assignments: Vec<Assignment>,
    pub access_rules: Vec<AccessRule>,
    pub credentials: Vec<ApplicationCredential>,
    pub more: Extensions,
    pub entries: Vec<LdapEntry>,
    pub configurations: Vec<DomainConfig>,
    pub report: Report,
    /// Ids of roles there, by those of Keystone.
    pub(super) role_ids: HashMap<String, RoleId>,
    pub(super) user_ids: HashSet<String>,
    pub(super) group_ids: HashSet<String>,
    pub(super) project_ids: HashSet<String>,
    pub(super) domain_ids: HashSet<String>,
}

pub(super) fn extra(row: &Row<'_>) -> Extra {
    match row.json("extra") {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A moment as Keystone keeps it: microseconds in `<column>_int`, else text.
pub(super) fn moment(row: &Row<'_>, column: &str) -> Option<Timestamp> {
    row.number(&format!("{column}_int"))
        .map(Timestamp)
        .or_else(|| row.get(column)?.parse().ok().map(Timestamp))
        .or_else(|| Timestamp::parse(&row.get(column)?.replace(' ', "T")))
}

fn taken_text(map: &mut Extra, name: &str) -> Option<String> {
    match map.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// Options of a table by whom they are of.
fn options(dump: &Dump, table: &str, owner: &str) -> HashMap<String, Extra> {
    let mut all: HashMap<String, Extra> = HashMap::new();
    for row in dump.rows(table) {
        let name = OPTIONS.iter().find(|(id, _)| row.get("option_id") == Some(id)).map(|(_, name)| *name);
        if let (Some(name), Some(value)) = (name, row.json("option_value")) {
            all.entry(row.text(owner)).or_default().insert(name.to_owned(), value);
        }
    }
    all
}

impl Keystone {
    /// Reads a dump. `known`: ids of the roles that are there, by domain and name.
    pub fn read(dump: &Dump, known: &BTreeMap<(String, String), String>, secrets: Option<&Secrets>) -> Self {
        let mut all = Keystone::default();
        all.catalog(dump);
        all.projects(dump);
        all.roles(dump, known);
        all.users(dump);
        all.groups(dump);
        all.entries(dump);
        all.assignments(dump);
        all.application_credentials(dump);
        all.extensions(dump, secrets);
        all.configurations(dump, secrets);
        all
    }

    fn catalog(&mut self, dump: &Dump) {
        for row in dump.rows("region") {
            self.regions.push(Region {
                id: RegionId::new(row.text("id")),
                meta: store::Meta::default(),
                parent_region_id: row.some("parent_region_id").map(RegionId::new),
                description: row.text("description"),
                extra: extra(&row),
            });
        }
        for row in dump.rows("service") {
            let mut more = extra(&row);
            self.services.push(Service {
                id: ServiceId::new(row.text("id")),
                meta: store::Meta::default(),
                service_type: row.text("type"),
                name: taken_text(&mut more, "name").unwrap_or_default(),
                description: taken_text(&mut more, "description"),
                enabled: row.flag("enabled", true),
                extra: more,
            });
        }
        for row in dump.rows("endpoint") {
            self.endpoints.push(Endpoint {
                id: EndpointId::new(row.text("id")),
                meta: store::Meta::default(),
                service_id: ServiceId::new(row.text("service_id")),
                interface: row.text("interface"),
                region_id: row.some("region_id").map(RegionId::new),
                url: row.text("url"),
                enabled: row.flag("enabled", true),
                extra: extra(&row),
            });
        }
    }

    /// Domains are projects in Keystone's tables.
    fn projects(&mut self, dump: &Dump) {
        let mut tags: HashMap<String, Vec<String>> = HashMap::new();
        for row in dump.rows("project_tag") {
            tags.entry(row.text("project_id")).or_default().push(row.text("name"));
        }
        let mut options = options(dump, "project_option", "project_id");
        for row in dump.rows("project") {
            let id = row.text("id");
            if id == ROOT {
                continue;
            }
            let (tags, options) =
                (tags.remove(&id).unwrap_or_default(), options.remove(&id).unwrap_or_default());
            let (name, description) = (row.text("name"), row.text("description"));
            let (enabled, extra) = (row.flag("enabled", true), extra(&row));
            if row.flag("is_domain", false) {
                self.domain_ids.insert(id.clone());
                self.domains.push(Domain {
                    id: DomainId::new(id),
                    meta: store::Meta::default(),
                    name,
                    description,
                    enabled,
                    tags,
                    options,
                    extra,
                    revoked_before: None,
                });
                continue;
            }
            let domain_id = row.text("domain_id");
            self.project_ids.insert(id.clone());
            self.projects.push(Project {
                id: ProjectId::new(id),
                meta: store::Meta::default(),
                parent_id: row.some("parent_id").unwrap_or_else(|| domain_id.clone()),
                domain_id: DomainId::new(domain_id),
                name,
                description,
                enabled,
                tags,
                options,
                extra,
                revoked_before: None,
            });
        }
    }

    fn roles(&mut self, dump: &Dump, known: &BTreeMap<(String, String), String>) {
        let mut options = options(dump, "role_option", "role_id");
        for row in dump.rows("role") {
            let (id, name) = (row.text("id"), row.text("name"));
            let domain_key = row.some("domain_id").filter(|d| d != NO_DOMAIN).unwrap_or_default();
            if let Some(other) = known.get(&(domain_key.clone(), name.clone())) {
                self.role_ids.insert(id.clone(), RoleId::new(other.clone()));
                if *other != id {
                    *self.report.there.entry("roles").or_default() += 1;
                    continue;
                }
            }
            self.role_ids.insert(id.clone(), RoleId::new(id.clone()));
            self.roles.push(Role {
                options: options.remove(&id).unwrap_or_default(),
                id: RoleId::new(id),
                meta: store::Meta::default(),
                name,
                domain_key,
                description: row.some("description"),
                extra: extra(&row),
            });
        }
        for row in dump.rows("implied_role") {
            let of = |column: &str| self.role_ids.get(&row.text(column)).cloned();
            if let (Some(prior), Some(implied)) = (of("prior_role_id"), of("implied_role_id")) {
                self.implied.push(ImpliedRole::new(&prior, &implied));
            }
        }
    }

    fn users(&mut self, dump: &Dump) {
        let mut local: HashMap<String, Row<'_>> = HashMap::new();
        let mut owners: HashMap<String, String> = HashMap::new();
        for row in dump.rows("local_user") {
            owners.insert(row.text("id"), row.text("user_id"));
            local.insert(row.text("user_id"), row);
        }
        let mut passwords: HashMap<String, Vec<Row<'_>>> = HashMap::new();
        for row in dump.rows("password") {
            if let Some(owner) = owners.get(&row.text("local_user_id")) {
                passwords.entry(owner.clone()).or_default().push(row);
            }
        }
        let names = |table: &'static str, name: &'static str| -> HashMap<String, String> {
            dump.rows(table).map(|row| (row.text("user_id"), row.text(name))).collect()
        };
        let (nonlocal, federated) = (names("nonlocal_user", "name"), names("federated_user", "display_name"));
        let mut options = options(dump, USER_OPTIONS, "user_id");
        let mut federated_names: HashSet<(String, String)> = HashSet::new();
        for row in dump.rows("user") {
            let id = row.text("id");
            let domain = row.text("domain_id");
            let name = match (local.get(&id), nonlocal.get(&id), federated.get(&id)) {
                (Some(local), ..) => local.text("name"),
                (None, Some(name), _) => name.clone(),
                // Names of federated users need not be unique in Keystone.
                (None, None, Some(name)) if federated_names.insert((domain.clone(), name.clone())) => {
                    name.clone()
                }
                (None, None, Some(name)) => format!("{name}#{}", id.get(..8).unwrap_or(&id)),
                (None, None, None) => {
                    self.report.leave("users", &id, "it has no name");
                    continue;
                }
            };
            let user = user(&row, name, passwords.remove(&id).unwrap_or_default(), options.remove(&id));
            self.user_ids.insert(id);
            self.users.push(user);
        }
    }

    fn groups(&mut self, dump: &Dump) {
        for row in dump.rows("group") {
            self.group_ids.insert(row.text("id"));
            self.groups.push(Group {
                id: GroupId::new(row.text("id")),
                meta: store::Meta::default(),
                domain_id: DomainId::new(row.text("domain_id")),
                name: row.text("name"),
                description: row.text("description"),
                extra: extra(&row),
            });
        }
        for row in dump.rows("user_group_membership") {
            let (user, group) = (row.text("user_id"), row.text("group_id"));
            if self.user_ids.contains(&user) && self.group_ids.contains(&group) {
                self.memberships.push(Membership::new(&UserId::new(user), &GroupId::new(group)));
            } else {
                self.report.leave(
                    "group memberships",
                    &format!("{user} in {group}"),
                    "the user or group is not there",
                );
            }
        }
    }

    fn assignments(&mut self, dump: &Dump) {
        let rows = dump.rows("assignment").chain(dump.rows("system_assignment"));
        for row in rows {
            let (kind, actor, target) = (row.text("type"), row.text("actor_id"), row.text("target_id"));
            let label = format!("{kind} {actor} {target} {}", row.text("role_id"));
            let who = match kind.as_str() {
                "UserProject" | "UserDomain" | "UserSystem" if self.user_ids.contains(&actor) => {
                    Actor::User(UserId::new(actor))
                }
                "GroupProject" | "GroupDomain" | "GroupSystem" if self.group_ids.contains(&actor) => {
                    Actor::Group(GroupId::new(actor))
                }
                _ => {
                    self.report.leave("role assignments", &label, "its user or group is not there");
                    continue;
                }
            };
            let place = match kind.as_str() {
                "UserProject" | "GroupProject" if self.project_ids.contains(&target) => {
                    Place::Project(ProjectId::new(target))
                }
                "UserDomain" | "GroupDomain" if self.domain_ids.contains(&target) => {
                    Place::Domain(DomainId::new(target))
                }
                "UserSystem" | "GroupSystem" => Place::System,
                _ => {
                    self.report.leave("role assignments", &label, "its project or domain is not there");
                    continue;
                }
            };
            match self.role_ids.get(&row.text("role_id")) {
                Some(role) => {
                    self.assignments.push(Assignment::new(&who, &place, role, row.flag("inherited", false)));
                }
                None => self.report.leave("role assignments", &label, "its role is not there"),
            }
        }
        // Roles that were joined may make two assignments one.
        let mut seen = HashSet::new();
        self.assignments.retain(|a| seen.insert(a.id.clone()));
    }

    fn application_credentials(&mut self, dump: &Dump) {
        let mut external: HashMap<String, RuleOfAccess> = HashMap::new();
        for row in dump.rows("access_rule") {
            let rule = RuleOfAccess {
                id: row.text("external_id"),
                service: row.text("service"),
                method: row.text("method"),
                path: row.text("path"),
            };
            let user = row.text("user_id");
            if self.user_ids.contains(&user) {
                self.access_rules.push(AccessRule {
                    id: rule.id.clone(),
                    meta: store::Meta::default(),
                    user_id: UserId::new(user),
                    service: rule.service.clone(),
                    method: rule.method.clone(),
                    path: rule.path.clone(),
                });
            }
            external.insert(row.text("id"), rule);
        }
        let mut rules: HashMap<String, Vec<RuleOfAccess>> = HashMap::new();
        for row in dump.rows("application_credential_access_rule") {
            if let Some(rule) = external.get(&row.text("access_rule_id")) {
                rules.entry(row.text("application_credential_id")).or_default().push(rule.clone());
            }
        }
        let mut implies = Rules::new();
        for rule in &self.implied {
            let implied = rule.implied_role_id.as_str().to_owned();
            implies.entry(rule.prior_role_id.as_str().to_owned()).or_default().insert(implied);
        }
        let mut roles: HashMap<String, BTreeSet<String>> = HashMap::new();
        for row in dump.rows("application_credential_role") {
            if let Some(role) = self.role_ids.get(&row.text("role_id")) {
                let roles = roles.entry(row.text("application_credential_id")).or_default();
                roles.insert(role.as_str().to_owned());
            }
        }
        for row in dump.rows("application_credential") {
            let (id, internal) = (row.text("id"), row.text("internal_id"));
            let (user, project) = (row.text("user_id"), row.text("project_id"));
            if !self.user_ids.contains(&user) || !self.project_ids.contains(&project) {
                self.report.leave("application credentials", &id, "its user or project is not there");
                continue;
            }
            let roles = roles.remove(&internal).unwrap_or_default();
            let whole = closure(&implies, roles.iter().map(String::as_str));
            self.credentials.push(ApplicationCredential {
                id: ApplicationCredentialId::new(id),
                meta: store::Meta::default(),
                user_id: UserId::new(user),
                name: row.text("name"),
                project_id: ProjectId::new(project),
                description: row.some("description"),
                secret: row.text("secret_hash"),
                expires_at: moment(&row, "expires_at"),
                roles: whole.into_iter().map(RoleId::new).collect(),
                unrestricted: row.flag("unrestricted", false),
                access_rules: rules.remove(&internal),
            });
        }
    }
}

fn user(row: &Row<'_>, name: String, mut passwords: Vec<Row<'_>>, options: Option<Extra>) -> User {
    // The newest is the one that counts.
    passwords.sort_by_key(|p| std::cmp::Reverse((moment(p, "created_at"), p.number("id"))));
    let mut hashes = passwords.iter().filter_map(|p| p.some("password_hash"));
    let mut extra = extra(row);
    let description = taken_text(&mut extra, "description");
    User {
        enabled: row.flag("enabled", true),
        default_project_id: row.some("default_project_id").map(ProjectId::new),
        description,
        options: options.unwrap_or_default(),
        extra,
        password: hashes.next(),
        former_passwords: hashes.collect(),
        password_changed_at: passwords.first().and_then(|p| moment(p, "created_at")),
        password_expires_at: passwords.first().and_then(|p| moment(p, "expires_at")),
        password_self_service: passwords.first().is_some_and(|p| p.flag("self_service", false)),
        ..User::new(UserId::new(row.text("id")), DomainId::new(row.text("domain_id")), name)
    }
}
