//! What Keystone keeps beside users, projects and roles: delegations, secrets, limits, associations, identity providers.

use std::collections::{BTreeSet, HashMap, HashSet};

use base::{DomainId, EndpointId, ProjectId, RegionId, RoleId, ServiceId, Timestamp, UserId};
use federation::mapping::Rules;
use serde_json::Value;

use super::Secrets;
use super::convert::{Keystone, extra, moment};
use super::dump::{Dump, Row};
use crate::federation::model::{IdentityProvider, Mapping, Protocol, RemoteId, ServiceProvider};
use crate::model::{
    AccessToken, Consumer, Credential, EndpointFilter, EndpointGroup, Limit, PolicyAssociation, PolicyText,
    RegisteredLimit, Trust,
};

/// Tables that are read.
pub const TABLES: [&str; 17] = [
    "access_token",
    "consumer",
    "credential",
    "endpoint_group",
    "federation_protocol",
    "identity_provider",
    "idp_remote_ids",
    "limit",
    "mapping",
    "policy",
    "policy_association",
    "project_endpoint",
    "project_endpoint_group",
    "registered_limit",
    "service_provider",
    "trust",
    "trust_role",
];

/// Resources of those tables.
#[derive(Debug, Default)]
pub struct Extensions {
    pub trusts: Vec<Trust>,
    pub secrets: Vec<Credential>,
    pub consumers: Vec<Consumer>,
    pub access_tokens: Vec<AccessToken>,
    pub registered_limits: Vec<RegisteredLimit>,
    pub limits: Vec<Limit>,
    pub policies: Vec<PolicyText>,
    pub associations: Vec<PolicyAssociation>,
    pub endpoint_groups: Vec<EndpointGroup>,
    pub endpoint_filters: Vec<EndpointFilter>,
    pub providers: Vec<IdentityProvider>,
    pub remote_ids: Vec<RemoteId>,
    pub mappings: Vec<Mapping>,
    pub protocols: Vec<Protocol>,
    pub service_providers: Vec<ServiceProvider>,
}

fn count(row: &Row<'_>, column: &str) -> Option<u64> {
    row.number(column).and_then(|n| u64::try_from(n).ok())
}

impl Keystone {
    /// Reads them; users, projects, roles and the catalog have been read.
    pub(super) fn extensions(&mut self, dump: &Dump, secrets: Option<&Secrets>) {
        self.trusts(dump);
        self.secrets(dump, secrets);
        self.oauth1(dump, secrets);
        self.limits(dump);
        self.policies(dump);
        self.endpoint_filters(dump);
        self.federation(dump);
    }

    fn trusts(&mut self, dump: &Dump) {
        let mut roles: HashMap<String, Vec<Option<RoleId>>> = HashMap::new();
        for row in dump.rows("trust_role") {
            let role = self.role_ids.get(&row.text("role_id")).cloned();
            roles.entry(row.text("trust_id")).or_default().push(role);
        }
        let mut found = HashMap::new();
        for row in dump.rows("trust").filter(|r| r.get("deleted_at").is_none()) {
            let id = row.text("id");
            let (trustor, trustee) = (row.text("trustor_user_id"), row.text("trustee_user_id"));
            let project = row.some("project_id");
            // One role less than was delegated would be another trust; a service that counts on it should be told.
            let whole: Option<Vec<RoleId>> = roles.remove(&id).unwrap_or_default().into_iter().collect();
            let why = if !self.user_ids.contains(&trustor) || !self.user_ids.contains(&trustee) {
                "its trustor or trustee is not there"
            } else if project.as_ref().is_some_and(|p| !self.project_ids.contains(p)) {
                "its project is not there"
            } else if whole.is_none() {
                "one of its roles is not there"
            } else {
                ""
            };
            let (Some(mut roles), true) = (whole, why.is_empty()) else {
                self.report.leave("trusts", &id, why);
                continue;
            };
            let mut seen = BTreeSet::new();
            roles.retain(|r| seen.insert(r.as_str().to_owned()));
            let mut more = extra(&row);
            // Keystone keeps a copy of the request there.
            more.remove("roles");
            found.insert(
                id.clone(),
                Trust {
                    id,
                    meta: store::Meta::default(),
                    trustor_user_id: UserId::new(trustor),
                    trustee_user_id: UserId::new(trustee),
                    project_id: project.map(ProjectId::new),
                    impersonation: row.flag("impersonation", false),
                    roles,
                    expires_at: moment(&row, "expires_at"),
                    // What cannot be read as a count is used up.
                    remaining_uses: row
                        .get("remaining_uses")
                        .map(|_| count(&row, "remaining_uses").unwrap_or(0)),
                    redelegated_trust_id: row.some("redelegated_trust_id"),
                    redelegation_count: count(&row, "redelegation_count").unwrap_or(0),
                    extra: more,
                },
            );
        }
        // A trust whose origin has gone has ended; nobody checks it but here.
        loop {
            let orphan = |t: &Trust| t.redelegated_trust_id.as_ref().is_some_and(|p| !found.contains_key(p));
            let lost: Vec<String> = found.values().filter(|t| orphan(t)).map(|t| t.id.clone()).collect();
            if lost.is_empty() {
                break;
            }
            for id in lost {
                self.report.leave("trusts", &id, "the trust it was made from is not there");
                found.remove(&id);
            }
        }
        self.more.trusts = found.into_values().collect();
    }

