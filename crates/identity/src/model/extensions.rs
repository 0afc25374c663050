//! Resources beside users, projects and roles: delegations, secrets, limits, associations, and what is noted about
//! logins and changes.

use std::collections::BTreeMap;

use base::{DomainId, EndpointId, ProjectId, RegionId, RoleId, ServiceId, Timestamp, UserId};
use serde_json::Value;

use super::Extra;

store::resource! {
    /// That one user (the trustor) lets another (the trustee) act with some of the trustor's roles in one project.
    pub struct Trust, table "identity_trusts", id String {
        unique: [],
        index: [trustor_user_id, trustee_user_id, project_id, redelegated_trust_id],
    } {
        /// Who delegates.
        pub trustor_user_id: UserId,
        /// To whom.
        pub trustee_user_id: UserId,
        /// Where; `None` = nothing but to be named.
        pub project_id: Option<ProjectId>,
        /// Whether tokens of the trust name the trustor as their user.
        pub impersonation: bool,
        /// The roles delegated.
        pub roles: Vec<RoleId>,
        /// When it ends.
        pub expires_at: Option<Timestamp>,
        /// How many more tokens can be had; `None` = any number.
        pub remaining_uses: Option<u64>,
        /// The trust it was made from.
        pub redelegated_trust_id: Option<String>,
        /// How long a chain of trusts may still be made from it.
        pub redelegation_count: u64,
        /// Other attributes.
        pub extra: Extra,
    }
}

store::resource! {
    /// A secret kept for a user: an EC2 key pair, a TOTP seed, a certificate. Those of EC2 have the SHA-256 of their
    /// access key as id.
    pub struct Credential, table "identity_credentials", id String {
        unique: [],
        index: [user_id, project_id, kind],
    } {
        /// Whose.
        pub user_id: UserId,
        /// For which project, if for one.
        pub project_id: Option<ProjectId>,
        /// `ec2`, `totp`, `cert`, ….
        pub kind: String,
        /// The secret, sealed with the credential keys.
        pub sealed: String,
        /// Other attributes.
        pub extra: Extra,
    }
}

store::resource! {
    /// The limit of a resource for every project that has no [`Limit`] of its own.
    pub struct RegisteredLimit, table "identity_registered_limits", id String {
        unique: [[service_id, region_key, resource_name]],
        index: [],
    } {
        /// Whose resource.
        pub service_id: ServiceId,
        /// Where, or empty for everywhere.
        pub region_key: String,
        /// The resource.
        pub resource_name: String,
        /// How many.
        pub default_limit: i64,
        /// Free text.
        pub description: Option<String>,
    }
}

store::resource! {
    /// The limit of a resource for one project or domain.
    pub struct Limit, table "identity_limits", id String {
        unique: [[owner_key, service_id, region_key, resource_name]],
        index: [project_id, domain_id],
    } {
        /// Id of the project or domain: the unique group needs one column for both.
        pub owner_key: String,
        /// The project, if it is for one.
        pub project_id: Option<ProjectId>,
        /// The domain, if it is for one.
        pub domain_id: Option<DomainId>,
        /// Whose resource.
        pub service_id: ServiceId,
        /// Where, or empty for everywhere.
        pub region_key: String,
        /// The resource.
        pub resource_name: String,
        /// How many.
        pub resource_limit: i64,
        /// Free text.
        pub description: Option<String>,
    }
}

store::resource! {
    /// A text that endpoints may ask for; Keystone gives it no meaning.
    pub struct PolicyText, table "identity_policies", id String {
        unique: [],
        index: [],
    } {
        /// Its MIME type.
        pub kind: String,
        /// The text.
        pub blob: Value,
        /// Other attributes.
        pub extra: Extra,
    }
}

