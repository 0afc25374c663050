//! Helpers that handlers share.

use ::api::{Ctx, Request, Target};
use base::{Error, ProjectId, Result, ServerId};
use serde_json::{Value, json};
use store::Tx;

use crate::State;
use crate::model::{InstanceAction, Server};

/// Nova's words for a server that is not there or not to be known of.
pub(super) fn no_server(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("Instance {id} could not be found."))
}

/// The server's id in the path.
pub(super) fn server_id<T>(req: &Request<T>) -> Result<ServerId> {
    req.id_or("id", |text| no_server(text))
}

/// What a rule about a server is checked against.
pub(super) fn target(server: &Server) -> Target {
    Target::project(&server.project_id).user(&server.user_id).missing(no_server(server.id).public())
}

/// The server, if this operation's rule lets the caller have it.
pub(super) fn owned(tx: &mut Tx<'_>, cx: &Ctx<State>, id: ServerId) -> Result<Server> {
    let server = tx.get::<Server>(&id)?.ok_or_else(|| no_server(id))?;
    cx.allow(&target(&server))?;
    Ok(server)
}

/// Refuses a field that this microversion does not have.
pub(super) fn gate(cx: &Ctx<State>, sent: bool, major: u16, minor: u16, field: &str) -> Result<()> {
    if sent && !cx.since(major, minor) {
        return Err(cx.dialect().invalid_field(
            field,
            &format!("Additional properties are not allowed ('{field}' was unexpected)"),
        ));
    }
    Ok(())
}

/// Refuses a field that this microversion no longer has.
pub(super) fn until(cx: &Ctx<State>, sent: bool, major: u16, minor: u16, field: &str) -> Result<()> {
    if sent && cx.since(major, minor + 1) {
        return Err(cx.dialect().invalid_field(
            field,
            &format!("Additional properties are not allowed ('{field}' was unexpected)"),
        ));
    }
    Ok(())
}

/// `self` and `bookmark` links.
pub(super) fn links(cx: &Ctx<State>, kind: &str, id: &str) -> Value {
    json!([
        {"rel": "self", "href": format!("{}/v2.1/{kind}/{id}", cx.base_url())},
        {"rel": "bookmark", "href": format!("{}/{kind}/{id}", cx.base_url())},
    ])
}

/// The bookmark link alone.
pub(super) fn bookmark(cx: &Ctx<State>, kind: &str, id: &str) -> Value {
    json!([{"rel": "bookmark", "href": format!("{}/{kind}/{id}", cx.base_url())}])
}

/// Notes that something was done with a server.
pub(super) fn record(tx: &mut Tx<'_>, cx: &Ctx<State>, server: &Server, action: &str) -> Result<()> {
    let start = tx.now();
    tx.insert(&mut InstanceAction {
        id: cx.state().entropy.uuid(),
        meta: store::Meta::default(),
        server_id: server.id,
        action: action.to_owned(),
        request_id: cx.request_id().to_owned(),
        user_id: cx.user_id().clone(),
        project_id: cx.auth().project_id().cloned().unwrap_or_else(|| server.project_id.clone()),
        start,
        finish: None,
        success: None,
        message: None,
    })
}

/// A project named in a query or path, which may be anyone's.
pub(super) fn project(text: &str) -> Result<ProjectId> {
    text.parse().map_err(|_| Error::bad_request(format!("Project ID {text} is not a valid project.")))
}

/// An enum of words: what is no text, or another word, is refused with the field's name (serde's own enums call a
/// number malformed JSON).
macro_rules! words {
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($variant:ident = $word:literal $(| $other:literal)*),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($variant),+ }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> ::std::result::Result<Self, D::Error> {
                let text = <String as ::serde::Deserialize>::deserialize(deserializer)?;
                match text.as_str() {
                    $($word $(| $other)* => Ok($name::$variant),)+
                    other => Err(::serde::de::Error::custom(format!("'{other}' is not one of {:?}", [$($word),+]))),
                }
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn schema_name() -> ::std::borrow::Cow<'static, str> { stringify!($name).into() }
            fn inline_schema() -> bool { true }
            fn json_schema(_: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                ::schemars::json_schema!({"type": "string", "enum": [$($word),+]})
            }
        }
    };
}
pub(super) use words;
