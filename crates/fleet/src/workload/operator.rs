//! Operators: one evacuates hosts that are down, one drains hosts.

use std::sync::Arc;
use std::time::Duration;

use base::Entropy;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Common;
use crate::client::NoAnswer;

/// Looks every `every` seconds, on average; 0 = never.
pub(super) async fn run(common: Arc<Common>, every: u64, dice: Entropy, stop: CancellationToken) {
    while every > 0 && !stop.is_cancelled() {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_millis(500 * every + dice.below(1_000 * every))) => {}
        }
        // Without an answer it is tried again, later.
        let _ = look(&common, &dice).await;
    }
}

async fn look(common: &Common, dice: &Entropy) -> Result<(), NoAnswer> {
    let (api, admin) = (&common.api, &common.admin);
    let path = "/compute/v2.1/os-services?binary=nova-compute";
    let services = admin.call(api, "list_services", "GET", path, None).await?;
    for service in services.list("/services").iter().filter(|s| s["state"] == "down") {
        let host = service["host"].as_str().unwrap_or_default();
        // Sometimes it is declared dead first, which fences it at once.
        let id = service["id"].as_str().unwrap_or_default();
        let declare = dice.below(4) == 0;
        let path = format!("/compute/v2.1/os-services/{id}");
        if declare {
            let body = json!({"forced_down": true});
            admin.call(api, "force_down", "PUT", &path, Some(body)).await?;
        }
        let list = format!("/compute/v2.1/servers/detail?all_tenants=1&host={host}&limit=20");
        let servers = admin.call(api, "list_host", "GET", &list, None).await?;
        for server in servers.list("/servers") {
            let id = server["id"].as_str().unwrap_or_default();
            let path = format!("/compute/v2.1/servers/{id}/action");
            admin.call(api, "evacuate", "POST", &path, Some(json!({"evacuate": {}}))).await?;
        }
        if declare {
            let body = json!({"forced_down": false});
            admin.call(api, "force_up", "PUT", &path, Some(body)).await?;
        }
    }
    // A declaration whose end was not heard of is taken back.
    for service in services.list("/services").iter().filter(|s| s["forced_down"] == true) {
        let path = format!("/compute/v2.1/os-services/{}", service["id"].as_str().unwrap_or_default());
        admin.call(api, "force_up", "PUT", &path, Some(json!({"forced_down": false}))).await?;
    }
    Ok(())
}

/// Every `every` seconds, on average, takes all servers from a host; 0 = never.
pub(super) async fn drain(common: Arc<Common>, every: u64, dice: Entropy, stop: CancellationToken) {
    while every > 0 && !stop.is_cancelled() {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_millis(500 * every + dice.below(1_000 * every))) => {}
        }
        let _ = empty(&common, &dice, &stop).await;
    }
    // Nothing is left that waits for a word, and no host that gets no servers.
    while let Err(NoAnswer) = tidy(&common, &dice).await {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// How often an operator looks whether servers have arrived, and how many times.
const LOOK: (Duration, u32) = (Duration::from_secs(5), 24);

async fn empty(common: &Common, dice: &Entropy, stop: &CancellationToken) -> Result<(), NoAnswer> {
    let (api, admin) = (&common.api, &common.admin);
    let path = "/compute/v2.1/os-services?binary=nova-compute";
    let services = admin.call(api, "list_services", "GET", path, None).await?;
    let services = services.list("/services");
    let up: Vec<_> = services.iter().filter(|s| s["state"] == "up" && s["status"] == "enabled").collect();
    let n = dice.below(u64::try_from(up.len()).unwrap_or(0).max(1));
    let Some(service) = usize::try_from(n).ok().and_then(|n| up.get(n)) else { return Ok(()) };
    let host = service["host"].as_str().unwrap_or_default();
    let path = format!("/compute/v2.1/os-services/{}", service["id"].as_str().unwrap_or_default());
    let body = json!({"status": "disabled", "disabled_reason": "drained"});
    admin.call(api, "disable", "PUT", &path, Some(body)).await?;
    let list = format!("/compute/v2.1/servers/detail?all_tenants=1&host={host}&limit=50");
    for server in admin.call(api, "list_host", "GET", &list, None).await?.list("/servers") {
        let path = format!("/compute/v2.1/servers/{}/action", server["id"].as_str().unwrap_or_default());
        admin.call(api, "migrate", "POST", &path, Some(json!({"migrate": null}))).await?;
    }
    for _ in 0..LOOK.1 {
        tokio::time::sleep(LOOK.0).await;
        if decide(common, dice).await? == 0 || stop.is_cancelled() {
            break;
        }
    }
    admin.call(api, "enable", "PUT", &path, Some(json!({"status": "enabled"}))).await.map(drop)
}

/// Confirms servers that have arrived, takes a few back; answers how many are still on their way.
async fn decide(common: &Common, dice: &Entropy) -> Result<usize, NoAnswer> {
    let (api, admin) = (&common.api, &common.admin);
    let mut open = 0;
    let under_way = admin.call(api, "list_migrations", "GET", "/compute/v2.1/os-migrations", None).await?;
    for migration in under_way.list("/migrations") {
        let status = migration["status"].as_str().unwrap_or_default();
        if !matches!(status, "error" | "confirmed" | "reverted") {
            open += 1;
        }
        if status == "finished" {
            let action = if dice.below(5) == 0 { "revertResize" } else { "confirmResize" };
            let server = migration["instance_uuid"].as_str().unwrap_or_default();
            let path = format!("/compute/v2.1/servers/{server}/action");
            admin.call(api, action, "POST", &path, Some(json!({action: null}))).await?;
        }
    }
    Ok(open)
}

async fn tidy(common: &Common, dice: &Entropy) -> Result<(), NoAnswer> {
    let (api, admin) = (&common.api, &common.admin);
    let path = "/compute/v2.1/os-services?binary=nova-compute";
    let services = admin.call(api, "list_services", "GET", path, None).await?;
    for service in services.list("/services").iter().filter(|s| s["status"] == "disabled") {
        let path = format!("/compute/v2.1/os-services/{}", service["id"].as_str().unwrap_or_default());
        admin.call(api, "enable", "PUT", &path, Some(json!({"status": "enabled"}))).await?;
    }
    decide(common, dice).await.map(drop)
}