store::resource! {
    /// Which policy is for an endpoint, a service, or a service in a region. The id is made from the latter.
    pub struct PolicyAssociation, table "identity_policy_associations", id String {
        unique: [],
        index: [policy_id, endpoint_id, service_id, region_id],
    } {
        /// The policy.
        pub policy_id: String,
        /// The endpoint, if it is for one.
        pub endpoint_id: Option<EndpointId>,
        /// The service, if it is for one.
        pub service_id: Option<ServiceId>,
        /// The region, if it is for a service in one.
        pub region_id: Option<RegionId>,
    }
}

store::resource! {
    /// Endpoints that have something in common.
    pub struct EndpointGroup, table "identity_endpoint_groups", id String {
        unique: [],
        index: [],
    } {
        /// Name.
        pub name: String,
        /// Free text.
        pub description: Option<String>,
        /// Which endpoints: `service_id`, `region_id`, `interface`.
        pub filters: BTreeMap<String, String>,
    }
}

store::resource! {
    /// That a project sees an endpoint or the endpoints of a group. The id is made from both.
    pub struct EndpointFilter, table "identity_endpoint_filters", id String {
        unique: [],
        index: [project_id, endpoint_id, endpoint_group_id],
    } {
        /// The project.
        pub project_id: ProjectId,
        /// The endpoint, if it is one.
        pub endpoint_id: Option<EndpointId>,
        /// The group, if it is one.
        pub endpoint_group_id: Option<String>,
    }
}

store::resource! {
    /// Settings of a domain that differ from the cloud's, by group and option.
    pub struct DomainConfig, table "identity_domain_configs", id DomainId {
        unique: [],
        index: [],
    } {
        /// What anybody who may read it sees.
        pub options: BTreeMap<String, BTreeMap<String, Value>>,
        /// Options that are secrets, sealed with the credential keys.
        pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    }
}

store::resource! {
    /// An entry of a domain's directory that is mirrored here; the id is the user's or the group's.
    pub struct LdapEntry, table "identity_ldap_entries", id String {
        unique: [],
        index: [domain_id],
    } {
        /// The domain.
        pub domain_id: DomainId,
        /// `user` or `group`.
        pub kind: String,
        /// What names it for good in the directory.
        pub local_id: String,
        /// Where it was last seen.
        pub dn: String,
    }
}

store::resource! {
    /// That tokens of a kind issued up to a moment are revoked, for services that ask. Tokens are checked against the
    /// tables themselves, not against these.
    pub struct RevocationEvent, table "identity_revocation_events", id String {
        unique: [],
        index: [revoked_at],
    } {
        /// Of this user.
        pub user_id: Option<UserId>,
        /// For this project.
        pub project_id: Option<ProjectId>,
        /// For this domain.
        pub domain_id: Option<DomainId>,
        /// The token with this audit id.
        pub audit_id: Option<String>,
        /// Got by this trust.
        pub trust_id: Option<String>,
        /// With this role.
        pub role_id: Option<RoleId>,
        /// Got by this OAuth 1.0a access token.
        #[serde(default)]
        pub access_token_id: Option<String>,
        /// Got by access tokens of this consumer.
        #[serde(default)]
        pub consumer_id: Option<String>,
        /// Issued up to this moment.
        pub issued_before: Timestamp,
        /// When it was revoked.
        pub revoked_at: Timestamp,
    }
}

store::resource! {
    /// What is noted about a user's logins, beside the user so that a failed login is no change of the user. The id is
    /// the user's.
    pub struct LoginRecord, table "identity_logins", id UserId {
        unique: [],
        index: [],
    } {
        /// Failed logins since the last success.
        pub failures: u64,
        /// The last of them.
        pub failed_at: Option<Timestamp>,
        /// The day of the last success, if inactivity matters.
        pub active_at: Option<Timestamp>,
        /// The window of the last accepted one-time password: none is accepted twice.
        #[serde(default)]
        pub totp_step: Option<i64>,
    }
}

store::resource! {
    /// A program that may ask users for rights by OAuth 1.0a.
    pub struct Consumer, table "identity_consumers", id String {
        unique: [],
        index: [],
    } {
        /// Free text.
        pub description: Option<String>,
        /// Its secret, sealed with the credential keys.
        pub sealed: String,
        /// Other attributes.
        pub extra: Extra,
    }
}

