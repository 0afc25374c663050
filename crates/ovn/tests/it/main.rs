//! Integration tests against real `ovsdb-server`, `ovn-northd`, `ovs-vswitchd` and `ovn-controller`. They need root and
//! the packages openvswitch-switch, ovn-central, ovn-host, nftables, iproute2, busybox-static. Each test has its own network namespace.

mod client;
mod datapath;
mod engines;
mod host;
mod scene;
mod support;
