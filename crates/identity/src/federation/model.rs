//! Tables of federation: who may vouch for users, and what was last claimed of each.

use base::{DomainId, GroupId, ProjectId, RoleId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::Step;

/// How the access tokens of an identity provider are verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oidc {
    /// `iss` of its tokens.
    pub issuer: String,
    /// For whom its tokens must be made.
    pub audiences: Vec<String>,
    /// Where its keys are, if not where its discovery document says.
    pub jwks_uri: Option<String>,
    /// Certificates (PEM) of who vouches for its web server, if not those the system trusts.
    pub ca: Option<String>,
    /// What we are to it, where browsers are sent there to log in.
    #[serde(default)]
    pub client: Option<OidcOwnClient>,
}

/// A web server in front of this cloud that lets users in by its own means (SAML) and says who they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontEnd {
    /// What it proves itself with, sealed with the credential keys.
    pub sealed: String,
    /// The headers it sets, each always: what of them a user sends must not come through.
    pub attributes: Vec<String>,
}

/// This cloud as a client of an identity provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OidcOwnClient {
    /// Its id there.
    pub id: String,
    /// Its secret, sealed with the credential keys; `None` = a public client.
    pub sealed: Option<String>,
    /// What is asked for, divided by spaces.
    pub scope: String,
}

store::resource! {
    /// Who may vouch for users.
    pub struct IdentityProvider, table "identity_providers", id String {
        unique: [],
        index: [domain_id],
    } {
        /// The domain its users are in.
        pub domain_id: DomainId,
        /// Whether it is believed.
        pub enabled: bool,
        /// Free text.
        pub description: Option<String>,
        /// What it calls itself.
        pub remote_ids: Vec<String>,
        /// Minutes for which what was claimed of a user holds beyond the user's token.
        pub authorization_ttl: Option<i64>,
        /// How its tokens are verified; `None` = no token of it is.
        pub oidc: Option<Oidc>,
        /// Which web server in front speaks for it, if one does.
        #[serde(default)]
        pub front_end: Option<FrontEnd>,
    }
}

store::resource! {
    /// That a remote id belongs to an identity provider. The id is made from the remote id.
    pub struct RemoteId, table "identity_remote_ids", id String {
        unique: [],
        index: [idp_id],
    } {
        /// The identity provider.
        pub idp_id: String,
    }
}

store::resource! {
    /// A way in which users of an identity provider come. The id is made from both names.
    pub struct Protocol, table "identity_federation_protocols", id String {
        unique: [],
        index: [idp_id, mapping_id],
    } {
        /// The identity provider.
        pub idp_id: String,
        /// Its name: `openid`, `mapped`, …
        pub name: String,
        /// The mapping of its assertions.
        pub mapping_id: String,
        /// Kept, and not used here: the issuer is in the token.
        pub remote_id_attribute: Option<String>,
    }
}

store::resource! {
    /// Rules by which an assertion becomes a user with groups and projects.
    pub struct Mapping, table "identity_mappings", id String {
        unique: [],
        index: [],
    } {
        /// The rules, as they were given.
        pub rules: Value,
        /// `1.0` or `2.0`.
        pub schema_version: String,
    }
}

store::resource! {
    /// Another cloud that believes this one.
    pub struct ServiceProvider, table "identity_service_providers", id String {
        unique: [],
        index: [],
    } {
        /// Where its users authenticate.
        pub auth_url: String,
        /// Where assertions are sent.
        pub sp_url: String,
        /// Free text.
        pub description: Option<String>,
        /// Whether it is told to users.
        pub enabled: bool,
        /// Prefix of the relay state (SAML).
        pub relay_state_prefix: String,
    }
}

/// Roles in a project that were claimed of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimedRoles {
    /// The project.
    pub project_id: ProjectId,
    /// The roles.
    pub roles: Vec<RoleId>,
}