store::resource! {
    /// What a consumer asks a user for: to act in a project. Becomes an [`AccessToken`] once, after a user has said yes.
    pub struct RequestToken, table "identity_request_tokens", id String {
        unique: [],
        index: [consumer_id, project_id, authorizing_user_id, expires_at],
    } {
        /// Who asks.
        pub consumer_id: String,
        /// For which project.
        pub project_id: ProjectId,
        /// Its secret, sealed with the credential keys.
        pub sealed: String,
        /// When it ends.
        pub expires_at: Option<Timestamp>,
        /// Who said yes.
        pub authorizing_user_id: Option<UserId>,
        /// Digest of what the user tells the consumer.
        pub verifier: Option<String>,
        /// The roles that the user gives.
        pub roles: Vec<RoleId>,
    }
}

store::resource! {
    /// With which a consumer acts as a user in one project, with some of the user's roles.
    pub struct AccessToken, table "identity_access_tokens", id String {
        unique: [],
        index: [consumer_id, project_id, authorizing_user_id],
    } {
        /// Who may use it.
        pub consumer_id: String,
        /// Whom it acts for.
        pub authorizing_user_id: UserId,
        /// Where.
        pub project_id: ProjectId,
        /// With which roles.
        pub roles: Vec<RoleId>,
        /// Its secret, sealed with the credential keys.
        pub sealed: String,
        /// When it ends.
        pub expires_at: Option<Timestamp>,
    }
}

store::resource! {
    /// That a signed request was seen: it is not taken again. The id is made from who signed, when, and the nonce.
    pub struct SpentNonce, table "identity_oauth1_nonces", id String {
        unique: [],
        index: [expires_at],
    } {
        /// After which it would be too old anyway.
        pub expires_at: Timestamp,
    }
}

store::resource! {
    /// Something that was done, or tried, as the audit trail keeps it. The body is the CADF event.
    pub struct AuditRecord, table "identity_audit", id String {
        unique: [],
        index: [at, initiator_id, domain_id, action, outcome],
    } {
        /// When.
        pub at: Timestamp,
        /// Who, if known.
        pub initiator_id: Option<String>,
        /// The domain of who.
        pub domain_id: Option<String>,
        /// CADF action, e.g. `authenticate`, `create/user`.
        pub action: String,
        /// CADF outcome: `success` or `failure`.
        pub outcome: String,
        /// The whole event.
        pub event: Value,
    }
}

impl Trust {
    /// Whether it has neither ended nor been used up.
    pub fn usable(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|e| e > now) && self.remaining_uses != Some(0)
    }
}

impl EndpointGroup {
    /// Whether an endpoint is one of the group's.
    pub fn holds(&self, endpoint: &super::Endpoint) -> bool {
        self.filters.iter().all(|(key, wanted)| match key.as_str() {
            "service_id" => endpoint.service_id.as_str() == wanted,
            "region_id" => endpoint.region_id.as_ref().map(RegionId::as_str) == Some(wanted),
            "interface" => endpoint.interface == *wanted,
            _ => false,
        })
    }
}

impl PolicyAssociation {
    /// The id of the association of a policy with an endpoint, a service, or a service in a region: one for each.
    pub fn id_of(
        endpoint: Option<&EndpointId>,
        service: Option<&ServiceId>,
        region: Option<&RegionId>,
    ) -> String {
        let endpoint = endpoint.map_or("-", EndpointId::as_str);
        let service = service.map_or("-", ServiceId::as_str);
        super::made_of(&["policy", endpoint, service, region.map_or("-", RegionId::as_str)])
    }
}

impl EndpointFilter {
    /// The id of the filter that shows `what` (an endpoint's or a group's id) to `project`.
    pub fn id_of(project: &ProjectId, kind: &str, what: &str) -> String {
        super::made_of(&["shows", project.as_str(), kind, what])
    }
}
