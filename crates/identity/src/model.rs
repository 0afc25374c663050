//! Resources of the identity service.

use base::{
    ApplicationCredentialId, DomainId, EndpointId, GroupId, ProjectId, RegionId, RoleId, ServiceId,
    Timestamp, UserId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::{Migration, Step};
use uuid::Uuid;

mod extensions;
pub use extensions::*;

/// Attributes Keystone does not know but keeps.
pub type Extra = Map<String, Value>;

store::resource! {
    /// A domain: a namespace of users, groups and projects.
    pub struct Domain, table "identity_domains", id DomainId {
        unique: [[name]],
        index: [],
    } {
        /// Name, unique in the cloud.
        pub name: String,
        /// Free text.
        pub description: String,
        /// Whether its users may log in and its projects be used.
        pub enabled: bool,
        /// Labels.
        pub tags: Vec<String>,
        /// Resource options (`immutable`).
        pub options: Extra,
        /// Other attributes.
        pub extra: Extra,
        /// Tokens for the domain and its projects issued up to this moment are revoked.
        pub revoked_before: Option<Timestamp>,
    }
}

store::resource! {
    /// A project.
    pub struct Project, table "identity_projects", id ProjectId {
        unique: [[domain_id, name]],
        index: [domain_id, parent_id, name],
    } {
        /// Its domain.
        pub domain_id: DomainId,
        /// Name, unique in the domain.
        pub name: String,
        /// The project above it, or its domain's id.
        pub parent_id: String,
        /// Free text.
        pub description: String,
        /// Whether it may be used.
        pub enabled: bool,
        /// Labels.
        pub tags: Vec<String>,
        /// Resource options (`immutable`).
        pub options: Extra,
        /// Other attributes.
        pub extra: Extra,
        /// Tokens for it issued up to this moment are revoked.
        pub revoked_before: Option<Timestamp>,
    }
}

store::resource! {
    /// A user.
    pub struct User, table "identity_users", id UserId {
        unique: [[domain_id, name]],
        index: [domain_id, name, default_project_id],
    } {
        /// The user's domain.
        pub domain_id: DomainId,
        /// Name, unique in the domain.
        pub name: String,
        /// Whether the user may log in.
        pub enabled: bool,
        /// Project of a token where none is asked for.
        pub default_project_id: Option<ProjectId>,
        /// Free text.
        pub description: Option<String>,
        /// Resource options (`ignore_password_expiry`, `multi_factor_auth_rules`, …), kept as they are.
        pub options: Extra,
        /// Other attributes, e.g. `email`.
        pub extra: Extra,
        /// Hash of the password; `None` = no login by password.
        pub password: Option<String>,
        /// Hashes of former passwords, the latest first.
        pub former_passwords: Vec<String>,
        /// When the password was set.
        pub password_changed_at: Option<Timestamp>,
        /// When it must be changed.
        #[serde(default)]
        pub password_expires_at: Option<Timestamp>,
        /// Whether the user set it, not an administrator.
        #[serde(default)]
        pub password_self_service: bool,
        /// Grows when all tokens of the user are revoked (password changed, user disabled); tokens carry it.
        pub token_generation: u64,
    }
}

store::resource! {
    /// A group of users.
    pub struct Group, table "identity_groups", id GroupId {
        unique: [[domain_id, name]],
        index: [domain_id, name],
    } {
        /// Its domain.
        pub domain_id: DomainId,
        /// Name, unique in the domain.
        pub name: String,
        /// Free text.
        pub description: String,
        /// Other attributes.
        pub extra: Extra,
    }
}

store::resource! {
    /// That a user is in a group. The id is made from both.
    pub struct Membership, table "identity_memberships", id String {
        unique: [],
        index: [user_id, group_id],
    } {
        /// The user.
        pub user_id: UserId,
        /// The group.
        pub group_id: GroupId,
    }
}

store::resource! {
    /// A role.
    pub struct Role, table "identity_roles", id RoleId {
        unique: [[domain_key, name]],
        index: [name],
    } {
        /// Name, unique among the global roles or in its domain.
        pub name: String,
        /// Id of its domain, or empty for a global role (NULL would never be equal to NULL).
        pub domain_key: String,
        /// Free text.
        pub description: Option<String>,
        /// Resource options (`immutable`).
        pub options: Extra,
        /// Other attributes.
        pub extra: Extra,
    }
}

store::resource! {
    /// That who has one role has another too. The id is made from both.
    pub struct ImpliedRole, table "identity_implied_roles", id String {
        unique: [],
        index: [prior_role_id, implied_role_id],
    } {
        /// The role that implies.
        pub prior_role_id: RoleId,
        /// The role that is implied.
        pub implied_role_id: RoleId,
    }
}

store::resource! {
    /// That an actor (user or group) has a role on a target (project, domain, or the system). The id is made from all.
    pub struct Assignment, table "identity_assignments", id String {
        unique: [],
        index: [user_id, group_id, project_id, domain_id, role_id],
    } {
        /// The user, if the actor is one.
        pub user_id: Option<UserId>,
        /// The group, if the actor is one.
        pub group_id: Option<GroupId>,
        /// The project, if the target is one.
        pub project_id: Option<ProjectId>,
        /// The domain, if the target is one.
        pub domain_id: Option<DomainId>,
        /// The role.
        pub role_id: RoleId,
        /// Whether it holds for the projects below the target instead of the target itself.
        pub inherited: bool,
    }
}

store::resource! {
    /// A region of the catalog.
    pub struct Region, table "identity_regions", id RegionId {
        unique: [],
        index: [parent_region_id],
    } {
        /// The region it is in.
        pub parent_region_id: Option<RegionId>,
        /// Free text.
        pub description: String,
        /// Other attributes.
        pub extra: Extra,
    }
}

store::resource! {
    /// A service of the catalog.
    pub struct Service, table "identity_services", id ServiceId {
        unique: [],
        index: [service_type],
    } {
        /// `compute`, `identity`, …
        pub service_type: String,
        /// Name.
        pub name: String,
        /// Free text.
        pub description: Option<String>,
        /// Whether it is in the catalog.
        pub enabled: bool,
        /// Other attributes.
        pub extra: Extra,
    }
}

store::resource! {
    /// An endpoint of a service.
    pub struct Endpoint, table "identity_endpoints", id EndpointId {
        unique: [],
        index: [service_id, region_id],
    } {
        /// Its service.
        pub service_id: ServiceId,
        /// `public`, `internal`, `admin`.
        pub interface: String,
        /// Its region.
        pub region_id: Option<RegionId>,
        /// URL, possibly with places for the project and the user.
        pub url: String,
        /// Whether it is in the catalog.
        pub enabled: bool,
        /// Other attributes, e.g. `name`.
        pub extra: Extra,
    }
}

/// A rule of an application credential: which requests it may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleOfAccess {
    /// Id of the [`AccessRule`].
    pub id: String,
    /// Service type.
    pub service: String,
    /// HTTP method.
    pub method: String,
    /// Path, where `*`, `**` and `{name}` are wildcards.
    pub path: String,
}

