//! scs-0116: the key manager, used as a member.

use osclient::{Error, Method, Service};
use serde_json::{Value, json};

use super::Notes;
use crate::facts::{Facts, Known};
use crate::journal::{Scope, Thing};

fn id_of(secret: &Value) -> Option<&str> {
    secret.get("secret_ref").and_then(Value::as_str)?.trim_end_matches('/').rsplit('/').next()
}

async fn store(scope: &Scope, keys: &Service, name: &str) -> Known<Result<String, Error>> {
    let seq = scope.intend(Thing::Secret, name).await?;
    let body = json!({"name": name, "payload": "foo", "payload_content_type": "text/plain", "secret_type": "opaque"});
    match keys.post("/secrets", body).await {
        Ok(made) => {
            let id = id_of(&made).unwrap_or_default().to_owned();
            scope.made(seq, &id)?;
            Ok(Ok(id))
        }
        Err(error) => Ok(Err(error)),
    }
}

/// A member can store, find and delete a secret, where there is a key manager at all.
pub(super) async fn permissions(facts: &Facts) -> Known<Notes> {
    let mut notes = Notes::default();
    if !facts.session.catalog().has("key-manager") {
        notes.info("no key manager in the catalog: nothing to check");
        return Ok(notes);
    }
    let keys = facts.keys()?;
    let name = facts.name("0116-secret");
    let scope = Scope::new(&facts.journal);
    let result = async {
        keys.list("/secrets", "secrets").await?;
        let id = store(&scope, &keys, &name).await?.map_err(Step::Cloud)?;
        let listed = keys.list("/secrets", "secrets").await.map_err(Step::Cloud)?;
        if !listed
            .iter()
            .any(|s| id_of(s) == Some(id.as_str()) || s.get("name").and_then(Value::as_str) == Some(&name))
        {
            return Err(Step::Unseen);
        }
        keys.delete(&format!("/secrets/{id}")).await.map_err(Step::Cloud)?;
        Ok(())
    }
    .await;
    scope.clear(facts, &mut notes).await;
    match result {
        Ok(()) => {}
        Err(Step::Cloud(error)) if error.status() == Some(403) => {
            notes.error(format!("a member may not: {error}"))
        }
        Err(Step::Cloud(error)) => return Err(error.into()),
        Err(Step::Unseen) => {
            return Err(crate::facts::Abort("the secret just stored is not in the list".into()));
        }
        Err(Step::Abort(abort)) => return Err(abort),
    }
    Ok(notes)
}

enum Step {
    Cloud(Error),
    Unseen,
    Abort(crate::facts::Abort),
}

impl From<Error> for Step {
    fn from(error: Error) -> Self {
        Step::Cloud(error)
    }
}

impl From<crate::facts::Abort> for Step {
    fn from(abort: crate::facts::Abort) -> Self {
        Step::Abort(abort)
    }
}

/// Beyond: what was stored comes back.
pub(super) async fn payload(facts: &Facts) -> Known<Notes> {
    let mut notes = Notes::default();
    if !facts.session.catalog().has("key-manager") {
        notes.error("no key manager in the catalog");
        return Ok(notes);
    }
    let keys = facts.keys()?;
    let scope = Scope::new(&facts.journal);
    let result: Known<Vec<u8>> = async {
        let id = store(&scope, &keys, &facts.name("0116-payload")).await??;
        let url = format!("{}/secrets/{id}/payload", keys.url());
        let request = osclient::Request::new(Method::GET, url).header("accept", "text/plain");
        Ok(facts.session.send(request).await?.bytes)
    }
    .await;
    scope.clear(facts, &mut notes).await;
    if result? != b"foo" {
        notes.error("the payload read is not the one stored");
    }
    Ok(notes)
}
