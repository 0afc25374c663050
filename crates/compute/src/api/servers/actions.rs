//! `/servers/{id}/action`.

use ::api::types::{LaxBool, LaxInt, Name, Text};
use ::api::{Ctx, Op, Reply, Request};
use base::{Error, Result};
use contract::host::Power;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use store::Query;

use super::super::wire::{owned, record, server_id, words};
use super::super::{ADMIN, MEMBER};
use super::{migration, remove, save};
use crate::State;
use crate::leases::take_away;
use crate::logic::state::{conflict, need, unlocked};
use crate::model::{Host, Locked, Server, VmState};

const PATH: &str = "/v2.1/servers/{id}/action";

fn act<T, F, R>(action: &'static str, policy: &'static str, handler: F) -> Op<State>
where
    T: serde::de::DeserializeOwned + JsonSchema + Send + 'static,
    F: Fn(Ctx<State>, Request<T>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Reply>> + Send + 'static,
{
    Op::action(PATH, action, policy, handler).status(202)
}

pub(super) fn ops() -> Vec<Op<State>> {
    let mut ops = vec![
        act("os-start", "os_compute_api:servers:start", start).summary("Start a stopped server"),
        act("os-stop", "os_compute_api:servers:stop", stop).summary("Stop a server"),
        act("reboot", "os_compute_api:servers:reboot", reboot).summary("Reboot a server"),
        act("pause", "os_compute_api:os-pause-server:pause", pause).summary("Pause a server"),
        act("unpause", "os_compute_api:os-pause-server:unpause", unpause).summary("Unpause a server"),
        act("suspend", "os_compute_api:os-suspend-server:suspend", suspend).summary("Suspend a server"),
        act("resume", "os_compute_api:os-suspend-server:resume", resume).summary("Resume a server"),
        act("lock", "os_compute_api:os-lock-server:lock", lock).summary("Lock a server"),
        act("unlock", "os_compute_api:os-lock-server:unlock", unlock).summary("Unlock a server"),
        act("forceDelete", "os_compute_api:os-deferred-delete:force", force_delete)
            .summary("Delete a server at once"),
        act("restore", "os_compute_api:os-deferred-delete:restore", restore)
            .summary("Restore a deleted server"),
        act("os-getConsoleOutput", "os_compute_api:os-console-output", console)
            .status(200)
            .summary("Show a server's console log"),
        act("addSecurityGroup", "os_compute_api:os-security-groups:add", add_group)
            .summary("Add a security group"),
        act("removeSecurityGroup", "os_compute_api:os-security-groups:remove", remove_group)
            .summary("Remove a security group"),
        act("os-resetState", "os_compute_api:os-admin-actions:reset_state", reset_state)
            .default_rule(ADMIN)
            .summary("Set a server's state by hand"),
        act("evacuate", "os_compute_api:os-evacuate", evacuate)
            .default_rule(ADMIN)
            .status(200)
            .summary("Make a server anew on another host when its own is lost"),
        act("migrate", "os_compute_api:os-migrate-server:migrate", migration::migrate)
            .default_rule(ADMIN)
            .summary("Stop a server and take it to another host with its disks"),
        act("confirmResize", "os_compute_api:servers:confirm_resize", migration::confirm)
            .status(204)
            .summary("Keep a server on the host that it came to"),
        act("revertResize", "os_compute_api:servers:revert_resize", migration::revert)
            .summary("Take a server back to the host that it came from"),
        act("changePassword", "os_compute_api:os-admin-password", password)
            .summary("Change the password in the guest"),
    ];
    ops.extend(unbuilt());
    ops
}

/// What Nova has and this cloud does not (yet): a clean refusal, after the server was found.
fn unbuilt() -> Vec<Op<State>> {
    let member = [
        ("createImage", "os_compute_api:servers:create_image", MEMBER),
        ("rebuild", "os_compute_api:servers:rebuild", MEMBER),
        ("resize", "os_compute_api:servers:resize", MEMBER),
        ("rescue", "os_compute_api:os-rescue", MEMBER),
        ("unrescue", "os_compute_api:os-unrescue", MEMBER),
        ("shelve", "os_compute_api:os-shelve:shelve", MEMBER),
        ("unshelve", "os_compute_api:os-shelve:unshelve", MEMBER),
        ("shelveOffload", "os_compute_api:os-shelve:shelve_offload", ADMIN),
        ("createBackup", "os_compute_api:os-create-backup", MEMBER),
        ("os-migrateLive", "os_compute_api:os-migrate-server:migrate_live", ADMIN),
        ("trigger_crash_dump", "os_compute_api:servers:trigger_crash_dump", MEMBER),
        ("os-getVNCConsole", "os_compute_api:os-remote-consoles", MEMBER),
        ("os-getSPICEConsole", "os_compute_api:os-remote-consoles", MEMBER),
        ("os-getSerialConsole", "os_compute_api:os-remote-consoles", MEMBER),
    ];
    member
        .into_iter()
        .map(|(action, policy, rule)| {
            let op = act(action, policy, move |cx: Ctx<State>, req: Request<Value>| refuse(cx, req, action));
            op.default_rule(rule).status(501).summary("Not offered by this cloud")
        })
        .collect()
}

async fn refuse(cx: Ctx<State>, req: Request<Value>, action: &'static str) -> Result<Reply> {
    let id = server_id(&req)?;
    let cx2 = cx.clone();
    cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    Err(Error::not_implemented(format!("This cloud does not offer the action '{action}'.")))
}

/// One transaction on one server: found, allowed, unlocked, changed, recorded.
async fn change<T>(
    cx: &Ctx<State>,
    req: &Request<T>,
    action: &'static str,
    f: impl Fn(&mut Server) -> Result<()> + Send + Sync + 'static,
) -> Result<Server> {
    let id = server_id(req)?;
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            unlocked(&server, cx2.is_admin())?;
            let before = server.clone();
            f(&mut server)?;
            save(tx, &before, &mut server)?;
            record(tx, &cx2, &server, action)?;
            Ok(server)
        })
        .await
}

