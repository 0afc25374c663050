//! `allod database copy`: the whole database on another engine. The dump's own lines are in `store::Content`'s crate.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base::{Clock, Entropy, SystemClock};
use store::{Content, Schema, Store};

use crate::config::State;
use crate::process::Process;

/// A clock for opening databases.
pub fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// A database with the schema of this program.
pub async fn open(url: &str) -> Result<Store> {
    Ok(Store::open(url, clock(), Entropy::system(), cloud::SCHEMAS).await?)
}

/// A database as it is; made where `make` says so and it is a file.
pub async fn peek(url: &str, make: bool) -> Result<Store> {
    Ok(Store::peek(url, clock(), Entropy::system(), make).await?)
}

/// A database that is only read: its schema has to be that of this program, and is not changed to be.
pub async fn source(url: &str, schemas: &'static [Schema]) -> Result<Store> {
    let store = peek(url, false).await?;
    if !store.pending(schemas).await?.is_empty() {
        bail!("the database has the schema of an older version: use the program that serves it");
    }
    Ok(store)
}

/// Passwords do not belong into command lines: every user of the machine can read those.
pub fn refuse_password(url: &str) -> Result<()> {
    let user = url.split_once("://").and_then(|(_, rest)| rest.split_once('@')).map_or("", |(user, _)| user);
    if user.contains(':') || url.contains("?password=") || url.contains("&password=") {
        bail!(
            "a password in a command line can be read by everybody on this machine: use ?passwordfile=FILE"
        );
    }
    Ok(())
}

/// Copies the database of a cloud that is down, reads it back and compares.
pub async fn copy(state: &State, from: Option<String>, to: &str) -> Result<()> {
    refuse_password(to)?;
    let from = match from {
        Some(url) => {
            refuse_password(&url)?;
            url
        }
        None => state.config()?.database_url(state),
    };
    if from == to {
        bail!("this is the database that the cloud has");
    }
    for role in ["up", "server"] {
        if Process::read(&state.path(&format!("run/{role}.pid"))).is_some() {
            bail!(
                "the cloud is up: stop it first (`allod down`), or what it writes meanwhile is not in the copy"
            );
        }
    }
    if let Some(path) = from.strip_prefix("sqlite://")
        && !Path::new(path).exists()
    {
        bail!("there is no database in {path}");
    }
    let source = source(&from, cloud::SCHEMAS).await.context("the source")?;
    let dump = Dump(state.path("db/copy.dump"));
    let bar = crate::up::spinner("reading");
    source.dump(cloud::SCHEMAS, &dump.0).await.context("the source")?;
    bar.set_message("writing");
    let target = peek(to, true).await.context("the target")?;
    let copied = target.load(&dump.0).await.context("the target; nothing was written")?;
    drop(target);
    bar.set_message("comparing");
    let target = open(to).await.context("the target")?;
    let found = target.content(cloud::SCHEMAS).await?;
    if found != copied {
        bail!("what the target holds is not what was written: somebody else writes to it");
    }
    bar.finish_and_clear();
    print(&copied);
    println!("\nThe copy is the same as the original. Set `database` in the configuration to use it.");
    Ok(())
}

/// Shows what was moved.
pub fn print(content: &Content) {
    for (table, counted) in content.iter().filter(|(_, c)| c.rows > 0) {
        println!("{table:32} {:>9}  sha256 {}", counted.rows, counted.sha256.get(..16).unwrap_or_default());
    }
    println!("{:32} {:>9}", "rows", content.values().map(|c| c.rows).sum::<u64>());
}

/// A dump that goes with its owner: it holds everything.
pub struct Dump(pub std::path::PathBuf);

impl Drop for Dump {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_stay_out_of_command_lines() {
        for bad in ["postgresql://u:p@h/d", "postgresql://u@h/d?password=p", "postgresql://:p@h/d"] {
            assert!(refuse_password(bad).is_err(), "{bad}");
        }
        for good in ["postgresql://u@h:5432/d", "sqlite:///a:b", "postgresql://u@h/d?passwordfile=%2Fx"] {
            assert!(refuse_password(good).is_ok(), "{good}");
        }
    }
}