    fn secrets(&mut self, dump: &Dump, secrets: Option<&Secrets>) {
        for row in dump.rows("credential") {
            let (id, user, project) = (row.text("id"), row.text("user_id"), row.some("project_id"));
            let why = if !self.user_ids.contains(&user) {
                "its user is not there"
            } else if project.as_ref().is_some_and(|p| !self.project_ids.contains(p)) {
                "its project is not there"
            } else if secrets.is_none() {
                "the keys it is encrypted with were not given"
            } else {
                ""
            };
            let sealed = secrets.filter(|_| why.is_empty());
            let sealed = sealed.and_then(|s| s.seal_again(&row.text("encrypted_blob")));
            let Some(sealed) = sealed else {
                let why = if why.is_empty() { "none of the keys given decrypts it" } else { why };
                self.report.leave("credentials", &id, why);
                continue;
            };
            self.more.secrets.push(Credential {
                id,
                meta: store::Meta::default(),
                user_id: UserId::new(user),
                project_id: project.map(ProjectId::new),
                kind: row.text("type"),
                sealed,
                extra: extra(&row),
            });
        }
    }

    /// Consumers and what they were given; Keystone keeps their secrets in clear. Requests that nobody answered are left.
    fn oauth1(&mut self, dump: &Dump, secrets: Option<&Secrets>) {
        const NO_KEYS: &str = "the keys of credentials were not given";
        let mut consumers = HashSet::new();
        for row in dump.rows("consumer") {
            let id = row.text("id");
            let Some(secrets) = secrets else {
                self.report.leave("consumers", &id, NO_KEYS);
                continue;
            };
            consumers.insert(id.clone());
            self.more.consumers.push(Consumer {
                id,
                meta: store::Meta::default(),
                description: row.some("description"),
                sealed: secrets.seal(&row.text("secret")),
                extra: extra(&row),
            });
        }
        for row in dump.rows("access_token") {
            let (id, consumer_id) = (row.text("id"), row.text("consumer_id"));
            let (user, project) = (row.text("authorizing_user_id"), row.text("project_id"));
            let roles: Option<Vec<String>> =
                row.json("role_ids").and_then(|r| serde_json::from_value(r).ok());
            let why = if !consumers.contains(&consumer_id) {
                if secrets.is_none() { NO_KEYS } else { "its consumer is not there" }
            } else if !self.user_ids.contains(&user) || !self.project_ids.contains(&project) {
                "its user or project is not there"
            } else if roles.is_none() {
                "its roles cannot be read"
            } else {
                ""
            };
            let (Some(roles), Some(secrets), true) = (roles, secrets, why.is_empty()) else {
                self.report.leave("access tokens", &id, why);
                continue;
            };
            self.more.access_tokens.push(AccessToken {
                id,
                meta: store::Meta::default(),
                consumer_id,
                authorizing_user_id: UserId::new(user),
                project_id: ProjectId::new(project),
                // Less than was given is no harm.
                roles: roles.iter().filter_map(|r| self.role_ids.get(r).cloned()).collect(),
                sealed: secrets.seal(&row.text("access_secret")),
                // What cannot be read as a moment is over.
                expires_at: moment(&row, "expires_at").or(row.get("expires_at").map(|_| Timestamp(0))),
            });
        }
    }

