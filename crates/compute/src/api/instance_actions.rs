//! `/servers/{id}/os-instance-actions`.

use ::api::{Ctx, Op, Reply, Request};
use base::{Error, Result, Timestamp};
use serde_json::{Map, Value, json};
use store::{Order, Query};

use super::wire::{owned, server_id};
use crate::State;
use crate::model::{InstanceAction, Server, VmState};

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2.1/servers/{id}/os-instance-actions", "os_compute_api:os-instance-actions:list", list)
            .summary("List what was done with a server"),
        Op::get(
            "/v2.1/servers/{id}/os-instance-actions/{request}",
            "os_compute_api:os-instance-actions:show",
            show,
        )
        .summary("Show one thing that was done with a server"),
    ]
}

/// When and how an action ended: noted, or seen from the server.
fn ended(action: &InstanceAction, server: &Server) -> Option<(Timestamp, bool)> {
    if let (Some(finish), success) = (action.finish, action.success.unwrap_or(true)) {
        return Some((finish, success));
    }
    match action.action.as_str() {
        "create" => server.launched_at.map(|t| (t, true)),
        _ if server.task.is_none() && !server.deleting => {
            Some((server.meta.updated_at.max(action.start), server.vm_state != VmState::Error))
        }
        _ => None,
    }
}

fn view(cx: &Ctx<State>, action: &InstanceAction, server: &Server) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("action".into(), json!(action.action));
    map.insert("instance_uuid".into(), json!(action.server_id));
    map.insert("request_id".into(), json!(action.request_id));
    map.insert("user_id".into(), json!(action.user_id));
    map.insert("project_id".into(), json!(action.project_id));
    map.insert("start_time".into(), json!(action.start.iso_naive()));
    map.insert("message".into(), json!(action.message));
    if cx.since(2, 58) {
        let end = ended(action, server).map_or(action.start, |(t, _)| t);
        map.insert("updated_at".into(), json!(end.iso_naive()));
    }
    map
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    let page = req.page(cx.state().config.max_limit)?;
    let cx2 = cx.clone();
    let (server, mut actions) = cx
        .store()
        .read(move |tx| {
            let server = owned(tx, &cx2, id)?;
            let query = Query::new().eq("server_id", id).sort("created_at", Order::Desc);
            Ok((server, tx.list::<InstanceAction>(&query)?))
        })
        .await?;
    if cx.since(2, 58) {
        if let Some(marker) = &page.marker {
            let at = actions.iter().position(|a| a.request_id == *marker);
            let at = at.ok_or_else(|| Error::bad_request(format!("marker [{marker}] not found")))?;
            actions.drain(..=at);
        }
        actions.truncate(page.limit);
    }
    let items: Vec<Value> = actions.iter().map(|a| Value::Object(view(&cx, a, &server))).collect();
    if !cx.since(2, 58) {
        return Ok(Reply::json(&json!({"instanceActions": items})));
    }
    let next = actions.last().filter(|_| page.limited && actions.len() == page.limit);
    let mut body = json!({"instanceActions": items});
    if let (Some(last), Some(map)) = (next, body.as_object_mut()) {
        let href = cx.next_url(&req, &page, &last.request_id);
        map.insert("links".into(), json!([{"rel": "next", "href": href}]));
    }
    Ok(Reply::json(&body))
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    let request = req.param("request").to_owned();
    let cx2 = cx.clone();
    let wanted = request.clone();
    let (server, action) = cx
        .store()
        .read(move |tx| {
            let server = owned(tx, &cx2, id)?;
            let all = tx.list::<InstanceAction>(&Query::new().eq("server_id", id))?;
            Ok((server, all.into_iter().find(|a| a.request_id == wanted)))
        })
        .await?;
    let action = action.ok_or_else(|| {
        Error::not_found(format!("Action for request_id {request} on instance {id} not found"))
    })?;
    let mut map = view(&cx, &action, &server);
    if cx.is_admin() || cx.since(2, 51) {
        let end = ended(&action, &server);
        let mut event = json!({
            "event": format!("compute_{}_instance", action.action), "start_time": action.start.iso_naive(),
            "finish_time": end.map(|(t, _)| t.iso_naive()),
            "result": end.map(|(_, fine)| if fine { "Success" } else { "Error" }),
        });
        if let Some(fields) = event.as_object_mut() {
            if cx.is_admin() {
                fields.insert("traceback".into(), Value::Null);
                if cx.since(2, 62) {
                    fields.insert("host".into(), json!(server.host_name));
                }
            }
            if cx.since(2, 62) {
                fields.insert("hostId".into(), json!(super::servers::host_id(&server)));
            }
            if cx.since(2, 84) {
                fields.insert("details".into(), json!(action.message));
            }
        }
        map.insert("events".into(), json!([event]));
    }
    Ok(Reply::json(&json!({"instanceAction": map})))
}