store::resource! {
    /// What an identity provider last claimed of a user. Memberships and roles from claims are here and nowhere else: they
    /// end at `valid_until`, and the next claims replace them whole.
    pub struct FederatedUser, table "identity_federated_users", id UserId {
        unique: [],
        index: [idp_id, valid_until],
    } {
        /// The identity provider.
        pub idp_id: String,
        /// The name of the protocol.
        pub protocol: String,
        /// The user's id at the identity provider.
        pub unique_id: String,
        /// Groups the user is in.
        pub groups: Vec<GroupId>,
        /// Roles the user has.
        pub grants: Vec<ClaimedRoles>,
        /// When the identity provider made the token that said so.
        pub claimed_at: Timestamp,
        /// Until when it holds.
        pub valid_until: Timestamp,
    }
}

store::resource! {
    /// A program that users of this cloud may log in to.
    pub struct OidcClient, table "identity_oidc_clients", id String {
        unique: [],
        index: [],
    } {
        /// Name, shown to users who log in.
        pub name: String,
        /// Whether it may do anything.
        pub enabled: bool,
        /// SHA-256 of its secret; `None` = a public client.
        pub secret: Option<String>,
        /// Where codes may be sent.
        pub redirect_uris: Vec<String>,
        /// Ways in which it may get tokens.
        pub grant_types: Vec<String>,
        /// For whom it may ask access tokens, besides itself.
        pub audiences: Vec<String>,
    }
}

store::resource! {
    /// A code on its way to a token: an authorization code, a device code, or a refresh token. The id is the SHA-256 of the
    /// code.
    pub struct OidcGrant, table "identity_oidc_grants", id String {
        unique: [],
        index: [expires_at, user_code, family],
    } {
        /// `code`, `device` or `refresh`.
        pub kind: String,
        /// The client it was given to.
        pub client_id: String,
        /// The user who logged in.
        pub user_id: Option<UserId>,
        /// The user's token generation then.
        pub generation: u64,
        /// When the user logged in.
        pub auth_time: Option<Timestamp>,
        /// Scopes, divided by spaces.
        pub scope: String,
        /// The client's nonce.
        pub nonce: Option<String>,
        /// The PKCE challenge (S256).
        pub challenge: Option<String>,
        /// Where the code was sent.
        pub redirect_uri: Option<String>,
        /// What the user types in on another device.
        pub user_code: Option<String>,
        /// The first code of a chain of refresh tokens: all of it ends when one is used twice.
        pub family: String,
        /// Whether it was used, or refused by the user.
        pub over: bool,
        /// When it was last asked about (device).
        pub polled_at: Option<Timestamp>,
        /// When it ends.
        pub expires_at: Timestamp,
    }
}

/// The tables.
pub const STEPS: &[Step] = &[
    Step::table::<IdentityProvider>(),
    Step::table::<RemoteId>(),
    Step::table::<Protocol>(),
    Step::table::<Mapping>(),
    Step::table::<ServiceProvider>(),
    Step::table::<FederatedUser>(),
    Step::table::<OidcClient>(),
    Step::table::<OidcGrant>(),
];

impl Protocol {
    /// The id of the protocol `name` of an identity provider.
    pub fn id_of(idp: &str, name: &str) -> String {
        crate::model::made_of(&["protocol", idp, name])
    }
}

impl RemoteId {
    /// The id of a remote id.
    pub fn id_of(remote: &str) -> String {
        crate::model::made_of(&["remote", remote])
    }
}

impl FederatedUser {
    /// The id of the user an identity provider knows as `unique_id`: the same at every login, on every server.
    pub fn id_of(idp: &str, unique_id: &str) -> UserId {
        UserId::new(crate::model::made_of(&["federated", idp, unique_id]))
    }
}

impl crate::model::User {
    /// A user without a password.
    pub fn new(id: UserId, domain_id: DomainId, name: String) -> Self {
        crate::model::User {
            id,
            meta: store::Meta::default(),
            domain_id,
            name,
            enabled: true,
            default_project_id: None,
            description: None,
            options: serde_json::Map::new(),
            extra: serde_json::Map::new(),
            password: None,
            former_passwords: Vec::new(),
            password_changed_at: None,
            password_expires_at: None,
            password_self_service: false,
            token_generation: 1,
        }
    }
}
