//! Ids that only this service needs.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base::{Entropy, Error, PortId, Result, SecurityGroupId, SubnetId};
use contract::net::Key;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh random id.
            pub fn random(entropy: &Entropy) -> Self {
                $name(entropy.uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Uuid::try_parse(text).map($name).map_err(|_| Error::bad_request(format!("'{text}' is not a UUID")))
            }
        }
    )*};
}

uuids! {
    /// An RBAC policy.
    RbacPolicyId,
    /// A subnet pool.
    SubnetPoolId
}

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Ok($name(text.to_owned()))
            }
        }
    )*};
}

texts! {
    /// One address of one subnet.
    AddressKey,
    /// One port in one security group.
    MemberKey,
    /// One removed item; its text is the reconcile key.
    TombstoneKey
}

impl AddressKey {
    /// Of this address.
    pub fn of(subnet: SubnetId, ip: IpAddr) -> Self {
        AddressKey(format!("{subnet}/{ip}"))
    }
}

impl MemberKey {
    /// Of this membership.
    pub fn of(group: SecurityGroupId, port: PortId) -> Self {
        MemberKey(format!("{group}/{port}"))
    }
}

impl TombstoneKey {
    /// Of this item.
    pub fn of(key: Key) -> Self {
        TombstoneKey(key_text(key))
    }
}

/// The reconcile key of an item: `port/<id>`.
pub fn key_text(key: Key) -> String {
    match key {
        Key::Network(id) => format!("network/{id}"),
        Key::Port(id) => format!("port/{id}"),
        Key::Router(id) => format!("router/{id}"),
        Key::FloatingIp(id) => format!("floatingip/{id}"),
        Key::SecurityGroup(id) => format!("security_group/{id}"),
    }
}

/// Reads what [`key_text`] wrote.
pub fn parse_key(text: &str) -> Option<Key> {
    let (kind, id) = text.split_once('/')?;
    Some(match kind {
        "network" => Key::Network(id.parse().ok()?),
        "port" => Key::Port(id.parse().ok()?),
        "router" => Key::Router(id.parse().ok()?),
        "floatingip" => Key::FloatingIp(id.parse().ok()?),
        "security_group" => Key::SecurityGroup(id.parse().ok()?),
        _ => return None,
    })
}
