//! scs-0117: a volume is backed up and restored.

use std::time::Instant;

use osclient::{Service, parameter};
use serde_json::{Value, json};

use super::Notes;
use crate::facts::{Abort, Facts, Known};
use crate::journal::{Scope, Thing};

/// Makes an empty volume, backs it up, restores the backup. Whatever goes wrong is a failure: these things have to work.
pub(super) async fn api(facts: &Facts) -> Notes {
    let mut notes = Notes::default();
    let scope = Scope::new(&facts.journal);
    let result = cycle(facts, &scope).await;
    scope.clear(facts, &mut notes).await;
    if let Err(Abort(text)) = result {
        notes.error(text);
    }
    notes
}

async fn cycle(facts: &Facts, scope: &Scope) -> Known<()> {
    let storage = facts.storage().await?;
    // Clients sort by name: one that is null is a trap for them.
    for (path, key) in [("/backups/detail", "backups"), ("/volumes/detail", "volumes")] {
        let found = storage.list(path, key).await?;
        if let Some(nameless) = found.iter().find(|v| !v.get("name").is_some_and(Value::is_string)) {
            let id = nameless.get("id").and_then(Value::as_str).unwrap_or_default();
            return Err(Abort(format!("{key}: the name of {id} is no text")));
        }
    }
    let volume = volume(facts, scope, &storage, json!({"size": 1})).await?;
    restore(facts, scope, &storage, &volume).await?;
    Ok(())
}

/// A volume, once it is available.
pub(crate) async fn volume(facts: &Facts, scope: &Scope, storage: &Service, body: Value) -> Known<String> {
    let name = facts.name("0117-volume");
    let seq = scope.intend(Thing::Volume, &name).await?;
    let mut body = body;
    if let Some(body) = body.as_object_mut() {
        body.insert("name".into(), json!(name));
        body.insert("description".into(), json!(facts.description()));
        body.insert("metadata".into(), json!({"allod-certify": facts.settings.run}));
    }
    let made = storage.post("/volumes", json!({ "volume": body })).await?;
    let id = id(&made, "/volume/id")?;
    scope.made(seq, &id)?;
    available(facts, storage, "volume", &format!("/volumes/{id}")).await?;
    Ok(id)
}

/// Backs up, and restores into a new volume; its id.
pub(crate) async fn restore(facts: &Facts, scope: &Scope, storage: &Service, volume: &str) -> Known<String> {
    let name = facts.name("0117-backup");
    let seq = scope.intend(Thing::Backup, &name).await?;
    let body = json!({"backup": {"volume_id": volume, "name": name, "description": facts.description()}});
    let made = storage.at("3.64").post("/backups", body).await?;
    let backup = id(&made, "/backup/id")?;
    scope.made(seq, &backup)?;
    available(facts, storage, "backup", &format!("/backups/{backup}")).await?;

    let name = facts.name("0117-restored");
    let seq = scope.intend(Thing::Volume, &name).await?;
    let path = format!("/backups/{backup}/restore");
    storage.post(&path, json!({"restore": {"name": name}})).await?;
    let restored = appear(facts, storage, &name).await?;
    scope.made(seq, &restored)?;
    available(facts, storage, "volume", &format!("/volumes/{restored}")).await?;
    Ok(restored)
}

fn id(value: &Value, path: &str) -> Known<String> {
    let found = value.pointer(path).and_then(Value::as_str).map(str::to_owned);
    found.ok_or_else(|| Abort(format!("the answer has no {path}")))
}

/// Waits until the volume of this name exists.
async fn appear(facts: &Facts, storage: &Service, name: &str) -> Known<String> {
    let begin = Instant::now();
    loop {
        let found = storage.list(&format!("/volumes/detail?{}", parameter("name", name)), "volumes").await?;
        let named = found.iter().find(|v| v.get("name").and_then(Value::as_str) == Some(name));
        if let Some(volume) = named {
            return id(volume, "/id");
        }
        pause(facts, begin, "the restored volume does not appear").await?;
    }
}

async fn available(facts: &Facts, storage: &Service, key: &str, path: &str) -> Known<()> {
    let begin = Instant::now();
    loop {
        let found = storage.get(path).await?;
        match found.pointer(&format!("/{key}/status")).and_then(Value::as_str) {
            Some("available") => return Ok(()),
            Some(status) if status.starts_with("error") => {
                return Err(Abort(format!("{path}: status {status}")));
            }
            status => {
                let status = status.unwrap_or("none");
                pause(facts, begin, &format!("{path} stays {status}")).await?;
            }
        }
    }
}

async fn pause(facts: &Facts, begin: Instant, what: &str) -> Known<()> {
    if begin.elapsed().as_secs() >= facts.settings.storage_seconds {
        return Err(Abort(format!("{what} (waited {} s)", facts.settings.storage_seconds)));
    }
    tokio::time::sleep(facts.settings.poll).await;
    Ok(())
}
