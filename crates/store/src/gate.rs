//! A gate between a process and its database, for simulations of processes that die.

use base::Error;

/// What becomes of a transaction that writes.
#[derive(Debug)]
pub enum Fate {
    /// As always.
    Carry,
    /// The process dies in the middle of it: nothing is written.
    Lost(Error),
    /// The process dies right after the commit: all is written and nobody learns of it.
    Unheard(Error),
}

/// Decides about the transactions of one [`crate::Store`] handle and its clones; see [`crate::Store::behind`].
pub trait Gate: Send + Sync + 'static {
    /// Before a transaction that only reads.
    ///
    /// # Errors
    /// The process is dead.
    fn read(&self) -> base::Result<()>;

    /// Before a transaction that writes.
    fn write(&self) -> Fate;
}