    fn limits(&mut self, dump: &Dump) {
        let services: HashSet<String> = dump.rows("service").map(|r| r.text("id")).collect();
        let mut registered: HashMap<String, RegisteredLimit> = HashMap::new();
        for row in dump.rows("registered_limit") {
            let (id, service) = (row.text("id"), row.text("service_id"));
            let (Some(default_limit), true) = (row.number("default_limit"), services.contains(&service))
            else {
                self.report.leave("registered limits", &id, "its service is not there");
                continue;
            };
            let limit = RegisteredLimit {
                id: id.clone(),
                meta: store::Meta::default(),
                service_id: ServiceId::new(service),
                region_key: row.text("region_id"),
                resource_name: row.text("resource_name"),
                default_limit,
                description: row.some("description"),
            };
            registered.insert(id, limit);
        }
        for row in dump.rows("limit") {
            let (id, project, domain) = (row.text("id"), row.some("project_id"), row.some("domain_id"));
            let owner = match (&project, &domain) {
                (Some(p), _) => self.project_ids.contains(p).then(|| p.clone()),
                (None, Some(d)) => self.domain_ids.contains(d).then(|| d.clone()),
                (None, None) => None,
            };
            let of = registered.get(&row.text("registered_limit_id"));
            let (Some(owner_key), Some(of), Some(resource_limit)) = (owner, of, row.number("resource_limit"))
            else {
                self.report.leave("limits", &id, "its project, domain or registered limit is not there");
                continue;
            };
            self.more.limits.push(Limit {
                id,
                meta: store::Meta::default(),
                owner_key,
                domain_id: domain.filter(|_| project.is_none()).map(DomainId::new),
                project_id: project.map(ProjectId::new),
                service_id: of.service_id.clone(),
                region_key: of.region_key.clone(),
                resource_name: of.resource_name.clone(),
                resource_limit,
                description: row.some("description"),
            });
        }
        self.more.registered_limits = registered.into_values().collect();
    }

    fn policies(&mut self, dump: &Dump) {
        let mut there = HashSet::new();
        for row in dump.rows("policy") {
            there.insert(row.text("id"));
            // Its column holds JSON: a string, or an object.
            let blob = row.json("blob").unwrap_or_else(|| Value::String(row.text("blob")));
            self.more.policies.push(PolicyText {
                id: row.text("id"),
                meta: store::Meta::default(),
                kind: row.text("type"),
                blob,
                extra: extra(&row),
            });
        }
        for row in dump.rows("policy_association") {
            let policy_id = row.text("policy_id");
            if !there.contains(&policy_id) {
                self.report.leave("policy associations", &row.text("id"), "its policy is not there");
                continue;
            }
            let endpoint_id = row.some("endpoint_id").map(EndpointId::new);
            let service_id = row.some("service_id").map(ServiceId::new);
            let region_id = row.some("region_id").map(RegionId::new);
            self.more.associations.push(PolicyAssociation {
                id: PolicyAssociation::id_of(endpoint_id.as_ref(), service_id.as_ref(), region_id.as_ref()),
                meta: store::Meta::default(),
                policy_id,
                endpoint_id,
                service_id,
                region_id,
            });
        }
    }

