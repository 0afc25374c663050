//! Actions on a volume.

use ::api::{Ctx, Reply, Request};
use base::{AttachmentId, Error, Result, ServerId, VolumeId};
use serde_json::{Value, json};
use store::Tx;

use super::common::{attachments, default_type, here, missing_volume, type_named, volume, wake_volume};
use super::volumes::remove;
use crate::State;
use crate::logic::input::{Fields, invalid, metadata};
use crate::logic::machine::{by_attachments, invalid_volume, may_attach, may_extend, step};
use crate::logic::quota::{self, Claim};
use crate::model::{Attachment, Volume, VolumeType, status};
use crate::service::settle;

/// Runs `work` on the volume of the URL in one transaction; what it answers is the body (`Null`: none).
async fn on<T, F>(cx: Ctx<State>, req: &Request<T>, work: F) -> Result<Reply>
where
    F: Fn(&mut Tx<'_>, &Ctx<State>, Volume) -> Result<Value> + Send + Sync + 'static,
{
    here(&cx, req)?;
    let id: VolumeId = req.id_or("volume_id", missing_volume)?;
    let state = cx.state().clone();
    let body = state
        .store()
        .write(move |tx| {
            let volume = volume(tx, &cx, id)?;
            work(tx, &cx, volume)
        })
        .await?;
    Ok(if body.is_null() { Reply::empty() } else { Reply::json(&body) })
}

pub(crate) async fn attach(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let fields = Fields::whole(&req.body)?;
    let server: Option<ServerId> = fields.id("instance_uuid")?;
    let host = fields.text("host_name", 255)?;
    let device = fields.need_text("mountpoint", 255)?;
    let mode = mode(&fields, "rw")?;
    if server.is_some() == host.is_some() {
        return Err(Error::bad_request(
            "Invalid input: instance_uuid or host_name, not both, is a required property",
        ));
    }
    let id = AttachmentId::random(&cx.entropy);
    on(cx, &req, move |tx, _, mut volume| {
        if volume.status != status::ATTACHING {
            may_attach(&volume)?;
        }
        let mut row = Attachment::reserved(id, &volume, server, false);
        row.status = "attached".to_owned();
        row.device = Some(device.clone());
        row.host_name.clone_from(&host);
        row.mode.clone_from(&mode);
        row.attached_at = Some(tx.now());
        tx.insert(&mut row)?;
        status::RESERVED.clone_into(&mut volume.status);
        settle(tx, &mut volume)?;
        Ok(Value::Null)
    })
    .await
}

fn mode(fields: &Fields<'_>, default: &str) -> Result<String> {
    match fields.text("mode", 8)?.as_deref() {
        None | Some("") => Ok(default.to_owned()),
        Some(mode @ ("rw" | "ro")) => Ok(mode.to_owned()),
        Some(_) => Err(invalid("mode", "It is not one of 'rw', 'ro'.")),
    }
}

/// 409 for what the compute service attached: ended behind its back, the guest would go on writing.
pub(crate) fn unmanaged(attachment: &Attachment, cx: &Ctx<State>) -> Result<()> {
    if !attachment.managed || cx.auth().has_role("service") {
        return Ok(());
    }
    let server = attachment.server_id.map(|s| s.to_string()).unwrap_or_default();
    Err(Error::conflict(format!("Detach volume from instance {server} using the Compute API")))
}

pub(crate) async fn detach(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let wanted: Option<AttachmentId> =
        if req.body.is_null() { None } else { Fields::whole(&req.body)?.id("attachment_id")? };
    on(cx, &req, move |tx, cx, mut volume| {
        let all = attachments(tx, volume.id)?;
        let found: Vec<&Attachment> = all.iter().filter(|a| wanted.is_none_or(|w| a.id == w)).collect();
        let attachment = match found.as_slice() {
            [one] => one,
            [] => return Err(invalid_volume(format!("Volume {} is not attached.", volume.id))),
            _ => {
                return Err(invalid_volume(
                    "Detach volume failed: More than one attachment, but no attachment_id provided.",
                ));
            }
        };
        unmanaged(attachment, cx)?;
        tx.delete::<Attachment>(&attachment.id)?;
        status::RESERVED.clone_into(&mut volume.status);
        settle(tx, &mut volume)?;
        Ok(Value::Null)
    })
    .await
}

async fn simple(
    cx: Ctx<State>,
    req: Request<()>,
    from: &'static [&'static str],
    to: &'static str,
    verb: &'static str,
) -> Result<Reply> {
    on(cx, &req, move |tx, _, mut volume| {
        step(&mut volume, from, to, verb)?;
        tx.update_status(&mut volume)?;
        Ok(Value::Null)
    })
    .await
}

