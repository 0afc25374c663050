//! Bodies: single and bulk envelopes, members that may be left out, and Neutron's errors about them.

use std::fmt;
use std::marker::PhantomData;

use base::{Error, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};

pub use api::types::{Ip, LaxBool, LaxInt, Patch, Text, Uuid};

/// A name, which may be empty.
pub type Name = Text<0, 255>;

/// A member that may be left out but not be null.
#[derive(Debug, Clone, PartialEq)]
pub struct Maybe<T>(pub Option<T>);

impl<T> Default for Maybe<T> {
    fn default() -> Self {
        Maybe(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Maybe<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(|v| Maybe(Some(v)))
    }
}

impl<T: JsonSchema> JsonSchema for Maybe<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

/// An object. A derived struct would also take an array of its members in their order, which no client means.
#[derive(Debug, Clone, Default)]
pub struct Obj<T>(pub T);

impl<T> std::ops::Deref for Obj<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Obj<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(V(PhantomData)).map(Obj)
    }
}

impl<T: JsonSchema> JsonSchema for Obj<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

/// The names a resource goes by on the wire.
pub trait Wire: DeserializeOwned + JsonSchema + Send + 'static {
    /// `network`
    const ONE: &'static str;
    /// `networks`
    const MANY: &'static str;
}

/// `{"network": {…}}`.
#[derive(Debug)]
pub struct One<B>(pub B);

/// `{"network": {…}}` or `{"networks": [{…}, …]}`.
#[derive(Debug)]
pub enum Bulk<B> {
    /// One.
    One(B),
    /// Several.
    Many(Vec<B>),
}

struct Envelope<B> {
    bulk: bool,
    body: PhantomData<B>,
}

impl<'de, B: Wire> DeserializeSeed<'de> for Envelope<B> {
    type Value = Bulk<B>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Bulk<B>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, B: Wire> Visitor<'de> for Envelope<B> {
    type Value = Bulk<B>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with the key '{}'", B::ONE)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bulk<B>, A::Error> {
        use serde::de::Error as _;
        let Some(key) = map.next_key::<String>()? else {
            return Err(A::Error::custom(format!("the key '{}' is missing", B::ONE)));
        };
        let value = if key == B::ONE {
            Bulk::One(map.next_value::<Obj<B>>()?.0)
        } else if self.bulk && key == B::MANY {
            let many: Vec<Obj<B>> = map.next_value()?;
            if many.is_empty() {
                return Err(A::Error::custom("resources required"));
            }
            Bulk::Many(many.into_iter().map(|b| b.0).collect())
        } else {
            return Err(A::Error::custom(format!("unrecognized key '{key}', expected '{}'", B::ONE)));
        };
        if let Some(more) = map.next_key::<String>()? {
            return Err(A::Error::custom(format!("unrecognized key '{more}' besides '{key}'")));
        }
        Ok(value)
    }
}

impl<'de, B: Wire> Deserialize<'de> for Bulk<B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Envelope { bulk: true, body: PhantomData }.deserialize(deserializer)
    }
}

impl<'de, B: Wire> Deserialize<'de> for One<B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match (Envelope::<B> { bulk: false, body: PhantomData }).deserialize(deserializer)? {
            Bulk::One(body) => Ok(One(body)),
            Bulk::Many(_) => Err(de::Error::custom("a single resource is wanted")),
        }
    }
}

impl<B: Wire> JsonSchema for One<B> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("One{}", B::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let body = generator.subschema_for::<B>();
        schemars::json_schema!({"type": "object", "properties": {B::ONE: body}, "required": [B::ONE], "additionalProperties": false})
    }
}

impl<B: Wire> JsonSchema for Bulk<B> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Bulk{}", B::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let body = generator.subschema_for::<B>();
        schemars::json_schema!({"oneOf": [
            {"type": "object", "properties": {B::ONE: body.clone()}, "required": [B::ONE], "additionalProperties": false},
            {"type": "object", "properties": {B::MANY: {"type": "array", "items": body}}, "required": [B::MANY], "additionalProperties": false},
        ]})
    }
}

/// 400 for a member with a wrong value.
pub fn invalid(field: &str, reason: impl fmt::Display) -> Error {
    Error::bad_request(format!("Invalid input for {field}. Reason: {reason}.")).code("HTTPBadRequest")
}

/// 400 for a member that must be there.
pub fn missing(field: &str) -> Error {
    Error::bad_request(format!("Failed to parse request. Required attribute '{field}' not specified."))
        .code("HTTPBadRequest")
}

/// 400 where a member that cannot change is in an update.
///
/// # Errors
/// `HTTPBadRequest` naming the first one present.
pub fn read_only(fields: &[(&str, bool)]) -> Result<()> {
    match fields.iter().find(|(_, present)| *present) {
        None => Ok(()),
        Some((name, _)) => {
            Err(Error::bad_request(format!("Cannot update read-only attribute {name}"))
                .code("HTTPBadRequest"))
        }
    }
}

/// The 404 of a resource in Neutron's words.
pub fn not_found(what: What, id: impl fmt::Display) -> Error {
    let (text, code) = match what {
        What::Network => (format!("Network {id} could not be found."), "NetworkNotFound"),
        What::Subnet => (format!("Subnet {id} could not be found."), "SubnetNotFound"),
        What::Port => (format!("Port {id} could not be found."), "PortNotFound"),
        What::Router => (format!("Router {id} could not be found"), "RouterNotFound"),
        What::FloatingIp => (format!("Floating IP {id} could not be found"), "FloatingIPNotFound"),
        What::SecurityGroup => (format!("Security group {id} does not exist"), "SecurityGroupNotFound"),
        What::SecurityGroupRule => {
            (format!("Security group rule {id} does not exist"), "SecurityGroupRuleNotFound")
        }
        What::SubnetPool => (format!("Subnet pool {id} could not be found."), "SubnetPoolNotFound"),
        What::Rbac => (format!("RBAC policy with ID {id} not found"), "RbacPolicyNotFound"),
        What::Agent => (format!("Agent {id} could not be found."), "AgentNotFound"),
        What::Extension => (format!("Extension with alias {id} does not exist"), "HTTPNotFound"),
        What::DefaultRule => {
            (format!("Default Security Group rule {id} does not exist."), "DefaultSecurityGroupRuleNotFound")
        }
        What::Quota => (format!("Quota for tenant {id} could not be found."), "TenantQuotaNotFound"),
        What::Tag => (format!("Tag {id} could not be found."), "TagNotFound"),
    };
    Error::not_found(text).code(code)
}

/// What was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A network.
    Network,
    /// A subnet.
    Subnet,
    /// A port.
    Port,
    /// A router.
    Router,
    /// A floating IP.
    FloatingIp,
    /// A security group.
    SecurityGroup,
    /// A rule.
    SecurityGroupRule,
    /// A subnet pool.
    SubnetPool,
    /// An RBAC policy.
    Rbac,
    /// An agent.
    Agent,
    /// An extension.
    Extension,
    /// A rule of the template.
    DefaultRule,
    /// Limits of a project.
    Quota,
    /// A tag.
    Tag,
}
