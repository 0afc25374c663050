//! Integration tests against real `ovsdb-server`, `ovn-northd`, `ovs-vswitchd` and `ovn-controller`. They need root and
//! the packages openvswitch-switch, ovn-central, ovn-host, nftables, iproute2, busybox-static. Each test has its own network namespace.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails, also in its helpers")]

mod client;
mod datapath;
mod engines;
mod golden;
mod host;
mod projection;
mod scene;
mod support;