store::resource! {
    /// A secret with which a program acts as a user in one project.
    pub struct ApplicationCredential, table "identity_application_credentials", id ApplicationCredentialId {
        unique: [[user_id, name]],
        index: [user_id, project_id],
    } {
        /// Its user.
        pub user_id: UserId,
        /// Name, unique for the user.
        pub name: String,
        /// The project it is for.
        pub project_id: ProjectId,
        /// Free text.
        pub description: Option<String>,
        /// Hash of the secret: `sha256:…` for one made here, bcrypt for one a person chose.
        pub secret: String,
        /// When it ends.
        pub expires_at: Option<Timestamp>,
        /// The roles it carries (those they imply included).
        pub roles: Vec<RoleId>,
        /// Whether it may manage application credentials.
        pub unrestricted: bool,
        /// What it may be used for; `None` = everything.
        pub access_rules: Option<Vec<RuleOfAccess>>,
    }
}

store::resource! {
    /// An access rule a user has made, for use in application credentials. The id is its own.
    pub struct AccessRule, table "identity_access_rules", id String {
        unique: [[user_id, service, method, path]],
        index: [],
    } {
        /// Its user.
        pub user_id: UserId,
        /// Service type.
        pub service: String,
        /// HTTP method.
        pub method: String,
        /// Path.
        pub path: String,
    }
}

store::resource! {
    /// A revoked token, by its audit id; kept until the token would have ended.
    pub struct Revocation, table "identity_revocations", id String {
        unique: [],
        index: [expires_at],
    } {
        /// When the token would have ended.
        pub expires_at: Timestamp,
    }
}

store::resource! {
    /// A counter that grows with every change that may matter to validated tokens: one row for all (`"*"`), one for each
    /// user whose own affairs changed. What a server remembers of a token is good while both stand still.
    pub struct Epoch, table "identity_epochs", id String {
        unique: [],
        index: [],
    } {
        /// The count.
        pub count: u64,
    }
}

const NAMESPACE: Uuid = Uuid::from_u128(0x0a11_0d1d_0000_4000_8000_0000_0000_0001);

/// An id made from its parts.
pub fn made_of(parts: &[&str]) -> String {
    // Ids have no slashes, so that the text is different for different parts.
    Uuid::new_v5(&NAMESPACE, parts.join("/").as_bytes()).simple().to_string()
}

impl Membership {
    /// That `user` is in `group`.
    pub fn new(user: &UserId, group: &GroupId) -> Self {
        let id = Self::id_of(user, group);
        Membership { id, meta: store::Meta::default(), user_id: user.clone(), group_id: group.clone() }
    }

