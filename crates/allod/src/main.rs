//! `allod`: the binary. Composition and configuration only; what it composes is in the other crates.
//!
//! `allod up` is a small supervisor with `allod server` (all APIs) and `allod agent` (this host) as its children. The
//! state directory holds everything: configuration, database, keys, images, volumes, guests, logs.
//!
//! Invariant: each role can be killed at any time and started again; nothing acknowledged is lost, guests go on.
//!
//! With the feature `tools` instead of `server` (`--no-default-features --features tools`) only what judges other clouds is
//! built ([`tools`]): small, and without a line of the cloud itself.
//!
//! Start reading at `cloud::assemble` (how services are joined), then `up::up` (how the roles are supervised).

#[cfg(feature = "server")]
mod agent_role;
#[cfg(feature = "server")]
mod apidocs;
#[cfg(feature = "server")]
mod backup;
#[cfg(feature = "server")]
mod bootstrap;
#[cfg(feature = "server")]
mod command;
#[cfg(feature = "server")]
mod config;
#[cfg(feature = "server")]
mod files;
#[cfg(feature = "server")]
mod identity_import;
#[cfg(feature = "server")]
mod image;
#[cfg(feature = "server")]
mod join;
#[cfg(feature = "server")]
mod listener;
#[cfg(feature = "server")]
mod member;
#[cfg(feature = "server")]
mod moving;
#[cfg(feature = "server")]
mod ovn_access;
#[cfg(feature = "server")]
mod pki;
#[cfg(feature = "server")]
mod process;
#[cfg(feature = "server")]
mod registry;
#[cfg(feature = "server")]
mod seal;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod shared;
#[cfg(feature = "server")]
mod sim_agents;
#[cfg(feature = "server")]
mod simulate;
#[cfg(feature = "server")]
mod status;
#[cfg(feature = "server")]
mod telemetry;
#[cfg(feature = "server")]
mod tls;
mod tools;
#[cfg(feature = "server")]
mod up;
#[cfg(feature = "server")]
mod upgrade;

use std::process::ExitCode;

#[cfg(feature = "server")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "server")]
use command::main as run;
#[cfg(not(feature = "server"))]
use tools::main as run;

fn main() -> ExitCode {
    run()
}
