//! `allod upgrade --check`: what starting this version would do to a running cloud, and whether what runs there can work with
//! it. Nothing is changed.

use std::fmt::Write;

use anyhow::Result;
use compute::model::Host;
use serde::Serialize;
use serde_json::{Value, json};
use store::{Query, Replica, StepKind, Store};

use crate::config::State;
use crate::moving;

/// The agent of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// The host's name.
    pub name: String,
    /// What it told last; empty if it does not tell.
    pub version: String,
    /// When it was heard of last.
    pub seen_at: String,
}

/// Programs that work for a cloud.
#[derive(Debug, Serialize)]
pub struct Programs {
    /// Servers that live; on SQLite there is one, and it is not in the database.
    pub servers: Vec<Replica>,
    /// Agents.
    pub agents: Vec<Agent>,
}

/// What works for the cloud of this database, whatever its schema is.
pub async fn programs(store: &Store) -> base::Result<Programs> {
    let servers = store.replicas().await?;
    let hosts = store.read(|tx| tx.list::<Host>(&Query::new().sort("id", store::Order::Asc))).await?;
    let mut agents: Vec<Agent> = hosts
        .into_iter()
        .map(|h| Agent { name: h.name, version: h.agent_version, seen_at: h.seen_at.to_string() })
        .collect();
    agents.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(Programs { servers, agents })
}

/// How another program's version stands to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Standing {
    /// The same, but for fixes.
    Same,
    /// The version before, which works beside ours.
    Before,
    /// Older: nobody has tried.
    Old,
    /// Newer than ours.
    Newer,
    /// It does not tell.
    Unknown,
}

fn standing(theirs: &str, ours: &str) -> Standing {
    let parse = |text: &str| -> Option<(u64, u64)> {
        let mut parts = text.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let (Some(theirs), Some(ours)) = (parse(theirs), parse(ours)) else { return Standing::Unknown };
    // Before X.0 comes the last X-1.n, whichever that was.
    let before = if ours.1 == 0 { theirs.0 + 1 == ours.0 } else { theirs == (ours.0, ours.1 - 1) };
    match theirs.cmp(&ours) {
        std::cmp::Ordering::Equal => Standing::Same,
        std::cmp::Ordering::Greater => Standing::Newer,
        std::cmp::Ordering::Less if before => Standing::Before,
        std::cmp::Ordering::Less => Standing::Old,
    }
}

/// What is in the way of `ours`, in words.
fn warnings(programs: &Programs, ours: &str) -> Vec<String> {
    let servers = programs.servers.iter().map(|s| ("server", &s.name, &s.version));
    let agents = programs.agents.iter().map(|a| ("the agent of", &a.name, &a.version));
    let warning = |(what, name, version): (&str, &String, &String)| match standing(version, ours) {
        Standing::Same | Standing::Before => None,
        Standing::Old => Some(format!(
            "{what} {name} has version {version}, which is older than the version before {ours}: versions are taken one by one"
        )),
        Standing::Newer => Some(format!("{what} {name} has version {version}, which is newer than {ours}")),
        Standing::Unknown => Some(format!(
            "{what} {name} does not tell its version: if it is not the one before {ours}, upgrade it to that first"
        )),
    };
    servers.chain(agents).filter_map(warning).collect()
}

/// Prints what this version would do.
pub async fn check(state: &State, as_json: bool) -> Result<()> {
    let store = moving::peek(&state.config()?.database_url(state), false).await?;
    let pending = store.pending(cloud::SCHEMAS).await?;
    let ours = env!("CARGO_PKG_VERSION");
    let programs = if pending.iter().any(|p| p.service == "compute" && p.number == 1) {
        // There are no hosts, and no table of them.
        Programs { servers: store.replicas().await?, agents: Vec::new() }
    } else {
        programs(&store).await?
    };
    let told = json!({
        "version": ours,
        "pending": pending,
        "replicas": programs.servers,
        "agents": programs.agents,
        "warnings": warnings(&programs, ours),
        "contracts": pending.iter().any(|p| p.kind == StepKind::Contract),
    });
    if as_json {
        println!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        print!("{}", render(&told));
    }
    Ok(())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn render(told: &Value) -> String {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut out = format!("this version: {}\n", text(&told["version"]));
    for replica in list(&told["replicas"]) {
        let (name, version) = (text(&replica["name"]), text(&replica["version"]));
        let _ = writeln!(out, "server        {name:24} version {version:10} {}", text(&replica["address"]));
    }
    for agent in list(&told["agents"]) {
        let (name, version) = (text(&agent["name"]), text(&agent["version"]));
        let version = if version.is_empty() { "unknown" } else { &version };
        let _ =
            writeln!(out, "agent         {name:24} version {version:10} seen {}", text(&agent["seen_at"]));
    }
    for warning in list(&told["warnings"]) {
        let _ = writeln!(out, "WARNING       {}", text(warning));
    }
    let mut some = false;
    for one in list(&told["pending"]) {
        some = true;
        let _ = writeln!(
            out,
            "migration     {} {} \"{}\": {}, about {} rows",
            text(&one["service"]),
            one["number"],
            text(&one["name"]),
            text(&one["kind"]),
            one["rows"]
        );
        for step in list(&one["steps"]) {
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
    out.push_str(match (some, told["contracts"] == true) {
        (false, _) => "The schema is up to date: there is nothing to migrate.\n",
        (true, true) => {
            "Something is taken away: upgrade every server to the version before this one first, then one after the other.\n"
        }
        (true, false) => {
            "Nothing is taken away: servers and agents of the version before go on; upgrade one after the other.\n"
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_taken_one_by_one() {
        for (theirs, ours, expected) in [
            ("0.4.1", "0.4.0", Standing::Same),
            ("0.3.9", "0.4.0", Standing::Before),
            ("0.2.0", "0.4.0", Standing::Old),
            ("0.5.0", "0.4.0", Standing::Newer),
            ("0.9.0", "1.0.0", Standing::Before),
            ("0.9.0", "1.1.0", Standing::Old),
            ("1.0.7", "1.1.0", Standing::Before),
            ("", "1.1.0", Standing::Unknown),
        ] {
            assert_eq!(standing(theirs, ours), expected, "{theirs} beside {ours}");
        }
    }

    #[test]
    fn what_is_too_old_or_silent_is_warned_of() {
        let agent = |name: &str, version: &str| Agent {
            name: name.into(),
            version: version.into(),
            seen_at: "then".into(),
        };
        let replica =
            |version: &str| Replica { name: "r".into(), version: version.into(), ..Replica::default() };
        let agents = vec![agent("good", "0.3.0"), agent("old", "0.2.0"), agent("silent", "")];
        let programs = Programs { servers: vec![replica("0.4.0"), replica("0.1.0")], agents };
        let told = warnings(&programs, "0.4.0");
        assert_eq!(told.len(), 3, "{told:?}");
        for (warning, words) in
            told.iter().zip(["server r has version 0.1.0", "agent of old", "agent of silent"])
        {
            assert!(warning.contains(words), "{warning}");
        }
        let text = render(&json!({"version": "0.4.0", "agents": programs.agents, "warnings": told}));
        assert!(
            text.contains("silent") && text.contains("version unknown") && text.contains("WARNING"),
            "{text}"
        );
    }
}
