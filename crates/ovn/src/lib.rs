//! The OVN network driver: an OVSDB client, the projection of resources to OVN Northbound, plugging on the host, and
//! supervision of the OVN and Open vSwitch daemons of this machine.
//!
//! Invariant: the Northbound database is a projection that can be thrown away; nothing here is a source of truth.
//! Nothing is created on the host that is not recorded first, so that everything can be found and removed again.
//!
//! Start reading at [`project`] (what rows a resource has), then [`Backend`] (the server's side), [`Host`] (the host's
//! side), [`engines`] (the daemons) and [`ovsdb`] (the protocol).

pub mod backend;
pub mod diff;
pub mod engines;
pub mod host;
pub mod ovsdb;
pub mod project;
mod record;
mod sys;
mod vswitch;

pub use backend::Backend;
pub use engines::Engines;
pub use host::Host;
