//! The body of "create server", checked field by field.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ::api::types::{Base64, Ip, LaxBool, LaxInt, Metadata, Name, Patch, Text, Uuid};
use ::api::{Ctx, JsonSchema};
use base::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

use super::super::wire::{gate, until, words};
use crate::State;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    pub server: New,
    #[serde(rename = "os:scheduler_hints", alias = "OS-SCH-HNT:scheduler_hints")]
    pub hints: Option<Hints>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct New {
    pub name: Name,
    #[serde(rename = "flavorRef")]
    pub flavor: Ref,
    #[serde(rename = "imageRef")]
    pub image: Option<Text<0, 255>>,
    #[serde(rename = "adminPass")]
    pub admin_pass: Option<Text<0, 255>>,
    pub metadata: Option<Metadata>,
    pub networks: Option<Networks>,
    pub personality: Option<Vec<Value>>,
    #[serde(rename = "OS-DCF:diskConfig")]
    pub disk_config: Option<DiskConfig>,
    #[serde(rename = "accessIPv4")]
    pub access_v4: Option<Text<0, 64>>,
    #[serde(rename = "accessIPv6")]
    pub access_v6: Option<Text<0, 64>>,
    pub availability_zone: Option<Text<1, 255>>,
    pub block_device_mapping: Option<Vec<Value>>,
    pub block_device_mapping_v2: Option<Vec<Mapping>>,
    pub config_drive: Option<LaxBool>,
    pub key_name: Option<Name>,
    pub min_count: Option<LaxInt<1, 1000>>,
    pub max_count: Option<LaxInt<1, 1000>>,
    pub return_reservation_id: Option<LaxBool>,
    pub security_groups: Option<Vec<Group>>,
    pub user_data: Option<Base64<65535>>,
    #[serde(default)]
    pub description: Patch<Text<0, 255>>,
    pub tags: Option<Vec<Tag>>,
    pub trusted_image_certificates: Option<Vec<Text<1, 255>>>,
    pub host: Option<Name>,
    pub hypervisor_hostname: Option<Name>,
    pub hostname: Option<Text<1, 255>>,
}

/// An id: text, a number, or a URL that ends in it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Ref {
    Text(Text<1, 255>),
    Number(LaxInt<0, { i64::MAX }>),
}

impl Ref {
    pub(super) fn id(&self) -> String {
        match self {
            Ref::Text(text) => text.rsplit('/').next().unwrap_or("").to_owned(),
            Ref::Number(number) => number.get().to_string(),
        }
    }
}

words! {
    /// Who partitions the disk.
    pub(super) enum DiskConfig { Auto = "AUTO", Manual = "MANUAL" }
}

impl DiskConfig {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            DiskConfig::Auto => "AUTO",
            DiskConfig::Manual => "MANUAL",
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Group {
    pub name: Name,
}

/// A tag: 1 to 60 characters, no `/` and no `,`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct Tag(Text<1, 60>);

impl Tag {
    pub(super) fn checked(&self) -> Result<String> {
        tag(self.0.as_str())
    }
}

pub(super) fn tag(text: &str) -> Result<String> {
    let length = text.chars().count();
    if length == 0 || length > 60 || text.contains(['/', ',']) || text.chars().any(char::is_control) {
        return Err(Error::bad_request(format!(
            "Invalid input for field/attribute tag. Value: {text}. A tag has 1 to 60 characters, and neither '/' nor ','."
        )));
    }
    Ok(text.to_owned())
}

/// Tags of a body.
pub(super) fn tags(list: &[Tag]) -> Result<BTreeSet<String>> {
    if list.len() > 50 {
        return Err(Error::bad_request(
            "Invalid input for field/attribute tags. Too many tags: at most 50 are allowed.",
        ));
    }
    list.iter().map(Tag::checked).collect()
}

/// A list, or since 2.37 `auto` or `none`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Networks {
    List(Vec<Network>),
    Word(Word),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    Auto,
    None,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    pub uuid: Option<Uuid>,
    #[serde(default)]
    pub port: Patch<Uuid>,
    pub fixed_ip: Option<Ip>,
    pub tag: Option<Tag>,
}

words! {
    /// What a disk is made from.
    pub(super) enum Source { Image = "image", Volume = "volume", Snapshot = "snapshot", Blank = "blank" }
}

words! {
    /// Where a disk is.
    pub(super) enum Destination { Local = "local", Volume = "volume" }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Mapping {
    pub uuid: Option<Text<1, 36>>,
    pub source_type: Option<Source>,
    pub destination_type: Option<Destination>,
    pub boot_index: Option<LaxInt<-1, 255>>,
    pub volume_size: Option<VolumeSize>,
    pub delete_on_termination: Option<LaxBool>,
    pub device_name: Option<Text<1, 255>>,
    pub guest_format: Option<Text<0, 255>>,
    #[serde(rename = "device_type")]
    pub _device_type: Option<Text<0, 255>>,
    #[serde(rename = "disk_bus")]
    pub _disk_bus: Option<Text<0, 255>>,
    #[serde(rename = "no_device")]
    pub _no_device: Option<Value>,
    // Sent by old clients beside uuid.
    #[serde(rename = "volume_id")]
    pub _volume_id: Option<Value>,
    pub tag: Option<Tag>,
    pub volume_type: Option<Text<0, 255>>,
}

/// GiB; an empty text is none.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum VolumeSize {
    Number(LaxInt<0, { i32::MAX as i64 }>),
    Empty(Text0),
}