pub(crate) async fn reserve(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    simple(cx, req, &[status::AVAILABLE], status::ATTACHING, "reserve").await
}

pub(crate) async fn unreserve(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    simple(cx, req, &[status::ATTACHING], status::AVAILABLE, "unreserve").await
}

pub(crate) async fn begin_detaching(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    simple(cx, req, &[status::IN_USE], status::DETACHING, "begin detaching").await
}

pub(crate) async fn roll_detaching(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    simple(cx, req, &[status::DETACHING], status::IN_USE, "roll back detaching").await
}

pub(crate) async fn extend(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let fields = Fields::whole(&req.body)?;
    let new = fields.size("new_size")?.ok_or_else(|| invalid("new_size", "It is a required property."))?;
    on(cx, &req, move |tx, cx, mut volume| {
        may_extend(&volume, new, cx.since(3, 42))?;
        let kind = tx.need::<VolumeType>(&volume.volume_type_id)?;
        let project = volume.project_id.clone();
        quota::claim_size(tx, &cx.config.quotas, &project, new)?;
        let claim = Claim { gigabytes: new - volume.size_gib, ..Claim::default() };
        quota::claim(tx, &cx.config.quotas, &project, &kind, claim)?;
        volume.size_gib = new;
        // A volume that no host has yet is simply made larger.
        if volume.host.is_some() {
            volume.status = status::EXTENDING.to_owned();
        }
        volume.since = tx.now();
        volume.error = None;
        tx.update(&mut volume)?;
        wake_volume(tx, volume.id);
        Ok(Value::Null)
    })
    .await
}

pub(crate) async fn set_bootable(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let bootable = Fields::whole(&req.body)?.boolean("bootable")?;
    let bootable = bootable.ok_or_else(|| invalid("bootable", "It is a required property."))?;
    on(cx, &req, move |tx, _, mut volume| {
        volume.bootable = bootable;
        tx.update_status(&mut volume)?;
        Ok(Value::Null)
    })
    .await
}

pub(crate) async fn update_readonly(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let readonly = Fields::whole(&req.body)?.boolean("readonly")?;
    let readonly = readonly.ok_or_else(|| invalid("readonly", "It is a required property."))?;
    on(cx, &req, move |tx, _, mut volume| {
        step(&mut volume, &[status::AVAILABLE], status::AVAILABLE, "update readonly flag")?;
        volume.readonly = Some(readonly);
        tx.update_status(&mut volume)?;
        Ok(Value::Null)
    })
    .await
}

const RESETTABLE: &[&str] = &[
    "creating",
    "available",
    "deleting",
    "error",
    "error_deleting",
    "error_managing",
    "managing",
    "attaching",
    "detaching",
    "in-use",
    "maintenance",
    "error_extending",
    "extending",
    "reserved",
    "awaiting-transfer",
];

pub(crate) async fn reset_status(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let fields = Fields::whole(&req.body)?;
    let to = fields.text("status", 64)?;
    let attach = fields.text("attach_status", 64)?;
    let migration = fields.text("migration_status", 64)?;
    if to.is_none() && attach.is_none() && migration.is_none() {
        return Err(Error::bad_request(
            "Invalid input: Must specify 'status', 'attach_status' or 'migration_status' for update.",
        ));
    }
    if let Some(bad) = to.as_deref().filter(|s| !RESETTABLE.contains(s)) {
        return Err(invalid("status", &format!("Must specify a valid status; '{bad}' is none.")));
    }
    if attach.as_deref().is_some_and(|s| !matches!(s, "attached" | "detached")) {
        return Err(invalid("attach_status", "Must specify a valid attach status."));
    }
    on(cx, &req, move |tx, cx, mut volume| {
        if volume.doomed {
            return Err(invalid_volume(format!(
                "Volume {} is being deleted; its status cannot be reset.",
                volume.id
            )));
        }
        if attach.as_deref() == Some("detached") {
            for row in attachments(tx, volume.id)? {
                unmanaged(&row, cx)?;
                tx.delete::<Attachment>(&row.id)?;
            }
        }
        if let Some(to) = &to {
            volume.status.clone_from(to);
        }
        volume.since = tx.now();
        tx.update_status(&mut volume)?;
        wake_volume(tx, volume.id);
        Ok(Value::Null)
    })
    .await
}