/// Wants a power state, from some states only.
fn wish(
    action: &'static str,
    from: &'static [VmState],
    power: Power,
    task: &'static str,
) -> impl Fn(&mut Server) -> Result<()> {
    move |server| {
        need(server, action, from)?;
        server.power = power;
        server.task = Some(task.to_owned());
        Ok(())
    }
}

async fn start(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    change(&cx, &req, "start", wish("start", &[VmState::Stopped], Power::Running, "powering-on")).await?;
    Ok(Reply::empty())
}

async fn stop(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    change(&cx, &req, "stop", |s| {
        // A server in error may be stopped if its host has it.
        if s.vm_state == VmState::Error && s.ready && s.task.is_none() && !s.deleting {
            s.power = Power::Stopped;
            s.task = Some("powering-off".to_owned());
            return Ok(());
        }
        wish("stop", &[VmState::Active], Power::Stopped, "powering-off")(s)
    })
    .await?;
    Ok(Reply::empty())
}

async fn pause(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    change(&cx, &req, "pause", wish("pause", &[VmState::Active], Power::Paused, "pausing")).await?;
    Ok(Reply::empty())
}

async fn unpause(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    change(&cx, &req, "unpause", wish("unpause", &[VmState::Paused], Power::Running, "unpausing")).await?;
    Ok(Reply::empty())
}

async fn suspend(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    change(&cx, &req, "suspend", wish("suspend", &[VmState::Active], Power::Suspended, "suspending")).await?;
    Ok(Reply::empty())
}

async fn resume(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    change(&cx, &req, "resume", wish("resume", &[VmState::Suspended], Power::Running, "resuming")).await?;
    Ok(Reply::empty())
}

