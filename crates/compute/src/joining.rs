//! Hosts that join with a token: single use, expiring, only its hash is kept. Signing certificates is the binary's work.

use std::time::Duration;

use base::{Error, HostId, Result};
use sha2::{Digest, Sha256};
use store::Query;

use crate::State;
use crate::model::{Host, JoinToken, JoinedHost};

fn refused() -> Error {
    Error::unauthenticated("This join token is not valid (any more).")
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

impl State {
    /// A new secret with which one host may join within `ttl`.
    ///
    /// # Errors
    /// Of the database.
    pub async fn issue_join_token(&self, ttl: Duration) -> Result<String> {
        let secret = self.entropy.password(40);
        let (id, expires_at) = (hash(&secret), self.clock.now().plus(ttl));
        self.store
            .write(move |tx| {
                let now = tx.now();
                // What ended a week ago is of no use to anybody.
                let old = Query::new().lt("expires_at", now.plus_secs(-7 * 86_400));
                tx.delete_where::<JoinToken>(&old)?;
                tx.insert(&mut JoinToken {
                    id: id.clone(),
                    meta: store::Meta::default(),
                    expires_at,
                    used: None,
                })
            })
            .await?;
        Ok(secret)
    }

    /// Uses a secret: answers the id of the host, which is new. The same key may ask again until the token ends, because
    /// the first answer may have been lost.
    ///
    /// # Errors
    /// `Unauthenticated` for a secret that is unknown, expired or used; `Conflict` for a name that another host has.
    pub async fn join(&self, secret: &str, name: &str, key: &[u8]) -> Result<HostId> {
        let (id, key, name) = (hash(secret), hex::encode(Sha256::digest(key)), name.to_owned());
        let fresh = HostId::random(&self.entropy);
        // Whoever guesses costs a read, not a turn of the one writer.
        let known = id.clone();
        if self.store.read(move |tx| tx.get::<JoinToken>(&known)).await?.is_none() {
            return Err(refused());
        }
        self.store
            .write(move |tx| {
                let mut token = tx.get::<JoinToken>(&id)?.ok_or_else(refused)?;
                if token.expires_at <= tx.now() {
                    return Err(refused());
                }
                if let Some((host, by)) = &token.used {
                    return if *by == key { Ok(*host) } else { Err(refused()) };
                }
                let taken = tx.exists::<Host>(&Query::new().eq("name", &name))?
                    || tx.exists::<JoinedHost>(&Query::new().eq("name", &name))?;
                if taken {
                    return Err(Error::conflict(format!("There is a host named '{name}' already.")));
                }
                token.used = Some((fresh, key.clone()));
                tx.update_status(&mut token)?;
                tx.insert(&mut JoinedHost {
                    id: fresh,
                    meta: store::Meta::default(),
                    name: Some(name.clone()),
                    removed: false,
                })?;
                Ok(fresh)
            })
            .await
    }

    /// The name under which a host joined.
    ///
    /// # Errors
    /// `Forbidden` for one that did not join, or was removed.
    pub async fn joined_name(&self, host: HostId) -> Result<String> {
        let joined = self.store.read(move |tx| tx.get::<JoinedHost>(&host)).await?;
        joined
            .and_then(|j| j.name)
            .ok_or_else(|| Error::forbidden(format!("Host {host} did not join this cloud, or was removed.")))
    }
}
