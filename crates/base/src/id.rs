//! Typed ids. Start typed: an id of one kind never compiles where another is meant.
//!
//! Two families: [`uuid_id!`] ids are UUIDs (shown with dashes, read with or without), [`text_id!`] ids are strings of
//! 1 to 64 characters, because identities that come from LDAP, federation or an older cloud are not UUIDs.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Entropy, Error};

macro_rules! uuid_id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh random id.
            pub fn random(entropy: &Entropy) -> Self { $name(entropy.uuid()) }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.hyphenated().fmt(f) }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Uuid::try_parse(text).map($name).map_err(|_| Error::bad_request(format!("'{text}' is not a UUID")))
            }
        }
    )*};
}

macro_rules! text_id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Takes `text` as it is. For ids that come from our own tables.
            pub fn new(text: impl Into<String>) -> Self { $name(text.into()) }
            /// A fresh random id: 32 hexadecimal digits, as Keystone makes them.
            pub fn random(entropy: &Entropy) -> Self { $name(entropy.uuid().simple().to_string()) }
            /// The text.
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                if (1..=64).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c == '/') {
                    Ok($name(text.to_owned()))
                } else {
                    Err(Error::bad_request("an id has 1 to 64 characters"))
                }
            }
        }
    )*};
}

uuid_id! {
    /// A virtual machine.
    ServerId,
    /// An image.
    ImageId,
    /// A network (a layer-2 segment of a tenant, or a provider network).
    NetworkId,
    /// A subnet of a network.
    SubnetId,
    /// A port: where something is plugged into a network.
    PortId,
    /// A router.
    RouterId,
    /// A floating IP.
    FloatingIpId,
    /// A security group.
    SecurityGroupId,
    /// A rule of a security group.
    SecurityGroupRuleId,
    /// A block storage volume.
    VolumeId,
    /// A snapshot of a volume.
    SnapshotId,
    /// One attachment of a volume to a server.
    AttachmentId,
    /// A volume type.
    VolumeTypeId,
    /// A server group (affinity, anti-affinity).
    ServerGroupId,
    /// A hypervisor host; its own resource provider in placement has the same id.
    HostId,
    /// A resource provider.
    ResourceProviderId,
}

text_id! {
    /// A project (tenant).
    ProjectId,
    /// A user.
    UserId,
    /// A domain.
    DomainId,
    /// A group of users.
    GroupId,
    /// A role.
    RoleId,
    /// A service in the catalog.
    ServiceId,
    /// An endpoint in the catalog.
    EndpointId,
    /// A region in the catalog; its id is its name.
    RegionId,
    /// An application credential.
    ApplicationCredentialId,
    /// A flavor; its id may be chosen by the operator.
    FlavorId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_ids_read_both_forms_and_show_dashes() {
        let id: ServerId = "6f3a5c1e0d7b4c3e9a8f112233445566".parse().unwrap();
        assert_eq!(id.to_string(), "6f3a5c1e-0d7b-4c3e-9a8f-112233445566");
        assert!("nonsense".parse::<ServerId>().is_err());
    }

    #[test]
    fn text_ids_refuse_slashes_and_lengths() {
        assert!("a/b".parse::<ProjectId>().is_err());
        assert!("".parse::<ProjectId>().is_err());
        assert!("x".repeat(65).parse::<ProjectId>().is_err());
        assert_eq!("default".parse::<DomainId>().unwrap().as_str(), "default");
    }
}