pub(crate) async fn force_delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    on(cx, &req, |tx, _, mut volume| {
        remove(tx, &mut volume, false, true)?;
        Ok(Value::Null)
    })
    .await
}

pub(crate) async fn force_detach(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let wanted: Option<AttachmentId> =
        if req.body.is_null() { None } else { Fields::whole(&req.body)?.id("attachment_id")? };
    on(cx, &req, move |tx, cx, mut volume| {
        for row in attachments(tx, volume.id)? {
            if wanted.is_none_or(|w| w == row.id) {
                unmanaged(&row, cx)?;
                tx.delete::<Attachment>(&row.id)?;
            }
        }
        let left = attachments(tx, volume.id)?;
        by_attachments(left.iter()).clone_into(&mut volume.status);
        tx.update_status(&mut volume)?;
        Ok(Value::Null)
    })
    .await
}

pub(crate) async fn set_image_metadata(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let new = metadata(req.body.get("metadata").unwrap_or(&Value::Null))?;
    on(cx, &req, move |tx, _, mut volume| {
        volume.image_metadata.extend(new.clone());
        tx.update_status(&mut volume)?;
        Ok(json!({"metadata": volume.image_metadata}))
    })
    .await
}

pub(crate) async fn show_image_metadata(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    on(cx, &req, |_, _, volume| Ok(json!({"metadata": volume.image_metadata}))).await
}

pub(crate) async fn unset_image_metadata(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let key = Fields::whole(&req.body)?.need_text("key", 255)?;
    on(cx, &req, move |tx, _, mut volume| {
        if volume.image_metadata.remove(&key).is_none() {
            return Err(Error::not_found("Metadata key not found"));
        }
        tx.update_status(&mut volume)?;
        Ok(Value::Null)
    })
    .await
}

pub(crate) async fn retype(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let fields = Fields::whole(&req.body)?;
    let new = fields.need_text("new_type", 255)?;
    let policy = fields.text("migration_policy", 16)?;
    if policy.as_deref().is_some_and(|p| !matches!(p, "on-demand" | "never")) {
        return Err(invalid("migration_policy", "migration_policy must be 'on-demand' or 'never'."));
    }
    on(cx, &req, move |tx, cx, mut volume| {
        if !matches!(volume.status.as_str(), status::AVAILABLE | status::IN_USE) {
            return Err(invalid_volume(format!(
                "Unable to update type due to incorrect status: {} on volume: {}. Volume status must be available or in-use.",
                volume.status, volume.id
            )));
        }
        let project = volume.project_id.clone();
        let kind = type_named(tx, &new, &project, cx.is_admin())?;
        if kind.id == volume.volume_type_id {
            return Err(Error::bad_request(format!("Invalid volume: New volume_type same as original: {}.", kind.name)));
        }
        // The project's own sums stay; those of the new type grow.
        let limits = quota::limits(tx, &cx.config.quotas, &project)?;
        for (what, more) in [("volumes", 1), ("gigabytes", volume.size_gib)] {
            let name = format!("{what}_{}", kind.name);
            let limit = limits.iter().find(|(n, _)| *n == name).map_or(-1, |(_, l)| *l);
            let used = quota::used(tx, &project, &name)?;
            if u64::try_from(limit).is_ok_and(|l| used + more > l) {
                return Err(Error::over_quota(format!("Quota '{name}' of {limit} would be exceeded.")));
            }
        }
        volume.volume_type_id = kind.id;
        tx.update_status(&mut volume)?;
        Ok(Value::Null)
    })
    .await
}

/// Checks that a type may still be deleted or made the default.
pub(crate) fn is_default(tx: &mut Tx<'_>, cx: &Ctx<State>, kind: &VolumeType) -> Result<bool> {
    Ok(default_type(tx, &cx.config.default_type)?.id == kind.id)
}