/// The empty text.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub(super) enum Text0 {
    #[serde(rename = "")]
    Empty,
}

impl VolumeSize {
    pub(super) fn get(self) -> u64 {
        match self {
            VolumeSize::Number(n) => n.unsigned(),
            VolumeSize::Empty(Text0::Empty) => 0,
        }
    }
}

/// Scheduler hints; those of filters this cloud does not have are taken and ignored, as Nova does.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(super) struct Hints {
    pub group: Option<Uuid>,
    pub same_host: Option<Hosts>,
    pub different_host: Option<Hosts>,
}

/// One id or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Hosts {
    One(Uuid),
    Many(Vec<Uuid>),
}

impl Hosts {
    pub(super) fn ids(&self) -> Vec<base::ServerId> {
        match self {
            Hosts::One(id) => vec![base::ServerId(id.0)],
            Hosts::Many(ids) => ids.iter().map(|id| base::ServerId(id.0)).collect(),
        }
    }
}

/// Refuses fields that this microversion does not have.
pub(super) fn gates(cx: &Ctx<State>, new: &New) -> Result<()> {
    gate(cx, !new.description.is_absent(), 2, 19, "description")?;
    gate(cx, new.tags.is_some(), 2, 52, "tags")?;
    until(cx, new.personality.is_some(), 2, 56, "personality")?;
    gate(cx, new.trusted_image_certificates.is_some(), 2, 63, "trusted_image_certificates")?;
    gate(cx, new.host.is_some(), 2, 74, "host")?;
    gate(cx, new.hypervisor_hostname.is_some(), 2, 74, "hypervisor_hostname")?;
    gate(cx, new.hostname.is_some(), 2, 90, "hostname")?;
    for mapping in new.block_device_mapping_v2.iter().flatten() {
        // 2.33 to 2.41 had lost it by mistake.
        let lost = cx.since(2, 33) && !cx.since(2, 42);
        if mapping.tag.is_some() && lost {
            return Err(cx
                .dialect()
                .invalid_field("tag", "Additional properties are not allowed ('tag' was unexpected)"));
        }
        gate(cx, mapping.tag.is_some(), 2, 32, "tag")?;
        gate(cx, mapping.volume_type.is_some(), 2, 67, "volume_type")?;
    }
    match &new.networks {
        Some(Networks::Word(_)) if !cx.since(2, 37) => {
            Err(cx.dialect().invalid_field("networks", "'auto' and 'none' need version 2.37"))
        }
        Some(Networks::List(list)) if list.is_empty() && cx.since(2, 37) => {
            Err(cx.dialect().invalid_field("networks", "[] is too short"))
        }
        None if cx.since(2, 37) => {
            Err(cx.dialect().invalid_field("server", "'networks' is a required property"))
        }
        Some(Networks::List(list)) => {
            for network in list {
                gate(cx, network.tag.is_some(), 2, 32, "tag")?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// `accessIPv4`: an address, or empty for none.
pub(super) fn v4(cx: &Ctx<State>, text: Option<&str>) -> Result<Option<Ipv4Addr>> {
    match text {
        None | Some("") => Ok(None),
        Some(t) => t
            .parse()
            .map(Some)
            .map_err(|_| cx.dialect().invalid_field("accessIPv4", &format!("'{t}' is not a 'ipv4'"))),
    }
}

/// `accessIPv6`: an address, or empty for none.
pub(super) fn v6(cx: &Ctx<State>, text: Option<&str>) -> Result<Option<Ipv6Addr>> {
    match text {
        None | Some("") => Ok(None),
        Some(t) => t
            .parse()
            .map(Some)
            .map_err(|_| cx.dialect().invalid_field("accessIPv6", &format!("'{t}' is not a 'ipv6'"))),
    }
}

/// A host name of the user's own (2.90): RFC 1123, at most 63 characters; 2.94 allows fully qualified ones.
pub(super) fn hostname(cx: &Ctx<State>, text: &str) -> Result<String> {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let fine = if cx.since(2, 94) { text.len() <= 255 && text.split('.').all(label) } else { label(text) };
    if fine {
        Ok(text.to_owned())
    } else {
        Err(cx.dialect().invalid_field("hostname", &format!("'{text}' is not a host name")))
    }
}

/// Names may not begin or end with blanks.
pub(super) fn name(cx: &Ctx<State>, name: Name) -> Result<String> {
    let text = name.into_string();
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(cx.dialect().invalid_field("name", "it is blank"));
    }
    Ok(trimmed.to_owned())
}
