//! Receipts: who has passed some of the methods a rule wants, and comes back with the others, need not prove the first
//! again. A receipt is sealed with the token keys, is no token, and is good for five minutes.

use base::{Result, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Login, Proof};
use crate::logic::payload::method;
use crate::model::{Domain, User};
use crate::state::State;
use crate::words::unauthorized;

/// Seconds a receipt is good for (Keystone's `[receipt] expiration`).
const GOOD_FOR: i64 = 300;
/// What a sealed receipt begins with; no token does.
const MARK: &[u8] = b"receipt:";

#[derive(Debug, Serialize, Deserialize)]
struct Receipt {
    user: String,
    methods: Vec<String>,
    generation: u64,
    ends: i64,
}

/// Makes a receipt of what was proved.
pub(super) async fn give(
    state: &State,
    user: UserId,
    proof: &Proof,
    rules: Vec<Vec<String>>,
) -> Result<Login> {
    let (now, generation) = (state.clock.now(), proof.user.as_ref().map_or(0, |(_, g)| *g));
    let ends = now.plus_secs(GOOD_FOR);
    let methods: Vec<String> = proof.methods.iter().map(|m| (*m).to_owned()).collect();
    let receipt = Receipt { user: user.to_string(), methods: methods.clone(), generation, ends: ends.0 };
    let mut bytes = MARK.to_vec();
    bytes.extend(serde_json::to_vec(&receipt).map_err(base::Error::internal)?);
    let sealed = state.tokens.keys().seal(&bytes, now);
    let of = state
        .store
        .read(move |tx| {
            let user = tx.get::<User>(&user)?.ok_or_else(unauthorized)?;
            let domain = tx.get::<Domain>(&user.domain_id)?.ok_or_else(unauthorized)?;
            Ok(json!({
                "id": user.id, "name": user.name, "domain": {"id": domain.id, "name": domain.name},
            }))
        })
        .await?;
    let body = json!({
        "receipt": {
            "methods": methods, "user": of, "expires_at": ends.iso_micros(), "issued_at": now.iso_micros(),
        },
        "required_auth_methods": rules,
    });
    Ok(Login::Receipt(sealed, body))
}

/// Adds what a receipt proves.
pub(super) async fn take(state: &State, sealed: &str, proof: &mut Proof) -> Result<()> {
    let now = state.clock.now();
    let (bytes, _) = state.tokens.keys().open_token(sealed, now).ok_or_else(unauthorized)?;
    let text = bytes.strip_prefix(MARK).ok_or_else(unauthorized)?;
    let receipt: Receipt = serde_json::from_slice(text).map_err(|_| unauthorized())?;
    if Timestamp(receipt.ends) <= now {
        return Err(unauthorized());
    }
    let id = UserId::new(receipt.user);
    let user = state.store.read(move |tx| tx.get::<User>(&id)).await?;
    // A password changed or a user disabled meanwhile ends receipts as it ends tokens.
    let user = user.filter(|u| u.enabled && u.token_generation == receipt.generation);
    let user = user.ok_or_else(unauthorized)?;
    proof.is(user.id, user.token_generation)?;
    for name in &receipt.methods {
        if let Some(name) = method(name) {
            proof.by(name);
        }
    }
    Ok(())
}