    /// The id of the membership of `user` in `group`.
    pub fn id_of(user: &UserId, group: &GroupId) -> String {
        made_of(&["member", user.as_str(), group.as_str()])
    }
}

impl ImpliedRole {
    /// That `prior` implies `implied`.
    pub fn new(prior: &RoleId, implied: &RoleId) -> Self {
        let id = Self::id_of(prior, implied);
        let (prior_role_id, implied_role_id) = (prior.clone(), implied.clone());
        ImpliedRole { id, meta: store::Meta::default(), prior_role_id, implied_role_id }
    }

    /// The id of that.
    pub fn id_of(prior: &RoleId, implied: &RoleId) -> String {
        made_of(&["implies", prior.as_str(), implied.as_str()])
    }
}

impl Role {
    /// Its domain, if it is not global.
    pub fn domain(&self) -> Option<&str> {
        Some(self.domain_key.as_str()).filter(|d| !d.is_empty())
    }
}

/// Who has a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A user.
    User(UserId),
    /// All users of a group.
    Group(GroupId),
}

/// Where the role holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a project.
    Project(ProjectId),
    /// In a domain.
    Domain(DomainId),
    /// Everywhere.
    System,
}

impl Assignment {
    /// That `actor` has `role` on `place` (`inherited`: on the projects below it).
    pub fn new(actor: &Actor, place: &Place, role: &RoleId, inherited: bool) -> Self {
        let (kind, who) = match actor {
            Actor::User(id) => ("user", id.as_str()),
            Actor::Group(id) => ("group", id.as_str()),
        };
        let (target, which) = match place {
            Place::Project(id) => ("project", id.as_str()),
            Place::Domain(id) => ("domain", id.as_str()),
            Place::System => ("system", "all"),
        };
        let form = if inherited { "inherited" } else { "direct" };
        let id = made_of(&["assignment", kind, who, target, which, role.as_str(), form]);
        Assignment {
            id,
            meta: store::Meta::default(),
            user_id: if let Actor::User(id) = actor { Some(id.clone()) } else { None },
            group_id: if let Actor::Group(id) = actor { Some(id.clone()) } else { None },
            project_id: if let Place::Project(id) = place { Some(id.clone()) } else { None },
            domain_id: if let Place::Domain(id) = place { Some(id.clone()) } else { None },
            role_id: role.clone(),
            inherited,
        }
    }

    /// Where it holds.
    pub fn place(&self) -> Place {
        match (&self.project_id, &self.domain_id) {
            (Some(id), _) => Place::Project(id.clone()),
            (None, Some(id)) => Place::Domain(id.clone()),
            (None, None) => Place::System,
        }
    }
}

/// The tables of this service.
pub const MIGRATIONS: &[Migration] = &[
    Migration::new(
        1,
        "identity",
        &[
            Step::table::<Domain>(),
            Step::table::<Project>(),
            Step::table::<User>(),
            Step::table::<Group>(),
            Step::table::<Membership>(),
            Step::table::<Role>(),
            Step::table::<ImpliedRole>(),
            Step::table::<Assignment>(),
            Step::table::<Region>(),
            Step::table::<Service>(),
            Step::table::<Endpoint>(),
            Step::table::<ApplicationCredential>(),
            Step::table::<AccessRule>(),
            Step::table::<Revocation>(),
            Step::table::<Epoch>(),
        ],
    ),
    Migration::new(
        2,
        "delegations, credentials, limits and audit",
        &[
            // For its new fields: an older server must not drop them.
            Step::table::<User>(),
            Step::table::<Trust>(),
            Step::table::<Credential>(),
            Step::table::<RegisteredLimit>(),
            Step::table::<Limit>(),
            Step::table::<PolicyText>(),
            Step::table::<PolicyAssociation>(),
            Step::table::<EndpointGroup>(),
            Step::table::<EndpointFilter>(),
            Step::table::<DomainConfig>(),
            Step::table::<RevocationEvent>(),
            Step::table::<LoginRecord>(),
            Step::table::<Consumer>(),
            Step::table::<AuditRecord>(),
        ],
    ),
    Migration::new(3, "federation", crate::federation::model::STEPS),
    Migration::new(
        4,
        "pages of a domain",
        // For the index by domain in the order of lists.
        &[Step::table::<Project>(), Step::table::<User>(), Step::table::<Group>()],
    ),
    Migration::new(
        5,
        "OAuth 1.0a, and this cloud as a client",
        &[
            Step::table::<RequestToken>(),
            Step::table::<AccessToken>(),
            Step::table::<SpentNonce>(),
            // For their new fields.
            Step::table::<RevocationEvent>(),
            Step::table::<crate::federation::model::IdentityProvider>(),
        ],
    ),
    Migration::new(6, "directories of domains", &[Step::table::<LdapEntry>()]),
];
