//! Documents that others can believe: SSH signatures (`ssh-keygen -Y`) and verifiable credentials (W3C, as JWT).
//!
//! No I/O and no clock: texts and keys in, texts out. Keys that sign are Ed25519; signatures are verified of every kind of
//! key that `ssh-keygen` makes and ring knows, those of FIDO tokens among them.
//!
//! Invariant: what is verified was signed by exactly one of the keys given, under the namespace given, to the last byte.
//! Whatever is not understood is not believed.
//!
//! Start reading at [`sshsig`] (reports, certificates), then [`credential`].

pub mod credential;
mod key;
pub mod sshsig;
mod wire;

pub use key::SigningKey;