words! {
    /// How a server is rebooted.
    enum RebootKind { Soft = "SOFT" | "soft" | "Soft", Hard = "HARD" | "hard" | "Hard" }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reboot {
    #[serde(rename = "type")]
    kind: RebootKind,
}

async fn reboot(cx: Ctx<State>, req: Request<Reboot>) -> Result<Reply> {
    let hard = req.body.kind == RebootKind::Hard;
    change(&cx, &req, "reboot", move |s| {
        let soft: &[VmState] = &[VmState::Active];
        let any: &[VmState] =
            &[VmState::Active, VmState::Stopped, VmState::Paused, VmState::Suspended, VmState::Error];
        // A hard reboot may overtake a soft one that hangs.
        if s.deleting || !(hard && matches!(s.task.as_deref(), Some("rebooting" | "rebooting_hard"))) {
            need(s, "reboot", if hard { any } else { soft })?;
        }
        if !s.ready {
            return Err(conflict(s, "reboot"));
        }
        s.reboots += 1;
        s.reboot_hard = hard;
        s.power = Power::Running;
        s.task = Some(if hard { "rebooting_hard" } else { "rebooting" }.to_owned());
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Lock {
    locked_reason: Option<Text<1, 255>>,
}

async fn lock(cx: Ctx<State>, req: Request<Option<Lock>>) -> Result<Reply> {
    let reason = req.body.as_ref().and_then(|l| l.locked_reason.as_ref()).map(|r| r.as_str().to_owned());
    super::gate(&cx, req.body.as_ref().is_some_and(|l| l.locked_reason.is_some()), 2, 73, "locked_reason")?;
    set_lock(&cx, &req, "lock", move |server, admin| {
        let by = if admin { "admin" } else { "owner" };
        server.locked = Some(Locked { by: by.to_owned(), reason: reason.clone() });
        Ok(())
    })
    .await
}

async fn unlock(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    set_lock(&cx, &req, "unlock", |server, admin| {
        if !admin && server.locked.as_ref().is_some_and(|l| l.by == "admin") {
            return Err(Error::forbidden(
                "Policy doesn't allow os_compute_api:os-lock-server:unlock:unlock_override to be performed.",
            ));
        }
        server.locked = None;
        Ok(())
    })
    .await
}

async fn set_lock<T>(
    cx: &Ctx<State>,
    req: &Request<T>,
    action: &'static str,
    f: impl Fn(&mut Server, bool) -> Result<()> + Send + Sync + 'static,
) -> Result<Reply> {
    let id = server_id(req)?;
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            f(&mut server, cx2.is_admin())?;
            tx.update_status(&mut server)?;
            record(tx, &cx2, &server, action)
        })
        .await?;
    Ok(Reply::empty())
}

async fn force_delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    remove(&cx, id, "forceDelete").await?;
    Ok(Reply::empty())
}

async fn restore(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    let cx2 = cx.clone();
    let server = cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    Err(conflict(&server, "restore"))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Console {
    length: Option<LaxInt<-1, { i32::MAX as i64 }>>,
}

async fn console(cx: Ctx<State>, req: Request<Option<Console>>) -> Result<Reply> {
    let id = server_id(&req)?;
    let length = req.body.as_ref().and_then(|c| c.length).and_then(|n| usize::try_from(n.get()).ok());
    let cx2 = cx.clone();
    let server = cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    let host = server.host_id.filter(|_| server.ready);
    let host = host.ok_or_else(|| Error::conflict(format!("Instance {id} is not ready")))?;
    let access = cx.state().access.read().clone();
    let access = access.ok_or_else(|| Error::unavailable("No host can be asked at present."))?;
    let output = access.console_log(host, id, length).await.map_err(|e| match e.kind() {
        base::Kind::NotFound => Error::conflict(format!("Instance {id} is not ready")),
        _ => e,
    })?;
    Ok(Reply::json(&json!({"output": output})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GroupName {
    name: Name,
}

async fn add_group(cx: Ctx<State>, req: Request<GroupName>) -> Result<Reply> {
    set_group(&cx, &req, true).await
}

async fn remove_group(cx: Ctx<State>, req: Request<GroupName>) -> Result<Reply> {
    set_group(&cx, &req, false).await
}

async fn set_group(cx: &Ctx<State>, req: &Request<GroupName>, present: bool) -> Result<Reply> {
    let id = server_id(req)?;
    let cx2 = cx.clone();
    let server = cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    if server.nics.is_empty() {
        return Err(Error::bad_request(format!(
            "Network requires port_security_enabled and subnet associated in order to apply security groups: instance {id} has no port."
        )));
    }
    // Idempotent in the network service, which owns the groups of ports; nothing of ours changes.
    cx.state().deps.networks.set_security_group(cx.auth(), &id.to_string(), &req.body.name, present).await?;
    Ok(Reply::empty())
}

words! {
    /// A state set by hand.
    enum ResetTo { Active = "active", Error = "error" }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reset {
    state: ResetTo,
}

async fn reset_state(cx: Ctx<State>, req: Request<Reset>) -> Result<Reply> {
    let id = server_id(&req)?;
    let state = match req.body.state {
        ResetTo::Active => VmState::Active,
        ResetTo::Error => VmState::Error,
    };
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            if !server.ready && state == VmState::Active {
                return Err(conflict(&server, "reset state of"));
            }
            server.vm_state = state;
            server.task = None;
            tx.update_status(&mut server)?;
            record(tx, &cx2, &server, "resetState")
        })
        .await?;
    Ok(Reply::empty())
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Evacuate {
    host: Option<Text<1, 255>>,
    #[serde(rename = "adminPass")]
    admin_pass: Option<Text<0, 255>>,
    #[serde(rename = "onSharedStorage")]
    on_shared_storage: Option<LaxBool>,
    force: Option<LaxBool>,
}

/// Gives a server of a lost host to another one. Only what its image holds comes back: its disks were on its host.
async fn evacuate(cx: Ctx<State>, req: Request<Evacuate>) -> Result<Reply> {
    let id = server_id(&req)?;
    let body = &req.body;
    super::gate(&cx, body.force.is_some(), 2, 29, "force")?;
    if body.on_shared_storage.is_some() && cx.since(2, 14) {
        return Err(Error::bad_request("'onSharedStorage' is not a field of 'evacuate' since 2.14"));
    }
    if body.on_shared_storage.as_ref().is_some_and(|shared| shared.0) {
        return Err(Error::bad_request("'onSharedStorage': hosts of this cloud share no storage"));
    }
    if body.force.as_ref().is_some_and(|force| force.0) {
        return Err(Error::bad_request("'force': no host is used without asking whether it has room"));
    }
    let wanted = body.host.as_ref().map(|h| h.as_str().to_owned());
    let pass = match (&body.admin_pass, cx.since(2, 14)) {
        (Some(pass), _) => Some(pass.as_str().to_owned()),
        (None, false) => Some(cx.state().entropy.password(12)),
        (None, true) => None,
    };
    let (cx2, shown) = (cx.clone(), pass.clone());
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            let hosts = tx.list::<Host>(&Query::new())?;
            if let Some(name) = &wanted {
                let target = hosts.iter().find(|h| h.name == *name);
                let target =
                    target.ok_or_else(|| Error::not_found(format!("Compute host {name} not found.")))?;
                if Some(target.id) == server.host_id {
                    return Err(Error::bad_request(format!(
                        "'host': instance {id} is on host {name} already"
                    )));
                }
            }
            let state = cx2.state();
            if let Some(host) = hosts.iter().find(|h| Some(h.id) == server.host_id && state.is_up(h)) {
                return Err(Error::bad_request(format!("Compute service of {} is still in use.", host.name)));
            }
            if server.host_id.is_none()
                && !(server.vm_state == VmState::Error && server.launched_at.is_some())
            {
                return Err(conflict(&server, "evacuate"));
            }
            take_away(tx, &mut server, state.config.lease_margin)?;
            server.host_wanted.clone_from(&wanted);
            if pass.is_some() {
                server.admin_pass.clone_from(&pass);
            }
            if cx2.since(2, 95) {
                // Nova leaves it to the owner to start it.
                server.power = Power::Stopped;
            }
            tx.update(&mut server)?;
            record(tx, &cx2, &server, "evacuate")
        })
        .await?;
    if cx.since(2, 14) {
        return Ok(Reply::empty());
    }
    Ok(Reply::json(&json!({"adminPass": shown})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Password {
    #[serde(rename = "adminPass")]
    _pass: Text<0, 255>,
}

async fn password(cx: Ctx<State>, req: Request<Password>) -> Result<Reply> {
    let id = server_id(&req)?;
    let cx2 = cx.clone();
    cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    // It needs an agent in the guest, which images of this cloud do not have.
    Err(Error::conflict(format!("QEMU guest agent is not enabled for the instance {id}.")))
}
