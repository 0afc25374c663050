//! `allod upgrade --check`: what starting this version would do to a running cloud. Nothing is changed.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Value, json};
use store::StepKind;

use crate::config::State;
use crate::moving;

/// Prints what this version would do.
pub async fn check(state: &State, as_json: bool) -> Result<()> {
    let store = moving::peek(&state.config()?.database_url(state), false).await?;
    let pending = store.pending(cloud::SCHEMAS).await?;
    let replicas = store.replicas().await.unwrap_or_default();
    let told = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pending": pending,
        "replicas": replicas,
        "contracts": pending.iter().any(|p| p.kind == StepKind::Contract),
    });
    if as_json {
        println!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        print!("{}", render(&told));
    }
    Ok(())
}

fn render(told: &Value) -> String {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut out = format!("this version: {}\n", text(&told["version"]));
    let replicas = told["replicas"].as_array().cloned().unwrap_or_default();
    for replica in &replicas {
        let _ = writeln!(
            out,
            "server        {:24} version {:10} {}",
            text(&replica["name"]),
            text(&replica["version"]),
            text(&replica["address"])
        );
    }
    let pending = told["pending"].as_array().cloned().unwrap_or_default();
    if pending.is_empty() {
        out.push_str("The schema is up to date: there is nothing to migrate.\n");
        return out;
    }
    for one in &pending {
        let _ = writeln!(
            out,
            "migration     {} {} \"{}\": {}, about {} rows",
            text(&one["service"]),
            one["number"],
            text(&one["name"]),
            text(&one["kind"]),
            one["rows"]
        );
        for step in one["steps"].as_array().into_iter().flatten() {
            let _ = writeln!(out, "              - {}", text(step));
        }
        if one["compatible_from"].as_u64() > Some(0) {
            let _ = writeln!(
                out,
                "              only servers that know migration {} of {} can work beside it",
                one["compatible_from"],
                text(&one["service"])
            );
        }
    }
    out.push_str(if told["contracts"] == true {
        "Something is taken away: upgrade every server to the version before this one first, then one after the other.\n"
    } else {
        "Nothing is taken away: servers and agents of the version before go on; upgrade one after the other.\n"
    });
    out
}
