//! Help for the tests of services: call the router in-process, with tokens that say who they are, and account for it.
//!
//! [`Suite`] hands out [`Client`]s that note which operation answered what. At the end it sends every operation the
//! malformed requests its schema allows to think of, and names the operations that no test called with success or as
//! a foreign tenant.

mod call;
mod mutate;
mod suite;
mod tokens;

pub use call::{Answer, Call, Client, Seen};
pub use suite::{Report, Suite, error_shape};
pub use tokens::{FakeAuthenticator, caller};
