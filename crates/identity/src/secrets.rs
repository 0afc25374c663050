//! Secrets at rest: what must come back in clear (EC2 keys, TOTP seeds, secrets of consumers, a directory's password) is
//! kept sealed with the credential keys, a Fernet repository of its own beside that of the tokens.
//!
//! What is sealed with a key that is gone is lost. So no key goes while a secret needs it: before the keys turn over, every
//! secret is sealed anew with the present primary, which stays as a secondary through the next turn; and one secret that no
//! key opens stops the turn.

use std::sync::atomic::Ordering;

use base::{Error, Kind, Result, Timestamp};
use store::{Query, Resource, Tx};

use crate::federation::model::IdentityProvider;
use crate::keys::Keys;
use crate::model::{AccessToken, Consumer, Credential, DomainConfig, RequestToken};
use crate::state::State;

/// Rows looked at in one transaction.
const ROWS: usize = 200;

/// A resource with secrets.
trait Sealed: Resource + Send {
    /// Its secrets, sealed.
    fn sealed(&mut self) -> Vec<&mut String>;
}

macro_rules! sealed {
    ($($resource:ident),*) => {$(
        impl Sealed for $resource {
            fn sealed(&mut self) -> Vec<&mut String> {
                vec![&mut self.sealed]
            }
        }
    )*};
}

sealed!(Credential, Consumer, RequestToken, AccessToken);

impl Sealed for DomainConfig {
    fn sealed(&mut self) -> Vec<&mut String> {
        self.secrets.values_mut().flat_map(|group| group.values_mut()).collect()
    }
}

impl Sealed for IdentityProvider {
    fn sealed(&mut self) -> Vec<&mut String> {
        let client = self.oidc.as_mut().and_then(|oidc| oidc.client.as_mut());
        let client = client.and_then(|client| client.sealed.as_mut());
        client.into_iter().chain(self.front_end.as_mut().map(|front| &mut front.sealed)).collect()
    }
}

/// How a round of sealing anew went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Round {
    renewed: usize,
    lost: usize,
    last: Option<String>,
}

/// Seals the rows after `after` anew; written only where `writes`.
fn renew<R: Sealed>(
    tx: &mut Tx<'_>,
    keys: &Keys,
    now: Timestamp,
    after: Option<&str>,
    writes: bool,
) -> Result<Round> {
    let mut round = Round::default();
    for mut row in tx.list::<R>(&Query::new().after(after).limit(ROWS))? {
        round.last = Some(row.id().to_string());
        let before = round.renewed;
        for text in row.sealed() {
            match keys.renew(text, now) {
                None => round.lost += 1,
                Some(None) => {}
                Some(Some(fresh)) => {
                    *text = fresh;
                    round.renewed += 1;
                }
            }
        }
        if writes && round.renewed > before {
            tx.update_status(&mut row)?;
        }
    }
    Ok(round)
}

impl State {
    /// Seals a secret for the tables.
    pub fn seal_secret(&self, secret: &str) -> String {
        self.credential_keys.seal_at_rest(secret.as_bytes(), self.clock.now())
    }

    /// The secret that was sealed.
    ///
    /// # Errors
    /// `Internal` where the key it was sealed with is gone.
    pub fn open_secret(&self, sealed: &str) -> Result<String> {
        let opened = self.credential_keys.open_at_rest(sealed, self.clock.now());
        let bytes = opened.ok_or_else(|| Error::internal("a secret was sealed with a key that is gone"))?;
        String::from_utf8(bytes).map_err(Error::internal)
    }

    /// Turns the credential keys over where that is due, and sees to it that every secret is sealed with the primary.
    ///
    /// # Errors
    /// The store's and the key files'.
    pub(crate) async fn keep_secrets(&self) -> Result<()> {
        let (now, days) = (self.clock.now(), self.config.operator.credential_key_days);
        let due = days > 0 && self.credential_keys.due(now, days.saturating_mul(86_400));
        let primary = self.credential_keys.primary(now);
        if self.sealed_with.load(Ordering::Relaxed) != primary || due {
            if self.seal_anew().await? > 0 {
                return Ok(());
            }
            self.sealed_with.store(primary, Ordering::Relaxed);
        }
        if due {
            self.turn_credential_keys(primary).await?;
        }
        Ok(())
    }

    /// Makes the staged credential key the primary now, and seals every secret with it.
    ///
    /// # Errors
    /// `Conflict` where a secret cannot be opened, or another server turns the keys over; else the store's and the key
    /// files'.
    pub async fn rotate_credential_keys(&self) -> Result<()> {
        let primary = self.credential_keys.primary(self.clock.now());
        let lost = self.seal_anew().await?;
        if lost > 0 {
            return Err(Error::conflict(format!("{lost} secrets were sealed with keys that are gone")));
        }
        self.turn_credential_keys(primary).await
    }

    async fn turn_credential_keys(&self, primary: u64) -> Result<()> {
        let keys = self.credential_keys.clone();
        let turned = tokio::task::spawn_blocking(move || keys.rotate_from(Some(primary)));
        match turned.await.map_err(Error::internal)? {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // Another server does it.
            Err(error) if error.kind() == Kind::Conflict => return Ok(()),
            Err(error) => return Err(error),
        }
        let primary = self.credential_keys.primary(self.clock.now());
        tracing::info!(primary, "credential keys turned over");
        if self.seal_anew().await? == 0 {
            self.sealed_with.store(primary, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Seals everything with the primary that is not yet; how many secrets no key opens.
    async fn seal_anew(&self) -> Result<usize> {
        let mut all = Round::default();
        self.renew_all::<Credential>(&mut all).await?;
        self.renew_all::<Consumer>(&mut all).await?;
        self.renew_all::<RequestToken>(&mut all).await?;
        self.renew_all::<AccessToken>(&mut all).await?;
        self.renew_all::<DomainConfig>(&mut all).await?;
        self.renew_all::<IdentityProvider>(&mut all).await?;
        if all.renewed > 0 {
            tracing::info!(secrets = all.renewed, "sealed with the present credential key");
        }
        if all.lost > 0 {
            tracing::warn!(
                secrets = all.lost,
                "sealed with credential keys that are gone; the keys are not turned over while there are such"
            );
        }
        Ok(all.lost)
    }

    async fn renew_all<R: Sealed>(&self, all: &mut Round) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let (keys, now, from) = (self.credential_keys.clone(), self.clock.now(), after.clone());
            let found = self.read(move |tx| renew::<R>(tx, &keys, now, from.as_deref(), false)).await?;
            if found.renewed > 0 {
                let (keys, from) = (self.credential_keys.clone(), after.clone());
                self.write(move |tx| renew::<R>(tx, &keys, now, from.as_deref(), true)).await?;
            }
            all.renewed += found.renewed;
            all.lost += found.lost;
            match found.last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }
}
