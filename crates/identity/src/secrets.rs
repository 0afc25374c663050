//! Secrets at rest: what must come back in clear (EC2 keys, TOTP seeds, a directory's password) is kept sealed with
//! the credential keys, a Fernet repository of its own beside that of the tokens. It is never rotated by itself:
//! what is sealed with a key that is gone is lost.

use base::{Error, Result};

use crate::state::State;

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
}
