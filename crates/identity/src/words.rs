//! Keystone's error texts.

use base::Error;

/// The 401 of everything that must not tell why.
pub fn unauthorized() -> Error {
    Error::unauthenticated("The request you have made requires authentication.")
}

/// 403 for an action.
pub fn forbidden(action: &str) -> Error {
    Error::forbidden(format!("You are not authorized to perform the requested action: {action}."))
}

/// 400: something is missing somewhere.
pub fn expected(attribute: &str, target: &str) -> Error {
    Error::bad_request(format!(
        "Expecting to find {attribute} in {target}. The server could not comply with the request since it is either malformed or otherwise incorrect. The client is assumed to be in error."
    ))
}

macro_rules! missing {
    ($($(#[$doc:meta])* $name:ident $what:literal),* $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(id: &str) -> Error {
            Error::not_found(format!(concat!("Could not find ", $what, ": {}."), id))
        }
    )*};
}

missing! {
    /// 404.
    no_domain "domain",
    /// 404.
    no_project "project",
    /// 404.
    no_user "user",
    /// 404.
    no_group "group",
    /// 404.
    no_role "role",
    /// 404.
    no_region "region",
    /// 404.
    no_service "service",
    /// 404.
    no_endpoint "endpoint",
    /// 404.
    no_application_credential "Application Credential",
    /// 404.
    no_access_rule "Access Rule",
    /// 404.
    no_tag "project tag",
    /// 404.
    no_trust "trust",
    /// 404.
    no_credential "credential",
    /// 404.
    no_registered_limit "registered limit for id",
    /// 404.
    no_limit "limit for id",
    /// 404.
    no_policy "policy",
    /// 404.
    no_consumer "Consumer",
    /// 404.
    no_request_token "Request Token",
    /// 404.
    no_access_token "Access Token",
    /// 404.
    no_endpoint_group "Endpoint Group",
}

/// The 404 of a subject token that is no longer, or never was, a token.
pub fn no_token() -> Error {
    Error::not_found("Could not find token: the token is malformed, expired or revoked.")
}

/// 409 for a name that is taken.
pub fn duplicate(kind: &str, what: &str) -> Error {
    Error::conflict(format!("Conflict occurred attempting to store {kind} - {what}."))
}

/// Replaces the store's conflict by Keystone's.
pub fn told<T>(result: base::Result<T>, kind: &str, what: impl FnOnce() -> String) -> base::Result<T> {
    result
        .map_err(|error| if error.kind() == base::Kind::Conflict { duplicate(kind, &what()) } else { error })
}
