//! Which status may follow which, and why not. Source: Cinder API reference, "Volume statuses".

use base::{Error, Result, VolumeId};

use crate::model::{Attachment, Volume, status};

/// Most GiB of a volume.
pub const MAX_GIB: u64 = 2_147_483_647;

/// 400 in Cinder's words.
pub fn invalid_volume(reason: impl std::fmt::Display) -> Error {
    Error::bad_request(format!("Invalid volume: {reason}"))
}

/// The 404 of a volume.
pub fn no_volume(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("Volume {id} could not be found."))
}

/// The status that a volume's attachments leave it in.
pub fn by_attachments<'a>(attachments: impl Iterator<Item = &'a Attachment>) -> &'static str {
    let mut result = status::AVAILABLE;
    for attachment in attachments {
        match attachment.status.as_str() {
            "attached" => return status::IN_USE,
            "detaching" => result = status::DETACHING,
            "attaching" if result != status::DETACHING => result = status::ATTACHING,
            _ if result == status::AVAILABLE => result = status::RESERVED,
            _ => {}
        }
    }
    result
}

/// Whether the volume may be claimed for (another) server.
///
/// # Errors
/// `BadRequest` with the reason.
pub fn may_attach(volume: &Volume) -> Result<()> {
    let free = volume.status == status::AVAILABLE;
    let shared = volume.multiattach && matches!(volume.status.as_str(), status::IN_USE | status::RESERVED);
    if free || shared {
        return Ok(());
    }
    Err(invalid_volume(format!(
        "Volume {} status must be available or downloading to reserve, but the current status is {}.",
        volume.id, volume.status
    )))
}

/// Whether it may be deleted. `force`: an administrator insists.
///
/// # Errors
/// `BadRequest` with the reason.
pub fn may_delete(volume: &Volume, attached: bool, snapshots: u64, force: bool) -> Result<()> {
    let id = volume.id;
    if attached {
        return Err(invalid_volume(format!(
            "Volume {id} is still attached, detach volume first. Volume status must be available or error or error_restoring or error_extending or error_managing and must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated from snapshots after volume transfer."
        )));
    }
    let ends = matches!(
        volume.status.as_str(),
        status::AVAILABLE | status::ERROR | status::ERROR_EXTENDING | status::ERROR_DELETING
    );
    if snapshots > 0 || !(ends || force) {
        return Err(invalid_volume(format!(
            "Volume status must be available or error or error_restoring or error_extending or error_managing and must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated from snapshots after volume transfer. (volume {id}, status {}, {snapshots} snapshots)",
            volume.status
        )));
    }
    Ok(())
}

/// Whether it may grow to `new_gib`. `attached_too`: the microversion allows it for volumes in use.
///
/// # Errors
/// `BadRequest` with the reason.
pub fn may_extend(volume: &Volume, new_gib: u64, attached_too: bool) -> Result<()> {
    let ready = match volume.status.as_str() {
        status::AVAILABLE => true,
        status::IN_USE => attached_too,
        _ => false,
    };
    if !ready {
        return Err(invalid_volume(format!(
            "Volume {} status must be '{}' to extend, currently {}.",
            volume.id,
            if attached_too { "available' or 'in-use" } else { "available" },
            volume.status
        )));
    }
    if new_gib <= volume.size_gib {
        return Err(Error::bad_request(format!(
            "Invalid input received: New size for extend must be greater than current size. (current: {}, extended: {new_gib}).",
            volume.size_gib
        )));
    }
    Ok(())
}

/// From `from` to `to`.
///
/// # Errors
/// `BadRequest` where it is in another status.
pub fn step(volume: &mut Volume, from: &[&str], to: &str, verb: &str) -> Result<()> {
    if !from.contains(&volume.status.as_str()) {
        return Err(invalid_volume(format!(
            "Volume {} must be {} to {verb}; its status is {}.",
            volume.id,
            from.join(" or "),
            volume.status
        )));
    }
    to.clone_into(&mut volume.status);
    Ok(())
}

/// The size of a volume made from something of `least` GiB.
///
/// # Errors
/// `BadRequest` where the wanted one is smaller.
pub fn size_over(wanted: Option<u64>, least: u64, what: &str) -> Result<u64> {
    match wanted {
        None => Ok(least),
        Some(size) if size >= least => Ok(size),
        Some(size) => Err(Error::bad_request(format!(
            "Invalid input received: Volume size '{size}'GB cannot be smaller than {what} size {least}GB. They must be >= {what} size."
        ))),
    }
}

/// Whether an attachment of that id would be a second one of another volume.
///
/// # Errors
/// `Conflict`.
pub fn same_volume(attachment: &Attachment, volume: VolumeId) -> Result<()> {
    if attachment.volume_id == volume {
        return Ok(());
    }
    Err(Error::conflict(format!("Attachment {} is of another volume.", attachment.id)))
}
