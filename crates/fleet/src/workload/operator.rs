//! An operator who evacuates hosts that are down.

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
