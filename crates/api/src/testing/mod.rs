//! Help for the tests of services: call the router in-process, with tokens that say who they are.

mod call;
mod tokens;

pub use call::{Answer, Call, Client};
pub use tokens::{FakeAuthenticator, caller};
