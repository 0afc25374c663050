//! `migrate`, `confirmResize` and `revertResize`: a server goes to another host, standing still (see `moving.rs`).

use ::api::types::Text;
use ::api::{Ctx, Reply, Request};
use base::{Error, Result};
use contract::host::Power;
use schemars::JsonSchema;
use serde::Deserialize;
use store::{Query, Tx};

use super::super::wire::{gate, owned, record, server_id};
use crate::State;
use crate::logic::state::{conflict, moved, need, task, unlocked};
use crate::model::{Host, KNOWS_MOVES, Move, Server, Stage, VmState};
use crate::moving::wake_hosts;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Migrate {
    host: Option<Text<1, 255>>,
}

/// The host that a server leaves, if it can.
fn left(tx: &mut Tx<'_>, state: &State, server: &Server, wanted: Option<&str>) -> Result<Host> {
    let id = server.id;
    need(server, "migrate", &[VmState::Active, VmState::Stopped])?;
    let source = server.host_id.filter(|_| server.ready).ok_or_else(|| conflict(server, "migrate"))?;
    if !server.disks.is_empty() {
        return Err(Error::conflict(format!(
            "Instance {id} has volumes, which are stored on its host and cannot follow it."
        )));
    }
    if let Some(name) = wanted {
        let target = tx.list::<Host>(&Query::new().eq("name", name))?.pop();
        let target =
            target.ok_or_else(|| Error::bad_request(format!("Compute host {name} could not be found.")))?;
        if target.id == source {
            return Err(Error::bad_request(format!("'host': instance {id} is on host {name} already")));
        }
    }
    let host = tx.get::<Host>(&source)?.ok_or_else(|| conflict(server, "migrate"))?;
    if !state.is_up(&host) {
        return Err(Error::conflict(format!(
            "Host {} of instance {id} does not answer, and its disks are there: it can be evacuated.",
            host.name
        )));
    }
    if !host.capacity.moves_disks {
        return Err(Error::not_implemented(format!("Host {} hands out no disks.", host.name)));
    }
    Ok(host)
}

pub(super) async fn migrate(cx: Ctx<State>, req: Request<Option<Migrate>>) -> Result<Reply> {
    let id = server_id(&req)?;
    gate(&cx, req.body.is_some(), 2, 56, "host")?;
    let wanted = req.body.as_ref().and_then(|b| b.host.as_ref()).map(|h| h.as_str().to_owned());
    // It would fold hosts without the servers that pass.
    let knows = |r: &store::Replica| r.schemas.get("compute").is_some_and(|n| *n >= KNOWS_MOVES);
    if cx.store().shared() && !cx.store().replicas().await?.iter().all(knows) {
        return Err(Error::conflict(
            "A server process of an older version still runs, which cannot move instances.",
        ));
    }
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            unlocked(&server, cx2.is_admin())?;
            let host = left(tx, cx2.state(), &server, wanted.as_deref())?;
            let moving = cx2.state().entropy.uuid();
            tx.insert(&mut Move {
                id: moving,
                meta: store::Meta::default(),
                server_id: id,
                source: host.id,
                source_name: host.name,
                target: None,
                target_name: None,
                host_wanted: wanted.clone(),
                power: server.power,
                stage: Stage::Stopping,
                open: true,
                status: String::new(),
                message: None,
                source_told: None,
                target_told: None,
                user_id: cx2.user_id().clone(),
                project_id: server.project_id.clone(),
                flavor_id: server.flavor_id.clone(),
            })?;
            server.moving = Some(moving);
            server.task = Some(task::PREPARING.to_owned());
            server.power = Power::Stopped;
            tx.update(&mut server)?;
            wake_hosts(tx, &server)?;
            tx.wake("server", id);
            record(tx, &cx2, &server, "migrate")
        })
        .await?;
    Ok(Reply::empty())
}

/// One transaction on a server that came to another host and waits for a word.
async fn decide(
    cx: &Ctx<State>,
    req: &Request<()>,
    action: &'static str,
    f: impl Fn(&mut Tx<'_>, &mut Server, &mut Move) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let id = server_id(req)?;
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            unlocked(&server, cx2.is_admin())?;
            if server.deleting || server.task.is_some() || !moved(&server) {
                return Err(conflict(&server, action));
            }
            let moving = match server.moving {
                Some(moving) => tx.get::<Move>(&moving)?,
                None => None,
            };
            let moving = moving.filter(|m| m.open && m.stage == Stage::Verify);
            let mut moving = moving.ok_or_else(|| conflict(&server, action))?;
            f(tx, &mut server, &mut moving)?;
            tx.update_status(&mut moving)?;
            wake_hosts(tx, &server)?;
            tx.wake("server", id);
            record(tx, &cx2, &server, action)
        })
        .await
}

pub(super) async fn confirm(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    decide(&cx, &req, "confirmResize", |tx, server, moving| {
        moving.stage = Stage::Confirming;
        server.task = Some(task::CONFIRMING.to_owned());
        // A new generation: what the first host holds of it is of an older one.
        tx.update(server)
    })
    .await?;
    Ok(Reply::empty())
}

pub(super) async fn revert(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    decide(&cx, &req, "revertResize", |tx, server, moving| {
        moving.stage = Stage::Reverting;
        // What it does by now, not what it did when it left.
        moving.power = server.power;
        server.power = Power::Stopped;
        server.task = Some(task::REVERTING.to_owned());
        tx.update(server)
    })
    .await?;
    Ok(Reply::empty())
}