    fn endpoint_filters(&mut self, dump: &Dump) {
        let endpoints: HashSet<String> = dump.rows("endpoint").map(|r| r.text("id")).collect();
        let mut groups = HashSet::new();
        for row in dump.rows("endpoint_group") {
            let filters = row.json("filters").and_then(|f| serde_json::from_value(f).ok());
            let Some(filters) = filters else {
                self.report.leave("endpoint groups", &row.text("id"), "its filters are no texts");
                continue;
            };
            groups.insert(row.text("id"));
            self.more.endpoint_groups.push(EndpointGroup {
                id: row.text("id"),
                meta: store::Meta::default(),
                name: row.text("name"),
                description: row.some("description"),
                filters,
            });
        }
        for (table, column, kind, known) in [
            ("project_endpoint", "endpoint_id", "endpoint", &endpoints),
            ("project_endpoint_group", "endpoint_group_id", "group", &groups),
        ] {
            for row in dump.rows(table) {
                let (what, project) = (row.text(column), row.text("project_id"));
                if !known.contains(&what) || !self.project_ids.contains(&project) {
                    let why = "its project or endpoint is not there";
                    self.report.leave("endpoint filters", &format!("{project} {what}"), why);
                    continue;
                }
                let project_id = ProjectId::new(project);
                let by_group = kind == "group";
                self.more.endpoint_filters.push(EndpointFilter {
                    id: EndpointFilter::id_of(&project_id, kind, &what),
                    meta: store::Meta::default(),
                    project_id,
                    endpoint_id: (!by_group).then(|| EndpointId::new(what.clone())),
                    endpoint_group_id: by_group.then_some(what),
                });
            }
        }
    }

    fn federation(&mut self, dump: &Dump) {
        let mut remotes: HashMap<String, Vec<String>> = HashMap::new();
        for row in dump.rows("idp_remote_ids") {
            remotes.entry(row.text("idp_id")).or_default().push(row.text("remote_id"));
        }
        let mut providers = HashSet::new();
        for row in dump.rows("identity_provider") {
            let (id, domain) = (row.text("id"), row.text("domain_id"));
            if !self.domain_ids.contains(&domain) {
                self.report.leave("identity providers", &id, "its domain is not there");
                continue;
            }
            let mut remote_ids = remotes.remove(&id).unwrap_or_default();
            remote_ids.sort();
            for remote in &remote_ids {
                let row = RemoteId {
                    id: RemoteId::id_of(remote),
                    meta: store::Meta::default(),
                    idp_id: id.clone(),
                };
                self.more.remote_ids.push(row);
            }
            providers.insert(id.clone());
            self.more.providers.push(IdentityProvider {
                id,
                meta: store::Meta::default(),
                domain_id: DomainId::new(domain),
                enabled: row.flag("enabled", false),
                description: row.some("description"),
                remote_ids,
                authorization_ttl: row.number("authorization_ttl"),
                // Keystone leaves that to its web server.
                oidc: None,
                front_end: None,
            });
        }
        let mut mappings = HashSet::new();
        for row in dump.rows("mapping") {
            // Keystone writes the JSON of a text that is JSON.
            let rules = match row.json("rules").unwrap_or_default() {
                Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
                rules => rules,
            };
            if let Err(error) = Rules::parse(&rules) {
                self.report.leave("mappings", &row.text("id"), error.public());
                continue;
            }
            mappings.insert(row.text("id"));
            self.more.mappings.push(Mapping {
                id: row.text("id"),
                meta: store::Meta::default(),
                rules,
                schema_version: row.some("schema_version").unwrap_or_else(|| "1.0".to_owned()),
            });
        }
        for row in dump.rows("federation_protocol") {
            let (idp_id, name, mapping_id) = (row.text("idp_id"), row.text("id"), row.text("mapping_id"));
            if !providers.contains(&idp_id) || !mappings.contains(&mapping_id) {
                let why = "its identity provider or mapping is not there";
                self.report.leave("protocols", &format!("{idp_id} {name}"), why);
                continue;
            }
            self.more.protocols.push(Protocol {
                id: Protocol::id_of(&idp_id, &name),
                meta: store::Meta::default(),
                idp_id,
                name,
                mapping_id,
                remote_id_attribute: row.some("remote_id_attribute"),
            });
        }
        for row in dump.rows("service_provider") {
            self.more.service_providers.push(ServiceProvider {
                id: row.text("id"),
                meta: store::Meta::default(),
                auth_url: row.text("auth_url"),
                sp_url: row.text("sp_url"),
                description: row.some("description"),
                enabled: row.flag("enabled", false),
                relay_state_prefix: row.text("relay_state_prefix"),
            });
        }
    }
}
